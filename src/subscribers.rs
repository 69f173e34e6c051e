//! Events to subscribers: each has its own bounded channel and its own count, and a slow one is
//! told what it missed instead of holding anybody up.

use std::{
    sync::{Arc, Weak},
    time::SystemTime,
};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;

use crate::event::{Event, EventKind};

/// Events that wait for one subscriber.
pub(crate) const EVENT_CAPACITY: usize = 1_024;

/// Subscribers at one time; each costs a channel and a place in every publication.
const MAX_SUBSCRIBERS: usize = 256;

#[derive(Debug)]
struct Subscriber {
    events: Sender<Event>,
    /// Gone when the subscription is; the channel itself tells only when it is sent to.
    alive: Weak<()>,
    seq: u64,
    missed: u64,
}

impl Subscriber {
    fn is_alive(&self) -> bool {
        self.alive.strong_count() > 0
    }

    /// `false` when the subscriber is gone.
    fn tell(&mut self, at: SystemTime, kind: &EventKind) -> bool {
        if !self.is_alive() {
            return false;
        }
        if self.missed > 0 {
            let lagged = EventKind::Lagged {
                missed: self.missed,
            };
            match self.push(at, lagged) {
                Ok(()) => self.missed = 0,
                Err(Push::Full) => {}
                Err(Push::Gone) => return false,
            }
        }
        if self.missed > 0 {
            self.missed += 1;
            return true;
        }
        match self.push(at, kind.clone()) {
            Ok(()) => true,
            Err(Push::Full) => {
                self.missed += 1;
                true
            }
            Err(Push::Gone) => false,
        }
    }

    fn push(&mut self, at: SystemTime, kind: EventKind) -> Result<(), Push> {
        match self.events.try_send(Event {
            seq: self.seq + 1,
            at,
            kind,
        }) {
            Ok(()) => {
                self.seq += 1;
                Ok(())
            }
            Err(TrySendError::Full(_)) => Err(Push::Full),
            Err(TrySendError::Disconnected(_)) => Err(Push::Gone),
        }
    }
}

enum Push {
    Full,
    Gone,
}

/// A subscriber's end of its channel, and what keeps the other end.
#[derive(Debug)]
pub(crate) struct Subscription {
    receiver: Receiver<Event>,
    alive: Arc<()>,
}

/// All subscribers of a node.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    /// `None` once the node has stopped: nobody hears anything any more.
    list: Mutex<Option<Vec<Subscriber>>>,
}

impl Subscribers {
    pub(crate) fn new() -> Self {
        Self {
            list: Mutex::new(Some(Vec::new())),
        }
    }

    /// A new subscriber's channel. It ends at once when the node has stopped or has too many.
    pub(crate) fn subscribe(&self) -> Subscription {
        let (sender, receiver) = crossbeam_channel::bounded(EVENT_CAPACITY);
        let alive = Arc::new(());
        if let Some(list) = &mut *self.list.lock() {
            // Between two events only this finds those that are gone.
            list.retain(Subscriber::is_alive);
            if list.len() < MAX_SUBSCRIBERS {
                list.push(Subscriber {
                    events: sender,
                    alive: Arc::downgrade(&alive),
                    seq: 0,
                    missed: 0,
                });
            } else {
                log::warn!(target: "node", "more than {MAX_SUBSCRIBERS} event subscribers; refused");
            }
        }
        Subscription { receiver, alive }
    }

    pub(crate) fn publish(&self, at: SystemTime, kind: &EventKind) {
        if let Some(list) = &mut *self.list.lock() {
            list.retain_mut(|subscriber| subscriber.tell(at, kind));
        }
    }

    /// Ends every channel after what is in it.
    pub(crate) fn close(&self) {
        *self.list.lock() = None;
    }
}

/// One subscriber's events, in order. Dropping it ends the subscription.
///
/// At most 1,024 events wait; what comes then is dropped, counted, and told by one
/// [`EventKind::Lagged`] as soon as there is room.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    _alive: Arc<()>,
}

impl Events {
    pub(crate) fn new(subscription: Subscription) -> Self {
        Self {
            receiver: subscription.receiver,
            _alive: subscription.alive,
        }
    }

    /// Waits for the next event. `None` when the node has stopped.
    pub fn recv(&self) -> Option<Event> {
        self.receiver.recv().ok()
    }

    /// Waits for the next event for at most `timeout`. `None` at the time-out and when the node has
    /// stopped.
    pub fn recv_timeout(&self, timeout: std::time::Duration) -> Option<Event> {
        self.receiver.recv_timeout(timeout).ok()
    }

    /// The next event, if there is one now.
    pub fn try_recv(&self) -> Option<Event> {
        self.receiver.try_recv().ok()
    }

    /// The channel itself, for `crossbeam_channel::select!`.
    pub fn receiver(&self) -> &Receiver<Event> {
        &self.receiver
    }
}

impl Iterator for Events {
    type Item = Event;

    /// Like [`recv`](Self::recv).
    fn next(&mut self) -> Option<Event> {
        self.recv()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_that_does_not_read_is_told_once_what_it_missed() {
        let subscribers = Subscribers::new();
        let subscription = subscribers.subscribe();
        let receiver = &subscription.receiver;
        for _ in 0..EVENT_CAPACITY + 10 {
            subscribers.publish(SystemTime::UNIX_EPOCH, &EventKind::Ready);
        }
        let early = receiver.try_iter().collect::<Vec<_>>();
        assert_eq!(early.len(), EVENT_CAPACITY);
        subscribers.publish(SystemTime::UNIX_EPOCH, &EventKind::Leaving);
        let late = receiver.try_iter().collect::<Vec<_>>();
        assert_eq!(late[0].kind, EventKind::Lagged { missed: 10 });
        assert_eq!(late[1].kind, EventKind::Leaving);
        let seqs = early.iter().chain(&late).map(|event| event.seq);
        assert!(seqs.eq(1..=EVENT_CAPACITY as u64 + 2), "seq has gaps");
    }

    #[test]
    fn subscribers_that_are_gone_take_no_place() {
        let subscribers = Subscribers::new();
        for _ in 0..MAX_SUBSCRIBERS {
            drop(Events::new(subscribers.subscribe()));
        }
        let kept = Events::new(subscribers.subscribe());
        subscribers.publish(SystemTime::UNIX_EPOCH, &EventKind::Ready);
        assert!(kept.try_recv().is_some());
    }

    #[test]
    fn a_dropped_subscriber_is_forgotten_and_a_stopped_node_ends_the_others() {
        let subscribers = Subscribers::new();
        drop(subscribers.subscribe());
        let kept = Events::new(subscribers.subscribe());
        subscribers.publish(SystemTime::UNIX_EPOCH, &EventKind::Ready);
        assert_eq!(subscribers.list.lock().as_ref().map(Vec::len), Some(1));
        subscribers.close();
        assert_eq!(kept.recv().map(|event| event.kind), Some(EventKind::Ready));
        assert_eq!(kept.recv(), None);
        assert_eq!(Events::new(subscribers.subscribe()).recv(), None);
    }
}
