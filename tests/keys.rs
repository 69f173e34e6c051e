//! Gossip keys of real nodes: rotation while they talk, removal, and nodes that missed both.
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
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use nodosum::{App, CommandError, EventKind, KeyId, Node};
use support::{Lab, PATIENCE, eventually, full_mesh, id};

const SECOND: Duration = Duration::from_secs(1);

fn keys_of(node: &Node) -> Vec<KeyId> {
    let keys = node.keys().unwrap().keys;
    keys.iter().map(|key| key.id).collect()
}

fn sealing(node: &Node) -> Option<KeyId> {
    let keys = node.keys().unwrap().keys;
    keys.iter().find(|key| key.seals).map(|key| key.id)
}

/// Waits until every node seals with `newest` and knows that all have it.
fn settled_on(nodes: &[Node], newest: KeyId) {
    eventually("the rotation is finished everywhere", || {
        nodes.iter().all(|node| {
            let keys = node.keys().unwrap();
            keys.is_settled() && keys.keys[0].id == newest && keys.members == nodes.len()
        })
    });
}

/// Sends numbered messages to `to` until told to stop; returns how many were taken.
fn chatter(app: App, to: &str, stop: Arc<AtomicBool>) -> thread::JoinHandle<usize> {
    let to = id(to);
    thread::spawn(move || {
        let mut sent = 0;
        while !stop.load(Relaxed) {
            app.send(&to, "a message", 10 * SECOND).unwrap();
            let answer = app.request(&to, "a question", 10 * SECOND).unwrap();
            assert_eq!(answer, b"a question");
            sent += 1;
        }
        app.flush(&to, PATIENCE).unwrap();
        sent
    })
}

#[test]
fn rotations_and_removals_under_load_lose_nothing_and_kill_nobody() {
    let nodes = Lab::new("keys").start(3);
    let events: Vec<_> = nodes.iter().map(Node::events).collect();
    let received = Arc::new(AtomicUsize::new(0));
    let apps: Vec<App> = nodes.iter().map(|n| n.register("talk").unwrap()).collect();
    for app in &apps {
        app.on_request(2, |request| Ok(request.payload.clone()))
            .unwrap();
        let received = Arc::clone(&received);
        app.on_message(1, move |_| {
            received.fetch_add(1, Relaxed);
        })
        .unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let talkers: Vec<_> = [(0, "n2"), (1, "n3"), (2, "n1")]
        .map(|(from, to)| chatter(App::clone(&apps[from]), to, Arc::clone(&stop)))
        .into();

    let mut old = sealing(&nodes[0]).unwrap();
    for round in 0..12 {
        let new = nodes[round % 3].rotate_key().unwrap();
        settled_on(&nodes, new);
        let remover = &nodes[(round + 1) % 3];
        if round % 2 == 1 {
            remover.remove_key(old).unwrap();
            eventually("the old keys are gone everywhere", || {
                nodes.iter().all(|node| keys_of(node) == [new])
            });
            let gone = remover.remove_key(old).unwrap_err();
            assert_eq!(gone, CommandError::UnknownKey(old));
        }
        old = new;
    }
    stop.store(true, Relaxed);
    let sent: usize = talkers.into_iter().map(|t| t.join().unwrap()).sum();
    eventually("every message is handled", || {
        received.load(Relaxed) == sent
    });
    assert!(sent > 0);
    for (node, events) in nodes.iter().zip(&events) {
        while let Some(event) = events.recv_timeout(Duration::ZERO) {
            let is_a_loss = matches!(
                event.kind,
                EventKind::MemberDead { .. }
                    | EventKind::MemberLeft { .. }
                    | EventKind::Disconnected { .. }
            );
            assert!(!is_a_loss, "{}: {:?}", node.id(), event.kind);
        }
    }
}

#[test]
fn what_cannot_be_removed_is_refused_with_the_reason() {
    let nodes = Lab::new("keys").start(2);
    let first = sealing(&nodes[0]).unwrap();
    let refused = nodes[0].remove_key(first).unwrap_err();
    assert_eq!(refused, CommandError::KeyInUse(first));
    let unknown = KeyId([7; 8]);
    let refused = nodes[0].remove_key(unknown).unwrap_err();
    assert_eq!(refused, CommandError::UnknownKey(unknown));
    eventually("the first key is everywhere", || {
        let keys = nodes[0].keys().unwrap();
        keys.is_settled() && !keys.fixed
    });
    for node in &nodes {
        node.shutdown(PATIENCE);
        assert_eq!(node.rotate_key(), Err(CommandError::Stopped));
        assert_eq!(node.keys(), Err(CommandError::Stopped));
    }
}

#[test]
fn two_rotations_at_once_end_with_one_key_in_use_everywhere() {
    let nodes = Lab::new("keys").start(3);
    let made: Vec<KeyId> = thread::scope(|scope| {
        let rotating: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(|| node.rotate_key().unwrap()))
            .collect();
        rotating.into_iter().map(|t| t.join().unwrap()).collect()
    });
    eventually("all seal with one of them", || {
        let used = sealing(&nodes[0]);
        used.is_some_and(|used| made.contains(&used))
            && nodes.iter().all(|node| sealing(node) == used)
            && nodes.iter().all(|node| node.keys().unwrap().is_settled())
    });
}

#[test]
fn a_node_that_was_killed_before_a_rotation_recovers_when_it_returns() {
    let lab = Lab::new("keys");
    let mut nodes = lab.start(3);
    let old = sealing(&nodes[0]).unwrap();
    nodes.remove(2).abort();
    // Its connections may live for a while; the rotation does not wait for the dead for ever.
    let mut new = old;
    for _ in 0..3 {
        new = nodes[0].rotate_key().unwrap();
    }
    eventually("the two that are left use it", || {
        nodes.iter().all(|node| sealing(node) == Some(new))
    });
    nodes[1].remove_key(old).unwrap();
    let seed = nodes[0].quic_addr().to_string();
    nodes.push(lab.builder("n3").seed(seed).start().unwrap());
    full_mesh(&nodes, PATIENCE);
    settled_on(&nodes, new);
    assert!(!keys_of(&nodes[2]).contains(&old));
}
