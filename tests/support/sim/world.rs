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
//! - **Events of applications** are signed like records. Those that a sync brings come in one piece.
//! - **Seals.** A datagram opens when receiver and sender share a key, the sender is a member and
//!   this is the life that its record names, and its number was not seen before. A datagram that was
//!   changed on its way does not open.
//! - **Connections.** Five flights of a handshake, each of which can be lost and is repeated until
//!   the deadline; one end is up before the other. Then frames in order, which loss delays and a
//!   blocked path holds back, until nothing was heard for the idle time-out. A close can be lost, a
//!   process can be gone or be another; its host says so, if it does, one round trip after the next
//!   ping.
//! - **Health pings.** All pings of a node are sent in one instant, and their outcome is worked out
//!   from the state of the path and the other end at that instant, without an entry in the agenda for
//!   each. With a thousand connections this is what makes the simulation possible; what is lost is
//!   only that pings of one node spread over the interval.
//! - **Standing still.** What arrives waits; datagrams beyond a socket's buffer are lost. On waking
//!   a node reads its datagrams, then its connections, then its clock, as the reactor does.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use nodosum::{
    BootId, CloseCode, CloseReason, ClusterName, NodeId, Side,
    unversioned::{
        ConnectionId,
        cluster::{Action, Cluster, Event, Frame},
        mesh,
        record::Record,
        rng::Rng,
        roster::Image,
        swim::{self, Doubt, ForcedLeave, SyncEntry},
    },
};

use super::{
    check::{Observer, Truth},
    conditions::Conditions,
    queue::Queue,
    registry::Registry,
    script::{Memory, Nodes, Profile, Script, What},
    tally::Tally,
};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000 * MS;

/// What a socket's buffer holds while nobody reads: 208 KiB, Linux' default, in datagrams of half
/// the largest size.
const SOCKET_DATAGRAMS: usize = 350;

/// The transport's deadline for dial and handshake, its idle time-out, the pings that may be missed,
/// and the patience with a host that refuses the port.
const HANDSHAKE: u64 = 5 * SEC;
pub(crate) const IDLE: u64 = 15 * SEC;
const PINGS_MISSED: u32 = 3;
const REFUSED_PATIENCE: u64 = SEC;

/// QUIC's first probe time-out without and with a measured round trip, and the most between two.
const FIRST_PTO: u64 = 300 * MS;
const PTO: u64 = 100 * MS;
const MAX_PTO: u64 = 2 * SEC;

/// How long QUIC's probe time-outs go on in silence before they are a sign.
const STALL: u64 = 500 * MS;

/// Frames that wait for a connection's worker before the connection counts as stuck.
const FRAME_CAPACITY: usize = 256;

/// Bytes a second that a sync gets of the path; and what an entry takes with its certificate.
const SYNC_RATE: u64 = 20_000_000;
const SYNC_ENTRY_BYTES: u64 = 900;

/// How long a leave waits for confirmations.
const LEAVE_PATIENCE: u64 = 5 * SEC;

/// Datagrams that an outsider keeps for repeating.
const RECORDED: usize = 1_024;

/// Records that wait for a certificate.
const MAX_WAITING: usize = 1_024;

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

pub(crate) struct SyncOnWire {
    conn: usize,
    end: usize,
    entries: Vec<SyncEntry>,
    keys: u64,
    /// The number that the answer goes to; `None` if this is the answer.
    stream: Option<u64>,
    tries: u32,
}

/// What travels in order on a connection.
#[derive(Clone)]
enum Wire {
    Frame(Frame),
    Use,
    Keys(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The acceptor has not heard of it yet.
    None,
    Handshaking,
    Up,
    Over,
}

/// One end of a connection.
pub(crate) struct End {
    pub(crate) node: usize,
    pub(crate) life: u32,
    pub(crate) id: ConnectionId,
    pub(crate) phase: Phase,
    heard_at: u64,
    missed: u32,
    refused: bool,
    /// Nothing came back since `heard_at`, and the node was told so.
    stalled: bool,
    frames: VecDeque<(u64, Wire)>,
    sending: bool,
}

/// A connection, or the attempt at one. The dialler is end 0.
pub(crate) struct Conn {
    pub(crate) ends: [End; 2],
    expected: Option<NodeId>,
    addr: SocketAddr,
    started_at: u64,
}

/// The life of a node that runs.
pub(crate) struct Process {
    pub(crate) life: u32,
    pub(crate) cluster: Box<Cluster>,
    pub(crate) boot: BootId,
    /// How many acts hold the whole process, and how many its deciding thread.
    pub(crate) paused: u32,
    pub(crate) stalled: u32,
    backlog: Vec<Happening>,
    backlog_datagrams: usize,
    timer_at: Option<u64>,
    certificates: Nodes,
    waiting: VecDeque<(usize, Arc<nodosum::unversioned::record::VerifiedRecord>)>,
    pub(crate) keys: u64,
    counter: u64,
    windows: BTreeMap<usize, Window>,
    ends: Vec<Option<(usize, usize)>>,
    pub(crate) open: BTreeSet<(usize, usize)>,
    pub(crate) leaving: bool,
    pub(crate) exiting: bool,
    streams: u64,
    pub(crate) observer: Observer,
    pub(crate) sent: u64,
}

impl Process {
    fn is_frozen(&self) -> bool {
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
    host_up: bool,
    clock_ppm: i64,
    pub(crate) fate: Fate,
    /// The act that ended its process, which alone may start it again.
    ended_by: Option<usize>,
    lives: u32,
    via: Nodes,
    /// What it has left on its disk, the newest last.
    saved: Vec<Vec<u8>>,
    pub(crate) hostile: bool,
    /// Acts that disturb it now, and since when none has.
    disturbances: u32,
    calm_since: u64,
    /// Who had confirmed its last leave when it ended, with the lives they lived.
    pub(crate) confirmed_by: Vec<(usize, u32)>,
}

/// Numbers of datagrams already opened, of one life of a sender.
#[derive(Default)]
struct Window {
    boot: Option<BootId>,
    highest: u64,
    seen: u128,
}

impl Window {
    fn accept(&mut self, boot: BootId, counter: u64) -> bool {
        if self.boot != Some(boot) {
            *self = Self {
                boot: Some(boot),
                highest: counter,
                seen: 1,
            };
            return true;
        }
        if counter > self.highest {
            let shift = counter - self.highest;
            self.seen = if shift < 128 { self.seen << shift } else { 0 } | 1;
            self.highest = counter;
            return true;
        }
        let age = self.highest - counter;
        let is_new = age < 128 && self.seen >> age & 1 == 0;
        if is_new {
            self.seen |= 1 << age;
        }
        is_new
    }
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
    base: Instant,
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    queue: Queue<Happening>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) conns: Vec<Conn>,
    /// Which node has an address, by its number; a node that moves leaves its old one to nobody.
    addresses: Vec<usize>,
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
    next_key: u32,
    /// Events that applications have emitted.
    emissions: u64,
    cluster_name: ClusterName,
    /// What an outsider has recorded.
    pub(crate) recorded: Vec<Datagram>,
}

fn socket(number: u32, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number + 1)), port)
}

pub(crate) fn gossip_addr(number: u32) -> SocketAddr {
    socket(number, 7_000)
}

pub(crate) fn quic_addr(number: u32) -> SocketAddr {
    socket(number, 7_001)
}

fn number_of(addr: SocketAddr) -> Option<usize> {
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

    fn local_nanos(&self, node: usize, at: u64) -> u64 {
        let drift = at as i64 / 1_000_000 * self.nodes[node].clock_ppm
            + at as i64 % 1_000_000 * self.nodes[node].clock_ppm / 1_000_000;
        at.saturating_add_signed(drift)
    }

    /// The earliest time at which a node's clock shows `at`.
    fn global(&self, node: usize, at: Instant) -> u64 {
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

    fn note_bytes(&mut self, bytes: &[u8]) {
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
    fn concerns(&self, happening: &Happening) -> Option<usize> {
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

    fn happen(&mut self, happening: Happening) {
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
                if self.conns[conn].ends[end].phase == Phase::Handshaking {
                    let reason = CloseReason::HandshakeTimeout(Duration::from_nanos(HANDSHAKE));
                    self.on_down(conn, end, &reason);
                }
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

    fn life(&self, node: usize) -> Option<u32> {
        self.process(node).map(|process| process.life)
    }

    pub(crate) fn cluster(&self, node: usize) -> Option<&Cluster> {
        self.process(node).map(|process| &*process.cluster)
    }

    /// The running node that has this address.
    fn at_address(&self, addr: SocketAddr) -> Option<usize> {
        let node = *self.addresses.get(number_of(addr)?)?;
        let is_here = gossip_addr(self.nodes[node].addr).ip() == addr.ip();
        (is_here && self.nodes[node].process.is_some()).then_some(node)
    }

    /// Who had or has this address, running or not.
    fn owner_of(&self, addr: SocketAddr) -> Option<usize> {
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
    fn is_current(&self, conn: usize, end: usize) -> bool {
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

    fn chance(&mut self, percent: u64) -> bool {
        percent > 0 && self.rng.below(100) < percent
    }

    /// How long QUIC takes to bring something over: latency, and a probe time-out for every loss.
    fn reliable_latency(&mut self, from: usize, to: usize, first_pto: u64) -> u64 {
        let mut latency = self.latency(from, to);
        let loss = self.conditions.loss(from, to);
        let mut pto = first_pto;
        // Beyond twelve losses in a row the idle time-out has its turn.
        for _ in 0..12 {
            if !self.chance(loss) {
                break;
            }
            self.tally.fault("loss");
            latency += pto;
            pto = (pto * 2).min(MAX_PTO);
        }
        latency
    }

    // ---- starting and ending processes

    /// Starts a node's next life.
    pub(crate) fn start(&mut self, node: usize, via: Nodes, memory: Memory, moved: bool) {
        if self.nodes[node].process.is_some() {
            return;
        }
        if moved {
            self.nodes[node].addr = self.addresses.len() as u32;
            self.addresses.push(node);
        }
        let saved = &self.nodes[node].saved;
        let saved = match memory {
            Memory::Kept => saved.last(),
            Memory::Old => saved.get(saved.len() / 2),
            Memory::Lost => None,
        };
        let image = saved.and_then(|bytes| Image::decode(bytes).ok());
        let incarnation = image.as_ref().map_or(1, |image| image.incarnation + 1);
        let boot = u128::from(self.rng.u64()) << 64 | u128::from(self.rng.u64());
        let boot = BootId(boot.to_be_bytes());
        let addr = self.nodes[node].addr;
        let skewed = self.script.skewed.contains(node);
        let mut certificate = [0; 32];
        certificate[..8].copy_from_slice(&(node as u64).to_be_bytes());
        let record = Record {
            cluster: self.cluster_name.clone(),
            node: self.nodes[node].name.clone(),
            incarnation,
            boot,
            quic_addr: quic_addr(addr),
            gossip_addr: gossip_addr(addr),
            tags: BTreeMap::new(),
            left: false,
            protocol: if skewed { (1, 2) } else { (1, 1) },
            version: if skewed { "9.9.9-next" } else { "0.1.0" }.into(),
            certificate,
        };
        let me = self.registry.sign(record);
        let seed = self.rng.u64();
        let now = self.local(node);
        let cluster = Cluster::new(
            self.options.swim.clone(),
            self.options.mesh.clone(),
            Arc::clone(&me),
            seed,
            now,
        );
        let total = self.nodes.len();
        let state = &mut self.nodes[node];
        state.lives += 1;
        state.fate = Fate::Running;
        state.host_up = true;
        state.ended_by = None;
        state.via = via.clone();
        let certificates = if self.options.certificates_known {
            Nodes::of(0..total)
        } else {
            Nodes::of([node])
        };
        state.process = Some(Process {
            life: state.lives,
            cluster: Box::new(cluster),
            boot,
            paused: 0,
            stalled: 0,
            backlog: Vec::new(),
            backlog_datagrams: 0,
            timer_at: None,
            certificates,
            waiting: VecDeque::new(),
            keys: 0,
            counter: 0,
            windows: BTreeMap::new(),
            ends: Vec::new(),
            open: BTreeSet::new(),
            leaving: false,
            exiting: false,
            streams: 0,
            observer: Observer::new(self.now),
            sent: 0,
        });
        self.truth.born(node, &me.record);
        if self.nodes[node].lives > 1 {
            self.tally.count("restarts");
        }
        let life = self.nodes[node].lives;
        self.say(|| {
            format!(
                "{} starts life {life} at incarnation {incarnation}",
                name_of(node)
            )
        });
        // Nothing held by acts that began before it ran holds it now: a new process is another.
        if let Some(image) = image {
            self.restore(node, &image);
        }
        let seeds = via.iter().map(|seed| name_of(seed).to_string()).collect();
        if let Some(process) = &mut self.nodes[node].process {
            process.cluster.start(now, seeds);
        }
        let first_ping = self.rng.below(SEC);
        self.later(first_ping, Happening::PingTick { node, life });
        self.settle(node);
    }

    /// The process is gone, as if killed.
    pub(crate) fn vanish(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.take() else {
            return;
        };
        for (conn, end) in &process.open {
            self.conns[*conn].ends[*end].phase = Phase::Over;
        }
    }

    /// Closes every connection as a process that shuts down does, and ends it.
    fn exit(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.exiting {
            return;
        }
        process.exiting = true;
        let life = process.life;
        process.cluster.stop(now);
        let leave = process.cluster.leaving();
        let confirmed: Vec<NodeId> = leave.map_or_else(Vec::new, |leave| leave.confirmed.clone());
        let confirmed = confirmed.iter().filter_map(|name| self.index_of(name));
        let confirmed = confirmed
            .filter_map(|peer| Some((peer, self.life(peer)?)))
            .collect();
        self.nodes[node].confirmed_by = confirmed;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let open: Vec<_> = process.open.iter().copied().collect();
        self.settle(node);
        for (conn, end) in open {
            self.close(conn, end, CloseCode::Shutdown);
        }
        self.settle(node);
        self.later(100 * MS, Happening::Exit { node, life });
    }

    // ---- acts

    fn begin(&mut self, act: usize) {
        let what = self.script.acts[act].what.clone();
        self.tally.began(what.class());
        self.say(|| format!("begin {what}"));
        self.disturb(&what, true);
        match what {
            What::Start { node, via } => self.start(node, via, Memory::Lost, false),
            What::Crash { node, host, .. } => {
                if self.nodes[node].process.is_some() {
                    self.vanish(node);
                    self.nodes[node].fate = Fate::Crashed;
                    self.nodes[node].host_up = !host;
                    self.nodes[node].ended_by = Some(act);
                    self.tally.count("crashes");
                }
            }
            What::Leave { node, .. } => {
                let now = self.local(node);
                if let Some(process) = &mut self.nodes[node].process
                    && !process.leaving
                    && !process.exiting
                {
                    process.leaving = true;
                    process.cluster.leave(now);
                    let life = process.life;
                    self.nodes[node].fate = Fate::Left;
                    self.nodes[node].ended_by = Some(act);
                    self.tally.count("leaves");
                    self.settle(node);
                    self.later(LEAVE_PATIENCE, Happening::LeaveDeadline { node, life });
                }
            }
            What::Stop { node, .. } => {
                if self.nodes[node]
                    .process
                    .as_ref()
                    .is_some_and(|p| !p.leaving && !p.exiting)
                {
                    self.nodes[node].fate = Fate::Stopped;
                    self.nodes[node].ended_by = Some(act);
                    self.tally.count("stops");
                    self.exit(node);
                }
            }
            What::Pause { node } => self.hold(node, act, true),
            What::Stall { node } => self.hold(node, act, false),
            What::Stress { .. } => self.on_stress(act, true),
            What::Sever { a, b } => self.sever(a, b),
            What::Join { node, via } => {
                let now = self.local(node);
                let seeds = via.iter().map(|seed| name_of(seed).to_string()).collect();
                if let Some(process) = &mut self.nodes[node].process
                    && !process.is_frozen()
                {
                    process.cluster.join(now, seeds);
                    self.settle(node);
                }
            }
            What::Tags { node, value } => {
                let now = self.local(node);
                let tags = BTreeMap::from([("value".to_owned(), value.to_string())]);
                if let Some(process) = &mut self.nodes[node].process
                    && !process.is_frozen()
                {
                    let fits = process.cluster.set_tags(now, tags).is_ok();
                    if !fits {
                        self.violate(node, "small tags do not fit");
                    }
                    self.settle(node);
                }
            }
            What::Emit { node, count, bytes } => {
                if self.process(node).is_some_and(|p| !p.is_frozen()) {
                    for _ in 0..count {
                        self.emit(node, bytes as usize);
                    }
                    self.settle(node);
                }
            }
            What::ForceLeave { by, node } => {
                let now = self.local(by);
                let name = name_of(node);
                if let Some(process) = &mut self.nodes[by].process
                    && !process.is_frozen()
                {
                    if process.cluster.force_leave(now, &name).is_ok() {
                        self.tally.count("forced_leaves_asked");
                    }
                    self.settle(by);
                }
            }
            What::Hostile(_) => {
                self.conditions.begin(act, &what);
                self.on_hostile(act);
            }
            What::Block { .. }
            | What::Clog { .. }
            | What::Loss { .. }
            | What::Delay { .. }
            | What::Duplicate { .. }
            | What::Reorder { .. }
            | What::Corrupt { .. }
            | What::Full { .. }
            | What::Unsigned { .. }
            | What::NoNames => self.conditions.begin(act, &what),
        }
    }

    fn end(&mut self, act: usize) {
        let what = self.script.acts[act].what.clone();
        self.say(|| format!("end   {what}"));
        self.disturb(&what, false);
        match what {
            What::Crash {
                node,
                memory,
                moved,
                ..
            } => self.start_again(node, act, memory, moved),
            What::Leave { node, memory } | What::Stop { node, memory } => {
                self.start_again(node, act, memory, false);
            }
            What::Pause { node } => self.release(node, act, true),
            What::Stall { node } => self.release(node, act, false),
            What::Stress { node, .. } => {
                self.conditions.end(act);
                self.release(node, act, true);
            }
            What::Clog { .. } => {
                for datagram in self.conditions.unclog(act) {
                    let delay = self.rng.below(2 * MS);
                    self.later(delay, Happening::Datagram(Box::new(datagram)));
                }
                self.conditions.end(act);
            }
            What::Block { .. }
            | What::Loss { .. }
            | What::Delay { .. }
            | What::Duplicate { .. }
            | What::Reorder { .. }
            | What::Corrupt { .. }
            | What::Full { .. }
            | What::Unsigned { .. }
            | What::NoNames
            | What::Hostile(_) => self.conditions.end(act),
            What::Start { .. }
            | What::Sever { .. }
            | What::Join { .. }
            | What::Tags { .. }
            | What::Emit { .. }
            | What::ForceLeave { .. } => {}
        }
    }

    fn disturb(&mut self, what: &What, begins: bool) {
        let lasts = what.lasts();
        let now = self.now;
        for (node, state) in self.nodes.iter_mut().enumerate() {
            if what.disturbs(node) {
                state.calm_since = now;
                match begins {
                    true if lasts => state.disturbances += 1,
                    true => {}
                    false => state.disturbances -= 1,
                }
            }
        }
    }

    /// Since when nothing has disturbed a node, or `None` while something does.
    pub(crate) fn calm_since(&self, node: usize) -> Option<u64> {
        let state = &self.nodes[node];
        (state.disturbances == 0).then_some(state.calm_since)
    }

    /// Whether nothing but its own leave has disturbed a node for a while.
    pub(crate) fn is_calm_but_for_leave(&self, node: usize) -> bool {
        let since = self.now.saturating_sub(6 * SEC);
        !self.script.acts.iter().any(|act| {
            let ends = act.until_ms.map_or(u64::MAX, |until| until * MS);
            let over = if act.what.lasts() {
                ends
            } else {
                act.at_ms * MS
            };
            act.what.disturbs(node)
                && !matches!(act.what, What::Leave { .. })
                && act.at_ms * MS <= self.now
                && over >= since
        })
    }

    fn start_again(&mut self, node: usize, act: usize, memory: Memory, moved: bool) {
        if self.nodes[node].ended_by != Some(act) {
            return;
        }
        // A leave that still waits is cut short, as by an impatient operator.
        self.vanish(node);
        let via = self.nodes[node].via.clone();
        self.start(node, via, memory, moved);
    }

    fn hold(&mut self, node: usize, act: usize, whole: bool) {
        if let Some(process) = &mut self.nodes[node].process {
            if whole {
                process.paused += 1;
            } else {
                process.stalled += 1;
            }
            let life = process.life;
            self.conditions.hold(act, node, life);
        }
    }

    fn release(&mut self, node: usize, act: usize, whole: bool) {
        // Only the life that was held is let go.
        let held = self.conditions.let_go(act);
        if held.is_none() || held.map(|(_, life)| life) != self.life(node) {
            return;
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if whole {
            process.paused -= 1;
        } else {
            process.stalled -= 1;
        }
        if process.is_frozen() {
            return;
        }
        let backlog = std::mem::take(&mut process.backlog);
        process.backlog_datagrams = 0;
        // What came over connections while it stood still lies in the sockets' buffers.
        let open: Vec<_> = process.open.iter().copied().collect();
        for (conn, end) in open {
            if self.conns[conn].ends[1 - end].phase != Phase::Over {
                self.conns[conn].ends[end].heard_at = self.now;
            }
        }
        let (datagrams, others): (Vec<_>, Vec<_>) = backlog
            .into_iter()
            .partition(|happening| matches!(happening, Happening::Datagram(_)));
        for happening in datagrams.into_iter().chain(others) {
            self.happen(happening);
        }
        self.on_timer_due(node);
    }

    fn on_stress(&mut self, act: usize, still: bool) {
        let What::Stress {
            node,
            still_ms,
            run_ms,
        } = self.script.acts[act].what
        else {
            return;
        };
        if self.script.acts[act]
            .until_ms
            .is_some_and(|until| self.now >= until * MS)
        {
            return;
        }
        if still {
            self.hold(node, act, true);
            self.later(still_ms * MS, Happening::Stress { act, still: false });
        } else {
            self.release(node, act, true);
            self.later(run_ms * MS, Happening::Stress { act, still: true });
        }
    }

    /// Every connection of the two breaks, and each end learns it by itself.
    fn sever(&mut self, a: usize, b: usize) {
        let Some(process) = self.process(a) else {
            return;
        };
        let between: Vec<usize> = process
            .open
            .iter()
            .filter(|(conn, end)| self.conns[*conn].ends[1 - end].node == b)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in between {
            for end in 0..2 {
                if self.conns[conn].ends[end].phase == Phase::Up {
                    self.tally.fault("sever");
                    let delay = self.rng.below(200 * MS);
                    let reason = Box::new(CloseReason::Transport {
                        code: 1,
                        by_peer: false,
                    });
                    self.later(delay, Happening::Down { conn, end, reason });
                }
            }
        }
    }

    // ---- timers

    fn on_timer(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.timer_at != Some(self.now) {
            return;
        }
        process.timer_at = None;
        self.on_timer_due(node);
    }

    fn on_timer_due(&mut self, node: usize) {
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

    fn arm(&mut self, node: usize) {
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

    fn watch_leave(&mut self, node: usize) {
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

    fn on_action(&mut self, node: usize, action: Action) {
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
            }) => self.dial(node, connection, expected, addr),
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
            Action::StartSync { connection } => self.send_sync(node, connection, None),
            Action::AnswerSync { connection, stream } => {
                self.send_sync(node, connection, Some(stream));
            }
            Action::SaveRoster => self.save(node),
        }
    }

    /// A certificate is the number of its node.
    fn save(&mut self, node: usize) {
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
    fn restore(&mut self, node: usize, image: &Image) {
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

    fn sign(&mut self, node: usize, record: Record) {
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

    fn on_resolved(&mut self, node: usize, life: u32, seed: &str) {
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

    // ---- datagrams

    fn on_transmit(&mut self, node: usize, transmit: swim::Transmit) {
        self.note(&[1, node as u64, self.now]);
        self.note_bytes(&transmit.payload);
        let now = self.now;
        let limit = self.options.swim.max_payload_bytes;
        let skewed = self.script.skewed.contains(node);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if self.options.checked {
            if transmit.payload.len() > limit {
                let size = transmit.payload.len();
                self.violate(node, &format!("a datagram of {size} bytes"));
                return;
            }
            process.observer.on_transmit(now, &transmit);
            let waiting = process.cluster.swim().pending_events();
            if let Err(why) = process
                .observer
                .on_shared_datagram(&transmit, waiting, limit)
            {
                self.violate(node, &why);
                return;
            }
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.sent += 1;
        self.tally.datagrams += 1;
        self.tally.bytes += transmit.payload.len() as u64;
        if process.keys == 0 {
            self.tally.count("unsealed_datagrams");
            return;
        }
        process.counter += 1;
        let (boot, counter, keys) = (process.boot, process.counter, process.keys);
        let mut payload = transmit.payload;
        if skewed {
            // A field of a newer version: number 100, a varint.
            payload.extend([0xa0, 0x06, 0x01]);
        }
        let datagram = Datagram {
            from: node,
            boot,
            counter,
            keys,
            from_addr: gossip_addr(self.nodes[node].addr),
            to_addr: transmit.destination,
            payload: payload.into(),
        };
        self.send(datagram);
    }

    /// Seals what a node says beside its core.
    pub(crate) fn send_as(&mut self, node: usize, to_addr: SocketAddr, payload: &[u8]) {
        let from_addr = gossip_addr(self.nodes[node].addr);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.counter += 1;
        let datagram = Datagram {
            from: node,
            boot: process.boot,
            counter: process.counter,
            keys: process.keys,
            from_addr,
            to_addr,
            payload: payload.into(),
        };
        self.send(datagram);
    }

    /// Puts a sealed datagram on the network.
    pub(crate) fn send(&mut self, datagram: Datagram) {
        let from = datagram.from;
        if let Some(percent) = self.conditions.full(from)
            && self.chance(percent)
        {
            self.tally.fault("full_queue");
            return;
        }
        let Some(to) = self.owner_of(datagram.to_addr) else {
            return;
        };
        if self.conditions.has_outsider() {
            let place = self.rng.index(RECORDED);
            if self.recorded.len() < RECORDED {
                self.recorded.push(datagram.clone());
            } else {
                self.recorded[place] = datagram.clone();
            }
        }
        if self.conditions.is_blocked(from, to) {
            self.tally.fault("block");
            return;
        }
        let loss = self.conditions.loss(from, to);
        if self.chance(loss) {
            self.tally.fault("loss");
            return;
        }
        if let Some(act) = self.conditions.clogged(from, to) {
            self.tally.fault("clog");
            self.conditions.clog(act, datagram);
            return;
        }
        let corrupt = self.conditions.corrupt();
        if self.chance(corrupt) {
            // It arrives, does not open and changes nothing.
            self.tally.fault("corrupt");
            return;
        }
        let mut delay = self.latency(from, to);
        let reorder = self.conditions.reorder();
        if self.chance(reorder) {
            self.tally.fault("reorder");
            delay += self.rng.below(500 * MS);
        }
        let duplicate = self.conditions.duplicate();
        if self.chance(duplicate) {
            self.tally.fault("duplicate");
            let again = delay + self.rng.below(500 * MS);
            self.later(again, Happening::Datagram(Box::new(datagram.clone())));
        }
        self.later(delay, Happening::Datagram(Box::new(datagram)));
    }

    fn on_datagram(&mut self, datagram: &Datagram) {
        let Some(node) = self.at_address(datagram.to_addr) else {
            return;
        };
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.exiting || datagram.from == node {
            return;
        }
        let sender = name_of(datagram.from);
        let known = process
            .cluster
            .swim()
            .member(&sender)
            .map(|m| m.record.record.boot);
        if known != Some(datagram.boot) || process.keys & datagram.keys == 0 {
            self.tally.unopened += 1;
            return;
        }
        let window = process.windows.entry(datagram.from).or_default();
        if !window.accept(datagram.boot, datagram.counter) {
            self.tally.count("replays_refused");
            return;
        }
        self.take_message(node, datagram.from, datagram.from_addr, &datagram.payload);
    }

    /// Gives a node the content of a datagram that opened.
    pub(crate) fn take_message(
        &mut self,
        node: usize,
        from: usize,
        from_addr: SocketAddr,
        payload: &[u8],
    ) {
        let Ok(message) = swim::Message::decode(payload) else {
            self.tally.count("undecodable");
            return;
        };
        let now = self.local(node);
        let records = self.verify(node, &message);
        let forced: Vec<ForcedLeave> = message.forced_leaves().cloned().collect();
        let events = message.events.clone();
        let statements = message.statements.len();
        let sender = name_of(from);
        let at = self.now;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process
            .observer
            .on_message(at, &sender, &message.body, statements);
        process
            .cluster
            .handle_gossip(now, &sender, from_addr, message, records);
        for forced in forced {
            if self.registry.is_forced_signed(&forced) {
                process.cluster.handle_forced_leave(now, forced);
            } else {
                self.tally.count("statements_refused");
            }
        }
        if !events.is_empty() {
            // What is sent now was composed before these came.
            self.settle(node);
        }
        for event in events {
            self.take_event(node, &event);
        }
        self.settle(node);
    }

    // ---- events of applications

    /// The application of a node emits an event. Returns its number; the caller lets the node settle.
    pub(crate) fn emit(&mut self, node: usize, bytes: usize) -> Option<u64> {
        let now = self.local(node);
        let serial = self.emissions;
        let mut payload = serial.to_be_bytes().to_vec();
        payload.resize(bytes.max(payload.len()), serial as u8);
        let query = serial.is_multiple_of(4).then(|| swim::Query {
            filter: swim::QueryFilter::all(),
            timeout: Duration::from_secs(5),
        });
        let process = self.nodes[node].process.as_mut()?;
        let event = match process.cluster.prepare_event("e", payload, query) {
            Ok(event) => event,
            Err(swim::EmitError::QueueFull(_)) => {
                self.tally.count("emissions_refused");
                return None;
            }
            Err(swim::EmitError::Left) => return None,
            Err(error) => {
                self.violate(node, &format!("cannot emit: {error}"));
                return None;
            }
        };
        if let Err(why) = process.observer.on_emit(&event) {
            self.violate(node, &why);
            return None;
        }
        self.emissions += 1;
        self.tally.count("emissions");
        let number = event.number;
        let event = self.registry.sign_event(event);
        if let Some(process) = &mut self.nodes[node].process {
            process.cluster.handle_user_event(now, event);
        }
        Some(number)
    }

    /// Takes an event as the reactor does: first whether it is new here, then whether its origin,
    /// whose certificate has to be known, has signed it.
    fn take_event(&mut self, node: usize, signed: &swim::SignedEvent) {
        let now = self.local(node);
        let Ok(event) = swim::UserEvent::decode(&signed.payload) else {
            self.tally.count("events_refused");
            return;
        };
        let origin = self.index_of(&event.origin);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let before = *process.cluster.swim().counters();
        if !process.cluster.is_new_event(&event) {
            let after = process.cluster.swim().counters();
            self.tally
                .count(if after.events_copies > before.events_copies {
                    "event_copies"
                } else if after.events_strangers > before.events_strangers {
                    "events_of_strangers"
                } else {
                    "events_stale"
                });
            return;
        }
        let is_known = origin.is_some_and(|origin| process.certificates.contains(origin));
        if !is_known || !self.registry.is_event_signed(signed) {
            self.tally.count("events_refused");
            return;
        }
        let event = swim::VerifiedEvent {
            event,
            signed: signed.clone(),
        };
        process.cluster.handle_user_event(now, event);
    }

    fn verify(
        &mut self,
        node: usize,
        message: &swim::Message,
    ) -> Vec<Arc<nodosum::unversioned::record::VerifiedRecord>> {
        let now = self.local(node);
        let mut verified = Vec::new();
        for signed in &message.records {
            let Some(record) = self.registry.find(signed) else {
                self.tally.count("records_refused");
                continue;
            };
            let record = Arc::clone(record);
            let owner = self.index_of(&record.record.node);
            let Some(process) = &mut self.nodes[node].process else {
                continue;
            };
            let Some(owner) = owner else {
                continue;
            };
            if process.certificates.contains(owner) {
                verified.push(record);
                continue;
            }
            let (name, addr) = (record.record.node.clone(), record.record.quic_addr);
            let is_left = record.record.left;
            if !process
                .waiting
                .iter()
                .any(|(_, waiting)| Arc::ptr_eq(waiting, &record))
            {
                if process.waiting.len() >= MAX_WAITING {
                    process.waiting.pop_front();
                }
                process.waiting.push_back((owner, record));
            }
            if !is_left {
                process.cluster.handle_hint(now, &name, addr);
            }
        }
        verified
    }

    /// A node has seen a certificate; what waited for it comes out.
    fn learn_certificate(
        &mut self,
        node: usize,
        of: usize,
    ) -> Vec<Arc<nodosum::unversioned::record::VerifiedRecord>> {
        let Some(process) = &mut self.nodes[node].process else {
            return Vec::new();
        };
        process.certificates.insert(of);
        if process.waiting.is_empty() {
            return Vec::new();
        }
        let (released, waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut process.waiting)
            .into_iter()
            .partition(|(owner, _)| *owner == of);
        process.waiting = waiting;
        released.into_iter().map(|(_, record)| record).collect()
    }

    // ---- connections: from dial to up

    fn end_of(&self, node: usize, id: ConnectionId) -> Option<(usize, usize)> {
        let place = usize::try_from(id.0).ok()?.checked_sub(1)?;
        *self.process(node)?.ends.get(place)?
    }

    fn register(&mut self, conn: usize, end: usize) {
        let End { node, id, .. } = self.conns[conn].ends[end];
        let place = (id.0 as usize).saturating_sub(1);
        if let Some(process) = &mut self.nodes[node].process {
            if process.ends.len() <= place {
                process.ends.resize(place + 1, None);
            }
            process.ends[place] = Some((conn, end));
            process.open.insert((conn, end));
        }
    }

    fn new_end(&self, node: usize, id: ConnectionId, phase: Phase) -> End {
        End {
            node,
            life: self.life(node).unwrap_or(0),
            id,
            phase,
            heard_at: self.now,
            missed: 0,
            refused: false,
            stalled: false,
            frames: VecDeque::new(),
            sending: false,
        }
    }

    fn dial(&mut self, node: usize, id: ConnectionId, expected: Option<NodeId>, addr: SocketAddr) {
        self.note(&[4, node as u64, id.0]);
        self.tally.dials += 1;
        if self.options.checked {
            if let Some(process) = &mut self.nodes[node].process
                && (process.exiting || process.leaving)
            {
                self.violate(node, "dials although it stops");
            } else if let Some(process) = &mut self.nodes[node].process
                && process.observer.on_dial(addr)
            {
                self.violate(node, &format!("dials {addr} again, which is its own"));
            }
        }
        let conn = self.conns.len();
        self.conns.push(Conn {
            ends: [
                self.new_end(node, id, Phase::Handshaking),
                self.new_end(usize::MAX, ConnectionId(0), Phase::None),
            ],
            expected,
            addr,
            started_at: self.now,
        });
        self.register(conn, 0);
        self.later(HANDSHAKE, Happening::DialDeadline { conn, end: 0 });
        let to = self.owner_of(addr).unwrap_or(node);
        let latency = self.reliable_latency(node, to, FIRST_PTO);
        self.later(
            latency,
            Happening::Leg {
                conn,
                leg: 1,
                tries: 0,
            },
        );
    }

    fn on_leg(&mut self, conn: usize, leg: u8, tries: u32) {
        let dialler = self.conns[conn].ends[0].node;
        if self.conns[conn].ends[0].phase == Phase::Over && leg.is_multiple_of(2) {
            return;
        }
        let acceptor = if leg == 1 {
            self.owner_of(self.conns[conn].addr)
        } else {
            Some(self.conns[conn].ends[1].node)
        };
        let Some(acceptor) = acceptor else {
            return;
        };
        let (from, to) = if leg % 2 == 1 {
            (dialler, acceptor)
        } else {
            (acceptor, dialler)
        };
        if self.conditions.is_blocked(from, to) && from != to {
            self.tally.fault("block_handshake");
            if self.now < self.conns[conn].started_at + HANDSHAKE {
                let again = (FIRST_PTO << tries.min(4)).min(MAX_PTO);
                self.later(
                    again,
                    Happening::Leg {
                        conn,
                        leg,
                        tries: tries + 1,
                    },
                );
            }
            return;
        }
        match leg {
            1 => self.on_first_flight(conn, acceptor, tries),
            2 => {
                let name = name_of(acceptor);
                let is_wanted = self.conns[conn]
                    .expected
                    .as_ref()
                    .is_none_or(|e| *e == name);
                if is_wanted {
                    self.next_leg(conn, 3);
                } else {
                    self.tally.count("wrong_identities");
                    let reason = CloseReason::WrongIdentity(format!("it is {name}"));
                    self.on_down(conn, 0, &reason);
                }
            }
            3 if self.is_current(conn, 1) => self.next_leg(conn, 4),
            4 if self.is_current(conn, 0) => {
                self.next_leg(conn, 5);
                self.on_up(conn, 0);
            }
            5 if self.is_current(conn, 1) => self.on_up(conn, 1),
            _ => {}
        }
    }

    fn next_leg(&mut self, conn: usize, leg: u8) {
        let (a, b) = (self.conns[conn].ends[0].node, self.conns[conn].ends[1].node);
        let (from, to) = if leg % 2 == 1 { (a, b) } else { (b, a) };
        let latency = self.reliable_latency(from, to, FIRST_PTO);
        self.later(
            latency,
            Happening::Leg {
                conn,
                leg,
                tries: 0,
            },
        );
    }

    fn on_first_flight(&mut self, conn: usize, owner: usize, tries: u32) {
        let dialler = self.conns[conn].ends[0].node;
        let Some(acceptor) = self.at_address(self.conns[conn].addr) else {
            let answers = self.nodes[owner].host_up && self.script.icmp;
            if answers && !self.conditions.is_blocked(owner, dialler) {
                let latency = self.latency(owner, dialler);
                let reason = Box::new(CloseReason::Refused);
                self.later(
                    latency,
                    Happening::Down {
                        conn,
                        end: 0,
                        reason,
                    },
                );
            } else if self.now < self.conns[conn].started_at + HANDSHAKE {
                let again = (FIRST_PTO << tries.min(4)).min(MAX_PTO);
                self.later(
                    again,
                    Happening::Leg {
                        conn,
                        leg: 1,
                        tries: tries + 1,
                    },
                );
            }
            return;
        };
        if acceptor == dialler {
            self.tally.count("self_dials");
            let reason = Box::new(CloseReason::Local(CloseCode::SelfDial));
            self.later(
                MS,
                Happening::Down {
                    conn,
                    end: 0,
                    reason,
                },
            );
            return;
        }
        let Some(process) = &mut self.nodes[acceptor].process else {
            return;
        };
        if process.exiting {
            return;
        }
        let id = process.cluster.allocate();
        self.conns[conn].ends[1] = self.new_end(acceptor, id, Phase::Handshaking);
        self.register(conn, 1);
        self.later(HANDSHAKE, Happening::DialDeadline { conn, end: 1 });
        self.next_leg(conn, 2);
    }

    fn on_up(&mut self, conn: usize, end: usize) {
        if self.conns[conn].ends[end].phase != Phase::Handshaking {
            return;
        }
        self.conns[conn].ends[end].phase = Phase::Up;
        self.conns[conn].ends[end].heard_at = self.now;
        let node = self.conns[conn].ends[end].node;
        let peer = self.conns[conn].ends[1 - end].node;
        let id = self.conns[conn].ends[end].id;
        let proven = self.learn_certificate(node, peer);
        // HELLO told the boot id and the keyring; the peer may have ended since.
        let peer_life = self.conns[conn].ends[1 - end].life;
        let (boot, peer_keys) = match self.process(peer) {
            Some(process) if process.life == peer_life => (process.boot, process.keys),
            Some(_) | None => (self.truth.boot_of(peer, peer_life), 0),
        };
        let now = self.local(node);
        let addr = self.conns[conn].addr;
        self.note(&[5, node as u64, id.0, peer as u64]);
        self.say(|| format!("{} {id} up with {}", name_of(node), name_of(peer)));
        let (side, addr) = if end == 0 {
            (Side::Dialed, addr)
        } else {
            let port = 30_000 + (conn % 30_000) as u16;
            (Side::Accepted, socket(self.nodes[peer].addr, port))
        };
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let rings_differ = process.keys != peer_keys;
        let keys = process.keys;
        process.cluster.handle_up(
            now,
            id,
            &name_of(peer),
            boot,
            side,
            addr,
            proven,
            rings_differ,
        );
        self.tally.count("connections_up");
        if keys != 0 {
            self.send_frame(node, id, Wire::Keys(keys));
        }
        self.settle(node);
        // What the other end has said since it was up itself waits for this.
        self.send_on(conn, 1 - end);
    }

    // ---- connections: frames and syncs

    fn send_frame(&mut self, node: usize, id: ConnectionId, wire: Wire) {
        let Some((conn, end)) = self.end_of(node, id) else {
            return;
        };
        if self.conns[conn].ends[end].phase != Phase::Up {
            return;
        }
        let full = self.conditions.full(node);
        if self.conns[conn].ends[end].frames.len() >= FRAME_CAPACITY
            || full.is_some_and(|percent| self.rng.below(1_000) < percent)
        {
            // A worker that takes no command is stuck; nothing is lost in silence.
            self.tally.fault("stuck_worker");
            self.close(conn, end, CloseCode::Overloaded);
            return;
        }
        let wire = match wire {
            Wire::Frame(Frame::EventClock(clock)) if self.conditions.insider() == Some(node) => {
                Wire::Frame(Frame::EventClock(self.false_clock(clock)))
            }
            wire => wire,
        };
        let to = self.conns[conn].ends[1 - end].node;
        let latency = self.reliable_latency(node, to, PTO);
        let frames = &mut self.conns[conn].ends[end].frames;
        let last = frames.back().map_or(0, |(at, _)| *at);
        frames.push_back(((self.now + latency).max(last), wire));
        self.send_on(conn, end);
    }

    /// Puts the delivery of the first frame of `end` on the agenda, once the other end is up.
    fn send_on(&mut self, conn: usize, end: usize) {
        if self.conns[conn].ends[1 - end].phase != Phase::Up {
            return;
        }
        let sender = &mut self.conns[conn].ends[end];
        if sender.sending {
            return;
        }
        if let Some((at, _)) = sender.frames.front() {
            sender.sending = true;
            let at = (*at).max(self.now);
            self.queue.push(
                at,
                Happening::Deliver {
                    conn,
                    end,
                    tries: 0,
                },
            );
        }
    }

    fn on_deliver(&mut self, conn: usize, end: usize, tries: u32) {
        let (from, to) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        self.conns[conn].ends[end].sending = false;
        if self.conns[conn].ends[1 - end].phase != Phase::Up || !self.is_current(conn, 1 - end) {
            self.conns[conn].ends[end].frames.clear();
            return;
        }
        if self.conditions.is_blocked(from, to) {
            self.tally.fault("block_frame");
            if self.conns[conn].ends[end].phase != Phase::Up {
                return;
            }
            self.conns[conn].ends[end].sending = true;
            let again = (PTO << tries.min(5)).min(MAX_PTO);
            self.later(
                again,
                Happening::Deliver {
                    conn,
                    end,
                    tries: tries + 1,
                },
            );
            return;
        }
        let Some((_, wire)) = self.conns[conn].ends[end].frames.pop_front() else {
            return;
        };
        let id = self.conns[conn].ends[1 - end].id;
        self.conns[conn].ends[1 - end].heard_at = self.now;
        let now = self.local(to);
        if let Some(process) = &mut self.nodes[to].process {
            match wire {
                Wire::Frame(Frame::UserEvents(events)) => {
                    self.tally.frames += events.len() as u64;
                    let told = process.cluster.swim().counters().events_received;
                    for event in events {
                        self.take_event(to, &event.signed);
                    }
                    let after = self
                        .cluster(to)
                        .map_or(0, |cluster| cluster.swim().counters().events_received);
                    self.tally
                        .add("events_mended_by_sync", after.saturating_sub(told));
                }
                Wire::Frame(frame) => {
                    self.tally.frames += 1;
                    process.cluster.handle_frame(now, id, frame);
                }
                Wire::Use => process.cluster.handle_used(now, id),
                Wire::Keys(keys) => self.merge_keys(to, keys),
            }
        }
        self.settle(to);
        self.send_on(conn, end);
    }

    /// A ring that grew is told to every peer.
    fn merge_keys(&mut self, node: usize, keys: u64) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.keys | keys == process.keys {
            return;
        }
        process.keys |= keys;
        let keys = process.keys;
        let open: Vec<_> = process.open.iter().copied().collect();
        for (conn, end) in open {
            let id = self.conns[conn].ends[end].id;
            self.send_frame(node, id, Wire::Keys(keys));
        }
    }

    fn send_sync(&mut self, node: usize, id: ConnectionId, answer_to: Option<u64>) {
        let now = self.local(node);
        self.note(&[6, node as u64, id.0]);
        let open = self
            .end_of(node, id)
            .filter(|(conn, end)| self.conns[*conn].ends[*end].phase == Phase::Up);
        let full = self.conditions.full(node);
        let refused = full.is_some_and(|percent| self.chance(percent));
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let Some((conn, end)) = open.filter(|_| !refused) else {
            if answer_to.is_none() {
                self.tally.count("syncs_not_begun");
                process.cluster.handle_sync_broken(now, id);
            }
            return;
        };
        let mut entries = process.cluster.sync_entries(id);
        process.streams += 1;
        let (keys, stream) = (process.keys, process.streams);
        if let Some(node) = self.conditions.insider()
            && node == self.conns[conn].ends[end].node
        {
            self.lie(&mut entries);
        }
        let to = self.conns[conn].ends[1 - end].node;
        let latency = self.reliable_latency(node, to, PTO)
            + entries.len() as u64 * SYNC_ENTRY_BYTES * SEC / SYNC_RATE;
        self.tally.count(if answer_to.is_some() {
            "sync_answers"
        } else {
            "syncs"
        });
        // An answer needs no number; only questions are answered.
        let sync = SyncOnWire {
            conn,
            end,
            entries,
            keys,
            stream: answer_to.is_none().then_some(stream),
            tries: 0,
        };
        self.later(latency, Happening::Sync(Box::new(sync)));
    }

    fn on_sync(&mut self, mut sync: Box<SyncOnWire>) {
        let (conn, end) = (sync.conn, sync.end);
        let (from, to) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        if self.conns[conn].ends[1 - end].phase == Phase::Handshaking {
            // Nothing but the control stream is read before READY.
            self.later(MS, Happening::Sync(sync));
            return;
        }
        if self.conns[conn].ends[1 - end].phase != Phase::Up || !self.is_current(conn, 1 - end) {
            self.tally.count("syncs_lost");
            return;
        }
        if self.conditions.is_blocked(from, to) {
            if self.conns[conn].ends[end].phase == Phase::Up {
                let again = (PTO << sync.tries.min(5)).min(MAX_PTO);
                sync.tries += 1;
                self.later(again, Happening::Sync(sync));
            }
            return;
        }
        let id = self.conns[conn].ends[1 - end].id;
        self.conns[conn].ends[1 - end].heard_at = self.now;
        self.merge_keys(to, sync.keys);
        let mut entries = Vec::with_capacity(sync.entries.len());
        for entry in sync.entries {
            let owner = self.index_of(&entry.record.record.node);
            let released = owner.map_or_else(Vec::new, |owner| self.learn_certificate(to, owner));
            // What waited for the certificate is no newer word than a sync is.
            entries.extend(
                released
                    .into_iter()
                    .filter(|record| record.record.incarnation > entry.record.record.incarnation)
                    .map(|record| SyncEntry {
                        record,
                        status: nodosum::MemberStatus::Alive,
                        forced: None,
                    }),
            );
            entries.push(entry);
        }
        let forced: Vec<ForcedLeave> = entries
            .iter()
            .filter_map(|entry| entry.forced.as_deref())
            .filter(|forced| self.registry.is_forced_signed(forced))
            .cloned()
            .collect();
        let now = self.local(to);
        if let Some(process) = &mut self.nodes[to].process {
            process.observer.on_sync(entries.len());
            process.cluster.handle_sync(now, id, entries, sync.stream);
            for forced in forced {
                process.cluster.handle_forced_leave(now, forced);
            }
        }
        self.settle(to);
    }

    // ---- connections: pings and ends

    fn on_ping_tick(&mut self, node: usize, life: u32) {
        if self.life(node) != Some(life) {
            return;
        }
        let Some(process) = self.process(node) else {
            return;
        };
        let open: Vec<_> = process.open.iter().copied().collect();
        let up = open
            .iter()
            .filter(|(conn, end)| self.conns[*conn].ends[*end].phase == Phase::Up)
            .count() as u64;
        for (conn, end) in open {
            if self.life(node) == Some(life) && self.conns[conn].ends[end].phase == Phase::Up {
                self.ping(conn, end);
            }
        }
        // As the reactor does: at most a hundred pings a second, yet before the idle time-out.
        let interval = (SEC.max(up * 10 * MS)).min(IDLE / 3);
        self.later(interval, Happening::PingTick { node, life });
    }

    /// One health ping, from sending to its outcome.
    fn ping(&mut self, conn: usize, end: usize) {
        let (node, peer) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        if self.now - self.conns[conn].ends[end].heard_at >= IDLE {
            self.tally.count("idle_timeouts");
            self.on_down(conn, end, &CloseReason::Idle);
            return;
        }
        self.tally.pings += 1;
        let forth = !self.conditions.is_blocked(node, peer) && self.gets_through(node, peer);
        let back = !self.conditions.is_blocked(peer, node) && self.gets_through(peer, node);
        let has_end =
            self.conns[conn].ends[1 - end].phase == Phase::Up && self.is_current(conn, 1 - end);
        let state = self.process(peer).map(|p| (p.paused > 0, p.stalled > 0));
        let mut answered = false;
        let heard_before = self.conns[conn].ends[end].heard_at;
        match state {
            Some((paused, stalled)) if has_end => {
                if forth {
                    self.conns[conn].ends[1 - end].heard_at = self.now;
                }
                if forth && back && !paused {
                    self.conns[conn].ends[end].heard_at = self.now;
                    answered = !stalled;
                }
            }
            // It runs and knows nothing of this connection: its socket is closed, or its listener
            // says that there is no such connection.
            Some((false, _))
                if forth && back && self.conns[conn].ends[1 - end].phase == Phase::Over =>
            {
                self.refusal_later(conn, end, end == 0);
            }
            None if forth && back && self.nodes[peer].host_up && self.script.icmp => {
                self.refusal_later(conn, end, false);
            }
            Some(_) | None => {}
        }
        let is_silent = self.conns[conn].ends[end].heard_at == heard_before;
        self.conns[conn].ends[end].stalled &= is_silent;
        if is_silent && !self.conns[conn].ends[end].stalled {
            // QUIC's probe time-outs add up to this while nothing comes back.
            let silent_since = heard_before;
            self.later(
                STALL,
                Happening::Stalled {
                    conn,
                    end,
                    silent_since,
                },
            );
        }
        if answered {
            self.conns[conn].ends[end].missed = 0;
            self.on_ping_answered(conn, end);
            return;
        }
        self.conns[conn].ends[end].missed += 1;
        if self.conns[conn].ends[end].missed == PINGS_MISSED {
            self.tally.count("pings_missed");
            self.doubt(conn, end, Doubt::Unanswered);
        }
    }

    fn on_stalled(&mut self, conn: usize, end: usize, silent_since: u64) {
        let state = &mut self.conns[conn].ends[end];
        if state.phase == Phase::Up && state.heard_at == silent_since && !state.stalled {
            state.stalled = true;
            if self.is_current(conn, end) {
                self.doubt(conn, end, Doubt::Stalled);
            }
        }
    }

    /// Whether a ping or its answer arrives within the interval; QUIC sends it about three times.
    fn gets_through(&mut self, from: usize, to: usize) -> bool {
        let loss = self.conditions.loss(from, to);
        loss == 0 || (0..3).any(|_| !self.chance(loss))
    }

    fn refusal_later(&mut self, conn: usize, end: usize, reset: bool) {
        if std::mem::replace(&mut self.conns[conn].ends[end].refused, true) {
            return;
        }
        let (node, peer) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        let round_trip = self.latency(node, peer) + self.latency(peer, node);
        self.later(round_trip, Happening::Refusal { conn, end, reset });
    }

    fn on_refusal(&mut self, conn: usize, end: usize, reset: bool) {
        if self.conns[conn].ends[end].phase != Phase::Up || !self.is_current(conn, end) {
            return;
        }
        self.tally.count(if reset { "resets" } else { "refusals" });
        self.doubt(conn, end, Doubt::Refused);
        if self.conns[conn].ends[end].phase != Phase::Up {
            return;
        }
        if reset {
            self.on_down(conn, end, &CloseReason::Reset);
        } else {
            let reason = Box::new(CloseReason::Refused);
            self.later(REFUSED_PATIENCE, Happening::Down { conn, end, reason });
        }
    }

    /// The answer proves the peer's deciding thread alive at the time of the question.
    fn on_ping_answered(&mut self, conn: usize, end: usize) {
        let End { node, id, .. } = self.conns[conn].ends[end];
        let now = self.local(node);
        let round_trip = Duration::from_micros(2 * self.script.latency_us);
        if let Some(process) = &mut self.nodes[node].process {
            let at = now.checked_sub(round_trip).unwrap_or(now);
            process.cluster.handle_answered(now, id, at);
        }
        self.settle(node);
    }

    fn doubt(&mut self, conn: usize, end: usize, doubt: Doubt) {
        let End { node, id, .. } = self.conns[conn].ends[end];
        let peer = self.conns[conn].ends[1 - end].node;
        self.tally.count(match doubt {
            Doubt::Refused => "doubts_refused",
            Doubt::Lost => "doubts_lost",
            Doubt::Stalled => "doubts_stalled",
            Doubt::Unanswered => "doubts_unanswered",
        });
        let now = self.local(node);
        let at = self.now;
        if let Some(process) = &mut self.nodes[node].process {
            if doubt == Doubt::Refused {
                process.observer.on_refused(peer, at);
            }
            process.cluster.handle_doubted(now, id, doubt);
        }
        self.settle(node);
    }

    /// A node closes its end.
    fn close(&mut self, conn: usize, end: usize, code: CloseCode) {
        if self.conns[conn].ends[end].phase == Phase::Over {
            return;
        }
        self.tell_close(conn, end, code);
        let reason = Box::new(CloseReason::Local(code));
        self.later(50_000, Happening::Down { conn, end, reason });
    }

    /// Three datagrams say that a connection was closed; nobody acknowledges them.
    fn tell_close(&mut self, conn: usize, end: usize, code: CloseCode) {
        let (from, to) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        if to == usize::MAX {
            return;
        }
        let arrives = !self.conditions.is_blocked(from, to) && self.gets_through(from, to);
        if arrives {
            let last = self.conns[conn].ends[end]
                .frames
                .back()
                .map_or(0, |(at, _)| *at);
            let latency = self.latency(from, to);
            let at = (self.now + latency).max(last + 1);
            self.queue.push(
                at,
                Happening::CloseArrives {
                    conn,
                    end: 1 - end,
                    code,
                },
            );
        } else {
            self.tally.count("closes_lost");
        }
    }

    /// An end is over, and its node hears why.
    fn on_down(&mut self, conn: usize, end: usize, reason: &CloseReason) {
        let state = &mut self.conns[conn].ends[end];
        if matches!(state.phase, Phase::Over | Phase::None) {
            return;
        }
        state.phase = Phase::Over;
        let (node, id) = (state.node, state.id);
        if !self.is_current(conn, end) {
            return;
        }
        self.note(&[7, node as u64, id.0]);
        self.say(|| format!("{} {id} down: {reason}", name_of(node)));
        let now = self.local(node);
        let (at, peer) = (self.now, self.conns[conn].ends[1 - end].node);
        let peer = if peer == usize::MAX {
            self.owner_of(self.conns[conn].addr)
        } else {
            Some(peer)
        };
        if let Some(process) = &mut self.nodes[node].process {
            if matches!(reason, CloseReason::Refused | CloseReason::Reset)
                && let Some(peer) = peer
            {
                process.observer.on_refused(peer, at);
            }
            process.open.remove(&(conn, end));
            process.cluster.handle_down(now, id, reason);
        }
        self.settle(node);
    }

    // ---- telling

    fn on_event(&mut self, node: usize, event: &Event) {
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
    fn ensure_key(&mut self, node: usize) {
        if self.process(node).is_some_and(|process| process.keys == 0) {
            let key = 1 << (self.next_key % 64);
            self.next_key += 1;
            self.merge_keys(node, key);
        }
    }
}

fn exponential(rng: &mut Rng, mean: u64) -> u64 {
    let uniform = (rng.u64() >> 11) as f64 / (1_u64 << 53) as f64;
    // Ten times the mean is rarer than one in twenty thousand; beyond it would be another fault.
    ((-(1.0 - uniform).ln()).min(10.0) * mean as f64) as u64
}

fn print_line(line: &str) {
    use std::io::Write as _;
    // A closed pipe ends nothing that matters.
    let _ = writeln!(std::io::stdout(), "{line}");
}
