//! UDP as BFD wants it: TTL 255 both ways, source ports of its own range.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::net::UdpSocket;

use super::BfdPeer;
use crate::bfd;
use crate::runtime::socket::scoped;

/// RFC 5881 §4: where source ports begin.
const FIRST_SOURCE_PORT: u16 = 49152;
const SOURCE_PORTS: u16 = u16::MAX - FIRST_SOURCE_PORT + 1;
/// Room for packets that wait until the thread gets a processor: a thousand sessions at 50 ms have 25,000 in a second, each of which counts
/// as some 800 bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Network control (CS6), as routing protocols have it.
const TRAFFIC_CLASS: u32 = 0xc0;

// Classic BPF (linux/filter.h, linux/bpf_common.h).
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Offsets from here on are into the IP header (SKF_NET_OFF).
const IP_HEADER: u32 = 0xfff0_0000;

/// Where packets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    v6: bool,
    pub(super) multihop: bool,
}

impl Kind {
    pub(super) fn of(peer: &BfdPeer) -> Kind {
        Kind { v6: peer.address.is_ipv6(), multihop: peer.multihop }
    }
}

/// What takes in packets of one kind: one socket, of which the reactor tells that it has something, and which can be asked at any time.
pub(super) struct Listener {
    pub(super) told: UdpSocket,
    pub(super) asked: std::net::UdpSocket,
}

impl Listener {
    /// # Errors
    /// The port is taken, or the kernel refuses.
    pub(super) fn new(kind: Kind) -> io::Result<Listener> {
        let asked = listen(kind)?;
        Ok(Listener { told: UdpSocket::from_std(asked.try_clone()?)?, asked })
    }
}

fn listen(Kind { v6, multihop }: Kind) -> io::Result<std::net::UdpSocket> {
    let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    let address = SocketAddr::new(any, bfd::port(multihop));
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    if !multihop {
        // RFC 5881 §5: what a router has forwarded is not taken. The kernel looks for us: TTL, or hop limit, at its place in the header.
        let place = IP_HEADER + if v6 { 7 } else { 8 };
        socket.attach_filter(&[
            SockFilter::new(LOAD_BYTE, 0, 0, place),
            SockFilter::new(JUMP_IF_EQUAL, 0, 1, u8::MAX.into()),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
            SockFilter::new(RETURN, 0, 0, 0),
        ])?;
    }
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        // Without the capability NET_ADMIN as much as anyone may have.
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// What sends to `peer`; `number` spreads sessions over source ports.
///
/// # Errors
/// The interface, the local address or a way to the peer is missing.
pub(super) fn connect(peer: &BfdPeer, number: u32) -> io::Result<std::net::UdpSocket> {
    let interface = peer.interface.as_deref();
    let domain = if peer.address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    let to = scoped(&socket, interface, peer.address, bfd::port(peer.multihop))?;
    let any = if to.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    if to.is_ipv6() {
        socket.set_unicast_hops_v6(u8::MAX.into())?;
        socket.set_tclass_v6(TRAFFIC_CLASS)?;
    } else {
        socket.set_ttl_v4(u8::MAX.into())?;
        socket.set_tos_v4(TRAFFIC_CLASS)?;
    }
    let local = peer.local_address.unwrap_or(any);
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for step in 0..SOURCE_PORTS {
        let spread = number.wrapping_add(step.into()) % u32::from(SOURCE_PORTS);
        let port = FIRST_SOURCE_PORT + u16::try_from(spread).unwrap_or(0);
        match socket.bind(&scoped(&socket, interface, local, port)?.into()) {
            Ok(()) => {
                socket.connect(&to.into())?;
                return Ok(socket.into());
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}
