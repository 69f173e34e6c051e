//! `nodosum debug bundle`: one tar file with what explains a node's state to somebody elsewhere.
//!
//! What a node tells, twice where rates matter; what the system tells about its process; what the
//! doctor says. A part that cannot be had is there as `NAME.error`, because a bundle is wanted most
//! where things fail. Nothing secret is in it: no key, no payload; settings hold none.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    thread,
};

use jiff::Timestamp;
use rustix::system::uname;

use crate::{
    CALL_TIMEOUT,
    admin::{
        client::{Client, call, unexpected},
        protocol::{Command, Reply, StatusView},
    },
    args::{Admin, Bundle, Debug},
    clock::Wall,
    doctor,
    exit::{Exit, Failure},
    output::{json_line, note, print},
    settings::{self, Setting},
};

/// Threads that are listed.
const MAX_THREADS: usize = 10_000;

/// The most that is taken of one file of `/proc`.
const MAX_PROC_BYTES: u64 = 4 << 20;

/// The most that is taken of one answer over HTTP: the metrics of a thousand peers.
const MAX_HTTP_BYTES: u64 = 16 << 20;

pub(crate) fn run(args: &Debug) -> Result<Exit, Failure> {
    match args {
        Debug::Bundle(args) => bundle(args),
    }
}

fn bundle(args: &Bundle) -> Result<Exit, Failure> {
    let status = status(&args.admin)?;
    let time = Wall::now().time();
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    let stem = format!(
        "nodosum-{}-{}",
        status.node,
        time.strftime("%Y%m%dT%H%M%SZ")
    );
    let path = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{stem}.tar")));
    let failed = |error: std::io::Error| {
        Failure::failed(format!("cannot write {}: {error}", path.display()))
    };
    // Opened first: to find out after the wait would be unkind. Names and addresses are nobody else's
    // business.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let mut archive = Archive {
        tar: tar::Builder::new(file),
        stem,
        time: u64::try_from(time.as_second()).unwrap_or(0),
    };
    collect(args, &status, &mut archive).map_err(failed)?;
    archive
        .tar
        .into_inner()
        .and_then(|file| file.sync_all())
        .map_err(failed)?;
    print(&format!("{}\n", path.display()))?;
    Ok(Exit::Done)
}

fn status(admin: &Admin) -> Result<Box<StatusView>, Failure> {
    match call(admin, Command::Status, &[], CALL_TIMEOUT)? {
        Reply::Status(status) => Ok(status),
        _ => Err(unexpected()),
    }
}

struct Archive {
    tar: tar::Builder<File>,
    stem: String,
    time: u64,
}

impl Archive {
    /// Adds a part, or why there is none.
    fn add(&mut self, name: &str, part: Result<String, Failure>) -> std::io::Result<()> {
        let (name, text) = match part {
            Ok(text) => (name.to_owned(), text),
            Err(failure) => (format!("{name}.error"), failure.to_string()),
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        let path = format!("{}/{name}", self.stem);
        self.tar.append_data(&mut header, path, text.as_bytes())
    }
}

fn collect(args: &Bundle, status: &StatusView, archive: &mut Archive) -> std::io::Result<()> {
    let admin = &args.admin;
    let settings = settings_in_use(admin);
    archive.add("about.txt", Ok(about(status)))?;
    archive.add("status.json", json_line(status))?;
    archive.add("conns.json", json(admin, Command::Conns))?;
    archive.add("threads.tsv", threads(status.pid))?;
    if !args.duration.is_zero() {
        note(&format!(
            "looking again in {}",
            crate::output::duration(args.duration)
        ));
        thread::sleep(args.duration);
        archive.add("later/status.json", json(admin, Command::Status))?;
        archive.add("later/conns.json", json(admin, Command::Conns))?;
        archive.add("later/threads.tsv", threads(status.pid))?;
    }
    archive.add("members.json", json(admin, Command::Members))?;
    archive.add("keys.json", json(admin, Command::Keys))?;
    archive.add("log.json", json(admin, Command::Log))?;
    archive.add("events.jsonl", events(admin))?;
    for (name, page) in [
        ("metrics.txt", "/metrics"),
        ("page.json", "/debug/quic?format=json"),
    ] {
        if let Some(addr) = status.http.as_deref().and_then(|addr| addr.parse().ok()) {
            archive.add(name, fetch(addr, page))?;
        }
    }
    archive.add(
        "settings.toml",
        settings.map(|rows| settings::to_toml(&rows, true)),
    )?;
    for name in ["limits", "status", "smaps_rollup"] {
        archive.add(
            &format!("proc/{name}"),
            proc(&format!("{}/{name}", status.pid)),
        )?;
    }
    for name in [
        "net/snmp",
        "net/snmp6",
        "net/udp",
        "net/udp6",
        "loadavg",
        "meminfo",
    ] {
        archive.add(&format!("proc/{}", name.replace('/', "-")), proc(name))?;
    }
    archive.add("doctor.txt", Ok(doctor::report(admin)))
}

fn about(status: &StatusView) -> String {
    let system = uname();
    format!(
        "node      {}\ncluster   {}\nversion   {}\ncommand   {}\nsystem    {} {} {}\npid       {}\nwritten   {}\n",
        status.node,
        status.cluster,
        status.version,
        env!("CARGO_PKG_VERSION"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy(),
        status.pid,
        Wall::now().text(crate::clock::now()),
    )
}

/// The object that the read command of the same name prints.
fn json(admin: &Admin, command: Command) -> Result<String, Failure> {
    match call(admin, command, &[], CALL_TIMEOUT)? {
        Reply::Members(view) => json_line(&view),
        Reply::Conns(view) => json_line(&view),
        Reply::Status(view) => json_line(&view),
        Reply::Keys(view) => json_line(&view),
        Reply::Log(view) => json_line(&view),
        _ => Err(unexpected()),
    }
}

fn events(admin: &Admin) -> Result<String, Failure> {
    let command = Command::Events { follow: false };
    let mut client = Client::ask(admin, command, &[], Some(CALL_TIMEOUT))?;
    let mut lines = String::new();
    while let Reply::Event(mut event) = client.reply()? {
        // What applications tell each other is theirs.
        if let Some(user) = &mut event.user {
            user.payload.withhold();
        }
        lines.push_str(&json_line(&event)?);
    }
    Ok(lines)
}

fn settings_in_use(admin: &Admin) -> Result<Vec<Setting>, Failure> {
    match call(admin, Command::Settings, &[], CALL_TIMEOUT)? {
        Reply::Settings { settings } => Ok(settings),
        _ => Err(unexpected()),
    }
}

/// Name, state and processor time of each thread of the node.
fn threads(pid: u32) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("threads of {pid}: {error}"));
    let mut lines = String::from("tid\tname\tstate\tuser_ticks\tsystem_ticks\n");
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)?;
    for task in tasks.take(MAX_THREADS).flatten() {
        // A thread may end while it is looked at.
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else {
            continue;
        };
        let Some((head, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let name = head.split_once('(').map_or("", |(_, name)| name);
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or("");
        let tid = task.file_name();
        let _ = writeln!(
            lines,
            "{}\t{name}\t{}\t{}\t{}",
            tid.to_string_lossy(),
            field(0),
            field(11),
            field(12)
        );
    }
    Ok(lines)
}

fn proc(name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    File::open(format!("/proc/{name}"))
        .and_then(|file| file.take(MAX_PROC_BYTES).read_to_string(&mut text))
        .map_err(|error| Failure::failed(format!("/proc/{name}: {error}")))?;
    Ok(text)
}

/// The body of a page of the node, which closes the connection after it.
fn fetch(addr: SocketAddr, page: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("http://{addr}{page}: {error}"));
    let mut stream = TcpStream::connect_timeout(&addr, CALL_TIMEOUT).map_err(failed)?;
    stream
        .set_read_timeout(Some(CALL_TIMEOUT))
        .map_err(failed)?;
    stream
        .set_write_timeout(Some(CALL_TIMEOUT))
        .map_err(failed)?;
    let request = format!("GET {page} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream
        .take(MAX_HTTP_BYTES)
        .read_to_end(&mut answer)
        .map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split_whitespace().nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        let told = head.lines().next().unwrap_or_default();
        Err(Failure::failed(format!("http://{addr}{page}: {told}")))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn served(answer: &'static str) -> Result<String, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = thread::Builder::new().spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1_024];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let fetched = fetch(addr, "/metrics");
        let request = server.unwrap().join().unwrap();
        assert!(request.starts_with(&format!("GET /metrics HTTP/1.1\r\nHost: {addr}\r\n")));
        fetched
    }

    #[test]
    fn a_page_is_its_body_and_a_refusal_is_none() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na 1\n";
        assert_eq!(served(answer).unwrap(), "a 1\n");
        let failure = served("HTTP/1.1 403 Forbidden\r\n\r\nno").unwrap_err();
        assert!(
            failure.message.ends_with("HTTP/1.1 403 Forbidden"),
            "{failure:?}"
        );
    }

    #[test]
    fn this_process_has_threads() {
        let listed = threads(std::process::id()).unwrap();
        assert!(listed.lines().count() >= 2, "{listed}");
    }
}
