//! What nodes say to each other on a connection's control stream and on sync streams.
//!
//! Each is one protobuf message in one bounded frame. The control stream is opened by the dialler
//! and carries, in this order: the dialler's HELLO, the acceptor's HELLO, the dialler's READY. Only
//! then may anything else follow, in either direction. A sync is a stream of its own: frames of
//! `SyncFrame`, a FIN, the answer in the same form, a FIN.

use prost::Message as _;

use crate::{
    node_id::{BootId, ClusterName, NodeId},
    record::{MAX_SIGNATURE_BYTES, PROTOCOL_VERSIONS, SignedRecord},
    stats::MemberStatus,
};

/// The largest HELLO that is read, in bytes.
pub const MAX_HELLO_BYTES: usize = 1_024;

/// The largest control or sync frame: a record, a certificate of 2 KiB, and room.
pub const MAX_CONTROL_BYTES: usize = 8_192;

/// The first thing each end says: who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Must equal the certificate's cluster.
    pub cluster: ClusterName,
    /// Must equal the certificate's node.
    pub node: NodeId,
    /// Which life of the node this is.
    pub boot: BootId,
    /// The lowest and highest protocol version the node speaks.
    pub protocol: (u32, u32),
    /// The digest of the node's keyring: a difference leads to a sync.
    pub keyring_digest: Vec<u8>,
}

/// One frame of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The first frame of each end.
    Hello(Hello),
    /// The dialler accepts the acceptor's HELLO; from here the connection is up.
    Ready,
    /// The lower node id says: application data flows on this connection.
    Use,
    /// A health ping.
    Ping {
        /// Comes back in the answer.
        id: u64,
    },
    /// The answer to a ping.
    Pong {
        /// The ping's.
        id: u64,
        /// How long ago the answering node's reactor made its last turn, in milliseconds: what
        /// proves the member alive is its reactor, not this connection's thread.
        reactor_age_ms: u64,
    },
    /// Cumulative: so many messages of this stream have reached their inbox.
    MessageAck {
        /// The QUIC stream.
        stream: u64,
        /// Messages since the stream began.
        count: u64,
    },
    /// The sender has no application for the messages of this stream. It reads and drops what
    /// still comes, so that the other end can end the stream.
    Refused {
        /// The QUIC stream.
        stream: u64,
    },
    /// The sender has nothing under way on this connection any more and will start nothing.
    Drained,
    /// Nobody waits for the reply to a request of the sender's any more.
    Withdrawn {
        /// The request.
        request: u64,
    },
    /// A member's record, usually the sender's own.
    Record(SignedRecord),
    /// The sender has taken note of a record in which its peer says that it leaves.
    LeaveAck {
        /// The record's.
        incarnation: u64,
    },
    /// A probe that did not get through as a datagram.
    Probe {
        /// Comes back in the answer.
        seq: u32,
    },
    /// The answer of the other end's reactor to a probe.
    ProbeAck {
        /// The probe's.
        seq: u32,
    },
    /// The gossip keyring, as `trust` encodes it.
    Keyring(Vec<u8>),
    /// The ids of the gossip keys that the sender holds.
    KeysHeld(Vec<u8>),
    /// Where the sender stands with events of applications.
    EventClock {
        /// Which life of the sender.
        boot: BootId,
        /// The highest Lamport time it knows.
        lamport: u64,
        /// The number of its own last event.
        number: u64,
    },
    /// A recent event of an application, as its origin signed it.
    UserEvent {
        /// The event's content.
        payload: Vec<u8>,
        /// The origin's signature.
        signature: Vec<u8>,
    },
    /// A frame that only a newer version understands; ignored.
    Unknown,
}

/// One frame of a sync stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncFrame {
    /// The gossip keyring, as `trust` encodes it.
    Keyring(Vec<u8>),
    /// A member.
    Entry {
        /// Its record.
        record: SignedRecord,
        /// What the sender believes of it.
        status: MemberStatus,
        /// The certificate that the record names, in DER; empty if the sender has none.
        certificate: Vec<u8>,
        /// If the member was forced out at this record's incarnation: who did, with the signature.
        forced: Option<(NodeId, Vec<u8>)>,
    },
    /// A frame that only a newer version understands; ignored.
    Unknown,
}

/// Why bytes are not a control frame. The connection is closed with `Protocol`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("control frame: {0}")]
pub struct ControlError(pub &'static str);

#[derive(Clone, PartialEq, prost::Message)]
struct HelloWire {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(string, tag = "2")]
    node: String,
    #[prost(bytes = "vec", tag = "3")]
    boot: Vec<u8>,
    #[prost(uint32, tag = "4")]
    protocol_min: u32,
    #[prost(uint32, tag = "5")]
    protocol_max: u32,
    #[prost(bytes = "vec", tag = "6")]
    keyring_digest: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NumbersWire {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    value: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SignedRecordWire {
    #[prost(bytes = "vec", tag = "1")]
    payload: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EventClockWire {
    #[prost(bytes = "vec", tag = "1")]
    boot: Vec<u8>,
    #[prost(uint64, tag = "2")]
    lamport: u64,
    #[prost(uint64, tag = "3")]
    number: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ControlWire {
    #[prost(
        oneof = "ControlBody",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20, 21"
    )]
    body: Option<ControlBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum ControlBody {
    #[prost(message, tag = "1")]
    Hello(HelloWire),
    #[prost(bool, tag = "2")]
    Ready(bool),
    #[prost(bool, tag = "3")]
    Use(bool),
    #[prost(message, tag = "4")]
    Ping(NumbersWire),
    #[prost(message, tag = "5")]
    Pong(NumbersWire),
    #[prost(message, tag = "6")]
    MessageAck(NumbersWire),
    #[prost(bool, tag = "7")]
    Drained(bool),
    #[prost(message, tag = "8")]
    Record(SignedRecordWire),
    #[prost(uint64, tag = "9")]
    LeaveAck(u64),
    #[prost(uint32, tag = "10")]
    Probe(u32),
    #[prost(uint32, tag = "11")]
    ProbeAck(u32),
    #[prost(bytes = "vec", tag = "12")]
    Keyring(Vec<u8>),
    #[prost(bytes = "vec", tag = "13")]
    KeysHeld(Vec<u8>),
    #[prost(uint64, tag = "14")]
    Refused(u64),
    #[prost(uint64, tag = "15")]
    Withdrawn(u64),
    #[prost(message, tag = "20")]
    EventClock(EventClockWire),
    #[prost(message, tag = "21")]
    UserEvent(SignedRecordWire),
}

#[derive(Clone, PartialEq, prost::Message)]
struct EntryWire {
    #[prost(message, optional, tag = "1")]
    record: Option<SignedRecordWire>,
    #[prost(uint32, tag = "2")]
    status: u32,
    #[prost(bytes = "vec", tag = "3")]
    certificate: Vec<u8>,
    #[prost(string, tag = "4")]
    forced_by: String,
    #[prost(bytes = "vec", tag = "5")]
    forced_signature: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SyncWire {
    #[prost(oneof = "SyncBody", tags = "1, 2")]
    body: Option<SyncBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum SyncBody {
    #[prost(bytes = "vec", tag = "1")]
    Keyring(Vec<u8>),
    #[prost(message, tag = "2")]
    Entry(EntryWire),
}

impl From<SignedRecord> for SignedRecordWire {
    fn from(record: SignedRecord) -> Self {
        Self {
            payload: record.payload.to_vec(),
            signature: record.signature.to_vec(),
        }
    }
}

impl From<SignedRecordWire> for SignedRecord {
    fn from(wire: SignedRecordWire) -> Self {
        Self {
            payload: wire.payload.into(),
            signature: wire.signature.into(),
        }
    }
}

impl Control {
    /// The frame's bytes.
    pub fn encode(self) -> Vec<u8> {
        let numbers = |id, value| NumbersWire { id, value };
        let body = match self {
            Self::Hello(hello) => ControlBody::Hello(HelloWire {
                cluster: hello.cluster.to_string(),
                node: hello.node.to_string(),
                boot: hello.boot.0.to_vec(),
                protocol_min: hello.protocol.0,
                protocol_max: hello.protocol.1,
                keyring_digest: hello.keyring_digest,
            }),
            Self::Ready => ControlBody::Ready(true),
            Self::Use => ControlBody::Use(true),
            Self::Ping { id } => ControlBody::Ping(numbers(id, 0)),
            Self::Pong { id, reactor_age_ms } => ControlBody::Pong(numbers(id, reactor_age_ms)),
            Self::MessageAck { stream, count } => ControlBody::MessageAck(numbers(stream, count)),
            Self::Refused { stream } => ControlBody::Refused(stream),
            Self::Drained => ControlBody::Drained(true),
            Self::Withdrawn { request } => ControlBody::Withdrawn(request),
            Self::Record(record) => ControlBody::Record(record.into()),
            Self::LeaveAck { incarnation } => ControlBody::LeaveAck(incarnation),
            Self::Probe { seq } => ControlBody::Probe(seq),
            Self::ProbeAck { seq } => ControlBody::ProbeAck(seq),
            Self::Keyring(bytes) => ControlBody::Keyring(bytes),
            Self::KeysHeld(bytes) => ControlBody::KeysHeld(bytes),
            Self::EventClock {
                boot,
                lamport,
                number,
            } => ControlBody::EventClock(EventClockWire {
                boot: boot.0.to_vec(),
                lamport,
                number,
            }),
            Self::UserEvent { payload, signature } => {
                ControlBody::UserEvent(SignedRecordWire { payload, signature })
            }
            Self::Unknown => return ControlWire { body: None }.encode_to_vec(),
        };
        ControlWire { body: Some(body) }.encode_to_vec()
    }

    /// Reads a frame. A kind that this version does not know is [`Control::Unknown`].
    ///
    /// # Errors
    ///
    /// [`ControlError`] when the bytes are not well formed or a HELLO is not usable.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        if bytes.len() > MAX_CONTROL_BYTES {
            return Err(ControlError("too large"));
        }
        let wire = ControlWire::decode(bytes).map_err(|_| ControlError("not protobuf"))?;
        Ok(match wire.body {
            Some(ControlBody::Hello(hello)) => Self::Hello(Hello::from_wire(hello)?),
            Some(ControlBody::Ready(_)) => Self::Ready,
            Some(ControlBody::Use(_)) => Self::Use,
            Some(ControlBody::Ping(ping)) => Self::Ping { id: ping.id },
            Some(ControlBody::Pong(pong)) => Self::Pong {
                id: pong.id,
                reactor_age_ms: pong.value,
            },
            Some(ControlBody::MessageAck(ack)) => Self::MessageAck {
                stream: ack.id,
                count: ack.value,
            },
            Some(ControlBody::Refused(stream)) => Self::Refused { stream },
            Some(ControlBody::Drained(_)) => Self::Drained,
            Some(ControlBody::Withdrawn(request)) => Self::Withdrawn { request },
            Some(ControlBody::Record(record)) => Self::Record(record.into()),
            Some(ControlBody::LeaveAck(incarnation)) => Self::LeaveAck { incarnation },
            Some(ControlBody::Probe(seq)) => Self::Probe { seq },
            Some(ControlBody::ProbeAck(seq)) => Self::ProbeAck { seq },
            Some(ControlBody::Keyring(bytes)) => Self::Keyring(bytes),
            Some(ControlBody::KeysHeld(bytes)) => Self::KeysHeld(bytes),
            Some(ControlBody::EventClock(clock)) => Self::EventClock {
                boot: BootId::from_slice(&clock.boot)
                    .ok_or(ControlError("event clock without boot id"))?,
                lamport: clock.lamport,
                number: clock.number,
            },
            Some(ControlBody::UserEvent(SignedRecordWire { payload, signature })) => {
                Self::UserEvent { payload, signature }
            }
            None => Self::Unknown,
        })
    }
}

impl Hello {
    fn from_wire(wire: HelloWire) -> Result<Self, ControlError> {
        if wire.keyring_digest.len() > 32 {
            return Err(ControlError("HELLO with an oversized keyring digest"));
        }
        Ok(Self {
            cluster: wire
                .cluster
                .parse()
                .map_err(|_| ControlError("HELLO without cluster"))?,
            node: wire
                .node
                .parse()
                .map_err(|_| ControlError("HELLO without node"))?,
            boot: BootId::from_slice(&wire.boot).ok_or(ControlError("HELLO without boot id"))?,
            protocol: (wire.protocol_min, wire.protocol_max),
            keyring_digest: wire.keyring_digest,
        })
    }

    /// Whether both ends have a protocol version in common.
    pub fn is_compatible(&self) -> bool {
        self.protocol.0 <= PROTOCOL_VERSIONS.1 && PROTOCOL_VERSIONS.0 <= self.protocol.1
    }
}

impl SyncFrame {
    /// The frame's bytes.
    pub fn encode(self) -> Vec<u8> {
        let body = match self {
            Self::Keyring(bytes) => SyncBody::Keyring(bytes),
            Self::Entry {
                record,
                status,
                certificate,
                forced,
            } => {
                let (forced_by, forced_signature) = forced
                    .map(|(issuer, signature)| (issuer.to_string(), signature))
                    .unwrap_or_default();
                SyncBody::Entry(EntryWire {
                    record: Some(record.into()),
                    status: match status {
                        MemberStatus::Alive => 1,
                        MemberStatus::Suspect => 2,
                        MemberStatus::Dead => 3,
                        MemberStatus::Left => 4,
                    },
                    certificate,
                    forced_by,
                    forced_signature,
                })
            }
            Self::Unknown => return SyncWire { body: None }.encode_to_vec(),
        };
        SyncWire { body: Some(body) }.encode_to_vec()
    }

    /// Reads a frame. A kind that this version does not know is [`SyncFrame::Unknown`].
    ///
    /// # Errors
    ///
    /// [`ControlError`] when the bytes are not well formed.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        if bytes.len() > MAX_CONTROL_BYTES {
            return Err(ControlError("too large"));
        }
        let wire = SyncWire::decode(bytes).map_err(|_| ControlError("not protobuf"))?;
        Ok(match wire.body {
            Some(SyncBody::Keyring(bytes)) => Self::Keyring(bytes),
            Some(SyncBody::Entry(entry)) => Self::Entry {
                record: entry
                    .record
                    .ok_or(ControlError("entry without record"))?
                    .into(),
                status: match entry.status {
                    1 => MemberStatus::Alive,
                    2 => MemberStatus::Suspect,
                    3 => MemberStatus::Dead,
                    4 => MemberStatus::Left,
                    _ => return Err(ControlError("entry with an unknown status")),
                },
                certificate: entry.certificate,
                forced: match entry.forced_by.as_str() {
                    "" => None,
                    issuer => {
                        let issuer = NodeId::new(issuer)
                            .map_err(|_| ControlError("forced out by no node"))?;
                        if entry.forced_signature.len() > MAX_SIGNATURE_BYTES {
                            return Err(ControlError("forced leave with an oversized signature"));
                        }
                        Some((issuer, entry.forced_signature))
                    }
                },
            },
            None => Self::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn hello() -> Hello {
        Hello {
            cluster: "c".repeat(63).parse().unwrap(),
            node: "n".repeat(63).parse().unwrap(),
            boot: BootId([3; 16]),
            protocol: (1, u32::MAX),
            keyring_digest: vec![1; 32],
        }
    }

    fn record() -> SignedRecord {
        SignedRecord {
            payload: Arc::from([1, 2, 3]),
            signature: Arc::from([4; 72]),
        }
    }

    #[test]
    fn every_control_frame_survives_the_wire() {
        for frame in [
            Control::Hello(hello()),
            Control::Ready,
            Control::Use,
            Control::Ping { id: u64::MAX },
            Control::Pong {
                id: 7,
                reactor_age_ms: 200,
            },
            Control::MessageAck {
                stream: 14,
                count: 3,
            },
            Control::Drained,
            Control::Record(record()),
            Control::LeaveAck { incarnation: 9 },
            Control::Probe { seq: 1 },
            Control::ProbeAck { seq: 1 },
            Control::Keyring(vec![1]),
            Control::KeysHeld(vec![2]),
            Control::Refused { stream: 3 },
            Control::Withdrawn { request: 1 << 40 },
            Control::EventClock {
                boot: BootId([1; 16]),
                lamport: u64::MAX,
                number: 4,
            },
            Control::UserEvent {
                payload: vec![1, 2],
                signature: vec![3],
            },
            Control::Unknown,
        ] {
            assert_eq!(Control::decode(&frame.clone().encode()), Ok(frame));
        }
    }

    #[test]
    fn every_sync_frame_survives_the_wire() {
        for status in [
            MemberStatus::Alive,
            MemberStatus::Suspect,
            MemberStatus::Dead,
            MemberStatus::Left,
        ] {
            let frame = SyncFrame::Entry {
                record: record(),
                status,
                certificate: vec![5; 600],
                forced: (status == MemberStatus::Left)
                    .then(|| ("n2".parse().unwrap(), vec![6; 72])),
            };
            assert_eq!(SyncFrame::decode(&frame.clone().encode()), Ok(frame));
        }
        let frame = SyncFrame::Keyring(vec![7; 300]);
        assert_eq!(SyncFrame::decode(&frame.clone().encode()), Ok(frame));
    }

    #[test]
    fn a_forced_leave_may_not_be_signed_at_length() {
        let entry = |bytes| SyncFrame::Entry {
            record: record(),
            status: MemberStatus::Left,
            certificate: Vec::new(),
            forced: Some(("n2".parse().unwrap(), vec![6; bytes])),
        };
        assert!(SyncFrame::decode(&entry(MAX_SIGNATURE_BYTES).encode()).is_ok());
        assert_eq!(
            SyncFrame::decode(&entry(MAX_SIGNATURE_BYTES + 1).encode()),
            Err(ControlError("forced leave with an oversized signature"))
        );
    }

    #[test]
    fn the_largest_hello_fits_its_limit() {
        assert!(Control::Hello(hello()).encode().len() <= MAX_HELLO_BYTES);
    }

    #[test]
    fn frames_of_a_newer_version_are_told_from_garbage() {
        // Field 60, length-delimited, one byte: what a later version may add.
        assert_eq!(
            Control::decode(&[0xe2, 0x03, 0x01, 0x00]),
            Ok(Control::Unknown)
        );
        assert!(Control::decode(&[0xff; 9]).is_err());
        assert!(Control::decode(&vec![0; MAX_CONTROL_BYTES + 1]).is_err());
    }
}
