//! The page in a real browser, headless: that it is complete without scripts, follows by itself, can be
//! filtered, says nothing wrong to the console, and shows hostile texts as texts; with 0, 3 and 50 peers.
//!
//! It needs Chromium (Debian: chromium) and skips itself loudly without. Pictures for the documents:
//! `NODOSUM_PICTURES=docs/img cargo test --test page -- --ignored`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::disallowed_methods, reason = "tests measure by the real clock")]

mod support {
    pub mod cluster;
    pub mod web;
}

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use nodosum::{EventKind, Node};
use support::{
    cluster::{Lab, PATIENCE, await_event, eventually, full_mesh, id},
    web::get,
};

/// How long a browser may take on a loaded machine.
const BROWSER_PATIENCE: Duration = Duration::from_secs(120);

/// The browser, if there is one.
#[expect(clippy::print_stderr, reason = "a test that skips itself says so")]
fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names.into_iter().find(|name| {
        let version = Command::new(name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        version.is_ok_and(|status| status.success())
    });
    if found.is_none() {
        eprintln!(
            "SKIPPED: no Chromium is installed (Debian: chromium); the page was not looked at"
        );
    }
    found
}

/// A directory of the browser's own, which is removed again.
struct Profile(PathBuf);

impl Profile {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, SeqCst);
        let name = format!("chromium-{}-{number}", std::process::id());
        Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the browser and returns what it printed and what it logged.
fn browse(browser: &str, args: &[String]) -> (String, String) {
    let profile = Profile::new();
    let mut command = Command::new(browser);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .args([
            "--enable-logging=stderr",
            "--no-first-run",
            "--disable-background-networking",
        ])
        .arg(format!("--user-data-dir={}", profile.0.display()))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = thread::Builder::new();
    let read = read.spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let logged = thread::Builder::new();
    let logged = logged.spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let deadline = Instant::now() + BROWSER_PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= deadline {
            let _ = child.kill();
            panic!("the browser did not end: {args:?}");
        }
        thread::park_timeout(Duration::from_millis(20));
    }
    (
        read.unwrap().join().unwrap(),
        logged.unwrap().join().unwrap(),
    )
}

/// The document as it is after the script has had some seconds of the browser's time.
fn document(browser: &str, http: SocketAddr, path: &str) -> String {
    let args = [
        "--virtual-time-budget=4500".to_owned(),
        "--dump-dom".to_owned(),
        format!("http://{http}{path}"),
    ];
    let (document, log) = browse(browser, &args);
    let complaints: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(":CONSOLE"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert!(document.contains("</html>"), "{document}\n{log}");
    document
}

/// Passes everything on to a server and counts how often the parts are asked for.
fn counting(to: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let accept = move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) else {
                return;
            };
            pass(
                client.try_clone().unwrap(),
                server.try_clone().unwrap(),
                Some(Arc::clone(&counted)),
            );
            pass(server, client, None);
        }
    };
    thread::Builder::new().spawn(accept).unwrap();
    (addr, count)
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: Option<Arc<AtomicUsize>>) {
    let body = move || {
        let mut buffer = [0; 16 << 10];
        while let Ok(length) = from.read(&mut buffer) {
            let bytes = &buffer[..length];
            if let Some(count) = &count {
                let asked = bytes.windows(21).filter(|w| w == b"GET /debug/quic?part ");
                count.fetch_add(asked.count(), SeqCst);
            }
            if length == 0 || to.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    };
    thread::Builder::new().spawn(body).unwrap();
}

const ROLE: (&str, &str) = ("role", "edge");

const HOSTILE: &str =
    "<script>alert(1)</script>\"><img src=x onerror=alert(2)> \u{202e}olleh \u{1b}[31m";

/// `n1` with HTTP, and as many peers, the first of which has this tag.
fn cluster(lab: &Lab, peers: usize, tag: (&str, &str)) -> (Vec<Node>, SocketAddr) {
    let first = lab.builder("n1").http("127.0.0.1:0".parse().unwrap());
    let first = first.tag("role", "web").start().unwrap();
    let http = first.http_addr().unwrap();
    let seed = first.quic_addr().to_string();
    let mut nodes = vec![first];
    for i in 2..=peers + 1 {
        let mut node = lab.builder(&format!("n{i}")).seed(&seed);
        node = match i {
            2 => node.tag(tag.0, tag.1),
            _ => node.tag("role", "store").tag("zone", format!("z{}", i % 3)),
        };
        nodes.push(node.start().unwrap());
    }
    full_mesh(&nodes, 3 * PATIENCE);
    (nodes, http)
}

fn stop(nodes: Vec<Node>) {
    let ends: Vec<_> = nodes
        .into_iter()
        .map(|node| {
            thread::Builder::new()
                .spawn(move || node.shutdown(PATIENCE))
                .unwrap()
        })
        .collect();
    for end in ends {
        end.join().unwrap();
    }
}

#[test]
fn the_page_follows_can_be_filtered_and_shows_hostile_texts_as_texts() {
    let Some(browser) = browser() else { return };
    let lab = Lab::new("browser");
    let (nodes, http) = cluster(&lab, 3, ("<i>note", HOSTILE));
    nodes[2].emit_event("news", HOSTILE).unwrap();
    eventually("the event is on the page", || {
        get(http, "/debug/quic?part").body.contains("news: ")
    });
    // Complete as it comes, without a script.
    let raw = get(http, "/debug/quic").body;
    let parts = [
        "health",
        "overview",
        "connections",
        "matrix",
        "gossip",
        "applications",
        "members",
        "threads",
        "events",
        "closed",
    ];
    for part in parts {
        assert!(
            raw.contains(&format!("<section id=\"{part}\"")),
            "no {part} in {raw}"
        );
    }
    assert_eq!(raw.matches("established</span>").count(), 3, "{raw}");

    let (through, asked) = counting(http);
    let document = document(browser, through, "/debug/quic");
    assert!(
        asked.load(SeqCst) >= 2,
        "refreshed {} times",
        asked.load(SeqCst)
    );
    assert!(
        document.contains("class=\"on\"") && document.contains(">live</span>"),
        "{document}"
    );
    assert_eq!(
        document.matches("established</span>").count(),
        3,
        "{document}"
    );
    // Parsed, and so that an element would be one.
    assert!(
        !document.contains("<img") && !document.contains("<i>note"),
        "{document}"
    );
    assert_eq!(document.matches("<script").count(), 1, "{document}");
    assert!(
        document.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
        "{document}"
    );
    assert!(
        document.contains("\\u{202e}olleh \\u{1b}[31m"),
        "{document}"
    );

    let filtered = self::document(browser, http, "/debug/quic#n3%20127.0.0.1");
    let shown = |document: &str, name: &str| {
        let row = format!("<tr data-row=\"\"><th scope=\"row\">{name}<small>127");
        document.contains(&row)
    };
    assert!(shown(&document, "n2") && shown(&document, "n3"));
    assert!(
        shown(&filtered, "n3") && !shown(&filtered, "n2"),
        "{filtered}"
    );
    stop(nodes);
}

#[test]
fn the_page_of_a_node_alone_says_so() {
    let Some(browser) = browser() else { return };
    let lab = Lab::new("alone");
    let (nodes, http) = cluster(&lab, 0, ROLE);
    let document = document(browser, http, "/debug/quic");
    for text in [
        "This node is alone and well",
        "No peers: nobody to be connected to",
        "Nobody else is there",
    ] {
        assert!(document.contains(text), "{text:?} is not in {document}");
    }
    stop(nodes);
}

#[test]
fn the_page_of_a_large_cluster_has_everybody() {
    let lab = Lab::new("fifty");
    let (nodes, http) = cluster(&lab, 50, ROLE);
    let mut page = get(http, "/debug/quic").body;
    eventually("everybody answers for the matrix", || {
        page = get(http, "/debug/quic").body;
        page.matches("<td class=\"self\">").count() == 51
            && page.matches("class=\"silent\" title").count() == 0
    });
    assert_eq!(page.matches("established</span>").count(), 50);
    assert_eq!(page.matches("<td class=\"self\">").count(), 51);
    if let Some(browser) = browser() {
        let document = document(browser, http, "/debug/quic");
        assert_eq!(document.matches("established</span>").count(), 50);
    }
    stop(nodes);
}

/// Pictures for the documents: one peer is dead, one application is busy.
#[test]
#[ignore = "makes pictures: NODOSUM_PICTURES=docs/img cargo test --test page -- --ignored"]
fn pictures_for_the_documents() {
    let Some(browser) = browser() else { return };
    let dir = std::env::var_os("NODOSUM_PICTURES").map_or_else(
        || Path::new(env!("CARGO_TARGET_TMPDIR")).join("pictures"),
        PathBuf::from,
    );
    fs::create_dir_all(&dir).unwrap();
    let lab = Lab::new("shop");
    let (mut nodes, http) = cluster(&lab, 6, ROLE);
    let events = nodes[0].events();
    let apps: Vec<_> = nodes[..6]
        .iter()
        .map(|node| node.register("orders").unwrap())
        .collect();
    for app in &apps {
        app.on_request_inline(|request| Ok(request.payload.clone()));
        app.on_message_inline(drop);
    }
    get(http, "/debug/quic");
    nodes.pop().unwrap().abort();
    await_event(
        &events,
        "death of n7",
        |kind| matches!(kind, EventKind::MemberDead { node, .. } if *node == id("n7")),
    );
    let begun = Instant::now();
    // A minute of traffic, so that the lines have something to show.
    while begun.elapsed() < Duration::from_secs(65) {
        for peer in 2..=6_u64 {
            let size = 200 * usize::try_from(peer * peer).unwrap();
            let payload = vec![0; size];
            apps[0]
                .request(&id(&format!("n{peer}")), payload, PATIENCE)
                .unwrap();
            let _ = apps[0].send(&id(&format!("n{peer}")), vec![0; 900], PATIENCE);
        }
        thread::park_timeout(Duration::from_millis(40));
        if begun.elapsed().as_millis().is_multiple_of(10) {
            get(http, "/debug/quic?part");
        }
    }
    for (name, width, height, scheme) in [
        ("page-light", 1280, 1900, 1),
        ("page-dark", 1280, 1900, 0),
        ("page-phone-light", 390, 1500, 1),
        ("page-phone-dark", 390, 1500, 0),
    ] {
        let args = [
            format!("--blink-settings=preferredColorScheme={scheme}"),
            format!("--window-size={width},{height}"),
            "--virtual-time-budget=2500".to_owned(),
            format!("--screenshot={}", dir.join(format!("{name}.png")).display()),
            format!("http://{http}/debug/quic"),
        ];
        browse(browser, &args);
        assert!(dir.join(format!("{name}.png")).metadata().unwrap().len() > 10_000);
    }
    drop(apps);
    stop(nodes);
}
