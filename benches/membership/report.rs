//! What experiments come to: percentiles, rows for people and programs, and runs side by side.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::plot::Plot;

/// One figure. What is missing was not measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) experiment: &'static str,
    pub(crate) metric: String,
    pub(crate) nodes: usize,
    pub(crate) nodosum: Option<f64>,
    pub(crate) model: Option<f64>,
    /// Further candidates, by name.
    pub(crate) others: Vec<(&'static str, f64)>,
    pub(crate) unit: &'static str,
}

impl Row {
    pub(crate) fn new(
        experiment: &'static str,
        metric: impl Into<String>,
        nodes: usize,
        unit: &'static str,
    ) -> Self {
        Self {
            experiment,
            metric: metric.into(),
            nodes,
            unit,
            ..Self::default()
        }
    }

    pub(crate) fn ours(mut self, value: f64) -> Self {
        self.nodosum = Some(value);
        self
    }

    pub(crate) fn model(mut self, value: f64) -> Self {
        self.model = Some(value);
        self
    }

    pub(crate) fn other(mut self, name: &'static str, value: f64) -> Self {
        self.others.push((name, value));
        self
    }

    fn ratio(&self) -> Option<f64> {
        let (ours, model) = (self.nodosum?, self.model?);
        (model != 0.0).then_some(ours / model)
    }

    pub(crate) fn json(&self) -> String {
        let number = |value: Option<f64>| {
            value
                .filter(|value| value.is_finite())
                .map_or_else(|| "null".to_owned(), |value| format!("{value}"))
        };
        let mut out = format!(
            "{{\"schema\":1,\"bench\":\"membership\",\"experiment\":\"{}\",\"metric\":\"{}\",\
             \"nodes\":{},\"nodosum\":{},\"model\":{},\"ratio\":{},\"unit\":\"{}\"",
            self.experiment,
            self.metric,
            self.nodes,
            number(self.nodosum),
            number(self.model),
            number(self.ratio()),
            self.unit
        );
        for (name, value) in &self.others {
            let _ = write!(out, ",\"{name}\":{}", number(Some(*value)));
        }
        out.push('}');
        out
    }
}

/// The rows of one experiment as a table of text.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut others: Vec<&'static str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.others) {
        if !others.contains(name) {
            others.push(name);
        }
    }
    let mut lines = vec![vec![
        "metric".to_owned(),
        "nodes".to_owned(),
        "nodosum".to_owned(),
        "model".to_owned(),
        "ratio".to_owned(),
    ]];
    lines[0].extend(others.iter().map(|name| (*name).to_owned()));
    lines[0].push("unit".to_owned());
    for row in rows {
        let mut line = vec![
            row.metric.clone(),
            row.nodes.to_string(),
            shown(row.nodosum),
            shown(row.model),
            shown(row.ratio()),
        ];
        line.extend(others.iter().map(|name| {
            shown(
                row.others
                    .iter()
                    .find(|(other, _)| other == name)
                    .map(|(_, value)| *value),
            )
        }));
        line.push(row.unit.to_owned());
        lines.push(line);
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(out, "{cell:<width$}")
            } else {
                write!(out, "  {cell:>width$}")
            };
        }
        out.push('\n');
    }
    out
}

/// Three digits that matter.
pub(crate) fn shown(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

/// The value below which so many percent of the values lie; not a number without values.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// What one experiment came to.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) rows: Vec<Row>,
    pub(crate) plots: Vec<Plot>,
    /// What a reader of the table has to know.
    pub(crate) notes: Vec<String>,
    /// What was promised and did not hold: the command fails.
    pub(crate) missed: Vec<String>,
}

/// Plays independent runs on a few threads, in an order that changes nothing, and shows how far it
/// has come.
pub(crate) fn each<T: Sync, R: Send>(
    name: &str,
    threads: usize,
    items: &[T],
    run: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(place) else {
                        return;
                    };
                    let result = run(item);
                    if let Ok(mut results) = results.lock() {
                        results.push((place, result));
                    }
                    progress(name, 1 + done.fetch_add(1, Ordering::Relaxed), items.len());
                }
            });
        }
    });
    let mut results = results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

fn progress(name: &str, done: usize, of: usize) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let filled = "#".repeat(done * 40 / of.max(1));
        let end = if done == of { "\n" } else { "" };
        // Nobody misses a bar that cannot be drawn.
        let _ = write!(stderr, "\r{name} [{filled:<40}] {done}/{of}{end}");
    } else if done == of || done.is_multiple_of(of.div_ceil(10)) {
        let _ = writeln!(stderr, "{name}: {done} of {of} runs");
    }
}
