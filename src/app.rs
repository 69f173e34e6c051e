//! Applications on a node: messages, requests, and the threads that handle them.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, select};
use parking_lot::Mutex;

use crate::{
    error::{DatagramError, RegisterError, RequestError, SendError, SendErrorKind},
    inbox::{Answer, Datagram, Inbox, Message, PendingRequest, Registry, Request},
    node_id::NodeId,
    snapshot::{Snapshot, Stage},
    stream::Stream,
    thread::{self, panic_message},
    transport::{self, Connection, Then, Untaken},
    waker::deadline_after,
};

/// Handler threads of one application.
const MAX_WORKERS: usize = 256;

/// A reply that is on its way. Dropping it gives up.
pub struct PendingReply {
    pending: transport::PendingReply,
}

impl fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingReply")
            .field("is_ready", &self.is_ready())
            .finish()
    }
}

impl PendingReply {
    /// Waits for the reply, at most until the time-out of the request, which began when it was sent.
    ///
    /// # Errors
    ///
    /// As [`App::request`].
    pub fn wait(self) -> Result<Vec<u8>, RequestError> {
        self.pending.wait()
    }

    /// Whether [`wait`](Self::wait) would return at once.
    pub fn is_ready(&self) -> bool {
        self.pending.is_ready()
    }
}

/// What became of a message to several peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The connections to these have taken it over.
    pub ok: Vec<NodeId>,
    /// These have not, and why.
    pub failed: Vec<(NodeId, SendErrorKind)>,
}

/// The handler threads of a node, to be ended with it.
pub(crate) struct Workers {
    /// `None` once the node has stopped: nobody would end another one.
    running: Mutex<Option<Vec<Worker>>>,
    started: AtomicUsize,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            running: Mutex::new(Some(Vec::new())),
            started: AtomicUsize::new(0),
        }
    }
}

struct Worker {
    handle: thread::Handle,
    stop: Stop,
}

/// Tells one thread to end, by dropping the sender that it listens to. The node and the application
/// each hold one: whichever ends first ends the thread.
#[derive(Clone)]
pub(crate) struct Stop(Arc<Mutex<Option<Sender<()>>>>);

impl Stop {
    fn stop(&self) {
        self.0.lock().take();
    }
}

impl Workers {
    /// Starts a thread that ends when its receiver is disconnected.
    pub(crate) fn start(
        &self,
        body: impl FnOnce(Receiver<()>) + Send + 'static,
    ) -> Result<Stop, RegisterError> {
        let mut running = self.running.lock();
        let running = running.as_mut().ok_or(RegisterError::Stopped)?;
        // Threads of applications that are gone have ended by themselves.
        running.retain(|worker| !worker.handle.is_finished());
        let (sender, stopped) = crossbeam_channel::bounded(0);
        let stop = Stop(Arc::new(Mutex::new(Some(sender))));
        let number = self.started.fetch_add(1, Relaxed) + 1;
        let handle = thread::spawn(&format!("nd-work-{}", number % 10_000_000), move || {
            body(stopped);
        })
        .map_err(|error| RegisterError::Thread(error.to_string()))?;
        running.push(Worker {
            handle,
            stop: stop.clone(),
        });
        Ok(stop)
    }

    pub(crate) fn count(&self) -> usize {
        let running = self.running.lock();
        let alive = running
            .iter()
            .flatten()
            .filter(|worker| !worker.handle.is_finished());
        alive.count()
    }

    /// Tells all to end and waits until `deadline` for those that work. Returns the names of those
    /// that are busy still; they end with what they do.
    pub(crate) fn stop(&self, deadline: Instant) -> Vec<String> {
        let running = self.running.lock().take().unwrap_or_default();
        running.iter().for_each(|worker| worker.stop.stop());
        // A handler that shuts its own node down cannot wait for itself.
        let stuck = running.into_iter();
        stuck
            .filter_map(|worker| thread::join_by(worker.handle, deadline))
            .collect()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "callers wait against the real clock"
)]
fn now() -> Instant {
    Instant::now()
}

/// An application of a node, by its name: to send and request as this application, and to receive
/// what the same application on other nodes sends. Cheap to clone; all clones are the same
/// application.
///
/// Messages wait in an inbox of 1 MiB. When it is full, the streams that fill it are not read any
/// more and their senders wait; other applications, requests and membership go on.
#[derive(Clone)]
pub struct App {
    inbox: Arc<Inbox>,
    snapshot: Arc<Snapshot>,
    workers: Arc<Workers>,
    /// Gives the name back and ends the handlers when the last clone is gone.
    registration: Arc<Registration>,
}

struct Registration {
    registry: Arc<Registry>,
    name: Arc<str>,
    handlers: Mutex<Vec<Stop>>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.unregister(&self.name);
        self.handlers.lock().iter().for_each(Stop::stop);
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("App").field(&self.inbox.name).finish()
    }
}

impl App {
    pub(crate) fn new(
        inbox: Arc<Inbox>,
        registry: Arc<Registry>,
        snapshot: Arc<Snapshot>,
        workers: Arc<Workers>,
    ) -> Self {
        let name = Arc::clone(&inbox.name);
        let registration = Arc::new(Registration {
            registry,
            name,
            handlers: Mutex::default(),
        });
        Self {
            inbox,
            snapshot,
            workers,
            registration,
        }
    }

    /// The application's name.
    pub fn name(&self) -> &str {
        &self.inbox.name
    }

    fn connection(&self, to: &NodeId) -> Result<Arc<Connection>, SendErrorKind> {
        if let Some(connection) = self.snapshot.peer(to) {
            return Ok(connection);
        }
        match self.snapshot.stage() {
            Stage::Stopped | Stage::Failed(_) => Err(SendErrorKind::Stopped),
            Stage::Joining(_) | Stage::Started | Stage::Leaving => {
                Err(SendErrorKind::NotConnected(to.clone()))
            }
        }
    }

    /// Sends a message to the same application on `to`.
    ///
    /// `Ok` means that the connection has taken it over: it is delivered in order with this
    /// application's other messages to that peer, at most once, as long as the connection lives.
    /// [`flush`](Self::flush) waits for the acknowledgement;
    /// [`Disconnected`](crate::EventKind::Disconnected) tells how many were never acknowledged.
    /// `timeout` bounds how long a slow peer may hold the caller up.
    ///
    /// # Errors
    ///
    /// [`SendError`] with the payload, when the message was not taken.
    pub fn send(
        &self,
        to: &NodeId,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
    ) -> Result<(), SendError> {
        let payload = payload.into();
        self.send_bytes(to, &payload, deadline_after(now(), timeout))
            .map_err(|kind| SendError { kind, payload })
    }

    fn send_bytes(
        &self,
        to: &NodeId,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<(), SendErrorKind> {
        self.on_current(
            to,
            deadline,
            SendErrorKind::Timeout(to.clone()),
            |connection| connection.send(&self.inbox.name, payload, deadline),
        )?;
        self.inbox.figures.sent.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Does something on the connection in use to a peer. When that connection is being replaced
    /// before anything was done on it, the successor is taken: a swap is invisible.
    fn on_current<T, E: From<SendErrorKind>>(
        &self,
        to: &NodeId,
        deadline: Instant,
        late: E,
        mut act: impl FnMut(&Arc<Connection>) -> Result<T, Untaken<E>>,
    ) -> Result<T, E> {
        loop {
            let connection = self.connection(to)?;
            match act(&connection) {
                Ok(value) => return Ok(value),
                Err(Untaken::Failed(error)) => return Err(error),
                Err(Untaken::Superseded) if now() < deadline => {
                    self.snapshot.await_other(to, connection.id, deadline);
                }
                Err(Untaken::Superseded) => return Err(late),
            }
        }
    }

    /// Sends a message to several peers and tells what became of each. An empty list sends nothing.
    /// `timeout` is for all together.
    pub fn send_many(&self, to: &[NodeId], payload: &[u8], timeout: Duration) -> Delivery {
        let deadline = deadline_after(now(), timeout);
        let mut delivery = Delivery::default();
        for node in to {
            match self.send_bytes(node, payload, deadline) {
                Ok(()) => delivery.ok.push(node.clone()),
                Err(kind) => delivery.failed.push((node.clone(), kind)),
            }
        }
        delivery
    }

    /// Sends a message to every connected peer and tells what became of each.
    pub fn broadcast(&self, payload: &[u8], timeout: Duration) -> Delivery {
        let peers: Vec<NodeId> = self.snapshot.peers().into_keys().collect();
        self.send_many(&peers, payload, timeout)
    }

    /// Waits until `to` has acknowledged that every message sent so far is in its inbox.
    ///
    /// # Errors
    ///
    /// [`SendErrorKind::Timeout`] when it has not, [`SendErrorKind::Disconnected`] when it no longer
    /// can.
    pub fn flush(&self, to: &NodeId, timeout: Duration) -> Result<(), SendErrorKind> {
        self.connection(to)?
            .flush(&self.inbox.name, deadline_after(now(), timeout))
    }

    /// Sends a request to the same application on `to` and waits for the reply.
    ///
    /// # Errors
    ///
    /// [`RequestError`] says whether the request may have been carried out all the same.
    pub fn request(
        &self,
        to: &NodeId,
        payload: impl AsRef<[u8]>,
        timeout: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        let started = now();
        let deadline = deadline_after(started, timeout);
        let late = RequestError::Timeout {
            peer: to.clone(),
            timeout,
        };
        let payload = payload.as_ref();
        self.on_current(to, deadline, late, |connection| {
            let flight = || self.inbox.flight(started);
            connection.request(&self.inbox.name, payload, deadline, timeout, flight)
        })?
    }

    /// Sends a request; the reply can be waited for later, and others sent meanwhile.
    ///
    /// # Errors
    ///
    /// [`RequestError`] when it was not sent; waiting tells the rest.
    pub fn request_async(
        &self,
        to: &NodeId,
        payload: impl AsRef<[u8]>,
        timeout: Duration,
    ) -> Result<PendingReply, RequestError> {
        let started = now();
        let deadline = deadline_after(started, timeout);
        let late = RequestError::Timeout {
            peer: to.clone(),
            timeout,
        };
        let payload = payload.as_ref();
        let pending = self.on_current(to, deadline, late, |connection| {
            let flight = || self.inbox.flight(started);
            connection.request_async(&self.inbox.name, payload, deadline, timeout, flight)
        })?;
        Ok(PendingReply { pending })
    }

    /// Sends a request and has `then` called with the reply, or with what came instead of it, exactly
    /// once. The thread that has read the reply calls it, and reads nothing else of that peer
    /// meanwhile: it must not block, as in [`on_request_inline`](Self::on_request_inline). It may send and
    /// request; what it sends leaves with what others do, in one batch. A call of
    /// [`request`](Self::request) from there is refused as
    /// [`WouldDeadlock`](RequestError::WouldDeadlock).
    ///
    /// # Errors
    ///
    /// [`RequestError`] when it was not sent; then `then` is not called.
    pub fn request_then(
        &self,
        to: &NodeId,
        payload: impl AsRef<[u8]>,
        timeout: Duration,
        then: impl FnOnce(Result<Vec<u8>, RequestError>) + Send + 'static,
    ) -> Result<(), RequestError> {
        let started = now();
        let deadline = deadline_after(started, timeout);
        let late = RequestError::Timeout {
            peer: to.clone(),
            timeout,
        };
        let payload = payload.as_ref();
        let inbox = Arc::clone(&self.inbox);
        let mut then: Option<Then> = Some(Box::new(move |outcome| {
            contain(&inbox, || then(outcome));
        }));
        self.on_current(to, deadline, late, |connection| {
            let flight = || self.inbox.flight(started);
            let name = &self.inbox.name;
            connection.request_then(name, payload, deadline, timeout, flight, &mut then)
        })
    }

    /// Opens a stream of bytes to the same application on `to`. The peer learns of it with the first
    /// bytes that are written or by [`finish`](Stream::finish), and takes it from
    /// [`streams`](Self::streams). `timeout` bounds how long a connection that is being replaced may
    /// hold the caller up; the stream's own time-outs are set on it.
    ///
    /// # Errors
    ///
    /// [`SendErrorKind`] when there is no connection, or when 64 streams to that peer are open. A peer
    /// that has no such application, or lets 64 streams wait, resets the stream.
    pub fn open_stream(&self, to: &NodeId, timeout: Duration) -> Result<Stream, SendErrorKind> {
        let deadline = deadline_after(now(), timeout);
        let late = SendErrorKind::Timeout(to.clone());
        let pipe = self.on_current(to, deadline, late, |connection| {
            connection.open_stream(&self.inbox.name, deadline)
        })?;
        Ok(Stream::new(Arc::new(pipe)))
    }

    /// The streams that peers have opened to this application, for `recv` and `select!`. Up to 64 of
    /// them wait; further ones are reset.
    pub fn streams(&self) -> &Receiver<Stream> {
        &self.inbox.streams
    }

    /// Sends a datagram to the same application on `to`: at most once, perhaps never, in no order with
    /// anything else (RFC 9221). It does not wait.
    ///
    /// # Errors
    ///
    /// [`DatagramError`] when it was not sent. What is sent may still be lost, on the way or because
    /// nobody takes it in time at the other end.
    pub fn send_datagram(&self, to: &NodeId, payload: &[u8]) -> Result<(), DatagramError> {
        self.datagram_connection(to)?
            .send_datagram(&self.inbox.name, payload)?;
        self.inbox.figures.sent.fetch_add(1, Relaxed);
        Ok(())
    }

    /// The largest datagram that can be sent to `to` now, in bytes: what fits a datagram of the path,
    /// about 1,100 by default.
    ///
    /// # Errors
    ///
    /// [`DatagramError::NotConnected`] or [`DatagramError::Stopped`].
    pub fn max_datagram_bytes(&self, to: &NodeId) -> Result<usize, DatagramError> {
        let connection = self.datagram_connection(to)?;
        Ok(connection.max_datagram_bytes(&self.inbox.name))
    }

    fn datagram_connection(&self, to: &NodeId) -> Result<Arc<Connection>, DatagramError> {
        self.connection(to).map_err(|kind| match kind {
            SendErrorKind::Stopped => DatagramError::Stopped,
            _ => DatagramError::NotConnected(to.clone()),
        })
    }

    /// The datagrams for this application, for `recv` and `select!`. Up to 1,024 of them wait; further
    /// ones are dropped and counted ([`dropped_datagrams`](Self::dropped_datagrams)).
    pub fn datagrams(&self) -> &Receiver<Datagram> {
        &self.inbox.datagrams
    }

    /// Datagrams that came and that nobody took in time.
    pub fn dropped_datagrams(&self) -> u64 {
        self.inbox.dropped_datagrams.load(Relaxed)
    }

    /// The messages for this application, for `recv` and for `crossbeam_channel::select!`. Clones
    /// of the receiver share the messages. A message counts against the inbox until it is dropped.
    /// The channel ends when the node has stopped.
    pub fn messages(&self) -> &Receiver<Message> {
        &self.inbox.messages
    }

    /// Handles messages on `workers` threads of their own. With more than one, messages of one peer
    /// may be handled at the same time.
    ///
    /// A handler that panics is logged and counted, and goes on with the next message.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Thread`] when the system refuses a thread, [`RegisterError::Stopped`] when
    /// the node is shut down.
    pub fn on_message(
        &self,
        workers: usize,
        handler: impl Fn(Message) + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        let handler = Arc::new(handler);
        for _ in 0..workers.clamp(1, MAX_WORKERS) {
            let (inbox, handler) = (Arc::clone(&self.inbox), Arc::clone(&handler));
            self.start(move |stopped| {
                work(&stopped, &inbox.messages, |message| {
                    contain(&inbox, || handler(message));
                });
            })?;
        }
        Ok(())
    }

    /// Answers requests on `workers` threads of their own: at most so many at the same time. What
    /// the handler returns is the reply; an `Err` reaches the requester as
    /// [`RequestError::Remote`], and so does a panic, which is logged and counted.
    ///
    /// # Errors
    ///
    /// [`RegisterError::Thread`] when the system refuses a thread, [`RegisterError::Stopped`] when
    /// the node is shut down.
    pub fn on_request(
        &self,
        workers: usize,
        handler: impl Fn(&Request) -> Result<Vec<u8>, String> + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        let handler = Arc::new(handler);
        for _ in 0..workers.clamp(1, MAX_WORKERS) {
            let (inbox, handler) = (Arc::clone(&self.inbox), Arc::clone(&handler));
            self.start(move |stopped| {
                work(&stopped, &inbox.requests, |pending| {
                    answer(&inbox, pending, |request| handler(request));
                });
            })?;
        }
        self.inbox.takes_requests.store(true, Relaxed);
        Ok(())
    }

    /// Answers requests on the thread that reads them, for handlers that **never block**: a connection
    /// reads nothing else while one of its requests is handled. That saves two hops between threads,
    /// which cost more than the request itself. Whether a handler keeps that promise nobody checks; a
    /// request from there that waits for its reply is refused as
    /// [`WouldDeadlock`](RequestError::WouldDeadlock), and other calls do not wait. It takes the place of
    /// [`on_request`](Self::on_request).
    ///
    /// The thread may be one of yours: whoever waits for the same peer, in a request or in the read or
    /// write of a [`Stream`], reads for all meanwhile. So a lock that is held across such a wait must not be
    /// taken in the handler.
    pub fn on_request_inline(
        &self,
        handler: impl Fn(&Request) -> Result<Vec<u8>, String> + Send + Sync + 'static,
    ) {
        let inbox = Arc::downgrade(&self.inbox);
        self.inbox.set_inline_requests(Arc::new(move |request| {
            let outcome = inbox
                .upgrade()
                .and_then(|inbox| contain(&inbox, || handler(request)));
            answer_of(outcome)
        }));
    }

    /// Handles messages on the thread that reads them, for handlers that **never block**; see
    /// [`on_request_inline`](Self::on_request_inline). Messages of one peer are handled in order.
    pub fn on_message_inline(&self, handler: impl Fn(Message) + Send + Sync + 'static) {
        let inbox = Arc::downgrade(&self.inbox);
        self.inbox.set_inline_messages(Arc::new(move |message| {
            if let Some(inbox) = inbox.upgrade() {
                contain(&inbox, || handler(message));
            }
        }));
    }

    fn start(&self, body: impl FnOnce(Receiver<()>) + Send + 'static) -> Result<(), RegisterError> {
        let stop = self.workers.start(body)?;
        self.registration.handlers.lock().push(stop);
        Ok(())
    }

    /// How often a handler of this application has panicked.
    pub fn handler_panics(&self) -> u64 {
        self.inbox.handler_panics.load(Relaxed)
    }

    /// Bytes of messages that wait in the inbox or are held by the application.
    pub fn inbox_bytes(&self) -> usize {
        self.inbox.message_budget.held()
    }
}

/// Hands out items until told to stop.
pub(crate) fn work<T>(stopped: &Receiver<()>, items: &Receiver<T>, mut handle: impl FnMut(T)) {
    loop {
        // Stop wins over more work: `select!` alone would toss a coin.
        if stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected) {
            return;
        }
        select! {
            recv(items) -> item => match item {
                Ok(item) => handle(item),
                Err(_) => return,
            },
            recv(stopped) -> _ => return,
        }
    }
}

fn answer(
    inbox: &Inbox,
    pending: PendingRequest,
    handler: impl FnOnce(&Request) -> Result<Vec<u8>, String>,
) {
    let PendingRequest {
        request,
        id,
        expires_at,
        replier,
        permit,
    } = pending;
    if !replier.is_awaited(id) {
        return;
    }
    let answer = if now() >= expires_at {
        Answer::Expired
    } else {
        answer_of(contain(inbox, || handler(&request)))
    };
    drop((request, permit));
    replier.reply(&inbox.name, id, answer, expires_at);
}

fn answer_of(outcome: Option<Result<Vec<u8>, String>>) -> Answer {
    match outcome {
        Some(Ok(payload)) => Answer::Ok(payload),
        Some(Err(message)) => Answer::Error(message),
        None => Answer::Error("the handler panicked".to_owned()),
    }
}

/// Runs user code. `None` when it panicked.
fn contain<T>(inbox: &Inbox, body: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => Some(value),
        Err(panic) => {
            inbox.handler_panics.fetch_add(1, Relaxed);
            inbox.figures.handler_panics.fetch_add(1, Relaxed);
            log::error!(target: "node", app = &*inbox.name, panic = panic_message(panic.as_ref()).as_str();
                "a handler panicked");
            None
        }
    }
}
