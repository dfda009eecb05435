//! A generic netlink socket to the kernel.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket as NetlinkSocket, SocketAddr};
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::Error;
use crate::batch::SEND_LIMIT;
use crate::error::Malformed;

/// Holds the replies to one send if each of its messages fails. The smallest are 40 bytes, the kernel echoes
/// them and accounts 768 bytes or so for each reply.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The kernel has answered by the time a send returns. This is against waiting for ever should it not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the exchanges of this crate need of a socket.
pub(crate) trait Transport {
    /// Sends one datagram.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Error>;

    /// Receives one datagram; `None` if none came in time.
    fn receive(&mut self) -> Result<Option<&[u8]>, Error>;

    /// Throws away what waits, so that the next exchange starts afresh.
    fn discard(&mut self);
}

pub(crate) struct Socket {
    socket: NetlinkSocket,
    datagram: Box<[u8]>,
}

impl Socket {
    /// A socket in the network namespace of the calling thread, which reads up to `datagram` bytes at once.
    pub(crate) fn open(datagram: usize) -> Result<Self, Error> {
        let call = |call| move |source| Error::Socket { call, source };
        let mut socket = NetlinkSocket::new(NETLINK_GENERIC).map_err(call("socket(NETLINK_GENERIC)"))?;
        socket.bind_auto().map_err(call("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(call("connect"))?;
        // The forced sizes take CAP_NET_ADMIN, as IPVS does. Without it go as far as the system lets us: the
        // kernel will refuse requests by itself, and say why.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER));
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, 2 * SEND_LIMIT)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, 2 * SEND_LIMIT));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|errno| Error::Socket { call: "setsockopt(SO_RCVTIMEO)", source: errno.into() })?;
        Ok(Self { socket, datagram: vec![0; datagram].into_boxed_slice() })
    }

    fn receive_with(&mut self, flags: i32) -> Result<Option<&[u8]>, Error> {
        loop {
            let received = self.socket.recv_from(&mut &mut self.datagram[..], flags | libc::MSG_TRUNC);
            match received.map_err(|error| (Errno::from_io_error(&error), error)) {
                // Other processes may send here too.
                Ok((_, sender)) if sender.port_number() != 0 => {}
                Ok((length, _)) => {
                    let datagram = self.datagram.get(..length);
                    return datagram.map(Some).ok_or(Malformed::new("netlink datagram", "end").into());
                }
                Err((Some(Errno::INTR), _)) => {}
                Err((Some(Errno::AGAIN), _)) => return Ok(None),
                Err((Some(Errno::NOBUFS), _)) => return Err(Error::Overrun),
                Err((_, source)) => return Err(Error::Socket { call: "recvfrom", source }),
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        Ok(sockopt::set_socket_recv_buffer_size(&self.socket, bytes)?)
    }
}

impl Transport for Socket {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sent = self.socket.send(bytes, 0).map_err(|source| Error::Socket { call: "send", source })?;
        if sent == bytes.len() {
            return Ok(());
        }
        let source = io::Error::new(io::ErrorKind::WriteZero, "the datagram was cut short");
        Err(Error::Socket { call: "send", source })
    }

    fn receive(&mut self) -> Result<Option<&[u8]>, Error> {
        self.receive_with(0)
    }

    fn discard(&mut self) {
        // An unfinished dump goes on with each read, so this ends it too. An overrun is reported once.
        loop {
            match self.receive_with(libc::MSG_DONTWAIT) {
                Ok(Some(_)) | Err(Error::Overrun | Error::Malformed(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}
