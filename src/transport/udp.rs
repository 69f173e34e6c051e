//! Sockets. The only file with `unsafe`: one socket option that no safe crate offers.
//!
//! An accepted connection has a connected socket on the listener's own port, so that the kernel
//! demultiplexes. Between `bind` and `connect` such a socket would be given datagrams of strangers;
//! a one-instruction classic BPF program on the listener's reuseport group sends them all to the
//! listener instead ("return 0": the first socket of the group, which is the listener and is never
//! closed before the others). What slips through all the same is handed back by the worker.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use socket2::{Domain, Protocol, Socket, Type};

/// Receive and send buffers asked for; the system may grant less (`net.core.rmem_max`).
const LISTENER_BUFFER_BYTES: usize = 4 << 20;
const CONNECTION_BUFFER_BYTES: usize = 1 << 20;

/// The listener of a node.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UdpSocket,
    pub(crate) addr: SocketAddr,
    /// Whether accepted connections may have sockets of their own on this port.
    pub(crate) guarded: bool,
}

/// Binds the QUIC listener. A second process on the same port is refused, although the socket
/// then joins a reuseport group for its own connections.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<Listener> {
    let socket = open(addr)?;
    bound(&socket, addr, LISTENER_BUFFER_BYTES)?;
    let addr = local(&socket)?;
    let guarded = guard(&socket, addr)
        .inspect_err(|error| {
            log::debug!(target: "transport", error:%; "no sockets for accepted connections");
        })
        .is_ok();
    Ok(Listener {
        socket: socket.into(),
        addr,
        guarded,
    })
}

/// Binds the gossip socket.
pub(crate) fn gossip(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(addr)?;
    bound(&socket, addr, LISTENER_BUFFER_BYTES)?;
    Ok(socket.into())
}

/// A socket of its own for a dialled connection, on an ephemeral port. It never joins a reuseport
/// group: that could give it a listener's port.
pub(crate) fn dial(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = open(peer)?;
    bound(&socket, SocketAddr::new(any, 0), CONNECTION_BUFFER_BYTES)?;
    socket.connect(&peer.into())?;
    Ok(socket.into())
}

/// A socket of its own for an accepted connection, on the listener's port.
pub(crate) fn accept(listener: SocketAddr, peer: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(peer)?;
    socket.set_reuse_port(true)?;
    bound(&socket, listener, CONNECTION_BUFFER_BYTES)?;
    socket.connect(&peer.into())?;
    Ok(socket.into())
}

fn open(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bound(socket: &Socket, addr: SocketAddr, buffer_bytes: usize) -> io::Result<()> {
    if addr.is_ipv6() {
        // One family a socket: a v4 socket beside a dual-stack one would take its datagrams.
        socket.set_only_v6(true)?;
    }
    socket.set_recv_buffer_size(buffer_bytes)?;
    socket.set_send_buffer_size(buffer_bytes)?;
    socket.bind(&addr.into())
}

fn local(socket: &Socket) -> io::Result<SocketAddr> {
    socket
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("not an IP socket"))
}

/// Makes the listener the first of a reuseport group and steers every stranger to it.
fn guard(listener: &Socket, addr: SocketAddr) -> io::Result<()> {
    listener.set_reuse_port(true)?;
    // The program can only be attached once the group exists, which takes a second member.
    let helper = open(addr)?;
    helper.set_reuse_port(true)?;
    helper.bind(&addr.into())?;
    steer_to_first(listener)
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "SO_ATTACH_REUSEPORT_CBPF has no safe wrapper")]
fn steer_to_first(listener: &Socket) -> io::Result<()> {
    // BPF_RET | BPF_K with k = 0: always the socket with index 0.
    let mut program = [libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let filter = libc::sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the descriptor is open, the option takes a `sock_fprog` of exactly this size, and
    // the kernel copies the program before the call returns.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(not(target_os = "linux"))]
fn steer_to_first(_: &Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn strangers_reach_the_listener_and_a_peer_its_own_socket() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        if !listener.guarded {
            eprintln!("SKIPPED: this system has no reuseport steering");
            return;
        }
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = accept(listener.addr, peer.local_addr().unwrap()).unwrap();
        peer.send_to(b"mine", listener.addr).unwrap();
        for _ in 0..64 {
            let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
            stranger.send_to(b"hello", listener.addr).unwrap();
        }
        listener.socket.set_nonblocking(false).unwrap();
        listener
            .socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut buffer = [0; 16];
        for _ in 0..64 {
            assert_eq!(listener.socket.recv(&mut buffer).unwrap(), 5);
        }
        assert_eq!(own.recv(&mut buffer).unwrap(), 4);
        assert_eq!(
            own.recv(&mut buffer).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn a_port_in_use_is_refused_to_a_second_listener() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = listen(listener.addr).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
