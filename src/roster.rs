//! Whom this node has known: kept over a restart, and for longer than membership remembers the dead.
//!
//! Membership forgets a dead member after a day, and a process forgets everything when it ends. The
//! roster is what remains: the members that are here, those that are gone and for how long, and this
//! node's own last incarnation. With it a restarted node speaks above its earlier life from the first
//! datagram on, finds the others when no seed is left, and a partition heals after any length: both
//! sides go on dialling whom they have lost.
//!
//! **An entry is a hint.** It says where somebody was, and nothing more. A member comes back only when
//! it answers a handshake there and brings its own record over that connection. A member that left is
//! never dialled; its signed farewell is a tombstone again.
//!
//! **How long.** A member that is gone is remembered for the retention, counted while this node runs:
//! how long a node was off says nothing about the others, and no clock on the wall can shorten or
//! stretch it. Who left is remembered for as long as membership keeps its tombstone.
//!
//! **When it is saved.** Soon after something changed, and not again before `SAVE_INTERVAL`; every
//! `REFRESH_INTERVAL` while somebody is gone, so that the count goes on after a crash.
//!
//! **The file** is one image, always written whole: 8 bytes of magic and a version (`u32`, as all
//! numbers here in network order), then frames of a length (`u32`) and a protobuf message each, first
//! the head and then the members, and at the end the SHA-256 of everything before it. It holds no
//! secret: signed records, certificates and addresses.
//!
//! This file knows neither disk nor clock; `state_dir` has the disk.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use ring::digest;

use crate::{
    node_id::{ClusterName, NodeId},
    record::{Record, SignedRecord, VerifiedRecord},
    stats::MemberStatus,
};

/// Members in a file, and members that are gone in memory. As many as membership takes; when there
/// are more, those that have been gone for longest are left out.
pub const MAX_ENTRIES: usize = 16_384;

/// The largest frame: a record with its signature and a certificate of 2 KiB, and room for fields of
/// later versions.
const MAX_FRAME_BYTES: usize = 4_096;

/// The largest file that is read: every frame at its limit.
pub const MAX_FILE_BYTES: usize =
    (MAX_ENTRIES + 1) * (MAX_FRAME_BYTES + 4) + HEAD_BYTES + HASH_BYTES;

/// Changes come in crowds; a crowd costs one write.
const SAVE_INTERVAL: Duration = Duration::from_secs(3);

/// How much of its count of how long members are gone a crash may cost.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Saved incarnations are below this: membership believes none beyond, and the next life begins one
/// above.
const MAX_INCARNATION: u64 = 1 << 62;

/// The largest certificate that is written; `trust` takes none larger. A record and a signature
/// that verified are within their own limits.
const MAX_CERTIFICATE_BYTES: usize = 2_048;

const MAGIC: &[u8; 8] = b"ndroster";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 12;
const HASH_BYTES: usize = 32;

/// A member as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it last said of itself.
    pub record: SignedRecord,
    /// The certificate that the record names, in DER; empty if it was not known.
    pub certificate: Arc<[u8]>,
    /// What this node believed of it.
    pub status: MemberStatus,
    /// For how long it has been gone while this node ran; zero for one that is there.
    pub gone_for: Duration,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The cluster it belongs to.
    pub cluster: ClusterName,
    /// The node it belongs to.
    pub node: NodeId,
    /// The highest incarnation in which that node is known to have spoken.
    pub incarnation: u64,
    /// The others.
    pub entries: Vec<Entry>,
}

/// Why bytes are not a roster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Nothing that this or another version wrote.
    #[error("not a roster: {0}")]
    Malformed(&'static str),
    /// Cut off, or changed since it was written.
    #[error("damaged: its checksum does not hold")]
    Damaged,
    /// Written by a version whose format this one does not know.
    #[error("format {0} is not known to this version")]
    UnknownFormat(u32),
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeadWire {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    node: String,
    #[prost(uint64, tag = "3")]
    incarnation: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EntryWire {
    #[prost(bytes = "vec", tag = "1")]
    payload: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    certificate: Vec<u8>,
    #[prost(uint32, tag = "4")]
    status: u32,
    #[prost(uint64, tag = "5")]
    gone_seconds: u64,
}

impl Image {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1_024 + self.entries.len() * 1_024);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        let head = HeadWire {
            cluster: self.cluster.to_string(),
            node: self.node.to_string(),
            incarnation: self.incarnation,
        };
        push_frame(&mut bytes, &head);
        for entry in &self.entries {
            let is_large = entry.certificate.len() > MAX_CERTIFICATE_BYTES;
            let certificate = if is_large {
                &[][..]
            } else {
                &entry.certificate
            };
            let wire = EntryWire {
                payload: entry.record.payload.to_vec(),
                signature: entry.record.signature.to_vec(),
                certificate: certificate.to_vec(),
                status: encode_status(entry.status),
                gone_seconds: entry.gone_for.as_secs(),
            };
            push_frame(&mut bytes, &wire);
        }
        let hash = digest::digest(&digest::SHA256, &bytes);
        bytes.extend_from_slice(hash.as_ref());
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote. Signatures are not looked at.
    ///
    /// # Errors
    ///
    /// [`ImageError`]. Nothing is allocated because a length was announced, and a file is taken
    /// whole or not at all.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let malformed = ImageError::Malformed;
        if bytes.len() > MAX_FILE_BYTES {
            return Err(malformed("too large"));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(malformed("its first bytes are others"));
        }
        let (content, hash) = bytes
            .split_last_chunk::<HASH_BYTES>()
            .filter(|(content, _)| content.len() >= HEAD_BYTES)
            .ok_or(ImageError::Damaged)?;
        if digest::digest(&digest::SHA256, content).as_ref() != hash {
            return Err(ImageError::Damaged);
        }
        let (head, mut rest) = content.split_at(HEAD_BYTES);
        let mut version = [0; 4];
        version.copy_from_slice(&head[MAGIC.len()..]);
        let version = u32::from_be_bytes(version);
        if version != VERSION {
            return Err(ImageError::UnknownFormat(version));
        }
        let frame = take_frame(&mut rest)?.ok_or_else(|| malformed("no head"))?;
        let head = HeadWire::decode(frame).map_err(|_| malformed("head"))?;
        if head.incarnation >= MAX_INCARNATION {
            return Err(malformed("incarnation"));
        }
        let mut image = Self {
            cluster: head.cluster.parse().map_err(|_| malformed("cluster"))?,
            node: head.node.parse().map_err(|_| malformed("node"))?,
            incarnation: head.incarnation,
            entries: Vec::new(),
        };
        while let Some(frame) = take_frame(&mut rest)? {
            if image.entries.len() == MAX_ENTRIES {
                return Err(malformed("too many members"));
            }
            let wire = EntryWire::decode(frame).map_err(|_| malformed("member"))?;
            image.entries.push(Entry {
                status: decode_status(wire.status).ok_or_else(|| malformed("status"))?,
                record: SignedRecord {
                    payload: wire.payload.into(),
                    signature: wire.signature.into(),
                },
                certificate: wire.certificate.into(),
                gone_for: Duration::from_secs(wire.gone_seconds),
            });
        }
        Ok(image)
    }
}

fn push_frame(bytes: &mut Vec<u8>, message: &impl prost::Message) {
    let length = message.encoded_len();
    debug_assert!(length <= MAX_FRAME_BYTES, "a frame of {length} bytes");
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
}

/// The next frame, or `None` at the end.
fn take_frame<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ImageError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let cut = ImageError::Malformed("a frame is cut off");
    let (length, after) = rest.split_first_chunk::<4>().ok_or(cut)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| cut)?;
    if length > MAX_FRAME_BYTES {
        return Err(ImageError::Malformed("a frame is too large"));
    }
    let (frame, after) = after.split_at_checked(length).ok_or(cut)?;
    *rest = after;
    Ok(Some(frame))
}

fn encode_status(status: MemberStatus) -> u32 {
    match status {
        MemberStatus::Alive => 1,
        MemberStatus::Suspect => 2,
        MemberStatus::Dead => 3,
        MemberStatus::Left => 4,
    }
}

fn decode_status(status: u32) -> Option<MemberStatus> {
    match status {
        1 => Some(MemberStatus::Alive),
        2 => Some(MemberStatus::Suspect),
        3 => Some(MemberStatus::Dead),
        4 => Some(MemberStatus::Left),
        _ => None,
    }
}

/// Somebody who is gone.
#[derive(Debug)]
struct Gone {
    record: SignedRecord,
    addr: SocketAddr,
    /// The fingerprint of its certificate.
    certificate: [u8; 32],
    left: bool,
    /// For how long at `since`.
    before: Duration,
    since: Instant,
}

impl Gone {
    fn gone_for(&self, now: Instant) -> Duration {
        self.before
            .saturating_add(now.saturating_duration_since(self.since))
    }
}

/// Who is gone, and when to save. Its owner tells it what membership says, and asks it for the
/// entries of an image when one is due.
#[derive(Debug)]
pub struct Roster {
    retention: Duration,
    gone: BTreeMap<NodeId, Gone>,
    capacity: usize,
    changed: bool,
    /// Not saved before this.
    save_after: Instant,
    /// Saved by then if somebody is gone.
    refresh_at: Instant,
    /// When to look who has been gone for too long.
    expire_at: Option<Instant>,
    dropped: u64,
}

impl Roster {
    /// An empty roster that remembers who is gone for `retention`. The first image is due at once:
    /// it holds the incarnation in which this node begins to speak.
    pub fn new(retention: Duration, now: Instant) -> Self {
        Self {
            retention,
            gone: BTreeMap::new(),
            capacity: MAX_ENTRIES,
            changed: true,
            save_after: now,
            refresh_at: now,
            expire_at: None,
            dropped: 0,
        }
    }

    /// Takes an entry of a file. `record` is what its record says, and is not known to be forged.
    /// `true` when the member is to be dialled there.
    pub fn restore(&mut self, now: Instant, record: &Record, entry: &Entry) -> bool {
        if entry.gone_for >= self.retention {
            return false;
        }
        let left = entry.status == MemberStatus::Left || record.left;
        let gone = Gone {
            record: entry.record.clone(),
            addr: record.quic_addr,
            certificate: record.certificate,
            left,
            before: entry.gone_for,
            since: now,
        };
        self.insert(now, record.node.clone(), gone) && !left
    }

    /// A member died or left.
    pub fn handle_gone(&mut self, now: Instant, record: &VerifiedRecord, left: bool) {
        let node = &record.record.node;
        let known = self.gone.get(node);
        let gone = Gone {
            record: record.signed.clone(),
            addr: record.record.quic_addr,
            certificate: record.record.certificate,
            left,
            before: known.map_or(Duration::ZERO, |known| known.gone_for(now)),
            since: now,
        };
        self.insert(now, node.clone(), gone);
    }

    /// Somebody who was missed has left, as it turned out.
    pub fn handle_left(&mut self, node: &NodeId) {
        if let Some(gone) = self.gone.get_mut(node) {
            gone.left = true;
            self.changed = true;
        }
    }

    /// A member is there.
    pub fn handle_up(&mut self, node: &NodeId) {
        self.gone.remove(node);
        self.changed = true;
    }

    /// Membership has forgotten a member. Returns where it was last, if it is to be dialled still.
    pub fn handle_forgotten(&mut self, node: &NodeId) -> Option<SocketAddr> {
        self.changed = true;
        if self.gone.get(node).is_some_and(|gone| gone.left) {
            self.gone.remove(node);
        }
        self.gone.get(node).map(|gone| gone.addr)
    }

    /// Something worth saving changed: a record, or this node's own incarnation.
    pub fn handle_changed(&mut self) {
        self.changed = true;
    }

    /// Those who are gone and have not left, in the order of their names.
    pub fn missed(&self) -> impl Iterator<Item = &NodeId> {
        let missed = self.gone.iter().filter(|(_, gone)| !gone.left);
        missed.map(|(node, _)| node)
    }

    /// How many are remembered as gone.
    pub fn len(&self) -> usize {
        self.gone.len()
    }

    /// Whether nobody is gone.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty()
    }

    /// Entries left out because there were too many, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// When something is due: to save, or to forget somebody.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.next_save(), self.expire_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether it is time to save.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next_save().is_some_and(|at| at <= now)
    }

    /// Whether something has changed since the last image.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    fn next_save(&self) -> Option<Instant> {
        if self.changed {
            Some(self.save_after)
        } else {
            (!self.gone.is_empty()).then_some(self.refresh_at)
        }
    }

    /// Forgets who has been gone for longer than the retention, and returns them.
    pub fn take_expired(&mut self, now: Instant) -> Vec<NodeId> {
        if self.expire_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let retention = self.retention;
        let over = self
            .gone
            .iter()
            .filter(|(_, gone)| gone.gone_for(now) >= retention);
        let expired: Vec<NodeId> = over.map(|(node, _)| node.clone()).collect();
        for node in &expired {
            self.gone.remove(node);
            self.changed = true;
        }
        let left = self
            .gone
            .values()
            .map(|gone| retention.saturating_sub(gone.gone_for(now)))
            .min();
        self.expire_at = left.and_then(|left| now.checked_add(left));
        expired
    }

    /// What is to be saved: `here`, the others that are alive or suspected, and who is gone.
    /// `certificate` finds a certificate by its fingerprint.
    pub fn entries<'a>(
        &mut self,
        now: Instant,
        here: impl Iterator<Item = (&'a VerifiedRecord, MemberStatus)>,
        certificate: impl Fn(&[u8; 32]) -> Arc<[u8]>,
    ) -> Vec<Entry> {
        self.handle_saved(now);
        let mut entries: Vec<Entry> = here
            .map(|(record, status)| Entry {
                record: record.signed.clone(),
                certificate: certificate(&record.record.certificate),
                status,
                gone_for: Duration::ZERO,
            })
            .collect();
        let gone = self.gone.values().map(|gone| Entry {
            record: gone.record.clone(),
            certificate: certificate(&gone.certificate),
            status: if gone.left {
                MemberStatus::Left
            } else {
                MemberStatus::Dead
            },
            gone_for: gone.gone_for(now),
        });
        entries.extend(gone);
        if entries.len() > MAX_ENTRIES {
            self.dropped += (entries.len() - MAX_ENTRIES) as u64;
            entries.sort_by_key(|entry| entry.gone_for);
            entries.truncate(MAX_ENTRIES);
        }
        entries
    }

    /// An image was asked for, or nobody wants one.
    pub fn handle_saved(&mut self, now: Instant) {
        self.changed = false;
        self.save_after = now + SAVE_INTERVAL;
        self.refresh_at = now + REFRESH_INTERVAL;
    }

    /// `false` when there is no room.
    fn insert(&mut self, now: Instant, node: NodeId, gone: Gone) -> bool {
        if !self.gone.contains_key(&node) && self.gone.len() >= self.capacity {
            self.dropped += 1;
            // The newest loss is the one most likely to be healed.
            let longest = self.gone.iter().max_by_key(|(_, gone)| gone.gone_for(now));
            match longest {
                Some((longest, other)) if other.gone_for(now) > gone.before => {
                    let longest = longest.clone();
                    self.gone.remove(&longest);
                }
                Some(_) | None => return false,
            }
        }
        let left = self.retention.saturating_sub(gone.before);
        if let Some(expires) = now.checked_add(left) {
            // Too early when somebody comes back, which costs one look.
            self.expire_at = Some(self.expire_at.map_or(expires, |at| at.min(expires)));
        }
        self.changed = true;
        self.gone.insert(node, gone);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{node_id::BootId, record::MAX_RECORD_BYTES};

    const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
    const HOUR: Duration = Duration::from_secs(60 * 60);

    #[expect(clippy::disallowed_methods, reason = "only differences matter")]
    fn start() -> Instant {
        Instant::now()
    }

    fn record(name: &str) -> VerifiedRecord {
        let addr: SocketAddr = "127.0.0.1:4000".parse().unwrap();
        let record = Record {
            cluster: "test".parse().unwrap(),
            node: name.parse().unwrap(),
            incarnation: 4,
            boot: BootId([1; 16]),
            quic_addr: addr,
            gossip_addr: addr,
            tags: BTreeMap::new(),
            left: false,
            protocol: (1, 1),
            version: "0.1.0".into(),
            certificate: [0; 32],
        };
        let signed = SignedRecord {
            payload: record.encode().into(),
            signature: Arc::from([7; 70]),
        };
        VerifiedRecord { record, signed }
    }

    fn entry(name: &str, status: MemberStatus, gone_for: Duration) -> Entry {
        Entry {
            record: record(name).signed,
            certificate: Arc::from([5; 500]),
            status,
            gone_for,
        }
    }

    fn image() -> Image {
        Image {
            cluster: "test".parse().unwrap(),
            node: "n1".parse().unwrap(),
            incarnation: 17,
            entries: vec![
                entry("n2", MemberStatus::Alive, Duration::ZERO),
                entry("n3", MemberStatus::Suspect, Duration::ZERO),
                entry("n4", MemberStatus::Dead, HOUR),
                entry("n5", MemberStatus::Left, HOUR),
            ],
        }
    }

    fn saved(roster: &mut Roster, now: Instant) -> Vec<Entry> {
        let none = std::iter::empty();
        roster.entries(now, none, |_| Arc::from([5; 500]))
    }

    #[test]
    fn an_image_survives_the_file() {
        let image = image();
        assert_eq!(Image::decode(&image.encode()), Ok(image));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = image().encode();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            assert!(Image::decode(&bytes).is_err(), "byte {at}");
            assert!(Image::decode(&good[..at]).is_err(), "cut at {at}");
        }
        let mut longer = good;
        longer.push(0);
        assert_eq!(Image::decode(&longer), Err(ImageError::Damaged));
    }

    /// With a checksum that holds, so that what is behind it is reached.
    fn sealed(content: &[u8]) -> Vec<u8> {
        let hash = digest::digest(&digest::SHA256, content);
        [content, hash.as_ref()].concat()
    }

    #[test]
    fn content_is_judged_even_if_its_checksum_holds() {
        let good = image().encode();
        let content = &good[..good.len() - HASH_BYTES];
        let mut newer = content.to_vec();
        newer[11] = 2;
        assert_eq!(
            Image::decode(&sealed(&newer)),
            Err(ImageError::UnknownFormat(2))
        );
        for at in HEAD_BYTES..content.len() {
            let mut bytes = content.to_vec();
            bytes[at] ^= 0xff;
            // Whatever comes of it, nothing panics and nothing large is allocated.
            let _ = Image::decode(&sealed(&bytes));
            let _ = Image::decode(&sealed(&content[..at]));
        }
        let mut endless = content[..HEAD_BYTES].to_vec();
        endless.extend_from_slice(&u32::MAX.to_be_bytes());
        let refused = Image::decode(&sealed(&endless));
        assert_eq!(refused, Err(ImageError::Malformed("a frame is too large")));
        let high = Image {
            incarnation: MAX_INCARNATION,
            ..image()
        };
        let refused = Image::decode(&high.encode());
        assert_eq!(refused, Err(ImageError::Malformed("incarnation")));
    }

    #[test]
    fn the_largest_entry_fits_a_frame_and_too_many_entries_are_refused() {
        let mut largest = entry("n2", MemberStatus::Dead, Duration::from_secs(u64::MAX));
        largest.record.payload = Arc::from([1; MAX_RECORD_BYTES]);
        largest.record.signature = Arc::from([1; 72]);
        largest.certificate = Arc::from([1; MAX_CERTIFICATE_BYTES]);
        let mut image = Image {
            entries: vec![largest],
            ..image()
        };
        assert!(image.encode().len() <= MAX_FRAME_BYTES, "head and all");
        assert_eq!(Image::decode(&image.encode()), Ok(image.clone()));
        image.entries = vec![entry("n2", MemberStatus::Dead, HOUR); MAX_ENTRIES + 1];
        let refused = Image::decode(&image.encode());
        assert_eq!(refused, Err(ImageError::Malformed("too many members")));
    }

    #[test]
    fn who_is_gone_is_remembered_for_the_retention_across_restarts() {
        let now = start();
        let mut roster = Roster::new(WEEK, now);
        let lost = record("n2");
        roster.handle_gone(now, &lost, false);
        let later = now + WEEK / 2;
        assert_eq!(saved(&mut roster, later)[0].gone_for, WEEK / 2);

        let entry = saved(&mut roster, later).remove(0);
        let mut next = Roster::new(WEEK, now);
        assert!(next.restore(now, &lost.record, &entry));
        assert_eq!(
            next.handle_forgotten(&lost.record.node),
            Some(lost.record.quic_addr)
        );
        assert_eq!(next.take_expired(now + WEEK / 2 - HOUR), []);
        assert_eq!(next.missed().count(), 1);
        let over = now + WEEK / 2;
        assert!(next.poll_timeout().is_some_and(|at| at <= over));
        assert_eq!(
            next.take_expired(over),
            std::slice::from_ref(&lost.record.node)
        );
        assert!(next.is_empty());

        let mut entry = entry;
        entry.gone_for = WEEK;
        assert!(!next.restore(now, &lost.record, &entry), "it is forgotten");
    }

    #[test]
    fn who_left_is_saved_and_never_dialled() {
        let now = start();
        let mut roster = Roster::new(WEEK, now);
        let leaver = record("n2");
        roster.handle_gone(now, &leaver, true);
        assert_eq!(roster.missed().count(), 0);
        let entry = saved(&mut roster, now).remove(0);
        assert_eq!(entry.status, MemberStatus::Left);
        assert!(!roster.restore(now, &leaver.record, &entry));
        assert_eq!(roster.len(), 1);
        assert_eq!(roster.handle_forgotten(&leaver.record.node), None);
        assert!(
            roster.is_empty(),
            "kept as long as the tombstone, not longer"
        );
    }

    #[test]
    fn who_died_before_it_left_is_not_missed_and_who_is_back_is_not_gone() {
        let now = start();
        let mut roster = Roster::new(WEEK, now);
        let (n2, n3) = (record("n2"), record("n3"));
        roster.handle_gone(now, &n2, false);
        roster.handle_gone(now, &n3, false);
        roster.handle_gone(now + HOUR, &n2, true);
        roster.handle_up(&n3.record.node);
        assert_eq!(roster.missed().count(), 0);
        let entries = saved(&mut roster, now + HOUR);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].gone_for, HOUR, "since its death");
    }

    #[test]
    fn it_is_saved_at_once_then_after_changes_with_a_pause_and_rarely_while_somebody_is_gone() {
        let now = start();
        let mut roster = Roster::new(WEEK, now);
        assert!(roster.is_due(now));
        saved(&mut roster, now);
        assert!(!roster.is_due(now + WEEK) && roster.poll_timeout().is_none());
        roster.handle_changed();
        assert!(!roster.is_due(now + SAVE_INTERVAL / 2));
        assert!(roster.is_due(now + SAVE_INTERVAL));
        let later = now + SAVE_INTERVAL;
        roster.handle_gone(later, &record("n2"), false);
        saved(&mut roster, later);
        assert!(!roster.is_due(later + REFRESH_INTERVAL / 2));
        assert!(roster.is_due(later + REFRESH_INTERVAL), "the count goes on");
        assert_eq!(roster.poll_timeout(), Some(later + REFRESH_INTERVAL));
    }

    #[test]
    fn when_it_is_full_the_longest_gone_makes_room() {
        let now = start();
        let mut roster = Roster::new(WEEK, now);
        roster.capacity = 2;
        for (i, name) in ["n2", "n3", "n4"].iter().enumerate() {
            let at = now + HOUR * u32::try_from(i).unwrap();
            roster.handle_gone(at, &record(name), false);
        }
        let names: Vec<_> = roster.missed().map(NodeId::as_str).collect();
        assert_eq!(names, ["n3", "n4"]);
        let old = entry("n5", MemberStatus::Dead, HOUR * 24);
        assert!(!roster.restore(now + HOUR * 2, &record("n5").record, &old));
        assert_eq!((roster.len(), roster.dropped()), (2, 2));
    }
}
