//! How often a message allocates: `./run bench allocations`.
//!
//! Two nodes in this process, one connection, an allocator that counts. Each row sends so many messages
//! after a warm-up and tells what both ends together allocated for each, the application's own part
//! included: a request's reply and a message's payload are given to the application as a `Vec`, so that
//! each costs one allocation whatever the transport does. What the nodes allocate meanwhile without being
//! asked is measured first and taken off.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program for people that measures against the real clock"
)]

use std::{
    alloc::System,
    error::Error,
    io::{Read as _, Write as _},
    process::ExitCode,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use nodosum::{App, Node, NodeId, Ready, ca::Authority};
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PATIENCE: Duration = Duration::from_secs(10);
const VALID_FOR: Duration = Duration::from_secs(86_400);

/// How long idle nodes are watched.
const IDLE: Duration = Duration::from_secs(2);

/// Requests that wait for their replies at once, in the row that has many.
const OUTSTANDING: u64 = 64;

/// A piece that is written to a stream.
const PIECE_BYTES: usize = 64 << 10;

/// How often a message, a request, a datagram and a piece of a stream allocate
#[derive(Debug, Parser)]
#[command(name = "./run bench allocations", disable_help_subcommand = true)]
struct Cli {
    /// Messages of each kind
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    count: u64,
    /// How to print the figures
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    output: Format,
    /// What `cargo bench` adds.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

struct Row {
    what: &'static str,
    payload_bytes: usize,
    /// Of a large piece fewer are sent.
    share: u64,
    send: fn(&Pair, &[u8], u64) -> Outcome<()>,
}

const fn row(
    what: &'static str,
    payload_bytes: usize,
    share: u64,
    send: fn(&Pair, &[u8], u64) -> Outcome<()>,
) -> Row {
    Row {
        what,
        payload_bytes,
        share,
        send,
    }
}

const ROWS: [Row; 7] = [
    row("request, one at a time", 64, 1, requests),
    row("request, 64 at a time", 64, 1, many_requests),
    row("request, one at a time", 16 << 10, 1, requests),
    row("message", 64, 1, messages),
    row("message", 16 << 10, 1, messages),
    row("datagram", 64, 1, datagrams),
    row("64 KiB of a stream", PIECE_BYTES, 10, pieces),
];

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Two ends of one connection.
struct Pair {
    nodes: [Node; 2],
    here: App,
    there: App,
    peer: NodeId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    // One object a line.
    Json,
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    allocations: f64,
    bytes: f64,
}

impl Used {
    fn now() -> Self {
        let stats = ALLOCATOR.stats();
        Self {
            allocations: (stats.allocations + stats.reallocations) as f64,
            bytes: stats.bytes_allocated as f64,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            allocations: self.allocations - before.allocations,
            bytes: self.bytes - before.bytes,
        }
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Outcome<()> {
    let pair = Arc::new(connect()?);
    let before = Used::now();
    thread::sleep(IDLE);
    let idle = Used::now().since(before);
    if cli.output == Format::Table {
        println!(
            "idle: {:.0} allocations a second, both nodes\n\n{:<26}{:>12}{:>14}{:>16}",
            idle.allocations / IDLE.as_secs_f64(),
            "for each",
            "allocations",
            "bytes",
            "payload bytes"
        );
    }
    for Row {
        what,
        payload_bytes,
        share,
        send,
    } in ROWS
    {
        // Every row, and its warm-up, sends whole rounds of what waits at once.
        let rounds = |count: u64| count.next_multiple_of(OUTSTANDING);
        let count = rounds(cli.count / share);
        let payload = vec![0x5a; payload_bytes];
        send(&pair, &payload, rounds(count / 10))?;
        let (from, before) = (Instant::now(), Used::now());
        send(&pair, &payload, count)?;
        let used = Used::now().since(before);
        let count = count as f64;
        let idle_part = from.elapsed().as_secs_f64() / IDLE.as_secs_f64();
        let allocations = (used.allocations - idle.allocations * idle_part).max(0.0) / count;
        let bytes = (used.bytes - idle.bytes * idle_part).max(0.0) / count;
        if cli.output == Format::Table {
            println!("{what:<26}{allocations:>12.2}{bytes:>14.0}{payload_bytes:>16}");
            continue;
        }
        for (metric, unit, value) in [
            ("allocations", "allocations", allocations),
            ("bytes_allocated", "bytes", bytes),
        ] {
            let line = json!({"schema": 1, "bench": "allocations",
                "workload": format!("{what}, {payload_bytes}"), "metric": metric, "unit": unit,
                "lower_is_better": true, "median": value, "min": value, "max": value, "runs": 1});
            println!("{line}");
        }
    }
    for node in &pair.nodes {
        node.shutdown(PATIENCE);
    }
    Ok(())
}

fn connect() -> Outcome<Pair> {
    let authority = Authority::new(&"bench".parse()?, VALID_FOR)?;
    let first = Node::builder(authority.identity(&"n1".parse()?, VALID_FOR)?).start()?;
    let second = Node::builder(authority.identity(&"n2".parse()?, VALID_FOR)?)
        .seed(first.quic_addr().to_string())
        .start()?;
    second.wait_ready(Ready::Peers(1), PATIENCE)?;
    let there = first.register("bench")?;
    there.on_request_inline(|request| Ok(request.payload.clone()));
    let here = second.register("bench")?;
    Ok(Pair {
        peer: first.id().clone(),
        nodes: [first, second],
        here,
        there,
    })
}

fn requests(pair: &Pair, payload: &[u8], count: u64) -> Outcome<()> {
    for _ in 0..count {
        pair.here.request(&pair.peer, payload, PATIENCE)?;
    }
    Ok(())
}

/// Each reply asks the next one, on the thread that read it.
fn many_requests(pair: &Pair, payload: &[u8], count: u64) -> Outcome<()> {
    struct Chain {
        app: App,
        peer: NodeId,
        payload: Vec<u8>,
        ended: mpsc::SyncSender<Result<(), String>>,
    }
    fn ask(chain: &Arc<Chain>, left: u64) {
        let next = Arc::clone(chain);
        let asked =
            chain.app.request_then(
                &chain.peer,
                &chain.payload,
                PATIENCE,
                move |reply| match reply {
                    Ok(_) if left > 0 => ask(&next, left - 1),
                    last => drop(
                        next.ended
                            .send(last.map(drop).map_err(|why| why.to_string())),
                    ),
                },
            );
        if let Err(why) = asked {
            drop(chain.ended.send(Err(why.to_string())));
        }
    }
    let (ended, end) = mpsc::sync_channel(OUTSTANDING as usize);
    let chain = Arc::new(Chain {
        app: pair.here.clone(),
        peer: pair.peer.clone(),
        payload: payload.to_vec(),
        ended,
    });
    for _ in 0..OUTSTANDING {
        ask(&chain, count / OUTSTANDING - 1);
    }
    for _ in 0..OUTSTANDING {
        end.recv()??;
    }
    Ok(())
}

fn messages(pair: &Pair, payload: &[u8], count: u64) -> Outcome<()> {
    let inbox = pair.there.messages().clone();
    let taker = thread::spawn(move || (0..count).all(|_| inbox.recv_timeout(PATIENCE).is_ok()));
    for _ in 0..count {
        // A message is given away, so that it is made anew: one allocation is ours.
        pair.here.send(&pair.peer, payload, PATIENCE)?;
    }
    if taker.join().is_ok_and(|all| all) {
        Ok(())
    } else {
        Err("messages did not arrive".into())
    }
}

/// One after the other, since what a queue has no room for is lost.
fn datagrams(pair: &Pair, payload: &[u8], count: u64) -> Outcome<()> {
    for _ in 0..count {
        pair.here.send_datagram(&pair.peer, payload)?;
        pair.there.datagrams().recv_timeout(PATIENCE)?;
    }
    Ok(())
}

fn pieces(pair: &Pair, payload: &[u8], count: u64) -> Outcome<()> {
    let mut writer = pair.here.open_stream(&pair.peer, PATIENCE)?;
    let total = count * payload.len() as u64;
    let streams = pair.there.streams().clone();
    let reader = thread::spawn(move || -> Outcome<u64> {
        let mut stream = streams.recv_timeout(PATIENCE)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut taken = 0;
        loop {
            match stream.read(&mut piece)? {
                0 => return Ok(taken),
                len => taken += len as u64,
            }
        }
    });
    for _ in 0..count {
        writer.write_all(payload)?;
    }
    writer.finish();
    match reader.join() {
        Ok(taken) if taken.as_ref().is_ok_and(|taken| *taken == total) => Ok(()),
        Ok(Err(why)) => Err(why),
        Ok(Ok(_)) | Err(_) => Err("the stream lost something".into()),
    }
}
