//! A failing script made small: fewer acts, then fewer nodes, then less time.
//!
//! Acts are taken away in ever smaller groups as long as the run still breaks (Zeller's delta
//! debugging); every act stands for itself, so any subset is a script. A node goes by losing its
//! start and every act about it alone. Then the acts are made shorter, the end of the faults moves
//! forward, and the circumstances become plain. What is kept is a script that breaks in the same way,
//! as far as the words tell; another fault is for another search.

use super::{
    run::run,
    script::{Act, Nodes, Script, What},
    world::{MS, Options},
};

/// Runs that shrinking may take.
const MAX_RUNS: usize = 3_000;

struct Shrinker<'a> {
    best: Script,
    why: String,
    runs: usize,
    breaks: &'a dyn Fn(&Script) -> Option<String>,
}

/// Why a script breaks, if it does. Without the first node, which is everybody's seed, the others may
/// rightly never meet.
pub(crate) fn violation_of(script: &Script) -> Option<String> {
    let has_seed = script
        .acts
        .iter()
        .any(|act| matches!(&act.what, What::Start { node: 0, via } if via.contains(0)));
    if !has_seed {
        return None;
    }
    run(script.clone(), Options::of(script)).violation
}

/// What a violation says, without names and numbers.
fn kind(why: &str) -> Vec<&str> {
    let words = why.split_whitespace();
    let plain = words.filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    plain.filter(|word| *word != "at").take(4).collect()
}

/// The smallest script found that still breaks, and why it does.
pub(crate) fn shrink(
    script: Script,
    breaks: &dyn Fn(&Script) -> Option<String>,
) -> (Script, String) {
    let why = breaks(&script).unwrap_or_default();
    let mut shrinker = Shrinker {
        best: script,
        why,
        runs: 0,
        breaks,
    };
    loop {
        let before = shrinker.best.clone();
        shrinker.drop_acts();
        shrinker.drop_nodes();
        shrinker.shorten();
        shrinker.simplify();
        if shrinker.best == before || shrinker.runs >= MAX_RUNS {
            return (shrinker.best, shrinker.why);
        }
    }
}

impl Shrinker<'_> {
    /// Takes the candidate if it breaks as well.
    fn try_script(&mut self, candidate: Script) -> bool {
        if candidate == self.best || self.runs >= MAX_RUNS {
            return false;
        }
        self.runs += 1;
        match (self.breaks)(&candidate) {
            Some(why) if kind(&why) == kind(&self.why) => {
                self.best = candidate;
                self.why = why;
                true
            }
            Some(_) | None => false,
        }
    }

    fn drop_acts(&mut self) {
        let mut size = self.best.acts.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.best.acts.len() {
                let mut candidate = self.best.clone();
                let end = (at + size).min(candidate.acts.len());
                candidate.acts.drain(at..end);
                if !self.try_script(candidate) {
                    at += size;
                }
            }
            size /= 2;
        }
    }

    fn drop_nodes(&mut self) {
        for node in (1..self.best.nodes).rev() {
            let mut candidate = self.best.clone();
            candidate.acts.retain(|act| !act.what.concerns(node));
            if node + 1 == candidate.nodes {
                candidate.nodes -= 1;
                for act in &mut candidate.acts {
                    without(&mut act.what, node);
                }
                candidate.acts.retain(|act| !act.what.is_empty());
            }
            self.try_script(candidate);
        }
    }

    fn shorten(&mut self) {
        for at in 0..self.best.acts.len() {
            for part in [0, 1, 2] {
                let mut candidate = self.best.clone();
                let Some(act) = candidate.acts.get_mut(at) else {
                    break;
                };
                let Some(until) = act.until_ms else {
                    break;
                };
                let half = (until - act.at_ms) / 2;
                match part {
                    0 => act.until_ms = Some(act.at_ms + half),
                    1 => act.at_ms += half,
                    _ => act.until_ms = Some(until - half / 4),
                }
                self.try_script(candidate);
            }
        }
        // Everything earlier, as far as the nodes have started.
        let starts = self.best.acts.iter().filter(|act| !act.what.lasts());
        let first = starts.map(|act| act.at_ms).max().unwrap_or(0);
        for shift in [10_000, 2_000, 500] {
            let mut candidate = self.best.clone();
            for act in &mut candidate.acts {
                if act.at_ms >= first + shift {
                    act.at_ms -= shift;
                    act.until_ms = act.until_ms.map(|until| until - shift);
                }
            }
            candidate.faults_end_ms = end_of(&candidate.acts);
            self.try_script(candidate);
        }
        let mut candidate = self.best.clone();
        candidate.faults_end_ms = end_of(&candidate.acts);
        self.try_script(candidate);
    }

    /// Usual circumstances instead of drawn ones.
    fn simplify(&mut self) {
        let plain = [
            |script: &mut Script| script.clocks_ppm = 0,
            |script: &mut Script| script.skewed = Nodes::default(),
            |script: &mut Script| script.tombstone_s = 86_400,
            |script: &mut Script| script.icmp = true,
            |script: &mut Script| (script.latency_us, script.jitter_us) = (300, 20),
            |script: &mut Script| {
                for act in &mut script.acts {
                    if let What::Start { .. } = act.what {
                        act.at_ms = 0;
                    }
                }
            },
            |script: &mut Script| {
                for act in &mut script.acts {
                    act.at_ms = act.at_ms / 500 * 500;
                    act.until_ms = act.until_ms.map(|until| until.div_ceil(500) * 500);
                }
            },
        ];
        for change in plain {
            let mut candidate = self.best.clone();
            change(&mut candidate);
            self.try_script(candidate);
        }
    }
}

fn end_of(acts: &[Act]) -> u64 {
    let ends = acts.iter().map(|act| act.until_ms.unwrap_or(act.at_ms));
    ends.max().unwrap_or(0) + 1_000
}

/// Takes a node out of the sets of an act.
fn without(what: &mut What, node: usize) {
    let strike = |nodes: &mut Nodes| *nodes = Nodes::of(nodes.iter().filter(|n| *n != node));
    match what {
        What::Block { from, to }
        | What::Clog { from, to }
        | What::Loss { from, to, .. }
        | What::Delay { from, to, .. } => {
            strike(from);
            strike(to);
        }
        What::Start { via, .. } | What::Join { via, .. } => strike(via),
        What::Crash { .. }
        | What::Leave { .. }
        | What::Stop { .. }
        | What::Pause { .. }
        | What::Stall { .. }
        | What::Stress { .. }
        | What::Duplicate { .. }
        | What::Reorder { .. }
        | What::Corrupt { .. }
        | What::Full { .. }
        | What::Unsigned { .. }
        | What::Sever { .. }
        | What::Tags { .. }
        | What::Emit { .. }
        | What::ForceLeave { .. }
        | What::NoNames
        | What::Hostile(_) => {}
    }
}

/// The simulated time that a script takes at least, in nanoseconds.
pub(crate) fn length(script: &Script) -> u64 {
    script.faults_end_ms * MS
}
