//! What is played and what is counted, one function for each experiment.
//!
//! A run belongs to a candidate: nodosum, the model of memberlist, or one of them with a rule on or
//! off. All candidates of an experiment get the same scripts and, where a script has choices, the
//! same seeds.

use nodosum::unversioned::{mesh, swim};
use nodosum::unversioned::swim::Rules;

use super::{
    arena::{Arena, Hold, Kind, MS, SEC, Setup, What},
    plot::{Plot, Scale, Series},
    report::{Findings, Row, each, mean, percentile},
};

/// How much of it is played.
pub(crate) struct Context {
    pub(crate) quick: bool,
    pub(crate) threads: usize,
}

impl Context {
    fn some<T>(&self, all: T, few: T) -> T {
        if self.quick { few } else { all }
    }
}

type Experiment = fn(&Context) -> Findings;

/// All of them, in their order.
pub(crate) const EXPERIMENTS: &[(&str, &str, Experiment)] = &[
    ("E1", "false positives under stress", e1),
    ("E2", "a crash: first doubt, first verdict, known everywhere", e2),
    ("E3", "bootstrap: everybody joins one seed", e3),
];

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Candidate {
    Swim,
    LhaProbe,
    LhaSuspicion,
    Buddy,
    Memberlist,
    WithoutEvidence,
    Nodosum,
}

impl Candidate {
    const ALL: [Self; 7] = [
        Self::Swim,
        Self::LhaProbe,
        Self::LhaSuspicion,
        Self::Buddy,
        Self::Memberlist,
        Self::WithoutEvidence,
        Self::Nodosum,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Swim => "swim",
            Self::LhaProbe => "swim_lha_probe",
            Self::LhaSuspicion => "swim_lha_suspicion",
            Self::Buddy => "swim_buddy",
            Self::Memberlist => "memberlist",
            Self::WithoutEvidence => "nodosum_without_evidence",
            Self::Nodosum => "nodosum",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Swim => "SWIM",
            Self::LhaProbe => "SWIM + LHA-Probe",
            Self::LhaSuspicion => "SWIM + LHA-Susp.",
            Self::Buddy => "SWIM + Buddy",
            Self::Memberlist => "memberlist (model)",
            Self::WithoutEvidence => "no evidence",
            Self::Nodosum => "nodosum",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Swim | Self::LhaProbe | Self::LhaSuspicion | Self::Buddy | Self::Memberlist => {
                Kind::Model
            }
            Self::WithoutEvidence | Self::Nodosum => Kind::Whole,
        }
    }

    fn rules(self) -> Rules {
        match self {
            Self::Swim => Rules::swim(),
            Self::LhaProbe => Rules {
                lha_probe: true,
                nacks: true,
                ..Rules::swim()
            },
            Self::LhaSuspicion => Rules {
                lha_suspicion: true,
                ..Rules::swim()
            },
            Self::Buddy => Rules {
                buddy: true,
                ..Rules::swim()
            },
            Self::Memberlist => Rules::memberlist(),
            Self::WithoutEvidence => Rules {
                evidence: false,
                ..Rules::nodosum()
            },
            Self::Nodosum => Rules::nodosum(),
        }
    }

    fn setup(self, nodes: usize, seed: u64) -> Setup {
        Setup {
            kind: self.kind(),
            nodes,
            seed,
            swim: swim::Config {
                rules: self.rules(),
                ..swim::Config::lan()
            },
            mesh: mesh::Config::default(),
            latency_us: 200,
            jitter_us: 300,
            loss: 0,
            icmp: true,
        }
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / SEC as f64
}

fn series(name: &str, points: Vec<(f64, f64)>) -> Series {
    Series {
        name: name.to_owned(),
        points,
    }
}

// ---- E1

/// How stressed members are blocked: for so long, with such gaps, in milliseconds.
const STRESSES: [(u64, u64); 5] = [
    (512, 64),
    (2_048, 256),
    (8_192, 1_024),
    (16_384, 4_096),
    (32_768, 16_384),
];

struct Stressed {
    candidate: Candidate,
    count: usize,
    stress: (u64, u64),
    seed: u64,
    hold: Hold,
}

#[derive(Default)]
struct Mistakes {
    /// About members that were well, by anybody.
    all: u64,
    /// By members that were well.
    by_healthy: u64,
    /// About members that were stressed and had not crashed.
    of_stressed: u64,
    first_dead: Option<f64>,
    known: Option<f64>,
}

fn stressed(run: &Stressed, nodes: usize) -> Mistakes {
    const STRESS: u64 = 120 * SEC;
    const AFTER: u64 = 60 * SEC;
    const CRASH: u64 = 20 * SEC;
    let mut arena = Arena::formed(run.candidate.setup(nodes, run.seed));
    arena.run_for(5 * SEC);
    let mut order: Vec<u32> = (0..nodes as u32).collect();
    let mut rng = nodosum::unversioned::rng::Rng::new(run.seed ^ 0x5717_e55e_d000_0000);
    rng.shuffle(&mut order);
    let (stressed, well) = order.split_at(run.count);
    let crashed = well[0];
    let begin = arena.now;
    let (mut held, mut turn) = (false, begin);
    let mut crash_at = Some(begin + CRASH);
    loop {
        let next = turn.min(crash_at.unwrap_or(u64::MAX));
        if next >= begin + STRESS {
            break;
        }
        arena.run_until(next);
        if crash_at == Some(next) {
            arena.crash(crashed);
            crash_at = None;
            continue;
        }
        held = !held;
        for node in stressed {
            if held {
                arena.hold(*node, run.hold);
            } else {
                arena.release(*node);
            }
        }
        turn = next + MS * if held { run.stress.0 } else { run.stress.1 };
    }
    arena.run_until(begin + STRESS);
    stressed.iter().for_each(|node| arena.release(*node));
    arena.run_for(AFTER);
    let mut out = Mistakes::default();
    let mut knowing = Vec::new();
    for told in arena.log.iter().filter(|told| told.what == What::Dead) {
        let by_healthy = !stressed.contains(&told.node);
        if told.of == crashed {
            if told.at >= begin + CRASH && by_healthy {
                knowing.push(seconds(told.at - begin - CRASH));
            }
        } else if stressed.contains(&told.of) {
            out.of_stressed += 1;
        } else {
            out.all += 1;
            out.by_healthy += u64::from(by_healthy);
        }
    }
    knowing.sort_by(f64::total_cmp);
    out.first_dead = knowing.first().copied();
    out.known = knowing.get(well.len() - 2).copied();
    out
}

fn e1(context: &Context) -> Findings {
    let nodes = context.some(100, 16);
    let counts: &[usize] = context.some(&[1, 4, 8, 16, 32], &[2]);
    let stresses: &[(u64, u64)] = context.some(&STRESSES, &STRESSES[2..3]);
    let seeds = context.some(2, 1);
    let mut runs = Vec::new();
    for candidate in Candidate::ALL {
        for count in counts {
            for stress in stresses {
                for seed in 1..=seeds {
                    runs.push(Stressed {
                        candidate,
                        count: *count,
                        stress: *stress,
                        seed,
                        hold: Hold::Deaf,
                    });
                }
            }
        }
    }
    let results = each("E1", context.threads, &runs, |run| stressed(run, nodes));
    let mut findings = Findings::default();
    let of = |candidate: Candidate, count: Option<usize>, value: &dyn Fn(&Mistakes) -> u64| -> f64 {
        runs.iter()
            .zip(&results)
            .filter(|(run, _)| run.candidate == candidate && count.is_none_or(|c| run.count == c))
            .map(|(_, result)| value(result) as f64)
            .sum()
    };
    let row = |metric: String, value: &dyn Fn(Candidate) -> f64, unit: &'static str| {
        let mut row = Row::new("E1", metric, nodes, unit)
            .ours(value(Candidate::Nodosum))
            .model(value(Candidate::Memberlist));
        for candidate in Candidate::ALL {
            if !matches!(candidate, Candidate::Nodosum | Candidate::Memberlist) {
                row = row.other(candidate.name(), value(candidate));
            }
        }
        row
    };
    for (metric, value) in [
        ("false_positives", (|m| m.all) as fn(&Mistakes) -> u64),
        ("false_positives_at_healthy", |m| m.by_healthy),
        ("verdicts_on_stressed", |m| m.of_stressed),
    ] {
        for count in counts {
            findings.rows.push(row(
                format!("{metric}_stressed_{count}"),
                &|candidate| of(candidate, Some(*count), &value),
                "events",
            ));
        }
        findings.rows.push(row(
            metric.to_owned(),
            &|candidate| of(candidate, None, &value),
            "events",
        ));
    }
    for (metric, value) in [
        (
            "crash_first_dead",
            (|m| m.first_dead) as fn(&Mistakes) -> Option<f64>,
        ),
        ("crash_known_to_healthy", |m| m.known),
    ] {
        for percent in [50.0, 99.0] {
            findings.rows.push(row(
                format!("{metric}_p{percent:.0}"),
                &|candidate| {
                    let values: Vec<f64> = runs
                        .iter()
                        .zip(&results)
                        .filter(|(run, _)| run.candidate == candidate)
                        .map(|(_, result)| value(result).unwrap_or(f64::INFINITY))
                        .collect();
                    percentile(&values, percent)
                },
                "s",
            ));
        }
    }
    let line = |candidate: Candidate| {
        let points = counts
            .iter()
            .map(|count| {
                let total = of(candidate, Some(*count), &|m| m.all);
                // Nothing cannot be shown on this scale; a tenth stands for it.
                (*count as f64, total.max(0.1))
            })
            .collect();
        series(candidate.title(), points)
    };
    findings.plots.push(Plot {
        file: "E1",
        title: format!("E1: false positives, {nodes} members, some of them stressed"),
        x: ("stressed members", Scale::Log),
        y: ("false positives (0.1 stands for none)", Scale::Log),
        series: Candidate::ALL.into_iter().rev().map(line).collect(),
    });
    findings.notes.push(format!(
        "{} runs of 120 s of stress and 60 s after; blocked/gap in ms: {stresses:?}",
        runs.len()
    ));
    findings
}

// ---- E2

struct Crashes {
    candidate: Candidate,
    nodes: usize,
    crashes: usize,
    seed: u64,
}

#[derive(Default)]
struct Detections {
    suspected: Vec<f64>,
    dead: Vec<f64>,
    known: Vec<f64>,
    mistakes: u64,
}

/// Crashes some members of one cluster, one after the other.
fn crashes(run: &Crashes) -> Detections {
    let mut arena = Arena::formed(run.candidate.setup(run.nodes, run.seed));
    arena.run_for(3 * SEC);
    let mut out = Detections::default();
    let mut gone: Vec<u32> = Vec::new();
    for _ in 0..run.crashes {
        let wait = arena.rng.below(2 * SEC);
        arena.run_for(wait);
        let victim = loop {
            let victim = arena.rng.below(run.nodes as u64) as u32;
            if !gone.contains(&victim) {
                break victim;
            }
        };
        gone.push(victim);
        let (at, first) = (arena.now, arena.log.len());
        arena.crash(victim);
        let survivors = arena.running();
        // As long as nobody can confirm, three times the longest suspicion.
        for _ in 0..300 {
            arena.run_for(SEC);
            let dead = arena.log[first..]
                .iter()
                .filter(|told| told.what == What::Dead && told.of == victim)
                .count();
            if dead >= survivors {
                break;
            }
        }
        let told = &arena.log[first..];
        let when = |what: What| -> Vec<f64> {
            told.iter()
                .filter(|told| told.what == what && told.of == victim)
                .map(|told| seconds(told.at - at))
                .collect()
        };
        out.suspected
            .push(when(What::Suspect).first().copied().unwrap_or(f64::INFINITY));
        let dead = when(What::Dead);
        out.dead.push(dead.first().copied().unwrap_or(f64::INFINITY));
        out.known
            .push(dead.get(survivors - 1).copied().unwrap_or(f64::INFINITY));
        out.mistakes += told
            .iter()
            .filter(|told| told.what == What::Dead && told.of != victim)
            .count() as u64;
    }
    out
}

fn e2(context: &Context) -> Findings {
    let plan: &[(usize, usize, u64)] = context.some(
        &[(10, 4, 50), (100, 20, 10), (1_000, 10, 1)],
        &[(8, 2, 1)],
    );
    let candidates = [
        Candidate::Memberlist,
        Candidate::WithoutEvidence,
        Candidate::Nodosum,
    ];
    let mut runs = Vec::new();
    for (nodes, crashes, seeds) in plan {
        for candidate in candidates {
            for seed in 1..=*seeds {
                runs.push(Crashes {
                    candidate,
                    nodes: *nodes,
                    crashes: *crashes,
                    seed,
                });
            }
        }
    }
    let results = each("E2", context.threads, &runs, crashes);
    let mut findings = Findings::default();
    let mut lines: Vec<Vec<(f64, f64)>> = vec![Vec::new(); candidates.len()];
    for (nodes, ..) in plan {
        let all = |candidate: Candidate| {
            let mut all = Detections::default();
            for (run, result) in runs.iter().zip(&results) {
                if run.candidate == candidate && run.nodes == *nodes {
                    all.suspected.extend(&result.suspected);
                    all.dead.extend(&result.dead);
                    all.known.extend(&result.known);
                    all.mistakes += result.mistakes;
                }
            }
            all
        };
        let [model, without, ours] = candidates.map(all);
        for (metric, value) in [
            (
                "first_suspect",
                (|d| &d.suspected) as fn(&Detections) -> &Vec<f64>,
            ),
            ("first_dead", |d| &d.dead),
            ("known_everywhere", |d| &d.known),
        ] {
            for percent in [50.0, 99.0] {
                findings.rows.push(
                    Row::new("E2", format!("{metric}_p{percent:.0}"), *nodes, "s")
                        .ours(percentile(value(&ours), percent))
                        .model(percentile(value(&model), percent))
                        .other("nodosum_without_evidence", percentile(value(&without), percent)),
                );
            }
        }
        findings.rows.push(
            Row::new("E2", "false_positives", *nodes, "events")
                .ours(ours.mistakes as f64)
                .model(model.mistakes as f64)
                .other("nodosum_without_evidence", without.mistakes as f64),
        );
        for (line, detections) in lines.iter_mut().zip([&model, &without, &ours]) {
            line.push((*nodes as f64, percentile(&detections.known, 50.0)));
        }
    }
    findings.plots.push(Plot {
        file: "E2",
        title: "E2: from a crash until every survivor knows (median)".to_owned(),
        x: ("members", Scale::Log),
        y: ("seconds", Scale::Linear),
        series: candidates
            .iter()
            .zip(lines)
            .rev()
            .map(|(candidate, points)| series(candidate.title(), points))
            .collect(),
    });
    findings
}

// ---- E3

struct Bootstrap {
    /// The mean and the spread of the sizes that nodes report, for each second.
    sizes: Vec<(f64, f64)>,
    converged: f64,
    distinct: usize,
}

fn bootstrap(candidate: Candidate, nodes: usize, seed: u64) -> Bootstrap {
    const LIMIT: u64 = 150;
    let mut arena = Arena::new(candidate.setup(nodes, seed));
    arena.start(0, None);
    arena.run_until(10 * SEC);
    for node in 1..nodes as u32 {
        arena.start(node, Some(0));
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut sizes = Vec::new();
    let mut converged = f64::INFINITY;
    for second in 1..=LIMIT {
        arena.run_until((10 + second) * SEC);
        let all: Vec<usize> = (0..nodes as u32).map(|node| arena.size_at(node)).collect();
        seen.extend(all.iter().copied());
        let values: Vec<f64> = all.iter().map(|size| *size as f64).collect();
        sizes.push((mean(&values), percentile(&values, 1.0)));
        if all.iter().all(|size| *size == nodes) {
            converged = second as f64;
            break;
        }
    }
    Bootstrap {
        sizes,
        converged,
        distinct: seen.len(),
    }
}

fn e3(context: &Context) -> Findings {
    let plan: &[usize] = context.some(&[500, 1_000, 2_000], &[20]);
    let candidates = [Candidate::Memberlist, Candidate::Nodosum];
    let runs: Vec<(usize, Candidate)> = plan
        .iter()
        .flat_map(|nodes| candidates.map(|candidate| (*nodes, candidate)))
        .collect();
    let results = each("E3", context.threads, &runs, |(nodes, candidate)| {
        bootstrap(*candidate, *nodes, 1)
    });
    let mut findings = Findings::default();
    for (pair, nodes) in results.chunks_exact(2).zip(plan) {
        findings.rows.push(
            Row::new("E3", "equal_views_after", *nodes, "s")
                .ours(pair[1].converged)
                .model(pair[0].converged),
        );
        findings.rows.push(
            Row::new("E3", "different_sizes_seen", *nodes, "sizes")
                .ours(pair[1].distinct as f64)
                .model(pair[0].distinct as f64),
        );
    }
    if let (Some([model, ours]), Some(nodes)) = (results.chunks_exact(2).next_back(), plan.last()) {
        let line = |result: &Bootstrap, least: bool| {
            result
                .sizes
                .iter()
                .enumerate()
                .map(|(second, (mean, low))| {
                    (second as f64 + 1.0, if least { *low } else { *mean })
                })
                .collect()
        };
        findings.plots.push(Plot {
            file: "E3",
            title: format!("E3: members known to a node while {nodes} join one seed"),
            x: ("seconds since the joiners started", Scale::Linear),
            y: ("members known", Scale::Linear),
            series: vec![
                series("nodosum, mean", line(ours, false)),
                series("nodosum, worst 1 %", line(ours, true)),
                series("model, mean", line(model, false)),
                series("model, worst 1 %", line(model, true)),
            ],
        });
    }
    findings
}
