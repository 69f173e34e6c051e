//! Seeds by SRV records (RFC 2782): a name such as `_nodosum._udp.example.org` tells hosts and ports.
//!
//! The system's resolver knows addresses only, so that the question for the records goes to the name
//! servers of `/etc/resolv.conf` from here: over UDP, and over TCP where an answer is cut off. The
//! hosts that come back are looked up by the system like any other name. One question lasts at most
//! [`MAX_SERVERS`] × [`ROUNDS`] × [`PATIENCE`]; it runs on a look-up thread, which may take that long.
//!
//! Not done here: search domains (the name is taken as it is), caching, DNSSEC. What an answer says is
//! a hint where to dial; the certificate there decides.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket},
    path::Path,
    time::Duration,
};

use ring::rand::{SecureRandom as _, SystemRandom};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata};

/// How many name servers of `/etc/resolv.conf` are asked: as many as the system's resolver does.
const MAX_SERVERS: usize = 3;

/// How often each is asked.
const ROUNDS: usize = 2;

/// How long each may take for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What fits every path without fragments, the value that DNS servers have agreed on (2020).
const MAX_UDP_BYTES: u16 = 1_232;

/// Hosts that are looked up, the preferred ones first. A seed dials fewer of them.
const MAX_TARGETS: usize = 16;

/// The largest `/etc/resolv.conf` that is read.
const MAX_RESOLV_CONF_BYTES: u64 = 64 * 1024;

/// Whether a seed names SRV records: `_service._udp.domain`, without a port.
pub(crate) fn is_srv(seed: &str) -> bool {
    let mut labels = seed.split('.');
    let service = labels.next().unwrap_or_default();
    let protocol = labels.next().unwrap_or_default();
    let is_label = |label: &str| label.len() > 1 && label.starts_with('_');
    is_label(service)
        && is_label(protocol)
        && labels.next().is_some_and(|domain| !domain.is_empty())
        && !seed.contains(':')
        && Name::new(seed).is_ok()
}

/// The addresses behind a name of SRV records, the preferred hosts first.
pub(crate) fn look_up(name: &str) -> Result<Vec<SocketAddr>, String> {
    let targets = targets(&servers(Path::new("/etc/resolv.conf")), name, PATIENCE)?;
    let mut addrs = Vec::new();
    let mut error = "the name has no records".to_owned();
    for (host, port) in targets {
        match (host.as_str(), port).to_socket_addrs() {
            Ok(found) => addrs.extend(found),
            Err(why) => error = format!("{host}: {why}"),
        }
    }
    if addrs.is_empty() {
        return Err(error);
    }
    Ok(addrs)
}

/// The `nameserver` lines; without any, a server on this host, as resolv.conf(5) has it.
fn servers(path: &Path) -> Vec<SocketAddr> {
    let mut text = String::new();
    if let Ok(file) = fs::File::open(path) {
        // What was read before an error still counts.
        let _ = file.take(MAX_RESOLV_CONF_BYTES).read_to_string(&mut text);
    }
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .take(MAX_SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
    }
    servers
}

/// Hosts and ports, in the order in which they want to be tried.
fn targets(
    servers: &[SocketAddr],
    name: &str,
    patience: Duration,
) -> Result<Vec<(String, u16)>, String> {
    let mut error = "no name server".to_owned();
    for _ in 0..ROUNDS {
        for server in servers {
            match ask(*server, name, patience) {
                Ok(Answer::Targets(targets)) => return Ok(targets),
                Ok(Answer::No(why)) => return Err(why),
                Err(why) => error = format!("name server {}: {why}", server.ip()),
            }
        }
    }
    Err(error)
}

/// What a server says for good; anything else is a reason to ask another one.
#[derive(Debug)]
enum Answer {
    Targets(Vec<(String, u16)>),
    No(String),
}

fn ask(server: SocketAddr, name: &str, patience: Duration) -> io::Result<Answer> {
    let mut id = [0; 2];
    SystemRandom::new()
        .fill(&mut id)
        .map_err(|_| io::Error::other("the system has no random numbers"))?;
    let id = u16::from_be_bytes(id);
    let question = question(id, name)?;
    let unspecified: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connected: the kernel drops what others send. A fresh port and a random number tell an answer from
    // a guess.
    let socket = UdpSocket::bind((unspecified, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(&question)?;
    let mut buffer = [0; MAX_UDP_BYTES as usize];
    let length = socket.recv(&mut buffer)?;
    match read(&buffer[..length], id, name)? {
        Some(answer) => Ok(answer),
        None => ask_over_tcp(server, &question, id, name, patience),
    }
}

/// The same question with room for any answer (RFC 1035 §4.2.2: two bytes of length before each).
fn ask_over_tcp(
    server: SocketAddr,
    question: &[u8],
    id: u16,
    name: &str,
    patience: Duration,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&server, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    read(&answer, id, name)?.ok_or_else(|| io::Error::other("the answer is cut off"))
}

fn question(id: u16, name: &str) -> io::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    *packet.opt_mut() = Some(rdata::OPT {
        opt_codes: Vec::new(),
        udp_packet_size: MAX_UDP_BYTES,
        version: 0,
    });
    packet.questions.push(Question::new(
        Name::new(name).map_err(io::Error::other)?,
        QTYPE::TYPE(TYPE::SRV),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    packet.build_bytes_vec().map_err(io::Error::other)
}

/// What the server answers; `None` when it was cut off.
fn read(bytes: &[u8], id: u16, name: &str) -> io::Result<Option<Answer>> {
    let packet = Packet::parse(bytes).map_err(io::Error::other)?;
    let is_ours = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && packet
            .questions
            .first()
            .is_some_and(|asked| asked.qname.to_string().eq_ignore_ascii_case(trimmed(name)));
    if !is_ours {
        return Err(io::Error::other("an answer to another question"));
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Ok(Some(Answer::No("no such name".into()))),
        other => return Err(io::Error::other(format!("it answers {other:?}"))),
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(None);
    }
    let mut records: Vec<_> = packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            rdata::RData::SRV(srv) => Some(srv),
            // Aliases on the way stand beside what they lead to.
            _ => None,
        })
        .filter(|srv| srv.port != 0 && !srv.target.to_string().is_empty())
        .collect();
    // The lowest priority first. By weight the choice should be drawn; every node dials several of them,
    // so that the heaviest first is as good.
    records.sort_by_key(|srv| (srv.priority, std::cmp::Reverse(srv.weight)));
    let targets: Vec<_> = records
        .iter()
        .take(MAX_TARGETS)
        .map(|srv| (srv.target.to_string(), srv.port))
        .collect();
    Ok(Some(if targets.is_empty() {
        Answer::No("the name has no SRV records".into())
    } else {
        Answer::Targets(targets)
    }))
}

/// Without the dot of the root, which the encoding does not have.
fn trimmed(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use simple_dns::{ResourceRecord, rdata::SRV};

    use super::*;

    const NAME: &str = "_nodosum._udp.example.org";

    /// What a server makes of a question.
    type Lie = fn(&[u8]) -> Vec<u8>;

    /// The answer of a server to `question`, with these priorities, weights, ports and targets.
    fn answer(question: &[u8], records: &[(u16, u16, u16, &'static str)]) -> Vec<u8> {
        let mut packet = Packet::parse(question).unwrap().into_reply();
        packet.set_flags(PacketFlag::RESPONSE);
        for (priority, weight, port, target) in records {
            let srv = SRV {
                priority: *priority,
                weight: *weight,
                port: *port,
                target: Name::new(target).unwrap(),
            };
            packet.answers.push(ResourceRecord::new(
                Name::new(NAME).unwrap(),
                CLASS::IN,
                1,
                rdata::RData::SRV(srv),
            ));
        }
        packet.build_bytes_vec().unwrap()
    }

    /// A server that answers one question by `reply`.
    fn server(
        reply: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static,
    ) -> (SocketAddr, crate::thread::Handle) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let thread = crate::thread::spawn("nd-test-dns", move || {
            let mut buffer = [0; 2_048];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&reply(&buffer[..length]), from).unwrap();
        });
        (addr, thread.unwrap())
    }

    #[test]
    fn names_of_srv_records_are_told_from_hosts() {
        assert!(is_srv(NAME) && is_srv("_a._tcp.b."));
        for other in [
            "_nodosum._udp",
            "_nodosum.udp.example.org",
            "host:7946",
            "_nodosum._udp.example.org:7946",
            "_._udp.x",
            "",
            ".",
        ] {
            assert!(!is_srv(other), "{other:?}");
        }
    }

    #[test]
    fn targets_come_in_the_order_of_their_priority_and_weight() {
        let (addr, thread) = server(|question| {
            answer(
                question,
                &[
                    (20, 0, 1, "late.example"),
                    (10, 1, 2, "light.example"),
                    (10, 9, 3, "heavy.example"),
                ],
            )
        });
        let found = targets(&[addr], NAME, Duration::from_secs(20)).unwrap();
        thread.join().unwrap();
        let expected = [
            ("heavy.example", 3),
            ("light.example", 2),
            ("late.example", 1),
        ];
        assert_eq!(found, expected.map(|(host, port)| (host.to_owned(), port)));
    }

    #[test]
    fn an_answer_that_is_cut_off_is_asked_for_again_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(addr).unwrap();
        let thread = crate::thread::spawn("nd-test-dns", move || {
            let mut buffer = [0; 2_048];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            let mut short = Packet::parse(&buffer[..length]).unwrap().into_reply();
            short.set_flags(PacketFlag::RESPONSE | PacketFlag::TRUNCATION);
            socket
                .send_to(&short.build_bytes_vec().unwrap(), from)
                .unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 2];
            stream.read_exact(&mut head).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(head))];
            stream.read_exact(&mut question).unwrap();
            let whole = answer(&question, &[(1, 1, 7_946, "n1.example")]);
            let length = u16::try_from(whole.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, &whole[..]].concat()).unwrap();
        });
        let found = targets(&[addr], NAME, Duration::from_secs(20)).unwrap();
        assert_eq!(found, [("n1.example".to_owned(), 7_946)]);
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn a_server_that_lies_or_knows_nothing_gives_no_target() {
        let told = |reply: fn(&[u8]) -> Vec<u8>| {
            let (addr, thread) = server(reply);
            let told = ask(addr, NAME, Duration::from_secs(20));
            thread.join().unwrap();
            told
        };
        let lies: [Lie; 3] = [
            |_| vec![0xff; 40],
            |_| Vec::new(),
            |question| {
                let mut bytes = answer(question, &[(1, 1, 1, "x.example")]);
                bytes[0] ^= 0xff;
                bytes
            },
        ];
        for lie in lies {
            assert!(told(lie).is_err());
        }
        let nothing: [Lie; 2] = [
            |question| answer(question, &[]),
            |question| answer(question, &[(1, 1, 0, "x.example")]),
        ];
        for reply in nothing {
            assert!(matches!(told(reply), Ok(Answer::No(_))));
        }
        // Nobody there at all: the answer names the server.
        let nobody = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let why = targets(&[nobody], NAME, Duration::from_millis(50)).unwrap_err();
        assert!(why.starts_with("name server 127.0.0.1: "), "{why}");
    }

    #[test]
    fn every_prefix_of_an_answer_is_read_without_a_panic() {
        let question = question(7, NAME).unwrap();
        let whole = answer(
            &question,
            &[(1, 2, 3, "n1.example"), (1, 2, 3, "n2.example")],
        );
        for length in 0..=whole.len() {
            let _ = read(&whole[..length], 7, NAME);
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let _ = read(&bytes, 7, NAME);
            }
        }
        assert!(
            matches!(read(&whole, 7, NAME), Ok(Some(Answer::Targets(found))) if found.len() == 2)
        );
    }

    #[test]
    fn name_servers_come_from_resolv_conf() {
        let path = std::env::temp_dir().join(format!("nd-resolv-{}", std::process::id()));
        fs::write(
            &path,
            "# nameserver 9.9.9.9\nsearch example.org\nnameserver 192.0.2.1\nnameserver ::1 # here\n\
             nameserver nowhere\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n",
        )
        .unwrap();
        let expected = ["192.0.2.1:53", "[::1]:53", "192.0.2.2:53"];
        assert_eq!(
            servers(&path),
            expected.map(|addr| addr.parse::<SocketAddr>().unwrap())
        );
        fs::remove_file(&path).unwrap();
        assert_eq!(servers(&path), ["127.0.0.1:53".parse().unwrap()]);
    }
}
