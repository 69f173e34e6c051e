//! `nodosum doctor`: what would keep a node from working well here.
//!
//! Five groups of findings: the configuration and the certificate; the clock; the machine (buffers,
//! GSO and GRO, limits); each seed, by a datagram of QUIC; and a running node, where there is one. A
//! finding is `ok`, `warn` or `fail`, and what is not `ok` says how to mend it.
//!
//! A seed is asked without a certificate and without a trace: a QUIC datagram of a version that does
//! not exist is answered with the list of versions that do (RFC 9000 §6), by anything that speaks QUIC.
//! Datagrams of growing size, which routers may not cut, tell what the path carries.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    path::Path,
    time::Duration,
};

use nodosum::{Identity, transport::Offload};
use rustix::{
    net::sockopt::{
        Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    },
    process::{Resource, getrlimit},
};
use serde::Serialize;

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{Client, call, unexpected},
        protocol::{Command, Reply, SeedView, StatusView},
    },
    args::{Admin, DemoFormat, Doctor},
    clock::{self, Wall, until},
    exit::{Exit, Failure},
    output::{Paint, clean, duration, json_line, print, seconds},
    run::{CLOCK, judge},
    seeds, settings,
    upkeep::EXPIRY_WARNING,
};

/// What a socket of a node asks for; the kernel grants `net.core.rmem_max` at most.
const WANTED_BUFFER_BYTES: u64 = 4 << 20;

/// Descriptors and threads: a node needs a few of each for every peer.
const WANTED_FILES: u64 = 4_096;
const WANTED_THREADS: u64 = 2_048;

/// Clocks that differ by more make logs of several nodes hard to read together.
const CLOCK_WARNING: Duration = Duration::from_secs(1);

/// Clocks that differ by more make certificates not yet or no longer valid.
const CLOCK_FAILURE: Duration = Duration::from_secs(60);

/// UDP payloads that are tried: QUIC's least, an Ethernet frame over IPv6 and over IPv4, a jumbo frame.
const SIZES: [usize; 5] = [1_200, 1_350, 1_452, 1_472, 8_972];

/// How often a datagram is repeated before it counts as lost.
const TRIES: u32 = 3;

/// Seeds, and addresses of one seed, that are looked at.
const MAX_SEEDS: usize = 64;
const MAX_ADDRS: usize = 8;

/// A version that no QUIC will ever have (RFC 9000 §15), so that every server lists its own.
const NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at, in a word or two.
    subject: String,
    told: String,
    /// How to mend it.
    mend: Option<String>,
}

fn ok(subject: &str, told: impl Into<String>) -> Finding {
    Finding {
        level: Level::Ok,
        subject: subject.to_owned(),
        told: told.into(),
        mend: None,
    }
}

fn warn(subject: &str, told: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        level: Level::Warn,
        mend: Some(mend.into()),
        ..ok(subject, told)
    }
}

fn fail(subject: &str, told: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        level: Level::Fail,
        ..warn(subject, told, mend)
    }
}

/// The object of `doctor -o json`.
#[derive(Debug, Serialize)]
struct DoctorView<'a> {
    schema: u32,
    ok: usize,
    warn: usize,
    fail: usize,
    findings: &'a [Finding],
}

pub(crate) fn run(args: &Doctor) -> Result<Exit, Failure> {
    let findings = examine(args);
    let count = |level| findings.iter().filter(|found| found.level == level).count();
    let view = DoctorView {
        schema: 1,
        ok: count(Level::Ok),
        warn: count(Level::Warn),
        fail: count(Level::Fail),
        findings: &findings,
    };
    print(&match args.output {
        DemoFormat::Json => json_line(&view)?,
        DemoFormat::Text => page(&view, Paint::stdout()),
    })?;
    Ok(if view.fail == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// The findings about this machine and the node at the socket, as text, for a bundle.
pub(crate) fn report(admin: &Admin) -> String {
    let mut findings = machine();
    findings.extend(node(admin));
    let view = DoctorView {
        schema: 1,
        ok: 0,
        warn: 0,
        fail: 0,
        findings: &findings,
    };
    lines(&view, Paint::none())
}

fn page(view: &DoctorView<'_>, paint: Paint) -> String {
    let sum = format!(
        "\n{} ok, {} warnings, {} failures\n",
        view.ok, view.warn, view.fail
    );
    lines(view, paint) + &sum
}

fn lines(view: &DoctorView<'_>, paint: Paint) -> String {
    let widest = view
        .findings
        .iter()
        .map(|found| found.subject.chars().count())
        .max();
    let width = widest.unwrap_or(0);
    let mut out = String::new();
    for found in view.findings {
        let mark = match found.level {
            Level::Ok => paint.state("ok"),
            Level::Warn => paint.state("warn"),
            Level::Fail => paint.state("fail"),
        };
        let pad = if found.level == Level::Ok { "  " } else { "" };
        let subject = clean(&found.subject);
        let told = clean(&found.told);
        let _ = writeln!(out, "[{mark}]{pad} {subject:<width$}  {told}");
        if let Some(mend) = &found.mend {
            let _ = writeln!(out, "       {:<width$}  mend: {}", "", clean(mend));
        }
    }
    out
}

fn examine(args: &Doctor) -> Vec<Finding> {
    let settings = settings::load_file(args.config.as_deref());
    let (run, mut findings) = match settings {
        Ok(settings) => {
            let judged = judge(&settings.run);
            let found = match (judged, &args.config) {
                (Err(failure), _) => Some(unfit("configuration", &failure)),
                (Ok(()), Some(path)) => Some(ok("configuration", path.display().to_string())),
                (Ok(()), None) => None,
            };
            (Some(settings.run), Vec::from_iter(found))
        }
        Err(failure) => (None, vec![unfit("configuration", &failure)]),
    };
    let configured = run.as_ref().and_then(|run| run.tls_dir.clone());
    findings.extend(certificate(
        args.tls_dir.as_deref().or(configured.as_deref()),
    ));
    findings.extend(machine());
    let mut asked = args.seeds.clone();
    if let Some(run) = run.filter(|_| asked.is_empty()) {
        asked = run.seeds;
        match run.seeds_file.as_deref().map(seeds::read) {
            Some(Ok(listed)) => asked.extend(listed),
            Some(Err(why)) => {
                findings.push(fail("seeds file", why, "make it readable, or drop it"))
            }
            None => {}
        }
    }
    for name in asked.iter().take(MAX_SEEDS) {
        findings.extend(seed(name, args.timeout));
    }
    findings.extend(node(&args.admin));
    findings
}

fn unfit(subject: &str, failure: &Failure) -> Finding {
    let mend = failure
        .hint
        .clone()
        .unwrap_or_else(|| "see docs/OPERATING.md".to_owned());
    fail(subject, failure.message.clone(), mend)
}

// ---- certificate

fn certificate(dir: Option<&Path>) -> Vec<Finding> {
    let subject = "certificate";
    let Some(dir) = dir else {
        return vec![warn(subject, "not looked at", "name it with --tls-dir DIR")];
    };
    let identity = match Identity::from_dir(dir) {
        Ok(identity) => identity,
        Err(error) => {
            let mend = "'nodosum tls cert create' makes one; keys have mode 0600";
            return vec![fail(subject, error.to_string(), mend)];
        }
    };
    if let Err(error) = identity.check(Wall::now().time()) {
        let mend = "issue a new one with 'nodosum tls cert create', or set the clock";
        return vec![fail(subject, error.to_string(), mend)];
    }
    let left = until(identity.not_after());
    let told = format!(
        "{}, ends in {}",
        identity.certificate_name(),
        duration(left)
    );
    vec![if left < EXPIRY_WARNING {
        warn(
            subject,
            told,
            "issue a new one, put it there, and send the node HUP",
        )
    } else {
        ok(subject, told)
    }]
}

// ---- machine

fn machine() -> Vec<Finding> {
    let mut findings = vec![
        buffer("receive buffers", "net.core.rmem_max"),
        buffer("send buffers", "net.core.wmem_max"),
    ];
    findings.push(offload());
    findings.push(files());
    findings.push(threads());
    findings
}

fn buffer(subject: &str, key: &str) -> Finding {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let Some(granted) = number(Path::new(&path)) else {
        return warn(
            subject,
            format!("{key} cannot be read"),
            "nothing, if this is no Linux",
        );
    };
    let told = format!("{key} is {granted}");
    if granted >= WANTED_BUFFER_BYTES {
        return ok(subject, told);
    }
    let mend = format!("sysctl -w {key}={WANTED_BUFFER_BYTES}, and a line in /etc/sysctl.d");
    warn(subject, format!("{told}; bursts lose packets"), mend)
}

fn offload() -> Finding {
    let granted = Offload::ALL.granted();
    let word = |granted| if granted { "yes" } else { "no" };
    let told = format!("GSO {}, GRO {}", word(granted.gso), word(granted.gro));
    if granted.gso && granted.gro {
        ok("UDP offload", told)
    } else {
        let mend = "a kernel from 5.0 on, outside of sandboxes such as gVisor";
        warn(
            "UDP offload",
            format!("{told}; bulk is several times slower"),
            mend,
        )
    }
}

fn files() -> Finding {
    // A node raises its soft limit to the hard one by itself.
    let hard = getrlimit(Resource::Nofile).maximum;
    let told = hard.map_or_else(|| "no limit".to_owned(), |hard| format!("up to {hard}"));
    if hard.is_none_or(|hard| hard >= WANTED_FILES) {
        ok("open files", told)
    } else {
        let mend = format!("LimitNOFILE={WANTED_FILES} in the unit, or ulimit -Hn");
        warn("open files", format!("{told}; each peer takes a few"), mend)
    }
}

/// The least of the limits on processes, which count threads.
fn threads() -> Finding {
    let user = getrlimit(Resource::Nproc).current;
    let machine = number(Path::new("/proc/sys/kernel/threads-max"));
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| {
            let path = text
                .lines()
                .find_map(|line| line.strip_prefix("0::"))?
                .to_owned();
            number(
                &Path::new("/sys/fs/cgroup")
                    .join(path.trim_start_matches('/'))
                    .join("pids.max"),
            )
        });
    let Some(least) = [user, machine, group].into_iter().flatten().min() else {
        return ok("threads", "no limit");
    };
    let told = format!("up to {least}");
    if least >= WANTED_THREADS {
        ok("threads", told)
    } else {
        let mend = format!(
            "TasksMax={WANTED_THREADS} in the unit, or ulimit -u, or the container's limit"
        );
        warn("threads", format!("{told}; each peer takes one"), mend)
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

// ---- seeds

fn seed(name: &str, patience: Duration) -> Vec<Finding> {
    let subject = format!("seed {name}");
    if name.starts_with('_') {
        let mend = "'nodosum status' and the log of a node tell what they lead to";
        return vec![warn(
            &subject,
            "SRV records are looked up by nodes only",
            mend,
        )];
    }
    let addrs: Vec<SocketAddr> = match name.to_socket_addrs() {
        Ok(addrs) => addrs.take(MAX_ADDRS).collect(),
        Err(error) => {
            let mend = "correct the name, or /etc/resolv.conf; a seed is HOST:PORT";
            return vec![fail(&subject, format!("not found: {error}"), mend)];
        }
    };
    let found = addrs
        .into_iter()
        .map(|addr| reach(&subject, addr, patience));
    found.collect()
}

fn reach(subject: &str, addr: SocketAddr, patience: Duration) -> Finding {
    let silent = || {
        let mend = "let UDP through to that port and back, and see that a node is bound there";
        fail(subject, format!("{addr} does not answer over UDP"), mend)
    };
    let prober = match Prober::new(addr) {
        Ok(prober) => prober,
        Err(error) => {
            return fail(
                subject,
                format!("{addr}: {error}"),
                "see that there is a route to it",
            );
        }
    };
    let Some(rtt) = prober.ask(SIZES[0], patience) else {
        return silent();
    };
    // Larger ones are lost where the path does not carry them: a few round trips are enough to tell.
    let brief = (rtt * 8).clamp(Duration::from_millis(100), patience);
    let largest = SIZES[1..]
        .iter()
        .take_while(|size| prober.ask(**size, brief).is_some())
        .last()
        .copied()
        .unwrap_or(SIZES[0]);
    let told = format!(
        "{addr} answers in {}; the path carries {largest} bytes of UDP",
        seconds(Some(rtt.as_secs_f64()))
    );
    ok(subject, told)
}

struct Prober {
    socket: UdpSocket,
}

impl Prober {
    fn new(addr: SocketAddr) -> std::io::Result<Self> {
        let unspecified: IpAddr = match addr {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((unspecified, 0))?;
        // Not cut on the way, whatever the kernel believes of the path.
        match addr {
            SocketAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
            SocketAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
        }
        socket.connect(addr)?;
        Ok(Self { socket })
    }

    /// The round trip of a datagram of this size, unless none is answered.
    fn ask(&self, size: usize, patience: Duration) -> Option<Duration> {
        let datagram = probe(size);
        for _ in 0..TRIES {
            let sent = clock::now();
            self.socket.send(&datagram).ok()?;
            let deadline = clock::Deadline::after(patience / TRIES);
            while !deadline.is_over() {
                self.socket
                    .set_read_timeout(Some(deadline.remaining().max(Duration::from_millis(1))))
                    .ok()?;
                let mut answer = [0; 1_500];
                match self.socket.recv(&mut answer) {
                    Ok(length) if is_answer(&answer[..length], size) => {
                        return Some(clock::now().saturating_duration_since(sent));
                    }
                    Ok(_) => {}
                    // Nobody there (a refusal), or nothing in time: once more.
                    Err(_) => break,
                }
            }
        }
        None
    }
}

/// The connection ids of a probe: they say its size, so that a late answer to another is told apart.
fn ids(size: usize) -> ([u8; 8], [u8; 8]) {
    let size = u64::try_from(size).unwrap_or(0);
    (
        (size ^ 0x6e6f_646f_7375_6d31).to_be_bytes(),
        (size ^ 0x6e6f_646f_7375_6d32).to_be_bytes(),
    )
}

/// A long header (RFC 8999 §5.1) of no version, filled up with zeros.
fn probe(size: usize) -> Vec<u8> {
    let (to, from) = ids(size);
    let mut datagram = vec![0xc0];
    datagram.extend(NO_VERSION);
    datagram.push(8);
    datagram.extend(to);
    datagram.push(8);
    datagram.extend(from);
    datagram.resize(size, 0);
    datagram
}

/// Version Negotiation (RFC 8999 §6): version 0, and our ids in the other order.
fn is_answer(bytes: &[u8], size: usize) -> bool {
    let (to, from) = ids(size);
    let expected = [&[0, 0, 0, 0, 8][..], &from, &[8], &to].concat();
    bytes.first().is_some_and(|first| first & 0x80 != 0)
        && bytes
            .get(1..)
            .is_some_and(|rest| rest.starts_with(&expected))
}

// ---- a running node

fn node(admin: &Admin) -> Vec<Finding> {
    let status = match call(admin, Command::Status, &[], CALL_TIMEOUT) {
        Ok(Reply::Status(status)) => status,
        Ok(_) => return vec![unfit("node", &unexpected())],
        Err(failure) => {
            // Before the first start there is none, which is no fault.
            let mend = failure.hint.unwrap_or_else(|| "start one".to_owned());
            return vec![warn("node", failure.message, mend)];
        }
    };
    let mut findings = vec![lives(&status)];
    findings.extend(status.seeds.iter().take(MAX_SEEDS).filter_map(entry));
    findings.extend(connections(admin));
    findings.push(match clocks(admin) {
        Ok(found) => found,
        Err(failure) => unfit("clocks", &failure),
    });
    findings
}

/// A seed that leads to nobody now, as the node itself has found.
fn entry(seed: &SeedView) -> Option<Finding> {
    let why = seed.trouble()?;
    let told = format!("{} is not reached: {why}", seed.seed);
    let mend = if why.starts_with("TLS") {
        "give both nodes certificates of the same authority and cluster ('nodosum tls inspect')"
    } else {
        "look at the node there and at what is between, or drop the seed"
    };
    Some(warn("seeds", told, mend))
}

fn lives(status: &StatusView) -> Finding {
    let told = format!(
        "{} of {}, version {}, {} members alive",
        status.node, status.cluster, status.version, status.members.alive
    );
    if !status.ready {
        return warn(
            "node",
            format!("{told}, not ready"),
            "'nodosum conns' tells what is missing",
        );
    }
    if status.health_score > 0 {
        let told = format!("{told}, health score {}", status.health_score);
        let mend = "it is slow to answer: look for a lack of CPU, or lost datagrams";
        return warn("node", told, mend);
    }
    if status.version != env!("CARGO_PKG_VERSION") {
        let told = format!("{told}; this command is {}", env!("CARGO_PKG_VERSION"));
        return warn("node", told, "restart the node to run what is installed");
    }
    ok("node", told)
}

/// Members without a connection, each with its reason.
fn connections(admin: &Admin) -> Vec<Finding> {
    let conns = match call(admin, Command::Conns, &[], CALL_TIMEOUT) {
        Ok(Reply::Conns(conns)) => conns.connections,
        Ok(_) => return vec![unfit("connections", &unexpected())],
        Err(failure) => return vec![unfit("connections", &failure)],
    };
    let down = conns.iter().filter(|conn| conn.state == "down");
    let mut findings: Vec<Finding> = down
        .map(|conn| {
            let peer = conn.peer.as_deref().unwrap_or("?");
            let why = conn.last_error.as_deref().unwrap_or("not dialled yet");
            let mend = format!(
                "look at the node at {}; 'nodosum members {peer} --explain'",
                conn.addr
            );
            warn("connections", format!("{peer} is down: {why}"), mend)
        })
        .collect();
    if findings.is_empty() {
        findings.push(ok("connections", format!("all {} are up", conns.len())));
    }
    findings
}

/// Asks every node for the time. Half of what the question took is what cannot be told.
fn clocks(admin: &Admin) -> Result<Finding, Failure> {
    let command = Command::Query {
        name: CLOCK.to_owned(),
        nodes: Vec::new(),
        tags: std::collections::BTreeMap::new(),
        timeout_seconds: CALL_TIMEOUT.as_secs_f64(),
        payload_bytes: 0,
    };
    let asked = Wall::now().nanos();
    let mut client = Client::ask(admin, command, &[], Some(CALL_TIMEOUT))?;
    let mut worst: Option<(Duration, Duration, String)> = None;
    let mut answers = 0;
    while let Reply::Answer(answer) = client.reply()? {
        let came = Wall::now().nanos();
        let told = answer.answer.payload.as_deref().unwrap_or_default();
        let Ok(told) = told.parse::<u128>() else {
            continue;
        };
        answers += 1;
        let (off, unsure) = apart(asked, came, told);
        if worst.as_ref().is_none_or(|(worst, ..)| *worst < off) {
            worst = Some((off, unsure, answer.node));
        }
    }
    let Some((off, unsure, name)) = worst else {
        let mend = "nodes of 'nodosum run' answer; programs that link the library need not";
        return Ok(warn("clocks", "no node tells its time", mend));
    };
    let told = format!(
        "of {answers} nodes {name} is the furthest from this one, by {} (± {})",
        duration(off),
        duration(unsure)
    );
    let mend = "run chrony or systemd-timesyncd on every host";
    Ok(if off > CLOCK_FAILURE {
        fail("clocks", told, mend)
    } else if off > CLOCK_WARNING {
        warn("clocks", told, mend)
    } else {
        ok("clocks", told)
    })
}

/// How far a clock is off for certain, and how much cannot be told, given when it was asked and when
/// the answer came.
fn apart(asked: u128, came: u128, told: u128) -> (Duration, Duration) {
    let nanos = |nanos: u128| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    let off = if told < asked {
        asked - told
    } else {
        told.saturating_sub(came)
    };
    (nanos(off), nanos(came.saturating_sub(asked) / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_only_by_what_cannot_be_the_way() {
        let off = |told| apart(100, 200, told).0.as_nanos();
        assert_eq!(
            [off(90), off(100), off(150), off(200), off(230)],
            [10, 0, 0, 0, 30]
        );
        assert_eq!(apart(100, 200, 150).1.as_nanos(), 50);
    }

    #[test]
    fn only_the_answer_to_this_very_probe_counts() {
        let probe = probe(1_200);
        assert_eq!(probe.len(), 1_200);
        let (to, from) = ids(1_200);
        let answer = [&[0x80, 0, 0, 0, 0, 8][..], &from, &[8], &to, &[0, 0, 0, 1]].concat();
        assert!(is_answer(&answer, 1_200));
        assert!(!is_answer(&answer, 1_350));
        assert!(!is_answer(&probe, 1_200));
        for length in 0..23 {
            assert!(!is_answer(&answer[..length.min(answer.len() - 5)], 1_200));
        }
    }

    #[test]
    fn a_page_marks_each_finding_and_says_how_to_mend_it() {
        let findings = [ok("a", "fine"), fail("long name", "bad\u{1b}", "do this")];
        let view = DoctorView {
            schema: 1,
            ok: 1,
            warn: 0,
            fail: 1,
            findings: &findings,
        };
        assert_eq!(
            page(&view, Paint::none()),
            "[ok]   a          fine\n\
             [fail] long name  bad\\u{1b}\n       \
                               mend: do this\n\n\
             1 ok, 0 warnings, 1 failures\n"
                .replace("       mend", "                  mend")
        );
    }
}
