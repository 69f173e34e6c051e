//! A QUIC end that keeps to no rule: any certificate or none, any ALPN, any bytes at any time.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use boring::{
    pkey::PKey,
    ssl::{SslContextBuilder, SslMethod, SslVerifyMode, SslVersion},
    x509::X509,
};
use nodosum::{
    BootId, ClusterName, NodeId,
    ca::Issued,
    control::{Control, Hello},
    transport::framing::{self, Decoder, Preamble, StreamKind},
};

pub const ALPN: &[u8] = b"nodosum/1";

/// The control stream: the first bidirectional one of the dialler.
pub const CONTROL: u64 = 0;

const PATIENCE: Duration = Duration::from_secs(60);

/// A certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl From<Issued> for Certificate {
    fn from(issued: Issued) -> Self {
        Self {
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
        }
    }
}

/// Settings that accept every peer, with the given certificate or none.
pub fn config(certificate: Option<&Certificate>, alpn: &[&[u8]]) -> quiche::Config {
    let mut tls = SslContextBuilder::new(SslMethod::tls()).unwrap();
    tls.set_min_proto_version(Some(SslVersion::TLS1_3)).unwrap();
    tls.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
    if let Some(issued) = certificate {
        let leaf = X509::from_pem(issued.certificate_pem.as_bytes()).unwrap();
        let key = PKey::private_key_from_pem(issued.key_pem.as_bytes()).unwrap();
        tls.set_certificate(&leaf).unwrap();
        tls.set_private_key(&key).unwrap();
    }
    let mut config =
        quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, tls).unwrap();
    if !alpn.is_empty() {
        config.set_application_protos(alpn).unwrap();
    }
    config.set_max_idle_timeout(30_000);
    config.set_initial_max_data(1 << 20);
    config.set_initial_max_stream_data_bidi_local(1 << 18);
    config.set_initial_max_stream_data_bidi_remote(1 << 18);
    config.set_initial_max_stream_data_uni(1 << 18);
    config.set_initial_max_streams_bidi(64);
    config.set_initial_max_streams_uni(64);
    config
}

/// A HELLO as an honest node of that name would send it.
pub fn hello(node: &str, cluster: &ClusterName) -> Hello {
    Hello {
        cluster: cluster.clone(),
        node: NodeId::new(node).unwrap(),
        boot: BootId([0xb0; 16]),
        protocol: (1, 1),
        keyring_digest: Vec::new(),
    }
}

/// What opens a stream.
pub fn preamble(kind: StreamKind, app: &str) -> Vec<u8> {
    let app = app.to_owned();
    Preamble { kind, app }.encode()
}

/// One framed unit.
pub fn unit(bytes: &[u8]) -> Vec<u8> {
    let mut framed = Vec::new();
    framing::encode_unit(&[], bytes, |frame| framed.extend(frame));
    framed
}

/// One framed control frame.
pub fn control(frame: Control) -> Vec<u8> {
    unit(&frame.encode())
}

/// One framed request.
pub fn request(id: u64, payload: &[u8]) -> Vec<u8> {
    let head = framing::request_head(id, 10_000);
    unit(&[&head, payload].concat())
}

/// How the node ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By a TLS alert of this number.
    Alert(u8),
    /// By an application close code.
    Code(u64),
    /// By another transport error.
    Transport(u64),
    /// Without a word.
    Silent,
}

/// One end of a connection.
pub struct Raw {
    pub quic: quiche::Connection,
    socket: UdpSocket,
    local: SocketAddr,
    peer: SocketAddr,
    /// What waits for the handshake or for a window: bytes by stream, and whether they end it.
    waiting: Vec<(u64, Vec<u8>, bool)>,
    /// Whether it takes what comes on streams.
    pub reads: bool,
    /// Stream bytes of the peer, whole.
    pub received: BTreeMap<u64, Vec<u8>>,
}

impl Raw {
    /// Begins to dial; nothing is sent before the first [`Raw::turn`].
    pub fn dial(addr: SocketAddr, server_name: Option<&str>, config: &mut quiche::Config) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = socket.local_addr().unwrap();
        let mut id = [7; 16];
        id[..2].copy_from_slice(&local.port().to_be_bytes());
        let id = quiche::ConnectionId::from_ref(&id);
        let quic = quiche::connect(server_name, &id, local, addr, config).unwrap();
        Self::new(quic, socket, addr)
    }

    fn new(quic: quiche::Connection, socket: UdpSocket, peer: SocketAddr) -> Self {
        Self {
            quic,
            local: socket.local_addr().unwrap(),
            socket,
            peer,
            waiting: Vec::new(),
            reads: true,
            received: BTreeMap::new(),
        }
    }

    /// Writes to a stream as soon as TLS lets it, which for a dialler is before the acceptor has
    /// judged its certificate.
    pub fn push(&mut self, stream: u64, bytes: impl Into<Vec<u8>>) {
        self.waiting.push((stream, bytes.into(), false));
    }

    /// Writes the last bytes of a stream.
    pub fn push_fin(&mut self, stream: u64, bytes: impl Into<Vec<u8>>) {
        self.waiting.push((stream, bytes.into(), true));
    }

    /// Whether QUIC has taken all that was pushed.
    pub fn is_written(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends what there is, waits a moment for an answer and takes it in.
    pub fn turn(&mut self) {
        self.write();
        self.send();
        let wait = self
            .quic
            .timeout()
            .unwrap_or(Duration::from_millis(20))
            .clamp(Duration::from_millis(1), Duration::from_millis(20));
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut datagram = [0; 2_048];
        loop {
            match self.socket.recv_from(&mut datagram) {
                Ok((length, from)) if from == self.peer => {
                    let info = quiche::RecvInfo {
                        from,
                        to: self.local,
                    };
                    let _ = self.quic.recv(&mut datagram[..length], info);
                    // The rest of what is there already, without another wait.
                    self.socket
                        .set_read_timeout(Some(Duration::from_micros(1)))
                        .unwrap();
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    break;
                }
                Err(_) => break,
            }
        }
        if self.quic.timeout() == Some(Duration::ZERO) {
            self.quic.on_timeout();
        }
        self.read();
        self.write();
        self.send();
    }

    fn write(&mut self) {
        if !self.quic.is_established() {
            return;
        }
        let mut blocked = BTreeSet::new();
        for (stream, mut bytes, fin) in std::mem::take(&mut self.waiting) {
            if !blocked.contains(&stream) {
                match self.quic.stream_send(stream, &bytes, fin) {
                    Ok(taken) if taken == bytes.len() => continue,
                    Ok(taken) => drop(bytes.drain(..taken)),
                    Err(quiche::Error::Done) => {}
                    // A refusal shows in the connection's end.
                    Err(_) => continue,
                }
                blocked.insert(stream);
            }
            self.waiting.push((stream, bytes, fin));
        }
    }

    fn send(&mut self) {
        let mut datagram = [0; 1_350];
        while let Ok((length, info)) = self.quic.send(&mut datagram) {
            let _ = self.socket.send_to(&datagram[..length], info.to);
        }
    }

    fn read(&mut self) {
        if !self.reads {
            return;
        }
        let mut piece = [0; 4_096];
        for stream in self.quic.readable().collect::<BTreeSet<u64>>() {
            while let Ok((length, fin)) = self.quic.stream_recv(stream, &mut piece) {
                let bytes = self.received.entry(stream).or_default();
                bytes.extend_from_slice(&piece[..length]);
                if fin || length == 0 {
                    break;
                }
            }
        }
    }

    /// Goes on until `holds`.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "not in time: {what}; received {:?}, peer's error {:?}",
                self.received,
                self.quic.peer_error()
            );
            self.turn();
        }
    }

    /// Goes on until the node has ended the connection, and says how.
    pub fn end(&mut self) -> End {
        self.until("the end of the connection", |raw| {
            raw.quic.peer_error().is_some() || raw.quic.is_closed()
        });
        match self.quic.peer_error() {
            Some(error) if error.is_app => End::Code(error.error_code),
            Some(error) => match u8::try_from(error.error_code.wrapping_sub(0x100)) {
                Ok(alert) => End::Alert(alert),
                Err(_) => End::Transport(error.error_code),
            },
            None => End::Silent,
        }
    }

    /// The control frames that came so far.
    pub fn control_frames(&self) -> Vec<Control> {
        let Some(bytes) = self.received.get(&CONTROL) else {
            return Vec::new();
        };
        let mut decoder = Decoder::new(1 << 16);
        let mut input = bytes.as_slice();
        // Only the dialler's half has a preamble.
        if self.quic.is_server() && decoder.preamble(&mut input).unwrap().is_none() {
            return Vec::new();
        }
        let mut frames = Vec::new();
        while let Some(unit) = decoder.unit(&mut input).unwrap() {
            frames.push(Control::decode(&unit).unwrap());
        }
        frames
    }
}

/// A port that answers dials one at a time.
pub struct RawServer {
    socket: UdpSocket,
    config: quiche::Config,
    served: BTreeSet<SocketAddr>,
}

impl RawServer {
    pub fn bind(config: quiche::Config) -> Self {
        Self {
            socket: UdpSocket::bind("127.0.0.1:0").unwrap(),
            config,
            served: BTreeSet::new(),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Waits for the next dial and takes its first datagram in.
    pub fn accept(&mut self) -> Raw {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut datagram = [0; 2_048];
        loop {
            let (length, from) = self
                .socket
                .recv_from(&mut datagram)
                .expect("nobody dialled");
            let header = quiche::Header::from_slice(&mut datagram[..length], 16);
            let is_initial = header.is_ok_and(|header| header.ty == quiche::Type::Initial);
            if !is_initial || !self.served.insert(from) {
                continue;
            }
            let mut id = [9; 16];
            id[..2].copy_from_slice(&from.port().to_be_bytes());
            let id = quiche::ConnectionId::from_ref(&id);
            let local = self.addr();
            let mut quic = quiche::accept(&id, None, local, from, &mut self.config).unwrap();
            let info = quiche::RecvInfo { from, to: local };
            let _ = quic.recv(&mut datagram[..length], info);
            return Raw::new(quic, self.socket.try_clone().unwrap(), from);
        }
    }
}
