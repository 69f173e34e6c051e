//! What is played and what is counted, one function for each experiment.
//!
//! A run belongs to a candidate: nodosum, the model of memberlist, or one of them with a rule on or
//! off. All candidates of an experiment get the same scripts and, where a script has choices, the
//! same seeds.

use std::{collections::BTreeSet, sync::OnceLock};

use nodosum::{
    MemberStatus,
    unversioned::{mesh, record::VerifiedRecord, swim, swim::Rules},
};

use super::{
    arena::{Arena, Hold, Kind, MS, SEC, Setup, What},
    plot::{Plot, Scale, Series},
    report::{Findings, Row, each, mean, percentile},
};

/// How much of it is played.
pub(crate) struct Context {
    pub(crate) quick: bool,
    pub(crate) threads: usize,
    /// Instead of the sizes of E3, E5, E13 and E14.
    pub(crate) nodes: Option<usize>,
    /// E4 and E6 look at the same runs.
    pub(crate) tens: OnceLock<Vec<Ten>>,
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
    (
        "E2",
        "a crash: first doubt, first verdict, known everywhere",
        e2,
    ),
    ("E3", "bootstrap: everybody joins one seed", e3),
    ("E4", "ten crash at once", e4),
    ("E5", "asymmetric faults", e5),
    ("E6", "bytes while ten crash", e6),
    ("E7", "how fast one piece of news spreads", e7),
    (
        "E8",
        "small clusters: detection, bytes, half of the datagrams lost",
        e8,
    ),
    ("E13", "a restart storm and the state of a node", e13),
    ("E14", "a leave while all queues are full", e14),
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

/// After how many seconds how many percent of `all` were there, in about a hundred steps.
fn rising(times: &[f64], all: usize) -> Vec<(f64, f64)> {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let step = times.len().div_ceil(100).max(1);
    let last = times.len().checked_sub(1);
    let places = (0..times.len()).step_by(step).chain(last);
    places
        .map(|place| (times[place], (place + 1) as f64 / all as f64 * 100.0))
        .collect()
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

/// How many are stressed where the parts of Lifeguard are compared one by one.
const PARTS_AT: usize = 8;

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
    let seeds = 1;
    let mut runs = Vec::new();
    for candidate in Candidate::ALL {
        let is_part = matches!(
            candidate,
            Candidate::LhaProbe | Candidate::LhaSuspicion | Candidate::Buddy
        );
        // What one part is worth is asked once.
        for count in counts
            .iter()
            .filter(|c| !is_part || **c == PARTS_AT || context.quick)
        {
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
    let runs_of_one = counts.len() * counts.len() * stresses.len() * seeds as usize;
    let of = |candidate: Candidate,
              count: Option<usize>,
              value: &dyn Fn(&Mistakes) -> u64|
     -> f64 {
        let values: Vec<f64> = runs
            .iter()
            .zip(&results)
            .filter(|(run, _)| run.candidate == candidate && count.is_none_or(|c| run.count == c))
            .map(|(_, result)| value(result) as f64)
            .collect();
        // A part that was not played at this count has no figure, and none in total.
        let is_whole = values.len() * counts.len() == runs_of_one || count.is_some();
        if values.is_empty() || !is_whole {
            return f64::NAN;
        }
        values.iter().sum()
    };
    let row = |metric: String, value: &dyn Fn(Candidate) -> f64, unit: &'static str| {
        let mut row = Row::new("E1", metric, nodes, unit)
            .ours(value(Candidate::Nodosum))
            .model(value(Candidate::Memberlist));
        for candidate in Candidate::ALL {
            let value = value(candidate);
            if !matches!(candidate, Candidate::Nodosum | Candidate::Memberlist) && !value.is_nan() {
                row = row.other(candidate.name(), value);
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
                (*count as f64, if total == 0.0 { 0.1 } else { total })
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
        out.suspected.push(
            when(What::Suspect)
                .first()
                .copied()
                .unwrap_or(f64::INFINITY),
        );
        let dead = when(What::Dead);
        out.dead
            .push(dead.first().copied().unwrap_or(f64::INFINITY));
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
    let plan: &[(usize, usize, u64)] =
        context.some(&[(10, 4, 50), (100, 20, 10), (1_000, 10, 1)], &[(8, 2, 1)]);
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
                        .other(
                            "nodosum_without_evidence",
                            percentile(value(&without), percent),
                        ),
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
    let mut seen = BTreeSet::new();
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
    let asked = context.nodes.map(|nodes| vec![nodes]);
    let plan = asked.unwrap_or_else(|| context.some(vec![500, 2_000], vec![20]));
    let candidates = [Candidate::Memberlist, Candidate::Nodosum];
    let runs: Vec<(usize, Candidate)> = plan
        .iter()
        .flat_map(|nodes| candidates.map(|candidate| (*nodes, candidate)))
        .collect();
    let results = each("E3", context.threads, &runs, |(nodes, candidate)| {
        bootstrap(*candidate, *nodes, 1)
    });
    let mut findings = Findings::default();
    for (pair, nodes) in results.chunks_exact(2).zip(&plan) {
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

// ---- E4 and E6

/// What a cluster did in which ten of a thousand crashed.
pub(crate) struct Ten {
    known: f64,
    first: f64,
    /// How the verdicts come in.
    verdicts: Vec<(f64, f64)>,
    /// Sizes that one node saw between the first and the last, at the median and at most.
    steps: Vec<f64>,
    distinct: usize,
    mistakes: u64,
    idle: Traffic,
    change: Traffic,
}

#[derive(Default)]
struct Traffic {
    sent: Vec<f64>,
    received: Vec<f64>,
    /// Bytes a second and node, both directions, over the connections.
    syncs: f64,
    quic: f64,
}

fn traffic(arena: &Arena, time: u64) -> Traffic {
    let nodes = arena.running() as f64;
    let per_node = |bytes: u64| bytes as f64 / nodes / seconds(time);
    Traffic {
        sent: arena.samples.iter().map(|s| s.sent as f64).collect(),
        received: arena.samples.iter().map(|s| s.received as f64).collect(),
        syncs: per_node(arena.nodes.iter().map(|node| node.sync_bytes).sum()),
        quic: per_node(arena.nodes.iter().map(|node| node.quic_bytes).sum()),
    }
}

fn ten(candidate: Candidate, nodes: usize, victims: usize, seed: u64) -> Ten {
    const IDLE: u64 = 20 * SEC;
    const WATCHED: u64 = 60;
    let mut arena = Arena::formed(candidate.setup(nodes, seed));
    arena.run_for(5 * SEC);
    arena.meter();
    arena.run_for(IDLE);
    let idle = traffic(&arena, IDLE);
    arena.meter();
    let (at, first) = (arena.now, arena.log.len());
    let gone: Vec<u32> = (0..victims).map(|n| (n * 97 % nodes) as u32).collect();
    gone.iter().for_each(|node| arena.crash(*node));
    let mut seen = BTreeSet::new();
    let mut steps: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); nodes];
    for _ in 0..WATCHED {
        arena.run_for(SEC);
        for node in 0..nodes as u32 {
            if arena.is_running(node) {
                // A suspect is still a member.
                let dead = gone
                    .iter()
                    .filter(|of| {
                        !matches!(
                            arena.status(node, **of),
                            Some(MemberStatus::Alive | MemberStatus::Suspect)
                        )
                    })
                    .count();
                seen.insert(nodes - dead);
                steps[node as usize].insert(nodes - dead);
            }
        }
    }
    let change = traffic(&arena, WATCHED * SEC);
    let dead: Vec<&super::arena::Told> = arena.log[first..]
        .iter()
        .filter(|told| told.what == What::Dead)
        .collect();
    let verdicts: Vec<f64> = dead
        .iter()
        .filter(|told| gone.contains(&told.of))
        .map(|told| seconds(told.at - at))
        .collect();
    let complete = verdicts.len() >= victims * arena.running();
    Ten {
        known: if complete {
            percentile(&verdicts, 100.0)
        } else {
            f64::INFINITY
        },
        first: verdicts.first().copied().unwrap_or(f64::INFINITY),
        verdicts: rising(&verdicts, victims * arena.running()),
        steps: steps
            .iter()
            .filter(|sizes| !sizes.is_empty())
            .map(|sizes| sizes.len() as f64 - 1.0)
            .collect(),
        distinct: seen.len(),
        mistakes: dead.iter().filter(|told| !gone.contains(&told.of)).count() as u64,
        idle,
        change,
    }
}

fn tens(context: &Context) -> (usize, &[Ten]) {
    let (nodes, victims) = context.some((1_000, 10), (30, 2));
    let candidates = [Candidate::Memberlist, Candidate::Nodosum];
    let all = context.tens.get_or_init(|| {
        each("E4, E6", context.threads, &candidates, |candidate| {
            ten(*candidate, nodes, victims, 1)
        })
    });
    (nodes, all)
}

fn e4(context: &Context) -> Findings {
    let (nodes, tens) = tens(context);
    let mut findings = Findings::default();
    let mut row = |metric: &str, value: &dyn Fn(&Ten) -> f64, unit| {
        findings.rows.push(
            Row::new("E4", metric, nodes, unit)
                .ours(value(&tens[1]))
                .model(value(&tens[0])),
        );
    };
    row("first_dead", &|ten| ten.first, "s");
    row("all_known_everywhere", &|ten| ten.known, "s");
    row(
        "steps_at_a_node_p50",
        &|ten| percentile(&ten.steps, 50.0),
        "sizes",
    );
    row(
        "steps_at_a_node_max",
        &|ten| percentile(&ten.steps, 100.0),
        "sizes",
    );
    row("different_sizes_seen", &|ten| ten.distinct as f64, "sizes");
    row("false_positives", &|ten| ten.mistakes as f64, "events");
    findings.plots.push(Plot {
        file: "E4",
        title: format!("E4: how the verdicts on the crashed come in, {nodes} members"),
        x: ("seconds since they crashed", Scale::Linear),
        y: ("verdicts at survivors, %", Scale::Linear),
        series: vec![
            series("nodosum", tens[1].verdicts.clone()),
            series("memberlist (model)", tens[0].verdicts.clone()),
        ],
    });
    findings
}

fn e6(context: &Context) -> Findings {
    let (nodes, tens) = tens(context);
    let mut findings = Findings::default();
    // Rapid's table of memberlist under the same script, in kB/s (USENIX ATC'18).
    let published = [
        ("sent", 50.0, None),
        ("sent", 0.0, Some(640.0)),
        ("sent", 99.0, Some(6_400.0)),
        ("sent", 100.0, Some(8_040.0)),
        ("received", 0.0, Some(540.0)),
        ("received", 99.0, Some(5_610.0)),
        ("received", 100.0, Some(7_360.0)),
    ];
    for (phase, of) in [
        ("idle", (|ten| &ten.idle) as fn(&Ten) -> &Traffic),
        ("change", |ten| &ten.change),
    ] {
        for (direction, percent, limit) in published {
            let value = |ten: &Ten| {
                let traffic = of(ten);
                let values = match direction {
                    "sent" => &traffic.sent,
                    _ => &traffic.received,
                };
                if percent == 0.0 {
                    mean(values)
                } else {
                    percentile(values, percent)
                }
            };
            let what = match percent as u32 {
                0 => "mean".to_owned(),
                100 => "max".to_owned(),
                percent => format!("p{percent}"),
            };
            let mut row = Row::new(
                "E6",
                format!("{phase}_gossip_{direction}_{what}"),
                nodes,
                "B/s",
            )
            .ours(value(&tens[1]))
            .model(value(&tens[0]));
            if let (Some(limit), "change") = (limit, phase) {
                row = row.other("memberlist_published", limit);
            }
            findings.rows.push(row);
        }
        findings.rows.push(
            Row::new("E6", format!("{phase}_syncs_sent_mean"), nodes, "B/s")
                .ours(of(&tens[1]).syncs)
                .model(of(&tens[0]).syncs),
        );
        findings.rows.push(
            Row::new("E6", format!("{phase}_quic_sent_mean"), nodes, "B/s").ours(of(&tens[1]).quic),
        );
    }
    let line = |ten: &Ten| {
        [
            1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0,
        ]
        .map(|percent| (percent, percentile(&ten.change.sent, percent)))
        .to_vec()
    };
    findings.plots.push(Plot {
        file: "E6",
        title: format!("E6: bytes a node sends in a second, {nodes} members, 10 crash"),
        x: ("percentile of nodes and seconds", Scale::Linear),
        y: ("bytes a second", Scale::Log),
        series: vec![
            series("nodosum", line(&tens[1])),
            series("memberlist (model)", line(&tens[0])),
            series(
                "memberlist, published",
                vec![(99.0, 6_400.0), (100.0, 8_040.0)],
            ),
        ],
    });
    findings
}

// ---- E5

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// No ingress for 20 s, then all of it for 20 s, and so on.
    FlipFlop,
    /// From 90 s on, 80 % of what is sent is lost.
    Egress,
    /// From 90 s on, 80 % of what is received is lost.
    Ingress,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::FlipFlop => "ingress_flip_flop",
            Self::Egress => "egress_80",
            Self::Ingress => "ingress_80",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::FlipFlop => "nothing received for 20 s in 40",
            Self::Egress => "80 % of what is sent is lost from 90 s on",
            Self::Ingress => "80 % of what is received is lost from 90 s on",
        }
    }
}

struct Asymmetric {
    /// Verdicts on healthy members by healthy ones, and by the faulty ones.
    removed: u64,
    removed_by_faulty: u64,
    /// Verdicts on faulty members by healthy ones.
    of_faulty: u64,
    /// Changes of any kind at healthy members.
    transitions: u64,
    /// Of all that healthy members held of the faulty ones, the part that was not alive, each second.
    apart: Vec<(f64, f64)>,
}

fn asymmetric(candidate: Candidate, program: Program, nodes: usize, time: u64) -> Asymmetric {
    let mut arena = Arena::formed(candidate.setup(nodes, 1));
    arena.run_for(5 * SEC);
    let faulty: Vec<u32> = (0..(nodes / 100).max(1)).map(|n| (n * 97) as u32).collect();
    let begin = arena.now;
    let mut apart = Vec::new();
    for second in 0..time {
        let (ingress, egress) = match program {
            Program::FlipFlop if second / 20 % 2 == 0 => (100, 0),
            Program::Egress if second >= 90 => (0, 80),
            Program::Ingress if second >= 90 => (80, 0),
            Program::FlipFlop | Program::Egress | Program::Ingress => (0, 0),
        };
        faulty
            .iter()
            .for_each(|node| arena.lose(*node, ingress, egress));
        arena.run_for(SEC);
        if second % 5 == 4 {
            let (mut gone, mut all) = (0_u32, 0_u32);
            for node in (0..nodes as u32)
                .filter(|node| !faulty.contains(node))
                .step_by(7)
            {
                for of in &faulty {
                    all += 1;
                    gone += u32::from(arena.status(node, *of) != Some(MemberStatus::Alive));
                }
            }
            apart.push((second as f64 + 1.0, f64::from(gone) / f64::from(all.max(1))));
        }
    }
    let mut out = Asymmetric {
        removed: 0,
        removed_by_faulty: 0,
        of_faulty: 0,
        transitions: 0,
        apart,
    };
    for told in arena.log.iter().filter(|told| told.at >= begin) {
        let (by_faulty, of_faulty) = (faulty.contains(&told.node), faulty.contains(&told.of));
        let dead = u64::from(told.what == What::Dead);
        match (by_faulty, of_faulty) {
            (false, false) => out.removed += dead,
            (true, false) => out.removed_by_faulty += dead,
            (false, true) => out.of_faulty += dead,
            (true, true) => {}
        }
        let counts = matches!(
            told.what,
            What::Up | What::Dead | What::Left | What::Suspect | What::Alive
        );
        out.transitions += u64::from(counts && !by_faulty);
    }
    out
}

fn e5(context: &Context) -> Findings {
    let (nodes, time) = context.some((1_000, 500), (20, 60));
    let nodes = context.nodes.unwrap_or(nodes);
    let programs = [Program::FlipFlop, Program::Egress, Program::Ingress];
    let runs: Vec<(Program, Candidate)> = programs
        .into_iter()
        .flat_map(|program| {
            [Candidate::Memberlist, Candidate::Nodosum].map(|candidate| (program, candidate))
        })
        .collect();
    let results = each("E5", context.threads, &runs, |(program, candidate)| {
        asymmetric(*candidate, *program, nodes, time)
    });
    let mut findings = Findings::default();
    let healthy = (nodes - (nodes / 100).max(1)) as f64;
    for (pair, program) in results.chunks_exact(2).zip(programs) {
        let mut row = |metric: &str, value: &dyn Fn(&Asymmetric) -> f64, unit| {
            let name = program.name();
            findings.rows.push(
                Row::new("E5", format!("{name}_{metric}"), nodes, unit)
                    .ours(value(&pair[1]))
                    .model(value(&pair[0])),
            );
        };
        row("healthy_removed", &|a| a.removed as f64, "events");
        row(
            "healthy_removed_by_faulty",
            &|a| a.removed_by_faulty as f64,
            "events",
        );
        row("verdicts_on_faulty", &|a| a.of_faulty as f64, "events");
        let hours = time as f64 / 3_600.0;
        row(
            "transitions",
            &|a| a.transitions as f64 / healthy / hours,
            "per node and hour",
        );
        row(
            "faulty_apart_at_the_end",
            &|a| a.apart.last().map_or(0.0, |(_, share)| share * 100.0),
            "%",
        );
        let title = format!("E5: {nodes} members, at 1 % {}", program.title());
        findings.plots.push(Plot {
            file: match program {
                Program::FlipFlop => "E5-flip-flop",
                Program::Egress => "E5-egress",
                Program::Ingress => "E5-ingress",
            },
            title,
            x: ("seconds", Scale::Linear),
            y: ("faulty members not held alive, %", Scale::Linear),
            series: [("nodosum", &pair[1]), ("memberlist (model)", &pair[0])]
                .into_iter()
                .map(|(name, result)| {
                    let points = result.apart.iter().map(|(at, share)| (*at, share * 100.0));
                    series(name, points.collect())
                })
                .collect(),
        });
    }
    findings
}

// ---- E7

#[derive(Default)]
struct Spread {
    /// How long each change took until everybody had it.
    known: Vec<f64>,
    /// When each member had each.
    heard: Vec<f64>,
}

/// A few changes of one record each, one after the other.
fn spread(candidate: Candidate, nodes: usize, loss: u64, changes: usize) -> Spread {
    let mut setup = candidate.setup(nodes, 1);
    setup.loss = loss;
    let mut arena = Arena::formed(setup);
    arena.run_for(5 * SEC);
    let mut out = Spread::default();
    for change in 0..changes {
        let node = (change * 31 % nodes) as u32;
        let (at, first) = (arena.now, arena.log.len());
        arena.set_tags(node, change.to_string());
        let mut heard: Vec<f64> = Vec::new();
        for _ in 0..60 {
            arena.run_for(SEC / 4);
            heard = arena.log[first..]
                .iter()
                .filter(|told| told.what == What::Updated && told.of == node)
                .map(|told| seconds(told.at - at))
                .collect();
            if heard.len() >= nodes - 1 {
                break;
            }
        }
        out.known.push(if heard.len() >= nodes - 1 {
            percentile(&heard, 100.0)
        } else {
            f64::INFINITY
        });
        out.heard.extend(heard);
        arena.run_for(2 * SEC);
    }
    out
}

fn e7(context: &Context) -> Findings {
    let plan: &[(usize, usize)] = context.some(&[(30, 20), (1_000, 5)], &[(20, 2)]);
    let mut runs = Vec::new();
    for (nodes, changes) in plan {
        for loss in [0, 50] {
            for candidate in [Candidate::Memberlist, Candidate::Nodosum] {
                runs.push((*nodes, *changes, loss, candidate));
            }
        }
    }
    let results = each(
        "E7",
        context.threads,
        &runs,
        |(nodes, changes, loss, candidate)| spread(*candidate, *nodes, *loss, *changes),
    );
    let mut findings = Findings::default();
    for (pair, run) in results.chunks_exact(2).zip(runs.chunks_exact(2)) {
        let (nodes, _, loss, _) = run[0];
        for percent in [50.0, 100.0] {
            let formula = match (nodes, loss) {
                (30, 0) => Some(1.8),
                (30, 50) => Some(3.4),
                (1_000, 0) => Some(2.2),
                (1_000, 50) => Some(4.4),
                _ => None,
            };
            let name = if percent < 100.0 { "p50" } else { "max" };
            let mut row = Row::new(
                "E7",
                format!("known_everywhere_loss_{loss}_{name}"),
                nodes,
                "s",
            )
            .ours(percentile(&pair[1].known, percent))
            .model(percentile(&pair[0].known, percent));
            if let Some(formula) = formula {
                row = row.other("serf_formula", formula);
            }
            findings.rows.push(row);
        }
    }
    let largest = plan.last().map_or(0, |(nodes, _)| *nodes);
    findings.plots.push(Plot {
        file: "E7",
        title: format!("E7: how one change spreads among {largest} members"),
        x: ("seconds", Scale::Linear),
        y: ("members that know of it, %", Scale::Linear),
        series: runs
            .iter()
            .zip(&results)
            .filter(|((nodes, ..), _)| *nodes == largest)
            .rev()
            .map(|((nodes, changes, loss, candidate), result)| {
                let name = match candidate {
                    Candidate::Nodosum => "nodosum",
                    _ => "model",
                };
                let points = rising(&result.heard, changes * (nodes - 1));
                series(&format!("{name}, {loss} % lost"), points)
            })
            .collect(),
    });
    findings
}

// ---- E8

struct Small {
    known: f64,
    bytes: f64,
    mistakes: u64,
}

fn small(candidate: Candidate, nodes: usize, loss: u64, seed: u64) -> Small {
    let mut setup = candidate.setup(nodes, seed);
    setup.loss = loss;
    let mut arena = Arena::formed(setup);
    arena.run_for(5 * SEC);
    arena.meter();
    arena.run_for(30 * SEC);
    let traffic = traffic(&arena, 30 * SEC);
    let (at, first) = (arena.now, arena.log.len());
    arena.crash(0);
    arena.run_for(60 * SEC);
    let known: Vec<f64> = arena.log[first..]
        .iter()
        .filter(|told| told.what == What::Dead && told.of == 0)
        .map(|told| seconds(told.at - at))
        .collect();
    let mistakes = arena
        .log
        .iter()
        .filter(|told| told.what == What::Dead && (told.of != 0 || told.at < at))
        .count() as u64;
    Small {
        known: if known.len() + 1 >= nodes {
            percentile(&known, 100.0)
        } else {
            f64::INFINITY
        },
        bytes: mean(&traffic.sent) + mean(&traffic.received),
        mistakes,
    }
}

fn e8(context: &Context) -> Findings {
    // The limits that chitchat's own test asserts.
    let plan: &[(usize, u64, f64, f64)] = context.some(
        &[
            (10, 0, 10.0, 15_000.0),
            (10, 50, f64::NAN, 15_000.0),
            (20, 0, 10.0, 25_000.0),
            (40, 0, 10.0, 50_000.0),
            (100, 0, 10.0, 120_000.0),
            (100, 50, 15.0, 120_000.0),
        ],
        &[(10, 0, 10.0, 15_000.0)],
    );
    let seeds = context.some(5, 1);
    let mut runs = Vec::new();
    for (nodes, loss, ..) in plan {
        for candidate in [Candidate::Memberlist, Candidate::Nodosum] {
            for seed in 1..=seeds {
                runs.push((*nodes, *loss, candidate, seed));
            }
        }
    }
    let results = each(
        "E8",
        context.threads,
        &runs,
        |(nodes, loss, candidate, seed)| small(*candidate, *nodes, *loss, *seed),
    );
    let mut findings = Findings::default();
    for (nodes, loss, time, bytes) in plan {
        let of = |candidate: Candidate, value: &dyn Fn(&Small) -> f64| -> Vec<f64> {
            runs.iter()
                .zip(&results)
                .filter(|(run, _)| (run.0, run.1, run.2) == (*nodes, *loss, candidate))
                .map(|(_, result)| value(result))
                .collect()
        };
        let mut row = |metric: &str, value: &dyn Fn(Candidate) -> f64, limit: f64, unit| {
            findings.rows.push(
                Row::new("E8", format!("{metric}_loss_{loss}"), *nodes, unit)
                    .ours(value(Candidate::Nodosum))
                    .model(value(Candidate::Memberlist))
                    .other("chitchat_limit", limit),
            );
        };
        row(
            "crash_known_everywhere_max",
            &|c| percentile(&of(c, &|s| s.known), 100.0),
            *time,
            "s",
        );
        row(
            "gossip_both_ways",
            &|c| mean(&of(c, &|s| s.bytes)),
            *bytes,
            "B/s",
        );
        row(
            "false_positives",
            &|c| of(c, &|s| s.mistakes as f64).iter().sum(),
            0.0,
            "events",
        );
    }
    let line = |candidate: Candidate, lost: u64| {
        let points = plan.iter().filter(|(_, loss, ..)| *loss == lost);
        let points = points.map(|(nodes, ..)| {
            let times: Vec<f64> = runs
                .iter()
                .zip(&results)
                .filter(|(run, _)| (run.0, run.1, run.2) == (*nodes, lost, candidate))
                .map(|(_, result)| result.known)
                .collect();
            (*nodes as f64, percentile(&times, 100.0))
        });
        points.collect::<Vec<_>>()
    };
    findings.plots.push(Plot {
        file: "E8",
        title: "E8: from a crash until everybody knows, the worst of five runs".to_owned(),
        x: ("members", Scale::Log),
        y: ("seconds", Scale::Linear),
        series: vec![
            series("nodosum", line(Candidate::Nodosum, 0)),
            series("memberlist (model)", line(Candidate::Memberlist, 0)),
            series("nodosum, 50 % lost", line(Candidate::Nodosum, 50)),
            series("model, 50 % lost", line(Candidate::Memberlist, 50)),
        ],
    });
    findings
}

// ---- E13

struct Storm {
    converged: f64,
    /// Resident bytes a node, in a formed cluster and at most in the storm.
    formed: f64,
    peak: f64,
    /// What one record takes, of which all nodes here share one copy.
    record: f64,
    news: usize,
    members: usize,
    in_flight: usize,
    /// Of what started again, the part that a node has the newest record of, each half second.
    current: Vec<(f64, f64)>,
    /// Resident kilobytes a node.
    state: Vec<(f64, f64)>,
}

/// What this process has in memory, as its kernel counts.
fn resident() -> f64 {
    /// What Linux hands out on every machine that these experiments run on.
    const PAGE: f64 = 4_096.0;
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok())
        .map_or(f64::NAN, |pages| pages * PAGE)
}

/// What a record takes in memory, with the counts of the pieces that are shared and without what the
/// allocator adds.
fn record_bytes(record: &VerifiedRecord) -> usize {
    const COUNTS: usize = 2 * size_of::<usize>();
    let shared = [
        record.record.cluster.as_str().len(),
        record.record.node.as_str().len(),
        record.signed.payload.len(),
        record.signed.signature.len(),
        size_of::<VerifiedRecord>(),
    ];
    let shared: usize = shared.iter().map(|bytes| bytes + COUNTS).sum();
    shared + record.record.version.len()
}

fn storm(candidate: Candidate, nodes: usize) -> Storm {
    const SEEDS: u64 = 3;
    /// How many nodes are looked at for the curve; for the end, all are.
    const WATCHED: usize = 100;
    let before = resident();
    let mut setup = candidate.setup(nodes, 1);
    setup.kind = Kind::Model;
    let mut arena = Arena::formed(setup);
    arena.keeps_log = false;
    arena.run_for(2 * SEC);
    let formed = resident() - before;
    let restarting: Vec<u32> = (0..nodes as u32).filter(|node| node % 10 >= 7).collect();
    let at = arena.now;
    restarting.iter().for_each(|node| arena.crash(*node));
    arena.run_for(SEC);
    for node in &restarting {
        let seed = arena.rng.below(SEEDS) as u32;
        arena.start(*node, Some(seed));
    }
    let mut out = Storm {
        converged: f64::INFINITY,
        formed: formed / nodes as f64,
        peak: 0.0,
        record: 0.0,
        news: 0,
        members: 0,
        in_flight: 0,
        current: Vec::new(),
        state: Vec::new(),
    };
    for _ in 0..360 {
        arena.run_for(SEC / 2);
        let time = seconds(arena.now - at);
        let state = (resident() - before) / nodes as f64;
        out.peak = out.peak.max(state);
        out.state.push((time, state / 1_000.0));
        let swims = || arena.nodes.iter().filter_map(|node| node.swim());
        let news = swims().map(swim::Swim::pending_news).max();
        out.news = out.news.max(news.unwrap_or(0));
        out.in_flight = out.in_flight.max(arena.agenda());
        let watched = swims().step_by(nodes.div_ceil(WATCHED));
        let shares = watched.map(|swim| current(swim, &restarting, &arena) as f64);
        let share = mean(&shares.collect::<Vec<_>>()) / restarting.len() as f64;
        out.current.push((time, share * 100.0));
        let is_whole = (0..nodes as u32).all(|node| arena.size_at(node) == nodes);
        if is_whole
            && share >= 1.0
            && swims().all(|swim| current(swim, &restarting, &arena) == restarting.len())
        {
            out.members = swims()
                .map(|swim| swim.members().count())
                .max()
                .unwrap_or(0);
            let records = swims().map(|swim| record_bytes(swim.me()) as f64);
            out.record = mean(&records.collect::<Vec<_>>());
            out.converged = time;
            break;
        }
    }
    out
}

/// Of how many that started again a node has the newest record.
fn current(swim: &swim::Swim, restarted: &[u32], arena: &Arena) -> usize {
    let is_current = |node: &&u32| {
        let own = arena.nodes[**node as usize].swim().map(swim::Swim::me);
        own.is_some_and(|own| {
            swim.member(&own.record.node)
                .is_some_and(|member| member.record.record.boot == own.record.boot)
        })
    };
    restarted.iter().filter(is_current).count()
}

/// The cap on what one node has in memory, records not counted: so much for each member, and so much
/// whatever their number.
const STATE_CAP_PER_MEMBER: f64 = 256.0;
const STATE_CAP_FIXED: f64 = 65_536.0;

/// Up to here the model is played beside nodosum. Beyond, one run alone takes most of a machine.
const STORM_OF_BOTH: usize = 3_000;

fn e13(context: &Context) -> Findings {
    let nodes = context.nodes.unwrap_or_else(|| context.some(1_500, 30));
    // One at a time, since each is measured by what the process takes; the second one would find
    // memory that the first has left. So ours comes first.
    let both = [Candidate::Nodosum, Candidate::Memberlist];
    let played = if nodes <= STORM_OF_BOTH {
        &both[..]
    } else {
        &both[..1]
    };
    let results = each("E13", 1, played, |candidate| storm(*candidate, nodes));
    let mut findings = Findings::default();
    let mut row = |metric: &str, value: &dyn Fn(&Storm) -> f64, unit| {
        let row = Row::new("E13", metric, nodes, unit).ours(value(&results[0]));
        findings.rows.push(match results.get(1) {
            Some(model) => row.model(value(model)),
            None => row,
        });
    };
    row("equal_views_after", &|storm| storm.converged, "s");
    row("news_at_most", &|storm| storm.news as f64, "pieces");
    row("members_at_most", &|storm| storm.members as f64, "members");
    row("agenda_at_most", &|storm| storm.in_flight as f64, "entries");
    let ours = &results[0];
    let cap = STATE_CAP_FIXED + STATE_CAP_PER_MEMBER * nodes as f64;
    // A few nodes take less than the pages that the allocator rounds to.
    if !context.quick && (ours.peak.is_nan() || ours.peak > cap) {
        let (peak, cap) = (ours.peak / 1_000.0, cap / 1_000.0);
        let missed = format!("a node had {peak:.0} kB at most, more than the cap of {cap:.0} kB");
        findings.missed.push(missed);
    }
    if !ours.converged.is_finite() {
        let missed = "views were not equal after three minutes".to_owned();
        findings.missed.push(missed);
    }
    for (metric, value) in [
        ("state_cap", cap),
        ("state_formed", ours.formed),
        ("state_peak", ours.peak),
        ("records_of_all", ours.record * nodes as f64),
    ] {
        findings
            .rows
            .push(Row::new("E13", metric, nodes, "B per node").ours(value));
        findings.rows.push(
            Row::new("E13", format!("{metric}_per_member"), nodes, "B").ours(value / nodes as f64),
        );
    }
    findings.plots.push(Plot {
        file: "E13",
        title: format!("E13: three of ten start again at once, {nodes} members"),
        x: ("seconds since they crashed", Scale::Linear),
        y: ("new records that a node has, %", Scale::Linear),
        series: vec![
            Some(series("nodosum", ours.current.clone())),
            results
                .get(1)
                .map(|model| series("memberlist (model)", model.current.clone())),
        ]
        .into_iter()
        .flatten()
        .collect(),
    });
    findings.plots.push(Plot {
        file: "E13-state",
        title: format!("E13: what a node keeps in memory, {nodes} members"),
        x: ("seconds since they crashed", Scale::Linear),
        y: ("kB a node, records not counted", Scale::Linear),
        series: vec![series("nodosum", ours.state.clone())],
    });
    findings
}

// ---- E14

struct Leave {
    /// Percent of the members that know after a second.
    within: f64,
    last: f64,
    queued: f64,
    known: Vec<(f64, f64)>,
}

/// When everybody knows of a leave, while every node has more news than it can tell.
fn leave(candidate: Candidate, over_connections: bool, nodes: usize) -> Leave {
    let mut setup = candidate.setup(nodes, 1);
    setup.kind = Kind::Model;
    let mut arena = Arena::formed(setup);
    arena.run_for(SEC / 2);
    for node in 0..nodes as u32 {
        arena.set_tags(node, "v".repeat(64));
    }
    arena.run_for(SEC / 2);
    let queued: Vec<f64> = arena
        .nodes
        .iter()
        .filter_map(|node| node.swim())
        .map(|swim| swim.pending_news() as f64)
        .collect();
    let (at, first) = (arena.now, arena.log.len());
    arena.leave(0);
    if over_connections {
        arena.tell_everybody(0);
    }
    let mut known: Vec<f64> = Vec::new();
    for _ in 0..40 {
        arena.run_for(SEC / 4);
        known = arena.log[first..]
            .iter()
            .filter(|told| told.what == What::Left && told.of == 0)
            .map(|told| seconds(told.at - at))
            .collect();
        if known.len() + 1 >= nodes {
            break;
        }
    }
    let within = known.iter().filter(|at| **at <= 1.0).count() as f64;
    let last = if known.len() + 1 >= nodes {
        percentile(&known, 100.0)
    } else {
        f64::INFINITY
    };
    Leave {
        within: within / (nodes - 1) as f64 * 100.0,
        last,
        queued: percentile(&queued, 50.0),
        known: rising(&known, nodes - 1),
    }
}

fn e14(context: &Context) -> Findings {
    let nodes = context.nodes.unwrap_or_else(|| context.some(3_600, 30));
    let results = each(
        "E14",
        1,
        &[
            (Candidate::Memberlist, false),
            (Candidate::Nodosum, false),
            (Candidate::Nodosum, true),
        ],
        |(candidate, over)| leave(*candidate, *over, nodes),
    );
    let mut findings = Findings::default();
    let mut row = |metric: &str, value: &dyn Fn(&Leave) -> f64, unit| {
        findings.rows.push(
            Row::new("E14", metric, nodes, unit)
                .ours(value(&results[2]))
                .model(value(&results[0]))
                .other("nodosum_gossip_only", value(&results[1])),
        );
    };
    row("known_within_1_s", &|leave| leave.within, "%");
    row("known_everywhere", &|leave| leave.last, "s");
    row("queued_news_p50", &|leave| leave.queued, "pieces");
    findings.plots.push(Plot {
        file: "E14",
        title: format!("E14: who knows of a leave while all queues are full, {nodes} members"),
        // Over connections it is a matter of milliseconds, by gossip one of many seconds.
        x: ("seconds since the leave", Scale::Log),
        y: ("members that know, %", Scale::Linear),
        series: [
            ("nodosum", &results[2]),
            ("nodosum, gossip alone", &results[1]),
            ("memberlist (model)", &results[0]),
        ]
        .into_iter()
        .map(|(name, leave)| series(name, leave.known.clone()))
        .collect(),
    });
    findings
}
