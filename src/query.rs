//! Queries: a question to all or some nodes by gossip, and their answers by request.
//!
//! **Asking.** The question is an event of applications (`swim`), so it reaches members that are not
//! connected, too. The reactor notes whom it expects an answer of, the members that are alive and
//! meet the filter, before the question leaves. [`Answers`] yields what comes until all of them have
//! answered or refused, or the time is over; then it tells who has not.
//!
//! **Answering.** The reactor hands a question to the channel of the handler of that name and goes on.
//! Each name has a thread of its own, so that a slow handler delays its own name only. It runs the
//! handler and sends the answer to the origin as a request of an internal application, which no user
//! can register. A node without a handler refuses, so that nobody waits for it.
//!
//! **Bounds.** Questions under way, questions waiting for a handler, an answer's size and the bytes of
//! answers waiting for the asker are bounded by the constants below. What does not fit is refused to
//! the node that answers, which counts it, and the asker finds that node among the missing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Sender, TrySendError};
use parking_lot::{Condvar, Mutex};
use prost::Message as _;

use crate::{
    app::{App, Workers, work},
    error::RegisterError,
    inbox::{Registry, Request},
    node_id::{BootId, NodeId},
    snapshot::Snapshot,
    thread::panic_message,
};

/// The application whose requests carry answers. Users cannot register it.
pub(crate) const APP: &str = "nodosum.query";

/// The largest answer. Who has more to say answers where it can be fetched.
pub const MAX_ANSWER_BYTES: usize = 16 * 1_024;

/// What an answer needs beside its bytes.
const MAX_ENVELOPE_BYTES: usize = 512;

/// Questions of this node under way at once; each waits for up to every member.
pub(crate) const MAX_QUERIES: usize = 64;

/// Answers of one question that wait for the asker to take them. What does not fit is refused to
/// who answers.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// What an answer that waits takes beside its bytes.
const ANSWER_OVERHEAD_BYTES: usize = 128;

/// Questions that wait for one handler. More are not answered, and counted: handlers are to be quick.
const QUESTION_CAPACITY: usize = 64;

/// Names with a handler; each costs a thread.
const MAX_HANDLERS: usize = 32;

/// How long one answer may take to be handed over, however long the asker waits: a peer that does
/// not read must not hold up the answers to others.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest reason of a refusal that is told; the rest is cut.
const MAX_REASON_BYTES: usize = 256;

/// A question, as a handler sees it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Query {
    /// Who asks. It has signed the question.
    pub from: NodeId,
    /// What is asked.
    pub name: String,
    /// What comes with the question.
    pub payload: Vec<u8>,
    /// The question's Lamport time.
    pub lamport: u64,
}

/// A question that waits for its handler.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) query: Query,
    pub(crate) boot: BootId,
    pub(crate) number: u64,
    /// When the asker gives up.
    pub(crate) deadline: Instant,
}

/// Who answered a query and who did not, so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueryReport {
    /// These have answered; maybe their answers wait to be taken.
    pub answered: Vec<NodeId>,
    /// These have said that they have no answer, and why.
    pub refused: Vec<(NodeId, String)>,
    /// These were alive and asked, and nothing has come from them.
    pub missing: Vec<NodeId>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnswerWire {
    #[prost(bytes = "vec", tag = "1")]
    boot: Vec<u8>,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(oneof = "Outcome", tags = "3, 4")]
    outcome: Option<Outcome>,
}

/// What a node has to say to a question.
#[derive(Clone, PartialEq, prost::Oneof)]
enum Outcome {
    #[prost(bytes = "vec", tag = "3")]
    Answer(Vec<u8>),
    #[prost(string, tag = "4")]
    Refusal(String),
}

/// One question under way: what has come, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: Mutex<SlotState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct SlotState {
    waiting: BTreeSet<NodeId>,
    answered: BTreeSet<NodeId>,
    refused: BTreeMap<NodeId, String>,
    ready: VecDeque<(NodeId, Vec<u8>)>,
    bytes: usize,
    /// The node has stopped.
    closed: bool,
}

impl Slot {
    /// Says whom to expect, before the question leaves.
    pub(crate) fn expect(&self, nodes: BTreeSet<NodeId>) {
        self.state.lock().waiting = nodes;
    }

    /// Takes what a node says. A node that was not expected, for it came up a moment ago, is as
    /// welcome as the others, each once.
    fn take(&self, from: &NodeId, outcome: Outcome) -> Result<(), &'static str> {
        let mut state = self.state.lock();
        if state.answered.contains(from) || state.refused.contains_key(from) {
            return Err("answered before");
        }
        match outcome {
            Outcome::Answer(answer) => {
                let bytes = answer.len() + ANSWER_OVERHEAD_BYTES;
                if state.bytes + bytes > MAX_WAITING_BYTES {
                    return Err("too many answers wait");
                }
                state.bytes += bytes;
                state.answered.insert(from.clone());
                state.ready.push_back((from.clone(), answer));
            }
            Outcome::Refusal(reason) => {
                state.refused.insert(from.clone(), reason);
            }
        }
        state.waiting.remove(from);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Answers to a query, as they come. Dropping it ends the query.
///
/// The iterator ends when everybody asked has answered or refused, when the time is over, and when
/// the node stops; [`report`](Self::report) then tells who did what.
#[derive(Debug)]
pub struct Answers {
    slot: Arc<Slot>,
    deadline: Instant,
    number: u64,
    queries: Arc<Queries>,
}

impl Answers {
    pub(crate) fn new(
        slot: Arc<Slot>,
        number: u64,
        deadline: Instant,
        queries: Arc<Queries>,
    ) -> Self {
        Self {
            slot,
            deadline,
            number,
            queries,
        }
    }

    /// The next answer, or none if it takes longer than `wait`; `Break` when no more will come. For
    /// whoever has something else to look after meanwhile.
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever waits does so against the real clock"
    )]
    pub fn next_within(&mut self, wait: Duration) -> ControlFlow<(), Option<(NodeId, Vec<u8>)>> {
        let until = Instant::now().checked_add(wait);
        self.next_before(until.map_or(self.deadline, |until| until.min(self.deadline)))
    }

    fn next_before(&self, until: Instant) -> ControlFlow<(), Option<(NodeId, Vec<u8>)>> {
        let mut state = self.slot.state.lock();
        loop {
            if let Some((node, answer)) = state.ready.pop_front() {
                state.bytes -= answer.len() + ANSWER_OVERHEAD_BYTES;
                return ControlFlow::Continue(Some((node, answer)));
            }
            if state.waiting.is_empty() || state.closed {
                return ControlFlow::Break(());
            }
            let waited = self.slot.changed.wait_until(&mut state, until);
            if waited.timed_out() && state.ready.is_empty() {
                return if until < self.deadline {
                    ControlFlow::Continue(None)
                } else {
                    ControlFlow::Break(())
                };
            }
        }
    }

    /// Who has answered, who has refused, and of whom nothing has come so far.
    pub fn report(&self) -> QueryReport {
        let state = self.slot.state.lock();
        QueryReport {
            answered: state.answered.iter().cloned().collect(),
            refused: state.refused.clone().into_iter().collect(),
            missing: state.waiting.iter().cloned().collect(),
        }
    }
}

impl Iterator for Answers {
    type Item = (NodeId, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_before(self.deadline) {
            ControlFlow::Continue(answer) => answer,
            ControlFlow::Break(()) => None,
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.queries.asked.lock().remove(&self.number);
    }
}

/// What becomes of questions and answers, counted; nobody decides by it.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Questions that nobody answered here: their handler had too many waiting, or the time was over.
    pub(crate) unanswered: AtomicU64,
    /// Answers that their origin could not be given.
    pub(crate) answers_lost: AtomicU64,
}

type Handler = dyn Fn(&Query) -> Option<Vec<u8>> + Send + Sync;

/// The queries of a node: those it has asked, and how it answers those of others.
pub(crate) struct Queries {
    me: NodeId,
    boot: BootId,
    registry: Arc<Registry>,
    snapshot: Arc<Snapshot>,
    workers: Arc<Workers>,
    asked: Mutex<BTreeMap<u64, Arc<Slot>>>,
    /// `None` once the node has stopped.
    handlers: Mutex<Option<BTreeMap<String, Sender<Question>>>>,
    /// Refuses what has no handler; starts with the first such question.
    refuser: Mutex<Option<Sender<Question>>>,
    /// Exists from the first question or answer on.
    app: Mutex<Option<App>>,
    pub(crate) counters: Counters,
}

impl std::fmt::Debug for Queries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queries").finish_non_exhaustive()
    }
}

impl Queries {
    pub(crate) fn new(
        me: NodeId,
        boot: BootId,
        registry: Arc<Registry>,
        snapshot: Arc<Snapshot>,
        workers: Arc<Workers>,
    ) -> Self {
        Self {
            me,
            boot,
            registry,
            snapshot,
            workers,
            asked: Mutex::default(),
            handlers: Mutex::new(Some(BTreeMap::new())),
            refuser: Mutex::default(),
            app: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// Makes ready to take answers, before the first question leaves.
    pub(crate) fn listen(self: &Arc<Self>) -> Result<(), RegisterError> {
        let mut app = self.app.lock();
        if app.is_some() {
            return Ok(());
        }
        let inbox = self.registry.register_internal(APP);
        let new = App::new(
            inbox,
            Arc::clone(&self.registry),
            Arc::clone(&self.snapshot),
            Arc::clone(&self.workers),
        );
        let queries = Arc::clone(self);
        new.on_request(1, move |request| queries.take_answer(request))?;
        *app = Some(new);
        Ok(())
    }

    /// Notes a question that is about to leave; `false` when there are too many.
    pub(crate) fn insert(&self, number: u64, slot: Arc<Slot>) -> bool {
        let mut asked = self.asked.lock();
        let has_room = asked.len() < MAX_QUERIES;
        if has_room {
            asked.insert(number, slot);
        }
        has_room
    }

    /// Forgets a question that nobody waits for: it was asked too late for who asked.
    pub(crate) fn forget(&self, slot: &Arc<Slot>) {
        let mut asked = self.asked.lock();
        asked.retain(|_, other| !Arc::ptr_eq(other, slot));
    }

    /// Whether another question may be asked.
    pub(crate) fn has_room(&self) -> bool {
        self.asked.lock().len() < MAX_QUERIES
    }

    /// Has questions of this name answered on a thread of their own, until the node stops.
    pub(crate) fn on_query(
        self: &Arc<Self>,
        name: &str,
        handler: Arc<Handler>,
    ) -> Result<(), RegisterError> {
        let mut handlers = self.handlers.lock();
        let Some(handlers) = &mut *handlers else {
            return Err(RegisterError::Stopped);
        };
        if handlers.contains_key(name) {
            return Err(RegisterError::Taken(name.to_owned()));
        }
        if handlers.len() >= MAX_HANDLERS {
            return Err(RegisterError::TooMany(MAX_HANDLERS));
        }
        let sender = self.start(move |query| judge(&*handler, query))?;
        handlers.insert(name.to_owned(), sender);
        Ok(())
    }

    /// Hands a question to its handler. Never waits.
    pub(crate) fn deliver(self: &Arc<Self>, question: Question) {
        let Some(sender) = self.sender(&question.query.name) else {
            return;
        };
        let refused = match sender.try_send(question) {
            Ok(()) => return,
            Err(TrySendError::Full(question) | TrySendError::Disconnected(question)) => question,
        };
        self.counters.unanswered.fetch_add(1, Relaxed);
        log::debug!(target: "node", name = refused.query.name.as_str(), from:% = refused.query.from;
            "query not answered: too many wait");
    }

    fn sender(self: &Arc<Self>, name: &str) -> Option<Sender<Question>> {
        if let Some(sender) = self.handlers.lock().as_ref()?.get(name) {
            return Some(sender.clone());
        }
        let mut refuser = self.refuser.lock();
        if refuser.is_none() {
            let refuse = |_: &Query| Outcome::Refusal("no handler".to_owned());
            match self.start(refuse) {
                Ok(sender) => *refuser = Some(sender),
                Err(error) => {
                    log::debug!(target: "node", error:%; "cannot refuse a query");
                    self.counters.unanswered.fetch_add(1, Relaxed);
                }
            }
        }
        refuser.clone()
    }

    fn start(
        self: &Arc<Self>,
        answer: impl Fn(&Query) -> Outcome + Send + 'static,
    ) -> Result<Sender<Question>, RegisterError> {
        let (sender, questions) = crossbeam_channel::bounded::<Question>(QUESTION_CAPACITY);
        let queries = Arc::clone(self);
        self.workers.start(move |stopped| {
            work(&stopped, &questions, |question| {
                if now() >= question.deadline {
                    queries.counters.unanswered.fetch_add(1, Relaxed);
                } else {
                    let outcome = answer(&question.query);
                    queries.answer(&question, outcome);
                }
            });
        })?;
        Ok(sender)
    }

    fn answer(self: &Arc<Self>, question: &Question, outcome: Outcome) {
        let told = if question.query.from == self.me {
            self.on_answer(&self.me, question.number, outcome)
        } else {
            self.send(question, outcome)
        };
        if let Err(error) = told {
            self.counters.answers_lost.fetch_add(1, Relaxed);
            log::debug!(target: "node", name = question.query.name.as_str(),
                to:% = question.query.from, error = error.as_str(); "answer not taken");
        }
    }

    fn send(self: &Arc<Self>, question: &Question, outcome: Outcome) -> Result<(), String> {
        self.listen().map_err(|error| error.to_string())?;
        let Some(app) = self.app.lock().clone() else {
            return Err("node is shut down".to_owned());
        };
        let answer = AnswerWire {
            boot: question.boot.0.to_vec(),
            number: question.number,
            outcome: Some(outcome),
        };
        let left = question.deadline.saturating_duration_since(now());
        let timeout = left.min(HAND_OVER_TIMEOUT);
        app.request(&question.query.from, answer.encode_to_vec(), timeout)
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    /// Takes an answer of a peer. What is refused here, the peer is told.
    fn take_answer(&self, request: &Request) -> Result<Vec<u8>, String> {
        if request.payload.len() > MAX_ANSWER_BYTES + MAX_ENVELOPE_BYTES {
            return Err("answer too large".to_owned());
        }
        let answer = AnswerWire::decode(&*request.payload).map_err(|_| "malformed answer")?;
        if BootId::from_slice(&answer.boot) != Some(self.boot) {
            return Err("an earlier life asked".to_owned());
        }
        let outcome = answer.outcome.ok_or("malformed answer")?;
        self.on_answer(&request.from, answer.number, outcome)?;
        Ok(Vec::new())
    }

    fn on_answer(&self, from: &NodeId, number: u64, outcome: Outcome) -> Result<(), String> {
        let slot = self.asked.lock().get(&number).cloned();
        let slot = slot.ok_or("no such query any more")?;
        slot.take(from, outcome.bounded()).map_err(str::to_owned)
    }

    /// The node has stopped: nobody waits for answers any more.
    pub(crate) fn close(&self) {
        self.handlers.lock().take();
        self.refuser.lock().take();
        self.app.lock().take();
        let asked = std::mem::take(&mut *self.asked.lock());
        asked.values().for_each(|slot| slot.close());
    }
}

impl Outcome {
    /// Whatever it was, no larger than answers and reasons may be.
    fn bounded(self) -> Self {
        match self {
            Self::Answer(answer) if answer.len() > MAX_ANSWER_BYTES => {
                let bytes = answer.len();
                let why = format!("the answer has {bytes} bytes, more than {MAX_ANSWER_BYTES}");
                Self::Refusal(why)
            }
            Self::Answer(answer) => Self::Answer(answer),
            Self::Refusal(mut reason) => {
                while reason.len() > MAX_REASON_BYTES {
                    reason.pop();
                }
                Self::Refusal(reason)
            }
        }
    }
}

/// Runs user code.
fn judge(handler: &Handler, query: &Query) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| handler(query))) {
        Ok(Some(answer)) => Outcome::Answer(answer).bounded(),
        Ok(None) => Outcome::Refusal("no answer".to_owned()),
        Err(panic) => {
            log::error!(target: "node", query = query.name.as_str(),
                panic = panic_message(panic.as_ref()).as_str(); "a query handler panicked");
            Outcome::Refusal("the handler panicked".to_owned())
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "answers are waited for against the real clock"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn queries() -> Arc<Queries> {
        Arc::new(Queries::new(
            id("me"),
            BootId([1; 16]),
            Arc::default(),
            Arc::new(Snapshot::new()),
            Arc::default(),
        ))
    }

    fn ask(queries: &Arc<Queries>, number: u64, expected: &[&str], patience: Duration) -> Answers {
        let slot = Arc::new(Slot::default());
        slot.expect(expected.iter().map(|name| id(name)).collect());
        assert!(queries.insert(number, Arc::clone(&slot)));
        Answers::new(slot, number, now() + patience, Arc::clone(queries))
    }

    fn request(from: &str, boot: u8, number: u64, outcome: impl Into<Option<Outcome>>) -> Request {
        let outcome = outcome.into();
        let answer = AnswerWire {
            boot: vec![boot; 16],
            number,
            outcome,
        };
        Request {
            from: id(from),
            payload: answer.encode_to_vec(),
        }
    }

    fn answer(payload: &[u8]) -> Outcome {
        Outcome::Answer(payload.to_vec())
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_question_that_nobody_waits_for_takes_no_place() {
        let queries = queries();
        let slots: Vec<_> = (0..MAX_QUERIES)
            .map(|_| Arc::new(Slot::default()))
            .collect();
        for (number, slot) in (0..).zip(&slots) {
            assert!(queries.insert(number, Arc::clone(slot)));
        }
        assert!(!queries.has_room());
        queries.forget(&slots[7]);
        queries.forget(&slots[7]);
        assert!(queries.has_room());
        assert_eq!(queries.asked.lock().len(), MAX_QUERIES - 1);
    }

    #[test]
    fn who_waits_in_slices_is_told_whether_there_is_more_to_wait_for() {
        let queries = queries();
        let mut answers = ask(&queries, 1, &["a"], MINUTE);
        let slice = Duration::from_millis(1);
        assert_eq!(answers.next_within(slice), ControlFlow::Continue(None));
        assert!(
            queries
                .take_answer(&request("a", 1, 1, answer(b"yes")))
                .is_ok()
        );
        let came = Some((id("a"), b"yes".to_vec()));
        assert_eq!(answers.next_within(slice), ControlFlow::Continue(came));
        assert_eq!(answers.next_within(slice), ControlFlow::Break(()));
        let mut late = ask(&queries, 2, &["a"], slice);
        assert_eq!(late.next_within(MINUTE), ControlFlow::Break(()));
    }

    #[test]
    fn answers_come_until_everybody_has_answered_or_refused() {
        let queries = queries();
        let mut answers = ask(&queries, 1, &["a", "b", "c"], MINUTE);
        let take = |request: &Request| queries.take_answer(request);
        assert!(take(&request("a", 1, 1, answer(b"yes"))).is_ok());
        let refusal = Outcome::Refusal("no handler".into());
        assert!(take(&request("b", 1, 1, Some(refusal))).is_ok());
        assert_eq!(answers.next(), Some((id("a"), b"yes".to_vec())));
        assert_eq!(answers.report().missing, [id("c")]);
        // One that the asker did not know of.
        assert!(take(&request("late", 1, 1, answer(b"too"))).is_ok());
        assert!(take(&request("c", 1, 1, answer(b""))).is_ok());
        let rest: Vec<_> = answers.by_ref().map(|(node, _)| node).collect();
        assert_eq!(rest, [id("late"), id("c")]);
        let report = answers.report();
        assert_eq!(report.answered, [id("a"), id("c"), id("late")]);
        assert_eq!(report.refused, [(id("b"), "no handler".to_owned())]);
        assert!(report.missing.is_empty());
    }

    #[test]
    fn who_does_not_answer_in_time_is_named() {
        let queries = queries();
        let mut answers = ask(&queries, 1, &["a", "b"], Duration::from_millis(20));
        queries
            .take_answer(&request("a", 1, 1, answer(b"yes")))
            .unwrap();
        assert_eq!(answers.by_ref().count(), 1);
        assert_eq!(answers.report().missing, [id("b")]);
    }

    #[test]
    fn answers_to_nothing_to_another_life_twice_or_malformed_are_refused() {
        let queries = queries();
        let answers = ask(&queries, 7, &["a"], MINUTE);
        let refused = |request: Request| queries.take_answer(&request).unwrap_err();
        assert_eq!(
            refused(request("a", 1, 8, answer(b"x"))),
            "no such query any more"
        );
        assert_eq!(
            refused(request("a", 2, 7, answer(b"x"))),
            "an earlier life asked"
        );
        assert_eq!(refused(request("a", 1, 7, None)), "malformed answer");
        let large = vec![0; MAX_ANSWER_BYTES + MAX_ENVELOPE_BYTES + 1];
        assert_eq!(
            refused(request("a", 1, 7, answer(&large))),
            "answer too large"
        );
        queries
            .take_answer(&request("a", 1, 7, answer(b"x")))
            .unwrap();
        assert_eq!(refused(request("a", 1, 7, answer(b"x"))), "answered before");
        drop(answers);
        assert_eq!(
            refused(request("b", 1, 7, answer(b"x"))),
            "no such query any more"
        );
    }

    #[test]
    fn answers_that_nobody_takes_are_bounded() {
        let queries = queries();
        let mut answers = ask(&queries, 1, &[], MINUTE);
        let whole = vec![0; MAX_ANSWER_BYTES];
        let refused = (0..2_000).find_map(|i| {
            let request = request(&format!("n{i}"), 1, 1, answer(&whole));
            queries.take_answer(&request).err()
        });
        assert_eq!(refused.as_deref(), Some("too many answers wait"));
        assert!(answers.next().is_some());
        assert!(
            queries
                .take_answer(&request("last", 1, 1, answer(&whole)))
                .is_ok()
        );
    }

    #[test]
    fn questions_under_way_are_bounded_and_end_with_the_node() {
        let queries = queries();
        let mut all: Vec<_> = (0..64).map(|n| ask(&queries, n, &["a"], MINUTE)).collect();
        assert!(!queries.insert(64, Arc::default()));
        assert!(!queries.has_room());
        all.truncate(1);
        assert!(queries.has_room());
        queries.close();
        assert_eq!(all[0].next(), None);
        assert_eq!(all[0].report().missing, [id("a")]);
    }

    #[test]
    fn a_handler_that_panics_or_says_too_much_refuses() {
        let query = Query {
            from: id("a"),
            name: "q".into(),
            payload: vec![],
            lamport: 1,
        };
        let refusal = |outcome| match outcome {
            Outcome::Refusal(reason) => reason,
            Outcome::Answer(_) => panic!("answered"),
        };
        assert_eq!(
            refusal(judge(&|_| panic!("on purpose"), &query)),
            "the handler panicked"
        );
        assert_eq!(refusal(judge(&|_| None, &query)), "no answer");
        let much = judge(&|_| Some(vec![0; MAX_ANSWER_BYTES + 1]), &query);
        assert!(refusal(much).contains("16385 bytes"));
    }
}
