//! The callers that wait for something of the peer, and which of them reads the socket meanwhile.
//!
//! The first to sit down while nobody reads *leads*. When it has what it waited for, the socket goes
//! back to the worker, in the same moment in which the next may lead: those who sit beside it are
//! served by whoever reads then. Kept under the outbox's lock; checked in every order in which threads
//! can run (`tests/model`).

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Seats {
    waiting: usize,
    has_leader: bool,
}

impl Seats {
    /// Somebody begins to wait. Returns whether it leads: nobody else waits, and there is a socket to
    /// read.
    pub(super) fn sit_down(&mut self, has_socket: bool) -> bool {
        self.waiting += 1;
        let leads = self.waiting == 1 && !self.has_leader && has_socket;
        self.has_leader |= leads;
        leads
    }

    /// Somebody waits no longer. If it has led, `give_back` gives the socket to the worker.
    pub(super) fn get_up(&mut self, has_led: bool, give_back: impl FnOnce()) {
        self.waiting -= 1;
        if has_led {
            self.has_leader = false;
            give_back();
        }
    }

    /// Whether somebody reads the socket in the worker's place.
    pub(super) fn has_leader(&self) -> bool {
        self.has_leader
    }
}
