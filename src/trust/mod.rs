//! Trust: who somebody is, what they signed, and which keys seal the gossip.
//!
//! Pure but for [`Identity`], which can read files: no clock, no thread, no socket. Bytes from
//! the network come in here as they are and leave as checked types; nothing else in the library
//! verifies a signature, opens a datagram or reads a certificate.

mod certificates;
pub mod identity;
mod keyring;
mod leaf;
mod seal;
#[cfg(test)]
#[cfg(feature = "ca")]
pub(crate) mod testing;
mod verifier;

pub use crate::node_id::KeyId;
pub use certificates::{Certificate, CertificateError, Certificates, MAX_CERTIFICATES};
pub use identity::{Identity, SignError};
pub use keyring::{
    GroupKey, Keyring, KeyringError, KeyringOffer, MAX_KEYRING_BYTES, MAX_KEYS, Merged,
};
pub use leaf::{MAX_CERTIFICATE_BYTES, certified_names, validity};
pub use seal::{Header, MAX_OVERHEAD, OpenError, Opener, Sealer, overhead};
pub use verifier::{MAX_SIGNATURE_BYTES, MAX_WAITING, Refusal, Verdict, Verifier};

/// The most members a cluster may have; every table by node is bounded by it.
const MAX_MEMBERS: usize = 16_384;

/// Overwrites a secret that is about to be freed. The compiler may not skip it, since the bytes
/// are shown to it as used; copies the system made (swap, a core dump) are out of reach.
fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    std::hint::black_box(secret);
}
