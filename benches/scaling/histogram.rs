//! How long things took, in a fixed number of counters: each power of two is cut into 64 parts, so
//! that a value is told to within 1.6 %, from a nanosecond to hours, without keeping any.

use std::time::Duration;

/// Parts of a power of two, as a power of two.
const PART_BITS: u32 = 6;
const PARTS: u64 = 1 << PART_BITS;

/// Times below 2^44 ns, which is nearly five hours; longer ones count as that.
const OCTAVES: u32 = 44 - PART_BITS;
const SLOTS: usize = (OCTAVES as usize + 1) << PART_BITS;

pub(crate) struct Histogram {
    slots: Vec<u32>,
    count: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![0; SLOTS],
            count: 0,
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.slots[slot(nanoseconds)] += 1;
        self.count += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.slots.iter_mut().zip(&other.slots) {
            *mine += theirs;
        }
        self.count += other.count;
    }

    /// The time within which this part of all lie, in seconds. `None` without any.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let rank = (self.count as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (place, count) in self.slots.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Some(middle(place) / 1e9);
            }
        }
        None
    }
}

/// Below 128 each value has a slot of its own; then 64 for each power of two.
fn slot(value: u64) -> usize {
    let octave = (u64::BITS - value.leading_zeros()).saturating_sub(PART_BITS + 1);
    let place = (u64::from(octave) << PART_BITS) + (value >> octave);
    usize::try_from(place).map_or(SLOTS - 1, |place| place.min(SLOTS - 1))
}

/// The middle of what a slot holds.
fn middle(place: usize) -> f64 {
    let place = place as u64;
    if place < 2 * PARTS {
        return place as f64;
    }
    let octave = (place >> PART_BITS) - 1;
    let part = place - (octave << PART_BITS);
    (part << octave) as f64 + ((1_u64 << octave) as f64 - 1.0) / 2.0
}
