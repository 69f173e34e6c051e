//! Sockets. The only file with `unsafe`: socket options and control messages that no safe crate
//! offers.
//!
//! **Batches.** Linux cuts one large send into datagrams of equal size (GSO, `UDP_SEGMENT`) and puts
//! datagrams of one sender together again for one receive (GRO, `UDP_GRO`), which saves most of what
//! a datagram costs. The size to cut to is set once on the socket, because a control message on each
//! send would make the kernel look its route up again. Both are tried at start on a socket of their
//! own; where the system refuses one, or [`Offload`] switches it off, datagrams go one by one.
//!
//! An accepted connection has a connected socket on the listener's own port, so that the kernel
//! demultiplexes. Between `bind` and `connect` such a socket would be given datagrams of strangers;
//! a one-instruction classic BPF program on the listener's reuseport group sends them all to the
//! listener instead ("return 0": the first socket of the group, which is the listener and is never
//! closed before the others). What slips through all the same is handed back by the worker.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::OnceLock,
};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::without::is_without;

/// Receive and send buffers asked for; the system may grant less (`net.core.rmem_max`).
const LISTENER_BUFFER_BYTES: usize = 4 << 20;
const CONNECTION_BUFFER_BYTES: usize = 4 << 20;

/// The largest thing that one send or receive carries: what IPv4 has room for.
pub(super) const MAX_BATCH_BYTES: usize = 65_507;

/// Room for one receive: GRO never puts more together.
pub(super) const RECEIVE_BYTES: usize = 65_536;

/// Datagrams in one send. Kernels before 6.10 stop at 64.
pub(super) const MAX_SEGMENTS: usize = 64;

/// Forbids that datagrams are cut on the way, so that those that are too large for the path are lost,
/// or refused here: QUIC finds out what the path carries (RFC 9000 §14). What ICMP messages claim is not
/// believed.
#[cfg(target_os = "linux")]
pub(super) fn forbid_fragments(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv6() {
        let (option, value) = (libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE);
        return set_option(socket, libc::IPPROTO_IPV6, option, value);
    }
    let (option, value) = (libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
    set_option(socket, libc::IPPROTO_IP, option, value)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn forbid_fragments(_: &UdpSocket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// What of the system's help is used. Each is probed at start and left out where it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offload {
    /// One send for many datagrams (Linux 4.18).
    pub gso: bool,
    /// One receive for many datagrams (Linux 5.0).
    pub gro: bool,
    /// A connected socket for each accepted connection, behind a BPF program that steers strangers to
    /// the listener. Without, accepted connections share the listener's socket.
    pub connected_accept: bool,
}

impl Offload {
    /// All that the system grants.
    pub const ALL: Self = Self {
        gso: true,
        gro: true,
        connected_accept: true,
    };

    /// None of it.
    pub const NONE: Self = Self {
        gso: false,
        gro: false,
        connected_accept: false,
    };

    /// All, less what the environment variable `NODOSUM_WITHOUT` names: `gso`, `gro`, `connected`.
    fn from_env() -> Self {
        Self {
            gso: !is_without("gso"),
            gro: !is_without("gro"),
            connected_accept: !is_without("connected"),
        }
    }

    /// What is both wanted here and granted by the system.
    #[doc(hidden)]
    pub fn granted(self) -> Self {
        static GRANTED: OnceLock<(bool, bool)> = OnceLock::new();
        let (gso, gro) = *GRANTED.get_or_init(probe);
        Self {
            gso: self.gso && gso,
            gro: self.gro && gro,
            ..self
        }
    }
}

impl Default for Offload {
    fn default() -> Self {
        static DEFAULT: OnceLock<Offload> = OnceLock::new();
        *DEFAULT.get_or_init(Self::from_env)
    }
}

/// Whether the system takes the options for GSO and GRO.
fn probe() -> (bool, bool) {
    let Ok(socket) = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)) else {
        return (false, false);
    };
    let granted = (
        set_udp_option(&socket, UDP_SEGMENT, 1_200).is_ok(),
        set_udp_option(&socket, UDP_GRO, 1).is_ok(),
    );
    log::debug!(target: "transport", gso = granted.0, gro = granted.1; "offloads probed");
    granted
}

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
pub(crate) fn listen(addr: SocketAddr, offload: Offload) -> io::Result<Listener> {
    let socket = open(addr)?;
    bound(&socket, addr, LISTENER_BUFFER_BYTES)?;
    let addr = local(&socket)?;
    let guarded = offload.connected_accept
        && guard(&socket, addr)
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

/// Has the kernel cut what is sent into datagrams of so many bytes, the last of which may be shorter.
/// What is not larger is one datagram, as before.
pub(super) fn segment_to(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    set_udp_option(socket, UDP_SEGMENT, bytes)
}

/// Has the kernel put received datagrams together; from then on only [`receive`] can read the socket.
pub(super) fn gather(socket: &UdpSocket) -> io::Result<()> {
    set_udp_option(socket, UDP_GRO, 1)
}

#[cfg(target_os = "linux")]
use libc::{UDP_GRO, UDP_SEGMENT};
#[cfg(not(target_os = "linux"))]
const UDP_GRO: libc::c_int = 0;
#[cfg(not(target_os = "linux"))]
const UDP_SEGMENT: libc::c_int = 0;

#[cfg(target_os = "linux")]
fn set_udp_option(
    socket: &impl AsRawFd,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, option, value)
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "these options have no safe wrapper")]
fn set_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the option takes an `int`, which the kernel copies.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(not(target_os = "linux"))]
fn set_udp_option(_: &impl AsRawFd, _: libc::c_int, _: libc::c_int) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a send failed because it was a batch: the device does no checksums, or the size to cut to
/// is more than the path carries. Other errors are about the path itself.
pub(super) fn is_about_batches(error: &io::Error) -> bool {
    let batch_errors = [libc::EIO, libc::EINVAL, libc::EMSGSIZE, libc::EOPNOTSUPP];
    error
        .raw_os_error()
        .is_some_and(|code| batch_errors.contains(&code))
}

/// Whether a send failed because the path, or its first device, does not carry datagrams of this size.
/// The system says the second for a batch of them.
pub(super) fn is_about_size(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL))
}

/// What one receive brought.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    pub(super) bytes: usize,
    /// Each datagram has so many bytes, but for the last, which may have fewer.
    pub(super) segment: usize,
    pub(super) from: SocketAddr,
}

/// A control message of one `int` and its header, with room for alignment.
#[repr(C, align(8))]
struct ControlRoom([u8; 64]);

/// Receives without waiting: one datagram, or several of one sender that the kernel put together.
/// `buffer` has [`RECEIVE_BYTES`], so that none is cut off.
#[expect(
    unsafe_code,
    reason = "the size of the segments comes in a control message"
)]
pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    let mut from = SockAddrStorage::zeroed();
    let mut room = ControlRoom([0; 64]);
    let mut piece = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all zeros is a valid `msghdr`, whose fields differ between systems.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = from.size_of();
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = room.0.as_mut_ptr().cast();
    message.msg_controllen = room.0.len() as _;
    // SAFETY: every pointer in `message` is to a live local or to `buffer`, with its true length.
    let bytes = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let bytes = usize::try_from(bytes).map_err(|_| io::Error::last_os_error())?;
    let mut segment = bytes;
    // SAFETY: the kernel has filled `msg_control` and `msg_controllen`; the macros stay within them,
    // and `CMSG_DATA` of a message of this type holds an `int`, which is read unaligned.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(control) = header.as_ref() {
            if control.cmsg_level == libc::SOL_UDP && control.cmsg_type == UDP_GRO {
                let size = libc::CMSG_DATA(header)
                    .cast::<libc::c_int>()
                    .read_unaligned();
                segment = usize::try_from(size).unwrap_or(bytes);
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    // SAFETY: the kernel wrote an address of so many bytes into the storage.
    let from = unsafe { SockAddr::new(from, message.msg_namelen) };
    let from = from
        .as_socket()
        .ok_or_else(|| io::Error::other("not an IP socket"))?;
    Ok(Received {
        bytes,
        segment: segment.clamp(1, bytes.max(1)),
        from,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn strangers_reach_the_listener_and_a_peer_its_own_socket() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), Offload::ALL).unwrap();
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
        let listener = listen("127.0.0.1:0".parse().unwrap(), Offload::ALL).unwrap();
        let error = listen(listener.addr, Offload::ALL).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_batch_is_cut_into_datagrams_and_put_together_again() {
        let granted = Offload::ALL.granted();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let sender = dial(receiver.local_addr().unwrap()).unwrap();
        if !granted.gso || !granted.gro {
            eprintln!("SKIPPED: this system has no GSO or no GRO: {granted:?}");
            return;
        }
        segment_to(&sender, 1_000).unwrap();
        let batch: Vec<u8> = (0..3_400_u32).map(|at| (at / 1_000) as u8).collect();
        assert_eq!(sender.send(&batch).unwrap(), batch.len());
        let mut buffer = vec![0; RECEIVE_BYTES];
        let lengths: Vec<usize> = (0..4)
            .map(|_| receiver.recv(&mut buffer).unwrap())
            .collect();
        assert_eq!(lengths, [1_000, 1_000, 1_000, 400]);

        gather(&receiver).unwrap();
        assert_eq!(sender.send(&batch).unwrap(), batch.len());
        let mut got = Vec::new();
        while got.len() < batch.len() {
            receiver.peek(&mut [0; 1]).expect("the rest comes");
            let received = receive(&receiver, &mut buffer).unwrap();
            assert_eq!(received.from, sender.local_addr().unwrap());
            assert!(received.segment == 1_000 || received.segment == received.bytes);
            got.extend_from_slice(&buffer[..received.bytes]);
        }
        assert_eq!(got, batch);
        // A short one is one datagram still.
        sender.send(&batch[..300]).unwrap();
        receiver.peek(&mut [0; 1]).expect("it comes");
        let received = receive(&receiver, &mut buffer).unwrap();
        assert_eq!((received.bytes, received.segment), (300, 300));
    }
}
