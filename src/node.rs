//! A running node: start, what it knows, commands, the end.

#![expect(
    clippy::disallowed_methods,
    reason = "callers wait against the real clock"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};

#[cfg(feature = "http")]
use crate::http;
use crate::{
    app::{App, Workers},
    cluster::Cluster,
    error::{
        CommandError, EventError, IdentityError, NotReady, RegisterError, RenewError, RequestError,
        StartError,
    },
    explanation::Explanation,
    figures::Figures,
    inbox::{self, Registry},
    mesh,
    node_id::{BootId, ClusterName, KeyId, NodeId},
    query::{self, Answers, Queries, Query, Slot},
    reactor::{self, Command, Counters, Parts, TagChange},
    record::{MAX_TAG_BYTES, PROTOCOL_VERSIONS, Record, tag_bytes},
    resolver,
    rtts::{self, Rtts},
    snapshot::{Ready, Snapshot, Stage},
    state_dir::{StateDir, Writer},
    stats::{ClosedConnection, ConnectionInfo, Keys, MemberInfo, PeerInfo, Status},
    subscribers::{Events, Subscribers},
    swim, thread,
    transport::{self, Context, Endpoint, millis, quic_config, timekeeper, udp},
    trust::{self, Identity},
    view::View,
    waker::{Waker, deadline_after},
};

/// Commands that may wait for the reactor; a caller waits for its answer, so that each waiting
/// command is a waiting thread.
const COMMAND_CAPACITY: usize = 64;

/// Notices that may wait for the reactor; workers keep what does not fit and read less.
const NOTICE_CAPACITY: usize = 4_096;

/// The UDP payload of a gossip datagram, which every path carries.
const MAX_GOSSIP_DATAGRAM_BYTES: usize = 1_200;

/// How long a leave inside a shutdown may take at most.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the reactor may take to accept an event or tags; it needs microseconds.
const EMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the drop of the last handle may take.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// The timers of membership, for a kind of network. Values: memberlist's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    /// One data centre: a probe each second, half a second for its answer.
    #[default]
    Lan,
    /// Across continents: a probe each 5 s, 3 s for its answer.
    Wan,
    /// One machine: a probe each second, 200 ms for its answer, shorter suspicion.
    Local,
}

/// How a node is to be started. Each method gives the builder back.
#[derive(Debug)]
#[must_use = "a builder does nothing until `start`"]
pub struct Builder {
    identity: Identity,
    bind: SocketAddr,
    gossip_bind: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    gossip_advertise: Option<SocketAddr>,
    seeds: Vec<String>,
    tags: BTreeMap<String, String>,
    profile: Profile,
    state_dir: Option<PathBuf>,
    remember_for: Duration,
    max_connections: usize,
    expected: (Option<String>, Option<String>),
    transport: transport::Config,
    subscribers: Arc<Subscribers>,
    #[cfg(feature = "http")]
    http: Option<SocketAddr>,
    #[cfg(feature = "http")]
    http_names: Vec<String>,
    #[cfg(test)]
    panic_at_start: bool,
}

impl Builder {
    /// The QUIC address, which others use as a seed. Port 0 picks one. Default: `127.0.0.1:0`.
    ///
    /// Other hosts must be able to reach it: an unspecified address such as `0.0.0.0` also needs
    /// [`advertise`](Self::advertise).
    pub fn bind(mut self, addr: SocketAddr) -> Self {
        self.bind = addr;
        self
    }

    /// The address for gossip datagrams. Default: the port after [`bind`](Self::bind)'s, or 0 if
    /// that is 0.
    pub fn gossip_bind(mut self, addr: SocketAddr) -> Self {
        self.gossip_bind = Some(addr);
        self
    }

    /// Where others reach this node's QUIC port, if that is not where it is bound (NAT, containers).
    /// Port 0 stands for the bound port.
    pub fn advertise(mut self, addr: SocketAddr) -> Self {
        self.advertise = Some(addr);
        self
    }

    /// Where others reach this node's gossip port. Default: [`advertise`](Self::advertise)'s IP and
    /// the bound gossip port.
    pub fn gossip_advertise(mut self, addr: SocketAddr) -> Self {
        self.gossip_advertise = Some(addr);
        self
    }

    /// Adds the QUIC address of a node of the cluster, `HOST:PORT`. A name is looked up again at
    /// every try, and all its addresses, IPv4 and IPv6, are tried. With the feature `srv`, also the
    /// name of SRV records such as `_nodosum._udp.example.org`, which tell hosts and ports.
    pub fn seed(mut self, seed: impl Into<String>) -> Self {
        self.seeds.push(seed.into());
        self
    }

    /// Adds several seeds.
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.seeds.extend(seeds.into_iter().map(Into::into));
        self
    }

    /// Adds a label that every member sees. All labels together take at most 512 bytes, counting
    /// six for each.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(key.into(), value.into());
        self
    }

    /// The timers of membership. Default: [`Profile::Lan`].
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Keeps in this directory what outlives a restart: this node's incarnation and the members it
    /// knew. Then a restarted node finds the others without a seed. It is made if it is not there, and
    /// belongs to one node. Default: nothing is kept.
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// For how long members that are gone without having left are remembered and dialled now and
    /// then, counted while this node runs. Longer than any outage or partition that shall heal by
    /// itself. Default: a week.
    pub fn remember_for(mut self, duration: Duration) -> Self {
        self.remember_for = duration;
        self
    }

    /// The most peers that may be connected at the same time, each of which takes a thread and up to
    /// two descriptors. When there are so many, no other member is dialled, and one that dials is
    /// closed as overloaded, tries again with backoff, and is a member without a connection meanwhile.
    /// At least 1. Default: 4,096.
    pub fn max_connections(mut self, count: usize) -> Self {
        self.max_connections = count.max(1);
        self
    }

    /// Refuses to start unless the certificate is for this node.
    pub fn expect_node(mut self, name: impl Into<String>) -> Self {
        self.expected.0 = Some(name.into());
        self
    }

    /// Refuses to start unless the certificate is for this cluster.
    pub fn expect_cluster(mut self, name: impl Into<String>) -> Self {
        self.expected.1 = Some(name.into());
        self
    }

    /// Serves the page `/debug/quic`, `/metrics` and health checks over plain HTTP at this address; port 0
    /// picks one. Nobody has to prove who they are to read there, so it belongs on a loopback address
    /// or into a network for operators. Default: off.
    ///
    /// While it is on, requests of applications are timed.
    #[cfg(feature = "http")]
    pub fn http(mut self, addr: SocketAddr) -> Self {
        self.http = Some(addr);
        self
    }

    /// Adds a name under which clients may address the HTTP server. Without, it answers only requests
    /// whose `Host` is its address, a loopback address or `localhost`, so that no web site can read it
    /// through a visitor's browser.
    #[cfg(feature = "http")]
    pub fn http_name(mut self, name: impl Into<String>) -> Self {
        self.http_names.push(name.into());
        self
    }

    /// Subscribes to everything from the start on. A node may be ready before
    /// [`start`](Self::start) has returned, and [`Node::events`] then comes too late to hear of it.
    /// If the node does not start, the channel ends.
    pub fn events(&self) -> Events {
        Events::new(self.subscribers.subscribe())
    }

    /// How many threads drive all connections together, up to
    /// [`MAX_WORKERS`](transport::MAX_WORKERS). Default 0: each connection has a thread of its own, which
    /// is best for up to some eight busy peers. For dozens of busy peers, or hundreds of idle ones, one,
    /// or one for each processor, is faster and takes less memory. A handler that runs inline then holds
    /// up all connections of its thread.
    pub fn workers(mut self, workers: usize) -> Self {
        self.transport.workers = workers;
        self
    }

    /// Whether two nodes that both want it agree on their keys by X25519MLKEM768, so that nobody can
    /// record a connection now and read it with a quantum computer later (default), or by X25519 alone,
    /// for which a handshake takes less computing. Nodes that differ in this reach each other, by X25519.
    pub fn post_quantum(mut self, wanted: bool) -> Self {
        self.transport.post_quantum = wanted;
        self
    }

    /// Settings of the transport, for tests of their own limits.
    #[doc(hidden)]
    pub fn transport(mut self, config: transport::Config) -> Self {
        self.transport = config;
        self
    }

    #[cfg(test)]
    fn panic_at_start(mut self) -> Self {
        self.panic_at_start = true;
        self
    }

    /// Starts the node: checks the identity, binds both sockets, starts the reactor. Joining goes on
    /// in the background, so that an unreachable seed does not delay this;
    /// [`Node::wait_ready`] waits for it.
    ///
    /// # Errors
    ///
    /// [`StartError`] for anything that would make the node useless. Nothing is left running then.
    pub fn start(self) -> Result<Node, StartError> {
        let started_at = Instant::now();
        self.check()?;
        log::debug!(target: "node", node:% = self.identity.node(); "start: identity checked");
        let state = self.state_dir.as_deref().map(StateDir::open).transpose()?;
        let image = state
            .as_ref()
            .map(|dir| dir.load(self.identity.cluster(), self.identity.node()))
            .transpose()?
            .flatten();
        let offload = self.transport.offload.granted();
        let listener = udp::listen(self.bind, offload).map_err(bind_error("QUIC", self.bind))?;
        let gossip_bind = self.gossip_bind.unwrap_or_else(|| {
            // The port after the requested one; the next one after 65,535 cannot be.
            let port = match self.bind.port() {
                0 | u16::MAX => 0,
                port => port + 1,
            };
            SocketAddr::new(self.bind.ip(), port)
        });
        let gossip = udp::gossip(gossip_bind).map_err(bind_error("gossip", gossip_bind))?;
        let gossip_bound = gossip.local_addr()?;
        #[cfg(feature = "http")]
        let http = match self.http {
            Some(addr) => Some(http::bind(addr).map_err(bind_error("HTTP", addr))?),
            None => None,
        };
        #[cfg(feature = "http")]
        let (http_addr, http_threads) = (
            http.as_ref().map(|bound| bound.addr),
            http.as_ref().map_or(0, |_| http::THREADS),
        );
        #[cfg(not(feature = "http"))]
        let (http_addr, http_threads) = (None, 0);
        let quic_addr = advertised(self.advertise, None, listener.addr);
        let gossip_addr = advertised(self.gossip_advertise, self.advertise, gossip_bound);
        for addr in [quic_addr, gossip_addr] {
            if addr.ip().is_unspecified() {
                let why =
                    format!("others cannot reach {addr}; bind to an address or advertise one");
                return Err(StartError::Config(why));
            }
        }
        log::debug!(target: "node", quic:% = listener.addr, gossip:% = gossip_bound;
            "start: sockets bound");

        let random = SystemRandom::new();
        let boot = BootId(random_bytes(&random)?);
        let record = Record {
            cluster: self.identity.cluster().clone(),
            node: self.identity.node().clone(),
            // Above the life before at once. What was not saved in time the others tell.
            incarnation: image.as_ref().map_or(1, |image| image.incarnation + 1),
            boot,
            quic_addr,
            gossip_addr,
            tags: self.tags,
            left: false,
            protocol: PROTOCOL_VERSIONS,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            certificate: self.identity.fingerprint(),
        };
        let signed = self
            .identity
            .sign(record)
            .map_err(|e| StartError::Tls(e.to_string()))?;

        let (notice_sender, notices) = crossbeam_channel::bounded(NOTICE_CAPACITY);
        let (commands, command_receiver) = crossbeam_channel::bounded(COMMAND_CAPACITY);
        let waker = Arc::new(Waker::new()?);
        let registry = Arc::new(Registry::default());
        if http_addr.is_some() {
            registry.measure();
        }
        let quic = quic_config(&self.identity, &self.transport).map_err(StartError::Tls)?;
        let timekeeper = timekeeper::Running::shared()?;
        let context = Arc::new(Context {
            node: self.identity.node().clone(),
            cluster: self.identity.cluster().clone(),
            boot,
            quic: Mutex::new(quic),
            registry: Arc::clone(&registry),
            notices: notice_sender,
            reactor: Arc::clone(&waker),
            started_at,
            reactor_turned_ms: AtomicU64::new(0),
            keyring_digest: Mutex::new(trust::Keyring::new().digest().to_vec()),
            ping_interval_ms: AtomicU64::new(millis(self.transport.ping_interval)),
            counters: transport::Counters::default(),
            offload,
            timekeeper: timekeeper.keeper(),
            config: self.transport,
        });
        log::debug!(target: "node", "start: TLS ready");
        let reset_key = self.identity.derive_key("stateless reset");
        let endpoint = Endpoint::new(Arc::clone(&context), listener, &reset_key, timekeeper)?;

        let overhead = trust::overhead(self.identity.node().as_str().len());
        let swim_config = swim::Config {
            max_payload_bytes: MAX_GOSSIP_DATAGRAM_BYTES - overhead,
            ..match self.profile {
                Profile::Lan => swim::Config::lan(),
                Profile::Wan => swim::Config::wan(),
                Profile::Local => swim::Config::local(),
            }
        };
        let seed = u64::from_ne_bytes(random_bytes(&random)?);
        let now = Instant::now();
        let snapshot = Arc::new(Snapshot::new());
        let subscribers = self.subscribers;
        let counters = Arc::new(Counters::default());
        let workers: Arc<Workers> = Arc::default();
        let queries = Arc::new(Queries::new(
            self.identity.node().clone(),
            boot,
            Arc::clone(&registry),
            Arc::clone(&snapshot),
            Arc::clone(&workers),
        ));
        let rtts = Arc::new(Rtts::serve(&registry, &snapshot, &workers));
        #[cfg(feature = "http")]
        let events = Events::new(subscribers.subscribe());
        let (stuck_sender, stuck) = crossbeam_channel::bounded(1);
        let mesh_config = mesh::Config {
            remember_for: self.remember_for,
            max_connections: self.max_connections,
            ..mesh::Config::default()
        };
        let writer = state.map(Writer::start).transpose()?;
        let parts = Parts {
            cluster: Cluster::new(swim_config, mesh_config, signed, seed, now),
            image,
            writer: writer.clone(),
            identity: self.identity.clone(),
            context: Arc::clone(&context),
            endpoint,
            gossip,
            seeds: self.seeds,
            notices,
            commands: command_receiver,
            snapshot: Arc::clone(&snapshot),
            subscribers: Arc::clone(&subscribers),
            queries: Arc::clone(&queries),
            counters: Arc::clone(&counters),
            stuck: stuck_sender,
            #[cfg(test)]
            panic_at_start: self.panic_at_start,
        };
        let reactor =
            thread::spawn("nd-reactor", move || reactor::run(parts)).inspect_err(|_| {
                if let Some(writer) = &writer {
                    writer.close();
                }
            })?;
        log::debug!(target: "node", "start: reactor runs");
        let validity = (self.identity.not_before(), self.identity.not_after());
        let view = Arc::new(View {
            node: self.identity.node().clone(),
            cluster: self.identity.cluster().clone(),
            certificate: Mutex::new(validity),
            http_addr,
            context: Arc::clone(&context),
            snapshot: Arc::clone(&snapshot),
            counters: Arc::clone(&counters),
            registry: Arc::clone(&registry),
            workers: Arc::clone(&workers),
            writer: writer.clone(),
            commands,
            waker,
            http_threads,
        });
        let handle = Handle {
            identity: self.identity,
            quic_addr,
            gossip_addr,
            context,
            snapshot,
            subscribers,
            counters,
            registry,
            workers,
            queries,
            writer,
            view,
            stuck,
            reactor: Mutex::new(Some(reactor)),
            has_left: AtomicBool::new(false),
            #[cfg(feature = "http")]
            http: Mutex::new(None),
            rtts,
        };
        let node = Node {
            handle: Arc::new(handle),
        };
        #[cfg(feature = "http")]
        if let Some(bound) = http {
            let handle = &node.handle;
            let (view, rtts) = (Arc::clone(&handle.view), Arc::clone(&handle.rtts));
            // On an error the node is dropped, which ends all that runs.
            let running = http::Http::start(bound, self.http_names, view, rtts, events)?;
            *handle.http.lock() = Some(running);
        }
        Ok(node)
    }

    /// Checks what was set, as [`start`](Self::start) does first, and asks nothing of the system.
    ///
    /// # Errors
    ///
    /// [`StartError::Identity`] and [`StartError::Config`].
    pub fn check(&self) -> Result<(), StartError> {
        let names = [
            ("node", &self.expected.0, self.identity.node().as_str()),
            (
                "cluster",
                &self.expected.1,
                self.identity.cluster().as_str(),
            ),
        ];
        for (what, configured, certified) in names {
            if let Some(configured) = configured
                && configured != certified
            {
                return Err(StartError::Identity(IdentityError::Contradiction {
                    what,
                    configured: configured.clone(),
                    certified: certified.to_owned(),
                }));
            }
        }
        self.identity.check(SystemTime::now())?;
        let bytes = tag_bytes(&self.tags);
        if bytes > MAX_TAG_BYTES {
            let why = format!("tags take {bytes} bytes, more than {MAX_TAG_BYTES}");
            return Err(StartError::Config(why));
        }
        self.seeds
            .iter()
            .try_for_each(|seed| check_seed(seed))
            .map_err(|error| StartError::Config(format!("seed {error}")))
    }
}

fn bind_error(purpose: &'static str, addr: SocketAddr) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Bind {
        purpose,
        addr,
        source,
    }
}

/// `HOST:PORT` with a port that can be dialled, or the name of SRV records.
fn check_seed(seed: &str) -> Result<(), CommandError> {
    let is_good = seed.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if is_good || resolver::is_srv(seed) {
        Ok(())
    } else {
        Err(CommandError::InvalidSeed(seed.to_owned()))
    }
}

fn random_bytes<const N: usize>(random: &SystemRandom) -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    random
        .fill(&mut bytes)
        .map_err(|_| StartError::System(io::Error::other("the system has no random numbers")))?;
    Ok(bytes)
}

/// The address that goes into the record.
fn advertised(
    given: Option<SocketAddr>,
    other: Option<SocketAddr>,
    bound: SocketAddr,
) -> SocketAddr {
    match (given, other) {
        (Some(given), _) if given.port() == 0 => SocketAddr::new(given.ip(), bound.port()),
        (Some(given), _) => given,
        (None, Some(other)) => SocketAddr::new(other.ip(), bound.port()),
        (None, None) => bound,
    }
}

/// A running node. Cheap to clone, `Send` and `Sync`; all clones are the same node, and the last
/// one to be dropped shuts it down briefly.
///
/// Nothing here blocks without a time-out, the library prints nothing, installs no signal handler
/// and initialises no logger.
#[derive(Clone)]
pub struct Node {
    handle: Arc<Handle>,
}

struct Handle {
    /// The names in it hold for the node's life; the certificate may have been renewed.
    identity: Identity,
    quic_addr: SocketAddr,
    gossip_addr: SocketAddr,
    context: Arc<Context>,
    snapshot: Arc<Snapshot>,
    subscribers: Arc<Subscribers>,
    counters: Arc<Counters>,
    registry: Arc<Registry>,
    workers: Arc<Workers>,
    queries: Arc<Queries>,
    writer: Option<Writer>,
    view: Arc<View>,
    stuck: Receiver<Vec<String>>,
    reactor: Mutex<Option<thread::Handle>>,
    has_left: AtomicBool,
    #[cfg(feature = "http")]
    http: Mutex<Option<http::Http>>,
    /// Answers peers for as long as it lives.
    rtts: Arc<Rtts>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", self.id())
            .field("quic", &self.quic_addr())
            .finish_non_exhaustive()
    }
}

/// How a leave went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaveReport {
    /// These peers have confirmed that they know.
    pub confirmed: Vec<NodeId>,
    /// These have not in time; gossip tells them, or they find out by probing.
    pub unconfirmed: Vec<NodeId>,
}

/// How a shutdown went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Every connected peer knows that this node left on purpose.
    pub left: bool,
    /// Threads that had not ended in time, for example a handler that is still at work. They hold
    /// nothing that others wait for and end with what they do.
    pub threads_stuck: Vec<String>,
}

impl Node {
    /// Begins to describe a node that has this identity.
    pub fn builder(identity: Identity) -> Builder {
        Builder {
            identity,
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            gossip_bind: None,
            advertise: None,
            gossip_advertise: None,
            seeds: Vec::new(),
            tags: BTreeMap::new(),
            profile: Profile::default(),
            state_dir: None,
            remember_for: mesh::Config::default().remember_for,
            max_connections: mesh::Config::default().max_connections,
            expected: (None, None),
            transport: transport::Config::default(),
            subscribers: Arc::new(Subscribers::new()),
            #[cfg(feature = "http")]
            http: None,
            #[cfg(feature = "http")]
            http_names: Vec::new(),
            #[cfg(test)]
            panic_at_start: false,
        }
    }

    /// What tests within the crate look at.
    #[cfg(test)]
    pub(crate) fn view(&self) -> &Arc<View> {
        &self.handle.view
    }

    /// This node's name.
    pub fn id(&self) -> &NodeId {
        self.handle.identity.node()
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &ClusterName {
        self.handle.identity.cluster()
    }

    /// Which life of the node this is.
    pub fn boot_id(&self) -> BootId {
        self.handle.context.boot
    }

    /// Where others reach this node's QUIC port: a seed for them.
    pub fn quic_addr(&self) -> SocketAddr {
        self.handle.quic_addr
    }

    /// Where others reach this node's gossip port.
    pub fn gossip_addr(&self) -> SocketAddr {
        self.handle.gossip_addr
    }

    /// Where the page and the metrics are served, if they are.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.handle.view.http_addr
    }

    /// Waits until `ready` holds. Always answers within `timeout`.
    ///
    /// # Errors
    ///
    /// [`NotReady::Timeout`] names what is missing; [`NotReady::Failed`] and
    /// [`NotReady::Stopped`] come at once, because nothing will change any more.
    pub fn wait_ready(&self, ready: Ready, timeout: Duration) -> Result<(), NotReady> {
        self.handle.snapshot.wait(ready, Instant::now(), timeout)
    }

    /// Every member this node knows, itself included, in the order of their names.
    pub fn members(&self) -> Vec<MemberInfo> {
        self.handle.view.members()
    }

    /// Every peer with an authenticated connection, in the order of their names.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.handle.view.peers()
    }

    /// Every connection, and a row for every member to which there is none.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.handle.view.connections()
    }

    /// The last 64 connections that ended, the oldest first. Handshakes that fail again and again for
    /// one reason are one row.
    pub fn closed_connections(&self) -> Vec<ClosedConnection> {
        self.handle.view.closed()
    }

    /// The node in one look.
    pub fn status(&self) -> Status {
        self.handle.view.status()
    }

    /// Everything that this node counts; no count runs backwards. How long requests take, and how many
    /// are in flight, is only measured while the node serves HTTP, because that costs each request a
    /// little.
    pub fn figures(&self) -> Figures {
        self.handle.view.figures()
    }

    /// How far everybody is from everybody: this node's own peers, and what each of them says of its
    /// own, asked all at once. Those that have not answered within `timeout` are not in the result; nobody
    /// holds the others up.
    pub fn round_trip_times(
        &self,
        timeout: Duration,
    ) -> BTreeMap<NodeId, BTreeMap<NodeId, Duration>> {
        let rtts = &self.handle.rtts;
        let peers: Vec<NodeId> = self.handle.snapshot.peers().into_keys().collect();
        let mut rows = rtts.ask(&peers, timeout);
        rows.insert(self.id().clone(), rtts.own());
        rows
    }

    /// Subscribes to what happens from now on; [`Builder::events`] also tells how the node became
    /// ready. Each subscriber has its own channel of 1,024 events; a slow one holds nobody up and is
    /// told how many it missed.
    pub fn events(&self) -> Events {
        Events::new(self.handle.subscribers.subscribe())
    }

    /// Registers an application by name: 1 to 64 of letters, digits, `.`, `_` and `-`. The name is
    /// free again when every clone of the returned [`App`] is dropped.
    ///
    /// # Errors
    ///
    /// [`RegisterError`]: the name is taken or malformed, or there are 32 applications.
    pub fn register(&self, name: &str) -> Result<App, RegisterError> {
        if !transport::framing::is_app_name(name) {
            return Err(RegisterError::Invalid(name.chars().take(80).collect()));
        }
        let handle = &self.handle;
        if matches!(handle.snapshot.stage(), Stage::Stopped | Stage::Failed(_)) {
            return Err(RegisterError::Stopped);
        }
        if name == query::APP || name == rtts::APP {
            return Err(RegisterError::Taken(name.to_owned()));
        }
        let inbox = handle
            .registry
            .register(name)
            .map_err(|refusal| match refusal {
                inbox::Refusal::Taken => RegisterError::Taken(name.to_owned()),
                inbox::Refusal::TooMany => RegisterError::TooMany(inbox::MAX_APPS),
            })?;
        Ok(App::new(
            inbox,
            Arc::clone(&handle.registry),
            Arc::clone(&handle.snapshot),
            Arc::clone(&handle.workers),
        ))
    }

    /// Dials more seeds and waits until one answered or all have failed once. They stay seeds.
    /// Returns how many have answered by then.
    ///
    /// # Errors
    ///
    /// [`CommandError::JoinFailed`] names why each failed.
    pub fn join(
        &self,
        seeds: &[impl AsRef<str>],
        timeout: Duration,
    ) -> Result<usize, CommandError> {
        let seeds: Vec<String> = seeds.iter().map(|seed| seed.as_ref().to_owned()).collect();
        seeds.iter().try_for_each(|seed| check_seed(seed))?;
        self.ask(timeout, |reply| Command::Join { seeds, reply })?
    }

    /// Drops seeds and adds others, which are dialled at once. Waits for no dial: what becomes of it is
    /// told as of every seed. Connections to which a dropped seed led stay.
    ///
    /// # Errors
    ///
    /// [`CommandError::InvalidSeed`] without effect, [`CommandError::Left`].
    pub fn edit_seeds(&self, add: Vec<String>, remove: Vec<String>) -> Result<(), CommandError> {
        add.iter().try_for_each(|seed| check_seed(seed))?;
        self.ask(EMIT_TIMEOUT, |reply| Command::EditSeeds {
            add,
            remove,
            reply,
        })?
    }

    /// Takes over a renewed certificate, while the node runs: handshakes that begin from now on use it,
    /// and the authority that comes with it, connections that are there go on, and the node's record is
    /// signed with its key. It must name the same node and cluster.
    ///
    /// # Errors
    ///
    /// [`RenewError`]; the old one stays in use then.
    pub fn renew_identity(&self, identity: Identity) -> Result<(), RenewError> {
        let handle = &self.handle;
        for (what, here, certified) in [
            ("node", self.id().as_str(), identity.node().as_str()),
            (
                "cluster",
                self.cluster().as_str(),
                identity.cluster().as_str(),
            ),
        ] {
            if here != certified {
                return Err(RenewError::Identity(IdentityError::Contradiction {
                    what,
                    configured: here.to_owned(),
                    certified: certified.to_owned(),
                }));
            }
        }
        identity.check(SystemTime::now())?;
        let quic = quic_config(&identity, &handle.context.config).map_err(RenewError::Tls)?;
        self.ask(EMIT_TIMEOUT, |reply| Command::Renew {
            identity: Box::new(identity.clone()),
            reply,
        })
        .and_then(|outcome| outcome)
        .map_err(RenewError::Command)?;
        *handle.context.quic.lock() = quic;
        *handle.view.certificate.lock() = (identity.not_before(), identity.not_after());
        Ok(())
    }

    /// Tells every peer that this node leaves for good, waits for their confirmation, lets requests
    /// under way finish and closes every connection. The node goes on running, alone, until it is
    /// shut down.
    ///
    /// # Errors
    ///
    /// [`CommandError::Stopped`] when it runs no more. That some peers have not confirmed in time is
    /// no error but stands in the report.
    pub fn leave(&self, timeout: Duration) -> Result<LeaveReport, CommandError> {
        let deadline = deadline_after(Instant::now(), timeout);
        let report = self.say_goodbye(timeout)?;
        self.handle.await_idle(deadline);
        self.handle
            .tell(Command::Part, deadline.max(Instant::now() + DROP_TIMEOUT))?;
        Ok(report)
    }

    fn say_goodbye(&self, timeout: Duration) -> Result<LeaveReport, CommandError> {
        let deadline = deadline_after(Instant::now(), timeout);
        // The reactor answers at the deadline at the latest; give its answer a moment to arrive.
        let patience = timeout.saturating_add(Duration::from_secs(1));
        let (confirmed, unconfirmed) =
            self.ask(patience, |reply| Command::Leave { reply, deadline })?;
        self.handle.has_left.store(true, Relaxed);
        Ok(LeaveReport {
            confirmed,
            unconfirmed,
        })
    }

    /// Declares that a dead member will not come back, so that nobody tries to reach it any more.
    ///
    /// # Errors
    ///
    /// [`CommandError::NotDead`] unless this node has found it dead.
    pub fn force_leave(&self, node: &NodeId) -> Result<(), CommandError> {
        self.ask(LEAVE_TIMEOUT, |reply| Command::ForceLeave {
            node: node.clone(),
            reply,
        })?
    }

    /// Why this node believes of a member what it does: who accused it and who confirmed that, which
    /// probes failed, how well this node itself was, and what the connection to it looked like then.
    ///
    /// # Errors
    ///
    /// [`CommandError::UnknownMember`], [`CommandError::Stopped`] or [`CommandError::Timeout`].
    pub fn explain(&self, node: &NodeId) -> Result<Explanation, CommandError> {
        self.handle.view.explain(node, LEAVE_TIMEOUT)
    }

    /// The gossip keys of this node, and how many members have confirmed to hold each: what tells
    /// whether a rotation is finished.
    ///
    /// # Errors
    ///
    /// [`CommandError::Stopped`] or [`CommandError::Timeout`].
    pub fn keys(&self) -> Result<Keys, CommandError> {
        self.ask(LEAVE_TIMEOUT, |reply| Command::Keys { reply })
    }

    /// Makes a new gossip key and spreads it. Each node goes on sealing with the old one until all
    /// its peers have confirmed the new one, so that nobody ever receives what it cannot read. Tells
    /// the key's name.
    ///
    /// # Errors
    ///
    /// [`CommandError::Keys`] when there is no key yet or it is fixed, [`CommandError::Left`].
    pub fn rotate_key(&self) -> Result<KeyId, CommandError> {
        self.ask(LEAVE_TIMEOUT, |reply| Command::RotateKey { reply })?
    }

    /// Removes a gossip key everywhere, for good, and with it all that are older: no node that was
    /// away brings them back.
    ///
    /// # Errors
    ///
    /// [`CommandError::KeyInUse`] when this node would lose the key that it seals with,
    /// [`CommandError::UnknownKey`], and [`CommandError::Keys`] when it is fixed.
    pub fn remove_key(&self, id: KeyId) -> Result<(), CommandError> {
        self.ask(LEAVE_TIMEOUT, |reply| Command::RemoveKey { id, reply })?
    }

    /// Tells every node, this one included, something small: it comes to their subscribers as
    /// [`EventKind::UserEvent`](crate::EventKind::UserEvent). Name (1 to 64 of letters, digits, `.`,
    /// `_`, `-`) and payload together have at most [`MAX_EVENT_BYTES`](swim::MAX_EVENT_BYTES).
    ///
    /// Events travel by gossip, signed by this node: each member hears each of them at most once, within
    /// seconds, without a connection to this one; there is no order beyond the Lamport time, and no
    /// confirmation. Who joins later does not hear it. Use messages for what must arrive or is large.
    ///
    /// # Errors
    ///
    /// [`EventError`]; nothing was sent then.
    pub fn emit_event(&self, name: &str, payload: impl Into<Vec<u8>>) -> Result<(), EventError> {
        self.emit(name, payload.into(), None).map(|_| ())
    }

    /// Asks the nodes that meet `filter`, this one included, and gives their answers as they come, for
    /// at most `timeout`. The question travels by gossip like an event, the answers over connections.
    ///
    /// # Errors
    ///
    /// [`EventError`]; nothing was asked then.
    pub fn query(
        &self,
        name: &str,
        payload: impl Into<Vec<u8>>,
        filter: swim::QueryFilter,
        timeout: Duration,
    ) -> Result<Answers, EventError> {
        let handle = &self.handle;
        let deadline = deadline_after(Instant::now(), timeout);
        handle.queries.listen().map_err(|error| match error {
            RegisterError::Stopped => EventError::Stopped,
            other => EventError::System(other.to_string()),
        })?;
        let slot = Arc::new(Slot::default());
        let query = swim::Query { filter, timeout };
        let query = Some((query, Arc::clone(&slot)));
        let number = self
            .emit(name, payload.into(), query)
            .inspect_err(|_| handle.queries.forget(&slot))?;
        Ok(Answers::new(
            slot,
            number,
            deadline,
            Arc::clone(&handle.queries),
        ))
    }

    fn emit(
        &self,
        name: &str,
        payload: Vec<u8>,
        query: Option<(swim::Query, Arc<Slot>)>,
    ) -> Result<u64, EventError> {
        // Both bounds are checked again by the core; a large payload need not travel there first.
        let bytes = name.len() + payload.len();
        if bytes > swim::MAX_EVENT_BYTES + swim::MAX_EVENT_NAME_BYTES {
            let max = swim::MAX_EVENT_BYTES;
            return Err(EventError::TooLarge { bytes, max });
        }
        let name = name.to_owned();
        let asked = self.ask(EMIT_TIMEOUT, |reply| Command::Emit {
            name,
            payload,
            query,
            reply,
        });
        asked.map_err(|error| match error {
            CommandError::Timeout(timeout) => EventError::Timeout(timeout),
            CommandError::Left => EventError::Left,
            CommandError::Stopped
            | CommandError::UnknownMember(_)
            | CommandError::NotDead { .. }
            | CommandError::InvalidSeed(_)
            | CommandError::JoinFailed(_)
            | CommandError::TagsTooLarge(_)
            | CommandError::UnknownKey(_)
            | CommandError::KeyInUse(_)
            | CommandError::Keys(_) => EventError::Stopped,
        })?
    }

    /// Answers queries of this name on a thread of their own until the node stops: what the handler
    /// returns, at most [`MAX_ANSWER_BYTES`](query::MAX_ANSWER_BYTES), goes to who asks; `None`, a
    /// panic or a larger answer is told as a refusal. Without a handler, a node refuses by itself.
    ///
    /// # Errors
    ///
    /// [`RegisterError`]: the name is taken or malformed, there are 32 already, the system refused a
    /// thread, or the node is shut down.
    pub fn on_query(
        &self,
        name: &str,
        handler: impl Fn(&Query) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        if !swim::is_event_name(name) {
            return Err(RegisterError::Invalid(name.chars().take(80).collect()));
        }
        self.handle.queries.on_query(name, Arc::new(handler))
    }

    /// Replaces this node's tags, for every member to see. All together take at most
    /// [`MAX_TAG_BYTES`], counting six for each.
    ///
    /// # Errors
    ///
    /// [`CommandError::TagsTooLarge`]; the old ones hold then.
    pub fn set_tags(&self, tags: BTreeMap<String, String>) -> Result<(), CommandError> {
        self.change_tags(TagChange::Replace(tags)).map(|_| ())
    }

    /// Adds or replaces some of this node's tags and removes others, in one step. Returns all that hold
    /// then.
    ///
    /// # Errors
    ///
    /// [`CommandError::TagsTooLarge`]; the old ones hold then.
    pub fn edit_tags(
        &self,
        set: BTreeMap<String, String>,
        delete: BTreeSet<String>,
    ) -> Result<BTreeMap<String, String>, CommandError> {
        self.change_tags(TagChange::Edit { set, delete })
    }

    fn change_tags(&self, change: TagChange) -> Result<BTreeMap<String, String>, CommandError> {
        self.ask(EMIT_TIMEOUT, |reply| Command::SetTags { change, reply })?
    }

    /// Sends a health ping over the connection to a peer and waits for its answer: the round-trip
    /// time between both connection threads.
    ///
    /// # Errors
    ///
    /// [`RequestError::NotConnected`], [`RequestError::Timeout`] or [`RequestError::Stopped`].
    pub fn ping(&self, node: &NodeId, timeout: Duration) -> Result<Duration, RequestError> {
        let snapshot = &self.handle.snapshot;
        let connection = snapshot.peer(node).ok_or_else(|| match snapshot.stage() {
            Stage::Stopped | Stage::Failed(_) => RequestError::Stopped,
            Stage::Joining(_) | Stage::Started | Stage::Leaving => {
                RequestError::NotConnected(node.clone())
            }
        })?;
        connection
            .ping()
            .recv_timeout(timeout)
            .map_err(|_| RequestError::Timeout {
                peer: node.clone(),
                timeout,
            })
    }

    fn ask<T>(
        &self,
        timeout: Duration,
        command: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, CommandError> {
        self.handle.view.ask(timeout, command)
    }

    /// Leaves, lets requests under way finish, closes every connection, ends every thread, and
    /// reports. A second call finds nothing left to do.
    ///
    /// `timeout` bounds all of it; a leave takes at most half of it, and at most 5 s.
    pub fn shutdown(&self, timeout: Duration) -> ShutdownReport {
        let deadline = deadline_after(Instant::now(), timeout);
        let mut left = self.handle.has_left.load(Relaxed);
        if !left && let Ok(report) = self.say_goodbye(LEAVE_TIMEOUT.min(timeout / 2)) {
            left = report.unconfirmed.is_empty();
        }
        let threads_stuck = self.handle.stop(deadline, false);
        ShutdownReport {
            left,
            threads_stuck,
        }
    }

    /// Stops at once, without a leave and without a word on any connection, as `kill -9` would.
    /// For tests of what the others make of it.
    pub fn abort(&self) {
        self.handle.stop(Instant::now() + DROP_TIMEOUT, true);
    }
}

impl Handle {
    fn tell(&self, command: Command, deadline: Instant) -> Result<(), CommandError> {
        self.view.tell(command, deadline)
    }

    /// Lets what is under way on the connections finish. One deadline for all: peers that do not
    /// read must not add up, and closing needs time, too.
    fn await_idle(&self, deadline: Instant) {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let idle_until = now + DROP_TIMEOUT.min(left / 2);
        for connection in self.snapshot.links() {
            connection.await_idle(idle_until);
        }
    }

    /// Ends everything and returns the names of threads that did not end in time.
    fn stop(&self, deadline: Instant, silently: bool) -> Vec<String> {
        // One caller stops; others find nothing.
        let Some(reactor) = self.reactor.lock().take() else {
            return Vec::new();
        };
        if !silently {
            self.await_idle(deadline);
        }
        let mut stuck = Vec::new();
        // An error means that the reactor is gone already, which is what is wanted.
        let _ = self.tell(Command::Shutdown { silently }, deadline);
        let is_here = reactor.thread().id() == std::thread::current().id();
        match self.stuck.recv_deadline(deadline) {
            Ok(threads) => stuck.extend(threads),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {}
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => stuck.push("nd-reactor".into()),
        }
        if stuck.iter().all(|name| name != "nd-reactor") && !is_here {
            // It has sent its last word and returns now; panics are caught inside.
            let _ = reactor.join();
        }
        stuck.extend(self.workers.stop(deadline));
        // It was closed when the reactor ended, and holds the directory until the disk is done.
        if let Some(writer) = &self.writer
            && !writer.await_end(deadline)
        {
            stuck.push("nd-roster".into());
        }
        // Last, so that whoever asks is told that the node leaves, and then that it has stopped.
        #[cfg(feature = "http")]
        if let Some(http) = self.http.lock().take() {
            stuck.extend(http.stop(deadline));
        }
        stuck
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let is_running = self.reactor.lock().is_some();
        if is_running {
            let deadline = Instant::now() + DROP_TIMEOUT;
            let (reply, answer) = crossbeam_channel::bounded(1);
            let leave_until = Instant::now() + DROP_TIMEOUT / 2;
            let leave = Command::Leave {
                reply,
                deadline: leave_until,
            };
            if !self.has_left.load(Relaxed) && self.tell(leave, deadline).is_ok() {
                // Whoever has not confirmed by then finds out by itself.
                let _ = answer.recv_deadline(leave_until + Duration::from_millis(100));
            }
            self.stop(deadline, false);
        }
        // The counters outlive the reactor only for this line.
        log::debug!(target: "node",
            gossip_received = self.counters.gossip_received.load(Relaxed),
            gossip_sent = self.counters.gossip_sent.load(Relaxed);
            "node dropped");
    }
}

#[cfg(test)]
#[cfg(feature = "ca")]
mod tests {
    use super::*;
    use crate::{ca::Authority, event::EventKind};

    fn builder() -> Builder {
        let cluster = ClusterName::new("unit").unwrap();
        let authority = Authority::new(&cluster, Duration::from_secs(3_600)).unwrap();
        let node = NodeId::new("n1").unwrap();
        let issued = authority.issue(&node, Duration::from_secs(600)).unwrap();
        let identity = Identity::from_pem(
            issued.certificate_pem.as_bytes(),
            issued.key_pem.as_bytes(),
            authority.certificate_pem().as_bytes(),
        );
        Node::builder(identity.unwrap())
    }

    #[test]
    fn whoever_subscribes_before_the_start_hears_that_the_node_is_ready() {
        let builder = builder();
        let events = builder.events();
        let node = builder.start().unwrap();
        let patience = Duration::from_secs(20);
        let first = events.recv_timeout(patience).map(|event| event.kind);
        assert_eq!(first, Some(EventKind::Ready));
        node.shutdown(patience);
    }

    #[test]
    fn a_panic_during_start_still_answers_ready_with_an_error() {
        let node = builder().panic_at_start().start().unwrap();
        let patience = Duration::from_secs(20);
        let error = node.wait_ready(Ready::Started, patience).unwrap_err();
        assert!(
            matches!(&error, NotReady::Failed(why) if why.contains("panic")),
            "{error}"
        );
        assert!(node.shutdown(patience).threads_stuck.is_empty());
    }

    #[test]
    fn a_panic_of_the_reactor_ends_waits_events_and_calls() {
        let node = builder().start().unwrap();
        let events = node.events();
        node.wait_ready(Ready::Started, Duration::from_secs(20))
            .unwrap();
        node.handle
            .tell(Command::Panic, Instant::now() + Duration::from_secs(5))
            .unwrap();
        let error = node
            .wait_ready(Ready::Peers(1), Duration::from_secs(20))
            .unwrap_err();
        assert!(matches!(error, NotReady::Failed(_)), "{error}");
        while let Some(event) = events.recv() {
            assert_eq!(event.kind, EventKind::Ready);
        }
        assert!(matches!(
            node.join(&["127.0.0.1:1"], LEAVE_TIMEOUT),
            Err(CommandError::Stopped)
        ));
        assert!(matches!(node.register("late"), Err(RegisterError::Stopped)));
    }

    #[test]
    fn seeds_are_checked_before_anything_starts() {
        for seed in ["", "host", "host:", ":1", "host:0", "host:65536", "host:x"] {
            let error = builder().seed(seed).start().unwrap_err();
            assert!(matches!(error, StartError::Config(_)), "{seed:?}: {error}");
        }
        assert!(check_seed("n1.example:7946").is_ok());
        assert!(check_seed("[::1]:7946").is_ok());
    }

    #[test]
    fn an_address_nobody_can_reach_is_refused_unless_another_is_advertised() {
        let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let error = builder().bind(any).start().unwrap_err();
        assert!(matches!(error, StartError::Config(_)), "{error}");
        let node = builder()
            .bind(any)
            .advertise("127.0.0.1:0".parse().unwrap())
            .start()
            .unwrap();
        assert_ne!(node.quic_addr().port(), 0);
        assert_ne!(node.gossip_addr().port(), node.quic_addr().port());
    }

    #[test]
    fn names_that_contradict_the_certificate_are_refused() {
        let error = builder().expect_node("n2").start().unwrap_err();
        assert!(matches!(
            error,
            StartError::Identity(IdentityError::Contradiction { .. })
        ));
        let error = builder().expect_cluster("other").start().unwrap_err();
        assert!(matches!(
            error,
            StartError::Identity(IdentityError::Contradiction { .. })
        ));
    }
}
