//! Trust: who somebody is, what they signed, and which keys seal the gossip.
//!
//! Pure but for [`Identity`], which can read files: no clock, no thread, no socket. Bytes from
//! the network come in here as they are and leave as checked types; nothing else in the library
//! verifies a signature, opens a datagram or reads a certificate.

pub mod identity;
mod leaf;

pub use identity::{Identity, SignError};
pub use leaf::{MAX_CERTIFICATE_BYTES, certified_names, validity};

/// Overwrites a secret that is about to be freed. The compiler may not skip it, since the bytes
/// are shown to it as used; copies the system made (swap, a core dump) are out of reach.
fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    std::hint::black_box(secret);
}
