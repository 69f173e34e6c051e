//! News on its way: what to append to outgoing datagrams, and when it has been said often enough.
//!
//! There is at most one record and one statement about each member, and a newer one replaces the
//! older. Each piece is sent a limited number of times; what was sent least goes first, then what
//! is largest, then what is newest. A verdict that comes from others while it is told here counts as
//! told once: when everybody finds the same at once, most of what each could say is known (the
//! feedback of Demers and others, *Epidemic algorithms*, PODC 1987). When thousands of members come
//! at once there is more news than gossip can carry; then what was sent most is given up, and the
//! syncs bring the rest. A record is shared with the member table, and encoded when it goes out.

use std::{cmp::Reverse, collections::BTreeSet, sync::Arc};

use crate::{node_id::NodeId, record::VerifiedRecord};

use super::{
    index::{self, Index},
    message::{self, MAX_RECORDS, MAX_STATEMENTS},
};

/// How many pieces that do not fit are passed over to fill one datagram. Without a limit a queue of
/// thousands of large records would be walked for every small answer.
const MAX_PASSED_OVER: usize = 32;

/// Pieces of news on their way at once. A node sends about 250 records a second, so this is a minute
/// and more of them at three or four times each; whatever is beyond that a sync has told sooner.
pub(super) const MAX_PIECES: usize = 4_096;

/// How often a piece of news is told at least, even if everybody tells it. A member that needs to
/// hear it of two others hears it of four, and asks if it has not.
const MIN_TOLD: u32 = 4;

/// Which of the two pieces of news about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Record,
    Statement,
}

type Rank = (u32, Reverse<u32>, Reverse<u64>);

/// A piece of news.
#[derive(Debug, Clone)]
pub(super) enum News {
    /// Already encoded as a field of a message.
    Encoded(Box<[u8]>),
    Record(Arc<VerifiedRecord>),
}

impl News {
    /// How many bytes it takes in a message.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Record(record) => message::encoded_record_len(&record.signed),
        }
    }

    fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Encoded(bytes) => out.extend_from_slice(bytes),
            Self::Record(record) => out.extend(message::encode_record(&record.signed)),
        }
    }
}

#[derive(Debug)]
struct Piece {
    node: NodeId,
    kind: Kind,
    rank: Rank,
    news: News,
}

/// The pieces of news that still have to be sent.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pieces: Vec<Option<Piece>>,
    free: Vec<u32>,
    index: Index,
    order: BTreeSet<(Rank, u32)>,
    serial: u64,
}

impl Queue {
    /// Adds a piece of news, in place of the last one of its kind about that member. True when
    /// another had to be given up for it.
    pub(super) fn push(&mut self, node: NodeId, kind: Kind, news: News) -> bool {
        self.remove(&node, kind);
        let is_full = self.len() >= MAX_PIECES;
        if is_full && let Some((_, place)) = self.order.last().copied() {
            self.take(place);
        }
        self.serial += 1;
        let len = u32::try_from(news.len()).unwrap_or(u32::MAX);
        let rank = (0, Reverse(len), Reverse(self.serial));
        let hash = piece_hash(&node, kind);
        let place = self.free.pop().unwrap_or_else(|| {
            self.pieces.push(None);
            (self.pieces.len() - 1) as u32
        });
        self.pieces[place as usize] = Some(Piece {
            node,
            kind,
            rank,
            news,
        });
        self.index.insert(hash, place, hash_in(&self.pieces));
        self.order.insert((rank, place));
        is_full
    }

    /// Gives everything up.
    pub(super) fn clear(&mut self) {
        *self = Self {
            serial: self.serial,
            ..Self::default()
        };
    }

    pub(super) fn remove(&mut self, node: &NodeId, kind: Kind) {
        if let Some(place) = self.place_of(node, kind) {
            self.take(place);
        }
    }

    pub(super) fn contains(&self, node: &NodeId, kind: Kind) -> bool {
        self.place_of(node, kind).is_some()
    }

    /// How many bytes a piece of news takes, if it is on its way.
    pub(super) fn size_of(&self, node: &NodeId, kind: Kind) -> Option<usize> {
        let piece = self.at(self.place_of(node, kind)?)?;
        Some(piece.news.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is news that was never sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.order
            .first()
            .is_some_and(|((transmits, _, _), _)| *transmits == 0)
    }

    /// Appends news to a datagram until it has `max_bytes`. What has been sent `max_transmits`
    /// times is done. Returns how many pieces were appended.
    pub(super) fn fill(
        &mut self,
        out: &mut Vec<u8>,
        max_bytes: usize,
        max_transmits: u32,
    ) -> usize {
        // One statement may stand in the datagram already.
        let (mut records, mut statements, mut passed_over) = (0, 1, 0);
        let mut taken = Vec::new();
        for ((_, Reverse(len), _), place) in &self.order {
            let Some(piece) = self.at(*place) else {
                continue;
            };
            let (count, max) = match piece.kind {
                Kind::Record => (&mut records, MAX_RECORDS),
                Kind::Statement => (&mut statements, MAX_STATEMENTS),
            };
            if out.len() + *len as usize > max_bytes || *count == max {
                passed_over += 1;
                if passed_over == MAX_PASSED_OVER {
                    break;
                }
                continue;
            }
            *count += 1;
            piece.news.append_to(out);
            taken.push(*place);
        }
        let appended = taken.len();
        for place in taken {
            self.count_transmit(place, max_transmits);
        }
        appended
    }

    /// Another member tells this news, so it need not be told here as often, yet [`MIN_TOLD`] times
    /// however many tell it.
    pub(super) fn heard(&mut self, node: &NodeId, kind: Kind, max_transmits: u32) {
        let Some(place) = self.place_of(node, kind) else {
            return;
        };
        let is_early = |piece: &Piece| piece.rank.0 + MIN_TOLD < max_transmits;
        if self.at(place).is_some_and(is_early) {
            self.count_transmit(place, max_transmits);
        }
    }

    fn count_transmit(&mut self, place: u32, max_transmits: u32) {
        let Some(Some(piece)) = self.pieces.get_mut(place as usize) else {
            return;
        };
        if piece.rank.0 + 1 >= max_transmits {
            self.take(place);
            return;
        }
        self.order.remove(&(piece.rank, place));
        piece.rank.0 += 1;
        self.order.insert((piece.rank, place));
    }

    fn at(&self, place: u32) -> Option<&Piece> {
        self.pieces.get(place as usize)?.as_ref()
    }

    fn place_of(&self, node: &NodeId, kind: Kind) -> Option<u32> {
        let is_it = |piece: &Piece| piece.kind == kind && piece.node == *node;
        let mut found = self.index.candidates(piece_hash(node, kind));
        found.find(|place| self.at(*place).is_some_and(is_it))
    }

    fn take(&mut self, place: u32) {
        let Some(piece) = self.at(place) else {
            return;
        };
        let (hash, rank) = (piece_hash(&piece.node, piece.kind), piece.rank);
        self.index.remove(hash, place, hash_in(&self.pieces));
        self.order.remove(&(rank, place));
        self.pieces[place as usize] = None;
        self.free.push(place);
        if self.is_empty() {
            // What a storm of news needed is not kept for the quiet after it.
            self.clear();
        }
    }
}

fn piece_hash(node: &NodeId, kind: Kind) -> u32 {
    index::hash(node.as_str().bytes().chain([kind as u8]))
}

/// What the index asks: the hash of the piece at a place.
fn hash_in(pieces: &[Option<Piece>]) -> impl Fn(u32) -> u32 {
    |place| {
        let piece = pieces.get(place as usize).and_then(Option::as_ref);
        piece.map_or(0, |piece| piece_hash(&piece.node, piece.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn news(bytes: Vec<u8>) -> News {
        News::Encoded(bytes.into())
    }

    fn filled(queue: &mut Queue, max_bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        queue.fill(&mut out, max_bytes, 3);
        out
    }

    #[test]
    fn what_was_sent_least_goes_first_then_what_is_largest_then_what_is_newest() {
        let mut queue = Queue::default();
        queue.push(id("a"), Kind::Record, news(vec![1]));
        assert_eq!(filled(&mut queue, 9), [1]);
        queue.push(id("b"), Kind::Record, news(vec![2]));
        queue.push(id("c"), Kind::Record, news(vec![3]));
        queue.push(id("d"), Kind::Record, news(vec![4, 4]));
        assert_eq!(filled(&mut queue, 9), [4, 4, 3, 2, 1]);
    }

    #[test]
    fn a_datagram_is_never_overfilled_and_smaller_news_takes_the_room_left() {
        let mut queue = Queue::default();
        queue.push(id("a"), Kind::Record, news(vec![1; 5]));
        queue.push(id("b"), Kind::Statement, news(vec![2; 4]));
        queue.push(id("c"), Kind::Statement, news(vec![3; 2]));
        assert_eq!(filled(&mut queue, 7), [1, 1, 1, 1, 1, 3, 3]);
        assert_eq!(filled(&mut queue, 7), [2, 2, 2, 2, 3, 3]);
    }

    #[test]
    fn news_is_sent_a_limited_number_of_times() {
        let mut queue = Queue::default();
        queue.push(id("a"), Kind::Record, news(vec![1]));
        for _ in 0..3 {
            assert_eq!(filled(&mut queue, 9), [1]);
        }
        assert!(queue.is_empty());
        assert!(filled(&mut queue, 9).is_empty());
    }

    #[test]
    fn what_others_tell_as_well_is_told_less_often() {
        let mut queue = Queue::default();
        queue.push(id("a"), Kind::Statement, news(vec![1]));
        for _ in 0..9 {
            queue.heard(&id("a"), Kind::Statement, 6);
            queue.heard(&id("b"), Kind::Statement, 6);
        }
        for _ in 0..MIN_TOLD {
            let mut out = Vec::new();
            queue.fill(&mut out, 9, 6);
            assert_eq!(out, [1]);
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn newer_news_replaces_older_news_of_its_kind_about_the_same_member() {
        let mut queue = Queue::default();
        queue.push(id("a"), Kind::Record, news(vec![1]));
        queue.push(id("a"), Kind::Statement, news(vec![2, 2]));
        queue.push(id("a"), Kind::Record, news(vec![3]));
        assert_eq!(queue.len(), 2);
        assert!(queue.has_unsent());
        assert_eq!(filled(&mut queue, 9), [2, 2, 3]);
        assert!(!queue.has_unsent());
    }

    #[test]
    fn a_message_never_has_more_news_than_a_reader_accepts() {
        let mut queue = Queue::default();
        for i in 0..200 {
            queue.push(id(&format!("n{i}")), Kind::Statement, news(vec![1]));
        }
        assert_eq!(queue.fill(&mut Vec::new(), 100_000, 3), MAX_STATEMENTS - 1);
    }

    #[test]
    fn too_much_news_gives_up_what_was_sent_most() {
        let mut queue = Queue::default();
        assert!(!queue.push(id("sent"), Kind::Record, news(vec![1; 4])));
        assert_eq!(filled(&mut queue, 9), [1; 4]);
        for i in 1..MAX_PIECES {
            assert!(!queue.push(id(&format!("n{i}")), Kind::Record, news(vec![2])));
        }
        assert!(queue.push(id("last"), Kind::Statement, news(vec![3])));
        assert_eq!(queue.len(), MAX_PIECES);
        assert!(!queue.contains(&id("sent"), Kind::Record));
        assert!(
            !queue.push(id("last"), Kind::Statement, news(vec![4])),
            "replaced"
        );
    }
}
