//! The streams of one connection: what waits to be written, and what is being read.
//!
//! Per application and direction there is one stream of messages, one of requests and one of
//! replies, opened when first used; a control stream; and a stream for each sync. Outgoing units
//! wait here as frames until QUIC takes them. Incoming bytes become units here; a unit that finds
//! its inbox full stays, and its stream is not read until there is room.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{
    inbox::MAX_APPS,
    transport::framing::{self, Decoder, Preamble, StreamKind},
};

/// Bytes that may wait on one outgoing stream before its senders wait. A unit that finds the stream
/// empty is taken whatever its size, so that the largest message can be sent at all.
pub(super) const MAX_QUEUED_BYTES: usize = 1 << 20;

/// Bytes that may wait on the outgoing streams of all connections of the process.
const MAX_PROCESS_QUEUED_BYTES: usize = 256 << 20;

/// Control frames that may wait before the peer counts as one that does not read: every frame we
/// must answer costs it one, too.
pub(super) const MAX_CONTROL_QUEUED_BYTES: usize = 256 << 10;

/// Application streams of one direction: messages, requests and replies of each application of
/// either node, and requests and replies of queries.
const MAX_APP_STREAMS: usize = 3 * MAX_APPS + 2;

/// What waits in the whole process.
static PROCESS_QUEUED: AtomicUsize = AtomicUsize::new(0);

/// The urgency of a stream (0 is first, 255 last).
fn urgency(kind: StreamKind) -> u8 {
    match kind {
        StreamKind::Control => 0,
        StreamKind::Requests | StreamKind::Replies => 64,
        StreamKind::Sync => 96,
        StreamKind::Messages => 127,
        StreamKind::Raw => 192,
    }
}

/// One stream's frames that QUIC has not taken yet.
#[derive(Debug)]
pub(super) struct Outgoing {
    kind: StreamKind,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the first frame that QUIC has taken.
    offset: usize,
    queued_bytes: usize,
    opened: bool,
    fin: bool,
    /// Messages put on the stream, and those the peer has acknowledged.
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
    /// The peer does not read it: it has no such application.
    pub(super) stopped: bool,
}

impl Outgoing {
    fn new(kind: StreamKind) -> Self {
        Self {
            kind,
            queue: VecDeque::new(),
            offset: 0,
            queued_bytes: 0,
            opened: false,
            fin: false,
            sent: 0,
            acknowledged: 0,
            stopped: false,
        }
    }

    fn has_work(&self) -> bool {
        !self.stopped && (self.fin || !self.queue.is_empty())
    }

    fn push(&mut self, frame: Vec<u8>) {
        self.queued_bytes += frame.len();
        PROCESS_QUEUED.fetch_add(frame.len(), Relaxed);
        self.queue.push_back(frame);
    }

    fn clear(&mut self) {
        PROCESS_QUEUED.fetch_sub(self.queued_bytes, Relaxed);
        self.queued_bytes = 0;
        self.offset = 0;
        self.queue.clear();
    }

    pub(super) fn unacknowledged(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledged)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One stream that the peer writes to.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) decoder: Decoder,
    pub(super) preamble: Option<Preamble>,
    /// Bytes read from QUIC that a full inbox keeps from being decoded.
    pub(super) leftover: Vec<u8>,
    /// The unit that found its inbox full.
    pub(super) blocked: Option<Vec<u8>>,
    /// Messages delivered, and those acknowledged to the peer.
    pub(super) delivered: u64,
    pub(super) acknowledged: u64,
    /// Nobody here wants what it carries: it is read and dropped until the peer ends it.
    pub(super) refused: bool,
    /// Sync frames read, for the limit.
    pub(super) frames: usize,
    pub(super) fin: bool,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            decoder: Decoder::new(crate::control::MAX_HELLO_BYTES),
            preamble: None,
            leftover: Vec::new(),
            blocked: None,
            delivered: 0,
            acknowledged: 0,
            refused: false,
            frames: 0,
            fin: false,
        }
    }
}

impl Incoming {
    pub(super) fn partial_bytes(&self) -> usize {
        let blocked = self.blocked.as_ref().map_or(0, Vec::len);
        self.decoder.buffered() + self.leftover.len() + blocked
    }
}

/// All streams of a connection.
#[derive(Debug)]
pub(super) struct Streams {
    is_dialer: bool,
    next_uni: u64,
    next_bidi: u64,
    by_app: BTreeMap<(StreamKind, Arc<str>), u64>,
    pub(super) outgoing: BTreeMap<u64, Outgoing>,
    pub(super) incoming: BTreeMap<u64, Incoming>,
    /// Streams that wait for room in an inbox.
    pub(super) stalled: BTreeSet<u64>,
    /// Messages on streams that the peer refused and that are forgotten.
    refused: u64,
    /// The stream that was written to last.
    last_served: u64,
}

/// The control stream: the dialler's first bidirectional one (RFC 9000 §2.1).
pub(super) const CONTROL: u64 = 0;

impl Streams {
    pub(super) fn new(is_dialer: bool) -> Self {
        Self {
            is_dialer,
            // Stream ids: bit 0 tells who opened it, bit 1 whether it is unidirectional.
            next_uni: if is_dialer { 2 } else { 3 },
            next_bidi: if is_dialer { 4 } else { 1 },
            by_app: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            stalled: BTreeSet::new(),
            refused: 0,
            last_served: 0,
        }
    }

    /// Puts a control frame on its way. `false` when the peer lets them pile up.
    pub(super) fn push_control(&mut self, frame: &[u8]) -> bool {
        let is_dialer = self.is_dialer;
        let stream = self.outgoing.entry(CONTROL).or_insert_with(|| {
            let mut stream = Outgoing::new(StreamKind::Control);
            if is_dialer {
                let preamble = Preamble {
                    kind: StreamKind::Control,
                    app: String::new(),
                };
                stream.push(preamble.encode());
            }
            stream
        });
        framing::encode_unit(&[], frame, |frame| stream.push(frame));
        stream.queued_bytes <= MAX_CONTROL_QUEUED_BYTES
    }

    /// The outgoing stream of an application, opened if need be.
    pub(super) fn app(&mut self, kind: StreamKind, app: &Arc<str>) -> (u64, &mut Outgoing) {
        let next_uni = &mut self.next_uni;
        let id = *self
            .by_app
            .entry((kind, Arc::clone(app)))
            .or_insert_with(|| {
                let id = *next_uni;
                *next_uni += 4;
                id
            });
        let stream = self.outgoing.entry(id).or_insert_with(|| {
            let mut stream = Outgoing::new(kind);
            stream.push(
                Preamble {
                    kind,
                    app: app.to_string(),
                }
                .encode(),
            );
            stream
        });
        (id, stream)
    }

    /// The outgoing stream of an application, if there is one.
    pub(super) fn existing(&self, kind: StreamKind, app: &Arc<str>) -> Option<&Outgoing> {
        let id = self.by_app.get(&(kind, Arc::clone(app)))?;
        self.outgoing.get(id)
    }

    /// The peer has no application for a stream of messages: what waits there is dropped, and the
    /// stream reset, which gives it back to the peer's limit.
    pub(super) fn refuse(&mut self, id: u64, quic: &mut quiche::Connection, code: u64) {
        let stream = self.outgoing.get_mut(&id);
        if let Some(stream) = stream.filter(|stream| stream.kind == StreamKind::Messages) {
            stream.clear();
            stream.stopped = true;
            // It fails when the stream is not open: then the peer refused what was never sent.
            let _ = quic.stream_shutdown(id, quiche::Shutdown::Write, code);
        }
    }

    /// Forgets a stream that the peer refused, so that the next message opens another.
    pub(super) fn forget(&mut self, kind: StreamKind, app: &Arc<str>) {
        if let Some(id) = self.by_app.remove(&(kind, Arc::clone(app)))
            && let Some(stream) = self.outgoing.remove(&id)
        {
            self.refused += stream.unacknowledged();
        }
    }

    /// Whether a unit of `bytes` may be put on the stream now. A stream that is empty takes any
    /// unit, and so does a process in which next to nothing waits; otherwise both limits hold.
    pub(super) fn has_room(&mut self, kind: StreamKind, app: &Arc<str>, bytes: usize) -> bool {
        let (_, stream) = self.app(kind, app);
        let own = stream.queued_bytes;
        // The preamble alone may lie there.
        let is_empty = own <= 2 + framing::MAX_NAME_BYTES;
        let all = PROCESS_QUEUED.load(Relaxed);
        let fits_process = all < MAX_QUEUED_BYTES || all + bytes <= MAX_PROCESS_QUEUED_BYTES;
        fits_process && (is_empty || own + bytes <= MAX_QUEUED_BYTES)
    }

    /// Whether a reply may be put on the stream of an application that need not exist here: within
    /// the room of the stream, and within the number of streams that real applications need.
    pub(super) fn has_room_for_stranger(&mut self, app: &Arc<str>, bytes: usize) -> bool {
        let is_known = self.existing(StreamKind::Replies, app).is_some();
        (is_known || self.by_app.len() < MAX_APP_STREAMS)
            && self.has_room(StreamKind::Replies, app, bytes)
    }

    /// Whether the peer may open another stream of this kind for this application: one of each,
    /// and no more than real applications need. Refused streams, which hold nothing, do not count.
    pub(super) fn may_open(&self, preamble: &Preamble) -> bool {
        let live = self.incoming.values().filter(|stream| !stream.refused);
        let mut preambles = live.filter_map(|stream| stream.preamble.as_ref());
        let is_first = preambles.clone().all(|other| other != preamble);
        is_first && preambles.by_ref().count() < MAX_APP_STREAMS
    }

    /// Bytes of units that are not complete, or that wait for room in an inbox.
    pub(super) fn partial_bytes(&self) -> usize {
        self.incoming.values().map(Incoming::partial_bytes).sum()
    }

    /// Syncs that are under way in either direction.
    pub(super) fn syncs(&self) -> usize {
        let is_sync = |id: &&u64| {
            let outgoing = self
                .outgoing
                .get(id)
                .is_some_and(|s| s.kind == StreamKind::Sync);
            let preamble = self.incoming.get(id).and_then(|s| s.preamble.as_ref());
            outgoing || preamble.is_some_and(|p| p.kind == StreamKind::Sync)
        };
        let ids = self.outgoing.keys().chain(self.incoming.keys());
        ids.filter(is_sync).collect::<BTreeSet<_>>().len()
    }

    /// Puts a unit on an application's stream.
    pub(super) fn push(&mut self, kind: StreamKind, app: &Arc<str>, head: &[u8], payload: &[u8]) {
        let (_, stream) = self.app(kind, app);
        framing::encode_unit(head, payload, |frame| stream.push(frame));
        if kind == StreamKind::Messages {
            stream.sent += 1;
        }
    }

    /// Opens a sync and puts all its frames on their way.
    pub(super) fn start_sync(&mut self, frames: &[Vec<u8>]) -> u64 {
        let id = self.next_bidi;
        self.next_bidi += 4;
        let mut stream = Outgoing::new(StreamKind::Sync);
        stream.push(
            Preamble {
                kind: StreamKind::Sync,
                app: String::new(),
            }
            .encode(),
        );
        self.outgoing.insert(id, stream);
        self.finish_sync(id, frames);
        // The answer comes without a preamble: the stream is known.
        let mut incoming = Incoming::new();
        incoming.preamble = Some(Preamble {
            kind: StreamKind::Sync,
            app: String::new(),
        });
        incoming
            .decoder
            .set_max_unit_bytes(crate::control::MAX_CONTROL_BYTES);
        self.incoming.insert(id, incoming);
        id
    }

    /// Puts this end's half of a sync on its way.
    pub(super) fn finish_sync(&mut self, id: u64, frames: &[Vec<u8>]) {
        let stream = self
            .outgoing
            .entry(id)
            .or_insert_with(|| Outgoing::new(StreamKind::Sync));
        for frame in frames {
            framing::encode_unit(&[], frame, |frame| stream.push(frame));
        }
        stream.fin = true;
    }

    /// Hands to QUIC what it takes: the urgent streams first, and streams of one urgency a frame
    /// each in turn, because QUIC's window is one for all. `true` when something that others wait
    /// for has changed.
    pub(super) fn write(&mut self, quic: &mut quiche::Connection) -> bool {
        let waiting = self.outgoing.iter().filter(|(_, stream)| stream.has_work());
        // Who was served last comes last, so that a window that fits one frame goes round.
        let mut order: Vec<(u8, bool, u64)> = waiting
            .map(|(&id, stream)| (urgency(stream.kind), id <= self.last_served, id))
            .collect();
        order.sort_unstable();
        let mut progress = false;
        for class in order.chunk_by(|a, b| a.0 == b.0) {
            loop {
                let mut took = false;
                for &(_, _, id) in class {
                    if self.write_frame(quic, id) {
                        self.last_served = id;
                        took = true;
                    }
                }
                if !took {
                    break;
                }
                progress = true;
            }
        }
        progress
    }

    /// Hands at most one frame of a stream to QUIC. `true` when it took something.
    fn write_frame(&mut self, quic: &mut quiche::Connection, id: u64) -> bool {
        let Some(stream) = self
            .outgoing
            .get_mut(&id)
            .filter(|stream| stream.has_work())
        else {
            return false;
        };
        if !stream.opened {
            // Setting the priority opens the stream; no more streams allowed now is no error.
            if quic
                .stream_priority(id, urgency(stream.kind), true)
                .is_err()
            {
                return false;
            }
            stream.opened = true;
        }
        let fin = stream.fin && stream.queue.len() <= 1;
        let rest = stream
            .queue
            .front()
            .map_or(&[][..], |front| &front[stream.offset..]);
        match quic.stream_send(id, rest, fin) {
            Ok(0) if !rest.is_empty() => false,
            Ok(taken) => {
                let is_frame_done = taken == rest.len();
                stream.offset += taken;
                stream.queued_bytes -= taken;
                PROCESS_QUEUED.fetch_sub(taken, Relaxed);
                if is_frame_done {
                    stream.queue.pop_front();
                    stream.offset = 0;
                    if fin {
                        self.outgoing.remove(&id);
                    }
                }
                true
            }
            Err(quiche::Error::StreamStopped(_)) => {
                stream.clear();
                stream.stopped = true;
                if stream.kind == StreamKind::Sync {
                    self.outgoing.remove(&id);
                }
                true
            }
            // `Done`: no window now. Anything else ends the connection, and then its state says so.
            Err(_) => false,
        }
    }

    /// Whether nothing waits to be written or acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.outgoing.values().all(|stream| {
            stream.stopped || (stream.queue.is_empty() && stream.unacknowledged() == 0)
        })
    }

    /// Messages that the peer has not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        let waiting = self.outgoing.values().map(Outgoing::unacknowledged);
        self.refused + waiting.sum::<u64>()
    }

    /// Streams that are open in either direction.
    pub(super) fn count(&self) -> u64 {
        let both = self
            .outgoing
            .keys()
            .chain(self.incoming.keys())
            .collect::<BTreeSet<_>>();
        both.len() as u64
    }
}
