//! Events of applications: small signed messages to everybody, by gossip.
//!
//! # The algorithm
//!
//! **Making one.** An event carries its origin, the life (boot id) of the origin, a number that
//! counts the events of that life from 1, and a Lamport time: one more than the highest that the
//! origin has seen. The origin signs all of it, so that nobody can speak in another's name, and
//! relays pass on the very bytes that were signed. A **query** is an event that says whom it asks
//! and for how long answers are welcome; the answers do not travel by gossip.
//!
//! **Once.** Of each origin a node keeps its life, the highest number heard, and which of the
//! [`WINDOW`] numbers up to it were heard. A number in there is a copy, one below is too old, and
//! another life than that of the origin's record is nothing at all. So each event is delivered at
//! most once, whatever is repeated or recorded and played again, and telling a copy costs no
//! signature check: the caller asks [`Swim::is_new_event`] first. Events of a member that is dead or
//! unknown here are refused, and so not passed on either. The life before is kept as well: somebody
//! who missed a restart may know it at the higher incarnation, so that its record holds for a moment,
//! until the life that runs has gone above it. Of still earlier lives, and of members that are
//! forgotten, one number is kept for all: the highest Lamport time of an event of theirs that was
//! told. Nothing up to it is new any more from a life that is met later, for it may be one of those
//! come back. What is emitted later is above it, but for an origin that missed those events and has
//! met nobody since who had heard them; that is the price.
//!
//! **Newcomers.** A connection begins with each end telling its life, its own last number and its
//! clock ([`EventClock`]). What an origin says of itself opens its window: a node does not hear what
//! was said before it came, not even from somebody who recorded it. To come is to become a member
//! where the event is made, which may be some time before there is a connection; so the number told
//! is that of the last event before. For origins that have not said
//! so themselves, events up to the clock of the first peer met are old.
//!
//! **Repair.** Gossip misses a member now and then: with `r` transmissions by each of many members, one
//! in `eʳ`. So with a sync goes what was heard in the last two sync intervals, as far as it fits 64 KiB,
//! and whoever missed an event gets it there, or in the first sync after a short partition. Two syncs
//! in a row go to two members, so one other that missed the event as well does not stand in the way.
//!
//! **The clock** goes up with every event heard, but never by more than [`MAX_LAMPORT_STEP`] at
//! once: an event from further ahead is delivered, for its signature is good, and counted, and moves
//! the clock by one such step, so that one liar with a certificate can neither freeze it nor part
//! those who heard its lies from those who missed some for long. From so far ahead it is not counted
//! as told of a life that is forgotten either, or the last lie of one liar would silence everybody.
//!
//! **Spreading.** Events have a queue of their own. Each is sent as often as a piece of membership
//! news, what was sent least first, the oldest of those first. While membership news waits too,
//! events get a quarter of each datagram, as credit: an event larger than that waits until enough
//! has come together (deficit round robin, Shreedhar and Varghese 1995). Room that membership news
//! cannot use is theirs as well. So neither can starve the other.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;

use crate::node_id::{BootId, NodeId};

use super::{Event, Swim, Timer, members::Member, message};

/// The most bytes that an event's name and payload take together: with everything around them it
/// still fits a datagram of 1,200 bytes beside any act of the failure detector.
pub const MAX_EVENT_BYTES: usize = 512;

/// The longest name of an event or query.
pub const MAX_EVENT_NAME_BYTES: usize = 64;

/// The most bytes that a query's filter takes: its node names and two for each, its tags' keys and
/// values and six for each.
pub const MAX_FILTER_BYTES: usize = 192;

/// How long answers to a query may be waited for. Who asks for longer wants a subscription.
pub const MAX_QUERY_TIMEOUT: Duration = Duration::from_secs(600);

/// The largest signed content of an event: all of the above, with room for fields to come.
pub const MAX_SIGNED_EVENT_BYTES: usize = 900;

/// What a signature of ECDSA P-256 and the fields around it add to an event.
const SIGNATURE_OVERHEAD_BYTES: usize = 72 + 8;

/// How far behind an origin's newest event an older one may come. An origin has at most
/// [`MAX_OWN_PENDING`] on their way at once; twice that covers those on their way at relays.
const WINDOW: u64 = 128;

/// Lives of an origin of which a window is kept: the one that speaks, and the one that a record of
/// the past can bring back. An earlier one is forgotten as a member is.
const MAX_LIVES: usize = 2;

/// Our own events that wait to be sent often enough. More are refused to who emits them: a cluster
/// passes on a handful of events in a second, and who wants more wants messages.
pub const MAX_OWN_PENDING: usize = 64;

/// Events of one other origin, and of all, that wait to be passed on: a quarter of a megabyte at
/// most. Beyond, the one that was sent most, the oldest of those, makes room, and is counted; others
/// pass it on. A busy origin displaces its own events before those of others.
const MAX_PENDING_PER_ORIGIN: usize = 64;
const MAX_PENDING: usize = 256;

/// How much of the latest events is kept for those who missed them, counting what travels and
/// [`RECENT_OVERHEAD_BYTES`] each: a few hundred small events, and a quarter of what may wait for a
/// connection's control stream. Older ones had gossip alone.
const MAX_RECENT_BYTES: usize = 64 * 1_024;

/// What keeping a recent event costs beside its bytes, roughly.
const RECENT_OVERHEAD_BYTES: usize = 100;

/// Events get one part in so many of each datagram while membership news waits.
const SHARE: usize = 4;

/// How many pieces that do not fit are passed over to fill one datagram.
const MAX_PASSED_OVER: usize = 32;

/// How far ahead of our clock a Lamport time may be and still move it: more events than any
/// cluster has had, and too little to reach [`MAX_LAMPORT`] with less than a billion lies.
const MAX_LAMPORT_STEP: u64 = 1 << 32;

/// The clock stays below this, so that adding to it never overflows.
const MAX_LAMPORT: u64 = 1 << 62;

/// Small news from one node's application to those of all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserEvent {
    /// Who emitted it.
    pub origin: NodeId,
    /// Which life of the origin.
    pub boot: BootId,
    /// Counts the events of that life, from 1.
    pub number: u64,
    /// The origin's Lamport time.
    pub lamport: u64,
    /// What kind of news it is: 1 to 64 of `A-Z`, `a-z`, `0-9`, `.`, `_`, `-`.
    pub name: String,
    /// The news.
    pub payload: Vec<u8>,
    /// It is a question.
    pub query: Option<Query>,
}

/// What makes an event a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Who is asked.
    pub filter: QueryFilter,
    /// How long the origin waits for answers.
    pub timeout: Duration,
}

/// Whom a query asks. The default asks everybody; each condition narrows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueryFilter {
    nodes: BTreeSet<NodeId>,
    tags: BTreeMap<String, String>,
}

impl QueryFilter {
    /// Asks every member.
    pub fn all() -> Self {
        Self::default()
    }

    /// Asks this node, and others only if they are named, too.
    #[must_use]
    pub fn node(mut self, node: NodeId) -> Self {
        self.nodes.insert(node);
        self
    }

    /// Asks only nodes whose tag `key` is `value`. Of several tags, all must be so.
    #[must_use]
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(key.into(), value.into());
        self
    }

    /// Whether a node with these tags is asked.
    pub fn matches(&self, node: &NodeId, tags: &BTreeMap<String, String>) -> bool {
        (self.nodes.is_empty() || self.nodes.contains(node))
            && self
                .tags
                .iter()
                .all(|(key, value)| tags.get(key) == Some(value))
    }

    /// How many of [`MAX_FILTER_BYTES`] it takes.
    fn bytes(&self) -> usize {
        let nodes: usize = self.nodes.iter().map(|node| node.as_str().len() + 2).sum();
        nodes + crate::record::tag_bytes(&self.tags)
    }
}

/// An event as it travels: the encoded content and its origin's signature over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEvent {
    /// An encoded [`UserEvent`].
    pub payload: Arc<[u8]>,
    /// ECDSA P-256 (ASN.1 DER) over the context string and the payload.
    pub signature: Arc<[u8]>,
}

/// An event whose signature the caller has verified or made, with the bytes to pass on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedEvent {
    /// The content.
    pub event: UserEvent,
    /// The same, as signed.
    pub signed: SignedEvent,
}

/// What each end of a new connection tells of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventClock {
    /// Which life of the node speaks.
    pub boot: BootId,
    /// The highest Lamport time that it knows.
    pub lamport: u64,
    /// The number of its own last event before it knew the listener.
    pub number: u64,
}

/// Why an event was not emitted. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// Not 1 to 64 of `A-Z`, `a-z`, `0-9`, `.`, `_`, `-`.
    #[error("{0:?} is not an event name: 1 to 64 of letters, digits, '.', '_' and '-'")]
    InvalidName(String),
    /// Name and payload are too large.
    #[error("name and payload take {0} bytes, more than {MAX_EVENT_BYTES}")]
    TooLarge(usize),
    /// The filter of a query is too large.
    #[error("the filter takes {0} bytes, more than {MAX_FILTER_BYTES}")]
    FilterTooLarge(usize),
    /// Signed, it does not fit a datagram. Possible only where datagrams are smaller than usual.
    #[error("signed event of {bytes} bytes does not fit a datagram of {max}")]
    DatagramTooSmall {
        /// The event with its signature.
        bytes: usize,
        /// What a datagram carries.
        max: usize,
    },
    /// Not between 1 ms and ten minutes.
    #[error("answers can be waited for between 1 ms and {MAX_QUERY_TIMEOUT:?}")]
    InvalidTimeout,
    /// So many events of this node are still on their way. Try again in a while.
    #[error("{0} events of this node are still on their way")]
    QueueFull(usize),
    /// This node has left the cluster.
    #[error("this node has left")]
    Left,
}

/// Why bytes are not an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventDecodeError {
    /// Larger than [`MAX_SIGNED_EVENT_BYTES`].
    #[error("event of {0} bytes is larger than {MAX_SIGNED_EVENT_BYTES}")]
    TooLarge(usize),
    /// Not protobuf.
    #[error("event is not well-formed protobuf")]
    Malformed,
    /// A field is missing or outside its limits.
    #[error("event field {0:?} is missing or outside its limits")]
    Field(&'static str),
}

#[derive(Clone, PartialEq, prost::Message)]
struct UserEventWire {
    #[prost(string, tag = "1")]
    origin: String,
    #[prost(bytes = "vec", tag = "2")]
    boot: Vec<u8>,
    #[prost(uint64, tag = "3")]
    number: u64,
    #[prost(uint64, tag = "4")]
    lamport: u64,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(bytes = "vec", tag = "6")]
    payload: Vec<u8>,
    #[prost(message, optional, tag = "7")]
    query: Option<QueryWire>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct QueryWire {
    #[prost(uint32, tag = "1")]
    timeout_ms: u32,
    #[prost(string, repeated, tag = "2")]
    nodes: Vec<String>,
    #[prost(btree_map = "string, string", tag = "3")]
    tags: BTreeMap<String, String>,
}

/// Whether an event or query can have this name.
pub fn is_event_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=MAX_EVENT_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_plain)
}

impl UserEvent {
    /// The event's protobuf encoding: the bytes that the origin signs, below whatever context
    /// string `trust` puts in front.
    pub fn encode(&self) -> Vec<u8> {
        UserEventWire {
            origin: self.origin.to_string(),
            boot: self.boot.0.to_vec(),
            number: self.number,
            lamport: self.lamport,
            name: self.name.clone(),
            payload: self.payload.clone(),
            query: self.query.as_ref().map(|query| QueryWire {
                timeout_ms: u32::try_from(query.timeout.as_millis()).unwrap_or(u32::MAX),
                nodes: query.filter.nodes.iter().map(NodeId::to_string).collect(),
                tags: query.filter.tags.clone(),
            }),
        }
        .encode_to_vec()
    }

    /// Reads an event and holds every field against its limits. The signature is not looked at.
    ///
    /// # Errors
    ///
    /// [`EventDecodeError`] says what is wrong; no input panics or makes this allocate more than a
    /// few times its own length.
    pub fn decode(bytes: &[u8]) -> Result<Self, EventDecodeError> {
        let field = EventDecodeError::Field;
        if bytes.len() > MAX_SIGNED_EVENT_BYTES {
            return Err(EventDecodeError::TooLarge(bytes.len()));
        }
        let wire = UserEventWire::decode(bytes).map_err(|_| EventDecodeError::Malformed)?;
        let event = Self {
            origin: wire.origin.parse().map_err(|_| field("origin"))?,
            boot: BootId::from_slice(&wire.boot).ok_or_else(|| field("boot"))?,
            number: wire.number,
            lamport: wire.lamport,
            name: wire.name,
            payload: wire.payload,
            query: wire.query.map(QueryWire::open).transpose()?,
        };
        if event.number == 0 {
            return Err(field("number"));
        }
        match event.check() {
            Ok(()) => Ok(event),
            Err(EmitError::InvalidName(_)) => Err(field("name")),
            Err(EmitError::TooLarge(_)) => Err(field("payload")),
            Err(EmitError::FilterTooLarge(_)) => Err(field("filter")),
            Err(
                EmitError::InvalidTimeout
                | EmitError::DatagramTooSmall { .. }
                | EmitError::QueueFull(_)
                | EmitError::Left,
            ) => Err(field("timeout")),
        }
    }

    fn check(&self) -> Result<(), EmitError> {
        if !is_event_name(&self.name) {
            let shown = self.name.chars().take(80).collect();
            return Err(EmitError::InvalidName(shown));
        }
        let bytes = self.name.len() + self.payload.len();
        if bytes > MAX_EVENT_BYTES {
            return Err(EmitError::TooLarge(bytes));
        }
        let Some(query) = &self.query else {
            return Ok(());
        };
        let bytes = query.filter.bytes();
        if bytes > MAX_FILTER_BYTES {
            return Err(EmitError::FilterTooLarge(bytes));
        }
        if query.timeout < Duration::from_millis(1) || query.timeout > MAX_QUERY_TIMEOUT {
            return Err(EmitError::InvalidTimeout);
        }
        Ok(())
    }
}

impl QueryWire {
    fn open(self) -> Result<Query, EventDecodeError> {
        let nodes = self.nodes.iter().map(|node| node.parse());
        let nodes = nodes.collect::<Result<_, _>>();
        Ok(Query {
            filter: QueryFilter {
                nodes: nodes.map_err(|_| EventDecodeError::Field("filter"))?,
                tags: self.tags,
            },
            timeout: Duration::from_millis(self.timeout_ms.into()),
        })
    }
}

/// Which events of one life of an origin were heard: bit `i` is number `highest - i`.
#[derive(Debug)]
struct Window {
    boot: BootId,
    highest: u64,
    seen: u128,
    /// The highest Lamport time of an event of this life that was told, and was not too far ahead.
    told: u64,
    /// Events up to this Lamport time may be copies of what was told before the window was opened.
    floor: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    New,
    /// Heard before.
    Copy,
    /// Of an earlier life, from before this node came, or too far behind.
    Stale,
    /// Its origin is no member, or one that is gone.
    Stranger,
}

impl Window {
    /// Every event above the Lamport time `floor` is new.
    fn empty(boot: BootId, floor: u64) -> Self {
        Self {
            boot,
            highest: 0,
            seen: 0,
            told: 0,
            floor,
        }
    }

    /// The same, and nothing up to the number `highest` is new.
    fn from_here_on(boot: BootId, highest: u64, floor: u64) -> Self {
        let seen = u128::MAX;
        Self {
            highest,
            seen,
            ..Self::empty(boot, floor)
        }
    }

    fn judge(&self, event: &UserEvent) -> Judgement {
        if event.lamport <= self.floor {
            return Judgement::Stale;
        }
        let Some(behind) = self.highest.checked_sub(event.number) else {
            return Judgement::New;
        };
        if behind >= WINDOW {
            Judgement::Stale
        } else if self.seen >> behind & 1 == 1 {
            Judgement::Copy
        } else {
            Judgement::New
        }
    }

    fn mark(&mut self, number: u64) {
        if let Some(ahead) = number.checked_sub(self.highest) {
            let shift = u32::try_from(ahead).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(shift).unwrap_or(0) | 1;
            self.highest = number;
        } else if self.highest - number < WINDOW {
            self.seen |= 1 << (self.highest - number);
        }
    }
}

/// An event on its way.
#[derive(Debug)]
struct Piece {
    origin: NodeId,
    encoded: Vec<u8>,
}

/// The events that still have to be sent, by how often they were sent and then by age.
#[derive(Debug, Default)]
struct Queue {
    pieces: BTreeMap<(u32, u64), Piece>,
    serial: u64,
    /// What events may take of the next datagrams although membership news waits.
    credit: usize,
}

impl Queue {
    fn count_of(&self, origin: &NodeId) -> usize {
        let of = |piece: &&Piece| piece.origin == *origin;
        self.pieces.values().filter(of).count()
    }

    fn push(&mut self, origin: NodeId, encoded: Vec<u8>) {
        self.serial += 1;
        let piece = Piece { origin, encoded };
        self.pieces.insert((0, self.serial), piece);
    }

    fn clear(&mut self) {
        self.pieces.clear();
    }

    /// Makes room for an event of another origin. Returns how many had to go.
    fn make_room(&mut self, origin: &NodeId, me: &NodeId) -> u64 {
        let full_origin = if self.count_of(origin) >= MAX_PENDING_PER_ORIGIN {
            origin.clone()
        } else if self.pieces.len() >= MAX_PENDING {
            let mut counts = BTreeMap::<&NodeId, usize>::new();
            let others = self.pieces.values().filter(|piece| piece.origin != *me);
            others.for_each(|piece| *counts.entry(&piece.origin).or_default() += 1);
            let most = counts.into_iter().max_by_key(|(_, count)| *count);
            match most {
                Some((most, _)) => most.clone(),
                None => return 0,
            }
        } else {
            return 0;
        };
        let of = |piece: &Piece| piece.origin == full_origin;
        let most_sent = self.pieces.iter().rev().find(|(_, piece)| of(piece));
        let Some((&(transmits, _), _)) = most_sent else {
            return 0;
        };
        let oldest = self
            .pieces
            .range((transmits, 0)..)
            .find(|(_, piece)| of(piece))
            .map(|(key, _)| *key);
        u64::from(oldest.and_then(|key| self.pieces.remove(&key)).is_some())
    }

    fn has_unsent(&self) -> bool {
        self.pieces
            .first_key_value()
            .is_some_and(|((transmits, _), _)| *transmits == 0)
    }

    /// Appends events to a datagram, within its limit and within `budget`, and counts in `appended`
    /// how many it has. Returns the bytes appended.
    fn fill(
        &mut self,
        out: &mut Vec<u8>,
        max_bytes: usize,
        budget: usize,
        max_transmits: u32,
        appended: &mut BTreeSet<u64>,
    ) -> usize {
        let before = out.len();
        let mut passed_over = 0;
        let mut taken = Vec::new();
        for (key, piece) in &self.pieces {
            let bytes = piece.encoded.len();
            if appended.len() == message::MAX_EVENTS || passed_over == MAX_PASSED_OVER {
                break;
            }
            // Whom smaller ones overtook for ever would wait for credit for ever.
            if out.len() - before + bytes > budget {
                break;
            }
            if out.len() + bytes > max_bytes || appended.contains(&key.1) {
                passed_over += 1;
                continue;
            }
            out.extend_from_slice(&piece.encoded);
            appended.insert(key.1);
            taken.push(*key);
        }
        for (transmits, serial) in taken {
            if let Some(piece) = self.pieces.remove(&(transmits, serial))
                && transmits + 1 < max_transmits
            {
                self.pieces.insert((transmits + 1, serial), piece);
            }
        }
        out.len() - before
    }
}

/// What a node keeps of events: at most one window a member, and a bounded queue.
#[derive(Debug)]
pub(super) struct UserEvents {
    lamport: u64,
    /// The number of our own last event.
    number: u64,
    /// The clock of the first peer met: what is older was said before this node came.
    floor: Option<u64>,
    /// The highest Lamport time that was told of an origin, or a life of one, which is forgotten. At
    /// most our clock.
    forgotten: u64,
    /// At most [`MAX_LIVES`] of each origin, in the order in which they were met.
    windows: BTreeMap<NodeId, Vec<Window>>,
    /// The number of our own last event when each member came, if that was not 0.
    came_after: BTreeMap<NodeId, u64>,
    queue: Queue,
    /// The latest events with the time of their coming, oldest first.
    recent: VecDeque<(Instant, VerifiedEvent)>,
    recent_bytes: usize,
}

impl UserEvents {
    pub(super) fn new(me: NodeId, boot: BootId) -> Self {
        Self {
            lamport: 0,
            number: 0,
            floor: None,
            forgotten: 0,
            windows: BTreeMap::from([(me, vec![Window::from_here_on(boot, 0, 0)])]),
            came_after: BTreeMap::new(),
            queue: Queue::default(),
            recent: VecDeque::new(),
            recent_bytes: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.pieces.is_empty()
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.queue.has_unsent()
    }

    pub(super) fn forget(&mut self, node: &NodeId) {
        for window in self.windows.remove(node).unwrap_or_default() {
            self.forgotten = self.forgotten.max(window.told);
        }
        self.came_after.remove(node);
    }

    /// What was heard of a life of an origin.
    fn window(&self, origin: &NodeId, boot: BootId) -> Option<&Window> {
        let lives = self.windows.get(origin)?;
        lives.iter().find(|window| window.boot == boot)
    }

    /// The same, to change; of a life that was not met before, `new`, for which the one met longest
    /// ago may have to go.
    fn window_or(&mut self, origin: &NodeId, new: Window) -> &mut Window {
        let lives = self.windows.entry(origin.clone()).or_default();
        let known = lives.iter().position(|window| window.boot == new.boot);
        let place = known.unwrap_or_else(|| {
            if lives.len() == MAX_LIVES {
                let forgotten = lives.remove(0);
                self.forgotten = self.forgotten.max(forgotten.told);
            }
            lives.push(new);
            lives.len() - 1
        });
        &mut lives[place]
    }

    /// A member, or another life of one, is here: whatever we emit from now on is for it too.
    pub(super) fn on_came(&mut self, node: &NodeId) {
        if self.number == 0 {
            self.came_after.remove(node);
        } else {
            self.came_after.insert(node.clone(), self.number);
        }
    }

    /// Appends events and membership news (`others`) to a datagram; see the module.
    pub(super) fn fill_around(
        &mut self,
        out: &mut Vec<u8>,
        max_bytes: usize,
        max_transmits: u32,
        others: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.is_empty() {
            others(out);
            return;
        }
        let mut appended = BTreeSet::new();
        let queue = &mut self.queue;
        // More than a datagram's worth would let events take several in a row.
        queue.credit = (queue.credit + max_bytes / SHARE).min(max_bytes);
        let credit = queue.credit;
        queue.credit -= queue.fill(out, max_bytes, credit, max_transmits, &mut appended);
        others(out);
        queue.fill(out, max_bytes, max_bytes, max_transmits, &mut appended);
        if self.is_empty() {
            self.queue.credit = 0;
        }
    }

    fn remember(&mut self, now: Instant, event: VerifiedEvent) {
        self.recent_bytes += recent_bytes(&event);
        self.recent.push_back((now, event));
        while self.recent_bytes > MAX_RECENT_BYTES {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, event)) = self.recent.pop_front() {
            self.recent_bytes -= recent_bytes(&event);
        }
    }

    /// Follows another's clock by a step at most; `false` when that is too far ahead to be true.
    fn witness(&mut self, lamport: u64) -> bool {
        let reach = (self.lamport + MAX_LAMPORT_STEP).min(MAX_LAMPORT);
        self.lamport = self.lamport.max(lamport.min(reach));
        lamport <= reach
    }
}

fn recent_bytes(event: &VerifiedEvent) -> usize {
    event.signed.payload.len() + event.signed.signature.len() + RECENT_OVERHEAD_BYTES
}

impl Swim {
    /// Makes the next event of this node, for the caller to sign and to hand back with
    /// [`handle_user_event`](Self::handle_user_event). One that is not handed back leaves a gap in
    /// the numbers, which harms nothing.
    ///
    /// # Errors
    ///
    /// [`EmitError`] when it is outside its limits, or when too many are on their way.
    pub fn prepare_event(
        &mut self,
        name: &str,
        payload: Vec<u8>,
        query: Option<Query>,
    ) -> Result<UserEvent, EmitError> {
        let own = &self.own.record;
        let mut event = UserEvent {
            origin: self.id.clone(),
            boot: own.boot,
            number: self.user_events.number + 1,
            lamport: (self.user_events.lamport + 1).min(MAX_LAMPORT),
            name: name.to_owned(),
            payload,
            query,
        };
        event.check()?;
        if own.left || self.desired.left {
            return Err(EmitError::Left);
        }
        let pending = self.user_events.queue.count_of(&self.id);
        if pending >= MAX_OWN_PENDING {
            return Err(EmitError::QueueFull(pending));
        }
        let bytes = event.encode().len() + SIGNATURE_OVERHEAD_BYTES;
        let max = self.config.max_payload_bytes;
        if bytes > max {
            return Err(EmitError::DatagramTooSmall { bytes, max });
        }
        // What the wire rounds, both ends round.
        if let Some(query) = &mut event.query {
            let ms = u64::try_from(query.timeout.as_millis()).unwrap_or(u64::MAX);
            query.timeout = Duration::from_millis(ms);
        }
        self.user_events.number = event.number;
        self.user_events.lamport = event.lamport;
        Ok(event)
    }

    /// Whether an event would be delivered if its signature is good. Costs no more than a look-up,
    /// and counts what it refuses.
    pub fn is_new_event(&mut self, event: &UserEvent) -> bool {
        match self.judge_event(event) {
            Judgement::New => return true,
            Judgement::Copy => self.counters.events_copies += 1,
            Judgement::Stale => self.counters.events_stale += 1,
            Judgement::Stranger => self.counters.events_strangers += 1,
        }
        false
    }

    /// Takes an event whose signature the caller has verified, or, of this node's own, has made:
    /// delivers it here and passes it on. What [`is_new_event`](Self::is_new_event) denies has no
    /// effect.
    pub fn handle_user_event(&mut self, now: Instant, verified: VerifiedEvent) {
        if self.judge_event(&verified.event) != Judgement::New {
            return;
        }
        let event = verified.event.clone();
        let is_own = event.origin == self.id;
        let events = &mut self.user_events;
        let is_plausible = is_own || events.witness(event.lamport);
        let new = Window::empty(event.boot, events.forgotten);
        let window = events.window_or(&event.origin, new);
        window.mark(event.number);
        // What a liar says of the time must not silence the others once it is forgotten.
        if is_plausible {
            window.told = window.told.max(event.lamport);
        }
        if is_own {
            self.counters.events_emitted += 1;
        } else {
            self.counters.events_received += 1;
            self.counters.implausible += u64::from(!is_plausible);
        }
        self.spread_event(now, &event.origin, &verified.signed);
        self.user_events.remember(now, verified);
        self.events.push_back(Event::User(Arc::new(event)));
    }

    /// The events to tell whoever this node syncs with, oldest first.
    pub fn recent_events(&mut self, now: Instant) -> impl Iterator<Item = &VerifiedEvent> {
        let keep = self.config.sync_every(self.members.live()) * 2;
        let events = &mut self.user_events;
        while events
            .recent
            .front()
            .is_some_and(|(came, _)| now >= *came + keep)
        {
            events.forget_oldest();
        }
        events.recent.iter().map(|(_, event)| event)
    }

    /// What to tell a peer of our events when a connection to it is up; `life` is who is at its other
    /// end, which may be a later one than the member that is known.
    pub fn event_clock(&self, peer: &NodeId, life: Option<BootId>) -> EventClock {
        let events = &self.user_events;
        let is_known = |member: &Member| Some(member.record.record.boot) == life;
        let member = self.members.get(peer).filter(|member| member.is_live());
        let is_here = member.is_some_and(is_known);
        EventClock {
            boot: self.own.record.boot,
            lamport: events.lamport,
            number: if is_here {
                events.came_after.get(peer).copied().unwrap_or(0)
            } else {
                events.number
            },
        }
    }

    /// Takes what a peer tells of its events over an authenticated connection: before any event that
    /// the same connection brings.
    pub fn handle_event_clock(&mut self, from: &NodeId, clock: EventClock) {
        let Some(member) = self.members.get(from).filter(|_| *from != self.id) else {
            return;
        };
        // Of a life that is not believed here yet, only the clock counts: what the other life said
        // must still be known for a copy.
        let is_believed = member.record.record.boot == clock.boot;
        let events = &mut self.user_events;
        if is_believed {
            let new = Window::from_here_on(clock.boot, clock.number, events.forgotten);
            events.window_or(from, new);
        }
        if events.witness(clock.lamport) {
            events.floor.get_or_insert(clock.lamport);
        } else {
            self.counters.implausible += 1;
        }
    }

    /// How many events have not been sent often enough yet.
    pub fn pending_events(&self) -> usize {
        self.user_events.queue.pieces.len()
    }

    fn judge_event(&self, event: &UserEvent) -> Judgement {
        let Some(member) = self.members.get(&event.origin) else {
            return Judgement::Stranger;
        };
        if !member.is_live() {
            return Judgement::Stranger;
        }
        if member.record.record.boot != event.boot {
            return Judgement::Stale;
        }
        let events = &self.user_events;
        if let Some(window) = events.window(&event.origin, event.boot) {
            return window.judge(event);
        }
        let floor = events.floor.unwrap_or(0).max(events.forgotten);
        if event.lamport <= floor {
            Judgement::Stale
        } else {
            Judgement::New
        }
    }

    /// The last of the others is gone: events are for those who are there, and a full queue would
    /// refuse this node's own for as long as it is alone.
    pub(super) fn forget_waiting_events(&mut self) {
        self.user_events.queue.clear();
    }

    fn spread_event(&mut self, now: Instant, origin: &NodeId, signed: &SignedEvent) {
        // Events are for those who are there.
        if self.members.live() <= 1 {
            return;
        }
        let encoded = message::encode_event(signed);
        if encoded.len() > self.config.max_payload_bytes {
            self.counters.events_dropped += 1;
            return;
        }
        let queue = &mut self.user_events.queue;
        if *origin != self.id {
            self.counters.events_dropped += queue.make_room(origin, &self.id);
        }
        queue.push(origin.clone(), encoded);
        if !self.timers.is_set(&Timer::Gossip) {
            let wait = self
                .rng
                .between(Duration::ZERO, self.config.gossip_interval);
            self.timers.set(Timer::Gossip, now + wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::{Record, SignedRecord, VerifiedRecord, encode_addr},
        rng::Rng,
        stats::MemberStatus,
        swim::{Action, Body, Config, Message, SyncEntry},
    };

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn own_record(node: NodeId, boot: u8, incarnation: u64) -> Arc<VerifiedRecord> {
        let port = 1_000 + node.as_str().bytes().map(u16::from).sum::<u16>();
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(encode_addr(addr).len(), 6);
        let record = Record {
            cluster: "test".parse().unwrap(),
            node,
            incarnation,
            boot: BootId([boot; 16]),
            quic_addr: addr,
            gossip_addr: addr,
            tags: BTreeMap::new(),
            left: false,
            protocol: (1, 1),
            version: "0".into(),
            certificate: [0; 32],
        };
        sign(record)
    }

    fn sign(record: Record) -> Arc<VerifiedRecord> {
        let payload = Arc::from(record.encode());
        let signature = Arc::from(vec![0; 72]);
        Arc::new(VerifiedRecord {
            record,
            signed: SignedRecord { payload, signature },
        })
    }

    fn verified(event: UserEvent) -> VerifiedEvent {
        let signed = SignedEvent {
            payload: event.encode().into(),
            signature: vec![9; 72].into(),
        };
        VerifiedEvent { event, signed }
    }

    fn event(origin: &str, boot: u8, number: u64, lamport: u64) -> VerifiedEvent {
        verified(UserEvent {
            origin: id(origin),
            boot: BootId([boot; 16]),
            number,
            lamport,
            name: "deploy".into(),
            payload: b"v2".to_vec(),
            query: None,
        })
    }

    /// Cores that know each other, and a clock.
    struct Net {
        cores: BTreeMap<NodeId, Swim>,
        now: Instant,
        rng: Rng,
        loss_percent: u64,
        heard: BTreeMap<NodeId, Vec<Arc<UserEvent>>>,
    }

    impl Net {
        #[expect(
            clippy::disallowed_methods,
            reason = "a starting point in time; nothing is measured"
        )]
        fn new(names: &[String]) -> Self {
            let now = Instant::now();
            let mut net = Self {
                cores: BTreeMap::new(),
                now,
                rng: Rng::new(3),
                loss_percent: 0,
                heard: BTreeMap::new(),
            };
            for name in names {
                let record = own_record(id(name), 1, 1);
                let seed = net.rng.u64();
                let core = Swim::new(Config::lan(), record, seed, now);
                net.cores.insert(id(name), core);
            }
            let records: Vec<_> = net.cores.values().map(|core| core.me().clone()).collect();
            for core in net.cores.values_mut() {
                for record in &records {
                    let (node, boot) = (record.record.node.clone(), record.record.boot);
                    core.handle_record(now, record.clone());
                    let (lamport, number) = (0, 0);
                    let clock = EventClock {
                        boot,
                        lamport,
                        number,
                    };
                    core.handle_event_clock(&node, clock);
                }
            }
            net
        }

        fn core(&mut self, name: &str) -> &mut Swim {
            self.cores.get_mut(&id(name)).unwrap()
        }

        fn emit(&mut self, name: &str, what: &str) -> Result<(), EmitError> {
            let now = self.now;
            let core = self.core(name);
            let event = core.prepare_event(what, b"payload".to_vec(), None)?;
            core.handle_user_event(now, verified(event));
            Ok(())
        }

        /// Lets time pass. Datagrams arrive at once.
        fn run(&mut self, time: Duration) {
            let until = self.now + time;
            loop {
                self.drain();
                let next = self.cores.values().filter_map(Swim::poll_timeout).min();
                match next.filter(|at| *at <= until) {
                    Some(at) => self.now = self.now.max(at),
                    None => break,
                }
                let now = self.now;
                let due = |core: &&mut Swim| core.poll_timeout().is_some_and(|at| at <= now);
                let cores = self.cores.values_mut();
                cores.filter(due).for_each(|core| core.handle_timeout(now));
            }
            self.now = until;
        }

        fn drain(&mut self) {
            let names: Vec<_> = self.cores.keys().cloned().collect();
            for name in names {
                let core = self.cores.get_mut(&name).unwrap();
                let mut syncs = Vec::new();
                while let Some(action) = core.poll_action() {
                    match action {
                        Action::Sign(record) => core.handle_signed(self.now, sign(record)),
                        Action::Sync { with } => syncs.push(with),
                        Action::SignForcedLeave(_)
                        | Action::Dial { .. }
                        | Action::PingOverConnection { .. } => {}
                    }
                }
                for with in syncs {
                    self.sync(&name, &with);
                    self.sync(&with, &name);
                }
                let core = self.cores.get_mut(&name).unwrap();
                while let Some(event) = core.poll_event() {
                    if let Event::User(event) = event {
                        self.heard.entry(name.clone()).or_default().push(event);
                    }
                }
                let from_addr = core.me().record.gossip_addr;
                let sent: Vec<_> = std::iter::from_fn(|| core.poll_transmit()).collect();
                for transmit in sent {
                    assert!(transmit.payload.len() <= Config::lan().max_payload_bytes);
                    if self.rng.below(100) < self.loss_percent {
                        continue;
                    }
                    let Some(target) = self.cores.get_mut(&transmit.to) else {
                        continue;
                    };
                    let message = Message::decode(&name, &transmit.payload).unwrap();
                    let events = message.events.clone();
                    target.handle_message(self.now, &name, from_addr, message, Vec::new());
                    Self::take(target, self.now, events);
                }
            }
        }

        fn take(core: &mut Swim, now: Instant, events: Vec<SignedEvent>) {
            for signed in events {
                let event = UserEvent::decode(&signed.payload).unwrap();
                if core.is_new_event(&event) {
                    core.handle_user_event(now, VerifiedEvent { event, signed });
                }
            }
        }

        fn sync(&mut self, from: &NodeId, to: &NodeId) {
            let from_core = self.cores.get_mut(from).unwrap();
            let life = Some(BootId([1; 16]));
            let clock = from_core.event_clock(to, life);
            let events: Vec<_> = from_core.recent_events(self.now).cloned().collect();
            let to_core = self.cores.get_mut(to).unwrap();
            to_core.handle_event_clock(from, clock);
            for event in events {
                to_core.handle_user_event(self.now, event);
            }
        }

        fn names_heard(&self, at: &str) -> Vec<&str> {
            let heard = self.heard.get(&id(at)).into_iter().flatten();
            heard.map(|event| event.name.as_str()).collect()
        }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("n{i}")).collect()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_largest_event_fits_a_datagram_beside_any_act() {
        let name = |c: &str| -> NodeId { c.repeat(63).parse().unwrap() };
        let filter = QueryFilter::all()
            .node(name("a"))
            .node(name("b"))
            .tag("k".repeat(20), "v".repeat(36));
        assert_eq!(filter.bytes(), MAX_FILTER_BYTES);
        let event = UserEvent {
            origin: name("n"),
            boot: BootId([1; 16]),
            number: u64::MAX,
            lamport: u64::MAX,
            name: "e".repeat(MAX_EVENT_NAME_BYTES),
            payload: vec![0; MAX_EVENT_BYTES - MAX_EVENT_NAME_BYTES],
            query: Some(Query {
                filter,
                timeout: MAX_QUERY_TIMEOUT,
            }),
        };
        let content = event.encode();
        assert!(content.len() <= MAX_SIGNED_EVENT_BYTES, "{}", content.len());
        assert_eq!(UserEvent::decode(&content).unwrap(), event);
        let signed = verified(event).signed;
        assert!(message::encode_event(&signed).len() <= content.len() + SIGNATURE_OVERHEAD_BYTES);
        let mut datagram = Vec::new();
        let (seq, target) = (u32::MAX, name("t"));
        message::encode_body(&Body::Ping { seq, target }, &mut datagram);
        datagram.extend(message::encode_event(&signed));
        let room = 1_200 - crate::trust::overhead(63);
        assert!(datagram.len() <= room, "{} bytes", datagram.len());
    }

    #[test]
    fn events_outside_their_limits_are_refused_to_the_sender_and_by_the_reader() {
        let mut net = Net::new(&names(2));
        let core = net.core("n0");
        let mut refused = |name: &str, payload: usize, query: Option<Query>| {
            let error = core.prepare_event(name, vec![0; payload], query);
            error.expect_err("outside its limits")
        };
        let invalid = |name: &str| EmitError::InvalidName(name.into());
        assert_eq!(refused("", 0, None), invalid(""));
        assert_eq!(refused("a b", 0, None), invalid("a b"));
        let long = "x".repeat(MAX_EVENT_NAME_BYTES + 1);
        assert_eq!(refused(&long, 0, None), invalid(&long));
        let large = MAX_EVENT_BYTES + 1;
        assert_eq!(
            refused("a", MAX_EVENT_BYTES, None),
            EmitError::TooLarge(large)
        );
        let query = |filter, timeout| Some(Query { filter, timeout });
        let wide = QueryFilter::all().tag("k", "v".repeat(MAX_FILTER_BYTES));
        assert!(matches!(
            refused("a", 0, query(wide, SECOND)),
            EmitError::FilterTooLarge(_)
        ));
        for timeout in [Duration::ZERO, MAX_QUERY_TIMEOUT + SECOND] {
            let query = query(QueryFilter::all(), timeout);
            assert_eq!(refused("a", 0, query), EmitError::InvalidTimeout);
        }
        let field = |change: fn(&mut UserEvent)| {
            let mut event = event("a", 1, 1, 1).event;
            change(&mut event);
            UserEvent::decode(&event.encode())
        };
        let error = |name| Err(EventDecodeError::Field(name));
        assert_eq!(field(|e| e.name = "ä".into()), error("name"));
        assert_eq!(field(|e| e.payload = vec![0; 600]), error("payload"));
        assert_eq!(field(|e| e.number = 0), error("number"));
        let huge = UserEvent::decode(&[0; MAX_SIGNED_EVENT_BYTES + 1]);
        assert!(matches!(huge, Err(EventDecodeError::TooLarge(_))));
        assert!(UserEvent::decode(&[]).is_err());
    }

    #[test]
    fn random_and_mutated_events_never_panic() {
        let mut rng = Rng::new(5);
        let valid = event("a", 1, 1, 1).event.encode();
        for _ in 0..20_000 {
            let mut bytes = valid.clone();
            for _ in 0..=rng.index(6) {
                let at = rng.index(bytes.len());
                bytes[at] = rng.u64() as u8;
            }
            bytes.truncate(rng.index(bytes.len() + 1));
            let _ = UserEvent::decode(&bytes);
        }
    }

    #[test]
    fn every_member_hears_every_event_once_whatever_is_lost() {
        let mut net = Net::new(&names(20));
        net.loss_percent = 20;
        net.run(SECOND);
        for i in 0..10 {
            net.emit(&format!("n{i}"), &format!("e{i}")).unwrap();
        }
        net.run(60 * SECOND);
        let all: Vec<_> = (0..10).map(|i| format!("e{i}")).collect();
        for name in names(20) {
            let mut heard = net.names_heard(&name);
            heard.sort_unstable();
            assert_eq!(heard, all, "{name}");
        }
        let core = net.core("n3");
        assert_eq!(core.pending_events(), 0);
        assert_eq!(core.counters().events_emitted, 1);
        assert_eq!(core.counters().events_received, 9);
        assert!(core.counters().events_copies > 0);
    }

    #[test]
    fn an_event_that_gossip_lost_comes_with_the_next_sync() {
        let mut net = Net::new(&names(3));
        net.run(60 * SECOND);
        net.loss_percent = 100;
        net.emit("n0", "e").unwrap();
        net.run(Duration::from_millis(400));
        let (n0, n1) = (id("n0"), id("n1"));
        net.sync(&n0, &n1);
        net.drain();
        assert_eq!(net.names_heard("n1"), ["e"]);
        net.sync(&n0, &n1);
        net.drain();
        assert_eq!(net.names_heard("n1"), ["e"], "once");
        let now = net.now + 61 * SECOND;
        assert_eq!(net.core("n0").recent_events(now).count(), 0);
    }

    #[test]
    fn an_event_that_answers_another_has_a_higher_lamport_time() {
        let mut net = Net::new(&names(3));
        for i in 0..5 {
            net.emit(&format!("n{}", i % 3), "e").unwrap();
            net.run(5 * SECOND);
        }
        let times: Vec<u64> = net.heard[&id("n1")].iter().map(|e| e.lamport).collect();
        assert_eq!(times, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_copy_and_an_event_too_far_behind_are_not_new() {
        let mut net = Net::new(&names(2));
        let now = net.now;
        let core = net.core("n0");
        for number in [1, 3, 2, 200] {
            let event = event("n1", 1, number, number);
            assert!(core.is_new_event(&event.event), "{number}");
            core.handle_user_event(now, event);
        }
        let is_new =
            |core: &mut Swim, number| core.is_new_event(&event("n1", 1, number, number).event);
        assert!(!is_new(core, 200));
        assert!(!is_new(core, 3), "too far behind 200");
        assert!(!is_new(core, 200 - WINDOW));
        assert!(is_new(core, 200 - WINDOW + 1));
        assert_eq!(core.counters().events_copies, 1);
        assert_eq!(core.counters().events_stale, 2);
        let count = core.counters().events_received;
        core.handle_user_event(now, event("n1", 1, 200, 200));
        assert_eq!(core.counters().events_received, count);
    }

    #[test]
    fn events_of_strangers_the_dead_and_earlier_lives_are_not_new() {
        let mut net = Net::new(&names(2));
        let now = net.now;
        let core = net.core("n0");
        assert!(!core.is_new_event(&event("stranger", 1, 1, 1).event));
        assert!(!core.is_new_event(&event("n1", 7, 1, 1).event));
        core.handle_user_event(now, event("n1", 1, 1, 1));
        // Another life of n1; what was recorded of the first one is worth nothing.
        core.handle_record(now, own_record(id("n1"), 2, 5));
        assert!(!core.is_new_event(&event("n1", 1, 2, 2).event));
        assert!(core.is_new_event(&event("n1", 2, 1, 1).event));
        let mut left = own_record(id("n1"), 2, 6).record.clone();
        left.left = true;
        core.handle_record(now, sign(left));
        assert!(!core.is_new_event(&event("n1", 2, 1, 1).event));
        assert_eq!(core.counters().events_strangers, 2);
        assert_eq!(core.counters().events_stale, 2);
        while let Some(event) = core.poll_event() {
            if let Event::User(event) = event {
                assert_eq!((event.boot, event.number), (BootId([1; 16]), 1));
            }
        }
    }

    #[test]
    fn what_was_told_is_not_new_when_its_origin_was_forgotten_and_is_back() {
        let mut net = Net::new(&names(3));
        let mut now = net.now;
        let core = net.core("n0");
        core.handle_user_event(now, event("n1", 1, 1, 5));
        // So far ahead that it does not count, or nobody else could say anything any more.
        core.handle_user_event(now, event("n1", 1, 2, u64::MAX));
        let mut left = own_record(id("n1"), 1, 2).record.clone();
        left.left = true;
        core.handle_record(now, sign(left));
        now += Config::lan().tombstone;
        core.handle_timeout(now);
        assert!(core.member(&id("n1")).is_none(), "forgotten");
        core.handle_record(now, own_record(id("n1"), 1, 3));
        let is_new = |core: &mut Swim, origin, number, lamport| {
            core.is_new_event(&event(origin, 1, number, lamport).event)
        };
        assert!(!is_new(core, "n1", 1, 5), "by gossip");
        // For n1, n0 was there all the time.
        let clock = EventClock {
            boot: BootId([1; 16]),
            lamport: 5,
            number: 0,
        };
        core.handle_event_clock(&id("n1"), clock);
        assert!(!is_new(core, "n1", 1, 5), "with a sync");
        assert!(is_new(core, "n1", 3, 6), "emitted since");
        assert!(is_new(core, "n2", 1, 6), "of another");
    }

    #[test]
    fn what_was_told_is_not_new_when_an_earlier_life_of_its_origin_held_in_between() {
        let mut net = Net::new(&names(3));
        let now = net.now;
        let core = net.core("n0");
        let is_new = |core: &mut Swim, origin, boot, number, lamport| {
            core.is_new_event(&event(origin, boot, number, lamport).event)
        };
        // Life 9 runs. Life 8 ended before n0 came, and somebody still knows it at a higher
        // incarnation; life 9 goes above that, and life 8 is gone.
        core.handle_record(now, own_record(id("n1"), 9, 2));
        core.handle_user_event(now, event("n1", 9, 1, 5));
        core.handle_user_event(now, event("n1", 9, 3, 6));
        let past = SyncEntry {
            record: own_record(id("n1"), 8, 3),
            status: MemberStatus::Alive,
            forced: None,
        };
        core.handle_sync(now, &id("n2"), vec![past]);
        core.handle_user_event(now, event("n1", 8, 1, 2));
        core.handle_record(now, own_record(id("n1"), 9, 4));
        assert!(!is_new(core, "n1", 9, 1, 5));
        assert!(!is_new(core, "n1", 9, 3, 6));
        assert!(is_new(core, "n1", 9, 2, 6), "it was not heard");
        assert!(is_new(core, "n1", 9, 4, 7), "emitted since");
        // Of more lives than are kept, what was told is not new either, whatever the origin says.
        for (boot, incarnation) in [(10, 5), (11, 6)] {
            core.handle_record(now, own_record(id("n1"), boot, incarnation));
            core.handle_user_event(now, event("n1", boot, 1, 6 + u64::from(boot)));
        }
        core.handle_record(now, own_record(id("n1"), 9, 7));
        let clock = EventClock {
            boot: BootId([9; 16]),
            lamport: 17,
            number: 0,
        };
        core.handle_event_clock(&id("n1"), clock);
        assert!(!is_new(core, "n1", 9, 1, 5));
        assert!(!is_new(core, "n1", 9, 3, 6));
        assert!(is_new(core, "n1", 9, 4, 18), "emitted since");
        assert!(is_new(core, "n2", 1, 1, 18), "of another");
        let lives = core.user_events.windows.values().map(Vec::len);
        assert!(lives.max().unwrap() <= MAX_LIVES);
    }

    #[test]
    fn who_comes_later_does_not_hear_what_was_said_before() {
        let mut net = Net::new(&names(3));
        for _ in 0..5 {
            net.emit("n0", "old").unwrap();
            net.emit("n1", "old").unwrap();
            net.run(5 * SECOND);
        }
        // It was a member all the time, and so it would be told if it were the same life.
        let of_life = |net: &mut Net, life| {
            let clock = net
                .core("n0")
                .event_clock(&id("n2"), Some(BootId([life; 16])));
            (clock, clock.lamport, clock.number)
        };
        assert_eq!(of_life(&mut net, 1).2, 0);
        let (clock, lamport, number) = of_life(&mut net, 9);
        assert_eq!((lamport, number), (5, 5));
        // n2 starts anew and is connected to n0 only.
        let now = net.now;
        let mut late = Swim::new(Config::lan(), own_record(id("n2"), 9, 9), 1, now);
        for name in ["n0", "n1"] {
            late.handle_record(now, own_record(id(name), 1, 1));
        }
        late.handle_event_clock(&id("n0"), clock);
        assert!(!late.is_new_event(&event("n0", 1, 5, 5).event), "replayed");
        assert!(!late.is_new_event(&event("n1", 1, 5, 5).event), "replayed");
        assert!(late.is_new_event(&event("n0", 1, 6, 6).event));
        assert!(late.is_new_event(&event("n1", 1, 6, 6).event));
        let event = late.prepare_event("new", vec![], None).unwrap();
        assert_eq!(event.lamport, 6);
    }

    #[test]
    fn what_is_emitted_before_the_connection_is_up_is_heard() {
        let mut net = Net::new(&names(2));
        net.emit("n0", "before").unwrap();
        net.run(5 * SECOND);
        let now = net.now;
        // A newcomer, of which n0 has heard, and which has heard nothing of n0 yet.
        let life = BootId([9; 16]);
        net.core("n0")
            .handle_record(now, own_record(id("n9"), 9, 1));
        net.emit("n0", "between").unwrap();
        let clock = net.core("n0").event_clock(&id("n9"), Some(life));
        assert_eq!((clock.lamport, clock.number), (2, 1));
        let mut late = Swim::new(Config::lan(), own_record(id("n9"), 9, 1), 1, now);
        late.handle_record(now, own_record(id("n0"), 1, 1));
        late.handle_event_clock(&id("n0"), clock);
        assert!(!late.is_new_event(&event("n0", 1, 1, 1).event), "before");
        assert!(late.is_new_event(&event("n0", 1, 2, 2).event), "between");
        // Its next life is somebody else.
        net.core("n0")
            .handle_record(now, own_record(id("n9"), 8, 2));
        let clock = net.core("n0").event_clock(&id("n9"), Some(BootId([8; 16])));
        assert_eq!(clock.number, 2);
    }

    #[test]
    fn an_injected_maximum_moves_the_clock_by_a_step_and_silences_nobody() {
        let mut net = Net::new(&names(3));
        let now = net.now;
        let core = net.core("n0");
        core.handle_user_event(now, event("n1", 1, 1, u64::MAX));
        core.handle_event_clock(
            &id("n1"),
            EventClock {
                boot: BootId([1; 16]),
                lamport: u64::MAX,
                number: u64::MAX,
            },
        );
        assert_eq!(core.counters().implausible, 2);
        assert_eq!(core.user_events.lamport, 2 * MAX_LAMPORT_STEP);
        assert!(core.is_new_event(&event("n1", 1, 2, 2).event));
        assert!(core.is_new_event(&event("n2", 1, 1, 1).event));
        // A number at the very end can only hurt the liar itself.
        core.handle_user_event(now, event("n2", 1, u64::MAX, 1));
        assert!(!core.is_new_event(&event("n2", 1, 1, 1).event));
        let ahead = 3 * MAX_LAMPORT_STEP;
        core.handle_user_event(now, event("n1", 1, 3, ahead));
        assert_eq!(core.user_events.lamport, ahead, "this much is believed");
        assert_eq!(core.counters().implausible, 2);
    }

    #[test]
    fn the_clock_of_a_liar_that_is_forgotten_silences_nobody_who_missed_its_lies() {
        let mut net = Net::new(&names(3));
        let now = net.now;
        let core = net.core("n0");
        for lie in 1..=3 {
            core.handle_user_event(now, event("n1", 1, lie, lie * MAX_LAMPORT_STEP));
        }
        core.user_events.forget(&id("n1"));
        assert_eq!(core.user_events.forgotten, 3 * MAX_LAMPORT_STEP);
        let late = event("n2", 1, 1, 1);
        assert!(core.is_new_event(&late.event), "n2 was met before");
        let replayed = event("n1", 1, 2, 2 * MAX_LAMPORT_STEP);
        assert!(!core.is_new_event(&replayed.event));
        // What is beyond the clock is not taken for the time.
        core.handle_user_event(now, event("n1", 1, 4, MAX_LAMPORT));
        core.user_events.forget(&id("n1"));
        assert_eq!(core.user_events.forgotten, 3 * MAX_LAMPORT_STEP);
        assert_eq!(core.user_events.lamport, 4 * MAX_LAMPORT_STEP);
    }

    #[test]
    fn more_events_than_can_be_passed_on_are_refused_to_who_emits_them() {
        let mut net = Net::new(&names(2));
        for _ in 0..MAX_OWN_PENDING {
            net.emit("n0", "e").unwrap();
        }
        let full = Err(EmitError::QueueFull(MAX_OWN_PENDING));
        assert_eq!(net.emit("n0", "e"), full);
        net.run(30 * SECOND);
        assert_eq!(net.emit("n0", "e"), Ok(()));
        net.run(SECOND);
        assert_eq!(net.names_heard("n1").len(), MAX_OWN_PENDING + 1);
        assert_eq!(net.names_heard("n0").len(), MAX_OWN_PENDING + 1);
    }

    #[test]
    fn a_node_alone_tells_itself_and_keeps_nothing_for_others() {
        let mut net = Net::new(&names(1));
        for _ in 0..MAX_OWN_PENDING * 2 {
            net.emit("n0", "e").unwrap();
        }
        net.run(SECOND);
        assert_eq!(net.names_heard("n0").len(), MAX_OWN_PENDING * 2);
        assert_eq!(net.core("n0").pending_events(), 0);
    }

    #[test]
    fn a_node_whose_last_peer_has_left_forgets_what_waited_for_it() {
        let mut net = Net::new(&names(2));
        for _ in 0..MAX_OWN_PENDING {
            net.emit("n0", "e").unwrap();
        }
        let farewell = Record {
            left: true,
            incarnation: 2,
            ..net.core("n1").me().record.clone()
        };
        let now = net.now;
        net.core("n0").handle_record(now, sign(farewell));
        net.run(SECOND);
        assert_eq!(net.core("n0").pending_events(), 0);
        assert_eq!(net.emit("n0", "e"), Ok(()));
    }

    #[test]
    fn a_busy_origin_displaces_its_own_events_before_those_of_others() {
        let mut net = Net::new(&names(8));
        let now = net.now;
        let core = net.core("n0");
        for number in 1..=1_000 {
            core.handle_user_event(now, event("n1", 1, number, number));
        }
        for number in 1..=50 {
            for other in ["n2", "n3", "n4", "n5", "n6"] {
                core.handle_user_event(now, event(other, 1, number, number));
            }
        }
        let queue = &core.user_events.queue;
        assert_eq!(queue.pieces.len(), MAX_PENDING);
        for other in ["n1", "n2", "n3", "n4", "n5", "n6"] {
            let count = queue.count_of(&id(other));
            assert!((40..=MAX_PENDING_PER_ORIGIN).contains(&count), "{count}");
        }
        let received = core.counters().events_received;
        assert_eq!(received, 1_250, "all were delivered here");
        let pending = u64::try_from(MAX_PENDING).unwrap();
        assert_eq!(core.counters().events_dropped, received - pending);
    }

    /// Fills datagrams of 1,000 bytes while there is always other news, and returns what each part
    /// got.
    fn shares(event_bytes: usize, others: bool, datagrams: usize) -> (usize, usize) {
        let mut events = UserEvents::new(id("me"), BootId([1; 16]));
        for _ in 0..10_000 {
            events.queue.push(id("a"), vec![1; event_bytes]);
        }
        let (mut of_events, mut of_others) = (0, 0);
        for _ in 0..datagrams {
            let mut out = Vec::new();
            events.fill_around(&mut out, 1_000, 9, |out| {
                if others {
                    of_others += 1_000 - out.len();
                    out.resize(1_000, 0);
                }
            });
            assert!(out.len() <= 1_000);
            of_events += out.iter().filter(|byte| **byte == 1).count();
        }
        (of_events, of_others)
    }

    #[test]
    fn events_get_a_quarter_of_the_datagrams_and_no_more_while_other_news_waits() {
        for bytes in [50, 120, 250, 400, 700, 970] {
            let (of_events, of_others) = shares(bytes, true, 1_000);
            let share = of_events * 100 / (of_events + of_others);
            assert!((19..=25).contains(&share), "{share} % with {bytes} bytes");
        }
    }

    #[test]
    fn events_get_all_the_room_that_other_news_leaves() {
        let (of_events, _) = shares(120, false, 100);
        assert_eq!(of_events, 100 * 8 * 120);
        let (of_events, _) = shares(10, false, 1);
        assert_eq!(of_events, 10 * message::MAX_EVENTS, "what a reader accepts");
    }

    #[test]
    fn a_flood_of_events_does_not_hold_up_membership_and_the_other_way_round() {
        let mut net = Net::new(&names(30));
        for i in 0..30 {
            for _ in 0..8 {
                net.emit(&format!("n{i}"), "flood").unwrap();
            }
        }
        // Everybody changes its tags at the same moment.
        let now = net.now;
        for core in net.cores.values_mut() {
            let tags = BTreeMap::from([("k".to_owned(), "v".repeat(400))]);
            core.set_tags(now, tags).unwrap();
        }
        net.run(60 * SECOND);
        for name in names(30) {
            assert_eq!(net.names_heard(&name).len(), 240, "{name}");
            let counters = *net.core(&name).counters();
            assert_eq!(counters.suspicions, 0, "{name}");
        }
    }

    #[test]
    fn a_filter_asks_those_who_meet_every_condition() {
        let tags = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
        let n1 = id("n1");
        assert!(QueryFilter::all().matches(&n1, &tags));
        assert!(QueryFilter::all().node(n1.clone()).matches(&n1, &tags));
        assert!(!QueryFilter::all().node(id("n2")).matches(&n1, &tags));
        let web = QueryFilter::all().tag("role", "web");
        assert!(web.matches(&n1, &tags));
        assert!(!web.clone().tag("zone", "a").matches(&n1, &tags));
        assert!(!web.node(id("n2")).matches(&n1, &tags));
    }

    #[test]
    fn who_has_left_says_nothing_more() {
        let mut net = Net::new(&names(2));
        let now = net.now;
        net.core("n0").leave(now);
        assert_eq!(net.emit("n0", "e"), Err(EmitError::Left));
    }
}
