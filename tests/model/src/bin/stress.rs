//! The models of `nodosum-model` with threads and locks of the system, many times over, for
//! ThreadSanitizer to look at (`./run tsan`). It sees the memory orders that the scheduler of the models
//! does not know; which orders of threads occur is up to the system.

#![allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "threads of the system, as they come; the models use a part of the code"
)]

use std::{sync::mpsc, thread};

#[path = "../../../../src/transport/sync.rs"]
mod sync;

mod real {
    use crate::sync;
    mod due {
        include!(concat!(env!("OUT_DIR"), "/real/due.rs"));
    }
    mod handoff {
        include!(concat!(env!("OUT_DIR"), "/real/handoff.rs"));
    }
    mod seats {
        include!(concat!(env!("OUT_DIR"), "/real/seats.rs"));
    }
    mod slot {
        include!(concat!(env!("OUT_DIR"), "/real/slot.rs"));
    }
    include!("../models.rs");
}

/// How often each model is run.
const TIMES: usize = 2_000;

fn main() {
    let models: [(&str, fn()); 7] = [
        (
            "nothing stays in the outbox",
            real::nothing_stays_in_the_outbox,
        ),
        (
            "the owner at the socket is woken",
            real::the_owner_at_the_socket_is_woken,
        ),
        (
            "the owner beside a leader is woken",
            real::the_owner_beside_a_leader_is_woken,
        ),
        (
            "a seat is kept for a while",
            real::a_seat_is_kept_for_a_while,
        ),
        (
            "leaders and followers get their replies",
            real::leaders_and_followers_get_their_replies,
        ),
        ("the end reaches everybody", real::the_end_reaches_everybody),
        ("no time is missed", real::no_time_is_missed),
    ];
    for (name, model) in models {
        for _ in 0..TIMES {
            model();
        }
        println!("ok   {name}: {TIMES} times");
    }
}
