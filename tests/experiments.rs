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
fn an_experiment_prints_lines_of_json_and_a_plot() {
    let findings = play("E2");
    let line = findings.rows[0].json();
    assert!(line.starts_with("{\"schema\":1,\"bench\":\"membership\",\"experiment\":\"E2\""));
    let svg = findings.plots[0].svg();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
}
