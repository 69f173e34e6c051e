//! The public JSON objects, as the commands of the binary print them: their field names are an interface
//! and never change their meaning or unit.

#![expect(
    clippy::disallowed_methods,
    reason = "people are told how long a certificate is valid from now on"
)]

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::text::rfc3339;
use crate::{
    event::{Event, EventKind},
    process,
    stats::{ClosedConnection, ConnectionInfo, MemberInfo},
    view::View,
};

/// The object of `members`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MembersView {
    pub(crate) schema: u32,
    pub(crate) node: String,
    pub(crate) cluster: String,
    pub(crate) members: Vec<MemberView>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MemberView {
    pub(crate) node: String,
    pub(crate) status: String,
    pub(crate) quic_addr: String,
    pub(crate) gossip_addr: String,
    pub(crate) incarnation: u64,
    pub(crate) tags: BTreeMap<String, String>,
    #[serde(rename = "self")]
    pub(crate) is_self: bool,
    pub(crate) connected: bool,
    pub(crate) rtt_seconds: Option<f64>,
    pub(crate) version: String,
}

impl MembersView {
    pub(crate) fn of(view: &View) -> Self {
        Self {
            schema: 1,
            node: view.node.to_string(),
            cluster: view.cluster.to_string(),
            members: view.members().into_iter().map(MemberView::from).collect(),
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
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ConnsView {
    pub(crate) schema: u32,
    pub(crate) node: String,
    pub(crate) connections: Vec<ConnView>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct ConnView {
    pub(crate) peer: Option<String>,
    pub(crate) side: Option<String>,
    pub(crate) state: String,
    pub(crate) addr: String,
    pub(crate) rtt_seconds: Option<f64>,
    pub(crate) min_rtt_seconds: Option<f64>,
    pub(crate) cwnd_bytes: u64,
    pub(crate) mtu_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_packets: u64,
    pub(crate) received_packets: u64,
    pub(crate) lost_packets: u64,
    pub(crate) streams: u64,
    pub(crate) idle_seconds: Option<f64>,
    pub(crate) up_seconds: Option<f64>,
    pub(crate) last_ping_seconds: Option<f64>,
    pub(crate) ping_failures: u64,
    pub(crate) dials: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) next_dial_seconds: Option<f64>,
}

impl ConnsView {
    pub(crate) fn of(view: &View) -> Self {
        Self {
            schema: 1,
            node: view.node.to_string(),
            connections: view.connections().into_iter().map(ConnView::from).collect(),
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
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct StatusView {
    pub(crate) schema: u32,
    pub(crate) node: String,
    pub(crate) cluster: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: f64,
    pub(crate) ready: bool,
    pub(crate) members: MemberCountsView,
    pub(crate) connections: ConnectionCountsView,
    pub(crate) health_score: u32,
    pub(crate) threads: usize,
    pub(crate) open_fds: Option<u64>,
    pub(crate) rss_bytes: Option<u64>,
    pub(crate) roster_saves: u64,
    pub(crate) roster_failures: u64,
    pub(crate) refused: RefusedView,
    pub(crate) lost: LostView,
    pub(crate) events: EventCountsView,
    /// When the node's certificate ends, RFC 3339.
    pub(crate) certificate_ends: String,
    /// How long that is from now; 0 when it has ended.
    pub(crate) certificate_remaining_seconds: f64,
}

/// What the node has refused since its start, by the names of `nodosum::RefusedCounts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct RefusedView {
    pub(crate) gossip: u64,
    pub(crate) quic: u64,
    pub(crate) records: u64,
    pub(crate) unproven_records: u64,
    pub(crate) statements: u64,
    pub(crate) events: u64,
    pub(crate) stale_events: u64,
    pub(crate) keyrings: u64,
    pub(crate) syncs: u64,
    pub(crate) implausible: u64,
    pub(crate) conflicting: u64,
    pub(crate) stale: u64,
    pub(crate) stray: u64,
}

/// What the node could not keep or pass on because a bound was reached, by the names of
/// `nodosum::LostCounts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct LostView {
    pub(crate) gossip: u64,
    pub(crate) news: u64,
    pub(crate) members: u64,
    pub(crate) probes: u64,
    pub(crate) waiting_records: u64,
    pub(crate) remembered: u64,
}

/// Events and queries of applications since the node's start, by the names of
/// `nodosum::EventCounts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct EventCountsView {
    pub(crate) emitted: u64,
    pub(crate) received: u64,
    pub(crate) copies: u64,
    pub(crate) dropped: u64,
    pub(crate) unanswered: u64,
    pub(crate) answers_lost: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MemberCountsView {
    pub(crate) alive: usize,
    pub(crate) suspect: usize,
    pub(crate) dead: usize,
    pub(crate) left: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ConnectionCountsView {
    pub(crate) established: usize,
    pub(crate) handshaking: usize,
    pub(crate) draining: usize,
    pub(crate) down: usize,
}

impl StatusView {
    pub(crate) fn of(view: &View) -> Self {
        let status = view.status();
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
            certificate_remaining_seconds: status
                .certificate_ends
                .duration_since(SystemTime::now())
                .unwrap_or_default()
                .as_secs_f64()
                .floor(),
        }
    }
}

/// One event, as `events -o jsonl` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EventView {
    pub(crate) schema: u32,
    /// Counts what this client was told, without gaps.
    pub(crate) seq: u64,
    pub(crate) at: String,
    pub(crate) event: String,
    pub(crate) node: Option<String>,
    pub(crate) reason: Option<String>,
    /// How many events are missing before this one; of `lagged` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) missed: Option<u64>,
    /// How many messages the peer never acknowledged; of `disconnected` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unacknowledged: Option<u64>,
    /// What an application told everybody; of `user_event` only.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<Box<UserEventView>>,
}

/// What a `user_event` has beside the fields of all events.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct UserEventView {
    pub(crate) name: String,
    pub(crate) lamport: u64,
    #[serde(flatten)]
    pub(crate) payload: PayloadView,
}

/// Bytes of an application: as text, or in hexadecimal where they are none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PayloadView {
    pub(crate) payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload_hex: Option<String>,
}

impl PayloadView {
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
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

fn seconds(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64())
}

/// The object of `/debug/quic`: that of `conns`, and what has ended.
#[derive(Debug, Serialize)]
pub(crate) struct QuicView {
    #[serde(flatten)]
    pub(crate) conns: ConnsView,
    pub(crate) closed: Vec<ClosedView>,
}

impl QuicView {
    pub(crate) fn of(view: &View) -> Self {
        Self {
            conns: ConnsView::of(view),
            closed: view
                .closed()
                .into_iter()
                .rev()
                .map(ClosedView::from)
                .collect(),
        }
    }
}

/// A connection that ended, the latest first.
#[derive(Debug, Serialize)]
pub(crate) struct ClosedView {
    pub(crate) peer: Option<String>,
    pub(crate) side: String,
    pub(crate) addr: String,
    pub(crate) at: String,
    pub(crate) kind: String,
    pub(crate) reason: String,
    /// Null when the handshake failed.
    pub(crate) up_seconds: Option<f64>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) unacknowledged: u64,
    pub(crate) count: u64,
}

impl From<ClosedConnection> for ClosedView {
    fn from(closed: ClosedConnection) -> Self {
        Self {
            peer: closed.peer.map(|peer| peer.to_string()),
            side: closed.side.as_str().to_owned(),
            addr: closed.addr.to_string(),
            at: rfc3339(closed.at),
            kind: closed.kind.to_owned(),
            reason: closed.reason,
            up_seconds: seconds(closed.up),
            sent_bytes: closed.sent_bytes,
            received_bytes: closed.received_bytes,
            unacknowledged: closed.unacknowledged,
            count: closed.count,
        }
    }
}

/// The object of `/debug/events`: what the node remembers, the oldest first.
#[derive(Debug, Serialize)]
pub(crate) struct EventsView {
    pub(crate) schema: u32,
    pub(crate) node: String,
    pub(crate) events: Vec<EventView>,
}
