//! The one place of the binary that reads the clock.

use std::time::{Duration, Instant};

/// The time now.
#[expect(
    clippy::disallowed_methods,
    reason = "commands wait and measure in real time"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
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
