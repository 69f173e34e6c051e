//! Streams of bytes between two applications.

use std::{
    fmt,
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{node_id::NodeId, waker::deadline_after};

/// What carries a stream's bytes.
pub(crate) trait Pipe: Send + Sync {
    fn peer(&self) -> &NodeId;
    /// Reads at least one byte, or none at the end.
    fn read(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize>;
    /// Takes at least one byte.
    fn write(&self, bytes: &[u8], deadline: Instant) -> io::Result<usize>;
    /// Waits until the connection has taken everything over.
    fn flush(&self, deadline: Instant) -> io::Result<()>;
    /// No more bytes come from this end.
    fn finish(&self);
    /// No more bytes come from this end, and those on their way need not arrive.
    fn reset(&self, code: u64);
    /// Nothing is read any more.
    fn stop(&self);
    /// Nobody holds it any more.
    fn release(&self);
}

/// A stream of bytes to or from the same application on another node: ordered, reliable, in both
/// directions, with the peer's pace as the limit.
///
/// [`Read`] and [`Write`] block, and work on `&Stream` as well, so that one thread can read while
/// another writes. A call that takes longer than its time-out fails with
/// [`TimedOut`](io::ErrorKind::TimedOut) and has done nothing. A written byte is on its way when
/// [`flush`](Write::flush) has returned; whether the peer has read it, only the peer can say.
///
/// Either end may finish its half ([`finish`](Self::finish)) and go on reading. When the last clone is
/// dropped, what was written is still sent, and what was not read is refused.
///
/// | what happened | reads | writes |
/// |---|---|---|
/// | the peer finished | `Ok(0)` | go on |
/// | the peer reset its half | `ConnectionReset`, once | go on |
/// | the peer wants no more, or refused the stream | go on | `BrokenPipe` |
/// | this end finished or reset | go on | `BrokenPipe` |
/// | the connection ended or was replaced | `ConnectionAborted` | `ConnectionAborted` |
pub struct Stream {
    shared: Arc<Shared>,
}

struct Shared {
    pipe: Arc<dyn Pipe>,
    /// In nanoseconds; 0 is none.
    read_timeout: AtomicU64,
    write_timeout: AtomicU64,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pipe.finish();
        self.pipe.stop();
        self.pipe.release();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(self.peer()).finish()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "callers wait against the real clock"
)]
fn deadline(timeout: &AtomicU64) -> Instant {
    let timeout = match timeout.load(Relaxed) {
        0 => Duration::MAX,
        nanos => Duration::from_nanos(nanos),
    };
    deadline_after(Instant::now(), timeout)
}

fn nanos(timeout: Option<Duration>) -> u64 {
    timeout.map_or(0, |timeout| {
        u64::try_from(timeout.as_nanos()).unwrap_or(0).max(1)
    })
}

impl Stream {
    pub(crate) fn new(pipe: Arc<dyn Pipe>) -> Self {
        Self {
            shared: Arc::new(Shared {
                pipe,
                read_timeout: AtomicU64::new(0),
                write_timeout: AtomicU64::new(0),
            }),
        }
    }

    /// Who is at the other end; its certificate proves it.
    pub fn peer(&self) -> &NodeId {
        self.shared.pipe.peer()
    }

    /// How long a read may take; `None`, the default, is for ever. It holds for all clones.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.shared.read_timeout.store(nanos(timeout), Relaxed);
    }

    /// How long a write or a flush may take; `None`, the default, is for ever. It holds for all clones.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.shared.write_timeout.store(nanos(timeout), Relaxed);
    }

    /// Ends this end's half: the peer reads what was written and then the end.
    pub fn finish(&self) {
        self.shared.pipe.finish();
    }

    /// Gives this end's half up: the peer's reads fail, and what was written need not arrive.
    pub fn reset(&self, code: u64) {
        self.shared.pipe.reset(code);
    }

    /// Wants no more bytes of the peer: its writes fail.
    pub fn stop(&self) {
        self.shared.pipe.stop();
    }

    /// Another handle of the same stream.
    #[must_use]
    pub fn try_clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let deadline = deadline(&self.shared.read_timeout);
        self.shared.pipe.read(buffer, deadline)
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let deadline = deadline(&self.shared.write_timeout);
        self.shared.pipe.write(bytes, deadline)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.shared.pipe.flush(deadline(&self.shared.write_timeout))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}
