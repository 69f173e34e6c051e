//! `nodosum top`: a node live.
//!
//! Every look asks the node for its status, members and connections, the same as the read commands
//! do, and tells rates from the difference to the look before. The screen has the node in three lines,
//! then a row for each peer: what it is as a member and what its connection is like. A peer that is
//! alive but not connected says why, and when it is dialled next.
//!
//! With `--batch`, and where the output is no terminal, the same lines are printed one look after the
//! other. A node that ends while it is watched is told, and looked for again, as at the start of a
//! restart; only the first look has to succeed.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
    fs,
    time::{Duration, Instant},
};

use regex::Regex;

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{Client, call, unexpected},
        protocol::{Command, ConnView, EventView, MemberView, Reply, StatusView},
    },
    args::{Admin, Top, TopSort},
    clock::{self, Deadline},
    exit::{Exit, Failure},
    output::{Paint, bytes, clean, is_terminal, print, seconds},
    terminal::{Key, Screen},
};

/// The range of the pace.
const FASTEST: Duration = Duration::from_millis(100);
const SLOWEST: Duration = Duration::from_secs(60);

/// How many events are shown at the most.
const MAX_EVENTS: usize = 50;

/// The longest filter that can be typed.
const MAX_FILTER: usize = 80;

const HELP: [&str; 12] = [
    "",
    "  q, Ctrl-C   quit",
    "  o           next order: peer, state, rtt, lost, in, out, up, idle",
    "  r           reverse the order",
    "  f, /        filter the peers by a regular expression; Enter keeps it, Escape drops it",
    "  p, space    pause, and go on",
    "  e           the last events instead of the peers",
    "  + and -     faster and slower",
    "  ?           this",
    "",
    "  LOST counts packets of the connection; IN and OUT are rates since the look before.",
    "  A health score above 0 means that this node itself has trouble and doubts others less.",
];

/// What a look found.
struct Look {
    at: Instant,
    status: StatusView,
    members: Vec<MemberView>,
    connections: Vec<ConnView>,
    /// Processor time of the node's process so far, where it runs on this machine.
    cpu: Option<Duration>,
    events: Vec<EventView>,
}

fn look(admin: &Admin, with_events: bool) -> Result<Look, Failure> {
    let ask = |command| call(admin, command, &[], CALL_TIMEOUT);
    let Reply::Status(status) = ask(Command::Status)? else {
        return Err(unexpected());
    };
    let Reply::Members(members) = ask(Command::Members)? else {
        return Err(unexpected());
    };
    let Reply::Conns(conns) = ask(Command::Conns)? else {
        return Err(unexpected());
    };
    let events = if with_events {
        last_events(admin)?
    } else {
        Vec::new()
    };
    Ok(Look {
        at: clock::now(),
        cpu: cpu_time(status.pid),
        status: *status,
        members: members.members,
        connections: conns.connections,
        events,
    })
}

fn last_events(admin: &Admin) -> Result<Vec<EventView>, Failure> {
    let command = Command::Events { follow: false };
    let mut client = Client::ask(admin, command, &[], Some(CALL_TIMEOUT))?;
    let mut last = VecDeque::new();
    while let Reply::Event(event) = client.reply()? {
        if last.len() == MAX_EVENTS {
            last.pop_front();
        }
        last.push_back(event);
    }
    Ok(last.into())
}

/// User and system time by `proc_pid_stat(5)`, whose clock ticks 100 times a second.
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in front may hold anything, so that the fields are counted from its end.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// What the person has chosen.
struct View {
    sort: TopSort,
    reverse: bool,
    filter: Option<Regex>,
    /// What is being typed, while it is.
    typing: Option<String>,
    paused: bool,
    events: bool,
    help: bool,
    delay: Duration,
    paint: Paint,
}

pub(crate) fn run(args: &Top) -> Result<Exit, Failure> {
    let live = is_terminal() && !args.batch;
    let view = View {
        sort: args.sort,
        reverse: false,
        filter: args.name.clone(),
        typing: None,
        paused: false,
        events: false,
        help: false,
        delay: args.delay.clamp(FASTEST, SLOWEST),
        paint: Paint::stdout(),
    };
    let first = look(&args.admin, false)?;
    if live {
        watch(args, view, first)
    } else {
        batch(args, &view, first)
    }
}

fn batch(args: &Top, view: &View, first: Look) -> Result<Exit, Failure> {
    let mut before = None;
    let mut now = first;
    for round in 1.. {
        let lines = page(view, &now, before.as_ref(), None, usize::MAX);
        print(&(lines.join("\n") + "\n\n"))?;
        if args.rounds.is_some_and(|rounds| round >= rounds) {
            break;
        }
        std::thread::sleep(view.delay);
        let next = look(&args.admin, false)?;
        before = Some(std::mem::replace(&mut now, next));
    }
    Ok(Exit::Done)
}

fn watch(args: &Top, mut view: View, first: Look) -> Result<Exit, Failure> {
    let screen = Screen::enter()?;
    let mut before: Option<Look> = None;
    let mut now = first;
    let mut trouble = None;
    let mut round = 1;
    loop {
        let (_, rows) = Screen::size();
        let lines = page(&view, &now, before.as_ref(), trouble.as_deref(), rows);
        screen.draw(&lines)?;
        let deadline = Deadline::after(view.delay);
        while !deadline.is_over() {
            let Some(key) = screen.key(deadline.remaining())? else {
                break;
            };
            let events = view.events;
            if view.handle(key) {
                return Ok(Exit::Done);
            }
            if view.events && !events {
                // They were not asked for so far.
                break;
            }
            let lines = page(&view, &now, before.as_ref(), trouble.as_deref(), rows);
            screen.draw(&lines)?;
        }
        if view.paused && !(view.events && now.events.is_empty()) {
            continue;
        }
        if args.rounds.is_some_and(|rounds| round >= rounds) {
            return Ok(Exit::Done);
        }
        round += 1;
        match look(&args.admin, view.events) {
            Ok(next) => {
                trouble = None;
                before = Some(std::mem::replace(&mut now, next));
            }
            Err(failure) => trouble = Some(failure.message),
        }
    }
}

impl View {
    /// Takes a key; whether it ends the view.
    fn handle(&mut self, key: Key) -> bool {
        if let Some(typing) = &mut self.typing {
            match key {
                Key::Character(c) if typing.chars().count() < MAX_FILTER => typing.push(c),
                Key::Character(_) => {}
                Key::Backspace => drop(typing.pop()),
                Key::Enter => {
                    // What is no expression yet stays open to be corrected.
                    if let Ok(filter) = Regex::new(typing) {
                        self.filter = (!typing.is_empty()).then_some(filter);
                        self.typing = None;
                    }
                }
                Key::Escape => {
                    self.typing = None;
                    self.filter = None;
                }
                Key::Interrupt => return true,
            }
            return false;
        }
        match key {
            Key::Interrupt | Key::Character('q') => return true,
            Key::Character('o') => self.sort = next(self.sort),
            Key::Character('r') => self.reverse = !self.reverse,
            Key::Character('f' | '/') => self.typing = Some(String::new()),
            Key::Character('p' | ' ') => self.paused = !self.paused,
            Key::Character('e') => self.events = !self.events,
            Key::Character('+') => self.delay = (self.delay / 2).max(FASTEST),
            Key::Character('-') => self.delay = (self.delay * 2).min(SLOWEST),
            Key::Character('?' | 'h') => self.help = !self.help,
            Key::Escape => self.help = false,
            Key::Character(_) | Key::Enter | Key::Backspace => {}
        }
        false
    }
}

fn next(sort: TopSort) -> TopSort {
    match sort {
        TopSort::Peer => TopSort::State,
        TopSort::State => TopSort::Rtt,
        TopSort::Rtt => TopSort::Lost,
        TopSort::Lost => TopSort::In,
        TopSort::In => TopSort::Out,
        TopSort::Out => TopSort::Up,
        TopSort::Up => TopSort::Idle,
        TopSort::Idle => TopSort::Peer,
    }
}

fn name(sort: TopSort) -> &'static str {
    match sort {
        TopSort::Peer => "peer",
        TopSort::State => "state",
        TopSort::Rtt => "rtt",
        TopSort::Lost => "lost",
        TopSort::In => "in",
        TopSort::Out => "out",
        TopSort::Up => "up",
        TopSort::Idle => "idle",
    }
}

/// One peer: as a member and as a connection.
struct Row<'a> {
    peer: &'a str,
    status: &'a str,
    conn: &'a ConnView,
    /// Bytes a second in each direction.
    incoming: Option<f64>,
    outgoing: Option<f64>,
}

fn rows<'a>(view: &View, now: &'a Look, before: Option<&Look>) -> Vec<Row<'a>> {
    let members: BTreeMap<&str, &str> = now
        .members
        .iter()
        .map(|member| (member.node.as_str(), member.status.as_str()))
        .collect();
    let matches = |peer: &str| {
        view.filter
            .as_ref()
            .is_none_or(|filter| filter.is_match(peer))
    };
    let mut rows: Vec<Row<'_>> = now
        .connections
        .iter()
        .map(|conn| {
            let peer = conn.peer.as_deref().unwrap_or("-");
            let (incoming, outgoing) = rates(conn, now, before);
            Row {
                peer,
                status: members.get(peer).copied().unwrap_or("-"),
                conn,
                incoming,
                outgoing,
            }
        })
        .filter(|row| matches(row.peer))
        .collect();
    rows.sort_by(|a, b| {
        let order = compare(view.sort, a, b).then_with(|| a.peer.cmp(b.peer));
        if view.reverse { order.reverse() } else { order }
    });
    rows
}

/// `None` where there is nothing to compare with: the first look, or a new connection.
fn rates(conn: &ConnView, now: &Look, before: Option<&Look>) -> (Option<f64>, Option<f64>) {
    let Some(before) = before else {
        return (None, None);
    };
    let passed = now.at.saturating_duration_since(before.at).as_secs_f64();
    let same = before.connections.iter().find(|earlier| {
        earlier.peer == conn.peer && earlier.addr == conn.addr && earlier.side == conn.side
    });
    let rate = |after: u64, before: u64| {
        let more = after.checked_sub(before)?;
        (passed > 0.0).then(|| more as f64 / passed)
    };
    same.map_or((None, None), |earlier| {
        (
            rate(conn.received_bytes, earlier.received_bytes),
            rate(conn.sent_bytes, earlier.sent_bytes),
        )
    })
}

/// Of losses, traffic, and time, the largest are what one looks for.
fn compare(sort: TopSort, a: &Row<'_>, b: &Row<'_>) -> Ordering {
    let largest = |a: Option<f64>, b: Option<f64>| {
        let value = |number: Option<f64>| number.unwrap_or(-1.0);
        value(b).total_cmp(&value(a))
    };
    match sort {
        TopSort::Peer => Ordering::Equal,
        TopSort::State => a.conn.state.cmp(&b.conn.state),
        TopSort::Rtt => largest(a.conn.rtt_seconds, b.conn.rtt_seconds),
        TopSort::Lost => b.conn.lost_packets.cmp(&a.conn.lost_packets),
        TopSort::In => largest(a.incoming, b.incoming),
        TopSort::Out => largest(a.outgoing, b.outgoing),
        TopSort::Up => largest(a.conn.up_seconds, b.conn.up_seconds),
        TopSort::Idle => largest(a.conn.idle_seconds, b.conn.idle_seconds),
    }
}

/// All lines of a screen with so many rows.
fn page(
    view: &View,
    now: &Look,
    before: Option<&Look>,
    trouble: Option<&str>,
    height: usize,
) -> Vec<String> {
    let rows = rows(view, now, before);
    let mut lines = head(view, now, before, &rows, trouble);
    if view.help {
        lines.extend(HELP.map(str::to_owned));
    } else if view.events {
        let room = height.saturating_sub(lines.len() + 1);
        let skipped = now.events.len().saturating_sub(room);
        lines.push(
            view.paint
                .bold("AT                           EVENT            NODE          REASON"),
        );
        lines.extend(now.events.iter().skip(skipped).map(event_line));
    } else {
        let room = height.saturating_sub(lines.len() + 1);
        lines.extend(table(view, &rows, room));
    }
    lines
}

fn head(
    view: &View,
    now: &Look,
    before: Option<&Look>,
    rows: &[Row<'_>],
    trouble: Option<&str>,
) -> Vec<String> {
    let status = &now.status;
    let (members, conns) = (&status.members, &status.connections);
    let paint = view.paint;
    let ready = match (trouble, status.ready) {
        (Some(_), _) => paint.red("no answer"),
        (None, true) => paint.green("ready"),
        (None, false) => paint.yellow("not ready"),
    };
    let sum = |rate: fn(&Row<'_>) -> Option<f64>| {
        let known: Vec<f64> = rows.iter().filter_map(rate).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>())
    };
    let first = format!(
        "{} of {}  {ready}  up {}  version {}  certificate ends in {}",
        paint.bold(&clean(&status.node)),
        clean(&status.cluster),
        seconds(Some(status.uptime_seconds)),
        clean(&status.version),
        seconds(Some(status.certificate_remaining_seconds)),
    );
    let second = format!(
        "members {} alive, {} suspect, {} dead, {} left   connections {} up, {} coming, {} going, {} down",
        members.alive,
        members.suspect,
        members.dead,
        members.left,
        conns.established,
        conns.handshaking,
        conns.draining,
        conns.down,
    );
    let third = format!(
        "in {}  out {}  cpu {}  memory {}  threads {}  files {}  health score {}",
        rate(sum(|row| row.incoming)),
        rate(sum(|row| row.outgoing)),
        cpu(now, before),
        status.rss_bytes.map_or_else(|| "-".to_owned(), bytes),
        status.threads,
        status
            .open_fds
            .map_or_else(|| "-".to_owned(), |fds| fds.to_string()),
        status.health_score,
    );
    vec![first, second, third, last_head_line(view, trouble)]
}

/// What is chosen, being typed, or wrong.
fn last_head_line(view: &View, trouble: Option<&str>) -> String {
    let paint = view.paint;
    if let Some(typing) = &view.typing {
        return paint.bold(&format!("filter: {}_", clean(typing)));
    }
    if let Some(trouble) = trouble {
        return paint.red(&clean(trouble));
    }
    let filter = view
        .filter
        .as_ref()
        .map(|filter| format!("  filter {}", clean(filter.as_str())));
    paint.dim(&format!(
        "order {}{}{}  every {}{}  ? for help",
        name(view.sort),
        if view.reverse { ", reversed" } else { "" },
        filter.unwrap_or_default(),
        crate::output::duration(view.delay),
        if view.paused { "  PAUSED" } else { "" },
    ))
}

fn cpu(now: &Look, before: Option<&Look>) -> String {
    let used = before.and_then(|before| {
        let used = now.cpu?.checked_sub(before.cpu?)?;
        let passed = now.at.saturating_duration_since(before.at);
        (!passed.is_zero() && now.status.pid == before.status.pid)
            .then(|| used.as_secs_f64() / passed.as_secs_f64() * 100.0)
    });
    used.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.0} %"))
}

fn rate(rate: Option<f64>) -> String {
    // Rates are shown with three digits: what is lost above 2^53 bytes a second does not matter.
    rate.map_or_else(
        || "-".to_owned(),
        |rate| format!("{}/s", bytes(rate as u64)),
    )
}

fn event_line(event: &EventView) -> String {
    let line = format!(
        "{:<28} {:<16} {:<13} {}",
        clean(&event.at),
        clean(&event.event),
        clean(event.node.as_deref().unwrap_or("-")),
        clean(event.reason.as_deref().unwrap_or("")),
    );
    line.trim_end().to_owned()
}

const TITLES: [&str; 11] = [
    "PEER", "STATUS", "CONN", "RTT", "LOST", "CWND", "IN", "OUT", "STREAMS", "UP", "NOTE",
];

/// Widths that keep columns in their place while numbers in them change.
const LEAST: [usize; 11] = [0, 7, 11, 7, 4, 8, 10, 10, 7, 7, 0];

fn cells(row: &Row<'_>) -> [String; 11] {
    let conn = row.conn;
    let up = conn.state == "established";
    let only = |text: String| if up { text } else { "-".to_owned() };
    [
        clean(row.peer),
        clean(row.status),
        clean(&conn.state),
        seconds(conn.rtt_seconds),
        only(conn.lost_packets.to_string()),
        only(bytes(conn.cwnd_bytes)),
        rate(row.incoming),
        rate(row.outgoing),
        only(conn.streams.to_string()),
        seconds(conn.up_seconds),
        note(conn),
    ]
}

/// Why a connection is not there, and when it is tried again.
fn note(conn: &ConnView) -> String {
    let next = conn.next_dial_seconds.filter(|_| conn.state == "down");
    let next = next.map(|next| format!("next dial in {}", seconds(Some(next))));
    let error = conn
        .last_error
        .as_deref()
        .filter(|_| conn.state != "established");
    let parts: Vec<String> = error.map(clean).into_iter().chain(next).collect();
    parts.join("; ")
}

fn table(view: &View, rows: &[Row<'_>], room: usize) -> Vec<String> {
    let shown: Vec<[String; 11]> = rows.iter().map(cells).collect();
    let width = |at: usize| {
        let longest = shown.iter().map(|cells| cells[at].chars().count()).max();
        longest.unwrap_or(0).max(TITLES[at].len()).max(LEAST[at])
    };
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    let line = |cells: &[String], paint: Paint| {
        let mut text = String::new();
        for (at, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[at].saturating_sub(cell.chars().count()));
            let is_word = matches!(at, 0..=2 | 10);
            let cell = if matches!(at, 1 | 2) {
                paint.state(cell)
            } else {
                cell.clone()
            };
            let (left, right) = if is_word { (cell, pad) } else { (pad, cell) };
            text.push_str(&format!("{left}{right}  "));
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![
        view.paint
            .bold(&line(&TITLES.map(str::to_owned), Paint::none())),
    ];
    // The last line tells of what does not fit.
    let fits = shown.len() <= room;
    let room = if fits {
        shown.len()
    } else {
        room.saturating_sub(1)
    };
    lines.extend(shown.iter().take(room).map(|cells| line(cells, view.paint)));
    if !fits {
        lines.push(format!("and {} more; f filters", shown.len() - room));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(peer: &str, received: u64, rtt: Option<f64>) -> ConnView {
        ConnView {
            peer: Some(peer.to_owned()),
            state: if rtt.is_some() { "established" } else { "down" }.to_owned(),
            addr: "127.0.0.1:1".to_owned(),
            received_bytes: received,
            rtt_seconds: rtt,
            last_error: rtt.is_none().then(|| "refused\u{1b}[2J".to_owned()),
            next_dial_seconds: rtt.is_none().then_some(2.0),
            ..ConnView::default()
        }
    }

    fn view() -> View {
        View {
            sort: TopSort::Peer,
            reverse: false,
            filter: None,
            typing: None,
            paused: false,
            events: false,
            help: false,
            delay: Duration::from_secs(1),
            paint: Paint::none(),
        }
    }

    fn looked(at: Instant, connections: Vec<ConnView>) -> Look {
        let status = serde_json::json!({
            "schema": 1, "node": "n1", "cluster": "c", "version": "0", "pid": 1,
            "uptime_seconds": 90.0, "ready": true,
            "members": {"alive": 3, "suspect": 0, "dead": 0, "left": 0},
            "connections": {"established": 1, "handshaking": 0, "draining": 0, "down": 1},
            "health_score": 0, "threads": 5, "open_fds": 9, "rss_bytes": 1024,
        });
        Look {
            at,
            status: serde_json::from_value(status).unwrap(),
            members: Vec::new(),
            connections,
            cpu: None,
            events: Vec::new(),
        }
    }

    fn looks() -> (Look, Look) {
        let start = clock::now();
        let before = vec![
            conn("n2", 0, Some(0.1)),
            conn("n3", 0, Some(0.2)),
            conn("n4", 0, None),
        ];
        let after = vec![
            conn("n2", 1_024, Some(0.1)),
            conn("n3", 4_096, Some(0.2)),
            conn("n4", 0, None),
        ];
        let later = start + Duration::from_secs(2);
        (looked(start, before), looked(later, after))
    }

    fn peers(view: &View) -> Vec<String> {
        let (before, now) = looks();
        let rows = rows(view, &now, Some(&before));
        rows.iter().map(|row| row.peer.to_owned()).collect()
    }

    #[test]
    fn rows_come_in_the_order_asked_for_and_only_those_asked_for() {
        let mut view = view();
        assert_eq!(peers(&view), ["n2", "n3", "n4"]);
        view.sort = TopSort::In;
        assert_eq!(peers(&view), ["n3", "n2", "n4"]);
        view.reverse = true;
        assert_eq!(peers(&view), ["n4", "n2", "n3"]);
        view.filter = Some(Regex::new("[34]").unwrap());
        assert_eq!(peers(&view), ["n4", "n3"]);
    }

    #[test]
    fn a_page_tells_rates_reasons_and_what_does_not_fit_and_defuses_escapes() {
        let (before, now) = looks();
        let lines = page(&view(), &now, Some(&before), None, 50);
        let text = lines.join("\n");
        assert!(text.contains("n1 of c  ready  up 1m 30s"), "{text}");
        assert!(text.contains("in 2.5 KiB/s"), "{text}");
        assert!(
            text.contains("refused\\u{1b}[2J; next dial in 2.0 s"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
        let short = page(&view(), &now, None, Some("gone"), 7);
        assert_eq!(short.len(), 7);
        assert!(short[0].contains("no answer") && short[3].contains("gone"));
        assert_eq!(short[6], "and 2 more; f filters");
    }

    #[test]
    fn keys_choose_and_a_filter_is_typed() {
        let mut view = view();
        for key in "or/n[3".chars() {
            assert!(!view.handle(Key::Character(key)));
        }
        assert!(!view.handle(Key::Enter));
        assert_eq!(view.typing.as_deref(), Some("n[3"), "not an expression yet");
        view.handle(Key::Character(']'));
        view.handle(Key::Enter);
        assert_eq!(view.filter.as_ref().map(Regex::as_str), Some("n[3]"));
        assert!(view.reverse && view.sort == TopSort::State);
        view.handle(Key::Character('p'));
        view.handle(Key::Character('+'));
        assert!(view.paused && view.delay == Duration::from_millis(500));
        assert!(view.handle(Key::Character('q')));
        assert!(view.handle(Key::Interrupt));
    }
}
