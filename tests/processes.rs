//! The real binary in several processes on loopback: it forms clusters, answers, leaves, is killed
//! and comes back.

#![expect(clippy::unwrap_used, reason = "a test that cannot start has failed")]
#![expect(clippy::disallowed_methods, reason = "tests measure by the real clock")]

#[path = "support/process.rs"]
mod process;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant, SystemTime},
};

use process::{
    Lab, Node, PATIENCE, eventually, for_a_while, meshed, nothing_alarming,
    one_connection_per_pair, since, within,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// When all others know that one of three members is dead, by src/swim/mod.rs: (2n − 2) · P + D + S
/// with P = 1 s, D = 0.5 s, and S_min = 3 s in the profile `local`.
const LOCAL_DEATH: Duration = Duration::from_millis(7_500);

/// What the issue gives a cluster to be whole again after a restart.
const REJOIN: Duration = Duration::from_secs(10);

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

fn sorted<'a>(list: &'a [&str]) -> Vec<&'a str> {
    let mut list = list.to_vec();
    list.sort_unstable();
    list
}

fn all_ask_all(nodes: &[Node<'_>]) {
    for from in nodes {
        for to in nodes.iter().filter(|to| to.name != from.name) {
            assert!(from.asks(&to.name), "{} to {}", from.name, to.name);
        }
    }
}

#[test]
fn three_processes_are_one_cluster_within_five_seconds_and_answer_each_other() {
    let lab = Lab::new("formation");
    let mut nodes = ["n1", "n2", "n3"].map(|name| lab.node(name));
    let started = Instant::now();
    nodes[0].start();
    let seed = nodes[0].quic.clone();
    for node in &mut nodes[1..] {
        node.add_flags(&["--seed", &seed, "--tag", "role=worker"]);
        node.spawn();
    }
    for node in &nodes {
        let left = Duration::from_secs(5).saturating_sub(started.elapsed());
        node.wait(3, 2, left);
    }
    for node in &mut nodes[1..] {
        node.read_ports();
    }
    one_connection_per_pair(&nodes);
    let sides: Vec<Value> = nodes
        .iter()
        .flat_map(Node::conns)
        .map(|row| row["side"].clone())
        .collect();
    assert_eq!(sides.iter().filter(|side| **side == "dialed").count(), 3);
    assert_eq!(sides.iter().filter(|side| **side == "accepted").count(), 3);
    all_ask_all(&nodes);
    the_read_commands_print_what_was_promised(&nodes);
    the_others_carry_out_what_was_asked(&nodes);
    nothing_alarming(&nodes);
}

fn the_read_commands_print_what_was_promised(nodes: &[Node<'_>; 3]) {
    let [n1, n2, n3] = nodes;
    let members = n1.json(&["members"]);
    assert_eq!(
        (&members["schema"], &members["node"], &members["cluster"]),
        (&json!(1), &json!("n1"), &json!("formation"))
    );
    let row = n1.member("n2");
    let expected = [
        "node",
        "status",
        "quic_addr",
        "gossip_addr",
        "incarnation",
        "tags",
        "self",
        "connected",
        "rtt_seconds",
        "version",
    ];
    assert_eq!(keys(&row), sorted(&expected));
    assert_eq!(row["status"], "alive");
    assert_eq!(row["quic_addr"], *n2.quic);
    assert_eq!(row["gossip_addr"], *n2.gossip);
    assert_eq!(row["tags"], json!({"role": "worker"}));
    assert_eq!(
        (&row["self"], &row["connected"]),
        (&json!(false), &json!(true))
    );
    assert!(row["rtt_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(row["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(n1.member("n1")["self"], true);
    assert_eq!(n1.text(&["members", "-o", "name"]), "n1\nn2\nn3\n");

    let row = &n3.conns()[0];
    let expected = [
        "peer",
        "side",
        "state",
        "addr",
        "rtt_seconds",
        "min_rtt_seconds",
        "cwnd_bytes",
        "mtu_bytes",
        "sent_bytes",
        "received_bytes",
        "sent_packets",
        "received_packets",
        "lost_packets",
        "streams",
        "idle_seconds",
        "up_seconds",
        "last_ping_seconds",
        "ping_failures",
        "dials",
        "last_error",
        "next_dial_seconds",
    ];
    assert_eq!(keys(row), sorted(&expected));
    assert!(row["received_bytes"].as_u64().unwrap() > 0);
    assert_eq!(row["next_dial_seconds"], Value::Null);

    let status = n2.json(&["status"]);
    let expected = [
        "schema",
        "node",
        "cluster",
        "version",
        "pid",
        "uptime_seconds",
        "ready",
        "members",
        "connections",
        "health_score",
        "lost",
        "seeds",
        "threads",
        "open_fds",
        "rss_bytes",
        "roster_saves",
        "roster_failures",
        "refused",
        "events",
        "certificate_ends",
        "certificate_remaining_seconds",
        "http",
    ];
    assert_eq!(keys(&status), sorted(&expected));
    assert_eq!(status["refused"]["implausible"], 0);
    assert_eq!(status["events"]["emitted"], 0);
    assert_eq!(status["pid"], n2.pid());
    assert_eq!(status["ready"], true);
    assert_eq!(
        status["members"],
        json!({"alive": 3, "suspect": 0, "dead": 0, "left": 0})
    );
    assert_eq!(status["connections"]["established"], 2);

    let events = n1.events();
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["schema"], 1);
        assert_eq!(event["seq"], at + 1, "numbers without gaps: {events:?}");
        assert!(since(SystemTime::UNIX_EPOCH, &event["at"]) > Duration::ZERO);
    }
    for name in ["n2", "n3"] {
        assert_eq!(n1.events_about("member_up", name).len(), 1);
        assert_eq!(n1.events_about("connected", name).len(), 1);
    }
    assert_eq!(events.iter().filter(|e| e["event"] == "ready").count(), 1);

    let pong = n1.json(&["ping", "n3"]);
    assert_eq!(keys(&pong), ["node", "rtt_seconds", "schema"]);
    assert!(pong["rtt_seconds"].as_f64().unwrap() > 0.0);
}

fn the_others_carry_out_what_was_asked(nodes: &[Node<'_>; 3]) {
    let [n1, n2, n3] = nodes;
    let sent = n2.json(&["send", "--to", "n1", "--to", "n3", "--app", "echo", "hi"]);
    assert_eq!(sent, json!({"schema": 1, "ok": ["n1", "n3"], "failed": []}));
    let sent = n3.json(&["broadcast", "--app", "echo", "hi"]);
    assert_eq!(sent, json!({"schema": 1, "ok": ["n1", "n2"], "failed": []}));

    let output = n1.client(&[
        "send", "--to", "n2", "--to", "n9", "--app", "echo", "-o", "json", "hi",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome["ok"], json!(["n2"]));
    assert_eq!(outcome["failed"][0]["node"], "n9");
    assert_eq!(keys(&outcome["failed"][0]), ["error", "node"]);
    assert_eq!(outcome["failed"][0]["error"], "no member \"n9\"");
    let to_itself = n1.client(&["ping", "n1"]);
    let told = String::from_utf8_lossy(&to_itself.stderr);
    assert!(told.contains("n1 is this node itself"), "{told}");

    // However many application names people have typed, the next one is as good.
    for name in 0..40 {
        let output = n1.client(&["send", "--to", "n2", "--app", &format!("typo{name}"), "hi"]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("n2 has no application"), "{told}");
    }
    assert!(n1.asks("n2"));
    assert_eq!(n1.text(&["events", "--name", "n7", "--no-header"]), "");

    assert_eq!(
        n1.exit_code(&["wait", "--members", "4", "--timeout", "50ms"]),
        4
    );
    assert_eq!(n1.exit_code(&["members", "--status", "dead"]), 4);
    assert_eq!(n1.exit_code(&["conns", "--status", "down"]), 4);
    assert_eq!(n1.exit_code(&["members", "--tag", "role=worker"]), 0);
    assert_eq!(n1.exit_code(&["force-leave", "n2"]), 4, "it is alive");
    assert_eq!(n1.exit_code(&["request", "--to", "n9", "--app", "echo"]), 1);
}

#[test]
fn events_queries_and_tags_reach_every_process() {
    let lab = Lab::new("events");
    let mut nodes = ["n1", "n2", "n3"].map(|name| lab.node(name).flags(&["--profile", "local"]));
    nodes[0].start();
    let seed = nodes[0].quic.clone();
    for node in &mut nodes[1..] {
        node.add_flags(&["--seed", &seed, "--tag", "role=worker"]);
        node.start();
    }
    for node in &nodes {
        node.wait(3, 2, PATIENCE);
    }
    let [n1, n2, n3] = &nodes;

    let heard = |node: &Node<'_>| -> Vec<Value> {
        let events = node.events().into_iter();
        events
            .filter(|event| event["event"] == "user_event")
            .collect()
    };
    assert_eq!(n2.text(&["event", "deploy", "v2"]), "");
    for node in &nodes {
        node.await_event("user_event", "n2", 1);
    }
    for node in &nodes {
        let [event] = &heard(node)[..] else {
            panic!("not once");
        };
        let expected = [
            "at", "event", "lamport", "name", "node", "payload", "reason", "schema", "seq",
        ];
        assert_eq!(keys(event), expected);
        assert_eq!(
            (&event["node"], &event["name"], &event["payload"]),
            (&json!("n2"), &json!("deploy"), &json!("v2"))
        );
    }
    assert_eq!(n1.exit_code(&["event", "no spaces"]), 2);
    assert_eq!(n1.exit_code(&["event", "a", &"x".repeat(512)]), 2);

    let all = n3.json(&["query", "echo", "hi"]);
    let answer = |node: &str| json!({"node": node, "payload": "hi"});
    assert_eq!(
        all,
        json!({"schema": 1, "answers": [answer("n1"), answer("n2"), answer("n3")],
               "refused": [], "missing": []})
    );
    let some = n1.json(&["query", "echo", "hi", "--tag", "role=worker"]);
    assert_eq!(some["answers"], json!([answer("n2"), answer("n3")]));
    let one = n1.text(&["query", "echo", "hi", "--node", "n2", "--no-header"]);
    assert_eq!(
        one.split_whitespace().collect::<Vec<_>>(),
        ["n2", "ok", "hi"]
    );
    let nobody = n1.client(&["query", "unheard-of", "-o", "json"]);
    assert_eq!(nobody.status.code(), Some(4));
    let nobody: Value = serde_json::from_slice(&nobody.stdout).unwrap();
    assert_eq!(
        nobody["refused"][0],
        json!({"node": "n1", "error": "no handler"})
    );

    assert_eq!(n2.json(&["tags"])["tags"], json!({"role": "worker"}));
    let changed = n2.json(&["tags", "--set", "zone=a", "--delete", "role"]);
    assert_eq!(
        changed,
        json!({"schema": 1, "node": "n2", "tags": {"zone": "a"}})
    );
    for node in &nodes {
        eventually("the new tags are seen", || {
            node.member("n2")["tags"] == json!({"zone": "a"})
        });
    }
    n1.await_event("member_updated", "n2", 1);
    let large = format!("k={}", "v".repeat(600));
    assert_eq!(n2.exit_code(&["tags", "--set", &large]), 2);
    assert_eq!(n2.exit_code(&["tags", "--set", "a=1", "--delete", "a"]), 2);
    assert_eq!(n2.json(&["tags"])["tags"], json!({"zone": "a"}));
    nothing_alarming(&nodes);
}

#[test]
fn a_node_joins_leaves_and_follows_events_on_command() {
    let lab = Lab::new("commands");
    let [n1, mut n2, n3] = ["n1", "n2", "n3"].map(|name| {
        let mut node = lab.node(name).flags(&["--profile", "local"]);
        node.start();
        node
    });
    assert_eq!(n2.text(&["join", &n1.quic]), "1 of 1 seeds answered\n");
    assert_eq!(n3.text(&["join", &n2.quic]), "1 of 1 seeds answered\n");
    for node in [&n1, &n2, &n3] {
        node.wait(3, 2, PATIENCE);
    }

    // What happened before is told first, then what happens.
    let mut following = n1.follow(&["events", "-f", "-o", "jsonl"]);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let told = n3.text(&["leave"]);
    assert_eq!(told, "left; 2 members confirmed it\n");
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let mut seq = 0;
    loop {
        let event = next();
        seq += 1;
        assert_eq!(event["seq"], seq);
        if event["event"] == "member_left" {
            assert_eq!(
                (&event["node"], &event["reason"]),
                (&json!("n3"), &json!("left"))
            );
            break;
        }
    }
    following.kill().unwrap();
    following.wait().unwrap();
    assert_eq!(n1.status_of("n3"), "left");
    n2.await_event("member_left", "n3", 1);
    eventually("n3 goes on alone", || {
        n3.json(&["status"])["connections"]["established"] == 0
    });

    // A process answers signals in its log and goes on.
    n1.signal(Signal::USR1);
    n1.signal(Signal::HUP);
    let told = |line: &Value, start: &str| line["msg"].as_str().unwrap().starts_with(start);
    eventually("both answers in the log", || {
        let log = n1.log();
        log.iter()
            .any(|line| told(line, "status") && line["left"] == 1)
            && log.iter().any(|line| told(line, "reloaded"))
    });

    // A dead member is forced out; the word of one node is enough for all.
    n2.kill();
    let dead = n1.await_event("member_dead", "n2", 1);
    assert!(dead["reason"].as_str().unwrap().contains("n1"));
    n1.text(&["force-leave", "n2"]);
    n1.await_event("member_left", "n2", 1);
    assert_eq!(n1.status_of("n2"), "left");
    assert_eq!(n2.exit_code(&["status"]), 3, "nobody is there any more");
}

#[test]
fn a_leave_names_who_did_not_confirm_it() {
    let lab = Lab::new("silent");
    let [n1, n2, n3] = lab.three("lan");
    n2.signal(Signal::STOP);
    let told = n1.text(&["leave", "--timeout", "1s"]);
    n2.signal(Signal::CONT);
    assert_eq!(told, "left; 1 member confirmed it, not n2\n");
    for node in [&n2, &n3] {
        let left = node.await_event("member_left", "n1", 1);
        assert_eq!(left["reason"], "left");
    }
}

#[test]
fn a_node_that_cannot_serve_refuses_to_start_and_says_why() {
    let lab = Lab::new("refusals");
    lab.certify("n1");
    let valid_for = Duration::from_secs(1);
    lab.done(&[
        "tls",
        "cert",
        "create",
        "--ca",
        "ca",
        "--node",
        "old",
        "--out",
        "old",
        "--valid-for",
        "1s",
    ]);
    let certified = SystemTime::now();
    let refused = |flags: &[&str], why: &str| {
        let bind = ["run", "--bind", "127.0.0.1:0", "--admin", "refused.sock"];
        let output = lab.run(&[&bind, flags].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{flags:?}: {told}");
        assert!(told.contains(why), "{flags:?}: {told}");
        assert!(!lab.path("refused.sock").exists());
    };
    refused(&[], "a node needs a certificate");
    refused(&["--tls-dir", "nowhere"], "nowhere");
    refused(&["--tls-dir", "n1", "--cluster", "other"], "other");
    refused(&["--tls-dir", "n1", "--node", "n2"], "n2");
    let key = lab.path("n1/node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&["--tls-dir", "n1"], "can be read by others");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(lab.path("n1/node.pem")).unwrap();
    refused(&["--tls-dir", "n1"], "node.pem");

    // A certificate of another cluster's authority does not fit this one's.
    let other = Lab::new("refusals-other");
    other.certify("n1");
    fs::copy(other.path("n1/node.pem"), lab.path("n1/node.pem")).unwrap();
    fs::copy(other.path("n1/node.key"), &key).unwrap();
    refused(&["--tls-dir", "n1"], "not issued by the given authority");

    // Certificates count whole seconds, so that the end may come up to a second late.
    eventually("the certificate ends", || {
        SystemTime::now() > certified + valid_for + Duration::from_secs(1)
    });
    refused(&["--tls-dir", "old"], "expired");
}

#[test]
fn a_signal_leaves_gracefully_and_a_second_one_ends_at_once() {
    let lab = Lab::new("signals");
    let [n1, mut n2, mut n3] = lab.three("lan");
    for (node, signal) in [(&mut n3, Signal::TERM), (&mut n2, Signal::INT)] {
        let asked = Instant::now();
        node.signal(signal);
        let status = node.ended(PATIENCE);
        let took = asked.elapsed();
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        let left = n1.await_event("member_left", &node.name, 1);
        assert_eq!(left["reason"], "left");
        assert_eq!(n1.departures(&node.name), 1);
        assert_eq!(n1.exit_code(&["wait", "--ready", "--timeout", "1s"]), 0);
    }
    for node in [&n1, &n2, &n3] {
        nothing_alarming(std::slice::from_ref(node));
    }

    // They come back, and then nobody is there to confirm their leave.
    for (node, signal, code) in [(&mut n2, Signal::TERM, 143), (&mut n3, Signal::INT, 130)] {
        node.start();
        node.wait(2, 1, PATIENCE);
        n1.signal(Signal::STOP);
        node.signal(signal);
        let leaving = |node: &Node<'_>| {
            let lines = node.log();
            let asked = lines
                .iter()
                .rev()
                .take_while(|line| line["msg"] != "running");
            asked.into_iter().any(|line| line["msg"] == "leaving")
        };
        eventually("the leave begins", || leaving(node));
        let asked = Instant::now();
        node.signal(signal);
        let status = node.ended(PATIENCE);
        let took = asked.elapsed();
        assert_eq!(status.code(), Some(code), "{status}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        n1.signal(Signal::CONT);
    }
}

/// What `--explain` says of a member that was killed a moment ago.
fn explains_a_death(node: &Node<'_>, dead: &str) {
    let explained = node.json(&["members", dead, "--explain"]);
    let expected = [
        "schema",
        "node",
        "member",
        "status",
        "since",
        "incarnation",
        "health_score",
        "evidence",
        "dead_at",
        "case",
        "last_death",
        "connection",
        "when_suspected",
        "when_dead",
    ];
    assert_eq!(keys(&explained), sorted(&expected));
    assert_eq!(explained["status"], "dead");
    let case = &explained["case"];
    assert_eq!(case["verdict"]["ending"], "dead", "{explained:#}");
    assert!(!case["accusations"].as_array().unwrap().is_empty());
    let probes = case["probes"].as_array().unwrap();
    assert!(probes.iter().any(|probe| probe["answered"] == false));
    let [suspected, died] = [&explained["when_suspected"], &explained["when_dead"]];
    for moment in [suspected, died] {
        assert!(moment["connection"]["state"].is_string(), "{moment}");
    }
    let story = node.text(&["members", dead, "--explain"]);
    assert!(
        story.starts_with(&format!("{dead} is dead since ")),
        "{story}"
    );
    assert!(story.contains("this node's probe failed"), "{story}");
    assert_eq!(node.exit_code(&["members", "nobody", "--explain"]), 4);
    assert_eq!(node.exit_code(&["members", "--explain"]), 2);
}

#[test]
fn a_killed_node_is_dead_within_the_bound_and_comes_back_on_other_ports() {
    let lab = Lab::new("death");
    let mut nodes = lab.three("local");
    nodes[2].kill();
    let killed = SystemTime::now();
    for node in &nodes[..2] {
        let dead = node.await_event("member_dead", "n3", 1);
        let took = since(killed, &dead["at"]);
        assert!(took <= LOCAL_DEATH, "{}: {took:?}", node.name);
    }
    explains_a_death(&nodes[0], "n3");
    let before = nodes[0].member("n3");
    let started = Instant::now();
    nodes[2].start();
    let left = REJOIN.saturating_sub(started.elapsed());
    meshed(&nodes, left);
    assert_ne!(before["quic_addr"], *nodes[2].quic);
    eventually("the new address is known", || {
        nodes[..2].iter().all(|node| {
            let after = node.member("n3");
            after["quic_addr"] == *nodes[2].quic
                && after["incarnation"].as_u64() > before["incarnation"].as_u64()
        })
    });
    one_connection_per_pair(&nodes);
    all_ask_all(&nodes);
    nothing_alarming(&nodes);
    for node in &nodes[..2] {
        assert_eq!(node.departures("n3"), 1, "{}", node.name);
    }
}

#[test]
fn twenty_kills_and_restarts_in_a_row_leave_one_connection_per_pair_and_a_quiet_log() {
    const ROUNDS: usize = 20;
    let lab = Lab::new("restarts");
    let mut nodes = lab.three("lan");
    for node in &mut nodes {
        node.keep_ports();
    }
    for round in 0..ROUNDS {
        let victim = round % nodes.len();
        let killed = Instant::now();
        nodes[victim].kill();
        nodes[victim].spawn();
        let gap = killed.elapsed();
        assert!(gap < Duration::from_millis(100), "{gap:?}");
        let left = || REJOIN.saturating_sub(killed.elapsed());
        nodes[victim].wait(3, 2, left());
        // The others have not missed it perhaps, and hold the connection of its earlier life:
        // only an answer proves the new one.
        for other in (0..nodes.len()).filter(|other| *other != victim) {
            let (other, victim) = (&nodes[other], &nodes[victim]);
            let what = format!("round {round}: {} and {}", other.name, victim.name);
            within(left(), &what, || {
                other.asks(&victim.name) && victim.asks(&other.name)
            });
            other.wait(3, 2, left());
        }
        eprintln!(
            "round {round}: {} is back after {:?}",
            nodes[victim].name,
            killed.elapsed()
        );
    }
    one_connection_per_pair(&nodes);
    all_ask_all(&nodes);
    nothing_alarming(&nodes);
    for node in &nodes {
        for (at, peer) in nodes.iter().enumerate() {
            let kills = (0..ROUNDS).filter(|round| round % 3 == at).count();
            let told = node.departures(&peer.name);
            assert!(told <= kills, "{}: {told} of {}", node.name, peer.name);
        }
    }
}

#[test]
fn a_node_that_stands_still_is_spared_for_a_while_and_recovers_by_itself() {
    let lab = Lab::new("standstill");
    let nodes = lab.three("lan");
    // Shorter than any suspicion, which is 4 s at least.
    nodes[1].signal(Signal::STOP);
    for_a_while(Duration::from_secs(2));
    nodes[1].signal(Signal::CONT);
    meshed(&nodes, REJOIN);
    all_ask_all(&nodes);

    // Longer than it takes to be declared dead: (2n − 2) · P + D + S_min = 8.5 s.
    nodes[2].signal(Signal::STOP);
    for_a_while(Duration::from_secs(11));
    for node in &nodes[..2] {
        node.await_event("member_dead", "n3", 1);
    }
    nodes[2].signal(Signal::CONT);
    meshed(&nodes, REJOIN);
    all_ask_all(&nodes);
    one_connection_per_pair(&nodes);
    nothing_alarming(&nodes);
    let deaths = |node: &Node<'_>| {
        let mut events = node.events();
        events.retain(|event| event["event"] == "member_dead");
        events.len()
    };
    assert_eq!(nodes.each_ref().map(deaths), [1, 1, 0]);
    for node in &nodes[..2] {
        assert_eq!(node.departures("n3"), 1, "{}", node.name);
    }
}

/// The names of the keys that a node holds, the newest first.
fn key_names(node: &Node<'_>) -> Vec<String> {
    let list = node.json(&["keys", "list"]);
    let keys = list["keys"].as_array().unwrap();
    let name = |key: &Value| key["key"].as_str().unwrap().to_owned();
    keys.iter().map(name).collect()
}

/// Rotates, and returns the key that is in use everywhere.
fn rotate(node: &Node<'_>) -> String {
    let text = node.text(&["keys", "rotate", "--timeout", "60s"]);
    let (key, rest) = text.split_once(' ').unwrap();
    assert!(rest.starts_with("is in use; "), "{text}");
    key.to_owned()
}

#[test]
fn keys_rotate_while_the_nodes_talk_and_a_node_that_stood_still_meanwhile_recovers() {
    let lab = Lab::new("keys");
    let nodes = lab.three("local");
    let list = nodes[0].json(&["keys", "list"]);
    assert_eq!(
        keys(&list),
        sorted(&["cluster", "fixed", "keys", "members", "node", "schema"])
    );
    let expected = [
        "key",
        "generation",
        "seals",
        "confirmed",
        "members",
        "missing",
    ];
    assert_eq!(keys(&list["keys"][0]), sorted(&expected));
    let first = key_names(&nodes[0]).remove(0);
    assert_eq!(nodes[0].exit_code(&["keys", "remove", &first]), 4, "in use");
    let unknown = ["keys", "remove", "0123456789abcdef"];
    assert_eq!(nodes[0].exit_code(&unknown), 4);
    assert_eq!(nodes[0].exit_code(&["keys", "remove", "first"]), 2);

    // Under load: every request is answered, and nobody is thought to be dead.
    thread::scope(|scope| {
        let talking = scope.spawn(|| {
            for _ in 0..20 {
                all_ask_all(&nodes);
            }
        });
        while !talking.is_finished() {
            rotate(&nodes[0]);
        }
        talking.join().unwrap();
    });
    for node in &nodes {
        let is_loss = |event: &&Value| event["event"] == "member_dead";
        assert_eq!(node.events().iter().filter(is_loss).count(), 0);
    }

    // While n3 stands still nobody can have a key confirmed by it; once it is dead they can. The
    // keys that n3 knows are removed, and it is several generations behind.
    nodes[2].signal(Signal::STOP);
    nodes[1].await_event("member_dead", "n3", 1);
    let mut newest = String::new();
    for _ in 0..4 {
        let before = key_names(&nodes[0]).remove(0);
        newest = rotate(&nodes[0]);
        within(PATIENCE, "n2 seals with it too", || {
            nodes[1].json(&["keys", "list"])["keys"][0]["seals"] == true
        });
        nodes[1].text(&["keys", "remove", &before]);
        eventually("the old key is gone", || {
            nodes[..2]
                .iter()
                .all(|node| key_names(node) == [newest.as_str()])
        });
    }
    nodes[2].signal(Signal::CONT);
    meshed(&nodes, REJOIN);
    eventually("all hold the newest key and nothing else", || {
        nodes.iter().all(|node| {
            let list = node.json(&["keys", "list"]);
            key_names(node) == [newest.as_str()] && list["keys"][0]["confirmed"] == 3
        })
    });
    all_ask_all(&nodes);
    nothing_alarming(&nodes);
}
