//! A script for every seed.
//!
//! This is swarm testing: a seed first switches each class of fault on or off, then draws a handful
//! of acts from those that are on. A run with every fault at once tests little, because the loudest
//! one drowns the others; runs in which a random half is off reach far more states. Everything ends
//! by `faults_end`, except what is permanent: some crashes and leaves, and now and then one path that
//! never heals.

use nodosum::unversioned::rng::Rng;

use super::script::{Act, Hostility, Memory, Nodes, Profile, Script, What};

/// How the number of nodes is drawn; chances in a hundred. Small clusters have most of the
/// interleavings, large ones the arithmetic.
const SIZES: &[(u64, usize, usize)] = &[(60, 2, 8), (28, 9, 20), (9, 21, 40), (3, 41, 64)];

/// The classes that a seed switches on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Crash,
    Leave,
    Stop,
    Early,
    Pause,
    Stall,
    Stress,
    Partition,
    OneWay,
    Bridge,
    Ring,
    Isolate,
    Clog,
    Loss,
    Delay,
    Network,
    Full,
    Unsigned,
    Sever,
    Join,
    Tags,
    ForceLeave,
    Names,
    Hostile,
}

const CLASSES: &[Class] = &[
    Class::Crash,
    Class::Leave,
    Class::Stop,
    Class::Early,
    Class::Pause,
    Class::Stall,
    Class::Stress,
    Class::Partition,
    Class::OneWay,
    Class::Bridge,
    Class::Ring,
    Class::Isolate,
    Class::Clog,
    Class::Loss,
    Class::Delay,
    Class::Network,
    Class::Full,
    Class::Unsigned,
    Class::Sever,
    Class::Join,
    Class::Tags,
    Class::ForceLeave,
    Class::Names,
    Class::Hostile,
];

/// The script of a seed, with a number of nodes within `nodes` if that is given.
pub(crate) fn generate(seed: u64, nodes: Option<(usize, usize)>) -> Script {
    // Apart from the seed of the run itself, so that neither can be guessed from the other.
    let mut rng = Rng::new(seed ^ 0x5ca1_ab1e_0dd5_eed5);
    let nodes = draw_size(&mut rng, nodes);
    let mut draft = Draft {
        nodes,
        // Once in a while long enough for tombstones and retired names to matter.
        window_ms: match rng.below(100) {
            // An hour of a large cluster would take as long as a hundred other seeds.
            0 if nodes <= 8 => 3_600_000,
            0..=3 => 240_000,
            _ => 20_000 + rng.below(60_000),
        },
        acts: Vec::new(),
        rng,
    };
    let seeds = 1 + draft.rng.index(nodes.min(3));
    for node in 0..nodes {
        let at_ms = match draft.rng.below(3) {
            0 => 0,
            1 => draft.rng.below(500),
            _ => draft.rng.below(5_000),
        };
        let via = Nodes::of(0..seeds);
        draft.acts.push(Act {
            at_ms,
            until_ms: None,
            what: What::Start { node, via },
        });
    }
    let enabled: Vec<Class> = CLASSES
        .iter()
        .copied()
        .filter(|_| draft.rng.below(2) == 0)
        .collect();
    if !enabled.is_empty() {
        for _ in 0..1 + draft.rng.below(10) {
            let class = enabled[draft.rng.index(enabled.len())];
            draft.act(class);
        }
    }
    let Draft {
        mut acts, mut rng, ..
    } = draft;
    let ends = acts
        .iter()
        .map(|act| act.until_ms.unwrap_or(act.at_ms))
        .max();
    let ends = ends.unwrap_or(0);
    acts.extend(emissions(seed, nodes, ends));
    let skewed = match rng.below(4) {
        0 => (0..nodes).filter(|_| rng.below(2) == 0).collect(),
        _ => Vec::new(),
    };
    Script {
        seed,
        nodes,
        profile: match rng.below(10) {
            0 => Profile::Local,
            1 => Profile::Wan,
            _ => Profile::Lan,
        },
        latency_us: [50, 300, 2_000, 10_000][rng.index(4)],
        jitter_us: [20, 500, 5_000][rng.index(3)],
        clocks_ppm: [0, 200, 10_000][rng.index(3)],
        icmp: rng.below(4) != 0,
        skewed: Nodes::of(skewed),
        tombstone_s: [60, 600, 86_400, 86_400][rng.index(4)],
        faults_end_ms: ends + 1_000,
        acts,
    }
}

/// What applications emit, in half of the seeds. It disturbs nobody, so it comes beside the faults
/// and not in the place of one, and lengthens nothing.
fn emissions(seed: u64, nodes: usize, ends: u64) -> Vec<Act> {
    let mut rng = Rng::new(seed ^ 0xe4e4_7500_0f0f_a995);
    if rng.below(2) == 0 {
        return Vec::new();
    }
    let one = |rng: &mut Rng| {
        let at_ms = match rng.below(3) {
            // While everybody joins there is most other news.
            0 => rng.below(ends.min(6_000) + 1),
            _ => rng.below(ends + 1),
        };
        // More than may wait at once, in small clusters; in large ones that is many copies.
        let count = match rng.below(10) {
            0 if nodes <= 8 => 60 + rng.below(40),
            0..=5 => 1,
            _ => 2 + rng.below(12),
        };
        let what = What::Emit {
            node: rng.index(nodes),
            count,
            bytes: [8, 60, 200, 500][rng.index(4)],
        };
        Act {
            at_ms,
            until_ms: None,
            what,
        }
    };
    (0..1 + rng.below(8)).map(|_| one(&mut rng)).collect()
}

fn draw_size(rng: &mut Rng, wanted: Option<(usize, usize)>) -> usize {
    if let Some((low, high)) = wanted {
        return low.max(1) + rng.index(high.saturating_sub(low) + 1);
    }
    let mut chance = rng.below(100);
    for (share, low, high) in SIZES {
        if chance < *share {
            return low + rng.index(high - low + 1);
        }
        chance -= share;
    }
    5
}

struct Draft {
    nodes: usize,
    window_ms: u64,
    acts: Vec<Act>,
    rng: Rng,
}

impl Draft {
    fn node(&mut self) -> usize {
        self.rng.index(self.nodes)
    }

    fn others(&self, node: usize) -> Nodes {
        Nodes::of((0..self.nodes).filter(|other| *other != node))
    }

    fn all(&self) -> Nodes {
        Nodes::of(0..self.nodes)
    }

    fn some(&mut self) -> Nodes {
        let share = 1 + self.rng.below(9);
        let mut nodes = Vec::new();
        for node in 0..self.nodes {
            if self.rng.below(10) < share {
                nodes.push(node);
            }
        }
        if nodes.is_empty() {
            nodes.push(self.rng.index(self.nodes));
        }
        Nodes::of(nodes)
    }

    fn complement(&self, nodes: &Nodes) -> Nodes {
        Nodes::of((0..self.nodes).filter(|node| !nodes.contains(*node)))
    }

    fn time(&mut self) -> u64 {
        self.rng.below(self.window_ms)
    }

    /// A beginning and an end within the window; short, medium or long.
    fn span(&mut self) -> (u64, u64) {
        let length = match self.rng.below(10) {
            0..=2 => 100 + self.rng.below(2_000),
            3..=6 => 2_000 + self.rng.below(13_000),
            7 | 8 => 15_000 + self.rng.below(45_000),
            _ => self.window_ms,
        };
        let at = self.time();
        (at, at + length)
    }

    fn push(&mut self, (at_ms, until_ms): (u64, u64), what: What) {
        if what.is_empty() {
            return;
        }
        let until_ms = what.lasts().then_some(until_ms);
        self.acts.push(Act {
            at_ms,
            until_ms,
            what,
        });
    }

    /// What never ends spares the first node: it is everybody's seed, and nodes that have never met
    /// need one that lives.
    fn push_for_ever(&mut self, at_ms: u64, what: What) {
        if what.concerns(0) {
            let until = at_ms + self.window_ms;
            self.push((at_ms, until), what);
            return;
        }
        self.acts.push(Act {
            at_ms,
            until_ms: None,
            what,
        });
    }

    fn memory(&mut self) -> Memory {
        match self.rng.below(4) {
            0 => Memory::Kept,
            1 => Memory::Old,
            _ => Memory::Lost,
        }
    }

    fn both_ways(&mut self, span: (u64, u64), from: Nodes, to: Nodes) {
        let back = What::Block {
            from: to.clone(),
            to: from.clone(),
        };
        self.push(span, What::Block { from, to });
        self.push(span, back);
    }

    fn act(&mut self, class: Class) {
        let span = self.span();
        match class {
            Class::Crash => {
                let what = What::Crash {
                    node: self.node(),
                    memory: self.memory(),
                    moved: self.rng.below(4) == 0,
                    host: self.rng.below(3) == 0,
                };
                if self.rng.below(3) == 0 {
                    self.push_for_ever(span.0, what);
                } else {
                    self.push(span, what);
                }
            }
            Class::Leave | Class::Stop => {
                let (node, memory) = (self.node(), self.memory());
                let what = if class == Class::Leave {
                    What::Leave { node, memory }
                } else {
                    What::Stop { node, memory }
                };
                if self.rng.below(2) == 0 {
                    self.push_for_ever(span.0, what);
                } else {
                    self.push(span, what);
                }
            }
            Class::Early => {
                // In the middle of joining, or of dialling.
                let (node, memory) = (self.node(), self.memory());
                let start = self.acts.iter().find_map(|act| match act.what {
                    What::Start { node: other, .. } if other == node => Some(act.at_ms),
                    _ => None,
                });
                let at = start.unwrap_or(0) + self.rng.below(300);
                let what = if self.rng.below(2) == 0 {
                    What::Leave { node, memory }
                } else {
                    What::Stop { node, memory }
                };
                let back = at + 100 + self.rng.below(10_000);
                self.push((at, back), what);
            }
            Class::Pause => {
                let node = self.node();
                self.push(span, What::Pause { node });
            }
            Class::Stall => {
                let node = self.node();
                self.push(span, What::Stall { node });
            }
            Class::Stress => {
                let what = What::Stress {
                    node: self.node(),
                    still_ms: 50 + self.rng.below(5_000),
                    run_ms: 1 + self.rng.below(1_000),
                };
                self.push(span, what);
            }
            Class::Partition => {
                let from = self.some();
                let to = self.complement(&from);
                self.both_ways(span, from, to);
            }
            Class::OneWay => {
                let (from, to) = if self.rng.below(2) == 0 {
                    let from = self.some();
                    (from.clone(), self.complement(&from))
                } else {
                    let a = self.node();
                    let b = self.node();
                    (Nodes::of([a]), Nodes::of([b]))
                };
                let is_pair = from.len() == 1 && to.len() == 1 && from != to;
                // A single path that never heals; the rest must be stable.
                if is_pair && self.rng.below(4) == 0 {
                    self.push_for_ever(span.0, What::Block { from, to });
                } else if from != to {
                    self.push(span, What::Block { from, to });
                }
            }
            Class::Bridge => {
                let bridge = self.node();
                let left = self.some();
                let without = |nodes: &Nodes| Nodes::of(nodes.iter().filter(|n| *n != bridge));
                let right = without(&self.complement(&left));
                self.both_ways(span, without(&left), right);
            }
            Class::Ring => {
                // Beyond a dozen the acts would be too many to read.
                if (4..=12).contains(&self.nodes) {
                    for node in 0..self.nodes {
                        let next = (node + 1) % self.nodes;
                        let previous = (node + self.nodes - 1) % self.nodes;
                        let to = (0..self.nodes).filter(|n| ![node, next, previous].contains(n));
                        let what = What::Block {
                            from: Nodes::of([node]),
                            to: Nodes::of(to),
                        };
                        self.push(span, what);
                    }
                }
            }
            Class::Isolate => {
                let node = self.node();
                let (one, others) = (Nodes::of([node]), self.others(node));
                match self.rng.below(8) {
                    0 => self.push_for_ever(
                        span.0,
                        What::Block {
                            from: one,
                            to: others,
                        },
                    ),
                    1 => self.push_for_ever(
                        span.0,
                        What::Block {
                            from: others,
                            to: one,
                        },
                    ),
                    2..=4 => self.push(
                        span,
                        What::Block {
                            from: one,
                            to: others,
                        },
                    ),
                    _ => self.both_ways(span, one, others),
                }
            }
            Class::Clog => {
                // Swizzle: one after the other is clogged, and let go in another order.
                for _ in 0..1 + self.rng.below(4) {
                    let node = self.node();
                    let span = (
                        span.0 + self.rng.below(5_000),
                        span.1 + 5_000 + self.rng.below(5_000),
                    );
                    let (one, others) = (Nodes::of([node]), self.others(node));
                    let what = if self.rng.below(2) == 0 {
                        What::Clog {
                            from: one,
                            to: others,
                        }
                    } else {
                        What::Clog {
                            from: others,
                            to: one,
                        }
                    };
                    self.push(span, what);
                }
            }
            Class::Loss => {
                let percent = [5, 20, 40, 70][self.rng.index(4)];
                let from = if self.rng.below(2) == 0 {
                    self.all()
                } else {
                    self.some()
                };
                let to = if self.rng.below(2) == 0 {
                    self.all()
                } else {
                    self.some()
                };
                self.push(span, What::Loss { from, to, percent });
            }
            Class::Delay => {
                let mean_ms = [10, 100, 400, 1_500][self.rng.index(4)];
                let from = if self.rng.below(2) == 0 {
                    self.all()
                } else {
                    self.some()
                };
                let to = if self.rng.below(2) == 0 {
                    self.all()
                } else {
                    self.some()
                };
                self.push(span, What::Delay { from, to, mean_ms });
            }
            Class::Network => {
                let percent = 1 + self.rng.below(25);
                let what = match self.rng.below(3) {
                    0 => What::Duplicate { percent },
                    1 => What::Reorder { percent },
                    _ => What::Corrupt { percent },
                };
                self.push(span, what);
            }
            Class::Full => {
                let what = What::Full {
                    node: self.node(),
                    percent: 5 + self.rng.below(60),
                };
                self.push(span, what);
            }
            Class::Unsigned => {
                let node = self.node();
                self.push(span, What::Unsigned { node });
            }
            Class::Sever => {
                let (a, b) = (self.node(), self.node());
                self.push(span, What::Sever { a, b });
            }
            Class::Join => {
                let what = What::Join {
                    node: self.node(),
                    via: self.some(),
                };
                self.push(span, what);
            }
            Class::Tags => {
                let what = What::Tags {
                    node: self.node(),
                    value: self.rng.below(1_000),
                };
                self.push(span, what);
            }
            Class::ForceLeave => {
                // Only the dead can be forced out, so somebody dies first.
                let (by, node) = (self.node(), self.node());
                let what = What::Crash {
                    node,
                    memory: Memory::Lost,
                    moved: false,
                    host: false,
                };
                if self.rng.below(2) == 0 {
                    self.push_for_ever(span.0, what);
                } else {
                    self.push((span.0, span.0 + 40_000), what);
                }
                for _ in 0..3 {
                    let at = span.0 + self.rng.below(35_000);
                    self.push((at, at), What::ForceLeave { by, node });
                }
            }
            Class::Names => self.push(span, What::NoNames),
            Class::Hostile => {
                let hostility = match self.rng.below(3) {
                    0 => Hostility::Outsider,
                    1 => Hostility::KeyHolder,
                    _ => Hostility::Insider(self.node()),
                };
                let is_first = !self.acts.iter().any(|a| matches!(a.what, What::Hostile(_)));
                if is_first {
                    self.push(span, What::Hostile(hostility));
                }
            }
        }
    }
}
