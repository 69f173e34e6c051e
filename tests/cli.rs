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

const COMMANDS: [&[&str]; 43] = [
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
    &["keys"],
    &["keys", "list"],
    &["keys", "rotate"],
    &["keys", "remove"],
    &["log"],
    &["log", "show"],
    &["log", "set"],
    &["log", "reset"],
    &["top"],
    &["doctor"],
    &["debug"],
    &["debug", "bundle"],
    &["config"],
    &["config", "init"],
    &["config", "check"],
    &["config", "show"],
    &["completions"],
    &["man"],
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
    let wrong: [&[&str]; 16] = [
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
        &["log", "set", "swim=loud"],
        &["top", "--sort", "beauty"],
        &["completions", "tcsh"],
        &["status", "--color", "sometimes"],
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
fn a_refused_value_says_which_variable_it_is_from() {
    let told = |args: &[&str]| {
        let output = nodosum(args)
            .env("NODOSUM_BIND", "nowhere")
            .output()
            .unwrap();
        assert_eq!(code(&output), 2);
        stderr(&output).to_owned()
    };
    let from_variable = told(&["run"]);
    assert!(
        from_variable.contains("'nowhere'") && from_variable.contains("that of NODOSUM_BIND"),
        "{from_variable}"
    );
    let from_flag = told(&["run", "--bind", "elsewhere"]);
    assert!(!from_flag.contains("NODOSUM_BIND"), "{from_flag}");
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

#[test]
fn completions_and_the_manual_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]);
        assert_eq!(code(&script), 0, "{shell}: {}", stderr(&script));
        for command in COMMANDS.iter().filter(|command| command.len() == 1) {
            assert!(stdout(&script).contains(command[0]), "{shell}: {command:?}");
        }
        assert!(stdout(&script).contains("seeds-file"), "{shell}");
    }
    let page = run(&["man"]);
    assert!(stdout(&page).contains(".TH nodosum 1"), "{}", stdout(&page));
    let dir = Dir::new();
    let out = dir.path("man1");
    let written = run(&["man", "--out", &out]);
    assert_eq!(code(&written), 0, "{}", stderr(&written));
    for command in COMMANDS {
        let page = fs::read_to_string(format!("{out}/nodosum-{}.1", command.join("-"))).unwrap();
        assert!(page.contains("Example:"), "{command:?}: {page}");
    }
}

#[test]
fn colour_is_a_matter_of_the_flag_then_the_environment() {
    let coloured = |args: &[&str], variable: Option<(&str, &str)>| {
        let mut command = nodosum(args);
        for name in ["NO_COLOR", "CLICOLOR_FORCE", "CLICOLOR"] {
            command.env_remove(name);
        }
        command.envs(variable);
        let output = command.output().unwrap();
        stderr(&output).contains('\u{1b}') || stdout(&output).contains('\u{1b}')
    };
    let unreachable = ["status", "--admin", "/nowhere"];
    let always = ["status", "--admin", "/nowhere", "--color", "always"];
    let never = ["status", "--admin", "/nowhere", "--color=never"];
    assert!(!coloured(&unreachable, None), "no terminal");
    assert!(coloured(&unreachable, Some(("CLICOLOR_FORCE", "1"))));
    assert!(coloured(&always, None));
    assert!(
        coloured(&always, Some(("NO_COLOR", "1"))),
        "the flag is nearer"
    );
    assert!(!coloured(&never, Some(("CLICOLOR_FORCE", "1"))));
    assert!(coloured(&["--color=always", "--help"], None));
    assert!(!coloured(&["--help"], None));
}

#[test]
fn configuration_is_written_judged_and_shown() {
    let dir = Dir::new();
    let (_, n1) = certificates(&dir);
    let file = dir.path("nodosum.toml");
    assert_eq!(code(&run(&["config", "init", "--out", &file])), 0);
    let again = run(&["config", "init", "--out", &file]);
    assert_eq!(code(&again), 1, "nothing is overwritten");
    // As it comes, everything is commented out, so that only the certificate is missing.
    let bare = run(&["config", "check", &file]);
    assert_eq!(code(&bare), 5);
    assert!(stderr(&bare).contains("--tls-dir"), "{}", stderr(&bare));

    fs::write(
        &file,
        format!("tls_dir = \"{n1}\"\nseeds = [\"a:1\", \"b:2\"]\n"),
    )
    .unwrap();
    let good = run(&["config", "check", &file]);
    assert_eq!((code(&good), stderr(&good)), (0, ""));
    assert_eq!(
        stdout(&good),
        format!("{file} is good: node n1 of cluster prod\n")
    );

    let mut shown = nodosum(&[
        "config",
        "show",
        "--config",
        &file,
        "--origin",
        "--profile",
        "wan",
    ]);
    let shown = shown.env("NODOSUM_BIND", "127.0.0.1:9").output().unwrap();
    assert_eq!(code(&shown), 0, "{}", stderr(&shown));
    for line in [
        "bind = \"127.0.0.1:9\"  # NODOSUM_BIND".to_owned(),
        "profile = \"wan\"  # --profile".to_owned(),
        format!("seeds = [\"a:1\", \"b:2\"]  # {file}:2"),
        "leave_timeout = \"5s\"  # default".to_owned(),
    ] {
        assert!(
            stdout(&shown).contains(&line),
            "{line:?} is not in {}",
            stdout(&shown)
        );
    }

    // What each key says can be good, and the whole still nothing that starts.
    for (line, why) in [
        ("seeds = [\"foo\"]", "\"foo\" is not HOST:PORT"),
        ("node = \"n9\"", "configured node is \"n9\""),
        ("cluster = \"shop\"", "configured cluster is \"shop\""),
    ] {
        fs::write(&file, format!("tls_dir = \"{n1}\"\n{line}\n")).unwrap();
        for args in [&["config", "check", &file][..], &["run", "--config", &file]] {
            let bad = run(args);
            assert_eq!((code(&bad), stdout(&bad)), (5, ""), "{args:?}");
            assert!(stderr(&bad).contains(why), "{}", stderr(&bad));
        }
    }

    fs::write(&file, "tls_dri = \"x\"\nbind = 7946\n").unwrap();
    for args in [&["config", "check", &file][..], &["run", "--config", &file]] {
        let bad = run(args);
        assert_eq!((code(&bad), stdout(&bad)), (5, ""), "{args:?}");
        let told = stderr(&bad);
        assert!(
            told.contains(&format!(
                "error: {file}:1: unknown key \"tls_dri\"; did you mean \"tls_dir\"?\n"
            )),
            "{told}"
        );
        assert!(
            told.contains(&format!("error: {file}:2: bind: invalid value '7946'")),
            "{told}"
        );
        assert!(told.contains("hint: "), "{told}");
    }
    let missing = run(&["run", "--config", &dir.path("none.toml")]);
    assert_eq!(code(&missing), 5, "{}", stderr(&missing));
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
