//! Membership: who is in the cluster, and who of them is alive.
//!
//! This is SWIM (Das, Gupta, Motivala 2002) with the three parts of Lifeguard (Dadgar, Phillips,
//! Currey 2017), as a state machine without socket, clock, thread or key: verified records and
//! authenticated senders are inputs, datagrams and events are queues to be drained.
//!
//! # The algorithm
//!
//! **Probing.** Once per interval the next member of a shuffled list is pinged. If it does not
//! answer within the time-out, a few others are asked to try and a ping goes over the QUIC
//! connection; if nothing comes back before the interval ends, the probe has failed. A node that
//! is itself slow notices (`awareness`) and gives its probes more time.
//!
//! **Suspicion.** A member that did not answer is suspected, and the cluster hears of it. Every
//! member that hears of it **probes the suspect itself**, within half the shortest suspicion, and
//! accuses it too if that fails. Who waits longer than the shortest suspicion looks and accuses again,
//! and whoever knows the suspect to be dead answers that. Each such confirmation shortens the wait, from `S_max` down to
//! `S_min` (`suspicion`). A confirmation counts only when the accuser's own authenticated datagram
//! brings it: a relayed one can raise a suspicion, but does not count, so that one member cannot
//! speak with many voices.
//!
//! **Death.** A member is dead when its time is up *and* this node's own latest probe of it failed.
//! "Dead" from somebody else, who has waited the time out already, shortens the wait to `S_min` and
//! does nothing more: no verdict is ever taken over, so a member that one node cannot reach is not
//! dead for those who can, and one liar cannot kill anybody who answers.
//!
//! **Evidence.** What a member's connection shows is told from outside. An answer of its reactor,
//! stamped within the last interval, is worth a probe that succeeded: it ends the probe that asked
//! before it, and while it is fresh a foreign "dead" does not shorten the wait. The pings by datagram
//! go on regardless, since gossip needs their path. A doubt (refused, lost, stalled, unanswered)
//! outdates the answers before it and starts a probe out of turn that asks directly, through others
//! and over the connection at once. It proves nothing: whoever forges one has made a node ask, once
//! an interval. Only *refused*, the word of the host that nobody is there, does more, see below.
//!
//! **Refutation.** Whoever pings or answers a doubted member tells it so in the same datagram
//! (Lifeguard's buddy). The accused has a record with a higher incarnation signed, which ends every
//! doubt about the older ones. Unsigned statements hold for exactly the incarnation that is stored,
//! so that no invented number can silence a member.
//!
//! **Records.** What a member is stands in the record that it signed: the higher incarnation holds.
//! `left` comes only from the leaver's own record, or, for a member that is dead here already, from
//! a signed forced leave. A dead or left member, or a new life (boot id) of one, comes back only
//! with a higher incarnation; a node that meets a trace of its earlier life goes above it.
//!
//! **Dissemination.** News rides on every datagram and on rounds of gossip, each piece a limited
//! number of times (`dissemination`). Now and then two members exchange everything they know over
//! their connection; there, "dead" and "suspect" only raise a suspicion here, so that one stale
//! member cannot kill. Gossip goes to the recently dead as well, so that they can refute.
//!
//! **Forgetting.** Dead and left members stay as tombstones long enough to outlive any message
//! about them. A member that was gone when this node first heard of it is kept too, yet not passed
//! on, or tombstones would circulate for ever.
//!
//! **Lateness.** When a timer fires much too late, this process stood still: answers lie unread in
//! the socket. Then running probes end without a verdict and every suspicion gets the time back.
//!
//! # How long until a crash is known
//!
//! With `n` live members, `P` the probe interval, `S_min = mult · max(1, log₁₀ n) · P` and
//! `S_max = max_mult · S_min`, all members healthy (each point of the health score of a prober adds
//! one `P` to its probe):
//!
//! - some member has a failed probe after at most `(2(n − 1) − 1) · P + P = (2n − 2) · P`, the gap
//!   between two turns in a list that is shuffled after each pass, and the probe itself; with many
//!   members probing, 1.6 · P + P is expected, whatever `n`;
//! - the others hear of it within `D`, a few gossip intervals;
//! - each is done with its own probe after `S_min / 2 + P ≤ S_min`, and by then confirmations
//!   have brought the wait to `S_min`; were they all lost, it would be `S_max`.
//!
//! So everyone knows after at most `(2n − 2) · P + D + S`, where `S = S_min` when no confirmations
//! are possible (`n − 2 < mult − 2`) or when they arrive, and `S_max` at the very worst. With three
//! members and the `lan` profile that is 4 s + 4 s + `D`, where `D` is below half a second without
//! loss: 8.5 s; 6 s are expected. The `local` profile takes a second less, `wan` 20 s + 30 s.
//!
//! # How long with evidence, when the ports refuse
//!
//! Every member with a connection to the crashed process pings over it once in `H` (1 s up to 100
//! peers), and the host of the process answers that the port is closed. So, from the crash on:
//!
//! - after at most `H` and a round trip everybody's connection is refused, whatever `n`, and
//!   everybody probes at once, in all ways together;
//! - that probe ends after `Q = max(timeout, P − timeout)`, so that each way has the time that it
//!   has in an ordinary probe: if the refusal was false, the answer has to find its way;
//! - everybody accuses, in datagrams of its own, where a confirmation counts. With everybody's news
//!   going to a few others five times a second, the two that are wanted are there after two or
//!   three rounds of gossip, while the wait runs;
//! - a refusal, a failed probe of one's own and those confirmations make three members that asked
//!   in vain. Then the wait is a floor of one `P` since the suspicion began: time for a refutation
//!   that was on its way, and for a process that starts again at once. A dead one has none to make.
//!
//! In all `H + Q + P`, with `lan` 1 s + 0.5 s + 1 s = 2.5 s at worst and 2 s as a rule, for 4 members
//! and for 100. A process that is stopped or starved keeps its ports, so nothing refuses and it has
//! its whole `S_min` to `S_max`; so has one whose host is gone. Where nobody is left to confirm
//! (three members or fewer) a second failed probe of one's own, right after the first, stands in
//! for the others: one lost exchange together with a forged refusal kills nobody. That takes half a
//! second to a second more. The refusal must have been seen *here*: hearsay of one would let a liar
//! shorten the waits of others.

mod awareness;
mod config;
mod dissemination;
mod explain;
mod members;
mod message;
mod probe;
mod suspicion;
mod timer;
mod user_events;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    node_id::{BootId, NodeId},
    record::{MAX_TAG_BYTES, Record, VerifiedRecord, tag_bytes},
    rng::Rng,
    stats::MemberStatus,
};

use self::{
    awareness::Awareness,
    dissemination::{Kind, News, Queue},
    explain::Cases,
    members::{Member, Members, Standing},
    probe::{MAX_CHECKS, MAX_RELAYS, Probe, Probes, Purpose, Relay, Way},
    suspicion::{Suspicion, Waits},
    timer::{Timer, Timers},
    user_events::UserEvents,
};

pub use config::{Config, Rules};
pub use explain::{
    Accused, Case, Doubt, Ending, Evidence, Explanation, MAX_CASE_ACCUSATIONS, MAX_CASE_PROBES,
    ProbeReport, Verdict,
};
pub use message::{
    Accusation, Body, DecodeError, ForcedLeave, MAX_EVENTS, MAX_MESSAGE_BYTES, MAX_RECORDS,
    MAX_SIGNATURE_BYTES, MAX_STATEMENTS, Message, Statement,
};
pub use user_events::{
    EmitError, EventClock, EventDecodeError, MAX_EVENT_BYTES, MAX_EVENT_NAME_BYTES,
    MAX_FILTER_BYTES, MAX_OWN_PENDING, MAX_QUERY_TIMEOUT, MAX_SIGNED_EVENT_BYTES, Query,
    QueryFilter, SignedEvent, UserEvent, VerifiedEvent, is_event_name,
};

/// No record beyond this incarnation is believed; there must always be room above to refute.
const MAX_INCARNATION: u64 = 1 << 62;

/// How far a signed record may be ahead of the one that is stored: more than a clock in
/// milliseconds would be, and far too little to reach [`MAX_INCARNATION`] by accident.
const MAX_RECORD_STEP: u64 = 1 << 48;

/// How far ahead of our own incarnation an unsigned accusation may be and still be refuted. A
/// member refutes once per accusation, so honest ones are ahead by little (an earlier life of
/// ours); a liar would need 2^42 datagrams to use the numbers up.
const MAX_STATEMENT_STEP: u64 = 1 << 20;

/// An act and a statement with the longest names always fit this much.
const MIN_PAYLOAD_BYTES: usize = 512;

/// Datagrams to one member in one round of gossip while there is news that was never sent: enough
/// for a crowd that joins at once, and little beside what else is on the network.
const MAX_BURST: usize = 4;

/// How many members hear of a leave at once, in the datagram that this node sends before it goes.
const LEAVE_FANOUT: usize = 32;

/// After so many exchanges of ever higher incarnations with the same other life of this node, that
/// life is no trace of the past but a second process with our name.
const OUTBIDS_OF_A_RIVAL: u32 = 3;

/// How often a rival is answered; both would otherwise flood the cluster with records.
const RIVAL_PAUSE: Duration = Duration::from_secs(10);

/// How long after a signature failed it is asked for again.
const SIGN_PAUSE: Duration = Duration::from_secs(1);

/// For how long a forgotten member is not taken back from those who forget it a little later.
const RETIRED_FOR: Duration = Duration::from_secs(60 * 60);

/// A datagram to send. The payload is plain; the caller seals it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Whom it is for.
    pub to: NodeId,
    /// Where to send it.
    pub destination: SocketAddr,
    /// At most [`Config::max_payload_bytes`].
    pub payload: Vec<u8>,
}

/// What changed in the view of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member is seen for the first time, or is back from the dead or left.
    Up {
        /// The member.
        node: NodeId,
    },
    /// A member is doubted.
    Suspect {
        /// The member.
        node: NodeId,
        /// Who doubts it.
        by: NodeId,
    },
    /// A suspected member has refuted that.
    Alive {
        /// The member.
        node: NodeId,
    },
    /// A suspected member did not refute in time.
    Dead {
        /// The member.
        node: NodeId,
        /// Who doubted it first.
        by: NodeId,
    },
    /// A member left. It may have been dead before: this can follow `Dead`.
    Left {
        /// The member.
        node: NodeId,
        /// Who forced it out, unless it left by itself.
        by: Option<NodeId>,
    },
    /// The record of a live member changed in more than its incarnation.
    Updated {
        /// The member.
        node: NodeId,
        /// One of its addresses is another.
        addr_changed: bool,
        /// It is another life of the node.
        boot_changed: bool,
    },
    /// A tombstone was removed; the member is unknown again.
    Forgotten {
        /// The former member.
        node: NodeId,
    },
    /// Two processes use one name: both of these lives of the node speak.
    NameConflict {
        /// The name, maybe our own.
        node: NodeId,
        /// The life that is not accepted.
        boot: BootId,
        /// Where it says it can be reached.
        addr: SocketAddr,
    },
    /// Two members that both live say that they receive gossip at one address: one of them is
    /// configured wrongly, and what is meant for it reaches the other.
    AddressConflict {
        /// The member that was at the address before, and still answers.
        node: NodeId,
        /// The member that says so now.
        other: NodeId,
        /// The address.
        addr: SocketAddr,
    },
    /// An application, maybe our own, told everybody something.
    User(Arc<UserEvent>),
}

/// Something the core needs done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Sign this record of ours, with the digest of the current certificate in it, and answer with
    /// [`Swim::handle_signed`].
    Sign(Record),
    /// Sign this forced leave and answer with [`Swim::handle_forced_leave`].
    SignForcedLeave(ForcedLeave),
    /// Exchange everything with a member over its connection, in both directions.
    Sync {
        /// The member.
        with: NodeId,
    },
    /// If there is a connection to the node, send a ping over it that its reactor answers; on the
    /// answer call [`Swim::handle_connection_ack`]. Without a connection, do nothing.
    PingOverConnection {
        /// The member.
        node: NodeId,
        /// The number of the probe.
        seq: u32,
    },
}

/// What one member tells another of a third, or of itself, in a sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncEntry {
    /// The member's record.
    pub record: Arc<VerifiedRecord>,
    /// What the teller believes of it.
    pub status: MemberStatus,
    /// If it was forced out, the statement that did it. The core takes no notice of it here: whoever
    /// receives the sync verifies it and calls [`Swim::handle_forced_leave`] after
    /// [`Swim::handle_sync`].
    pub forced: Option<Box<ForcedLeave>>,
}

/// A member as this node sees it.
#[derive(Debug, Clone, Copy)]
pub struct MemberView<'a> {
    /// Its record.
    pub record: &'a Arc<VerifiedRecord>,
    /// What this node believes of it.
    pub status: MemberStatus,
    /// Since when.
    pub since: Instant,
}

/// Why a member cannot be forced out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForceLeaveError {
    /// There is no such member.
    #[error("no member {0}")]
    UnknownMember(NodeId),
    /// Only dead members can be forced out.
    #[error("member {0} is {1}; only a dead member can be forced to leave")]
    NotDead(NodeId, MemberStatus),
}

/// The tags do not fit a record; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tags take {0} bytes, more than {MAX_TAG_BYTES}")]
pub struct TagsTooLarge(pub usize);

/// Messages by type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each counts the messages of its name")]
pub struct MessageCounts {
    pub ping: u64,
    pub ping_req: u64,
    pub ack: u64,
    pub nack: u64,
    pub gossip: u64,
}

impl MessageCounts {
    fn count(&mut self, body: &Body) {
        *match body {
            Body::Ping { .. } => &mut self.ping,
            Body::PingReq { .. } => &mut self.ping_req,
            Body::Ack { .. } => &mut self.ack,
            Body::Nack { .. } => &mut self.nack,
            Body::Gossip => &mut self.gossip,
        } += 1;
    }
}

/// What the core has done and refused since it was made. Nothing here runs backwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Probes that the target answered itself.
    pub probes_direct: u64,
    /// Probes that were answered through a helper only.
    pub probes_indirect: u64,
    /// Probes that were answered over the connection only.
    pub probes_connection: u64,
    /// Probes that nothing answered, while the connection had shown that the target is well.
    pub probes_by_evidence: u64,
    /// Probes that nothing answered.
    pub probes_failed: u64,
    /// Probes that ended without a verdict, because this process stood still or the target left.
    pub probes_abandoned: u64,
    /// Doubts that connections raised about live members.
    pub doubts: u64,
    /// Foreign claims of death that an answer over the connection outweighed.
    pub vetoes: u64,
    /// Members that became suspect here.
    pub suspicions: u64,
    /// Members that became dead here.
    pub deaths: u64,
    /// Of those, the ones whose ports refused, so that the shortest wait was not waited out.
    pub fast_deaths: u64,
    /// Times this node had to say that it is alive.
    pub refutations: u64,
    /// Messages sent.
    pub sent: MessageCounts,
    /// Messages received.
    pub received: MessageCounts,
    /// Messages of senders that are not in the table.
    pub unknown_senders: u64,
    /// Messages from another address than the sender's record names; answers go to the latter.
    pub foreign_addrs: u64,
    /// Pings meant for somebody else.
    pub misdirected: u64,
    /// Answers to no probe, or from nobody who was asked.
    pub stray_answers: u64,
    /// Statements about members that are not in the table.
    pub unknown_members: u64,
    /// Statements about an incarnation other than the stored one, and older records.
    pub stale: u64,
    /// Incarnations too far ahead to be true.
    pub implausible: u64,
    /// Records that contradict another of the same incarnation, or come from a life that ended.
    pub conflicting_records: u64,
    /// Times that two live members claimed one address.
    pub address_conflicts: u64,
    /// Members refused because the table is full.
    pub table_full: u64,
    /// Probes for others refused because there are too many.
    pub relays_refused: u64,
    /// News too large for a datagram; it spreads by sync alone.
    pub oversized_news: u64,
    /// News given up because there was too much at once; what was told most often went first.
    pub dropped_news: u64,
    /// Events of applications: this node's own.
    pub events_emitted: u64,
    /// Events of others that were new here.
    pub events_received: u64,
    /// Events that had come before.
    pub events_copies: u64,
    /// Events of an earlier life, from before this node came, or too far behind.
    pub events_stale: u64,
    /// Events of nodes that are no members, or gone.
    pub events_strangers: u64,
    /// Events of others that this node did not pass on, for want of room.
    pub events_dropped: u64,
    /// Times that this process stood still.
    pub late_timeouts: u64,
}

/// Where a record comes from.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// From its owner, over an authenticated connection.
    Connection,
    /// From a member's datagram or sync.
    Member(&'a NodeId),
}

impl Source<'_> {
    fn is_owner(self) -> bool {
        match self {
            Self::Connection => true,
            Self::Member(_) => false,
        }
    }
}

/// Another life of this node that does not give way.
#[derive(Debug)]
struct Rival {
    boot: BootId,
    outbids: u32,
    answer_at: Instant,
}

/// The membership of one node. See the module for the algorithm.
///
/// Feed it with `handle_*` and the commands; after each of them drain `poll_transmit`,
/// `poll_event` and `poll_action`, and call `handle_timeout` at `poll_timeout`. The output queues
/// are not bounded by themselves: an input adds at most a few outputs per member.
#[derive(Debug)]
pub struct Swim {
    config: Config,
    rng: Rng,
    id: NodeId,
    own: Arc<VerifiedRecord>,
    /// What our record shall become; equal to `own` when nothing waits for a signature.
    desired: Record,
    signing: bool,
    /// Whom to sync with once our next record is signed.
    sync_after_signing: Option<NodeId>,
    /// The time to the next sync but one. A node that has just joined may have missed those that
    /// join with it, so it syncs soon, then ever more rarely.
    sync_pause: Duration,
    rival: Option<Rival>,
    members: Members,
    /// Forgotten members and their last incarnation; at most `max_members`.
    retired: BTreeMap<NodeId, u64>,
    probes: Probes,
    cases: Cases,
    awareness: Awareness,
    queue: Queue,
    user_events: UserEvents,
    timers: Timers,
    counters: Counters,
    told_table_full: bool,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    actions: VecDeque<Action>,
}

impl Swim {
    /// A cluster of one. Others become known through [`handle_record`](Self::handle_record) and
    /// [`handle_sync`](Self::handle_sync). `seed` decides every random choice.
    pub fn new(config: Config, me: Arc<VerifiedRecord>, seed: u64, now: Instant) -> Self {
        let config = Config {
            max_payload_bytes: config
                .max_payload_bytes
                .clamp(MIN_PAYLOAD_BYTES, MAX_MESSAGE_BYTES),
            ..config
        };
        let mut rng = Rng::new(seed);
        let first_seq = rng.u64() as u32;
        let id = me.record.node.clone();
        let standing = if me.record.left {
            Standing::Left
        } else {
            Standing::Alive
        };
        let mut members = Members::default();
        members.insert_self(Member::new(Arc::clone(&me), standing, now));
        let mut swim = Self {
            awareness: Awareness::new(config.awareness_max),
            rng,
            user_events: UserEvents::new(id.clone(), me.record.boot),
            id,
            desired: me.record.clone(),
            own: me,
            signing: false,
            sync_after_signing: None,
            sync_pause: if config.rules.early_syncs {
                config.probe_interval
            } else {
                config.sync_interval
            },
            rival: None,
            members,
            retired: BTreeMap::new(),
            probes: Probes::new(first_seq),
            cases: Cases::default(),
            queue: Queue::default(),
            timers: Timers::default(),
            counters: Counters::default(),
            told_table_full: false,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            actions: VecDeque::new(),
            config,
        };
        // Nodes that start together must not probe in step.
        let probe = swim.rng.between(Duration::ZERO, swim.config.probe_interval);
        swim.timers.set(Timer::Probe, now + probe);
        swim.spread_own(now);
        swim
    }

    // ---- inputs

    /// Takes a datagram's message. `from` is authenticated by the datagram's seal; `records` are
    /// those of the message's records that verified, in any order.
    pub fn handle_message(
        &mut self,
        now: Instant,
        from: &NodeId,
        from_addr: SocketAddr,
        message: Message,
        records: Vec<Arc<VerifiedRecord>>,
    ) {
        if *from == self.id {
            return;
        }
        self.counters.received.count(&message.body);
        for record in records {
            self.on_record(now, record, Source::Member(from));
        }
        let Some(sender) = self.members.get(from) else {
            self.counters.unknown_senders += 1;
            return;
        };
        // Who is dead here has to refute before it may accuse others.
        let credible = sender.is_live();
        // Answers go where the sender's own record says, wherever the question came from: whoever
        // holds a gossip key could otherwise have them sent to strangers.
        let reply_to = sender.record.record.gossip_addr;
        self.counters.foreign_addrs += u64::from(from_addr != reply_to);
        for statement in &message.statements {
            match statement {
                Statement::Suspect(accusation) | Statement::Dead(accusation) => {
                    self.on_accusation(now, from, statement, accusation, credible);
                }
                // Comes by handle_forced_leave, once the caller has verified it.
                Statement::ForcedLeave(_) => {}
            }
        }
        self.on_body(now, from, reply_to, message.body);
    }

    /// Takes a peer's own record, learnt over an authenticated connection to it. This is the only
    /// way back for a member that was forgotten.
    pub fn handle_record(&mut self, now: Instant, record: Arc<VerifiedRecord>) {
        self.on_record(now, record, Source::Connection);
    }

    /// Merges what another member knows. "Dead" and "suspect" raise a suspicion here; "left" is
    /// believed when the record says so itself.
    pub fn handle_sync(&mut self, now: Instant, from: &NodeId, entries: Vec<SyncEntry>) {
        for SyncEntry { record, status, .. } in entries {
            let doubted = match status {
                MemberStatus::Alive => false,
                MemberStatus::Suspect | MemberStatus::Dead => !record.record.left,
                MemberStatus::Left => !record.record.left,
            };
            if !doubted {
                self.on_record(now, record, Source::Member(from));
            } else if record.record.node == self.id {
                let incarnation = record.record.incarnation;
                self.on_record(now, record, Source::Member(from));
                self.on_accused(now, incarnation);
                if self.signing {
                    self.sync_after_signing = Some(from.clone());
                }
            } else {
                self.on_doubt_in_sync(now, from, record, status);
            }
        }
    }

    /// Takes a forced leave whose signature the caller has verified. It acts now if the member is
    /// dead here, later if it dies at that incarnation, and never on a member that is alive.
    pub fn handle_forced_leave(&mut self, now: Instant, forced: ForcedLeave) {
        if forced.node == self.id {
            self.on_accused(now, forced.incarnation);
            return;
        }
        let Some(member) = self.members.get_mut(&forced.node) else {
            self.counters.unknown_members += 1;
            return;
        };
        if member.incarnation() != forced.incarnation {
            self.counters.stale += 1;
            return;
        }
        if matches!(member.standing, Standing::Left) {
            return;
        }
        let node = forced.node.clone();
        let dead = !member.is_live();
        member.rare_mut().forced.get_or_insert(forced);
        if dead {
            self.force_out(now, &node);
        }
    }

    /// Takes our newly signed record: the answer to [`Action::Sign`], or a record that the caller
    /// made because the certificate changed, at our incarnation + 1.
    pub fn handle_signed(&mut self, now: Instant, me: Arc<VerifiedRecord>) {
        self.signing = false;
        if me.record.node != self.id || me.record == self.own.record {
            return;
        }
        if me.record.incarnation <= self.own.record.incarnation {
            // Overtaken by another record of ours: ask for the same content above it.
            self.desired = Record {
                left: self.desired.left,
                ..me.record.clone()
            };
            self.want_above(self.own.record.incarnation);
            return;
        }
        let was_left = self.own.record.left;
        self.members.replace_record(&self.id, Arc::clone(&me));
        self.own = me;
        if self.desired.incarnation > self.own.record.incarnation
            || (self.desired.left && !self.own.record.left)
        {
            self.desired.certificate = self.own.record.certificate;
            self.want_above(self.own.record.incarnation);
        } else {
            self.desired = self.own.record.clone();
        }
        if self.own.record.left && !was_left {
            self.on_left_ourselves(now);
        }
        self.spread_own(now);
        self.timers.set(Timer::Gossip, now);
        if let Some(with) = self.sync_after_signing.take() {
            self.actions.push_back(Action::Sync { with });
        }
    }

    /// Takes it that [`Action::Sign`] failed. What was to be signed is asked for again in a while:
    /// a node that cannot refute is declared dead.
    pub fn handle_sign_failed(&mut self, now: Instant) {
        self.signing = false;
        self.timers.set(Timer::Sign, now + SIGN_PAUSE);
    }

    /// Takes the answer to [`Action::PingOverConnection`].
    pub fn handle_connection_ack(&mut self, now: Instant, node: &NodeId, seq: u32) {
        if self.probes.way(seq, node) == Some(Way::Direct) {
            self.counters.probes_connection += 1;
            self.on_answered(now, seq);
        } else {
            self.counters.stray_answers += 1;
        }
    }

    /// Takes it that `node`'s reactor answered over an authenticated connection, and that this was
    /// true at `at`. Such an answer is worth a probe that succeeded. The pings by datagram go on:
    /// they keep the path of gossip under watch.
    pub fn handle_peer_answered(&mut self, now: Instant, node: &NodeId, at: Instant) {
        if !self.config.rules.evidence || *node == self.id {
            return;
        }
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        // Nothing that was said in the future can be told now.
        let at = at.min(now);
        member.note_answer(at);
        if !member.is_live() || !member.is_fresh(now, self.config.probe_interval) {
            return;
        }
        if let Standing::Suspect(suspicion) = &mut member.standing
            && suspicion.own_probe_failed()
        {
            self.on_vindicated(now, node);
        }
        // What was said before the question was put does not answer it. A probe lasts at least as
        // long as an answer is fresh, or a doubt has outdated what came before it; so whatever is
        // still fresh when a probe would fail has ended it here.
        if let Some(seq) = self.probes.of(node)
            && self.probes.own.get(&seq).is_some_and(|p| p.started <= at)
        {
            self.counters.probes_by_evidence += 1;
            self.on_answered(now, seq);
        }
    }

    /// Takes it that a connection to `node` raised a doubt. That is a reason to ask at once, and
    /// never a verdict.
    pub fn handle_peer_doubted(&mut self, now: Instant, node: &NodeId, doubt: Doubt) {
        if !self.config.rules.evidence || *node == self.id || self.own.record.left {
            return;
        }
        let Some(member) = self.members.get_mut(node).filter(|m| m.is_live()) else {
            return;
        };
        self.counters.doubts += 1;
        member.note_doubt(doubt, now);
        let mut suspicion_over = None;
        if let Standing::Suspect(suspicion) = &mut member.standing
            && doubt == Doubt::Refused
        {
            suspicion.refuse();
            suspicion_over = Some(suspicion.deadline().max(now));
        }
        // Whoever forges doubts gets one probe in each interval for them, and no more.
        let pause = self.config.probe_interval;
        let free_at = member
            .rare()
            .and_then(|rare| rare.hastened)
            .map(|at| at + pause);
        if let Some(at) = suspicion_over {
            self.timers.set(Timer::Suspicion(node.clone()), at);
        }
        match free_at.filter(|at| *at > now) {
            Some(at) => self.check_by(at, node),
            None => self.ask_at_once(now, node),
        }
    }

    /// Does what is due. Being late is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(due) = self.timers.next() {
            let late = now.saturating_duration_since(due);
            // Less than this is well within what probes allow for.
            if late > self.config.probe_timeout && self.config.rules.lateness {
                self.on_late(now, late);
            }
        }
        while let Some(timer) = self.timers.pop_due(now) {
            self.on_timer(now, timer);
        }
    }

    // ---- commands

    /// Leaves the cluster: has a record signed that says so, then tells the others. Probes are
    /// still answered.
    pub fn leave(&mut self, now: Instant) {
        if self.desired.left {
            return;
        }
        log::debug!(target: "swim", node:% = self.id; "leaving");
        self.timers.cancel(&Timer::Sync);
        self.timers.set(Timer::Gossip, now);
        self.desired.left = true;
        self.want_above(self.own.record.incarnation);
    }

    /// Replaces our tags.
    ///
    /// # Errors
    ///
    /// [`TagsTooLarge`] when they do not fit a record.
    pub fn set_tags(
        &mut self,
        _now: Instant,
        tags: BTreeMap<String, String>,
    ) -> Result<(), TagsTooLarge> {
        let bytes = tag_bytes(&tags);
        if bytes > MAX_TAG_BYTES {
            return Err(TagsTooLarge(bytes));
        }
        if self.desired.tags != tags {
            self.desired.tags = tags;
            self.want_above(self.own.record.incarnation);
        }
        Ok(())
    }

    /// Forces a dead member out, here and everywhere else where it is dead: has a statement signed,
    /// which comes back through [`handle_forced_leave`](Self::handle_forced_leave).
    ///
    /// # Errors
    ///
    /// [`ForceLeaveError`] when there is no such member or it is not dead.
    pub fn force_leave(&mut self, _now: Instant, node: &NodeId) -> Result<(), ForceLeaveError> {
        let member = self
            .members
            .get(node)
            .ok_or_else(|| ForceLeaveError::UnknownMember(node.clone()))?;
        if member.status() != MemberStatus::Dead {
            return Err(ForceLeaveError::NotDead(node.clone(), member.status()));
        }
        self.actions.push_back(Action::SignForcedLeave(ForcedLeave {
            node: node.clone(),
            incarnation: member.incarnation(),
            issuer: self.id.clone(),
            signature: Vec::new(),
        }));
        Ok(())
    }

    // ---- outputs

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next change to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    // ---- getters

    /// Our record as last signed.
    pub fn me(&self) -> &Arc<VerifiedRecord> {
        &self.own
    }

    /// The numbers this core runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// One member, or this node.
    pub fn member(&self, node: &NodeId) -> Option<MemberView<'_>> {
        self.members.get(node).map(view)
    }

    /// All members, this node included, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = MemberView<'_>> {
        self.members.iter().map(|(_, member)| view(member))
    }

    /// Everything to tell `with` in a sync: this node, members, and those whose death or leave this
    /// node saw itself. Of the partner itself all that is known: a node that returns has to hear
    /// which incarnation to go above.
    pub fn sync_entries(&self, with: Option<&NodeId>) -> Vec<SyncEntry> {
        self.members
            .iter()
            .filter(|(node, member)| !member.hearsay || with == Some(node))
            .map(|(_, member)| SyncEntry {
                record: Arc::clone(&member.record),
                status: member.status(),
                forced: match member.standing {
                    Standing::Left => member.forced().cloned().map(Box::new),
                    Standing::Alive | Standing::Suspect(_) | Standing::Dead { .. } => None,
                },
            })
            .collect()
    }

    /// Why a member is, or was last, suspect or dead; nothing for a node that is not a member. The
    /// cases of those that were suspected longest ago are not kept for ever.
    pub fn explain(&self, node: &NodeId) -> Option<Explanation> {
        let member = self.members.get(node)?;
        let (case, last_death) = self.cases.of(node);
        Some(Explanation {
            node: node.clone(),
            status: member.status(),
            since: member.since,
            incarnation: member.incarnation(),
            evidence: evidence_of(member),
            health_score: self.awareness.score(),
            case,
            last_death,
        })
    }

    /// How unwell this node itself seems to be; 0 is well.
    pub fn health_score(&self) -> u32 {
        self.awareness.score()
    }

    /// How many members are alive, this node included. Suspects are not counted.
    pub fn alive_count(&self) -> usize {
        self.members.alive()
    }

    /// How many pieces of news have not been sent often enough yet.
    pub fn pending_news(&self) -> usize {
        self.queue.len()
    }

    /// What was done and refused so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    // ---- the acts of the failure detector

    fn on_body(&mut self, now: Instant, from: &NodeId, reply_to: SocketAddr, body: Body) {
        match body {
            Body::Ping { seq, target } if target == self.id => {
                self.send(from, reply_to, &Body::Ack { seq });
            }
            Body::Ping { .. } => self.counters.misdirected += 1,
            Body::PingReq { seq, target } => self.on_ping_req(now, from, reply_to, seq, target),
            Body::Ack { seq } => self.on_ack(now, from, seq),
            Body::Nack { seq } => {
                if !self.probes.nack(seq, from) {
                    self.counters.stray_answers += 1;
                }
            }
            Body::Gossip => {}
        }
    }

    fn on_ping_req(
        &mut self,
        now: Instant,
        from: &NodeId,
        reply_to: SocketAddr,
        seq: u32,
        target: NodeId,
    ) {
        if target == self.id {
            self.send(from, reply_to, &Body::Ack { seq });
            return;
        }
        let addr = self
            .members
            .get(&target)
            .map(|member| member.record.record.gossip_addr);
        let full = self.probes.relays.len() >= MAX_RELAYS;
        self.counters.relays_refused += u64::from(full);
        let Some(addr) = addr.filter(|_| !full) else {
            // We cannot try, yet we are well, and that is what a nack says.
            if self.config.rules.nacks {
                self.send(from, reply_to, &Body::Nack { seq });
            }
            return;
        };
        let own_seq = self.probes.seq();
        let relay = Relay {
            target: target.clone(),
            requester: from.clone(),
            requester_addr: reply_to,
            seq,
        };
        self.probes.relays.insert(own_seq, relay);
        // At 80 % of the time-out, so that the nack arrives while it is still waited for.
        if self.config.rules.nacks {
            self.timers.set(
                Timer::RelayNack(own_seq),
                now + self.config.probe_timeout * 4 / 5,
            );
        }
        self.timers
            .set(Timer::RelayEnd(own_seq), now + self.config.probe_interval);
        self.send(
            &target.clone(),
            addr,
            &Body::Ping {
                seq: own_seq,
                target,
            },
        );
    }

    fn on_ack(&mut self, now: Instant, from: &NodeId, seq: u32) {
        match self.probes.way(seq, from) {
            Some(Way::Direct) => {
                self.counters.probes_direct += 1;
                self.on_answered(now, seq);
                return;
            }
            Some(Way::Indirect) => {
                self.counters.probes_indirect += 1;
                self.on_answered(now, seq);
                return;
            }
            None => {}
        }
        if self
            .probes
            .relays
            .get(&seq)
            .is_none_or(|relay| relay.target != *from)
        {
            self.counters.stray_answers += 1;
            return;
        }
        if let Some(relay) = self.end_relay(seq) {
            self.send(
                &relay.requester,
                relay.requester_addr,
                &Body::Ack { seq: relay.seq },
            );
        }
    }

    fn end_relay(&mut self, seq: u32) -> Option<Relay> {
        self.timers.cancel(&Timer::RelayNack(seq));
        self.timers.cancel(&Timer::RelayEnd(seq));
        self.probes.relays.remove(&seq)
    }

    fn on_probe_turn(&mut self, now: Instant) {
        self.timers
            .set(Timer::Probe, now + self.config.probe_interval);
        // A probe that a low health score has lengthened takes the place of the next ones.
        if self.probes.count(Purpose::Turn) > 0 {
            return;
        }
        let probes = &self.probes;
        let target = self.members.next_to_probe(&mut self.rng, |node, member| {
            member.is_live() && !probes.is_probing(node)
        });
        if let Some(target) = target {
            self.start_probe(now, target, Purpose::Turn);
        } else if self.members.live() <= 1 {
            // With nobody left to answer, nothing else would ever end an unwell time.
            self.awareness.improve();
        }
    }

    fn on_check(&mut self, now: Instant, node: NodeId) {
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let incarnation = member.incarnation();
        let unsettled = member.rare().is_some_and(|rare| rare.unsettled);
        let (wanted, ask_again) = match &member.standing {
            Standing::Suspect(suspicion) => (true, suspicion.own_probe_failed()),
            Standing::Dead { .. } => (member.hearsay, false),
            Standing::Alive => (unsettled, false),
            Standing::Left => (false, false),
        };
        if ask_again {
            // The shortest wait is over, and too few have confirmed. Whoever knows better answers.
            self.accuse(now, node.clone(), incarnation);
        }
        if wanted && unsettled {
            self.ask_at_once(now, &node);
        } else if wanted && !self.probes.is_probing(&node) && self.may_check(now, &node) {
            self.start_probe(now, node, Purpose::Check);
        }
    }

    /// Whether there is room for one more probe out of turn; if not, the check comes again soon.
    fn may_check(&mut self, now: Instant, node: &NodeId) -> bool {
        if self.probes.count(Purpose::Check) < MAX_CHECKS {
            return true;
        }
        let again = self
            .rng
            .between(self.config.probe_timeout, self.config.probe_interval);
        self.timers.set(Timer::Check(node.clone()), now + again);
        false
    }

    /// Looks at a member at `at`, unless that is planned for earlier.
    fn check_by(&mut self, at: Instant, node: &NodeId) {
        let check = Timer::Check(node.clone());
        if self.timers.due(&check).is_none_or(|due| due > at) {
            self.timers.set(check, at);
        }
    }

    /// Asks a doubtful member in every way at once. A probe of it that runs is made to.
    fn ask_at_once(&mut self, now: Instant, node: &NodeId) {
        if self.probes.of(node).is_none() {
            if !self.may_check(now, node) {
                return;
            }
            self.start_probe(now, node.clone(), Purpose::Check);
        }
        let (Some(member), Some(seq)) = (self.members.get_mut(node), self.probes.of(node)) else {
            return;
        };
        let rare = member.rare_mut();
        rare.hastened = Some(now);
        let refused = rare.refused;
        self.ask_others(seq);
        // Nobody is there to be slow, so the time that every way needs is enough.
        let end = now + self.scaled(self.config.hasty_probe());
        if let Some(probe) = self
            .probes
            .own
            .get_mut(&seq)
            .filter(|p| refused && end < p.end)
        {
            probe.end = end;
            self.timers.set(Timer::ProbeEnd(seq), end);
        }
    }

    /// `time`, longer while this node itself is unwell.
    fn scaled(&self, time: Duration) -> Duration {
        if self.config.rules.lha_probe {
            self.awareness.scale(time)
        } else {
            time
        }
    }

    fn start_probe(&mut self, now: Instant, target: NodeId, purpose: Purpose) {
        let Some(member) = self.members.get(&target) else {
            return;
        };
        let (addr, incarnation) = (member.record.record.gossip_addr, member.incarnation());
        let seq = self.probes.seq();
        let end = now + self.scaled(self.config.probe_interval);
        let probe = Probe {
            target: target.clone(),
            incarnation,
            purpose,
            started: now,
            end,
            asked_others: false,
            helpers: BTreeSet::new(),
            nacks: BTreeSet::new(),
        };
        self.probes.own.insert(seq, probe);
        self.timers
            .set(Timer::ProbeDirect(seq), now + self.config.probe_timeout);
        self.timers.set(Timer::ProbeEnd(seq), end);
        self.send(&target.clone(), addr, &Body::Ping { seq, target });
    }

    /// Asks a few others to try, and asks over the connection.
    fn ask_others(&mut self, seq: u32) {
        let Some(probe) = self.probes.own.get_mut(&seq).filter(|p| !p.asked_others) else {
            return;
        };
        probe.asked_others = true;
        self.timers.cancel(&Timer::ProbeDirect(seq));
        let target = probe.target.clone();
        let helpers = self.members.choose(
            self.config.indirect_probes,
            &mut self.rng,
            |node, member| *node != target && matches!(member.standing, Standing::Alive),
        );
        probe.helpers = helpers.iter().cloned().collect();
        for helper in helpers {
            let Some(member) = self.members.get(&helper) else {
                continue;
            };
            let addr = member.record.record.gossip_addr;
            self.send(
                &helper,
                addr,
                &Body::PingReq {
                    seq,
                    target: target.clone(),
                },
            );
        }
        if self.config.rules.connection_pings {
            self.actions
                .push_back(Action::PingOverConnection { node: target, seq });
        }
    }

    fn on_answered(&mut self, now: Instant, seq: u32) {
        let Some(probe) = self.end_probe(seq) else {
            return;
        };
        self.awareness.improve();
        self.report(now, &probe, true);
        self.settle(&probe.target);
        let Some(member) = self.members.get(&probe.target) else {
            return;
        };
        match &member.standing {
            Standing::Suspect(_) => self.on_vindicated(now, &probe.target),
            Standing::Dead { .. } if member.hearsay => self.on_back(now, &probe.target),
            Standing::Dead { .. } | Standing::Alive | Standing::Left => {}
        }
    }

    /// A suspect lives, as far as this node can see, but only it can convince the others.
    fn on_vindicated(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        let Standing::Suspect(suspicion) = &mut member.standing else {
            return;
        };
        suspicion.answered();
        // The wait is longer again if it had been cut; that it is over may have been found already.
        let deadline = suspicion.deadline().max(now);
        self.timers.set(Timer::Suspicion(node.clone()), deadline);
        if self.config.rules.check_suspects {
            let interval = self.config.probe_interval;
            let again = self.rng.between(interval * 2, interval * 4);
            self.timers.set(Timer::Check(node.clone()), now + again);
        }
    }

    fn on_probe_failed(&mut self, now: Instant, seq: u32) {
        let Some(probe) = self.end_probe(seq) else {
            return;
        };
        self.counters.probes_failed += 1;
        let asked = probe.helpers.len();
        let silent = if asked == 0 || !self.config.rules.nacks {
            1
        } else {
            asked - probe.nacks.len()
        };
        self.awareness
            .worsen(u32::try_from(silent).unwrap_or(u32::MAX));
        let node = probe.target.clone();
        log::debug!(target: "swim", node:% = node, asked, nacks = probe.nacks.len(),
            health_score = self.awareness.score(); "probe failed");
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let incarnation = member.incarnation();
        if incarnation != probe.incarnation {
            return;
        }
        let news = match &member.standing {
            Standing::Alive => {
                self.suspect(now, &node, self.id.clone(), true);
                true
            }
            Standing::Suspect(_) => self.note_accusation(now, &node, &self.id.clone(), true, false),
            Standing::Dead { .. } | Standing::Left => return,
        };
        self.report(now, &probe, false);
        if news {
            self.accuse(now, node.clone(), incarnation);
        }
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        let Standing::Suspect(suspicion) = &mut member.standing else {
            return;
        };
        suspicion.probe_failed();
        let (deadline, next_look) = (suspicion.deadline(), suspicion.next_look(now));
        let second = suspicion.wants_second_probe();
        if deadline <= now {
            self.die(now, &node);
            return;
        }
        self.timers.set(Timer::Suspicion(node.clone()), deadline);
        if second {
            self.ask_at_once(now, &node);
        }
        if self.config.rules.check_suspects {
            self.timers.set(Timer::Check(node), next_look);
        }
    }

    /// Writes a probe of a suspect that has ended into its case.
    fn report(&mut self, now: Instant, probe: &Probe, answered: bool) {
        if let Some(case) = self.cases.running(&probe.target) {
            case.probe(ProbeReport {
                started: probe.started,
                ended: now,
                helpers: probe.helpers.len(),
                nacks: probe.nacks.len(),
                over_connection: probe.asked_others && self.config.rules.connection_pings,
                answered,
            });
        }
    }

    fn end_probe(&mut self, seq: u32) -> Option<Probe> {
        self.timers.cancel(&Timer::ProbeDirect(seq));
        self.timers.cancel(&Timer::ProbeEnd(seq));
        self.probes.own.remove(&seq)
    }

    fn abandon_probes_of(&mut self, node: &NodeId) {
        if let Some(seq) = self.probes.of(node) {
            self.end_probe(seq);
            self.counters.probes_abandoned += 1;
        }
    }

    // ---- suspicion, death, refutation

    /// Somebody says that a member is suspect or dead.
    fn on_accusation(
        &mut self,
        now: Instant,
        from: &NodeId,
        statement: &Statement,
        accusation: &Accusation,
        credible: bool,
    ) {
        let Accusation {
            node,
            incarnation,
            accuser,
        } = accusation;
        if *node == self.id {
            self.on_accused(now, *incarnation);
            return;
        }
        if !credible || *accuser == self.id {
            return;
        }
        let Some(member) = self.members.get_mut(node) else {
            self.counters.unknown_members += 1;
            return;
        };
        if member.incarnation() != *incarnation {
            self.counters.stale += 1;
            return;
        }
        let condemned = matches!(statement, Statement::Dead(_));
        let first_hand = from == accuser;
        let relay = match &member.standing {
            Standing::Alive => {
                self.suspect(now, node, accuser.clone(), first_hand);
                if condemned {
                    self.condemn(now, node, accuser);
                }
                true
            }
            Standing::Suspect(_) => {
                let news = self.note_accusation(now, node, accuser, first_hand, condemned);
                let shortened = condemned && self.condemn(now, node, accuser);
                // Where a confirmation only counts at first hand, relaying it would be useless.
                shortened || (news && !self.config.rules.first_hand_confirmations)
            }
            Standing::Dead { .. } => {
                if first_hand && !condemned && !member.hearsay && self.config.rules.check_suspects {
                    self.tell_dead(from, node);
                }
                false
            }
            Standing::Left => false,
        };
        if relay {
            self.spread_statement(now, node, statement);
        }
    }

    /// Counts an accusation of a suspect, if it confirms what is known; false when it tells nothing
    /// new.
    fn note_accusation(
        &mut self,
        now: Instant,
        node: &NodeId,
        by: &NodeId,
        first_hand: bool,
        dead: bool,
    ) -> bool {
        let Some(member) = self.members.get_mut(node) else {
            return false;
        };
        let Standing::Suspect(suspicion) = &mut member.standing else {
            return false;
        };
        let may_count = first_hand || !self.config.rules.first_hand_confirmations;
        let counted = may_count && suspicion.confirm(by);
        if counted {
            // An instant gone by would look as if this process had stood still.
            let deadline = suspicion.deadline().max(now);
            self.timers.set(Timer::Suspicion(node.clone()), deadline);
        }
        if let Some(case) = self.cases.running(node)
            && (counted
                || !case
                    .accusations
                    .iter()
                    .any(|a| a.by == *by && a.dead == dead))
        {
            case.accuse(Accused {
                by: by.clone(),
                at: now,
                first_hand,
                dead,
                counted,
            });
        }
        counted
    }

    /// Tells a member that still wonders about `node` that it is dead here.
    fn tell_dead(&mut self, to: &NodeId, node: &NodeId) {
        let (Some(doubter), Some(dead)) = (self.members.get(to), self.members.get(node)) else {
            return;
        };
        let statement = Statement::Dead(Accusation {
            node: node.clone(),
            incarnation: dead.incarnation(),
            accuser: self.id.clone(),
        });
        let destination = doubter.record.record.gossip_addr;
        let payload = message::encode_statement(&statement);
        self.counters.sent.count(&Body::Gossip);
        self.transmits.push_back(Transmit {
            to: to.clone(),
            destination,
            payload,
        });
    }

    /// `by` says that a suspect is dead: leaves it the shortest time only, unless its connection
    /// says otherwise. False when that changed nothing.
    fn condemn(&mut self, now: Instant, node: &NodeId, by: &NodeId) -> bool {
        let Some(member) = self.members.get_mut(node) else {
            return false;
        };
        let is_fresh = member.is_fresh(now, self.config.probe_interval);
        let Standing::Suspect(suspicion) = &mut member.standing else {
            return false;
        };
        if is_fresh {
            self.counters.vetoes += 1;
            if let Some(case) = self.cases.running(node) {
                case.vetoes += 1;
            }
            return false;
        }
        if !self.config.rules.own_probe {
            self.take_over_death(now, node, by);
            return true;
        }
        let shortened = suspicion.condemn();
        let deadline = suspicion.deadline().max(now);
        self.timers.set(Timer::Suspicion(node.clone()), deadline);
        shortened
    }

    /// Begins to doubt a member that is alive. Unless the doubt is its own, this node has to look
    /// for itself.
    fn suspect(&mut self, now: Instant, node: &NodeId, by: NodeId, first_hand: bool) {
        let Some(member) = self.members.get(node) else {
            return;
        };
        let refused = member.rare().is_some_and(|rare| rare.refused);
        let n = self.members.live();
        let min = self.config.suspicion_min(n);
        let waits = Waits {
            min,
            max: self.config.suspicion_max(n),
            floor: self.config.suspicion_floor(n),
            wanted: if self.config.rules.lha_suspicion {
                self.config.confirmations(n)
            } else {
                0
            },
        };
        let case = Case {
            incarnation: member.incarnation(),
            began: now,
            members: n,
            shortest: waits.min,
            longest: if waits.wanted > 0 {
                waits.max
            } else {
                waits.min
            },
            wanted: waits.wanted,
            accusations: vec![Accused {
                by: by.clone(),
                at: now,
                first_hand,
                dead: false,
                counted: false,
            }],
            more_accusations: 0,
            probes: Vec::new(),
            more_probes: 0,
            vetoes: 0,
            verdict: None,
        };
        self.cases.open(node.clone(), case);
        let mut suspicion = Suspicion::new(by.clone(), now, waits);
        if refused {
            suspicion.refuse();
        }
        self.timers
            .set(Timer::Suspicion(node.clone()), suspicion.deadline());
        if self.config.rules.check_suspects && by != self.id {
            let check = now + self.rng.between(Duration::ZERO, min / 2);
            self.check_by(check, node);
        }
        self.members
            .set_standing(node, Standing::Suspect(Box::new(suspicion)), now);
        self.counters.suspicions += 1;
        log::debug!(target: "swim", node:% = node, by:% = by; "member is suspect");
        self.events.push_back(Event::Suspect {
            node: node.clone(),
            by,
        });
    }

    /// Says that a member did not answer us.
    fn accuse(&mut self, now: Instant, node: NodeId, incarnation: u64) {
        let accusation = Accusation {
            node,
            incarnation,
            accuser: self.id.clone(),
        };
        let node = accusation.node.clone();
        self.spread_statement(now, &node, &Statement::Suspect(accusation));
    }

    fn on_suspicion_over(&mut self, now: Instant, node: NodeId) {
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let Standing::Suspect(suspicion) = &member.standing else {
            return;
        };
        if suspicion.own_probe_failed() || !self.config.rules.own_probe {
            self.die(now, &node);
        } else if !self.probes.is_probing(&node) {
            // Nobody dies on hearsay: when this probe fails, its end finds the time is up.
            self.timers.set(Timer::Check(node), now);
        }
    }

    fn die(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.members.get(node) else {
            return;
        };
        let Standing::Suspect(suspicion) = &member.standing else {
            return;
        };
        let (by, fast) = (suspicion.accuser().clone(), suspicion.is_fast());
        let dead = Statement::Dead(Accusation {
            node: node.clone(),
            incarnation: member.incarnation(),
            accuser: self.id.clone(),
        });
        self.counters.fast_deaths += u64::from(fast);
        self.declare_dead(now, node, by, Ending::Dead { fast });
        self.spread_statement(now, node, &dead);
        self.force_out_if_asked(now, node);
    }

    /// Takes `from`'s word for it that a suspect is dead.
    fn take_over_death(&mut self, now: Instant, node: &NodeId, from: &NodeId) {
        let ending = Ending::TakenOver { from: from.clone() };
        self.declare_dead(now, node, from.clone(), ending);
        self.force_out_if_asked(now, node);
    }

    fn declare_dead(&mut self, now: Instant, node: &NodeId, by: NodeId, ending: Ending) {
        self.close_case(now, node, ending);
        self.bury(now, node, Standing::dead(by.clone()));
        self.counters.deaths += 1;
        log::debug!(target: "swim", node:% = node, by:% = by; "member is dead");
        self.events.push_back(Event::Dead {
            node: node.clone(),
            by,
        });
        self.queue.remove(node, Kind::Record);
    }

    fn close_case(&mut self, now: Instant, node: &NodeId, ending: Ending) {
        let (Some(member), Some(case)) = (self.members.get(node), self.cases.running(node)) else {
            return;
        };
        case.verdict = Some(Verdict {
            at: now,
            ending,
            health_score: self.awareness.score(),
            evidence: evidence_of(member),
        });
    }

    fn force_out_if_asked(&mut self, now: Instant, node: &NodeId) {
        if self.members.get(node).is_some_and(|m| m.forced().is_some()) {
            self.force_out(now, node);
        }
    }

    fn force_out(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.members.get(node) else {
            return;
        };
        let Some(forced) = member.forced().cloned() else {
            return;
        };
        // Nobody here was ever told that a member by hearsay was up.
        let known = !member.hearsay;
        self.bury(now, node, Standing::Left);
        log::debug!(target: "swim", node:% = node, by:% = forced.issuer; "member is forced out");
        if known {
            let by = Some(forced.issuer.clone());
            self.events.push_back(Event::Left {
                node: node.clone(),
                by,
            });
        }
        self.spread_statement(now, node, &Statement::ForcedLeave(forced));
    }

    /// Gives a member up and starts the life of its tombstone.
    fn bury(&mut self, now: Instant, node: &NodeId, standing: Standing) {
        self.forget_doubts(node);
        self.abandon_probes_of(node);
        self.members.set_standing(node, standing, now);
        self.timers
            .set(Timer::Reap(node.clone()), now + self.config.tombstone);
    }

    fn forget_doubts(&mut self, node: &NodeId) {
        self.timers.cancel(&Timer::Suspicion(node.clone()));
        self.timers.cancel(&Timer::Check(node.clone()));
        self.queue.remove(node, Kind::Statement);
    }

    fn on_reap(&mut self, now: Instant, node: NodeId) {
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let incarnation = member.incarnation();
        self.forget_doubts(&node);
        self.queue.remove(&node, Kind::Record);
        self.abandon_probes_of(&node);
        self.members.remove(&node);
        self.cases.forget(&node);
        self.user_events.forget(&node);
        if self.retired.len() < self.config.max_members {
            self.retired.insert(node.clone(), incarnation);
            self.timers
                .set(Timer::Unretire(node.clone()), now + RETIRED_FOR);
        }
        self.events.push_back(Event::Forgotten { node });
    }

    fn tell_up(&mut self, now: Instant, node: NodeId) {
        self.events.push_back(Event::Up { node });
        self.wake_sync(now);
    }

    /// Somebody doubts us at `incarnation`.
    fn on_accused(&mut self, now: Instant, incarnation: u64) {
        if self.own.record.left || incarnation < self.own.record.incarnation {
            self.spread_own_again(now);
            return;
        }
        if incarnation
            > self
                .own
                .record
                .incarnation
                .saturating_add(MAX_STATEMENT_STEP)
        {
            self.counters.implausible += 1;
            return;
        }
        self.refute(incarnation);
    }

    /// Has a record of ours signed above `incarnation`, unless one is on its way.
    fn refute(&mut self, incarnation: u64) {
        if self.desired.incarnation > incarnation {
            return;
        }
        self.counters.refutations += 1;
        self.awareness.worsen(1);
        log::debug!(target: "swim", incarnation; "refuting");
        self.want_above(incarnation);
    }

    /// Has what is desired signed, above `incarnation`, which is ours or higher.
    fn want_above(&mut self, incarnation: u64) {
        if self.desired.incarnation <= incarnation {
            self.desired.incarnation = incarnation.saturating_add(1);
        } else if self.signing {
            // The record being signed has this number and other content already.
            self.desired.incarnation = self.desired.incarnation.saturating_add(1);
        }
        if !self.signing {
            self.signing = true;
            self.actions.push_back(Action::Sign(self.desired.clone()));
        }
    }

    // ---- records

    fn on_record(&mut self, now: Instant, record: Arc<VerifiedRecord>, source: Source<'_>) {
        if record.record.cluster != self.own.record.cluster {
            return;
        }
        let incarnation = record.record.incarnation;
        if incarnation > MAX_INCARNATION {
            self.counters.implausible += 1;
            return;
        }
        if record.record.node == self.id {
            self.on_record_about_us(now, &record.record, source);
            return;
        }
        let Some(member) = self.members.get(&record.record.node) else {
            self.on_stranger(now, record, source, Standing::Alive);
            return;
        };
        if incarnation > member.incarnation() {
            self.on_newer(now, record, source);
        } else {
            self.on_known(now, &record, source);
        }
    }

    /// A record of a member that is not in the table. `standing` is what the source believes.
    fn on_stranger(
        &mut self,
        now: Instant,
        record: Arc<VerifiedRecord>,
        source: Source<'_>,
        standing: Standing,
    ) {
        let node = record.record.node.clone();
        if let Some(retired) = self.retired.get(&node) {
            let live = matches!(source, Source::Connection);
            if record.record.incarnation <= *retired && !live {
                self.counters.stale += 1;
                return;
            }
        }
        if self.members.len() >= self.config.max_members {
            self.counters.table_full += 1;
            if !std::mem::replace(&mut self.told_table_full, true) {
                log::warn!(target: "swim", node:% = node, max_members = self.config.max_members;
                    "member table is full; new members are refused");
            }
            return;
        }
        self.retired.remove(&node);
        self.timers.cancel(&Timer::Unretire(node.clone()));
        let standing = if record.record.left {
            Standing::Left
        } else {
            standing
        };
        let mut member = Member::new(Arc::clone(&record), standing, now);
        let live = member.is_live();
        let addr = record.record.gossip_addr;
        member.hearsay = !live;
        if source.is_owner() {
            member.prove();
        }
        self.members.insert(member, &mut self.rng);
        if live {
            log::debug!(target: "swim", node:% = node; "member is up");
            self.spread_record(now, &record);
            self.on_address_taken(now, &node, addr);
            self.tell_up(now, node);
        } else {
            self.timers
                .set(Timer::Reap(node), now + self.config.tombstone);
        }
    }

    /// `by` lives at a gossip address; if somebody else was there, it has probably gone. Records are
    /// kept by name, so nothing is overwritten; but who was there is asked at once.
    fn on_address_taken(&mut self, now: Instant, by: &NodeId, addr: SocketAddr) {
        let Some(holder) = self.members.at_addr(addr, by).filter(|n| **n != self.id) else {
            return;
        };
        let holder = holder.clone();
        let Some(member) = self.members.get_mut(&holder).filter(|m| m.is_live()) else {
            return;
        };
        let rare = member.rare_mut();
        rare.contested_by = Some(by.clone());
        rare.unsettled = true;
        let pause = self.config.probe_interval;
        let free_at = rare.hastened.map(|at| at + pause);
        self.check_by(free_at.map_or(now, |at| at.max(now)), &holder);
    }

    /// A member answered; if another claims its address, both live.
    fn settle(&mut self, node: &NodeId) {
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        member.settle();
        let addr = member.record.record.gossip_addr;
        let Some(other) = member.take_contested() else {
            return;
        };
        let claims = |m: &Member| m.is_live() && m.record.record.gossip_addr == addr;
        if self.members.get(&other).is_some_and(claims) {
            self.counters.address_conflicts += 1;
            self.events.push_back(Event::AddressConflict {
                node: node.clone(),
                other,
                addr,
            });
        }
    }

    /// A record that is not newer than the one stored.
    fn on_known(&mut self, now: Instant, record: &Arc<VerifiedRecord>, source: Source<'_>) {
        let node = &record.record.node;
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        if source.is_owner() && record.record.boot == member.record.record.boot {
            member.prove();
        }
        let older = record.record.incarnation < member.incarnation();
        if older {
            self.counters.stale += 1;
        } else if record.record != member.record.record {
            self.counters.conflicting_records += 1;
        }
        let same = record.record == member.record.record;
        let (doubted, hearsay) = (member.status() != MemberStatus::Alive, member.hearsay);
        match source {
            Source::Connection if same && hearsay && !record.record.left => {
                self.on_back(now, node);
            }
            // It is there, and it cannot know what is said of it here. A sync tells it.
            Source::Connection if doubted || !same => {
                self.actions.push_back(Action::Sync { with: node.clone() });
            }
            // Somebody knows better than whoever told us that it was gone. Look for ourselves.
            Source::Member(_) if same && hearsay && !record.record.left => {
                let check = Timer::Check(node.clone());
                if !self.timers.is_set(&check) && !self.probes.is_probing(node) {
                    let soon = self.rng.between(Duration::ZERO, self.config.probe_interval);
                    self.timers.set(check, now + soon);
                }
            }
            Source::Connection | Source::Member(_) => {}
        }
    }

    /// A record above the stored incarnation.
    fn on_newer(&mut self, now: Instant, record: Arc<VerifiedRecord>, source: Source<'_>) {
        let claim = &record.record;
        let node = claim.node.clone();
        if !self.is_acceptable(&record, source) {
            return;
        }
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        let before = member.status();
        let stored = &member.record.record;
        let boot_changed = stored.boot != claim.boot;
        let addr_changed =
            stored.quic_addr != claim.quic_addr || stored.gossip_addr != claim.gossip_addr;
        let changed = Record {
            incarnation: claim.incarnation,
            ..stored.clone()
        } != *claim;
        let is_proven = source.is_owner();
        let gossip_addr = claim.gossip_addr;
        if boot_changed {
            // After two restarts at once, what others still tell of the life before must not end
            // the one whose handshake was seen here.
            let superseded = stored.boot;
            let outlives = is_proven || !member.is_proven();
            let rare = member.rare_mut();
            if outlives {
                rare.superseded = Some(superseded);
            }
            rare.conflict_told = false;
        }
        self.members.replace_record(&node, Arc::clone(&record));
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        if is_proven {
            member.prove();
        }
        // What was seen of the connection so far was the word of the record before.
        member.settle();
        member.drop_forced();
        let hearsay = member.hearsay;
        member.hearsay = hearsay && claim.left;
        self.forget_doubts(&node);
        let ending = if claim.left {
            Ending::Left
        } else {
            Ending::Refuted
        };
        self.close_case(now, &node, ending);
        self.spread_record(now, &record);
        if claim.left {
            self.bury(now, &node, Standing::Left);
            if before != MemberStatus::Left && !hearsay {
                log::debug!(target: "swim", node:% = node; "member left");
                self.events.push_back(Event::Left { node, by: None });
            }
            return;
        }
        self.timers.cancel(&Timer::Reap(node.clone()));
        if before != MemberStatus::Alive {
            self.members.set_standing(&node, Standing::Alive, now);
        }
        if addr_changed {
            self.on_address_taken(now, &node, gossip_addr);
        }
        match before {
            MemberStatus::Dead | MemberStatus::Left => {
                log::debug!(target: "swim", node:% = node; "member is back");
                self.tell_up(now, node);
                return;
            }
            MemberStatus::Suspect => {
                self.events.push_back(Event::Alive { node: node.clone() });
                self.wake_sync(now);
            }
            MemberStatus::Alive => {}
        }
        if changed {
            self.events.push_back(Event::Updated {
                node,
                addr_changed,
                boot_changed,
            });
        }
    }

    /// Whether a newer record of a known member may replace the stored one.
    fn is_acceptable(&mut self, record: &VerifiedRecord, source: Source<'_>) -> bool {
        let claim = &record.record;
        let Some(member) = self.members.get_mut(&claim.node) else {
            return false;
        };
        if claim.incarnation > member.incarnation().saturating_add(MAX_RECORD_STEP) {
            self.counters.implausible += 1;
            return false;
        }
        let outlived = member.superseded() == Some(claim.boot);
        // Its own handshake weighs more than a life that is known by hearsay only.
        let is_vindicated = source.is_owner() && !member.is_proven();
        if outlived && !is_vindicated {
            self.counters.conflicting_records += 1;
            if !std::mem::replace(&mut member.rare_mut().conflict_told, true) {
                self.events.push_back(Event::NameConflict {
                    node: claim.node.clone(),
                    boot: claim.boot,
                    addr: claim.quic_addr,
                });
            }
            return false;
        }
        true
    }

    /// A member that was gone by hearsay shows that it is there.
    fn on_back(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        member.hearsay = false;
        let record = Arc::clone(&member.record);
        self.forget_doubts(node);
        self.timers.cancel(&Timer::Reap(node.clone()));
        self.members.set_standing(node, Standing::Alive, now);
        self.spread_record(now, &record);
        log::debug!(target: "swim", node:% = node; "member is up");
        self.tell_up(now, node.clone());
    }

    /// A record of a member that the other side of a sync believes to be suspect or gone.
    fn on_doubt_in_sync(
        &mut self,
        now: Instant,
        from: &NodeId,
        record: Arc<VerifiedRecord>,
        status: MemberStatus,
    ) {
        let node = record.record.node.clone();
        let incarnation = record.record.incarnation;
        let gone = status != MemberStatus::Suspect;
        let Some(member) = self.members.get(&node) else {
            let foreign = record.record.cluster != self.own.record.cluster;
            if gone && !foreign && incarnation <= MAX_INCARNATION {
                let standing = Standing::dead(from.clone());
                self.on_stranger(now, record, Source::Member(from), standing);
                return;
            }
            self.on_record(now, record, Source::Member(from));
            self.doubt_at(now, &node, incarnation, from, gone);
            return;
        };
        if gone && !member.is_live() {
            // Gone on both sides: nothing to doubt, but the newer record makes the better grave.
            let newer = incarnation > member.incarnation()
                && self.is_acceptable(&record, Source::Member(from));
            if newer {
                self.members.replace_record(&node, record);
            }
            return;
        }
        self.on_record(now, record, Source::Member(from));
        self.doubt_at(now, &node, incarnation, from, gone);
    }

    /// Doubts a member that lives here with exactly this incarnation.
    fn doubt_at(
        &mut self,
        now: Instant,
        node: &NodeId,
        incarnation: u64,
        by: &NodeId,
        condemned: bool,
    ) {
        let Some(member) = self.members.get(node) else {
            return;
        };
        if member.incarnation() != incarnation {
            return;
        }
        if matches!(member.standing, Standing::Alive) {
            self.suspect(now, node, by.clone(), true);
        }
        // A model without own probes asks first too, or one stale member would kill in a sync.
        if condemned && self.config.rules.own_probe {
            self.condemn(now, node, by);
        }
    }

    /// A record of this node that somebody else has.
    fn on_record_about_us(&mut self, now: Instant, claim: &Record, source: Source<'_>) {
        if *claim == self.own.record {
            return;
        }
        if claim.incarnation < self.own.record.incarnation {
            self.spread_own_again(now);
            return;
        }
        if claim.incarnation > self.own.record.incarnation.saturating_add(MAX_RECORD_STEP) {
            self.counters.implausible += 1;
            return;
        }
        if self.desired.incarnation > claim.incarnation {
            return;
        }
        if claim.boot != self.own.record.boot {
            if !self.may_answer_rival(now, claim) {
                return;
            }
            // Our datagrams carry a boot id that the other side does not accept yet.
            if let Source::Member(from) = source {
                self.sync_after_signing = Some(from.clone());
            }
        }
        self.refute(claim.incarnation);
    }

    /// Counts how often another life of ours goes above us; a trace of the past does so once or
    /// twice, a process that lives does it each time.
    fn may_answer_rival(&mut self, now: Instant, claim: &Record) -> bool {
        let rival = match &mut self.rival {
            Some(rival) if rival.boot == claim.boot => rival,
            other => other.insert(Rival {
                boot: claim.boot,
                outbids: 0,
                answer_at: now,
            }),
        };
        if rival.outbids >= OUTBIDS_OF_A_RIVAL && now < rival.answer_at {
            return false;
        }
        rival.outbids = rival.outbids.saturating_add(1);
        rival.answer_at = now + RIVAL_PAUSE;
        if rival.outbids == OUTBIDS_OF_A_RIVAL {
            self.events.push_back(Event::NameConflict {
                node: self.id.clone(),
                boot: claim.boot,
                addr: claim.quic_addr,
            });
        }
        true
    }

    fn on_left_ourselves(&mut self, now: Instant) {
        self.members.set_standing(&self.id, Standing::Left, now);
        self.timers.cancel(&Timer::Probe);
        self.timers.cancel(&Timer::Sync);
        let seqs: Vec<u32> = self.probes.own.keys().copied().collect();
        for seq in seqs {
            self.end_probe(seq);
            self.counters.probes_abandoned += 1;
        }
        if !self.config.rules.leave_burst {
            return;
        }
        let encoded = message::encode_record(&self.own.signed);
        let targets = self
            .members
            .choose(LEAVE_FANOUT, &mut self.rng, |_, member| member.is_live());
        for node in targets {
            let Some(member) = self.members.get(&node) else {
                continue;
            };
            let destination = member.record.record.gossip_addr;
            self.counters.sent.count(&Body::Gossip);
            self.transmits.push_back(Transmit {
                to: node,
                destination,
                payload: encoded.clone(),
            });
        }
    }

    // ---- news

    fn spread_own(&mut self, now: Instant) {
        let own = Arc::clone(&self.own);
        self.spread_record(now, &own);
    }

    /// Spreads our record once more for somebody who has an older one, unless it is on its way.
    fn spread_own_again(&mut self, now: Instant) {
        if !self.queue.contains(&self.id, Kind::Record) {
            self.spread_own(now);
        }
    }

    fn spread_record(&mut self, now: Instant, record: &VerifiedRecord) {
        let node = record.record.node.clone();
        let record = News::Record(record.signed.clone());
        self.spread(now, node, Kind::Record, record);
    }

    fn spread_statement(&mut self, now: Instant, node: &NodeId, statement: &Statement) {
        let encoded = News::Encoded(message::encode_statement(statement).into());
        self.spread(now, node.clone(), Kind::Statement, encoded);
    }

    fn spread(&mut self, now: Instant, node: NodeId, kind: Kind, news: News) {
        if news.len() > self.config.max_payload_bytes {
            self.counters.oversized_news += 1;
            self.queue.remove(&node, kind);
            return;
        }
        if self.queue.push(node, kind, news) {
            self.counters.dropped_news += 1;
        }
        if !self.timers.is_set(&Timer::Gossip) {
            let wait = self
                .rng
                .between(Duration::ZERO, self.config.gossip_interval);
            self.timers.set(Timer::Gossip, now + wait);
        }
    }

    fn has_news(&self) -> bool {
        !self.queue.is_empty() || !self.user_events.is_empty()
    }

    fn on_gossip_turn(&mut self, now: Instant) {
        if !self.has_news() {
            return;
        }
        let to_dead = self.config.gossip_to_dead;
        let targets =
            self.members.choose(
                self.config.gossip_nodes,
                &mut self.rng,
                |_, member| match member.standing {
                    Standing::Alive | Standing::Suspect(_) => true,
                    Standing::Dead { .. } => now.saturating_duration_since(member.since) < to_dead,
                    Standing::Left => false,
                },
            );
        // Alone, there is nobody to wait for; the first member that joins starts this again.
        if targets.is_empty() {
            return;
        }
        for node in targets {
            let Some(member) = self.members.get(&node) else {
                continue;
            };
            let destination = member.record.record.gossip_addr;
            let bursts = if self.config.rules.bursts {
                MAX_BURST
            } else {
                1
            };
            for burst in 0..bursts {
                let has_unsent = self.queue.has_unsent() || self.user_events.has_unsent();
                if !self.has_news() || (burst > 0 && !has_unsent) {
                    break;
                }
                self.send(&node, destination, &Body::Gossip);
            }
        }
        if self.has_news() {
            self.timers
                .set(Timer::Gossip, now + self.config.gossip_interval);
        }
    }

    /// Sends an act, with what is said of the receiver if it is doubted (Lifeguard, Buddy), and as
    /// much news as fits.
    fn send(&mut self, to: &NodeId, destination: SocketAddr, body: &Body) {
        let mut payload = Vec::new();
        message::encode_body(body, &mut payload);
        if let Some(statement) = self.statement_about(to).filter(|_| self.config.rules.buddy) {
            let statement = message::encode_statement(&statement);
            let room = self.config.max_payload_bytes.saturating_sub(payload.len());
            // Two that doubt each other: a large record of ours that refutes would never fit beside
            // the doubt. It goes a few times, and then the doubt goes again.
            let own = self.queue.size_of(&self.id, Kind::Record);
            let crowds_out = |own| own <= room && own + statement.len() > room;
            if !own.is_some_and(crowds_out) {
                payload.extend(statement);
            }
        }
        let max_transmits = self.config.retransmits(self.members.live());
        let max_bytes = self.config.max_payload_bytes;
        self.user_events
            .fill_around(&mut payload, max_bytes, max_transmits, |payload| {
                self.queue.fill(payload, max_bytes, max_transmits);
            });
        self.counters.sent.count(body);
        self.transmits.push_back(Transmit {
            to: to.clone(),
            destination,
            payload,
        });
    }

    fn statement_about(&self, node: &NodeId) -> Option<Statement> {
        let member = self.members.get(node)?;
        let accusation = |accuser: &NodeId| Accusation {
            node: node.clone(),
            incarnation: member.incarnation(),
            accuser: accuser.clone(),
        };
        match &member.standing {
            Standing::Alive => None,
            Standing::Suspect(suspicion) => {
                Some(Statement::Suspect(accusation(suspicion.accuser())))
            }
            Standing::Dead { by } => Some(Statement::Dead(accusation(by))),
            Standing::Left => member.forced().cloned().map(Statement::ForcedLeave),
        }
    }

    // ---- time

    fn on_timer(&mut self, now: Instant, timer: Timer) {
        match timer {
            Timer::ProbeEnd(seq) => self.on_probe_failed(now, seq),
            Timer::ProbeDirect(seq) => self.ask_others(seq),
            Timer::RelayNack(seq) => {
                if let Some(relay) = self.probes.relays.get(&seq) {
                    let (to, addr) = (relay.requester.clone(), relay.requester_addr);
                    let seq = relay.seq;
                    self.send(&to, addr, &Body::Nack { seq });
                }
            }
            Timer::RelayEnd(seq) => {
                self.end_relay(seq);
            }
            // Who has left judges nobody any more.
            Timer::Suspicion(_) | Timer::Check(_) | Timer::Probe | Timer::Sync
                if self.own.record.left => {}
            Timer::Suspicion(node) => self.on_suspicion_over(now, node),
            Timer::Check(node) => self.on_check(now, node),
            Timer::Probe => self.on_probe_turn(now),
            Timer::Sign => {
                if !self.signing && self.desired != self.own.record {
                    self.want_above(self.own.record.incarnation);
                }
            }
            Timer::Gossip => self.on_gossip_turn(now),
            Timer::Sync => self.on_sync_turn(now),
            Timer::Reap(node) => self.on_reap(now, node),
            Timer::Unretire(node) => {
                self.retired.remove(&node);
            }
        }
    }

    /// Starts the syncs with the first member there is to sync with.
    fn wake_sync(&mut self, now: Instant) {
        if !self.own.record.left && !self.timers.is_set(&Timer::Sync) {
            let wait = self.rng.between(self.sync_pause / 2, self.sync_pause);
            self.timers.set(Timer::Sync, now + wait);
        }
    }

    fn on_sync_turn(&mut self, now: Instant) {
        let partner = self
            .members
            .choose(1, &mut self.rng, |_, member| {
                matches!(member.standing, Standing::Alive)
            })
            .pop();
        let Some(with) = partner else {
            // Alone; whoever comes up wakes this.
            if self.config.rules.early_syncs {
                self.sync_pause = self.config.probe_interval;
            }
            return;
        };
        let every = self.config.sync_every(self.members.live());
        self.timers.set(Timer::Sync, now + self.sync_pause);
        self.sync_pause = (self.sync_pause * 2).min(every);
        self.actions.push_back(Action::Sync { with });
    }

    /// This process stood still for `late`: what it did not hear in that time proves nothing.
    fn on_late(&mut self, now: Instant, late: Duration) {
        self.counters.late_timeouts += 1;
        self.awareness.worsen(1);
        log::debug!(target: "swim", late:? = late; "this process stood still");
        let seqs: Vec<u32> = self.probes.own.keys().copied().collect();
        for seq in seqs {
            if let Some(probe) = self.end_probe(seq) {
                self.counters.probes_abandoned += 1;
                // A suspect still needs its own probe.
                if probe.purpose == Purpose::Check {
                    let soon = self.rng.between(Duration::ZERO, self.config.probe_interval);
                    self.timers.set(Timer::Check(probe.target), now + soon);
                }
            }
        }
        let suspects: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, member)| matches!(member.standing, Standing::Suspect(_)))
            .map(|(node, _)| node.clone())
            .collect();
        for node in suspects {
            let Some(member) = self.members.get_mut(&node) else {
                continue;
            };
            let Standing::Suspect(suspicion) = &mut member.standing else {
                continue;
            };
            suspicion.extend(late);
            let deadline = suspicion.deadline().max(now);
            self.timers.set(Timer::Suspicion(node), deadline);
        }
    }
}

fn evidence_of(member: &Member) -> Evidence {
    Evidence {
        last_answer: member.answered(),
        doubts: member.doubts().collect(),
    }
}

fn view(member: &Member) -> MemberView<'_> {
    MemberView {
        record: &member.record,
        status: member.status(),
        since: member.since,
    }
}

#[cfg(test)]
mod tests;
