//! How lives begin and end, and what each act of a script does to the world.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use nodosum::{
    BootId, CloseCode, CloseReason, NodeId,
    unversioned::{cluster::Cluster, record::Record, roster::Image},
};

use super::{
    check::Observer,
    connections::Phase,
    script::{Memory, Nodes, What},
    world::{Fate, Happening, MS, Process, SEC, World, gossip_addr, name_of, quic_addr},
};

/// How long a leave waits for confirmations.
const LEAVE_PATIENCE: u64 = 5 * SEC;

impl World {
    // ---- starting and ending processes

    /// Starts a node's next life.
    pub(crate) fn start(&mut self, node: usize, via: Nodes, memory: Memory, moved: bool) {
        if self.nodes[node].process.is_some() {
            return;
        }
        if moved {
            self.nodes[node].addr = self.addresses.len() as u32;
            self.addresses.push(node);
        }
        let saved = &self.nodes[node].saved;
        let saved = match memory {
            Memory::Kept => saved.last(),
            Memory::Old => saved.get(saved.len() / 2),
            Memory::Lost => None,
        };
        let image = saved.and_then(|bytes| Image::decode(bytes).ok());
        if image.is_some() && matches!(memory, Memory::Old) {
            self.tally.fault("old_memory");
        }
        let incarnation = image.as_ref().map_or(1, |image| image.incarnation + 1);
        let boot = u128::from(self.rng.u64()) << 64 | u128::from(self.rng.u64());
        let boot = BootId(boot.to_be_bytes());
        let addr = self.nodes[node].addr;
        let skewed = self.script.skewed.contains(node);
        if skewed {
            self.tally.fault("skew");
        }
        if self.nodes[node].clock_ppm != 0 {
            self.tally.fault("clock_rate");
        }
        let mut certificate = [0; 32];
        certificate[..8].copy_from_slice(&(node as u64).to_be_bytes());
        let record = Record {
            cluster: self.cluster_name.clone(),
            node: self.nodes[node].name.clone(),
            incarnation,
            boot,
            quic_addr: quic_addr(addr),
            gossip_addr: gossip_addr(addr),
            tags: BTreeMap::new(),
            left: false,
            protocol: if skewed { (1, 2) } else { (1, 1) },
            version: if skewed { "9.9.9-next" } else { "0.1.0" }.into(),
            certificate,
        };
        let me = self.registry.sign(record);
        let seed = self.rng.u64();
        let now = self.local(node);
        let cluster = Cluster::new(
            self.options.swim.clone(),
            self.options.mesh.clone(),
            Arc::clone(&me),
            seed,
            now,
        );
        let total = self.nodes.len();
        let state = &mut self.nodes[node];
        state.lives += 1;
        state.fate = Fate::Running;
        state.host_up = true;
        state.ended_by = None;
        state.via = via.clone();
        let certificates = if self.options.certificates_known {
            Nodes::of(0..total)
        } else {
            Nodes::of([node])
        };
        state.process = Some(Process {
            life: state.lives,
            cluster: Box::new(cluster),
            boot,
            paused: 0,
            stalled: 0,
            backlog: Vec::new(),
            backlog_datagrams: 0,
            timer_at: None,
            certificates,
            waiting: VecDeque::new(),
            keys: 0,
            counter: 0,
            windows: BTreeMap::new(),
            ends: Vec::new(),
            open: BTreeSet::new(),
            leaving: false,
            exiting: false,
            streams: 0,
            owed_sync: None,
            observer: Observer::new(self.now),
            sent: 0,
        });
        self.truth.born(node, &me.record);
        if self.nodes[node].lives > 1 {
            self.tally.count("restarts");
        }
        let life = self.nodes[node].lives;
        self.say(|| {
            format!(
                "{} starts life {life} at incarnation {incarnation}",
                name_of(node)
            )
        });
        // Nothing held by acts that began before it ran holds it now: a new process is another.
        if let Some(image) = image {
            self.restore(node, &image);
        }
        let seeds = via.iter().map(|seed| name_of(seed).to_string()).collect();
        if let Some(process) = &mut self.nodes[node].process {
            process.cluster.start(now, seeds);
        }
        let first_ping = self.rng.below(SEC);
        self.later(first_ping, Happening::PingTick { node, life });
        self.settle(node);
    }

    /// The process is gone, as if killed.
    pub(crate) fn vanish(&mut self, node: usize) {
        self.harvest(node);
        let Some(process) = self.nodes[node].process.take() else {
            return;
        };
        for (conn, end) in &process.open {
            self.conns[*conn].ends[*end].phase = Phase::Over;
        }
    }

    /// Adds what a life's core has counted, at its end or the run's.
    pub(super) fn harvest(&mut self, node: usize) {
        let Some(counters) = self.cluster(node).map(|cluster| *cluster.swim().counters()) else {
            return;
        };
        let counts = [
            ("vetoes", counters.vetoes),
            ("disbelieved", counters.disbelieved),
            ("fast_deaths", counters.fast_deaths),
            ("late_timeouts", counters.late_timeouts),
            ("probes_indirect", counters.probes_indirect),
            ("probes_connection", counters.probes_connection),
            ("probes_by_evidence", counters.probes_by_evidence),
            ("probes_abandoned", counters.probes_abandoned),
            ("implausible", counters.implausible),
            ("conflicting_records", counters.conflicting_records),
        ];
        for (name, count) in counts {
            // A zero is no entry, so that a campaign notices.
            if count > 0 {
                self.tally.add(name, count);
            }
        }
    }

    /// Closes every connection as a process that shuts down does, and ends it.
    pub(super) fn exit(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if process.exiting {
            return;
        }
        process.exiting = true;
        let life = process.life;
        process.cluster.stop(now);
        let leave = process.cluster.leaving();
        let confirmed: Vec<NodeId> = leave.map_or_else(Vec::new, |leave| leave.confirmed.clone());
        let confirmed = confirmed.iter().filter_map(|name| self.index_of(name));
        let confirmed = confirmed
            .filter_map(|peer| Some((peer, self.life(peer)?)))
            .collect();
        self.nodes[node].confirmed_by = confirmed;
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let open: Vec<_> = process.open.iter().copied().collect();
        self.settle(node);
        for (conn, end) in open {
            self.close(conn, end, CloseCode::Shutdown);
        }
        self.settle(node);
        self.later(100 * MS, Happening::Exit { node, life });
    }

    // ---- acts

    pub(super) fn begin(&mut self, act: usize) {
        let what = self.script.acts[act].what.clone();
        self.tally.began(what.class());
        self.say(|| format!("begin {what}"));
        self.disturb(&what, true);
        match what {
            What::Start { node, via } => self.start(node, via, Memory::Lost, false),
            What::Crash { node, host, .. } => {
                if self.nodes[node].process.is_some() {
                    self.vanish(node);
                    self.nodes[node].fate = Fate::Crashed;
                    self.nodes[node].host_up = !host;
                    self.nodes[node].ended_by = Some(act);
                    self.tally.count("crashes");
                }
            }
            What::Leave { node, .. } => {
                let now = self.local(node);
                if let Some(process) = &mut self.nodes[node].process
                    && !process.leaving
                    && !process.exiting
                {
                    process.leaving = true;
                    process.cluster.leave(now);
                    let life = process.life;
                    self.nodes[node].fate = Fate::Left;
                    self.nodes[node].ended_by = Some(act);
                    self.tally.count("leaves");
                    self.settle(node);
                    self.later(LEAVE_PATIENCE, Happening::LeaveDeadline { node, life });
                }
            }
            What::Stop { node, .. } => {
                if self.nodes[node]
                    .process
                    .as_ref()
                    .is_some_and(|p| !p.leaving && !p.exiting)
                {
                    self.nodes[node].fate = Fate::Stopped;
                    self.nodes[node].ended_by = Some(act);
                    self.tally.count("stops");
                    self.exit(node);
                }
            }
            What::Pause { node } => self.hold(node, act, true),
            What::Stall { node } => self.hold(node, act, false),
            What::Stress { .. } => self.on_stress(act, true),
            What::Sever { a, b } => self.sever(a, b),
            What::Join { node, via } => {
                let now = self.local(node);
                let seeds = via.iter().map(|seed| name_of(seed).to_string()).collect();
                if let Some(process) = &mut self.nodes[node].process
                    && !process.is_frozen()
                {
                    process.cluster.join(now, seeds);
                    self.settle(node);
                }
            }
            What::Tags { node, value } => {
                let now = self.local(node);
                let tags = BTreeMap::from([("value".to_owned(), value.to_string())]);
                if let Some(process) = &mut self.nodes[node].process
                    && !process.is_frozen()
                {
                    let fits = process.cluster.set_tags(now, tags).is_ok();
                    if !fits {
                        self.violate(node, "small tags do not fit");
                    }
                    self.settle(node);
                }
            }
            What::Emit { node, count, bytes } => {
                if self.process(node).is_some_and(|p| !p.is_frozen()) {
                    for _ in 0..count {
                        self.emit(node, bytes as usize);
                    }
                    self.settle(node);
                }
            }
            What::ForceLeave { by, node } => {
                let now = self.local(by);
                let name = name_of(node);
                if let Some(process) = &mut self.nodes[by].process
                    && !process.is_frozen()
                {
                    if process.cluster.force_leave(now, &name).is_ok() {
                        self.tally.count("forced_leaves_asked");
                    }
                    self.settle(by);
                }
            }
            What::Hostile(_) => {
                self.conditions.begin(act, &what);
                self.on_hostile(act);
            }
            What::Block { .. }
            | What::Clog { .. }
            | What::Loss { .. }
            | What::Delay { .. }
            | What::Duplicate { .. }
            | What::Reorder { .. }
            | What::Corrupt { .. }
            | What::Full { .. }
            | What::Unsigned { .. }
            | What::NoNames => self.conditions.begin(act, &what),
        }
    }

    pub(super) fn end(&mut self, act: usize) {
        let what = self.script.acts[act].what.clone();
        self.say(|| format!("end   {what}"));
        self.disturb(&what, false);
        match what {
            What::Crash {
                node,
                memory,
                moved,
                ..
            } => self.start_again(node, act, memory, moved),
            What::Leave { node, memory } | What::Stop { node, memory } => {
                self.start_again(node, act, memory, false);
            }
            What::Pause { node } => self.release(node, act, true),
            What::Stall { node } => self.release(node, act, false),
            What::Stress { node, .. } => {
                self.conditions.end(act);
                self.release(node, act, true);
            }
            What::Clog { .. } => {
                for datagram in self.conditions.unclog(act) {
                    let delay = self.rng.below(2 * MS);
                    self.later(delay, Happening::Datagram(Box::new(datagram)));
                }
                self.conditions.end(act);
            }
            What::Block { .. }
            | What::Loss { .. }
            | What::Delay { .. }
            | What::Duplicate { .. }
            | What::Reorder { .. }
            | What::Corrupt { .. }
            | What::Full { .. }
            | What::Unsigned { .. }
            | What::NoNames
            | What::Hostile(_) => self.conditions.end(act),
            What::Start { .. }
            | What::Sever { .. }
            | What::Join { .. }
            | What::Tags { .. }
            | What::Emit { .. }
            | What::ForceLeave { .. } => {}
        }
    }

    pub(super) fn disturb(&mut self, what: &What, begins: bool) {
        let lasts = what.lasts();
        let now = self.now;
        for (node, state) in self.nodes.iter_mut().enumerate() {
            if what.disturbs(node) {
                state.calm_since = now;
                match begins {
                    true if lasts => state.disturbances += 1,
                    true => {}
                    false => state.disturbances -= 1,
                }
            }
        }
    }

    /// Since when nothing has disturbed a node, or `None` while something does.
    pub(crate) fn calm_since(&self, node: usize) -> Option<u64> {
        let state = &self.nodes[node];
        (state.disturbances == 0).then_some(state.calm_since)
    }

    /// Whether nothing but its own leave has disturbed a node for a while.
    pub(crate) fn is_calm_but_for_leave(&self, node: usize) -> bool {
        let since = self.now.saturating_sub(6 * SEC);
        !self.script.acts.iter().any(|act| {
            let ends = act.until_ms.map_or(u64::MAX, |until| until * MS);
            let over = if act.what.lasts() {
                ends
            } else {
                act.at_ms * MS
            };
            act.what.disturbs(node)
                && !matches!(act.what, What::Leave { .. })
                && act.at_ms * MS <= self.now
                && over >= since
        })
    }

    pub(super) fn start_again(&mut self, node: usize, act: usize, memory: Memory, moved: bool) {
        if self.nodes[node].ended_by != Some(act) {
            return;
        }
        // A leave that still waits is cut short, as by an impatient operator.
        self.vanish(node);
        let via = self.nodes[node].via.clone();
        self.start(node, via, memory, moved);
    }

    pub(super) fn hold(&mut self, node: usize, act: usize, whole: bool) {
        if let Some(process) = &mut self.nodes[node].process {
            if whole {
                process.paused += 1;
            } else {
                process.stalled += 1;
            }
            let life = process.life;
            self.conditions.hold(act, node, life);
        }
    }

    pub(super) fn release(&mut self, node: usize, act: usize, whole: bool) {
        // Only the life that was held is let go.
        let held = self.conditions.let_go(act);
        if held.is_none() || held.map(|(_, life)| life) != self.life(node) {
            return;
        }
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        if whole {
            process.paused -= 1;
        } else {
            process.stalled -= 1;
        }
        if process.is_frozen() {
            return;
        }
        let backlog = std::mem::take(&mut process.backlog);
        process.backlog_datagrams = 0;
        // What came over connections while it stood still lies in the sockets' buffers.
        let open: Vec<_> = process.open.iter().copied().collect();
        for (conn, end) in open {
            if self.conns[conn].ends[1 - end].phase != Phase::Over {
                self.conns[conn].ends[end].heard_at = self.now;
            }
        }
        let (datagrams, others): (Vec<_>, Vec<_>) = backlog
            .into_iter()
            .partition(|happening| matches!(happening, Happening::Datagram(_)));
        for happening in datagrams.into_iter().chain(others) {
            self.happen(happening);
        }
        self.on_timer_due(node);
    }

    pub(super) fn on_stress(&mut self, act: usize, still: bool) {
        let What::Stress {
            node,
            still_ms,
            run_ms,
        } = self.script.acts[act].what
        else {
            return;
        };
        if self.script.acts[act]
            .until_ms
            .is_some_and(|until| self.now >= until * MS)
        {
            return;
        }
        if still {
            self.hold(node, act, true);
            self.later(still_ms * MS, Happening::Stress { act, still: false });
        } else {
            self.release(node, act, true);
            self.later(run_ms * MS, Happening::Stress { act, still: true });
        }
    }

    /// Every connection of the two breaks, and each end learns it by itself.
    pub(super) fn sever(&mut self, a: usize, b: usize) {
        let Some(process) = self.process(a) else {
            return;
        };
        let between: Vec<usize> = process
            .open
            .iter()
            .filter(|(conn, end)| self.conns[*conn].ends[1 - end].node == b)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in between {
            for end in 0..2 {
                if self.conns[conn].ends[end].phase == Phase::Up {
                    self.tally.fault("sever");
                    let delay = self.rng.below(200 * MS);
                    let reason = Box::new(CloseReason::Transport {
                        code: 1,
                        by_peer: false,
                    });
                    self.later(delay, Happening::Down { conn, end, reason });
                }
            }
        }
    }
}
