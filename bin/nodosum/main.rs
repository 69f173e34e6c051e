//! The nodosum command: runs nodes, talks to running ones, makes certificates, shows a cluster.
//!
//! [`args`] reads the command line and `main` hands it to the one file of each family of commands.
//! `run`, `demo` and `bench` hold nodes; the others are clients of a node's [`admin`] socket and hold
//! nothing. Commands return how they end ([`exit`]) and never exit by themselves; a second
//! interrupt in [`signals`] is the only exception.

mod admin;
mod args;
mod bench;
mod clock;
mod cluster;
mod config;
mod conns;
mod debug;
mod demo;
mod doctor;
mod event;
mod events;
mod exit;
mod explain;
mod keys;
mod log_filter;
mod logging;
mod manual;
mod members;
mod messages;
mod notify;
mod output;
mod query;
mod run;
mod seeds;
mod settings;
mod signals;
mod status;
mod tags;
mod terminal;
mod tls;
mod top;
mod upkeep;
mod wait;
mod watch;

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::{
    CommandFactory as _, FromArgMatches as _,
    error::{ContextKind, ContextValue},
};

use crate::{
    args::{Cli, Command},
    exit::{Exit, Failure},
    output::Paint,
};

/// How long a node may take for an answer that it has at hand.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a bare `nodosum` prints.
const FIRST_STEPS: &str = "\
nodosum turns several processes into one cluster. To begin with:

  nodosum demo --for 30s                                a cluster that proves itself
  nodosum tls ca create --cluster test --out ca         a certificate authority
  nodosum tls cert create --ca ca --node n1 --out n1    a certificate for a node
  nodosum run --tls-dir n1                              the node
  nodosum members                                       what it sees

All commands: nodosum --help";

fn main() -> ExitCode {
    let cli = match Cli::command().color(help_colour()).try_get_matches() {
        Ok(matches) => Cli::from_arg_matches(&matches),
        Err(error) => Err(error),
    };
    let cli = match cli {
        Ok(cli) => cli,
        Err(error) => {
            // A usage error, or help that was asked for: clap prints it and knows the code.
            let _ = error.print();
            if let Some(variable) = variable_of(&error) {
                output::note(&format!("The value is that of {variable}."));
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    output::set_colour(cli.color);
    let exit = carry_out(cli).unwrap_or_else(|failure| {
        // Nobody reading standard error changes nothing about the exit code.
        let _ = write!(std::io::stderr(), "{}", failure.painted(Paint::stderr()));
        failure.exit
    });
    ExitCode::from(exit.code())
}

/// The environment variable from which a refused value was taken, and not from a flag.
fn variable_of(error: &clap::Error) -> Option<String> {
    let ContextValue::String(flag) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let long = flag.strip_prefix("--")?.split_whitespace().next()?;
    let is_given = std::env::args().any(|word| {
        word.strip_prefix("--")
            .and_then(|word| word.split('=').next())
            == Some(long)
    });
    let root = Cli::command();
    let mut commands = vec![&root];
    let mut variable = None;
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands());
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(long));
        variable = variable.or_else(|| arg.and_then(clap::Arg::get_env).map(ToOwned::to_owned));
    }
    let variable = variable.filter(|name| !is_given && std::env::var_os(name).is_some())?;
    Some(variable.to_string_lossy().into_owned())
}

/// What `--color` says to help and usage errors, which are printed before the flags are read.
fn help_colour() -> clap::ColorChoice {
    let words: Vec<_> = std::env::args_os().collect();
    let mut choice = clap::ColorChoice::Auto;
    for (at, word) in words.iter().enumerate() {
        let next = words.get(at + 1).and_then(|next| next.to_str());
        let value = match word.to_str() {
            Some("--color") => next,
            Some(word) => word.strip_prefix("--color="),
            None => None,
        };
        choice = match value {
            Some("always") => clap::ColorChoice::Always,
            Some("never") => clap::ColorChoice::Never,
            _ => choice,
        };
    }
    choice
}

fn carry_out(cli: Cli) -> Result<Exit, Failure> {
    let Some(command) = cli.command else {
        output::note(FIRST_STEPS);
        return Ok(Exit::Usage);
    };
    match command {
        Command::Run(_) => run::run(),
        Command::Demo(args) => demo::run(&args),
        Command::Tls(args) => tls::run(&args),
        Command::Members(args) => members::run(&args),
        Command::Conns(args) => conns::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Events(args) => events::run(&args),
        Command::Wait(args) => wait::run(&args),
        Command::Ping(args) => messages::ping(&args),
        Command::Send(args) => messages::send(&args),
        Command::Request(args) => messages::request(&args),
        Command::Broadcast(args) => messages::broadcast(&args),
        Command::Event(args) => event::run(&args),
        Command::Query(args) => query::run(&args),
        Command::Tags(args) => tags::run(&args),
        Command::Join(args) => cluster::join(&args),
        Command::Leave(args) => cluster::leave(&args),
        Command::ForceLeave(args) => cluster::force_leave(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Log(args) => log_filter::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Debug(args) => debug::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}
