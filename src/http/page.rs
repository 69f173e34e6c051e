//! The page `/debug/quic`: what is wrong, in sentences, then every connection, the distances in the
//! cluster, membership, applications, threads, events, and what has ended.
//!
//! It is made here, so that it can be read without scripts, in a terminal's browser or from a file; a
//! script of a few lines then replaces the parts once a second while the page can be seen. Nothing is
//! loaded from elsewhere, and the policy allows this very script and style by their hashes and nothing
//! else. State is a word and a shape beside its colour. Every text of others goes through [`Safe`].

#![expect(
    clippy::disallowed_methods,
    reason = "ages are told against the real clock"
)]

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    health::{Facts, Level, Sentence, reasons},
    text::{Safe, bytes, clock, count, duration, maybe, plural},
    watch::{Busy, Matrix, Memory, Trail},
};
use crate::{
    event::{Event, EventKind},
    explanation::Explanation,
    figures::{Durations, Figures, RequestEnd},
    node_id::NodeId,
    process,
    snapshot::Stage,
    stats::{ClosedConnection, ConnectionInfo, ConnectionState, MemberInfo, MemberStatus, Status},
    view::View,
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Rows of one table. Of a thousand connections the worst are shown; the JSON has all.
const MAX_ROWS: usize = 200;

/// Events on the page, and threads.
const MAX_EVENTS: usize = 60;
const MAX_THREADS: usize = 16;

/// From so many nodes on the matrix is drawn small.
const MANY_NODES: usize = 13;

/// The size of a sparkline in its own units.
const SPARK_WIDTH: f64 = 96.0;
const SPARK_HEIGHT: f64 = 22.0;

/// The value of the `Content-Security-Policy`.
pub(crate) fn policy() -> String {
    let hash = |text: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        format!("'sha256-{}'", base64(digest.as_ref()))
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three
            .iter()
            .fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - three.len()));
        for digit in 0..4 {
            let is_there = digit <= three.len();
            let index = (word >> (18 - 6 * digit)) & 63;
            text.push(if is_there {
                char::from(DIGITS[index as usize])
            } else {
                '='
            });
        }
    }
    text
}

/// Everything that the page shows, collected at one moment.
pub(crate) struct Page {
    now: Instant,
    wall: SystemTime,
    stage: Stage,
    status: Status,
    members: Vec<MemberInfo>,
    connections: Vec<ConnectionInfo>,
    closed: Vec<ClosedConnection>,
    trails: BTreeMap<NodeId, Trail>,
    figures: Arc<Figures>,
    /// About a minute ago, for what happened since.
    before: Arc<Figures>,
    /// How long ago that is, in samples.
    samples: usize,
    matrix: Option<Arc<Matrix>>,
    explained: Vec<Arc<Explanation>>,
    threads: Vec<Busy>,
    events: Vec<Event>,
}

impl Page {
    pub(crate) fn of(view: &View, memory: &Memory) -> Self {
        let figures = Arc::new(view.figures());
        let before = memory.figures.front().cloned();
        Self {
            now: Instant::now(),
            wall: SystemTime::now(),
            stage: view.snapshot.stage(),
            status: view.status(),
            members: view.members(),
            connections: view.connections(),
            closed: view.closed(),
            trails: memory.trails.clone(),
            before: before.unwrap_or_else(|| Arc::clone(&figures)),
            figures,
            samples: memory.figures.len(),
            matrix: memory.matrix.clone(),
            explained: memory.explained.clone(),
            threads: memory.threads.clone(),
            events: memory
                .events
                .iter()
                .rev()
                .take(MAX_EVENTS)
                .cloned()
                .collect(),
        }
    }

    /// The document.
    pub(crate) fn whole(&self) -> String {
        let mut out = String::with_capacity(64 * 1_024);
        let node = &self.status.node;
        let _ = write!(
            out,
            "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{} · nodosum</title><link rel=\"icon\" href=\"data:,\">\
             <style>{STYLE}</style></head><body><header>",
            Safe(node)
        );
        self.title(&mut out);
        let _ = write!(
            out,
            "<nav><input id=\"filter\" class=\"js\" type=\"search\" placeholder=\"Filter rows\" \
             aria-label=\"Filter the rows of all tables\" autocomplete=\"off\">\
             <button id=\"pause\" class=\"js\" type=\"button\" aria-pressed=\"false\">Pause</button>\
             <a href=\"/debug/quic?format=json\">JSON</a><a href=\"/metrics\">Metrics</a>\
             <span id=\"live\" class=\"js\"></span></nav></header><main>"
        );
        self.parts(&mut out);
        let _ = write!(
            out,
            "</main><footer>Also here: <a href=\"/debug/members\">members</a>, \
             <a href=\"/debug/events\">events</a> and <a href=\"/debug/status\">status</a> as JSON, \
             <a href=\"/livez?verbose\">livez</a>, <a href=\"/readyz?verbose\">readyz</a>, \
             <a href=\"/healthz?verbose\">healthz</a>. Made by {} at {} UTC. With scripts on, it \
             follows by itself.</footer><script>{SCRIPT}</script></body></html>",
            Safe(node),
            clock(self.wall)
        );
        out
    }

    /// The parts that change, for the script.
    pub(crate) fn part(&self) -> String {
        let mut out = String::with_capacity(64 * 1_024);
        self.title(&mut out);
        self.parts(&mut out);
        out
    }

    fn parts(&self, out: &mut String) {
        self.health(out);
        self.overview(out);
        self.connections(out);
        self.matrix(out);
        self.gossip(out);
        self.applications(out);
        self.members(out);
        self.threads(out);
        self.events(out);
        self.closed(out);
    }

    fn title(&self, out: &mut String) {
        let (word, class) = match &self.stage {
            Stage::Started => ("● ready", "good"),
            Stage::Joining(_) => ("◌ joining", "warn"),
            Stage::Leaving => ("○ left", "warn"),
            Stage::Failed(_) => ("✕ failed", "bad"),
            Stage::Stopped => ("✕ stopped", "bad"),
        };
        let _ = write!(
            out,
            "<h1 id=\"title\" data-part>{} <span class=\"pill {class}\">{word}</span>\
             <small>cluster {} · nodosum {} · up {}</small></h1>",
            Safe(&self.status.node),
            Safe(&self.status.cluster),
            Safe(self.status.version),
            duration(self.status.uptime)
        );
    }

    fn sentences(&self) -> Vec<Sentence> {
        let facts = Facts {
            now: self.now,
            wall: self.wall,
            stage: &self.stage,
            status: &self.status,
            members: &self.members,
            connections: &self.connections,
            trails: &self.trails,
            explained: &self.explained,
            figures: &self.figures,
        };
        facts.sentences()
    }

    fn health(&self, out: &mut String) {
        out.push_str("<section id=\"health\" class=\"wide\" data-part aria-label=\"Health\"><ul class=\"says\">");
        for Sentence { level, text } in self.sentences() {
            let (class, mark, word) = match level {
                Level::Bad => ("bad", "✕", "Problem"),
                Level::Doubtful => ("warn", "▲", "Note"),
                Level::Good => ("good", "✓", "Good"),
            };
            let _ = write!(
                out,
                "<li class=\"{class}\"><span class=\"mark\" title=\"{word}\">{mark}</span>\
                 <span class=\"what\">{}</span></li>",
                Safe(text)
            );
        }
        out.push_str("</ul></section>");
    }

    fn overview(&self, out: &mut String) {
        let status = &self.status;
        let members = status.members;
        let all = members.alive + members.suspect + members.dead;
        let wanted = (members.alive + members.suspect).saturating_sub(1);
        let rates = self.trails.values().map(Trail::rates);
        let (sent, received) = rates.fold((0.0, 0.0), |(sent, received), rates| {
            (sent + rates.sent, received + rates.received)
        });
        let requests = self.recent_requests();
        out.push_str("<section id=\"overview\" class=\"wide\" data-part aria-label=\"Overview\"><div class=\"tiles\">");
        let mut tile = |value: String, what: String| {
            let _ = write!(
                out,
                "<div class=\"tile\"><b>{value}</b><span>{what}</span></div>"
            );
        };
        tile(
            format!("{} / {all}", members.alive),
            match (members.suspect, members.dead) {
                (0, 0) => "members alive".to_owned(),
                (suspect, dead) => format!("members alive; {suspect} suspect, {dead} dead"),
            },
        );
        let connected = status.connections.established;
        tile(
            format!("{connected} / {wanted}"),
            "peers connected".to_owned(),
        );
        tile(rate(sent), "sent to peers".to_owned());
        tile(rate(received), "received from peers".to_owned());
        tile(
            per_second(requests.count(), self.samples),
            match requests.quantile(0.99) {
                Some(p99) => format!("requests a second, p99 ≤ {}", duration(p99)),
                None => "requests a second".to_owned(),
            },
        );
        tile(
            status.health_score.to_string(),
            "gossip health score (0 is well)".to_owned(),
        );
        tile(status.threads.to_string(), "threads".to_owned());
        if let Some(memory) = process::resident_bytes() {
            let fds = process::open_fds().unwrap_or(0);
            tile(
                bytes(memory),
                format!("memory of the process, {fds} descriptors"),
            );
        }
        out.push_str("</div></section>");
    }

    /// Requests that ended in the last minute.
    fn recent_requests(&self) -> Durations {
        let mut all = Durations::default();
        for (app, of) in &self.figures.apps {
            let before = self.before.apps.get(app);
            for (end, durations) in &of.requests {
                let before = before.and_then(|before| before.requests.get(end));
                all.merge(&durations.since(&before.copied().unwrap_or_default()));
            }
        }
        all
    }

    // ---- connections

    fn connections(&self, out: &mut String) {
        let mut rows: Vec<&ConnectionInfo> = self.connections.iter().collect();
        // What is wrong first; otherwise in the order of names.
        rows.sort_by_key(|row| match row.state {
            ConnectionState::Down => 0,
            ConnectionState::Handshaking => 1,
            ConnectionState::Draining => 2,
            ConnectionState::Established => 3,
        });
        let is_cut = rows.len() > MAX_ROWS;
        rows.truncate(MAX_ROWS);
        head(out, "connections", "Connections", &self.counted(is_cut));
        if rows.is_empty() {
            out.push_str("<p class=\"none\">No peers: nobody to be connected to.</p></section>");
            return;
        }
        out.push_str(
            "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th scope=\"col\">Peer</th>\
             <th scope=\"col\">State</th><th scope=\"col\" class=\"n\">RTT, last minute</th>\
             <th scope=\"col\" class=\"n\">Lowest</th><th scope=\"col\" class=\"n\">Loss</th>\
             <th scope=\"col\" class=\"n\">Window</th><th scope=\"col\" class=\"n\">Out</th>\
             <th scope=\"col\" class=\"n\">In</th><th scope=\"col\" class=\"n\">Streams</th>\
             <th scope=\"col\" class=\"n\">Ping</th><th scope=\"col\" class=\"n\">Idle</th>\
             <th scope=\"col\" class=\"n\">Up</th><th scope=\"col\">Last error</th></tr></thead><tbody>",
        );
        for row in rows {
            self.connection(out, row);
        }
        out.push_str("</tbody></table></div></section>");
    }

    fn counted(&self, is_cut: bool) -> String {
        let of = &self.status.connections;
        let mut counted = format!("{} established", of.established);
        for (number, word) in [
            (of.handshaking, "handshaking"),
            (of.draining, "draining"),
            (of.down, "down"),
        ] {
            if number > 0 {
                let _ = write!(counted, ", {number} {word}");
            }
        }
        if is_cut {
            let _ = write!(counted, "; {MAX_ROWS} shown, the JSON has all");
        }
        counted
    }

    fn connection(&self, out: &mut String, row: &ConnectionInfo) {
        let trail = row.peer.as_ref().and_then(|peer| self.trails.get(peer));
        let is_up = row.state == ConnectionState::Established;
        let (mark, class) = match row.state {
            ConnectionState::Established => ("●", "good"),
            ConnectionState::Handshaking => ("◌", "warn"),
            ConnectionState::Draining => ("◐", "warn"),
            ConnectionState::Down => ("✕", "bad"),
        };
        let side = row.side.map_or("", |side| side.as_str());
        let peer = row
            .peer
            .as_ref()
            .map_or("not proven yet", |peer| peer.as_str());
        let _ = write!(
            out,
            "<tr data-row><th scope=\"row\">{}<small>{}</small></th>\
             <td><span class=\"pill {class}\">{mark} {}</span> <small>{side}</small></td>",
            Safe(peer),
            row.addr,
            row.state.as_str()
        );
        out.push_str("<td class=\"n full\" data-l=\"RTT\"><span class=\"rtt\">");
        if let Some(trail) = trail {
            sparkline(out, &trail.rtts);
        }
        let _ = write!(
            out,
            "<span>{}</span></span></td>",
            maybe(row.rtt.filter(|_| is_up))
        );
        let rates = trail.map(Trail::rates).unwrap_or_default();
        let loss = rates.loss.filter(|_| is_up);
        let mut cell = |what: &str, value: String| {
            let _ = write!(out, "<td class=\"n\" data-l=\"{what}\">{value}</td>");
        };
        if is_up || row.state == ConnectionState::Draining {
            cell("Lowest", maybe(row.min_rtt));
            cell("Loss", loss.map_or_else(|| "–".to_owned(), percent));
            cell("Window", bytes(row.cwnd_bytes));
            cell("Out", rate(rates.sent));
            cell("In", rate(rates.received));
            cell("Streams", count(row.streams));
            let ping = match row.ping_failures {
                0 => maybe(row.last_ping),
                missed => format!(
                    "{} <small class=\"bad\">{missed} missed</small>",
                    maybe(row.last_ping)
                ),
            };
            cell("Ping", ping);
            cell("Idle", maybe(row.idle));
            cell("Up", maybe(row.up));
        } else {
            for _ in 0..7 {
                out.push_str("<td class=\"n\"></td>");
            }
            let down = trail.and_then(|trail| trail.down_since);
            let down = down.map(|at| self.now.saturating_duration_since(at));
            out.push_str("<td class=\"n\"></td>");
            let _ = match down {
                Some(down) => write!(
                    out,
                    "<td class=\"n bad\" data-l=\"Down\">–{}</td>",
                    duration(down)
                ),
                None => write!(out, "<td></td>"),
            };
        }
        out.push_str("<td class=\"wrap\">");
        if let Some(error) = &row.last_error {
            let _ = write!(out, "{}", Safe(error));
        }
        if !is_up && (row.dials > 0 || row.next_dial.is_some()) {
            let _ = write!(out, "<small>{}", plural(row.dials, "dial"));
            if let Some(next) = row.next_dial {
                let _ = write!(out, ", next in {}", duration(next));
            }
            out.push_str("</small>");
        }
        out.push_str("</td></tr>");
    }

    // ---- distances

    fn matrix(&self, out: &mut String) {
        let matrix = self.matrix.clone().unwrap_or_default();
        let told = match matrix.left_out {
            0 => "ms; rows from, columns to".to_owned(),
            more => format!("ms; rows from, columns to; {more} more nodes are left out"),
        };
        head(out, "matrix", "Round-trip times in the cluster", &told);
        if self.matrix.is_none() && self.members.len() > 1 {
            out.push_str("<p class=\"none\">The nodes are being asked; look again.</p></section>");
            return;
        }
        if matrix.nodes.len() < 2 {
            out.push_str("<p class=\"none\">Nobody else is there to be measured.</p></section>");
            return;
        }
        let scale = Scale::of(&matrix);
        let many = if matrix.nodes.len() >= MANY_NODES {
            " many"
        } else {
            ""
        };
        let _ = write!(
            out,
            "<div class=\"scroll matrix{many}\"><table><thead><tr><td></td>"
        );
        for node in &matrix.nodes {
            let _ = write!(out, "<th scope=\"col\"><span>{}</span></th>", Safe(node));
        }
        out.push_str("</tr></thead><tbody>");
        for from in &matrix.nodes {
            let _ = write!(out, "<tr data-row><th scope=\"row\">{}</th>", Safe(from));
            for to in &matrix.nodes {
                cell(out, &matrix, &scale, from, to);
            }
            out.push_str("</tr>");
        }
        out.push_str(
            "</tbody></table></div><p class=\"key\"><span class=\"q0\">near</span>\
             <span class=\"q2\">far</span><span class=\"q4\">farthest</span> against the median · \
             <span class=\"nolink\">–</span>says it has no connection · <span class=\"silent\">?</span>\
             the row's node did not answer · <span class=\"q1 oneway\">1.0</span>only one end has it</p>\
             </section>",
        );
    }

    // ---- membership

    fn gossip(&self, out: &mut String) {
        let (now, before) = (&self.figures.gossip, &self.before.gossip);
        let since = |key: &str| {
            let then = before.probes.get(key).copied().unwrap_or(0);
            now.probes
                .get(key)
                .copied()
                .unwrap_or(0)
                .saturating_sub(then)
        };
        let answered = since("direct") + since("connection") + since("evidence");
        let times = now.probe_times.since(&before.probe_times);
        head(
            out,
            "gossip",
            "Gossip",
            "the last minute, where it says nothing else",
        );
        out.push_str("<div class=\"tiles\">");
        let mut tile = |value: String, what: &str| {
            let _ = write!(
                out,
                "<div class=\"tile\"><b>{value}</b><span>{what}</span></div>"
            );
        };
        tile(count(answered), "probes answered");
        tile(count(since("indirect")), "only through helpers");
        let failed = since("failed");
        let class = if failed > 0 { "bad" } else { "" };
        let shown = format!("<span class=\"{class}\">{}</span>", count(failed));
        tile(shown, "probes failed");
        tile(maybe(times.quantile(0.5)), "median probe, at most");
        let bytes_of = |now: u64, before: u64| now.saturating_sub(before);
        let sent = bytes_of(now.sent_bytes, before.sent_bytes);
        let received = bytes_of(now.received_bytes, before.received_bytes);
        tile(per_second_bytes(sent, self.samples), "sent");
        tile(per_second_bytes(received, self.samples), "received");
        tile(count(now.suspicions), "suspicions since the start");
        tile(count(now.refutations), "times this node had to refute");
        out.push_str("</div>");
        if self.explained.is_empty() {
            out.push_str("<p class=\"none\">Nobody is suspected or dead.</p></section>");
            return;
        }
        out.push_str(
            "<div class=\"scroll\"><table class=\"stack\"><caption>Suspected and dead members</caption>\
             <thead><tr><th scope=\"col\">Member</th><th scope=\"col\">Status</th>\
             <th scope=\"col\" class=\"n\">For</th><th scope=\"col\">Why</th></tr></thead><tbody>",
        );
        for explained in &self.explained {
            let membership = &explained.membership;
            let since = self.now.saturating_duration_since(membership.since);
            let why = reasons(explained);
            let _ = write!(
                out,
                "<tr data-row><th scope=\"row\">{}</th><td>{}</td><td class=\"n\" data-l=\"For\">{}</td>\
                 <td class=\"wrap\">{}</td></tr>",
                Safe(&membership.node),
                status_pill(membership.status),
                duration(since),
                Safe(why.trim_start_matches(" (").trim_end_matches(')'))
            );
        }
        out.push_str("</tbody></table></div></section>");
    }

    fn members(&self, out: &mut String) {
        let mut members: Vec<&MemberInfo> = self.members.iter().collect();
        members.sort_by_key(|member| match member.status {
            MemberStatus::Suspect => 0,
            MemberStatus::Dead => 1,
            MemberStatus::Alive => 2,
            MemberStatus::Left => 3,
        });
        let is_cut = members.len() > MAX_ROWS;
        let all = members.len() as u64;
        members.truncate(MAX_ROWS);
        let mut told = plural(all, "member");
        if is_cut {
            let _ = write!(told, "; {MAX_ROWS} shown");
        }
        head(out, "members", "Members", &told);
        out.push_str(
            "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th scope=\"col\">Member</th>\
             <th scope=\"col\">Status</th><th scope=\"col\">Gossip address</th>\
             <th scope=\"col\" class=\"n\">Incarnation</th><th scope=\"col\">Version</th>\
             <th scope=\"col\">Tags</th></tr></thead><tbody>",
        );
        for member in members {
            let me = if member.is_self {
                " <small>this node</small>"
            } else {
                ""
            };
            let _ = write!(
                out,
                "<tr data-row><th scope=\"row\">{}{me}</th><td>{}</td><td data-l=\"Gossip\">{}</td>\
                 <td class=\"n\" data-l=\"Incarnation\">{}</td><td data-l=\"Version\">{}</td>\
                 <td class=\"wrap\">",
                Safe(&member.node),
                status_pill(member.status),
                member.gossip_addr,
                member.incarnation,
                Safe(&member.version)
            );
            for (key, value) in &member.tags {
                let _ = write!(
                    out,
                    "<span class=\"tag\">{}={}</span>",
                    Safe(key),
                    Safe(value)
                );
            }
            out.push_str("</td></tr>");
        }
        out.push_str("</tbody></table></div></section>");
    }

    // ---- applications and threads

    fn applications(&self, out: &mut String) {
        head(
            out,
            "applications",
            "Applications",
            "rates and latency of the last minute",
        );
        if self.figures.apps.is_empty() {
            out.push_str("<p class=\"none\">No application is registered.</p></section>");
            return;
        }
        out.push_str(
            "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th scope=\"col\">Application</th>\
             <th scope=\"col\" class=\"n\">Messages out</th><th scope=\"col\" class=\"n\">in</th>\
             <th scope=\"col\">Inbox</th><th scope=\"col\" class=\"n\">Requests in</th>\
             <th scope=\"col\" class=\"n\">out</th><th scope=\"col\" class=\"n\">In flight</th>\
             <th scope=\"col\" class=\"n\">p50 ≤</th><th scope=\"col\" class=\"n\">p99 ≤</th>\
             <th scope=\"col\">Dropped, failed</th></tr></thead><tbody>",
        );
        for (app, of) in &self.figures.apps {
            let before = self.before.apps.get(app).cloned().unwrap_or_default();
            let rate_of = |now: u64, then: u64| per_second(now.saturating_sub(then), self.samples);
            let mut requests = Durations::default();
            for (end, durations) in &of.requests {
                let then = before.requests.get(end).copied().unwrap_or_default();
                requests.merge(&durations.since(&then));
            }
            let _ = write!(
                out,
                "<tr data-row><th scope=\"row\">{}</th><td class=\"n\" data-l=\"Messages out\">{}</td>\
                 <td class=\"n\" data-l=\"in\">{}</td><td data-l=\"Inbox\">",
                Safe(app),
                rate_of(of.sent, before.sent),
                rate_of(of.received, before.received)
            );
            match of.inbox {
                Some(inbox) => {
                    bar(
                        out,
                        inbox.message_bytes.max(inbox.request_bytes),
                        inbox.capacity_bytes,
                    );
                    let waiting = inbox.messages + inbox.requests + inbox.streams + inbox.datagrams;
                    let _ = write!(out, "<small>{waiting} waiting</small>");
                }
                None => out.push_str("<small>not registered now</small>"),
            }
            let _ = write!(
                out,
                "</td><td class=\"n\" data-l=\"Requests in\">{}</td><td class=\"n\" data-l=\"out\">{}</td>\
                 <td class=\"n\" data-l=\"In flight\">{}</td><td class=\"n\" data-l=\"p50 ≤\">{}</td>\
                 <td class=\"n\" data-l=\"p99 ≤\">{}</td><td class=\"wrap\">",
                rate_of(of.requests_received, before.requests_received),
                per_second(requests.count(), self.samples),
                of.in_flight,
                maybe(requests.quantile(0.5)),
                maybe(requests.quantile(0.99))
            );
            let failed = of
                .requests
                .iter()
                .filter(|(end, _)| **end != RequestEnd::Ok);
            let failed = failed.map(|(end, durations)| (end.as_str(), durations.count()));
            let dropped = of
                .dropped
                .iter()
                .map(|(why, number)| (why.as_str(), *number));
            for (why, number) in dropped.chain(failed) {
                let why = why.replace('_', " ");
                let _ = write!(out, "<span class=\"tag\">{} {why}</span>", count(number));
            }
            if of.handler_panics > 0 {
                let panics = plural(of.handler_panics, "panic");
                let _ = write!(out, "<span class=\"tag bad\">{panics}</span>");
            }
            out.push_str("</td></tr>");
        }
        out.push_str("</tbody></table></div></section>");
    }

    fn threads(&self, out: &mut String) {
        let mut roles: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
        for busy in &self.threads {
            let role = roles.entry(busy.thread.role).or_default();
            role.0 += 1;
            role.1 += busy.share.unwrap_or(0.0);
        }
        let all: f64 = roles.values().map(|(_, share)| share).sum();
        let told = format!(
            "{} of nodosum in this process, {} of a processor",
            self.threads.len(),
            percent(all)
        );
        head(out, "threads", "Threads", &told);
        if self.threads.is_empty() {
            out.push_str(
                "<p class=\"none\">The system does not tell of threads here.</p></section>",
            );
            return;
        }
        out.push_str(
            "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th scope=\"col\">Thread</th>\
             <th scope=\"col\">For</th><th scope=\"col\" class=\"n\">CPU now</th>\
             <th scope=\"col\" class=\"n\">CPU in all</th></tr></thead><tbody>",
        );
        for busy in self.threads.iter().take(MAX_THREADS) {
            let share = busy.share.map_or_else(|| "–".to_owned(), percent);
            let _ = write!(
                out,
                "<tr data-row><th scope=\"row\">{}</th><td class=\"full\">{}</td>\
                 <td class=\"n\" data-l=\"CPU now\">{share}</td><td class=\"n\" data-l=\"in all\">{}</td></tr>",
                Safe(&busy.thread.name),
                busy.thread.role,
                duration(busy.thread.cpu)
            );
        }
        let left: Vec<&Busy> = self.threads.iter().skip(MAX_THREADS).collect();
        if !left.is_empty() {
            let share: f64 = left.iter().filter_map(|busy| busy.share).sum();
            let cpu: Duration = left.iter().map(|busy| busy.thread.cpu).sum();
            let _ = write!(
                out,
                "<tr><th scope=\"row\">{} more</th><td></td><td class=\"n\" data-l=\"CPU now\">{}</td>\
                 <td class=\"n\" data-l=\"in all\">{}</td></tr>",
                left.len(),
                percent(share),
                duration(cpu)
            );
        }
        out.push_str("</tbody></table></div></section>");
    }

    // ---- what happened

    fn events(&self, out: &mut String) {
        head(
            out,
            "events",
            "Recent events",
            "times in UTC, the latest first",
        );
        if self.events.is_empty() {
            out.push_str("<p class=\"none\">Nothing has happened yet.</p></section>");
            return;
        }
        out.push_str(
            "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th scope=\"col\">At</th>\
             <th scope=\"col\">Event</th><th scope=\"col\">Node</th><th scope=\"col\">Why, what</th></tr>\
             </thead><tbody>",
        );
        for event in &self.events {
            let class = match &event.kind {
                EventKind::MemberDead { .. } | EventKind::Disconnected { .. } => "bad",
                EventKind::MemberSuspect { .. } | EventKind::Lagged { .. } => "warn",
                EventKind::MemberUp { .. } | EventKind::Connected { .. } | EventKind::Ready => {
                    "good"
                }
                EventKind::MemberAlive { .. }
                | EventKind::MemberLeft { .. }
                | EventKind::MemberUpdated { .. }
                | EventKind::UserEvent { .. }
                | EventKind::Leaving => "",
            };
            let node = event.kind.node().map_or("", |node| node.as_str());
            let what = match &event.kind {
                EventKind::UserEvent { name, payload, .. } => {
                    let text = String::from_utf8_lossy(payload);
                    let text: String = text.chars().take(120).collect();
                    format!("{name}: {text}")
                }
                EventKind::Lagged { missed } => {
                    plural(*missed, "event").replace("event", "missed event")
                }
                other => other.reason().unwrap_or_default().to_owned(),
            };
            let _ = write!(
                out,
                "<tr data-row><td data-l=\"At\">{}</td><td class=\"{class}\">{}</td><td>{}</td>\
                 <td class=\"wrap\">{}</td></tr>",
                clock(event.at),
                event.kind.name().replace('_', " "),
                Safe(node),
                Safe(what)
            );
        }
        out.push_str("</tbody></table></div></section>");
    }

    fn closed(&self, out: &mut String) {
        head(
            out,
            "closed",
            "Closed connections",
            "the last 64, the latest first",
        );
        if self.closed.is_empty() {
            out.push_str("<p class=\"none\">None has ended yet.</p></section>");
            return;
        }
        out.push_str(
            "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th scope=\"col\">Peer</th>\
             <th scope=\"col\">At</th><th scope=\"col\">Reason</th><th scope=\"col\" class=\"n\">Life</th>\
             <th scope=\"col\" class=\"n\">Sent</th><th scope=\"col\" class=\"n\">Received</th>\
             <th scope=\"col\" class=\"n\">Unacknowledged</th></tr></thead><tbody>",
        );
        for closed in self.closed.iter().rev() {
            let peer = closed
                .peer
                .as_ref()
                .map_or("not proven", |peer| peer.as_str());
            let times = match closed.count {
                1 => String::new(),
                count => format!(" <small>{count} times</small>"),
            };
            let life = closed
                .up
                .map_or_else(|| "handshake failed".to_owned(), duration);
            let _ = write!(
                out,
                "<tr data-row><th scope=\"row\">{}<small>{} {}</small></th><td data-l=\"At\">{}</td>\
                 <td class=\"wrap\">{}{times}</td><td class=\"n\" data-l=\"Life\">{life}</td>\
                 <td class=\"n\" data-l=\"Sent\">{}</td><td class=\"n\" data-l=\"Received\">{}</td>\
                 <td class=\"n\" data-l=\"Unacknowledged\">{}</td></tr>",
                Safe(peer),
                closed.side.as_str(),
                closed.addr,
                clock(closed.at),
                Safe(&closed.reason),
                bytes(closed.sent_bytes),
                bytes(closed.received_bytes),
                count(closed.unacknowledged)
            );
        }
        out.push_str("</tbody></table></div></section>");
    }
}

/// Opens a section.
fn head(out: &mut String, id: &str, title: &str, told: &str) {
    let wide = match id {
        "connections" | "applications" | "members" | "closed" => " class=\"wide\"",
        _ => "",
    };
    let _ = write!(
        out,
        "<section id=\"{id}\"{wide} data-part><h2>{title} <small>{}</small></h2>",
        Safe(told)
    );
}

fn status_pill(status: MemberStatus) -> String {
    let (mark, class) = match status {
        MemberStatus::Alive => ("●", "good"),
        MemberStatus::Suspect => ("▲", "warn"),
        MemberStatus::Dead => ("✕", "bad"),
        MemberStatus::Left => ("○", ""),
    };
    format!(
        "<span class=\"pill {class}\">{mark} {}</span>",
        status.as_str()
    )
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0 %".to_owned(),
        percent if percent < 9.95 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is a number of bytes"
)]
fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second.max(0.0).round() as u64))
}

/// How many samples a figure of the last minute is spread over, as seconds.
#[expect(clippy::cast_precision_loss, reason = "at most sixty")]
fn seconds(samples: usize) -> f64 {
    samples.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn per_second(number: u64, samples: usize) -> String {
    match number as f64 / seconds(samples) {
        0.0 => "0".to_owned(),
        rate if rate < 0.095 => "&lt; 0.1".to_owned(),
        rate if rate < 9.95 => format!("{rate:.1}"),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is not negative"
        )]
        rate => count(rate.round() as u64),
    }
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn per_second_bytes(number: u64, samples: usize) -> String {
    rate(number as f64 / seconds(samples))
}

/// A minute of round-trip times, from nothing up; where there was no connection, a red block.
#[expect(clippy::cast_precision_loss, reason = "places in a small picture")]
fn sparkline(out: &mut String, rtts: &VecDeque<Option<Duration>>) {
    let highest = rtts.iter().flatten().max().copied().unwrap_or_default();
    let step = SPARK_WIDTH / (super::watch::MINUTE as f64 - 1.0);
    let first = super::watch::MINUTE.saturating_sub(rtts.len());
    let x = |i: usize| (first + i) as f64 * step;
    let _ = write!(
        out,
        "<svg class=\"spark\" viewBox=\"0 0 {SPARK_WIDTH} {SPARK_HEIGHT}\" role=\"img\" \
         aria-label=\"round-trip time of the last minute, at most {0}\"><title>at most {0}</title>",
        duration(highest)
    );
    let top = highest.as_secs_f64().max(1e-6);
    let mut at = 0;
    let mut rest = rtts.iter().peekable();
    while let Some(first) = rest.peek().map(|rtt| rtt.is_some()) {
        let mut points = String::new();
        let begun = at;
        while let Some(rtt) = rest.next_if(|rtt| rtt.is_some() == first) {
            if let Some(rtt) = rtt {
                let height = rtt.as_secs_f64() / top * (SPARK_HEIGHT - 4.0);
                let _ = write!(points, "{:.1},{:.1} ", x(at), SPARK_HEIGHT - 2.0 - height);
            }
            at += 1;
        }
        let _ = if first {
            write!(out, "<polyline points=\"{}\"/>", points.trim_end())
        } else {
            let width = (at - begun) as f64 * step;
            write!(
                out,
                "<rect x=\"{:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{SPARK_HEIGHT}\"/>",
                x(begun)
            )
        };
    }
    out.push_str("</svg>");
}

/// How full something is.
#[expect(clippy::cast_precision_loss, reason = "places in a small picture")]
fn bar(out: &mut String, length: usize, capacity: usize) {
    let share = (length as f64 / capacity.max(1) as f64).clamp(0.0, 1.0);
    let class = if share >= 0.8 { "hot" } else { "part" };
    let _ = write!(
        out,
        "<svg class=\"bar\" viewBox=\"0 0 90 8\" role=\"img\" aria-label=\"{0} full\"><title>{1} of {2}</title>\
         <rect class=\"full\" width=\"90\" height=\"8\" rx=\"4\"/>\
         <rect class=\"{class}\" width=\"{3:.1}\" height=\"8\" rx=\"4\"/></svg>",
        percent(share),
        bytes(length as u64),
        bytes(capacity as u64),
        share * 90.0
    );
}

/// What is near and what is far, against the median of all that was measured.
struct Scale {
    median: Duration,
}

impl Scale {
    fn of(matrix: &Matrix) -> Self {
        let mut all: Vec<Duration> = matrix
            .rows
            .values()
            .flat_map(|row| row.values().copied())
            .collect();
        all.sort_unstable();
        let median = all.get(all.len() / 2).copied().unwrap_or_default();
        Self { median }
    }

    /// 0 to 4. Differences below a fifth of a millisecond are never far: that is one switch.
    fn step(&self, rtt: Duration) -> u8 {
        let slack = Duration::from_micros(200);
        let ratio = (rtt + slack).as_secs_f64() / (self.median + slack).as_secs_f64();
        match ratio {
            ratio if ratio < 0.75 => 0,
            ratio if ratio < 1.5 => 1,
            ratio if ratio < 2.5 => 2,
            ratio if ratio < 5.0 => 3,
            _ => 4,
        }
    }
}

fn cell(out: &mut String, matrix: &Matrix, scale: &Scale, from: &NodeId, to: &NodeId) {
    if from == to {
        out.push_str("<td class=\"self\">·</td>");
        return;
    }
    let pair = || format!("{from} to {to}");
    let back = matrix.rows.get(to).map(|row| row.get(from));
    let _ = match matrix.rows.get(from).map(|row| row.get(to)) {
        None => write!(
            out,
            "<td class=\"silent\" title=\"{}: {} did not answer\">?</td>",
            Safe(pair()),
            Safe(from)
        ),
        Some(None) => {
            let oneway = if matches!(back, Some(Some(_))) {
                " oneway"
            } else {
                ""
            };
            write!(
                out,
                "<td class=\"nolink{oneway}\" title=\"{}: no connection\">–</td>",
                Safe(pair())
            )
        }
        Some(Some(rtt)) => {
            let oneway = if matches!(back, Some(None)) {
                " oneway"
            } else {
                ""
            };
            let millis = rtt.as_secs_f64() * 1e3;
            let text = match millis {
                millis if millis < 9.95 => format!("{millis:.1}"),
                millis => format!("{millis:.0}"),
            };
            write!(
                out,
                "<td class=\"q{}{oneway}\" title=\"{}: {}\">{text}</td>",
                scale.step(*rtt),
                Safe(pair()),
                duration(*rtt)
            )
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_this_script_and_style_and_nothing_else() {
        assert_eq!(base64(b""), "");
        assert_eq!(
            ["f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())),
            ["Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
        let policy = policy();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"));
        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(!policy.contains("unsafe"));
        // Inside of their elements nothing may look like their end.
        assert!(!SCRIPT.contains("</") && !STYLE.contains("</"));
    }

    #[test]
    fn a_sparkline_has_a_line_for_each_stretch_and_a_block_for_each_gap() {
        let rtts = [Some(1), Some(2), None, None, Some(4)].map(|ms| ms.map(Duration::from_millis));
        let mut out = String::new();
        sparkline(&mut out, &rtts.into_iter().collect());
        assert_eq!(out.matches("<polyline").count(), 2);
        assert_eq!(out.matches("<rect").count(), 1);
        assert!(out.contains("at most 4.0 ms"), "{out}");
        let mut empty = String::new();
        sparkline(&mut empty, &VecDeque::new());
        assert!(!empty.contains("<polyline"));
    }

    #[test]
    fn the_matrix_tells_no_connection_no_answer_and_one_sided_apart() {
        let id = |name: &str| NodeId::new(name).unwrap();
        let ms = Duration::from_millis;
        let matrix = Matrix {
            nodes: vec![id("a"), id("b"), id("c")],
            rows: [(id("a"), [(id("b"), ms(1))].into()), (id("b"), [].into())].into(),
            left_out: 0,
        };
        let scale = Scale::of(&matrix);
        let shown = |from: &str, to: &str| {
            let mut out = String::new();
            cell(&mut out, &matrix, &scale, &id(from), &id(to));
            out
        };
        assert!(shown("a", "b").contains("oneway") && shown("a", "b").contains(">1.0<"));
        assert!(shown("b", "a").contains("nolink oneway"));
        assert!(shown("a", "c").contains("\"nolink\""));
        assert!(shown("c", "a").contains(">?<"));
        assert!(shown("a", "a").contains(">·<"));
    }
}
