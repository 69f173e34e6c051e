//! The one thread that decides: it owns the gossip socket, the QUIC listener and both cores.
//!
//! A turn: read gossip first, so that no flood of handshakes can drown the failure detector; then
//! what the workers say, commands, and a bounded number of listener datagrams; then the cores'
//! timers. Every input goes to the [`Cluster`] at once, and after each its outputs are carried out
//! until it is quiet: it decides who is alive, whom to be connected to, and what the others are
//! told; here are the sockets, keys and clock that it does not know. Then the turn's changes are
//! published, and the thread sleeps until a socket, the waker or the next deadline.
//!
//! Nothing here waits for anything but that sleep: names are looked up elsewhere, handshakes run on
//! their own threads, and no lock of a connection is ever taken.

#![expect(
    clippy::disallowed_methods,
    reason = "time and the wall clock enter here"
)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::{
    close::{CloseCode, CloseReason},
    cluster::{self, Cluster, Frame},
    control::{Control, SyncFrame},
    error::{CommandError, EventError},
    event::EventKind,
    explanation::{Explanation, Moments},
    figures::ConnectionFigures,
    mesh,
    node_id::{ConnectionId, NodeId},
    query::{MAX_QUERIES, Queries, Query, Question, Slot},
    record::{Record, SignedRecord, VerifiedRecord},
    resolver::Resolver,
    roster::{self, Image},
    snapshot::{DialRow, Snapshot, Stage},
    state_dir,
    stats::{
        ClosedConnection, ConnectionInfo, ConnectionState, EventCounts, KeyInfo, Keys, LostCounts,
        MemberInfo, MemberStatus, RefusedCounts, SeedInfo, Side,
    },
    subscribers::Subscribers,
    swim,
    thread::panic_message,
    transport::{Command as WorkerCommand, Context, Datagram, Endpoint, Notice, Sign, millis},
    trust::{
        GroupKey, Header, Identity, KeyId, Keyring, KeyringError, KeyringOffer, OpenError, Opener,
        Refusal, Sealer, Verdict, Verifier,
    },
    waker::{Interest, Waker, sleep},
};

/// Gossip datagrams, notices, and listener datagrams handled in one turn.
const GOSSIP_BUDGET: usize = 256;
const NOTICE_BUDGET: usize = 1_024;
const LISTENER_BUDGET: usize = 64;

/// The largest gossip datagram that is read; ours have 1,200 bytes.
const MAX_GOSSIP_BYTES: usize = 2_048;

/// How long gossip may take in one turn before the rest has its own: what is costly in a datagram is
/// verifying signatures, and somebody in the cluster can fill it with those.
const GOSSIP_TIME: Duration = Duration::from_millis(10);

/// Forced leaves of one datagram that are verified: as many as a default one has room for. Those
/// beyond are counted as refused; gossip repeats itself, and a sync carries them as well.
const MAX_FORCED_LEAVES: usize = 8;

/// Forced leaves of one sync whose issuer's certificate was still to come; they are verified at its
/// end, all at once, and that is a matter of some tens of milliseconds. Those beyond come again with
/// the next sync, when the certificates are known.
const MAX_DEFERRED_FORCED_LEAVES: usize = 256;

/// How often an unknown key of one member may cause a sync, and of all members together.
const KEY_SYNC_INTERVAL: Duration = Duration::from_secs(10);
const MAX_KEY_SYNCS_PER_SECOND: u32 = 8;

/// Offers of keyrings that are merged although they change the ring, or raise the generation up to
/// which the next is taken: by one each, and at this pace nobody who is in the cluster can use the
/// generations up in less than sixteen years. A cluster that rotates or meets another one needs one
/// or two. What is left out the next sync brings.
const MAX_RING_CHANGES_PER_SECOND: u32 = 8;

/// How often somebody whose keyring is another is told ours. What is left out the next sync brings.
const MAX_RING_ANSWERS_PER_SECOND: u32 = 64;

/// Members named that have not confirmed a key.
const MAX_MISSING_NAMED: usize = 32;

/// Members that one sync may carry.
const MAX_SYNC_ENTRIES: usize = 16_384;

/// Syncs with members that are under way at once; each may hold a whole member table.
const MAX_SYNCS: usize = 128;

/// Syncs that one peer may have opened and not finished. A node opens one at a time; a second is
/// there when it gave the first up.
const MAX_SYNCS_PER_CONNECTION: usize = 2;

/// What all unfinished syncs together may take: four whole member tables of large records.
const MAX_SYNC_BYTES: usize = 64 << 20;

/// What an entry that waits takes beside its bytes, which are there twice: encoded and decoded.
const SYNC_ENTRY_OVERHEAD: usize = 512;

/// Saved records verified in one turn: a few milliseconds.
const SAVED_BUDGET: usize = 16;

/// How long notices may take in one turn before gossip is read again.
const NOTICE_TIME: Duration = Duration::from_millis(5);

/// A line about refused datagrams or handshakes is written at most once in so long.
const REFUSAL_LINE_INTERVAL: Duration = Duration::from_secs(60);

/// Peers that are told of a renewed certificate at once. From them it gets round by the others'
/// periodic syncs; to start one with everybody would move the whole table as often as there are peers.
const MAX_RENEWAL_SYNCS: usize = 16;

/// Hosts or nodes of which a line was written in that time; of more nothing is written.
const MAX_REFUSAL_LINES: usize = 1_024;

/// With more members than this, the published copy is renewed at most every `PUBLISH_INTERVAL`.
const SMALL_CLUSTER: usize = 256;
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// Connections that do not end within this time after they were closed at shutdown are left alone.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// What the handle asks of the reactor.
pub(crate) enum Command {
    Join {
        seeds: Vec<String>,
        reply: Sender<Result<usize, CommandError>>,
    },
    Leave {
        reply: Sender<Leave>,
        deadline: Instant,
    },
    /// Close every connection after a leave, and go on.
    Part,
    ForceLeave {
        node: NodeId,
        reply: Sender<Result<(), CommandError>>,
    },
    Explain {
        node: NodeId,
        reply: Sender<Option<Explanation>>,
    },
    Keys {
        reply: Sender<Keys>,
    },
    RotateKey {
        reply: Sender<Result<KeyId, CommandError>>,
    },
    RemoveKey {
        id: KeyId,
        reply: Sender<Result<(), CommandError>>,
    },
    /// Tell everybody something; a question if there is a query, with where its answers go. Answers
    /// with the number of the event.
    Emit {
        name: String,
        payload: Vec<u8>,
        query: Option<(swim::Query, Arc<Slot>)>,
        reply: Sender<Result<u64, EventError>>,
    },
    /// Drop some seeds and add others, which are tried at once; nobody waits for that.
    EditSeeds {
        add: Vec<String>,
        remove: Vec<String>,
        reply: Sender<Result<(), CommandError>>,
    },
    /// Sign with this from now on; TLS has it already.
    Renew {
        identity: Box<Identity>,
        reply: Sender<Result<(), CommandError>>,
    },
    /// Change our tags; answers with those that hold then.
    SetTags {
        change: TagChange,
        reply: Sender<Result<BTreeMap<String, String>, CommandError>>,
    },
    /// Close everything and end. `silently`: as a killed process would.
    Shutdown {
        silently: bool,
    },
    #[cfg(test)]
    Panic,
}

/// What shall become of a node's tags.
pub(crate) enum TagChange {
    /// These and no others.
    Replace(BTreeMap<String, String>),
    /// Those there are, with these added or replaced and those removed.
    Edit {
        set: BTreeMap<String, String>,
        delete: BTreeSet<String>,
    },
}

/// Counters of the gossip path.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) gossip_received: AtomicU64,
    pub(crate) gossip_sent: AtomicU64,
    pub(crate) gossip_refused: AtomicU64,
    pub(crate) gossip_unsent: AtomicU64,
    pub(crate) records_refused: AtomicU64,
    pub(crate) records_unproven: AtomicU64,
    pub(crate) statements_refused: AtomicU64,
    /// Events of applications that were malformed or not signed by their origin.
    pub(crate) events_refused: AtomicU64,
    pub(crate) keyrings_refused: AtomicU64,
    pub(crate) syncs_refused: AtomicU64,
    pub(crate) gossip_received_bytes: AtomicU64,
    pub(crate) gossip_sent_bytes: AtomicU64,
    /// Touched when a connection comes up or ends.
    pub(crate) connections: Mutex<ConnectionFigures>,
}

/// What the reactor is built from.
pub(crate) struct Parts {
    pub(crate) identity: Identity,
    pub(crate) context: Arc<Context>,
    pub(crate) endpoint: Endpoint,
    pub(crate) gossip: UdpSocket,
    pub(crate) cluster: Cluster,
    pub(crate) seeds: Vec<String>,
    /// What an earlier life saved, and where this one saves.
    pub(crate) image: Option<Image>,
    pub(crate) writer: Option<state_dir::Writer>,
    pub(crate) notices: Receiver<Notice>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) subscribers: Arc<Subscribers>,
    pub(crate) queries: Arc<Queries>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stuck: Sender<Vec<String>>,
    #[cfg(test)]
    pub(crate) panic_at_start: bool,
}

/// Who has confirmed a leave, and who has not.
pub(crate) type Leave = (Vec<NodeId>, Vec<NodeId>);

/// What a peer has sent of a sync so far; all of it is verified, except for what `unproven` says.
#[derive(Default)]
struct Incoming {
    entries: Vec<swim::SyncEntry>,
    bytes: usize,
    /// Whose forced leave was looked at already: one for each node is enough.
    forced: BTreeSet<NodeId>,
    /// Of those, the ones that are not verified yet, because a later entry may bring the certificate
    /// of the issuer.
    unproven: BTreeSet<NodeId>,
}

impl Incoming {
    /// Adds an entry; returns what it takes.
    fn push(&mut self, entry: swim::SyncEntry) -> usize {
        let signed = &entry.record.signed;
        let forced = entry.forced.as_ref().map_or(0, |forced| {
            let names = forced.node.as_str().len() + forced.issuer.as_str().len();
            size_of::<swim::ForcedLeave>() + names + forced.signature.len()
        });
        let bytes =
            (signed.payload.len() + signed.signature.len()) * 2 + forced + SYNC_ENTRY_OVERHEAD;
        self.entries.push(entry);
        self.bytes += bytes;
        bytes
    }
}

struct Reactor {
    parts: Parts,
    waker: Arc<Waker>,
    resolver: Resolver,
    verifier: Verifier,
    /// Saved entries whose signatures are still to be verified.
    unverified: VecDeque<roster::Entry>,
    keyring: Keyring,
    sealer: Sealer,
    opener: Opener,
    random: ring::rand::SystemRandom,
    first_round: Option<u64>,
    /// What became of the seeds so far, until the node has started.
    seed_state: BTreeMap<String, String>,
    joins: BTreeMap<u64, Sender<Result<usize, CommandError>>>,
    /// Syncs that peers are sending; those this node asked for are answered with nothing.
    syncs: BTreeMap<(ConnectionId, u64), Incoming>,
    /// Those that came when there were too many; of each connection no more than of the others.
    untaken_syncs: BTreeSet<(ConnectionId, u64)>,
    /// The sum over `syncs`.
    sync_bytes: usize,
    /// Connections that sent too much in syncs and are being closed.
    overloading: BTreeSet<ConnectionId>,
    key_syncs: BTreeMap<NodeId, Instant>,
    key_sync_budget: Budget,
    ring_changes: Budget,
    ring_answers: Budget,
    /// The ring has changed in this turn.
    is_ring_untold: bool,
    /// Messages nobody acknowledged, on connections of a peer that is still or again connected.
    unacknowledged: BTreeMap<NodeId, u64>,
    /// Members whose going away the log has told: a peer that dies is disconnected and declared
    /// dead, in either order, and that is one line. As large as the table of members at most.
    gone: BTreeSet<NodeId>,
    /// Who waits for the end of the leave, and until when.
    moments: Moments,
    leave_replies: Vec<(Instant, Sender<Leave>)>,
    shutdown: Option<Instant>,
    next_refusal_line: Option<Instant>,
    refusal_lines: BTreeMap<SocketAddr, Instant>,
    superseded_lines: BTreeMap<NodeId, Instant>,
    /// Somebody came, went, was connected or disconnected.
    peers_changed: bool,
    members_dirty: bool,
    dials_dirty: bool,
    links_dirty: bool,
    published_at: Option<Instant>,
}

/// The body of the reactor's thread. Whatever happens, the node's end is published.
pub(crate) fn run(parts: Parts) {
    let snapshot = Arc::clone(&parts.snapshot);
    let subscribers = Arc::clone(&parts.subscribers);
    let registry = Arc::clone(&parts.context.registry);
    let queries = Arc::clone(&parts.queries);
    let writer = parts.writer.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| Reactor::new(parts).drive()));
    match outcome {
        Ok(()) => snapshot.set_stage(Stage::Stopped),
        Err(panic) => {
            let why = panic_message(panic.as_ref());
            log::error!(target: "reactor", panic:% = why; "the reactor panicked; the node stops");
            // The workers notice that nobody listens any more and are closed by their peers or by
            // their idle time-out; what matters here is that nobody waits for this node in vain.
            for connection in snapshot.links() {
                connection.command(WorkerCommand::Close(CloseCode::Internal));
            }
            snapshot.set_stage(Stage::Failed(format!("reactor panicked: {why}")));
        }
    }
    if let Some(writer) = writer {
        writer.close();
    }
    subscribers.close();
    queries.close();
    registry.close();
}

impl Reactor {
    fn new(parts: Parts) -> Self {
        let context = &parts.context;
        let waker = Arc::clone(&context.reactor);
        Self {
            resolver: Resolver::new(Arc::clone(&waker)),
            verifier: Verifier::new(&parts.identity),
            unverified: VecDeque::new(),
            keyring: Keyring::new(),
            sealer: Sealer::new(&context.cluster, &context.node, context.boot),
            opener: Opener::new(&context.cluster, &context.node, context.boot),
            random: ring::rand::SystemRandom::new(),
            waker,
            first_round: None,
            seed_state: BTreeMap::new(),
            joins: BTreeMap::new(),
            syncs: BTreeMap::new(),
            untaken_syncs: BTreeSet::new(),
            sync_bytes: 0,
            overloading: BTreeSet::new(),
            key_syncs: BTreeMap::new(),
            key_sync_budget: Budget::new(MAX_KEY_SYNCS_PER_SECOND),
            ring_changes: Budget::new(MAX_RING_CHANGES_PER_SECOND),
            ring_answers: Budget::new(MAX_RING_ANSWERS_PER_SECOND),
            is_ring_untold: false,
            unacknowledged: BTreeMap::new(),
            gone: BTreeSet::new(),
            moments: Moments::default(),
            leave_replies: Vec::new(),
            shutdown: None,
            next_refusal_line: None,
            refusal_lines: BTreeMap::new(),
            superseded_lines: BTreeMap::new(),
            peers_changed: false,
            members_dirty: true,
            dials_dirty: true,
            links_dirty: true,
            published_at: None,
            parts,
        }
    }

    fn drive(&mut self) {
        #[cfg(test)]
        assert!(!self.parts.panic_at_start, "asked to panic while it starts");
        let now = Instant::now();
        log::debug!(target: "node", node:% = self.parts.context.node; "start: join round begins");
        self.remember(now);
        let seeds = std::mem::take(&mut self.parts.seeds);
        for seed in &seeds {
            self.seed_state
                .insert(seed.clone(), format!("seed {seed}: no answer yet"));
        }
        self.first_round = Some(self.parts.cluster.start(now, seeds));
        self.publish_joining();
        self.settle(now);
        loop {
            let now = Instant::now();
            self.parts.context.reactor_turned(now);
            let is_busy = self.read_gossip(now)
                | self.take_notices(now)
                | self.take_commands(now)
                | self.read_listener(now)
                | self.verify_saved(now);
            self.on_time(now);
            self.settle(now);
            self.tell_ring(now);
            self.publish(now);
            if self.is_over(now) {
                self.end();
                return;
            }
            if !is_busy && !self.sleep(now) {
                self.end();
                return;
            }
        }
    }

    fn sleep(&self, now: Instant) -> bool {
        let deadline = [
            self.parts.cluster.poll_timeout(),
            self.shutdown,
            self.leave_replies.iter().map(|(at, _)| *at).min(),
            (self.members_dirty || self.dials_dirty)
                .then(|| self.published_at.map(|at| at + PUBLISH_INTERVAL))
                .flatten(),
        ];
        let deadline = deadline.into_iter().flatten().min();
        let fds = [
            (self.waker.as_fd(), Interest::Read),
            (self.parts.gossip.as_fd(), Interest::Read),
            (self.parts.endpoint.socket().as_fd(), Interest::Read),
        ];
        let slept = sleep(&fds, now, deadline);
        self.waker.clear();
        slept
            .inspect_err(|error| {
                log::error!(target: "reactor", error:%; "poll failed; the node stops");
            })
            .is_ok()
    }

    // ---- what outlives a restart

    /// Takes over whom an earlier life of this node knew. They are somewhere to dial at once; their
    /// signatures take longer and are verified little by little.
    fn remember(&mut self, now: Instant) {
        let Some(image) = self.parts.image.take() else {
            return;
        };
        log::info!(target: "node", members = image.entries.len(),
            incarnation = image.incarnation; "members remembered from an earlier life");
        for entry in image.entries {
            match Record::decode(&entry.record.payload) {
                Ok(record) => {
                    self.parts.cluster.remember(now, &record, &entry);
                    self.unverified.push_back(entry);
                }
                Err(error) => log::debug!(target: "swim", error:%; "saved record refused"),
            }
        }
    }

    /// Verifies some of what was saved: certificates spare the first gossip a wait, and a farewell
    /// counts when it is signed. `true` when there is more.
    fn verify_saved(&mut self, now: Instant) -> bool {
        for _ in 0..SAVED_BUDGET {
            let Some(entry) = self.unverified.pop_front() else {
                return false;
            };
            if entry.certificate.is_empty() {
                continue;
            }
            let claimed = self
                .verifier
                .insert_claimed(&entry.certificate, SystemTime::now());
            if let Err(error) = claimed {
                log::debug!(target: "swim", error:%; "saved certificate refused");
                continue;
            }
            let record = self.verifier.verify(&entry.record).into_verified();
            if let Some(record) = record.filter(|record| record.record.left) {
                self.parts.cluster.remember_left(now, record);
                self.settle(now);
            }
        }
        true
    }

    /// Leaves what outlives this process with the thread that writes.
    fn save_roster(&mut self, now: Instant) {
        let Some(writer) = &self.parts.writer else {
            return;
        };
        let certificates = self.verifier.certificates();
        writer.save(self.parts.cluster.image(now, |fingerprint| {
            certificates.der(fingerprint).unwrap_or_default().into()
        }));
    }

    // ---- gossip in

    /// Reads gossip. `true` when there may be more.
    fn read_gossip(&mut self, now: Instant) -> bool {
        let mut buffer = [0; MAX_GOSSIP_BYTES];
        for _ in 0..GOSSIP_BUDGET {
            match self.parts.gossip.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let counters = &self.parts.counters;
                    counters.gossip_received.fetch_add(1, Relaxed);
                    let bytes = u64::try_from(length).unwrap_or(u64::MAX);
                    counters.gossip_received_bytes.fetch_add(bytes, Relaxed);
                    self.handle_gossip(now, from, &buffer[..length]);
                    if now.elapsed() >= GOSSIP_TIME {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    log::trace!(target: "swim", error:%; "gossip socket");
                    return false;
                }
            }
        }
        true
    }

    fn handle_gossip(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        match self.open_gossip(now, from, datagram) {
            Ok((sender, message)) => {
                log::trace!(target: "swim", from:% = sender; "{} bytes", datagram.len());
                let records = self.verify(now, &message.records);
                let forced: Vec<_> = message.forced_leaves().cloned().collect();
                let events = message.events.clone();
                self.parts
                    .cluster
                    .handle_gossip(now, &sender, from, message, records);
                self.handle_forced_leaves(now, forced);
                for event in events {
                    self.handle_event(now, event);
                }
                self.settle(now);
            }
            Err(why) => {
                self.parts.counters.gossip_refused.fetch_add(1, Relaxed);
                log::trace!(target: "swim", addr:% = from, error = why.as_str(); "gossip refused");
                self.refusal_line(now);
            }
        }
    }

    /// Takes the forced leaves of a datagram. Whether one can matter at all is cheaper to tell than
    /// whether it is signed.
    fn handle_forced_leaves(&mut self, now: Instant, forced: Vec<swim::ForcedLeave>) {
        let mut verified = 0;
        for leave in forced {
            if !self.parts.cluster.wants_forced_leave(&leave) {
                continue;
            }
            verified += 1;
            if verified <= MAX_FORCED_LEAVES && self.signature_of(&leave).is_ok() {
                self.parts.cluster.handle_forced_leave(now, leave);
            } else {
                self.parts.counters.statements_refused.fetch_add(1, Relaxed);
            }
        }
    }

    /// Takes an event of an application, however it came: one that is new here and that its origin has signed. In this
    /// order, for most are copies, and to tell a copy is cheap.
    fn handle_event(&mut self, now: Instant, signed: swim::SignedEvent) {
        let cluster = &mut self.parts.cluster;
        let refusal = match swim::UserEvent::decode(&signed.payload) {
            Ok(event) if !cluster.is_new_event(&event) => return,
            Ok(event) => {
                let (payload, signature) = (&signed.payload, &signed.signature);
                let verified = self
                    .verifier
                    .verify_event(&event.origin, payload, signature);
                match verified {
                    Ok(()) => {
                        let event = swim::VerifiedEvent { event, signed };
                        cluster.handle_user_event(now, event);
                        return;
                    }
                    Err(refusal) => refusal.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        self.parts.counters.events_refused.fetch_add(1, Relaxed);
        log::debug!(target: "swim", error = refusal.as_str(); "event refused");
    }

    fn open_gossip(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(NodeId, swim::Message), String> {
        let header = Header::parse(datagram).map_err(|error| error.to_string())?;
        let sender = NodeId::new(header.node).map_err(|error| error.to_string())?;
        if sender == self.parts.context.node {
            return Err("datagram in this node's own name".into());
        }
        // Only members have records, so only members cost a key derivation.
        let member = self
            .parts
            .cluster
            .swim()
            .member(&sender)
            .ok_or("sender is no member")?;
        let boot = member.record.record.boot;
        let gossip_addr = member.record.record.gossip_addr;
        let payload = match self.opener.open(&self.keyring, &header, datagram, boot) {
            Ok(payload) => payload,
            Err(error @ OpenError::UnknownKey(_)) => {
                if from == gossip_addr {
                    self.sync_for_key(now, &sender);
                }
                return Err(error.to_string());
            }
            Err(error) => return Err(error.to_string()),
        };
        let message = swim::Message::decode(&sender, &payload).map_err(|e| e.to_string())?;
        Ok((sender, message))
    }

    /// A member seals with a key that is not known here: it is asked for it, at a limited rate.
    fn sync_for_key(&mut self, now: Instant, node: &NodeId) {
        let is_recent = |at: &Instant| now < *at + KEY_SYNC_INTERVAL;
        self.key_syncs.retain(|_, at| is_recent(at));
        if self.key_syncs.contains_key(node) || !self.key_sync_budget.take(now) {
            return;
        }
        self.key_syncs.insert(node.clone(), now);
        self.parts.cluster.sync_with(now, node);
    }

    /// At most one line a minute, whatever strangers send.
    fn refusal_line(&mut self, now: Instant) {
        if self.next_refusal_line.is_some_and(|at| now < at) {
            return;
        }
        self.next_refusal_line = Some(now + REFUSAL_LINE_INTERVAL);
        log::debug!(target: "reactor",
            gossip = self.parts.counters.gossip_refused.load(Relaxed),
            quic = self.parts.context.counters.refused_datagrams.load(Relaxed);
            "datagrams refused so far");
    }

    /// The records that verify. One whose certificate is unknown tells at least where to dial.
    fn verify(&mut self, now: Instant, records: &[SignedRecord]) -> Vec<Arc<VerifiedRecord>> {
        let mut verified = Vec::new();
        for signed in records {
            match self.verifier.verify(signed) {
                Verdict::Verified(record) => verified.push(record),
                Verdict::Waiting(record) => {
                    self.parts.counters.records_unproven.fetch_add(1, Relaxed);
                    if !record.left {
                        self.parts
                            .cluster
                            .handle_hint(now, &record.node, record.quic_addr);
                    }
                }
                Verdict::Refused(why) => {
                    self.parts.counters.records_refused.fetch_add(1, Relaxed);
                    log::debug!(target: "swim", error:% = why; "record refused");
                }
            }
        }
        verified
    }

    // ---- the listener

    /// Reads the listener. `true` when there may be more.
    fn read_listener(&mut self, now: Instant) -> bool {
        let mut buffer = [0; MAX_GOSSIP_BYTES];
        for _ in 0..LISTENER_BUDGET {
            match self.parts.endpoint.socket().recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let bytes = buffer[..length].to_vec();
                    self.handle_datagram(now, Datagram { from, bytes });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    log::trace!(target: "transport", error:%; "listener");
                    return false;
                }
            }
        }
        true
    }

    fn handle_datagram(&mut self, now: Instant, datagram: Datagram) {
        let Parts {
            endpoint, cluster, ..
        } = &mut self.parts;
        let routed = endpoint.handle_datagram(now, datagram, || cluster.allocate());
        match routed {
            crate::transport::endpoint::Routed::Accepted => self.links_dirty = true,
            crate::transport::endpoint::Routed::Refused => self.refusal_line(now),
            crate::transport::endpoint::Routed::Connection
            | crate::transport::endpoint::Routed::Answered => {}
        }
    }

    // ---- workers

    /// Takes what the workers say. `true` when there may be more.
    fn take_notices(&mut self, now: Instant) -> bool {
        // Reading gossip has taken some of the turn already.
        let started = now.elapsed();
        for _ in 0..NOTICE_BUDGET {
            let Ok(notice) = self.parts.notices.try_recv() else {
                return false;
            };
            self.handle_notice(now, notice);
            self.settle(now);
            // A record to verify takes longer than a ping; gossip must not wait for a thousand.
            if now.elapsed() >= NOTICE_TIME + started {
                break;
            }
        }
        true
    }

    fn handle_notice(&mut self, now: Instant, notice: Notice) {
        match notice {
            Notice::Up {
                connection,
                peer,
                boot,
                side,
                addr,
                certificate,
                keyring_digest,
            } => {
                self.parts.endpoint.handle_up(connection);
                self.count_up(side);
                if let Some(link) = self.parts.endpoint.connection(connection) {
                    self.parts.snapshot.count(link, &peer);
                }
                let proven = self.take_proven(&peer, &certificate);
                let rings_differ = self.keyring.digest().as_slice() != keyring_digest;
                let cluster = &mut self.parts.cluster;
                let is_kept = cluster.handle_up(
                    now,
                    connection,
                    &peer,
                    boot,
                    side,
                    addr,
                    proven,
                    rings_differ,
                );
                if is_kept {
                    self.on_up(now, connection, &peer);
                }
            }
            Notice::Used { connection } => self.parts.cluster.handle_used(now, connection),
            Notice::Answered { connection, at } => {
                self.parts.cluster.handle_answered(now, connection, at);
            }
            Notice::Doubted { connection, sign } => {
                let doubt = match sign {
                    Sign::Refused => swim::Doubt::Refused,
                    Sign::Stalled => swim::Doubt::Stalled,
                    Sign::Unanswered => swim::Doubt::Unanswered,
                };
                self.parts.cluster.handle_doubted(now, connection, doubt);
            }
            Notice::Pinged { connection, id } => {
                let reactor_age_ms = 0;
                self.tell(connection, Control::Pong { id, reactor_age_ms });
            }
            Notice::Control { connection, frame } => self.handle_control(now, connection, frame),
            Notice::Sync {
                connection,
                stream,
                frame,
            } => {
                self.handle_sync_frame(now, connection, stream, frame);
            }
            Notice::SyncEnd {
                connection,
                stream,
                is_whole,
            } => {
                self.handle_sync_end(now, connection, stream, is_whole);
            }
            Notice::Stray { datagram } => self.handle_datagram(now, datagram),
            Notice::Down {
                connection,
                reason,
                unacknowledged,
            } => {
                self.on_down(now, connection, &reason, unacknowledged);
                self.parts.cluster.handle_down(now, connection, &reason);
            }
            Notice::Gone { connection } => {
                self.parts.endpoint.handle_gone(now, connection);
                self.links_dirty = true;
            }
        }
        self.dials_dirty = true;
    }

    /// The handshake proved the certificate, whatever becomes of the connection. Returns the records
    /// that waited for it.
    fn take_proven(&mut self, peer: &NodeId, certificate: &[u8]) -> Vec<Arc<VerifiedRecord>> {
        match self.verifier.insert_proven(certificate) {
            Ok(fingerprint) => self.verifier.take_verified(&fingerprint),
            Err(error) => {
                log::warn!(target: "swim", peer:%, error:%; "certificate not remembered");
                Vec::new()
            }
        }
    }

    fn on_up(&mut self, now: Instant, connection: ConnectionId, peer: &NodeId) {
        if self.parts.cluster.links_to(now, peer) == [connection] {
            // Maybe a new life with an empty ring; it says on every connection what it holds.
            self.keyring.forget(peer);
        }
        self.tell(connection, Control::KeysHeld(encode_ids(&self.keyring)));
    }

    fn on_down(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        reason: &CloseReason,
        unacknowledged: u64,
    ) {
        self.drop_syncs_of(connection);
        self.overloading.remove(&connection);
        let Some(link) = self.parts.endpoint.connection(connection) else {
            return;
        };
        let (peer, addr, side) = (link.peer().cloned(), link.addr, link.side);
        let was_up = self.parts.cluster.peer_of(connection).is_some();
        self.parts.snapshot.fold(link);
        self.count_down(side, was_up, reason);
        let info = link.info();
        self.parts.snapshot.note_closed(ClosedConnection {
            peer: peer.clone().or_else(|| info.peer.clone()),
            addr,
            side,
            at: SystemTime::now(),
            kind: reason.kind(),
            reason: reason.to_string(),
            up: info.up.filter(|_| was_up),
            sent_bytes: info.sent_bytes,
            received_bytes: info.received_bytes,
            unacknowledged,
            count: 1,
        });
        match &peer {
            Some(peer) => {
                log::debug!(target: "transport", peer:%, addr:%, side = side.as_str(), reason:%;
                    "connection closed");
                if unacknowledged > 0 {
                    *self.unacknowledged.entry(peer.clone()).or_default() += unacknowledged;
                }
            }
            None => {
                log::debug!(target: "transport", addr:%, side = side.as_str(), reason:%;
                    "handshake ended");
            }
        }
        let is_alarming = matches!(
            reason,
            CloseReason::Tls { .. } | CloseReason::WrongIdentity(_)
        );
        // Where somebody was long ago, somebody else may be by now.
        if is_alarming && !self.parts.cluster.mesh().is_long_shot(connection) {
            self.identity_line(now, addr, side, reason);
        }
        self.parts.endpoint.handle_down(now, connection);
        self.links_dirty = true;
    }

    fn count_up(&self, side: Side) {
        let mut figures = self.parts.counters.connections.lock();
        match side {
            Side::Dialed => {
                figures.opened_dialed += 1;
                *figures.dials.entry("ok").or_default() += 1;
            }
            Side::Accepted => figures.opened_accepted += 1,
        }
    }

    fn count_down(&self, side: Side, was_up: bool, reason: &CloseReason) {
        let mut figures = self.parts.counters.connections.lock();
        let kind = reason.kind();
        if was_up {
            *figures.closed.entry(kind).or_default() += 1;
        } else if side == Side::Dialed {
            *figures.dials.entry(kind).or_default() += 1;
        }
        if reason.is_fault() {
            *figures.errors.entry(kind).or_default() += 1;
        }
    }

    /// A person should look at a refused certificate; once a minute and host is enough.
    fn identity_line(&mut self, now: Instant, addr: SocketAddr, side: Side, why: &CloseReason) {
        // Diallers come from ever new ports: the host is what counts.
        let key = match side {
            Side::Dialed => addr,
            Side::Accepted => SocketAddr::new(addr.ip(), 0),
        };
        self.refusal_lines.retain(|_, until| now < *until);
        if self.refusal_lines.contains_key(&key) || self.refusal_lines.len() >= MAX_REFUSAL_LINES {
            return;
        }
        self.refusal_lines.insert(key, now + REFUSAL_LINE_INTERVAL);
        log::warn!(target: "transport", addr:%, side = side.as_str(), error:% = why;
            "peer and this node do not accept each other");
    }

    /// A ghost that dials again and again deserves one line a minute.
    fn superseded_line(&mut self, now: Instant, node: NodeId) {
        self.superseded_lines.retain(|_, until| now < *until);
        if self.superseded_lines.contains_key(&node)
            || self.superseded_lines.len() >= MAX_REFUSAL_LINES
        {
            return;
        }
        log::warn!(target: "mesh", node:%;
            "an earlier life of this node came back: two processes have one identity");
        self.superseded_lines
            .insert(node, now + REFUSAL_LINE_INTERVAL);
    }

    fn tell(&self, connection: ConnectionId, frame: Control) {
        if !self
            .parts
            .endpoint
            .command(connection, WorkerCommand::Control(frame))
        {
            log::debug!(target: "reactor", connection:%; "control frame not taken");
        }
    }

    /// Tells every peer over every connection that is up, in use or not.
    fn tell_links(&self, now: Instant, frame: &Control) {
        for peer in self.parts.cluster.mesh().peers(now) {
            for connection in peer.links {
                self.tell(connection, frame.clone());
            }
        }
    }

    fn handle_control(&mut self, now: Instant, connection: ConnectionId, frame: Control) {
        let Some(peer) = self.peer_of(connection) else {
            return;
        };
        match frame {
            Control::Record(signed) => {
                if let Some(record) = self.verify(now, &[signed]).pop() {
                    let frame = Frame::Record(record);
                    self.parts.cluster.handle_frame(now, connection, frame);
                }
            }
            Control::LeaveAck { incarnation } => {
                let frame = Frame::LeaveAck { incarnation };
                self.parts.cluster.handle_frame(now, connection, frame);
            }
            Control::Probe { seq } => {
                let frame = Frame::Probe { seq };
                self.parts.cluster.handle_frame(now, connection, frame);
            }
            Control::ProbeAck { seq } => {
                let frame = Frame::ProbeAck { seq };
                self.parts.cluster.handle_frame(now, connection, frame);
            }
            Control::Keyring(bytes) => self.merge_keyring(now, connection, &peer, &bytes),
            Control::KeysHeld(bytes) => {
                self.keyring.confirm(&peer, &decode_ids(&bytes));
                self.select_key(now);
            }
            Control::EventClock {
                boot,
                lamport,
                number,
            } => {
                let clock = swim::EventClock {
                    boot,
                    lamport,
                    number,
                };
                let frame = Frame::EventClock(clock);
                self.parts.cluster.handle_frame(now, connection, frame);
            }
            Control::UserEvent { payload, signature } => {
                let (payload, signature) = (payload.into(), signature.into());
                self.handle_event(now, swim::SignedEvent { payload, signature });
            }
            // The worker keeps these to itself.
            Control::Hello(_)
            | Control::Ready
            | Control::Use
            | Control::Ping { .. }
            | Control::Pong { .. }
            | Control::MessageAck { .. }
            | Control::Refused { .. }
            | Control::Drained
            | Control::Withdrawn { .. }
            | Control::Unknown => {}
        }
    }

    fn peer_of(&self, connection: ConnectionId) -> Option<NodeId> {
        self.parts.cluster.peer_of(connection).cloned()
    }

    // ---- keys

    fn merge_keyring(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        peer: &NodeId,
        bytes: &[u8],
    ) {
        let Ok(offer) = KeyringOffer::decode(bytes) else {
            self.parts.counters.keyrings_refused.fetch_add(1, Relaxed);
            log::debug!(target: "swim", peer:%; "malformed keyring");
            return;
        };
        // The first ring is no change of one, and without it there is no gossip.
        let is_first = self.keyring.is_empty();
        if !is_first && offer.moves(&self.keyring) && !self.ring_changes.take(now) {
            self.parts.counters.keyrings_refused.fetch_add(1, Relaxed);
            log::debug!(target: "swim", peer:%; "too many new keyrings; not merged");
            return;
        }
        match self.keyring.merge(&offer) {
            Ok(merged) => {
                // Who offers a key holds it.
                self.keyring.confirm_also(peer, &offer.ids());
                if merged.changed {
                    log::debug!(target: "swim", peer:%, keys = self.keyring.keys().len();
                        "keyring changed");
                    self.on_keyring_changed(now);
                } else {
                    self.select_key(now);
                    // One of the two is behind, and this brings it forward: the peer merges, or
                    // offers again what was too far ahead.
                    if !offer.equals(&self.keyring) && self.ring_answers.take(now) {
                        self.tell(connection, Control::Keyring(self.keyring.encode()));
                    }
                }
                if merged.ahead {
                    self.parts.counters.keyrings_refused.fetch_add(1, Relaxed);
                }
            }
            Err(error) => log::debug!(target: "swim", peer:%, error:%; "keyring not merged"),
        }
    }

    fn keys(&self) -> Keys {
        let me = &self.parts.context.node;
        let others: Vec<&NodeId> = self
            .parts
            .cluster
            .swim()
            .members()
            .filter(|member| is_here(member.status))
            .map(|member| &member.record.record.node)
            .filter(|node| *node != me)
            .collect();
        let send = self.keyring.send_key().map(GroupKey::id);
        let keys = self.keyring.keys().iter().rev().map(|key| {
            let id = key.id();
            let has = |node: &&&NodeId| self.keyring.has_confirmed(node, id);
            let confirmed = others.iter().filter(has).count();
            let missing = others.iter().filter(|node| !has(node));
            KeyInfo {
                id,
                generation: key.generation(),
                seals: send == Some(id),
                confirmed: confirmed + 1,
                missing: missing
                    .take(MAX_MISSING_NAMED)
                    .map(|node| (*node).clone())
                    .collect(),
            }
        });
        Keys {
            fixed: self.keyring.is_fixed(),
            members: others.len() + 1,
            keys: keys.collect(),
        }
    }

    /// What changes something for everybody is refused once nobody would hear of it.
    fn not_left(&self) -> Result<(), CommandError> {
        if self.parts.cluster.leaving().is_some() {
            Err(CommandError::Left)
        } else {
            Ok(())
        }
    }

    fn rotate_key(&mut self, now: Instant) -> Result<KeyId, CommandError> {
        self.not_left()?;
        let key = self.keyring.rotate(&self.random).map_err(key_failure)?;
        log::info!(target: "node", key:%; "gossip key rotated");
        self.on_keyring_changed(now);
        Ok(key)
    }

    fn remove_key(&mut self, now: Instant, id: KeyId) -> Result<(), CommandError> {
        self.not_left()?;
        self.keyring.remove(id).map_err(key_failure)?;
        log::info!(target: "node", key:% = id; "gossip key removed, and all older ones");
        self.on_keyring_changed(now);
        Ok(())
    }

    /// Everybody is to be told what this node holds now. Rings only grow towards the same eight keys, so
    /// that this ends.
    fn on_keyring_changed(&mut self, now: Instant) {
        *self.parts.context.keyring_digest.lock() = self.keyring.digest().to_vec();
        self.is_ring_untold = true;
        self.select_key(now);
    }

    /// Once a turn at most, however many offers it brought: what counts is the last ring.
    fn tell_ring(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_ring_untold) {
            self.tell_links(now, &Control::Keyring(self.keyring.encode()));
            self.tell_links(now, &Control::KeysHeld(encode_ids(&self.keyring)));
        }
    }

    /// A member without a connection cannot confirm anything, and must not hold up a new key for
    /// ever; it learns the key when it is connected again.
    fn select_key(&mut self, now: Instant) {
        let before = self.keyring.send_key().map(|key| key.id());
        let Parts {
            cluster, context, ..
        } = &self.parts;
        let (swim, mesh) = (cluster.swim(), cluster.mesh());
        let required = swim.members().filter_map(|member| {
            let node = &member.record.record.node;
            let is_linked = || mesh.peer(now, node).is_some_and(|p| !p.links.is_empty());
            let is_here = is_here(member.status) && *node != context.node;
            (is_here && is_linked()).then_some(node)
        });
        let selected = self.keyring.select(required);
        if let Some(key) = selected.filter(|_| selected != before) {
            log::debug!(target: "swim", key:%; "gossip is sealed with another key now");
        }
    }

    /// A cluster begins with a key that its first node makes.
    fn ensure_key(&mut self, now: Instant) {
        if !self.keyring.is_empty() {
            return;
        }
        match self.keyring.create(&self.random) {
            Ok(key) => {
                log::debug!(target: "swim", key:%; "no gossip key was there; made one");
                self.on_keyring_changed(now);
            }
            Err(error) => log::error!(target: "swim", error:%; "cannot make a gossip key"),
        }
    }

    // ---- sync

    fn start_sync(&mut self, now: Instant, connection: ConnectionId) {
        let frames = self.sync_frames(connection);
        log::debug!(target: "swim", connection:%, frames = frames.len(); "sync");
        let command = WorkerCommand::StartSync(frames);
        if !self.parts.endpoint.command(connection, command) {
            log::debug!(target: "reactor", connection:%; "sync not taken");
            self.parts.cluster.handle_sync_broken(now, connection);
        }
    }

    fn sync_frames(&self, connection: ConnectionId) -> Vec<Vec<u8>> {
        let mut frames = vec![SyncFrame::Keyring(self.keyring.encode()).encode()];
        for swim::SyncEntry {
            record,
            status,
            forced,
        } in self.parts.cluster.sync_entries(connection)
        {
            let certificates = self.verifier.certificates();
            let certificate = certificates
                .der(&record.record.certificate)
                .unwrap_or_default();
            let entry = SyncFrame::Entry {
                record: record.signed.clone(),
                status,
                certificate: certificate.to_vec(),
                forced: forced.map(|forced| (forced.issuer, forced.signature)),
            };
            frames.push(entry.encode());
        }
        frames
    }

    fn handle_sync_frame(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        stream: u64,
        frame: SyncFrame,
    ) {
        let Some(peer) = self.peer_of(connection) else {
            return;
        };
        if self.overloading.contains(&connection) {
            return;
        }
        let (record, status, certificate, forced) = match frame {
            SyncFrame::Keyring(bytes) => {
                // Small, and without a key there is no gossip: no limit applies to it.
                self.merge_keyring(now, connection, &peer, &bytes);
                return;
            }
            SyncFrame::Entry {
                record,
                status,
                certificate,
                forced,
            } => (record, status, certificate, forced),
            SyncFrame::Unknown => return,
        };
        let key = (connection, stream);
        if self.untaken_syncs.contains(&key) {
            return;
        }
        if !self.syncs.contains_key(&key) {
            let is_answer = self.is_own_sync(connection, stream);
            let opened = |(id, stream): &&(ConnectionId, u64)| {
                *id == connection && self.is_own_sync(*id, *stream) == is_answer
            };
            let all = (connection, 0)..=(connection, u64::MAX);
            let taken = self.syncs.range(all.clone()).map(|(key, _)| key);
            let unfinished = taken.chain(self.untaken_syncs.range(all));
            if unfinished.filter(opened).count() >= MAX_SYNCS_PER_CONNECTION {
                self.close_overloading(connection, &peer);
                return;
            }
            if self.syncs.len() >= MAX_SYNCS {
                // None of its entries is kept, also when there is room again before its end: half
                // a sync would look like a whole one.
                self.untaken_syncs.insert(key);
                self.parts.counters.syncs_refused.fetch_add(1, Relaxed);
                log::debug!(target: "swim", peer:%; "too many syncs at once; this one is not taken");
                return;
            }
        }
        // Verified as they come: all at once would keep gossip waiting for seconds.
        let mut released = Vec::new();
        if !certificate.is_empty() {
            match self
                .verifier
                .insert_claimed(&certificate, SystemTime::now())
            {
                Ok(fingerprint) => released = self.verifier.take_verified(&fingerprint),
                Err(error) => {
                    log::debug!(target: "swim", peer:%, error:%; "certificate refused");
                }
            }
        }
        let verified = self.verify(now, std::slice::from_ref(&record)).pop();
        // What waited for the certificate is no newer word of the owner than a sync is, and the
        // entry that follows knows better unless it is older.
        released.retain(|record| {
            verified.as_ref().is_none_or(|entry| {
                record.record.node != entry.record.node
                    || record.record.incarnation > entry.record.incarnation
            })
        });
        let verified = verified.map(|record| swim::SyncEntry {
            forced: forced.map(|(issuer, signature)| {
                Box::new(swim::ForcedLeave {
                    node: record.record.node.clone(),
                    incarnation: record.record.incarnation,
                    issuer,
                    signature,
                })
            }),
            record,
            status,
        });
        let verified = verified.map(|entry| self.with_forced_leave_judged(key, entry));
        let released = released.into_iter().map(|record| swim::SyncEntry {
            record,
            status: MemberStatus::Alive,
            forced: None,
        });
        let sync = self.syncs.entry(key).or_default();
        for entry in released.chain(verified) {
            if sync.entries.len() < MAX_SYNC_ENTRIES {
                self.sync_bytes += sync.push(entry);
            }
        }
        if self.sync_bytes > MAX_SYNC_BYTES {
            self.close_overloading(connection, &peer);
        }
    }

    /// Whether this node opened the stream of a sync, so that what comes on it is the answer.
    fn is_own_sync(&self, connection: ConnectionId, stream: u64) -> bool {
        let link = self.parts.endpoint.connection(connection);
        let is_dialler = link.is_some_and(|link| link.side == Side::Dialed);
        let opened_by_dialler = stream & 1 == 0;
        is_dialler == opened_by_dialler
    }

    fn close_overloading(&mut self, connection: ConnectionId, peer: &NodeId) {
        log::warn!(target: "swim", peer:%, connection:%; "too much in syncs; closing");
        self.parts.counters.syncs_refused.fetch_add(1, Relaxed);
        self.drop_syncs_of(connection);
        self.overloading.insert(connection);
        self.parts
            .endpoint
            .command(connection, WorkerCommand::Close(CloseCode::Overloaded));
    }

    fn drop_syncs_of(&mut self, connection: ConnectionId) {
        let unfinished = self.syncs.range((connection, 0)..=(connection, u64::MAX));
        let keys: Vec<_> = unfinished.map(|(key, _)| *key).collect();
        for key in keys {
            self.take_sync(key);
        }
        self.untaken_syncs.retain(|(id, _)| *id != connection);
    }

    fn take_sync(&mut self, key: (ConnectionId, u64)) -> Incoming {
        let sync = self.syncs.remove(&key).unwrap_or_default();
        self.sync_bytes -= sync.bytes;
        sync
    }

    fn handle_sync_end(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        stream: u64,
        is_whole: bool,
    ) {
        let sync = self.take_sync((connection, stream));
        let was_taken = !self.untaken_syncs.remove(&(connection, stream));
        let is_answer = self.is_own_sync(connection, stream);
        let Some(peer) = self.peer_of(connection) else {
            return;
        };
        if self.overloading.contains(&connection) {
            return;
        }
        // The peer gets its answer though nothing of what it said was taken; an answer to our own
        // question that was not taken is none.
        if is_whole && (was_taken || !is_answer) {
            log::debug!(target: "swim", peer:%, members = sync.entries.len(); "sync received");
            let entries = self.with_forced_leaves_verified(sync);
            // Streams that the peer opened are answered; those that we opened are the answer.
            let asked_on = (!is_answer).then_some(stream);
            self.parts
                .cluster
                .handle_sync(now, connection, entries, asked_on);
        } else {
            log::debug!(target: "swim", peer:%; "sync broken off");
            if is_answer {
                self.parts.cluster.handle_sync_broken(now, connection);
            }
        }
    }

    /// An entry without its forced leave, unless that may matter and is signed. Verified as it comes,
    /// like the records; what is left for the end of the sync waits for its issuer's certificate.
    fn with_forced_leave_judged(
        &mut self,
        key: (ConnectionId, u64),
        mut entry: swim::SyncEntry,
    ) -> swim::SyncEntry {
        let Some(forced) = &entry.forced else {
            return entry;
        };
        let sync = self.syncs.entry(key).or_default();
        let is_repeated = !sync.forced.insert(forced.node.clone());
        let has_room = sync.unproven.len() < MAX_DEFERRED_FORCED_LEAVES;
        if is_repeated || !self.parts.cluster.swim().may_want_forced_leave(forced) {
            entry.forced = None;
            return entry;
        }
        match self.signature_of(forced) {
            Ok(()) => {}
            Err(Refusal::UnknownSigner(_)) if has_room => {
                let node = forced.node.clone();
                self.syncs.entry(key).or_default().unproven.insert(node);
            }
            Err(_) => {
                self.parts.counters.statements_refused.fetch_add(1, Relaxed);
                entry.forced = None;
            }
        }
        entry
    }

    /// The entries of a whole sync, without the forced leaves whose issuers remained unknown.
    fn with_forced_leaves_verified(&self, sync: Incoming) -> Vec<swim::SyncEntry> {
        let Incoming {
            mut entries,
            unproven,
            ..
        } = sync;
        for entry in &mut entries {
            if let Some(forced) = &entry.forced
                && unproven.contains(&forced.node)
                && self.signature_of(forced).is_err()
            {
                self.parts.counters.statements_refused.fetch_add(1, Relaxed);
                entry.forced = None;
            }
        }
        entries
    }

    fn signature_of(&self, forced: &swim::ForcedLeave) -> Result<(), Refusal> {
        let (bytes, signature) = (forced.signed_bytes(), &forced.signature);
        self.verifier
            .verify_statement(&forced.issuer, &bytes, signature)
    }

    // ---- commands

    /// Takes commands. Never more than wait, so that it cannot starve the rest.
    fn take_commands(&mut self, now: Instant) -> bool {
        while let Ok(command) = self.parts.commands.try_recv() {
            match command {
                Command::Join { seeds, reply } => {
                    let round = self.parts.cluster.join(now, seeds);
                    self.joins.insert(round, reply);
                }
                Command::Leave { reply, deadline } => self.leave(now, reply, deadline),
                Command::ForceLeave { node, reply } => {
                    let outcome = self
                        .parts
                        .cluster
                        .force_leave(now, &node)
                        .map_err(|e| match e {
                            swim::ForceLeaveError::UnknownMember(node) => {
                                CommandError::UnknownMember(node.to_string())
                            }
                            swim::ForceLeaveError::NotDead(node, status) => CommandError::NotDead {
                                node,
                                status: status.as_str(),
                            },
                        });
                    let _ = reply.try_send(outcome);
                }
                Command::Explain { node, reply } => {
                    let _ = reply.try_send(self.explain(now, &node));
                }
                Command::Keys { reply } => {
                    let _ = reply.try_send(self.keys());
                }
                Command::RotateKey { reply } => {
                    let _ = reply.try_send(self.rotate_key(now));
                }
                Command::RemoveKey { id, reply } => {
                    let _ = reply.try_send(self.remove_key(now, id));
                }
                Command::Emit {
                    name,
                    payload,
                    query,
                    reply,
                } => {
                    let slot = query.as_ref().map(|(_, slot)| Arc::clone(slot));
                    let outcome = self.emit_event(now, &name, payload, query);
                    // Who asked has given up: nobody would ever end the query.
                    if reply.try_send(outcome).is_err()
                        && let Some(slot) = slot
                    {
                        self.parts.queries.forget(&slot);
                    }
                }
                Command::SetTags { change, reply } => {
                    let outcome = self.set_tags(now, change);
                    let _ = reply.try_send(outcome);
                }
                Command::EditSeeds { add, remove, reply } => {
                    let _ = reply.try_send(self.edit_seeds(now, add, &remove));
                }
                Command::Renew { identity, reply } => {
                    let _ = reply.try_send(self.renew(now, *identity));
                }
                Command::Part => self.close_all(false),
                Command::Shutdown { silently } => self.begin_shutdown(now, silently),
                #[cfg(test)]
                Command::Panic => panic!("asked to panic"),
            }
            self.settle(now);
        }
        false
    }

    fn emit_event(
        &mut self,
        now: Instant,
        name: &str,
        payload: Vec<u8>,
        query: Option<(swim::Query, Arc<Slot>)>,
    ) -> Result<u64, EventError> {
        let queries = &self.parts.queries;
        if query.is_some() && !queries.has_room() {
            return Err(EventError::TooManyQueries(MAX_QUERIES));
        }
        let cluster = &mut self.parts.cluster;
        let (query, slot) = query.unzip();
        let event = cluster
            .prepare_event(name, payload, query)
            .map_err(event_error)?;
        let number = event.number;
        let encoded = event.encode();
        let signature = self.parts.identity.sign_event(&encoded);
        let signature = signature.map_err(|error| EventError::System(error.to_string()))?;
        if let (Some(query), Some(slot)) = (&event.query, slot) {
            let asked = cluster.swim().members().filter(|member| {
                let record = &member.record.record;
                let is_alive = member.status == MemberStatus::Alive;
                is_alive && query.filter.matches(&record.node, &record.tags)
            });
            slot.expect(
                asked
                    .map(|member| member.record.record.node.clone())
                    .collect(),
            );
            if !queries.insert(number, slot) {
                return Err(EventError::TooManyQueries(MAX_QUERIES));
            }
        }
        let signed = swim::SignedEvent {
            payload: encoded.into(),
            signature: signature.into(),
        };
        cluster.handle_user_event(now, swim::VerifiedEvent { event, signed });
        Ok(number)
    }

    fn set_tags(
        &mut self,
        now: Instant,
        change: TagChange,
    ) -> Result<BTreeMap<String, String>, CommandError> {
        self.not_left()?;
        let cluster = &mut self.parts.cluster;
        let tags = match change {
            TagChange::Replace(tags) => tags,
            TagChange::Edit { set, delete } => {
                let mut tags = cluster.swim().me().record.tags.clone();
                tags.retain(|key, _| !delete.contains(key));
                tags.extend(set);
                tags
            }
        };
        cluster
            .set_tags(now, tags.clone())
            .map_err(|error| CommandError::TagsTooLarge(error.0))?;
        // Whoever set them must find them among the members.
        self.settle(now);
        self.members_dirty = true;
        self.publish(now);
        Ok(tags)
    }

    fn edit_seeds(
        &mut self,
        now: Instant,
        add: Vec<String>,
        remove: &[String],
    ) -> Result<(), CommandError> {
        self.not_left()?;
        self.parts.cluster.forget_seeds(now, remove);
        if !add.is_empty() {
            self.parts.cluster.join(now, add);
        }
        Ok(())
    }

    /// From now on this node's word is signed with another key. Whoever knows the old certificate only
    /// cannot judge a record under the new one, and goes by the one before until a sync brings both.
    fn renew(&mut self, now: Instant, identity: Identity) -> Result<(), CommandError> {
        self.not_left()?;
        self.verifier.renew(&identity);
        let is_same = identity.fingerprint() == self.parts.identity.fingerprint();
        self.parts.identity = identity;
        if is_same {
            // Only the authority may be another one: nobody has to hear of that.
            return Ok(());
        }
        self.parts.cluster.renew_record(now);
        self.settle(now);
        self.members_dirty = true;
        let peers = self.parts.snapshot.peers();
        for connection in peers.values().take(MAX_RENEWAL_SYNCS) {
            self.start_sync(now, connection.id);
        }
        Ok(())
    }

    fn leave(&mut self, now: Instant, reply: Sender<Leave>, deadline: Instant) {
        self.leave_replies.push((deadline, reply));
        if self.parts.cluster.leaving().is_some() {
            return;
        }
        log::info!(target: "node", node:% = self.parts.context.node; "leaving");
        self.parts.snapshot.set_stage(Stage::Leaving);
        self.emit(EventKind::Leaving);
        self.parts.cluster.leave(now);
    }

    fn answer_leave(&mut self, now: Instant) {
        let Some(progress) = self.parts.cluster.leaving() else {
            return;
        };
        let is_over = progress.is_over();
        self.leave_replies.retain(|(deadline, reply)| {
            if !is_over && now < *deadline {
                return true;
            }
            let _ = reply.try_send((progress.confirmed.clone(), progress.unconfirmed()));
            false
        });
    }

    fn begin_shutdown(&mut self, now: Instant, silently: bool) {
        if self.shutdown.is_some() {
            return;
        }
        log::debug!(target: "node", node:% = self.parts.context.node; "closing connections");
        self.parts.endpoint.stop_accepting();
        self.parts.cluster.stop(now);
        self.shutdown = Some(now + CLOSE_PATIENCE);
        if !silently && self.parts.cluster.roster().is_changed() {
            self.save_roster(now);
        }
        self.close_all(silently);
    }

    fn close_all(&self, silently: bool) {
        let ids: Vec<ConnectionId> = self.parts.endpoint.connections().map(|c| c.id).collect();
        for id in ids {
            let command = if silently {
                WorkerCommand::Abandon
            } else {
                WorkerCommand::Close(CloseCode::Shutdown)
            };
            self.parts.endpoint.command(id, command);
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.shutdown
            .is_some_and(|until| now >= until || self.parts.endpoint.len() == 0)
    }

    fn end(&mut self) {
        let stuck = self.parts.endpoint.thread_names();
        if !stuck.is_empty() {
            log::warn!(target: "node", threads = stuck.len(); "connection threads did not end");
        }
        let _ = self.parts.stuck.try_send(stuck);
        for (_, reply) in std::mem::take(&mut self.joins) {
            let _ = reply.try_send(Err(CommandError::Stopped));
        }
        let peers = self.parts.snapshot.peers();
        for node in peers.keys() {
            self.parts.snapshot.set_peer(node, None);
        }
        self.parts.snapshot.publish_links(Vec::new());
    }

    // ---- time and the cores' outputs

    fn on_time(&mut self, now: Instant) {
        while let Some((seed, result)) = self.resolver.poll() {
            self.parts.cluster.handle_resolved(now, &seed, result);
            self.settle(now);
        }
        self.parts.cluster.handle_timeout(now);
        self.settle(now);
        self.answer_leave(now);
    }

    /// Carries out what the cluster asks for, until it asks for nothing.
    fn settle(&mut self, now: Instant) {
        loop {
            if let Some(action) = self.parts.cluster.poll_action() {
                self.carry_out(now, action);
            } else if let Some(event) = self.parts.cluster.poll_event() {
                match event {
                    cluster::Event::Member(event) => self.on_member(now, event),
                    cluster::Event::Peer(event) => self.on_peer(now, event),
                    cluster::Event::Started => self.on_started(now),
                }
            } else {
                break;
            }
            self.dials_dirty = true;
        }
        if std::mem::take(&mut self.peers_changed) {
            self.on_peers_changed(now);
        }
        while let Some(transmit) = self.parts.cluster.poll_transmit() {
            self.send_gossip(&transmit);
        }
    }

    fn send_gossip(&mut self, transmit: &swim::Transmit) {
        let Some(key) = self.keyring.send_key() else {
            // Before the first key there is nobody to whom a datagram could be opened.
            self.parts.counters.gossip_unsent.fetch_add(1, Relaxed);
            return;
        };
        // A member can be forgotten between a request for a probe and the answer to it.
        let Some(member) = self.parts.cluster.swim().member(&transmit.to) else {
            self.parts.counters.gossip_unsent.fetch_add(1, Relaxed);
            return;
        };
        let to = (&transmit.to, member.record.record.boot);
        let datagram = self.sealer.seal(key, to, &transmit.payload);
        match self.parts.gossip.send_to(&datagram, transmit.destination) {
            Ok(length) => {
                let counters = &self.parts.counters;
                counters.gossip_sent.fetch_add(1, Relaxed);
                let bytes = u64::try_from(length).unwrap_or(u64::MAX);
                counters.gossip_sent_bytes.fetch_add(bytes, Relaxed);
            }
            Err(error) => {
                self.parts.counters.gossip_unsent.fetch_add(1, Relaxed);
                log::trace!(target: "swim", to:% = transmit.to, error:%; "gossip not sent");
            }
        }
    }

    fn carry_out(&mut self, now: Instant, action: cluster::Action) {
        match action {
            cluster::Action::Sign(record) => match self.parts.identity.sign(record) {
                Ok(signed) => {
                    self.parts.cluster.handle_signed(now, signed);
                    self.members_dirty = true;
                }
                Err(error) => {
                    log::error!(target: "swim", error:%; "cannot sign this node's record");
                    self.parts.cluster.handle_sign_failed(now);
                }
            },
            cluster::Action::SignForcedLeave(mut forced) => {
                match self.parts.identity.sign_statement(&forced.signed_bytes()) {
                    Ok(signature) => {
                        forced.signature = signature;
                        self.parts.cluster.handle_forced_leave(now, forced);
                    }
                    Err(error) => {
                        log::error!(target: "swim", error:%; "cannot sign a forced leave");
                    }
                }
            }
            cluster::Action::Mesh(action) => self.do_for_mesh(now, action),
            cluster::Action::Tell { connection, frame } => {
                let frame = match frame {
                    Frame::Record(record) => Control::Record(record.signed.clone()),
                    Frame::LeaveAck { incarnation } => Control::LeaveAck { incarnation },
                    Frame::Probe { seq } => Control::Probe { seq },
                    Frame::ProbeAck { seq } => Control::ProbeAck { seq },
                    Frame::EventClock(clock) => Control::EventClock {
                        boot: clock.boot,
                        lamport: clock.lamport,
                        number: clock.number,
                    },
                    Frame::UserEvents(events) => {
                        let frames = events.iter().map(|event| Control::UserEvent {
                            payload: event.signed.payload.to_vec(),
                            signature: event.signed.signature.to_vec(),
                        });
                        let command = WorkerCommand::Controls(frames.collect());
                        self.parts.endpoint.command(connection, command);
                        return;
                    }
                };
                self.tell(connection, frame);
            }
            cluster::Action::StartSync { connection } => self.start_sync(now, connection),
            cluster::Action::SaveRoster => self.save_roster(now),
            cluster::Action::AnswerSync { connection, stream } => {
                let frames = self.sync_frames(connection);
                let command = WorkerCommand::AnswerSync { stream, frames };
                self.parts.endpoint.command(connection, command);
            }
        }
    }

    fn on_member(&mut self, now: Instant, event: swim::Event) {
        if let swim::Event::User(event) = event {
            self.on_user_event(now, &event);
            return;
        }
        self.members_dirty = true;
        // Whoever hears of it must find it among the members; large clusters lag by
        // `PUBLISH_INTERVAL`.
        self.publish(now);
        match event {
            swim::Event::Up { node } => {
                log::info!(target: "swim", node:%; "member up");
                self.gone.remove(&node);
                self.emit(EventKind::MemberUp { node });
                self.peers_changed = true;
            }
            swim::Event::Suspect { node, by } => {
                log::debug!(target: "swim", node:%, by:%; "member suspected");
                let connection = self.connection_to(now, &node);
                self.moments.suspected(now, &node, connection);
                let reason = format!("suspected by {by}");
                self.emit(EventKind::MemberSuspect { node, reason });
            }
            swim::Event::Alive { node } => {
                log::debug!(target: "swim", node:%; "suspicion refuted");
                self.emit(EventKind::MemberAlive { node });
            }
            swim::Event::Dead { node, by } => {
                let level = self.departure_level(&node);
                let connection = self.connection_to(now, &node);
                self.moments.dead(now, &node, connection);
                let why = self.why_dead(&node);
                log::log!(target: "swim", level, node:%, by:%, why; "member dead");
                let reason = format!("suspected by {by} and {why}");
                self.emit(EventKind::MemberDead { node, reason });
                self.peers_changed = true;
            }
            swim::Event::Left { node, by } => {
                let level = self.departure_level(&node);
                match &by {
                    Some(by) => {
                        log::log!(target: "swim", level, node:%, forced_by:% = by; "member left")
                    }
                    None => log::log!(target: "swim", level, node:%; "member left"),
                }
                let reason =
                    by.map_or_else(|| "left".to_owned(), |by| format!("forced out by {by}"));
                self.emit(EventKind::MemberLeft { node, reason });
                self.peers_changed = true;
            }
            swim::Event::Updated { node, .. } => {
                log::debug!(target: "swim", node:%; "member updated");
                self.emit(EventKind::MemberUpdated { node });
            }
            swim::Event::Forgotten { node } => {
                log::debug!(target: "swim", node:%; "member forgotten");
                self.gone.remove(&node);
                self.moments.forget(&node);
                self.parts.snapshot.dismiss(&node);
                self.opener.forget(&node);
                self.keyring.forget(&node);
                let swim = self.parts.cluster.swim();
                let me = &self.parts.context.node;
                self.verifier
                    .retain(|other| other == me || swim.member(other).is_some());
            }
            swim::Event::NameConflict { node, boot, addr } => {
                log::warn!(target: "swim", node:%, boot:%, addr:%;
                    "two processes use one node name");
            }
            swim::Event::AddressConflict { node, other, addr } => {
                log::warn!(target: "swim", node:%, other:%, addr:%;
                    "two members give the same gossip address");
            }
            swim::Event::User(event) => self.on_user_event(now, &event),
        }
    }

    fn on_user_event(&self, now: Instant, event: &swim::UserEvent) {
        log::debug!(target: "swim", from:% = event.origin, name = event.name.as_str(),
            lamport = event.lamport, query = event.query.is_some(); "event");
        let Some(query) = &event.query else {
            self.emit(EventKind::UserEvent {
                from: event.origin.clone(),
                name: event.name.clone(),
                payload: event.payload.clone(),
                lamport: event.lamport,
            });
            return;
        };
        let me = &self.parts.cluster.swim().me().record;
        if query.filter.matches(&me.node, &me.tags) {
            self.parts.queries.deliver(Question {
                query: Query {
                    from: event.origin.clone(),
                    name: event.name.clone(),
                    payload: event.payload.clone(),
                    lamport: event.lamport,
                },
                boot: event.boot,
                number: event.number,
                deadline: now + query.timeout,
            });
        }
    }

    fn explain(&self, now: Instant, node: &NodeId) -> Option<Explanation> {
        let membership = self.parts.cluster.swim().explain(node)?;
        let (when_suspected, when_dead) = self.moments.of(node);
        Some(Explanation {
            membership,
            connection: self.connection_to(now, node),
            when_suspected,
            when_dead,
        })
    }

    /// The connection to a member as it is now.
    fn connection_to(&self, now: Instant, node: &NodeId) -> ConnectionInfo {
        let cluster = &self.parts.cluster;
        let peer = cluster.mesh().peer(now, node);
        let link = peer
            .as_ref()
            .and_then(|peer| peer.current.or_else(|| peer.links.last().copied()))
            .and_then(|link| self.parts.endpoint.connection(link));
        let mut info = link.map_or_else(
            || {
                let member = cluster.swim().member(node);
                let addr = member.map_or_else(
                    || SocketAddr::from(([0, 0, 0, 0], 0)),
                    |member| member.record.record.quic_addr,
                );
                ConnectionInfo::empty(addr, ConnectionState::Down)
            },
            |link| (*link.info()).clone(),
        );
        info.peer = Some(node.clone());
        if let Some(peer) = peer {
            info.dials = peer.dials;
            info.last_error = peer.last_error;
            info.next_dial = peer.next_dial.map(|at| at.saturating_duration_since(now));
        }
        info
    }

    /// What ended the suspicion of a member that is dead here.
    fn why_dead(&self, node: &NodeId) -> &'static str {
        let explained = self.parts.cluster.swim().explain(node);
        let verdict = explained.and_then(|explained| explained.case?.verdict);
        match verdict.map(|verdict| verdict.ending) {
            Some(swim::Ending::Dead { fast: true }) => "its ports refused",
            Some(
                swim::Ending::Dead { fast: false }
                | swim::Ending::TakenOver { .. }
                | swim::Ending::Refuted
                | swim::Ending::Left,
            )
            | None => "not refuted in time",
        }
    }

    /// INFO for the first thing that shows a peer to be gone, DEBUG for the others until it is back.
    fn departure_level(&mut self, node: &NodeId) -> log::Level {
        // A stranger has nothing but its connection to lose, so nothing to remember.
        if self.parts.cluster.swim().member(node).is_some() && !self.gone.insert(node.clone()) {
            log::Level::Debug
        } else {
            log::Level::Info
        }
    }

    /// The number of connected peers decides how often each connection is pinged, and who is alive
    /// and connected must have confirmed a gossip key. Both look at every peer, so a thousand events
    /// at once are answered by one look.
    fn on_peers_changed(&mut self, now: Instant) {
        let config = &self.parts.context.config;
        let peers = u64::try_from(self.parts.cluster.mesh().counts().connected).unwrap_or(u64::MAX);
        let wanted = millis(config.ping_interval).max(peers.saturating_mul(10));
        // However many there are: a connection that is never pinged would time out.
        let interval = wanted.min((millis(config.idle_timeout) / 3).max(1));
        self.parts.context.ping_interval_ms.store(interval, Relaxed);
        self.select_key(now);
    }

    fn do_for_mesh(&mut self, now: Instant, action: mesh::Action) {
        match action {
            mesh::Action::Resolve { seed } => self.resolver.resolve(seed),
            mesh::Action::Dial {
                connection,
                node,
                addr,
                seed,
            } => {
                log::debug!(target: "mesh", connection:%, addr:%,
                    node = node.as_ref().map_or("unknown", NodeId::as_str),
                    seed = seed.as_deref().unwrap_or("none"); "dialling");
                if let Err(why) = self.parts.endpoint.dial(connection, node.as_ref(), addr) {
                    log::debug!(target: "mesh", addr:%, error = why.as_str(); "cannot dial");
                    let reason = CloseReason::Io(why.clone());
                    self.count_down(Side::Dialed, false, &reason);
                    self.parts
                        .cluster
                        .handle_down(now, connection, &CloseReason::Io(why));
                }
                self.links_dirty = true;
            }
            mesh::Action::Use { connection } => {
                self.parts.endpoint.command(connection, WorkerCommand::Use);
            }
            mesh::Action::Drain { connection } => {
                self.parts
                    .endpoint
                    .command(connection, WorkerCommand::Drain);
            }
            mesh::Action::Close { connection, code } => {
                self.parts
                    .endpoint
                    .command(connection, WorkerCommand::Close(code));
            }
        }
    }

    fn on_peer(&mut self, now: Instant, event: mesh::Event) {
        match event {
            mesh::Event::Connected { node, connection } => {
                let Some(link) = self.parts.endpoint.connection(connection).cloned() else {
                    return;
                };
                let name = format!(
                    "{node}.{}.{}",
                    self.parts.context.cluster,
                    crate::node_id::NAME_SUFFIX
                );
                log::info!(target: "transport", peer:% = node, addr:% = link.addr,
                    side = link.side.as_str(), certificate = name.as_str(); "connected");
                self.gone.remove(&node);
                // Whoever waited for the peer must find it among the members.
                self.publish(now);
                self.parts.snapshot.set_peer(&node, Some(link));
                self.emit(EventKind::Connected { node });
                self.peers_changed = true;
            }
            mesh::Event::Replaced { node, connection } => {
                let Some(link) = self.parts.endpoint.connection(connection).cloned() else {
                    return;
                };
                log::debug!(target: "mesh", peer:% = node, connection:%; "connection replaced");
                if let Some(old) = self.parts.snapshot.peer(&node) {
                    link.replaces(&old);
                }
                self.parts.snapshot.set_peer(&node, Some(link));
            }
            mesh::Event::Disconnected { node, reason } => {
                let level = self.departure_level(&node);
                log::log!(target: "transport", level, peer:% = node, reason:%; "disconnected");
                self.parts.snapshot.set_peer(&node, None);
                self.peers_changed = true;
                let unacknowledged = self.unacknowledged.remove(&node).unwrap_or(0);
                let reason = reason.to_string();
                self.emit(EventKind::Disconnected {
                    node,
                    reason,
                    unacknowledged,
                });
            }
            mesh::Event::SeedReached { seed, node, .. } => {
                log::debug!(target: "mesh", seed = seed.as_str(), node:%; "seed reached");
                self.seed_state
                    .insert(seed.clone(), format!("seed {seed}: is {node}, syncing"));
                self.publish_joining();
            }
            mesh::Event::SeedFailed { seed, reason } => {
                log::debug!(target: "mesh", seed = seed.as_str(), error = reason.as_str();
                    "seed not reached");
                if self.seed_state.contains_key(&seed) {
                    self.seed_state
                        .insert(seed.clone(), format!("seed {seed}: {reason}"));
                    self.publish_joining();
                }
            }
            mesh::Event::JoinRoundOver {
                round,
                reached,
                failed,
            } => {
                self.on_join_round(round, reached, failed);
            }
            mesh::Event::SelfDial { addr } => {
                log::debug!(target: "mesh", addr:%; "that is this node itself; never dialled again");
            }
            mesh::Event::SupersededBoot { node } => self.superseded_line(now, node),
        }
    }

    fn on_join_round(&mut self, round: u64, reached: usize, failed: Vec<String>) {
        log::debug!(target: "node", round, reached, failed = failed.len(); "join round over");
        if let Some(reply) = self.joins.remove(&round) {
            let outcome = if reached == 0 && !failed.is_empty() {
                Err(CommandError::JoinFailed(failed.clone()))
            } else {
                Ok(reached)
            };
            let _ = reply.try_send(outcome);
        }
        if self.first_round == Some(round) && reached == 0 && !failed.is_empty() {
            // The first node of a cluster is alone by right, so this is no warning; but whoever
            // looks why a node is alone must find it.
            log::info!(target: "node", seeds = failed.join("; ").as_str();
                "no seed answered yet; going on alone, and trying them again");
        }
    }

    fn on_started(&mut self, now: Instant) {
        self.ensure_key(now);
        self.seed_state.clear();
        // Whoever waited for ready must find itself among the members.
        self.publish(Instant::now());
        // One that goes already will not be ready any more, and `Leaving` is the last that it tells of
        // itself.
        if self.parts.cluster.leaving().is_some() || self.shutdown.is_some() {
            return;
        }
        self.parts.snapshot.set_stage(Stage::Started);
        log::info!(target: "node", node:% = self.parts.context.node,
            members = self.parts.cluster.swim().alive_count(); "ready");
        self.emit(EventKind::Ready);
    }

    // ---- telling

    fn emit(&self, kind: EventKind) {
        self.parts.subscribers.publish(SystemTime::now(), &kind);
    }

    fn publish_joining(&self) {
        if !self.parts.cluster.has_started() {
            let seeds = self.seed_state.values().cloned().collect();
            self.parts.snapshot.set_stage(Stage::Joining(seeds));
        }
    }

    fn publish(&mut self, now: Instant) {
        let counters = self.parts.cluster.swim().counters();
        self.parts.snapshot.publish_refused(RefusedCounts {
            implausible: counters.implausible,
            conflicting: counters.conflicting_records,
            stale: counters.stale,
            stray: counters.stray_answers + counters.misdirected,
            stale_events: counters.events_stale + counters.events_strangers,
            ..RefusedCounts::default()
        });
        self.parts.snapshot.publish_lost(LostCounts {
            news: counters.dropped_news + counters.oversized_news,
            members: counters.table_full,
            probes: counters.relays_refused,
            waiting_records: self.verifier.waiting_dropped(),
            remembered: self.parts.cluster.roster().dropped(),
            ..LostCounts::default()
        });
        self.parts.snapshot.publish_gossip(*counters);
        let queries = &self.parts.queries.counters;
        self.parts.snapshot.publish_events(EventCounts {
            emitted: counters.events_emitted,
            received: counters.events_received,
            copies: counters.events_copies,
            dropped: counters.events_dropped,
            unanswered: queries.unanswered.load(Relaxed),
            answers_lost: queries.answers_lost.load(Relaxed),
        });
        if self.links_dirty {
            self.links_dirty = false;
            let links = self.parts.endpoint.connections().cloned().collect();
            self.parts.snapshot.publish_links(links);
        }
        let is_large = self.parts.cluster.swim().alive_count() > SMALL_CLUSTER;
        if is_large
            && self
                .published_at
                .is_some_and(|at| now < at + PUBLISH_INTERVAL)
        {
            return;
        }
        if self.dials_dirty {
            self.dials_dirty = false;
            self.published_at = Some(now);
            let rows = self.parts.cluster.mesh().peers(now).map(|peer| {
                let row = DialRow {
                    dials: peer.dials,
                    last_error: peer.last_error,
                    next_dial: peer.next_dial,
                };
                (peer.node, row)
            });
            self.parts.snapshot.publish_dials(rows.collect());
            let seeds = self.parts.cluster.mesh().others().map(|seed| SeedInfo {
                seed: seed.seed,
                node: seed.node,
                connected: seed.connected,
                failures: seed.failures,
                last_error: seed.last_error,
            });
            self.parts.snapshot.publish_seeds(seeds.collect());
        }
        if self.members_dirty {
            self.members_dirty = false;
            self.published_at = Some(now);
            let me = &self.parts.context.node;
            let members = self.parts.cluster.swim().members().map(|member| {
                let record = &member.record.record;
                MemberInfo {
                    node: record.node.clone(),
                    status: member.status,
                    quic_addr: record.quic_addr,
                    gossip_addr: record.gossip_addr,
                    incarnation: record.incarnation,
                    boot: record.boot,
                    tags: record.tags.clone(),
                    version: record.version.clone(),
                    is_self: record.node == *me,
                    connected: false,
                    rtt: None,
                }
            });
            let health_score = self.parts.cluster.swim().health_score();
            self.parts
                .snapshot
                .publish_members(members.collect(), health_score);
        }
    }
}

/// An ICMP answer to something sent before, or an interruption: the next datagram may be there. After
/// any other error reading on at once could go on for ever.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
    )
}

/// Whether it may hold keys: who is suspected must be able to read what is said of it.
fn is_here(status: MemberStatus) -> bool {
    match status {
        MemberStatus::Alive | MemberStatus::Suspect => true,
        MemberStatus::Dead | MemberStatus::Left => false,
    }
}

fn key_failure(error: KeyringError) -> CommandError {
    match error {
        KeyringError::UnknownKey(id) => CommandError::UnknownKey(id),
        KeyringError::InUse(id) => CommandError::KeyInUse(id),
        KeyringError::Fixed
        | KeyringError::NotEmpty
        | KeyringError::Empty
        | KeyringError::Exhausted
        | KeyringError::Random
        | KeyringError::Malformed(_) => CommandError::Keys(error.to_string()),
    }
}

/// So many a second and no more.
struct Budget {
    per_second: u32,
    second: Option<Instant>,
    spent: u32,
}

impl Budget {
    fn new(per_second: u32) -> Self {
        Self {
            per_second,
            second: None,
            spent: 0,
        }
    }

    /// Whether there is one left, which is then spent.
    fn take(&mut self, now: Instant) -> bool {
        if self
            .second
            .is_none_or(|at| now >= at + Duration::from_secs(1))
        {
            (self.second, self.spent) = (Some(now), 0);
        }
        let is_left = self.spent < self.per_second;
        self.spent += u32::from(is_left);
        is_left
    }
}

fn event_error(error: swim::EmitError) -> EventError {
    match error {
        swim::EmitError::InvalidName(name) => EventError::InvalidName(name),
        swim::EmitError::TooLarge(bytes) => EventError::TooLarge {
            bytes,
            max: swim::MAX_EVENT_BYTES,
        },
        swim::EmitError::FilterTooLarge(bytes) => EventError::FilterTooLarge {
            bytes,
            max: swim::MAX_FILTER_BYTES,
        },
        swim::EmitError::DatagramTooSmall { bytes, max } => EventError::TooLarge { bytes, max },
        swim::EmitError::InvalidTimeout => EventError::InvalidTimeout(swim::MAX_QUERY_TIMEOUT),
        swim::EmitError::QueueFull(pending) => EventError::QueueFull(pending),
        swim::EmitError::Left => EventError::Left,
    }
}

fn encode_ids(ring: &Keyring) -> Vec<u8> {
    ring.ids().iter().flat_map(|id| id.0).collect()
}

/// Whatever is no whole id at the end is left out; `Keyring::confirm` bounds the rest.
fn decode_ids(bytes: &[u8]) -> Vec<KeyId> {
    bytes
        .chunks_exact(8)
        .map(|id| KeyId(id.try_into().unwrap_or_default()))
        .collect()
}
