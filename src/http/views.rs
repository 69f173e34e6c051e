//! The JSON objects that only the HTTP server tells; see [`views`](crate::views) for the others.

use serde::Serialize;

use crate::{
    stats::ClosedConnection,
    view::View,
    views::{ConnsView, EventView, rfc3339, seconds},
};

/// The object of `/debug/quic`: that of `conns`, and what has ended.
#[derive(Debug, Serialize)]
pub(crate) struct QuicView {
    #[serde(flatten)]
    pub(crate) conns: ConnsView,
    pub(crate) closed: Vec<ClosedView>,
}

impl QuicView {
    pub(crate) fn of(view: &View) -> Self {
        Self {
            conns: ConnsView::of(&view.node, view.connections()),
            closed: view
                .closed()
                .into_iter()
                .rev()
                .map(ClosedView::from)
                .collect(),
        }
    }
}

/// A connection that ended, the latest first.
#[derive(Debug, Serialize)]
pub(crate) struct ClosedView {
    pub(crate) peer: Option<String>,
    pub(crate) side: String,
    pub(crate) addr: String,
    pub(crate) at: String,
    pub(crate) kind: String,
    pub(crate) reason: String,
    /// Null when the handshake failed.
    pub(crate) up_seconds: Option<f64>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) unacknowledged: u64,
    pub(crate) count: u64,
}

impl From<ClosedConnection> for ClosedView {
    fn from(closed: ClosedConnection) -> Self {
        Self {
            peer: closed.peer.map(|peer| peer.to_string()),
            side: closed.side.as_str().to_owned(),
            addr: closed.addr.to_string(),
            at: rfc3339(closed.at),
            kind: closed.kind.to_owned(),
            reason: closed.reason,
            up_seconds: seconds(closed.up),
            sent_bytes: closed.sent_bytes,
            received_bytes: closed.received_bytes,
            unacknowledged: closed.unacknowledged,
            count: closed.count,
        }
    }
}

/// The object of `/debug/events`: what the node remembers, the oldest first.
#[derive(Debug, Serialize)]
pub(crate) struct EventsView {
    pub(crate) schema: u32,
    pub(crate) node: String,
    pub(crate) events: Vec<EventView>,
}
