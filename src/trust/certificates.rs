//! The certificates of other nodes, kept to verify what they sign.
//!
//! A certificate gets in by one of two doors. *Proven*: its owner held it in a finished mutual TLS
//! handshake, so the chain is judged already. *Claimed*: somebody passed it on; then it must lead
//! to the authority at the time of arrival. Either way it has to name a node of this cluster.
//!
//! A node has at most two entries, so that it can change its certificate while records under the
//! old one are still under way. A third displaces the one that matters least: one that was only
//! claimed before one that was proven, then the one issued earlier; a claimed certificate that
//! would be that one itself is refused, so that passing on old certificates displaces nothing.
//! This node's own is never displaced. When the table is full, new ones are refused: the
//! reactor drops the certificates of retired members with [`Certificates::retain`].

use std::{collections::BTreeMap, time::SystemTime};

use super::{
    MAX_MEMBERS,
    identity::Identity,
    leaf::{Leaf, PUBLIC_KEY_BYTES},
};
use crate::node_id::NodeId;

/// How many certificates of one node are kept: the one in use and the one before or after it.
const MAX_PER_NODE: usize = 2;

/// The most certificates kept. A typical one takes 500 bytes, the largest 2 KiB.
pub const MAX_CERTIFICATES: usize = MAX_PER_NODE * MAX_MEMBERS;

/// Why a certificate was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It does not name exactly one node, or is not a usable certificate at all.
    #[error("certificate {0}")]
    Unusable(String),
    /// It belongs to another cluster.
    #[error("certificate names cluster {0:?}")]
    ForeignCluster(String),
    /// It is not valid at this time.
    #[error("certificate of {0} is not valid now")]
    NotValidNow(NodeId),
    /// It does not lead to the authority.
    #[error("certificate of {node} is not trusted: {why}")]
    Untrusted {
        /// The node it names.
        node: NodeId,
        /// What the verification said.
        why: String,
    },
    /// Two certificates of that node are kept that matter more.
    #[error("newer certificates of {0} are known")]
    Superseded(NodeId),
    /// The table is full.
    #[error("more than {MAX_CERTIFICATES} certificates")]
    Full,
}

/// How a certificate came here, in the order of how much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Claimed,
    Proven,
    Own,
}

/// A node's certificate, checked.
#[derive(Debug, Clone)]
pub struct Certificate {
    der: Box<[u8]>,
    node: NodeId,
    public_key: [u8; PUBLIC_KEY_BYTES],
    not_before: SystemTime,
    not_after: SystemTime,
    origin: Origin,
}

impl Certificate {
    /// The node it names.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The certificate as it came.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Until when it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(super) fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

/// A bounded table of certificates by fingerprint (SHA-256 of the DER).
#[derive(Debug)]
pub struct Certificates {
    identity: Identity,
    by_fingerprint: BTreeMap<[u8; 32], Certificate>,
    by_node: BTreeMap<NodeId, Vec<[u8; 32]>>,
    capacity: usize,
}

impl Certificates {
    /// A table that holds this node's own certificate.
    pub fn new(identity: &Identity) -> Self {
        Self::with_capacity(identity, MAX_CERTIFICATES)
    }

    fn with_capacity(identity: &Identity, capacity: usize) -> Self {
        let mut certificates = Self {
            identity: identity.clone(),
            by_fingerprint: BTreeMap::new(),
            by_node: BTreeMap::new(),
            capacity,
        };
        let own = Certificate::new(identity.certificate_der(), identity.leaf(), Origin::Own);
        certificates.store(identity.fingerprint(), own);
        certificates
    }

    /// Takes over this node's new certificate, and the authority that it comes with. The one before
    /// it stays while records under it are under way; an older one goes.
    pub fn renew(&mut self, identity: &Identity) {
        self.identity = identity.clone();
        let fingerprint = identity.fingerprint();
        if self.by_fingerprint.contains_key(&fingerprint) {
            return;
        }
        if let Some(held) = self.by_node.get_mut(identity.node())
            && held.len() >= MAX_PER_NODE
        {
            // Kept in the order of their arrival.
            let oldest = held.remove(0);
            self.by_fingerprint.remove(&oldest);
        }
        let own = Certificate::new(identity.certificate_der(), identity.leaf(), Origin::Own);
        self.store(fingerprint, own);
    }

    /// Takes the certificate that a peer proved in a finished mutual TLS handshake, and returns
    /// its fingerprint.
    ///
    /// # Errors
    ///
    /// [`CertificateError`], without effect. The chain is not looked at: TLS did that.
    pub fn insert_proven(&mut self, der: &[u8]) -> Result<[u8; 32], CertificateError> {
        let (leaf, _) = self.parse(der)?;
        self.insert(der, &leaf, Origin::Proven)
    }

    /// Takes a certificate that somebody passed on, if it leads to the authority at `now`, and
    /// returns its fingerprint. One that is known already costs no verification.
    ///
    /// # Errors
    ///
    /// [`CertificateError`], without effect.
    pub fn insert_claimed(
        &mut self,
        der: &[u8],
        now: SystemTime,
    ) -> Result<[u8; 32], CertificateError> {
        let (leaf, x509) = self.parse(der)?;
        if now < leaf.not_before || now >= leaf.not_after {
            return Err(CertificateError::NotValidNow(leaf.node));
        }
        if !self.by_fingerprint.contains_key(&leaf.fingerprint) {
            self.identity
                .judge(&x509, now)
                .map_err(|why| CertificateError::Untrusted {
                    node: leaf.node.clone(),
                    why,
                })?;
        }
        self.insert(der, &leaf, Origin::Claimed)
    }

    /// The certificate with this fingerprint.
    pub fn get(&self, fingerprint: &[u8; 32]) -> Option<&Certificate> {
        self.by_fingerprint.get(fingerprint)
    }

    /// The DER of the certificate with this fingerprint, to be passed on.
    pub fn der(&self, fingerprint: &[u8; 32]) -> Option<&[u8]> {
        self.get(fingerprint).map(Certificate::der)
    }

    /// The certificates of a node, at most two.
    pub fn of(&self, node: &NodeId) -> impl Iterator<Item = &Certificate> {
        self.by_node
            .get(node)
            .into_iter()
            .flatten()
            .filter_map(|key| self.by_fingerprint.get(key))
    }

    /// Drops the certificates of every node that `keep` denies, other than this node's own.
    pub fn retain(&mut self, mut keep: impl FnMut(&NodeId) -> bool) {
        let own = self.identity.node();
        self.by_node.retain(|node, _| node == own || keep(node));
        self.by_fingerprint
            .retain(|_, certificate| self.by_node.contains_key(&certificate.node));
    }

    /// How many certificates are kept.
    pub fn len(&self) -> usize {
        self.by_fingerprint.len()
    }

    /// Never: the own certificate is always there.
    pub fn is_empty(&self) -> bool {
        self.by_fingerprint.is_empty()
    }

    fn parse(&self, der: &[u8]) -> Result<(Leaf, boring::x509::X509), CertificateError> {
        let (leaf, x509) = Leaf::parse(der).map_err(CertificateError::Unusable)?;
        if leaf.cluster == *self.identity.cluster() {
            Ok((leaf, x509))
        } else {
            Err(CertificateError::ForeignCluster(leaf.cluster.to_string()))
        }
    }

    fn insert(
        &mut self,
        der: &[u8],
        leaf: &Leaf,
        origin: Origin,
    ) -> Result<[u8; 32], CertificateError> {
        let fingerprint = leaf.fingerprint;
        if let Some(known) = self.by_fingerprint.get_mut(&fingerprint) {
            known.origin = known.origin.max(origin);
            return Ok(fingerprint);
        }
        let newcomer = Certificate::new(der, leaf, origin);
        if self.of(&leaf.node).count() >= MAX_PER_NODE {
            self.displace(&newcomer)?;
        } else if self.by_fingerprint.len() >= self.capacity {
            return Err(CertificateError::Full);
        }
        self.store(fingerprint, newcomer);
        Ok(fingerprint)
    }

    /// Makes room among the certificates of the newcomer's node.
    fn displace(&mut self, newcomer: &Certificate) -> Result<(), CertificateError> {
        let superseded = || CertificateError::Superseded(newcomer.node.clone());
        let held = self
            .by_node
            .get_mut(&newcomer.node)
            .ok_or_else(superseded)?;
        let weight = |key: &[u8; 32]| {
            self.by_fingerprint
                .get(key)
                .map(|held| (held.origin, held.not_before))
        };
        let (index, least) = held
            .iter()
            .enumerate()
            .min_by_key(|(_, key)| weight(key))
            .map(|(index, key)| (index, *key))
            .ok_or_else(superseded)?;
        // A claimed one is worth its place if it was issued later, even than a proven one: that
        // is how a renewed certificate gets round before its owner has shaken every hand.
        let newer = weight(&least).is_none_or(|(_, not_before)| newcomer.not_before > not_before);
        if newcomer.origin == Origin::Claimed && !newer {
            return Err(superseded());
        }
        held.remove(index);
        self.by_fingerprint.remove(&least);
        Ok(())
    }

    fn store(&mut self, fingerprint: [u8; 32], certificate: Certificate) {
        self.by_node
            .entry(certificate.node.clone())
            .or_default()
            .push(fingerprint);
        self.by_fingerprint.insert(fingerprint, certificate);
    }
}

impl Certificate {
    fn new(der: &[u8], leaf: &Leaf, origin: Origin) -> Self {
        Self {
            der: der.into(),
            node: leaf.node.clone(),
            public_key: leaf.public_key,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            origin,
        }
    }
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use rcgen::date_time_ymd;

    use super::*;
    use crate::trust::testing::{Authority, Chance, node, now};

    /// A certificate of `n2` that was issued in `year`.
    fn issued_in(authority: &Authority, year: i32) -> Vec<u8> {
        let change = |params: &mut rcgen::CertificateParams| {
            params.not_before = date_time_ymd(year, 1, 1);
        };
        authority.issue_with(&["n2.test.nodosum"], change).der
    }

    #[test]
    fn the_own_certificate_is_always_there() {
        let identity = Authority::new().identity("n1");
        let mut certificates = Certificates::new(&identity);
        assert_eq!(
            certificates.der(&identity.fingerprint()),
            Some(identity.certificate_der())
        );
        certificates.retain(|_| false);
        assert_eq!(
            certificates.get(&identity.fingerprint()).unwrap().node(),
            identity.node()
        );
    }

    #[test]
    fn of_this_nodes_own_certificates_the_new_one_and_the_one_before_are_kept() {
        let authority = Authority::new();
        let lives = [(); 3].map(|()| authority.identity("n1"));
        let mut certificates = Certificates::new(&lives[0]);
        certificates.renew(&lives[1]);
        certificates.renew(&lives[1]);
        assert_eq!(certificates.len(), 2);
        certificates.renew(&lives[2]);
        let kept = lives.map(|life| certificates.get(&life.fingerprint()).is_some());
        assert_eq!(kept, [false, true, true]);
    }

    #[test]
    fn a_claimed_certificate_must_lead_to_the_authority_now() {
        let authority = Authority::new();
        let mut certificates = Certificates::new(&authority.identity("n1"));
        let der = authority.identity("n2").certificate_der().to_vec();
        let fingerprint = certificates.insert_claimed(&der, now()).unwrap();
        assert_eq!(certificates.der(&fingerprint), Some(der.as_slice()));
        let stranger = Authority::new().identity("n3");
        let refused = certificates.insert_claimed(stranger.certificate_der(), now());
        assert!(
            matches!(refused, Err(CertificateError::Untrusted { .. })),
            "{refused:?}"
        );
        let late = certificates.get(&fingerprint).unwrap().not_after();
        let refused = certificates.insert_claimed(&der, late);
        assert_eq!(refused, Err(CertificateError::NotValidNow(node("n2"))));
        assert_eq!(certificates.len(), 2);
    }

    #[test]
    fn certificates_of_other_clusters_and_of_nobody_stay_out() {
        let authority = Authority::unconstrained();
        let mut certificates = Certificates::new(&authority.identity("n1"));
        let foreign = authority.issue(&["n2.other.nodosum"]).der;
        let nobody = authority.issue(&["www.example.com"]).der;
        for insert in [
            |table: &mut Certificates, der: &[u8]| table.insert_proven(der),
            |table: &mut Certificates, der: &[u8]| table.insert_claimed(der, now()),
        ] {
            let refused = insert(&mut certificates, &foreign).unwrap_err();
            assert_eq!(refused, CertificateError::ForeignCluster("other".into()));
            let refused = insert(&mut certificates, &nobody).unwrap_err();
            assert!(
                matches!(refused, CertificateError::Unusable(_)),
                "{refused:?}"
            );
        }
        assert_eq!(certificates.len(), 1);
    }

    #[test]
    fn a_third_certificate_displaces_what_matters_least() {
        let authority = Authority::new();
        let mut certificates = Certificates::new(&authority.identity("n1"));
        let [old, proven, new, newest] =
            [2_001, 2_002, 2_003, 2_004].map(|year| issued_in(&authority, year));
        let proven_key = certificates.insert_proven(&proven).unwrap();
        let new_key = certificates.insert_claimed(&new, now()).unwrap();
        let refused = certificates.insert_claimed(&old, now());
        assert_eq!(refused, Err(CertificateError::Superseded(node("n2"))));
        let newest_key = certificates.insert_claimed(&newest, now()).unwrap();
        assert!(certificates.get(&proven_key).is_some() && certificates.get(&new_key).is_none());
        // What a handshake proves gets in, however old; what was only claimed goes.
        let old_key = certificates.insert_proven(&old).unwrap();
        assert!(certificates.get(&old_key).is_some() && certificates.get(&newest_key).is_none());
        // A renewed certificate may be heard of before its owner was met with it.
        let newest_key = certificates.insert_claimed(&newest, now()).unwrap();
        assert!(certificates.get(&newest_key).is_some() && certificates.get(&old_key).is_none());
        assert_eq!(certificates.of(&node("n2")).count(), 2);
        assert_eq!(certificates.len(), 3);
    }

    #[test]
    fn a_full_table_refuses_new_nodes_until_others_are_dropped() {
        let authority = Authority::new();
        let mut certificates = Certificates::with_capacity(&authority.identity("n1"), 2);
        let (two, three) = (authority.identity("n2"), authority.identity("n3"));
        certificates.insert_proven(two.certificate_der()).unwrap();
        let refused = certificates.insert_proven(three.certificate_der());
        assert_eq!(refused, Err(CertificateError::Full));
        assert_eq!(
            certificates.insert_proven(two.certificate_der()),
            Ok(two.fingerprint())
        );
        certificates.retain(|name| *name != node("n2"));
        certificates.insert_proven(three.certificate_der()).unwrap();
        assert_eq!(certificates.of(&node("n2")).count(), 0);
    }

    #[test]
    fn damaged_certificates_are_never_taken_as_claimed() {
        let authority = Authority::new();
        let mut certificates = Certificates::new(&authority.identity("n1"));
        let good = authority.identity("n2").certificate_der().to_vec();
        let mut chance = Chance::new(2);
        for _ in 0..5_000 {
            let bytes = chance.mutate(&good);
            assert!(bytes == good || certificates.insert_claimed(&bytes, now()).is_err());
        }
    }
}
