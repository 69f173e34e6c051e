//! The round-trip times between all nodes: each answers how far its peers are, and one can ask them all.
//!
//! Every node has the application [`APP`], answered inline from what is published anyway, so that an
//! answer costs microseconds. Who asks sends all requests at once and takes what comes within a budget;
//! nobody who is slow or gone holds the others up, for a peer that takes no request now is not waited
//! for longer than the budget, and whom to ask first changes from round to round.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prost::Message as _;

use crate::{
    app::{App, Workers},
    inbox::Registry,
    node_id::NodeId,
    snapshot::Snapshot,
    waker::deadline_after,
};

/// The built-in application.
pub(crate) const APP: &str = "nodosum.rtts";

/// Peers that one answer tells of; what a larger cluster has more is not shown anyway.
const MAX_ROWS: usize = 256;

/// How far the peers of one node are.
pub(crate) type Row = BTreeMap<NodeId, Duration>;

#[derive(Clone, PartialEq, prost::Message)]
struct AnswerWire {
    #[prost(message, repeated, tag = "1")]
    peers: Vec<PeerWire>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PeerWire {
    #[prost(string, tag = "1")]
    node: String,
    #[prost(uint64, tag = "2")]
    rtt_micros: u64,
}

/// The application that answers, and with which this node asks.
pub(crate) struct Rtts {
    app: App,
    snapshot: Arc<Snapshot>,
    rounds: AtomicUsize,
}

impl Rtts {
    /// Answers from now on, until it is dropped.
    pub(crate) fn serve(
        registry: &Arc<Registry>,
        snapshot: &Arc<Snapshot>,
        workers: &Arc<Workers>,
    ) -> Self {
        let app = App::new(
            registry.register_internal(APP),
            Arc::clone(registry),
            Arc::clone(snapshot),
            Arc::clone(workers),
        );
        // The registry lets go of the handler, and so of the snapshot, when the node has stopped.
        let answered = Arc::clone(snapshot);
        app.on_request_inline(move |_| Ok(encode(&own_row(&answered))));
        Self {
            app,
            snapshot: Arc::clone(snapshot),
            rounds: AtomicUsize::new(0),
        }
    }

    /// How far this node's own peers are.
    pub(crate) fn own(&self) -> Row {
        own_row(&self.snapshot)
    }

    /// Asks `peers`, all at once. Those that have not answered within `budget` are not in the result.
    pub(crate) fn ask(&self, peers: &[NodeId], budget: Duration) -> BTreeMap<NodeId, Row> {
        let deadline = deadline_after(now(), budget);
        let (sender, answers) = crossbeam_channel::bounded(peers.len().max(1));
        let first = self.rounds.fetch_add(1, Relaxed) % peers.len().max(1);
        let (late, early) = peers.split_at(first);
        let mut asked = 0;
        for peer in early.iter().chain(late) {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                break;
            }
            let (sender, answered) = (sender.clone(), peer.clone());
            let then = move |outcome: Result<Vec<u8>, _>| {
                // There is room for one answer of each.
                let _ = sender.try_send((answered, outcome.ok()));
            };
            asked += usize::from(self.app.request_then(peer, [], left, then).is_ok());
        }
        let mut rows = BTreeMap::new();
        for _ in 0..asked {
            let Ok((peer, answer)) = answers.recv_deadline(deadline) else {
                break;
            };
            if let Some(row) = answer.and_then(|bytes| decode(&bytes)) {
                rows.insert(peer, row);
            }
        }
        rows
    }
}

fn own_row(snapshot: &Snapshot) -> Row {
    let peers = snapshot.peers().into_iter().take(MAX_ROWS);
    peers
        .filter_map(|(node, connection)| Some((node, connection.info().rtt?)))
        .collect()
}

fn encode(row: &Row) -> Vec<u8> {
    let peers = row.iter().map(|(node, rtt)| PeerWire {
        node: node.to_string(),
        rtt_micros: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
    });
    let peers = peers.collect();
    AnswerWire { peers }.encode_to_vec()
}

/// What a peer said, if it is an answer. Nonsense in it is left out.
fn decode(bytes: &[u8]) -> Option<Row> {
    let answer = AnswerWire::decode(bytes).ok()?;
    let rows = answer.peers.into_iter().take(MAX_ROWS);
    let rows = rows.filter_map(|peer| {
        let node = NodeId::new(&peer.node).ok()?;
        Some((node, Duration::from_micros(peer.rtt_micros)))
    });
    Some(rows.collect())
}

#[expect(
    clippy::disallowed_methods,
    reason = "answers are waited for against the real clock"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_survives_the_wire_and_nonsense_is_left_out() {
        let row: Row = [("a", 3), ("b", 70_000)]
            .map(|(node, micros)| (NodeId::new(node).unwrap(), Duration::from_micros(micros)))
            .into();
        assert_eq!(decode(&encode(&row)), Some(row.clone()));
        assert_eq!(decode(b"\xff\xff\xff"), None);
        let peer = |node: &str| PeerWire {
            node: node.to_owned(),
            rtt_micros: 3,
        };
        let mut peers = vec![peer("<b>"), peer(""), peer("a")];
        peers.extend((0..1_000).map(|i| peer(&format!("n{i}"))));
        let many = decode(&AnswerWire { peers }.encode_to_vec()).unwrap();
        assert_eq!(many.len(), MAX_ROWS - 2);
        assert_eq!(many.get("a"), Some(&Duration::from_micros(3)));
    }
}
