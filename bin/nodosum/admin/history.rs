//! The events that a node remembers for its admin clients.
//!
//! One thread subscribes to the node and keeps the last [`REMEMBERED`] events. Each client reads
//! them through a [`Cursor`] of its own, which numbers what it was told from 1, without gaps; what
//! was forgotten before the cursor reached it is told by one `lagged` with the count. A client
//! therefore costs the node nothing, however slowly it reads.

use std::{collections::VecDeque, sync::Arc, thread, time::Duration};

use crossbeam_channel::{Receiver, bounded};
use nodosum::{Event, Events};
use parking_lot::{Condvar, Mutex};

use super::protocol::EventView;
use crate::{clock::Deadline, exit::Failure};

/// How many events are remembered: as many as a subscriber of the library may be behind. The
/// oldest makes room for the newest.
const REMEMBERED: usize = 1_024;

/// Shared by the recording thread and the clients.
pub(crate) struct History {
    kept: Mutex<Kept>,
    changed: Condvar,
    /// Disconnected when the node has no more events, which means that it ended.
    ended: Receiver<()>,
}

struct Kept {
    /// The position of the first kept event, counted from the start of the recording.
    first: u64,
    events: VecDeque<EventView>,
    closed: bool,
}

/// How far one client has read.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    position: u64,
    told: u64,
}

/// What a client is told next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Event(EventView),
    /// Nothing new within the time given.
    Nothing,
    /// Everything was told and the node has ended.
    Closed,
}

impl History {
    /// Records `events` until the node ends.
    pub(crate) fn record(events: Events) -> Result<Arc<Self>, Failure> {
        let (running, ended) = bounded::<()>(0);
        let history = Arc::new(Self::empty(ended));
        let recorder = Arc::clone(&history);
        let body = move || {
            while let Some(event) = events.recv() {
                recorder.push(event);
            }
            recorder.close();
            drop(running);
        };
        thread::Builder::new()
            .name("nd-admin-events".into())
            .spawn(body)
            .map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
        Ok(history)
    }

    fn empty(ended: Receiver<()>) -> Self {
        let kept = Kept {
            first: 0,
            events: VecDeque::new(),
            closed: false,
        };
        Self {
            kept: Mutex::new(kept),
            changed: Condvar::new(),
            ended,
        }
    }

    /// Never yields a value; disconnects when the node has ended.
    pub(crate) fn ended(&self) -> &Receiver<()> {
        &self.ended
    }

    fn push(&self, event: Event) {
        self.push_view(event.into());
    }

    fn push_view(&self, event: EventView) {
        let mut kept = self.kept.lock();
        if kept.events.len() == REMEMBERED {
            kept.events.pop_front();
            kept.first += 1;
        }
        kept.events.push_back(event);
        drop(kept);
        self.changed.notify_all();
    }

    /// Lets every client go once it was told everything.
    pub(crate) fn close(&self) {
        self.kept.lock().closed = true;
        self.changed.notify_all();
    }

    /// A cursor for a client that only cares about what is new.
    pub(crate) fn end(&self) -> Cursor {
        let kept = self.kept.lock();
        Cursor {
            position: kept.first + kept.events.len() as u64,
            told: 0,
        }
    }

    /// The next event for the client behind `cursor`, waiting up to `patience` for one.
    pub(crate) fn next(&self, cursor: &mut Cursor, patience: Duration) -> Next {
        let deadline = Deadline::after(patience);
        let mut kept = self.kept.lock();
        loop {
            if let Some(event) = kept.after(cursor) {
                return Next::Event(event);
            }
            if kept.closed {
                return Next::Closed;
            }
            if deadline.is_over() {
                return Next::Nothing;
            }
            self.changed.wait_for(&mut kept, deadline.remaining());
        }
    }
}

impl Kept {
    fn after(&self, cursor: &mut Cursor) -> Option<EventView> {
        let forgotten = self.first.saturating_sub(cursor.position);
        if forgotten > 0 {
            let oldest = self.events.front()?;
            cursor.position = self.first;
            cursor.told += 1;
            return Some(EventView {
                schema: 1,
                seq: cursor.told,
                at: oldest.at.clone(),
                event: "lagged".to_owned(),
                node: None,
                reason: None,
                missed: Some(forgotten),
                unacknowledged: None,
                user: None,
            });
        }
        let index = usize::try_from(cursor.position - self.first).ok()?;
        let mut event = self.events.get(index)?.clone();
        cursor.position += 1;
        cursor.told += 1;
        event.seq = cursor.told;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use nodosum::unversioned::views::rfc3339;

    fn event(name: u64) -> EventView {
        EventView {
            schema: 1,
            seq: 0,
            at: rfc3339(SystemTime::UNIX_EPOCH),
            event: name.to_string(),
            node: None,
            reason: None,
            missed: None,
            unacknowledged: None,
            user: None,
        }
    }

    fn told(history: &History, cursor: &mut Cursor) -> Option<(u64, String, Option<u64>)> {
        match history.next(cursor, Duration::ZERO) {
            Next::Event(event) => Some((event.seq, event.event, event.missed)),
            Next::Nothing | Next::Closed => None,
        }
    }

    #[test]
    fn a_client_is_told_everything_in_order_and_then_what_is_new() {
        let history = History::empty(bounded(0).1);
        (0..3).for_each(|name| history.push_view(event(name)));
        let mut cursor = Cursor::default();
        for seq in 1..=3 {
            assert_eq!(
                told(&history, &mut cursor),
                Some((seq, (seq - 1).to_string(), None))
            );
        }
        assert_eq!(history.next(&mut cursor, Duration::ZERO), Next::Nothing);
        history.push_view(event(3));
        assert_eq!(told(&history, &mut cursor), Some((4, "3".to_owned(), None)));
        history.close();
        assert_eq!(
            history.next(&mut cursor, Duration::from_secs(60)),
            Next::Closed
        );
    }

    #[test]
    fn what_was_forgotten_is_told_by_one_lagged_without_a_gap_in_seq() {
        let history = History::empty(bounded(0).1);
        history.push_view(event(0));
        let mut slow = Cursor::default();
        assert_eq!(told(&history, &mut slow), Some((1, "0".to_owned(), None)));
        let more = u64::try_from(REMEMBERED).unwrap() + 10;
        (1..=more).for_each(|name| history.push_view(event(name)));
        assert_eq!(history.kept.lock().events.len(), REMEMBERED);
        assert_eq!(
            told(&history, &mut slow),
            Some((2, "lagged".to_owned(), Some(10)))
        );
        assert_eq!(told(&history, &mut slow), Some((3, "11".to_owned(), None)));
    }

    #[test]
    fn a_waiting_client_wakes_up_for_an_event() {
        let history = Arc::new(History::empty(bounded(0).1));
        let other = Arc::clone(&history);
        let waiting = thread::Builder::new()
            .spawn(move || other.next(&mut Cursor::default(), Duration::from_secs(60)));
        history.push_view(event(7));
        assert!(
            matches!(waiting.unwrap().join().unwrap(), Next::Event(event) if event.event == "7")
        );
    }
}
