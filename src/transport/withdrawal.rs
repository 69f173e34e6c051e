//! Requests that their callers gave up before a reply came.
//!
//! One that still waits in the outbox is taken out and never sent. One that lies on a stream of its own
//! has the rest of that stream reset. Of any other the peer is told, by a control frame, which
//! overtakes what waits behind a full inbox: a request that no handler has begun is dropped there, and
//! the reply of one that was begun is not sent. To tell is a courtesy that costs a few bytes, so it is
//! left out where control frames pile up already. A reply that comes all the same finds nobody, and is
//! dropped and counted.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Range,
};

/// With this code the stream of a request is reset whose caller gave up.
pub(super) const WITHDRAWN: u64 = 2;

/// Withdrawals that are kept until the request they are about is read. As many as a peer has in flight
/// by default; most concern one that was answered meanwhile and never comes.
const MAX_EARLY: usize = 1_024;

/// How far a request had got when its caller gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Withdrawal {
    /// Nothing of it had left, and nothing will.
    Unsent,
    /// It may have been carried out; the peer is told.
    UnderWay,
}

/// The requests that wait on one stream, in order, so that one can be taken out.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The id of each and its bytes, headers included.
    units: VecDeque<(u64, usize)>,
    /// Bytes of the first that QUIC has taken.
    begun: usize,
}

impl Line {
    pub(super) fn push(&mut self, id: u64, bytes: usize) {
        self.units.push_back((id, bytes));
    }

    /// QUIC has taken so many bytes from the front.
    pub(super) fn take(&mut self, bytes: usize) {
        self.begun += bytes;
        while let Some(&(_, first)) = self.units.front() {
            if self.begun < first {
                return;
            }
            self.begun -= first;
            self.units.pop_front();
        }
    }

    /// Takes a request out. Returns where its bytes lie among those that wait; `None` when it is not
    /// here, or QUIC has a part of it.
    pub(super) fn withdraw(&mut self, id: u64) -> Option<Range<usize>> {
        let at = self.units.iter().position(|(other, _)| *other == id)?;
        if at == 0 && self.begun > 0 {
            return None;
        }
        let before: usize = self.units.iter().take(at).map(|(_, bytes)| bytes).sum();
        let (_, bytes) = self.units.remove(at)?;
        let start = before - self.begun;
        Some(start..start + bytes)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Withdrawals that came before the request they are about was read.
#[derive(Debug, Default)]
pub(super) struct Early(BTreeSet<u64>);

impl Early {
    pub(super) fn note(&mut self, id: u64) {
        self.0.insert(id);
        if self.0.len() > MAX_EARLY {
            // Ids rise: the lowest is the oldest.
            self.0.pop_first();
        }
    }

    /// Whether the request was withdrawn. It comes once.
    pub(super) fn take(&mut self, id: u64) -> bool {
        !self.0.is_empty() && self.0.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_out_wherever_it_waits_but_not_once_it_is_begun() {
        let mut line = Line::default();
        for (id, bytes) in [(0, 9), (1, 10), (2, 20), (3, 30)] {
            line.push(id, bytes);
        }
        line.take(9);
        assert_eq!(line.withdraw(2), Some(10..30));
        assert_eq!(line.withdraw(2), None, "it is gone");
        line.take(4);
        assert_eq!(line.withdraw(1), None, "four bytes of it have left");
        assert_eq!(line.withdraw(3), Some(6..36));
        line.take(6);
        line.push(4, 5);
        assert_eq!(line.withdraw(4), Some(0..5));
        assert_eq!(line.withdraw(1), None, "all of it has left");
    }

    #[test]
    fn of_withdrawals_that_come_too_early_the_oldest_are_forgotten() {
        let mut early = Early::default();
        for id in 0..=MAX_EARLY as u64 {
            early.note(id);
        }
        assert!(!early.take(0));
        assert!(early.take(1));
        assert!(!early.take(1), "a request comes once");
        assert!(early.take(MAX_EARLY as u64));
    }
}
