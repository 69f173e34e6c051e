//! nodosum by its public interface.
//!
//! A node has one connection to a peer, so many connections are a cluster: 8 and 8 nodes have 64
//! connections between the client and the server, and others within either, which stay idle. The slow
//! profile of membership keeps the share of its probes small.
//!
//! Requests are answered where they are read. One that is outstanding alone is a blocking call, in a
//! fan-out from a thread for each connection; of many on one connection, and on shared workers, each is
//! asked by the reply before it. Bulk is a stream. A handshake is the whole life of a node: it starts,
//! joins, asks, and is shut down, the last of it by a thread beside that no caller waits for, as nobody
//! waits for the end of a QUIC connection that was closed. The nodes join many servers in turn, so that
//! those on their way out and in never meet and connect.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{self, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use nodosum::{
    App, Identity, Node, NodeId, Profile, Ready,
    ca::Authority,
    transport::{Config, Offload},
};

use crate::{
    blocking::{Lanes, dial_all},
    frames::payload,
    job::{CHUNK_BYTES, Job, OUTSTANDING, PATIENCE, STREAM_WINDOW_BYTES, Work},
    measure::{self, Control, Meter, Outcome, Tally, Window, tell},
};

const APP: &str = "bench";
const CERTIFICATE: &str = "nodosum-ca.pem";
const KEY: &str = "nodosum-ca.key";

/// How often an idle connection shows that it lives: as often as the others'. Membership has the slow
/// profile for the same reason.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long the certificates are valid: longer than any run.
const VALID_FOR: Duration = Duration::from_secs(86_400);

/// How long a cluster of 64 nodes may take to connect each with each.
const FORM_WITHIN: Duration = Duration::from_secs(90);

/// How long connections are left alone before their memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

/// Servers that new nodes join in turn. Each node has left its own before it is that one's turn again.
const SERVERS: usize = 256;

/// Nodes that may wait for their shutdown; then who makes them waits too. Fewer than the servers.
const LEAVING: usize = SERVERS / 2;

/// Nodes that are being shut down at the same time. Each takes a tenth of a second, in which it does
/// nothing but repeat its farewell: enough of them that nobody waits for them.
const REAPERS: usize = SERVERS / 4;

/// How long a shutdown may take that nobody waits for.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// Certificates made before the handshakes begin: more than there will be handshakes in a second,
/// for each second of a run.
const NODES_PER_SECOND: f64 = 1_000.0;

pub(crate) fn make_authority(dir: &Path) -> io::Result<()> {
    let cluster = "peers".parse().map_err(io::Error::other)?;
    let authority = Authority::new(&cluster, VALID_FOR).map_err(io::Error::other)?;
    fs::write(dir.join(CERTIFICATE), authority.certificate_pem())?;
    fs::write(dir.join(KEY), authority.key_pem())
}

struct Nodes {
    authority: Authority,
    config: Config,
}

impl Nodes {
    fn new(job: &Job) -> io::Result<Self> {
        let read = |name| fs::read_to_string(job.dir.join(name));
        let authority =
            Authority::from_pem(&read(CERTIFICATE)?, &read(KEY)?).map_err(io::Error::other)?;
        let stream_window = u64::from(STREAM_WINDOW_BYTES);
        let defaults = Config::default();
        let config = Config {
            max_datagram_bytes: job.work().datagram_bytes(),
            stream_window,
            // As many streams as by default have room in it: a connection that has less is refused.
            connection_window: defaults.connection_window / defaults.stream_window * stream_window,
            spin: job.work().spin().unwrap_or_default(),
            ping_interval: KEEP_ALIVE,
            idle_timeout: 4 * KEEP_ALIVE,
            workers: usize::from(matches!(job.work(), Work::FanOut { shared: true, .. })),
            // As the others have it.
            post_quantum: false,
            ..defaults
        };
        Ok(Self { authority, config })
    }

    fn identity(&self, name: &NodeId) -> io::Result<Identity> {
        self.authority
            .identity(name, VALID_FOR)
            .map_err(io::Error::other)
    }

    fn start(&self, identity: Identity, seed: Option<SocketAddr>) -> io::Result<Node> {
        Node::builder(identity)
            .profile(Profile::Wan)
            .transport(self.config.clone())
            .seeds(seed.map(|addr| addr.to_string()))
            .start()
            .map_err(io::Error::other)
    }
}

/// Whether the nodes of either process are one cluster with each other.
fn is_cluster(job: &Job) -> bool {
    matches!(job.work(), Work::FanOut { .. })
}

/// Nodes of either process of one cluster in which so many connections go between the two.
fn side(connections: usize) -> usize {
    let mut side = 1;
    while side * side < connections {
        side += 1;
    }
    side
}

fn name(side: char, number: usize) -> io::Result<NodeId> {
    format!("{side}{number}").parse().map_err(io::Error::other)
}

// ---- the server ------------------------------------------------------------------------------

pub(crate) fn serve(job: &Job) -> io::Result<()> {
    let count = match job.work() {
        Work::FanOut { connections, .. } | Work::Idle { connections } => side(connections),
        Work::Handshakes { .. } => SERVERS,
        _ => 1,
    };
    let nodes = Nodes::new(job)?;
    let received = Arc::new(AtomicU64::new(0));
    let mut servers = Vec::new();
    for number in 0..count {
        let first = servers
            .first()
            .map(|(node, _): &(Node, App)| node.quic_addr());
        let seed = first.filter(|_| is_cluster(job));
        let node = nodes.start(nodes.identity(&name('s', number)?)?, seed)?;
        let app = node.register(APP).map_err(io::Error::other)?;
        app.on_request_inline(|request| Ok(request.payload.clone()));
        if let Work::Bulk { .. } = job.work() {
            take_bulk(&app, &received);
        }
        servers.push((node, app));
    }
    let addrs: Vec<SocketAddr> = servers.iter().map(|(node, _)| node.quic_addr()).collect();
    measure::serve(&addrs, |question| match question {
        "received" => received.load(Relaxed).to_string(),
        _ => "unknown".to_owned(),
    })?;
    // The process ends now, and the nodes with it: to shut a thousand down politely is not what is
    // measured.
    servers.into_iter().for_each(std::mem::forget);
    Ok(())
}

fn take_bulk(app: &App, received: &Arc<AtomicU64>) {
    let (app, received) = (app.clone(), Arc::clone(received));
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        for mut stream in app.streams() {
            // How a stream fails, its client tells: it never gets all confirmed.
            while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                received.fetch_add(bytes as u64, Relaxed);
            }
        }
    });
}

// ---- the client ------------------------------------------------------------------------------

/// One connection.
struct Link {
    /// Kept, because a node ends with its last handle.
    node: Node,
    app: App,
    peer: NodeId,
}

impl Link {
    fn new(nodes: &Nodes, number: usize, seed: Option<SocketAddr>) -> io::Result<Self> {
        let node = nodes.start(nodes.identity(&name('c', number)?)?, seed)?;
        let app = node.register(APP).map_err(io::Error::other)?;
        let peer = name('s', number)?;
        Ok(Self { node, app, peer })
    }

    fn wait(&self) -> io::Result<()> {
        self.node
            .wait_ready(Ready::Peers(1), PATIENCE)
            .map_err(io::Error::other)
    }

    fn ask(&self, text: &[u8]) -> io::Result<()> {
        let reply = self
            .app
            .request(&self.peer, text, PATIENCE)
            .map_err(io::Error::other)?;
        if reply == text {
            Ok(())
        } else {
            Err(io::Error::other("the reply is not what was asked"))
        }
    }
}

pub(crate) fn client(job: &Job, mut control: Control) -> io::Result<Outcome> {
    let addrs = control.addrs()?;
    let nodes = Nodes::new(job)?;
    let outcome = match job.work() {
        Work::Bulk { .. } => bulk(&linked(nodes, &addrs)?[0], job, control)?,
        Work::FanOut {
            connections,
            shared,
        } => {
            let links = meshed(nodes, &addrs, connections)?;
            if shared {
                let chains = (0..links.len()).collect();
                chained(links, chains, job, control)?
            } else {
                lanes(links, job, control)?
            }
        }
        Work::PingPong { .. } => lanes(linked(nodes, &addrs)?, job, control)?,
        Work::Pipelined { .. } => {
            let links = linked(nodes, &addrs)?;
            chained(links, vec![0; OUTSTANDING], job, control)?
        }
        Work::Idle { .. } => idle(&nodes, &addrs, job, control)?,
        Work::Handshakes { at_once } => handshakes(nodes, addrs, job, control, at_once)?,
    };
    Ok(outcome.note(
        "cipher as BoringSSL chooses between two ends with AES in hardware: \
         TLS_AES_128_GCM_SHA256; X25519",
    ))
}

fn linked(nodes: Nodes, addrs: &[SocketAddr]) -> io::Result<Vec<Link>> {
    let (nodes, seeds) = (Arc::new(nodes), addrs.to_vec());
    let links = dial_all(addrs.len(), move |number| {
        let link = Link::new(&nodes, number, Some(seeds[number]))?;
        link.wait()?;
        Ok(link)
    })?;
    Ok(links)
}

/// As many nodes as the server has, all in one cluster, and the connections between the two processes.
fn meshed(nodes: Nodes, addrs: &[SocketAddr], connections: usize) -> io::Result<Vec<Link>> {
    let (count, seed) = (addrs.len(), addrs[0]);
    let peers = 2 * count - 1;
    let nodes = Arc::new(nodes);
    let clients = dial_all(count, move |number| Link::new(&nodes, number, Some(seed)))?;
    let mut links = Vec::new();
    for Link { node, app, .. } in clients {
        let ready = node.wait_ready(Ready::Peers(peers), FORM_WITHIN);
        ready.map_err(io::Error::other)?;
        for number in 0..count {
            links.push(Link {
                node: node.clone(),
                app: app.clone(),
                peer: name('s', number)?,
            });
        }
    }
    links.truncate(connections);
    Ok(links)
}

fn bulk(link: &Link, job: &Job, mut control: Control) -> io::Result<Outcome> {
    let stream = link.app.open_stream(&link.peer, PATIENCE);
    let mut stream = stream.map_err(io::Error::other)?;
    stream.set_write_timeout(Some(PATIENCE));
    let chunk = payload(CHUNK_BYTES);
    let mut sent = 0_u64;
    let until = Instant::now() + job.warm_up();
    while Instant::now() < until {
        stream.write_all(&chunk)?;
        sent += CHUNK_BYTES as u64;
    }
    tell("measuring");
    let (begin, before) = (control.snapshot()?, sent);
    let from = Instant::now();
    while from.elapsed() < job.measured() {
        stream.write_all(&chunk)?;
        sent += CHUNK_BYTES as u64;
    }
    stream.finish();
    let deadline = Instant::now() + PATIENCE;
    while control.ask("received")?.parse() != Ok(sent) {
        if Instant::now() > deadline {
            return Err(io::Error::other("the server did not receive what was sent"));
        }
    }
    let seconds = from.elapsed().as_secs_f64();
    let end = control.snapshot()?;
    let window = Window {
        begin,
        end,
        seconds,
    };
    Ok(Outcome::of_bytes(&window, sent - before, 0.0))
}

/// A thread for each connection, which asks and waits.
fn lanes(links: Vec<Link>, job: &Job, control: Control) -> io::Result<Outcome> {
    let mut lanes = Lanes::new(links.len());
    let text = payload(job.work().payload_bytes());
    for link in links {
        let text = text.clone();
        lanes.add(move |meter, tally| ask_on(&link, &text, meter, tally))?;
    }
    lanes.run(job, control)
}

fn ask_on(link: &Link, text: &[u8], meter: &Meter, tally: &mut Tally) -> io::Result<()> {
    while !meter.is_over() {
        let from = Instant::now();
        link.ask(text)?;
        if meter.counts() {
            tally.record(from.elapsed());
        }
    }
    Ok(())
}

/// Each reply asks again, on the thread that received it. `chains`: which connection each goes over.
fn chained(
    links: Vec<Link>,
    chains: Vec<usize>,
    job: &Job,
    control: Control,
) -> io::Result<Outcome> {
    let payload_bytes = job.work().payload_bytes();
    let mut lanes = Lanes::new(1);
    lanes.add(move |meter, tally| {
        let (ended, end) = mpsc::sync_channel(chains.len());
        let chain = Arc::new(Chain {
            text: payload(payload_bytes),
            meter: meter.clone(),
            tally: Mutex::new(Tally::new(1)),
            ended,
            links,
        });
        for link in &chains {
            Chain::ask(&chain, *link);
        }
        for _ in chains {
            end.recv().map_err(io::Error::other)??;
        }
        let counted = chain.tally.lock().map_err(|_| io::Error::other("poisoned"));
        tally.add(&*counted?);
        Ok(())
    })?;
    lanes.run(job, control)
}

struct Chain {
    links: Vec<Link>,
    text: Vec<u8>,
    meter: Meter,
    tally: Mutex<Tally>,
    /// Told once for each request that is not followed by another.
    ended: SyncSender<io::Result<()>>,
}

impl Chain {
    fn ask(chain: &Arc<Self>, link: usize) {
        let (from, next) = (Instant::now(), Arc::clone(chain));
        let Link { app, peer, .. } = &chain.links[link];
        let asked = app.request_then(peer, &chain.text, PATIENCE, move |reply| {
            let reply = reply.map_err(io::Error::other);
            match reply.and_then(|reply| next.take(&reply, from)) {
                Ok(()) if !next.meter.is_over() => Self::ask(&next, link),
                last => next.end(last),
            }
        });
        if let Err(error) = asked {
            chain.end(Err(io::Error::other(error)));
        }
    }

    fn take(&self, reply: &[u8], from: Instant) -> io::Result<()> {
        if reply != self.text {
            return Err(io::Error::other("the reply is not what was asked"));
        }
        if self.meter.counts() {
            let tally = self.tally.lock();
            tally
                .map_err(|_| io::Error::other("poisoned"))?
                .record(from.elapsed());
        }
        Ok(())
    }

    fn end(&self, last: io::Result<()>) {
        // The receiver is there until it has heard of all.
        let _ = self.ended.send(last);
    }
}

/// Nodes that run and know nobody, then the same nodes connected.
/// As many nodes here as there, all alone at first, become one cluster.
fn idle(
    nodes: &Nodes,
    addrs: &[SocketAddr],
    job: &Job,
    mut control: Control,
) -> io::Result<Outcome> {
    let count = addrs.len();
    let links: Vec<Link> = (0..count)
        .map(|number| Link::new(nodes, number, None))
        .collect::<io::Result<_>>()?;
    thread::sleep(SETTLE);
    let before = control.snapshot()?;
    let links = Arc::new(links);
    let (joining, seeds) = (Arc::clone(&links), addrs.to_vec());
    dial_all(count, move |number| {
        // Everybody's peer there, and one that all have in common.
        let seeds = [seeds[number].to_string(), seeds[0].to_string()];
        let node = &joining[number].node;
        node.join(&seeds, PATIENCE).map_err(io::Error::other)
    })?;
    let peers = 2 * count - 1;
    for link in links.iter() {
        let ready = link.node.wait_ready(Ready::Peers(peers), FORM_WITHIN);
        ready.map_err(io::Error::other)?;
    }
    thread::sleep(SETTLE);
    tell("measuring");
    let begin = control.snapshot()?;
    thread::sleep(job.measured());
    let end = control.snapshot()?;
    let seconds = (end.at - begin.at).as_secs_f64();
    let window = Window {
        begin,
        end,
        seconds,
    };
    // As in the server: the process ends.
    std::mem::forget(links);
    // As many ends in either process as connections in all.
    Ok(Outcome::of_idle(&before, &window, count * peers)
        .note("what connecting adds to nodes that run already, membership of the peers included"))
}

/// Threads that shut nodes down behind the back of who made them. They end with the process.
fn start_reapers() -> SyncSender<Node> {
    let (nodes, leaving) = mpsc::sync_channel::<Node>(LEAVING);
    let leaving = Arc::new(Mutex::new(leaving));
    for _ in 0..REAPERS {
        let leaving = Arc::clone(&leaving);
        thread::spawn(move || {
            loop {
                let next = leaving.lock().map(|nodes| nodes.recv());
                let Ok(Ok(node)) = next else {
                    return;
                };
                node.shutdown(LEAVE_WITHIN);
            }
        });
    }
    nodes
}

/// Identities for each of the lanes, made before anything counts.
fn identities(job: &Job, at_once: usize) -> io::Result<Vec<Vec<Identity>>> {
    let seconds = (job.warm_up() + job.measured()).as_secs_f64();
    let each = (seconds * NODES_PER_SECOND) as usize / at_once;
    let nodes = Arc::new(Nodes::new(job)?);
    dial_all(at_once, move |part| {
        (0..each)
            .map(|number| nodes.identity(&name('c', part * each + number)?))
            .collect()
    })
}

fn handshakes(
    nodes: Nodes,
    addrs: Vec<SocketAddr>,
    job: &Job,
    control: Control,
    at_once: usize,
) -> io::Result<Outcome> {
    let (nodes, addrs) = (Arc::new(nodes), Arc::new(addrs));
    let turns = Arc::new(AtomicUsize::new(0));
    let leaving = start_reapers();
    let mut lanes = Lanes::new(at_once);
    for identities in identities(job, at_once)? {
        let (nodes, addrs) = (Arc::clone(&nodes), Arc::clone(&addrs));
        let (turns, leaving) = (Arc::clone(&turns), leaving.clone());
        lanes.add(move |meter, tally| {
            let text = payload(64);
            let mut identities = identities.into_iter();
            while !meter.is_over() {
                let identity = identities
                    .next()
                    .ok_or_else(|| io::Error::other("more handshakes than certificates"))?;
                let turn = turns.fetch_add(1, Relaxed) % addrs.len();
                let from = Instant::now();
                let node = nodes.start(identity, Some(addrs[turn]))?;
                let app = node.register(APP).map_err(io::Error::other)?;
                let peer = name('s', turn)?;
                let link = Link { node, app, peer };
                link.wait()?;
                link.ask(&text)?;
                leaving.send(link.node).map_err(io::Error::other)?;
                if meter.counts() {
                    tally.record(from.elapsed());
                }
            }
            Ok(())
        })?;
    }
    let outcome = lanes.run(job, control)?;
    Ok(outcome.note("a whole node for each: it starts, joins, asks once, leaves"))
}

/// What of the system's help nodosum asks for: all, less what `NODOSUM_WITHOUT` names.
pub(crate) fn offloads() -> String {
    let Offload {
        gso,
        gro,
        connected_accept,
        ..
    } = Offload::default();
    format!(
        " (nodosum asks for GSO {gso}, GRO {gro}, sockets of their own for accepted connections \
         {connected_accept})"
    )
}
