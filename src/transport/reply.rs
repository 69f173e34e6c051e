//! Who waits for a reply, and in which way.
//!
//! A thread that waits has a [`Slot`]: a place for the outcome, and a sleep that ends when it is
//! filled. While it waits it may read the connection's socket itself (see `connection`); then it
//! sleeps on the socket, and whoever fills the slot in its place wakes it there. Who does not wait
//! gives a function, which is called by whichever thread takes the reply off the connection.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    error::RequestError,
    figures::{Flight, RequestEnd},
};

use super::outbox::Outcome;

/// What is called with the outcome.
pub(crate) type Then = Box<dyn FnOnce(Outcome) + Send>;

/// Where the outcome of one request goes.
pub(super) enum Waiter {
    Slot(Arc<Slot<Outcome>>),
    Then {
        then: Then,
        expires_at: Instant,
        timeout: Duration,
    },
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slot(_) => "Slot",
            Self::Then { .. } => "Then",
        })
    }
}

impl Waiter {
    /// When it is given up, if nobody but the connection watches over that.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        match self {
            Self::Slot(_) => None,
            Self::Then { expires_at, .. } => Some(*expires_at),
        }
    }
}

/// A request that waits for its reply.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) waiter: Waiter,
    /// Its part of the figures, when requests are timed.
    pub(super) flight: Option<Flight>,
}

impl Awaited {
    /// Notes how it ended, and gives back who waits.
    pub(super) fn over(self, outcome: &Outcome, now: Instant) -> Waiter {
        if let Some(flight) = self.flight {
            flight.end(end_of(outcome), now);
        }
        self.waiter
    }
}

fn end_of(outcome: &Outcome) -> RequestEnd {
    match outcome {
        Ok(_) => RequestEnd::Ok,
        Err(RequestError::Timeout { .. }) => RequestEnd::Timeout,
        Err(RequestError::Disconnected { .. } | RequestError::NotConnected(_)) => {
            RequestEnd::Disconnected
        }
        Err(
            RequestError::Remote { .. }
            | RequestError::NoHandler { .. }
            | RequestError::TooLarge { .. }
            | RequestError::WouldDeadlock(_)
            | RequestError::Busy(_)
            | RequestError::Stopped,
        ) => RequestEnd::Error,
    }
}

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
            outcome: Mutex::default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_filled_first_keeps_its_owner_from_the_socket() {
        let slot = Slot::<Outcome>::default();
        assert!(!slot.fill(Ok(vec![1])), "nobody sleeps on the socket");
        assert!(!slot.go_to_socket());
        assert_eq!(slot.take(), Some(Ok(vec![1])));
    }

    #[test]
    fn whoever_fills_the_slot_of_a_sleeper_is_told_to_wake_it() {
        let slot = Slot::<Outcome>::default();
        assert!(slot.go_to_socket());
        assert!(slot.fill(Ok(Vec::new())));
        slot.leave_socket();
        assert!(slot.is_done());
    }
}
