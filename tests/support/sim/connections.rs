//! Connections as abstract objects: handshakes, frames, syncs, health pings and ends.
//!
//! - **Handshake.** Five flights, each of which can be lost and is repeated until the deadline, while
//!   its sender is there; one end is up before the other, and what it says meanwhile waits.
//! - **Frames** arrive in order. Loss delays them by QUIC's probe time-outs, and a blocked path holds
//!   them back until nothing was heard for the idle time-out. Syncs are bulk beside them.
//! - **Health pings.** All pings of a node are sent in one instant, and their outcome is worked out
//!   from the state of the path and of the other end at that instant, without an entry in the agenda
//!   for each. With a thousand connections this is what makes the simulation possible; what is lost
//!   is only that the pings of one node spread over their interval.
//! - **Ends.** A close can be lost. A process can be gone, or be another: its host, or the new
//!   process, says so one round trip after the next ping, if it says anything.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use nodosum::{
    CloseCode, CloseReason, MemberStatus, NodeId, Side,
    unversioned::{
        ConnectionId,
        cluster::Frame,
        swim::{Doubt, ForcedLeave, SyncEntry},
    },
};

use super::world::{Happening, IDLE, MS, SEC, World, name_of, socket};

/// The transport's deadline for dial and handshake, the pings that may be missed,
/// and the patience with a host that refuses the port.
const HANDSHAKE: u64 = 5 * SEC;
const PINGS_MISSED: u32 = 3;
const REFUSED_PATIENCE: u64 = SEC;

/// QUIC's first probe time-out without and with a measured round trip, and the most between two.
const FIRST_PTO: u64 = 300 * MS;
const PTO: u64 = 100 * MS;
const MAX_PTO: u64 = 2 * SEC;
/// Beyond so many losses in a row the idle time-out has its turn.
const MAX_LOSSES: u32 = 12;
/// What was sent under loss may be this late, and hold up what follows it, though the loss is over.
pub(super) const LATEST: u64 = MAX_LOSSES as u64 * MAX_PTO;

/// How long QUIC's probe time-outs go on in silence before they are a sign.
const STALL: u64 = 500 * MS;

/// Frames that wait for a connection's worker before the connection counts as stuck.
const FRAME_CAPACITY: usize = 256;

/// Bytes a second that a sync gets of the path; and what an entry takes with its certificate.
const SYNC_RATE: u64 = 20_000_000;
const SYNC_ENTRY_BYTES: u64 = 900;

/// A sync under way.
pub(crate) struct SyncOnWire {
    pub(super) conn: usize,
    pub(super) end: usize,
    entries: Vec<SyncEntry>,
    keys: u64,
    /// The number that the answer goes to; `None` if this is the answer.
    stream: Option<u64>,
    tries: u32,
}

/// What travels in order on a connection.
#[derive(Clone)]
pub(super) enum Wire {
    Frame(Frame),
    Use,
    Keys(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The acceptor has not heard of it yet.
    None,
    Handshaking,
    Up,
    Over,
}

/// One end of a connection.
pub(crate) struct End {
    pub(crate) node: usize,
    pub(crate) life: u32,
    pub(crate) id: ConnectionId,
    pub(crate) phase: Phase,
    pub(super) heard_at: u64,
    pub(super) missed: u32,
    pub(super) refused: bool,
    /// Nothing came back since `heard_at`, and the node was told so.
    pub(super) stalled: bool,
    pub(super) frames: VecDeque<(u64, Wire)>,
    pub(super) sending: bool,
}

/// A connection, or the attempt at one. The dialler is end 0.
pub(crate) struct Conn {
    pub(crate) ends: [End; 2],
    pub(super) expected: Option<NodeId>,
    pub(super) addr: SocketAddr,
    pub(super) started_at: u64,
}

impl World {
    // ---- from dial to up

    pub(super) fn end_of(&self, node: usize, id: ConnectionId) -> Option<(usize, usize)> {
        let place = usize::try_from(id.0).ok()?.checked_sub(1)?;
        *self.process(node)?.ends.get(place)?
    }

    pub(super) fn register(&mut self, conn: usize, end: usize) {
        let End { node, id, .. } = self.conns[conn].ends[end];
        let place = (id.0 as usize).saturating_sub(1);
        if let Some(process) = &mut self.nodes[node].process {
            if process.ends.len() <= place {
                process.ends.resize(place + 1, None);
            }
            process.ends[place] = Some((conn, end));
            process.open.insert((conn, end));
        }
    }

    pub(super) fn new_end(&self, node: usize, id: ConnectionId, phase: Phase) -> End {
        End {
            node,
            life: self.life(node).unwrap_or(0),
            id,
            phase,
            heard_at: self.now,
            missed: 0,
            refused: false,
            stalled: false,
            frames: VecDeque::new(),
            sending: false,
        }
    }

    pub(super) fn dial(
        &mut self,
        node: usize,
        id: ConnectionId,
        expected: Option<NodeId>,
        addr: SocketAddr,
    ) {
        self.note(&[4, node as u64, id.0]);
        self.tally.dials += 1;
        if self.options.checked {
            if let Some(process) = &mut self.nodes[node].process
                && (process.exiting || process.leaving)
            {
                self.violate(node, "dials although it stops");
            } else if let Some(process) = &mut self.nodes[node].process
                && process.observer.on_dial(addr)
            {
                self.violate(node, &format!("dials {addr} again, which is its own"));
            }
        }
        let conn = self.conns.len();
        self.conns.push(Conn {
            ends: [
                self.new_end(node, id, Phase::Handshaking),
                self.new_end(usize::MAX, ConnectionId(0), Phase::None),
            ],
            expected,
            addr,
            started_at: self.now,
        });
        self.register(conn, 0);
        self.later(HANDSHAKE, Happening::DialDeadline { conn, end: 0 });
        let to = self.owner_of(addr).unwrap_or(node);
        self.send_leg(conn, 1, node, to);
    }

    pub(super) fn on_leg(&mut self, conn: usize, leg: u8, tries: u32) {
        let dialler = self.conns[conn].ends[0].node;
        if self.conns[conn].ends[0].phase == Phase::Over && leg.is_multiple_of(2) {
            return;
        }
        let sender = usize::from(leg.is_multiple_of(2));
        if tries > 0 && self.conns[conn].ends[sender].phase == Phase::Over {
            // What did not arrive at first is not sent again by a process that has ended.
            return;
        }
        let acceptor = if leg == 1 {
            self.owner_of(self.conns[conn].addr)
        } else {
            Some(self.conns[conn].ends[1].node)
        };
        let Some(acceptor) = acceptor else {
            return;
        };
        let (from, to) = if leg % 2 == 1 {
            (dialler, acceptor)
        } else {
            (acceptor, dialler)
        };
        if self.conditions.is_blocked(from, to) && from != to {
            self.tally.fault("block_handshake");
            if self.now < self.conns[conn].started_at + HANDSHAKE {
                let again = (FIRST_PTO << tries.min(4)).min(MAX_PTO);
                self.later(
                    again,
                    Happening::Leg {
                        conn,
                        leg,
                        tries: tries + 1,
                    },
                );
            }
            return;
        }
        match leg {
            1 => self.on_first_flight(conn, acceptor, tries),
            2 => {
                let name = name_of(acceptor);
                let is_wanted = self.conns[conn]
                    .expected
                    .as_ref()
                    .is_none_or(|e| *e == name);
                if is_wanted {
                    self.next_leg(conn, 3);
                } else {
                    self.tally.count("wrong_identities");
                    let reason = CloseReason::WrongIdentity(format!("it is {name}"));
                    self.on_down(conn, 0, &reason);
                }
            }
            3 if self.is_current(conn, 1) => self.next_leg(conn, 4),
            4 if self.is_current(conn, 0) => {
                self.next_leg(conn, 5);
                self.on_up(conn, 0);
            }
            5 if self.is_current(conn, 1) => self.on_up(conn, 1),
            _ => {}
        }
    }

    pub(super) fn next_leg(&mut self, conn: usize, leg: u8) {
        let (a, b) = (self.conns[conn].ends[0].node, self.conns[conn].ends[1].node);
        let (from, to) = if leg % 2 == 1 { (a, b) } else { (b, a) };
        self.send_leg(conn, leg, from, to);
    }

    fn send_leg(&mut self, conn: usize, leg: u8, from: usize, to: usize) {
        let (latency, losses) = self.reliable_latency(from, to, FIRST_PTO);
        self.later(
            latency,
            Happening::Leg {
                conn,
                leg,
                tries: losses,
            },
        );
    }

    pub(super) fn on_first_flight(&mut self, conn: usize, owner: usize, tries: u32) {
        let dialler = self.conns[conn].ends[0].node;
        let Some(acceptor) = self.at_address(self.conns[conn].addr) else {
            let answers = self.nodes[owner].host_up && self.script.icmp;
            if answers && !self.conditions.is_blocked(owner, dialler) {
                let latency = self.latency(owner, dialler);
                let reason = Box::new(CloseReason::Refused);
                self.later(
                    latency,
                    Happening::Down {
                        conn,
                        end: 0,
                        reason,
                    },
                );
            } else if self.now < self.conns[conn].started_at + HANDSHAKE {
                let again = (FIRST_PTO << tries.min(4)).min(MAX_PTO);
                self.later(
                    again,
                    Happening::Leg {
                        conn,
                        leg: 1,
                        tries: tries + 1,
                    },
                );
            }
            return;
        };
        if acceptor == dialler {
            self.tally.count("self_dials");
            let reason = Box::new(CloseReason::Local(CloseCode::SelfDial));
            self.later(
                MS,
                Happening::Down {
                    conn,
                    end: 0,
                    reason,
                },
            );
            return;
        }
        let Some(process) = &mut self.nodes[acceptor].process else {
            return;
        };
        if process.exiting {
            return;
        }
        let id = process.cluster.allocate();
        self.conns[conn].ends[1] = self.new_end(acceptor, id, Phase::Handshaking);
        self.register(conn, 1);
        self.later(HANDSHAKE, Happening::DialDeadline { conn, end: 1 });
        self.next_leg(conn, 2);
    }

    pub(super) fn on_up(&mut self, conn: usize, end: usize) {
        if self.conns[conn].ends[end].phase != Phase::Handshaking {
            return;
        }
        self.conns[conn].ends[end].phase = Phase::Up;
        self.conns[conn].ends[end].heard_at = self.now;
        let node = self.conns[conn].ends[end].node;
        let peer = self.conns[conn].ends[1 - end].node;
        let id = self.conns[conn].ends[end].id;
        let proven = self.learn_certificate(node, peer);
        // HELLO told the boot id and the keyring; the peer may have ended since.
        let peer_life = self.conns[conn].ends[1 - end].life;
        let (boot, peer_keys) = match self.process(peer) {
            Some(process) if process.life == peer_life => (process.boot, process.keys),
            Some(_) | None => (self.truth.boot_of(peer, peer_life), 0),
        };
        let now = self.local(node);
        let addr = self.conns[conn].addr;
        self.note(&[5, node as u64, id.0, peer as u64]);
        self.say(|| format!("{} {id} up with {}", name_of(node), name_of(peer)));
        let (side, addr) = if end == 0 {
            (Side::Dialed, addr)
        } else {
            let port = 30_000 + (conn % 30_000) as u16;
            (Side::Accepted, socket(self.nodes[peer].addr, port))
        };
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let rings_differ = process.keys != peer_keys;
        let keys = process.keys;
        let peer_name = name_of(peer);
        let view = process.cluster.swim().member(&peer_name);
        let was_alive = view.is_some_and(|view| view.status == MemberStatus::Alive);
        let is_kept =
            process
                .cluster
                .handle_up(now, id, &peer_name, boot, side, addr, proven, rings_differ);
        if is_kept && side == Side::Dialed && !was_alive && !process.leaving {
            process.owed_sync = Some(id);
        }
        self.tally.count("connections_up");
        if keys != 0 {
            self.send_frame(node, id, Wire::Keys(keys));
        }
        self.settle(node);
        self.check_no_sync_is_owed(node);
        // What the other end has said since it was up itself waits for this.
        self.send_on(conn, 1 - end);
    }

    /// How long QUIC takes to bring something over: latency, and a probe time-out for every loss. And
    /// how many losses.
    pub(super) fn reliable_latency(
        &mut self,
        from: usize,
        to: usize,
        first_pto: u64,
    ) -> (u64, u32) {
        let mut latency = self.latency(from, to);
        let loss = self.conditions.loss(from, to);
        let mut pto = first_pto;
        let mut losses = 0;
        while losses < MAX_LOSSES && self.chance(loss) {
            self.tally.fault("loss");
            latency += pto;
            pto = (pto * 2).min(MAX_PTO);
            losses += 1;
        }
        (latency, losses)
    }

    pub(super) fn on_dial_deadline(&mut self, conn: usize, end: usize) {
        if self.conns[conn].ends[end].phase == Phase::Handshaking {
            let reason = CloseReason::HandshakeTimeout(Duration::from_nanos(HANDSHAKE));
            self.on_down(conn, end, &reason);
        }
    }

    // ---- frames and syncs

    pub(super) fn send_frame(&mut self, node: usize, id: ConnectionId, wire: Wire) {
        let Some((conn, end)) = self.end_of(node, id) else {
            return;
        };
        if self.conns[conn].ends[end].phase != Phase::Up {
            return;
        }
        let full = self.conditions.full(node);
        if self.conns[conn].ends[end].frames.len() >= FRAME_CAPACITY
            || full.is_some_and(|percent| self.rng.below(1_000) < percent)
        {
            // A worker that takes no command is stuck; nothing is lost in silence.
            self.tally.fault("stuck_worker");
            self.close(conn, end, CloseCode::Overloaded);
            return;
        }
        let wire = match wire {
            Wire::Frame(Frame::EventClock(clock)) if self.conditions.insider() == Some(node) => {
                Wire::Frame(Frame::EventClock(self.false_clock(clock)))
            }
            wire => wire,
        };
        let to = self.conns[conn].ends[1 - end].node;
        let (latency, _) = self.reliable_latency(node, to, PTO);
        let frames = &mut self.conns[conn].ends[end].frames;
        let last = frames.back().map_or(0, |(at, _)| *at);
        frames.push_back(((self.now + latency).max(last), wire));
        self.send_on(conn, end);
    }

    /// Puts the delivery of the first frame of `end` on the agenda, once the other end is up.
    pub(super) fn send_on(&mut self, conn: usize, end: usize) {
        if self.conns[conn].ends[1 - end].phase != Phase::Up {
            return;
        }
        let sender = &mut self.conns[conn].ends[end];
        if sender.sending {
            return;
        }
        if let Some((at, _)) = sender.frames.front() {
            sender.sending = true;
            let at = (*at).max(self.now);
            self.queue.push(
                at,
                Happening::Deliver {
                    conn,
                    end,
                    tries: 0,
                },
            );
        }
    }

    pub(super) fn on_deliver(&mut self, conn: usize, end: usize, tries: u32) {
        let (from, to) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        self.conns[conn].ends[end].sending = false;
        if self.conns[conn].ends[1 - end].phase != Phase::Up || !self.is_current(conn, 1 - end) {
            self.conns[conn].ends[end].frames.clear();
            return;
        }
        let is_gone = self.conns[conn].ends[end].phase != Phase::Up;
        if is_gone && tries > 0 {
            // What did not arrive at first is not sent again by a process that has ended.
            self.conns[conn].ends[end].frames.clear();
            return;
        }
        if self.conditions.is_blocked(from, to) {
            self.tally.fault("block_frame");
            if is_gone {
                return;
            }
            self.conns[conn].ends[end].sending = true;
            let again = (PTO << tries.min(5)).min(MAX_PTO);
            self.later(
                again,
                Happening::Deliver {
                    conn,
                    end,
                    tries: tries + 1,
                },
            );
            return;
        }
        let Some((_, wire)) = self.conns[conn].ends[end].frames.pop_front() else {
            return;
        };
        let id = self.conns[conn].ends[1 - end].id;
        self.conns[conn].ends[1 - end].heard_at = self.now;
        let now = self.local(to);
        if let Some(process) = &mut self.nodes[to].process {
            match wire {
                Wire::Frame(Frame::UserEvents(events)) => {
                    self.tally.frames += events.len() as u64;
                    let told = process.cluster.swim().counters().events_received;
                    for event in events {
                        self.take_event(to, &event.signed);
                    }
                    let after = self
                        .cluster(to)
                        .map_or(0, |cluster| cluster.swim().counters().events_received);
                    self.tally
                        .add("events_mended_by_sync", after.saturating_sub(told));
                }
                Wire::Frame(frame) => {
                    self.tally.frames += 1;
                    process.cluster.handle_frame(now, id, frame);
                }
                Wire::Use => process.cluster.handle_used(now, id),
                Wire::Keys(keys) => self.merge_keys(to, keys),
            }
        }
        self.settle(to);
        self.send_on(conn, end);
    }

    /// A ring that grew is told to every peer.
    pub(super) fn merge_keys(&mut self, node: usize, keys: u64) {
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.keys | keys == process.keys {
            return;
        }
        process.keys |= keys;
        let keys = process.keys;
        let open: Vec<_> = process.open.iter().copied().collect();
        for (conn, end) in open {
            let id = self.conns[conn].ends[end].id;
            self.send_frame(node, id, Wire::Keys(keys));
        }
    }

    pub(super) fn send_sync(&mut self, node: usize, id: ConnectionId, answer_to: Option<u64>) {
        let now = self.local(node);
        self.note(&[6, node as u64, id.0]);
        let open = self
            .end_of(node, id)
            .filter(|(conn, end)| self.conns[*conn].ends[*end].phase == Phase::Up);
        let full = self.conditions.full(node);
        let refused = full.is_some_and(|percent| self.chance(percent));
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let Some((conn, end)) = open.filter(|_| !refused) else {
            if answer_to.is_none() {
                self.tally.count("syncs_not_begun");
                process.cluster.handle_sync_broken(now, id);
            }
            return;
        };
        let mut entries = process.cluster.sync_entries(id);
        process.streams += 1;
        let (keys, stream) = (process.keys, process.streams);
        if let Some(node) = self.conditions.insider()
            && node == self.conns[conn].ends[end].node
        {
            self.lie(&mut entries);
        }
        let to = self.conns[conn].ends[1 - end].node;
        self.say(|| {
            let what = if answer_to.is_some() {
                "answers the sync of"
            } else {
                "syncs with"
            };
            format!(
                "{} {what} {}: {} entries",
                name_of(node),
                name_of(to),
                entries.len()
            )
        });
        let (latency, _) = self.reliable_latency(node, to, PTO);
        let latency = latency + entries.len() as u64 * SYNC_ENTRY_BYTES * SEC / SYNC_RATE;
        self.tally.count(if answer_to.is_some() {
            "sync_answers"
        } else {
            "syncs"
        });
        // An answer needs no number; only questions are answered.
        let sync = SyncOnWire {
            conn,
            end,
            entries,
            keys,
            stream: answer_to.is_none().then_some(stream),
            tries: 0,
        };
        self.later(latency, Happening::Sync(Box::new(sync)));
    }

    pub(super) fn on_sync(&mut self, mut sync: Box<SyncOnWire>) {
        let (conn, end) = (sync.conn, sync.end);
        let (from, to) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        if self.conns[conn].ends[1 - end].phase == Phase::Handshaking {
            // Nothing but the control stream is read before READY.
            self.later(MS, Happening::Sync(sync));
            return;
        }
        if self.conns[conn].ends[1 - end].phase != Phase::Up || !self.is_current(conn, 1 - end) {
            self.tally.count("syncs_lost");
            return;
        }
        if self.conditions.is_blocked(from, to) {
            if self.conns[conn].ends[end].phase == Phase::Up {
                let again = (PTO << sync.tries.min(5)).min(MAX_PTO);
                sync.tries += 1;
                self.later(again, Happening::Sync(sync));
            }
            return;
        }
        let id = self.conns[conn].ends[1 - end].id;
        self.conns[conn].ends[1 - end].heard_at = self.now;
        self.merge_keys(to, sync.keys);
        let mut entries = Vec::with_capacity(sync.entries.len());
        for entry in sync.entries {
            let owner = self.index_of(&entry.record.record.node);
            let released = owner.map_or_else(Vec::new, |owner| self.learn_certificate(to, owner));
            // What waited for the certificate is no newer word than a sync is.
            entries.extend(
                released
                    .into_iter()
                    .filter(|record| record.record.incarnation > entry.record.record.incarnation)
                    .map(|record| SyncEntry {
                        record,
                        status: MemberStatus::Alive,
                        forced: None,
                    }),
            );
            entries.push(entry);
        }
        // What is not signed is not handed on.
        for entry in &mut entries {
            let signed = |forced: &ForcedLeave| self.registry.is_forced_signed(forced);
            if entry
                .forced
                .as_deref()
                .is_some_and(|forced| !signed(forced))
            {
                entry.forced = None;
                self.tally.count("statements_refused");
            }
        }
        let now = self.local(to);
        if let Some(process) = &mut self.nodes[to].process {
            process.observer.on_sync(entries.len());
            process.cluster.handle_sync(now, id, entries, sync.stream);
        }
        self.settle(to);
    }

    // ---- pings and ends

    pub(super) fn on_ping_tick(&mut self, node: usize, life: u32) {
        if self.life(node) != Some(life) {
            return;
        }
        let Some(process) = self.process(node) else {
            return;
        };
        let open: Vec<_> = process.open.iter().copied().collect();
        let up = open
            .iter()
            .filter(|(conn, end)| self.conns[*conn].ends[*end].phase == Phase::Up)
            .count() as u64;
        for (conn, end) in open {
            if self.life(node) == Some(life) && self.conns[conn].ends[end].phase == Phase::Up {
                self.ping(conn, end);
            }
        }
        // As the reactor does: at most a hundred pings a second, yet before the idle time-out.
        let interval = (SEC.max(up * 10 * MS)).min(IDLE / 3);
        self.later(interval, Happening::PingTick { node, life });
    }

    /// One health ping, from sending to its outcome.
    pub(super) fn ping(&mut self, conn: usize, end: usize) {
        let (node, peer) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        if self.now - self.conns[conn].ends[end].heard_at >= IDLE {
            self.tally.count("idle_timeouts");
            self.on_down(conn, end, &CloseReason::Idle);
            return;
        }
        self.tally.pings += 1;
        let forth = !self.conditions.is_blocked(node, peer) && self.gets_through(node, peer);
        let back = !self.conditions.is_blocked(peer, node) && self.gets_through(peer, node);
        let has_end =
            self.conns[conn].ends[1 - end].phase == Phase::Up && self.is_current(conn, 1 - end);
        let state = self.process(peer).map(|p| (p.paused > 0, p.stalled > 0));
        let (mut heard, mut answered) = (false, false);
        match state {
            Some((paused, stalled)) if has_end => {
                if forth {
                    self.conns[conn].ends[1 - end].heard_at = self.now;
                }
                if forth && back && !paused {
                    self.conns[conn].ends[end].heard_at = self.now;
                    heard = true;
                    answered = !stalled;
                }
            }
            // It runs and knows nothing of this connection: its socket is closed, or its listener
            // says that there is no such connection.
            Some((false, _))
                if forth && back && self.conns[conn].ends[1 - end].phase == Phase::Over =>
            {
                self.refusal_later(conn, end, end == 0);
            }
            None if forth && back && self.nodes[peer].host_up && self.script.icmp => {
                self.refusal_later(conn, end, false);
            }
            Some(_) | None => {}
        }
        self.conns[conn].ends[end].stalled &= !heard;
        if !heard && !self.conns[conn].ends[end].stalled {
            // QUIC's probe time-outs add up to this while nothing comes back.
            let silent_since = self.conns[conn].ends[end].heard_at;
            self.later(
                STALL,
                Happening::Stalled {
                    conn,
                    end,
                    silent_since,
                },
            );
        }
        if answered {
            self.conns[conn].ends[end].missed = 0;
            self.on_ping_answered(conn, end);
            return;
        }
        self.conns[conn].ends[end].missed += 1;
        if self.conns[conn].ends[end].missed == PINGS_MISSED {
            self.tally.count("pings_missed");
            self.doubt(conn, end, Doubt::Unanswered);
        }
    }

    pub(super) fn on_stalled(&mut self, conn: usize, end: usize, silent_since: u64) {
        let state = &mut self.conns[conn].ends[end];
        if state.phase == Phase::Up && state.heard_at == silent_since && !state.stalled {
            state.stalled = true;
            if self.is_current(conn, end) {
                self.doubt(conn, end, Doubt::Stalled);
            }
        }
    }

    /// Whether a ping or its answer arrives within the interval; QUIC sends it about three times.
    pub(super) fn gets_through(&mut self, from: usize, to: usize) -> bool {
        let loss = self.conditions.loss(from, to);
        loss == 0 || (0..3).any(|_| !self.chance(loss))
    }

    pub(super) fn refusal_later(&mut self, conn: usize, end: usize, reset: bool) {
        if std::mem::replace(&mut self.conns[conn].ends[end].refused, true) {
            return;
        }
        let (node, peer) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        let round_trip = self.latency(node, peer) + self.latency(peer, node);
        self.later(round_trip, Happening::Refusal { conn, end, reset });
    }

    pub(super) fn on_refusal(&mut self, conn: usize, end: usize, reset: bool) {
        if self.conns[conn].ends[end].phase != Phase::Up || !self.is_current(conn, end) {
            return;
        }
        self.tally.count(if reset { "resets" } else { "refusals" });
        self.doubt(conn, end, Doubt::Refused);
        if self.conns[conn].ends[end].phase != Phase::Up {
            return;
        }
        if reset {
            self.on_down(conn, end, &CloseReason::Reset);
        } else {
            let reason = Box::new(CloseReason::Refused);
            self.later(REFUSED_PATIENCE, Happening::Down { conn, end, reason });
        }
    }

    /// The answer proves the peer's deciding thread alive at the time of the question.
    pub(super) fn on_ping_answered(&mut self, conn: usize, end: usize) {
        let End { node, id, .. } = self.conns[conn].ends[end];
        let now = self.local(node);
        let round_trip = Duration::from_micros(2 * self.script.latency_us);
        if let Some(process) = &mut self.nodes[node].process {
            let at = now.checked_sub(round_trip).unwrap_or(now);
            process.cluster.handle_answered(now, id, at);
        }
        self.settle(node);
    }

    pub(super) fn doubt(&mut self, conn: usize, end: usize, doubt: Doubt) {
        let End { node, id, .. } = self.conns[conn].ends[end];
        let peer = self.conns[conn].ends[1 - end].node;
        self.tally.count(match doubt {
            Doubt::Refused => "doubts_refused",
            Doubt::Lost => "doubts_lost",
            Doubt::Stalled => "doubts_stalled",
            Doubt::Unanswered => "doubts_unanswered",
        });
        let now = self.local(node);
        let at = self.now;
        if let Some(process) = &mut self.nodes[node].process {
            if doubt == Doubt::Refused {
                process.observer.on_refused(peer, at);
            }
            process.cluster.handle_doubted(now, id, doubt);
        }
        self.settle(node);
    }

    /// A node closes its end.
    pub(super) fn close(&mut self, conn: usize, end: usize, code: CloseCode) {
        if self.conns[conn].ends[end].phase == Phase::Over {
            return;
        }
        self.tell_close(conn, end, code);
        let reason = Box::new(CloseReason::Local(code));
        self.later(50_000, Happening::Down { conn, end, reason });
    }

    /// Three datagrams say that a connection was closed; nobody acknowledges them.
    pub(super) fn tell_close(&mut self, conn: usize, end: usize, code: CloseCode) {
        let (from, to) = (
            self.conns[conn].ends[end].node,
            self.conns[conn].ends[1 - end].node,
        );
        if to == usize::MAX {
            return;
        }
        let arrives = !self.conditions.is_blocked(from, to) && self.gets_through(from, to);
        if arrives {
            let last = self.conns[conn].ends[end]
                .frames
                .back()
                .map_or(0, |(at, _)| *at);
            let latency = self.latency(from, to);
            let at = (self.now + latency).max(last + 1);
            self.queue.push(
                at,
                Happening::CloseArrives {
                    conn,
                    end: 1 - end,
                    code,
                },
            );
        } else {
            self.tally.count("closes_lost");
        }
    }

    /// An end is over, and its node hears why.
    pub(super) fn on_down(&mut self, conn: usize, end: usize, reason: &CloseReason) {
        let state = &mut self.conns[conn].ends[end];
        if matches!(state.phase, Phase::Over | Phase::None) {
            return;
        }
        state.phase = Phase::Over;
        let (node, id) = (state.node, state.id);
        if !self.is_current(conn, end) {
            return;
        }
        self.note(&[7, node as u64, id.0]);
        self.say(|| format!("{} {id} down: {reason}", name_of(node)));
        let now = self.local(node);
        let (at, peer) = (self.now, self.conns[conn].ends[1 - end].node);
        let peer = if peer == usize::MAX {
            self.dialled_at_its_address(conn)
        } else {
            Some(peer)
        };
        if let Some(process) = &mut self.nodes[node].process {
            if matches!(reason, CloseReason::Refused | CloseReason::Reset)
                && let Some(peer) = peer
            {
                process.observer.on_refused(peer, at);
            }
            process.open.remove(&(conn, end));
            process.cluster.handle_down(now, id, reason);
        }
        self.settle(node);
    }

    /// Whom a dial is meant for, if it goes to where the member says of itself that it is. Whose
    /// address that really is does not matter: a liar gives those of others, and is not there.
    fn dialled_at_its_address(&self, conn: usize) -> Option<usize> {
        let Conn {
            ends,
            expected,
            addr,
            ..
        } = &self.conns[conn];
        let name = expected.as_ref()?;
        let view = self.cluster(ends[0].node)?.swim().member(name)?;
        let is_there = view.record.record.quic_addr == *addr;
        self.index_of(name).filter(|_| is_there)
    }
}
