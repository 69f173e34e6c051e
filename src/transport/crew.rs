//! Threads that drive many connections each, where a thread for every one would be too many.
//!
//! A connection with a thread of its own costs a stack, and two switches of threads for whatever
//! arrives. From some dozens of busy peers on, or hundreds of idle ones, that is more than QUIC itself.
//! With [`Builder::workers`](crate::Builder::workers) a node has so many threads for all its connections:
//! each sleeps on the sockets and wakers of its own in one epoll set and lets those take their turns
//! that are ready or due. Everything else is as with threads of their own: callers that send or wait
//! drive a connection themselves, and a worker's turn is the same code.
//!
//! A handler that runs inline holds up every connection of the thread, not only its own.

#![expect(
    clippy::disallowed_methods,
    reason = "time enters here: quiche's deadlines are real"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    thread,
    transport::worker::{NO_SLEEP, Step, Worker},
    waker::{Interest, PollSet, Waker, Woken, sleep},
};

/// The key of the thread's own waker; connections' are smaller.
const OWN_KEY: u64 = u64::MAX >> 1;

/// How long a thread without connections may take to end.
const END_PATIENCE: Duration = Duration::from_millis(250);

/// The threads of a node.
pub(super) struct Crew {
    members: Vec<Member>,
}

struct Member {
    shared: Arc<Shared>,
    thread: Option<thread::Handle>,
}

/// What a thread shares with the one that gives it connections.
struct Shared {
    set: PollSet,
    waker: Waker,
    /// Not seen by the thread yet; as many as there may be connections at most.
    new: Mutex<Vec<(u64, Worker)>>,
    /// Connections that it has, or will see.
    count: AtomicUsize,
    is_stopped: AtomicBool,
}

/// Which thread will have a connection, and how it knows it.
pub(super) struct Place {
    pub(super) set: PollSet,
    pub(super) key: u64,
    member: usize,
}

impl Crew {
    /// A crew of so many threads, none of which is started yet.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let member = |_| {
            let shared = Arc::new(Shared {
                set: PollSet::new()?,
                waker: Waker::new()?,
                new: Mutex::default(),
                count: AtomicUsize::new(0),
                is_stopped: AtomicBool::new(false),
            });
            shared.set.add(OWN_KEY, &shared.waker)?;
            Ok(Member {
                shared,
                thread: None,
            })
        };
        let members = (0..threads).map(member).collect::<io::Result<_>>()?;
        Ok(Self { members })
    }

    /// A place with the thread that has the fewest connections, for one that no other of the node has
    /// the number of.
    pub(super) fn place(&self, number: u64) -> Option<Place> {
        let count = |member: &Member| member.shared.count.load(SeqCst);
        let (member, shared) = self
            .members
            .iter()
            .enumerate()
            .min_by_key(|(_, member)| count(member))
            .map(|(index, member)| (index, &member.shared))?;
        Some(Place {
            set: shared.set.clone(),
            key: number % OWN_KEY,
            member,
        })
    }

    /// Gives a connection to the thread that it has a place with, which is started for its first one.
    pub(super) fn give(&mut self, place: &Place, worker: Worker) -> io::Result<()> {
        let Some(member) = self.members.get_mut(place.member) else {
            return Ok(());
        };
        let shared = &member.shared;
        if member.thread.is_none() {
            let body = Arc::clone(shared);
            let name = format!("nd-peers-{}", place.member % 100_000);
            member.thread = Some(thread::spawn(&name, move || body.run())?);
        }
        shared.count.fetch_add(1, SeqCst);
        shared.new.lock().push((place.key, worker));
        shared.waker.wake();
        Ok(())
    }

    /// The names of threads that have connections.
    pub(super) fn busy(&self) -> impl Iterator<Item = String> {
        let is_busy = |member: &&Member| member.shared.count.load(SeqCst) > 0;
        let threads = self.members.iter().filter(is_busy);
        let threads = threads.filter_map(|member| member.thread.as_ref());
        threads.filter_map(|thread| thread.thread().name().map(str::to_owned))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.shared.is_stopped.store(true, SeqCst);
            member.shared.waker.wake();
            let is_idle = member.shared.count.load(SeqCst) == 0;
            // One that still has connections ends with the last of them, and nobody waits for it, as
            // nobody does for a thread that has one.
            if let Some(thread) = member.thread.take().filter(|_| is_idle) {
                thread::join_by(thread, Instant::now() + END_PATIENCE);
            }
        }
    }
}

/// A connection, as its thread holds it.
struct Seat {
    worker: Worker,
    due: Option<Instant>,
}

/// The connections of one thread.
#[derive(Default)]
struct Seats {
    seats: BTreeMap<u64, Seat>,
    /// When they are due.
    due: BTreeSet<(Instant, u64)>,
}

impl Shared {
    fn run(&self) {
        let mut seats = Seats::default();
        // Whose turn it is, and why.
        let mut ready = BTreeMap::<u64, Woken>::new();
        while !(self.is_stopped.load(SeqCst) && self.count.load(SeqCst) == 0) {
            let begun = Instant::now();
            let deadline = seats.due.first().map(|(at, _)| *at);
            let slept = self.set.sleep(begun, deadline, |key, woken| {
                *ready.entry(key).or_default() |= woken;
            });
            if let Err(error) = slept {
                self.fail(seats, &error);
                return;
            }
            let now = Instant::now();
            let was_short = now.saturating_duration_since(begun) < NO_SLEEP;
            if ready.remove(&OWN_KEY).is_some() {
                self.waker.clear();
                for (key, worker) in std::mem::take(&mut *self.new.lock()) {
                    seats.seats.insert(key, Seat { worker, due: None });
                    // The first turn looks at everything.
                    ready.insert(key, Woken::BY_ALL);
                }
            }
            seats.add_due(now, &mut ready);
            while let Some((key, woken)) = ready.pop_first() {
                if let Some(worker) = seats.take_turn(key, woken, was_short) {
                    // First, so that whoever hears of its end knows how many are left.
                    self.count.fetch_sub(1, SeqCst);
                    worker.retire();
                }
            }
        }
    }

    /// The thread cannot sleep any more: all its connections are over.
    fn fail(&self, seats: Seats, error: &io::Error) {
        let mut workers: Vec<_> = seats.seats.into_values().map(|seat| seat.worker).collect();
        loop {
            workers.extend(self.new.lock().drain(..).map(|(_, worker)| worker));
            for worker in workers.drain(..) {
                worker.fail(error);
                self.count.fetch_sub(1, SeqCst);
                worker.retire();
            }
            // Those that come yet fare alike.
            let own = [(self.waker.as_fd(), Interest::Read)];
            if self.is_stopped.load(SeqCst) || sleep(&own, Instant::now(), None).is_err() {
                return;
            }
            self.waker.clear();
        }
    }
}

impl Seats {
    /// Those that are due by now.
    fn add_due(&mut self, now: Instant, ready: &mut BTreeMap<u64, Woken>) {
        while let Some((at, key)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, key));
            if let Some(seat) = self.seats.get_mut(&key) {
                seat.due = None;
            }
            ready.entry(key).or_default();
        }
    }

    /// Lets one take its turn. Gives it back when that was the last one.
    fn take_turn(&mut self, key: u64, woken: Woken, was_short: bool) -> Option<Worker> {
        // One that is over may have been ready before.
        let seat = self.seats.get_mut(&key)?;
        if woken.by_waker {
            seat.worker.connection().waker.clear();
        }
        let step = seat.worker.step(woken, was_short);
        let due = match step {
            Step::Sleep(due) => due,
            Step::Over => None,
        };
        if seat.due != due {
            if let Some(at) = seat.due {
                self.due.remove(&(at, key));
            }
            if let Some(at) = due {
                self.due.insert((at, key));
            }
            seat.due = due;
        }
        if step == Step::Over {
            return self.seats.remove(&key).map(|seat| seat.worker);
        }
        None
    }
}
