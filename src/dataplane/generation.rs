//! The generation of the nftables ruleset, over netlink: who knows it need not list a table that nobody touched.
//!
//! The kernel counts the transactions of a network namespace, whoever makes them (`nf_tables_commit`). What sets do
//! by themselves, such as elements whose time is up, is no transaction.

use std::io;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::netlink::{self, Request, Socket};

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
pub struct Nfnetlink(Socket);

impl Nfnetlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Self> {
        Socket::open(Some(NETFILTER)).map(Self)
    }

    /// The present generation.
    ///
    /// # Errors
    /// What the kernel says; among others that CAP_NET_ADMIN is missing.
    pub fn generation(&mut self) -> io::Result<Generation> {
        let mut found = None;
        self.0.ask(request(NFT_MSG_GETGEN, NFPROTO_UNSPEC, &[]), |kind, answer| {
            if kind == NFT_MSG_NEWGEN {
                found = generation_id(answer);
            }
        })?;
        found.map(Generation).ok_or_else(|| io::Error::other("NFT_MSG_GETGEN: no generation in the answer"))
    }

    /// Whether there is a table of this name in family `inet`.
    ///
    /// # Errors
    /// As [`Self::generation`].
    pub fn has_table(&mut self, name: &str) -> io::Result<bool> {
        let name = netlink::name_attribute(NFTA_TABLE_NAME, name);
        match self.0.ask(request(NFT_MSG_GETTABLE, NFPROTO_INET, &name), |_, _| {}) {
            Ok(()) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks for something of a table in family `inet`; hands on the attributes of the answers.
    ///
    /// # Errors
    /// As [`Self::generation`]; that there is no such thing (ENOENT) too.
    pub(super) fn ask(
        &mut self,
        kind: u16,
        attributes: &[u8],
        mut on_answer: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        self.0.ask(request(kind, NFPROTO_INET, attributes), |_, answer| on_answer(answer))
    }
}

/// With `struct nfgenmsg`: family, version, resource (linux/netfilter/nfnetlink.h).
fn request(kind: u16, family: u8, attributes: &[u8]) -> Request<'_> {
    Request { kind, flags: 0, header: [family, 0, 0, 0], attributes }
}

fn generation_id(attributes: &[u8]) -> Option<u32> {
    let (_, value) = netlink::attributes(attributes).find(|(kind, _)| *kind == NFTA_GEN_ID)?;
    value.first_chunk().copied().map(u32::from_be_bytes)
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
        let id = netlink::attribute(NFTA_GEN_ID, &0x0102_0304_u32.to_be_bytes());
        let attributes = [netlink::attribute(3, b"nft\0\0"), id].concat();
        assert_eq!(generation_id(&attributes), Some(0x0102_0304));
        for cut in 0..attributes.len() {
            assert_eq!(generation_id(&attributes[..cut]), None, "{cut} bytes");
        }
    }
}
