//! One suspicion: how long the accused has left. (Lifeguard, LHA-Suspicion.)
//!
//! An accusation by one member may be the accuser's own fault, so it waits long. Each further
//! member that fails to reach the accused shortens the wait, the first ones most:
//!
//! `timeout(c) = max − (max − min) · ln(c + 1) / ln(k + 1)`, never below `min`,
//!
//! where `k` confirmations are enough. The first accuser never counts, everyone else once.
//!
//! Three things go beyond the paper. A suspicion knows whether this node's own latest probe of the
//! accused failed, since nobody is declared dead on hearsay. When another member says that it has
//! waited the time out (it declares the accused dead), the wait here shrinks to `min`. And when the
//! accused's own ports say that nobody is there, this node's own probe failed and as many members
//! as can be wished for have confirmed it by theirs, the wait shrinks to a floor below `min`; where
//! nobody can confirm, a second failed probe of this node stands in for the others.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::node_id::NodeId;

/// How long a suspicion may last, by what becomes known in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    /// Enough have confirmed it.
    pub(super) min: Duration,
    /// Nobody has.
    pub(super) max: Duration,
    /// Enough have, and the accused's ports refuse.
    pub(super) floor: Duration,
    /// How many are enough.
    pub(super) wanted: usize,
}

/// A suspicion that runs.
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    accuser: NodeId,
    /// The accuser may only have repeated what others said.
    is_hearsay: bool,
    start: Instant,
    min: Duration,
    max: Duration,
    wanted: usize,
    floor: Duration,
    /// At most `wanted`.
    confirmers: BTreeSet<NodeId>,
    condemned: bool,
    refused: bool,
    /// This node's own probes since `start` that went unanswered, up to the last that was answered.
    failed_probes: u32,
}

/// How many failed probes of this node's own bring down a wait that nobody can confirm.
const PROBES_WITHOUT_CONFIRMERS: u32 = 2;

impl Suspicion {
    /// A suspicion raised by `accuser` that ends after `min` once `wanted` others confirm it, or
    /// after `floor` if the accused's ports refuse besides.
    pub(super) fn new(accuser: NodeId, start: Instant, waits: Waits) -> Self {
        let Waits {
            min,
            max,
            floor,
            wanted,
        } = waits;
        Self {
            accuser,
            is_hearsay: false,
            start,
            min,
            max,
            wanted,
            floor,
            confirmers: BTreeSet::new(),
            condemned: false,
            refused: false,
            failed_probes: 0,
        }
    }

    /// Who spoke first.
    pub(super) fn accuser(&self) -> &NodeId {
        &self.accuser
    }

    /// The accuser only told what it believes, which need not be what it saw.
    pub(super) fn blame_nobody(&mut self) {
        self.is_hearsay = true;
    }

    /// Who was wrong if the accused refutes.
    pub(super) fn blamed(&self) -> Option<&NodeId> {
        (!self.is_hearsay).then_some(&self.accuser)
    }

    /// When the accused is dead unless it refutes.
    pub(super) fn deadline(&self) -> Instant {
        let timeout = if self.is_fast() {
            self.floor
        } else if self.condemned {
            self.min
        } else {
            timeout(self.confirmers.len(), self.wanted, self.min, self.max)
        };
        self.start + timeout
    }

    /// Whether everything is known that brings the wait down to the floor.
    pub(super) fn is_fast(&self) -> bool {
        self.refused
            && if self.wanted == 0 {
                self.failed_probes >= PROBES_WITHOUT_CONFIRMERS
            } else {
                self.failed_probes > 0 && self.confirmers.len() >= self.wanted
            }
    }

    /// Whether one more failed probe of this node's own would bring the wait down to the floor.
    pub(super) fn wants_second_probe(&self) -> bool {
        self.refused && self.wanted == 0 && self.failed_probes == 1
    }

    /// Whether this node's own latest probe since the start went unanswered.
    pub(super) fn own_probe_failed(&self) -> bool {
        self.failed_probes > 0
    }

    /// This node's own probe went unanswered.
    pub(super) fn probe_failed(&mut self) {
        self.failed_probes = self.failed_probes.saturating_add(1);
    }

    /// The accused answered this node.
    pub(super) fn answered(&mut self) {
        self.failed_probes = 0;
        self.refused = false;
    }

    /// What the accused's ports said is long ago.
    pub(super) fn forget_refusal(&mut self) {
        self.refused = false;
    }

    /// The accused's ports say that nobody is there.
    pub(super) fn refuse(&mut self) {
        self.refused = true;
    }

    /// When to look at the accused again after a probe that failed: once the shortest wait is over,
    /// and then once in each such time. If its ports refuse, the shortest wait is the floor: by then
    /// most members know it to be dead, and whoever has heard too few of them asks.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        let shortest = if self.refused { self.floor } else { self.min };
        let first = self.start + shortest;
        if now < first { first } else { now + shortest }
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

    /// Gives the accused back what fell into it of the time `late`, up to `now`, in which this node
    /// could not have heard it. A suspicion that began since has lost nothing.
    pub(super) fn give_back(&mut self, now: Instant, late: Duration) {
        self.start += late.min(now.saturating_duration_since(self.start));
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
    use crate::swim::Config;

    const MIN: Duration = Duration::from_secs(4);

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn waits(wanted: usize) -> Waits {
        Waits {
            min: MIN,
            max: Duration::from_secs(24),
            floor: Duration::from_secs(1),
            wanted,
        }
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
    fn the_profiles_wait_as_long_as_memberlist_with_each_confirmation() {
        // Members, then seconds with 0, 1 and 2 confirmations under `lan`.
        let table = [
            (10, [24.0, 11.4, 4.0]),
            (50, [40.8, 19.3, 6.8]),
            (100, [48.0, 22.8, 8.0]),
            (1_000, [72.0, 34.1, 12.0]),
            (10_000, [96.0, 45.5, 16.0]),
        ];
        let wait = |config: &Config, n, confirmations| {
            let (min, max) = (config.suspicion_min(n), config.suspicion_max(n));
            let wanted = config.confirmations(n);
            timeout(confirmations, wanted, min, max).as_secs_f64()
        };
        let lan = Config::lan();
        for (n, waits) in table {
            for (confirmations, seconds) in waits.into_iter().enumerate() {
                let found = wait(&lan, n, confirmations);
                assert!((found - seconds).abs() < 0.06, "{n}: {found}");
            }
        }
        let wan = Config::wan();
        assert_eq!((wait(&wan, 100, 0), wait(&wan, 100, 4)), (360.0, 60.0));
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn the_first_accuser_never_counts_and_everyone_else_once() {
        let now = Instant::now();
        let min = MIN;
        let mut suspicion = Suspicion::new(id("a"), now, waits(2));
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
        let min = MIN;
        let suspicion = Suspicion::new(id("a"), now, waits(0));
        assert_eq!(suspicion.deadline(), now + min);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn a_declared_death_leaves_the_shortest_wait() {
        let now = Instant::now();
        let min = MIN;
        let mut suspicion = Suspicion::new(id("a"), now, waits(2));
        assert!(suspicion.condemn());
        assert!(!suspicion.condemn());
        assert_eq!(suspicion.deadline(), now + min);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn the_floor_takes_a_refusal_and_an_own_probe_and_everybodys_confirmation() {
        let now = Instant::now();
        let floor = now + Duration::from_secs(1);
        let mut suspicion = Suspicion::new(id("a"), now, waits(2));
        suspicion.confirm(&id("b"));
        suspicion.confirm(&id("c"));
        suspicion.probe_failed();
        assert_eq!(suspicion.deadline(), now + MIN, "nobody was refused");
        suspicion.refuse();
        assert_eq!(suspicion.deadline(), floor);
        suspicion.answered();
        assert_eq!(suspicion.deadline(), now + MIN);
        suspicion.refuse();
        assert_eq!(suspicion.deadline(), now + MIN, "no probe failed since");

        let mut suspicion = Suspicion::new(id("a"), now, waits(2));
        suspicion.refuse();
        suspicion.probe_failed();
        suspicion.probe_failed();
        suspicion.condemn();
        suspicion.confirm(&id("b"));
        assert_eq!(
            suspicion.deadline(),
            now + MIN,
            "one confirmation is missing"
        );
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn where_nobody_can_confirm_the_floor_takes_two_probes() {
        let now = Instant::now();
        let mut suspicion = Suspicion::new(id("a"), now, waits(0));
        suspicion.refuse();
        suspicion.probe_failed();
        assert_eq!(suspicion.deadline(), now + MIN);
        assert!(suspicion.wants_second_probe());
        suspicion.probe_failed();
        assert_eq!(suspicion.deadline(), now + Duration::from_secs(1));
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn time_lost_before_a_suspicion_began_does_not_lengthen_it() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let waits = Waits {
            min: 4 * second,
            max: 24 * second,
            floor: second,
            wanted: 2,
        };
        let mut suspicion = Suspicion::new(id("a"), start, waits);
        let deadline = suspicion.deadline();
        suspicion.give_back(start, 3_600 * second);
        assert_eq!(suspicion.deadline(), deadline);
        suspicion.give_back(start + 5 * second, 3_600 * second);
        assert_eq!(suspicion.deadline(), deadline + 5 * second);
        suspicion.give_back(start + 9 * second, second);
        assert_eq!(suspicion.deadline(), deadline + 6 * second);
    }
}
