//! One connection: what its callers share, and the worker thread that drives it.
//!
//! The lock guards quiche's state, the streams and the waiting requests. Two kinds of thread take
//! it: the worker, to handle what arrived, deadlines and commands, and application threads, to put
//! a message on a stream and its datagrams on the socket. Nobody holds it while user code runs or
//! while waiting on a channel.
//!
//! The worker's turn: read the socket, take commands, let quiche's timers run, advance the
//! handshake, read streams, do what is due, write streams, send; then tell the reactor, and sleep
//! until the socket, the eventfd or the next deadline. After a close it stays a tenth of a second
//! to repeat the closing datagram, which nobody acknowledges, and ends.

#![expect(
    clippy::disallowed_methods,
    reason = "time enters here: quiche's deadlines are real"
)]

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    close::{CloseCode, CloseReason},
    control::{Control, Hello, MAX_CONTROL_BYTES, SyncFrame},
    error::{RequestError, SendErrorKind},
    inbox::{Answer, PendingRequest, Replier, Request},
    node_id::{BootId, ConnectionId, NodeId},
    record::PROTOCOL_VERSIONS,
    stats::{ConnectionInfo, ConnectionState, Side},
    thread::panic_message,
    transport::{
        Command, Context, Datagram, Notice, Sign,
        framing::{self, FramingError, Preamble, ReplyStatus, StreamKind},
        streams::{CONTROL, Incoming, Streams},
        token::ID_BYTES,
    },
    trust,
    waker::{Interest, Waker, sleep},
};

/// Commands that may wait for a worker. Injected datagrams may fill half of the queue and are
/// dropped and counted beyond; a worker that lets the rest fill up is stuck, and its connection is
/// closed rather than left without a command that mattered.
const COMMAND_CAPACITY: usize = 256;
const INJECT_CAPACITY: usize = COMMAND_CAPACITY / 2;

/// Notices a worker keeps while the reactor's queue is full, before it stops reading control and
/// sync streams.
const MAX_KEPT_NOTICES: usize = 64;

/// When a full queue to the reactor is tried again.
const NOTICE_RETRY: Duration = Duration::from_millis(5);

/// Datagrams handled before the rest of the turn has its turn.
const RECEIVE_BUDGET: usize = 64;

/// When a full socket that is shared with the listener is tried again.
const SHARED_RETRY: Duration = Duration::from_millis(2);

/// When the closing datagram is sent again: it is never acknowledged.
const CLOSE_REPEATS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(80)];

/// How long after the host refused the port a peer may take to show that it is there all the same.
const REFUSED_PATIENCE: Duration = Duration::from_secs(1);

/// Health pings without an answer that are worth a line and make the peer doubtful.
const PINGS_MISSED: u64 = 3;

/// Probe time-outs of QUIC in a row, without a packet from the peer, that make it doubtful. One is
/// a lost packet; each further one waits twice as long.
const PROBE_TIMEOUTS: usize = 3;

/// A reactor that turned so recently is alive, so its connections' threads answer pings for it.
const REACTOR_FRESH: Duration = Duration::from_millis(100);

/// Frames of one sync: each member once, and the keyring, with room.
const MAX_SYNC_FRAMES: usize = 20_000;

/// How long a reply may wait for its peer to read.
const REPLY_PATIENCE: Duration = Duration::from_secs(15);

/// How often the figures for onlookers are renewed at most.
const INFO_INTERVAL: Duration = Duration::from_millis(250);

/// The error code of a stream that was reset because the peer has no such application.
const NO_SUCH_APP: u64 = 1;

/// What a connection holds of messages that are not complete, in units of the largest message.
const MAX_PARTIAL_UNITS: usize = 4;

/// Syncs of both directions that may be under way on one connection; more are left out, because
/// each holds a copy of the member table until the peer has read it.
const MAX_SYNCS: usize = 4;

/// Stream bytes read at once.
const PIECE_BYTES: usize = 16 * 1_024;

/// What the socket of a connection is.
#[derive(Debug)]
pub(super) enum Path {
    /// Connected to the peer.
    Own(UdpSocket),
    /// The listener's; datagrams come by injection.
    Shared(Arc<UdpSocket>),
}

impl Path {
    fn send(&self, datagram: &[u8], peer: SocketAddr) -> io::Result<usize> {
        match self {
            Self::Own(socket) => socket.send(datagram),
            Self::Shared(socket) => socket.send_to(datagram, peer),
        }
    }
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// TLS.
    Handshaking,
    /// TLS is done; the peer's HELLO is awaited.
    Hello,
    /// The acceptor has answered with its own HELLO and awaits READY.
    Ready,
    /// Both ends know each other; USE is awaited.
    Up,
    /// Application data flows.
    InUse,
    /// Another connection is used; what is under way is finished.
    Draining,
}

struct State {
    quic: quiche::Connection,
    streams: Streams,
    phase: Phase,
    /// Why it is over. Nothing changes any more once this is set.
    closed: Option<CloseReason>,
    /// What we decided before quiche knew.
    closing: Option<CloseReason>,
    /// A datagram that the socket did not take yet.
    unsent: Vec<u8>,
    buffer: Vec<u8>,
    /// The datagram with our CONNECTION_CLOSE.
    farewell: Vec<u8>,
    /// The deadline the worker sleeps towards; a caller that brings it forward wakes the worker.
    armed: Option<Instant>,
    /// The host refused the port at that time and nothing was heard since.
    refused_at: Option<Instant>,
    requests: BTreeMap<u64, Sender<Result<Vec<u8>, RequestError>>>,
    next_request: u64,
    pings: BTreeMap<u64, (Instant, Option<Sender<Duration>>)>,
    next_ping: u64,
    /// Requests of the peer that are being answered here.
    answering: usize,
    drained: bool,
    peer_drained: bool,
    control_overflow: bool,
    /// A caller's thread panicked inside quiche.
    is_broken: bool,
}

/// One connection, as callers see it.
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) side: Side,
    pub(crate) addr: SocketAddr,
    context: Arc<Context>,
    path: Path,
    waker: Arc<Waker>,
    commands: Sender<Command>,
    peer: OnceLock<NodeId>,
    state: Mutex<State>,
    /// Told whenever a sender, a flusher or a swap may go on.
    changed: Condvar,
    info: Mutex<ConnectionInfo>,
    /// The connection this one replaces: its messages come first.
    replaced: Mutex<Option<Replaced>>,
    /// Messages were never acknowledged when this connection ended. Its successor knows it, too.
    lost: Arc<AtomicBool>,
    /// The worker let its commands pile up.
    is_stuck: AtomicBool,
}

/// A connection that another one replaced. Its worker keeps it while it lives; nobody else does.
#[derive(Clone)]
struct Replaced {
    connection: Weak<Connection>,
    lost: Arc<AtomicBool>,
    /// It has nothing under way any more, so that nobody need wait for it.
    is_settled: bool,
}

/// Why a connection has not taken something over.
pub(crate) enum Untaken<E> {
    /// It is being replaced: the successor takes it.
    Superseded,
    /// For good.
    Failed(E),
}

impl<E> From<E> for Untaken<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}

/// What a worker is started with.
pub(super) struct Start {
    pub(super) id: ConnectionId,
    pub(super) side: Side,
    pub(super) addr: SocketAddr,
    pub(super) path: Path,
    pub(super) quic: quiche::Connection,
    /// The node that must answer, when it is known.
    pub(super) expected: Option<NodeId>,
    /// The first datagram of an accepted connection.
    pub(super) first: Option<Datagram>,
    pub(super) local: SocketAddr,
}

/// Makes a connection and the body of its worker thread.
pub(super) fn new(
    context: Arc<Context>,
    start: Start,
) -> io::Result<(Arc<Connection>, impl FnOnce() + Send + 'static)> {
    let now = Instant::now();
    let (commands, received) = crossbeam_channel::bounded(COMMAND_CAPACITY);
    let connection = Arc::new(Connection {
        id: start.id,
        side: start.side,
        addr: start.addr,
        waker: Arc::new(Waker::new()?),
        path: start.path,
        commands,
        peer: OnceLock::new(),
        state: Mutex::new(State {
            quic: start.quic,
            streams: Streams::new(start.side == Side::Dialed),
            phase: Phase::Handshaking,
            closed: None,
            closing: None,
            unsent: Vec::new(),
            buffer: vec![0; context.config.max_datagram_bytes],
            farewell: Vec::new(),
            armed: None,
            refused_at: None,
            requests: BTreeMap::new(),
            next_request: 1,
            pings: BTreeMap::new(),
            next_ping: 1,
            answering: 0,
            drained: false,
            peer_drained: false,
            control_overflow: false,
            is_broken: false,
        }),
        changed: Condvar::new(),
        info: Mutex::new(ConnectionInfo {
            peer: start.expected.clone(),
            side: Some(start.side),
            ..ConnectionInfo::empty(start.addr, ConnectionState::Handshaking)
        }),
        replaced: Mutex::new(None),
        lost: Arc::default(),
        is_stuck: AtomicBool::new(false),
        context,
    });
    let worker = Worker {
        connection: Arc::clone(&connection),
        commands: received,
        notices: VecDeque::new(),
        local: start.local,
        expected: start.expected,
        first: start.first,
        datagram: vec![0; super::tls::MAX_RECEIVED_DATAGRAM_BYTES + 1],
        piece: Vec::new(),
        deadline: now + connection.context.config.dial_timeout,
        heard_at: now,
        next_ping_at: None,
        up_at: None,
        drain_until: None,
        info_at: now,
        last_ping: None,
        missed_pings: 0,
        silence: Silence::default(),
        greeted: None,
    };
    Ok((connection, move || worker.run()))
}

impl Connection {
    /// The peer, once its certificate has proven who it is.
    pub(crate) fn peer(&self) -> Option<&NodeId> {
        self.peer.get()
    }

    /// Gives the worker a command. `false` when its queue is full.
    pub(crate) fn command(&self, command: Command) -> bool {
        let is_datagram = matches!(command, Command::Inject(_));
        if is_datagram && self.commands.len() >= INJECT_CAPACITY {
            return false;
        }
        match self.commands.try_send(command) {
            Ok(()) => {
                self.waker.wake();
                true
            }
            Err(TrySendError::Full(_)) => {
                self.is_stuck.store(true, Relaxed);
                false
            }
            // The worker is gone; what it was told has no meaning any more.
            Err(TrySendError::Disconnected(_)) => true,
        }
    }

    /// The figures for onlookers, at most a ping interval old.
    pub(crate) fn info(&self) -> ConnectionInfo {
        self.info.lock().clone()
    }

    /// Notes the connection that this one replaces.
    pub(crate) fn replaces(&self, predecessor: &Arc<Self>) {
        *self.replaced.lock() = Some(Replaced {
            connection: Arc::downgrade(predecessor),
            lost: Arc::clone(&predecessor.lost),
            is_settled: false,
        });
    }

    fn peer_name(&self) -> NodeId {
        // Only used where the connection is in use, which takes a proven peer.
        self.peer
            .get()
            .cloned()
            .unwrap_or_else(|| self.context.node.clone())
    }

    /// Why nothing can be taken over on this connection any more; `None` while it can.
    fn refusal(&self, state: &State) -> Option<Untaken<SendErrorKind>> {
        use CloseCode::Duplicate;
        let is_replaced = matches!(
            state.closed,
            Some(CloseReason::Local(Duplicate) | CloseReason::Peer(Duplicate))
        );
        if is_replaced || (state.closed.is_none() && state.phase == Phase::Draining) {
            return Some(Untaken::Superseded);
        }
        let reason = state.closed.as_ref()?.to_string();
        let peer = self.peer_name();
        Some(Untaken::Failed(SendErrorKind::Disconnected {
            peer,
            reason,
        }))
    }

    /// Takes a message over, waiting for room until `deadline`.
    pub(crate) fn send(
        &self,
        app: &Arc<str>,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<(), Untaken<SendErrorKind>> {
        let max = self.context.config.max_message_bytes;
        if payload.len() > max {
            let bytes = payload.len();
            return Err(SendErrorKind::TooLarge { bytes, max }.into());
        }
        self.await_predecessor(deadline);
        let mut state = self.state.lock();
        loop {
            if let Some(refusal) = self.refusal(&state) {
                return Err(refusal);
            }
            let stream = state.streams.existing(StreamKind::Messages, app);
            if stream.is_some_and(|stream| stream.stopped) {
                state.streams.forget(StreamKind::Messages, app);
                let (peer, app) = (self.peer_name(), app.to_string());
                return Err(SendErrorKind::NoApplication { peer, app }.into());
            }
            let is_open = state.phase == Phase::InUse;
            if is_open
                && state
                    .streams
                    .has_room(StreamKind::Messages, app, payload.len())
            {
                break;
            }
            if !self.wait(&mut state, deadline) {
                return Err(SendErrorKind::Timeout(self.peer_name()).into());
            }
        }
        state.streams.push(StreamKind::Messages, app, &[], payload);
        self.write_and_send(&mut state);
        Ok(())
    }

    /// Waits until every message of the application has been acknowledged, also those on the
    /// connection that this one replaced.
    pub(crate) fn flush(&self, app: &Arc<str>, deadline: Instant) -> Result<(), SendErrorKind> {
        let replaced = self.replaced.lock().clone();
        if let Some(replaced) = replaced {
            if let Some(connection) = replaced.connection.upgrade() {
                connection.flush(app, deadline)?;
            }
            if replaced.lost.swap(false, Relaxed) {
                let reason = "messages were lost when the connection was replaced".to_owned();
                let peer = self.peer_name();
                return Err(SendErrorKind::Disconnected { peer, reason });
            }
        }
        let mut state = self.state.lock();
        loop {
            if let Some(reason) = &state.closed {
                if !self.lost.load(Relaxed) {
                    return Ok(());
                }
                let (peer, reason) = (self.peer_name(), reason.to_string());
                return Err(SendErrorKind::Disconnected { peer, reason });
            }
            match state.streams.existing(StreamKind::Messages, app) {
                None => return Ok(()),
                Some(stream) if stream.stopped => {
                    let (peer, app) = (self.peer_name(), app.to_string());
                    return Err(SendErrorKind::NoApplication { peer, app });
                }
                Some(stream) if stream.unacknowledged() == 0 => return Ok(()),
                Some(_) => {}
            }
            if !self.wait(&mut state, deadline) {
                return Err(SendErrorKind::Timeout(self.peer_name()));
            }
        }
    }

    /// Sends a request; the returned value waits for the reply. `timeout` is told to the peer, so
    /// that it does not work for nobody.
    pub(crate) fn request(
        self: &Arc<Self>,
        app: &Arc<str>,
        payload: &[u8],
        deadline: Instant,
        timeout: Duration,
    ) -> Result<PendingReply, Untaken<RequestError>> {
        let max = self.context.config.max_message_bytes;
        if payload.len() > max {
            let bytes = payload.len();
            return Err(RequestError::TooLarge { bytes, max }.into());
        }
        self.await_predecessor(deadline);
        let mut state = self.state.lock();
        loop {
            match self.refusal(&state) {
                None => {}
                Some(Untaken::Superseded) => return Err(Untaken::Superseded),
                Some(Untaken::Failed(kind)) => return Err(RequestError::from(kind).into()),
            }
            let is_open = state.phase == Phase::InUse;
            if is_open && state.requests.len() >= self.context.config.max_requests_in_flight {
                return Err(RequestError::Busy(self.peer_name()).into());
            }
            if is_open
                && state
                    .streams
                    .has_room(StreamKind::Requests, app, payload.len())
            {
                break;
            }
            if !self.wait(&mut state, deadline) {
                let peer = self.peer_name();
                return Err(RequestError::Timeout { peer, timeout }.into());
            }
        }
        let id = state.next_request;
        state.next_request += 1;
        let (answer, reply) = crossbeam_channel::bounded(1);
        state.requests.insert(id, answer);
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let head = framing::request_head(id, timeout_ms);
        state
            .streams
            .push(StreamKind::Requests, app, &head, payload);
        self.write_and_send(&mut state);
        drop(state);
        Ok(PendingReply {
            connection: Arc::clone(self),
            id,
            reply,
        })
    }

    /// Sends a health ping; its round-trip time comes on the returned channel.
    pub(crate) fn ping(&self) -> Receiver<Duration> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        let mut state = self.state.lock();
        if state.closed.is_none() {
            self.send_ping(&mut state, Instant::now(), Some(answer));
            self.write_and_send(&mut state);
        }
        answered
    }

    fn send_ping(&self, state: &mut State, now: Instant, waiter: Option<Sender<Duration>>) {
        let id = state.next_ping;
        state.next_ping += 1;
        state.pings.insert(id, (now, waiter));
        // More than a few unanswered pings say nothing more; the oldest are forgotten.
        while state.pings.len() > 64 {
            state.pings.pop_first();
        }
        self.push_control(state, Control::Ping { id });
    }

    fn push_control(&self, state: &mut State, frame: Control) {
        if !state.streams.push_control(&frame.encode()) {
            state.control_overflow = true;
        }
    }

    /// Waits until nothing is under way: nothing to write, no reply awaited, no request being
    /// answered. Gives up at `deadline`.
    pub(crate) fn await_idle(&self, deadline: Instant) {
        let mut state = self.state.lock();
        while state.closed.is_none() && state.up_and_busy() {
            if !self.wait(&mut state, deadline) {
                return;
            }
        }
    }

    /// Order across a swap: what was sent on the replaced connection arrives first. Bounded by the
    /// time a connection may drain.
    fn await_predecessor(&self, deadline: Instant) {
        let replaced = self.replaced.lock().clone();
        let Some(replaced) = replaced.filter(|replaced| !replaced.is_settled) else {
            return;
        };
        if let Some(connection) = replaced.connection.upgrade() {
            let deadline = deadline.min(Instant::now() + self.context.config.drain_timeout);
            let mut state = connection.state.lock();
            while state.closed.is_none() && !state.streams.is_idle() {
                if !connection.wait(&mut state, deadline) {
                    break;
                }
            }
        }
        if let Some(replaced) = &mut *self.replaced.lock() {
            replaced.is_settled = true;
        }
    }

    /// Waits for a change. `false` at the deadline.
    fn wait(&self, state: &mut MutexGuard<'_, State>, deadline: Instant) -> bool {
        // The process-wide budget is freed by other connections, which do not tell us: look again
        // now and then.
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        self.changed
            .wait_until(state, deadline.min(now + Duration::from_millis(50)));
        true
    }

    /// Hands to QUIC what waits and puts its datagrams on the socket; wakes the worker when the
    /// next deadline came closer, the socket is full, or the host refused the port.
    ///
    /// A panic inside quiche on this, a caller's, thread is contained like one on the worker's: the
    /// state is not touched again and the worker ends the connection.
    fn write_and_send(&self, state: &mut State) {
        if state.closed.is_some() || state.is_broken {
            return;
        }
        let was_refused = state.refused_at.is_some();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if state.streams.write(&mut state.quic) {
                self.changed.notify_all();
            }
            self.send_datagrams(state);
        }));
        if let Err(panic) = outcome {
            let why = panic_message(panic.as_ref());
            log::error!(target: "transport", addr:% = self.addr, panic = why.as_str();
                "a send panicked; the connection is closed");
            state.is_broken = true;
            self.waker.wake();
            return;
        }
        let is_sooner = match (state.quic.timeout_instant(), state.armed) {
            (Some(deadline), Some(armed)) => deadline < armed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let is_refused = !was_refused && state.refused_at.is_some();
        if is_sooner || is_refused || !state.unsent.is_empty() {
            self.waker.wake();
        }
    }

    fn send_datagrams(&self, state: &mut State) {
        if state.quic.local_error().is_some() && state.farewell.is_empty() {
            // The closing datagram matters more than what the full socket did not take: it must be
            // made now, so that it can be repeated.
            state.unsent.clear();
        }
        loop {
            if state.unsent.is_empty() {
                match state.quic.send(&mut state.buffer) {
                    Ok((length, _)) => {
                        let State { unsent, buffer, .. } = state;
                        unsent.extend_from_slice(&buffer[..length]);
                    }
                    // `Done`, or an error that the connection's state tells better.
                    Err(_) => return,
                }
                if state.quic.local_error().is_some() {
                    state.farewell.clone_from(&state.unsent);
                }
            }
            match self.path.send(&state.unsent, self.addr) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // An ICMP message for an earlier datagram: a hint, and this one was not sent.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    state.refused_at.get_or_insert_with(Instant::now);
                    let _ = self.path.send(&state.unsent, self.addr);
                }
                // Anything else is a datagram lost here instead of on the way; QUIC repeats it.
                Err(error) => {
                    log::trace!(target: "transport", addr:% = self.addr, error:%; "datagram lost");
                }
                Ok(_) => {}
            }
            state.unsent.clear();
        }
    }
}

impl State {
    fn up_and_busy(&self) -> bool {
        let is_up = matches!(self.phase, Phase::InUse | Phase::Draining);
        is_up && !self.is_idle()
    }

    fn is_idle(&self) -> bool {
        self.streams.is_idle() && self.requests.is_empty() && self.answering == 0
    }
}

/// A reply that is awaited; dropping it gives up.
pub(crate) struct PendingReply {
    connection: Arc<Connection>,
    id: u64,
    reply: Receiver<Result<Vec<u8>, RequestError>>,
}

impl PendingReply {
    /// Waits for the reply until `deadline`.
    pub(crate) fn wait(
        &self,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        self.reply.recv_deadline(deadline).unwrap_or_else(|_| {
            Err(RequestError::Timeout {
                peer: self.connection.peer_name(),
                timeout,
            })
        })
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        self.connection.state.lock().requests.remove(&self.id);
        self.connection.changed.notify_all();
    }
}

impl Replier for Connection {
    fn reply(&self, app: &str, id: u64, answer: Answer, expires_at: Instant) {
        let (status, payload) = match answer {
            Answer::Ok(payload) if payload.len() > self.context.config.max_message_bytes => (
                ReplyStatus::Error,
                b"reply is larger than a message may be".to_vec(),
            ),
            Answer::Ok(payload) => (ReplyStatus::Ok, payload),
            Answer::Error(message) => (ReplyStatus::Error, message.into_bytes()),
            Answer::Expired => {
                self.context.counters.requests_expired.fetch_add(1, Relaxed);
                (ReplyStatus::Expired, Vec::new())
            }
        };
        let app: Arc<str> = Arc::from(app);
        // Nobody waits for it after that, and this is a handler's thread.
        let deadline = expires_at.min(Instant::now() + REPLY_PATIENCE);
        let mut state = self.state.lock();
        state.answering = state.answering.saturating_sub(1);
        while state.closed.is_none() {
            if state
                .streams
                .has_room(StreamKind::Replies, &app, payload.len())
            {
                let head = framing::reply_head(id, status);
                state
                    .streams
                    .push(StreamKind::Replies, &app, &head, &payload);
                self.write_and_send(&mut state);
                return;
            }
            if !self.wait(&mut state, deadline) {
                break;
            }
        }
        self.context.counters.replies_dropped.fetch_add(1, Relaxed);
        log::debug!(target: "transport", peer:% = self.peer_name(), app:%; "reply not delivered");
    }
}

/// The thread's own half.
struct Worker {
    connection: Arc<Connection>,
    commands: Receiver<Command>,
    /// What the reactor has not taken yet.
    notices: VecDeque<Notice>,
    local: SocketAddr,
    expected: Option<NodeId>,
    first: Option<Datagram>,
    datagram: Vec<u8>,
    /// Where stream bytes are read into, allocated when there are some.
    piece: Vec<u8>,
    /// Handshake and HELLO must be done by then.
    deadline: Instant,
    heard_at: Instant,
    next_ping_at: Option<Instant>,
    up_at: Option<Instant>,
    drain_until: Option<Instant>,
    info_at: Instant,
    last_ping: Option<Duration>,
    missed_pings: u64,
    /// How many packets had come and how many probe time-outs there had been when a packet was
    /// last seen, and whether the silence since was told.
    silence: Silence,
    /// The dialler's HELLO, until its READY.
    greeted: Option<Hello>,
}

/// Where the counters of QUIC stood when the peer was last heard.
#[derive(Debug, Clone, Copy, Default)]
struct Silence {
    received: usize,
    timeouts: usize,
    told: bool,
}

/// How a turn ended.
enum Turn {
    Sleep(Option<Instant>),
    Over { linger: bool },
}

/// Why a connection is not one of ours.
type Refusal = (CloseCode, CloseReason);

impl Worker {
    fn run(mut self) {
        let connection = Arc::clone(&self.connection);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.drive()));
        if let Err(panic) = outcome {
            let why = panic_message(panic.as_ref());
            log::error!(target: "transport", addr:% = connection.addr, panic:% = why;
                "connection worker panicked; the connection is closed");
            connection
                .context
                .counters
                .worker_panics
                .fetch_add(1, Relaxed);
            let mut state = connection.state.lock();
            if state.closed.is_none() {
                let reason = CloseReason::Local(CloseCode::Internal);
                let down = self.finish(&mut state, reason);
                drop(state);
                let _ = connection.context.notices.send(down);
            }
        }
        // The reactor may be gone itself; then nobody needs to know.
        let _ = connection.context.notices.send(Notice::Gone {
            connection: connection.id,
        });
        connection.context.reactor.wake();
    }

    fn drive(&mut self) {
        loop {
            match self.turn() {
                Turn::Sleep(deadline) => {
                    let was_crowded = self.notices.len() > MAX_KEPT_NOTICES;
                    let retry = self.deliver_notices();
                    // Streams that waited for the reactor may be read again.
                    let resume = (was_crowded && retry.is_none()).then(Instant::now);
                    let deadline = [deadline, retry, resume].into_iter().flatten().min();
                    if let Err(error) = self.sleep(deadline) {
                        let connection = Arc::clone(&self.connection);
                        let mut state = connection.state.lock();
                        let down = self.finish(&mut state, CloseReason::Io(error.to_string()));
                        drop(state);
                        let _ = connection.context.notices.send(down);
                        return;
                    }
                }
                Turn::Over { linger } => {
                    while let Some(notice) = self.notices.pop_front() {
                        // Blocking is right here: the lock is free and the reactor always reads.
                        let _ = self.connection.context.notices.send(notice);
                    }
                    self.connection.context.reactor.wake();
                    if linger {
                        self.linger();
                    }
                    return;
                }
            }
        }
    }

    fn sleep(&self, deadline: Option<Instant>) -> io::Result<()> {
        let connection = &self.connection;
        let waker = (connection.waker.as_fd(), Interest::Read);
        let is_full = !connection.state.lock().unsent.is_empty();
        let interest = if is_full {
            Interest::ReadWrite
        } else {
            Interest::Read
        };
        let now = Instant::now();
        let slept = match &connection.path {
            Path::Own(socket) => sleep(&[waker, (socket.as_fd(), interest)], now, deadline),
            Path::Shared(_) => {
                // The listener's readiness is the reactor's business: try again soon instead.
                let retry = is_full.then(|| now + SHARED_RETRY);
                let deadline = [deadline, retry].into_iter().flatten().min();
                sleep(&[waker], now, deadline)
            }
        };
        connection.waker.clear();
        slept
    }

    /// Sends the closing datagram again: it is the only one that QUIC never repeats by itself.
    fn linger(&self) {
        let connection = &self.connection;
        let farewell = std::mem::take(&mut connection.state.lock().farewell);
        if farewell.is_empty() {
            return;
        }
        let started = Instant::now();
        for after in CLOSE_REPEATS {
            let deadline = started + after;
            let mut now = Instant::now();
            while now < deadline {
                // Nothing is waited for but time: commands mean nothing to a closed connection.
                if sleep(&[], now, Some(deadline)).is_err() {
                    return;
                }
                now = Instant::now();
            }
            let _ = connection.path.send(&farewell, connection.addr);
        }
    }

    /// Tells the reactor what it takes; for what it does not, when to try again.
    fn deliver_notices(&mut self) -> Option<Instant> {
        let mut retry = None;
        let mut told = false;
        while let Some(notice) = self.notices.pop_front() {
            match self.connection.context.notices.try_send(notice) {
                Ok(()) => told = true,
                Err(TrySendError::Full(notice)) => {
                    self.notices.push_front(notice);
                    retry = Some(Instant::now() + NOTICE_RETRY);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
        if told {
            self.connection.context.reactor.wake();
        }
        retry
    }

    fn turn(&mut self) -> Turn {
        let connection = Arc::clone(&self.connection);
        let mut state = connection.state.lock();
        let state = &mut *state;
        let now = Instant::now();
        if state.is_broken {
            let down = self.finish(state, CloseReason::Local(CloseCode::Internal));
            self.notices.push_back(down);
            return Turn::Over { linger: false };
        }
        self.receive(state, now);
        if let Some(over) = self.obey(state, now) {
            return over;
        }
        if state.quic.timeout_instant().is_some_and(|at| at <= now) {
            state.quic.on_timeout();
            self.note_silence(state);
        }
        self.advance(state, now);
        self.read_streams(state, now);
        self.acknowledge(state);
        self.on_time(state, now);
        if state.streams.write(&mut state.quic) {
            connection.changed.notify_all();
        }
        connection.send_datagrams(state);
        if let Some(reason) = close_reason(state) {
            let linger = !state.farewell.is_empty();
            let down = self.finish(state, reason);
            self.notices.push_back(down);
            return Turn::Over { linger };
        }
        self.publish(state, now);
        let deadline = self.next_deadline(state);
        state.armed = deadline;
        Turn::Sleep(deadline)
    }

    fn next_deadline(&self, state: &State) -> Option<Instant> {
        let handshake = self.up_at.is_none().then_some(self.deadline);
        let refused = state.refused_at.map(|at| at + REFUSED_PATIENCE);
        [
            state.quic.timeout_instant(),
            handshake,
            refused,
            self.next_ping_at,
            self.drain_until,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Reads the socket until it is empty or the budget is used up.
    fn receive(&mut self, state: &mut State, now: Instant) {
        if let Some(first) = self.first.take() {
            self.feed(state, first.from, first.bytes, now);
        }
        let connection = Arc::clone(&self.connection);
        let Path::Own(socket) = &connection.path else {
            return;
        };
        for _ in 0..RECEIVE_BUDGET {
            match socket.recv_from(&mut self.datagram) {
                Ok((length, from)) => {
                    if from == connection.addr && self.is_ours(state, length) {
                        self.heard_at = now;
                        state.refused_at = None;
                        let info = quiche::RecvInfo {
                            from,
                            to: self.local,
                        };
                        // An error is in the connection's state, or a datagram to ignore.
                        let _ = state.quic.recv(&mut self.datagram[..length], info);
                    } else {
                        // Came between `bind` and `connect`, or opens a new connection from the
                        // same address: the listener knows what to do with it.
                        connection.context.counters.strays.fetch_add(1, Relaxed);
                        if self.notices.len() <= MAX_KEPT_NOTICES {
                            let bytes = self.datagram[..length].to_vec();
                            let datagram = Datagram { from, bytes };
                            self.notices.push_back(Notice::Stray { datagram });
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    // Anybody can forge it, so it is a hint: ask at once, and give up soon.
                    if state.refused_at.is_none() {
                        state.refused_at = Some(now);
                        let _ = state.quic.send_ack_eliciting();
                        self.doubt(Sign::Refused);
                    }
                }
                Err(_) => return,
            }
        }
        // More may be there: come back at once.
        connection.waker.wake();
    }

    /// Whether the datagram in the buffer is for this connection. Accepted connections may get the
    /// first datagram of a new life of their peer.
    fn is_ours(&self, state: &State, length: usize) -> bool {
        let datagram = &self.datagram[..length];
        let Some(&first) = datagram.first() else {
            return true;
        };
        if self.connection.side == Side::Dialed || !state.quic.is_established() {
            return true;
        }
        // The destination id follows the first byte, and in long headers the version and a length
        // (RFC 9000 §17).
        let id = if first & 0x80 == 0 {
            datagram.get(1..1 + ID_BYTES)
        } else {
            let length = datagram.get(5).copied().unwrap_or(0).into();
            datagram.get(6..).and_then(|rest| rest.get(..length))
        };
        id.is_none_or(|id| state.quic.source_ids().any(|own| own.as_ref() == id))
    }

    fn feed(&mut self, state: &mut State, from: SocketAddr, mut bytes: Vec<u8>, now: Instant) {
        self.heard_at = now;
        state.refused_at = None;
        let info = quiche::RecvInfo {
            from,
            to: self.local,
        };
        let _ = state.quic.recv(&mut bytes, info);
    }

    fn obey(&mut self, state: &mut State, now: Instant) -> Option<Turn> {
        for command in self.commands.clone().try_iter().take(COMMAND_CAPACITY) {
            match command {
                Command::Inject(datagram) => {
                    if datagram.from == self.connection.addr {
                        self.feed(state, datagram.from, datagram.bytes, now);
                    }
                }
                Command::Control(frame) => self.connection.push_control(state, frame),
                Command::Controls(frames) => {
                    for frame in frames {
                        self.connection.push_control(state, frame);
                    }
                }
                Command::Use => {
                    if state.phase == Phase::Up {
                        state.phase = Phase::InUse;
                        self.connection.push_control(state, Control::Use);
                        self.connection.changed.notify_all();
                    }
                }
                Command::Drain => {
                    if matches!(state.phase, Phase::Up | Phase::InUse) {
                        state.phase = Phase::Draining;
                        self.drain_until = Some(now + self.connection.context.config.drain_timeout);
                        self.connection.changed.notify_all();
                    }
                }
                Command::Close(code) => close(state, code),
                Command::StartSync(frames) => {
                    if state.streams.syncs() < MAX_SYNCS {
                        state.streams.start_sync(&frames);
                    }
                }
                Command::AnswerSync { stream, frames } => {
                    // Who asks again and again and does not read wants to fill this node's memory.
                    if state.streams.syncs() > MAX_SYNCS {
                        let counters = &self.connection.context.counters;
                        counters.sync_floods.fetch_add(1, Relaxed);
                        close(state, CloseCode::Overloaded);
                    } else {
                        state.streams.finish_sync(stream, &frames);
                    }
                }
                Command::Abandon => {
                    let reason = CloseReason::Local(CloseCode::Internal);
                    let down = self.finish(state, reason);
                    self.notices.push_back(down);
                    return Some(Turn::Over { linger: false });
                }
            }
        }
        None
    }

    /// Moves the handshake on: certificate, HELLO, READY.
    fn advance(&self, state: &mut State, now: Instant) {
        if state.phase != Phase::Handshaking || !state.quic.is_established() {
            return;
        }
        match self.judge(state) {
            Ok(peer) => {
                log::trace!(target: "transport", peer:%, addr:% = self.connection.addr;
                    "TLS handshake done after {:?}",
                    self.connection.context.config.dial_timeout
                        .saturating_sub(self.deadline.saturating_duration_since(now)));
                // Set once: this phase is left for good.
                let _ = self.connection.peer.set(peer);
                state.phase = Phase::Hello;
                if self.connection.side == Side::Dialed {
                    let hello = self.hello();
                    self.connection.push_control(state, hello);
                    let mut incoming = Incoming::new();
                    incoming.preamble = Some(Preamble {
                        kind: StreamKind::Control,
                        app: String::new(),
                    });
                    state.streams.incoming.insert(CONTROL, incoming);
                }
            }
            Err((code, reason)) => {
                // The end of our handshake goes first: without it an acceptor has no keys to read
                // the close with, and would wait for its deadline.
                self.connection.send_datagrams(state);
                state.closing = Some(reason);
                close(state, code);
            }
        }
    }

    /// Who the peer's certificate says it is. TLS has judged the chain; this judges the name.
    fn judge(&self, state: &State) -> Result<NodeId, Refusal> {
        let wrong = |why: String| (CloseCode::Identity, CloseReason::WrongIdentity(why));
        let leaf = state
            .quic
            .peer_cert()
            .ok_or_else(|| wrong("no certificate".into()))?;
        let (node, cluster) = trust::certified_names(leaf).map_err(wrong)?;
        let context = &self.connection.context;
        if cluster != context.cluster {
            return Err(wrong(format!("certificate is for cluster {cluster}")));
        }
        if node == context.node {
            // Ourselves, or somebody with our certificate: the HELLO tells which.
            return Ok(node);
        }
        match &self.expected {
            Some(expected) if *expected != node => Err(wrong(format!(
                "certificate is for {node}, expected {expected}"
            ))),
            Some(_) | None => Ok(node),
        }
    }

    fn hello(&self) -> Control {
        let context = &self.connection.context;
        Control::Hello(Hello {
            cluster: context.cluster.clone(),
            node: context.node.clone(),
            boot: context.boot,
            protocol: PROTOCOL_VERSIONS,
            keyring_digest: context.keyring_digest.lock().clone(),
        })
    }

    /// Checks the peer's HELLO against its certificate and against ourselves.
    fn greet(&self, hello: &Hello) -> Result<(), Refusal> {
        let context = &self.connection.context;
        let certified = self.connection.peer.get();
        let wrong = |why: String| Err((CloseCode::Identity, CloseReason::WrongIdentity(why)));
        if certified != Some(&hello.node) || hello.cluster != context.cluster {
            return wrong(format!("HELLO says {}.{}", hello.node, hello.cluster));
        }
        // Only our own certificate makes it ourselves: an address that is taken for our own is
        // never dialled again, so nobody else may make us believe that.
        match (hello.node == context.node, hello.boot == context.boot) {
            (true, true) => {
                let reason = CloseReason::Local(CloseCode::SelfDial);
                return Err((CloseCode::SelfDial, reason));
            }
            (true, false) => {
                return wrong("another process has this node's name and certificate".into());
            }
            (false, true) => return wrong("HELLO repeats this node's own boot id".into()),
            (false, false) => {}
        }
        if !hello.is_compatible() {
            let reason = CloseReason::Local(CloseCode::Protocol);
            return Err((CloseCode::Protocol, reason));
        }
        Ok(())
    }

    fn read_streams(&mut self, state: &mut State, now: Instant) {
        if !state.quic.is_established() || state.phase == Phase::Handshaking {
            return;
        }
        let stalled = std::mem::take(&mut state.streams.stalled);
        let readable = state.quic.readable();
        let ids = readable.chain(stalled.iter().copied());
        let ids = ids.collect::<std::collections::BTreeSet<u64>>();
        for id in ids {
            let may_read = match state.phase {
                Phase::Handshaking => false,
                // Nothing but HELLO and READY is read before the peer is known.
                Phase::Hello | Phase::Ready => id == CONTROL,
                Phase::Up => id == CONTROL || is_bidirectional(id),
                Phase::InUse | Phase::Draining => true,
            };
            let is_crowded = self.notices.len() > MAX_KEPT_NOTICES && is_bidirectional(id);
            if !may_read {
                continue;
            }
            if is_crowded {
                state.streams.stalled.insert(id);
                continue;
            }
            if let Err((code, reason)) = self.read_stream(state, id, now) {
                log::debug!(target: "transport", addr:% = self.connection.addr, stream = id,
                    reason:%; "closing");
                state.closing = Some(reason);
                close(state, code);
                return;
            }
        }
    }

    fn read_stream(&mut self, state: &mut State, id: u64, now: Instant) -> Result<(), Refusal> {
        let mut incoming = state
            .streams
            .incoming
            .remove(&id)
            .unwrap_or_else(Incoming::new);
        let outcome = self.read_incoming(state, id, &mut incoming, now);
        match outcome {
            // A finished stream is forgotten, unless something of it still waits; the control
            // stream must not finish while the connection lives.
            Ok(Reading::Finished) if id == CONTROL => return Err(protocol(FramingError::Short)),
            // Whoever collects a sync must hear of its end, also when it comes too early.
            Ok(end @ (Reading::Finished | Reading::Reset)) => {
                let preamble = incoming.preamble.as_ref();
                if preamble.is_some_and(|preamble| preamble.kind == StreamKind::Sync) {
                    self.notices.push_back(Notice::SyncEnd {
                        connection: self.connection.id,
                        stream: id,
                        is_whole: matches!(end, Reading::Finished),
                    });
                }
            }
            Ok(Reading::Stalled) => {
                state.streams.stalled.insert(id);
                state.streams.incoming.insert(id, incoming);
            }
            Ok(Reading::Waiting) => {
                let is_large = incoming.partial_bytes() > PIECE_BYTES;
                state.streams.incoming.insert(id, incoming);
                let limit = MAX_PARTIAL_UNITS * self.connection.context.config.max_message_bytes;
                if is_large && state.streams.partial_bytes() > limit {
                    let reason = CloseReason::Local(CloseCode::Overloaded);
                    return Err((CloseCode::Overloaded, reason));
                }
            }
            Err(refusal) => return Err(refusal),
        }
        Ok(())
    }

    fn read_incoming(
        &mut self,
        state: &mut State,
        id: u64,
        incoming: &mut Incoming,
        now: Instant,
    ) -> Result<Reading, Refusal> {
        if let Some(unit) = incoming.blocked.take() {
            match self.deliver(state, id, incoming, unit, now)? {
                Delivered::Yes => {}
                Delivered::Blocked => return Ok(Reading::Stalled),
                Delivered::Ignore => self.refuse(state, id, incoming),
            }
        }
        if incoming.refused {
            return Ok(self.discard(state, id));
        }
        let mut piece = std::mem::take(&mut incoming.leftover);
        loop {
            if piece.is_empty() {
                if incoming.fin {
                    let whole = incoming.decoder.is_at_boundary();
                    return if whole {
                        Ok(Reading::Finished)
                    } else {
                        Err(protocol(FramingError::Short))
                    };
                }
                if self.notices.len() > MAX_KEPT_NOTICES && is_bidirectional(id) {
                    return Ok(Reading::Stalled);
                }
                if self.piece.is_empty() {
                    self.piece.resize(PIECE_BYTES, 0);
                }
                match state.quic.stream_recv(id, &mut self.piece) {
                    Ok((length, fin)) => {
                        incoming.fin = fin;
                        piece.extend_from_slice(&self.piece[..length]);
                        if length == 0 && !fin {
                            return Ok(Reading::Waiting);
                        }
                    }
                    Err(quiche::Error::Done) => return Ok(Reading::Waiting),
                    // Reset by the peer, or gone: nothing more comes of it.
                    Err(_) => return Ok(Reading::Reset),
                }
            }
            let mut input = piece.as_slice();
            if incoming.preamble.is_none() {
                match incoming.decoder.preamble(&mut input).map_err(protocol)? {
                    Some(preamble) => {
                        if self.open(state, id, incoming, preamble)? {
                            self.refuse(state, id, incoming);
                            return Ok(self.discard(state, id));
                        }
                    }
                    None => {
                        piece.clear();
                        continue;
                    }
                }
            }
            while let Some(unit) = incoming.decoder.unit(&mut input).map_err(protocol)? {
                match self.deliver(state, id, incoming, unit, now)? {
                    Delivered::Yes => {}
                    Delivered::Blocked => {
                        incoming.leftover = input.to_vec();
                        return Ok(Reading::Stalled);
                    }
                    Delivered::Ignore => {
                        self.refuse(state, id, incoming);
                        return Ok(self.discard(state, id));
                    }
                }
            }
            piece.clear();
        }
    }

    /// Tells the peer that nobody here wants what the stream carries. STOP_SENDING would say the
    /// same, but quiche never forgets a peer's stream that was shut down for reading, and the peer
    /// would run out of streams.
    fn refuse(&self, state: &mut State, id: u64, incoming: &mut Incoming) {
        incoming.refused = true;
        self.connection
            .push_control(state, Control::Refused { stream: id });
    }

    /// Reads a refused stream and drops what comes, up to its end.
    fn discard(&mut self, state: &mut State, id: u64) -> Reading {
        if self.piece.is_empty() {
            self.piece.resize(PIECE_BYTES, 0);
        }
        loop {
            match state.quic.stream_recv(id, &mut self.piece) {
                Ok((_, true)) => return Reading::Finished,
                Ok((0, false)) | Err(quiche::Error::Done) => return Reading::Waiting,
                Ok(_) => {}
                Err(_) => return Reading::Reset,
            }
        }
    }

    /// Checks what a stream says of itself and sets its limits. `true` when nobody here wants it.
    fn open(
        &self,
        state: &State,
        id: u64,
        incoming: &mut Incoming,
        preamble: Preamble,
    ) -> Result<bool, Refusal> {
        let max_message = self.connection.context.config.max_message_bytes;
        let (fits, max_unit) = match preamble.kind {
            StreamKind::Control => (id == CONTROL, crate::control::MAX_HELLO_BYTES),
            StreamKind::Sync => (id != CONTROL && is_bidirectional(id), MAX_CONTROL_BYTES),
            StreamKind::Messages => (!is_bidirectional(id), max_message),
            StreamKind::Requests => (
                !is_bidirectional(id),
                max_message + framing::REQUEST_HEAD_BYTES,
            ),
            StreamKind::Replies => (
                !is_bidirectional(id),
                max_message + framing::REPLY_HEAD_BYTES,
            ),
            // Streams of bytes come with a later version; a peer must not use them on this one.
            StreamKind::Raw => (false, 0),
        };
        let is_app = preamble.kind != StreamKind::Control && preamble.kind != StreamKind::Sync;
        if !fits || (is_app && !state.streams.may_open(&preamble)) {
            return Err(protocol(FramingError::Preamble));
        }
        incoming.decoder.set_max_unit_bytes(max_unit);
        let registry = &self.connection.context.registry;
        let is_for_nobody =
            preamble.kind == StreamKind::Messages && registry.get(&preamble.app).is_none();
        if is_for_nobody {
            self.note_nobody(&preamble.app);
        }
        incoming.preamble = Some(preamble);
        Ok(is_for_nobody)
    }

    fn note_nobody(&self, app: &str) {
        let counters = &self.connection.context.counters;
        counters.messages_for_nobody.fetch_add(1, Relaxed);
        log::debug!(target: "transport", peer:% = self.connection.peer_name(), app:%;
            "no such application here; its messages are refused");
    }

    fn deliver(
        &mut self,
        state: &mut State,
        id: u64,
        incoming: &mut Incoming,
        unit: Vec<u8>,
        now: Instant,
    ) -> Result<Delivered, Refusal> {
        let Some(preamble) = &incoming.preamble else {
            return Ok(Delivered::Ignore);
        };
        match preamble.kind {
            StreamKind::Control => {
                let frame = Control::decode(&unit).map_err(|_| protocol(FramingError::Preamble))?;
                self.handle_control(state, incoming, frame, now)?;
                Ok(Delivered::Yes)
            }
            StreamKind::Sync => {
                incoming.frames += 1;
                if incoming.frames > MAX_SYNC_FRAMES {
                    return Err(protocol(FramingError::TooLarge));
                }
                let frame =
                    SyncFrame::decode(&unit).map_err(|_| protocol(FramingError::Preamble))?;
                let connection = self.connection.id;
                self.notices.push_back(Notice::Sync {
                    connection,
                    stream: id,
                    frame,
                });
                Ok(Delivered::Yes)
            }
            StreamKind::Messages => Ok(self.deliver_message(incoming, unit)),
            StreamKind::Requests => self.deliver_request(state, incoming, unit, now),
            StreamKind::Replies => {
                let (id, status, payload) = framing::split_reply(unit).map_err(protocol)?;
                self.deliver_reply(state, preamble, id, status, payload);
                Ok(Delivered::Yes)
            }
            StreamKind::Raw => Err(protocol(FramingError::Preamble)),
        }
    }

    fn deliver_message(&self, incoming: &mut Incoming, unit: Vec<u8>) -> Delivered {
        let context = &self.connection.context;
        let Some(preamble) = &incoming.preamble else {
            return Delivered::Ignore;
        };
        let Some(inbox) = context.registry.get(&preamble.app) else {
            self.note_nobody(&preamble.app);
            return Delivered::Ignore;
        };
        let Some(permit) = inbox
            .message_budget
            .take(unit.len(), &self.connection.waker)
        else {
            incoming.blocked = Some(unit);
            return Delivered::Blocked;
        };
        inbox.deliver(self.connection.peer_name(), unit, permit);
        incoming.delivered += 1;
        Delivered::Yes
    }

    fn deliver_request(
        &self,
        state: &mut State,
        incoming: &mut Incoming,
        unit: Vec<u8>,
        now: Instant,
    ) -> Result<Delivered, Refusal> {
        let context = &self.connection.context;
        let Some(preamble) = &incoming.preamble else {
            return Ok(Delivered::Ignore);
        };
        let inbox = context
            .registry
            .get(&preamble.app)
            .filter(|inbox| inbox.takes_requests.load(Relaxed));
        let Some(inbox) = inbox else {
            let (id, _, _) = framing::split_request(unit).map_err(protocol)?;
            let head = framing::reply_head(id, ReplyStatus::NoHandler);
            let app: Arc<str> = Arc::from(preamble.app.as_str());
            if !state.streams.has_room_for_stranger(&app, head.len()) {
                // It asks for what is not there and does not read that it is not.
                let reason = CloseReason::Local(CloseCode::Overloaded);
                return Err((CloseCode::Overloaded, reason));
            }
            state.streams.push(StreamKind::Replies, &app, &head, &[]);
            return Ok(Delivered::Yes);
        };
        let Some(permit) = inbox
            .request_budget
            .take(unit.len(), &self.connection.waker)
        else {
            incoming.blocked = Some(unit);
            return Ok(Delivered::Blocked);
        };
        let (id, timeout_ms, payload) = framing::split_request(unit).map_err(protocol)?;
        state.answering += 1;
        inbox.deliver_request(PendingRequest {
            request: Request {
                from: self.connection.peer_name(),
                payload,
            },
            id,
            expires_at: now + Duration::from_millis(timeout_ms.into()),
            replier: Arc::clone(&self.connection) as Arc<dyn Replier>,
            permit,
        });
        Ok(Delivered::Yes)
    }

    fn deliver_reply(
        &self,
        state: &mut State,
        preamble: &Preamble,
        id: u64,
        status: ReplyStatus,
        payload: Vec<u8>,
    ) {
        // No waiter: it gave up before the reply came.
        let Some(waiter) = state.requests.remove(&id) else {
            return;
        };
        let peer = self.connection.peer_name();
        let outcome = match status {
            ReplyStatus::Ok => Ok(payload),
            ReplyStatus::Error => {
                let message = String::from_utf8_lossy(&payload).into_owned();
                Err(RequestError::Remote { peer, message })
            }
            ReplyStatus::NoHandler => Err(RequestError::NoHandler {
                peer,
                app: preamble.app.clone(),
            }),
            ReplyStatus::Expired => {
                let message = "the request expired before it was handled".to_owned();
                Err(RequestError::Remote { peer, message })
            }
        };
        let _ = waiter.try_send(outcome);
    }

    fn handle_control(
        &mut self,
        state: &mut State,
        incoming: &mut Incoming,
        frame: Control,
        now: Instant,
    ) -> Result<(), Refusal> {
        let out_of_order = Err(protocol(FramingError::Preamble));
        match (state.phase, frame) {
            (Phase::Hello, Control::Hello(hello)) => {
                self.greet(&hello)?;
                incoming.decoder.set_max_unit_bytes(MAX_CONTROL_BYTES);
                self.info_hello(&hello);
                match self.connection.side {
                    Side::Dialed => {
                        self.connection.push_control(state, Control::Ready);
                        self.come_up(state, hello.boot, hello.keyring_digest, now);
                    }
                    Side::Accepted => {
                        let answer = self.hello();
                        self.connection.push_control(state, answer);
                        state.phase = Phase::Ready;
                        self.greeted = Some(hello);
                    }
                }
                Ok(())
            }
            (Phase::Ready, Control::Ready) => {
                let Some(hello) = self.greeted.take() else {
                    return out_of_order;
                };
                self.come_up(state, hello.boot, hello.keyring_digest, now);
                Ok(())
            }
            (Phase::Handshaking | Phase::Hello | Phase::Ready, _)
            | (_, Control::Hello(_) | Control::Ready) => out_of_order,
            (phase, Control::Use) => {
                if self.connection.peer_name() > self.connection.context.node {
                    return out_of_order;
                }
                if phase == Phase::Up {
                    state.phase = Phase::InUse;
                    let connection = self.connection.id;
                    self.notices.push_back(Notice::Used { connection });
                    self.connection.changed.notify_all();
                }
                Ok(())
            }
            (_, Control::Ping { id }) => {
                let reactor_age_ms = self.connection.context.reactor_age_ms(now);
                if Duration::from_millis(reactor_age_ms) <= REACTOR_FRESH {
                    self.connection
                        .push_control(state, Control::Pong { id, reactor_age_ms });
                } else if self.notices.len() <= MAX_KEPT_NOTICES {
                    let connection = self.connection.id;
                    self.notices.push_back(Notice::Pinged { connection, id });
                }
                Ok(())
            }
            (_, Control::Pong { id, reactor_age_ms }) => {
                if let Some((sent_at, waiter)) = state.pings.remove(&id) {
                    let took = now.saturating_duration_since(sent_at);
                    self.last_ping = Some(took);
                    self.missed_pings = 0;
                    // It was alive so long before some instant that is not before the question.
                    let age = Duration::from_millis(reactor_age_ms);
                    if let Some(at) = sent_at.checked_sub(age) {
                        let connection = self.connection.id;
                        self.notices.push_back(Notice::Answered { connection, at });
                    }
                    if let Some(waiter) = waiter {
                        let _ = waiter.try_send(took);
                    }
                }
                Ok(())
            }
            (_, Control::MessageAck { stream, count }) => {
                if let Some(outgoing) = state.streams.outgoing.get_mut(&stream) {
                    // A peer that acknowledges what was never sent gains nothing.
                    outgoing.acknowledged = outgoing.acknowledged.max(count.min(outgoing.sent));
                    self.connection.changed.notify_all();
                }
                Ok(())
            }
            (_, Control::Refused { stream }) => {
                let State { streams, quic, .. } = state;
                streams.refuse(stream, quic, NO_SUCH_APP);
                self.connection.changed.notify_all();
                Ok(())
            }
            (_, Control::Drained) => {
                state.peer_drained = true;
                Ok(())
            }
            (_, Control::Unknown) => Ok(()),
            (
                _,
                frame @ (Control::Record(_)
                | Control::LeaveAck { .. }
                | Control::Probe { .. }
                | Control::ProbeAck { .. }
                | Control::Keyring(_)
                | Control::KeysHeld(_)
                | Control::EventClock { .. }
                | Control::UserEvent { .. }),
            ) => {
                let connection = self.connection.id;
                self.notices
                    .push_back(Notice::Control { connection, frame });
                Ok(())
            }
        }
    }

    fn info_hello(&self, hello: &Hello) {
        self.connection.info.lock().peer = Some(hello.node.clone());
    }

    fn come_up(&mut self, state: &mut State, boot: BootId, keyring_digest: Vec<u8>, now: Instant) {
        state.phase = Phase::Up;
        self.up_at = Some(now);
        self.next_ping_at = Some(now + self.ping_interval());
        self.notices.push_back(Notice::Up {
            connection: self.connection.id,
            peer: self.connection.peer_name(),
            boot,
            side: self.connection.side,
            addr: self.connection.addr,
            certificate: state
                .quic
                .peer_cert()
                .map(<[u8]>::to_vec)
                .unwrap_or_default(),
            keyring_digest,
        });
    }

    fn ping_interval(&self) -> Duration {
        Duration::from_millis(self.connection.context.ping_interval_ms.load(Relaxed))
    }

    /// Tells the peer how many of its messages have reached their inboxes.
    fn acknowledge(&self, state: &mut State) {
        let mut acks = Vec::new();
        for (&stream, incoming) in &mut state.streams.incoming {
            if incoming.delivered > incoming.acknowledged {
                incoming.acknowledged = incoming.delivered;
                acks.push(Control::MessageAck {
                    stream,
                    count: incoming.delivered,
                });
            }
        }
        for ack in acks {
            self.connection.push_control(state, ack);
        }
    }

    /// Does what is due.
    fn on_time(&mut self, state: &mut State, now: Instant) {
        if self.up_at.is_none() && now >= self.deadline && state.closing.is_none() {
            let after = self.connection.context.config.dial_timeout;
            state.closing = Some(CloseReason::HandshakeTimeout(after));
            close(state, CloseCode::Overloaded);
        }
        if let Some(refused_at) = state.refused_at {
            // A dial needs no patience: the caller has a backoff.
            let is_dial = self.up_at.is_none() && self.connection.side == Side::Dialed;
            if is_dial || now >= refused_at + REFUSED_PATIENCE {
                state.closing = Some(CloseReason::Refused);
                close(state, CloseCode::Internal);
            }
        }
        if state.control_overflow || self.connection.is_stuck.load(Relaxed) {
            close(state, CloseCode::Overloaded);
        }
        if self.next_ping_at.is_some_and(|at| now >= at) {
            if state.pings.values().any(|(_, waiter)| waiter.is_none()) {
                self.missed_pings += 1;
                if self.missed_pings == PINGS_MISSED {
                    log::debug!(target: "transport", peer:% = self.connection.peer_name();
                        "{PINGS_MISSED} health pings without an answer");
                    self.doubt(Sign::Unanswered);
                }
            }
            self.connection.send_ping(state, now, None);
            self.next_ping_at = Some(now + self.ping_interval());
        }
        if let Some(until) = self.drain_until {
            if state.is_idle() && !state.drained {
                state.drained = true;
                self.connection.push_control(state, Control::Drained);
                self.connection.changed.notify_all();
            }
            if (state.drained && state.peer_drained) || now >= until {
                close(state, CloseCode::Duplicate);
            }
        }
    }

    /// Looks whether a packet has come since the last look, after a timer of QUIC.
    fn note_silence(&mut self, state: &State) {
        let Some(path) = state.quic.path_stats().next() else {
            return;
        };
        if path.recv != self.silence.received {
            self.silence = Silence {
                received: path.recv,
                timeouts: path.total_pto_count,
                told: false,
            };
        }
        let timeouts = path.total_pto_count.saturating_sub(self.silence.timeouts);
        if timeouts >= PROBE_TIMEOUTS && !self.silence.told {
            self.silence.told = true;
            self.doubt(Sign::Stalled);
        }
    }

    /// Tells the reactor, once the peer is known, that it may be gone.
    fn doubt(&mut self, sign: Sign) {
        if self.up_at.is_some() {
            let connection = self.connection.id;
            self.notices.push_back(Notice::Doubted { connection, sign });
        }
    }

    /// Ends everything that waits on this connection and makes the last notice.
    fn finish(&self, state: &mut State, reason: CloseReason) -> Notice {
        let unacknowledged = state.streams.unacknowledged();
        let counters = &self.connection.context.counters;
        self.connection.lost.store(unacknowledged > 0, Relaxed);
        counters
            .messages_unacknowledged
            .fetch_add(unacknowledged, Relaxed);
        state.closed = Some(reason.clone());
        let peer = self.connection.peer_name();
        for (_, waiter) in std::mem::take(&mut state.requests) {
            let (peer, reason) = (peer.clone(), reason.to_string());
            let _ = waiter.try_send(Err(RequestError::Disconnected { peer, reason }));
        }
        state.pings.clear();
        // Queued frames count against the process until they are dropped.
        state.streams = Streams::new(self.connection.side == Side::Dialed);
        self.connection.changed.notify_all();
        let mut info = self.connection.info.lock();
        info.state = ConnectionState::Down;
        info.last_error = Some(reason.to_string());
        Notice::Down {
            connection: self.connection.id,
            reason,
            unacknowledged,
        }
    }

    fn publish(&mut self, state: &State, now: Instant) {
        let shown = match state.phase {
            Phase::Handshaking | Phase::Hello | Phase::Ready | Phase::Up => {
                ConnectionState::Handshaking
            }
            Phase::InUse => ConnectionState::Established,
            Phase::Draining => ConnectionState::Draining,
        };
        let mut info = self.connection.info.lock();
        if info.state == shown && now < self.info_at + INFO_INTERVAL {
            return;
        }
        self.info_at = now;
        info.state = shown;
        info.peer = self
            .connection
            .peer
            .get()
            .cloned()
            .or_else(|| self.expected.clone());
        let stats = state.quic.stats();
        info.sent_bytes = stats.sent_bytes;
        info.received_bytes = stats.recv_bytes;
        info.sent_packets = stats.sent as u64;
        info.received_packets = stats.recv as u64;
        info.lost_packets = stats.lost as u64;
        info.streams = state.streams.count();
        info.idle = Some(now.saturating_duration_since(self.heard_at));
        info.up = self.up_at.map(|at| now.saturating_duration_since(at));
        info.last_ping = self.last_ping;
        info.ping_failures = self.missed_pings;
        if let Some(path) = state.quic.path_stats().next() {
            info.rtt = Some(path.rtt);
            info.min_rtt = path.min_rtt;
            info.cwnd_bytes = path.cwnd as u64;
            info.mtu_bytes = path.pmtu as u64;
        }
    }
}

/// What reading a stream came to.
enum Reading {
    /// No more bytes now.
    Waiting,
    /// A full inbox, or a full queue to the reactor.
    Stalled,
    /// The peer has said everything.
    Finished,
    /// The stream is over without an end.
    Reset,
}

enum Delivered {
    Yes,
    Blocked,
    /// Nobody here wants the stream.
    Ignore,
}

fn is_bidirectional(stream: u64) -> bool {
    stream & 2 == 0
}

fn protocol(error: FramingError) -> Refusal {
    log::debug!(target: "transport", error:%; "protocol violation");
    (CloseCode::Protocol, CloseReason::Local(CloseCode::Protocol))
}

/// Closes from this end, once.
fn close(state: &mut State, code: CloseCode) {
    state.closing.get_or_insert(CloseReason::Local(code));
    // `Done` means that it is closing already.
    let _ = state.quic.close(true, code.to_wire(), b"");
}

/// The one classification of how a connection ended, from its state. `None` while it lives.
fn close_reason(state: &State) -> Option<CloseReason> {
    let quic = &state.quic;
    let is_over = quic.is_closed() || quic.is_draining() || quic.local_error().is_some();
    if !is_over {
        return None;
    }
    if let Some(error) = quic.peer_error() {
        return Some(classify(error.is_app, error.error_code, true));
    }
    if let Some(reason) = &state.closing {
        return Some(reason.clone());
    }
    if let Some(error) = quic.local_error() {
        return Some(classify(error.is_app, error.error_code, false));
    }
    if quic.is_timed_out() {
        return Some(CloseReason::Idle);
    }
    // Closed without an error and not by time: quiche recognised a stateless reset.
    Some(CloseReason::Reset)
}

/// TLS alerts are transport errors 0x100 to 0x1ff (RFC 9001 §4.8).
fn classify(is_app: bool, code: u64, by_peer: bool) -> CloseReason {
    match (is_app, by_peer) {
        (true, true) => CloseReason::Peer(CloseCode::from_wire(code)),
        (true, false) => CloseReason::Local(CloseCode::from_wire(code)),
        (false, by_peer) => match u8::try_from(code.wrapping_sub(0x100)) {
            Ok(alert) => CloseReason::Tls { alert, by_peer },
            Err(_) => CloseReason::Transport { code, by_peer },
        },
    }
}
