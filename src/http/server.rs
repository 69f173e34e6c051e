//! The sockets of the HTTP server: one thread for all of them, and a few that make answers.
//!
//! `nd-http` polls the listener and every connection and never blocks on a client: a client that is slow
//! costs a descriptor and a few kilobytes, not a thread. Whole requests go to the [`WORKERS`] threads
//! `nd-http-N`, which make answers from snapshots. So the number of threads is the same whatever clients
//! do.
//!
//! Bounds: [`MAX_CONNECTIONS`] connections, of which a new one takes the place of the one that has kept
//! its request back for longest; [`PATIENCE`] for a whole head, and as much to take the answer; one request
//! of a connection at a time. A connection that is closed after a refusal is read empty for a moment
//! first, or the client's system would throw the answer away.

#![expect(
    clippy::disallowed_methods,
    reason = "clients are timed by the real clock"
)]

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::head::{Head, Hosts, MAX_HEAD_BYTES, Parsed, Refusal, parse};
use crate::{
    thread::{self, panic_message},
    waker::Waker,
};

/// Connections at one time: browsers keep a few each, scrapers one. With a descriptor each, more
/// would be at the cost of the node's own.
const MAX_CONNECTIONS: usize = 128;

/// Threads that make answers. One may wait for peers; the others go on meanwhile.
pub(super) const WORKERS: usize = 3;

/// How long a client may take to send a whole head, and to take the whole answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a client may send after it was refused, and for how long it is read.
const MAX_DRAINED_BYTES: usize = 512 * 1_024;
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// How long after a failure to accept the next try is made: descriptors come back as others close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What answers under way have at the end.
const STOP_PATIENCE: Duration = Duration::from_millis(250);

/// What is said to a client.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    /// Further header lines, each with its end.
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            content_type,
            headers: String::new(),
            body: body.into(),
        }
    }

    pub(crate) fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    fn of(refusal: Refusal) -> Self {
        let (status, why) = match refusal {
            Refusal::Malformed => (400, "not an HTTP/1 request with one Host\n"),
            Refusal::Host => (403, "this Host is not served here\n"),
            Refusal::Method => (405, "GET and HEAD only\n"),
            Refusal::TooLong => (431, "the head of a request has at most 8 KiB\n"),
        };
        let mut response = Self::text(status, why);
        if refusal == Refusal::Method {
            response.headers.push_str("Allow: GET, HEAD\r\n");
        }
        response
    }

    fn encode(&self, is_head: bool, keep_alive: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            302 => "Found",
            400 => "Bad Request",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let mut bytes = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
             Connection: {connection}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n{}\r\n",
            self.status,
            self.content_type,
            self.body.len(),
            self.headers
        )
        .into_bytes();
        if !is_head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// Makes an answer.
pub(crate) type Answer = dyn Fn(&Head) -> Response + Send + Sync;

/// A request on its way to a worker, and the answer on its way back.
struct Job {
    id: u64,
    head: Head,
}

struct Done {
    id: u64,
    bytes: Vec<u8>,
    keep_alive: bool,
}

/// A running server.
pub(crate) struct Server {
    waker: Arc<Waker>,
    is_stopping: Arc<AtomicBool>,
    threads: Vec<thread::Handle>,
}

impl Server {
    /// Serves on `listener` until [`stop`](Self::stop).
    ///
    /// # Errors
    ///
    /// What the system refused: a descriptor or a thread. Nothing runs then.
    pub(crate) fn start(
        listener: TcpListener,
        hosts: Hosts,
        answer: Arc<Answer>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let waker = Arc::new(Waker::new()?);
        let is_stopping = Arc::new(AtomicBool::new(false));
        // A connection has one request at a time, so both queues always have room.
        let (jobs, taken) = crossbeam_channel::bounded(MAX_CONNECTIONS);
        let (done, finished) = crossbeam_channel::bounded(MAX_CONNECTIONS);
        let mut server = Self {
            waker: Arc::clone(&waker),
            is_stopping: Arc::clone(&is_stopping),
            threads: Vec::new(),
        };
        for number in 1..=WORKERS {
            let (taken, done): (Receiver<Job>, Sender<Done>) = (taken.clone(), done.clone());
            let (answer, waker) = (Arc::clone(&answer), Arc::clone(&waker));
            let body = move || work(&taken, &done, &*answer, &waker);
            // When one is refused, `jobs` is dropped and the others end.
            let handle = thread::spawn(&format!("nd-http-{number}"), body)?;
            server.threads.push(handle);
        }
        let sockets = Sockets {
            listener,
            hosts,
            waker,
            is_stopping,
            jobs,
            finished,
            clients: BTreeMap::new(),
            next_id: 0,
            accept_at: None,
        };
        let handle = thread::spawn("nd-http", move || sockets.serve())?;
        server.threads.push(handle);
        Ok(server)
    }

    /// Closes the listener and every connection, after what is under way had a moment. Returns the names
    /// of threads that have not ended by `deadline`.
    pub(crate) fn stop(self, deadline: Instant) -> Vec<String> {
        self.is_stopping.store(true, Relaxed);
        self.waker.wake();
        let threads = self.threads.into_iter().rev();
        threads
            .filter_map(|handle| thread::join_by(handle, deadline))
            .collect()
    }
}

/// The body of `nd-http-N`.
fn work(jobs: &Receiver<Job>, done: &Sender<Done>, answer: &Answer, waker: &Waker) {
    while let Ok(Job { id, head }) = jobs.recv() {
        let answered = catch_unwind(AssertUnwindSafe(|| answer(&head)));
        let response = answered.unwrap_or_else(|panic| {
            log::error!(target: "http", path = head.path.as_str(),
                panic = panic_message(panic.as_ref()).as_str(); "an answer panicked");
            Response::text(500, "this page failed; the log says why\n")
        });
        let keep_alive = head.keep_alive;
        let bytes = response.encode(head.is_head, keep_alive);
        let done = done.send(Done {
            id,
            bytes,
            keep_alive,
        });
        if done.is_err() {
            return;
        }
        waker.wake();
    }
}

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its head is awaited.
    Reading,
    /// A worker makes the answer.
    Answering,
    /// The answer is being sent.
    Writing { keep_alive: bool },
    /// Nothing more is sent; what still comes is dropped.
    Draining { left: usize },
}

struct Client {
    stream: TcpStream,
    local: SocketAddr,
    state: State,
    input: Vec<u8>,
    /// It sends nothing more, and may still read.
    has_ended: bool,
    output: Vec<u8>,
    written: usize,
    /// When it has been too slow.
    deadline: Instant,
}

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Lives,
    Ends,
}

struct Sockets {
    listener: TcpListener,
    hosts: Hosts,
    waker: Arc<Waker>,
    is_stopping: Arc<AtomicBool>,
    jobs: Sender<Job>,
    finished: Receiver<Done>,
    /// In the order in which they came.
    clients: BTreeMap<u64, Client>,
    next_id: u64,
    /// Nobody is accepted before, because that failed.
    accept_at: Option<Instant>,
}

impl Sockets {
    fn serve(mut self) {
        let mut stop_at = None;
        loop {
            let now = Instant::now();
            if self.is_stopping.load(Relaxed) {
                let until = *stop_at.get_or_insert(now + STOP_PATIENCE);
                let busy = |client: &Client| {
                    matches!(client.state, State::Answering | State::Writing { .. })
                };
                self.clients.retain(|_, client| busy(client));
                if self.clients.is_empty() || now >= until {
                    return;
                }
            }
            self.clients.retain(|_, client| now < client.deadline);
            let ready = match self.sleep(now, stop_at) {
                Ok(ready) => ready,
                Err(error) => {
                    log::error!(target: "http", error:%; "poll failed; the HTTP server gives up");
                    return;
                }
            };
            let now = Instant::now();
            for id in ready {
                self.turn(id, now);
            }
            while let Ok(done) = self.finished.try_recv() {
                self.take(done, now);
            }
            if stop_at.is_none() {
                self.accept(now);
            }
        }
    }

    /// Sleeps until there is something to do; returns the connections for which there is.
    fn sleep(&mut self, now: Instant, stop_at: Option<Instant>) -> io::Result<Vec<u64>> {
        self.accept_at = self.accept_at.filter(|at| now < *at);
        let deadlines = self.clients.values().map(|client| client.deadline);
        let deadline = deadlines.chain(self.accept_at).chain(stop_at).min();
        let mut polled = vec![PollFd::new(&*self.waker, PollFlags::IN)];
        let accepts = self.accept_at.is_none() && stop_at.is_none();
        let flags = if accepts {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        polled.push(PollFd::from_borrowed_fd(self.listener.as_fd(), flags));
        for client in self.clients.values() {
            let flags = match client.state {
                State::Reading | State::Draining { .. } => PollFlags::IN,
                State::Writing { .. } => PollFlags::OUT,
                // An end or an error is reported all the same.
                State::Answering => PollFlags::empty(),
            };
            polled.push(PollFd::from_borrowed_fd(client.stream.as_fd(), flags));
        }
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(now);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        if !polled[0].revents().is_empty() {
            self.waker.clear();
        }
        let ids = self.clients.keys().zip(&polled[2..]);
        let ready = ids.filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(id, _)| *id).collect())
    }

    fn accept(&mut self, now: Instant) {
        // As many as there may be, so that a burst does not wait for turns; no more, so that those who
        // are here have theirs.
        for _ in 0..MAX_CONNECTIONS {
            if self.accept_at.is_some() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::debug!(target: "http", error:%; "cannot accept a client");
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                }
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, now: Instant) {
        let prepared = stream
            .set_nonblocking(true)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| stream.local_addr());
        let Ok(local) = prepared else {
            return;
        };
        if self.clients.len() >= MAX_CONNECTIONS {
            // Whoever has kept its request back for longest is the least likely to send one.
            let idle = |client: &Client| !matches!(client.state, State::Answering);
            let mut idle = self.clients.iter().filter(|(_, client)| idle(client));
            let Some(slowest) = idle.next().map(|(id, _)| *id) else {
                return;
            };
            self.clients.remove(&slowest);
            log::debug!(target: "http", "too many clients; the slowest made room");
        }
        let id = self.next_id;
        self.next_id += 1;
        let client = Client {
            stream,
            local,
            state: State::Reading,
            input: Vec::new(),
            has_ended: false,
            output: Vec::new(),
            written: 0,
            deadline: now + PATIENCE,
        };
        self.clients.insert(id, client);
        // Most clients have sent their request by now.
        self.turn(id, now);
    }

    fn turn(&mut self, id: u64, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let fate = match client.state {
            State::Reading => client
                .read()
                .map(|()| next_request(client, id, &self.hosts, &self.jobs, now)),
            // It went away before its answer was made.
            State::Answering => Ok(Fate::Ends),
            State::Writing { .. } => advance(client, id, &self.hosts, &self.jobs, now),
            State::Draining { .. } => client.drain(),
        };
        if fate.unwrap_or(Fate::Ends) == Fate::Ends {
            self.clients.remove(&id);
        }
    }

    /// Begins to send an answer.
    fn take(&mut self, done: Done, now: Instant) {
        let Some(client) = self.clients.get_mut(&done.id) else {
            return;
        };
        client.answer(done.bytes, done.keep_alive, now);
        let fate = advance(client, done.id, &self.hosts, &self.jobs, now);
        if fate.unwrap_or(Fate::Ends) == Fate::Ends {
            self.clients.remove(&done.id);
        }
    }
}

/// Looks whether a whole request has come, and has it answered.
fn next_request(
    client: &mut Client,
    id: u64,
    hosts: &Hosts,
    jobs: &Sender<Job>,
    now: Instant,
) -> Fate {
    match parse(&client.input, hosts, client.local) {
        Parsed::Partial if client.has_ended => Fate::Ends,
        Parsed::Partial => Fate::Lives,
        Parsed::Whole(head, length) => {
            client.input.drain(..length);
            client.state = State::Answering;
            // The answer has its own time; what makes it is bounded by itself.
            client.deadline = now + 2 * PATIENCE;
            match jobs.try_send(Job { id, head }) {
                Ok(()) => Fate::Lives,
                Err(_) => Fate::Ends,
            }
        }
        Parsed::Refused(refusal) => {
            let response = Response::of(refusal);
            log::debug!(target: "http", status = response.status; "request refused");
            client.answer(response.encode(false, false), false, now);
            match client.write() {
                Ok(Fate::Lives) => Fate::Lives,
                Ok(Fate::Ends) | Err(_) => Fate::Ends,
            }
        }
    }
}

/// Sends on. When the answer is out, the next request may be there already.
fn advance(
    client: &mut Client,
    id: u64,
    hosts: &Hosts,
    jobs: &Sender<Job>,
    now: Instant,
) -> io::Result<Fate> {
    let fate = client.write()?;
    if fate == Fate::Lives && client.state == State::Reading {
        client.deadline = now + PATIENCE;
        return Ok(next_request(client, id, hosts, jobs, now));
    }
    Ok(fate)
}

impl Client {
    /// Reads what has come of a head, and no more than a head may have.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 2_048];
        while self.input.len() <= MAX_HEAD_BYTES {
            let room = (MAX_HEAD_BYTES + 1 - self.input.len()).min(buffer.len());
            match self.stream.read(&mut buffer[..room]) {
                Ok(0) => {
                    self.has_ended = true;
                    break;
                }
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn answer(&mut self, bytes: Vec<u8>, keep_alive: bool, now: Instant) {
        self.output = bytes;
        self.written = 0;
        self.state = State::Writing { keep_alive };
        self.deadline = now + PATIENCE;
    }

    fn write(&mut self) -> io::Result<Fate> {
        let State::Writing { keep_alive } = self.state else {
            return Ok(Fate::Lives);
        };
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return Ok(Fate::Ends),
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Fate::Lives),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output = Vec::new();
        if keep_alive {
            self.state = State::Reading;
            return Ok(Fate::Lives);
        }
        self.stream.shutdown(Shutdown::Write)?;
        self.input = Vec::new();
        self.state = State::Draining {
            left: MAX_DRAINED_BYTES,
        };
        self.deadline = self.deadline.min(Instant::now() + DRAIN_PATIENCE);
        self.drain()
    }

    fn drain(&mut self) -> io::Result<Fate> {
        let State::Draining { left } = &mut self.state else {
            return Ok(Fate::Lives);
        };
        let mut buffer = [0; 4_096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Fate::Ends),
                Ok(length) if length >= *left => return Ok(Fate::Ends),
                Ok(length) => *left -= length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Fate::Lives),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
