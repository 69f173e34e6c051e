//! How large the datagrams of one connection may be.
//!
//! The configured size is taken for granted until the path shows otherwise: the system refuses it, or
//! what is larger than every path carries is lost while the rest arrives, as in a black hole, where
//! larger datagrams vanish and no ICMP message tells (RFC 8899 §4.3). Then 1,200 bytes are the limit,
//! which every path carries. After a while a single datagram of the configured size is sent in between.
//! If nothing so large is lost in the second after it, the path carries them again; otherwise the next
//! try comes after twice the time.
//!
//! QUIC does not tell which of its packets were acknowledged, so that all of this is concluded from what
//! it counts. A wrong conclusion costs some speed for a second.

use std::time::{Duration, Instant};

use super::MIN_DATAGRAM_BYTES;

/// Probe time-outs of QUIC, each within [`TOGETHER`] of the one before, that are taken for a black
/// hole when there were large datagrams among what was not acknowledged. One is a lost packet.
const TIMEOUTS: u64 = 2;
const TOGETHER: Duration = Duration::from_secs(5);

/// Lost datagrams that say something by their number.
const LOST: u64 = 8;

/// How long a large datagram may not be lost before the path counts as carrying them. QUIC knows of a loss
/// as soon as something later is acknowledged; each probe time-out begins the time anew.
const VERDICT_AFTER: Duration = Duration::from_secs(1);

/// When the configured size is tried again, at first and at the latest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(600);

/// A large size that held for so long was no mistake: the next try after a fall comes soon again.
const HELD: Duration = Duration::from_secs(60);

/// What QUIC has counted on the path since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) received: u64,
    pub(super) lost: u64,
    pub(super) lost_bytes: u64,
    pub(super) timeouts: u64,
}

/// What a look at the counts led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Fell,
    Rose,
}

#[derive(Debug)]
pub(super) struct PathSize {
    configured: usize,
    is_small: bool,
    /// Large datagrams since the counts were these.
    large: u64,
    since: Counts,
    /// The time-outs at the last look, and when one more was seen.
    timeouts: u64,
    timeout_at: Option<Instant>,
    /// When the size rose, if it ever did.
    rose_at: Option<Instant>,
    retry_at: Instant,
    retry_after: Duration,
    /// When a large datagram was sent to try the path, and what was counted then.
    probe: Option<(Instant, Counts)>,
}

impl PathSize {
    pub(super) fn new(configured: usize, now: Instant) -> Self {
        Self {
            configured,
            is_small: false,
            large: 0,
            since: Counts::default(),
            timeouts: 0,
            timeout_at: None,
            rose_at: None,
            retry_at: now,
            retry_after: FIRST_RETRY,
            probe: None,
        }
    }

    /// The largest datagram that may be sent now.
    pub(super) fn limit(&self) -> usize {
        if self.is_small {
            MIN_DATAGRAM_BYTES
        } else {
            self.configured
        }
    }

    /// Whether there is anything to find out.
    pub(super) fn can_change(&self) -> bool {
        self.configured > MIN_DATAGRAM_BYTES
    }

    /// So many datagrams of so many bytes were sent.
    pub(super) fn note_sent(&mut self, count: usize, bytes: usize) {
        if bytes > MIN_DATAGRAM_BYTES {
            self.large += count as u64;
        }
    }

    /// The system does not take datagrams of this size.
    pub(super) fn refused(&mut self, now: Instant, counts: Counts) -> Change {
        if self.is_small {
            self.fail_probe(now);
            return Change::None;
        }
        self.fall(now, counts)
    }

    /// Concludes what there is to conclude from what was counted.
    pub(super) fn look(&mut self, now: Instant, counts: Counts) -> Change {
        if !self.can_change() {
            return Change::None;
        }
        if self.is_small {
            return self.judge_probe(now, counts);
        }
        if counts.timeouts > self.timeouts {
            self.timeouts = counts.timeouts;
            if self.timeout_at.is_none_or(|at| now > at + TOGETHER) {
                // The first of a row; itself counts.
                self.since.timeouts = counts.timeouts - 1;
            }
            self.timeout_at = Some(now);
        }
        let timeouts = counts.timeouts - self.since.timeouts;
        let is_silent = self.large > 0 && timeouts >= TIMEOUTS;
        let lost = counts.lost - self.since.lost;
        let are_large = has_lost_large(self.since, counts);
        let are_all = lost * 10 >= self.large * 9;
        if is_silent || lost >= LOST && are_large && are_all {
            return self.fall(now, counts);
        }
        if lost >= LOST {
            // Many large ones have arrived: begin anew, or they would speak for the path for ever.
            self.begin(counts);
        }
        Change::None
    }

    /// Whether a datagram of the configured size shall be sent to try the path.
    pub(super) fn wants_probe(&self, now: Instant) -> bool {
        self.is_small && self.probe.is_none() && now >= self.retry_at
    }

    /// It was sent, and this was counted before.
    pub(super) fn probe_sent(&mut self, now: Instant, counts: Counts) {
        self.probe = Some((now, counts));
    }

    fn fall(&mut self, now: Instant, counts: Counts) -> Change {
        if self.rose_at.is_some_and(|at| now > at + HELD) {
            self.retry_after = FIRST_RETRY;
        }
        self.is_small = true;
        self.retry_at = now + self.retry_after;
        self.begin(counts);
        Change::Fell
    }

    fn judge_probe(&mut self, now: Instant, counts: Counts) -> Change {
        let Some((sent_at, before)) = &mut self.probe else {
            return Change::None;
        };
        if has_lost_large(*before, counts) {
            self.fail_probe(now);
        } else if counts.timeouts > before.timeouts {
            before.timeouts = counts.timeouts;
            *sent_at = now;
        } else if now >= *sent_at + VERDICT_AFTER && counts.received > before.received {
            self.probe = None;
            self.is_small = false;
            self.rose_at = Some(now);
            // Should it be wrong, the next try is later.
            self.retry_after = (self.retry_after * 2).min(LAST_RETRY);
            self.begin(counts);
            return Change::Rose;
        }
        Change::None
    }

    fn fail_probe(&mut self, now: Instant) {
        self.probe = None;
        self.retry_after = (self.retry_after * 2).min(LAST_RETRY);
        self.retry_at = now + self.retry_after;
    }

    fn begin(&mut self, counts: Counts) {
        self.large = 0;
        self.since = counts;
        self.timeouts = counts.timeouts;
        self.timeout_at = None;
    }
}

/// Whether there were large datagrams among those that were lost: together they had more bytes than as
/// many small ones can have.
fn has_lost_large(before: Counts, now: Counts) -> bool {
    let lost = now.lost.saturating_sub(before.lost);
    let bytes = now.lost_bytes.saturating_sub(before.lost_bytes);
    bytes > lost * MIN_DATAGRAM_BYTES as u64
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "some instant to begin at")]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// A connection that has sent `large` datagrams of 9,000 bytes.
    fn after(large: usize) -> (PathSize, Instant) {
        let now = Instant::now();
        let mut size = PathSize::new(9_000, now);
        size.note_sent(large, 9_000);
        (size, now)
    }

    fn timeouts(timeouts: u64) -> Counts {
        Counts {
            timeouts,
            ..Counts::default()
        }
    }

    fn lost(lost: u64, bytes_each: u64) -> Counts {
        Counts {
            received: lost,
            lost,
            lost_bytes: lost * bytes_each,
            ..Counts::default()
        }
    }

    #[test]
    fn the_smallest_size_never_changes() {
        let now = Instant::now();
        let mut size = PathSize::new(1_200, now);
        size.note_sent(10, 1_200);
        assert_eq!(size.look(now, timeouts(9)), Change::None);
        assert_eq!(size.limit(), 1_200);
        assert!(!size.wants_probe(now + SECOND));
    }

    #[test]
    fn two_timeouts_in_a_row_with_large_datagrams_under_way_are_a_black_hole() {
        let (mut size, now) = after(1);
        assert_eq!(size.look(now, timeouts(1)), Change::None);
        assert_eq!(size.look(now + 60 * MILLI, timeouts(2)), Change::Fell);
        assert_eq!(size.limit(), 1_200);
        // Without, or long after each other, they are not.
        let (mut size, now) = after(0);
        size.look(now, timeouts(1));
        assert_eq!(size.look(now + 60 * MILLI, timeouts(2)), Change::None);
        let (mut size, now) = after(1);
        size.look(now, timeouts(1));
        assert_eq!(size.look(now + 6 * SECOND, timeouts(2)), Change::None);
        assert_eq!(size.look(now + 7 * SECOND, timeouts(3)), Change::Fell);
    }

    #[test]
    fn large_datagrams_that_are_lost_without_exception_are_a_black_hole() {
        let (mut size, now) = after(8);
        assert_eq!(size.look(now, lost(7, 9_000)), Change::None);
        assert_eq!(size.look(now, lost(8, 9_000)), Change::Fell);
        // Congestion loses some of them, or small ones.
        let (mut size, now) = after(1_000);
        assert_eq!(size.look(now, lost(100, 9_000)), Change::None);
        size.note_sent(8, 9_000);
        let small = Counts {
            lost: 108,
            lost_bytes: 100 * 9_000 + 8 * 100,
            ..Counts::default()
        };
        assert_eq!(size.look(now, small), Change::None);
    }

    #[test]
    fn the_path_is_tried_again_later_and_later_until_it_carries_large_datagrams() {
        let (mut size, mut now) = after(1);
        assert_eq!(size.refused(now, Counts::default()), Change::Fell);
        let mut counts = Counts::default();
        for wait in [1, 2, 4, 8] {
            assert!(!size.wants_probe(now + wait * SECOND - MILLI));
            now += wait * SECOND;
            assert!(size.wants_probe(now));
            size.probe_sent(now, counts);
            assert!(!size.wants_probe(now), "one at a time");
            assert_eq!(size.look(now, counts), Change::None);
            counts.lost += 1;
            counts.lost_bytes += 9_000;
            assert_eq!(size.look(now, counts), Change::None);
            assert_eq!(size.limit(), 1_200);
        }
        now += 16 * SECOND;
        size.probe_sent(now, counts);
        // Small ones are lost for other reasons.
        counts.lost += 5;
        counts.lost_bytes += 5 * 1_200;
        // Silence proves nothing.
        assert_eq!(size.look(now + 5 * SECOND, counts), Change::None);
        counts.received += 1;
        assert_eq!(size.look(now + 5 * SECOND, counts), Change::Rose);
        assert_eq!(size.limit(), 9_000);
    }
}
