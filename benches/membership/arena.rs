//! Where the experiments take place: nodes, a network and a clock, made for many nodes.
//!
//! The campaigns' simulator (`tests/support/sim`) hunts for faults with everything on; this one
//! measures, and leaves out what does not change a figure, so that thousands of nodes fit. Both run
//! the same cores. A node here is either
//!
//! - **whole**: a [`Cluster`], membership and mesh, with connections that take flights to set up,
//!   carry frames and syncs, are pinged, stall, idle out, and are refused by the host of a process
//!   that is gone; or
//! - **a model** of another system: a [`Swim`] alone, with some rules off. What memberlist does over
//!   TCP (join, sync, the probe over a stream) is done here by a direct exchange that costs round
//!   trips, repeats what is lost, and needs no standing connection. Whoever is pinged answers, also
//!   a stranger, since memberlist's packets carry no identity.
//!
//! Signatures verify when exactly these bytes were signed here; nodes share the records that verify.
//! A whole node opens a datagram when it knows the sender and its life. Whose certificate it has not
//! seen, by handshake or sync, has to wait, and is a hint where to dial.
//!
//! A node can be **deaf**, which is Lifeguard's kind of stress: its timers run, but what arrives and
//! what it sends waits until it hears again. Or it is **frozen**: the whole process stands still. In
//! both cases datagrams beyond a socket's buffer are lost.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use nodosum::{
    BootId, CloseCode, CloseReason, ClusterName, MemberStatus, NodeId, Side,
    unversioned::{
        ConnectionId,
        cluster::{self, Cluster, Frame},
        mesh,
        record::{Record, VerifiedRecord},
        rng::Rng,
        swim::{self, Body, Doubt, Message, Swim, SyncEntry},
        trust,
    },
};

use super::{queue::Queue, registry::Registry};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SEC: u64 = 1_000 * MS;

/// What a socket's buffer holds while nobody reads: Linux' 208 KiB in datagrams of half the size.
const SOCKET_DATAGRAMS: usize = 350;

/// The transport's numbers: deadline of a handshake, idle time-out, missed pings that are a doubt,
/// patience with a refused port, and the silence after a ping that counts as a stall.
const HANDSHAKE: u64 = 5 * SEC;
const IDLE: u64 = 15 * SEC;
const PINGS_MISSED: u8 = 3;
const REFUSED_PATIENCE: u64 = SEC;
const STALL: u64 = 500 * MS;

/// QUIC's probe time-out with a measured round trip, without one, and the longest.
const PTO: u64 = 100 * MS;
const FIRST_PTO: u64 = 300 * MS;
const MAX_PTO: u64 = 2 * SEC;

/// Bytes a second that a sync gets of the path.
const SYNC_RATE: u64 = 20_000_000;

/// IPv4 and UDP headers of a datagram.
const HEADERS: usize = 28;

/// What a packet of QUIC takes beside its frames: headers of IP and UDP, flags, an id of 8 bytes, a
/// packet number, a tag.
const QUIC_PACKET: usize = HEADERS + 1 + 8 + 3 + 16;
/// A health ping or its answer, and the acknowledgement of one, which half the time rides along.
const PING_BYTES: usize = QUIC_PACKET + 24 + (QUIC_PACKET + 8) / 2;
/// What each side of a handshake with certificates on both sides sends, HELLO and READY included.
const HANDSHAKE_BYTES: usize = 5_000;
/// A certificate of one of these nodes in DER.
const CERTIFICATE_BYTES: usize = 520;

/// What memberlist's records and datagrams do not have: a signature, and the digest of a
/// certificate, with their protobuf headers.
const SIGNED_EXTRA: usize = 71 + 2 + 34;

/// Who the nodes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Whole,
}

/// What a run is made of.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) kind: Kind,
    pub(crate) nodes: usize,
    pub(crate) seed: u64,
    pub(crate) swim: swim::Config,
    pub(crate) mesh: mesh::Config,
    /// The least time one way, and the mean of what is added to it.
    pub(crate) latency_us: u64,
    pub(crate) jitter_us: u64,
    /// Datagrams lost anywhere, in percent.
    pub(crate) loss: u64,
    /// Hosts say when nobody listens.
    pub(crate) icmp: bool,
}

/// How a node is hindered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    Deaf,
    Frozen,
}

enum Due {
    Timer(u32),
    Datagram(Box<Datagram>),
    /// The first flight of a dial arrives.
    Dialled(u32),
    Up {
        conn: u32,
        end: u8,
    },
    DialOver(u32),
    Frame {
        conn: u32,
        end: u8,
        frame: Box<Wire>,
        tries: u8,
    },
    Sync(Box<SyncOnWire>),
    Down {
        conn: u32,
        end: u8,
        reason: Box<CloseReason>,
    },
    Refusal {
        conn: u32,
        end: u8,
        reset: bool,
    },
    Stalled {
        conn: u32,
        end: u8,
        silent_since: u64,
    },
    PingTick {
        node: u32,
        life: u32,
    },
    Resolved {
        node: u32,
        seed: Box<str>,
    },
    Direct(Box<Direct>),
}

struct Datagram {
    from: u32,
    to: u32,
    boot: BootId,
    payload: Vec<u8>,
}

#[derive(Clone)]
enum Wire {
    Frame(Frame),
    Use,
    Close(CloseCode),
}

struct SyncOnWire {
    conn: u32,
    /// Who receives it.
    end: u8,
    entries: Vec<SyncEntry>,
    stream: Option<u64>,
    tries: u8,
}

/// What a model does over TCP.
struct Direct {
    from: u32,
    to: u32,
    what: DirectWhat,
    tries: u8,
}

enum DirectWhat {
    Sync {
        entries: Vec<SyncEntry>,
        answer: bool,
    },
    Ping {
        seq: u32,
    },
    Pong {
        seq: u32,
    },
    /// The sender's own record.
    Record,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    None,
    Handshaking,
    Up,
    Over,
}

struct End {
    node: u32,
    life: u32,
    id: ConnectionId,
    heard_at: u64,
    last_at: u64,
    phase: Phase,
    missed: u8,
    refused: bool,
    stalled: bool,
}

struct Conn {
    ends: [End; 2],
    is_seed: bool,
}

enum Brain {
    Model(Box<Swim>),
    Whole(Box<Cluster>),
}

impl Brain {
    fn swim(&self) -> &Swim {
        match self {
            Self::Model(swim) => swim,
            Self::Whole(cluster) => cluster.swim(),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Model(swim) => swim.poll_timeout(),
            Self::Whole(cluster) => cluster.poll_timeout(),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Model(swim) => swim.handle_timeout(now),
            Self::Whole(cluster) => cluster.handle_timeout(now),
        }
    }
}

/// Something that a node has told, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) at: u64,
    pub(crate) node: u32,
    pub(crate) what: What,
    pub(crate) of: u32,
    pub(crate) by: u32,
}

/// Transitions that experiments look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Up,
    Suspect,
    Alive,
    Dead,
    Left,
    Updated,
}

/// Bytes in one second at one node.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bytes {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

#[derive(Default)]
pub(crate) struct Node {
    name: Option<NodeId>,
    brain: Option<Brain>,
    boot: Option<BootId>,
    life: u32,
    incarnation: u64,
    timer_at: Option<u64>,
    hold: Option<Hold>,
    backlog: Vec<Due>,
    backlog_datagrams: usize,
    outbox: Vec<swim::Transmit>,
    certificates: Vec<u64>,
    waiting: VecDeque<(u32, Arc<VerifiedRecord>)>,
    ends: Vec<Option<(u32, u8)>>,
    open: BTreeSet<(u32, u8)>,
    streams: u64,
    ingress_loss: u64,
    egress_loss: u64,
    /// Of the second that runs.
    gossip: Bytes,
    pub(crate) total: Bytes,
    pub(crate) sync_bytes: u64,
    pub(crate) quic_bytes: u64,
    pub(crate) peak_waiting: usize,
}

impl Node {
    pub(crate) fn swim(&self) -> Option<&Swim> {
        self.brain.as_ref().map(Brain::swim)
    }
}

/// One run.
pub(crate) struct Arena {
    base: Instant,
    pub(crate) now: u64,
    pub(crate) setup: Setup,
    pub(crate) rng: Rng,
    queue: Queue<Due>,
    pub(crate) nodes: Vec<Node>,
    conns: Vec<Conn>,
    registry: Registry,
    cluster_name: ClusterName,
    pub(crate) log: Vec<Told>,
    /// Millions of entries are kept only for who looks at them.
    pub(crate) keeps_log: bool,
    /// One entry for each node and second, while metering.
    pub(crate) samples: Vec<Bytes>,
    metering: Option<u64>,
}

fn addr_of(node: u32, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0001 + node)), port)
}

fn node_at(addr: SocketAddr) -> Option<u32> {
    match addr.ip() {
        IpAddr::V4(ip) => u32::from(ip).checked_sub(0x0a00_0001),
        IpAddr::V6(_) => None,
    }
}

fn has(bits: &[u64], index: u32) -> bool {
    bits.get(index as usize / 64)
        .is_some_and(|word| word >> (index % 64) & 1 == 1)
}

fn put(bits: &mut Vec<u64>, index: u32) {
    let word = index as usize / 64;
    if bits.len() <= word {
        bits.resize(word + 1, 0);
    }
    bits[word] |= 1 << (index % 64);
}

impl Arena {
    /// Nobody runs yet.
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    pub(crate) fn new(setup: Setup) -> Self {
        let mut rng = Rng::new(setup.seed);
        let queue = Queue::new(rng.u64());
        let nodes = (0..setup.nodes)
            .map(|index| Node {
                name: Some(format!("n{}", index + 1).parse().expect("a label")),
                ..Node::default()
            })
            .collect();
        Self {
            base: Instant::now() + Duration::from_secs(1),
            now: 0,
            setup,
            rng,
            queue,
            nodes,
            conns: Vec::new(),
            registry: Registry::default(),
            cluster_name: "arena".parse().expect("a label"),
            log: Vec::new(),
            keeps_log: true,
            samples: Vec::new(),
            metering: None,
        }
    }

    /// A cluster that has known itself for long: everybody knows everybody, all connections are up
    /// and all news is told.
    pub(crate) fn formed(setup: Setup) -> Self {
        let mut arena = Self::new(setup);
        let now = arena.local();
        for node in 0..arena.setup.nodes as u32 {
            arena.make(node);
        }
        let records: Vec<Arc<VerifiedRecord>> = arena
            .nodes
            .iter()
            .filter_map(|node| node.swim().map(|swim| Arc::clone(swim.me())))
            .collect();
        match arena.setup.kind {
            Kind::Model => {
                for node in &mut arena.nodes {
                    let (Some(Brain::Model(swim)), Some(name)) = (&mut node.brain, &node.name)
                    else {
                        continue;
                    };
                    // As others tell it, since a model's nodes have not met in any handshake.
                    let others = records.iter().filter(|record| record.record.node != *name);
                    let entries = others.map(|record| SyncEntry {
                        record: Arc::clone(record),
                        status: MemberStatus::Alive,
                        forced: None,
                    });
                    swim.handle_sync(now, name, entries.collect());
                    swim.forget_news();
                    while swim.poll_event().is_some() || swim.poll_action().is_some() {}
                }
            }
            Kind::Whole => arena.connect_all(&records),
        }
        for node in 0..arena.setup.nodes as u32 {
            arena.settle(node);
        }
        arena.log.clear();
        arena
    }

    fn connect_all(&mut self, records: &[Arc<VerifiedRecord>]) {
        let now = self.local();
        for node in &mut self.nodes {
            if let Some(Brain::Whole(cluster)) = &mut node.brain {
                cluster.start(now, Vec::new());
            }
            node.certificates = vec![u64::MAX; records.len() / 64 + 1];
        }
        for a in 0..records.len() as u32 {
            for b in a + 1..records.len() as u32 {
                // The lower id dials, and ids are ordered as text.
                let is_lower = records[a as usize].record.node < records[b as usize].record.node;
                let (dialler, acceptor) = if is_lower { (a, b) } else { (b, a) };
                self.connect(dialler, acceptor, records);
            }
            // What all of this asks for has been done by hand, or is repeated by nobody.
        }
        for node in &mut self.nodes {
            if let Some(Brain::Whole(cluster)) = &mut node.brain {
                while cluster.poll_action().is_some() {}
                while cluster.poll_event().is_some() {}
                while cluster.poll_transmit().is_some() {}
                cluster.forget_news();
            }
        }
    }

    fn connect(&mut self, dialler: u32, acceptor: u32, records: &[Arc<VerifiedRecord>]) {
        let now = self.local();
        let conn = self.conns.len() as u32;
        // Membership first, so that the mesh dials, and the dial is the one to be answered.
        for (node, other) in [(acceptor, dialler), (dialler, acceptor)] {
            let Some(Brain::Whole(cluster)) = &mut self.nodes[node as usize].brain else {
                continue;
            };
            let record = Arc::clone(&records[other as usize]);
            let id = cluster.allocate();
            let side = if node == dialler {
                Side::Dialed
            } else {
                Side::Accepted
            };
            let (peer, boot) = (record.record.node.clone(), record.record.boot);
            let addr = addr_of(other, 7_001);
            cluster.handle_up(now, id, &peer, boot, side, addr, Vec::new(), false);
            cluster.handle_frame(now, id, Frame::Record(record));
            if node == acceptor {
                self.conns.push(Conn {
                    ends: [
                        self.end(dialler, ConnectionId(0), Phase::Up),
                        self.end(acceptor, id, Phase::Up),
                    ],
                    is_seed: false,
                });
            } else {
                self.conns[conn as usize].ends[0].id = id;
            }
        }
        let id = self.conns[conn as usize].ends[1].id;
        if let Some(Brain::Whole(cluster)) = &mut self.nodes[acceptor as usize].brain {
            cluster.handle_used(now, id);
        }
        self.register(conn, 0);
        self.register(conn, 1);
        for node in [dialler, acceptor] {
            if let Some(Brain::Whole(cluster)) = &mut self.nodes[node as usize].brain {
                while cluster.poll_action().is_some() {}
                while cluster.poll_event().is_some() {}
            }
        }
    }

    // ---- time

    pub(crate) fn local(&self) -> Instant {
        self.base + Duration::from_nanos(self.now)
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.base).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX / 4)
    }

    /// Lets everything until `until` happen.
    pub(crate) fn run_until(&mut self, until: u64) {
        loop {
            let next = self.queue.next_at().filter(|at| *at <= until);
            let second = self.metering.filter(|at| *at <= until);
            match (next, second) {
                (_, Some(at)) if next.is_none_or(|next| at <= next) => self.sample(at),
                (Some(_), _) => {
                    if let Some((at, due)) = self.queue.pop() {
                        self.now = self.now.max(at);
                        self.happen(due);
                    }
                }
                (None, _) => break,
            }
        }
        self.now = self.now.max(until);
    }

    pub(crate) fn run_for(&mut self, time: u64) {
        self.run_until(self.now + time);
    }

    /// From now on, what each node sends and receives in each second is kept.
    pub(crate) fn meter(&mut self) {
        for node in &mut self.nodes {
            node.gossip = Bytes::default();
            node.total = Bytes::default();
            node.sync_bytes = 0;
            node.quic_bytes = 0;
        }
        self.samples.clear();
        self.metering = Some(self.now + SEC);
    }

    fn sample(&mut self, at: u64) {
        for node in &mut self.nodes {
            let second = std::mem::take(&mut node.gossip);
            if node.brain.is_some() {
                node.total.sent += second.sent;
                node.total.received += second.received;
                self.samples.push(second);
            }
        }
        self.metering = Some(at + SEC);
    }

    fn later(&mut self, delay: u64, due: Due) {
        self.queue.push(self.now + delay, due);
    }

    // ---- the network

    fn latency(&mut self) -> u64 {
        let uniform = (self.rng.u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mean = (self.setup.jitter_us * 1_000) as f64;
        self.setup.latency_us * 1_000 + ((-(1.0 - uniform).ln()).min(10.0) * mean) as u64
    }

    /// Loses a datagram or packet, by chance.
    fn is_lost(&mut self, from: u32, to: u32) -> bool {
        [
            self.setup.loss,
            self.nodes[from as usize].egress_loss,
            self.nodes[to as usize].ingress_loss,
        ]
        .into_iter()
        .any(|percent| percent > 0 && self.rng.below(100) < percent)
    }

    /// QUIC sends a ping about three times before the next one is due.
    fn gets_through(&mut self, from: u32, to: u32) -> bool {
        (0..3).any(|_| !self.is_lost(from, to))
    }

    pub(crate) fn lose(&mut self, node: u32, ingress: u64, egress: u64) {
        let node = &mut self.nodes[node as usize];
        (node.ingress_loss, node.egress_loss) = (ingress, egress);
    }

    // ---- lives

    fn make(&mut self, index: u32) {
        let boot = BootId((u128::from(self.rng.u64()) << 64 | u128::from(index)).to_be_bytes());
        let mut certificate = [0; 32];
        certificate[..4].copy_from_slice(&index.to_be_bytes());
        let seed = self.rng.u64();
        let now = self.local();
        let node = &mut self.nodes[index as usize];
        node.incarnation += 1;
        node.life += 1;
        let Some(name) = node.name.clone() else {
            return;
        };
        let record = Record {
            cluster: self.cluster_name.clone(),
            node: name,
            incarnation: node.incarnation,
            boot,
            quic_addr: addr_of(index, 7_001),
            gossip_addr: addr_of(index, 7_000),
            tags: BTreeMap::new(),
            left: false,
            protocol: (1, 1),
            version: "0.1.0".into(),
            certificate,
        };
        let me = self.registry.sign(record);
        let brain = match self.setup.kind {
            Kind::Model => {
                Brain::Model(Box::new(Swim::new(self.setup.swim.clone(), me, seed, now)))
            }
            Kind::Whole => Brain::Whole(Box::new(Cluster::new(
                self.setup.swim.clone(),
                self.setup.mesh.clone(),
                me,
                seed,
                now,
            ))),
        };
        let node = &mut self.nodes[index as usize];
        node.brain = Some(brain);
        node.boot = Some(boot);
        node.timer_at = None;
        node.certificates.clear();
        put(&mut node.certificates, index);
        let life = node.life;
        if self.setup.kind == Kind::Whole {
            let first = self.rng.below(SEC);
            self.later(first, Due::PingTick { node: index, life });
        }
    }

    /// Starts a node that joins through `seed`; again, with its memory of its incarnation, if it
    /// ran before.
    pub(crate) fn start(&mut self, index: u32, seed: Option<u32>) {
        self.make(index);
        let now = self.local();
        let seeds: Vec<String> = seed
            .and_then(|seed| self.nodes[seed as usize].name.clone())
            .map(|name| name.to_string())
            .into_iter()
            .collect();
        match &mut self.nodes[index as usize].brain {
            Some(Brain::Whole(cluster)) => {
                cluster.start(now, seeds);
            }
            Some(Brain::Model(_)) => {
                if let Some(seed) = seed {
                    self.direct_sync(index, seed);
                }
            }
            None => {}
        }
        self.settle(index);
    }

    /// The process is gone without a word.
    pub(crate) fn crash(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.brain = None;
        node.backlog.clear();
        node.backlog_datagrams = 0;
        node.outbox.clear();
        node.hold = None;
        node.ends.clear();
        node.waiting.clear();
        for (conn, end) in std::mem::take(&mut node.open) {
            self.conns[conn as usize].ends[end as usize].phase = Phase::Over;
        }
    }

    pub(crate) fn leave(&mut self, index: u32) {
        let now = self.local();
        match &mut self.nodes[index as usize].brain {
            Some(Brain::Whole(cluster)) => cluster.leave(now),
            Some(Brain::Model(swim)) => swim.leave(now),
            None => {}
        }
        self.settle(index);
    }

    pub(crate) fn set_tags(&mut self, index: u32, value: String) {
        let now = self.local();
        let tags = BTreeMap::from([("v".to_owned(), value)]);
        // Small tags fit.
        let _ = match &mut self.nodes[index as usize].brain {
            Some(Brain::Whole(cluster)) => cluster.set_tags(now, tags),
            Some(Brain::Model(swim)) => swim.set_tags(now, tags),
            None => Ok(()),
        };
        self.settle(index);
    }

    pub(crate) fn hold(&mut self, index: u32, hold: Hold) {
        self.nodes[index as usize].hold = Some(hold);
    }

    pub(crate) fn release(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        if node.brain.is_none() || node.hold.take().is_none() {
            return;
        }
        let backlog = std::mem::take(&mut node.backlog);
        node.backlog_datagrams = 0;
        let outbox = std::mem::take(&mut node.outbox);
        for (conn, end) in &node.open {
            let conn = &mut self.conns[*conn as usize];
            if conn.ends[1 - *end as usize].phase == Phase::Up {
                conn.ends[*end as usize].heard_at = self.now;
            }
        }
        for transmit in outbox {
            self.send(index, transmit);
        }
        let (datagrams, others): (Vec<_>, Vec<_>) = backlog
            .into_iter()
            .partition(|due| matches!(due, Due::Datagram(_)));
        for due in datagrams.into_iter().chain(others) {
            self.happen(due);
        }
        self.on_timer(index);
    }

    pub(crate) fn is_running(&self, index: u32) -> bool {
        self.nodes[index as usize].brain.is_some()
    }

    /// How a node sees another.
    pub(crate) fn status(&self, at: u32, of: u32) -> Option<MemberStatus> {
        let name = self.nodes[of as usize].name.as_ref()?;
        let swim = self.nodes[at as usize].swim()?;
        swim.member(name).map(|member| member.status)
    }

    /// Members that a node holds for alive, itself included.
    pub(crate) fn size_at(&self, index: u32) -> usize {
        self.nodes[index as usize]
            .swim()
            .map_or(0, Swim::alive_count)
    }

    pub(crate) fn running(&self) -> usize {
        self.nodes.iter().filter(|n| n.brain.is_some()).count()
    }

    /// How much is going to happen.
    pub(crate) fn agenda(&self) -> usize {
        self.queue.len()
    }

    // ---- what happens

    fn concerns(&self, due: &Due) -> Option<u32> {
        match due {
            Due::Timer(_) | Due::DialOver(_) => None,
            Due::Datagram(datagram) => Some(datagram.to),
            Due::Dialled(conn) => Some(self.conns[*conn as usize].ends[1].node),
            Due::Up { conn, end }
            | Due::Frame { conn, end, .. }
            | Due::Down { conn, end, .. }
            | Due::Stalled { conn, end, .. }
            | Due::Refusal { conn, end, .. } => {
                Some(self.conns[*conn as usize].ends[*end as usize].node)
            }
            Due::Sync(sync) => Some(self.conns[sync.conn as usize].ends[sync.end as usize].node),
            Due::PingTick { node, .. } | Due::Resolved { node, .. } => Some(*node),
            Due::Direct(direct) => Some(direct.to),
        }
    }

    fn happen(&mut self, due: Due) {
        if let Some(index) = self.concerns(&due) {
            let node = &mut self.nodes[index as usize];
            if node.hold.is_some() {
                let is_datagram = matches!(due, Due::Datagram(_));
                if !is_datagram || node.backlog_datagrams < SOCKET_DATAGRAMS {
                    node.backlog_datagrams += usize::from(is_datagram);
                    node.backlog.push(due);
                }
                return;
            }
        }
        match due {
            Due::Timer(node) => {
                if self.nodes[node as usize].timer_at == Some(self.now) {
                    self.nodes[node as usize].timer_at = None;
                    self.on_timer(node);
                }
            }
            Due::Datagram(datagram) => self.on_datagram(*datagram),
            Due::Dialled(conn) => self.on_dialled(conn),
            Due::Up { conn, end } => self.on_up(conn, end),
            Due::DialOver(conn) => {
                for end in 0..2 {
                    if self.conns[conn as usize].ends[end as usize].phase == Phase::Handshaking {
                        let time = Duration::from_nanos(HANDSHAKE);
                        self.on_down(conn, end, &CloseReason::HandshakeTimeout(time));
                    }
                }
            }
            Due::Frame {
                conn,
                end,
                frame,
                tries,
            } => self.on_frame(conn, end, frame, tries),
            Due::Sync(sync) => self.on_sync(sync),
            Due::Down { conn, end, reason } => self.on_down(conn, end, &reason),
            Due::Refusal { conn, end, reset } => self.on_refusal(conn, end, reset),
            Due::Stalled {
                conn,
                end,
                silent_since,
            } => {
                let state = &mut self.conns[conn as usize].ends[end as usize];
                if state.phase == Phase::Up && state.heard_at == silent_since && !state.stalled {
                    state.stalled = true;
                    self.doubt(conn, end, Doubt::Stalled);
                }
            }
            Due::PingTick { node, life } => self.on_ping_tick(node, life),
            Due::Resolved { node, seed } => self.on_resolved(node, &seed),
            Due::Direct(direct) => self.on_direct(*direct),
        }
    }

    fn on_timer(&mut self, index: u32) {
        let now = self.local();
        let node = &mut self.nodes[index as usize];
        if node.hold == Some(Hold::Frozen) {
            return;
        }
        if let Some(brain) = &mut node.brain {
            if brain.poll_timeout().is_some_and(|at| at <= now) {
                brain.handle_timeout(now);
            }
            self.settle(index);
        }
    }

    /// Carries out what a node asks for, until it asks for nothing.
    fn settle(&mut self, index: u32) {
        loop {
            let node = &mut self.nodes[index as usize];
            match &mut node.brain {
                None => return,
                Some(Brain::Model(swim)) => {
                    if let Some(action) = swim.poll_action() {
                        self.on_model_action(index, action);
                    } else if let Some(event) = swim.poll_event() {
                        self.tell(index, &event);
                    } else if let Some(transmit) = swim.poll_transmit() {
                        self.transmit(index, transmit);
                    } else {
                        break;
                    }
                }
                Some(Brain::Whole(cluster)) => {
                    if let Some(action) = cluster.poll_action() {
                        self.on_action(index, action);
                    } else if let Some(event) = cluster.poll_event() {
                        if let cluster::Event::Member(event) = event {
                            self.tell(index, &event);
                        }
                    } else if let Some(transmit) = cluster.poll_transmit() {
                        self.transmit(index, transmit);
                    } else {
                        break;
                    }
                }
            }
        }
        let node = &self.nodes[index as usize];
        let Some(at) = node.brain.as_ref().and_then(Brain::poll_timeout) else {
            return;
        };
        let at = self.nanos(at).max(self.now);
        let node = &mut self.nodes[index as usize];
        if node.hold == Some(Hold::Frozen) || node.timer_at.is_some_and(|armed| armed <= at) {
            return;
        }
        node.timer_at = Some(at);
        self.queue.push(at, Due::Timer(index));
    }

    /// Names are numbers here, so that nothing has to be looked up.
    fn index(&self, name: &NodeId) -> u32 {
        let number = name.as_str().strip_prefix('n');
        let number: Option<u32> = number.and_then(|digits| digits.parse().ok());
        number.map_or(u32::MAX, |number| number.wrapping_sub(1))
    }

    fn tell(&mut self, index: u32, event: &swim::Event) {
        if !self.keeps_log {
            return;
        }
        let (what, of, by) = match event {
            swim::Event::Up { node } => (What::Up, node, None),
            swim::Event::Suspect { node, by } => (What::Suspect, node, Some(by)),
            swim::Event::Alive { node } => (What::Alive, node, None),
            swim::Event::Dead { node, by } => (What::Dead, node, Some(by)),
            swim::Event::Left { node, by } => (What::Left, node, by.as_ref()),
            swim::Event::Updated { node, .. } => (What::Updated, node, None),
            swim::Event::Forgotten { .. }
            | swim::Event::NameConflict { .. }
            | swim::Event::AddressConflict { .. }
            | swim::Event::User(_) => return,
        };
        let told = Told {
            at: self.now,
            node: index,
            what,
            of: self.index(of),
            by: by.map_or(u32::MAX, |by| self.index(by)),
        };
        self.log.push(told);
    }

    // ---- datagrams

    fn transmit(&mut self, index: u32, transmit: swim::Transmit) {
        let node = &mut self.nodes[index as usize];
        if node.hold.is_some() {
            if node.outbox.len() < SOCKET_DATAGRAMS {
                node.outbox.push(transmit);
            }
            return;
        }
        self.send(index, transmit);
    }

    fn send(&mut self, from: u32, transmit: swim::Transmit) {
        let Some(to) = node_at(transmit.destination).filter(|to| *to < self.setup.nodes as u32)
        else {
            return;
        };
        let Some(boot) = self.nodes[from as usize].boot else {
            return;
        };
        self.nodes[from as usize].gossip.sent += self.size(from, &transmit.payload) as u64;
        if self.is_lost(from, to) {
            return;
        }
        let delay = self.latency();
        let datagram = Datagram {
            from,
            to,
            boot,
            payload: transmit.payload,
        };
        self.later(delay, Due::Datagram(Box::new(datagram)));
    }

    /// What a datagram takes on the wire. A whole node's is sealed and its records are signed; a
    /// model's is what would be left without either.
    fn size(&self, from: u32, payload: &[u8]) -> usize {
        match self.setup.kind {
            Kind::Whole => {
                let name = self.nodes[from as usize].name.as_ref();
                HEADERS + payload.len() + trust::overhead(name.map_or(0, |n| n.as_str().len()))
            }
            Kind::Model => {
                let name = self.nodes[from as usize].name.as_ref();
                let message = name.and_then(|name| Message::decode(name, payload).ok());
                let records = message.map_or(0, |message| message.records.len());
                HEADERS + payload.len().saturating_sub(records * SIGNED_EXTRA)
            }
        }
    }

    fn on_datagram(&mut self, datagram: Datagram) {
        let Datagram {
            from,
            to,
            boot,
            payload,
        } = datagram;
        if self.nodes[to as usize].brain.is_none() {
            return;
        }
        self.nodes[to as usize].gossip.received += self.size(from, &payload) as u64;
        let Some(sender) = self.nodes[from as usize].name.clone() else {
            return;
        };
        let Ok(message) = Message::decode(&sender, &payload) else {
            return;
        };
        let now = self.local();
        let from_addr = addr_of(from, 7_000);
        let node = &mut self.nodes[to as usize];
        let known = node
            .swim()
            .and_then(|swim| swim.member(&sender))
            .map(|member| member.record.record.boot);
        match &mut node.brain {
            None => return,
            Some(Brain::Model(swim)) => {
                let records = message
                    .records
                    .iter()
                    .filter_map(|signed| self.registry.find(signed).cloned())
                    .collect();
                if let (None, Body::Ping { seq, target }) = (known, &message.body)
                    && node.name.as_ref() == Some(target)
                {
                    let answer = Message {
                        body: Body::Ack { seq: *seq },
                        statements: Vec::new(),
                        records: Vec::new(),
                        events: Vec::new(),
                    };
                    let transmit = swim::Transmit {
                        to: sender.clone(),
                        destination: from_addr,
                        payload: answer.encode(),
                    };
                    swim.handle_message(now, &sender, from_addr, message, records);
                    self.send(to, transmit);
                } else {
                    swim.handle_message(now, &sender, from_addr, message, records);
                }
            }
            Some(Brain::Whole(_)) => {
                if known != Some(boot) {
                    return;
                }
                let records = self.verify(to, &message);
                if let Some(Brain::Whole(cluster)) = &mut self.nodes[to as usize].brain {
                    cluster.handle_gossip(now, &sender, from_addr, message, records);
                }
            }
        }
        self.settle(to);
    }

    fn verify(&mut self, index: u32, message: &Message) -> Vec<Arc<VerifiedRecord>> {
        /// Records that wait for a certificate.
        const MAX_WAITING: usize = 1_024;
        let now = self.local();
        let mut verified = Vec::with_capacity(message.records.len());
        for signed in &message.records {
            let Some(record) = self.registry.find(signed).cloned() else {
                continue;
            };
            let owner = self.index(&record.record.node);
            let node = &mut self.nodes[index as usize];
            if has(&node.certificates, owner) {
                verified.push(record);
                continue;
            }
            let (name, addr) = (record.record.node.clone(), record.record.quic_addr);
            let is_left = record.record.left;
            if !node.waiting.iter().any(|(_, r)| Arc::ptr_eq(r, &record)) {
                if node.waiting.len() >= MAX_WAITING {
                    node.waiting.pop_front();
                }
                node.waiting.push_back((owner, record));
                node.peak_waiting = node.peak_waiting.max(node.waiting.len());
            }
            if !is_left && let Some(Brain::Whole(cluster)) = &mut node.brain {
                cluster.handle_hint(now, &name, addr);
            }
        }
        verified
    }

    fn learn(&mut self, index: u32, of: u32) -> Vec<Arc<VerifiedRecord>> {
        let node = &mut self.nodes[index as usize];
        if has(&node.certificates, of) {
            return Vec::new();
        }
        put(&mut node.certificates, of);
        let (released, waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut node.waiting)
            .into_iter()
            .partition(|(owner, _)| *owner == of);
        node.waiting = waiting;
        released.into_iter().map(|(_, record)| record).collect()
    }

    fn sign(&mut self, index: u32, record: Record) {
        let now = self.local();
        let node = &mut self.nodes[index as usize];
        node.incarnation = node.incarnation.max(record.incarnation);
        let signed = self.registry.sign(record);
        match &mut node.brain {
            Some(Brain::Model(swim)) => swim.handle_signed(now, signed),
            Some(Brain::Whole(cluster)) => cluster.handle_signed(now, signed),
            None => {}
        }
    }

    // ---- a model's streams

    fn on_model_action(&mut self, index: u32, action: swim::Action) {
        match action {
            swim::Action::Sign(record) => self.sign(index, record),
            swim::Action::Sync { with } => {
                let with = self.index(&with);
                self.direct_sync(index, with);
            }
            swim::Action::PingOverConnection { node, seq } => {
                let to = self.index(&node);
                self.direct(index, to, DirectWhat::Ping { seq }, 3);
            }
            swim::Action::SignForcedLeave(_) | swim::Action::Dial { .. } => {}
        }
    }

    /// `flights`: setting up a stream takes two before the first one that carries something.
    fn direct(&mut self, from: u32, to: u32, what: DirectWhat, flights: u64) {
        let mut delay = 0;
        for _ in 0..flights {
            delay += self.latency();
        }
        let direct = Direct {
            from,
            to,
            what,
            tries: 0,
        };
        self.later(delay, Due::Direct(Box::new(direct)));
    }

    /// Who leaves says so over its connections (`cluster`), here without the rest of a mesh.
    pub(crate) fn tell_everybody(&mut self, from: u32) {
        for to in 0..self.nodes.len() as u32 {
            if to != from && self.nodes[to as usize].brain.is_some() {
                self.direct(from, to, DirectWhat::Record, 1);
            }
        }
    }

    fn direct_sync(&mut self, from: u32, to: u32) {
        let entries = self.nodes[from as usize]
            .swim()
            .map(|swim| swim.sync_entries(None))
            .unwrap_or_default();
        let answer = false;
        self.direct(from, to, DirectWhat::Sync { entries, answer }, 3);
    }

    fn on_direct(&mut self, direct: Direct) {
        let Direct {
            from,
            to,
            what,
            tries,
        } = direct;
        if self.is_lost(from, to) || self.is_lost(to, from) {
            // A segment and its acknowledgement; TCP gives up long after membership has.
            if tries < 6 {
                let again = (FIRST_PTO << tries).min(MAX_PTO);
                let direct = Direct {
                    from,
                    to,
                    what,
                    tries: tries + 1,
                };
                self.later(again, Due::Direct(Box::new(direct)));
            }
            return;
        }
        let now = self.local();
        let Some(name) = self.nodes[from as usize].name.clone() else {
            return;
        };
        let Some(Brain::Model(swim)) = &mut self.nodes[to as usize].brain else {
            return;
        };
        match what {
            DirectWhat::Sync { entries, answer } => {
                let bytes: usize = entries
                    .iter()
                    .map(|entry| entry.record.signed.payload.len() + 8)
                    .sum();
                let back = (!answer).then(|| swim.sync_entries(None));
                swim.handle_sync(now, &name, entries);
                self.nodes[from as usize].sync_bytes += bytes as u64;
                if let Some(entries) = back {
                    let answer = true;
                    self.direct(to, from, DirectWhat::Sync { entries, answer }, 1);
                }
            }
            DirectWhat::Ping { seq } => self.direct(to, from, DirectWhat::Pong { seq }, 1),
            DirectWhat::Pong { seq } => swim.handle_connection_ack(now, &name, seq),
            DirectWhat::Record => {
                let own = self.nodes[from as usize]
                    .swim()
                    .map(|own| Arc::clone(own.me()));
                if let (Some(own), Some(Brain::Model(swim))) =
                    (own, &mut self.nodes[to as usize].brain)
                {
                    swim.handle_record(now, own);
                }
            }
        }
        self.settle(to);
    }

    // ---- a whole node's connections

    fn end(&self, node: u32, id: ConnectionId, phase: Phase) -> End {
        End {
            node,
            life: self.nodes[node as usize].life,
            id,
            heard_at: self.now,
            last_at: 0,
            phase,
            missed: 0,
            refused: false,
            stalled: false,
        }
    }

    fn register(&mut self, conn: u32, end: u8) {
        let End { node, id, .. } = self.conns[conn as usize].ends[end as usize];
        let place = (id.0 as usize).saturating_sub(1);
        let node = &mut self.nodes[node as usize];
        if node.ends.len() <= place {
            node.ends.resize(place + 1, None);
        }
        node.ends[place] = Some((conn, end));
        node.open.insert((conn, end));
    }

    fn find(&self, node: u32, id: ConnectionId) -> Option<(u32, u8)> {
        let place = usize::try_from(id.0).ok()?.checked_sub(1)?;
        *self.nodes[node as usize].ends.get(place)?
    }

    /// Whether this end belongs to the process that runs.
    fn is_current(&self, conn: u32, end: u8) -> bool {
        let end = &self.conns[conn as usize].ends[end as usize];
        let node = &self.nodes[end.node as usize];
        node.brain.is_some() && node.life == end.life
    }

    fn is_up(&self, conn: u32, end: u8) -> bool {
        self.conns[conn as usize].ends[end as usize].phase == Phase::Up
            && self.is_current(conn, end)
    }

    fn on_action(&mut self, index: u32, action: cluster::Action) {
        match action {
            cluster::Action::Sign(record) => self.sign(index, record),
            cluster::Action::Mesh(mesh::Action::Resolve { seed }) => {
                let seed = seed.into_boxed_str();
                self.later(MS, Due::Resolved { node: index, seed });
            }
            cluster::Action::Mesh(mesh::Action::Dial {
                connection,
                node,
                addr,
                ..
            }) => self.dial(index, connection, node.is_none(), addr),
            cluster::Action::Mesh(mesh::Action::Use { connection }) => {
                self.send_frame(index, connection, Wire::Use);
            }
            cluster::Action::Mesh(mesh::Action::Close { connection, code }) => {
                if let Some((conn, end)) = self.find(index, connection) {
                    self.send_frame(index, connection, Wire::Close(code));
                    let reason = Box::new(CloseReason::Local(code));
                    self.later(50_000, Due::Down { conn, end, reason });
                }
            }
            cluster::Action::Tell { connection, frame } => {
                self.send_frame(index, connection, Wire::Frame(frame));
            }
            cluster::Action::StartSync { connection } => self.send_sync(index, connection, None),
            cluster::Action::AnswerSync { connection, stream } => {
                self.send_sync(index, connection, Some(stream));
            }
            cluster::Action::Mesh(mesh::Action::Drain { .. })
            | cluster::Action::SignForcedLeave(_)
            | cluster::Action::SaveRoster => {}
        }
    }

    fn on_resolved(&mut self, index: u32, seed: &str) {
        let addr = seed
            .parse::<NodeId>()
            .ok()
            .map(|name| addr_of(self.index(&name), 7_001));
        let now = self.local();
        if let Some(Brain::Whole(cluster)) = &mut self.nodes[index as usize].brain {
            let found = addr.map(|addr| vec![addr]);
            cluster.handle_resolved(now, seed, found.ok_or_else(|| "no such name".to_owned()));
            self.settle(index);
        }
    }

    /// The time until something arrives that is repeated until it does; `None` if that would take
    /// longer than `limit`.
    fn reliably(&mut self, from: u32, to: u32, first: u64, limit: u64) -> Option<u64> {
        let mut time = self.latency();
        let mut pto = first;
        while self.is_lost(from, to) {
            time += pto;
            pto = (pto * 2).min(MAX_PTO);
            if time > limit {
                return None;
            }
        }
        Some(time)
    }

    fn dial(&mut self, index: u32, id: ConnectionId, is_seed: bool, addr: SocketAddr) {
        let Some(to) = node_at(addr).filter(|to| *to < self.setup.nodes as u32) else {
            return;
        };
        let conn = self.conns.len() as u32;
        let ends = [
            self.end(index, id, Phase::Handshaking),
            self.end(to, ConnectionId(0), Phase::None),
        ];
        self.conns.push(Conn { ends, is_seed });
        self.register(conn, 0);
        self.nodes[index as usize].quic_bytes += HANDSHAKE_BYTES as u64;
        self.later(HANDSHAKE, Due::DialOver(conn));
        if let Some(delay) = self.reliably(index, to, FIRST_PTO, HANDSHAKE) {
            self.later(delay, Due::Dialled(conn));
        }
    }

    fn on_dialled(&mut self, conn: u32) {
        let state = &self.conns[conn as usize];
        let (from, to) = (state.ends[0].node, state.ends[1].node);
        if state.ends[0].phase != Phase::Handshaking || !self.is_current(conn, 0) {
            return;
        }
        let Some(Brain::Whole(cluster)) = &mut self.nodes[to as usize].brain else {
            if self.setup.icmp && !self.is_lost(to, from) {
                let delay = self.latency();
                let reason = Box::new(CloseReason::Refused);
                let end = 0;
                self.later(delay, Due::Down { conn, end, reason });
            }
            return;
        };
        if from == to {
            let reason = Box::new(CloseReason::Local(CloseCode::SelfDial));
            self.later(
                MS,
                Due::Down {
                    conn,
                    end: 0,
                    reason,
                },
            );
            return;
        }
        let id = cluster.allocate();
        self.conns[conn as usize].ends[1] = self.end(to, id, Phase::Handshaking);
        self.register(conn, 1);
        self.nodes[to as usize].quic_bytes += HANDSHAKE_BYTES as u64;
        // Flights two to four bring the dialler up, the fifth brings up the other end.
        let mut time = 0;
        for (end, flights) in [(0_u8, 3), (1, 1)] {
            for flight in 0..flights {
                let (a, b) = if flight % 2 == end {
                    (to, from)
                } else {
                    (from, to)
                };
                let Some(flight) = self.reliably(a, b, FIRST_PTO, HANDSHAKE) else {
                    return;
                };
                time += flight;
            }
            self.later(time, Due::Up { conn, end });
        }
    }

    fn on_up(&mut self, conn: u32, end: u8) {
        let state = &self.conns[conn as usize];
        let (own, other) = (&state.ends[end as usize], &state.ends[1 - end as usize]);
        if own.phase != Phase::Handshaking || !self.is_current(conn, end) {
            return;
        }
        let (index, id, peer) = (own.node, own.id, other.node);
        let is_same_life = self.is_current(conn, 1 - end);
        let (Some(boot), Some(name)) = (
            self.nodes[peer as usize].boot.filter(|_| is_same_life),
            self.nodes[peer as usize].name.clone(),
        ) else {
            return;
        };
        let own = &mut self.conns[conn as usize].ends[end as usize];
        own.phase = Phase::Up;
        own.heard_at = self.now;
        let proven = self.learn(index, peer);
        let now = self.local();
        let (side, addr) = if end == 0 {
            (Side::Dialed, addr_of(peer, 7_001))
        } else {
            (
                Side::Accepted,
                addr_of(peer, 30_000 + (conn % 30_000) as u16),
            )
        };
        if let Some(Brain::Whole(cluster)) = &mut self.nodes[index as usize].brain {
            // A joiner has no key yet, and that is one reason to sync.
            let rings_differ = self.conns[conn as usize].is_seed;
            cluster.handle_up(now, id, &name, boot, side, addr, proven, rings_differ);
        }
        self.settle(index);
    }

    fn send_frame(&mut self, index: u32, id: ConnectionId, wire: Wire) {
        let Some((conn, end)) = self.find(index, id) else {
            return;
        };
        let own = &self.conns[conn as usize].ends[end as usize];
        if own.phase != Phase::Up {
            return;
        }
        let delay = self.latency();
        let own = &mut self.conns[conn as usize].ends[end as usize];
        let at = (self.now + delay).max(own.last_at + 1);
        own.last_at = at;
        let bytes = match &wire {
            Wire::Frame(Frame::Record(record)) => {
                record.signed.payload.len() + record.signed.signature.len() + 8
            }
            Wire::Frame(_) | Wire::Use | Wire::Close(_) => 16,
        };
        self.nodes[index as usize].quic_bytes += (QUIC_PACKET + bytes) as u64;
        self.queue.push(
            at,
            Due::Frame {
                conn,
                end: 1 - end,
                frame: Box::new(wire),
                tries: 0,
            },
        );
    }

    fn on_frame(&mut self, conn: u32, end: u8, frame: Box<Wire>, tries: u8) {
        let state = &self.conns[conn as usize];
        let (from, to) = (
            state.ends[1 - end as usize].node,
            state.ends[end as usize].node,
        );
        if state.ends[end as usize].phase == Phase::Handshaking && self.is_current(conn, end) {
            // The other end is up a flight earlier.
            self.later(
                MS,
                Due::Frame {
                    conn,
                    end,
                    frame,
                    tries,
                },
            );
            return;
        }
        if !self.is_up(conn, end) {
            return;
        }
        if self.is_lost(from, to) {
            // A close is said a few times and never repeated for an acknowledgement.
            let is_over = !self.is_up(conn, 1 - end);
            if tries < 200 && !is_over {
                let again = (PTO << tries.min(5)).min(MAX_PTO);
                let tries = tries + 1;
                self.later(
                    again,
                    Due::Frame {
                        conn,
                        end,
                        frame,
                        tries,
                    },
                );
            }
            return;
        }
        let own = &mut self.conns[conn as usize].ends[end as usize];
        own.heard_at = self.now;
        let id = own.id;
        let now = self.local();
        if let Wire::Close(code) = *frame {
            self.on_down(conn, end, &CloseReason::Peer(code));
            return;
        }
        if let Some(Brain::Whole(cluster)) = &mut self.nodes[to as usize].brain {
            match *frame {
                Wire::Frame(frame) => cluster.handle_frame(now, id, frame),
                Wire::Use => cluster.handle_used(now, id),
                Wire::Close(_) => {}
            }
        }
        self.settle(to);
    }

    fn send_sync(&mut self, index: u32, id: ConnectionId, answer_to: Option<u64>) {
        let now = self.local();
        let open = self
            .find(index, id)
            .filter(|(conn, end)| self.is_up(*conn, *end));
        let Some(Brain::Whole(cluster)) = &mut self.nodes[index as usize].brain else {
            return;
        };
        let Some((conn, end)) = open else {
            if answer_to.is_none() {
                cluster.handle_sync_broken(now, id);
            }
            return;
        };
        let entries = cluster.sync_entries(id);
        let bytes: usize = entries
            .iter()
            .map(|entry| {
                let signed = &entry.record.signed;
                signed.payload.len() + signed.signature.len() + CERTIFICATE_BYTES + 16
            })
            .sum();
        let node = &mut self.nodes[index as usize];
        node.streams += 1;
        node.sync_bytes += bytes as u64;
        let stream = answer_to.is_none().then_some(node.streams);
        let delay = self.latency() + bytes as u64 * SEC / SYNC_RATE;
        let sync = SyncOnWire {
            conn,
            end: 1 - end,
            entries,
            stream,
            tries: 0,
        };
        self.later(delay, Due::Sync(Box::new(sync)));
    }

    fn on_sync(&mut self, mut sync: Box<SyncOnWire>) {
        let (conn, end) = (sync.conn, sync.end);
        let state = &self.conns[conn as usize];
        let (from, to) = (
            state.ends[1 - end as usize].node,
            state.ends[end as usize].node,
        );
        if state.ends[end as usize].phase == Phase::Handshaking && self.is_current(conn, end) {
            self.later(MS, Due::Sync(sync));
            return;
        }
        if !self.is_up(conn, end) {
            return;
        }
        if self.is_lost(from, to) {
            if self.is_up(conn, 1 - end) && sync.tries < 200 {
                let again = (PTO << sync.tries.min(5)).min(MAX_PTO);
                sync.tries += 1;
                self.later(again, Due::Sync(sync));
            }
            return;
        }
        let own = &mut self.conns[conn as usize].ends[end as usize];
        own.heard_at = self.now;
        let id = own.id;
        let mut entries = Vec::with_capacity(sync.entries.len());
        for entry in sync.entries {
            let owner = self.index(&entry.record.record.node);
            let newer = self
                .learn(to, owner)
                .into_iter()
                .filter(|record| record.record.incarnation > entry.record.record.incarnation);
            entries.extend(newer.map(|record| SyncEntry {
                record,
                status: MemberStatus::Alive,
                forced: None,
            }));
            entries.push(entry);
        }
        let now = self.local();
        if let Some(Brain::Whole(cluster)) = &mut self.nodes[to as usize].brain {
            cluster.handle_sync(now, id, entries, sync.stream);
        }
        self.settle(to);
    }

    fn on_ping_tick(&mut self, index: u32, life: u32) {
        let node = &self.nodes[index as usize];
        if node.life != life || node.brain.is_none() {
            return;
        }
        let open: Vec<(u32, u8)> = node.open.iter().copied().collect();
        let mut up = 0;
        for (conn, end) in open {
            if self.conns[conn as usize].ends[end as usize].phase == Phase::Up {
                up += 1;
                self.ping(conn, end);
            }
        }
        self.settle(index);
        // As the reactor does: at most a hundred pings a second, yet before the idle time-out.
        let interval = SEC.max(up * 10 * MS).min(IDLE / 3);
        self.later(interval, Due::PingTick { node: index, life });
    }

    /// One health ping, from sending to its outcome, worked out at once.
    fn ping(&mut self, conn: u32, end: u8) {
        let state = &self.conns[conn as usize];
        let own = &state.ends[end as usize];
        let (index, peer, heard_before) =
            (own.node, state.ends[1 - end as usize].node, own.heard_at);
        if self.now - heard_before >= IDLE {
            self.on_down(conn, end, &CloseReason::Idle);
            return;
        }
        self.nodes[index as usize].quic_bytes += PING_BYTES as u64;
        let forth = self.gets_through(index, peer);
        let back = forth && self.gets_through(peer, index);
        let other = &self.conns[conn as usize].ends[1 - end as usize];
        let is_over = other.phase == Phase::Over;
        let has_end = self.is_up(conn, 1 - end);
        let node = &self.nodes[peer as usize];
        let (runs, hold) = (node.brain.is_some(), node.hold);
        let mut answered = false;
        if has_end {
            if forth {
                self.conns[conn as usize].ends[1 - end as usize].heard_at = self.now;
                self.nodes[peer as usize].quic_bytes += PING_BYTES as u64;
            }
            if back && hold != Some(Hold::Frozen) {
                self.conns[conn as usize].ends[end as usize].heard_at = self.now;
                answered = hold.is_none();
            }
        } else if back && ((runs && is_over) || (!runs && self.setup.icmp)) {
            // Its host refuses the port, or a new process knows nothing of the connection.
            let own = &mut self.conns[conn as usize].ends[end as usize];
            if !std::mem::replace(&mut own.refused, true) {
                let delay = self.latency() + self.latency();
                let reset = runs && end == 0;
                self.later(delay, Due::Refusal { conn, end, reset });
            }
        }
        let own = &mut self.conns[conn as usize].ends[end as usize];
        let is_silent = own.heard_at == heard_before;
        own.stalled &= is_silent;
        if is_silent && !own.stalled {
            let silent_since = heard_before;
            self.later(
                STALL,
                Due::Stalled {
                    conn,
                    end,
                    silent_since,
                },
            );
        }
        let own = &mut self.conns[conn as usize].ends[end as usize];
        if answered {
            own.missed = 0;
            let id = own.id;
            let now = self.local();
            let at = now
                .checked_sub(Duration::from_micros(2 * self.setup.latency_us))
                .unwrap_or(now);
            if let Some(Brain::Whole(cluster)) = &mut self.nodes[index as usize].brain {
                cluster.handle_answered(now, id, at);
            }
            return;
        }
        own.missed = own.missed.saturating_add(1);
        if own.missed == PINGS_MISSED {
            self.doubt(conn, end, Doubt::Unanswered);
        }
    }

    fn on_refusal(&mut self, conn: u32, end: u8, reset: bool) {
        if !self.is_up(conn, end) {
            return;
        }
        self.doubt(conn, end, Doubt::Refused);
        if reset {
            self.on_down(conn, end, &CloseReason::Reset);
        } else {
            let reason = Box::new(CloseReason::Refused);
            self.later(REFUSED_PATIENCE, Due::Down { conn, end, reason });
        }
    }

    fn doubt(&mut self, conn: u32, end: u8, doubt: Doubt) {
        if !self.is_current(conn, end) {
            return;
        }
        let End { node, id, .. } = self.conns[conn as usize].ends[end as usize];
        let now = self.local();
        if let Some(Brain::Whole(cluster)) = &mut self.nodes[node as usize].brain {
            cluster.handle_doubted(now, id, doubt);
        }
        self.settle(node);
    }

    fn on_down(&mut self, conn: u32, end: u8, reason: &CloseReason) {
        let own = &mut self.conns[conn as usize].ends[end as usize];
        if matches!(own.phase, Phase::Over | Phase::None) {
            return;
        }
        own.phase = Phase::Over;
        let (node, id) = (own.node, own.id);
        if !self.is_current(conn, end) {
            return;
        }
        let now = self.local();
        let state = &mut self.nodes[node as usize];
        state.open.remove(&(conn, end));
        if let Some(Brain::Whole(cluster)) = &mut state.brain {
            cluster.handle_down(now, id, reason);
        }
        self.settle(node);
    }
}
