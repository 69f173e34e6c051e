//! What one gossip datagram says, and its protobuf encoding.
//!
//! A message is one act of the failure detector (or none), then whatever news fits: statements of
//! members about other members, and signed records of members about themselves. The encoding is a
//! plain sequence of protobuf fields, so an encoded piece of news can be kept and appended as is,
//! and a reader skips what it does not know.
//!
//! ```text
//! message Message {
//!   oneof body { Ping ping = 1; PingReq ping_req = 2; Ack ack = 3; Nack nack = 4; }  // none: gossip
//!   // 5 to 7: acts to come
//!   repeated Statement statements = 8;
//!   repeated SignedRecord records = 9;
//!   repeated SignedEvent events = 10;
//!   // 11 to 15: to come
//! }
//! message Ping         { uint32 seq = 1; string target = 2; }
//! message PingReq      { uint32 seq = 1; string target = 2; }
//! message Ack          { uint32 seq = 1; }
//! message Nack         { uint32 seq = 1; }
//! message Statement    { uint32 kind = 1; string node = 2; uint64 incarnation = 3; string author = 4; bytes signature = 5; }
//! message SignedRecord { bytes payload = 1; bytes signature = 2; }
//! message SignedEvent  { bytes payload = 1; bytes signature = 2; }
//! ```
//!
//! A request for an indirect probe names no address: the helper uses the one in the record that it
//! verified itself, so nobody can make it send datagrams to strangers.

use std::sync::Arc;

use prost::{
    Message as _,
    encoding::{DecodeContext, decode_key, encoded_len_varint, skip_field},
};

use crate::{
    node_id::NodeId,
    record::{MAX_RECORD_BYTES, MAX_SIGNATURE_BYTES, SignedRecord},
};

use super::user_events::{MAX_SIGNED_EVENT_BYTES, SignedEvent};

/// The largest message that is read. Several times what is ever sent by default, so that clusters
/// with larger datagrams work, and small enough that decoding stays cheap.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;

/// The most statements in one message; a default datagram holds about fifty.
pub const MAX_STATEMENTS: usize = 128;

/// The most records in one message; a default datagram holds about four.
pub const MAX_RECORDS: usize = 64;

/// The most events of applications in one message; a default datagram holds about nine. Each may
/// cost a signature check.
pub const MAX_EVENTS: usize = 16;

const TAG_STATEMENT: u32 = 8;
const TAG_RECORD: u32 = 9;
const TAG_EVENT: u32 = 10;

const KIND_SUSPECT: u32 = 1;
const KIND_DEAD: u32 = 2;
const KIND_FORCED_LEAVE: u32 = 3;

/// What one datagram says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The act.
    pub body: Body,
    /// What members say of others.
    pub statements: Vec<Statement>,
    /// What members say of themselves, not yet verified.
    pub records: Vec<SignedRecord>,
    /// What their applications say to everybody, not yet verified.
    pub events: Vec<SignedEvent>,
}

/// An act of the failure detector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Asks `target` to answer. Anybody else keeps silent: the address may have changed hands.
    Ping {
        /// Comes back in the answer.
        seq: u32,
        /// Who is meant.
        target: NodeId,
    },
    /// Asks the receiver to ping `target` for us.
    PingReq {
        /// Comes back in the answer.
        seq: u32,
        /// Who is to be pinged.
        target: NodeId,
    },
    /// The target of that ping answered.
    Ack {
        /// From the ping or the request.
        seq: u32,
    },
    /// The target has not answered the helper yet; the helper itself is well.
    Nack {
        /// From the request.
        seq: u32,
    },
    /// No act, only news.
    Gossip,
}

/// What a member says of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// It does not answer.
    Suspect(Accusation),
    /// It did not refute the suspicion in time.
    Dead(Accusation),
    /// It is dead, and a person said that it will not come back.
    ForcedLeave(ForcedLeave),
}

/// An unsigned claim that holds for one incarnation only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accusation {
    /// The accused.
    pub node: NodeId,
    /// The incarnation of the accused that did not answer.
    pub incarnation: u64,
    /// Who noticed.
    pub accuser: NodeId,
}

/// Moves a dead member to the left ones. Signed by its issuer; the core trusts that the caller
/// verified it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForcedLeave {
    /// The dead member.
    pub node: NodeId,
    /// The incarnation at which it is dead; a later life is not concerned.
    pub incarnation: u64,
    /// Who forces it out.
    pub issuer: NodeId,
    /// The issuer's signature over [`signed_bytes`](Self::signed_bytes).
    pub signature: Vec<u8>,
}

impl ForcedLeave {
    /// The bytes that the issuer signs, below whatever context string `trust` puts in front.
    pub fn signed_bytes(&self) -> Vec<u8> {
        StatementWire {
            kind: KIND_FORCED_LEAVE,
            node: self.node.to_string(),
            incarnation: self.incarnation,
            author: self.issuer.to_string(),
            signature: Vec::new(),
        }
        .encode_to_vec()
    }
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Larger than [`MAX_MESSAGE_BYTES`].
    #[error("message of {0} bytes is larger than {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    /// Not protobuf.
    #[error("message is not well-formed protobuf")]
    Malformed,
    /// More statements, records or events than allowed.
    #[error("message has too many statements, records or events")]
    TooMany,
    /// A field is missing or outside its limits.
    #[error("message field {0:?} is missing or outside its limits")]
    Field(&'static str),
}

#[derive(Clone, PartialEq, prost::Message)]
struct MessageWire {
    #[prost(oneof = "BodyWire", tags = "1, 2, 3, 4")]
    body: Option<BodyWire>,
    #[prost(message, repeated, tag = "8")]
    statements: Vec<StatementWire>,
    #[prost(message, repeated, tag = "9")]
    records: Vec<SignedWire>,
    #[prost(message, repeated, tag = "10")]
    events: Vec<SignedWire>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum BodyWire {
    #[prost(message, tag = "1")]
    Ping(TargetWire),
    #[prost(message, tag = "2")]
    PingReq(TargetWire),
    #[prost(message, tag = "3")]
    Ack(AnswerWire),
    #[prost(message, tag = "4")]
    Nack(AnswerWire),
}

#[derive(Clone, PartialEq, prost::Message)]
struct TargetWire {
    #[prost(uint32, tag = "1")]
    seq: u32,
    #[prost(string, tag = "2")]
    target: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnswerWire {
    #[prost(uint32, tag = "1")]
    seq: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatementWire {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    node: String,
    #[prost(uint64, tag = "3")]
    incarnation: u64,
    #[prost(string, tag = "4")]
    author: String,
    #[prost(bytes = "vec", tag = "5")]
    signature: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SignedWire {
    #[prost(bytes = "vec", tag = "1")]
    payload: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    signature: Vec<u8>,
}

impl Message {
    /// Reads a message. Sizes and counts are held against their limits before anything is
    /// allocated for them. Statements of kinds that a newer version knows are skipped. An accusation
    /// that names nobody as its accuser is `from`'s own.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] says what is wrong; no input panics.
    pub fn decode(from: &NodeId, bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(DecodeError::TooLarge(bytes.len()));
        }
        count_news(bytes)?;
        let wire = MessageWire::decode(bytes).map_err(|_| DecodeError::Malformed)?;
        let statements = wire
            .statements
            .into_iter()
            .filter_map(|statement| statement.open(from).transpose());
        Ok(Self {
            body: wire.body.map_or(Ok(Body::Gossip), BodyWire::open)?,
            statements: statements.collect::<Result<_, _>>()?,
            records: wire
                .records
                .into_iter()
                .map(SignedWire::open_record)
                .collect::<Result<_, _>>()?,
            events: wire
                .events
                .into_iter()
                .map(SignedWire::open_event)
                .collect::<Result<_, _>>()?,
        })
    }

    /// The message's encoding, whatever its size. The core itself fills datagrams piece by piece
    /// and keeps to their limit.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        encode_body(&self.body, &mut out);
        self.statements
            .iter()
            .for_each(|s| out.extend(encode_statement(None, s)));
        self.records
            .iter()
            .for_each(|r| out.extend(encode_record(r)));
        self.events.iter().for_each(|e| out.extend(encode_event(e)));
        out
    }

    /// The statements whose signatures the caller has to verify, to hand the good ones to
    /// [`Swim::handle_forced_leave`](super::Swim::handle_forced_leave).
    pub fn forced_leaves(&self) -> impl Iterator<Item = &ForcedLeave> {
        self.statements
            .iter()
            .filter_map(|statement| match statement {
                Statement::ForcedLeave(forced) => Some(forced),
                Statement::Suspect(_) | Statement::Dead(_) => None,
            })
    }
}

/// Walks over the top-level fields and refuses more news than a message may have.
/// An empty statement takes two bytes on the wire and over a hundred in memory.
fn count_news(bytes: &[u8]) -> Result<(), DecodeError> {
    let (mut statements, mut records, mut events) = (0, 0, 0);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| DecodeError::Malformed)?;
        match tag {
            TAG_STATEMENT => statements += 1,
            TAG_RECORD => records += 1,
            TAG_EVENT => events += 1,
            _ => {}
        }
        if statements > MAX_STATEMENTS || records > MAX_RECORDS || events > MAX_EVENTS {
            return Err(DecodeError::TooMany);
        }
        skip_field(wire_type, tag, &mut rest, DecodeContext::default())
            .map_err(|_| DecodeError::Malformed)?;
    }
    Ok(())
}

/// Appends the encoding of an act.
pub(super) fn encode_body(body: &Body, out: &mut Vec<u8>) {
    let target = |seq: &u32, target: &NodeId| TargetWire {
        seq: *seq,
        target: target.as_str().to_owned(),
    };
    let body = match body {
        Body::Ping { seq, target: node } => BodyWire::Ping(target(seq, node)),
        Body::PingReq { seq, target: node } => BodyWire::PingReq(target(seq, node)),
        Body::Ack { seq } => BodyWire::Ack(AnswerWire { seq: *seq }),
        Body::Nack { seq } => BodyWire::Nack(AnswerWire { seq: *seq }),
        Body::Gossip => return,
    };
    body.encode(out);
}

/// A statement, encoded as the field of a message. What its `sender` says in its own name leaves the
/// name out: most of what is said after a crash is such, and the name is a third of it.
pub(super) fn encode_statement(sender: Option<&NodeId>, statement: &Statement) -> Vec<u8> {
    let accusation = |kind: u32, accusation: &Accusation| StatementWire {
        kind,
        node: accusation.node.to_string(),
        incarnation: accusation.incarnation,
        author: if sender == Some(&accusation.accuser) {
            String::new()
        } else {
            accusation.accuser.to_string()
        },
        signature: Vec::new(),
    };
    let wire = match statement {
        Statement::Suspect(suspect) => accusation(KIND_SUSPECT, suspect),
        Statement::Dead(dead) => accusation(KIND_DEAD, dead),
        Statement::ForcedLeave(forced) => StatementWire {
            kind: KIND_FORCED_LEAVE,
            node: forced.node.to_string(),
            incarnation: forced.incarnation,
            author: forced.issuer.to_string(),
            signature: forced.signature.clone(),
        },
    };
    let mut out = Vec::with_capacity(wire.encoded_len() + 4);
    prost::encoding::message::encode(TAG_STATEMENT, &wire, &mut out);
    out
}

/// A signed record, encoded as the field of a message.
pub(super) fn encode_record(record: &SignedRecord) -> Vec<u8> {
    encode_signed(TAG_RECORD, &record.payload, &record.signature)
}

/// A signed event, encoded as the field of a message.
pub(super) fn encode_event(event: &SignedEvent) -> Vec<u8> {
    encode_signed(TAG_EVENT, &event.payload, &event.signature)
}

fn encode_signed(tag: u32, payload: &[u8], signature: &[u8]) -> Vec<u8> {
    let wire = SignedWire {
        payload: payload.to_vec(),
        signature: signature.to_vec(),
    };
    let mut out = Vec::with_capacity(wire.encoded_len() + 4);
    prost::encoding::message::encode(tag, &wire, &mut out);
    out
}

/// How long that encoding is. Each field takes a byte for its key, its length, and its bytes; one
/// that is empty is left out.
pub(super) fn encoded_record_len(record: &SignedRecord) -> usize {
    let field = |len: usize| 1 + encoded_len_varint(len as u64) + len;
    let content: usize = [record.payload.len(), record.signature.len()]
        .into_iter()
        .filter(|len| *len > 0)
        .map(field)
        .sum();
    field(content)
}

impl BodyWire {
    fn open(self) -> Result<Body, DecodeError> {
        let node = |name: &str| name.parse().map_err(|_| DecodeError::Field("target"));
        Ok(match self {
            Self::Ping(wire) => Body::Ping {
                seq: wire.seq,
                target: node(&wire.target)?,
            },
            Self::PingReq(wire) => Body::PingReq {
                seq: wire.seq,
                target: node(&wire.target)?,
            },
            Self::Ack(wire) => Body::Ack { seq: wire.seq },
            Self::Nack(wire) => Body::Nack { seq: wire.seq },
        })
    }
}

impl StatementWire {
    /// The statement, or nothing if a newer version made it.
    fn open(self, sender: &NodeId) -> Result<Option<Statement>, DecodeError> {
        if !matches!(self.kind, KIND_SUSPECT | KIND_DEAD | KIND_FORCED_LEAVE) {
            return Ok(None);
        }
        if self.signature.len() > MAX_SIGNATURE_BYTES {
            return Err(DecodeError::Field("signature"));
        }
        let node = self.node.parse().map_err(|_| DecodeError::Field("node"))?;
        let author = if self.author.is_empty() && self.kind != KIND_FORCED_LEAVE {
            sender.clone()
        } else {
            self.author
                .parse()
                .map_err(|_| DecodeError::Field("author"))?
        };
        let incarnation = self.incarnation;
        Ok(Some(match self.kind {
            KIND_SUSPECT => Statement::Suspect(Accusation {
                node,
                incarnation,
                accuser: author,
            }),
            KIND_DEAD => Statement::Dead(Accusation {
                node,
                incarnation,
                accuser: author,
            }),
            _ => Statement::ForcedLeave(ForcedLeave {
                node,
                incarnation,
                issuer: author,
                signature: self.signature,
            }),
        }))
    }
}

impl SignedWire {
    fn open_record(self) -> Result<SignedRecord, DecodeError> {
        self.check(MAX_RECORD_BYTES)?;
        Ok(SignedRecord {
            payload: Arc::from(self.payload),
            signature: Arc::from(self.signature),
        })
    }

    fn open_event(self) -> Result<SignedEvent, DecodeError> {
        self.check(MAX_SIGNED_EVENT_BYTES)?;
        Ok(SignedEvent {
            payload: Arc::from(self.payload),
            signature: Arc::from(self.signature),
        })
    }

    fn check(&self, max_bytes: usize) -> Result<(), DecodeError> {
        if self.payload.len() > max_bytes {
            return Err(DecodeError::Field("payload"));
        }
        if self.signature.len() > MAX_SIGNATURE_BYTES {
            return Err(DecodeError::Field("signature"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
        Message::decode(&id("b"), bytes)
    }

    fn everything(body: Body) -> Message {
        let accusation = Accusation {
            node: id("a"),
            incarnation: 7,
            accuser: id("b"),
        };
        Message {
            body,
            statements: vec![
                Statement::Suspect(accusation.clone()),
                Statement::Dead(accusation),
                Statement::ForcedLeave(ForcedLeave {
                    node: id("c"),
                    incarnation: u64::MAX,
                    issuer: id("b"),
                    signature: vec![1, 2, 3],
                }),
            ],
            records: vec![SignedRecord {
                payload: Arc::from(vec![5; MAX_RECORD_BYTES]),
                signature: Arc::from(vec![6; 72]),
            }],
            events: vec![SignedEvent {
                payload: Arc::from(vec![7; MAX_SIGNED_EVENT_BYTES]),
                signature: Arc::from(vec![8; 72]),
            }],
        }
    }

    #[test]
    fn every_message_survives_the_wire() {
        let target = id("t");
        for body in [
            Body::Ping {
                seq: 1,
                target: target.clone(),
            },
            Body::PingReq {
                seq: u32::MAX,
                target,
            },
            Body::Ack { seq: 0 },
            Body::Nack { seq: 3 },
            Body::Gossip,
        ] {
            let message = everything(body);
            assert_eq!(decode(&message.encode()).unwrap(), message);
        }
    }

    #[test]
    fn an_accusation_in_ones_own_name_leaves_the_name_out() {
        let accusation = Accusation {
            node: id("a"),
            incarnation: 7,
            accuser: id("b"),
        };
        for statement in [
            Statement::Suspect(accusation.clone()),
            Statement::Dead(accusation),
        ] {
            let own = encode_statement(Some(&id("b")), &statement);
            let relayed = encode_statement(Some(&id("c")), &statement);
            assert_eq!(own.len() + 3, relayed.len());
            for bytes in [own, relayed] {
                assert_eq!(
                    decode(&bytes).unwrap().statements,
                    std::slice::from_ref(&statement)
                );
            }
        }
        let nobody = StatementWire {
            kind: KIND_FORCED_LEAVE,
            node: "a".into(),
            ..Default::default()
        };
        let mut bytes = Vec::new();
        prost::encoding::message::encode(TAG_STATEMENT, &nobody, &mut bytes);
        assert_eq!(decode(&bytes), Err(DecodeError::Field("author")));
    }

    #[test]
    fn fields_and_statements_of_newer_versions_are_skipped() {
        let mut bytes = everything(Body::Gossip).encode();
        let newer = StatementWire {
            kind: 77,
            node: "not a name".into(),
            ..Default::default()
        };
        prost::encoding::message::encode(TAG_STATEMENT, &newer, &mut bytes);
        prost::encoding::string::encode(12, &"an event".to_owned(), &mut bytes);
        assert_eq!(decode(&bytes).unwrap(), everything(Body::Gossip));
    }

    #[test]
    fn more_news_than_a_message_may_have_is_refused_before_it_is_read() {
        let statements = [0x42, 0x00].repeat(MAX_STATEMENTS + 1);
        assert_eq!(decode(&statements), Err(DecodeError::TooMany));
        let records = [0x4a, 0x00].repeat(MAX_RECORDS + 1);
        assert_eq!(decode(&records), Err(DecodeError::TooMany));
        let events = [0x52, 0x00].repeat(MAX_EVENTS + 1);
        assert_eq!(decode(&events), Err(DecodeError::TooMany));
        let long = vec![0; MAX_MESSAGE_BYTES + 1];
        assert_eq!(
            decode(&long),
            Err(DecodeError::TooLarge(MAX_MESSAGE_BYTES + 1))
        );
        // A length far beyond the datagram.
        assert_eq!(
            decode(&[0x4a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            Err(DecodeError::Malformed)
        );
    }

    #[test]
    fn random_and_mutated_bytes_never_panic() {
        let mut rng = Rng::new(1);
        let valid = everything(Body::Ping {
            seq: 9,
            target: id("t"),
        })
        .encode();
        for _ in 0..20_000 {
            let mut bytes = valid.clone();
            for _ in 0..=rng.index(8) {
                let at = rng.index(bytes.len());
                bytes[at] = rng.u64() as u8;
            }
            bytes.truncate(rng.index(bytes.len() + 1));
            let _ = decode(&bytes);
            let noise: Vec<u8> = (0..rng.index(64)).map(|_| rng.u64() as u8).collect();
            let _ = decode(&noise);
        }
    }

    #[test]
    fn the_length_of_an_encoded_record_is_known_before() {
        for (payload, signature) in [(0, 0), (1, 0), (127, 72), (128, 72), (900, 128)] {
            let record = SignedRecord {
                payload: Arc::from(vec![1; payload]),
                signature: Arc::from(vec![2; signature]),
            };
            assert_eq!(encoded_record_len(&record), encode_record(&record).len());
        }
    }

    #[test]
    fn what_the_issuer_signs_leaves_the_signature_out() {
        let mut forced = ForcedLeave {
            node: id("a"),
            incarnation: 1,
            issuer: id("b"),
            signature: vec![],
        };
        let unsigned = forced.signed_bytes();
        forced.signature = vec![9; 70];
        assert_eq!(forced.signed_bytes(), unsigned);
    }
}
