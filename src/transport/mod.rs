//! Encrypted, mutually authenticated QUIC connections, by default one thread each.
//!
//! A connection is a `quiche::Connection` and its streams, a UDP socket of its own, and a worker
//! thread that sleeps on that socket, a waker and quiche's next deadline. An application thread that
//! sends drives the connection itself as far as to put the datagrams on the socket, and one that waits
//! for a reply reads the socket meanwhile; `connection` says how that goes together. Otherwise
//! everything that arrives is handled by the worker.
//!
//! The reactor owns the listener and decides which connections there are; it reaches a worker by a
//! bounded queue of `Command`s and hears from it by `Notice`s. It never takes a connection's
//! lock.
//!
//! A connection's life: TLS handshake, in which both ends judge the other's certificate; the
//! dialler's HELLO, the acceptor's HELLO, the dialler's READY; now both know each other and it is
//! *up*. Application data flows when the lower node id has said USE on it. It ends by a close from
//! either end, silence, a reset, or a fault; [`CloseReason`](crate::CloseReason) is the one
//! classification, taken from the connection's state and not from the error of some call.
//!
//! This layer knows nothing of membership: it dials where it is told and reports who answered.

mod buffers;
pub(crate) mod connection;
mod crew;
mod driver;
mod due;
pub(crate) mod endpoint;
pub mod framing;
mod handoff;
mod incoming;
mod outbox;
mod path_size;
mod raw;
mod reply;
mod seats;
mod slot;
mod sync;
pub(crate) mod timekeeper;
mod tls;
mod token;
pub(crate) mod udp;
mod withdrawal;
mod worker;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

pub(crate) use connection::{Connection, Counted, PendingReply, Untaken};
pub(crate) use endpoint::Endpoint;
pub(crate) use outbox::process_queued;
pub(crate) use reply::Then;
pub(crate) use tls::{QUICHE_VERSION, quic_config};
pub use udp::Offload;
use withdrawal::Withdrawal;

use crate::{
    close::{CloseCode, CloseReason},
    control::{Control, SyncFrame},
    figures::SharedDurations,
    inbox::Registry,
    node_id::{BootId, ClusterName, ConnectionId, NodeId},
    stats::{Side, TransportCounts},
    waker::Waker,
    without::is_without,
};

/// What every path of QUIC carries (RFC 9000 §14).
const MIN_DATAGRAM_BYTES: usize = 1_200;

/// Settings of the QUIC transport.
#[derive(Debug, Clone)]
pub struct Config {
    /// One deadline for dialling, the TLS handshake and the exchange of HELLO. Default 5 s.
    pub dial_timeout: Duration,
    /// A connection on which nothing is heard for so long is over. At least three pings. Default
    /// 15 s.
    pub idle_timeout: Duration,
    /// Time between health pings on a connection. Default 1 s; the reactor stretches it to 10 ms
    /// a peer, so that a node sends at most a hundred pings a second.
    pub ping_interval: Duration,
    /// How long messages wait for those that are under way on the connection which theirs replaces. It may
    /// take ten times as long to finish. Default 1 s.
    pub drain_timeout: Duration,
    /// UDP payload bytes of the datagrams we send, 1,200 to 65,507; QUIC's library makes none larger than
    /// 16,383. Default 1,200, which every path carries (RFC 9000 §14). On a path that turns out not to
    /// carry more, 1,200 is the limit until it does.
    pub max_datagram_bytes: usize,
    /// Bytes a peer may send on a stream before the application reads. Default 512 KiB.
    pub stream_window: u64,
    /// Bytes a peer may send on all streams before they are read. All streams that can stall, messages
    /// and requests of every application, large requests and the streams that applications open, fit in
    /// with room for the others, so that a stalled application can never stop another or the control
    /// stream. Default 102 MiB.
    pub connection_window: u64,
    /// Bidirectional streams a peer may have open. Default 1,024.
    pub max_bidi_streams: u64,
    /// Unidirectional streams a peer may have open. Default 256.
    pub max_uni_streams: u64,
    /// The largest message. Default 16 MiB.
    pub max_message_bytes: usize,
    /// Requests to one peer that wait for a reply. Default 1,024.
    pub max_requests_in_flight: usize,
    /// How long a thread that reads a socket looks at it again and again before it sleeps: one that waits
    /// for a reply, and a connection's own thread after something came. It saves the time that waking
    /// takes, tens of microseconds, and costs a processor meanwhile: for few connections with fast
    /// peers, 20 to 100 µs; at most 10 ms. Shared threads ([`workers`](Self::workers)) do not spin.
    /// Default 0.
    pub spin: Duration,
    /// See [`Builder::workers`](crate::Builder::workers). Default 0, and 1 where the environment
    /// variable `NODOSUM_WITHOUT` names `threads`. At most [`MAX_WORKERS`].
    pub workers: usize,
    /// Whether keys are agreed by X25519MLKEM768, so that nobody can record a connection now and read
    /// it with a quantum computer later, or by X25519 alone, for which a handshake takes less computing
    /// and its first flights less room. Both ends must want the first for it to be used; either reaches
    /// the other. Default true.
    pub post_quantum: bool,
    /// What of the system's help is used, where it grants it. Default all.
    pub offload: Offload,
}

/// The longest spin: far longer than waking a thread takes, and short enough to burn for nothing.
const MAX_SPIN: Duration = Duration::from_millis(10);

/// The most that [`Config::workers`] may be.
pub const MAX_WORKERS: usize = 256;

impl Default for Config {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(1),
            max_datagram_bytes: 1_200,
            stream_window: 512 << 10,
            connection_window: 102 << 20,
            max_bidi_streams: 1_024,
            max_uni_streams: 256,
            max_message_bytes: 16 << 20,
            max_requests_in_flight: 1_024,
            spin: Duration::ZERO,
            // So that every test of the transport can be run on a shared thread.
            workers: usize::from(is_without("threads")),
            post_quantum: true,
            offload: Offload::default(),
        }
    }
}

impl Config {
    /// What does not fit together, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        // Replies are always read, control and sync too: four windows are room enough for them.
        let in_line = 2 * (crate::inbox::MAX_APPS + incoming::MAX_RAW_STREAMS);
        let stalling = (in_line + outbox::MAX_LARGE_STREAMS) as u64;
        let needed = (stalling + 4).saturating_mul(self.stream_window);
        if self.connection_window < needed {
            return Err(format!(
                "connection window of {} bytes is smaller than the {needed} that {stalling} \
                 stalled streams can hold",
                self.connection_window
            ));
        }
        if self.workers > MAX_WORKERS {
            return Err(format!(
                "{} workers are more than {MAX_WORKERS}",
                self.workers
            ));
        }
        if self.spin > MAX_SPIN {
            return Err(format!(
                "a spin of {:?} is longer than {MAX_SPIN:?}",
                self.spin
            ));
        }
        let sizes = MIN_DATAGRAM_BYTES..=udp::MAX_BATCH_BYTES;
        if !sizes.contains(&self.max_datagram_bytes) {
            return Err(format!(
                "datagrams of {} bytes are outside {sizes:?}",
                self.max_datagram_bytes
            ));
        }
        Ok(())
    }
}

/// Counters of the transport; relaxed, because nobody decides by them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Datagrams for the listener that were no QUIC of ours.
    pub(crate) refused_datagrams: AtomicU64,
    /// Datagrams for a connection whose queue was full.
    pub(crate) dropped_injections: AtomicU64,
    /// Datagrams of others that a connection's own socket got and the listener was given.
    pub(crate) strays: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) resets_sent: AtomicU64,
    pub(crate) messages_for_nobody: AtomicU64,
    pub(crate) messages_unacknowledged: AtomicU64,
    pub(crate) replies_dropped: AtomicU64,
    pub(crate) requests_expired: AtomicU64,
    /// Requests given up by their callers here: before anything of them was sent, and after.
    pub(crate) requests_unsent: AtomicU64,
    pub(crate) requests_given_up: AtomicU64,
    /// Replies to requests that nobody waited for any more.
    pub(crate) replies_late: AtomicU64,
    /// Requests of peers that were given up there before they were answered here.
    pub(crate) requests_withdrawn: AtomicU64,
    /// Datagrams of applications that came faster than they were read, or that the path has become
    /// too small for.
    pub(crate) datagrams_dropped: AtomicU64,
    pub(crate) worker_panics: AtomicU64,
    /// Connections closed because the peer had too many syncs under way.
    pub(crate) sync_floods: AtomicU64,
    /// From the first datagram to the end of the exchange of HELLO, of connections that came up.
    pub(crate) handshakes: SharedDurations,
    /// Health pings that were answered.
    pub(crate) pings: SharedDurations,
}

impl Counters {
    /// What the transport could not deliver, for onlookers.
    pub(crate) fn counts(&self) -> TransportCounts {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        TransportCounts {
            buffered_bytes: process_queued().0 as u64,
            requests_unsent: of(&self.requests_unsent),
            requests_given_up: of(&self.requests_given_up),
            requests_withdrawn: of(&self.requests_withdrawn),
            requests_expired: of(&self.requests_expired),
            replies_late: of(&self.replies_late),
            replies_dropped: of(&self.replies_dropped),
            messages_unacknowledged: of(&self.messages_unacknowledged),
            messages_for_nobody: of(&self.messages_for_nobody),
            datagrams_dropped: of(&self.datagrams_dropped),
            injections_dropped: of(&self.dropped_injections),
            strays: of(&self.strays),
            worker_panics: of(&self.worker_panics),
        }
    }

    fn note_given_up(&self, withdrawal: Withdrawal) {
        let counter = match withdrawal {
            Withdrawal::Unsent => &self.requests_unsent,
            Withdrawal::UnderWay => &self.requests_given_up,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// What all connections of a node share.
pub(crate) struct Context {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterName,
    pub(crate) boot: BootId,
    pub(crate) config: Config,
    /// quiche wants it mutable to accept and to connect.
    pub(crate) quic: Mutex<quiche::Config>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) notices: Sender<Notice>,
    pub(crate) reactor: Arc<Waker>,
    /// When this node started, and when its reactor last turned, in milliseconds since.
    pub(crate) started_at: Instant,
    pub(crate) reactor_turned_ms: AtomicU64,
    /// The digest of the keyring, for HELLO; the reactor keeps it current.
    pub(crate) keyring_digest: Mutex<Vec<u8>>,
    /// Milliseconds between pings now.
    pub(crate) ping_interval_ms: AtomicU64,
    pub(crate) counters: Counters,
    /// What of the system's help is used.
    pub(crate) offload: Offload,
    pub(crate) timekeeper: Arc<timekeeper::Timekeeper>,
}

impl Context {
    fn reactor_age_ms(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.started_at))
            .saturating_sub(self.reactor_turned_ms.load(Relaxed))
    }

    /// The reactor shows that it is alive.
    pub(crate) fn reactor_turned(&self, now: Instant) {
        let age = millis(now.saturating_duration_since(self.started_at));
        self.reactor_turned_ms.store(age, Relaxed);
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A datagram on its way from one thread to another.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// What makes a worker doubt that its peer is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The peer's host says that nobody listens there.
    Refused,
    /// What is sent is not acknowledged, however often it is sent again.
    Stalled,
    /// Health pings are not answered.
    Unanswered,
}

/// What a worker tells the reactor.
#[derive(Debug)]
pub(crate) enum Notice {
    /// Both ends know each other.
    Up {
        connection: ConnectionId,
        peer: NodeId,
        boot: BootId,
        side: Side,
        addr: SocketAddr,
        /// The peer's leaf certificate, judged by TLS.
        certificate: Vec<u8>,
        keyring_digest: Vec<u8>,
    },
    /// The peer said USE.
    Used { connection: ConnectionId },
    /// The peer's reactor was alive at `at`: it, or a worker that had just seen it turn, answered.
    Answered {
        connection: ConnectionId,
        at: Instant,
    },
    /// The peer may be gone. A hint, never a verdict.
    Doubted {
        connection: ConnectionId,
        sign: Sign,
    },
    /// The peer asks whether this node's reactor is alive.
    Pinged { connection: ConnectionId, id: u64 },
    /// A control frame that is not the worker's own business.
    Control {
        connection: ConnectionId,
        frame: Control,
    },
    /// One frame of a sync.
    Sync {
        connection: ConnectionId,
        stream: u64,
        frame: SyncFrame,
    },
    /// The peer's half of a sync is over: complete, or broken off.
    SyncEnd {
        connection: ConnectionId,
        stream: u64,
        is_whole: bool,
    },
    /// A datagram that belongs to another connection, or opens one.
    Stray { datagram: Datagram },
    /// The connection is over; nothing but `Gone` follows.
    Down {
        connection: ConnectionId,
        reason: CloseReason,
        unacknowledged: u64,
    },
    /// The worker thread ends.
    Gone { connection: ConnectionId },
}

/// What the reactor tells a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// A datagram for this connection that came by the listener.
    Inject(Datagram),
    /// Send a control frame.
    Control(Control),
    /// Send several, one after the other.
    Controls(Vec<Control>),
    /// Say USE and let application data flow.
    Use,
    /// Finish what is under way, then close as a duplicate.
    Drain,
    /// Close with a code.
    Close(CloseCode),
    /// Open a sync with these frames.
    StartSync(Vec<Vec<u8>>),
    /// Answer the peer's sync on that stream.
    AnswerSync { stream: u64, frames: Vec<Vec<u8>> },
    /// Vanish without a word, as a killed process would.
    Abandon,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_meant_are_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().is_err()
        };
        assert!(!refused(|_| {}));
        assert!(!refused(|config| config.spin = MAX_SPIN));
        assert!(refused(|config| config.spin = MAX_SPIN * 2));
        assert!(refused(|config| config.workers = MAX_WORKERS + 1));
        assert!(refused(|config| config.max_datagram_bytes = 1));
        assert!(refused(|config| config.connection_window = 1));
    }
}
