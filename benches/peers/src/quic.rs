//! The workloads on an async QUIC implementation, whichever it is: a task for each connection, and
//! requests as frames on one long-lived stream.

use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::timeout,
};

use crate::{
    frames::{Received, Requests},
    job::{CHUNK_BYTES, Job, OUTSTANDING, PATIENCE, Work},
    measure::{Control, Meter, Outcome, Tally, Window, tell},
};

/// Dials under way at the same time while many connections are set up.
const DIALS_AT_ONCE: usize = 16;

/// How long connections are left alone before their memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) trait Outgoing: AsyncWrite + Unpin + Send + 'static {
    /// Sends a piece without copying it.
    fn put(&mut self, piece: Bytes) -> impl Future<Output = io::Result<()>> + Send;
    fn end(&mut self) -> io::Result<()>;
}

pub(crate) trait Incoming: AsyncRead + Unpin + Send + 'static {
    /// The length of the next piece, which is not copied. `None` at the end.
    fn piece(&mut self) -> impl Future<Output = io::Result<Option<usize>>> + Send;
}

pub(crate) trait Link: Send + Sync + 'static {
    type Out: Outgoing;
    type In: Incoming;
    fn open(&mut self) -> impl Future<Output = io::Result<(Self::Out, Self::In)>> + Send;
    fn close(self);
}

pub(crate) trait Dialer: Send + Sync + 'static {
    type Link: Link;
    fn dial(&self) -> impl Future<Output = io::Result<Self::Link>> + Send;
}

pub(crate) fn runtime(single: bool) -> io::Result<Runtime> {
    let mut builder = if single {
        Builder::new_current_thread()
    } else {
        Builder::new_multi_thread()
    };
    builder.enable_all().build()
}

// ---- the server ------------------------------------------------------------------------------

/// What the server does with a stream.
pub(crate) async fn answer(work: Work, out: impl Outgoing, input: impl Incoming) -> io::Result<()> {
    match work {
        Work::Bulk { .. } => count(out, input).await,
        _ => echo(out, input).await,
    }
}

/// Reads to the end and says how many bytes that was.
async fn count(mut out: impl Outgoing, mut input: impl Incoming) -> io::Result<()> {
    let mut total = 0_u64;
    while let Some(bytes) = input.piece().await? {
        total += bytes as u64;
    }
    out.write_all(&total.to_be_bytes()).await?;
    out.end()
}

async fn echo(mut out: impl Outgoing, mut input: impl Incoming) -> io::Result<()> {
    let mut received = Received::new();
    loop {
        let bytes = input.read(received.room()).await?;
        if bytes == 0 {
            return out.end();
        }
        received.filled(bytes);
        out.write_all(received.take_frames()).await?;
        out.flush().await?;
    }
}

// ---- the client ------------------------------------------------------------------------------

pub(crate) async fn client<D: Dialer>(
    dialer: D,
    job: &Job,
    control: Control,
) -> io::Result<Outcome> {
    match job.work() {
        Work::Bulk { .. } => bulk(dialer, job, control).await,
        Work::PingPong { .. } => lanes(dialer, job, control, 1, 1).await,
        Work::Pipelined { .. } => lanes(dialer, job, control, 1, OUTSTANDING).await,
        Work::FanOut { connections, .. } => lanes(dialer, job, control, connections, 1).await,
        Work::Idle { connections } => idle(dialer, job, control, connections).await,
        Work::Handshakes { at_once } => handshakes(dialer, job, control, at_once).await,
    }
}

/// Time counts from the end of the warm-up until the server has confirmed every byte.
async fn bulk<D: Dialer>(dialer: D, job: &Job, mut control: Control) -> io::Result<Outcome> {
    let mut link = dialer.dial().await?;
    let (mut out, mut input) = link.open().await?;
    let chunk = Bytes::from(crate::frames::payload(CHUNK_BYTES));
    let mut sent = 0_u64;
    let until = Instant::now() + job.warm_up();
    while Instant::now() < until {
        timeout(PATIENCE, out.put(chunk.clone())).await??;
        sent += CHUNK_BYTES as u64;
    }
    tell("measuring");
    let (begin, before) = (control.snapshot()?, sent);
    let from = Instant::now();
    while from.elapsed() < job.measured() {
        timeout(PATIENCE, out.put(chunk.clone())).await??;
        sent += CHUNK_BYTES as u64;
    }
    out.end()?;
    let mut confirmed = [0; 8];
    timeout(PATIENCE, input.read_exact(&mut confirmed)).await??;
    let seconds = from.elapsed().as_secs_f64();
    let end = control.snapshot()?;
    if u64::from_be_bytes(confirmed) != sent {
        return Err(io::Error::other("the server did not receive what was sent"));
    }
    link.close();
    let window = Window {
        begin,
        end,
        seconds,
    };
    Ok(Outcome::of_bytes(&window, sent - before, 0.0))
}

/// So many connections, one after the other on each of a few tasks.
async fn dial_all<D: Dialer>(dialer: &Arc<D>, count: usize) -> io::Result<Vec<D::Link>> {
    let mut dials = JoinSet::new();
    for part in 0..DIALS_AT_ONCE.min(count) {
        let dialer = Arc::clone(dialer);
        dials.spawn(async move {
            let mut links = Vec::new();
            for _ in (part..count).step_by(DIALS_AT_ONCE) {
                links.push(timeout(PATIENCE, dialer.dial()).await??);
            }
            io::Result::Ok(links)
        });
    }
    let mut links = Vec::new();
    while let Some(done) = dials.join_next().await {
        links.extend(done??);
    }
    Ok(links)
}

/// Requests on each of so many connections, so many outstanding on each.
async fn lanes<D: Dialer>(
    dialer: D,
    job: &Job,
    control: Control,
    connections: usize,
    outstanding: usize,
) -> io::Result<Outcome> {
    let dialer = Arc::new(dialer);
    let mut links = dial_all(&dialer, connections).await?;
    let mut streams = Vec::new();
    for link in &mut links {
        streams.push(link.open().await?);
    }
    let meter = Meter::default();
    let watch = meter.start(job, control);
    let payload_bytes = job.work().payload_bytes();
    let mut tasks = JoinSet::new();
    for (out, input) in streams {
        let requests = Requests::new(payload_bytes, outstanding);
        let tally = Tally::new(connections);
        tasks.spawn(lane(
            out,
            input,
            requests,
            outstanding,
            meter.clone(),
            tally,
        ));
    }
    let mut total = Tally::new(connections);
    while let Some(done) = tasks.join_next().await {
        total.add(&done??);
    }
    let (_control, window) = joined(watch)?;
    links.into_iter().for_each(Link::close);
    Outcome::of_tally(job, &window, &total)
}

async fn lane(
    mut out: impl Outgoing,
    mut input: impl Incoming,
    mut requests: Requests,
    mut outstanding: usize,
    meter: Meter,
    mut tally: Tally,
) -> io::Result<Tally> {
    let mut received = Received::new();
    let mut writing = Vec::new();
    for _ in 0..outstanding {
        requests.put(&mut writing, Instant::now());
    }
    while outstanding > 0 {
        out.write_all(&writing).await?;
        out.flush().await?;
        writing.clear();
        let bytes = input.read(received.room()).await?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.filled(bytes);
        let now = Instant::now();
        while let Some(frame) = received.take_frame() {
            let took = requests.take(frame, now)?;
            if meter.counts() {
                tally.record(took);
            }
            if meter.is_over() {
                outstanding -= 1;
            } else {
                requests.put(&mut writing, now);
            }
        }
    }
    Ok(tally)
}

async fn idle<D: Dialer>(
    dialer: D,
    job: &Job,
    mut control: Control,
    connections: usize,
) -> io::Result<Outcome> {
    let dialer = Arc::new(dialer);
    // What the first connection brings with it is not what a connection costs.
    let first = dialer.dial().await?;
    let before = control.snapshot()?;
    let links = dial_all(&dialer, connections).await?;
    tokio::time::sleep(SETTLE).await;
    tell("measuring");
    let begin = control.snapshot()?;
    tokio::time::sleep(job.measured()).await;
    let end = control.snapshot()?;
    let seconds = (end.at - begin.at).as_secs_f64();
    let window = Window {
        begin,
        end,
        seconds,
    };
    first.close();
    links.into_iter().for_each(Link::close);
    Ok(Outcome::of_idle(&before, &window, connections))
}

async fn handshakes<D: Dialer>(
    dialer: D,
    job: &Job,
    control: Control,
    at_once: usize,
) -> io::Result<Outcome> {
    let dialer = Arc::new(dialer);
    let meter = Meter::default();
    let watch = meter.start(job, control);
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (dialer, meter) = (Arc::clone(&dialer), meter.clone());
        tasks.spawn(async move {
            let mut tally = Tally::new(at_once);
            while !meter.is_over() {
                let from = Instant::now();
                timeout(PATIENCE, visit(&*dialer)).await??;
                if meter.counts() {
                    tally.record(from.elapsed());
                }
            }
            io::Result::Ok(tally)
        });
    }
    let mut total = Tally::new(at_once);
    while let Some(done) = tasks.join_next().await {
        total.add(&done??);
    }
    let (_control, window) = joined(watch)?;
    Outcome::of_tally(job, &window, &total)
}

/// Connects, asks once, closes.
async fn visit<D: Dialer>(dialer: &D) -> io::Result<()> {
    let mut link = dialer.dial().await?;
    let (mut out, mut input) = link.open().await?;
    let mut requests = Requests::new(64, 1);
    let mut received = Received::new();
    let mut writing = Vec::new();
    requests.put(&mut writing, Instant::now());
    out.write_all(&writing).await?;
    out.flush().await?;
    loop {
        let bytes = input.read(received.room()).await?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.filled(bytes);
        if let Some(frame) = received.take_frame() {
            requests.take(frame, Instant::now())?;
            break;
        }
    }
    link.close();
    Ok(())
}

fn joined<T>(thread: std::thread::JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread
        .join()
        .map_err(|_| io::Error::other("the measuring thread panicked"))?
}
