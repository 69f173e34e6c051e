//! The names of things: node ids, cluster names, boot ids and key ids.
//!
//! A node id and a cluster name are each one lower-case DNS label, so that the certificate name
//! `<node>.<cluster>.nodosum` reads one way only.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// The longest label DNS allows (RFC 1035 §2.3.4), in bytes.
pub(crate) const MAX_LABEL_BYTES: usize = 63;

/// The last label of every certificate name: `<node>.<cluster>.nodosum`.
pub(crate) const NAME_SUFFIX: &str = "nodosum";

/// Why a string is not a node id or a cluster name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a name: 1 to 63 of a-z, 0-9 and '-', no '-' at either end")]
pub struct InvalidName {
    /// The refused string, cut to 80 characters.
    pub name: String,
}

fn label(name: &str) -> Result<Arc<str>, InvalidName> {
    let bytes = name.as_bytes();
    let well_formed = (1..=MAX_LABEL_BYTES).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-');
    if well_formed {
        Ok(Arc::from(name))
    } else {
        Err(InvalidName {
            name: name.chars().take(80).collect(),
        })
    }
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// One lower-case DNS label: 1 to 63 of `a-z`, `0-9` and `-`, no `-` at either end.
        /// Cloning is cheap.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the form of `name` and takes it.
            ///
            /// # Errors
            ///
            /// [`InvalidName`] when `name` is not one lower-case DNS label.
            pub fn new(name: &str) -> Result<Self, InvalidName> {
                label(name).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidName;

            fn try_from(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

label_type! {
    /// The name of a node, unique in its cluster and proven by its certificate.
    NodeId
}

label_type! {
    /// The name of a cluster. Nodes of different clusters never talk to each other.
    ClusterName
}

/// 128 random bits drawn when a node starts. It tells a restart from the same process; it has no
/// meaningful order (the `Ord` here only makes it usable as a key).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// Reads a boot id from exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for BootId {
    /// The first four bytes in hexadecimal: enough to tell two lives of a node apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A name for a gossip key that gives nothing away of it: the first bytes of a hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

/// Not 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a gossip key: 16 hexadecimal digits")]
pub struct InvalidKeyId;

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).map_err(|_| InvalidKeyId)?;
        is_hex
            .then(|| Self(number.to_be_bytes()))
            .ok_or(InvalidKeyId)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A connection of this process, from dial or first datagram to its end. Never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_lower_case_dns_label() {
        for good in ["n", "n1", "db-7", "0", &"x".repeat(63)] {
            assert_eq!(NodeId::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "N1",
            "-a",
            "a-",
            "a.b",
            "a_b",
            "ä",
            "a b",
            "a\n",
            &"x".repeat(64),
        ] {
            assert!(NodeId::new(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_key_id_reads_as_it_is_shown() {
        let id = KeyId([0, 1, 0x2a, 3, 4, 5, 6, 0xff]);
        assert_eq!(id.to_string(), "00012a03040506ff");
        assert_eq!("00012a03040506ff".parse(), Ok(id));
        for bad in [
            "",
            "+0012a03040506ff",
            "00012a03040506f",
            "00012a03040506fff",
            "x",
        ] {
            assert_eq!(bad.parse::<KeyId>(), Err(InvalidKeyId), "{bad}");
        }
    }

    #[test]
    fn the_refusal_of_a_huge_name_stays_short() {
        let error = NodeId::new(&"y".repeat(1_000_000)).unwrap_err();
        assert_eq!(error.name.len(), 80);
    }
}
