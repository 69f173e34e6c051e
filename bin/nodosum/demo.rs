//! `nodosum demo`: a cluster in this process that proves itself.
//!
//! The steps are those of a cluster's life: certificates, start, forming, requests between every
//! pair, the sudden death of one node, its return on the same ports, requests again. Each step has
//! a deadline and says what was missing when that passes; the first one that fails ends the demo
//! with FAIL. After the steps the cluster serves requests until its time is over or somebody
//! interrupts it. Nothing is simulated: the nodes talk over loopback sockets, exactly as nodes in
//! different processes would.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Select;
use nodosum::{
    App, ClusterName, EventKind, Events, Identity, MemberStatus, Node, NodeId, NotReady, Profile,
    Ready, Side, StartError, ca::Authority,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    admin::{history::History, server::Server, socket::bind},
    args::{self, DemoFormat},
    clock::{self, Deadline},
    exit::{Exit, Failure},
    logging,
    output::{
        Column, Format, Layout, Paint, clean, duration, is_terminal, json_line, print, render,
        seconds,
    },
    run::{raise_descriptor_limit, register_echo, write_ports_file},
    signals::Signals,
    tls::write_identity,
};

/// Only what a person should look at: the demo itself tells what happens.
const LOG_FILTER: &str = "warn,quiche=error";

/// The certificates last longer than any demo, and not much longer.
const VALID_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long forming and rejoining may take: 50 nodes on a small machine, which is 1,225
/// handshakes, with room.
const FORMING: Duration = Duration::from_secs(120);

/// How long noticing a death may take: the longest suspicion of the `local` profile at 50 nodes
/// is under a third of it.
const DETECTION: Duration = Duration::from_secs(90);

/// How long one request may take. Loopback needs a millisecond; a machine that is busy starting
/// everything at once may need much more.
const REQUEST: Duration = Duration::from_secs(10);

/// How long each node may take to leave.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Waits are cut into slices of this length, so that an interrupt is noticed.
const SLICE: Duration = Duration::from_millis(200);

/// The pause between two rounds of requests while the cluster serves.
const ROUND: Duration = Duration::from_millis(200);

/// How many steps there are, for the headings.
const STEPS: usize = 7;

/// What a request carries.
const PAYLOAD: &[u8] = b"which of us is still here?";

pub(crate) fn run(args: &args::Demo) -> Result<Exit, Failure> {
    let filter = logging::from_env().unwrap_or_else(|| LOG_FILTER.to_owned());
    logging::init(logging::LogFormat::Text, &filter);
    let signals = Signals::take_over()?;
    raise_descriptor_limit();
    let dir = Dir::make(args.keep)?;
    let mut demo = Demo {
        stage: Stage {
            format: args.output,
            paint: Paint::stdout(),
            begun: clock::now(),
            step: 0,
        },
        signals,
        total: usize::from(args.nodes),
        members: Vec::new(),
        server: None,
        summary: Summary::default(),
        started: clock::now(),
    };
    demo.summary.nodes = demo.total;
    let budget = args.budget.map(Deadline::after);
    let outcome = demo.live(&dir.path, budget);
    // Whatever came before, nothing is left running.
    let ended = demo.shut_down();
    if args.keep {
        demo.stage.kept(&dir.path)?;
    }
    demo.finish(outcome.and(ended))
}

/// Why the steps ended early.
#[derive(Debug)]
enum Stop {
    Failed(String),
    Interrupted(u8),
    /// Nothing can be shown any more.
    Output(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        // Of all failures, only those of the output concern the demo itself, not the cluster.
        if failure.message.is_empty() {
            Self::Output(failure)
        } else {
            Self::Failed(failure.message)
        }
    }
}

struct Demo {
    stage: Stage,
    signals: Signals,
    total: usize,
    members: Vec<Member>,
    server: Option<Server>,
    summary: Summary,
    /// When the first node was started.
    started: Instant,
}

/// One node of the cluster, running or not.
struct Member {
    id: NodeId,
    identity: Identity,
    /// Where it was reached when it last ran.
    quic: SocketAddr,
    gossip: SocketAddr,
    running: Option<Running>,
}

struct Running {
    node: Node,
    echo: App,
}

/// The last line of `-o json`.
#[derive(Debug, Default, Serialize)]
struct Summary {
    schema: u32,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    nodes: usize,
    ready_seconds: Option<f64>,
    formation_seconds: Option<f64>,
    detection_seconds: Option<f64>,
    rejoin_seconds: Option<f64>,
    requests: u64,
    failed_requests: u64,
}

impl Demo {
    /// The steps in their order, then serving.
    fn live(&mut self, dir: &Path, budget: Option<Deadline>) -> Result<(), Stop> {
        self.stage.open(self.total)?;
        self.make_certificates(dir)?;
        self.start(dir)?;
        self.form()?;
        self.exchange_everywhere("requests")?;
        self.lose_one()?;
        self.get_it_back()?;
        self.exchange_everywhere("requests_again")?;
        match budget {
            Some(budget) => self.serve(Some(budget)),
            None if is_terminal() => self.serve(None),
            None => Ok(()),
        }
    }

    fn make_certificates(&mut self, dir: &Path) -> Result<(), Stop> {
        self.stage
            .heading("making a throw-away authority and a certificate for each node")?;
        let failed = |error: &dyn std::fmt::Display| Stop::Failed(error.to_string());
        let cluster = ClusterName::new("demo").map_err(|error| failed(&error))?;
        let authority = Authority::new(&cluster, VALID_FOR).map_err(|error| failed(&error))?;
        for number in 1..=self.total {
            let id = NodeId::new(&format!("n{number}")).map_err(|error| failed(&error))?;
            let home = dir.join(id.as_str());
            write_identity(&authority, &id, VALID_FOR, &home)?;
            let identity = Identity::from_dir(&home).map_err(|error| failed(&error))?;
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            self.members.push(Member {
                id,
                identity,
                quic: any,
                gossip: any,
                running: None,
            });
        }
        let text = format!("{} certificates in {}", self.total, dir.display());
        self.stage.done(
            "certificates",
            &text,
            json!({ "dir": dir.display().to_string() }),
        )
    }

    /// Starts the first node, and all others at once with the first one as their seed.
    fn start(&mut self, dir: &Path) -> Result<(), Stop> {
        self.stage.heading("starting all nodes")?;
        self.started = clock::now();
        let deadline = Deadline::after(FORMING);
        let (first, others) = self.members.split_at_mut(1);
        let [first] = first else {
            return Err(Stop::Failed("no node to start".to_owned()));
        };
        first.start(Vec::new())?;
        let seed = first.quic.to_string();
        let started: Vec<Result<(), Stop>> = thread::scope(|scope| {
            let starting: Vec<_> = others
                .iter_mut()
                .map(|member| scope.spawn(|| member.start(vec![seed.clone()])))
                .collect();
            let panicked = |_| Err(Stop::Failed("a node panicked while it started".to_owned()));
            starting
                .into_iter()
                .map(|start| start.join().unwrap_or_else(panicked))
                .collect()
        });
        started.into_iter().collect::<Result<(), Stop>>()?;
        for running in self.running() {
            self.hold(&running.node, Ready::Started, deadline)?;
        }
        let took = clock::now() - self.started;
        self.summary.ready_seconds = Some(took.as_secs_f64());
        let admin = self.open_admin(dir)?;
        for (position, member) in self.members.iter().enumerate() {
            let Some(running) = &member.running else {
                continue;
            };
            let admin = admin.as_deref().filter(|_| position == 0);
            write_ports_file(
                &dir.join(member.id.as_str()).join("ports.json"),
                &running.node,
                admin,
            )?;
        }
        let text = format!("{} nodes, all ready after {}", self.total, duration(took));
        self.stage.done(
            "started",
            &text,
            json!({ "ready_seconds": took.as_secs_f64() }),
        )
    }

    /// Lets other commands look at the first node while the demo runs.
    fn open_admin(&mut self, dir: &Path) -> Result<Option<PathBuf>, Stop> {
        let Some(first) = self.running().next() else {
            return Ok(None);
        };
        let path = dir.join("n1.sock");
        let history = History::record(first.node.events())?;
        let server = bind(&path).and_then(|socket| {
            Server::start(first.node.clone(), history, [first.echo.clone()], socket)
        });
        match server {
            Ok(server) => {
                self.server = Some(server);
                Ok(Some(path))
            }
            Err(failure) => {
                // The demo proves the cluster; a directory too deep for a socket is no reason to
                // stop it.
                log::warn!(target: "admin", "no admin socket: {}", failure.message);
                Ok(None)
            }
        }
    }

    fn form(&mut self) -> Result<(), Stop> {
        self.stage.heading("forming the cluster")?;
        self.hold_full_mesh(Deadline::after(FORMING))?;
        // Formation counts from the first start, as an operator would.
        let took = clock::now() - self.started;
        self.summary.formation_seconds = Some(took.as_secs_f64());
        let rows: Vec<Row> = self.members.iter().filter_map(Row::of).collect();
        let layout = Layout {
            format: Format::Table,
            header: true,
        };
        let table = render(layout, &ROWS, &rows, |row| row.node.clone(), &())?;
        let text = format!(
            "every node sees {} members and is connected to {}, {} after the start\n{table}",
            self.total,
            self.total - 1,
            duration(took)
        );
        self.stage.done(
            "formed",
            text.trim_end(),
            json!({ "formation_seconds": took.as_secs_f64(), "members": rows }),
        )
    }

    /// One request from every running node to every other, one after the other.
    fn exchange_everywhere(&mut self, step: &'static str) -> Result<(), Stop> {
        self.stage
            .heading("requests between every pair, in both directions")?;
        let begun = clock::now();
        let requests = self.exchange_all()?;
        let took = clock::now() - begun;
        let text = format!("{requests} of {requests} answered in {}", duration(took));
        self.stage.done(
            step,
            &text,
            json!({ "requests": requests, "failed_requests": 0 }),
        )
    }

    fn exchange_all(&mut self) -> Result<u64, Stop> {
        let pairs: Vec<(App, NodeId)> = self
            .running()
            .flat_map(|from| {
                let others = self.running().filter(|to| to.node.id() != from.node.id());
                others.map(|to| (from.echo.clone(), to.node.id().clone()))
            })
            .collect();
        for (from, to) in &pairs {
            self.interrupted()?;
            self.summary.requests += 1;
            if let Err(why) = ask(from, to) {
                self.summary.failed_requests += 1;
                return Err(Stop::Failed(format!("request to {to}: {why}")));
            }
        }
        Ok(pairs.len() as u64)
    }

    /// Ends the last node without a word and waits until every other one knows.
    fn lose_one(&mut self) -> Result<(), Stop> {
        let Some(victim) = self.members.last_mut() else {
            return Ok(());
        };
        let id = victim.id.clone();
        self.stage
            .heading(&format!("killing {id} without a leave"))?;
        let survivors: Vec<(NodeId, Node, Events)> = self
            .running()
            .filter(|running| *running.node.id() != id)
            .map(|running| {
                (
                    running.node.id().clone(),
                    running.node.clone(),
                    running.node.events(),
                )
            })
            .collect();
        let Some(running) = self
            .members
            .last_mut()
            .and_then(|victim| victim.running.take())
        else {
            return Err(Stop::Failed(format!("{id} does not run")));
        };
        let killed = clock::now();
        running.node.abort();
        drop(running);
        self.stage.event(
            "killed",
            &format!("{id} is gone"),
            json!({ "node": id.as_str() }),
        )?;
        self.await_death(&id, &survivors, killed)?;
        let took = clock::now() - killed;
        self.summary.detection_seconds = Some(took.as_secs_f64());
        let requests = self.exchange_all()?;
        let mut text = format!("dead in the eyes of all others after {}", duration(took));
        if requests > 0 {
            text.push_str(&format!(
                "; among them, {requests} of {requests} requests answered"
            ));
        }
        self.stage.done(
            "dead",
            &text,
            json!({ "node": id.as_str(), "detection_seconds": took.as_secs_f64() }),
        )
    }

    fn await_death(
        &self,
        victim: &NodeId,
        survivors: &[(NodeId, Node, Events)],
        killed: Instant,
    ) -> Result<(), Stop> {
        let deadline = Deadline::after(DETECTION);
        let mut select = Select::new();
        for (_, _, events) in survivors {
            select.recv(events.receiver());
        }
        let mut unaware: BTreeSet<usize> = (0..survivors.len()).collect();
        let mut suspected = false;
        while !unaware.is_empty() {
            self.interrupted()?;
            if deadline.is_over() {
                let names: Vec<_> = unaware
                    .iter()
                    .map(|index| survivors[*index].0.as_str())
                    .collect();
                return Err(Stop::Failed(format!(
                    "{victim} is not dead for {} after {}",
                    names.join(", "),
                    duration(DETECTION)
                )));
            }
            let Ok(operation) = select.select_timeout(SLICE) else {
                // A subscriber that lagged has missed it; the member table has not.
                unaware.retain(|index| !sees_dead(&survivors[*index].1, victim));
                continue;
            };
            let index = operation.index();
            let (witness, _, events) = &survivors[index];
            let Ok(event) = operation.recv(events.receiver()) else {
                return Err(Stop::Failed(format!("{witness} ended by itself")));
            };
            match event.kind {
                EventKind::MemberSuspect { node, reason } if node == *victim && !suspected => {
                    suspected = true;
                    let after = clock::now() - killed;
                    let text = format!("{witness} suspects it after {}", duration(after));
                    let detail = json!({
                        "node": victim.as_str(), "by": witness.as_str(), "reason": reason,
                        "after_seconds": after.as_secs_f64(),
                    });
                    self.stage.event("suspected", &text, detail)?;
                }
                EventKind::MemberDead { node, .. } if node == *victim => {
                    unaware.remove(&index);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Starts the lost node again, with its identity and on its ports.
    fn get_it_back(&mut self) -> Result<(), Stop> {
        let seeds: Vec<String> = self
            .running()
            .take(2)
            .map(|running| running.node.quic_addr().to_string())
            .collect();
        let Some(victim) = self.members.last_mut() else {
            return Ok(());
        };
        let id = victim.id.clone();
        self.stage
            .heading(&format!("starting {id} again, on the same ports"))?;
        let begun = clock::now();
        victim.start(seeds)?;
        self.stage.event(
            "restarted",
            &format!("{id} runs"),
            json!({ "node": id.as_str() }),
        )?;
        self.hold_full_mesh(Deadline::after(FORMING))?;
        let took = clock::now() - begun;
        self.summary.rejoin_seconds = Some(took.as_secs_f64());
        let text = format!("connected everywhere again after {}", duration(took));
        self.stage.done(
            "rejoined",
            &text,
            json!({ "node": id.as_str(), "rejoin_seconds": took.as_secs_f64() }),
        )
    }

    /// Requests in rounds until the time is over, or until somebody interrupts it.
    fn serve(&mut self, until: Option<Deadline>) -> Result<(), Stop> {
        let page = self.running().find_map(|running| running.node.http_addr());
        if let Some(server) = &self.server {
            self.stage.look_around(server.path(), page)?;
        }
        let begun = clock::now();
        let (mut round, mut requests, mut first_failure) = (0, 0, None);
        while until.is_none_or(|until| !until.is_over()) {
            let pause = until.map_or(ROUND, |until| ROUND.min(until.remaining()));
            if self.signals.stop.recv_timeout(pause).is_ok() {
                break;
            }
            for (from, to) in pairing(self.total, round) {
                let (Some(from), Some(to)) = (&self.members[from].running, self.members.get(to))
                else {
                    continue;
                };
                requests += 1;
                self.summary.requests += 1;
                if let Err(why) = ask(&from.echo, &to.id) {
                    self.summary.failed_requests += 1;
                    first_failure.get_or_insert_with(|| format!("request to {}: {why}", to.id));
                }
            }
            round += 1;
            self.stage.progress(&format!(
                "serving for {}: {requests} requests, {} failed",
                duration(clock::now() - begun),
                self.summary.failed_requests
            ))?;
        }
        self.stage.end_progress()?;
        let text = format!(
            "served {requests} requests in {}",
            duration(clock::now() - begun)
        );
        let detail =
            json!({ "requests": requests, "failed_requests": self.summary.failed_requests });
        self.stage.event("served", &text, detail)?;
        first_failure.map_or(Ok(()), |why| Err(Stop::Failed(why)))
    }

    /// Every node leaves and ends, all at once.
    fn shut_down(&mut self) -> Result<(), Stop> {
        let nodes: Vec<Running> = self
            .members
            .iter_mut()
            .filter_map(|member| member.running.take())
            .collect();
        let stuck: Vec<String> = thread::scope(|scope| {
            let ending: Vec<_> = nodes
                .iter()
                .map(|running| scope.spawn(|| running.node.shutdown(SHUTDOWN).threads_stuck))
                .collect();
            let panicked = |_| vec!["a panicking shutdown".to_owned()];
            ending
                .into_iter()
                .flat_map(|end| end.join().unwrap_or_else(panicked))
                .collect()
        });
        if let Some(server) = self.server.take() {
            server.stop();
        }
        if stuck.is_empty() {
            return Ok(());
        }
        Err(Stop::Failed(format!(
            "threads did not end: {}",
            stuck.join(", ")
        )))
    }

    fn finish(mut self, outcome: Result<(), Stop>) -> Result<Exit, Failure> {
        let (result, why, exit) = match outcome {
            Ok(()) => ("pass", None, Exit::Done),
            Err(Stop::Failed(why)) => ("fail", Some(why), Exit::Failed),
            Err(Stop::Interrupted(signal)) => {
                ("fail", Some("interrupted".to_owned()), Exit::Signal(signal))
            }
            Err(Stop::Output(failure)) => return Err(failure),
        };
        self.summary = Summary {
            schema: 1,
            result,
            why,
            ..self.summary
        };
        self.stage.close(&self.summary)?;
        Ok(exit)
    }

    fn running(&self) -> impl Iterator<Item = &Running> {
        self.members
            .iter()
            .filter_map(|member| member.running.as_ref())
    }

    fn interrupted(&self) -> Result<(), Stop> {
        self.signals
            .stop
            .try_recv()
            .map_or(Ok(()), |signal| Err(Stop::Interrupted(signal)))
    }

    /// Waits until every node sees every other and is connected to it.
    fn hold_full_mesh(&self, deadline: Deadline) -> Result<(), Stop> {
        for running in self.running() {
            self.hold(&running.node, Ready::Members(self.total), deadline)?;
            self.hold(&running.node, Ready::Peers(self.total - 1), deadline)?;
        }
        Ok(())
    }

    fn hold(&self, node: &Node, ready: Ready, deadline: Deadline) -> Result<(), Stop> {
        loop {
            self.interrupted()?;
            match node.wait_ready(ready, SLICE.min(deadline.remaining())) {
                Ok(()) => return Ok(()),
                Err(NotReady::Timeout { missing, .. }) if deadline.is_over() => {
                    let missing = missing.join("; ");
                    return Err(Stop::Failed(format!(
                        "{} has not got there: {missing}",
                        node.id()
                    )));
                }
                Err(NotReady::Timeout { .. }) => {}
                Err(error) => return Err(Stop::Failed(format!("{}: {error}", node.id()))),
            }
        }
    }
}

impl Member {
    /// Starts the node where it was before, or anywhere the first time.
    fn start(&mut self, seeds: Vec<String>) -> Result<(), Stop> {
        let failed =
            |error: StartError| Stop::Failed(format!("{} did not start: {error}", self.id));
        let mut builder = Node::builder(self.identity.clone())
            .bind(self.quic)
            .gossip_bind(self.gossip)
            .profile(Profile::Local);
        if seeds.is_empty() {
            // The first node, which stays: its page shows the others come and go.
            builder = builder.http(SocketAddr::from(([127, 0, 0, 1], 0)));
        }
        let node = builder.seeds(seeds).start().map_err(failed)?;
        let echo = register_echo(&node)?;
        (self.quic, self.gossip) = (node.quic_addr(), node.gossip_addr());
        self.running = Some(Running { node, echo });
        Ok(())
    }
}

/// One request; the answer must be the question.
fn ask(from: &App, to: &NodeId) -> Result<(), String> {
    let answer = from
        .request(to, PAYLOAD, REQUEST)
        .map_err(|error| error.to_string())?;
    if answer == PAYLOAD {
        Ok(())
    } else {
        Err("the answer is not what was asked".to_owned())
    }
}

fn sees_dead(node: &Node, victim: &NodeId) -> bool {
    node.members()
        .iter()
        .any(|member| member.node == *victim && member.status == MemberStatus::Dead)
}

/// Who asks whom in a round: each node one other, and after `total - 1` rounds every other.
fn pairing(total: usize, round: usize) -> impl Iterator<Item = (usize, usize)> {
    let distance = 1 + round % (total - 1);
    (0..total).map(move |from| (from, (from + distance) % total))
}

/// A node as the table shows it.
#[derive(Debug, Serialize)]
struct Row {
    node: String,
    quic_addr: String,
    gossip_addr: String,
    alive: usize,
    dialed: usize,
    accepted: usize,
}

const ROWS: [Column<Row>; 6] = [
    Column::text("NODE", "node", |row| row.node.clone()),
    Column::text("QUIC", "quic_addr", |row| row.quic_addr.clone()),
    Column::text("GOSSIP", "gossip_addr", |row| row.gossip_addr.clone()),
    Column::number(
        "ALIVE",
        "alive",
        |row| row.alive.to_string(),
        |row| row.alive.to_string(),
    ),
    Column::number(
        "DIALED",
        "dialed",
        |row| row.dialed.to_string(),
        |row| row.dialed.to_string(),
    ),
    Column::number(
        "ACCEPTED",
        "accepted",
        |row| row.accepted.to_string(),
        |row| row.accepted.to_string(),
    ),
];

impl Row {
    fn of(member: &Member) -> Option<Self> {
        let node = &member.running.as_ref()?.node;
        let peers = node.peers();
        let by = |side| peers.iter().filter(|peer| peer.side == side).count();
        Some(Self {
            node: member.id.to_string(),
            quic_addr: member.quic.to_string(),
            gossip_addr: member.gossip.to_string(),
            alive: node.status().members.alive,
            dialed: by(Side::Dialed),
            accepted: by(Side::Accepted),
        })
    }
}

/// What the demo shows, as text or as JSON.
struct Stage {
    format: DemoFormat,
    paint: Paint,
    begun: Instant,
    step: usize,
}

/// One object of `-o json`.
#[derive(Debug, Serialize)]
struct StepLine<'a> {
    schema: u32,
    step: &'a str,
    at_seconds: f64,
    #[serde(flatten)]
    detail: Value,
}

impl Stage {
    fn open(&self, total: usize) -> Result<(), Stop> {
        let version = env!("CARGO_PKG_VERSION");
        self.text(&format!(
            "nodosum {version}: {total} nodes in this process, on loopback\n"
        ))
    }

    /// Opens a step. What it takes is shown when it is done, so that a person sees what is waited
    /// for.
    fn heading(&mut self, what: &str) -> Result<(), Stop> {
        self.step += 1;
        let number = format!("{}/{STEPS}", self.step);
        self.text(&format!(
            "\n{} {}\n",
            self.paint.dim(&number),
            self.paint.bold(what)
        ))
    }

    /// Something worth telling within a step.
    fn event(&self, step: &str, text: &str, detail: Value) -> Result<(), Stop> {
        let at = clock::now() - self.begun;
        match self.format {
            DemoFormat::Json => {
                let line = StepLine {
                    schema: 1,
                    step,
                    at_seconds: at.as_secs_f64(),
                    detail,
                };
                print(&json_line(&line)?)?;
            }
            DemoFormat::Text => {
                let mut lines = text.lines();
                let first = lines.next().unwrap_or_default();
                let at = self.paint.dim(&format!("{:>8}", duration(at)));
                let rest: String = lines.map(|line| format!("          {line}\n")).collect();
                print(&format!("{at}  {first}\n{rest}"))?;
            }
        }
        Ok(())
    }

    /// A step is done.
    fn done(&self, step: &str, text: &str, detail: Value) -> Result<(), Stop> {
        let mark = self.paint.green("ok");
        self.event(step, &format!("{mark} {text}"), detail)
    }

    fn look_around(&self, socket: &Path, page: Option<SocketAddr>) -> Result<(), Stop> {
        let command = format!("nodosum members --admin {}", socket.display());
        self.text(&format!(
            "\nserving; look around with: {}\n",
            self.paint.bold(&command)
        ))?;
        if let Some(page) = page {
            let page = format!("http://{page}/debug/quic");
            self.text(&format!("and with a browser: {}\n", self.paint.bold(&page)))?;
        }
        if is_terminal() {
            self.text("Ctrl-C ends the demo\n")
        } else {
            Ok(())
        }
    }

    /// A line that is drawn over itself, on a terminal only.
    fn progress(&self, text: &str) -> Result<(), Stop> {
        if is_terminal() {
            self.text(&format!("\r\x1b[K{text}"))
        } else {
            Ok(())
        }
    }

    fn end_progress(&self) -> Result<(), Stop> {
        if is_terminal() {
            self.text("\r\x1b[K")
        } else {
            Ok(())
        }
    }

    fn kept(&self, dir: &Path) -> Result<(), Failure> {
        match self.format {
            DemoFormat::Json => print(&json_line(
                &json!({ "schema": 1, "step": "kept", "dir": dir.display().to_string() }),
            )?),
            DemoFormat::Text => print(&format!("\nkept {}\n", dir.display())),
        }
    }

    fn close(&self, summary: &Summary) -> Result<(), Failure> {
        match self.format {
            DemoFormat::Json => print(&json_line(summary)?),
            DemoFormat::Text => print(&self.verdict(summary)),
        }
    }

    fn verdict(&self, summary: &Summary) -> String {
        if let Some(why) = &summary.why {
            return format!("\n{}: {}\n", self.paint.red("FAIL"), clean(why));
        }
        format!(
            "\n{nodes} nodes: ready after {ready}, formed after {formed}, a death noticed after \
             {dead}, rejoined after {back}, {requests} requests, {failed} failed\n{pass}\n",
            nodes = summary.nodes,
            ready = seconds(summary.ready_seconds),
            formed = seconds(summary.formation_seconds),
            dead = seconds(summary.detection_seconds),
            back = seconds(summary.rejoin_seconds),
            requests = summary.requests,
            failed = summary.failed_requests,
            pass = self.paint.green("PASS"),
        )
    }

    fn text(&self, text: &str) -> Result<(), Stop> {
        match self.format {
            DemoFormat::Json => Ok(()),
            DemoFormat::Text => Ok(print(text)?),
        }
    }
}

/// The directory of the demo's certificates and ports; removed at the end unless it is kept.
struct Dir {
    path: PathBuf,
    keep: bool,
}

impl Dir {
    fn make(keep: bool) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("nodosum-demo-{}", std::process::id()));
        // Not recursive: a directory of that name that exists already may be somebody else's.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| {
                Failure::configuration(format!("cannot make {}: {error}", path.display()))
            })?;
        Ok(Self { path, keep })
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_pair_every_node_with_every_other() {
        for total in 2..6 {
            let rounds = total - 1;
            let pairs: BTreeSet<_> = (0..rounds)
                .flat_map(|round| pairing(total, round))
                .collect();
            assert_eq!(pairs.len(), total * (total - 1));
            assert!(pairs.iter().all(|(from, to)| from != to));
        }
    }

    #[test]
    fn the_last_line_has_the_published_keys() {
        let summary = Summary {
            schema: 1,
            result: "pass",
            why: None,
            nodes: 3,
            ready_seconds: Some(0.5),
            formation_seconds: Some(1.0),
            detection_seconds: Some(4.0),
            rejoin_seconds: Some(0.25),
            requests: 12,
            failed_requests: 0,
        };
        assert_eq!(
            serde_json::to_string(&summary).unwrap(),
            "{\"schema\":1,\"result\":\"pass\",\"nodes\":3,\"ready_seconds\":0.5,\
             \"formation_seconds\":1.0,\"detection_seconds\":4.0,\"rejoin_seconds\":0.25,\
             \"requests\":12,\"failed_requests\":0}"
        );
        let stage = Stage {
            format: DemoFormat::Text,
            paint: Paint::none(),
            begun: clock::now(),
            step: 0,
        };
        assert!(
            stage
                .verdict(&summary)
                .ends_with("12 requests, 0 failed\nPASS\n")
        );
        let failed = Summary {
            why: Some("n2\x1b gone".to_owned()),
            ..summary
        };
        assert_eq!(stage.verdict(&failed), "\nFAIL: n2\\u{1b} gone\n");
    }
}
