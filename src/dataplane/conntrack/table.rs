//! The table of conntrack entries of one network namespace, over ctnetlink.

use std::collections::BTreeSet;
use std::io;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::super::netlink::{DUMP, Request, Socket};
use super::Stale;
use super::entry::{Entry, Filter};

/// `NFNL_SUBSYS_CTNETLINK << 8`, to which `IPCTNL_MSG_CT_*` are added (linux/netfilter/nfnetlink_conntrack.h).
const CTNETLINK: u16 = 1 << 8;
const CT_NEW: u16 = CTNETLINK;
const CT_GET: u16 = CTNETLINK + 1;
const CT_DELETE: u16 = CTNETLINK + 2;
const CT_GET_STATS: u16 = CTNETLINK + 5;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Deletions sent together: their acknowledgements, each some 800 bytes to the kernel, fit the smallest usual buffer.
const BATCH: usize = 64;

/// Two sockets: entries are deleted while the dump goes on, so that what is remembered has a bound.
#[derive(Debug)]
pub struct Table {
    dump: Socket,
    delete: Socket,
}

impl Table {
    /// Opens sockets; asks nothing.
    ///
    /// # Errors
    /// What the system says.
    pub fn open() -> io::Result<Self> {
        Ok(Self { dump: Socket::open(Some(NETFILTER))?, delete: Socket::open(Some(NETFILTER))? })
    }

    /// Whether the kernel answers questions about conntrack; costs nothing.
    ///
    /// # Errors
    /// What it says: EINVAL without `nf_conntrack_netlink`.
    pub fn probe(&mut self) -> io::Result<()> {
        self.dump.ask(request(CT_GET_STATS, 0, AF_UNSPEC, &[]), |_, _| {})
    }

    /// Deletes the entries that go these ways, all of one family, in one dump. Gives how many there were.
    ///
    /// # Errors
    /// What the kernel says; entries may be left then.
    pub fn delete(&mut self, ways: &BTreeSet<Stale>) -> io::Result<u64> {
        let Some(first) = ways.first() else { return Ok(0) };
        let family = if first.vip.address.is_ipv4() { AF_INET } else { AF_INET6 };
        let filter = Filter::of(|| ways.iter()).attributes();
        let Self { dump, delete } = self;
        let mut found = Vec::new();
        let mut deleted = Ok(0);
        let mut flush = |found: &mut Vec<Vec<u8>>| {
            let batch = std::mem::take(found);
            // Once it failed, the rest of the dump is only read to its end.
            if let &Ok(before) = &deleted {
                deleted = delete_all(delete, family, &batch).map(|more| before + more);
            }
        };
        dump.ask(request(CT_GET, DUMP, family, &filter), |kind, attributes| {
            if kind == CT_NEW
                && let Some(entry) = Entry::parse(attributes)
                && ways.contains(&entry.way)
            {
                found.push(entry.deletion());
                if found.len() == BATCH {
                    flush(&mut found);
                }
            }
        })?;
        flush(&mut found);
        deleted
    }
}

/// How many were deleted; that one has gone by itself meanwhile is no error.
fn delete_all(socket: &mut Socket, family: u8, entries: &[Vec<u8>]) -> io::Result<u64> {
    let requests: Vec<_> = entries.iter().map(|entry| request(CT_DELETE, 0, family, entry)).collect();
    let mut deleted = 0;
    for outcome in socket.ask_all(&requests)? {
        match outcome {
            Ok(()) => deleted += 1,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

/// With `struct nfgenmsg`: family, version, resource (linux/netfilter/nfnetlink.h).
fn request(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Request<'_> {
    Request { kind, flags, header: [family, 0, 0, 0], attributes }
}
