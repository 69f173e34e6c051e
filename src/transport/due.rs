//! When the timekeeper is to look at a connection, and whether it has it on its list.
//!
//! A caller that brings something forward sets the time, and takes no lock of the timekeeper's while
//! the connection is on the list. The timekeeper takes it off when nothing is left to watch over; a
//! time that is set in that moment keeps it there. Checked in every order in which threads can run
//! (`tests/model`).

use std::{sync::atomic::Ordering::SeqCst, time::Instant};

use super::sync::{AtomicBool, AtomicU64};

/// No time is set.
const NEVER: u64 = u64::MAX;

/// The time, and whether the connection is on the list.
#[derive(Debug)]
pub(super) struct Due {
    since: Instant,
    nanos: AtomicU64,
    is_listed: AtomicBool,
}

impl Due {
    /// Not on the list. No time before `since` is told from it.
    pub(super) fn new(since: Instant) -> Self {
        Self {
            since,
            nanos: AtomicU64::new(NEVER),
            is_listed: AtomicBool::new(false),
        }
    }

    /// Sets the time, in place of another. `true` when the caller has to put it on the list. To be
    /// called under the lock of what is due, so that the last one to set it knows best.
    pub(super) fn set(&self, at: Instant) -> bool {
        self.renew(at);
        !self.is_listed.swap(true, SeqCst)
    }

    /// Sets the time of what is on the list.
    pub(super) fn renew(&self, at: Instant) {
        self.nanos.store(self.nanos_of(at), SeqCst);
    }

    /// From here on nobody is told to put it on the list.
    pub(super) fn close(&self) {
        self.is_listed.store(true, SeqCst);
    }

    /// For the timekeeper: if the time has come, has `act` do what is due. `act` tells whether it has
    /// set another time, and sets one too when it could not look. Returns whether it stays on the
    /// list.
    pub(super) fn look(&self, now: Instant, act: impl FnOnce() -> bool) -> bool {
        if self.nanos.load(SeqCst) > self.nanos_of(now) {
            return true;
        }
        self.nanos.store(NEVER, SeqCst);
        if act() {
            return true;
        }
        self.is_listed.store(false, SeqCst);
        // Whoever set a time before that has left it at that.
        let is_set_anew = self.nanos.load(SeqCst) != NEVER;
        is_set_anew && !self.is_listed.swap(true, SeqCst)
    }

    fn nanos_of(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.since).as_nanos();
        u64::try_from(nanos).unwrap_or(NEVER - 1)
    }
}
