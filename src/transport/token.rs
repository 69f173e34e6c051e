//! Tokens that the listener hands out so that it need remember nothing: Retry and stateless reset.
//!
//! A Retry token proves that whoever shows it received a datagram at the address it sends from
//! (RFC 9000 §8.1.2). It is an AEAD box around the original destination id and an expiry, bound to
//! the address. A reset token (RFC 9000 §10.3) is derived from a connection id with a key that is
//! itself derived from the node's private key, so that a restarted node can end the connections of
//! its former life.

use std::{net::SocketAddr, time::Duration};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use crate::record::encode_addr;

/// Length of the connection ids we choose.
pub(crate) const ID_BYTES: usize = 16;

/// How long a Retry token is good for.
pub(crate) const RETRY_LIFETIME: Duration = Duration::from_secs(10);

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenError {
    /// Not ours, not for this address, or tampered with.
    Forged,
    /// Older than [`RETRY_LIFETIME`].
    Expired,
}

/// The connection ids that a Retry binds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetryIds {
    /// The one we chose in the Retry; the client must use it.
    pub(crate) scid: [u8; ID_BYTES],
    /// The one the client made up for its first Initial.
    pub(crate) odcid: Vec<u8>,
}

/// Seals and opens Retry tokens. The key lives in memory only: a restart forgets it, and the
/// dialler starts afresh.
pub(crate) struct RetryTokens {
    key: LessSafeKey,
    random: SystemRandom,
}

impl RetryTokens {
    /// A key of its own. `None` when the system has no randomness.
    pub(crate) fn new() -> Option<Self> {
        let random = SystemRandom::new();
        let mut secret = [0; 32];
        random.fill(&mut secret).ok()?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret).ok()?);
        Some(Self { key, random })
    }

    /// A token for `addr`. `age` is the time since some fixed instant of this process.
    pub(crate) fn seal(&self, addr: SocketAddr, ids: &RetryIds, age: Duration) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let expires = u64::try_from((age + RETRY_LIFETIME).as_millis()).ok()?;
        let mut sealed = expires.to_be_bytes().to_vec();
        sealed.extend_from_slice(&ids.scid);
        sealed.extend_from_slice(&ids.odcid);
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(encode_addr(addr)),
                &mut sealed,
            )
            .ok()?;
        let mut token = nonce.to_vec();
        token.extend(sealed);
        Some(token)
    }

    /// The ids inside a token shown from `addr`.
    pub(crate) fn open(
        &self,
        addr: SocketAddr,
        token: &[u8],
        age: Duration,
    ) -> Result<RetryIds, TokenError> {
        let (nonce, sealed) = token.split_first_chunk().ok_or(TokenError::Forged)?;
        let mut sealed = sealed.to_vec();
        let plain = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(encode_addr(addr)),
                &mut sealed,
            )
            .map_err(|_| TokenError::Forged)?;
        let (expires, ids) = plain.split_first_chunk::<8>().ok_or(TokenError::Forged)?;
        let (scid, odcid) = ids.split_first_chunk().ok_or(TokenError::Forged)?;
        if age > Duration::from_millis(u64::from_be_bytes(*expires)) {
            return Err(TokenError::Expired);
        }
        Ok(RetryIds {
            scid: *scid,
            odcid: odcid.to_vec(),
        })
    }
}

/// Derives stateless reset tokens.
pub(crate) struct ResetTokens(hmac::Key);

impl ResetTokens {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The token of a connection id.
    pub(crate) fn token(&self, id: &[u8]) -> u128 {
        let tag = hmac::sign(&self.0, id);
        let mut token = [0; 16];
        token.copy_from_slice(&tag.as_ref()[..16]);
        u128::from_be_bytes(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_token_is_good_for_its_address_and_its_time_only() {
        let tokens = RetryTokens::new().unwrap();
        let addr: SocketAddr = "192.0.2.1:5000".parse().unwrap();
        let now = Duration::from_secs(100);
        let ids = RetryIds {
            scid: [7; ID_BYTES],
            odcid: b"original".to_vec(),
        };
        let token = tokens.seal(addr, &ids, now).unwrap();
        assert_eq!(tokens.open(addr, &token, now), Ok(ids));
        let late = now + RETRY_LIFETIME + Duration::from_millis(1);
        assert_eq!(tokens.open(addr, &token, late), Err(TokenError::Expired));
        let other_port = "192.0.2.1:5001".parse().unwrap();
        assert_eq!(
            tokens.open(other_port, &token, now),
            Err(TokenError::Forged)
        );
        for at in 0..token.len() {
            let mut forged = token.clone();
            forged[at] ^= 1;
            assert_eq!(tokens.open(addr, &forged, now), Err(TokenError::Forged));
        }
        assert_eq!(tokens.open(addr, b"short", now), Err(TokenError::Forged));
    }

    #[test]
    fn reset_tokens_survive_a_restart_and_differ_by_connection_and_node() {
        let tokens = ResetTokens::new(&[1; 32]);
        assert_eq!(tokens.token(b"a"), ResetTokens::new(&[1; 32]).token(b"a"));
        assert_ne!(tokens.token(b"a"), tokens.token(b"b"));
        assert_ne!(tokens.token(b"a"), ResetTokens::new(&[2; 32]).token(b"a"));
    }
}
