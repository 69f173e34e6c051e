//! One point: a cluster in this process, and requests on so many of its connections.
//!
//! A cluster of k nodes has k(k-1)/2 connections, each with a thread at either end, so the smallest
//! cluster with enough of them is started: 1,024 connections take 46 nodes. A thread for each
//! connection that is asked for asks over it and waits, and the thread that reads a request answers
//! it; the other connections are idle.
//!
//! Both ends are in one process because what is counted (threads, memory, context switches) is then
//! counted whole, and because the program needs nothing but itself. The price is that client and
//! server share the cores and the allocator, as they do on a machine with both.

#![expect(
    clippy::disallowed_methods,
    reason = "a load is made by threads against the real clock"
)]

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nodosum::{App, Node, NodeId, Profile, Ready, ca::Authority};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

use super::histogram::Histogram;

const APP: &str = "bench";

/// How long the cluster may take to form: a thousand handshakes on a small machine, with room.
const FORMING: Duration = Duration::from_secs(120);

/// How long a request may take before the point is given up as broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long each node may take to leave.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// The certificates last longer than any point.
const VALID_FOR: Duration = Duration::from_secs(86_400);

/// The stack of a thread that only asks and waits.
const STACK_BYTES: usize = 256 << 10;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) peers: usize,
    /// Threads of each node that share its connections; 0: each has one.
    pub(crate) workers: usize,
    pub(crate) measured: Duration,
    /// Requests a second, in all, whatever the answers; else each thread asks when it was answered.
    pub(crate) rate: Option<f64>,
    pub(crate) payload_bytes: usize,
}

/// What a point came to, each with its key.
pub(crate) type Figures = Vec<(&'static str, f64)>;

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// Nodes of the smallest full mesh with so many connections.
pub(crate) fn nodes_for(connections: usize) -> usize {
    (2..)
        .find(|nodes| nodes * (nodes - 1) / 2 >= connections)
        .unwrap_or(2)
}

/// So many pairs of a full mesh, spread evenly over its nodes: first everyone asks the next node,
/// then the one after it.
pub(crate) fn pairs(nodes: usize, connections: usize) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for distance in 1..=nodes / 2 {
        // Half around an even circle, every pair would be met from both sides.
        let starts = if distance * 2 == nodes {
            distance
        } else {
            nodes
        };
        pairs.extend((0..starts).map(|from| (from, (from + distance) % nodes)));
    }
    pairs.truncate(connections);
    pairs
}

/// `tell` hears of each phase as it begins.
pub(crate) fn measure(load: Load, tell: impl Fn(&str)) -> Result<Figures, String> {
    raise_descriptor_limit();
    let before = rss_bytes()?;
    let count = nodes_for(load.peers);
    tell(&format!("forming a cluster of {count} nodes"));
    let nodes = start(count, load.workers)?;
    let apps: Vec<App> = nodes.iter().map(register).collect::<Result<_, _>>()?;
    let phase = Arc::new(AtomicU8::new(WARMING));
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let begun_at = Instant::now();
    let mut threads = Vec::new();
    for (number, (from, to)) in pairs(count, load.peers).into_iter().enumerate() {
        let asker = Asker {
            app: apps[from].clone(),
            to: nodes[to].id().clone(),
            payload: vec![0x5a; load.payload_bytes],
            phase: Arc::clone(&phase),
            gate: Arc::clone(&gate),
            schedule: load.rate.map(|rate| Schedule {
                due_at: begun_at + Duration::from_secs_f64(number as f64 / rate),
                interval: Duration::from_secs_f64(load.peers as f64 / rate),
            }),
        };
        threads.push(spawn(move || asker.run())?);
    }
    let warm_up = (load.measured / 5).clamp(Duration::from_millis(100), Duration::from_secs(2));
    tell("warming up");
    thread::sleep(warm_up);
    tell("measuring");
    let begin = Used::now()?;
    phase.store(COUNTING, Relaxed);
    let from = Instant::now();
    thread::sleep(load.measured);
    phase.store(OVER, Relaxed);
    let seconds = from.elapsed().as_secs_f64();
    let end = Used::now()?;
    drop(closed);
    let mut took = Histogram::new();
    for thread in threads {
        let result = thread.join().map_err(|_| "a thread panicked".to_owned())?;
        took.add(&result?);
    }
    let figures = figures(load, &took, seconds, (&begin, &end), before)?;
    tell("shutting down");
    drop(apps);
    shut_down(nodes)?;
    Ok(figures)
}

fn figures(
    load: Load,
    took: &Histogram,
    seconds: f64,
    (begin, end): (&Used, &Used),
    rss_before: f64,
) -> Result<Figures, String> {
    let quantile = |part| {
        took.quantile(part)
            .ok_or_else(|| "nothing was answered while it counted".to_owned())
    };
    let requests = took.count() as f64;
    Ok(vec![
        ("throughput", requests / seconds),
        ("p50", quantile(0.5)?),
        ("p99", quantile(0.99)?),
        ("p999", quantile(0.999)?),
        (
            "cpu_per_request",
            (end.cpu_seconds - begin.cpu_seconds) / requests,
        ),
        (
            "context_switches_per_request",
            (end.context_switches - begin.context_switches) / requests,
        ),
        ("rss", end.rss_bytes),
        (
            "rss_per_connection",
            (end.rss_bytes - rss_before) / load.peers as f64,
        ),
        // When nobody has ended yet.
        ("threads", begin.threads),
    ])
}

fn start(count: usize, workers: usize) -> Result<Vec<Node>, String> {
    let authority = Authority::new(&name("bench")?, VALID_FOR).map_err(words)?;
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=count {
        let identity = authority
            .identity(&name(&format!("n{number}"))?, VALID_FOR)
            .map_err(words)?;
        let seed = nodes.first().map(|first| first.quic_addr().to_string());
        let node = Node::builder(identity)
            .profile(Profile::Local)
            .seeds(seed)
            .workers(workers)
            .start()
            .map_err(words)?;
        nodes.push(node);
    }
    let deadline = Instant::now() + FORMING;
    for node in &nodes {
        let left = deadline.saturating_duration_since(Instant::now());
        node.wait_ready(Ready::Peers(count - 1), left)
            .map_err(words)?;
    }
    Ok(nodes)
}

fn register(node: &Node) -> Result<App, String> {
    let app = node.register(APP).map_err(words)?;
    app.on_request_inline(|request| Ok(request.payload.clone()));
    Ok(app)
}

/// All at the same time, because each waits for its goodbyes.
fn shut_down(nodes: Vec<Node>) -> Result<(), String> {
    let leaving: Vec<JoinHandle<_>> = nodes
        .into_iter()
        .map(|node| spawn(move || drop(node.shutdown(SHUTDOWN))))
        .collect::<Result<_, _>>()?;
    for thread in leaving {
        thread
            .join()
            .map_err(|_| "a shutdown panicked".to_owned())?;
    }
    Ok(())
}

/// When requests are due, whether the ones before are answered or not. Their time counts from then,
/// so that what a stall delays is measured as late.
struct Schedule {
    due_at: Instant,
    interval: Duration,
}

struct Asker {
    app: App,
    to: NodeId,
    payload: Vec<u8>,
    phase: Arc<AtomicU8>,
    /// Open when everything is counted: what a thread has used cannot be asked of one that ended.
    gate: Arc<Mutex<()>>,
    schedule: Option<Schedule>,
}

impl Asker {
    fn run(mut self) -> Result<Histogram, String> {
        let mut took = Histogram::new();
        while self.phase.load(Relaxed) != OVER {
            let from = self.next_due();
            let reply = self
                .app
                .request(&self.to, &self.payload, PATIENCE)
                .map_err(words)?;
            if reply != self.payload {
                return Err(format!("{} did not answer what it was asked", self.to));
            }
            if self.phase.load(Relaxed) == COUNTING {
                took.record(from.elapsed());
            }
        }
        drop(self.gate.lock());
        Ok(took)
    }

    fn next_due(&mut self) -> Instant {
        let Some(schedule) = &mut self.schedule else {
            return Instant::now();
        };
        let due_at = schedule.due_at;
        schedule.due_at += schedule.interval;
        thread::sleep(due_at.saturating_duration_since(Instant::now()));
        due_at
    }
}

fn spawn<T: Send + 'static>(
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, String> {
    let builder = thread::Builder::new().name("bench".to_owned());
    builder.stack_size(STACK_BYTES).spawn(body).map_err(words)
}

fn name<T: std::str::FromStr>(text: &str) -> Result<T, String>
where
    T::Err: ToString,
{
    text.parse().map_err(words)
}

fn words(error: impl ToString) -> String {
    error.to_string()
}

/// As many sockets as the system allows; where that is too few, starting a node says so.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Refused means as it was.
    let _ = setrlimit(Resource::Nofile, most);
}

// ---- what the process used -------------------------------------------------------------------

struct Used {
    cpu_seconds: f64,
    context_switches: f64,
    rss_bytes: f64,
    threads: f64,
}

impl Used {
    fn now() -> Result<Self, String> {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Ok(Self {
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            context_switches: context_switches()?,
            rss_bytes: rss_bytes()?,
            threads: field(&status("/proc/self/status")?, "Threads:")?,
        })
    }
}

fn rss_bytes() -> Result<f64, String> {
    Ok(field(&status("/proc/self/status")?, "VmRSS:")? * 1_024.0)
}

/// Of all threads that are there; those that ask stay until it is counted.
fn context_switches() -> Result<f64, String> {
    let mut total = 0.0;
    for entry in fs::read_dir("/proc/self/task").map_err(words)? {
        let path = entry.map_err(words)?.path().join("status");
        // A thread may end between the listing and the look.
        let Ok(text) = fs::read_to_string(path) else {
            continue;
        };
        total += field(&text, "voluntary_ctxt_switches:")?;
        total += field(&text, "nonvoluntary_ctxt_switches:")?;
    }
    Ok(total)
}

fn status(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn field(status: &str, name: &str) -> Result<f64, String> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| format!("no {name} in the status of a thread"))
}
