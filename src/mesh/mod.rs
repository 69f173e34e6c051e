//! Whom to be connected to: who dials, when again, and which of two connections stays.
//!
//! **Who dials.** Of every pair the lower node id dials. The higher one dials only after a grace
//! without a connection, which covers a firewall that is open in one direction and a peer that does
//! not know us yet. A seed is dialled whatever the order, because its id is not known before.
//! A peer has one dial in flight; after a failure the next one waits a random time below a bound
//! that doubles (full jitter), without end for as long as the peer is a member. The bound starts
//! anew after a healthy while and for every life of the peer. Half of the dial slots are kept
//! for peers that have not failed repeatedly, and half of the others for those that are not gone, so
//! that thousands of dead members cannot starve a live one, nor one that is merely hard to reach.
//!
//! **Who is only remembered.** A node that was a member long ago, or in this node's life before, is
//! dialled like a dead member, for as long as the owner remembers it and whatever the order of the
//! ids: that is how a restart or a long partition ends without a seed. It is no member. It becomes one
//! when it answers and membership takes it back.
//!
//! **Which one stays.** The lower id of a pair decides and says so: no application data flows on a
//! connection before the lower id said USE on it; the higher id follows. Because one side decides,
//! the two ends cannot keep different connections. The lower id decides so:
//!
//! - Another boot id than the connections held: the new connection, for the handshake is the
//!   newest proof of life. The old life's connections are closed, its boot id is remembered, and a
//!   later connection with it is refused: two processes then share one identity. Only a connection
//!   that began after the present life was first met counts as the newest: one that began before may
//!   be of a life that ended meanwhile, whose last word was long under way. It is closed as a
//!   duplicate, and whoever is there dials again.
//! - The same boot id and the current connection is settled (older than the grace): the new one.
//!   Nobody dials a peer that it is connected to and knows to be alive, so the other end has lost the old
//!   one, or one of both asks for proof (below).
//! - The same boot id and both are young, so the dials crossed: the one dialled by the lower id,
//!   else the first. The choice falls this way so that a USE overtaken by a later one on another
//!   connection can be told: the higher id, once told to use a connection dialled by the lower,
//!   drops the ones it dialled itself, and a late USE on those means nothing, nor on one whose dial
//!   had begun by then and that comes up within the grace.
//!
//! A loser is drained, then closed as a duplicate. Events follow peers, not connections:
//! `Connected` when the first connection is in use, `Replaced` when another takes over,
//! `Disconnected` when none is left. The end of a connection that is not held any more changes
//! nothing, whenever it is reported.
//!
//! **When gossip knows better.** A record with another boot id or another address than expected
//! makes us dial although we are connected. The connection held stays until the new one is up:
//! gossip is a hint, the handshake is proof, and then the rules above replace the ghost. So it is
//! when gossip calls a connected peer dead: a partition that was longer than the failure detector's
//! patience and shorter than a connection's leaves both sides connected and dead for each other,
//! and nobody probes the dead. A new handshake makes both sides compare what they know. Until the
//! peer is alive again, that is repeated at the pace of the dead: after one to two seconds, then
//! twice as long each time up to half a minute; also when it has been forgotten meanwhile and is only
//! remembered, which a connection may outlast of which one direction works.
//!
//! **What it refuses to know:** sockets, threads, clocks, certificates, and why a member is alive.
//! Membership says who there is, the transport says what connected and ended; this decides.

mod seeds;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    close::{CloseCode, CloseReason},
    node_id::{BootId, ConnectionId, NodeId},
    outputs,
    rng::Rng,
    stats::Side,
};

use seeds::Seeds;
pub use seeds::{SeedState, SeedView};

/// Boot ids of past lives kept per peer. Only two processes with one identity make a past life
/// come back; a handful of restarts within one such quarrel is plenty. When full, the oldest goes.
const MAX_SUPERSEDED: usize = 8;

/// Connections a higher id holds to one peer while it waits for USE. Two arise when dials cross,
/// a third when a seed's name leads to the same peer. Further ones are refused.
const MAX_LINKS: usize = 4;

/// Own addresses remembered from self-dials. A host has a few; when full, the oldest is forgotten
/// and would be learnt again by one more self-dial.
const MAX_OWN_ADDRS: usize = 64;

/// How often an unverified address is dialled before it is dropped. Gossip repeats what is true.
const HINT_DIALS: u32 = 3;

/// The most that a redial after an address change waits.
const SOON: Duration = Duration::from_millis(200);

/// The least that the first dial of a dead peer waits, and each later one waits twice as long; up to
/// as much again as jitter, for both sides of a healed partition start at the same time.
const VERIFY: Duration = Duration::from_secs(1);

/// Where the doubling stops at the latest, whatever [`Config::dead_retry`] says.
const MAX_DOUBLINGS: u32 = 20;

/// The most that the first dial of a remembered peer waits: nodes that start together after an
/// outage remember each other, and half of those dials would meet.
const REMEMBER: Duration = Duration::from_secs(1);

/// Failures from which on a peer may use only half of the dial slots. The first one is ordinary:
/// the peer is just starting.
const FAILING: u32 = 2;

/// What can be tuned. The defaults are for a cluster on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How long the higher id waits for the lower one's dial; up to a third more as jitter. Also
    /// the age from which on a connection counts as settled.
    pub dial_grace: Duration,
    /// The upper bound of the first retry's delay.
    pub backoff_min: Duration,
    /// The upper bound of every later retry's delay; also the pace after a refusal that time alone
    /// does not cure, such as a certificate.
    pub backoff_max: Duration,
    /// How long a connection must live for the backoff to start anew.
    pub stable_after: Duration,
    /// Dials of members in flight at the same time. When all are taken, the others wait in the
    /// order in which they are due.
    pub max_dials: usize,
    /// The pace of dials to a member that has been dead for a while, or is only remembered.
    pub dead_retry: Duration,
    /// For how long somebody who is gone is remembered, counted while this node runs. Longer than
    /// any outage that shall end by itself, and short enough that hosts that never come back are not
    /// dialled for ever.
    pub remember_for: Duration,
    /// The pace of tries of a seed while other peers are connected.
    pub seed_retry: Duration,
    /// How long a name may take to resolve before the try counts as failed.
    pub resolve_timeout: Duration,
    /// How long a connection that lost may finish what is under way.
    pub drain: Duration,
    /// How long a peer that said it shuts down is left alone while it is still called alive.
    pub shutdown_pause: Duration,
    /// Connections that are up. When full, nothing is dialled and further ones are refused as
    /// overloaded, except one more to a peer that is connected already.
    pub max_connections: usize,
    /// Members. Membership has the same bound; should it exceed it, the rest stays unconnected.
    pub max_members: usize,
    /// Unverified addresses. When full, further ones are dropped; gossip repeats them.
    pub max_hints: usize,
    /// Seeds, each of which may have one dial in flight. When full, one that fails gives way, else
    /// the new one is refused.
    pub max_seeds: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dial_grace: Duration::from_secs(3),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            stable_after: Duration::from_secs(30),
            max_dials: 8,
            dead_retry: Duration::from_secs(30),
            remember_for: Duration::from_secs(7 * 24 * 60 * 60),
            seed_retry: Duration::from_secs(30),
            resolve_timeout: Duration::from_secs(5),
            drain: Duration::from_secs(1),
            shutdown_pause: Duration::from_secs(10),
            max_connections: 4_096,
            max_members: 16_384,
            max_hints: 256,
            max_seeds: 32,
        }
    }
}

/// What the owner of the sockets shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Resolve the name of a seed and answer with [`Mesh::handle_resolved`].
    Resolve {
        /// `HOST:PORT`.
        seed: String,
    },
    /// Dial, and answer with [`Mesh::handle_up`] or [`Mesh::handle_down`].
    Dial {
        /// The id of the connection to be.
        connection: ConnectionId,
        /// Who must answer; `None` for a seed, whose id is not known yet.
        node: Option<NodeId>,
        /// Where to.
        addr: SocketAddr,
        /// The seed that led here, if one did.
        seed: Option<String>,
    },
    /// Say USE on the connection.
    Use {
        /// The connection.
        connection: ConnectionId,
    },
    /// Give the connection no new work; a `Close` follows after [`Config::drain`].
    Drain {
        /// The connection.
        connection: ConnectionId,
    },
    /// Close the connection, or abandon its dial. It may have ended already; then there is nothing
    /// to do.
    Close {
        /// The connection.
        connection: ConnectionId,
        /// The code to send.
        code: CloseCode,
    },
}

/// What happened to peers and seeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// There is a connection in use to the peer; there was none.
    Connected {
        /// The peer.
        node: NodeId,
        /// The connection.
        connection: ConnectionId,
    },
    /// Another connection to the peer is in use from now on.
    Replaced {
        /// The peer.
        node: NodeId,
        /// The connection.
        connection: ConnectionId,
    },
    /// The last connection to the peer has ended.
    Disconnected {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: CloseReason,
    },
    /// A seed answered, or belongs to a peer that is connected.
    SeedReached {
        /// The seed as it was given.
        seed: String,
        /// The node that answered.
        node: NodeId,
        /// The connection to it.
        connection: ConnectionId,
    },
    /// One try of a seed failed: its name, or each of its addresses. It will be tried again.
    SeedFailed {
        /// The seed as it was given.
        seed: String,
        /// Why, of the address tried last.
        reason: String,
    },
    /// A seed of the join was reached, or each has failed once, or there was none.
    JoinRoundOver {
        /// What [`Mesh::join`] returned.
        round: u64,
        /// How many seeds were reached so far: 0 or 1.
        reached: usize,
        /// The seeds that failed, with their reasons. This node itself is no failure.
        failed: Vec<String>,
    },
    /// This node dialled itself at this address, and never will again.
    SelfDial {
        /// The address.
        addr: SocketAddr,
    },
    /// A past life of a node came back: two processes have one identity. With this node's own id, a
    /// peer says so about this very process.
    SupersededBoot {
        /// The node that exists twice.
        node: NodeId,
    },
}

/// What membership believes of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// No member; it is here because it is connected.
    Stranger,
    /// No member; an unverified address with the dials that are left.
    Hint {
        dials_left: u32,
    },
    /// No member; it was one, and is dialled until it is no longer remembered.
    Remembered,
    Alive,
    Dead,
    Left,
}

impl Standing {
    fn is_member(self) -> bool {
        match self {
            Self::Stranger | Self::Hint { .. } | Self::Remembered => false,
            Self::Alive | Self::Dead | Self::Left => true,
        }
    }

    /// Whether nobody has seen it for a while, so that a dial is a shot in the dark.
    fn is_gone(self) -> bool {
        match self {
            Self::Dead | Self::Remembered => true,
            Self::Stranger | Self::Hint { .. } | Self::Alive | Self::Left => false,
        }
    }
}

#[derive(Debug)]
struct Peer {
    standing: Standing,
    addr: Option<SocketAddr>,
    /// The life that membership reports.
    recorded: Option<BootId>,
    /// The life that the newest handshake proved.
    life: Option<BootId>,
    /// The last connection that had begun when this life was first known to be there.
    met: ConnectionId,
    superseded: VecDeque<BootId>,
    /// Connections that are up and not drained. The lower id holds at most one.
    links: Vec<ConnectionId>,
    /// The link in use.
    current: Option<ConnectionId>,
    /// When the lower id said USE on a connection that it dialled, and the last connection that had
    /// begun by then.
    used: Option<(Instant, ConnectionId)>,
    /// Whether `Connected` was told and `Disconnected` not yet.
    announced: bool,
    dialing: Option<ConnectionId>,
    /// Dial although connected: membership knows another life or address, calls it dead, or has forgotten
    /// it as such.
    verify: bool,
    /// It said that it shuts down; dial slowly until membership confirms that it is alive.
    quiet: bool,
    failures: u32,
    /// Dials since it died.
    dead_dials: u32,
    dials: u64,
    last_error: Option<String>,
    /// When to dial. Set only through `Mesh::set_due`, which keeps the index.
    due: Option<Instant>,
    /// Not before this, because the lower id has the first try.
    grace_until: Option<Instant>,
}

impl Peer {
    fn new(standing: Standing) -> Self {
        Self {
            standing,
            addr: None,
            recorded: None,
            life: None,
            met: ConnectionId(0),
            superseded: VecDeque::new(),
            links: Vec::new(),
            current: None,
            used: None,
            announced: false,
            dialing: None,
            verify: false,
            quiet: false,
            failures: 0,
            dead_dials: 0,
            dials: 0,
            last_error: None,
            due: None,
            grace_until: None,
        }
    }

    fn wants_dial(&self, own_addrs: &VecDeque<SocketAddr>) -> bool {
        let needs = match self.standing {
            Standing::Alive | Standing::Dead | Standing::Remembered => {
                self.links.is_empty() || self.verify
            }
            Standing::Hint { dials_left } => self.links.is_empty() && dials_left > 0,
            Standing::Stranger | Standing::Left => false,
        };
        needs && self.dialing.is_none() && self.addr.is_some_and(|addr| !own_addrs.contains(&addr))
    }

    fn supersede(&mut self, boot: BootId) {
        if self.superseded.len() == MAX_SUPERSEDED {
            self.superseded.pop_front();
        }
        self.superseded.push_back(boot);
    }

    fn forgive(&mut self) {
        self.failures = 0;
        self.quiet = false;
    }
}

#[derive(Debug)]
enum Phase {
    Dialing {
        node: Option<NodeId>,
        seed: Option<String>,
        addr: SocketAddr,
        slot: Slot,
    },
    Up {
        node: NodeId,
        side: Side,
        addr: SocketAddr,
        since: Instant,
    },
    Draining,
    Closing,
}

/// What a dial counts against. Seeds are bounded by their own table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Fresh,
    Failing,
    Gone,
    Seed,
}

/// What a dial of this peer counts against.
fn slot_of(peer: &Peer) -> Slot {
    if peer.standing.is_gone() {
        Slot::Gone
    } else if peer.failures >= FAILING || matches!(peer.standing, Standing::Hint { .. }) {
        // Nobody vouches for a hint; were it good as fresh, a liar's would keep members waiting.
        Slot::Failing
    } else {
        Slot::Fresh
    }
}

/// Which slots a dial could take now.
#[derive(Debug, Clone, Copy)]
struct FreeSlots {
    fresh: bool,
    failing: bool,
    gone: bool,
}

/// How soon to dial again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Within [`SOON`], without the grace.
    Soon,
    Backoff,
    Slow,
}

fn pace_after(reason: &CloseReason) -> Pace {
    match reason {
        CloseReason::Local(code) | CloseReason::Peer(code) => match code {
            CloseCode::AddressChanged => Pace::Soon,
            CloseCode::Identity
            | CloseCode::Protocol
            | CloseCode::Shutdown
            | CloseCode::SelfDial
            | CloseCode::Superseded => Pace::Slow,
            CloseCode::Duplicate
            | CloseCode::Overloaded
            | CloseCode::Internal
            | CloseCode::Unknown(_) => Pace::Backoff,
        },
        CloseReason::Tls { .. } | CloseReason::WrongIdentity(_) => Pace::Slow,
        // Another process is there already, and it may know nobody whom it could dial.
        CloseReason::Reset => Pace::Soon,
        CloseReason::Idle
        | CloseReason::HandshakeTimeout(_)
        | CloseReason::Refused
        | CloseReason::Transport { .. }
        | CloseReason::Io(_) => Pace::Backoff,
    }
}

fn is_self_dial(reason: &CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::Local(CloseCode::SelfDial) | CloseReason::Peer(CloseCode::SelfDial)
    )
}

/// One peer as the mesh sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// The peer.
    pub node: NodeId,
    /// Whether membership knows it, alive or not.
    pub is_member: bool,
    /// Where it would be dialled.
    pub addr: Option<SocketAddr>,
    /// The connection in use.
    pub current: Option<ConnectionId>,
    /// All connections that are up and not drained.
    pub links: Vec<ConnectionId>,
    /// The dial in flight.
    pub dialing: Option<ConnectionId>,
    /// Dials since it was last connected for a while.
    pub dials: u64,
    /// Why the last connection or dial ended.
    pub last_error: Option<String>,
    /// When it will be dialled next. May be past while all dial slots are taken.
    pub next_dial: Option<Instant>,
}

/// Connections and refusals, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Dials in flight.
    pub dialing: usize,
    /// Connections that are up and not drained.
    pub up: usize,
    /// Connections that lost and finish their work.
    pub draining: usize,
    /// Peers with a connection in use.
    pub connected: usize,
    /// Connections refused because of a limit, since the start.
    pub refused_total: u64,
    /// Members and hints dropped because their table was full, since the start.
    pub dropped_total: u64,
}

/// The policy. Feed it what happens, then drain [`poll_action`](Self::poll_action) and
/// [`poll_event`](Self::poll_event), and call [`handle_timeout`](Self::handle_timeout) at the
/// instant of [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct Mesh {
    config: Config,
    me: NodeId,
    boot: BootId,
    rng: Rng,
    last_connection: u64,
    peers: BTreeMap<NodeId, Peer>,
    connections: BTreeMap<ConnectionId, Phase>,
    seeds: Seeds,
    /// Peers by due dial: those that failed less than [`FAILING`] times, the others, and those that
    /// are dead or only remembered.
    fresh: BTreeSet<(Instant, NodeId)>,
    failing: BTreeSet<(Instant, NodeId)>,
    gone: BTreeSet<(Instant, NodeId)>,
    /// When to close what is drained, in order because every drain takes equally long.
    drains: VecDeque<(Instant, ConnectionId)>,
    own_addrs: VecDeque<SocketAddr>,
    members: usize,
    hints: usize,
    remembered: usize,
    up: usize,
    /// Peers with a link.
    linked: usize,
    /// Dials in flight by [`Slot`].
    dialing_fresh: usize,
    dialing_failing: usize,
    dialing_gone: usize,
    dialing_seeds: usize,
    refused_total: u64,
    dropped_total: u64,
    stopped: bool,
    /// Both queues are drained after every input, which adds a bounded number to each.
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
}

impl Mesh {
    /// A mesh of this node alone.
    pub fn new(config: Config, me: NodeId, boot: BootId, seed: u64, _now: Instant) -> Self {
        Self {
            config,
            me,
            boot,
            rng: Rng::new(seed),
            last_connection: 0,
            peers: BTreeMap::new(),
            connections: BTreeMap::new(),
            seeds: Seeds::default(),
            fresh: BTreeSet::new(),
            failing: BTreeSet::new(),
            gone: BTreeSet::new(),
            drains: VecDeque::new(),
            own_addrs: VecDeque::new(),
            members: 0,
            hints: 0,
            remembered: 0,
            up: 0,
            linked: 0,
            dialing_fresh: 0,
            dialing_failing: 0,
            dialing_gone: 0,
            dialing_seeds: 0,
            refused_total: 0,
            dropped_total: 0,
            stopped: false,
            actions: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// An id for an accepted connection; dials take theirs from the same counter.
    pub fn allocate(&mut self) -> ConnectionId {
        self.last_connection += 1;
        ConnectionId(self.last_connection)
    }

    /// A member is alive, came back, or its address or life changed.
    pub fn member_up(&mut self, now: Instant, node: &NodeId, addr: SocketAddr, boot: BootId) {
        if *node == self.me || !self.admit_member(node) {
            return;
        }
        let grace = self.draw_grace(now, node);
        let peer = self.peers.get_mut(node).expect("admitted above");
        let came_back = peer.standing != Standing::Alive;
        let known = peer.standing.is_member() || peer.standing == Standing::Remembered;
        let was_elsewhere = peer.addr.is_some_and(|known| known != addr);
        let moved = known && was_elsewhere;
        let reborn = peer.recorded != Some(boot)
            && peer.life != Some(boot)
            && !peer.superseded.contains(&boot);
        let dialled_here = peer.links.iter().any(|link| {
            matches!(
                self.connections.get(link),
                Some(Phase::Up {
                    side: Side::Dialed,
                    ..
                })
            )
        });
        let confirmed = std::mem::take(&mut peer.quiet);
        if came_back {
            // The death that was to be verified is refuted.
            peer.verify = false;
        }
        peer.standing = Standing::Alive;
        peer.addr = Some(addr);
        peer.recorded = Some(boot);
        if !peer.links.is_empty() {
            peer.verify |= reborn || (moved && dialled_here);
        }
        if came_back || reborn {
            peer.grace_until = grace;
        }
        if came_back || reborn || moved || confirmed {
            peer.failures = 0;
        }
        // Also one to where a hint had it: what answers there, or refuses, is not the member.
        if was_elsewhere && let Some(dial) = peer.dialing {
            self.abandon_dial(dial, CloseCode::AddressChanged);
        }
        if came_back || reborn || moved || confirmed || self.peers[node].due.is_none() {
            self.schedule(now, node, if moved { Pace::Soon } else { Pace::Backoff });
        }
        self.start_dials(now);
    }

    /// A member is dead. It is dialled for as long as it is known, first within seconds, since it may
    /// have been restarted or the network may have healed, and ever more slowly.
    pub fn member_dead(&mut self, now: Instant, node: &NodeId) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if !peer.standing.is_member() {
            return;
        }
        peer.standing = Standing::Dead;
        peer.verify = !peer.links.is_empty();
        peer.dead_dials = 0;
        self.schedule(now, node, Pace::Backoff);
    }

    /// A member left. It is not dialled before it is up again.
    pub fn member_left(&mut self, _now: Instant, node: &NodeId) {
        self.member_unremembered(node);
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if !peer.standing.is_member() {
            return;
        }
        peer.standing = Standing::Left;
        peer.verify = false;
        self.set_due(node, None);
    }

    /// Membership has forgotten the node.
    pub fn member_forgotten(&mut self, _now: Instant, node: &NodeId) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if !peer.standing.is_member() {
            return;
        }
        peer.standing = Standing::Stranger;
        peer.verify = false;
        self.members -= 1;
        self.set_due(node, None);
        self.drop_if_stranger(node);
    }

    /// A former member, and where it was last: it is dialled until it is up, has left, or
    /// [`member_unremembered`](Self::member_unremembered) is called. Nothing changes for a member.
    pub fn member_remembered(&mut self, now: Instant, node: &NodeId, addr: SocketAddr) {
        if *node == self.me || self.stopped {
            return;
        }
        let standing = self.peers.get(node).map(|peer| peer.standing);
        match standing {
            Some(Standing::Alive | Standing::Dead | Standing::Left) => return,
            Some(Standing::Remembered) => {}
            Some(Standing::Hint { .. } | Standing::Stranger) | None => {
                if self.remembered >= self.config.max_members {
                    self.dropped_total += 1;
                    return;
                }
                self.remembered += 1;
                if let Some(Standing::Hint { .. }) = standing {
                    self.hints -= 1;
                }
            }
        }
        let peer = self
            .peers
            .entry(node.clone())
            .or_insert_with(|| Peer::new(Standing::Remembered));
        peer.standing = Standing::Remembered;
        // A connection that has outlasted the member, of which only one direction works or did, brings it
        // back no more than it kept it alive.
        peer.verify = !peer.links.is_empty();
        // What a connection or a newer record told is the better address.
        peer.addr.get_or_insert(addr);
        self.schedule(now, node, Pace::Soon);
        self.start_dials(now);
    }

    /// A former member is no longer remembered.
    pub fn member_unremembered(&mut self, node: &NodeId) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if let Standing::Remembered = peer.standing {
            peer.standing = Standing::Stranger;
            peer.verify = false;
            self.remembered -= 1;
            self.set_due(node, None);
            self.drop_if_stranger(node);
        }
    }

    /// A record that cannot be verified yet: somewhere to dial, no member.
    pub fn handle_hint(&mut self, now: Instant, node: &NodeId, addr: SocketAddr) {
        // At its own address only this node can answer; nothing would ever dial that hint, nor drop
        // it.
        if *node == self.me || self.stopped || self.own_addrs.contains(&addr) {
            return;
        }
        if !self.peers.contains_key(node) {
            if self.hints >= self.config.max_hints {
                self.dropped_total += 1;
                return;
            }
            self.hints += 1;
            let mut peer = Peer::new(Standing::Hint {
                dials_left: HINT_DIALS,
            });
            peer.grace_until = self.draw_grace(now, node);
            self.peers.insert(node.clone(), peer);
        }
        let peer = self.peers.get_mut(node).expect("present or just inserted");
        let Standing::Hint { .. } = peer.standing else {
            return;
        };
        if peer.addr != Some(addr) {
            peer.addr = Some(addr);
            self.schedule(now, node, Pace::Backoff);
            self.start_dials(now);
        }
    }

    /// A connection is up: TLS and HELLO are done, the peer is who it says.
    pub fn handle_up(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        peer: &NodeId,
        boot: BootId,
        side: Side,
        addr: SocketAddr,
    ) {
        let node = peer;
        let (intended, dialled_seed) = match self.connections.get(&connection) {
            None => (None, None),
            Some(Phase::Dialing { node, seed, .. }) => (node.clone(), seed.clone()),
            // Abandoned while its handshake was finishing: the close is under way.
            Some(Phase::Up { .. } | Phase::Draining | Phase::Closing) => return,
        };
        self.end_dial(connection);
        // The transport ends such a dial by itself; should it not, the peer must not be stuck.
        if let Some(intended) = intended.filter(|intended| intended != node) {
            self.dial_failed(
                now,
                &intended,
                &CloseReason::WrongIdentity(format!("it is {node}")),
            );
        }
        if let Err((code, reason)) = self.admit(node, connection, boot) {
            self.connections.insert(connection, Phase::Closing);
            self.actions.push_back(Action::Close { connection, code });
            self.refuse(now, node, addr, side, code);
            if let Some(seed) = dialled_seed {
                self.seed_address_failed(now, &seed, reason);
            }
            self.start_dials(now);
            return;
        }
        self.connections.insert(
            connection,
            Phase::Up {
                node: node.clone(),
                side,
                addr,
                since: now,
            },
        );
        self.up += 1;
        self.link(now, node, connection, boot, side, addr);
        if let Some(seed) = dialled_seed {
            self.seeds.remember_led_to(addr, node);
            let best = self.link_to(node).unwrap_or(connection);
            self.seed_reached(now, &seed, node, best);
        }
        self.start_dials(now);
    }

    /// The peer said USE on a connection.
    pub fn handle_used(&mut self, now: Instant, connection: ConnectionId) {
        let Some(Phase::Up { node, side, .. }) = self.connections.get(&connection) else {
            return;
        };
        // The lower id decides; a USE from the higher one has no meaning.
        if self.me < *node {
            return;
        }
        let (node, dialled_by_lower) = (node.clone(), *side == Side::Accepted);
        let peer = self
            .peers
            .get_mut(&node)
            .expect("a connection that is up has a peer");
        if peer.current == Some(connection) {
            return;
        }
        let dials_crossed = peer.used.is_some_and(|(at, last)| {
            connection <= last && now.saturating_duration_since(at) < self.config.dial_grace
        });
        if !dialled_by_lower && dials_crossed && peer.current.is_some() {
            // It came up here after the one that the lower id had chosen instead.
            self.drain(now, &node, connection);
            return;
        }
        if dialled_by_lower {
            peer.used = Some((now, ConnectionId(self.last_connection)));
        }
        let previous = peer.current.replace(connection);
        let losers: Vec<ConnectionId> = peer
            .links
            .iter()
            .copied()
            .filter(|link| {
                let dialled_here = || {
                    matches!(
                        self.connections.get(link),
                        Some(Phase::Up {
                            side: Side::Dialed,
                            ..
                        })
                    )
                };
                Some(*link) == previous
                    || (*link != connection && dialled_by_lower && dialled_here())
            })
            .collect();
        for loser in losers {
            self.drain(now, &node, loser);
        }
        self.announce(&node, connection);
        self.start_dials(now);
    }

    /// A connection or dial has ended, whoever ended it.
    pub fn handle_down(&mut self, now: Instant, connection: ConnectionId, reason: &CloseReason) {
        let Some(phase) = self.connections.get(&connection) else {
            return;
        };
        if *reason == CloseReason::Peer(CloseCode::Superseded) {
            self.events.push_back(Event::SupersededBoot {
                node: self.me.clone(),
            });
        }
        match phase {
            Phase::Draining | Phase::Closing => {
                self.connections.remove(&connection);
            }
            Phase::Up { node, since, .. } => {
                let (node, since) = (node.clone(), *since);
                self.connections.remove(&connection);
                self.up -= 1;
                self.unlink(now, &node, connection, reason, since);
            }
            Phase::Dialing {
                node, seed, addr, ..
            } => {
                let (node, seed, addr) = (node.clone(), seed.clone(), *addr);
                self.end_dial(connection);
                if is_self_dial(reason) {
                    self.remember_own(addr);
                }
                if let Some(node) = node {
                    self.dial_failed(now, &node, reason);
                }
                if let Some(seed) = seed {
                    let itself = is_self_dial(reason).then(|| seeds::ITSELF.to_owned());
                    let why = itself.unwrap_or_else(|| reason.to_string());
                    self.seed_address_failed(now, &seed, why);
                }
            }
        }
        self.start_dials(now);
    }

    /// The instant of [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, connection)) = self.drains.front() {
            if at > now {
                break;
            }
            self.drains.pop_front();
            if let Some(phase @ Phase::Draining) = self.connections.get_mut(&connection) {
                *phase = Phase::Closing;
                self.actions.push_back(Action::Close {
                    connection,
                    code: CloseCode::Duplicate,
                });
            }
        }
        self.seeds_due(now);
        self.start_dials(now);
    }

    /// The node is leaving: nothing is dialled, joined or let in any more. Connections that are up
    /// stay until their owner closes them.
    pub fn stop(&mut self, _now: Instant) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        for (_, node) in std::mem::take(&mut self.fresh)
            .into_iter()
            .chain(std::mem::take(&mut self.failing))
            .chain(std::mem::take(&mut self.gone))
        {
            self.peers
                .get_mut(&node)
                .expect("the index holds peers only")
                .due = None;
        }
        let dials: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, phase)| matches!(phase, Phase::Dialing { .. }))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in dials {
            self.abandon_dial(connection, CloseCode::Shutdown);
        }
        self.stop_seeds();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        outputs::pop(&mut self.actions)
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        outputs::pop(&mut self.events)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next. Dials that wait for a free slot
    /// do not count: the end of another dial starts them.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let first = |index: &BTreeSet<(Instant, NodeId)>| index.first().map(|(at, _)| *at);
        let free = self.free_slots();
        [
            first(&self.fresh).filter(|_| free.fresh),
            first(&self.failing).filter(|_| free.failing),
            first(&self.gone).filter(|_| free.gone),
            self.drains.front().map(|(at, _)| *at),
            self.next_seed(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The life of a node that was met last, by its own handshake.
    pub fn life(&self, node: &NodeId) -> Option<BootId> {
        self.peers.get(node)?.life
    }

    /// One peer, or `None` when the mesh does not know it.
    pub fn peer(&self, now: Instant, node: &NodeId) -> Option<PeerView> {
        self.peers
            .get_key_value(node)
            .map(|(node, peer)| self.view(now, node, peer))
    }

    /// All peers, ordered by name.
    pub fn peers(&self, now: Instant) -> impl Iterator<Item = PeerView> {
        self.peers
            .iter()
            .map(move |(node, peer)| self.view(now, node, peer))
    }

    /// The connection in use to a peer.
    pub fn current(&self, node: &NodeId) -> Option<ConnectionId> {
        self.peers.get(node)?.current
    }

    /// Whom a dial in flight is meant for, unless it is a seed's.
    pub fn dial_target(&self, connection: ConnectionId) -> Option<&NodeId> {
        match self.connections.get(&connection)? {
            Phase::Dialing { node, .. } => node.as_ref(),
            Phase::Up { .. } | Phase::Draining | Phase::Closing => None,
        }
    }

    /// Whether this is a dial of somebody who has been gone for a while, so that somebody else may
    /// well answer at that address by now.
    pub fn is_long_shot(&self, connection: ConnectionId) -> bool {
        match self.connections.get(&connection) {
            Some(Phase::Dialing { slot, .. }) => *slot == Slot::Gone,
            Some(Phase::Up { .. } | Phase::Draining | Phase::Closing) | None => false,
        }
    }

    /// Connections and refusals, counted.
    pub fn counts(&self) -> Counts {
        let phases = |wanted: fn(&Phase) -> bool| {
            self.connections
                .values()
                .filter(|phase| wanted(phase))
                .count()
        };
        Counts {
            dialing: phases(|phase| matches!(phase, Phase::Dialing { .. })),
            up: self.up,
            draining: phases(|phase| matches!(phase, Phase::Draining)),
            connected: self
                .peers
                .values()
                .filter(|peer| peer.current.is_some())
                .count(),
            refused_total: self.refused_total,
            dropped_total: self.dropped_total,
        }
    }

    fn view(&self, now: Instant, node: &NodeId, peer: &Peer) -> PeerView {
        let healthy = peer
            .current
            .is_some_and(|current| match self.connections.get(&current) {
                Some(Phase::Up { since, .. }) => self.is_stable(now, *since),
                Some(Phase::Dialing { .. } | Phase::Draining | Phase::Closing) | None => false,
            });
        PeerView {
            node: node.clone(),
            is_member: peer.standing.is_member(),
            addr: peer.addr,
            current: peer.current,
            links: peer.links.clone(),
            dialing: peer.dialing,
            dials: if healthy { 0 } else { peer.dials },
            last_error: peer.last_error.clone(),
            next_dial: peer.due,
        }
    }

    fn is_stable(&self, now: Instant, since: Instant) -> bool {
        now.saturating_duration_since(since) >= self.config.stable_after
    }

    /// Makes sure that the node has an entry counted as a member; `false` when there is no room.
    fn admit_member(&mut self, node: &NodeId) -> bool {
        let standing = self.peers.get(node).map(|peer| peer.standing);
        if standing.is_some_and(Standing::is_member) {
            return true;
        }
        if self.members >= self.config.max_members {
            self.dropped_total += 1;
            return false;
        }
        self.members += 1;
        match standing {
            Some(Standing::Hint { .. }) => self.hints -= 1,
            Some(Standing::Remembered) => self.remembered -= 1,
            Some(Standing::Stranger | Standing::Alive | Standing::Dead | Standing::Left) => {}
            None => {
                self.peers
                    .insert(node.clone(), Peer::new(Standing::Stranger));
            }
        }
        true
    }

    /// Whether a connection of this life of the node may stay.
    fn admit(
        &self,
        node: &NodeId,
        connection: ConnectionId,
        boot: BootId,
    ) -> Result<(), (CloseCode, String)> {
        if *node == self.me {
            return Err(if boot == self.boot {
                (CloseCode::SelfDial, seeds::ITSELF.to_owned())
            } else {
                (
                    CloseCode::Superseded,
                    "another process has this node's identity".to_owned(),
                )
            });
        }
        if self.stopped {
            return Err((CloseCode::Shutdown, seeds::STOPPING.to_owned()));
        }
        let peer = self.peers.get(node);
        if peer.is_some_and(|peer| peer.superseded.contains(&boot)) {
            return Err((
                CloseCode::Superseded,
                "a past life of the node answered".to_owned(),
            ));
        }
        let is_other = |peer: &Peer| peer.life.is_some_and(|life| life != boot);
        if peer.is_some_and(|peer| is_other(peer) && connection <= peer.met) {
            return Err((
                CloseCode::Duplicate,
                "another life of the node was met meanwhile".to_owned(),
            ));
        }
        let links = peer.map_or(0, |peer| peer.links.len());
        let crowded = links >= MAX_LINKS && peer.is_some_and(|peer| peer.life == Some(boot));
        if crowded || links == 0 && self.up >= self.config.max_connections {
            return Err((
                CloseCode::Overloaded,
                "too many connections here".to_owned(),
            ));
        }
        Ok(())
    }

    fn refuse(
        &mut self,
        now: Instant,
        node: &NodeId,
        addr: SocketAddr,
        side: Side,
        code: CloseCode,
    ) {
        self.refused_total += 1;
        match code {
            CloseCode::SelfDial if side == Side::Dialed => self.remember_own(addr),
            CloseCode::Superseded => {
                self.events
                    .push_back(Event::SupersededBoot { node: node.clone() });
            }
            CloseCode::SelfDial
            | CloseCode::Shutdown
            | CloseCode::Duplicate
            | CloseCode::Identity
            | CloseCode::Protocol
            | CloseCode::AddressChanged
            | CloseCode::Overloaded
            | CloseCode::Internal
            | CloseCode::Unknown(_) => {}
        }
        if side == Side::Dialed {
            self.dial_failed(now, node, &CloseReason::Local(code));
        }
    }

    /// Takes a connection that came up into the peer's links and, as the lower id, decides.
    fn link(
        &mut self,
        now: Instant,
        node: &NodeId,
        connection: ConnectionId,
        boot: BootId,
        side: Side,
        addr: SocketAddr,
    ) {
        let first = self
            .peers
            .get(node)
            .is_none_or(|peer| peer.links.is_empty());
        let peer = self
            .peers
            .entry(node.clone())
            .or_insert_with(|| Peer::new(Standing::Stranger));
        if let Standing::Hint { .. } = peer.standing {
            peer.standing = Standing::Stranger;
            self.hints -= 1;
        }
        if peer.addr.is_none() && side == Side::Dialed {
            peer.addr = Some(addr);
        }
        peer.recorded = Some(boot);
        peer.quiet = false;
        let rival = match peer.life {
            Some(life) if life != boot => {
                peer.supersede(life);
                peer.forgive();
                peer.current = None;
                peer.used = None;
                self.seeds.forget_led_to(node);
                for link in std::mem::take(&mut peer.links) {
                    self.close_link(link, CloseCode::Superseded);
                }
                None
            }
            Some(_) | None => self.peers[node].current,
        };
        let moved = self.peers[node].addr == Some(addr);
        let wins = rival.is_none_or(|rival| match self.connections.get(&rival) {
            Some(Phase::Up {
                side: rival_side,
                addr: rival_addr,
                since,
                ..
            }) => {
                let settled = now.saturating_duration_since(*since) >= self.config.dial_grace;
                let crossed = match (rival_side, side) {
                    (Side::Accepted, Side::Dialed) => true,
                    (Side::Dialed, Side::Dialed) => moved && *rival_addr != addr,
                    (Side::Dialed | Side::Accepted, Side::Accepted) => false,
                };
                settled || crossed
            }
            Some(Phase::Dialing { .. } | Phase::Draining | Phase::Closing) | None => true,
        });
        let begun = ConnectionId(self.last_connection);
        let peer = self.peers.get_mut(node).expect("entered above");
        if peer.life.replace(boot) != Some(boot) {
            // Who dials is there when the dial comes in; who is dialled, at the latest when it answers.
            peer.met = match side {
                Side::Accepted => connection,
                Side::Dialed => begun,
            };
        }
        // Gossip has yet to hear of it, and only our own dial makes us ask for news.
        peer.verify = peer.standing == Standing::Dead;
        peer.links.push(connection);
        self.schedule(now, node, Pace::Backoff);
        if first {
            self.linked += 1;
        }
        if self.me > *node {
            return;
        }
        if !wins {
            self.drain(now, node, connection);
            return;
        }
        self.actions.push_back(Action::Use { connection });
        self.peers.get_mut(node).expect("entered above").current = Some(connection);
        if let Some(rival) = rival {
            self.drain(now, node, rival);
        }
        self.announce(node, connection);
    }

    fn announce(&mut self, node: &NodeId, connection: ConnectionId) {
        let peer = self
            .peers
            .get_mut(node)
            .expect("a connection in use has a peer");
        let node = node.clone();
        self.events
            .push_back(if std::mem::replace(&mut peer.announced, true) {
                Event::Replaced { node, connection }
            } else {
                Event::Connected { node, connection }
            });
    }

    /// Takes a link out of use. The peer keeps at least one other link.
    fn drain(&mut self, now: Instant, node: &NodeId, connection: ConnectionId) {
        let peer = self.peers.get_mut(node).expect("a link has a peer");
        peer.links.retain(|link| *link != connection);
        debug_assert!(!peer.links.is_empty(), "the winner is a link");
        self.up -= 1;
        self.connections.insert(connection, Phase::Draining);
        self.drains.push_back((now + self.config.drain, connection));
        self.actions.push_back(Action::Drain { connection });
    }

    /// Closes what is no link any more.
    fn close_link(&mut self, connection: ConnectionId, code: CloseCode) {
        self.up -= 1;
        self.connections.insert(connection, Phase::Closing);
        self.actions.push_back(Action::Close { connection, code });
    }

    fn unlink(
        &mut self,
        now: Instant,
        node: &NodeId,
        connection: ConnectionId,
        reason: &CloseReason,
        since: Instant,
    ) {
        let stable = self.is_stable(now, since);
        let grace = self.draw_grace(now, node);
        let peer = self
            .peers
            .get_mut(node)
            .expect("a connection that is up has a peer");
        peer.links.retain(|link| *link != connection);
        if peer.current == Some(connection) {
            peer.current = None;
        }
        peer.last_error = Some(reason.to_string());
        if stable {
            peer.failures = 0;
            peer.dials = 0;
        }
        if !peer.links.is_empty() {
            return;
        }
        peer.grace_until = grace;
        peer.quiet = *reason == CloseReason::Peer(CloseCode::Shutdown);
        if std::mem::take(&mut peer.announced) {
            let (node, reason) = (node.clone(), reason.clone());
            self.events.push_back(Event::Disconnected { node, reason });
        }
        self.linked -= 1;
        self.seeds.forget_led_to(node);
        self.seeds_lost(now, node, stable);
        self.retry(now, node, reason);
    }

    fn dial_failed(&mut self, now: Instant, node: &NodeId, reason: &CloseReason) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        peer.last_error = Some(reason.to_string());
        if *reason == CloseReason::Peer(CloseCode::Shutdown) {
            peer.quiet = true;
        }
        self.retry(now, node, reason);
    }

    fn retry(&mut self, now: Instant, node: &NodeId, reason: &CloseReason) {
        self.schedule(now, node, pace_after(reason));
        if let Some(peer) = self.peers.get_mut(node) {
            peer.failures = peer.failures.saturating_add(1);
        }
        self.drop_if_stranger(node);
    }

    /// Forgets a peer that is no member once nothing else keeps it.
    fn drop_if_stranger(&mut self, node: &NodeId) {
        let Some(peer) = self.peers.get(node) else {
            return;
        };
        let idle = peer.links.is_empty() && peer.dialing.is_none();
        let done = match peer.standing {
            Standing::Stranger => idle,
            Standing::Hint { dials_left } => {
                let is_own = peer.addr.is_some_and(|addr| self.own_addrs.contains(&addr));
                idle && (dials_left == 0 || is_own)
            }
            Standing::Remembered | Standing::Alive | Standing::Dead | Standing::Left => false,
        };
        if done {
            if let Standing::Hint { .. } = peer.standing {
                self.hints -= 1;
            }
            self.set_due(node, None);
            self.peers.remove(node);
        }
    }

    /// Until when the lower id has the first try, or `None` when that is us.
    fn draw_grace(&mut self, now: Instant, node: &NodeId) -> Option<Instant> {
        let grace = self.config.dial_grace;
        (self.me > *node).then(|| now + self.rng.between(grace, grace + grace / 3))
    }

    /// A random delay below a bound that doubles with every failure.
    fn draw_backoff(&mut self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        let bound = self
            .config
            .backoff_min
            .saturating_mul(factor)
            .min(self.config.backoff_max);
        self.rng.between(Duration::ZERO, bound)
    }

    /// Decides when the peer is dialled next, if at all.
    fn schedule(&mut self, now: Instant, node: &NodeId, pace: Pace) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if self.stopped || !peer.wants_dial(&self.own_addrs) {
            self.set_due(node, None);
            return;
        }
        if pace == Pace::Soon {
            peer.grace_until = None;
        }
        let standing = peer.standing;
        let (quiet, failures) = (peer.quiet, peer.failures);
        let grace_until = peer.grace_until;
        let config = &self.config;
        let is_first = standing == Standing::Remembered && peer.dead_dials == 0;
        let delay = if is_first && pace == Pace::Soon {
            peer.dead_dials = 1;
            self.rng.between(Duration::ZERO, REMEMBER)
        } else if standing.is_gone() {
            let bound = VERIFY.saturating_mul(1 << peer.dead_dials.min(MAX_DOUBLINGS));
            peer.dead_dials = peer.dead_dials.saturating_add(1);
            if bound < config.dead_retry {
                self.rng.between(bound, 2 * bound)
            } else {
                self.rng
                    .between(config.dead_retry, config.dead_retry + config.dead_retry / 4)
            }
        } else if quiet {
            self.rng.between(
                config.shutdown_pause,
                config.shutdown_pause + config.shutdown_pause / 4,
            )
        } else {
            match pace {
                // Once; a peer that is to be dialled at once each time it closes is backed off from.
                Pace::Soon if failures > 0 => self.draw_backoff(failures),
                Pace::Soon => self.rng.between(Duration::ZERO, SOON),
                Pace::Backoff => self.draw_backoff(failures),
                Pace::Slow => self.rng.between(
                    config.backoff_max,
                    config.backoff_max + config.backoff_max / 4,
                ),
            }
        };
        // Who is remembered may know of nobody who should dial first.
        let grace = grace_until.filter(|_| standing != Standing::Remembered);
        let due = (now + delay).max(grace.unwrap_or(now));
        self.set_due(node, Some(due));
    }

    fn set_due(&mut self, node: &NodeId, due: Option<Instant>) {
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if let Some(at) = peer.due.take() {
            let key = (at, node.clone());
            // The count of failures or the standing may have changed since, so it may be in any.
            if !self.fresh.remove(&key) && !self.failing.remove(&key) {
                self.gone.remove(&key);
            }
        }
        if let Some(at) = due {
            peer.due = Some(at);
            let index = match slot_of(peer) {
                Slot::Gone => &mut self.gone,
                Slot::Failing => &mut self.failing,
                Slot::Fresh | Slot::Seed => &mut self.fresh,
            };
            index.insert((at, node.clone()));
        }
    }

    /// Whether a peer of each index may be dialled now.
    fn free_slots(&self) -> FreeSlots {
        let doubtful = self.dialing_failing + self.dialing_gone;
        let max = self.config.max_dials;
        let fresh = self.dialing_fresh + doubtful < max && !self.is_full();
        let failing = fresh && doubtful < max.div_ceil(2);
        FreeSlots {
            fresh,
            failing,
            gone: failing && self.dialing_gone < max.div_ceil(4),
        }
    }

    fn is_full(&self) -> bool {
        let members = self.dialing_fresh + self.dialing_failing + self.dialing_gone;
        let dialing = members + self.dialing_seeds;
        self.up + dialing >= self.config.max_connections
    }

    fn start_dials(&mut self, now: Instant) {
        loop {
            let free = self.free_slots();
            let next = |index: &BTreeSet<(Instant, NodeId)>, free: bool| {
                index
                    .first()
                    .filter(|(at, _)| free && *at <= now)
                    .map(|(_, node)| node.clone())
            };
            let node = next(&self.fresh, free.fresh)
                .or_else(|| next(&self.failing, free.failing))
                .or_else(|| next(&self.gone, free.gone));
            let Some(node) = node else {
                return;
            };
            self.set_due(&node, None);
            self.dial_member(&node);
        }
    }

    fn dial_member(&mut self, node: &NodeId) {
        let connection = self.allocate();
        let peer = self
            .peers
            .get_mut(node)
            .expect("the index holds peers only");
        let addr = peer.addr.expect("only a peer with an address is scheduled");
        peer.dials += 1;
        peer.dialing = Some(connection);
        if let Standing::Hint { dials_left } = &mut peer.standing {
            *dials_left = dials_left.saturating_sub(1);
        }
        let slot = slot_of(peer);
        self.dial(connection, Some(node.clone()), addr, None, slot);
    }

    fn dial(
        &mut self,
        connection: ConnectionId,
        node: Option<NodeId>,
        addr: SocketAddr,
        seed: Option<String>,
        slot: Slot,
    ) {
        *self.slot(slot) += 1;
        let phase = Phase::Dialing {
            node: node.clone(),
            seed: seed.clone(),
            addr,
            slot,
        };
        self.connections.insert(connection, phase);
        self.actions.push_back(Action::Dial {
            connection,
            node,
            addr,
            seed,
        });
    }

    /// Frees what a dial holds. What becomes of the connection is the caller's business.
    fn end_dial(&mut self, connection: ConnectionId) {
        let Some(Phase::Dialing { node, slot, .. }) = self.connections.remove(&connection) else {
            return;
        };
        *self.slot(slot) -= 1;
        if let Some(peer) = node.and_then(|node| self.peers.get_mut(&node)) {
            peer.dialing = None;
        }
    }

    fn abandon_dial(&mut self, connection: ConnectionId, code: CloseCode) {
        self.end_dial(connection);
        self.connections.insert(connection, Phase::Closing);
        self.actions.push_back(Action::Close { connection, code });
    }

    fn slot(&mut self, slot: Slot) -> &mut usize {
        match slot {
            Slot::Fresh => &mut self.dialing_fresh,
            Slot::Failing => &mut self.dialing_failing,
            Slot::Gone => &mut self.dialing_gone,
            Slot::Seed => &mut self.dialing_seeds,
        }
    }

    fn remember_own(&mut self, addr: SocketAddr) {
        if self.own_addrs.contains(&addr) {
            return;
        }
        if self.own_addrs.len() == MAX_OWN_ADDRS {
            self.own_addrs.pop_front();
        }
        self.own_addrs.push_back(addr);
        self.events.push_back(Event::SelfDial { addr });
        // Others that are said to be there, by themselves or by a record of long ago, may wait for
        // their turn to be dialled.
        let there = |peer: &Peer| peer.addr == Some(addr) && peer.due.is_some();
        let waiting: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| there(peer))
            .map(|(node, _)| node.clone())
            .collect();
        for node in waiting {
            self.set_due(&node, None);
            self.drop_if_stranger(&node);
        }
    }
}

#[cfg(test)]
mod tests;
