//! Thread scaling: the same small requests over 1, 2, 4, … 1,024 connections, each with a thread that
//! asks and a thread of nodosum's at either end; or over so many connections with 1, 2, 4, … threads in
//! each node that share them.
//!
//! `./run bench scale` and `nodosum bench` are this. Every point is measured by a process of its
//! own, so that memory and threads are the point's and nobody else's; [`load`] says what happens in
//! it, [`report`] what is made of several runs, [`plot`] draws them.

pub(crate) mod histogram;
pub(crate) mod load;
mod machine;
pub(crate) mod plot;
pub(crate) mod report;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand, ValueEnum};
use jiff::SignedDuration;
use nodosum::transport::{MAX_WORKERS, Offload};
use serde_json::{Map, Value, json};

use load::{Figures, Load};
use machine::Machine;
use report::Point;

/// A cluster of 91 nodes; the sockets and threads of more do not fit what systems allow by default.
const MAX_CONNECTIONS: usize = 4_096;

/// As long as a day at most, and as short as is still a measurement.
const MEASURED: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(86_400);

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Example:
  nodosum bench --peers 1,8,64 --for 5s --svg scale.svg
  nodosum bench --peers 256 --workers 0,1,2,4
  nodosum bench -o json >a.json; nodosum bench -o json >b.json; nodosum bench compare a.json b.json

A cluster on loopback, in a process of its own for each number. With --rate the requests of a second
are spread evenly and timed from when they were due; without, a thread asks when it was answered."
)]
pub(crate) struct Scale {
    #[command(subcommand)]
    command: Option<Other>,
    /// Numbers of connections
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        default_value = "1,2,4,8,16,32,64,128,256,512,1024",
        value_parser = connections
    )]
    peers: Vec<usize>,
    /// Threads of each node that share its connections, 0 for one each; several with one of --peers
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        default_value = "0",
        value_parser = workers
    )]
    workers: Vec<usize>,
    /// How long a run counts, after its warm-up
    #[arg(long = "for", value_name = "DURATION", default_value = "3s", value_parser = measured)]
    measured: Duration,
    /// Runs of each number
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Requests a second over all connections, whatever the answers
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of a request and of its reply
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    payload: u32,
    /// How to print the figures
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    output: Format,
    /// Draw throughput and times into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure this number in this process and print what came of it
    #[arg(long, hide = true, value_parser = connections)]
    point: Option<usize>,
    /// What `cargo bench` adds.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Set two files of `-o json` side by side
    #[command(after_help = "Example:\n  nodosum bench compare before.json after.json")]
    Compare {
        /// What was
        before: PathBuf,
        /// What is
        after: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    // One object a line.
    Json,
}

fn connections(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| (1..=MAX_CONNECTIONS).contains(number))
        .ok_or_else(|| format!("a number of connections is 1 to {MAX_CONNECTIONS}"))
}

fn workers(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number <= MAX_WORKERS)
        .ok_or_else(|| format!("a number of threads is 0 to {MAX_WORKERS}"))
}

fn measured(text: &str) -> Result<Duration, String> {
    let duration = text
        .parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or("write it with a unit, such as 500ms or 3s")?;
    if MEASURED.contains(&duration) {
        Ok(duration)
    } else {
        Err("must be between 100ms and a day".to_owned())
    }
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (1.0..=1e9).contains(rate))
        .ok_or_else(|| "a rate is 1 to 1000000000 requests a second".to_owned())
}

/// Does what the command line says and prints to `out`. `own` is what stands between the program's
/// name and these arguments.
pub(crate) fn run(scale: &Scale, own: &[&str], out: &mut dyn Write) -> Result<(), String> {
    if let Some(Other::Compare { before, after }) = &scale.command {
        let read = |path: &PathBuf| {
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        return print(out, &report::compare(&read(before)?, &read(after)?)?);
    }
    if scale.workers.len() > 1 && scale.peers.len() > 1 {
        return Err("several --workers need one --peers, such as --peers 64".to_owned());
    }
    if let Some(peers) = scale.point {
        let [workers] = &scale.workers[..] else {
            return Err("--point wants one of --workers".to_owned());
        };
        let figures = load::measure(scale.load(peers, *workers), tell)?;
        return print(out, &format!("{}\n", json_of(&figures)));
    }
    let Offload { gso, gro, .. } = Offload::default();
    let machine = Machine::look(format!("asked for: GSO {gso}, GRO {gro}"));
    if scale.output == Format::Json {
        let line = json!({"schema": 1, "bench": "scale", "machine": machine.fields.iter()
            .map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str())))
            .collect::<Map<_, _>>()});
        print(out, &format!("{line}\n"))?;
    }
    let points = scale.measure(own)?;
    let text = match scale.output {
        Format::Table => format!("{}\n\n{}", machine.line(), report::table(&points)),
        Format::Json => points
            .iter()
            .flat_map(Point::json)
            .map(|line| format!("{line}\n"))
            .collect(),
    };
    print(out, &text)?;
    if let Some(path) = &scale.svg {
        let picture = plot::svg(&points, &machine.lines(130));
        fs::write(path, picture).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), String> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn json_of(figures: &Figures) -> Value {
    let members = figures
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
    Value::Object(members.collect())
}

impl Scale {
    fn load(&self, peers: usize, workers: usize) -> Load {
        Load {
            peers,
            workers,
            measured: self.measured,
            rate: self.rate,
            payload_bytes: self.payload as usize,
        }
    }

    /// Round by round, so that what changes on the machine meanwhile meets all points.
    fn measure(&self, own: &[&str]) -> Result<Vec<Point>, String> {
        let mode = self
            .rate
            .map_or_else(String::new, |rate| format!("_at_{rate}"));
        // Of the two lists one has a single number.
        let pairs = self
            .peers
            .iter()
            .flat_map(|peers| self.workers.iter().map(|workers| (*peers, *workers)));
        let mut points: Vec<Point> = pairs
            .map(|(peers, workers)| Point {
                workload: match workers {
                    0 => format!("requests_{}{mode}", self.payload),
                    shared => format!("requests_{}{mode}_shared_{shared}", self.payload),
                },
                peers,
                workers,
                runs: Vec::new(),
            })
            .collect();
        let mut progress = Progress::new(points.len() * self.runs as usize);
        for round in 1..=self.runs {
            for point in &mut points {
                progress.show(point, round, self.runs);
                let run = self.child(own, point);
                progress.clear();
                point.runs.push(run?);
                progress.done += 1;
            }
        }
        Ok(points)
    }

    fn child(&self, own: &[&str], point: &Point) -> Result<BTreeMap<String, f64>, String> {
        let peers = point.peers;
        let words = |error: io::Error| error.to_string();
        let mut command = Command::new(std::env::current_exe().map_err(words)?);
        command.args(own).arg("--point").arg(peers.to_string());
        command.arg("--workers").arg(point.workers.to_string());
        command
            .arg("--for")
            .arg(format!("{}ns", self.measured.as_nanos()));
        command.arg("--payload").arg(self.payload.to_string());
        if let Some(rate) = self.rate {
            command.arg("--rate").arg(rate.to_string());
        }
        // What the child says of its failure goes where this one's words go.
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .map_err(words)?;
        if !output.status.success() {
            return Err(format!("{peers} connections could not be measured"));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{peers} connections: {error}"))
    }
}

/// Says how far a point is, behind the line of the process that started it, where a person sees it.
fn tell(phase: &str) {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        // Save the place, write, come back. Nobody misses what cannot be shown.
        let _ = write!(stderr, "\x1b7\x1b[K: {phase}\x1b8").and_then(|()| stderr.flush());
    }
}

/// How far it is, for whoever waits.
struct Progress {
    done: usize,
    total: usize,
    begun_at: Instant,
    is_terminal: bool,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a person waits against the real clock"
)]
impl Progress {
    fn new(total: usize) -> Self {
        Self {
            done: 0,
            total,
            begun_at: Instant::now(),
            is_terminal: io::stderr().is_terminal(),
        }
    }

    fn show(&self, point: &Point, round: u32, rounds: u32) {
        let left = if self.done == 0 {
            String::new()
        } else {
            let each = self.begun_at.elapsed().as_secs_f64() / self.done as f64;
            let seconds = (each * (self.total - self.done) as f64).round() as u64;
            format!(", about {}:{:02} left", seconds / 60, seconds % 60)
        };
        let (begin, end) = if self.is_terminal {
            ("\r\x1b[K", "")
        } else {
            ("", "\n")
        };
        let at = format!("[{}/{}]", self.done + 1, self.total);
        let mut stderr = io::stderr();
        // Nobody misses progress that cannot be shown.
        let _ = write!(
            stderr,
            "{begin}{at} {}, run {round} of {rounds}{left}{end}",
            point.name()
        )
        .and_then(|()| stderr.flush());
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
