//! Several real nodes in one process, on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot start has failed")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of this"
)]

use std::time::{Duration, Instant};

use nodosum::{
    Builder, ClusterName, Event, EventKind, Events, Identity, Node, NodeId, Profile, Ready,
    ca::Authority,
};

/// Long enough for a loaded machine with two cores; tests wait for events, not for this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster's authority and how its nodes are started.
pub struct Lab {
    pub authority: Authority,
    cluster: ClusterName,
}

impl Lab {
    pub fn new(cluster: &str) -> Self {
        let _ = env_logger::builder().is_test(true).try_init();
        let cluster = ClusterName::new(cluster).unwrap();
        let authority = Authority::new(&cluster, Duration::from_secs(86_400)).unwrap();
        Self { authority, cluster }
    }

    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// An identity for `node`, issued by this lab's authority.
    pub fn identity(&self, node: &str) -> Identity {
        self.authority
            .identity(&id(node), Duration::from_secs(3_600))
            .unwrap()
    }

    /// A builder with test timers.
    pub fn builder(&self, node: &str) -> Builder {
        Node::builder(self.identity(node)).profile(Profile::Local)
    }

    /// `n1` to `nN`, all with `n1` as their seed, connected to each other.
    pub fn start(&self, count: usize) -> Vec<Node> {
        let first = self.builder("n1").start().unwrap();
        let seed = first.quic_addr().to_string();
        let mut nodes = vec![first];
        for i in 2..=count {
            nodes.push(self.builder(&format!("n{i}")).seed(&seed).start().unwrap());
        }
        full_mesh(&nodes, PATIENCE);
        nodes
    }
}

pub fn id(node: &str) -> NodeId {
    NodeId::new(node).unwrap()
}

/// Waits until every node is connected to every other.
pub fn full_mesh(nodes: &[Node], patience: Duration) {
    let deadline = Instant::now() + patience;
    for node in nodes {
        let left = deadline.saturating_duration_since(Instant::now());
        node.wait_ready(Ready::Members(nodes.len()), left)
            .unwrap_or_else(|error| panic!("{}: {error}", node.id()));
        let left = deadline.saturating_duration_since(Instant::now());
        node.wait_ready(Ready::Peers(nodes.len() - 1), left)
            .unwrap_or_else(|error| panic!("{}: {error}", node.id()));
    }
}

/// Waits for an event that `wanted` accepts and returns it with everything before it.
pub fn await_event(
    events: &Events,
    what: &str,
    mut wanted: impl FnMut(&EventKind) -> bool,
) -> Vec<Event> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(event) = events.recv_timeout(left) else {
            panic!("no {what}; seen: {seen:#?}");
        };
        let is_wanted = wanted(&event.kind);
        seen.push(event);
        if is_wanted {
            return seen;
        }
    }
}

/// Waits until `holds` does, looking again every few milliseconds; for what has no event.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
