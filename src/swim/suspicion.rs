//! One suspicion: how long the accused has left. (Lifeguard, LHA-Suspicion.)
//!
//! An accusation by one member may be the accuser's own fault, so it waits long. Each further
//! member that fails to reach the accused shortens the wait, the first ones most:
//!
//! `timeout(c) = max − (max − min) · ln(c + 1) / ln(k + 1)`, never below `min`,
//!
//! where `k` confirmations are enough. The first accuser never counts, everyone else once.
//!
//! Two things go beyond the paper. A suspicion knows whether this node's own latest probe of the
//! accused failed, since nobody is declared dead on hearsay. And when another member says that it
//! has waited the time out (it declares the accused dead), the wait here shrinks to `min`.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::node_id::NodeId;

/// A suspicion that runs.
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    accuser: NodeId,
    start: Instant,
    min: Duration,
    max: Duration,
    wanted: usize,
    /// At most `wanted`.
    confirmers: BTreeSet<NodeId>,
    condemned: bool,
    /// Whether this node's own latest probe since `start` went unanswered.
    pub(super) own_probe_failed: bool,
}

impl Suspicion {
    /// A suspicion raised by `accuser` that ends after `min` once `wanted` others confirm it.
    pub(super) fn new(
        accuser: NodeId,
        start: Instant,
        min: Duration,
        max: Duration,
        wanted: usize,
    ) -> Self {
        Self {
            accuser,
            start,
            min,
            max,
            wanted,
            confirmers: BTreeSet::new(),
            condemned: false,
            own_probe_failed: false,
        }
    }

    /// Who spoke first.
    pub(super) fn accuser(&self) -> &NodeId {
        &self.accuser
    }

    /// When the accused is dead unless it refutes.
    pub(super) fn deadline(&self) -> Instant {
        let timeout = if self.condemned {
            self.min
        } else {
            timeout(self.confirmers.len(), self.wanted, self.min, self.max)
        };
        self.start + timeout
    }

    /// When to look at the accused again after a probe that failed: once the shortest wait is over,
    /// and then once in each such time.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        let first = self.start + self.min;
        if now < first { first } else { now + self.min }
    }

    /// Counts a confirmation; false when it tells nothing new.
    pub(super) fn confirm(&mut self, by: &NodeId) -> bool {
        *by != self.accuser
            && self.confirmers.len() < self.wanted
            && self.confirmers.insert(by.clone())
    }

    /// Another member declares the accused dead; false when one did before.
    pub(super) fn condemn(&mut self) -> bool {
        !std::mem::replace(&mut self.condemned, true)
    }

    /// Grants the accused time during which this node could not have heard it.
    pub(super) fn extend(&mut self, by: Duration) {
        self.start += by;
    }
}

/// How long a suspicion lasts in all, after `confirmations` of `wanted`.
fn timeout(confirmations: usize, wanted: usize, min: Duration, max: Duration) -> Duration {
    if wanted == 0 {
        return min;
    }
    let fraction = (confirmations as f64 + 1.0).ln() / (wanted as f64 + 1.0).ln();
    let seconds = max.as_secs_f64() - fraction * (max.as_secs_f64() - min.as_secs_f64());
    // Whole milliseconds, as memberlist counts; a negative number becomes 0, then `min`.
    Duration::from_millis((seconds * 1_000.0) as u64).max(min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    fn confirmations_shorten_the_wait_as_in_memberlist() {
        let (min, max) = (Duration::from_secs(2), Duration::from_secs(30));
        // Confirmations, elapsed seconds, what remains in milliseconds.
        let table = [
            (0, 0, 30_000),
            (1, 2, 14_000),
            (2, 3, 4_810),
            (3, 4, -2_000),
            (4, 5, -3_000),
            (5, 10, -8_000),
        ];
        for (confirmations, elapsed, remaining) in table {
            let whole = i64::try_from(timeout(confirmations, 3, min, max).as_millis()).unwrap();
            assert_eq!(
                whole - elapsed * 1_000,
                remaining,
                "{confirmations} confirmations"
            );
        }
    }

    #[test]
    fn the_lan_profile_with_ten_members_waits_24_then_11_then_4_seconds() {
        let (min, max) = (Duration::from_secs(4), Duration::from_secs(24));
        let waits: Vec<u128> = (0..3)
            .map(|c| timeout(c, 2, min, max).as_millis())
            .collect();
        assert_eq!(waits, [24_000, 11_381, 4_000]);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn the_first_accuser_never_counts_and_everyone_else_once() {
        let now = Instant::now();
        let (min, max) = (Duration::from_secs(4), Duration::from_secs(24));
        let mut suspicion = Suspicion::new(id("a"), now, min, max, 2);
        assert!(!suspicion.confirm(&id("a")));
        assert!(suspicion.confirm(&id("b")));
        assert!(!suspicion.confirm(&id("b")));
        assert!(suspicion.deadline() > now + min);
        assert!(suspicion.confirm(&id("c")));
        assert_eq!(suspicion.deadline(), now + min);
        assert!(!suspicion.confirm(&id("d")), "two are enough");
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn without_possible_confirmers_the_wait_is_the_shortest() {
        let now = Instant::now();
        let (min, max) = (Duration::from_secs(4), Duration::from_secs(24));
        let suspicion = Suspicion::new(id("a"), now, min, max, 0);
        assert_eq!(suspicion.deadline(), now + min);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn a_declared_death_leaves_the_shortest_wait() {
        let now = Instant::now();
        let (min, max) = (Duration::from_secs(4), Duration::from_secs(24));
        let mut suspicion = Suspicion::new(id("a"), now, min, max, 2);
        assert!(suspicion.condemn());
        assert!(!suspicion.condemn());
        assert_eq!(suspicion.deadline(), now + min);
    }
}
