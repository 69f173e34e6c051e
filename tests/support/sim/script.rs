//! What happens in one run: a cluster, and faults with their times, as data and as text.
//!
//! A script is complete: together with the program it decides a run to the last bit. Every fault is
//! an act with a beginning and, mostly, an end, so that any act can be taken away and what is left
//! is a script again; that is what makes shrinking simple. A node exists from its `start` on.
//!
//! ```text
//! seed 17                           decides every random choice of network and nodes
//! nodes 4 lan                       n1 … n4; the profile of their timers
//! network latency 300us jitter 500us clocks 10000ppm icmp yes
//! skewed n3                         speaks a newer version: other version strings, unknown fields
//! tombstone 60s
//! faults-end 60s                    what has no end of its own ends here, unless it is permanent
//! 0ms start n1 via n1,n2
//! 9000ms..21000ms block n1,n2 -> n3-n4
//! 9000ms.. crash n4                 permanent
//! ```

use std::{fmt, str::FromStr};

/// Some of the nodes, by index from 0; written from 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Nodes(Vec<u64>);

impl Nodes {
    pub(crate) fn of(indices: impl IntoIterator<Item = usize>) -> Self {
        let mut nodes = Self::default();
        indices.into_iter().for_each(|index| nodes.insert(index));
        nodes
    }

    pub(crate) fn insert(&mut self, index: usize) {
        let word = index / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (index % 64);
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.0
            .get(index / 64)
            .is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len() * 64).filter(|index| self.contains(*index))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut indices = self.iter().peekable();
        let mut first = true;
        while let Some(start) = indices.next() {
            let mut end = start;
            while indices.peek() == Some(&(end + 1)) {
                end += 1;
                indices.next();
            }
            let comma = if first { "" } else { "," };
            first = false;
            write!(f, "{comma}n{}", start + 1)?;
            if end > start {
                write!(f, "-n{}", end + 1)?;
            }
        }
        if first { f.write_str("none") } else { Ok(()) }
    }
}

fn node(text: &str) -> Result<usize, String> {
    let number = text
        .strip_prefix('n')
        .and_then(|digits| digits.parse::<usize>().ok());
    number
        .and_then(|number| number.checked_sub(1))
        .ok_or_else(|| format!("{text:?} is no node"))
}

impl FromStr for Nodes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut nodes = Self::default();
        if text == "none" {
            return Ok(nodes);
        }
        for part in text.split(',') {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            (node(low)?..=node(high)?).for_each(|index| nodes.insert(index));
        }
        Ok(nodes)
    }
}

/// What a node that starts again still knows of its last incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    Kept,
    Lost,
    /// From an older roster: it knows a smaller number than its last.
    Old,
}

/// What one holder of a certificate, or of less, says against everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hostility {
    /// Has nothing: sends noise, and records and repeats what others sent.
    Outsider,
    /// Has the gossip key: seals any unsigned statement, in any member's name.
    KeyHolder,
    /// Is the given node: signs for itself whatever it likes, and lies in syncs.
    Insider(usize),
}

/// One kind of act. Fields named `node`, `by`, `via` are nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Start {
        node: usize,
        via: Nodes,
    },
    /// The process ends without a word, and starts again at the act's end.
    Crash {
        node: usize,
        memory: Memory,
        /// It comes back at another address.
        moved: bool,
        /// The whole host is gone: nothing answers for it.
        host: bool,
    },
    /// Leaves, and starts again at the act's end.
    Leave {
        node: usize,
        memory: Memory,
    },
    /// Closes its connections without leaving, and starts again at the act's end.
    Stop {
        node: usize,
        memory: Memory,
    },
    /// The process stands still; all that arrives waits.
    Pause {
        node: usize,
    },
    /// The deciding thread stands still, while connections are kept up.
    Stall {
        node: usize,
    },
    /// Stands still and runs in turns.
    Stress {
        node: usize,
        still_ms: u64,
        run_ms: u64,
    },
    Block {
        from: Nodes,
        to: Nodes,
    },
    /// As `Block`, but datagrams are held and let go all at once.
    Clog {
        from: Nodes,
        to: Nodes,
    },
    Loss {
        from: Nodes,
        to: Nodes,
        percent: u64,
    },
    Delay {
        from: Nodes,
        to: Nodes,
        mean_ms: u64,
    },
    Duplicate {
        percent: u64,
    },
    Reorder {
        percent: u64,
    },
    Corrupt {
        percent: u64,
    },
    /// Outgoing queues are full now and then.
    Full {
        node: usize,
        percent: u64,
    },
    /// Nothing can be signed.
    Unsigned {
        node: usize,
    },
    /// Every connection of the two is lost at both ends.
    Sever {
        a: usize,
        b: usize,
    },
    /// Another call to join.
    Join {
        node: usize,
        via: Nodes,
    },
    Tags {
        node: usize,
        value: u64,
    },
    /// The application emits so many events at once, of so many bytes each.
    Emit {
        node: usize,
        count: u64,
        bytes: u64,
    },
    ForceLeave {
        by: usize,
        node: usize,
    },
    /// Names do not resolve.
    NoNames,
    Hostile(Hostility),
}

/// An act and its time. Times are milliseconds since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Act {
    pub(crate) at_ms: u64,
    /// The end of what has one; `None` is for ever.
    pub(crate) until_ms: Option<u64>,
    pub(crate) what: What,
}

/// Whose timers the nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Lan,
    Local,
    Wan,
}

/// Everything that decides a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) profile: Profile,
    /// The least time one way.
    pub(crate) latency_us: u64,
    /// The mean of what is added to it, exponentially distributed.
    pub(crate) jitter_us: u64,
    /// Clocks run at most so much fast or slow.
    pub(crate) clocks_ppm: u64,
    /// Hosts say when nobody listens.
    pub(crate) icmp: bool,
    pub(crate) skewed: Nodes,
    pub(crate) tombstone_s: u64,
    pub(crate) faults_end_ms: u64,
    pub(crate) acts: Vec<Act>,
}

impl What {
    /// The class of fault, for counting and for leaving whole classes out.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Crash { host: true, .. } => "crash_host",
            Self::Crash { moved: true, .. } => "crash_moved",
            Self::Crash { .. } => "crash",
            Self::Leave { .. } => "leave",
            Self::Stop { .. } => "stop",
            Self::Pause { .. } => "pause",
            Self::Stall { .. } => "stall",
            Self::Stress { .. } => "stress",
            Self::Block { .. } => "block",
            Self::Clog { .. } => "clog",
            Self::Loss { .. } => "loss",
            Self::Delay { .. } => "delay",
            Self::Duplicate { .. } => "duplicate",
            Self::Reorder { .. } => "reorder",
            Self::Corrupt { .. } => "corrupt",
            Self::Full { .. } => "full_queue",
            Self::Unsigned { .. } => "unsigned",
            Self::Sever { .. } => "sever",
            Self::Join { .. } => "double_join",
            Self::Tags { .. } => "tags",
            Self::Emit { .. } => "emit",
            Self::ForceLeave { .. } => "force_leave",
            Self::NoNames => "no_names",
            Self::Hostile(Hostility::Outsider) => "outsider",
            Self::Hostile(Hostility::KeyHolder) => "key_holder",
            Self::Hostile(Hostility::Insider(_)) => "insider",
        }
    }

    /// Whether nobody is concerned.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Block { from, to }
            | Self::Clog { from, to }
            | Self::Loss { from, to, .. }
            | Self::Delay { from, to, .. } => from.is_empty() || to.is_empty(),
            Self::Start { .. }
            | Self::Crash { .. }
            | Self::Leave { .. }
            | Self::Stop { .. }
            | Self::Pause { .. }
            | Self::Stall { .. }
            | Self::Stress { .. }
            | Self::Duplicate { .. }
            | Self::Reorder { .. }
            | Self::Corrupt { .. }
            | Self::Full { .. }
            | Self::Unsigned { .. }
            | Self::Sever { .. }
            | Self::Join { .. }
            | Self::Tags { .. }
            | Self::Emit { .. }
            | Self::ForceLeave { .. }
            | Self::NoNames
            | Self::Hostile(_) => false,
        }
    }

    /// Whether the act is about this one node, or about a few of which it is one.
    pub(crate) fn concerns(&self, node: usize) -> bool {
        match self {
            Self::Crash { node: other, .. }
            | Self::Leave { node: other, .. }
            | Self::Stop { node: other, .. }
            | Self::Start { node: other, .. }
            | Self::Pause { node: other }
            | Self::Stall { node: other }
            | Self::Stress { node: other, .. }
            | Self::Full { node: other, .. }
            | Self::Unsigned { node: other }
            | Self::Join { node: other, .. }
            | Self::Tags { node: other, .. }
            | Self::Emit { node: other, .. }
            | Self::Hostile(Hostility::Insider(other)) => *other == node,
            Self::Sever { a, b } => *a == node || *b == node,
            Self::ForceLeave { by, node: other } => *by == node || *other == node,
            Self::Block { from, to }
            | Self::Clog { from, to }
            | Self::Loss { from, to, .. }
            | Self::Delay { from, to, .. } => {
                let is_one_of = |nodes: &Nodes| nodes.len() == 1 && nodes.contains(node);
                is_one_of(from) || is_one_of(to)
            }
            Self::Duplicate { .. }
            | Self::Reorder { .. }
            | Self::Corrupt { .. }
            | Self::NoNames
            | Self::Hostile(Hostility::Outsider | Hostility::KeyHolder) => false,
        }
    }

    /// Whether the act disturbs this node: what it hears, what is heard of it, or how it runs. Liars
    /// disturb nobody; that is the point of them.
    pub(crate) fn disturbs(&self, node: usize) -> bool {
        match self {
            Self::Block { from, to }
            | Self::Clog { from, to }
            | Self::Loss { from, to, .. }
            | Self::Delay { from, to, .. } => from.contains(node) || to.contains(node),
            Self::Duplicate { .. } | Self::Reorder { .. } | Self::Corrupt { .. } => true,
            Self::NoNames
            | Self::Hostile(_)
            | Self::Tags { .. }
            | Self::Emit { .. }
            | Self::Join { .. } => false,
            Self::Start { .. }
            | Self::Crash { .. }
            | Self::Leave { .. }
            | Self::Stop { .. }
            | Self::Pause { .. }
            | Self::Stall { .. }
            | Self::Stress { .. }
            | Self::Full { .. }
            | Self::Unsigned { .. }
            | Self::Sever { .. }
            | Self::ForceLeave { .. } => self.concerns(node),
        }
    }

    /// Whether the act takes time, so that its end matters.
    pub(crate) fn lasts(&self) -> bool {
        !matches!(
            self,
            Self::Start { .. }
                | Self::Sever { .. }
                | Self::Join { .. }
                | Self::Tags { .. }
                | Self::Emit { .. }
                | Self::ForceLeave { .. }
        )
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept => "kept",
            Self::Lost => "lost",
            Self::Old => "old",
        })
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kept" => Ok(Self::Kept),
            "lost" => Ok(Self::Lost),
            "old" => Ok(Self::Old),
            _ => Err(format!("{text:?} is no memory")),
        }
    }
}

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { node, via } => write!(f, "start n{} via {via}", node + 1),
            Self::Crash {
                node,
                memory,
                moved,
                host,
            } => write!(
                f,
                "crash n{} memory {memory} moved {} host {}",
                node + 1,
                yes(*moved),
                yes(*host)
            ),
            Self::Leave { node, memory } => write!(f, "leave n{} memory {memory}", node + 1),
            Self::Stop { node, memory } => write!(f, "stop n{} memory {memory}", node + 1),
            Self::Pause { node } => write!(f, "pause n{}", node + 1),
            Self::Stall { node } => write!(f, "stall n{}", node + 1),
            Self::Stress {
                node,
                still_ms,
                run_ms,
            } => write!(f, "stress n{} still {still_ms}ms run {run_ms}ms", node + 1),
            Self::Block { from, to } => write!(f, "block {from} -> {to}"),
            Self::Clog { from, to } => write!(f, "clog {from} -> {to}"),
            Self::Loss { from, to, percent } => write!(f, "loss {percent}% {from} -> {to}"),
            Self::Delay { from, to, mean_ms } => write!(f, "delay {mean_ms}ms {from} -> {to}"),
            Self::Duplicate { percent } => write!(f, "duplicate {percent}%"),
            Self::Reorder { percent } => write!(f, "reorder {percent}%"),
            Self::Corrupt { percent } => write!(f, "corrupt {percent}%"),
            Self::Full { node, percent } => write!(f, "full n{} {percent}%", node + 1),
            Self::Unsigned { node } => write!(f, "unsigned n{}", node + 1),
            Self::Sever { a, b } => write!(f, "sever n{} n{}", a + 1, b + 1),
            Self::Join { node, via } => write!(f, "join n{} via {via}", node + 1),
            Self::Tags { node, value } => write!(f, "tags n{} {value}", node + 1),
            Self::Emit { node, count, bytes } => {
                write!(f, "emit n{} count {count} bytes {bytes}", node + 1)
            }
            Self::ForceLeave { by, node } => write!(f, "force-leave n{} n{}", by + 1, node + 1),
            Self::NoNames => f.write_str("no-names"),
            Self::Hostile(Hostility::Outsider) => f.write_str("outsider"),
            Self::Hostile(Hostility::KeyHolder) => f.write_str("key-holder"),
            Self::Hostile(Hostility::Insider(node)) => write!(f, "insider n{}", node + 1),
        }
    }
}

fn number(text: &str, unit: &str) -> Result<u64, String> {
    text.strip_suffix(unit)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("{text:?} is no number of {unit:?}"))
}

fn flag(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(format!("{text:?} is neither yes nor no")),
    }
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        Ok(match words[..] {
            ["start", name, "via", via] => Self::Start {
                node: node(name)?,
                via: via.parse()?,
            },
            [
                "crash",
                name,
                "memory",
                memory,
                "moved",
                moved,
                "host",
                host,
            ] => Self::Crash {
                node: node(name)?,
                memory: memory.parse()?,
                moved: flag(moved)?,
                host: flag(host)?,
            },
            ["leave", name, "memory", memory] => Self::Leave {
                node: node(name)?,
                memory: memory.parse()?,
            },
            ["stop", name, "memory", memory] => Self::Stop {
                node: node(name)?,
                memory: memory.parse()?,
            },
            ["pause", name] => Self::Pause { node: node(name)? },
            ["stall", name] => Self::Stall { node: node(name)? },
            ["stress", name, "still", still, "run", run] => Self::Stress {
                node: node(name)?,
                still_ms: number(still, "ms")?,
                run_ms: number(run, "ms")?,
            },
            ["block", from, "->", to] => Self::Block {
                from: from.parse()?,
                to: to.parse()?,
            },
            ["clog", from, "->", to] => Self::Clog {
                from: from.parse()?,
                to: to.parse()?,
            },
            ["loss", percent, from, "->", to] => Self::Loss {
                percent: number(percent, "%")?,
                from: from.parse()?,
                to: to.parse()?,
            },
            ["delay", mean, from, "->", to] => Self::Delay {
                mean_ms: number(mean, "ms")?,
                from: from.parse()?,
                to: to.parse()?,
            },
            ["duplicate", percent] => Self::Duplicate {
                percent: number(percent, "%")?,
            },
            ["reorder", percent] => Self::Reorder {
                percent: number(percent, "%")?,
            },
            ["corrupt", percent] => Self::Corrupt {
                percent: number(percent, "%")?,
            },
            ["full", name, percent] => Self::Full {
                node: node(name)?,
                percent: number(percent, "%")?,
            },
            ["unsigned", name] => Self::Unsigned { node: node(name)? },
            ["sever", a, b] => Self::Sever {
                a: node(a)?,
                b: node(b)?,
            },
            ["join", name, "via", via] => Self::Join {
                node: node(name)?,
                via: via.parse()?,
            },
            ["tags", name, value] => Self::Tags {
                node: node(name)?,
                value: number(value, "")?,
            },
            ["emit", name, "count", count, "bytes", bytes] => Self::Emit {
                node: node(name)?,
                count: number(count, "")?,
                bytes: number(bytes, "")?,
            },
            ["force-leave", by, name] => Self::ForceLeave {
                by: node(by)?,
                node: node(name)?,
            },
            ["no-names"] => Self::NoNames,
            ["outsider"] => Self::Hostile(Hostility::Outsider),
            ["key-holder"] => Self::Hostile(Hostility::KeyHolder),
            ["insider", name] => Self::Hostile(Hostility::Insider(node(name)?)),
            _ => return Err(format!("{text:?} is no act")),
        })
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.at_ms)?;
        match self.until_ms {
            Some(until) => write!(f, "..{until}ms")?,
            None if self.what.lasts() => f.write_str("..")?,
            None => {}
        }
        write!(f, " {}", self.what)
    }
}

impl FromStr for Act {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let (time, what) = line
            .split_once(' ')
            .ok_or_else(|| format!("{line:?} is no act"))?;
        let (at, until) = match time.split_once("..") {
            None | Some((_, "")) => (time.trim_end_matches('.'), None),
            Some((at, until)) => (at, Some(number(until, "ms")?)),
        };
        Ok(Self {
            at_ms: number(at, "ms")?,
            until_ms: until,
            what: what.parse()?,
        })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lan => "lan",
            Self::Local => "local",
            Self::Wan => "wan",
        })
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        writeln!(f, "nodes {} {}", self.nodes, self.profile)?;
        writeln!(
            f,
            "network latency {}us jitter {}us clocks {}ppm icmp {}",
            self.latency_us,
            self.jitter_us,
            self.clocks_ppm,
            yes(self.icmp)
        )?;
        writeln!(f, "skewed {}", self.skewed)?;
        writeln!(f, "tombstone {}s", self.tombstone_s)?;
        writeln!(f, "faults-end {}ms", self.faults_end_ms)?;
        self.acts.iter().try_for_each(|act| writeln!(f, "{act}"))
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut script = Self {
            seed: 0,
            nodes: 0,
            profile: Profile::Lan,
            latency_us: 300,
            jitter_us: 500,
            clocks_ppm: 0,
            icmp: true,
            skewed: Nodes::default(),
            tombstone_s: 3_600,
            faults_end_ms: 0,
            acts: Vec::new(),
        };
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [] => {}
                ["seed", seed] => script.seed = number(seed, "")?,
                ["nodes", nodes, profile] => {
                    script.nodes = usize::try_from(number(nodes, "")?).unwrap_or(usize::MAX);
                    script.profile = match profile {
                        "lan" => Profile::Lan,
                        "local" => Profile::Local,
                        "wan" => Profile::Wan,
                        _ => return Err(format!("{profile:?} is no profile")),
                    };
                }
                [
                    "network",
                    "latency",
                    latency,
                    "jitter",
                    jitter,
                    "clocks",
                    clocks,
                    "icmp",
                    icmp,
                ] => {
                    script.latency_us = number(latency, "us")?;
                    script.jitter_us = number(jitter, "us")?;
                    script.clocks_ppm = number(clocks, "ppm")?;
                    script.icmp = flag(icmp)?;
                }
                ["skewed", nodes] => script.skewed = nodes.parse()?,
                ["tombstone", seconds] => script.tombstone_s = number(seconds, "s")?,
                ["faults-end", time] => script.faults_end_ms = number(time, "ms")?,
                _ => script.acts.push(line.parse()?),
            }
        }
        if script.nodes == 0 {
            return Err("no nodes".into());
        }
        Ok(script)
    }
}
