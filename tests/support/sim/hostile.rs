//! Those who mean harm, while an act lets them.
//!
//! None of them breaks cryptography; each says everything that its keys let it say.
use nodosum::unversioned::swim::SyncEntry;

use super::world::World;

impl World {
    pub(crate) fn on_hostile(&mut self, act: usize) {
        let _ = act;
    }

    pub(crate) fn lie(&mut self, entries: &mut Vec<SyncEntry>) {
        let _ = entries;
    }
}
