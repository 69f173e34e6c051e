//! Sealing and opening gossip datagrams.
//!
//! ```text
//! offset  bytes
//!  0      1    version, 0x01 (QUIC has its fixed bit, 0x40, in the first byte)
//!  1      8    id of the group key
//!  9      1    n, length of the sender's node id
//! 10      n    sender's node id
//! 10+n    16   sender's boot id
//! 26+n    8    counter, big-endian
//! 34+n    …    AES-256-GCM of the payload, and 16 bytes of tag
//! ```
//!
//! Everything before the ciphertext is clear, and is associated data, followed by what is not sent
//! because the receiver knows it: the length of its own node id, the node id, and its boot id. So a
//! recorded datagram opens nowhere but at the one life of the one node that it was sealed for.
//!
//! The key is not the group key
//! but a sub-key of it for this cluster, node and life of the node (HKDF-SHA256), so that the
//! counter, which a node never uses twice in one life, is a nonce that never repeats under one
//! key; no two nodes have to coordinate, and a restart begins at zero under another sub-key.
//!
//! To open, the header is read first without any cryptography. Then the caller decides whether it
//! knows the sender, and says which boot id it expects; the opener refuses other ones, unknown
//! keys, counters it has seen (or that are more than [`WINDOW`] behind), and what does not
//! authenticate, in that order. Nothing is remembered of a datagram that did not authenticate, so
//! forgeries can neither fill tables nor move the window.
//!
//! Who has stolen a group key can seal as anybody, and by a high counter make a receiver believe that
//! the sender's own datagrams are old. Therefore each group key has a window of its own: the next key,
//! which the thief is not given, starts afresh.

use std::collections::BTreeMap;

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};

use super::{
    MAX_MEMBERS,
    keyring::{GroupKey, Keyring, MAX_KEYS},
};
use crate::node_id::{BootId, ClusterName, KeyId, MAX_LABEL_BYTES, NodeId};

const VERSION: u8 = 0x01;
const TAG_BYTES: usize = 16;
const SALT: &[u8] = b"nodosum gossip v1";

/// The bytes that sealing adds for a sender whose node id has `node_len` bytes.
pub const fn overhead(node_len: usize) -> usize {
    1 + 8 + 1 + node_len + 16 + 8 + TAG_BYTES
}

/// The most bytes that sealing adds.
pub const MAX_OVERHEAD: usize = overhead(MAX_LABEL_BYTES);

/// How far behind the newest counter of a sender a datagram may come. A sender's counter runs
/// over all its destinations, so this is reordering within a thousand of its datagrams to anyone,
/// which is seconds even for the busiest node.
const WINDOW: u64 = 1_024;

/// How many sub-keys are kept for a sender: the current group key's and, while a rotation is
/// under way, the other's. A third is derived again when it is needed, in microseconds.
const MAX_SUB_KEYS: usize = 2;

/// Why a datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Too short, or the sender's name is not text.
    #[error("datagram is malformed")]
    Malformed,
    /// A version that is not spoken here.
    #[error("datagram version {0:#04x} is not known")]
    Version(u8),
    /// The key is not in the ring.
    #[error("datagram is sealed under unknown key {0}")]
    UnknownKey(KeyId),
    /// Another life of the sender than the one its record tells of.
    #[error("datagram is from boot {0}, which is not the sender's current one")]
    WrongBoot(BootId),
    /// Seen before, or too old to tell.
    #[error("datagram {0} was seen before or is too old")]
    Replay(u64),
    /// It does not authenticate: forged, damaged on its way, or sealed for another receiver.
    #[error("datagram does not authenticate")]
    Forged,
    /// More senders than a cluster may have members.
    #[error("too many senders")]
    Full,
}

/// The clear part of a datagram. It says who claims to have sent it, and proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The group key it is sealed under.
    pub key: KeyId,
    /// The sender's node id; any UTF-8 text of at most 63 bytes until it was found among members.
    pub node: &'a str,
    /// The sender's boot id.
    pub boot: BootId,
    /// The sender's counter.
    pub counter: u64,
    length: usize,
}

impl<'a> Header<'a> {
    /// Reads the clear part of a datagram.
    ///
    /// # Errors
    ///
    /// [`OpenError::Malformed`] or [`OpenError::Version`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, OpenError> {
        let (&version, rest) = datagram.split_first().ok_or(OpenError::Malformed)?;
        if version != VERSION {
            return Err(OpenError::Version(version));
        }
        Self::parse_fields(rest, datagram.len()).ok_or(OpenError::Malformed)
    }

    fn parse_fields(rest: &'a [u8], total: usize) -> Option<Self> {
        let (key, rest) = rest.split_first_chunk()?;
        let (&node_len, rest) = rest.split_first()?;
        let (node, rest) = rest.split_at_checked(usize::from(node_len))?;
        let (boot, rest) = rest.split_first_chunk()?;
        let (counter, sealed) = rest.split_first_chunk()?;
        let name_fits = (1..=MAX_LABEL_BYTES).contains(&node.len());
        (name_fits && sealed.len() >= TAG_BYTES).then_some(Self {
            key: KeyId(*key),
            node: std::str::from_utf8(node).ok()?,
            boot: BootId(*boot),
            counter: u64::from_be_bytes(*counter),
            length: total - sealed.len(),
        })
    }
}

/// Seals what this node sends in this life.
#[derive(Debug)]
pub struct Sealer {
    cluster: ClusterName,
    node: NodeId,
    boot: BootId,
    counter: u64,
    sub_key: Option<(KeyId, LessSafeKey)>,
}

impl Sealer {
    /// A sealer for one life of a node. Two of the same boot id would use nonces twice: a boot id
    /// is drawn at random for each start, and a node has one sealer.
    pub fn new(cluster: &ClusterName, node: &NodeId, boot: BootId) -> Self {
        Self {
            cluster: cluster.clone(),
            node: node.clone(),
            boot,
            counter: 0,
            sub_key: None,
        }
    }

    /// The datagram that carries `payload` under `key` to that life of that node.
    pub fn seal(&mut self, key: &GroupKey, to: (&NodeId, BootId), payload: &[u8]) -> Vec<u8> {
        let counter = self.counter;
        self.counter = counter
            .checked_add(1)
            .expect("2^64 datagrams take longer than any life");
        let node = self.node.as_str().as_bytes();
        let mut datagram = Vec::with_capacity(overhead(node.len()) + payload.len());
        datagram.push(VERSION);
        datagram.extend_from_slice(&key.id().0);
        datagram.push(u8::try_from(node.len()).expect("a label has at most 63 bytes"));
        datagram.extend_from_slice(node);
        datagram.extend_from_slice(&self.boot.0);
        datagram.extend_from_slice(&counter.to_be_bytes());
        let header_len = datagram.len();
        datagram.extend_from_slice(payload);
        let (header, body) = datagram.split_at_mut(header_len);
        let associated = [&*header, &receiver(to.0, to.1)].concat();
        let tag = self
            .sub_key(key)
            .seal_in_place_separate_tag(nonce(counter), Aad::from(associated), body)
            .expect("AES-GCM takes up to 64 GiB, more than a datagram");
        datagram.extend_from_slice(tag.as_ref());
        datagram
    }

    fn sub_key(&mut self, key: &GroupKey) -> &LessSafeKey {
        let derive = || {
            (
                key.id(),
                derive(key, &self.cluster, self.node.as_str(), self.boot),
            )
        };
        let cached = self.sub_key.take().filter(|(id, _)| *id == key.id());
        &self.sub_key.insert(cached.unwrap_or_else(derive)).1
    }
}

/// Opens what the members of a cluster send to one life of a node.
#[derive(Debug)]
pub struct Opener {
    cluster: ClusterName,
    /// The end of the associated data: for whom a datagram has to be sealed.
    receiver: Vec<u8>,
    senders: BTreeMap<NodeId, Sender>,
    capacity: usize,
}

#[derive(Debug)]
struct Sender {
    boot: BootId,
    /// At most one for each key of the ring.
    windows: Vec<(KeyId, ReplayWindow)>,
    /// Oldest first, at most [`MAX_SUB_KEYS`].
    sub_keys: Vec<(KeyId, LessSafeKey)>,
}

impl Opener {
    /// An opener for the life `boot` of `node` that has seen nothing yet.
    pub fn new(cluster: &ClusterName, node: &NodeId, boot: BootId) -> Self {
        Self {
            cluster: cluster.clone(),
            receiver: receiver(node, boot),
            senders: BTreeMap::new(),
            capacity: MAX_MEMBERS,
        }
    }

    /// The payload of a datagram, of which `header` is the parsed head. Only for senders whose
    /// verified record is at hand: `expected_boot` is what it says, and names nobody knows must
    /// not cost a derivation.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; then nothing has changed.
    pub fn open(
        &mut self,
        ring: &Keyring,
        header: &Header<'_>,
        datagram: &[u8],
        expected_boot: BootId,
    ) -> Result<Vec<u8>, OpenError> {
        if header.boot != expected_boot {
            return Err(OpenError::WrongBoot(header.boot));
        }
        let key = ring
            .get(header.key)
            .ok_or(OpenError::UnknownKey(header.key))?;
        // What is known of another life of the sender does not count for this one.
        let known = self
            .senders
            .get(header.node)
            .filter(|sender| sender.boot == header.boot);
        if known
            .and_then(|sender| sender.window(header.key))
            .is_some_and(|window| !window.is_fresh(header.counter))
        {
            return Err(OpenError::Replay(header.counter));
        }
        let (head, sealed) = datagram
            .split_at_checked(header.length)
            .ok_or(OpenError::Malformed)?;
        let associated = [head, &self.receiver].concat();
        let mut payload = sealed.to_vec();
        let mut open = |sub_key: &LessSafeKey| {
            sub_key
                .open_in_place(nonce(header.counter), Aad::from(&associated), &mut payload)
                .map(|opened| opened.len())
                .map_err(|_| OpenError::Forged)
        };
        let (length, derived) = match known.and_then(|sender| sender.sub_key(header.key)) {
            Some(sub_key) => (open(sub_key)?, None),
            None => {
                let sub_key = derive(key, &self.cluster, header.node, header.boot);
                (open(&sub_key)?, Some(sub_key))
            }
        };
        payload.truncate(length);
        self.sender(header)?.note(ring, header, derived);
        Ok(payload)
    }

    /// Forgets a sender, and with it which of its datagrams were seen: only for members that are
    /// gone for good, whose boot id is not accepted any more.
    pub fn forget(&mut self, node: &NodeId) {
        self.senders.remove(node);
    }

    /// The entry of an authenticated sender, made or renewed where necessary.
    fn sender(&mut self, header: &Header<'_>) -> Result<&mut Sender, OpenError> {
        if !self.senders.contains_key(header.node) {
            if self.senders.len() >= self.capacity {
                return Err(OpenError::Full);
            }
            let node = NodeId::new(header.node).map_err(|_| OpenError::Malformed)?;
            self.senders.insert(node, Sender::new(header.boot));
        }
        let sender = self.senders.get_mut(header.node).ok_or(OpenError::Full)?;
        if sender.boot != header.boot {
            *sender = Sender::new(header.boot);
        }
        Ok(sender)
    }
}

impl Sender {
    fn new(boot: BootId) -> Self {
        Self {
            boot,
            windows: Vec::new(),
            sub_keys: Vec::new(),
        }
    }

    fn window(&self, id: KeyId) -> Option<&ReplayWindow> {
        self.windows
            .iter()
            .find(|(known, _)| *known == id)
            .map(|(_, window)| window)
    }

    fn sub_key(&self, id: KeyId) -> Option<&LessSafeKey> {
        self.sub_keys
            .iter()
            .find(|(known, _)| *known == id)
            .map(|(_, sub_key)| sub_key)
    }

    fn note(&mut self, ring: &Keyring, header: &Header<'_>, derived: Option<LessSafeKey>) {
        let id = header.key;
        match self.windows.iter_mut().find(|(known, _)| *known == id) {
            Some((_, window)) => window.mark(header.counter),
            None => {
                // A key that has left the ring opens nothing any more, and never comes back.
                self.windows.retain(|(known, _)| ring.get(*known).is_some());
                debug_assert!(self.windows.len() < MAX_KEYS, "one for each other key");
                let mut window = ReplayWindow::new();
                window.mark(header.counter);
                self.windows.push((id, window));
            }
        }
        if let Some(sub_key) = derived {
            if self.sub_keys.len() >= MAX_SUB_KEYS {
                self.sub_keys.remove(0);
            }
            self.sub_keys.push((header.key, sub_key));
        }
    }
}

const WORDS: usize = WINDOW as usize / 64;

/// Which of the last [`WINDOW`] counters were seen, as a ring of bits (RFC 6479).
#[derive(Debug)]
struct ReplayWindow {
    highest: Option<u64>,
    seen: [u64; WORDS],
}

impl ReplayWindow {
    fn new() -> Self {
        Self {
            highest: None,
            seen: [0; WORDS],
        }
    }

    fn is_fresh(&self, counter: u64) -> bool {
        let (word, bit) = Self::place(counter);
        self.highest.is_none_or(|highest| {
            counter > highest || highest - counter < WINDOW && self.seen[word] & bit == 0
        })
    }

    fn mark(&mut self, counter: u64) {
        match self.highest {
            Some(highest) if counter <= highest => {}
            // The skipped counters take the places of ones that fall out of the window.
            Some(highest) if counter - highest < WINDOW => {
                for skipped in highest + 1..=counter {
                    let (word, bit) = Self::place(skipped);
                    self.seen[word] &= !bit;
                }
            }
            Some(_) | None => self.seen = [0; WORDS],
        }
        self.highest = self.highest.max(Some(counter));
        let (word, bit) = Self::place(counter);
        self.seen[word] |= bit;
    }

    fn place(counter: u64) -> (usize, u64) {
        let position = (counter % WINDOW) as usize;
        (position / 64, 1 << (position % 64))
    }
}

/// The end of the associated data of every datagram to this life of this node.
fn receiver(node: &NodeId, boot: BootId) -> Vec<u8> {
    let name = node.as_str().as_bytes();
    let mut bytes = vec![u8::try_from(name.len()).expect("a label has at most 63 bytes")];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&boot.0);
    bytes
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The sub-key of one life of a node. Lengths precede the names, so that no two inputs collide.
fn derive(key: &GroupKey, cluster: &ClusterName, node: &str, boot: BootId) -> LessSafeKey {
    let length = |name: &str| [u8::try_from(name.len()).expect("a label has at most 63 bytes")];
    let (cluster, cluster_len) = (cluster.as_str().as_bytes(), length(cluster.as_str()));
    let info = [
        &cluster_len[..],
        cluster,
        &length(node),
        node.as_bytes(),
        &boot.0,
    ];
    let sub_key = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT)
        .extract(key.secret())
        .expand(&info, &AES_256_GCM)
        .map(UnboundKey::from)
        .expect("a key of 32 bytes is within HKDF-SHA256's 8,160");
    LessSafeKey::new(sub_key)
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;
    use crate::trust::testing::{Chance, cluster, node};

    const BOOT: BootId = BootId([5; 16]);
    const PAYLOAD: &[u8] = b"ping, and a little more";

    fn ring() -> Keyring {
        let mut ring = Keyring::new();
        ring.create(&SystemRandom::new()).unwrap();
        ring
    }

    const RECEIVER_BOOT: BootId = BootId([8; 16]);

    fn receiver_id() -> &'static NodeId {
        static ID: std::sync::LazyLock<NodeId> = std::sync::LazyLock::new(|| node("n9"));
        &ID
    }

    fn to() -> (&'static NodeId, BootId) {
        (receiver_id(), RECEIVER_BOOT)
    }

    fn opener() -> Opener {
        Opener::new(&cluster(), receiver_id(), RECEIVER_BOOT)
    }

    fn sealer() -> Sealer {
        Sealer::new(&cluster(), &node("n1"), BOOT)
    }

    fn open(opener: &mut Opener, ring: &Keyring, datagram: &[u8]) -> Result<Vec<u8>, OpenError> {
        opener.open(ring, &Header::parse(datagram)?, datagram, BOOT)
    }

    #[test]
    fn what_is_sealed_opens_once() {
        let (ring, mut opener, mut sealer) = (ring(), opener(), sealer());
        for counter in 0..3 {
            let datagram = sealer.seal(ring.send_key().unwrap(), to(), PAYLOAD);
            assert_eq!(datagram.len(), PAYLOAD.len() + overhead("n1".len()));
            assert!(!datagram.windows(4).any(|bytes| bytes == b"ping"));
            let header = Header::parse(&datagram).unwrap();
            assert_eq!(
                (header.node, header.boot, header.counter),
                ("n1", BOOT, counter)
            );
            assert_eq!(header.key, ring.send_key().unwrap().id());
            assert_eq!(open(&mut opener, &ring, &datagram).unwrap(), PAYLOAD);
            assert_eq!(
                open(&mut opener, &ring, &datagram),
                Err(OpenError::Replay(counter))
            );
        }
    }

    #[test]
    fn the_first_byte_cannot_be_mistaken_for_quic() {
        assert_eq!(VERSION & 0x40, 0);
        assert_eq!(Header::parse(&[0x40, 1, 2]), Err(OpenError::Version(0x40)));
        assert_eq!(Header::parse(&[0x02]), Err(OpenError::Version(0x02)));
        assert_eq!(Header::parse(&[]), Err(OpenError::Malformed));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let (ring, mut opener) = (ring(), opener());
        let datagram = sealer().seal(ring.send_key().unwrap(), to(), PAYLOAD);
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&mut opener, &ring, &changed).is_err(), "bit {bit}");
        }
        // A changed boot id meets a receiver that expects just that: the sub-key is another one.
        let mut changed = datagram.clone();
        changed[12] ^= 1;
        let header = Header::parse(&changed).unwrap();
        let refused = opener.open(&ring, &header, &changed, header.boot);
        assert_eq!(refused, Err(OpenError::Forged));
        assert!(opener.senders.is_empty(), "forgeries leave no trace");
        assert_eq!(open(&mut opener, &ring, &datagram).unwrap(), PAYLOAD);
    }

    #[test]
    fn shortened_and_lengthened_datagrams_are_refused() {
        let (ring, mut opener) = (ring(), opener());
        let mut datagram = sealer().seal(ring.send_key().unwrap(), to(), PAYLOAD);
        for length in 0..datagram.len() {
            assert!(
                open(&mut opener, &ring, &datagram[..length]).is_err(),
                "{length} bytes"
            );
        }
        datagram.push(0);
        assert_eq!(open(&mut opener, &ring, &datagram), Err(OpenError::Forged));
        let header = Header::parse(&datagram).unwrap();
        assert_eq!(
            opener.open(&ring, &header, b"", BOOT),
            Err(OpenError::Malformed)
        );
    }

    #[test]
    fn another_key_cluster_node_or_life_opens_nothing() {
        let (ring, other_ring) = (ring(), ring());
        let key = ring.send_key().unwrap();
        let mut opener = opener();
        let unknown = other_ring.send_key().unwrap();
        let datagram = sealer().seal(unknown, to(), PAYLOAD);
        assert_eq!(
            open(&mut opener, &ring, &datagram),
            Err(OpenError::UnknownKey(unknown.id()))
        );
        let other_boot = BootId([6; 16]);
        let datagram = Sealer::new(&cluster(), &node("n1"), other_boot).seal(key, to(), PAYLOAD);
        assert_eq!(
            open(&mut opener, &ring, &datagram),
            Err(OpenError::WrongBoot(other_boot))
        );
        let other_cluster = ClusterName::new("other").unwrap();
        let datagram = Sealer::new(&other_cluster, &node("n1"), BOOT).seal(key, to(), PAYLOAD);
        assert_eq!(open(&mut opener, &ring, &datagram), Err(OpenError::Forged));
        let mut datagram = Sealer::new(&cluster(), &node("n2"), BOOT).seal(key, to(), PAYLOAD);
        datagram[11] = b'1';
        assert_eq!(Header::parse(&datagram).unwrap().node, "n1");
        assert_eq!(open(&mut opener, &ring, &datagram), Err(OpenError::Forged));
    }

    #[test]
    fn a_new_life_of_a_sender_starts_a_new_window() {
        let (ring, mut opener) = (ring(), opener());
        let key = ring.send_key().unwrap();
        let before = sealer().seal(key, to(), PAYLOAD);
        assert_eq!(open(&mut opener, &ring, &before).unwrap(), PAYLOAD);
        let boot = BootId([6; 16]);
        let after = Sealer::new(&cluster(), &node("n1"), boot).seal(key, to(), PAYLOAD);
        let header = Header::parse(&after).unwrap();
        assert_eq!(opener.open(&ring, &header, &after, boot).unwrap(), PAYLOAD);
        let replayed = opener.open(&ring, &header, &after, boot);
        assert_eq!(replayed, Err(OpenError::Replay(0)));
        let old = Header::parse(&before).unwrap();
        assert_eq!(
            opener.open(&ring, &old, &before, boot),
            Err(OpenError::WrongBoot(BOOT))
        );
    }

    #[test]
    fn each_key_has_a_window_and_few_sub_keys_are_kept() {
        let (mut ring, mut opener, mut sealer) = (ring(), opener(), sealer());
        ring.rotate(&SystemRandom::new()).unwrap();
        ring.rotate(&SystemRandom::new()).unwrap();
        for (counter, key) in (0..).zip([0, 1, 2, 0, 2, 1]) {
            let datagram = sealer.seal(&ring.keys()[key], to(), PAYLOAD);
            assert_eq!(Header::parse(&datagram).unwrap().counter, counter);
            assert_eq!(open(&mut opener, &ring, &datagram).unwrap(), PAYLOAD);
            assert_eq!(
                open(&mut opener, &ring, &datagram),
                Err(OpenError::Replay(counter))
            );
            assert!(opener.senders["n1"].sub_keys.len() <= MAX_SUB_KEYS);
        }
        assert_eq!(opener.senders["n1"].windows.len(), 3);
    }

    #[test]
    fn a_datagram_opens_at_no_other_receiver_and_in_no_other_life_of_it() {
        let (ring, mut sealer) = (ring(), sealer());
        let datagram = sealer.seal(ring.send_key().unwrap(), to(), PAYLOAD);
        let openers = [
            Opener::new(&cluster(), &node("n8"), RECEIVER_BOOT),
            Opener::new(&cluster(), &node("n9"), BootId([9; 16])),
        ];
        for mut other in openers {
            let opened = open(&mut other, &ring, &datagram);
            assert_eq!(opened, Err(OpenError::Forged));
        }
        assert_eq!(open(&mut opener(), &ring, &datagram).unwrap(), PAYLOAD);
    }

    #[test]
    fn a_thief_of_a_key_silences_nobody_beyond_the_next_key() {
        let (mut ring, mut opener, mut sealer) = (ring(), opener(), sealer());
        let stolen = ring.send_key().unwrap().clone();
        let mut thief = self::sealer();
        thief.counter = u64::MAX - 1;
        let forged = thief.seal(&stolen, to(), PAYLOAD);
        open(&mut opener, &ring, &forged).unwrap();
        let silenced = sealer.seal(&stolen, to(), PAYLOAD);
        let old = Err(OpenError::Replay(0));
        assert_eq!(open(&mut opener, &ring, &silenced), old);
        let next = ring.rotate(&SystemRandom::new()).unwrap();
        ring.select(std::iter::empty()).unwrap();
        let heard = sealer.seal(ring.get(next).unwrap(), to(), PAYLOAD);
        assert_eq!(open(&mut opener, &ring, &heard).unwrap(), PAYLOAD);
        // What was recorded before does not open a second time either, and removing the stolen key
        // ends both it and its window.
        assert_eq!(open(&mut opener, &ring, &silenced), old);
        ring.remove(stolen.id()).unwrap();
        let unknown = Err(OpenError::UnknownKey(stolen.id()));
        assert_eq!(open(&mut opener, &ring, &silenced), unknown);
        ring.rotate(&SystemRandom::new()).unwrap();
        let newest = sealer.seal(ring.keys().last().unwrap(), to(), PAYLOAD);
        open(&mut opener, &ring, &newest).unwrap();
        let windows = &opener.senders["n1"].windows;
        assert!(windows.iter().all(|(id, _)| *id != stolen.id()));
    }

    #[test]
    fn reordering_within_the_window_is_fine_and_beyond_it_is_not() {
        let (ring, mut opener, mut sealer) = (ring(), opener(), sealer());
        let key = ring.send_key().unwrap();
        let datagrams: Vec<_> = (0..=WINDOW)
            .map(|_| sealer.seal(key, to(), PAYLOAD))
            .collect();
        open(&mut opener, &ring, &datagrams[WINDOW as usize]).unwrap();
        assert_eq!(
            open(&mut opener, &ring, &datagrams[0]),
            Err(OpenError::Replay(0))
        );
        for datagram in datagrams[1..WINDOW as usize].iter().rev() {
            open(&mut opener, &ring, datagram).unwrap();
        }
        for (counter, datagram) in (0..).zip(&datagrams) {
            assert_eq!(
                open(&mut opener, &ring, datagram),
                Err(OpenError::Replay(counter))
            );
        }
    }

    #[test]
    fn the_window_agrees_with_a_plain_set() {
        let mut chance = Chance::new(5);
        for start in [0, u64::MAX - 200_000] {
            let mut window = ReplayWindow::new();
            window.mark(start);
            let mut seen = std::collections::BTreeSet::from([start]);
            let mut highest = start;
            for _ in 0..20_000 {
                let counter = match chance.below(8) {
                    0 => highest.saturating_add(chance.below(3_000) as u64),
                    1 => highest.saturating_add(1),
                    _ => highest.saturating_sub(chance.below(1_200) as u64),
                };
                let fresh = highest.saturating_sub(counter) < WINDOW && !seen.contains(&counter);
                assert_eq!(window.is_fresh(counter), fresh, "{counter} after {highest}");
                if fresh {
                    window.mark(counter);
                    seen.insert(counter);
                    highest = highest.max(counter);
                }
                if highest > u64::MAX - 10_000 {
                    break;
                }
            }
        }
        let mut window = ReplayWindow::new();
        window.mark(u64::MAX);
        assert!(!window.is_fresh(u64::MAX) && window.is_fresh(u64::MAX - 1_023));
        assert!(!window.is_fresh(u64::MAX - 1_024));
    }

    #[test]
    fn senders_are_bounded_and_can_be_forgotten() {
        let (ring, mut opener) = (ring(), opener());
        opener.capacity = 1;
        let key = ring.send_key().unwrap();
        let first = sealer().seal(key, to(), PAYLOAD);
        open(&mut opener, &ring, &first).unwrap();
        let second = Sealer::new(&cluster(), &node("n2"), BOOT).seal(key, to(), PAYLOAD);
        assert_eq!(open(&mut opener, &ring, &second), Err(OpenError::Full));
        opener.forget(&node("n1"));
        open(&mut opener, &ring, &second).unwrap();
    }

    #[test]
    fn random_and_damaged_datagrams_never_panic_nor_open() {
        let (ring, mut opener) = (ring(), opener());
        let good = sealer().seal(ring.send_key().unwrap(), to(), PAYLOAD);
        let mut chance = Chance::new(6);
        for _ in 0..100_000 {
            let bytes = chance.mutate(&good);
            if let Ok(header) = Header::parse(&bytes) {
                let opened = opener.open(&ring, &header, &bytes, header.boot);
                assert!(opened.is_err() || bytes == good);
                opener.forget(&node("n1"));
            }
        }
    }
}
