//! What somebody who operates nodes does with the real binary: configuration, reload, renewed
//! certificates, seeds in a file, the log filter, the doctor, a bundle.

#![expect(clippy::unwrap_used, reason = "a test that cannot start has failed")]
#![expect(
    clippy::disallowed_methods,
    reason = "a certificate ends by the real clock"
)]

#[path = "support/process.rs"]
mod process;

use std::{fs, process::Command, time::SystemTime};

use process::{Lab, Node, PATIENCE, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Whether the log has a line that says this, and its fields.
fn line(node: &Node<'_>, msg: &str) -> Option<Value> {
    node.log().into_iter().rev().find(|line| line["msg"] == msg)
}

fn reloaded(node: &Node<'_>, how: &str) {
    let answers = || node.log().iter().filter(|line| line["msg"] == how).count();
    let before = answers();
    node.signal(Signal::HUP);
    eventually("HUP is answered", || answers() > before);
}

fn tags_seen(by: &Node<'_>, of: &str) -> Value {
    by.member(of)["tags"].clone()
}

#[test]
fn a_file_configures_a_node_and_hup_takes_over_what_changed_in_it() {
    let lab = Lab::new("reload");
    let file = lab.path("n1.toml");
    fs::write(
        &file,
        "log = \"info\"\nprofile = \"local\"\n[tags]\nzone = \"a\"\nrack = \"7\"\n",
    )
    .unwrap();
    let mut n1 = lab.node("n1").flags(&["--config", "n1.toml"]);
    n1.start();
    let mut n2 = lab.node("n2").flags(&["--seed", &n1.quic]);
    n2.start();
    n2.wait(2, 1, PATIENCE);
    assert_eq!(tags_seen(&n2, "n1"), json!({"zone": "a", "rack": "7"}));
    // What was changed meanwhile by hand is left alone.
    n1.text(&["tags", "--set", "canary=yes"]);

    let changed =
        "log = \"debug\"\nprofile = \"lan\"\nremember_for = \"1d\"\n[tags]\nzone = \"b\"\n";
    fs::write(&file, changed).unwrap();
    reloaded(&n1, "reloaded");
    let expected = json!({"zone": "b", "canary": "yes"});
    eventually("the new tags are known", || {
        tags_seen(&n2, "n1") == expected
    });
    let told = line(&n1, "changed settings that only a restart takes over").unwrap();
    assert_eq!(told["keys"], "profile,remember_for");
    assert_eq!(n1.json(&["log", "show"])["filter"], "debug");

    // A file that makes no sense changes nothing, and says why.
    fs::write(&file, "log = \"info\"\nzones = 3\n").unwrap();
    n1.signal(Signal::HUP);
    let why = || line(&n1, "configuration not reloaded; the one before stays");
    eventually("the mistake is told", || why().is_some());
    let why = why().unwrap();
    assert_eq!(why["level"], "ERROR");
    assert_eq!(why["error"], "n1.toml:2: unknown key \"zones\"");
    assert_eq!(tags_seen(&n2, "n1"), expected);
    assert_eq!(n1.json(&["log", "show"])["configured"], "debug");

    // Tags that are too large stay as they were, and the next reload knows that they did.
    let tags = |large: &str| format!("{}large = \"{large}\"\n", changed.replace("\"b\"", "\"c\""));
    fs::write(&file, tags(&"x".repeat(600))).unwrap();
    reloaded(&n1, "reloaded in part");
    assert_eq!(tags_seen(&n2, "n1"), expected);
    fs::write(&file, tags("no")).unwrap();
    reloaded(&n1, "reloaded");
    eventually("the tags are taken over in the end", || {
        tags_seen(&n2, "n1") == json!({"zone": "c", "canary": "yes", "large": "no"})
    });
}

/// Puts a new certificate of `node` in the place of the one it has.
fn renew(lab: &Lab, node: &str, valid_for: &str) {
    let fresh = format!("{node}.fresh");
    let _ = fs::remove_dir_all(lab.path(&fresh));
    lab.done(&[
        "tls",
        "cert",
        "create",
        "--ca",
        "ca",
        "--node",
        node,
        "--out",
        &fresh,
        "--valid-for",
        valid_for,
    ]);
    for file in ["ca.pem", "node.pem", "node.key"] {
        fs::rename(lab.path(&fresh).join(file), lab.path(node).join(file)).unwrap();
    }
}

#[test]
fn new_certificates_serve_new_handshakes_and_broken_ones_change_nothing() {
    let lab = Lab::new("renewal");
    lab.certify("n1");
    // Long enough to start with, short enough to see its end.
    renew(&lab, "n1", "20s");
    let mut n1 = lab.node("n1");
    n1.start();
    let mut n2 = lab.node("n2").flags(&["--seed", &n1.quic]);
    n2.start();
    n2.wait(2, 1, PATIENCE);
    let before = n1.json(&["status"]);
    assert!(before["certificate_remaining_seconds"].as_f64().unwrap() <= 20.0);
    assert!(line(&n1, "the certificate ends soon").is_some());

    renew(&lab, "n1", "90d");
    reloaded(&n1, "reloaded");
    let after = n1.json(&["status"]);
    assert!(after["certificate_remaining_seconds"].as_f64().unwrap() > 7_000_000.0);
    // What it says of itself from now on is signed with the new key, and believed.
    n1.text(&["tags", "--set", "renewed=yes"]);
    eventually("n2 believes the new certificate", || {
        tags_seen(&n2, "n1") == json!({"renewed": "yes"})
    });

    // Past the end of the old one, only the new one lets anybody in.
    let over = before["certificate_ends"].clone();
    eventually("the old certificate has ended", || {
        SystemTime::now() >= process::time(&over)
    });
    let mut n3 = lab.node("n3").flags(&["--seed", &n1.quic]);
    n3.start();
    n3.wait(3, 2, PATIENCE);
    // The connection from before has lived through all of it.
    assert!(n2.events_about("disconnected", "n1").is_empty());
    assert!(n2.asks("n1") && n3.asks("n1"));

    fs::write(lab.path("n1/node.pem"), "broken").unwrap();
    reloaded(&n1, "reloaded in part");
    let told = line(&n1, "certificates not reloaded; those before stay in use").unwrap();
    assert_eq!(told["level"], "ERROR");
    assert!(
        told["error"].as_str().unwrap().contains("certificate"),
        "{told}"
    );
    n3.signal(Signal::TERM);
    assert!(n3.ended(PATIENCE).success());
    n3.start();
    n3.wait(3, 2, PATIENCE);
    assert!(n3.asks("n1"));
}

#[test]
fn a_file_with_seeds_is_watched() {
    let lab = Lab::new("watched");
    let mut n1 = lab.node("n1");
    n1.start();
    fs::write(lab.path("seeds"), "# nobody yet\n").unwrap();
    let mut n2 = lab.node("n2").flags(&["--seeds-file", "seeds"]);
    n2.start();
    n2.text(&["wait", "--ready", "--timeout", "30s"]);
    assert_eq!(n2.json(&["status"])["members"]["alive"], 1);
    fs::write(lab.path("seeds.new"), format!("{} # n1\n", n1.quic)).unwrap();
    fs::rename(lab.path("seeds.new"), lab.path("seeds")).unwrap();
    n2.wait(2, 1, PATIENCE);
    let told = line(&n2, "seeds changed").unwrap();
    assert_eq!(
        (&told["added"], &told["removed"]),
        (&json!(n1.quic), &json!(""))
    );
}

#[test]
fn a_log_filter_holds_for_a_while_and_goes_back_by_itself() {
    let lab = Lab::new("filter");
    let mut n1 = lab.node("n1").flags(&["--log", "info"]);
    n1.start();
    let view = n1.json(&["log", "set", "admin=trace,warn", "--for", "2s"]);
    assert_eq!(view["filter"], "admin=trace,warn");
    assert_eq!(view["configured"], "info");
    assert!(view["until"].as_str().unwrap().ends_with('Z'));
    eventually("the filter goes back", || {
        n1.json(&["log", "show"])["filter"] == "info"
    });
    assert_eq!(n1.exit_code(&["log", "set", "swim=loud"]), 2);
    n1.text(&["log", "set", "off"]);
    n1.signal(Signal::USR1);
    n1.text(&["log", "reset"]);
    n1.signal(Signal::USR1);
    eventually("the status is logged", || line(&n1, "status").is_some());
    let statuses = n1
        .log()
        .iter()
        .filter(|line| line["msg"] == "status")
        .count();
    assert_eq!(statuses, 1, "nothing was logged while the filter was off");
}

#[test]
fn the_doctor_tells_what_answers_and_what_does_not() {
    let lab = Lab::new("doctor");
    let mut n1 = lab.node("n1");
    n1.start();
    let mut n2 = lab.node("n2").flags(&["--seed", &n1.quic]);
    n2.start();
    n2.wait(2, 1, PATIENCE);
    let level = |view: &Value, subject: &str| -> Vec<String> {
        let findings = view["findings"].as_array().unwrap();
        findings
            .iter()
            .filter(|found| found["subject"] == subject)
            .map(|found| found["level"].as_str().unwrap().to_owned())
            .collect()
    };
    let good = n2.json(&["doctor", "--tls-dir", "n2", "--seed", &n1.quic]);
    let seed = format!("seed {}", n1.quic);
    for subject in ["certificate", &seed, "node", "connections", "clocks"] {
        assert_eq!(level(&good, subject), ["ok"], "{subject}: {good}");
    }
    assert_eq!(good["fail"], 0);

    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = nobody.local_addr().unwrap().to_string();
    let args = [
        "doctor",
        "--tls-dir",
        "ca",
        "--seed",
        &silent,
        "--timeout",
        "300ms",
        "-o",
        "json",
    ];
    let output = n2.client(&args);
    assert_eq!(output.status.code(), Some(1));
    let bad: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(level(&bad, "certificate"), ["fail"]);
    assert_eq!(level(&bad, &format!("seed {silent}")), ["fail"]);
    let mends = bad["findings"].as_array().unwrap().iter();
    for found in mends.filter(|found| found["level"] != "ok") {
        assert!(found["mend"].is_string(), "{found}");
    }
}

#[test]
fn a_bundle_has_every_part_and_no_secret() {
    let lab = Lab::new("bundle");
    let mut n1 = lab.node("n1");
    n1.start();
    n1.text(&["event", "deploy", "a-payload-of-ours"]);
    let told = n1.text(&["debug", "bundle", "--for", "100ms", "--out", "n1.tar"]);
    assert_eq!(told, "n1.tar\n");
    let Ok(listed) = Command::new("tar")
        .arg("-tf")
        .arg(lab.path("n1.tar"))
        .output()
    else {
        eprintln!("SKIPPED: there is no tar to read the bundle with");
        return;
    };
    assert!(listed.status.success(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).unwrap();
    for part in [
        "about.txt",
        "status.json",
        "later/status.json",
        "conns.json",
        "members.json",
        "keys.json",
        "log.json",
        "events.jsonl",
        "settings.toml",
        "threads.tsv",
        "proc/limits",
        "doctor.txt",
    ] {
        let is_there = listed
            .lines()
            .any(|name| name.ends_with(&format!("/{part}")));
        assert!(is_there, "{part} is not in {listed}");
    }
    let bytes = fs::read(lab.path("n1.tar")).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for secret in ["PRIVATE KEY", "a-payload-of-ours"] {
        assert!(!text.contains(secret), "{secret} is in the bundle");
    }
    assert!(text.contains("(17 bytes)"));
    // Nothing is overwritten.
    assert_eq!(
        n1.exit_code(&["debug", "bundle", "--for", "0s", "--out", "n1.tar"]),
        1
    );
}

#[test]
fn top_prints_one_look_after_the_other_where_there_is_no_terminal() {
    let lab = Lab::new("top");
    let nodes = lab.three("local");
    let text = nodes[0].text(&["top", "-n", "2", "-d", "0.2"]);
    let looks: Vec<&str> = text.trim_end().split("\n\n").collect();
    assert_eq!(looks.len(), 2, "{text}");
    for look in &looks {
        assert!(look.starts_with("n1 of top  ready"), "{look}");
        let peers: Vec<&str> = look
            .lines()
            .skip_while(|line| !line.starts_with("PEER"))
            .skip(1)
            .map(|line| line.split_whitespace().next().unwrap())
            .collect();
        assert_eq!(peers, ["n2", "n3"]);
    }
    assert!(
        looks[1].contains("/s"),
        "the second look knows rates: {text}"
    );
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn connections_share_the_threads_that_the_configuration_says() {
    let lab = Lab::new("workers");
    let mut n1 = lab.node("n1").flags(&["--workers", "1"]);
    n1.start();
    let mut others = ["n2", "n3", "n4"].map(|name| lab.node(name).flags(&["--seed", &n1.quic]));
    for node in &mut others {
        node.start();
    }
    n1.wait(4, 3, PATIENCE);
    let threads: Vec<String> = fs::read_dir(format!("/proc/{}/task", n1.pid()))
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap())
        .collect();
    let named = |prefix: &str| {
        threads
            .iter()
            .filter(|name| name.starts_with(prefix))
            .count()
    };
    assert_eq!(
        (named("nd-peers-"), named("nd-peer-")),
        (1, 0),
        "{threads:?}"
    );
    for node in &others {
        assert!(n1.asks(&node.name) && node.asks("n1"));
    }
}
