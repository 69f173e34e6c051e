//! Figures of several runs: medians and ranges, as a table, as JSON, and two files side by side.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

/// What is told of a point: key, heading and unit of the table, what the unit of the JSON is
/// multiplied by for it, and whether more of it is better.
struct Metric {
    key: &'static str,
    unit: &'static str,
    heading: &'static str,
    factor: f64,
    lower_is_better: bool,
}

const fn metric(
    key: &'static str,
    unit: &'static str,
    heading: &'static str,
    factor: f64,
) -> Metric {
    Metric {
        key,
        unit,
        heading,
        factor,
        lower_is_better: true,
    }
}

const METRICS: [Metric; 9] = [
    Metric {
        lower_is_better: false,
        ..metric("throughput", "requests/s", "requests/s", 1.0)
    },
    metric("p50", "s", "p50 µs", 1e6),
    metric("p99", "s", "p99 µs", 1e6),
    metric("p999", "s", "p99.9 µs", 1e6),
    metric("cpu_per_request", "s", "CPU µs/req", 1e6),
    metric(
        "context_switches_per_request",
        "switches",
        "switches/req",
        1.0,
    ),
    metric("rss", "bytes", "RSS MB", 1e-6),
    metric("rss_per_connection", "bytes", "KB/connection", 1e-3),
    metric("threads", "threads", "threads", 1.0),
];

/// All runs of one number of connections and of threads.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) workload: String,
    pub(crate) peers: usize,
    /// Threads of each node that share its connections; 0: each has one.
    pub(crate) workers: usize,
    pub(crate) runs: Vec<BTreeMap<String, f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without a value.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

impl Point {
    pub(crate) fn name(&self) -> String {
        match self.workers {
            0 => format!("{} connections", self.peers),
            shared => format!("{} connections, {shared} shared threads a node", self.peers),
        }
    }

    pub(crate) fn spread(&self, key: &str) -> Option<Spread> {
        let values = self.runs.iter().filter_map(|run| run.get(key).copied());
        Spread::of(values.collect())
    }

    /// What stands in a column or under a mark.
    pub(crate) fn workers_text(&self) -> String {
        match self.workers {
            0 => "one each".to_owned(),
            shared => shared.to_string(),
        }
    }

    /// One object for each figure.
    pub(crate) fn json(&self) -> Vec<Value> {
        let line = |metric: &Metric| {
            let spread = self.spread(metric.key)?;
            Some(json!({
                "schema": 1,
                "bench": "scale",
                "workload": self.workload,
                "peers": self.peers,
                "workers": self.workers,
                "metric": metric.key,
                "unit": metric.unit,
                "lower_is_better": metric.lower_is_better,
                "median": spread.median,
                "min": spread.min,
                "max": spread.max,
                "runs": self.runs.len(),
            }))
        };
        METRICS.iter().filter_map(line).collect()
    }
}

pub(crate) fn table(points: &[Point]) -> String {
    let mut head = vec!["connections".to_owned(), "workers".to_owned()];
    head.extend(METRICS.iter().map(|metric| metric.heading.to_owned()));
    let mut rows = vec![head];
    for point in points {
        let mut row = vec![point.peers.to_string(), point.workers_text()];
        row.extend(METRICS.iter().map(|metric| {
            point
                .spread(metric.key)
                .map_or_else(String::new, |spread| digits(spread.median * metric.factor))
        }));
        rows.push(row);
    }
    aligned(&rows)
}

/// Three digits that matter.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:>width$}"))
            .collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

// ---- two files side by side ------------------------------------------------------------------

/// A figure of a file: of this program or of another that prints such lines.
#[derive(Debug, Clone)]
struct Figure {
    unit: String,
    lower_is_better: bool,
    spread: Spread,
}

/// What tells one figure from another.
const NAMES: [&str; 5] = ["bench", "workload", "candidate", "peers", "metric"];

/// The figures of JSON lines, by their names. Lines without a median, such as the one about the
/// machine, are none.
fn figures(text: &str) -> Result<BTreeMap<Vec<String>, Figure>, String> {
    let mut out = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let value: Value = serde_json::from_str(line)
            .map_err(|error| format!("line {} is no JSON object: {error}", number + 1))?;
        let field = |key: &str| value.get(key).and_then(Value::as_f64);
        let Some(((median, min), max)) = field("median").zip(field("min")).zip(field("max")) else {
            continue;
        };
        let shown = |key: &&str| match value.get(*key) {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => format!("{number:>5}"),
            Some(other) => other.to_string(),
        };
        let figure = Figure {
            unit: value["unit"].as_str().unwrap_or_default().to_owned(),
            lower_is_better: value["lower_is_better"].as_bool().unwrap_or(false),
            spread: Spread { median, min, max },
        };
        out.insert(NAMES.iter().map(shown).collect(), figure);
    }
    Ok(out)
}

/// A table of ratios of two files of JSON lines: what was and what is. A change is marked when the
/// ranges of the runs do not touch: everything within them may be chance.
pub(crate) fn compare(before: &str, after: &str) -> Result<String, String> {
    let (before, after) = (figures(before)?, figures(after)?);
    let head = ["figure", "before", "after", "unit", "ratio", ""];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut alone = 0;
    for (name, old) in &before {
        let Some(new) = after.get(name) else {
            alone += 1;
            continue;
        };
        let ratio = new.spread.median / old.spread.median;
        let words: Vec<&str> = name.iter().skip(1).map(|word| word.trim()).collect();
        rows.push(vec![
            words
                .join(" ")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            figure_digits(old.spread.median),
            figure_digits(new.spread.median),
            old.unit.clone(),
            if ratio.is_finite() {
                format!("{ratio:.2}")
            } else {
                "-".to_owned()
            },
            verdict(old, new).to_owned(),
        ]);
    }
    alone += after
        .keys()
        .filter(|name| !before.contains_key(*name))
        .count();
    if rows.len() == 1 {
        return Err("the two files have no figure in common".to_owned());
    }
    let mut out = aligned(&rows);
    let _ = writeln!(
        out,
        "\nbetter, WORSE: the ranges of the runs do not touch. {alone} figures are in one file only."
    );
    Ok(out)
}

fn figure_digits(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 {
        format!("{value:.2e}")
    } else {
        digits(value)
    }
}

fn verdict(old: &Figure, new: &Figure) -> &'static str {
    let (rose, fell) = (
        new.spread.min > old.spread.max,
        new.spread.max < old.spread.min,
    );
    match (rose, fell) {
        (false, false) => "",
        (true, _) if old.lower_is_better => "WORSE",
        (_, true) if !old.lower_is_better => "WORSE",
        _ => "better",
    }
}
