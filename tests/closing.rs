//! How connections end: for each class of end the right reason, one event, one line, and no busy
//! loop afterwards.
//!
//! The process's log and processor time are measured, so the tests run one after the other.
#![expect(
    clippy::disallowed_methods,
    reason = "real nodes run against the real clock"
)]
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]
#![expect(unreachable_pub, reason = "modules that several tests share")]
#![cfg(all(feature = "ca", target_os = "linux"))]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/raw_quic.rs"]
mod raw_quic;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use cluster::{Lab, PATIENCE, await_event, eventually, full_mesh, id};
use log::{Level, LevelFilter};
use nodosum::{
    ConnectionState, EventKind, Events, Node, Ready,
    control::Control,
    transport::{self, framing::StreamKind},
};
use raw_quic::{ALPN, CONTROL, Raw, config, control, hello, preamble, unit};

const SECOND: Duration = Duration::from_secs(1);

/// How long the process is watched after an end.
const WATCHED: Duration = Duration::from_secs(2);

/// What a few idle nodes and their retries may cost in that time, with room for a loaded machine.
const CPU_ALLOWED: Duration = Duration::from_millis(300);

/// What a timer may be late on a loaded machine.
const SLACK: Duration = SECOND;

// ---- the log

#[derive(Debug, Clone)]
struct Line {
    at: Instant,
    level: Level,
    target: String,
    text: String,
    fields: BTreeMap<String, String>,
}

impl Line {
    fn is_about(&self, key: &str, value: impl ToString) -> bool {
        self.fields.get(key) == Some(&value.to_string())
    }
}

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

struct Recorder;

impl log::Log for Recorder {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        struct Fields(BTreeMap<String, String>);
        impl<'kvs> log::kv::VisitSource<'kvs> for Fields {
            fn visit_pair(
                &mut self,
                key: log::kv::Key<'kvs>,
                value: log::kv::Value<'kvs>,
            ) -> Result<(), log::kv::Error> {
                self.0.insert(key.to_string(), value.to_string());
                Ok(())
            }
        }
        let mut fields = Fields(BTreeMap::new());
        record.key_values().visit(&mut fields).unwrap();
        let line = Line {
            at: Instant::now(),
            level: record.level(),
            target: record.target().to_owned(),
            text: record.args().to_string(),
            fields: fields.0,
        };
        lines_lock().push(line);
    }

    fn flush(&self) {}
}

fn lines_lock() -> MutexGuard<'static, Vec<Line>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One test's turn, with the lines that are written in it.
struct Turn(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Turn {
    fn take() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever comes first installs it; the others find theirs.
        let _ = log::set_logger(&Recorder);
        log::set_max_level(LevelFilter::Debug);
        lines_lock().clear();
        Self(guard)
    }

    fn lines(&self, wanted: impl Fn(&Line) -> bool) -> Vec<Line> {
        lines_lock()
            .iter()
            .filter(|line| wanted(line))
            .cloned()
            .collect()
    }

    fn alarms(&self) -> Vec<Line> {
        self.lines(|line| line.level <= Level::Warn)
    }

    /// The lines at INFO by which a node tells that it lost `peer`.
    fn ends_told(&self, peer: &str) -> Vec<Line> {
        self.lines(|line| {
            line.level == Level::Info
                && !matches!(line.text.as_str(), "connected" | "member up")
                && (line.is_about("peer", peer)
                    || (line.target == "swim" && line.is_about("node", peer)))
        })
    }

    /// Waits for the end of the connection to `peer`, then watches the process for a while.
    fn assert_one_end(&self, events: &Events, peer: &str, reason: &str) {
        await_end(events, peer, reason);
        self.assert_quiet(events);
        self.assert_told_once(peer, reason);
        let alarms = self.alarms();
        assert!(alarms.is_empty(), "{alarms:#?}");
    }

    fn assert_told_once(&self, peer: &str, reason: &str) {
        let told = self.ends_told(peer);
        assert_eq!(told.len(), 1, "{told:#?}");
        // Membership may be the first to know, when the peer has said that it leaves.
        let names_reason = told[0].is_about("reason", reason) || told[0].text == "member left";
        assert!(names_reason, "{told:#?}");
    }

    /// For a while nothing ends any more, and the process has next to nothing to do.
    #[expect(
        clippy::unused_self,
        reason = "whoever watches the process has its turn"
    )]
    fn assert_quiet(&self, events: &Events) {
        let since = Usage::now();
        let until = Instant::now() + WATCHED;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(event) = events.recv_timeout(left) else {
                break;
            };
            let is_end = matches!(event.kind, EventKind::Disconnected { .. });
            assert!(!is_end, "a second end: {event:?}");
        }
        // A subscriber of a node that stopped is answered at once.
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        since.assert_idle();
    }
}

fn await_end(events: &Events, peer: &str, reason: &str) {
    let seen = await_event(
        events,
        &format!("disconnected of {peer}"),
        |kind| matches!(kind, EventKind::Disconnected { node, .. } if node.as_str() == peer),
    );
    assert_eq!(seen.last().unwrap().kind.reason(), Some(reason));
}

// ---- the process

/// Processor time of the process, and of each thread by name, in ticks of 10 ms.
struct Usage {
    at: Instant,
    process: u64,
    threads: BTreeMap<String, u64>,
}

impl Usage {
    fn now() -> Self {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
            // A thread may end meanwhile.
            if let Ok(stat) = fs::read_to_string(task.path().join("stat")) {
                let (name, ticks) = parse(&stat);
                *threads.entry(name).or_default() += ticks;
            }
        }
        Self {
            at: Instant::now(),
            process: parse(&fs::read_to_string("/proc/self/stat").unwrap()).1,
            threads,
        }
    }

    fn assert_idle(&self) {
        let after = Self::now();
        let used = Duration::from_millis((after.process - self.process) * 10);
        let mut busiest = String::new();
        for (name, ticks) in &after.threads {
            let before = self.threads.get(name).copied().unwrap_or(0);
            if ticks.saturating_sub(before) > 1 {
                write!(busiest, " {name}: {} ms", (ticks - before) * 10).unwrap();
            }
        }
        let watched = after.at - self.at;
        assert!(
            used < CPU_ALLOWED,
            "{used:?} of processor time in {watched:?}:{busiest}"
        );
    }
}

/// The name in parentheses, then utime and stime as fields 14 and 15.
fn parse(stat: &str) -> (String, u64) {
    let (head, tail) = stat.rsplit_once(") ").unwrap();
    let name = head.split_once('(').unwrap().1.to_owned();
    let fields: Vec<&str> = tail.split(' ').collect();
    let ticks = |index: usize| fields[index].parse::<u64>().unwrap();
    (name, ticks(11) + ticks(12))
}

fn node_threads() -> Vec<String> {
    Usage::now()
        .threads
        .into_keys()
        .filter(|name| name.starts_with("nd-"))
        .collect()
}

// ---- the network

/// Takes datagrams and never answers.
struct BlackHole(UdpSocket);

impl BlackHole {
    fn new() -> Self {
        Self(UdpSocket::bind("127.0.0.1:0").unwrap())
    }

    fn addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// Passes datagrams on to a target, until it is told to swallow them. Its sockets stay open.
struct Relay {
    addr: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    swallows: Arc<AtomicBool>,
}

impl Relay {
    fn new() -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let addr = front.local_addr().unwrap();
        let target = Arc::new(Mutex::new(None));
        let swallows = Arc::new(AtomicBool::new(false));
        let (to, off) = (Arc::clone(&target), Arc::clone(&swallows));
        // These threads end with the process: they wait in `recv` and cost nothing.
        std::thread::spawn(move || {
            let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
            let mut datagram = [0; 2_048];
            loop {
                let Ok((length, from)) = front.recv_from(&mut datagram) else {
                    continue;
                };
                let Some(target) = *to.lock().unwrap() else {
                    continue;
                };
                let back = backs.entry(from).or_insert_with(|| {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                    back.connect(target).unwrap();
                    let (front, back_too, off) =
                        (Arc::clone(&front), Arc::clone(&back), Arc::clone(&off));
                    std::thread::spawn(move || {
                        let mut datagram = [0; 2_048];
                        loop {
                            if let Ok(length) = back_too.recv(&mut datagram)
                                && !off.load(SeqCst)
                            {
                                let _ = front.send_to(&datagram[..length], from);
                            }
                        }
                    });
                    back
                });
                if !off.load(SeqCst) {
                    let _ = back.send(&datagram[..length]);
                }
            }
        });
        Self {
            addr,
            target,
            swallows,
        }
    }

    fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = Some(target);
    }
}

fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn port_of(node: &Node) -> String {
    node.quic_addr().to_string()
}

// ---- the classes

#[test]
fn a_peer_that_shuts_down_says_so() {
    let turn = Turn::take();
    let lab = Lab::new("goodbye");
    for leaver in [0, 1] {
        lines_lock().clear();
        let nodes = lab.start(2);
        let stayer = &nodes[1 - leaver];
        let events = stayer.events();
        let report = nodes[leaver].shutdown(10 * SECOND);
        assert!(report.threads_stuck.is_empty(), "{report:?}");
        let name = nodes[leaver].id().as_str();
        turn.assert_one_end(&events, name, "closed by the peer: shutdown");
        assert!(stayer.peers().is_empty());
    }
}

#[test]
fn a_local_shutdown_ends_each_connection_once_and_leaves_no_thread() {
    let turn = Turn::take();
    let lab = Lab::new("lights-out");
    let nodes = lab.start(2);
    let events = nodes[0].events();
    let report = nodes[0].shutdown(10 * SECOND);
    assert!(report.threads_stuck.is_empty(), "{report:?}");
    turn.assert_one_end(&events, "n2", "closed here: shutdown");
    nodes[1].shutdown(10 * SECOND);
    assert_eq!(node_threads(), Vec::<String>::new());
}

#[test]
fn a_killed_peer_is_refused_by_its_host_and_dialled_with_backoff() {
    let turn = Turn::take();
    let lab = Lab::new("killed");
    // Seen from the end that accepted and from the end that dialled.
    for victim in [1, 0] {
        lines_lock().clear();
        let nodes = lab.start(2);
        let events = nodes[1 - victim].events();
        let started = Instant::now();
        nodes[victim].abort();
        let name = nodes[victim].id().as_str();
        let refused = "port refused by the peer's host";
        let is_told = victim == 0 || transport::Offload::default().connected_accept;
        let reason = if is_told {
            turn.assert_one_end(&events, name, refused);
            refused
        } else {
            // It had dialled, and nobody is told of a refusal on a socket that all share: membership is
            // the first to know.
            let silence = "nothing heard for the idle time-out";
            await_end(&events, name, silence);
            turn.assert_quiet(&events);
            assert_eq!(turn.ends_told(name).len(), 1);
            silence
        };
        let dials = turn
            .lines(|line| line.text == "dialling" && line.at > started)
            .len();
        assert!(dials <= 20, "{dials} dials within seconds");
        let rows = nodes[1 - victim].connections();
        let row = rows
            .iter()
            .find(|row| row.peer.as_ref() == Some(nodes[victim].id()));
        let last_error = row.and_then(|row| row.last_error.as_deref());
        assert_eq!(last_error, Some(reason), "{rows:?}");
    }
}

#[test]
fn a_peer_that_vanishes_is_given_up_at_the_idle_time_out() {
    let turn = Turn::take();
    let lab = Lab::new("vanished");
    let relays = [Relay::new(), Relay::new()];
    let settings = transport::Config {
        idle_timeout: 2 * SECOND,
        ping_interval: SECOND / 2,
        ..transport::Config::default()
    };
    // Only QUIC goes by the relays: membership goes on, so that dials go on too.
    let start = |name: &str, relay: &Relay, seed: Option<SocketAddr>| {
        // A relay must know the port before anybody dials it.
        let port = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        relay.lead_to(port);
        lab.builder(name)
            .bind(port)
            .gossip_bind(local())
            .advertise(relay.addr)
            .gossip_advertise(local())
            .transport(settings.clone())
            .seeds(seed.map(|seed| seed.to_string()))
            .start()
            .unwrap()
    };
    let first = start("n1", &relays[0], None);
    let second = start("n2", &relays[1], Some(relays[0].addr));
    let nodes = [first, second];
    full_mesh(&nodes, PATIENCE);
    let events = nodes.each_ref().map(Node::events);
    for relay in &relays {
        relay.swallows.store(true, SeqCst);
    }
    turn.assert_one_end(&events[0], "n2", "nothing heard for the idle time-out");
    turn.assert_one_end(&events[1], "n1", "nothing heard for the idle time-out");
    for relay in &relays {
        relay.swallows.store(false, SeqCst);
    }
    full_mesh(&nodes, PATIENCE);
}

#[test]
fn a_seed_that_is_a_black_hole_delays_nothing_and_is_given_up_after_five_seconds() {
    let turn = Turn::take();
    let lab = Lab::new("hole");
    let hole = BlackHole::new();
    let addr = hole.addr();
    let hub = lab.builder("n9").start().unwrap();
    let node = lab
        .builder("n1")
        .seed(addr.to_string())
        .seed(port_of(&hub))
        .start()
        .unwrap();
    node.wait_ready(Ready::Started, PATIENCE).unwrap();
    node.wait_ready(Ready::Peers(1), PATIENCE).unwrap();
    let dial_is =
        |text: &'static str| move |line: &Line| line.text == text && line.is_about("addr", addr);
    let (begun, ended) = (dial_is("dialling"), dial_is("handshake ended"));
    // Ready and connected, while the dial of the black hole is still under way.
    assert!(turn.lines(ended).is_empty(), "it was waited for");
    let rows = node.connections();
    let dial = rows.iter().find(|row| row.addr == addr).unwrap();
    assert_eq!(dial.state, ConnectionState::Handshaking);

    eventually("the end of the dial", || !turn.lines(ended).is_empty());
    let (begun, ended) = (&turn.lines(begun)[0], &turn.lines(ended)[0]);
    assert!(ended.is_about("reason", "no answer within 5s"), "{ended:?}");
    let took = ended.at - begun.at;
    let allowed = Duration::from_millis(4_500)..=Duration::from_millis(5_500);
    assert!(allowed.contains(&took), "{took:?}");
    let since = Usage::now();
    std::thread::sleep(WATCHED);
    since.assert_idle();
    assert_eq!(turn.ends_told("n9").len(), 0);
    assert!(turn.alarms().is_empty(), "{:#?}", turn.alarms());
}

#[test]
fn a_dial_of_a_closed_port_is_refused_and_repeated_with_backoff() {
    let turn = Turn::take();
    let lab = Lab::new("closed");
    let node = lab.builder("n1").start().unwrap();
    let port = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = node.join(&[port.to_string()], PATIENCE).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("port refused by the peer's host"), "{told}");
    let since = Usage::now();
    std::thread::sleep(WATCHED);
    since.assert_idle();
    let gaps = gaps(&turn, port);
    assert!(!gaps.is_empty() && gaps.len() <= 20, "{gaps:?}");
    assert_backoff(&gaps);
    let told = turn.lines(|line| line.level <= Level::Info && line.target == "transport");
    assert!(told.is_empty(), "{told:#?}");
}

/// The gaps between the end of a dial of `addr` and the begin of the next one.
fn gaps(turn: &Turn, addr: SocketAddr) -> Vec<Duration> {
    let dials = turn.lines(|line| line.text == "dialling" && line.is_about("addr", addr));
    let ends = turn.lines(|line| line.text == "handshake ended" && line.is_about("addr", addr));
    let pairs = ends.iter().zip(dials.iter().skip(1));
    pairs.map(|(end, dial)| dial.at - end.at).collect()
}

fn assert_backoff(gaps: &[Duration]) {
    for (failures, gap) in gaps.iter().enumerate() {
        let factor = 1_u32
            .checked_shl(u32::try_from(failures).unwrap())
            .unwrap_or(u32::MAX);
        let bound = Duration::from_millis(100)
            .saturating_mul(factor)
            .min(10 * SECOND);
        assert!(*gap <= bound + SLACK, "gap {failures} of {gaps:?}");
    }
}

#[test]
fn dials_of_black_holes_follow_the_backoff() {
    let turn = Turn::take();
    let lab = Lab::new("backoff");
    let (seed, member) = (BlackHole::new(), BlackHole::new());
    let settings = transport::Config {
        dial_timeout: SECOND / 2,
        ..transport::Config::default()
    };

    // A seed, with nobody else there.
    let alone = lab
        .builder("n7")
        .transport(settings.clone())
        .seed(seed.addr().to_string())
        .start()
        .unwrap();
    // It has failed once, so there is nothing to wait for.
    alone.wait_ready(Ready::Started, PATIENCE).unwrap();

    // A member: both know each other by the hub, and neither reaches the other.
    let hub = lab.builder("n9").start().unwrap();
    let start = |name: &str| {
        lab.builder(name)
            .transport(settings.clone())
            .advertise(member.addr())
            .gossip_advertise(local())
            .seed(port_of(&hub))
            .start()
            .unwrap()
    };
    let nodes = [start("n1"), start("n2")];
    let row = || {
        let rows = nodes[0].connections();
        rows.into_iter().find(|row| row.peer == Some(id("n2")))
    };
    eventually("some dials of the member", || {
        row().is_some_and(|row| row.dials >= 5 && row.state == ConnectionState::Down)
    });
    let shown = row().unwrap();
    assert_eq!(shown.last_error.as_deref(), Some("no answer within 500ms"));
    eventually("some dials of the seed", || {
        gaps(&turn, seed.addr()).len() >= 5
    });
    assert_backoff(&gaps(&turn, seed.addr()));
    // n2 dials that address too, for n1, so the lines of both are mixed: the counter tells.
    let lines = turn.lines(|line| {
        line.text == "dialling"
            && line.is_about("node", "n2")
            && line.is_about("addr", member.addr())
    });
    let starts: Vec<Duration> = lines
        .windows(2)
        .map(|pair| (pair[1].at - pair[0].at).saturating_sub(SECOND / 2))
        .collect();
    assert!(starts.len() >= 4, "{lines:#?}");
    assert_backoff(&starts);

    let since = Usage::now();
    std::thread::sleep(WATCHED);
    since.assert_idle();
    assert!(turn.alarms().is_empty(), "{:#?}", turn.alarms());
    for name in ["n1", "n2"] {
        let told = turn.lines(|line| {
            line.level == Level::Info && line.target == "transport" && line.is_about("peer", name)
        });
        // Only that the hub connected to them.
        assert!(
            told.iter().all(|line| line.text == "connected"),
            "{told:#?}"
        );
    }
}

#[test]
fn a_peer_that_has_forgotten_the_connection_resets_it() {
    let turn = Turn::take();
    let lab = Lab::new("amnesia");
    let identity = lab.identity("n1");
    let start = |bind: SocketAddr, gossip: SocketAddr| {
        Node::builder(identity.clone())
            .profile(nodosum::Profile::Local)
            .bind(bind)
            .gossip_bind(gossip)
            .start()
    };
    let first = start(local(), local()).unwrap();
    let (quic, gossip) = (first.quic_addr(), first.gossip_addr());
    let second = lab.builder("n2").seed(quic.to_string()).start().unwrap();
    second.wait_ready(Ready::Peers(1), PATIENCE).unwrap();
    let events = second.events();
    first.abort();
    drop(first);
    let again = start(quic, gossip).unwrap();
    turn.assert_one_end(
        &events,
        "n1",
        "the peer forgot the connection (stateless reset)",
    );
    again.wait_ready(Ready::Peers(1), PATIENCE).unwrap();
    full_mesh(&[again, second], PATIENCE);
}

#[test]
fn a_tls_alert_is_told_once_however_often_it_comes() {
    let turn = Turn::take();
    let (lab, twin) = (Lab::new("alert"), Lab::new("alert"));
    let node = lab.builder("n1").start().unwrap();
    let stranger = twin.builder("n2").seed(port_of(&node)).start().unwrap();
    let ours = "TLS: unknown certificate authority (we refused the peer)";
    let theirs = "TLS: unknown certificate authority (peer refused us)";
    let ends = |reason: &'static str| {
        turn.lines(|line| line.text == "handshake ended" && line.is_about("reason", reason))
    };
    eventually("several refusals, seen from both ends", || {
        ends(ours).len() >= 3 && ends(theirs).len() >= 3
    });
    stranger.wait_ready(Ready::Started, PATIENCE).unwrap();
    let before = ends(ours).len();
    let since = Usage::now();
    std::thread::sleep(WATCHED);
    since.assert_idle();
    let dials = ends(ours).len() - before;
    assert!(dials <= 20, "{dials} dials within {WATCHED:?}");
    // A certificate that is not accepted needs a person: one line from each node, and no more.
    let alarms = turn.alarms();
    assert_eq!(alarms.len(), 2, "{alarms:#?}");
    for reason in [ours, theirs] {
        let told = alarms.iter().filter(|line| line.is_about("error", reason));
        assert_eq!(told.count(), 1, "{alarms:#?}");
    }
    let informed = turn.lines(|line| line.level == Level::Info && line.target == "transport");
    assert!(informed.is_empty(), "{informed:#?}");
}

/// A raw dialler that `node` reports as connected.
fn connected(lab: &Lab, node: &Node, events: &Events, name: &str) -> Raw {
    let issued = lab.authority.issue(&id(name), 60 * 60 * SECOND).unwrap();
    let mut raw = Raw::dial(
        node.quic_addr(),
        None,
        &mut config(Some(&issued.into()), &[ALPN]),
    );
    let mut opening = preamble(StreamKind::Control, "");
    for frame in [
        Control::Hello(hello(name, lab.cluster())),
        Control::Ready,
        Control::Use,
    ] {
        opening.extend(control(frame));
    }
    raw.push(CONTROL, opening);
    // With it came the confirmation of the handshake. Before that, quiche seals a transport close
    // with handshake keys, which the node has dropped.
    raw.until("the node's HELLO", |raw| !raw.control_frames().is_empty());
    raw.until("connected", |_| {
        std::iter::from_fn(|| events.try_recv())
            .any(|event| matches!(event.kind, EventKind::Connected { .. }))
    });
    raw
}

#[test]
fn closes_of_every_other_kind_are_told_apart() {
    let turn = Turn::take();
    let lab = Lab::new("kinds");
    let node = lab.builder("n1").start().unwrap();
    let events = node.events();
    type Ending = fn(&mut Raw);
    let cases: [(&str, Ending, &str); 5] = [
        (
            "a1",
            |raw| raw.quic.close(true, 4_711, b"whim").unwrap(),
            "closed by the peer: code 4711",
        ),
        (
            "a2",
            |raw| raw.quic.close(true, 5, b"").unwrap(),
            "closed by the peer: overloaded",
        ),
        (
            "a3",
            |raw| raw.quic.close(false, 0xa, b"").unwrap(),
            "QUIC transport error 0xa (peer refused us)",
        ),
        (
            "a4",
            |raw| raw.push(CONTROL, unit(&[0xff; 32])),
            "closed here: protocol violation",
        ),
        (
            "a5",
            |raw| raw.quic.close(false, 0x100 + 45, b"").unwrap(),
            "TLS: certificate expired (peer refused us)",
        ),
    ];
    for (name, end, reason) in cases {
        let mut raw = connected(&lab, &node, &events, name);
        end(&mut raw);
        raw.until("the end", |raw| {
            raw.quic.is_draining() || raw.quic.is_closed()
        });
        await_end(&events, name, reason);
    }
    turn.assert_quiet(&events);
    for (name, _, reason) in cases {
        turn.assert_told_once(name, reason);
    }
    // A certificate that is not accepted needs a person.
    let alarms = turn.alarms();
    assert_eq!(alarms.len(), 1, "{alarms:#?}");
    assert!(alarms[0].is_about("error", cases[4].2), "{alarms:#?}");
}
