//! The safety invariants, held against every step.
//!
//! An [`Observer`] is what somebody who listened to one life of one node must believe: it replays
//! the events and compares the result with the node's own view. [`Truth`] is what really happened:
//! who lived when, and what was signed:
//!
//! 1. A node's own incarnation rises with every record that it signs; a stored incarnation never
//!    falls until the member is forgotten.
//! 2. At one incarnation, alive gives way to suspect, dead and left, and never the other way.
//! 3. Nobody is dead for a node that did not probe it itself without success since the suspicion
//!    began, and not before the shortest suspicion is over.
//!    Who suspects a member asks it soon, and no suspicion outlasts the longest, unless something
//!    disturbs the one who suspects; whoever was asked in vain is dead when the time is up.
//!    And a node that runs, that nothing has disturbed, is not dead for another of that kind,
//!    whatever third parties suffer or say.
//! 4. `Left` stands in a record that the leaver signed, or was forced by a named member on one that
//!    was dead here. Who is dead or left comes back above that incarnation or after being forgotten.
//! 5. One content for each (node, incarnation, boot id).
//! 6. Nobody is connected to itself, or to somebody under another name.
//! 7. Events of a member form Up (Suspect Alive | Updated)* (Dead | Left)… and their replay is the
//!    view.
//! 8. `Started` comes once; a node that stops dials nobody, and nobody dials who has left for it. Who
//!    dials one that was not alive for it begins a sync as soon as the connection is up.
//!    Who runs and is connected confirms a leave in time, and who has confirmed it knows of it.
//! 9. Queues, dials and datagrams are bounded, and so is what one node sends in one probe interval.
//!    Events of applications: each is told at most once in a life, as its origin emitted it, and only
//!    of a life that is alive here; a node's own have a Lamport time above all it was told; no five
//!    full datagrams in a row leave without one while some wait.
//! 10. What an outsider or a liar says has none of these effects, since all of the above hold while
//!     they speak.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Instant,
};

use nodosum::{
    BootId, MemberStatus, NodeId,
    unversioned::{
        cluster::{Cluster, Event},
        mesh,
        record::Record,
        swim::{self, Body, Transmit, UserEvent},
    },
};

use super::{
    connections::{LATEST, Phase},
    world::{MS, SEC, World},
};

/// A full comparison of every member is made after every step in clusters up to this size; in larger
/// ones after a step with events, and once in [`SWEEP_INTERVAL`].
const SWEEP_ALWAYS: usize = 8;
const SWEEP_INTERVAL: u64 = SEC;

/// Probes out of turn that run at the same time (`swim`), and members told of a leave at once.
const MAX_CHECKS: u64 = 64;
const LEAVE_FANOUT: u64 = 32;
/// Datagrams to one member in a round of gossip (`swim`).
const MAX_BURST: u64 = 4;

/// Events that wait at most: those of others, and of the node's own (`swim`).
pub(crate) const MAX_EVENTS_WAITING: usize = 256 + swim::MAX_OWN_PENDING;
/// A quarter of each datagram adds up to the largest event in so many.
const MAX_WITHOUT_EVENTS: usize = 4;
/// The step of the Lamport clock that is believed (`swim`).
const MAX_LAMPORT_STEP: u64 = 1 << 32;

/// What a suspicion may take beyond its time, in probe intervals: for a probe in the worst health, its
/// repetition, and room among the checks.
const OVERTIME: u64 = 20;
/// A probe in the worst health lasts eight intervals (`swim`); one is for what comes late.
const LONGEST_PROBE: u64 = 9;

/// Dials of one peer or seed in a probe interval.
const DIALS_A_PEER: u64 = 10;

/// What really happened.
#[derive(Default)]
pub(crate) struct Truth {
    /// The boot id of each life of a node.
    lives: BTreeMap<usize, Vec<BootId>>,
    /// The incarnation last signed in the life that runs.
    incarnations: BTreeMap<usize, u64>,
    /// Everything signed, by what it must be unique in.
    contents: BTreeMap<(usize, u64, BootId), Record>,
    left: BTreeSet<usize>,
    forced: BTreeSet<(NodeId, NodeId)>,
}

impl Truth {
    /// A node begins a life with this record.
    pub(crate) fn born(&mut self, node: usize, record: &Record) {
        self.lives.entry(node).or_default().push(record.boot);
        self.incarnations.insert(node, record.incarnation);
        let key = (node, record.incarnation, record.boot);
        self.contents.insert(key, record.clone());
    }

    /// The boot id of a life, counted from 1.
    pub(crate) fn boot_of(&self, node: usize, life: u32) -> BootId {
        let lives = self.lives.get(&node);
        let place = (life as usize).saturating_sub(1);
        lives
            .and_then(|lives| lives.get(place))
            .copied()
            .unwrap_or(BootId([0; 16]))
    }

    /// A node has a record signed.
    pub(crate) fn signs(&mut self, node: usize, record: &Record) -> Result<(), String> {
        let last = self.incarnations.insert(node, record.incarnation);
        if last.is_some_and(|last| record.incarnation <= last) {
            return Err(format!(
                "signs incarnation {} after {last:?}",
                record.incarnation
            ));
        }
        if record.left {
            self.left.insert(node);
        }
        let key = (node, record.incarnation, record.boot);
        match self.contents.insert(key, record.clone()) {
            Some(other) if other != *record => Err(format!(
                "two contents at incarnation {}",
                record.incarnation
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// One of the records that a node has signed; the same number chooses the same.
    pub(crate) fn some_record(&self, node: usize, number: u64) -> Option<Record> {
        let low = (node, 0, BootId([0; 16]));
        let high = (node, u64::MAX, BootId([0xff; 16]));
        let count = self.contents.range(low..=high).count() as u64;
        let place = number.checked_rem(count)? as usize;
        let (_, record) = self.contents.range(low..=high).nth(place)?;
        Some(record.clone())
    }

    pub(crate) fn forces(&mut self, issuer: NodeId, node: NodeId) {
        self.forced.insert((issuer, node));
    }
}

/// What the events have said of a member last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Up,
    Suspect,
    Dead,
    Left,
}

#[derive(Debug, Clone)]
struct Seen {
    told: Told,
    incarnation: u64,
    /// The incarnation at which it was told to be gone.
    gone_at: Option<u64>,
    /// When it was last told to have left.
    left_at: Option<u64>,
    suspect_at: u64,
    /// Failed probes of this node before the step in which the suspicion began.
    failed_before: u64,
    pinged_at: Option<u64>,
    /// Since when it is suspect beyond its time.
    overdue_since: Option<u64>,
    /// When its host or a new process last said that the one before is gone.
    refused_at: Option<u64>,
}

/// How long a suspicion may last, in nanoseconds: until the accused is asked by the node itself, unless
/// it was being asked so long before, and until it ends.
#[derive(Debug)]
struct SuspicionBounds {
    probe: u64,
    asked: u64,
    whole: u64,
}

/// Messages in one probe interval.
#[derive(Debug, Default)]
struct Window {
    since: u64,
    sent: u64,
    received: u64,
    statements: u64,
    dials: u64,
}

/// One life of one node, watched.
pub(crate) struct Observer {
    seen: Vec<Option<Seen>>,
    started: u32,
    probes_failed: u64,
    fast_deaths: u64,
    dirty: bool,
    swept_at: u64,
    window: Window,
    /// When the view last changed in anything but a suspicion.
    pub(crate) changed_at: u64,
    pub(crate) deaths: Vec<(u64, usize)>,
    pub(crate) dials: u64,
    /// Addresses at which the node has met itself.
    own: BTreeSet<SocketAddr>,
    pub(crate) born_at: u64,
    /// Events of applications that were told: origin, its life, number.
    events: BTreeSet<(usize, BootId, u64)>,
    /// What the Lamport clock must have reached, and the last number of an own event.
    lamport: u64,
    last_number: u64,
    /// Whether events waited after the last step, and how many datagrams in a row took none.
    pub(crate) events_waited: bool,
    without_events: usize,
}

impl Observer {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            seen: Vec::new(),
            started: 0,
            probes_failed: 0,
            fast_deaths: 0,
            dirty: true,
            swept_at: now,
            window: Window {
                since: now,
                ..Window::default()
            },
            changed_at: now,
            deaths: Vec::new(),
            dials: 0,
            own: BTreeSet::new(),
            born_at: now,
            events: BTreeSet::new(),
            lamport: 0,
            last_number: 0,
            events_waited: false,
            without_events: 0,
        }
    }

    fn seen(&mut self, node: usize) -> &mut Seen {
        if self.seen.len() <= node {
            self.seen.resize(node + 1, None);
        }
        self.seen[node].get_or_insert(Seen {
            told: Told::Nothing,
            incarnation: 0,
            gone_at: None,
            left_at: None,
            suspect_at: 0,
            failed_before: 0,
            pinged_at: None,
            refused_at: None,
            overdue_since: None,
        })
    }

    pub(crate) fn on_transmit(&mut self, now: u64, transmit: &Transmit) {
        self.window.sent += 1;
        // A ping is field 1 of the message and goes to its target only.
        if transmit.payload.first() == Some(&0x0a)
            && let Some(index) = index_of(&transmit.to)
        {
            self.seen(index).pinged_at = Some(now);
        }
    }

    /// Holds a datagram against the share that events have, when some waited before this step and
    /// wait after it. One that is half empty, such as the direct word of a leave, proves nothing.
    pub(crate) fn on_shared_datagram(
        &mut self,
        transmit: &Transmit,
        waiting: usize,
        limit: usize,
    ) -> Result<(), String> {
        if waiting > 0 && transmit.payload.len() <= limit / 2 {
            return Ok(());
        }
        // Who sent it makes no difference to its events.
        let has_none = || {
            swim::Message::decode(&transmit.to, &transmit.payload)
                .is_ok_and(|message| message.events.is_empty())
        };
        if waiting == 0 || !self.events_waited || !has_none() {
            self.without_events = 0;
            return Ok(());
        }
        self.without_events += 1;
        if self.without_events > MAX_WITHOUT_EVENTS {
            return Err(format!(
                "{} datagrams in a row without any of {waiting} events",
                self.without_events
            ));
        }
        Ok(())
    }

    /// The application emits.
    pub(crate) fn on_emit(&mut self, event: &UserEvent) -> Result<(), String> {
        if event.lamport <= self.lamport || event.number <= self.last_number {
            return Err(format!(
                "emits number {} at {}, after {} and having heard of {}",
                event.number, event.lamport, self.last_number, self.lamport
            ));
        }
        (self.lamport, self.last_number) = (event.lamport, event.number);
        Ok(())
    }

    pub(crate) fn has_heard(&self, origin: usize, boot: BootId, number: u64) -> bool {
        self.events.contains(&(origin, boot, number))
    }

    pub(crate) fn on_message(
        &mut self,
        _now: u64,
        _from: &NodeId,
        _body: &Body,
        statements: usize,
    ) {
        self.window.received += 1;
        self.window.statements += statements as u64;
    }

    pub(crate) fn on_refused(&mut self, peer: usize, now: u64) {
        self.seen(peer).refused_at = Some(now);
    }

    /// Whether the node has found out before that this is its own address.
    pub(crate) fn on_dial(&mut self, addr: SocketAddr) -> bool {
        self.dials += 1;
        self.window.dials += 1;
        self.own.contains(&addr)
    }

    pub(crate) fn on_sync(&mut self, entries: usize) {
        self.window.statements += entries as u64;
    }

    /// No suspect whom the node has asked in vain is still one after its time. What brings the time
    /// nearer may bring it into the past, so that an interval is left to act on it. How many there are.
    fn overdue(&mut self, swim: &swim::Swim, local: Instant, now: u64) -> Result<usize, String> {
        let interval = swim.config().probe_interval.as_nanos() as u64;
        let mut judged = 0;
        for (index, seen) in self.seen.iter_mut().enumerate() {
            let Some(seen) = seen else { continue };
            if seen.told != Told::Suspect {
                seen.overdue_since = None;
                continue;
            }
            let name = super::world::name_of(index);
            let dead_at = swim.explain(&name).and_then(|told| told.dead_at);
            judged += usize::from(dead_at.is_some());
            if dead_at.is_none_or(|at| at >= local) {
                seen.overdue_since = None;
                continue;
            }
            let since = *seen.overdue_since.get_or_insert(now);
            if now > since + interval {
                return Err(format!("{name} is suspect, and its time is long over"));
            }
        }
        Ok(judged)
    }

    /// Nobody stays suspect for long on hearsay, or beyond the longest suspicion. `calm`: for how long
    /// nothing has disturbed this node and the member.
    fn doubts_end(&self, now: u64, calm: &[u64], bounds: &SuspicionBounds) -> Result<(), String> {
        for (index, (seen, calm)) in self.seen.iter().zip(calm).enumerate() {
            let Some(seen) = seen.as_ref().filter(|seen| seen.told == Told::Suspect) else {
                continue;
            };
            let suspect_for = (now - seen.suspect_at).min(*calm);
            let asked = seen.pinged_at.map_or(0, |at| at + bounds.probe);
            let why = if suspect_for > bounds.whole {
                "without end"
            } else if suspect_for > bounds.asked && asked < seen.suspect_at {
                "and has not asked it"
            } else {
                continue;
            };
            return Err(format!("suspects n{} {why}", index + 1));
        }
        Ok(())
    }
}

pub(crate) fn index_of(name: &NodeId) -> Option<usize> {
    name.as_str()
        .strip_prefix('n')?
        .parse::<usize>()
        .ok()?
        .checked_sub(1)
}

/// What one node may send of itself in a probe interval: a probe of its turn and every check, each
/// with its indirect requests, and all rounds of gossip with every burst.
fn initiative(config: &swim::Config) -> u64 {
    let probes = (MAX_CHECKS + 1) * (1 + config.indirect_probes as u64);
    let rounds = (config.probe_interval.as_nanos() / config.gossip_interval.as_nanos()) as u64 + 1;
    probes + rounds * config.gossip_nodes as u64 * MAX_BURST + LEAVE_FANOUT
}

impl World {
    pub(crate) fn check_event(&mut self, node: usize, event: &Event) {
        let outcome = match event {
            Event::Member(swim::Event::User(event)) => self.check_user(node, event),
            Event::Member(event) => self.check_member(node, event),
            Event::Peer(event) => self.check_peer(node, event),
            Event::Started => {
                let Some(process) = &mut self.nodes[node].process else {
                    return;
                };
                process.observer.started += 1;
                match process.observer.started {
                    1 => Ok(()),
                    _ => Err("started twice".to_owned()),
                }
            }
        };
        if let Err(why) = outcome {
            self.violate(node, &why);
        }
    }

    /// Whoever dials one that is not alive here asks it for all it knows as soon as it is up.
    pub(super) fn check_no_sync_is_owed(&mut self, node: usize) {
        let process = self.nodes[node].process.as_mut();
        if let Some(connection) = process.and_then(|process| process.owed_sync.take()) {
            self.violate(node, &format!("begins no sync on {connection}"));
        }
    }

    fn check_peer(&mut self, node: usize, event: &mesh::Event) -> Result<(), String> {
        match event {
            mesh::Event::Connected {
                node: peer,
                connection,
            }
            | mesh::Event::Replaced {
                node: peer,
                connection,
            } => {
                if index_of(peer) == Some(node) {
                    return Err("is connected to itself".to_owned());
                }
                let other = self.peer_of(node, *connection);
                if other.is_some_and(|other| Some(other) != index_of(peer)) {
                    return Err(format!("{connection} is not with {peer}"));
                }
                if other.is_none() {
                    return Err(format!("uses {connection}, which is not up"));
                }
                Ok(())
            }
            mesh::Event::SelfDial { addr } => {
                if let Some(process) = &mut self.nodes[node].process {
                    process.observer.own.insert(*addr);
                }
                Ok(())
            }
            mesh::Event::Disconnected { .. }
            | mesh::Event::SeedReached { .. }
            | mesh::Event::SeedFailed { .. }
            | mesh::Event::JoinRoundOver { .. }
            | mesh::Event::SupersededBoot { .. } => Ok(()),
        }
    }

    /// Who is really at the other end of a connection that is or was up.
    fn peer_of(&self, node: usize, id: nodosum::unversioned::ConnectionId) -> Option<usize> {
        self.conns.iter().rev().find_map(|conn| {
            (0..2).find_map(|end| {
                let mine = &conn.ends[end];
                let is_it = mine.node == node
                    && mine.id == id
                    && Some(mine.life) == self.process(node).map(|p| p.life)
                    && matches!(mine.phase, Phase::Up | Phase::Over);
                is_it.then(|| conn.ends[1 - end].node)
            })
        })
    }

    fn check_member(&mut self, node: usize, event: &swim::Event) -> Result<(), String> {
        let now = self.now;
        let (shortest, floor) = self.shortest_suspicions();
        let longest_probe = self.options.swim.probe_interval.as_nanos() as u64
            * u64::from(self.options.swim.awareness_max + 1);
        let name = match event {
            swim::Event::Up { node }
            | swim::Event::Suspect { node, .. }
            | swim::Event::Alive { node }
            | swim::Event::Dead { node, .. }
            | swim::Event::Left { node, .. }
            | swim::Event::Updated { node, .. }
            | swim::Event::Forgotten { node }
            | swim::Event::AddressConflict { node, .. }
            | swim::Event::NameConflict { node, .. } => node,
            swim::Event::User(event) => &event.origin,
        };
        let Some(index) = index_of(name) else {
            return Err(format!("an event names {name}, which is nobody"));
        };
        let has_left = self.truth.left.contains(&index);
        let hostile = self.nodes[index].hostile;
        let is_forced = |by: &NodeId| self.truth.forced.contains(&(by.clone(), name.clone()));
        // Undisturbed both, and for so long that the first failed probe lies within that time.
        let calm_since = (self.calm_since(node), self.calm_since(index));
        let both_run = self.nodes[index].process.is_some() && !hostile && !self.nodes[node].hostile;
        let same_life = self.life_since(index);
        let is_truly_forced = match event {
            swim::Event::Left { by: Some(by), .. } => is_forced(by),
            _ => false,
        };
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let view = process.cluster.swim().member(name);
        let incarnation = view
            .as_ref()
            .map_or(0, |view| view.record.record.incarnation);
        // In one step a member can leave and be back; then the view is past what the event tells.
        let is_left = view
            .as_ref()
            .is_none_or(|view| view.status == MemberStatus::Left);
        let says_left = !is_left || view.as_ref().is_some_and(|view| view.record.record.left);
        let counters = process.cluster.swim().counters();
        let (failed_now, fast_now) = (counters.probes_failed, counters.fast_deaths);
        let observer = &mut process.observer;
        let failed_before = observer.probes_failed;
        let may_be_fast = fast_now > observer.fast_deaths;
        observer.dirty = true;
        let seen = observer.seen(index);
        let told = seen.told;
        let wrong = |what: &str| Err(format!("{what} of {name} after {told:?}"));
        match event {
            swim::Event::Up { .. } => {
                if matches!(told, Told::Up | Told::Suspect) {
                    return wrong("Up");
                }
                // Left, back and left again, all told in one step: the view shows the last leave only,
                // so that nothing lies between the two.
                let between_leaves = is_left && seen.left_at == Some(now);
                let least = |gone: u64| gone + u64::from(!between_leaves);
                if seen.gone_at.is_some_and(|gone| incarnation < least(gone)) {
                    let gone = seen.gone_at;
                    return Err(format!(
                        "{name} is back at incarnation {incarnation}, gone at {gone:?}"
                    ));
                }
                seen.told = Told::Up;
                seen.gone_at = None;
                observer.changed_at = now;
            }
            swim::Event::Suspect { .. } => {
                if told != Told::Up {
                    return wrong("Suspect");
                }
                seen.told = Told::Suspect;
                seen.suspect_at = now;
                seen.failed_before = failed_before;
            }
            swim::Event::Alive { .. } => {
                if told != Told::Suspect {
                    return wrong("Alive");
                }
                seen.told = Told::Up;
            }
            swim::Event::Dead { .. } => {
                if told != Told::Suspect {
                    return wrong("Dead");
                }
                if failed_now <= seen.failed_before {
                    return Err(format!("{name} is dead without a failed probe here"));
                }
                let first = seen.suspect_at.saturating_sub(longest_probe);
                let is_calm =
                    matches!(calm_since, (Some(here), Some(there)) if here.max(there) < first);
                if is_calm && both_run && same_life < first {
                    return Err(format!("{name} is dead, and nothing was wrong with it"));
                }
                if seen.pinged_at.is_none_or(|at| at < first) {
                    return Err(format!("{name} is dead without a ping from here"));
                }
                // Clocks run up to a hundredth fast, and the suspicion is counted on the clock.
                let was_refused = seen
                    .refused_at
                    .is_some_and(|at| at + longest_probe >= seen.suspect_at);
                let least = if may_be_fast && was_refused {
                    floor
                } else {
                    shortest
                };
                if (now - seen.suspect_at) * 51 / 50 + 2 * MS < least {
                    let after = (now - seen.suspect_at) / MS;
                    return Err(format!("{name} is dead after {after} ms of suspicion"));
                }
                seen.told = Told::Dead;
                seen.gone_at = Some(incarnation);
                observer.changed_at = now;
                observer.deaths.push((now, index));
            }
            swim::Event::Left { by, .. } => {
                if matches!(told, Told::Left | Told::Nothing) {
                    return wrong("Left");
                }
                match by {
                    None if !(says_left && (has_left || hostile)) => {
                        return Err(format!("{name} left without saying so"));
                    }
                    Some(by) if told != Told::Dead || !is_truly_forced => {
                        return Err(format!("{name} forced out by {by} when {told:?}"));
                    }
                    None | Some(_) => {}
                }
                seen.told = Told::Left;
                seen.left_at = Some(now);
                // Back in the same step: the view is past the record with which it left.
                seen.gone_at = Some(incarnation - u64::from(!is_left));
                observer.changed_at = now;
            }
            // Has its own check.
            swim::Event::User(_) => {}
            swim::Event::Updated { .. } => {
                if told != Told::Up {
                    return wrong("Updated");
                }
                observer.changed_at = now;
            }
            swim::Event::Forgotten { .. } => {
                if matches!(told, Told::Up | Told::Suspect) {
                    return wrong("Forgotten");
                }
                seen.told = Told::Nothing;
                seen.gone_at = None;
                seen.incarnation = 0;
            }
            // Whether two processes share a name is judged by people; here none ever do, but a life
            // that ended may still be heard of.
            swim::Event::NameConflict { .. } | swim::Event::AddressConflict { .. } => {}
        }
        Ok(())
    }

    /// A node tells its application an event.
    fn check_user(&mut self, node: usize, event: &UserEvent) -> Result<(), String> {
        let UserEvent {
            origin,
            boot,
            number,
            lamport,
            ..
        } = event;
        if !self.registry.is_emitted(event) {
            return Err(format!("tells an event of {origin} that nobody emitted"));
        }
        let Some(index) = index_of(origin) else {
            return Err(format!("an event names {origin}, which is nobody"));
        };
        // A liar that was forgotten and is back may repeat its own numbers; they are about nobody else.
        let is_liar = self.nodes[index].hostile;
        let Some(process) = &mut self.nodes[node].process else {
            return Ok(());
        };
        let observer = &mut process.observer;
        if !observer.events.insert((index, *boot, *number)) && !is_liar {
            return Err(format!("tells event {number} of {origin} twice"));
        }
        if index == node {
            return Ok(());
        }
        let told = observer.seen(index).told;
        if !matches!(told, Told::Up | Told::Suspect) {
            return Err(format!("tells an event of {origin} after {told:?}"));
        }
        if *lamport <= observer.lamport.saturating_add(MAX_LAMPORT_STEP) {
            observer.lamport = observer.lamport.max(*lamport);
        }
        let view = process.cluster.swim().member(origin);
        match view.map(|view| view.record.record.boot) {
            Some(current) if current == *boot => Ok(()),
            Some(_) | None => Err(format!("tells an event of an earlier life of {origin}")),
        }
    }

    /// When the life of a node that runs began.
    fn life_since(&self, node: usize) -> u64 {
        self.process(node)
            .map_or(self.now, |process| process.observer.born_at)
    }

    /// A leave has had its time.
    pub(crate) fn check_leave(&mut self, node: usize) {
        let Some(leave) = self.cluster(node).and_then(Cluster::leaving) else {
            return;
        };
        let patience = 6 * SEC + LATEST;
        let since = self.now.saturating_sub(patience);
        let is_calm = |node: usize| self.calm_since(node).is_some_and(|at| at < since);
        // The leave itself is what disturbs the leaver.
        let leaver_is_calm = self.nodes[node].process.is_some() && self.is_calm_but_for_leave(node);
        let silent = leave.waiting.iter().filter_map(index_of).find(|peer| {
            leaver_is_calm
                && is_calm(*peer)
                && self.nodes[*peer].process.is_some()
                && self.life_since(*peer) < since
                && !self.nodes[*peer].hostile
        });
        if let Some(peer) = silent {
            let why = format!("its leave is not confirmed by n{}", peer + 1);
            self.violate(node, &why);
        }
    }

    /// The shortest times from suspect to dead that the rules allow: as a rule, and after the ports
    /// have refused.
    fn shortest_suspicions(&self) -> (u64, u64) {
        let swim = &self.options.swim;
        let nanos = |duration: std::time::Duration| duration.as_nanos() as u64;
        (nanos(swim.suspicion_min(1)), nanos(swim.suspicion_floor(1)))
    }

    /// After a step of a node.
    pub(crate) fn check(&mut self, node: usize) {
        if self.violation.is_some() {
            return;
        }
        let now = self.now;
        let config = &self.options.swim;
        let interval = config.probe_interval.as_nanos() as u64;
        let allowed = initiative(config);
        let small = self.nodes.len() <= SWEEP_ALWAYS;
        let limits = (
            self.options.mesh.max_dials + self.options.mesh.max_seeds,
            self.options.mesh.max_members,
        );
        let local = self.local(node);
        let suspicions = SuspicionBounds {
            probe: LONGEST_PROBE * interval,
            asked: config.suspicion_min(self.nodes.len()).as_nanos() as u64 / 2
                + OVERTIME * interval,
            whole: config.suspicion_max(self.nodes.len()).as_nanos() as u64 + OVERTIME * interval,
        };
        // Who is disturbed may be slow, and may answer every probe while it cannot refute.
        let calm_for = |node: usize| self.calm_since(node).map_or(0, |since| now - since);
        let swept_at = self.process(node).map_or(now, |it| it.observer.swept_at);
        let due = swept_at + SWEEP_INTERVAL <= now;
        let calm: Vec<u64> = (0..if due { self.nodes.len() } else { 0 })
            .map(|other| match &self.nodes[other] {
                state if state.hostile => 0,
                state if state.process.is_none() => calm_for(node),
                _ => calm_for(node).min(calm_for(other)),
            })
            .collect();
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let mut outcome = Ok(());
        let mut judged = 0;
        let window = &process.observer.window;
        if now >= window.since + interval {
            // Each message is answered at most once and each statement too; a step at the edge may
            // send for two windows.
            let bound = 2 * allowed + 2 * window.received + window.statements;
            if window.sent > bound {
                outcome = Err(format!(
                    "sent {} messages in {} ms, {bound} are allowed",
                    window.sent,
                    (now - window.since) / MS
                ));
            }
            // Full jitter below a bound that doubles: a peer is dialled a handful of times in the
            // first second, and one of them in each ten after a while.
            let mesh = process.cluster.mesh();
            let peers = mesh.peers(local).count() + mesh.seeds().count();
            if outcome.is_ok() && window.dials > (peers as u64 + 1) * DIALS_A_PEER {
                outcome = Err(format!(
                    "dialled {} times in {} ms, with {peers} peers",
                    window.dials,
                    (now - window.since) / MS
                ));
            }
            process.observer.window = Window {
                since: now,
                ..Window::default()
            };
        }
        if outcome.is_ok() && (small || due || process.observer.dirty) {
            outcome = sweep(&process.cluster, &mut process.observer);
        }
        if outcome.is_ok() && due {
            process.observer.swept_at = now;
            outcome = bounds(&process.cluster, limits);
            if outcome.is_ok() {
                outcome = process.observer.doubts_end(now, &calm, &suspicions);
            }
            if outcome.is_ok()
                && calm
                    .get(node)
                    .is_some_and(|calm| *calm > OVERTIME * interval)
            {
                let swim = process.cluster.swim();
                let overdue = process.observer.overdue(swim, local, now);
                outcome = overdue.map(|count| judged = count);
            }
        }
        process.observer.dirty = false;
        let counters = process.cluster.swim().counters();
        process.observer.probes_failed = counters.probes_failed;
        process.observer.fast_deaths = counters.fast_deaths;
        for _ in 0..judged {
            self.tally.count("suspects_judged");
        }
        if let Err(why) = outcome {
            self.violate(node, &why);
        }
    }
}

/// The view against the replay of the events.
fn sweep(cluster: &Cluster, observer: &mut Observer) -> Result<(), String> {
    let me = &cluster.swim().me().record.node;
    let mut known = 0;
    for view in cluster.swim().members() {
        let record = &view.record.record;
        if record.node == *me {
            let should = record.left;
            if (view.status == MemberStatus::Left) != should
                || !matches!(view.status, MemberStatus::Left | MemberStatus::Alive)
            {
                return Err(format!("is {} for itself", view.status));
            }
            continue;
        }
        let Some(index) = index_of(&record.node) else {
            return Err(format!("{} is a member and nobody", record.node));
        };
        let seen = observer.seen(index);
        if record.incarnation < seen.incarnation {
            return Err(format!(
                "{} falls from incarnation {} to {}",
                record.node, seen.incarnation, record.incarnation
            ));
        }
        seen.incarnation = record.incarnation;
        let agrees = match (view.status, seen.told) {
            (MemberStatus::Alive, Told::Up)
            | (MemberStatus::Suspect, Told::Suspect)
            | (MemberStatus::Dead, Told::Dead | Told::Nothing)
            | (MemberStatus::Left, Told::Left | Told::Nothing) => true,
            (
                MemberStatus::Alive
                | MemberStatus::Suspect
                | MemberStatus::Dead
                | MemberStatus::Left,
                Told::Nothing | Told::Up | Told::Suspect | Told::Dead | Told::Left,
            ) => false,
        };
        if !agrees {
            return Err(format!(
                "{} is {} and was told {:?}",
                record.node, view.status, seen.told
            ));
        }
        known += usize::from(seen.told != Told::Nothing);
    }
    let told = observer
        .seen
        .iter()
        .flatten()
        .filter(|seen| seen.told != Told::Nothing)
        .count();
    if told != known {
        return Err(format!(
            "{told} members were told, {known} of them are known"
        ));
    }
    Ok(())
}

fn bounds(cluster: &Cluster, (dials, members): (usize, usize)) -> Result<(), String> {
    let swim = cluster.swim();
    let known = swim.members().count();
    if swim.pending_news() > 2 * known + 2 {
        return Err(format!("{} news of {known} members", swim.pending_news()));
    }
    if swim.pending_events() > MAX_EVENTS_WAITING {
        return Err(format!("{} events wait", swim.pending_events()));
    }
    let counts = cluster.mesh().counts();
    if counts.dialing > dials {
        return Err(format!("{} dials in flight", counts.dialing));
    }
    if known > members {
        return Err(format!("{known} members"));
    }
    Ok(())
}
