//! Reading a node's certificate: whose it is, for how long, and with which key.
//!
//! A leaf certificate means something here only if it says one thing. So there is exactly one
//! subject alternative name, a DNS name of the form `<node>.<cluster>.nodosum`, in lower case;
//! the common name is never looked at and a wildcard is not a label. It is usable for both TLS
//! roles (extended key usage absent, or server and client both), is no authority itself, holds a
//! P-256 key, and is small enough to be passed on. The chain is not judged here.
//!
//! BoringSSL parses the certificate first; the few fields it does not hand out are then read by
//! a small strict DER reader that borrows from the input and never allocates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boring::{
    asn1::{Asn1Time, Asn1TimeRef},
    x509::{X509, X509Ref},
};
use ring::digest;

use crate::node_id::{ClusterName, NAME_SUFFIX, NodeId};

/// The largest leaf certificate, in DER, that a node may have. A P-256 leaf with its two names
/// takes about 500 bytes; the bound makes the cache of 2 × 16,384 certificates affordable and
/// lets one travel in a single sync frame.
pub const MAX_CERTIFICATE_BYTES: usize = 2_048;

/// An uncompressed P-256 point (SEC 1 §2.3.3).
pub(super) const PUBLIC_KEY_BYTES: usize = 65;

/// What a leaf certificate says.
#[derive(Debug, Clone)]
pub(super) struct Leaf {
    pub(super) node: NodeId,
    pub(super) cluster: ClusterName,
    pub(super) public_key: [u8; PUBLIC_KEY_BYTES],
    pub(super) fingerprint: [u8; 32],
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Leaf {
    /// Reads `der` and the parsed form of the same certificate, for which the caller may have
    /// further use.
    pub(super) fn parse(der: &[u8]) -> Result<(Self, X509), String> {
        let certificate = parse_x509(der)?;
        let fields = Fields::read(der).ok_or("is not strict DER")?;
        let (node, cluster) = fields.names()?;
        let (not_before, not_after) = validity_of(&certificate)?;
        let leaf = Self {
            node,
            cluster,
            public_key: fields.public_key()?,
            fingerprint: fingerprint(der),
            not_before,
            not_after,
        };
        Ok((leaf, certificate))
    }
}

/// SHA-256 of a certificate in DER.
pub(super) fn fingerprint(der: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
    bytes
}

/// The node and the cluster that a leaf certificate names.
///
/// # Errors
///
/// A sentence that says why the certificate does not name exactly one node; see the module.
pub fn certified_names(leaf_der: &[u8]) -> Result<(NodeId, ClusterName), String> {
    parse_x509(leaf_der)?;
    Fields::read(leaf_der).ok_or("is not strict DER")?.names()
}

/// From when until when a certificate is valid.
///
/// # Errors
///
/// A sentence when the bytes are not a certificate.
pub fn validity(leaf_der: &[u8]) -> Result<(SystemTime, SystemTime), String> {
    validity_of(&*parse_x509(leaf_der)?)
}

fn parse_x509(der: &[u8]) -> Result<X509, String> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(format!(
            "has {} bytes, more than {MAX_CERTIFICATE_BYTES}",
            der.len()
        ));
    }
    let certificate = X509::from_der(der).map_err(|_| "is not an X.509 certificate")?;
    // The fingerprint is over the bytes as they came: there may be only one spelling of them.
    if certificate.to_der().is_ok_and(|canonical| canonical == der) {
        Ok(certificate)
    } else {
        Err("is followed by other bytes or is not canonical DER".into())
    }
}

fn validity_of(certificate: &X509Ref) -> Result<(SystemTime, SystemTime), String> {
    let read = |time| system_time(time).ok_or("has a validity outside the range of this system");
    Ok((
        read(certificate.not_before())?,
        read(certificate.not_after())?,
    ))
}

fn system_time(time: &Asn1TimeRef) -> Option<SystemTime> {
    let since_epoch = Asn1Time::from_unix(0).ok()?.diff(time).ok()?;
    let seconds = i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs);
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    }
}

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
/// `[3]`, constructed: the extensions of a certificate (RFC 5280 §4.1).
const EXTENSIONS: u8 = 0xa3;
/// `[2]`, primitive: a DNS name among general names (RFC 5280 §4.2.1.6).
const DNS_NAME: u8 = 0x82;

const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// The head of a SubjectPublicKeyInfo that holds an uncompressed P-256 point (RFC 5480 §2): the
/// only form in use, so that comparing bytes is all the parsing it needs.
const P256_KEY_INFO: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The parts of a certificate that matter here, as they stand in it.
struct Fields<'a> {
    key_info: &'a [u8],
    alt_names: Option<&'a [u8]>,
    key_usage: Option<&'a [u8]>,
    constraints: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let mut outer = Der(der);
        let mut certificate = Der(outer.expect(SEQUENCE)?);
        outer.end()?;
        let mut body = Der(certificate.expect(SEQUENCE)?);
        // Version, serial number, algorithm, issuer, validity and subject, of which the first is
        // optional but has to be there for a certificate with extensions.
        for tag in [0xa0, 0x02, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE] {
            body.expect(tag)?;
        }
        let mut fields = Self {
            key_info: body.expect(SEQUENCE)?,
            alt_names: None,
            key_usage: None,
            constraints: None,
        };
        while let Some((tag, content)) = body.next() {
            if tag == EXTENSIONS {
                fields.read_extensions(content)?;
            }
        }
        body.end()?;
        Some(fields)
    }

    fn read_extensions(&mut self, content: &'a [u8]) -> Option<()> {
        let mut wrapper = Der(content);
        let mut list = Der(wrapper.expect(SEQUENCE)?);
        wrapper.end()?;
        while let Some((tag, content)) = list.next() {
            let mut extension = (tag == SEQUENCE).then_some(Der(content))?;
            let id = extension.expect(OBJECT_IDENTIFIER)?;
            let (tag, mut value) = extension.next()?;
            if tag == BOOLEAN {
                value = extension.expect(OCTET_STRING)?;
            } else if tag != OCTET_STRING {
                return None;
            }
            extension.end()?;
            let slot = match id {
                SUBJECT_ALT_NAME => &mut self.alt_names,
                EXTENDED_KEY_USAGE => &mut self.key_usage,
                BASIC_CONSTRAINTS => &mut self.constraints,
                _ => continue,
            };
            // Twice the same extension is two meanings (RFC 5280 §4.2).
            if slot.replace(value).is_some() {
                return None;
            }
        }
        list.end()
    }

    fn names(&self) -> Result<(NodeId, ClusterName), String> {
        self.usable_as_node()?;
        let alt_names = self.alt_names.ok_or("has no subject alternative name")?;
        let mut names = Der(alt_names);
        let mut names = Der(names
            .expect(SEQUENCE)
            .ok_or("has malformed alternative names")?);
        let (tag, name) = names.next().ok_or("has no subject alternative name")?;
        if names.next().is_some() {
            return Err("has more than one subject alternative name".into());
        }
        names.end().ok_or("has malformed alternative names")?;
        if tag != DNS_NAME {
            return Err("has an alternative name that is not a DNS name".into());
        }
        split_name(name).ok_or_else(|| {
            let shown: String = String::from_utf8_lossy(name).chars().take(200).collect();
            format!("{shown:?} is not <node>.<cluster>.{NAME_SUFFIX} in lower case")
        })
    }

    fn usable_as_node(&self) -> Result<(), String> {
        if let Some(constraints) = self.constraints {
            let mut value = Der(constraints);
            let mut value = Der(value.expect(SEQUENCE).ok_or("has malformed constraints")?);
            if value.expect(BOOLEAN).is_some_and(|ca| ca != [0]) {
                return Err("is that of an authority, not of a node".into());
            }
        }
        let Some(usage) = self.key_usage else {
            return Ok(());
        };
        let mut list = Der(usage);
        let mut list = Der(list
            .expect(SEQUENCE)
            .ok_or("has a malformed extended key usage")?);
        let (mut server, mut client) = (false, false);
        while let Some((_, purpose)) = list.next() {
            server |= purpose == SERVER_AUTH;
            client |= purpose == CLIENT_AUTH;
        }
        if server && client {
            Ok(())
        } else {
            Err("has an extended key usage without both serverAuth and clientAuth".into())
        }
    }

    fn public_key(&self) -> Result<[u8; PUBLIC_KEY_BYTES], String> {
        self.key_info
            .strip_prefix(P256_KEY_INFO)
            .and_then(|point| point.try_into().ok())
            .ok_or_else(|| "does not hold an uncompressed ECDSA P-256 key".into())
    }
}

fn split_name(name: &[u8]) -> Option<(NodeId, ClusterName)> {
    let mut labels = std::str::from_utf8(name).ok()?.split('.');
    let node = NodeId::new(labels.next()?).ok()?;
    let cluster = ClusterName::new(labels.next()?).ok()?;
    (labels.next() == Some(NAME_SUFFIX) && labels.next().is_none()).then_some((node, cluster))
}

/// A strict reader of DER: one-byte tags, definite and minimal lengths. What does not fit stops
/// it, and [`Der::end`] tells whether everything was read.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => {
                let (&length, rest) = rest.split_first().filter(|(length, _)| **length >= 0x80)?;
                (usize::from(length), rest)
            }
            // Two bytes of length are enough for MAX_CERTIFICATE_BYTES.
            0x82 => {
                let (length, rest) = rest.split_first_chunk::<2>().filter(|(l, _)| l[0] != 0)?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next()
            .and_then(|(tag, content)| (tag == wanted).then_some(content))
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use rcgen::{CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, date_time_ymd};

    use super::*;
    use crate::trust::testing::{Authority, Chance};

    fn refusal(names: &[&str]) -> String {
        certified_names(&Authority::unconstrained().issue(names).der).unwrap_err()
    }

    #[test]
    fn a_certificate_names_one_node_of_one_cluster() {
        let issued = Authority::new().issue(&["n1.test.nodosum"]);
        let (node, cluster) = certified_names(&issued.der).unwrap();
        assert_eq!((node.as_str(), cluster.as_str()), ("n1", "test"));
        let (leaf, _) = Leaf::parse(&issued.der).unwrap();
        assert_eq!(leaf.public_key.as_slice(), issued.key.public_key_raw());
    }

    #[test]
    fn names_that_could_be_read_another_way_are_refused() {
        assert!(refusal(&["n1.test.nodosum", "n2.test.nodosum"]).contains("more than one"));
        assert!(refusal(&["n1.test.nodosum", "127.0.0.1"]).contains("more than one"));
        assert!(refusal(&["127.0.0.1"]).contains("not a DNS name"));
        for name in [
            "*.test.nodosum",
            "n1.*.nodosum",
            "N1.test.nodosum",
            "n1.test.Nodosum",
            "n1.test",
            "n1.test.nodosum.",
            "a.n1.test.nodosum",
            "n1..nodosum",
            "-n1.test.nodosum",
            "n1.test.nodosun",
            "n1.test.nodosum\0",
            "",
        ] {
            assert!(
                refusal(&[name]).contains("is not <node>"),
                "{name:?} was taken"
            );
        }
    }

    #[test]
    fn a_common_name_is_not_a_name() {
        let issued = Authority::unconstrained().issue_with(&[], |params| {
            params
                .distinguished_name
                .push(DnType::CommonName, "n1.test.nodosum");
        });
        assert!(
            certified_names(&issued.der)
                .unwrap_err()
                .contains("no subject alternative")
        );
    }

    #[test]
    fn key_usage_must_allow_both_roles_or_say_nothing() {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let names = |usages: &[ExtendedKeyUsagePurpose]| {
            let issued = Authority::new().issue_with(&["n1.test.nodosum"], |params| {
                params.extended_key_usages = usages.to_vec();
            });
            certified_names(&issued.der)
        };
        assert!(names(&[]).is_ok());
        assert!(names(&[ServerAuth, ClientAuth]).is_ok());
        assert!(names(&[ServerAuth]).unwrap_err().contains("clientAuth"));
        assert!(names(&[ClientAuth]).unwrap_err().contains("serverAuth"));
    }

    #[test]
    fn an_authority_is_not_a_node() {
        let certified = |is_ca| {
            let change = |params: &mut rcgen::CertificateParams| params.is_ca = is_ca;
            certified_names(
                &Authority::new()
                    .issue_with(&["n1.test.nodosum"], change)
                    .der,
            )
        };
        assert!(certified(IsCa::ExplicitNoCa).is_ok());
        let authority = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        assert!(certified(authority).unwrap_err().contains("authority"));
    }

    #[test]
    fn large_and_padded_certificates_are_refused() {
        let large = Authority::new().issue_with(&["n1.test.nodosum"], |params| {
            let padding = vec![0; MAX_CERTIFICATE_BYTES];
            params.custom_extensions = vec![CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 4, 1, 99_999, 1],
                padding,
            )];
        });
        assert!(
            certified_names(&large.der)
                .unwrap_err()
                .contains("bytes, more than")
        );
        let mut padded = Authority::new().issue(&["n1.test.nodosum"]).der;
        padded.push(0);
        assert!(
            certified_names(&padded)
                .unwrap_err()
                .contains("other bytes")
        );
    }

    #[test]
    fn validity_reads_both_forms_of_time() {
        let issued = Authority::new().issue_with(&["n1.test.nodosum"], |params| {
            params.not_before = date_time_ymd(1969, 12, 31);
            params.not_after = date_time_ymd(2_100, 1, 1);
        });
        let day = Duration::from_secs(86_400);
        let (not_before, not_after) = validity(&issued.der).unwrap();
        assert_eq!(not_before, UNIX_EPOCH - day);
        assert_eq!(not_after, UNIX_EPOCH + day * 47_482);
    }

    #[test]
    fn random_and_damaged_certificates_never_panic() {
        let good = Authority::new().issue(&["n1.test.nodosum"]).der;
        let mut chance = Chance::new(1);
        for _ in 0..100_000 {
            let bytes = chance.mutate(&good);
            // The reader of fields must not lean on BoringSSL having looked first.
            let _ = Fields::read(&bytes).map(|fields| (fields.names(), fields.public_key()));
            let _ = certified_names(&bytes);
        }
    }
}
