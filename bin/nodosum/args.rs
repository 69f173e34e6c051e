//! The command line: every command, its flags, and how values are read.
//!
//! What clap refuses here ends with exit code 2 and its own message. What needs the world (files,
//! sockets, certificates) is judged by the commands.

use std::{collections::BTreeSet, ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::{Span, SpanRelativeTo};
use nodosum::{ClusterName, KeyId, NodeId};
use regex::Regex;

use crate::{
    bench::Scale,
    logging::{self, DEFAULT_FILTER, LogFormat},
    output::{Colour, Format, Layout},
};

/// What the top-level help ends with: with more, it would not fit a screen.
const EXAMPLE: &str = "\
Example:
  nodosum demo --for 30s";

/// What the manual says besides.
pub(crate) const EXIT_CODES: &str = "\
Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 usage, \
3 node unreachable, 4 condition not met or nothing matched, 5 bad configuration or missing prerequisite.";

/// The longest duration taken for a time-out: a day. It keeps deadlines far from overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest validity of a certificate: a hundred years.
const MAX_VALIDITY: Duration = Duration::from_secs(36_500 * 24 * 60 * 60);

/// Turns several processes into one cluster: membership and a mutually authenticated QUIC mesh
#[derive(Debug, Parser)]
#[command(
    name = "nodosum",
    version,
    after_help = EXAMPLE,
    disable_help_subcommand = true,
    infer_long_args = false,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Colours: auto, always or never
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub(crate) color: Colour,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node in the foreground
    Run(Box<Run>),
    /// Run a cluster in this process that proves itself
    Demo(Demo),
    /// Make and inspect certificates
    #[command(subcommand)]
    Tls(Tls),
    /// List the members of the cluster as the node sees them
    Members(Members),
    /// List the node's connections
    Conns(Conns),
    /// Show a node in one look
    Status(Status),
    /// Show what happened, and what happens
    Events(Events),
    /// Wait until the node sees enough of the cluster
    Wait(Wait),
    /// Measure the round trip to a member over its connection
    Ping(Ping),
    /// Send a message to an application on other nodes
    Send(Send),
    /// Send a request to an application on another node and print the reply
    Request(Request),
    /// Send a message to an application on every connected node
    Broadcast(Broadcast),
    /// Tell every node of the cluster something small
    Event(Event),
    /// Ask every node, or some, and print their answers
    Query(Query),
    /// Show or change the node's tags
    Tags(Tags),
    /// Make the node join through these seeds
    Join(Join),
    /// Make the node say goodbye to its cluster
    Leave(Leave),
    /// Force a dead member out of the cluster
    ForceLeave(ForceLeave),
    /// List, rotate and remove the keys that seal gossip
    #[command(subcommand)]
    Keys(Keys),
    /// Show or change what the node logs
    #[command(subcommand)]
    Log(Log),
    /// Watch a node live
    Top(Top),
    /// Find out what would keep a node from working well here
    Doctor(Box<Doctor>),
    /// Collect what somebody who helps wants to see
    #[command(subcommand)]
    Debug(Debug),
    /// Write, check and show configuration
    #[command(subcommand)]
    Config(Config),
    /// Measure requests over one to many connections of a cluster in this machine
    Bench(Scale),
    /// Print what makes a shell complete this command
    Completions(Completions),
    /// Print the manual
    Man(Man),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum run --tls-dir n1 --bind 127.0.0.1:7946
  nodosum run --tls-dir n2 --bind 127.0.0.1:8946 --seed 127.0.0.1:7946

Across hosts, --bind needs an address that the others reach. Flags override variables such as
NODOSUM_BIND, which override --config. TERM and INT leave gracefully, HUP reloads.")]
pub(crate) struct Run {
    /// TOML file with any of these settings; see 'nodosum config init'
    #[arg(long, value_name = "FILE", env = "NODOSUM_CONFIG", hide_env = true)]
    pub(crate) config: Option<PathBuf>,
    /// Name of this node; must agree with its certificate
    #[arg(long, value_name = "NAME", env = "NODOSUM_NODE", hide_env = true)]
    pub(crate) node: Option<NodeId>,
    /// Name of the cluster; must agree with the certificate
    #[arg(long, value_name = "NAME", env = "NODOSUM_CLUSTER", hide_env = true)]
    pub(crate) cluster: Option<ClusterName>,
    /// QUIC, the seed of others; port 0 picks [default: 127.0.0.1:7946]
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7946",
        hide_default_value = true,
        env = "NODOSUM_BIND",
        hide_env = true
    )]
    pub(crate) bind: SocketAddr,
    /// Membership datagrams [default: the port after --bind]
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "NODOSUM_GOSSIP_BIND",
        hide_env = true
    )]
    pub(crate) gossip_bind: Option<SocketAddr>,
    /// Where others reach --bind [default: --bind]
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "NODOSUM_ADVERTISE",
        hide_env = true
    )]
    pub(crate) advertise: Option<SocketAddr>,
    /// Where others reach --gossip-bind
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "NODOSUM_GOSSIP_ADVERTISE",
        hide_env = true
    )]
    pub(crate) gossip_advertise: Option<SocketAddr>,
    /// Member to join through, or SRV name; may be repeated
    #[arg(
        long = "seed",
        value_name = "HOST:PORT",
        env = "NODOSUM_SEED",
        hide_env = true,
        value_delimiter = ','
    )]
    pub(crate) seeds: Vec<String>,
    /// File with more seeds, one a line; it is watched
    #[arg(long, value_name = "FILE", env = "NODOSUM_SEEDS_FILE", hide_env = true)]
    pub(crate) seeds_file: Option<PathBuf>,
    /// Directory with ca.pem, node.pem and node.key
    #[arg(long, value_name = "DIR", env = "NODOSUM_TLS_DIR", hide_env = true)]
    pub(crate) tls_dir: Option<PathBuf>,
    /// Page, metrics, health checks over plain HTTP; off unless given
    #[arg(long, value_name = "IP:PORT", env = "NODOSUM_HTTP", hide_env = true)]
    pub(crate) http: Option<SocketAddr>,
    /// Name under which clients may address --http, beside its address; may be repeated
    #[arg(
        long = "http-name",
        value_name = "NAME",
        env = "NODOSUM_HTTP_NAME",
        hide_env = true,
        value_delimiter = ','
    )]
    pub(crate) http_names: Vec<String>,
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Write the bound addresses to this file, as JSON
    #[arg(long, value_name = "PATH", env = "NODOSUM_PORTS_FILE", hide_env = true)]
    pub(crate) ports_file: Option<PathBuf>,
    /// Timing of membership
    #[arg(
        long,
        value_enum,
        default_value_t,
        env = "NODOSUM_PROFILE",
        hide_env = true,
        hide_possible_values = true,
        value_name = "lan|wan|local"
    )]
    pub(crate) profile: Profile,
    /// Label of this node; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = tag, env = "NODOSUM_TAG", hide_env = true)]
    pub(crate) tags: Vec<(String, String)>,
    /// Kept over restarts: the node then finds back without a seed
    #[arg(long, value_name = "DIR", env = "NODOSUM_STATE_DIR", hide_env = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// How long members that are gone are dialled [default: 7d]
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "7d",
        hide_default_value = true,
        value_parser = validity,
        env = "NODOSUM_REMEMBER_FOR",
        hide_env = true
    )]
    pub(crate) remember_for: Duration,
    /// Threads that share all connections [default: one each]
    #[arg(
        long,
        value_name = "N",
        default_value = "0",
        hide_default_value = true,
        value_parser = clap::value_parser!(u16).range(0..=256),
        env = "NODOSUM_WORKERS",
        hide_env = true
    )]
    pub(crate) workers: u16,
    /// How long leaving may take at the end [default: 5s]
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "5s",
        hide_default_value = true,
        value_parser = leave_timeout,
        env = "NODOSUM_LEAVE_TIMEOUT",
        hide_env = true
    )]
    pub(crate) leave_timeout: Duration,
    /// What to log, as in RUST_LOG [default: info,quiche=warn]
    #[arg(
        long,
        value_name = "FILTER",
        default_value = DEFAULT_FILTER,
        hide_default_value = true,
        value_parser = log_filter,
        env = "NODOSUM_LOG",
        hide_env = true
    )]
    pub(crate) log: String,
    /// Log lines on standard error
    #[arg(
        long,
        value_enum,
        default_value_t,
        env = "NODOSUM_LOG_FORMAT",
        hide_env = true,
        hide_possible_values = true,
        value_name = "text|json"
    )]
    pub(crate) log_format: LogFormat,
}

/// Timing of membership.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    #[default]
    Lan,
    Wan,
    Local,
}

/// Where the node's admin socket is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Admin {
    /// The node's admin socket; commands without it use the only one they find
    #[arg(
        long = "admin",
        id = "admin",
        value_name = "PATH",
        env = "NODOSUM_ADMIN",
        hide_env_values = true
    )]
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum demo --nodes 5 --for 30s

The nodes find each other, exchange requests between every pair, lose one and get it back. The last
line is PASS or FAIL. Without --for and on a terminal the demo goes on until Ctrl-C.")]
pub(crate) struct Demo {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=50))]
    pub(crate) nodes: u8,
    /// Time for everything; after the steps, requests go on until it is over
    #[arg(long = "for", value_name = "DURATION", value_parser = timeout)]
    pub(crate) budget: Option<Duration>,
    /// Text for people, or one JSON object for each step
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: DemoFormat,
    /// Keep the certificates and print where they are
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  nodosum tls ca create --cluster prod --out ca
  nodosum tls cert create --ca ca --node n1 --out n1
  nodosum tls inspect n1/node.pem")]
pub(crate) enum Tls {
    /// The certificate authority of a cluster
    #[command(subcommand)]
    Ca(Ca),
    /// Certificates of nodes
    #[command(subcommand)]
    Cert(Cert),
    /// Show what the certificates in a file say
    Inspect(Inspect),
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  nodosum tls ca create --cluster prod --out ca")]
pub(crate) enum Ca {
    /// Make an authority: ca.pem and ca.key
    Create(CaCreate),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum tls ca create --cluster prod --out ca

Whoever has ca.key can be any node of the cluster. It belongs on no node.")]
pub(crate) struct CaCreate {
    /// The one cluster it can issue certificates for
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: ClusterName,
    /// Directory to write ca.pem and ca.key to
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How long it is valid
    #[arg(long, value_name = "DURATION", default_value = "3650d", value_parser = validity)]
    pub(crate) valid_for: Duration,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  nodosum tls cert create --ca ca --node n1 --out n1")]
pub(crate) enum Cert {
    /// Issue a certificate: a directory ready to be a --tls-dir
    Create(CertCreate),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum tls cert create --ca ca --node n1 --out n1
  nodosum run --tls-dir n1")]
pub(crate) struct CertCreate {
    /// Directory with ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    pub(crate) ca: PathBuf,
    /// Name of the node
    #[arg(long, value_name = "NAME")]
    pub(crate) node: NodeId,
    /// Name of the cluster; must agree with the authority's
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<ClusterName>,
    /// Directory to write ca.pem, node.pem and node.key to
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How long it is valid, at most as long as the authority
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = validity)]
    pub(crate) valid_for: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nodosum tls inspect n1/node.pem")]
pub(crate) struct Inspect {
    /// A PEM file with certificates
    pub(crate) file: PathBuf,
    /// Text for people, or JSON
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: DemoFormat,
}

/// How a read command prints.
#[derive(Debug, Clone, Args)]
pub(crate) struct Read {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// table, wide, json, jsonl, tsv or name
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true,
        hide_default_value = true
    )]
    pub(crate) output: Format,
    /// Leave out the header row
    #[arg(long)]
    pub(crate) no_header: bool,
}

impl Read {
    pub(crate) fn layout(&self) -> Layout {
        Layout {
            format: self.output,
            header: !self.no_header,
        }
    }
}

/// Doing it again and again.
#[derive(Debug, Clone, Args)]
pub(crate) struct Watch {
    /// Repeat every SECS seconds, 2 if not given
    #[arg(long = "watch", id = "watch", value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "2", value_parser = watch_interval)]
    pub(crate) interval: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum members --status alive --tag zone=a -o json
  nodosum members n3 --explain

Exits with 4 when a filter is given and nothing matches.")]
pub(crate) struct Members {
    /// Only this one
    pub(crate) node: Option<NodeId>,
    /// Tell why this node believes of NODE what it does: accusers, probes, the connection
    #[arg(long, requires = "node", conflicts_with_all = ["watch", "status", "name", "tags", "sort"])]
    pub(crate) explain: bool,
    #[command(flatten)]
    pub(crate) read: Read,
    #[command(flatten)]
    pub(crate) watch: Watch,
    /// Only these: alive, suspect, dead, left
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "STATUS",
        hide_possible_values = true
    )]
    pub(crate) status: Vec<MemberStatus>,
    /// Only members whose name matches this regular expression
    #[arg(long, value_name = "RE")]
    pub(crate) name: Option<Regex>,
    /// Only members with this tag; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = tag)]
    pub(crate) tags: Vec<(String, String)>,
    /// Order: node, status, rtt or incarnation
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "KEY",
        hide_possible_values = true
    )]
    pub(crate) sort: MemberSort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MemberStatus {
    Alive,
    Suspect,
    Dead,
    Left,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum MemberSort {
    #[default]
    Node,
    Status,
    Rtt,
    Incarnation,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum conns --status down,handshaking --watch=1

A member without a connection has a row too, with the reason and the next try. Exits with 4 when a
filter is given and nothing matches.")]
pub(crate) struct Conns {
    #[command(flatten)]
    pub(crate) read: Read,
    #[command(flatten)]
    pub(crate) watch: Watch,
    /// Only these: handshaking, established, draining, down
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "STATE",
        hide_possible_values = true
    )]
    pub(crate) status: Vec<ConnState>,
    /// Only peers whose name matches this regular expression
    #[arg(long, value_name = "RE")]
    pub(crate) name: Option<Regex>,
    /// Order: peer, state, rtt, up, sent, received or lost
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "KEY",
        hide_possible_values = true
    )]
    pub(crate) sort: ConnSort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConnState {
    Handshaking,
    Established,
    Draining,
    Down,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConnSort {
    #[default]
    Peer,
    State,
    Rtt,
    Up,
    Sent,
    Received,
    Lost,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nodosum status -o json")]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) read: Read,
    #[command(flatten)]
    pub(crate) watch: Watch,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum events -f -o jsonl

Prints what the node remembers, at most 1,024 events, and with -f what happens from then on. What
was dropped is told by an event `lagged`.")]
pub(crate) struct Events {
    #[command(flatten)]
    pub(crate) read: Read,
    /// Go on until the node ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only events about nodes whose name matches this regular expression
    #[arg(long, value_name = "RE")]
    pub(crate) name: Option<Regex>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum wait --members 3 --connected 2 --timeout 30s

Everything asked for must hold at once. Exits with 4 at the time-out, with 3 when no node answered
until then.")]
pub(crate) struct Wait {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// At least this many members are alive, the node itself included
    #[arg(long, value_name = "N")]
    pub(crate) members: Option<u32>,
    /// At least this many peers are connected
    #[arg(long, value_name = "N")]
    pub(crate) connected: Option<u32>,
    /// The first join round is over; asked for when nothing else is
    #[arg(long)]
    pub(crate) ready: bool,
    /// When to give up
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = timeout)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nodosum ping n2 -c 5")]
pub(crate) struct Ping {
    /// The member
    pub(crate) node: NodeId,
    /// How many times, one a second
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// How long to wait for each answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum send --to n2 --to n3 --app echo hello

`ok` means that the receiving node acknowledged the message. PAYLOAD `-` reads standard input.")]
pub(crate) struct Send {
    /// The receiving node; may be repeated
    #[arg(long, value_name = "NODE", required = true)]
    pub(crate) to: Vec<NodeId>,
    #[command(flatten)]
    pub(crate) message: Message,
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum broadcast --app echo hello

`ok` means that the receiving node acknowledged the message. PAYLOAD `-` reads standard input.
Exits with 4 when no peer is connected.")]
pub(crate) struct Broadcast {
    #[command(flatten)]
    pub(crate) message: Message,
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum request --to n2 --app echo hello

Every node of `nodosum run` answers the application `echo`. PAYLOAD `-` reads standard input.")]
pub(crate) struct Request {
    /// The node to ask
    #[arg(long, value_name = "NODE")]
    pub(crate) to: NodeId,
    #[command(flatten)]
    pub(crate) message: Message,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

/// What is sent.
#[derive(Debug, Args)]
pub(crate) struct Message {
    /// The application on the receiving side
    #[arg(long, value_name = "NAME")]
    pub(crate) app: String,
    /// When to give up
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    /// The bytes to send; `-` reads them from standard input
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) payload: OsString,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum event deploy v2

It comes to every node that is there, once, as the event `user_event` (nodosum events -f). Name and
payload together have at most 512 bytes. PAYLOAD `-` reads standard input.")]
pub(crate) struct Event {
    /// What kind of news it is: 1 to 64 of letters, digits, '.', '_' and '-'
    pub(crate) name: String,
    /// The news
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) payload: OsString,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum query echo hello --tag role=web --timeout 2s

Every node of `nodosum run` answers the query `echo`; programs answer what they like. PAYLOAD `-`
reads standard input. Exits with 1 when a node that was asked says nothing in time, with 4 when
nobody has an answer.")]
pub(crate) struct Query {
    /// What is asked: 1 to 64 of letters, digits, '.', '_' and '-'
    pub(crate) name: String,
    /// What comes with the question
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) payload: OsString,
    /// Ask only this node; may be repeated
    #[arg(long = "node", value_name = "NODE")]
    pub(crate) nodes: Vec<NodeId>,
    /// Ask only nodes with this tag; of several, all must hold
    #[arg(long = "tag", value_name = "K=V", value_parser = tag)]
    pub(crate) tags: Vec<(String, String)>,
    /// How long to wait for answers, at most ten minutes
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum tags --set role=web --set zone=a --delete canary

Prints the tags that hold then; without --set and --delete those that hold now. All together take
at most 512 bytes, counting six for each. They last until the node ends.")]
pub(crate) struct Tags {
    /// Add or replace a tag; may be repeated
    #[arg(long = "set", value_name = "K=V", value_parser = tag)]
    pub(crate) set: Vec<(String, String)>,
    /// Remove a tag, if it is there; may be repeated
    #[arg(long = "delete", value_name = "K")]
    pub(crate) delete: Vec<String>,
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nodosum join 10.0.0.1:7946 10.0.0.2:7946")]
pub(crate) struct Join {
    /// QUIC addresses of members
    #[arg(value_name = "HOST:PORT", required = true)]
    pub(crate) seeds: Vec<String>,
    /// When to give up
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum leave

The process goes on running until it is ended. TERM leaves by itself: this command is for seeing
who confirmed it before the process goes.")]
pub(crate) struct Leave {
    /// How long to wait for others to confirm
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum force-leave n3

Acts on a member that is dead in the eyes of the node; exits with 4 otherwise.")]
pub(crate) struct ForceLeave {
    /// The dead member
    pub(crate) node: NodeId,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  nodosum keys rotate && nodosum keys list

The cluster makes its keys itself and passes them on over authenticated connections. A secret is never
shown.")]
pub(crate) enum Keys {
    /// List the keys and how many members have confirmed each
    List(KeysList),
    /// Make a new key and wait until it is in use everywhere
    Rotate(KeyRotate),
    /// Remove a key, and all older ones, for good
    Remove(KeyRemove),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum keys list -o wide

A rotation is finished when the newest key seals and all members have confirmed it. Each node seals
with the newest key that all its live peers have confirmed.")]
pub(crate) struct KeysList {
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum keys rotate --timeout 30s

Exits with 4 when some member has not confirmed the new key in time; it spreads all the same, and a
member that was away gets it when it returns.")]
pub(crate) struct KeyRotate {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// How long to wait until it is in use and confirmed by all
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum keys remove 5b1f0c9a77e2d304

Exits with 4 when there is no such key, or when the node still seals with it or an older one.")]
pub(crate) struct KeyRemove {
    /// The key, as `keys list` shows it
    pub(crate) key: KeyId,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  nodosum log set swim=debug,info --for 5m

A filter is a level (off, error, warn, info, debug, trace), or TARGET=LEVEL, or several of these.
Targets: swim, mesh, transport, reactor, node, admin, http.")]
pub(crate) enum Log {
    /// Show the filter in force
    Show(LogShow),
    /// Log by another filter, for a while or until the node ends
    Set(LogSet),
    /// Go back to the filter that the node was configured with
    Reset(LogReset),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nodosum log show -o json")]
pub(crate) struct LogShow {
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum log set mesh=debug,transport=debug,info --for 5m

Without --for it holds until 'log reset', the next 'log set', or the end of the node.")]
pub(crate) struct LogSet {
    /// What to log, as in RUST_LOG
    #[arg(value_parser = log_filter)]
    pub(crate) filter: String,
    /// Go back by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = timeout)]
    pub(crate) duration: Option<Duration>,
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nodosum log reset")]
pub(crate) struct LogReset {
    #[command(flatten)]
    pub(crate) read: Read,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum top
  nodosum top -b -n 1 --sort rtt

Keys: q quit, o order, r reverse, f filter, p pause, e events, + and - pace, ? help.")]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Time between two looks
    #[arg(short, long, value_name = "SECS", default_value = "1", value_parser = watch_interval)]
    pub(crate) delay: Duration,
    /// How many looks; without, until 'q'
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: Option<u32>,
    /// Plain text, one look after the other; as always when the output is no terminal
    #[arg(short, long)]
    pub(crate) batch: bool,
    /// Order: peer, state, rtt, lost, in, out, up or idle
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "KEY",
        hide_possible_values = true
    )]
    pub(crate) sort: TopSort,
    /// Only peers whose name matches this regular expression
    #[arg(long, value_name = "RE")]
    pub(crate) name: Option<Regex>,
}

/// The order of the rows of `top`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TopSort {
    #[default]
    Peer,
    State,
    Rtt,
    Lost,
    In,
    Out,
    Up,
    Idle,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum doctor --tls-dir n1 --seed 10.0.0.1:7946
  nodosum doctor --config /etc/nodosum/nodosum.toml

Looks at the certificate, the seeds and the path to them, the machine, and at a running node where
there is one. Exits with 1 when something fails; a warning is no failure.")]
pub(crate) struct Doctor {
    /// TOML file whose settings are looked at
    #[arg(long, value_name = "FILE", env = "NODOSUM_CONFIG", hide_env = true)]
    pub(crate) config: Option<PathBuf>,
    /// Directory with ca.pem, node.pem and node.key
    #[arg(long, value_name = "DIR", env = "NODOSUM_TLS_DIR", hide_env = true)]
    pub(crate) tls_dir: Option<PathBuf>,
    /// A seed that should answer; may be repeated
    #[arg(
        long = "seed",
        value_name = "HOST:PORT",
        env = "NODOSUM_SEED",
        hide_env = true,
        value_delimiter = ','
    )]
    pub(crate) seeds: Vec<String>,
    /// How long each seed may take for an answer
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    /// Text for people, or JSON
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: DemoFormat,
    #[command(flatten)]
    pub(crate) admin: Admin,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  nodosum debug bundle --for 10s")]
pub(crate) enum Debug {
    /// Write one tar file with everything that explains a node's state
    Bundle(Bundle),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum debug bundle --for 10s --out n1.tar

Status, members, connections, events, keys without secrets, settings, threads, what the doctor says.
No key, no payload. Names and addresses of nodes are in it.")]
pub(crate) struct Bundle {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Look twice, this long apart, so that rates can be told
    #[arg(long = "for", value_name = "DURATION", default_value = "5s", value_parser = timeout)]
    pub(crate) duration: Duration,
    /// The file to write [default: nodosum-NODE-TIME.tar]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Example:
  nodosum config init --out nodosum.toml
  nodosum config check nodosum.toml
  nodosum config show --config nodosum.toml --origin")]
pub(crate) enum Config {
    /// Write a file with every setting, commented out
    Init(ConfigInit),
    /// Judge a file without starting anything
    Check(ConfigCheck),
    /// Show what 'run' with the same flags would use
    Show(Box<ConfigShow>),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nodosum config init --out nodosum.toml")]
pub(crate) struct ConfigInit {
    /// The file to write; it must not exist. Without, standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum config check /etc/nodosum/nodosum.toml

Every mistake is told with its line. Exits with 5 when there is one.")]
pub(crate) struct ConfigCheck {
    /// A TOML file
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum config show --config nodosum.toml --seed n2:7946 --origin

Takes the flags of 'run' and prints a file with what they and the variables amount to.")]
pub(crate) struct ConfigShow {
    /// Say where each value comes from
    #[arg(long)]
    pub(crate) origin: bool,
    /// TOML, or one JSON object
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: ConfigFormat,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConfigFormat {
    #[default]
    Toml,
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum completions bash > ~/.local/share/bash-completion/completions/nodosum
  nodosum completions zsh > ~/.zfunc/_nodosum")]
pub(crate) struct Completions {
    /// bash, zsh, fish, elvish or powershell
    #[arg(hide_possible_values = true)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nodosum man | man -l -
  nodosum man --out /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Write a page for each command into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// Reads `250ms`, `30s`, `1h 30m`, `90d`; a day has 24 hours.
fn duration(text: &str, longest: Duration) -> Result<Duration, String> {
    let example = "write it with a unit, such as 250ms, 30s or 90d";
    let span: Span = text
        .parse()
        .map_err(|_| format!("not a duration; {example}"))?;
    let duration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| "months and years have no fixed length; use days".to_owned())?;
    let duration = Duration::try_from(duration).map_err(|_| "must not be negative".to_owned())?;
    if duration > longest {
        return Err(format!("longer than {} days", longest.as_secs() / 86_400));
    }
    Ok(duration)
}

fn timeout(text: &str) -> Result<Duration, String> {
    duration(text, MAX_TIMEOUT)
}

/// A leave that takes longer than an hour is a node that does not end.
fn leave_timeout(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(60 * 60))
}

fn log_filter(text: &str) -> Result<String, String> {
    logging::check_filter(text)?;
    Ok(text.to_owned())
}

fn validity(text: &str) -> Result<Duration, String> {
    duration(text, MAX_VALIDITY)
}

/// Reads seconds as a plain number, or a duration. Faster than ten a second helps nobody.
fn watch_interval(text: &str) -> Result<Duration, String> {
    let interval = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => timeout(text)?,
    };
    if !(Duration::from_millis(100)..=MAX_TIMEOUT).contains(&interval) {
        return Err("must be between 0.1 seconds and a day".to_owned());
    }
    Ok(interval)
}

fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("not KEY=VALUE".to_owned()),
    }
}

/// The first tag that is given twice.
pub(crate) fn repeated_tag(tags: &[(String, String)]) -> Option<&str> {
    let mut seen = BTreeSet::new();
    tags.iter()
        .map(|(key, _)| key.as_str())
        .find(|key| !seen.insert(*key))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_with_their_units() {
        let good = [
            ("250ms", Duration::from_millis(250)),
            ("30s", Duration::from_secs(30)),
            ("1.5s", Duration::from_millis(1_500)),
            ("1h 30m", Duration::from_secs(5_400)),
            ("90d", Duration::from_secs(90 * 86_400)),
            ("0s", Duration::ZERO),
        ];
        for (text, expected) in good {
            assert_eq!(validity(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "1 month",
            "1y",
            "40000d",
            "99999999999999d",
            "5s junk",
        ] {
            assert!(validity(bad).is_err(), "{bad:?} was taken");
        }
        assert!(timeout("25h").is_err());
    }

    #[test]
    fn a_watch_interval_is_seconds_or_a_duration() {
        assert_eq!(watch_interval("2"), Ok(Duration::from_secs(2)));
        assert_eq!(watch_interval("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(watch_interval("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "1e300", "0.01", "2d", "x"] {
            assert!(watch_interval(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn tags_are_key_and_value() {
        assert_eq!(tag("zone=a=b"), Ok(("zone".into(), "a=b".into())));
        assert_eq!(tag("empty="), Ok(("empty".into(), String::new())));
        assert!(tag("zone").is_err() && tag("=a").is_err());
        let tags = ["a=1", "b=2", "a=3"].map(|text| tag(text).unwrap());
        assert_eq!(repeated_tag(&tags), Some("a"));
        assert_eq!(repeated_tag(&tags[..2]), None);
    }
}
