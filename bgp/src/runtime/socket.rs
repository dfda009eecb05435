//! TCP as BGP wants it: TTL, local address, orderly close.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::config::PeerConfig;
use super::md5::{self, Password};
use super::option;

/// How long the end of a connection may take.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// The TTL of what is sent to `peer`; `None` leaves it to the kernel. eBGP peers are one hop away unless told
/// otherwise, iBGP peers anywhere.
fn ttl(peer: &PeerConfig, own_asn: u32) -> Option<u8> {
    match peer.ttl_security {
        Some(_) => Some(u8::MAX),
        None => (peer.asn != own_asn).then(|| peer.multihop.unwrap_or(1)),
    }
}

/// Has the kernel drop what comes from further than `hops` away (RFC 5082 §3): each hop takes one off the greatest TTL.
/// `None`: takes in all.
fn set_least_ttl(socket: &SockRef<'_>, peer: IpAddr, hops: Option<u8>) -> io::Result<()> {
    let least = hops.map_or(0, |hops| libc::c_int::from(u8::MAX) + 1 - libc::c_int::from(hops.max(1)));
    let (level, name) = match peer {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
    };
    option::set(socket.as_fd(), level, name, &least.to_ne_bytes())
        .map_err(|error| io::Error::new(error.kind(), format!("TTL security: {error}")))
}

/// Options that every connection to `peer` has, whoever made it.
pub(super) fn configure(socket: &SockRef<'_>, peer: &PeerConfig, own_asn: u32) -> io::Result<()> {
    // Messages are whole when they are written.
    socket.set_tcp_nodelay(true)?;
    if peer.password.is_some() {
        // An accepted connection has its listener's key, unless it was made before the listener had one.
        md5::set_key(socket.as_fd(), peer.address.into(), peer.password.as_ref())?;
    }
    set_least_ttl(socket, peer.address, peer.ttl_security)?;
    match ttl(peer, own_asn) {
        None => Ok(()),
        Some(ttl) => set_ttl(socket, peer.address, ttl),
    }
}

fn set_ttl(socket: &SockRef<'_>, address: IpAddr, ttl: u8) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => socket.set_ttl_v4(ttl.into()),
        IpAddr::V6(_) => socket.set_unicast_hops_v6(ttl.into()),
    }
}

/// Connects to `peer`.
pub(super) async fn connect(peer: PeerConfig, own_asn: u32) -> io::Result<TcpStream> {
    let socket = if peer.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    configure(&SockRef::from(&socket), &peer, own_asn)?;
    let interface = peer.interface.as_deref();
    if let Some(local) = peer.local_address {
        socket.bind(scoped(&socket, interface, local, 0)?)?;
    }
    let to = scoped(&socket, interface, peer.address, peer.port)?;
    socket.connect(to).await
}

/// An address with the interface that it is at, where it means nothing without one. Any socket does to ask the kernel.
pub(super) fn scoped(
    socket: impl AsFd,
    interface: Option<&str>,
    address: IpAddr,
    port: u16,
) -> io::Result<SocketAddr> {
    match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            let scope = interface.map_or(Ok(0), |interface| index_of(socket, interface))?;
            Ok(SocketAddrV6::new(address, port, 0, scope).into())
        }
        _ => Ok(SocketAddr::new(address, port)),
    }
}

/// The number of an interface, which is another when it goes and comes back.
fn index_of(socket: impl AsFd, interface: &str) -> io::Result<u32> {
    rustix::net::netdevice::name_to_index(socket, interface)
        .map_err(|error| io::Error::other(format!("interface {interface}: {}", io::Error::from(error))))
}

/// Whether what came to this socket from there is of a peer at `interface`. Addresses are looked at elsewhere.
pub(super) fn is_behind(socket: impl AsFd, interface: Option<&str>, from: SocketAddr) -> bool {
    match (interface, from) {
        (Some(interface), SocketAddr::V6(from)) => {
            index_of(socket, interface).is_ok_and(|index| index == from.scope_id())
        }
        _ => true,
    }
}

/// Listens on `address`; an IPv6 one takes no IPv4 connections, so that both can be listened on.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // The port may still be held by connections of an earlier life.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A peer with TTL security would not take our half of the handshake with any other.
    set_ttl(&SockRef::from(&socket), address.ip(), u8::MAX)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

/// Makes `listener` take only connections from `peers` that are signed with their password; any, where they have none.
pub(super) fn expect_password(
    listener: &TcpListener,
    peers: IpNet,
    password: Option<&Password>,
) -> io::Result<()> {
    if listener.local_addr()?.is_ipv4() == peers.addr().is_ipv4() {
        md5::set_key(listener.as_fd(), peers, password)
    } else {
        // Each family has listeners of its own.
        Ok(())
    }
}

/// Makes `listener` take connections only from up to `hops` away; from anywhere, where that is `None`.
///
/// A socket has one least TTL, and a connection that is accepted begins with its listener's. So this is for what all who
/// may connect have in common. Where they differ, the listener takes the handshake, and what comes with it, from any
/// distance, and `configure` drops what comes after: whoever can take part in a handshake as if at the peer's address
/// could send an OPEN from afar, though no more once the connection has been taken over. TCP MD5 keeps that out too.
pub(super) fn expect_within(listener: &TcpListener, hops: Option<u8>) -> io::Result<()> {
    set_least_ttl(&SockRef::from(listener), listener.local_addr()?.ip(), hops)
}

/// Writes `output` and closes. Waits for the peer to close too, since the kernel would otherwise drop what is on its
/// way, and with it the NOTIFICATION, when the peer is sending.
pub(super) async fn close(mut stream: TcpStream, output: Vec<u8>) {
    let orderly = async {
        stream.write_all(&output).await?;
        stream.shutdown().await?;
        let mut ignored = [0; 4096];
        while stream.read(&mut ignored).await? > 0 {}
        io::Result::Ok(())
    };
    // An error means that the peer was faster.
    let _ = tokio::time::timeout(CLOSE_TIME, orderly).await;
}
