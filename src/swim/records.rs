//! Records: what members say of themselves, and what this node says of itself.
//!
//! A record is signed by the member it is about, so whatever arrives is that member's own word; the
//! question is only which of its words holds. The higher incarnation does. An older record changes
//! nothing, and one of the same incarnation with other content is a contradiction that only its
//! author can end, above both. A record of a stranger makes a member of it; whether it starts alive
//! or as a tombstone by hearsay depends on what the teller believes.
//!
//! **Lives.** The boot id tells a restart from the same process. The life that a newer one has
//! superseded never comes back; if it seems to, two processes share the name, and that is told
//! once. What a handshake with the member itself has proven weighs more than what others tell.
//!
//! **Plausibility.** Incarnations are numbers that the others can say too: an unsigned accusation is
//! refuted only a little above our own, a signed record is believed only so far above the one that
//! is stored, and nothing beyond a limit far below the end of the numbers, so that there is always
//! room to refute.
//!
//! **Ourselves.** A trace of an earlier life, or another content of ours at our incarnation, is
//! outbid by a record that is signed above it. A second process with our name outbids in return;
//! it is told of after a few rounds, and answered no more often than now and then.
//!
//! **Addresses.** Members are kept by name, so a new name at an old address overwrites nothing. Who
//! was there before has probably gone, and is asked at once; if it answers, both live and one of
//! them gives a wrong address, which is told.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    node_id::{BootId, NodeId},
    record::{Record, VerifiedRecord},
    stats::MemberStatus,
};

use super::{
    Accusation, Action, Event, Statement, Swim, Transmit,
    explain::Ending,
    members::{Member, Standing},
    message::{self, Body},
    probing::REFUTATION_MEMORY,
    timer::Timer,
};

/// No record beyond this incarnation is believed; there must always be room above to refute.
pub(super) const MAX_INCARNATION: u64 = 1 << 62;

/// How far a signed record may be ahead of the one that is stored: more than a clock in
/// milliseconds would be, and far too little to reach [`MAX_INCARNATION`] by accident.
pub(super) const MAX_RECORD_STEP: u64 = 1 << 48;

/// How far ahead of our own incarnation an unsigned accusation may be and still be refuted. A
/// member refutes once per accusation, so honest ones are ahead by little (an earlier life of
/// ours); a liar would need 2^42 datagrams to use the numbers up.
const MAX_STATEMENT_STEP: u64 = 1 << 20;

/// How many members hear of a leave at once, in the datagram that this node sends before it goes.
const LEAVE_FANOUT: usize = 32;

/// After so many exchanges of ever higher incarnations with the same other life of this node, that
/// life is no trace of the past but a second process with our name.
pub(super) const OUTBIDS_OF_A_RIVAL: u32 = 3;

/// How often a rival is answered; both would otherwise flood the cluster with records.
const RIVAL_PAUSE: Duration = Duration::from_secs(10);

/// Where a record comes from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
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
pub(super) struct Rival {
    boot: BootId,
    outbids: u32,
    answer_at: Instant,
}

impl Swim {
    /// Somebody doubts us at `incarnation`.
    pub(super) fn on_accused(&mut self, now: Instant, incarnation: u64) {
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
    pub(super) fn want_above(&mut self, incarnation: u64) {
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

    pub(super) fn on_record(
        &mut self,
        now: Instant,
        record: Arc<VerifiedRecord>,
        source: Source<'_>,
    ) {
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
                // Or after a partition longer than tombstones, two that forgot each other would
                // stay strangers for as long as they remember that they did.
                if matches!(standing, Standing::Alive) && !record.record.left {
                    let addr = record.record.quic_addr;
                    self.actions.push_back(Action::Dial { node, addr });
                }
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
        member.rare_mut().contested_by = Some(by.clone());
        self.ask_soon(now, &holder);
    }

    /// A member answered; if another claims its address, both live.
    pub(super) fn settle(&mut self, node: &NodeId) {
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
        let same = Arc::ptr_eq(record, &member.record) || record.record == member.record.record;
        if record.record.incarnation < member.incarnation() {
            self.counters.stale += 1;
        } else if !same {
            self.counters.conflicting_records += 1;
        }
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
        let accuser = match &member.standing {
            Standing::Suspect(suspicion) => suspicion.blamed().cloned(),
            Standing::Alive | Standing::Dead { .. } | Standing::Left => None,
        };
        let stored = &member.record.record;
        let boot_changed = stored.boot != claim.boot;
        let addr_changed =
            stored.quic_addr != claim.quic_addr || stored.gossip_addr != claim.gossip_addr;
        let changed = Record {
            incarnation: claim.incarnation,
            ..stored.clone()
        } != *claim;
        let is_proven = source.is_owner();
        let was_proven = member.is_proven();
        let gossip_addr = claim.gossip_addr;
        if boot_changed {
            // After two restarts at once, what others still tell of the life before must not end
            // the one whose handshake was seen here. Nor does a farewell: the life that says it may
            // have been followed by the one that is stored, and arrive late.
            let superseded = stored.boot;
            let outlives = (is_proven || !member.is_proven()) && !claim.left;
            let past = member.past_mut();
            if outlives {
                past.superseded = Some(superseded);
                past.superseded_for_certain = is_proven;
            }
            past.conflict_told = false;
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
        let was_doubted = matches!(before, MemberStatus::Suspect | MemberStatus::Dead);
        if was_doubted && !hearsay && !boot_changed && !claim.left {
            let memory = self.config.probe_interval * REFUTATION_MEMORY;
            member.note_refutation(now, memory);
            if let Some(accuser) = accuser.and_then(|accuser| self.members.get_mut(&accuser)) {
                accuser.note_false_alarm(now, memory);
            }
        }
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
        if boot_changed {
            self.user_events.on_came(&node);
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
        if boot_changed && was_proven && !is_proven && !claim.left {
            // Of the life that was met, nothing was heard but this. If it lives, its connection is
            // still there, and a sync tells it to go above what may be a record of its past.
            self.actions.push_back(Action::Sync { with: node.clone() });
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
        // Its own word weighs more than what was heard: which of two lives is the later one,
        // handshakes know and incarnations do not.
        let is_certain = member
            .past()
            .is_some_and(|past| past.superseded_for_certain);
        let is_vindicated = source.is_owner() && !is_certain;
        if outlived && !is_vindicated {
            self.counters.conflicting_records += 1;
            if !std::mem::replace(&mut member.past_mut().conflict_told, true) {
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
    pub(super) fn on_back(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        member.hearsay = false;
        // What was said of it while nobody here had asked it must not wait for its death.
        member.drop_forced();
        let record = Arc::clone(&member.record);
        self.forget_doubts(node);
        self.timers.cancel(&Timer::Reap(node.clone()));
        self.members.set_standing(node, Standing::Alive, now);
        self.spread_record(now, &record);
        log::debug!(target: "swim", node:% = node; "member is up");
        self.tell_up(now, node.clone());
    }

    /// A record of a member that the other side of a sync believes to be suspect or gone.
    pub(super) fn on_doubt_in_sync(
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
                // That was about the record before.
                if let Some(member) = self.members.get_mut(&node) {
                    member.drop_forced();
                }
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
            if member.is_fresh(now, self.config.probe_interval) {
                self.counters.vetoes += 1;
                let accusation = Accusation {
                    node: node.clone(),
                    incarnation,
                    accuser: by.clone(),
                };
                self.tell_accused(now, node, &Statement::Suspect(accusation));
                return;
            }
            self.suspect(now, node, by.clone(), true);
            // It may only repeat what others said, and what they said is told and refuted elsewhere.
            if let Some(member) = self.members.get_mut(node)
                && let Standing::Suspect(suspicion) = &mut member.standing
            {
                suspicion.blame_nobody();
            }
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
        // However far ahead: it carries our own signature, and to refuse it would keep a life of ours
        // that begins at 1 below it for ever. MAX_INCARNATION was checked before.
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

    pub(super) fn on_left_ourselves(&mut self, now: Instant) {
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
}
