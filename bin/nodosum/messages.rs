//! `nodosum ping`, `send`, `broadcast`, `request`: talking to other nodes through this one.

use std::{
    ffi::OsStr,
    io::{self, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    thread,
    time::Duration,
};

use serde::Serialize;

use crate::{
    admin::{
        client::{Client, call, unexpected},
        protocol::{Command, DeliveryView, MAX_PAYLOAD, Reply},
    },
    args::{Broadcast, Message, Ping, Read, Request, Send},
    exit::{Exit, Failure},
    output::{Column, Format, clean, is_terminal, print, print_bytes, render, seconds},
};

/// The pause between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct Pong {
    node: String,
    rtt_seconds: f64,
}

#[derive(Debug, Serialize)]
struct PongView<'a> {
    schema: u32,
    #[serde(flatten)]
    pong: &'a Pong,
}

const PONG_COLUMNS: [Column<Pong>; 2] = [
    Column::text("NODE", "node", |pong| pong.node.clone()),
    Column::number(
        "RTT",
        "rtt_seconds",
        |pong| seconds(Some(pong.rtt_seconds)),
        |pong| pong.rtt_seconds.to_string(),
    ),
];

pub(crate) fn ping(args: &Ping) -> Result<Exit, Failure> {
    let mut layout = args.read.layout();
    for round in 0..args.count {
        if round > 0 {
            thread::sleep(PING_INTERVAL);
        }
        let command = Command::Ping {
            node: args.node.to_string(),
            timeout_seconds: args.timeout.as_secs_f64(),
        };
        let reply = call(&args.read.admin, command, &[], args.timeout)?;
        let Reply::Pong { rtt_seconds } = reply else {
            return Err(unexpected());
        };
        let pong = Pong {
            node: args.node.to_string(),
            rtt_seconds,
        };
        let view = PongView {
            schema: 1,
            pong: &pong,
        };
        let name = |pong: &Pong| pong.node.clone();
        let rows = std::slice::from_ref(&pong);
        let text = match layout.format {
            Format::Table | Format::Wide => line(layout.header, &pong),
            Format::Json | Format::Jsonl | Format::Tsv | Format::Name => {
                render(layout, &PONG_COLUMNS, rows, name, &view)?
            }
        };
        print(&text)?;
        layout.header = false;
    }
    Ok(Exit::Done)
}

/// Answers come one by one, so that a table cannot wait for its widest cell.
fn line(header: bool, pong: &Pong) -> String {
    let width = pong.node.len().max("NODE".len());
    let rtt = seconds(Some(pong.rtt_seconds));
    let line = format!("{:<width$}  {rtt}\n", clean(&pong.node));
    if header {
        format!("{:<width$}  RTT\n{line}", "NODE")
    } else {
        line
    }
}

pub(crate) fn send(args: &Send) -> Result<Exit, Failure> {
    let payload = payload(&args.message.payload)?;
    let command = Command::Send {
        to: args.to.iter().map(ToString::to_string).collect(),
        app: args.message.app.clone(),
        timeout_seconds: args.message.timeout.as_secs_f64(),
        payload_bytes: payload.len() as u64,
    };
    let view = deliver(&args.read, &args.message, command, &payload)?;
    Ok(if view.failed.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

pub(crate) fn broadcast(args: &Broadcast) -> Result<Exit, Failure> {
    let payload = payload(&args.message.payload)?;
    let command = Command::Broadcast {
        app: args.message.app.clone(),
        timeout_seconds: args.message.timeout.as_secs_f64(),
        payload_bytes: payload.len() as u64,
    };
    let view = deliver(&args.read, &args.message, command, &payload)?;
    Ok(match (view.ok.is_empty(), view.failed.is_empty()) {
        (_, false) => Exit::Failed,
        (false, true) => Exit::Done,
        (true, true) => Exit::Unmet,
    })
}

/// What became of a message to one node.
#[derive(Debug, PartialEq, Serialize)]
struct Outcome {
    node: String,
    error: Option<String>,
}

const OUTCOME_COLUMNS: [Column<Outcome>; 2] = [
    Column::text("NODE", "node", |outcome| outcome.node.clone()),
    Column::text("OUTCOME", "error", |outcome| {
        outcome.error.clone().unwrap_or_else(|| "ok".to_owned())
    }),
];

fn outcomes(view: &DeliveryView) -> Vec<Outcome> {
    let ok = view.ok.iter().map(|node| Outcome {
        node: node.clone(),
        error: None,
    });
    let failed = view.failed.iter().map(|failed| Outcome {
        node: failed.node.clone(),
        error: Some(failed.error.clone()),
    });
    let mut all: Vec<_> = ok.chain(failed).collect();
    all.sort_by(|a, b| a.node.cmp(&b.node));
    all
}

fn deliver(
    read: &Read,
    message: &Message,
    command: Command,
    payload: &[u8],
) -> Result<DeliveryView, Failure> {
    let reply = call(&read.admin, command, payload, message.timeout)?;
    let Reply::Delivery(view) = reply else {
        return Err(unexpected());
    };
    let name = |outcome: &Outcome| outcome.node.clone();
    print(&render(
        read.layout(),
        &OUTCOME_COLUMNS,
        &outcomes(&view),
        name,
        &view,
    )?)?;
    Ok(view)
}

pub(crate) fn request(args: &Request) -> Result<Exit, Failure> {
    let payload = payload(&args.message.payload)?;
    let command = Command::Request {
        to: args.to.to_string(),
        app: args.message.app.clone(),
        timeout_seconds: args.message.timeout.as_secs_f64(),
        payload_bytes: payload.len() as u64,
    };
    let mut client = Client::ask(&args.admin, command, &payload, Some(args.message.timeout))?;
    let Reply::Payload { payload_bytes } = client.reply()? else {
        return Err(unexpected());
    };
    let answer = client.payload(payload_bytes)?;
    print_bytes(&answer)?;
    // Bytes are passed on as they are; only a person gets the end of line that keeps the prompt
    // on a line of its own.
    if is_terminal() && answer.last().is_some_and(|last| *last != b'\n') {
        io::stdout().write_all(b"\n").map_err(Failure::output)?;
    }
    Ok(Exit::Done)
}

/// The bytes to send: the argument itself, or standard input for `-`.
pub(crate) fn payload(argument: &OsStr) -> Result<Vec<u8>, Failure> {
    let payload = if argument == "-" {
        let mut read = Vec::new();
        // One byte more than allowed tells what is too large without reading all of it.
        io::stdin()
            .take(MAX_PAYLOAD + 1)
            .read_to_end(&mut read)
            .map_err(|error| Failure::failed(format!("cannot read standard input: {error}")))?;
        read
    } else {
        argument.as_bytes().to_vec()
    };
    if payload.len() as u64 > MAX_PAYLOAD {
        return Err(Failure::usage(format!(
            "the payload has more than {MAX_PAYLOAD} bytes"
        )));
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::protocol::FailedView;

    #[test]
    fn outcomes_are_listed_by_node_whatever_they_are() {
        let view = DeliveryView {
            schema: 1,
            ok: vec!["n3".into(), "n1".into()],
            failed: vec![FailedView {
                node: "n2".into(),
                error: "gone".into(),
            }],
        };
        let listed: Vec<_> = outcomes(&view)
            .into_iter()
            .map(|o| (o.node, o.error))
            .collect();
        let expected = [("n1", None), ("n2", Some("gone")), ("n3", None)]
            .map(|(node, error)| (node.to_owned(), error.map(str::to_owned)));
        assert_eq!(listed, expected);
    }
}
