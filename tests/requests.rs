//! Requests in every way that there is to make and to answer them.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "real nodes and threads run against the real clock; tests panic and print, in their helpers too"
)]
#![cfg(feature = "ca")]

#[path = "support/path.rs"]
mod path;
#[path = "support/relay.rs"]
mod relay;
#[path = "support/cluster.rs"]
mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nodosum::{App, Node, NodeId, RequestError, TransportCounts, transport::Config};
use path::Path;
use support::{Lab, PATIENCE, eventually, full_mesh};

const SECOND: Duration = Duration::from_secs(1);

fn pair(cluster: &str) -> (Vec<Node>, App, App) {
    let nodes = Lab::new(cluster).start(2);
    let here = nodes[0].register("orders").unwrap();
    let there = nodes[1].register("orders").unwrap();
    (nodes, here, there)
}

fn shut_down(nodes: &[Node]) {
    for node in nodes {
        let report = node.shutdown(10 * SECOND);
        assert!(report.threads_stuck.is_empty(), "{report:?}");
    }
}

/// A number and its square.
fn square(payload: &[u8]) -> Result<Vec<u8>, String> {
    let number = payload.try_into().map_err(|_| "not eight bytes")?;
    let number = u64::from_be_bytes(number);
    Ok(number.wrapping_mul(number).to_be_bytes().to_vec())
}

fn check(number: u64, answer: Result<Vec<u8>, RequestError>) {
    assert_eq!(answer, Ok(square(&number.to_be_bytes()).unwrap()));
}

/// Threads that ask at the same time, in turns for each; none waits for a second.
fn ask_from_many_threads(app: &App, to: &NodeId, threads: u64, each: u64) {
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for round in 0..each {
                    let number = thread * 1_000_000 + round;
                    check(number, app.request(to, number.to_be_bytes(), PATIENCE));
                }
            });
        }
    });
}

#[test]
fn threads_that_share_a_connection_each_get_their_own_replies() {
    let (nodes, here, there) = pair("shared");
    there.on_request_inline(|request| square(&request.payload));
    ask_from_many_threads(&here, nodes[1].id(), 16, 1_000);
    shut_down(&nodes);
}

#[test]
fn the_handler_pool_answers_many_threads_in_both_directions_at_once() {
    let (nodes, here, there) = pair("pool");
    for app in [&here, &there] {
        app.on_request(2, |request| square(&request.payload))
            .unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| ask_from_many_threads(&here, nodes[1].id(), 4, 500));
        scope.spawn(|| ask_from_many_threads(&there, nodes[0].id(), 4, 500));
    });
    shut_down(&nodes);
}

#[test]
fn replies_of_any_size_come_whole_among_small_ones() {
    let (nodes, here, there) = pair("sizes");
    there.on_request_inline(|request| {
        let length = request.payload.len();
        Ok(request.payload.iter().rev().copied().take(length).collect())
    });
    let to = nodes[1].id();
    thread::scope(|scope| {
        for thread in 0..4_usize {
            let here = &here;
            scope.spawn(move || {
                for length in [0, 1, 4_000, 4_096, 5_000, 65_536, 70_000, 1 << 20] {
                    let payload: Vec<u8> = (0..length).map(|at| (at * 7 + thread) as u8).collect();
                    let mut answer = here.request(to, &payload, PATIENCE).unwrap();
                    answer.reverse();
                    assert!(answer == payload, "of {length} bytes");
                }
            });
        }
    });
    shut_down(&nodes);
}

#[test]
fn functions_are_called_once_each_and_may_ask_again() {
    let (nodes, here, there) = pair("callbacks");
    there.on_request_inline(|request| square(&request.payload));
    let (done, all) = std::sync::mpsc::channel();
    /// Asks for `number` and, from the reply, for the next, until 2,000.
    fn ask(app: &App, to: &NodeId, number: u64, done: &std::sync::mpsc::Sender<u64>) {
        let (next_app, next_to, next_done) = (app.clone(), to.clone(), done.clone());
        app.request_then(to, number.to_be_bytes(), PATIENCE, move |answer| {
            check(number, answer);
            next_done.send(number).unwrap();
            if number + 64 < 2_000 {
                ask(&next_app, &next_to, number + 64, &next_done);
            }
        })
        .unwrap();
    }
    for number in 0..64 {
        ask(&here, nodes[1].id(), number, &done);
    }
    let mut seen: Vec<u64> = (0..2_000)
        .map(|_| all.recv_timeout(PATIENCE).unwrap())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..2_000).collect::<Vec<_>>());
    shut_down(&nodes);
}

#[test]
fn a_function_is_called_with_the_time_out_and_with_the_end_of_the_connection() {
    let (nodes, here, there) = pair("ends");
    let silent = Arc::new(Mutex::new(()));
    let held = silent.lock().unwrap();
    let waiting = Arc::clone(&silent);
    there
        .on_request(1, move |_| {
            drop(waiting.lock());
            Ok(Vec::new())
        })
        .unwrap();
    let (told, outcomes) = std::sync::mpsc::channel();
    let to = nodes[1].id();
    for timeout in [SECOND / 2, PATIENCE] {
        let told = told.clone();
        let begun = Instant::now();
        here.request_then(to, "?", timeout, move |outcome| {
            told.send((outcome, begun.elapsed())).unwrap();
        })
        .unwrap();
    }
    let (outcome, after) = outcomes.recv_timeout(PATIENCE).unwrap();
    let (peer, timeout) = (to.clone(), SECOND / 2);
    assert_eq!(outcome, Err(RequestError::Timeout { peer, timeout }));
    assert!(after >= timeout, "{after:?}");
    nodes[1].abort();
    let (outcome, _) = outcomes.recv_timeout(PATIENCE).unwrap();
    assert!(
        matches!(outcome, Err(RequestError::Disconnected { .. })),
        "{outcome:?}"
    );
    drop(held);
    let stranger: NodeId = "n9".parse().unwrap();
    let refused = here.request_then(&stranger, "?", SECOND, |_| panic!("it was not sent"));
    assert_eq!(refused, Err(RequestError::NotConnected(stranger)));
    nodes[0].shutdown(10 * SECOND);
}

#[test]
fn replies_can_be_waited_for_later_in_any_order_or_not_at_all() {
    let (nodes, here, there) = pair("later");
    there
        .on_request(2, |request| square(&request.payload))
        .unwrap();
    let to = nodes[1].id();
    let ask = |number: u64| {
        here.request_async(to, number.to_be_bytes(), PATIENCE)
            .unwrap()
    };
    let mut pending: Vec<_> = (0..200_u64).map(|number| (number, ask(number))).collect();
    let given_up = pending.split_off(150);
    drop(given_up);
    while let Some((number, reply)) = pending.pop() {
        check(number, reply.wait());
    }
    let reply = ask(9);
    eventually("the reply is there", || reply.is_ready());
    check(9, reply.wait());
    let late = here.request_async(to, "no number", SECOND).unwrap().wait();
    assert!(matches!(late, Err(RequestError::Remote { .. })), "{late:?}");
    shut_down(&nodes);
}

#[test]
fn to_wait_where_replies_are_read_is_refused_at_once() {
    let (nodes, here, there) = pair("deadlock");
    let (asking, asker) = (there.clone(), nodes[0].id().clone());
    there.on_request_inline(move |_| {
        let begun = Instant::now();
        let error = asking
            .request(&asker, "back", PATIENCE)
            .map_err(|error| error.to_string());
        assert!(begun.elapsed() < PATIENCE / 2);
        match error {
            Ok(_) => Ok(b"answered".to_vec()),
            Err(why) => Ok(why.into_bytes()),
        }
    });
    let answer = here.request(nodes[1].id(), "?", PATIENCE).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("would wait for ever"), "{answer}");
    shut_down(&nodes);
}

#[test]
fn inline_handlers_that_panic_are_contained_and_messages_keep_their_order() {
    let (nodes, here, there) = pair("inline");
    there.on_request_inline(|request| {
        assert_ne!(request.payload, b"panic", "asked to panic");
        Ok(request.payload.clone())
    });
    let (seen, numbers) = std::sync::mpsc::channel();
    there.on_message_inline(move |message| {
        assert_ne!(message.payload, b"panic", "asked to panic");
        seen.send(u64::from_be_bytes(message.payload[..].try_into().unwrap()))
            .unwrap();
    });
    let to = nodes[1].id();
    let error = here.request(to, "panic", PATIENCE).unwrap_err();
    assert!(matches!(error, RequestError::Remote { .. }), "{error:?}");
    assert_eq!(here.request(to, "fine", PATIENCE), Ok(b"fine".to_vec()));
    here.send(to, "panic", PATIENCE).unwrap();
    // Requests meanwhile: whoever waits for them reads the messages, too.
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for _ in 0..500 {
                assert_eq!(here.request(to, "fine", PATIENCE), Ok(b"fine".to_vec()));
            }
        });
        for number in 0..5_000_u64 {
            here.send(to, number.to_be_bytes(), PATIENCE).unwrap();
        }
        asking.join().unwrap();
    });
    here.flush(to, PATIENCE).unwrap();
    let got: Vec<u64> = (0..5_000)
        .map(|_| numbers.recv_timeout(PATIENCE).unwrap())
        .collect();
    assert_eq!(got, (0..5_000).collect::<Vec<_>>());
    assert_eq!(there.handler_panics(), 2);
    shut_down(&nodes);
}

#[test]
fn callers_that_spin_get_the_same_answers() {
    let lab = Lab::new("spin");
    let config = || Config {
        spin: Duration::from_micros(100),
        ..Config::default()
    };
    let first = lab.builder("n1").transport(config()).start().unwrap();
    let second = lab
        .builder("n2")
        .seed(first.quic_addr().to_string())
        .transport(config())
        .start()
        .unwrap();
    let nodes = [first, second];
    full_mesh(&nodes, PATIENCE);
    let here = nodes[0].register("orders").unwrap();
    let there = nodes[1].register("orders").unwrap();
    there.on_request_inline(|request| square(&request.payload));
    ask_from_many_threads(&here, nodes[1].id(), 2, 1_000);
    shut_down(&nodes);
}

/// Holds a handler up until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, std::sync::Condvar)>);

impl Gate {
    fn pass(&self) {
        let (is_open, changed) = &*self.0;
        let guard = is_open.lock().unwrap();
        let wait = changed.wait_timeout_while(guard, PATIENCE, |open| !*open);
        drop(wait.unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

fn counts(node: &Node) -> TransportCounts {
    node.status().transport
}

/// An application whose one handler waits for a gate; what it is asked comes out of the channel.
fn held_up(app: &App) -> (Gate, std::sync::mpsc::Receiver<Vec<u8>>) {
    let gate = Gate::default();
    let (told, asked) = std::sync::mpsc::channel();
    let passing = gate.clone();
    app.on_request(1, move |request| {
        told.send(request.payload.clone()).unwrap();
        passing.pass();
        Ok(vec![7])
    })
    .unwrap();
    (gate, asked)
}

#[test]
fn requests_that_are_given_up_are_not_sent_or_not_handled() {
    let (nodes, here, there) = pair("given-up");
    let (gate, asked) = held_up(&there);
    let to = nodes[1].id();
    let first = here.request_async(to, "first", PATIENCE).unwrap();
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), b"first");
    // More than the inbox, the window and the outbox of this application hold, in pieces that wait in
    // all three: 60 of 60 KB, of which the outbox takes its share without waiting.
    let mut waiting = Vec::new();
    let error = loop {
        match here.request_async(to, vec![1; 60_000], SECOND / 2) {
            Ok(reply) => waiting.push(reply),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, RequestError::Timeout { .. }), "{error:?}");
    let sent = waiting.len() as u64;
    assert!(sent > 30, "only {sent} were taken");
    for reply in waiting {
        let late = reply.wait().unwrap_err();
        assert!(matches!(late, RequestError::Timeout { .. }), "{late:?}");
    }
    let here_now = counts(&nodes[0]);
    assert!(here_now.requests_unsent > 5, "{here_now:?}");
    assert_eq!(here_now.requests_unsent + here_now.requests_given_up, sent);
    // The line goes on behind those that were taken out of it, and nobody works for nobody. A ping takes the
    // way of the withdrawals, behind them.
    nodes[0].ping(to, PATIENCE).unwrap();
    gate.open();
    assert_eq!(first.wait(), Ok(vec![7]));
    assert_eq!(here.request(to, "next", PATIENCE), Ok(vec![7]));
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), b"next");
    let given_up = here_now.requests_given_up;
    // One whose withdrawal is still under way is late all the same.
    eventually("all that were sent are dropped", || {
        let there_now = counts(&nodes[1]);
        there_now.requests_withdrawn + there_now.requests_expired == given_up
    });
    assert_eq!(asked.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));
    assert_eq!(counts(&nodes[0]).replies_late, 0);
    // It is counted for the whole process, in which other tests run.
    eventually("nothing is buffered", || {
        counts(&nodes[0]).buffered_bytes == 0
    });
    shut_down(&nodes);
}

#[test]
fn a_request_that_is_being_handled_when_it_is_given_up_is_not_answered() {
    let (nodes, here, there) = pair("handled");
    let (gate, asked) = held_up(&there);
    let to = nodes[1].id();
    let dropped = here.request_async(to, "dropped", PATIENCE).unwrap();
    asked.recv_timeout(PATIENCE).unwrap();
    drop(dropped);
    eventually("the responder is told", || {
        counts(&nodes[1]).requests_withdrawn == 1
    });
    // Of one large request the inbox has room while it is empty; the second waits for room, whole.
    let large = here.request_async(to, vec![2; 2 << 20], PATIENCE).unwrap();
    let second = here.request(to, vec![3; 3 << 20], SECOND / 2).unwrap_err();
    assert!(matches!(second, RequestError::Timeout { .. }), "{second:?}");
    eventually("the responder is told of the second", || {
        counts(&nodes[1]).requests_withdrawn == 2
    });
    gate.open();
    assert_eq!(large.wait(), Ok(vec![7]));
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap().len(), 2 << 20);
    assert_eq!(here.request(to, "next", PATIENCE), Ok(vec![7]));
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), b"next");
    assert_eq!(counts(&nodes[0]).replies_late, 0);
    shut_down(&nodes);
}

#[test]
fn a_reply_that_nobody_waits_for_any_more_is_dropped_and_counted() {
    let (nodes, here, there) = pair("late");
    let gate = Gate::default();
    let passing = gate.clone();
    // An inline handler answers whatever becomes of the requester.
    there.on_request_inline(move |_| {
        passing.pass();
        Ok(Vec::new())
    });
    let late = here.request(nodes[1].id(), "?", SECOND / 4).unwrap_err();
    assert!(matches!(late, RequestError::Timeout { .. }), "{late:?}");
    gate.open();
    eventually("the reply has come", || counts(&nodes[0]).replies_late == 1);
    assert_eq!(here.request(nodes[1].id(), "?", PATIENCE), Ok(Vec::new()));
    assert_eq!(counts(&nodes[0]).requests_given_up, 1);
    shut_down(&nodes);
}

/// Two nodes with a path between them that takes 5 ms each way, and windows that let 64 KiB of each
/// stream through in that time.
fn slow_pair(cluster: &str) -> (Path, Vec<Node>) {
    let config = || Config {
        stream_window: 64 << 10,
        ..Config::default()
    };
    let lab = Lab::new(cluster);
    let bound = relay::free_addr();
    let path = Path::to(bound);
    path.set_delay(Duration::from_millis(5));
    let far = lab.builder("n2").bind(bound).advertise(path.addr);
    let far = far.transport(config()).start().unwrap();
    let near = lab.builder("n1").seed(path.addr.to_string());
    let near = near.transport(config()).start().unwrap();
    let nodes = vec![near, far];
    full_mesh(&nodes, PATIENCE);
    (path, nodes)
}

#[test]
fn small_requests_and_replies_pass_large_ones_of_their_own_application() {
    let (path, nodes) = slow_pair("passing");
    let here = nodes[0].register("orders").unwrap();
    let there = nodes[1].register("orders").unwrap();
    // A request of eight bytes asks for that many back.
    there.on_request_inline(|request| match request.payload[..].try_into() {
        Ok(size) => Ok(vec![9; u64::from_be_bytes(size) as usize]),
        Err(_) => Ok(request.payload.len().to_be_bytes().to_vec()),
    });
    let to = nodes[1].id();
    let bytes = 8_usize << 20;
    let long_request = here.request_async(to, vec![1; bytes], PATIENCE).unwrap();
    let long_reply = here
        .request_async(to, (bytes as u64).to_be_bytes(), PATIENCE)
        .unwrap();
    for size in 0..20_u64 {
        let answer = here.request(to, size.to_be_bytes(), PATIENCE).unwrap();
        assert_eq!(answer.len() as u64, size);
    }
    assert!(!long_request.is_ready() && !long_reply.is_ready());
    // Two messages keep their order, however large the first is, and let requests pass as well.
    here.send(to, vec![4; bytes], PATIENCE).unwrap();
    here.send(to, "after", PATIENCE).unwrap();
    for _ in 0..5 {
        assert_eq!(
            here.request(to, 3_u64.to_be_bytes(), PATIENCE),
            Ok(vec![9; 3])
        );
    }
    assert!(there.messages().is_empty(), "a message in 25 round trips");
    let first = there.messages().recv_timeout(PATIENCE).unwrap();
    assert!(first.payload.len() == bytes && first.payload.iter().all(|byte| *byte == 4));
    drop(first);
    assert_eq!(
        there.messages().recv_timeout(PATIENCE).unwrap().payload,
        b"after"
    );
    assert_eq!(long_request.wait(), Ok(bytes.to_be_bytes().to_vec()));
    assert!(long_reply.wait() == Ok(vec![9; bytes]));
    shut_down(&nodes);
    drop(path);
}

#[test]
fn a_large_request_that_is_given_up_half_way_is_broken_off() {
    let (path, nodes) = slow_pair("half-way");
    let here = nodes[0].register("orders").unwrap();
    let there = nodes[1].register("orders").unwrap();
    there.on_request_inline(|request| Ok(request.payload[..1].to_vec()));
    let to = nodes[1].id();
    // 16 MiB take 2.5 s at 64 KiB in 10 ms. More of them than may have a stream of their own: the
    // rest goes in line, where what has begun is finished, and what has not is taken out.
    let replies: Vec<_> = (0..4)
        .map(|_| here.request_async(to, vec![5; 16 << 20], SECOND / 2))
        .collect();
    for reply in replies.into_iter().flatten() {
        let late = reply.wait().unwrap_err();
        assert!(matches!(late, RequestError::Timeout { .. }), "{late:?}");
    }
    eventually("what had a stream of its own is dropped", || {
        counts(&nodes[1]).requests_withdrawn >= 1
    });
    assert_eq!(here.request(to, [6], PATIENCE), Ok(vec![6]));
    assert_eq!(here.request(to, vec![7; 1 << 20], PATIENCE), Ok(vec![7]));
    shut_down(&nodes);
    drop(path);
}

#[test]
fn every_caller_gets_an_error_in_time_when_the_peer_is_gone_in_mid_flight() {
    let (nodes, here, there) = pair("gone");
    there.on_request_inline(|request| Ok(request.payload.clone()));
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Until the first failure, which must come, and not by a time-out.
                loop {
                    match here.request(nodes[1].id(), "?", PATIENCE) {
                        Ok(_) => answered.fetch_add(1, Relaxed),
                        Err(RequestError::Timeout { .. }) => panic!("nobody told"),
                        Err(_) => break,
                    };
                }
            });
        }
        eventually("requests are under way", || answered.load(Relaxed) > 1_000);
        nodes[1].abort();
    });
    nodes[0].shutdown(10 * SECOND);
}
