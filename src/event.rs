//! What a node tells its application: members and connections that come and go.

use std::time::SystemTime;

use crate::node_id::NodeId;

/// One event, as one subscriber sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Counts this subscriber's events from 1, without gaps.
    pub seq: u64,
    /// When it happened.
    pub at: SystemTime,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
///
/// For one member the order is always `MemberUp`, any number of `MemberSuspect`, `MemberUpdated`,
/// then `MemberDead` or `MemberLeft`, and again from the start. For one peer, `Connected` and
/// `Disconnected` alternate; replacing one connection to a peer by another is neither.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The first join round is over: see [`Ready::Started`](crate::Ready::Started).
    Ready,
    /// A member was seen for the first time, or came back.
    MemberUp {
        /// The member.
        node: NodeId,
    },
    /// A member did not answer probes; it has a while to show that it is alive.
    MemberSuspect {
        /// The member.
        node: NodeId,
        /// Who accuses it.
        reason: String,
    },
    /// A suspected member has shown that it is alive.
    MemberAlive {
        /// The member.
        node: NodeId,
    },
    /// A suspected member did not show that it is alive in time.
    MemberDead {
        /// The member.
        node: NodeId,
        /// Who declared it dead.
        reason: String,
    },
    /// A member left on purpose, or was forced out.
    MemberLeft {
        /// The member.
        node: NodeId,
        /// `left` or who forced it out.
        reason: String,
    },
    /// A member's addresses, tags or life changed.
    MemberUpdated {
        /// The member.
        node: NodeId,
    },
    /// There is an authenticated connection to a peer.
    Connected {
        /// The peer.
        node: NodeId,
    },
    /// There is no connection to a peer any more.
    Disconnected {
        /// The peer.
        node: NodeId,
        /// Why the last connection ended.
        reason: String,
        /// How many messages taken over by the connection were never acknowledged by the peer.
        unacknowledged: u64,
    },
    /// The subscriber read too slowly and this many events were dropped before this one. Take
    /// [`Node::members`](crate::Node::members) and [`Node::peers`](crate::Node::peers) to catch up.
    Lagged {
        /// How many are missing.
        missed: u64,
    },
    /// An application on some node, maybe this one, told everybody something with
    /// [`Node::emit_event`](crate::Node::emit_event). Each such event comes at most once; its origin
    /// signed it.
    UserEvent {
        /// Who emitted it.
        from: NodeId,
        /// What kind of news it is.
        name: String,
        /// The news.
        payload: Vec<u8>,
        /// Lamport time: an event that its origin emitted after hearing another one has a higher one.
        lamport: u64,
    },
    /// The node is about to leave.
    Leaving,
}

impl EventKind {
    /// The event's name in JSON and logs: `member_up`, `connected`, …
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::MemberUp { .. } => "member_up",
            Self::MemberSuspect { .. } => "member_suspect",
            Self::MemberAlive { .. } => "member_alive",
            Self::MemberDead { .. } => "member_dead",
            Self::MemberLeft { .. } => "member_left",
            Self::MemberUpdated { .. } => "member_updated",
            Self::Connected { .. } => "connected",
            Self::Disconnected { .. } => "disconnected",
            Self::Lagged { .. } => "lagged",
            Self::UserEvent { .. } => "user_event",
            Self::Leaving => "leaving",
        }
    }

    /// The node that the event is about, if it is about one.
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::MemberUp { node }
            | Self::MemberSuspect { node, .. }
            | Self::MemberAlive { node }
            | Self::MemberDead { node, .. }
            | Self::MemberLeft { node, .. }
            | Self::MemberUpdated { node }
            | Self::Connected { node }
            | Self::Disconnected { node, .. }
            | Self::UserEvent { from: node, .. } => Some(node),
            Self::Ready | Self::Lagged { .. } | Self::Leaving => None,
        }
    }

    /// Why it happened, where there is more to say than the name.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::MemberSuspect { reason, .. }
            | Self::MemberDead { reason, .. }
            | Self::MemberLeft { reason, .. }
            | Self::Disconnected { reason, .. } => Some(reason),
            Self::Ready
            | Self::MemberUp { .. }
            | Self::MemberAlive { .. }
            | Self::MemberUpdated { .. }
            | Self::Connected { .. }
            | Self::Lagged { .. }
            | Self::UserEvent { .. }
            | Self::Leaving => None,
        }
    }
}
