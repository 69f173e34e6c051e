//! Finding the slot of something by a hash: of a member by its name or address, of a piece of news
//! by whom it is about.
//!
//! Open addressing with linear probing, where a cell holds a slot and nothing else. What a slot
//! hashes to is asked of whoever owns the slots, so nothing is stored twice: each takes five to
//! eleven bytes here, and to find it takes one look at the cells and one at the slot, however many
//! there are. Several slots may have one hash; the caller tells them apart.
//!
//! The hash is not keyed. Names are given by the cluster's authority and the tables are bounded, so
//! whoever chooses names or addresses that collide makes a search walk over some thousand cells.

const EMPTY: u32 = u32::MAX;

/// The cells of the first slot.
const MIN_CELLS: usize = 8;

/// Slots by hash.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// A power of two of them, at most three quarters taken.
    cells: Vec<u32>,
    taken: usize,
}

impl Index {
    /// The slots that may have this hash, each once.
    pub(super) fn candidates(&self, hash: u32) -> impl Iterator<Item = u32> {
        let mut cell = self.home(hash);
        // A quarter of the cells is empty, so this ends.
        std::iter::from_fn(move || {
            let slot = *self.cells.get(cell)?;
            cell = self.after(cell);
            (slot != EMPTY).then_some(slot)
        })
    }

    /// Takes in a slot that is not in here. `hash_of` tells the hash of any slot that is.
    pub(super) fn insert(&mut self, hash: u32, slot: u32, hash_of: impl Fn(u32) -> u32) {
        if (self.taken + 1) * 4 > self.cells.len() * 3 {
            self.grow(hash_of);
        }
        self.place(hash, slot);
        self.taken += 1;
    }

    /// Takes out a slot that came in with this hash.
    pub(super) fn remove(&mut self, hash: u32, slot: u32, hash_of: impl Fn(u32) -> u32) {
        let mut gap = self.home(hash);
        loop {
            match self.cells.get(gap) {
                None | Some(&EMPTY) => return,
                Some(found) if *found == slot => break,
                Some(_) => gap = self.after(gap),
            }
        }
        self.taken -= 1;
        // Whoever was pushed beyond the gap moves into it, or a search would end there.
        let mut cell = gap;
        loop {
            cell = self.after(cell);
            let other = self.cells[cell];
            if other == EMPTY {
                break;
            }
            let distance = |from: usize| cell.wrapping_sub(from) & (self.cells.len() - 1);
            if distance(self.home(hash_of(other))) >= distance(gap) {
                self.cells[gap] = other;
                gap = cell;
            }
        }
        self.cells[gap] = EMPTY;
    }

    fn grow(&mut self, hash_of: impl Fn(u32) -> u32) {
        let cells = (self.cells.len() * 2).max(MIN_CELLS);
        let before = std::mem::replace(&mut self.cells, vec![EMPTY; cells]);
        for slot in before.into_iter().filter(|slot| *slot != EMPTY) {
            self.place(hash_of(slot), slot);
        }
    }

    fn place(&mut self, hash: u32, slot: u32) {
        let mut cell = self.home(hash);
        while self.cells[cell] != EMPTY {
            cell = self.after(cell);
        }
        self.cells[cell] = slot;
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & self.cells.len().wrapping_sub(1)
    }

    fn after(&self, cell: usize) -> usize {
        (cell + 1) & (self.cells.len() - 1)
    }
}

/// FNV-1a: the same in every run, and good enough for names and addresses.
pub(super) fn hash(bytes: impl IntoIterator<Item = u8>) -> u32 {
    bytes.into_iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rng::Rng;

    #[test]
    fn what_came_in_and_did_not_go_is_found_and_nothing_twice() {
        let mut rng = Rng::new(1);
        // A few hashes for many slots, then many for few: with and without collisions.
        for hashes in [1, 3, 40, 1 << 20] {
            let hash_of = |slot: u32| slot % hashes * 7;
            let mut index = Index::default();
            let mut expected = BTreeSet::new();
            for _ in 0..2_000 {
                let slot = rng.below(200) as u32;
                if expected.remove(&slot) {
                    index.remove(hash_of(slot), slot, hash_of);
                } else {
                    expected.insert(slot);
                    index.insert(hash_of(slot), slot, hash_of);
                }
                let probe = rng.below(200) as u32;
                let found = index.candidates(hash_of(probe)).filter(|s| *s == probe);
                assert_eq!(found.count(), usize::from(expected.contains(&probe)));
            }
            for slot in &expected {
                let mut found = index.candidates(hash_of(*slot));
                assert!(found.any(|s| s == *slot), "{slot} of {hashes}");
            }
            assert_eq!(index.taken, expected.len());
            assert!(index.taken * 4 <= index.cells.len() * 3);
        }
    }

    #[test]
    fn nothing_is_found_in_an_empty_one_nor_taken_out() {
        let mut index = Index::default();
        assert_eq!(index.candidates(7).count(), 0);
        index.remove(7, 1, |slot| slot);
        index.insert(7, 1, |slot| slot);
        index.remove(7, 2, |slot| slot);
        assert_eq!(index.candidates(7).collect::<Vec<_>>(), [1]);
    }
}
