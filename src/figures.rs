//! What a node counts and measures about itself, for onlookers: plain numbers that only ever grow,
//! and the few places where parts of a node write them without a lock.
//!
//! What is kept by name has a bound: the first [`MAX_APPS_COUNTED`] names of applications have figures
//! of their own for as long as the node runs, also when the application is registered again; the others
//! share those of [`OTHERS`]. So no name that somebody makes up costs memory, and no counter runs
//! backwards.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;

use crate::{node_id::NodeId, stats::ConnectionInfo};

/// How many applications have figures of their own: twice as many as can be registered at once.
pub(crate) const MAX_APPS_COUNTED: usize = 64;

/// Stands for all whose figures are not kept apart. It is the name of no node and no application.
pub const OTHERS: &str = "(others)";

/// The upper ends of the intervals that durations are counted in.
pub(crate) const BOUNDS: [Duration; 18] = [
    Duration::from_micros(25),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// One more for what took longer than the last bound.
const INTERVALS: usize = BOUNDS.len() + 1;

fn interval(took: Duration) -> usize {
    BOUNDS.partition_point(|bound| *bound < took)
}

/// How long something took, counted in intervals from 25 µs to 10 s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durations {
    counts: [u64; INTERVALS],
    sum_nanos: u64,
}

impl Durations {
    pub(crate) fn add(&mut self, took: Duration) {
        self.counts[interval(took)] += 1;
        self.sum_nanos = self.sum_nanos.saturating_add(nanos(took));
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long all of them took together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_nanos)
    }

    /// Each interval's upper end and how many fell into it; the last has no end.
    pub fn intervals(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let ends = BOUNDS.iter().copied().map(Some).chain([None]);
        ends.zip(self.counts.iter().copied())
    }

    /// A duration that a share of them, from 0 to 1, did not exceed: the upper end of an interval, so at
    /// most two and a half times too long. `None` when there were none, or when it is longer than 10 s.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let wanted = ((count as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (end, count) in self.intervals() {
            seen += count;
            if seen >= wanted {
                return end;
            }
        }
        None
    }

    /// Adds those of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_nanos = self.sum_nanos.saturating_add(other.sum_nanos);
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = *self;
        for (count, before) in difference.counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        difference.sum_nanos = self.sum_nanos.saturating_sub(earlier.sum_nanos);
        difference
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The same, written by many threads.
#[derive(Debug, Default)]
pub(crate) struct SharedDurations {
    counts: [AtomicU64; INTERVALS],
    sum_nanos: AtomicU64,
}

impl SharedDurations {
    pub(crate) fn add(&self, took: Duration) {
        self.counts[interval(took)].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos(took), Relaxed);
    }

    pub(crate) fn get(&self) -> Durations {
        let mut durations = Durations {
            sum_nanos: self.sum_nanos.load(Relaxed),
            ..Durations::default()
        };
        for (count, shared) in durations.counts.iter_mut().zip(&self.counts) {
            *count = shared.load(Relaxed);
        }
        durations
    }
}

/// How a request ended, for its requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RequestEnd {
    /// A reply came.
    Ok,
    /// The handler answered with an error, or there was none.
    Error,
    /// No reply came in time.
    Timeout,
    /// The connection ended first.
    Disconnected,
    /// The requester did not wait for it.
    Abandoned,
}

impl RequestEnd {
    pub(crate) const ALL: [Self; 5] = [
        Self::Ok,
        Self::Error,
        Self::Timeout,
        Self::Disconnected,
        Self::Abandoned,
    ];

    /// `ok`, `error`, `timeout`, `disconnected` or `abandoned`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Why something of an application was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// A datagram came while 1,024 others waited to be taken.
    InboxFull,
    /// There is no such application here.
    NoApplication,
    /// Messages that the peer had not acknowledged when the connection ended; it may have them.
    Unacknowledged,
    /// A reply that its requester did not read in time.
    Reply,
    /// A request that waited for its handler until its requester had given up.
    Expired,
}

impl DropReason {
    pub(crate) const ALL: [Self; 5] = [
        Self::InboxFull,
        Self::NoApplication,
        Self::Unacknowledged,
        Self::Reply,
        Self::Expired,
    ];

    /// `inbox_full`, `no_application`, `unacknowledged`, `reply` or `expired`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InboxFull => "inbox_full",
            Self::NoApplication => "no_application",
            Self::Unacknowledged => "unacknowledged",
            Self::Reply => "reply",
            Self::Expired => "expired",
        }
    }
}

/// What one application has done since the node started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppFigures {
    /// Messages and datagrams that connections have taken over.
    pub sent: u64,
    /// Messages and datagrams that came.
    pub received: u64,
    /// Requests that came.
    pub requests_received: u64,
    /// What was not delivered, by reason.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Requests of this node that wait for their reply. Only counted while
    /// [requests are measured](crate::Node::figures).
    pub in_flight: u64,
    /// How long requests of this node took, by how they ended; only while measured.
    pub requests: BTreeMap<RequestEnd, Durations>,
    /// How often a handler panicked.
    pub handler_panics: u64,
    /// Of applications that are registered now: what waits in the inbox.
    pub inbox: Option<InboxFigures>,
}

/// What waits in an application's inbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxFigures {
    /// Messages that wait to be taken.
    pub messages: usize,
    /// Bytes of messages that wait or that the application still holds; at most
    /// [`capacity_bytes`](Self::capacity_bytes).
    pub message_bytes: usize,
    /// Requests that wait for a handler.
    pub requests: usize,
    /// Bytes of those.
    pub request_bytes: usize,
    /// Streams that wait to be taken.
    pub streams: usize,
    /// Datagrams that wait to be taken.
    pub datagrams: usize,
    /// The most bytes of messages, and as many of requests, that it takes.
    pub capacity_bytes: usize,
}

/// What was sent to and received from a peer since it became known, over all its connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerFigures {
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Bytes of QUIC packets declared lost.
    pub lost_bytes: u64,
    /// QUIC packets sent.
    pub sent_packets: u64,
    /// QUIC packets received.
    pub received_packets: u64,
    /// QUIC packets declared lost.
    pub lost_packets: u64,
    /// Health pings without an answer.
    pub ping_failures: u64,
}

impl PeerFigures {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.lost_bytes += other.lost_bytes;
        self.sent_packets += other.sent_packets;
        self.received_packets += other.received_packets;
        self.lost_packets += other.lost_packets;
        self.ping_failures += other.ping_failures;
    }

    pub(crate) fn add(&mut self, info: &ConnectionInfo) {
        self.sent_bytes += info.sent_bytes;
        self.received_bytes += info.received_bytes;
        self.lost_bytes += info.lost_bytes;
        self.sent_packets += info.sent_packets;
        self.received_packets += info.received_packets;
        self.lost_packets += info.lost_packets;
        self.ping_failures += info.ping_failures_total;
    }
}

/// What the failure detector has done since the node started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GossipFigures {
    /// Probes by how they ended: `direct`, `indirect`, `connection` and `evidence` were answered, `failed`
    /// were not, `abandoned` ended without a verdict.
    pub probes: BTreeMap<&'static str, u64>,
    /// How long the first three took.
    pub probe_times: Durations,
    /// Members that became suspect here, and those that died here.
    pub suspicions: u64,
    /// See [`suspicions`](Self::suspicions).
    pub deaths: u64,
    /// Times that this node had to say that it is alive.
    pub refutations: u64,
    /// Messages sent by type.
    pub sent: BTreeMap<&'static str, u64>,
    /// Messages received by type.
    pub received: BTreeMap<&'static str, u64>,
    /// Bytes of datagrams sent, sealed.
    pub sent_bytes: u64,
    /// Bytes of datagrams received, refused ones included.
    pub received_bytes: u64,
}

/// A queue between threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueFigures {
    /// Which: `notices` (connections to the reactor) or `commands` (callers to the reactor).
    pub name: &'static str,
    /// How much waits in it.
    pub length: usize,
    /// The most that fits.
    pub capacity: usize,
}

/// Connections and dials that began and ended, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionFigures {
    /// Connections that this node dialled and that came up.
    pub opened_dialed: u64,
    /// Connections that this node accepted and that came up.
    pub opened_accepted: u64,
    /// Connections that were up and ended, by a word for the reason.
    pub closed: BTreeMap<&'static str, u64>,
    /// Connections and handshakes that ended by a fault, by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// Dials that ended, by outcome: `ok` or a word for the reason.
    pub dials: BTreeMap<&'static str, u64>,
}

/// Everything that a node counts, in one look; see [`Node::figures`](crate::Node::figures).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figures {
    /// By application. [`OTHERS`] stands for what belongs to none.
    pub apps: BTreeMap<String, AppFigures>,
    /// By peer, for the first 1,000 that this node met and has not forgotten.
    pub peers: BTreeMap<NodeId, PeerFigures>,
    /// Of all other peers together, forgotten ones included.
    pub other_peers: PeerFigures,
    /// Connections and dials.
    pub connections: ConnectionFigures,
    /// How long handshakes took, of connections that came up.
    pub handshakes: Durations,
    /// How long health pings took.
    pub pings: Durations,
    /// The failure detector.
    pub gossip: GossipFigures,
    /// Queues between threads.
    pub queues: Vec<QueueFigures>,
    /// Bytes that wait to be sent in the whole process, and the most that may.
    pub outbox_bytes: usize,
    /// See [`outbox_bytes`](Self::outbox_bytes).
    pub outbox_capacity_bytes: usize,
    /// Threads of this node by role.
    pub threads: BTreeMap<&'static str, usize>,
}

/// Where the threads of a node write what an application does.
#[derive(Debug, Default)]
pub(crate) struct SharedAppFigures {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) requests_received: AtomicU64,
    pub(crate) handler_panics: AtomicU64,
    in_flight: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    requests: [SharedDurations; RequestEnd::ALL.len()],
}

impl SharedAppFigures {
    pub(crate) fn drop_for(&self, reason: DropReason, count: u64) {
        self.dropped[reason as usize].fetch_add(count, Relaxed);
    }

    fn get(&self) -> AppFigures {
        let dropped = DropReason::ALL.into_iter().filter_map(|reason| {
            let count = self.dropped[reason as usize].load(Relaxed);
            (count > 0).then_some((reason, count))
        });
        let requests = RequestEnd::ALL.into_iter().filter_map(|end| {
            let durations = self.requests[end as usize].get();
            (durations.count() > 0).then_some((end, durations))
        });
        AppFigures {
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            requests_received: self.requests_received.load(Relaxed),
            dropped: dropped.collect(),
            in_flight: self.in_flight.load(Relaxed),
            requests: requests.collect(),
            handler_panics: self.handler_panics.load(Relaxed),
            inbox: None,
        }
    }
}

/// A request on its way. However it ends, it is counted once.
#[derive(Debug)]
pub(crate) struct Flight {
    figures: Arc<SharedAppFigures>,
    started: Instant,
    end: Option<(RequestEnd, Instant)>,
}

impl Flight {
    pub(crate) fn begin(figures: &Arc<SharedAppFigures>, started: Instant) -> Self {
        figures.in_flight.fetch_add(1, Relaxed);
        Self {
            figures: Arc::clone(figures),
            started,
            end: None,
        }
    }

    pub(crate) fn end(mut self, end: RequestEnd, now: Instant) {
        self.end = Some((end, now));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.figures.in_flight.fetch_sub(1, Relaxed);
        let (end, took) = match self.end {
            Some((end, now)) => (end, now.saturating_duration_since(self.started)),
            None => (RequestEnd::Abandoned, Duration::ZERO),
        };
        self.figures.requests[end as usize].add(took);
    }
}

/// The figures of all applications by their names.
#[derive(Debug, Default)]
pub(crate) struct AppTable {
    named: RwLock<BTreeMap<String, Arc<SharedAppFigures>>>,
    others: Arc<SharedAppFigures>,
}

impl AppTable {
    /// Those of an application that this node has registered.
    pub(crate) fn of(&self, name: &str) -> Arc<SharedAppFigures> {
        if let Some(figures) = self.named.read().get(name) {
            return Arc::clone(figures);
        }
        let mut named = self.named.write();
        if named.len() >= MAX_APPS_COUNTED && !named.contains_key(name) {
            return Arc::clone(&self.others);
        }
        Arc::clone(named.entry(name.to_owned()).or_default())
    }

    /// Those of all whose names are not known here, such as names that peers made up.
    pub(crate) fn others(&self) -> &Arc<SharedAppFigures> {
        &self.others
    }

    pub(crate) fn get(&self) -> BTreeMap<String, AppFigures> {
        let named = self.named.read();
        let mut all: BTreeMap<String, AppFigures> = named
            .iter()
            .map(|(name, figures)| (name.clone(), figures.get()))
            .collect();
        drop(named);
        let others = self.others.get();
        if others != AppFigures::default() {
            all.insert(OTHERS.to_owned(), others);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_interval_that_ends_at_or_after_them() {
        let mut durations = Durations::default();
        for micros in [1, 25, 26, 1_000, 60_000_000] {
            durations.add(Duration::from_micros(micros));
        }
        let counts: Vec<_> = durations.intervals().filter(|(_, n)| *n > 0).collect();
        let ends = [25, 50, 1_000].map(|micros| Some(Duration::from_micros(micros)));
        assert_eq!(
            counts,
            [(ends[0], 2), (ends[1], 1), (ends[2], 1), (None, 1)]
        );
        assert_eq!(durations.count(), 5);
        assert_eq!(durations.sum(), Duration::from_micros(60_001_052));
        assert_eq!(durations.quantile(0.5), ends[1]);
        assert_eq!(durations.quantile(1.0), None);
        assert_eq!(Durations::default().quantile(0.5), None);
        let shared = SharedDurations::default();
        shared.add(Duration::from_micros(30));
        assert_eq!(shared.get().quantile(0.99), ends[1]);
        let mut more = durations;
        more.add(Duration::from_micros(30));
        assert_eq!(more.since(&durations), shared.get());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "only differences matter")]
    fn a_request_is_counted_once_however_it_ends() {
        let figures = Arc::new(SharedAppFigures::default());
        let start = Instant::now();
        let [answered, given_up] = [(); 2].map(|()| Flight::begin(&figures, start));
        assert_eq!(figures.get().in_flight, 2);
        answered.end(RequestEnd::Ok, start + Duration::from_millis(1));
        drop(given_up);
        let now = figures.get();
        assert_eq!(now.in_flight, 0);
        assert_eq!(now.requests[&RequestEnd::Ok].count(), 1);
        assert_eq!(
            now.requests[&RequestEnd::Ok].sum(),
            Duration::from_millis(1)
        );
        assert_eq!(now.requests[&RequestEnd::Abandoned].count(), 1);
    }

    #[test]
    fn names_beyond_the_bound_share_their_figures_and_known_ones_keep_theirs() {
        let table = AppTable::default();
        for i in 0..2 * MAX_APPS_COUNTED {
            table.of(&format!("app{i}")).sent.fetch_add(1, Relaxed);
        }
        table.of("app0").sent.fetch_add(1, Relaxed);
        let all = table.get();
        assert_eq!(all.len(), MAX_APPS_COUNTED + 1);
        assert_eq!(all["app0"].sent, 2);
        assert_eq!(all[OTHERS].sent, MAX_APPS_COUNTED as u64);
    }
}
