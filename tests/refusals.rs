//! Who is refused: at the start of a node, by TLS, by the name in the certificate, by HELLO.
//!
//! Each impostor does what it can: it sends HELLO, READY, USE, messages and requests at the first
//! moment at which TLS encrypts them. None of it may reach an application, and nobody may be
//! reported as connected. An honest node comes last and shows that what was counted counts.
#![expect(
    clippy::disallowed_methods,
    reason = "real nodes run against the real clock"
)]
#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]
#![expect(unreachable_pub, reason = "modules that several tests share")]
#![cfg(feature = "ca")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/raw_quic.rs"]
mod raw_quic;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use cluster::{Lab, PATIENCE, await_event, eventually, id};
use nodosum::{
    App, ClusterName, ConnectionState, EventKind, Events, Identity, IdentityError, Node, Profile,
    Ready, StartError,
    ca::{Authority, Template},
    control::{Control, Hello},
    transport::{self, framing::StreamKind},
};
use raw_quic::{
    ALPN, CONTROL, Certificate, End, Raw, RawServer, config, control, hello, preamble, request,
    unit,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

// TLS alerts (RFC 8446 §6).
const BAD_CERTIFICATE: u8 = 42;
const UNSUPPORTED_CERTIFICATE: u8 = 43;
const CERTIFICATE_EXPIRED: u8 = 45;
const CERTIFICATE_UNKNOWN: u8 = 46;
const UNKNOWN_CA: u8 = 48;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

// Close codes of the protocol.
const IDENTITY: u64 = 2;
const PROTOCOL: u64 = 3;
const OVERLOADED: u64 = 5;

/// An authority that may sign any name, which an operator can make with other tools.
struct Unconstrained {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Unconstrained {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "unconstrained");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        Self { issuer }
    }

    fn issue(&self, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Certificate {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    fn identity(&self, name: &str) -> Identity {
        let issued = self.issue(&[name]);
        Identity::from_pem(
            issued.certificate_pem.as_bytes(),
            issued.key_pem.as_bytes(),
            self.issuer.pem().as_bytes(),
        )
        .unwrap()
    }
}

fn issue(authority: &Authority, node: &str, change: impl FnOnce(&mut Template)) -> Certificate {
    let mut template = authority.template(&id(node), HOUR).unwrap();
    change(&mut template);
    authority.issue_with(&template).unwrap().into()
}

fn other_authority(cluster: &str) -> Authority {
    Authority::new(&ClusterName::new(cluster).unwrap(), 24 * HOUR).unwrap()
}

/// A node that counts everything that reaches an application.
struct Witness {
    node: Node,
    app: App,
    events: Events,
    requests: Arc<AtomicUsize>,
}

impl Witness {
    fn new(node: Node) -> Self {
        let app = node.register("inbox").unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        app.on_request(1, move |request| {
            counter.fetch_add(1, SeqCst);
            Ok(request.payload.clone())
        })
        .unwrap();
        let events = node.events();
        Self {
            node,
            app,
            events,
            requests,
        }
    }

    /// An honest node joins and is heard; nobody was before it.
    fn assert_heard_nobody_but(&self, honest: &Node) {
        honest.wait_ready(Ready::Peers(1), PATIENCE).unwrap();
        let seen = await_event(
            &self.events,
            "connected of the honest node",
            |kind| matches!(kind, EventKind::Connected { node } if node == honest.id()),
        );
        let reported: Vec<_> = seen
            .iter()
            .filter(|event| {
                matches!(
                    event.kind,
                    EventKind::Connected { .. } | EventKind::Disconnected { .. }
                )
            })
            .collect();
        assert_eq!(reported.len(), 1, "{reported:?}");
        let members_up = seen
            .iter()
            .filter(|event| matches!(event.kind, EventKind::MemberUp { .. }))
            .count();
        assert!(members_up <= 1, "{seen:?}");
        assert_eq!(self.requests.load(SeqCst), 0, "a request was handled");

        let app = honest.register("inbox").unwrap();
        app.send(self.node.id(), "honest", 10 * SECOND).unwrap();
        let first = self.app.messages().recv_timeout(PATIENCE).unwrap();
        assert_eq!(
            (first.from.as_str(), &*first.payload),
            (honest.id().as_str(), &b"honest"[..])
        );
        let reply = app.request(self.node.id(), "honest", 10 * SECOND).unwrap();
        assert_eq!(reply, b"honest");
        assert_eq!(self.requests.load(SeqCst), 1);
        let peers: Vec<_> = self
            .node
            .peers()
            .into_iter()
            .map(|peer| peer.node)
            .collect();
        assert_eq!(peers, [honest.id().clone()]);
    }
}

/// Everything that an honest dialler would send, all at once.
fn pour(raw: &mut Raw, hello: Hello) {
    let mut opening = preamble(StreamKind::Control, "");
    opening.extend(control(Control::Hello(hello)));
    opening.extend(control(Control::Ready));
    opening.extend(control(Control::Use));
    opening.extend(control(Control::Ping { id: 1 }));
    raw.push(CONTROL, opening);
    pour_application_data(raw);
}

fn pour_application_data(raw: &mut Raw) {
    // The first streams that either end may open by itself.
    let (messages, requests) = if raw.quic.is_server() { (3, 7) } else { (2, 6) };
    raw.push(
        messages,
        [preamble(StreamKind::Messages, "inbox"), unit(b"evil")].concat(),
    );
    raw.push(
        requests,
        [preamble(StreamKind::Requests, "inbox"), request(1, b"evil")].concat(),
    );
}

/// Certificates that no node of the lab's cluster may accept, and the alerts that say so.
fn bad_certificates(lab: &Lab) -> Vec<(&'static str, Certificate, Vec<End>)> {
    let now = SystemTime::now();
    let (good, cluster) = (&lab.authority, lab.cluster().as_str());
    let twin = other_authority(cluster);
    let foreign = other_authority("elsewhere");
    vec![
        (
            "another authority of the same cluster name",
            issue(&twin, "n2", |_| ()),
            vec![End::Alert(UNKNOWN_CA)],
        ),
        (
            "the authority and a name of another cluster",
            issue(&foreign, "n2", |_| ()),
            vec![End::Alert(UNKNOWN_CA)],
        ),
        (
            "the right authority, a name of another cluster",
            issue(good, "n2", |t| {
                t.dns_names = vec!["n2.elsewhere.nodosum".to_owned()];
            }),
            vec![End::Alert(CERTIFICATE_UNKNOWN), End::Alert(BAD_CERTIFICATE)],
        ),
        (
            "expired",
            issue(good, "n2", |t| {
                t.not_before = now - 2 * HOUR;
                t.not_after = now - HOUR;
            }),
            vec![End::Alert(CERTIFICATE_EXPIRED)],
        ),
        (
            "not valid yet",
            issue(good, "n2", |t| {
                t.not_before = now + HOUR;
                t.not_after = now + 2 * HOUR;
            }),
            vec![End::Alert(CERTIFICATE_EXPIRED), End::Alert(BAD_CERTIFICATE)],
        ),
        (
            "two names",
            issue(good, "n2", |t| {
                t.dns_names.push(format!("n3.{cluster}.nodosum"))
            }),
            vec![End::Code(IDENTITY)],
        ),
        (
            "no name",
            issue(good, "n2", |t| t.dns_names.clear()),
            vec![End::Alert(CERTIFICATE_UNKNOWN), End::Code(IDENTITY)],
        ),
        (
            "a name with one label too many",
            issue(good, "n2", |t| {
                t.dns_names = vec![format!("a.n2.{cluster}.nodosum")];
            }),
            vec![End::Code(IDENTITY)],
        ),
        (
            "for every node of the cluster",
            issue(good, "n2", |t| {
                t.dns_names = vec![format!("*.{cluster}.nodosum")]
            }),
            vec![End::Code(IDENTITY)],
        ),
    ]
}

#[test]
fn a_dialler_without_an_acceptable_certificate_is_refused() {
    let lab = Lab::new("diallers");
    let witness = Witness::new(lab.builder("n1").start().unwrap());
    let mut cases = vec![(
        "no certificate",
        None,
        vec![End::Alert(CERTIFICATE_REQUIRED)],
    )];
    for (what, certificate, ends) in bad_certificates(&lab) {
        cases.push((what, Some(certificate), ends));
    }
    cases.push((
        "for servers only",
        Some(issue(&lab.authority, "n2", |t| t.client_auth = false)),
        vec![End::Alert(UNSUPPORTED_CERTIFICATE)],
    ));
    for (what, certificate, ends) in cases {
        let mut raw = Raw::dial(
            witness.node.quic_addr(),
            None,
            &mut config(certificate.as_ref(), &[ALPN]),
        );
        pour(&mut raw, hello("n2", lab.cluster()));
        let end = raw.end();
        assert!(ends.contains(&end), "{what}: {end:?}");
        // It could believe itself connected, for TLS told it first; HELLO is what tells the truth.
        assert!(raw.received.is_empty(), "{what}: {:?}", raw.received);
    }
    let seed = witness.node.quic_addr().to_string();
    let honest = lab.builder("n9").seed(seed).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
}

#[test]
fn an_acceptor_without_an_acceptable_certificate_is_refused() {
    let lab = Lab::new("acceptors");
    let witness = Witness::new(lab.builder("n1").start().unwrap());
    let mut cases = bad_certificates(&lab);
    cases.push((
        "for clients only",
        issue(&lab.authority, "n2", |t| t.server_auth = false),
        vec![End::Alert(UNSUPPORTED_CERTIFICATE)],
    ));
    for (what, certificate, ends) in cases {
        let mut server = RawServer::bind(config(Some(&certificate), &[ALPN]));
        let (node, seed) = (witness.node.clone(), server.addr().to_string());
        let join = std::thread::scope(|scope| {
            let join = scope.spawn(move || node.join(&[seed], PATIENCE));
            let mut raw = server.accept();
            pour_application_data(&mut raw);
            let end = raw.end();
            assert!(ends.contains(&end), "{what}: {end:?}");
            assert!(raw.received.is_empty(), "{what}: {:?}", raw.received);
            join.join().unwrap()
        });
        let error = join.unwrap_err().to_string();
        let is_told = error.contains("we refused the peer") || error.contains("identity: ");
        assert!(is_told, "{what}: {error}");
        assert_eq!(witness.node.peers(), []);
    }
    let seed = witness.node.quic_addr().to_string();
    let honest = lab.builder("n9").seed(seed).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
}

#[test]
fn an_acceptor_without_a_certificate_is_no_node() {
    let lab = Lab::new("bare");
    let node = lab.builder("n1").start().unwrap();
    let events = node.events();
    let mut server = RawServer::bind(config(None, &[ALPN]));
    let seed = server.addr().to_string();
    let other = &node;
    let join = std::thread::scope(|scope| {
        let join = scope.spawn(move || other.join(&[seed], PATIENCE));
        let mut raw = server.accept();
        while !join.is_finished() {
            raw.turn();
        }
        assert!(raw.received.is_empty(), "{:?}", raw.received);
        join.join().unwrap()
    });
    let error = join.unwrap_err().to_string();
    assert!(
        error.contains("TLS: ") && error.contains("peer refused us"),
        "{error}"
    );
    while let Some(event) = events.try_recv() {
        assert_eq!(event.kind, EventKind::Ready);
    }
}

#[test]
fn nodes_of_two_authorities_refuse_each_other() {
    let lab = Lab::new("torn");
    let twin = Lab::new("torn");
    let foreign = Lab::new("elsewhere");
    let witness = Witness::new(lab.builder("n1").start().unwrap());
    let seed = witness.node.quic_addr().to_string();
    for stranger in [&twin, &foreign] {
        let stranger = stranger.builder("n2").start().unwrap();
        let events = stranger.events();
        let error = stranger.join(&[&seed], PATIENCE).unwrap_err().to_string();
        assert!(error.contains("unknown certificate authority"), "{error}");
        let other = stranger.quic_addr().to_string();
        let error = witness
            .node
            .join(&[other], PATIENCE)
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown certificate authority"), "{error}");
        assert_eq!(stranger.peers(), []);
        assert_eq!(stranger.members().len(), 1);
        stranger.shutdown(10 * SECOND);
        while let Some(event) = events.try_recv() {
            let kind = event.kind;
            assert!(
                matches!(kind, EventKind::Ready | EventKind::Leaving),
                "{kind:?}"
            );
        }
    }
    let honest = lab.builder("n9").seed(seed).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
}

/// Where the authority is not limited to a cluster, TLS accepts the neighbour; the name does not.
#[test]
fn an_authority_of_several_clusters_does_not_mix_them() {
    let authority = Unconstrained::new();
    let start = |name: &str| {
        Node::builder(authority.identity(name))
            .profile(Profile::Local)
            .start()
            .unwrap()
    };
    let witness = Witness::new(start("n1.here.nodosum"));
    let neighbour = start("n2.there.nodosum");
    let events = neighbour.events();
    for (from, to, certified) in [
        (&neighbour, &witness.node, "here"),
        (&witness.node, &neighbour, "there"),
    ] {
        let seed = to.quic_addr().to_string();
        let error = from.join(&[seed], PATIENCE).unwrap_err().to_string();
        let expected = format!("certificate is for cluster {certified}");
        assert!(error.contains(&expected), "{error}");
        assert_eq!(from.peers(), []);
    }

    let certificate = authority.issue(&["n2.there.nodosum"]);
    let mut raw = Raw::dial(
        witness.node.quic_addr(),
        None,
        &mut config(Some(&certificate), &[ALPN]),
    );
    pour(&mut raw, hello("n2", &ClusterName::new("here").unwrap()));
    assert_eq!(raw.end(), End::Code(IDENTITY));
    assert!(raw.received.is_empty(), "{:?}", raw.received);

    let seed = witness.node.quic_addr().to_string();
    let honest = Node::builder(authority.identity("n9.here.nodosum"))
        .profile(Profile::Local)
        .seed(seed)
        .start()
        .unwrap();
    witness.assert_heard_nobody_but(&honest);
    while let Some(event) = events.try_recv() {
        assert_eq!(event.kind, EventKind::Ready);
    }
}

/// The record of `n2` leads to `n8`. The dial of `n2` ends there; `n2` then dials by itself.
#[test]
fn whoever_answers_in_place_of_the_node_that_was_dialled_is_refused() {
    let lab = Lab::new("detour");
    let stranger = Witness::new(lab.builder("n8").start().unwrap());
    let hub = lab.builder("n9").start().unwrap();
    let seed = hub.quic_addr().to_string();
    let first = lab.builder("n1").seed(&seed).start().unwrap();
    first.wait_ready(Ready::Peers(1), PATIENCE).unwrap();
    let events = first.events();
    let second = lab
        .builder("n2")
        .advertise(stranger.node.quic_addr())
        .gossip_advertise("127.0.0.1:0".parse().unwrap())
        .seed(&seed)
        .start()
        .unwrap();
    let row = || {
        let rows = first.connections().into_iter();
        rows.filter(|row| row.peer == Some(id("n2")))
            .find_map(|row| row.last_error)
    };
    eventually("the refusal of n8 in place of n2", || {
        row().is_some_and(|why| why.contains("we refused the peer") || why.contains("identity"))
    });
    await_event(
        &events,
        "connected of n2",
        |kind| matches!(kind, EventKind::Connected { node } if *node == id("n2")),
    );
    let peers = first.peers();
    let peer = peers.iter().find(|peer| peer.node == id("n2")).unwrap();
    assert_eq!(peer.side, nodosum::Side::Accepted, "n2 dialled by itself");
    assert_ne!(peer.addr, stranger.node.quic_addr());
    second.wait_ready(Ready::Peers(2), PATIENCE).unwrap();
    while let Some(event) = stranger.events.try_recv() {
        assert_eq!(event.kind, EventKind::Ready, "n8 reported somebody");
    }
    let seed = stranger.node.quic_addr().to_string();
    drop((first, second, hub));
    let honest = lab.builder("n7").seed(seed).start().unwrap();
    stranger.assert_heard_nobody_but(&honest);
}

#[test]
fn another_protocol_is_refused() {
    let lab = Lab::new("protocols");
    let witness = Witness::new(lab.builder("n1").start().unwrap());
    let certificate = issue(&lab.authority, "n2", |_| ());
    // To offer none is not possible: TLS for QUIC refuses it at the source.
    let offers: [&[&[u8]]; 3] = [&[b"nodosum/2"], &[b"h3"], &[b"nodosum/1x", b"nodosum/"]];
    for alpn in offers {
        let mut raw = Raw::dial(
            witness.node.quic_addr(),
            None,
            &mut config(Some(&certificate), alpn),
        );
        pour(&mut raw, hello("n2", lab.cluster()));
        assert_eq!(raw.end(), End::Alert(NO_APPLICATION_PROTOCOL), "{alpn:?}");
        assert!(raw.received.is_empty(), "{alpn:?}: {:?}", raw.received);
    }
    for alpn in [&[][..], &[&b"h3"[..]]] {
        let mut server = RawServer::bind(config(Some(&certificate), alpn));
        let (node, seed) = (witness.node.clone(), server.addr().to_string());
        let join = std::thread::scope(|scope| {
            let join = scope.spawn(move || node.join(&[seed], PATIENCE));
            let mut raw = server.accept();
            pour_application_data(&mut raw);
            while !join.is_finished() {
                raw.turn();
            }
            assert!(raw.received.is_empty(), "{alpn:?}: {:?}", raw.received);
            join.join().unwrap()
        });
        let error = join.unwrap_err().to_string();
        assert!(
            error.contains("no common application protocol"),
            "{alpn:?}: {error}"
        );
    }
    let seed = witness.node.quic_addr().to_string();
    let honest = lab.builder("n9").seed(seed).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
}

#[test]
fn a_dialler_that_lies_in_its_hello_is_refused() {
    let lab = Lab::new("liars");
    let witness = Witness::new(lab.builder("n1").start().unwrap());
    let certificate = issue(&lab.authority, "n2", |_| ());
    let honest = hello("n2", lab.cluster());
    let open = || preamble(StreamKind::Control, "");
    let say = |hello: Hello| [open(), control(Control::Hello(hello))].concat();
    let of = |node: &str| Hello {
        node: id(node),
        ..honest.clone()
    };
    let cases = [
        ("another node's name", say(of("n3")), IDENTITY),
        ("the acceptor's name", say(of("n1")), IDENTITY),
        (
            "another cluster's name",
            say(Hello {
                cluster: ClusterName::new("elsewhere").unwrap(),
                ..honest.clone()
            }),
            IDENTITY,
        ),
        (
            "the acceptor's life",
            say(Hello {
                boot: witness.node.boot_id(),
                ..honest.clone()
            }),
            IDENTITY,
        ),
        (
            "a version of the future",
            say(Hello {
                protocol: (1_000, 2_000),
                ..honest.clone()
            }),
            PROTOCOL,
        ),
        (
            "READY first",
            [open(), control(Control::Ready)].concat(),
            PROTOCOL,
        ),
        (
            "USE first",
            [open(), control(Control::Use)].concat(),
            PROTOCOL,
        ),
        (
            "HELLO twice",
            [say(honest.clone()), control(Control::Hello(honest.clone()))].concat(),
            PROTOCOL,
        ),
        (
            "USE in place of READY",
            [say(honest.clone()), control(Control::Use)].concat(),
            PROTOCOL,
        ),
        ("garbage", [open(), unit(&[0xff; 32])].concat(), PROTOCOL),
        (
            "more than a HELLO may be",
            [open(), unit(&[0; 1_025])].concat(),
            PROTOCOL,
        ),
        (
            "an application's stream in place of the control stream",
            [preamble(StreamKind::Messages, "inbox"), unit(b"evil")].concat(),
            PROTOCOL,
        ),
    ];
    for (what, bytes, code) in cases {
        let mut raw = Raw::dial(
            witness.node.quic_addr(),
            None,
            &mut config(Some(&certificate), &[ALPN]),
        );
        raw.push(CONTROL, bytes);
        pour_application_data(&mut raw);
        assert_eq!(raw.end(), End::Code(code), "{what}");
    }
    let seed = witness.node.quic_addr().to_string();
    let honest = lab.builder("n9").seed(seed).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
}

#[test]
fn an_acceptor_that_lies_in_its_hello_is_refused() {
    let lab = Lab::new("sirens");
    let witness = Witness::new(lab.builder("n1").start().unwrap());
    let certificate = issue(&lab.authority, "n2", |_| ());
    let honest = hello("n2", lab.cluster());
    let say = |hello: Hello| control(Control::Hello(hello));
    let cases = [
        (
            "another node's name",
            say(Hello {
                node: id("n3"),
                ..honest.clone()
            }),
            IDENTITY,
        ),
        (
            "another cluster's name",
            say(Hello {
                cluster: ClusterName::new("elsewhere").unwrap(),
                ..honest.clone()
            }),
            IDENTITY,
        ),
        // It would never be dialled again if that were believed.
        (
            "the dialler's life",
            say(Hello {
                boot: witness.node.boot_id(),
                ..honest
            }),
            IDENTITY,
        ),
        ("READY", control(Control::Ready), PROTOCOL),
        ("USE", control(Control::Use), PROTOCOL),
        ("more than a HELLO may be", unit(&[0; 1_025]), PROTOCOL),
    ];
    for (what, bytes, code) in cases {
        let mut server = RawServer::bind(config(Some(&certificate), &[ALPN]));
        let (node, seed) = (witness.node.clone(), server.addr().to_string());
        let join = std::thread::scope(|scope| {
            let join = scope.spawn(move || node.join(&[seed], PATIENCE));
            let mut raw = server.accept();
            pour_application_data(&mut raw);
            raw.until("the node's HELLO", |raw| !raw.control_frames().is_empty());
            raw.push(CONTROL, bytes);
            assert_eq!(raw.end(), End::Code(code), "{what}");
            let frames = raw.control_frames();
            assert!(
                matches!(&frames[..], [Control::Hello(hello)] if hello.node == id("n1")),
                "{what}: {frames:?}"
            );
            assert_eq!(raw.received.len(), 1, "{what}: {:?}", raw.received);
            join.join().unwrap()
        });
        join.unwrap_err();
        assert_eq!(witness.node.peers(), []);
    }
    let seed = witness.node.quic_addr().to_string();
    let honest = lab.builder("n9").seed(seed).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
}

#[test]
fn two_processes_of_one_identity_refuse_each_other() {
    let lab = Lab::new("twins");
    let identity = lab.identity("n1");
    let start = || {
        Node::builder(identity.clone())
            .profile(Profile::Local)
            .start()
            .unwrap()
    };
    let (witness, twin) = (Witness::new(start()), Witness::new(start()));
    for (from, to) in [(&witness, &twin), (&twin, &witness)] {
        let seed = to.node.quic_addr().to_string();
        let error = from.node.join(&[seed], PATIENCE).unwrap_err().to_string();
        assert!(error.contains("closed by the peer: identity"), "{error}");
    }
    let seed = witness.node.quic_addr().to_string();
    let honest = lab.builder("n9").seed(seed).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
    while let Some(event) = twin.events.try_recv() {
        assert_eq!(event.kind, EventKind::Ready);
    }
}

#[test]
fn nothing_of_an_application_is_read_before_hello_and_use() {
    let lab = Lab::new("haste");
    let witness = Witness::new(lab.builder("n1").start().unwrap());
    // The lower id, so that USE is its to say.
    let certificate = issue(&lab.authority, "a0", |_| ());
    let mut raw = Raw::dial(
        witness.node.quic_addr(),
        None,
        &mut config(Some(&certificate), &[ALPN]),
    );
    pour_application_data(&mut raw);
    raw.until("the handshake", |raw| raw.quic.is_established());
    // It is sent with the end of the handshake; what follows arrives after it.
    raw.turn();

    let mut opening = preamble(StreamKind::Control, "");
    opening.extend(control(Control::Hello(hello("a0", lab.cluster()))));
    opening.extend(control(Control::Ready));
    opening.extend(control(Control::Ping { id: 77 }));
    raw.push(CONTROL, opening);
    let answered = |raw: &mut Raw, wanted: u64| {
        raw.control_frames()
            .iter()
            .any(|frame| matches!(frame, Control::Pong { id, .. } if *id == wanted))
    };
    // The pong says that the node has taken its turn with everything before the ping.
    raw.until("pong before USE", |raw| answered(raw, 77));
    assert!(witness.app.messages().is_empty());
    assert_eq!(witness.requests.load(SeqCst), 0);
    assert_eq!(witness.node.peers(), []);

    raw.push(CONTROL, control(Control::Use));
    raw.until("the message", |_| !witness.app.messages().is_empty());
    let message = witness.app.messages().recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        (message.from.as_str(), &*message.payload),
        ("a0", &b"evil"[..])
    );
    raw.until("the request", |_| witness.requests.load(SeqCst) == 1);
    await_event(
        &witness.events,
        "connected of a0",
        |kind| matches!(kind, EventKind::Connected { node } if *node == id("a0")),
    );
}

#[test]
fn a_dialler_that_never_says_hello_is_dropped_at_the_deadline() {
    let lab = Lab::new("silence");
    let deadline = transport::Config {
        dial_timeout: Duration::from_millis(700),
        ..transport::Config::default()
    };
    let node = lab.builder("n1").transport(deadline).start().unwrap();
    let witness = Witness::new(node);
    let certificate = issue(&lab.authority, "n2", |_| ());
    let starts: [Vec<u8>; 3] = [
        Vec::new(),
        preamble(StreamKind::Control, ""),
        [
            preamble(StreamKind::Control, ""),
            control(Control::Hello(hello("n2", lab.cluster()))),
        ]
        .concat(),
    ];
    for start in starts {
        let mut raw = Raw::dial(
            witness.node.quic_addr(),
            None,
            &mut config(Some(&certificate), &[ALPN]),
        );
        if !start.is_empty() {
            raw.push(CONTROL, start);
        }
        pour_application_data(&mut raw);
        // Whoever it was may try again.
        assert_eq!(raw.end(), End::Code(OVERLOADED));
    }
    let seed = witness.node.quic_addr().to_string();
    let honest = lab.builder("n9").seed(seed).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
}

#[test]
fn a_node_that_dials_itself_learns_it_and_stops() {
    let lab = Lab::new("mirror");
    // A port that is free now; nobody else asks for it in the meantime.
    let addr = {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let node = lab
        .builder("n1")
        .bind(addr)
        .gossip_bind("127.0.0.1:0".parse().unwrap())
        .seed(addr.to_string())
        .start()
        .unwrap();
    let witness = Witness::new(node);
    witness.node.wait_ready(Ready::Started, PATIENCE).unwrap();
    // Itself is no failure, and nobody was reached.
    assert_eq!(witness.node.join(&[addr.to_string()], PATIENCE), Ok(0));
    eventually("no connection to itself", || {
        witness.node.connections().is_empty()
    });
    assert_eq!(witness.node.peers(), []);
    assert_eq!(witness.node.members().len(), 1);
    let established = witness.node.status().connections.established;
    assert_eq!(established, 0);
    let honest = lab.builder("n9").seed(addr.to_string()).start().unwrap();
    witness.assert_heard_nobody_but(&honest);
    let rows = witness.node.connections();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0].state, ConnectionState::Established);
}

// ---- the start of a node

/// A directory of this process, removed at the end of the test.
struct TlsDir(PathBuf);

impl TlsDir {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("nodosum-refusals-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, content: &str, mode: u32) {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn fill(&self, lab: &Lab, certificate: &Certificate) {
        self.write("ca.pem", &lab.authority.certificate_pem(), 0o644);
        self.write("node.pem", &certificate.certificate_pem, 0o644);
        self.write("node.key", &certificate.key_pem, 0o600);
    }

    /// What starting a node from this directory comes to.
    fn start(&self) -> Result<Node, StartError> {
        Node::builder(Identity::from_dir(&self.0)?).start()
    }

    fn refusal(&self) -> IdentityError {
        match self.start() {
            Err(StartError::Identity(error)) => error,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for TlsDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_node_does_not_start_without_its_files() {
    let lab = Lab::new("files");
    let dir = TlsDir::new("files");
    let certificate = issue(&lab.authority, "n1", |_| ());
    for missing in ["node.pem", "node.key", "ca.pem"] {
        dir.fill(&lab, &certificate);
        fs::remove_file(dir.0.join(missing)).unwrap();
        let error = dir.refusal();
        assert!(
            matches!(&error, IdentityError::Read { path, .. } if path.ends_with(missing)),
            "{error}"
        );
    }
    dir.fill(&lab, &certificate);
    let node = dir.start().unwrap();
    assert_eq!(node.id(), &id("n1"));
}

#[test]
fn a_node_does_not_start_with_a_key_that_others_can_read() {
    let lab = Lab::new("modes");
    let dir = TlsDir::new("modes");
    dir.fill(&lab, &issue(&lab.authority, "n1", |_| ()));
    for mode in [0o644, 0o640, 0o604] {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(dir.0.join("node.key"), permissions).unwrap();
        let error = dir.refusal();
        assert!(
            matches!(error, IdentityError::KeyReadable { mode: found, .. } if found == mode),
            "{error}"
        );
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn a_node_does_not_start_outside_the_validity_of_its_certificate() {
    let lab = Lab::new("times");
    let dir = TlsDir::new("times");
    let now = SystemTime::now();
    let expired = issue(&lab.authority, "n1", |t| {
        t.not_before = now - 2 * HOUR;
        t.not_after = now - HOUR;
    });
    let early = issue(&lab.authority, "n1", |t| {
        t.not_before = now + HOUR;
        t.not_after = now + 2 * HOUR;
    });
    for (certificate, problem) in [(expired, "expired on"), (early, "is not valid before")] {
        dir.fill(&lab, &certificate);
        let error = dir.refusal();
        assert!(matches!(error, IdentityError::Validity { .. }), "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn a_node_does_not_start_as_somebody_else_than_its_certificate_says() {
    let lab = Lab::new("names");
    let dir = TlsDir::new("names");
    let good = issue(&lab.authority, "n1", |_| ());
    dir.fill(&lab, &good);
    let identity = Identity::from_dir(&dir.0).unwrap();
    let builder = || Node::builder(identity.clone());
    for (builder, contradicted) in [
        (builder().expect_node("n2"), "node"),
        (builder().expect_cluster("elsewhere"), "cluster"),
    ] {
        let error = builder.start().unwrap_err();
        assert!(
            matches!(
                &error,
                StartError::Identity(IdentityError::Contradiction { what, .. }) if *what == contradicted
            ),
            "{error}"
        );
    }
    builder()
        .expect_node("n1")
        .expect_cluster("names")
        .start()
        .unwrap();

    for names in [
        vec!["n1.names.nodosum", "n2.names.nodosum"],
        vec![],
        vec!["n1.example.com"],
        vec!["*.names.nodosum"],
    ] {
        let certificate = issue(&lab.authority, "n1", |t| {
            t.dns_names = names.iter().map(|&name| name.to_owned()).collect();
        });
        dir.fill(&lab, &certificate);
        let error = dir.refusal();
        assert!(
            matches!(error, IdentityError::Name(_)),
            "{names:?}: {error}"
        );
    }
}

#[test]
fn a_node_does_not_start_with_a_key_or_an_authority_that_is_not_its_certificates() {
    let lab = Lab::new("pairs");
    let dir = TlsDir::new("pairs");
    let good = issue(&lab.authority, "n1", |_| ());
    let other = issue(&lab.authority, "n1", |_| ());
    dir.fill(
        &lab,
        &Certificate {
            key_pem: other.key_pem,
            ..good.clone()
        },
    );
    let error = dir.refusal();
    assert!(
        matches!(error, IdentityError::KeyMismatch { .. }),
        "{error}"
    );

    dir.fill(&lab, &good);
    let twin = other_authority("pairs");
    dir.write("ca.pem", &twin.certificate_pem(), 0o644);
    let error = dir.refusal();
    assert!(matches!(error, IdentityError::Untrusted { .. }), "{error}");

    let outside = issue(&lab.authority, "n1", |t| {
        t.dns_names = vec!["n1.elsewhere.nodosum".to_owned()];
    });
    dir.fill(&lab, &outside);
    let error = dir.refusal();
    assert!(matches!(error, IdentityError::Untrusted { .. }), "{error}");
}
