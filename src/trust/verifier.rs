//! Whether a signed record is what its node said.
//!
//! A record names the certificate it was signed with by fingerprint. Is that certificate known,
//! then it must name the record's node, and its key must verify the signature. Is it not, the
//! record waits in a bounded table until the certificate comes from a handshake or a sync
//! ([`Verifier::take_verified`]), and until then it is a hint where to dial and nothing more.
//!
//! Gossip repeats itself, so what verified last for each node is remembered, and the same bytes
//! again cost a comparison instead of a signature. What failed is not remembered: whoever feeds
//! records in here limits how many from a source.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::SystemTime,
};

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use super::{
    MAX_MEMBERS,
    certificates::{Certificate, CertificateError, Certificates},
    identity::{EVENT_CONTEXT, Identity, RECORD_CONTEXT, STATEMENT_CONTEXT},
};
use crate::{
    node_id::{ClusterName, NodeId},
    record::{Record, RecordError, SignedRecord, VerifiedRecord},
};

/// The longest DER encoding of an ECDSA P-256 signature: two integers of up to 33 bytes, each
/// with a head of 2, and the head of the sequence.
pub const MAX_SIGNATURE_BYTES: usize = 72;

/// How many verified records of a node are remembered: the current one, and the one before it,
/// which is still under way when a node refutes or updates itself.
const MAX_REMEMBERED_PER_NODE: usize = 2;

/// The most records that wait for a certificate, about 1 MiB. A joiner that first hears of a
/// large cluster through gossip may lose some; they come again with the next sync, together with
/// the certificates.
pub const MAX_WAITING: usize = 1_024;

/// How many of them may name the same certificate. More than one, so that a forged record that
/// names a real certificate cannot keep the real record out.
const MAX_WAITING_PER_CERTIFICATE: usize = 4;

/// What is to be thought of a signed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its node signed it.
    Verified(Arc<VerifiedRecord>),
    /// The certificate it names is not known. The content is a hint for dialling only.
    Waiting(Box<Record>),
    /// It is not what it says, or nothing that this version understands.
    Refused(Refusal),
}

/// Why a record or a statement was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The payload is not a record.
    #[error(transparent)]
    Malformed(#[from] RecordError),
    /// The record is of another cluster.
    #[error("record of cluster {0}")]
    ForeignCluster(ClusterName),
    /// The record names a certificate of another node.
    #[error("record of {record} names a certificate of {certificate}")]
    ForeignCertificate {
        /// Whose record it says it is.
        record: NodeId,
        /// Whose certificate it is.
        certificate: NodeId,
    },
    /// The signature is not one of that certificate's key over these bytes.
    #[error("signature of {0} does not hold")]
    Forged(NodeId),
    /// No certificate of the signer of a statement is known.
    #[error("no certificate of {0} is known")]
    UnknownSigner(NodeId),
}

/// Judges signed records and statements.
#[derive(Debug)]
pub struct Verifier {
    cluster: ClusterName,
    certificates: Certificates,
    remembered: BTreeMap<NodeId, VecDeque<Arc<VerifiedRecord>>>,
    waiting: Waiting,
}

impl Verifier {
    /// A verifier that trusts the identity's authority and knows its certificate.
    pub fn new(identity: &Identity) -> Self {
        Self {
            cluster: identity.cluster().clone(),
            certificates: Certificates::new(identity),
            remembered: BTreeMap::new(),
            waiting: Waiting::default(),
        }
    }

    /// Takes over this node's new certificate and authority; see [`Certificates::renew`].
    pub fn renew(&mut self, identity: &Identity) {
        self.certificates.renew(identity);
    }

    /// Judges a record. One whose certificate is missing is kept for [`Verifier::take_verified`].
    pub fn verify(&mut self, signed: &SignedRecord) -> Verdict {
        let record = match Record::decode(&signed.payload) {
            Ok(record) => record,
            Err(error) => return Verdict::Refused(error.into()),
        };
        if record.cluster != self.cluster {
            return Verdict::Refused(Refusal::ForeignCluster(record.cluster));
        }
        if let Some(known) = self.recall(&record.node, signed) {
            return Verdict::Verified(known);
        }
        match self.certificates.get(&record.certificate) {
            Some(certificate) => match prove(certificate, &record, signed) {
                Ok(()) => Verdict::Verified(self.remember(record, signed.clone())),
                Err(refusal) => Verdict::Refused(refusal),
            },
            None if signed.signature.len() > MAX_SIGNATURE_BYTES => {
                Verdict::Refused(Refusal::Forged(record.node))
            }
            None => {
                self.waiting.push(record.certificate, signed);
                Verdict::Waiting(Box::new(record))
            }
        }
    }

    /// The records that waited for this certificate and hold, in the order of their arrival. Call
    /// it after [`Verifier::insert_proven`] and [`Verifier::insert_claimed`].
    pub fn take_verified(&mut self, fingerprint: &[u8; 32]) -> Vec<Arc<VerifiedRecord>> {
        if self.certificates.get(fingerprint).is_none() {
            return Vec::new();
        }
        let waiting = self.waiting.take(fingerprint);
        waiting
            .iter()
            .filter_map(|signed| self.verify(signed).into_verified())
            .collect()
    }

    /// Whether one of the node's known certificates signed this statement.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownSigner`] or [`Refusal::Forged`].
    pub fn verify_statement(
        &self,
        node: &NodeId,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(), Refusal> {
        self.verify_in(STATEMENT_CONTEXT, node, bytes, signature)
    }

    /// Whether one of the node's known certificates signed this event of an application.
    ///
    /// # Errors
    ///
    /// [`Refusal::UnknownSigner`] or [`Refusal::Forged`].
    pub fn verify_event(
        &self,
        node: &NodeId,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(), Refusal> {
        self.verify_in(EVENT_CONTEXT, node, bytes, signature)
    }

    fn verify_in(
        &self,
        context: &[u8],
        node: &NodeId,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(), Refusal> {
        let mut refusal = Refusal::UnknownSigner(node.clone());
        for certificate in self.certificates.of(node) {
            if signed_by(certificate, context, bytes, signature) {
                return Ok(());
            }
            refusal = Refusal::Forged(node.clone());
        }
        Err(refusal)
    }

    /// See [`Certificates::insert_proven`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn insert_proven(&mut self, der: &[u8]) -> Result<[u8; 32], CertificateError> {
        self.certificates.insert_proven(der)
    }

    /// See [`Certificates::insert_claimed`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn insert_claimed(
        &mut self,
        der: &[u8],
        now: SystemTime,
    ) -> Result<[u8; 32], CertificateError> {
        self.certificates.insert_claimed(der, now)
    }

    /// The certificates known.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Forgets what belongs to nodes that `keep` denies, apart from records that wait: those
    /// are about nodes that are not members yet.
    pub fn retain(&mut self, mut keep: impl FnMut(&NodeId) -> bool) {
        self.certificates.retain(&mut keep);
        self.remembered.retain(|node, _| keep(node));
    }

    /// How many records wait for a certificate.
    pub fn waiting(&self) -> usize {
        self.waiting.order.len()
    }

    /// How many records had to make room for others while they waited, since the start.
    pub fn waiting_dropped(&self) -> u64 {
        self.waiting.dropped
    }

    fn recall(&self, node: &NodeId, signed: &SignedRecord) -> Option<Arc<VerifiedRecord>> {
        self.remembered
            .get(node)?
            .iter()
            .find(|known| known.signed == *signed)
            .cloned()
    }

    fn remember(&mut self, record: Record, signed: SignedRecord) -> Arc<VerifiedRecord> {
        let node = record.node.clone();
        let verified = Arc::new(VerifiedRecord { record, signed });
        // Beyond as many nodes as may be members, a record is verified each time it comes.
        if self.remembered.len() < MAX_MEMBERS || self.remembered.contains_key(&node) {
            let remembered = self.remembered.entry(node).or_default();
            if remembered.len() >= MAX_REMEMBERED_PER_NODE {
                remembered.pop_front();
            }
            remembered.push_back(verified.clone());
        }
        verified
    }
}

impl Verdict {
    /// The record, if it was verified.
    pub fn into_verified(self) -> Option<Arc<VerifiedRecord>> {
        match self {
            Self::Verified(record) => Some(record),
            Self::Waiting(_) | Self::Refused(_) => None,
        }
    }
}

fn prove(certificate: &Certificate, record: &Record, signed: &SignedRecord) -> Result<(), Refusal> {
    if *certificate.node() != record.node {
        return Err(Refusal::ForeignCertificate {
            record: record.node.clone(),
            certificate: certificate.node().clone(),
        });
    }
    if signed_by(
        certificate,
        RECORD_CONTEXT,
        &signed.payload,
        &signed.signature,
    ) {
        Ok(())
    } else {
        Err(Refusal::Forged(record.node.clone()))
    }
}

fn signed_by(certificate: &Certificate, context: &[u8], bytes: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, certificate.public_key())
        .verify(&[context, bytes].concat(), signature)
        .is_ok()
}

/// Records whose certificate is not known, oldest first in `order`. The oldest makes room: for
/// one more of the same certificate, and for any when the table is full.
#[derive(Debug, Default)]
struct Waiting {
    records: BTreeMap<([u8; 32], u64), SignedRecord>,
    order: BTreeMap<u64, [u8; 32]>,
    next: u64,
    dropped: u64,
}

impl Waiting {
    fn push(&mut self, fingerprint: [u8; 32], signed: &SignedRecord) {
        let same = || self.records.range(range(&fingerprint));
        if same().any(|(_, waiting)| waiting == signed) {
            return;
        }
        let oldest_of_same = (same().count() >= MAX_WAITING_PER_CERTIFICATE)
            .then(|| same().next())
            .flatten();
        let oldest = match oldest_of_same {
            Some((&(_, number), _)) => Some(number),
            None if self.order.len() >= MAX_WAITING => self.order.keys().next().copied(),
            None => None,
        };
        if let Some(number) = oldest {
            if let Some(fingerprint) = self.order.remove(&number) {
                self.records.remove(&(fingerprint, number));
            }
            self.dropped += 1;
        }
        self.order.insert(self.next, fingerprint);
        self.records
            .insert((fingerprint, self.next), signed.clone());
        self.next += 1;
    }

    fn take(&mut self, fingerprint: &[u8; 32]) -> Vec<SignedRecord> {
        let keys: Vec<_> = self
            .records
            .range(range(fingerprint))
            .map(|(&key, _)| key)
            .collect();
        keys.iter()
            .filter_map(|key| {
                self.order.remove(&key.1);
                self.records.remove(key)
            })
            .collect()
    }
}

fn range(fingerprint: &[u8; 32]) -> std::ops::RangeInclusive<([u8; 32], u64)> {
    (*fingerprint, 0)..=(*fingerprint, u64::MAX)
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use super::*;
    use crate::trust::testing::{Authority, node, now, record};

    fn refusal(verdict: Verdict) -> Refusal {
        match verdict {
            Verdict::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    /// `payload` as it is, signed by `identity`.
    fn sign_raw(identity: &Identity, payload: Vec<u8>) -> SignedRecord {
        // There is no way to sign a record that is not one's own; this goes around it.
        let signature = identity.sign_with(RECORD_CONTEXT, &payload).unwrap();
        SignedRecord {
            payload: payload.into(),
            signature: signature.into(),
        }
    }

    #[test]
    fn a_record_under_a_known_certificate_is_verified_and_remembered() {
        let authority = Authority::new();
        let other = authority.identity("n2");
        let mut verifier = Verifier::new(&authority.identity("n1"));
        verifier.insert_proven(other.certificate_der()).unwrap();
        let signed = other.sign(record("n2", 1)).unwrap();
        let Verdict::Verified(first) = verifier.verify(&signed.signed) else {
            panic!()
        };
        assert_eq!(first, signed);
        let Verdict::Verified(again) = verifier.verify(&signed.signed) else {
            panic!()
        };
        assert!(
            Arc::ptr_eq(&first, &again),
            "the second time came from memory"
        );
    }

    #[test]
    fn the_own_records_verify_without_further_ado() {
        let identity = Authority::new().identity("n1");
        let signed = identity.sign(record("n1", 1)).unwrap();
        let verdict = Verifier::new(&identity).verify(&signed.signed);
        assert_eq!(verdict, Verdict::Verified(signed));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let authority = Authority::new();
        let other = authority.identity("n2");
        let mut verifier = Verifier::new(&authority.identity("n1"));
        verifier.insert_proven(other.certificate_der()).unwrap();
        let signed = &other.sign(record("n2", 1)).unwrap().signed;
        assert!(verifier.verify(signed).into_verified().is_some());
        for bit in 0..signed.payload.len() * 8 {
            let mut payload = signed.payload.to_vec();
            payload[bit / 8] ^= 1 << (bit % 8);
            let changed = SignedRecord {
                payload: payload.into(),
                ..signed.clone()
            };
            assert!(
                verifier.verify(&changed).into_verified().is_none(),
                "bit {bit} of payload"
            );
        }
        for bit in 0..signed.signature.len() * 8 {
            let mut signature = signed.signature.to_vec();
            signature[bit / 8] ^= 1 << (bit % 8);
            let changed = SignedRecord {
                signature: signature.into(),
                ..signed.clone()
            };
            assert_eq!(
                refusal(verifier.verify(&changed)),
                Refusal::Forged(node("n2"))
            );
        }
    }

    #[test]
    fn nobody_signs_for_another() {
        let authority = Authority::new();
        let (victim, thief) = (authority.identity("n2"), authority.identity("n3"));
        let mut verifier = Verifier::new(&authority.identity("n1"));
        verifier.insert_proven(victim.certificate_der()).unwrap();
        verifier.insert_proven(thief.certificate_der()).unwrap();
        let mut claim = record("n2", 9);
        claim.certificate = thief.fingerprint();
        let verdict = verifier.verify(&sign_raw(&thief, claim.encode()));
        let (record, certificate) = (node("n2"), node("n3"));
        assert_eq!(
            refusal(verdict),
            Refusal::ForeignCertificate {
                record,
                certificate
            }
        );
        claim.certificate = victim.fingerprint();
        let verdict = verifier.verify(&sign_raw(&thief, claim.encode()));
        assert_eq!(refusal(verdict), Refusal::Forged(node("n2")));
    }

    #[test]
    fn records_of_another_cluster_are_refused() {
        let authority = Authority::unconstrained();
        let identity = authority
            .identity_of(&authority.issue(&["n2.other.nodosum"]))
            .unwrap();
        let mut claim = record("n2", 1);
        claim.cluster = ClusterName::new("other").unwrap();
        let signed = identity.sign(claim).unwrap();
        let verdict = Verifier::new(&authority.identity("n1")).verify(&signed.signed);
        assert_eq!(
            refusal(verdict),
            Refusal::ForeignCluster(identity.cluster().clone())
        );
    }

    #[test]
    fn garbage_and_overlong_signatures_are_refused_without_waiting() {
        let authority = Authority::new();
        let mut verifier = Verifier::new(&authority.identity("n1"));
        let garbage = SignedRecord {
            payload: [0xff; 9].into(),
            signature: [0; 8].into(),
        };
        assert_eq!(
            refusal(verifier.verify(&garbage)),
            RecordError::Malformed.into()
        );
        let signed = &authority
            .identity("n2")
            .sign(record("n2", 1))
            .unwrap()
            .signed;
        assert!(signed.signature.len() <= MAX_SIGNATURE_BYTES);
        let signature = [0; MAX_SIGNATURE_BYTES + 1].into();
        let overlong = SignedRecord {
            signature,
            ..signed.clone()
        };
        assert_eq!(
            refusal(verifier.verify(&overlong)),
            Refusal::Forged(node("n2"))
        );
        assert_eq!(verifier.waiting(), 0);
    }

    #[test]
    fn a_record_waits_for_its_certificate_beside_forgeries() {
        let authority = Authority::new();
        let other = authority.identity("n2");
        let mut verifier = Verifier::new(&authority.identity("n1"));
        let real = other.sign(record("n2", 1)).unwrap();
        let forged = SignedRecord {
            signature: [0; 70].into(),
            ..real.signed.clone()
        };
        for signed in [&forged, &real.signed, &real.signed] {
            let Verdict::Waiting(hint) = verifier.verify(signed) else {
                panic!()
            };
            assert_eq!(*hint, real.record);
        }
        assert_eq!(verifier.waiting(), 2, "the same record waits once");
        assert!(verifier.take_verified(&other.fingerprint()).is_empty());
        assert_eq!(
            verifier.waiting(),
            2,
            "without the certificate they go on waiting"
        );
        let fingerprint = verifier
            .insert_claimed(other.certificate_der(), now())
            .unwrap();
        assert_eq!(verifier.take_verified(&fingerprint), [real]);
        assert_eq!((verifier.waiting(), verifier.waiting_dropped()), (0, 0));
    }

    #[test]
    fn the_table_of_waiting_records_is_bounded_and_counts_what_it_drops() {
        let authority = Authority::new();
        let mut verifier = Verifier::new(&authority.identity("n1"));
        let wait = |verifier: &mut Verifier, certificate: u64, incarnation| {
            let mut record = record("n2", incarnation);
            record.certificate[..8].copy_from_slice(&certificate.to_be_bytes());
            let (payload, signature) = (record.encode().into(), [0; 70].into());
            let verdict = verifier.verify(&SignedRecord { payload, signature });
            assert!(matches!(verdict, Verdict::Waiting(_)), "{verdict:?}");
        };
        for incarnation in 0..=MAX_WAITING_PER_CERTIFICATE as u64 {
            wait(&mut verifier, 0, incarnation);
        }
        assert_eq!(verifier.waiting(), MAX_WAITING_PER_CERTIFICATE);
        assert_eq!(verifier.waiting_dropped(), 1);
        for certificate in 1..=MAX_WAITING as u64 {
            wait(&mut verifier, certificate, 0);
        }
        assert_eq!(verifier.waiting(), MAX_WAITING);
        assert_eq!(verifier.waiting.records.len(), MAX_WAITING);
        assert_eq!(
            verifier.waiting_dropped(),
            1 + MAX_WAITING_PER_CERTIFICATE as u64
        );
    }

    #[test]
    fn what_is_remembered_of_a_node_is_bounded_and_can_be_forgotten() {
        let authority = Authority::new();
        let other = authority.identity("n2");
        let mut verifier = Verifier::new(&authority.identity("n1"));
        verifier.insert_proven(other.certificate_der()).unwrap();
        for incarnation in 1..=10 {
            let signed = other.sign(record("n2", incarnation)).unwrap();
            assert!(verifier.verify(&signed.signed).into_verified().is_some());
        }
        assert_eq!(
            verifier.remembered[&node("n2")].len(),
            MAX_REMEMBERED_PER_NODE
        );
        verifier.retain(|name| *name != node("n2"));
        assert!(verifier.remembered.is_empty());
        assert!(verifier.certificates().get(&other.fingerprint()).is_none());
    }

    #[test]
    fn statements_and_records_cannot_stand_in_for_each_other() {
        let authority = Authority::new();
        let other = authority.identity("n2");
        let mut verifier = Verifier::new(&authority.identity("n1"));
        let signature = other.sign_statement(b"n3 is gone").unwrap();
        let unknown = verifier.verify_statement(&node("n2"), b"n3 is gone", &signature);
        assert_eq!(unknown, Err(Refusal::UnknownSigner(node("n2"))));
        verifier.insert_proven(other.certificate_der()).unwrap();
        let verify = |bytes: &[u8], signature: &[u8]| {
            verifier.verify_statement(&node("n2"), bytes, signature)
        };
        assert_eq!(verify(b"n3 is gone", &signature), Ok(()));
        assert_eq!(
            verify(b"n4 is gone", &signature),
            Err(Refusal::Forged(node("n2")))
        );
        assert_eq!(verify(b"n3 is gone", b""), Err(Refusal::Forged(node("n2"))));
        let signed = &other.sign(record("n2", 1)).unwrap().signed;
        let forged = Err(Refusal::Forged(node("n2")));
        assert_eq!(verify(&signed.payload, &signed.signature), forged);
    }
}
