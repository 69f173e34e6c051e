//! Datagrams: from a core's queue through the network's faults to another core.
//!
//! A datagram opens when receiver and sender share a key, the sender is a member and this is the
//! life that its record names, and its number was not seen before. One that was changed on its way
//! does not open, so corruption is loss. Its records verify when exactly these bytes were signed
//! (`registry`); whose certificate the receiver has not seen, by handshake or sync, has to wait, and
//! is a hint where to dial.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc};

use nodosum::{
    BootId,
    unversioned::{
        record::VerifiedRecord,
        swim::{self, ForcedLeave},
    },
};

use super::world::{Datagram, Happening, MS, World, gossip_addr, name_of};

/// Datagrams that an outsider keeps for repeating.
const RECORDED: usize = 1_024;

/// Records that wait for a certificate.
const MAX_WAITING: usize = 1_024;

/// Numbers of datagrams already opened, of one life of a sender.
#[derive(Default)]
pub(super) struct Window {
    boot: Option<BootId>,
    highest: u64,
    seen: u128,
}

impl Window {
    fn accept(&mut self, boot: BootId, counter: u64) -> bool {
        if self.boot != Some(boot) {
            *self = Self {
                boot: Some(boot),
                highest: counter,
                seen: 1,
            };
            return true;
        }
        if counter > self.highest {
            let shift = counter - self.highest;
            self.seen = if shift < 128 { self.seen << shift } else { 0 } | 1;
            self.highest = counter;
            return true;
        }
        let age = self.highest - counter;
        let is_new = age < 128 && self.seen >> age & 1 == 0;
        if is_new {
            self.seen |= 1 << age;
        }
        is_new
    }
}

impl World {
    pub(super) fn on_transmit(&mut self, node: usize, transmit: swim::Transmit) {
        self.note(&[1, node as u64, self.now]);
        self.note_bytes(&transmit.payload);
        self.say(|| {
            let message = swim::Message::decode(&name_of(node), &transmit.payload);
            let said = message.map(|message| format!("{message:?}"));
            let said = said.unwrap_or_else(|error| error.to_string());
            format!("{} -> {}: {said:.200}", name_of(node), transmit.to)
        });
        let now = self.now;
        let limit = self.options.swim.max_payload_bytes;
        let skewed = self.script.skewed.contains(node);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if self.options.checked {
            if transmit.payload.len() > limit {
                let size = transmit.payload.len();
                self.violate(node, &format!("a datagram of {size} bytes"));
                return;
            }
            process.observer.on_transmit(now, &transmit);
            let waiting = process.cluster.swim().pending_events();
            if let Err(why) = process
                .observer
                .on_shared_datagram(&transmit, waiting, limit)
            {
                self.violate(node, &why);
                return;
            }
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.sent += 1;
        self.tally.datagrams += 1;
        self.tally.bytes += transmit.payload.len() as u64;
        if process.keys == 0 {
            self.tally.count("unsealed_datagrams");
            return;
        }
        process.counter += 1;
        let (boot, counter, keys) = (process.boot, process.counter, process.keys);
        let mut payload = transmit.payload;
        if skewed {
            // A field of a newer version: number 100, a varint.
            payload.extend([0xa0, 0x06, 0x01]);
        }
        let datagram = Datagram {
            from: node,
            boot,
            counter,
            keys,
            from_addr: gossip_addr(self.nodes[node].addr),
            to_addr: transmit.destination,
            payload: payload.into(),
        };
        self.send(datagram);
    }

    /// Seals what a node says beside its core.
    pub(crate) fn send_as(&mut self, node: usize, to_addr: SocketAddr, payload: &[u8]) {
        let from_addr = gossip_addr(self.nodes[node].addr);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.counter += 1;
        let datagram = Datagram {
            from: node,
            boot: process.boot,
            counter: process.counter,
            keys: process.keys,
            from_addr,
            to_addr,
            payload: payload.into(),
        };
        self.send(datagram);
    }

    /// Puts a sealed datagram on the network.
    pub(crate) fn send(&mut self, datagram: Datagram) {
        let from = datagram.from;
        if let Some(percent) = self.conditions.full(from)
            && self.chance(percent)
        {
            self.tally.fault("full_queue");
            return;
        }
        let Some(to) = self.owner_of(datagram.to_addr) else {
            return;
        };
        if self.conditions.has_outsider() {
            let place = self.rng.index(RECORDED);
            if self.recorded.len() < RECORDED {
                self.recorded.push(datagram.clone());
            } else {
                self.recorded[place] = datagram.clone();
            }
        }
        if self.conditions.is_blocked(from, to) {
            self.tally.fault("block");
            if !self.conditions.is_blocked(to, from) {
                self.tally.fault("block_one_way");
            }
            // Somebody reaches both, who cannot reach each other: a bridge, a ring, a broken path.
            let between = (from + 1) % self.nodes.len();
            let is_free = |a, b| !self.conditions.is_blocked(a, b);
            if between != to && is_free(from, between) && is_free(between, to) {
                self.tally.fault("block_around");
            }
            return;
        }
        let loss = self.conditions.loss(from, to);
        if self.chance(loss) {
            self.tally.fault("loss");
            return;
        }
        if let Some(act) = self.conditions.clogged(from, to) {
            self.tally.fault("clog");
            self.conditions.clog(act, datagram);
            return;
        }
        let corrupt = self.conditions.corrupt();
        if self.chance(corrupt) {
            // It arrives, does not open and changes nothing.
            self.tally.fault("corrupt");
            return;
        }
        let mut delay = self.latency(from, to);
        let reorder = self.conditions.reorder();
        if self.chance(reorder) {
            self.tally.fault("reorder");
            delay += self.rng.below(500 * MS);
        }
        let duplicate = self.conditions.duplicate();
        if self.chance(duplicate) {
            self.tally.fault("duplicate");
            let again = delay + self.rng.below(500 * MS);
            self.later(again, Happening::Datagram(Box::new(datagram.clone())));
        }
        self.later(delay, Happening::Datagram(Box::new(datagram)));
    }

    pub(super) fn on_datagram(&mut self, datagram: &Datagram) {
        let Some(node) = self.at_address(datagram.to_addr) else {
            return;
        };
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.exiting || datagram.from == node {
            return;
        }
        let sender = name_of(datagram.from);
        let known = process
            .cluster
            .swim()
            .member(&sender)
            .map(|m| m.record.record.boot);
        if known != Some(datagram.boot) || process.keys & datagram.keys == 0 {
            self.tally.unopened += 1;
            return;
        }
        let window = process.windows.entry(datagram.from).or_default();
        if !window.accept(datagram.boot, datagram.counter) {
            self.tally.count("replays_refused");
            return;
        }
        self.take_message(node, datagram.from, datagram.from_addr, &datagram.payload);
    }

    /// Gives a node the content of a datagram that opened.
    pub(crate) fn take_message(
        &mut self,
        node: usize,
        from: usize,
        from_addr: SocketAddr,
        payload: &[u8],
    ) {
        let Ok(message) = swim::Message::decode(&name_of(from), payload) else {
            self.tally.count("undecodable");
            return;
        };
        let now = self.local(node);
        let records = self.verify(node, &message);
        let forced: Vec<ForcedLeave> = message.forced_leaves().cloned().collect();
        let events = message.events.clone();
        let statements = message.statements.len();
        let sender = name_of(from);
        let at = self.now;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process
            .observer
            .on_message(at, &sender, &message.body, statements);
        process
            .cluster
            .handle_gossip(now, &sender, from_addr, message, records);
        for forced in forced {
            if self.registry.is_forced_signed(&forced) {
                process.cluster.handle_forced_leave(now, forced);
            } else {
                self.tally.count("statements_refused");
            }
        }
        if !events.is_empty() {
            // What is sent now was composed before these came.
            self.settle(node);
        }
        for event in events {
            self.take_event(node, &event);
        }
        self.settle(node);
    }

    pub(super) fn verify(
        &mut self,
        node: usize,
        message: &swim::Message,
    ) -> Vec<Arc<VerifiedRecord>> {
        let now = self.local(node);
        let mut verified = Vec::new();
        for signed in &message.records {
            let Some(record) = self.registry.find(signed) else {
                self.tally.count("records_refused");
                continue;
            };
            let record = Arc::clone(record);
            let owner = self.index_of(&record.record.node);
            let Some(process) = &mut self.nodes[node].process else {
                continue;
            };
            let Some(owner) = owner else {
                continue;
            };
            if process.certificates.contains(owner) {
                verified.push(record);
                continue;
            }
            let (name, addr) = (record.record.node.clone(), record.record.quic_addr);
            let is_left = record.record.left;
            if !process
                .waiting
                .iter()
                .any(|(_, waiting)| Arc::ptr_eq(waiting, &record))
            {
                if process.waiting.len() >= MAX_WAITING {
                    process.waiting.pop_front();
                }
                process.waiting.push_back((owner, record));
            }
            if !is_left {
                process.cluster.handle_hint(now, &name, addr);
            }
        }
        verified
    }

    /// A node has seen a certificate; what waited for it comes out.
    pub(super) fn learn_certificate(&mut self, node: usize, of: usize) -> Vec<Arc<VerifiedRecord>> {
        let Some(process) = &mut self.nodes[node].process else {
            return Vec::new();
        };
        process.certificates.insert(of);
        if process.waiting.is_empty() {
            return Vec::new();
        }
        let (released, waiting): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut process.waiting)
            .into_iter()
            .partition(|(owner, _)| *owner == of);
        process.waiting = waiting;
        released.into_iter().map(|(_, record)| record).collect()
    }
}
