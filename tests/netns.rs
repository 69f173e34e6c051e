//! Nodes as processes in network namespaces of their own, joined by a bridge: partitions, a seed
//! that swallows everything, and nodes that come back with another address.
//!
//! This needs root, `ip` and `nft`. Without them each test says loudly that it was skipped. No
//! packet leaves the namespaces: the bridge has one of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot start has failed")]
#![expect(clippy::print_stderr, reason = "how long it took is worth reading")]
#![expect(clippy::disallowed_methods, reason = "tests measure by the real clock")]

#[path = "support/process.rs"]
mod process;

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nodosum::unversioned::{record::Record, roster::Image};
use process::{
    Lab, Node, PATIENCE, eventually, for_a_while, meshed, nothing_alarming,
    one_connection_per_pair, since, time, within,
};
use rustix::process::Signal;
use serde_json::Value;

/// All QUIC sockets are bound to this port; gossip has the next one.
const PORT: u16 = 7_946;

/// When both members on one side know that the third is dead, by src/swim/mod.rs, with the profile
/// `local`: (2n − 2) · P + D + S_min = 4 s + 0.5 s + 3 s.
const LOCAL_DEATH: Duration = Duration::from_millis(7_500);

/// How long a dial may take.
const DIAL: Duration = Duration::from_secs(5);

/// What the issue gives a cluster to be whole again, on top of the time until somebody tries.
const REJOIN: Duration = Duration::from_secs(10);

/// The slowest pace at which a dead member is dialled (`dead_retry` of src/mesh/mod.rs, 30 s, and a
/// quarter of it as jitter), and the dial that may have begun just before the heal.
const DEAD_RETRY: Duration = Duration::from_millis(37_500 + 5_000);

fn system(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    // Debian keeps administrators' tools out of a user's PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn ip(args: &[&str]) {
    let output = system("ip", args);
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}

/// Why these tests cannot run here.
fn missing(test: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let has = |program: &str| {
        path.split(':')
            .any(|dir| Path::new(dir).join(program).exists())
    };
    for program in ["ip", "nft"] {
        if !has(program) {
            return Some(format!("there is no {program}"));
        }
    }
    let probe = format!("nd{}-{test}-probe", std::process::id());
    let made = system("ip", &["netns", "add", &probe]);
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr).into_owned();
        return Some(format!("no namespace can be made: {why}"));
    }
    let table = [
        "netns", "exec", &probe, "nft", "add", "table", "inet", "probe",
    ];
    let filters = system("ip", &table);
    let bridge = ["-n", &probe, "link", "add", "br0", "type", "bridge"];
    let bridges = system("ip", &bridge);
    ip(&["netns", "delete", &probe]);
    for (tried, what) in [(filters, "nft"), (bridges, "a bridge")] {
        if !tried.status.success() {
            let why = String::from_utf8_lossy(&tried.stderr).into_owned();
            return Some(format!("{what} does not work here: {why}"));
        }
    }
    None
}

/// Namespaces `n1` to `nN` on a bridge, removed when dropped.
struct Network {
    prefix: String,
    hosts: Vec<String>,
}

impl Network {
    /// `None`, with the reason on standard error, where the system does not let us.
    fn new(test: &str, count: u8) -> Option<Self> {
        if let Some(why) = missing(test) {
            // Not `eprintln!`, which the test harness would swallow.
            let line = format!("SKIPPED: {test}: {why}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            return None;
        }
        remove_stale();
        let prefix = format!("nd{}-{test}", std::process::id());
        let mut network = Self {
            prefix,
            hosts: Vec::new(),
        };
        let switch = network.add("switch");
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        for number in 1..=count {
            let name = format!("n{number}");
            let host = network.add(&name);
            let peer = ["peer", "name", "eth0", "netns", &host];
            ip(&[
                &["-n", &switch, "link", "add", &name, "type", "veth"],
                &peer[..],
            ]
            .concat());
            ip(&["-n", &switch, "link", "set", &name, "master", "br0", "up"]);
            network.address(&name, &address(number));
            ip(&["-n", &host, "link", "set", "eth0", "up"]);
            ip(&["-n", &host, "link", "set", "lo", "up"]);
        }
        Some(network)
    }

    fn add(&mut self, name: &str) -> String {
        let namespace = self.namespace(name);
        ip(&["netns", "add", &namespace]);
        self.hosts.push(name.to_owned());
        namespace
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn address(&self, name: &str, address: &str) {
        let with_mask = format!("{address}/24");
        let namespace = self.namespace(name);
        ip(&[
            "-n", &namespace, "address", "add", &with_mask, "dev", "eth0",
        ]);
    }

    fn remove_address(&self, name: &str, address: &str) {
        let with_mask = format!("{address}/24");
        let namespace = self.namespace(name);
        ip(&[
            "-n", &namespace, "address", "del", &with_mask, "dev", "eth0",
        ]);
    }

    /// From now on what comes from `from` is swallowed at `at`, without an answer.
    fn deafen(&self, at: &str, from: &str) {
        let namespace = self.namespace(at);
        let rules = "add table inet cut; \
             add chain inet cut in { type filter hook input priority 0; }; ";
        let rules = format!("{rules} add rule inet cut in ip saddr {from} drop");
        ip(&["netns", "exec", &namespace, "nft", &rules]);
    }

    fn cut(&self, left: &[u8], right: &[u8]) {
        for one in left {
            for other in right {
                self.deafen(&format!("n{one}"), &address(*other));
                self.deafen(&format!("n{other}"), &address(*one));
            }
        }
    }

    fn heal(&self) {
        for host in self.hosts.iter().filter(|host| *host != "switch") {
            let namespace = self.namespace(host);
            // Adding it first makes the deletion work where nothing was cut.
            let rules = "add table inet cut; delete table inet cut";
            ip(&["netns", "exec", &namespace, "nft", rules]);
        }
    }

    /// A node on host `name`, with `flags`.
    fn node<'lab>(&self, lab: &'lab Lab, number: u8, flags: &[&str]) -> Node<'lab> {
        let name = format!("n{number}");
        let namespace = self.namespace(&name);
        let mut node = lab.node(&name).flags(flags);
        node.bind(&format!("{}:{PORT}", address(number)));
        node.within(&["ip", "netns", "exec", &namespace])
    }

    /// `n1` to `n3` with `n1` as the seed of the others, all connected.
    fn three<'lab>(&self, lab: &'lab Lab) -> [Node<'lab>; 3] {
        let seed = quic(1);
        let seeded = ["--profile", "local", "--seed", &seed];
        let mut nodes = [
            self.node(lab, 1, &seeded[..2]),
            self.node(lab, 2, &seeded),
            self.node(lab, 3, &seeded),
        ];
        for node in &mut nodes {
            node.start();
        }
        meshed(&nodes, PATIENCE);
        nodes
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            system("ip", &["netns", "delete", &self.namespace(host)]);
        }
    }
}

/// Namespaces of processes that were killed before they could clean up.
fn remove_stale() {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix("nd")
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            system("ip", &["netns", "delete", &name]);
        }
    }
}

fn address(number: u8) -> String {
    format!("10.77.0.{number}")
}

fn quic(number: u8) -> String {
    format!("{}:{PORT}", address(number))
}

/// No line of a loop that repeats its failure: the whole log is short, and each departure of a peer
/// is told once.
fn calm(nodes: &[Node<'_>], departures: impl Fn(&str, &str) -> usize) {
    nothing_alarming(nodes);
    for node in nodes {
        let lines = node.log().len();
        // A start takes three lines; each coming of a peer two and each going one.
        assert!(lines <= 30, "{}: {lines} lines", node.name);
        for peer in nodes {
            let told = node.departures(&peer.name);
            let expected = departures(&node.name, &peer.name);
            assert!(told <= expected, "{}: {told} of {}", node.name, peer.name);
        }
    }
}

fn one_if_cut(node: &str, peer: &str) -> usize {
    usize::from((node == "n1") != (peer == "n1"))
}

/// At the same time, so that a test run takes no longer than the longer one.
#[test]
fn partitions_of_ten_seconds_and_of_two_minutes_heal() {
    thread::scope(|scope| {
        let long = scope.spawn(two_minutes);
        ten_seconds();
        long.join().unwrap();
    });
}

fn ten_seconds() {
    let Some(network) = Network::new("short", 3) else {
        return;
    };
    let lab = Lab::new("netns-short");
    let nodes = network.three(&lab);
    network.cut(&[1], &[2, 3]);
    let cut = SystemTime::now();
    // The majority has helpers and stays healthy, so that its bound holds as it stands. The single
    // node doubts itself as well and takes longer; by now it doubts the others at least.
    for node in &nodes[1..] {
        let dead = node.await_event("member_dead", "n1", 1);
        let took = since(cut, &dead["at"]);
        assert!(took <= LOCAL_DEATH, "{}: {took:?}", node.name);
    }
    for peer in ["n2", "n3"] {
        eventually("n1 doubts both", || nodes[0].status_of(peer) != "alive");
    }
    assert_eq!(nodes[1].status_of("n3"), "alive");
    for_a_while(Duration::from_secs(10).saturating_sub(cut.elapsed().unwrap()));
    network.heal();
    // Gossip still goes to those who have been dead for less than 15 s, at least every second, so
    // that they learn of it and refute; nobody has to dial.
    meshed(&nodes, REJOIN);
    one_connection_per_pair(&nodes);
    everybody_answers(&nodes);
    calm(&nodes, one_if_cut);
}

/// Much longer than gossip goes to the dead, which is 15 s.
fn two_minutes() {
    let Some(network) = Network::new("long", 3) else {
        return;
    };
    let lab = Lab::new("netns-long");
    let nodes = network.three(&lab);
    network.cut(&[1], &[2, 3]);
    let cut = Instant::now();
    for (node, peer) in [(0, "n2"), (0, "n3"), (1, "n1"), (2, "n1")] {
        nodes[node].await_event("member_dead", peer, 1);
        nodes[node].await_event("disconnected", peer, 1);
        let conns = nodes[node].conns();
        let row = conns.iter().find(|row| row["peer"] == peer).unwrap();
        assert_ne!(row["state"], "established", "{row}");
    }
    for_a_while(Duration::from_secs(120).saturating_sub(cut.elapsed()));
    network.heal();
    // Nobody is gossiped to any more. What remains are the slow dials of dead members, which go on
    // for as long as they are remembered, from both sides.
    let healed = Instant::now();
    meshed(&nodes, DEAD_RETRY + REJOIN);
    eprintln!("healed after {:?}", healed.elapsed());
    one_connection_per_pair(&nodes);
    everybody_answers(&nodes);
    calm(&nodes, one_if_cut);
}

#[test]
fn a_restarted_node_finds_the_others_although_no_seed_is_left() {
    let Some(network) = Network::new("roster", 3) else {
        return;
    };
    let lab = Lab::new("netns-roster");
    let seed = quic(1);
    let states = ["n1.state", "n2.state", "n3.state"];
    let flags = |number: usize| {
        let flags = ["--profile", "local", "--state-dir", states[number - 1]];
        [&flags[..], &["--seed", &seed][..]].concat()
    };
    let mut nodes = [
        network.node(&lab, 1, &flags(1)[..4]),
        network.node(&lab, 2, &flags(2)),
        network.node(&lab, 3, &flags(3)),
    ];
    for node in &mut nodes {
        node.start();
    }
    meshed(&nodes, PATIENCE);
    let remembers = |node: &str, other: &str| {
        let path = lab.path(&format!("{node}.state/roster"));
        let image = fs::read(path).ok().and_then(|b| Image::decode(&b).ok());
        image.is_some_and(|image| {
            image.entries.iter().any(|entry| {
                let record = Record::decode(&entry.record.payload).unwrap();
                record.node.as_str() == other
            })
        })
    };
    eventually("n3 has saved that it knows n2", || remembers("n3", "n2"));
    let incarnation = nodes[1].member("n3")["incarnation"].as_u64();
    nodes[0].kill();
    nodes[2].kill();
    let begun = Instant::now();
    nodes[2].start();
    let left = (REJOIN + DIAL).saturating_sub(begun.elapsed());
    nodes[2].wait(2, 1, left);
    nodes[1].wait(2, 1, REJOIN);
    eprintln!("found after {:?}", begun.elapsed());
    for (node, peer) in [(1, "n3"), (2, "n2")] {
        eventually("one connection", || {
            let conns = nodes[node].conns();
            let up = |row: &&Value| row["peer"] == peer && row["state"] == "established";
            let all = |row: &&Value| row["peer"] == peer;
            conns.iter().filter(up).count() == 1 && conns.iter().filter(all).count() == 1
        });
    }
    everybody_answers(&nodes[1..]);
    assert!(nodes[1].member("n3")["incarnation"].as_u64() > incarnation);
    nothing_alarming(&nodes);
}

/// In both directions of every pair.
fn everybody_answers(nodes: &[Node<'_>]) {
    for node in nodes {
        for peer in nodes.iter().filter(|peer| peer.name != node.name) {
            assert!(node.asks(&peer.name), "{} to {}", node.name, peer.name);
        }
    }
}

#[test]
fn a_seed_that_swallows_everything_delays_nobody_and_is_tried_again() {
    let Some(network) = Network::new("hole", 3) else {
        return;
    };
    let lab = Lab::new("netns-hole");
    let (hole, other) = (quic(1), quic(2));
    let mut nodes = [
        network.node(&lab, 1, &[]),
        network.node(&lab, 2, &["--seed", &hole]),
        network
            .node(&lab, 3, &["--seed", &hole, "--seed", &other])
            .filter("debug,quiche=warn"),
    ];
    for node in &mut nodes[..2] {
        node.start();
    }
    meshed(&nodes[..2], PATIENCE);
    network.cut(&[1], &[3]);
    let started = Instant::now();
    nodes[2].start();
    nodes[2].wait(2, 1, DIAL.saturating_sub(started.elapsed()));
    let ready = started.elapsed();
    assert!(ready < DIAL / 2, "the hole delayed it: {ready:?}");
    assert_eq!(
        nodes[2].exit_code(&["wait", "--ready", "--timeout", "1s"]),
        0
    );
    assert!(nodes[2].asks("n2") && nodes[1].asks("n3"));

    // n2 tells of n1, which is alive for it: so it is dialled as a member too, and again.
    let row = || {
        let conns = nodes[2].conns();
        let row = conns.iter().find(|row| row["peer"] == "n1").cloned();
        row.unwrap_or_default()
    };
    let mut seen = Value::Null;
    eventually("a failed dial of n1 and the next one planned", || {
        seen = row();
        seen["dials"].as_u64() >= Some(1) && seen["next_dial_seconds"].is_f64()
    });
    assert_eq!(seen["state"], "down", "{seen}");
    let next = seen["next_dial_seconds"].as_f64().unwrap();
    assert!((0.0..=10.0 * 1.25).contains(&next), "{seen}");
    let error = seen["last_error"].as_str().unwrap();
    assert!(error.contains("5s"), "{error}");
    let dials = seen["dials"].as_u64();
    eventually("one more dial", || row()["dials"].as_u64() > dials);

    // How long each dial of the seed took, by the log.
    let log = nodes[2].log();
    let about_seed = |msg: &str| -> Vec<&Value> {
        log.iter()
            .filter(|line| line["msg"] == msg && line["seed"] == *hole)
            .collect()
    };
    let (begun, ended) = (about_seed("dialling"), about_seed("seed not reached"));
    assert!(!ended.is_empty(), "{log:#?}");
    for (begun, ended) in begun.iter().zip(&ended) {
        let took = since(time(&begun["ts"]), &ended["ts"]).as_secs_f64();
        assert!((4.5..=5.5).contains(&took), "{took}");
    }
    nothing_alarming(&nodes);

    network.heal();
    // The longest wait between two dials of a live member is 10 s, and one may be under way.
    meshed(&nodes, Duration::from_secs(10) + DIAL + REJOIN);
    one_connection_per_pair(&nodes);
    nothing_alarming(&nodes);
}

#[test]
fn the_only_seed_being_a_hole_makes_a_node_ready_after_one_dial() {
    let Some(network) = Network::new("alone", 2) else {
        return;
    };
    let lab = Lab::new("netns-alone");
    network.cut(&[1], &[2]);
    let hole = quic(1);
    let mut node = network
        .node(&lab, 2, &["--seed", &hole])
        .filter("debug,quiche=warn");

    // Whoever changes his mind meanwhile does not wait for the hole.
    node.start();
    let asked = Instant::now();
    node.signal(Signal::TERM);
    let status = node.ended(PATIENCE);
    let took = asked.elapsed();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(took < DIAL / 2, "the hole delayed its end: {took:?}");
    let lines_before = node.log().len();

    let started = Instant::now();
    node.start();
    let bound = started.elapsed();
    assert!(bound < DIAL / 2, "the hole delayed its start: {bound:?}");
    let conns = node.conns();
    assert_eq!(conns.len(), 1, "{conns:?}");
    assert_eq!(conns[0]["state"], "handshaking");
    assert_eq!(conns[0]["peer"], Value::Null, "its name is not known yet");
    assert_eq!(conns[0]["addr"], hole);
    assert_eq!(node.exit_code(&["wait", "--ready", "--timeout", "30s"]), 0);
    let ready = started.elapsed().as_secs_f64();
    assert!((4.5..=6.0).contains(&ready), "{ready}");
    assert_eq!(node.json(&["status"])["ready"], true);

    // The only way in is tried again after a random time below a bound that doubles.
    let mut lines = Vec::new();
    let mut about_seed = |msg: &str| -> Vec<SystemTime> {
        lines = node.log().split_off(lines_before);
        lines.retain(|line| line["msg"] == msg && line["seed"] == hole);
        lines.iter().map(|line| time(&line["ts"])).collect()
    };
    eventually("a third dial", || about_seed("dialling").len() >= 3);
    let (begun, ended) = (about_seed("dialling"), about_seed("seed not reached"));
    for (dial, (ended, next)) in ended.iter().zip(&begun[1..]).enumerate() {
        let pause = next.duration_since(*ended).unwrap_or_default();
        // A loaded machine may be late on top of it.
        let bound = Duration::from_millis(100 << dial) + Duration::from_millis(400);
        assert!(pause <= bound, "after {dial}: {pause:?}");
        let took = ended.duration_since(begun[dial]).unwrap().as_secs_f64();
        assert!((4.5..=5.5).contains(&took), "{took}");
    }
    network.heal();
    let mut seed = network.node(&lab, 1, &[]);
    seed.start();
    // By then the bound may have grown to 10 s, and a dial may be under way.
    node.wait(2, 1, Duration::from_secs(10) + DIAL + REJOIN);
    nothing_alarming(&[node, seed]);
}

#[test]
fn a_killed_node_comes_back_with_the_same_and_with_another_address() {
    let Some(network) = Network::new("rejoin", 3) else {
        return;
    };
    let lab = Lab::new("netns-rejoin");
    let mut nodes = network.three(&lab);

    // At once with the same address, then the same after its death, then with another one.
    nodes[2].kill();
    let killed = Instant::now();
    nodes[2].start();
    rejoined(&nodes, REJOIN.saturating_sub(killed.elapsed()));

    nodes[2].kill();
    for node in &nodes[..2] {
        node.await_event("member_dead", "n3", 1);
    }
    let started = Instant::now();
    nodes[2].start();
    rejoined(&nodes, REJOIN.saturating_sub(started.elapsed()));

    nodes[2].kill();
    network.remove_address("n3", &address(3));
    network.address("n3", &address(33));
    nodes[2].bind(&format!("{}:{PORT}", address(33)));
    let started = Instant::now();
    nodes[2].start();
    rejoined(&nodes, REJOIN.saturating_sub(started.elapsed()));
    for node in &nodes[..2] {
        assert_eq!(node.member("n3")["quic_addr"], format!("10.77.0.33:{PORT}"));
        let dials = node.conns();
        let row = dials.iter().find(|row| row["peer"] == "n3").unwrap();
        let addr = row["addr"].as_str().unwrap();
        assert!(addr.starts_with("10.77.0.33:"), "{row}");
    }
    calm(&nodes, |_, peer| if peer == "n3" { 3 } else { 0 });
}

/// The last node is back: requests pass both ways, on connections of its newest life.
fn rejoined(nodes: &[Node<'_>; 3], limit: Duration) {
    let started = Instant::now();
    let left = || limit.saturating_sub(started.elapsed());
    let [n1, n2, n3] = nodes;
    n3.wait(3, 2, left());
    for node in [n1, n2] {
        within(left(), "requests both ways", || {
            node.asks("n3") && n3.asks(&node.name)
        });
    }
    meshed(nodes, left());
    one_connection_per_pair(nodes);
}
