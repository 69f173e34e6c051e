//! A path between nodes that can be made slow and narrow: a UDP relay that holds every datagram up and
//! loses large ones, as a black hole for their size does.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "each test takes what it needs, fails by panicking, and runs against the real clock"
)]

use std::{
    collections::VecDeque,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The relay; nodes reach the target at `addr`.
pub struct Path {
    pub addr: SocketAddr,
    rules: Arc<Rules>,
    thread: Option<JoinHandle<()>>,
}

struct Rules {
    delay_us: AtomicU64,
    max_bytes: AtomicUsize,
    lost: AtomicU64,
    largest: AtomicUsize,
    is_over: AtomicBool,
}

/// A datagram on its way.
struct Held {
    due: Instant,
    bytes: Vec<u8>,
    /// Which source it is from or for.
    source: usize,
    is_to_target: bool,
}

impl Path {
    pub fn to(target: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        front.set_nonblocking(true).unwrap();
        let addr = front.local_addr().unwrap();
        let rules = Arc::new(Rules {
            delay_us: AtomicU64::new(0),
            max_bytes: AtomicUsize::new(usize::MAX),
            lost: AtomicU64::new(0),
            largest: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        });
        let running = Arc::clone(&rules);
        let thread = Some(std::thread::spawn(move || running.run(&front, target)));
        Self {
            addr,
            rules,
            thread,
        }
    }

    /// How long each datagram takes from here on.
    pub fn set_delay(&self, delay: Duration) {
        let delay = delay.as_micros().try_into().unwrap();
        self.rules.delay_us.store(delay, SeqCst);
    }

    /// Datagrams of more payload are lost from here on, and nobody is told.
    pub fn set_max_bytes(&self, max: usize) {
        self.rules.max_bytes.store(max, SeqCst);
    }

    /// Datagrams that were too large.
    pub fn lost(&self) -> u64 {
        self.rules.lost.load(SeqCst)
    }

    /// The largest payload that was passed on since the last call.
    pub fn take_largest(&self) -> usize {
        self.rules.largest.swap(0, SeqCst)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.rules.is_over.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Rules {
    fn run(&self, front: &UdpSocket, target: SocketAddr) {
        let mut sources: Vec<(SocketAddr, UdpSocket)> = Vec::new();
        let mut held: VecDeque<Held> = VecDeque::new();
        let mut buffer = vec![0; 65_536];
        while !self.is_over.load(SeqCst) {
            let mut fds = vec![PollFd::new(front, PollFlags::IN)];
            fds.extend(sources.iter().map(|(_, s)| PollFd::new(s, PollFlags::IN)));
            let now = Instant::now();
            let longest = Duration::from_millis(50);
            let wait = held.front().map_or(longest, |first| {
                first.due.saturating_duration_since(now).min(longest)
            });
            let wait = Timespec::try_from(wait).unwrap();
            let _ = poll(&mut fds, Some(&wait));
            while let Ok((length, from)) = front.recv_from(&mut buffer) {
                let known = sources.iter().position(|(source, _)| *source == from);
                let source = known.unwrap_or_else(|| {
                    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                    socket.connect(target).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    sources.push((from, socket));
                    sources.len() - 1
                });
                self.hold(&mut held, &buffer[..length], source, true);
            }
            for (source, (_, socket)) in sources.iter().enumerate() {
                while let Ok(length) = socket.recv(&mut buffer) {
                    self.hold(&mut held, &buffer[..length], source, false);
                }
            }
            let now = Instant::now();
            while held.front().is_some_and(|first| first.due <= now) {
                let Some(datagram) = held.pop_front() else {
                    break;
                };
                let (addr, socket) = &sources[datagram.source];
                // Lost is what the other end has no room for.
                let _ = if datagram.is_to_target {
                    socket.send(&datagram.bytes)
                } else {
                    front.send_to(&datagram.bytes, addr)
                };
            }
        }
    }

    fn hold(&self, held: &mut VecDeque<Held>, bytes: &[u8], source: usize, is_to_target: bool) {
        if bytes.len() > self.max_bytes.load(SeqCst) {
            self.lost.fetch_add(1, SeqCst);
            return;
        }
        self.largest.fetch_max(bytes.len(), SeqCst);
        let delay = Duration::from_micros(self.delay_us.load(SeqCst));
        held.push_back(Held {
            due: Instant::now() + delay,
            bytes: bytes.to_vec(),
            source,
            is_to_target,
        });
    }
}
