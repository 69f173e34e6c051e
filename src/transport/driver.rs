//! What becomes of one connection: QUIC's state, what arrives, and what is due.
//!
//! Whoever holds the driver's lock drives the connection: its own worker thread, a caller that waits
//! for a reply and reads the socket meanwhile, or a caller that has just put something in the outbox.
//! Nothing here waits, and no code of applications runs under the lock: what has to be called is
//! collected as [`Effect`]s and run by whoever drove, after the lock is released, in order.
//!
//! A turn: take what arrived, let QUIC's timers run, advance the handshake, read streams, do what is
//! due. Then effects, whose replies and next requests leave with what else waits in the outbox, as one
//! batch of datagrams, which also carries the acknowledgement of what arrived.
//!
//! **Acknowledgements.** QUIC acknowledges with whatever is sent next. After a little has arrived and
//! while nothing is to be said, that is put off for [`ACK_AFTER`]: a reply or the next request is
//! likely to come and carries it for nothing.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use crate::{
    close::{CloseCode, CloseReason},
    control::{Control, Hello, MAX_CONTROL_BYTES, SyncFrame},
    error::RequestError,
    figures::DropReason,
    inbox::{Inbox, InlineMessages, InlineRequests, Message, PendingRequest, Replier, Request},
    node_id::{BootId, ConnectionId, NodeId},
    record::PROTOCOL_VERSIONS,
    stats::{ConnectionInfo, ConnectionState, Side},
    stream::Stream,
    transport::{
        Command, Datagram, MIN_DATAGRAM_BYTES, Notice, Sign, buffers,
        connection::Connection,
        framing::{self, Decoder, FramingError, Preamble, ReplyStatus, StreamKind},
        incoming::{Incoming, Inflow, MAX_RAW_STREAMS},
        outbox::{CONTROL, Gate, Outcome, Unit},
        path_size::{Change, Counts, PathSize},
        raw::RawPipe,
        reply::{Awaited, Waiter},
        slot::Slot,
        tls::{DATAGRAM_QUEUE, Quic},
        token::ID_BYTES,
        udp::{self, MAX_BATCH_BYTES, MAX_SEGMENTS, Received},
        withdrawal::Early,
    },
    trust,
};

/// Notices kept while the reactor's queue is full, before control and sync streams are not read any
/// more.
pub(super) const MAX_KEPT_NOTICES: usize = 64;

/// How long after the host refused the port a peer may take to show that it is there all the same.
const REFUSED_PATIENCE: Duration = Duration::from_secs(1);

/// Health pings without an answer that are worth a line and make the peer doubtful.
const PINGS_MISSED: u64 = 3;

/// Health pings that are remembered; more of them unanswered say nothing more.
const MAX_PINGS: usize = 64;

/// Probe time-outs of QUIC in a row, without a packet from the peer, that make it doubtful. One is
/// a lost packet; each further one waits twice as long.
const PROBE_TIMEOUTS: usize = 3;

/// A reactor that turned so recently is alive, so its connections' threads answer pings for it.
const REACTOR_FRESH: Duration = Duration::from_millis(100);

/// Frames of one sync: each member once, and the keyring, with room.
const MAX_SYNC_FRAMES: usize = 20_000;

/// How often the figures for onlookers are renewed at most.
const INFO_INTERVAL: Duration = Duration::from_millis(250);

/// The error code of a stream that was reset because the peer has no such application, or one that
/// lets too many wait.
pub(super) const NO_SUCH_APP: u64 = crate::inbox::NOBODY_TAKES_IT;

/// What a connection holds of messages that are not complete, in units of the largest message.
const MAX_PARTIAL_UNITS: usize = 4;

/// Syncs of both directions that may be under way on one connection; more are left out, because
/// each holds a copy of the member table until the peer has read it.
const MAX_SYNCS: usize = 4;

/// The size that the system cuts to when it does not cut.
const UNCUT: usize = usize::MAX;

/// Threads that read one stream at the same time. More than one or two is a mistake.
const MAX_READERS: usize = 16;

/// Requests that are given to an inline handler together, and those that there is room for from the
/// beginning.
const MAX_ASKED_TOGETHER: usize = 64;
const FEW_ASKED: usize = 16;

/// Effects that a connection keeps room for while there are none.
const MAX_SPARE_EFFECTS: usize = 64;

/// Stream bytes read at once.
const PIECE_BYTES: usize = 64 * 1_024;

/// Receives, and bytes of them, before the rest of a turn has its turn: what arrived is acknowledged
/// and answered while it is in the processor's cache, and a peer that sends without end does not keep
/// the thread.
const MAX_RECEIVES: usize = 64;
const MAX_RECEIVED_BYTES: usize = 256 * 1_024;

/// How long an acknowledgement may wait for something to travel with: less than the 25 ms that peers
/// allow for it (RFC 9000 §18.2), with time for a coarse timer.
const ACK_AFTER: Duration = Duration::from_millis(8);

/// What arrived at once is little up to here, so that its acknowledgement may wait. More is a
/// transfer, whose sender needs to hear soon.
const LITTLE_BYTES: usize = 4 * 1_024;

/// A timer of QUIC that is so far ahead need not be met to the millisecond: it is a probe for packets
/// that were lost together with all after them, not the early repeat of a single one.
const WORTH_LEAVING: Duration = Duration::from_millis(20);

/// After so much was handed to QUIC at once, every acknowledgement of the peer may let more go.
const MUCH_BYTES: usize = 8 * 1_024;
const AFTER_MUCH: Duration = Duration::from_millis(100);

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// TLS.
    Handshaking,
    /// TLS is done; the peer's HELLO is awaited.
    Hello,
    /// The acceptor has answered with its own HELLO and awaits READY.
    Ready,
    /// Both ends know each other; USE is awaited.
    Up,
    /// Application data flows.
    InUse,
    /// Another connection is used; what is under way is finished.
    Draining,
}

/// A replaced connection is kept for so many times the time for which others wait for it. It is closed
/// as soon as both ends have finished, so that this is for a peer that is starved of time and has not
/// heard yet that it is replaced, or for a request that takes long.
const DRAIN_PATIENCE: u32 = 10;

/// What has to be done when the lock is released.
pub(super) enum Effect {
    /// Somebody has an answer.
    Answer { awaited: Awaited, outcome: Outcome },
    /// A handler that promised not to block has requests.
    Requests(Asked),
    /// A handler that promised not to block has a message.
    Message {
        handler: Arc<InlineMessages>,
        message: Message,
    },
    /// Bytes, or the end, of a stream that somebody reads.
    Readable(Arc<Slot<()>>),
    /// An application has a stream that the peer opened.
    Offer { inbox: Arc<Inbox>, stream: Stream },
}

/// Requests of one application that came one after the other.
pub(super) struct Asked {
    pub(super) inbox: Arc<Inbox>,
    pub(super) handler: Arc<InlineRequests>,
    pub(super) list: Vec<AskedOne>,
    /// Answers that the outbox counts as being made: at least as many.
    pub(super) places: usize,
}

/// One of them.
pub(super) struct AskedOne {
    pub(super) id: u64,
    pub(super) payload: Vec<u8>,
    pub(super) expires_at: Instant,
}

/// A health ping on its way: when it left, and who waits for the answer.
type Ping = (Instant, Option<Sender<Duration>>);

pub(super) struct Driver {
    id: ConnectionId,
    pub(super) quic: Quic,
    pub(super) inflow: Inflow,
    pub(super) phase: Phase,
    /// Why it is over. Nothing changes any more once this is set.
    pub(super) closed: Option<CloseReason>,
    /// What we decided before quiche knew.
    closing: Option<CloseReason>,
    /// Datagrams that the socket did not take yet, and their size.
    unsent: Vec<u8>,
    unsent_segment: usize,
    /// The size that the system cuts batches to.
    segment: usize,
    /// How large datagrams may be.
    size: PathSize,
    /// Whether several datagrams go in one send.
    gso: bool,
    /// The datagram with our CONNECTION_CLOSE.
    pub(super) farewell: Vec<u8>,
    /// The deadline the worker sleeps towards.
    pub(super) armed: Option<Instant>,
    /// The host refused the port at that time and nothing was heard since.
    refused_at: Option<Instant>,
    pings: BTreeMap<u64, Ping>,
    next_ping: u64,
    drained: bool,
    peer_drained: bool,
    /// Something panicked inside quiche on a caller's thread.
    pub(super) is_broken: bool,
    /// What the reactor has not taken yet.
    pub(super) notices: VecDeque<Notice>,
    local: SocketAddr,
    expected: Option<NodeId>,
    first: Option<Datagram>,
    /// Handshake and HELLO must be done by then.
    deadline: Instant,
    heard_at: Instant,
    next_ping_at: Option<Instant>,
    up_at: Option<Instant>,
    drain_until: Option<Instant>,
    info_at: Instant,
    last_ping: Option<Duration>,
    missed_pings: u64,
    missed_pings_total: u64,
    /// How many packets had come and how many probe time-outs there had been when a packet was
    /// last seen, and whether the silence since was told.
    silence: Silence,
    /// The dialler's HELLO, until its READY.
    greeted: Option<Hello>,
    pub(super) effects: VecDeque<Effect>,
    spare_effects: VecDeque<Effect>,
    /// Replies that have just been read.
    replies: Vec<(u64, ReplyStatus, Vec<u8>)>,
    /// Streams of the peer that it reads no answer on, and that are still to come.
    early_refusals: BTreeSet<u64>,
    early_withdrawals: Early,
    /// Datagrams of applications that were read, or counted as dropped.
    datagrams_seen: usize,
    /// What applications have read of their streams since the peer was last granted more.
    read_bytes: u64,
    /// Somebody runs effects; what comes meanwhile is for the same thread, so that order holds.
    pub(super) is_delivering: bool,
    /// Datagrams are to be made although the outbox is empty.
    must_send: bool,
    /// An acknowledgement waits since.
    ack_owed_at: Option<Instant>,
    wrote_much_at: Option<Instant>,
    lost_packets: usize,
}

/// Where the counters of QUIC stood when the peer was last heard.
#[derive(Debug, Clone, Copy, Default)]
struct Silence {
    received: usize,
    timeouts: usize,
    told: bool,
}

/// Why a connection is not one of ours.
type Refusal = (CloseCode, CloseReason);

/// What a driver is made of.
pub(super) struct Beginning {
    pub(super) id: ConnectionId,
    pub(super) quic: Quic,
    pub(super) gso: bool,
    pub(super) local: SocketAddr,
    pub(super) expected: Option<NodeId>,
    pub(super) first: Option<Datagram>,
    pub(super) deadline: Instant,
    /// Also what batches are cut to at first.
    pub(super) max_datagram_bytes: usize,
    pub(super) now: Instant,
}

impl Driver {
    pub(super) fn new(beginning: Beginning) -> Self {
        let now = beginning.now;
        Self {
            id: beginning.id,
            quic: beginning.quic,
            inflow: Inflow::default(),
            phase: Phase::Handshaking,
            closed: None,
            closing: None,
            unsent: Vec::new(),
            unsent_segment: 0,
            segment: beginning.max_datagram_bytes,
            size: PathSize::new(beginning.max_datagram_bytes, now),
            gso: beginning.gso,
            farewell: Vec::new(),
            armed: None,
            refused_at: None,
            pings: BTreeMap::new(),
            next_ping: 1,
            drained: false,
            peer_drained: false,
            is_broken: false,
            notices: VecDeque::new(),
            local: beginning.local,
            expected: beginning.expected,
            first: beginning.first,
            deadline: beginning.deadline,
            heard_at: now,
            next_ping_at: None,
            up_at: None,
            drain_until: None,
            info_at: now,
            last_ping: None,
            missed_pings: 0,
            missed_pings_total: 0,
            silence: Silence::default(),
            greeted: None,
            effects: VecDeque::new(),
            spare_effects: VecDeque::new(),
            replies: Vec::new(),
            early_refusals: BTreeSet::new(),
            early_withdrawals: Early::default(),
            datagrams_seen: 0,
            read_bytes: 0,
            is_delivering: false,
            must_send: true,
            ack_owed_at: None,
            wrote_much_at: None,
            lost_packets: 0,
        }
    }

    // ---- what arrives

    /// Takes in the datagram that opened an accepted connection.
    pub(super) fn take_first(&mut self, now: Instant) {
        if let Some(first) = self.first.take() {
            self.inject(first, now);
        }
    }

    /// Takes in a datagram that came another way than by the connection's own socket.
    pub(super) fn inject(&mut self, mut datagram: Datagram, now: Instant) {
        self.heard(now);
        self.must_send = true;
        let info = self.info_of(datagram.from);
        let _ = self.quic.recv(&mut datagram.bytes, info);
    }

    fn info_of(&self, from: SocketAddr) -> quiche::RecvInfo {
        quiche::RecvInfo {
            from,
            to: self.local,
        }
    }

    fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.refused_at = None;
    }

    /// Reads the socket until it is empty or the budget is used up; then the next sleep ends at once.
    /// `first`: what has been received of it before. `is_one_enough`: a little that arrived is probably
    /// all that there is, and another call only to learn that costs as much as to handle it. Returns how
    /// many receives brought something.
    pub(super) fn receive(
        &mut self,
        connection: &Connection,
        socket: &UdpSocket,
        first: Option<io::Result<Arrived>>,
        is_one_enough: bool,
        now: Instant,
    ) -> usize {
        let (mut bytes, mut count) = (0, 0);
        let mut is_enough = |received: Received| {
            bytes += received.bytes;
            count += 1;
            bytes >= MAX_RECEIVED_BYTES || (is_one_enough && bytes <= LITTLE_BYTES)
        };
        let mut buffer = match first {
            Some(Ok(mut arrived)) => {
                self.take_in(connection, &mut arrived.buffer, arrived.received, now);
                if is_enough(arrived.received) {
                    return count;
                }
                arrived.buffer
            }
            Some(Err(error)) => {
                self.note_failed(&error, now);
                buffers::take()
            }
            None => buffers::take(),
        };
        for _ in 0..MAX_RECEIVES {
            match udp::receive(socket, &mut buffer) {
                Ok(received) => {
                    self.take_in(connection, &mut buffer, received, now);
                    if is_enough(received) {
                        break;
                    }
                }
                Err(error) if is_passing(&error) => self.note_failed(&error, now),
                // Nothing there, or nothing that this thread could mend.
                Err(_) => break,
            }
        }
        count
    }

    fn note_failed(&mut self, error: &io::Error, now: Instant) {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            self.note_refused(now);
        }
    }

    /// Anybody can forge it, so it is a hint: ask at once, and give up soon.
    fn note_refused(&mut self, now: Instant) {
        if self.refused_at.is_none() {
            self.refused_at = Some(now);
            let _ = self.quic.send_ack_eliciting();
            self.must_send = true;
            self.doubt(Sign::Refused);
        }
    }

    /// Takes in what one receive brought.
    fn take_in(
        &mut self,
        connection: &Connection,
        buffer: &mut [u8],
        received: Received,
        now: Instant,
    ) {
        let bytes = &mut buffer[..received.bytes];
        if bytes.len() > LITTLE_BYTES || bytes.len() > 2 * received.segment {
            self.must_send = true;
        }
        let info = self.info_of(received.from);
        let is_from_peer = received.from == connection.addr;
        if bytes.is_empty() && is_from_peer {
            // It carries nothing, and is no sign of QUIC.
            return;
        }
        for datagram in bytes.chunks_mut(received.segment) {
            if is_from_peer && self.is_ours(connection, datagram) {
                self.heard(now);
                // An error is in the connection's state, or a datagram to ignore.
                let _ = self.quic.recv(datagram, info);
                if self.quic.dgram_recv_queue_len() >= DATAGRAM_QUEUE / 2 {
                    // Before QUIC drops some for want of room.
                    self.read_datagrams(connection);
                }
                continue;
            }
            // Came between `bind` and `connect`, or opens a new connection from the same address: the
            // listener knows what to do with it.
            connection.context.counters.strays.fetch_add(1, Relaxed);
            if self.notices.len() <= MAX_KEPT_NOTICES {
                let datagram = Datagram {
                    from: received.from,
                    bytes: datagram.to_vec(),
                };
                self.notices.push_back(Notice::Stray { datagram });
            }
        }
    }

    /// Whether a datagram is for this connection. Accepted connections may get the first datagram of
    /// a new life of their peer.
    fn is_ours(&self, connection: &Connection, datagram: &[u8]) -> bool {
        let Some(&first) = datagram.first() else {
            return true;
        };
        if connection.side == Side::Dialed || !self.quic.is_established() {
            return true;
        }
        // The destination id follows the first byte, and in long headers the version and a length
        // (RFC 9000 §17).
        let id = if first & 0x80 == 0 {
            datagram.get(1..1 + ID_BYTES)
        } else {
            let length = datagram.get(5).copied().unwrap_or(0).into();
            datagram.get(6..).and_then(|rest| rest.get(..length))
        };
        id.is_none_or(|id| self.quic.source_ids().any(|own| own.as_ref() == id))
    }

    /// Carries a command out. `false` when the connection is to vanish.
    pub(super) fn obey(&mut self, connection: &Connection, command: Command, now: Instant) -> bool {
        match command {
            Command::Inject(datagram) => {
                if datagram.from == connection.addr {
                    self.inject(datagram, now);
                }
            }
            Command::Control(frame) => connection.push_control(frame),
            Command::Controls(frames) => {
                for frame in frames {
                    connection.push_control(frame);
                }
            }
            Command::Use => {
                if self.phase == Phase::Up {
                    connection.push_control(Control::Use);
                    self.open_gate(connection);
                }
            }
            Command::Drain => {
                if matches!(self.phase, Phase::Up | Phase::InUse) {
                    self.phase = Phase::Draining;
                    let patience = connection.context.config.drain_timeout * DRAIN_PATIENCE;
                    self.drain_until = Some(now + patience);
                    connection.outbox.lock().gate = Gate::Superseded;
                    connection.changed.notify_all();
                }
            }
            Command::Close(code) => self.close(code),
            Command::StartSync(frames) => {
                if self.syncs(connection) < MAX_SYNCS {
                    let stream = connection.outbox.lock().start_sync(&frames);
                    // The answer comes without a preamble: the stream is known.
                    let answer = Incoming::opened_here(StreamKind::Sync, "", MAX_CONTROL_BYTES);
                    self.inflow.streams.insert(stream, answer);
                }
            }
            Command::AnswerSync { stream, frames } => {
                // Who asks again and again and does not read wants to fill this node's memory.
                if self.syncs(connection) > MAX_SYNCS {
                    let counters = &connection.context.counters;
                    counters.sync_floods.fetch_add(1, Relaxed);
                    self.close(CloseCode::Overloaded);
                } else {
                    connection.outbox.lock().finish_sync(stream, &frames);
                }
            }
            Command::Abandon => return false,
        }
        true
    }

    fn open_gate(&mut self, connection: &Connection) {
        self.phase = Phase::InUse;
        connection.outbox.lock().gate = Gate::Open;
        connection.changed.notify_all();
    }

    /// Syncs that are under way in either direction.
    fn syncs(&self, connection: &Connection) -> usize {
        let incoming = self.inflow.streams.iter();
        let incoming = incoming.filter(|(_, stream)| stream.is(StreamKind::Sync));
        let mut ids: Vec<u64> = incoming.map(|(id, _)| *id).collect();
        ids.extend(connection.outbox.lock().syncs());
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    // ---- a turn

    /// After something arrived or became due: everything that follows from it, but for effects and
    /// for what is to be sent.
    pub(super) fn proceed(&mut self, connection: &Connection, now: Instant) {
        if self.quic.timeout_instant().is_some_and(|at| at <= now) {
            self.quic.on_timeout();
            self.must_send = true;
            self.note_silence();
        }
        self.advance(connection, now);
        self.read_streams(connection, now);
        self.read_datagrams(connection);
        self.acknowledge(connection);
        self.on_time(connection, now);
        // Whether it is idle changes with much of the above.
        if self.drain_until.is_some() {
            self.drain(connection, now);
        }
    }

    /// Moves the handshake on: certificate, HELLO, READY.
    fn advance(&mut self, connection: &Connection, now: Instant) {
        if self.phase != Phase::Handshaking || !self.quic.is_established() {
            return;
        }
        match self.judge(connection) {
            Ok(peer) => {
                log::trace!(target: "transport", peer:%, addr:% = connection.addr;
                    "TLS handshake done after {:?}",
                    connection.context.config.dial_timeout
                        .saturating_sub(self.deadline.saturating_duration_since(now)));
                // Set once: this phase is left for good.
                let _ = connection.peer.set(peer);
                self.phase = Phase::Hello;
                if connection.side == Side::Dialed {
                    connection.push_control(hello(connection));
                    let answer = Incoming::opened_here(
                        StreamKind::Control,
                        "",
                        crate::control::MAX_HELLO_BYTES,
                    );
                    self.inflow.streams.insert(CONTROL, answer);
                }
            }
            Err((code, reason)) => {
                // The end of our handshake goes first: without it an acceptor has no keys to read
                // the close with, and would wait for its deadline.
                self.send_datagrams(connection, now);
                self.closing = Some(reason);
                self.close(code);
            }
        }
    }

    /// Who the peer's certificate says it is. TLS has judged the chain; this judges the name.
    fn judge(&self, connection: &Connection) -> Result<NodeId, Refusal> {
        let wrong = |why: String| (CloseCode::Identity, CloseReason::WrongIdentity(why));
        let leaf = self
            .quic
            .peer_cert()
            .ok_or_else(|| wrong("no certificate".into()))?;
        let (node, cluster) = trust::certified_names(leaf).map_err(wrong)?;
        let context = &connection.context;
        if cluster != context.cluster {
            return Err(wrong(format!("certificate is for cluster {cluster}")));
        }
        if node == context.node {
            // Ourselves, or somebody with our certificate: the HELLO tells which.
            return Ok(node);
        }
        match &self.expected {
            Some(expected) if *expected != node => Err(wrong(format!(
                "certificate is for {node}, expected {expected}"
            ))),
            Some(_) | None => Ok(node),
        }
    }

    fn read_streams(&mut self, connection: &Connection, now: Instant) {
        if !self.quic.is_established() || self.phase == Phase::Handshaking {
            return;
        }
        let readable = self.quic.readable();
        let stalled = std::mem::take(&mut self.inflow.stalled);
        for id in readable {
            if !stalled.contains(&id) && !self.visit(connection, id, now) {
                return;
            }
        }
        for id in stalled {
            if !self.visit(connection, id, now) {
                return;
            }
        }
    }

    /// Reads a stream, if it may be read now. `false` when the connection is to be closed.
    fn visit(&mut self, connection: &Connection, id: u64, now: Instant) -> bool {
        let may_read = match self.phase {
            Phase::Handshaking => false,
            // Nothing but HELLO and READY is read before the peer is known.
            Phase::Hello | Phase::Ready => id == CONTROL,
            // Of applications, nothing before USE. A bidirectional stream that is no sync waits too.
            Phase::Up => id == CONTROL || is_bidirectional(id),
            Phase::InUse | Phase::Draining => true,
        };
        if !may_read {
            return true;
        }
        if self.notices.len() > MAX_KEPT_NOTICES && is_bidirectional(id) {
            self.inflow.stalled.insert(id);
            return true;
        }
        if let Err((code, reason)) = self.read_stream(connection, id, now) {
            log::debug!(target: "transport", addr:% = connection.addr, stream = id, reason:%; "closing");
            self.closing = Some(reason);
            self.close(code);
            return false;
        }
        true
    }

    fn read_stream(
        &mut self,
        connection: &Connection,
        id: u64,
        now: Instant,
    ) -> Result<(), Refusal> {
        if let Some(raw) = self.inflow.streams.get_mut(&id)
            && raw.is(StreamKind::Raw)
            && !raw.refused
        {
            // Its bytes stay with QUIC until the application takes them.
            for reader in raw.readers.drain(..) {
                self.effects.push_back(Effect::Readable(reader));
            }
            return Ok(());
        }
        let incoming = self.inflow.streams.remove(&id);
        let mut incoming = incoming.unwrap_or_else(Incoming::new);
        match self.read_incoming(connection, id, &mut incoming, now)? {
            // A finished stream is forgotten, unless something of it still waits; the control
            // stream must not finish while the connection lives.
            Reading::Finished if id == CONTROL => return Err(protocol(FramingError::Short)),
            // Whoever collects a sync must hear of its end, also when it comes too early.
            end @ (Reading::Finished | Reading::Reset) => {
                if incoming.preamble.is_none() && is_theirs(connection, id) {
                    // Its opener gave it up before it said what it is for. It has two halves all the same.
                    self.reset_half(connection, id);
                }
                if incoming.is(StreamKind::LargeRequest) && incoming.frames == 0 {
                    self.note_withdrawn(connection);
                }
                if incoming.is(StreamKind::Sync) {
                    self.notices.push_back(Notice::SyncEnd {
                        connection: connection.id,
                        stream: id,
                        is_whole: matches!(end, Reading::Finished),
                    });
                }
                self.must_send = true;
            }
            Reading::Stalled => {
                self.inflow.stalled.insert(id);
                self.inflow.streams.insert(id, incoming);
            }
            Reading::Waiting => {
                let is_large = incoming.partial_bytes() > PIECE_BYTES;
                self.inflow.streams.insert(id, incoming);
                let limit = MAX_PARTIAL_UNITS * connection.context.config.max_message_bytes;
                if is_large && self.inflow.partial_bytes() > limit {
                    let reason = CloseReason::Local(CloseCode::Overloaded);
                    return Err((CloseCode::Overloaded, reason));
                }
            }
        }
        Ok(())
    }

    fn read_incoming(
        &mut self,
        connection: &Connection,
        id: u64,
        incoming: &mut Incoming,
        now: Instant,
    ) -> Result<Reading, Refusal> {
        if let Some(unit) = incoming.blocked.take() {
            let delivered = self.deliver(connection, id, incoming, Cow::Owned(unit), now);
            self.settle_replies(connection, incoming);
            self.settle_places(connection);
            match delivered? {
                Delivered::Yes => {}
                Delivered::Blocked => return Ok(Reading::Stalled),
                Delivered::Ignore => refuse(connection, id, incoming),
            }
        }
        if incoming.refused {
            return Ok(self.discard_rest(id, incoming));
        }
        if incoming
            .waits_as
            .is_some_and(|kind| !self.inflow.may_read_single(kind))
        {
            return Ok(Reading::Stalled);
        }
        let leftover = std::mem::take(&mut incoming.leftover);
        if let Some(end) = self.decode(connection, id, incoming, &leftover, now)? {
            return Ok(end);
        }
        let mut piece = buffers::take();
        loop {
            if incoming.fin {
                let whole = incoming.decoder.is_at_boundary();
                return if whole {
                    Ok(Reading::Finished)
                } else {
                    Err(protocol(FramingError::Short))
                };
            }
            if self.notices.len() > MAX_KEPT_NOTICES && is_bidirectional(id) {
                return Ok(Reading::Stalled);
            }
            let length = match self.quic.stream_recv(id, &mut piece) {
                Ok((length, fin)) => {
                    incoming.fin = fin;
                    if length == 0 && !fin {
                        return Ok(Reading::Waiting);
                    }
                    length
                }
                Err(quiche::Error::Done) => return Ok(Reading::Waiting),
                // Reset by the peer, or gone: nothing more comes of it.
                Err(_) => return Ok(Reading::Reset),
            };
            if let Some(end) = self.decode(connection, id, incoming, &piece[..length], now)? {
                return Ok(end);
            }
            // Less than asked for is all there was. Another call would only say so.
            if length < piece.len() && !incoming.fin {
                return Ok(Reading::Waiting);
            }
        }
    }

    /// Makes units of bytes and delivers them. `Some` when the stream is not read on now.
    fn decode(
        &mut self,
        connection: &Connection,
        id: u64,
        incoming: &mut Incoming,
        input: &[u8],
        now: Instant,
    ) -> Result<Option<Reading>, Refusal> {
        let end = self.decode_units(connection, id, incoming, input, now);
        self.settle_replies(connection, incoming);
        self.settle_places(connection);
        end
    }

    fn decode_units(
        &mut self,
        connection: &Connection,
        id: u64,
        incoming: &mut Incoming,
        mut input: &[u8],
        now: Instant,
    ) -> Result<Option<Reading>, Refusal> {
        if input.is_empty() {
            return Ok(None);
        }
        if incoming.preamble.is_none() {
            let Some(preamble) = incoming.decoder.preamble(&mut input).map_err(protocol)? else {
                return Ok(None);
            };
            match self.open(connection, id, incoming, preamble)? {
                Opened::Framed => {}
                Opened::Raw => {
                    incoming.leftover = input.to_vec();
                    return Ok(Some(Reading::Waiting));
                }
                Opened::Unwanted => {
                    refuse(connection, id, incoming);
                    return Ok(Some(self.discard_rest(id, incoming)));
                }
                Opened::Early(preamble) => {
                    // USE is under way on the control stream, or others come first; then this is read
                    // again.
                    incoming.leftover = [&preamble.encode()[..], input].concat();
                    incoming.decoder = Decoder::new(crate::control::MAX_HELLO_BYTES);
                    return Ok(Some(Reading::Stalled));
                }
            }
        }
        while let Some(unit) = incoming.decoder.unit(&mut input).map_err(protocol)? {
            let is_single = incoming
                .preamble
                .as_ref()
                .is_some_and(|p| p.kind.is_single());
            if is_single && std::mem::replace(&mut incoming.frames, 1) > 0 {
                return Err(protocol(FramingError::TooLarge));
            }
            match self.deliver(connection, id, incoming, unit, now)? {
                Delivered::Yes => {}
                Delivered::Blocked => {
                    incoming.leftover = input.to_vec();
                    return Ok(Some(Reading::Stalled));
                }
                Delivered::Ignore => {
                    refuse(connection, id, incoming);
                    return Ok(Some(self.discard_rest(id, incoming)));
                }
            }
        }
        Ok(None)
    }

    /// Drops what is still to come on a refused stream, whose end may have come with what was read.
    fn discard_rest(&mut self, id: u64, incoming: &Incoming) -> Reading {
        if incoming.fin {
            return Reading::Finished;
        }
        self.discard(id)
    }

    /// Drops what comes on a stream, up to its end.
    fn discard(&mut self, id: u64) -> Reading {
        self.must_send = true;
        loop {
            match self.quic.stream_discard(id, PIECE_BYTES) {
                Ok((_, true)) => return Reading::Finished,
                Ok((0, false)) | Err(quiche::Error::Done) => return Reading::Waiting,
                // Nothing of it has been sent, so that nothing can have come.
                Err(quiche::Error::InvalidStreamState(_)) if self.is_unborn(id) => {
                    return Reading::Waiting;
                }
                Ok(_) => {}
                Err(_) => return Reading::Reset,
            }
        }
    }

    /// Checks what a stream says of itself and sets its limits.
    fn open(
        &mut self,
        connection: &Connection,
        id: u64,
        incoming: &mut Incoming,
        preamble: Preamble,
    ) -> Result<Opened, Refusal> {
        let max_message = connection.context.config.max_message_bytes;
        let is_theirs = |id| is_theirs(connection, id);
        let (fits, max_unit) = match preamble.kind {
            StreamKind::Control => (id == CONTROL, crate::control::MAX_HELLO_BYTES),
            StreamKind::Sync => (id != CONTROL && is_bidirectional(id), MAX_CONTROL_BYTES),
            StreamKind::Messages => (!is_bidirectional(id), max_message),
            StreamKind::Requests | StreamKind::LargeRequest => (
                !is_bidirectional(id),
                max_message + framing::REQUEST_HEAD_BYTES,
            ),
            StreamKind::Replies | StreamKind::LargeReply => (
                !is_bidirectional(id),
                max_message + framing::REPLY_HEAD_BYTES,
            ),
            StreamKind::Raw => (id != CONTROL && is_theirs(id), 0),
        };
        if !fits {
            return Err(protocol(FramingError::Preamble));
        }
        let is_app = preamble.kind != StreamKind::Control && preamble.kind != StreamKind::Sync;
        let may_open = !is_app || self.inflow.may_open(&preamble, is_theirs);
        if preamble.kind == StreamKind::Raw {
            if self.phase == Phase::Up {
                return Ok(Opened::Early(preamble));
            }
            let is_taken = may_open && self.offer_raw(connection, id, &preamble);
            incoming.preamble = Some(preamble);
            return Ok(if is_taken {
                Opened::Raw
            } else {
                // Both directions: the peer may wait for bytes of ours.
                self.reset_half(connection, id);
                Opened::Unwanted
            });
        }
        if preamble.kind.is_single() {
            if !self.inflow.may_read_single(preamble.kind) {
                incoming.waits_as = Some(preamble.kind);
                return Ok(Opened::Early(preamble));
            }
        } else if !may_open {
            return Err(protocol(FramingError::Preamble));
        }
        incoming.decoder.set_max_unit_bytes(max_unit);
        let registry = &connection.context.registry;
        let is_for_nobody =
            preamble.kind == StreamKind::Messages && registry.get(&preamble.app).is_none();
        if is_for_nobody {
            note_nobody(connection, &preamble.app);
        }
        incoming.preamble = Some(preamble);
        Ok(if is_for_nobody {
            Opened::Unwanted
        } else {
            Opened::Framed
        })
    }

    /// Gives applications their datagrams: the length of a name, the name, the payload.
    fn read_datagrams(&mut self, connection: &Connection) {
        if !matches!(self.phase, Phase::InUse | Phase::Draining) {
            return;
        }
        while let Ok(mut datagram) = self.quic.dgram_recv_buf() {
            self.datagrams_seen += 1;
            let name = datagram
                .split_first()
                .and_then(|(length, rest)| rest.get(..usize::from(*length)))
                .and_then(|name| std::str::from_utf8(name).ok());
            let inbox = name.and_then(|name| connection.context.registry.get(name));
            let (Some(name), Some(inbox)) = (name, inbox) else {
                note_nobody(connection, name.unwrap_or_default());
                continue;
            };
            datagram.drain(..=name.len());
            inbox.deliver_datagram(connection.peer_name(), datagram);
        }
        // A packet may bring more than QUIC has room for: of those it drops the oldest.
        let received = self.quic.stats().dgram_recv;
        let dropped = received.saturating_sub(self.datagrams_seen);
        if dropped > 0 {
            self.datagrams_seen = received;
            let counters = &connection.context.counters;
            counters
                .datagrams_dropped
                .fetch_add(dropped as u64, Relaxed);
        }
    }

    /// Ends this end's half of a stream of the peer that nobody here takes.
    fn reset_half(&mut self, connection: &Connection, id: u64) {
        self.early_refusals.remove(&id);
        let mut outbox = connection.outbox.lock();
        outbox.adopt_raw(id);
        outbox.reset_raw(id, NO_SUCH_APP);
    }

    /// Offers an application a stream of its own that the peer opened.
    fn offer_raw(&mut self, connection: &Connection, id: u64, preamble: &Preamble) -> bool {
        let Some(inbox) = connection.context.registry.get(&preamble.app) else {
            note_nobody(connection, &preamble.app);
            return false;
        };
        let mut outbox = connection.outbox.lock();
        outbox.adopt_raw(id);
        if self.early_refusals.remove(&id) {
            outbox.refuse(id, &mut self.quic, NO_SUCH_APP);
        }
        drop(outbox);
        let stream = Stream::new(Arc::new(RawPipe::new(connection.arc(), id)));
        self.effects.push_back(Effect::Offer { inbox, stream });
        true
    }

    fn deliver(
        &mut self,
        connection: &Connection,
        id: u64,
        incoming: &mut Incoming,
        unit: Cow<'_, [u8]>,
        now: Instant,
    ) -> Result<Delivered, Refusal> {
        let Some(preamble) = &incoming.preamble else {
            return Ok(Delivered::Ignore);
        };
        match preamble.kind {
            StreamKind::Control => {
                let frame = Control::decode(&unit).map_err(|_| protocol(FramingError::Preamble))?;
                self.handle_control(connection, incoming, frame, now)?;
                Ok(Delivered::Yes)
            }
            StreamKind::Sync => {
                incoming.frames += 1;
                if incoming.frames > MAX_SYNC_FRAMES {
                    return Err(protocol(FramingError::TooLarge));
                }
                let frame =
                    SyncFrame::decode(&unit).map_err(|_| protocol(FramingError::Preamble))?;
                self.notices.push_back(Notice::Sync {
                    connection: connection.id,
                    stream: id,
                    frame,
                });
                Ok(Delivered::Yes)
            }
            StreamKind::Messages => Ok(self.deliver_message(connection, id, incoming, unit)),
            StreamKind::Requests | StreamKind::LargeRequest => {
                self.deliver_request(connection, incoming, unit, now)
            }
            StreamKind::Replies | StreamKind::LargeReply => {
                let reply = framing::split_reply(unit).map_err(protocol)?;
                self.replies.push(reply);
                Ok(Delivered::Yes)
            }
            StreamKind::Raw => Err(protocol(FramingError::Preamble)),
        }
    }

    fn deliver_message(
        &mut self,
        connection: &Connection,
        id: u64,
        incoming: &mut Incoming,
        unit: Cow<'_, [u8]>,
    ) -> Delivered {
        incoming.find_inbox(&connection.context.registry);
        let Some(inbox) = &incoming.inbox else {
            let app = incoming.preamble.as_ref().map(|preamble| &*preamble.app);
            note_nobody(connection, app.unwrap_or_default());
            return Delivered::Ignore;
        };
        let Some(permit) = inbox.message_budget.take(unit.len(), &connection.waker) else {
            incoming.blocked = Some(unit.into_owned());
            return Delivered::Blocked;
        };
        if incoming.delivered == incoming.acknowledged {
            self.inflow.unacknowledged.push(id);
        }
        incoming.delivered += 1;
        let message = Message::new(connection.peer_name(), unit.into_owned(), permit);
        match inbox.inline_messages() {
            Some(handler) => {
                inbox.figures.received.fetch_add(1, Relaxed);
                self.effects.push_back(Effect::Message { handler, message });
            }
            None => inbox.deliver(message),
        }
        Delivered::Yes
    }

    fn deliver_request(
        &mut self,
        connection: &Connection,
        incoming: &mut Incoming,
        unit: Cow<'_, [u8]>,
        now: Instant,
    ) -> Result<Delivered, Refusal> {
        if framing::request_id(&unit).is_some_and(|id| self.early_withdrawals.take(id)) {
            self.note_withdrawn(connection);
            return Ok(Delivered::Yes);
        }
        incoming.find_inbox(&connection.context.registry);
        let inbox = incoming.inbox.as_ref();
        let Some(inbox) = inbox.filter(|inbox| inbox.takes_requests.load(Relaxed)) else {
            let (id, _, _) = framing::split_request(unit).map_err(protocol)?;
            let head = framing::reply_head(id, ReplyStatus::NoHandler);
            let app = incoming.preamble.as_ref().map(|preamble| &*preamble.app);
            let app: Arc<str> = Arc::from(app.unwrap_or_default());
            let mut outbox = connection.outbox.lock();
            if !outbox.has_room_for_stranger(&app, head.len()) {
                // It asks for what is not there and does not read that it is not.
                let reason = CloseReason::Local(CloseCode::Overloaded);
                return Err((CloseCode::Overloaded, reason));
            }
            outbox.push(StreamKind::Replies, &app, Unit::new(&head, &[]));
            return Ok(Delivered::Yes);
        };
        let expiry = |timeout_ms: u32| now + Duration::from_millis(timeout_ms.into());
        if let Some(Effect::Requests(asked)) = self.effects.back_mut()
            && asked.list.len() < asked.places
            && Arc::ptr_eq(&asked.inbox, inbox)
        {
            let (id, timeout_ms, payload) = framing::split_request(unit).map_err(protocol)?;
            asked.list.push(AskedOne {
                id,
                payload,
                expires_at: expiry(timeout_ms),
            });
            return Ok(Delivered::Yes);
        }
        if let Some(handler) = inbox.inline_requests() {
            // It holds nothing for longer than this turn, so it needs no room; but its replies do.
            let mut outbox = connection.outbox.lock();
            let limit = connection.context.config.max_requests_in_flight;
            let places = limit.saturating_sub(outbox.answering);
            if places == 0 || !outbox.has_room(StreamKind::Replies, &inbox.name, 0) {
                incoming.blocked = Some(unit.into_owned());
                return Ok(Delivered::Blocked);
            }
            let places = places.min(MAX_ASKED_TOGETHER);
            outbox.answering += places;
            drop(outbox);
            let mut asked = Asked {
                inbox: Arc::clone(inbox),
                handler,
                list: Vec::with_capacity(FEW_ASKED),
                places,
            };
            let (id, timeout_ms, payload) = framing::split_request(unit).map_err(protocol)?;
            asked.list.push(AskedOne {
                id,
                payload,
                expires_at: expiry(timeout_ms),
            });
            self.effects.push_back(Effect::Requests(asked));
            return Ok(Delivered::Yes);
        }
        let Some(permit) = inbox.request_budget.take(unit.len(), &connection.waker) else {
            incoming.blocked = Some(unit.into_owned());
            return Ok(Delivered::Blocked);
        };
        let (id, timeout_ms, payload) = framing::split_request(unit).map_err(protocol)?;
        connection.outbox.lock().asked.insert(id);
        inbox.deliver_request(PendingRequest {
            request: Request::new(connection.peer_name(), payload),
            id,
            expires_at: expiry(timeout_ms),
            replier: connection.arc() as Arc<dyn Replier>,
            permit,
        });
        Ok(Delivered::Yes)
    }

    /// Gives back places for answers that were taken ahead and are not needed.
    fn settle_places(&mut self, connection: &Connection) {
        if let Some(Effect::Requests(asked)) = self.effects.back_mut()
            && asked.places > asked.list.len()
        {
            let surplus = asked.places - asked.list.len();
            asked.places = asked.list.len();
            let mut outbox = connection.outbox.lock();
            outbox.answering = outbox.answering.saturating_sub(surplus);
        }
    }

    /// Finds who waits for the replies that have been read from a stream.
    fn settle_replies(&mut self, connection: &Connection, incoming: &Incoming) {
        if self.replies.is_empty() {
            return;
        }
        let mut outbox = connection.outbox.lock();
        for (id, status, payload) in self.replies.drain(..) {
            let Some(awaited) = outbox.answered(id) else {
                // It gave up before the reply came.
                let counters = &connection.context.counters;
                counters.replies_late.fetch_add(1, Relaxed);
                continue;
            };
            let outcome = match status {
                ReplyStatus::Ok => Ok(payload),
                ReplyStatus::Error => Err(RequestError::Remote {
                    peer: connection.peer_name(),
                    message: String::from_utf8_lossy(&payload).into_owned(),
                }),
                ReplyStatus::NoHandler => Err(RequestError::NoHandler {
                    peer: connection.peer_name(),
                    app: incoming
                        .preamble
                        .as_ref()
                        .map_or_else(String::new, |preamble| preamble.app.clone()),
                }),
                ReplyStatus::Expired => Err(RequestError::Remote {
                    peer: connection.peer_name(),
                    message: "the request expired before it was handled".to_owned(),
                }),
            };
            self.effects.push_back(Effect::Answer { awaited, outcome });
        }
        drop(outbox);
        if self.replies.capacity() > MAX_SPARE_EFFECTS {
            self.replies = Vec::new();
        }
    }

    fn handle_control(
        &mut self,
        connection: &Connection,
        incoming: &mut Incoming,
        frame: Control,
        now: Instant,
    ) -> Result<(), Refusal> {
        let out_of_order = Err(protocol(FramingError::Preamble));
        match (self.phase, frame) {
            (Phase::Hello, Control::Hello(hello)) => {
                greet(connection, &hello)?;
                incoming.decoder.set_max_unit_bytes(MAX_CONTROL_BYTES);
                connection.set_info(ConnectionInfo {
                    peer: Some(hello.node.clone()),
                    ..(*connection.info()).clone()
                });
                match connection.side {
                    Side::Dialed => {
                        connection.push_control(Control::Ready);
                        self.come_up(connection, hello.boot, hello.keyring_digest, now);
                    }
                    Side::Accepted => {
                        connection.push_control(self::hello(connection));
                        self.phase = Phase::Ready;
                        self.greeted = Some(hello);
                    }
                }
                Ok(())
            }
            (Phase::Ready, Control::Ready) => {
                let Some(hello) = self.greeted.take() else {
                    return out_of_order;
                };
                self.come_up(connection, hello.boot, hello.keyring_digest, now);
                Ok(())
            }
            (Phase::Handshaking | Phase::Hello | Phase::Ready, _)
            | (_, Control::Hello(_) | Control::Ready) => out_of_order,
            (phase, Control::Use) => {
                if connection.peer_name() > connection.context.node {
                    return out_of_order;
                }
                if phase == Phase::Up {
                    self.open_gate(connection);
                    self.notices.push_back(Notice::Used {
                        connection: connection.id,
                    });
                }
                Ok(())
            }
            (_, Control::Ping { id }) => {
                let reactor_age_ms = connection.context.reactor_age_ms(now);
                if Duration::from_millis(reactor_age_ms) <= REACTOR_FRESH {
                    connection.push_control(Control::Pong { id, reactor_age_ms });
                } else if self.notices.len() <= MAX_KEPT_NOTICES {
                    let connection = connection.id;
                    self.notices.push_back(Notice::Pinged { connection, id });
                }
                Ok(())
            }
            (_, Control::Pong { id, reactor_age_ms }) => {
                self.on_pong(connection, id, reactor_age_ms, now);
                Ok(())
            }
            (_, Control::MessageAck { stream, count }) => {
                connection.outbox.lock().acknowledge(stream, count);
                connection.changed.notify_all();
                Ok(())
            }
            (_, Control::Refused { stream }) => {
                let mut outbox = connection.outbox.lock();
                let is_known = outbox.knows(stream);
                outbox.refuse(stream, &mut self.quic, NO_SUCH_APP);
                let writers = outbox.take_writers(true);
                drop(outbox);
                // Control frames overtake: the stream itself may be still to come.
                let is_to_come = !is_known && is_theirs(connection, stream);
                if is_to_come && self.early_refusals.len() < MAX_RAW_STREAMS {
                    self.early_refusals.insert(stream);
                }
                connection.tell_changed(writers);
                self.must_send = true;
                Ok(())
            }
            (_, Control::Withdrawn { request }) => {
                let was_asked = connection.outbox.lock().asked.remove(&request);
                if was_asked || self.inflow.withdraw_blocked(request) {
                    self.note_withdrawn(connection);
                } else {
                    // Control frames overtake: the request may be still to come.
                    self.early_withdrawals.note(request);
                }
                Ok(())
            }
            (_, Control::Drained) => {
                self.peer_drained = true;
                Ok(())
            }
            (_, Control::Unknown) => Ok(()),
            (
                _,
                frame @ (Control::Record(_)
                | Control::LeaveAck { .. }
                | Control::Probe { .. }
                | Control::ProbeAck { .. }
                | Control::Keyring(_)
                | Control::KeysHeld(_)
                | Control::EventClock { .. }
                | Control::UserEvent { .. }),
            ) => {
                let connection = connection.id;
                self.notices
                    .push_back(Notice::Control { connection, frame });
                Ok(())
            }
        }
    }

    /// A request is not answered because its sender has given it up.
    fn note_withdrawn(&self, connection: &Connection) {
        let counters = &connection.context.counters;
        counters.requests_withdrawn.fetch_add(1, Relaxed);
    }

    fn on_pong(&mut self, connection: &Connection, id: u64, reactor_age_ms: u64, now: Instant) {
        let Some((sent_at, waiter)) = self.pings.remove(&id) else {
            return;
        };
        let took = now.saturating_duration_since(sent_at);
        self.last_ping = Some(took);
        connection.context.counters.pings.add(took);
        self.missed_pings = 0;
        // It was alive so long before some instant that is not before the question.
        let age = Duration::from_millis(reactor_age_ms);
        if let Some(at) = sent_at.checked_sub(age) {
            let connection = connection.id;
            self.notices.push_back(Notice::Answered { connection, at });
        }
        if let Some(waiter) = waiter {
            let _ = waiter.try_send(took);
        }
    }

    fn come_up(
        &mut self,
        connection: &Connection,
        boot: BootId,
        keyring_digest: Vec<u8>,
        now: Instant,
    ) {
        self.phase = Phase::Up;
        self.up_at = Some(now);
        let patience = connection.context.config.dial_timeout;
        let took = patience.saturating_sub(self.deadline.saturating_duration_since(now));
        connection.context.counters.handshakes.add(took);
        self.next_ping_at = Some(now + ping_interval(connection));
        let certificate = self.quic.peer_cert();
        self.notices.push_back(Notice::Up {
            connection: connection.id,
            peer: connection.peer_name(),
            boot,
            side: connection.side,
            addr: connection.addr,
            certificate: certificate.map(<[u8]>::to_vec).unwrap_or_default(),
            keyring_digest,
        });
    }

    /// Tells the peer how many of its messages have reached their inboxes.
    fn acknowledge(&mut self, connection: &Connection) {
        for stream in std::mem::take(&mut self.inflow.unacknowledged) {
            let Some(incoming) = self.inflow.streams.get_mut(&stream) else {
                continue;
            };
            incoming.acknowledged = incoming.delivered;
            connection.push_control(Control::MessageAck {
                stream,
                count: incoming.delivered,
            });
        }
    }

    /// Does what is due.
    fn on_time(&mut self, connection: &Connection, now: Instant) {
        if self.up_at.is_none() && now >= self.deadline && self.closing.is_none() {
            let after = connection.context.config.dial_timeout;
            self.closing = Some(CloseReason::HandshakeTimeout(after));
            self.close(CloseCode::Overloaded);
        }
        if let Some(refused_at) = self.refused_at {
            // A dial needs no patience: the caller has a backoff.
            let is_dial = self.up_at.is_none() && connection.side == Side::Dialed;
            if is_dial || now >= refused_at + REFUSED_PATIENCE {
                self.closing = Some(CloseReason::Refused);
                self.close(CloseCode::Internal);
            }
        }
        if self.next_ping_at.is_some_and(|at| now >= at) {
            if self.pings.values().any(|(_, waiter)| waiter.is_none()) {
                self.missed_pings += 1;
                self.missed_pings_total += 1;
                if self.missed_pings == PINGS_MISSED {
                    log::debug!(target: "transport", peer:% = connection.peer_name();
                        "{PINGS_MISSED} health pings without an answer");
                    self.doubt(Sign::Unanswered);
                }
            }
            self.ping(connection, now, None);
            self.next_ping_at = Some(now + ping_interval(connection));
        }
        if self.ack_owed_at.is_some_and(|at| now >= at + ACK_AFTER) {
            self.must_send = true;
        }
        let mut outbox = connection.outbox.lock();
        if outbox.control_overflow || connection.is_stuck.load(Relaxed) {
            self.close(CloseCode::Overloaded);
        }
        for (awaited, withdrawal) in outbox.expire(now) {
            connection.context.counters.note_given_up(withdrawal);
            if let Waiter::Then { timeout, .. } = &awaited.waiter {
                let outcome = Err(RequestError::Timeout {
                    peer: connection.peer_name(),
                    timeout: *timeout,
                });
                self.effects.push_back(Effect::Answer { awaited, outcome });
            }
        }
    }

    fn drain(&mut self, connection: &Connection, now: Instant) {
        let Some(until) = self.drain_until else {
            return;
        };
        if !self.drained && connection.outbox.lock().is_idle() {
            self.drained = true;
            connection.push_control(Control::Drained);
            connection.changed.notify_all();
        }
        if (self.drained && self.peer_drained) || now >= until {
            self.close(CloseCode::Duplicate);
        }
    }

    /// Sends a health ping; `waiter` is told its round-trip time.
    pub(super) fn ping(
        &mut self,
        connection: &Connection,
        now: Instant,
        waiter: Option<Sender<Duration>>,
    ) {
        let id = self.next_ping;
        self.next_ping += 1;
        self.pings.insert(id, (now, waiter));
        while self.pings.len() > MAX_PINGS {
            self.pings.pop_first();
        }
        connection.push_control(Control::Ping { id });
    }

    /// What QUIC has counted on the path.
    fn counts(&self) -> Counts {
        let Some(path) = self.quic.path_stats().next() else {
            return Counts::default();
        };
        Counts {
            received: path.recv as u64,
            lost: path.lost as u64,
            lost_bytes: path.lost_bytes,
            timeouts: path.total_pto_count as u64,
        }
    }

    /// Concludes from what was lost how large datagrams may be.
    fn look_at_size(&mut self, connection: &Connection, now: Instant) {
        if self.size.can_change() {
            let change = self.size.look(now, self.counts());
            self.resize(connection, change);
        }
    }

    fn resize(&mut self, connection: &Connection, change: Change) {
        let limit = self.size.limit();
        match change {
            Change::None => return,
            Change::Fell => {
                log::debug!(target: "transport", addr:% = connection.addr, bytes = limit;
                    "the path does not carry larger datagrams");
                // QUIC would keep those of applications that fit no packet any more, and all behind.
                let max = self.max_datagram();
                let before = self.quic.dgram_send_queue_len();
                self.quic
                    .dgram_purge_outgoing(|datagram| datagram.len() > max);
                let lost = before.saturating_sub(self.quic.dgram_send_queue_len()) as u64;
                let counters = &connection.context.counters;
                counters.datagrams_dropped.fetch_add(lost, Relaxed);
            }
            Change::Rose => {
                log::debug!(target: "transport", addr:% = connection.addr, bytes = limit;
                    "the path carries larger datagrams again");
            }
        }
        self.must_send = true;
    }

    /// The largest datagram of an application that fits one of the path.
    fn max_datagram(&self) -> usize {
        let largest = self.quic.max_send_udp_payload_size();
        let missing = largest.saturating_sub(self.size.limit());
        let room = self.quic.dgram_max_writable_len().unwrap_or(0);
        room.saturating_sub(missing)
    }

    /// Looks whether a packet has come since the last look, after a timer of QUIC.
    fn note_silence(&mut self) {
        let Some(path) = self.quic.path_stats().next() else {
            return;
        };
        if path.recv != self.silence.received {
            self.silence = Silence {
                received: path.recv,
                timeouts: path.total_pto_count,
                told: false,
            };
        }
        let timeouts = path.total_pto_count.saturating_sub(self.silence.timeouts);
        if timeouts >= PROBE_TIMEOUTS && !self.silence.told {
            self.silence.told = true;
            self.doubt(Sign::Stalled);
        }
    }

    /// Tells the reactor, once the peer is known, that it may be gone.
    fn doubt(&mut self, sign: Sign) {
        if self.up_at.is_some() {
            let connection = self.id;
            self.notices.push_back(Notice::Doubted { connection, sign });
        }
    }

    /// Takes the effects that wait, and leaves room for others in their place.
    pub(super) fn take_effects(&mut self) -> VecDeque<Effect> {
        let room = std::mem::take(&mut self.spare_effects);
        std::mem::replace(&mut self.effects, room)
    }

    /// Keeps the room of effects that have been run.
    pub(super) fn keep_room_of(&mut self, effects: VecDeque<Effect>) {
        if self.effects.capacity() == 0 {
            self.effects = effects;
        } else if effects.capacity() <= MAX_SPARE_EFFECTS {
            self.spare_effects = effects;
        }
    }

    /// For the timekeeper: QUIC's timers, and an acknowledgement that has waited long enough.
    pub(super) fn on_quic_timer(&mut self, now: Instant) {
        if self.quic.timeout_instant().is_some_and(|at| at <= now) {
            self.quic.on_timeout();
            self.note_silence();
            self.must_send = true;
        }
        if self.ack_owed_at.is_some_and(|at| now >= at + ACK_AFTER) {
            self.must_send = true;
        }
    }

    // ---- an application's own streams

    /// Reads bytes of a stream.
    pub(super) fn read_raw(&mut self, id: u64, buffer: &mut [u8], window: u64) -> RawRead {
        let Some(incoming) = self.inflow.streams.get_mut(&id) else {
            return RawRead::Done(Ok(0));
        };
        if incoming.refused {
            return RawRead::Done(Ok(0));
        }
        if !incoming.leftover.is_empty() {
            let count = incoming.leftover.len().min(buffer.len());
            buffer[..count].copy_from_slice(&incoming.leftover[..count]);
            incoming.leftover.drain(..count);
            return RawRead::Done(Ok(count));
        }
        if incoming.fin {
            self.inflow.streams.remove(&id);
            return RawRead::Done(Ok(0));
        }
        match self.quic.stream_recv(id, buffer) {
            Ok((0, false)) | Err(quiche::Error::Done) => {
                // Whoever comes to wait has read what there was: the peer may go on.
                self.must_send |= self.read_bytes > 0;
                wait_for(incoming)
            }
            Ok((count, fin)) => {
                self.read_bytes += count as u64;
                self.must_send |= self.read_bytes >= window / 4 || fin;
                if fin && count == 0 {
                    self.inflow.streams.remove(&id);
                } else {
                    incoming.fin = fin;
                }
                RawRead::Done(Ok(count))
            }
            // Opened here, and nothing has been sent on it yet.
            Err(quiche::Error::InvalidStreamState(_)) if !incoming.fin && self.is_unborn(id) => {
                match self.inflow.streams.get_mut(&id) {
                    Some(incoming) => wait_for(incoming),
                    None => RawRead::Done(Ok(0)),
                }
            }
            Err(quiche::Error::StreamReset(code)) => {
                self.inflow.streams.remove(&id);
                let why = format!("the peer reset the stream with code {code}");
                RawRead::Done(Err(io::Error::new(io::ErrorKind::ConnectionReset, why)))
            }
            Err(error) => {
                self.inflow.streams.remove(&id);
                RawRead::Done(Err(io::Error::other(error.to_string())))
            }
        }
    }

    /// Whether QUIC does not know the stream, because nothing of it has been sent.
    fn is_unborn(&self, id: u64) -> bool {
        !self.quic.stream_closed(id)
    }

    /// The application wants no more bytes of a stream.
    pub(super) fn stop_raw(&mut self, connection: &Connection, id: u64) {
        let Some(incoming) = self.inflow.streams.get_mut(&id) else {
            return;
        };
        if incoming.fin || incoming.refused {
            if incoming.fin {
                self.inflow.streams.remove(&id);
            }
            return;
        }
        incoming.refused = true;
        incoming.leftover = Vec::new();
        for reader in incoming.readers.drain(..) {
            self.effects.push_back(Effect::Readable(reader));
        }
        connection.push_control(Control::Refused { stream: id });
        if !matches!(self.discard(id), Reading::Waiting) {
            self.inflow.streams.remove(&id);
        }
    }

    // ---- what is sent

    /// Whether there is something to be sent now: new data, or an acknowledgement that should not wait.
    fn wants_to_send(&mut self, has_work: bool, now: Instant) -> bool {
        let lost = self.quic.stats().lost;
        let has_lost = lost != std::mem::replace(&mut self.lost_packets, lost);
        let after_much = self.wrote_much_at.is_some_and(|at| now < at + AFTER_MUCH);
        let is_quiet = matches!(self.phase, Phase::InUse | Phase::Draining);
        has_work
            || self.must_send
            || has_lost
            || after_much
            || !is_quiet
            || !self.unsent.is_empty()
            || self.quic.local_error().is_some()
    }

    /// Hands to QUIC what waits and puts its datagrams on the socket. `with_ack`: what has arrived may
    /// want an acknowledgement, which is put off if nothing else is to be said.
    pub(super) fn flush(&mut self, connection: &Connection, now: Instant, with_ack: bool) {
        if self.closed.is_some() || self.is_broken {
            return;
        }
        self.look_at_size(connection, now);
        let mut outbox = connection.outbox.lock();
        let has_work = outbox.has_work();
        if !self.wants_to_send(has_work, now) {
            drop(outbox);
            if with_ack {
                self.ack_owed_at.get_or_insert(now);
            }
            return;
        }
        let max_datagram = self.max_datagram();
        let written = outbox.write(&mut self.quic, max_datagram);
        let writers = outbox.take_writers(written.room);
        drop(outbox);
        if written.lost_datagrams > 0 {
            let counters = &connection.context.counters;
            let lost = written.lost_datagrams;
            counters.datagrams_dropped.fetch_add(lost, Relaxed);
        }
        if written.room {
            connection.tell_changed(writers);
            if !self.inflow.stalled.is_empty() {
                // Requests may wait for room for their replies.
                connection.waker.wake();
            }
        }
        self.must_send = false;
        self.ack_owed_at = None;
        self.read_bytes = 0;
        connection.max_datagram.store(max_datagram, Relaxed);
        let sent = self.send_datagrams(connection, now);
        if sent.max(written.bytes) > MUCH_BYTES {
            self.wrote_much_at = Some(now);
        }
    }

    /// Puts QUIC's datagrams on the socket, until there are none or the socket is full. Returns how
    /// many bytes went.
    fn send_datagrams(&mut self, connection: &Connection, now: Instant) -> usize {
        if self.quic.local_error().is_some() && self.farewell.is_empty() {
            // The closing datagram matters more than what the full socket did not take: it must be
            // made now, so that it can be repeated.
            self.unsent.clear();
        }
        let mut sent = 0;
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            if !self.put(connection, &unsent, self.unsent_segment, now) {
                return 0;
            }
        }
        let mut buffer = buffers::take();
        loop {
            // QUIC has a limit of its own, above all until the handshake is done.
            let largest = self.quic.max_send_udp_payload_size();
            let mut max = largest.min(self.size.limit());
            let is_probe = self.size.wants_probe(now) && self.up_at.is_some();
            if is_probe {
                max = largest.min(connection.context.config.max_datagram_bytes);
            }
            let counts = is_probe.then(|| self.counts());
            let together = self.gso && !is_probe;
            let quic = &mut self.quic;
            // An error other than `Done` is told better by the connection's state.
            let make = |room: &mut [u8]| quic.send(room).ok().map(|(bytes, _)| bytes);
            let batch = gather(&mut buffer, max, together, make);
            if batch.bytes == 0 {
                return sent;
            }
            self.size
                .note_sent(batch.bytes.div_ceil(batch.segment), batch.segment);
            if let Some(counts) = counts.filter(|_| batch.bytes > MIN_DATAGRAM_BYTES) {
                self.size.probe_sent(now, counts);
            }
            if self.quic.local_error().is_some() {
                self.farewell = buffer[..batch.bytes].to_vec();
            }
            if !self.put(connection, &buffer[..batch.bytes], batch.segment, now) {
                return sent;
            }
            sent += batch.bytes;
            if batch.is_last {
                return sent;
            }
        }
    }

    /// Puts datagrams of one size, the last of which may be shorter, on the socket. `false` when it is
    /// full: then they are kept.
    fn put(&mut self, connection: &Connection, batch: &[u8], segment: usize, now: Instant) -> bool {
        // What goes alone only has to be no longer than what the kernel cuts it to, if it cuts at all.
        let fits = if batch.len() > segment {
            self.segment == segment
        } else {
            batch.len() <= self.segment
        };
        if self.gso && !fits {
            // The size of the path has changed. Where that is refused, they go one by one.
            let own = connection.path.own();
            self.gso = own.is_some_and(|socket| udp::segment_to(socket, segment).is_ok());
            self.segment = segment;
        }
        let mut rest = batch;
        while !rest.is_empty() {
            // In one piece, unless the system turned out not to cut it.
            let piece = if self.gso {
                rest.len()
            } else {
                segment.min(rest.len())
            };
            match connection.path.send(&rest[..piece], connection.addr) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent = rest.to_vec();
                    self.unsent_segment = segment;
                    return false;
                }
                // An ICMP message for an earlier datagram: a hint, and this one was not sent.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.note_refused(super::connection::clock());
                    let _ = connection.path.send(&rest[..piece], connection.addr);
                }
                // Some systems refuse a single datagram for the size that they would cut others to.
                Err(error)
                    if piece <= segment
                        && (udp::is_about_size(&error) || udp::is_about_batches(&error))
                        && self.stop_cutting(connection) =>
                {
                    continue;
                }
                Err(error) if segment > MIN_DATAGRAM_BYTES && udp::is_about_size(&error) => {
                    let change = self.size.refused(now, self.counts());
                    self.resize(connection, change);
                    // What is left of the batch is as large: QUIC repeats it in smaller ones.
                    return true;
                }
                Err(error) if piece > segment && udp::is_about_batches(&error) => {
                    // A device without checksum offload, or a path that does not carry the size.
                    log::debug!(target: "transport", addr:% = connection.addr, error:%;
                        "batches are sent one by one from here on");
                    self.gso = false;
                    self.stop_cutting(connection);
                    continue;
                }
                // Anything else is a datagram lost here instead of on the way; QUIC repeats it.
                Err(error) => {
                    log::trace!(target: "transport", addr:% = connection.addr, error:%; "datagram lost");
                }
            }
            rest = &rest[piece..];
        }
        true
    }

    /// Has the kernel cut nothing, until a batch is to be cut again. `false` when it did not before.
    fn stop_cutting(&mut self, connection: &Connection) -> bool {
        let was_cutting = self.segment != UNCUT;
        self.segment = UNCUT;
        let socket = connection.path.own();
        was_cutting && socket.is_some_and(|socket| udp::segment_to(socket, 0).is_ok())
    }

    /// Whether something is to be sent that is not in the outbox.
    pub(super) fn wants_flush(&self) -> bool {
        self.must_send
    }

    /// Whether the socket is full.
    pub(super) fn is_full(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// When something is due.
    pub(super) fn next_deadline(&self, connection: &Connection) -> Option<Instant> {
        let timers = earlier(self.quic.timeout_instant(), self.ack_deadline());
        earlier(timers, self.next_own_deadline(connection))
    }

    /// What the worker has to wake for at `now`, and what can be left to the timekeeper once the
    /// connection is in use: an acknowledgement, and QUIC's timer if it is some time ahead, which moves with
    /// every packet. A worker that wakes for each of those wakes for little or nothing.
    pub(super) fn split_deadlines(
        &self,
        connection: &Connection,
        now: Instant,
    ) -> (Option<Instant>, Option<Instant>) {
        if self.up_at.is_none() {
            return (self.next_deadline(connection), None);
        }
        let (own, ack) = (self.next_own_deadline(connection), self.ack_deadline());
        let quic = self.quic.timeout_instant();
        let (later, soon) = if quic.is_some_and(|at| at >= now + WORTH_LEAVING) {
            (earlier(quic, ack), own)
        } else {
            (ack, earlier(own, quic))
        };
        let is_first = later.is_some_and(|at| soon.is_none_or(|soon| at < soon));
        (soon, later.filter(|_| is_first))
    }

    fn ack_deadline(&self) -> Option<Instant> {
        self.ack_owed_at.map(|at| at + ACK_AFTER)
    }

    fn next_own_deadline(&self, connection: &Connection) -> Option<Instant> {
        let handshake = self.up_at.is_none().then_some(self.deadline);
        let refused = self.refused_at.map(|at| at + REFUSED_PATIENCE);
        [
            handshake,
            refused,
            self.next_ping_at,
            self.drain_until,
            connection.outbox.lock().next_expiry,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    // ---- the end

    /// Closes from this end, once.
    pub(super) fn close(&mut self, code: CloseCode) {
        self.closing.get_or_insert(CloseReason::Local(code));
        self.must_send = true;
        // `Done` means that it is closing already.
        let _ = self.quic.close(true, code.to_wire(), b"");
    }

    /// The one classification of how a connection ended, from its state. `None` while it lives.
    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        let quic = &self.quic;
        if self.is_broken {
            return Some(CloseReason::Local(CloseCode::Internal));
        }
        let is_over = quic.is_closed() || quic.is_draining() || quic.local_error().is_some();
        if !is_over {
            return None;
        }
        if let Some(error) = quic.peer_error() {
            return Some(classify(error.is_app, error.error_code, true));
        }
        if let Some(reason) = &self.closing {
            return Some(reason.clone());
        }
        if let Some(error) = quic.local_error() {
            return Some(classify(error.is_app, error.error_code, false));
        }
        if quic.is_timed_out() {
            return Some(CloseReason::Idle);
        }
        // Closed without an error and not by time: quiche recognised a stateless reset.
        Some(CloseReason::Reset)
    }

    /// Ends everything that waits on this connection and makes the last notice.
    pub(super) fn finish(&mut self, connection: &Connection, reason: CloseReason) -> Notice {
        let mut outbox = connection.outbox.lock();
        let unacknowledged = outbox.unacknowledged();
        let counters = &connection.context.counters;
        counters
            .messages_unacknowledged
            .fetch_add(unacknowledged, Relaxed);
        let of_apps = outbox.unacknowledged_by_app();
        // Before anybody sees that it is over.
        *connection.lost.lock() = of_apps.iter().map(|(app, _)| Arc::clone(app)).collect();
        self.closed = Some(reason.clone());
        let is_replaced = matches!(
            reason,
            CloseReason::Local(CloseCode::Duplicate) | CloseReason::Peer(CloseCode::Duplicate)
        );
        let waiters = outbox.close(reason.to_string(), is_replaced);
        let writers = outbox.take_writers(true);
        drop(outbox);
        for (app, count) in of_apps {
            let figures = connection.context.registry.figures_of(&app);
            figures.drop_for(DropReason::Unacknowledged, count);
        }
        let peer = connection.peer_name();
        for awaited in waiters.into_values() {
            let (peer, reason) = (peer.clone(), reason.to_string());
            let outcome = Err(RequestError::Disconnected { peer, reason });
            self.effects.push_back(Effect::Answer { awaited, outcome });
        }
        for incoming in std::mem::take(&mut self.inflow).streams.into_values() {
            for reader in incoming.readers {
                self.effects.push_back(Effect::Readable(reader));
            }
        }
        self.pings.clear();
        connection.tell_changed(writers);
        connection.set_info(ConnectionInfo {
            last_error: Some(reason.to_string()),
            ..self.figures(
                connection,
                super::connection::clock(),
                ConnectionState::Down,
            )
        });
        Notice::Down {
            connection: connection.id,
            reason,
            unacknowledged,
        }
    }

    pub(super) fn publish(&mut self, connection: &Connection, now: Instant) {
        let shown = match self.phase {
            Phase::Handshaking | Phase::Hello | Phase::Ready | Phase::Up => {
                ConnectionState::Handshaking
            }
            Phase::InUse => ConnectionState::Established,
            Phase::Draining => ConnectionState::Draining,
        };
        if connection.info().state == shown && now < self.info_at + INFO_INTERVAL {
            return;
        }
        self.info_at = now;
        connection.set_info(self.figures(connection, now, shown));
    }

    /// The figures as they stand.
    fn figures(
        &self,
        connection: &Connection,
        now: Instant,
        state: ConnectionState,
    ) -> ConnectionInfo {
        let peer = connection.peer.get().cloned();
        let stats = self.quic.stats();
        let mut streams = connection.outbox.lock().ids();
        streams.extend(self.inflow.streams.keys());
        let mut info = ConnectionInfo {
            peer: peer.or_else(|| self.expected.clone()),
            side: Some(connection.side),
            sent_bytes: stats.sent_bytes,
            received_bytes: stats.recv_bytes,
            lost_bytes: stats.lost_bytes,
            sent_packets: stats.sent as u64,
            received_packets: stats.recv as u64,
            lost_packets: stats.lost as u64,
            streams: streams.len() as u64,
            idle: Some(now.saturating_duration_since(self.heard_at)),
            up: self.up_at.map(|at| now.saturating_duration_since(at)),
            last_ping: self.last_ping,
            ping_failures: self.missed_pings,
            ping_failures_total: self.missed_pings_total,
            ..ConnectionInfo::empty(connection.addr, state)
        };
        if let Some(path) = self.quic.path_stats().next() {
            info.rtt = Some(path.rtt);
            info.min_rtt = path.min_rtt;
            info.cwnd_bytes = path.cwnd as u64;
            info.mtu_bytes = path.pmtu as u64;
        }
        info
    }
}

/// The earlier of two times, of which there may be none.
pub(super) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

/// Datagrams that were made for one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    bytes: usize,
    segment: usize,
    /// There was nothing more to be sent.
    is_last: bool,
}

/// Fills `buffer` with datagrams of one size, the last of which may be shorter, as a send that is cut
/// by the kernel wants it. `make` writes one datagram of at most the room it is given. Only datagrams
/// of full size are put together; whatever begins smaller goes alone.
fn gather(
    buffer: &mut [u8],
    max: usize,
    together: bool,
    mut make: impl FnMut(&mut [u8]) -> Option<usize>,
) -> Batch {
    let mut bytes = 0;
    for _ in 0..MAX_SEGMENTS {
        if bytes + max > buffer.len().min(MAX_BATCH_BYTES) {
            break;
        }
        match make(&mut buffer[bytes..bytes + max]) {
            Some(made) if made > 0 => {
                bytes += made;
                if made < max || !together {
                    break;
                }
            }
            Some(_) | None => {
                return Batch {
                    bytes,
                    segment: max.min(bytes),
                    is_last: true,
                };
            }
        }
    }
    Batch {
        bytes,
        segment: max.min(bytes),
        is_last: false,
    }
}

/// What reading a stream came to.
enum Reading {
    /// No more bytes now.
    Waiting,
    /// A full inbox, or a full queue to the reactor.
    Stalled,
    /// The peer has said everything.
    Finished,
    /// The stream is over without an end.
    Reset,
}

enum Delivered {
    Yes,
    Blocked,
    /// Nobody here wants the stream.
    Ignore,
}

/// What a stream of the peer turned out to be.
enum Opened {
    Framed,
    Raw,
    Unwanted,
    /// To be read later.
    Early(Preamble),
}

fn is_bidirectional(stream: u64) -> bool {
    stream & 2 == 0
}

/// Whether it is a bidirectional stream that the peer has opened. Bit 0 tells who opened it.
fn is_theirs(connection: &Connection, stream: u64) -> bool {
    is_bidirectional(stream) && (stream & 1 == 0) != (connection.side == Side::Dialed)
}

/// What one receive brought.
pub(super) struct Arrived {
    buffer: buffers::Buffer,
    received: Received,
}

/// Whether there may be more behind the error.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted};
    matches!(error.kind(), ConnectionRefused | Interrupted)
}

/// Looks at the socket without sleeping, until there is something, the time is over, or `is_over`.
pub(super) fn spin_for(
    socket: &UdpSocket,
    until: Instant,
    mut is_over: impl FnMut() -> bool,
) -> Option<io::Result<Arrived>> {
    let mut buffer = buffers::take();
    while !is_over() && super::connection::clock() < until {
        match udp::receive(socket, &mut buffer) {
            Ok(received) => return Some(Ok(Arrived { buffer, received })),
            Err(error) if is_passing(&error) => return Some(Err(error)),
            Err(_) => std::hint::spin_loop(),
        }
    }
    None
}

/// What became of an attempt to read a stream of an application's own.
pub(super) enum RawRead {
    /// Bytes, the end, or an error.
    Done(io::Result<usize>),
    /// There is nothing now; this is filled when there may be.
    Wait(Arc<Slot<()>>),
}

/// Puts a reader with those who wait for bytes of a stream.
fn wait_for(incoming: &mut Incoming) -> RawRead {
    // Those whose time was over have not told.
    incoming
        .readers
        .retain(|other| Arc::strong_count(other) > 1);
    if incoming.readers.len() >= MAX_READERS {
        let why = "too many threads read this stream";
        return RawRead::Done(Err(io::Error::other(why)));
    }
    let reader = Arc::new(Slot::default());
    incoming.readers.push(Arc::clone(&reader));
    RawRead::Wait(reader)
}

fn protocol(error: FramingError) -> Refusal {
    log::debug!(target: "transport", error:%; "protocol violation");
    (CloseCode::Protocol, CloseReason::Local(CloseCode::Protocol))
}

/// Tells the peer that nobody here wants what the stream carries. STOP_SENDING would say the same,
/// but quiche never forgets a peer's stream that was shut down for reading, and the peer would run
/// out of streams.
fn refuse(connection: &Connection, id: u64, incoming: &mut Incoming) {
    incoming.refused = true;
    connection.push_control(Control::Refused { stream: id });
}

fn note_nobody(connection: &Connection, app: &str) {
    let counters = &connection.context.counters;
    counters.messages_for_nobody.fetch_add(1, Relaxed);
    let figures = connection.context.registry.figures_of(app);
    figures.drop_for(DropReason::NoApplication, 1);
    log::debug!(target: "transport", peer:% = connection.peer_name(), app:%;
        "no such application here; what is for it is refused");
}

fn ping_interval(connection: &Connection) -> Duration {
    Duration::from_millis(connection.context.ping_interval_ms.load(Relaxed))
}

fn hello(connection: &Connection) -> Control {
    let context = &connection.context;
    Control::Hello(Hello {
        cluster: context.cluster.clone(),
        node: context.node.clone(),
        boot: context.boot,
        protocol: PROTOCOL_VERSIONS,
        keyring_digest: context.keyring_digest.lock().clone(),
    })
}

/// Checks the peer's HELLO against its certificate and against ourselves.
fn greet(connection: &Connection, hello: &Hello) -> Result<(), Refusal> {
    let context = &connection.context;
    let certified = connection.peer.get();
    let wrong = |why: String| Err((CloseCode::Identity, CloseReason::WrongIdentity(why)));
    if certified != Some(&hello.node) || hello.cluster != context.cluster {
        return wrong(format!("HELLO says {}.{}", hello.node, hello.cluster));
    }
    // Only our own certificate makes it ourselves: an address that is taken for our own is
    // never dialled again, so nobody else may make us believe that.
    match (hello.node == context.node, hello.boot == context.boot) {
        (true, true) => {
            let reason = CloseReason::Local(CloseCode::SelfDial);
            return Err((CloseCode::SelfDial, reason));
        }
        (true, false) => {
            return wrong("another process has this node's name and certificate".into());
        }
        (false, true) => return wrong("HELLO repeats this node's own boot id".into()),
        (false, false) => {}
    }
    if !hello.is_compatible() {
        let reason = CloseReason::Local(CloseCode::Protocol);
        return Err((CloseCode::Protocol, reason));
    }
    Ok(())
}

/// TLS alerts are transport errors 0x100 to 0x1ff (RFC 9001 §4.8).
fn classify(is_app: bool, code: u64, by_peer: bool) -> CloseReason {
    match (is_app, by_peer) {
        (true, true) => CloseReason::Peer(CloseCode::from_wire(code)),
        (true, false) => CloseReason::Local(CloseCode::from_wire(code)),
        (false, by_peer) => match u8::try_from(code.wrapping_sub(0x100)) {
            Ok(alert) => CloseReason::Tls { alert, by_peer },
            Err(_) => CloseReason::Transport { code, by_peer },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gathers datagrams of these sizes, and returns the sizes of the pieces that the kernel would
    /// cut each batch into.
    fn cut(sizes: &[usize], max: usize, together: bool) -> Vec<Vec<usize>> {
        let mut sizes = sizes.iter().copied();
        let mut buffer = vec![0; udp::RECEIVE_BYTES];
        let mut batches = Vec::new();
        loop {
            let batch = gather(&mut buffer, max, together, |room| {
                let size = sizes.next()?;
                assert!(size <= room.len(), "{size} do not fit {}", room.len());
                Some(size)
            });
            if batch.bytes > 0 {
                assert!(batch.bytes <= MAX_BATCH_BYTES);
                let pieces = buffer[..batch.bytes].chunks(batch.segment);
                batches.push(pieces.map(<[u8]>::len).collect());
            }
            if batch.is_last {
                return batches;
            }
        }
    }

    #[test]
    fn a_batch_has_datagrams_of_one_size_and_only_the_last_is_shorter() {
        assert_eq!(cut(&[], 1_200, true), Vec::<Vec<usize>>::new());
        assert_eq!(cut(&[40], 1_200, true), [vec![40]]);
        assert_eq!(
            cut(&[1_200, 1_200, 80, 1_200], 1_200, true),
            [vec![1_200, 1_200, 80], vec![1_200]]
        );
        assert_eq!(cut(&[40, 1_200], 1_200, true), [vec![40], vec![1_200]]);
        assert_eq!(
            cut(&[1_200, 1_200], 1_200, false),
            [vec![1_200], vec![1_200]]
        );
    }

    #[test]
    fn a_batch_is_neither_larger_nor_of_more_datagrams_than_the_system_takes() {
        let batches = cut(&[1_200; 130], 1_200, true);
        let counts: Vec<usize> = batches.iter().map(Vec::len).collect();
        assert_eq!(counts, [54, 54, 22]);
        let counts: Vec<usize> = cut(&[100; 130], 100, true).iter().map(Vec::len).collect();
        assert_eq!(counts, [64, 64, 2]);
        let batches = cut(&[65_000; 3], 65_000, true);
        assert_eq!(batches, [[65_000], [65_000], [65_000]]);
    }
}
