//! One thread of the process that watches over what callers have brought forward.
//!
//! A worker sleeps towards the deadline that it knew. A caller that sends makes an earlier one: QUIC
//! wants to hear of the packet in time, an acknowledgement is owed. To wake the worker for each would
//! cost more than the request. So the connection goes on a list, and this thread looks at the list
//! every few milliseconds, as long as there is something on it; it sleeps without end when there is
//! not. What it finds due it does itself if the connection is free, and leaves to whoever drives it
//! otherwise. The first node of the process starts it, and the last one ends it.

#![expect(
    clippy::disallowed_methods,
    reason = "it watches over deadlines of the real clock"
)]

use std::{
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::connection::Connection;
use crate::thread;

/// How often the list is looked at. What is watched is due in 8 ms at the earliest, and peers allow
/// 25 ms for an acknowledgement, which is the shortest of it.
const TICK: Duration = Duration::from_millis(4);

/// Keeps the thread running as long as some node holds one.
pub(crate) struct Running {
    keeper: Arc<Timekeeper>,
    thread: Option<thread::Handle>,
}

impl Running {
    /// The one of the process, started if need be.
    pub(crate) fn shared() -> io::Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Running>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(running) = shared.upgrade() {
            return Ok(running);
        }
        let keeper = Arc::<Timekeeper>::default();
        let body = Arc::clone(&keeper);
        let thread = thread::spawn("nd-time", move || body.run())?;
        let running = Arc::new(Self {
            keeper,
            thread: Some(thread),
        });
        *shared = Arc::downgrade(&running);
        Ok(running)
    }

    pub(crate) fn keeper(&self) -> Arc<Timekeeper> {
        Arc::clone(&self.keeper)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.keeper.stop();
        if let Some(thread) = self.thread.take() {
            // It holds no lock and runs no code of applications.
            let _ = thread.join();
        }
    }
}

#[derive(Default)]
pub(crate) struct Timekeeper {
    watched: Mutex<Watched>,
    wake: Condvar,
}

#[derive(Default)]
struct Watched {
    /// At most one entry a connection.
    list: Vec<Arc<Connection>>,
    is_asleep: bool,
    is_stopped: bool,
}

impl Timekeeper {
    fn stop(&self) {
        let mut watched = self.watched.lock();
        watched.is_stopped = true;
        watched.list.clear();
        self.wake.notify_one();
    }

    /// Something of the connection is due at that time, which its worker does not know.
    pub(super) fn watch(&self, connection: &Connection, due: Instant) {
        if !connection.due.set(due) {
            return;
        }
        let mut watched = self.watched.lock();
        if watched.is_stopped {
            return;
        }
        watched.list.push(connection.arc());
        if std::mem::take(&mut watched.is_asleep) {
            self.wake.notify_one();
        }
    }

    /// The connection is over. When this returns, nothing of it is held here any more: its socket is
    /// closed as soon as the others let go of it.
    pub(super) fn forget(&self, connection: &Connection) {
        // From here on it is not put on the list again.
        connection.due.close();
        let mut watched = self.watched.lock();
        watched
            .list
            .retain(|other| other.id != connection.id || !Arc::ptr_eq(other, &connection.arc()));
    }

    fn run(&self) {
        let mut watched = self.watched.lock();
        loop {
            if watched.list.is_empty() && !watched.is_stopped {
                watched.is_asleep = true;
                self.wake.wait(&mut watched);
                watched.is_asleep = false;
            } else if !watched.is_stopped {
                self.wake.wait_for(&mut watched, TICK);
            }
            if watched.is_stopped {
                return;
            }
            let now = Instant::now();
            watched
                .list
                .retain(|connection| Self::look(connection, now));
        }
    }

    /// Does what is due of a connection. `false` when nothing is left to watch over.
    ///
    /// It is on the list meanwhile, so that whoever brings something forward only sets the time, and
    /// takes no lock of the timekeeper's.
    fn look(connection: &Arc<Connection>, now: Instant) -> bool {
        connection.due.look(now, || connection.on_due(now))
    }
}
