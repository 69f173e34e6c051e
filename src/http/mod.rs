//! A node's page, metrics and health checks over plain HTTP/1.1.
//!
//! It answers GET and HEAD and changes nothing, on a loopback address unless told otherwise: who can
//! reach it can read names, addresses and figures, and whoever must not should not reach it. Sockets and
//! their bounds are `server`'s, what a client may say is `head`'s, paths are `routes`'. Everything that
//! is shown is a copy of what the node publishes; no answer waits for a connection, and one dead peer
//! holds nothing up.
//!
//! Threads: `nd-http` for the sockets, three `nd-http-N` that make answers, `nd-http-watch` that
//! remembers the last minute; no more, whatever clients do.

mod head;
mod health;
mod page;
mod routes;
mod server;
mod text;
mod views;
mod watch;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Instant,
};

use crate::{rtts::Rtts, subscribers::Events, view::View};

use self::{head::Hosts, routes::Routes, server::Server, watch::Watcher};

/// Threads that serve HTTP.
pub(crate) const THREADS: usize = server::WORKERS + 2;

/// Where to listen, taken before anything of the node runs.
pub(crate) struct Bound {
    listener: TcpListener,
    pub(crate) addr: SocketAddr,
}

/// Takes the address.
///
/// # Errors
///
/// It is taken, or not this host's.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<Bound> {
    let listener = TcpListener::bind(addr)?;
    let addr = listener.local_addr()?;
    Ok(Bound { listener, addr })
}

/// A running server with all that belongs to it.
pub(crate) struct Http {
    server: Server,
    watcher: Watcher,
}

impl Http {
    /// Serves until [`stop`](Self::stop). `names` are hosts under which clients may address it, beside
    /// the address itself and loopback ones; `events` those of the node from its start on.
    ///
    /// # Errors
    ///
    /// What the system refused. Nothing runs then.
    pub(crate) fn start(
        bound: Bound,
        names: Vec<String>,
        view: Arc<View>,
        rtts: Arc<Rtts>,
        events: Events,
    ) -> io::Result<Self> {
        let addr = bound.addr;
        let (watch, watcher) = watch::start(Arc::clone(&view), rtts, events)?;
        let routes = Routes::new(view, watch);
        let answer = Arc::new(move |head: &head::Head| routes.answer(head));
        let server = Server::start(bound.listener, Hosts::new(names), answer)?;
        log::info!(target: "http", addr:%; "page and metrics served");
        Ok(Self { server, watcher })
    }

    /// Ends it, and returns the names of threads that have not ended by `deadline`.
    pub(crate) fn stop(self, deadline: Instant) -> Vec<String> {
        let mut stuck = self.server.stop(deadline);
        stuck.extend(self.watcher.stop(deadline));
        stuck
    }
}
