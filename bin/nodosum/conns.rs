//! `nodosum conns`.

use std::cmp::{Ordering, Reverse};

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{Command, ConnView, ConnsView, Reply},
    },
    args::{ConnSort, ConnState, Conns},
    exit::{Exit, Failure},
    members::absent_last,
    output::{Column, bytes, raw, render, seconds, wide},
    watch,
};

/// A peer or a reason that is not known.
fn known(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

const COLUMNS: [Column<ConnView>; 21] = [
    Column {
        title: "PEER",
        key: "peer",
        wide: false,
        right: false,
        text: |conn| known(conn.peer.as_ref()),
        raw: |conn| raw(conn.peer.as_ref()),
    },
    Column {
        title: "SIDE",
        key: "side",
        wide: false,
        right: false,
        text: |conn| known(conn.side.as_ref()),
        raw: |conn| raw(conn.side.as_ref()),
    },
    Column::text("STATE", "state", |conn| conn.state.clone()),
    Column::text("ADDR", "addr", |conn| conn.addr.clone()),
    Column::number(
        "RTT",
        "rtt_seconds",
        |conn| seconds(conn.rtt_seconds),
        |conn| raw(conn.rtt_seconds),
    ),
    wide(Column::number(
        "MINRTT",
        "min_rtt_seconds",
        |conn| seconds(conn.min_rtt_seconds),
        |conn| raw(conn.min_rtt_seconds),
    )),
    wide(Column::number(
        "CWND",
        "cwnd_bytes",
        |conn| bytes(conn.cwnd_bytes),
        |conn| conn.cwnd_bytes.to_string(),
    )),
    wide(Column::number(
        "MTU",
        "mtu_bytes",
        |conn| bytes(conn.mtu_bytes),
        |conn| conn.mtu_bytes.to_string(),
    )),
    Column::number(
        "SENT",
        "sent_bytes",
        |conn| bytes(conn.sent_bytes),
        |conn| conn.sent_bytes.to_string(),
    ),
    Column::number(
        "RECEIVED",
        "received_bytes",
        |conn| bytes(conn.received_bytes),
        |conn| conn.received_bytes.to_string(),
    ),
    wide(Column::number(
        "PKT-OUT",
        "sent_packets",
        |conn| conn.sent_packets.to_string(),
        |conn| conn.sent_packets.to_string(),
    )),
    wide(Column::number(
        "PKT-IN",
        "received_packets",
        |conn| conn.received_packets.to_string(),
        |conn| conn.received_packets.to_string(),
    )),
    Column::number(
        "LOST",
        "lost_packets",
        |conn| conn.lost_packets.to_string(),
        |conn| conn.lost_packets.to_string(),
    ),
    wide(Column::number(
        "STREAMS",
        "streams",
        |conn| conn.streams.to_string(),
        |conn| conn.streams.to_string(),
    )),
    Column::number(
        "IDLE",
        "idle_seconds",
        |conn| seconds(conn.idle_seconds),
        |conn| raw(conn.idle_seconds),
    ),
    Column::number(
        "UP",
        "up_seconds",
        |conn| seconds(conn.up_seconds),
        |conn| raw(conn.up_seconds),
    ),
    wide(Column::number(
        "PING",
        "last_ping_seconds",
        |conn| seconds(conn.last_ping_seconds),
        |conn| raw(conn.last_ping_seconds),
    )),
    wide(Column::number(
        "UNANSWERED",
        "ping_failures",
        |conn| conn.ping_failures.to_string(),
        |conn| conn.ping_failures.to_string(),
    )),
    wide(Column::number(
        "DIALS",
        "dials",
        |conn| conn.dials.to_string(),
        |conn| conn.dials.to_string(),
    )),
    Column::number(
        "NEXT-DIAL",
        "next_dial_seconds",
        |conn| seconds(conn.next_dial_seconds),
        |conn| raw(conn.next_dial_seconds),
    ),
    Column {
        title: "LAST-ERROR",
        key: "last_error",
        wide: false,
        right: false,
        text: |conn| known(conn.last_error.as_ref()),
        raw: |conn| raw(conn.last_error.as_ref()),
    },
];

pub(crate) fn run(args: &Conns) -> Result<Exit, Failure> {
    watch::run(&args.watch, &args.read, || {
        let reply = call(&args.read.admin, Command::Conns, &[], CALL_TIMEOUT)?;
        let Reply::Conns(mut view) = reply else {
            return Err(unexpected());
        };
        select(args, &mut view);
        let filtered = !args.status.is_empty() || args.name.is_some();
        let exit = if view.connections.is_empty() && filtered {
            Exit::Unmet
        } else {
            Exit::Done
        };
        let name = |conn: &ConnView| known(conn.peer.as_ref());
        Ok((
            render(args.read.layout(), &COLUMNS, &view.connections, name, &view)?,
            exit,
        ))
    })
}

/// Keeps what the filters ask for, in the order asked for.
fn select(args: &Conns, view: &mut ConnsView) {
    view.connections.retain(|conn| {
        (args.status.is_empty() || args.status.iter().any(|state| name(*state) == conn.state))
            && args
                .name
                .as_ref()
                .is_none_or(|name| conn.peer.as_ref().is_some_and(|peer| name.is_match(peer)))
    });
    view.connections.sort_by(|a, b| {
        let order = match args.sort {
            ConnSort::Peer => Ordering::Equal,
            ConnSort::State => a.state.cmp(&b.state),
            ConnSort::Rtt => absent_last(a.rtt_seconds, b.rtt_seconds),
            ConnSort::Up => absent_last(a.up_seconds, b.up_seconds),
            // Of traffic and losses, the largest are what one looks for.
            ConnSort::Sent => Reverse(a.sent_bytes).cmp(&Reverse(b.sent_bytes)),
            ConnSort::Received => Reverse(a.received_bytes).cmp(&Reverse(b.received_bytes)),
            ConnSort::Lost => Reverse(a.lost_packets).cmp(&Reverse(b.lost_packets)),
        };
        order
            .then_with(|| a.peer.cmp(&b.peer))
            .then_with(|| a.addr.cmp(&b.addr))
    });
}

fn name(state: ConnState) -> &'static str {
    match state {
        ConnState::Handshaking => "handshaking",
        ConnState::Established => "established",
        ConnState::Draining => "draining",
        ConnState::Down => "down",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args;

    fn conn(peer: Option<&str>, state: &str, sent_bytes: u64) -> ConnView {
        ConnView {
            peer: peer.map(str::to_owned),
            side: None,
            state: state.to_owned(),
            addr: "127.0.0.1:7946".to_owned(),
            rtt_seconds: None,
            min_rtt_seconds: None,
            cwnd_bytes: 0,
            mtu_bytes: 0,
            sent_bytes,
            received_bytes: 0,
            sent_packets: 0,
            received_packets: 0,
            lost_packets: 0,
            streams: 0,
            idle_seconds: None,
            up_seconds: None,
            last_ping_seconds: None,
            ping_failures: 0,
            dials: 0,
            last_error: None,
            next_dial_seconds: None,
        }
    }

    fn selected(flags: &[&str]) -> Vec<Option<String>> {
        let line = ["nodosum", "conns"].iter().chain(flags);
        let args::Command::Conns(args) = args::Cli::parse_from(line).command.unwrap() else {
            panic!("not conns");
        };
        let connections = vec![
            conn(Some("n3"), "established", 9),
            conn(Some("n2"), "down", 5),
            conn(None, "handshaking", 7),
        ];
        let mut view = ConnsView {
            schema: 1,
            node: "n1".to_owned(),
            connections,
        };
        select(&args, &mut view);
        view.connections.into_iter().map(|conn| conn.peer).collect()
    }

    #[test]
    fn filters_keep_what_they_name_and_the_busiest_come_first() {
        let peer = |name: &str| Some(name.to_owned());
        assert_eq!(selected(&[]), [None, peer("n2"), peer("n3")]);
        assert_eq!(selected(&["--status", "down"]), [peer("n2")]);
        assert_eq!(selected(&["--name", "n"]), [peer("n2"), peer("n3")]);
        assert_eq!(
            selected(&["--sort", "sent"]),
            [peer("n3"), None, peer("n2")]
        );
    }
}
