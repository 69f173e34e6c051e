//! What waits to be sent on one connection, and who waits for an answer.
//!
//! Callers put units here under a lock that nobody holds for long: no system call is made and no
//! packet built while it is held. Whoever drives the connection moves units on to QUIC, so that
//! what many callers put here in the meantime leaves in one batch.
//!
//! Per application and direction there is one stream of messages, one of requests and one of
//! replies, opened when first used; a control stream; a stream for each sync; and the streams that
//! applications open for themselves. Each is bounded in bytes, and so is the whole process. A large
//! request or reply has a stream to itself, so that small ones need not wait until it is through; a
//! large message keeps its place among the others and is cut into frames there.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;

use crate::{
    control::Control,
    error::RequestError,
    inbox::MAX_APPS,
    transport::{
        buffers,
        framing::{self, Preamble, StreamKind},
        incoming::MAX_RAW_STREAMS,
        reply::Awaited,
        seats::Seats,
        slot::Slot,
        tls::{DATAGRAM_QUEUE, Quic},
        withdrawal::{Line, WITHDRAWN, Withdrawal},
    },
};

/// Bytes that may wait on one outgoing stream before its senders wait. A unit that finds the stream
/// empty is taken whatever its size, so that the largest message can be sent at all.
pub(super) const MAX_QUEUED_BYTES: usize = 1 << 20;

/// Bytes of replies that may wait on one stream where inline handlers have made them.
const MAX_AT_ONCE_BYTES: usize = 16 << 20;

/// Who waits for room is woken when so much of it is free, not for every byte.
const ROOM_WORTH_WAKING_FOR: usize = MAX_QUEUED_BYTES / 4;

/// Units up to this size are put together, up to that size. Copying so much costs less than what QUIC
/// does for a piece of its own.
const MAX_SMALL_BYTES: usize = 4 * 1_024;
const MAX_TAIL_BYTES: usize = 16 * 1_024;

/// Bytes that may wait on the outgoing streams of all connections of the process.
const MAX_PROCESS_QUEUED_BYTES: usize = 256 << 20;

/// Control frames that may wait before the peer counts as one that does not read: every frame we
/// must answer costs it one, too.
pub(super) const MAX_CONTROL_QUEUED_BYTES: usize = 256 << 10;

/// Application streams of one direction: messages, requests and replies of each application of
/// either node, and requests and replies of queries and of round-trip times.
pub(super) const MAX_APP_STREAMS: usize = 3 * MAX_APPS + 4;

/// Requests and replies of larger payload than this are large: more than one frame.
const MAX_IN_LINE_BYTES: usize = framing::MAX_FRAME_BYTES;

/// Large requests that have a stream of their own and no reply yet, and large replies on streams of
/// their own that QUIC has not taken yet. Beyond, and beyond the size of one largest message together,
/// they go in line: each may be held in part by a peer, whose room is bounded.
pub(super) const MAX_LARGE_STREAMS: usize = 8;

/// Control frames that may wait before those that are a courtesy are left out.
const MAX_COURTESY_BYTES: usize = MAX_CONTROL_QUEUED_BYTES / 4;

/// What waits in the whole process.
static PROCESS_QUEUED: AtomicUsize = AtomicUsize::new(0);

/// The control stream: the dialler's first bidirectional one (RFC 9000 §2.1).
pub(super) const CONTROL: u64 = 0;

/// The urgency of a stream (0 is first, 255 last).
fn urgency(kind: StreamKind) -> u8 {
    match kind {
        StreamKind::Control => 0,
        StreamKind::Requests | StreamKind::Replies => 64,
        StreamKind::Sync => 96,
        // They take turns, a frame each: neither holds the other up, and both let small ones pass.
        StreamKind::Messages | StreamKind::LargeRequest | StreamKind::LargeReply => 127,
        StreamKind::Raw => 192,
    }
}

/// Whether units of applications are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gate {
    /// Not yet: the connection is not in use.
    Shut,
    Open,
    /// No more: another connection takes its place.
    Superseded,
    /// It is over.
    Closed {
        /// Because another connection took its place.
        is_replaced: bool,
        reason: String,
    },
}

/// One stream's bytes that QUIC has not taken yet.
#[derive(Debug)]
struct Outgoing {
    kind: StreamKind,
    queue: VecDeque<Bytes>,
    /// Small units put together, after the queue: QUIC's price is by the piece.
    tail: Vec<u8>,
    /// How long the last one became: the next is likely to become as long.
    last_tail: usize,
    queued_bytes: usize,
    opened: bool,
    fin: bool,
    /// It is among those with work.
    is_ready: bool,
    /// Somebody waits for room on it.
    is_awaited: bool,
    /// Of a stream of requests: those that wait on it.
    line: Option<Line>,
    /// Of a stream with one large unit: the size of its payload.
    payload_bytes: usize,
    /// Messages put on the stream, and those the peer has acknowledged.
    sent: u64,
    acknowledged: u64,
    /// The peer does not read it: it has no such application, or wants no more of it. With the code
    /// that it gave.
    stopped: Option<u64>,
}

impl Outgoing {
    fn new(kind: StreamKind) -> Self {
        Self {
            kind,
            queue: VecDeque::new(),
            tail: Vec::new(),
            last_tail: 0,
            queued_bytes: 0,
            opened: false,
            fin: false,
            is_ready: false,
            is_awaited: false,
            line: (kind == StreamKind::Requests).then(Line::default),
            payload_bytes: 0,
            sent: 0,
            acknowledged: 0,
            stopped: None,
        }
    }

    fn has_work(&self) -> bool {
        self.stopped.is_none() && (self.fin || !self.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.tail.is_empty()
    }

    fn push(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.count(bytes.len());
        self.seal_tail();
        self.queue.push_back(bytes);
    }

    /// Puts a unit that fits one frame after what is there.
    fn push_small(&mut self, head: &[u8], payload: &[u8]) {
        let before = self.tail.len();
        if before == 0 {
            self.tail.reserve(self.last_tail);
        }
        framing::append_unit(head, payload, &mut self.tail);
        self.count(self.tail.len() - before);
        if self.tail.len() >= MAX_TAIL_BYTES {
            self.seal_tail();
        }
    }

    /// Puts bytes after what is there, small pieces together.
    fn push_bytes(&mut self, bytes: &[u8]) {
        if bytes.len() > MAX_SMALL_BYTES {
            self.push(buffers::copy_of(bytes));
            return;
        }
        self.tail.extend_from_slice(bytes);
        self.count(bytes.len());
        if self.tail.len() >= MAX_TAIL_BYTES {
            self.seal_tail();
        }
    }

    fn push_unit(&mut self, unit: Unit<'_>) {
        match unit {
            Unit::Small { head, payload } => self.push_small(head, payload),
            Unit::Frames { frames, .. } => frames.into_iter().for_each(|frame| self.push(frame)),
        }
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.last_tail = tail.len();
            self.queue.push_back(tail.into());
        }
    }

    fn count(&mut self, bytes: usize) {
        self.queued_bytes += bytes;
        PROCESS_QUEUED.fetch_add(bytes, Relaxed);
    }

    fn taken(&mut self, bytes: usize) {
        self.queued_bytes -= bytes;
        PROCESS_QUEUED.fetch_sub(bytes, Relaxed);
    }

    /// QUIC has taken so many bytes.
    fn wrote(&mut self, bytes: usize) {
        self.taken(bytes);
        if let Some(line) = &mut self.line {
            line.take(bytes);
        }
    }

    fn clear(&mut self) {
        self.taken(self.queued_bytes);
        self.queue.clear();
        self.tail = Vec::new();
        if let Some(line) = &mut self.line {
            line.clear();
        }
    }

    /// Takes a request out of what waits, if QUIC has nothing of it yet.
    fn withdraw(&mut self, request: u64) -> bool {
        let line = self.line.as_mut();
        let Some(range) = line.and_then(|line| line.withdraw(request)) else {
            return false;
        };
        self.taken(range.len());
        self.seal_tail();
        let mut at = 0;
        for piece in std::mem::take(&mut self.queue) {
            let end = at + piece.len();
            let cut = range.start.clamp(at, end) - at..range.end.clamp(at, end) - at;
            let parts = [piece.slice(..cut.start), piece.slice(cut.end..)];
            let left = parts.into_iter().filter(|part| !part.is_empty());
            self.queue.extend(left);
            at = end;
        }
        true
    }

    fn unacknowledged(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledged)
    }

    fn is_settled(&self) -> bool {
        self.stopped.is_some() || (self.is_empty() && self.unacknowledged() == 0)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Why an application's own stream takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwritable {
    /// There is no room now.
    Full,
    /// The peer wants no more of it.
    Stopped(u64),
    /// It is finished or reset.
    Gone,
}

/// Outgoing streams and the requests that wait.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) gate: Gate,
    is_dialer: bool,
    next_uni: u64,
    next_bidi: u64,
    by_app: BTreeMap<(StreamKind, Arc<str>), u64>,
    /// The last answers of `by_app`, for requests and replies, which ask for nearly nothing else.
    recent: [Option<(Arc<str>, u64)>; 2],
    streams: BTreeMap<u64, Outgoing>,
    /// Requests on streams of their own without a reply yet: the stream, and the payload's size.
    large: BTreeMap<u64, (u64, usize)>,
    /// The largest message.
    max_message_bytes: usize,
    /// Streams that have work, in no order.
    ready: Vec<u64>,
    /// Resets that QUIC has not been told of.
    resets: Vec<(u64, u64)>,
    /// Datagrams of applications.
    datagrams: VecDeque<Vec<u8>>,
    /// Messages on streams that the peer refused and that are forgotten.
    refused: u64,
    /// The stream that was written to last.
    last_served: u64,
    /// Streams that applications here have opened and still hold.
    open_raws: usize,
    /// The peer lets control frames pile up.
    pub(super) control_overflow: bool,
    /// Requests that wait for a reply.
    pub(super) requests: BTreeMap<u64, Awaited>,
    /// When the first request that nobody watches over expires, or an earlier time.
    pub(super) next_expiry: Option<Instant>,
    /// Requests of the peer that inline handlers are answering here.
    pub(super) answering: usize,
    /// Requests of the peer that wait for a handler of their own thread, or are with one.
    pub(super) asked: BTreeSet<u64>,
    /// Callers that wait for something of the peer.
    pub(super) seats: Seats,
    /// Those that wait for room on applications' own streams; each is a thread.
    writers: Vec<Arc<Slot<()>>>,
}

impl Outbox {
    pub(super) fn new(is_dialer: bool, max_message_bytes: usize) -> Self {
        Self {
            gate: Gate::Shut,
            is_dialer,
            // Stream ids: bit 0 tells who opened it, bit 1 whether it is unidirectional.
            next_uni: if is_dialer { 2 } else { 3 },
            next_bidi: if is_dialer { 4 } else { 1 },
            by_app: BTreeMap::new(),
            recent: [None, None],
            streams: BTreeMap::new(),
            large: BTreeMap::new(),
            max_message_bytes,
            ready: Vec::new(),
            resets: Vec::new(),
            datagrams: VecDeque::new(),
            refused: 0,
            last_served: 0,
            open_raws: 0,
            control_overflow: false,
            requests: BTreeMap::new(),
            next_expiry: None,
            answering: 0,
            asked: BTreeSet::new(),
            seats: Seats::default(),
            writers: Vec::new(),
        }
    }

    fn mark_ready(ready: &mut Vec<u64>, id: u64, stream: &mut Outgoing) {
        if !stream.is_ready {
            stream.is_ready = true;
            ready.push(id);
        }
    }

    /// Puts a control frame on its way.
    pub(super) fn push_control(&mut self, frame: &[u8]) {
        let is_dialer = self.is_dialer;
        let stream = self.streams.entry(CONTROL).or_insert_with(|| {
            let mut stream = Outgoing::new(StreamKind::Control);
            if is_dialer {
                stream.push(preamble(StreamKind::Control, ""));
            }
            stream
        });
        framing::encode_unit(&[], frame, |frame| stream.push(frame));
        if stream.queued_bytes > MAX_CONTROL_QUEUED_BYTES {
            self.control_overflow = true;
        }
        Self::mark_ready(&mut self.ready, CONTROL, stream);
    }

    /// The id of an application's outgoing stream, which is opened if need be.
    fn app(&mut self, kind: StreamKind, app: &Arc<str>) -> u64 {
        let recent = match kind {
            StreamKind::Requests => Some(0),
            StreamKind::Replies => Some(1),
            _ => None,
        };
        if let Some(recent) = recent {
            match &self.recent[recent] {
                Some((name, id)) if Arc::ptr_eq(name, app) => return *id,
                _ => {
                    let id = self.look_up(kind, app);
                    self.recent[recent] = Some((Arc::clone(app), id));
                    return id;
                }
            }
        }
        self.look_up(kind, app)
    }

    fn look_up(&mut self, kind: StreamKind, app: &Arc<str>) -> u64 {
        let key = (kind, Arc::clone(app));
        if let Some(id) = self.by_app.get(&key) {
            return *id;
        }
        let id = self.next_uni;
        self.next_uni += 4;
        let mut stream = Outgoing::new(kind);
        let preamble = preamble(kind, app);
        if let Some(line) = &mut stream.line {
            // No request has this id.
            line.push(0, preamble.len());
        }
        stream.push(preamble);
        self.streams.insert(id, stream);
        self.by_app.insert(key, id);
        id
    }

    fn existing(&self, kind: StreamKind, app: &Arc<str>) -> Option<&Outgoing> {
        let id = self.by_app.get(&(kind, Arc::clone(app)))?;
        self.streams.get(id)
    }

    /// Whether the peer has said that it has no application for these messages. Then the stream is
    /// forgotten, so that the next message opens another.
    pub(super) fn take_refusal(&mut self, app: &Arc<str>) -> bool {
        let is_refused = self.is_refused(app);
        if is_refused
            && let Some(id) = self.by_app.remove(&(StreamKind::Messages, Arc::clone(app)))
            && let Some(stream) = self.streams.remove(&id)
        {
            self.refused += stream.unacknowledged();
        }
        is_refused
    }

    /// Whether the peer has said that it has no application for these messages.
    pub(super) fn is_refused(&self, app: &Arc<str>) -> bool {
        self.existing(StreamKind::Messages, app)
            .is_some_and(|stream| stream.stopped.is_some())
    }

    /// Messages of the application that the peer has not acknowledged.
    pub(super) fn unacknowledged_of(&self, app: &Arc<str>) -> u64 {
        self.existing(StreamKind::Messages, app)
            .map_or(0, Outgoing::unacknowledged)
    }

    /// The peer has so many messages of a stream in its inbox.
    pub(super) fn acknowledge(&mut self, id: u64, count: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            // A peer that acknowledges what was never sent gains nothing.
            stream.acknowledged = stream.acknowledged.max(count.min(stream.sent));
        }
    }

    /// The peer has no application for a stream, or wants no more of it: what waits there is dropped,
    /// and the stream reset, which gives it back to the peer's limit.
    pub(super) fn refuse(&mut self, id: u64, quic: &mut Quic, code: u64) {
        let kind = self.streams.get(&id).map(|stream| stream.kind);
        if let Some(StreamKind::Messages | StreamKind::Raw) = kind {
            // It fails when the stream is not open: then the peer refused what was never sent.
            let _ = quic.stream_shutdown(id, quiche::Shutdown::Write, code);
            self.stop(id, code);
        }
    }

    /// The peer wants no more of a stream. Who writes there is told; one that nobody writes on any more is
    /// forgotten.
    fn stop(&mut self, id: u64, code: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.clear();
        stream.stopped = Some(code);
        if stream.fin || stream.kind.is_single() {
            self.streams.remove(&id);
        }
    }

    /// Whether a unit of `bytes` may be put on the stream now. A stream that is empty takes any
    /// unit, and so does a process in which next to nothing waits; otherwise both limits hold. Who
    /// is told no is woken when there is room.
    pub(super) fn has_room(&mut self, kind: StreamKind, app: &Arc<str>, bytes: usize) -> bool {
        if self.goes_alone(kind, bytes) {
            return fits_process(bytes);
        }
        let id = self.app(kind, app);
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        // The preamble alone may lie there.
        let is_empty = stream.queued_bytes <= 2 + framing::MAX_NAME_BYTES;
        let fits = is_empty || stream.queued_bytes + bytes <= MAX_QUEUED_BYTES;
        let has_room = fits && fits_process(bytes);
        stream.is_awaited |= !has_room;
        has_room
    }

    /// Whether a reply may be put on its stream by a thread that cannot wait: it may find there what
    /// others that could not wait have put there, up to a limit of its own.
    pub(super) fn has_room_at_once(&mut self, app: &Arc<str>, bytes: usize) -> bool {
        if self.goes_alone(StreamKind::Replies, bytes) {
            return fits_process(bytes);
        }
        let id = self.app(StreamKind::Replies, app);
        let queued = self.streams.get(&id).map_or(0, |s| s.queued_bytes);
        fits_process(bytes) && (queued <= MAX_QUEUED_BYTES || queued + bytes <= MAX_AT_ONCE_BYTES)
    }

    /// Whether a reply may be put on the stream of an application that need not exist here: within
    /// the room of the stream, and within the number of streams that real applications need.
    pub(super) fn has_room_for_stranger(&mut self, app: &Arc<str>, bytes: usize) -> bool {
        let is_known = self.existing(StreamKind::Replies, app).is_some();
        (is_known || self.by_app.len() < MAX_APP_STREAMS)
            && self.has_room(StreamKind::Replies, app, bytes)
    }

    /// Whether a request or reply with such a payload gets a stream of its own now.
    fn goes_alone(&self, kind: StreamKind, payload_bytes: usize) -> bool {
        if payload_bytes <= MAX_IN_LINE_BYTES {
            return false;
        }
        let (count, bytes) = match kind {
            StreamKind::Requests => {
                let sizes = self.large.values().map(|(_, size)| size);
                (self.large.len(), sizes.sum::<usize>())
            }
            StreamKind::Replies => {
                let is_reply = |stream: &&Outgoing| stream.kind == StreamKind::LargeReply;
                let replies = self.streams.values().filter(is_reply);
                let sizes = replies.clone().map(|stream| stream.payload_bytes);
                (replies.count(), sizes.sum())
            }
            _ => return false,
        };
        count == 0 || (count < MAX_LARGE_STREAMS && bytes + payload_bytes <= self.max_message_bytes)
    }

    /// Puts a message or reply on an application's stream, or a large reply on one of its own.
    pub(super) fn push(&mut self, kind: StreamKind, app: &Arc<str>, unit: Unit<'_>) {
        if self.goes_alone(kind, unit.payload_bytes()) {
            self.push_alone(StreamKind::LargeReply, app, unit);
            return;
        }
        self.push_in_line(kind, app, unit, None);
    }

    /// Puts a request on an application's stream, or a large one on one of its own.
    pub(super) fn push_request(&mut self, app: &Arc<str>, request: u64, unit: Unit<'_>) {
        let payload_bytes = unit.payload_bytes();
        if self.goes_alone(StreamKind::Requests, payload_bytes) {
            let stream = self.push_alone(StreamKind::LargeRequest, app, unit);
            self.large.insert(request, (stream, payload_bytes));
            return;
        }
        self.push_in_line(StreamKind::Requests, app, unit, Some(request));
    }

    fn push_in_line(
        &mut self,
        kind: StreamKind,
        app: &Arc<str>,
        unit: Unit<'_>,
        request: Option<u64>,
    ) {
        let id = self.app(kind, app);
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let before = stream.queued_bytes;
        stream.push_unit(unit);
        if let (Some(line), Some(request)) = (&mut stream.line, request) {
            line.push(request, stream.queued_bytes - before);
        }
        if kind == StreamKind::Messages {
            stream.sent += 1;
        }
        Self::mark_ready(&mut self.ready, id, stream);
    }

    fn push_alone(&mut self, kind: StreamKind, app: &Arc<str>, unit: Unit<'_>) -> u64 {
        let id = self.next_uni;
        self.next_uni += 4;
        let mut stream = Outgoing::new(kind);
        stream.payload_bytes = unit.payload_bytes();
        stream.push(preamble(kind, app));
        stream.push_unit(unit);
        stream.fin = true;
        Self::mark_ready(&mut self.ready, id, &mut stream);
        self.streams.insert(id, stream);
        id
    }

    /// Takes the one who waits for the reply to a request, which has come.
    pub(super) fn answered(&mut self, request: u64) -> Option<Awaited> {
        if !self.large.is_empty() {
            self.large.remove(&request);
        }
        self.requests.remove(&request)
    }

    /// Gives a request up, unless its reply has come. See [`withdrawal`](super::withdrawal).
    pub(super) fn withdraw(&mut self, request: u64) -> Option<(Awaited, Withdrawal)> {
        let awaited = self.requests.remove(&request)?;
        if let Some((id, _)) = self.large.remove(&request) {
            let stream = self.streams.get(&id);
            let is_begun = stream.is_none_or(|stream| stream.opened);
            if stream.is_some() {
                self.reset_raw(id, WITHDRAWN);
                let withdrawal = if is_begun {
                    Withdrawal::UnderWay
                } else {
                    Withdrawal::Unsent
                };
                return Some((awaited, withdrawal));
            }
        } else if self.streams.values_mut().any(|s| s.withdraw(request)) {
            return Some((awaited, Withdrawal::Unsent));
        }
        let control = self.streams.get(&CONTROL);
        if control.is_some_and(|control| control.queued_bytes <= MAX_COURTESY_BYTES) {
            self.push_control(&Control::Withdrawn { request }.encode());
        }
        Some((awaited, Withdrawal::UnderWay))
    }

    /// Opens a sync and puts all its frames on their way. Returns its stream.
    pub(super) fn start_sync(&mut self, frames: &[Vec<u8>]) -> u64 {
        let id = self.next_bidi;
        self.next_bidi += 4;
        let mut stream = Outgoing::new(StreamKind::Sync);
        stream.push(preamble(StreamKind::Sync, ""));
        self.streams.insert(id, stream);
        self.finish_sync(id, frames);
        id
    }

    /// Puts this end's half of a sync on its way.
    pub(super) fn finish_sync(&mut self, id: u64, frames: &[Vec<u8>]) {
        let stream = self
            .streams
            .entry(id)
            .or_insert_with(|| Outgoing::new(StreamKind::Sync));
        for frame in frames {
            framing::encode_unit(&[], frame, |frame| stream.push(frame));
        }
        stream.fin = true;
        Self::mark_ready(&mut self.ready, id, stream);
    }

    /// The ids of outgoing syncs.
    pub(super) fn syncs(&self) -> impl Iterator<Item = u64> + '_ {
        self.streams
            .iter()
            .filter(|(_, stream)| stream.kind == StreamKind::Sync)
            .map(|(id, _)| *id)
    }

    /// An id for a stream of the application's own, unless too many are open.
    pub(super) fn reserve_raw(&mut self) -> Option<u64> {
        if self.open_raws >= MAX_RAW_STREAMS {
            return None;
        }
        self.open_raws += 1;
        let id = self.next_bidi;
        self.next_bidi += 4;
        Some(id)
    }

    /// Nobody here holds the stream any more.
    pub(super) fn give_back_raw(&mut self, id: u64) {
        // Bit 0 of an id tells who opened it.
        if (id & 1 == 0) == self.is_dialer {
            self.open_raws = self.open_raws.saturating_sub(1);
        }
    }

    /// Opens a stream of the application's own.
    pub(super) fn open_raw(&mut self, id: u64, app: &str) {
        let mut stream = Outgoing::new(StreamKind::Raw);
        stream.push(preamble(StreamKind::Raw, app));
        Self::mark_ready(&mut self.ready, id, &mut stream);
        self.streams.insert(id, stream);
    }

    /// Whether there is something of the stream.
    pub(super) fn knows(&self, id: u64) -> bool {
        self.streams.contains_key(&id)
    }

    /// The other half of a stream that the peer opened.
    pub(super) fn adopt_raw(&mut self, id: u64) {
        self.streams
            .entry(id)
            .or_insert_with(|| Outgoing::new(StreamKind::Raw));
    }

    /// Puts bytes on an application's own stream, as many as there is room for.
    pub(super) fn write_raw(&mut self, id: u64, bytes: &[u8]) -> Result<usize, Unwritable> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(Unwritable::Gone);
        };
        if let Some(code) = stream.stopped {
            return Err(Unwritable::Stopped(code));
        }
        if stream.fin {
            return Err(Unwritable::Gone);
        }
        let room = MAX_QUEUED_BYTES
            .saturating_sub(stream.queued_bytes)
            .min(framing::MAX_FRAME_BYTES)
            .min(bytes.len());
        if (room == 0 && !bytes.is_empty()) || !fits_process(room) {
            stream.is_awaited = true;
            return Err(Unwritable::Full);
        }
        if room > 0 {
            stream.push_bytes(&bytes[..room]);
            Self::mark_ready(&mut self.ready, id, stream);
        }
        Ok(room)
    }

    /// `writer` is filled when there may be room on an application's own stream, or the stream is over.
    pub(super) fn await_room(&mut self, writer: &Arc<Slot<()>>) {
        self.writers.push(Arc::clone(writer));
    }

    /// It waits no longer.
    pub(super) fn forget_writer(&mut self, writer: &Arc<Slot<()>>) {
        self.writers.retain(|other| !Arc::ptr_eq(other, writer));
    }

    /// Those that wait for room, to be told, if there is `room`.
    pub(super) fn take_writers(&mut self, room: bool) -> Vec<Arc<Slot<()>>> {
        if room {
            std::mem::take(&mut self.writers)
        } else {
            Vec::new()
        }
    }

    /// Ends this half of an application's own stream after what waits on it.
    pub(super) fn finish_raw(&mut self, id: u64) {
        let is_stopped = |stream: &Outgoing| stream.stopped.is_some();
        if self.streams.get(&id).is_some_and(is_stopped) {
            // It was reset when the peer stopped it.
            self.streams.remove(&id);
        } else if let Some(stream) = self.streams.get_mut(&id) {
            stream.fin = true;
            Self::mark_ready(&mut self.ready, id, stream);
        }
    }

    /// Ends this half of an application's own stream without what waits on it.
    pub(super) fn reset_raw(&mut self, id: u64, code: u64) {
        if self.streams.remove(&id).is_some() {
            self.resets.push((id, code));
        }
    }

    /// Whether the writer's half of an application's own stream has nothing left to hand to QUIC.
    pub(super) fn is_written(&self, id: u64) -> bool {
        self.streams
            .get(&id)
            .is_none_or(|stream| stream.is_empty() || stream.stopped.is_some())
    }

    /// Whether QUIC should be offered something.
    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty() || !self.datagrams.is_empty()
    }

    /// Puts a datagram on its way. `false` when too many wait.
    pub(super) fn push_datagram(&mut self, datagram: Vec<u8>) -> bool {
        let has_room = self.datagrams.len() < DATAGRAM_QUEUE;
        if has_room {
            self.datagrams.push_back(datagram);
        }
        has_room
    }

    /// Hands to QUIC what it takes: the urgent streams first, and streams of one urgency a frame
    /// each in turn, because QUIC's window is one for all.
    /// `max_datagram`: the largest datagram of an application that the path carries.
    pub(super) fn write(&mut self, quic: &mut Quic, max_datagram: usize) -> Written {
        let mut written = Written::default();
        self.resets.retain(|(id, code)| {
            // A stream that was never opened is opened first, or its id would stay open at the peer
            // without end as soon as a later one is used.
            match quic.stream_priority(*id, urgency(StreamKind::Raw), true) {
                Err(quiche::Error::StreamLimit) => true,
                Ok(()) | Err(_) => {
                    let _ = quic.stream_shutdown(*id, quiche::Shutdown::Write, *code);
                    false
                }
            }
        });
        while let Some(datagram) = self.datagrams.pop_front() {
            if quic.is_dgram_send_queue_full() {
                self.datagrams.push_front(datagram);
                break;
            }
            written.bytes += datagram.len();
            if datagram.len() > max_datagram || quic.dgram_send_buf(datagram).is_err() {
                // The path has become too small for it.
                written.lost_datagrams += 1;
            }
        }
        match *self.ready.as_slice() {
            [] => return written,
            [id] => while self.write_frame(quic, id, &mut written) {},
            _ => self.write_in_turn(quic, &mut written),
        }
        let streams = &mut self.streams;
        self.ready.retain(|id| {
            let Some(stream) = streams.get_mut(id) else {
                return false;
            };
            stream.is_ready = stream.has_work();
            stream.is_ready
        });
        written
    }

    fn write_in_turn(&mut self, quic: &mut Quic, written: &mut Written) {
        // Who was served last comes last, so that a window that fits one frame goes round.
        let order = |id: &u64| {
            let kind = self.streams.get(id)?.kind;
            Some((urgency(kind), *id <= self.last_served, *id))
        };
        let mut order: Vec<(u8, bool, u64)> = self.ready.iter().filter_map(order).collect();
        order.sort_unstable();
        for class in order.chunk_by(|a, b| a.0 == b.0) {
            loop {
                let mut took = false;
                for &(_, _, id) in class {
                    if self.write_frame(quic, id, written) {
                        self.last_served = id;
                        took = true;
                    }
                }
                if !took {
                    break;
                }
            }
        }
    }

    /// Hands at most one piece of a stream to QUIC. `true` when it took something.
    fn write_frame(&mut self, quic: &mut Quic, id: u64, written: &mut Written) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|s| s.has_work()) else {
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
        // What does not fit is lost with the error, so ask first.
        let capacity = match quic.stream_capacity(id) {
            Ok(capacity) => capacity,
            Err(quiche::Error::StreamStopped(code)) => {
                written.room = true;
                self.stop(id, code);
                return true;
            }
            // The peer stopped and ended it, and QUIC has forgotten it.
            Err(quiche::Error::InvalidStreamState(_)) => {
                written.room = true;
                self.stop(id, 0);
                return true;
            }
            // Anything else ends the connection, and then its state says so.
            Err(_) => return false,
        };
        if stream.queue.is_empty() {
            stream.seal_tail();
        }
        let (piece, is_last) = match stream.queue.front_mut() {
            None => (Bytes::new(), true),
            Some(_) if capacity == 0 => return false,
            Some(front) if front.len() > capacity => (front.split_to(capacity), false),
            Some(_) => {
                let whole = stream.queue.pop_front().unwrap_or_default();
                (whole, stream.is_empty())
            }
        };
        let bytes = piece.len();
        let fin = stream.fin && is_last;
        match quic.stream_send_zc(id, piece, fin) {
            // An end without bytes comes back as it went, and is taken all the same.
            Ok((taken, rest)) if taken == bytes => debug_assert!(rest.is_none_or(|r| r.is_empty())),
            Ok((taken, rest)) => {
                let rest = rest.unwrap_or_default();
                debug_assert_eq!(taken + rest.len(), bytes);
                stream.queue.push_front(rest);
                stream.wrote(taken);
                return taken > 0;
            }
            // The capacity was there a moment ago, so this is the end of the connection.
            Err(_) => {
                stream.taken(bytes);
                return false;
            }
        }
        stream.wrote(bytes);
        written.bytes += bytes;
        if fin {
            self.streams.remove(&id);
            written.room = true;
        } else if stream.is_awaited
            && stream.queued_bytes + ROOM_WORTH_WAKING_FOR <= MAX_QUEUED_BYTES
        {
            stream.is_awaited = false;
            written.room = true;
        } else if stream.is_empty() {
            // Who waits until all is on its way.
            written.room = true;
        }
        true
    }

    /// Whether nothing waits to be written or acknowledged.
    pub(super) fn is_written_out(&self) -> bool {
        let ours = |stream: &&Outgoing| stream.kind != StreamKind::Raw;
        self.streams.values().filter(ours).all(Outgoing::is_settled)
    }

    /// Whether nothing is under way: nothing to write, no reply awaited, no request being answered.
    pub(super) fn is_idle(&self) -> bool {
        self.is_written_out()
            && self.requests.is_empty()
            && self.answering == 0
            && self.asked.is_empty()
    }

    /// Messages that the peer has not acknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        let waiting = self.streams.values().map(Outgoing::unacknowledged);
        self.refused + waiting.sum::<u64>()
    }

    /// The same by application, for those that have some.
    pub(super) fn unacknowledged_by_app(&self) -> Vec<(Arc<str>, u64)> {
        let messages = self
            .by_app
            .iter()
            .filter(|((kind, _), _)| *kind == StreamKind::Messages);
        let waiting = messages.filter_map(|((_, app), id)| {
            let count = self.streams.get(id)?.unacknowledged();
            (count > 0).then(|| (Arc::clone(app), count))
        });
        waiting.collect()
    }

    /// The ids of the streams that are open in this direction.
    pub(super) fn ids(&self) -> BTreeSet<u64> {
        self.streams.keys().copied().collect()
    }

    /// Nothing is sent any more. Returns those who wait for a reply.
    pub(super) fn close(&mut self, reason: String, is_replaced: bool) -> BTreeMap<u64, Awaited> {
        self.gate = Gate::Closed {
            is_replaced,
            reason,
        };
        // What is queued counts against the process until it is dropped.
        self.streams.clear();
        self.large.clear();
        self.by_app.clear();
        self.recent = [None, None];
        self.ready.clear();
        self.resets.clear();
        self.datagrams.clear();
        self.refused = 0;
        std::mem::take(&mut self.requests)
    }

    /// Withdraws the requests whose time is over and that nobody else watches over.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(Awaited, Withdrawal)> {
        if self.next_expiry.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let expiry = |awaited: &Awaited| awaited.waiter.expires_at();
        let ids: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, awaited)| expiry(awaited).is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        let expired = ids.iter().filter_map(|id| self.withdraw(*id)).collect();
        self.next_expiry = self.requests.values().filter_map(expiry).min();
        expired
    }
}

/// A message, request or reply on its way to the outbox. A large one is cut into frames before any
/// lock is taken; a small one is copied when it is put in line.
#[derive(Debug)]
pub(super) enum Unit<'a> {
    Small {
        head: &'a [u8],
        payload: &'a [u8],
    },
    Frames {
        frames: Vec<Bytes>,
        payload_bytes: usize,
    },
}

impl<'a> Unit<'a> {
    pub(super) fn new(head: &'a [u8], payload: &'a [u8]) -> Self {
        if head.len() + payload.len() <= MAX_SMALL_BYTES {
            return Self::Small { head, payload };
        }
        let mut frames = Vec::new();
        framing::encode_unit(head, payload, |frame| frames.push(frame.into()));
        Self::Frames {
            frames,
            payload_bytes: payload.len(),
        }
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Self::Small { payload, .. } => payload.len(),
            Self::Frames { payload_bytes, .. } => *payload_bytes,
        }
    }
}

/// What became of an offer to QUIC.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Written {
    /// So much was taken.
    pub(super) bytes: usize,
    /// Somebody may have room now.
    pub(super) room: bool,
    /// Datagrams that were larger than the path carries now.
    pub(super) lost_datagrams: u64,
}

/// What a reply is for whoever waits for it.
pub(super) type Outcome = Result<Vec<u8>, RequestError>;

/// Bytes that wait on all connections of this process, and the most that may.
pub(crate) fn process_queued() -> (usize, usize) {
    (PROCESS_QUEUED.load(Relaxed), MAX_PROCESS_QUEUED_BYTES)
}

fn fits_process(bytes: usize) -> bool {
    let all = PROCESS_QUEUED.load(Relaxed);
    all < MAX_QUEUED_BYTES || all + bytes <= MAX_PROCESS_QUEUED_BYTES
}

fn preamble(kind: StreamKind, app: &str) -> Vec<u8> {
    let app = app.to_owned();
    Preamble { kind, app }.encode()
}
