//! Clocks and counters: when a run counts, what it took, and what both processes used for it.
//!
//! The two processes of a run have a TCP connection beside what they measure. Over it the client
//! asks the server for its usage, at the beginning and at the end of what counts; when it is closed,
//! the server ends.

use std::{
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{UsageWho, getrusage},
    unistd::Pid,
};

use crate::job::{Job, STALL};

/// The longest time that a histogram tells apart from longer ones.
const LONGEST: Duration = Duration::from_secs(60);

/// Says how far a run is, behind the line of the process that started it, where a person sees it.
pub(crate) fn tell(phase: &str) {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        // Save the place, write, come back. Nobody misses what cannot be shown.
        let _ = write!(stderr, "\x1b7\x1b[K: {phase}\x1b8").and_then(|()| stderr.flush());
    }
}

/// What a process has used since it began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) context_switches: f64,
    pub(crate) rss_bytes: f64,
    pub(crate) threads: f64,
}

impl Usage {
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let seconds =
            |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        let status = std::fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
                .and_then(|value| value.parse::<f64>().ok())
                .ok_or_else(|| io::Error::other(format!("/proc/self/status has no {name}")))
        };
        Ok(Self {
            cpu_seconds: seconds(usage.user_time()) + seconds(usage.system_time()),
            context_switches: (usage.voluntary_context_switches()
                + usage.involuntary_context_switches()) as f64,
            rss_bytes: field("VmRSS:")? * 1_024.0,
            threads: field("Threads:")?,
        })
    }

    fn line(self) -> String {
        format!(
            "{} {} {} {}",
            self.cpu_seconds, self.context_switches, self.rss_bytes, self.threads
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map(str::parse::<f64>);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            cpu_seconds: next()?,
            context_switches: next()?,
            rss_bytes: next()?,
            threads: next()?,
        })
    }
}

/// Keeps this thread, and all that it starts, on one core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The server's end: tells where it is reached, then answers until the client is gone. `answer` has
/// the questions that only one candidate knows.
pub(crate) fn serve(addrs: &[SocketAddr], answer: impl Fn(&str) -> String) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("ready {}", listener.local_addr()?);
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut replies = stream.try_clone()?;
    let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    for line in BufReader::new(stream).lines() {
        let reply = match line?.as_str() {
            "addrs" => addrs.join(" "),
            "usage" => Usage::of_this_process()?.line(),
            other => answer(other),
        };
        replies.write_all(format!("{reply}\n").as_bytes())?;
    }
    Ok(())
}

/// The client's end.
pub(crate) struct Control {
    stream: BufReader<TcpStream>,
}

impl Control {
    pub(crate) fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub(crate) fn ask(&mut self, question: &str) -> io::Result<String> {
        self.stream
            .get_mut()
            .write_all(format!("{question}\n").as_bytes())?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Where the server is reached: one address, or one for each connection.
    pub(crate) fn addrs(&mut self) -> io::Result<Vec<SocketAddr>> {
        let line = self.ask("addrs")?;
        let addrs = line.split_whitespace().map(str::parse);
        addrs
            .collect::<Result<_, _>>()
            .map_err(|_| io::Error::other("the server said no addresses"))
    }

    fn usage(&mut self) -> io::Result<Usage> {
        let line = self.ask("usage")?;
        Usage::parse(&line).ok_or_else(|| io::Error::other(format!("no usage in {line:?}")))
    }

    /// What both processes have used by now.
    pub(crate) fn snapshot(&mut self) -> io::Result<Snapshot> {
        let server = self.usage()?;
        Ok(Snapshot {
            client: Usage::of_this_process()?,
            server,
            at: Instant::now(),
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    pub(crate) client: Usage,
    pub(crate) server: Usage,
    pub(crate) at: Instant,
}

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// Says whether what completes now counts. Work that completes after the end is not counted, and
/// what began in the warm-up and completes afterwards is: one of each for each request outstanding.
#[derive(Debug, Clone)]
pub(crate) struct Meter(Arc<AtomicU8>);

impl Default for Meter {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(WARMING)))
    }
}

impl Meter {
    pub(crate) fn counts(&self) -> bool {
        self.0.load(Relaxed) == COUNTING
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Relaxed) == OVER
    }

    /// Runs through the phases on a thread of its own, so that it depends on no candidate's
    /// scheduler, and gives the control connection back with what was used meanwhile.
    pub(crate) fn start(
        &self,
        job: &Job,
        mut control: Control,
    ) -> JoinHandle<io::Result<(Control, Window)>> {
        let (meter, warm_up, measured) = (self.clone(), job.warm_up(), job.measured());
        std::thread::spawn(move || {
            let run = || -> io::Result<(Control, Window)> {
                tell("warming up");
                std::thread::sleep(warm_up);
                tell("measuring");
                let begin = control.snapshot()?;
                meter.0.store(COUNTING, Relaxed);
                let from = Instant::now();
                std::thread::sleep(measured);
                meter.0.store(OVER, Relaxed);
                let seconds = from.elapsed().as_secs_f64();
                let end = control.snapshot()?;
                let window = Window {
                    begin,
                    end,
                    seconds,
                };
                Ok((control, window))
            };
            let result = run();
            // Whatever went wrong here, nobody may go on for ever.
            meter.0.store(OVER, Relaxed);
            result
        })
    }
}

/// What was used while it counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) begin: Snapshot,
    pub(crate) end: Snapshot,
    pub(crate) seconds: f64,
}

/// What one lane of work took.
pub(crate) struct Tally {
    pub(crate) count: u64,
    pub(crate) stalls: u64,
    pub(crate) lost: u64,
    nanoseconds: Histogram<u32>,
}

impl Tally {
    /// Three digits where there are few lanes, two where a thousand of them would fill the memory.
    pub(crate) fn new(lanes: usize) -> Self {
        let digits = if lanes <= 16 { 3 } else { 2 };
        let longest = LONGEST.as_nanos() as u64;
        Self {
            count: 0,
            stalls: 0,
            lost: 0,
            nanoseconds: Histogram::new_with_max(longest, digits)
                .expect("the bounds are those of a histogram"),
        }
    }

    pub(crate) fn record(&mut self, took: Duration) {
        self.count += 1;
        self.stalls += u64::from(took > STALL);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.saturating_record(nanoseconds);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.stalls += other.stalls;
        self.lost += other.lost;
        self.nanoseconds
            .add(&other.nanoseconds)
            .expect("both histograms have the same bounds");
    }

    fn seconds_at(&self, quantile: f64) -> Option<f64> {
        (self.count > 0).then(|| self.nanoseconds.value_at_quantile(quantile) as f64 / 1e9)
    }
}

/// What a run came to, as the client tells it: `key value` a line, of numbers alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) fields: Vec<(String, f64)>,
    /// What a reader of the table has to know: cipher, what could not be set.
    pub(crate) notes: Vec<String>,
}

impl Outcome {
    fn set(&mut self, key: &str, value: f64) {
        self.fields.push((key.to_owned(), value));
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Usage for each of `units`.
    fn usage(&mut self, window: &Window, units: f64) {
        let pairs = [
            ("client", window.begin.client, window.end.client),
            ("server", window.begin.server, window.end.server),
        ];
        for (side, begin, end) in pairs {
            let cpu = (end.cpu_seconds - begin.cpu_seconds) / units;
            let switches = (end.context_switches - begin.context_switches) / units;
            self.set(&format!("{side}_cpu_seconds_per_unit"), cpu);
            self.set(&format!("{side}_context_switches_per_unit"), switches);
            self.set(&format!("{side}_rss_bytes"), end.rss_bytes);
            // When nobody has ended yet.
            self.set(&format!("{side}_threads"), begin.threads);
        }
    }

    /// Of a stream that was received to its end.
    pub(crate) fn of_bytes(window: &Window, bytes: u64, lost: f64) -> Self {
        let mut out = Self::default();
        let gigabytes = bytes as f64 / 1e9;
        out.set("value", gigabytes * 8.0 / window.seconds);
        out.set("lost_fraction", lost);
        out.usage(window, gigabytes);
        out
    }

    /// Of requests or handshakes.
    pub(crate) fn of_tally(job: &Job, window: &Window, tally: &Tally) -> io::Result<Self> {
        let (Some(p50), Some(p99)) = (tally.seconds_at(0.5), tally.seconds_at(0.99)) else {
            return Err(io::Error::other("nothing was answered while it counted"));
        };
        let mut out = Self::default();
        let rate = tally.count as f64 / window.seconds;
        out.set("value", if job.work().is_pinned() { p50 } else { rate });
        out.set("rate", rate);
        out.set("p50_seconds", p50);
        out.set("p99_seconds", p99);
        out.set("stalls", tally.stalls as f64);
        out.set("lost", tally.lost as f64);
        out.usage(window, tally.count as f64);
        Ok(out)
    }

    /// Of connections that do nothing: what each adds to the resident memory of a process, as the
    /// mean of both.
    pub(crate) fn of_idle(before: &Snapshot, window: &Window, connections: usize) -> Self {
        let grown =
            |before: Usage, after: Usage| (after.rss_bytes - before.rss_bytes) / connections as f64;
        let client = grown(before.client, window.end.client);
        let server = grown(before.server, window.end.server);
        let mut out = Self::default();
        out.set("value", f64::midpoint(client, server));
        out.set("client_rss_bytes_per_connection", client);
        out.set("server_rss_bytes_per_connection", server);
        out.usage(window, connections as f64 * window.seconds);
        out
    }

    pub(crate) fn print(&self) {
        for (key, value) in &self.fields {
            println!("{key} {value}");
        }
        for note in &self.notes {
            println!("note {note}");
        }
        println!("end");
    }
}
