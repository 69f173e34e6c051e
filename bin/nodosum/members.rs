//! `nodosum members`.

use std::cmp::Ordering;

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{Command, MemberView, MembersView, Reply},
    },
    args::{MemberSort, MemberStatus, Members},
    exit::{Exit, Failure},
    explain,
    output::{Column, raw, render, seconds, wide},
    watch,
};

const COLUMNS: [Column<MemberView>; 9] = [
    Column {
        title: "NODE",
        key: "node",
        wide: false,
        right: false,
        text: |member| {
            if member.is_self {
                format!("{} *", member.node)
            } else {
                member.node.clone()
            }
        },
        raw: |member| member.node.clone(),
    },
    Column::text("STATUS", "status", |member| member.status.clone()),
    Column {
        title: "CONN",
        key: "connected",
        wide: false,
        right: false,
        text: |member| match (member.is_self, member.connected) {
            (true, _) => "self".to_owned(),
            (false, true) => "up".to_owned(),
            (false, false) => "down".to_owned(),
        },
        raw: |member| member.connected.to_string(),
    },
    Column::text("QUIC", "quic_addr", |member| member.quic_addr.clone()),
    wide(Column::text("GOSSIP", "gossip_addr", |member| {
        member.gossip_addr.clone()
    })),
    Column::number(
        "RTT",
        "rtt_seconds",
        |member| seconds(member.rtt_seconds),
        |member| raw(member.rtt_seconds),
    ),
    wide(Column::number(
        "INC",
        "incarnation",
        |member| member.incarnation.to_string(),
        |member| member.incarnation.to_string(),
    )),
    Column::text("VERSION", "version", |member| member.version.clone()),
    Column::text("TAGS", "tags", |member| {
        let tags: Vec<_> = member
            .tags
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        tags.join(",")
    }),
];

pub(crate) fn run(args: &Members) -> Result<Exit, Failure> {
    if let Some(node) = args.node.as_ref().filter(|_| args.explain) {
        return explain::run(args, node.as_str());
    }
    watch::run(&args.watch, &args.read, || {
        let reply = call(&args.read.admin, Command::Members, &[], CALL_TIMEOUT)?;
        let Reply::Members(mut view) = reply else {
            return Err(unexpected());
        };
        select(args, &mut view);
        let exit = if view.members.is_empty() && is_filtered(args) {
            Exit::Unmet
        } else {
            Exit::Done
        };
        let name = |member: &MemberView| member.node.clone();
        Ok((
            render(args.read.layout(), &COLUMNS, &view.members, name, &view)?,
            exit,
        ))
    })
}

fn is_filtered(args: &Members) -> bool {
    args.node.is_some() || !args.status.is_empty() || args.name.is_some() || !args.tags.is_empty()
}

/// Keeps what the filters ask for, in the order asked for.
fn select(args: &Members, view: &mut MembersView) {
    view.members.retain(|member| {
        (args.status.is_empty()
            || args
                .status
                .iter()
                .any(|status| name(*status) == member.status))
            && args
                .node
                .as_ref()
                .is_none_or(|node| node.as_str() == member.node)
            && args
                .name
                .as_ref()
                .is_none_or(|name| name.is_match(&member.node))
            && args
                .tags
                .iter()
                .all(|(key, value)| member.tags.get(key) == Some(value))
    });
    view.members.sort_by(|a, b| {
        let order = match args.sort {
            MemberSort::Node => Ordering::Equal,
            MemberSort::Status => rank(&a.status).cmp(&rank(&b.status)),
            MemberSort::Rtt => absent_last(a.rtt_seconds, b.rtt_seconds),
            MemberSort::Incarnation => a.incarnation.cmp(&b.incarnation),
        };
        order.then_with(|| a.node.cmp(&b.node))
    });
}

fn name(status: MemberStatus) -> &'static str {
    match status {
        MemberStatus::Alive => "alive",
        MemberStatus::Suspect => "suspect",
        MemberStatus::Dead => "dead",
        MemberStatus::Left => "left",
    }
}

/// The order of a member's life; what a newer node calls otherwise comes last.
fn rank(status: &str) -> usize {
    let order = ["alive", "suspect", "dead", "left"];
    order
        .iter()
        .position(|known| *known == status)
        .unwrap_or(order.len())
}

/// Numbers ascending, then the rows that have none.
pub(crate) fn absent_last(a: Option<f64>, b: Option<f64>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        args,
        output::{Format, Layout},
    };

    fn view() -> MembersView {
        let member = |node: &str, status: &str, rtt: Option<f64>, zone: &str| MemberView {
            node: node.to_owned(),
            status: status.to_owned(),
            quic_addr: "127.0.0.1:7946".to_owned(),
            gossip_addr: "127.0.0.1:7947".to_owned(),
            incarnation: 1,
            tags: [("zone".to_owned(), zone.to_owned())].into(),
            is_self: node == "n1",
            connected: rtt.is_some(),
            rtt_seconds: rtt,
            version: "0.1.0".to_owned(),
        };
        MembersView {
            schema: 1,
            node: "n1".to_owned(),
            cluster: "default".to_owned(),
            members: vec![
                member("n3", "dead", None, "b"),
                member("n2", "alive", Some(0.000_4), "a"),
                member("n1", "alive", None, "a\u{1b}[31m"),
            ],
        }
    }

    fn selected(flags: &[&str]) -> Vec<String> {
        let line = ["nodosum", "members"].iter().chain(flags);
        let args::Command::Members(args) = args::Cli::parse_from(line).command.unwrap() else {
            panic!("not members");
        };
        let mut view = view();
        select(&args, &mut view);
        view.members.into_iter().map(|member| member.node).collect()
    }

    #[test]
    fn filters_keep_what_they_name_and_rows_come_in_the_order_asked_for() {
        assert_eq!(selected(&[]), ["n1", "n2", "n3"]);
        assert_eq!(selected(&["--status", "dead,left"]), ["n3"]);
        assert_eq!(selected(&["n2"]), ["n2"]);
        assert_eq!(selected(&["n2", "--status", "dead"]), [""; 0]);
        assert_eq!(
            selected(&["--name", "^n[12]$", "--sort", "rtt"]),
            ["n2", "n1"]
        );
        assert_eq!(selected(&["--tag", "zone=b"]), ["n3"]);
        assert_eq!(selected(&["--tag", "zone=c"]), [""; 0]);
        assert_eq!(selected(&["--sort", "status"]), ["n1", "n2", "n3"]);
    }

    #[test]
    fn the_table_marks_the_node_itself_and_escapes_tags() {
        let layout = Layout {
            format: Format::Table,
            header: true,
        };
        let view = view();
        let text = render(layout, &COLUMNS, &view.members, |m| m.node.clone(), &view).unwrap();
        assert_eq!(
            text,
            "NODE  STATUS  CONN  QUIC                RTT  VERSION  TAGS\n\
             n3    dead    down  127.0.0.1:7946        -  0.1.0    zone=b\n\
             n2    alive   up    127.0.0.1:7946  0.40 ms  0.1.0    zone=a\n\
             n1 *  alive   self  127.0.0.1:7946        -  0.1.0    zone=a\\u{1b}[31m\n"
        );
    }
}
