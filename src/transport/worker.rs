//! The thread of one connection.
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
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, TrySendError};

use crate::{
    close::{CloseCode, CloseReason},
    thread::panic_message,
    transport::{
        Command, Notice,
        connection::Connection,
        driver::{Driver, MAX_KEPT_NOTICES},
    },
    waker::{Interest, Woken, sleep, sleep_on_two},
};

/// A sleep that was over sooner was none: what ended it was there before.
const NO_SLEEP: Duration = Duration::from_micros(5);

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
    woken: Woken,
    /// There was more in the socket than one receive brings, so that it is read until it is empty.
    is_crowded: bool,
    /// The last turn brought something, so that more may follow soon.
    has_received: bool,
    /// The socket was full at the end of the last turn.
    was_full: bool,
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
            // The first turn looks at everything.
            woken: Woken {
                by_socket: true,
                by_waker: true,
            },
            is_crowded: true,
            has_received: false,
            was_full: false,
        }
    }

    pub(super) fn run(mut self) {
        let connection = Arc::clone(&self.connection);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.drive()));
        if let Err(panic) = outcome {
            let why = panic_message(panic.as_ref());
            log::error!(target: "transport", addr:% = connection.addr, panic:% = why;
                "connection worker panicked; the connection is closed");
            let counters = &connection.context.counters;
            counters.worker_panics.fetch_add(1, Relaxed);
            let mut driver = connection.driver.lock();
            // What it was about to run is lost with it; what is added now is not.
            driver.is_delivering = false;
            driver.is_broken = true;
            if driver.closed.is_none() {
                let down = driver.finish(&connection, CloseReason::Local(CloseCode::Internal));
                drop(connection.run_effects(driver));
                let _ = connection.context.notices.send(down);
            }
        }
        connection.context.timekeeper.forget(&connection);
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
                    let mut driver = self.connection.driver.lock();
                    let was_crowded = driver.notices.len() > MAX_KEPT_NOTICES;
                    let retry = self.deliver_notices(&mut driver);
                    // Streams that waited for the reactor may be read again.
                    let resume = (was_crowded && retry.is_none()).then(Instant::now);
                    let deadline = [deadline, retry, resume].into_iter().flatten().min();
                    driver.armed = deadline;
                    self.was_full = driver.is_full();
                    self.connection.is_full.store(self.was_full, Relaxed);
                    self.connection.release(driver);
                    let begun = Instant::now();
                    match self.sleep(begun, deadline) {
                        Ok(woken) => {
                            self.woken = woken;
                            self.is_crowded |= begun.elapsed() < NO_SLEEP;
                        }
                        Err(error) => {
                            let connection = Arc::clone(&self.connection);
                            let mut driver = connection.driver.lock();
                            let reason = CloseReason::Io(error.to_string());
                            let down = driver.finish(&connection, reason);
                            drop(connection.run_effects(driver));
                            let _ = connection.context.notices.send(down);
                            return;
                        }
                    }
                }
                Turn::Over { linger } => {
                    loop {
                        let notice = self.connection.driver.lock().notices.pop_front();
                        let Some(notice) = notice else { break };
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

    fn turn(&mut self) -> Turn {
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
        if self.woken.by_socket
            && let Some(socket) = connection.path.own()
        {
            let count = driver.receive(&connection, socket, !self.is_crowded, now);
            self.is_crowded &= count > 1;
            self.has_received = count > 0;
        }
        if self.woken.by_waker {
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
    fn end(
        &self,
        mut driver: parking_lot::MutexGuard<'_, Driver>,
        reason: CloseReason,
        linger: bool,
    ) -> Turn {
        let down = driver.finish(&self.connection, reason);
        driver.notices.push_back(down);
        drop(self.connection.run_effects(driver));
        Turn::Over { linger }
    }

    fn sleep(&self, now: Instant, deadline: Option<Instant>) -> std::io::Result<Woken> {
        let connection = &self.connection;
        let Some(socket) = connection.path.own() else {
            // The listener's readiness is the reactor's business: try again soon instead.
            let retry = self.was_full.then(|| now + FULL_RETRY);
            let deadline = [deadline, retry].into_iter().flatten().min();
            return connection.poller.sleep(&connection.waker, now, deadline);
        };
        if !self.was_full {
            let spin = connection.context.config.spin;
            if !spin.is_zero() && self.has_received {
                let until = deadline.map_or(now + spin, |deadline| deadline.min(now + spin));
                while Instant::now() < until && !connection.outbox.lock().seats.has_leader() {
                    let waker = &connection.waker;
                    let woken = sleep_on_two(waker, socket.as_fd(), Interest::Read, now, now)?;
                    if woken != Woken::default() {
                        return Ok(woken);
                    }
                    std::hint::spin_loop();
                }
            }
            return connection.poller.sleep(&connection.waker, now, deadline);
        }
        let outbox = connection.outbox.lock();
        if !outbox.seats.has_leader() {
            let both = Some(Interest::ReadWrite);
            connection.poller.watch(socket.as_fd(), both);
        }
        drop(outbox);
        // A leader may have fallen asleep before the socket was full, and then waits for no room.
        let retry = Some(now + FULL_RETRY);
        let deadline = [deadline, retry].into_iter().flatten().min();
        let woken = connection.poller.sleep(&connection.waker, now, deadline);
        let outbox = connection.outbox.lock();
        let interest = (!outbox.seats.has_leader()).then_some(Interest::Read);
        connection.poller.watch(socket.as_fd(), interest);
        woken
    }

    /// Sends the closing datagram again: it is the only one that QUIC never repeats by itself.
    fn linger(&self) {
        let connection = &self.connection;
        let farewell = std::mem::take(&mut connection.driver.lock().farewell);
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
