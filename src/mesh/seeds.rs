//! Seeds: the addresses by which a node enters a cluster, and finds back after it was cut off.
//!
//! Seeds are tried in parallel, so that one that swallows packets delays no other; the addresses of
//! one seed are tried in turn. Its name is resolved again on every try, with a time limit of its
//! own. A seed that belongs to a connected peer counts as reached without a dial; one that is this
//! node itself fails, but is no failure of a join. While no peer is connected, seeds are tried with
//! the backoff of members, else slowly: two halves of a cluster that forgot each other meet
//! again that way. The backoff starts anew only after a connection that lasted.
//!
//! The first address that answers is enough to enter. But where one name has several, each node
//! might enter at its own and the cluster be several for ever; so a connected seed of that kind is
//! resolved again at the slow pace, and those of its addresses dialled that are not known to lead
//! to a connected peer.
//!
//! A round belongs to one call of `join` and ends exactly once.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{Action, Event, Mesh, Phase, Slot};
use crate::{
    node_id::{ConnectionId, NodeId},
    stats::Side,
};

/// Addresses tried per resolution. A name of a whole deployment may have hundreds; a random choice
/// of them is as good a way in, and a try must end.
const MAX_SEED_ADDRS: usize = 8;

/// Addresses remembered with the node that answered there, for peers whose own address is another
/// one. Enough for every address of every seed; when full, one is forgotten and dialled once more.
const MAX_LED_TO: usize = 256;

/// Joins that wait at the same time. Further ones end at once with that reason.
const MAX_ROUNDS: usize = 64;

pub(super) const ITSELF: &str = "is this node itself";
pub(super) const STOPPING: &str = "this node is leaving";
const FORGOTTEN: &str = "is no seed any more";

/// What is being done about a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedState {
    /// Nothing before its next try.
    Waiting,
    /// Its name is being resolved.
    Resolving,
    /// One of its addresses is being dialled.
    Dialing,
}

impl SeedState {
    /// `waiting`, `resolving` or `dialing`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Resolving => "resolving",
            Self::Dialing => "dialing",
        }
    }
}

/// One seed as the mesh sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedView {
    /// As it was given.
    pub seed: String,
    /// What is being done about it.
    pub state: SeedState,
    /// Who answered last.
    pub node: Option<NodeId>,
    /// Whether that node is connected.
    pub connected: bool,
    /// Tries that failed since it was last reached, and connections in a row to which it led and
    /// that did not last.
    pub failures: u32,
    /// Why the last try failed.
    pub last_error: Option<String>,
    /// When it is tried next, or its resolution is given up.
    pub next_try: Option<Instant>,
}

#[derive(Debug)]
struct Seed {
    state: SeedState,
    /// Addresses of this try that are still to be dialled.
    untried: VecDeque<SocketAddr>,
    /// Why the last address of this try failed.
    error: Option<String>,
    /// Whether an address of this try is this node.
    saw_self: bool,
    node: Option<NodeId>,
    /// How many addresses the name resolved to last.
    addresses: usize,
    /// While all addresses of the seed are gone through: a connected node that it leads to.
    exploring: Option<NodeId>,
    /// Whether the time for its name ran out: the answer is welcome until the next try.
    overdue: bool,
    failures: u32,
    /// Connections to its node that ended young, since one lasted. It answers, but to count that
    /// as success would redial a node that leaves or is full many times a second.
    short_lived: u32,
    last_error: Option<String>,
    due: Option<Instant>,
}

impl Seed {
    fn new() -> Self {
        Self {
            state: SeedState::Waiting,
            untried: VecDeque::new(),
            error: None,
            saw_self: false,
            node: None,
            addresses: 0,
            exploring: None,
            overdue: false,
            failures: 0,
            short_lived: 0,
            last_error: None,
            due: None,
        }
    }

    /// What the backoff counts.
    fn setbacks(&self) -> u32 {
        self.failures.saturating_add(self.short_lived)
    }
}

#[derive(Debug)]
struct Round {
    id: u64,
    waiting: BTreeSet<String>,
    failed: Vec<String>,
}

/// The seeds and the joins that wait for them.
#[derive(Debug, Default)]
pub(super) struct Seeds {
    table: BTreeMap<String, Seed>,
    rounds: Vec<Round>,
    last_round: u64,
    /// Who answered a seed's dial at an address, for as long as it is connected: the address may
    /// be another node's next.
    led_to: BTreeMap<SocketAddr, NodeId>,
}

impl Seeds {
    fn seed(&mut self, name: &str) -> Option<&mut Seed> {
        self.table.get_mut(name)
    }

    fn is_awaited(&self, name: &str) -> bool {
        self.rounds.iter().any(|round| round.waiting.contains(name))
    }

    /// A seed's dial of the address came up as `node`.
    pub(super) fn remember_led_to(&mut self, addr: SocketAddr, node: &NodeId) {
        if self.led_to.len() >= MAX_LED_TO && !self.led_to.contains_key(&addr) {
            self.led_to.pop_first();
        }
        self.led_to.insert(addr, node.clone());
    }

    /// This life of the node is not connected any more.
    pub(super) fn forget_led_to(&mut self, node: &NodeId) {
        self.led_to.retain(|_, other| other != node);
    }

    /// Makes room for one more seed: the one that failed most often gives way, if any failed and
    /// no join waits for it, be it an earlier one or that of `names`.
    fn make_room(&mut self, max_seeds: usize, names: &BTreeSet<String>) -> bool {
        if self.table.len() < max_seeds {
            return true;
        }
        let idle = self.table.iter().filter(|(name, seed)| {
            seed.state == SeedState::Waiting
                && seed.failures > 0
                && !names.contains(*name)
                && !self.is_awaited(name)
        });
        let Some(worst) = idle
            .max_by_key(|(_, seed)| seed.failures)
            .map(|(name, _)| name.clone())
        else {
            return false;
        };
        self.table.remove(&worst);
        true
    }
}

impl Mesh {
    /// Adds seeds and tries all of them at once. Returns the number of the round, which ends with
    /// one [`Event::JoinRoundOver`].
    pub fn join(&mut self, now: Instant, seeds: Vec<String>) -> u64 {
        self.seeds.last_round += 1;
        let id = self.seeds.last_round;
        let names: BTreeSet<String> = seeds.into_iter().collect();
        let refusal = if self.stopped {
            Some(STOPPING)
        } else {
            (self.seeds.rounds.len() >= MAX_ROUNDS).then_some("too many joins are under way")
        };
        if let Some(why) = refusal {
            let failed = names.iter().map(|name| format!("{name}: {why}")).collect();
            self.events.push_back(Event::JoinRoundOver {
                round: id,
                reached: 0,
                failed,
            });
            return id;
        }
        let mut round = Round {
            id,
            waiting: BTreeSet::new(),
            failed: Vec::new(),
        };
        for name in &names {
            if self.seeds.seed(name).is_none() {
                if !self.seeds.make_room(self.config.max_seeds, &names) {
                    let reason = format!("more than {} seeds", self.config.max_seeds);
                    round.failed.push(format!("{name}: {reason}"));
                    self.events.push_back(Event::SeedFailed {
                        seed: name.clone(),
                        reason,
                    });
                    continue;
                }
                self.seeds.table.insert(name.clone(), Seed::new());
            }
            round.waiting.insert(name.clone());
        }
        let names: Vec<String> = round.waiting.iter().cloned().collect();
        self.seeds.rounds.push(round);
        for name in names {
            if let Some(seed) = self.seeds.seed(&name)
                && seed.state == SeedState::Waiting
            {
                seed.failures = 0;
                seed.short_lived = 0;
                self.try_seed(now, &name);
            }
        }
        self.end_empty_rounds();
        id
    }

    /// Drops these seeds. What is under way for them may come to its end and counts for nothing; a
    /// join that waits for one is told so. A connection to which one led stays.
    pub fn forget_seeds(&mut self, names: &[String]) {
        for name in names {
            if self.seeds.table.remove(name).is_none() {
                continue;
            }
            // Should it be added again, that is another try.
            for phase in self.connections.values_mut() {
                if let Phase::Dialing { seed, .. } = phase {
                    seed.take_if(|dialled| dialled == name);
                }
            }
            for round in &mut self.seeds.rounds {
                if round.waiting.remove(name) {
                    round.failed.push(format!("{name}: {FORGOTTEN}"));
                }
            }
        }
        self.end_empty_rounds();
    }

    /// What the name of a seed resolved to. Addresses that come after the time for it start the
    /// next try early, for else a slow name would never lead anywhere; any other answer that nobody
    /// waits for is ignored.
    pub fn handle_resolved(
        &mut self,
        now: Instant,
        seed: &str,
        result: Result<Vec<SocketAddr>, String>,
    ) {
        let Some(entry) = self.seeds.table.get_mut(seed) else {
            return;
        };
        let welcome = match entry.state {
            SeedState::Resolving => true,
            SeedState::Waiting => entry.overdue && result.is_ok(),
            SeedState::Dialing => false,
        };
        if !welcome || self.stopped {
            return;
        }
        entry.overdue = false;
        match result {
            Ok(mut addrs) => {
                let mut seen = BTreeSet::new();
                addrs.retain(|addr| seen.insert(*addr));
                entry.addresses = addrs.len();
                if addrs.len() > MAX_SEED_ADDRS {
                    self.rng.shuffle(&mut addrs);
                    addrs.truncate(MAX_SEED_ADDRS);
                }
                entry.error = addrs
                    .is_empty()
                    .then(|| "the name has no address".to_owned());
                entry.untried = addrs.into();
            }
            Err(why) => entry.error = Some(why),
        }
        self.try_next_address(now, seed);
    }

    /// All seeds but those that are this node itself, ordered by name.
    pub fn others(&self) -> impl Iterator<Item = SeedView> {
        self.seeds()
            .filter(|seed| seed.last_error.as_deref() != Some(ITSELF))
    }

    /// All seeds, ordered by name.
    pub fn seeds(&self) -> impl Iterator<Item = SeedView> {
        self.seeds.table.iter().map(|(name, seed)| SeedView {
            seed: name.clone(),
            state: seed.state,
            node: seed.node.clone(),
            connected: seed
                .node
                .as_ref()
                .is_some_and(|node| self.link_to(node).is_some()),
            failures: seed.setbacks(),
            last_error: seed.last_error.clone(),
            next_try: seed.due,
        })
    }

    pub(super) fn next_seed(&self) -> Option<Instant> {
        self.seeds.table.values().filter_map(|seed| seed.due).min()
    }

    pub(super) fn seeds_due(&mut self, now: Instant) {
        let is_due = |seed: &Seed| seed.due.is_some_and(|due| due <= now);
        let due: Vec<(String, SeedState)> = self
            .seeds
            .table
            .iter()
            .filter(|(_, seed)| is_due(seed))
            .map(|(name, seed)| (name.clone(), seed.state))
            .collect();
        for (name, state) in due {
            match state {
                SeedState::Waiting => self.try_seed(now, &name),
                SeedState::Resolving => {
                    let limit = self.config.resolve_timeout;
                    self.seed_address_failed(now, &name, format!("not resolved within {limit:?}"));
                    if let Some(seed) = self.seeds.seed(&name) {
                        seed.overdue = true;
                    }
                }
                // A dial has its own deadline and ends with `handle_down`.
                SeedState::Dialing => {}
            }
        }
    }

    /// The last connection to `node` has ended, after a while in which it proved `stable` or not.
    /// When nobody is connected any more, seeds become urgent: after a stable connection as if for
    /// the first time, else with the backoff that each has earned.
    pub(super) fn seeds_lost(&mut self, now: Instant, node: &NodeId, stable: bool) {
        if self.stopped {
            return;
        }
        let alone = self.linked == 0;
        let (backoff, slowest) = (self.config.backoff_min, self.config.backoff_max);
        let names: Vec<String> = self.seeds.table.keys().cloned().collect();
        for name in names {
            let Some(seed) = self.seeds.table.get_mut(&name) else {
                continue;
            };
            let led_there = seed.node.as_ref() == Some(node);
            if led_there {
                let count = seed.short_lived.saturating_add(1);
                seed.short_lived = if stable { 0 } else { count };
            }
            if !alone || seed.state != SeedState::Waiting || seed.saw_self {
                continue;
            }
            if stable {
                seed.failures = 0;
                seed.short_lived = 0;
                let soon = now + self.rng.between(backoff / 10, backoff);
                seed.due = Some(seed.due.map_or(soon, |due| due.min(soon)));
            } else if led_there || seed.due.is_none_or(|due| due > now + slowest) {
                // One that waits for no longer than the backoff does so already.
                let setbacks = seed.setbacks();
                let due = now + self.draw_backoff(setbacks);
                if let Some(seed) = self.seeds.table.get_mut(&name) {
                    seed.due = Some(due);
                }
            }
        }
    }

    pub(super) fn stop_seeds(&mut self) {
        for seed in self.seeds.table.values_mut() {
            seed.state = SeedState::Waiting;
            seed.untried.clear();
            seed.exploring = None;
            seed.overdue = false;
            seed.due = None;
        }
        for mut round in std::mem::take(&mut self.seeds.rounds) {
            let unreached = round
                .waiting
                .iter()
                .map(|name| format!("{name}: {STOPPING}"));
            round.failed.extend(unreached);
            self.end_round(round, 0);
        }
    }

    /// The dial of a seed came up as `node`, or the seed belongs to that connected node.
    pub(super) fn seed_reached(
        &mut self,
        now: Instant,
        name: &str,
        node: &NodeId,
        connection: ConnectionId,
    ) {
        let pause = self.draw_seed_retry();
        let Some(seed) = self.seeds.seed(name) else {
            return;
        };
        seed.state = SeedState::Waiting;
        let explores = seed.exploring.is_some();
        if explores {
            seed.exploring = Some(node.clone());
        } else {
            seed.untried.clear();
        }
        seed.error = None;
        seed.last_error = None;
        seed.saw_self = false;
        seed.failures = 0;
        seed.node = Some(node.clone());
        seed.due = Some(now + pause);
        self.events.push_back(Event::SeedReached {
            seed: name.to_owned(),
            node: node.clone(),
            connection,
        });
        let (over, open): (Vec<Round>, Vec<Round>) = std::mem::take(&mut self.seeds.rounds)
            .into_iter()
            .partition(|round| round.waiting.contains(name));
        self.seeds.rounds = open;
        for round in over {
            self.end_round(round, 1);
        }
        if explores {
            self.try_next_address(now, name);
        }
    }

    /// The address tried last does not lead in: the next one, or the try is over.
    pub(super) fn seed_address_failed(&mut self, now: Instant, name: &str, reason: String) {
        let Some(seed) = self.seeds.table.get_mut(name) else {
            return;
        };
        if self.stopped {
            return;
        }
        seed.error = Some(reason);
        self.try_next_address(now, name);
    }

    fn try_seed(&mut self, now: Instant, name: &str) {
        let pause = self.draw_seed_retry();
        let Some(seed) = self.seeds.table.get(name) else {
            return;
        };
        let connected = seed
            .node
            .as_ref()
            .and_then(|node| Some((node.clone(), self.link_to(node)?)));
        let wanted = self.seeds.is_awaited(name);
        let explores = seed.addresses > 1 && !wanted && connected.is_some();
        match connected.clone().filter(|_| !explores) {
            Some((node, connection)) if wanted => {
                self.seed_reached(now, name, &node, connection);
            }
            Some((_, connection)) => {
                let lasts = match self.connections.get(&connection) {
                    Some(Phase::Up { since, .. }) => self.is_stable(now, *since),
                    Some(Phase::Dialing { .. } | Phase::Draining | Phase::Closing) | None => false,
                };
                let seed = self.seeds.table.get_mut(name).expect("seen above");
                seed.due = Some(now + pause);
                if lasts {
                    seed.short_lived = 0;
                }
            }
            None => {
                let deadline = now + self.config.resolve_timeout;
                let seed = self.seeds.table.get_mut(name).expect("seen above");
                seed.state = SeedState::Resolving;
                seed.untried.clear();
                seed.error = None;
                seed.saw_self = false;
                seed.overdue = false;
                seed.exploring = connected.map(|(node, _)| node);
                seed.due = Some(deadline);
                self.actions.push_back(Action::Resolve {
                    seed: name.to_owned(),
                });
            }
        }
    }

    fn try_next_address(&mut self, now: Instant, name: &str) {
        loop {
            let Some(seed) = self.seeds.table.get_mut(name) else {
                return;
            };
            let Some(addr) = seed.untried.pop_front() else {
                break;
            };
            if self.own_addrs.contains(&addr) {
                seed.saw_self = true;
                continue;
            }
            let explores = seed.exploring.is_some();
            if let Some((node, connection)) = self.link_at(addr) {
                if explores && !self.seeds.is_awaited(name) {
                    continue;
                }
                // Goes on from here, should there be more to explore.
                self.seed_reached(now, name, &node, connection);
                return;
            }
            let is_full = self.is_full();
            let Some(seed) = self.seeds.table.get_mut(name) else {
                return;
            };
            if is_full {
                seed.untried.clear();
                seed.error = Some("too many connections here".to_owned());
                break;
            }
            seed.state = SeedState::Dialing;
            seed.due = None;
            let connection = self.allocate();
            self.dial(connection, None, addr, Some(name.to_owned()), Slot::Seed);
            return;
        }
        let Some(seed) = self.seeds.table.get_mut(name) else {
            return;
        };
        let error = seed.error.take().unwrap_or_else(|| ITSELF.to_owned());
        let explored = seed.exploring.take();
        match explored.and_then(|node| Some((self.link_to(&node)?, node))) {
            Some((connection, node)) if self.seeds.is_awaited(name) => {
                self.seed_reached(now, name, &node, connection);
            }
            // That some addresses do not answer is no failure of a seed that is connected.
            Some(_) => self.seed_rests(now, name),
            None => self.seed_failed(now, name, error),
        }
    }

    /// Leaves a connected seed alone until its next slow try.
    fn seed_rests(&mut self, now: Instant, name: &str) {
        let pause = self.draw_seed_retry();
        if let Some(seed) = self.seeds.seed(name) {
            seed.state = SeedState::Waiting;
            seed.saw_self = false;
            seed.due = Some(now + pause);
        }
    }

    fn seed_failed(&mut self, now: Instant, name: &str, reason: String) {
        let pause = self.draw_seed_retry();
        let Some(seed) = self.seeds.table.get(name) else {
            return;
        };
        let (failures, setbacks) = (seed.failures, seed.setbacks());
        let itself = reason == ITSELF;
        let delay = if itself || self.linked > 0 {
            pause
        } else {
            self.draw_backoff(setbacks)
        };
        let seed = self.seeds.table.get_mut(name).expect("seen above");
        seed.state = SeedState::Waiting;
        seed.untried.clear();
        seed.saw_self = itself;
        seed.failures = failures.saturating_add(1);
        seed.last_error = Some(reason.clone());
        seed.due = Some(now + delay);
        for round in &mut self.seeds.rounds {
            if round.waiting.remove(name) && !itself {
                round.failed.push(format!("{name}: {reason}"));
            }
        }
        self.events.push_back(Event::SeedFailed {
            seed: name.to_owned(),
            reason,
        });
        self.end_empty_rounds();
    }

    fn end_empty_rounds(&mut self) {
        let (over, open): (Vec<Round>, Vec<Round>) = std::mem::take(&mut self.seeds.rounds)
            .into_iter()
            .partition(|round| round.waiting.is_empty());
        self.seeds.rounds = open;
        for round in over {
            self.end_round(round, 0);
        }
    }

    fn end_round(&mut self, round: Round, reached: usize) {
        let Round { id, failed, .. } = round;
        self.events.push_back(Event::JoinRoundOver {
            round: id,
            reached,
            failed,
        });
    }

    fn draw_seed_retry(&mut self) -> Duration {
        let pause = self.config.seed_retry;
        self.rng.between(pause, pause + pause / 4)
    }

    /// The best connection to a connected peer.
    pub(super) fn link_to(&self, node: &NodeId) -> Option<ConnectionId> {
        let peer = self.peers.get(node)?;
        peer.current.or_else(|| peer.links.first().copied())
    }

    /// The connected peer that accepts connections at this address.
    fn link_at(&self, addr: SocketAddr) -> Option<(NodeId, ConnectionId)> {
        if let Some(node) = self.seeds.led_to.get(&addr)
            && let Some(connection) = self.link_to(node)
        {
            return Some((node.clone(), connection));
        }
        self.peers.iter().find_map(|(node, peer)| {
            let dialled_there = || {
                peer.links
                    .iter()
                    .any(|link| match self.connections.get(link) {
                        Some(Phase::Up {
                            side: Side::Dialed,
                            addr: there,
                            ..
                        }) => *there == addr,
                        Some(
                            Phase::Up {
                                side: Side::Accepted,
                                ..
                            }
                            | Phase::Dialing { .. }
                            | Phase::Draining
                            | Phase::Closing,
                        )
                        | None => false,
                    })
            };
            let connection = self.link_to(node)?;
            (peer.addr == Some(addr) || dialled_there()).then(|| (node.clone(), connection))
        })
    }
}
