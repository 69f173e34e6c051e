//! A stream of an application's own, as its reader and writer hold it.
//!
//! Written bytes go by way of the outbox, in pieces, so that the writer does not wait for QUIC. Read
//! bytes stay with QUIC until they are read here: what is not read is not granted to the peer again,
//! and so it feels the reader's pace. A reader that waits leads like one that waits for a reply.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    node_id::NodeId,
    stream::Pipe,
    transport::{
        connection::{Connection, clock, is_turning},
        driver::RawRead,
        outbox::{Gate, Unwritable},
        slot::Slot,
    },
};

/// How often a writer looks whether there is room again, as what it was refused may have been a share of
/// the process's budget. It is freed by other connections too, which do not tell.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// One end of a stream.
pub(crate) struct RawPipe {
    connection: Arc<Connection>,
    id: u64,
    peer: NodeId,
}

impl RawPipe {
    pub(super) fn new(connection: Arc<Connection>, id: u64) -> Self {
        let peer = connection.peer_name();
        Self {
            connection,
            id,
            peer,
        }
    }

    fn ended(&self, gate: &Gate) -> Option<io::Error> {
        let why = match gate {
            Gate::Shut | Gate::Open | Gate::Superseded => return None,
            Gate::Closed { reason, .. } => reason,
        };
        let why = format!("connection to {} ended: {why}", self.peer);
        Some(io::Error::new(io::ErrorKind::ConnectionAborted, why))
    }

    fn late() -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, "the peer took too long")
    }
}

impl Pipe for RawPipe {
    fn peer(&self) -> &NodeId {
        &self.peer
    }

    fn read(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let connection = &self.connection;
        loop {
            let mut driver = connection.driver.lock();
            if driver.closed.is_some() || driver.is_broken {
                let gate = &connection.outbox.lock().gate;
                return Err(self.ended(gate).unwrap_or_else(|| {
                    io::Error::new(io::ErrorKind::ConnectionAborted, "connection is ending")
                }));
            }
            let window = connection.context.config.stream_window;
            let read = driver.read_raw(self.id, buffer, window);
            if driver.wants_flush() {
                // The peer may go on.
                connection.work_is_there();
            }
            connection.release(driver);
            let slot = match read {
                RawRead::Done(read) => return read,
                RawRead::Wait(slot) => slot,
            };
            let now = clock();
            if now >= deadline || is_turning() {
                return Err(Self::late());
            }
            let seat = connection.begin_waiting(&mut connection.outbox.lock(), Some(now));
            connection.nudge_and_wait(seat, &slot, deadline, true);
            if !slot.is_done() {
                return Err(Self::late());
            }
        }
    }

    fn write(&self, bytes: &[u8], deadline: Instant) -> io::Result<usize> {
        let connection = &self.connection;
        let mut outbox = connection.outbox.lock();
        loop {
            if let Some(error) = self.ended(&outbox.gate) {
                return Err(error);
            }
            match outbox.write_raw(self.id, bytes) {
                Ok(count) => {
                    drop(outbox);
                    connection.nudge();
                    return Ok(count);
                }
                Err(Unwritable::Full) => {}
                Err(Unwritable::Stopped(code)) => {
                    let why = format!("the peer wants no more of the stream (code {code})");
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, why));
                }
                Err(Unwritable::Gone) => {
                    let why = "this end of the stream is finished";
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, why));
                }
            }
            let now = clock();
            if now >= deadline || is_turning() {
                return Err(Self::late());
            }
            let slot = Arc::new(Slot::default());
            outbox.await_room(&slot);
            let seat = connection.begin_waiting(&mut outbox, Some(now));
            drop(outbox);
            connection.nudge_and_wait(seat, &slot, deadline.min(now + LOOK_AGAIN), true);
            outbox = connection.outbox.lock();
            outbox.forget_writer(&slot);
        }
    }

    fn flush(&self, deadline: Instant) -> io::Result<()> {
        let connection = &self.connection;
        let mut outbox = connection.outbox.lock();
        loop {
            if let Some(error) = self.ended(&outbox.gate) {
                return Err(error);
            }
            if outbox.is_written(self.id) {
                return Ok(());
            }
            if !connection.wait(&mut outbox, deadline) {
                return Err(Self::late());
            }
        }
    }

    fn release(&self) {
        let mut outbox = self.connection.outbox.lock();
        outbox.give_back_raw(self.id);
        self.connection.end_keeping(&mut outbox);
    }

    fn finish(&self) {
        let mut outbox = self.connection.outbox.lock();
        outbox.finish_raw(self.id);
        let writers = outbox.take_writers(true);
        drop(outbox);
        self.connection.tell_changed(writers);
        self.connection.nudge();
    }

    fn reset(&self, code: u64) {
        let mut outbox = self.connection.outbox.lock();
        outbox.reset_raw(self.id, code);
        let writers = outbox.take_writers(true);
        drop(outbox);
        self.connection.tell_changed(writers);
        self.connection.nudge();
    }

    fn stop(&self) {
        let mut driver = self.connection.driver.lock();
        if driver.closed.is_none() && !driver.is_broken {
            driver.stop_raw(&self.connection, self.id);
            self.connection.work_is_there();
        }
        // Whoever reads meanwhile is told.
        let driver = self.connection.run_effects(driver);
        self.connection.release(driver);
    }
}
