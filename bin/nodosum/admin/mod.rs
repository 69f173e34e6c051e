//! The admin socket: how commands talk to a running node.
//!
//! A Unix socket that only its owner can open, in a directory that only its owner can enter.
//! [`protocol`] has what is said over it, [`server`] the node's end, [`client`] the commands' end,
//! [`history`] the events that a node remembers for them. [`socket`] knows where sockets are and
//! how one takes the place of another.

pub(crate) mod client;
pub(crate) mod history;
pub(crate) mod protocol;
pub(crate) mod server;
pub(crate) mod socket;
