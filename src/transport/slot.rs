//! The place for one outcome that a thread waits for, asleep here or on a socket.
//!
//! Who waits beside others sleeps here. Who leads reads the connection's socket meanwhile, and then
//! sleeps on the socket; whoever fills the slot in its place has to wake it there. Checked in every
//! order in which threads can run (`tests/model`).

use std::{sync::atomic::Ordering::SeqCst, time::Instant};

use super::sync::{AtomicBool, Condvar, Mutex};

/// The place for one outcome.
#[derive(Debug)]
pub(super) struct Slot<T> {
    outcome: Mutex<Option<T>>,
    filled: Condvar,
    is_done: AtomicBool,
    /// Its owner sleeps on the socket, or is about to.
    is_at_socket: AtomicBool,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            outcome: Mutex::new(None),
            filled: Condvar::new(),
            is_done: AtomicBool::new(false),
            is_at_socket: AtomicBool::new(false),
        }
    }
}

impl<T> Slot<T> {
    /// Fills it. `true` when the owner sleeps on the socket and must be woken there.
    pub(super) fn fill(&self, outcome: T) -> bool {
        *self.outcome.lock() = Some(outcome);
        self.is_done.store(true, SeqCst);
        self.filled.notify_one();
        self.is_at_socket.load(SeqCst)
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done.load(SeqCst)
    }

    pub(super) fn take(&self) -> Option<T> {
        self.outcome.lock().take()
    }

    /// Sleeps until it is filled, or until `deadline`.
    pub(super) fn wait_filled(&self, deadline: Instant) {
        let mut outcome = self.outcome.lock();
        while outcome.is_none() {
            if self.filled.wait_until(&mut outcome, deadline).timed_out() {
                return;
            }
        }
    }

    /// Announces that the owner is about to sleep on the socket. `false` when it need not. Both this
    /// and [`fill`](Self::fill) write first and look second, so that one of them sees the other.
    pub(super) fn go_to_socket(&self) -> bool {
        self.is_at_socket.store(true, SeqCst);
        !self.is_done()
    }

    pub(super) fn leave_socket(&self) {
        self.is_at_socket.store(false, SeqCst);
    }
}
