//! The callers that wait for something of the peer, and which of them reads the socket meanwhile.
//!
//! The first to sit down while nobody reads *leads*. When it has what it waited for, the socket goes
//! back to the worker, in the same moment in which the next may lead: those who sit beside it are
//! served by whoever reads then.
//!
//! Who reads or writes a stream in a loop sits down again a few microseconds after it got up. In
//! between, the worker would wake for whatever arrives, and the two threads would take the connection
//! from each other all the time. So when one in a loop has come back soon several times, its seat is
//! *kept*: for [`KEEP`] the worker does not get the socket, and the next to sit down leads. The worker
//! looks when that time is over, and then it gets the socket after all; whoever is about to wait in
//! another way gives it back at once.
//!
//! Kept under the outbox's lock; checked in every order in which threads can run (`tests/model`).

use std::time::{Duration, Instant};

/// How long a seat is kept at most, and how soon is soon. What arrives meanwhile waits so long, so it is
/// short beside the time that a packet takes through a network; and it is long beside what a loop does
/// between two calls.
pub(super) const KEEP: Duration = Duration::from_millis(1);

/// How often in a row somebody in a loop has to come back soon before a seat is kept.
const RETURNS: u32 = 2;

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Seats {
    waiting: usize,
    has_leader: bool,
    /// The leader has got up and will be back: until then nobody reads the socket.
    kept_until: Option<Instant>,
    /// The worker knows that a seat may be kept, and will look.
    is_watched: bool,
    /// When a leader in a loop got up last.
    left_at: Option<Instant>,
    /// How often in a row one came back soon.
    returns: u32,
}

/// What somebody who sits down does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    /// Waits for whoever reads the socket.
    Beside,
    /// Reads the socket, after taking it from the worker.
    Leader,
    /// Reads the socket, which the worker has not got back.
    Kept,
}

impl Seats {
    /// Somebody begins to wait. It leads if nobody else waits, and there is a socket to read.
    /// `looped_at`: now, for one in a loop.
    pub(super) fn sit_down(&mut self, has_socket: bool, looped_at: Option<Instant>) -> Seat {
        self.waiting += 1;
        if let Some(now) = looped_at {
            let is_soon = |at: Instant| now.saturating_duration_since(at) <= KEEP;
            let came_back = self.left_at.is_some_and(is_soon);
            self.returns = if came_back {
                (self.returns + 1).min(RETURNS)
            } else {
                0
            };
        }
        if self.kept_until.take().is_some() {
            return Seat::Kept;
        }
        if self.waiting == 1 && !self.has_leader && has_socket {
            self.has_leader = true;
            return Seat::Leader;
        }
        Seat::Beside
    }

    /// Somebody waits no longer. If it has led, the worker gets the socket by `give_back`, or the seat is
    /// kept, for one in a loop. `true` when the worker has to be woken to watch over that.
    #[must_use]
    pub(super) fn get_up(
        &mut self,
        seat: Seat,
        looped_at: Option<Instant>,
        give_back: impl FnOnce(),
    ) -> bool {
        self.waiting -= 1;
        if seat == Seat::Beside {
            return false;
        }
        if let Some(now) = looped_at {
            self.left_at = Some(now);
            if self.returns >= RETURNS && self.waiting == 0 {
                self.kept_until = Some(now + KEEP);
                return !std::mem::replace(&mut self.is_watched, true);
            }
        }
        self.has_leader = false;
        give_back();
        false
    }

    /// No seat is kept any longer.
    pub(super) fn end_keeping(&mut self, give_back: impl FnOnce()) {
        if self.kept_until.take().is_some() {
            self.has_leader = false;
            self.returns = 0;
            give_back();
        }
    }

    /// For the worker: takes the socket back if a seat was kept for long enough. When to look again.
    pub(super) fn watch(&mut self, now: Instant, give_back: impl FnOnce()) -> Option<Instant> {
        if self.kept_until.is_some_and(|until| until <= now) {
            self.end_keeping(give_back);
        }
        // Who sits there now will probably get up and be back again: to be woken for that is dearer than
        // to look once more.
        let is_recent = |at: Instant| now.saturating_duration_since(at) <= 2 * KEEP;
        let is_in_loop = self.returns >= RETURNS && self.left_at.is_some_and(is_recent);
        self.is_watched = self.kept_until.is_some() || (self.has_leader && is_in_loop);
        let again = self.kept_until.unwrap_or(now + KEEP);
        self.is_watched.then_some(again)
    }

    /// Whether somebody reads the socket in the worker's place, or is about to.
    pub(super) fn has_leader(&self) -> bool {
        self.has_leader
    }
}
