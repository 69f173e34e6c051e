//! What arrives on the streams of one connection.
//!
//! Incoming bytes become units here. A unit that finds its inbox full stays, and its stream is not
//! read until there is room, which the peer feels. The streams of applications themselves are not
//! read here at all: QUIC keeps their bytes until the application takes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    inbox::{Inbox, Registry},
    transport::{
        framing::{self, Decoder, Preamble, StreamKind},
        outbox::{MAX_APP_STREAMS, MAX_LARGE_STREAMS},
        slot::Slot,
    },
};

/// Streams of applications themselves that each end of a connection may have opened. What each can
/// hold unread fits the connection's window (see [`Config`](super::Config)).
pub(super) const MAX_RAW_STREAMS: usize = 64;

/// One stream that the peer writes to.
pub(super) struct Incoming {
    pub(super) decoder: Decoder,
    pub(super) preamble: Option<Preamble>,
    /// The application's inbox, as long as it is registered.
    pub(super) inbox: Option<Arc<Inbox>>,
    /// Bytes read from QUIC that a full inbox keeps from being decoded, or that came with the
    /// preamble of an application's own stream.
    pub(super) leftover: Vec<u8>,
    /// The unit that found its inbox full.
    pub(super) blocked: Option<Vec<u8>>,
    /// Messages delivered, and those acknowledged to the peer.
    pub(super) delivered: u64,
    pub(super) acknowledged: u64,
    /// Nobody here wants what it carries: it is read and dropped until the peer ends it.
    pub(super) refused: bool,
    /// Frames of a sync that were read, or units of a stream that may carry one, for the limit.
    pub(super) frames: usize,
    pub(super) fin: bool,
    /// It is one of those that carry a large unit, and is read when fewer of them are.
    pub(super) waits_as: Option<StreamKind>,
    /// Who waits for bytes of an application's own stream: one for each thread that reads.
    pub(super) readers: Vec<Arc<Slot<()>>>,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            decoder: Decoder::new(crate::control::MAX_HELLO_BYTES),
            preamble: None,
            inbox: None,
            leftover: Vec::new(),
            blocked: None,
            delivered: 0,
            acknowledged: 0,
            refused: false,
            frames: 0,
            fin: false,
            waits_as: None,
            readers: Vec::new(),
        }
    }

    /// A stream that this end opened, so that the other sends no preamble.
    pub(super) fn opened_here(kind: StreamKind, app: &str, max_unit_bytes: usize) -> Self {
        let mut incoming = Self::new();
        incoming.decoder.set_max_unit_bytes(max_unit_bytes);
        incoming.preamble = Some(Preamble {
            kind,
            app: app.to_owned(),
        });
        incoming
    }

    /// Looks for the inbox of the stream's application, unless it is known and still there.
    pub(super) fn find_inbox(&mut self, registry: &Registry) {
        if self.inbox.as_ref().is_none_or(|inbox| inbox.is_gone()) {
            let app = self.preamble.as_ref().map(|preamble| &*preamble.app);
            self.inbox = app.and_then(|app| registry.get(app));
        }
    }

    pub(super) fn is(&self, kind: StreamKind) -> bool {
        self.preamble.as_ref().is_some_and(|p| p.kind == kind)
    }

    pub(super) fn partial_bytes(&self) -> usize {
        let blocked = self.blocked.as_ref().map_or(0, Vec::len);
        self.decoder.buffered() + self.leftover.len() + blocked
    }
}

/// All incoming streams of a connection.
#[derive(Default)]
pub(super) struct Inflow {
    pub(super) streams: BTreeMap<u64, Incoming>,
    /// Streams that have bytes which cannot be taken now.
    pub(super) stalled: BTreeSet<u64>,
    /// Streams of messages with something to acknowledge.
    pub(super) unacknowledged: Vec<u64>,
}

impl Inflow {
    /// Whether the peer, whose stream ids `is_theirs` tells, may open another stream of this kind for
    /// this application: one of each, and no more than real applications need. Refused streams, which
    /// hold nothing, do not count.
    pub(super) fn may_open(&self, preamble: &Preamble, is_theirs: impl Fn(u64) -> bool) -> bool {
        let live = self.streams.iter().filter(|(_, stream)| !stream.refused);
        if preamble.kind == StreamKind::Raw {
            let raw = live.filter(|(id, stream)| is_theirs(**id) && stream.is(StreamKind::Raw));
            return raw.count() < MAX_RAW_STREAMS;
        }
        let preambles = live.filter_map(|(_, stream)| stream.preamble.as_ref());
        let mut preambles = preambles.filter(|other| !other.kind.is_single());
        let is_first = preambles.clone().all(|other| other != preamble);
        let framed = preambles
            .by_ref()
            .filter(|other| other.kind != StreamKind::Raw);
        is_first && framed.count() < MAX_APP_STREAMS
    }

    /// Whether another stream of one large request or reply may be read now. A peer that keeps to its own
    /// bound has no more under way but those whose reset is still to come.
    pub(super) fn may_read_single(&self, kind: StreamKind) -> bool {
        let same = self.streams.values().filter(|stream| stream.is(kind));
        same.count() < MAX_LARGE_STREAMS
    }

    /// Drops a request that waits for room in its inbox.
    pub(super) fn withdraw_blocked(&mut self, request: u64) -> bool {
        let is_it = |incoming: &Incoming| {
            (incoming.is(StreamKind::Requests) || incoming.is(StreamKind::LargeRequest))
                && incoming.blocked.as_deref().and_then(framing::request_id) == Some(request)
        };
        let stalled = self.stalled.iter();
        let Some(id) = stalled
            .copied()
            .find(|id| self.streams.get(id).is_some_and(is_it))
        else {
            return false;
        };
        self.streams
            .get_mut(&id)
            .is_some_and(|it| it.blocked.take().is_some())
    }

    /// Bytes of units that are not complete, or that wait for room in an inbox.
    pub(super) fn partial_bytes(&self) -> usize {
        self.streams.values().map(Incoming::partial_bytes).sum()
    }
}
