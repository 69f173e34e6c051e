//! What a run or a campaign has done, counted. A campaign in which something never happened has
//! not tested it, so these counts decide whether a campaign passes (`campaign`).

use std::collections::BTreeMap;

use nodosum::unversioned::{cluster::Event, mesh, swim};

/// Counts by name, and a few that are too hot for a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// What nodes told: transitions of members and of connections.
    pub(crate) transitions: BTreeMap<&'static str, u64>,
    /// How often each fault had an effect.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// How many acts of each class began.
    pub(crate) acts: BTreeMap<&'static str, u64>,
    /// The rest.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    pub(crate) unopened: u64,
    pub(crate) frames: u64,
    pub(crate) pings: u64,
    pub(crate) dials: u64,
    /// Simulated seconds, each node counted.
    pub(crate) node_seconds: u64,
}

impl Tally {
    pub(crate) fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }

    pub(crate) fn began(&mut self, name: &'static str) {
        *self.acts.entry(name).or_default() += 1;
    }

    pub(crate) fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    pub(crate) fn add(&mut self, name: &'static str, number: u64) {
        *self.counts.entry(name).or_default() += number;
    }

    pub(crate) fn event(&mut self, event: &Event) {
        let name = match event {
            Event::Started => "started",
            Event::Member(member) => match member {
                swim::Event::Up { .. } => "up",
                swim::Event::Suspect { .. } => "suspect",
                swim::Event::Alive { .. } => "refuted",
                swim::Event::Dead { .. } => "dead",
                swim::Event::Left { by: None, .. } => "left",
                swim::Event::Left { by: Some(_), .. } => "forced_out",
                swim::Event::Updated { .. } => "updated",
                swim::Event::Forgotten { .. } => "forgotten",
                swim::Event::NameConflict { .. } => "name_conflict",
                swim::Event::AddressConflict { .. } => "address_conflict",
                swim::Event::User(_) => "user_event",
            },
            Event::Peer(peer) => match peer {
                mesh::Event::Connected { .. } => "connected",
                mesh::Event::Replaced { .. } => "replaced",
                mesh::Event::Disconnected { .. } => "disconnected",
                mesh::Event::SeedReached { .. } => "seed_reached",
                mesh::Event::SeedFailed { .. } => "seed_failed",
                mesh::Event::JoinRoundOver { .. } => "join_round_over",
                mesh::Event::SelfDial { .. } => "self_dial",
                mesh::Event::SupersededBoot { .. } => "superseded_boot",
            },
        };
        *self.transitions.entry(name).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        let tables = [
            (&mut self.transitions, &other.transitions),
            (&mut self.faults, &other.faults),
            (&mut self.acts, &other.acts),
            (&mut self.counts, &other.counts),
        ];
        for (mine, theirs) in tables {
            for (name, count) in theirs {
                *mine.entry(name).or_default() += count;
            }
        }
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
        self.unopened += other.unopened;
        self.frames += other.frames;
        self.pings += other.pings;
        self.dials += other.dials;
        self.node_seconds += other.node_seconds;
    }
}
