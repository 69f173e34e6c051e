//! Local health: does this node itself answer slowly? (Lifeguard, LHA-Probe.)
//!
//! A node whose own process or network is slow takes everybody else for dead. It can notice:
//! members it asked for help do not even say "no answer", or it has to refute. Each such sign
//! raises the score, each answered probe lowers it, and the time given to a probe grows with it.

use std::time::Duration;

/// The health score: 0 is well.
#[derive(Debug, Clone)]
pub(super) struct Awareness {
    score: u32,
    max: u32,
}

impl Awareness {
    /// A healthy node whose score stays below `max`.
    pub(super) fn new(max: u32) -> Self {
        Self {
            score: 0,
            max: max.max(1),
        }
    }

    pub(super) fn score(&self) -> u32 {
        self.score
    }

    /// One sign of good health.
    pub(super) fn improve(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    /// `signs` signs of bad health.
    pub(super) fn worsen(&mut self, signs: u32) {
        self.score = self.score.saturating_add(signs).min(self.max - 1);
    }

    /// `base`, lengthened by the score.
    pub(super) fn scale(&self, base: Duration) -> Duration {
        base * (self.score + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_stays_from_0_to_7_and_scales_time() {
        let second = Duration::from_secs(1);
        let mut awareness = Awareness::new(8);
        // Change, then the score and the scaled second that follow; memberlist's own table.
        let table: [(i64, u32); 9] = [
            (0, 0),
            (-1, 0),
            (-10, 0),
            (1, 1),
            (-1, 0),
            (10, 7),
            (-1, 6),
            (-1, 5),
            (10, 7),
        ];
        for (change, score) in table {
            if change >= 0 {
                awareness.worsen(u32::try_from(change).unwrap());
            } else {
                (0..-change).for_each(|_| awareness.improve());
            }
            assert_eq!(awareness.score(), score);
            assert_eq!(awareness.scale(second), second * (score + 1));
        }
    }
}
