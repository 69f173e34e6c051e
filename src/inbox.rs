//! Where messages and requests wait for the application: bounded in bytes, and what happens when
//! an inbox is full.
//!
//! An inbox counts the bytes of everything in it and of everything its application still holds.
//! When they reach the limit, the stream that the next message came on is not read any more, so
//! that the sender feels it; when bytes are given back, the connections that wait are woken. A
//! connection's other streams go on.
//!
//! Those who wait keep their order: while the item of the first does not fit, nobody else gets
//! room, or steady small items would keep a large one out for ever. When it fits, all are woken,
//! the first one first; whoever asks then gets room, for the first may never ask again. That is a
//! race, but one that the first takes part in each time the inbox has drained.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::{Mutex, RwLock};

use crate::{
    figures::{AppFigures, AppTable, DropReason, Flight, InboxFigures, SharedAppFigures},
    node_id::NodeId,
    stream::Stream,
    waker::Waker,
};

/// How many bytes of messages, and as many again of requests, one application holds at most.
pub(crate) const MAX_INBOX_BYTES: usize = 1 << 20;

/// What an item costs beside its payload, so that empty messages are bounded too.
const ITEM_OVERHEAD_BYTES: usize = 256;

/// How often the first of those who wait is woken to room for its item before it loses its place.
/// A connection does not tell when the stream was reset whose item waits.
const MAX_TURNS: u32 = 8;

/// With this code a stream is reset that no application takes.
pub(crate) const NOBODY_TAKES_IT: u64 = 1;

/// Streams that peers have opened and that wait for the application to take them.
const MAX_WAITING_STREAMS: usize = 64;

/// Datagrams that wait for the application to take them. Of what nobody waits for in time, the newest
/// is dropped and counted.
const MAX_WAITING_DATAGRAMS: usize = 1_024;

/// How many applications a node may have. Their streams must fit the 256 streams of a peer, and the
/// windows of those that can stall must fit the connection's (see `transport::Config`).
pub(crate) const MAX_APPS: usize = 32;

/// A count of bytes with a limit, and those who wait for it to fall.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    state: Mutex<BudgetState>,
}

#[derive(Debug, Default)]
struct BudgetState {
    held: usize,
    /// In the order in which they came. One entry a connection, and those of ended connections are
    /// dropped, so that there are no more than connections.
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    waker: Weak<Waker>,
    /// The largest item that it asked room for.
    bytes: usize,
    /// How often it was woken to room enough.
    turns: u32,
}

impl Waiter {
    fn is(&self, waker: &Arc<Waker>) -> bool {
        self.waker.as_ptr() == Arc::as_ptr(waker)
    }
}

impl BudgetState {
    fn fits(&self, bytes: usize) -> bool {
        self.held == 0 || self.held + bytes <= MAX_INBOX_BYTES
    }

    /// The first of those who wait and live.
    fn first(&mut self) -> Option<&Waiter> {
        self.waiting
            .retain(|waiter| waiter.waker.strong_count() > 0);
        self.waiting.front()
    }
}

impl Budget {
    /// Takes room for a payload, or notes `waker` to be woken when there may be room. A single
    /// item larger than the whole limit is taken when there is nothing else.
    pub(crate) fn take(self: &Arc<Self>, payload: usize, waker: &Arc<Waker>) -> Option<Permit> {
        let bytes = payload + ITEM_OVERHEAD_BYTES;
        let mut state = self.state.lock();
        let first = state
            .first()
            .filter(|first| !first.is(waker))
            .map(|first| first.bytes);
        let is_kept_out = first.is_some_and(|first| !state.fits(first));
        let place = state.waiting.iter().position(|other| other.is(waker));
        if is_kept_out || !state.fits(bytes) {
            match place {
                Some(place) => {
                    let waiter = &mut state.waiting[place];
                    waiter.bytes = waiter.bytes.max(bytes);
                }
                None => state.waiting.push_back(Waiter {
                    waker: Arc::downgrade(waker),
                    bytes,
                    turns: 0,
                }),
            }
            return None;
        }
        if let Some(place) = place {
            state.waiting.remove(place);
            // Another of its streams may wait behind the same entry: let it ask again.
            waker.wake();
        }
        state.held += bytes;
        Some(Permit {
            budget: Arc::clone(self),
            bytes,
        })
    }

    fn give_back(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.held -= bytes;
        // While the first does not fit, something is held, and its return comes here again.
        let Some(first) = state.first().map(|first| first.bytes) else {
            return;
        };
        if !state.fits(first) {
            return;
        }
        let wakers: Vec<Arc<Waker>> = state
            .waiting
            .iter()
            .filter_map(|waiter| waiter.waker.upgrade())
            .collect();
        if let Some(waiter) = state.waiting.front_mut() {
            waiter.turns += 1;
            if waiter.turns >= MAX_TURNS {
                state.waiting.pop_front();
            }
        }
        drop(state);
        for waker in wakers {
            waker.wake();
        }
    }

    /// Bytes held now.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().held
    }
}

/// Room in a budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// A message from a peer.
#[derive(Debug)]
#[non_exhaustive]
pub struct Message {
    /// Who sent it; its certificate proves it.
    pub from: NodeId,
    /// What it sent.
    pub payload: Vec<u8>,
    /// Its room in the inbox, until the message is dropped.
    _permit: Permit,
}

/// A datagram from a peer: it came once or not at all, in whatever order.
#[derive(Debug)]
#[non_exhaustive]
pub struct Datagram {
    /// Who sent it; its certificate proves it.
    pub from: NodeId,
    /// What it sent.
    pub payload: Vec<u8>,
}

/// A request from a peer, as a handler sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Request {
    /// Who asks; its certificate proves it.
    pub from: NodeId,
    /// What it asks.
    pub payload: Vec<u8>,
}

impl Message {
    pub(crate) fn new(from: NodeId, payload: Vec<u8>, permit: Permit) -> Self {
        Self {
            from,
            payload,
            _permit: permit,
        }
    }
}

impl Request {
    pub(crate) fn new(from: NodeId, payload: Vec<u8>) -> Self {
        Self { from, payload }
    }
}

/// Called by the thread that has just read a request, which reads nothing else meanwhile.
pub(crate) type InlineRequests = dyn Fn(&Request) -> Answer + Send + Sync;

/// Called by the thread that has just read a message.
pub(crate) type InlineMessages = dyn Fn(Message) + Send + Sync;

/// How a request was answered.
#[derive(Debug)]
pub(crate) enum Answer {
    Ok(Vec<u8>),
    Error(String),
    Expired,
}

/// Carries an answer back to the connection that the request came on.
pub(crate) trait Replier: Send + Sync {
    /// `expires_at`: when the requester gives up.
    fn reply(&self, app: &Arc<str>, id: u64, answer: Answer, expires_at: Instant);

    /// Whether the requester still waits, as far as is known here.
    fn is_awaited(&self, id: u64) -> bool;
}

/// A request that waits for a handler.
pub(crate) struct PendingRequest {
    pub(crate) request: Request,
    pub(crate) id: u64,
    /// When its sender gives up.
    pub(crate) expires_at: Instant,
    pub(crate) replier: Arc<dyn Replier>,
    pub(crate) permit: Permit,
}

struct Senders {
    messages: Sender<Message>,
    requests: Sender<PendingRequest>,
    streams: Sender<Stream>,
    datagrams: Sender<Datagram>,
}

/// One application's inbox.
pub(crate) struct Inbox {
    pub(crate) name: Arc<str>,
    /// The node's own; it does not count among its user's.
    is_internal: bool,
    pub(crate) message_budget: Arc<Budget>,
    pub(crate) request_budget: Arc<Budget>,
    /// The ends of both channels; the sending ones are dropped when the node has stopped, so that
    /// nobody waits for what cannot come.
    pub(crate) messages: Receiver<Message>,
    pub(crate) requests: Receiver<PendingRequest>,
    pub(crate) streams: Receiver<Stream>,
    pub(crate) datagrams: Receiver<Datagram>,
    pub(crate) dropped_datagrams: AtomicU64,
    senders: RwLock<Option<Senders>>,
    inline_messages: RwLock<Option<Arc<InlineMessages>>>,
    inline_requests: RwLock<Option<Arc<InlineRequests>>>,
    /// Whether a request handler is registered.
    pub(crate) takes_requests: AtomicBool,
    /// It is registered no more.
    is_gone: AtomicBool,
    /// Of every application of this name, since the node started.
    pub(crate) figures: Arc<SharedAppFigures>,
    /// Whether its requests are timed.
    is_measured: bool,
    pub(crate) handler_panics: AtomicU64,
}

impl Inbox {
    #[expect(
        clippy::disallowed_methods,
        reason = "both are bounded in bytes by their budgets"
    )]
    fn new(
        name: &str,
        is_internal: bool,
        figures: Arc<SharedAppFigures>,
        is_measured: bool,
    ) -> Self {
        let (message_sender, messages) = crossbeam_channel::unbounded();
        let (request_sender, requests) = crossbeam_channel::unbounded();
        let (stream_sender, streams) = crossbeam_channel::bounded(MAX_WAITING_STREAMS);
        let (datagram_sender, datagrams) = crossbeam_channel::bounded(MAX_WAITING_DATAGRAMS);
        let senders = Senders {
            messages: message_sender,
            requests: request_sender,
            streams: stream_sender,
            datagrams: datagram_sender,
        };
        Self {
            name: Arc::from(name),
            is_internal,
            message_budget: Arc::default(),
            request_budget: Arc::default(),
            messages,
            requests,
            streams,
            datagrams,
            dropped_datagrams: AtomicU64::new(0),
            senders: RwLock::new(Some(senders)),
            inline_messages: RwLock::default(),
            inline_requests: RwLock::default(),
            takes_requests: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            figures,
            is_measured,
            handler_panics: AtomicU64::new(0),
        }
    }

    /// A request of this application that leaves; nothing when requests are not timed.
    pub(crate) fn flight(&self, started: Instant) -> Option<Flight> {
        self.is_measured
            .then(|| Flight::begin(&self.figures, started))
    }

    /// What waits to be taken.
    fn waiting(&self) -> InboxFigures {
        InboxFigures {
            messages: self.messages.len(),
            message_bytes: self.message_budget.held(),
            requests: self.requests.len(),
            request_bytes: self.request_budget.held(),
            streams: self.streams.len(),
            datagrams: self.datagrams.len(),
            capacity_bytes: MAX_INBOX_BYTES,
        }
    }

    pub(crate) fn deliver(&self, message: Message) {
        self.figures.received.fetch_add(1, Relaxed);
        if let Some(senders) = &*self.senders.read() {
            // The receiver lives in this very struct, so that the channel is connected.
            let _ = senders.messages.send(message);
        }
    }

    /// Gives the stream back when too many wait already, or the node has stopped.
    pub(crate) fn deliver_stream(&self, stream: Stream) -> Result<(), Stream> {
        match &*self.senders.read() {
            Some(senders) if !self.is_gone() => senders
                .streams
                .try_send(stream)
                .map_err(TrySendError::into_inner),
            Some(_) | None => Err(stream),
        }
    }

    /// Nobody will take them any more.
    fn refuse_waiting_streams(&self) {
        while let Ok(stream) = self.streams.try_recv() {
            stream.reset(NOBODY_TAKES_IT);
        }
    }

    /// Datagrams are not worth waiting for: what does not fit is counted.
    pub(crate) fn deliver_datagram(&self, from: NodeId, payload: Vec<u8>) {
        let datagram = Datagram { from, payload };
        let senders = self.senders.read();
        let is_taken = senders
            .as_ref()
            .is_some_and(|senders| senders.datagrams.try_send(datagram).is_ok());
        if is_taken {
            self.figures.received.fetch_add(1, Relaxed);
        } else {
            self.dropped_datagrams.fetch_add(1, Relaxed);
            self.figures.drop_for(DropReason::InboxFull, 1);
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed)
    }

    pub(crate) fn inline_messages(&self) -> Option<Arc<InlineMessages>> {
        self.inline_messages.read().clone()
    }

    pub(crate) fn inline_requests(&self) -> Option<Arc<InlineRequests>> {
        self.inline_requests.read().clone()
    }

    pub(crate) fn set_inline_messages(&self, handler: Arc<InlineMessages>) {
        let before = self.inline_messages.write().replace(handler);
        drop(before);
    }

    pub(crate) fn set_inline_requests(&self, handler: Arc<InlineRequests>) {
        let before = self.inline_requests.write().replace(handler);
        drop(before);
        self.takes_requests.store(true, Relaxed);
    }

    pub(crate) fn deliver_request(&self, pending: PendingRequest) {
        self.figures.requests_received.fetch_add(1, Relaxed);
        if let Some(senders) = &*self.senders.read() {
            let _ = senders.requests.send(pending);
        }
    }
}

/// The applications of a node.
#[derive(Default)]
pub(crate) struct Registry {
    apps: RwLock<BTreeMap<String, Arc<Inbox>>>,
    figures: AppTable,
    /// Whether requests of applications that are registered from now on are timed, which costs them a
    /// few counters each.
    is_measured: AtomicBool,
}

/// Why a name was not registered.
pub(crate) enum Refusal {
    Taken,
    TooMany,
}

impl Registry {
    /// Has requests timed.
    pub(crate) fn measure(&self) {
        self.is_measured.store(true, Relaxed);
    }

    /// The figures of an application; of one that is not registered here, those of all such.
    pub(crate) fn figures_of(&self, app: &str) -> Arc<SharedAppFigures> {
        match self.get(app) {
            Some(inbox) => Arc::clone(&inbox.figures),
            None => Arc::clone(self.figures.others()),
        }
    }

    /// The figures of all applications, with what waits in the inboxes of those registered.
    pub(crate) fn figures(&self) -> BTreeMap<String, AppFigures> {
        let mut all = self.figures.get();
        let apps: Vec<Arc<Inbox>> = self.apps.read().values().cloned().collect();
        for app in apps {
            if let Some(figures) = all.get_mut(&*app.name) {
                figures.inbox = Some(app.waiting());
            }
        }
        all
    }

    fn inbox(&self, name: &str, is_internal: bool) -> Inbox {
        let is_measured = self.is_measured.load(Relaxed);
        Inbox::new(name, is_internal, self.figures.of(name), is_measured)
    }

    pub(crate) fn register(&self, name: &str) -> Result<Arc<Inbox>, Refusal> {
        let mut apps = self.apps.write();
        if apps.contains_key(name) {
            return Err(Refusal::Taken);
        }
        let users = apps.values().filter(|inbox| !inbox.is_internal).count();
        if users >= MAX_APPS {
            return Err(Refusal::TooMany);
        }
        let inbox = Arc::new(self.inbox(name, false));
        apps.insert(name.to_owned(), Arc::clone(&inbox));
        Ok(inbox)
    }

    /// An application of the node itself, beside those of its user.
    pub(crate) fn register_internal(&self, name: &str) -> Arc<Inbox> {
        let mut apps = self.apps.write();
        let inbox = apps
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(self.inbox(name, true)));
        Arc::clone(inbox)
    }

    pub(crate) fn unregister(&self, name: &str) {
        // The lock is let go of first: what waits in the inbox may take others when it is dropped.
        let inbox = self.apps.write().remove(name);
        if let Some(inbox) = inbox {
            inbox.is_gone.store(true, Relaxed);
            inbox.refuse_waiting_streams();
        }
    }

    /// The node has stopped: what is in the inboxes is the last.
    pub(crate) fn close(&self) {
        let inboxes: Vec<Arc<Inbox>> = self.apps.read().values().cloned().collect();
        for inbox in inboxes {
            let senders = inbox.senders.write().take();
            drop(senders);
            // They hold the connections that they came on, which hold the inbox.
            inbox.refuse_waiting_streams();
            // So may handlers, by way of their application.
            let messages = inbox.inline_messages.write().take();
            let requests = inbox.inline_requests.write().take();
            drop((messages, requests));
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Inbox>> {
        self.apps.read().get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_wakes_those_who_wait_when_bytes_come_back() {
        let budget = Arc::new(Budget::default());
        let waker = Arc::new(Waker::new().unwrap());
        let whole = budget
            .take(MAX_INBOX_BYTES * 4, &waker)
            .expect("an empty inbox takes anything");
        assert!(budget.take(0, &waker).is_none());
        assert!(budget.take(0, &waker).is_none());
        assert_eq!(budget.state.lock().waiting.len(), 1);
        drop(whole);
        assert_eq!(budget.held(), 0);
        let mut permits = Vec::new();
        while let Some(permit) = budget.take(0, &waker) {
            permits.push(permit);
        }
        assert_eq!(permits.len(), MAX_INBOX_BYTES / ITEM_OVERHEAD_BYTES);
    }

    #[test]
    fn small_items_wait_behind_a_large_one_that_came_before_them() {
        let budget = Arc::new(Budget::default());
        let [large, small, late] = [(); 3].map(|()| Arc::new(Waker::new().unwrap()));
        let first = budget.take(10, &small).expect("there is room");
        let second = budget.take(10, &small).expect("there is room");
        assert!(budget.take(2 * MAX_INBOX_BYTES, &large).is_none());
        assert!(budget.take(10, &small).is_none());
        drop(first);
        assert!(budget.take(10, &late).is_none());
        drop(second);
        let whole = budget.take(2 * MAX_INBOX_BYTES, &large);
        assert!(whole.is_some(), "the small ones have drained");
        drop(whole);
        assert!(budget.take(10, &small).is_some());
        assert!(budget.take(10, &late).is_some());
        assert_eq!(budget.state.lock().waiting.len(), 0);
    }

    #[test]
    fn one_who_ended_or_never_asks_again_keeps_nobody_out_for_ever() {
        let budget = Arc::new(Budget::default());
        let [ended, silent, small] = [(); 3].map(|()| Arc::new(Waker::new().unwrap()));
        let held = budget.take(10, &small).expect("there is room");
        assert!(budget.take(2 * MAX_INBOX_BYTES, &ended).is_none());
        assert!(budget.take(10, &small).is_none());
        drop(ended);
        drop(budget.take(10, &small).expect("the other ended"));
        assert!(budget.take(2 * MAX_INBOX_BYTES, &silent).is_none());
        drop(held);
        for _ in 1..MAX_TURNS {
            drop(budget.take(10, &small).expect("the other may never ask"));
        }
        let kept = budget.take(10, &small);
        assert!(kept.is_some() && budget.take(10, &small).is_some());
    }

    #[test]
    fn a_name_is_registered_once_and_again_after_it_was_given_back() {
        let registry = Registry::default();
        assert!(registry.register("a").is_ok());
        assert!(matches!(registry.register("a"), Err(Refusal::Taken)));
        registry.unregister("a");
        assert!(registry.register("a").is_ok());
        for i in 1..MAX_APPS {
            assert!(registry.register(&format!("b{i}")).is_ok());
        }
        assert!(matches!(registry.register("c"), Err(Refusal::TooMany)));
    }
}
