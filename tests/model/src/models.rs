// The models: small programs of a few threads around the code under test. A lost wake-up or a stranded
// waiter shows itself as a thread that sleeps for ever, which the scheduler reports as a deadlock; the
// rest is asserted at the end. Included once for the code as it is and once for each planted bug, and
// once more for threads of the system (`src/bin/stress.rs`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use self::{
    due::Due,
    handoff::Handoff,
    seats::{Seat, Seats},
    slot::Slot,
};
use crate::{
    mpsc,
    sync::{Condvar, Mutex},
    thread,
};

/// Never, as far as a model goes.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(3_600)
}

/// An eventfd.
#[derive(Default)]
struct Waker {
    is_woken: Mutex<bool>,
    changed: Condvar,
}

impl Waker {
    fn wake(&self) {
        *self.is_woken.lock() = true;
        self.changed.notify_all();
    }

    fn sleep(&self) {
        let mut is_woken = self.is_woken.lock();
        while !*is_woken {
            self.changed.wait(&mut is_woken);
        }
        *is_woken = false;
    }
}

/// Two callers send while the worker turns: everything is sent, once.
pub(crate) fn nothing_stays_in_the_outbox() {
    struct Shared {
        outbox: Mutex<Vec<u32>>,
        driver: Handoff<Vec<u32>>,
    }
    impl Shared {
        fn drive_out(&self, sent: &mut Vec<u32>) {
            sent.append(&mut self.outbox.lock());
        }
    }
    let shared = Arc::new(Shared {
        outbox: Mutex::default(),
        driver: Handoff::new(Vec::new()),
    });
    let callers = [1, 2].map(|unit| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            shared.outbox.lock().push(unit);
            shared.driver.note_work();
            shared.driver.offer(|sent| shared.drive_out(sent));
        })
    });
    // The worker's turn: it looks at the outbox at the end of it.
    let mut driver = shared.driver.lock();
    shared.driver.take_work();
    shared.drive_out(&mut driver);
    let drive_out = |sent: &mut Vec<u32>| shared.drive_out(sent);
    shared.driver.release(driver, drive_out);
    for caller in callers {
        caller.join().expect("it does not panic");
    }
    assert_eq!(*shared.outbox.lock(), [], "left in the outbox");
    let mut sent = shared.driver.try_lock().expect("nobody has it").clone();
    sent.sort_unstable();
    assert_eq!(sent, [1, 2]);
}

/// The owner of a slot sleeps on the socket while another thread fills it.
pub(crate) fn the_owner_at_the_socket_is_woken() {
    let slot = Arc::new(Slot::default());
    let waker = Arc::new(Waker::default());
    let (filling, waking) = (Arc::clone(&slot), Arc::clone(&waker));
    let filler = thread::spawn(move || {
        if filling.fill(7) {
            waking.wake();
        }
    });
    loop {
        if slot.go_to_socket() {
            waker.sleep();
        }
        slot.leave_socket();
        if slot.is_done() {
            break;
        }
    }
    assert_eq!(slot.take(), Some(7));
    filler.join().expect("it does not panic");
}

/// The owner of a slot sleeps beside a leader while another thread fills it.
pub(crate) fn the_owner_beside_a_leader_is_woken() {
    let slot = Arc::new(Slot::default());
    let filling = Arc::clone(&slot);
    let filler = thread::spawn(move || filling.fill(7));
    slot.wait_filled(far());
    assert_eq!(slot.take(), Some(7));
    let is_at_socket = filler.join().expect("it does not panic");
    assert!(!is_at_socket);
}

/// What two callers, the worker and the peer share while requests are answered.
struct Wire {
    /// Replies in the socket.
    arrived: Mutex<Socket>,
    changed: Condvar,
    driver: Handoff<()>,
    seats: Mutex<Seats>,
    slots: Vec<Slot<()>>,
}

struct Socket {
    replies: Vec<usize>,
    /// The worker would be woken by them.
    is_watched: bool,
    /// The leader was woken without.
    is_leader_woken: bool,
    /// The worker was.
    is_worker_woken: bool,
    is_over: bool,
}

impl Wire {
    fn watch(&self, is_watched: bool) {
        self.arrived.lock().is_watched = is_watched;
        self.changed.notify_all();
    }

    /// Reads what has arrived, under the driver's lock, and hands it out after that.
    fn read(&self) {
        let driver = self.driver.lock();
        let replies = std::mem::take(&mut self.arrived.lock().replies);
        self.driver.release(driver, |()| {});
        for reply in replies {
            if self.slots[reply].fill(()) {
                self.arrived.lock().is_leader_woken = true;
                self.changed.notify_all();
            }
        }
    }

    /// `looped_at`: the time at which one in a loop sits down and gets up.
    fn request(&self, id: usize, peer: &mpsc::Sender<usize>, looped_at: Option<Instant>) {
        let slot = &self.slots[id];
        let seat = self.seats.lock().sit_down(true, looped_at);
        if seat == Seat::Leader {
            self.watch(false);
        }
        peer.send(id).expect("the peer is there");
        if seat == Seat::Beside {
            slot.wait_filled(far());
        } else {
            while !slot.is_done() {
                if slot.go_to_socket() {
                    let mut arrived = self.arrived.lock();
                    while arrived.replies.is_empty() && !arrived.is_leader_woken {
                        self.changed.wait(&mut arrived);
                    }
                    arrived.is_leader_woken = false;
                }
                slot.leave_socket();
                if !slot.is_done() {
                    self.read();
                }
            }
            slot.leave_socket();
        }
        let is_news = self
            .seats
            .lock()
            .get_up(seat, looped_at, || self.watch(true));
        if is_news {
            self.arrived.lock().is_worker_woken = true;
            self.changed.notify_all();
        }
        assert_eq!(slot.take(), Some(()));
    }

    /// `now`: when it looks after the seats without being asked again.
    fn work(&self, now: Instant) {
        let mut again = None;
        loop {
            let mut arrived = self.arrived.lock();
            let has_work = |arrived: &Socket| {
                arrived.is_over
                    || arrived.is_worker_woken
                    || (arrived.is_watched && !arrived.replies.is_empty())
            };
            while again.is_none() && !has_work(&arrived) {
                self.changed.wait(&mut arrived);
            }
            if arrived.is_over {
                return;
            }
            let may_read = arrived.is_watched;
            arrived.is_worker_woken = false;
            drop(arrived);
            if may_read {
                self.read();
            }
            // If it was to look again, that time is over.
            let now = again.map_or(now, |_| now + Duration::from_secs(10));
            again = self.seats.lock().watch(now, || self.watch(true));
        }
    }
}

fn wire(slots: usize) -> Wire {
    Wire {
        arrived: Mutex::new(Socket {
            replies: Vec::new(),
            is_watched: true,
            is_leader_woken: false,
            is_worker_woken: false,
            is_over: false,
        }),
        changed: Condvar::new(),
        driver: Handoff::new(()),
        seats: Mutex::default(),
        slots: (0..slots).map(|_| Slot::default()).collect(),
    }
}

/// Answers until nobody can ask any more.
fn peer_of(wire: &Arc<Wire>) -> (mpsc::Sender<usize>, thread::JoinHandle<()>) {
    let (sender, requests) = mpsc::channel();
    let wire = Arc::clone(wire);
    let peer = thread::spawn(move || {
        while let Ok(id) = requests.recv() {
            wire.arrived.lock().replies.push(id);
            wire.changed.notify_all();
        }
    });
    (sender, peer)
}

fn worker_of(wire: &Arc<Wire>) -> thread::JoinHandle<()> {
    let wire = Arc::clone(wire);
    thread::spawn(move || wire.work(Instant::now()))
}

fn end(wire: &Wire, worker: thread::JoinHandle<()>) {
    assert!(wire.arrived.lock().is_watched, "the worker has the socket");
    wire.arrived.lock().is_over = true;
    wire.changed.notify_all();
    worker.join().expect("it does not panic");
}

/// Two callers request at the same time, and one of them reads the socket: both get their reply,
/// whoever reads it, also when the leader has left.
pub(crate) fn leaders_and_followers_get_their_replies() {
    let wire = Arc::new(wire(2));
    let (sender, peer) = peer_of(&wire);
    let worker = worker_of(&wire);
    let (asking, to_peer) = (Arc::clone(&wire), sender.clone());
    let caller = thread::spawn(move || asking.request(0, &to_peer, None));
    wire.request(1, &sender, None);
    caller.join().expect("it does not panic");
    drop(sender);
    peer.join().expect("it does not panic");
    end(&wire, worker);
}

/// A caller in a loop keeps its seat and does not come back: what arrives then, the worker reads, and
/// nobody has to ask it to.
pub(crate) fn a_seat_is_kept_for_a_while() {
    const ASKED: usize = 4;
    let wire = Arc::new(wire(ASKED + 1));
    let (sender, peer) = peer_of(&wire);
    let worker = worker_of(&wire);
    let now = Instant::now();
    for id in 0..ASKED {
        wire.request(id, &sender, Some(now));
    }
    sender.send(ASKED).expect("the peer is there");
    wire.slots[ASKED].wait_filled(far());
    drop(sender);
    peer.join().expect("it does not panic");
    end(&wire, worker);
}

/// The connection ends while two callers request: each is refused, or has its slot filled.
pub(crate) fn the_end_reaches_everybody() {
    #[derive(Default)]
    struct Outbox {
        is_closed: bool,
        units: Vec<usize>,
        waiting: Vec<Arc<Slot<bool>>>,
        seats: Seats,
    }
    struct Shared {
        outbox: Mutex<Outbox>,
        driver: Handoff<bool>,
        leader: Waker,
    }
    let shared = Arc::new(Shared {
        outbox: Mutex::default(),
        driver: Handoff::new(false),
        leader: Waker::default(),
    });
    let callers = [0, 1].map(|id| {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            let slot = Arc::new(Slot::default());
            let mut outbox = shared.outbox.lock();
            if outbox.is_closed {
                return;
            }
            outbox.units.push(id);
            outbox.waiting.push(Arc::clone(&slot));
            let seat = outbox.seats.sit_down(true, None);
            drop(outbox);
            shared.driver.note_work();
            shared.driver.offer(|is_over| {
                if !*is_over {
                    shared.outbox.lock().units.clear();
                }
            });
            if seat == Seat::Leader {
                while !slot.is_done() {
                    if slot.go_to_socket() {
                        shared.leader.sleep();
                    }
                    slot.leave_socket();
                }
            } else {
                slot.wait_filled(far());
            }
            let _ = shared.outbox.lock().seats.get_up(seat, None, || {});
            assert_eq!(slot.take(), Some(false));
        })
    });
    let mut driver = shared.driver.lock();
    *driver = true;
    let mut outbox = shared.outbox.lock();
    outbox.is_closed = true;
    let waiting = std::mem::take(&mut outbox.waiting);
    drop(outbox);
    shared.driver.release(driver, |_| {});
    for slot in waiting {
        if slot.fill(false) {
            shared.leader.wake();
        }
    }
    for caller in callers {
        caller.join().expect("it does not panic");
    }
    assert!(shared.outbox.lock().waiting.is_empty());
}

/// A caller brings something forward while the timekeeper looks at an earlier time: it is done in the
/// end, and the connection is on the list once.
pub(crate) fn no_time_is_missed() {
    struct Shared {
        began: Instant,
        due: Due,
        /// What is due, at which time.
        driver: Mutex<Option<u64>>,
        /// How often the connection is on the list.
        list: Mutex<usize>,
    }
    impl Shared {
        fn at(&self, nanos: u64) -> Instant {
            self.began + Duration::from_nanos(nanos)
        }

        fn bring_forward(&self, to: u64) {
            let mut driver = self.driver.lock();
            *driver = Some(to);
            if self.due.set(self.at(to)) {
                *self.list.lock() += 1;
            }
        }

        fn look(&self, now: u64) {
            let mut list = self.list.lock();
            assert!(*list <= 1, "on the list {list} times", list = *list);
            if *list == 0 {
                return;
            }
            let stays = self.due.look(self.at(now), || {
                let Some(mut driver) = self.driver.try_lock() else {
                    self.due.renew(self.at(now));
                    return true;
                };
                if driver.is_some_and(|due| due <= now) {
                    *driver = None;
                }
                match *driver {
                    Some(next) => {
                        self.due.renew(self.at(next));
                        true
                    }
                    None => false,
                }
            });
            if !stays {
                *list -= 1;
            }
        }
    }
    let began = Instant::now();
    let shared = Arc::new(Shared {
        began,
        due: Due::new(began),
        driver: Mutex::default(),
        list: Mutex::default(),
    });
    shared.bring_forward(1);
    let caller = Arc::clone(&shared);
    let caller = thread::spawn(move || caller.bring_forward(5));
    shared.look(2);
    caller.join().expect("it does not panic");
    shared.look(6);
    shared.look(7);
    assert_eq!(*shared.driver.lock(), None, "it was missed");
}
