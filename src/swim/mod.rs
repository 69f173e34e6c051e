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
//! accuses it too if that fails. Who waits longer than the shortest suspicion looks and accuses
//! again, and whoever knows the suspect to be dead answers that. Each such confirmation shortens the
//! wait, from `S_max` down to `S_min` (`suspicion`). A confirmation counts only when the accuser's
//! own authenticated datagram brings it: a relayed one can raise a suspicion, but does not count, so
//! that one member cannot speak with many voices. Whose accusations were refuted lately raises none by
//! gossip, and only makes those who hear of it ask.
//!
//! **Death.** A member is dead when its time is up *and* this node's own latest probe of it failed.
//! "Dead" from somebody else, who has waited the time out already, shortens the wait to `S_min` and
//! does nothing more: no verdict is ever taken over, so a member that one node cannot reach is not
//! dead for those who can, and one liar cannot kill anybody who answers.
//!
//! **Evidence.** What a member's connection shows is told from outside. An answer of its reactor,
//! stamped within the last interval, is worth a probe that succeeded: it ends the probe that asked
//! before it, and while it is fresh nobody else's accusation begins a suspicion here (the accused is
//! told, so that it can refute) and no foreign "dead" shortens one. The pings by datagram go on
//! regardless, since gossip needs their path. A doubt (refused, lost, stalled, unanswered) outdates
//! the answers before it and starts a probe out of turn that asks directly, through others and over
//! the connection at once, unless this node hears nobody at all and is the one in trouble itself. In a
//! large cluster, where everybody sees the same, only a few of all ask, by lot, unless the ports refuse.
//! A doubt proves nothing: whoever forges one has made a node ask, once an interval. Only *refused*,
//! the word of the host that nobody is there, does more (`verdict`).
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
//! on, or tombstones would circulate for ever. Who was forgotten comes back above its last
//! incarnation, or by a handshake: should others still call it alive, it is dialled.
//!
//! **Lateness.** When a timer fires much too late, this process stood still: answers lie unread in
//! the socket. Then running probes end without a verdict and every suspicion gets the time back.
//!
//! The parts: `probing` asks, `verdict` judges, `records` takes what members say of themselves; how
//! long a crash takes to be known is worked out in `verdict`.

mod awareness;
mod config;
mod dissemination;
mod explain;
mod index;
mod members;
mod message;
mod probe;
mod probing;
mod records;
mod suspicion;
mod timer;
mod user_events;
mod verdict;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    figures::Durations,
    node_id::{BootId, NodeId},
    outputs,
    record::{MAX_TAG_BYTES, Record, VerifiedRecord, tag_bytes},
    rng::Rng,
    stats::MemberStatus,
};

use self::{
    awareness::Awareness,
    dissemination::{Kind, News, Queue},
    explain::Cases,
    members::{Member, Members, Standing},
    probe::{Probes, Way},
    records::{Rival, Source},
    timer::{Timer, Timers},
    user_events::UserEvents,
    verdict::evidence_of,
};

pub use config::{Config, Rules};
pub use explain::{
    Accused, Case, Doubt, Ending, Evidence, Explanation, MAX_CASE_ACCUSATIONS, MAX_CASE_PROBES,
    ProbeReport, Verdict,
};
pub use message::{
    Accusation, Body, DecodeError, ForcedLeave, MAX_EVENTS, MAX_MESSAGE_BYTES, MAX_RECORDS,
    MAX_STATEMENTS, Message, Statement,
};
pub use user_events::{
    EmitError, EventClock, EventDecodeError, MAX_EVENT_BYTES, MAX_EVENT_NAME_BYTES,
    MAX_FILTER_BYTES, MAX_OWN_PENDING, MAX_QUERY_TIMEOUT, MAX_SIGNED_EVENT_BYTES, Query,
    QueryFilter, SignedEvent, UserEvent, VerifiedEvent, is_event_name,
};

/// An act and a statement with the longest names always fit this much.
const MIN_PAYLOAD_BYTES: usize = 512;

/// Datagrams to one member in one round of gossip while there is news that was never sent: enough
/// for a crowd that joins at once, and little beside what else is on the network.
const MAX_BURST: usize = 4;

/// How many members ask at once, on average, when all of them see the connection to one in doubt: as
/// many as can confirm each other.
const DOUBT_ASKERS: usize = 3;

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
    /// A member that was forgotten here is alive for others. Dial it: its own handshake is what
    /// brings it back.
    Dial {
        /// The former member.
        node: NodeId,
        /// Where its record says that it accepts connections.
        addr: SocketAddr,
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
    /// How long probes took that the target, a helper or the connection answered.
    pub probe_times: Durations,
    /// Probes that ended without a verdict, because this process stood still or the target left.
    pub probes_abandoned: u64,
    /// Doubts that connections raised about live members.
    pub doubts: u64,
    /// Of those, the ones that were put down to this node's own deafness.
    pub doubts_while_deaf: u64,
    /// Of those, the ones that this node, one of many that saw the same, did not follow up itself.
    pub doubts_left_to_others: u64,
    /// Foreign claims of suspicion or death that an answer over the connection outweighed.
    pub vetoes: u64,
    /// Accusations that began no suspicion, since too many of the same accuser were refuted lately; the
    /// accused was asked at once instead.
    pub disbelieved: u64,
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
    /// Incarnations too far ahead to be true, and forced leaves of members that live.
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
    /// The last turn in which gossip was sent.
    gossiped: Option<Instant>,
    /// The time to the next sync but one. A node that has just joined may have missed those that
    /// join with it, so it syncs soon, then ever more rarely.
    sync_pause: Duration,
    /// Whom the last sync went to: the next goes elsewhere, so that one other member that missed
    /// the same news cannot be all that this node asks.
    synced_with: Option<NodeId>,
    rival: Option<Rival>,
    members: Members,
    /// Forgotten members and their last incarnation; at most `max_members`.
    retired: BTreeMap<NodeId, u64>,
    probes: Probes,
    cases: Cases,
    /// When anybody was heard last, by datagram or over a connection.
    heard: Option<Instant>,
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
            gossiped: None,
            synced_with: None,
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
            heard: None,
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
        self.heard = Some(now);
        // Who is dead here has to refute before it may accuse others.
        let credible = sender.is_live();
        // Answers go where the sender's own record says, wherever the question came from: whoever
        // holds a gossip key could otherwise have them sent to strangers.
        let reply_to = sender.record.record.gossip_addr;
        self.counters.foreign_addrs += u64::from(from_addr != reply_to);
        let mut gone = BTreeMap::new();
        for statement in &message.statements {
            match statement {
                Statement::Suspect(accusation) | Statement::Dead(accusation) => {
                    let lacks = self.on_accusation(now, from, statement, accusation, credible);
                    if let Some(lacks) = lacks {
                        let most = gone.entry(&accusation.node).or_insert(lacks);
                        *most = lacks.max(*most);
                    }
                }
                // Comes by handle_forced_leave, once the caller has verified it.
                Statement::ForcedLeave(_) => {}
            }
        }
        self.tell_accuser(now, from, &gone);
        self.on_body(now, from, reply_to, message.body);
    }

    /// Takes a peer's own record, learnt over an authenticated connection to it. This is the only
    /// way back for a member that was forgotten.
    pub fn handle_record(&mut self, now: Instant, record: Arc<VerifiedRecord>) {
        self.heard = Some(now);
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
    /// dead here, at its death if it is suspected at that incarnation, and never on a member that is
    /// alive: nothing that was said of the living waits for their death. A sync brings it again.
    ///
    /// Who is dead by hearsay alone is asked first, and forced out when it does not answer: one that
    /// says both of a stranger could otherwise retire somebody who lives.
    pub fn handle_forced_leave(&mut self, now: Instant, forced: ForcedLeave) {
        if !self.wants_forced_leave(&forced) {
            return;
        }
        if forced.node == self.id {
            self.on_accused(now, forced.incarnation);
            return;
        }
        let Some(member) = self.members.get_mut(&forced.node) else {
            return;
        };
        let node = forced.node.clone();
        let (dead, hearsay) = (!member.is_live(), member.hearsay);
        member.rare_mut().forced = Some(forced);
        if dead && hearsay && self.config.rules.own_probe {
            let soon = self.rng.between(Duration::ZERO, self.config.probe_interval);
            self.check_by(now + soon, &node);
        } else if dead {
            self.force_out(now, &node);
        }
    }

    /// Whether a forced leave that came by gossip would change anything if its signature is good.
    /// Costs no more than a look-up, and counts what it refuses.
    pub fn wants_forced_leave(&mut self, forced: &ForcedLeave) -> bool {
        if forced.node == self.id {
            return true;
        }
        let Some(member) = self.members.get(&forced.node) else {
            self.counters.unknown_members += 1;
            return false;
        };
        if member.incarnation() != forced.incarnation {
            self.counters.stale += 1;
            return false;
        }
        match member.standing {
            Standing::Left => false,
            Standing::Alive => {
                self.counters.implausible += 1;
                false
            }
            // The first of several that say the same holds.
            Standing::Suspect(_) | Standing::Dead { .. } => member.forced().is_none(),
        }
    }

    /// Whether a forced leave in a sync may change anything after the entry it comes with: one of a
    /// member that is unknown or alive here may, since the entry can make it dead or suspect.
    pub fn may_want_forced_leave(&self, forced: &ForcedLeave) -> bool {
        self.members.get(&forced.node).is_none_or(|member| {
            let is_over = matches!(member.standing, Standing::Left) || member.forced().is_some();
            member.incarnation() < forced.incarnation
                || (member.incarnation() == forced.incarnation && !is_over)
        })
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
        // At once if nothing was told of late; whoever accuses without a pause is refuted at the
        // pace of gossip.
        let turn = self
            .gossiped
            .map_or(now, |at| (at + self.config.gossip_interval).max(now));
        let turn = if self.own.record.left { now } else { turn };
        self.timers.set(Timer::Gossip, turn);
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
        self.heard = Some(now);
        if self.probes.way(seq, node) == Some(Way::Direct) {
            self.counters.probes_connection += 1;
            self.time_probe(now, seq);
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
        self.heard = Some(now);
        // Nothing that was said in the future can be told now.
        let at = at.min(now);
        member.note_answer(at);
        if !member.is_live() || !member.is_fresh(now, self.config.probe_interval) {
            return;
        }
        if let Standing::Suspect(suspicion) = &mut member.standing {
            if suspicion.own_probe_failed() {
                self.on_vindicated(now, node);
            } else {
                suspicion.answered();
            }
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
            let before = suspicion.deadline();
            suspicion.refuse();
            // Said again to no effect, it must not hasten the next look.
            let deadline = suspicion.deadline();
            suspicion_over = (deadline != before).then(|| deadline.max(now));
        }
        // When everybody is silent it is this node that hears nothing, and to ask everybody at once
        // would tell the cluster that all its members are doubtful. The turns go on.
        let is_deaf = self
            .heard
            .is_none_or(|at| now.saturating_duration_since(at) > self.config.probe_interval);
        if is_deaf && doubt != Doubt::Refused && self.members.live() > 2 {
            self.counters.doubts_while_deaf += 1;
            return;
        }
        // All that are connected to a slow member see the same. If all asked, it would be asked the more
        // often the larger the cluster is, and one answer that is lost makes everybody suspect it. Of
        // ports that refuse there is nothing to be lost.
        let others = self.members.live().saturating_sub(1);
        if doubt != Doubt::Refused
            && others > DOUBT_ASKERS
            && self.rng.index(others) >= DOUBT_ASKERS
        {
            self.counters.doubts_left_to_others += 1;
            return;
        }
        let Some(member) = self.members.get(node) else {
            return;
        };
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

    /// Has our record signed anew, above its incarnation, as after a change of tags.
    pub fn renew_record(&mut self) {
        self.want_above(self.own.record.incarnation);
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

    /// Takes all news for told. A simulation that begins with members who know each other calls
    /// this; in a real cluster somebody would miss it until the next sync.
    pub fn forget_news(&mut self) {
        self.queue.clear();
    }

    // ---- outputs

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        outputs::pop(&mut self.transmits)
    }

    /// The next change to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        outputs::pop(&mut self.events)
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        outputs::pop(&mut self.actions)
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
        let dead_at = match &member.standing {
            Standing::Suspect(suspicion) if suspicion.own_probe_failed() => {
                Some(suspicion.deadline())
            }
            Standing::Suspect(_) | Standing::Alive | Standing::Dead { .. } | Standing::Left => None,
        };
        Some(Explanation {
            node: node.clone(),
            status: member.status(),
            since: member.since,
            incarnation: member.incarnation(),
            evidence: evidence_of(member),
            health_score: self.awareness.score(),
            dead_at,
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

    // ---- forgetting

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
        self.user_events.on_came(&node);
        self.events.push_back(Event::Up { node });
        self.wake_sync(now);
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

    fn spread_record(&mut self, now: Instant, record: &Arc<VerifiedRecord>) {
        let node = record.record.node.clone();
        let record = News::Record(Arc::clone(record));
        self.spread(now, node, Kind::Record, record);
    }

    fn spread_statement(&mut self, now: Instant, node: &NodeId, statement: &Statement) {
        let encoded = News::Encoded(message::encode_statement(Some(&self.id), statement).into());
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
        if self.members.live() <= 1 {
            self.forget_waiting_events();
        }
        if !self.has_news() {
            return;
        }
        self.gossiped = Some(now);
        let to_dead = self.config.gossip_to_dead;
        let targets =
            self.members.choose(
                self.config.gossip_nodes,
                &mut self.rng,
                |_, member| match member.standing {
                    // Where ports refuse nobody listens, and no news would ever be told.
                    _ if member.is_refused() => false,
                    Standing::Alive | Standing::Suspect(_) => true,
                    Standing::Dead { .. } => now.saturating_duration_since(member.since) < to_dead,
                    Standing::Left => false,
                },
            );
        // Alone, there is nobody to wait for; the first member that joins starts this again.
        if targets.is_empty() && self.members.live() <= 1 {
            return;
        }
        // Or none was found among many tombstones: the next turn draws again.
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

    /// Sends an act, with what is said of the receiver if it is doubted (Lifeguard, Buddy), and, unless
    /// its ports refuse, as much news as fits.
    fn send(&mut self, to: &NodeId, destination: SocketAddr, body: &Body) {
        let mut payload = Vec::new();
        message::encode_body(body, &mut payload);
        if let Some(statement) = self.statement_about(to).filter(|_| self.config.rules.buddy) {
            let statement = message::encode_statement(Some(&self.id), &statement);
            let room = self.config.max_payload_bytes.saturating_sub(payload.len());
            // Two that doubt each other: a large record of ours that refutes would never fit beside
            // the doubt. It goes a few times, and then the doubt goes again.
            let own = self.queue.size_of(&self.id, Kind::Record);
            let crowds_out = |own| own <= room && own + statement.len() > room;
            if !own.is_some_and(crowds_out) {
                payload.extend(statement);
            }
        }
        // What is sent to ports that refuse nobody reads, so it is not counted as told there.
        if !self.members.get(to).is_some_and(Member::is_refused) {
            let max_transmits = self.config.retransmits(self.members.live());
            let max_bytes = self.config.max_payload_bytes;
            self.user_events
                .fill_around(&mut payload, max_bytes, max_transmits, |payload| {
                    self.queue.fill(payload, max_bytes, max_transmits);
                });
        }
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
        let is_alive = |member: &Member| matches!(member.standing, Standing::Alive);
        let last = self.synced_with.take();
        let another = self
            .members
            .choose(1, &mut self.rng, |node, member| {
                is_alive(member) && last.as_ref() != Some(node)
            })
            .pop();
        let again = || last.filter(|node| self.members.get(node).is_some_and(is_alive));
        let Some(with) = another.or_else(again) else {
            if self.members.live() > 1 {
                // None was drawn among many tombstones.
                self.timers
                    .set(Timer::Sync, now + self.config.probe_interval);
                return;
            }
            // Alone; whoever comes up wakes this.
            if self.config.rules.early_syncs {
                self.sync_pause = self.config.probe_interval;
            }
            return;
        };
        let every = self.config.sync_every(self.members.live());
        self.timers.set(Timer::Sync, now + self.sync_pause);
        self.sync_pause = (self.sync_pause * 2).min(every);
        if self.config.rules.alternate_syncs {
            self.synced_with = Some(with.clone());
        }
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
                // A suspect still needs its own probe, and one in doubt too; for others it does nothing.
                let soon = self.rng.between(Duration::ZERO, self.config.probe_interval);
                self.timers.set(Timer::Check(probe.target), now + soon);
            }
        }
        // Nor does what ports said before it: the process may have been started again since. If it
        // was not, the next ping over the connection says so.
        let concerns = |member: &Member| {
            member.is_refused() || matches!(member.standing, Standing::Suspect(_))
        };
        let concerned: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, member)| concerns(member))
            .map(|(node, _)| node.clone())
            .collect();
        for node in concerned {
            let Some(member) = self.members.get_mut(&node) else {
                continue;
            };
            member.forget_refusal();
            let Standing::Suspect(suspicion) = &mut member.standing else {
                continue;
            };
            suspicion.give_back(now, late);
            suspicion.forget_refusal();
            let deadline = suspicion.deadline().max(now);
            self.timers.set(Timer::Suspicion(node), deadline);
        }
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
