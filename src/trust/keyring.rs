//! The keys that seal gossip, and which of them to send under.
//!
//! The cluster makes its keys itself. A key has a generation, counted up by each rotation, and an
//! id, a hash; the pair orders all keys. Rings travel whole, over authenticated connections only,
//! and *merge*: the union of both, of which the [`MAX_KEYS`] highest stay, above the higher of
//! both floors. Removing a key raises the floor to it, so that no merge brings back what was
//! removed; older keys go with it. A union cut at both ends does not care about the order or the
//! number of merges, so every node arrives at the same ring without an agreement.
//!
//! Whoever is in the cluster may offer keys, so an offer can only do so much: a generation may
//! exceed the highest one seen here by one, or else a single offer of the highest number there is
//! would end all rotation. Each offer from further ahead raises that limit by one, so that a node
//! that was away during several rotations follows within as many syncs. A floor that would leave
//! no key at all is not believed. An empty ring, which a node has until its first sync, takes an
//! offer as it is, up to a generation that no honest cluster reaches.
//!
//! To receive, any key of the ring will do. To send, a node uses the highest key that every connected
//! member has confirmed to hold, so that a new key is used only once all understand it; it never
//! goes back to a lower one. A node with an empty ring begins with the key its provider uses.
//!
//! A key fixed in the configuration is a ring of that one key that nothing changes.

use std::{cmp::Ordering, collections::BTreeMap, fmt};

use prost::Message as _;
use ring::{digest, rand::SecureRandom};

use super::{MAX_MEMBERS, wipe};
use crate::node_id::{KeyId, NodeId};

/// The most keys in a ring: one in use, one on its way in, one on its way out, and room for
/// clusters that meet. When there are more, the lowest go.
pub const MAX_KEYS: usize = 8;

/// The largest encoded ring that is read. A full one takes less than half; the rest is for fields
/// of later versions.
pub const MAX_KEYRING_BYTES: usize = 1_024;

/// The highest generation that an empty ring takes: more than a rotation every minute makes in
/// thirty years, and so far from the end of the numbers that whoever gives a joiner its first ring
/// cannot end rotation there, or through it where others join.
const MAX_FIRST_GENERATION: u32 = 1 << 24;

const ID_LABEL: &[u8] = b"nodosum group key id v1\0";
const DIGEST_LABEL: &[u8] = b"nodosum keyring digest v1\0";

/// A secret shared by the cluster. `Debug` does not show it, and it is overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct GroupKey {
    generation: u32,
    id: KeyId,
    secret: [u8; 32],
}

impl GroupKey {
    fn new(generation: u32, secret: [u8; 32]) -> Self {
        // The generation is hashed too, so that no id belongs to two generations.
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(ID_LABEL);
        hash.update(&generation.to_be_bytes());
        hash.update(&secret);
        let mut id = [0; 8];
        id.copy_from_slice(&hash.finish().as_ref()[..8]);
        Self {
            generation,
            id: KeyId(id),
            secret,
        }
    }

    fn random(generation: u32, random: &dyn SecureRandom) -> Result<Self, KeyringError> {
        let mut secret = [0; 32];
        random.fill(&mut secret).map_err(|_| KeyringError::Random)?;
        Ok(Self::new(generation, secret))
    }

    /// Which rotation made it; the first key of a cluster has 1, a fixed key 0.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Its name on the wire.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    fn rank(&self) -> (u32, KeyId) {
        (self.generation, self.id)
    }
}

impl Ord for GroupKey {
    /// By generation and id. The secret only breaks the tie of two keys with one id, which nobody
    /// meets by chance, so that even then every node keeps the same one.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.rank(), &self.secret).cmp(&(other.rank(), &other.secret))
    }
}

impl PartialOrd for GroupKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupKey({}:{})", self.generation, self.id)
    }
}

impl Drop for GroupKey {
    fn drop(&mut self) {
        wipe(&mut self.secret);
    }
}

/// Why a ring was not changed or not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// The key is fixed by the configuration.
    #[error("gossip key is fixed by the configuration")]
    Fixed,
    /// No key has this id.
    #[error("no gossip key {0}")]
    UnknownKey(KeyId),
    /// This key is used to send, and would go with the one to be removed; a rotation has to come
    /// first.
    #[error("gossip key {0} is in use, and older keys go with newer ones; rotate first")]
    InUse(KeyId),
    /// The ring has keys already.
    #[error("there is a gossip key already")]
    NotEmpty,
    /// The ring has no key yet.
    #[error("there is no gossip key yet")]
    Empty,
    /// There is no generation above the highest.
    #[error("generations of gossip keys are used up")]
    Exhausted,
    /// The system's random generator failed.
    #[error("the system's random generator failed")]
    Random,
    /// Bytes from the network are not a ring.
    #[error("not a keyring: {0}")]
    Malformed(&'static str),
}

/// What a merge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// The set of keys or the floor is another one now: pass it on and confirm it.
    pub changed: bool,
    /// Some offered key was too many generations ahead; the next offer gets nearer.
    pub ahead: bool,
}

/// A ring as somebody sent it. It was decoded and has consistent content; merging judges it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyringOffer {
    keys: Vec<GroupKey>,
    floor: Option<(u32, KeyId)>,
    send: Option<KeyId>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyringWire {
    #[prost(message, repeated, tag = "1")]
    keys: Vec<KeyWire>,
    #[prost(uint32, tag = "2")]
    floor_generation: u32,
    #[prost(bytes = "vec", tag = "3")]
    floor_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    send: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyWire {
    #[prost(uint32, tag = "1")]
    generation: u32,
    #[prost(bytes = "vec", tag = "2")]
    secret: Vec<u8>,
}

impl Drop for KeyringWire {
    fn drop(&mut self) {
        self.keys.iter_mut().for_each(|key| wipe(&mut key.secret));
    }
}

impl KeyringOffer {
    /// Reads what [`Keyring::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`KeyringError::Malformed`] for anything that no ring encodes to.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyringError> {
        let malformed = KeyringError::Malformed;
        if bytes.len() > MAX_KEYRING_BYTES {
            return Err(malformed("too large"));
        }
        let wire = KeyringWire::decode(bytes).map_err(|_| malformed("not protobuf"))?;
        if wire.keys.len() > MAX_KEYS {
            return Err(malformed("too many keys"));
        }
        let mut keys = Vec::with_capacity(wire.keys.len());
        for key in &wire.keys {
            let secret = key.secret.as_slice().try_into();
            keys.push(GroupKey::new(
                key.generation,
                secret.map_err(|_| malformed("key size"))?,
            ));
        }
        keys.sort();
        dedup(&mut keys);
        let id = |bytes: &[u8], what| match bytes {
            [] => Ok(None),
            bytes => bytes
                .try_into()
                .map(|id| Some(KeyId(id)))
                .map_err(|_| malformed(what)),
        };
        let floor = id(&wire.floor_id, "floor")?.map(|id| (wire.floor_generation, id));
        let send = id(&wire.send, "send key")?;
        if keys
            .first()
            .is_some_and(|lowest| Some(lowest.rank()) <= floor)
            || keys.is_empty() && floor.is_some()
        {
            return Err(malformed("no key above the floor"));
        }
        if send.is_some_and(|id| keys.iter().all(|key| key.id != id)) {
            return Err(malformed("send key is not in it"));
        }
        Ok(Self { keys, floor, send })
    }
}

impl KeyringOffer {
    /// Whether some key is too many generations ahead of `ring` to be taken, so that a merge will
    /// only raise the limit. Who merges such offers limits how many, or somebody in the cluster could
    /// raise it without end.
    pub fn is_ahead_of(&self, ring: &Keyring) -> bool {
        let highest = self.keys.last().map(|key| key.generation);
        !ring.fixed && highest > Some(ring.limit())
    }

    /// Whether a merge may change `ring` or what it takes from the next offer. Who merges limits how
    /// many of those, or somebody in the cluster could use the generations up, and keep everybody busy
    /// with telling everybody of rings that are other ones each time.
    pub fn moves(&self, ring: &Keyring) -> bool {
        let is_new = |key: &GroupKey| Some(key.rank()) > ring.floor && !ring.keys.contains(key);
        let highest = self.keys.last().map(|key| key.generation);
        !ring.fixed
            && (highest > Some(ring.seen_generation)
                || self.floor > ring.floor
                || self.keys.iter().any(is_new))
    }

    /// Whether `ring` holds exactly these keys above the same floor.
    pub fn equals(&self, ring: &Keyring) -> bool {
        self.keys == ring.keys && self.floor == ring.floor
    }

    /// The ids of all offered keys, highest first: who offers them holds them.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().rev().map(GroupKey::id).collect()
    }
}

/// A node's group keys.
#[derive(Debug, Default)]
pub struct Keyring {
    /// Ascending, without duplicates, all above the floor, at most [`MAX_KEYS`].
    keys: Vec<GroupKey>,
    floor: Option<(u32, KeyId)>,
    /// Some key of `keys`, unless that is empty.
    send: Option<KeyId>,
    /// The highest generation that this node let itself be told of.
    seen_generation: u32,
    fixed: bool,
    confirmed: BTreeMap<NodeId, Vec<KeyId>>,
}

impl Keyring {
    /// A ring without keys: a node that waits for its first sync.
    pub fn new() -> Self {
        Self::default()
    }

    /// A ring of one key from the configuration. It neither merges nor rotates.
    pub fn fixed(secret: [u8; 32]) -> Self {
        let key = GroupKey::new(0, secret);
        Self {
            send: Some(key.id),
            keys: vec![key],
            fixed: true,
            ..Self::default()
        }
    }

    /// Makes the first key of a cluster. The node that is alone does this.
    ///
    /// # Errors
    ///
    /// [`KeyringError::NotEmpty`], [`KeyringError::Fixed`] or [`KeyringError::Random`].
    pub fn create(&mut self, random: &dyn SecureRandom) -> Result<KeyId, KeyringError> {
        self.changeable()?;
        if !self.keys.is_empty() {
            return Err(KeyringError::NotEmpty);
        }
        let id = self.add(GroupKey::random(1, random)?);
        self.send = Some(id);
        Ok(id)
    }

    /// Adds a new key above all others. It is used to send once all connected members have it.
    ///
    /// # Errors
    ///
    /// [`KeyringError::Empty`], [`KeyringError::Fixed`], [`KeyringError::Exhausted`] or
    /// [`KeyringError::Random`].
    pub fn rotate(&mut self, random: &dyn SecureRandom) -> Result<KeyId, KeyringError> {
        self.changeable()?;
        let highest = self.keys.last().ok_or(KeyringError::Empty)?.generation;
        let generation = highest.checked_add(1).ok_or(KeyringError::Exhausted)?;
        Ok(self.add(GroupKey::random(generation, random)?))
    }

    /// Removes a key and all below it, for good: the floor spreads with the next merges.
    ///
    /// # Errors
    ///
    /// [`KeyringError::UnknownKey`], [`KeyringError::InUse`] or [`KeyringError::Fixed`].
    pub fn remove(&mut self, id: KeyId) -> Result<(), KeyringError> {
        self.changeable()?;
        let removed = self.get(id).ok_or(KeyringError::UnknownKey(id))?.rank();
        if let Some(send) = self.send_key().filter(|send| send.rank() <= removed) {
            return Err(KeyringError::InUse(send.id));
        }
        self.floor = Some(removed);
        self.keys.retain(|key| key.rank() > removed);
        Ok(())
    }

    /// Takes over what an authenticated peer offered; see the module for the rules.
    ///
    /// # Errors
    ///
    /// [`KeyringError::Fixed`].
    pub fn merge(&mut self, offer: &KeyringOffer) -> Result<Merged, KeyringError> {
        self.changeable()?;
        let Some(offered_highest) = offer.keys.last().map(|key| key.generation) else {
            return Ok(Merged {
                changed: false,
                ahead: false,
            });
        };
        let limit = self.limit();
        if self.keys.is_empty() {
            let accepted = offer.keys.iter().filter(|key| key.generation <= limit);
            self.keys.extend(accepted.cloned());
            if let Some(highest) = self.keys.last() {
                self.seen_generation = highest.generation;
                // The decoder has seen to it that every offered key is above the offered floor.
                self.floor = offer.floor;
            }
            self.settle_send_key(offer);
            return Ok(Merged {
                changed: !self.keys.is_empty(),
                ahead: offered_highest > limit,
            });
        }
        let before = self.digest();
        let accepted = offer.keys.iter().filter(|key| key.generation <= limit);
        self.keys.extend(accepted.cloned());
        self.keys.sort();
        dedup(&mut self.keys);
        if self
            .keys
            .last()
            .is_some_and(|highest| Some(highest.rank()) > offer.floor)
        {
            self.floor = self.floor.max(offer.floor);
        }
        self.keys.retain(|key| Some(key.rank()) > self.floor);
        self.keys.drain(..self.keys.len().saturating_sub(MAX_KEYS));
        self.seen_generation = limit.min(self.seen_generation.max(offered_highest));
        self.settle_send_key(offer);
        Ok(Merged {
            changed: self.digest() != before,
            ahead: offered_highest > limit,
        })
    }

    /// Notes which keys a member says it holds, instead of what it said before.
    pub fn confirm(&mut self, node: &NodeId, ids: &[KeyId]) {
        // A member without an entry counts as one that confirmed nothing: a full table delays a
        // rotation, and never makes one unreadable.
        if self.confirmed.len() < MAX_MEMBERS || self.confirmed.contains_key(node) {
            let ids = ids.iter().copied().take(MAX_KEYS).collect();
            self.confirmed.insert(node.clone(), ids);
        }
    }

    /// Notes that a member holds these keys too. Unlike what it says of its whole ring, an offer may
    /// have been overtaken on its way, so it takes nothing back.
    pub fn confirm_also(&mut self, node: &NodeId, ids: &[KeyId]) {
        let mut all = ids.to_vec();
        let before = self.confirmed.get(node).map_or(&[][..], Vec::as_slice);
        all.extend(before.iter().filter(|id| !ids.contains(id)));
        self.confirm(node, &all);
    }

    /// Forgets what a member confirmed: it started anew with an empty ring, or is gone.
    pub fn forget(&mut self, node: &NodeId) {
        self.confirmed.remove(node);
    }

    /// Moves on to the highest key that every connected member has confirmed, if that is above the
    /// one in use, and returns it if so. `alive` are those members, without this node.
    pub fn select<'a>(&mut self, alive: impl Iterator<Item = &'a NodeId>) -> Option<KeyId> {
        let current = self.send_key()?.rank();
        let mut candidates: Vec<KeyId> = self
            .keys
            .iter()
            .filter(|key| key.rank() > current)
            .map(GroupKey::id)
            .collect();
        for node in alive {
            if candidates.is_empty() {
                return None;
            }
            let confirmed = self.confirmed.get(node).map_or(&[][..], Vec::as_slice);
            candidates.retain(|id| confirmed.contains(id));
        }
        let highest = candidates.last().copied()?;
        self.send = Some(highest);
        Some(highest)
    }

    /// Whether a member has confirmed to hold this key.
    pub fn has_confirmed(&self, node: &NodeId, id: KeyId) -> bool {
        self.confirmed
            .get(node)
            .is_some_and(|ids| ids.contains(&id))
    }

    /// The key to seal under; none until there is one.
    pub fn send_key(&self) -> Option<&GroupKey> {
        self.send.and_then(|id| self.get(id))
    }

    /// The key with this id.
    pub fn get(&self, id: KeyId) -> Option<&GroupKey> {
        // At most MAX_KEYS: a scan is as fast as anything.
        self.keys.iter().rev().find(|key| key.id == id)
    }

    /// All keys, lowest first.
    pub fn keys(&self) -> &[GroupKey] {
        &self.keys
    }

    /// The ids of all keys, to confirm them to others.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(GroupKey::id).collect()
    }

    /// Whether there is no key yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the key is fixed by the configuration.
    pub fn is_fixed(&self) -> bool {
        self.fixed
    }

    /// A hash that is the same on two nodes exactly if their keys and floors are.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(DIGEST_LABEL);
        for (generation, id) in self
            .floor
            .into_iter()
            .chain(self.keys.iter().map(GroupKey::rank))
        {
            hash.update(&generation.to_be_bytes());
            hash.update(&id.0);
        }
        // Without it, a floor could pass for a key.
        hash.update(&[u8::from(self.floor.is_some())]);
        let mut digest = [0; 32];
        digest.copy_from_slice(hash.finish().as_ref());
        digest
    }

    /// The ring for the wire, secrets included: only for connections that are authenticated, up
    /// and not denied. A fixed key is not given away: the encoding is that of an empty ring.
    pub fn encode(&self) -> Vec<u8> {
        if self.fixed {
            return Vec::new();
        }
        let (floor_generation, floor_id) = self.floor.unzip();
        let key = |key: &GroupKey| KeyWire {
            generation: key.generation,
            secret: key.secret.to_vec(),
        };
        KeyringWire {
            keys: self.keys.iter().map(key).collect(),
            floor_generation: floor_generation.unwrap_or(0),
            floor_id: floor_id.map_or_else(Vec::new, |id: KeyId| id.0.to_vec()),
            send: self.send.map_or_else(Vec::new, |id| id.0.to_vec()),
        }
        .encode_to_vec()
    }

    /// The highest generation that is taken from an offer.
    fn limit(&self) -> u32 {
        if self.keys.is_empty() {
            MAX_FIRST_GENERATION
        } else {
            self.seen_generation.saturating_add(1)
        }
    }

    fn changeable(&self) -> Result<(), KeyringError> {
        if self.fixed {
            Err(KeyringError::Fixed)
        } else {
            Ok(())
        }
    }

    /// Adds a key that ranks above all others; the lowest makes room.
    fn add(&mut self, key: GroupKey) -> KeyId {
        let id = key.id;
        self.seen_generation = self.seen_generation.max(key.generation);
        self.keys.push(key);
        self.keys.drain(..self.keys.len().saturating_sub(MAX_KEYS));
        self.settle_send_key(&KeyringOffer {
            keys: Vec::new(),
            floor: None,
            send: None,
        });
        id
    }

    /// A merge or a rotation can push out the key in use. Then the one the provider uses takes
    /// its place, or the lowest, which the most members have.
    fn settle_send_key(&mut self, offer: &KeyringOffer) {
        if self.send_key().is_none() {
            let offered = offer.send.filter(|id| self.get(*id).is_some());
            self.send = offered.or_else(|| self.keys.first().map(GroupKey::id));
        }
    }
}

/// Leaves one key of each id in sorted `keys`: of two secrets under one id the higher, whichever
/// came first.
fn dedup(keys: &mut Vec<GroupKey>) {
    keys.reverse();
    keys.dedup_by_key(|key| key.rank());
    keys.reverse();
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;
    use crate::trust::testing::{Chance, node};

    fn random() -> SystemRandom {
        SystemRandom::new()
    }

    fn created() -> Keyring {
        let mut ring = Keyring::new();
        ring.create(&random()).unwrap();
        ring
    }

    fn offer(ring: &Keyring) -> KeyringOffer {
        KeyringOffer::decode(&ring.encode()).unwrap()
    }

    fn merge(ring: &mut Keyring, other: &Keyring) -> Merged {
        ring.merge(&offer(other)).unwrap()
    }

    fn ring_of(keys: &[GroupKey]) -> Keyring {
        Keyring {
            send: keys.first().map(GroupKey::id),
            seen_generation: keys.last().map_or(0, GroupKey::generation),
            keys: keys.to_vec(),
            ..Keyring::new()
        }
    }

    const QUIET: Merged = Merged {
        changed: false,
        ahead: false,
    };
    const CHANGED: Merged = Merged {
        changed: true,
        ahead: false,
    };

    #[test]
    fn a_joiner_adopts_the_ring_and_the_key_its_provider_sends_under() {
        let mut provider = created();
        let used = provider.send_key().unwrap().id();
        let newer = provider.rotate(&random()).unwrap();
        let mut joiner = Keyring::new();
        assert!(joiner.is_empty() && joiner.send_key().is_none());
        assert_eq!(merge(&mut joiner, &provider), CHANGED);
        assert_eq!(joiner.ids(), [used, newer]);
        assert_eq!(joiner.send_key().unwrap().id(), used);
        assert_eq!(joiner.digest(), provider.digest());
        assert_eq!(merge(&mut joiner, &provider), QUIET);
        assert_eq!(merge(&mut joiner, &Keyring::new()), QUIET);
    }

    #[test]
    fn the_send_key_moves_up_when_every_live_member_confirmed_it_and_never_down() {
        let mut ring = created();
        let first = ring.send_key().unwrap().id();
        let second = ring.rotate(&random()).unwrap();
        let third = ring.rotate(&random()).unwrap();
        let (n2, n3) = (node("n2"), node("n3"));
        let alive = [n2.clone(), n3.clone()];
        assert_eq!(ring.select(alive.iter()), None, "nobody confirmed anything");
        ring.confirm(&n2, &[first, second, third]);
        assert_eq!(ring.select(alive.iter()), None, "n3 did not");
        ring.confirm(&n3, &[first, second]);
        assert_eq!(ring.select(alive.iter()), Some(second));
        ring.forget(&n3);
        ring.confirm(&n2, &[]);
        assert_eq!(ring.select(alive.iter()), None);
        assert_eq!(ring.send_key().unwrap().id(), second, "it does not go back");
        assert_eq!(
            ring.select([].iter()),
            Some(third),
            "alone, everyone has the highest"
        );
    }

    #[test]
    fn clusters_that_meet_end_with_the_same_ring() {
        let (mut one, mut two) = (created(), created());
        assert_eq!(merge(&mut one, &two), CHANGED);
        assert_eq!(merge(&mut two, &one), CHANGED);
        assert_eq!(one.digest(), two.digest());
        assert_eq!(one.keys().len(), 2);
        let highest = one.keys().last().unwrap().id();
        for ring in [&mut one, &mut two] {
            ring.confirm(&node("peer"), &ring.ids());
            ring.select([node("peer")].iter());
            assert_eq!(ring.send_key().unwrap().id(), highest);
        }
    }

    #[test]
    fn a_removed_key_is_not_merged_back() {
        let mut ring = created();
        let removed = ring.send_key().unwrap().id();
        let stale = ring_of(ring.keys());
        let kept = ring.rotate(&random()).unwrap();
        assert_eq!(ring.remove(removed), Err(KeyringError::InUse(removed)));
        assert_eq!(ring.select([].iter()), Some(kept));
        ring.remove(removed).unwrap();
        assert_eq!(merge(&mut ring, &stale), QUIET);
        assert_eq!(ring.ids(), [kept]);
        let mut stale = stale;
        assert_eq!(merge(&mut stale, &ring), CHANGED);
        assert_eq!(stale.digest(), ring.digest());
        assert_eq!(
            stale.send_key().unwrap().id(),
            kept,
            "the one it used is gone"
        );
        assert_eq!(ring.remove(removed), Err(KeyringError::UnknownKey(removed)));
        assert_eq!(ring.remove(kept), Err(KeyringError::InUse(kept)));
    }

    #[test]
    fn a_ring_keeps_the_eight_highest() {
        let mut ring = created();
        let ids: Vec<KeyId> = (0..MAX_KEYS)
            .map(|_| ring.rotate(&random()).unwrap())
            .collect();
        assert_eq!(ring.ids(), ids);
        assert_eq!(
            ring.send_key().unwrap().id(),
            ids[0],
            "the key in use was pushed out"
        );
        assert!(ring.encode().len() <= MAX_KEYRING_BYTES / 2);
        assert_eq!(offer(&ring).keys, ring.keys());
        let mut larger = created();
        larger.keys = (0..=MAX_KEYS as u8)
            .map(|i| GroupKey::new(1, [i; 32]))
            .collect();
        let refused = KeyringOffer::decode(&larger.encode());
        assert_eq!(refused, Err(KeyringError::Malformed("too many keys")));
    }

    #[test]
    fn merging_does_not_care_about_order_or_repetition() {
        let mut chance = Chance::new(3);
        // Two generations, so that none is too far ahead, and few secrets, so that rings overlap.
        let pool: Vec<GroupKey> = (0..24)
            .map(|i| GroupKey::new(1 + i % 2, [i as u8; 32]))
            .collect();
        let mut some_ring = || {
            let count = 1 + chance.below(MAX_KEYS);
            let keys: Vec<_> = (0..count).map(|_| pool[chance.below(24)].clone()).collect();
            // An empty ring takes an offer as it is, so it is sorted here as decoding does.
            let mut sorted = keys;
            sorted.sort();
            sorted.dedup();
            let mut ring = ring_of(&sorted);
            ring.seen_generation = 2;
            if ring.keys.len() > 1 && chance.below(3) == 0 {
                let lowest = ring.keys()[0].id();
                ring.send = ring.keys().last().map(GroupKey::id);
                ring.remove(lowest).unwrap();
            }
            ring
        };
        let joined = |one: &Keyring, two: &Keyring| {
            let mut joined = Keyring::new();
            merge(&mut joined, one);
            joined.seen_generation = 2;
            merge(&mut joined, two);
            joined
        };
        for round in 0..2_000 {
            let (a, b, c) = (some_ring(), some_ring(), some_ring());
            let (ab, ba) = (joined(&a, &b), joined(&b, &a));
            assert_eq!(
                (&ab.keys, ab.floor),
                (&ba.keys, ba.floor),
                "commutes, round {round}"
            );
            let (left, right) = (joined(&ab, &c), joined(&a, &joined(&b, &c)));
            assert_eq!(
                (&left.keys, left.floor),
                (&right.keys, right.floor),
                "associates {round}"
            );
            let again = joined(&ab, &ab);
            assert_eq!(
                (&again.keys, again.floor),
                (&ab.keys, ab.floor),
                "idempotent {round}"
            );
            assert!(ab.keys.len() <= MAX_KEYS && ab.send_key().is_some());
            assert!(ab.keys.iter().all(|key| Some(key.rank()) > ab.floor));
        }
    }

    #[test]
    fn a_generation_gets_ahead_by_one_for_each_offer() {
        let mut ring = created();
        let jump = ring_of(&[GroupKey::new(u32::MAX, [9; 32])]);
        assert_eq!(
            merge(&mut ring, &jump),
            Merged {
                changed: false,
                ahead: true
            }
        );
        assert_eq!(ring.keys().len(), 1);
        // A node that was away for three rotations, after which the old keys were removed.
        let mut ring = created();
        let mut others = ring_of(ring.keys());
        for _ in 0..3 {
            others.rotate(&random()).unwrap();
        }
        others.select([].iter());
        let removed = others.keys()[others.keys().len() - 2].id();
        others.remove(removed).unwrap();
        assert_eq!(
            merge(&mut ring, &others),
            Merged {
                changed: false,
                ahead: true
            }
        );
        assert_eq!(
            merge(&mut ring, &others),
            Merged {
                changed: false,
                ahead: true
            }
        );
        assert_eq!(merge(&mut ring, &others), CHANGED);
        assert_eq!(ring.digest(), others.digest());
        assert_eq!(ring.send_key(), others.send_key());
    }

    #[test]
    fn the_first_ring_ends_no_rotation() {
        let far = GroupKey::new(u32::MAX, [9; 32]);
        let mut joiner = Keyring::new();
        let mut hostile = ring_of(std::slice::from_ref(&far));
        hostile.floor = Some((u32::MAX, KeyId([0; 8])));
        assert!(offer(&hostile).is_ahead_of(&joiner));
        let refused = Merged {
            changed: false,
            ahead: true,
        };
        assert_eq!(merge(&mut joiner, &hostile), refused);
        assert!(joiner.is_empty() && joiner.floor.is_none());
        // Of a ring that is honest in part, that part is taken.
        let near = GroupKey::new(MAX_FIRST_GENERATION, [8; 32]);
        let taken = Merged {
            changed: true,
            ahead: true,
        };
        assert_eq!(merge(&mut joiner, &ring_of(&[near.clone(), far])), taken);
        assert_eq!(joiner.ids(), [near.id()]);
        assert_eq!(joiner.send_key().unwrap().id(), near.id());
        joiner.rotate(&random()).unwrap();
        assert_eq!(joiner.keys().len(), 2);
    }

    #[test]
    fn an_offer_tells_whether_it_moves_a_ring() {
        let ring = created();
        assert!(!offer(&ring).moves(&ring));
        assert!(!offer(&Keyring::new()).moves(&ring));
        assert!(offer(&ring).moves(&Keyring::new()));
        assert!(offer(&created()).moves(&ring), "another key");
        let mut newer = ring_of(ring.keys());
        newer.rotate(&random()).unwrap();
        assert!(offer(&newer).moves(&ring), "a newer key");
        assert!(!offer(&ring).moves(&newer), "an older ring");
        let mut shorter = ring_of(newer.keys());
        shorter.select([].iter());
        shorter.remove(shorter.ids()[0]).unwrap();
        assert!(offer(&shorter).moves(&newer), "a floor");
        assert!(!offer(&newer).moves(&shorter), "what was removed");
        let far = ring_of(&[GroupKey::new(u32::MAX, [9; 32])]);
        assert!(offer(&far).moves(&ring), "it raises the limit");
    }

    #[test]
    fn an_offer_tells_whether_it_is_ahead_and_whether_it_is_the_same_ring() {
        let ring = created();
        let mut newer = ring_of(ring.keys());
        newer.rotate(&random()).unwrap();
        assert!(offer(&ring).equals(&ring) && !offer(&newer).equals(&ring));
        assert!(!offer(&newer).is_ahead_of(&ring), "one above is taken");
        newer.rotate(&random()).unwrap();
        assert!(offer(&newer).is_ahead_of(&ring));
        assert!(!offer(&newer).is_ahead_of(&Keyring::new()));
        assert!(!offer(&newer).is_ahead_of(&Keyring::fixed([1; 32])));
        assert!(!offer(&Keyring::new()).is_ahead_of(&ring));
        newer.select([].iter());
        let mut removed = ring_of(newer.keys());
        removed.select([].iter());
        removed.remove(removed.ids()[0]).unwrap();
        assert!(!offer(&removed).equals(&newer));
    }

    #[test]
    fn a_floor_that_would_leave_no_key_is_not_believed() {
        let mut ring = created();
        let id = ring.send_key().unwrap().id();
        let mut hostile = ring_of(&[GroupKey::new(u32::MAX, [9; 32])]);
        hostile.floor = Some((u32::MAX - 1, KeyId([0xff; 8])));
        assert_eq!(
            merge(&mut ring, &hostile),
            Merged {
                changed: false,
                ahead: true
            }
        );
        assert_eq!((ring.ids(), ring.floor), (vec![id], None));
    }

    #[test]
    fn rotation_ends_with_an_error_when_generations_do() {
        let mut ring = ring_of(&[GroupKey::new(u32::MAX, [1; 32])]);
        assert_eq!(ring.rotate(&random()), Err(KeyringError::Exhausted));
        assert_eq!(Keyring::new().rotate(&random()), Err(KeyringError::Empty));
        assert_eq!(ring.create(&random()), Err(KeyringError::NotEmpty));
    }

    #[test]
    fn a_fixed_key_neither_changes_nor_travels() {
        let mut ring = Keyring::fixed([7; 32]);
        let id = ring.send_key().unwrap().id();
        assert_eq!(ring.merge(&offer(&created())), Err(KeyringError::Fixed));
        assert_eq!(ring.rotate(&random()), Err(KeyringError::Fixed));
        assert_eq!(ring.remove(id), Err(KeyringError::Fixed));
        assert_eq!(ring.select([].iter()), None);
        assert!(ring.encode().is_empty() && ring.is_fixed());
        assert_eq!(ring.digest(), Keyring::fixed([7; 32]).digest());
    }

    #[test]
    fn an_offer_confirms_its_keys_and_takes_nothing_back() {
        let mut ring = created();
        let n2 = node("n2");
        let offer = KeyringOffer::decode(&ring.encode()).unwrap();
        let second = ring.rotate(&random()).unwrap();
        ring.confirm(&n2, &[second]);
        ring.confirm_also(&n2, &offer.ids());
        assert_eq!(ring.confirmed[&n2].len(), 2);
        assert_eq!(ring.select([n2].iter()), Some(second));
    }

    #[test]
    fn what_members_confirm_is_bounded() {
        let mut ring = created();
        ring.confirm(&node("n2"), &[KeyId([0; 8]); 100]);
        assert_eq!(ring.confirmed[&node("n2")].len(), MAX_KEYS);
        for i in 0..MAX_MEMBERS + 10 {
            ring.confirm(&node(&format!("m{i}")), &[]);
        }
        assert_eq!(ring.confirmed.len(), MAX_MEMBERS);
    }

    #[test]
    fn debug_shows_no_secret() {
        let ring = ring_of(&[GroupKey::new(1, [0xab; 32])]);
        let shown = format!("{ring:?}");
        assert!(
            shown.contains("GroupKey(1:") && !shown.contains("171"),
            "{shown}"
        );
    }

    #[test]
    fn inconsistent_offers_are_malformed() {
        let mut ring = created();
        let rank = ring.keys()[0].rank();
        let refused = |ring: &Keyring| match KeyringOffer::decode(&ring.encode()) {
            Err(KeyringError::Malformed(why)) => why,
            other => panic!("{other:?}"),
        };
        ring.floor = Some(rank);
        assert_eq!(refused(&ring), "no key above the floor");
        ring.keys.clear();
        ring.send = None;
        assert_eq!(refused(&ring), "no key above the floor");
        ring.floor = None;
        ring.send = Some(rank.1);
        assert_eq!(refused(&ring), "send key is not in it");
        let large = KeyringOffer::decode(&[0; MAX_KEYRING_BYTES + 1]);
        assert_eq!(large, Err(KeyringError::Malformed("too large")));
    }

    #[test]
    fn random_and_damaged_offers_never_panic() {
        let mut ring = created();
        for _ in 0..3 {
            ring.rotate(&random()).unwrap();
        }
        ring.select([].iter());
        ring.remove(ring.ids()[1]).unwrap();
        let good = ring.encode();
        let mut chance = Chance::new(4);
        let mut victim = created();
        for _ in 0..100_000 {
            if let Ok(offer) = KeyringOffer::decode(&chance.mutate(&good)) {
                victim.merge(&offer).unwrap();
                assert!(!victim.keys.is_empty() && victim.keys.len() <= MAX_KEYS);
                assert!(victim.send_key().is_some());
            }
        }
    }
}
