//! Follows kernel tables through rtnetlink: notifications on one socket, listings on another.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::News;
use super::book::{Book, Part, Support, Unsure};
use super::route::{AF_INET, AF_INET6, RTA_TABLE, Route, address, number};
use crate::dataplane::netlink::{
    DUMP, Message, NLMSG_DONE, NLMSG_ERROR, Request, attribute, cut_short, find, outcome, parse,
};

/// Groups of notifications (`RTNLGRP_*`, linux/rtnetlink.h), as bits: links, IPv4 addresses, routes of both families, nexthop
/// objects.
pub(super) const GROUPS: u32 = 1 << 0 | 1 << 4 | 1 << 6 | 1 << 10 | 1 << 31;
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_DELNEXTHOP: u16 = 105;
/// linux/netlink.h.
const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_REPLACE: u16 = 0x100;
pub(super) const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Bytes of notifications that may wait to be read, as far as `net.core.rmem_max` lets them: some hundreds by default. With more the kernel leaves some out, says so, and the tables are listed.
const RECEIVE_BUFFER: u32 = 1 << 20;
/// No datagram is longer: a dump's are cut by the kernel, and no route has so many next hops.
pub(super) const DATAGRAM: usize = 64 << 10;
/// How many datagrams are read before what they say is told.
const BATCH: usize = 10_000;
/// A kernel that does not answer is asked again after.
pub(super) const LIMIT: Duration = Duration::from_secs(10);
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// A listing is followed by a rest that many times as long.
pub(super) const REST: u32 = 9;

/// Tables that are followed; ends with its owner.
#[derive(Debug)]
pub struct Following {
    news: UnboundedReceiver<Result<News, String>>,
    task: AbortHandle,
}

impl Following {
    /// What became different; the first time: all there is, even if that is nothing. `Err`: why the kernel cannot be followed at the
    /// moment; what was told last counts until it can.
    pub async fn next(&mut self) -> Result<News, String> {
        match self.news.recv().await {
            Some(news) => news,
            // The task only ends early with its runtime: there will be no news.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Begins to follow `tables`, on `runtime`, whose network namespace is this thread's.
///
/// # Errors
/// When there is no netlink socket to be had.
pub fn follow(tables: &[u32], default_routes: bool, runtime: &Handle) -> io::Result<Following> {
    let _guard = runtime.enter();
    let book = Book::new(tables, default_routes);
    let (sender, news) = mpsc::unbounded_channel();
    let follower = Follower {
        due: book.parts(),
        book,
        // Before anything is listed: no change is missed in between.
        notified: Socket::open(GROUPS)?,
        sender,
    };
    let task = runtime.spawn(follower.run());
    Ok(Following { news, task: task.abort_handle() })
}

struct Follower {
    book: Book,
    notified: Socket,
    sender: UnboundedSender<Result<News, String>>,
    /// What is to be listed. As long as there is any, nothing is told: what is known is not what is.
    due: BTreeSet<Part>,
}

impl Follower {
    async fn run(mut self) {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        let mut next_listing = Instant::now();
        let (mut told, mut failing) = (false, false);
        loop {
            if !self.due.is_empty() && next_listing <= Instant::now() {
                let began = Instant::now();
                let result = self.list_due().await;
                next_listing = Instant::now() + if result.is_ok() { began.elapsed() * REST } else { AGAIN };
                match result {
                    Ok(()) => failing = false,
                    Err(error) if failing => debug!("{error}"),
                    Err(error) => {
                        warn!("{error}");
                        failing = true;
                        drop(self.sender.send(Err(error)));
                    }
                }
            }
            // All that is there is one change: what goes and comes back is none.
            let mut received = self.drain(&mut datagram);
            if received.is_ok() && self.due.is_empty() {
                let news = self.book.news();
                if (news != News::default() || !told) && self.sender.send(Ok(news)).is_err() {
                    return;
                }
                told = true;
            }
            if received.is_ok() {
                received = tokio::select! {
                    received = self.notified.receive(&mut datagram) => received.and_then(|()| self.take_all(&datagram)),
                    () = sleep_until(next_listing), if !self.due.is_empty() => Ok(()),
                };
            }
            if let Err(error) = received {
                // The kernel left notifications out (ENOBUFS), or something worse: a listing tells.
                debug!("notifications of routes: {error}; listing the tables");
                self.due = self.book.parts();
                if Errno::from_io_error(&error) != Some(Errno::NOBUFS) {
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Lists what is due, up to the first failure.
    async fn list_due(&mut self) -> Result<(), String> {
        while let Some(part) = self.due.first().copied() {
            let text = |why: &dyn std::fmt::Display| format!("list kernel table {}: {why}", part.table);
            let listed = timeout(LIMIT, self.list(part)).await;
            let routes = listed.map_err(|_| text(&"no answer"))?.map_err(|error| text(&error))?;
            debug!(table = part.table, ipv6 = part.ipv6, routes = routes.len(), "listed");
            self.book.listed(part, routes);
            self.due.remove(&part);
        }
        Ok(())
    }

    async fn list(&self, part: Part) -> io::Result<Vec<Route>> {
        list_routes(part.table, part.ipv6, Some).await
    }

    /// Takes in all notifications that are there.
    fn drain(&mut self, datagram: &mut Vec<u8>) -> io::Result<()> {
        for _ in 0..BATCH {
            if !self.notified.try_receive(datagram)? {
                break;
            }
            self.take_all(datagram)?;
        }
        Ok(())
    }

    fn take_all(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let (message, more) = parse(rest).ok_or_else(cut_short)?;
            rest = more;
            self.take(&message);
        }
        Ok(())
    }

    fn take(&mut self, message: &Message<'_>) {
        let taken = match message.kind {
            RTM_NEWROUTE | RTM_DELROUTE => match Route::read(message.body) {
                Some(route) if message.kind == RTM_NEWROUTE => {
                    self.book.added(route, message.flags & NLM_F_REPLACE != 0)
                }
                Some(route) => self.book.removed(&route),
                None => Ok(()),
            },
            _ => {
                if let Some(support) = gone(message) {
                    self.due.extend(self.book.resting_on(support));
                }
                Ok(())
            }
        };
        if let Err(Unsure(part)) = taken {
            self.due.insert(part);
        }
    }
}

/// What `pick` takes of the routes of a family in a table.
pub(super) async fn list_routes<T>(
    table: u32,
    ipv6: bool,
    pick: impl Fn(Route) -> Option<T>,
) -> io::Result<Vec<T>> {
    // The rest of `struct rtmsg`, all zero, and the table: with strict checks the kernel heeds it.
    let rest = [&[0; 8][..], &attribute(RTA_TABLE, &table.to_ne_bytes())].concat();
    let family = if ipv6 { AF_INET6 } else { AF_INET };
    let request = Request { kind: RTM_GETROUTE, flags: DUMP, header: [family, 0, 0, 0], attributes: &rest };
    let route = |message: &Message<'_>| {
        (message.kind == RTM_NEWROUTE).then(|| Route::read(message.body)).flatten().and_then(&pick)
    };
    match dump(request, route).await {
        // There is no table until it has a first route.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(Vec::new()),
        listed => listed,
    }
}

/// What `pick` takes of the answers to a dump.
pub(super) async fn dump<T>(
    request: Request<'_>,
    pick: impl Fn(&Message<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let socket = Socket::open(0)?;
    let mut sequence = 0;
    'again: loop {
        sequence += 1;
        socket.send(&request.encode(sequence))?;
        let mut picked = Vec::new();
        let mut interrupted = false;
        let mut datagram = Vec::with_capacity(DATAGRAM);
        loop {
            socket.receive(&mut datagram).await?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let (message, more) = parse(rest).ok_or_else(cut_short)?;
                rest = more;
                // The table changed meanwhile: some of it may be missing.
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => match outcome(message.body) {
                        Ok(()) if interrupted => continue 'again,
                        outcome => return outcome.map(|()| picked),
                    },
                    _ => picked.extend(pick(&message)),
                }
            }
        }
    }
}

/// What a notification says is gone that routes may have gone with.
fn gone(message: &Message<'_>) -> Option<Support> {
    let field = |at: usize| message.body.get(at..at + 4).and_then(number);
    match message.kind {
        // `struct ifinfomsg`: index and flags.
        RTM_DELLINK => field(4).map(Support::Device),
        RTM_NEWLINK if field(8)? & IFF_UP == 0 => field(4).map(Support::Device),
        // `struct ifaddrmsg`, of 8 bytes.
        RTM_DELADDR => {
            let attributes = message.body.get(8..)?;
            let own = find(attributes, IFA_LOCAL).or_else(|| find(attributes, IFA_ADDRESS))?;
            address(own).map(Support::Source)
        }
        RTM_DELNEXTHOP => Some(Support::Object),
        _ => None,
    }
}

/// A netlink socket whose datagrams are waited for without a thread.
pub(super) struct Socket(TokioSocket);

impl Socket {
    pub(super) fn open(groups: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER)?;
        socket.socket_ref().set_netlink_get_strict_chk(true)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self(socket))
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.socket_ref().send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    pub(super) async fn receive(&self, datagram: &mut Vec<u8>) -> io::Result<()> {
        datagram.clear();
        self.0.recv(datagram).await
    }

    /// Whether there was a datagram.
    pub(super) fn try_receive(&self, datagram: &mut Vec<u8>) -> io::Result<bool> {
        datagram.clear();
        match self.0.socket_ref().recv(datagram, 0) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}
