//! Whole clusters, simulated: the scripts that once broke something, and two thousand fresh ones.

#[path = "support/sim/mod.rs"]
mod sim;

use std::{fs, path::Path};

use sim::{
    campaign::{Plan, campaign},
    generate::generate,
    planted,
    run::run,
    script::Script,
    world::Options,
};

/// Where the seeds of the test run begin; other campaigns draw others.
const FIRST_SEED: u64 = 1;
const SEEDS: u64 = 2_000;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn two_thousand_clusters_hold_every_invariant_and_agree_after_their_faults() {
    let plan = Plan {
        from: FIRST_SEED,
        seeds: SEEDS,
        nodes: None,
        threads: threads(),
        stop_at_first: false,
    };
    let report = campaign(&plan, &|_| {});
    println!("{:#?}", report.tally);
    println!(
        "{} seeds, {} entries of the agenda, {:?}",
        report.seeds, report.events, report.took
    );
    let replay = "replay one with ./run bench sim --seed SEED, shrink it with --shrink";
    assert!(
        report.violations.is_empty(),
        "{:#?}\n{replay}",
        report.violations
    );
    let missing = report.missing();
    assert!(missing.is_empty(), "these never happened: {missing:?}");
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in FIRST_SEED..FIRST_SEED + 40 {
        let play = || {
            let script = generate(seed, None);
            let options = Options::of(&script);
            run(script, options).hash
        };
        assert_eq!(play(), play(), "seed {seed}");
    }
}

#[test]
fn a_script_survives_being_written_and_read() {
    for seed in 0..300 {
        let script = generate(seed, None);
        let read: Script = script.to_string().parse().expect("its own text");
        assert_eq!(read, script, "seed {seed}");
    }
}

#[test]
fn what_was_broken_once_stays_mended() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/bugs");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the kept scripts")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).expect("readable");
        let script: Script = text.parse().expect("a script");
        let options = Options::of(&script);
        let violation = run(script, options).violation;
        assert_eq!(violation, None, "{}", file.display());
    }
}

/// Nine members, of which four are cut off from the others and from the only seed. The last case
/// lasts longer than the dead are known at all.
#[test]
fn partitions_of_any_length_heal_without_anybody_doing_anything() {
    for (seconds, tombstone) in [(10, 86_400), (120, 86_400), (3_600, 86_400), (3_600, 600)] {
        let end = 30_000 + seconds * 1_000;
        let mut text = format!(
            "seed 11\nnodes 9 lan\n\
             network latency 500us jitter 200us clocks 200ppm icmp no\n\
             skewed none\ntombstone {tombstone}s\nfaults-end {end}ms\n"
        );
        for node in 1..=9 {
            text += &format!("{node}00ms start n{node} via n1\n");
        }
        text += &format!("30000ms..{end}ms block n1-n5 -> n6-n9\n");
        text += &format!("30000ms..{end}ms block n6-n9 -> n1-n5\n");
        let script: Script = text.parse().expect("a script");
        let options = Options::of(&script);
        let outcome = run(script, options);
        assert_eq!(
            outcome.violation, None,
            "{seconds} s, tombstones {tombstone} s"
        );
        let agreed = outcome.agreed_after.expect("an agreement");
        println!("{seconds} s, tombstones {tombstone} s: agreed {agreed:?} after it");
        let deaths = outcome.tally.transitions["dead"];
        assert!(
            seconds < 60 || deaths >= 40,
            "each side gave the other up: {deaths}"
        );
    }
}

#[test]
fn every_planted_fault_still_fits_the_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plants = planted::all(root).expect("readable");
    assert!(
        plants.len() >= 15,
        "only {} faults are planted",
        plants.len()
    );
    let misfits: Vec<String> = plants
        .iter()
        .filter_map(|plant| plant.apply(root).err())
        .collect();
    assert!(misfits.is_empty(), "{misfits:#?}");
}
