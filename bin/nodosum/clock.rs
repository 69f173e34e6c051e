//! The one place of the binary that reads the clock.

use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

/// The time now.
#[expect(
    clippy::disallowed_methods,
    reason = "commands wait and measure in real time"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// How long it is until `then` by the clock on the wall; nothing when it is over.
#[expect(
    clippy::disallowed_methods,
    reason = "a certificate ends by the wall clock"
)]
pub(crate) fn until(then: SystemTime) -> Duration {
    then.duration_since(SystemTime::now()).unwrap_or_default()
}

/// What a clock on the wall shows at instants around now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wall {
    now: Instant,
    wall: SystemTime,
}

impl Wall {
    #[expect(clippy::disallowed_methods, reason = "people are told the time of day")]
    pub(crate) fn now() -> Self {
        Self {
            now: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    pub(crate) fn time(self) -> SystemTime {
        self.wall
    }

    /// Since 1970.
    pub(crate) fn nanos(self) -> u128 {
        let since = self.wall.duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default().as_nanos()
    }

    /// RFC 3339, in UTC, with milliseconds.
    pub(crate) fn text(self, at: Instant) -> String {
        let ago = self.now.saturating_duration_since(at);
        let then = self.wall.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
        let then = Timestamp::try_from(then).unwrap_or(Timestamp::UNIX_EPOCH);
        format!("{then:.3}")
    }
}

/// A point in time after which something is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(timeout: Duration) -> Self {
        let now = now();
        // Parsers bound every duration far below what overflows; should one slip through, a
        // deadline of now is the safe reading.
        Self(now.checked_add(timeout).unwrap_or(now))
    }

    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(now())
    }

    pub(crate) fn is_over(self) -> bool {
        self.remaining().is_zero()
    }
}
