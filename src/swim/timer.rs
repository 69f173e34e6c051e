//! The timers of the core: what is due, in an order that is the same in every run.
//!
//! A timer is known by what it is for, so that each runs once at most: setting it again moves it. Two
//! indexes hold all of them, one by purpose, to move and cancel, one by time, whose first entry is when
//! the reactor must look again. What is due is taken one after the other, and what one of them starts may
//! be due at once; equal times go by the order of the list below, and then by name or number, never by
//! chance, so that a seed is the same run every time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use crate::node_id::NodeId;

/// What becomes due. Of two timers due at the same instant the first in this list fires first: a
/// probe ends before the next one begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The probe with this number has failed unless it was answered.
    ProbeEnd(u32),
    /// The direct probe with this number took too long; ask others.
    ProbeDirect(u32),
    /// Tell the member we probe for that there is no answer yet.
    RelayNack(u32),
    /// Stop waiting on behalf of another member.
    RelayEnd(u32),
    /// The suspected member has had its time.
    Suspicion(NodeId),
    /// Probe a member out of turn, to see for ourselves.
    Check(NodeId),
    /// Probe the next member.
    Probe,
    /// Ask again for a signature that failed.
    Sign,
    /// Send news.
    Gossip,
    /// Exchange everything with one member.
    Sync,
    /// Forget a dead or left member.
    Reap(NodeId),
    /// Forget that a member was forgotten.
    Unretire(NodeId),
}

/// All timers that run. Each member, probe and relay has a few at most, so their bounds bound it.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due_at: BTreeMap<Timer, Instant>,
    queue: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    /// Starts a timer, or moves it.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.cancel(&timer);
        self.due_at.insert(timer.clone(), at);
        self.queue.insert((at, timer));
    }

    pub(super) fn cancel(&mut self, timer: &Timer) {
        if let Some((timer, at)) = self.due_at.remove_entry(timer) {
            self.queue.remove(&(at, timer));
        }
    }

    pub(super) fn is_set(&self, timer: &Timer) -> bool {
        self.due_at.contains_key(timer)
    }

    /// When a timer is due, if it runs.
    pub(super) fn due(&self, timer: &Timer) -> Option<Instant> {
        self.due_at.get(timer).copied()
    }

    /// When the next timer is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes out the first timer that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        let (_, timer) = self.queue.pop_first()?;
        self.due_at.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn timers_fire_in_order_and_only_once_and_a_moved_one_at_its_last_place() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut timers = Timers::default();
        timers.set(Timer::Probe, now);
        timers.set(Timer::ProbeEnd(9), now);
        timers.set(Timer::Gossip, now);
        timers.set(Timer::Gossip, later);
        timers.set(Timer::Sync, now);
        timers.cancel(&Timer::Sync);
        assert_eq!(timers.pop_due(now), Some(Timer::ProbeEnd(9)));
        assert_eq!(timers.pop_due(now), Some(Timer::Probe));
        assert_eq!(timers.pop_due(now), None);
        assert_eq!(timers.next(), Some(later));
        assert_eq!(timers.pop_due(later), Some(Timer::Gossip));
        assert_eq!(timers.next(), None);
    }
}
