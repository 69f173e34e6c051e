//! Read-only views of a node: members, connections, status. Plain data, copied when asked for.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use crate::node_id::{BootId, ClusterName, KeyId, NodeId};

/// What this node believes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberStatus {
    /// Answers, or has not been doubted.
    Alive,
    /// Did not answer probes; may still refute that.
    Suspect,
    /// Did not refute the suspicion in time.
    Dead,
    /// Left on purpose, or was forced out.
    Left,
}

impl MemberStatus {
    /// `alive`, `suspect`, `dead` or `left`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
        }
    }
}

impl std::fmt::Display for MemberStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A member of the cluster, this node included, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberInfo {
    /// Its name.
    pub node: NodeId,
    /// What this node believes of it.
    pub status: MemberStatus,
    /// Where it accepts QUIC connections.
    pub quic_addr: SocketAddr,
    /// Where it receives gossip.
    pub gossip_addr: SocketAddr,
    /// The version of its record.
    pub incarnation: u64,
    /// Which of its lives this is.
    pub boot: BootId,
    /// Its labels.
    pub tags: BTreeMap<String, String>,
    /// Its software version.
    pub version: String,
    /// Whether it is this node itself.
    pub is_self: bool,
    /// Whether there is an authenticated connection to it.
    pub connected: bool,
    /// The smoothed round-trip time on that connection.
    pub rtt: Option<Duration>,
}

/// Which end opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// This node did.
    Dialed,
    /// The peer did.
    Accepted,
}

impl Side {
    /// `dialed` or `accepted`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dialed => "dialed",
            Self::Accepted => "accepted",
        }
    }
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectionState {
    /// TLS or the exchange of HELLO is under way.
    Handshaking,
    /// Both ends know each other; messages flow.
    Established,
    /// Replaced by another connection or closing; what is under way is finished.
    Draining,
    /// There is no connection to this member now.
    Down,
}

impl ConnectionState {
    /// `handshaking`, `established`, `draining` or `down`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshaking => "handshaking",
            Self::Established => "established",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

/// One connection, or one member to which there is none.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The peer; `None` while an accepted handshake has not proven who it is, or while a seed
    /// whose name is unknown is being dialled.
    pub peer: Option<NodeId>,
    /// Which end opened it; `None` when there is no connection.
    pub side: Option<Side>,
    /// Where it is in its life.
    pub state: ConnectionState,
    /// The remote address.
    pub addr: SocketAddr,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Lowest round-trip time seen.
    pub min_rtt: Option<Duration>,
    /// Congestion window in bytes.
    pub cwnd_bytes: u64,
    /// Largest datagram payload on the path in bytes.
    pub mtu_bytes: u64,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// QUIC packets sent.
    pub sent_packets: u64,
    /// QUIC packets received.
    pub received_packets: u64,
    /// QUIC packets declared lost.
    pub lost_packets: u64,
    /// Bytes of those.
    pub lost_bytes: u64,
    /// Open streams, both directions.
    pub streams: u64,
    /// Time since the last datagram from the peer.
    pub idle: Option<Duration>,
    /// Time since the connection was established.
    pub up: Option<Duration>,
    /// Round-trip time of the last health ping.
    pub last_ping: Option<Duration>,
    /// Health pings without an answer, since the last answer.
    pub ping_failures: u64,
    /// Health pings without an answer, since the connection is up.
    pub ping_failures_total: u64,
    /// Dials to this member since it was last connected for a while.
    pub dials: u64,
    /// Why the last connection or dial ended.
    pub last_error: Option<String>,
    /// When the next dial is due, from now.
    pub next_dial: Option<Duration>,
}

impl ConnectionInfo {
    /// A row for `addr` with every figure at zero.
    pub(crate) fn empty(addr: SocketAddr, state: ConnectionState) -> Self {
        Self {
            peer: None,
            side: None,
            state,
            addr,
            rtt: None,
            min_rtt: None,
            cwnd_bytes: 0,
            mtu_bytes: 0,
            sent_bytes: 0,
            received_bytes: 0,
            sent_packets: 0,
            received_packets: 0,
            lost_packets: 0,
            lost_bytes: 0,
            streams: 0,
            idle: None,
            up: None,
            last_ping: None,
            ping_failures: 0,
            ping_failures_total: 0,
            dials: 0,
            last_error: None,
            next_dial: None,
        }
    }
}

/// A connection that has ended, or a handshake that failed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ClosedConnection {
    /// The peer; `None` when it had not proven who it is.
    pub peer: Option<NodeId>,
    /// The remote address.
    pub addr: SocketAddr,
    /// Which end opened it.
    pub side: Side,
    /// When it ended; of repeated handshakes, the last one.
    pub at: SystemTime,
    /// One word for why, as in the metrics.
    pub kind: &'static str,
    /// Why.
    pub reason: String,
    /// How long it was up; `None` when its handshake failed.
    pub up: Option<Duration>,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Messages that the peer had not acknowledged.
    pub unacknowledged: u64,
    /// How often in a row: handshakes with one peer that fail for one reason are told once.
    pub count: u64,
}

/// A peer with an authenticated connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// The peer.
    pub node: NodeId,
    /// The remote address of the connection.
    pub addr: SocketAddr,
    /// Which end opened it.
    pub side: Side,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
}

/// Members by status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct MemberCounts {
    pub alive: usize,
    pub suspect: usize,
    pub dead: usize,
    pub left: usize,
}

/// Connections by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct ConnectionCounts {
    pub established: usize,
    pub handshaking: usize,
    pub draining: usize,
    pub down: usize,
}

/// What a node has refused since its start. Some of it is the daily business of a cluster (old news
/// that comes late, a restart); a number that grows without a reason is somebody trying.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedCounts {
    /// Gossip datagrams that were not opened: their sender is no member or has another life by now,
    /// the key is unknown, they were seen before, are forged, or meant for somebody else.
    pub gossip: u64,
    /// Datagrams to the QUIC port that belong to no connection and may open none.
    pub quic: u64,
    /// Records that are malformed, of another cluster, or not signed by their node.
    pub records: u64,
    /// Records whose certificate is not known: hints where to dial, and nothing more.
    pub unproven_records: u64,
    /// Forced leaves that their issuer has not signed, and those beyond what is verified at once.
    pub statements: u64,
    /// Events of applications that are malformed or not signed by their origin.
    pub events: u64,
    /// Events of an earlier life, of nodes that are not there, from before this node came, or too far
    /// behind. A few are ordinary; many are recorded ones played again.
    pub stale_events: u64,
    /// Keyrings that are malformed, keys from too many generations ahead, and changes of the ring that
    /// came too fast.
    pub keyrings: u64,
    /// Connections closed because of what came in syncs, or how often, and syncs that were not taken
    /// because there were too many at once.
    pub syncs: u64,
    /// Incarnations and Lamport times too far ahead to be true, and forced leaves of members that live.
    pub implausible: u64,
    /// Records that contradict another of the same incarnation, or come from a life that ended.
    pub conflicting: u64,
    /// Accusations, forced leaves and records of an incarnation that is over, or never was.
    pub stale: u64,
    /// Answers to no question, and probes meant for another node.
    pub stray: u64,
}

/// What became of events and queries of applications, counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventCounts {
    /// Events and queries that this node sent.
    pub emitted: u64,
    /// Those of others that came here, each once.
    pub received: u64,
    /// Copies of those.
    pub copies: u64,
    /// Those of others that this node did not pass on, for want of room; others did.
    pub dropped: u64,
    /// Queries that were not answered here: too many waited for their handler, or it came too late.
    pub unanswered: u64,
    /// Answers that could not be handed to who had asked.
    pub answers_lost: u64,
}

/// What a node could not keep, send or do because a bound was reached, counted since the start. All of
/// it is made good later, by a sync or another member; numbers that grow say that a bound is too
/// small for this cluster, or that somebody uses it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostCounts {
    /// Gossip datagrams that the system did not take, or for which there was no key or member.
    pub gossip: u64,
    /// News given up because there was too much at once, or too large for a datagram.
    pub news: u64,
    /// New members refused because the table was full.
    pub members: u64,
    /// Probes for others that were not made because there were too many.
    pub probes: u64,
    /// Records that made room for others while they waited for their certificate.
    pub waiting_records: u64,
    /// Members that are gone and were not remembered because there were too many.
    pub remembered: u64,
}

/// What the transport of a node could not deliver, and what it holds, counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportCounts {
    /// Bytes that wait to be sent now, on all connections of all nodes of this process. From 256 MiB
    /// on, senders wait.
    pub buffered_bytes: u64,
    /// Requests of this node that timed out, or were given up, before anything of them was sent.
    pub requests_unsent: u64,
    /// Requests of this node that timed out, or were given up, after something of them was sent. They
    /// may have been carried out.
    pub requests_given_up: u64,
    /// Requests of peers that were not answered because the peer had given them up.
    pub requests_withdrawn: u64,
    /// Requests of peers that were not handled because their time was over.
    pub requests_expired: u64,
    /// Replies that came when nobody waited for them any more.
    pub replies_late: u64,
    /// Replies of this node that its peers did not read, or whose connection was over.
    pub replies_dropped: u64,
    /// Messages of this node that were not acknowledged when their connection ended.
    pub messages_unacknowledged: u64,
    /// Messages, datagrams and streams for which there is no application here.
    pub messages_for_nobody: u64,
    /// Datagrams of applications that a connection had no room for, or that were larger than the path
    /// came to carry. What an application does not take in time it counts itself
    /// ([`App::dropped_datagrams`](crate::App::dropped_datagrams)).
    pub datagrams_dropped: u64,
    /// UDP datagrams for connections without a socket of their own that came faster than they were
    /// taken.
    pub injections_dropped: u64,
    /// UDP datagrams that came to the socket of another connection and were handed on.
    pub strays: u64,
    /// Threads of connections that ended by a panic, and their connections with them.
    pub worker_panics: u64,
}

/// An address by which a node enters its cluster, and finds back after it was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeedInfo {
    /// As it was given.
    pub seed: String,
    /// Who answered there last.
    pub node: Option<NodeId>,
    /// Whether that node is connected.
    pub connected: bool,
    /// Tries that failed since it was last reached, and connections in a row that did not last.
    pub failures: u32,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

impl SeedInfo {
    /// Why it does not lead into the cluster now. `None` where it does, and before a try has failed.
    pub fn trouble(&self) -> Option<&str> {
        self.last_error.as_deref().filter(|_| !self.connected)
    }
}

/// A node in one look.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// The software version.
    pub version: &'static str,
    /// The version of quiche that it is linked with.
    pub quiche: &'static str,
    /// Time since the start.
    pub uptime: Duration,
    /// Whether the first join round is over and the node is not leaving.
    pub ready: bool,
    /// Members by status, this node included.
    pub members: MemberCounts,
    /// Connections by state.
    pub connections: ConnectionCounts,
    /// The seeds, ordered as text; those that turned out to be this node itself are left out.
    pub seeds: Vec<SeedInfo>,
    /// Events and queries of applications.
    pub events: EventCounts,
    /// Lifeguard's local health score: 0 is healthy, each step makes this node more patient.
    pub health_score: u32,
    /// Threads that this node runs.
    pub threads: usize,
    /// What it refused so far.
    pub refused: RefusedCounts,
    /// What it lost so far.
    pub lost: LostCounts,
    /// What its connections could not deliver so far.
    pub transport: TransportCounts,
    /// How often the roster was written to the state directory.
    pub roster_saves: u64,
    /// How often that failed; the roster written before is intact then.
    pub roster_failures: u64,
    /// Where the page and the metrics are served, if they are.
    pub http_addr: Option<SocketAddr>,
    /// From when this node's certificate is valid.
    pub certificate_begins: SystemTime,
    /// When this node's certificate ends.
    pub certificate_ends: SystemTime,
}

/// The gossip keys that a node holds, and how far each has got.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Keys {
    /// The key is fixed by the configuration: it neither rotates nor spreads.
    pub fixed: bool,
    /// How many members are there that may hold keys: alive or suspected, this node included.
    pub members: usize,
    /// All keys, the newest first.
    pub keys: Vec<KeyInfo>,
}

impl Keys {
    /// Whether the newest key is in use here and every member has confirmed to hold it, so that the
    /// older ones can be removed. Also where there is only one.
    pub fn is_settled(&self) -> bool {
        self.keys
            .first()
            .is_some_and(|newest| newest.seals && newest.confirmed == self.members)
    }
}

/// A gossip key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyInfo {
    /// Its name.
    pub id: KeyId,
    /// Which rotation made it; the first key of a cluster has 1, a fixed key 0.
    pub generation: u32,
    /// Whether this node seals with it. It opens with all.
    pub seals: bool,
    /// How many members are known to hold it, this node included.
    pub confirmed: usize,
    /// Those that are not, in the order of their names; at most 32 of them.
    pub missing: Vec<NodeId>,
}
