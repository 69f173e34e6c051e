//! Who this node is: its certificate, its private key, and the authority it believes.
//!
//! An identity is read once, from PEM. What can be said about it without a clock is said at once:
//! the certificate names one node of one cluster, the key is P-256 and belongs to it, the
//! authority holds at least one certificate. What depends on the time, validity and the chain, is
//! for [`Identity::check`], which the start of a node calls with the wall clock.
//!
//! The private key does three things: it answers TLS handshakes, it signs the node's records and
//! statements (each kind under a context string of its own, so that no signature means two
//! things), and secrets that have to survive a restart are derived from it.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use boring::{
    bn::BigNumContext,
    ec::PointConversionForm,
    error::ErrorStack,
    nid::Nid,
    pkey::{PKey, Private},
    stack::{Stack, StackRef},
    x509::{
        X509, X509Ref, X509StoreContext,
        store::{X509Store, X509StoreBuilder},
        verify::X509VerifyFlags,
    },
};
use ring::{
    hkdf,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};

use super::leaf::Leaf;
pub use super::leaf::{certified_names, validity};
use crate::{
    error::IdentityError,
    node_id::{ClusterName, NAME_SUFFIX, NodeId},
    record::{MAX_RECORD_BYTES, Record, RecordError, SignedRecord, VerifiedRecord},
};

/// What a record's signature covers before its payload.
pub(super) const RECORD_CONTEXT: &[u8] = b"nodosum record v1\0";
/// What a statement's signature covers before the statement.
pub(super) const STATEMENT_CONTEXT: &[u8] = b"nodosum statement v1\0";
/// What the signature of an application's event covers before the event.
pub(super) const EVENT_CONTEXT: &[u8] = b"nodosum event v1\0";

/// The largest PEM file that is read: a handful of certificates take less than a tenth of it, and
/// a mistyped path to something huge should end in a message, not in memory.
const MAX_PEM_BYTES: u64 = 256 * 1024;

/// The most certificates in a chain or an authority. Each is tried in every verification.
const MAX_PEM_CERTIFICATES: usize = 16;

/// A node's certificate, private key and authority, ready for use. Cloning is cheap.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    leaf: Leaf,
    leaf_der: Vec<u8>,
    chain: Vec<X509>,
    authority: Vec<X509>,
    private_key: PKey<Private>,
    signing_key: EcdsaKeyPair,
    random: SystemRandom,
    derivation: hkdf::Prk,
}

/// Why a record or statement was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The record is about another node or cluster than this identity's.
    #[error("record of {0} is not about this node")]
    Foreign(String),
    /// The record would be refused by whoever receives it.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The system's random generator failed.
    #[error("the system's random generator failed")]
    Random,
}

impl Identity {
    /// Reads an identity from PEM in memory.
    ///
    /// `certificate` holds the node's certificate and after it any intermediate ones, `key` its
    /// ECDSA P-256 key as PKCS#8 or SEC 1, `authority` one or more certificates of authorities.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] when one of the three cannot be read, when the certificate does not name
    /// exactly one node as `<node>.<cluster>.nodosum`, or when the key is not its own.
    pub fn from_pem(
        certificate: &[u8],
        key: &[u8],
        authority: &[u8],
    ) -> Result<Self, IdentityError> {
        let malformed = |what, why: &dyn fmt::Display| IdentityError::Malformed {
            what,
            why: why.to_string(),
        };
        let chain = certificates("certificate", certificate)?;
        let authority = certificates("authority", authority)?;
        let leaf_der = chain[0]
            .to_der()
            .map_err(|why| malformed("certificate", &why))?;
        let (leaf, _) = Leaf::parse(&leaf_der).map_err(IdentityError::Name)?;

        let private_key = PKey::private_key_from_pem(key).map_err(|why| malformed("key", &why))?;
        let parts = KeyParts::read(&private_key)
            .map_err(|why| malformed("key", &why))?
            .ok_or_else(|| malformed("key", &"not an ECDSA P-256 key"))?;
        if parts.public != leaf.public_key {
            let name = full_name(&leaf.node, &leaf.cluster);
            return Err(IdentityError::KeyMismatch { name });
        }
        let random = SystemRandom::new();
        let signing_key = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &parts.secret,
            &parts.public,
            &random,
        )
        .map_err(|why| malformed("key", &why))?;
        let derivation =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"nodosum node key v1").extract(&parts.secret);

        Ok(Self(Arc::new(Inner {
            leaf,
            leaf_der,
            chain,
            authority,
            private_key,
            signing_key,
            random,
            derivation,
        })))
    }

    /// Reads an identity from three PEM files; see [`Identity::from_pem`] for what they hold.
    ///
    /// # Errors
    ///
    /// Those of [`Identity::from_pem`], and [`IdentityError::Read`] and, where files have such
    /// permissions, [`IdentityError::KeyReadable`] for a key that others than its owner can read.
    pub fn from_files(
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
        authority: impl AsRef<Path>,
    ) -> Result<Self, IdentityError> {
        Self::from_pem(
            &read_file(certificate.as_ref(), Secrecy::Public)?,
            &read_file(key.as_ref(), Secrecy::Owner)?,
            &read_file(authority.as_ref(), Secrecy::Public)?,
        )
    }

    /// Reads an identity from the files `node.pem`, `node.key` and `ca.pem` of a directory.
    ///
    /// # Errors
    ///
    /// Those of [`Identity::from_files`].
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, IdentityError> {
        let dir = dir.as_ref();
        Self::from_files(
            dir.join("node.pem"),
            dir.join("node.key"),
            dir.join("ca.pem"),
        )
    }

    /// The node that the certificate names.
    pub fn node(&self) -> &NodeId {
        &self.0.leaf.node
    }

    /// The cluster that the certificate names.
    pub fn cluster(&self) -> &ClusterName {
        &self.0.leaf.cluster
    }

    /// The name in the certificate: `<node>.<cluster>.nodosum`.
    pub fn certificate_name(&self) -> String {
        full_name(self.node(), self.cluster())
    }

    /// SHA-256 of the node's certificate in DER.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.0.leaf.fingerprint
    }

    /// From when on the certificate is valid.
    pub fn not_before(&self) -> SystemTime {
        self.0.leaf.not_before
    }

    /// Until when the certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        self.0.leaf.not_after
    }

    /// Judges the identity as a peer would at `now`: the certificate is valid and was issued by
    /// the authority. That the key belongs to it was settled when it was read.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Validity`] or [`IdentityError::Untrusted`].
    pub fn check(&self, now: SystemTime) -> Result<(), IdentityError> {
        let name = self.certificate_name();
        let leaf = &self.chain()[0];
        if now < self.not_before() {
            let problem = format!("is not valid before {}", leaf.not_before());
            return Err(IdentityError::Validity { name, problem });
        }
        // At the second of `notAfter` BoringSSL, and so every peer, calls it expired.
        if now >= self.not_after() {
            let problem = format!("expired on {}", leaf.not_after());
            return Err(IdentityError::Validity { name, problem });
        }
        self.judge(leaf, now)
            .map_err(|why| IdentityError::Untrusted { name, why })
    }

    /// Signs what the node says of itself; the record's certificate field is filled in.
    ///
    /// # Errors
    ///
    /// [`SignError`] when the record is not about this node or breaks a limit of records.
    pub fn sign(&self, mut record: Record) -> Result<Arc<VerifiedRecord>, SignError> {
        if record.node != *self.node() || record.cluster != *self.cluster() {
            return Err(SignError::Foreign(full_name(&record.node, &record.cluster)));
        }
        record.certificate = self.fingerprint();
        let payload = record.encode();
        if payload.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge(payload.len()).into());
        }
        // What peers would refuse must not leave the node.
        Record::decode(&payload)?;
        let signature = self.sign_with(RECORD_CONTEXT, &payload)?;
        let signed = SignedRecord {
            payload: payload.into(),
            signature: signature.into(),
        };
        Ok(Arc::new(VerifiedRecord { record, signed }))
    }

    /// Signs a statement that is not a record, such as a forced leave.
    ///
    /// # Errors
    ///
    /// [`SignError::Random`] when the system has no random bytes.
    pub fn sign_statement(&self, bytes: &[u8]) -> Result<Vec<u8>, SignError> {
        self.sign_with(STATEMENT_CONTEXT, bytes)
    }

    /// Signs an event of an application.
    ///
    /// # Errors
    ///
    /// [`SignError::Random`] when the system has no random bytes.
    pub fn sign_event(&self, bytes: &[u8]) -> Result<Vec<u8>, SignError> {
        self.sign_with(EVENT_CONTEXT, bytes)
    }

    /// A secret that depends on the private key and `label` alone, and so outlives a restart.
    pub fn derive_key(&self, label: &str) -> [u8; 32] {
        let mut key = [0; 32];
        self.0
            .derivation
            .expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .expect("32 bytes are within HKDF-SHA256's 8,160");
        key
    }

    /// The node's certificate in DER.
    #[doc(hidden)]
    pub fn certificate_der(&self) -> &[u8] {
        &self.0.leaf_der
    }

    /// What the node's certificate says.
    pub(super) fn leaf(&self) -> &Leaf {
        &self.0.leaf
    }

    /// The node's certificate, then the intermediate ones. Never empty.
    pub(crate) fn chain(&self) -> &[X509] {
        &self.0.chain
    }

    /// The certificates of the authority. Never empty.
    pub(crate) fn authority(&self) -> &[X509] {
        &self.0.authority
    }

    /// The private key of the certificate.
    pub(crate) fn private_key(&self) -> &PKey<Private> {
        &self.0.private_key
    }

    /// A store that trusts the authority and nothing else, for TLS and for certificates that come
    /// another way alike. An authority may be an intermediate one, made for this cluster under a
    /// root that stays elsewhere: hence `PARTIAL_CHAIN`.
    pub(crate) fn trust_store(&self) -> Result<X509StoreBuilder, ErrorStack> {
        let mut store = X509StoreBuilder::new()?;
        for certificate in self.authority() {
            store.add_cert(certificate)?;
        }
        store.try_set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
        Ok(store)
    }

    /// Whether `leaf` leads to the authority at `now`, over this node's own intermediates where
    /// there are any; the error says why not.
    pub(super) fn judge(&self, leaf: &X509Ref, now: SystemTime) -> Result<(), String> {
        let verdict = || {
            let intermediates = stack(&self.chain()[1..])?;
            verify_chain(&self.trust_store()?.build(), leaf, &intermediates, now)
        };
        verdict().unwrap_or_else(|failed: ErrorStack| Err(failed.to_string()))
    }

    pub(super) fn sign_with(&self, context: &[u8], bytes: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = self
            .0
            .signing_key
            .sign(&self.0.random, &[context, bytes].concat())
            .map_err(|_| SignError::Random)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.certificate_name())
    }
}

/// Whether `leaf` is valid at `now` and leads to a certificate in `store`, name constraints
/// included; the inner error is the verdict against it.
fn verify_chain(
    store: &X509Store,
    leaf: &X509Ref,
    intermediates: &StackRef<X509>,
    now: SystemTime,
) -> Result<Result<(), String>, ErrorStack> {
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    X509StoreContext::new()?.init(store, leaf, intermediates, |context| {
        context
            .verify_param_mut()
            .set_time(i64::try_from(seconds).unwrap_or(i64::MAX));
        let holds = context.verify_cert()?;
        Ok(match context.verify_result() {
            Ok(()) if holds => Ok(()),
            Ok(()) => Err("verification failed".into()),
            Err(error) => Err(error.error_string().into()),
        })
    })
}

/// Certificates as BoringSSL wants them.
fn stack(certificates: &[X509]) -> Result<Stack<X509>, ErrorStack> {
    let mut stack = Stack::new()?;
    for certificate in certificates {
        stack.push(certificate.clone())?;
    }
    Ok(stack)
}

fn full_name(node: &NodeId, cluster: &ClusterName) -> String {
    format!("{node}.{cluster}.{NAME_SUFFIX}")
}

/// The raw numbers of a P-256 key.
struct KeyParts {
    secret: Vec<u8>,
    public: Vec<u8>,
}

impl KeyParts {
    /// `None` for a key of another kind.
    fn read(key: &PKey<Private>) -> Result<Option<Self>, ErrorStack> {
        let Ok(key) = key.ec_key() else {
            return Ok(None);
        };
        if key.group().curve_name() != Some(Nid::X9_62_PRIME256V1) {
            return Ok(None);
        }
        key.check_key()?;
        let form = PointConversionForm::UNCOMPRESSED;
        let mut context = BigNumContext::new()?;
        Ok(Some(Self {
            secret: key.private_key().to_vec_padded(32)?,
            public: key.public_key().to_bytes(key.group(), form, &mut context)?,
        }))
    }
}

impl Drop for KeyParts {
    fn drop(&mut self) {
        super::wipe(&mut self.secret);
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<X509>, IdentityError> {
    let malformed = |why: String| IdentityError::Malformed { what, why };
    let found = X509::stack_from_pem(pem).map_err(|why| malformed(why.to_string()))?;
    match found.len() {
        0 => Err(malformed("no PEM certificate in it".into())),
        1..=MAX_PEM_CERTIFICATES => Ok(found),
        many => Err(malformed(format!(
            "{many} certificates, more than {MAX_PEM_CERTIFICATES}"
        ))),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    Public,
    /// Nobody but the owner may be able to read the file.
    Owner,
}

fn read_file(path: &Path, secrecy: Secrecy) -> Result<Vec<u8>, IdentityError> {
    let shown = || path.display().to_string();
    let failed = |source| IdentityError::Read {
        path: shown(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // The mode is asked of the open file, so that it is the mode of what is read.
    #[cfg(unix)]
    if secrecy == Secrecy::Owner {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::KeyReadable {
                path: shown(),
                mode,
            });
        }
    }
    #[cfg(not(unix))]
    let _ = secrecy;
    let mut bytes = Vec::new();
    file.take(MAX_PEM_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        let why = format!("larger than {MAX_PEM_BYTES} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
    }
    Ok(bytes)
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use std::{fs, path::PathBuf, time::Duration};

    use rcgen::{KeyPair, date_time_ymd};

    use super::*;
    use crate::trust::testing::{Authority, now, record};

    /// A directory of this process, removed at the end of the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("nodosum-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn write(&self, name: &str, content: &str, mode: u32) {
            use std::os::unix::fs::PermissionsExt as _;
            let path = self.0.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_identity_takes_its_names_from_the_certificate() {
        let authority = Authority::new();
        let issued = authority.issue(&["n1.test.nodosum"]);
        let identity = authority.identity_of(&issued).unwrap();
        identity.check(now()).unwrap();
        assert_eq!(identity.node().as_str(), "n1");
        assert_eq!(identity.cluster().as_str(), "test");
        assert_eq!(identity.certificate_name(), "n1.test.nodosum");
        assert_eq!(identity.certificate_der(), issued.der);
        assert_eq!(
            identity.fingerprint(),
            super::super::leaf::fingerprint(&issued.der)
        );
        assert_eq!(format!("{identity:?}"), "Identity(n1.test.nodosum)");
        assert_eq!(identity.chain().len(), 1);
        assert!(
            identity
                .private_key()
                .public_eq(&*identity.chain()[0].public_key().unwrap())
        );
    }

    #[test]
    fn keys_are_read_in_both_forms() {
        let authority = Authority::new();
        let issued = authority.issue(&["n1.test.nodosum"]);
        let pkcs8 = issued.key.serialize_pem();
        let ec_key = PKey::private_key_from_pem(pkcs8.as_bytes())
            .unwrap()
            .ec_key()
            .unwrap();
        let sec1 = ec_key.private_key_to_pem().unwrap();
        assert!(sec1.starts_with(b"-----BEGIN EC PRIVATE KEY-----"));
        let read = |key: &[u8]| {
            let (certificate, authority) = (issued.certificate.as_bytes(), authority.pem());
            Identity::from_pem(certificate, key, authority.as_bytes())
        };
        let keys = [read(pkcs8.as_bytes()).unwrap(), read(&sec1).unwrap()]
            .map(|identity| identity.derive_key("label"));
        assert_eq!(keys[0], keys[1]);
        for key in [
            b"".as_slice(),
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        ] {
            let error = read(key).unwrap_err();
            assert!(
                matches!(error, IdentityError::Malformed { what: "key", .. }),
                "{error}"
            );
        }
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let error = read(p384.serialize_pem().as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains("not an ECDSA P-256 key"),
            "{error}"
        );
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let authority = Authority::new();
        let mut issued = authority.issue(&["n1.test.nodosum"]);
        issued.key = KeyPair::generate().unwrap();
        let error = authority.identity_of(&issued).unwrap_err();
        assert!(
            matches!(error, IdentityError::KeyMismatch { .. }),
            "{error}"
        );
    }

    #[test]
    fn something_else_than_pem_is_refused_by_name() {
        let authority = Authority::new();
        let issued = authority.issue(&["n1.test.nodosum"]);
        let (key, ca) = (issued.key.serialize_pem(), authority.pem());
        let error = Identity::from_pem(b"hello", key.as_bytes(), ca.as_bytes()).unwrap_err();
        assert!(
            matches!(
                error,
                IdentityError::Malformed {
                    what: "certificate",
                    ..
                }
            ),
            "{error}"
        );
        let certificate = issued.certificate.as_bytes();
        let error = Identity::from_pem(certificate, key.as_bytes(), b"").unwrap_err();
        assert!(
            matches!(
                error,
                IdentityError::Malformed {
                    what: "authority",
                    ..
                }
            ),
            "{error}"
        );
        let many = ca.repeat(MAX_PEM_CERTIFICATES + 1);
        let error = Identity::from_pem(certificate, key.as_bytes(), many.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("17 certificates"), "{error}");
    }

    #[test]
    fn an_identity_is_judged_at_a_time() {
        let authority = Authority::new();
        let issued = authority.issue_with(&["n1.test.nodosum"], |params| {
            params.not_before = date_time_ymd(2_030, 1, 1);
            params.not_after = date_time_ymd(2_030, 6, 1);
        });
        let identity = authority.identity_of(&issued).unwrap();
        let second = Duration::from_secs(1);
        identity.check(identity.not_before()).unwrap();
        identity.check(identity.not_after() - second).unwrap();
        let early = identity
            .check(identity.not_before() - second)
            .unwrap_err()
            .to_string();
        assert!(early.contains("is not valid before Jan  1"), "{early}");
        let late = identity
            .check(identity.not_after() + second)
            .unwrap_err()
            .to_string();
        assert!(late.contains("expired on Jun  1"), "{late}");
    }

    #[test]
    fn another_authority_of_the_same_name_does_not_count() {
        let issued = Authority::new().issue(&["n1.test.nodosum"]);
        let identity = Authority::new().identity_of(&issued).unwrap();
        let error = identity.check(now()).unwrap_err();
        assert!(matches!(error, IdentityError::Untrusted { .. }), "{error}");
    }

    #[test]
    fn an_authority_constrained_to_a_cluster_makes_no_nodes_of_another() {
        let authority = Authority::new();
        let identity = authority
            .identity_of(&authority.issue(&["n1.other.nodosum"]))
            .unwrap();
        let error = identity.check(now()).unwrap_err();
        assert!(
            error.to_string().contains("permitted subtree violation"),
            "{error}"
        );
    }

    #[test]
    fn a_chain_leads_over_intermediates_or_ends_at_one() {
        let root = Authority::new();
        let intermediate = root.intermediate();
        let issued = intermediate.issue(&["n1.test.nodosum"]);
        let key = issued.key.serialize_pem();
        let check = |certificate: &str, authority: &str| {
            Identity::from_pem(certificate.as_bytes(), key.as_bytes(), authority.as_bytes())
                .unwrap()
                .check(now())
        };
        check(
            &format!("{}{}", issued.certificate, intermediate.pem()),
            &root.pem(),
        )
        .unwrap();
        check(&issued.certificate, &intermediate.pem()).unwrap();
        check(&issued.certificate, &root.pem()).unwrap_err();
    }

    #[test]
    fn derived_keys_depend_on_the_key_and_the_label() {
        let authority = Authority::new();
        let (one, two) = (authority.identity("n1"), authority.identity("n2"));
        assert_eq!(one.derive_key("reset"), one.derive_key("reset"));
        assert_ne!(one.derive_key("reset"), one.derive_key("token"));
        assert_ne!(one.derive_key("reset"), two.derive_key("reset"));
    }

    #[test]
    fn only_sound_records_of_its_own_are_signed() {
        let identity = Authority::new().identity("n1");
        let signed = identity.sign(record("n1", 1)).unwrap();
        assert_eq!(signed.record.certificate, identity.fingerprint());
        assert_eq!(
            Record::decode(&signed.signed.payload).unwrap(),
            signed.record
        );
        assert!(matches!(
            identity.sign(record("n2", 1)),
            Err(SignError::Foreign(_))
        ));
        let mut foreign = record("n1", 1);
        foreign.cluster = ClusterName::new("other").unwrap();
        assert!(matches!(identity.sign(foreign), Err(SignError::Foreign(_))));
        let mut large = record("n1", 1);
        large.tags.insert("k".into(), "v".repeat(600));
        assert_eq!(
            identity.sign(large),
            Err(SignError::Record(RecordError::Field("tags")))
        );
    }

    #[test]
    fn a_directory_holds_an_identity_whose_key_is_the_owners_alone() {
        let scratch = Scratch::new("identity");
        let authority = Authority::new();
        let issued = authority.issue(&["n1.test.nodosum"]);
        scratch.write("node.pem", &issued.certificate, 0o644);
        scratch.write("ca.pem", &authority.pem(), 0o644);
        let error = Identity::from_dir(&scratch.0).unwrap_err();
        assert!(matches!(&error, IdentityError::Read { path, .. } if path.ends_with("node.key")));
        for mode in [0o644, 0o640, 0o604, 0o660] {
            scratch.write("node.key", &issued.key.serialize_pem(), mode);
            let error = Identity::from_dir(&scratch.0).unwrap_err();
            assert!(matches!(error, IdentityError::KeyReadable { mode: m, .. } if m == mode));
        }
        scratch.write("node.key", &issued.key.serialize_pem(), 0o600);
        Identity::from_dir(&scratch.0)
            .unwrap()
            .check(now())
            .unwrap();
        scratch.write("ca.pem", &"x".repeat(300_000), 0o644);
        let error = Identity::from_dir(&scratch.0).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
    }
}
