//! TCP and rustls: a blocking thread for each connection at both ends, TCP_NODELAY, and frames
//! written together where several are at hand. TCP cuts its own segments: the datagram size of a
//! workload means nothing here.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use crate::{
    blocking::{Lanes, Tcp, dial_all},
    certificates::{Rustls, server_name},
    frames::{Received, Requests, payload},
    job::{CHUNK_BYTES, Job, OUTSTANDING, Work},
    measure::{self, Control, Meter, Outcome, Tally, Window, tell},
};

/// How long connections are left alone before their memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

type Client = StreamOwned<ClientConnection, Tcp>;

fn tls(job: &Job) -> io::Result<Rustls> {
    Rustls::read(&job.dir, rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn serve(job: &Job) -> io::Result<()> {
    let config = Arc::new(tls(job)?.server().map_err(io::Error::other)?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let work = job.work();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            let body = move || {
                // How a connection fails, its client tells.
                let _ = answer(stream, config, work);
            };
            let builder = thread::Builder::new().stack_size(256 << 10);
            if let Err(error) = builder.spawn(body) {
                eprintln!("no thread for a connection: {error}");
            }
        }
    });
    measure::serve(&[addr], |_| "unknown".to_owned())
}

fn answer(stream: TcpStream, config: Arc<ServerConfig>, work: Work) -> io::Result<()> {
    let tcp = Tcp::new(stream, work.spin())?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, tcp);
    if let Work::Bulk { .. } = work {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut total = 0_u64;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                bytes => total += bytes as u64,
            }
        }
        stream.write_all(&total.to_be_bytes())?;
        stream.conn.send_close_notify();
        return stream.flush();
    }
    let mut received = Received::new();
    loop {
        let bytes = stream.read(received.room())?;
        if bytes == 0 {
            return Ok(());
        }
        received.filled(bytes);
        stream.write_all(received.take_frames())?;
        stream.flush()?;
    }
}

fn dial(addr: SocketAddr, config: &Arc<ClientConfig>, work: Work) -> io::Result<Client> {
    let tcp = Tcp::new(TcpStream::connect(addr)?, work.spin())?.with_patience()?;
    let connection =
        ClientConnection::new(Arc::clone(config), server_name()).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

pub(crate) fn client(job: &Job, mut control: Control) -> io::Result<Outcome> {
    let addr = control.addrs()?[0];
    let config = Arc::new(tls(job)?.client().map_err(io::Error::other)?);
    let outcome = match job.work() {
        Work::Bulk { .. } => bulk(dial(addr, &config, job.work())?, job, control)?,
        Work::PingPong { .. } => lanes(addr, &config, job, control, 1, 1)?,
        Work::Pipelined { .. } => lanes(addr, &config, job, control, 1, OUTSTANDING)?,
        Work::FanOut { connections, .. } => lanes(addr, &config, job, control, connections, 1)?,
        Work::Idle { connections } => idle(addr, config, job, control, connections)?,
        Work::Handshakes { at_once } => handshakes(addr, &config, job, control, at_once)?,
    };
    Ok(outcome.note("TLS_AES_128_GCM_SHA256 by aws-lc, X25519"))
}

fn bulk(mut stream: Client, job: &Job, mut control: Control) -> io::Result<Outcome> {
    let chunk = payload(CHUNK_BYTES);
    let mut sent = 0_u64;
    let until = Instant::now() + job.warm_up();
    while Instant::now() < until {
        stream.write_all(&chunk)?;
        sent += CHUNK_BYTES as u64;
    }
    tell("measuring");
    let (begin, before) = (control.snapshot()?, sent);
    let from = Instant::now();
    while from.elapsed() < job.measured() {
        stream.write_all(&chunk)?;
        sent += CHUNK_BYTES as u64;
    }
    stream.conn.send_close_notify();
    stream.flush()?;
    let mut confirmed = [0; 8];
    stream.read_exact(&mut confirmed)?;
    let seconds = from.elapsed().as_secs_f64();
    let end = control.snapshot()?;
    if u64::from_be_bytes(confirmed) != sent {
        return Err(io::Error::other("the server did not receive what was sent"));
    }
    let window = Window {
        begin,
        end,
        seconds,
    };
    Ok(Outcome::of_bytes(&window, sent - before, 0.0))
}

fn lanes(
    addr: SocketAddr,
    config: &Arc<ClientConfig>,
    job: &Job,
    control: Control,
    connections: usize,
    outstanding: usize,
) -> io::Result<Outcome> {
    let (work, config) = (job.work(), Arc::clone(config));
    let mut lanes = Lanes::new(connections);
    for stream in dial_all(connections, move |_| dial(addr, &config, work))? {
        let requests = Requests::new(work.payload_bytes(), outstanding);
        lanes.add(move |meter, tally| lane(stream, requests, outstanding, meter, tally))?;
    }
    lanes.run(job, control)
}

fn lane(
    mut stream: Client,
    mut requests: Requests,
    mut outstanding: usize,
    meter: &Meter,
    tally: &mut Tally,
) -> io::Result<()> {
    let mut received = Received::new();
    let mut writing = Vec::new();
    for _ in 0..outstanding {
        requests.put(&mut writing, Instant::now());
    }
    while outstanding > 0 {
        stream.write_all(&writing)?;
        stream.flush()?;
        writing.clear();
        let bytes = stream.read(received.room())?;
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
    Ok(())
}

fn idle(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
    job: &Job,
    mut control: Control,
    connections: usize,
) -> io::Result<Outcome> {
    let work = job.work();
    let first = dial(addr, &config, work)?;
    let before = control.snapshot()?;
    let streams = dial_all(connections, move |_| {
        let mut stream = dial(addr, &config, work)?;
        // The client has no thread for a connection that nobody waits for; to be compared with
        // candidates whose connections are served at both ends, it gets one that waits.
        thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || stream.read(&mut [0]))
    })?;
    thread::sleep(SETTLE);
    tell("measuring");
    let begin = control.snapshot()?;
    thread::sleep(job.measured());
    let end = control.snapshot()?;
    drop((first, streams));
    let seconds = (end.at - begin.at).as_secs_f64();
    let window = Window {
        begin,
        end,
        seconds,
    };
    Ok(Outcome::of_idle(&before, &window, connections))
}

fn handshakes(
    addr: SocketAddr,
    config: &Arc<ClientConfig>,
    job: &Job,
    control: Control,
    at_once: usize,
) -> io::Result<Outcome> {
    let mut lanes = Lanes::new(at_once);
    for _ in 0..at_once {
        let (work, config) = (job.work(), Arc::clone(config));
        lanes.add(move |meter, tally| {
            while !meter.is_over() {
                let from = Instant::now();
                visit(dial(addr, &config, work)?)?;
                if meter.counts() {
                    tally.record(from.elapsed());
                }
            }
            Ok(())
        })?;
    }
    lanes.run(job, control)
}

/// Asks once and closes.
fn visit(mut stream: Client) -> io::Result<()> {
    let mut requests = Requests::new(64, 1);
    let mut received = Received::new();
    let mut writing = Vec::new();
    requests.put(&mut writing, Instant::now());
    stream.write_all(&writing)?;
    stream.flush()?;
    loop {
        let bytes = stream.read(received.room())?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.filled(bytes);
        if let Some(frame) = received.take_frame() {
            requests.take(frame, Instant::now())?;
            break;
        }
    }
    stream.conn.send_close_notify();
    stream.flush()
}
