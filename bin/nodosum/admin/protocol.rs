//! What is said over the admin socket.
//!
//! One connection carries one request. The client writes a JSON object on one line and, where the
//! command carries a payload, that many bytes after it. The node answers with JSON objects, a line
//! each; a reply that carries bytes announces their number and they follow its line. Both the
//! length of a line and of a payload are bounded, and the receiver takes memory as bytes arrive,
//! never because a length was announced.
//!
//! The version in the request is judged before anything else, so that a client and a node of
//! different releases tell each other so instead of guessing.
//!
//! The views are the public JSON objects of the read commands, most of which the library has since its
//! HTTP server tells the same: field names are an interface and never change their meaning or unit.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read},
};

pub(crate) use nodosum::unversioned::views::{
    ConnView, ConnsView, EventView, MemberView, MembersView, PayloadView, SeedView, StatusView,
};
use nodosum::{
    Explanation, Keys, Moment, Node,
    explain::{Case, Ending, Evidence, Verdict},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{clock::Wall, exit::Exit, settings::Setting};

/// The version of this protocol.
pub(crate) const VERSION: u32 = 1;

/// The longest request: names and addresses, with room for a thousand of them.
pub(crate) const MAX_REQUEST_LINE: u64 = 64 * 1024;

/// The longest line of a reply: 16,384 members with the longest names and tags fit.
pub(crate) const MAX_REPLY_LINE: u64 = 32 * 1024 * 1024;

/// The largest payload, in either direction: that of a message.
pub(crate) const MAX_PAYLOAD: u64 = 16 * 1024 * 1024;

/// A command to the node, as it stands in the first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) version: u32,
    #[serde(flatten)]
    pub(crate) command: Command,
}

/// Read first, so that an unknown version is told apart from a broken request.
#[derive(Debug, Deserialize)]
pub(crate) struct Versioned {
    pub(crate) version: u32,
}

/// What a node can be asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub(crate) enum Command {
    Members,
    Conns,
    Status,
    Events {
        follow: bool,
    },
    Wait {
        members: Option<u32>,
        connected: Option<u32>,
        ready: bool,
        timeout_seconds: f64,
    },
    Ping {
        node: String,
        timeout_seconds: f64,
    },
    Send {
        to: Vec<String>,
        app: String,
        timeout_seconds: f64,
        payload_bytes: u64,
    },
    Broadcast {
        app: String,
        timeout_seconds: f64,
        payload_bytes: u64,
    },
    Request {
        to: String,
        app: String,
        timeout_seconds: f64,
        payload_bytes: u64,
    },
    Join {
        seeds: Vec<String>,
        timeout_seconds: f64,
    },
    Leave {
        timeout_seconds: f64,
    },
    ForceLeave {
        node: String,
    },
    Explain {
        node: String,
    },
    Keys,
    RotateKey,
    RemoveKey {
        key: String,
    },
    Event {
        name: String,
        payload_bytes: u64,
    },
    Query {
        name: String,
        nodes: Vec<String>,
        tags: BTreeMap<String, String>,
        timeout_seconds: f64,
        payload_bytes: u64,
    },
    /// Changes what it names and answers with all; empty, it only asks.
    Tags {
        set: BTreeMap<String, String>,
        delete: Vec<String>,
    },
    /// Logs by this filter; without one, goes back to that of the configuration.
    SetLog {
        filter: Option<String>,
        for_seconds: Option<f64>,
    },
    Log,
    Settings,
}

impl Command {
    /// How many bytes follow the line.
    pub(crate) fn payload_bytes(&self) -> u64 {
        match self {
            Self::Send { payload_bytes, .. }
            | Self::Broadcast { payload_bytes, .. }
            | Self::Request { payload_bytes, .. }
            | Self::Event { payload_bytes, .. }
            | Self::Query { payload_bytes, .. } => *payload_bytes,
            Self::Members
            | Self::Conns
            | Self::Status
            | Self::Events { .. }
            | Self::Wait { .. }
            | Self::Ping { .. }
            | Self::Join { .. }
            | Self::Leave { .. }
            | Self::ForceLeave { .. }
            | Self::Explain { .. }
            | Self::Keys
            | Self::RotateKey
            | Self::RemoveKey { .. }
            | Self::Tags { .. }
            | Self::SetLog { .. }
            | Self::Log
            | Self::Settings => 0,
        }
    }
}

/// One line of the node's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    Members(MembersView),
    Conns(ConnsView),
    Status(Box<StatusView>),
    Event(EventView),
    /// No more events.
    End,
    /// It was done, and there is nothing to say about it.
    Done,
    Pong {
        rtt_seconds: f64,
    },
    Delivery(DeliveryView),
    /// This many bytes follow.
    Payload {
        payload_bytes: u64,
    },
    Joined {
        answered: u64,
    },
    Left {
        confirmed: Vec<String>,
        unconfirmed: Vec<String>,
    },
    Explanation(Box<ExplanationView>),
    Keys(KeysView),
    Rotated {
        key: String,
    },
    /// One answer to a query; more follow.
    Answer(AnswerView),
    /// No more answers.
    Asked {
        refused: Vec<FailedView>,
        missing: Vec<String>,
    },
    Tags(TagsView),
    Log(LogView),
    Settings {
        settings: Vec<Setting>,
    },
    Error {
        exit: Exit,
        message: String,
        hint: Option<String>,
    },
}

/// The object of `log`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogView {
    pub(crate) schema: u32,
    pub(crate) node: String,
    pub(crate) filter: String,
    /// The filter of the configuration.
    pub(crate) configured: String,
    /// When that one is put back, RFC 3339.
    pub(crate) until: Option<String>,
}

/// The object of `members NODE --explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExplanationView {
    pub(crate) schema: u32,
    /// Who explains.
    pub(crate) node: String,
    pub(crate) member: String,
    pub(crate) status: String,
    pub(crate) since: String,
    pub(crate) incarnation: u64,
    pub(crate) health_score: u32,
    pub(crate) evidence: EvidenceView,
    pub(crate) dead_at: Option<String>,
    pub(crate) case: Option<CaseView>,
    pub(crate) last_death: Option<CaseView>,
    pub(crate) connection: ConnView,
    pub(crate) when_suspected: Option<MomentView>,
    pub(crate) when_dead: Option<MomentView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EvidenceView {
    pub(crate) last_answer: Option<String>,
    pub(crate) doubts: Vec<DoubtView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DoubtView {
    pub(crate) doubt: String,
    pub(crate) at: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CaseView {
    pub(crate) incarnation: u64,
    pub(crate) began: String,
    pub(crate) members: usize,
    pub(crate) shortest_seconds: f64,
    pub(crate) longest_seconds: f64,
    pub(crate) confirmations_wanted: usize,
    pub(crate) accusations: Vec<AccusedView>,
    pub(crate) more_accusations: u64,
    pub(crate) probes: Vec<ProbeView>,
    pub(crate) more_probes: u64,
    pub(crate) vetoes: u64,
    pub(crate) verdict: Option<VerdictView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AccusedView {
    pub(crate) by: String,
    pub(crate) at: String,
    pub(crate) first_hand: bool,
    pub(crate) dead: bool,
    pub(crate) counted: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProbeView {
    pub(crate) started: String,
    pub(crate) ended: String,
    pub(crate) took_seconds: f64,
    pub(crate) helpers: usize,
    pub(crate) nacks: usize,
    pub(crate) over_connection: bool,
    pub(crate) answered: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VerdictView {
    pub(crate) at: String,
    /// `refuted`, `left`, `dead` or `taken_over`.
    pub(crate) ending: String,
    /// Of `dead`: the wait was cut short because its ports refused.
    pub(crate) fast: bool,
    /// Of `taken_over`: whose word it was.
    pub(crate) from: Option<String>,
    pub(crate) health_score: u32,
    pub(crate) evidence: EvidenceView,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MomentView {
    pub(crate) at: String,
    pub(crate) connection: ConnView,
}

impl ExplanationView {
    pub(crate) fn of(node: &Node, explanation: Explanation) -> Self {
        let wall = Wall::now();
        let moment = |moment: Moment| MomentView {
            at: wall.text(moment.at),
            connection: ConnView::from(moment.connection),
        };
        let membership = explanation.membership;
        Self {
            schema: 1,
            node: node.id().to_string(),
            member: membership.node.to_string(),
            status: membership.status.to_string(),
            since: wall.text(membership.since),
            incarnation: membership.incarnation,
            health_score: membership.health_score,
            evidence: EvidenceView::of(wall, membership.evidence),
            dead_at: membership.dead_at.map(|at| wall.text(at)),
            case: membership.case.map(|case| CaseView::of(wall, case)),
            last_death: membership.last_death.map(|case| CaseView::of(wall, case)),
            connection: ConnView::from(explanation.connection),
            when_suspected: explanation.when_suspected.map(moment),
            when_dead: explanation.when_dead.map(moment),
        }
    }
}

impl EvidenceView {
    fn of(wall: Wall, evidence: Evidence) -> Self {
        let doubts = evidence.doubts.into_iter().map(|(doubt, at)| DoubtView {
            doubt: doubt.as_str().to_owned(),
            at: wall.text(at),
        });
        Self {
            last_answer: evidence.last_answer.map(|at| wall.text(at)),
            doubts: doubts.collect(),
        }
    }
}

impl CaseView {
    fn of(wall: Wall, case: Case) -> Self {
        let accusations = case.accusations.into_iter().map(|accused| AccusedView {
            by: accused.by.to_string(),
            at: wall.text(accused.at),
            first_hand: accused.first_hand,
            dead: accused.dead,
            counted: accused.counted,
        });
        let probes = case.probes.into_iter().map(|probe| ProbeView {
            started: wall.text(probe.started),
            ended: wall.text(probe.ended),
            took_seconds: probe
                .ended
                .saturating_duration_since(probe.started)
                .as_secs_f64(),
            helpers: probe.helpers,
            nacks: probe.nacks,
            over_connection: probe.over_connection,
            answered: probe.answered,
        });
        Self {
            incarnation: case.incarnation,
            began: wall.text(case.began),
            members: case.members,
            shortest_seconds: case.shortest.as_secs_f64(),
            longest_seconds: case.longest.as_secs_f64(),
            confirmations_wanted: case.wanted,
            accusations: accusations.collect(),
            more_accusations: case.more_accusations,
            probes: probes.collect(),
            more_probes: case.more_probes,
            vetoes: case.vetoes,
            verdict: case.verdict.map(|verdict| VerdictView::of(wall, verdict)),
        }
    }
}

impl VerdictView {
    fn of(wall: Wall, verdict: Verdict) -> Self {
        let (ending, fast, from) = match verdict.ending {
            Ending::Refuted => ("refuted", false, None),
            Ending::Left => ("left", false, None),
            Ending::Dead { fast } => ("dead", fast, None),
            Ending::TakenOver { from } => ("taken_over", false, Some(from.to_string())),
        };
        Self {
            at: wall.text(verdict.at),
            ending: ending.to_owned(),
            fast,
            from,
            health_score: verdict.health_score,
            evidence: EvidenceView::of(wall, verdict.evidence),
        }
    }
}

/// The object of `keys list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeysView {
    pub(crate) schema: u32,
    pub(crate) node: String,
    pub(crate) cluster: String,
    pub(crate) fixed: bool,
    pub(crate) members: usize,
    pub(crate) keys: Vec<KeyView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeyView {
    pub(crate) key: String,
    pub(crate) generation: u32,
    pub(crate) seals: bool,
    pub(crate) confirmed: usize,
    pub(crate) members: usize,
    pub(crate) missing: Vec<String>,
}

impl KeysView {
    pub(crate) fn of(node: &Node, keys: Keys) -> Self {
        let members = keys.members;
        let views = keys.keys.into_iter().map(|key| KeyView {
            key: key.id.to_string(),
            generation: key.generation,
            seals: key.seals,
            confirmed: key.confirmed,
            members,
            missing: key.missing.iter().map(ToString::to_string).collect(),
        });
        Self {
            schema: 1,
            node: node.id().to_string(),
            cluster: node.cluster().to_string(),
            fixed: keys.fixed,
            members,
            keys: views.collect(),
        }
    }
}

/// One node's answer to a query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AnswerView {
    pub(crate) node: String,
    #[serde(flatten)]
    pub(crate) answer: PayloadView,
}

/// The object of `tags`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TagsView {
    pub(crate) schema: u32,
    pub(crate) node: String,
    pub(crate) tags: BTreeMap<String, String>,
}

/// The object of `send` and `broadcast`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeliveryView {
    pub(crate) schema: u32,
    pub(crate) ok: Vec<String>,
    pub(crate) failed: Vec<FailedView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FailedView {
    pub(crate) node: String,
    pub(crate) error: String,
}

/// Why a line could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("connection closed")]
    Closed,
    #[error("line is longer than {0} bytes")]
    TooLong(u64),
    #[error("not understood: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads one line of at most `longest` bytes, without its end.
pub(crate) fn read_line(reader: &mut impl BufRead, longest: u64) -> Result<Vec<u8>, ReadError> {
    let mut line = Vec::new();
    // One byte more than allowed tells a line that is too long from one that just fits.
    reader.take(longest + 1).read_until(b'\n', &mut line)?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        return Ok(line);
    }
    if line.len() as u64 > longest {
        return Err(ReadError::TooLong(longest));
    }
    Err(ReadError::Closed)
}

/// Reads one object from one line.
pub(crate) fn read_json<T: DeserializeOwned>(
    reader: &mut impl BufRead,
    longest: u64,
) -> Result<T, ReadError> {
    Ok(serde_json::from_slice(&read_line(reader, longest)?)?)
}

/// Reads exactly `length` bytes; memory grows with what arrives, not with what was announced.
pub(crate) fn read_payload(reader: &mut impl Read, length: u64) -> Result<Vec<u8>, ReadError> {
    if length > MAX_PAYLOAD {
        return Err(ReadError::TooLong(MAX_PAYLOAD));
    }
    let mut payload = Vec::new();
    reader.take(length).read_to_end(&mut payload)?;
    if payload.len() as u64 == length {
        Ok(payload)
    } else {
        Err(ReadError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use nodosum::unversioned::views::rfc3339;

    use super::*;

    #[test]
    fn every_command_survives_the_line() {
        let commands = [
            Command::Members,
            Command::Conns,
            Command::Status,
            Command::Events { follow: true },
            Command::Wait {
                members: Some(3),
                connected: None,
                ready: true,
                timeout_seconds: 0.25,
            },
            Command::Ping {
                node: "n2".into(),
                timeout_seconds: 5.0,
            },
            Command::Send {
                to: vec!["n2".into()],
                app: "echo".into(),
                timeout_seconds: 1.0,
                payload_bytes: 7,
            },
            Command::Broadcast {
                app: "echo".into(),
                timeout_seconds: 1.0,
                payload_bytes: 0,
            },
            Command::Request {
                to: "n2".into(),
                app: "echo".into(),
                timeout_seconds: 1.0,
                payload_bytes: MAX_PAYLOAD,
            },
            Command::Join {
                seeds: vec!["h:1".into()],
                timeout_seconds: 1.0,
            },
            Command::Leave {
                timeout_seconds: 1.0,
            },
            Command::ForceLeave { node: "n3".into() },
        ];
        for command in commands {
            let envelope = Envelope {
                version: VERSION,
                command,
            };
            let mut line = serde_json::to_vec(&envelope).unwrap();
            line.push(b'\n');
            let back: Envelope = read_json(&mut line.as_slice(), MAX_REQUEST_LINE).unwrap();
            assert_eq!(back, envelope);
        }
    }

    #[test]
    fn a_reply_of_each_shape_survives_the_line() {
        let event = EventView {
            schema: 1,
            seq: 1,
            at: rfc3339(SystemTime::UNIX_EPOCH),
            event: "ready".into(),
            node: None,
            reason: None,
            missed: None,
            unacknowledged: None,
            user: None,
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            "{\"schema\":1,\"seq\":1,\"at\":\"1970-01-01T00:00:00.000000Z\",\"event\":\"ready\",\
             \"node\":null,\"reason\":null}"
        );
        let view = DeliveryView {
            schema: 1,
            ok: vec!["n2".into()],
            failed: vec![FailedView {
                node: "n3".into(),
                error: "no".into(),
            }],
        };
        assert_eq!(
            serde_json::to_string(&view).unwrap(),
            "{\"schema\":1,\"ok\":[\"n2\"],\"failed\":[{\"node\":\"n3\",\"error\":\"no\"}]}"
        );
        let replies = [
            Reply::Event(event),
            Reply::Delivery(view),
            Reply::End,
            Reply::Done,
            Reply::Pong {
                rtt_seconds: 0.000_4,
            },
            Reply::Payload { payload_bytes: 3 },
            Reply::Joined { answered: 1 },
            Reply::Left {
                confirmed: vec![],
                unconfirmed: vec!["n2".into()],
            },
            Reply::Error {
                exit: Exit::Unmet,
                message: "m".into(),
                hint: None,
            },
        ];
        for reply in replies {
            let line = serde_json::to_string(&reply).unwrap();
            assert_eq!(
                serde_json::from_str::<Reply>(&line).unwrap(),
                reply,
                "{line}"
            );
        }
    }

    #[test]
    fn the_keys_of_members_and_conns_are_the_published_ones() {
        let member = MemberView {
            node: "n2".into(),
            status: "alive".into(),
            quic_addr: "127.0.0.1:1".into(),
            gossip_addr: "127.0.0.1:2".into(),
            incarnation: 3,
            tags: [("k".to_owned(), "v".to_owned())].into(),
            is_self: false,
            connected: true,
            rtt_seconds: Some(0.000_4),
            version: "0.1.0".into(),
        };
        assert_eq!(
            serde_json::to_string(&member).unwrap(),
            "{\"node\":\"n2\",\"status\":\"alive\",\"quic_addr\":\"127.0.0.1:1\",\
             \"gossip_addr\":\"127.0.0.1:2\",\"incarnation\":3,\"tags\":{\"k\":\"v\"},\
             \"self\":false,\"connected\":true,\"rtt_seconds\":0.0004,\"version\":\"0.1.0\"}"
        );
        let conn = ConnView {
            peer: Some("n2".into()),
            side: None,
            state: "down".into(),
            addr: "127.0.0.1:1".into(),
            rtt_seconds: None,
            min_rtt_seconds: None,
            cwnd_bytes: 0,
            mtu_bytes: 0,
            sent_bytes: 0,
            received_bytes: 0,
            sent_packets: 0,
            received_packets: 0,
            lost_packets: 0,
            streams: 0,
            idle_seconds: None,
            up_seconds: None,
            last_ping_seconds: None,
            ping_failures: 0,
            dials: 2,
            last_error: Some("refused".into()),
            next_dial_seconds: Some(0.5),
        };
        assert_eq!(
            serde_json::to_string(&conn).unwrap(),
            "{\"peer\":\"n2\",\"side\":null,\"state\":\"down\",\"addr\":\"127.0.0.1:1\",\
             \"rtt_seconds\":null,\"min_rtt_seconds\":null,\"cwnd_bytes\":0,\"mtu_bytes\":0,\
             \"sent_bytes\":0,\"received_bytes\":0,\"sent_packets\":0,\"received_packets\":0,\
             \"lost_packets\":0,\"streams\":0,\"idle_seconds\":null,\"up_seconds\":null,\
             \"last_ping_seconds\":null,\"ping_failures\":0,\"dials\":2,\
             \"last_error\":\"refused\",\"next_dial_seconds\":0.5}"
        );
    }

    #[test]
    fn lines_and_payloads_are_bounded_and_cut_ones_noticed() {
        assert_eq!(read_line(&mut &b"abc\nrest"[..], 3).unwrap(), b"abc");
        assert!(matches!(
            read_line(&mut &b"abcd\n"[..], 3),
            Err(ReadError::TooLong(3))
        ));
        assert!(matches!(
            read_line(&mut &b"ab"[..], 3),
            Err(ReadError::Closed)
        ));
        assert!(matches!(
            read_line(&mut &b""[..], 3),
            Err(ReadError::Closed)
        ));
        assert_eq!(read_payload(&mut &b"abc"[..], 2).unwrap(), b"ab");
        assert!(matches!(
            read_payload(&mut &b"abc"[..], 4),
            Err(ReadError::Closed)
        ));
        assert!(matches!(
            read_payload(&mut &b"abc"[..], MAX_PAYLOAD + 1),
            Err(ReadError::TooLong(MAX_PAYLOAD))
        ));
    }
}
