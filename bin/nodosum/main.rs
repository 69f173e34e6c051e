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
mod conns;
mod demo;
mod event;
mod events;
mod exit;
mod explain;
mod keys;
mod logging;
mod members;
mod messages;
mod output;
mod query;
mod run;
mod signals;
mod status;
mod tags;
mod tls;
mod wait;
mod watch;

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::Parser as _;

use crate::{
    args::{Cli, Command},
    exit::{Exit, Failure},
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
    let cli = Cli::parse();
    let exit = carry_out(cli).unwrap_or_else(|failure| {
        // Nobody reading standard error changes nothing about the exit code.
        let _ = write!(std::io::stderr(), "{failure}");
        failure.exit
    });
    ExitCode::from(exit.code())
}

fn carry_out(cli: Cli) -> Result<Exit, Failure> {
    let Some(command) = cli.command else {
        output::note(FIRST_STEPS);
        return Ok(Exit::Usage);
    };
    match command {
        Command::Run(args) => run::run(&args),
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
        Command::Bench(args) => bench::run(&args),
    }
}
