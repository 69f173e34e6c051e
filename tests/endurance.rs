//! Much, often and at once: transfers through small windows, very many requests, nodes that dial each
//! other at the same time, handshakes in bulk, and a peer that is killed under load. Nothing is lost,
//! doubled or out of order, nobody waits for long, and nothing is left over.
//!
//! `cargo test` does a little of each. `./run endurance` sets `NODOSUM_FULL` and does all of it, on a
//! machine that does nothing else: then the bounds in time are the promised ones.
//!
//! Threads and descriptors of the process are counted, so the tests run one after the other.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "real nodes and threads run against the real clock; tests panic and print, in their helpers too"
)]
#![cfg(target_os = "linux")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/process.rs"]
mod process;
#[path = "support/relay.rs"]
mod relay;

use std::{
    fs,
    io::{Read, Write},
    sync::{
        Arc, Barrier, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use cluster::{Lab, PATIENCE, eventually, full_mesh};
use nodosum::{
    App, ConnectionState, EventKind, Events, Identity, Node, NodeId, Profile, Ready, RequestError,
    SendErrorKind, Stream, transport::Config,
};

const SECOND: Duration = Duration::from_secs(1);

/// No request takes so long.
const LONGEST_REQUEST: Duration = SECOND;

/// How long a handshake may take among others. Beside other work, only that no first datagram was lost:
/// it is sent again after a second.
fn longest_handshake() -> Duration {
    if is_full() {
        SECOND / 2
    } else {
        SECOND * 9 / 10 + by_others()
    }
}

/// What other processes may take away while `cargo test` runs everything.
fn by_others() -> Duration {
    if is_full() {
        Duration::ZERO
    } else {
        5 * SECOND
    }
}

fn is_full() -> bool {
    std::env::var_os("NODOSUM_FULL").is_some()
}

/// How much is done: all of it, or a little.
fn amount(all: u64, little: u64) -> u64 {
    if is_full() { all } else { little }
}

// ---- what is left over

/// One test's turn; at its end as many threads and descriptors are there as at its beginning.
struct Turn {
    descriptors: usize,
    _turn: MutexGuard<'static, ()>,
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn node_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("nd-")).collect()
}

impl Turn {
    fn take() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(node_threads(), Vec::<String>::new());
        Self {
            descriptors: descriptors(),
            _turn: turn,
        }
    }

    fn assert_nothing_left(&self) {
        eventually("all threads are gone", || node_threads().is_empty());
        eventually("all descriptors are closed", || {
            descriptors() == self.descriptors
        });
    }
}

fn shut_down(nodes: &[Node]) {
    for node in nodes {
        let report = node.shutdown(10 * SECOND);
        assert!(report.threads_stuck.is_empty(), "{report:?}");
    }
    for node in nodes {
        assert_eq!(node.status().transport.buffered_bytes, 0);
        assert_eq!(node.status().transport.worker_panics, 0);
    }
}

/// Numbers that only depend on where they begin.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64 (Marsaglia 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

// ---- much

/// The byte at a place of a stream.
fn byte_at(at: u64) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16) ^ (at >> 24)) as u8
}

fn fill(from: u64, buffer: &mut [u8]) {
    for (offset, byte) in buffer.iter_mut().enumerate() {
        *byte = byte_at(from + offset as u64);
    }
}

fn write_all(mut stream: &Stream, bytes: u64) {
    let mut buffer = vec![0; 90_001];
    let mut at = 0;
    while at < bytes {
        let count = buffer.len().min(usize::try_from(bytes - at).unwrap());
        fill(at, &mut buffer[..count]);
        stream.write_all(&buffer[..count]).unwrap();
        at += count as u64;
    }
    stream.finish();
}

/// Reads to the end, with a pause now and then.
fn read_all(mut stream: &Stream) -> u64 {
    let (mut buffer, mut expected) = (vec![0; 70_000], vec![0; 70_000]);
    let (mut at, mut pause_at) = (0, 1 << 20);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return at;
        }
        fill(at, &mut expected[..count]);
        assert!(buffer[..count] == expected[..count], "at {at}");
        at += count as u64;
        if at >= pause_at {
            pause_at += 1 << 20;
            // A reader that does something else for a while; nothing is waited for.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_quarter_gigabyte_passes_through_small_windows_while_the_reader_pauses() {
    let turn = Turn::take();
    let lab = Lab::new("endurance-windows");
    let config = || Config {
        stream_window: 64 << 10,
        ..Config::default()
    };
    let first = lab.builder("n1").transport(config()).start().unwrap();
    let seed = first.quic_addr().to_string();
    let second = lab.builder("n2").seed(seed).transport(config());
    let nodes = [first, second.start().unwrap()];
    full_mesh(&nodes, PATIENCE);
    let here = nodes[0].register("bytes").unwrap();
    let there = nodes[1].register("bytes").unwrap();
    let bytes = amount(256, 8) << 20;
    let began = Instant::now();
    let opened = here.open_stream(nodes[1].id(), 10 * SECOND).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| write_all(&opened, bytes));
        let accepted = there.streams().recv_timeout(PATIENCE).unwrap();
        assert_eq!(read_all(&accepted), bytes);
    });
    eprintln!("{} MiB in {:?}", bytes >> 20, began.elapsed());
    drop(opened);
    shut_down(&nodes);
    drop((here, there, nodes));
    turn.assert_nothing_left();
}

/// Requests of one thread, each a number of its own. Returns the longest time that one took.
fn ask(app: &App, to: &NodeId, thread: u64, count: u64) -> Duration {
    let mut longest = Duration::ZERO;
    for round in 0..count {
        let number = thread << 32 | round;
        let began = Instant::now();
        let answer = app.request(to, number.to_be_bytes(), PATIENCE);
        longest = longest.max(began.elapsed());
        assert_eq!(answer, Ok((!number).to_be_bytes().to_vec()));
    }
    longest
}

#[test]
fn a_million_requests_of_sixteen_threads_are_each_answered_once_and_soon() {
    const THREADS: u64 = 16;
    let turn = Turn::take();
    let nodes = Lab::new("endurance-requests").start(2);
    let here = nodes[0].register("orders").unwrap();
    let there = nodes[1].register("orders").unwrap();
    // What the other end was asked: how often, and what all of it adds up to.
    let asked = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let counted = Arc::clone(&asked);
    there.on_request_inline(move |request| {
        let number = request.payload[..].try_into().map_err(|_| "no number")?;
        let number = u64::from_be_bytes(number);
        counted.0.fetch_add(1, Relaxed);
        counted.1.fetch_add(number, Relaxed);
        Ok((!number).to_be_bytes().to_vec())
    });
    // Messages of the same application beside them keep their order.
    let messages = amount(200_000, 4_000);
    let (seen, order) = std::sync::mpsc::channel();
    there.on_message_inline(move |message| {
        let number = message.payload[..].try_into().unwrap();
        seen.send(u64::from_be_bytes(number)).unwrap();
    });
    let each = amount(1_000_000, 16_000) / THREADS;
    let to = nodes[1].id();
    let began = Instant::now();
    let longest = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..messages {
                here.send(to, number.to_be_bytes(), PATIENCE).unwrap();
            }
        });
        let ask = |thread| {
            scope.spawn({
                let here = &here;
                move || ask(here, to, thread, each)
            })
        };
        let asking: Vec<_> = (0..THREADS).map(ask).collect();
        let longest = asking.into_iter().map(|thread| thread.join().unwrap());
        longest.max().unwrap()
    });
    eprintln!(
        "{} requests in {:?}, the longest {longest:?}",
        each * THREADS,
        began.elapsed()
    );
    assert!(longest < LONGEST_REQUEST + by_others(), "{longest:?}");
    here.flush(to, PATIENCE).unwrap();
    assert!(order.try_iter().eq(0..messages), "messages out of order");
    assert_eq!(asked.0.load(Relaxed), each * THREADS);
    let numbers = (0..THREADS).flat_map(|thread| (0..each).map(move |round| thread << 32 | round));
    assert_eq!(asked.1.load(Relaxed), numbers.fold(0, u64::wrapping_add));
    let counts = nodes[0].status().transport;
    assert_eq!((counts.replies_late, counts.requests_given_up), (0, 0));
    shut_down(&nodes);
    drop((here, there, nodes));
    turn.assert_nothing_left();
}

// ---- at once

/// The one connection of a node, once there is one, and it is in use.
fn the_connection(node: &Node) -> Option<nodosum::Side> {
    let connections = node.connections();
    let [connection] = &connections[..] else {
        return None;
    };
    let is_in_use = connection.state == ConnectionState::Established;
    connection.side.filter(|_| is_in_use)
}

/// Asks until told to stop. From the first answer on, every request is answered.
fn keep_asking(app: &App, to: &NodeId, answered: &AtomicU64, is_over: &AtomicBool) {
    while !is_over.load(Relaxed) {
        let is_first = answered.load(Relaxed) == 0;
        match app.request(to, "?", PATIENCE) {
            Ok(_) => {
                answered.fetch_add(1, Relaxed);
            }
            // Not connected yet, or the other end has not registered yet.
            Err(RequestError::NotConnected(_) | RequestError::NoHandler { .. }) if is_first => {
                thread::park_timeout(Duration::from_millis(1));
            }
            Err(error) => panic!("after {} answers: {error}", answered.load(Relaxed)),
        }
    }
}

/// The events about others, up to now.
fn about_others(events: &Events) -> Vec<EventKind> {
    let mut seen = Vec::new();
    while let Some(event) = events.recv_timeout(Duration::ZERO) {
        if !matches!(event.kind, EventKind::Ready) {
            seen.push(event.kind);
        }
    }
    seen
}

/// Two nodes start at nearly the same time, each with the other as its seed.
fn dial_each_other(lab: &Lab, delays: [Duration; 2]) {
    let addrs = [relay::free_addr(), relay::free_addr()];
    let builders = [0, 1].map(|index: usize| {
        let name = if index == 0 { "n1" } else { "n2" };
        let builder = lab.builder(name).bind(addrs[index]);
        let local = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        builder
            .gossip_bind(local)
            .seed(addrs[1 - index].to_string())
    });
    let events = builders.each_ref().map(nodosum::Builder::events);
    let together = Barrier::new(2);
    let started: Vec<(Node, App)> = thread::scope(|scope| {
        let start = |(builder, delay): (nodosum::Builder, Duration)| {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                thread::sleep(delay);
                let node = builder.start().unwrap();
                let app = node.register("orders").unwrap();
                app.on_request_inline(|request| Ok(request.payload.clone()));
                (node, app)
            })
        };
        let starting: Vec<_> = builders.into_iter().zip(delays).map(start).collect();
        starting
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let (nodes, apps): (Vec<Node>, Vec<App>) = started.into_iter().unzip();
    let is_over = AtomicBool::new(false);
    let answered = [AtomicU64::new(0), AtomicU64::new(0)];
    thread::scope(|scope| {
        let asking = [0, 1].map(|index: usize| {
            let (app, to) = (&apps[index], nodes[1 - index].id());
            let (answered, is_over) = (&answered[index], &is_over);
            scope.spawn(move || keep_asking(app, to, answered, is_over))
        });
        full_mesh(&nodes, PATIENCE);
        eventually("both have one connection, and it is the same", || {
            let sides = [the_connection(&nodes[0]), the_connection(&nodes[1])];
            matches!(sides, [Some(one), Some(other)] if one != other)
        });
        eventually("both are told of the other", || {
            nodes.iter().all(|node| node.status().members.alive == 2)
        });
        for (app, to) in apps.iter().zip([nodes[1].id(), nodes[0].id()]) {
            for _ in 0..10 {
                app.request(to, "!", PATIENCE).unwrap();
            }
        }
        eventually("both have asked all the while", || {
            answered.iter().all(|count| count.load(Relaxed) > 0)
        });
        is_over.store(true, Relaxed);
        for thread in asking {
            thread.join().unwrap();
        }
    });
    for (events, node) in events.iter().zip(&nodes) {
        let seen = about_others(events);
        let ups = seen
            .iter()
            .filter(|kind| matches!(kind, EventKind::MemberUp { .. }));
        let connects = seen
            .iter()
            .filter(|kind| matches!(kind, EventKind::Connected { .. }));
        let counts = (ups.count(), connects.count(), seen.len());
        assert_eq!(counts, (1, 1, 2), "{}: {seen:?}", node.id());
    }
    shut_down(&nodes);
}

#[test]
fn nodes_that_dial_each_other_keep_one_connection_and_lose_nothing() {
    let turn = Turn::take();
    let lab = Lab::new("endurance-dials");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let rounds = amount(2_000, 10);
    let began = Instant::now();
    for round in 0..rounds {
        let delays = [0, 1].map(|_| Duration::from_micros(random.next() % 5_001));
        if round % 100 == 0 {
            eprintln!("round {round} of {rounds} after {:?}", began.elapsed());
        }
        dial_each_other(&lab, delays);
    }
    turn.assert_nothing_left();
}

/// So many nodes connect to one at the same time. Returns the longest that one of them took.
fn connect_at_once(lab: &Lab, count: usize) -> Duration {
    let first = lab.builder("n00").start().unwrap();
    let seed = first.quic_addr().to_string();
    let names = (1..=count).map(|index| format!("n{index:02}"));
    // One connection each: they do not dial one another.
    let builders = names.map(|name| lab.builder(&name).max_connections(1).seed(&seed));
    let together = Barrier::new(count);
    let began: Vec<(Node, Duration)> = thread::scope(|scope| {
        let start = |builder: nodosum::Builder| {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                let began = Instant::now();
                let node = builder.start().unwrap();
                node.wait_ready(Ready::Peers(1), PATIENCE).unwrap();
                (node, began.elapsed())
            })
        };
        let starting: Vec<_> = builders.map(start).collect();
        starting
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let longest = began.iter().map(|(_, took)| *took).max().unwrap();
    let mut nodes: Vec<Node> = began.into_iter().map(|(node, _)| node).collect();
    nodes.push(first);
    shut_down(&nodes);
    longest
}

#[test]
fn handshakes_at_the_same_time_do_not_stall() {
    let turn = Turn::take();
    let lab = Lab::new("endurance-handshakes");
    for (count, rounds) in [(4, amount(500, 5)), (16, amount(125, 1))] {
        let mut all: Vec<Duration> = (0..rounds).map(|_| connect_at_once(&lab, count)).collect();
        all.sort_unstable();
        let (median, longest) = (all[all.len() / 2], all[all.len() - 1]);
        eprintln!(
            "{count} at once, {rounds} times: the last after {median:?}, at most {longest:?}"
        );
        assert!(
            longest < longest_handshake(),
            "{count} at once: {longest:?}"
        );
    }
    turn.assert_nothing_left();
}

// ---- and then it is gone

/// What a call that was under way came to, and when.
#[derive(Debug)]
struct Ended {
    call: &'static str,
    at: Instant,
    error: String,
    is_typed: bool,
}

#[test]
fn every_call_ends_with_its_error_when_the_peer_is_killed_under_load() {
    let turn = Turn::take();
    let lab = process::Lab::new("endurance-kill");
    lab.certify("n1");
    let mut victim = lab.node("n2").flags(&["--profile", "local"]);
    victim.start();
    let identity = Identity::from_dir(lab.path("n1")).unwrap();
    let builder = Node::builder(identity).profile(Profile::Local);
    let node = builder.seed(&victim.quic).start().unwrap();
    node.wait_ready(Ready::Peers(1), PATIENCE).unwrap();
    let to = &cluster::id("n2");
    let app = node.register("echo").unwrap();
    let answered = AtomicU64::new(0);
    let ended = Mutex::new(Vec::new());
    let end = |call, error: String, is_typed| {
        let at = Instant::now();
        ended.lock().unwrap().push(Ended {
            call,
            at,
            error,
            is_typed,
        });
    };
    let of_request = |error: RequestError| {
        let is_typed = matches!(
            error,
            RequestError::Disconnected { .. } | RequestError::NotConnected(_)
        );
        (error.to_string(), is_typed)
    };
    let of_send = |error: SendErrorKind| {
        let is_typed = matches!(
            error,
            SendErrorKind::Disconnected { .. } | SendErrorKind::NotConnected(_)
        );
        (error.to_string(), is_typed)
    };
    let killed_at = thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let error = loop {
                    match app.request(to, "?", PATIENCE) {
                        Ok(_) => answered.fetch_add(1, Relaxed),
                        Err(error) => break error,
                    };
                };
                let (error, is_typed) = of_request(error);
                end("request", error, is_typed);
            });
        }
        scope.spawn(|| {
            let error = loop {
                let pending = app.request_async(to, vec![1; 100_000], PATIENCE);
                match pending.and_then(nodosum::PendingReply::wait) {
                    Ok(_) => answered.fetch_add(1, Relaxed),
                    Err(error) => break error,
                };
            };
            let (error, is_typed) = of_request(error);
            end("a large request", error, is_typed);
        });
        scope.spawn(|| {
            let error = loop {
                let (told, outcome) = std::sync::mpsc::channel();
                let then = move |outcome| told.send(outcome).unwrap();
                let asked = app.request_then(to, "?", PATIENCE, then);
                let outcome = asked.and_then(|()| outcome.recv_timeout(PATIENCE).unwrap());
                match outcome {
                    Ok(_) => answered.fetch_add(1, Relaxed),
                    Err(error) => break error,
                };
            };
            let (error, is_typed) = of_request(error);
            end("a function", error, is_typed);
        });
        scope.spawn(|| {
            // Nobody reads them there, so that it waits for room sooner or later.
            let error = loop {
                if let Err(error) = app.send(to, vec![2; 50_000], PATIENCE) {
                    break error.kind;
                }
            };
            let (error, is_typed) = of_send(error);
            end("send", error, is_typed);
        });
        scope.spawn(|| {
            // Nobody takes it there.
            let stream = app.open_stream(to, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE));
            (&stream).write_all(b"hello").unwrap();
            let error = (&stream).read(&mut [0; 1]).unwrap_err();
            let is_typed = error.kind() == std::io::ErrorKind::ConnectionAborted;
            end("read", error.to_string(), is_typed);
        });
        scope.spawn(|| {
            let stream = app.open_stream(to, PATIENCE).unwrap();
            stream.set_write_timeout(Some(PATIENCE));
            let error = loop {
                if let Err(error) = (&stream).write(&[3; 10_000]) {
                    break error;
                }
            };
            let is_typed = error.kind() == std::io::ErrorKind::ConnectionAborted;
            end("write", error.to_string(), is_typed);
        });
        eventually("requests are answered", || answered.load(Relaxed) > 2_000);
        let killed_at = Instant::now();
        victim.kill();
        killed_at
    });
    let ended = ended.into_inner().unwrap();
    assert_eq!(ended.len(), 21);
    for Ended {
        call,
        at,
        error,
        is_typed,
    } in &ended
    {
        let after = at.saturating_duration_since(killed_at);
        assert!(*is_typed, "{call}: {error}");
        // The host refuses the port, and a peer that is refused has a second to show that it lives.
        assert!(
            after < 2 * SECOND + by_others(),
            "{call} after {after:?}: {error}"
        );
    }
    let last = ended.iter().map(|ended| ended.at).max().unwrap();
    eprintln!("the last call ended {:?} after the kill", last - killed_at);
    let report = node.shutdown(10 * SECOND);
    assert!(report.threads_stuck.is_empty(), "{report:?}");
    drop((app, node));
    turn.assert_nothing_left();
}
