//! Why a member is believed to be what it is: membership's own account, and what the connection to it
//! looked like when it was suspected, when it was declared dead, and is like now.
//!
//! Membership keeps its account (`swim`), which knows nothing of connections but what they showed as
//! evidence. This adds their state at the moments that count, copied when those come.

use std::{collections::BTreeMap, time::Instant};

use crate::{node_id::NodeId, stats::ConnectionInfo, swim};

/// Members of whom moments are kept; as many as membership keeps accounts of. When there are more,
/// the one whose last moment is the oldest goes.
const MAX_MEMBERS: usize = 128;

/// What a node can say about its belief in a member.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// Who accused, who confirmed, which probes failed, and how it ended.
    pub membership: swim::Explanation,
    /// The connection to it now.
    pub connection: ConnectionInfo,
    /// When it was suspected last.
    pub when_suspected: Option<Moment>,
    /// When it was declared dead last.
    pub when_dead: Option<Moment>,
}

/// The connection to a member at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Moment {
    /// When.
    pub at: Instant,
    /// The connection in use then; without one, why the last ended and when the next dial was due.
    pub connection: ConnectionInfo,
}

/// The moments of the members that had some last.
#[derive(Debug, Default)]
pub(crate) struct Moments(BTreeMap<NodeId, Pair>);

#[derive(Debug, Clone, Default)]
struct Pair {
    suspected: Option<Moment>,
    dead: Option<Moment>,
}

impl Pair {
    fn last(&self) -> Option<Instant> {
        let moments = [&self.suspected, &self.dead].into_iter().flatten();
        moments.map(|moment| moment.at).max()
    }
}

impl Moments {
    pub(crate) fn suspected(&mut self, now: Instant, node: &NodeId, connection: ConnectionInfo) {
        self.pair(node).suspected = Some(Moment {
            at: now,
            connection,
        });
    }

    pub(crate) fn dead(&mut self, now: Instant, node: &NodeId, connection: ConnectionInfo) {
        self.pair(node).dead = Some(Moment {
            at: now,
            connection,
        });
    }

    /// When it was suspected and when it was declared dead.
    pub(crate) fn of(&self, node: &NodeId) -> (Option<Moment>, Option<Moment>) {
        let pair = self.0.get(node).cloned().unwrap_or_default();
        (pair.suspected, pair.dead)
    }

    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.0.remove(node);
    }

    fn pair(&mut self, node: &NodeId) -> &mut Pair {
        if !self.0.contains_key(node) && self.0.len() >= MAX_MEMBERS {
            let oldest = self.0.iter().min_by_key(|(_, pair)| pair.last());
            if let Some(oldest) = oldest.map(|(node, _)| node.clone()) {
                self.0.remove(&oldest);
            }
        }
        self.0.entry(node.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stats::ConnectionState;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "only differences matter")]
    fn the_oldest_moments_make_room() {
        let start = Instant::now();
        let mut moments = Moments::default();
        let node = |i: usize| NodeId::new(&format!("n{i}")).unwrap();
        let row =
            || ConnectionInfo::empty("127.0.0.1:1".parse().unwrap(), ConnectionState::Established);
        for i in 0..MAX_MEMBERS {
            let at = start + Duration::from_secs(i as u64);
            moments.suspected(at, &node(i), row());
        }
        let later = start + Duration::from_secs(1_000);
        moments.dead(later, &node(0), row());
        moments.suspected(later, &node(MAX_MEMBERS), row());
        assert_eq!(moments.0.len(), MAX_MEMBERS);
        assert_eq!(moments.of(&node(1)), (None, None));
        let (suspected, dead) = moments.of(&node(0));
        assert_eq!(suspected.map(|moment| moment.at), Some(start));
        assert_eq!(dead.map(|moment| moment.at), Some(later));
        moments.forget(&node(0));
        assert_eq!(moments.of(&node(0)), (None, None));
    }
}
