//! A plain plot as SVG: axes, grid, lines or marks, a legend. No more than the experiments need.

use std::fmt::Write as _;

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 450.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 58.0;

/// Told apart by people who see red and green alike, and in print: the marks differ as well.
const COLOURS: [&str; 7] = [
    "#0b5fa5", "#c8500a", "#5b8c1a", "#8a3ffc", "#7a7a7a", "#b0087f", "#00897b",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Log,
}

#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Plot {
    /// The file's name without its end.
    pub(crate) file: &'static str,
    pub(crate) title: String,
    pub(crate) x: (&'static str, Scale),
    pub(crate) y: (&'static str, Scale),
    pub(crate) series: Vec<Series>,
}

struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(scale: Scale, values: &[f64]) -> Self {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !least.is_finite() || !most.is_finite() {
            return Self::of(Scale::Linear, &[0.0, 1.0]);
        }
        match scale {
            Scale::Log => {
                let low = 10_f64.powf(least.log10().floor());
                let mut high = 10_f64.powf(most.log10().ceil());
                if high <= low {
                    high = low * 10.0;
                }
                let decades = (high / low).log10().round() as i32;
                let mut ticks = Vec::new();
                for decade in 0..=decades {
                    for part in [1.0, 2.0, 5.0] {
                        let tick = low * 10_f64.powi(decade) * part;
                        if tick <= high * 1.001 && (part < 1.5 || decades <= 2) {
                            ticks.push(tick);
                        }
                    }
                }
                Self {
                    scale,
                    low,
                    high,
                    ticks,
                }
            }
            Scale::Linear => {
                let low = least.min(0.0);
                let span = if most > low { most - low } else { 1.0 };
                let rough = span / 6.0;
                let unit = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 2.5, 5.0, 10.0]
                    .into_iter()
                    .map(|part| part * unit)
                    .find(|step| *step >= rough)
                    .unwrap_or(unit * 10.0);
                let high = (most / step).ceil().max(1.0) * step;
                let count = ((high - low) / step).round() as usize;
                let ticks = (0..=count).map(|n| low + n as f64 * step).collect();
                Self {
                    scale,
                    low,
                    high,
                    ticks,
                }
            }
        }
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).log10() / (self.high / self.low).log10(),
        }
    }
}

fn label(value: f64) -> String {
    let text = if value.abs() >= 1_000_000.0 {
        format!("{:.0}M", value / 1_000_000.0)
    } else if value.abs() >= 10_000.0 {
        format!("{:.0}k", value / 1_000.0)
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    };
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let keeps = |(x, y): &(f64, f64)| {
            x.is_finite()
                && y.is_finite()
                && (self.x.1 == Scale::Linear || *x > 0.0)
                && (self.y.1 == Scale::Linear || *y > 0.0)
        };
        let all: Vec<(f64, f64)> = self
            .series
            .iter()
            .flat_map(|series| series.points.iter().copied())
            .filter(keeps)
            .collect();
        let xs: Vec<f64> = all.iter().map(|(x, _)| *x).collect();
        let ys: Vec<f64> = all.iter().map(|(_, y)| *y).collect();
        let (x, y) = (Axis::of(self.x.1, &xs), Axis::of(self.y.1, &ys));
        let at_x = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let at_y = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <text x=\"{LEFT}\" y=\"26\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
            escaped(&self.title)
        );
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in &y.ticks {
            let place = at_y(*tick);
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" y1=\"{place:.1}\" x2=\"{right}\" y2=\"{place:.1}\" \
                 stroke=\"#dddddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                place + 4.5,
                label(*tick)
            );
        }
        for tick in &x.ticks {
            let place = at_x(*tick);
            let _ = writeln!(
                out,
                "<line x1=\"{place:.1}\" y1=\"{bottom}\" x2=\"{place:.1}\" y2=\"{:.1}\" \
                 stroke=\"#333333\"/><text x=\"{place:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 20.0,
                label(*tick)
            );
        }
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#333333\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 14.0,
            escaped(self.x.0),
            f64::midpoint(TOP, bottom),
            escaped(self.y.0)
        );
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points: Vec<(f64, f64)> = series
                .points
                .iter()
                .copied()
                .filter(keeps)
                .map(|(x, y)| (at_x(x), at_y(y)))
                .collect();
            let line: Vec<String> = points
                .iter()
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                line.join(" ")
            );
            // Marks only where they do not run into each other.
            if points.len() <= 40 {
                for (x, y) in &points {
                    out.push_str(&mark(index, *x, *y, colour));
                }
            }
            let row = TOP + 10.0 + index as f64 * 22.0;
            out.push_str(&mark(index, right + 22.0, row - 4.0, colour));
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{row:.1}\">{}</text>",
                right + 36.0,
                escaped(&series.name)
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

fn mark(index: usize, x: f64, y: f64, colour: &str) -> String {
    match index % 3 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\"/>\n"),
        1 => format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\" fill=\"{colour}\"/>\n",
            x - 4.0,
            y - 4.0
        ),
        _ => format!(
            "<path d=\"M{x:.1} {:.1}l5 9h-10z\" fill=\"{colour}\"/>\n",
            y - 5.5
        ),
    }
}
