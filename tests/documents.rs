//! The documents tell the truth about the command line: what they tell to type is typed here.

#![expect(clippy::unwrap_used, reason = "a test that cannot start has failed")]

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let mut paths: Vec<PathBuf> = docs.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.extend(["README.md", "docs/deployment/statefulset.yaml"].map(|name| root().join(name)));
    paths.sort();
    paths
}

/// The blocks of shell commands in a document.
fn blocks(text: &str) -> Vec<String> {
    let parts = text.split("```sh\n").skip(1);
    parts
        .map(|part| part.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

/// The commands in a line of shell or between backquotes, without what surrounds them.
fn commands(line: &str) -> Vec<Vec<String>> {
    // A redirection names a descriptor, which is no argument.
    let line = line
        .split(" #")
        .next()
        .unwrap_or_default()
        .replace("2>", ">");
    let parts = line.split(['|', ';', '&', '>', '`', '\'']);
    parts
        .map(|part| {
            part.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .map(|words| {
            let at = words.iter().position(|word| word == "nodosum");
            at.map_or_else(Vec::new, |at| words[at + 1..].to_vec())
        })
        .filter(|words| !words.is_empty())
        .collect()
}

/// Stands for what the reader fills in, or for what only the shell knows.
fn is_placeholder(word: &str) -> bool {
    let letters: Vec<char> = word.chars().filter(|c| c.is_alphabetic()).collect();
    let is_loud = letters.len() > 1 && letters.iter().all(|c| c.is_uppercase());
    is_loud && !word.starts_with('-') || word.contains(['$', '…', '*', '<', '['])
}

fn nodosum(args: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nodosum"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn every_command_that_a_document_names_exists_with_its_flags() {
    let mut tried = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let quoted = text.split('`').skip(1).step_by(2);
        let quoted =
            quoted.filter(|quoted| quoted.starts_with("nodosum ") && !quoted.contains('\n'));
        let mut lines: Vec<String> = quoted.map(str::to_owned).collect();
        lines.extend(blocks(&text).iter().flat_map(|block| {
            let lines = block.lines().map(str::to_owned);
            lines.collect::<Vec<_>>()
        }));
        for words in lines.iter().flat_map(|line| commands(line)) {
            if words.iter().any(|word| is_placeholder(word)) {
                continue;
            }
            let mut args = words.clone();
            args.push("--help".to_owned());
            let output = nodosum(&args);
            assert!(
                output.status.success(),
                "{}: nodosum {}: {}",
                path.display(),
                words.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
            tried += 1;
        }
    }
    assert!(tried > 40, "only {tried} commands were found");
}

/// A port that is free together with the one after it.
fn free_port(taken: &mut Vec<UdpSocket>) -> u16 {
    loop {
        let first = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let Some(next) = port.checked_add(1) else {
            continue;
        };
        if let Ok(second) = UdpSocket::bind(("127.0.0.1", next)) {
            taken.extend([first, second]);
            return port;
        }
    }
}

/// Runs a script as a reader would, with the program in the path.
fn typed(name: &str, script: &str) -> Output {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_nodosum")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command
        .args(["-e", "-o", "pipefail", "-c", script])
        .current_dir(&dir)
        .env("PATH", format!("{}:{path}", program.display()))
        .stdin(Stdio::null());
    for (variable, _) in std::env::vars() {
        if variable.starts_with("NODOSUM_") || variable == "RUST_LOG" {
            command.env_remove(variable);
        }
    }
    let output = command.output().unwrap();
    if output.status.success() {
        let _ = fs::remove_dir_all(&dir);
    }
    output
}

#[test]
fn the_cluster_of_the_readme_comes_up_as_it_is_typed() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = blocks(&text);
    let block = blocks
        .iter()
        .find(|block| block.contains("tls ca create"))
        .unwrap();
    let mut taken = Vec::new();
    let mut script = block.clone();
    for port in ["7946", "7956", "7966"] {
        script = script.replace(port, &free_port(&mut taken).to_string());
    }
    drop(taken);
    // Whoever types it sees the nodes go; a script has to wait for that.
    let output = typed("readme", &format!("{script}\nwait"));
    let (told, trouble) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{told}\n{trouble}");
    assert!(
        told.contains("\nhello") || told.ends_with("hello"),
        "{told}"
    );
    for node in ["n1", "n2", "n3"] {
        assert!(told.contains(&format!("\n{node} ")), "{told}");
    }
    let steps = block.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(steps < 10, "{steps} commands");
}

#[test]
fn the_settings_of_the_manual_are_written_judged_and_shown_as_typed() {
    let text = fs::read_to_string(root().join("docs/OPERATING.md")).unwrap();
    let blocks = blocks(&text);
    let block = blocks
        .iter()
        .find(|block| block.contains("config init >"))
        .unwrap();
    let before = "nodosum tls ca create --cluster c --out ca\n\
                  nodosum tls cert create --ca ca --node n1 --out n1\n\
                  export NODOSUM_TLS_DIR=n1\n";
    let output = typed("settings", &format!("{before}{block}"));
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(
        told.contains("nodosum.toml is good: node n1 of cluster c\n"),
        "{told}"
    );
    assert!(
        told.contains("tls_dir = \"n1\"  # NODOSUM_TLS_DIR\n"),
        "{told}"
    );
}
