//! `nodosum run`: a node in the foreground.
//!
//! Start: the settings, the identity, the addresses, the place of the admin socket, the node, its
//! built-in application, the ports file, in this order; nothing that is wrong with the first four is
//! ever seen by another node, and whoever finds the ports file finds everything ready. Then the
//! main thread waits for a signal, or for the node to end by itself, which is a failure, and does
//! what [`upkeep`](crate::upkeep) has to do. End: the node leaves and shuts down, then the admin server.

use std::{
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use crossbeam_channel::{at, select};
use nodosum::{App, Builder, Events, Identity, Node, StartError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::{
    admin::{
        history::History,
        protocol::StatusView,
        server::Server,
        socket::{Bound, bind, place},
    },
    args::{Profile, Run, repeated_tag},
    clock::Wall,
    exit::{Exit, Failure},
    logging,
    notify::Notify,
    seeds::Watched,
    settings::{self, Settings},
    signals::{Ask, Signals},
    status,
    upkeep::Upkeep,
};

/// The application that every node answers.
pub(crate) const ECHO: &str = "echo";

/// The query by which [`doctor`](crate::doctor) compares clocks: answered with nanoseconds since 1970.
pub(crate) const CLOCK: &str = "clock";

/// How many threads answer `echo`: it copies bytes, and a second one keeps large requests from
/// delaying small ones.
const ECHO_WORKERS: usize = 2;

pub(crate) fn run() -> Result<Exit, Failure> {
    let settings = settings::load(&["run"])?;
    let args = &settings.run;
    logging::init(args.log_format, &log_filter(&settings));
    let signals = Signals::take_over()?;
    raise_descriptor_limit();
    judge(args)?;
    let identity = load_identity(args.tls_dir.as_deref())?;
    let watched = args.seeds_file.as_deref().map(Watched::open).transpose();
    let watched = watched.map_err(Failure::configuration)?;
    let listed = watched.as_ref().map(Watched::seeds).unwrap_or_default();
    let builder = configure(Node::builder(identity.clone()), args, listed)?;
    // Taken before the node starts: another node at that socket is most likely this one, and two
    // with one identity would fight over their place in the cluster.
    let socket = bind(&place(args.admin.path.as_deref(), identity.node())?)?;
    settings::publish(&settings);
    let events = builder.events();
    let node = builder.start().map_err(start_failure)?;
    let leave_timeout = args.leave_timeout;
    let (history, server) = match serve(&node, events, args, socket) {
        Ok(served) => served,
        Err(failure) => {
            node.shutdown(leave_timeout);
            return Err(failure);
        }
    };
    let mut upkeep = Upkeep::new(settings, watched, Notify::from_env());
    upkeep.notify().ready();
    let exit = wait_for_the_end(&node, &signals, &history, &mut upkeep);
    upkeep.notify().stopping();
    if exit == Exit::Done {
        let report = node.shutdown(leave_timeout);
        if !report.left {
            log::warn!(target: "node", node:% = node.id(); "left without a confirmation");
        }
        if !report.threads_stuck.is_empty() {
            let stuck = report.threads_stuck.join(", ");
            log::warn!(target: "node", threads = stuck.as_str(); "threads did not end in time");
        }
    }
    server.stop();
    Ok(exit)
}

/// What is logged: `RUST_LOG` is a variable like others, so that it gives way to a flag or
/// `NODOSUM_LOG` and overrides the file.
pub(crate) fn log_filter(settings: &Settings) -> String {
    let row = settings.rows.iter().find(|row| row.key == "log");
    let is_given = row.is_some_and(|row| matches!(row.origin.as_str(), "--log" | "NODOSUM_LOG"));
    let from_env = logging::from_env().filter(|_| !is_given);
    from_env.unwrap_or_else(|| settings.run.log.clone())
}

/// Everything around a started node. When it fails, the node is still running.
fn serve(
    node: &Node,
    events: Events,
    args: &Run,
    socket: Bound,
) -> Result<(Arc<History>, Server), Failure> {
    let history = History::record(events)?;
    let echo = register_echo(node)?;
    let server = Server::start(node.clone(), Arc::clone(&history), [echo], socket)?;
    if let Some(path) = &args.ports_file
        && let Err(failure) = write_ports_file(path, node, Some(server.path()))
    {
        server.stop();
        return Err(failure);
    }
    log::info!(
        target: "node",
        node:% = node.id(),
        cluster:% = node.cluster(),
        quic:% = node.quic_addr(),
        gossip:% = node.gossip_addr(),
        admin:% = server.path().display();
        "running"
    );
    Ok((history, server))
}

/// Waits for a signal to stop, or for the node to end. What else is asked for is answered here.
fn wait_for_the_end(
    node: &Node,
    signals: &Signals,
    history: &History,
    upkeep: &mut Upkeep,
) -> Exit {
    loop {
        upkeep.turn(node);
        select! {
            recv(signals.stop) -> number => {
                log::info!(target: "node", signal = number.unwrap_or_default(); "stopping");
                return Exit::Done;
            }
            recv(signals.asks) -> ask => match ask {
                Ok(Ask::Reload) => upkeep.reload(node),
                Ok(Ask::Report) => status::log(&StatusView::from(node.status())),
                Err(_) => return Exit::Failed,
            },
            recv(at(upkeep.next_turn())) -> _ => {}
            recv(history.ended()) -> _ => {
                log::error!(target: "node", node:% = node.id(); "the node ended by itself");
                return Exit::Failed;
            }
        }
    }
}

/// A node uses a few descriptors for each peer, and the usual soft limit is 1,024.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::debug!(target: "node", error:% = error; "cannot raise the descriptor limit");
        }
    }
}

pub(crate) fn load_identity(dir: Option<&Path>) -> Result<Identity, Failure> {
    let make_one = "make one with 'nodosum tls ca create' and 'nodosum tls cert create'";
    let Some(dir) = dir else {
        return Err(
            Failure::configuration("a node needs a certificate: --tls-dir DIR").hint(make_one),
        );
    };
    Identity::from_dir(dir).map_err(|error| {
        let failure = Failure::configuration(error.to_string());
        match error {
            nodosum::IdentityError::Read { .. } => failure.hint(make_one),
            _ => failure,
        }
    })
}

/// What makes no sense together, though each setting does.
pub(crate) fn judge(args: &Run) -> Result<(), Failure> {
    gossip_advertise(args)?;
    match repeated_tag(&args.tags) {
        Some(key) => Err(Failure::usage(format!("tag {key:?} is given twice"))),
        None => Ok(()),
    }
}

/// Takes the settings over, after judging what the library cannot: addresses that nobody can reach.
pub(crate) fn configure(
    builder: Builder,
    args: &Run,
    listed: &[String],
) -> Result<Builder, Failure> {
    let gossip_advertise = gossip_advertise(args)?;
    let mut builder = builder
        .bind(args.bind)
        .remember_for(args.remember_for)
        .profile(match args.profile {
            Profile::Lan => nodosum::Profile::Lan,
            Profile::Wan => nodosum::Profile::Wan,
            Profile::Local => nodosum::Profile::Local,
        });
    if args.workers > 0 {
        builder = builder.workers(args.workers.into());
    }
    if let Some(addr) = args.http {
        builder = builder.http(addr);
    }
    for name in &args.http_names {
        builder = builder.http_name(name);
    }
    if let Some(dir) = &args.state_dir {
        builder = builder.state_dir(dir);
    }
    if let Some(addr) = args.gossip_bind {
        builder = builder.gossip_bind(addr);
    }
    if let Some(addr) = args.advertise {
        builder = builder.advertise(addr);
    }
    if let Some(addr) = gossip_advertise {
        builder = builder.gossip_advertise(addr);
    }
    if let Some(node) = &args.node {
        builder = builder.expect_node(node.to_string());
    }
    if let Some(cluster) = &args.cluster {
        builder = builder.expect_cluster(cluster.to_string());
    }
    for (key, value) in &args.tags {
        builder = builder.tag(key, value);
    }
    Ok(builder.seeds(args.seeds.iter().chain(listed).cloned()))
}

/// Where others reach the gossip socket, when it is not what the socket is bound to.
///
/// Every member tells the others its addresses, so that an unspecified one must be replaced: by
/// what was given, or by the IP of --advertise and the known port.
fn gossip_advertise(args: &Run) -> Result<Option<SocketAddr>, Failure> {
    if args.bind.ip().is_unspecified() && args.advertise.is_none() {
        return Err(Failure::configuration(format!(
            "other nodes cannot reach this one at {}",
            args.bind
        ))
        .hint("add --advertise IP:PORT, or bind to one address with --bind IP:PORT"));
    }
    if let Some(addr) = [args.advertise, args.gossip_advertise]
        .into_iter()
        .flatten()
        .find(|addr| addr.ip().is_unspecified() || addr.port() == 0)
    {
        return Err(Failure::configuration(format!(
            "{addr} is not an address to advertise"
        )));
    }
    if args.gossip_advertise.is_some() {
        return Ok(args.gossip_advertise);
    }
    let next = |port: u16| {
        if port == 0 {
            Some(0)
        } else {
            port.checked_add(1)
        }
    };
    let bound = match args.gossip_bind {
        Some(addr) => Some(addr),
        None => next(args.bind.port()).map(|port| SocketAddr::new(args.bind.ip(), port)),
    };
    let Some(bound) = bound else {
        return Err(
            Failure::configuration("there is no port after 65535 for gossip")
                .hint("add --gossip-bind IP:PORT"),
        );
    };
    if !bound.ip().is_unspecified() {
        return Ok(None);
    }
    match args.advertise {
        Some(advertise) if bound.port() != 0 => {
            Ok(Some(SocketAddr::new(advertise.ip(), bound.port())))
        }
        Some(_) | None => Err(Failure::configuration(format!(
            "other nodes cannot reach this one's gossip at {bound}"
        ))
        .hint("add --gossip-advertise IP:PORT, or bind to one address with --gossip-bind IP:PORT")),
    }
}

pub(crate) fn start_failure(error: StartError) -> Failure {
    let message = error.to_string();
    match error {
        StartError::Identity(_)
        | StartError::Config(_)
        | StartError::Tls(_)
        | StartError::StateDir { .. } => Failure::configuration(message),
        StartError::Bind { .. } => {
            Failure::failed(message).hint("is another node running? choose another --bind IP:PORT")
        }
        // The enum is open: whatever comes, the start failed.
        _ => Failure::failed(message),
    }
}

/// Requests to `echo`, and queries of that name, come back unchanged; messages to it are taken and dropped, which the log
/// shows at DEBUG.
pub(crate) fn register_echo(node: &Node) -> Result<App, Failure> {
    let failed = |error: nodosum::RegisterError| Failure::failed(format!("{ECHO}: {error}"));
    let app = node.register(ECHO).map_err(failed)?;
    app.on_request(ECHO_WORKERS, |request| Ok(request.payload.clone()))
        .map_err(failed)?;
    app.on_message(1, |message| {
        log::debug!(
            target: "node",
            app = ECHO, peer:% = message.from, bytes = message.payload.len();
            "message received"
        );
    })
    .map_err(failed)?;
    node.on_query(ECHO, |query| Some(query.payload.clone()))
        .map_err(failed)?;
    node.on_query(CLOCK, |_| {
        Some(Wall::now().nanos().to_string().into_bytes())
    })
    .map_err(failed)?;
    Ok(app)
}

/// What `--ports-file` says.
#[derive(Debug, Serialize)]
struct Ports<'a> {
    schema: u32,
    node: &'a str,
    pid: u32,
    quic: String,
    gossip: String,
    http: Option<String>,
    admin: Option<String>,
}

pub(crate) fn write_ports_file(
    path: &Path,
    node: &Node,
    admin: Option<&Path>,
) -> Result<(), Failure> {
    let ports = Ports {
        schema: 1,
        node: node.id().as_str(),
        pid: std::process::id(),
        quic: node.quic_addr().to_string(),
        gossip: node.gossip_addr().to_string(),
        http: node.http_addr().map(|addr| addr.to_string()),
        admin: admin.map(|admin| admin.display().to_string()),
    };
    let json = crate::output::json_line(&ports)?;
    write_atomically(path, json.as_bytes()).map_err(|error| {
        Failure::configuration(format!(
            "cannot write the ports file {}: {error}",
            path.display()
        ))
    })
}

/// Readers see the old file or the new one, never a part of it.
fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path
        .file_name()
        .ok_or(std::io::ErrorKind::InvalidInput)?
        .to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary: PathBuf = path.with_file_name(name);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args;

    fn judged(flags: &[&str]) -> Result<Option<SocketAddr>, Exit> {
        let line = ["nodosum", "run"].iter().chain(flags);
        let args::Command::Run(args) = args::Cli::parse_from(line).command.unwrap() else {
            panic!("not run");
        };
        gossip_advertise(&args).map_err(|failure| failure.exit)
    }

    #[test]
    fn an_address_that_nobody_can_reach_is_never_advertised() {
        let refused = Err(Exit::Configuration);
        assert_eq!(judged(&[]), Ok(None));
        assert_eq!(judged(&["--bind", "0.0.0.0:7946"]), refused);
        assert_eq!(judged(&["--bind", "[::]:7946"]), refused);
        assert_eq!(
            judged(&["--bind", "0.0.0.0:7946", "--advertise", "192.0.2.1:80"]),
            Ok(Some("192.0.2.1:7947".parse().unwrap()))
        );
        assert_eq!(
            judged(&["--bind", "0.0.0.0:0", "--advertise", "192.0.2.1:80"]),
            refused
        );
        assert_eq!(
            judged(&["--bind", "0.0.0.0:1", "--advertise", "0.0.0.0:80"]),
            refused
        );
        assert_eq!(judged(&["--gossip-bind", "0.0.0.0:5"]), refused);
        assert_eq!(
            judged(&[
                "--gossip-bind",
                "0.0.0.0:0",
                "--gossip-advertise",
                "192.0.2.1:5"
            ]),
            Ok(Some("192.0.2.1:5".parse().unwrap()))
        );
        assert_eq!(judged(&["--bind", "127.0.0.1:65535"]), refused);
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = std::env::temp_dir().join(format!("nd-ports-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("ports.json");
        for text in ["one", "two"] {
            write_atomically(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert!(write_atomically(&dir.join("missing/ports.json"), b"x").is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
