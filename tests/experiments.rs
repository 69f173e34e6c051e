//! The experiments of docs/MEMBERSHIP.md, so small that they take a second: that they still play,
//! and that what they show in the small points where the large runs point.

#![allow(dead_code, reason = "the large runs use the rest")]

#[path = "support/sim/queue.rs"]
mod queue;
#[path = "support/sim/registry.rs"]
mod registry;

#[path = "../benches/membership/arena.rs"]
mod arena;
#[path = "../benches/membership/experiments.rs"]
mod experiments;
#[path = "../benches/membership/plot.rs"]
mod plot;
#[path = "../benches/membership/promises.rs"]
mod promises;
#[path = "../benches/membership/report.rs"]
mod report;

use experiments::{Context, EXPERIMENTS};
use report::{Findings, Row};

fn play(name: &str) -> Findings {
    let context = Context {
        quick: true,
        threads: 2,
        nodes: None,
        tens: std::sync::OnceLock::new(),
    };
    let (.., run) = EXPERIMENTS
        .iter()
        .find(|(known, ..)| *known == name)
        .expect("an experiment");
    run(&context)
}

fn row<'a>(findings: &'a Findings, metric: &str) -> &'a Row {
    findings
        .rows
        .iter()
        .find(|row| row.metric == metric)
        .unwrap_or_else(|| panic!("no row {metric}"))
}

#[test]
fn stressed_members_make_swim_err_and_nodosum_not() {
    let findings = play("E1");
    let row = row(&findings, "false_positives");
    assert_eq!(row.nodosum, Some(0.0));
    let swim = row.others.iter().find(|(name, _)| *name == "swim");
    assert!(swim.is_some_and(|(_, count)| *count > 0.0), "{row:?}");
}

#[test]
fn evidence_makes_a_crash_known_sooner_than_the_model_knows_it() {
    let findings = play("E2");
    let row = row(&findings, "known_everywhere_p50");
    assert!(row.nodosum < row.model, "{row:?}");
}

#[test]
fn every_experiment_still_plays() {
    for (name, ..) in EXPERIMENTS {
        let findings = play(name);
        assert!(!findings.rows.is_empty(), "{name}");
        for row in &findings.rows {
            let ours = row
                .nodosum
                .unwrap_or_else(|| panic!("{name} {}", row.metric));
            assert!(
                ours.is_finite() && ours >= 0.0,
                "{name} {}: {ours}",
                row.metric
            );
        }
        for plot in &findings.plots {
            assert!(plot.svg().ends_with("</svg>\n"), "{name}");
        }
    }
}

#[test]
fn a_promise_that_is_not_kept_is_told() {
    let row = |metric, nodes, ours| Row::new("E2", metric, nodes, "s").ours(ours);
    let of = |rows: &[Row]| promises::missed("E2", rows);
    assert!(of(&[row("known_everywhere_p99", 100, 2.9)]).is_empty());
    assert!(
        of(&[row("known_everywhere_p99", 10, 4.0)]).is_empty(),
        "another size"
    );
    let told = of(&[row("known_everywhere_p99", 100, 3.1)]);
    assert_eq!(
        told,
        ["known_everywhere_p99 at 100 members: nodosum has 3.100, the limit is 3.000 s"]
    );
    let traffic = |ours| {
        let row = Row::new("E6", "change_gossip_sent_p99", 1_000, "B/s").ours(ours);
        promises::missed("E6", &[row.other("memberlist_published", 6_400.0)]).len()
    };
    assert_eq!((traffic(6_000.0), traffic(7_000.0)), (0, 1));
    let mistakes = |without: f64| {
        let row = Row::new("E1", "false_positives", 100, "events").ours(0.0);
        let row = row
            .other("swim", 1_000.0)
            .other("nodosum_without_evidence", without);
        promises::missed("E1", &[row]).len()
    };
    assert_eq!((mistakes(20.0), mistakes(21.0)), (0, 1));
    let left = Row::new("E14", "known_within_1_s", 3_600, "%").ours(99.9);
    assert_eq!(promises::missed("E14", &[left]).len(), 1);
}

#[test]
fn an_experiment_prints_lines_of_json_and_a_plot() {
    let findings = play("E2");
    let line = findings.rows[0].json();
    assert!(line.starts_with("{\"schema\":1,\"bench\":\"membership\",\"experiment\":\"E2\""));
    let svg = findings.plots[0].svg();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
}
