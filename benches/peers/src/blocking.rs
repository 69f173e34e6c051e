//! What candidates with a thread for each connection share: sockets that spin before they sleep,
//! and lanes of requests on threads.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsFd,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    job::{Job, PATIENCE},
    measure::{Control, Meter, Outcome, Tally},
};

/// Tries until it is done. Spins for a while, then sleeps until the socket is ready, but no longer
/// than `patience`; without a spin the socket is a blocking one and the first try is the only one.
pub(crate) fn retry<T>(
    socket: &impl AsFd,
    spin: Option<Duration>,
    patience: Duration,
    flags: PollFlags,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let Some(spin) = spin else {
        return attempt();
    };
    let mut until = Instant::now() + spin;
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        if Instant::now() < until {
            std::hint::spin_loop();
            continue;
        }
        let mut fds = [PollFd::new(socket.as_fd(), flags)];
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, patience)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        until = Instant::now();
    }
}

/// A TCP connection that may spin.
#[derive(Debug)]
pub(crate) struct Tcp {
    stream: TcpStream,
    spin: Option<Duration>,
}

impl Tcp {
    pub(crate) fn new(stream: TcpStream, spin: Option<Duration>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(spin.is_some())?;
        Ok(Self { stream, spin })
    }

    /// How long a read may take. A server waits for as long as its client is there.
    pub(crate) fn with_patience(self) -> io::Result<Self> {
        self.stream.set_read_timeout(Some(PATIENCE))?;
        Ok(self)
    }
}

impl Read for Tcp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        retry(&self.stream, self.spin, PATIENCE, PollFlags::POLLIN, || {
            (&self.stream).read(buffer)
        })
    }
}

impl Write for Tcp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        retry(
            &self.stream,
            self.spin,
            PATIENCE,
            PollFlags::POLLOUT,
            || (&self.stream).write(bytes),
        )
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The threads of a run that do the same until it is over.
pub(crate) struct Lanes {
    meter: Meter,
    threads: Vec<JoinHandle<io::Result<Tally>>>,
    count: usize,
}

impl Lanes {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            meter: Meter::default(),
            threads: Vec::new(),
            count,
        }
    }

    pub(crate) fn add(
        &mut self,
        lane: impl FnOnce(&Meter, &mut Tally) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (meter, count) = (self.meter.clone(), self.count);
        let thread = std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || {
                let mut tally = Tally::new(count);
                lane(&meter, &mut tally)?;
                Ok(tally)
            })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Warms up, counts, and waits for all; fails when any of them has.
    pub(crate) fn run(self, job: &Job, control: Control) -> io::Result<Outcome> {
        let watch = self.meter.start(job, control);
        let mut total = Tally::new(self.count);
        for thread in self.threads {
            total.add(&joined(thread)?);
        }
        let (_control, window) = joined(watch)?;
        Outcome::of_tally(job, &window, &total)
    }
}

pub(crate) fn joined<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread
        .join()
        .map_err(|_| io::Error::other("a thread panicked"))?
}

/// Makes many connections on a few threads.
pub(crate) fn dial_all<T: Send + 'static>(
    count: usize,
    dial: impl Fn(usize) -> io::Result<T> + Clone + Send + 'static,
) -> io::Result<Vec<T>> {
    const AT_ONCE: usize = 16;
    let threads: Vec<_> = (0..AT_ONCE.min(count))
        .map(|part| {
            let dial = dial.clone();
            std::thread::spawn(move || (part..count).step_by(AT_ONCE).map(dial).collect())
        })
        .collect();
    let mut all = Vec::new();
    for thread in threads {
        all.extend(joined::<Vec<T>>(thread)?);
    }
    Ok(all)
}
