//! Datagrams alone: what the system gives and, with a key, what it gives when every datagram is
//! sealed and opened with AES-128-GCM by BoringSSL. No delivery, no order, no congestion control:
//! nothing that carries a stream can be faster than these by much, which is what they are for.
//!
//! Bulk and pipelined requests go in batches (GSO) and arrive in batches (GRO); a single request is
//! a datagram. A fan-out has a socket and a thread for each connection at both ends.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use boring::aead::{AeadCtx, Algorithm};
use nix::poll::PollFlags;
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::SockRef;

use crate::{
    blocking::{Lanes, retry},
    frames::{Requests, payload},
    job::{Job, OUTSTANDING, SOCKET_BUFFER_BYTES, Work},
    measure::{self, Control, Meter, Outcome, Tally, Window, tell},
};

const NONCE_BYTES: usize = 12;
/// In a sealed datagram: the counter that its nonce is made of, in the clear, and the tag.
const COUNTER_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
const SEALED_BYTES: usize = COUNTER_BYTES + TAG_BYTES;

/// The most that one call hands to the system, which is what one UDP datagram may hold.
const MAX_BATCH_BYTES: usize = 65_507;

/// Buffers that one call may fill.
const RECEIVE_BUFFERS: usize = 4;

/// A reply that does not come within this is lost.
const LOST: Duration = Duration::from_millis(500);

pub(crate) fn cannot(work: Work) -> Option<&'static str> {
    match work {
        Work::Idle { .. } => Some("it has no connections"),
        Work::Handshakes { .. } => Some("it has no handshake"),
        _ => None,
    }
}

fn is_sealed(job: &Job) -> bool {
    job.candidate == "limit"
}

/// Both directions of one flow. The keys are no secret: what is measured is the work.
struct Seal {
    algorithm: Option<AeadCtx>,
    counter: u64,
}

impl Seal {
    fn new(is_sealed: bool) -> io::Result<Self> {
        let algorithm = is_sealed
            .then(|| AeadCtx::new_default_tag(&Algorithm::aes_128_gcm(), &[7; 16]))
            .transpose()
            .map_err(io::Error::other)?;
        Ok(Self {
            algorithm,
            counter: 0,
        })
    }

    fn overhead(&self) -> usize {
        self.algorithm.as_ref().map_or(0, |_| SEALED_BYTES)
    }

    fn nonce(counter: [u8; COUNTER_BYTES]) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        nonce[NONCE_BYTES - COUNTER_BYTES..].copy_from_slice(&counter);
        nonce
    }

    /// Appends a datagram with this payload.
    fn put(&mut self, payload: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let Some(algorithm) = &mut self.algorithm else {
            out.extend_from_slice(payload);
            return Ok(());
        };
        self.counter += 1;
        let counter = self.counter.to_be_bytes();
        let from = out.len();
        out.extend_from_slice(&counter);
        out.extend_from_slice(payload);
        out.extend_from_slice(&[0; TAG_BYTES]);
        let (head, sealed) = out[from..].split_at_mut(COUNTER_BYTES);
        let (text, tag) = sealed.split_at_mut(payload.len());
        algorithm
            .seal_in_place_mut(&Self::nonce(counter), text, tag, head)
            .map_err(io::Error::other)?;
        Ok(())
    }

    /// The payload of a datagram, opened where it lies.
    fn take<'a>(&mut self, datagram: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let Some(algorithm) = &mut self.algorithm else {
            return Ok(datagram);
        };
        let short = || io::Error::other("a datagram too short to be sealed");
        let (head, sealed) = datagram
            .split_first_chunk_mut::<COUNTER_BYTES>()
            .ok_or_else(short)?;
        let (text, tag) = sealed
            .split_last_chunk_mut::<TAG_BYTES>()
            .ok_or_else(short)?;
        algorithm
            .open_in_place_mut(&Self::nonce(*head), text, tag, head)
            .map_err(io::Error::other)?;
        Ok(text)
    }
}

fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let options = SockRef::from(&socket);
    options.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    options.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    Ok(socket)
}

/// A socket that sends and receives in batches, and sleeps in `poll`.
struct Batches {
    socket: UdpSocket,
    state: UdpSocketState,
    buffers: Vec<Vec<u8>>,
}

impl Batches {
    fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self {
            socket,
            state,
            buffers: vec![vec![0; 64 << 10]; RECEIVE_BUFFERS],
        })
    }

    /// Datagrams of so many bytes that one call takes.
    fn most_at_once(&self, datagram_bytes: usize) -> usize {
        self.state
            .max_gso_segments()
            .min(MAX_BATCH_BYTES / datagram_bytes)
            .max(1)
    }

    fn send(&self, to: SocketAddr, contents: &[u8], datagram_bytes: usize) -> io::Result<()> {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents,
            segment_size: (contents.len() > datagram_bytes).then_some(datagram_bytes),
            src_ip: None,
        };
        retry(
            &self.socket,
            Some(Duration::ZERO),
            LOST,
            PollFlags::POLLOUT,
            || {
                self.state
                    .try_send(UdpSockRef::from(&self.socket), &transmit)
            },
        )
    }

    /// Waits for datagrams and hands each to `each`.
    fn receive(
        &mut self,
        mut each: impl FnMut(&mut [u8], SocketAddr) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut metas = [RecvMeta::default(); RECEIVE_BUFFERS];
        let Self {
            socket,
            state,
            buffers,
        } = self;
        let filled = retry(
            socket,
            Some(Duration::ZERO),
            LOST,
            PollFlags::POLLIN,
            || {
                let mut slices: Vec<IoSliceMut<'_>> = buffers
                    .iter_mut()
                    .map(|buffer| IoSliceMut::new(buffer))
                    .collect();
                state.recv(UdpSockRef::from(&*socket), &mut slices, &mut metas)
            },
        )?;
        for (buffer, meta) in buffers.iter_mut().zip(&metas[..filled]) {
            for datagram in buffer[..meta.len].chunks_mut(meta.stride.max(1)) {
                each(datagram, meta.addr)?;
            }
        }
        Ok(())
    }
}

// ---- the server ------------------------------------------------------------------------------

pub(crate) fn serve(job: &Job) -> io::Result<()> {
    let sockets = match job.work() {
        Work::FanOut { connections, .. } => connections,
        _ => 1,
    };
    let received = Arc::new(AtomicU64::new(0));
    let mut addrs = Vec::new();
    for _ in 0..sockets {
        let socket = socket()?;
        addrs.push(socket.local_addr()?);
        let (job, received) = (job.clone(), Arc::clone(&received));
        thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || {
                let result = match job.work() {
                    Work::Bulk { .. } => count(&job, socket, &received),
                    Work::Pipelined { .. } => echo_batches(&job, socket),
                    _ => echo(&job, &socket),
                };
                if let Err(error) = result {
                    eprintln!("the server stops: {error}");
                }
            })?;
    }
    measure::serve(&addrs, |question| match question {
        "received" => received.load(Relaxed).to_string(),
        _ => "unknown".to_owned(),
    })
}

fn count(job: &Job, socket: UdpSocket, received: &AtomicU64) -> io::Result<()> {
    let mut seal = Seal::new(is_sealed(job))?;
    let mut batches = Batches::new(socket)?;
    loop {
        let mut bytes = 0;
        let result = batches.receive(|datagram, _| {
            bytes += seal.take(datagram)?.len() as u64;
            Ok(())
        });
        received.fetch_add(bytes, Relaxed);
        if !is_quiet(&result) {
            result?;
        }
    }
}

/// Nobody sends: the client will, or is gone and the process ends.
fn is_quiet<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::TimedOut)
}

fn echo_batches(job: &Job, socket: UdpSocket) -> io::Result<()> {
    let mut seal = Seal::new(is_sealed(job))?;
    let mut batches = Batches::new(socket)?;
    let mut replies = Vec::new();
    loop {
        replies.clear();
        let mut to = None;
        let mut datagram_bytes = 0;
        let result = batches.receive(|datagram, from| {
            to = Some(from);
            datagram_bytes = datagram.len();
            let request = seal.take(datagram)?;
            seal.put(request, &mut replies)
        });
        if is_quiet(&result) {
            continue;
        }
        result?;
        if let Some(to) = to {
            send_all(&batches, to, &replies, datagram_bytes)?;
        }
    }
}

/// In as few calls as the system allows.
fn send_all(
    batches: &Batches,
    to: SocketAddr,
    contents: &[u8],
    datagram_bytes: usize,
) -> io::Result<()> {
    let batch = batches.most_at_once(datagram_bytes) * datagram_bytes;
    contents
        .chunks(batch)
        .try_for_each(|part| batches.send(to, part, datagram_bytes))
}

fn echo(job: &Job, socket: &UdpSocket) -> io::Result<()> {
    let spin = job.work().spin();
    socket.set_nonblocking(spin.is_some())?;
    let mut seal = Seal::new(is_sealed(job))?;
    let mut buffer = vec![0; 2_048];
    let mut reply = Vec::new();
    loop {
        let received = retry(socket, spin, LOST, PollFlags::POLLIN, || {
            socket.recv_from(&mut buffer)
        });
        if is_quiet(&received) {
            continue;
        }
        let (bytes, from) = received?;
        reply.clear();
        let request = seal.take(&mut buffer[..bytes])?;
        seal.put(request, &mut reply)?;
        socket.send_to(&reply, from)?;
    }
}

// ---- the client ------------------------------------------------------------------------------

pub(crate) fn client(job: &Job, mut control: Control) -> io::Result<Outcome> {
    let addrs = control.addrs()?;
    let outcome = match job.work() {
        Work::Bulk { datagram_bytes } => bulk(job, control, addrs[0], datagram_bytes)?,
        Work::Pipelined { .. } => pipelined(job, control, addrs[0])?,
        Work::PingPong { .. } | Work::FanOut { .. } => single(job, control, &addrs)?,
        Work::Idle { .. } | Work::Handshakes { .. } => {
            return Err(io::Error::other("this candidate has no connections"));
        }
    };
    Ok(if is_sealed(job) {
        outcome.note("AES-128-GCM by BoringSSL, a fixed key, no key exchange")
    } else {
        outcome
    })
}

/// What arrives while it counts; what the receiver cannot take in time is lost, and told.
fn bulk(
    job: &Job,
    mut control: Control,
    to: SocketAddr,
    datagram_bytes: usize,
) -> io::Result<Outcome> {
    let mut seal = Seal::new(is_sealed(job))?;
    let batches = Batches::new(socket()?)?;
    let text = payload(datagram_bytes - seal.overhead());
    let at_once = batches.most_at_once(datagram_bytes);
    let mut batch = Vec::with_capacity(MAX_BATCH_BYTES);
    let mut sent = 0_u64;
    let mut send_until = |until: Instant, sent: &mut u64| -> io::Result<()> {
        while Instant::now() < until {
            batch.clear();
            for _ in 0..at_once {
                seal.put(&text, &mut batch)?;
            }
            batches.send(to, &batch, datagram_bytes)?;
            *sent += (at_once * text.len()) as u64;
        }
        Ok(())
    };
    let received = |control: &mut Control| -> io::Result<u64> {
        let answer = control.ask("received")?;
        answer.parse().map_err(io::Error::other)
    };
    send_until(Instant::now() + job.warm_up(), &mut 0)?;
    tell("measuring");
    let begin = control.snapshot()?;
    let (from, before) = (Instant::now(), received(&mut control)?);
    send_until(from + job.measured(), &mut sent)?;
    let after = received(&mut control)?;
    let seconds = from.elapsed().as_secs_f64();
    let end = control.snapshot()?;
    let bytes = after - before;
    if bytes == 0 {
        return Err(io::Error::other("nothing arrived"));
    }
    let window = Window {
        begin,
        end,
        seconds,
    };
    let lost = (1.0 - bytes as f64 / sent as f64).max(0.0);
    Ok(Outcome::of_bytes(&window, bytes, lost))
}

/// One socket and one thread, a batch for a batch.
fn pipelined(job: &Job, control: Control, to: SocketAddr) -> io::Result<Outcome> {
    let mut lanes = Lanes::new(1);
    let (sealed, payload_bytes) = (is_sealed(job), job.work().payload_bytes());
    lanes.add(move |meter, tally| {
        let mut seal = Seal::new(sealed)?;
        let mut batches = Batches::new(socket()?)?;
        let mut requests = Requests::new(payload_bytes, OUTSTANDING);
        let mut frame = Vec::new();
        let mut writing = Vec::new();
        let mut datagram_bytes = 0;
        let mut outstanding = 0;
        while !meter.is_over() || outstanding > 0 {
            if !meter.is_over() {
                let now = Instant::now();
                for _ in outstanding..OUTSTANDING {
                    frame.clear();
                    requests.put(&mut frame, now);
                    seal.put(&frame, &mut writing)?;
                    datagram_bytes = frame.len() + seal.overhead();
                }
                outstanding = OUTSTANDING;
            }
            send_all(&batches, to, &writing, datagram_bytes)?;
            writing.clear();
            let result = batches.receive(|datagram, _| {
                let took = requests.take(seal.take(datagram)?, Instant::now())?;
                outstanding -= 1;
                if meter.counts() {
                    tally.record(took);
                }
                Ok(())
            });
            if is_quiet(&result) {
                tally.lost += requests.forget() as u64;
                outstanding = 0;
            } else {
                result?;
            }
        }
        Ok(())
    })?;
    lanes.run(job, control)
}

fn single(job: &Job, control: Control, addrs: &[SocketAddr]) -> io::Result<Outcome> {
    let mut lanes = Lanes::new(addrs.len());
    for addr in addrs {
        let socket = socket()?;
        socket.connect(addr)?;
        let (sealed, spin) = (is_sealed(job), job.work().spin());
        lanes.add(move |meter, tally| lane(&socket, sealed, spin, meter, tally))?;
    }
    lanes.run(job, control)
}

fn lane(
    socket: &UdpSocket,
    sealed: bool,
    spin: Option<Duration>,
    meter: &Meter,
    tally: &mut Tally,
) -> io::Result<()> {
    socket.set_nonblocking(spin.is_some())?;
    socket.set_read_timeout(Some(LOST))?;
    let mut seal = Seal::new(sealed)?;
    let mut requests = Requests::new(64, 1);
    let mut buffer = vec![0; 2_048];
    let (mut frame, mut datagram) = (Vec::new(), Vec::new());
    while !meter.is_over() {
        frame.clear();
        datagram.clear();
        let now = Instant::now();
        requests.put(&mut frame, now);
        seal.put(&frame, &mut datagram)?;
        socket.send(&datagram)?;
        let received = retry(socket, spin, LOST, PollFlags::POLLIN, || {
            socket.recv(&mut buffer)
        });
        let bytes = match received {
            Ok(bytes) => bytes,
            Err(error) if is_late(&error) => {
                tally.lost += requests.forget() as u64;
                continue;
            }
            Err(error) => return Err(error),
        };
        let reply = seal.take(&mut buffer[..bytes])?;
        let took = requests.take(reply, Instant::now())?;
        if meter.counts() {
            tally.record(took);
        }
    }
    Ok(())
}

fn is_late(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// What the system takes and gives in one call, as it says itself.
pub(crate) fn offloads() -> io::Result<String> {
    let batches = Batches::new(socket()?)?;
    Ok(format!(
        "UDP GSO {} and GRO {} datagrams a call",
        batches.state.max_gso_segments(),
        batches.state.gro_segments()
    ))
}
