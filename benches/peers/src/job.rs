//! What is measured: the workloads, the candidates, and how one run is described to a process.

use std::{path::PathBuf, time::Duration};

/// Bytes of a datagram in all workloads but `bulk_max`: what an Ethernet frame carries with room
/// for tunnels.
pub(crate) const DATAGRAM_BYTES: usize = 1_350;

/// Bytes of a datagram in `bulk_max`: what UDP over IPv4 takes at most, 65,507, rounded down; loopback
/// carries it whole.
pub(crate) const MAX_DATAGRAM_BYTES: usize = 65_400;

/// Windows of a stream and of a connection, the same for all who have them.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 2 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 3 << 20;

/// Socket buffers asked for.
pub(crate) const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// What a bulk sender hands over at a time.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// How long a caller asks again before it sleeps, in the `spin` workload.
pub(crate) const SPIN: Duration = Duration::from_micros(100);

/// Requests that wait for an answer in `pipelined_*`.
pub(crate) const OUTSTANDING: usize = 64;

/// How long a single request or handshake may take before a run is given up as broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A request or handshake that takes longer is counted as a stall: a lost datagram shows as one.
pub(crate) const STALL: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// One stream, as fast as it goes.
    Bulk { datagram_bytes: usize },
    /// One request at a time, each process on a core of its own.
    PingPong { spin: bool },
    /// [`OUTSTANDING`] requests at a time on one connection.
    Pipelined { payload_bytes: usize },
    /// One request at a time on each of so many connections; `shared`: without a thread for each, where a
    /// candidate has the choice.
    FanOut { connections: usize, shared: bool },
    /// Connections that do nothing.
    Idle { connections: usize },
    /// Connect, authenticate both ends, one request, close.
    Handshakes { at_once: usize },
}

impl Work {
    /// Bytes of a request and of its reply.
    pub(crate) fn payload_bytes(self) -> usize {
        match self {
            Self::Pipelined { payload_bytes } => payload_bytes,
            _ => 64,
        }
    }

    pub(crate) fn datagram_bytes(self) -> usize {
        match self {
            Self::Bulk { datagram_bytes } => datagram_bytes,
            _ => DATAGRAM_BYTES,
        }
    }

    /// Whether callers ask again for a while before they sleep.
    pub(crate) fn spin(self) -> Option<Duration> {
        (self == Self::PingPong { spin: true }).then_some(SPIN)
    }

    pub(crate) fn is_pinned(self) -> bool {
        matches!(self, Self::PingPong { .. })
    }
}

#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    /// Of the measure.
    pub(crate) unit: &'static str,
    /// What CPU time and context switches are counted for.
    pub(crate) per: &'static str,
    /// A rate is better when it is higher; a time or a size when it is lower.
    pub(crate) lower_is_better: bool,
    pub(crate) about: &'static str,
}

const fn requests(name: &'static str, work: Work, about: &'static str) -> Workload {
    Workload {
        name,
        work,
        unit: "requests/s",
        per: "request",
        lower_is_better: false,
        about,
    }
}

const fn bulk(name: &'static str, datagram_bytes: usize, about: &'static str) -> Workload {
    Workload {
        name,
        work: Work::Bulk { datagram_bytes },
        unit: "Gbit/s",
        per: "GB",
        lower_is_better: false,
        about,
    }
}

const fn fan_out(connections: usize, shared: bool) -> Work {
    Work::FanOut {
        connections,
        shared,
    }
}

const fn ping_pong(name: &'static str, spin: bool, about: &'static str) -> Workload {
    Workload {
        name,
        work: Work::PingPong { spin },
        unit: "s",
        per: "request",
        lower_is_better: true,
        about,
    }
}

const fn handshakes(name: &'static str, at_once: usize, about: &'static str) -> Workload {
    Workload {
        name,
        work: Work::Handshakes { at_once },
        unit: "handshakes/s",
        per: "handshake",
        lower_is_better: false,
        about,
    }
}

pub(crate) const WORKLOADS: [Workload; 17] = [
    bulk(
        "bulk_1350",
        DATAGRAM_BYTES,
        "one stream, datagrams of 1,350 bytes",
    ),
    bulk(
        "bulk_max",
        MAX_DATAGRAM_BYTES,
        "one stream, datagrams of 65,400 bytes, as loopback carries them",
    ),
    ping_pong(
        "pingpong_64",
        false,
        "one request of 64 bytes at a time, each process on its own core: p50",
    ),
    ping_pong(
        "pingpong_64_spin",
        true,
        "the same, callers on both sides spin for 100 µs before they sleep: p50",
    ),
    requests(
        "pipelined_64",
        Work::Pipelined { payload_bytes: 64 },
        "64 requests of 64 bytes outstanding on one connection",
    ),
    requests(
        "pipelined_1024",
        Work::Pipelined {
            payload_bytes: 1_024,
        },
        "64 requests of 1,024 bytes outstanding on one connection",
    ),
    requests(
        "fanout_8",
        fan_out(8, false),
        "8 connections, one request of 64 bytes outstanding on each",
    ),
    requests(
        "fanout_64",
        fan_out(64, false),
        "64 connections, one request of 64 bytes outstanding on each",
    ),
    requests(
        "fanout_256",
        fan_out(256, false),
        "256 connections, one request of 64 bytes outstanding on each",
    ),
    requests(
        "fanout_1000",
        fan_out(1_000, false),
        "1,000 connections, one request of 64 bytes outstanding on each",
    ),
    requests(
        "fanout_64_shared",
        fan_out(64, true),
        "the same on shared workers, each reply asking the next request: nodosum's `workers`",
    ),
    requests(
        "fanout_256_shared",
        fan_out(256, true),
        "256 connections on shared workers",
    ),
    requests(
        "fanout_1000_shared",
        fan_out(1_000, true),
        "1,000 connections on shared workers",
    ),
    Workload {
        name: "idle_1000",
        work: Work::Idle { connections: 1_000 },
        unit: "bytes",
        per: "connection and second",
        lower_is_better: true,
        about: "what 1,000 connections add to the resident memory of a process, for each",
    },
    handshakes(
        "handshakes",
        1,
        "connect, authenticate both ends, one request, close: one at a time",
    ),
    handshakes("handshakes_4", 4, "the same, four at a time"),
    handshakes("handshakes_16", 16, "the same, sixteen at a time"),
];

pub(crate) fn workload(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|workload| workload.name == name)
}

/// A candidate, and how it is set up.
pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
}

/// In the order of a round.
pub(crate) const CANDIDATES: [Candidate; 9] = [
    Candidate {
        name: "nodosum",
        about: "this library, by its public interface",
    },
    Candidate {
        name: "quinn",
        about: "quinn, tuned, on the multi-threaded runtime; rustls with aws-lc",
    },
    Candidate {
        name: "quinn_single",
        about: "the same on the single-threaded runtime",
    },
    Candidate {
        name: "quinn_peers",
        about: "quinn, where an endpoint of the server's stands for each peer: in fan-outs alone",
    },
    Candidate {
        name: "quinn_default",
        about: "quinn as it comes, on the multi-threaded runtime; rustls with ring",
    },
    Candidate {
        name: "s2n_quic",
        about: "s2n-quic, tuned, on the multi-threaded runtime; s2n-tls",
    },
    Candidate {
        name: "tcp_tls",
        about: "TCP and rustls with aws-lc, a blocking thread for each connection",
    },
    Candidate {
        name: "udp",
        about: "datagrams with GSO and GRO: no encryption, no delivery",
    },
    Candidate {
        name: "limit",
        about: "the same, each datagram sealed and opened with AES-128-GCM by BoringSSL",
    },
];

/// One run of one candidate, as its two processes are told.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) candidate: String,
    pub(crate) workload: &'static Workload,
    pub(crate) seconds: f64,
    /// Where the certificates are.
    pub(crate) dir: PathBuf,
    pub(crate) core: Option<usize>,
}

impl Job {
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut out = vec![
            self.candidate.clone(),
            self.workload.name.to_owned(),
            self.seconds.to_string(),
            self.dir.display().to_string(),
        ];
        out.extend(self.core.map(|core| core.to_string()));
        out
    }

    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let [candidate, name, seconds, dir, core @ ..] = words else {
            return Err("a job wants a candidate, a workload, seconds, a directory".into());
        };
        Ok(Self {
            candidate: candidate.clone(),
            workload: workload(name).ok_or_else(|| format!("there is no workload {name:?}"))?,
            seconds: seconds.parse().map_err(|_| "seconds want a number")?,
            dir: dir.into(),
            core: match core {
                [] => None,
                [core, ..] => Some(core.parse().map_err(|_| "a core wants a number")?),
            },
        })
    }

    pub(crate) fn work(&self) -> Work {
        self.workload.work
    }

    pub(crate) fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Before anything counts: windows open, caches fill, the scheduler settles.
    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs_f64((self.seconds / 4.0).clamp(0.2, 1.0))
    }
}
