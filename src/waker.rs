//! Waking a thread that sleeps on descriptors, and the sleep itself.
//!
//! The waker is an eventfd, or a pipe where there are none. A thread that waits for sockets for long has
//! a [`PollSet`], an epoll set; a socket and its waker are in it by a [`Poller`], with which another
//! thread can take the socket out and put it back, without waking the one that sleeps.

use std::{
    io,
    ops::BitOrAssign,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll},
    pipe::{PipeFlags, pipe_with},
};

use crate::without::is_without;

/// Wakes one thread. Level-triggered: a wake before the sleep is not lost.
#[derive(Debug)]
pub(crate) struct Waker {
    /// What the sleeper waits for.
    read: OwnedFd,
    /// The other end of a pipe; an eventfd has one for both.
    write: Option<OwnedFd>,
}

/// Whether there is to be no eventfd, as on systems that have none.
fn without_eventfd() -> bool {
    static WITHOUT: OnceLock<bool> = OnceLock::new();
    *WITHOUT.get_or_init(|| is_without("eventfd"))
}

impl Waker {
    /// A new eventfd, or a pipe.
    pub(crate) fn new() -> io::Result<Self> {
        if !without_eventfd()
            && let Ok(read) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        {
            return Ok(Self { read, write: None });
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self {
            read,
            write: Some(write),
        })
    }

    /// Wakes the thread, or lets its next sleep end at once.
    pub(crate) fn wake(&self) {
        let fd = self.write.as_ref().unwrap_or(&self.read);
        // The only failure is a counter or a pipe that is full, and then the thread is awake anyway.
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }

    /// Takes the wakes so far; the next sleep lasts again.
    pub(crate) fn clear(&self) {
        let mut wakes = [0_u8; 512];
        let room = if self.write.is_some() { wakes.len() } else { 8 };
        // A pipe may hold more than that of wakes; then the next sleep is short, and clears the rest.
        let _ = rustix::io::read(&self.read, &mut wakes[..room]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

/// What ended a sleep.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Woken {
    /// The socket can be read, or written if that was waited for, or has an error.
    pub(crate) by_socket: bool,
    /// Somebody called the waker, which is cleared.
    pub(crate) by_waker: bool,
}

impl BitOrAssign for Woken {
    fn bitor_assign(&mut self, other: Self) {
        self.by_socket |= other.by_socket;
        self.by_waker |= other.by_waker;
    }
}

impl Woken {
    /// By whatever there may be.
    pub(crate) const BY_ALL: Self = Self {
        by_socket: true,
        by_waker: true,
    };
}

/// Descriptors that one thread sleeps on: an epoll set. Each is known by the key of whom it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct PollSet {
    epoll: Arc<OwnedFd>,
}

/// Events that one sleep brings at most; what else is ready comes with the next one.
const MAX_READY: usize = 64;

impl PollSet {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll: Arc::new(epoll),
        })
    }

    /// Waits for a waker of whoever has the key.
    pub(crate) fn add(&self, key: u64, waker: &Waker) -> io::Result<()> {
        let flags = epoll::EventFlags::IN;
        epoll::add(&self.epoll, waker.as_fd(), data(key, false), flags)?;
        Ok(())
    }

    /// Sleeps until one of them is ready or `deadline` is reached, to the nanosecond; tells whose are.
    /// Wakers are not cleared. Somebody may be told twice.
    pub(crate) fn sleep(
        &self,
        now: Instant,
        deadline: Option<Instant>,
        mut ready: impl FnMut(u64, Woken),
    ) -> io::Result<()> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; MAX_READY];
        let timeout = deadline.map(|deadline| timespec(deadline.saturating_duration_since(now)));
        let count = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            let data = event.data.u64();
            let by_socket = data & 1 == 1;
            let woken = Woken {
                by_socket,
                by_waker: !by_socket,
            };
            ready(data >> 1, woken);
        }
        Ok(())
    }
}

/// What tells a descriptor from the others of a set.
fn data(key: u64, is_socket: bool) -> epoll::EventData {
    epoll::EventData::new_u64(key << 1 | u64::from(is_socket))
}

/// A waker and a socket in a set of their own or among others; the socket can be taken out meanwhile.
#[derive(Debug)]
pub(crate) struct Poller {
    set: PollSet,
    key: u64,
}

impl Poller {
    /// Waits for `waker` and, if there is one, for `socket`, in a set that knows them by `key`.
    pub(crate) fn new(
        set: PollSet,
        key: u64,
        waker: &Waker,
        socket: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        set.add(key, waker)?;
        if let Some(socket) = socket {
            let flags = epoll::EventFlags::IN;
            epoll::add(&set.epoll, socket, data(key, true), flags)?;
        }
        Ok(Self { set, key })
    }

    /// Changes what is waited for on the socket; nothing is. Only an error that the kernel reports
    /// without being asked still ends a sleep.
    pub(crate) fn watch(&self, socket: BorrowedFd<'_>, interest: Option<Interest>) {
        let flags = match interest {
            None => epoll::EventFlags::empty(),
            Some(Interest::Read) => epoll::EventFlags::IN,
            Some(Interest::ReadWrite) => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        };
        // It can only fail for a socket that is not in the set any more: then the connection is over.
        let done = epoll::modify(&self.set.epoll, socket, data(self.key, true), flags);
        debug_assert!(
            done.is_ok() || done == Err(rustix::io::Errno::NOENT),
            "{done:?}"
        );
    }

    /// Waits for neither any more. A descriptor that others keep open would else stay in the set.
    pub(crate) fn leave(&self, waker: &Waker, socket: Option<BorrowedFd<'_>>) {
        for fd in [Some(waker.as_fd()), socket].into_iter().flatten() {
            // It can only fail for what has left before.
            let _ = epoll::delete(&self.set.epoll, fd);
        }
    }

    /// Sleeps until the waker or the socket is ready or `deadline` is reached, in a set of their own.
    pub(crate) fn sleep(
        &self,
        waker: &Waker,
        now: Instant,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        let mut woken = Woken::default();
        self.set.sleep(now, deadline, |_, by| woken |= by)?;
        if woken.by_waker {
            waker.clear();
        }
        Ok(woken)
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

impl Interest {
    fn poll_flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::IN,
            Self::ReadWrite => PollFlags::IN | PollFlags::OUT,
        }
    }
}

/// Sleeps until one of the descriptors is ready or `deadline` is reached, to the nanosecond.
pub(crate) fn sleep(
    fds: &[(BorrowedFd<'_>, Interest)],
    now: Instant,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, interest)| PollFd::from_borrowed_fd(*fd, interest.poll_flags()))
        .collect();
    let timeout = deadline.map(|deadline| timespec(deadline.saturating_duration_since(now)));
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sleeps until the waker or the socket is ready or `deadline` is reached.
pub(crate) fn sleep_on_two(
    waker: &Waker,
    socket: BorrowedFd<'_>,
    interest: Interest,
    now: Instant,
    deadline: Instant,
) -> io::Result<Woken> {
    let mut polled = [
        PollFd::from_borrowed_fd(socket, interest.poll_flags()),
        PollFd::new(waker, PollFlags::IN),
    ];
    let timeout = timespec(deadline.saturating_duration_since(now));
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Woken::default()),
        Err(error) => return Err(error.into()),
    }
    let woken = Woken {
        by_socket: !polled[0].revents().is_empty(),
        by_waker: !polled[1].revents().is_empty(),
    };
    if woken.by_waker {
        waker.clear();
    }
    Ok(woken)
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

    #[test]
    fn a_socket_that_is_taken_out_wakes_nobody_and_one_that_is_put_back_does() {
        let waker = Waker::new().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let poller = Poller::new(PollSet::new().unwrap(), 7, &waker, Some(socket.as_fd())).unwrap();
        let sleep = |millis| {
            let now = Instant::now();
            let deadline = Some(now + Duration::from_millis(millis));
            poller.sleep(&waker, now, deadline).unwrap()
        };
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert!(sleep(5_000).by_socket);
        poller.watch(socket.as_fd(), None);
        assert_eq!(sleep(5), Woken::default());
        waker.wake();
        let woken = sleep(5_000);
        assert!(woken.by_waker && !woken.by_socket);
        poller.watch(socket.as_fd(), Some(Interest::Read));
        let woken = sleep(5_000);
        assert!(woken.by_socket && !woken.by_waker, "the waker was cleared");
        poller.leave(&waker, Some(socket.as_fd()));
        waker.wake();
        assert_eq!(sleep(5), Woken::default());
        // Whoever gives it back too late changes nothing.
        poller.watch(socket.as_fd(), Some(Interest::Read));
        assert_eq!(sleep(5), Woken::default());
    }

    #[test]
    fn a_set_of_many_tells_who_is_woken_by_what() {
        let set = PollSet::new().unwrap();
        let members: Vec<_> = (1..=3)
            .map(|key| {
                let waker = Waker::new().unwrap();
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                let poller = Poller::new(set.clone(), key, &waker, Some(socket.as_fd())).unwrap();
                (waker, socket, poller)
            })
            .collect();
        members[0].0.wake();
        let to = members[2].1.local_addr().unwrap();
        members[0].1.send_to(b"x", to).unwrap();
        let mut woken = std::collections::BTreeMap::<u64, Woken>::new();
        let now = Instant::now();
        let deadline = Some(now + Duration::from_secs(5));
        set.sleep(now, deadline, |key, by| {
            *woken.entry(key).or_default() |= by
        })
        .unwrap();
        let by_waker = |w: &Woken| (w.by_waker, w.by_socket);
        let woken: Vec<_> = woken.iter().map(|(key, w)| (*key, by_waker(w))).collect();
        assert_eq!(woken, [(1, (true, false)), (3, (false, true))]);
    }
}
