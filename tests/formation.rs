//! Clusters that form: everyone at once, without seeds that answer, and again after a crash; and
//! that nothing stays behind when they end.
//!
//! The tests count the threads and descriptors of the whole process, so that they run one at a
//! time.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "real nodes run against the real clock; tests panic and print, in their helpers too"
)]
#![cfg(all(feature = "ca", target_os = "linux"))]

#[path = "support/cluster.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, UdpSocket},
    sync::{
        Barrier, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nodosum::{App, BootId, ConnectionState, MemberStatus, Node, NotReady, Profile, Ready, Side};
use support::{Lab, PATIENCE, eventually, full_mesh, id};

const SECOND: Duration = Duration::from_secs(1);

static ALONE: Mutex<()> = Mutex::new(());

/// What the process holds: descriptors, and threads of nodes.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: Vec<String>,
}

impl Held {
    fn now() -> Self {
        // A thread may end between the listing and the reading.
        let names = fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim().to_owned());
        Self {
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            threads: names.filter(|name| name.starts_with("nd-")).collect(),
        }
    }
}

/// Lines at WARN and above: none of what happens here is worth one.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Capture;

impl log::Log for Capture {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let (level, target) = (record.level(), record.target());
            let line = format!("{level} {target}: {}", record.args());
            eprintln!("{line}");
            WARNINGS.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

/// A test that has the process to itself, and its counts at the start.
struct Alone {
    _guard: MutexGuard<'static, ()>,
    baseline: Held,
}

impl Alone {
    fn begin() -> Self {
        let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        raise_descriptor_limit();
        // The first test sets it; the others find it set.
        if log::set_logger(&Capture).is_ok() {
            log::set_max_level(log::LevelFilter::Warn);
        }
        WARNINGS.lock().unwrap().clear();
        // A test that failed may have left nodes that are just ending.
        eventually("threads of an earlier test ended", || {
            Held::now().threads.is_empty()
        });
        Self {
            _guard: guard,
            baseline: Held::now(),
        }
    }

    /// Everything that was started is gone, and nothing was worth a warning.
    fn end(&self) {
        let deadline = Instant::now() + 10 * SECOND;
        // A joined thread is listed for a moment longer.
        while Held::now() != self.baseline && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert_eq!(Held::now(), self.baseline);
        assert_eq!(*WARNINGS.lock().unwrap(), Vec::<String>::new());
    }
}

/// 25 nodes hold about 1,300 descriptors, more than many systems allow at first.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

/// A port that nobody has, below those that the system hands out by itself, so that it stays free
/// until it is bound.
fn free_addr() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = std::process::id() as u16 ^ 0x2a55;
        let port = 10_000 + offset.wrapping_add(NEXT.fetch_add(7, Relaxed)) % 20_000;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}

/// Exactly one connection per pair, and the same one at both ends.
fn one_connection_per_pair(nodes: &[Node]) -> Result<(), String> {
    let mut sides = BTreeMap::new();
    for node in nodes {
        let rows = node.connections();
        if rows.len() != nodes.len() - 1 {
            return Err(format!("{} has {} rows: {rows:#?}", node.id(), rows.len()));
        }
        for row in rows {
            let peer = row.peer.ok_or("a row without a peer")?;
            if row.state != ConnectionState::Established {
                return Err(format!("{} to {peer} is {:?}", node.id(), row.state));
            }
            let side = row.side.ok_or("an established row without a side")?;
            if sides.insert((node.id().clone(), peer), side).is_some() {
                return Err(format!("{} has two connections to one peer", node.id()));
            }
        }
    }
    for ((node, peer), side) in &sides {
        let other = sides.get(&(peer.clone(), node.clone()));
        let wanted = match side {
            Side::Dialed => Side::Accepted,
            Side::Accepted => Side::Dialed,
        };
        if other != Some(&wanted) {
            return Err(format!("{node} to {peer}: {side:?} and {other:?}"));
        }
    }
    let pairs = nodes.len() * (nodes.len() - 1) / 2;
    if sides.len() == 2 * pairs {
        Ok(())
    } else {
        Err(format!("{} ends for {pairs} pairs", sides.len()))
    }
}

fn await_one_connection_per_pair(nodes: &[Node], patience: Duration) {
    let deadline = Instant::now() + patience;
    while let Err(why) = one_connection_per_pair(nodes) {
        assert!(Instant::now() < deadline, "after {patience:?}: {why}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Starts `count` nodes at the same moment; each has the first `seeds` as its seeds, so that those
/// have themselves among them.
fn start_at_once(lab: &Lab, count: usize, seeds: usize) -> Vec<Node> {
    let addrs: Vec<SocketAddr> = (0..count).map(|_| free_addr()).collect();
    let seeds: Vec<String> = addrs[..seeds].iter().map(ToString::to_string).collect();
    let builders: Vec<_> = addrs
        .iter()
        .enumerate()
        .map(|(i, addr)| {
            lab.builder(&format!("n{}", i + 1))
                .bind(*addr)
                .gossip_bind(SocketAddr::from(([127, 0, 0, 1], 0)))
                .seeds(&seeds)
        })
        .collect();
    let barrier = Barrier::new(count);
    std::thread::scope(|scope| {
        let starting: Vec<_> = builders
            .into_iter()
            .map(|builder| {
                scope.spawn(|| {
                    barrier.wait();
                    builder.start().unwrap()
                })
            })
            .collect();
        starting
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    })
}

/// Shuts all down in parallel. The bound is the issue's.
fn shut_down(nodes: &[Node]) {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for node in nodes {
            scope.spawn(|| {
                let report = node.shutdown(10 * SECOND);
                assert_eq!(report.threads_stuck, Vec::<String>::new(), "{}", node.id());
            });
        }
    });
    let took = started.elapsed();
    assert!(took < 10 * SECOND, "shutdown took {took:?}");
}

fn forms_at_once(cluster: &str, count: usize, seeds: usize) {
    let alone = Alone::begin();
    let lab = Lab::new(cluster);
    let started = Instant::now();
    let nodes = start_at_once(&lab, count, seeds);
    for node in &nodes {
        node.wait_ready(Ready::Started, PATIENCE).unwrap();
    }
    full_mesh(&nodes, PATIENCE.saturating_sub(started.elapsed()));
    for node in &nodes {
        node.wait_ready(Ready::FullMesh, SECOND).unwrap();
    }
    eprintln!("{count} nodes: full mesh after {:?}", started.elapsed());
    await_one_connection_per_pair(&nodes, PATIENCE);
    eprintln!("{count} nodes: settled after {:?}", started.elapsed());
    shut_down(&nodes);
    for node in &nodes {
        assert_eq!(
            node.wait_ready(Ready::Started, SECOND),
            Err(NotReady::Stopped)
        );
    }
    drop(nodes);
    alone.end();
}

#[test]
fn ten_nodes_that_start_at_once_form_a_full_mesh_and_leave_nothing_behind() {
    forms_at_once("ten", 10, 10);
}

#[test]
fn twenty_five_nodes_that_start_at_once_form_a_full_mesh_and_leave_nothing_behind() {
    forms_at_once("twentyfive", 25, 3);
}

#[test]
fn a_first_node_becomes_ready_although_its_seeds_are_closed_ports_and_black_holes() {
    let alone = Alone::begin();
    let lab = Lab::new("unreachable");
    // Bound and never read: what is sent there is lost without a word.
    let black_hole = UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = free_addr().to_string();
    let silent = black_hole.local_addr().unwrap().to_string();
    for seeds in [vec![&closed], vec![&silent], vec![&closed, &silent]] {
        let started = Instant::now();
        let node = lab.builder("n1").seeds(seeds.clone()).start().unwrap();
        let start_took = started.elapsed();
        assert!(start_took < 2 * SECOND, "start took {start_took:?}");
        if seeds.contains(&&silent) {
            // The dial of the black hole takes 5 s; until then the answer says what is awaited.
            let asked = Instant::now();
            let error = node
                .wait_ready(Ready::Started, Duration::from_millis(200))
                .unwrap_err();
            assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
            let NotReady::Timeout { missing, .. } = &error else {
                panic!("{error:?}");
            };
            assert!(
                missing.iter().any(|line| line.contains(&silent)),
                "{error} does not name the seed"
            );
        }
        node.wait_ready(Ready::Started, PATIENCE).unwrap();
        assert!(node.status().ready);
        shut_down(&[node]);
    }
    drop(black_hole);
    alone.end();
}

#[test]
fn waiting_for_what_does_not_come_answers_in_time_and_says_what_is_missing() {
    let alone = Alone::begin();
    let lab = Lab::new("waiting");
    let nodes = lab.start(2);
    let missing = |ready: Ready| {
        let asked = Instant::now();
        let timeout = Duration::from_millis(300);
        let error = nodes[0].wait_ready(ready, timeout).unwrap_err();
        let took = asked.elapsed();
        assert!(took >= timeout && took < timeout + SECOND, "{took:?}");
        match error {
            NotReady::Timeout { waited, missing } => {
                assert_eq!(waited, timeout);
                missing.join("; ")
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(missing(Ready::Members(3)), "2 of 3 members alive");
    assert_eq!(missing(Ready::Peers(5)), "1 of 5 peers connected");
    nodes[1].abort();
    eventually("the connection to n2 is over", || {
        nodes[0].peers().is_empty()
    });
    let text = missing(Ready::Peers(1));
    assert!(text.contains("0 of 1 peers connected"), "{text}");
    let is_alive = |node: &Node| {
        node.members()
            .iter()
            .any(|m| m.node == id("n2") && m.status == MemberStatus::Alive)
    };
    match nodes[0].wait_ready(Ready::FullMesh, Duration::from_millis(300)) {
        Err(NotReady::Timeout { missing, .. }) => {
            let text = missing.join("; ");
            assert!(text.contains("no connection to n2"), "{text}");
        }
        // It was found dead meanwhile, and what is left is a full mesh.
        outcome => assert!(outcome.is_ok() && !is_alive(&nodes[0]), "{outcome:?}"),
    }
    // Nobody waits for a node that is shut down, whoever began to wait before.
    let waiter = {
        let node = nodes[0].clone();
        std::thread::spawn(move || node.wait_ready(Ready::Peers(9), PATIENCE))
    };
    shut_down(&nodes);
    assert_eq!(waiter.join().unwrap(), Err(NotReady::Stopped));
    for ready in [
        Ready::Started,
        Ready::Peers(0),
        Ready::Members(1),
        Ready::FullMesh,
    ] {
        let asked = Instant::now();
        assert_eq!(nodes[0].wait_ready(ready, PATIENCE), Err(NotReady::Stopped));
        assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
    }
    drop(nodes);
    alone.end();
}

/// Answers each request with the node's boot id, so that the asker learns which life answered.
fn answers_with_its_life(node: &Node) -> App {
    let app = node.register("life").unwrap();
    let boot = node.boot_id().0.to_vec();
    app.on_request(1, move |_| Ok(boot.clone())).unwrap();
    app
}

/// Three nodes; the third is killed and comes back ten times.
fn rejoins_ten_times(cluster: &str, mut moves: impl FnMut(u32) -> bool) {
    let alone = Alone::begin();
    let lab = Lab::new(cluster);
    let mut nodes = lab.start(3);
    let mut apps: Vec<App> = nodes.iter().map(answers_with_its_life).collect();
    await_one_connection_per_pair(&nodes, PATIENCE);
    let seeds = [
        nodes[0].quic_addr().to_string(),
        nodes[1].quic_addr().to_string(),
    ];
    let mut slowest = Duration::ZERO;
    for round in 0..10 {
        let old = nodes.pop().unwrap();
        drop(apps.pop());
        old.abort();
        let started = Instant::now();
        let mut builder = lab.builder("n3").seeds(&seeds);
        if !moves(round) {
            builder = builder.bind(old.quic_addr()).gossip_bind(old.gossip_addr());
        }
        drop(old);
        let new = builder.start().unwrap();
        let boot = new.boot_id();
        apps.push(answers_with_its_life(&new));
        nodes.push(new);
        let patience = 10 * SECOND;
        let deadline = started + patience;
        loop {
            let outcome = is_whole_again(&nodes, &apps, boot);
            match outcome {
                Ok(()) => break,
                Err(why) => {
                    assert!(Instant::now() < deadline, "round {round}: {why}");
                    std::thread::park_timeout(Duration::from_millis(5));
                }
            }
        }
        slowest = slowest.max(started.elapsed());
    }
    eprintln!("{cluster}: slowest rejoin {slowest:?}");
    // Nothing is replaced any more once it has settled.
    await_one_connection_per_pair(&nodes, SECOND);
    drop(apps);
    shut_down(&nodes);
    drop(nodes);
    alone.end();
}

/// Everyone knows the third node's new life, is connected to everyone by one connection, and gets
/// answers; those from the third node come from its new life.
fn is_whole_again(nodes: &[Node], apps: &[App], boot: BootId) -> Result<(), String> {
    one_connection_per_pair(nodes)?;
    for (node, app) in nodes.iter().zip(apps) {
        let members = node.members();
        let member = members
            .iter()
            .find(|m| m.node == id("n3"))
            .ok_or_else(|| format!("{} does not know n3", node.id()))?;
        if member.boot != boot || member.status != MemberStatus::Alive {
            return Err(format!("{} sees {member:?}", node.id()));
        }
        for other in nodes.iter().filter(|other| other.id() != node.id()) {
            let answer = app
                .request(other.id(), b"", 2 * SECOND)
                .map_err(|error| format!("{} to {}: {error}", node.id(), other.id()))?;
            if answer != other.boot_id().0 {
                return Err(format!("an old life of {} answered", other.id()));
            }
        }
    }
    Ok(())
}

#[test]
fn a_killed_node_that_starts_again_on_its_ports_is_connected_within_ten_seconds() {
    rejoins_ten_times("sameports", |_| false);
}

#[test]
fn a_killed_node_that_starts_again_on_new_ports_is_connected_within_ten_seconds() {
    rejoins_ten_times("newports", |_| true);
}

#[test]
fn of_two_nodes_that_dial_each_other_one_connection_survives() {
    let alone = Alone::begin();
    let lab = Lab::new("cross");
    for _ in 0..10 {
        let nodes = start_at_once(&lab, 2, 2);
        full_mesh(&nodes, PATIENCE);
        await_one_connection_per_pair(&nodes, PATIENCE);
        shut_down(&nodes);
    }
    alone.end();
}

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap();
    pages * rustix::param::page_size()
}

#[test]
fn the_drop_of_the_last_handle_ends_every_thread_although_an_application_handle_is_kept() {
    let alone = Alone::begin();
    let lab = Lab::new("dropped");
    let mut nodes = lab.start(2);
    let apps: Vec<App> = nodes.iter().map(answers_with_its_life).collect();
    apps[0].request(nodes[1].id(), b"", PATIENCE).unwrap();
    let clone = nodes.remove(0);
    drop(nodes);
    eventually("n2 is disconnected", || clone.peers().is_empty());
    drop(clone);
    alone.end();
    drop(apps);
}

#[test]
fn two_hundred_connections_that_come_and_go_leave_no_thread_descriptor_or_memory() {
    const CYCLES: u32 = 200;
    const WARM_UP: u32 = 50;
    const MAX_GROWTH_BYTES: usize = 5 << 20;
    let alone = Alone::begin();
    // In a process of its own: what other tests have used and given back would hide a leak.
    const CHILD: &str = "NODOSUM_TEST_LEAK_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let name = "two_hundred_connections_that_come_and_go_leave_no_thread_descriptor_or_memory";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = [child.stdout, child.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        eprintln!("{said}");
        assert!(child.status.success() && said.contains("1 passed"));
        return;
    }
    let lab = Lab::new("leak");
    let stayer = lab.builder("n1").profile(Profile::Local).start().unwrap();
    stayer.wait_ready(Ready::Started, PATIENCE).unwrap();
    // A thread bears its name only from its first moment on a processor.
    let own = ["nd-reactor", "nd-time"];
    eventually("its threads have their names", || {
        let threads = Held::now().threads;
        own.iter().all(|name| threads.iter().any(|t| t == name))
    });
    let mut idle = Held::now();
    // A thread that connections share is started for the first of them, and stays.
    if std::env::var("NODOSUM_WITHOUT").is_ok_and(|without| without.contains("threads")) {
        idle.threads.push("nd-peers-0".to_owned());
    }
    let seed = stayer.quic_addr().to_string();
    let identity = lab.identity("n2");
    let mut warm = 0;
    for cycle in 1..=CYCLES {
        let guest = Node::builder(identity.clone())
            .profile(Profile::Local)
            .seed(&seed)
            .start()
            .unwrap();
        let boot = guest.boot_id();
        guest.wait_ready(Ready::Peers(1), PATIENCE).unwrap();
        eventually("the stayer is connected to this life", || {
            let knows = stayer
                .members()
                .iter()
                .any(|m| m.node == id("n2") && m.boot == boot);
            knows && !stayer.peers().is_empty()
        });
        if cycle % 2 == 0 {
            guest.abort();
        } else {
            guest.shutdown(10 * SECOND);
        }
        drop(guest);
        if cycle == WARM_UP {
            eventually("only the stayer is left", || Held::now() == idle);
            warm = resident_bytes();
        }
    }
    eventually("only the stayer is left", || Held::now() == idle);
    let grown = resident_bytes().saturating_sub(warm);
    eprintln!("{warm} bytes resident after the warm-up, {grown} more at the end");
    assert!(grown < MAX_GROWTH_BYTES, "grew by {grown} bytes");
    shut_down(&[stayer]);
    alone.end();
}
