//! Real traffic: servers that say who they are and whom they saw, and clients that notice what goes wrong.

mod bulk;
mod connections;
mod http;
mod load;
mod probe;
mod request;
mod server;
mod steady;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use sheave::cluster::Protocol;
use socket2::{Domain, Socket, Type};

pub use bulk::{Bulk, bulk};
pub use connections::{Connections, Tally};
pub use http::{Page, get};
pub use load::{Load, LoadReport, await_each};
pub use probe::Probe;
pub use request::{Answer, Ending, Request, flows};
pub use server::Server;
pub use steady::Steady;

/// How long a client waits for an answer unless told otherwise; long enough for one retransmitted SYN.
pub const LIMIT: Duration = Duration::from_secs(4);

/// A socket for a protocol in the family of `address`.
fn socket(protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
        Protocol::Sctp => (Type::STREAM, socket2::Protocol::SCTP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(number))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// The wildcard address in the family of `like`.
fn any(like: IpAddr, port: u16) -> SocketAddr {
    match like {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// Reads up to a newline, which is left out. An end of the stream before it is an error.
fn read_line(stream: &mut impl io::Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the other side")),
            Ok(_) if byte[0] == b'\n' => return String::from_utf8(line).map_err(io::Error::other),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if line.len() > 4096 {
            return Err(io::Error::other("a line of more than 4096 bytes"));
        }
    }
}

/// Bytes of a bulk transfer: a pattern whose period is prime, so that nothing lost, doubled or moved goes unnoticed.
struct Pattern(Vec<u8>);

impl Pattern {
    const PERIOD: usize = 65_521;
    const CHUNK: usize = 65_536;

    fn new() -> Self {
        let bytes = (0..Self::PERIOD + Self::CHUNK).map(|i| {
            let i = (i % Self::PERIOD) as u64;
            (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
        });
        Self(bytes.collect())
    }

    /// Up to `CHUNK` bytes that begin at `offset` of the transfer.
    fn at(&self, offset: u64, len: usize) -> &[u8] {
        let start = (offset % Self::PERIOD as u64) as usize;
        &self.0[start..start + len.min(Self::CHUNK)]
    }
}
