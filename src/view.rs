//! What a running node lets its owner and onlookers read: members, connections, status, figures.
//!
//! Everything here is a copy of what the reactor published or of counters; no call waits for the
//! reactor, but for those that say so, and none takes a lock that a connection holds while it works.

#![expect(
    clippy::disallowed_methods,
    reason = "ages are told against the real clock"
)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::{
    app::Workers,
    error::CommandError,
    explanation::Explanation,
    figures::{Figures, GossipFigures, QueueFigures},
    inbox::Registry,
    node_id::{ClusterName, NodeId},
    reactor::{Command, Counters},
    snapshot::{Snapshot, Stage},
    state_dir,
    stats::{
        ClosedConnection, ConnectionCounts, ConnectionInfo, ConnectionState, LostCounts,
        MemberCounts, MemberInfo, MemberStatus, PeerInfo, RefusedCounts, Status,
    },
    swim,
    transport::{Context, QUICHE_VERSION, process_queued},
    waker::{Waker, deadline_after},
};

/// A running node, to be read.
pub(crate) struct View {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterName,
    /// From when until when the node's certificate is valid.
    pub(crate) certificate: Mutex<(SystemTime, SystemTime)>,
    pub(crate) http_addr: Option<SocketAddr>,
    pub(crate) context: Arc<Context>,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) writer: Option<state_dir::Writer>,
    pub(crate) commands: Sender<Command>,
    pub(crate) waker: Arc<Waker>,
    /// Threads that serve HTTP.
    pub(crate) http_threads: usize,
}

impl View {
    /// Hands the reactor a command.
    pub(crate) fn tell(&self, command: Command, deadline: Instant) -> Result<(), CommandError> {
        use crossbeam_channel::SendTimeoutError::{Disconnected, Timeout};
        let started = Instant::now();
        self.commands
            .send_deadline(command, deadline)
            .map_err(|error| match error {
                Timeout(_) => CommandError::Timeout(started.elapsed()),
                Disconnected(_) => CommandError::Stopped,
            })?;
        self.waker.wake();
        Ok(())
    }

    /// Hands the reactor a command and waits for its answer.
    pub(crate) fn ask<T>(
        &self,
        timeout: Duration,
        command: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, CommandError> {
        let deadline = deadline_after(Instant::now(), timeout);
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.tell(command(reply), deadline)?;
        answer.recv_deadline(deadline).map_err(|error| match error {
            crossbeam_channel::RecvTimeoutError::Timeout => CommandError::Timeout(timeout),
            crossbeam_channel::RecvTimeoutError::Disconnected => CommandError::Stopped,
        })
    }

    /// Why a member is believed to be what it is. Waits for the reactor.
    pub(crate) fn explain(
        &self,
        node: &NodeId,
        timeout: Duration,
    ) -> Result<Explanation, CommandError> {
        let asked = node.clone();
        self.ask(timeout, |reply| Command::Explain { node: asked, reply })?
            .ok_or_else(|| CommandError::UnknownMember(node.to_string()))
    }

    pub(crate) fn members(&self) -> Vec<MemberInfo> {
        self.snapshot.members()
    }

    pub(crate) fn peers(&self) -> Vec<PeerInfo> {
        let peers = self.snapshot.peers().into_iter();
        peers
            .map(|(node, connection)| PeerInfo {
                node,
                addr: connection.addr,
                side: connection.side,
                rtt: connection.info().rtt,
            })
            .collect()
    }

    pub(crate) fn connections(&self) -> Vec<ConnectionInfo> {
        self.snapshot.connections(Instant::now())
    }

    pub(crate) fn closed(&self) -> Vec<ClosedConnection> {
        self.snapshot.closed()
    }

    pub(crate) fn status(&self) -> Status {
        let mut members = MemberCounts::default();
        for member in self.members() {
            let count = match member.status {
                MemberStatus::Alive => &mut members.alive,
                MemberStatus::Suspect => &mut members.suspect,
                MemberStatus::Dead => &mut members.dead,
                MemberStatus::Left => &mut members.left,
            };
            *count += 1;
        }
        let mut connections = ConnectionCounts::default();
        for connection in self.connections() {
            let count = match connection.state {
                ConnectionState::Handshaking => &mut connections.handshaking,
                ConnectionState::Established => &mut connections.established,
                ConnectionState::Draining => &mut connections.draining,
                ConnectionState::Down => &mut connections.down,
            };
            *count += 1;
        }
        let saves = |count: fn(&state_dir::Counters) -> &AtomicU64| {
            let writer = self.writer.as_ref();
            writer.map_or(0, |writer| count(writer.counters()).load(Relaxed))
        };
        let (certificate_begins, certificate_ends) = *self.certificate.lock();
        Status {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            version: env!("CARGO_PKG_VERSION"),
            quiche: QUICHE_VERSION,
            uptime: self.context.started_at.elapsed(),
            ready: self.snapshot.stage() == Stage::Started,
            members,
            connections,
            seeds: self.snapshot.seeds().to_vec(),
            health_score: self.snapshot.health_score(),
            threads: self.threads().values().sum(),
            roster_saves: saves(|counters| &counters.saved),
            roster_failures: saves(|counters| &counters.failed),
            refused: self.refused(),
            lost: LostCounts {
                gossip: self.counters.gossip_unsent.load(Relaxed),
                ..self.snapshot.lost()
            },
            events: self.snapshot.events(),
            transport: self.context.counters.counts(),
            http_addr: self.http_addr,
            certificate_begins,
            certificate_ends,
        }
    }

    /// Threads of this node by role.
    fn threads(&self) -> BTreeMap<&'static str, usize> {
        let runs = !matches!(self.snapshot.stage(), Stage::Stopped | Stage::Failed(_));
        let connections = self.snapshot.links().len();
        let peer_threads = match self.context.config.workers {
            0 => connections,
            shared => connections.min(shared),
        };
        BTreeMap::from([
            ("reactor", usize::from(runs)),
            ("roster", usize::from(runs && self.writer.is_some())),
            ("peer", peer_threads),
            ("work", self.workers.count()),
            ("http", if runs { self.http_threads } else { 0 }),
        ])
    }

    fn refused(&self) -> RefusedCounts {
        let counters = &self.counters;
        RefusedCounts {
            gossip: counters.gossip_refused.load(Relaxed),
            quic: self.context.counters.refused_datagrams.load(Relaxed),
            records: counters.records_refused.load(Relaxed),
            unproven_records: counters.records_unproven.load(Relaxed),
            statements: counters.statements_refused.load(Relaxed),
            events: counters.events_refused.load(Relaxed),
            keyrings: counters.keyrings_refused.load(Relaxed),
            syncs: counters.syncs_refused.load(Relaxed)
                + self.context.counters.sync_floods.load(Relaxed),
            ..self.snapshot.refused()
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        let (peers, other_peers) = self.snapshot.peer_figures();
        let (outbox_bytes, outbox_capacity_bytes) = process_queued();
        let queue = |name, length, capacity: Option<usize>| QueueFigures {
            name,
            length,
            capacity: capacity.unwrap_or(0),
        };
        let notices = &self.context.notices;
        let commands = &self.commands;
        Figures {
            apps: self.registry.figures(),
            peers,
            other_peers,
            connections: self.counters.connections.lock().clone(),
            handshakes: self.context.counters.handshakes.get(),
            pings: self.context.counters.pings.get(),
            gossip: self.gossip(),
            queues: vec![
                queue("notices", notices.len(), notices.capacity()),
                queue("commands", commands.len(), commands.capacity()),
            ],
            outbox_bytes,
            outbox_capacity_bytes,
            threads: self.threads(),
        }
    }

    fn gossip(&self) -> GossipFigures {
        let counters = self.snapshot.gossip();
        let by_type = |counts: swim::MessageCounts| {
            BTreeMap::from([
                ("ping", counts.ping),
                ("ping_req", counts.ping_req),
                ("ack", counts.ack),
                ("nack", counts.nack),
                ("gossip", counts.gossip),
            ])
        };
        GossipFigures {
            probes: BTreeMap::from([
                ("direct", counters.probes_direct),
                ("indirect", counters.probes_indirect),
                ("connection", counters.probes_connection),
                ("evidence", counters.probes_by_evidence),
                ("failed", counters.probes_failed),
                ("abandoned", counters.probes_abandoned),
            ]),
            probe_times: counters.probe_times,
            suspicions: counters.suspicions,
            deaths: counters.deaths,
            refutations: counters.refutations,
            sent: by_type(counters.sent),
            received: by_type(counters.received),
            sent_bytes: self.counters.gossip_sent_bytes.load(Relaxed),
            received_bytes: self.counters.gossip_received_bytes.load(Relaxed),
        }
    }
}
