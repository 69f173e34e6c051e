//! Looking up seed names on threads of their own, because a look-up may take half a minute and the
//! reactor may not wait.
//!
//! A few threads share one queue, so that a name whose server is silent does not hold up the
//! others. Each starts with the first name for which none is free. A name is asked for once at a
//! time: who asks again meanwhile gets the answer that is under way.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender};

use crate::{thread, waker::Waker};

/// Names that are looked up or wait for it, more than can be seeds. Further ones fail at once and
/// are asked for again at their next try.
const CAPACITY: usize = 64;

/// Look-ups at the same time. Names of one cluster share a name server or two, and when those are
/// silent, more threads would only wait with them.
const MAX_THREADS: usize = 4;

/// The answer to a look-up: the seed, and its addresses or what went wrong.
pub(crate) type Resolved = (String, Result<Vec<SocketAddr>, String>);

type LookUp = fn(&str) -> Result<Vec<SocketAddr>, String>;

/// Looks names up, a few at a time.
pub(crate) struct Resolver {
    waker: Arc<Waker>,
    look_up: LookUp,
    in_flight: BTreeSet<String>,
    threads: usize,
    questions: (Sender<String>, Receiver<String>),
    answers: (Sender<Resolved>, Receiver<Resolved>),
}

impl Resolver {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self::with(waker, look_up)
    }

    fn with(waker: Arc<Waker>, look_up: LookUp) -> Self {
        Self {
            waker,
            look_up,
            in_flight: BTreeSet::new(),
            threads: 0,
            questions: crossbeam_channel::bounded(CAPACITY),
            // As many again for what is answered without a look-up.
            answers: crossbeam_channel::bounded(2 * CAPACITY),
        }
    }

    /// Asks for the addresses of `HOST:PORT`. An IP address is answered at once.
    pub(crate) fn resolve(&mut self, seed: String) {
        if let Ok(addr) = seed.parse() {
            self.answer(seed, Ok(vec![addr]));
            return;
        }
        if self.in_flight.contains(&seed) {
            return;
        }
        if self.in_flight.len() >= CAPACITY {
            self.answer(seed, Err("too many look-ups are waiting".into()));
            return;
        }
        if self.threads < MAX_THREADS && self.in_flight.len() >= self.threads {
            match self.start() {
                Ok(()) => self.threads += 1,
                Err(error) if self.threads == 0 => {
                    let why = format!("cannot start the look-up thread: {error}");
                    self.answer(seed, Err(why));
                    return;
                }
                Err(error) => {
                    log::debug!(target: "reactor", error:%; "look-ups share fewer threads");
                }
            }
        }
        self.in_flight.insert(seed.clone());
        // As many places as names in flight, and this struct holds a receiver: never refused.
        let _ = self.questions.0.try_send(seed);
    }

    fn answer(&self, seed: String, result: Result<Vec<SocketAddr>, String>) {
        // One answer a seed, and fewer seeds than places: a full queue cannot be.
        let _ = self.answers.0.try_send((seed, result));
        self.waker.wake();
    }

    /// The next answer, if there is one.
    pub(crate) fn poll(&mut self) -> Option<Resolved> {
        let answer = self.answers.1.try_recv().ok()?;
        self.in_flight.remove(&answer.0);
        Some(answer)
    }

    /// The thread ends after the look-up under way once this resolver is dropped.
    fn start(&self) -> std::io::Result<()> {
        let questions = self.questions.1.clone();
        let answers = self.answers.0.clone();
        let waker = Arc::clone(&self.waker);
        let look_up = self.look_up;
        thread::spawn("nd-resolve", move || {
            for seed in questions {
                let result = look_up(&seed);
                // Waits for a place, for a lost answer would leave its name in flight for ever.
                if answers.send((seed, result)).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(())
    }
}

/// Whether a seed names SRV records and this build can look them up.
#[cfg(feature = "srv")]
pub(crate) use crate::srv::is_srv;

#[cfg(not(feature = "srv"))]
pub(crate) fn is_srv(_seed: &str) -> bool {
    false
}

fn look_up(seed: &str) -> Result<Vec<SocketAddr>, String> {
    #[cfg(feature = "srv")]
    if is_srv(seed) {
        return crate::srv::look_up(seed);
    }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn stuck_or_good(seed: &str) -> Result<Vec<SocketAddr>, String> {
        if seed.starts_with("stuck") {
            loop {
                std::thread::park();
            }
        }
        if seed.starts_with("good") {
            return Ok(vec![SocketAddr::from(([127, 0, 0, 1], 1))]);
        }
        Err("no such host".into())
    }

    #[test]
    fn a_name_whose_look_up_never_ends_is_asked_once_and_delays_no_other() {
        let waker = Arc::new(Waker::new().unwrap());
        let mut resolver = Resolver::with(waker, stuck_or_good);
        for _ in 0..200 {
            resolver.resolve("stuck:1".into());
        }
        for round in 0..3 {
            let name = format!("good{round}:1");
            resolver.resolve(name.clone());
            let (seed, result) = resolver
                .answers
                .1
                .recv_timeout(Duration::from_secs(30))
                .expect("another thread answers");
            assert_eq!(seed, name);
            assert!(result.is_ok());
            resolver.in_flight.remove(&seed);
        }
        assert_eq!((resolver.in_flight.len(), resolver.threads), (1, 2));
        for i in 0..100 {
            resolver.resolve(format!("stuck{i}:1"));
        }
        assert_eq!(
            (resolver.in_flight.len(), resolver.threads),
            (CAPACITY, MAX_THREADS)
        );
        let (_, refused) = resolver.poll().expect("refused at once");
        assert!(refused.is_err());
    }
}
