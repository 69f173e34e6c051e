//! The certificate authority of a cluster: makes it, loads it, issues certificates to nodes.
//!
//! An authority serves one cluster. Its certificate is a self-signed root that may sign leaves
//! only (path length 0) and that carries a critical name constraint: no certificate it signs is
//! valid for a name outside `<cluster>.nodosum`, whoever verifies it and whatever the key's holder
//! signs. Its common name is the cluster's name, which is how a loaded authority knows it.
//!
//! A node's certificate has exactly one name, `<node>.<cluster>.nodosum`, serves both ends of TLS,
//! and starts five minutes in the past, so that a clock that is behind does not refuse it. All keys
//! are ECDSA P-256: small certificates and cheap handshakes, supported everywhere.
//!
//! A loaded authority proves itself before it issues anything: it signs a certificate inside its
//! cluster, which must verify, and one outside, which must not. That one test catches a foreign
//! key, an expired root, a certificate that is no authority, and a missing constraint.
//!
//! The authority's key belongs on the operator's machine, never on a node.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use boring::{
    asn1::Asn1Time,
    nid::Nid,
    stack::Stack,
    x509::{X509, X509StoreContext, store::X509StoreBuilder},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};

use crate::{
    node_id::{ClusterName, NAME_SUFFIX, NodeId},
    trust::Identity,
};

/// How far a certificate's validity starts in the past: clocks of a cluster may differ that much.
const BACKDATED: Duration = Duration::from_secs(5 * 60);

/// The last second that an X.509 time can say: 9999-12-31T23:59:59Z (RFC 5280 §4.1.2.5).
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// Marks our authorities in their subject, beside the cluster's name.
const ORGANIZATION: &str = "nodosum authority";

/// Why an authority could not be made or loaded, or a certificate not issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// Not PEM, or not what the PEM says it is.
    #[error("{what} is not usable: {why}")]
    Malformed {
        /// `certificate` or `key`.
        what: &'static str,
        /// The cause.
        why: String,
    },
    /// The certificate and key are well-formed, but together no authority for one cluster.
    #[error("not the authority of a cluster: {0}")]
    NotAnAuthority(String),
    /// The validity asked for is empty or cannot be written in a certificate.
    #[error("validity: {0}")]
    Validity(String),
    /// A key or signature could not be made.
    #[error("cannot sign: {0}")]
    Crypto(String),
}

/// A certificate for a node, with its key.
#[derive(Clone)]
#[non_exhaustive]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its key, PKCS #8. A secret: write it with mode 0600.
    pub key_pem: String,
    /// The end of its validity: as asked for, or the authority's own end where that is earlier.
    pub not_after: SystemTime,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("certificate_pem", &self.certificate_pem)
            .field("key_pem", &"(secret)")
            .field("not_after", &self.not_after)
            .finish()
    }
}

/// What goes into a leaf certificate, for tests that need a wrong one.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct Template {
    pub common_name: String,
    pub dns_names: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub server_auth: bool,
    pub client_auth: bool,
}

/// A cluster's certificate authority, with its key. Cloning is cheap.
#[derive(Clone)]
pub struct Authority {
    cluster: ClusterName,
    certificate_pem: Arc<str>,
    not_after: SystemTime,
    key: Arc<KeyPair>,
}

impl Authority {
    /// Makes a new authority for `cluster`, valid from now on for `valid_for`.
    ///
    /// # Errors
    ///
    /// [`CaError::Validity`] when `valid_for` is zero or ends after the year 9999,
    /// [`CaError::Crypto`] when the system has no randomness.
    pub fn new(cluster: &ClusterName, valid_for: Duration) -> Result<Self, CaError> {
        let (not_before, not_after) = validity(valid_for)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(cluster.as_str());
        params
            .distinguished_name
            .push(DnType::OrganizationName, ORGANIZATION);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(format!("{cluster}.{NAME_SUFFIX}"))],
            excluded_subtrees: Vec::new(),
        });
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial_number()?);
        let key = KeyPair::generate().map_err(crypto)?;
        let certificate = params.self_signed(&key).map_err(crypto)?;
        Ok(Self {
            cluster: cluster.clone(),
            certificate_pem: certificate.pem().into(),
            not_after,
            key: Arc::new(key),
        })
    }

    /// Loads an authority from its certificate and its key (PKCS #8), both PEM.
    ///
    /// # Errors
    ///
    /// [`CaError::Malformed`] when either is unreadable, [`CaError::NotAnAuthority`] when they do
    /// not belong together or the certificate is not limited to one cluster or not valid now.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let malformed = |what, why: String| CaError::Malformed { what, why };
        let certificate = X509::from_pem(certificate_pem.as_bytes())
            .map_err(|error| malformed("certificate", error.to_string()))?;
        let key =
            KeyPair::from_pem(key_pem).map_err(|error| malformed("key", error.to_string()))?;
        let authority = Self {
            cluster: cluster_of(&certificate)?,
            certificate_pem: certificate_pem.into(),
            not_after: not_after_of(&certificate)?,
            key: Arc::new(key),
        };
        authority.prove_itself(&certificate)?;
        Ok(authority)
    }

    /// The cluster it issues certificates for.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The certificate, which every node of the cluster gets.
    pub fn certificate_pem(&self) -> String {
        self.certificate_pem.to_string()
    }

    /// The key, PKCS #8. A secret: whoever has it can be any node of the cluster.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// Issues a certificate to `node` and makes the identity to start it with, all in memory: for
    /// tests, examples, and programs that are their own authority.
    ///
    /// # Errors
    ///
    /// Those of [`issue`](Self::issue).
    pub fn identity(&self, node: &NodeId, valid_for: Duration) -> Result<Identity, CaError> {
        let issued = self.issue(node, valid_for)?;
        let authority = self.certificate_pem();
        Identity::from_pem(
            issued.certificate_pem.as_bytes(),
            issued.key_pem.as_bytes(),
            authority.as_bytes(),
        )
        .map_err(|error| CaError::Crypto(error.to_string()))
    }

    /// Issues a certificate with a new key to `node`, valid from now on for `valid_for` or until
    /// the authority itself ends.
    ///
    /// # Errors
    ///
    /// [`CaError::Validity`] when `valid_for` is zero or ends after the year 9999,
    /// [`CaError::Crypto`] when the system has no randomness.
    pub fn issue(&self, node: &NodeId, valid_for: Duration) -> Result<Issued, CaError> {
        self.issue_with(&self.template(node, valid_for)?)
    }

    /// What [`issue`](Self::issue) would issue.
    #[doc(hidden)]
    pub fn template(&self, node: &NodeId, valid_for: Duration) -> Result<Template, CaError> {
        let (not_before, not_after) = validity(valid_for)?;
        Ok(Template {
            common_name: node.to_string(),
            dns_names: vec![format!("{node}.{}.{NAME_SUFFIX}", self.cluster)],
            not_before,
            not_after: not_after.min(self.not_after),
            server_auth: true,
            client_auth: true,
        })
    }

    /// Issues what the template says, also what no node should accept.
    #[doc(hidden)]
    pub fn issue_with(&self, template: &Template) -> Result<Issued, CaError> {
        let mut params = CertificateParams::new(template.dns_names.clone()).map_err(crypto)?;
        params.distinguished_name = subject(&template.common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if template.server_auth {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if template.client_auth {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.not_before = whole_seconds(template.not_before)?.into();
        params.not_after = whole_seconds(template.not_after)?.into();
        params.serial_number = Some(serial_number()?);
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, &*self.key).map_err(crypto)?;
        let key = KeyPair::generate().map_err(crypto)?;
        let certificate = params.signed_by(&key, &issuer).map_err(crypto)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            not_after: template.not_after,
        })
    }

    fn prove_itself(&self, certificate: &X509) -> Result<(), CaError> {
        let node = NodeId::new("probe").expect("one lower-case label");
        let inside = self.template(&node, Duration::from_secs(60))?;
        // The underscore makes this no possible cluster name, so it can equal no real one.
        let outside = Template {
            dns_names: vec![format!("probe.not_{}.{NAME_SUFFIX}", self.cluster)],
            ..inside.clone()
        };
        verify(&self.issue_with(&inside)?, certificate).map_err(CaError::NotAnAuthority)?;
        match verify(&self.issue_with(&outside)?, certificate) {
            Ok(()) => Err(CaError::NotAnAuthority(format!(
                "its certificate is not limited to {}.{NAME_SUFFIX}",
                self.cluster
            ))),
            Err(_) => Ok(()),
        }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .field("not_after", &self.not_after)
            .field("key", &"(secret)")
            .finish_non_exhaustive()
    }
}

fn crypto(error: impl fmt::Display) -> CaError {
    CaError::Crypto(error.to_string())
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// 127 random bits (RFC 5280 §4.1.2.2 wants them positive; the top bit set keeps the length fixed).
fn serial_number() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(crypto)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn validity(valid_for: Duration) -> Result<(SystemTime, SystemTime), CaError> {
    if valid_for.is_zero() {
        return Err(CaError::Validity(
            "a certificate must be valid for some time".to_owned(),
        ));
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "certificates are made by tools, outside of any clock-free core"
    )]
    let now = whole_seconds(SystemTime::now())?;
    let not_after = now.checked_add(valid_for).ok_or_else(too_late)?;
    Ok((
        now.checked_sub(BACKDATED).unwrap_or(SystemTime::UNIX_EPOCH),
        whole_seconds(not_after)?,
    ))
}

/// What a certificate can say: whole seconds between 1970 and 9999.
fn whole_seconds(time: SystemTime) -> Result<SystemTime, CaError> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| CaError::Validity("it lies before 1970".to_owned()))?;
    if since > LAST_SECOND {
        return Err(too_late());
    }
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

fn too_late() -> CaError {
    CaError::Validity("it ends after the year 9999".to_owned())
}

fn cluster_of(certificate: &X509) -> Result<ClusterName, CaError> {
    let mut names = certificate.subject_name().entries_by_nid(Nid::COMMONNAME);
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(CaError::NotAnAuthority(
            "its certificate has not one common name".to_owned(),
        ));
    };
    let name = name.data().as_utf8().map_err(|error| CaError::Malformed {
        what: "certificate",
        why: error.to_string(),
    })?;
    ClusterName::new(&name).map_err(|error| {
        CaError::NotAnAuthority(format!("its common name is no cluster's name: {error}"))
    })
}

fn not_after_of(certificate: &X509) -> Result<SystemTime, CaError> {
    let malformed = |why: String| CaError::Malformed {
        what: "certificate",
        why: format!("validity: {why}"),
    };
    let epoch = Asn1Time::from_unix(0).map_err(|error| malformed(error.to_string()))?;
    let since = epoch
        .diff(certificate.not_after())
        .map_err(|error| malformed(error.to_string()))?;
    let seconds = i64::from(since.days) * 86_400 + i64::from(since.secs);
    let seconds = u64::try_from(seconds).map_err(|_| malformed("ends before 1970".to_owned()))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Verifies as a node does: with the given root as the only one trusted, at the present time.
fn verify(leaf: &Issued, root: &X509) -> Result<(), String> {
    let run = || {
        let leaf = X509::from_pem(leaf.certificate_pem.as_bytes())?;
        let mut store = X509StoreBuilder::new()?;
        store.add_cert(root)?;
        let mut context = X509StoreContext::new()?;
        let intermediates = Stack::new()?;
        context.init(&store.build(), &leaf, &intermediates, |context| {
            let trusted = context.verify_cert()?;
            Ok((trusted, context.verify_result()))
        })
    };
    match run() {
        Ok((true, _)) => Ok(()),
        Ok((false, result)) => match result {
            Ok(()) => Err("refused without a reason".to_owned()),
            Err(error) => Err(error.to_string()),
        },
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).unwrap()
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn authority() -> Authority {
        Authority::new(&cluster("prod"), 10 * DAY).unwrap()
    }

    fn root(authority: &Authority) -> X509 {
        X509::from_pem(authority.certificate_pem().as_bytes()).unwrap()
    }

    fn names(issued: &Issued) -> Vec<String> {
        let leaf = X509::from_pem(issued.certificate_pem.as_bytes()).unwrap();
        let names = leaf.subject_alt_names().unwrap();
        names
            .iter()
            .map(|name| name.dnsname().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn an_issued_certificate_verifies_and_has_exactly_one_name() {
        let authority = authority();
        let issued = authority.issue(&node("n1"), DAY).unwrap();
        assert_eq!(verify(&issued, &root(&authority)), Ok(()));
        assert_eq!(names(&issued), ["n1.prod.nodosum"]);
    }

    #[test]
    fn the_longest_names_fit_in_a_certificate_of_two_kibibytes() {
        let longest = "x".repeat(63);
        let authority = Authority::new(&cluster(&longest), DAY).unwrap();
        let issued = authority.issue(&node(&longest), DAY).unwrap();
        assert_eq!(verify(&issued, &root(&authority)), Ok(()));
        let leaf = X509::from_pem(issued.certificate_pem.as_bytes()).unwrap();
        assert!(leaf.to_der().unwrap().len() <= 2_048);
    }

    #[test]
    fn the_name_constraint_refuses_a_name_of_another_cluster() {
        let authority = authority();
        for name in [
            "n1.test.nodosum",
            "prod.nodosum.example",
            "n1.xprod.nodosum",
        ] {
            let mut template = authority.template(&node("n1"), DAY).unwrap();
            template.dns_names = vec![name.to_owned()];
            let refused = verify(&authority.issue_with(&template).unwrap(), &root(&authority));
            assert!(refused.unwrap_err().contains("permitted subtree"), "{name}");
        }
    }

    #[test]
    fn another_authority_of_the_same_cluster_is_not_trusted() {
        let issued = authority().issue(&node("n1"), DAY).unwrap();
        assert!(verify(&issued, &root(&authority())).is_err());
    }

    #[test]
    fn an_expired_certificate_is_refused() {
        let authority = authority();
        let mut template = authority.template(&node("n1"), DAY).unwrap();
        template.not_after = template.not_before + Duration::from_secs(1);
        let refused = verify(&authority.issue_with(&template).unwrap(), &root(&authority));
        assert!(refused.unwrap_err().contains("expired"));
    }

    #[test]
    fn wrong_certificates_can_be_made_for_tests() {
        let authority = authority();
        let mut template = authority.template(&node("n1"), DAY).unwrap();
        template.dns_names.push("n2.prod.nodosum".to_owned());
        template.server_auth = false;
        template.client_auth = false;
        let issued = authority.issue_with(&template).unwrap();
        assert_eq!(names(&issued), ["n1.prod.nodosum", "n2.prod.nodosum"]);
    }

    #[test]
    fn a_loaded_authority_knows_its_cluster_and_issues_what_the_first_one_would() {
        let made = authority();
        let loaded = Authority::from_pem(&made.certificate_pem(), &made.key_pem()).unwrap();
        assert_eq!(loaded.cluster(), made.cluster());
        assert_eq!(loaded.not_after, made.not_after);
        assert_eq!(
            verify(&loaded.issue(&node("n1"), DAY).unwrap(), &root(&made)),
            Ok(())
        );
    }

    #[test]
    fn a_certificate_never_outlives_its_authority_and_says_so() {
        let authority = authority();
        let issued = authority.issue(&node("n1"), 20 * DAY).unwrap();
        assert_eq!(issued.not_after, authority.not_after);
    }

    #[test]
    fn what_is_no_authority_is_not_loaded() {
        let authority = authority();
        let other = self::authority();
        let leaf = authority.issue(&node("n1"), DAY).unwrap();
        let refused = |certificate: &str, key: &str| {
            matches!(
                Authority::from_pem(certificate, key),
                Err(CaError::NotAnAuthority(_))
            )
        };
        assert!(
            refused(&authority.certificate_pem(), &other.key_pem()),
            "another key"
        );
        assert!(refused(&leaf.certificate_pem, &leaf.key_pem), "a leaf");
        assert!(matches!(
            Authority::from_pem("garbage", &authority.key_pem()),
            Err(CaError::Malformed {
                what: "certificate",
                ..
            })
        ));
        assert!(matches!(
            Authority::from_pem(&authority.certificate_pem(), "garbage"),
            Err(CaError::Malformed { what: "key", .. })
        ));
    }

    #[test]
    fn an_authority_without_a_name_constraint_is_not_loaded() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = subject("prod");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap().pem();
        let error = Authority::from_pem(&certificate, &key.serialize_pem()).unwrap_err();
        assert!(
            error.to_string().contains("not limited to prod.nodosum"),
            "{error}"
        );
    }

    #[test]
    fn a_validity_that_no_certificate_can_say_is_an_error() {
        for valid_for in [
            Duration::ZERO,
            Duration::from_secs(300_000_000_000),
            Duration::MAX,
        ] {
            let made = Authority::new(&cluster("prod"), valid_for);
            assert!(matches!(made, Err(CaError::Validity(_))), "{valid_for:?}");
        }
    }

    #[test]
    fn no_secret_is_shown_by_debug() {
        let authority = authority();
        let issued = authority.issue(&node("n1"), DAY).unwrap();
        let shown = format!("{authority:?} {issued:?}");
        assert!(!shown.contains("PRIVATE KEY"), "{shown}");
    }
}
