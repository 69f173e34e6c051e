//! The same work on nodosum and on its peers: `./run bench peers`.
//!
//! A run is two processes on 127.0.0.1, started afresh: this program as the server and as the client
//! of one candidate. Candidates take turns, run by run, so that what changes on the machine
//! meanwhile meets all of them. docs/BENCHMARKS.md has what each workload is and how each
//! candidate is tuned.

mod blocking;
mod certificates;
mod frames;
mod job;
#[path = "../../scaling/machine.rs"]
mod machine;
mod measure;
mod plot;
mod quic;
mod report;
mod tcp_tls;
mod udp;
mod with_nodosum;
mod with_quinn;
mod with_s2n;

use std::{
    fs,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::sched_getaffinity,
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};

use job::{CANDIDATES, Job, WORKLOADS, Work};
use machine::Machine;
use measure::{Control, Outcome};
use report::{Measured, Run, Series};

const USAGE: &str = "\
usage: ./run bench peers [OPTIONS]

  --workload NAME   one of the workloads below; may be repeated (default: all)
  --candidate NAME  one of the candidates below; may be repeated (default: all)
  --runs N          runs of each candidate in each workload (default: 5)
  --seconds S       how long a run counts, after its warm-up (default: 3)
  -o FORMAT         table, json (one object a line) or markdown (default: table)
  --svg FILE        draw the ratios

example: ./run bench peers --workload bulk_1350 --workload pingpong_64 --svg /tmp/peers.svg
";

/// How long a run may take beside its warm-up and what counts: to start a thousand nodes, to connect
/// them, to make certificates.
const RUN_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Json,
    Markdown,
}

struct Arguments {
    workloads: Vec<String>,
    candidates: Vec<String>,
    runs: usize,
    seconds: f64,
    format: Format,
    svg: Option<PathBuf>,
}

fn usage() -> String {
    let mut out = USAGE.to_owned();
    out.push_str("\nworkloads:\n");
    for workload in &WORKLOADS {
        out.push_str(&format!("  {:<17} {}\n", workload.name, workload.about));
    }
    out.push_str("\ncandidates:\n");
    for candidate in &CANDIDATES {
        out.push_str(&format!("  {:<17} {}\n", candidate.name, candidate.about));
    }
    out
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut out = Arguments {
        workloads: Vec::new(),
        candidates: Vec::new(),
        runs: 5,
        seconds: 3.0,
        format: Format::Table,
        svg: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        match word.as_str() {
            "--workload" => {
                let name = value()?;
                job::workload(&name).ok_or_else(|| format!("there is no workload {name:?}"))?;
                out.workloads.push(name);
            }
            "--candidate" => {
                let name = value()?;
                if !CANDIDATES.iter().any(|candidate| candidate.name == name) {
                    return Err(format!("there is no candidate {name:?}"));
                }
                out.candidates.push(name);
            }
            "--runs" => {
                let runs = value()?
                    .parse()
                    .ok()
                    .filter(|runs| (1..=1_000).contains(runs));
                out.runs = runs.ok_or("--runs wants a number from 1 to 1000")?;
            }
            "--seconds" => {
                let seconds = value()?.parse().ok();
                let seconds = seconds.filter(|seconds| (0.2..=600.0).contains(seconds));
                out.seconds = seconds.ok_or("--seconds wants a number from 0.2 to 600")?;
            }
            "-o" => {
                out.format = match value()?.as_str() {
                    "table" => Format::Table,
                    "json" => Format::Json,
                    "markdown" => Format::Markdown,
                    other => return Err(format!("there is no output {other:?}")),
                }
            }
            "--svg" => out.svg = Some(value()?.into()),
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(out)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.split_first() {
        Some((role, rest)) if role == "--serve" => return ended(serve(rest)),
        Some((role, rest)) if role == "--client" => return ended(client(rest)),
        _ => {}
    }
    let arguments = match arguments(words.into_iter()) {
        Ok(arguments) => arguments,
        Err(why) if why.is_empty() => {
            print!("{}", usage());
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("{why}\n\n{}", usage());
            return ExitCode::from(2);
        }
    };
    match compare(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("some runs failed; see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn ended(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error {error}");
            ExitCode::FAILURE
        }
    }
}

// ---- the two processes of a run --------------------------------------------------------------

/// What both processes do first. Threads that are started later inherit the core.
fn settle(job: &Job) -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    job.core.map_or(Ok(()), measure::pin)
}

fn serve(words: &[String]) -> io::Result<()> {
    let job = Job::parse(words).map_err(io::Error::other)?;
    settle(&job)?;
    match job.candidate.as_str() {
        "nodosum" => with_nodosum::serve(&job),
        "s2n_quic" => with_s2n::serve(&job),
        "tcp_tls" => tcp_tls::serve(&job),
        "udp" | "limit" => udp::serve(&job),
        _ => with_quinn::serve(&job),
    }
}

fn client(words: &[String]) -> io::Result<()> {
    let [addr, words @ ..] = words else {
        return Err(io::Error::other("a client wants its server's address"));
    };
    let job = Job::parse(words).map_err(io::Error::other)?;
    settle(&job)?;
    measure::tell("setting up");
    let control = Control::connect(addr.parse().map_err(io::Error::other)?)?;
    let outcome = match job.candidate.as_str() {
        "nodosum" => with_nodosum::client(&job, control)?,
        "s2n_quic" => with_s2n::client(&job, control)?,
        "tcp_tls" => tcp_tls::client(&job, control)?,
        "udp" | "limit" => udp::client(&job, control)?,
        _ => with_quinn::client(&job, control)?,
    };
    outcome.print();
    Ok(())
}

/// Why a candidate cannot do a workload.
fn cannot(candidate: &str, work: Work) -> Option<&'static str> {
    match candidate {
        "nodosum" | "tcp_tls" => None,
        "s2n_quic" => with_s2n::cannot(work),
        "udp" | "limit" => udp::cannot(work),
        _ => with_quinn::cannot(candidate, work),
    }
}

// ---- the comparison --------------------------------------------------------------------------

/// Certificates of this comparison, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("nodosum-peers-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        certificates::make(&dir)?;
        with_nodosum::make_authority(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is a few certificates of nobody's.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether all runs came to their end.
fn compare(arguments: &Arguments) -> io::Result<bool> {
    let scratch = Scratch::new()?;
    let machine = Machine::look(udp::offloads()? + &with_nodosum::offloads());
    let chosen = |name: &str, from: &[String]| from.is_empty() || from.iter().any(|n| n == name);
    let workloads: Vec<_> = WORKLOADS
        .iter()
        .filter(|workload| chosen(workload.name, &arguments.workloads))
        .collect();
    let candidates: Vec<&str> = CANDIDATES
        .iter()
        .map(|candidate| candidate.name)
        .filter(|name| chosen(name, &arguments.candidates))
        .collect();
    let supported = |work| {
        let can = candidates
            .iter()
            .filter(|name| cannot(name, work).is_none());
        can.count()
    };
    let total: usize = workloads
        .iter()
        .map(|workload| supported(workload.work) * arguments.runs)
        .sum();
    let mut progress = Progress::new(total);
    match arguments.format {
        Format::Table => println!("{}\n", machine.line()),
        Format::Json => println!("{}", report::machine_json(&machine.fields)),
        Format::Markdown => println!("Measured on: {}.\n", machine.line()),
    }
    let mut all = Vec::new();
    for workload in workloads {
        let mut measured = Measured {
            workload: workload.name,
            about: workload.about,
            unit: workload.unit,
            per: workload.per,
            lower_is_better: workload.lower_is_better,
            series: Vec::new(),
        };
        for name in &candidates {
            measured.series.push(Series {
                candidate: (*name).to_owned(),
                unsupported: cannot(name, workload.work).map(str::to_owned),
                ..Series::default()
            });
        }
        for round in 1..=arguments.runs {
            for series in &mut measured.series {
                if series.unsupported.is_some() {
                    continue;
                }
                progress.show(workload.name, &series.candidate, round, arguments.runs);
                let job = Job {
                    candidate: series.candidate.clone(),
                    workload,
                    seconds: arguments.seconds,
                    dir: scratch.0.clone(),
                    core: None,
                };
                note_run(series, play(&job));
                progress.done += 1;
            }
        }
        progress.clear();
        match arguments.format {
            Format::Table => println!("{}", measured.table()),
            Format::Json => print!("{}", measured.json()),
            Format::Markdown => println!("{}", measured.markdown()),
        }
        all.push(measured);
    }
    if let Some(path) = &arguments.svg {
        fs::write(path, plot::svg(&all, &machine.lines(150)))?;
    }
    Ok(all
        .iter()
        .flat_map(|measured| &measured.series)
        .all(|series| series.failures.is_empty()))
}

fn note_run(series: &mut Series, result: Result<Outcome, String>) {
    match result {
        Ok(outcome) => {
            series
                .rounds
                .push(Some(outcome.fields.into_iter().collect::<Run>()));
            for note in outcome.notes {
                if !series.notes.contains(&note) {
                    series.notes.push(note);
                }
            }
        }
        Err(why) => {
            series.rounds.push(None);
            series.failures.push(why);
        }
    }
}

/// A process that does not outlive whoever waits for it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, or it is ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(role: &str, extra: &[String], job: &Job) -> io::Result<Process> {
    let child = Command::new(std::env::current_exe()?)
        .arg(role)
        .args(extra)
        .args(job.arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    Ok(Process(child))
}

/// One run: both processes, from start to end.
fn play(job: &Job) -> Result<Outcome, String> {
    let words = |error: io::Error| error.to_string();
    let deadline = Instant::now() + RUN_PATIENCE + job.warm_up() + job.measured();
    let (server_core, client_core) = cores(job.work());
    let on = |core| Job {
        core,
        ..job.clone()
    };
    let mut server = start("--serve", &[], &on(server_core)).map_err(words)?;
    let said = first_line(&mut server, deadline)?;
    let addr = said
        .strip_prefix("ready ")
        .ok_or_else(|| format!("the server did not start: {said}"))?;
    let addr: SocketAddr = addr
        .trim()
        .parse()
        .map_err(|_| "the server said no address")?;
    let mut client = start("--client", &[addr.to_string()], &on(client_core)).map_err(words)?;
    let outcome = parse(&whole_output(&mut client, deadline)?)?;
    if job.work().is_pinned() && client_core.is_none() {
        return Ok(outcome.note("there is one core only, and both processes on it"));
    }
    Ok(outcome)
}

/// For the server and for the client, where the workload wants one for each and there are two.
fn cores(work: Work) -> (Option<usize>, Option<usize>) {
    if !work.is_pinned() {
        return (None, None);
    }
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else {
        return (None, None);
    };
    let count = nix::sched::CpuSet::count();
    let mut cores = (0..count).filter(|core| allowed.is_set(*core).unwrap_or(false));
    match (cores.next(), cores.next()) {
        (Some(client), Some(server)) => (Some(server), Some(client)),
        _ => (None, None),
    }
}

fn first_line(process: &mut Process, deadline: Instant) -> Result<String, String> {
    let stdout = process.0.stdout.take().ok_or("no standard output")?;
    within(deadline, move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    })
}

fn whole_output(process: &mut Process, deadline: Instant) -> Result<String, String> {
    let mut stdout = process.0.stdout.take().ok_or("no standard output")?;
    within(deadline, move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text)?;
        Ok(text)
    })
}

/// Reads on a thread, which ends with the process that it reads from.
fn within(
    deadline: Instant,
    read: impl FnOnce() -> io::Result<String> + Send + 'static,
) -> Result<String, String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        // Nobody waits any more: the run was given up.
        let _ = sender.send(read());
    });
    receiver
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .map_err(|_| "did not end in time".to_owned())?
        .map_err(|error| error.to_string())
}

fn parse(text: &str) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    let mut is_whole = false;
    for line in text.lines() {
        match line.split_once(' ') {
            None if line == "end" => is_whole = true,
            Some(("error", why)) => return Err(why.to_owned()),
            Some(("note", note)) => outcome.notes.push(note.to_owned()),
            Some((key, value)) => {
                let value = value.parse().map_err(|_| format!("not a figure: {line}"))?;
                outcome.fields.push((key.to_owned(), value));
            }
            None => return Err(format!("not a figure: {line}")),
        }
    }
    if is_whole {
        Ok(outcome)
    } else {
        Err("the client ended before it was done".to_owned())
    }
}

/// How far it is, for whoever waits.
struct Progress {
    done: usize,
    total: usize,
    begun_at: Instant,
    is_terminal: bool,
    workload: &'static str,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self {
            done: 0,
            total,
            begun_at: Instant::now(),
            is_terminal: io::stderr().is_terminal(),
            workload: "",
        }
    }

    fn show(&mut self, workload: &'static str, candidate: &str, round: usize, rounds: usize) {
        let left = if self.done == 0 {
            String::new()
        } else {
            let each = self.begun_at.elapsed().as_secs_f64() / self.done as f64;
            let seconds = (each * (self.total - self.done) as f64).round() as u64;
            format!(", about {}:{:02} left", seconds / 60, seconds % 60)
        };
        let at = format!("[{}/{}]", self.done + 1, self.total);
        let mut stderr = io::stderr();
        // Nobody misses progress that cannot be shown.
        let _ = if self.is_terminal {
            let line = format!("{at} {workload}: {candidate}, run {round} of {rounds}{left}");
            write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush())
        } else if self.workload == workload {
            Ok(())
        } else {
            writeln!(stderr, "{at} {workload}{left}")
        };
        self.workload = workload;
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
