//! Nodes, a network and a clock.
//!
//! A node is a whole [`Cluster`]: membership, mesh and what is between them. The world does for it
//! what the reactor does: opens datagrams, judges records, signs, dials, carries frames and syncs,
//! pings connections. What it models, and how:
//!
//! - **Time.** One agenda in nanoseconds; every node reads it through a clock of its own that runs a
//!   little fast or slow. Nothing happens between two entries of the agenda.
//! - **Signatures.** A record verifies when exactly these bytes were signed here by its node. Whose
//!   certificate a node has not seen, by handshake or sync, has to wait, and is a hint where to dial.
//! - **Datagrams, seals, certificates:** `network`. **Connections:** `connections`. **Acts of a
//!   script, lives and their ends:** `acts`. **Who means harm:** `hostile`.
//! - **Standing still.** What arrives waits; datagrams beyond a socket's buffer are lost. On waking
//!   a node reads its datagrams, then its connections, then its clock, as the reactor does.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use nodosum::{
    BootId, CloseCode, CloseReason, ClusterName, MemberStatus, NodeId,
    unversioned::{
        ConnectionId,
        cluster::{Action, Cluster, Event},
        mesh,
        record::{Record, VerifiedRecord},
        rng::Rng,
        roster::Image,
        swim,
    },
};

use super::{
    check::{Observer, Truth},
    conditions::Conditions,
    connections::{Conn, Phase, SyncOnWire, Wire},
    network::Window,
    queue::Queue,
    registry::Registry,
    script::{Nodes, Profile, Script},
    tally::Tally,
};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000 * MS;

/// How long after a member left a dial of it may still be carried out.
const WAS_DECIDED: Duration = Duration::from_secs(1);

/// Entries of the agenda in one run. The heaviest seeds take a tenth; what goes beyond goes in circles.
const MAX_EVENTS: u64 = 5_000_000;

/// A connection on which nothing is heard for so long is over (`transport`).
pub(crate) const IDLE: u64 = 15 * SEC;

/// What a socket's buffer holds while nobody reads: 208 KiB, Linux' default, in datagrams of half
/// the largest size.
const SOCKET_DATAGRAMS: usize = 350;

/// One entry of the agenda.
pub(crate) enum Happening {
    Timer(usize),
    Datagram(Box<Datagram>),
    /// A flight of a handshake arrives: 1, 3, 5 at the acceptor, 2, 4 at the dialler.
    Leg {
        conn: usize,
        leg: u8,
        tries: u32,
    },
    DialDeadline {
        conn: usize,
        end: usize,
    },
    /// The first frame that `end` sent is due at the other.
    Deliver {
        conn: usize,
        end: usize,
        tries: u32,
    },
    Sync(Box<SyncOnWire>),
    /// The transport tells a node that its end is over.
    Down {
        conn: usize,
        end: usize,
        reason: Box<CloseReason>,
    },
    CloseArrives {
        conn: usize,
        end: usize,
        code: CloseCode,
    },
    /// The peer's host refuses the port, or its new process knows nothing of the connection.
    Refusal {
        conn: usize,
        end: usize,
        reset: bool,
    },
    /// A ping has met with nothing but silence.
    Stalled {
        conn: usize,
        end: usize,
        silent_since: u64,
    },
    PingTick {
        node: usize,
        life: u32,
    },
    Resolved {
        node: usize,
        life: u32,
        seed: Box<str>,
    },
    Begin(usize),
    End(usize),
    /// The next turn of a node that stands still and runs in turns.
    Stress {
        act: usize,
        still: bool,
    },
    Hostile {
        act: usize,
    },
    LeaveDeadline {
        node: usize,
        life: u32,
    },
    /// The process has closed its connections and ends.
    Exit {
        node: usize,
        life: u32,
    },
}

#[derive(Clone)]
pub(crate) struct Datagram {
    pub(crate) from: usize,
    pub(crate) boot: BootId,
    pub(crate) counter: u64,
    pub(crate) keys: u64,
    pub(crate) from_addr: SocketAddr,
    pub(crate) to_addr: SocketAddr,
    pub(crate) payload: Arc<[u8]>,
}

/// The life of a node that runs.
pub(crate) struct Process {
    pub(crate) life: u32,
    pub(crate) cluster: Box<Cluster>,
    pub(crate) boot: BootId,
    /// How many acts hold the whole process, and how many its deciding thread.
    pub(crate) paused: u32,
    pub(crate) stalled: u32,
    pub(super) backlog: Vec<Happening>,
    pub(super) backlog_datagrams: usize,
    pub(super) timer_at: Option<u64>,
    pub(super) certificates: Nodes,
    pub(super) waiting: VecDeque<(usize, Arc<VerifiedRecord>)>,
    pub(crate) keys: u64,
    pub(super) counter: u64,
    pub(super) windows: BTreeMap<usize, Window>,
    pub(super) ends: Vec<Option<(usize, usize)>>,
    pub(crate) open: BTreeSet<(usize, usize)>,
    pub(crate) leaving: bool,
    pub(crate) exiting: bool,
    pub(super) streams: u64,
    /// A connection that was dialled to one who was not alive here: both compare what they know.
    pub(crate) owed_sync: Option<ConnectionId>,
    pub(crate) observer: Observer,
    pub(crate) sent: u64,
}

impl Process {
    pub(super) fn is_frozen(&self) -> bool {
        self.paused + self.stalled > 0
    }
}

/// What became of a node last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Unborn,
    Running,
    Crashed,
    Left,
    Stopped,
}

pub(crate) struct Node {
    pub(crate) name: NodeId,
    pub(crate) process: Option<Process>,
    pub(crate) addr: u32,
    pub(super) host_up: bool,
    pub(super) clock_ppm: i64,
    pub(crate) fate: Fate,
    /// The act that ended its process, which alone may start it again.
    pub(super) ended_by: Option<usize>,
    pub(super) lives: u32,
    pub(super) via: Nodes,
    /// What it has left on its disk, the newest last.
    pub(super) saved: Vec<Vec<u8>>,
    pub(crate) hostile: bool,
    /// Acts that disturb it now, and since when none has.
    pub(super) disturbances: u32,
    pub(super) calm_since: u64,
    /// Who had confirmed its last leave when it ended, with the lives they lived.
    pub(crate) confirmed_by: Vec<(usize, u32)>,
}

/// What a run may not do, beside what its script says.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) swim: swim::Config,
    pub(crate) mesh: mesh::Config,
    /// Every node knows every certificate from the start.
    pub(crate) certificates_known: bool,
    /// Whether the invariants are checked; experiments that only measure may do without.
    pub(crate) checked: bool,
    /// Prints what happens.
    pub(crate) verbose: bool,
}

impl Options {
    pub(crate) fn of(script: &Script) -> Self {
        let swim = match script.profile {
            Profile::Lan => swim::Config::lan(),
            Profile::Local => swim::Config::local(),
            Profile::Wan => swim::Config::wan(),
        };
        Self {
            swim: swim::Config {
                tombstone: Duration::from_secs(script.tombstone_s),
                ..swim
            },
            mesh: mesh::Config::default(),
            certificates_known: false,
            checked: true,
            verbose: false,
        }
    }
}

/// One run.
pub(crate) struct World {
    pub(super) base: Instant,
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(super) queue: Queue<Happening>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) conns: Vec<Conn>,
    /// Which node has an address, by its number; a node that moves leaves its old one to nobody.
    pub(super) addresses: Vec<usize>,
    pub(crate) script: Script,
    pub(crate) options: Options,
    pub(crate) conditions: Conditions,
    pub(crate) registry: Registry,
    pub(crate) truth: Truth,
    pub(crate) tally: Tally,
    pub(crate) hash: u64,
    pub(crate) events: u64,
    /// The first invariant that broke.
    pub(crate) violation: Option<String>,
    pub(super) next_key: u32,
    /// Events that applications have emitted.
    pub(super) emissions: u64,
    pub(super) cluster_name: ClusterName,
    /// What an outsider has recorded.
    pub(crate) recorded: Vec<Datagram>,
}

pub(super) fn socket(number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number + 1)), port)
}

pub(crate) fn gossip_addr(number: u32) -> SocketAddr {
    socket(number, 7_000)
}

pub(crate) fn quic_addr(number: u32) -> SocketAddr {
    socket(number, 7_001)
}

pub(super) fn number_of(addr: SocketAddr) -> Option<usize> {
    let IpAddr::V4(ip) = addr.ip() else {
        return None;
    };
    u32::from(ip).checked_sub(0x0a00_0001).map(|n| n as usize)
}

/// The name of a node by its index.
pub(crate) fn name_of(index: usize) -> NodeId {
    format!("n{}", index + 1).parse().expect("a label")
}

impl World {
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    pub(crate) fn new(script: Script, options: Options) -> Self {
        let mut rng = Rng::new(script.seed);
        let queue = Queue::new(rng.u64());
        let clocks = script.clocks_ppm;
        let nodes = (0..script.nodes)
            .map(|index| Node {
                name: name_of(index),
                process: None,
                addr: index as u32,
                host_up: true,
                clock_ppm: rng.below(2 * clocks + 1) as i64 - clocks as i64,
                fate: Fate::Unborn,
                ended_by: None,
                lives: 0,
                via: Nodes::default(),
                saved: Vec::new(),
                hostile: false,
                disturbances: 0,
                calm_since: 0,
                confirmed_by: Vec::new(),
            })
            .collect();
        let mut world = Self {
            base: Instant::now() + Duration::from_secs(1),
            now: 0,
            rng,
            queue,
            nodes,
            conns: Vec::new(),
            addresses: (0..script.nodes).collect(),
            options,
            conditions: Conditions::default(),
            registry: Registry::default(),
            truth: Truth::default(),
            tally: Tally::default(),
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            violation: None,
            next_key: 0,
            emissions: 0,
            cluster_name: "sim".parse().expect("a label"),
            recorded: Vec::new(),
            script,
        };
        for (act, what) in world.script.acts.iter().enumerate() {
            world.queue.push(what.at_ms * MS, Happening::Begin(act));
            if let Some(until) = what.until_ms
                && what.what.lasts()
            {
                world.queue.push(until * MS, Happening::End(act));
            }
        }
        world
    }

    // ---- time

    /// A node's clock, now.
    pub(crate) fn local(&self, node: usize) -> Instant {
        self.base + Duration::from_nanos(self.local_nanos(node, self.now))
    }

    pub(super) fn local_nanos(&self, node: usize, at: u64) -> u64 {
        let drift = at as i64 / 1_000_000 * self.nodes[node].clock_ppm
            + at as i64 % 1_000_000 * self.nodes[node].clock_ppm / 1_000_000;
        at.saturating_add_signed(drift)
    }

    /// The earliest time at which a node's clock shows `at`.
    pub(super) fn global(&self, node: usize, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.base).as_nanos();
        let scaled =
            nanos * 1_000_000 / (1_000_000 + i128::from(self.nodes[node].clock_ppm)) as u128;
        let mut guess = u64::try_from(scaled)
            .unwrap_or(u64::MAX / 4)
            .saturating_sub(2);
        let wanted = u64::try_from(nanos).unwrap_or(u64::MAX / 4);
        while self.local_nanos(node, guess) < wanted {
            guess += 1;
        }
        guess
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// Lets everything until `until` happen, or until an invariant breaks.
    pub(crate) fn run_until(&mut self, until: u64) {
        while self.violation.is_none() && self.queue.next_at().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = self.now.max(until);
    }

    /// The next thing happens.
    pub(crate) fn step(&mut self) {
        let Some((at, happening)) = self.queue.pop() else {
            return;
        };
        self.now = self.now.max(at);
        self.events += 1;
        if self.events > MAX_EVENTS && self.violation.is_none() {
            self.violation = Some("goes in circles".to_owned());
        }
        self.happen(happening);
    }

    pub(crate) fn agenda(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn note(&mut self, words: &[u64]) {
        for word in words {
            self.hash = (self.hash ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23);
        }
    }

    pub(super) fn note_bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        let words: u64 = chunks.by_ref().fold(bytes.len() as u64, |sum, chunk| {
            let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
            (sum ^ word)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
        });
        let rest = chunks
            .remainder()
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        self.note(&[words, rest]);
    }

    pub(crate) fn say(&self, line: impl FnOnce() -> String) {
        if self.options.verbose {
            print_line(&format!(
                "{:>12.6} {}",
                self.elapsed().as_secs_f64(),
                line()
            ));
        }
    }

    pub(crate) fn violate(&mut self, node: usize, why: &str) {
        if self.violation.is_none() {
            self.violation = Some(format!(
                "{} at {:.6}: {why}",
                self.nodes[node].name,
                self.elapsed().as_secs_f64()
            ));
        }
    }

    /// Puts something on the agenda.
    pub(crate) fn later(&mut self, delay: u64, happening: Happening) {
        self.queue.push(self.now + delay, happening);
    }

    /// Whom a happening concerns, if that is a node that has to be awake for it.
    pub(super) fn concerns(&self, happening: &Happening) -> Option<usize> {
        match happening {
            Happening::Timer(node)
            | Happening::PingTick { node, .. }
            | Happening::Resolved { node, .. }
            | Happening::LeaveDeadline { node, .. } => Some(*node),
            Happening::Datagram(datagram) => self.at_address(datagram.to_addr),
            Happening::Leg { conn, leg, .. } => {
                let conn = &self.conns[*conn];
                match leg {
                    1 => self.at_address(conn.addr),
                    2 | 4 => Some(conn.ends[0].node),
                    _ => Some(conn.ends[1].node),
                }
            }
            Happening::Deliver { conn, end, .. } => Some(self.conns[*conn].ends[1 - end].node),
            Happening::Sync(sync) => Some(self.conns[sync.conn].ends[1 - sync.end].node),
            Happening::Down { conn, end, .. }
            | Happening::DialDeadline { conn, end }
            | Happening::CloseArrives { conn, end, .. }
            | Happening::Stalled { conn, end, .. }
            | Happening::Refusal { conn, end, .. } => Some(self.conns[*conn].ends[*end].node),
            Happening::Begin(_)
            | Happening::End(_)
            | Happening::Stress { .. }
            | Happening::Hostile { .. }
            | Happening::Exit { .. } => None,
        }
    }

    pub(super) fn happen(&mut self, happening: Happening) {
        if let Some(node) = self.concerns(&happening)
            && let Some(process) = &mut self.nodes[node].process
            && process.is_frozen()
        {
            match happening {
                // On waking, the clock is read anyway.
                Happening::Timer(_) => process.timer_at = None,
                Happening::Datagram(_) if process.backlog_datagrams >= SOCKET_DATAGRAMS => {
                    self.tally.fault("socket_full");
                }
                Happening::Datagram(_) => {
                    process.backlog_datagrams += 1;
                    process.backlog.push(happening);
                }
                other => process.backlog.push(other),
            }
            return;
        }
        match happening {
            Happening::Timer(node) => self.on_timer(node),
            Happening::Datagram(datagram) => self.on_datagram(&datagram),
            Happening::Leg { conn, leg, tries } => self.on_leg(conn, leg, tries),
            Happening::DialDeadline { conn, end } => {
                self.on_dial_deadline(conn, end);
            }
            Happening::Deliver { conn, end, tries } => self.on_deliver(conn, end, tries),
            Happening::Sync(sync) => self.on_sync(sync),
            Happening::Down { conn, end, reason } => self.on_down(conn, end, &reason),
            Happening::CloseArrives { conn, end, code } => {
                self.on_down(conn, end, &CloseReason::Peer(code));
            }
            Happening::Refusal { conn, end, reset } => self.on_refusal(conn, end, reset),
            Happening::Stalled {
                conn,
                end,
                silent_since,
            } => self.on_stalled(conn, end, silent_since),
            Happening::PingTick { node, life } => self.on_ping_tick(node, life),
            Happening::Resolved { node, life, seed } => self.on_resolved(node, life, &seed),
            Happening::Begin(act) => self.begin(act),
            Happening::End(act) => self.end(act),
            Happening::Stress { act, still } => self.on_stress(act, still),
            Happening::Hostile { act } => self.on_hostile(act),
            Happening::LeaveDeadline { node, life } => {
                if self.life(node) == Some(life) {
                    self.tally.count("leaves_unconfirmed");
                    self.check_leave(node);
                    self.exit(node);
                }
            }
            Happening::Exit { node, life } => {
                if self.life(node) == Some(life) {
                    self.vanish(node);
                }
            }
        }
    }

    // ---- looking things up

    pub(crate) fn process(&self, node: usize) -> Option<&Process> {
        self.nodes.get(node)?.process.as_ref()
    }

    pub(super) fn life(&self, node: usize) -> Option<u32> {
        self.process(node).map(|process| process.life)
    }

    pub(crate) fn cluster(&self, node: usize) -> Option<&Cluster> {
        self.process(node).map(|process| &*process.cluster)
    }

    /// The running node that has this address.
    pub(super) fn at_address(&self, addr: SocketAddr) -> Option<usize> {
        let node = *self.addresses.get(number_of(addr)?)?;
        let is_here = gossip_addr(self.nodes[node].addr).ip() == addr.ip();
        (is_here && self.nodes[node].process.is_some()).then_some(node)
    }

    /// Who had or has this address, running or not.
    pub(super) fn owner_of(&self, addr: SocketAddr) -> Option<usize> {
        self.addresses.get(number_of(addr)?).copied()
    }

    /// The index of a node.
    pub(crate) fn index_of(&self, name: &NodeId) -> Option<usize> {
        let index = name.as_str().strip_prefix('n')?.parse::<usize>().ok()?;
        index
            .checked_sub(1)
            .filter(|index| *index < self.nodes.len())
    }

    /// Whether two ends are the two of one connection.
    pub(crate) fn is_same_connection(
        &self,
        a: usize,
        here: ConnectionId,
        b: usize,
        there: ConnectionId,
    ) -> bool {
        match (self.end_of(a, here), self.end_of(b, there)) {
            (Some((conn, end)), Some((other, other_end))) => {
                conn == other
                    && end != other_end
                    && self.conns[conn]
                        .ends
                        .iter()
                        .all(|end| end.phase == Phase::Up)
            }
            _ => false,
        }
    }

    /// Whether an end belongs to the process that runs.
    pub(super) fn is_current(&self, conn: usize, end: usize) -> bool {
        let end = &self.conns[conn].ends[end];
        self.life(end.node) == Some(end.life)
    }

    /// The time one way, drawn anew.
    pub(crate) fn latency(&mut self, from: usize, to: usize) -> u64 {
        let base = self.script.latency_us * 1_000;
        let jitter = exponential(&mut self.rng, self.script.jitter_us * 1_000);
        let extra = self.conditions.delay_ms(from, to);
        if extra == 0 {
            return base + jitter;
        }
        self.tally.fault("delay");
        base + jitter + exponential(&mut self.rng, extra * MS)
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.rng.below(100) < percent
    }

    // ---- timers

    pub(super) fn on_timer(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.timer_at != Some(self.now) {
            return;
        }
        process.timer_at = None;
        self.on_timer_due(node);
    }

    pub(super) fn on_timer_due(&mut self, node: usize) {
        let now = self.local(node);
        if let Some(process) = &mut self.nodes[node].process {
            if process.cluster.poll_timeout().is_some_and(|at| at <= now) {
                process.cluster.handle_timeout(now);
            }
            self.settle(node);
        }
    }

    /// Carries out what a node asks for, until it asks for nothing.
    pub(crate) fn settle(&mut self, node: usize) {
        for round in 0.. {
            let Some(process) = &mut self.nodes[node].process else {
                return;
            };
            if let Some(action) = process.cluster.poll_action() {
                self.on_action(node, action);
            } else if let Some(event) = process.cluster.poll_event() {
                self.on_event(node, &event);
            } else if let Some(transmit) = process.cluster.poll_transmit() {
                self.on_transmit(node, transmit);
            } else {
                break;
            }
            if round > 1_000_000 {
                self.violate(node, "does not come to rest after one input");
                return;
            }
        }
        if let Some(process) = &mut self.nodes[node].process {
            let waiting = process.cluster.swim().pending_events();
            process.observer.events_waited = waiting > 0;
        }
        if self.options.checked {
            self.check(node);
        }
        self.watch_leave(node);
        self.arm(node);
    }

    pub(super) fn arm(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let Some(at) = process.cluster.poll_timeout() else {
            return;
        };
        if process.is_frozen() {
            return;
        }
        let armed = process.timer_at;
        let at = self.global(node, at).max(self.now);
        if armed.is_some_and(|armed| armed <= at) {
            return;
        }
        if let Some(process) = &mut self.nodes[node].process {
            process.timer_at = Some(at);
        }
        self.queue.push(at, Happening::Timer(node));
    }

    pub(super) fn watch_leave(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let is_over = process.leaving
            && !process.exiting
            && process
                .cluster
                .leaving()
                .is_some_and(|leave| leave.is_over());
        if is_over {
            self.tally.count("leaves_over");
            self.exit(node);
        }
    }

    // ---- what nodes ask for

    pub(super) fn on_action(&mut self, node: usize, action: Action) {
        let now = self.local(node);
        match action {
            Action::Sign(record) => self.sign(node, record),
            Action::SignForcedLeave(mut forced) => {
                forced.signature = self.registry.sign_forced(&forced);
                self.note(&[3, node as u64, forced.incarnation]);
                self.truth
                    .forces(forced.issuer.clone(), forced.node.clone());
                if let Some(process) = &mut self.nodes[node].process {
                    process.cluster.handle_forced_leave(now, forced);
                }
            }
            Action::Mesh(mesh::Action::Resolve { seed }) => {
                let Some(life) = self.life(node) else {
                    return;
                };
                let delay = self.rng.below(20 * MS);
                let seed = seed.into_boxed_str();
                self.later(delay, Happening::Resolved { node, life, seed });
            }
            Action::Mesh(mesh::Action::Dial {
                connection,
                node: expected,
                addr,
                ..
            }) => {
                // What was decided before it left is still carried out, and whose record cannot be verified
                // yet is dialled whatever others know of it.
                let has_left = |name| {
                    let cluster = self.cluster(node)?;
                    let view = cluster.swim().member(name)?;
                    let for_long = now.saturating_duration_since(view.since) > WAS_DECIDED;
                    let is_member = cluster.mesh().peer(now, name)?.is_member;
                    Some(view.status == MemberStatus::Left && for_long && is_member)
                };
                if let Some(name) = &expected
                    && has_left(name) == Some(true)
                {
                    self.violate(node, &format!("dials {name}, which has left here"));
                }
                self.dial(node, connection, expected, addr);
            }
            Action::Mesh(mesh::Action::Use { connection }) => {
                self.send_frame(node, connection, Wire::Use);
            }
            Action::Mesh(mesh::Action::Drain { .. }) => self.tally.count("drains"),
            Action::Mesh(mesh::Action::Close { connection, code }) => {
                if let Some((conn, end)) = self.end_of(node, connection) {
                    self.close(conn, end, code);
                }
            }
            Action::Tell { connection, frame } => {
                self.send_frame(node, connection, Wire::Frame(frame));
            }
            Action::StartSync { connection } => {
                if let Some(process) = &mut self.nodes[node].process {
                    process.owed_sync.take_if(|owed| *owed == connection);
                }
                self.send_sync(node, connection, None);
            }
            Action::AnswerSync { connection, stream } => {
                self.send_sync(node, connection, Some(stream));
            }
            Action::SaveRoster => self.save(node),
        }
    }

    /// A certificate is the number of its node.
    pub(super) fn save(&mut self, node: usize) {
        let now = self.local(node);
        if let Some(process) = &mut self.nodes[node].process {
            let image = process
                .cluster
                .image(now, |fingerprint| fingerprint[..8].into());
            self.nodes[node].saved.push(image.encode());
            self.tally.count("rosters_saved");
        }
    }

    /// Gives a new life what an earlier one has saved, as the reactor does.
    pub(super) fn restore(&mut self, node: usize, image: &Image) {
        let now = self.local(node);
        for entry in &image.entries {
            let Some(record) = self.registry.find(&entry.record).cloned() else {
                self.violate(node, "a saved record was never signed");
                return;
            };
            if let Some(process) = &mut self.nodes[node].process {
                process.cluster.remember(now, &record.record, entry);
            }
            if entry.certificate.is_empty() {
                continue;
            }
            if let Some(owner) = self.index_of(&record.record.node) {
                self.learn_certificate(node, owner);
            }
            if record.record.left
                && let Some(process) = &mut self.nodes[node].process
            {
                process.cluster.remember_left(now, record);
            }
        }
        self.tally.count("rosters_restored");
    }

    pub(super) fn sign(&mut self, node: usize, record: Record) {
        let now = self.local(node);
        let fails = self.conditions.is_unsigned(node);
        self.note(&[2, node as u64, record.incarnation, u64::from(record.left)]);
        if fails {
            self.tally.fault("unsigned");
            if let Some(process) = &mut self.nodes[node].process {
                process.cluster.handle_sign_failed(now);
            }
            return;
        }
        if let Err(why) = self.truth.signs(node, &record) {
            self.violate(node, &why);
        }
        let signed = self.registry.sign(record);
        if let Some(process) = &mut self.nodes[node].process {
            process.cluster.handle_signed(now, signed);
        }
    }

    pub(super) fn on_resolved(&mut self, node: usize, life: u32, seed: &str) {
        if self.life(node) != Some(life) {
            return;
        }
        let addr = seed
            .parse::<NodeId>()
            .ok()
            .and_then(|name| self.index_of(&name))
            .map(|index| quic_addr(self.nodes[index].addr));
        let result = if self.conditions.no_names() {
            self.tally.fault("no_names");
            Err("no name service".to_owned())
        } else {
            addr.map(|addr| vec![addr])
                .ok_or_else(|| "no such name".to_owned())
        };
        let now = self.local(node);
        if let Some(process) = &mut self.nodes[node].process {
            process.cluster.handle_resolved(now, seed, result);
        }
        self.settle(node);
    }

    // ---- telling

    pub(super) fn on_event(&mut self, node: usize, event: &Event) {
        let at = self.now;
        self.say(|| format!("{} {event:?}", name_of(node)));
        self.note(&[8, node as u64, at]);
        self.note_bytes(format!("{event:?}").as_bytes());
        if *event == Event::Started {
            self.ensure_key(node);
        }
        self.tally.event(event);
        if self.options.checked {
            self.check_event(node, event);
        }
    }

    /// A cluster begins with a key that its first node makes.
    pub(super) fn ensure_key(&mut self, node: usize) {
        if self.process(node).is_some_and(|process| process.keys == 0) {
            let key = 1 << (self.next_key % 64);
            self.next_key += 1;
            self.merge_keys(node, key);
        }
    }
}

pub(super) fn exponential(rng: &mut Rng, mean: u64) -> u64 {
    let uniform = (rng.u64() >> 11) as f64 / (1_u64 << 53) as f64;
    // Ten times the mean is rarer than one in twenty thousand; beyond it would be another fault.
    ((-(1.0 - uniform).ln()).min(10.0) * mean as f64) as u64
}

fn print_line(line: &str) {
    use std::io::Write as _;
    // A closed pipe ends nothing that matters.
    let _ = writeln!(std::io::stdout(), "{line}");
}
