//! Authorities, identities and chance for the tests of this layer.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, GeneralSubtree, IsCa, KeyPair,
    NameConstraints,
};

use super::Identity;
use crate::{
    node_id::{BootId, ClusterName, NodeId},
    record::Record,
};

/// In 2030: within the validity of every certificate here that does not say otherwise.
pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

pub(super) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(super) fn cluster() -> ClusterName {
    ClusterName::new("test").unwrap()
}

pub(super) fn record(node: &str, incarnation: u64) -> Record {
    let addr: SocketAddr = "127.0.0.1:4000".parse().unwrap();
    Record {
        cluster: cluster(),
        node: NodeId::new(node).unwrap(),
        incarnation,
        boot: BootId([1; 16]),
        quic_addr: addr,
        gossip_addr: addr,
        tags: [("zone".to_owned(), "a".to_owned())].into(),
        left: false,
        protocol: (1, 1),
        version: "0.1.0".into(),
        certificate: [0; 32],
    }
}

/// An authority with its key.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both PEM.
pub(super) struct Issued {
    pub(super) certificate: String,
    pub(super) der: Vec<u8>,
    pub(super) key: KeyPair,
}

impl Authority {
    /// Constrained to the cluster `test`.
    pub(crate) fn new() -> Self {
        let mut params = Self::params();
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("test.nodosum".into())],
            excluded_subtrees: Vec::new(),
        });
        Self::from(params)
    }

    pub(super) fn unconstrained() -> Self {
        Self::from(Self::params())
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn from(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// An authority below this one.
    pub(super) fn intermediate(&self) -> Self {
        let mut params = Self::params();
        params
            .distinguished_name
            .push(DnType::CommonName, "intermediate authority");
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(params, key, &self.0).unwrap())
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(super) fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, |_| ())
    }

    pub(super) fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued {
            certificate: certificate.pem(),
            der: certificate.der().to_vec(),
            key,
        }
    }

    /// The identity of a node in the cluster `test`.
    pub(crate) fn identity(&self, node: &str) -> Identity {
        self.identity_of(&self.issue(&[&format!("{node}.test.nodosum")]))
            .unwrap()
    }

    pub(super) fn identity_of(&self, issued: &Issued) -> Result<Identity, crate::IdentityError> {
        let (key, authority) = (issued.key.serialize_pem(), self.pem());
        Identity::from_pem(
            issued.certificate.as_bytes(),
            key.as_bytes(),
            authority.as_bytes(),
        )
    }
}

/// Marsaglia's xorshift64*: enough chance for tests, the same on every run.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Random bytes half of the time, a damaged copy of `good` the other half.
    pub(super) fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        if self.below(2) == 0 {
            let length = self.below(good.len() * 2);
            return (0..length).map(|_| self.next() as u8).collect();
        }
        let mut bytes = good.to_vec();
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.next() as u8),
                2 => bytes[at] ^= 1 << self.below(8),
                _ => bytes[at] = self.next() as u8,
            }
        }
        bytes
    }
}
