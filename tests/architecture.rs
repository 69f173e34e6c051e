//! The architecture as a test: who may import whom, what the pure cores may not touch, and that the
//! map in docs/ARCHITECTURE.md names every module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Which layers a layer may import, leaves first. A layer is a file or a folder under `src/`.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("node_id", &[]),
    ("close", &[]),
    ("event", &["node_id"]),
    ("rng", &[]),
    ("outputs", &[]),
    ("thread", &[]),
    ("without", &[]),
    ("waker", &["without"]),
    ("record", &["node_id"]),
    ("error", &["node_id", "record", "app"]),
    ("stats", &["node_id"]),
    ("figures", &["node_id", "stats"]),
    ("process", &[]),
    ("control", &["node_id", "record", "stats"]),
    ("stream", &["node_id", "waker"]),
    ("inbox", &["figures", "node_id", "stream", "waker"]),
    ("subscribers", &["event"]),
    ("trust", &["node_id", "record", "error"]),
    ("ca", &["node_id", "trust"]),
    (
        "swim",
        &["figures", "node_id", "outputs", "record", "stats", "rng"],
    ),
    ("mesh", &["node_id", "close", "outputs", "stats", "rng"]),
    ("explanation", &["node_id", "stats", "swim"]),
    ("roster", &["node_id", "record", "stats"]),
    (
        "cluster",
        &[
            "node_id", "close", "mesh", "outputs", "record", "roster", "stats", "swim",
        ],
    ),
    (
        "transport",
        &[
            "node_id", "close", "control", "error", "figures", "inbox", "record", "stats",
            "stream", "thread", "trust", "waker", "without",
        ],
    ),
    ("srv", &["thread"]),
    ("resolver", &["srv", "thread", "waker"]),
    ("state_dir", &["error", "node_id", "roster", "thread"]),
    (
        "snapshot",
        &[
            "error",
            "figures",
            "node_id",
            "stats",
            "swim",
            "transport",
            "waker",
        ],
    ),
    (
        "app",
        &[
            "error",
            "inbox",
            "node_id",
            "snapshot",
            "stream",
            "thread",
            "transport",
            "event",
            "waker",
        ],
    ),
    (
        "query",
        &["app", "error", "inbox", "node_id", "snapshot", "thread"],
    ),
    ("rtts", &["app", "inbox", "node_id", "snapshot", "waker"]),
    (
        "reactor",
        &[
            "close",
            "cluster",
            "control",
            "error",
            "event",
            "explanation",
            "figures",
            "mesh",
            "node_id",
            "query",
            "record",
            "resolver",
            "roster",
            "snapshot",
            "state_dir",
            "stats",
            "subscribers",
            "swim",
            "thread",
            "transport",
            "trust",
            "waker",
        ],
    ),
    (
        "view",
        &[
            "app",
            "error",
            "explanation",
            "figures",
            "inbox",
            "node_id",
            "reactor",
            "snapshot",
            "state_dir",
            "stats",
            "swim",
            "transport",
            "waker",
        ],
    ),
    ("metrics", &["figures", "process", "stats", "view"]),
    ("views", &["event", "node_id", "process", "stats"]),
    (
        "http",
        &[
            "event",
            "explanation",
            "figures",
            "metrics",
            "node_id",
            "process",
            "rtts",
            "snapshot",
            "stats",
            "subscribers",
            "swim",
            "thread",
            "view",
            "views",
            "waker",
        ],
    ),
    (
        "node",
        &[
            "app",
            "cluster",
            "error",
            "event",
            "explanation",
            "figures",
            "http",
            "inbox",
            "mesh",
            "node_id",
            "query",
            "reactor",
            "record",
            "resolver",
            "rtts",
            "snapshot",
            "state_dir",
            "stats",
            "subscribers",
            "swim",
            "thread",
            "transport",
            "trust",
            "view",
            "waker",
            "ca",
        ],
    ),
];

/// What the pure cores know nothing of.
const IMPURE: &[&str] = &[
    "std::thread",
    "std::fs",
    "std::env",
    "UdpSocket",
    "TcpStream",
    "Mutex",
    "RwLock",
    "Atomic",
    "Instant::now",
    "SystemTime",
    "crossbeam",
    "parking_lot",
    "quiche",
    "boring",
    " ring::",
    "rustix",
    "HashMap",
];

fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the source is here") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files.extend(source_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn layer(file: &Path) -> String {
    let inside = file.strip_prefix(src()).expect("under src");
    let first = inside.components().next().expect("a file name");
    first
        .as_os_str()
        .to_string_lossy()
        .trim_end_matches(".rs")
        .to_owned()
}

/// The code before its tests, without comments.
fn live_code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("readable");
    let live = text
        .split("\n#[cfg(test)]\nmod ")
        .next()
        .unwrap_or_default();
    let lines = live
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The layers that `crate::…` paths in the code name.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(group_heads(group));
        } else {
            found.insert(head(rest));
        }
    }
    found.retain(|name| !name.is_empty() && name.starts_with(char::is_lowercase));
    found
}

fn head(path: &str) -> String {
    path.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// The first names of each part of `{a::b, c::{d, e}}`, given what follows the brace.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut heads = Vec::new();
    let mut part = String::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(head(std::mem::take(&mut part).trim())),
            _ => part.push(c),
        }
    }
    heads.push(head(part.trim()));
    heads
}

#[test]
fn every_layer_imports_only_what_stands_below_it() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in source_files(&src()) {
        let layer = layer(&file);
        if layer == "lib" {
            continue;
        }
        let Some(may) = allowed.get(layer.as_str()) else {
            wrong.push(format!("{layer} is not in the table"));
            continue;
        };
        for import in imports(&live_code(&file)) {
            if import != layer && !may.contains(&import.as_str()) {
                wrong.push(format!("{} imports crate::{import}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_table_has_no_cycle_among_layers() {
    let position: BTreeMap<&str, usize> = MAY_IMPORT
        .iter()
        .enumerate()
        .map(|(i, (name, _))| (*name, i))
        .collect();
    for (name, may) in MAY_IMPORT {
        for other in *may {
            let is_below = position[other] < position[name];
            // Documentation links only: `Delivery` is named in an error's text.
            let is_link = (*name, *other) == ("error", "app");
            assert!(
                is_below || is_link,
                "{name} may import {other}, which stands above it"
            );
        }
    }
}

#[test]
fn the_pure_cores_know_no_socket_clock_thread_or_lock() {
    let mut wrong = Vec::new();
    for file in source_files(&src()) {
        let is_pure = matches!(
            layer(&file).as_str(),
            "swim" | "mesh" | "cluster" | "record" | "control" | "rng"
        ) || file.ends_with("transport/framing.rs");
        if !is_pure || file.ends_with("tests.rs") {
            continue;
        }
        let code = live_code(&file);
        for word in IMPURE {
            if code.contains(word) {
                wrong.push(format!("{} mentions {word}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stands_in_one_file_and_each_with_its_reason() {
    for file in source_files(&src()) {
        let code = live_code(&file);
        let is_home = file.ends_with("transport/udp.rs");
        assert!(
            is_home || !code.contains("unsafe {"),
            "{} is unsafe",
            file.display()
        );
        if is_home {
            let text = fs::read_to_string(&file).expect("readable");
            let blocks = text.matches("unsafe {").count();
            assert_eq!(
                text.matches("// SAFETY:").count(),
                blocks,
                "{}",
                file.display()
            );
        }
    }
}

#[test]
fn the_map_names_every_module() {
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md");
    let map = fs::read_to_string(map).expect("docs/ARCHITECTURE.md");
    let missing: Vec<String> = source_files(&src())
        .iter()
        .map(|file| {
            file.strip_prefix(src())
                .expect("under src")
                .display()
                .to_string()
        })
        .filter(|name| name != "lib.rs" && !name.ends_with("tests.rs"))
        .filter(|name| !map.contains(&format!("`{name}`")))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/ARCHITECTURE.md does not name {missing:#?}"
    );
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let faults = fs::read_to_string(root.join("docs/FAULTS.md")).expect("docs/FAULTS.md");
    let mut sources = source_files(&src());
    sources.extend(source_files(&root.join("tests")));
    let mut checked = 0;
    for quoted in faults.split('`').skip(1).step_by(2) {
        let Some((file, function)) = quoted.split_once("::") else {
            continue;
        };
        if !file.ends_with(".rs") || !function.contains('_') {
            continue;
        }
        let is_there = sources.iter().any(|source| {
            source.ends_with(file)
                && fs::read_to_string(source)
                    .is_ok_and(|text| text.contains(&format!("fn {function}()")))
        });
        assert!(
            is_there,
            "docs/FAULTS.md names {quoted}, which does not exist"
        );
        checked += 1;
    }
    assert!(checked > 20, "only {checked} tests are named");
}
