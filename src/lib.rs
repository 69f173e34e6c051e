//! nodosum turns several processes into one cluster, without an async runtime.
//!
//! A [`Node`] is started from an [`Identity`], the certificate that proves its name. It finds the
//! others by seeds, knows by gossip who is alive ([`Node::members`]), holds an encrypted and
//! mutually authenticated QUIC connection to each of them ([`Node::peers`]), and tells what changes
//! ([`Node::events`]). An [`App`] on it sends messages and requests and handles those of others.
//!
//! ```
//! use std::time::Duration;
//! use nodosum::{Node, Ready, ca::Authority};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hour = Duration::from_secs(3_600);
//! let authority = Authority::new(&"test".parse()?, hour)?;
//! let node = Node::builder(authority.identity(&"n1".parse()?, hour)?).start()?;
//! node.wait_ready(Ready::Started, Duration::from_secs(5))?;
//! assert_eq!(node.members().len(), 1);
//! node.shutdown(Duration::from_secs(5));
//! # Ok(())
//! # }
//! ```
//!
//! Everything is blocking and has a time-out. Every queue is bounded; what does not fit is refused to
//! its sender or counted and told, never lost in silence. The library prints nothing, installs no
//! signal handler and initialises no logger: it logs through the `log` crate, with key-values, under
//! the targets `swim`, `mesh`, `transport`, `reactor`, `node` and `http`.
//!
//! # Features
//!
//! - `node` (default): the `nodosum` binary and what it needs; switch it off to link the library alone.
//! - `srv`: seeds by SRV records.
//! - `ca`: making authorities and certificates, in [`ca`].
//! - `http`: a page, metrics and health checks over HTTP, with `Builder::http`. `node` brings it.

mod app;
mod close;
#[doc(hidden)]
pub mod cluster;
#[doc(hidden)]
pub mod control;
mod error;
mod event;
mod explanation;
mod figures;
#[cfg(feature = "http")]
mod http;
mod inbox;
#[doc(hidden)]
pub mod mesh;
#[cfg(feature = "http")]
mod metrics;
mod node;
mod node_id;
mod outputs;
#[cfg(feature = "http")]
mod process;
mod query;
mod reactor;
#[doc(hidden)]
pub mod record;
mod resolver;
#[doc(hidden)]
pub mod rng;
#[doc(hidden)]
pub mod roster;
mod rtts;
mod snapshot;
#[cfg(feature = "srv")]
mod srv;
mod state_dir;
mod stats;
mod stream;
mod subscribers;
#[doc(hidden)]
pub mod swim;
mod thread;
#[doc(hidden)]
pub mod transport;
#[doc(hidden)]
pub mod trust;
mod view;
#[cfg(feature = "http")]
#[doc(hidden)]
pub mod views;
mod waker;
mod without;

#[cfg(feature = "ca")]
pub mod ca;

pub use app::{App, Delivery, PendingReply};
pub use close::{CloseCode, CloseReason};
pub use error::{
    CommandError, DatagramError, EventError, IdentityError, NotReady, RegisterError, RenewError,
    RequestError, SendError, SendErrorKind, StartError,
};
pub use event::{Event, EventKind};
pub use explanation::{Explanation, Moment};
pub use figures::{
    AppFigures, ConnectionFigures, DropReason, Durations, Figures, GossipFigures, InboxFigures,
    OTHERS, PeerFigures, QueueFigures, RequestEnd,
};
pub use inbox::{Datagram, Message, Request};
pub use node::{Builder, LeaveReport, Node, Profile, ShutdownReport};
pub use node_id::{BootId, ClusterName, InvalidKeyId, InvalidName, KeyId, NodeId};
pub use query::{Answers, MAX_ANSWER_BYTES, Query, QueryReport};
pub use record::MAX_TAG_BYTES;
pub use snapshot::Ready;
pub use stats::{
    ClosedConnection, ConnectionCounts, ConnectionInfo, ConnectionState, EventCounts, KeyInfo,
    Keys, LostCounts, MemberCounts, MemberInfo, MemberStatus, PeerInfo, RefusedCounts, SeedInfo,
    Side, Status, TransportCounts,
};
pub use stream::Stream;
pub use subscribers::Events;
pub use swim::{MAX_EVENT_BYTES, MAX_QUERY_TIMEOUT, QueryFilter};
pub use trust::Identity;

/// The parts of an [`Explanation`]: what membership noted while it doubted a member.
pub mod explain {
    pub use crate::swim::{
        Accused, Case, Doubt, Ending, Evidence, Explanation as Membership, ProbeReport, Verdict,
    };
}

/// The pure cores, for tests, simulation and the curious. Outside semantic versioning.
pub mod unversioned {
    #[cfg(feature = "http")]
    pub use crate::views;
    pub use crate::{cluster, mesh, node_id::ConnectionId, record, rng, roster, swim, trust};
}

/// The examples of the README are tests.
#[cfg(all(doctest, feature = "ca"))]
#[doc = include_str!("../README.md")]
pub struct Readme;
