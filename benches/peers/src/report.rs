//! What the runs come to: medians, ranges and ratios; as a table, as JSON, as Markdown.

use std::{collections::BTreeMap, fmt::Write as _};

/// Whom all are held against, where they take part.
pub(crate) const BASES: [&str; 4] = ["quinn", "tcp_tls", "udp", "limit"];

/// What one run told, by key; `value` is the measure.
pub(crate) type Run = BTreeMap<String, f64>;

/// All runs of one candidate in one workload, round by round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    pub(crate) candidate: String,
    /// `None` where the run failed.
    pub(crate) rounds: Vec<Option<Run>>,
    /// Why it cannot do the workload at all.
    pub(crate) unsupported: Option<String>,
    /// Why runs failed.
    pub(crate) failures: Vec<String>,
    pub(crate) notes: Vec<String>,
}

impl Series {
    fn values(&self, key: &str) -> Vec<f64> {
        let runs = self.rounds.iter().flatten();
        runs.filter_map(|run| run.get(key).copied())
            .filter(|value| value.is_finite())
            .collect()
    }

    pub(crate) fn median(&self, key: &str) -> Option<f64> {
        median(self.values(key))
    }

    /// Of both processes together.
    fn both(&self, key: &str) -> Option<f64> {
        let client = self.median(&format!("client_{key}"))?;
        Some(client + self.median(&format!("server_{key}"))?)
    }

    /// The median of the ratios round by round: what changed on the machine between two rounds
    /// cannot make a ratio.
    pub(crate) fn ratio_to(&self, base: &Self) -> Option<f64> {
        let rounds = self.rounds.iter().zip(&base.rounds);
        let value = |run: &Option<Run>| run.as_ref()?.get("value").copied();
        let ratios = rounds.filter_map(|(run, base)| {
            let ratio = value(run)? / value(base)?;
            ratio.is_finite().then_some(ratio)
        });
        median(ratios.collect())
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied()?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(values[middle - 1], upper))
}

fn range(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().reduce(f64::min)?;
    Some((least, values.iter().copied().reduce(f64::max)?))
}

/// One workload, all candidates.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) workload: &'static str,
    pub(crate) about: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) per: &'static str,
    pub(crate) lower_is_better: bool,
    pub(crate) series: Vec<Series>,
}

impl Measured {
    pub(crate) fn of(&self, candidate: &str) -> Option<&Series> {
        self.series
            .iter()
            .find(|series| series.candidate == candidate)
    }

    /// How many times as good as the base a candidate is: also where lower is better.
    pub(crate) fn times_as_good(&self, series: &Series, base: &str) -> Option<f64> {
        let ratio = series.ratio_to(self.of(base)?)?;
        Some(if self.lower_is_better {
            1.0 / ratio
        } else {
            ratio
        })
    }

    /// One object a line, one line a candidate.
    pub(crate) fn json(&self) -> String {
        let mut out = String::new();
        for series in &self.series {
            let _ = write!(
                out,
                "{{\"schema\":1,\"bench\":\"peers\",\"workload\":\"{}\",\"candidate\":\"{}\",\
                 \"unit\":\"{}\",\"lower_is_better\":{}",
                self.workload, series.candidate, self.unit, self.lower_is_better
            );
            if let Some(why) = &series.unsupported {
                let _ = writeln!(out, ",\"unsupported\":{}}}", quoted(why));
                continue;
            }
            self.json_figures(series, &mut out);
            for (key, texts) in [("notes", &series.notes), ("failures", &series.failures)] {
                if !texts.is_empty() {
                    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
                    let _ = write!(out, ",\"{key}\":[{}]", texts.join(","));
                }
            }
            out.push_str("}\n");
        }
        out
    }

    fn json_figures(&self, series: &Series, out: &mut String) {
        let values = series.values("value");
        let bounds = range(&values);
        let _ = write!(
            out,
            ",\"median\":{},\"min\":{},\"max\":{},\"runs\":{}",
            number(series.median("value")),
            number(bounds.map(|(least, _)| least)),
            number(bounds.map(|(_, most)| most)),
            values.len()
        );
        let ratios: Vec<String> = BASES
            .iter()
            .filter_map(|base| {
                let ratio = series.ratio_to(self.of(base)?)?;
                Some(format!("\"{base}\":{}", number(Some(ratio))))
            })
            .collect();
        let _ = write!(out, ",\"ratio_to\":{{{}}}", ratios.join(","));
        if let Some(cpu) = series.both("cpu_seconds_per_unit") {
            let _ = write!(out, ",\"cpu_seconds_per_unit\":{}", number(Some(cpu)));
        }
        if self.workload.starts_with("idle") {
            let bytes = number(series.median("value"));
            let _ = write!(out, ",\"rss_bytes_per_connection\":{bytes}");
        }
        let keys = series.rounds.iter().flatten().flat_map(|run| run.keys());
        let mut keys: Vec<&String> = keys.filter(|key| *key != "value").collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let _ = write!(out, ",\"{key}\":{}", number(series.median(key)));
        }
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let unit = match self.unit {
            "s" => "µs",
            "bytes" => "KB",
            unit => unit,
        };
        let mut head = ["candidate", unit, "min..max"].map(str::to_owned).to_vec();
        let bases = self.bases();
        head.extend(bases.iter().map(|base| format!("/ {base}")));
        let latency = self
            .series
            .iter()
            .any(|s| s.median("p99_seconds").is_some());
        if latency {
            head.extend(["p50 µs".to_owned(), "p99 µs".to_owned()]);
        }
        head.extend([
            format!("CPU µs/{}", self.per),
            format!("switches/{}", self.per),
            "RSS MB".to_owned(),
            "threads".to_owned(),
        ]);
        let lost = self.series.iter().any(|series| lost(series).is_some());
        if lost {
            head.push("lost or late".to_owned());
        }
        let mut rows = vec![head];
        for series in self.series.iter().filter(|s| s.median("value").is_some()) {
            let bounds = range(&series.values("value"));
            let mut row = vec![
                series.candidate.clone(),
                measure(self.unit, series.median("value")),
                bounds.map_or_else(String::new, |(least, most)| {
                    let shown = |value| measure(self.unit, Some(value));
                    format!("{}..{}", shown(least), shown(most))
                }),
            ];
            for base in &bases {
                let base = self.of(base).and_then(|base| series.ratio_to(base));
                row.push(base.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")));
            }
            if latency {
                row.push(scaled(series.median("p50_seconds"), 1e6));
                row.push(scaled(series.median("p99_seconds"), 1e6));
            }
            row.push(scaled(series.both("cpu_seconds_per_unit"), 1e6));
            row.push(scaled(series.both("context_switches_per_unit"), 1.0));
            row.push(sides(series, "rss_bytes", 1e-6));
            row.push(sides(series, "threads", 1.0));
            if lost {
                row.push(self::lost(series).unwrap_or_else(|| "0".to_owned()));
            }
            rows.push(row);
        }
        rows
    }

    /// The bases that took part.
    fn bases(&self) -> Vec<&'static str> {
        let took_part = |base: &&'static str| {
            self.of(base)
                .is_some_and(|series| series.median("value").is_some())
        };
        BASES.into_iter().filter(took_part).collect()
    }

    /// Who cannot, whose runs failed, and what has to be known of the others.
    fn remarks(&self) -> Vec<String> {
        let mut out = Vec::new();
        for series in &self.series {
            let name = &series.candidate;
            if let Some(why) = &series.unsupported {
                out.push(format!("{name}: CANNOT: {why}"));
            }
            for why in &series.failures {
                out.push(format!("{name}: A RUN FAILED: {why}"));
            }
            for note in &series.notes {
                out.push(format!("{name}: {note}"));
            }
        }
        out
    }

    pub(crate) fn table(&self) -> String {
        let direction = if self.lower_is_better {
            "lower is better"
        } else {
            "higher is better"
        };
        let mut out = format!("{}: {} ({direction})\n\n", self.workload, self.about);
        out.push_str(&aligned(&self.cells()));
        out.push('\n');
        for remark in self.remarks() {
            let _ = writeln!(out, "  {remark}");
        }
        out
    }

    pub(crate) fn markdown(&self) -> String {
        let mut out = format!("### `{}`: {}\n\n", self.workload, self.about);
        let cells = self.cells();
        for (place, row) in cells.iter().enumerate() {
            let _ = writeln!(out, "| {} |", row.join(" | "));
            if place == 0 {
                let _ = writeln!(out, "|---|{}", "---:|".repeat(row.len() - 1));
            }
        }
        out.push('\n');
        for remark in self.remarks() {
            let _ = writeln!(out, "- {remark}");
        }
        out
    }
}

/// What was lost or late, where anything was.
fn lost(series: &Series) -> Option<String> {
    if let Some(part) = series.median("lost_fraction").filter(|part| *part > 0.0) {
        return Some(format!("{:.0} %", part * 100.0));
    }
    let count = series.median("stalls").unwrap_or(0.0) + series.median("lost").unwrap_or(0.0);
    (count > 0.0).then(|| format!("{count:.0}"))
}

/// Both processes' figures: of the client and of the server.
fn sides(series: &Series, key: &str, factor: f64) -> String {
    let side = |side: &str| {
        let value = series.median(&format!("{side}_{key}"));
        value.map_or_else(|| "-".to_owned(), |value| format!("{:.0}", value * factor))
    };
    format!("{}+{}", side("client"), side("server"))
}

fn scaled(value: Option<f64>, factor: f64) -> String {
    value.map_or_else(|| "-".to_owned(), |value| digits(value * factor))
}

/// The measure, in a unit in which people read it.
fn measure(unit: &str, value: Option<f64>) -> String {
    let Some(value) = value else {
        return "-".to_owned();
    };
    match unit {
        "s" => digits(value * 1e6),
        "bytes" => digits(value / 1e3),
        _ => digits(value),
    }
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

fn number(value: Option<f64>) -> String {
    value
        .filter(|value| value.is_finite())
        .map_or_else(|| "null".to_owned(), |value| format!("{value}"))
}

/// Columns as wide as what is in them; the first to the left, the others to the right.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
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

/// What the figures were measured on, as an object of its own.
pub(crate) fn machine_json(fields: &[(&str, String)]) -> String {
    let members: Vec<String> = fields
        .iter()
        .map(|(key, value)| format!("\"{key}\":{}", quoted(value)))
        .collect();
    format!(
        "{{\"schema\":1,\"bench\":\"peers\",\"machine\":{{{}}}}}",
        members.join(",")
    )
}

/// A string as JSON has it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for sign in text.chars() {
        match sign {
            '"' | '\\' => {
                out.push('\\');
                out.push(sign);
            }
            sign if u32::from(sign) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(sign));
            }
            sign => out.push(sign),
        }
    }
    out.push('"');
    out
}
