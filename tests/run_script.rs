//! `./run`, held against machines that lack something. Each test builds a PATH of its own out of
//! small scripts that stand in for the compilers, cargo and the package manager, so that nothing
//! is installed, nothing is built, and the machine underneath does not matter.

#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot set its scene has failed"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};

/// What `./run` may use of the real machine: the tools that every POSIX system has.
const POSIX_TOOLS: [&str; 8] = ["cat", "date", "dirname", "grep", "mkdir", "rm", "sed", "sh"];

const APT_LINE: &str = "apt-get update; apt-get install -y --no-install-recommends";

#[test]
fn a_complete_machine_needs_nothing() {
    let machine = Machine::complete("complete");
    let run = machine.run(&["setup"]);
    assert_eq!(run.code, 0, "{}", run.said);
    assert_eq!(machine.journal(), "", "nothing may be installed");
}

#[test]
fn each_missing_tool_is_named_with_its_command_when_nothing_may_be_installed() {
    for (tool, package) in [
        ("cc", "build-essential"),
        ("c++", "build-essential"),
        ("make", "build-essential"),
        ("cmake", "cmake"),
        ("git", "git"),
    ] {
        let machine = Machine::complete(&format!("no-{tool}"));
        machine.remove(tool);
        let run = machine.without_installing().run(&["setup"]);
        assert_eq!(run.code, 5, "without {tool}: {}", run.said);
        assert!(
            run.said.contains(&format!("  {tool}: ")),
            "without {tool}: {}",
            run.said
        );
        assert!(
            run.said.contains(&format!("    {APT_LINE} {package}\n")),
            "without {tool}: {}",
            run.said
        );
        assert_eq!(machine.journal(), "", "without {tool}");
    }
}

#[test]
fn a_missing_libclang_is_named_with_its_command() {
    let machine = Machine::complete("no-libclang");
    fs::remove_file(machine.libclang().join("libclang.so")).unwrap();
    let run = machine.without_installing().run(&["setup"]);
    assert_eq!(run.code, 5, "{}", run.said);
    assert!(
        run.said.contains(&format!("    {APT_LINE} libclang-dev\n")),
        "{}",
        run.said
    );
}

#[test]
fn the_cpp_flavour_of_libclang_does_not_count() {
    let machine = Machine::complete("cpp-libclang");
    fs::rename(
        machine.libclang().join("libclang.so"),
        machine.libclang().join("libclang-cpp.so.14"),
    )
    .unwrap();
    assert_eq!(machine.without_installing().run(&["setup"]).code, 5);
}

#[test]
fn an_old_cmake_counts_as_missing() {
    for (version, code) in [("3.21.9", 5), ("2.30.0", 5), ("3.22.0", 0), ("4.0.2", 0)] {
        let machine = Machine::complete(&format!("cmake-{version}"));
        machine.script("cmake", &format!("echo cmake version {version}"));
        let run = machine.without_installing().run(&["setup"]);
        assert_eq!(run.code, code, "cmake {version}: {}", run.said);
    }
}

#[test]
fn a_compiler_without_the_c_library_counts_as_missing() {
    let machine = Machine::complete("no-libc-headers");
    machine.script("cc", "echo ${1##*=}");
    let run = machine.without_installing().run(&["setup"]);
    // Elsewhere than on Linux the probe does not apply.
    assert_eq!(
        run.code,
        if cfg!(target_os = "linux") { 5 } else { 0 },
        "{}",
        run.said
    );
}

#[test]
fn several_missing_tools_make_one_command_without_repetition() {
    let machine = Machine::complete("several");
    for tool in ["cc", "c++", "make", "git"] {
        machine.remove(tool);
    }
    let run = machine.without_installing().run(&["setup"]);
    assert!(
        run.said
            .contains(&format!("    {APT_LINE} build-essential git\n")),
        "{}",
        run.said
    );
}

#[test]
fn libclang_without_headers_takes_those_of_the_compiler() {
    let machine = Machine::complete("headers");
    fs::remove_dir_all(machine.libclang().join("clang")).unwrap();
    machine.run(&["demo"]);
    let expected = format!(
        "BINDGEN_EXTRA_CLANG_ARGS=-I{}/include",
        machine.root.display()
    );
    assert!(
        machine.journal().contains(&expected),
        "{}",
        machine.journal()
    );
}

#[test]
fn root_installs_what_is_missing_and_goes_on() {
    let machine = Machine::complete("root");
    machine.remove("git");
    let git = machine.root.join("bin/git");
    let chmod = real("chmod");
    machine.script(
        "apt-get",
        &format!(
            "echo apt-get \"$@\" >>\"$JOURNAL\"; : >{0}; {1} +x {0}",
            git.display(),
            chmod.display()
        ),
    );
    let run = machine.run(&["setup"]);
    assert_eq!(run.code, 0, "{}", run.said);
    assert_eq!(
        machine.journal(),
        "apt-get update\napt-get install -y --no-install-recommends git\n"
    );
}

#[test]
fn an_installation_that_changes_nothing_is_not_believed() {
    let machine = Machine::complete("liar");
    machine.remove("git");
    let run = machine.run(&["setup"]);
    assert_eq!(run.code, 5, "{}", run.said);
    assert!(run.said.contains("Still missing"), "{}", run.said);
}

#[test]
fn without_root_and_sudo_the_command_is_printed_with_sudo() {
    let machine = Machine::complete("user");
    machine.remove("git");
    machine.script("id", "echo 1000");
    let run = machine.run(&["setup"]);
    assert_eq!(run.code, 5, "{}", run.said);
    assert!(
        run.said.contains(
            "    sudo apt-get update; sudo apt-get install -y --no-install-recommends git\n"
        ),
        "{}",
        run.said
    );
    assert_eq!(machine.journal(), "");
}

#[test]
fn without_cargo_the_rustup_line_is_printed() {
    let machine = Machine::complete("no-cargo");
    machine.remove("cargo");
    let run = machine.run(&["demo"]);
    assert_eq!(run.code, 5, "{}", run.said);
    assert!(run.said.contains("https://sh.rustup.rs"), "{}", run.said);
}

#[test]
fn cargo_is_found_where_rustup_puts_it() {
    let machine = Machine::complete("fresh-rustup");
    let home = machine.root.join("home/.cargo/bin");
    fs::create_dir_all(&home).unwrap();
    fs::rename(machine.root.join("bin/cargo"), home.join("cargo")).unwrap();
    let run = machine.run(&["setup"]);
    assert_eq!(run.code, 0, "{}", run.said);
}

#[test]
fn a_cargo_that_is_too_old_is_refused() {
    let machine = Machine::complete("old-cargo");
    machine.script("cargo", "echo 'cargo 1.74.0 (ecb9851af 2023-10-18)'");
    let run = machine.run(&["setup"]);
    assert_eq!(run.code, 5, "{}", run.said);
    assert!(run.said.contains("rustup update stable"), "{}", run.said);
}

#[test]
fn the_demo_passes_its_arguments_on_and_prints_nothing_else_on_stdout() {
    let machine = Machine::complete("demo");
    let run = machine.run(&["demo", "--for", "30s", "-o", "json"]);
    assert_eq!(run.code, 7, "the exit code is the program's: {}", run.said);
    assert_eq!(run.stdout, "the program\n");
    let journal = machine.journal();
    let lines: Vec<&str> = journal
        .lines()
        .filter(|line| line.starts_with("cargo"))
        .collect();
    assert_eq!(
        lines,
        [
            "cargo build --release --locked --bin nodosum",
            "cargo run --quiet --locked --release --bin nodosum -- demo --for 30s -o json",
        ]
    );
}

#[test]
fn a_failing_check_is_named_at_the_end_and_the_others_still_run() {
    let machine = Machine::complete("checks");
    machine.script("cargo-deny", "exit 0");
    machine.script("nft", "exit 0");
    machine.script("ip", "exit 0");
    machine.script(
        "cargo",
        "case $1 in --version) echo cargo 1.95.0 ;; test) exit 101 ;; tree) echo nodosum v0.1.0 ;; esac",
    );
    let run = machine.run(&["test"]);
    assert_eq!(run.code, 1, "{}", run.said);
    assert!(
        run.said
            .contains("\n  tests: cargo test --locked --no-fail-fast\n"),
        "{}",
        run.said
    );
    assert_eq!(
        run.stdout, "checks: 8 passed, 1 failed, 0 skipped\n",
        "{}",
        run.said
    );
}

#[test]
fn an_async_runtime_among_the_dependencies_fails_the_checks() {
    let machine = Machine::complete("tokio");
    machine.script("cargo-deny", "exit 0");
    machine.script(
        "cargo",
        "case $1 in --version) echo cargo 1.95.0 ;; tree) echo 'tokio v1.40.0' ;; esac",
    );
    let run = machine.without_installing().run(&["test"]);
    assert_eq!(run.code, 1, "{}", run.said);
    assert!(run.said.contains("-- dependencies: FAILED"), "{}", run.said);
}

#[test]
fn a_check_without_its_tool_is_skipped_for_a_person_and_fails_in_ci() {
    let machine = Machine::complete("no-deny");
    machine.script(
        "cargo",
        "case $1 in --version) echo cargo 1.95.0 ;; tree) echo nodosum v0.1.0 ;; esac",
    );
    let run = machine.without_installing().run(&["test"]);
    assert_eq!(run.code, 0, "{}", run.said);
    assert!(
        run.said.contains("SKIPPED, cargo-deny is not installed"),
        "{}",
        run.said
    );

    let run = machine
        .without_installing()
        .with("CI", "true")
        .run(&["test"]);
    assert_eq!(run.code, 1, "{}", run.said);
}

#[test]
fn anything_else_is_a_usage_error() {
    let machine = Machine::complete("usage");
    for arguments in [&["nonsense"][..], &[], &["setup", "extra"]] {
        assert_eq!(machine.run(arguments).code, 2, "{arguments:?}");
    }
    let run = machine.run(&["help"]);
    assert_eq!(run.code, 0);
    assert!(
        run.stdout.starts_with("usage: ./run COMMAND"),
        "{}",
        run.stdout
    );
}

/// A directory that plays a machine: `bin` is its PATH, `home` its HOME.
struct Machine {
    root: PathBuf,
    /// One at a time: a process started by another test could, for the moment before its own
    /// exec, hold a script open that was just written, and running that script would fail.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

struct Ran {
    code: i32,
    stdout: String,
    said: String,
}

impl Machine {
    /// Everything that the build needs, in scripts that do nothing; the user is root.
    fn complete(name: &str) -> Self {
        // A test that failed has left nothing behind that the next one could trip over.
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("run_script")
            .join(name);
        if root.exists() {
            fs::remove_dir_all(&root).unwrap();
        }
        let machine = Self { root, _turn: turn };
        for directory in [
            "bin",
            "home",
            "include",
            "llvm/clang/14/include",
            "checkout",
        ] {
            fs::create_dir_all(machine.root.join(directory)).unwrap();
        }
        fs::write(machine.root.join("include/stddef.h"), "").unwrap();
        fs::write(machine.root.join("llvm/clang/14/include/stddef.h"), "").unwrap();
        fs::write(machine.root.join("llvm/libclang.so"), "").unwrap();

        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in ["run", "Cargo.toml"] {
            fs::copy(source.join(file), machine.root.join("checkout").join(file)).unwrap();
        }

        for tool in POSIX_TOOLS {
            symlink(real(tool), machine.root.join("bin").join(tool)).unwrap();
        }
        for tool in ["c++", "make", "git"] {
            machine.script(tool, "exit 0");
        }
        machine.script("cc", "echo \"$ROOT/${1##*=}\"");
        machine.script("cmake", "echo 'cmake version 3.25.1'");
        machine.script(
            "uname",
            &format!(
                "echo {}",
                if cfg!(target_os = "linux") {
                    "Linux"
                } else {
                    "Other"
                }
            ),
        );
        machine.script("id", "echo 0");
        machine.script("apt-get", "echo apt-get \"$@\" >>\"$JOURNAL\"");
        machine.script(
            "cargo",
            "[ \"$1\" != --version ] || { echo 'cargo 1.95.0 (f2d3ce0bd 2026-03-21)'; exit 0; }
             echo cargo \"$@\" >>\"$JOURNAL\"
             [ -z \"${BINDGEN_EXTRA_CLANG_ARGS:-}\" ] ||
                 echo BINDGEN_EXTRA_CLANG_ARGS=$BINDGEN_EXTRA_CLANG_ARGS >>\"$JOURNAL\"
             [ \"$1\" != run ] || { echo the program; exit 7; }",
        );
        machine
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.root.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn remove(&self, tool: &str) {
        fs::remove_file(self.root.join("bin").join(tool)).unwrap();
    }

    fn libclang(&self) -> PathBuf {
        self.root.join("llvm")
    }

    /// What the stand-ins for cargo and apt-get were asked to do.
    fn journal(&self) -> String {
        fs::read_to_string(self.root.join("journal")).unwrap_or_default()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.with("UNUSED", "").run(arguments)
    }

    fn without_installing(&self) -> Prepared {
        self.with("NODOSUM_NO_INSTALL", "1")
    }

    fn with(&self, name: &str, value: &str) -> Prepared {
        let mut command = Command::new(real("sh"));
        command
            .arg(self.root.join("checkout/run"))
            .stdin(Stdio::null())
            .env_clear()
            .env("PATH", self.root.join("bin"))
            .env("HOME", self.root.join("home"))
            .env("ROOT", &self.root)
            .env("JOURNAL", self.root.join("journal"))
            .env("LIBCLANG_PATH", self.libclang())
            .env(name, value);
        Prepared { command }
    }
}

struct Prepared {
    command: Command,
}

impl Prepared {
    fn with(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn run(mut self, arguments: &[&str]) -> Ran {
        let output = self.command.args(arguments).output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            said: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The real path of a tool that every POSIX system has.
fn real(tool: &str) -> PathBuf {
    ["/bin", "/usr/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(tool))
        .find(|path| path.exists())
        .unwrap()
}
