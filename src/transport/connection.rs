//! One connection, as everybody holds it.
//!
//! Two locks. The *outbox* has what waits to be sent and who waits for an answer; it is held for
//! moments. The *driver* has QUIC's state; whoever holds it moves the connection on. The driver's
//! lock comes first where both are taken. No code of applications runs under either.
//!
//! **Sending.** A caller puts its unit into the outbox and nudges: it takes the driver's lock if that
//! is free, hands everything in the outbox to QUIC and puts the datagrams on the socket. If somebody
//! else has the lock, the caller leaves at once; whoever has it looks, after letting go, whether
//! something was put there meanwhile, and goes on. So many callers leave in one batch, and none of
//! them waits for the lock (flat combining, Hendler and others 2010). Both sides write first and look
//! second, with a full fence between, so that one of them sees the other.
//!
//! **Waiting for a reply.** The first caller that waits *leads*: it takes the socket out of the
//! worker's sleep, without waking the worker, and reads the socket itself until its reply is there.
//! That saves the hop from thread to thread, which costs more than QUIC does. Whoever waits beside it
//! sleeps until the reply is handed over. When the leader has its reply, the worker has the socket
//! again.
//!
//! **Deadlines.** The worker sleeps towards the next one that it knew of. One that a caller brought
//! forward is watched by the timekeeper, so that the worker need not be woken for each request.

#![expect(
    clippy::disallowed_methods,
    reason = "time enters here: quiche's deadlines are real; and commands are counted where they are sent"
)]

use std::{
    cell::Cell,
    collections::BTreeSet,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{
    control::Control,
    error::{DatagramError, RequestError, SendErrorKind},
    figures::{DropReason, Flight, RequestEnd},
    inbox::{Answer, Replier, Request},
    node_id::{ConnectionId, NodeId},
    stats::{ConnectionInfo, ConnectionState, Side},
    thread::panic_message,
    transport::{
        Command, Context, Datagram, MIN_DATAGRAM_BYTES,
        driver::{Arrived, Asked, Beginning, Driver, Effect, spin_for},
        due::Due,
        framing::{self, ReplyStatus, StreamKind},
        handoff::Handoff,
        incoming::{Incoming, MAX_RAW_STREAMS},
        outbox::{Gate, Outbox, Outcome, Unit},
        raw::RawPipe,
        reply::{Awaited, Then, Waiter},
        seats::Seat,
        slot::Slot,
        tls::Quic,
        udp,
        worker::Worker,
    },
    waker::{Interest, PollSet, Poller, Waker, Woken, sleep_on_two},
};

/// Commands that may wait for a worker. Injected datagrams may fill half of the queue and are
/// dropped and counted beyond; a worker that lets the rest fill up is stuck, and its connection is
/// closed rather than left without a command that mattered.
const COMMAND_CAPACITY: usize = 256;
const INJECT_CAPACITY: usize = COMMAND_CAPACITY / 2;

/// How long a reply may wait for its peer to read.
const REPLY_PATIENCE: Duration = Duration::from_secs(15);

/// Effects that are run before what they brought is sent: so the peer has something to do while the
/// others are run. More would save system calls, and leave one end idle while the other works.
const EFFECTS_AT_ONCE: usize = 16;

/// Bytes of replies that inline handlers have made and that the outbox does not count yet; and the last of
/// them.
const MAX_REPLIES_TOGETHER_BYTES: usize = 64 * 1_024;

thread_local! {
    /// The connection whose effects this thread runs: what is put into its outbox meanwhile leaves at
    /// the end of the turn, together.
    static TURNING: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Whether this thread runs code of an application in the middle of a connection's turn, and so must
/// not wait for what only that turn's end can bring.
pub(super) fn is_turning() -> bool {
    TURNING.get().is_some()
}

pub(super) fn clock() -> Instant {
    Instant::now()
}

/// What the socket of a connection is.
#[derive(Debug)]
pub(super) enum Path {
    /// Connected to the peer.
    Own(UdpSocket),
    /// The listener's; datagrams come by injection.
    Shared(Arc<UdpSocket>),
}

impl Path {
    pub(super) fn send(&self, bytes: &[u8], peer: SocketAddr) -> io::Result<usize> {
        match self {
            Self::Own(socket) => socket.send(bytes),
            Self::Shared(socket) => socket.send_to(bytes, peer),
        }
    }

    pub(super) fn own(&self) -> Option<&UdpSocket> {
        match self {
            Self::Own(socket) => Some(socket),
            Self::Shared(_) => None,
        }
    }
}

/// Where the figures of a connection are counted; it only moves on, so that no sum runs backwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Nowhere: it is not up.
    #[default]
    Not,
    /// With its peer's.
    Peer,
    /// With those of all peers that are not kept apart.
    Others,
    /// It has ended and is part of what is kept.
    Folded,
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) side: Side,
    pub(crate) addr: SocketAddr,
    pub(super) context: Arc<Context>,
    me: Weak<Self>,
    pub(super) path: Path,
    pub(super) waker: Arc<Waker>,
    /// What the worker sleeps on.
    pub(super) poller: Poller,
    /// Wakes who leads; made when somebody does.
    leader: OnceLock<Waker>,
    commands: Sender<Command>,
    pub(super) peer: OnceLock<NodeId>,
    pub(super) driver: Handoff<Driver>,
    pub(super) outbox: Mutex<Outbox>,
    /// Told, with the outbox, whenever a sender, a flusher or a swap may go on.
    pub(super) changed: Condvar,
    /// The socket was full.
    pub(super) is_full: AtomicBool,
    next_request: AtomicU64,
    /// The largest QUIC datagram that can be sent now.
    pub(super) max_datagram: AtomicUsize,
    /// The figures for onlookers: a copy, replaced as a whole, so that reading them waits for nothing
    /// and holds nobody up.
    info: Mutex<Arc<ConnectionInfo>>,
    /// Where its figures are counted. The snapshot writes and reads it under a lock of its own.
    pub(crate) counted: Mutex<Counted>,
    /// The connection this one replaces: its messages come first.
    replaced: Mutex<Option<Replaced>>,
    /// There is one, and something of it may be under way.
    has_predecessor: AtomicBool,
    /// Applications of which messages were never acknowledged when this connection ended. Its successor
    /// knows them, too.
    pub(super) lost: LostApps,
    /// The worker let its commands pile up.
    pub(super) is_stuck: AtomicBool,
    /// When the timekeeper is to look at it.
    pub(super) due: Due,
}

/// Names of applications, at most as many as there are streams of messages.
type LostApps = Arc<Mutex<BTreeSet<Arc<str>>>>;

/// A connection that another one replaced. Its worker keeps it while it lives; nobody else does.
#[derive(Clone)]
struct Replaced {
    connection: Weak<Connection>,
    lost: LostApps,
    /// Nobody waits for it any longer.
    until: Instant,
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

/// What a connection begins with.
pub(super) struct Start {
    pub(super) id: ConnectionId,
    pub(super) side: Side,
    pub(super) addr: SocketAddr,
    pub(super) path: Path,
    pub(super) quic: Quic,
    /// The node that must answer, when it is known.
    pub(super) expected: Option<NodeId>,
    /// The first datagram of an accepted connection.
    pub(super) first: Option<Datagram>,
    pub(super) local: SocketAddr,
}

/// Makes a connection and its worker, which sleeps on `set`, where `key` tells it from others.
pub(super) fn new(
    context: Arc<Context>,
    start: Start,
    set: PollSet,
    key: u64,
) -> io::Result<(Arc<Connection>, Worker)> {
    let now = Instant::now();
    // Bounded where they are sent; a bounded channel would hold room for all of them from the start.
    let (commands, received) = crossbeam_channel::unbounded();
    let offload = context.offload;
    let mut gso = false;
    if let Some(socket) = start.path.own() {
        let max = context.config.max_datagram_bytes;
        gso = offload.gso && udp::segment_to(socket, max).is_ok();
        if max > MIN_DATAGRAM_BYTES {
            // Refused, they are cut on the way, and arrive all the same.
            let _ = udp::forbid_fragments(socket);
        }
        if offload.gro {
            // Without, each receive brings one datagram.
            let _ = udp::gather(socket);
        }
    }
    let waker = Arc::new(Waker::new()?);
    let poller = Poller::new(set, key, &waker, start.path.own().map(AsFd::as_fd))?;
    let info = ConnectionInfo {
        peer: start.expected.clone(),
        side: Some(start.side),
        ..ConnectionInfo::empty(start.addr, ConnectionState::Handshaking)
    };
    let driver = Driver::new(Beginning {
        id: start.id,
        quic: start.quic,
        gso,
        local: start.local,
        expected: start.expected,
        first: start.first,
        deadline: now + context.config.dial_timeout,
        max_datagram_bytes: context.config.max_datagram_bytes,
        now,
    });
    let connection = Arc::new_cyclic(|me| Connection {
        id: start.id,
        side: start.side,
        addr: start.addr,
        me: Weak::clone(me),
        waker,
        poller,
        leader: OnceLock::new(),
        path: start.path,
        commands,
        peer: OnceLock::new(),
        driver: Handoff::new(driver),
        outbox: Mutex::new(Outbox::new(
            start.side == Side::Dialed,
            context.config.max_message_bytes,
        )),
        changed: Condvar::new(),
        is_full: AtomicBool::new(false),
        next_request: AtomicU64::new(1),
        max_datagram: AtomicUsize::new(0),
        info: Mutex::new(Arc::new(info)),
        counted: Mutex::default(),
        replaced: Mutex::new(None),
        has_predecessor: AtomicBool::new(false),
        lost: Arc::default(),
        is_stuck: AtomicBool::new(false),
        due: Due::new(now),
        context,
    });
    let worker = Worker::new(Arc::clone(&connection), received);
    Ok((connection, worker))
}

impl Connection {
    /// The peer, once its certificate has proven who it is.
    pub(crate) fn peer(&self) -> Option<&NodeId> {
        self.peer.get()
    }

    pub(super) fn arc(&self) -> Arc<Self> {
        // Whoever calls a method holds one.
        self.me.upgrade().expect("the connection is in use")
    }

    /// Gives the worker a command. `false` when its queue is full.
    pub(crate) fn command(&self, command: Command) -> bool {
        let is_datagram = matches!(command, Command::Inject(_));
        let waiting = self.commands.len();
        if is_datagram && waiting >= INJECT_CAPACITY {
            return false;
        }
        if waiting >= COMMAND_CAPACITY {
            self.is_stuck.store(true, Relaxed);
            return false;
        }
        // If the worker is gone, what it was told has no meaning any more.
        if self.commands.send(command).is_ok() {
            self.waker.wake();
        }
        true
    }

    /// The figures for onlookers, at most a ping interval old.
    pub(crate) fn info(&self) -> Arc<ConnectionInfo> {
        Arc::clone(&self.info.lock())
    }

    /// Holds every lock that is held while the connection works.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        (self.driver.lock(), self.outbox.lock())
    }

    pub(super) fn set_info(&self, info: ConnectionInfo) {
        let before = std::mem::replace(&mut *self.info.lock(), Arc::new(info));
        drop(before);
    }

    /// Notes the connection that this one replaces.
    pub(crate) fn replaces(&self, predecessor: &Arc<Self>) {
        *self.replaced.lock() = Some(Replaced {
            connection: Arc::downgrade(predecessor),
            lost: Arc::clone(&predecessor.lost),
            until: Instant::now() + self.context.config.drain_timeout,
            is_settled: false,
        });
        self.has_predecessor.store(true, Relaxed);
    }

    pub(super) fn peer_name(&self) -> NodeId {
        // Only used where the connection is in use, which takes a proven peer.
        self.peer
            .get()
            .cloned()
            .unwrap_or_else(|| self.context.node.clone())
    }

    pub(super) fn push_control(&self, frame: Control) {
        self.outbox.lock().push_control(&frame.encode());
    }

    // ---- sending

    /// Why nothing can be taken over on this connection any more; `None` while it can, or will.
    fn refusal(&self, outbox: &Outbox) -> Option<Untaken<SendErrorKind>> {
        match &outbox.gate {
            Gate::Shut | Gate::Open => None,
            Gate::Superseded
            | Gate::Closed {
                is_replaced: true, ..
            } => Some(Untaken::Superseded),
            Gate::Closed { reason, .. } => Some(Untaken::Failed(SendErrorKind::Disconnected {
                peer: self.peer_name(),
                reason: reason.clone(),
            })),
        }
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
        if !self.await_predecessor(deadline) {
            return Err(SendErrorKind::Timeout(self.peer_name()).into());
        }
        let unit = Unit::new(&[], payload);
        let mut outbox = self.outbox.lock();
        loop {
            if let Some(refusal) = self.refusal(&outbox) {
                return Err(refusal);
            }
            if outbox.take_refusal(app) {
                let (peer, app) = (self.peer_name(), app.to_string());
                return Err(SendErrorKind::NoApplication { peer, app }.into());
            }
            let is_open = outbox.gate == Gate::Open;
            if is_open && outbox.has_room(StreamKind::Messages, app, payload.len()) {
                break;
            }
            if !self.wait(&mut outbox, deadline) {
                return Err(SendErrorKind::Timeout(self.peer_name()).into());
            }
        }
        outbox.push(StreamKind::Messages, app, unit);
        drop(outbox);
        self.nudge();
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
            if replaced.lost.lock().remove(app) {
                let reason =
                    "earlier messages were lost when the connection was replaced".to_owned();
                let peer = self.peer_name();
                return Err(SendErrorKind::Disconnected { peer, reason });
            }
        }
        let mut outbox = self.outbox.lock();
        loop {
            if let Gate::Closed { reason, .. } = &outbox.gate {
                if !self.lost.lock().contains(app) {
                    return Ok(());
                }
                let (peer, reason) = (self.peer_name(), reason.clone());
                return Err(SendErrorKind::Disconnected { peer, reason });
            }
            if outbox.is_refused(app) {
                let (peer, app) = (self.peer_name(), app.to_string());
                return Err(SendErrorKind::NoApplication { peer, app });
            }
            if outbox.unacknowledged_of(app) == 0 {
                return Ok(());
            }
            if !self.wait(&mut outbox, deadline) {
                return Err(SendErrorKind::Timeout(self.peer_name()));
            }
        }
    }

    /// Puts a request into the outbox, waiting for room until `deadline`. `timeout` is told to the
    /// peer, so that it does not work for nobody. `in_line`: what to do with the outbox in the moment
    /// in which the request is in it.
    #[expect(clippy::too_many_arguments, reason = "what a request is made of")]
    fn submit<T>(
        &self,
        app: &Arc<str>,
        payload: &[u8],
        deadline: Instant,
        timeout: Duration,
        waiter: impl FnOnce() -> Waiter,
        flight: impl FnOnce() -> Option<Flight>,
        in_line: impl FnOnce(&mut Outbox) -> T,
    ) -> Result<(u64, T), Untaken<RequestError>> {
        let max = self.context.config.max_message_bytes;
        if payload.len() > max {
            let bytes = payload.len();
            return Err(RequestError::TooLarge { bytes, max }.into());
        }
        if !self.await_predecessor(deadline) {
            let peer = self.peer_name();
            return Err(RequestError::Timeout { peer, timeout }.into());
        }
        let id = self.next_request.fetch_add(1, Relaxed);
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let head = framing::request_head(id, timeout_ms);
        let unit = Unit::new(&head, payload);
        let mut outbox = self.outbox.lock();
        loop {
            match self.refusal(&outbox) {
                None => {}
                Some(Untaken::Superseded) => return Err(Untaken::Superseded),
                Some(Untaken::Failed(kind)) => return Err(RequestError::from(kind).into()),
            }
            let is_open = outbox.gate == Gate::Open;
            if is_open && outbox.requests.len() >= self.context.config.max_requests_in_flight {
                return Err(RequestError::Busy(self.peer_name()).into());
            }
            if is_open && outbox.has_room(StreamKind::Requests, app, payload.len()) {
                break;
            }
            if !self.wait(&mut outbox, deadline) {
                let peer = self.peer_name();
                return Err(RequestError::Timeout { peer, timeout }.into());
            }
        }
        let waiter = waiter();
        if let Some(at) = waiter.expires_at() {
            outbox.next_expiry = Some(outbox.next_expiry.map_or(at, |next| next.min(at)));
        }
        let flight = flight();
        outbox.requests.insert(id, Awaited { waiter, flight });
        outbox.push_request(app, id, unit);
        Ok((id, in_line(&mut outbox)))
    }

    /// Sends a request and waits for the reply.
    pub(crate) fn request(
        &self,
        app: &Arc<str>,
        payload: &[u8],
        deadline: Instant,
        timeout: Duration,
        flight: impl FnOnce() -> Option<Flight>,
    ) -> Result<Outcome, Untaken<RequestError>> {
        if is_turning() {
            return Err(RequestError::WouldDeadlock(self.peer_name()).into());
        }
        let slot = Arc::new(Slot::default());
        let waiter = || Waiter::Slot(Arc::clone(&slot));
        let in_line = |outbox: &mut Outbox| self.begin_waiting(outbox, None);
        let submitted = self.submit(app, payload, deadline, timeout, waiter, flight, in_line);
        let (id, seat) = submitted?;
        self.nudge_and_wait(seat, &slot, deadline, false);
        self.give_up(id, deadline);
        Ok(slot.take().unwrap_or_else(|| {
            let peer = self.peer_name();
            Err(RequestError::Timeout { peer, timeout })
        }))
    }

    /// Nobody waits for the reply to a request any more, whether it has come or not.
    fn give_up(&self, request: u64, deadline: Instant) {
        let withdrawn = self.outbox.lock().withdraw(request);
        self.changed.notify_all();
        let Some((awaited, withdrawal)) = withdrawn else {
            return;
        };
        self.context.counters.note_given_up(withdrawal);
        // There may be a control frame or a reset to send.
        self.nudge();
        // Whoever leaves before the end has given it up; that is no outcome.
        let now = awaited.flight.as_ref().map(|_| clock());
        if let (Some(flight), Some(now)) = (awaited.flight, now.filter(|now| *now >= deadline)) {
            flight.end(RequestEnd::Timeout, now);
        }
    }

    /// Sends a request; the returned value waits for the reply.
    pub(crate) fn request_async(
        self: &Arc<Self>,
        app: &Arc<str>,
        payload: &[u8],
        deadline: Instant,
        timeout: Duration,
        flight: impl FnOnce() -> Option<Flight>,
    ) -> Result<PendingReply, Untaken<RequestError>> {
        let slot = Arc::new(Slot::default());
        let waiter = || Waiter::Slot(Arc::clone(&slot));
        let in_line = |outbox: &mut Outbox| self.end_keeping(outbox);
        let submitted = self.submit(app, payload, deadline, timeout, waiter, flight, in_line);
        let (id, ()) = submitted?;
        self.nudge();
        Ok(PendingReply {
            connection: Arc::clone(self),
            id,
            slot,
            deadline,
            timeout,
        })
    }

    /// Sends a request; `then` is called with the reply by the thread that reads it. It is taken when
    /// the request is.
    pub(crate) fn request_then(
        &self,
        app: &Arc<str>,
        payload: &[u8],
        deadline: Instant,
        timeout: Duration,
        flight: impl FnOnce() -> Option<Flight>,
        then: &mut Option<Then>,
    ) -> Result<(), Untaken<RequestError>> {
        let waiter = || Waiter::Then {
            then: then.take().unwrap_or_else(|| Box::new(drop)),
            expires_at: deadline,
            timeout,
        };
        let in_line = |outbox: &mut Outbox| self.end_keeping(outbox);
        self.submit(app, payload, deadline, timeout, waiter, flight, in_line)?;
        self.nudge();
        Ok(())
    }

    /// Sends a health ping; its round-trip time comes on the returned channel.
    pub(crate) fn ping(&self) -> Receiver<Duration> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        let mut driver = self.driver.lock();
        if driver.closed.is_none() {
            driver.ping(self, Instant::now(), Some(answer));
            self.end_keeping(&mut self.outbox.lock());
            self.work_is_there();
        }
        self.release(driver);
        answered
    }

    /// Opens a stream of the application's own.
    pub(crate) fn open_stream(
        self: &Arc<Self>,
        app: &Arc<str>,
        deadline: Instant,
    ) -> Result<RawPipe, Untaken<SendErrorKind>> {
        let mut outbox = self.outbox.lock();
        loop {
            if let Some(refusal) = self.refusal(&outbox) {
                return Err(refusal);
            }
            if outbox.gate == Gate::Open {
                break;
            }
            if !self.wait(&mut outbox, deadline) {
                return Err(SendErrorKind::Timeout(self.peer_name()).into());
            }
        }
        let Some(id) = outbox.reserve_raw() else {
            let (peer, max) = (self.peer_name(), MAX_RAW_STREAMS);
            return Err(SendErrorKind::TooManyStreams { peer, max }.into());
        };
        drop(outbox);
        // The answer is known to the driver before anything is in the outbox that it could answer.
        let mut driver = self.driver.lock();
        if driver.closed.is_none() {
            let answer = Incoming::opened_here(StreamKind::Raw, app, 0);
            driver.inflow.streams.insert(id, answer);
            self.outbox.lock().open_raw(id, app);
            self.work_is_there();
        }
        self.release(driver);
        Ok(RawPipe::new(Arc::clone(self), id))
    }

    /// Sends a datagram, or says why not.
    pub(crate) fn send_datagram(&self, app: &str, payload: &[u8]) -> Result<(), DatagramError> {
        let max = self.max_datagram_bytes(app);
        if payload.len() > max {
            let bytes = payload.len();
            return Err(DatagramError::TooLarge { bytes, max });
        }
        let mut datagram = Vec::with_capacity(1 + app.len() + payload.len());
        // Names of applications have at most 64 bytes.
        datagram.push(app.len() as u8);
        datagram.extend_from_slice(app.as_bytes());
        datagram.extend_from_slice(payload);
        let mut outbox = self.outbox.lock();
        if outbox.gate != Gate::Open {
            return Err(DatagramError::NotConnected(self.peer_name()));
        }
        if !outbox.push_datagram(datagram) {
            return Err(DatagramError::Full(self.peer_name()));
        }
        drop(outbox);
        self.nudge();
        Ok(())
    }

    /// The largest datagram of the application that can be sent now.
    pub(crate) fn max_datagram_bytes(&self, app: &str) -> usize {
        let room = self.max_datagram.load(Relaxed);
        room.saturating_sub(1 + app.len())
    }

    /// Waits until nothing is under way: nothing to write, no reply awaited, no request being
    /// answered. Gives up at `deadline`.
    pub(crate) fn await_idle(&self, deadline: Instant) {
        let mut outbox = self.outbox.lock();
        while matches!(outbox.gate, Gate::Open | Gate::Superseded) && !outbox.is_idle() {
            if !self.wait(&mut outbox, deadline) {
                return;
            }
        }
    }

    /// Order across a swap: what was sent on the replaced connection arrives first. Bounded by the time
    /// a connection may drain. `false` when that is not over by `deadline`.
    fn await_predecessor(&self, deadline: Instant) -> bool {
        if !self.has_predecessor.load(Relaxed) {
            return true;
        }
        let replaced = self.replaced.lock().clone();
        let Some(replaced) = replaced.filter(|replaced| !replaced.is_settled) else {
            return true;
        };
        if let Some(connection) = replaced.connection.upgrade() {
            let until = replaced.until.min(deadline);
            let mut outbox = connection.outbox.lock();
            while !matches!(outbox.gate, Gate::Closed { .. }) && !outbox.is_written_out() {
                if !connection.wait(&mut outbox, until) {
                    if Instant::now() < replaced.until {
                        return false;
                    }
                    break;
                }
            }
        }
        if let Some(replaced) = &mut *self.replaced.lock() {
            replaced.is_settled = true;
        }
        self.has_predecessor.store(false, Relaxed);
        true
    }

    /// Waits for a change. `false` at the deadline, and on a thread that must not wait.
    pub(super) fn wait(&self, outbox: &mut MutexGuard<'_, Outbox>, deadline: Instant) -> bool {
        // The process-wide budget is freed by other connections, which do not tell us: look again
        // now and then.
        let now = Instant::now();
        if now >= deadline || is_turning() {
            return false;
        }
        self.end_keeping(outbox);
        self.changed
            .wait_until(outbox, deadline.min(now + Duration::from_millis(50)));
        true
    }

    // ---- driving

    /// What tells it from every other connection of the process; ids are each node's own.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Has what is in the outbox sent: by this thread, or by whoever drives the connection now.
    pub(super) fn nudge(&self) {
        self.driver.note_work();
        if TURNING.get() != Some(self.address()) {
            self.driver.offer(|driver| self.drive_out(driver, false));
        }
    }

    /// Whoever lets go of the driver next looks at what is to be sent.
    pub(super) fn work_is_there(&self) {
        self.driver.note_work();
    }

    /// What is in the outbox now is about to be seen to.
    pub(super) fn work_is_seen(&self) {
        self.driver.take_work();
    }

    /// Lets go of the driver, after everything that was put into the outbox meanwhile was seen to.
    pub(super) fn release<'a>(&'a self, driver: MutexGuard<'a, Driver>) {
        let drive_out = |driver: &mut Driver| self.drive_out(driver, false);
        self.driver.release(driver, drive_out);
    }

    /// Sends what waits, on a thread that is not the worker, and sees to it that somebody watches over
    /// what is due afterwards.
    ///
    /// A panic inside quiche on a caller's thread is contained like one on the worker's: the state is
    /// not touched again and the worker ends the connection.
    fn drive_out(&self, driver: &mut Driver, with_ack: bool) {
        if driver.closed.is_some() || driver.is_broken {
            return;
        }
        let now = clock();
        let flushed = catch_unwind(AssertUnwindSafe(|| driver.flush(self, now, with_ack)));
        if let Err(panic) = flushed {
            self.note_panic(driver, panic.as_ref());
            return;
        }
        self.is_full.store(driver.is_full(), Relaxed);
        if driver.is_full() || !driver.notices.is_empty() || driver.close_reason().is_some() {
            self.waker.wake();
            return;
        }
        if let Some(due) = driver.next_deadline(self)
            && driver.armed.is_none_or(|armed| due < armed)
        {
            self.context.timekeeper.watch(self, due);
        }
    }

    fn note_panic(&self, driver: &mut Driver, panic: &(dyn std::any::Any + Send)) {
        let why = panic_message(panic);
        log::error!(target: "transport", addr:% = self.addr, panic = why.as_str();
            "a send or receive panicked; the connection is closed");
        driver.is_broken = true;
        self.waker.wake();
    }

    /// For the timekeeper: does what is due, and sets when the next thing is that it has to watch over.
    /// `false` when there is none.
    pub(super) fn on_due(&self, now: Instant) -> bool {
        let Some(mut driver) = self.driver.try_lock() else {
            // Whoever has it sees to it. If not, the next look does.
            self.due.renew(now);
            return true;
        };
        let is_watched = self.on_due_of(&mut driver, now);
        self.release(driver);
        is_watched
    }

    fn on_due_of(&self, driver: &mut Driver, now: Instant) -> bool {
        if driver.closed.is_some() || driver.is_broken {
            return false;
        }
        let is_due = driver.next_deadline(self).is_some_and(|next| next <= now);
        if is_due {
            let turned = catch_unwind(AssertUnwindSafe(|| driver.on_quic_timer(now)));
            if let Err(panic) = turned {
                self.note_panic(driver, panic.as_ref());
                return false;
            }
            self.work_is_seen();
            self.drive_out(driver, false);
        }
        let Some(next) = driver.next_deadline(self) else {
            return false;
        };
        if next <= now {
            // Not a matter of sending: the worker's.
            self.waker.wake();
            return false;
        }
        let is_watched = driver.armed.is_none_or(|armed| next < armed);
        if is_watched {
            self.due.renew(next);
        }
        is_watched
    }

    /// Runs what the lock kept waiting, in order; returns when there is nothing left or when another
    /// thread is at it.
    pub(super) fn run_effects<'a>(
        &'a self,
        mut driver: MutexGuard<'a, Driver>,
    ) -> MutexGuard<'a, Driver> {
        while !driver.effects.is_empty() && !driver.is_delivering {
            driver.is_delivering = true;
            let mut effects = driver.take_effects();
            drop(driver);
            let outer = TURNING.replace(Some(self.address()));
            let now = clock();
            let mut done = 0;
            for effect in effects.drain(..) {
                self.run_effect(effect, now, &mut done);
            }
            TURNING.set(outer);
            driver = self.driver.lock();
            driver.is_delivering = false;
            driver.keep_room_of(effects);
        }
        driver
    }

    /// Sends what effects have brought so far, if that were enough of them.
    fn send_between(&self, done: &mut usize) {
        if *done >= EFFECTS_AT_ONCE {
            *done = 0;
            if self.driver.take_work() {
                self.drive_out(&mut self.driver.lock(), false);
            }
        }
    }

    fn run_effect(&self, effect: Effect, now: Instant, done: &mut usize) {
        self.send_between(done);
        *done += 1;
        match effect {
            Effect::Answer { awaited, outcome } => match awaited.over(&outcome, now) {
                Waiter::Slot(slot) => self.fill(&slot, outcome),
                Waiter::Then { then, .. } => then(outcome),
            },
            Effect::Requests(asked) => self.handle_inline(asked, now, done),
            Effect::Message { handler, message } => handler(message),
            Effect::Readable(slot) => self.fill(&slot, ()),
            Effect::Offer { inbox, stream } => {
                if let Err(stream) = inbox.deliver_stream(stream) {
                    stream.reset(super::driver::NO_SUCH_APP);
                }
            }
        }
    }

    /// Has an inline handler answer requests.
    fn handle_inline(&self, asked: Asked, now: Instant, done: &mut usize) {
        let app = &asked.inbox.name;
        let mut left = asked.list.len();
        let received = &asked.inbox.figures.requests_received;
        received.fetch_add(left as u64, Relaxed);
        let mut request = Request::new(self.peer_name(), Vec::new());
        let mut replies = Vec::with_capacity(left.min(EFFECTS_AT_ONCE));
        let mut bytes = 0;
        for one in asked.list {
            let answer = if now >= one.expires_at {
                Answer::Expired
            } else {
                request.payload = one.payload;
                (asked.handler)(&request)
            };
            let (status, payload) = self.reply_of(app, answer);
            bytes += payload.len();
            replies.push((one.id, framing::reply_head(one.id, status), payload));
            left -= 1;
            if left == 0 {
                *done += replies.len();
                self.reply_at_once(app, &mut replies, asked.places);
            } else if replies.len() == EFFECTS_AT_ONCE || bytes > MAX_REPLIES_TOGETHER_BYTES {
                bytes = 0;
                *done += replies.len();
                self.reply_at_once(app, &mut replies, 0);
                self.send_between(done);
            }
        }
    }

    /// Whoever waits for room, or for another change, looks. `writers`: those of an application's own
    /// streams.
    pub(super) fn tell_changed(&self, writers: Vec<Arc<Slot<()>>>) {
        self.changed.notify_all();
        for writer in writers {
            self.fill(&writer, ());
        }
    }

    fn fill<T>(&self, slot: &Slot<T>, outcome: T) {
        if slot.fill(outcome)
            && let Some(leader) = self.leader.get()
        {
            leader.wake();
        }
    }

    // ---- leading

    /// Somebody begins to wait for something of the peer. `looped_at`: now, for one that is likely to do
    /// so again soon.
    pub(super) fn begin_waiting(&self, outbox: &mut Outbox, looped_at: Option<Instant>) -> Seat {
        outbox.seats.sit_down(self.path.own().is_some(), looped_at)
    }

    /// Has what is in the outbox sent, then waits until `slot` is filled, or until `deadline`.
    /// `in_loop`: the caller is likely to wait again soon.
    pub(super) fn nudge_and_wait<T>(
        &self,
        seat: Seat,
        slot: &Slot<T>,
        deadline: Instant,
        in_loop: bool,
    ) {
        match (seat, self.path.own(), self.leader()) {
            (Seat::Leader | Seat::Kept, Some(socket), Some(waker)) => {
                let is_kept = seat == Seat::Kept;
                if !is_kept {
                    // Before anything is sent, or the answer would wake the worker.
                    self.poller.watch(socket.as_fd(), None);
                }
                self.nudge();
                self.lead(socket, waker, slot, deadline, is_kept);
            }
            _ => {
                self.nudge();
                slot.wait_filled(deadline);
            }
        }
        // A wait that ended by time is no loop.
        let looped_at = (in_loop && slot.is_done()).then(clock);
        // Under the lock, or the worker might undo it on account of a leader that is gone.
        let mut outbox = self.outbox.lock();
        let is_news = outbox
            .seats
            .get_up(seat, looped_at, || self.give_socket_back());
        drop(outbox);
        if is_news {
            self.waker.wake();
        }
    }

    /// The worker has the socket.
    fn give_socket_back(&self) {
        if let Some(socket) = self.path.own() {
            self.poller.watch(socket.as_fd(), Some(Interest::Read));
        }
    }

    /// Somebody is about to wait for the peer in a way that needs the worker.
    pub(super) fn end_keeping(&self, outbox: &mut Outbox) {
        outbox.seats.end_keeping(|| self.give_socket_back());
    }

    /// For the worker: takes the socket back from one in a loop that did not return. When to look
    /// again.
    pub(super) fn watch_seats(&self, now: Instant) -> Option<Instant> {
        let mut outbox = self.outbox.lock();
        outbox.seats.watch(now, || self.give_socket_back())
    }

    fn leader(&self) -> Option<&Waker> {
        if let Some(waker) = self.leader.get() {
            return Some(waker);
        }
        // Without descriptors left, the worker reads the socket as before.
        let waker = Waker::new().ok()?;
        Some(self.leader.get_or_init(|| waker))
    }

    /// Reads the socket until the slot is filled, or until `deadline`. `is_likely`: something has
    /// probably arrived already.
    fn lead<T>(
        &self,
        socket: &UdpSocket,
        waker: &Waker,
        slot: &Slot<T>,
        deadline: Instant,
        mut is_likely: bool,
    ) {
        let spin = self.context.config.spin;
        loop {
            let began = clock();
            if began >= deadline {
                break;
            }
            let first = if spin.is_zero() {
                None
            } else {
                spin_for(socket, began + spin, || slot.is_done())
            };
            let is_there = std::mem::take(&mut is_likely) || first.is_some();
            if !is_there && slot.go_to_socket() {
                let interest = if self.is_full.load(Relaxed) {
                    Interest::ReadWrite
                } else {
                    Interest::Read
                };
                let woken = sleep_on_two(waker, socket.as_fd(), interest, began, deadline);
                slot.leave_socket();
                match woken {
                    Ok(Woken {
                        by_socket: true, ..
                    }) => {}
                    Ok(_) => continue,
                    Err(_) => {
                        // Nothing to sleep on: the worker's turn, which knows what to do then.
                        self.poller.watch(socket.as_fd(), Some(Interest::Read));
                        self.waker.wake();
                        slot.wait_filled(deadline);
                        break;
                    }
                }
            }
            slot.leave_socket();
            // What was taken off the socket has to be seen to by whoever took it.
            if first.is_none() && slot.is_done() {
                break;
            }
            self.turn_of_leader(socket, first);
            if slot.is_done() {
                break;
            }
        }
        slot.leave_socket();
    }

    fn turn_of_leader(&self, socket: &UdpSocket, first: Option<io::Result<Arrived>>) {
        let now = clock();
        let mut driver = self.driver.lock();
        if driver.closed.is_some() || driver.is_broken {
            // The worker is ending it and fills every slot.
            drop(driver);
            std::thread::yield_now();
            return;
        }
        let turned = catch_unwind(AssertUnwindSafe(|| {
            driver.receive(self, socket, first, true, now);
            driver.proceed(self, now);
        }));
        if let Err(panic) = turned {
            self.note_panic(&mut driver, panic.as_ref());
            return;
        }
        let mut driver = self.run_effects(driver);
        self.work_is_seen();
        self.drive_out(&mut driver, true);
        self.release(driver);
    }

    /// What goes back to whoever asked.
    fn reply_of(&self, app: &str, answer: Answer) -> (ReplyStatus, Vec<u8>) {
        let max = self.context.config.max_message_bytes;
        match answer {
            Answer::Ok(payload) if payload.len() > max => (
                ReplyStatus::Error,
                b"reply is larger than a message may be".to_vec(),
            ),
            Answer::Ok(payload) => (ReplyStatus::Ok, payload),
            Answer::Error(message) => (ReplyStatus::Error, message.into_bytes()),
            Answer::Expired => {
                self.context.counters.requests_expired.fetch_add(1, Relaxed);
                let figures = self.context.registry.figures_of(app);
                figures.drop_for(DropReason::Expired, 1);
                (ReplyStatus::Expired, Vec::new())
            }
        }
    }

    /// Sends replies of a thread that may not wait. It gets more room than others; where that is not
    /// enough, the requester is told. `places`: so many fewer are being made.
    fn reply_at_once(
        &self,
        app: &Arc<str>,
        replies: &mut Vec<(u64, [u8; framing::REPLY_HEAD_BYTES], Vec<u8>)>,
        places: usize,
    ) {
        let mut dropped = 0;
        // A large one is cut before the lock is taken.
        let units: Vec<_> = replies
            .iter()
            .map(|(id, head, payload)| (*id, payload.len(), Unit::new(head, payload)))
            .collect();
        let mut outbox = self.outbox.lock();
        outbox.answering = outbox.answering.saturating_sub(places);
        for (id, bytes, unit) in units {
            if matches!(outbox.gate, Gate::Closed { .. }) {
                dropped += 1;
            } else if outbox.has_room_at_once(app, bytes) {
                outbox.push(StreamKind::Replies, app, unit);
            } else {
                dropped += 1;
                let head = framing::reply_head(id, ReplyStatus::Error);
                let why = b"replies pile up: the requester does not read them fast enough";
                outbox.push(StreamKind::Replies, app, Unit::new(&head, why));
            }
        }
        drop(outbox);
        replies.clear();
        self.nudge();
        if dropped > 0 {
            self.note_dropped_replies(app, dropped);
        }
    }

    fn note_dropped_replies(&self, app: &str, count: u64) {
        self.context
            .counters
            .replies_dropped
            .fetch_add(count, Relaxed);
        let figures = self.context.registry.figures_of(app);
        figures.drop_for(DropReason::Reply, count);
        log::debug!(target: "transport", peer:% = self.peer_name(), app:%; "{count} replies not delivered");
    }
}

/// A reply that is awaited; dropping it gives up.
pub(crate) struct PendingReply {
    connection: Arc<Connection>,
    id: u64,
    slot: Arc<Slot<Outcome>>,
    deadline: Instant,
    timeout: Duration,
}

impl PendingReply {
    /// Waits for the reply until the request's time is over.
    pub(crate) fn wait(self) -> Outcome {
        if !self.slot.is_done() {
            if is_turning() {
                return Err(RequestError::WouldDeadlock(self.connection.peer_name()));
            }
            let connection = &self.connection;
            let seat = connection.begin_waiting(&mut connection.outbox.lock(), None);
            connection.nudge_and_wait(seat, &self.slot, self.deadline, false);
        }
        self.slot.take().unwrap_or_else(|| {
            Err(RequestError::Timeout {
                peer: self.connection.peer_name(),
                timeout: self.timeout,
            })
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.slot.is_done()
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        self.connection.give_up(self.id, self.deadline);
    }
}

impl Replier for Connection {
    fn reply(&self, app: &Arc<str>, id: u64, answer: Answer, expires_at: Instant) {
        // Nobody waits for it after that, and this is a handler's thread.
        let deadline = expires_at.min(Instant::now() + REPLY_PATIENCE);
        let (status, payload) = self.reply_of(app, answer);
        let head = framing::reply_head(id, status);
        let unit = Unit::new(&head, &payload);
        let mut outbox = self.outbox.lock();
        // If not, it was withdrawn meanwhile, or the connection is over: nobody waits for it.
        if !outbox.asked.remove(&id) {
            return;
        }
        while !matches!(outbox.gate, Gate::Closed { .. }) {
            if outbox.has_room(StreamKind::Replies, app, payload.len()) {
                outbox.push(StreamKind::Replies, app, unit);
                drop(outbox);
                self.nudge();
                return;
            }
            if !self.wait(&mut outbox, deadline) {
                break;
            }
        }
        drop(outbox);
        self.note_dropped_replies(app, 1);
    }

    fn is_awaited(&self, id: u64) -> bool {
        self.outbox.lock().asked.contains(&id)
    }
}
