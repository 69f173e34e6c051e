//! The member table, and the order in which members are probed.
//!
//! The order is a shuffled list that is walked from end to end and then shuffled again (SWIM §4.3),
//! so that every member is probed at least once in any two passes. A member that joins takes a
//! random place in it, so that newcomers are not all probed by everybody at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use crate::{
    node_id::{BootId, NodeId},
    record::VerifiedRecord,
    rng::Rng,
    stats::MemberStatus,
};

use super::{message::ForcedLeave, suspicion::Suspicion};

/// Up to this many members all are looked at to choose a few; above, random ones are drawn.
const SMALL_TABLE: usize = 64;

/// What this node believes of a member, with what belongs to the belief.
#[derive(Debug)]
pub(super) enum Standing {
    Alive,
    Suspect(Suspicion),
    Dead { by: NodeId },
    Left,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) record: Arc<VerifiedRecord>,
    pub(super) standing: Standing,
    /// When the standing was taken.
    pub(super) since: Instant,
    /// It was gone when this node first heard of it. Such a tombstone is not passed on: if it were,
    /// members would teach each other the same dead for ever.
    pub(super) hearsay: bool,
    /// A person forced it out; acts once it is dead here.
    pub(super) forced: Option<ForcedLeave>,
    /// The life that its own handshake with this node proved last.
    pub(super) proven: Option<BootId>,
    /// The life before this one. It never comes back: if it seems to, two processes share a name.
    pub(super) superseded: Option<BootId>,
    pub(super) conflict_told: bool,
}

impl Member {
    pub(super) fn new(record: Arc<VerifiedRecord>, standing: Standing, since: Instant) -> Self {
        Self {
            record,
            standing,
            since,
            hearsay: false,
            forced: None,
            proven: None,
            superseded: None,
            conflict_told: false,
        }
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
}

/// All members, this node included.
#[derive(Debug, Default)]
pub(super) struct Members {
    table: BTreeMap<NodeId, Member>,
    /// Everyone but this node.
    order: Vec<NodeId>,
    next: usize,
    live: usize,
}

impl Members {
    pub(super) fn get(&self, node: &NodeId) -> Option<&Member> {
        self.table.get(node)
    }

    /// A member to change, except for its standing.
    pub(super) fn get_mut(&mut self, node: &NodeId) -> Option<&mut Member> {
        self.table.get_mut(node)
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// How many are alive or suspect, this node included.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        self.table.iter()
    }

    /// Adds this node, which is never probed.
    pub(super) fn insert_self(&mut self, member: Member) {
        self.live += usize::from(member.is_live());
        self.table.insert(member.record.record.node.clone(), member);
    }

    /// Adds a member that is not in the table.
    pub(super) fn insert(&mut self, member: Member, rng: &mut Rng) {
        let node = member.record.record.node.clone();
        self.live += usize::from(member.is_live());
        self.order.push(node.clone());
        let last = self.order.len() - 1;
        self.order.swap(last, rng.index(last + 1));
        self.table.insert(node, member);
    }

    pub(super) fn set_standing(&mut self, node: &NodeId, standing: Standing, now: Instant) {
        let Some(member) = self.table.get_mut(node) else {
            return;
        };
        let was_live = member.is_live();
        member.standing = standing;
        member.since = now;
        self.live = self.live + usize::from(member.is_live()) - usize::from(was_live);
    }

    pub(super) fn remove(&mut self, node: &NodeId) {
        let Some(member) = self.table.remove(node) else {
            return;
        };
        self.live -= usize::from(member.is_live());
        if let Some(place) = self.order.iter().position(|other| other == node) {
            self.order.remove(place);
            self.next -= usize::from(place < self.next);
        }
    }

    /// The next member to probe among those that `eligible` lets through, if there is one.
    pub(super) fn next_to_probe(
        &mut self,
        rng: &mut Rng,
        eligible: impl Fn(&NodeId, &Member) -> bool,
    ) -> Option<NodeId> {
        for _ in 0..self.order.len() {
            if self.next >= self.order.len() {
                self.next = 0;
                rng.shuffle(&mut self.order);
            }
            let node = &self.order[self.next];
            self.next += 1;
            if self
                .table
                .get(node)
                .is_some_and(|member| eligible(node, member))
            {
                return Some(node.clone());
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
        let fits = |node: &NodeId| self.table.get(node).is_some_and(|m| eligible(node, m));
        if self.order.len() > SMALL_TABLE {
            let mut chosen = BTreeSet::new();
            for _ in 0..count.saturating_mul(8) {
                let node = &self.order[rng.index(self.order.len())];
                if chosen.len() < count && fits(node) {
                    chosen.insert(node.clone());
                }
            }
            if chosen.len() == count {
                return chosen.into_iter().collect();
            }
        }
        // Few members, or few that are eligible: luck would miss some, so look at all.
        let mut chosen: Vec<NodeId> = self.order.iter().filter(|n| fits(n)).cloned().collect();
        rng.shuffle(&mut chosen);
        chosen.truncate(count);
        chosen
    }
}
