//! The faults of the network that hold right now, and what each asks of a datagram or a flight.

use std::collections::BTreeMap;

use super::{
    script::{Hostility, Nodes, What},
    world::Datagram,
};

/// Datagrams that one clogged path holds; a path has no endless buffer.
const CLOG_CAPACITY: usize = 2_000;

/// What holds, each with the act that began it.
#[derive(Default)]
pub(crate) struct Conditions {
    blocks: Vec<(usize, Nodes, Nodes)>,
    clogs: Vec<(usize, Nodes, Nodes)>,
    losses: Vec<(usize, Nodes, Nodes, u64)>,
    delays: Vec<(usize, Nodes, Nodes, u64)>,
    duplicates: Vec<(usize, u64)>,
    reorders: Vec<(usize, u64)>,
    corruptions: Vec<(usize, u64)>,
    full: Vec<(usize, usize, u64)>,
    unsigned: Vec<(usize, usize)>,
    no_names: Vec<usize>,
    hostile: Vec<(usize, Hostility)>,
    held: BTreeMap<usize, (usize, u32)>,
    clogged: BTreeMap<usize, Vec<Datagram>>,
}

impl Conditions {
    pub(crate) fn begin(&mut self, act: usize, what: &What) {
        match what.clone() {
            What::Block { from, to } => self.blocks.push((act, from, to)),
            What::Clog { from, to } => self.clogs.push((act, from, to)),
            What::Loss { from, to, percent } => self.losses.push((act, from, to, percent)),
            What::Delay { from, to, mean_ms } => self.delays.push((act, from, to, mean_ms)),
            What::Duplicate { percent } => self.duplicates.push((act, percent)),
            What::Reorder { percent } => self.reorders.push((act, percent)),
            What::Corrupt { percent } => self.corruptions.push((act, percent)),
            What::Full { node, percent } => self.full.push((act, node, percent)),
            What::Unsigned { node } => self.unsigned.push((act, node)),
            What::NoNames => self.no_names.push(act),
            What::Hostile(hostility) => self.hostile.push((act, hostility)),
            What::Start { .. }
            | What::Crash { .. }
            | What::Leave { .. }
            | What::Stop { .. }
            | What::Pause { .. }
            | What::Stall { .. }
            | What::Stress { .. }
            | What::Sever { .. }
            | What::Join { .. }
            | What::Tags { .. }
            | What::Emit { .. }
            | What::ForceLeave { .. } => {}
        }
    }

    pub(crate) fn end(&mut self, act: usize) {
        self.blocks.retain(|(a, ..)| *a != act);
        self.clogs.retain(|(a, ..)| *a != act);
        self.losses.retain(|(a, ..)| *a != act);
        self.delays.retain(|(a, ..)| *a != act);
        self.duplicates.retain(|(a, _)| *a != act);
        self.reorders.retain(|(a, _)| *a != act);
        self.corruptions.retain(|(a, _)| *a != act);
        self.full.retain(|(a, ..)| *a != act);
        self.unsigned.retain(|(a, _)| *a != act);
        self.no_names.retain(|a| *a != act);
        self.hostile.retain(|(a, _)| *a != act);
    }

    pub(crate) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocks
            .iter()
            .any(|(_, froms, tos)| froms.contains(from) && tos.contains(to))
    }

    pub(crate) fn clogged(&self, from: usize, to: usize) -> Option<usize> {
        self.clogs
            .iter()
            .find(|(_, froms, tos)| froms.contains(from) && tos.contains(to))
            .map(|(act, ..)| *act)
    }

    pub(crate) fn clog(&mut self, act: usize, datagram: Datagram) {
        let held = self.clogged.entry(act).or_default();
        if held.len() < CLOG_CAPACITY {
            held.push(datagram);
        }
    }

    pub(crate) fn unclog(&mut self, act: usize) -> Vec<Datagram> {
        self.clogged.remove(&act).unwrap_or_default()
    }

    /// Percent.
    pub(crate) fn loss(&self, from: usize, to: usize) -> u64 {
        self.losses
            .iter()
            .filter(|(_, froms, tos, _)| froms.contains(from) && tos.contains(to))
            .map(|(.., percent)| *percent)
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn delay_ms(&self, from: usize, to: usize) -> u64 {
        self.delays
            .iter()
            .filter(|(_, froms, tos, _)| froms.contains(from) && tos.contains(to))
            .map(|(.., mean)| *mean)
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn duplicate(&self) -> u64 {
        strongest(&self.duplicates)
    }

    pub(crate) fn reorder(&self) -> u64 {
        strongest(&self.reorders)
    }

    pub(crate) fn corrupt(&self) -> u64 {
        strongest(&self.corruptions)
    }

    pub(crate) fn full(&self, node: usize) -> Option<u64> {
        self.full
            .iter()
            .filter(|(_, n, _)| *n == node)
            .map(|(.., percent)| *percent)
            .max()
    }

    pub(crate) fn is_unsigned(&self, node: usize) -> bool {
        self.unsigned.iter().any(|(_, n)| *n == node)
    }

    pub(crate) fn no_names(&self) -> bool {
        !self.no_names.is_empty()
    }

    pub(crate) fn has_outsider(&self) -> bool {
        self.hostile
            .iter()
            .any(|(_, hostility)| *hostility == Hostility::Outsider)
    }

    /// The node that lies, if one does.
    pub(crate) fn insider(&self) -> Option<usize> {
        self.hostile
            .iter()
            .find_map(|(_, hostility)| match hostility {
                Hostility::Insider(node) => Some(*node),
                Hostility::Outsider | Hostility::KeyHolder => None,
            })
    }

    pub(crate) fn is_active(&self, act: usize) -> bool {
        self.hostile.iter().any(|(a, _)| *a == act)
    }

    /// An act holds this life of a node still.
    pub(crate) fn hold(&mut self, act: usize, node: usize, life: u32) {
        self.held.insert(act, (node, life));
    }

    pub(crate) fn let_go(&mut self, act: usize) -> Option<(usize, u32)> {
        self.held.remove(&act)
    }
}

fn strongest(acts: &[(usize, u64)]) -> u64 {
    acts.iter().map(|(_, percent)| *percent).max().unwrap_or(0)
}
