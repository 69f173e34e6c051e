//! The command line from outside: help, exit codes, and what needs no running node.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up ends it")]

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// The command with nothing of the caller's environment that it would listen to.
fn nodosum(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodosum"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars() {
        if name.starts_with("NODOSUM_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

fn run(args: &[&str]) -> Output {
    nodosum(args).output().expect("the binary runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

/// A directory of its own for each test, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("nd-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mode(path: &str) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

const COMMANDS: [&[&str]; 25] = [
    &["run"],
    &["demo"],
    &["tls"],
    &["tls", "ca"],
    &["tls", "ca", "create"],
    &["tls", "cert"],
    &["tls", "cert", "create"],
    &["tls", "inspect"],
    &["members"],
    &["conns"],
    &["status"],
    &["events"],
    &["wait"],
    &["ping"],
    &["send"],
    &["request"],
    &["broadcast"],
    &["event"],
    &["query"],
    &["tags"],
    &["join"],
    &["leave"],
    &["force-leave"],
    &["bench"],
    &["bench", "compare"],
];

#[test]
fn every_help_fits_one_screen_and_has_an_example() {
    for command in [&[][..]].into_iter().chain(COMMANDS) {
        let output = run(&[command, &["--help"]].concat());
        let help = stdout(&output);
        assert_eq!(code(&output), 0, "{command:?}");
        assert!(
            help.lines().count() <= 40,
            "{command:?} has {} lines",
            help.lines().count()
        );
        let widest = help
            .lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap_or(0);
        assert!(widest <= 100, "{command:?} is {widest} wide");
        assert!(help.contains("Example:\n  nodosum "), "{command:?}: {help}");
    }
}

#[test]
fn a_bare_call_shows_the_first_steps_and_is_a_usage_error() {
    let output = run(&[]);
    assert_eq!((code(&output), stdout(&output)), (2, ""));
    assert!(
        stderr(&output).matches("\n  nodosum ").count() >= 5,
        "{}",
        stderr(&output)
    );
}

#[test]
fn what_makes_no_sense_exits_with_2_and_prints_no_data() {
    let wrong: [&[&str]; 12] = [
        &["dance"],
        &["run", "--bind", "nowhere"],
        &["run", "--tag", "novalue"],
        &["run", "--node", "Not_A_Label"],
        &["wait", "--timeout", "5"],
        &["members", "-o", "xml"],
        &["members", "--name", "("],
        &["members", "--watch=0"],
        &["send", "--app", "echo"],
        &["request", "--to", "n2"],
        &["tls", "ca", "create", "--cluster", "UPPER", "--out", "x"],
        &["demo", "--nodes", "1"],
    ];
    for args in wrong {
        let output = run(args);
        assert_eq!(
            (code(&output), stdout(&output)),
            (2, ""),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).starts_with("error: "),
            "{args:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_node_that_is_not_there_exits_with_3_and_a_hint() {
    let dir = Dir::new();
    let socket = dir.path("none.sock");
    let commands: [&[&str]; 11] = [
        &["members"],
        &["conns", "-o", "json"],
        &["status"],
        &["events", "-f"],
        &["ping", "n2"],
        &["send", "--to", "n2", "--app", "echo", "x"],
        &["request", "--to", "n2", "--app", "echo", "x"],
        &["broadcast", "--app", "echo", "x"],
        &["join", "127.0.0.1:1"],
        &["leave"],
        &["force-leave", "n2"],
    ];
    for command in commands {
        let output = run(&[command, &["--admin", &socket]].concat());
        assert_eq!(
            (code(&output), stdout(&output)),
            (3, ""),
            "{command:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains("not found\nhint: "),
            "{command:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn waiting_for_a_node_that_never_comes_exits_with_3_at_the_time_out() {
    let dir = Dir::new();
    let output = run(&[
        "wait",
        "--timeout",
        "200ms",
        "--admin",
        &dir.path("none.sock"),
    ]);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
}

#[test]
fn the_admin_socket_is_found_by_variable_and_in_its_default_place() {
    let dir = Dir::new();
    let output = nodosum(&["status"])
        .env("NODOSUM_ADMIN", dir.path("by-variable"))
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("by-variable: not found"),
        "{}",
        stderr(&output)
    );
    if is_root() {
        return;
    }
    let output = nodosum(&["status"])
        .env("XDG_RUNTIME_DIR", &dir.0)
        .output()
        .unwrap();
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("no running node found in"),
        "{}",
        stderr(&output)
    );
}

fn is_root() -> bool {
    fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")))
}

/// A node of a test's own making: answers one request with these bytes.
fn answering(path: &str, answer: &'static [u8]) -> thread::JoinHandle<String> {
    let listener = UnixListener::bind(path).unwrap();
    let serve = move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(answer).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut request = String::new();
        let _ = stream.read_to_string(&mut request);
        request
    };
    thread::Builder::new().spawn(serve).unwrap()
}

#[test]
fn the_nodes_own_verdict_becomes_the_commands_exit_code() {
    let dir = Dir::new();
    let socket = dir.path("n.sock");
    let node = answering(
        &socket,
        b"{\"reply\":\"error\",\"exit\":\"unmet\",\"message\":\"no member\",\"hint\":null}\n",
    );
    let output = run(&["force-leave", "n9", "--admin", &socket]);
    assert_eq!((code(&output), stderr(&output)), (4, "error: no member\n"));
    let request = node.join().unwrap();
    assert_eq!(
        request,
        "{\"version\":1,\"command\":\"force_leave\",\"node\":\"n9\"}\n"
    );
}

#[test]
fn an_answer_that_is_nonsense_or_ends_early_is_an_error() {
    for (answer, expected) in [
        (&b"what?\n"[..], 1),
        (b"", 3),
        (b"{\"reply\":\"done\"}\n", 1),
    ] {
        let dir = Dir::new();
        let socket = dir.path("n.sock");
        let node = answering(&socket, answer);
        let output = run(&["status", "--admin", &socket]);
        assert_eq!(code(&output), expected, "{answer:?}: {}", stderr(&output));
        node.join().unwrap();
    }
}

#[test]
fn a_reply_passes_through_byte_for_byte() {
    let dir = Dir::new();
    let socket = dir.path("n.sock");
    let node = answering(
        &socket,
        b"{\"reply\":\"payload\",\"payload_bytes\":4}\n\x00\xff\n\x80",
    );
    let output = run(&[
        "request", "--to", "n2", "--app", "echo", "hi", "--admin", &socket,
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(output.stdout, [0, 255, b'\n', 128]);
    assert!(node.join().unwrap().ends_with("\"payload_bytes\":2}\nhi"));
}

const MEMBERS: &[u8] = b"{\"reply\":\"members\",\"schema\":1,\"node\":\"n1\",\
\"cluster\":\"c\",\"members\":[{\"node\":\"n1\",\"status\":\"alive\",\"quic_addr\":\"a\",\
\"gossip_addr\":\"b\",\"incarnation\":1,\"tags\":{},\"self\":true,\"connected\":false,\
\"rtt_seconds\":null,\"version\":\"0\"}]}\n";

#[test]
fn a_filter_that_matches_nothing_exits_with_4() {
    for (flags, expected) in [(&["--status", "dead"][..], 4), (&["--name", "n1"], 0)] {
        let dir = Dir::new();
        let socket = dir.path("n.sock");
        let node = answering(&socket, MEMBERS);
        let output = run(&[
            &["members", "-o", "json", "--admin", socket.as_str()][..],
            flags,
        ]
        .concat());
        assert_eq!(code(&output), expected, "{}", stderr(&output));
        assert!(stdout(&output).starts_with("{\"schema\":1,\"node\":\"n1\",\"cluster\":\"c\","));
        node.join().unwrap();
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = Dir::new();
    let socket = dir.path("n.sock");
    let node = answering(&socket, MEMBERS);
    let mut child = nodosum(&["members", "--admin", &socket])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Closed before the command can have written anything: its answer waits for this test.
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    node.join().unwrap();
}

/// An authority and a node's directory, made by the commands themselves.
fn certificates(dir: &Dir) -> (String, String) {
    let (ca, n1) = (dir.path("ca"), dir.path("n1"));
    let made = run(&["tls", "ca", "create", "--cluster", "prod", "--out", &ca]);
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    let made = run(&[
        "tls", "cert", "create", "--ca", &ca, "--node", "n1", "--out", &n1,
    ]);
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    assert_eq!(
        stdout(&made),
        format!("{n1}/ca.pem\n{n1}/node.pem\n{n1}/node.key\n")
    );
    (ca, n1)
}

#[test]
fn certificates_are_made_with_private_keys_and_never_overwritten() {
    let dir = Dir::new();
    let (ca, n1) = certificates(&dir);
    assert_eq!(
        [
            mode(&format!("{ca}/ca.key")),
            mode(&format!("{n1}/node.key"))
        ],
        [0o600, 0o600]
    );
    let before = fs::read(format!("{n1}/node.key")).unwrap();
    let again = run(&[
        "tls", "cert", "create", "--ca", &ca, "--node", "n1", "--out", &n1,
    ]);
    assert_eq!(code(&again), 1, "{}", stderr(&again));
    assert_eq!(fs::read(format!("{n1}/node.key")).unwrap(), before);
    assert_eq!(
        code(&run(&[
            "tls",
            "ca",
            "create",
            "--cluster",
            "other",
            "--out",
            &ca
        ])),
        1
    );
}

#[test]
fn a_certificate_says_what_it_is() {
    let dir = Dir::new();
    let (ca, n1) = certificates(&dir);
    let leaf = run(&["tls", "inspect", &format!("{n1}/node.pem")]);
    for part in [
        "node           n1\n",
        "cluster        prod\n",
        "n1.prod.nodosum",
        " days left)",
    ] {
        assert!(
            stdout(&leaf).contains(part),
            "{part:?} is not in {}",
            stdout(&leaf)
        );
    }
    let authority = run(&["tls", "inspect", &format!("{ca}/ca.pem"), "-o", "json"]);
    for part in [
        "\"schema\":1",
        "\"ca\":true",
        "\"permitted_names\":[\"prod.nodosum\"]",
    ] {
        assert!(
            stdout(&authority).contains(part),
            "{part:?} is not in {}",
            stdout(&authority)
        );
    }
    let key = run(&["tls", "inspect", &format!("{n1}/node.key")]);
    assert_eq!((code(&key), stdout(&key)), (5, ""));
}

#[test]
fn names_that_disagree_and_keys_that_others_can_read_exit_with_5() {
    let dir = Dir::new();
    let (ca, n1) = certificates(&dir);
    let refused = |args: &[&str], part: &str| {
        let output = run(args);
        assert_eq!(code(&output), 5, "{args:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(part),
            "{args:?}: {}",
            stderr(&output)
        );
    };
    let (out, admin) = (dir.path("n2"), dir.path("n1.sock"));
    let create = [
        "tls", "cert", "create", "--ca", &ca, "--node", "n2", "--out", &out,
    ];
    refused(
        &[&create[..], &["--cluster", "dev"]].concat(),
        "--cluster is dev",
    );
    let run = [
        "run",
        "--tls-dir",
        &n1,
        "--bind",
        "127.0.0.1:0",
        "--admin",
        &admin,
    ];
    refused(&[&run[..], &["--node", "n2"]].concat(), "n2");
    refused(&[&run[..], &["--cluster", "dev"]].concat(), "dev");
    refused(&["run", "--bind", "127.0.0.1:0"], "--tls-dir");
    refused(
        &["run", "--tls-dir", &dir.path("missing")],
        "hint: make one",
    );
    refused(
        &[
            "run",
            "--tls-dir",
            &n1,
            "--bind",
            "0.0.0.0:0",
            "--admin",
            &admin,
        ],
        "--advertise",
    );
    for key in [format!("{n1}/node.key"), format!("{ca}/ca.key")] {
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    }
    refused(&run, "chmod 600");
    refused(&create, "chmod 600");
    assert!(!Path::new(&out).exists() && !Path::new(&admin).exists());
}
