//! The node's end of the admin socket.
//!
//! `nd-admin` accepts; each client gets a thread for its one request. At most [`MAX_CLIENTS`] are
//! served at a time, the next one is told so and goes. A client that does not finish its request,
//! or does not take its answer, within a time-out is dropped. Nothing here can hold up the node:
//! threads only call its public methods, and events come from the history.
//!
//! Stopping: no more clients, those that follow events are told the rest and the end, those that
//! still wait for something after a grace are cut off.

use std::{
    collections::BTreeMap,
    io::{BufReader, Write as _},
    net::Shutdown,
    ops::ControlFlow,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nodosum::{
    Answers, App, CommandError, Delivery, EventError, KeyId, MemberStatus, Node, NodeId,
    QueryFilter, RegisterError, RequestError, SendErrorKind,
};
use parking_lot::{Condvar, Mutex};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::sockopt::socket_peercred,
    process::geteuid,
};

use super::{
    history::{Cursor, History, Next},
    protocol::{
        AnswerView, Command, ConnsView, DeliveryView, Envelope, ExplanationView, FailedView,
        KeysView, LogView, MAX_REQUEST_LINE, MembersView, PayloadView, ReadError, Reply,
        StatusView, TagsView, VERSION, Versioned, read_line, read_payload,
    },
    socket::Bound,
};
use crate::{
    clock::Deadline,
    exit::{Exit, Failure},
    logging, settings,
};

/// How many clients are served at a time. Each costs a thread; people and scripts are few.
const MAX_CLIENTS: usize = 16;

/// How long a client may take for the next piece of its request, or to take a piece of the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for a client that follows events: its reader may be a person who scrolls.
const FOLLOWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a thread that waits for something looks whether its client is still there.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// How often a condition is tried again when no event says that something changed.
const RETRY: Duration = Duration::from_millis(50);

/// The longest time-out that a client may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many application names that only clients have used stay registered: half of what a node may
/// have. The one that was used least lately, and by no command now, makes room.
const MAX_NAMED_APPS: usize = 16;

/// How long clients have to finish when the server stops.
const GRACE: Duration = Duration::from_millis(500);

/// A running admin server.
pub(crate) struct Server {
    shared: Arc<Shared>,
    /// Closing it ends the accepting thread.
    running: UnixStream,
    accepting: JoinHandle<()>,
    path: PathBuf,
}

struct Shared {
    node: Node,
    history: Arc<History>,
    /// Applications of the process itself.
    apps: BTreeMap<String, Arc<App>>,
    /// Those that clients have named, the one used last at the end.
    named_by_clients: Mutex<Vec<Arc<App>>>,
    clients: Mutex<BTreeMap<u64, UnixStream>>,
    gone: Condvar,
}

impl Server {
    /// Serves `node` at a socket. `apps` are those that the process has registered itself.
    pub(crate) fn start(
        node: Node,
        history: Arc<History>,
        apps: impl IntoIterator<Item = App>,
        bound: Bound,
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::failed(format!("cannot start the admin server: {error}"))
        };
        let path = bound.path().to_owned();
        bound.listener.set_nonblocking(true).map_err(failed)?;
        let (running, stopped) = UnixStream::pair().map_err(failed)?;
        let shared = Arc::new(Shared {
            node,
            history,
            apps: apps
                .into_iter()
                .map(|app| (app.name().to_owned(), Arc::new(app)))
                .collect(),
            named_by_clients: Mutex::new(Vec::new()),
            clients: Mutex::new(BTreeMap::new()),
            gone: Condvar::new(),
        });
        let accepted = Arc::clone(&shared);
        let accepting = thread::Builder::new()
            .name("nd-admin".into())
            .spawn(move || accept(&accepted, &bound, &stopped))
            .map_err(failed)?;
        Ok(Self {
            shared,
            running,
            accepting,
            path,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends every client and thread, after the node was shut down. Takes at most a second.
    pub(crate) fn stop(self) {
        drop(self.running);
        // The acceptor never blocks on a client, so that this join is short.
        let _ = self.accepting.join();
        // The last events, such as `leaving`, still reach those who follow.
        let _ = self.shared.history.ended().recv_timeout(GRACE);
        self.shared.history.close();
        let deadline = Deadline::after(GRACE);
        let mut clients = self.shared.clients.lock();
        while !clients.is_empty() && !deadline.is_over() {
            self.shared
                .gone
                .wait_for(&mut clients, deadline.remaining());
        }
        for stream in clients.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The body of `nd-admin`: owns the listener, waits for clients or for the end.
fn accept(shared: &Arc<Shared>, bound: &Bound, stopped: &UnixStream) {
    let mut number = 0;
    loop {
        let mut waiting = [
            PollFd::new(&bound.listener, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!(target: "admin", error:% = error; "admin server gave up");
                return;
            }
        }
        if !waiting[1].revents().is_empty() {
            return;
        }
        match bound.listener.accept() {
            Ok((stream, _)) => {
                number += 1;
                admit(shared, number, stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Most likely out of descriptors; the pause keeps that from becoming a busy loop.
                log::warn!(target: "admin", error:% = error; "cannot accept a client");
                let pause = Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                };
                let _ = poll(&mut [PollFd::new(stopped, PollFlags::IN)], Some(&pause));
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, number: u64, stream: UnixStream) {
    // The mode of the socket keeps others out already; this holds where a file system ignores it.
    let allowed =
        socket_peercred(&stream).is_ok_and(|peer| peer.uid == geteuid() || peer.uid.is_root());
    let kept = stream.try_clone().and_then(|kept| {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        Ok(kept)
    });
    let (true, Ok(kept)) = (allowed, kept) else {
        return;
    };
    {
        let mut clients = shared.clients.lock();
        if clients.len() == MAX_CLIENTS {
            drop(clients);
            // One short line always fits the buffer of a fresh socket.
            let _ = write_reply(
                &stream,
                &Failure::failed(format!(
                    "the node serves {MAX_CLIENTS} admin clients already"
                ))
                .into(),
            );
            return;
        }
        clients.insert(number, kept);
    }
    let served = Arc::clone(shared);
    let spawned = thread::Builder::new()
        .name("nd-admin-client".into())
        .spawn(move || {
            // Also runs when serving panics, so that a slot is never lost.
            let _slot = Slot {
                shared: &served,
                number,
            };
            serve(&served, &stream);
        });
    if let Err(error) = spawned {
        log::warn!(target: "admin", error:% = error; "cannot start a thread for a client");
        shared.clients.lock().remove(&number);
    }
}

struct Slot<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.shared.clients.lock().remove(&self.number);
        self.shared.gone.notify_all();
    }
}

/// The body of a client's thread: one request, its answer, the end.
fn serve(shared: &Shared, stream: &UnixStream) {
    let outcome = match read_request(stream) {
        Ok((command, payload)) => carry_out(shared, stream, command, payload),
        Err(failure) => write_reply(stream, &failure.into()),
    };
    if let Err(error) = outcome {
        log::debug!(target: "admin", error:% = error; "client went away");
    }
}

fn read_request(stream: &UnixStream) -> Result<(Command, Vec<u8>), Failure> {
    let mut reader = BufReader::new(stream);
    let broken = |error: ReadError| Failure::usage(format!("request: {error}"));
    let line = read_line(&mut reader, MAX_REQUEST_LINE).map_err(broken)?;
    let versioned: Versioned =
        serde_json::from_slice(&line).map_err(|error| broken(error.into()))?;
    if versioned.version != VERSION {
        return Err(Failure::failed(format!(
            "the node speaks version {VERSION} of the admin protocol, the command version {}",
            versioned.version
        )));
    }
    let envelope: Envelope = serde_json::from_slice(&line).map_err(|error| broken(error.into()))?;
    let payload = read_payload(&mut reader, envelope.command.payload_bytes())
        .map_err(|error| Failure::usage(format!("payload: {error}")))?;
    Ok((envelope.command, payload))
}

/// Does what was asked. `Err` means that the client is gone.
fn carry_out(
    shared: &Shared,
    stream: &UnixStream,
    command: Command,
    payload: Vec<u8>,
) -> std::io::Result<()> {
    let node = &shared.node;
    let reply = match command {
        Command::Members => Ok(Reply::Members(MembersView::of(
            node.id(),
            node.cluster(),
            node.members(),
        ))),
        Command::Conns => Ok(Reply::Conns(ConnsView::of(node.id(), node.connections()))),
        Command::Status => Ok(Reply::Status(Box::new(StatusView::from(node.status())))),
        Command::Events { follow } => return events(shared, stream, follow),
        Command::Wait {
            members,
            connected,
            ready,
            timeout_seconds,
        } => {
            let asked = Asked {
                members,
                connected,
                ready,
            };
            duration(timeout_seconds).and_then(|timeout| wait(shared, stream, asked, timeout))
        }
        Command::Ping {
            node: peer,
            timeout_seconds,
        } => ping(node, &peer, timeout_seconds),
        Command::Send {
            to,
            app,
            timeout_seconds,
            ..
        } => send(shared, Some(&to), &app, timeout_seconds, &payload),
        Command::Broadcast {
            app,
            timeout_seconds,
            ..
        } => send(shared, None, &app, timeout_seconds, &payload),
        Command::Request {
            to,
            app,
            timeout_seconds,
            ..
        } => match request(shared, &to, &app, timeout_seconds, payload) {
            Ok(answer) => {
                let payload_bytes = answer.len() as u64;
                write_reply(stream, &Reply::Payload { payload_bytes })?;
                return (&*stream).write_all(&answer);
            }
            Err(failure) => Err(failure),
        },
        Command::Join {
            seeds,
            timeout_seconds,
        } => join(node, &seeds, timeout_seconds),
        Command::Leave { timeout_seconds } => leave(node, timeout_seconds),
        Command::ForceLeave { node: dead } => force_leave(node, &dead),
        Command::Explain { node: member } => explain(node, &member),
        Command::Keys => keys(node),
        Command::RotateKey => rotate_key(node),
        Command::RemoveKey { key } => remove_key(node, &key),
        Command::Event { name, .. } => node
            .emit_event(&name, payload)
            .map(|()| Reply::Done)
            .map_err(event_failure),
        Command::Query {
            name,
            nodes,
            tags,
            timeout_seconds,
            ..
        } => match query(node, &name, &nodes, tags, timeout_seconds, payload) {
            Ok((answers, absent)) => return tell_answers(stream, answers, absent),
            Err(failure) => Err(failure),
        },
        Command::Tags { set, delete } => node
            .edit_tags(set, delete.into_iter().collect())
            .map(|tags| {
                Reply::Tags(TagsView {
                    schema: 1,
                    node: node.id().to_string(),
                    tags,
                })
            })
            .map_err(command_failure),
        Command::SetLog {
            filter,
            for_seconds,
        } => set_log(node, filter.as_deref(), for_seconds),
        Command::Log => log_in_force(node),
        Command::Settings => Ok(Reply::Settings {
            settings: settings::in_use(),
        }),
    };
    write_reply(stream, &reply.unwrap_or_else(Reply::from))
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        Self::Error {
            exit: failure.exit,
            message: failure.message,
            hint: failure.hint,
        }
    }
}

fn write_reply(mut stream: &UnixStream, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Whether the client has closed its end, so that nobody waits for the answer any more.
fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().is_empty()
}

fn events(shared: &Shared, stream: &UnixStream, follow: bool) -> std::io::Result<()> {
    if follow {
        stream.set_write_timeout(Some(FOLLOWER_TIMEOUT))?;
    }
    let patience = if follow { LOOK_AROUND } else { Duration::ZERO };
    let mut cursor = Cursor::default();
    loop {
        match shared.history.next(&mut cursor, patience) {
            Next::Event(event) => write_reply(stream, &Reply::Event(event))?,
            Next::Nothing if follow => {
                if is_gone(stream) {
                    return Ok(());
                }
            }
            Next::Nothing | Next::Closed => return write_reply(stream, &Reply::End),
        }
    }
}

/// What `wait` asks for; all of it must hold at once.
#[derive(Debug, Clone, Copy)]
struct Asked {
    members: Option<u32>,
    connected: Option<u32>,
    ready: bool,
}

/// What the node has of it.
#[derive(Debug, Clone, Copy)]
struct Found {
    members: usize,
    connected: usize,
    ready: bool,
}

impl Asked {
    /// One phrase for each thing that does not hold.
    fn missing(self, found: Found) -> Vec<String> {
        let short = |asked: Option<u32>, found: usize, what: &str| {
            let asked = asked?;
            let enough = usize::try_from(asked).is_ok_and(|asked| found >= asked);
            (!enough).then(|| format!("{found} of {asked} {what}"))
        };
        let ready = (self.ready && !found.ready).then(|| "not ready".to_owned());
        [
            short(self.members, found.members, "members alive"),
            short(self.connected, found.connected, "peers connected"),
            ready,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn wait(
    shared: &Shared,
    stream: &UnixStream,
    asked: Asked,
    timeout: Duration,
) -> Result<Reply, Failure> {
    let deadline = Deadline::after(timeout);
    let mut cursor = shared.history.end();
    loop {
        let status = shared.node.status();
        let found = Found {
            members: status.members.alive,
            connected: shared.node.peers().len(),
            ready: status.ready,
        };
        let missing = asked.missing(found);
        if missing.is_empty() {
            return Ok(Reply::Done);
        }
        if deadline.is_over() {
            let waited = crate::output::duration(timeout);
            return Err(Failure::unmet(format!(
                "not after {waited}: {}",
                missing.join(", ")
            )));
        }
        // An event wakes this up at once; the retry covers what has no event of its own.
        if shared
            .history
            .next(&mut cursor, RETRY.min(deadline.remaining()))
            == Next::Closed
        {
            return Err(Failure::unreachable("the node has ended"));
        }
        if is_gone(stream) {
            return Err(Failure::failed("nobody waits any more"));
        }
    }
}

fn duration(seconds: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| *duration <= MAX_TIMEOUT)
        .ok_or_else(|| Failure::usage(format!("{seconds} is no time-out in seconds")))
}

fn node_id(name: &str) -> Result<NodeId, Failure> {
    NodeId::from_str(name).map_err(|error| Failure::usage(error.to_string()))
}

fn ping(node: &Node, peer: &str, timeout_seconds: f64) -> Result<Reply, Failure> {
    let rtt = node
        .ping(&node_id(peer)?, duration(timeout_seconds)?)
        .map_err(|error| request_failure(node, error))?;
    Ok(Reply::Pong {
        rtt_seconds: rtt.as_secs_f64(),
    })
}

fn request_failure(node: &Node, error: RequestError) -> Failure {
    match error {
        RequestError::TooLarge { .. } => Failure::usage(error.to_string()),
        RequestError::NotConnected(peer) => Failure::failed(absence(node, &peer)),
        // The enum is open: whatever comes, the request failed.
        _ => Failure::failed(error.to_string()),
    }
}

/// Why there is no connection to somebody whom a client has named.
fn absence(node: &Node, peer: &NodeId) -> String {
    if peer == node.id() {
        return format!("{peer} is this node itself; it has connections to others only");
    }
    let members = node.members();
    let Some(member) = members.iter().find(|member| member.node == *peer) else {
        return CommandError::UnknownMember(peer.to_string()).to_string();
    };
    let conns = node.connections();
    let conn = conns.iter().find(|conn| conn.peer.as_ref() == Some(peer));
    let why = conn.and_then(|conn| conn.last_error.as_deref());
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    format!("no connection to {peer}, which is {}{why}", member.status)
}

/// The handle for an application name. Names that this process has not registered itself are
/// registered for sending.
fn app(shared: &Shared, name: &str) -> Result<Arc<App>, Failure> {
    if let Some(app) = shared.apps.get(name) {
        return Ok(Arc::clone(app));
    }
    let mut named = shared.named_by_clients.lock();
    if let Some(place) = named.iter().position(|app| app.name() == name) {
        let app = named.remove(place);
        named.push(Arc::clone(&app));
        return Ok(app);
    }
    let app = shared.node.register(name).map_err(|error| match error {
        RegisterError::Invalid(_) => Failure::usage(error.to_string()),
        _ => Failure::failed(error.to_string()),
    })?;
    if named.len() >= MAX_NAMED_APPS
        && let Some(unused) = named.iter().position(|app| Arc::strong_count(app) == 1)
    {
        named.remove(unused);
    }
    let app = Arc::new(app);
    named.push(Arc::clone(&app));
    Ok(app)
}

/// Sends to the named nodes, or to every connected one, and waits for their acknowledgements.
fn send(
    shared: &Shared,
    to: Option<&[String]>,
    name: &str,
    timeout_seconds: f64,
    payload: &[u8],
) -> Result<Reply, Failure> {
    let timeout = duration(timeout_seconds)?;
    let deadline = Deadline::after(timeout);
    let app = app(shared, name)?;
    let delivery = match to {
        Some(names) => {
            let mut nodes = names
                .iter()
                .map(|name| node_id(name))
                .collect::<Result<Vec<_>, _>>()?;
            nodes.sort();
            nodes.dedup();
            app.send_many(&nodes, payload, timeout)
        }
        None => app.broadcast(payload, timeout),
    };
    Ok(Reply::Delivery(acknowledged(
        &shared.node,
        &delivery,
        |node| app.flush(node, deadline.remaining()),
    )))
}

/// A message that a connection took over counts only when the peer has acknowledged it.
fn acknowledged(
    node: &Node,
    delivery: &Delivery,
    flush: impl Fn(&NodeId) -> Result<(), SendErrorKind>,
) -> DeliveryView {
    let mut view = DeliveryView {
        schema: 1,
        ok: Vec::new(),
        failed: Vec::new(),
    };
    let mut failed = |peer: &NodeId, error: String| {
        view.failed.push(FailedView {
            node: peer.to_string(),
            error,
        });
    };
    for (peer, error) in &delivery.failed {
        let why = match error {
            SendErrorKind::NotConnected(_) => absence(node, peer),
            _ => error.to_string(),
        };
        failed(peer, why);
    }
    for peer in &delivery.ok {
        match flush(peer) {
            Ok(()) => view.ok.push(peer.to_string()),
            Err(error) => failed(peer, format!("sent, but not acknowledged: {error}")),
        }
    }
    view
}

fn request(
    shared: &Shared,
    to: &str,
    name: &str,
    timeout_seconds: f64,
    payload: Vec<u8>,
) -> Result<Vec<u8>, Failure> {
    let (to, timeout) = (node_id(to)?, duration(timeout_seconds)?);
    app(shared, name)?
        .request(&to, payload, timeout)
        .map_err(|error| request_failure(&shared.node, error))
}

fn command_failure(error: CommandError) -> Failure {
    let exit = match error {
        CommandError::UnknownMember(_)
        | CommandError::NotDead { .. }
        | CommandError::UnknownKey(_)
        | CommandError::KeyInUse(_) => Exit::Unmet,
        CommandError::InvalidSeed(_) | CommandError::TagsTooLarge(_) => Exit::Usage,
        // The enum is open: whatever comes, the command failed.
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

fn event_failure(error: EventError) -> Failure {
    let exit = match error {
        EventError::InvalidName(_)
        | EventError::TooLarge { .. }
        | EventError::FilterTooLarge { .. }
        | EventError::InvalidTimeout(_) => Exit::Usage,
        // The enum is open: whatever comes, nothing was sent.
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

fn query(
    node: &Node,
    name: &str,
    nodes: &[String],
    tags: BTreeMap<String, String>,
    timeout_seconds: f64,
    payload: Vec<u8>,
) -> Result<(Answers, Vec<String>), Failure> {
    let timeout = duration(timeout_seconds)?;
    let mut filter = QueryFilter::all();
    // Named, and not there to hear the question.
    let mut absent = Vec::new();
    let members = if nodes.is_empty() {
        Vec::new()
    } else {
        node.members()
    };
    for name in nodes {
        let named = node_id(name)?;
        let Some(member) = members.iter().find(|member| member.node == named) else {
            return Err(command_failure(CommandError::UnknownMember(name.clone())));
        };
        if matches!(member.status, MemberStatus::Dead | MemberStatus::Left) {
            absent.push(name.clone());
        }
        filter = filter.node(named);
    }
    for (key, value) in tags {
        filter = filter.tag(key, value);
    }
    let answers = node
        .query(name, payload, filter, timeout)
        .map_err(event_failure)?;
    Ok((answers, absent))
}

/// Tells the answers as they come. A client that goes away ends the query.
fn tell_answers(
    stream: &UnixStream,
    mut answers: Answers,
    absent: Vec<String>,
) -> std::io::Result<()> {
    while let ControlFlow::Continue(came) = answers.next_within(LOOK_AROUND) {
        if is_gone(stream) {
            return Ok(());
        }
        let Some((node, answer)) = came else {
            continue;
        };
        let answer = AnswerView {
            node: node.to_string(),
            answer: PayloadView::of(answer),
        };
        write_reply(stream, &Reply::Answer(answer))?;
    }
    let report = answers.report();
    let refused = report.refused.into_iter().map(|(node, error)| FailedView {
        node: node.to_string(),
        error,
    });
    let reply = Reply::Asked {
        refused: refused.collect(),
        missing: report
            .missing
            .iter()
            .map(ToString::to_string)
            .chain(absent)
            .collect(),
    };
    write_reply(stream, &reply)
}

fn join(node: &Node, seeds: &[String], timeout_seconds: f64) -> Result<Reply, Failure> {
    let answered = node
        .join(seeds, duration(timeout_seconds)?)
        .map_err(command_failure)?;
    Ok(Reply::Joined {
        answered: answered as u64,
    })
}

fn leave(node: &Node, timeout_seconds: f64) -> Result<Reply, Failure> {
    let report = node
        .leave(duration(timeout_seconds)?)
        .map_err(command_failure)?;
    let names = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect();
    Ok(Reply::Left {
        confirmed: names(&report.confirmed),
        unconfirmed: names(&report.unconfirmed),
    })
}

fn force_leave(node: &Node, dead: &str) -> Result<Reply, Failure> {
    node.force_leave(&node_id(dead)?).map_err(command_failure)?;
    Ok(Reply::Done)
}

fn explain(node: &Node, member: &str) -> Result<Reply, Failure> {
    let explanation = node.explain(&node_id(member)?).map_err(command_failure)?;
    let view = ExplanationView::of(node, explanation);
    Ok(Reply::Explanation(Box::new(view)))
}

fn keys(node: &Node) -> Result<Reply, Failure> {
    let keys = node.keys().map_err(command_failure)?;
    Ok(Reply::Keys(KeysView::of(node, keys)))
}

fn rotate_key(node: &Node) -> Result<Reply, Failure> {
    let key = node.rotate_key().map_err(command_failure)?.to_string();
    Ok(Reply::Rotated { key })
}

fn remove_key(node: &Node, key: &str) -> Result<Reply, Failure> {
    let key = KeyId::from_str(key).map_err(|error| Failure::usage(error.to_string()))?;
    node.remove_key(key).map_err(command_failure)?;
    Ok(Reply::Done)
}

fn set_log(node: &Node, filter: Option<&str>, for_seconds: Option<f64>) -> Result<Reply, Failure> {
    match filter {
        Some(filter) => {
            logging::check_filter(filter).map_err(Failure::usage)?;
            let duration = for_seconds.map(duration).transpose()?;
            logging::set_other(filter, duration);
            log::info!(target: "admin", filter, seconds = for_seconds; "log filter set");
        }
        None => {
            logging::reset();
            log::info!(target: "admin", "log filter of the configuration is back");
        }
    }
    log_in_force(node)
}

fn log_in_force(node: &Node) -> Result<Reply, Failure> {
    let in_force = logging::in_force().ok_or_else(|| Failure::failed("this node logs nothing"))?;
    Ok(Reply::Log(LogView {
        schema: 1,
        node: node.id().to_string(),
        filter: in_force.filter,
        configured: in_force.base,
        until: in_force.until,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(request: &[u8]) -> Result<(Command, Vec<u8>), Failure> {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        read_request(&server)
    }

    fn refused(request: &[u8]) -> (Exit, String) {
        let failure = exchange(request).unwrap_err();
        (failure.exit, failure.message)
    }

    #[test]
    fn a_request_and_its_payload_are_read_byte_for_byte() {
        let mut bytes = b"{\"version\":1,\"command\":\"request\",\"to\":\"n2\",\"app\":\"echo\",\
                          \"timeout_seconds\":1,\"payload_bytes\":4}\n"
            .to_vec();
        bytes.extend([0, b'\n', 255, 128]);
        let (command, payload) = exchange(&bytes).unwrap();
        assert!(matches!(command, Command::Request { to, .. } if to == "n2"));
        assert_eq!(payload, [0, b'\n', 255, 128]);
    }

    #[test]
    fn broken_requests_are_refused_with_a_reason() {
        for bytes in [
            &b""[..],
            b"\n",
            b"{}\n",
            b"[1]\n",
            b"{\"version\":1}\n",
            &[0xff; 100],
        ] {
            assert_eq!(refused(bytes).0, Exit::Usage, "{bytes:?}");
        }
        assert_eq!(refused(&[b' '; 70_000]).0, Exit::Usage);
        let (exit, message) = refused(b"{\"version\":2,\"command\":\"dance\"}\n");
        assert_eq!(exit, Exit::Failed);
        assert!(message.contains("version 1"), "{message}");
    }

    #[test]
    fn a_payload_larger_than_a_message_is_refused_before_it_is_read() {
        let request = b"{\"version\":1,\"command\":\"broadcast\",\"app\":\"a\",\
                        \"timeout_seconds\":1,\"payload_bytes\":99999999999}\n";
        assert_eq!(refused(request).0, Exit::Usage);
    }

    #[test]
    fn wait_says_everything_that_is_missing() {
        let asked = Asked {
            members: Some(3),
            connected: Some(2),
            ready: true,
        };
        let found = Found {
            members: 2,
            connected: 2,
            ready: false,
        };
        assert_eq!(asked.missing(found), ["2 of 3 members alive", "not ready"]);
        let found = Found {
            members: 4,
            connected: 2,
            ready: true,
        };
        assert!(asked.missing(found).is_empty());
    }

    #[test]
    fn only_finite_time_outs_of_at_most_a_day_are_taken() {
        assert_eq!(duration(0.25).unwrap(), Duration::from_millis(250));
        for bad in [-1.0, f64::NAN, f64::INFINITY, 1e300, 86_401.0] {
            assert!(duration(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a_client_that_closed_its_end_is_noticed() {
        let (client, server) = UnixStream::pair().unwrap();
        assert!(!is_gone(&server));
        drop(client);
        assert!(is_gone(&server));
    }
}
