//! quinn: tuned, on either of tokio's runtimes, and as it comes.
//!
//! Tuned means: datagrams of the workload's size from the first packet on and no search for a larger
//! one, the windows that all candidates have, socket buffers of 4 MiB, AES-128-GCM by aws-lc, and
//! streams without fairness, which costs a look at all of them. As it comes means its own windows
//! and search, and rustls with ring, which is its default; the certificates, the cipher and the key
//! exchange stay the same.
//!
//! Many connections go from one endpoint to one, as between a client and its server. Between two such
//! sockets the system gathers what many connections send into one receive (GRO), which it cannot do
//! for a node whose peers are each a socket of their own. So there is a candidate more, with an
//! endpoint of the server for each connection.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;

use crate::{
    certificates::{NAME, Rustls},
    job::{
        CONNECTION_WINDOW_BYTES, DATAGRAM_BYTES, Job, SOCKET_BUFFER_BYTES, STREAM_WINDOW_BYTES,
        Work,
    },
    measure::{self, Control, Outcome},
    quic::{self, Dialer, Incoming, Link, Outgoing},
};

/// How often an idle connection shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The candidate whose server has an endpoint for each connection.
pub(crate) const PEERS: &str = "quinn_peers";

pub(crate) fn cannot(candidate: &str, work: Work) -> Option<&'static str> {
    if candidate == PEERS && !matches!(work, Work::FanOut { .. }) {
        return Some("it differs from quinn in fan-outs alone");
    }
    work.spin().map(
        |_| "its runtime sleeps in epoll as soon as nothing is ready, and cannot be told to spin",
    )
}

fn is_tuned(job: &Job) -> bool {
    job.candidate != "quinn_default"
}

fn tls(job: &Job) -> io::Result<Rustls> {
    let provider = if is_tuned(job) {
        rustls::crypto::aws_lc_rs::default_provider()
    } else {
        rustls::crypto::ring::default_provider()
    };
    Rustls::read(&job.dir, provider)
}

fn transport(job: &Job) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.keep_alive_interval(Some(KEEP_ALIVE));
    if is_tuned(job) {
        let datagram_bytes = job.work().datagram_bytes() as u16;
        config
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
            .send_window(u64::from(CONNECTION_WINDOW_BYTES))
            .initial_mtu(datagram_bytes)
            .min_mtu(DATAGRAM_BYTES as u16)
            .mtu_discovery_config(None)
            .send_fairness(false);
        // A batch of the largest datagrams is more than the system takes in one call, and one of them
        // more than the congestion window begins with: nothing would ever be sent. As the least size
        // they would be what handshakes are padded to, beyond what a long header can say.
        if job.work().datagram_bytes() > DATAGRAM_BYTES {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(10 * u64::from(datagram_bytes));
            config
                .enable_segmentation_offload(false)
                .congestion_controller_factory(Arc::new(cubic));
        }
    }
    config
}

fn endpoint(job: &Job, server: Option<ServerConfig>) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    if is_tuned(job) {
        let datagram_bytes = job.work().datagram_bytes().max(1_472) as u16;
        config
            .max_udp_payload_size(datagram_bytes)
            .map_err(io::Error::other)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    }
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    Endpoint::new(
        config,
        server,
        UdpSocket::from(socket),
        Arc::new(TokioRuntime),
    )
}

pub(crate) fn serve(job: &Job) -> io::Result<()> {
    let runtime = quic::runtime(job.candidate == "quinn_single")?;
    let tls = tls(job)?.server().map_err(io::Error::other)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(job)));
    let work = job.work();
    let guard = runtime.enter();
    let count = match work {
        Work::FanOut { connections, .. } if job.candidate == PEERS => connections,
        _ => 1,
    };
    let endpoints = (0..count).map(|_| endpoint(job, Some(config.clone())));
    let endpoints = endpoints.collect::<io::Result<Vec<_>>>()?;
    let addrs = endpoints.iter().map(Endpoint::local_addr);
    let addrs = addrs.collect::<io::Result<Vec<_>>>()?;
    drop(guard);
    // The single-threaded runtime runs on a thread of its own, and this one answers the client.
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let mut accepting = JoinSet::new();
            for endpoint in endpoints {
                accepting.spawn(accept(endpoint, work));
            }
            accepting.join_all().await;
        });
    });
    measure::serve(&addrs, |_| "unknown".to_owned())
}

async fn accept(endpoint: Endpoint, work: Work) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            // A connection that fails is the client's to report; one that ends, ends.
            let Ok(connection) = incoming.await else {
                return;
            };
            while let Ok((out, input)) = connection.accept_bi().await {
                tokio::spawn(quic::answer(work, out, input));
            }
        });
    }
}

pub(crate) fn client(job: &Job, mut control: Control) -> io::Result<Outcome> {
    let runtime = quic::runtime(job.candidate == "quinn_single")?;
    let addrs = control.addrs()?;
    let tls = tls(job)?.client().map_err(io::Error::other)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(job)));
    runtime.block_on(async {
        let mut endpoint = endpoint(job, None)?;
        endpoint.set_default_client_config(config);
        let quinn = Quinn {
            endpoint,
            addrs,
            next: AtomicUsize::new(0),
        };
        let outcome = quic::client(quinn, job, control).await?;
        let by = if is_tuned(job) { "aws-lc" } else { "ring" };
        Ok(outcome.note(format!("TLS_AES_128_GCM_SHA256 by {by}, X25519")))
    })
}

struct Quinn {
    endpoint: Endpoint,
    /// They are dialled in turn.
    addrs: Vec<SocketAddr>,
    next: AtomicUsize,
}

impl Dialer for Quinn {
    type Link = Connection;

    async fn dial(&self) -> io::Result<Connection> {
        let next = self.next.fetch_add(1, Relaxed) % self.addrs.len();
        let connecting = self.endpoint.connect(self.addrs[next], NAME);
        Ok(connecting.map_err(io::Error::other)?.await?)
    }
}

impl Link for Connection {
    type Out = SendStream;
    type In = RecvStream;

    async fn open(&mut self) -> io::Result<(SendStream, RecvStream)> {
        Ok(self.open_bi().await?)
    }

    fn close(self) {
        Self::close(&self, VarInt::from_u32(0), b"");
    }
}

impl Outgoing for SendStream {
    async fn put(&mut self, piece: Bytes) -> io::Result<()> {
        Ok(self.write_chunk(piece).await?)
    }

    fn end(&mut self) -> io::Result<()> {
        self.finish().map_err(io::Error::other)
    }
}

impl Incoming for RecvStream {
    async fn piece(&mut self) -> io::Result<Option<usize>> {
        let chunk = self.read_chunk(usize::MAX, true).await?;
        Ok(chunk.map(|chunk| chunk.bytes.len()))
    }
}
