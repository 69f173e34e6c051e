//! A lock that callers with work do not wait for (flat combining, Hendler and others 2010).
//!
//! Who has put work where the lock's owner finds it takes the lock if it is free, and otherwise leaves:
//! whoever has it looks for work after letting go, and goes on if there is some. Both sides write
//! first and look second, with a full fence between, so that one of them sees the other. All that is
//! checked in every order in which threads can run (`tests/model`).

use std::sync::atomic::Ordering::SeqCst;

use super::sync::{AtomicBool, Mutex, MutexGuard, fence};

/// Something with a lock, and whether there is work for whoever has it.
#[derive(Debug)]
pub(super) struct Handoff<T> {
    state: Mutex<T>,
    /// Work was left that nobody has looked at.
    has_work: AtomicBool,
}

impl<T> Handoff<T> {
    pub(super) fn new(state: T) -> Self {
        Self {
            state: Mutex::new(state),
            has_work: AtomicBool::new(false),
        }
    }

    /// Waits for the lock. It is to be let go of by [`release`](Self::release) where work may have been
    /// left meanwhile, which is nearly everywhere.
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock()
    }

    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.state.try_lock()
    }

    /// There is work. Whoever says so sees to it that the lock is let go of after this, by
    /// [`release`](Self::release), or [`offers`](Self::offer) to do so.
    ///
    /// The work lies under a lock that whoever does it takes after [`take_work`](Self::take_work). So if
    /// it was noted before and is seen here, it has not been looked for since.
    pub(super) fn note_work(&self) {
        if !self.has_work.load(SeqCst) {
            self.has_work.store(true, SeqCst);
        }
    }

    /// Whether there is work, which the caller, who has the lock, is about to do.
    pub(super) fn take_work(&self) -> bool {
        self.has_work.swap(false, SeqCst)
    }

    /// Has the work that was noted done: here by `work`, or by whoever has the lock.
    pub(super) fn offer(&self, work: impl FnMut(&mut T)) {
        fence(SeqCst);
        if let Some(state) = self.try_lock() {
            self.release(state, work);
        }
    }

    /// Lets go of the lock, after all work that was left meanwhile was done by `work`.
    pub(super) fn release<'a>(
        &'a self,
        mut state: MutexGuard<'a, T>,
        mut work: impl FnMut(&mut T),
    ) {
        loop {
            if self.take_work() {
                work(&mut state);
            }
            drop(state);
            fence(SeqCst);
            if !self.has_work.load(SeqCst) {
                return;
            }
            match self.try_lock() {
                Some(again) => state = again,
                None => return,
            }
        }
    }
}
