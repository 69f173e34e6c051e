//! Signals of a process that runs nodes.
//!
//! One thread takes them. The first TERM or INT is handed to the main thread, which leaves
//! gracefully; a second one ends the process from here, whatever the main thread is doing. HUP and
//! USR1 are handed over too and are dropped while four of them wait: they ask for the same again.

use std::thread;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::{
    consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals as Incoming,
    low_level,
};

use crate::exit::Failure;

/// How many reloads and reports may wait for the main thread.
const WAITING: usize = 4;

/// What a signal other than TERM and INT asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// HUP: take over changed settings.
    Reload,
    /// USR1: write the status to the log.
    Report,
}

/// The main thread's end.
pub(crate) struct Signals {
    /// The number of the first TERM or INT.
    pub(crate) stop: Receiver<u8>,
    pub(crate) asks: Receiver<Ask>,
}

impl Signals {
    /// Takes over the process's signals.
    pub(crate) fn take_over() -> Result<Self, Failure> {
        let refused = |error| Failure::failed(format!("cannot handle signals: {error}"));
        let mut incoming = Incoming::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).map_err(refused)?;
        let (stop_sender, stop) = bounded(1);
        let (ask_sender, asks) = bounded(WAITING);
        let body = move || {
            let mut stopping = false;
            for signal in incoming.forever() {
                match signal {
                    SIGTERM | SIGINT => {
                        let number = u8::try_from(signal).unwrap_or(0);
                        if stopping {
                            low_level::exit(128 + signal);
                        }
                        stopping = true;
                        let _ = stop_sender.try_send(number);
                    }
                    SIGHUP => drop(ask_sender.try_send(Ask::Reload)),
                    _ => drop(ask_sender.try_send(Ask::Report)),
                }
            }
        };
        thread::Builder::new()
            .name("nd-signals".into())
            .spawn(body)
            .map_err(refused)?;
        Ok(Self { stop, asks })
    }
}
