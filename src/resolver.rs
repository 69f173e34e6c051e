//! Looking up seed names on a thread of its own, because a look-up may take half a minute and the
//! reactor may not wait.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender};

use crate::{thread, waker::Waker};

/// Look-ups that may wait; more seeds than that cannot be configured.
const CAPACITY: usize = 64;

/// The answer to a look-up: the seed, and its addresses or what went wrong.
pub(crate) type Resolved = (String, Result<Vec<SocketAddr>, String>);

/// Looks names up, one after the other, on a thread that starts with the first name.
pub(crate) struct Resolver {
    waker: Arc<Waker>,
    asked: Option<Sender<String>>,
    answers: (Sender<Resolved>, Receiver<Resolved>),
}

impl Resolver {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self {
            waker,
            asked: None,
            answers: crossbeam_channel::bounded(CAPACITY),
        }
    }

    /// Asks for the addresses of `HOST:PORT`. An IP address is answered at once.
    pub(crate) fn resolve(&mut self, seed: String) {
        if let Ok(addr) = seed.parse() {
            self.answer(seed, Ok(vec![addr]));
            return;
        }
        if self.asked.is_none() {
            match self.start() {
                Ok(asked) => self.asked = Some(asked),
                Err(error) => {
                    self.answer(
                        seed,
                        Err(format!("cannot start the look-up thread: {error}")),
                    );
                    return;
                }
            }
        }
        if let Some(asked) = &self.asked
            && let Err(refused) = asked.try_send(seed)
        {
            self.answer(
                refused.into_inner(),
                Err("too many look-ups are waiting".into()),
            );
        }
    }

    fn answer(&self, seed: String, result: Result<Vec<SocketAddr>, String>) {
        // One answer a seed, and fewer seeds than places: a full queue cannot be.
        let _ = self.answers.0.try_send((seed, result));
        self.waker.wake();
    }

    /// The next answer, if there is one.
    pub(crate) fn poll(&self) -> Option<Resolved> {
        self.answers.1.try_recv().ok()
    }

    /// The thread ends when this resolver is dropped, after the look-up under way.
    fn start(&self) -> std::io::Result<Sender<String>> {
        let (asked, questions) = crossbeam_channel::bounded::<String>(CAPACITY);
        let answers = self.answers.0.clone();
        let waker = Arc::clone(&self.waker);
        thread::spawn("nd-resolve", move || {
            for seed in questions {
                let result = look_up(&seed);
                if answers.try_send((seed, result)).is_err() {
                    // Full or gone: the seed is asked for again at its next try.
                    log::debug!(target: "reactor", "a look-up nobody waited for");
                }
                waker.wake();
            }
        })?;
        Ok(asked)
    }
}

fn look_up(seed: &str) -> Result<Vec<SocketAddr>, String> {
    let mut addrs: Vec<SocketAddr> = seed
        .to_socket_addrs()
        .map_err(|error| error.to_string())?
        .collect();
    addrs.dedup();
    if addrs.is_empty() {
        return Err("the name has no address".into());
    }
    Ok(addrs)
}
