//! The public face: a running node and the applications on it.
#![allow(
    unused_variables,
    clippy::all,
    missing_docs,
    reason = "signatures only, for now"
)]
use std::{net::SocketAddr, time::Duration};

use crossbeam_channel::Receiver;

use crate::*;

/// Timing profile of membership (memberlist's values).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Profile {
    #[default]
    Lan,
    Wan,
    Local,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ready {
    /// The sockets are bound and the first join round is over.
    Started,
    /// This many peers are connected.
    Peers(usize),
    /// Every alive member is connected.
    FullMesh,
    /// This many members are alive, this node included.
    Members(usize),
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Node {}

pub struct Builder {}
impl Builder {
    /// QUIC address; port 0 picks one. Default 127.0.0.1:0? No: 0.0.0.0:7946 for `run`.
    pub fn bind(self, addr: SocketAddr) -> Self {
        unimplemented!()
    }
    /// Default: the port after `bind`, 0 if that is 0.
    pub fn gossip_bind(self, addr: SocketAddr) -> Self {
        unimplemented!()
    }
    pub fn advertise(self, addr: SocketAddr) -> Self {
        unimplemented!()
    }
    pub fn gossip_advertise(self, addr: SocketAddr) -> Self {
        unimplemented!()
    }
    /// HOST:PORT, may be called often.
    pub fn seed(self, seed: impl Into<String>) -> Self {
        unimplemented!()
    }
    pub fn seeds(self, seeds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        unimplemented!()
    }
    pub fn tag(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        unimplemented!()
    }
    pub fn profile(self, profile: Profile) -> Self {
        unimplemented!()
    }
    /// Must agree with the certificate: StartError::Identity(Contradiction) otherwise.
    pub fn expect_node(self, name: impl Into<String>) -> Self {
        unimplemented!()
    }
    pub fn expect_cluster(self, name: impl Into<String>) -> Self {
        unimplemented!()
    }
    pub fn start(self) -> Result<Node, StartError> {
        unimplemented!()
    }
}

impl Node {
    pub fn builder(identity: Identity) -> Builder {
        unimplemented!()
    }
    pub fn id(&self) -> &NodeId {
        unimplemented!()
    }
    pub fn cluster(&self) -> &ClusterName {
        unimplemented!()
    }
    pub fn quic_addr(&self) -> SocketAddr {
        unimplemented!()
    }
    pub fn gossip_addr(&self) -> SocketAddr {
        unimplemented!()
    }
    pub fn wait_ready(&self, ready: Ready, timeout: Duration) -> Result<(), NotReady> {
        unimplemented!()
    }
    pub fn members(&self) -> Vec<MemberInfo> {
        unimplemented!()
    }
    pub fn peers(&self) -> Vec<PeerInfo> {
        unimplemented!()
    }
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        unimplemented!()
    }
    pub fn status(&self) -> Status {
        unimplemented!()
    }
    pub fn events(&self) -> Events {
        unimplemented!()
    }
    pub fn register(&self, name: &str) -> Result<App, RegisterError> {
        unimplemented!()
    }
    /// Returns how many seeds answered.
    pub fn join(&self, seeds: &[String], timeout: Duration) -> Result<usize, CommandError> {
        unimplemented!()
    }
    /// Says goodbye; the node goes on running, alone, until shutdown.
    pub fn leave(&self, timeout: Duration) -> Result<LeaveReport, CommandError> {
        unimplemented!()
    }
    pub fn force_leave(&self, node: &NodeId) -> Result<(), CommandError> {
        unimplemented!()
    }
    /// A health ping over the connection: its round-trip time.
    pub fn ping(&self, node: &NodeId, timeout: Duration) -> Result<Duration, RequestError> {
        unimplemented!()
    }
    pub fn shutdown(&self, timeout: Duration) -> ShutdownReport {
        unimplemented!()
    }
    /// Stops at once, without a leave and without closing connections, as `kill -9` would.
    pub fn abort(&self) {
        unimplemented!()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaveReport {
    pub confirmed: Vec<NodeId>,
    pub unconfirmed: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    pub left: bool,
    pub threads_stuck: Vec<String>,
}

/// One subscriber's bounded channel of events.
pub struct Events {}
impl Events {
    pub fn recv(&self) -> Option<Event> {
        unimplemented!()
    }
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Event> {
        unimplemented!()
    }
    pub fn try_recv(&self) -> Option<Event> {
        unimplemented!()
    }
    pub fn receiver(&self) -> &Receiver<Event> {
        unimplemented!()
    }
}

/// A registered application.
#[derive(Clone)]
pub struct App {}
impl App {
    pub fn name(&self) -> &str {
        unimplemented!()
    }
    pub fn send(
        &self,
        to: &NodeId,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
    ) -> Result<(), SendError> {
        unimplemented!()
    }
    pub fn send_many(&self, to: &[NodeId], payload: &[u8], timeout: Duration) -> Delivery {
        unimplemented!()
    }
    pub fn broadcast(&self, payload: &[u8], timeout: Duration) -> Delivery {
        unimplemented!()
    }
    pub fn request(
        &self,
        to: &NodeId,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        unimplemented!()
    }
    /// Waits until the peer has acknowledged every message sent so far.
    pub fn flush(&self, to: &NodeId, timeout: Duration) -> Result<(), SendErrorKind> {
        unimplemented!()
    }
    pub fn messages(&self) -> &Receiver<Message> {
        unimplemented!()
    }
    pub fn on_message(
        &self,
        workers: usize,
        handler: impl Fn(Message) + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        unimplemented!()
    }
    pub fn on_request(
        &self,
        workers: usize,
        handler: impl Fn(&Request) -> Result<Vec<u8>, String> + Send + Sync + 'static,
    ) -> Result<(), RegisterError> {
        unimplemented!()
    }
}

#[derive(Debug)]
#[non_exhaustive]
pub struct Message {
    pub from: NodeId,
    pub payload: Vec<u8>,
}
#[derive(Debug)]
#[non_exhaustive]
pub struct Request {
    pub from: NodeId,
    pub payload: Vec<u8>,
}
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Delivery {
    pub ok: Vec<NodeId>,
    pub failed: Vec<(NodeId, SendErrorKind)>,
}
