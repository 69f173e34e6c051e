//! What the reactor lets others see: the last state of members, connections and readiness.
//!
//! The reactor owns the truth and publishes copies; readers never wait for it and never make it
//! wait. Whoever waits for the node to become ready sleeps here.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::{
    error::NotReady,
    figures::PeerFigures,
    node_id::{ConnectionId, NodeId},
    stats::{
        ClosedConnection, ConnectionInfo, EventCounts, LostCounts, MemberInfo, MemberStatus,
        RefusedCounts, SeedInfo, Side,
    },
    swim,
    transport::{Connection, Counted},
};

/// What to wait for with [`Node::wait_ready`](crate::Node::wait_ready).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ready {
    /// The sockets are bound and the first join round is over: a seed answered, or each failed
    /// once, or there is none.
    Started,
    /// At least so many peers are connected.
    Peers(usize),
    /// At least so many members are alive, this node included.
    Members(usize),
    /// Every alive member is connected, after [`Started`](Self::Started).
    FullMesh,
}

/// Where the node is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The first join round is under way; what is known of the seeds.
    Joining(Vec<String>),
    /// The first join round is over.
    Started,
    /// A leave has begun.
    Leaving,
    /// It failed and will not recover.
    Failed(String),
    /// It was shut down.
    Stopped,
}

#[derive(Debug)]
struct Readiness {
    stage: Stage,
    alive: usize,
    connected: usize,
    /// Alive members without a connection, and why.
    missing: Vec<String>,
}

/// How a member's dials go, for `conns`.
#[derive(Debug, Clone, Default)]
pub(crate) struct DialRow {
    pub(crate) dials: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) next_dial: Option<Instant>,
}

/// Peers whose figures are kept apart. In larger clusters the others are counted together, so that a
/// scrape stays a matter of milliseconds.
const MAX_PEERS_COUNTED: usize = 1_000;

/// Ended connections that are remembered; the oldest make room.
const MAX_CLOSED: usize = 64;

/// What ended connections have carried.
#[derive(Debug, Default)]
struct Totals {
    named: BTreeMap<NodeId, PeerFigures>,
    others: PeerFigures,
}

impl Totals {
    /// Where the figures of a connection to `peer` count that comes up.
    fn admit(&mut self, peer: &NodeId) -> Counted {
        let has_room = self.named.len() < MAX_PEERS_COUNTED;
        if !has_room && !self.named.contains_key(peer) {
            return Counted::Others;
        }
        self.named.entry(peer.clone()).or_default();
        Counted::Peer
    }

    /// The figures of a peer become a part of the others'.
    fn dismiss(&mut self, peer: &NodeId) {
        if let Some(figures) = self.named.remove(peer) {
            self.others.merge(&figures);
        }
    }

    fn add(&mut self, counted: Counted, info: &ConnectionInfo) {
        let of_peer = match counted {
            Counted::Folded => return,
            Counted::Others => None,
            Counted::Peer | Counted::Not => info.peer.as_ref(),
        };
        let named = of_peer.and_then(|peer| self.named.get_mut(peer));
        named.unwrap_or(&mut self.others).add(info);
    }
}

/// The published state.
pub(crate) struct Snapshot {
    readiness: Mutex<Readiness>,
    changed: Condvar,
    members: RwLock<Arc<Vec<MemberInfo>>>,
    dials: RwLock<Arc<BTreeMap<NodeId, DialRow>>>,
    seeds: RwLock<Arc<Vec<SeedInfo>>>,
    links: RwLock<Vec<Arc<Connection>>>,
    /// The connection in use to each peer.
    peers: RwLock<BTreeMap<NodeId, Arc<Connection>>>,
    health_score: std::sync::atomic::AtomicU32,
    refused: Mutex<RefusedCounts>,
    events: Mutex<EventCounts>,
    lost: Mutex<LostCounts>,
    gossip: Mutex<swim::Counters>,
    totals: Mutex<Totals>,
    closed: Mutex<VecDeque<ClosedConnection>>,
}

impl Snapshot {
    pub(crate) fn new() -> Self {
        Self {
            readiness: Mutex::new(Readiness {
                stage: Stage::Joining(Vec::new()),
                alive: 1,
                connected: 0,
                missing: Vec::new(),
            }),
            changed: Condvar::new(),
            members: RwLock::default(),
            dials: RwLock::default(),
            seeds: RwLock::default(),
            links: RwLock::default(),
            peers: RwLock::default(),
            health_score: std::sync::atomic::AtomicU32::new(0),
            refused: Mutex::default(),
            events: Mutex::default(),
            lost: Mutex::default(),
            gossip: Mutex::default(),
            totals: Mutex::default(),
            closed: Mutex::default(),
        }
    }

    // For the reactor.

    pub(crate) fn set_stage(&self, stage: Stage) {
        let mut readiness = self.readiness.lock();
        // The end is the end: a late join round does not revive a stopped node.
        let is_final = matches!(readiness.stage, Stage::Failed(_) | Stage::Stopped);
        if !is_final {
            readiness.stage = stage;
        }
        drop(readiness);
        self.changed.notify_all();
    }

    pub(crate) fn publish_members(&self, members: Vec<MemberInfo>, health_score: u32) {
        let alive = members
            .iter()
            .filter(|m| m.status == MemberStatus::Alive)
            .count();
        *self.members.write() = Arc::new(members);
        self.health_score
            .store(health_score, std::sync::atomic::Ordering::Relaxed);
        self.readiness.lock().alive = alive;
        self.recount();
    }

    /// What the cores and the verifier lost.
    pub(crate) fn publish_lost(&self, lost: LostCounts) {
        *self.lost.lock() = lost;
    }

    /// What membership has done.
    pub(crate) fn publish_gossip(&self, gossip: swim::Counters) {
        *self.gossip.lock() = gossip;
    }

    /// A connection is up: its figures count with its peer's, or with the others' when too many peers
    /// are kept apart.
    pub(crate) fn count(&self, connection: &Connection, peer: &NodeId) {
        let mut totals = self.totals.lock();
        *connection.counted.lock() = totals.admit(peer);
    }

    /// The figures of a forgotten peer are not kept apart any more, unless it has a connection still.
    pub(crate) fn dismiss(&self, peer: &NodeId) {
        let totals = &mut *self.totals.lock();
        let is_counted = |link: &Arc<Connection>| {
            *link.counted.lock() == Counted::Peer && link.peer() == Some(peer)
        };
        if !self.links.read().iter().any(is_counted) {
            totals.dismiss(peer);
        }
    }

    /// A connection has ended: what it carried stays counted.
    pub(crate) fn fold(&self, connection: &Connection) {
        let totals = &mut *self.totals.lock();
        let before = std::mem::replace(&mut *connection.counted.lock(), Counted::Folded);
        totals.add(before, &connection.info());
    }

    /// Remembers how a connection or a handshake ended.
    pub(crate) fn note_closed(&self, mut closed: ClosedConnection) {
        let mut kept = self.closed.lock();
        // A peer that is away is dialled again and again; that is one fact, not many.
        if closed.up.is_none() {
            let host = |c: &ClosedConnection| match c.side {
                Side::Dialed => (c.addr.ip(), c.addr.port()),
                Side::Accepted => (c.addr.ip(), 0),
            };
            let same = kept.iter().position(|other| {
                other.up.is_none()
                    && (&other.peer, other.kind, other.side)
                        == (&closed.peer, closed.kind, closed.side)
                    && host(other) == host(&closed)
            });
            if let Some(before) = same.and_then(|index| kept.remove(index)) {
                closed.count += before.count;
            }
        }
        if kept.len() == MAX_CLOSED {
            kept.pop_front();
        }
        kept.push_back(closed);
    }

    /// What became of events and queries.
    pub(crate) fn publish_events(&self, events: EventCounts) {
        *self.events.lock() = events;
    }

    /// What membership refused; the others count for themselves.
    pub(crate) fn publish_refused(&self, refused: RefusedCounts) {
        *self.refused.lock() = refused;
    }

    pub(crate) fn publish_links(&self, links: Vec<Arc<Connection>>) {
        *self.links.write() = links;
    }

    pub(crate) fn publish_seeds(&self, seeds: Vec<SeedInfo>) {
        *self.seeds.write() = Arc::new(seeds);
    }

    pub(crate) fn publish_dials(&self, dials: BTreeMap<NodeId, DialRow>) {
        *self.dials.write() = Arc::new(dials);
        self.recount();
    }

    pub(crate) fn set_peer(&self, node: &NodeId, connection: Option<Arc<Connection>>) {
        let mut peers = self.peers.write();
        match connection {
            Some(connection) => peers.insert(node.clone(), connection),
            None => peers.remove(node),
        };
        drop(peers);
        self.recount();
    }

    fn recount(&self) {
        let peers = self.peers.read();
        let members = Arc::clone(&self.members.read());
        let dials = Arc::clone(&self.dials.read());
        let missing = members
            .iter()
            .filter(|m| m.status == MemberStatus::Alive && !m.is_self)
            .filter(|m| !peers.contains_key(&m.node))
            .map(|m| {
                let error = dials.get(&m.node).and_then(|row| row.last_error.as_deref());
                format!(
                    "no connection to {}: {}",
                    m.node,
                    error.unwrap_or("none was made yet")
                )
            })
            .collect();
        let connected = peers.len();
        drop(peers);
        let mut readiness = self.readiness.lock();
        readiness.connected = connected;
        readiness.missing = missing;
        drop(readiness);
        self.changed.notify_all();
    }

    // For everybody.

    /// Waits until another connection than `current` is in use to the peer, or none.
    pub(crate) fn await_other(&self, node: &NodeId, current: ConnectionId, deadline: Instant) {
        let mut readiness = self.readiness.lock();
        while self
            .peer(node)
            .is_some_and(|connection| connection.id == current)
        {
            if self
                .changed
                .wait_until(&mut readiness, deadline)
                .timed_out()
            {
                return;
            }
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        self.readiness.lock().stage.clone()
    }

    pub(crate) fn health_score(&self) -> u32 {
        self.health_score.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn lost(&self) -> LostCounts {
        *self.lost.lock()
    }

    pub(crate) fn events(&self) -> EventCounts {
        *self.events.lock()
    }

    pub(crate) fn gossip(&self) -> swim::Counters {
        *self.gossip.lock()
    }

    /// The last connections that ended, the oldest first.
    pub(crate) fn closed(&self) -> Vec<ClosedConnection> {
        self.closed.lock().iter().cloned().collect()
    }

    /// What was sent to and received from each peer, and from all others together. Takes no lock that a
    /// connection holds while it works.
    pub(crate) fn peer_figures(&self) -> (BTreeMap<NodeId, PeerFigures>, PeerFigures) {
        let totals = self.totals.lock();
        let mut sum = Totals {
            named: totals.named.clone(),
            others: totals.others,
        };
        for link in self.links.read().iter() {
            let counted = *link.counted.lock();
            if counted != Counted::Not {
                sum.add(counted, &link.info());
            }
        }
        drop(totals);
        (sum.named, sum.others)
    }

    pub(crate) fn refused(&self) -> RefusedCounts {
        *self.refused.lock()
    }

    pub(crate) fn peer(&self, node: &NodeId) -> Option<Arc<Connection>> {
        self.peers.read().get(node).cloned()
    }

    pub(crate) fn peers(&self) -> BTreeMap<NodeId, Arc<Connection>> {
        self.peers.read().clone()
    }

    pub(crate) fn links(&self) -> Vec<Arc<Connection>> {
        self.links.read().clone()
    }

    pub(crate) fn seeds(&self) -> Arc<Vec<SeedInfo>> {
        Arc::clone(&self.seeds.read())
    }

    pub(crate) fn dials(&self) -> Arc<BTreeMap<NodeId, DialRow>> {
        Arc::clone(&self.dials.read())
    }

    pub(crate) fn members(&self) -> Vec<MemberInfo> {
        let peers = self.peers();
        let mut members = self.members.read().as_ref().clone();
        for member in &mut members {
            let info = peers.get(&member.node).map(|connection| connection.info());
            member.connected = info.is_some();
            member.rtt = info.and_then(|info| info.rtt);
        }
        members
    }

    /// Every connection, and a row for every member that should have one and has none.
    pub(crate) fn connections(&self, now: Instant) -> Vec<ConnectionInfo> {
        let dials = self.dials();
        let mut rows: Vec<ConnectionInfo> = self
            .links()
            .iter()
            .map(|connection| (*connection.info()).clone())
            .filter(|info| info.state != crate::stats::ConnectionState::Down)
            .collect();
        for member in self.members.read().iter() {
            let is_linked = rows
                .iter()
                .any(|row| row.peer.as_ref() == Some(&member.node));
            if member.is_self || member.status == MemberStatus::Left || is_linked {
                continue;
            }
            rows.push(ConnectionInfo {
                peer: Some(member.node.clone()),
                ..ConnectionInfo::empty(member.quic_addr, crate::stats::ConnectionState::Down)
            });
        }
        for row in &mut rows {
            if let Some(dial) = row.peer.as_ref().and_then(|peer| dials.get(peer)) {
                row.dials = dial.dials;
                row.last_error.clone_from(&dial.last_error);
                row.next_dial = dial.next_dial.map(|at| at.saturating_duration_since(now));
            }
        }
        rows.sort_by(|a, b| (&a.peer, a.addr).cmp(&(&b.peer, b.addr)));
        rows
    }

    /// Waits until `ready` holds.
    pub(crate) fn wait(
        &self,
        ready: Ready,
        started: Instant,
        timeout: Duration,
    ) -> Result<(), NotReady> {
        let deadline = crate::waker::deadline_after(started, timeout);
        let mut readiness = self.readiness.lock();
        loop {
            match &readiness.stage {
                Stage::Failed(why) => return Err(NotReady::Failed(why.clone())),
                Stage::Stopped => return Err(NotReady::Stopped),
                Stage::Joining(_) | Stage::Started | Stage::Leaving => {}
            }
            let missing = readiness.missing(ready);
            if missing.is_empty() {
                return Ok(());
            }
            if self
                .changed
                .wait_until(&mut readiness, deadline)
                .timed_out()
            {
                let missing = readiness.missing(ready);
                if missing.is_empty() {
                    return Ok(());
                }
                return Err(NotReady::Timeout {
                    waited: timeout,
                    missing,
                });
            }
        }
    }
}

impl Readiness {
    /// What does not hold yet, a sentence each.
    fn missing(&self, ready: Ready) -> Vec<String> {
        let joining = match &self.stage {
            Stage::Joining(seeds) if seeds.is_empty() => {
                vec!["the first join round is under way".to_owned()]
            }
            Stage::Joining(seeds) => seeds.clone(),
            Stage::Started | Stage::Leaving | Stage::Failed(_) | Stage::Stopped => Vec::new(),
        };
        match ready {
            Ready::Started => joining,
            Ready::Peers(count) if self.connected < count => {
                let mut missing = vec![format!("{} of {count} peers connected", self.connected)];
                missing.extend(self.missing.iter().cloned());
                missing.extend(joining);
                missing
            }
            Ready::Members(count) if self.alive < count => {
                let mut missing = vec![format!("{} of {count} members alive", self.alive)];
                missing.extend(joining);
                missing
            }
            Ready::Peers(_) | Ready::Members(_) => Vec::new(),
            Ready::FullMesh => joining
                .into_iter()
                .chain(self.missing.iter().cloned())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::ConnectionState;

    fn id(i: usize) -> NodeId {
        NodeId::new(&format!("n{i}")).unwrap()
    }

    fn carried(i: usize, bytes: u64) -> ConnectionInfo {
        ConnectionInfo {
            peer: Some(id(i)),
            sent_bytes: bytes,
            ..ConnectionInfo::empty("127.0.0.1:1".parse().unwrap(), ConnectionState::Down)
        }
    }

    #[test]
    fn peers_beyond_the_bound_are_counted_together_and_nothing_is_lost() {
        let mut totals = Totals::default();
        for i in 0..MAX_PEERS_COUNTED + 5 {
            let counted = totals.admit(&id(i));
            totals.add(counted, &carried(i, 10));
        }
        assert_eq!(totals.named.len(), MAX_PEERS_COUNTED);
        assert_eq!(totals.others.sent_bytes, 50);
        // A handshake that failed, of somebody known and of somebody else; one that is counted already.
        totals.add(Counted::Not, &carried(0, 1));
        totals.add(Counted::Not, &carried(99_999, 1));
        totals.add(Counted::Folded, &carried(0, 1_000));
        assert_eq!(totals.named[&id(0)].sent_bytes, 11);
        totals.dismiss(&id(0));
        totals.dismiss(&id(0));
        assert_eq!(totals.others.sent_bytes, 62);
        // There is room again, but what counted with the others stays there.
        assert_eq!(totals.admit(&id(MAX_PEERS_COUNTED)), Counted::Peer);
        assert_eq!(totals.admit(&id(MAX_PEERS_COUNTED + 1)), Counted::Others);
    }

    #[test]
    fn handshakes_that_fail_for_one_reason_are_one_row_and_rows_are_bounded() {
        let snapshot = Snapshot::new();
        let closed = |i: usize, up: Option<u64>| ClosedConnection {
            peer: Some(id(i)),
            addr: "127.0.0.1:1".parse().unwrap(),
            side: Side::Dialed,
            at: std::time::SystemTime::UNIX_EPOCH,
            kind: "refused",
            reason: "refused".to_owned(),
            up: up.map(Duration::from_secs),
            sent_bytes: 0,
            received_bytes: 0,
            unacknowledged: 0,
            count: 1,
        };
        snapshot.note_closed(closed(1, Some(5)));
        for _ in 0..1_000 {
            snapshot.note_closed(closed(2, None));
        }
        snapshot.note_closed(closed(1, Some(6)));
        let rows: Vec<_> = snapshot
            .closed()
            .into_iter()
            .map(|c| (c.peer, c.count))
            .collect();
        assert_eq!(
            rows,
            [(Some(id(1)), 1), (Some(id(2)), 1_000), (Some(id(1)), 1)]
        );
        for i in 0..2 * MAX_CLOSED {
            snapshot.note_closed(closed(i, Some(1)));
        }
        let rows = snapshot.closed();
        assert_eq!(rows.len(), MAX_CLOSED);
        assert_eq!(rows[0].peer, Some(id(MAX_CLOSED)));
    }
}
