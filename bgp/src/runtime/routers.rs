//! Router discovery on real links: an ICMPv6 socket and a task for each.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::option;
use super::shared::lock;
use crate::discovery::{ADVERTISEMENT, Discovery, Message, SOLICITATION};
use crate::session::Jitter;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// `ICMP6_FILTER` (RFC 3542 §3.2): a bit for each type that is not wanted.
const ICMP6_FILTER: libc::c_int = 1;
/// How soon a socket that could not be had, or failed, is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// No longer message is on a link with an MTU of 1500; what is cut off would be options, which are not used.
const LONGEST: usize = 1500;

/// Learns the link-local addresses of the routers at the other ends of links, and has them learn this side's. Ends when dropped.
#[derive(Debug)]
pub struct RouterDiscovery {
    runtime: Handle,
    links: BTreeMap<String, Link>,
    news: watch::Sender<()>,
}

/// What is known of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// The number of the interface.
    pub index: u32,
    /// The address of the router at the other end, once it has been heard.
    pub neighbour: Option<Ipv6Addr>,
    /// Another router that is heard on the link: discovery is for links with two ends.
    pub other: Option<Ipv6Addr>,
    /// Why nothing can be heard or said.
    pub error: Option<String>,
}

#[derive(Debug)]
struct Link {
    status: Arc<Mutex<LinkStatus>>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RouterDiscovery {
    /// On no link yet; its tasks run on `runtime`, and its links are those of the network namespace of that one's threads.
    pub fn new(runtime: Handle) -> RouterDiscovery {
        RouterDiscovery { runtime, links: BTreeMap::new(), news: watch::Sender::new(()) }
    }

    /// Makes these the links, by the names and numbers of their interfaces. What is known of one whose number is the same stays known;
    /// one that goes is forgotten.
    pub fn set_links(&mut self, links: &BTreeMap<String, u32>) {
        let index = |link: &Link| lock(&link.status).index;
        self.links.retain(|name, link| links.get(name) == Some(&index(link)));
        for (name, &index) in links {
            self.links.entry(name.clone()).or_insert_with(|| {
                let status = Arc::new(Mutex::new(LinkStatus { index, ..LinkStatus::default() }));
                let task = run(index, Arc::clone(&status), self.news.clone());
                Link { status, task: self.runtime.spawn(task).abort_handle() }
            });
        }
    }

    /// What is known of each link.
    pub fn links(&self) -> BTreeMap<String, LinkStatus> {
        self.links.iter().map(|(name, link)| (name.clone(), lock(&link.status).clone())).collect()
    }

    /// Changes when something of that does by itself.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

async fn run(index: u32, status: Arc<Mutex<LinkStatus>>, news: watch::Sender<()>) {
    let seed = RandomState::new().build_hasher().finish();
    let mut discovery = Discovery::new(Instant::now(), Jitter::seeded(seed));
    loop {
        let Err(error) = serve(index, &mut discovery, &status, &news).await;
        tell(&status, &news, |status| status.error = Some(error.to_string()));
        tokio::time::sleep(AGAIN).await;
    }
}

/// Until something of the socket fails: with the interface, most likely.
async fn serve(
    index: u32,
    discovery: &mut Discovery,
    status: &Mutex<LinkStatus>,
    news: &watch::Sender<()>,
) -> io::Result<Infallible> {
    // Not UDP, but datagrams all the same.
    let socket = UdpSocket::from_std(open(index)?.into())?;
    loop {
        let due = tokio::time::sleep_until(discovery.deadline().into());
        let say = tokio::select! {
            heard = socket.async_io(Interest::READABLE, || receive(&socket)) => match heard.map_err(of("receive"))? {
                Some((message, source)) => discovery.heard(message, source, Instant::now()),
                None => Vec::new(),
            },
            () = due => discovery.expired(Instant::now()),
        };
        for message in say {
            let to = match message {
                Message::Advertisement => ALL_NODES,
                Message::Solicitation => ALL_ROUTERS,
            };
            let to = SocketAddr::from(SocketAddrV6::new(to, 0, 0, index));
            // Before the interface has its address (while others are asked whether it is theirs) there is nothing to send from.
            socket.send_to(&message.bytes(), to).await.map_err(of("send"))?;
        }
        let (neighbour, other) = (discovery.neighbour(), discovery.other());
        tell(status, news, |status| {
            *status = LinkStatus { index, neighbour, other, error: None };
        });
    }
}

/// Notes what changed, if anything.
fn tell(status: &Mutex<LinkStatus>, news: &watch::Sender<()>, change: impl FnOnce(&mut LinkStatus)) {
    let mut status = lock(status);
    let before = status.clone();
    change(&mut status);
    let changed = before != *status;
    drop(status);
    if changed {
        news.send_replace(());
    }
}

fn of(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// A socket that hears of the interface, and sends to it, what is of router discovery and nothing else.
fn open(index: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW.nonblocking(), Some(Protocol::ICMPV6));
    let socket = socket.map_err(of("ICMPv6 socket, which takes the capability NET_RAW"))?;
    let mut filter = [u32::MAX; 8];
    for wanted in [SOLICITATION, ADVERTISEMENT] {
        filter[usize::from(wanted / 32)] &= !(1 << (wanted % 32));
    }
    let filter = filter.map(u32::to_ne_bytes).concat();
    option::set(socket.as_fd(), libc::IPPROTO_ICMPV6, ICMP6_FILTER, &filter).map_err(of("filter"))?;
    socket.bind_device_by_index_v6(NonZeroU32::new(index)).map_err(of("interface"))?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_hops_v6(u8::MAX.into())?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_recv_hoplimit_v6(true)?;
    // All nodes hear what is for all nodes.
    socket.join_multicast_v6(&ALL_ROUTERS, index).map_err(of("group of routers"))?;
    Ok(socket)
}

/// The next message, if it is a good one.
fn receive(socket: &UdpSocket) -> io::Result<Option<(Message, Ipv6Addr)>> {
    let mut bytes = [0; LONGEST];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut control = cmsg_space!(libc::c_int);
    let received =
        recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let hop_limit = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv6HopLimit(hops) => u8::try_from(hops).ok(),
        _ => None,
    });
    let (length, source) = (received.bytes, received.address.map(|source| source.ip()));
    let (Some(hop_limit), Some(source)) = (hop_limit, source) else { return Ok(None) };
    Ok(Message::read(&bytes[..length], source, hop_limit).map(|message| (message, source)))
}
