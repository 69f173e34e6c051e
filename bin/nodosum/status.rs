//! `nodosum status`.

use std::time::Duration;

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{call, unexpected},
        protocol::{Command, Reply, SeedView, StatusView},
    },
    args::Status,
    exit::{Exit, Failure},
    output::{Column, Format, bytes, clean, duration, raw, render, seconds},
    upkeep::EXPIRY_WARNING,
    watch,
};

/// For TSV, where a status is one row like everything else.
const COLUMNS: [Column<StatusView>; 22] = [
    Column::text("NODE", "node", |status| status.node.clone()),
    Column::text("CLUSTER", "cluster", |status| status.cluster.clone()),
    Column::text("VERSION", "version", |status| status.version.clone()),
    Column::text("PID", "pid", |status| status.pid.to_string()),
    Column::text("UPTIME", "uptime_seconds", |status| {
        status.uptime_seconds.to_string()
    }),
    Column::text("READY", "ready", |status| status.ready.to_string()),
    Column::text("ALIVE", "members_alive", |status| {
        status.members.alive.to_string()
    }),
    Column::text("SUSPECT", "members_suspect", |status| {
        status.members.suspect.to_string()
    }),
    Column::text("DEAD", "members_dead", |status| {
        status.members.dead.to_string()
    }),
    Column::text("LEFT", "members_left", |status| {
        status.members.left.to_string()
    }),
    Column::text("UP", "connections_established", |status| {
        status.connections.established.to_string()
    }),
    Column::text("HANDSHAKING", "connections_handshaking", |status| {
        status.connections.handshaking.to_string()
    }),
    Column::text("DRAINING", "connections_draining", |status| {
        status.connections.draining.to_string()
    }),
    Column::text("DOWN", "connections_down", |status| {
        status.connections.down.to_string()
    }),
    Column::text("HEALTH", "health_score", |status| {
        status.health_score.to_string()
    }),
    Column::text("THREADS", "threads", |status| status.threads.to_string()),
    Column::text("FDS", "open_fds", |status| raw(status.open_fds)),
    Column::text("RSS", "rss_bytes", |status| raw(status.rss_bytes)),
    Column::text("SAVES", "roster_saves", |status| {
        status.roster_saves.to_string()
    }),
    Column::text("UNSAVED", "roster_failures", |status| {
        status.roster_failures.to_string()
    }),
    Column::text("CERTIFICATE-ENDS", "certificate_ends", |status| {
        status.certificate_ends.clone()
    }),
    Column::text("REMAINING", "certificate_remaining_seconds", |status| {
        status.certificate_remaining_seconds.to_string()
    }),
];

pub(crate) fn run(args: &Status) -> Result<Exit, Failure> {
    watch::run(&args.watch, &args.read, || {
        let reply = call(&args.read.admin, Command::Status, &[], CALL_TIMEOUT)?;
        let Reply::Status(status) = reply else {
            return Err(unexpected());
        };
        let text = match args.read.output {
            Format::Table | Format::Wide => page(&status),
            // The status says its schema itself, so that its line is the same object.
            Format::Json | Format::Jsonl => crate::output::json_line(&status)?,
            Format::Tsv | Format::Name => {
                let name = |status: &StatusView| status.node.clone();
                render(
                    args.read.layout(),
                    &COLUMNS,
                    std::slice::from_ref(&*status),
                    name,
                    &status,
                )?
            }
        };
        Ok((text, Exit::Done))
    })
}

fn page(status: &StatusView) -> String {
    let (members, connections) = (&status.members, &status.connections);
    let unknown = || "unknown".to_owned();
    let lines = [
        ("node", status.node.clone()),
        ("cluster", status.cluster.clone()),
        ("version", status.version.clone()),
        ("pid", status.pid.to_string()),
        ("uptime", seconds(Some(status.uptime_seconds))),
        ("ready", if status.ready { "yes" } else { "no" }.to_owned()),
        (
            "members",
            format!(
                "{} alive, {} suspect, {} dead, {} left",
                members.alive, members.suspect, members.dead, members.left
            ),
        ),
        (
            "connections",
            format!(
                "{} established, {} handshaking, {} draining, {} down",
                connections.established,
                connections.handshaking,
                connections.draining,
                connections.down
            ),
        ),
        ("seeds", seeds(&status.seeds)),
        (
            "health score",
            format!("{} (0 is healthy)", status.health_score),
        ),
        ("threads", status.threads.to_string()),
        (
            "open files",
            status.open_fds.map_or_else(unknown, |fds| fds.to_string()),
        ),
        ("memory", status.rss_bytes.map_or_else(unknown, bytes)),
        (
            "roster",
            format!(
                "{} saves, {} failed",
                status.roster_saves, status.roster_failures
            ),
        ),
        ("certificate", certificate(status)),
        ("refused", counts(&status.refused.rows())),
        ("lost", counts(&status.lost.rows())),
        ("events", counts(&status.events.rows())),
    ];
    lines
        .iter()
        .map(|(name, value)| format!("{name:<14}{}\n", clean(value)))
        .collect()
}

/// Which of the seeds lead into the cluster, and why the others do not.
fn seeds(seeds: &[SeedView]) -> String {
    if seeds.is_empty() {
        return "none".to_owned();
    }
    let connected = seeds.iter().filter(|seed| seed.connected).count();
    let mut told = vec![format!("{connected} of {} connected", seeds.len())];
    told.extend(seeds.iter().filter_map(|seed| {
        let why = seed.trouble()?;
        let times = if seed.failures == 1 { "time" } else { "times" };
        Some(format!(
            "{} failed {} {times}: {why}",
            seed.seed, seed.failures
        ))
    }));
    told.join("; ")
}

/// When the certificate ends, and whether somebody should do something about it.
fn certificate(status: &StatusView) -> String {
    if status.certificate_ends.is_empty() {
        return "unknown".to_owned();
    }
    let day = status
        .certificate_ends
        .split('T')
        .next()
        .unwrap_or_default();
    let left = Duration::try_from_secs_f64(status.certificate_remaining_seconds);
    let left = left.unwrap_or_default();
    if left.is_zero() {
        format!("ENDED on {day}: renew it")
    } else if left < EXPIRY_WARNING {
        format!("ends on {day}, in {}: renew it", duration(left))
    } else {
        format!("ends on {day}, in {}", duration(left))
    }
}

/// Those of many counts that are not zero.
fn counts(rows: &[(&str, u64)]) -> String {
    let counted = rows.iter().filter(|(_, count)| *count > 0);
    let named: Vec<String> = counted
        .map(|(name, count)| format!("{count} {}", name.replace('_', " ")))
        .collect();
    if named.is_empty() {
        "none".to_owned()
    } else {
        named.join(", ")
    }
}

/// The status as fields of one log line.
pub(crate) fn log(status: &StatusView) {
    log::info!(
        target: "node",
        node = status.node.as_str(),
        cluster = status.cluster.as_str(),
        uptime = duration(Duration::try_from_secs_f64(status.uptime_seconds).unwrap_or_default()).as_str(),
        ready = status.ready,
        alive = status.members.alive,
        suspect = status.members.suspect,
        dead = status.members.dead,
        left = status.members.left,
        established = status.connections.established,
        handshaking = status.connections.handshaking,
        draining = status.connections.draining,
        down = status.connections.down,
        health_score = status.health_score,
        threads = status.threads,
        open_fds = status.open_fds,
        rss_bytes = status.rss_bytes,
        roster_saves = status.roster_saves,
        roster_failures = status.roster_failures,
        refused = counts(&status.refused.rows()).as_str(),
        lost = counts(&status.lost.rows()).as_str(),
        events = counts(&status.events.rows()).as_str();
        "status"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodosum::unversioned::views::RefusedView;

    #[test]
    fn of_many_counts_only_those_that_are_something_are_shown() {
        let refused = RefusedView::default();
        assert_eq!(counts(&refused.rows()), "none");
        let refused = RefusedView {
            gossip: 3,
            unproven_records: 1,
            ..refused
        };
        assert_eq!(counts(&refused.rows()), "3 gossip, 1 unproven records");
    }

    #[test]
    fn of_seeds_those_are_named_that_lead_nowhere() {
        assert_eq!(seeds(&[]), "none");
        let good = SeedView {
            seed: "a:1".to_owned(),
            node: Some("n1".to_owned()),
            connected: true,
            last_error: Some("an old one".to_owned()),
            ..SeedView::default()
        };
        let bad = SeedView {
            seed: "b:1".to_owned(),
            failures: 2,
            last_error: Some("no answer".to_owned()),
            ..SeedView::default()
        };
        let untried = SeedView {
            seed: "c:1".to_owned(),
            ..SeedView::default()
        };
        assert_eq!(
            seeds(&[good, bad, untried]),
            "1 of 3 connected; b:1 failed 2 times: no answer"
        );
    }

    #[test]
    fn a_node_of_an_earlier_release_counts_nothing() {
        let refused: RefusedView = serde_json::from_str("{\"stale\":4}").unwrap();
        assert_eq!((refused.stale, refused.gossip), (4, 0));
    }
}
