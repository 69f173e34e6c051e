//! Those who mean harm, while an act lets them.
//!
//! None of them breaks cryptography; each says everything that its keys let it say, fifty times a
//! second, to anybody.
//!
//! - The **outsider** hears all datagrams and has no key: it sends noise, and repeats what it
//!   recorded to whomever it likes, also to a later life of the receiver.
//! - The **key holder** has the gossip key and no certificate, so it can seal in any member's name:
//!   accusations in everybody's name at incarnations real and absurd, forced leaves without a
//!   signature, forged records and events, old ones of both, pings and answers to nothing. Its numbers of datagrams
//!   are taken as always fresh.
//! - The **insider** has a certificate: the same in its own name, records of its own with absurd
//!   incarnations, other nodes' addresses, tags, `left` and back again; forced leaves that it really
//!   signed; events of its own with absurd numbers and times; and in its syncs everybody is dead. What becomes of the insider itself is its own
//!   fault; what the others believe of each other is checked as ever.

use std::collections::BTreeMap;

use nodosum::{
    BootId, MemberStatus,
    unversioned::{
        record::{Record, SignedRecord},
        swim::{
            Accusation, Body, EventClock, ForcedLeave, Message, SignedEvent, Statement, SyncEntry,
            UserEvent,
        },
    },
};

use super::{
    script::{Hostility, What},
    world::{Happening, MS, World, gossip_addr, name_of, quic_addr},
};

/// The time between two of a hostile party's datagrams.
const PACE: u64 = 20 * MS;

impl World {
    pub(crate) fn on_hostile(&mut self, act: usize) {
        if !self.conditions.is_active(act) {
            return;
        }
        let What::Hostile(hostility) = self.script.acts[act].what else {
            return;
        };
        match hostility {
            Hostility::Outsider => self.act_outside(),
            Hostility::KeyHolder => self.act_with_key(),
            Hostility::Insider(node) => self.act_inside(node),
        }
        self.later(PACE, Happening::Hostile { act });
    }

    fn act_outside(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let mut datagram = self.recorded[self.rng.index(self.recorded.len())].clone();
        let to = self.rng.index(self.nodes.len());
        match self.rng.below(3) {
            // To whom it was for, once more.
            0 => {}
            1 => datagram.to_addr = gossip_addr(self.nodes[to].addr),
            // Without the key, whatever is changed does not open.
            _ => {
                datagram.keys = 0;
                datagram.to_addr = gossip_addr(self.nodes[to].addr);
            }
        }
        self.tally.fault("outsider");
        self.later(MS, Happening::Datagram(Box::new(datagram)));
    }

    fn act_with_key(&mut self) {
        let as_whom = self.rng.index(self.nodes.len());
        let to = self.rng.index(self.nodes.len());
        let is_awake = self.process(to).is_some_and(|p| p.paused + p.stalled == 0);
        if as_whom == to || !is_awake {
            return;
        }
        let member = self
            .cluster(to)
            .and_then(|c| c.swim().member(&name_of(as_whom)).map(|_| ()));
        if member.is_none() || self.process(to).is_some_and(|p| p.keys == 0) {
            return;
        }
        let message = self.invent(None);
        self.tally.fault("key_holder");
        let from_addr = gossip_addr(self.nodes[as_whom].addr);
        self.take_message(to, as_whom, from_addr, &message.encode());
    }

    fn act_inside(&mut self, node: usize) {
        self.nodes[node].hostile = true;
        let to = self.rng.index(self.nodes.len());
        let is_awake = self
            .process(node)
            .is_some_and(|p| p.paused + p.stalled == 0);
        if to == node || !is_awake {
            return;
        }
        let message = self.invent(Some(node));
        self.tally.fault("insider");
        let to_addr = gossip_addr(self.nodes[to].addr);
        self.send_as(node, to_addr, &message.encode());
    }

    fn someone(&mut self) -> usize {
        self.rng.index(self.nodes.len())
    }

    /// An incarnation to accuse somebody at: the true one most often.
    fn some_incarnation(&mut self, of: usize) -> u64 {
        let real = self
            .cluster(of)
            .map_or(1, |c| c.swim().me().record.incarnation);
        match self.rng.below(8) {
            0 => u64::MAX,
            1 => u64::MAX - 1,
            2 => real.saturating_add(1 << 20),
            3 => real.saturating_add(1),
            4 => real.saturating_sub(1),
            _ => real,
        }
    }

    /// Something harmful to say; `insider` signs what it can.
    fn invent(&mut self, insider: Option<usize>) -> Message {
        let mut message = Message {
            body: Body::Gossip,
            statements: Vec::new(),
            records: Vec::new(),
            events: Vec::new(),
        };
        let about = self.someone();
        let accuser = name_of(self.someone());
        let accusation = Accusation {
            node: name_of(about),
            incarnation: self.some_incarnation(about),
            accuser: match insider {
                Some(node) if self.rng.below(2) == 0 => name_of(node),
                Some(_) | None => accuser,
            },
        };
        match self.rng.below(9) {
            8 => message.events.extend(self.event_to_show(insider)),
            0..=2 => message.statements.push(Statement::Suspect(accusation)),
            3 => message.statements.push(Statement::Dead(accusation)),
            4 => {
                let issuer = insider.map_or_else(|| name_of(about), name_of);
                let mut forced = ForcedLeave {
                    node: accusation.node,
                    incarnation: accusation.incarnation,
                    issuer: issuer.clone(),
                    signature: vec![7; 71],
                };
                if insider.is_some() {
                    forced.signature = self.registry.sign_forced(&forced);
                    self.truth.forces(issuer, forced.node.clone());
                }
                message.statements.push(Statement::ForcedLeave(forced));
            }
            5 => message.records.extend(self.record_to_show(insider, about)),
            6 => {
                let seq = self.rng.u64() as u32;
                message.body = match self.rng.below(4) {
                    0 => Body::Ping {
                        seq,
                        target: name_of(about),
                    },
                    1 => Body::PingReq {
                        seq,
                        target: name_of(about),
                    },
                    2 => Body::Ack { seq },
                    _ => Body::Nack { seq },
                };
            }
            _ => {
                for other in 0..self.nodes.len().min(40) {
                    let incarnation = self.some_incarnation(other);
                    message.statements.push(Statement::Suspect(Accusation {
                        node: name_of(other),
                        incarnation,
                        accuser: accusation.accuser.clone(),
                    }));
                }
            }
        }
        message
    }

    /// An insider's own record with something absurd in it; an old one of somebody; or a forged one.
    fn record_to_show(&mut self, insider: Option<usize>, about: usize) -> Option<SignedRecord> {
        if let Some(node) = insider
            && self.rng.below(2) == 0
        {
            let mut record = self.cluster(node)?.swim().me().record.clone();
            let step = [1, 2, 1 << 20, 1 << 47, 1 << 49, u64::MAX][self.rng.index(6)];
            record.incarnation = record.incarnation.saturating_add(step);
            match self.rng.below(5) {
                0 => {
                    let addr = self.nodes[about].addr;
                    record.quic_addr = quic_addr(addr);
                    record.gossip_addr = gossip_addr(addr);
                }
                1 => record.left = true,
                2 => {
                    record.tags = BTreeMap::from([("x".to_owned(), "y".repeat(200))]);
                }
                _ => {}
            }
            return Some(self.registry.sign(record).signed.clone());
        }
        let real = self.truth.some_record(about, self.rng.u64())?;
        if self.rng.below(2) == 0 {
            // Signed once, and out of date by now.
            return Some(self.registry.sign(real).signed.clone());
        }
        let forged = Record {
            incarnation: real.incarnation.saturating_add(1),
            ..real
        };
        Some(SignedRecord {
            payload: forged.encode().into(),
            signature: vec![9; 71].into(),
        })
    }

    /// An insider's own event with something absurd in it; somebody's of any time, repeated; or a
    /// forged one.
    fn event_to_show(&mut self, insider: Option<usize>) -> Option<SignedEvent> {
        const LAMPORTS: [u64; 6] = [0, 1, 1 << 32, 1 << 33, 1 << 62, u64::MAX];
        if let Some(node) = insider
            && self.rng.below(2) == 0
        {
            let boot = match self.rng.below(4) {
                0 => BootId([7; 16]),
                _ => self.process(node)?.boot,
            };
            let number = match self.rng.below(20) {
                0 => u64::MAX,
                _ => 1 + self.rng.below(200),
            };
            let event = UserEvent {
                origin: name_of(node),
                boot,
                number,
                lamport: LAMPORTS[self.rng.index(LAMPORTS.len())],
                name: "lie".to_owned(),
                payload: self.rng.u64().to_be_bytes().to_vec(),
                query: None,
            };
            return Some(self.registry.sign_event(event).signed);
        }
        let number = self.rng.u64();
        let real = self.registry.some_event(number)?.clone();
        let mut event = UserEvent::decode(&real.payload).ok()?;
        match self.rng.below(6) {
            0 => event.payload = b"forged".to_vec(),
            1 => event.number = event.number.saturating_add(1),
            2 => event.lamport = u64::MAX,
            3 => {
                let whom = self.someone();
                event.origin = name_of(whom);
                event.boot = self.process(whom)?.boot;
            }
            _ => return Some(real),
        }
        Some(SignedEvent {
            payload: event.encode().into(),
            signature: real.signature,
        })
    }

    /// Where an insider says that it stands with events.
    pub(crate) fn false_clock(&mut self, clock: EventClock) -> EventClock {
        let absurd = [0, 1 << 32, 1 << 33, u64::MAX];
        EventClock {
            lamport: absurd[self.rng.index(4)],
            number: absurd[self.rng.index(4)],
            ..clock
        }
    }

    /// What an insider says in a sync.
    pub(crate) fn lie(&mut self, entries: &mut Vec<SyncEntry>) {
        let lies = [
            MemberStatus::Dead,
            MemberStatus::Suspect,
            MemberStatus::Left,
        ];
        let status = lies[self.rng.index(3)];
        for entry in entries.iter_mut() {
            entry.status = status;
            if self.rng.below(8) == 0 {
                let node = entry.record.record.node.clone();
                entry.forced = Some(Box::new(ForcedLeave {
                    issuer: node.clone(),
                    node,
                    incarnation: entry.record.record.incarnation,
                    signature: vec![8; 71],
                }));
            }
        }
        let keep = self.rng.below(10);
        entries.retain(|_| self.rng.below(10) >= keep / 2);
    }
}
