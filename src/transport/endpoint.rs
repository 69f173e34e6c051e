//! The listener's side of the transport: who gets a datagram, and whether a stranger gets a thread.
//!
//! A datagram for the listener is routed by its destination connection id; one that opens a
//! connection passes admission first:
//!
//! 1. Size and version before anything else: an Initial in less than 1,200 bytes is dropped, an
//!    unknown version is answered with ours, at a limited rate.
//! 2. From 32 half-open handshakes in all, or 16 from one source address, on, a stranger gets a
//!    Retry and no memory; with the token of a Retry it has proven its address.
//! 3. At 512 half-open handshakes in all, or 64 from one source, everything new is dropped.
//!
//! So at most 32 threads ever serve addresses that have proven nothing. A short-header datagram for
//! a connection nobody knows, such as one of this node's former life, is answered by a stateless
//! reset, smaller than itself and at a limited rate.
//!
//! Everything here runs on the reactor's thread and waits for nothing.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use ring::rand::{SecureRandom, SystemRandom};

use crate::{
    node_id::{ConnectionId, NodeId},
    stats::Side,
    thread,
    transport::{
        Command, Connection, Context, Datagram,
        connection::{self, Path, Start},
        crew::Crew,
        timekeeper,
        token::{ID_BYTES, ResetTokens, RetryIds, RetryTokens},
        udp::{self, Listener},
    },
    waker::PollSet,
};

/// Handshakes with addresses that have proven nothing, in all and from one source.
const MAX_UNPROVEN: usize = 32;
const MAX_UNPROVEN_PER_SOURCE: usize = 16;

/// Accepted handshakes under way, proven addresses included, in all and from one source. The second
/// lets a cluster of this size run on one host.
const MAX_HALF_OPEN: usize = 512;
const MAX_HALF_OPEN_PER_SOURCE: usize = 64;

/// The shortest id that a client may make up (RFC 9000 §7.2).
const MIN_CLIENT_ID_BYTES: usize = 8;

/// The smallest datagram that may carry an Initial (RFC 9000 §14.1).
const MIN_INITIAL_BYTES: usize = 1_200;

/// Stateless answers (version negotiation, Retry, reset) a second, each kind.
const MAX_ANSWERS_PER_SECOND: u32 = 100;

/// The smallest datagram that is answered by a reset: smaller ones could be resets themselves, and
/// two nodes would answer each other for ever (RFC 9000 §10.3.3).
const MIN_RESET_TRIGGER_BYTES: usize = 43;

/// How long the ids of an ended connection are remembered, so that late datagrams of it do not
/// cause resets: three probe time-outs of a slow path.
const QUIET_FOR: Duration = Duration::from_secs(3);

/// Ids remembered like that; the oldest are forgotten first.
const MAX_QUIET_IDS: usize = 4_096;

/// The length of a stateless reset: 5 unpredictable bits and more, then the token.
const RESET_BYTES: usize = 40;

/// Sockets on the listener's own port. Beyond, accepted connections share the listener's, because
/// the kernel's search among sockets of one port grows with their number before Linux 6.13.
const MAX_OWN_ACCEPTED: usize = 256;

/// How often it is told that connections cannot be accepted: enough to be seen, whoever causes it.
const REFUSAL_LINE_INTERVAL: Duration = Duration::from_secs(60);

/// A counter of answers in the current second.
#[derive(Debug, Default)]
struct PerSecond {
    since: Option<Instant>,
    count: u32,
}

impl PerSecond {
    fn allow(&mut self, now: Instant) -> bool {
        if self
            .since
            .is_none_or(|since| now >= since + Duration::from_secs(1))
        {
            *self = Self {
                since: Some(now),
                count: 0,
            };
        }
        self.count += 1;
        self.count <= MAX_ANSWERS_PER_SECOND
    }
}

/// A connection, as the reactor holds it.
struct Link {
    connection: Arc<Connection>,
    /// Its own, if it has one.
    thread: Option<thread::Handle>,
    ids: Vec<Vec<u8>>,
    /// The source of an accepted handshake that is under way, and whether it has proven its
    /// address.
    half_open: Option<(IpAddr, bool)>,
    has_own_socket: bool,
}

/// The listener and every connection of the node.
pub(crate) struct Endpoint {
    context: Arc<Context>,
    listener: Arc<UdpSocket>,
    addr: SocketAddr,
    guarded: bool,
    links: BTreeMap<ConnectionId, Link>,
    /// Threads that connections share, if they do.
    crew: Crew,
    routes: HashMap<Vec<u8>, ConnectionId>,
    quiet: VecDeque<(Instant, Vec<u8>)>,
    quiet_ids: HashMap<Vec<u8>, ()>,
    retry: RetryTokens,
    reset: ResetTokens,
    random: SystemRandom,
    versions: PerSecond,
    retries: PerSecond,
    resets: PerSecond,
    /// When it may be told again that a connection cannot be accepted.
    refusal_line_at: Option<Instant>,
    is_accepting: bool,
    /// Until this is dropped, the timekeeper runs.
    _timekeeper: Arc<timekeeper::Running>,
}

/// What a datagram for the listener came to, for the counters and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Routed {
    /// Given to a connection.
    Connection,
    /// A new connection.
    Accepted,
    /// Answered without a memory of it.
    Answered,
    /// Dropped.
    Refused,
}

impl Endpoint {
    pub(crate) fn new(
        context: Arc<Context>,
        listener: Listener,
        reset_key: &[u8; 32],
        timekeeper: Arc<timekeeper::Running>,
    ) -> io::Result<Self> {
        let retry = RetryTokens::new()
            .ok_or_else(|| io::Error::other("the system has no random numbers"))?;
        let crew = Crew::new(context.config.workers)?;
        Ok(Self {
            context,
            crew,
            _timekeeper: timekeeper,
            listener: Arc::new(listener.socket),
            addr: listener.addr,
            guarded: listener.guarded,
            links: BTreeMap::new(),
            routes: HashMap::new(),
            quiet: VecDeque::new(),
            quiet_ids: HashMap::new(),
            retry,
            reset: ResetTokens::new(reset_key),
            random: SystemRandom::new(),
            refusal_line_at: None,
            versions: PerSecond::default(),
            retries: PerSecond::default(),
            resets: PerSecond::default(),
            is_accepting: true,
        })
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.listener
    }

    pub(crate) fn connection(&self, id: ConnectionId) -> Option<&Arc<Connection>> {
        self.links.get(&id).map(|link| &link.connection)
    }

    pub(crate) fn connections(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.links.values().map(|link| &link.connection)
    }

    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    /// New connections are refused from here on.
    pub(crate) fn stop_accepting(&mut self) {
        self.is_accepting = false;
    }

    /// Gives a connection's worker a command. `false` when there is no such connection or its queue
    /// is full.
    pub(crate) fn command(&self, id: ConnectionId, command: Command) -> bool {
        self.links
            .get(&id)
            .is_some_and(|link| link.connection.command(command))
    }

    /// Starts a connection to `addr`. It reports by notices, also that it failed.
    ///
    /// # Errors
    ///
    /// What the system or quiche refused; then there is no connection and no notice.
    pub(crate) fn dial(
        &mut self,
        id: ConnectionId,
        node: Option<&NodeId>,
        addr: SocketAddr,
    ) -> Result<(), String> {
        let refused = |error: io::Error| error.to_string();
        let socket = udp::dial(addr).map_err(refused)?;
        let local = socket.local_addr().map_err(refused)?;
        let name = node.map(|node| {
            format!(
                "{node}.{}.{}",
                self.context.cluster,
                crate::node_id::NAME_SUFFIX
            )
        });
        let scid = self.new_id().ok_or("the system has no random numbers")?;
        let quic = quiche::connect_with_buffer_factory(
            name.as_deref(),
            &quiche::ConnectionId::from_ref(&scid),
            local,
            addr,
            &mut self.context.quic.lock(),
        )
        .map_err(|error| error.to_string())?;
        let start = Start {
            id,
            side: Side::Dialed,
            addr,
            path: Path::Own(socket),
            quic,
            expected: node.cloned(),
            first: None,
            local,
        };
        self.start(start, Vec::new(), None).map_err(refused)
    }

    fn start(
        &mut self,
        start: Start,
        ids: Vec<Vec<u8>>,
        half_open: Option<(IpAddr, bool)>,
    ) -> io::Result<()> {
        let id = start.id;
        let has_own_socket = start.side == Side::Accepted && matches!(start.path, Path::Own(_));
        let context = Arc::clone(&self.context);
        let (connection, thread) = match self.crew.place(id.0) {
            Some(place) => {
                let set = place.set.clone();
                let (connection, worker) = connection::new(context, start, set, place.key)?;
                self.crew.give(&place, worker)?;
                (connection, None)
            }
            None => {
                let (connection, worker) = connection::new(context, start, PollSet::new()?, 0)?;
                // Fifteen bytes hold the prefix and seven digits; more connections than that wrap around.
                let name = format!("nd-peer-{}", id.0 % 10_000_000);
                let thread = thread::spawn(&name, move || worker.run())?;
                (connection, Some(thread))
            }
        };
        for route in &ids {
            self.routes.insert(route.clone(), id);
        }
        self.links.insert(
            id,
            Link {
                connection,
                thread,
                ids,
                half_open,
                has_own_socket,
            },
        );
        Ok(())
    }

    fn new_id(&self) -> Option<[u8; ID_BYTES]> {
        let mut id = [0; ID_BYTES];
        self.random.fill(&mut id).ok()?;
        Some(id)
    }

    /// Handles one datagram that came to the listener, or that a worker handed back. `allocate`
    /// gives a new connection its id.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        datagram: Datagram,
        allocate: impl FnOnce() -> ConnectionId,
    ) -> Routed {
        let routed = self.route(now, datagram, allocate);
        if routed == Routed::Refused {
            self.context
                .counters
                .refused_datagrams
                .fetch_add(1, Relaxed);
        }
        routed
    }

    fn route(
        &mut self,
        now: Instant,
        mut datagram: Datagram,
        allocate: impl FnOnce() -> ConnectionId,
    ) -> Routed {
        let length = datagram.bytes.len();
        let Ok(header) = quiche::Header::from_slice(&mut datagram.bytes, ID_BYTES) else {
            return Routed::Refused;
        };
        if let Some(&id) = self.routes.get(header.dcid.as_ref()) {
            return self.inject(id, datagram);
        }
        match header.ty {
            quiche::Type::Short => self.answer_by_reset(now, &datagram, header.dcid.as_ref()),
            quiche::Type::Initial if length < MIN_INITIAL_BYTES => Routed::Refused,
            quiche::Type::Initial if header.dcid.len() < MIN_CLIENT_ID_BYTES => Routed::Refused,
            quiche::Type::Initial if !quiche::version_is_supported(header.version) => {
                self.answer_by_version(now, datagram.from, &header)
            }
            quiche::Type::Initial => self.admit(now, datagram, &header, allocate),
            // An unknown version hides the type: answer it like an Initial of that version.
            quiche::Type::ZeroRTT
            | quiche::Type::Handshake
            | quiche::Type::Retry
            | quiche::Type::VersionNegotiation => {
                if length >= MIN_INITIAL_BYTES && !quiche::version_is_supported(header.version) {
                    return self.answer_by_version(now, datagram.from, &header);
                }
                Routed::Refused
            }
        }
    }

    fn inject(&self, id: ConnectionId, datagram: Datagram) -> Routed {
        if self.command(id, Command::Inject(datagram)) {
            return Routed::Connection;
        }
        self.context
            .counters
            .dropped_injections
            .fetch_add(1, Relaxed);
        Routed::Connection
    }

    /// Decides whether an Initial becomes a connection.
    fn admit(
        &mut self,
        now: Instant,
        datagram: Datagram,
        header: &quiche::Header<'_>,
        allocate: impl FnOnce() -> ConnectionId,
    ) -> Routed {
        if !self.is_accepting {
            return Routed::Refused;
        }
        let source = datagram.from.ip();
        let age = now.saturating_duration_since(self.context.started_at);
        let token = header.token.as_deref().filter(|token| !token.is_empty());
        let odcid = match token {
            Some(token) => match self.retry.open(datagram.from, token, age) {
                Ok(ids) if ids.scid == header.dcid.as_ref() => Some(ids.odcid),
                // Never a second Retry (RFC 9000 §17.2.5.2): the dialler starts afresh.
                Ok(_) | Err(_) => return Routed::Refused,
            },
            None => None,
        };
        let half_open = self
            .links
            .values()
            .filter_map(|link| link.half_open)
            .collect::<Vec<_>>();
        let host = half_open
            .iter()
            .filter(|(other, _)| *other == source)
            .count();
        if half_open.len() >= MAX_HALF_OPEN || host >= MAX_HALF_OPEN_PER_SOURCE {
            return Routed::Refused;
        }
        let unproven = half_open.iter().filter(|(_, proven)| !proven);
        let from_source = unproven
            .clone()
            .filter(|(other, _)| *other == source)
            .count();
        let is_crowded = unproven.count() >= MAX_UNPROVEN || from_source >= MAX_UNPROVEN_PER_SOURCE;
        if odcid.is_none() && is_crowded {
            return self.answer_by_retry(now, &datagram, header, age);
        }
        match self.accept(datagram, header, odcid.as_deref(), allocate) {
            Ok(()) => Routed::Accepted,
            Err(error) => {
                // Whoever dials again and again would else fill the log.
                if self.refusal_line_at.is_none_or(|at| at <= now) {
                    self.refusal_line_at = Some(now + REFUSAL_LINE_INTERVAL);
                    log::warn!(target: "transport", addr:% = source, error:%;
                        "cannot accept a connection");
                }
                Routed::Refused
            }
        }
    }

    fn accept(
        &mut self,
        datagram: Datagram,
        header: &quiche::Header<'_>,
        odcid: Option<&[u8]>,
        allocate: impl FnOnce() -> ConnectionId,
    ) -> io::Result<()> {
        let addr = datagram.from;
        // After a Retry the client uses the id that we chose there.
        let scid = match odcid {
            Some(_) => header.dcid.as_ref().to_vec(),
            None => self
                .new_id()
                .ok_or_else(|| io::Error::other("no random numbers"))?
                .to_vec(),
        };
        let path = self.path_to(addr);
        let local = match &path {
            Path::Own(socket) => socket.local_addr()?,
            Path::Shared(_) => self.addr,
        };
        let quic = {
            let mut config = self.context.quic.lock();
            config.set_stateless_reset_token(Some(self.reset.token(&scid)));
            let odcid = odcid.map(quiche::ConnectionId::from_ref);
            let scid = quiche::ConnectionId::from_ref(&scid);
            quiche::accept_with_buf_factory(&scid, odcid.as_ref(), local, addr, &mut config)
                .map_err(|error| io::Error::other(error.to_string()))?
        };
        // A repeated Initial, by which the client asks for our first answer again, carries the id
        // that the client made up.
        let mut ids = vec![scid];
        if odcid.is_none() {
            ids.push(header.dcid.as_ref().to_vec());
        }
        let start = Start {
            id: allocate(),
            side: Side::Accepted,
            addr,
            path,
            quic,
            expected: None,
            first: Some(datagram),
            local,
        };
        self.start(start, ids, Some((addr.ip(), odcid.is_some())))
    }

    /// A socket of its own for an accepted connection, or the listener's where that cannot be: no
    /// steering here, too many sockets, or a live connection with the same address, whose socket
    /// the kernel would prefer.
    fn path_to(&self, addr: SocketAddr) -> Path {
        let shared = || Path::Shared(Arc::clone(&self.listener));
        let own = self
            .links
            .values()
            .filter(|link| link.has_own_socket)
            .count();
        let is_taken = self
            .links
            .values()
            .any(|link| link.connection.side == Side::Accepted && link.connection.addr == addr);
        if !self.guarded || is_taken || own >= MAX_OWN_ACCEPTED {
            return shared();
        }
        match udp::accept(self.addr, addr) {
            Ok(socket) => Path::Own(socket),
            Err(error) => {
                log::debug!(target: "transport", addr:%, error:%; "sharing the listener's socket");
                shared()
            }
        }
    }

    fn answer_by_version(
        &mut self,
        now: Instant,
        to: SocketAddr,
        header: &quiche::Header<'_>,
    ) -> Routed {
        let mut answer = [0; MIN_INITIAL_BYTES];
        if !self.versions.allow(now) {
            return Routed::Refused;
        }
        match quiche::negotiate_version(&header.scid, &header.dcid, &mut answer) {
            Ok(length) => self.answer(to, &answer[..length]),
            Err(_) => Routed::Refused,
        }
    }

    fn answer_by_retry(
        &mut self,
        now: Instant,
        datagram: &Datagram,
        header: &quiche::Header<'_>,
        age: Duration,
    ) -> Routed {
        if !self.retries.allow(now) {
            return Routed::Refused;
        }
        let Some(scid) = self.new_id() else {
            return Routed::Refused;
        };
        let ids = RetryIds {
            scid,
            odcid: header.dcid.to_vec(),
        };
        let Some(token) = self.retry.seal(datagram.from, &ids, age) else {
            return Routed::Refused;
        };
        let mut answer = [0; MIN_INITIAL_BYTES];
        let written = quiche::retry(
            &header.scid,
            &header.dcid,
            &quiche::ConnectionId::from_ref(&scid),
            &token,
            header.version,
            &mut answer,
        );
        match written {
            Ok(length) => {
                self.context.counters.retries.fetch_add(1, Relaxed);
                self.answer(datagram.from, &answer[..length])
            }
            Err(_) => Routed::Refused,
        }
    }

    fn answer_by_reset(&mut self, now: Instant, datagram: &Datagram, dcid: &[u8]) -> Routed {
        self.forget_quiet(now);
        let length = RESET_BYTES.min(datagram.bytes.len().saturating_sub(1));
        let is_due = datagram.bytes.len() >= MIN_RESET_TRIGGER_BYTES
            && !self.quiet_ids.contains_key(dcid)
            && self.resets.allow(now);
        if !is_due {
            return Routed::Refused;
        }
        let mut answer = [0; RESET_BYTES];
        if self.random.fill(&mut answer).is_err() {
            return Routed::Refused;
        }
        // The form of a short-header packet: fixed bit set, header form clear.
        answer[0] = (answer[0] & 0x3f) | 0x40;
        answer[length - 16..length].copy_from_slice(&self.reset.token(dcid).to_be_bytes());
        self.context.counters.resets_sent.fetch_add(1, Relaxed);
        self.answer(datagram.from, &answer[..length])
    }

    fn answer(&self, to: SocketAddr, bytes: &[u8]) -> Routed {
        // Lost here is as good as lost on the way.
        let _ = self.listener.send_to(bytes, to);
        Routed::Answered
    }

    fn forget_quiet(&mut self, now: Instant) {
        while self.quiet.front().is_some_and(|(until, _)| *until <= now)
            || self.quiet.len() > MAX_QUIET_IDS
        {
            if let Some((_, id)) = self.quiet.pop_front() {
                self.quiet_ids.remove(&id);
            }
        }
    }

    /// A handshake is over: the connection no longer counts as half-open.
    pub(crate) fn handle_up(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.half_open = None;
        }
    }

    /// A connection is over: it no longer counts as half-open, and its ids stay quiet for a while.
    /// After a reset they need not: the peer has forgotten the connection anyway.
    pub(crate) fn handle_down(&mut self, now: Instant, id: ConnectionId) {
        self.forget_quiet(now);
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.half_open = None;
        for route in std::mem::take(&mut link.ids) {
            self.routes.remove(&route);
            self.quiet_ids.insert(route.clone(), ());
            self.quiet.push_back((now + QUIET_FOR, route));
        }
    }

    /// A worker's last word: its thread ends now.
    pub(crate) fn handle_gone(&mut self, now: Instant, id: ConnectionId) {
        self.handle_down(now, id);
        if let Some(link) = self.links.remove(&id) {
            // The thread has nothing left to do but to return.
            if let Some(thread) = link.thread {
                let _ = thread.join();
            }
        }
    }

    /// The names of threads that have not ended, for the report of a shutdown.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let own = self.links.values().filter_map(|link| link.thread.as_ref());
        own.filter_map(|thread| thread.thread().name().map(str::to_owned))
            .chain(self.crew.busy())
            .collect()
    }
}
