//! What somebody hostile can do to real nodes on loopback, and what not.
//!
//! There are three of them. The *outsider* knows every name, address, boot id and key id, for they
//! stand in clear on the wire, and sends what it recorded. The *thief* has the gossip key as well and
//! no certificate: it can seal datagrams in the name of any member. The *insider* has a certificate
//! of the cluster, holds a connection, and lies. After each attack the views are what they were,
//! no event tells a lie, and the counters show the attempt.
//!
//! Suspicions are the one thing that unsigned gossip can raise; they have to be refuted, and nobody
//! dies of them.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "real nodes run against the real clock; tests panic, in their helpers too"
)]
#![expect(unreachable_pub, reason = "modules that several tests share")]
#![cfg(all(feature = "ca", target_os = "linux"))]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/raw_quic.rs"]
mod raw_quic;
#[path = "support/relay.rs"]
mod relay;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::Mutex,
    time::{Duration, Instant},
};

use boring::{hash::MessageDigest, pkey::PKey, sign::Signer};
use cluster::{Lab, PATIENCE, eventually, full_mesh, id};
use nodosum::{
    BootId, ClusterName, CommandError, EventKind, Events, Identity, MemberInfo, MemberStatus, Node,
    NodeId, RefusedCounts,
    control::{Control, SyncFrame},
    transport::framing::{Decoder, StreamKind},
    unversioned::{
        record::{Record, SignedRecord, VerifiedRecord},
        swim::{Accusation, Body, ForcedLeave, Message, SignedEvent, Statement, UserEvent},
        trust::{Keyring, KeyringOffer, Sealer},
    },
};
use prost::Message as _;
use raw_quic::{ALPN, CONTROL, Certificate, End, Raw, config, control, hello, preamble, unit};
use relay::{Relay, free_addr};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// So many datagrams before it is awaited that they were read; a receive buffer holds more.
const BURST: usize = 64;

const OVERLOADED: u64 = 5;

/// Each test counts what nodes refuse and keeps them busy; beside each other they would be late.
static ALONE: Mutex<()> = Mutex::new(());

// ---- what must not change

type Row = (
    NodeId,
    MemberStatus,
    BootId,
    SocketAddr,
    SocketAddr,
    BTreeMap<String, String>,
);

/// All that others can say of a member, but for the incarnation, which grows when it refutes.
fn rows(node: &Node, about: &[NodeId]) -> Vec<Row> {
    let row = |m: MemberInfo| (m.node, m.status, m.boot, m.quic_addr, m.gossip_addr, m.tags);
    let members = node.members().into_iter();
    members
        .filter(|m| about.contains(&m.node))
        .map(row)
        .collect()
}

/// Looks at the honest nodes during an attack.
struct Watch<'a> {
    nodes: &'a [Node],
    honest: Vec<NodeId>,
    before: Vec<Vec<Row>>,
    refused: Vec<RefusedCounts>,
    events: Vec<Events>,
}

impl<'a> Watch<'a> {
    fn begin(nodes: &'a [Node]) -> Self {
        nodes.iter().for_each(turn);
        let honest: Vec<NodeId> = nodes.iter().map(|node| node.id().clone()).collect();
        Self {
            nodes,
            before: nodes.iter().map(|node| rows(node, &honest)).collect(),
            refused: nodes.iter().map(|node| node.status().refused).collect(),
            events: nodes.iter().map(Node::events).collect(),
            honest,
        }
    }

    /// The views are what they were, as soon as every suspicion is refuted, and no event told of
    /// anything but suspicions and their end. `liar` may come and go in its own name.
    fn end(self, liar: Option<&NodeId>) -> Vec<RefusedCounts> {
        eventually("the views are what they were", || {
            let same = |(node, before): (&Node, &Vec<Row>)| rows(node, &self.honest) == *before;
            self.nodes.iter().zip(&self.before).all(same)
        });
        self.nodes.iter().for_each(turn);
        for (node, events) in self.nodes.iter().zip(&self.events) {
            let strangers = node.members().into_iter().map(|m| m.node);
            let strangers: Vec<_> = strangers.filter(|n| !self.honest.contains(n)).collect();
            assert!(strangers.iter().all(|n| Some(n) == liar), "{strangers:?}");
            let mut doubted = std::collections::BTreeSet::new();
            while let Some(event) = events.try_recv() {
                match &event.kind {
                    kind if kind.node().is_some() && kind.node() == liar => {}
                    EventKind::MemberSuspect { node, .. } => {
                        doubted.insert(node.clone());
                    }
                    EventKind::MemberAlive { node } => {
                        doubted.remove(node);
                    }
                    lie => panic!("{} was told {lie:?}", node.id()),
                }
            }
            assert!(doubted.is_empty(), "{doubted:?} at {}", node.id());
        }
        self.counted()
    }

    /// What each node has refused since the beginning.
    fn counted(&self) -> Vec<RefusedCounts> {
        let now = self.nodes.iter().map(|node| node.status().refused);
        let both = now.zip(&self.refused);
        both.map(|(now, before)| minus(now, *before)).collect()
    }

    /// Waits until so much was counted as shows that the nodes have read everything.
    fn until(&self, what: &str, mut holds: impl FnMut(&[RefusedCounts]) -> bool) {
        eventually(what, || holds(&self.counted()));
    }
}

fn minus(mut now: RefusedCounts, before: RefusedCounts) -> RefusedCounts {
    now.gossip -= before.gossip;
    now.quic -= before.quic;
    now.records -= before.records;
    now.unproven_records -= before.unproven_records;
    now.statements -= before.statements;
    now.events -= before.events;
    now.stale_events -= before.stale_events;
    now.keyrings -= before.keyrings;
    now.syncs -= before.syncs;
    now.implausible -= before.implausible;
    now.conflicting -= before.conflicting;
    now.stale -= before.stale;
    now.stray -= before.stray;
    now
}

/// Waits until the reactor has made a turn: it reads gossip before it answers commands.
fn turn(node: &Node) {
    let nobody = id("nobody");
    let unknown = CommandError::UnknownMember("nobody".to_owned());
    for _ in 0..2 {
        assert_eq!(node.force_leave(&nobody), Err(unknown.clone()));
    }
}

/// Sends to the node's gossip port and waits until all is read.
fn pour(socket: &UdpSocket, node: &Node, datagrams: &[Vec<u8>]) {
    for burst in datagrams.chunks(BURST) {
        for datagram in burst {
            socket.send_to(datagram, node.gossip_addr()).unwrap();
        }
        turn(node);
    }
}

fn stranger() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn heard(socket: &UdpSocket) -> usize {
    let mut bytes = 0;
    while let Ok(length) = socket.recv(&mut [0; 2_048]) {
        bytes += length;
    }
    bytes
}

fn member(at: &Node, node: &NodeId) -> MemberInfo {
    let members = at.members().into_iter();
    members.into_iter().find(|m| m.node == *node).unwrap()
}

// ---- the insider

/// A certificate of the cluster and a connection, of which nodosum knows nothing.
struct Insider {
    raw: Raw,
    name: NodeId,
    identity: Identity,
    certificate: Certificate,
    next_stream: u64,
    /// Where it says that it receives gossip, and where nobody answers.
    gossip: UdpSocket,
}

impl Insider {
    fn dial(lab: &Lab, name: &str, target: &Node) -> Self {
        let issued = lab.authority.issue(&id(name), HOUR).unwrap();
        let identity = Identity::from_pem(
            issued.certificate_pem.as_bytes(),
            issued.key_pem.as_bytes(),
            lab.authority.certificate_pem().as_bytes(),
        );
        let certificate = Certificate::from(issued);
        Self {
            raw: Self::connect(name, lab.cluster(), &certificate, target),
            name: id(name),
            identity: identity.unwrap(),
            certificate,
            next_stream: CONTROL + 4,
            gossip: stranger(),
        }
    }

    fn connect(name: &str, cluster: &ClusterName, proof: &Certificate, target: &Node) -> Raw {
        let mut raw = Raw::dial(target.quic_addr(), None, &mut config(Some(proof), &[ALPN]));
        let mut opening = preamble(StreamKind::Control, "");
        opening.extend(control(Control::Hello(hello(name, cluster))));
        opening.extend(control(Control::Ready));
        raw.push(CONTROL, opening);
        raw.until("HELLO of the node", |raw| {
            let frames = raw.control_frames();
            frames
                .iter()
                .any(|frame| matches!(frame, Control::Hello(_)))
        });
        raw
    }

    /// Another connection of the same life, to a node that would otherwise have to wait for a sync to
    /// learn its certificate.
    fn introduce(&self, target: &Node) -> Raw {
        let name = self.name.as_str();
        Self::connect(name, self.identity.cluster(), &self.certificate, target)
    }

    /// Its true record at that incarnation.
    fn record(&self, incarnation: u64) -> std::sync::Arc<VerifiedRecord> {
        let record = Record {
            cluster: self.identity.cluster().clone(),
            node: self.name.clone(),
            incarnation,
            boot: hello(self.name.as_str(), self.identity.cluster()).boot,
            quic_addr: free_addr(),
            gossip_addr: self.gossip.local_addr().unwrap(),
            tags: BTreeMap::new(),
            left: false,
            protocol: (1, 1),
            version: "evil".to_owned(),
            certificate: [0; 32],
        };
        self.identity.sign(record).unwrap()
    }

    /// A record of somebody else, signed with its own key.
    fn forge(&self, record: &Record) -> SignedRecord {
        let payload = record.encode();
        let key = PKey::private_key_from_pem(self.certificate.key_pem.as_bytes()).unwrap();
        let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
        let signed = [&b"nodosum record v1\0"[..], &payload].concat();
        let signature = signer.sign_oneshot_to_vec(&signed).unwrap();
        SignedRecord {
            payload: payload.into(),
            signature: signature.into(),
        }
    }

    fn tell(&mut self, frame: Control) {
        self.raw.push(CONTROL, control(frame));
        self.raw.turn();
    }

    /// Opens a sync, says this, and ends it if `fin`.
    fn sync(&mut self, frames: Vec<SyncFrame>, fin: bool) -> u64 {
        let stream = self.next_stream;
        self.next_stream += 4;
        let mut bytes = preamble(StreamKind::Sync, "");
        for frame in frames {
            bytes.extend(unit(&frame.encode()));
        }
        if fin {
            self.raw.push_fin(stream, bytes);
        } else {
            self.raw.push(stream, bytes);
        }
        self.raw.turn();
        stream
    }

    /// What the node answers to an honest sync.
    fn ask(&mut self) -> Vec<SyncFrame> {
        let stream = self.sync(vec![SyncFrame::Keyring(Vec::new())], true);
        self.raw.until("the answer to a sync", |raw| {
            raw.quic.stream_finished(stream)
        });
        let mut decoder = Decoder::new(1 << 16);
        let mut input = self.raw.received[&stream].as_slice();
        let mut frames = Vec::new();
        while let Some(unit) = decoder.unit(&mut input).unwrap() {
            frames.push(SyncFrame::decode(&unit).unwrap());
        }
        frames
    }

    /// The gossip keys, given to every certificate of the cluster, and the records of the members.
    fn loot(&mut self) -> Loot {
        let (mut ring, mut records) = (Keyring::new(), BTreeMap::new());
        for frame in self.ask() {
            match frame {
                SyncFrame::Keyring(bytes) => {
                    ring.merge(&KeyringOffer::decode(&bytes).unwrap()).unwrap();
                }
                SyncFrame::Entry {
                    record,
                    certificate,
                    ..
                } => {
                    let content = Record::decode(&record.payload).unwrap();
                    records.insert(content.node.clone(), (content, record, certificate));
                }
                SyncFrame::Unknown => {}
            }
        }
        Loot {
            ring,
            records,
            sealers: BTreeMap::new(),
        }
    }
}

/// The gossip key and what it seals: all that the thief has.
struct Loot {
    ring: Keyring,
    records: BTreeMap<NodeId, (Record, SignedRecord, Vec<u8>)>,
    sealers: BTreeMap<NodeId, Sealer>,
}

impl Loot {
    fn names(&self) -> Vec<NodeId> {
        self.records.keys().cloned().collect()
    }

    /// A datagram in the name of `from`, ahead of everything that it has really sent.
    fn seal(&mut self, from: &NodeId, to: &NodeId, message: &Message) -> Vec<u8> {
        let key = self.ring.send_key().unwrap();
        let life = |node: &NodeId| self.records[node].0.boot;
        let (boot, receiver) = (life(from), life(to));
        let cluster: ClusterName = self.records[from].0.cluster.clone();
        let sealer = self.sealers.entry(from.clone()).or_insert_with(|| {
            let mut sealer = Sealer::new(&cluster, from, boot);
            for _ in 0..50_000 {
                sealer.seal(key, (to, receiver), b"");
            }
            sealer
        });
        sealer.seal(key, (to, receiver), &message.encode())
    }
}

fn says(statements: Vec<Statement>) -> Message {
    Message {
        body: Body::Gossip,
        statements,
        records: Vec::new(),
        events: Vec::new(),
    }
}

fn tells(records: Vec<SignedRecord>) -> Message {
    Message {
        body: Body::Gossip,
        statements: Vec::new(),
        records,
        events: Vec::new(),
    }
}

fn as_frame(event: &SignedEvent) -> Control {
    Control::UserEvent {
        payload: event.payload.to_vec(),
        signature: event.signature.to_vec(),
    }
}

/// The names of the events that came until one of this name did.
fn names_heard(events: &Events, until: &str) -> Vec<String> {
    let seen = cluster::await_event(
        events,
        until,
        |kind| matches!(kind, EventKind::UserEvent { name, .. } if name == until),
    );
    let user = seen.into_iter().filter_map(|event| match event.kind {
        EventKind::UserEvent { name, .. } => Some(name),
        _ => None,
    });
    user.collect()
}

fn accusation(node: &NodeId, incarnation: u64, accuser: &NodeId) -> Accusation {
    Accusation {
        node: node.clone(),
        incarnation,
        accuser: accuser.clone(),
    }
}

/// What nobody but `victim` may say of it: that it left, moved, has other tags, or is far ahead.
fn lies_about(victim: &Record, elsewhere: SocketAddr) -> Vec<Record> {
    let next = Record {
        incarnation: victim.incarnation + 1,
        ..victim.clone()
    };
    let tags = BTreeMap::from([("role".to_owned(), "impostor".to_owned())]);
    vec![
        Record {
            left: true,
            ..next.clone()
        },
        Record {
            quic_addr: elsewhere,
            gossip_addr: elsewhere,
            ..next.clone()
        },
        Record {
            boot: BootId([0xee; 16]),
            quic_addr: elsewhere,
            ..next.clone()
        },
        Record {
            tags,
            ..next.clone()
        },
        Record {
            incarnation: u64::MAX,
            ..next.clone()
        },
        Record {
            incarnation: u64::MAX - 1,
            ..next.clone()
        },
        Record {
            incarnation: victim.incarnation + (1 << 20),
            ..next
        },
    ]
}

fn shut_down(nodes: &[Node]) {
    for node in nodes {
        node.shutdown(2 * SECOND);
    }
}

// ---- the outsider

#[test]
fn an_outsider_with_every_public_name_and_a_key_of_its_own_is_refused_and_counted() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("outsider");
    let nodes = lab.start(3);
    // What it knows stands in clear on the wire; here it is simply asked for.
    let mut public = Insider::dial(&lab, "n9", &nodes[0]).loot();
    let real = public.ring.send_key().unwrap().id();
    public.ring = Keyring::fixed([7; 32]);
    let socket = stranger();
    let watch = Watch::begin(&nodes);
    let mut sent = vec![0; nodes.len()];
    for (node, sent) in nodes.iter().zip(&mut sent) {
        let mut datagrams = Vec::new();
        for from in public.names() {
            for victim in public.names() {
                let dead = Statement::Dead(accusation(&victim, 1, &from));
                let datagram = public.seal(&from, node.id(), &says(vec![dead]));
                // Under an unknown key id, and under the right one without the key.
                let mut patched = datagram.clone();
                patched[1..9].copy_from_slice(&real.0);
                datagrams.extend([datagram, patched]);
            }
        }
        for _ in 0..20 {
            pour(&socket, node, &datagrams);
            *sent += datagrams.len() as u64;
        }
    }
    assert_eq!(heard(&socket), 0, "an outsider was answered");
    watch.until("all is refused", |refused| {
        refused.iter().zip(&sent).all(|(r, sent)| r.gossip >= *sent)
    });
    let refused = watch.end(Some(&id("n9")));
    for (refused, sent) in refused.iter().zip(&sent) {
        assert_eq!(refused.gossip, *sent);
    }
    shut_down(&nodes);
}

#[test]
fn recorded_gossip_opens_at_no_other_receiver_and_in_no_other_life_of_its_own() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("recorded");
    let targets: Vec<SocketAddr> = (0..3).map(|_| free_addr()).collect();
    let relays: Vec<Relay> = targets.iter().map(|target| Relay::to(*target)).collect();
    let start = |i: usize, seed: Option<SocketAddr>| {
        let builder = lab.builder(&format!("n{}", i + 1));
        builder
            .gossip_bind(targets[i])
            .gossip_advertise(relays[i].addr)
            .seeds(seed.map(|seed| seed.to_string()))
            .start()
            .unwrap()
    };
    let mut nodes = vec![start(0, None)];
    let seed = nodes[0].quic_addr();
    nodes.extend([start(1, Some(seed)), start(2, Some(seed))]);
    full_mesh(&nodes, PATIENCE);
    eventually("ten seconds' worth of gossip was recorded", || {
        relays.iter().all(|relay| relay.has_seen(60))
    });
    let recorded: Vec<Vec<Vec<u8>>> = relays.iter().map(Relay::recorded_inbound).collect();
    let everything = recorded.concat();
    let socket = stranger();
    let replay = |nodes: &[Node], datagrams: &[Vec<u8>]| {
        let count = datagrams.len() as u64;
        let watch = Watch::begin(nodes);
        for node in nodes {
            pour(&socket, node, datagrams);
        }
        watch.until("all is refused", |refused| {
            refused.iter().all(|refused| refused.gossip >= count)
        });
        for refused in watch.end(None) {
            assert_eq!(refused.gossip, count, "{refused:?}");
        }
    };
    // What was sent to a node before it knew the sender never was opened: it can come late, once.
    let most = everything.len() as u64;
    let watch = Watch::begin(&nodes);
    for node in &nodes {
        pour(&socket, node, &everything);
        pour(&socket, node, &everything);
    }
    // How many were let in is not known, so the end is when nothing more is counted.
    let (mut before, mut quiet) = (Vec::new(), 0);
    watch.until("all is seen", |refused| {
        let counts: Vec<u64> = refused.iter().map(|refused| refused.gossip).collect();
        let is_quiet = counts == before && counts.iter().all(|count| *count >= most);
        quiet = if is_quiet { quiet + 1 } else { 0 };
        before = counts;
        quiet > 50
    });
    watch.end(None);
    // At itself and at every other receiver.
    replay(&nodes, &everything);

    // A receiver that starts anew remembers nothing of what it has seen; the senders are in the same
    // life as before.
    let gone = nodes.pop().unwrap();
    gone.abort();
    drop(gone);
    nodes.push(start(2, Some(seed)));
    let boot = nodes[2].boot_id();
    full_mesh(&nodes, PATIENCE);
    eventually("everybody knows the new life", || {
        nodes.iter().all(|node| {
            let known = member(node, &id("n3"));
            known.boot == boot && known.incarnation == member(&nodes[2], &id("n3")).incarnation
        })
    });
    replay(&nodes, &everything);

    // After one left, what it said does not bring it back.
    assert!(nodes.pop().unwrap().shutdown(10 * SECOND).left);
    eventually("n3 has left", || {
        nodes
            .iter()
            .all(|node| member(node, &id("n3")).status == MemberStatus::Left)
    });
    let recorded: Vec<Vec<Vec<u8>>> = relays.iter().map(Relay::recorded_inbound).collect();
    let left: Vec<MemberInfo> = nodes.iter().map(|node| member(node, &id("n3"))).collect();
    for node in &nodes {
        let before = node.status().refused.gossip;
        let poured = recorded.concat();
        pour(&socket, node, &poured);
        // Some may not find room in the socket; that most were refused shows that they came.
        eventually("what was recorded has been refused", || {
            node.status().refused.gossip >= before + poured.len() as u64 / 2
        });
    }
    for (node, left) in nodes.iter().zip(&left) {
        assert_eq!(member(node, &id("n3")), *left);
    }
    shut_down(&nodes);
}

// ---- the thief

#[test]
fn a_thief_of_the_gossip_key_can_neither_move_nor_rename_nor_retire_nor_revive_anybody() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("thief");
    let nodes = lab.start(3);
    let mut insider = Insider::dial(&lab, "n9", &nodes[0]);
    let mut thief = insider.loot();
    let (socket, elsewhere) = (stranger(), stranger());
    let impostor = elsewhere.local_addr().unwrap();
    let watch = Watch::begin(&nodes);
    let (mut forged, mut unproven) = (0, 0);
    for node in &nodes {
        let mut datagrams = Vec::new();
        for victim in thief.names() {
            let (content, genuine, _) = thief.records[&victim].clone();
            let mut claims = Vec::new();
            for lie in lies_about(&content, impostor) {
                // As if under the victim's certificate, and under one that nobody has seen.
                claims.push(insider.forge(&lie));
                let certificate = [0x99; 32];
                claims.push(insider.forge(&Record { certificate, ..lie }));
            }
            // The real content with a signature of another record.
            let signature = insider.record(1).signed.signature.clone();
            claims.push(SignedRecord {
                signature,
                ..genuine.clone()
            });
            // In its own name, a node takes no datagram at all.
            for from in thief.names().iter().filter(|from| *from != node.id()) {
                for claim in &claims {
                    datagrams.push(thief.seal(from, node.id(), &tells(vec![claim.clone()])));
                }
                forged += claims.len().div_ceil(2) as u64;
                unproven += (claims.len() / 2) as u64;
                let forced = ForcedLeave {
                    node: victim.clone(),
                    incarnation: content.incarnation,
                    issuer: from.clone(),
                    signature: Vec::new(),
                };
                let signature = insider
                    .identity
                    .sign_statement(&forced.signed_bytes())
                    .unwrap();
                let forced = Statement::ForcedLeave(ForcedLeave {
                    signature,
                    ..forced
                });
                datagrams.push(thief.seal(from, node.id(), &says(vec![forced])));
                // A node that is alive at an incarnation that it never had.
                for incarnation in [u64::MAX, u64::MAX - 1, 1 << 62] {
                    let suspect = Statement::Suspect(accusation(&victim, incarnation, from));
                    let dead = Statement::Dead(accusation(&victim, incarnation, from));
                    datagrams.push(thief.seal(from, node.id(), &says(vec![suspect, dead])));
                }
            }
            let own = thief.seal(node.id(), node.id(), &says(Vec::new()));
            datagrams.push(own);
        }
        pour(&socket, node, &datagrams);
    }
    fn sum(refused: &[RefusedCounts], of: fn(&RefusedCounts) -> u64) -> u64 {
        refused.iter().map(of).sum()
    }
    // Implausible are, in two names, six statements to each node about itself, and the forced leaves
    // of the two others, which live. The one of itself it looks at more closely. Of the others the
    // statements are about a life that never was.
    let (statements, implausible, stale) = (3 * 2, 3 * 2 * (6 + 2), 3 * 2 * 2 * 6);
    watch.until("everything was read", |refused| {
        sum(refused, |r| r.records) >= forged
            && sum(refused, |r| r.unproven_records) >= unproven
            && sum(refused, |r| r.statements) >= statements
            && sum(refused, |r| r.implausible) >= implausible
            && sum(refused, |r| r.stale) >= stale
    });
    let refused = watch.end(Some(&id("n9")));
    assert_eq!(sum(&refused, |r| r.records), forged);
    assert_eq!(sum(&refused, |r| r.unproven_records), unproven);
    assert_eq!(sum(&refused, |r| r.statements), statements);
    assert_eq!(sum(&refused, |r| r.implausible), implausible);
    // Its own name, three times a node. What members really sent meanwhile may look old now.
    assert!(sum(&refused, |r| r.gossip) >= 3 * 3, "{refused:?}");
    assert_eq!(heard(&socket), 0, "the thief was answered where it is");
    assert_eq!(
        heard(&elsewhere),
        0,
        "somebody was looked for at the impostor's"
    );
    shut_down(&nodes);
}

#[test]
fn events_are_neither_forged_in_the_name_of_others_nor_played_again() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("events");
    let mut nodes = lab.start(3);
    let listeners: Vec<_> = nodes.iter().map(Node::events).collect();
    nodes[1].emit_event("genuine", "").unwrap();
    for events in &listeners {
        assert_eq!(names_heard(events, "genuine"), ["genuine"]);
    }

    // With the answer to a sync come the recent events, as they were signed.
    let mut insider = Insider::dial(&lab, "n9", &nodes[0]);
    insider.ask();
    insider.raw.until("the recent event", |raw| {
        let frames = raw.control_frames();
        frames
            .iter()
            .any(|frame| matches!(frame, Control::UserEvent { .. }))
    });
    let mut frames = insider.raw.control_frames().into_iter();
    let recorded = frames.find_map(|frame| match frame {
        Control::UserEvent { payload, signature } => Some(SignedEvent {
            payload: payload.into(),
            signature: signature.into(),
        }),
        _ => None,
    });
    let recorded = recorded.unwrap();
    let genuine = UserEvent::decode(&recorded.payload).unwrap();
    assert_eq!((&genuine.origin, genuine.number), (&id("n2"), 1));

    // Forged: with the insider's key, with the signature of another event, and of an earlier life.
    let sign = |event: &UserEvent, identity: &Identity| {
        let payload = event.encode();
        let signature = identity.sign_event(&payload).unwrap();
        SignedEvent {
            payload: payload.into(),
            signature: signature.into(),
        }
    };
    let next = UserEvent {
        number: 2,
        lamport: 2,
        name: "forged".to_owned(),
        ..genuine.clone()
    };
    let stolen = SignedEvent {
        payload: next.encode().into(),
        ..recorded.clone()
    };
    let statement = SignedEvent {
        payload: next.encode().into(),
        signature: insider
            .identity
            .sign_statement(&next.encode())
            .unwrap()
            .into(),
    };
    let earlier = UserEvent {
        boot: BootId([0xee; 16]),
        ..next.clone()
    };
    let forged = vec![
        sign(&next, &insider.identity),
        stolen,
        statement,
        SignedEvent {
            payload: vec![1, 2, 3].into(),
            ..recorded.clone()
        },
        sign(&earlier, &insider.identity),
        recorded.clone(),
    ];
    let watch = Watch::begin(&nodes);
    let copies = nodes[0].status().events.copies;
    for event in forged {
        insider.tell(as_frame(&event));
    }
    watch.until("all was judged", |refused| {
        let copies = nodes[0].status().events.copies - copies;
        (refused[0].events, refused[0].stale_events) == (4, 1) && copies > 0
    });
    watch.end(Some(&id("n9")));

    // A certificate holder that is a member speaks for itself, and moves the clocks of others by a step.
    let record = insider.record(1);
    let boot = record.record.boot;
    insider.tell(Control::Record(record.signed.clone()));
    let n9 = id("n9");
    eventually("n9 is a member", || {
        let members = nodes[0].members();
        members
            .iter()
            .any(|m| m.node == n9 && m.status == MemberStatus::Alive)
    });
    let far = UserEvent {
        origin: n9,
        boot,
        number: u64::MAX,
        lamport: u64::MAX,
        name: "far".to_owned(),
        ..genuine
    };
    let far = sign(&far, &insider.identity);
    insider.tell(as_frame(&far));
    assert_eq!(names_heard(&listeners[0], "far"), ["far"]);
    nodes[0].emit_event("near", "").unwrap();
    for events in &listeners {
        let seen = cluster::await_event(
            events,
            "near",
            |kind| matches!(kind, EventKind::UserEvent { name, .. } if name == "near"),
        );
        let lamport = seen.into_iter().find_map(|event| match event.kind {
            EventKind::UserEvent { name, lamport, .. } if name == "near" => Some(lamport),
            _ => None,
        });
        assert_eq!(lamport, Some((1 << 32) + 2));
    }

    // Whoever starts anew has heard nothing, and yet does not take what was recorded.
    nodes.pop().unwrap().abort();
    let seed = nodes[0].quic_addr().to_string();
    let builder = lab.builder("n3").seed(&seed);
    nodes.push(builder.start().unwrap());
    for node in &nodes {
        node.wait_ready(nodosum::Ready::Peers(2), PATIENCE).unwrap();
    }
    let events = nodes[2].events();
    let mut insider = Insider::dial(&lab, "n8", &nodes[2]);
    let before = nodes[2].status();
    insider.tell(as_frame(&recorded));
    eventually("the replay was judged", || {
        let now = nodes[2].status();
        now.events.copies + now.refused.stale_events
            > before.events.copies + before.refused.stale_events
    });
    nodes[1].emit_event("last", "").unwrap();
    assert_eq!(names_heard(&events, "last"), ["last"]);
    shut_down(&nodes);
}

#[test]
fn a_thousand_forged_deaths_a_second_kill_nobody_and_are_refuted() {
    const SECONDS: u64 = 5;
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("deaths");
    let nodes = lab.start(5);
    let mut thief = Insider::dial(&lab, "n9", &nodes[0]).loot();
    let victim = id("n5");
    let before = member(&nodes[4], &victim).incarnation;
    let socket = stranger();
    let watch = Watch::begin(&nodes);
    let started = Instant::now();
    let mut sent = 0;
    while sent < SECONDS * 1_000 {
        for node in &nodes {
            // At the incarnation that it has just now, or else nobody would listen.
            let incarnation = member(node, &victim).incarnation;
            let accusers = thief.names().into_iter();
            for from in accusers.filter(|from| from != node.id() && *from != victim) {
                let dead = Statement::Dead(accusation(&victim, incarnation, &from));
                let datagram = thief.seal(&from, node.id(), &says(vec![dead]));
                socket.send_to(&datagram, node.gossip_addr()).unwrap();
                sent += 1;
            }
        }
        let due = started + SECOND * u32::try_from(sent).unwrap() / 1_000;
        std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
    }
    watch.end(Some(&id("n9")));
    let after = member(&nodes[4], &victim).incarnation;
    assert!(after > before, "the victim never refuted");
    assert!(after < before + 2 * sent, "a refutation goes one above");
    shut_down(&nodes);
}

#[test]
fn probes_and_requests_for_probes_are_answered_to_the_recorded_address_only() {
    const REQUESTS: usize = 2_000;
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("reflector");
    let nodes = lab.start(3);
    let mut thief = Insider::dial(&lab, "n9", &nodes[0]).loot();
    let victim = stranger();
    let watch = Watch::begin(&nodes);
    let target = &nodes[0];
    let mut datagrams = Vec::new();
    for seq in 0..REQUESTS as u32 {
        let body = match seq % 3 {
            0 => Body::Ping {
                seq,
                target: target.id().clone(),
            },
            1 => Body::PingReq {
                seq,
                target: id("n3"),
            },
            _ => Body::PingReq {
                seq,
                target: id("nobody"),
            },
        };
        let message = Message {
            body,
            ..says(Vec::new())
        };
        datagrams.push(thief.seal(&id("n2"), target.id(), &message));
    }
    // As if the victim had asked: its address is the source.
    pour(&victim, target, &datagrams);
    // n2 gets the answers instead, and has asked for none of them.
    watch.until("n2 got the answers", |refused| {
        refused[1].stray >= REQUESTS as u64 / 3
    });
    watch.end(Some(&id("n9")));
    assert_eq!(heard(&victim), 0, "a stranger got an answer");
    shut_down(&nodes);
}

// ---- the insider

#[derive(Clone, PartialEq, prost::Message)]
struct KeyringWire {
    #[prost(message, repeated, tag = "1")]
    keys: Vec<KeyWire>,
    #[prost(uint32, tag = "2")]
    floor_generation: u32,
    #[prost(bytes = "vec", tag = "3")]
    floor_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyWire {
    #[prost(uint32, tag = "1")]
    generation: u32,
    #[prost(bytes = "vec", tag = "2")]
    secret: Vec<u8>,
}

fn keyring(generation: u32, floor: Option<u32>) -> Vec<u8> {
    KeyringWire {
        keys: vec![KeyWire {
            generation,
            secret: vec![0xee; 32],
        }],
        floor_generation: floor.unwrap_or(0),
        floor_id: floor.map_or_else(Vec::new, |_| vec![0xff; 8]),
    }
    .encode_to_vec()
}

#[test]
fn an_insider_lies_about_others_in_vain() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("insider");
    let nodes = lab.start(3);
    let mut insider = Insider::dial(&lab, "n9", &nodes[0]);
    let loot = insider.loot();
    let elsewhere = stranger();
    let watch = Watch::begin(&nodes);
    let frames_before = insider.raw.control_frames().len();

    // Records of others that it signed itself, told over the connection and in syncs.
    let mut forged = 0;
    let mut frames = Vec::new();
    for (content, genuine, certificate) in loot.records.values() {
        for lie in lies_about(content, elsewhere.local_addr().unwrap()) {
            let record = insider.forge(&lie);
            insider
                .raw
                .push(CONTROL, control(Control::Record(record.clone())));
            let (status, certificate) = (MemberStatus::Alive, certificate.clone());
            frames.push(SyncFrame::Entry {
                record,
                status,
                certificate,
                forced: None,
            });
            forged += 2;
        }
        // True records, and lies about what became of their nodes.
        for status in [
            MemberStatus::Dead,
            MemberStatus::Left,
            MemberStatus::Suspect,
        ] {
            let (record, certificate) = (genuine.clone(), certificate.clone());
            frames.push(SyncFrame::Entry {
                record,
                status,
                certificate,
                // Forced out by somebody who never signed that.
                forced: Some((id("n9"), vec![7; 70])),
            });
        }
    }
    insider.sync(frames, true);
    insider.ask();

    // Itself, as far ahead as numbers go.
    for incarnation in [u64::MAX, u64::MAX - 1, (1 << 62) + 1] {
        let record = insider.record(incarnation).signed.clone();
        insider.tell(Control::Record(record));
    }
    // Rings of the far future, of nothing but a floor, and of no sense.
    for ring in [keyring(u32::MAX, None), keyring(3, Some(2)), vec![0xff; 40]] {
        insider.tell(Control::Keyring(ring));
    }
    insider.ask();
    // A leave that others are to have acknowledged, and answers to nothing.
    insider.tell(Control::LeaveAck {
        incarnation: u64::MAX,
    });
    insider.tell(Control::ProbeAck { seq: 7 });
    insider.ask();

    watch.until("every lie was counted", |refused| {
        insider.raw.turn();
        let refused = refused[0];
        refused.records >= forged
            && refused.implausible >= 3
            && refused.keyrings >= 2
            && refused.stray >= 1
    });
    let refused = watch.end(Some(&insider.name));
    assert_eq!(refused[0].records, forged);
    assert_eq!(refused[0].implausible, 3);
    assert_eq!(
        heard(&elsewhere),
        0,
        "somebody was looked for at the impostor's"
    );
    assert!(insider.raw.control_frames().len() >= frames_before);

    // It becomes a member at last, and signs forced leaves of members that live.
    insider.tell(Control::Record(insider.record(1).signed.clone()));
    let record = Control::Record(insider.record(2).signed.clone());
    let mut others: Vec<Raw> = nodes[1..].iter().map(|n| insider.introduce(n)).collect();
    for raw in others.iter_mut().chain([&mut insider.raw]) {
        raw.push(CONTROL, control(record.clone()));
    }
    eventually("everybody knows the insider", || {
        insider.raw.turn();
        others.iter_mut().for_each(Raw::turn);
        nodes
            .iter()
            .all(|node| node.members().iter().any(|m| m.node == insider.name))
    });
    // Its ring of the near future was taken over, for it may rotate keys as any member may; so it has
    // to ask for what is in use now.
    let mut loot = insider.loot();
    let force = |insider: &Insider, at: &Node, victim: &NodeId| {
        let forced = ForcedLeave {
            node: victim.clone(),
            incarnation: member(at, victim).incarnation,
            issuer: insider.name.clone(),
            signature: Vec::new(),
        };
        let signature = insider
            .identity
            .sign_statement(&forced.signed_bytes())
            .unwrap();
        says(vec![Statement::ForcedLeave(ForcedLeave {
            signature,
            ..forced
        })])
    };
    let own = |node: &Node| member(node, node.id()).incarnation;
    let before: Vec<u64> = nodes.iter().map(own).collect();
    let watch = Watch::begin(&nodes);
    for _ in 0..20 {
        for node in &nodes {
            for victim in watch.honest.clone() {
                let message = force(&insider, node, &victim);
                let datagram = loot.seal(&insider.name, node.id(), &message);
                pour(&insider.gossip, node, &[datagram]);
            }
        }
        insider.raw.turn();
    }
    watch.end(Some(&insider.name));
    for (node, before) in nodes.iter().zip(before) {
        assert!(own(node) > before, "{} did not contradict", node.id());
    }

    // Of a node that is dead anyway it can say so, as any member can, and is named as who did.
    let events = nodes[0].events();
    let dead = id("n3");
    nodes[2].abort();
    let by_insider = format!("forced out by {}", insider.name);
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(
            Instant::now() < deadline,
            "n3 was not forced out: {:?} {:?}",
            nodes[0].members(),
            nodes[0].status().refused
        );
        insider.raw.turn();
        let is_out = |kind: &EventKind| match kind {
            EventKind::MemberLeft { node, reason } if *node == dead => {
                assert_eq!(*reason, by_insider);
                true
            }
            _ => false,
        };
        if std::iter::from_fn(|| events.try_recv()).any(|event| is_out(&event.kind)) {
            break;
        }
        if member(&nodes[0], &dead).status == MemberStatus::Dead {
            let message = force(&insider, &nodes[0], &dead);
            let datagram = loot.seal(&insider.name, nodes[0].id(), &message);
            pour(&insider.gossip, &nodes[0], &[datagram]);
        }
    }
    shut_down(&nodes);
}

#[test]
fn an_insider_that_rotates_without_end_is_slowed_down() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("rings");
    let nodes = lab.start(2);
    let mut insider = Insider::dial(&lab, "n9", &nodes[0]);
    insider.ask();
    let watch = Watch::begin(&nodes);
    // Each just above the one before, as an honest rotation is.
    let offers = 64;
    for generation in 2..2 + offers {
        insider.tell(Control::Keyring(keyring(generation, None)));
    }
    insider.ask();
    watch.until("most of them were refused", |refused| {
        insider.raw.turn();
        refused[0].keyrings >= u64::from(offers) / 2
    });
    for node in &nodes {
        let keys = node.keys().unwrap().keys;
        let highest = keys.iter().map(|key| key.generation).max();
        assert!(highest < Some(2 + offers / 2), "{keys:?}");
    }
    // Nobody but the insider confirmed anything, and gossip goes on.
    watch.end(Some(&insider.name));
    shut_down(&nodes);
}

#[test]
fn syncs_without_end_or_without_a_reader_are_cut_off() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = Lab::new("syncs");
    let nodes = lab.start(2);
    let watch = Watch::begin(&nodes);
    let mut endless = Insider::dial(&lab, "n9", &nodes[0]);
    let loot = endless.loot();
    let (_, record, certificate) = loot.records[&id("n2")].clone();
    let entry = SyncFrame::Entry {
        record,
        status: MemberStatus::Alive,
        certificate,
        forced: None,
    };
    for _ in 0..8 {
        endless.sync(vec![entry.clone()], false);
    }
    assert_eq!(endless.raw.end(), End::Code(OVERLOADED));

    // Asks again and again, and reads no answer: its windows are full and stay so.
    let mut deaf = Insider::dial(&lab, "n9", &nodes[0]);
    deaf.loot();
    deaf.raw.reads = false;
    let deadline = Instant::now() + PATIENCE;
    while deaf.raw.quic.peer_error().is_none() {
        assert!(Instant::now() < deadline, "it may ask for ever");
        if deaf.raw.quic.peer_streams_left_bidi() > 0 {
            deaf.sync(Vec::new(), true);
        }
        deaf.raw.turn();
    }
    assert_eq!(deaf.raw.end(), End::Code(OVERLOADED));

    let refused = watch.end(Some(&id("n9")));
    assert!(refused[0].syncs >= 2, "{refused:?}");
    shut_down(&nodes);
}
