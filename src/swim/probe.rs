//! Probes in flight: our own, and those we make on behalf of others.
//!
//! A probe is answered by its target, through a helper that was asked, or over the connection;
//! answers from anybody else, to an unknown number, or after the end are not answers. A helper that
//! hears nothing within 80 % of the probe time-out says so (a nack): whoever sends one is well, so
//! the silence is not our own network's fault (Lifeguard, LHA-Probe).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Instant,
};

use crate::node_id::NodeId;

/// Probes out of turn at the same time. A failure of half a large cluster is looked at in batches
/// of this size, so that it does not become a flood.
pub(super) const MAX_CHECKS: usize = 64;

/// Probes made for others at the same time. Beyond that a request is answered with a nack at once.
pub(super) const MAX_RELAYS: usize = 256;

/// Why a member is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It was next.
    Turn,
    /// Others doubt it, or it is said to be back.
    Check,
}

/// A probe of our own.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) target: NodeId,
    /// A verdict only concerns the incarnation that was probed.
    pub(super) incarnation: u64,
    pub(super) purpose: Purpose,
    pub(super) started: Instant,
    /// When it has failed unless it was answered.
    pub(super) end: Instant,
    /// Whether others, and the connection, were asked too.
    pub(super) asked_others: bool,
    pub(super) helpers: BTreeSet<NodeId>,
    pub(super) nacks: BTreeSet<NodeId>,
}

/// A probe for somebody else.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) target: NodeId,
    pub(super) requester: NodeId,
    pub(super) requester_addr: SocketAddr,
    /// The requester's number for it.
    pub(super) seq: u32,
}

/// How an answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Indirect,
}

#[derive(Debug)]
pub(super) struct Probes {
    pub(super) own: BTreeMap<u32, Probe>,
    pub(super) relays: BTreeMap<u32, Relay>,
    next_seq: u32,
}

impl Probes {
    pub(super) fn new(first_seq: u32) -> Self {
        Self {
            own: BTreeMap::new(),
            relays: BTreeMap::new(),
            next_seq: first_seq,
        }
    }

    /// A number that is in nobody's use.
    pub(super) fn seq(&mut self) -> u32 {
        loop {
            self.next_seq = self.next_seq.wrapping_add(1);
            let seq = self.next_seq;
            if !self.own.contains_key(&seq) && !self.relays.contains_key(&seq) {
                return seq;
            }
        }
    }

    pub(super) fn is_probing(&self, node: &NodeId) -> bool {
        self.own.values().any(|probe| probe.target == *node)
    }

    pub(super) fn count(&self, purpose: Purpose) -> usize {
        self.own
            .values()
            .filter(|probe| probe.purpose == purpose)
            .count()
    }

    /// Which way `from`'s answer to probe `seq` came, if it is an answer.
    pub(super) fn way(&self, seq: u32, from: &NodeId) -> Option<Way> {
        let probe = self.own.get(&seq)?;
        if probe.target == *from {
            Some(Way::Direct)
        } else {
            probe.helpers.contains(from).then_some(Way::Indirect)
        }
    }

    /// Takes `from`'s word that it hears nothing; each helper's once.
    pub(super) fn nack(&mut self, seq: u32, from: &NodeId) -> bool {
        self.own
            .get_mut(&seq)
            .is_some_and(|p| p.helpers.contains(from) && p.nacks.insert(from.clone()))
    }

    /// The number of the probe of a member; there is one at most.
    pub(super) fn of(&self, node: &NodeId) -> Option<u32> {
        let mut own = self.own.iter();
        own.find(|(_, p)| p.target == *node).map(|(seq, _)| *seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn only_the_target_and_the_helpers_that_were_asked_can_answer() {
        let mut probes = Probes::new(u32::MAX - 1);
        let seq = probes.seq();
        let probe = Probe {
            target: id("t"),
            incarnation: 1,
            purpose: Purpose::Turn,
            started: Instant::now(),
            end: Instant::now(),
            asked_others: true,
            helpers: BTreeSet::from([id("h")]),
            nacks: BTreeSet::new(),
        };
        probes.own.insert(seq, probe);
        assert_eq!(probes.way(seq, &id("t")), Some(Way::Direct));
        assert_eq!(probes.way(seq, &id("h")), Some(Way::Indirect));
        assert_eq!(probes.way(seq, &id("x")), None);
        assert_eq!(probes.way(seq.wrapping_add(1), &id("t")), None);
        assert!(probes.nack(seq, &id("h")));
        assert!(!probes.nack(seq, &id("h")), "a second nack counts twice");
        assert!(!probes.nack(seq, &id("t")));
        assert_eq!(probes.seq(), 0, "numbers wrap");
    }
}
