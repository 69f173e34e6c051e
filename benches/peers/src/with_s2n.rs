//! s2n-quic with s2n-tls, tuned: the workload's datagrams, the windows of the others, and socket
//! buffers of 4 MiB, on the multi-threaded runtime. GSO and GRO are on as it comes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use s2n_quic::{
    Client, Connection, Server,
    client::Connect,
    provider::{
        io::tokio::{Builder as IoBuilder, Provider as Io},
        limits::Limits,
        tls::s2n_tls,
    },
    stream::{ReceiveStream, SendStream},
};

use crate::{
    certificates::{ALPN, NAME},
    job::{
        CONNECTION_WINDOW_BYTES, DATAGRAM_BYTES, Job, SOCKET_BUFFER_BYTES, STREAM_WINDOW_BYTES,
        Work,
    },
    measure::{self, Control, Outcome},
    quic::{self, Dialer, Incoming, Link, Outgoing},
};

/// How often an idle connection shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a datagram's size says of the packet: the headers of IPv4 and UDP.
const HEADER_BYTES: usize = 28;

pub(crate) fn cannot(work: Work) -> Option<&'static str> {
    work.spin().map(
        |_| "its runtime sleeps in epoll as soon as nothing is ready, and cannot be told to spin",
    )
}

fn limits() -> Result<Limits, Box<dyn std::error::Error>> {
    let stream = u64::from(STREAM_WINDOW_BYTES);
    Ok(Limits::new()
        .with_data_window(u64::from(CONNECTION_WINDOW_BYTES))?
        .with_bidirectional_local_data_window(stream)?
        .with_bidirectional_remote_data_window(stream)?
        .with_max_send_buffer_size(STREAM_WINDOW_BYTES)?
        .with_max_keep_alive_period(KEEP_ALIVE)?)
}

fn sockets(job: &Job) -> io::Result<Io> {
    let packet_bytes = (job.work().datagram_bytes() + HEADER_BYTES) as u16;
    let mut builder = IoBuilder::default()
        .with_receive_address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?
        .with_send_buffer_size(SOCKET_BUFFER_BYTES)?
        .with_recv_buffer_size(SOCKET_BUFFER_BYTES)?
        .with_max_mtu(packet_bytes)?;
    builder = if job.work().datagram_bytes() > DATAGRAM_BYTES {
        // A datagram of that size is all that one call takes, and a second one behind it in a batch
        // ended the process.
        builder.with_gso_disabled()?
    } else {
        builder.with_initial_mtu(packet_bytes)?
    };
    builder.build()
}

fn pem(job: &Job, name: &str) -> io::Result<String> {
    std::fs::read_to_string(job.dir.join(name))
}

fn start_server(job: &Job) -> Result<Server, Box<dyn std::error::Error>> {
    let tls = s2n_tls::Server::builder()
        .with_application_protocols([ALPN])?
        .with_empty_trust_store()?
        .with_certificate(pem(job, "end.pem")?.as_str(), pem(job, "end.key")?.as_str())?
        .with_trusted_certificate(pem(job, "ca.pem")?.as_str())?
        .with_client_authentication()?
        .with_verify_host_name_callback(OneName)?
        .build()?;
    Ok(Server::builder()
        .with_tls(tls)?
        .with_io(sockets(job)?)?
        .with_limits(limits()?)?
        .start()?)
}

/// The client's certificate has the one name that there is.
struct OneName;

impl s2n_tls::callbacks::VerifyHostNameCallback for OneName {
    fn verify_host_name(&self, name: &str) -> bool {
        name == NAME
    }
}

fn start_client(job: &Job) -> Result<Client, Box<dyn std::error::Error>> {
    let tls = s2n_tls::Client::builder()
        .with_application_protocols([ALPN])?
        .with_empty_trust_store()?
        .with_certificate(pem(job, "ca.pem")?.as_str())?
        .with_client_identity(pem(job, "end.pem")?.as_str(), pem(job, "end.key")?.as_str())?
        .build()?;
    Ok(Client::builder()
        .with_tls(tls)?
        .with_io(sockets(job)?)?
        .with_limits(limits()?)?
        .start()?)
}

fn words(error: impl ToString) -> io::Error {
    io::Error::other(error.to_string())
}

pub(crate) fn serve(job: &Job) -> io::Result<()> {
    let runtime = quic::runtime(false)?;
    let guard = runtime.enter();
    let mut server = start_server(job).map_err(words)?;
    let addr = server.local_addr()?;
    drop(guard);
    let work = job.work();
    let accepting = async move {
        while let Some(mut connection) = server.accept().await {
            tokio::spawn(async move {
                while let Ok(Some(stream)) = connection.accept_bidirectional_stream().await {
                    let (input, out) = stream.split();
                    tokio::spawn(quic::answer(work, out, input));
                }
            });
        }
    };
    std::thread::spawn(move || runtime.block_on(accepting));
    measure::serve(&[addr], |_| "unknown".to_owned())
}

pub(crate) fn client(job: &Job, mut control: Control) -> io::Result<Outcome> {
    let runtime = quic::runtime(false)?;
    let addr = control.addrs()?[0];
    runtime.block_on(async {
        let client = start_client(job).map_err(words)?;
        let outcome = quic::client(S2n { client, addr }, job, control).await?;
        Ok(outcome.note("cipher and key exchange as s2n-tls' default policy for TLS 1.3 has them"))
    })
}

struct S2n {
    client: Client,
    addr: SocketAddr,
}

impl Dialer for S2n {
    type Link = Connection;

    async fn dial(&self) -> io::Result<Connection> {
        let connect = Connect::new(self.addr).with_server_name(NAME);
        let mut connection = self.client.connect(connect).await?;
        connection.keep_alive(true)?;
        Ok(connection)
    }
}

impl Link for Connection {
    type Out = SendStream;
    type In = ReceiveStream;

    async fn open(&mut self) -> io::Result<(SendStream, ReceiveStream)> {
        let (input, out) = self.open_bidirectional_stream().await?.split();
        Ok((out, input))
    }

    fn close(self) {
        Self::close(&self, 0_u32.into());
    }
}

impl Outgoing for SendStream {
    async fn put(&mut self, piece: Bytes) -> io::Result<()> {
        Ok(self.send(piece).await?)
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(self.finish()?)
    }
}

impl Incoming for ReceiveStream {
    async fn piece(&mut self) -> io::Result<Option<usize>> {
        let chunk = self.receive().await?;
        Ok(chunk.map(|chunk| chunk.len()))
    }
}
