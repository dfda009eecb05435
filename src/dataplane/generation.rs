//! The generation of the nftables ruleset, over netlink: who knows it need not list a table that nobody touched.
//!
//! The kernel counts the transactions of a network namespace, whoever makes them (`nf_tables_commit`). What sets do
//! by themselves, such as elements whose time is up, is no transaction.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// The kernel has answered by the time a send returns. This is against waiting for ever should it not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer: a table with its user data.
const DATAGRAM: usize = 8 << 10;

/// `NLMSG_ERROR` (linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_HDRLEN: usize = 16;
/// After the netlink header, `struct nfgenmsg`: family, version, resource (linux/netfilter/nfnetlink.h).
const NFGENMSG_LEN: usize = 4;
const NLA_HDRLEN: usize = 4;
/// `NFNL_SUBSYS_NFTABLES << 8`, to which `NFT_MSG_*` are added (linux/netfilter/nf_tables.h).
const NFTABLES: u16 = 10 << 8;
const NFT_MSG_GETTABLE: u16 = NFTABLES + 1;
const NFT_MSG_NEWGEN: u16 = NFTABLES + 15;
const NFT_MSG_GETGEN: u16 = NFTABLES + 16;
const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;

/// How many transactions there were, modulo 2³².
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u32);

impl Generation {
    /// Whether at most one transaction lies between `earlier` and this.
    pub fn follows(self, earlier: Self) -> bool {
        // The kernel leaves out 0: then there seem to be two, and who asks looks once more than needed.
        self.0.wrapping_sub(earlier.0) <= 1
    }
}

/// Questions to nftables of one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Nfnetlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Nfnetlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Self> {
        let socket = net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The present generation.
    ///
    /// # Errors
    /// What the kernel says; among others that CAP_NET_ADMIN is missing.
    pub fn generation(&mut self) -> io::Result<Generation> {
        let answer = self.ask(NFT_MSG_GETGEN, NFPROTO_UNSPEC, &[])?;
        let id =
            answer.filter(|(kind, _)| *kind == NFT_MSG_NEWGEN).and_then(|(_, body)| generation_id(&body));
        id.map(Generation).ok_or_else(|| io::Error::other("NFT_MSG_GETGEN: no generation in the answer"))
    }

    /// Whether there is a table of this name in family `inet`.
    ///
    /// # Errors
    /// As [`Self::generation`].
    pub fn has_table(&mut self, name: &str) -> io::Result<bool> {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        match self.ask(NFT_MSG_GETTABLE, NFPROTO_INET, &attribute(NFTA_TABLE_NAME, &value)) {
            Ok(_) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Kind and attributes of the answer; `None` for a mere acknowledgement.
    fn ask(&mut self, kind: u16, family: u8, attributes: &[u8]) -> io::Result<Option<(u16, Vec<u8>)>> {
        self.sequence = self.sequence.wrapping_add(1);
        net::send(&self.socket, &message(kind, self.sequence, family, attributes), SendFlags::empty())?;
        let mut datagram = vec![0; DATAGRAM];
        loop {
            let (length, _) = match net::recv(&self.socket, &mut datagram[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            let Some((kind, sequence, body)) = parse(&datagram[..length]) else {
                return Err(io::Error::other("nfnetlink: a message cut short"));
            };
            // The answer to a question that was given up on.
            if sequence != self.sequence {
                continue;
            }
            if kind != NLMSG_ERROR {
                return Ok(Some((kind, body.get(NFGENMSG_LEN..).unwrap_or_default().to_vec())));
            }
            return match body.first_chunk().copied().map(i32::from_ne_bytes) {
                Some(0) => Ok(None),
                Some(number) => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
                None => Err(io::Error::other("nfnetlink: an error without number")),
            };
        }
    }
}

fn message(kind: u16, sequence: u32, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(NLMSG_HDRLEN + NFGENMSG_LEN + attributes.len());
    let mut bytes = length.expect("a name is short").to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(NLA_HDRLEN + value.len()).expect("a name is short").to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Kind, sequence number and what follows the netlink header.
fn parse(datagram: &[u8]) -> Option<(u16, u32, &[u8])> {
    let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *datagram.first_chunk::<NLMSG_HDRLEN>()?;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let body = datagram.get(NLMSG_HDRLEN..length)?;
    Some((u16::from_ne_bytes([k0, k1]), u32::from_ne_bytes([s0, s1, s2, s3]), body))
}

fn generation_id(mut attributes: &[u8]) -> Option<u32> {
    loop {
        let [l0, l1, k0, k1] = *attributes.first_chunk::<NLA_HDRLEN>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(NLA_HDRLEN..length)?;
        if u16::from_ne_bytes([k0, k1]) == NFTA_GEN_ID {
            return value.first_chunk().copied().map(u32::from_be_bytes);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_transaction_or_none_follows() {
        let cases = [(7, 7, true), (7, 8, true), (7, 9, false), (7, 6, false), (u32::MAX, 0, true)];
        for (earlier, later, follows) in cases {
            assert_eq!(Generation(later).follows(Generation(earlier)), follows, "{earlier} {later}");
        }
    }

    #[test]
    fn the_id_is_found_among_attributes_and_nothing_short_is_read() {
        let mut attributes = attribute(3, b"nft\0\0");
        attributes.extend(attribute(NFTA_GEN_ID, &0x0102_0304_u32.to_be_bytes()));
        assert_eq!(generation_id(&attributes), Some(0x0102_0304));
        for cut in 0..attributes.len() {
            assert_eq!(generation_id(&attributes[..cut]), None, "{cut} bytes");
        }
        let answer = message(NFT_MSG_NEWGEN, 5, NFPROTO_UNSPEC, &attributes);
        let (kind, sequence, body) = parse(&answer).unwrap();
        assert_eq!((kind, sequence, &body[NFGENMSG_LEN..]), (NFT_MSG_NEWGEN, 5, &attributes[..]));
        for cut in 0..answer.len() {
            assert!(parse(&answer[..cut]).is_none(), "{cut} bytes");
        }
    }
}
