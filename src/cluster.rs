//! One node of the cluster: membership and mesh as one machine.
//!
//! [`Swim`] knows who is alive and [`Mesh`] whom to be connected to; neither sees the other. Every
//! fact that travels between them travels here, and everything that nodes tell each other over
//! their connections because of it is decided here. There is no socket, clock, thread or key in it:
//! the reactor feeds it from real ones, a simulator from its own.
//!
//! **Facts.** A member that is up, moved or restarted is somebody to dial; a dead one is dialled
//! slowly; one that left is not. A handshake proves who the peer is, so its own record, said on that
//! connection, counts as its own word; what else it says of others is a sync.
//!
//! **Greeting.** Each end of a new connection tells the other its record. The dialler asks for a
//! sync if the peer was not alive for it or their keyrings differ; the answer carries everything
//! the other way. At most one sync is under way on a connection; a further reason for one is
//! remembered and served when it is answered.
//!
//! **Events of applications** travel by gossip. Each end of a connection first tells where it stands,
//! so that a newcomer hears nothing old, and with each sync goes what gossip may have missed.
//!
//! **Ready.** A node has started when its first join round is over and, if a seed was reached, the
//! first sync has brought the members, or has had its time.
//!
//! **Leaving.** The record that says so goes to every peer over its connection, and each that
//! believes it confirms it. The leave is over when all have, or their connections have ended; who has not is named.
//!
//! **Roster.** Who is gone is remembered for longer than membership does, and goes on being dialled;
//! with a file of it, over a restart as well (`roster`). A node that remembers somebody gives them a
//! moment to answer before it starts as a cluster of its own.
//!
//! **Evidence.** What the connections show of a peer goes to the failure detector: an answer of its
//! reactor proves it alive, an end or a silence is a reason to ask at once (`swim`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    close::{CloseCode, CloseReason},
    mesh::{self, Mesh},
    node_id::{BootId, ConnectionId, NodeId},
    outputs,
    record::{Record, VerifiedRecord},
    roster::{self, Image, Roster},
    stats::{MemberStatus, Side},
    swim::{self, Swim},
};

/// How long after the first join round the first sync may take before the node starts without it.
const JOIN_SYNC_PATIENCE: Duration = Duration::from_secs(2);

/// A sync that was not answered for so long does not hold up the next one.
const SYNC_PATIENCE: Duration = Duration::from_secs(60);

/// What one node tells another over a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A verified record, usually the teller's own.
    Record(Arc<VerifiedRecord>),
    /// The teller knows that its peer left with this incarnation.
    LeaveAck {
        /// Of the record that says so.
        incarnation: u64,
    },
    /// A probe that did not get through as a datagram.
    Probe {
        /// Comes back in the answer.
        seq: u32,
    },
    /// The answer to a probe.
    ProbeAck {
        /// The probe's.
        seq: u32,
    },
    /// Where the teller stands with events of applications; comes before any of the next.
    EventClock(swim::EventClock),
    /// Recent events of applications, verified; oldest first. One frame here, so that hundreds of
    /// them do not fill a queue of commands; on the wire each is one of its own.
    UserEvents(Vec<swim::VerifiedEvent>),
}

/// What the owner of sockets and keys shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Sign this record of ours; answer with [`Cluster::handle_signed`] or
    /// [`Cluster::handle_sign_failed`].
    Sign(Record),
    /// Sign this forced leave; answer with [`Cluster::handle_forced_leave`].
    SignForcedLeave(swim::ForcedLeave),
    /// Look up a seed, dial, say USE, drain or close.
    Mesh(mesh::Action),
    /// Send a frame on a connection.
    Tell {
        /// The connection.
        connection: ConnectionId,
        /// The frame.
        frame: Frame,
    },
    /// Send [`Cluster::sync_entries`] and take the answer to [`Cluster::handle_sync`]. If that cannot
    /// be begun, call [`Cluster::handle_sync_broken`].
    StartSync {
        /// The connection.
        connection: ConnectionId,
    },
    /// Send [`Cluster::sync_entries`] as the answer to the peer's sync.
    AnswerSync {
        /// The connection.
        connection: ConnectionId,
        /// The stream on which the peer asked.
        stream: u64,
    },
    /// Save [`Cluster::image`], if there is where to.
    SaveRoster,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// To a member.
    Member(swim::Event),
    /// To a peer or a seed.
    Peer(mesh::Event),
    /// The first join round and its sync are over; comes once.
    Started,
}

/// How far a leave has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaveProgress {
    /// Peers that have not confirmed yet.
    pub waiting: BTreeSet<NodeId>,
    /// Peers that have confirmed, in that order.
    pub confirmed: Vec<NodeId>,
    /// Peers whose connections were lost before they confirmed.
    pub lost: BTreeSet<NodeId>,
    /// The incarnation with which this node leaves, once it is signed.
    pub incarnation: Option<u64>,
}

impl LeaveProgress {
    /// Nobody is left to wait for.
    pub fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.incarnation.is_some()
    }

    /// Who has not confirmed, lost or not, in the order of their names.
    pub fn unconfirmed(&self) -> Vec<NodeId> {
        self.waiting.union(&self.lost).cloned().collect()
    }
}

/// A sync that this node asked for and that is not answered yet.
#[derive(Debug)]
struct Asked {
    at: Instant,
    /// There was reason for another one since.
    again: bool,
}

/// The way to `Started`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Idle,
    Joining { round: u64 },
    Syncing { until: Instant },
    Over,
}

/// Membership and mesh of one node. See the module for what it does.
///
/// After each input drain `poll_transmit`, `poll_action` and `poll_event`, and call
/// `handle_timeout` at `poll_timeout`.
#[derive(Debug)]
pub struct Cluster {
    swim: Swim,
    mesh: Mesh,
    /// Who is at the other end of what is up, also when the mesh drains or refuses it.
    peers: BTreeMap<ConnectionId, NodeId>,
    /// Syncs under way, at most one for each connection.
    asked: BTreeMap<ConnectionId, Asked>,
    roster: Roster,
    start: Start,
    has_synced: bool,
    leaving: Option<LeaveProgress>,
    /// Both queues are drained after every input, which adds a bounded number for each member.
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
}

impl Cluster {
    /// A cluster of one. `seed` decides every random choice.
    pub fn new(
        swim: swim::Config,
        mesh: mesh::Config,
        me: Arc<VerifiedRecord>,
        seed: u64,
        now: Instant,
    ) -> Self {
        let (node, boot) = (me.record.node.clone(), me.record.boot);
        let roster = Roster::new(mesh.remember_for, now);
        Self {
            swim: Swim::new(swim, me, seed, now),
            mesh: Mesh::new(mesh, node, boot, seed.rotate_left(32), now),
            peers: BTreeMap::new(),
            asked: BTreeMap::new(),
            roster,
            start: Start::Idle,
            has_synced: false,
            leaving: None,
            actions: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    // ---- inputs: datagrams

    /// Takes a datagram's message; see [`Swim::handle_message`].
    pub fn handle_gossip(
        &mut self,
        now: Instant,
        from: &NodeId,
        from_addr: SocketAddr,
        message: swim::Message,
        records: Vec<Arc<VerifiedRecord>>,
    ) {
        self.swim
            .handle_message(now, from, from_addr, message, records);
        self.settle(now);
    }

    /// Takes a forced leave whose signature was verified.
    pub fn handle_forced_leave(&mut self, now: Instant, forced: swim::ForcedLeave) {
        self.swim.handle_forced_leave(now, forced);
        self.settle(now);
    }

    /// Whether a forced leave that came by gossip is worth verifying; see
    /// [`Swim::wants_forced_leave`].
    pub fn wants_forced_leave(&mut self, forced: &swim::ForcedLeave) -> bool {
        self.swim.wants_forced_leave(forced)
    }

    /// Whether an event of an application is worth verifying; see [`Swim::is_new_event`].
    pub fn is_new_event(&mut self, event: &swim::UserEvent) -> bool {
        self.swim.is_new_event(event)
    }

    /// Takes an event of an application whose signature was verified, or, of this node's own, made.
    pub fn handle_user_event(&mut self, now: Instant, event: swim::VerifiedEvent) {
        self.swim.handle_user_event(now, event);
        self.settle(now);
    }

    /// Takes an address from a record that cannot be verified yet.
    pub fn handle_hint(&mut self, now: Instant, node: &NodeId, addr: SocketAddr) {
        self.mesh.handle_hint(now, node, addr);
        self.settle(now);
    }

    // ---- inputs: connections

    /// A connection is up: the handshake proved who the peer is. `proven` are records that waited
    /// for its certificate; `rings_differ` tells whether its keyring is another than ours. Returns
    /// whether the mesh keeps the connection.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a handshake tells is one fact"
    )]
    pub fn handle_up(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        peer: &NodeId,
        boot: BootId,
        side: Side,
        addr: SocketAddr,
        proven: Vec<Arc<VerifiedRecord>>,
        rings_differ: bool,
    ) -> bool {
        self.peers.insert(connection, peer.clone());
        self.mesh.handle_up(now, connection, peer, boot, side, addr);
        // One that the mesh closes or drains, such as a ghost's, is told nothing and asked nothing.
        let is_kept = self.links_to(now, peer).contains(&connection);
        let was_alive = self
            .swim
            .member(peer)
            .is_some_and(|member| member.status == MemberStatus::Alive);
        for record in proven {
            // What gossip brought of an earlier life is not this connection's word.
            if is_kept && record.record.node == *peer && record.record.boot == boot {
                self.swim.handle_record(now, record);
            } else {
                self.hear_of(now, peer, record);
            }
        }
        if is_kept {
            let own = Frame::Record(Arc::clone(self.swim.me()));
            self.tell(connection, own);
            self.tell_event_clock(connection, peer);
            // One of both asks, and the dialler may be a joiner, who knows nothing yet.
            if side == Side::Dialed && (!was_alive || rings_differ) {
                self.start_sync_on(now, connection);
            }
        }
        self.settle(now);
        is_kept
    }

    /// The peer said USE.
    pub fn handle_used(&mut self, now: Instant, connection: ConnectionId) {
        self.mesh.handle_used(now, connection);
        self.settle(now);
    }

    /// A connection or dial has ended.
    pub fn handle_down(&mut self, now: Instant, connection: ConnectionId, reason: &CloseReason) {
        self.asked.remove(&connection);
        let peer = self.peers.remove(&connection);
        if let Some(peer) = &peer {
            self.on_lost_while_leaving(now, connection, peer, reason);
        }
        let dialled = self.mesh.dial_target(connection).cloned();
        self.mesh.handle_down(now, connection, reason);
        self.settle(now);
        if let Some(doubt) = doubt_after(reason)
            && let Some(node) = peer.or(dialled)
            // Another connection to it knows better.
            && self.links_to(now, &node).is_empty()
        {
            self.swim.handle_peer_doubted(now, &node, doubt);
            self.settle(now);
        }
    }

    /// The reactor of the peer at the other end was alive at `at`.
    pub fn handle_answered(&mut self, now: Instant, connection: ConnectionId, at: Instant) {
        if let Some(peer) = self.peers.get(&connection) {
            self.swim.handle_peer_answered(now, peer, at);
            self.settle(now);
        }
    }

    /// The connection raised a doubt about the peer at its other end.
    pub fn handle_doubted(&mut self, now: Instant, connection: ConnectionId, doubt: swim::Doubt) {
        if let Some(peer) = self.peers.get(&connection).cloned()
            && self.link_to(now, &peer) == Some(connection)
        {
            self.swim.handle_peer_doubted(now, &peer, doubt);
            self.settle(now);
        }
    }

    fn on_lost_while_leaving(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        peer: &NodeId,
        reason: &CloseReason,
    ) {
        let Some(leaving) = &mut self.leaving else {
            return;
        };
        let view = self.mesh.peer(now, peer);
        let is_current = view.is_some_and(|view| voice(&view) == Some(connection));
        // Who shuts down itself has no interest in our leave any more.
        if is_current
            && leaving.waiting.remove(peer)
            && *reason != CloseReason::Peer(CloseCode::Shutdown)
        {
            leaving.lost.insert(peer.clone());
        }
    }

    /// Takes a frame of the peer at the other end.
    pub fn handle_frame(&mut self, now: Instant, connection: ConnectionId, frame: Frame) {
        let Some(peer) = self.peers.get(&connection).cloned() else {
            return;
        };
        match frame {
            Frame::Record(record) if record.record.node == peer => {
                let Record {
                    left,
                    incarnation,
                    boot,
                    ..
                } = record.record;
                if self.links_to(now, &peer).contains(&connection) {
                    self.swim.handle_record(now, record);
                } else {
                    // Of a life that the mesh has judged to be over.
                    self.hear_of(now, &peer, record);
                }
                // Below what its own key has signed before, the farewell is not believed.
                let is_believed = self.swim.member(&peer).is_none_or(|member| {
                    member.status == MemberStatus::Left || member.record.record.boot != boot
                });
                if left && is_believed {
                    self.tell(connection, Frame::LeaveAck { incarnation });
                }
            }
            Frame::Record(record) => self.hear_of(now, &peer, record),
            Frame::LeaveAck { incarnation } => {
                if let Some(leaving) = &mut self.leaving
                    && leaving.incarnation.is_some_and(|own| own <= incarnation)
                    && leaving.waiting.remove(&peer)
                {
                    leaving.confirmed.push(peer);
                }
            }
            Frame::Probe { seq } => self.tell(connection, Frame::ProbeAck { seq }),
            Frame::ProbeAck { seq } => self.swim.handle_connection_ack(now, &peer, seq),
            Frame::EventClock(clock) => self.swim.handle_event_clock(&peer, clock),
            Frame::UserEvents(events) => {
                for event in events {
                    self.swim.handle_user_event(now, event);
                }
            }
        }
        self.settle(now);
    }

    /// Takes a whole sync of a peer; the signatures of forced leaves in it were verified. `stream` is where the peer asked, or `None` if this is the
    /// answer to ours.
    pub fn handle_sync(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        entries: Vec<swim::SyncEntry>,
        stream: Option<u64>,
    ) {
        let is_wanted_again = stream.is_none() && self.end_asked(connection);
        let Some(peer) = self.peers.get(&connection).cloned() else {
            return;
        };
        self.has_synced = true;
        let forced: Vec<_> = entries.iter().filter_map(|e| e.forced.clone()).collect();
        self.take_own_word(now, connection, &peer, &entries);
        self.swim.handle_sync(now, &peer, entries);
        for forced in forced {
            self.swim.handle_forced_leave(now, *forced);
        }
        self.settle(now);
        self.forget_who_left();
        if is_wanted_again {
            self.start_sync_on(now, connection);
        }
        if let Some(stream) = stream {
            self.tell_events(now, connection, &peer);
            self.actions
                .push_back(Action::AnswerSync { connection, stream });
        }
        if let Start::Syncing { .. } = self.start {
            self.finish_start();
        }
        self.settle(now);
    }

    /// What a peer says of itself in its sync is its own word, if it is news: it may have had to go
    /// above what was believed here of an earlier life, which nobody else can put right, or have been
    /// forgotten here while it was connected.
    fn take_own_word(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        peer: &NodeId,
        entries: &[swim::SyncEntry],
    ) {
        let word = entries
            .iter()
            .find(|entry| entry.record.record.node == *peer);
        let Some(record) = word.map(|entry| &entry.record) else {
            return;
        };
        let known = self.swim.member(peer);
        let is_news = known.is_none_or(|m| m.record.record.incarnation < record.record.incarnation);
        if is_news && self.links_to(now, peer).contains(&connection) {
            self.swim.handle_record(now, Arc::clone(record));
        }
    }

    /// A sync that this node asked for was broken off or could not be begun.
    pub fn handle_sync_broken(&mut self, now: Instant, connection: ConnectionId) {
        if self.end_asked(connection) && self.peers.contains_key(&connection) {
            self.start_sync_on(now, connection);
        }
        self.settle(now);
    }

    fn end_asked(&mut self, connection: ConnectionId) -> bool {
        let asked = self.asked.remove(&connection);
        asked.is_some_and(|asked| asked.again)
    }

    // ---- inputs: the rest

    /// Takes our newly signed record: the answer to [`Action::Sign`].
    pub fn handle_signed(&mut self, now: Instant, me: Arc<VerifiedRecord>) {
        let (left, incarnation) = (me.record.left, me.record.incarnation);
        self.swim.handle_signed(now, Arc::clone(&me));
        self.roster.handle_changed();
        if left && let Some(leaving) = &mut self.leaving {
            leaving.incarnation = Some(incarnation);
            let links: Vec<_> = self.mesh.peers(now).filter_map(|p| voice(&p)).collect();
            for connection in links {
                self.tell(connection, Frame::Record(Arc::clone(&me)));
            }
        }
        self.settle(now);
    }

    /// Takes it that [`Action::Sign`] failed.
    pub fn handle_sign_failed(&mut self, now: Instant) {
        self.swim.handle_sign_failed(now);
        self.settle(now);
    }

    /// Takes the addresses of a seed, or why there are none.
    pub fn handle_resolved(
        &mut self,
        now: Instant,
        seed: &str,
        result: Result<Vec<SocketAddr>, String>,
    ) {
        self.mesh.handle_resolved(now, seed, result);
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.swim.poll_timeout().is_some_and(|at| at <= now) {
            self.swim.handle_timeout(now);
            self.settle(now);
        }
        if self.mesh.poll_timeout().is_some_and(|at| at <= now) {
            self.mesh.handle_timeout(now);
            self.settle(now);
        }
        if let Start::Syncing { until } = self.start
            && until <= now
        {
            self.finish_start();
        }
        for node in self.roster.take_expired(now) {
            self.mesh.member_unremembered(&node);
        }
        if self.roster.is_due(now) {
            self.roster.handle_saved(now);
            self.actions.push_back(Action::SaveRoster);
        }
    }

    // ---- commands

    /// Takes an entry of a saved roster, before [`start`](Self::start). Nothing is believed of it
    /// but that somebody was there: it is dialled, or, if it left, is not.
    pub fn remember(&mut self, now: Instant, record: &Record, entry: &roster::Entry) {
        let me = &self.swim.me().record;
        if record.node == me.node || record.cluster != me.cluster {
            return;
        }
        if self.roster.restore(now, record, entry) {
            self.mesh
                .member_remembered(now, &record.node, record.quic_addr);
        }
        self.settle(now);
    }

    /// Takes a record out of a saved roster that has been verified, of a member that left: what
    /// others say of its life before does not bring it back.
    pub fn remember_left(&mut self, now: Instant, record: Arc<VerifiedRecord>) {
        let me = self.swim.me().record.node.clone();
        let status = MemberStatus::Left;
        let entry = swim::SyncEntry {
            record,
            status,
            forced: None,
        };
        self.swim.handle_sync(now, &me, vec![entry]);
        self.settle(now);
    }

    /// Begins the first join round and returns its number; [`Event::Started`] follows.
    pub fn start(&mut self, now: Instant, seeds: Vec<String>) -> u64 {
        let round = self.mesh.join(now, seeds);
        if self.start == Start::Idle {
            self.start = Start::Joining { round };
        }
        self.settle(now);
        round
    }

    /// Joins more seeds; [`mesh::Event::JoinRoundOver`] with the returned number follows.
    pub fn join(&mut self, now: Instant, seeds: Vec<String>) -> u64 {
        let round = self.mesh.join(now, seeds);
        self.settle(now);
        round
    }

    /// Drops seeds; see [`mesh::Mesh::forget_seeds`].
    pub fn forget_seeds(&mut self, now: Instant, seeds: &[String]) {
        self.mesh.forget_seeds(seeds);
        self.settle(now);
    }

    /// Has this node's record signed anew, at a higher incarnation, because what signs it has changed.
    pub fn renew_record(&mut self, now: Instant) {
        self.swim.renew_record();
        self.settle(now);
    }

    /// Leaves: dials and accepts nobody any more, tells the peers, and goes on answering.
    /// [`leaving`](Self::leaving) tells how far it has come. A second call changes nothing.
    pub fn leave(&mut self, now: Instant) {
        if self.leaving.is_some() {
            return;
        }
        let connected = self.mesh.peers(now).filter(|peer| voice(peer).is_some());
        self.leaving = Some(LeaveProgress {
            waiting: connected.map(|peer| peer.node).collect(),
            ..LeaveProgress::default()
        });
        self.mesh.stop(now);
        self.swim.leave(now);
        self.settle(now);
    }

    /// Dials and accepts nobody any more.
    pub fn stop(&mut self, now: Instant) {
        self.mesh.stop(now);
        self.settle(now);
    }

    /// Replaces our tags.
    ///
    /// # Errors
    ///
    /// [`swim::TagsTooLarge`] when they do not fit a record.
    pub fn set_tags(
        &mut self,
        now: Instant,
        tags: BTreeMap<String, String>,
    ) -> Result<(), swim::TagsTooLarge> {
        let outcome = self.swim.set_tags(now, tags);
        self.settle(now);
        outcome
    }

    /// Makes the next event of this node, for the caller to sign and to hand back with
    /// [`handle_user_event`](Self::handle_user_event).
    ///
    /// # Errors
    ///
    /// [`swim::EmitError`] when it is outside its limits, or when too many are on their way.
    pub fn prepare_event(
        &mut self,
        name: &str,
        payload: Vec<u8>,
        query: Option<swim::Query>,
    ) -> Result<swim::UserEvent, swim::EmitError> {
        self.swim.prepare_event(name, payload, query)
    }

    /// Forces a dead member out.
    ///
    /// # Errors
    ///
    /// [`swim::ForceLeaveError`] when there is no such member or it is not dead.
    pub fn force_leave(
        &mut self,
        now: Instant,
        node: &NodeId,
    ) -> Result<(), swim::ForceLeaveError> {
        let outcome = self.swim.force_leave(now, node);
        self.settle(now);
        outcome
    }

    /// Syncs with a member as soon as possible, if there is a connection to it.
    pub fn sync_with(&mut self, now: Instant, node: &NodeId) {
        self.start_sync(now, node);
        self.settle(now);
    }

    /// An id for an accepted connection.
    pub fn allocate(&mut self) -> ConnectionId {
        self.mesh.allocate()
    }

    /// Takes all news for told; see [`Swim::forget_news`].
    pub fn forget_news(&mut self) {
        self.swim.forget_news();
    }

    // ---- outputs

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<swim::Transmit> {
        self.swim.poll_transmit()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        outputs::pop(&mut self.actions)
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        outputs::pop(&mut self.events)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let start = match self.start {
            Start::Syncing { until } => Some(until),
            Start::Idle | Start::Joining { .. } | Start::Over => None,
        };
        [
            self.swim.poll_timeout(),
            self.mesh.poll_timeout(),
            self.roster.poll_timeout(),
            start,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    // ---- getters

    /// Membership.
    pub fn swim(&self) -> &Swim {
        &self.swim
    }

    /// The mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Who is gone and still remembered.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// What outlives this process. `certificate` finds a certificate by its fingerprint, in DER, or
    /// gives nothing.
    pub fn image(&mut self, now: Instant, certificate: impl Fn(&[u8; 32]) -> Arc<[u8]>) -> Image {
        let me = &self.swim.me().record;
        let here = self.swim.members().filter_map(|member| {
            let is_here = match member.status {
                MemberStatus::Alive | MemberStatus::Suspect => true,
                MemberStatus::Dead | MemberStatus::Left => false,
            };
            let is_other = member.record.record.node != me.node;
            (is_here && is_other).then_some((&**member.record, member.status))
        });
        Image {
            cluster: me.cluster.clone(),
            node: me.node.clone(),
            incarnation: me.incarnation,
            entries: self.roster.entries(now, here, certificate),
        }
    }

    /// How far our leave has come, once it has begun.
    pub fn leaving(&self) -> Option<&LeaveProgress> {
        self.leaving.as_ref()
    }

    /// Whether [`Event::Started`] has been told.
    pub fn has_started(&self) -> bool {
        self.start == Start::Over
    }

    /// Who is at the other end of a connection that is up.
    pub fn peer_of(&self, connection: ConnectionId) -> Option<&NodeId> {
        self.peers.get(&connection)
    }

    /// The connections to a node that are up and not drained.
    pub fn links_to(&self, now: Instant, node: &NodeId) -> Vec<ConnectionId> {
        let peer = self.mesh.peer(now, node);
        peer.map_or_else(Vec::new, |peer| peer.links)
    }

    /// Everything to tell the peer of this connection in a sync.
    pub fn sync_entries(&self, connection: ConnectionId) -> Vec<swim::SyncEntry> {
        self.swim.sync_entries(self.peers.get(&connection))
    }

    // ---- between the two

    fn settle(&mut self, now: Instant) {
        loop {
            if let Some(action) = self.swim.poll_action() {
                self.do_for_swim(now, action);
            } else if let Some(event) = self.swim.poll_event() {
                self.tell_mesh(now, &event);
                self.events.push_back(Event::Member(event));
            } else if let Some(action) = self.mesh.poll_action() {
                self.actions.push_back(Action::Mesh(action));
            } else if let Some(event) = self.mesh.poll_event() {
                self.events.push_back(Event::Peer(event.clone()));
                self.on_peer(now, &event);
            } else {
                return;
            }
        }
    }

    fn do_for_swim(&mut self, now: Instant, action: swim::Action) {
        match action {
            swim::Action::Sign(record) => self.actions.push_back(Action::Sign(record)),
            swim::Action::SignForcedLeave(forced) => {
                self.actions.push_back(Action::SignForcedLeave(forced));
            }
            swim::Action::Sync { with } => self.start_sync(now, &with),
            swim::Action::Dial { node, addr } => self.mesh.handle_hint(now, &node, addr),
            swim::Action::PingOverConnection { node, seq } => {
                if let Some(connection) = self.link_to(now, &node) {
                    self.tell(connection, Frame::Probe { seq });
                }
            }
        }
    }

    fn tell_mesh(&mut self, now: Instant, event: &swim::Event) {
        let Self {
            swim, mesh, roster, ..
        } = self;
        match event {
            swim::Event::Up { node } | swim::Event::Updated { node, .. } => {
                roster.handle_up(node);
                if let Some(member) = swim.member(node) {
                    let record = &member.record.record;
                    mesh.member_up(now, node, record.quic_addr, record.boot);
                }
            }
            swim::Event::Dead { node, .. } => {
                if let Some(member) = swim.member(node) {
                    roster.handle_gone(now, member.record, false);
                }
                mesh.member_dead(now, node);
            }
            swim::Event::Left { node, .. } => {
                if let Some(member) = swim.member(node) {
                    roster.handle_gone(now, member.record, true);
                }
                mesh.member_left(now, node);
            }
            swim::Event::Forgotten { node } => {
                mesh.member_forgotten(now, node);
                if let Some(addr) = roster.handle_forgotten(node) {
                    mesh.member_remembered(now, node, addr);
                }
            }
            swim::Event::Suspect { .. }
            | swim::Event::Alive { .. }
            | swim::Event::NameConflict { .. }
            | swim::Event::AddressConflict { .. }
            | swim::Event::User(_) => {}
        }
    }

    /// Who left while this node was away is known from others, without an event: it was no member
    /// here.
    fn forget_who_left(&mut self) {
        let left: Vec<NodeId> = self
            .roster
            .missed()
            .filter(|node| {
                let member = self.swim.member(node);
                member.is_some_and(|member| member.status == MemberStatus::Left)
            })
            .cloned()
            .collect();
        for node in left {
            self.roster.handle_left(&node);
            self.mesh.member_unremembered(&node);
        }
    }

    fn on_peer(&mut self, now: Instant, event: &mesh::Event) {
        let mesh::Event::JoinRoundOver { round, reached, .. } = event else {
            return;
        };
        if self.start != (Start::Joining { round: *round }) {
            return;
        }
        // Whoever was reached is about to hand over the members, and whoever is remembered might.
        let is_awaited = *reached > 0 || self.roster.missed().next().is_some();
        if is_awaited && !self.has_synced {
            let until = now + JOIN_SYNC_PATIENCE;
            self.start = Start::Syncing { until };
        } else {
            self.finish_start();
        }
    }

    fn finish_start(&mut self) {
        self.start = Start::Over;
        self.events.push_back(Event::Started);
    }

    /// Takes from `peer` a record that is not its own live word, as a sync would bring it.
    fn hear_of(&mut self, now: Instant, peer: &NodeId, record: Arc<VerifiedRecord>) {
        let status = MemberStatus::Alive;
        let entry = swim::SyncEntry {
            record,
            status,
            forced: None,
        };
        self.swim.handle_sync(now, peer, vec![entry]);
    }

    /// The connection to talk to a node over: the one in use, or else the newest, since the lower
    /// id may not have decided yet.
    fn link_to(&self, now: Instant, node: &NodeId) -> Option<ConnectionId> {
        let peer = self.mesh.peer(now, node)?;
        peer.current.or_else(|| peer.links.last().copied())
    }

    fn tell(&mut self, connection: ConnectionId, frame: Frame) {
        self.actions.push_back(Action::Tell { connection, frame });
    }

    fn tell_event_clock(&mut self, connection: ConnectionId, peer: &NodeId) {
        let clock = self.swim.event_clock(peer, self.mesh.life(peer));
        self.tell(connection, Frame::EventClock(clock));
    }

    /// Tells the events that the peer may have missed, and where this node stands with them.
    fn tell_events(&mut self, now: Instant, connection: ConnectionId, peer: &NodeId) {
        self.tell_event_clock(connection, peer);
        let recent: Vec<_> = self.swim.recent_events(now).cloned().collect();
        if !recent.is_empty() {
            self.tell(connection, Frame::UserEvents(recent));
        }
    }

    fn start_sync(&mut self, now: Instant, node: &NodeId) {
        if let Some(connection) = self.link_to(now, node) {
            self.start_sync_on(now, connection);
        }
    }

    fn start_sync_on(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(asked) = self.asked.get_mut(&connection)
            && now < asked.at + SYNC_PATIENCE
        {
            asked.again = true;
            return;
        }
        let asked = Asked {
            at: now,
            again: false,
        };
        self.asked.insert(connection, asked);
        if let Some(peer) = self.peers.get(&connection).cloned() {
            self.tell_events(now, connection, &peer);
        }
        self.actions.push_back(Action::StartSync { connection });
    }
}

/// What the end of a connection or dial says of the peer's life. Both ends close on purpose too, and
/// that says nothing, nor does trouble of
/// this node's own system.
fn doubt_after(reason: &CloseReason) -> Option<swim::Doubt> {
    match reason {
        CloseReason::Refused | CloseReason::Reset => Some(swim::Doubt::Refused),
        CloseReason::Idle | CloseReason::HandshakeTimeout(_) | CloseReason::Transport { .. } => {
            Some(swim::Doubt::Lost)
        }
        CloseReason::Local(_)
        | CloseReason::Peer(_)
        | CloseReason::Io(_)
        | CloseReason::Tls { .. }
        | CloseReason::WrongIdentity(_) => None,
    }
}

/// The connection on which a peer is told something: the one in use or, before one is, the newest.
fn voice(peer: &mesh::PeerView) -> Option<ConnectionId> {
    peer.current.or_else(|| peer.links.last().copied())
}
