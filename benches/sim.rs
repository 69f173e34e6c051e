//! Campaigns of simulated clusters: `./run bench sim`.
//!
//! Plays many seeds, or one seed or script, tells what happened, and makes what breaks small. Exit
//! code 1 when something broke, or when a campaign never saw something that it is there to test.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people: results on stdout, the rest on stderr"
)]

#[path = "../tests/support/sim/mod.rs"]
mod sim;

use std::{
    collections::BTreeMap,
    fs, io,
    io::IsTerminal as _,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use sim::{
    campaign::{Plan, Report, campaign},
    generate::generate,
    planted::{self, Planted},
    run::run,
    script::Script,
    shrink::{shrink, violation_of},
    world::Options,
};

const USAGE: &str = "\
usage: ./run bench sim [OPTIONS]

  --seeds N       seeds to play (default 2000)
  --from SEED     the first of them (default 1)
  --nodes A..B    only clusters of A to B nodes
  --threads N     seeds played at the same time (default: one for each core)
  --seed S        play one seed and print everything that happens
  --script FILE   play a script and print everything that happens
  --shrink        with --seed or --script: print the smallest script that still breaks; in a
                  campaign: shrink the first seed that breaks
  --planted       plant each fault of tests/planted in a copy of the source and count the seeds
                  (default 10000) until one breaks, from three beginnings
  --only NAME     with --planted: this fault alone
  -o json         print the result as JSON

example: ./run bench sim --seeds 20000 --from 1000000
";

#[derive(Default)]
struct Arguments {
    seeds: Option<u64>,
    from: Option<u64>,
    nodes: Option<(usize, usize)>,
    threads: Option<usize>,
    seed: Option<u64>,
    script: Option<String>,
    first: bool,
    planted: bool,
    only: Option<String>,
    shrink: bool,
    json: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut out = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: String| {
            text.replace('_', "")
                .parse::<u64>()
                .map_err(|_| format!("{text:?} is no number"))
        };
        match word.as_str() {
            "--seeds" => out.seeds = Some(number(value()?)?),
            "--from" => out.from = Some(number(value()?)?),
            "--seed" => out.seed = Some(number(value()?)?),
            "--threads" => out.threads = Some(number(value()?)? as usize),
            "--nodes" => {
                let range = value()?;
                let (low, high) = range.split_once("..").ok_or("--nodes wants A..B")?;
                let low = number(low.to_owned())? as usize;
                let high = number(high.to_owned())? as usize;
                if low == 0 || high < low {
                    return Err(format!("{range} is no range of nodes"));
                }
                out.nodes = Some((low, high));
            }
            "--script" => out.script = Some(value()?),
            "--stop-at-first" => out.first = true,
            "--planted" => out.planted = true,
            "--only" => out.only = Some(value()?),
            "--shrink" => out.shrink = true,
            "-o" => out.json = value()? == "json",
            // What `cargo bench` adds.
            "--bench" => {}
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(out)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(why) if why.is_empty() => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("{why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if arguments.planted {
        return run_planted(&arguments).unwrap_or_else(|why| {
            eprintln!("{why}");
            ExitCode::from(2)
        });
    }
    let script = match (&arguments.script, arguments.seed) {
        (Some(file), _) => fs::read_to_string(file)
            .map_err(|error| error.to_string())
            .and_then(|text| text.parse::<Script>())
            .map(Some),
        (None, Some(seed)) => Ok(Some(generate(seed, arguments.nodes))),
        (None, None) => Ok(None),
    };
    match script {
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
        Ok(Some(script)) if arguments.shrink => print_shrunk(script),
        Ok(Some(script)) => play(script),
        Ok(None) => run_campaign(&arguments),
    }
}

/// One script, with everything that happens.
fn play(script: Script) -> ExitCode {
    print!("{script}");
    let options = Options {
        verbose: true,
        ..Options::of(&script)
    };
    let outcome = run(script, options);
    println!(
        "hash {:016x}, {} entries of the agenda",
        outcome.hash, outcome.events
    );
    match outcome.violation {
        Some(why) => {
            println!("VIOLATION: {why}");
            ExitCode::FAILURE
        }
        None => {
            println!(
                "agreed {:?} after the faults",
                outcome.agreed_after.unwrap_or_default()
            );
            ExitCode::SUCCESS
        }
    }
}

fn print_shrunk(script: Script) -> ExitCode {
    if violation_of(&script).is_none() {
        eprintln!("this script breaks nothing");
        return ExitCode::SUCCESS;
    }
    let (small, why) = shrink(script, &violation_of);
    print!("# {why}\n{small}");
    ExitCode::FAILURE
}

fn run_campaign(arguments: &Arguments) -> ExitCode {
    let plan = Plan {
        from: arguments.from.unwrap_or(1),
        seeds: arguments.seeds.unwrap_or(2_000),
        nodes: arguments.nodes,
        threads: arguments
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        stop_at_first: arguments.first,
    };
    let shows = io::stderr().is_terminal();
    let step = (plan.seeds / 100).max(1);
    let mut report = campaign(&plan, &|done| {
        if shows && done % step == 0 {
            let filled = (done * 40 / plan.seeds) as usize;
            eprint!("\r[{:<40}] {done}/{} seeds", "#".repeat(filled), plan.seeds);
        }
    });
    if shows {
        eprintln!();
    }
    let missing = report.missing();
    if arguments.json {
        println!("{}", json(&report, &missing));
    } else {
        print_report(&mut report, plan.threads);
    }
    for (seed, why) in report.violations.iter().take(20) {
        eprintln!("seed {seed}: {why}");
    }
    if !missing.is_empty() {
        eprintln!("never happened: {}", missing.join(", "));
    }
    if let (true, Some((seed, _))) = (arguments.shrink, report.violations.first_key_value()) {
        return print_shrunk(generate(*seed, arguments.nodes));
    }
    if report.violations.is_empty() && missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print_report(report: &mut Report, threads: usize) {
    let seconds = report.took.as_secs_f64().max(0.001);
    let hours = report.tally.node_seconds as f64 / 3_600.0;
    let per_core = report.seeds as f64 / seconds * 3_600.0 / threads as f64;
    println!(
        "seeds            {:>14}   {per_core:.0} an hour and core",
        report.seeds
    );
    println!("violations       {:>14}", report.violations.len());
    println!("not converged    {:>14}", report.unconverged);
    println!(
        "node-hours       {hours:>14.1}   {:.0} an hour of computing",
        hours / seconds * 3_600.0
    );
    println!(
        "agenda           {:>14}   {:.0} entries a second",
        report.events,
        report.events as f64 / seconds
    );
    let [half, most, all] = [50, 99, 100].map(|percent| report.quantile(percent).as_secs_f64());
    let (share, seed) = report.closest;
    println!(
        "agreement        p50 {half:.1} s, p99 {most:.1} s, at most {all:.1} s after the faults"
    );
    println!("closest to bound {:>13} %   seed {seed}", share / 10);
    let (events, seed) = report.heaviest;
    println!("heaviest         {events:>14}   seed {seed}");
    println!("trace            {:>14x}", report.hash & 0xffff_ffff_ffff);
    let tables = [
        ("transitions", &report.tally.transitions),
        ("faults", &report.tally.faults),
        ("acts", &report.tally.acts),
        ("counts", &report.tally.counts),
    ];
    for (title, table) in tables {
        println!("{title}");
        for (name, count) in table {
            println!("  {name:<20} {count:>12}");
        }
    }
    let tally = &report.tally;
    println!(
        "  datagrams {}, bytes {}, frames {}, health pings {}, dials {}",
        tally.datagrams, tally.bytes, tally.frames, tally.pings, tally.dials
    );
    println!("took {:?}", Duration::from_secs_f64(seconds));
}

fn json(report: &Report, missing: &[&str]) -> String {
    let object = |table: &BTreeMap<&'static str, u64>| {
        let fields: Vec<String> = table
            .iter()
            .map(|(name, count)| format!("\"{name}\":{count}"))
            .collect();
        format!("{{{}}}", fields.join(","))
    };
    let missing: Vec<String> = missing.iter().map(|name| format!("\"{name}\"")).collect();
    let first = report.violations.first_key_value();
    format!(
        "{{\"schema\":1,\"bench\":\"sim\",\"seeds\":{},\"violations\":{},\"unconverged\":{},\
         \"first_seed\":{},\"node_hours\":{:.3},\"seconds\":{:.3},\"events\":{},\
         \"transitions\":{},\"faults\":{},\"missing\":[{}]}}",
        report.seeds,
        report.violations.len(),
        report.unconverged,
        first.map_or_else(|| "null".to_owned(), |(seed, _)| seed.to_string()),
        report.tally.node_seconds as f64 / 3_600.0,
        report.took.as_secs_f64(),
        report.events,
        object(&report.tally.transitions),
        object(&report.tally.faults),
        missing.join(",")
    )
}

/// Where the three searches for a planted fault begin, and how far each goes.
const PLANTED_FROM: [u64; 3] = [10_000_000, 20_000_000, 30_000_000];
const PLANTED_SEEDS: u64 = 10_000;

fn run_planted(arguments: &Arguments) -> Result<ExitCode, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target");
    let copy = target.join("planted");
    let mut plants = planted::all(root)?;
    if let Some(only) = &arguments.only {
        plants.retain(|plant| plant.name == *only);
    }
    let seeds = arguments.seeds.unwrap_or(PLANTED_SEEDS);
    let mut caught = 0;
    copy_source(root, &copy).map_err(|error| format!("{}: {error}", copy.display()))?;
    for plant in &plants {
        let file = copy.join(&plant.file);
        let original = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        let changed = plant.apply(&copy)?;
        fs::write(&file, changed).map_err(|error| error.to_string())?;
        let mut needed: Vec<Option<u64>> = Vec::new();
        for from in PLANTED_FROM {
            needed.push(
                seeds_to_catch(plant, &copy, &target, from, seeds).unwrap_or_else(|why| {
                    eprintln!("{why}");
                    None
                }),
            );
        }
        fs::write(&file, original).map_err(|error| error.to_string())?;
        needed.sort_by_key(|seeds| seeds.unwrap_or(u64::MAX));
        caught += usize::from(needed.iter().all(Option::is_some));
        let show = |seeds: Option<u64>| seeds.map_or_else(|| "none".to_owned(), |n| n.to_string());
        let all: Vec<String> = needed.iter().map(|seeds| show(*seeds)).collect();
        if arguments.json {
            let number =
                |seeds: Option<u64>| seeds.map_or_else(|| "null".to_owned(), |n| n.to_string());
            let seeds: Vec<String> = needed.iter().map(|seeds| number(*seeds)).collect();
            println!(
                "{{\"schema\":1,\"bench\":\"sim\",\"planted\":\"{}\",\"median_seeds\":{},\"seeds\":[{}]}}",
                plant.name,
                number(needed[1]),
                seeds.join(",")
            );
        } else {
            println!(
                "{:<32} median {:>6}   {}",
                plant.name,
                show(needed[1]),
                all.join(" ")
            );
            println!("    {}", plant.why);
        }
    }
    let of = plants.len();
    if arguments.json {
        println!(
            "{{\"schema\":1,\"bench\":\"sim\",\"planted\":{{\"caught\":{caught},\"of\":{of}}}}}"
        );
    } else {
        println!("{caught} of {of} planted faults were caught from all three beginnings");
    }
    Ok(if caught == of {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// How many seeds from `from` on it takes until one breaks, if one does.
fn seeds_to_catch(
    plant: &Planted,
    copy: &Path,
    target: &Path,
    from: u64,
    seeds: u64,
) -> Result<Option<u64>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The profile of the tests: it is built in seconds, and its dependencies are there already.
    let output = Command::new(cargo)
        .args([
            "bench",
            "--quiet",
            "--profile",
            "dev",
            "--bench",
            "sim",
            "--",
        ])
        .args(["--stop-at-first", "-o", "json"])
        .args(["--seeds", &seeds.to_string(), "--from", &from.to_string()])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", target)
        // Without it each of the builds is a third shorter.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text
        .split_once("\"first_seed\":")
        .and_then(|(_, rest)| rest.split(',').next().map(str::to_owned));
    match first.as_deref() {
        Some("null") => Ok(None),
        Some(seed) => {
            let seed: u64 = seed.parse().map_err(|_| format!("{seed:?} is no seed"))?;
            Ok(Some(seed - from + 1))
        }
        None => Err(format!(
            "{} does not run:\n{}",
            plant.name,
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// Copies what cargo needs. What is unchanged is left alone, or it would all be built again.
fn copy_source(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        let (source, destination) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            copy_source(&source, &destination)?;
        } else {
            let mut content = fs::read(&source)?;
            if name == "Cargo.toml" || name == "Cargo.lock" {
                content = renamed(&content);
            }
            if fs::read(&destination).ok().as_ref() != Some(&content) {
                fs::write(&destination, content)?;
            }
        }
    }
    Ok(())
}

/// The manifest or lock file with another version of this package, so that what is built from the
/// copy never passes for what is built from the original; dependencies are shared.
fn renamed(content: &[u8]) -> Vec<u8> {
    let own = format!(
        "name = \"nodosum\"\nversion = \"{}\"",
        env!("CARGO_PKG_VERSION")
    );
    let planted = own.replacen(
        &format!("{}\"", env!("CARGO_PKG_VERSION")),
        &format!("{}-planted\"", env!("CARGO_PKG_VERSION")),
        1,
    );
    String::from_utf8_lossy(content)
        .replacen(&own, &planted, 1)
        .into_bytes()
}
