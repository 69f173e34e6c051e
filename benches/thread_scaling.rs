//! Requests over one to many connections: `./run bench scale`, and `nodosum bench` in the binary.

#![expect(
    clippy::print_stderr,
    reason = "a program for people: results on stdout, the rest on stderr"
)]

mod scaling;

use std::process::ExitCode;

use clap::Parser;

/// Thread scaling: requests over 1, 2, 4, ... connections
#[derive(Debug, Parser)]
#[command(
    name = "./run bench scale",
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    scale: scaling::Scale,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match scaling::run(&cli.scale, &[], &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
