//! The experiments of docs/MEMBERSHIP.md: `./run bench membership`.
//!
//! Each plays one script on nodosum and on a model of memberlist's rules, in simulated time, and
//! sets the figures side by side. Times are those of the simulated clock, so that a busy machine
//! makes a run longer and no figure different; the same seeds give the same figures.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people: results on stdout, the rest on stderr"
)]

#[path = "../tests/support/sim/queue.rs"]
mod queue;
#[path = "../tests/support/sim/registry.rs"]
#[expect(dead_code, reason = "forced leaves have no part in any experiment")]
mod registry;

#[path = "membership/arena.rs"]
mod arena;
#[path = "membership/experiments.rs"]
mod experiments;
#[path = "membership/plot.rs"]
mod plot;
#[path = "membership/promises.rs"]
mod promises;
#[path = "membership/report.rs"]
mod report;

use std::{fs, path::Path, process::ExitCode};

use experiments::{Context, EXPERIMENTS};
use report::Findings;

const USAGE: &str = "\
usage: ./run bench membership [OPTIONS]

  --experiment NAME  one of E1 E2 E3 E4 E5 E6 E7 E8 E13 E14; may be repeated (default: all)
  --svg PATH         write the plots into this directory, or the only plot to this file
  --nodes N          the size of E3, E5, E13, E14 (default: 2000, 1000, 1500, 3600)
  --threads N        runs played at the same time (default: one for each core)
  --quick            tiny runs that show that it works; their figures mean nothing
  -o json            print one JSON object a line

example: ./run bench membership --experiment E2 --svg /tmp/plots
";

struct Arguments {
    experiments: Vec<String>,
    svg: Option<String>,
    context: Context,
    json: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut out = Arguments {
        experiments: Vec::new(),
        svg: None,
        context: Context {
            quick: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            nodes: None,
            tens: std::sync::OnceLock::new(),
        },
        json: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        match word.as_str() {
            "--experiment" => {
                let name = value()?.to_uppercase();
                if !EXPERIMENTS.iter().any(|(known, ..)| *known == name) {
                    return Err(format!("there is no experiment {name:?}"));
                }
                out.experiments.push(name);
            }
            "--svg" => out.svg = Some(value()?),
            "--threads" => {
                out.context.threads = value()?
                    .parse()
                    .ok()
                    .filter(|threads| *threads > 0)
                    .ok_or("--threads wants a number")?;
            }
            "--nodes" => {
                let nodes = value()?.parse().ok().filter(|nodes| *nodes >= 10);
                out.context.nodes = Some(nodes.ok_or("--nodes wants a number from 10 on")?);
            }
            "--quick" => out.context.quick = true,
            "-o" => match value()?.as_str() {
                "json" => out.json = true,
                "table" => out.json = false,
                other => return Err(format!("there is no output {other:?}")),
            },
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
    let mut plots = Vec::new();
    let mut missed = false;
    for (name, title, run) in EXPERIMENTS {
        if !arguments.experiments.is_empty() && !arguments.experiments.iter().any(|e| e == name) {
            continue;
        }
        let Findings {
            rows,
            plots: found,
            notes,
            missed: mut promises,
        } = run(&arguments.context);
        if !arguments.context.quick {
            promises.extend(promises::missed(name, &rows));
        }
        if arguments.json {
            rows.iter().for_each(|row| println!("{}", row.json()));
        } else {
            println!("{name}  {title}\n\n{}", report::table(&rows));
            notes.iter().for_each(|note| println!("{note}"));
            println!();
        }
        for promise in &promises {
            eprintln!("{name} missed: {promise}");
        }
        missed |= !promises.is_empty();
        plots.extend(found);
    }
    if let Some(path) = &arguments.svg
        && let Err(why) = write_plots(path, &plots)
    {
        eprintln!("{path}: {why}");
        return ExitCode::FAILURE;
    }
    if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn write_plots(path: &str, plots: &[plot::Plot]) -> std::io::Result<()> {
    if let ([only], true) = (plots, path.ends_with(".svg")) {
        return fs::write(path, only.svg());
    }
    fs::create_dir_all(path)?;
    for plot in plots {
        fs::write(
            Path::new(path).join(format!("{}.svg", plot.file)),
            plot.svg(),
        )?;
    }
    Ok(())
}
