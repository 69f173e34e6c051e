//! What is remembered for the page: the last minute of each peer, the last events, and, while somebody
//! looks, the round-trip times of the whole cluster, the reasons of suspicions and what threads do.
//!
//! `nd-http-watch` takes a sample once a second from what the node publishes anyway. What costs others
//! something (questions to peers and to the reactor) is asked only while somebody looks, and there is
//! one set of answers for all who look, so that no number of readers costs the cluster more than one.
//!
//! Bounds: [`MAX_TRAILS`] peers with [`MINUTE`] samples of a few bytes each, [`MAX_EVENTS`] events,
//! [`MAX_EXPLAINED`] explanations, a matrix of [`MAX_MATRIX`] nodes.

#![expect(
    clippy::disallowed_methods,
    reason = "samples are taken by the real clock"
)]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::{Condvar, Mutex};

use crate::{
    event::Event,
    explanation::Explanation,
    figures::{Figures, PeerFigures},
    node_id::NodeId,
    process::{self, Thread},
    rtts::{Row, Rtts},
    stats::{ConnectionState, MemberInfo, MemberStatus},
    subscribers::Events,
    thread,
    view::View,
};

/// Samples that are kept of a peer: one a second.
pub(crate) const MINUTE: usize = 60;

/// Peers of which samples are kept, in the order of their names.
const MAX_TRAILS: usize = 1_024;

/// Events that are kept.
pub(crate) const MAX_EVENTS: usize = 256;

/// Members whose suspicion or death is explained.
const MAX_EXPLAINED: usize = 16;

/// Nodes in the matrix; more would be no picture any more.
pub(crate) const MAX_MATRIX: usize = 64;

/// How long after somebody looked the costly things go on: a page asks once a second.
const ATTENTION: Duration = Duration::from_secs(5);

/// How often the peers are asked for their round-trip times, and how long all of them have.
const MATRIX_INTERVAL: Duration = Duration::from_secs(2);
const MATRIX_BUDGET: Duration = Duration::from_millis(300);

/// How long the reactor may take to explain one member.
const EXPLAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// How long the first who looks waits for the matrix: the budget, and time to ask.
const FIRST_LOOK: Duration = Duration::from_millis(400);

const SECOND: Duration = Duration::from_secs(1);

/// The last minute of one peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trail {
    /// Round-trip times, the oldest first; `None` while there was no connection.
    pub(crate) rtts: VecDeque<Option<Duration>>,
    /// What had been sent and received at each sample.
    figures: VecDeque<(Instant, PeerFigures)>,
    /// Since when there is no connection.
    pub(crate) down_since: Option<Instant>,
}

/// What a peer's figures say of the last seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Rates {
    /// Bytes a second over the last samples.
    pub(crate) sent: f64,
    pub(crate) received: f64,
    /// The share of packets lost in the last minute, from 0 to 1; none when too few were sent.
    pub(crate) loss: Option<f64>,
}

/// Samples that a rate is taken over: one alone is restless.
const RATE_SAMPLES: usize = 3;

/// Fewer packets say nothing about loss.
const MIN_PACKETS: u64 = 20;

impl Trail {
    fn push(&mut self, now: Instant, rtt: Option<Duration>, figures: PeerFigures, is_up: bool) {
        if self.rtts.len() == MINUTE {
            self.rtts.pop_front();
        }
        self.rtts.push_back(rtt.filter(|_| is_up));
        if self.figures.len() > MINUTE {
            self.figures.pop_front();
        }
        self.figures.push_back((now, figures));
        self.down_since = match (is_up, self.down_since) {
            (true, _) => None,
            (false, since) => since.or(Some(now)),
        };
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "rates are shown with three digits"
    )]
    pub(crate) fn rates(&self) -> Rates {
        let Some((last_at, last)) = self.figures.back() else {
            return Rates::default();
        };
        let mut rates = Rates::default();
        let before = self.figures.len().saturating_sub(1 + RATE_SAMPLES);
        if let Some((at, before)) = self.figures.get(before) {
            let seconds = last_at.saturating_duration_since(*at).as_secs_f64();
            if seconds > 0.0 {
                rates.sent = last.sent_bytes.saturating_sub(before.sent_bytes) as f64 / seconds;
                let received = last.received_bytes.saturating_sub(before.received_bytes);
                rates.received = received as f64 / seconds;
            }
        }
        if let Some((_, first)) = self.figures.front() {
            let sent = last.sent_packets.saturating_sub(first.sent_packets);
            let lost = last.lost_packets.saturating_sub(first.lost_packets);
            rates.loss = (sent >= MIN_PACKETS).then(|| lost as f64 / sent as f64);
        }
        rates
    }
}

/// How far everybody is from everybody.
#[derive(Debug, Clone, Default)]
pub(crate) struct Matrix {
    /// Who is in it, in the order of names, this node included.
    pub(crate) nodes: Vec<NodeId>,
    /// What each said; who said nothing is not in it.
    pub(crate) rows: BTreeMap<NodeId, Row>,
    /// How many nodes there are beside those.
    pub(crate) left_out: usize,
}

/// A thread, and the share of a processor that it used since the sample before.
#[derive(Debug, Clone)]
pub(crate) struct Busy {
    pub(crate) thread: Thread,
    pub(crate) share: Option<f64>,
}

/// What is remembered.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) trails: BTreeMap<NodeId, Trail>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) matrix: Option<Arc<Matrix>>,
    pub(crate) explained: Vec<Arc<Explanation>>,
    pub(crate) threads: Vec<Busy>,
    /// The figures a minute ago or at the start, and once a second since.
    pub(crate) figures: VecDeque<Arc<Figures>>,
}

/// Whoever looks, and who remembers for them.
pub(crate) struct Watch {
    memory: Mutex<Memory>,
    /// Told after each time that the costly things were renewed.
    renewed: Condvar,
    started: Instant,
    /// When somebody looked last, in milliseconds since `started`, plus one; 0 for never.
    looked: AtomicU64,
    /// Somebody waits for a first look, so that the others need not.
    is_awaited: AtomicBool,
    look: Sender<()>,
}

/// The thread that remembers.
pub(crate) struct Watcher {
    stop: Sender<()>,
    thread: thread::Handle,
}

impl Watcher {
    /// Lets it end; it does within the budget of what it asks.
    pub(crate) fn stop(self, deadline: Instant) -> Option<String> {
        let Self { stop, thread } = self;
        drop(stop);
        thread::join_by(thread, deadline)
    }
}

/// Begins to remember.
///
/// # Errors
///
/// The system refused a thread.
pub(crate) fn start(
    view: Arc<View>,
    rtts: Arc<Rtts>,
    events: Events,
) -> io::Result<(Arc<Watch>, Watcher)> {
    let (look, looked) = bounded(1);
    let (stop, stopped) = bounded::<()>(0);
    let watch = Arc::new(Watch {
        memory: Mutex::default(),
        renewed: Condvar::new(),
        started: Instant::now(),
        looked: AtomicU64::new(0),
        is_awaited: AtomicBool::new(false),
        look,
    });
    let observer = Observer {
        view,
        rtts,
        watch: Arc::clone(&watch),
        cpu: BTreeMap::new(),
        cpu_at: None,
        matrix_at: None,
        renewed_at: None,
    };
    let thread = thread::spawn("nd-http-watch", move || {
        observer.run(&events, &looked, &stopped);
    })?;
    Ok((watch, Watcher { stop, thread }))
}

impl Watch {
    /// What is remembered, without asking for more.
    pub(crate) fn glance<T>(&self, read: impl FnOnce(&Memory) -> T) -> T {
        read(&self.memory.lock())
    }

    /// What is remembered, for somebody who looks: what costs more is renewed from now on. Only the very
    /// first waits a moment for it.
    pub(crate) fn look<T>(&self, read: impl FnOnce(&Memory) -> T) -> T {
        let was_watched = self.is_watched();
        let millis = self.started.elapsed().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX - 1);
        self.looked.store(millis + 1, Relaxed);
        // Full means that it knows already.
        let _ = self.look.try_send(());
        let mut memory = self.memory.lock();
        if !was_watched && !self.is_awaited.swap(true, Relaxed) {
            memory.matrix = None;
            let deadline = Instant::now() + FIRST_LOOK;
            while memory.matrix.is_none()
                && !self.renewed.wait_until(&mut memory, deadline).timed_out()
            {}
            self.is_awaited.store(false, Relaxed);
        }
        read(&memory)
    }

    fn is_watched(&self) -> bool {
        let looked = self.looked.load(Relaxed);
        looked > 0 && self.started + Duration::from_millis(looked - 1) + ATTENTION > Instant::now()
    }
}

/// What the thread owns.
struct Observer {
    view: Arc<View>,
    rtts: Arc<Rtts>,
    watch: Arc<Watch>,
    /// Processor time of threads at the sample before.
    cpu: BTreeMap<u32, Duration>,
    cpu_at: Option<Instant>,
    matrix_at: Option<Instant>,
    renewed_at: Option<Instant>,
}

impl Observer {
    /// The body of `nd-http-watch`. Ends when it is told to.
    fn run(mut self, events: &Events, looked: &Receiver<()>, stopped: &Receiver<()>) {
        let mut next = Instant::now();
        let never = crossbeam_channel::never();
        let mut receiver = events.receiver();
        loop {
            let left = next.saturating_duration_since(Instant::now());
            select! {
                recv(stopped) -> _ => return,
                recv(looked) -> _ => self.renew(),
                recv(receiver) -> event => match event {
                    Ok(event) => self.remember(event),
                    // The node has stopped; the page goes on until it is told to end.
                    Err(_) => receiver = &never,
                },
                default(left) => {
                    self.sample();
                    if self.watch.is_watched() {
                        self.renew();
                    }
                    // After a pause of the whole process there is nothing to make up for.
                    next = (next + SECOND).max(Instant::now());
                }
            }
        }
    }

    fn remember(&self, event: Event) {
        let events = &mut self.watch.memory.lock().events;
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// What is taken every second, from what is published anyway.
    fn sample(&self) {
        let figures = Arc::new(self.view.figures());
        let rows = self.view.connections();
        let now = Instant::now();
        let mut up = BTreeMap::new();
        let mut known = BTreeSet::new();
        for row in &rows {
            let Some(peer) = &row.peer else { continue };
            known.insert(peer.clone());
            if row.state == ConnectionState::Established {
                up.insert(peer.clone(), row.rtt);
            }
        }
        let mut memory = self.watch.memory.lock();
        memory.trails.retain(|peer, _| known.contains(peer));
        for peer in known {
            if memory.trails.len() >= MAX_TRAILS && !memory.trails.contains_key(&peer) {
                continue;
            }
            let trail = memory.trails.entry(peer.clone()).or_default();
            let of_peer = figures.peers.get(&peer).copied().unwrap_or_default();
            let rtt = up.get(&peer);
            trail.push(now, rtt.copied().flatten(), of_peer, rtt.is_some());
        }
        if memory.figures.len() > MINUTE {
            memory.figures.pop_front();
        }
        memory.figures.push_back(figures);
    }

    /// What costs more, and is only done while somebody looks.
    fn renew(&mut self) {
        let now = Instant::now();
        let is_missing = self.watch.memory.lock().matrix.is_none();
        // However many look, and however often.
        if !is_missing && self.renewed_at.is_some_and(|at| now < at + SECOND / 2) {
            return;
        }
        self.renewed_at = Some(now);
        let members = self.view.members();
        let explained = self.explain(&members);
        let threads = self.threads(now);
        let is_due = self.matrix_at.is_none_or(|at| now >= at + MATRIX_INTERVAL);
        let matrix = (is_due || is_missing).then(|| {
            self.matrix_at = Some(now);
            Arc::new(self.matrix(&members))
        });
        let mut memory = self.watch.memory.lock();
        memory.explained = explained;
        memory.threads = threads.unwrap_or_else(|| std::mem::take(&mut memory.threads));
        if let Some(matrix) = matrix {
            memory.matrix = Some(matrix);
        }
        drop(memory);
        self.watch.renewed.notify_all();
    }

    /// Why members are suspect or dead; the suspect first.
    fn explain(&self, members: &[MemberInfo]) -> Vec<Arc<Explanation>> {
        let of = |status| {
            let members = members.iter().filter(move |m| m.status == status);
            members.map(|member| &member.node)
        };
        let doubtful = of(MemberStatus::Suspect).chain(of(MemberStatus::Dead));
        let mut explained = Vec::new();
        for node in doubtful.take(MAX_EXPLAINED) {
            match self.view.explain(node, EXPLAIN_TIMEOUT) {
                Ok(explanation) => explained.push(Arc::new(explanation)),
                // A reactor that is late is not asked again and again.
                Err(_) => break,
            }
        }
        explained
    }

    /// What threads did since the sample before, if that is long enough ago to tell.
    fn threads(&mut self, now: Instant) -> Option<Vec<Busy>> {
        let elapsed = self.cpu_at.map(|at| now.saturating_duration_since(at));
        if elapsed.is_some_and(|elapsed| elapsed < SECOND / 2) {
            return None;
        }
        // The sample before the last look, minutes ago, says nothing of now.
        let elapsed = elapsed.filter(|elapsed| *elapsed < ATTENTION);
        let threads = process::threads();
        let before = std::mem::take(&mut self.cpu);
        let mut busy: Vec<Busy> = threads
            .into_iter()
            .map(|(id, thread)| {
                self.cpu.insert(id, thread.cpu);
                let used = before
                    .get(&id)
                    .map(|before| thread.cpu.saturating_sub(*before));
                let share = used.zip(elapsed);
                let share = share.map(|(used, elapsed)| used.as_secs_f64() / elapsed.as_secs_f64());
                Busy { thread, share }
            })
            .collect();
        self.cpu_at = Some(now);
        busy.sort_by(|a, b| {
            (b.share, b.thread.cpu)
                .partial_cmp(&(a.share, a.thread.cpu))
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        Some(busy)
    }

    fn matrix(&self, members: &[MemberInfo]) -> Matrix {
        let me = &self.view.node;
        let here = members.iter().filter(|member| match member.status {
            MemberStatus::Alive | MemberStatus::Suspect => true,
            // Gone, but somebody may still reach it: a hole in the picture says so.
            MemberStatus::Dead => true,
            MemberStatus::Left => false,
        });
        let mut nodes: Vec<NodeId> = here.map(|member| member.node.clone()).collect();
        let left_out = nodes.len().saturating_sub(MAX_MATRIX);
        nodes.truncate(MAX_MATRIX);
        if left_out > 0 && !nodes.contains(me) {
            nodes.pop();
            nodes.push(me.clone());
        }
        let others: Vec<NodeId> = nodes.iter().filter(|node| *node != me).cloned().collect();
        let mut rows = self.rtts.ask(&others, MATRIX_BUDGET);
        rows.insert(me.clone(), self.rtts.own());
        Matrix {
            nodes,
            rows,
            left_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_keeps_a_minute_and_knows_rates_and_loss() {
        let start = Instant::now();
        let mut trail = Trail::default();
        assert_eq!(trail.rates(), Rates::default());
        for second in 0..200_u64 {
            let figures = PeerFigures {
                sent_bytes: second * 1_000,
                received_bytes: second * 500,
                sent_packets: second * 10,
                lost_packets: second,
                ..PeerFigures::default()
            };
            let now = start + Duration::from_secs(second);
            trail.push(
                now,
                Some(Duration::from_millis(second)),
                figures,
                second < 198,
            );
        }
        assert_eq!(trail.rtts.len(), MINUTE);
        assert_eq!(trail.rtts[0], Some(Duration::from_millis(140)));
        assert_eq!(trail.rtts[MINUTE - 1], None);
        assert_eq!(trail.down_since, Some(start + Duration::from_secs(198)));
        let rates = trail.rates();
        assert!((rates.sent - 1_000.0).abs() < 1e-6, "{rates:?}");
        assert!((rates.received - 500.0).abs() < 1e-6, "{rates:?}");
        assert!((rates.loss.unwrap() - 0.1).abs() < 1e-6, "{rates:?}");
        assert!(trail.figures.len() <= MINUTE + 1);
    }
}
