//! Whole clusters, simulated.
#[path = "support/sim/mod.rs"]
mod sim;

use sim::{generate::generate, run::run, tally::Tally, world::Options};

#[test]
fn probe() {
    let from: u64 = std::env::var("FROM").map_or(0, |v| v.parse().unwrap());
    let count: u64 = std::env::var("COUNT").map_or(200, |v| v.parse().unwrap());
    let mut tally = Tally::default();
    let mut bad = 0;
    let mut agreed = Vec::new();
    for seed in from..from + count {
        let script = generate(seed, None);
        let options = Options {
            verbose: std::env::var("V").is_ok(),
            ..Options::of(&script)
        };
        if count == 1 {
            println!("{script}");
        }
        let nodes = script.nodes;
        let outcome = run(script, options);
        tally.merge(&outcome.tally);
        agreed.push(outcome.agreed_after);
        if let Some(why) = outcome.violation {
            bad += 1;
            if bad < 40 {
                println!("seed {seed} n {nodes} ev {}: {why}", outcome.events);
            }
        }
    }
    agreed.sort();
    println!(
        "{bad} bad of {count}; agreed p50 {:?} p99 {:?} max {:?}",
        agreed[agreed.len() / 2],
        agreed[agreed.len() * 99 / 100],
        agreed.last()
    );
    println!("{tally:#?}");
}
