//! Bars to the right for what is better than the base, bars to the left for what is not, a group
//! for each workload. The scale is logarithmic: twice as good is as long as half as good.

use std::fmt::Write as _;

use crate::report::{BASES, Measured, Series};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 220.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 122.0;
const BOTTOM: f64 = 56.0;
const BAR: f64 = 15.0;
const GAP: f64 = 20.0;

/// nodosum stands out; the others are told apart by people who see red and green alike.
const COLOURS: [(&str, &str); 9] = [
    ("nodosum", "#0b5fa5"),
    ("quinn", "#c8500a"),
    ("quinn_single", "#e39a6b"),
    ("quinn_peers", "#a8431c"),
    ("quinn_default", "#f0c9ac"),
    ("s2n_quic", "#8a3ffc"),
    ("tcp_tls", "#5b8c1a"),
    ("udp", "#9a9a9a"),
    ("limit", "#5f5f5f"),
];

fn colour(candidate: &str) -> &'static str {
    COLOURS
        .iter()
        .find(|(name, _)| *name == candidate)
        .map_or("#b0087f", |(_, colour)| colour)
}

/// The first of the bases that took part: quinn where it could.
fn base_of(measured: &Measured) -> Option<&'static str> {
    BASES.into_iter().find(|base| {
        measured
            .of(base)
            .is_some_and(|series| series.median("value").is_some())
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// From a power of two to a power of two, with the base inside and room for a figure at the left.
    fn of(values: &[f64]) -> Self {
        let least = values.iter().copied().fold(0.5, f64::min);
        let most = values.iter().copied().fold(2.0, f64::max);
        Self {
            low: (least.log2() - 0.5).floor(),
            high: most.log2().ceil(),
        }
    }

    fn place(&self, value: f64) -> f64 {
        LEFT + (value.log2() - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)
    }

    /// At most a dozen.
    fn ticks(&self) -> Vec<f64> {
        let (low, high) = (self.low as i32, self.high as i32);
        let step = ((high - low) / 12 + 1) as usize;
        let from = low + (-low).rem_euclid(step as i32);
        (from..=high)
            .step_by(step)
            .map(|power| f64::from(power).exp2())
            .collect()
    }
}

fn label(value: f64) -> String {
    if value >= 1.0 {
        format!("{value}x")
    } else {
        format!("1/{}", 1.0 / value)
    }
}

/// The subtitle, at most three lines, tells the machine.
pub(crate) fn svg(all: &[Measured], subtitle: &[String]) -> String {
    let groups: Vec<(&Measured, &str)> = all
        .iter()
        .filter_map(|measured| Some((measured, base_of(measured)?)))
        .collect();
    let values: Vec<f64> = groups
        .iter()
        .flat_map(|(measured, base)| {
            let times = |series| measured.times_as_good(series, base);
            measured.series.iter().filter_map(times)
        })
        .filter(|value| *value > 0.0 && value.is_finite())
        .collect();
    let axis = Axis::of(&values);
    let bars: usize = groups
        .iter()
        .map(|(measured, _)| measured.series.len())
        .sum();
    let body = bars as f64 * BAR + groups.len() as f64 * GAP;
    let height = TOP + body + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"17\" font-weight=\"bold\">How many times as good as \
         quinn</text>\n\
         <text x=\"16\" y=\"48\" fill=\"#555555\">Longer to the right is better, for times and \
         sizes as well. Medians of ratios within a round; logarithmic.</text>\n"
    );
    for (place, text) in subtitle.iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"16\" y=\"{:.1}\" fill=\"#555555\" font-size=\"11\">{}</text>",
            66.0 + 14.0 * place as f64,
            escaped(text)
        );
    }
    for tick in axis.ticks() {
        let x = axis.place(tick);
        let stroke = if (tick - 1.0).abs() < 1e-9 {
            "#333333"
        } else {
            "#e2e2e2"
        };
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"{stroke}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#333333\">{}</text>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#333333\">{}</text>",
            TOP - 4.0,
            height - BOTTOM + 4.0,
            TOP - 10.0,
            label(tick),
            height - BOTTOM + 20.0,
            label(tick)
        );
    }
    let mut y = TOP + GAP / 2.0;
    for (measured, base) in &groups {
        group(&mut out, &axis, measured, base, y);
        y += measured.series.len() as f64 * BAR + GAP;
    }
    out.push_str("</svg>\n");
    out
}

fn group(out: &mut String, axis: &Axis, measured: &Measured, base: &str, top: f64) {
    let height = measured.series.len() as f64 * BAR;
    let bottom = top + height + GAP / 2.0;
    let _ = writeln!(
        out,
        "<text x=\"16\" y=\"{:.1}\" font-weight=\"bold\" font-size=\"12\">{}</text>\
         <path d=\"M16 {bottom:.1}H{:.1}\" stroke=\"#f0f0f0\"/>",
        top + 11.0,
        measured.workload,
        WIDTH - 16.0
    );
    if base != "quinn" {
        let _ = writeln!(
            out,
            "<text x=\"16\" y=\"{:.1}\" fill=\"#c8500a\" font-size=\"10\">here {base} = 1</text>",
            top + 24.0
        );
    }
    for (place, series) in measured.series.iter().enumerate() {
        bar(out, axis, measured, series, base, top + place as f64 * BAR);
    }
}

fn bar(out: &mut String, axis: &Axis, measured: &Measured, series: &Series, base: &str, y: f64) {
    let weight = if series.candidate == "nodosum" {
        "bold"
    } else {
        "normal"
    };
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"11\" \
         font-weight=\"{weight}\">{}</text>",
        LEFT - 8.0,
        y + 11.0,
        series.candidate
    );
    let one = axis.place(1.0);
    let Some(times) = measured.times_as_good(series, base) else {
        let why = if series.unsupported.is_some() {
            "cannot"
        } else {
            "failed"
        };
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#999999\" font-size=\"11\" \
             font-style=\"italic\">{why}</text>",
            one + 6.0,
            y + 11.0
        );
        return;
    };
    let end = axis.place(times);
    let (from, width) = (one.min(end), (one - end).abs().max(1.0));
    let (x, anchor) = if end >= one {
        (end + 5.0, "start")
    } else {
        (end - 5.0, "end")
    };
    let _ = writeln!(
        out,
        "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
         <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"11\" \
         font-weight=\"{weight}\">{times:.2}</text>",
        y + 1.5,
        BAR - 3.0,
        colour(&series.candidate),
        y + 11.0
    );
}
