//! Waking a thread that sleeps in `ppoll`: an eventfd, and the sleep itself.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Wakes one thread. Level-triggered: a wake before the sleep is not lost.
#[derive(Debug)]
pub(crate) struct Waker {
    fd: OwnedFd,
}

impl Waker {
    /// A new eventfd.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Wakes the thread, or lets its next sleep end at once.
    pub(crate) fn wake(&self) {
        // The only failure is a counter at its maximum, and then the thread is awake anyway.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Takes the wakes so far; the next sleep lasts again.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The end of a wait that begins now. A time-out of centuries, which callers use for "for ever", is
/// cut to years, because an `Instant` has a last value.
pub(crate) fn deadline_after(now: Instant, timeout: Duration) -> Instant {
    const YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);
    now.checked_add(timeout.min(YEARS)).unwrap_or(now)
}

/// What a sleeper waits for on a descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Interest {
    Read,
    ReadWrite,
}

/// Sleeps until one of the descriptors is ready or `deadline` is reached, to the nanosecond.
pub(crate) fn sleep(
    fds: &[(BorrowedFd<'_>, Interest)],
    now: Instant,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, interest)| {
            let flags = match interest {
                Interest::Read => PollFlags::IN,
                Interest::ReadWrite => PollFlags::IN | PollFlags::OUT,
            };
            PollFd::from_borrowed_fd(*fd, flags)
        })
        .collect();
    let timeout = deadline.map(|deadline| timespec(deadline.saturating_duration_since(now)));
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "the sleep is against the real clock"
)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_sleep_is_not_lost_and_is_taken_once() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.wake();
        let started = Instant::now();
        let deadline = Some(started + Duration::from_secs(60));
        sleep(&[(waker.as_fd(), Interest::Read)], started, deadline).unwrap();
        assert!(started.elapsed() < Duration::from_secs(30));
        waker.clear();
        let again = Instant::now();
        let deadline = Some(again + Duration::from_millis(5));
        sleep(&[(waker.as_fd(), Interest::Read)], again, deadline).unwrap();
        assert!(again.elapsed() >= Duration::from_millis(5));
    }
}
