//! What a node counts and measures, as OpenMetrics.
//!
//! A scrape collects the figures of the node at that moment; nothing is kept for it between scrapes, and
//! no lock is taken that a connection or the reactor holds while it works. Names and units are an
//! interface: base units, `nodosum_` in front, counters that never run backwards, also when a connection
//! is replaced.
//!
//! The number of series is bounded: peers and applications beyond the first 1,000 and 64 share the
//! label [`OTHERS`], and every other label has a fixed set of values.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use crate::{
    figures::{Durations, Figures, OTHERS, PeerFigures},
    process,
    stats::ConnectionState,
    view::View,
};

/// Members with gauges of their own: as many as have counters.
const MAX_PEERS: usize = 1_000;

/// All metrics of a node.
///
/// # Errors
///
/// None that could happen: writing to memory does not fail.
pub(crate) fn encode(view: &Arc<View>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(Arc::clone(view))));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// The same in the older text format of Prometheus, which has the suffix of counters in their name and
/// knows no units and no end.
pub(crate) fn plain(openmetrics: &str) -> String {
    let mut plain = String::with_capacity(openmetrics.len());
    let counters: std::collections::BTreeSet<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    for line in openmetrics.lines() {
        let told = line
            .strip_prefix("# HELP ")
            .or_else(|| line.strip_prefix("# TYPE "));
        match told.and_then(|told| told.split_once(' ')) {
            Some((name, rest)) if counters.contains(name) => {
                let keyword = &line[..line.len() - name.len() - rest.len() - 1];
                plain.push_str(keyword);
                plain.push_str(name);
                plain.push_str("_total ");
                plain.push_str(rest);
            }
            Some(_) => plain.push_str(line),
            None if line.starts_with('#') => continue,
            None => plain.push_str(line),
        }
        plain.push('\n');
    }
    plain
}

struct Scrape(Arc<View>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scrape").field(&self.0.node).finish()
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let figures = self.0.figures();
        node(&mut out, &self.0)?;
        connections(&mut out, &self.0, &figures)?;
        peers(&mut out, &figures)?;
        applications(&mut out, &figures)?;
        queues(&mut out, &figures)?;
        gossip(&mut out, &self.0, &figures)?;
        system(&mut out, &figures)
    }
}

type Labels = Vec<(&'static str, String)>;

/// Where descriptions and samples go.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            sample(&mut family, &labels, |encoder| {
                encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
            })?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &'static str, help: &'static str, value: u64) -> fmt::Result {
        self.counters(name, help, [(Labels::new(), value)])
    }

    fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            sample(&mut family, &labels, |encoder| encoder.encode_gauge(&value))?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) -> fmt::Result {
        self.gauges(name, help, [(Labels::new(), value)])
    }

    fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, Durations)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, durations) in samples {
            let buckets: Vec<(f64, u64)> = durations
                .intervals()
                .map(|(end, count)| (end.map_or(f64::INFINITY, |end| end.as_secs_f64()), count))
                .collect();
            let (sum, count) = (durations.sum().as_secs_f64(), durations.count());
            sample(&mut family, &labels, |encoder| {
                encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            })?;
        }
        Ok(())
    }
}

/// Writes one sample of a family, with or without labels.
fn sample(
    family: &mut MetricEncoder<'_>,
    labels: &Labels,
    write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() {
        write(family)
    } else {
        write(&mut family.encode_family(labels)?)
    }
}

fn label(name: &'static str, value: impl ToString) -> Labels {
    vec![(name, value.to_string())]
}

#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floating-point numbers"
)]
fn float(value: impl TryInto<u64>) -> f64 {
    value.try_into().unwrap_or(u64::MAX) as f64
}

fn flag(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

fn since_epoch(at: SystemTime) -> f64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

fn node(out: &mut Out<'_>, view: &View) -> fmt::Result {
    let status = view.status();
    out.gauges(
        "nodosum_build_info",
        "Always 1; the labels tell which release runs, and on which quiche",
        [(
            vec![
                ("version", status.version.to_owned()),
                ("quiche", status.quiche.to_owned()),
            ],
            1.0,
        )],
    )?;
    out.gauge(
        "nodosum_ready",
        "Whether the first join round is over and the node is not leaving",
        flag(status.ready),
    )?;
    out.gauges(
        "nodosum_members",
        "Members by what this node believes of them, itself included",
        [
            (label("state", "alive"), float(status.members.alive)),
            (label("state", "suspect"), float(status.members.suspect)),
            (label("state", "dead"), float(status.members.dead)),
            (label("state", "left"), float(status.members.left)),
        ],
    )?;
    out.gauge(
        "nodosum_certificate_expiry_timestamp_seconds",
        "When the certificate of this node ends",
        since_epoch(status.certificate_ends),
    )?;
    let refused = status.refused;
    let refused = [
        ("gossip", refused.gossip),
        ("quic", refused.quic),
        ("records", refused.records),
        ("unproven_records", refused.unproven_records),
        ("statements", refused.statements),
        ("events", refused.events),
        ("stale_events", refused.stale_events),
        ("keyrings", refused.keyrings),
        ("syncs", refused.syncs),
        ("implausible", refused.implausible),
        ("conflicting", refused.conflicting),
        ("stale", refused.stale),
        ("stray", refused.stray),
    ];
    out.counters(
        "nodosum_refused",
        "What this node has refused, by kind; a growth without a reason is somebody trying",
        refused.map(|(what, count)| (label("what", what), count)),
    )?;
    let lost = status.lost;
    let lost = [
        ("gossip", lost.gossip),
        ("news", lost.news),
        ("members", lost.members),
        ("probes", lost.probes),
        ("waiting_records", lost.waiting_records),
        ("remembered", lost.remembered),
    ];
    out.counters(
        "nodosum_bounded",
        "What this node could not keep, send or do because a bound was reached, by kind",
        lost.map(|(what, count)| (label("what", what), count)),
    )?;
    let events = status.events;
    let events = [
        ("emitted", events.emitted),
        ("received", events.received),
        ("copies", events.copies),
        ("dropped", events.dropped),
        ("unanswered", events.unanswered),
        ("answers_lost", events.answers_lost),
    ];
    out.counters(
        "nodosum_user_events",
        "Events and queries of applications, by what became of them",
        events.map(|(outcome, count)| (label("outcome", outcome), count)),
    )
}

fn connections(out: &mut Out<'_>, view: &View, figures: &Figures) -> fmt::Result {
    let rows = view.connections();
    let states = [
        ConnectionState::Handshaking,
        ConnectionState::Established,
        ConnectionState::Draining,
    ];
    out.gauges(
        "nodosum_quic_connections",
        "Connections by where they are in their life",
        states.map(|state| {
            let count = rows.iter().filter(|row| row.state == state).count();
            (label("state", state.as_str()), float(count))
        }),
    )?;
    let of = &figures.connections;
    out.counters(
        "nodosum_quic_connections_opened",
        "Connections that came up, by which end opened them",
        [
            (label("side", "dialed"), of.opened_dialed),
            (label("side", "accepted"), of.opened_accepted),
        ],
    )?;
    let by = |name, counts: &std::collections::BTreeMap<&'static str, u64>| {
        let counts = counts
            .iter()
            .map(|(what, count)| (label(name, what), *count));
        counts.collect::<Vec<_>>()
    };
    out.counters(
        "nodosum_quic_connections_closed",
        "Connections that were up and ended, by reason",
        by("reason", &of.closed),
    )?;
    out.counters(
        "nodosum_quic_connection_errors",
        "Connections and handshakes that ended by a fault, by kind",
        by("kind", &of.errors),
    )?;
    out.counters(
        "nodosum_quic_dials",
        "Dials by outcome: ok, or why they failed",
        by("outcome", &of.dials),
    )?;
    out.histograms(
        "nodosum_quic_handshake_duration_seconds",
        "How long handshakes took, of connections that came up",
        [(Labels::new(), figures.handshakes)],
    )?;
    out.histograms(
        "nodosum_health_ping_duration_seconds",
        "Round trips of health pings over connections",
        [(Labels::new(), figures.pings)],
    )?;
    // One row a peer: the connection in use, or that there is none.
    let mut of_peers: Vec<_> = rows.iter().filter(|row| row.peer.is_some()).collect();
    of_peers.sort_by_key(|row| (&row.peer, row.state != ConnectionState::Established));
    of_peers.dedup_by_key(|row| &row.peer);
    of_peers.truncate(MAX_PEERS);
    let of_peer = |row: &&crate::stats::ConnectionInfo| {
        label(
            "peer",
            row.peer.as_ref().map_or(OTHERS, |peer| peer.as_str()),
        )
    };
    let up: Vec<_> = of_peers
        .iter()
        .filter(|row| row.state == ConnectionState::Established)
        .copied()
        .collect();
    out.gauges(
        "nodosum_quic_peer_up",
        "Whether there is a connection to a member in use",
        of_peers.iter().map(|row| {
            let is_up = row.state == ConnectionState::Established;
            (of_peer(row), flag(is_up))
        }),
    )?;
    let timed = |duration: fn(&crate::stats::ConnectionInfo) -> Option<Duration>| {
        let timed = up
            .iter()
            .filter_map(move |row| Some((of_peer(row), duration(row)?.as_secs_f64())));
        timed.collect::<Vec<_>>()
    };
    out.gauges(
        "nodosum_quic_peer_rtt_seconds",
        "Smoothed round-trip time of the connection in use",
        timed(|row| row.rtt),
    )?;
    out.gauges(
        "nodosum_quic_peer_min_rtt_seconds",
        "Lowest round-trip time seen on the connection in use",
        timed(|row| row.min_rtt),
    )?;
    let sized = |size: fn(&crate::stats::ConnectionInfo) -> u64| {
        let sized = up.iter().map(move |row| (of_peer(row), float(size(row))));
        sized.collect::<Vec<_>>()
    };
    out.gauges(
        "nodosum_quic_peer_cwnd_bytes",
        "Congestion window of the connection in use",
        sized(|row| row.cwnd_bytes),
    )?;
    out.gauges(
        "nodosum_quic_peer_mtu_bytes",
        "Largest datagram payload on the path of the connection in use",
        sized(|row| row.mtu_bytes),
    )?;
    out.gauges(
        "nodosum_quic_peer_streams",
        "Streams open on the connection in use",
        sized(|row| row.streams),
    )?;
    out.gauges(
        "nodosum_quic_dial_backoff_seconds",
        "Time to the next dial of a member without a connection",
        of_peers.iter().filter_map(|row| {
            let next = row.next_dial?;
            Some((of_peer(row), next.as_secs_f64()))
        }),
    )
}

fn peers(out: &mut Out<'_>, figures: &Figures) -> fmt::Result {
    let others =
        (figures.other_peers != PeerFigures::default()).then_some((OTHERS, &figures.other_peers));
    let named = figures.peers.iter().map(|(peer, of)| (peer.as_str(), of));
    let all: Vec<(&str, &PeerFigures)> = named.chain(others).collect();
    let mut each = |name, help, figure: fn(&PeerFigures) -> u64| {
        let samples = all
            .iter()
            .map(|(peer, of)| (label("peer", peer), figure(of)));
        out.counters(name, help, samples)
    };
    each("nodosum_quic_sent_bytes", "UDP payload bytes sent", |of| {
        of.sent_bytes
    })?;
    each(
        "nodosum_quic_received_bytes",
        "UDP payload bytes received",
        |of| of.received_bytes,
    )?;
    each(
        "nodosum_quic_lost_bytes",
        "Bytes of packets declared lost",
        |of| of.lost_bytes,
    )?;
    each("nodosum_quic_sent_packets", "QUIC packets sent", |of| {
        of.sent_packets
    })?;
    each(
        "nodosum_quic_received_packets",
        "QUIC packets received",
        |of| of.received_packets,
    )?;
    each(
        "nodosum_quic_lost_packets",
        "QUIC packets declared lost",
        |of| of.lost_packets,
    )?;
    each(
        "nodosum_health_ping_failures",
        "Health pings without an answer",
        |of| of.ping_failures,
    )
}

fn applications(out: &mut Out<'_>, figures: &Figures) -> fmt::Result {
    let apps = || figures.apps.iter();
    out.counters(
        "nodosum_messages_sent",
        "Messages and datagrams that connections have taken over",
        apps().map(|(app, of)| (label("app", app), of.sent)),
    )?;
    out.counters(
        "nodosum_messages_received",
        "Messages and datagrams that came",
        apps().map(|(app, of)| (label("app", app), of.received)),
    )?;
    out.counters(
        "nodosum_messages_dropped",
        "What was not delivered, by reason",
        apps().flat_map(|(app, of)| {
            of.dropped.iter().map(move |(reason, count)| {
                let labels = vec![("app", app.clone()), ("reason", reason.as_str().to_owned())];
                (labels, *count)
            })
        }),
    )?;
    out.counters(
        "nodosum_requests_received",
        "Requests that came",
        apps().map(|(app, of)| (label("app", app), of.requests_received)),
    )?;
    out.gauges(
        "nodosum_requests_in_flight",
        "Requests of this node that wait for their reply",
        apps().map(|(app, of)| (label("app", app), float(of.in_flight))),
    )?;
    out.histograms(
        "nodosum_request_duration_seconds",
        "How long requests of this node took, by how they ended",
        apps().flat_map(|(app, of)| {
            of.requests.iter().map(move |(end, durations)| {
                let labels = vec![("app", app.clone()), ("outcome", end.as_str().to_owned())];
                (labels, *durations)
            })
        }),
    )?;
    out.counters(
        "nodosum_handler_panics",
        "Handlers that panicked",
        apps().map(|(app, of)| (label("app", app), of.handler_panics)),
    )
}

fn queues(out: &mut Out<'_>, figures: &Figures) -> fmt::Result {
    let mut rows: Vec<(Labels, f64, f64)> = figures
        .queues
        .iter()
        .map(|queue| {
            (
                label("queue", queue.name),
                float(queue.length),
                float(queue.capacity),
            )
        })
        .collect();
    let mut bytes = vec![(
        label("queue", "outbox"),
        float(figures.outbox_bytes),
        float(figures.outbox_capacity_bytes),
    )];
    for (app, of) in &figures.apps {
        let Some(inbox) = of.inbox else { continue };
        let queue = |kind: &str| label("queue", format!("{app}/{kind}"));
        let capacity = float(inbox.capacity_bytes);
        bytes.push((queue("messages"), float(inbox.message_bytes), capacity));
        bytes.push((queue("requests"), float(inbox.request_bytes), capacity));
        // Bounded in bytes; their number has no capacity of its own.
        rows.push((queue("messages"), float(inbox.messages), f64::INFINITY));
        rows.push((queue("requests"), float(inbox.requests), f64::INFINITY));
    }
    out.gauges(
        "nodosum_queue_length",
        "Things that wait in a queue",
        rows.iter()
            .map(|(queue, length, _)| (queue.clone(), *length)),
    )?;
    out.gauges(
        "nodosum_queue_capacity",
        "The most things that fit a queue; +Inf where bytes are what is bounded",
        rows.iter()
            .map(|(queue, _, capacity)| (queue.clone(), *capacity)),
    )?;
    out.gauges(
        "nodosum_queue_bytes",
        "Bytes that wait in a queue, or that an application holds that took them from it",
        bytes
            .iter()
            .map(|(queue, length, _)| (queue.clone(), *length)),
    )?;
    out.gauges(
        "nodosum_queue_capacity_bytes",
        "The most bytes that a queue takes before its senders wait",
        bytes
            .iter()
            .map(|(queue, _, capacity)| (queue.clone(), *capacity)),
    )
}

fn gossip(out: &mut Out<'_>, view: &View, figures: &Figures) -> fmt::Result {
    let of = &figures.gossip;
    out.counters(
        "nodosum_gossip_probes",
        "Probes by how they ended",
        of.probes
            .iter()
            .map(|(outcome, count)| (label("outcome", outcome), *count)),
    )?;
    out.histograms(
        "nodosum_gossip_probe_duration_seconds",
        "How long probes took that were answered by the target, a helper or the connection",
        [(Labels::new(), of.probe_times)],
    )?;
    out.gauge(
        "nodosum_gossip_health_score",
        "How unwell this node itself seems to be: 0 is well, 7 the worst",
        float(view.snapshot.health_score()),
    )?;
    let both = |what: &'static str, counts: &std::collections::BTreeMap<&'static str, u64>| {
        let counts = counts.iter().map(|(kind, count)| {
            let labels = vec![("type", (*kind).to_owned()), ("direction", what.to_owned())];
            (labels, *count)
        });
        counts.collect::<Vec<_>>()
    };
    let mut messages = both("sent", &of.sent);
    messages.extend(both("received", &of.received));
    out.counters(
        "nodosum_gossip_messages",
        "Messages of membership",
        messages,
    )?;
    out.counters(
        "nodosum_gossip_bytes",
        "Bytes of membership datagrams, sealed; refused ones included",
        [
            (label("direction", "sent"), of.sent_bytes),
            (label("direction", "received"), of.received_bytes),
        ],
    )?;
    out.counter(
        "nodosum_gossip_suspicions",
        "Members that became suspect here",
        of.suspicions,
    )?;
    out.counter("nodosum_gossip_deaths", "Members that died here", of.deaths)?;
    out.counter(
        "nodosum_gossip_refutations",
        "Times that this node had to say that it is alive",
        of.refutations,
    )
}

fn system(out: &mut Out<'_>, figures: &Figures) -> fmt::Result {
    out.gauges(
        "nodosum_threads",
        "Threads of this node by role",
        figures
            .threads
            .iter()
            .map(|(role, count)| (label("role", role), float(*count))),
    )?;
    if let Some(cpu) = process::cpu_time() {
        let mut family = out.0.encode_descriptor(
            "process_cpu_seconds",
            "Processor time that the process has used",
            None,
            MetricType::Counter,
        )?;
        family.encode_counter::<NoLabelSet, f64, f64>(&cpu.as_secs_f64(), None)?;
    }
    if let Some(bytes) = process::resident_bytes() {
        out.gauge(
            "process_resident_memory_bytes",
            "Memory that the process has resident",
            float(bytes),
        )?;
    }
    if let Some(open) = process::open_fds() {
        out.gauge(
            "process_open_fds",
            "Descriptors that the process has open",
            float(open),
        )?;
    }
    if let Some(at) = process::started_at() {
        out.gauge(
            "process_start_time_seconds",
            "When the process started, since the epoch",
            at,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::QUICHE_VERSION;

    #[test]
    fn the_older_format_has_counters_with_their_suffix_and_neither_units_nor_an_end() {
        let openmetrics = "# HELP a_b Words of a.\n# TYPE a_b counter\n# UNIT a_b bytes\n\
            a_b_total{x=\"# TYPE a_b\"} 1\n# HELP a_c C.\n# TYPE a_c gauge\na_c 2\n# EOF\n";
        assert_eq!(
            plain(openmetrics),
            "# HELP a_b_total Words of a.\n# TYPE a_b_total counter\n\
             a_b_total{x=\"# TYPE a_b\"} 1\n# HELP a_c C.\n# TYPE a_c gauge\na_c 2\n"
        );
    }

    #[test]
    fn the_release_of_quiche_is_the_one_that_is_locked() {
        let lock = include_str!("../Cargo.lock");
        let locked = lock.split("[[package]]").find_map(|package| {
            let named = package.lines().any(|line| line == "name = \"quiche\"");
            let version = package
                .lines()
                .find_map(|line| line.strip_prefix("version = "));
            version.filter(|_| named)
        });
        assert_eq!(locked, Some(format!("{QUICHE_VERSION:?}").as_str()));
    }

    #[test]
    #[cfg(feature = "ca")]
    fn a_scrape_waits_for_no_lock_of_a_connection() {
        use crate::{Node, Ready, ca::Authority};
        let patience = Duration::from_secs(60);
        let authority = Authority::new(&"unit".parse().unwrap(), patience * 60).unwrap();
        let start = |name: &str, seed: Option<String>| {
            let identity = authority.identity(&name.parse().unwrap(), patience * 30);
            let builder = Node::builder(identity.unwrap()).seeds(seed);
            let node = builder.http("127.0.0.1:0".parse().unwrap()).start();
            node.unwrap()
        };
        let first = start("n1", None);
        let second = start("n2", Some(first.quic_addr().to_string()));
        for node in [&first, &second] {
            node.wait_ready(Ready::Peers(1), patience).unwrap();
        }
        let view = Arc::clone(first.view());
        let peers = view.snapshot.peers();
        let held: Vec<_> = peers.values().map(|connection| connection.hold()).collect();
        assert_eq!(held.len(), 1);
        let (sender, scraped) = crossbeam_channel::bounded(1);
        let scrape = move || drop(sender.send((encode(&view), view.status(), view.closed())));
        let thread = crate::thread::spawn("nd-work-1", scrape).unwrap();
        let (text, _, _) = scraped.recv_timeout(patience).unwrap();
        assert!(
            text.unwrap()
                .contains("nodosum_quic_peer_up{peer=\"n2\"} 1")
        );
        drop(held);
        thread.join().unwrap();
        second.shutdown(patience);
        first.shutdown(patience);
    }
}
