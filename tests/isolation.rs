//! What one application does, or does not do, never stops another one, membership or the end of
//! its node; and every call has an answer.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "real nodes and threads run against the real clock; tests panic and print, in their helpers too"
)]
#![cfg(feature = "ca")]

#[path = "support/cluster.rs"]
mod support;

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nodosum::{
    CommandError, EventKind, MemberStatus, Node, NotReady, Ready, RegisterError, RequestError,
    SendErrorKind,
};
use support::{Lab, PATIENCE, await_event, eventually, id};

const SECOND: Duration = Duration::from_secs(1);

/// Holds handlers up until it is opened, for a minute at most.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn pass(&self) {
        let (is_open, changed) = &*self.0;
        let guard = is_open.lock().unwrap();
        let wait = changed.wait_timeout_while(guard, Duration::from_secs(60), |open| !*open);
        drop(wait.unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// Everything but the application under test works: requests of another one in both directions,
/// pings, and nobody is suspected for longer than it takes to refute that.
fn the_rest_works(nodes: &[Node], other: &[nodosum::App]) {
    for (node, app) in nodes.iter().zip(other) {
        for peer in nodes.iter().filter(|peer| peer.id() != node.id()) {
            let answer = app.request(peer.id(), "still there?", 10 * SECOND);
            assert_eq!(answer.as_deref(), Ok("still there?".as_bytes()));
            node.ping(peer.id(), 10 * SECOND).unwrap();
        }
        eventually("all members are alive", || {
            let members = node.members();
            members.len() == nodes.len() && members.iter().all(|m| m.status == MemberStatus::Alive)
        });
    }
}

fn echo(nodes: &[Node]) -> Vec<nodosum::App> {
    nodes
        .iter()
        .map(|node| {
            let app = node.register("echo").unwrap();
            app.on_request(2, |request| Ok(request.payload.clone()))
                .unwrap();
            app
        })
        .collect()
}

#[test]
fn a_handler_that_panics_is_contained_counted_and_goes_on() {
    let lab = Lab::new("panics");
    let nodes = lab.start(2);
    let other = echo(&nodes);
    let asker = nodes[0].register("fragile").unwrap();
    let fragile = nodes[1].register("fragile").unwrap();
    fragile
        .on_request(1, |request| {
            assert_ne!(request.payload, b"panic", "asked to panic");
            Ok(request.payload.clone())
        })
        .unwrap();
    let (handled, seen) = std::sync::mpsc::channel();
    fragile
        .on_message(1, move |message| {
            assert_ne!(message.payload, b"panic", "asked to panic");
            handled.send(message.payload).unwrap();
        })
        .unwrap();
    let to = nodes[1].id();
    for round in 1..=3 {
        let error = asker.request(to, "panic", 10 * SECOND).unwrap_err();
        assert!(matches!(error, RequestError::Remote { .. }), "{error:?}");
        assert_eq!(asker.request(to, "calm", 10 * SECOND).unwrap(), b"calm");
        asker.send(to, "panic", 10 * SECOND).unwrap();
        asker.send(to, format!("{round}"), 10 * SECOND).unwrap();
        let payload = seen.recv_timeout(PATIENCE).unwrap();
        assert_eq!(payload, format!("{round}").as_bytes());
        assert_eq!(fragile.handler_panics(), 2 * round);
    }
    the_rest_works(&nodes, &other);
    // What a panicking handler had taken is given back.
    eventually("the inbox is empty", || fragile.inbox_bytes() == 0);
    for node in &nodes {
        assert_eq!(
            node.shutdown(10 * SECOND).threads_stuck,
            Vec::<String>::new()
        );
    }
}

#[test]
fn a_handler_that_sleeps_holds_nobody_up_and_shutdown_names_its_thread() {
    let lab = Lab::new("sleeps");
    let nodes = lab.start(2);
    let other = echo(&nodes);
    let gate = Gate::default();
    let asker = nodes[0].register("sleepy").unwrap();
    let sleepy = nodes[1].register("sleepy").unwrap();
    let asleep = Arc::new(AtomicUsize::new(0));
    let (counted, held) = (Arc::clone(&asleep), gate.clone());
    sleepy
        .on_request(1, move |_| {
            counted.fetch_add(1, Relaxed);
            held.pass();
            Ok(Vec::new())
        })
        .unwrap();
    let timeout = Duration::from_millis(500);
    let asked = Instant::now();
    let error = asker.request(nodes[1].id(), "", timeout).unwrap_err();
    assert!(matches!(error, RequestError::Timeout { .. }), "{error:?}");
    let took = asked.elapsed();
    assert!(took >= timeout && took < timeout + 2 * SECOND, "{took:?}");
    eventually("the handler sleeps", || asleep.load(Relaxed) == 1);
    the_rest_works(&nodes, &other);

    let timeout = 4 * SECOND;
    let started = Instant::now();
    let report = nodes[1].shutdown(timeout);
    let took = started.elapsed();
    assert!(took < timeout + SECOND, "shutdown took {took:?}");
    assert!(report.left, "{report:?}");
    let [stuck] = &report.threads_stuck[..] else {
        panic!("{report:?}");
    };
    assert!(stuck.starts_with("nd-work-"), "{stuck}");
    gate.open();
    // The others know that it left on purpose.
    let status = |members: Vec<nodosum::MemberInfo>| {
        let member = members.into_iter().find(|m| m.node == id("n2"));
        member.map(|m| m.status)
    };
    assert_eq!(status(nodes[0].members()), Some(MemberStatus::Left));
}

#[test]
fn a_subscriber_that_never_reads_holds_nobody_up_and_is_told_how_much_it_missed() {
    const CAPACITY: usize = 1_024;
    let lab = Lab::new("lagged");
    let stayer = lab.builder("n1").start().unwrap();
    stayer.wait_ready(Ready::Started, PATIENCE).unwrap();
    let silent = stayer.events();
    let reader = stayer.events();
    let seed = stayer.quic_addr().to_string();
    let identities: Vec<_> = (0..8).map(|i| lab.identity(&format!("g{i}"))).collect();
    let mut all = Vec::new();
    let come_and_go = |all: &mut Vec<EventKind>| {
        let guests: Vec<Node> = identities
            .iter()
            .map(|identity| {
                let builder = Node::builder(identity.clone()).profile(nodosum::Profile::Local);
                builder.seed(&seed).start().unwrap()
            })
            .collect();
        for guest in &guests {
            let boot = guest.boot_id();
            eventually("the guest is connected", || {
                let members = stayer.members();
                let member = members.iter().find(|m| m.node == *guest.id());
                member.is_some_and(|m| m.boot == boot && m.connected)
            });
        }
        thread::scope(|scope| {
            for guest in &guests {
                scope.spawn(|| guest.shutdown(10 * SECOND));
            }
        });
        while let Some(event) = reader.try_recv() {
            all.push(event.kind);
        }
    };
    while all.len() < CAPACITY + 100 {
        come_and_go(&mut all);
    }
    let mut seen = Vec::new();
    for _ in 0..CAPACITY {
        seen.push(silent.try_recv().expect("1,024 events are kept"));
    }
    assert_eq!(silent.try_recv(), None, "more than 1,024 events were kept");
    // The next events tell of the gap, once, and go on behind it.
    come_and_go(&mut all);
    let missed = match silent.recv_timeout(PATIENCE) {
        Some(event) => {
            let EventKind::Lagged { missed } = event.kind else {
                panic!("{event:?}");
            };
            seen.push(event);
            usize::try_from(missed).unwrap()
        }
        None => panic!("not told"),
    };
    let next = silent
        .recv_timeout(PATIENCE)
        .expect("an event after the gap");
    assert_eq!(next.kind, all[CAPACITY + missed]);
    seen.push(next);
    for (kept, original) in seen.iter().zip(&all).take(CAPACITY) {
        assert_eq!(kept.kind, *original);
    }
    let seqs = seen.iter().map(|event| event.seq);
    assert!(seqs.eq(1..=CAPACITY as u64 + 2), "seq has gaps");
    assert_eq!(
        stayer.shutdown(10 * SECOND).threads_stuck,
        Vec::<String>::new()
    );
}

#[test]
fn an_application_that_never_reads_stops_only_its_own_senders_and_loses_nothing() {
    const PAYLOAD: usize = 20_000;
    let lab = Lab::new("stalled");
    let nodes = lab.start(3);
    let other = echo(&nodes);
    let stalled: Vec<_> = nodes
        .iter()
        .map(|node| node.register("stalled").unwrap())
        .collect();
    stalled[1]
        .on_request(1, |request| Ok(request.payload.clone()))
        .unwrap();
    let events = nodes[0].events();
    let to = nodes[1].id();
    let payload = |number: u32| {
        let mut payload = number.to_be_bytes().to_vec();
        payload.resize(PAYLOAD, number as u8);
        payload
    };
    // Both others send until they are held up.
    let mut accepted = [0_u32; 2];
    for (sender, accepted) in [0, 2].into_iter().zip(&mut accepted) {
        let error = loop {
            match stalled[sender].send(to, payload(*accepted), SECOND) {
                Ok(()) => *accepted += 1,
                Err(error) => break error,
            }
            assert!(*accepted < 2_000, "40 MB and still no limit");
        };
        assert_eq!(error.kind, SendErrorKind::Timeout(to.clone()));
        assert_eq!(error.payload, payload(*accepted));
        assert!(*accepted > 0);
    }
    assert!(stalled[1].inbox_bytes() <= 1 << 20);
    // `flush` cannot hold, and says so in time.
    let error = stalled[0]
        .flush(to, Duration::from_millis(200))
        .unwrap_err();
    assert_eq!(error, SendErrorKind::Timeout(to.clone()));
    the_rest_works(&nodes, &other);
    // Requests of the stalled application itself go on, too, and so do its messages elsewhere.
    let answer = stalled[0].request(to, "and you?", 10 * SECOND);
    assert_eq!(answer.unwrap(), b"and you?");
    stalled[0]
        .send(nodes[2].id(), "hello", 10 * SECOND)
        .unwrap();
    stalled[0].flush(nodes[2].id(), 10 * SECOND).unwrap();
    other[0].send(to, "one message", 10 * SECOND).unwrap();
    other[0].flush(to, 10 * SECOND).unwrap();
    while let Some(event) = events.try_recv() {
        assert!(
            !matches!(event.kind, EventKind::Disconnected { .. }),
            "{event:?}"
        );
    }
    // Now it reads: all that was accepted is there, in order, and nothing else.
    let mut received = [0_u32; 2];
    while received != accepted {
        let message = stalled[1]
            .messages()
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("{received:?} of {accepted:?} arrived"));
        let index = usize::from(message.from == id("n3"));
        assert_eq!(message.payload, payload(received[index]));
        received[index] += 1;
    }
    stalled[0].flush(to, PATIENCE).unwrap();
    stalled[2].flush(to, PATIENCE).unwrap();
    assert!(stalled[1].messages().try_recv().is_err());
    assert_eq!(stalled[1].inbox_bytes(), 0);
    // And it goes on as if nothing had been.
    stalled[0].send(to, "again", 10 * SECOND).unwrap();
    let message = stalled[1].messages().recv_timeout(PATIENCE).unwrap();
    assert_eq!(message.payload, b"again");
}

#[test]
fn nodes_whose_messages_nobody_reads_shut_down_in_time() {
    let lab = Lab::new("fullend");
    let nodes = lab.start(6);
    let apps: Vec<_> = nodes
        .iter()
        .map(|node| node.register("stalled").unwrap())
        .collect();
    let fill = |from: usize, to: usize| {
        let timeout = Duration::from_millis(200);
        while apps[from]
            .send(nodes[to].id(), vec![0; 60_000], timeout)
            .is_ok()
        {}
    };
    // The first waits for everybody, and everybody's inbox is full.
    for to in 1..nodes.len() {
        fill(0, to);
    }
    fill(1, 0);
    for node in &nodes {
        let timeout = 5 * SECOND;
        let started = Instant::now();
        let report = node.shutdown(timeout);
        let took = started.elapsed();
        assert!(took < timeout, "{}: {took:?}", node.id());
        assert_eq!(report.threads_stuck, Vec::<String>::new(), "{}", node.id());
    }
}

#[test]
fn handlers_may_call_whatever_they_like_even_the_end_of_their_own_node() {
    let lab = Lab::new("calls");
    let nodes = lab.start(3);
    let other = echo(&nodes);
    let asker = nodes[0].register("busy").unwrap();
    let busy = nodes[1].register("busy").unwrap();
    let (node, app, third) = (nodes[1].clone(), other[1].clone(), nodes[2].id().clone());
    busy.on_request(1, move |request| {
        let answer = app
            .request(&third, &request.payload, 10 * SECOND)
            .map_err(|error| error.to_string())?;
        app.send(&third, "by the way", 10 * SECOND)
            .map_err(|error| error.to_string())?;
        app.flush(&third, 10 * SECOND)
            .map_err(|error| error.to_string())?;
        app.broadcast(b"to all", 10 * SECOND);
        node.ping(&third, 10 * SECOND)
            .map_err(|error| error.to_string())?;
        node.wait_ready(Ready::FullMesh, 10 * SECOND)
            .map_err(|error| error.to_string())?;
        // Commands go through the reactor.
        node.force_leave(&third).unwrap_err();
        let temporary = node.register("temporary").map_err(|e| e.to_string())?;
        drop((node.events(), temporary));
        assert_eq!(node.members().len(), 3);
        assert_eq!(node.peers().len(), 2);
        assert!(node.connections().len() >= 2 && node.status().ready);
        Ok(answer)
    })
    .unwrap();
    for i in 0..20 {
        let payload = format!("request {i}");
        let answer = asker.request(nodes[1].id(), &payload, PATIENCE).unwrap();
        assert_eq!(answer, payload.as_bytes());
    }

    // A message handler ends its own node, a request handler that of another.
    let (ended, report) = std::sync::mpsc::channel();
    for (index, is_request) in [(1, false), (2, true)] {
        let last = nodes[index].register("last").unwrap();
        let (node, ended) = (nodes[index].clone(), ended.clone());
        let end = move || {
            let started = Instant::now();
            let report = node.shutdown(10 * SECOND);
            ended.send((report, started.elapsed())).unwrap();
        };
        let to = nodes[index].id();
        let sender = nodes[0].register("last").unwrap();
        if is_request {
            last.on_request(1, move |_| {
                end();
                Ok(Vec::new())
            })
            .unwrap();
            let error = sender.request(to, "", PATIENCE).unwrap_err();
            assert!(
                matches!(error, RequestError::Disconnected { .. }),
                "{error:?}"
            );
        } else {
            last.on_message(1, move |_| end()).unwrap();
            sender.send(to, "", 10 * SECOND).unwrap();
        }
        let (report, took) = report.recv_timeout(PATIENCE).unwrap();
        assert!(took < 10 * SECOND, "{took:?}");
        assert_eq!(report.threads_stuck, Vec::<String>::new());
        assert_eq!(
            nodes[index].wait_ready(Ready::Started, SECOND),
            Err(NotReady::Stopped)
        );
    }
}

#[test]
fn what_is_sent_to_an_application_that_is_not_there_comes_back_as_an_error() {
    let lab = Lab::new("nobody");
    let nodes = lab.start(2);
    let sender = nodes[0].register("late").unwrap();
    let to = nodes[1].id();
    let nobody = SendErrorKind::NoApplication {
        peer: to.clone(),
        app: "late".to_owned(),
    };
    // More often than a peer may have streams: each refusal must give its stream back.
    for round in 0..300 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match sender.send(to, "anybody?", 10 * SECOND) {
                Ok(()) => assert!(Instant::now() < deadline, "round {round}: never told"),
                Err(error) => {
                    assert_eq!(error.kind, nobody, "round {round}");
                    assert_eq!(error.payload, b"anybody?");
                    break;
                }
            }
            // Either it is told to whoever waits, or there is nothing to wait for.
            match sender.flush(to, 10 * SECOND) {
                Ok(()) => {}
                Err(kind) => assert_eq!(kind, nobody, "round {round}"),
            }
        }
    }
    let no_handler = |error: RequestError| {
        assert!(matches!(error, RequestError::NoHandler { .. }), "{error:?}");
    };
    no_handler(sender.request(to, "", 10 * SECOND).unwrap_err());
    let late = nodes[1].register("late").unwrap();
    no_handler(sender.request(to, "", 10 * SECOND).unwrap_err());
    // The application is there now; a refusal of a moment ago may still be told once.
    if let Err(error) = sender.send(to, "hello", 10 * SECOND) {
        assert_eq!(error.kind, nobody);
        sender.send(to, "hello", 10 * SECOND).unwrap();
    }
    let message = late.messages().recv_timeout(PATIENCE).unwrap();
    assert_eq!(message.payload, b"hello");
    let stranger = id("n9");
    assert_eq!(
        sender.send(&stranger, "", SECOND).unwrap_err().kind,
        SendErrorKind::NotConnected(stranger.clone())
    );
    assert_eq!(
        sender.request(&stranger, "", SECOND).unwrap_err(),
        RequestError::NotConnected(stranger)
    );
}

#[test]
fn sixteen_mebibytes_pass_and_one_byte_more_does_not() {
    const MAX: usize = 16 << 20;
    let lab = Lab::new("large");
    let nodes = lab.start(2);
    let other = echo(&nodes);
    let (app, to) = (&other[0], nodes[1].id());
    let payload: Vec<u8> = (0..MAX).map(|i| (i / 251) as u8).collect();
    app.send(to, payload.clone(), PATIENCE).unwrap();
    let message = other[1].messages().recv_timeout(PATIENCE).unwrap();
    assert!(message.payload == payload, "damaged on the way");
    drop(message);
    let answer = app.request(to, &payload, PATIENCE).unwrap();
    assert!(answer == payload, "damaged on the way");

    let larger = vec![1; MAX + 1];
    let too_large = SendErrorKind::TooLarge {
        bytes: MAX + 1,
        max: MAX,
    };
    let error = app.send(to, larger.clone(), PATIENCE).unwrap_err();
    assert_eq!(error.kind, too_large);
    assert!(error.payload == larger, "not the payload");
    assert!(matches!(
        app.request(to, &larger, PATIENCE),
        Err(RequestError::TooLarge { .. })
    ));
    let delivery = app.broadcast(&larger, PATIENCE);
    assert_eq!(delivery.failed, [(to.clone(), too_large)]);
    // A reply that is too large becomes an error for the one who asked.
    let wordy = nodes[1].register("wordy").unwrap();
    wordy.on_request(1, |_| Ok(vec![0; MAX + 1])).unwrap();
    let error = nodes[0]
        .register("wordy")
        .unwrap()
        .request(to, "", PATIENCE)
        .unwrap_err();
    assert!(matches!(error, RequestError::Remote { .. }), "{error:?}");
    the_rest_works(&nodes, &other);
}

#[test]
fn a_request_whose_time_is_over_before_its_turn_is_not_carried_out() {
    let lab = Lab::new("expired");
    let nodes = lab.start(2);
    let asker = nodes[0].register("slow").unwrap();
    let slow = nodes[1].register("slow").unwrap();
    let gate = Gate::default();
    let carried_out = Arc::new(Mutex::new(Vec::new()));
    let (held, noted) = (gate.clone(), Arc::clone(&carried_out));
    slow.on_request(1, move |request| {
        noted.lock().unwrap().push(request.payload.clone());
        held.pass();
        Ok(request.payload.clone())
    })
    .unwrap();
    let to = nodes[1].id();
    thread::scope(|scope| {
        let first = scope.spawn(|| asker.request(to, "first", PATIENCE));
        eventually("the first is at work", || {
            carried_out.lock().unwrap().len() == 1
        });
        let timeout = Duration::from_millis(200);
        let error = asker.request(to, "second", timeout).unwrap_err();
        let expected = RequestError::Timeout {
            peer: to.clone(),
            timeout,
        };
        assert_eq!(error, expected);
        // Its time runs from its arrival there, which was a moment after it was sent.
        let until = Instant::now() + SECOND;
        eventually("its time is over there, too", || Instant::now() > until);
        gate.open();
        assert_eq!(first.join().unwrap().unwrap(), b"first");
    });
    assert_eq!(asker.request(to, "third", PATIENCE).unwrap(), b"third");
    let carried_out = carried_out.lock().unwrap().clone();
    assert_eq!(carried_out, [b"first".to_vec(), b"third".to_vec()]);
}

#[test]
fn of_1025_requests_in_flight_the_last_is_told_busy_and_all_others_are_answered() {
    const MOST: usize = 1_024;
    let lab = Lab::new("inflight");
    let nodes = lab.start(2);
    let asker = nodes[0].register("slow").unwrap();
    let slow = nodes[1].register("slow").unwrap();
    let gate = Gate::default();
    let held = gate.clone();
    slow.on_request(4, move |request| {
        held.pass();
        Ok(request.payload.clone())
    })
    .unwrap();
    let to = nodes[1].id();
    thread::scope(|scope| {
        let asker = &asker;
        let asking: Vec<_> = (0..MOST)
            .map(|i| {
                let ask = move || {
                    let payload = vec![i as u8; 8];
                    loop {
                        // The probe below may take the place of one of these for a moment.
                        match asker.request(to, &payload, PATIENCE) {
                            Err(RequestError::Busy(_)) => thread::yield_now(),
                            outcome => return outcome.map(|answer| answer == payload),
                        }
                    }
                };
                let builder = thread::Builder::new().stack_size(128 << 10);
                builder.spawn_scoped(scope, ask).unwrap()
            })
            .collect();
        eventually("1,024 are in flight", || {
            let probe = asker.request(to, "one more", Duration::from_millis(20));
            match probe.unwrap_err() {
                RequestError::Busy(peer) => peer == *to,
                RequestError::Timeout { .. } => false,
                error => panic!("{error:?}"),
            }
        });
        gate.open();
        for ask in asking {
            assert_eq!(ask.join().unwrap(), Ok(true));
        }
    });
    assert_eq!(asker.request(to, "calm", PATIENCE).unwrap(), b"calm");
}

#[test]
fn after_shutdown_every_call_answers_at_once_that_the_node_is_stopped() {
    let lab = Lab::new("stopped");
    let nodes = lab.start(2);
    let (node, peer) = (&nodes[0], nodes[1].id());
    let app = node.register("gone").unwrap();
    app.on_request(1, |_| Ok(Vec::new())).unwrap();
    let events = node.events();
    assert_eq!(
        node.shutdown(10 * SECOND).threads_stuck,
        Vec::<String>::new()
    );

    let started = Instant::now();
    let error = app.send(peer, "late", PATIENCE).unwrap_err();
    assert_eq!(
        (error.kind, error.payload),
        (SendErrorKind::Stopped, b"late".to_vec())
    );
    assert_eq!(app.request(peer, "", PATIENCE), Err(RequestError::Stopped));
    assert_eq!(app.flush(peer, PATIENCE), Err(SendErrorKind::Stopped));
    let delivery = app.send_many(std::slice::from_ref(peer), b"", PATIENCE);
    assert_eq!(delivery.failed, [(peer.clone(), SendErrorKind::Stopped)]);
    assert_eq!(app.broadcast(b"", PATIENCE), nodosum::Delivery::default());
    assert_eq!(
        app.on_request(1, |_| Ok(Vec::new())),
        Err(RegisterError::Stopped)
    );
    assert_eq!(app.on_message(1, drop), Err(RegisterError::Stopped));
    assert_eq!(node.register("new").err(), Some(RegisterError::Stopped));
    assert_eq!(node.ping(peer, PATIENCE), Err(RequestError::Stopped));
    assert_eq!(
        node.join(&["127.0.0.1:1"], PATIENCE),
        Err(CommandError::Stopped)
    );
    assert_eq!(node.leave(PATIENCE), Err(CommandError::Stopped));
    assert_eq!(node.force_leave(peer), Err(CommandError::Stopped));
    assert_eq!(
        node.wait_ready(Ready::Started, PATIENCE),
        Err(NotReady::Stopped)
    );
    assert!(node.peers().is_empty());
    assert!(!node.status().ready);
    // What had happened before can still be read, and then comes the end.
    assert!(events.count() > 0);
    assert_eq!(node.events().recv(), None);
    assert_eq!(node.shutdown(PATIENCE).threads_stuck, Vec::<String>::new());
    node.abort();
    let took = started.elapsed();
    assert!(took < 2 * SECOND, "{took:?}");
}

#[test]
fn the_drop_of_the_last_handle_is_a_leave_for_the_others() {
    let lab = Lab::new("dropped");
    let mut nodes = lab.start(2);
    let events = nodes[0].events();
    let app = nodes[1].register("kept").unwrap();
    app.on_request(1, |_| Ok(Vec::new())).unwrap();
    let clone = nodes[1].clone();
    nodes.truncate(1);
    // One handle is left, so that it runs on.
    clone.ping(nodes[0].id(), PATIENCE).unwrap();
    let started = Instant::now();
    drop(clone);
    let took = started.elapsed();
    assert!(took < 3 * SECOND, "{took:?}");
    await_event(
        &events,
        "member_left of n2",
        |kind| matches!(kind, EventKind::MemberLeft { node, .. } if *node == id("n2")),
    );
    eventually("n2 is disconnected", || nodes[0].peers().is_empty());
    // The application handle outlives its node and says so.
    let error = app.send(nodes[0].id(), "late", PATIENCE).unwrap_err();
    assert_eq!(error.kind, SendErrorKind::Stopped);
}

#[test]
fn a_wait_for_messages_ends_with_the_node() {
    let lab = Lab::new("endless");
    let node = lab.builder("n1").start().unwrap();
    let app = node.register("app").unwrap();
    let waiting = {
        let messages = app.messages().clone();
        thread::spawn(move || messages.recv())
    };
    node.wait_ready(Ready::Started, Duration::MAX).unwrap();
    node.shutdown(Duration::MAX);
    assert!(waiting.join().unwrap().is_err());
}

#[test]
fn eight_applications_that_never_read_stop_neither_a_ninth_nor_requests() {
    let lab = Lab::new("stalled");
    let nodes = lab.start(2);
    let to = nodes[1].id();
    let mut held = Vec::new();
    for i in 0..8 {
        let name = format!("deaf-{i}");
        let sender = nodes[0].register(&name).unwrap();
        held.push(nodes[1].register(&name).unwrap());
        // More than inbox, window and queue hold together: the last one is refused.
        let payload = vec![0; 256 * 1_024];
        let refused = (0..64).find_map(|_| sender.send(to, payload.clone(), SECOND / 4).err());
        assert!(refused.is_some(), "{name} took everything");
        held.push(sender);
    }
    let asking = nodes[0].register("works").unwrap();
    let answering = nodes[1].register("works").unwrap();
    answering
        .on_request(1, |request| Ok(request.payload.clone()))
        .unwrap();
    for i in 0..100_u32 {
        let reply = asking.request(to, i.to_be_bytes(), 10 * SECOND);
        assert_eq!(reply.as_deref(), Ok(&i.to_be_bytes()[..]));
        asking.send(to, i.to_be_bytes(), 10 * SECOND).unwrap();
        nodes[0].ping(to, 10 * SECOND).unwrap();
    }
    asking.flush(to, 10 * SECOND).unwrap();
    assert_eq!(answering.messages().len(), 100);
    assert_eq!(nodes[0].peers().len(), 1, "the connection was lost");
}
