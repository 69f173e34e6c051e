//! The measuring programs: their arithmetic, the comparison of two files, and a tiny run.

#![allow(dead_code, reason = "the programs use the rest")]

#[path = "../benches/peers/src/report.rs"]
mod peers;
#[path = "../benches/scaling/mod.rs"]
mod scaling;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use scaling::{
    histogram::Histogram,
    load::{Load, measure, nodes_for, pairs},
    report::{Point, Spread, compare},
};
use serde_json::{Value, json};

#[test]
fn quantiles_are_right_to_within_two_percent() {
    let mut histogram = Histogram::new();
    for microseconds in 1..=10_000 {
        histogram.record(Duration::from_micros(microseconds));
    }
    for (part, expected) in [(0.5, 5e-3), (0.99, 9.9e-3), (0.999, 9.99e-3), (1.0, 1e-2)] {
        let found = histogram.quantile(part).unwrap();
        assert!((found / expected - 1.0).abs() < 0.02, "{part}: {found}");
    }
    assert_eq!(histogram.count(), 10_000);
}

#[test]
fn every_time_is_told_nearly_as_it_was() {
    for value in (0..64).flat_map(|bits| [(1_u64 << bits) - 1, 1 << bits, (1 << bits) + 1]) {
        let mut histogram = Histogram::new();
        histogram.record(Duration::from_nanos(value));
        let found = histogram.quantile(0.5).unwrap() * 1e9;
        // What is longer than the longest counts as the longest.
        let expected = value.min((1 << 44) - 1) as f64;
        assert!(
            (found - expected).abs() <= expected * 0.01 + 0.5,
            "{value}: {found}"
        );
    }
}

#[test]
fn nothing_recorded_has_no_quantile_and_sums_add_up() {
    let mut one = Histogram::new();
    assert_eq!(one.quantile(0.5), None);
    let mut other = Histogram::new();
    one.record(Duration::from_nanos(100));
    other.record(Duration::from_secs(100_000));
    one.add(&other);
    assert_eq!(one.count(), 2);
    assert_eq!(one.quantile(0.5), Some(1e-7));
}

#[test]
fn the_smallest_mesh_with_enough_connections_is_taken() {
    for (connections, nodes) in [(1, 2), (2, 3), (3, 3), (4, 4), (64, 12), (1_024, 46)] {
        assert_eq!(nodes_for(connections), nodes, "{connections}");
    }
}

#[test]
fn pairs_are_distinct_connections_spread_over_the_nodes() {
    for connections in [1, 2, 3, 6, 7, 64, 66, 1_024] {
        let nodes = nodes_for(connections);
        let pairs = pairs(nodes, connections);
        let distinct: BTreeSet<(usize, usize)> = pairs
            .iter()
            .map(|(from, to)| (*from.min(to), *from.max(to)))
            .collect();
        assert_eq!(distinct.len(), connections, "{pairs:?}");
        assert!(pairs.iter().all(|(from, to)| from != to && *to < nodes));
        let asked = |node| pairs.iter().filter(|(from, _)| *from == node).count();
        let counts: Vec<usize> = (0..nodes).map(asked).collect();
        let (least, most) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
        assert!(most - least <= 1, "{counts:?}");
    }
}

fn point(peers: usize, throughputs: &[f64]) -> Point {
    let run = |value: &f64| BTreeMap::from([("throughput".to_owned(), *value)]);
    Point {
        workload: "requests_64".to_owned(),
        peers,
        workers: 0,
        runs: throughputs.iter().map(run).collect(),
    }
}

fn lines(points: &[Point]) -> String {
    let lines = points.iter().flat_map(Point::json);
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn medians_and_ranges_are_those_of_the_runs() {
    let odd = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
    assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
    assert_eq!(Spread::of(vec![4.0, 1.0]).unwrap().median, 2.5);
    assert_eq!(Spread::of(Vec::new()), None);
}

#[test]
fn a_change_is_marked_only_beyond_the_ranges() {
    let before = [point(1, &[10.0, 12.0]), point(8, &[10.0, 12.0])];
    let after = [point(1, &[5.0, 9.0]), point(8, &[11.0, 20.0])];
    let table = compare(&lines(&before), &lines(&after)).unwrap();
    let of = |peers: &str| {
        let name = format!("requests_64 {peers} throughput");
        let row = table.lines().find(|line| line.contains(&name));
        row.unwrap_or_else(|| panic!("no {name} in\n{table}"))
            .to_owned()
    };
    assert!(of("1").contains("0.64"), "{table}");
    assert!(of("1").ends_with("WORSE"), "{table}");
    assert!(of("8").ends_with("1.41"), "{table}");
}

#[test]
fn less_is_better_where_the_line_says_so() {
    let line = |median: f64| {
        json!({"bench": "peers", "workload": "pingpong_64", "candidate": "nodosum", "unit": "s",
            "lower_is_better": true, "median": median, "min": median, "max": median})
        .to_string()
    };
    let row = |before: f64, after: f64| {
        let table = compare(&line(before), &line(after)).unwrap();
        let row = table
            .lines()
            .find(|row| row.contains("pingpong_64 nodosum"));
        row.unwrap_or_else(|| panic!("no row in\n{table}"))
            .to_owned()
    };
    assert!(row(6e-5, 5e-5).ends_with("better"));
    assert!(row(5e-5, 6e-5).ends_with("WORSE"));
}

#[test]
fn what_cannot_be_compared_is_said() {
    assert!(compare("{}", "{}").unwrap_err().contains("no figure"));
    assert!(compare("nonsense", "{}").unwrap_err().contains("line 1"));
}

// ---- peers -----------------------------------------------------------------------------------

fn series(candidate: &str, values: &[Option<f64>]) -> peers::Series {
    let run = |value: f64| BTreeMap::from([("value".to_owned(), value)]);
    peers::Series {
        candidate: candidate.to_owned(),
        rounds: values.iter().map(|value| value.map(run)).collect(),
        ..peers::Series::default()
    }
}

fn measured(lower_is_better: bool, series: Vec<peers::Series>) -> peers::Measured {
    peers::Measured {
        workload: "pipelined_64",
        about: "a test",
        unit: "requests/s",
        per: "request",
        lower_is_better,
        series,
    }
}

#[test]
fn ratios_are_taken_within_a_round() {
    // The machine is twice as fast in the second round: the ratio is 2 in both.
    let ours = series("nodosum", &[Some(20.0), Some(40.0)]);
    let base = series("quinn", &[Some(10.0), Some(20.0)]);
    assert_eq!(ours.ratio_to(&base), Some(2.0));
    // A round in which one of them failed is none.
    let ours = series("nodosum", &[None, Some(40.0)]);
    assert_eq!(ours.ratio_to(&base), Some(2.0));
    assert_eq!(ours.ratio_to(&series("quinn", &[Some(1.0), None])), None);
}

#[test]
fn every_candidate_has_its_line_and_says_why_it_cannot() {
    let cannot = peers::Series {
        unsupported: Some("it has \"no\" handshake".to_owned()),
        ..series("udp", &[])
    };
    let failed = peers::Series {
        failures: vec!["did not end in time".to_owned()],
        ..series("s2n_quic", &[None])
    };
    let all = measured(
        false,
        vec![
            series("nodosum", &[Some(30.0)]),
            series("quinn", &[Some(10.0)]),
            failed,
            cannot,
        ],
    );
    let lines: Vec<Value> = all
        .json()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0]["ratio_to"]["quinn"].as_f64(), Some(3.0));
    assert_eq!(lines[0]["median"].as_f64(), Some(30.0));
    assert_eq!(lines[0]["runs"], json!(1));
    assert_eq!(lines[2]["median"], Value::Null);
    assert_eq!(lines[2]["failures"], json!(["did not end in time"]));
    assert_eq!(lines[3]["unsupported"], json!("it has \"no\" handshake"));
    let table = all.table();
    assert!(table.contains("udp: CANNOT: it has"), "{table}");
    assert!(table.contains("s2n_quic: A RUN FAILED: did not"), "{table}");
    assert!(all.markdown().contains("| nodosum | 30.0 |"));
}

#[test]
fn twice_as_good_is_half_of_what_should_be_little() {
    let times = |lower| {
        let all = measured(
            lower,
            vec![
                series("nodosum", &[Some(5.0)]),
                series("quinn", &[Some(10.0)]),
            ],
        );
        all.times_as_good(&all.series[0], "quinn")
    };
    assert_eq!(times(false), Some(0.5));
    assert_eq!(times(true), Some(2.0));
}

// ---- for real, and tiny ------------------------------------------------------------------------

#[test]
fn a_point_is_measured_in_a_cluster_of_its_own() {
    let phases = RefCell::new(Vec::new());
    let load = Load {
        peers: 2,
        workers: 0,
        measured: Duration::from_millis(300),
        rate: Some(200.0),
        payload_bytes: 64,
    };
    let figures = measure(load, |phase| phases.borrow_mut().push(phase.to_owned())).unwrap();
    let figures: BTreeMap<&str, f64> = figures.into_iter().collect();
    assert_eq!(phases.borrow()[0], "forming a cluster of 3 nodes");
    assert_eq!(phases.borrow()[2], "measuring");
    // 200 a second are asked for; a busy machine may be late, but answers no more than that.
    let throughput = figures["throughput"];
    assert!(throughput > 0.0 && throughput < 230.0, "{figures:?}");
    assert!(
        figures["p50"] > 0.0 && figures["p50"] <= figures["p999"],
        "{figures:?}"
    );
    // Three connections of three nodes, and the two that ask.
    assert!(figures["threads"] >= 11.0, "{figures:?}");
    assert!(figures["cpu_per_request"] > 0.0, "{figures:?}");
    // A request that is asked and waits sleeps at least once.
    assert!(figures["context_switches_per_request"] > 0.5, "{figures:?}");
}

#[test]
fn threads_that_are_shared_are_as_many_as_asked_for() {
    let load = |workers| Load {
        peers: 15,
        workers,
        measured: Duration::from_millis(200),
        rate: Some(100.0),
        payload_bytes: 64,
    };
    let threads = |workers| {
        let figures = measure(load(workers), |_| ()).unwrap();
        let of = |key| figures.iter().find(|(name, _)| *name == key).unwrap().1;
        assert!(of("throughput") > 0.0);
        of("threads")
    };
    // Six nodes with five connections each. All that the two differ in are the threads of those, and of
    // those that lost when two nodes dialled each other and are not quite over.
    let saved = threads(0) - threads(2);
    assert!(saved >= 6.0 * (5.0 - 2.0), "{saved}");
}

fn nodosum_bench(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nodosum"))
        .arg("bench")
        .args(words)
        .output()
        .expect("the binary starts")
}

#[test]
fn the_binary_measures_draws_and_compares() {
    let dir = std::env::temp_dir().join(format!("nodosum-scaling-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| -> PathBuf { dir.join(name) };
    let picture = path("scale.svg");
    let output = nodosum_bench(&[
        "--peers",
        "1,3",
        "--for",
        "200ms",
        "--runs",
        "1",
        "-o",
        "json",
        "--svg",
        picture.to_str().unwrap(),
    ]);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{stderr}");
    let lines: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines[0]["machine"]["kernel"].is_string(), "{stdout}");
    let throughput = |peers: u64| {
        lines
            .iter()
            .find(|line| line["peers"] == peers && line["metric"] == "throughput")
            .and_then(|line| line["median"].as_f64())
    };
    assert!(
        throughput(1) > Some(0.0) && throughput(3) > Some(0.0),
        "{stdout}"
    );
    let svg = std::fs::read_to_string(&picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));

    let shared = path("workers.svg");
    let output = nodosum_bench(&[
        "--peers",
        "6",
        "--workers",
        "0,1,2",
        "--for",
        "100ms",
        "--runs",
        "1",
        "--svg",
        shared.to_str().unwrap(),
    ]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let said: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("          6  "))
        .map(|rest| rest.get(..8).unwrap_or(rest).trim())
        .collect();
    assert_eq!(said, ["one each", "1", "2"], "{table}");
    let svg = std::fs::read_to_string(&shared).unwrap();
    assert!(
        svg.contains(">one each<") && svg.contains("over 6 connections"),
        "{svg}"
    );

    let file = path("a.json");
    std::fs::write(&file, &stdout).unwrap();
    let name = file.to_str().unwrap();
    let output = nodosum_bench(&["compare", name, name]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{table}");
    assert!(table.contains("requests_64 3 throughput"), "{table}");
    assert!(!table.contains("WORSE\n"), "{table}");
    std::fs::remove_dir_all(&dir).unwrap();

    assert_eq!(nodosum_bench(&["--peers", "0"]).status.code(), Some(2));
    let both = nodosum_bench(&["--peers", "1,2", "--workers", "0,1"]);
    assert!(!both.status.success());
    let told = String::from_utf8_lossy(&both.stderr).into_owned();
    assert!(
        told.contains("several --workers need one --peers"),
        "{told}"
    );
}
