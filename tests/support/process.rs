//! The real binary in processes of its own: certificates by `nodosum tls`, nodes by `nodosum run`,
//! everything else through the admin socket, as a script would do it.
//!
//! Every path is relative to the lab's directory, in which all processes run, so that the path of
//! a socket stays short wherever the source tree lies.

#![expect(clippy::unwrap_used, reason = "a test that cannot start has failed")]
#![expect(clippy::disallowed_methods, reason = "tests measure by the real clock")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of this"
)]

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Long enough for a loaded machine with two cores; tests wait for facts, not for this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two looks at what has no event.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A directory with an authority, in which the processes of one test run.
pub struct Lab {
    dir: PathBuf,
    pub cluster: String,
}

impl Lab {
    pub fn new(cluster: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{cluster}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .unwrap();
        let lab = Self {
            dir,
            cluster: cluster.to_owned(),
        };
        lab.done(&["tls", "ca", "create", "--cluster", cluster, "--out", "ca"]);
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A certificate for `node` in the directory of its name.
    pub fn certify(&self, node: &str) {
        self.done(&[
            "tls", "cert", "create", "--ca", "ca", "--node", node, "--out", node,
        ]);
    }

    /// The binary, with nothing of the caller's environment that it would listen to; `within`
    /// goes in front of it.
    fn command(&self, within: &[String], args: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_nodosum").to_owned();
        let mut words = within.iter().chain([&binary]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        for (name, _) in std::env::vars() {
            if name.starts_with("NODOSUM_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(&[], args).output().unwrap()
    }

    /// Runs what has to succeed and returns what it printed.
    pub fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A certified node that was never started.
    pub fn node(&self, name: &str) -> Node<'_> {
        if !self.path(name).exists() {
            self.certify(name);
        }
        Node {
            lab: self,
            name: name.to_owned(),
            within: Vec::new(),
            bind: "127.0.0.1:0".to_owned(),
            gossip_bind: None,
            flags: Vec::new(),
            filter: None,
            child: None,
            quic: String::new(),
            gossip: String::new(),
        }
    }

    /// `n1` to `n3` with `n1` as the seed of the others, all connected.
    pub fn three(&self, profile: &str) -> [Node<'_>; 3] {
        let mut first = self.node("n1").flags(&["--profile", profile]);
        first.start();
        let seed = first.quic.clone();
        let others = ["n2", "n3"].map(|name| {
            let flags = ["--profile", profile, "--seed", seed.as_str()];
            let mut node = self.node(name).flags(&flags);
            node.start();
            node
        });
        let [second, third] = others;
        let nodes = [first, second, third];
        meshed(&nodes, PATIENCE);
        nodes
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The logs of a failed test are what explains it.
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// One node. It is killed when dropped.
pub struct Node<'lab> {
    lab: &'lab Lab,
    pub name: String,
    /// What runs it, such as `ip netns exec NAME`.
    within: Vec<String>,
    bind: String,
    gossip_bind: Option<String>,
    flags: Vec<String>,
    filter: Option<String>,
    child: Option<Child>,
    pub quic: String,
    pub gossip: String,
}

impl Node<'_> {
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.add_flags(flags);
        self
    }

    pub fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
    }

    pub fn within(mut self, words: &[&str]) -> Self {
        self.within = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Filters the log as `RUST_LOG` does.
    pub fn filter(mut self, filter: &str) -> Self {
        self.filter = Some(filter.to_owned());
        self
    }

    pub fn bind(&mut self, bind: &str) {
        bind.clone_into(&mut self.bind);
        self.gossip_bind = None;
    }

    /// Starts the process without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let ports = self.file("ports");
        let _ = fs::remove_file(self.lab.path(&ports));
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.lab.path(&self.file("log")))
            .unwrap();
        let admin = self.file("sock");
        let mut args = vec!["run", "--tls-dir", &self.name, "--bind", &self.bind];
        args.extend(["--admin", &admin, "--ports-file", &ports]);
        args.extend(["--log-format", "json"]);
        if let Some(bind) = &self.gossip_bind {
            args.extend(["--gossip-bind", bind]);
        }
        args.extend(self.flags.iter().map(String::as_str));
        let mut command = self.lab.command(&self.within, &args);
        if let Some(filter) = &self.filter {
            command.env("RUST_LOG", filter);
        }
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Starts the process and waits until its sockets are bound.
    pub fn start(&mut self) {
        self.spawn();
        let ports = self.lab.path(&self.file("ports"));
        let name = self.name.clone();
        let deadline = Instant::now() + PATIENCE;
        while !ports.exists() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "{name} ended: {}", self.log_text());
            assert!(Instant::now() < deadline, "{name} wrote no ports file");
            thread::park_timeout(LOOK_AGAIN);
        }
        self.read_ports();
    }

    /// Takes the addresses over from the ports file of a node that is up.
    pub fn read_ports(&mut self) {
        let ports = fs::read(self.lab.path(&self.file("ports"))).unwrap();
        let ports: Value = serde_json::from_slice(&ports).unwrap();
        assert_eq!(
            (&ports["schema"], &ports["node"], &ports["pid"]),
            (&1.into(), &self.name.clone().into(), &self.pid().into())
        );
        ports["quic"].as_str().unwrap().clone_into(&mut self.quic);
        ports["gossip"]
            .as_str()
            .unwrap()
            .clone_into(&mut self.gossip);
    }

    /// From now on the node starts on the ports that it has.
    pub fn keep_ports(&mut self) {
        self.bind.clone_from(&self.quic);
        self.gossip_bind = Some(self.gossip.clone());
    }

    fn file(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.child.as_ref().unwrap());
        kill_process(pid, signal).unwrap();
    }

    /// `kill -9`. Returns when it is over.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until the process has ended by itself.
    pub fn ended(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "{} goes on: {}", self.name, self.log_text());
            thread::park_timeout(LOOK_AGAIN);
        }
    }

    /// Runs a client command against this node.
    pub fn client(&self, args: &[&str]) -> Output {
        let admin = self.file("sock");
        self.lab.run(&[args, &["--admin", &admin]].concat())
    }

    /// A client that goes on, with its standard output to be read.
    pub fn follow(&self, args: &[&str]) -> Child {
        let admin = self.file("sock");
        let args = [args, &["--admin", &admin]].concat();
        let mut command = self.lab.command(&[], &args);
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    pub fn exit_code(&self, args: &[&str]) -> i32 {
        self.client(args).status.code().unwrap()
    }

    /// What a client command that has to succeed prints.
    pub fn text(&self, args: &[&str]) -> String {
        let output = self.client(args);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {args:?}: {told}", self.name);
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// The row of a member.
    pub fn member(&self, node: &str) -> Value {
        let members = self.json(&["members"]);
        let rows = members["members"].as_array().unwrap();
        let row = rows.iter().find(|row| row["node"] == node);
        row.cloned().unwrap_or_default()
    }

    pub fn status_of(&self, node: &str) -> String {
        let row = self.member(node);
        row["status"].as_str().unwrap_or("unknown").to_owned()
    }

    /// The rows of `conns`.
    pub fn conns(&self) -> Vec<Value> {
        self.json(&["conns"])["connections"]
            .as_array()
            .unwrap()
            .clone()
    }

    /// What this life of the node remembers.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text(&["events", "-o", "jsonl"]);
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Events of one kind about one node.
    pub fn events_about(&self, event: &str, node: &str) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|found| found["event"] == event && found["node"] == node);
        events
    }

    /// Waits for the `count`th event of its kind, which is the last one.
    pub fn await_event(&self, event: &str, node: &str, count: usize) -> Value {
        let mut found = Vec::new();
        eventually(&format!("{event} of {node} at {}", self.name), || {
            found = self.events_about(event, node);
            found.len() >= count
        });
        assert_eq!(found.len(), count, "{found:?}");
        found.pop().unwrap()
    }

    /// Waits as a script would, and tells everything when it was for nothing.
    pub fn wait(&self, members: usize, connected: usize, timeout: Duration) {
        let (members, connected) = (members.to_string(), connected.to_string());
        let timeout = format!("{}ms", timeout.as_millis());
        let mut args = vec!["wait", "--members", &members, "--connected", &connected];
        args.extend(["--timeout", &timeout]);
        let output = self.client(&args);
        assert!(
            output.status.success(),
            "{}: {}{}{}{}",
            self.name,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&self.client(&["members"]).stdout),
            String::from_utf8_lossy(&self.client(&["conns", "-o", "wide"]).stdout),
            self.log_text()
        );
    }

    /// Whether `to` answers a request of this node.
    pub fn asks(&self, to: &str) -> bool {
        let payload = format!("from {} to {to}", self.name);
        let args = ["request", "--to", to, "--app", "echo", &payload];
        let output = self.client(&args);
        let is_answered = output.status.success();
        assert!(!is_answered || output.stdout == payload.as_bytes());
        is_answered
    }

    fn log_text(&self) -> String {
        fs::read_to_string(self.lab.path(&self.file("log"))).unwrap_or_default()
    }

    /// The lines of all lives of the node.
    pub fn log(&self) -> Vec<Value> {
        let text = self.log_text();
        let parsed = text.lines().map(|line| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}: {error}: {line}", self.name))
        });
        parsed.collect()
    }

    /// How often the log says at INFO or above that `peer` went away.
    pub fn departures(&self, peer: &str) -> usize {
        let goodbyes = ["disconnected", "member dead", "member left"];
        let lines = self.log();
        let told = lines.iter().filter(|line| {
            goodbyes.iter().any(|goodbye| line["msg"] == *goodbye)
                && (line["peer"] == peer || line["node"] == peer)
                && line["level"] != "DEBUG"
        });
        told.count()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until every node is connected to every other.
pub fn meshed(nodes: &[Node<'_>], patience: Duration) {
    let deadline = Instant::now() + patience;
    for node in nodes {
        let left = deadline.saturating_duration_since(Instant::now());
        node.wait(nodes.len(), nodes.len() - 1, left);
    }
}

/// Every node has exactly one connection to every other, and both ends mean the same one.
pub fn one_connection_per_pair(nodes: &[Node<'_>]) {
    eventually("one connection per pair", || {
        let conns: Vec<Vec<Value>> = nodes.iter().map(Node::conns).collect();
        let end = |from: usize, to: usize| {
            let mut rows = conns[from]
                .iter()
                .filter(|row| row["peer"] == *nodes[to].name);
            match (rows.next(), rows.next()) {
                (Some(row), None) if row["state"] == "established" => {
                    Some(row["side"].as_str().unwrap().to_owned())
                }
                _ => None,
            }
        };
        (0..nodes.len()).all(|here| {
            conns[here].len() == nodes.len() - 1
                && (0..here).all(|there| {
                    matches!(
                        (end(here, there).as_deref(), end(there, here).as_deref()),
                        (Some("dialed"), Some("accepted")) | (Some("accepted"), Some("dialed"))
                    )
                })
        })
    });
}

/// No log has a line that a person should look at.
pub fn nothing_alarming(nodes: &[Node<'_>]) {
    for node in nodes {
        let mut lines = node.log();
        lines.retain(|line| line["level"] == "WARN" || line["level"] == "ERROR");
        assert!(lines.is_empty(), "{}: {lines:#?}", node.name);
    }
}

/// Waits until `holds` does, looking again every few milliseconds; for what has no event.
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    within(PATIENCE, what, holds);
}

/// The same with a limit of its own.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        thread::park_timeout(LOOK_AGAIN);
    }
}

/// Lets time pass for a fault that has a length: a partition, a process that is stopped.
pub fn for_a_while(length: Duration) {
    let end = Instant::now() + length;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

/// The time in a log line's `ts` or an event's `at`.
pub fn time(field: &Value) -> SystemTime {
    let stamp: jiff::Timestamp = field.as_str().unwrap().parse().unwrap();
    stamp.into()
}

/// How long after `start` the time in `field` is.
pub fn since(start: SystemTime, field: &Value) -> Duration {
    time(field).duration_since(start).unwrap_or_default()
}
