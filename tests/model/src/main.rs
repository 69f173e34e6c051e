//! A model check of the code by which the threads of a connection hand each other work: no wake-up is
//! lost, no waiter stranded, no timer missed, in whatever order they run.
//!
//! The code is the library's own (`src/transport/{handoff,slot,seats,due}.rs`), with the locks and
//! atomics of a scheduler in place of the real ones (`sync`). Where a model is small enough, every order
//! is tried; a larger one is tried in many random orders, and in those with few switches at chosen
//! places, which find what random ones do not. Then the same is done with bugs planted in the code
//! (`build.rs`), each of which has to be noticed.
//!
//! The scheduler knows one order of all memory accesses. That is what the code asks for: all of them
//! are sequentially consistent.

#![allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "every variant of the code takes all models and runs some"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::{
    Config, FailurePersistence, Runner,
    scheduler::{DfsScheduler, PctScheduler, RandomScheduler},
    sync::mpsc,
    thread,
};

mod sync;

macro_rules! code {
    ($($name:ident),*) => { $(
        mod $name {
            use crate::sync;
            mod due { include!(concat!(env!("OUT_DIR"), "/", stringify!($name), "/due.rs")); }
            mod handoff { include!(concat!(env!("OUT_DIR"), "/", stringify!($name), "/handoff.rs")); }
            mod seats { include!(concat!(env!("OUT_DIR"), "/", stringify!($name), "/seats.rs")); }
            mod slot { include!(concat!(env!("OUT_DIR"), "/", stringify!($name), "/slot.rs")); }
            include!("models.rs");
        }
    )* };
}

code!(
    real,
    no_second_look,
    looks_before_letting_go,
    looks_before_lying_down,
    sleeps_although_filled,
    forgets_the_time_too_late,
    off_the_list_without_a_look,
    keeps_the_socket,
    keeps_a_seat_for_ever,
    keeps_a_seat_in_secret,
    believes_to_be_watched
);

/// Random orders of a model that is too large for all of them, and as many with few switches.
const ORDERS: usize = 30_000;

/// Orders of a model that is tried in all of them, at most; none comes near.
const ALL: usize = 2_000_000;

/// Switches at chosen places: bugs that need more are rare.
const SWITCHES: usize = 4;

fn in_all_orders(name: &str, model: fn()) {
    let scheduler = DfsScheduler::new(Some(ALL), false);
    let tried = Runner::new(scheduler, Config::new()).run(model);
    assert!(tried < ALL, "{name}: more than {ALL} orders");
    println!("ok   {name}: in all {tried} orders");
}

fn in_many_orders(name: &str, model: fn()) {
    shuttle::check_random(model, ORDERS);
    shuttle::check_pct(model, ORDERS, SWITCHES);
    println!("ok   {name}: in {} orders", 2 * ORDERS);
}

/// Whether the bug is noticed.
fn notices(bug: &str, model: fn()) -> bool {
    let check = || {
        let mut config = Config::new();
        config.failure_persistence = FailurePersistence::None;
        let random = RandomScheduler::new(ORDERS);
        Runner::new(random, config.clone()).run(model);
        Runner::new(PctScheduler::new(SWITCHES, ORDERS), config).run(model);
    };
    let is_noticed = catch_unwind(AssertUnwindSafe(check)).is_err();
    let word = if is_noticed { "ok  " } else { "FAIL" };
    println!("{word} planted: {bug}");
    is_noticed
}

fn main() {
    in_all_orders(
        "the owner at the socket is woken",
        real::the_owner_at_the_socket_is_woken,
    );
    in_all_orders(
        "the owner beside a leader is woken",
        real::the_owner_beside_a_leader_is_woken,
    );
    in_all_orders("no time is missed", real::no_time_is_missed);
    in_many_orders(
        "nothing stays in the outbox",
        real::nothing_stays_in_the_outbox,
    );
    in_many_orders(
        "leaders and followers get their replies",
        real::leaders_and_followers_get_their_replies,
    );
    in_many_orders(
        "a seat is kept for a while",
        real::a_seat_is_kept_for_a_while,
    );
    in_many_orders("the end reaches everybody", real::the_end_reaches_everybody);

    println!("what the scheduler reports from here on are bugs that were planted");
    std::panic::set_hook(Box::new(|_| {}));
    let planted: [(&str, fn()); 10] = [
        (
            "no_second_look",
            no_second_look::nothing_stays_in_the_outbox,
        ),
        (
            "looks_before_letting_go",
            looks_before_letting_go::nothing_stays_in_the_outbox,
        ),
        (
            "looks_before_lying_down",
            looks_before_lying_down::the_owner_at_the_socket_is_woken,
        ),
        (
            "sleeps_although_filled",
            sleeps_although_filled::the_owner_beside_a_leader_is_woken,
        ),
        (
            "forgets_the_time_too_late",
            forgets_the_time_too_late::no_time_is_missed,
        ),
        (
            "off_the_list_without_a_look",
            off_the_list_without_a_look::no_time_is_missed,
        ),
        (
            "keeps_the_socket",
            keeps_the_socket::leaders_and_followers_get_their_replies,
        ),
        (
            "keeps_a_seat_for_ever",
            keeps_a_seat_for_ever::a_seat_is_kept_for_a_while,
        ),
        (
            "keeps_a_seat_in_secret",
            keeps_a_seat_in_secret::a_seat_is_kept_for_a_while,
        ),
        (
            "believes_to_be_watched",
            believes_to_be_watched::a_seat_is_kept_for_a_while,
        ),
    ];
    let missed = planted.iter().filter(|(bug, model)| !notices(bug, *model));
    let missed = missed.count();
    println!(
        "planted bugs that were noticed: {} of {}",
        planted.len() - missed,
        planted.len()
    );
    if missed > 0 {
        std::process::exit(1);
    }
}
