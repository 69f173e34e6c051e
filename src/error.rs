//! What can go wrong, one type per operation. Each variant says the cause and the remedy.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use crate::node_id::{KeyId, NodeId};

/// Why a node did not start. Nothing is left running after one of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The certificate, the key or the authority cannot be used; see [`IdentityError`].
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A socket could not be bound: the port is taken, or the address is not this host's.
    #[error("cannot bind {purpose} socket to {addr}: {source}")]
    Bind {
        /// `QUIC` or `gossip`.
        purpose: &'static str,
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A setting contradicts itself or another one.
    #[error("configuration: {0}")]
    Config(String),
    /// TLS could not be set up from the identity.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The directory for what outlives a restart cannot be used: it cannot be written, another
    /// process uses it, or it belongs to another node. Remedy: a directory for each node.
    #[error("state directory {}: {why}", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The system refused a resource: a thread, a descriptor.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// Why a certificate, key or authority is not an identity for a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The key file can be read by its group or by others. Remedy: `chmod 600`.
    #[error("key {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")]
    KeyReadable {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// Not PEM, or not what the PEM says it is.
    #[error("{what} is not usable: {why}")]
    Malformed {
        /// Which of `certificate`, `key` and `authority`.
        what: &'static str,
        /// The cause.
        why: String,
    },
    /// The certificate does not carry exactly one name `<node>.<cluster>.nodosum`.
    #[error("certificate name: {0}")]
    Name(String),
    /// The certificate is not valid now.
    #[error("certificate of {name} {problem}")]
    Validity {
        /// The certificate's name.
        name: String,
        /// `expired on …` or `is not valid before …`.
        problem: String,
    },
    /// The key does not belong to the certificate.
    #[error("key does not belong to the certificate of {name}")]
    KeyMismatch {
        /// The certificate's name.
        name: String,
    },
    /// The certificate was not issued by the given authority.
    #[error("certificate of {name} was not issued by the given authority: {why}")]
    Untrusted {
        /// The certificate's name.
        name: String,
        /// What the verification said.
        why: String,
    },
    /// The configuration names another node or cluster than the certificate.
    #[error("configured {what} is {configured:?}, but the certificate says {certified:?}")]
    Contradiction {
        /// `node` or `cluster`.
        what: &'static str,
        /// What the configuration says.
        configured: String,
        /// What the certificate says.
        certified: String,
    },
}

/// The node did not become ready in time, or will never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// The time-out passed. `missing` names what still did not hold.
    #[error("not ready after {}: {}", DisplayDuration(*.waited), missing.join("; "))]
    Timeout {
        /// How long was waited.
        waited: Duration,
        /// One sentence for each thing that is missing.
        missing: Vec<String>,
    },
    /// The node failed, for example by a panic while it started, and will not recover.
    #[error("node failed: {0}")]
    Failed(String),
    /// The node was shut down.
    #[error("node is shut down")]
    Stopped,
}

/// Why a message was not taken. The payload comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct SendError {
    /// The cause.
    pub kind: SendErrorKind,
    /// The payload that was not taken.
    pub payload: Vec<u8>,
}

/// The cause of a [`SendError`], and of a failed delivery in a [`Delivery`](crate::Delivery).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendErrorKind {
    /// There is no connection to that peer, now or within the time-out.
    #[error("no connection to {0}")]
    NotConnected(NodeId),
    /// The connection could not take the message within the time-out: the peer reads too slowly.
    #[error("{0} did not take the message in time")]
    Timeout(NodeId),
    /// Larger than a message may be.
    #[error("message of {bytes} bytes is larger than {max}")]
    TooLarge {
        /// The size of the payload.
        bytes: usize,
        /// The largest allowed.
        max: usize,
    },
    /// The connection ended while the message was being handed over.
    #[error("connection to {peer} ended: {reason}")]
    Disconnected {
        /// The peer.
        peer: NodeId,
        /// Why it ended.
        reason: String,
    },
    /// The peer has no application of that name. Messages sent to it before were not delivered and
    /// count as unacknowledged; the next one tries again.
    #[error("{peer} has no application {app:?}")]
    NoApplication {
        /// The peer.
        peer: NodeId,
        /// The application.
        app: String,
    },
    /// So many streams to that peer are open already.
    #[error("{max} streams to {peer} are open already")]
    TooManyStreams {
        /// The peer.
        peer: NodeId,
        /// The most that may be open.
        max: usize,
    },
    /// The node is shut down.
    #[error("node is shut down")]
    Stopped,
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// There is no connection to that peer.
    #[error("no connection to {0}")]
    NotConnected(NodeId),
    /// Larger than a datagram to that peer may be.
    #[error("datagram of {bytes} bytes is larger than {max}")]
    TooLarge {
        /// The size of the payload.
        bytes: usize,
        /// The largest that fits one datagram of the path.
        max: usize,
    },
    /// So many wait to be sent already: the path is slower than the sender.
    #[error("too many datagrams to {0} wait")]
    Full(NodeId),
    /// The node is shut down.
    #[error("node is shut down")]
    Stopped,
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no connection to that peer, now or within the time-out. Nothing was sent.
    #[error("no connection to {0}")]
    NotConnected(NodeId),
    /// No reply came in time. The request may have been carried out.
    #[error("no reply from {peer} within {}; it may have been carried out", DisplayDuration(*.timeout))]
    Timeout {
        /// The peer.
        peer: NodeId,
        /// The time-out of the call.
        timeout: Duration,
    },
    /// The connection ended before a reply came. The request may have been carried out.
    #[error("connection to {peer} ended before the reply: {reason}; it may have been carried out")]
    Disconnected {
        /// The peer.
        peer: NodeId,
        /// Why it ended.
        reason: String,
    },
    /// The peer's handler answered with an error, or panicked; its message.
    #[error("{peer} answered with an error: {message}")]
    Remote {
        /// The peer.
        peer: NodeId,
        /// What it said.
        message: String,
    },
    /// The peer has no application of that name, or it takes no requests.
    #[error("{peer} has no application {app:?} that takes requests")]
    NoHandler {
        /// The peer.
        peer: NodeId,
        /// The application.
        app: String,
    },
    /// Larger than a request may be. Nothing was sent.
    #[error("request of {bytes} bytes is larger than {max}")]
    TooLarge {
        /// The size of the payload.
        bytes: usize,
        /// The largest allowed.
        max: usize,
    },
    /// The call was made from an inline handler or from the function of a request, by a thread that
    /// reads what peers send and must not wait. Nothing was sent.
    #[error("waiting for {0} here would wait for ever: this thread reads what peers send")]
    WouldDeadlock(NodeId),
    /// Too many requests to that peer wait for a reply already. Nothing was sent.
    #[error("too many requests to {0} are waiting")]
    Busy(NodeId),
    /// The node is shut down.
    #[error("node is shut down")]
    Stopped,
}

/// Why an application name was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name is in use in this process, or by nodosum itself.
    #[error("application {0:?} is registered already")]
    Taken(String),
    /// Names have 1 to 64 bytes of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`.
    #[error("{0:?} is not an application name: 1 to 64 of letters, digits, '.', '_' and '-'")]
    Invalid(String),
    /// More applications than one node may have.
    #[error("more than {0} applications")]
    TooMany(usize),
    /// The system refused a handler thread.
    #[error("cannot start a handler thread: {0}")]
    Thread(String),
    /// The node is shut down.
    #[error("node is shut down")]
    Stopped,
}

impl From<SendErrorKind> for RequestError {
    fn from(kind: SendErrorKind) -> Self {
        match kind {
            SendErrorKind::TooManyStreams { peer, .. } => Self::Busy(peer),
            SendErrorKind::NotConnected(peer) => Self::NotConnected(peer),
            SendErrorKind::Timeout(peer) => Self::Timeout {
                peer,
                timeout: Duration::ZERO,
            },
            SendErrorKind::TooLarge { bytes, max } => Self::TooLarge { bytes, max },
            SendErrorKind::Disconnected { peer, reason } => Self::Disconnected { peer, reason },
            SendErrorKind::NoApplication { peer, app } => Self::NoHandler { peer, app },
            SendErrorKind::Stopped => Self::Stopped,
        }
    }
}

/// Why a command to the node (join, leave, force-leave) had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No such member.
    #[error("no member {0:?}")]
    UnknownMember(String),
    /// The member is alive; only a dead one can be forced out.
    #[error("member {node} is {status}; only a dead member can be forced to leave")]
    NotDead {
        /// The member.
        node: NodeId,
        /// Its status.
        status: &'static str,
    },
    /// Not `HOST:PORT`.
    #[error("{0:?} is not HOST:PORT")]
    InvalidSeed(String),
    /// Every seed failed within the time-out; one sentence each.
    #[error("no seed answered: {}", .0.join("; "))]
    JoinFailed(Vec<String>),
    /// The node did not answer within the time-out.
    #[error("not done within {}", DisplayDuration(*.0))]
    Timeout(Duration),
    /// The tags are larger than [`MAX_TAG_BYTES`](crate::MAX_TAG_BYTES).
    #[error("tags take {0} bytes, more than {max}", max = crate::record::MAX_TAG_BYTES)]
    TagsTooLarge(usize),
    /// There is no such gossip key here.
    #[error("no gossip key {0}")]
    UnknownKey(KeyId),
    /// Gossip is sealed with this key, which is the one to be removed or an older one, which would go
    /// with it. Remedy: rotate, and wait until the new key is confirmed.
    #[error("gossip key {0} is in use, and older keys go with newer ones; rotate first")]
    KeyInUse(KeyId),
    /// The gossip keys cannot be changed now: there is none yet, or it is fixed by the configuration.
    #[error("{0}")]
    Keys(String),
    /// The node has left the cluster, and nobody would hear of it.
    #[error("node has left")]
    Left,
    /// The node is shut down.
    #[error("node is shut down")]
    Stopped,
}

/// Why a renewed certificate was not taken over. The one before it stays in use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenewError {
    /// It cannot be used, or is of another node or cluster; see [`IdentityError`].
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS could not be set up from it.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// The node could not take it over: it has left, is shut down, or did not answer.
    #[error(transparent)]
    Command(CommandError),
}

/// Why an event or a query was not sent. Nothing has left the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// Names have 1 to 64 bytes of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`.
    #[error("{0:?} is not an event name: 1 to 64 of letters, digits, '.', '_' and '-'")]
    InvalidName(String),
    /// Name and payload together are too large for gossip; a message can carry more.
    #[error("name and payload take {bytes} bytes, more than {max}")]
    TooLarge {
        /// What they take.
        bytes: usize,
        /// The most allowed.
        max: usize,
    },
    /// The filter names too much. Ask with fewer conditions and let the others refuse.
    #[error("the filter takes {bytes} bytes, more than {max}")]
    FilterTooLarge {
        /// What it takes: names and two for each, tags and six for each.
        bytes: usize,
        /// The most allowed.
        max: usize,
    },
    /// Answers can be waited for between 1 ms and this long.
    #[error("answers can be waited for between 1 ms and {}", DisplayDuration(*.0))]
    InvalidTimeout(Duration),
    /// So many events of this node are still on their way; try again in a while.
    #[error("{0} events of this node are still on their way")]
    QueueFull(usize),
    /// So many queries of this node wait for answers.
    #[error("{0} queries of this node are under way")]
    TooManyQueries(usize),
    /// The system refused what is needed to sign it or to take answers.
    #[error("{0}")]
    System(String),
    /// The node did not answer in time. The event may be sent all the same.
    #[error("not done within {}", DisplayDuration(*.0))]
    Timeout(Duration),
    /// The node has left the cluster.
    #[error("node has left")]
    Left,
    /// The node is shut down.
    #[error("node is shut down")]
    Stopped,
}

/// Shows a duration as people write it: `250ms`, `5s`, `1.5s`.
pub(crate) struct DisplayDuration(pub(crate) Duration);

impl std::fmt::Display for DisplayDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.0, f)
    }
}
