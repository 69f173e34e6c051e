//! What is wrong, in sentences: the first thing on the page, and for a quiet cluster the only one that is
//! read.
//!
//! A sentence names who, since when, why, and what happens next. Worst first; what is in order is one
//! sentence at the end. Nothing here asks anybody: it is a reading of what was collected.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use super::{
    text::{self, plural},
    watch::Trail,
};
use crate::{
    explanation::Explanation,
    figures::Figures,
    node_id::NodeId,
    snapshot::Stage,
    stats::{ConnectionInfo, ConnectionState, MemberInfo, MemberStatus, Status},
    swim,
};

/// Sentences that are shown; of a hundred peers that are away a few explain the rest.
const MAX_SENTENCES: usize = 12;

/// Seeds that are told of when none leads into the cluster.
const MAX_SEEDS_TOLD: usize = 3;

/// A share of packets lost in a minute that is worth a sentence.
const MUCH_LOSS: f64 = 0.05;

/// Health pings without an answer that are.
const MANY_PINGS: u64 = 3;

/// A certificate that ends sooner is worth a sentence; of one that lives for days, the last third.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 86_400);

/// How long a dead member is news. After that it is a row in the table of members.
const NEWS: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Bad,
    Doubtful,
    Good,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sentence {
    pub(crate) level: Level,
    /// Not escaped.
    pub(crate) text: String,
}

/// What the sentences are about.
pub(crate) struct Facts<'a> {
    pub(crate) now: Instant,
    pub(crate) wall: SystemTime,
    pub(crate) stage: &'a Stage,
    pub(crate) status: &'a Status,
    pub(crate) members: &'a [MemberInfo],
    pub(crate) connections: &'a [ConnectionInfo],
    pub(crate) trails: &'a BTreeMap<NodeId, Trail>,
    pub(crate) explained: &'a [std::sync::Arc<Explanation>],
    pub(crate) figures: &'a Figures,
}

impl Facts<'_> {
    pub(crate) fn sentences(&self) -> Vec<Sentence> {
        let mut all = Vec::new();
        let mut say = |level, text: String| all.push(Sentence { level, text });
        self.about_this_node(&mut say);
        for member in self.members.iter().filter(|member| !member.is_self) {
            self.about(member, &mut say);
        }
        self.about_applications(&mut say);
        all.sort_by_key(|sentence| sentence.level);
        let more = all.len().saturating_sub(MAX_SENTENCES);
        if more > 0 {
            all.truncate(MAX_SENTENCES);
            let text = format!("and {more} more; the tables below have all of it");
            all.push(Sentence {
                level: Level::Doubtful,
                text,
            });
        }
        if all.iter().all(|sentence| sentence.level == Level::Good) {
            all.insert(0, self.all_is_well());
        }
        all
    }

    fn all_is_well(&self) -> Sentence {
        let peers = self.status.members.alive.saturating_sub(1) as u64;
        let text = if peers == 0 {
            "This node is alone and well: no other member is known.".to_owned()
        } else {
            let connected = self.status.connections.established;
            format!(
                "All is well: {} alive, {connected} connected.",
                plural(peers, "peer")
            )
        };
        Sentence {
            level: Level::Good,
            text,
        }
    }

    fn about_this_node(&self, say: &mut impl FnMut(Level, String)) {
        match self.stage {
            Stage::Joining(seeds) if seeds.is_empty() => {
                say(
                    Level::Doubtful,
                    "Not ready: the first join round is under way.".into(),
                );
            }
            Stage::Joining(seeds) => {
                say(Level::Doubtful, format!("Not ready: {}.", seeds.join("; ")));
            }
            Stage::Leaving => say(Level::Doubtful, "This node has left the cluster.".into()),
            Stage::Failed(why) => say(Level::Bad, format!("This node has failed: {why}.")),
            Stage::Stopped => say(Level::Bad, "This node is shut down.".into()),
            Stage::Started if self.status.connections.established == 0 => {
                let seeds = self.status.seeds.iter();
                let troubled = seeds.filter_map(|seed| Some((seed, seed.trouble()?)));
                for (seed, why) in troubled.take(MAX_SEEDS_TOLD) {
                    let attempts = plural(u64::from(seed.failures), "attempt");
                    let text = format!("Seed {} is not reached: {why}; {attempts}.", seed.seed);
                    say(Level::Doubtful, text);
                }
            }
            Stage::Started => {}
        }
        let score = self.status.health_score;
        if score > 0 {
            say(
                Level::Doubtful,
                format!(
                    "This node itself answers slowly or is cut off: health score {score} of 7, so it \
                     gives others {} times as long to answer.",
                    score + 1
                ),
            );
        }
        let (begins, ends) = (self.status.certificate_begins, self.status.certificate_ends);
        let life = ends.duration_since(begins).unwrap_or_default();
        match ends.duration_since(self.wall) {
            Ok(left) if left < CERTIFICATE_WARNING.min(life / 3) => say(
                Level::Doubtful,
                format!(
                    "The certificate of this node ends in {}.",
                    text::duration(left)
                ),
            ),
            Ok(_) => {}
            Err(_) => say(
                Level::Bad,
                "The certificate of this node has ended: no new connection is possible.".into(),
            ),
        }
    }

    fn about(&self, member: &MemberInfo, say: &mut impl FnMut(Level, String)) {
        let name = &member.node;
        let explained = self
            .explained
            .iter()
            .find(|explained| explained.membership.node == *name);
        match member.status {
            MemberStatus::Suspect => {
                let why = explained.map_or_else(String::new, |explained| {
                    let for_how_long = text::duration(self.ago(explained.membership.since));
                    format!(" for {for_how_long}{}", reasons(explained))
                });
                say(Level::Doubtful, format!("{name}: suspected{why}."));
            }
            MemberStatus::Dead => {
                let Some(explained) = explained else { return };
                let ago = self.ago(explained.membership.since);
                if ago < NEWS {
                    let why = reasons(explained);
                    let ago = text::duration(ago);
                    let next = self.next_dial(name);
                    say(Level::Bad, format!("{name}: dead for {ago}{why}{next}."));
                }
                return;
            }
            MemberStatus::Left => return,
            MemberStatus::Alive => {}
        }
        let rows = || {
            let connections = self.connections.iter();
            connections.filter(|row| row.peer.as_ref() == Some(name))
        };
        let trail = self.trails.get(name);
        let Some(row) = rows().find(|row| row.state == ConnectionState::Established) else {
            self.about_missing(name, rows().next(), trail, say);
            return;
        };
        if row.ping_failures >= MANY_PINGS {
            say(
                Level::Doubtful,
                format!(
                    "{name}: {} health pings without an answer.",
                    row.ping_failures
                ),
            );
        }
        if let Some(loss) = trail.and_then(|trail| trail.rates().loss)
            && loss >= MUCH_LOSS
        {
            say(
                Level::Doubtful,
                format!(
                    "{name}: {:.1} % of packets lost in the last minute.",
                    loss * 100.0
                ),
            );
        }
    }

    fn about_missing(
        &self,
        name: &NodeId,
        row: Option<&ConnectionInfo>,
        trail: Option<&Trail>,
        say: &mut impl FnMut(Level, String),
    ) {
        let since = trail.and_then(|trail| trail.down_since);
        let since = since.map_or_else(String::new, |at| {
            format!(" for {}", text::duration(self.ago(at)))
        });
        let why = row.and_then(|row| row.last_error.as_deref());
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let next = self.next_dial(name);
        say(Level::Bad, format!("{name}: QUIC down{since}{why}{next}."));
    }

    fn next_dial(&self, name: &NodeId) -> String {
        let row = self
            .connections
            .iter()
            .find(|row| row.peer.as_ref() == Some(name));
        let Some(row) = row.filter(|row| row.dials > 0 || row.next_dial.is_some()) else {
            return String::new();
        };
        let dials = plural(row.dials, "dial");
        match row.next_dial {
            Some(next) if next < Duration::from_millis(500) => format!("; {dials}, next now"),
            Some(next) => format!("; {dials}, next in {}", text::duration(next)),
            None => format!("; {dials}"),
        }
    }

    fn about_applications(&self, say: &mut impl FnMut(Level, String)) {
        for (app, of) in &self.figures.apps {
            let Some(inbox) = of.inbox else { continue };
            for (what, held) in [
                ("messages", inbox.message_bytes),
                ("requests", inbox.request_bytes),
            ] {
                // Four fifths.
                if held * 5 >= inbox.capacity_bytes * 4 {
                    say(
                        Level::Doubtful,
                        format!(
                            "Application {app}: its inbox of {what} is full, and its senders wait."
                        ),
                    );
                }
            }
            if of.handler_panics > 0 {
                let times = plural(of.handler_panics, "time");
                say(
                    Level::Doubtful,
                    format!(
                        "Application {app}: a handler panicked, {times} so far; the log has each."
                    ),
                );
            }
        }
    }

    fn ago(&self, at: Instant) -> Duration {
        self.now.saturating_duration_since(at)
    }
}

/// Who accused, what this node's own probes said, and how it ended, in half a sentence.
pub(crate) fn reasons(explained: &Explanation) -> String {
    let membership = &explained.membership;
    let Some(case) = membership.case.as_ref().or(membership.last_death.as_ref()) else {
        return String::new();
    };
    let mut parts = Vec::new();
    if let Some(first) = case.accusations.first() {
        let more = case.accusations.len() as u64 - 1 + case.more_accusations;
        let accused = format!("accused by {}", first.by);
        parts.push(match more {
            0 => accused,
            _ => format!("{accused} and {}", plural(more, "other")),
        });
    }
    let failed = case.probes.iter().filter(|probe| !probe.answered).count() as u64;
    if failed > 0 {
        let helpers = case
            .probes
            .iter()
            .map(|probe| probe.helpers)
            .max()
            .unwrap_or(0) as u64;
        let probes = plural(failed, "own probe");
        parts.push(match helpers {
            0 => format!("{probes} failed"),
            _ => format!(
                "{probes} failed, also through {}",
                plural(helpers, "helper")
            ),
        });
    }
    if let Some((doubt, _)) = membership.evidence.doubts.iter().max_by_key(|(_, at)| *at) {
        parts.push(format!("connection {}", doubt.as_str()));
    }
    match case.verdict.as_ref().map(|verdict| &verdict.ending) {
        Some(swim::Ending::Dead { fast: true }) => parts.push("its ports refused".to_owned()),
        Some(swim::Ending::Dead { fast: false }) => {
            parts.push("it did not refute that in time".to_owned());
        }
        Some(swim::Ending::TakenOver { from }) => {
            parts.push(format!("{from} had declared it dead"));
        }
        Some(swim::Ending::Refuted | swim::Ending::Left) | None => {}
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join("; "))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "only differences matter")]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        figures::{AppFigures, InboxFigures},
        node_id::BootId,
        stats::{
            ConnectionCounts, EventCounts, LostCounts, MemberCounts, RefusedCounts, SeedInfo,
            TransportCounts,
        },
    };

    const DAY: Duration = Duration::from_secs(86_400);

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn addr() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    fn member(name: &str, status: MemberStatus) -> MemberInfo {
        MemberInfo {
            node: id(name),
            status,
            quic_addr: addr(),
            gossip_addr: addr(),
            incarnation: 1,
            boot: BootId([1; 16]),
            tags: BTreeMap::new(),
            version: String::new(),
            is_self: name == "n1",
            connected: false,
            rtt: None,
        }
    }

    fn row(name: &str, state: ConnectionState) -> ConnectionInfo {
        ConnectionInfo {
            peer: Some(id(name)),
            ..ConnectionInfo::empty(addr(), state)
        }
    }

    /// A node whose certificate lives for a year and has ten months left.
    struct Scene {
        now: Instant,
        wall: SystemTime,
        stage: Stage,
        status: Status,
        members: Vec<MemberInfo>,
        connections: Vec<ConnectionInfo>,
        trails: BTreeMap<NodeId, Trail>,
        figures: Figures,
    }

    impl Scene {
        fn new() -> Self {
            let wall = SystemTime::UNIX_EPOCH + 20_000 * DAY;
            Self {
                now: Instant::now() + DAY,
                wall,
                stage: Stage::Started,
                status: Status {
                    node: id("n1"),
                    cluster: "test".parse().unwrap(),
                    version: "0",
                    quiche: "0",
                    uptime: DAY,
                    ready: true,
                    members: MemberCounts::default(),
                    connections: ConnectionCounts::default(),
                    seeds: Vec::new(),
                    events: EventCounts::default(),
                    health_score: 0,
                    threads: 1,
                    refused: RefusedCounts::default(),
                    lost: LostCounts::default(),
                    transport: TransportCounts::default(),
                    roster_saves: 0,
                    roster_failures: 0,
                    http_addr: None,
                    certificate_begins: wall - 65 * DAY,
                    certificate_ends: wall + 300 * DAY,
                },
                members: vec![member("n1", MemberStatus::Alive)],
                connections: Vec::new(),
                trails: BTreeMap::new(),
                figures: Figures::default(),
            }
        }

        fn said(&self) -> Vec<String> {
            let facts = Facts {
                now: self.now,
                wall: self.wall,
                stage: &self.stage,
                status: &self.status,
                members: &self.members,
                connections: &self.connections,
                trails: &self.trails,
                explained: &[],
                figures: &self.figures,
            };
            let sentences = facts.sentences().into_iter();
            sentences
                .map(|s| format!("{:?}: {}", s.level, s.text))
                .collect()
        }
    }

    #[test]
    fn a_peer_without_a_connection_is_told_with_since_why_and_what_next() {
        let mut scene = Scene::new();
        scene.members.push(member("n4", MemberStatus::Alive));
        let mut down = row("n4", ConnectionState::Down);
        down.dials = 7;
        down.next_dial = Some(Duration::from_secs(6));
        down.last_error = Some("TLS: certificate expired (peer refused us)".to_owned());
        scene.connections.push(down);
        let mut trail = Trail::default();
        trail.down_since = Some(scene.now - Duration::from_secs(12));
        scene.trails.insert(id("n4"), trail);
        assert_eq!(
            scene.said(),
            [
                "Bad: n4: QUIC down for 12 s: TLS: certificate expired (peer refused us); 7 dials, \
              next in 6.0 s."
            ]
        );
        scene.connections[0] = row("n4", ConnectionState::Established);
        scene.status.members.alive = 2;
        scene.status.connections.established = 1;
        assert_eq!(
            scene.said(),
            ["Good: All is well: 1 peer alive, 1 connected."]
        );
        scene.connections[0].ping_failures = 4;
        assert_eq!(
            scene.said(),
            ["Doubtful: n4: 4 health pings without an answer."]
        );
    }

    #[test]
    fn this_node_its_certificate_and_its_applications_are_looked_at() {
        let mut scene = Scene::new();
        assert_eq!(
            scene.said(),
            ["Good: This node is alone and well: no other member is known."]
        );
        let refused = |seed: &str| SeedInfo {
            seed: seed.to_owned(),
            node: None,
            connected: false,
            failures: 3,
            last_error: Some("TLS: unknown certificate authority".to_owned()),
        };
        scene.status.seeds = (1..=9).map(|n| refused(&format!("n{n}:1"))).collect();
        // Those that are about to be tried take no room.
        for n in 0..MAX_SEEDS_TOLD {
            let untried = SeedInfo {
                last_error: None,
                ..refused(&format!("m{n}:1"))
            };
            scene.status.seeds.insert(0, untried);
        }
        let said = scene.said();
        assert_eq!(
            said[0],
            "Doubtful: Seed n1:1 is not reached: TLS: unknown certificate authority; 3 attempts."
        );
        assert_eq!(said.len(), MAX_SEEDS_TOLD);
        // Whoever is in the cluster all the same has no trouble.
        scene.status.connections.established = 1;
        assert!(scene.said()[0].starts_with("Good"), "{:?}", scene.said());
        scene.status.connections.established = 0;
        scene.status.seeds.clear();
        scene.status.certificate_ends = scene.wall + 29 * DAY;
        assert!(
            scene.said()[0].contains("ends in 29d 0h"),
            "{:?}",
            scene.said()
        );
        // One that lives for three days is young after one.
        scene.status.certificate_begins = scene.wall - DAY;
        scene.status.certificate_ends = scene.wall + 2 * DAY;
        assert_eq!(scene.said().len(), 1);
        assert!(scene.said()[0].starts_with("Good"));
        scene.status.certificate_ends = scene.wall - DAY;
        scene.status.health_score = 2;
        scene.stage = Stage::Joining(vec!["seed a:1: no answer yet".to_owned()]);
        let full = AppFigures {
            inbox: Some(InboxFigures {
                message_bytes: 90,
                capacity_bytes: 100,
                ..InboxFigures::default()
            }),
            ..AppFigures::default()
        };
        scene.figures.apps.insert("chat".to_owned(), full);
        let said = scene.said();
        assert!(
            said[0].starts_with("Bad: The certificate of this node has ended"),
            "{said:?}"
        );
        let all = said.join("\n");
        for words in [
            "Not ready: seed a:1: no answer yet.",
            "health score 2 of 7",
            "Application chat",
        ] {
            assert!(all.contains(words), "{words} is not in {all}");
        }
    }

    #[test]
    fn of_a_hundred_faults_a_few_are_told_and_the_rest_counted() {
        let mut scene = Scene::new();
        for i in 2..102 {
            scene
                .members
                .push(member(&format!("n{i}"), MemberStatus::Alive));
        }
        let said = scene.said();
        assert_eq!(said.len(), MAX_SENTENCES + 1);
        assert_eq!(
            said[MAX_SENTENCES],
            "Doubtful: and 88 more; the tables below have all of it"
        );
        assert_eq!(said[0], "Bad: n2: QUIC down.");
    }
}
