//! Certificates for those who do not have their own way to them: one authority, P-256, a
//! certificate for each end.

use std::{fs, io, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

/// The name in both certificates.
pub(crate) const NAME: &str = "peers.test";
pub(crate) const ALPN: &[u8] = b"peers";

/// Writes `ca.pem`, `end.pem` and `end.key` into `dir`.
pub(crate) fn make(dir: &Path) -> io::Result<()> {
    let other = |error: rcgen::Error| io::Error::other(error.to_string());
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "peers authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().map_err(other)?;
    let authority = params.self_signed(&key).map_err(other)?;
    let issuer = Issuer::from_params(&params, &key);

    let mut params = CertificateParams::new([NAME.to_owned()]).map_err(other)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let end_key = KeyPair::generate().map_err(other)?;
    let end = params.signed_by(&end_key, &issuer).map_err(other)?;
    fs::write(dir.join("ca.pem"), authority.pem())?;
    fs::write(dir.join("end.pem"), end.pem())?;
    fs::write(dir.join("end.key"), end_key.serialize_pem())
}

/// rustls as all its users here have it: TLS 1.3, AES-128-GCM, X25519, no resumption, both ends
/// judged.
pub(crate) struct Rustls {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Rustls {
    pub(crate) fn read(dir: &Path, mut provider: CryptoProvider) -> io::Result<Self> {
        let other = |error: rustls::pki_types::pem::Error| io::Error::other(error.to_string());
        provider
            .cipher_suites
            .retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        provider
            .kx_groups
            .retain(|group| group.name() == rustls::NamedGroup::X25519);
        if provider.cipher_suites.is_empty() || provider.kx_groups.is_empty() {
            return Err(io::Error::other("no AES-128-GCM or no X25519 to choose"));
        }
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(dir.join("ca.pem")).map_err(other)?;
        roots.add(authority).map_err(io::Error::other)?;
        let chain = CertificateDer::from_pem_file(dir.join("end.pem")).map_err(other)?;
        Ok(Self {
            provider: Arc::new(provider),
            roots: Arc::new(roots),
            chain: vec![chain],
            key: PrivateKeyDer::from_pem_file(dir.join("end.key")).map_err(other)?,
        })
    }

    pub(crate) fn server(&self) -> Result<ServerConfig, rustls::Error> {
        let roots = Arc::clone(&self.roots);
        let judge = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(judge)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    pub(crate) fn client(&self) -> Result<ClientConfig, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("the name is a DNS name")
}
