//! One script from its beginning to a verdict: safety throughout, then liveness.
//!
//! When the faults have ended, the nodes that can reach each other have a time to agree, a formula
//! of the configuration ([`heal_bound`]). They agree when whoever leaves has ended, every one sees
//! every other alive in its latest record, the gone as gone, and each pair holds exactly one
//! connection, the same at both ends. Then nothing may happen any more: no doubt, no death, no dial but of the dead, and no more
//! datagrams than probing takes. In the end they emit events, and everybody has to hear them all.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use nodosum::{
    BootId, MemberStatus,
    unversioned::{record::Record, swim},
};

use super::{
    check::MAX_EVENTS_WAITING,
    connections::Phase,
    script::Script,
    tally::Tally,
    world::{Fate, IDLE, MS, Node, Options, SEC, World, name_of},
};

/// How long the agreement is watched, in probe intervals: several passes of a small cluster, and
/// more than the longest suspicion of a small one.
const WATCHED: u32 = 30;

/// News in flight may be sent for so long after the last change, in rounds of gossip beyond the
/// retransmissions.
const GOSSIP_SLACK: u32 = 10;

/// In how many syncs of its own a node must hear what gossip has missed. One that is drawn with
/// somebody who has missed it as well, or who cannot be reached, brings nothing.
const MENDING_SYNCS: u32 = 4;

/// How many nodes emit events in the end, and how many the first of them emits.
const SPEAKERS: usize = 8;

/// Whoever has not heard an event after this many gossip intervals was missed by gossip.
const GOSSIP_TURNS: u64 = 5;

/// A node whose view of another lags behind: it has not this record of it, or doubts it.
struct Lag {
    node: usize,
    about: usize,
    record: Record,
    why: String,
}

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) violation: Option<String>,
    /// How long agreement took after the faults ended.
    pub(crate) agreed_after: Option<Duration>,
    pub(crate) bound: Duration,
    pub(crate) hash: u64,
    pub(crate) events: u64,
    pub(crate) tally: Tally,
}

/// How long the connected nodes may take to agree after the last fault. The sum of
///
/// - two passes of probes, each of a node in its worst health: `(2n + 8 · 8) · P`, for the health
///   score falls by one with each of at most 8 answered probes of at most 8 intervals;
/// - the longest suspicion, and one more of those probes at its end: `S_max(n) + 8 · P`;
/// - twice the time in which a dead member is dialled again: its pause with jitter, all other dead
///   before it in the quarter of the dial slots that is theirs, and a dial that is lost;
/// - the same for seeds, in case both sides have forgotten each other;
/// - the idle time-out of a connection whose other end is gone, and one sync.
pub(crate) fn heal_bound(options: &Options, nodes: usize) -> Duration {
    let swim = &options.swim;
    let mesh = &options.mesh;
    let count = nodes as u32;
    let interval = swim.probe_interval;
    let worst = swim.awareness_max;
    let probes = interval * (2 * count + worst * worst);
    let dying = swim.suspicion_max(nodes) + interval * worst;
    let handshake = Duration::from_secs(5);
    let slots = (mesh.max_dials / 4).max(1) as u32;
    let redial = mesh.dead_retry * 5 / 4 + handshake * count.div_ceil(slots) + handshake;
    let seeds = mesh.seed_retry * 5 / 4 + mesh.resolve_timeout + handshake;
    let idle = Duration::from_nanos(IDLE);
    probes + dying + redial * 2 + seeds + idle + swim.sync_every(nodes)
}

/// Plays a script. A panic in it is a violation like any other.
pub(crate) fn run(script: Script, options: Options) -> Outcome {
    let bound = heal_bound(&options, script.nodes);
    let played = catch_unwind(AssertUnwindSafe(|| play(script, options, bound)));
    played.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Outcome {
            violation: Some(format!("panicked: {}", text.unwrap_or("no message"))),
            agreed_after: None,
            bound,
            hash: 0,
            events: 0,
            tally: Tally::default(),
        }
    })
}

fn play(script: Script, options: Options, bound: Duration) -> Outcome {
    let faults_end = script.faults_end_ms * MS;
    let mut world = World::new(script, options);
    world.run_until(faults_end);
    let mut agreed_after = None;
    let limit = faults_end + bound.as_nanos() as u64;
    let mut why = String::new();
    while world.violation.is_none() && world.now < limit {
        match world.disagreement() {
            None => {
                agreed_after = Some(Duration::from_nanos(world.now - faults_end));
                break;
            }
            Some(disagreement) => why = disagreement,
        }
        let next = world.now + SEC / 2;
        world.run_until(next);
    }
    if world.violation.is_none() {
        if agreed_after.is_none() {
            world.violation = Some(format!("no agreement within {bound:?}: {why}"));
        } else {
            world.watch();
        }
    }
    let nodes = world
        .nodes
        .iter()
        .filter(|node| node.process.is_some())
        .count() as u64;
    world.tally.node_seconds = nodes * (world.now / SEC);
    Outcome {
        violation: world.violation,
        agreed_after,
        bound,
        hash: world.hash,
        events: world.events,
        tally: world.tally,
    }
}

impl World {
    /// Nodes that run and are honest.
    pub(crate) fn honest(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|node| {
                let state = &self.nodes[*node];
                state.process.is_some() && state.fate == Fate::Running && !state.hostile
            })
            .collect()
    }

    fn is_impaired(&self, a: usize, b: usize) -> bool {
        self.conditions.is_blocked(a, b) || self.conditions.is_blocked(b, a)
    }

    /// Honest nodes that are not cut off from all others for ever.
    pub(crate) fn core(&self) -> Vec<usize> {
        let honest = self.honest();
        let is_cut = |node: usize| {
            honest.len() > 1
                && honest
                    .iter()
                    .all(|other| *other == node || self.is_impaired(node, *other))
        };
        let core: Vec<usize> = honest
            .iter()
            .copied()
            .filter(|node| !is_cut(*node))
            .collect();
        core
    }

    /// Why the nodes do not agree yet.
    pub(crate) fn disagreement(&self) -> Option<String> {
        let lag = || self.lags().into_iter().next();
        self.disunity().or_else(|| lag().map(|lag| lag.why))
    }

    /// Whose view of another, of those that should see each other alive, is not its present record.
    fn lags(&self) -> Vec<Lag> {
        let core = self.core();
        let pairs = core
            .iter()
            .flat_map(|a| core.iter().map(move |b| (*a, *b)))
            .filter(|(a, b)| a != b && !self.is_impaired(*a, *b));
        pairs.filter_map(|(a, b)| self.lag_of(a, b)).collect()
    }

    fn lag_of(&self, a: usize, b: usize) -> Option<Lag> {
        let (name, other) = (name_of(a), name_of(b));
        let theirs = &self.cluster(b)?.swim().me().record;
        let why = match self.cluster(a)?.swim().member(&other) {
            None => format!("{name} does not know {other}"),
            Some(view) if view.status != MemberStatus::Alive || view.record.record != *theirs => {
                format!(
                    "{other} is {} at {} for {name}, and alive at {}",
                    view.status, view.record.record.incarnation, theirs.incarnation
                )
            }
            Some(_) => return None,
        };
        Some(Lag {
            node: a,
            about: b,
            record: theirs.clone(),
            why,
        })
    }

    fn view_of(&self, lag: &Lag) -> Option<swim::MemberView<'_>> {
        let cluster = self.cluster(lag.node)?;
        cluster.swim().member(&name_of(lag.about))
    }

    fn sees_alive(&self, lag: &Lag) -> bool {
        self.view_of(lag)
            .is_some_and(|view| view.status == MemberStatus::Alive)
    }

    /// Whether what a node lacked has come, or something newer has.
    fn has_caught_up(&self, lag: &Lag) -> bool {
        let has_it =
            |record: &Record| *record == lag.record || record.incarnation > lag.record.incarnation;
        self.sees_alive(lag)
            && self
                .view_of(lag)
                .is_some_and(|view| has_it(&view.record.record))
    }

    /// Why the nodes do not agree, whatever records they have of each other.
    fn disunity(&self) -> Option<String> {
        // Who still leaves is about to end, and its connections, at the latest by idleness, after it.
        let is_ending = |node: &&Node| node.process.is_some() && node.fate != Fate::Running;
        if let Some(node) = self.nodes.iter().find(is_ending) {
            return Some(format!("{} has not ended", node.name));
        }
        let core = self.core();
        for &a in &core {
            let cluster = self.cluster(a)?;
            if !cluster.has_started() {
                return Some(format!("{} has not started", name_of(a)));
            }
            for b in 0..self.nodes.len() {
                if b != a
                    && let Some(why) = self.disagreement_of(a, b, core.contains(&b))
                {
                    return Some(why);
                }
            }
            let peers = core
                .iter()
                .filter(|b| **b != a && !self.is_impaired(a, **b))
                .count();
            let counts = cluster.mesh().counts();
            // A liar, and who is cut off in one direction, may be connected or not.
            let others = self
                .nodes
                .iter()
                .enumerate()
                .filter(|(b, node)| {
                    *b != a
                        && node.process.is_some()
                        && (!core.contains(b) || self.is_impaired(a, *b))
                })
                .count();
            if !(peers..=peers + others).contains(&counts.up)
                || (others == 0 && counts.draining > 0)
            {
                return Some(format!("{} has {counts:?}, and {peers} peers", name_of(a)));
            }
            let open = self.process(a)?.open.iter();
            let up = open
                .filter(|(conn, end)| self.conns[*conn].ends[*end].phase == Phase::Up)
                .count();
            if others == 0 && up != peers {
                return Some(format!(
                    "{} has {up} connections, and {peers} peers",
                    name_of(a)
                ));
            }
        }
        None
    }

    fn disagreement_of(&self, a: usize, b: usize, is_core: bool) -> Option<String> {
        let (name, other) = (name_of(a), name_of(b));
        let cluster = self.cluster(a)?;
        let view = cluster.swim().member(&other);
        let status = view.as_ref().map(|view| view.status);
        if !is_core {
            let is_gone = self.nodes[b].process.is_none();
            let life = self.process(a)?.life;
            if is_gone
                && self.nodes[b].fate == Fate::Left
                && self.nodes[b].confirmed_by.contains(&(a, life))
                && status == Some(MemberStatus::Dead)
            {
                return Some(format!(
                    "{name} has confirmed the leave of {other}, dead for it"
                ));
            }
            let is_cut = !is_gone && !self.nodes[b].hostile;
            let is_settled = match status {
                None | Some(MemberStatus::Dead | MemberStatus::Left) => true,
                Some(MemberStatus::Alive | MemberStatus::Suspect) => !(is_gone || is_cut),
            };
            return (!is_settled).then(|| format!("{other} is gone, and {status:?} for {name}"));
        }
        if self.is_impaired(a, b) {
            return None;
        }
        let here = cluster.mesh().current(&other)?;
        let there = self.cluster(b)?.mesh().current(&name);
        let same = there.is_some_and(|there| self.is_same_connection(a, here, b, there));
        (!same).then(|| format!("{name} uses {here} to {other}, which uses {there:?}"))
    }

    /// Lets the agreement stand for a while, and holds what happens against the idle state.
    fn watch(&mut self) {
        let swim = self.options.swim.clone();
        // A probe that was sent into the last fault may take its whole length in worst health, and
        // then be news.
        let calm = swim.probe_interval * (swim.awareness_max + 1)
            + swim.gossip_interval * (swim.retransmits(self.nodes.len()) + GOSSIP_SLACK);
        let calm_until = self.now + calm.as_nanos() as u64;
        let agreed_at = self.now;
        self.run_until(calm_until);
        // A burst of events is passed on for longer: one to a datagram and one datagram to a round,
        // if they are large and there is nobody else.
        let rounds = swim.retransmits(self.nodes.len()) * MAX_EVENTS_WAITING as u32;
        let events_until = self.now + (swim.gossip_interval * rounds).as_nanos() as u64;
        while self.violation.is_none() && self.events_wait() && self.now < events_until {
            let next = self.now + SEC / 2;
            self.run_until(next);
        }
        let before = self.tally.clone();
        let watched = swim.probe_interval * WATCHED;
        let until = self.now + watched.as_nanos() as u64;
        self.run_until(until);
        if self.violation.is_some() {
            return;
        }
        let core = self.core();
        let running = self.nodes.iter().filter(|n| n.process.is_some()).count();
        let impaired = core.len() < running
            || core
                .iter()
                .any(|a| core.iter().any(|b| self.is_impaired(*a, *b)));
        let lost = if impaired {
            self.lasting_disagreement(calm, &swim)
        } else {
            self.disagreement()
        };
        if self.violation.is_some() {
            return;
        }
        if let Some(why) = lost {
            self.violation = Some(format!("agreement was lost: {why}"));
            return;
        }
        for &node in &core {
            let Some(process) = self.process(node) else {
                continue;
            };
            let death = process.observer.deaths.iter().find(|(at, dead)| {
                *at > agreed_at && core.contains(dead) && !self.is_impaired(node, *dead)
            });
            if let Some((at, dead)) = death {
                let seconds = *at as f64 / SEC as f64;
                let why = format!("{} died at {seconds} after agreement", name_of(*dead));
                self.violate(node, &why);
                return;
            }
        }
        if !impaired {
            self.check_idle(&before, watched, core.len(), &swim);
            self.speak(&core, &swim);
        }
    }

    /// What does not pass of a disagreement where one that lies or is deaf goes on accusing. To refute
    /// takes a moment, and within that everybody has to be alive for each again. Gossip brings the
    /// refutation to each node with some probability only (if every node tells it to four, e⁻⁴ of
    /// them miss it); whom it has missed takes the accused for alive at an older incarnation until a
    /// sync. Meanwhile the next is accused, so there may be no moment in which nobody lags behind; but
    /// nobody does so for ever.
    fn lasting_disagreement(&mut self, calm: Duration, swim: &swim::Config) -> Option<String> {
        let mending = swim.sync_every(self.nodes.len()) * MENDING_SYNCS * 51 / 50;
        let calm_until = self.now + calm.as_nanos() as u64;
        let mended_until = calm_until + mending.as_nanos() as u64;
        let mut disunity = self.disunity();
        let mut lags = self.lags();
        let mut doubts = self.lags();
        loop {
            doubts.retain(|lag| !self.sees_alive(lag));
            lags.retain(|lag| !self.has_caught_up(lag));
            let is_calm = disunity.is_none() && doubts.is_empty();
            let patience = if is_calm { mended_until } else { calm_until };
            if self.violation.is_some() || self.now >= patience || (is_calm && lags.is_empty()) {
                break;
            }
            let next = self.now + SEC / 5;
            self.run_until(next);
            disunity = disunity.and_then(|_| self.disunity());
        }
        let left = doubts.into_iter().chain(lags).next();
        disunity.or_else(|| left.map(|lag| lag.why))
    }

    fn events_wait(&self) -> bool {
        let waits = |node| {
            self.cluster(node)
                .is_some_and(|cluster| cluster.swim().pending_events() > 0)
        };
        self.core().into_iter().any(waits)
    }

    /// Several emit events, and everybody hears of all of them: by gossip at once, and whom that
    /// missed in one of the two syncs of its own for which an event is kept. Those go to two members,
    /// so one other that missed the same event does not matter.
    fn speak(&mut self, core: &[usize], swim: &swim::Config) {
        if self.violation.is_some() {
            return;
        }
        let mut emitted = Vec::new();
        for (place, &node) in core.iter().take(SPEAKERS).enumerate() {
            for _ in 0..if place == 0 { SPEAKERS } else { 1 } {
                let number = self.emit(node, 40);
                let boot = self.process(node).map(|process| process.boot);
                if let (Some(number), Some(boot)) = (number, boot) {
                    self.tally.count("emissions_at_rest");
                    emitted.push((node, boot, number));
                } else {
                    self.violate(node, "cannot emit at rest");
                }
            }
            self.settle(node);
        }
        // Clocks run up to a hundredth slow.
        let patience = (swim.sync_every(self.nodes.len()) * 2 + swim.probe_interval) * 51 / 50;
        let limit = self.now + patience.as_nanos() as u64;
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        let missed = |world: &Self, nodes: &[usize]| -> Vec<(usize, (usize, BootId, u64))> {
            let each = nodes
                .iter()
                .flat_map(|node| emitted.iter().map(|event| (*node, *event)));
            each.filter(|(node, (origin, boot, number))| {
                world
                    .process(*node)
                    .is_some_and(|process| !process.observer.has_heard(*origin, *boot, *number))
            })
            .collect()
        };
        self.run_until(self.now + GOSSIP_TURNS * swim.gossip_interval.as_nanos() as u64);
        let by_gossip = missed(self, &all);
        while self.violation.is_none() && !missed(self, core).is_empty() && self.now < limit {
            let next = self.now + SEC / 4;
            self.run_until(next);
        }
        let mut is_excused = false;
        for (node, event) in missed(self, core) {
            let others = by_gossip.iter().filter(|(_, missed)| *missed == event);
            if others.count() > 2 && !is_excused {
                // Both of its syncs may have met those; that is no accident twice in one run.
                is_excused = true;
                self.tally.count("events_never_heard");
                continue;
            }
            let (origin, _, number) = event;
            let why = format!(
                "has not heard event {number} of {} within {patience:?}",
                name_of(origin)
            );
            self.violate(node, &why);
        }
    }

    /// In a cluster at rest each node probes one member in each interval, which answers. A hundredth
    /// more for fast clocks, and the edges.
    fn check_idle(&mut self, before: &Tally, watched: Duration, nodes: usize, swim: &swim::Config) {
        let probes =
            watched.as_nanos() as u64 * 102 / 100 / swim.probe_interval.as_nanos() as u64 + 2;
        let allowed = 2 * probes * nodes as u64;
        let sent = self.tally.datagrams - before.datagrams;
        // An event that a sync brings whom gossip had missed is passed on once more.
        let mended = |tally: &Tally| tally.counts.get("events_mended_by_sync").copied();
        if sent > allowed && mended(&self.tally) == mended(before) {
            self.violation = Some(format!(
                "{sent} datagrams within {watched:?} at rest; {allowed} are enough"
            ));
        }
        for what in ["suspect", "dead", "up", "disconnected", "connected"] {
            let count = |tally: &Tally| tally.transitions.get(what).copied().unwrap_or(0);
            if count(&self.tally) != count(before) {
                self.violation = Some(format!("{what} at rest"));
            }
        }
    }
}
