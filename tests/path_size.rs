//! Datagrams of the configured size, on paths that carry them and on paths that do not.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "real nodes and threads run against the real clock; tests panic, in their helpers too"
)]
#![cfg(feature = "ca")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/path.rs"]
mod path;
#[path = "support/relay.rs"]
mod relay;

use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

use cluster::{Lab, PATIENCE, await_event, eventually, full_mesh};
use nodosum::{App, Builder, DatagramError, EventKind, Node, transport::Config};
use path::Path;

const SECOND: Duration = Duration::from_secs(1);

/// What a black hole of the tests lets through; the datagrams of QUIC that every path carries do.
const HOLE: usize = 1_300;

fn with_datagrams_of(builder: Builder, bytes: usize) -> Node {
    let config = Config {
        max_datagram_bytes: bytes,
        ..Config::default()
    };
    builder.transport(config).start().unwrap()
}

/// Two nodes with a path between them that can be made narrow, and an application on both.
struct Narrow {
    path: Path,
    nodes: [Node; 2],
    apps: [App; 2],
}

impl Narrow {
    fn new(cluster: &str, bytes: usize, narrow: bool) -> Self {
        let lab = Lab::new(cluster);
        let bound = relay::free_addr();
        let path = Path::to(bound);
        if narrow {
            path.set_max_bytes(HOLE);
        }
        let far = lab.builder("n2").bind(bound).advertise(path.addr);
        let far = with_datagrams_of(far, bytes);
        let near = lab.builder("n1").seed(path.addr.to_string());
        let nodes = [with_datagrams_of(near, bytes), far];
        full_mesh(&nodes, PATIENCE);
        let apps = nodes.each_ref().map(|node| {
            let app = node.register("bytes").unwrap();
            app.on_request_inline(|request| Ok(request.payload.clone()));
            app
        });
        Self { path, nodes, apps }
    }

    /// Sends so much from the first to the second, and back.
    fn transfer(&self, bytes: usize) {
        for (from, to) in [(0, 1), (1, 0)] {
            let to_node = self.nodes[to].id();
            let mut opened = self.apps[from].open_stream(to_node, PATIENCE).unwrap();
            opened.set_write_timeout(Some(PATIENCE));
            thread::scope(|scope| {
                scope.spawn(move || {
                    opened.write_all(&vec![from as u8; bytes]).unwrap();
                    opened.finish();
                });
                let mut accepted = self.apps[to].streams().recv_timeout(PATIENCE).unwrap();
                accepted.set_read_timeout(Some(PATIENCE));
                let mut all = Vec::new();
                accepted.read_to_end(&mut all).unwrap();
                assert!(all.len() == bytes && all.iter().all(|byte| *byte == from as u8));
            });
        }
    }

    /// Transfers until the first sends large datagrams.
    fn await_large(&self) {
        let to = self.nodes[1].id();
        eventually("large datagrams are used", || {
            self.transfer(200_000);
            self.apps[0].max_datagram_bytes(to).unwrap() > 8_000
        });
    }

    fn shut_down(self) {
        for node in &self.nodes {
            let report = node.shutdown(10 * SECOND);
            assert!(report.threads_stuck.is_empty(), "{report:?}");
        }
    }
}

#[test]
fn a_black_hole_in_mid_transfer_is_survived_and_its_end_is_noticed() {
    let narrow = Narrow::new("black-hole", 9_000, false);
    let events = narrow.nodes.each_ref().map(Node::events);
    narrow.transfer(2 << 20);
    assert!(
        narrow.path.take_largest() > 8_000,
        "large datagrams are used"
    );
    // On a machine that is busy with other things, some may have been lost for want of time.
    narrow.await_large();
    narrow.path.set_max_bytes(HOLE);
    let began = Instant::now();
    narrow.transfer(2 << 20);
    assert!(narrow.path.lost() > 0, "some were lost");
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    // Datagrams of applications are told the new limit.
    let to = narrow.nodes[1].id();
    let error = narrow.apps[0].send_datagram(to, &[0; 2_000]).unwrap_err();
    assert!(matches!(error, DatagramError::TooLarge { .. }), "{error}");
    narrow.apps[0].send_datagram(to, &[7; 1_000]).unwrap();
    let got = narrow.apps[1].datagrams().recv_timeout(PATIENCE).unwrap();
    assert_eq!(got.payload, [7; 1_000]);
    // Requests meanwhile are ordinary ones.
    let answer = narrow.apps[0].request(to, vec![1; 100_000], PATIENCE);
    assert!(answer == Ok(vec![1; 100_000]));
    narrow.path.set_max_bytes(usize::MAX);
    narrow.path.take_largest();
    narrow.await_large();
    narrow.transfer(2 << 20);
    assert!(narrow.path.take_largest() > 8_000);
    // It was one connection throughout.
    narrow.nodes[1].abort();
    let seen = await_event(&events[0], "the end", |kind| {
        matches!(kind, EventKind::Disconnected { .. })
    });
    let connects = |kind: &EventKind| matches!(kind, EventKind::Connected { .. });
    assert!(!seen.iter().any(|event| connects(&event.kind)), "{seen:#?}");
    narrow.shut_down();
}

#[test]
fn a_path_that_was_narrow_from_the_beginning_connects_and_carries_everything() {
    let narrow = Narrow::new("narrow", 9_000, true);
    narrow.transfer(1 << 20);
    assert!(narrow.path.take_largest() <= HOLE);
    narrow.shut_down();
}

#[test]
fn loopback_carries_the_largest_datagrams() {
    let wide = Narrow::new("wide", 65_507, false);
    wide.transfer(8 << 20);
    assert_eq!(
        wide.path.take_largest(),
        16_383,
        "as large as QUIC makes them"
    );
    assert_eq!(wide.path.lost(), 0);
    wide.shut_down();
}
