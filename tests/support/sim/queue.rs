//! The virtual clock's agenda: what happens next.
//!
//! A binary heap on (time, chance): of two things due at the same instant a number drawn from the
//! seed decides, so that no order is ever an accident of the program, and other seeds try others.

use std::{cmp::Reverse, collections::BinaryHeap};

use nodosum::unversioned::rng::Rng;

struct Entry<T> {
    at: u64,
    chance: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.chance) == (other.at, other.chance)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.chance).cmp(&(other.at, other.chance))
    }
}

/// Things to come, by nanoseconds since the start.
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    rng: Rng,
}

impl<T> Queue<T> {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            heap: BinaryHeap::new(),
            rng: Rng::new(seed),
        }
    }

    pub(crate) fn push(&mut self, at: u64, what: T) {
        let chance = self.rng.u64();
        self.heap.push(Reverse(Entry { at, chance, what }));
    }

    /// When the next thing is due.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.what))
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }
}
