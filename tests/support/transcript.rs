//! Plays transcripts: text files that tell the story of a few membership cores.
//!
//! Each line is a command; `#` starts a comment. The cores run over a simulated network with a
//! random latency of 1 to 5 ms, in simulated time, from one seed. What stands around the core in a
//! node is simulated as plainly as possible: signatures are empty, a datagram counts only if its
//! sender's boot id is the one in the receiver's record of it, and a sync or a ping over the
//! connection works while neither direction is partitioned.
//!
//! ```text
//! nodes 5 [lan|wan|local]     n1 … n5, not yet connected; or names: nodes a b c
//! tombstones 5m               before `nodes`: for how long the dead are remembered
//! join b a | join all         a handshake and a sync of b with a; of everyone with the first
//! crash a | restart a [moved] | pause a | resume a | leave a | tags a k=v | force-leave b a
//! start z at a                a new node at the address of one that has crashed
//! drop a->b | pass a->b       loses datagrams in one direction
//! partition a b | c d e       loses everything between the two groups; heal ends every fault
//! loss 5                      loses that many datagrams in a hundred
//! connections on|off          whether pings over connections are answered
//! evidence on                 connections ping each other every second, and tell what they see
//! doubt a of b: refused|lost|stalled|unanswered   what a's connection to b seems to show
//! rules nodosum|memberlist|swim                   before `nodes`: which rules are followed
//! remember a | replay a to b via c       c brings b the record that a had then
//! say c to b: suspect|dead|forced-leave a@1 by c [unsigned]
//! advance 3s
//! expect b sees a dead        or: expect all sees all alive; also unknown
//! within 8s all sees a dead   advances until it holds
//! never 30s b sees a dead     advances and fails as soon as it holds
//! events b a: up suspect dead what b was told of a since the last such line
//! count b refutations 1       a counter, exactly; with >= or <= at least, at most
//! incarnation a 2
//! ```
//!
//! After every input it is checked that a running node sees itself alive until it leaves, that
//! events about a member come in an order that makes sense and agree with the view, that stored
//! incarnations never fall, and that no datagram is larger than allowed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use nodosum::{
    BootId, MemberStatus, NodeId,
    unversioned::{
        record::{Record, SignedRecord, VerifiedRecord},
        rng::Rng,
        swim::{
            Accusation, Action, Body, Config, Doubt, Event, ForcedLeave, Message, Rules, Statement,
            Swim, SyncEntry,
        },
    },
};

/// Plays a transcript from `seed`.
///
/// # Panics
///
/// When an expectation or an invariant does not hold; names the line.
pub(crate) fn play(name: &str, text: &str, seed: u64) {
    let mut world = World::new(seed);
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if let Err(why) = world.command(line) {
            panic!(
                "{name}:{}: {line}\n  {why}\n  seed {seed}, at {:?}\n{}",
                number + 1,
                world.now - world.start,
                world.picture()
            );
        }
    }
}

struct Node {
    core: Swim,
    running: bool,
    paused: bool,
    /// What arrived during a pause.
    backlog: Vec<Delivery>,
    /// Events not yet asked for, by member.
    told: BTreeMap<NodeId, Vec<&'static str>>,
    /// What the events so far say of each member: whether it is up.
    up: BTreeMap<NodeId, bool>,
    incarnations: BTreeMap<NodeId, u64>,
}

impl Node {
    fn new(core: Swim) -> Self {
        Self {
            core,
            running: true,
            paused: false,
            backlog: Vec::new(),
            told: BTreeMap::new(),
            up: BTreeMap::new(),
            incarnations: BTreeMap::new(),
        }
    }
}

#[derive(Clone)]
struct Delivery {
    from: NodeId,
    from_addr: SocketAddr,
    boot: BootId,
    to_addr: SocketAddr,
    what: What,
}

#[derive(Clone)]
enum What {
    Datagram(Vec<u8>),
    Hello(Arc<VerifiedRecord>),
    Sync {
        entries: Vec<SyncEntry>,
        answer: bool,
    },
    ConnectionPing {
        seq: u32,
    },
    ConnectionAck {
        seq: u32,
    },
    HealthPing,
    HealthAck {
        at: Instant,
    },
    /// What the host of a process that is gone answers.
    Unreachable {
        node: NodeId,
    },
}

/// Between two pings on a connection, and how many unanswered ones are a doubt, as in a node.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const MISSED_PINGS: u32 = 3;

/// Cores, a network and a clock.
struct World {
    start: Instant,
    now: Instant,
    rng: Rng,
    config: Config,
    rules: Rules,
    tombstone: Option<Duration>,
    nodes: BTreeMap<NodeId, Node>,
    wire: BTreeMap<(Instant, u64), Delivery>,
    serial: u64,
    dropped: BTreeSet<(NodeId, NodeId)>,
    parted: BTreeSet<(NodeId, NodeId)>,
    loss_percent: u64,
    connections: bool,
    evidence: bool,
    /// When each node pings its peers next.
    health_at: BTreeMap<NodeId, Instant>,
    /// How many pings to a peer went unanswered.
    missed: BTreeMap<(NodeId, NodeId), u32>,
    remembered: BTreeMap<NodeId, Arc<VerifiedRecord>>,
    next_port: u16,
}

fn id(name: &str) -> Result<NodeId, String> {
    name.parse().map_err(|error| format!("{error}"))
}

fn sign(record: Record) -> Arc<VerifiedRecord> {
    let payload = Arc::from(record.encode());
    Arc::new(VerifiedRecord {
        record,
        signed: SignedRecord {
            payload,
            signature: Arc::from(Vec::new()),
        },
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(0));
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a duration"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3_600)),
        _ => Err(format!("{text:?} is not a duration")),
    }
}

impl World {
    /// An empty world; the clock's starting point is the only thing that is not from `seed`.
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            rng: Rng::new(seed),
            config: Config::lan(),
            rules: Rules::nodosum(),
            tombstone: None,
            nodes: BTreeMap::new(),
            wire: BTreeMap::new(),
            serial: 0,
            dropped: BTreeSet::new(),
            parted: BTreeSet::new(),
            loss_percent: 0,
            connections: true,
            evidence: false,
            health_at: BTreeMap::new(),
            missed: BTreeMap::new(),
            remembered: BTreeMap::new(),
            next_port: 1,
        }
    }

    fn command(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["nodes", ref rest @ ..] => self.create(rest)?,
            ["tombstones", time] => self.tombstone = Some(duration(time)?),
            ["join", "all"] => self.join_all()?,
            ["join", node, to] => self.join(&id(node)?, &id(to)?)?,
            ["crash", node] => {
                let node = self.node(node)?;
                node.running = false;
                node.paused = false;
                node.backlog.clear();
            }
            ["restart", node] => self.restart(&id(node)?, false)?,
            ["restart", node, "moved"] => self.restart(&id(node)?, true)?,
            ["start", node, "at", old] => {
                let addr = self.node(old)?.core.me().record.gossip_addr;
                let node = id(node)?;
                let core = self.core(&node, Some(addr));
                self.nodes.insert(node, Node::new(core));
            }
            ["pause", node] => self.node(node)?.paused = true,
            ["resume", node] => self.resume(&id(node)?)?,
            ["leave", node] => {
                let now = self.now;
                self.node(node)?.core.leave(now);
                self.drain(&id(node)?)?;
            }
            ["tags", node, tag] => {
                let now = self.now;
                let (key, value) = tag.split_once('=').ok_or("not key=value")?;
                let tags = BTreeMap::from([(key.to_owned(), value.to_owned())]);
                self.node(node)?
                    .core
                    .set_tags(now, tags)
                    .map_err(|e| e.to_string())?;
                self.drain(&id(node)?)?;
            }
            ["force-leave", at, node] => {
                let now = self.now;
                self.node(at)?
                    .core
                    .force_leave(now, &id(node)?)
                    .map_err(|e| e.to_string())?;
                self.drain(&id(at)?)?;
            }
            ["drop", pair] => {
                let (from, to) = pair.split_once("->").ok_or("not a->b")?;
                self.dropped.insert((id(from)?, id(to)?));
            }
            ["pass", pair] => {
                let (from, to) = pair.split_once("->").ok_or("not a->b")?;
                self.dropped.remove(&(id(from)?, id(to)?));
            }
            ["partition", ref rest @ ..] => self.partition(rest)?,
            ["heal"] => {
                self.dropped.clear();
                self.parted.clear();
                self.loss_percent = 0;
            }
            ["loss", percent] => {
                self.loss_percent = percent.parse().map_err(|_| "not a number")?;
            }
            ["connections", switch] => self.connections = switch == "on",
            ["evidence", switch] => {
                self.evidence = switch == "on";
                for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
                    let first = self.rng.between(Duration::ZERO, HEALTH_INTERVAL);
                    self.health_at.insert(name, self.now + first);
                }
            }
            ["doubt", at, "of", node, doubt] => {
                let (now, node) = (self.now, id(node.trim_end_matches(':'))?);
                let doubt = match doubt {
                    "refused" => Doubt::Refused,
                    "lost" => Doubt::Lost,
                    "stalled" => Doubt::Stalled,
                    "unanswered" => Doubt::Unanswered,
                    _ => return Err("no such doubt".into()),
                };
                self.node(at)?.core.handle_peer_doubted(now, &node, doubt);
                self.drain(&id(at)?)?;
            }
            ["rules", rules] => {
                self.rules = match rules {
                    "nodosum" => Rules::nodosum(),
                    "memberlist" => Rules::memberlist(),
                    "swim" => Rules::swim(),
                    _ => return Err("no such rules".into()),
                };
            }
            ["remember", node] => {
                let record = Arc::clone(self.node(node)?.core.me());
                self.remembered.insert(id(node)?, record);
            }
            ["replay", node, "to", to, "via", via] => {
                let record = self.remembered.get(&id(node)?).ok_or("not remembered")?;
                let records = vec![record.signed.clone()];
                let message = Message {
                    body: Body::Gossip,
                    statements: Vec::new(),
                    records,
                    events: Vec::new(),
                };
                self.say(&id(via)?, &id(to)?, &message)?;
            }
            ["say", from, "to", to, kind, claim, "by", by, ref rest @ ..] => {
                let to = id(to.trim_end_matches(':'))?;
                let statement = statement(kind, claim, by, rest == ["unsigned"])?;
                let message = Message {
                    body: Body::Gossip,
                    statements: vec![statement],
                    records: Vec::new(),
                    events: Vec::new(),
                };
                self.say(&id(from)?, &to, &message)?;
            }
            ["advance", time] => {
                let until = self.now + duration(time)?;
                while self.step(until)? {}
            }
            ["expect", observer, "sees", node, status] => {
                if !self.holds(observer, node, status)? {
                    return Err("does not hold".into());
                }
            }
            ["within", time, observer, "sees", node, status] => {
                let until = self.now + duration(time)?;
                while !self.holds(observer, node, status)? {
                    if !self.step(until)? {
                        return Err(format!("does not hold after {time}"));
                    }
                }
            }
            ["never", time, observer, "sees", node, status] => {
                let until = self.now + duration(time)?;
                loop {
                    if self.holds(observer, node, status)? {
                        return Err("came to hold".into());
                    }
                    if !self.step(until)? {
                        break;
                    }
                }
            }
            ["events", observer, node, ref wanted @ ..] => {
                let node = id(node.trim_end_matches(':'))?;
                let told = self.node(observer)?.told.remove(&node).unwrap_or_default();
                if told != *wanted {
                    return Err(format!("was told {told:?}"));
                }
            }
            ["count", node, counter, ref number @ ..] => self.count(node, counter, number)?,
            ["incarnation", node, wanted] => {
                let found = self.node(node)?.core.me().record.incarnation;
                if found.to_string() != wanted {
                    return Err(format!("is {found}"));
                }
            }
            _ => return Err("no such command".into()),
        }
        Ok(())
    }

    fn node(&mut self, name: &str) -> Result<&mut Node, String> {
        self.nodes
            .get_mut(&id(name)?)
            .ok_or_else(|| format!("no node {name}"))
    }

    fn create(&mut self, words: &[&str]) -> Result<(), String> {
        let mut names = Vec::new();
        for word in words {
            match (*word, word.parse::<usize>()) {
                ("lan", _) => self.config = Config::lan(),
                ("wan", _) => self.config = Config::wan(),
                ("local", _) => self.config = Config::local(),
                (_, Ok(count)) => names.extend((1..=count).map(|i| format!("n{i}"))),
                (name, Err(_)) => names.push(name.to_owned()),
            }
        }
        self.config.rules = self.rules;
        self.config.tombstone = self.tombstone.unwrap_or(self.config.tombstone);
        for name in names {
            let node = id(&name)?;
            let core = self.core(&node, None);
            self.nodes.insert(node, Node::new(core));
        }
        Ok(())
    }

    /// A core that knows nobody, in a new life of the node.
    fn core(&mut self, node: &NodeId, addr: Option<SocketAddr>) -> Swim {
        let addr = addr.unwrap_or_else(|| {
            self.next_port += 2;
            SocketAddr::from(([127, 0, 0, 1], self.next_port))
        });
        let boot = (u128::from(self.rng.u64()) << 64) | u128::from(self.rng.u64());
        let record = Record {
            cluster: "test".parse().expect("a label"),
            node: node.clone(),
            incarnation: 1,
            boot: BootId(boot.to_be_bytes()),
            quic_addr: SocketAddr::new(addr.ip(), addr.port() + 1),
            gossip_addr: addr,
            tags: BTreeMap::new(),
            left: false,
            protocol: (1, 1),
            version: "0".into(),
            certificate: [0; 32],
        };
        Swim::new(self.config.clone(), sign(record), self.rng.u64(), self.now)
    }

    fn restart(&mut self, node: &NodeId, moved: bool) -> Result<(), String> {
        let addr = self.node(node.as_str())?.core.me().record.gossip_addr;
        let core = self.core(node, (!moved).then_some(addr));
        let state = self.node(node.as_str())?;
        state.core = core;
        state.running = true;
        state.paused = false;
        state.backlog.clear();
        state.told.clear();
        state.up.clear();
        state.incarnations.clear();
        Ok(())
    }

    fn resume(&mut self, node: &NodeId) -> Result<(), String> {
        let state = self.node(node.as_str())?;
        state.paused = false;
        let backlog = std::mem::take(&mut state.backlog);
        let now = self.now;
        // A process that wakes reads its clock before its sockets.
        self.node(node.as_str())?.core.handle_timeout(now);
        self.drain(node)?;
        for delivery in backlog {
            self.deliver(delivery)?;
        }
        Ok(())
    }

    fn partition(&mut self, words: &[&str]) -> Result<(), String> {
        let mut groups = words.split(|word| *word == "|");
        let (Some(left), Some(right)) = (groups.next(), groups.next()) else {
            return Err("two groups, please".into());
        };
        for a in left {
            for b in right {
                self.parted.insert((id(a)?, id(b)?));
                self.parted.insert((id(b)?, id(a)?));
            }
        }
        Ok(())
    }

    fn join_all(&mut self) -> Result<(), String> {
        let names: Vec<NodeId> = self.nodes.keys().cloned().collect();
        let Some((first, rest)) = names.split_first() else {
            return Ok(());
        };
        rest.iter().try_for_each(|node| self.join(node, first))
    }

    /// What a handshake and the sync after it bring.
    fn join(&mut self, node: &NodeId, to: &NodeId) -> Result<(), String> {
        for (a, b) in [(node, to), (to, node)] {
            let record = Arc::clone(self.node(a.as_str())?.core.me());
            self.connect_send(a, b, What::Hello(record));
        }
        self.start_sync(node, to);
        Ok(())
    }

    fn start_sync(&mut self, node: &NodeId, with: &NodeId) {
        let Some(state) = self.nodes.get(node) else {
            return;
        };
        let entries = state.core.sync_entries(Some(with));
        self.connect_send(
            node,
            with,
            What::Sync {
                entries,
                answer: true,
            },
        );
    }

    /// Sends something over the connection of two nodes, if there can be one.
    fn connect_send(&mut self, from: &NodeId, to: &NodeId, what: What) {
        if self.parted.contains(&(from.clone(), to.clone())) {
            return;
        }
        let Some(to_addr) = self.nodes.get(to).map(|n| n.core.me().record.gossip_addr) else {
            return;
        };
        // A connection keeps its order, so its latency is always the same.
        self.put(from, to_addr, what, Duration::from_millis(3));
    }

    fn say(&mut self, from: &NodeId, to: &NodeId, message: &Message) -> Result<(), String> {
        let to_addr = self.node(to.as_str())?.core.me().record.gossip_addr;
        self.put(
            from,
            to_addr,
            What::Datagram(message.encode()),
            Duration::from_millis(1),
        );
        let until = self.now + Duration::from_millis(2);
        while self.step(until)? {}
        Ok(())
    }

    fn put(&mut self, from: &NodeId, to_addr: SocketAddr, what: What, latency: Duration) {
        let Some(sender) = self.nodes.get(from) else {
            return;
        };
        let me = &sender.core.me().record;
        let delivery = Delivery {
            from: from.clone(),
            from_addr: me.gossip_addr,
            boot: me.boot,
            to_addr,
            what,
        };
        self.serial += 1;
        self.wire
            .insert((self.now + latency, self.serial), delivery);
    }

    /// Lets the next thing before `until` happen; false when nothing is left and it is `until`.
    fn step(&mut self, until: Instant) -> Result<bool, String> {
        let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
        let timeout = self
            .nodes
            .iter()
            .filter(|(_, node)| node.running && !node.paused)
            .filter_map(|(name, node)| Some((node.core.poll_timeout()?, name.clone())))
            .min();
        let health = self
            .health_at
            .iter()
            .map(|(name, at)| (*at, name.clone()))
            .filter(|_| self.evidence)
            .min();
        let next = arrival
            .into_iter()
            .chain(timeout.iter().map(|(at, _)| *at))
            .chain(health.iter().map(|(at, _)| *at))
            .min();
        let Some(next) = next.filter(|next| *next <= until) else {
            self.now = until;
            return Ok(false);
        };
        self.now = self.now.max(next);
        if arrival == Some(next) {
            if let Some((_, delivery)) = self.wire.pop_first() {
                self.deliver(delivery)?;
            }
        } else if let Some((_, name)) = health.filter(|(at, _)| *at == next) {
            self.ping_peers(&name)?;
        } else if let Some((_, name)) = timeout {
            let now = self.now;
            self.node(name.as_str())?.core.handle_timeout(now);
            self.drain(&name)?;
        }
        Ok(true)
    }

    /// What the connections of a node do once in an interval.
    fn ping_peers(&mut self, name: &NodeId) -> Result<(), String> {
        let now = self.now;
        self.health_at.insert(name.clone(), now + HEALTH_INTERVAL);
        let state = self.node(name.as_str())?;
        if !state.running || state.paused {
            return Ok(());
        }
        let members = state.core.members().map(|m| &m.record.record.node);
        let peers: Vec<NodeId> = members.filter(|node| *node != name).cloned().collect();
        for peer in peers {
            let key = (name.clone(), peer.clone());
            let missed = self.missed.entry(key).or_default();
            if *missed == MISSED_PINGS {
                let core = &mut self.node(name.as_str())?.core;
                core.handle_peer_doubted(now, &peer, Doubt::Unanswered);
                self.drain(name)?;
            }
            *self.missed.entry((name.clone(), peer.clone())).or_default() += 1;
            self.connect_send(name, &peer, What::HealthPing);
        }
        Ok(())
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<(), String> {
        let to = self.nodes.iter().find(|(_, node)| {
            node.running && node.core.me().record.gossip_addr == delivery.to_addr
        });
        let Some(to) = to.map(|(name, _)| name.clone()) else {
            if matches!(delivery.what, What::HealthPing) {
                let (gone, asker) = (delivery.to_addr, delivery.from);
                let node = self
                    .nodes
                    .iter()
                    .find(|(_, n)| n.core.me().record.gossip_addr == gone)
                    .map(|(name, _)| name.clone())
                    .ok_or("nobody was ever there")?;
                let parted = self.parted.contains(&(asker.clone(), node.clone()));
                if !parted {
                    let latency = Duration::from_millis(3);
                    let what = What::Unreachable { node };
                    self.put(&asker, delivery.from_addr, what, latency);
                }
            }
            return Ok(());
        };
        if self.parted.contains(&(delivery.from.clone(), to.clone())) {
            return Ok(());
        }
        let now = self.now;
        let state = self.node(to.as_str())?;
        if state.paused {
            state.backlog.push(delivery);
            return Ok(());
        }
        let Delivery {
            from,
            from_addr,
            boot,
            what,
            ..
        } = delivery;
        match what {
            What::Datagram(bytes) => {
                let known = state
                    .core
                    .member(&from)
                    .map(|member| member.record.record.boot);
                if known == Some(boot) {
                    receive(&mut state.core, now, &from, from_addr, &bytes)?;
                }
            }
            What::Hello(record) => state.core.handle_record(now, record),
            What::Sync { entries, answer } => {
                let forced: Vec<ForcedLeave> = entries
                    .iter()
                    .filter_map(|entry| entry.forced.as_deref())
                    .filter(|forced| forced.signature == b"signed")
                    .cloned()
                    .collect();
                state.core.handle_sync(now, &from, entries);
                for forced in forced {
                    state.core.handle_forced_leave(now, forced);
                }
                if answer {
                    let entries = state.core.sync_entries(Some(&from));
                    self.drain(&to)?;
                    self.connect_send(
                        &to,
                        &from,
                        What::Sync {
                            entries,
                            answer: false,
                        },
                    );
                }
            }
            What::ConnectionPing { seq } => {
                self.connect_send(&to, &from, What::ConnectionAck { seq });
            }
            What::ConnectionAck { seq } => state.core.handle_connection_ack(now, &from, seq),
            What::HealthPing => self.connect_send(&to, &from, What::HealthAck { at: now }),
            What::HealthAck { at } => {
                state.core.handle_peer_answered(now, &from, at);
                self.missed.remove(&(to.clone(), from));
            }
            What::Unreachable { node } => {
                state.core.handle_peer_doubted(now, &node, Doubt::Refused);
            }
        }
        self.drain(&to)
    }

    /// Does what a core asks for, then looks whether it still makes sense.
    fn drain(&mut self, name: &NodeId) -> Result<(), String> {
        let mut actions = VecDeque::new();
        loop {
            let max = self.config.max_payload_bytes;
            let state = self.node(name.as_str())?;
            if !state.running {
                return Ok(());
            }
            actions.extend(std::iter::from_fn(|| state.core.poll_action()));
            let transmits: Vec<_> = std::iter::from_fn(|| state.core.poll_transmit()).collect();
            for transmit in transmits {
                if transmit.payload.len() > max || transmit.payload.is_empty() {
                    return Err(format!("datagram of {} bytes", transmit.payload.len()));
                }
                let key = (name.clone(), transmit.to.clone());
                let lost = self.dropped.contains(&key) || self.rng.below(100) < self.loss_percent;
                if !lost {
                    let (low, high) = (Duration::from_millis(1), Duration::from_millis(5));
                    let latency = self.rng.between(low, high);
                    let what = What::Datagram(transmit.payload);
                    self.put(name, transmit.destination, what, latency);
                }
            }
            let Some(action) = actions.pop_front() else {
                break;
            };
            let now = self.now;
            match action {
                Action::Sign(record) => {
                    self.node(name.as_str())?
                        .core
                        .handle_signed(now, sign(record));
                }
                Action::SignForcedLeave(forced) => {
                    let forced = ForcedLeave {
                        signature: b"signed".to_vec(),
                        ..forced
                    };
                    self.node(name.as_str())?
                        .core
                        .handle_forced_leave(now, forced);
                }
                Action::Sync { with } => self.start_sync(name, &with),
                // Whom to dial is the mesh's business, which has no part in these stories.
                Action::Dial { .. } => {}
                Action::PingOverConnection { node, seq } => {
                    if self.connections {
                        self.connect_send(name, &node, What::ConnectionPing { seq });
                    }
                }
            }
        }
        self.note_events(name)?;
        self.check(name)
    }

    fn note_events(&mut self, name: &NodeId) -> Result<(), String> {
        let state = self.node(name.as_str())?;
        while let Some(event) = state.core.poll_event() {
            let (node, word, needs_up, then_up) = match &event {
                Event::Up { node } => (node, "up", Some(false), Some(true)),
                Event::Suspect { node, .. } => (node, "suspect", Some(true), None),
                Event::Alive { node } => (node, "alive", Some(true), None),
                Event::Updated {
                    node,
                    boot_changed: true,
                    ..
                } => (node, "reborn", Some(true), None),
                Event::Updated {
                    node,
                    addr_changed: true,
                    ..
                } => (node, "moved", Some(true), None),
                Event::Updated { node, .. } => (node, "updated", Some(true), None),
                Event::Dead { node, .. } => (node, "dead", Some(true), Some(false)),
                Event::Left { node, .. } => (node, "left", None, Some(false)),
                Event::Forgotten { node } => (node, "forgotten", Some(false), None),
                Event::NameConflict { node, .. } => (node, "conflict", None, None),
                Event::AddressConflict { node, .. } => (node, "contested", None, None),
                Event::User(event) => (&event.origin, "event", None, None),
            };
            let up = state.up.entry(node.clone()).or_default();
            if needs_up.is_some_and(|needed| needed != *up) {
                return Err(format!("{name} was told {word} of {node} while up is {up}"));
            }
            *up = then_up.unwrap_or(*up);
            state.told.entry(node.clone()).or_default().push(word);
        }
        Ok(())
    }

    fn check(&mut self, name: &NodeId) -> Result<(), String> {
        let state = self.node(name.as_str())?;
        let me = &state.core.me().record;
        for member in state.core.members() {
            let record = &member.record.record;
            let live = matches!(member.status, MemberStatus::Alive | MemberStatus::Suspect);
            if record.node == *name {
                if live == me.left || member.status == MemberStatus::Suspect {
                    return Err(format!("{name} sees itself {}", member.status));
                }
                continue;
            }
            let told = state.up.get(&record.node).copied().unwrap_or_default();
            if told != live {
                return Err(format!("{name} was told otherwise of {}", record.node));
            }
            let before = state
                .incarnations
                .insert(record.node.clone(), record.incarnation);
            if before > Some(record.incarnation) {
                return Err(format!(
                    "{name} went back in the incarnations of {}",
                    record.node
                ));
            }
        }
        Ok(())
    }

    fn holds(&self, observer: &str, node: &str, status: &str) -> Result<bool, String> {
        let running = |name: &str| -> Result<Vec<NodeId>, String> {
            if name == "all" {
                let running = self.nodes.iter().filter(|(_, node)| node.running);
                return Ok(running.map(|(name, _)| name.clone()).collect());
            }
            Ok(vec![id(name)?])
        };
        for observer in running(observer)? {
            let state = self
                .nodes
                .get(&observer)
                .ok_or_else(|| format!("no node {observer}"))?;
            for node in running(node)? {
                let member = state.core.member(&node);
                let seen = member.map_or("unknown", |member| member.status.as_str());
                if seen != status {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn count(&mut self, node: &str, counter: &str, number: &[&str]) -> Result<(), String> {
        let core = &self.node(node)?.core;
        let counters = core.counters();
        let found = match counter {
            "refutations" => counters.refutations,
            "deaths" => counters.deaths,
            "suspicions" => counters.suspicions,
            "probes_failed" => counters.probes_failed,
            "probes_indirect" => counters.probes_indirect,
            "probes_connection" => counters.probes_connection,
            "probes_by_evidence" => counters.probes_by_evidence,
            "doubts" => counters.doubts,
            "vetoes" => counters.vetoes,
            "fast_deaths" => counters.fast_deaths,
            "stale" => counters.stale,
            "unknown_members" => counters.unknown_members,
            "implausible" => counters.implausible,
            "late_timeouts" => counters.late_timeouts,
            "health_score" => u64::from(core.health_score()),
            _ => return Err("no such counter".into()),
        };
        let parse = |text: &str| text.parse::<u64>().map_err(|_| "not a number");
        let holds = match *number {
            [">=", least] => found >= parse(least)?,
            ["<=", most] => found <= parse(most)?,
            [exactly] => found == parse(exactly)?,
            _ => return Err("count what?".into()),
        };
        if holds {
            Ok(())
        } else {
            Err(format!("is {found}"))
        }
    }

    /// Who sees whom how, for a failure's message.
    fn picture(&self) -> String {
        let mut picture = String::new();
        for (name, node) in &self.nodes {
            let seen: Vec<String> = node
                .core
                .members()
                .map(|m| {
                    let record = &m.record.record;
                    format!("{}@{} {}", record.node, record.incarnation, m.status)
                })
                .collect();
            let state = if node.running { "" } else { " (not running)" };
            picture += &format!("  {name}{state}: {}\n", seen.join(", "));
        }
        picture
    }
}

fn statement(kind: &str, claim: &str, by: &str, unsigned: bool) -> Result<Statement, String> {
    let (node, incarnation) = claim.split_once('@').ok_or("not node@incarnation")?;
    let (node, accuser) = (id(node)?, id(by)?);
    let incarnation = if incarnation == "max" {
        u64::MAX
    } else {
        incarnation.parse().map_err(|_| "not an incarnation")?
    };
    let accusation = Accusation {
        node: node.clone(),
        incarnation,
        accuser: accuser.clone(),
    };
    Ok(match kind {
        "suspect" => Statement::Suspect(accusation),
        "dead" => Statement::Dead(accusation),
        "forced-leave" => {
            let signature = if unsigned {
                Vec::new()
            } else {
                b"signed".to_vec()
            };
            Statement::ForcedLeave(ForcedLeave {
                node,
                incarnation,
                issuer: accuser,
                signature,
            })
        }
        _ => return Err("no such statement".into()),
    })
}

/// What the reactor does with an opened datagram: verify what is signed, then hand all of it over.
fn receive(
    core: &mut Swim,
    now: Instant,
    from: &NodeId,
    from_addr: SocketAddr,
    bytes: &[u8],
) -> Result<(), String> {
    let message = Message::decode(from, bytes).map_err(|error| error.to_string())?;
    let mut records = Vec::new();
    for signed in &message.records {
        let record = Record::decode(&signed.payload).map_err(|error| error.to_string())?;
        records.push(Arc::new(VerifiedRecord {
            record,
            signed: signed.clone(),
        }));
    }
    let forced: Vec<ForcedLeave> = message
        .forced_leaves()
        .filter(|f| f.signature == b"signed")
        .cloned()
        .collect();
    core.handle_message(now, from, from_addr, message, records);
    forced
        .into_iter()
        .for_each(|forced| core.handle_forced_leave(now, forced));
    Ok(())
}
