//! What a node keeps on disk: restarts without a seed, and what may be wrong with the file.
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
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nodosum::{Builder, EventKind, MemberStatus, Node, StartError};
use support::{Lab, PATIENCE, await_event, eventually, full_mesh, id};

/// A directory for the state of each node, removed when dropped.
struct States(PathBuf);

impl States {
    fn new(test: &str) -> Self {
        let name = format!("nd-roster-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn of(&self, node: &str) -> PathBuf {
        self.0.join(node)
    }

    fn roster(&self, node: &str) -> PathBuf {
        self.of(node).join("roster")
    }

    fn builder(&self, lab: &Lab, node: &str) -> Builder {
        lab.builder(node).state_dir(self.of(node))
    }

    /// `n1` to `n3` with state, `n1` being the seed.
    fn three(&self, lab: &Lab) -> Vec<Node> {
        let first = self.builder(lab, "n1").start().unwrap();
        let seed = first.quic_addr().to_string();
        let mut nodes = vec![first];
        for name in ["n2", "n3"] {
            nodes.push(self.builder(lab, name).seed(&seed).start().unwrap());
        }
        full_mesh(&nodes, PATIENCE);
        nodes
    }

    /// Waits until a roster was written after everything that `node` knows by now.
    fn await_saved(&self, node: &Node) {
        let before = node.status().roster_saves;
        // The first image may have been taken before the last member came up; the next is not.
        let known = node.members().len();
        eventually("the roster is saved", || {
            let size = fs::metadata(self.roster(node.id().as_str())).map_or(0, |file| file.len());
            // Each entry has at least a record, a signature and a certificate.
            size > 400 * (known as u64 - 1) || node.status().roster_saves > before + 1
        });
    }
}

impl Drop for States {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn stop(nodes: &[Node]) {
    for node in nodes {
        let report = node.shutdown(PATIENCE);
        assert_eq!(report.threads_stuck, [""; 0]);
    }
}

fn incarnation(node: &Node, of: &str) -> u64 {
    let members = node.members();
    let member = members.iter().find(|member| member.node == id(of));
    member.map_or(0, |member| member.incarnation)
}

#[test]
fn a_node_that_was_killed_finds_the_others_without_a_seed_and_speaks_above_its_earlier_life() {
    let states = States::new("killed");
    let lab = Lab::new("roster");
    let mut nodes = states.three(&lab);
    for node in &nodes {
        states.await_saved(node);
    }
    let killed = nodes.remove(2);
    let before = incarnation(&nodes[1], "n3");
    killed.abort();
    drop(killed);
    // The only seed there was goes for good.
    let seed = nodes.remove(0);
    seed.abort();
    drop(seed);
    let n2 = nodes.remove(0);

    let n3 = states.builder(&lab, "n3").start().unwrap();
    let own = n3.members().pop().map_or(0, |member| member.incarnation);
    assert!(own == 0 || own > before, "{own} after {before}");
    let events = n3.events();
    await_event(&events, "n2 at n3", |event| {
        *event == EventKind::Connected { node: id("n2") }
    });
    eventually("n2 sees the new life", || {
        let members = n2.members();
        let row = members.iter().find(|member| member.node == id("n3"));
        row.is_some_and(|row| {
            row.status == MemberStatus::Alive
                && row.boot == n3.boot_id()
                && row.incarnation > before
        })
    });
    stop(&[n2, n3]);
}

#[test]
fn a_whole_cluster_that_was_shut_down_forms_again_without_seeds() {
    let states = States::new("whole");
    let lab = Lab::new("roster");
    let nodes = states.three(&lab);
    let addrs: Vec<_> = nodes
        .iter()
        .map(|node| (node.quic_addr(), node.gossip_addr()))
        .collect();
    // Each leaves in turn, so that the last one knows nobody who is still there.
    stop(&nodes);
    drop(nodes);
    let again: Vec<Node> = ["n1", "n2", "n3"]
        .iter()
        .zip(addrs)
        .map(|(name, (quic, gossip))| {
            let builder = states.builder(&lab, name).bind(quic).gossip_bind(gossip);
            builder.start().unwrap()
        })
        .collect();
    full_mesh(&again, PATIENCE);
    for node in &again {
        let members = node.members();
        assert!(
            members.iter().all(|member| member.incarnation > 1),
            "{members:?}"
        );
    }
    stop(&again);
}

#[test]
fn who_left_is_known_to_have_left_after_a_restart() {
    let states = States::new("left");
    let lab = Lab::new("roster");
    let nodes = states.three(&lab);
    stop(&nodes[2..]);
    for node in &nodes[..2] {
        eventually("n3 has left", || {
            let members = node.members();
            let row = members.iter().find(|member| member.node == id("n3"));
            row.is_some_and(|row| row.status == MemberStatus::Left)
        });
    }
    stop(&nodes);
    drop(nodes);
    let n1 = states.builder(&lab, "n1").start().unwrap();
    eventually("n1 remembers the farewell", || {
        let members = n1.members();
        let row = members.iter().find(|member| member.node == id("n3"));
        row.is_some_and(|row| row.status == MemberStatus::Left)
    });
    stop(&[n1]);
}

#[test]
fn a_damaged_roster_stops_nobody() {
    let states = States::new("damaged");
    let lab = Lab::new("roster");
    let nodes = states.three(&lab);
    stop(&nodes);
    drop(nodes);
    let path = states.roster("n2");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let n2 = states.builder(&lab, "n2").start().unwrap();
    eventually("a good one in its place", || n2.status().roster_saves > 0);
    stop(&[n2]);
}

fn refusal(builder: Builder) -> String {
    match builder.start() {
        Err(error @ StartError::StateDir { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it started"),
    }
}

#[test]
fn a_state_directory_belongs_to_one_node_and_to_one_process_at_a_time() {
    let states = States::new("owner");
    let lab = Lab::new("roster");
    let n1 = states.builder(&lab, "n1").start().unwrap();
    let why = refusal(states.builder(&lab, "n1"));
    assert!(why.contains("another process uses it"), "{why}");
    stop(&[n1]);
    let why = refusal(lab.builder("n2").state_dir(states.of("n1")));
    assert!(
        why.contains("it belongs to node n1 of cluster roster"),
        "{why}"
    );
    let n1 = states.builder(&lab, "n1").start().unwrap();
    n1.abort();
    stop(&[states.builder(&lab, "n1").start().unwrap()]);
}

#[test]
fn a_disk_that_takes_nothing_is_counted_and_stops_nobody() {
    let states = States::new("full");
    let lab = Lab::new("roster");
    let mut nodes = states.three(&lab);
    for node in &nodes {
        states.await_saved(node);
    }
    let saved = fs::read(states.roster("n1")).unwrap();
    // What is written first cannot be, whoever runs this.
    fs::create_dir(states.of("n1").join("roster.tmp")).unwrap();
    let events = nodes[0].events();
    let gone = nodes.remove(1);
    gone.abort();
    await_event(
        &events,
        "n2 is dead",
        |event| matches!(event, EventKind::MemberDead { node, .. } if *node == id("n2")),
    );
    eventually("it is counted", || nodes[0].status().roster_failures > 0);
    assert_eq!(read(&states.roster("n1")), saved, "the old one is intact");
    nodes[0].ping(&id("n3"), Duration::from_secs(10)).unwrap();
    fs::remove_dir(states.of("n1").join("roster.tmp")).unwrap();
    stop(&nodes);
    assert_ne!(read(&states.roster("n1")), saved, "saved at the end");
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}
