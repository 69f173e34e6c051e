//! The head of a request: what a client may say, and what is refused before anything is done for it.
//!
//! Only GET and HEAD of an absolute path are answered. The `Host` must be the address that the client
//! connected to, a loopback address, `localhost`, or a name from the configuration: a web site that
//! lets its own name point here (DNS rebinding) gets nothing. Everything in here is a function of
//! bytes; the socket is `server`'s.

use std::net::{IpAddr, SocketAddr};

/// The longest head.
pub(crate) const MAX_HEAD_BYTES: usize = 8 * 1_024;

/// Header lines; browsers send about twenty.
const MAX_HEADERS: usize = 64;

/// A request that may be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Only the head of the answer is wanted.
    pub(crate) is_head: bool,
    /// What comes before `?`.
    pub(crate) path: String,
    /// What comes after.
    pub(crate) query: String,
    /// What kinds of answers the client takes; empty when it does not say.
    pub(crate) accept: String,
    /// Whether another request may follow.
    pub(crate) keep_alive: bool,
}

impl Head {
    /// Whether the query has `name`, with or without a value.
    pub(crate) fn asks(&self, name: &str) -> bool {
        self.query.split('&').any(|part| {
            let end = part.find('=').unwrap_or(part.len());
            &part[..end] == name
        })
    }

    /// The value of `name` in the query.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|part| {
            let (key, value) = part.split_once('=')?;
            (key == name).then_some(value)
        })
    }
}

/// Why a request is not answered. The connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is no HTTP/1 request, or lacks its one `Host`.
    Malformed,
    /// The `Host` is somebody else's.
    Host,
    /// The method changes something, or is unknown.
    Method,
    /// The head is too long.
    TooLong,
}

/// What is made of the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The head goes on.
    Partial,
    /// A request, and the length of its head.
    Whole(Head, usize),
    Refused(Refusal),
}

/// Names under which this server may be addressed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let plain = |name: String| name.trim_end_matches('.').to_ascii_lowercase();
        Self(names.into_iter().map(plain).collect())
    }

    /// Whether `host` is allowed for a connection to `local`.
    fn allow(&self, host: &str, local: SocketAddr) -> bool {
        let Some(name) = without_port(host) else {
            return false;
        };
        let literal = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
        if let Ok(ip) = literal.unwrap_or(name).parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return ip.is_loopback() || ip == local.ip().to_canonical();
        }
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        name == "localhost" || self.0.contains(&name)
    }
}

/// The host of `HOST[:PORT]`; an IPv6 address keeps its brackets.
fn without_port(host: &str) -> Option<&str> {
    let end = match host.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    let is_port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.is_empty() || port.parse::<u16>().is_ok());
    is_port.then_some(name)
}

/// Reads what a client has sent so far over a connection to `local`.
pub(crate) fn parse(bytes: &[u8], hosts: &Hosts, local: SocketAddr) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length > MAX_HEAD_BYTES => {
            return Parsed::Refused(Refusal::TooLong);
        }
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD_BYTES => {
            return Parsed::Refused(Refusal::TooLong);
        }
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => return Parsed::Refused(Refusal::TooLong),
        Err(_) => return Parsed::Refused(Refusal::Malformed),
    };
    match judge(&request, hosts, local) {
        Ok(head) => Parsed::Whole(head, length),
        Err(refusal) => Parsed::Refused(refusal),
    }
}

fn judge(
    request: &httparse::Request<'_, '_>,
    hosts: &Hosts,
    local: SocketAddr,
) -> Result<Head, Refusal> {
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Refusal::Malformed);
    };
    let values = |name: &'static str| {
        let named = request.headers.iter();
        let named = named.filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| {
            std::str::from_utf8(header.value)
                .unwrap_or("\u{fffd}")
                .trim()
        })
    };
    // Exactly one, also from clients of HTTP/1.0: none that is in use leaves it out.
    let mut host = values("host");
    match (host.next(), host.next()) {
        (Some(host), None) if hosts.allow(host, local) => {}
        (Some(_), None) => return Err(Refusal::Host),
        _ => return Err(Refusal::Malformed),
    }
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(Refusal::Method),
    };
    if !target.starts_with('/') {
        return Err(Refusal::Malformed);
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let says = |word: &str| {
        let words = values("connection").flat_map(|value| value.split(','));
        words.map(str::trim).any(|w| w.eq_ignore_ascii_case(word))
    };
    // A body is not read, so nothing that follows could be told from it.
    let has_body = values("transfer-encoding").next().is_some()
        || values("content-length").any(|length| length != "0");
    let accept: Vec<&str> = values("accept").collect();
    Ok(Head {
        is_head,
        path: path.to_owned(),
        query: query.to_owned(),
        accept: accept.join(","),
        keep_alive: version == 1 && !says("close") && !has_body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const LOCAL: &str = "192.0.2.7:8080";

    fn parsed(text: &str) -> Parsed {
        let hosts = Hosts::new(["node.example.".to_owned()]);
        parse(text.as_bytes(), &hosts, LOCAL.parse().unwrap())
    }

    fn refused(text: &str) -> Option<Refusal> {
        match parsed(text) {
            Parsed::Refused(refusal) => Some(refusal),
            Parsed::Whole(..) => None,
            Parsed::Partial => panic!("{text:?} is not whole"),
        }
    }

    #[test]
    fn a_request_is_read_with_its_path_query_and_wishes() {
        let text = "GET /debug/quic?format=json&x HTTP/1.1\r\nHost: localhost:1\r\n\
                    Accept: text/html\r\naccept: application/json\r\n\r\nrest";
        let Parsed::Whole(head, length) = parsed(text) else {
            panic!("refused");
        };
        assert_eq!(length, text.len() - "rest".len());
        assert_eq!(head.path, "/debug/quic");
        assert_eq!(head.value("format"), Some("json"));
        assert!(head.asks("x") && head.asks("format") && !head.asks("form"));
        assert_eq!(head.accept, "text/html,application/json");
        assert!(head.keep_alive && !head.is_head);
    }

    #[test]
    fn a_connection_ends_when_the_client_says_so_is_old_or_sends_a_body() {
        for (version, line) in [
            ("1.0", "X: y"),
            ("1.1", "Connection: foo, Close"),
            ("1.1", "Content-Length: 5"),
            ("1.1", "Transfer-Encoding: chunked"),
        ] {
            let text = format!("HEAD / HTTP/{version}\r\nHost: [::1]\r\n{line}\r\n\r\n");
            let Parsed::Whole(head, _) = parsed(&text) else {
                panic!("{text:?} was refused");
            };
            assert!(head.is_head && !head.keep_alive, "{text:?}");
        }
    }

    #[test]
    fn only_own_and_loopback_hosts_are_answered() {
        let good = [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]:8080",
            "192.0.2.7:8080",
            "192.0.2.7",
            "node.example",
            "Node.Example.:9",
            "localhost:",
        ];
        for host in good {
            let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(refused(&text), None, "{host}");
        }
        let bad = [
            "evil.example",
            "192.0.2.8",
            "localhost.evil.example",
            "node.example.evil",
            "[::1",
            "localhost:99999",
            "127.0.0.1.evil.example",
            "[fe80::1]",
            "localhost:80:80",
            "",
        ];
        for host in bad {
            let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(refused(&text), Some(Refusal::Host), "{host}");
        }
        let none = "GET / HTTP/1.1\r\n\r\n";
        assert_eq!(refused(none), Some(Refusal::Malformed));
        let two = "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n";
        assert_eq!(refused(two), Some(Refusal::Malformed));
    }

    #[test]
    fn other_methods_targets_and_long_heads_are_refused() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get"] {
            let text = format!("{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(refused(&text), Some(Refusal::Method), "{method}");
        }
        for target in ["http://localhost/", "*", "localhost:1"] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(refused(&text), Some(Refusal::Malformed), "{target}");
        }
        assert_eq!(refused("GET / HTTP/2.0\r\n\r\n"), Some(Refusal::Malformed));
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(MAX_HEAD_BYTES));
        assert_eq!(refused(&long), Some(Refusal::TooLong));
        let long = format!("{long}\r\nHost: localhost\r\n\r\n");
        assert_eq!(refused(&long), Some(Refusal::TooLong));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(MAX_HEADERS + 1)
        );
        assert_eq!(refused(&many), Some(Refusal::TooLong));
    }

    #[test]
    fn no_bytes_make_it_panic_and_how_they_are_cut_changes_nothing() {
        let seeds = [
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
            "HEAD /debug/quic?format=json HTTP/1.0\r\nHost: 127.0.0.1:80\r\nConnection: close\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: [::1]:9\r\nContent-Length: 3\r\n\r\nabc",
        ];
        let mut rng = Rng::new(0x6865_6164);
        let mut outcomes = std::collections::BTreeSet::new();
        for round in 0..20_000_u64 {
            let seed = seeds[usize::try_from(round).unwrap() % seeds.len()];
            let mut bytes = seed.as_bytes().to_vec();
            for _ in 0..rng.below(6) {
                let at = rng.index(bytes.len() + 1);
                match rng.below(4) {
                    0 if at < bytes.len() => bytes[at] = rng.u64() as u8,
                    1 if at < bytes.len() => {
                        bytes.remove(at);
                    }
                    2 => bytes.insert(at, rng.u64() as u8),
                    _ => {
                        let piece = bytes[..at].to_vec();
                        bytes.extend(piece);
                    }
                }
            }
            let hosts = Hosts::default();
            let local = LOCAL.parse().unwrap();
            let at_once = parse(&bytes, &hosts, local);
            let bit_by_bit = (1..=bytes.len())
                .map(|end| parse(&bytes[..end], &hosts, local))
                .find(|parsed| *parsed != Parsed::Partial)
                .unwrap_or(Parsed::Partial);
            assert_eq!(
                at_once,
                bit_by_bit,
                "{:?}",
                bytes.escape_ascii().to_string()
            );
            outcomes.insert(match at_once {
                Parsed::Partial => "partial".to_owned(),
                Parsed::Whole(..) => "whole".to_owned(),
                Parsed::Refused(refusal) => format!("{refusal:?}"),
            });
        }
        let seen: Vec<_> = outcomes.iter().map(String::as_str).collect();
        assert_eq!(seen, ["Host", "Malformed", "Method", "partial", "whole"]);
    }
}
