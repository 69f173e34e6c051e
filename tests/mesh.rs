//! Two or three mesh cores on an abstract network: connections that cross, come up on one side
//! first, are refused late or lost without a word, processes that are killed and start again.
//!
//! Whatever happens, events about a peer alternate; and once the faults stop, every pair has
//! exactly one connection, the same at both ends, in use at both. A failing seed is in the message.
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use nodosum::{
    BootId, CloseCode, CloseReason, NodeId, Side,
    unversioned::{
        ConnectionId,
        mesh::{Action, Config, Event, Mesh},
    },
};

const IDLE: Duration = Duration::from_secs(15);
const DIAL: Duration = Duration::from_secs(5);

/// SplitMix64; apart from the core's own generator, so that the two draw independently.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as u64 + 1))
    }
}

/// One end of a connection: whose, in which life, under which id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    node: usize,
    life: u64,
    id: ConnectionId,
}

/// A connection as the network sees it; `ends[0]` dialled.
#[derive(Debug)]
struct Wire {
    ends: [End; 2],
    up: [bool; 2],
    down: [bool; 2],
    /// Nothing gets through any more.
    cut: bool,
    /// USE arrived before READY: it waits in the stream.
    used_early: [bool; 2],
    /// What was scheduled for each end happens in order.
    last: [Instant; 2],
}

#[derive(Debug)]
enum Happening {
    Up(usize, usize),
    Used(usize, usize),
    Down(usize, usize, CloseReason),
    Refused(End, CloseReason),
    Cut(usize),
    MemberUp(usize, usize, u64),
    Kill(usize),
    Start(usize),
}

#[derive(Debug, Default)]
struct Tally {
    connected: u64,
    replaced: u64,
    disconnected: u64,
    drained: u64,
    superseded: u64,
    restarts: u64,
    refused_late: u64,
    cut: u64,
}

struct World {
    rng: Rng,
    now: Instant,
    config: Config,
    nodes: Vec<Option<Mesh>>,
    lives: Vec<u64>,
    wires: Vec<Wire>,
    by_end: BTreeMap<(usize, u64, ConnectionId), (usize, usize)>,
    queue: BTreeMap<(Instant, u64), Happening>,
    sequence: u64,
    /// Who believes to be connected to whom, by events.
    told: BTreeSet<(usize, usize)>,
    faults: bool,
    tally: Tally,
}

#[expect(
    clippy::disallowed_methods,
    reason = "simulated time needs some instant to start from"
)]
fn epoch() -> Instant {
    Instant::now()
}

fn name(node: usize) -> NodeId {
    NodeId::new(&format!("n{node}")).unwrap()
}

fn index(node: &NodeId) -> usize {
    node.as_str()[1..].parse().unwrap()
}

fn addr(node: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7_000 + node as u16))
}

fn boot(node: usize, life: u64) -> BootId {
    let mut bytes = [node as u8; 16];
    bytes[8..].copy_from_slice(&life.to_be_bytes());
    BootId(bytes)
}

impl World {
    fn new(seed: u64, count: usize) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            now: epoch(),
            config: Config::default(),
            nodes: (0..count).map(|_| None).collect(),
            lives: vec![0; count],
            wires: Vec::new(),
            by_end: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            told: BTreeSet::new(),
            faults: false,
            tally: Tally::default(),
        };
        for node in 0..count {
            world.start(node);
        }
        world
    }

    fn start(&mut self, node: usize) {
        self.lives[node] += 1;
        let seed = self.rng.below(u64::MAX);
        let boot = boot(node, self.lives[node]);
        self.nodes[node] = Some(Mesh::new(
            self.config.clone(),
            name(node),
            boot,
            seed,
            self.now,
        ));
    }

    fn at(&mut self, when: Instant, what: Happening) {
        self.sequence += 1;
        self.queue.insert((when, self.sequence), what);
    }

    fn after(&mut self, delay: Duration, what: Happening) {
        self.at(self.now + delay, what);
    }

    /// Gossip: everybody learns of everybody, each at its own time.
    fn introduce_all(&mut self, within: Duration) {
        for node in 0..self.nodes.len() {
            self.introduce(node, within);
        }
    }

    fn introduce(&mut self, node: usize, within: Duration) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            for (observer, member) in [(node, other), (other, node)] {
                let delay = self.rng.up_to(within);
                self.after(
                    delay,
                    Happening::MemberUp(observer, member, self.lives[member]),
                );
            }
        }
    }

    /// Schedules something for one end of a wire, never before what was scheduled earlier.
    fn for_end(&mut self, wire: usize, end: usize, delay: Duration, what: Happening) {
        let when = (self.now + delay).max(self.wires[wire].last[end]);
        self.wires[wire].last[end] = when;
        self.at(when, what);
    }

    fn delay(&mut self) -> Duration {
        self.rng.up_to(Duration::from_millis(5))
    }

    fn is_running(&self, end: End) -> bool {
        self.nodes[end.node].is_some() && self.lives[end.node] == end.life
    }

    fn step(&mut self, until: Instant) -> bool {
        let timer = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(node, mesh)| Some((mesh.as_ref()?.poll_timeout()?, node)))
            .min();
        let next = self.queue.first_key_value().map(|((when, _), _)| *when);
        let (when, node) = match (timer, next) {
            (Some((timer, node)), Some(next)) if timer < next => (timer, Some(node)),
            (Some((timer, node)), None) => (timer, Some(node)),
            (_, Some(next)) => (next, None),
            (None, None) => return false,
        };
        if when > until {
            return false;
        }
        self.now = self.now.max(when);
        if let Some(node) = node {
            let now = self.now;
            self.mesh(node).handle_timeout(now);
            self.settle(node);
        } else {
            let (_, what) = self.queue.pop_first().unwrap();
            self.happen(what);
        }
        true
    }

    fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        let mut steps = 0;
        while self.step(until) {
            steps += 1;
            assert!(steps < 50_000, "a busy loop");
        }
        self.now = until;
    }

    fn mesh(&mut self, node: usize) -> &mut Mesh {
        self.nodes[node].as_mut().unwrap()
    }

    fn happen(&mut self, what: Happening) {
        let now = self.now;
        match what {
            Happening::Up(wire, end) => {
                let (this, peer) = (self.wires[wire].ends[end], self.wires[wire].ends[1 - end]);
                if !self.is_running(this) || self.wires[wire].down[end] {
                    return;
                }
                self.wires[wire].up[end] = true;
                let (side, at) = if end == 0 {
                    (Side::Dialed, addr(peer.node))
                } else {
                    (Side::Accepted, addr(99))
                };
                let boot = boot(peer.node, peer.life);
                self.mesh(this.node)
                    .handle_up(now, this.id, &name(peer.node), boot, side, at);
                self.settle(this.node);
                if self.wires[wire].used_early[end] {
                    self.happen(Happening::Used(wire, end));
                }
            }
            Happening::Used(wire, end) => {
                let this = self.wires[wire].ends[end];
                if !self.is_running(this) || self.wires[wire].down[end] {
                    return;
                }
                if !self.wires[wire].up[end] {
                    self.wires[wire].used_early[end] = true;
                    return;
                }
                self.mesh(this.node).handle_used(now, this.id);
                self.settle(this.node);
            }
            Happening::Down(wire, end, reason) => {
                let this = self.wires[wire].ends[end];
                if std::mem::replace(&mut self.wires[wire].down[end], true)
                    || !self.is_running(this)
                {
                    return;
                }
                self.mesh(this.node).handle_down(now, this.id, &reason);
                self.settle(this.node);
            }
            Happening::Refused(end, reason) => {
                if self.is_running(end) {
                    self.mesh(end.node).handle_down(now, end.id, &reason);
                    self.settle(end.node);
                }
            }
            Happening::Cut(wire) => self.cut(wire),
            Happening::MemberUp(observer, member, life) => {
                // What gossip tells is never newer than the member and never undoes a newer truth.
                if self.nodes[observer].is_some() && life == self.lives[member] {
                    let boot = boot(member, life);
                    self.mesh(observer)
                        .member_up(now, &name(member), addr(member), boot);
                    self.settle(observer);
                }
            }
            Happening::Kill(node) => {
                self.nodes[node] = None;
                self.told.retain(|(observer, _)| *observer != node);
                for wire in 0..self.wires.len() {
                    let ends = self.wires[wire].ends;
                    if ends
                        .iter()
                        .any(|end| end.node == node && end.life == self.lives[node])
                    {
                        self.cut(wire);
                    }
                }
            }
            Happening::Start(node) => {
                self.tally.restarts += 1;
                self.start(node);
                self.introduce(node, Duration::from_secs(1));
            }
        }
    }

    /// Both ends notice late, each in its own time, or one by a reset.
    fn cut(&mut self, wire: usize) {
        if std::mem::replace(&mut self.wires[wire].cut, true) {
            return;
        }
        self.tally.cut += 1;
        for end in 0..2 {
            let (delay, reason) = if !self.wires[wire].up[end] {
                (DIAL, CloseReason::HandshakeTimeout(DIAL))
            } else if self.rng.chance(30) {
                (self.delay(), CloseReason::Reset)
            } else {
                (self.rng.up_to(IDLE), CloseReason::Idle)
            };
            self.for_end(wire, end, delay, Happening::Down(wire, end, reason));
        }
    }

    /// Carries out what a core wants and holds its events against what was told before.
    fn settle(&mut self, node: usize) {
        while let Some(action) = self.mesh(node).poll_action() {
            self.carry_out(node, action);
        }
        while let Some(event) = self.mesh(node).poll_event() {
            match event {
                Event::Connected { node: peer, .. } => {
                    self.tally.connected += 1;
                    assert!(self.told.insert((node, index(&peer))), "connected twice");
                }
                Event::Replaced { node: peer, .. } => {
                    self.tally.replaced += 1;
                    assert!(
                        self.told.contains(&(node, index(&peer))),
                        "replaced nothing"
                    );
                }
                Event::Disconnected { node: peer, .. } => {
                    self.tally.disconnected += 1;
                    assert!(
                        self.told.remove(&(node, index(&peer))),
                        "disconnected twice"
                    );
                }
                Event::SupersededBoot { .. } => self.tally.superseded += 1,
                Event::SeedReached { .. }
                | Event::SeedFailed { .. }
                | Event::JoinRoundOver { .. }
                | Event::SelfDial { .. } => {}
            }
        }
        let now = self.now;
        for peer in self.nodes[node].as_ref().unwrap().peers(now) {
            assert!(peer.links.len() <= 4, "links pile up");
        }
    }

    fn carry_out(&mut self, node: usize, action: Action) {
        let this = |id| (node, id);
        match action {
            Action::Resolve { seed } => {
                let (now, at) = (self.now, seed.parse().unwrap());
                self.mesh(node).handle_resolved(now, &seed, Ok(vec![at]));
            }
            Action::Dial {
                connection, addr, ..
            } => self.dial(node, connection, addr),
            Action::Use { connection } => {
                let (node, id) = this(connection);
                let (wire, end) = self.by_end[&(node, self.lives[node], id)];
                if !self.wires[wire].cut {
                    let delay = self.delay();
                    self.for_end(wire, 1 - end, delay, Happening::Used(wire, 1 - end));
                }
            }
            Action::Drain { .. } => self.tally.drained += 1,
            Action::Close { connection, code } => self.close(node, connection, code),
        }
    }

    fn close(&mut self, node: usize, id: ConnectionId, code: CloseCode) {
        let key = (node, self.lives[node], id);
        let Some(&(wire, end)) = self.by_end.get(&key) else {
            let end = End {
                node,
                life: self.lives[node],
                id,
            };
            self.after(
                Duration::ZERO,
                Happening::Refused(end, CloseReason::Local(code)),
            );
            return;
        };
        let local = Happening::Down(wire, end, CloseReason::Local(code));
        self.for_end(wire, end, Duration::ZERO, local);
        if !self.wires[wire].cut {
            let delay = self.delay();
            let remote = Happening::Down(wire, 1 - end, CloseReason::Peer(code));
            self.for_end(wire, 1 - end, delay, remote);
        }
    }

    fn dial(&mut self, node: usize, id: ConnectionId, at: SocketAddr) {
        let dialler = End {
            node,
            life: self.lives[node],
            id,
        };
        let target = usize::from(at.port() - 7_000);
        let delay = self.delay();
        if self.nodes[target].is_none() {
            self.after(delay, Happening::Refused(dialler, CloseReason::Refused));
            return;
        }
        if self.faults && self.rng.chance(10) {
            self.after(
                DIAL,
                Happening::Refused(dialler, CloseReason::HandshakeTimeout(DIAL)),
            );
            return;
        }
        // The acceptor takes the number when the first datagram arrives; that it is a little early
        // here changes nothing, for the core learns of the connection when it is up.
        let accepted = self.mesh(target).allocate();
        let acceptor = End {
            node: target,
            life: self.lives[target],
            id: accepted,
        };
        let wire = self.wires.len();
        self.wires.push(Wire {
            ends: [dialler, acceptor],
            up: [false; 2],
            down: [false; 2],
            cut: false,
            used_early: [false; 2],
            last: [self.now; 2],
        });
        self.by_end
            .insert((node, dialler.life, dialler.id), (wire, 0));
        self.by_end
            .insert((target, acceptor.life, acceptor.id), (wire, 1));
        self.for_end(wire, 0, delay, Happening::Up(wire, 0));
        if self.faults && self.rng.chance(10) {
            self.tally.refused_late += 1;
            let alert = CloseReason::Tls {
                alert: 80,
                by_peer: true,
            };
            let late = delay + self.delay();
            self.wires[wire].cut = true;
            self.for_end(wire, 0, late, Happening::Down(wire, 0, alert));
            return;
        }
        // The acceptor is up when READY arrives: after the dialler.
        let later = delay + self.delay();
        self.for_end(wire, 1, later, Happening::Up(wire, 1));
        if self.faults && self.rng.chance(40) {
            let lost = self.rng.up_to(Duration::from_secs(20));
            self.after(lost, Happening::Cut(wire));
        }
    }

    fn other_end(&self, node: usize, id: ConnectionId) -> End {
        let (wire, end) = self.by_end[&(node, self.lives[node], id)];
        self.wires[wire].ends[1 - end]
    }

    /// Whether both have the same connection in use, and it is between their present lives.
    fn are_connected(&self, a: usize, b: usize) -> bool {
        let current = |of: usize, to: usize| {
            let id = self.nodes[of].as_ref()?.current(&name(to))?;
            Some(End {
                node: of,
                life: self.lives[of],
                id,
            })
        };
        match (current(a, b), current(b, a)) {
            (Some(here), Some(there)) => self.other_end(a, here.id) == there,
            (Some(_), None) | (None, Some(_)) | (None, None) => false,
        }
    }

    fn assert_converged(&self) {
        let count = self.nodes.len();
        for a in 0..count {
            let mesh = self.nodes[a].as_ref().unwrap();
            for b in (0..count).filter(|b| *b != a) {
                assert!(
                    self.are_connected(a, b),
                    "n{a} and n{b} use no common connection"
                );
                assert!(self.told.contains(&(a, b)), "n{a} was not told of n{b}");
                let view = mesh.peer(self.now, &name(b)).unwrap();
                assert_eq!(
                    view.links,
                    [view.current.unwrap()],
                    "n{a} holds more of n{b}"
                );
                assert_eq!(
                    (view.dialing, view.next_dial),
                    (None, None),
                    "n{a} dials n{b}"
                );
            }
            let counts = mesh.counts();
            assert_eq!(
                (counts.up, counts.dialing, counts.draining),
                (count - 1, 0, 0)
            );
        }
    }
}

/// Runs one world per seed and names the seed of one that panics.
fn campaign(seeds: std::ops::Range<u64>, run: impl Fn(u64) -> Tally) -> Tally {
    let mut sum = Tally::default();
    for seed in seeds {
        let tally = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)))
            .unwrap_or_else(|_| panic!("seed {seed} failed"));
        sum.connected += tally.connected;
        sum.replaced += tally.replaced;
        sum.disconnected += tally.disconnected;
        sum.drained += tally.drained;
        sum.superseded += tally.superseded;
        sum.restarts += tally.restarts;
        sum.refused_late += tally.refused_late;
        sum.cut += tally.cut;
    }
    sum
}

#[test]
fn nodes_that_start_together_end_with_one_connection_per_pair() {
    let tally = campaign(0..2_000, |seed| {
        let mut world = World::new(seed, 2 + (seed % 2) as usize);
        // Everyone is everyone's seed, so that dials cross.
        for node in 0..world.nodes.len() {
            let others = (0..world.nodes.len()).filter(|other| *other != node);
            let seeds = others.map(|other| addr(other).to_string()).collect();
            let now = world.now;
            world.mesh(node).join(now, seeds);
            world.settle(node);
        }
        world.introduce_all(Duration::from_millis(20));
        world.run(Duration::from_secs(20));
        world.assert_converged();
        assert_eq!(world.tally.disconnected, 0, "a crossing was visible");
        world.tally
    });
    assert!(
        tally.drained > 0 && tally.replaced > 0,
        "no dial crossed: {tally:?}"
    );
    assert_eq!(tally.superseded, 0, "{tally:?}");
}

#[test]
fn after_any_faults_every_pair_has_one_connection_in_use_at_both_ends() {
    let tally = campaign(0..4_000, |seed| {
        let mut world = World::new(seed, 2 + (seed % 2) as usize);
        world.faults = true;
        world.introduce_all(Duration::from_millis(200));
        for node in 0..world.nodes.len() {
            if world.rng.chance(40) {
                let kill = world.rng.up_to(Duration::from_secs(30));
                let start = kill + world.rng.up_to(Duration::from_secs(3));
                world.after(kill, Happening::Kill(node));
                world.after(start, Happening::Start(node));
            }
        }
        world.run(Duration::from_secs(40));
        world.faults = false;
        // The last cut comes within 20 s and is noticed within 15 s, then one backoff.
        world.run(Duration::from_secs(20 + 15 + 20));
        world.assert_converged();
        world.tally
    });
    let Tally {
        connected,
        replaced,
        disconnected,
        drained,
        superseded,
        restarts,
        refused_late,
        cut,
    } = tally;
    let seen = [
        connected,
        replaced,
        disconnected,
        drained,
        restarts,
        refused_late,
        cut,
    ];
    assert!(
        seen.iter().all(|count| *count > 0),
        "a fault never happened: {seen:?}"
    );
    assert_eq!(
        superseded, 0,
        "an honest restart was taken for a second process"
    );
}

#[test]
fn a_killed_and_restarted_node_is_connected_again_well_within_ten_seconds() {
    campaign(0..2_000, |seed| {
        let mut world = World::new(seed, 2);
        world.introduce_all(Duration::from_millis(50));
        world.run(Duration::from_secs(1 + seed % 60));
        world.assert_converged();
        let victim = (seed % 2) as usize;
        for _ in 0..5 {
            world.happen(Happening::Kill(victim));
            world.run(Duration::from_millis(100));
            world.happen(Happening::Start(victim));
            world.run(Duration::from_secs(8));
            assert!(world.are_connected(0, 1), "not connected after 8 s");
        }
        world.run(Duration::from_secs(30));
        world.assert_converged();
        world.tally
    });
}

#[test]
fn a_restart_heals_although_only_one_side_learns_of_it() {
    campaign(0..2_000, |seed| {
        let mut world = World::new(seed, 2);
        world.introduce_all(Duration::from_millis(50));
        world.run(Duration::from_secs(5));
        let victim = (seed % 2) as usize;
        world.happen(Happening::Kill(victim));
        world.run(Duration::from_millis(100));
        world.start(victim);
        let (observer, member) = if seed % 4 < 2 { (0, 1) } else { (1, 0) };
        world.happen(Happening::MemberUp(observer, member, world.lives[member]));
        world.run(Duration::from_secs(9));
        assert!(world.are_connected(0, 1), "not connected after 9 s");
        world.tally
    });
}
