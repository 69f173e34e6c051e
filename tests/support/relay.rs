//! A UDP relay in front of a node's port, which advertises the relay in its place.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "each test takes what it needs, fails by panicking, and runs against the real clock"
)]

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A port that nobody has, below those that the system hands out by itself.
pub fn free_addr() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = std::process::id() as u16 ^ 0x5a2a;
        let port = 10_000 + offset.wrapping_add(NEXT.fetch_add(7, Relaxed)) % 20_000;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}

/// Stands in front of a port, passes everything on in both directions, and keeps copies.
pub struct Relay {
    pub addr: SocketAddr,
    pub target: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    front: UdpSocket,
    target: SocketAddr,
    /// A socket for each source, so that the target can tell them apart.
    sources: Mutex<Vec<(SocketAddr, Arc<UdpSocket>)>>,
    to_target: Mutex<Vec<Vec<u8>>>,
    to_source: Mutex<Vec<Vec<u8>>>,
    is_over: AtomicBool,
}

const MAX_RECORDED: usize = 2_048;

fn record(list: &Mutex<Vec<Vec<u8>>>, datagram: &[u8]) {
    let mut list = list.lock().unwrap();
    if list.len() < MAX_RECORDED {
        list.push(datagram.to_vec());
    }
}

impl Relay {
    pub fn to(target: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        front.set_nonblocking(true).unwrap();
        let addr = front.local_addr().unwrap();
        let shared = Arc::new(Shared {
            front,
            target,
            sources: Mutex::default(),
            to_target: Mutex::default(),
            to_source: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let running = Arc::clone(&shared);
        let thread = Some(std::thread::spawn(move || running.run()));
        Self {
            addr,
            target,
            shared,
            thread,
        }
    }

    /// What came from both sides; at most 2,048 datagrams of each.
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        let mut all = self.shared.to_target.lock().unwrap().clone();
        all.extend(self.shared.to_source.lock().unwrap().iter().cloned());
        all
    }

    /// What came for the target so far.
    pub fn recorded_inbound(&self) -> Vec<Vec<u8>> {
        self.shared.to_target.lock().unwrap().clone()
    }

    /// How many datagrams the target's sockets had no room for.
    pub fn dropped(&self) -> u64 {
        let wanted = format!("{:04X}", self.shared.target.port());
        let sockets = fs::read_to_string("/proc/net/udp").unwrap();
        let drops = sockets.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (_, port) = words.nth(1)?.split_once(':')?;
            (port == wanted).then(|| words.last()?.parse::<u64>().ok())?
        });
        drops.sum()
    }

    pub fn has_seen(&self, count: usize) -> bool {
        self.shared.to_target.lock().unwrap().len() >= count
    }

    /// Sends to the target from where its peers seem to be, and to the peers from where the target
    /// seems to be.
    pub fn inject(&self, datagram: &[u8]) {
        for (source, socket) in self.shared.sources.lock().unwrap().iter() {
            let _ = socket.send(datagram);
            let _ = self.shared.front.send_to(datagram, source);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut buffer = [0; 2_048];
        while !self.is_over.load(Relaxed) {
            let sources = self.sources.lock().unwrap().clone();
            let mut fds = vec![PollFd::new(&self.front, PollFlags::IN)];
            fds.extend(
                sources
                    .iter()
                    .map(|(_, socket)| PollFd::new(&**socket, PollFlags::IN)),
            );
            let tick = Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            let _ = poll(&mut fds, Some(&tick));
            while let Ok((length, source)) = self.front.recv_from(&mut buffer) {
                record(&self.to_target, &buffer[..length]);
                let _ = self.socket_of(source).send(&buffer[..length]);
            }
            for (source, socket) in &sources {
                while let Ok(length) = socket.recv(&mut buffer) {
                    record(&self.to_source, &buffer[..length]);
                    let _ = self.front.send_to(&buffer[..length], source);
                }
            }
        }
    }

    fn socket_of(&self, source: SocketAddr) -> Arc<UdpSocket> {
        let mut sources = self.sources.lock().unwrap();
        if let Some((_, socket)) = sources.iter().find(|(known, _)| *known == source) {
            return Arc::clone(socket);
        }
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.target).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = Arc::new(socket);
        sources.push((source, Arc::clone(&socket)));
        socket
    }
}
