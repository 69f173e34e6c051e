//! Whatever strangers send to a node's ports, and to the very addresses of its connections, changes
//! nothing: no panic, no event, no memory, no flood of log lines, and work goes on.
//!
//! Every node sits behind relays that advertise themselves in its place. They record what passes,
//! so that garbage can be made from real datagrams, and they can send from where the peer seems to
//! be.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "real nodes, relays and threads run against the real clock; tests panic and print, in their helpers too"
)]
#![cfg(all(feature = "ca", target_os = "linux"))]

#[path = "support/relay.rs"]
mod relay;
#[path = "support/cluster.rs"]
mod support;

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nodosum::{
    App, BootId, CommandError, ConnectionState, Events, MemberStatus, Node, NodeId, Profile, Side,
    unversioned::{rng::Rng, trust::Header},
};
use relay::{Relay, free_addr};
use support::{Lab, PATIENCE, eventually, full_mesh, id};

const SECOND: Duration = Duration::from_secs(1);

/// The tests measure the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// Panics of nodes' threads, contained or not.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Lines at INFO and above.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Formats every line, so that no field can fail to be shown, and keeps those that people see.
struct Capture;

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        struct Fields(String);
        impl<'kvs> log::kv::VisitSource<'kvs> for Fields {
            fn visit_pair(
                &mut self,
                key: log::kv::Key<'kvs>,
                value: log::kv::Value<'kvs>,
            ) -> Result<(), log::kv::Error> {
                self.0 += &format!(" {key}={value}");
                Ok(())
            }
        }
        let mut fields = Fields(String::new());
        record.key_values().visit(&mut fields).unwrap();
        let line = format!("{} {}{}", record.level(), record.args(), fields.0);
        if record.level() <= log::Level::Info {
            LINES.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

fn watch_the_process() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Capture).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            if thread.name().is_some_and(|name| name.starts_with("nd-")) {
                PANICS.fetch_add(1, Relaxed);
            }
            before(panic);
        }));
    });
}

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Option<usize> = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok());
    pages.unwrap() * rustix::param::page_size()
}

/// A node behind a relay for each of its ports.
struct Relayed {
    node: Node,
    app: App,
    quic: Relay,
    gossip: Relay,
}

impl Relayed {
    fn start(lab: &Lab, name: &str, seed: Option<SocketAddr>) -> Self {
        let (quic, gossip) = (Relay::to(free_addr()), Relay::to(free_addr()));
        let node = lab
            .builder(name)
            // Its time-outs bear a machine that is busy with garbage.
            .profile(Profile::Lan)
            .bind(quic.target)
            .gossip_bind(gossip.target)
            .advertise(quic.addr)
            .gossip_advertise(gossip.addr)
            .seeds(seed.map(|seed| seed.to_string()))
            .start()
            .unwrap();
        let app = node.register("echo").unwrap();
        app.on_request(1, |request| Ok(request.payload.clone()))
            .unwrap();
        Self {
            node,
            app,
            quic,
            gossip,
        }
    }

    /// Waits until the reactor has made a turn.
    fn turn(&self) {
        let nobody = NodeId::new("nobody").unwrap();
        assert_eq!(
            self.node.force_leave(&nobody),
            Err(CommandError::UnknownMember("nobody".to_owned()))
        );
    }

    fn request(&self, to: &Node) {
        let answer = self.app.request(to.id(), "working?", 10 * SECOND);
        assert_eq!(answer.as_deref(), Ok("working?".as_bytes()));
    }
}

/// Nodes that know and are connected to each other, and have talked for a while.
fn relayed_cluster(lab: &Lab, count: usize) -> Vec<Relayed> {
    let mut all = vec![Relayed::start(lab, "n1", None)];
    for i in 2..=count {
        let seed = all[0].quic.addr;
        all.push(Relayed::start(lab, &format!("n{i}"), Some(seed)));
    }
    let nodes: Vec<Node> = all.iter().map(|relayed| relayed.node.clone()).collect();
    full_mesh(&nodes, PATIENCE);
    eventually("one connection per pair is left", || {
        all.iter().all(|relayed| {
            let state = State::of(&relayed.node);
            state.connections.len() == count - 1 && relayed.node.connections().len() == count - 1
        })
    });
    for asker in &all {
        for other in nodes.iter().filter(|other| other.id() != asker.node.id()) {
            asker.request(other);
        }
    }
    eventually("gossip was recorded", || {
        all.iter().all(|relayed| relayed.gossip.has_seen(6))
    });
    all
}

/// What must not change.
#[derive(Debug, PartialEq, Eq)]
struct State {
    members: Vec<(NodeId, MemberStatus, u64, BootId, SocketAddr, SocketAddr)>,
    connections: Vec<(Option<NodeId>, Option<Side>, SocketAddr, u64)>,
    peers: Vec<NodeId>,
}

impl State {
    fn of(node: &Node) -> Self {
        let members = node.members().into_iter().map(|m| {
            (
                m.node,
                m.status,
                m.incarnation,
                m.boot,
                m.quic_addr,
                m.gossip_addr,
            )
        });
        let connections = node.connections().into_iter();
        Self {
            members: members.collect(),
            connections: connections
                .filter(|row| row.state == ConnectionState::Established)
                .map(|row| (row.peer, row.side, row.addr, row.dials))
                .collect(),
            peers: node.peers().into_iter().map(|peer| peer.node).collect(),
        }
    }
}

/// Looks at everything that garbage must not touch.
struct Watch {
    states: Vec<State>,
    events: Vec<Events>,
    since: Instant,
}

impl Watch {
    fn begin(all: &[Relayed]) -> Self {
        // What led to this state has been told once the reactors have made another turn.
        all.iter().for_each(Relayed::turn);
        LINES.lock().unwrap().clear();
        Self {
            states: all.iter().map(|relayed| State::of(&relayed.node)).collect(),
            events: all.iter().map(|relayed| relayed.node.events()).collect(),
            since: Instant::now(),
        }
    }

    fn end(self, all: &[Relayed]) {
        for (relayed, before) in all.iter().zip(&self.states) {
            assert_eq!(State::of(&relayed.node), *before);
        }
        for (relayed, events) in all.iter().zip(&self.events) {
            assert_eq!(events.try_recv(), None, "at {}", relayed.node.id());
        }
        assert_eq!(PANICS.load(Relaxed), 0);
        let lines = LINES.lock().unwrap();
        let most = self.since.elapsed().as_secs() as usize + 1;
        assert!(lines.len() <= most, "{} lines: {lines:#?}", lines.len());
        for line in &*lines {
            assert!(!line.starts_with("ERROR"), "{line}");
        }
    }
}

fn random(rng: &mut Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.u64() as u8).collect()
}

/// A real datagram with bits flipped, bytes replaced, cut, lengthened, or joined to another.
fn mutated(rng: &mut Rng, recorded: &[Vec<u8>]) -> Vec<u8> {
    let mut datagram = recorded[rng.index(recorded.len())].clone();
    match rng.below(6) {
        0 | 1 => {
            for _ in 0..=rng.below(8) {
                let at = rng.index(datagram.len());
                datagram[at] ^= 1 << rng.below(8);
            }
        }
        2 => {
            let at = rng.index(datagram.len());
            datagram.truncate(at);
        }
        3 => {
            let more = rng.index(200);
            datagram.extend(random(rng, more));
        }
        4 => {
            // The head stays, so that it goes as far as it can get.
            let keep = rng.index(datagram.len().min(64));
            let rest = random(rng, datagram.len() - keep);
            datagram.truncate(keep);
            datagram.extend(rest);
        }
        _ => {
            let other = &recorded[rng.index(recorded.len())];
            let at = rng.index(datagram.len());
            datagram.truncate(at);
            datagram.extend(&other[rng.index(other.len())..]);
        }
    }
    datagram
}

fn gossip_garbage(rng: &mut Rng, gossip: &[Vec<u8>], quic: &[Vec<u8>]) -> Vec<u8> {
    match rng.below(10) {
        0 => {
            let length = rng.index(1_500);
            random(rng, length)
        }
        1 => {
            let length = rng.index(2);
            random(rng, length)
        }
        // A header that names the right node, life and key, and a body that nobody sealed.
        2..=4 => {
            let real = &gossip[rng.index(gossip.len())];
            let header = Header::parse(real).unwrap();
            let mut datagram = vec![1];
            datagram.extend(header.key.0);
            datagram.push(header.node.len() as u8);
            datagram.extend(header.node.as_bytes());
            datagram.extend(header.boot.0);
            let counter = match rng.below(3) {
                0 => rng.u64(),
                1 => u64::MAX,
                _ => header.counter + rng.below(5_000),
            };
            datagram.extend(counter.to_be_bytes());
            let length = rng.index(1_200);
            datagram.extend(random(rng, length));
            if rng.below(8) == 0 {
                // Under a key that nobody knows.
                datagram[1 + rng.index(8)] ^= 0xff;
            }
            datagram
        }
        5 => gossip[rng.index(gossip.len())].clone(),
        6 => quic[rng.index(quic.len())].clone(),
        _ => mutated(rng, gossip),
    }
}

fn long_header(rng: &mut Rng, kind: u8, version: u32, token: &[u8], length: usize) -> Vec<u8> {
    let mut datagram = vec![0xc0 | kind << 4 | rng.below(16) as u8];
    datagram.extend(version.to_be_bytes());
    for _ in 0..2 {
        let id_length = rng.index(21);
        datagram.push(id_length as u8);
        datagram.extend(random(rng, id_length));
    }
    if kind == 0 {
        datagram.extend((0x4000 | token.len() as u16).to_be_bytes());
        datagram.extend(token);
    }
    let rest = length.saturating_sub(datagram.len() + 2).max(20);
    // What it says of its length is right, or not.
    let said = match rng.below(4) {
        0 => rng.below(0x4000) as u16,
        _ => rest as u16,
    };
    datagram.extend((0x4000 | said).to_be_bytes());
    datagram.extend(random(rng, rest));
    datagram
}

fn quic_garbage(rng: &mut Rng, quic: &[Vec<u8>], gossip: &[Vec<u8>]) -> Vec<u8> {
    let length = 1_150 + rng.index(200);
    match rng.below(12) {
        0 => {
            let length = rng.index(1_500);
            random(rng, length)
        }
        1 => {
            let length = rng.index(2);
            random(rng, length)
        }
        // Initials: whole, too small, and with tokens that nobody gave out.
        2 => long_header(rng, 0, 1, &[], length),
        3 => {
            let length = rng.index(1_200);
            long_header(rng, 0, 1, &[], length)
        }
        4 => {
            let token = rng.index(200);
            let token = random(rng, token);
            long_header(rng, 0, 1, &token, length)
        }
        // 0-RTT, Handshake and Retry.
        5 => {
            let kind = 1 + rng.below(3) as u8;
            long_header(rng, kind, 1, &[], length)
        }
        // Unknown versions, and version negotiation.
        6 => {
            let version = match rng.below(3) {
                0 => 0,
                1 => 0x6b33_43cf,
                _ => rng.u64() as u32,
            };
            long_header(rng, 0, version, &[], length)
        }
        // Short headers with an id that nobody has.
        7 => {
            let length = 1 + rng.index(1_300);
            let mut datagram = random(rng, length);
            datagram[0] = 0x40 | datagram[0] & 0x3f;
            datagram
        }
        8 => gossip[rng.index(gossip.len())].clone(),
        9 => quic[rng.index(quic.len())].clone(),
        _ => mutated(rng, quic),
    }
}

#[test]
fn a_hundred_thousand_datagrams_of_garbage_change_nothing() {
    const DATAGRAMS: usize = 100_000;
    const MAX_GROWTH_BYTES: usize = 8 << 20;
    /// So many to each port before it is awaited that they were read; a receive buffer holds more.
    const BURST: usize = 64;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    watch_the_process();
    let lab = Lab::new("garbage");
    let all = relayed_cluster(&lab, 2);
    let recorded = |relay: fn(&Relayed) -> &Relay| -> Vec<Vec<u8>> {
        all.iter().flat_map(|r| relay(r).recorded()).collect()
    };
    let (quic, gossip) = (recorded(|r| &r.quic), recorded(|r| &r.gossip));
    assert!(quic.iter().any(|datagram| datagram[0] & 0x80 != 0));
    let strangers: Vec<UdpSocket> = (0..4)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect();
    let watch = Watch::begin(&all);
    let seed = 0x006e_6f64_6f73_756d;
    let mut rng = Rng::new(seed);
    let mut sent = 0;
    let mut resident = None;
    while sent < DATAGRAMS {
        for _ in 0..BURST {
            for relayed in &all {
                let for_gossip = gossip_garbage(&mut rng, &gossip, &quic);
                let for_quic = quic_garbage(&mut rng, &quic, &gossip);
                let stranger = &strangers[rng.index(strangers.len())];
                // One in eight comes from where the peer is, or seems to come from the node itself.
                for (relay, datagram) in [(&relayed.gossip, for_gossip), (&relayed.quic, for_quic)]
                {
                    if rng.below(8) == 0 {
                        relay.inject(&datagram);
                    } else {
                        let _ = stranger.send_to(&datagram, relay.target);
                    }
                    sent += 1;
                }
            }
        }
        // Answers (versions, Retry, resets) are not wanted; nor may they fill the buffers.
        for stranger in &strangers {
            while stranger.recv(&mut [0; 2_048]).is_ok() {}
        }
        for relayed in &all {
            relayed.turn();
            relayed.turn();
        }
        all[0].request(&all[1].node);
        all[1].request(&all[0].node);
        if sent >= DATAGRAMS / 10 {
            // By now every table has been filled once.
            resident.get_or_insert_with(resident_bytes);
        }
    }
    let took = watch.since.elapsed();
    let resident = resident.unwrap();
    let grown = resident_bytes().saturating_sub(resident);
    eprintln!("{sent} datagrams in {took:?}; {resident} bytes resident, {grown} more at the end");
    assert!(grown < MAX_GROWTH_BYTES, "grew by {grown} bytes");
    let relays = all.iter().flat_map(|r| [&r.gossip, &r.quic]);
    let dropped: u64 = relays.map(Relay::dropped).sum();
    assert!(
        dropped < DATAGRAMS as u64 / 100,
        "{dropped} were never seen by a node"
    );
    // Handshakes that garbage began end in silence.
    eventually("no handshake is left", || {
        all.iter()
            .all(|relayed| relayed.node.connections().len() == 1)
    });
    all[0].request(&all[1].node);
    all[1].request(&all[0].node);
    watch.end(&all);
    for relayed in &all {
        let report = relayed.node.shutdown(10 * SECOND);
        assert_eq!(report.threads_stuck, Vec::<String>::new());
    }
}

#[test]
fn recorded_gossip_that_is_sent_again_changes_nothing_and_revives_nobody() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    watch_the_process();
    let lab = Lab::new("replay");
    let mut all = relayed_cluster(&lab, 3);
    let replay = |all: &[Relayed], recorded: &[Vec<u8>]| {
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        for chunk in recorded.chunks(64) {
            for datagram in chunk {
                for relayed in all {
                    stranger.send_to(datagram, relayed.gossip.target).unwrap();
                    relayed.gossip.inject(datagram);
                }
            }
            for relayed in all {
                relayed.turn();
                relayed.turn();
            }
        }
    };
    let all_recorded = |all: &[Relayed]| -> Vec<Vec<u8>> {
        let each = all.iter().map(|relayed| &relayed.gossip);
        each.flat_map(Relay::recorded).collect()
    };
    let before = all_recorded(&all);
    let watch = Watch::begin(&all);
    for _ in 0..10 {
        replay(&all, &before);
    }
    watch.end(&all);

    // One leaves. What it said when it was alive does not bring it back.
    let leaver = all.pop().unwrap();
    let before = [before, leaver.gossip.recorded(), all_recorded(&all)].concat();
    assert!(leaver.node.shutdown(10 * SECOND).left);
    let status = |node: &Node| {
        let members = node.members().into_iter();
        let mut status = members.filter(|m| m.node == id("n3")).map(|m| m.status);
        status.next()
    };
    eventually("n3 has left and is disconnected", || {
        all.iter().all(|relayed| {
            status(&relayed.node) == Some(MemberStatus::Left)
                && relayed.node.connections().len() == 1
        })
    });
    drop(leaver);
    let watch = Watch::begin(&all);
    for _ in 0..10 {
        replay(&all, &before);
    }
    watch.end(&all);

    // It comes back. What its former life said does not count for the new one.
    let seed = all[0].quic.addr;
    all.push(Relayed::start(&lab, "n3", Some(seed)));
    let nodes: Vec<Node> = all.iter().map(|relayed| relayed.node.clone()).collect();
    full_mesh(&nodes, PATIENCE);
    eventually("it has settled", || {
        all.iter().all(|relayed| {
            let state = State::of(&relayed.node);
            state.connections.len() == 2
                && relayed.node.connections().len() == 2
                && nodes.iter().all(|node| {
                    let known = state.members.iter().find(|m| m.0 == *node.id());
                    let own = State::of(node).members;
                    known.is_some() && known == own.iter().find(|m| m.0 == *node.id())
                })
        })
    });
    let watch = Watch::begin(&all);
    for _ in 0..10 {
        replay(&all, &before);
    }
    watch.end(&all);
    for relayed in &all {
        relayed.node.shutdown(10 * SECOND);
    }
}
