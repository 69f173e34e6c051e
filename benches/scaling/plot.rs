//! Two panels over the number of connections: how much, and how late.

use std::fmt::Write as _;

use super::report::Point;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 110.0;
const PANEL: f64 = 250.0;
const HEAD: f64 = 108.0;
const BETWEEN: f64 = 58.0;
const FOOT: f64 = 64.0;

const QUANTILES: [(&str, &str, &str); 3] = [
    ("p50", "p50", "#0b5fa5"),
    ("p99", "p99", "#c8500a"),
    ("p999", "p99.9", "#8a3ffc"),
];

/// A scale from the bottom of a panel to its top.
struct Axis {
    low: f64,
    high: f64,
    is_log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// From zero to a round number above all.
    fn linear(values: &[f64]) -> Self {
        let most = values.iter().copied().fold(0.0, f64::max).max(1e-9);
        let rough = most / 5.0;
        let unit = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|part| part * unit)
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * unit);
        let count = (most / step).ceil().max(1.0) as usize;
        Self {
            low: 0.0,
            high: count as f64 * step,
            is_log: false,
            ticks: (0..=count).map(|place| place as f64 * step).collect(),
        }
    }

    /// From a round number below all to one above, in steps of 1, 2, 5.
    fn log(values: &[f64]) -> Self {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        let (from, to) = (least.log10().floor() as i32, most.log10().ceil() as i32);
        let steps: Vec<f64> = (from..=to)
            .flat_map(|power| [1.0, 2.0, 5.0].map(|part| part * 10_f64.powi(power)))
            .collect();
        let low = steps
            .iter()
            .copied()
            .filter(|step| *step <= least)
            .fold(0.0, f64::max);
        let low = if low > 0.0 { low } else { least };
        let above = steps.iter().copied().find(|step| *step >= most);
        let high = above.filter(|high| *high > low).unwrap_or(low * 10.0);
        let mut ticks: Vec<f64> = steps
            .into_iter()
            .filter(|step| (low..=high).contains(step))
            .collect();
        if ticks.len() > 9 {
            ticks.retain(|tick| (tick.log10() - tick.log10().round()).abs() < 1e-9);
        }
        Self {
            low,
            high,
            is_log: true,
            ticks,
        }
    }

    fn place(&self, value: f64, top: f64) -> f64 {
        let part = if self.is_log {
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        top + PANEL * (1.0 - part)
    }
}

fn count(value: f64) -> String {
    if value >= 1e6 {
        format!("{} M", value / 1e6)
    } else if value >= 1e3 {
        format!("{} k", value / 1e3)
    } else {
        format!("{value}")
    }
}

fn time(seconds: f64) -> String {
    let (value, unit) = if seconds >= 1.0 {
        (seconds, "s")
    } else if seconds >= 0.999e-3 {
        (seconds * 1e3, "ms")
    } else {
        (seconds * 1e6, "µs")
    };
    format!("{} {unit}", (value * 100.0).round() / 100.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Whether the points differ in their threads, and not in their connections.
fn is_over_workers(points: &[Point]) -> bool {
    points
        .windows(2)
        .any(|two| two[0].workers != two[1].workers)
}

/// Where the point with this index stands. Connections double, so that equal steps are a logarithmic
/// scale; numbers of threads stand side by side, since one of them is "one each".
fn across(points: &[Point]) -> impl Fn(usize) -> f64 {
    let logs: Vec<f64> = if is_over_workers(points) {
        (0..points.len()).map(|place| place as f64).collect()
    } else {
        let peers = points.iter().map(|point| point.peers as f64);
        peers.map(f64::log2).collect()
    };
    let low = logs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    move |index: usize| {
        let part = if high > low {
            (logs[index] - low) / (high - low)
        } else {
            0.5
        };
        LEFT + 14.0 + part * (WIDTH - LEFT - RIGHT - 28.0)
    }
}

/// A picture of all points. The subtitle, at most two lines, tells the machine.
pub(crate) fn svg(points: &[Point], subtitle: &[String]) -> String {
    let height = HEAD + 2.0 * PANEL + BETWEEN + FOOT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"17\" font-weight=\"bold\">{}</text>\n",
        title(points)
    );
    for (place, text) in subtitle.iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"16\" y=\"{:.1}\" fill=\"#555555\" font-size=\"10.5\">{}</text>",
            48.0 + 15.0 * place as f64,
            escaped(text)
        );
    }
    let x = across(points);
    let (first, second) = (HEAD, HEAD + PANEL + BETWEEN);
    let rates: Vec<f64> = values(points, &["throughput"]);
    let rate = Axis::linear(&rates);
    frame(
        &mut out,
        points,
        &x,
        &rate,
        first,
        "requests answered a second",
        count,
    );
    line(&mut out, points, &x, &rate, first, "throughput", "#0b5fa5");
    let times = values(points, &["p50", "p99", "p999"]);
    let late = Axis::log(&times);
    frame(
        &mut out,
        points,
        &x,
        &late,
        second,
        "time to the answer",
        time,
    );
    // The names stand where their lines end, from the bottom up, and not on each other.
    let mut lowest = f64::INFINITY;
    for (key, name, colour) in QUANTILES {
        line(&mut out, points, &x, &late, second, key, colour);
        let Some(spread) = points.last().and_then(|point| point.spread(key)) else {
            continue;
        };
        let y = late.place(spread.median, second).min(lowest - 15.0);
        lowest = y;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\" font-weight=\"bold\">{name}</text>",
            WIDTH - RIGHT + 12.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n</svg>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        height - 18.0,
        if is_over_workers(points) {
            "threads of each node that share its connections"
        } else {
            "connections, one request outstanding on each"
        }
    );
    out
}

fn title(points: &[Point]) -> String {
    let shared = points.first().map_or(0, |point| point.workers);
    let peers = points.first().map_or(0, |point| point.peers);
    if is_over_workers(points) {
        format!("nodosum: requests over {peers} connections by different numbers of threads")
    } else if shared == 0 {
        "nodosum: requests over 1 to many connections, one thread each".to_owned()
    } else {
        format!("nodosum: requests over 1 to many connections, {shared} threads in each node")
    }
}

/// All that has to fit: the ranges too.
fn values(points: &[Point], keys: &[&str]) -> Vec<f64> {
    let spreads = points
        .iter()
        .flat_map(|point| keys.iter().filter_map(|key| point.spread(key)));
    spreads
        .flat_map(|spread| [spread.min, spread.max])
        .filter(|value| *value > 0.0)
        .collect()
}

fn frame(
    out: &mut String,
    points: &[Point],
    x: &impl Fn(usize) -> f64,
    axis: &Axis,
    top: f64,
    title: &str,
    label: fn(f64) -> String,
) {
    let (right, bottom) = (WIDTH - RIGHT, top + PANEL);
    let _ = writeln!(
        out,
        "<text x=\"16\" y=\"{:.1}\" font-weight=\"bold\">{title}</text>",
        top - 14.0
    );
    for tick in &axis.ticks {
        let y = axis.place(*tick, top);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#e2e2e2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#333333\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            label(*tick)
        );
    }
    for (index, point) in points.iter().enumerate() {
        let x = x(index);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {bottom}v5\" stroke=\"#333333\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#333333\">{}</text>",
            bottom + 19.0,
            if is_over_workers(points) {
                point.workers_text()
            } else {
                point.peers.to_string()
            }
        );
    }
    let _ = writeln!(
        out,
        "<path d=\"M{LEFT} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#333333\"/>"
    );
}

/// The medians as a line, the ranges as bars through its marks.
fn line(
    out: &mut String,
    points: &[Point],
    x: &impl Fn(usize) -> f64,
    axis: &Axis,
    top: f64,
    key: &str,
    colour: &str,
) {
    let mut path = String::new();
    for (index, point) in points.iter().enumerate() {
        let Some(spread) = point.spread(key).filter(|spread| spread.median > 0.0) else {
            continue;
        };
        let (x, y) = (x(index), axis.place(spread.median, top));
        let step = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{step}{x:.1} {y:.1}");
        let (low, high) = (axis.place(spread.min, top), axis.place(spread.max, top));
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {low:.1}V{high:.1}\" stroke=\"{colour}\" stroke-width=\"6\" \
             stroke-opacity=\"0.25\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" \
             fill=\"{colour}\"/>"
        );
    }
    let _ = writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
    );
}
