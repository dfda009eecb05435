//! Netlink by hand, for the few questions that have no library here: one request at a time, its answers until the kernel says
//! that these are all.
//!
//! ```text
//! nlmsghdr │ 4 bytes of the family: nfgenmsg, genlmsghdr │ attributes: length, kind, value, padding
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// The kernel has answered by the time a send returns. This is against waiting for ever should it not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel fills no datagram of a dump beyond that (`NLMSG_GOODSIZE` and `netlink_dump`).
const DATAGRAM: usize = 32 << 10;

/// `NLMSG_ERROR` and `NLMSG_DONE` (linux/netlink.h): the last answer.
pub const NLMSG_ERROR: u16 = 2;
/// See [`NLMSG_ERROR`].
pub const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_HDRLEN: usize = 16;
/// What netfilter and generic netlink alike have before their attributes.
const FAMILY_HDRLEN: usize = 4;
const NLA_HDRLEN: usize = 4;
/// Flags in the kind of an attribute (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

/// A dump instead of one object (`NLM_F_DUMP`).
pub const DUMP: u16 = 0x300;

/// A socket to one netlink protocol, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags` besides those that every request has.
    pub flags: u16,
    /// What the family has before the attributes.
    pub header: [u8; FAMILY_HDRLEN],
    /// As [`attribute`] makes them.
    pub attributes: &'a [u8],
}

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket =
            net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks, and hands the kind and the attributes of each answer to `on_answer`.
    ///
    /// # Errors
    /// The kernel's error number, or an answer that is cut short.
    pub fn ask(&mut self, request: Request<'_>, mut on_answer: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        net::send(&self.socket, &request.encode(self.sequence), SendFlags::empty())?;
        let mut datagram = vec![0; DATAGRAM];
        loop {
            let mut rest = self.receive(&mut datagram)?;
            while !rest.is_empty() {
                let (message, more) = parse(rest).ok_or_else(cut_short)?;
                rest = more;
                match message.kind {
                    // The answer to a question that was given up on.
                    _ if message.sequence != self.sequence => {}
                    NLMSG_ERROR | NLMSG_DONE => return outcome(message.body),
                    kind => on_answer(kind, message.body.get(FAMILY_HDRLEN..).unwrap_or_default()),
                }
            }
        }
    }

    /// Asks several things at once that have no answer but whether they were done; gives that of each.
    ///
    /// # Errors
    /// What the system says of the socket, or an answer that is cut short.
    pub fn ask_all(&mut self, requests: &[Request<'_>]) -> io::Result<Vec<io::Result<()>>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(request.encode(self.sequence));
        }
        net::send(&self.socket, &bytes, SendFlags::empty())?;
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut datagram = vec![0; DATAGRAM];
        while outcomes.len() < requests.len() {
            let mut rest = self.receive(&mut datagram)?;
            while !rest.is_empty() {
                let (message, more) = parse(rest).ok_or_else(cut_short)?;
                rest = more;
                // Each in its turn; an older number: the answer to a question that was given up on.
                if message.kind == NLMSG_ERROR && message.sequence.wrapping_sub(first) == index(&outcomes) {
                    outcomes.push(outcome(message.body));
                }
            }
        }
        Ok(outcomes)
    }

    /// The next datagram.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let length = loop {
            match net::recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => break received?.0,
            }
        };
        Ok(&buffer[..length])
    }
}

fn index<T>(before: &[T]) -> u32 {
    u32::try_from(before.len()).unwrap_or(u32::MAX)
}

impl Request<'_> {
    /// As it is sent.
    pub fn encode(&self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(NLMSG_HDRLEN + FAMILY_HDRLEN + self.attributes.len());
        let mut bytes = length.expect("a request holds a few names and addresses").to_ne_bytes().to_vec();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK | self.flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.header);
        bytes.extend(self.attributes);
        bytes
    }
}

/// One attribute.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(NLA_HDRLEN + value.len())
        .expect("a value is a name, an address, or what another attribute held");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// One that is made of attributes.
pub fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, attributes)
}

/// The value of the first attribute of a kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A name as the kernel's attributes have it.
pub fn name_attribute(kind: u16, name: &str) -> Vec<u8> {
    attribute(kind, &[name.as_bytes(), &[0]].concat())
}

/// Kind and value of each attribute, up to one that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk::<NLA_HDRLEN>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(NLA_HDRLEN..length)?;
        // The last one may come without padding.
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, value))
    })
}

/// A message of the kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// That of the request that it answers; 0 for what nobody asked for.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The first message of a datagram, and what follows it.
pub fn parse(datagram: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *datagram.first_chunk::<NLMSG_HDRLEN>()?;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let body = datagram.get(NLMSG_HDRLEN..length)?;
    let rest = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    let (kind, sequence) = (u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([s0, s1, s2, s3]));
    let flags = u16::from_ne_bytes([f0, f1]);
    Some((Message { kind, flags, sequence, body }, rest))
}

/// What the last answer says.
///
/// # Errors
/// The kernel's error number, or that the answer is cut short.
pub fn outcome(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().copied().map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        None => Err(cut_short()),
    }
}

/// What the kernel sent cannot be read.
pub fn cut_short() -> io::Error {
    io::Error::other("netlink: a message cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_written_and_nothing_short_is() {
        let written = [attribute(3, b"nft\0\0"), name_attribute(0x8001, "fou"), attribute(7, &[])].concat();
        let read: Vec<(u16, &[u8])> = attributes(&written).collect();
        assert_eq!(read, [(3, &b"nft\0\0"[..]), (1, b"fou\0"), (7, b"")]);
        for cut in 0..9 {
            assert_eq!(attributes(&written[..cut]).count(), 0, "{cut} bytes");
        }
    }

    #[test]
    fn messages_are_read_as_written_and_nothing_short_is() {
        let attributes = name_attribute(2, "fou");
        let request = Request { kind: 16, flags: DUMP, header: [3, 1, 0, 0], attributes: &attributes };
        let one = request.encode(5);
        let two = [&one[..], &one].concat();
        let (message, rest) = parse(&two).unwrap();
        assert_eq!((message.kind, message.sequence, rest), (16, 5, &one[..]));
        assert_eq!(message.body, [&[3, 1, 0, 0][..], &attributes].concat());
        for cut in 0..one.len() {
            assert!(parse(&one[..cut]).is_none(), "{cut} bytes");
        }
    }

    #[test]
    fn outcomes() {
        assert!(outcome(&0_i32.to_ne_bytes()).is_ok());
        let error = outcome(&(-17_i32).to_ne_bytes()).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::EXIST));
        assert!(outcome(&[0, 0]).is_err());
    }
}
