//! Who waits for a reply, and in which way.
//!
//! A thread that waits has a [`Slot`]. Who does not wait gives a function, which is called by whichever
//! thread takes the reply off the connection.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    error::RequestError,
    figures::{Flight, RequestEnd},
};

use super::{outbox::Outcome, slot::Slot};

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
