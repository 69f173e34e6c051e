//! A client of the HTTP server, as plain as a socket, so that tests can also be rude.

#![expect(clippy::unwrap_used, reason = "a test that cannot connect has failed")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of this"
)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// The head, status line included.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// A connection whose reads end.
pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience).unwrap();
    stream
}

/// Asks with GET.
pub fn get(to: SocketAddr, path: &str) -> Answer {
    get_with(to, path, "")
}

/// Asks with GET and more header lines, each with its end.
pub fn get_with(to: SocketAddr, path: &str, lines: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{lines}\r\n");
    say(to, &request)
}

/// Sends bytes and takes the answer, up to the end of the connection.
pub fn say(to: SocketAddr, bytes: &str) -> Answer {
    let mut stream = connect(to);
    // The server may have refused before it has all.
    let _ = stream.write_all(bytes.as_bytes());
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    parse(&answer)
}

/// Reads one answer of a connection that goes on.
pub fn read_one(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = parse(&bytes);
    let length: usize = head.header("content-length").unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Answer {
        body: String::from_utf8(body).unwrap(),
        ..head
    }
}

fn parse(bytes: &[u8]) -> Answer {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no head in {text:?}"));
    let status = head.split(' ').nth(1).unwrap_or_default();
    Answer {
        status: status
            .parse()
            .unwrap_or_else(|_| panic!("no status in {head:?}")),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}
