//! The public JSON objects, as the commands of the binary and the paths of the HTTP server print them:
//! their field names are an interface and never change their meaning or unit.

#![expect(
    clippy::disallowed_methods,
    reason = "people are told how long a certificate is valid from now on"
)]

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    event::{Event, EventKind},
    node_id::{ClusterName, NodeId},
    process,
    stats::{ConnectionInfo, MemberInfo, SeedInfo, Status},
};

/// The object of `members`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MembersView {
    pub schema: u32,
    pub node: String,
    pub cluster: String,
    pub members: Vec<MemberView>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    pub node: String,
    pub status: String,
    pub quic_addr: String,
    pub gossip_addr: String,
    pub incarnation: u64,
    pub tags: BTreeMap<String, String>,
    #[serde(rename = "self")]
    pub is_self: bool,
    pub connected: bool,
    pub rtt_seconds: Option<f64>,
    pub version: String,
}

impl MembersView {
    pub fn of(node: &NodeId, cluster: &ClusterName, members: Vec<MemberInfo>) -> Self {
        Self {
            schema: 1,
            node: node.to_string(),
            cluster: cluster.to_string(),
            members: members.into_iter().map(MemberView::from).collect(),
        }
    }
}

impl From<MemberInfo> for MemberView {
    fn from(member: MemberInfo) -> Self {
        Self {
            node: member.node.to_string(),
            status: member.status.to_string(),
            quic_addr: member.quic_addr.to_string(),
            gossip_addr: member.gossip_addr.to_string(),
            incarnation: member.incarnation,
            tags: member.tags,
            is_self: member.is_self,
            connected: member.connected,
            rtt_seconds: seconds(member.rtt),
            version: member.version,
        }
    }
}

/// The object of `conns`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnsView {
    pub schema: u32,
    pub node: String,
    pub connections: Vec<ConnView>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnView {
    pub peer: Option<String>,
    pub side: Option<String>,
    pub state: String,
    pub addr: String,
    pub rtt_seconds: Option<f64>,
    pub min_rtt_seconds: Option<f64>,
    pub cwnd_bytes: u64,
    pub mtu_bytes: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub received_packets: u64,
    pub lost_packets: u64,
    pub streams: u64,
    pub idle_seconds: Option<f64>,
    pub up_seconds: Option<f64>,
    pub last_ping_seconds: Option<f64>,
    pub ping_failures: u64,
    pub dials: u64,
    pub last_error: Option<String>,
    pub next_dial_seconds: Option<f64>,
}

impl ConnsView {
    pub fn of(node: &NodeId, connections: Vec<ConnectionInfo>) -> Self {
        Self {
            schema: 1,
            node: node.to_string(),
            connections: connections.into_iter().map(ConnView::from).collect(),
        }
    }
}

impl From<ConnectionInfo> for ConnView {
    fn from(connection: ConnectionInfo) -> Self {
        Self {
            peer: connection.peer.map(|peer| peer.to_string()),
            side: connection.side.map(|side| side.as_str().to_owned()),
            state: connection.state.as_str().to_owned(),
            addr: connection.addr.to_string(),
            rtt_seconds: seconds(connection.rtt),
            min_rtt_seconds: seconds(connection.min_rtt),
            cwnd_bytes: connection.cwnd_bytes,
            mtu_bytes: connection.mtu_bytes,
            sent_bytes: connection.sent_bytes,
            received_bytes: connection.received_bytes,
            sent_packets: connection.sent_packets,
            received_packets: connection.received_packets,
            lost_packets: connection.lost_packets,
            streams: connection.streams,
            idle_seconds: seconds(connection.idle),
            up_seconds: seconds(connection.up),
            last_ping_seconds: seconds(connection.last_ping),
            ping_failures: connection.ping_failures,
            dials: connection.dials,
            last_error: connection.last_error,
            next_dial_seconds: seconds(connection.next_dial),
        }
    }
}

/// The object of `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    pub schema: u32,
    pub node: String,
    pub cluster: String,
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: f64,
    pub ready: bool,
    pub members: MemberCountsView,
    pub connections: ConnectionCountsView,
    /// Nodes of earlier releases do not say.
    #[serde(default)]
    pub seeds: Vec<SeedView>,
    pub health_score: u32,
    pub threads: usize,
    pub open_fds: Option<u64>,
    pub rss_bytes: Option<u64>,
    /// Nodes of earlier releases do not say.
    #[serde(default)]
    pub roster_saves: u64,
    #[serde(default)]
    pub roster_failures: u64,
    #[serde(default)]
    pub refused: RefusedView,
    #[serde(default)]
    pub lost: LostView,
    #[serde(default)]
    pub events: EventCountsView,
    /// When the node's certificate ends, RFC 3339.
    #[serde(default)]
    pub certificate_ends: String,
    /// How long that is from now; 0 when it has ended.
    #[serde(default)]
    pub certificate_remaining_seconds: f64,
    /// Where the page and the metrics are served, if they are.
    #[serde(default)]
    pub http: Option<String>,
}

/// A seed, as `status` prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SeedView {
    pub seed: String,
    pub node: Option<String>,
    pub connected: bool,
    pub failures: u32,
    pub last_error: Option<String>,
}

impl SeedView {
    /// Why it does not lead into the cluster now. `None` where it does, and before a try has failed.
    pub fn trouble(&self) -> Option<&str> {
        self.last_error.as_deref().filter(|_| !self.connected)
    }
}

/// What the node has refused since its start, by the names of [`RefusedCounts`](crate::RefusedCounts).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedView {
    pub gossip: u64,
    pub quic: u64,
    pub records: u64,
    pub unproven_records: u64,
    pub statements: u64,
    pub events: u64,
    pub stale_events: u64,
    pub keyrings: u64,
    pub syncs: u64,
    pub implausible: u64,
    pub conflicting: u64,
    pub stale: u64,
    pub stray: u64,
}

impl RefusedView {
    /// Each count with its name.
    pub fn rows(&self) -> [(&'static str, u64); 13] {
        [
            ("gossip", self.gossip),
            ("quic", self.quic),
            ("records", self.records),
            ("unproven_records", self.unproven_records),
            ("statements", self.statements),
            ("events", self.events),
            ("stale_events", self.stale_events),
            ("keyrings", self.keyrings),
            ("syncs", self.syncs),
            ("implausible", self.implausible),
            ("conflicting", self.conflicting),
            ("stale", self.stale),
            ("stray", self.stray),
        ]
    }
}

/// What the node could not keep or pass on because a bound was reached, by the names of
/// [`LostCounts`](crate::LostCounts).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LostView {
    pub gossip: u64,
    pub news: u64,
    pub members: u64,
    pub probes: u64,
    pub waiting_records: u64,
    pub remembered: u64,
}

impl LostView {
    /// Each count with its name.
    pub fn rows(&self) -> [(&'static str, u64); 6] {
        [
            ("gossip", self.gossip),
            ("news", self.news),
            ("members", self.members),
            ("probes", self.probes),
            ("waiting_records", self.waiting_records),
            ("remembered", self.remembered),
        ]
    }
}

/// Events and queries of applications since the node's start, by the names of
/// [`EventCounts`](crate::EventCounts).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventCountsView {
    pub emitted: u64,
    pub received: u64,
    pub copies: u64,
    pub dropped: u64,
    pub unanswered: u64,
    pub answers_lost: u64,
}

impl EventCountsView {
    /// Each count with its name.
    pub fn rows(&self) -> [(&'static str, u64); 6] {
        [
            ("emitted", self.emitted),
            ("received", self.received),
            ("copies", self.copies),
            ("dropped", self.dropped),
            ("unanswered", self.unanswered),
            ("answers_lost", self.answers_lost),
        ]
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberCountsView {
    pub alive: usize,
    pub suspect: usize,
    pub dead: usize,
    pub left: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionCountsView {
    pub established: usize,
    pub handshaking: usize,
    pub draining: usize,
    pub down: usize,
}

impl From<SeedInfo> for SeedView {
    fn from(info: SeedInfo) -> Self {
        Self {
            seed: info.seed,
            node: info.node.map(|node| node.to_string()),
            connected: info.connected,
            failures: info.failures,
            last_error: info.last_error,
        }
    }
}

impl From<Status> for StatusView {
    fn from(status: Status) -> Self {
        let remaining = status.certificate_ends.duration_since(SystemTime::now());
        Self {
            schema: 1,
            node: status.node.to_string(),
            cluster: status.cluster.to_string(),
            version: status.version.to_owned(),
            pid: std::process::id(),
            uptime_seconds: status.uptime.as_secs_f64(),
            ready: status.ready,
            members: MemberCountsView {
                alive: status.members.alive,
                suspect: status.members.suspect,
                dead: status.members.dead,
                left: status.members.left,
            },
            connections: ConnectionCountsView {
                established: status.connections.established,
                handshaking: status.connections.handshaking,
                draining: status.connections.draining,
                down: status.connections.down,
            },
            seeds: status.seeds.into_iter().map(SeedView::from).collect(),
            health_score: status.health_score,
            threads: status.threads,
            open_fds: process::open_fds(),
            rss_bytes: process::resident_bytes(),
            roster_saves: status.roster_saves,
            roster_failures: status.roster_failures,
            refused: RefusedView {
                gossip: status.refused.gossip,
                quic: status.refused.quic,
                records: status.refused.records,
                unproven_records: status.refused.unproven_records,
                statements: status.refused.statements,
                events: status.refused.events,
                stale_events: status.refused.stale_events,
                keyrings: status.refused.keyrings,
                syncs: status.refused.syncs,
                implausible: status.refused.implausible,
                conflicting: status.refused.conflicting,
                stale: status.refused.stale,
                stray: status.refused.stray,
            },
            lost: LostView {
                gossip: status.lost.gossip,
                news: status.lost.news,
                members: status.lost.members,
                probes: status.lost.probes,
                waiting_records: status.lost.waiting_records,
                remembered: status.lost.remembered,
            },
            events: EventCountsView {
                emitted: status.events.emitted,
                received: status.events.received,
                copies: status.events.copies,
                dropped: status.events.dropped,
                unanswered: status.events.unanswered,
                answers_lost: status.events.answers_lost,
            },
            certificate_ends: rfc3339(status.certificate_ends),
            certificate_remaining_seconds: remaining.unwrap_or_default().as_secs_f64().floor(),
            http: status.http_addr.map(|addr| addr.to_string()),
        }
    }
}

/// One event, as `events -o jsonl` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    pub schema: u32,
    /// Counts what this client was told, without gaps.
    pub seq: u64,
    pub at: String,
    pub event: String,
    pub node: Option<String>,
    pub reason: Option<String>,
    /// How many events are missing before this one; of `lagged` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// How many messages the peer never acknowledged; of `disconnected` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unacknowledged: Option<u64>,
    /// What an application told everybody; of `user_event` only.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub user: Option<Box<UserEventView>>,
}

/// What a `user_event` has beside the fields of all events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserEventView {
    pub name: String,
    pub lamport: u64,
    #[serde(flatten)]
    pub payload: PayloadView,
}

/// Bytes of an application: as text, or in hexadecimal where they are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PayloadView {
    pub payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_hex: Option<String>,
}

impl PayloadView {
    pub fn of(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self {
                payload: Some(text),
                payload_hex: None,
            },
            Err(error) => Self {
                payload: None,
                payload_hex: Some(hex(error.as_bytes())),
            },
        }
    }

    /// Leaves only how long it was.
    pub fn withhold(&mut self) {
        let text = self.payload.take().map(|text| text.len());
        let digits = self.payload_hex.take().map(|digits| digits.len() / 2);
        let bytes = text.or(digits).unwrap_or(0);
        self.payload = Some(format!("({bytes} bytes)"));
    }

    /// For a table: the text, or `0x` and the digits.
    pub fn text(&self) -> String {
        match (&self.payload, &self.payload_hex) {
            (Some(text), _) => text.clone(),
            (None, Some(digits)) => format!("0x{digits}"),
            (None, None) => String::new(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        let (mut missed, mut unacknowledged, mut user) = (None, None, None);
        if let EventKind::UserEvent {
            name,
            payload,
            lamport,
            ..
        } = &event.kind
        {
            user = Some(Box::new(UserEventView {
                name: name.clone(),
                lamport: *lamport,
                payload: PayloadView::of(payload.clone()),
            }));
        }
        if let EventKind::Lagged { missed: count } = event.kind {
            missed = Some(count);
        }
        if let EventKind::Disconnected {
            unacknowledged: count,
            ..
        } = event.kind
        {
            unacknowledged = Some(count);
        }
        Self {
            schema: 1,
            seq: event.seq,
            at: rfc3339(event.at),
            event: event.kind.name().to_owned(),
            node: event.kind.node().map(ToString::to_string),
            reason: event.kind.reason().map(str::to_owned),
            missed,
            unacknowledged,
            user,
        }
    }
}

pub fn seconds(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64())
}

/// A time in UTC with microseconds. A clock outside the years that can be written (−9999 to 9999)
/// shows as the epoch.
pub fn rfc3339(at: SystemTime) -> String {
    format!(
        "{:.6}",
        Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
    )
}
