//! A small seeded random generator for the pure cores.
//!
//! Steele, Lea and Flood's SplitMix64: one addition and three mixing steps a number, any seed is
//! a good seed, and a run with the same seed is the same run. It decides whom to probe and when,
//! never a key: nothing here is unpredictable to someone who knows the seed.

use std::time::Duration;

/// A seeded source of numbers.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// Starts the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, but without, `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // The high half of a product is uniform to within n/2^64, which no test could see.
        ((u128::from(self.u64()) * u128::from(n)) >> 64) as u64
    }

    /// A place in a list of `len`; 0 when it is empty.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A duration from `low` to `high`, both included; `low` when they are the wrong way round.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = high.saturating_sub(low).as_nanos();
        let nanos = (u128::from(self.u64()) * (span + 1)) >> 64;
        low + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Puts `items` into a random order, every order as likely as any other.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.index(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // The first values for seed 1234567 that the generator's reference implementation gives.
        let mut rng = Rng::new(1_234_567);
        assert_eq!(rng.u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn numbers_stay_within_their_bounds() {
        let mut rng = Rng::new(7);
        let (low, high) = (Duration::from_millis(5), Duration::from_millis(6));
        for _ in 0..1_000 {
            assert!(rng.below(3) < 3);
            assert!((low..=high).contains(&rng.between(low, high)));
        }
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
        assert_eq!(rng.between(high, low), high);
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..50).collect();
        Rng::new(3).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
