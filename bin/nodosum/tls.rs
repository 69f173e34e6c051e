//! `nodosum tls`: certificates.
//!
//! A directory with `ca.pem` and `ca.key` is an authority; one with `ca.pem`, `node.pem` and
//! `node.key` is what `--tls-dir` takes. Keys are written 0600, and nothing is ever overwritten: a
//! key that is gone is gone for good.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use nodosum::{
    ClusterName, NodeId,
    ca::{Authority, CaError},
};
use serde::Serialize;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    },
    pem::Pem,
    x509::SubjectPublicKeyInfo,
};

use crate::{
    args::{Ca, CaCreate, Cert, CertCreate, DemoFormat, Inspect, Tls},
    exit::{Exit, Failure},
    output::{clean, duration, json_line, note, print},
};

/// The largest file that is read as PEM: hundreds of certificates.
const MAX_PEM_BYTES: u64 = 1024 * 1024;

/// What every certified name ends with.
const NAME_SUFFIX: &str = ".nodosum";

pub(crate) fn run(args: &Tls) -> Result<Exit, Failure> {
    match args {
        Tls::Ca(Ca::Create(args)) => create_authority(args),
        Tls::Cert(Cert::Create(args)) => create_certificate(args),
        Tls::Inspect(args) => inspect(args),
    }
}

fn create_authority(args: &CaCreate) -> Result<Exit, Failure> {
    let authority = Authority::new(&args.cluster, args.valid_for).map_err(ca_failure)?;
    let files = [
        NewFile {
            name: "ca.key",
            text: &authority.key_pem(),
            mode: 0o600,
        },
        NewFile {
            name: "ca.pem",
            text: &authority.certificate_pem(),
            mode: 0o644,
        },
    ];
    write_new(&args.out, &files)?;
    let out = clean(&args.out.display().to_string());
    print(&format!("{out}/ca.pem\n{out}/ca.key\n"))?;
    note(&format!(
        "hint: next 'nodosum tls cert create --ca {out} --node n1 --out n1'"
    ));
    Ok(Exit::Done)
}

fn create_certificate(args: &CertCreate) -> Result<Exit, Failure> {
    let key = args.ca.join("ca.key");
    refuse_readable(&key)?;
    let authority = Authority::from_pem(&read(&args.ca.join("ca.pem"))?, &read(&key)?)
        .map_err(|error| Failure::configuration(format!("{}: {error}", args.ca.display())))?;
    agree(args.cluster.as_ref(), authority.cluster())?;
    write_identity(&authority, &args.node, args.valid_for, &args.out)?;
    let out = clean(&args.out.display().to_string());
    print(&format!("{out}/ca.pem\n{out}/node.pem\n{out}/node.key\n"))?;
    note(&format!("hint: next 'nodosum run --tls-dir {out}'"));
    Ok(Exit::Done)
}

/// Issues a certificate to `node` and makes `dir` a directory to run it from.
pub(crate) fn write_identity(
    authority: &Authority,
    node: &NodeId,
    valid_for: Duration,
    dir: &Path,
) -> Result<(), Failure> {
    let issued = authority.issue(node, valid_for).map_err(ca_failure)?;
    write_new(
        dir,
        &[
            NewFile {
                name: "node.key",
                text: &issued.key_pem,
                mode: 0o600,
            },
            NewFile {
                name: "node.pem",
                text: &issued.certificate_pem,
                mode: 0o644,
            },
            NewFile {
                name: "ca.pem",
                text: &authority.certificate_pem(),
                mode: 0o644,
            },
        ],
    )
}

fn ca_failure(error: CaError) -> Failure {
    let exit = match error {
        CaError::Validity(_) => Exit::Usage,
        CaError::Malformed { .. } | CaError::NotAnAuthority(_) => Exit::Configuration,
        // The enum is open: whatever comes, nothing was made.
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

fn agree(asked: Option<&ClusterName>, certified: &ClusterName) -> Result<(), Failure> {
    match asked {
        Some(asked) if asked != certified => Err(Failure::configuration(format!(
            "--cluster is {asked}, but the authority serves {certified}"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// The rule that nodes follow for their own keys holds for the key above all keys.
fn refuse_readable(key: &Path) -> Result<(), Failure> {
    let found = fs::metadata(key).map_err(|error| cannot_read(key, &error))?;
    let mode = found.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let key = key.display();
    Err(
        Failure::configuration(format!("key {key} can be read by others (mode {mode:04o})"))
            .hint(format!("chmod 600 {key}")),
    )
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    Failure::configuration(format!("cannot read {}: {error}", path.display()))
}

fn read(path: &Path) -> Result<String, Failure> {
    let length = fs::metadata(path)
        .map_err(|error| cannot_read(path, &error))?
        .len();
    if length > MAX_PEM_BYTES {
        return Err(Failure::configuration(format!(
            "{} is too large for PEM",
            path.display()
        )));
    }
    fs::read_to_string(path).map_err(|error| cannot_read(path, &error))
}

struct NewFile<'a> {
    name: &'a str,
    text: &'a str,
    mode: u32,
}

/// Writes files that must not exist yet. If one of them does, none is written.
fn write_new(dir: &Path, files: &[NewFile<'_>]) -> Result<(), Failure> {
    let failed = |path: &Path, error: &std::io::Error| {
        Failure::failed(format!("cannot write {}: {error}", path.display()))
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| failed(dir, &error))?;
    if let Some(file) = files.iter().find(|file| dir.join(file.name).exists()) {
        return Err(exists(&dir.join(file.name)));
    }
    for file in files {
        let path = dir.join(file.name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(file.mode)
            .open(&path)
            .and_then(|mut opened| {
                opened.write_all(file.text.as_bytes())?;
                opened.sync_all()
            })
            .map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => exists(&path),
                _ => failed(&path, &error),
            })?;
    }
    Ok(())
}

fn exists(path: &Path) -> Failure {
    Failure::failed(format!(
        "{} exists, and nothing is overwritten",
        path.display()
    ))
    .hint("choose another --out DIR, or move the old one away")
}

/// The object of `tls inspect -o json`.
#[derive(Debug, Serialize)]
struct InspectView {
    schema: u32,
    file: String,
    certificates: Vec<CertificateView>,
}

#[derive(Debug, PartialEq, Serialize)]
struct CertificateView {
    subject: String,
    /// Of a node's certificate: its names.
    node: Option<String>,
    cluster: Option<String>,
    names: Vec<String>,
    issuer: String,
    not_before: String,
    not_after: String,
    /// Until the end of its validity; negative after it.
    remaining_seconds: i64,
    valid_now: bool,
    ca: bool,
    /// Of an authority: the names it may issue certificates for.
    permitted_names: Vec<String>,
    key_type: String,
    fingerprint_sha256: String,
}

fn inspect(args: &Inspect) -> Result<Exit, Failure> {
    let text = read(&args.file)?;
    let certificates = certificates(&text, Timestamp::now())
        .map_err(|why| Failure::configuration(format!("{}: {why}", args.file.display())))?;
    match args.output {
        DemoFormat::Json => {
            let file = args.file.display().to_string();
            print(&json_line(&InspectView {
                schema: 1,
                file,
                certificates,
            })?)?;
        }
        DemoFormat::Text => {
            let pages: Vec<_> = certificates.iter().map(page).collect();
            print(&pages.join("\n"))?;
        }
    }
    Ok(Exit::Done)
}

/// Reads every certificate in a PEM file. Keys and other sections beside them are passed over.
fn certificates(text: &str, now: Timestamp) -> Result<Vec<CertificateView>, String> {
    let mut views = Vec::new();
    let mut others = Vec::new();
    for section in Pem::iter_from_buffer(text.as_bytes()) {
        let section = section.map_err(|error| format!("not PEM: {error}"))?;
        if section.label != "CERTIFICATE" {
            others.push(section.label);
            continue;
        }
        let certificate = section
            .parse_x509()
            .map_err(|error| format!("not a certificate: {error}"))?;
        views.push(describe(&certificate, &section.contents, now)?);
    }
    if !views.is_empty() {
        return Ok(views);
    }
    Err(match others.first() {
        Some(label) => format!("has no certificate, but: {}", clean(label)),
        None => "has no certificate".to_owned(),
    })
}

fn describe(
    certificate: &X509Certificate<'_>,
    der: &[u8],
    now: Timestamp,
) -> Result<CertificateView, String> {
    let time = |seconds| {
        Timestamp::from_second(seconds).map_err(|error| format!("time of validity: {error}"))
    };
    let validity = certificate.validity();
    let (not_before, not_after) = (
        time(validity.not_before.timestamp())?,
        time(validity.not_after.timestamp())?,
    );
    let names = names(certificate)?;
    let (node, cluster) = match names.as_slice() {
        [name] if !certificate.is_ca() => split(name).unzip(),
        _ => (None, None),
    };
    let fingerprint = ring::digest::digest(&ring::digest::SHA256, der);
    Ok(CertificateView {
        subject: certificate.subject().to_string(),
        node,
        cluster,
        names,
        issuer: certificate.issuer().to_string(),
        not_before: not_before.to_string(),
        not_after: not_after.to_string(),
        remaining_seconds: not_after.as_second() - now.as_second(),
        valid_now: (not_before..=not_after).contains(&now),
        ca: certificate.is_ca(),
        permitted_names: permitted_names(certificate)?,
        key_type: key_type(certificate.public_key()),
        fingerprint_sha256: fingerprint
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    })
}

fn names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|error| format!("alternative names: {error}"))?;
    Ok(extension.map_or_else(Vec::new, |extension| {
        extension
            .value
            .general_names
            .iter()
            .map(general_name)
            .collect()
    }))
}

fn permitted_names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let extension = certificate
        .name_constraints()
        .map_err(|error| format!("name constraints: {error}"))?;
    let permitted = extension.and_then(|extension| extension.value.permitted_subtrees.as_ref());
    Ok(permitted.map_or_else(Vec::new, |subtrees| {
        subtrees
            .iter()
            .map(|subtree| general_name(&subtree.base))
            .collect()
    }))
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        other => other.to_string(),
    }
}

/// Splits `<node>.<cluster>.nodosum`.
fn split(name: &str) -> Option<(String, String)> {
    let (node, cluster) = name.strip_suffix(NAME_SUFFIX)?.split_once('.')?;
    let (node, cluster) = (NodeId::new(node).ok()?, ClusterName::new(cluster).ok()?);
    Some((node.to_string(), cluster.to_string()))
}

fn key_type(key: &SubjectPublicKeyInfo<'_>) -> String {
    let algorithm = &key.algorithm;
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm
            .parameters
            .as_ref()
            .and_then(|curve| curve.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 => "ECDSA P-256".to_owned(),
            Some(curve) => format!("ECDSA {curve}"),
            None => "ECDSA".to_owned(),
        };
    }
    if algorithm.algorithm == OID_SIG_ED25519 {
        return "Ed25519".to_owned();
    }
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        return "RSA".to_owned();
    }
    algorithm.algorithm.to_string()
}

fn page(view: &CertificateView) -> String {
    let validity = match (view.valid_now, view.remaining_seconds) {
        (true, left) => format!("{} left", lasting(left)),
        (false, gone) if gone < 0 => format!("expired {} ago", lasting(-gone)),
        (false, _) => "not valid yet".to_owned(),
    };
    let or_none = |names: &[String]| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let mut lines = vec![("subject", view.subject.clone())];
    if let (Some(node), Some(cluster)) = (&view.node, &view.cluster) {
        lines.push(("node", node.clone()));
        lines.push(("cluster", cluster.clone()));
    }
    lines.push((
        "kind",
        if view.ca { "authority" } else { "leaf" }.to_owned(),
    ));
    if view.ca {
        lines.push(("may issue for", or_none(&view.permitted_names)));
    } else {
        lines.push(("names", or_none(&view.names)));
    }
    lines.extend([
        ("issuer", view.issuer.clone()),
        ("not before", view.not_before.clone()),
        ("not after", format!("{} ({validity})", view.not_after)),
        ("key", view.key_type.clone()),
        ("sha-256", view.fingerprint_sha256.clone()),
    ]);
    lines
        .iter()
        .map(|(name, value)| format!("{name:<15}{}\n", clean(value)))
        .collect()
}

/// Days where there are some, because validity is planned in days.
fn lasting(seconds: i64) -> String {
    match seconds / 86_400 {
        0 => duration(Duration::from_secs(seconds.unsigned_abs())),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(days: u64) -> Duration {
        Duration::from_secs(days * 86_400)
    }

    #[test]
    fn an_authority_and_its_leaf_are_described_as_what_they_are() {
        let cluster: ClusterName = "prod".parse().unwrap();
        let authority = Authority::new(&cluster, day(100)).unwrap();
        let issued = authority.issue(&"n1".parse().unwrap(), day(90)).unwrap();
        let both = format!(
            "{}{}{}",
            issued.key_pem,
            issued.certificate_pem,
            authority.certificate_pem()
        );
        let views = certificates(&both, Timestamp::now()).unwrap();
        let [leaf, ca] = views.as_slice() else {
            panic!("{views:?}")
        };
        assert_eq!(
            (leaf.node.as_deref(), leaf.cluster.as_deref()),
            (Some("n1"), Some("prod"))
        );
        assert_eq!(leaf.names, ["n1.prod.nodosum"]);
        assert!(leaf.valid_now && !leaf.ca && leaf.remaining_seconds > 89 * 86_400);
        assert_eq!(
            (leaf.key_type.as_str(), leaf.fingerprint_sha256.len()),
            ("ECDSA P-256", 64)
        );
        assert!(ca.ca && ca.node.is_none());
        assert_eq!(ca.permitted_names, ["prod.nodosum"]);
        assert!(page(leaf).contains("days left)"), "{}", page(leaf));
        assert!(
            page(ca).contains("may issue for  prod.nodosum"),
            "{}",
            page(ca)
        );
    }

    #[test]
    fn a_file_without_a_certificate_says_what_it_has_instead() {
        let cluster: ClusterName = "prod".parse().unwrap();
        let key = Authority::new(&cluster, day(1)).unwrap().key_pem();
        assert_eq!(
            certificates(&key, Timestamp::now()).unwrap_err(),
            "has no certificate, but: PRIVATE KEY"
        );
        assert_eq!(
            certificates("", Timestamp::now()).unwrap_err(),
            "has no certificate"
        );
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(certificates(broken, Timestamp::now()).is_err());
    }

    #[test]
    fn only_the_exact_form_is_a_nodes_name() {
        assert_eq!(split("n1.prod.nodosum"), Some(("n1".into(), "prod".into())));
        for name in [
            "n1.nodosum",
            "a.n1.prod.nodosum",
            "n1.prod.example",
            "N1.prod.nodosum",
        ] {
            assert_eq!(split(name), None, "{name}");
        }
    }

    #[test]
    fn an_expired_certificate_says_since_when() {
        let cluster: ClusterName = "prod".parse().unwrap();
        let pem = Authority::new(&cluster, day(10)).unwrap().certificate_pem();
        let later = Timestamp::now() + jiff::SignedDuration::from_hours(24 * 13);
        let views = certificates(&pem, later).unwrap();
        assert!(!views[0].valid_now);
        assert!(
            page(&views[0]).contains("(expired 3 days ago)"),
            "{}",
            page(&views[0])
        );
    }
}
