//! A small seeded generator for jitter and choices: SplitMix64.
//!
//! The pure cores draw all chance from one of these, so that a seed replays a whole run. It is not
//! for secrets; keys and nonces come from the system.

use std::time::Duration;

/// A seeded generator. The same seed gives the same numbers on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Rng {
    state: u64,
}

impl Rng {
    /// A generator that starts at `seed`; any seed is as good as any other.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// 64 uniform bits.
    pub(crate) fn u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, or 0 when `n` is 0. The bias of the multiplication is below `n` / 2^64.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(n)) >> 64) as u64
    }

    /// A duration from `low` to `high`, both included; `low` when `high` is not above it.
    pub(crate) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let width = high.saturating_sub(low).as_nanos();
        let width = u64::try_from(width).unwrap_or(u64::MAX - 1);
        low + Duration::from_nanos(self.below(width.saturating_add(1)))
    }

    /// Puts the slice into a uniformly random order.
    pub(crate) fn shuffle<T>(&mut self, slice: &mut [T]) {
        for last in (1..slice.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            slice.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays_and_another_one_differs() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            [rng.u64(), rng.u64(), rng.u64()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn draws_stay_within_their_bounds() {
        let mut rng = Rng::new(1);
        let (low, high) = (Duration::from_millis(5), Duration::from_millis(9));
        for _ in 0..10_000 {
            assert!(rng.below(3) < 3);
            assert!((low..=high).contains(&rng.between(low, high)));
        }
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.between(high, low), high);
    }

    #[test]
    fn a_shuffle_keeps_every_element() {
        let mut slice: Vec<u32> = (0..100).collect();
        Rng::new(3).shuffle(&mut slice);
        assert_ne!(slice, (0..100).collect::<Vec<_>>());
        slice.sort_unstable();
        assert_eq!(slice, (0..100).collect::<Vec<_>>());
    }
}
