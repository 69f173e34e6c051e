//! A member's record: what a node says of itself, signed with the key of its certificate.
//!
//! Everything a cluster knows of a node that is not an observation (alive, suspect, dead) stands
//! in its record, and only the node itself can make one. This file has the content and its
//! encoding; `trust` signs and verifies. Encoding is protobuf, so that unknown fields of newer
//! versions are carried and verified, though not understood.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use prost::Message as _;

use crate::node_id::{BootId, ClusterName, NodeId};

/// The most bytes that a node's tags may take, counted as the sum of their keys and values plus
/// six for each tag, which is what it costs on the wire. It lets a record travel in one datagram
/// of 1,200 bytes.
pub const MAX_TAG_BYTES: usize = 512;

/// What a tag costs beside its key and value: a map entry's two tags and three lengths, and one
/// byte for a longer length.
const TAG_OVERHEAD_BYTES: usize = 6;

/// The largest encoded record that is accepted: names, addresses and tags at their limits, with
/// room for fields to come.
pub const MAX_RECORD_BYTES: usize = 900;

/// The longest signature that is read, of a record or a statement: ECDSA P-256 in DER takes at most
/// 72 bytes.
pub const MAX_SIGNATURE_BYTES: usize = 128;

/// The protocol versions this build speaks, lowest and highest.
pub const PROTOCOL_VERSIONS: (u32, u32) = (1, 1);

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The cluster the node belongs to.
    pub cluster: ClusterName,
    /// The node's name.
    pub node: NodeId,
    /// The version of this claim: of two records of a node, the higher incarnation holds.
    pub incarnation: u64,
    /// Which life of the node speaks.
    pub boot: BootId,
    /// Where the node accepts QUIC connections.
    pub quic_addr: SocketAddr,
    /// Where the node receives gossip datagrams.
    pub gossip_addr: SocketAddr,
    /// Free labels, at most [`MAX_TAG_BYTES`].
    pub tags: BTreeMap<String, String>,
    /// The node has left and says so itself.
    pub left: bool,
    /// The lowest and highest protocol version the node speaks.
    pub protocol: (u32, u32),
    /// The node's software version, for people.
    pub version: String,
    /// SHA-256 of the node's leaf certificate in DER.
    pub certificate: [u8; 32],
}

/// A record as it travels: the encoded content and a signature over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRecord {
    /// An encoded [`Record`].
    pub payload: Arc<[u8]>,
    /// An ECDSA P-256 signature (ASN.1 DER) over the context string and the payload.
    pub signature: Arc<[u8]>,
}

/// A record whose signature was verified against the certificate it names, together with the
/// bytes to pass on. `trust` makes these; the cores only ever see verified ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRecord {
    /// The content.
    pub record: Record,
    /// The same, as signed.
    pub signed: SignedRecord,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Larger than [`MAX_RECORD_BYTES`].
    #[error("record of {0} bytes is larger than {MAX_RECORD_BYTES}")]
    TooLarge(usize),
    /// Not protobuf.
    #[error("record is not well-formed protobuf")]
    Malformed,
    /// A field is missing or outside its limits.
    #[error("record field {0:?} is missing or outside its limits")]
    Field(&'static str),
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecordWire {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    node: String,
    #[prost(uint64, tag = "3")]
    incarnation: u64,
    #[prost(bytes = "vec", tag = "4")]
    boot: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    quic_addr: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    gossip_addr: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "7")]
    tags: BTreeMap<String, String>,
    #[prost(bool, tag = "8")]
    left: bool,
    #[prost(uint32, tag = "9")]
    protocol_min: u32,
    #[prost(uint32, tag = "10")]
    protocol_max: u32,
    #[prost(string, tag = "11")]
    version: String,
    #[prost(bytes = "vec", tag = "12")]
    certificate: Vec<u8>,
}

impl Record {
    /// The record's protobuf encoding, the bytes that are signed.
    pub fn encode(&self) -> Vec<u8> {
        RecordWire {
            cluster: self.cluster.to_string(),
            node: self.node.to_string(),
            incarnation: self.incarnation,
            boot: self.boot.0.to_vec(),
            quic_addr: encode_addr(self.quic_addr),
            gossip_addr: encode_addr(self.gossip_addr),
            tags: self.tags.clone(),
            left: self.left,
            protocol_min: self.protocol.0,
            protocol_max: self.protocol.1,
            version: self.version.clone(),
            certificate: self.certificate.to_vec(),
        }
        .encode_to_vec()
    }

    /// Reads a record and checks every field against its limits. The signature is not looked at.
    ///
    /// # Errors
    ///
    /// [`RecordError`] says what is wrong; bytes from the network never panic here and never
    /// allocate more than they are.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(RecordError::TooLarge(bytes.len()));
        }
        let wire = RecordWire::decode(bytes).map_err(|_| RecordError::Malformed)?;
        if tag_bytes(&wire.tags) > MAX_TAG_BYTES {
            return Err(RecordError::Field("tags"));
        }
        if wire.version.len() > 32 {
            return Err(RecordError::Field("version"));
        }
        if wire.protocol_min == 0 || wire.protocol_min > wire.protocol_max {
            return Err(RecordError::Field("protocol"));
        }
        Ok(Self {
            cluster: wire
                .cluster
                .parse()
                .map_err(|_| RecordError::Field("cluster"))?,
            node: wire.node.parse().map_err(|_| RecordError::Field("node"))?,
            incarnation: wire.incarnation,
            boot: BootId::from_slice(&wire.boot).ok_or(RecordError::Field("boot"))?,
            quic_addr: decode_addr(&wire.quic_addr).ok_or(RecordError::Field("quic_addr"))?,
            gossip_addr: decode_addr(&wire.gossip_addr).ok_or(RecordError::Field("gossip_addr"))?,
            tags: wire.tags,
            left: wire.left,
            protocol: (wire.protocol_min, wire.protocol_max),
            version: wire.version,
            certificate: wire
                .certificate
                .try_into()
                .map_err(|_| RecordError::Field("certificate"))?,
        })
    }
}

/// How many of [`MAX_TAG_BYTES`] these tags take.
pub fn tag_bytes(tags: &BTreeMap<String, String>) -> usize {
    tags.iter()
        .map(|(key, value)| key.len() + value.len() + TAG_OVERHEAD_BYTES)
        .sum()
}

/// An address as 4 or 16 bytes of IP and 2 of port, in network order.
pub fn encode_addr(addr: SocketAddr) -> Vec<u8> {
    let mut bytes = match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend_from_slice(&addr.port().to_be_bytes());
    bytes
}

/// Reads what [`encode_addr`] wrote; port 0 and an unspecified IP are not addresses to send to.
pub fn decode_addr(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip: IpAddr = match ip.len() {
        4 => <[u8; 4]>::try_from(ip).ok()?.into(),
        16 => <[u8; 16]>::try_from(ip).ok()?.into(),
        _ => return None,
    };
    let port = u16::from_be_bytes(*port);
    (port != 0 && !ip.is_unspecified()).then(|| SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn largest() -> Record {
        Record {
            cluster: "c".repeat(63).parse().unwrap(),
            node: "n".repeat(63).parse().unwrap(),
            incarnation: u64::MAX,
            boot: BootId([7; 16]),
            quic_addr: "[2001:db8::1]:65535".parse().unwrap(),
            gossip_addr: "[2001:db8::1]:65534".parse().unwrap(),
            tags: (0..32)
                .map(|i| (format!("key-{i:02}"), "v".repeat(4)))
                .collect(),
            left: true,
            protocol: (1, u32::MAX),
            version: "1".repeat(32),
            certificate: [9; 32],
        }
    }

    #[test]
    fn the_largest_record_fits_its_limit_and_survives_the_wire() {
        let record = largest();
        assert_eq!(tag_bytes(&record.tags), MAX_TAG_BYTES);
        let bytes = record.encode();
        assert!(bytes.len() <= MAX_RECORD_BYTES, "{} bytes", bytes.len());
        assert_eq!(Record::decode(&bytes).unwrap(), record);
    }

    #[test]
    fn fields_outside_their_limits_are_named() {
        let mut record = largest();
        record.tags.insert("one".into(), "more".into());
        assert_eq!(
            Record::decode(&record.encode()),
            Err(RecordError::Field("tags"))
        );
        assert_eq!(Record::decode(&[]), Err(RecordError::Field("protocol")));
        assert_eq!(Record::decode(&[0xff; 40]), Err(RecordError::Malformed));
        assert_eq!(Record::decode(&[0; 901]), Err(RecordError::TooLarge(901)));
    }

    #[test]
    fn an_address_without_port_or_ip_is_refused() {
        for addr in ["127.0.0.1:1", "[::1]:9"] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(decode_addr(&encode_addr(addr)), Some(addr));
        }
        assert_eq!(
            decode_addr(&encode_addr("127.0.0.1:0".parse().unwrap())),
            None
        );
        assert_eq!(
            decode_addr(&encode_addr("0.0.0.0:5".parse().unwrap())),
            None
        );
        assert_eq!(decode_addr(&[1, 2, 3]), None);
    }
}
