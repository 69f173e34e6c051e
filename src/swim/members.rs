//! The member table, and the order in which members are probed.
//!
//! Members stand in a list of slots, which an index of their ids leads to; everything else names a
//! member by its slot. What few members have (a suspicion, a forced leave, doubts, refuted suspicions and
//! accusations, an earlier life) is boxed, so
//! that an ordinary one takes about a hundred bytes in all: a table of ten thousand is a megabyte
//! or little more.
//!
//! The order is a shuffled list that is walked from end to end and then shuffled again (SWIM §4.3),
//! so that every member is probed at least once in any two passes. A member that joins takes a
//! random place in it, so that newcomers are not all probed by everybody at once. Whoever looks for
//! members of some kind looks at a bounded number of places, whatever the size of the table.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    node_id::{BootId, NodeId},
    record::VerifiedRecord,
    rng::Rng,
    stats::MemberStatus,
};

use super::{
    Doubt,
    index::{self, Index},
    message::ForcedLeave,
    suspicion::Suspicion,
};

/// Up to this many members all are looked at to choose a few; above, random ones are drawn.
const SMALL_TABLE: usize = 64;

/// How many places of the order one search looks at before it gives up until the next time. Far
/// more than are needed while a few members in a hundred fit; below that a search takes a while
/// longer, and no turn costs more than this.
const MAX_LOOKS: usize = 1_024;

/// What this node believes of a member, with what belongs to the belief.
#[derive(Debug)]
pub(super) enum Standing {
    Alive,
    Suspect(Box<Suspicion>),
    Dead { by: Box<NodeId> },
    Left,
}

impl Standing {
    pub(super) fn dead(by: NodeId) -> Self {
        Self::Dead { by: Box::new(by) }
    }
}

/// What few members have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// A person forced it out; acts once it is dead here.
    pub(super) forced: Option<ForcedLeave>,
    /// When its connection raised each kind of doubt last.
    doubts: [Option<Instant>; Doubt::ALL.len()],
    /// When a doubt made this node ask at once last.
    pub(super) hastened: Option<Instant>,
    /// When it was told last of an accusation that nobody believes here.
    pub(super) told: Option<Instant>,
    /// When it was told last that whom it doubts is gone.
    pub(super) answered_doubts: Option<Instant>,
    /// Another member says that it lives at this one's address.
    pub(super) contested_by: Option<NodeId>,
    /// Something makes it doubtful that no answer has settled.
    pub(super) unsettled: bool,
    /// Its ports said that nobody is there, and no answer has said otherwise.
    pub(super) refused: bool,
    patience: Patience,
    /// Suspicions that it raised here and the accused refuted.
    false_alarms: Lately,
}

/// What those have that started again: many at once, so this is small.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The life before this one. It never comes back: if it seems to, two processes share a name.
    pub(super) superseded: Option<BootId>,
    /// The handshake of the life after it was seen here.
    pub(super) superseded_for_certain: bool,
    pub(super) conflict_told: bool,
    /// The life that its own handshake proved last, where that is not the one of the record.
    proven_before: Option<BootId>,
}

/// How much doubt a member that proves suspicions wrong is worth. After `r` refutations that are not
/// forgotten, a suspicion begins here with the probe number `r + 1` in a row that it fails.
#[derive(Debug, Default)]
struct Patience {
    refutations: Lately,
    failed_in_row: u32,
}

/// What is remembered of things that a member did lately: a number that goes down by one with each
/// stretch of time in which nothing is added.
#[derive(Debug, Default)]
struct Lately {
    times: u32,
    last: Option<Instant>,
}

impl Lately {
    fn add(&mut self, now: Instant, memory: Duration, most: u32) {
        self.times = (self.times(now, memory) + 1).min(most);
        self.last = Some(now);
    }

    fn times(&self, now: Instant, memory: Duration) -> u32 {
        let Some(last) = self.last else {
            return 0;
        };
        let gone = now.saturating_duration_since(last).as_nanos() / memory.as_nanos().max(1);
        self.times
            .saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX))
    }
}

/// Refutations beyond this add no more probes: with 80 % of its datagrams lost a member answers four
/// probes of five, so that it fails five in a row once in an hour of them.
const MAX_REFUTATIONS: u32 = 4;

/// How many false alarms that are not forgotten make a member one who cries wolf. One can be anybody's:
/// the accused may have stood still just then.
const MAX_FALSE_ALARMS: u32 = 2;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) record: Arc<VerifiedRecord>,
    pub(super) standing: Standing,
    /// When the standing was taken.
    pub(super) since: Instant,
    /// When its reactor answered over the connection last, as far as known.
    answered: Option<Instant>,
    rare: Option<Box<Rare>>,
    past: Option<Box<Past>>,
    /// Its place in the order.
    place: u32,
    /// It was gone when this node first heard of it. Such a tombstone is not passed on: if it were,
    /// members would teach each other the same dead for ever.
    pub(super) hearsay: bool,
    /// Its own handshake proved the life of the record.
    is_proven: bool,
}

impl Member {
    pub(super) fn new(record: Arc<VerifiedRecord>, standing: Standing, since: Instant) -> Self {
        Self {
            record,
            standing,
            since,
            answered: None,
            rare: None,
            past: None,
            place: 0,
            hearsay: false,
            is_proven: false,
        }
    }

    fn node(&self) -> &NodeId {
        &self.record.record.node
    }

    fn addr(&self) -> SocketAddr {
        self.record.record.gossip_addr
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.record.record.incarnation
    }

    pub(super) fn status(&self) -> MemberStatus {
        match &self.standing {
            Standing::Alive => MemberStatus::Alive,
            Standing::Suspect(_) => MemberStatus::Suspect,
            Standing::Dead { .. } => MemberStatus::Dead,
            Standing::Left => MemberStatus::Left,
        }
    }

    /// Alive, or at least not yet given up.
    pub(super) fn is_live(&self) -> bool {
        match &self.standing {
            Standing::Alive | Standing::Suspect(_) => true,
            Standing::Dead { .. } | Standing::Left => false,
        }
    }

    pub(super) fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn past(&self) -> Option<&Past> {
        self.past.as_deref()
    }

    pub(super) fn past_mut(&mut self) -> &mut Past {
        self.past.get_or_insert_default()
    }

    pub(super) fn forced(&self) -> Option<&ForcedLeave> {
        self.rare()?.forced.as_ref()
    }

    pub(super) fn drop_forced(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.forced = None;
        }
    }

    pub(super) fn take_contested(&mut self) -> Option<NodeId> {
        self.rare.as_mut()?.contested_by.take()
    }

    pub(super) fn superseded(&self) -> Option<BootId> {
        self.past()?.superseded
    }

    /// Whether the life of the record was proven by its own handshake with this node.
    pub(super) fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// The member's own handshake proved the life of its record.
    pub(super) fn prove(&mut self) {
        self.is_proven = true;
    }

    /// Takes a newer record. The proof stays with the life that it was given for.
    fn replace_record(&mut self, record: Arc<VerifiedRecord>) {
        let (old, new) = (self.record.record.boot, record.record.boot);
        if old != new {
            let was_proven = std::mem::replace(&mut self.is_proven, false);
            if was_proven {
                self.past_mut().proven_before = Some(old);
            } else {
                self.is_proven = self
                    .past()
                    .is_some_and(|past| past.proven_before == Some(new));
            }
        }
        self.record = record;
    }

    // ---- evidence

    /// When it answered over its connection last.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.answered
    }

    /// It refuted a suspicion. One refutation is forgotten with each `memory` that goes by without
    /// another.
    pub(super) fn note_refutation(&mut self, now: Instant, memory: Duration) {
        let patience = &mut self.rare_mut().patience;
        patience.refutations.add(now, memory, MAX_REFUTATIONS);
        patience.failed_in_row = 0;
    }

    /// It accused a member that was suspected for it and refuted that. One false alarm is forgotten
    /// with each `memory` that goes by without another.
    pub(super) fn note_false_alarm(&mut self, now: Instant, memory: Duration) {
        self.rare_mut()
            .false_alarms
            .add(now, memory, MAX_FALSE_ALARMS);
    }

    /// Whether so many of its accusations were refuted lately that another is no reason to suspect
    /// anybody.
    pub(super) fn cries_wolf(&self, now: Instant, memory: Duration) -> bool {
        self.rare()
            .is_some_and(|rare| rare.false_alarms.times(now, memory) >= MAX_FALSE_ALARMS)
    }

    /// It failed a probe. Whether that is not enough to suspect it, so that it is probed again.
    pub(super) fn has_another_try(&mut self, now: Instant, memory: Duration) -> bool {
        let refutations = self
            .rare()
            .map_or(0, |rare| rare.patience.refutations.times(now, memory));
        if refutations == 0 || self.is_refused() {
            return false;
        }
        let patience = &mut self.rare_mut().patience;
        patience.failed_in_row += 1;
        if patience.failed_in_row <= refutations {
            return true;
        }
        patience.failed_in_row = 0;
        false
    }

    /// Whether it failed a probe that was not enough to suspect it, and has answered none since.
    pub(super) fn is_on_trial(&self) -> bool {
        self.rare().is_some_and(|r| r.patience.failed_in_row > 0)
    }

    /// Its reactor answered at `at`; that settles the doubts before it.
    pub(super) fn note_answer(&mut self, at: Instant) {
        self.answered = self.answered.max(Some(at));
        if self.last_doubt().is_none_or(|doubt| doubt < at) {
            self.settle();
        }
    }

    pub(super) fn note_doubt(&mut self, doubt: Doubt, now: Instant) {
        let rare = self.rare_mut();
        rare.doubts[doubt as usize] = Some(now);
        rare.unsettled = true;
        rare.refused |= doubt == Doubt::Refused;
    }

    /// It showed that it is there: what its connection made doubtful is answered.
    pub(super) fn settle(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.unsettled = false;
            rare.refused = false;
            rare.patience.failed_in_row = 0;
        }
    }

    /// What its ports said is long ago.
    pub(super) fn forget_refusal(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.refused = false;
        }
    }

    /// Whether its ports said last that nobody is there.
    pub(super) fn is_refused(&self) -> bool {
        self.rare().is_some_and(|rare| rare.refused)
    }

    /// The last doubt of each kind that there was.
    pub(super) fn doubts(&self) -> impl Iterator<Item = (Doubt, Instant)> {
        let doubts = self.rare().map_or([None; Doubt::ALL.len()], |r| r.doubts);
        Doubt::ALL
            .into_iter()
            .zip(doubts)
            .filter_map(|(doubt, at)| Some((doubt, at?)))
    }

    fn last_doubt(&self) -> Option<Instant> {
        self.doubts().map(|(_, at)| at).max()
    }

    /// Whether it answered less than `within` ago, and no doubt came after that.
    pub(super) fn is_fresh(&self, now: Instant, within: Duration) -> bool {
        self.answered.is_some_and(|at| {
            now.saturating_duration_since(at) < within
                && self.last_doubt().is_none_or(|doubt| doubt < at)
        })
    }
}

/// All members, this node included.
#[derive(Debug, Default)]
pub(super) struct Members {
    slots: Vec<Option<Member>>,
    names: Index,
    addrs: Index,
    /// The slots in the order of their members' ids.
    sorted: Vec<u32>,
    free: Vec<u32>,
    /// The slots of everyone but this node.
    order: Vec<u32>,
    next: usize,
    live: usize,
    alive: usize,
}

impl Members {
    pub(super) fn get(&self, node: &NodeId) -> Option<&Member> {
        self.at(self.slot_of(node)?)
    }

    /// A member to change, except for its standing.
    pub(super) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Member> {
        let slot = self.slot_of(node)?;
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    fn slot_of(&self, node: &NodeId) -> Option<u32> {
        let mut found = self.names.candidates(name_hash(node));
        found.find(|slot| self.at(*slot).is_some_and(|m| m.node() == node))
    }

    /// Takes a newer record of a member.
    pub(super) fn replace_record(&mut self, node: &NodeId, record: Arc<VerifiedRecord>) {
        let Some(slot) = self.slot_of(node) else {
            return;
        };
        let Self { slots, addrs, .. } = self;
        let Some(Some(member)) = slots.get(slot as usize) else {
            return;
        };
        let (before, after) = (member.addr(), record.record.gossip_addr);
        let moves = before != after;
        if moves {
            addrs.remove(addr_hash(before), slot, addr_hash_in(slots));
        }
        if let Some(Some(member)) = slots.get_mut(slot as usize) {
            member.replace_record(record);
        }
        if moves {
            addrs.insert(addr_hash(after), slot, addr_hash_in(slots));
        }
    }

    /// A member other than `except` whose record names this gossip address, a live one if there is
    /// one.
    pub(super) fn at_addr(&self, addr: SocketAddr, except: &NodeId) -> Option<&NodeId> {
        let there = self.addrs.candidates(addr_hash(addr));
        there
            .filter_map(|slot| Some((slot, self.at(slot)?)))
            .filter(|(_, member)| member.addr() == addr && member.node() != except)
            .max_by_key(|(slot, member)| (member.is_live(), *slot))
            .map(|(_, member)| member.node())
    }

    fn at(&self, slot: u32) -> Option<&Member> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// How many are alive or suspect, this node included.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// How many are alive, this node included.
    pub(super) fn alive(&self) -> usize {
        self.alive
    }

    /// All members in the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        let members = self.sorted.iter().filter_map(|slot| self.at(*slot));
        members.map(|member| (member.node(), member))
    }

    /// Adds this node, which is never probed.
    pub(super) fn insert_self(&mut self, member: Member) {
        self.take_in(member);
    }

    /// Adds a member that is not in the table.
    pub(super) fn insert(&mut self, member: Member, rng: &mut Rng) {
        let slot = self.take_in(member);
        let last = self.order.len();
        let place = rng.index(last + 1);
        push(&mut self.order, slot);
        self.order.swap(place, last);
        self.set_place(place);
        self.set_place(last);
    }

    fn take_in(&mut self, member: Member) -> u32 {
        self.count(&member.standing, 1);
        let (name, addr) = (name_hash(member.node()), addr_hash(member.addr()));
        let place = self.place_of(member.node());
        let slot = self.free.pop().unwrap_or_else(|| {
            push(&mut self.slots, None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(member);
        let Self { slots, .. } = self;
        self.names.insert(name, slot, name_hash_in(slots));
        self.addrs.insert(addr, slot, addr_hash_in(slots));
        make_room(&mut self.sorted);
        self.sorted.insert(place, slot);
        slot
    }

    /// Where a member stands, or would stand, among all in the order of their ids.
    fn place_of(&self, node: &NodeId) -> usize {
        let is_before = |slot: &u32| self.at(*slot).is_some_and(|m| m.node() < node);
        self.sorted.partition_point(is_before)
    }

    /// Writes down in the member at a place of the order where it stands.
    fn set_place(&mut self, place: usize) {
        if let Some(slot) = self.order.get(place)
            && let Some(Some(member)) = self.slots.get_mut(*slot as usize)
        {
            member.place = place as u32;
        }
    }

    fn count(&mut self, standing: &Standing, change: isize) {
        let (live, alive) = match standing {
            Standing::Alive => (change, change),
            Standing::Suspect(_) => (change, 0),
            Standing::Dead { .. } | Standing::Left => (0, 0),
        };
        self.live = self.live.saturating_add_signed(live);
        self.alive = self.alive.saturating_add_signed(alive);
    }

    pub(super) fn set_standing(&mut self, node: &NodeId, standing: Standing, now: Instant) {
        self.count(&standing, 1);
        let Some(member) = self.get_mut(node) else {
            self.count(&standing, -1);
            return;
        };
        member.since = now;
        let before = std::mem::replace(&mut member.standing, standing);
        self.count(&before, -1);
    }

    pub(super) fn remove(&mut self, node: &NodeId) {
        let Some(slot) = self.slot_of(node) else {
            return;
        };
        let place = self.place_of(node);
        let Self { slots, .. } = self;
        let Some(Some(member)) = slots.get(slot as usize) else {
            return;
        };
        let (name, addr) = (name_hash(node), addr_hash(member.addr()));
        self.names.remove(name, slot, name_hash_in(slots));
        self.addrs.remove(addr, slot, addr_hash_in(slots));
        self.sorted.remove(place);
        let Some(member) = slots.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.free.push(slot);
        self.count(&member.standing, -1);
        let mut place = member.place as usize;
        if self.order.get(place) != Some(&slot) {
            return;
        }
        if place < self.next {
            // The gap moves to the border, so that whoever fills it is still due in this pass.
            self.next -= 1;
            self.order.swap(place, self.next);
            self.set_place(place);
            place = self.next;
        }
        self.order.swap_remove(place);
        self.set_place(place);
    }

    /// The next member to probe among those that `eligible` lets through, if there is one.
    pub(super) fn next_to_probe(
        &mut self,
        rng: &mut Rng,
        eligible: impl Fn(&NodeId, &Member) -> bool,
    ) -> Option<NodeId> {
        for _ in 0..self.order.len().min(MAX_LOOKS) {
            if self.next >= self.order.len() {
                self.next = 0;
                rng.shuffle(&mut self.order);
                (0..self.order.len()).for_each(|place| self.set_place(place));
            }
            let slot = self.order[self.next];
            self.next += 1;
            if let Some(member) = self.at(slot)
                && eligible(member.node(), member)
            {
                return Some(member.node().clone());
            }
        }
        None
    }

    /// Up to `count` different random members that `eligible` lets through.
    pub(super) fn choose(
        &self,
        count: usize,
        rng: &mut Rng,
        eligible: impl Fn(&NodeId, &Member) -> bool,
    ) -> Vec<NodeId> {
        let fitting = |slot: &u32| {
            let member = self.at(*slot)?;
            let node = member.node();
            eligible(node, member).then_some(node)
        };
        if self.order.len() > SMALL_TABLE {
            let mut chosen = BTreeSet::new();
            for _ in 0..count.saturating_mul(8) {
                let slot = &self.order[rng.index(self.order.len())];
                if chosen.len() < count {
                    chosen.extend(fitting(slot));
                }
            }
            if chosen.len() == count {
                return chosen.into_iter().cloned().collect();
            }
        }
        // Few members, or few that are eligible: luck would miss some. The order is random already,
        // so in a large table any stretch of it is a fair sample.
        let start = rng.index(self.order.len());
        let (before, after) = self.order.split_at(start);
        let looked_at = after.iter().chain(before).take(MAX_LOOKS);
        let mut chosen: Vec<&NodeId> = looked_at.filter_map(fitting).collect();
        rng.shuffle(&mut chosen);
        chosen.truncate(count);
        chosen.into_iter().cloned().collect()
    }
}

/// Makes room for one more without doubling, which would leave half of a large table empty.
fn make_room<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 8 + 8);
    }
}

fn push<T>(list: &mut Vec<T>, item: T) {
    make_room(list);
    list.push(item);
}

fn name_hash(node: &NodeId) -> u32 {
    index::hash(node.as_str().bytes())
}

fn addr_hash(addr: SocketAddr) -> u32 {
    let port = addr.port().to_be_bytes();
    match addr.ip() {
        IpAddr::V4(ip) => index::hash(ip.octets().into_iter().chain(port)),
        IpAddr::V6(ip) => index::hash(ip.octets().into_iter().chain(port)),
    }
}

/// What the indexes ask: the hash of the name of whoever has a slot.
fn name_hash_in(slots: &[Option<Member>]) -> impl Fn(u32) -> u32 {
    hash_in(slots, |member| name_hash(member.node()))
}

fn addr_hash_in(slots: &[Option<Member>]) -> impl Fn(u32) -> u32 {
    hash_in(slots, |member| addr_hash(member.addr()))
}

/// Nobody asks for an empty slot, for it is in no index.
fn hash_in(slots: &[Option<Member>], hash: impl Fn(&Member) -> u32) -> impl Fn(u32) -> u32 {
    move |slot| {
        slots
            .get(slot as usize)
            .and_then(Option::as_ref)
            .map_or(0, &hash)
    }
}

#[cfg(test)]
mod tests {

    use std::{collections::BTreeMap, mem::size_of};

    use super::*;
    use crate::record::{Record, SignedRecord};

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn member(name: &str, standing: Standing) -> Member {
        let addr = "127.0.0.1:9".parse().unwrap();
        let record = Record {
            cluster: "test".parse().unwrap(),
            node: id(name),
            incarnation: 1,
            boot: BootId([1; 16]),
            quic_addr: addr,
            gossip_addr: addr,
            tags: BTreeMap::new(),
            left: false,
            protocol: (1, 1),
            version: "0".into(),
            certificate: [0; 32],
        };
        let signed = SignedRecord {
            payload: Arc::from(Vec::new()),
            signature: Arc::from(Vec::new()),
        };
        Member::new(
            Arc::new(VerifiedRecord { record, signed }),
            standing,
            Instant::now(),
        )
    }

    fn table(names: impl Iterator<Item = String>, rng: &mut Rng) -> Members {
        let mut members = Members::default();
        members.insert_self(member("me", Standing::Alive));
        names.for_each(|name| members.insert(member(&name, Standing::Alive), rng));
        members
    }

    #[test]
    fn an_ordinary_member_takes_about_a_hundred_bytes() {
        let slot = size_of::<Option<Member>>();
        // Two indexes, whose cells are half empty at worst at 11,000 members, and two orders.
        let places = 2 * 2 * size_of::<u32>() + 2 * size_of::<u32>();
        assert!(slot + places <= 104, "{slot} + {places}");
    }

    #[test]
    fn every_member_is_probed_once_in_a_pass_though_others_are_removed() {
        let mut rng = Rng::new(3);
        for seed in 0..50 {
            let mut members = table((0..20).map(|i| format!("n{i}")), &mut rng);
            let mut seen = BTreeSet::new();
            for turn in 0..10 + seed % 5 {
                seen.insert(members.next_to_probe(&mut rng, |_, _| true).unwrap());
                if turn % 3 == 0 {
                    let gone = id(&format!("n{}", rng.index(20)));
                    members.remove(&gone);
                    seen.remove(&gone);
                }
            }
            let left = members.order.len() - seen.len();
            for _ in 0..left {
                let node = members.next_to_probe(&mut rng, |_, _| true).unwrap();
                assert!(seen.insert(node), "probed twice in a pass");
            }
            for (place, slot) in members.order.iter().enumerate() {
                assert_eq!(members.at(*slot).unwrap().place as usize, place);
            }
        }
    }

    #[test]
    fn counts_follow_the_standings_and_slots_are_used_again() {
        let mut rng = Rng::new(4);
        let mut members = table(["a", "b", "c"].map(str::to_owned).into_iter(), &mut rng);
        let now = members.get(&id("a")).unwrap().since;
        assert_eq!((members.live(), members.alive()), (4, 4));
        members.set_standing(&id("a"), Standing::dead(id("b")), now);
        members.set_standing(&id("x"), Standing::Left, now);
        assert_eq!((members.live(), members.alive(), members.len()), (3, 3, 4));
        members.remove(&id("a"));
        members.remove(&id("b"));
        assert_eq!((members.live(), members.alive(), members.len()), (2, 2, 2));
        members.insert(member("d", Standing::Left), &mut rng);
        assert_eq!(members.slots.len(), 4);
        assert_eq!((members.live(), members.alive(), members.len()), (2, 2, 3));
        let names: Vec<&str> = members.iter().map(|(node, _)| node.as_str()).collect();
        assert_eq!(names, ["c", "d", "me"]);
    }

    #[test]
    fn a_few_that_fit_are_found_in_a_large_table_as_in_a_small_one() {
        let mut rng = Rng::new(5);
        for size in [3, 60, 900] {
            let members = table((0..size).map(|i| format!("n{i}")), &mut rng);
            let wanted = [id("n0"), id("n1"), id("n2")];
            let fits = |node: &NodeId, _: &Member| wanted.contains(node);
            let mut chosen = members.choose(5, &mut rng, fits);
            chosen.sort();
            assert_eq!(chosen, wanted);
            assert_eq!(members.choose(2, &mut rng, fits).len(), 2);
        }
        let members = table(std::iter::empty(), &mut rng);
        assert!(members.choose(3, &mut rng, |_, _| true).is_empty());
    }

    #[test]
    fn who_is_at_an_address_is_found_until_it_moves_or_goes() {
        let mut rng = Rng::new(6);
        let mut members = table(std::iter::once("a".to_owned()), &mut rng);
        let addr = member("x", Standing::Left).record.record.gossip_addr;
        assert_eq!(members.at_addr(addr, &id("me")), Some(&id("a")));
        let mut moved = (*member("me", Standing::Alive).record).clone();
        moved.record.gossip_addr = "127.0.0.1:10".parse().unwrap();
        let elsewhere = moved.record.gossip_addr;
        members.replace_record(&id("me"), Arc::new(moved));
        assert_eq!(members.at_addr(addr, &id("a")), None);
        assert_eq!(members.at_addr(elsewhere, &id("a")), Some(&id("me")));
        members.insert(member("b", Standing::Left), &mut rng);
        let found = members.at_addr(addr, &id("me"));
        assert_eq!(found, Some(&id("a")), "the live one is preferred");
        members.remove(&id("a"));
        members.remove(&id("b"));
        assert_eq!(members.at_addr(addr, &id("me")), None);
        assert_eq!(members.at_addr(elsewhere, &id("a")), Some(&id("me")));
    }

    #[test]
    fn a_proof_stays_with_the_life_it_was_given_for() {
        let mut first = member("a", Standing::Alive);
        let record = |boot: u8| {
            let mut record = (*first.record).clone();
            record.record.boot = BootId([boot; 16]);
            Arc::new(record)
        };
        let (one, two, three) = (record(1), record(2), record(3));
        first.prove();
        first.replace_record(two);
        assert!(!first.is_proven());
        first.replace_record(three);
        assert!(!first.is_proven());
        first.replace_record(one);
        assert!(first.is_proven());
    }
}
