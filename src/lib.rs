//! nodosum turns several processes into one cluster, without an async runtime.

mod app;
mod close;
#[doc(hidden)]
pub mod control;
mod error;
mod event;
mod inbox;
#[doc(hidden)]
pub mod mesh;
mod node;
mod node_id;
mod reactor;
#[doc(hidden)]
pub mod record;
mod resolver;
#[doc(hidden)]
pub mod rng;
mod snapshot;
mod stats;
mod subscribers;
#[doc(hidden)]
pub mod swim;
mod thread;
#[doc(hidden)]
pub mod transport;
#[doc(hidden)]
pub mod trust;
mod waker;

#[cfg(feature = "ca")]
pub mod ca;

pub use app::{App, Delivery};
pub use close::{CloseCode, CloseReason};
pub use error::{
    CommandError, IdentityError, NotReady, RegisterError, RequestError, SendError, SendErrorKind,
    StartError,
};
pub use event::{Event, EventKind};
pub use inbox::{Message, Request};
pub use node::{Builder, LeaveReport, Node, Profile, ShutdownReport};
pub use node_id::{BootId, ClusterName, InvalidName, NodeId};
pub use record::MAX_TAG_BYTES;
pub use snapshot::Ready;
pub use stats::{
    ConnectionCounts, ConnectionInfo, ConnectionState, MemberCounts, MemberInfo, MemberStatus,
    PeerInfo, Side, Status,
};
pub use subscribers::Events;
pub use trust::Identity;

/// The pure cores, for tests, simulation and the curious. Outside semantic versioning.
pub mod unversioned {
    pub use crate::{mesh, node_id::ConnectionId, record, rng, swim, trust};
}
