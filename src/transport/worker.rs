//! The part of a connection that always has a thread, one of its own or one among many (`crew`).
//!
//! Its turn: take what arrived and what the reactor commands, proceed, run effects, send; then tell
//! the reactor, and sleep until the socket, the waker or the next deadline. While a caller leads, the
//! socket is the caller's and the worker sleeps on. After a close it stays a tenth of a second to
//! repeat the closing datagram, which nobody acknowledges, and ends.

#![expect(
    clippy::disallowed_methods,
    reason = "time enters here: quiche's deadlines are real"
)]

use std::{
    io,
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, TrySendError};
use parking_lot::MutexGuard;

use crate::{
    close::{CloseCode, CloseReason},
    thread::panic_message,
    transport::{
        Command, Notice,
        connection::Connection,
        driver::{Arrived, Driver, MAX_KEPT_NOTICES, earlier, spin_for},
    },
    waker::{Interest, Woken},
};

/// A sleep that was over sooner was none: what ended it was there before.
pub(super) const NO_SLEEP: Duration = Duration::from_micros(5);

/// When a full queue to the reactor is tried again.
const NOTICE_RETRY: Duration = Duration::from_millis(5);

/// When a full socket is tried again whose readiness is not waited for, because it is the listener's or
/// a leader's.
const FULL_RETRY: Duration = Duration::from_millis(2);

/// When the closing datagram is sent again: it is never acknowledged.
const CLOSE_REPEATS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(80)];

/// The thread's own half of a connection.
pub(super) struct Worker {
    connection: Arc<Connection>,
    commands: Receiver<Command>,
    /// There was more in the socket than one receive brings, so that it is read until it is empty.
    is_crowded: bool,
    /// The last turn brought something, so that more may follow soon.
    has_received: bool,
    /// The socket was full at the end of the last turn.
    was_full: bool,
    /// What was received before the turn.
    first: Option<io::Result<Arrived>>,
    /// When the next turn is due, if nothing wakes it before.
    due: Option<Instant>,
    /// The connection is over, and its closing datagram is repeated.
    farewell: Option<Farewell>,
}

struct Farewell {
    datagram: Vec<u8>,
    begun: Instant,
    repeats: usize,
}

/// What comes after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The next one, when the socket or the waker is ready, or then.
    Sleep(Option<Instant>),
    /// None: the worker can retire.
    Over,
}

/// How a turn ended.
enum Turn {
    Sleep(Option<Instant>),
    Over { linger: bool },
}

impl Worker {
    pub(super) fn new(connection: Arc<Connection>, commands: Receiver<Command>) -> Self {
        Self {
            connection,
            commands,
            is_crowded: true,
            has_received: false,
            was_full: false,
            first: None,
            due: None,
            farewell: None,
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The body of a thread for this connection alone.
    pub(super) fn run(mut self) {
        // The first turn looks at everything.
        let (mut woken, mut was_short) = (Woken::BY_ALL, true);
        while let Step::Sleep(deadline) = self.step(woken, was_short) {
            let begun = Instant::now();
            match self.sleep(begun, deadline) {
                Ok(by) => woken = by,
                Err(error) => {
                    self.fail(&error);
                    break;
                }
            }
            was_short = begun.elapsed() < NO_SLEEP;
        }
        self.retire();
    }

    /// One turn, after a sleep that was ended by `woken`. `was_short`: it was none.
    pub(super) fn step(&mut self, woken: Woken, was_short: bool) -> Step {
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            if self.farewell.is_some() {
                return self.repeat_farewell();
            }
            if woken == Woken::default()
                && let Some(step) = self.watch_seats()
            {
                return step;
            }
            self.is_crowded |= was_short;
            self.take_turn(woken)
        }));
        stepped.unwrap_or_else(|panic| {
            self.end_broken(panic.as_ref());
            Step::Over
        })
    }

    /// The thread cannot sleep any more: the connection is over.
    pub(super) fn fail(&self, error: &io::Error) {
        let connection = &*self.connection;
        let mut driver = connection.driver.lock();
        if driver.closed.is_none() {
            let down = driver.finish(connection, CloseReason::Io(error.to_string()));
            drop(connection.run_effects(driver));
            let _ = connection.context.notices.send(down);
        }
    }

    /// Something panicked.
    fn end_broken(&self, panic: &(dyn std::any::Any + Send)) {
        let connection = &*self.connection;
        let why = panic_message(panic);
        log::error!(target: "transport", addr:% = connection.addr, panic:% = why;
            "connection worker panicked; the connection is closed");
        let counters = &connection.context.counters;
        counters.worker_panics.fetch_add(1, Relaxed);
        let mut driver = connection.driver.lock();
        // What it was about to run is lost with it; what is added now is not.
        driver.is_delivering = false;
        driver.is_broken = true;
        if driver.closed.is_none() {
            let down = driver.finish(connection, CloseReason::Local(CloseCode::Internal));
            drop(connection.run_effects(driver));
            let _ = connection.context.notices.send(down);
        }
    }

    /// The last of it, when there is no next turn: lets go of the connection, and then says so.
    pub(super) fn retire(self) {
        self.leave_poller();
        let context = Arc::clone(&self.connection.context);
        let connection = self.connection.id;
        context.timekeeper.forget(&self.connection);
        drop(self);
        // The reactor may be gone itself; then nobody needs to know.
        let _ = context.notices.send(Notice::Gone { connection });
        context.reactor.wake();
    }

    fn leave_poller(&self) {
        let connection = &self.connection;
        let socket = connection.path.own().map(AsFd::as_fd);
        connection.poller.leave(&connection.waker, socket);
    }

    /// After a sleep that nobody ended: if no turn is due, looks only after a seat that may be kept. Those
    /// who are at work on the connection are not held up by that.
    fn watch_seats(&self) -> Option<Step> {
        let now = Instant::now();
        if self.due.is_some_and(|due| due <= now) {
            return None;
        }
        let seats = self.connection.watch_seats(now);
        Some(Step::Sleep(earlier(self.due, seats)))
    }

    fn take_turn(&mut self, woken: Woken) -> Step {
        if self.was_full {
            self.watch_socket(Interest::Read);
        }
        match self.turn(woken) {
            Turn::Sleep(deadline) => {
                let connection = Arc::clone(&self.connection);
                let mut driver = connection.driver.lock();
                let was_crowded = driver.notices.len() > MAX_KEPT_NOTICES;
                let retry = self.deliver_notices(&mut driver);
                // Streams that waited for the reactor may be read again.
                let resume = (was_crowded && retry.is_none()).then(Instant::now);
                // A leader may have fallen asleep before the socket was full, and then waits for no
                // room; and the listener's readiness is the reactor's business.
                let full = driver.is_full().then(|| Instant::now() + FULL_RETRY);
                let deadline = [deadline, retry, resume, full].into_iter().flatten().min();
                self.due = deadline;
                driver.armed = deadline;
                self.was_full = driver.is_full();
                connection.is_full.store(self.was_full, Relaxed);
                connection.release(driver);
                if self.was_full {
                    self.watch_socket(Interest::ReadWrite);
                }
                let seats = connection.watch_seats(Instant::now());
                Step::Sleep(earlier(deadline, seats))
            }
            Turn::Over { linger } => {
                loop {
                    let notice = self.connection.driver.lock().notices.pop_front();
                    let Some(notice) = notice else { break };
                    // Blocking is right here: the lock is free and the reactor always reads.
                    let _ = self.connection.context.notices.send(notice);
                }
                self.connection.context.reactor.wake();
                let datagram = std::mem::take(&mut self.connection.driver.lock().farewell);
                if !linger || datagram.is_empty() {
                    return Step::Over;
                }
                // Nothing is waited for but time: commands mean nothing to a closed connection.
                self.leave_poller();
                let begun = Instant::now();
                self.farewell = Some(Farewell {
                    datagram,
                    begun,
                    repeats: 0,
                });
                Step::Sleep(Some(begun + CLOSE_REPEATS[0]))
            }
        }
    }

    /// Sends the closing datagram again, when it is time: it is the only one that QUIC never repeats by
    /// itself.
    fn repeat_farewell(&mut self) -> Step {
        let connection = &self.connection;
        let Some(farewell) = &mut self.farewell else {
            return Step::Over;
        };
        while let Some(after) = CLOSE_REPEATS.get(farewell.repeats) {
            let at = farewell.begun + *after;
            if Instant::now() < at {
                return Step::Sleep(Some(at));
            }
            let _ = connection.path.send(&farewell.datagram, connection.addr);
            farewell.repeats += 1;
        }
        Step::Over
    }

    /// What the worker waits for on a socket of the connection's own, unless a leader has it.
    fn watch_socket(&self, interest: Interest) {
        let connection = &self.connection;
        if let Some(socket) = connection.path.own() {
            let outbox = connection.outbox.lock();
            if !outbox.seats.has_leader() {
                connection.poller.watch(socket.as_fd(), Some(interest));
            }
        }
    }

    fn turn(&mut self, woken: Woken) -> Turn {
        let connection = Arc::clone(&self.connection);
        let mut driver = connection.driver.lock();
        let now = Instant::now();
        if driver.is_broken {
            return self.end(driver, CloseReason::Local(CloseCode::Internal), false);
        }
        // Whoever brings something forward from here on sees that nobody sleeps towards it yet.
        driver.armed = None;
        driver.take_first(now);
        self.has_received = false;
        if woken.by_socket
            && let Some(socket) = connection.path.own()
        {
            let first = self.first.take();
            let count = driver.receive(&connection, socket, first, !self.is_crowded, now);
            self.is_crowded &= count > 1;
            self.has_received = count > 0;
        }
        if woken.by_waker {
            for command in self.commands.try_iter() {
                if !driver.obey(&connection, command, now) {
                    let reason = CloseReason::Local(CloseCode::Internal);
                    return self.end(driver, reason, false);
                }
            }
        }
        driver.proceed(&connection, now);
        let mut driver = connection.run_effects(driver);
        connection.work_is_seen();
        driver.flush(&connection, now, self.has_received);
        if let Some(reason) = driver.close_reason() {
            let linger = !driver.farewell.is_empty();
            return self.end(driver, reason, linger);
        }
        driver.publish(&connection, now);
        let (own, left) = driver.split_deadlines(&connection, now);
        if let Some(left) = left {
            connection.context.timekeeper.watch(&connection, left);
        }
        Turn::Sleep(own)
    }

    /// The connection is over.
    fn end(&self, mut driver: MutexGuard<'_, Driver>, reason: CloseReason, linger: bool) -> Turn {
        let down = driver.finish(&self.connection, reason);
        driver.notices.push_back(down);
        drop(self.connection.run_effects(driver));
        Turn::Over { linger }
    }

    /// Sleeps, on a thread for this connection alone.
    fn sleep(&mut self, now: Instant, deadline: Option<Instant>) -> io::Result<Woken> {
        let connection = Arc::clone(&self.connection);
        let waker = &connection.waker;
        let spin = connection.context.config.spin;
        if let Some(socket) = connection.path.own()
            && !spin.is_zero()
            && self.has_received
            && !self.was_full
            && self.farewell.is_none()
        {
            let until = deadline.map_or(now + spin, |deadline| deadline.min(now + spin));
            self.first = spin_for(socket, until, || {
                !self.commands.is_empty() || connection.outbox.lock().seats.has_leader()
            });
            let woken = Woken {
                by_socket: self.first.is_some(),
                by_waker: !self.commands.is_empty(),
            };
            if woken != Woken::default() {
                return Ok(woken);
            }
        }
        connection.poller.sleep(waker, now, deadline)
    }

    /// Tells the reactor what it takes; for what it does not, when to try again.
    fn deliver_notices(&self, driver: &mut Driver) -> Option<Instant> {
        let mut retry = None;
        let mut told = false;
        while let Some(notice) = driver.notices.pop_front() {
            match self.connection.context.notices.try_send(notice) {
                Ok(()) => told = true,
                Err(TrySendError::Full(notice)) => {
                    driver.notices.push_front(notice);
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
}
