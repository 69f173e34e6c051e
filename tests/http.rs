//! The HTTP server of a node from outside: paths, refusals, bounds, health, metrics, and that nobody who is
//! slow or gone holds anybody up. The page in a browser is in `page.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "tests measure by the real clock")]

mod support {
    pub mod cluster;
    pub mod process;
    pub mod web;
}

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use nodosum::{EventKind, Node};
use support::{
    cluster::{Lab, PATIENCE, await_event, eventually, full_mesh, id},
    web::{Answer, connect, get, get_with, read_one, say},
};

const ANY: &str = "127.0.0.1:0";

/// Tests that count threads or measure time are alone in the process; the others share it.
static TURN: RwLock<()> = RwLock::new(());

fn together() -> impl Drop {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

fn alone() -> impl Drop {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// `n1` with HTTP and others without, all connected.
fn cluster(lab: &Lab, count: usize) -> (Vec<Node>, SocketAddr) {
    let first = lab.builder("n1").http(ANY.parse().unwrap());
    let first = first.start().unwrap();
    let http = first.http_addr().unwrap();
    let seed = first.quic_addr().to_string();
    let mut nodes = vec![first];
    for i in 2..=count {
        let node = lab.builder(&format!("n{i}")).seed(&seed);
        nodes.push(node.start().unwrap());
    }
    full_mesh(&nodes, PATIENCE);
    (nodes, http)
}

fn stop(nodes: Vec<Node>) {
    for node in nodes {
        let report = node.shutdown(Duration::from_secs(20));
        assert!(report.threads_stuck.is_empty(), "{report:?}");
    }
}

#[test]
fn every_path_answers_and_what_is_wrong_is_refused() {
    let _turn = together();
    let lab = Lab::new("paths");
    let (nodes, http) = cluster(&lab, 3);

    eventually("everybody tells how far all others are", || {
        let times = nodes[1].round_trip_times(PATIENCE);
        let is_whole =
            |(node, row): (_, &BTreeMap<_, _>)| row.len() == 2 && !row.contains_key(node);
        times.len() == 3 && times.iter().all(is_whole)
    });

    let page = get(http, "/debug/quic");
    assert_eq!(page.status, 200, "{}", page.head);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .starts_with("default-src 'none'")
    );
    assert!(
        page.body.contains("n2") && page.body.contains("All is well"),
        "{}",
        page.body
    );

    for (path, lines) in [
        ("/debug/quic?format=json", ""),
        ("/debug/quic", "Accept: application/json\r\n"),
    ] {
        let conns = get_with(http, path, lines).json();
        assert_eq!(
            (&conns["schema"], &conns["node"]),
            (&1.into(), &"n1".into())
        );
        let rows = conns["connections"].as_array().unwrap();
        assert_eq!(rows.len(), 2, "{conns}");
        assert!(
            rows.iter().all(|row| row["state"] == "established"),
            "{conns}"
        );
        assert!(conns["closed"].is_array(), "{conns}");
    }
    let members = get(http, "/debug/members").json();
    assert_eq!(members["members"].as_array().unwrap().len(), 3, "{members}");
    let status = get(http, "/debug/status").json();
    assert_eq!(
        (&status["ready"], &status["members"]["alive"]),
        (&true.into(), &3.into())
    );
    eventually("the events of the start", || {
        let events = get(http, "/debug/events").json();
        let seqs = events["events"].as_array().unwrap().iter();
        let seqs: Vec<u64> = seqs.map(|event| event["seq"].as_u64().unwrap()).collect();
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{events}");
        events.to_string().contains("\"event\":\"ready\"")
    });
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(get(http, path).body, "ok\n");
        let told = get(http, &format!("{path}?verbose"));
        assert_eq!(told.status, 200);
        assert!(told.body.starts_with("[+]reactor ok\n"), "{}", told.body);
    }
    assert_eq!(get(http, "/").header("location"), Some("/debug/quic"));
    assert_eq!(get(http, "/nothing").status, 404);

    let head = say(
        http,
        &format!("HEAD /debug/members HTTP/1.0\r\nHost: {http}\r\n\r\n"),
    );
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(
        head.header("content-length")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 100
    );
    let post = say(
        http,
        &format!("POST /debug/quic HTTP/1.1\r\nHost: {http}\r\nContent-Length: 2\r\n\r\nhi"),
    );
    assert_eq!(
        (post.status, post.header("allow")),
        (405, Some("GET, HEAD"))
    );
    let other = say(http, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    assert_eq!(other.status, 403);
    assert_eq!(say(http, "GET /metrics HTTP/1.1\r\n\r\n").status, 400);
    assert_eq!(
        say(http, "\u{16}\u{3}\u{1} this is TLS\r\n\r\n").status,
        400
    );
    let long = format!(
        "GET / HTTP/1.1\r\nHost: {http}\r\nX: {}\r\n\r\n",
        "x".repeat(80 << 10)
    );
    assert_eq!(say(http, &long).status, 431);

    // Several requests on one connection, two of them at once.
    let mut stream = connect(http);
    let request = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.repeat(2).as_bytes()).unwrap();
    for _ in 0..2 {
        assert_eq!(read_one(&mut stream).body, "ok\n");
    }
    stream.write_all(request.as_bytes()).unwrap();
    assert_eq!(
        read_one(&mut stream).header("connection"),
        Some("keep-alive")
    );

    stop(nodes);
    assert!(TcpStream::connect(http).is_err(), "the server goes on");
}

/// How many threads of this process have a name that begins so.
fn threads(prefix: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}

#[test]
fn slow_clients_hold_nobody_up_and_are_dropped() {
    let _turn = alone();
    let lab = Lab::new("slow");
    let (nodes, http) = cluster(&lab, 1);
    get(http, "/livez");
    let before = threads("nd-http");
    let began = Instant::now();
    // More than the server takes, so that some make room at once.
    let mut slow: Vec<TcpStream> = (0..200).map(|_| connect(http)).collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHo");
    }
    let mut took: Vec<Duration> = (0..20)
        .map(|_| {
            let asked = Instant::now();
            assert_eq!(get(http, "/livez").status, 200);
            asked.elapsed()
        })
        .collect();
    took.sort_unstable();
    // The rest may be this machine's other work.
    assert!(
        took[took.len() / 2] < Duration::from_millis(100),
        "{took:?}"
    );
    assert_eq!(threads("nd-http"), before, "clients cost threads");
    let mut rest = Vec::new();
    for mut stream in slow {
        // Closed without an answer, at the latest when its time is over.
        let _ = stream.read_to_end(&mut rest);
    }
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    let lasted = began.elapsed();
    assert!(lasted >= Duration::from_secs(4), "closed after {lasted:?}");
    assert!(lasted < Duration::from_secs(25), "closed after {lasted:?}");
    stop(nodes);
}

#[test]
fn a_client_that_does_not_take_its_answer_is_dropped() {
    let _turn = together();
    let lab = Lab::new("taker");
    let (nodes, http) = cluster(&lab, 1);
    let mut stream = connect(http);
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\n\r\n");
    // Asks for far more than sockets hold, and takes nothing.
    let mut asked = 0;
    stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    while stream.write_all(request.as_bytes()).is_ok() && asked < 100_000 {
        asked += 1;
    }
    assert!(asked < 100_000, "it was always read");
    let deadline = Instant::now() + PATIENCE;
    // The server's end shows in the answer to a write.
    while stream.write_all(b"G").is_ok_and(|()| true) || is_timeout(&stream) {
        assert!(Instant::now() < deadline, "it was not dropped");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert_eq!(get(http, "/livez").status, 200);
    stop(nodes);
}

/// Whether the last write failed for want of room and not because the connection has ended.
fn is_timeout(stream: &TcpStream) -> bool {
    let mut stream = stream;
    matches!(stream.write(b"G"), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn a_node_is_not_ready_as_soon_as_it_leaves() {
    let _turn = together();
    let lab = Lab::new("leaving");
    let (mut nodes, http) = cluster(&lab, 2);
    let events = nodes[0].events();
    assert_eq!(get(http, "/readyz").status, 200);
    let leaver = nodes[0].clone();
    let leaving = std::thread::Builder::new();
    let leaving = leaving.spawn(move || leaver.leave(PATIENCE)).unwrap();
    await_event(&events, "leaving", |kind| *kind == EventKind::Leaving);
    let ready = get(http, "/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("[-]member leaving\n"), "{}", ready.body);
    assert_eq!(get(http, "/livez").status, 200);
    leaving.join().unwrap().unwrap();
    assert!(
        get(http, "/debug/quic")
            .body
            .contains("This node has left the cluster")
    );
    drop(nodes.remove(0));
    stop(nodes);
}

#[test]
fn an_address_that_is_taken_is_an_error_of_start() {
    let _turn = together();
    let lab = Lab::new("taken");
    let (nodes, http) = cluster(&lab, 1);
    let error = lab.builder("n2").http(http).start().unwrap_err();
    assert!(error.to_string().contains("HTTP"), "{error}");
    stop(nodes);
}

#[test]
fn a_dead_peer_holds_no_page_up_and_is_told_with_its_reasons() {
    let _turn = together();
    let lab = Lab::new("dead");
    let (mut nodes, http) = cluster(&lab, 3);
    get(http, "/debug/quic");
    let events = nodes[0].events();
    nodes.pop().unwrap().abort();
    let mut slowest = Duration::ZERO;
    eventually("the page tells of it", || {
        let asked = Instant::now();
        let page = get(http, "/debug/quic");
        slowest = slowest.max(asked.elapsed());
        page.body.contains("n3: dead for")
    });
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    await_event(
        &events,
        "death of n3",
        |kind| matches!(kind, EventKind::MemberDead { node, .. } if *node == id("n3")),
    );
    let closed = get(http, "/debug/quic?format=json").json();
    let ended = closed["closed"].as_array().unwrap();
    assert!(
        ended
            .iter()
            .any(|row| row["peer"] == "n3" && row["up_seconds"].is_number()),
        "{closed}"
    );
    let row = closed["connections"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["peer"] == "n3");
    assert_eq!(row.unwrap()["state"], "down", "{closed}");
    assert_eq!(get(http, "/healthz").status, 200);
    stop(nodes);
}

#[test]
fn what_peers_say_is_shown_as_text() {
    let _turn = together();
    let hostile =
        "<script>alert(1)</script>\"><img src=x onerror=alert(2)> \u{202e}olleh \u{1b}[31m";
    assert!(
        nodosum::NodeId::new(hostile).is_err(),
        "names have no such characters"
    );
    let lab = Lab::new("hostile");
    let first = lab
        .builder("n1")
        .http(ANY.parse().unwrap())
        .start()
        .unwrap();
    let http = first.http_addr().unwrap();
    let second = lab
        .builder("n2")
        .seed(first.quic_addr().to_string())
        .tag("<b>", hostile);
    let nodes = vec![first, second.start().unwrap()];
    full_mesh(&nodes, PATIENCE);
    nodes[1].emit_event("news", hostile).unwrap();
    let mut page = get(http, "/debug/quic");
    eventually("the event is on the page", || {
        page = get(http, "/debug/quic?part");
        page.body.contains("news: ")
    });
    for harm in ["<script>", "<img", "<b>=", "\u{202e}", "\u{1b}"] {
        assert!(!page.body.contains(harm), "{harm:?} in {}", page.body);
    }
    for text in [
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "&lt;b&gt;",
        "\\u{202e}olleh",
        "\\u{1b}[31m",
    ] {
        assert!(page.body.contains(text), "{text:?} not in {}", page.body);
    }
    let metrics = get(http, "/metrics");
    assert!(!metrics.body.contains("<script>"));
    stop(nodes);
}

#[test]
fn whatever_is_sent_the_server_goes_on() {
    let _turn = together();
    let lab = Lab::new("garbage");
    let (nodes, http) = cluster(&lab, 1);
    let whole = format!("GET /debug/quic?part HTTP/1.1\r\nHost: {http}\r\nAccept: */*\r\n\r\n");
    let mut rng = nodosum::unversioned::rng::Rng::new(0x6874_7470);
    let mut statuses = BTreeSet::new();
    for _ in 0..300 {
        let mut bytes = whole.repeat(1 + rng.index(3)).into_bytes();
        for _ in 0..rng.below(8) {
            let at = rng.index(bytes.len());
            bytes[at] = rng.u64().to_le_bytes()[0];
        }
        bytes.truncate(1 + rng.index(bytes.len() * 2));
        let mut stream = connect(http);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        statuses.insert(answer.get(9..12).unwrap_or("none").to_owned());
    }
    assert!(
        statuses.contains("200") && statuses.contains("400"),
        "{statuses:?}"
    );
    assert!(!statuses.contains("500"), "{statuses:?}");
    assert_eq!(get(http, "/livez").status, 200);
    stop(nodes);
}

/// The names and kinds of everything in an object; of a list, those of its first item.
fn shape(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key}:{}", shape(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => format!("[{}]", items.first().map(shape).unwrap_or_default()),
        Value::String(_) => "text".to_owned(),
        // What is unknown now may be a number later.
        Value::Number(_) | Value::Null => "number".to_owned(),
        Value::Bool(_) => "flag".to_owned(),
    }
}

#[test]
fn the_program_serves_the_objects_that_its_commands_print() {
    let _turn = together();
    let lab = support::process::Lab::new("objects");
    let flags = [
        "--http",
        ANY,
        "--http-name",
        "node.internal",
        "--profile",
        "local",
    ];
    let mut first = lab.node("n1").flags(&flags);
    first.start();
    let seed = first.quic.clone();
    let mut second = lab
        .node("n2")
        .flags(&["--seed", &seed, "--profile", "local"]);
    second.start();
    first.wait(2, 1, PATIENCE);
    let ports = fs::read_to_string(lab.path("n1.ports")).unwrap();
    let ports: serde_json::Value = serde_json::from_str(&ports).unwrap();
    let http: SocketAddr = ports["http"].as_str().unwrap().parse().unwrap();
    for (path, command) in [
        ("/debug/members", "members"),
        ("/debug/quic?format=json", "conns"),
        ("/debug/status", "status"),
    ] {
        let mut served = get(http, path).json();
        if let Some(object) = served.as_object_mut() {
            object.remove("closed");
        }
        let printed = first.json(&[command]);
        assert_eq!(
            shape(&served),
            shape(&printed),
            "{path} and nodosum {command}"
        );
        assert_eq!(served["node"], printed["node"]);
    }
    let events = get(http, "/debug/events").json();
    let served = events["events"].as_array().unwrap();
    let printed = first.events();
    assert_eq!(shape(&served[0]), shape(&printed[0]));
    let named = "GET /livez HTTP/1.0\r\nHost: node.internal:80\r\n\r\n";
    assert_eq!(say(http, named).status, 200);
    first.signal(rustix::process::Signal::TERM);
    assert!(first.ended(PATIENCE).success());
    assert!(
        TcpStream::connect(http).is_err(),
        "the server outlived the node"
    );
}

// ---- metrics

/// Every metric that the interface names, without the suffixes of its samples.
const NAMES: &[&str] = &[
    "nodosum_build_info{",
    "nodosum_members{state=",
    "nodosum_ready ",
    "nodosum_quic_connections{state=",
    "nodosum_quic_connections_opened_total{side=",
    "nodosum_quic_connections_closed_total{reason=",
    "nodosum_quic_connection_errors_total{kind=",
    "nodosum_quic_dials_total{outcome=",
    "nodosum_quic_dial_backoff_seconds{peer=",
    "nodosum_quic_handshake_duration_seconds_bucket{le=",
    "nodosum_quic_peer_up{peer=",
    "nodosum_quic_peer_rtt_seconds{peer=",
    "nodosum_health_ping_duration_seconds_bucket{le=",
    "nodosum_health_ping_failures_total{peer=",
    "nodosum_quic_sent_bytes_total{peer=",
    "nodosum_quic_received_bytes_total{peer=",
    "nodosum_quic_lost_bytes_total{peer=",
    "nodosum_quic_sent_packets_total{peer=",
    "nodosum_quic_received_packets_total{peer=",
    "nodosum_quic_lost_packets_total{peer=",
    "nodosum_messages_sent_total{app=",
    "nodosum_messages_received_total{app=",
    "nodosum_messages_dropped_total{app=",
    "nodosum_requests_in_flight{app=",
    "nodosum_request_duration_seconds_bucket{le=",
    "nodosum_queue_length{queue=",
    "nodosum_queue_capacity{queue=",
    "nodosum_gossip_probes_total{outcome=",
    "nodosum_gossip_probe_duration_seconds_bucket{le=",
    "nodosum_gossip_health_score ",
    "nodosum_gossip_messages_total{type=",
    "nodosum_gossip_bytes_total{direction=",
    "nodosum_threads{role=",
    "process_cpu_seconds_total ",
    "process_resident_memory_bytes ",
    "process_open_fds ",
];

/// The samples of a scrape, by name and labels.
fn samples(scrape: &Answer) -> BTreeMap<String, f64> {
    let lines = scrape.body.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    });
    samples.collect()
}

/// Whether a sample is of a counter, or of a histogram, which count as well.
fn counts(series: &str) -> bool {
    let name = series.split('{').next().unwrap_or_default();
    ["_total", "_bucket", "_sum", "_count"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

/// Traffic of every kind, a dead peer and a name that nobody has, so that every metric has samples.
fn busy_cluster(lab: &Lab) -> (Vec<Node>, SocketAddr) {
    let (mut nodes, http) = cluster(lab, 4);
    let apps: Vec<_> = nodes
        .iter()
        .map(|node| node.register("chat").unwrap())
        .collect();
    for app in &apps {
        app.on_request_inline(|request| Ok(request.payload.clone()));
    }
    let n2 = id("n2");
    for i in 0..50_u8 {
        assert_eq!(apps[0].request(&n2, [i], PATIENCE).unwrap(), [i]);
        apps[0].send(&n2, [i], PATIENCE).unwrap();
        apps[1].send(&id("n1"), [i], PATIENCE).unwrap();
    }
    apps[0].flush(&n2, PATIENCE).unwrap();
    apps[1].flush(&id("n1"), PATIENCE).unwrap();
    let stranger = nodes[1].register("stranger").unwrap();
    stranger.send(&id("n1"), [1], PATIENCE).unwrap();
    let events = nodes[0].events();
    nodes.pop().unwrap().abort();
    // Which of the two comes first is chance on a busy machine.
    let (mut is_ended, mut is_dead) = (false, false);
    await_event(&events, "end and death of n4", |kind| {
        match kind {
            EventKind::Disconnected { node, .. } if *node == id("n4") => is_ended = true,
            EventKind::MemberDead { node, .. } if *node == id("n4") => is_dead = true,
            _ => {}
        }
        is_ended && is_dead
    });
    (nodes, http)
}

#[test]
fn every_metric_has_samples_and_promtool_and_the_dashboard_agree() {
    let _turn = together();
    let lab = Lab::new("metrics");
    let (nodes, http) = busy_cluster(&lab);
    let mut scrape = get(http, "/metrics");
    eventually("every metric has samples", || {
        scrape = get(http, "/metrics");
        NAMES
            .iter()
            .all(|name| scrape.body.lines().any(|line| line.starts_with(name)))
    });
    assert_eq!(
        scrape.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(scrape.body.ends_with("# EOF\n"));
    let all = samples(&scrape);
    assert_eq!(all["nodosum_requests_in_flight{app=\"chat\"}"], 0.0);
    assert_eq!(
        all["nodosum_request_duration_seconds_count{app=\"chat\",outcome=\"ok\"}"],
        50.0
    );
    assert_eq!(all["nodosum_messages_sent_total{app=\"chat\"}"], 50.0);
    assert_eq!(all["nodosum_messages_received_total{app=\"chat\"}"], 50.0);
    assert_eq!(all["nodosum_quic_peer_up{peer=\"n2\"}"], 1.0);
    assert_eq!(all["nodosum_quic_peer_up{peer=\"n4\"}"], 0.0);
    assert_eq!(all["nodosum_members{state=\"dead\"}"], 1.0);

    every_metric_of_the_documents_is_there(&scrape);
    let plain = get_with(http, "/metrics", "Accept: text/plain\r\n");
    assert_eq!(
        plain.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    promtool(&["check", "metrics"], &plain.body);
    stop(nodes);
}

/// Runs promtool, if it is there. Skips loudly.
#[expect(clippy::print_stderr, reason = "a test that skips itself says so")]
fn promtool(args: &[&str], input: &str) {
    let command = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = command else {
        eprintln!("SKIPPED: promtool is not installed (Debian: prometheus); {args:?} was not run");
        return;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::Builder::new();
    let writer = writer
        .spawn(move || stdin.write_all(input.as_bytes()))
        .unwrap();
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {args:?}: {told}");
}

/// What the dashboard and the alert rules ask for exists.
fn every_metric_of_the_documents_is_there(scrape: &Answer) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring");
    let mut named = BTreeSet::new();
    for file in ["dashboard.json", "alerts.yml"] {
        let text = fs::read_to_string(docs.join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let words =
            words.filter(|word| word.starts_with("nodosum_") || word.starts_with("process_"));
        named.extend(words.map(str::to_owned));
    }
    assert!(named.len() > 20, "{named:?}");
    let series: BTreeSet<String> = samples(scrape)
        .into_keys()
        .map(|series| series.split('{').next().unwrap_or_default().to_owned())
        .collect();
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !series.contains(*name))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/monitoring names {missing:?}, which no node has"
    );
    let dashboard = fs::read_to_string(docs.join("dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    let alerts = docs.join("alerts.yml");
    promtool(&["check", "rules", &alerts.to_string_lossy()], "");
}

#[test]
fn no_counter_runs_backwards_when_connections_are_replaced() {
    let _turn = together();
    let lab = Lab::new("backwards");
    let (mut nodes, http) = cluster(&lab, 2);
    let seed = nodes[0].quic_addr().to_string();
    let app = nodes[0].register("chat").unwrap();
    let mut before: BTreeMap<String, f64> = BTreeMap::new();
    let mut look = |what: &str| {
        let now = samples(&get(http, "/metrics"));
        for (series, value) in &before {
            if counts(series) {
                let after = now.get(series).copied().unwrap_or(-1.0);
                assert!(after >= *value, "{what}: {series} was {value}, is {after}");
            }
        }
        before = now.clone();
        now
    };
    let sent = "nodosum_quic_sent_bytes_total{peer=\"n2\"}";
    let mut last = 0.0;
    for life in 0..4 {
        let other = nodes[1].register("chat").unwrap();
        for _ in 0..20 {
            app.send(&id("n2"), vec![7; 10_000], PATIENCE).unwrap();
            look("while sending");
        }
        app.flush(&id("n2"), PATIENCE).unwrap();
        assert_eq!(other.messages().len(), 20);
        let events = nodes[0].events();
        if life % 2 == 0 {
            nodes[1].abort();
        } else {
            nodes[1].shutdown(PATIENCE);
        }
        drop(other);
        await_event(&events, "end of n2", |kind| {
            look("while it ends");
            matches!(kind, EventKind::Disconnected { .. })
        });
        nodes[1] = lab.builder("n2").seed(&seed).start().unwrap();
        await_event(&events, "n2 is back", |kind| {
            look("while it comes back");
            matches!(kind, EventKind::Connected { .. })
        });
        let now = look("after it came back");
        assert!(now[sent] >= last + 200_000.0, "{} after {last}", now[sent]);
        last = now[sent];
    }
    drop(app);
    // The same name again: its figures go on.
    let again = nodes[0].register("chat").unwrap();
    let now = look("after the application was registered again");
    assert_eq!(now["nodosum_messages_sent_total{app=\"chat\"}"], 80.0);
    drop(again);
    stop(nodes);
}
