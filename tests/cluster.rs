//! Several real nodes in one process: forming, messages, requests, ends.
#![expect(
    clippy::disallowed_methods,
    reason = "real nodes run against the real clock"
)]
#![cfg(feature = "ca")]

#[path = "support/cluster.rs"]
mod support;

use std::{fs, thread, time::Duration};

use nodosum::{EventKind, MemberStatus, Ready};
use support::{Lab, PATIENCE, await_event, eventually, full_mesh, id};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn three_nodes_find_each_other_and_exchange_requests_in_every_direction() {
    let lab = Lab::new("three");
    let nodes = lab.start(3);
    let apps: Vec<_> = nodes
        .iter()
        .map(|node| {
            let app = node.register("echo").unwrap();
            app.on_request(2, |request| Ok(request.payload.clone()))
                .unwrap();
            app
        })
        .collect();
    for (i, app) in apps.iter().enumerate() {
        for (j, other) in nodes.iter().enumerate() {
            if i != j {
                let payload = format!("from {i} to {j}");
                let reply = app.request(other.id(), &payload, 10 * SECOND);
                assert_eq!(reply.as_deref(), Ok(payload.as_bytes()));
            }
        }
    }
    for node in &nodes {
        node.wait_ready(Ready::FullMesh, SECOND).unwrap();
        assert_eq!(node.status().members.alive, 3);
        assert_eq!(node.peers().len(), 2);
    }
    for node in &nodes {
        let report = node.shutdown(10 * SECOND);
        assert!(report.threads_stuck.is_empty(), "{report:?}");
    }
}

/// Threads of this process that drive many connections.
fn shared_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("nd-peers-")).count()
}

#[test]
#[cfg(target_os = "linux")]
fn connections_share_as_many_threads_as_were_asked_for_and_the_threads_end_with_the_node() {
    // With them forced on every node, the threads of other tests' nodes have the same names.
    let forced = std::env::var("NODOSUM_WITHOUT").unwrap_or_default();
    let is_alone = !forced.contains("threads");
    let lab = Lab::new("shared");
    let first = lab.builder("n1").workers(2).start().unwrap();
    let seed = first.quic_addr().to_string();
    let others = (2..=6).map(|number| {
        let builder = lab.builder(&format!("n{number}")).workers(2);
        builder.seed(seed.clone()).start().unwrap()
    });
    let nodes: Vec<_> = [first].into_iter().chain(others).collect();
    for node in &nodes {
        node.wait_ready(Ready::Peers(5), PATIENCE).unwrap();
    }
    if is_alone {
        assert_eq!(shared_threads(), 2 * nodes.len());
    }
    let apps: Vec<_> = nodes
        .iter()
        .map(|node| {
            let app = node.register("echo").unwrap();
            app.on_request_inline(|request| Ok(request.payload.clone()));
            app
        })
        .collect();
    // Everybody asks everybody at once, from a thread each.
    thread::scope(|scope| {
        for (i, app) in apps.iter().enumerate() {
            for (j, other) in nodes.iter().enumerate().filter(|(j, _)| *j != i) {
                scope.spawn(move || {
                    for round in 0..200 {
                        let payload = format!("{i} to {j}, {round}");
                        let reply = app.request(other.id(), &payload, PATIENCE);
                        assert_eq!(reply.as_deref(), Ok(payload.as_bytes()));
                    }
                });
            }
        }
    });
    // One that ends does not take the others' connections with it.
    nodes[5].abort();
    let reply = apps[1].request(nodes[2].id(), "still", PATIENCE);
    assert_eq!(reply.as_deref(), Ok(&b"still"[..]));
    for node in &nodes[..5] {
        let report = node.shutdown(10 * SECOND);
        assert!(report.threads_stuck.is_empty(), "{report:?}");
    }
    drop((nodes, apps));
    if is_alone {
        eventually("no thread is left", || shared_threads() == 0);
    }
}

#[test]
fn a_node_without_seeds_becomes_ready_at_once() {
    let lab = Lab::new("alone");
    let node = lab.builder("n1").start().unwrap();
    node.wait_ready(Ready::Started, PATIENCE).unwrap();
    assert!(node.status().ready);
}

#[test]
fn a_killed_node_is_found_dead_and_a_leaving_one_left() {
    let lab = Lab::new("ends");
    let nodes = lab.start(3);
    let events = nodes[0].events();
    let report = nodes[1].shutdown(10 * SECOND);
    assert!(report.left, "{report:?}");
    await_event(
        &events,
        "member_left of n2",
        |kind| matches!(kind, EventKind::MemberLeft { node, .. } if *node == id("n2")),
    );
    nodes[2].abort();
    await_event(
        &events,
        "member_dead of n3",
        |kind| matches!(kind, EventKind::MemberDead { node, .. } if *node == id("n3")),
    );
    let members = nodes[0].members();
    let status = |name: &str| {
        members
            .iter()
            .find(|m| m.node == id(name))
            .map(|m| m.status)
    };
    assert_eq!(status("n2"), Some(MemberStatus::Left));
    assert_eq!(status("n3"), Some(MemberStatus::Dead));
}

#[test]
fn messages_arrive_in_order_and_are_acknowledged() {
    let lab = Lab::new("order");
    let nodes = lab.start(2);
    full_mesh(&nodes, PATIENCE);
    let sender = nodes[0].register("log").unwrap();
    let receiver = nodes[1].register("log").unwrap();
    let to = nodes[1].id();
    for i in 0..1_000_u32 {
        sender.send(to, i.to_be_bytes(), 10 * SECOND).unwrap();
    }
    sender.flush(to, 10 * SECOND).unwrap();
    for i in 0..1_000_u32 {
        let message = receiver.messages().recv_timeout(10 * SECOND).unwrap();
        assert_eq!(message.from, id("n1"));
        assert_eq!(message.payload, i.to_be_bytes());
    }
}
