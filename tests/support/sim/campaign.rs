//! Many seeds, on a few threads, and what they came to.
//!
//! One seed runs on one thread from beginning to end, so threads change nothing but the time it
//! takes. A campaign fails when a seed breaks an invariant or does not come to agreement, and when
//! something that it is there to test never happened ([`Report::missing`]).

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{
    generate::generate,
    run::{Outcome, run},
    tally::Tally,
    world::Options,
};

/// Without one of each of these a campaign has tested less than it says.
const TRANSITIONS: &[&str] = &[
    "up",
    "suspect",
    "refuted",
    "dead",
    "left",
    "forced_out",
    "updated",
    "user_event",
    "forgotten",
    "connected",
    "replaced",
    "disconnected",
    "seed_failed",
    "self_dial",
];
const FAULTS: &[&str] = &[
    "block",
    "block_around",
    "block_frame",
    "block_handshake",
    "block_one_way",
    "clock_rate",
    "clog",
    "corrupt",
    "delay",
    "duplicate",
    "full_queue",
    "insider",
    "key_holder",
    "loss",
    "no_names",
    "old_memory",
    "outsider",
    "reorder",
    "sever",
    "skew",
    "stuck_worker",
    "unsigned",
];
const ACTS: &[&str] = &[
    "crash",
    "crash_host",
    "crash_moved",
    "leave",
    "stop",
    "pause",
    "stall",
    "stress",
    "double_join",
    "tags",
    "emit",
    "force_leave",
];
const COUNTS: &[&str] = &[
    "conflicting_records",
    "disbelieved",
    "fast_deaths",
    "implausible",
    "late_timeouts",
    "probes_abandoned",
    "probes_by_evidence",
    "probes_connection",
    "probes_indirect",
    "rosters_restored",
    "suspects_judged",
    "vetoes",
    "crashes",
    "drains",
    "emissions",
    "emissions_at_rest",
    "emissions_refused",
    "event_copies",
    "events_mended_by_sync",
    "events_of_strangers",
    "events_refused",
    "events_stale",
    "forced_leaves_asked",
    "idle_timeouts",
    "leaves_over",
    "leaves_unconfirmed",
    "pings_missed",
    "refusals",
    "replays_refused",
    "resets",
    "restarts",
    "statements_refused",
    "records_refused",
    "stops",
    "sync_answers",
    "syncs_lost",
];

/// Seeds below which some rare thing may not happen by chance alone.
const ENOUGH_SEEDS: u64 = 500;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) from: u64,
    pub(crate) seeds: u64,
    pub(crate) nodes: Option<(usize, usize)>,
    pub(crate) threads: usize,
    /// Ends with the first seed that breaks.
    pub(crate) stop_at_first: bool,
}

/// What a campaign came to.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) seeds: u64,
    /// Seeds that broke an invariant, with why, in order.
    pub(crate) violations: BTreeMap<u64, String>,
    /// Those of them that did not come to agreement.
    pub(crate) unconverged: u64,
    pub(crate) tally: Tally,
    pub(crate) events: u64,
    /// How long agreement took, of every seed that came to one.
    pub(crate) agreed: Vec<Duration>,
    /// The largest share of its bound that agreement took, in thousandths, and the seed.
    pub(crate) closest: (u64, u64),
    /// The most entries of the agenda in one run, and its seed.
    pub(crate) heaviest: (u64, u64),
    pub(crate) took: Duration,
    /// The hashes of all seeds, in no order.
    pub(crate) hash: u64,
}

impl Report {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.events += outcome.events;
        self.heaviest = self.heaviest.max((outcome.events, seed));
        self.hash ^= outcome.hash.rotate_left((seed % 64) as u32);
        self.tally.merge(&outcome.tally);
        if let Some(agreed) = outcome.agreed_after {
            self.agreed.push(agreed);
            let share = agreed.as_millis() * 1_000 / outcome.bound.as_millis().max(1);
            self.closest = self.closest.max((share as u64, seed));
        }
        if let Some(why) = outcome.violation {
            self.unconverged += u64::from(why.starts_with("no agreement"));
            self.violations.insert(seed, why);
        }
    }

    /// What should have happened and did not.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        if self.seeds < ENOUGH_SEEDS {
            return Vec::new();
        }
        let tables = [
            (TRANSITIONS, &self.tally.transitions),
            (FAULTS, &self.tally.faults),
            (ACTS, &self.tally.acts),
            (COUNTS, &self.tally.counts),
        ];
        let mut missing = Vec::new();
        for (names, table) in tables {
            missing.extend(names.iter().filter(|name| !table.contains_key(**name)));
        }
        missing
    }

    pub(crate) fn quantile(&mut self, percent: usize) -> Duration {
        self.agreed.sort_unstable();
        let last = self.agreed.len().saturating_sub(1);
        self.agreed
            .get(last * percent / 100)
            .copied()
            .unwrap_or_default()
    }
}

/// Runs a campaign. `progress` hears how many seeds are done.
#[expect(
    clippy::disallowed_methods,
    reason = "a campaign reports how long it took, and runs seeds on threads of its own"
)]
pub(crate) fn campaign(plan: &Plan, progress: &(dyn Fn(u64) + Sync)) -> Report {
    let started = Instant::now();
    let next = AtomicU64::new(plan.from);
    let end = plan.from.saturating_add(plan.seeds);
    let over = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..plan.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= end || over.load(Relaxed) {
                        return;
                    }
                    let script = generate(seed, plan.nodes);
                    let options = Options::of(&script);
                    let outcome = run(script, options);
                    if plan.stop_at_first && outcome.violation.is_some() {
                        over.store(true, Relaxed);
                    }
                    let mut report = report.lock().unwrap_or_else(|poison| poison.into_inner());
                    report.add(seed, outcome);
                    progress(report.seeds);
                }
            });
        }
    });
    let mut report = report
        .into_inner()
        .unwrap_or_else(|poison| poison.into_inner());
    report.took = started.elapsed();
    report
}
