//! Events of applications, queries and tags on real nodes.
#![expect(
    clippy::disallowed_methods,
    reason = "real nodes run against the real clock"
)]
#![cfg(feature = "ca")]

#[path = "support/cluster.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
    time::{Duration, Instant},
};

use nodosum::{
    CommandError, EventError, EventKind, Events, MAX_EVENT_BYTES, Node, QueryFilter, RegisterError,
};
use support::{Lab, PATIENCE, await_event, eventually, id};

/// The user events up to one of this name.
fn heard(events: &Events, until: &str) -> Vec<(String, String, Vec<u8>, u64)> {
    let seen = await_event(
        events,
        until,
        |kind| matches!(kind, EventKind::UserEvent { name, .. } if name == until),
    );
    let user = seen.into_iter().filter_map(|event| match event.kind {
        EventKind::UserEvent {
            from,
            name,
            payload,
            lamport,
        } => Some((from.to_string(), name, payload, lamport)),
        _ => None,
    });
    user.collect()
}

#[test]
fn an_event_reaches_every_node_once_and_signed_by_its_origin() {
    let lab = Lab::new("tell");
    let nodes = lab.start(3);
    let events: Vec<_> = nodes.iter().map(Node::events).collect();
    nodes[1].emit_event("deploy", "v2").unwrap();
    let mut first = 0;
    for events in &events {
        let heard = heard(events, "deploy");
        let [(from, _, payload, lamport)] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert_eq!((from.as_str(), payload.as_slice()), ("n2", &b"v2"[..]));
        first = *lamport;
    }
    // What follows an event has a higher time, and nothing came twice in between.
    nodes[2].emit_event("done", "").unwrap();
    for events in &events {
        let heard = heard(events, "done");
        let [(from, _, _, lamport)] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert_eq!(from, "n3");
        assert!(*lamport > first);
    }
}

#[test]
fn events_outside_their_limits_are_refused_to_the_caller() {
    let lab = Lab::new("limits");
    let node = lab.builder("n1").start().unwrap();
    let invalid = node.emit_event("no spaces", "");
    assert_eq!(invalid, Err(EventError::InvalidName("no spaces".into())));
    for bytes in [MAX_EVENT_BYTES, 1 << 20] {
        let error = node.emit_event("a", vec![0; bytes]).unwrap_err();
        let max = MAX_EVENT_BYTES;
        let bytes = bytes + 1;
        assert_eq!(error, EventError::TooLarge { bytes, max });
    }
    node.emit_event("a", vec![0; MAX_EVENT_BYTES - 1]).unwrap();
    let wide = QueryFilter::all().tag("k", "v".repeat(300));
    let error = node.query("q", "", wide, PATIENCE).unwrap_err();
    assert!(matches!(error, EventError::FilterTooLarge { .. }));
    let error = node
        .query("q", "", QueryFilter::all(), Duration::ZERO)
        .unwrap_err();
    assert!(matches!(error, EventError::InvalidTimeout(_)));
    node.shutdown(PATIENCE);
    assert_eq!(node.emit_event("a", ""), Err(EventError::Stopped));
}

#[test]
fn a_query_brings_the_answers_of_those_it_asks() {
    let lab = Lab::new("ask");
    let first = lab.builder("n1").tag("role", "web").start().unwrap();
    let seed = first.quic_addr().to_string();
    let start = |name: &str, role: &str| {
        let builder = lab.builder(name).tag("role", role).seed(&seed);
        builder.start().unwrap()
    };
    let nodes = [first, start("n2", "web"), start("n3", "db")];
    support::full_mesh(&nodes, PATIENCE);
    for node in &nodes {
        let me = node.id().to_string();
        node.on_query("load", move |query| {
            assert_eq!(query.from, id("n1"));
            Some([me.as_bytes(), b": ", &query.payload].concat())
        })
        .unwrap();
    }
    let ask = |filter| {
        let mut answers = nodes[0].query("load", "1m", filter, PATIENCE).unwrap();
        let mut all: Vec<_> = answers
            .by_ref()
            .map(|(node, answer)| (node.to_string(), String::from_utf8(answer).unwrap()))
            .collect();
        all.sort();
        let report = answers.report();
        assert!(report.missing.is_empty(), "{report:?}");
        assert!(report.refused.is_empty(), "{report:?}");
        all
    };
    let answer = |node: &str| (node.to_owned(), format!("{node}: 1m"));
    assert_eq!(
        ask(QueryFilter::all()),
        [answer("n1"), answer("n2"), answer("n3")]
    );
    assert_eq!(
        ask(QueryFilter::all().tag("role", "web")),
        [answer("n1"), answer("n2")]
    );
    assert_eq!(ask(QueryFilter::all().node(id("n3"))), [answer("n3")]);
    assert_eq!(ask(QueryFilter::all().tag("role", "none")), []);
    let again = nodes[0].on_query("load", |_| None);
    assert_eq!(again, Err(RegisterError::Taken("load".into())));
    let taken = nodes[0].register("nodosum.query").map(|_| ());
    assert_eq!(taken, Err(RegisterError::Taken("nodosum.query".into())));
    for node in &nodes {
        let report = node.shutdown(PATIENCE);
        assert!(report.threads_stuck.is_empty(), "{report:?}");
    }
}

#[test]
fn a_query_tells_who_refused_and_who_did_not_answer_in_time() {
    let lab = Lab::new("silence");
    let nodes = lab.start(3);
    nodes[0].on_query("q", |_| None).unwrap();
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    nodes[1]
        .on_query("q", move |_| {
            let _ = held.lock().unwrap().recv();
            Some(b"late".to_vec())
        })
        .unwrap();
    let timeout = Duration::from_secs(3);
    let mut answers = nodes[2]
        .query("q", "", QueryFilter::all(), timeout)
        .unwrap();
    assert_eq!(answers.next(), None);
    let report = answers.report();
    assert_eq!(report.missing, [id("n2")]);
    let reasons: BTreeMap<_, _> = report.refused.into_iter().collect();
    assert_eq!(reasons[&id("n1")], "no answer");
    assert_eq!(reasons[&id("n3")], "no handler");
    // A handler that hangs holds up nobody's membership, events or other queries.
    nodes[2].on_query("other", |_| Some(vec![])).unwrap();
    let mut answers = nodes[1]
        .query("other", "", QueryFilter::all(), PATIENCE)
        .unwrap();
    assert_eq!(answers.next(), Some((id("n3"), vec![])));
    assert_eq!(answers.next(), None);
    drop(release);
}

#[test]
fn a_waiting_query_ends_with_its_node() {
    let lab = Lab::new("end");
    let nodes = lab.start(2);
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    nodes[1]
        .on_query("q", move |_| {
            let _ = held.lock().unwrap().recv();
            None
        })
        .unwrap();
    let filter = QueryFilter::all().node(id("n2"));
    let mut answers = nodes[0].query("q", "", filter, 5 * PATIENCE).unwrap();
    nodes[0].abort();
    assert_eq!(answers.next(), None);
    assert_eq!(answers.report().missing, [id("n2")]);
    drop(release);
}

#[test]
fn tags_change_live_and_too_many_are_refused() {
    let lab = Lab::new("tags");
    let nodes = lab.start(2);
    let events = nodes[1].events();
    let tags = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        pairs.collect()
    };
    let seen_by = |node: &Node| {
        let members = node.members();
        let member = members.iter().find(|member| member.node == id("n1"));
        member.map(|member| member.tags.clone())
    };
    nodes[0].set_tags(tags(&[("a", "1"), ("b", "2")])).unwrap();
    assert_eq!(seen_by(&nodes[0]), Some(tags(&[("a", "1"), ("b", "2")])));
    await_event(
        &events,
        "member_updated of n1",
        |kind| matches!(kind, EventKind::MemberUpdated { node } if *node == id("n1")),
    );
    eventually("n2 sees the tags", || {
        seen_by(&nodes[1]) == Some(tags(&[("a", "1"), ("b", "2")]))
    });
    let now = nodes[0].edit_tags(tags(&[("c", "3")]), BTreeSet::from(["a".to_owned()]));
    assert_eq!(now, Ok(tags(&[("b", "2"), ("c", "3")])));
    eventually("n2 sees the change", || {
        seen_by(&nodes[1]) == Some(tags(&[("b", "2"), ("c", "3")]))
    });
    let large = nodes[0].set_tags(tags(&[("k", &"v".repeat(600))]));
    assert_eq!(large, Err(CommandError::TagsTooLarge(607)));
    assert_eq!(seen_by(&nodes[0]), Some(tags(&[("b", "2"), ("c", "3")])));
}

#[test]
fn a_restarted_node_does_not_hear_the_events_of_its_earlier_life_again() {
    let lab = Lab::new("again");
    let nodes = lab.start(3);
    let events = nodes[2].events();
    nodes[0].emit_event("before", "").unwrap();
    heard(&events, "before");
    nodes[2].abort();
    let seed = nodes[0].quic_addr().to_string();
    let reborn = lab.builder("n3").seed(&seed).start().unwrap();
    let events = reborn.events();
    // Events it hears now prove that it hears what it is to hear; the old one comes by sync, too.
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "n3 hears nothing");
        nodes[0].emit_event("after", "").unwrap();
        let next = std::iter::from_fn(|| events.recv_timeout(Duration::from_millis(300)));
        let names: Vec<_> = next
            .filter_map(|event| match event.kind {
                EventKind::UserEvent { name, .. } => Some(name),
                _ => None,
            })
            .collect();
        assert!(!names.contains(&"before".to_owned()), "{names:?}");
        if names.contains(&"after".to_owned()) {
            return;
        }
    }
}
