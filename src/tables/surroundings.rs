//! What this node has around it: links that work, what is on them, and the routers that its default routes lead to.
//!
//! Links, addresses and such routes change seldom: with each change that may matter all of it is listed again, at the cost of a dump of the main
//! table. What else changes in there, learnt routes above all, is read past.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;
use sheave_bgp::Links;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::follow::{
    AGAIN, DATAGRAM, GROUPS, IFF_UP, LIMIT, REST, RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_NEWLINK,
    RTM_NEWROUTE, Socket, dump, list_routes,
};
use super::route::{Route, number};
use crate::dataplane::netlink::{DUMP, Message, Request, attribute, cut_short, find, parse};

const RTM_GETLINK: u16 = 18;
const IFF_LOOPBACK: u32 = 1 << 3;
/// There is a carrier, as far as the device can tell.
const IFF_RUNNING: u32 = 1 << 6;
const IFLA_IFNAME: u16 = 3;
const IFLA_EXT_MASK: u16 = 29;
/// Leave out the counters.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `struct ifinfomsg` (linux/rtnetlink.h).
const IFINFOMSG: usize = 16;
const MAIN_TABLE: u32 = 254;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The numbers of interfaces whose link works, by name; without loopback.
    pub interfaces: BTreeMap<String, u32>,
    /// Nets that lie on these links.
    pub on_link: BTreeSet<IpNet>,
    /// The routers of the IPv4 default route: of several the one with the lowest metric.
    pub gateways_v4: BTreeSet<Gateway>,
    /// The same of IPv6.
    pub gateways_v6: BTreeSet<Gateway>,
}

impl Surroundings {
    /// What next hops can be reached by.
    pub fn links(&self) -> Links {
        Links { prefixes: self.on_link.clone(), interfaces: self.interfaces.values().copied().collect() }
    }
}

/// A router that a default route leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Its address, of either family.
    pub address: IpAddr,
    /// The interface that it is behind.
    pub interface: String,
}

/// The surroundings as they change; ends with its owner.
#[derive(Debug)]
pub struct FollowingLinks {
    now: watch::Receiver<Option<Surroundings>>,
    task: AbortHandle,
}

impl FollowingLinks {
    /// Waits until they are known for the first time, or have changed since.
    pub async fn changed(&mut self) {
        if self.now.changed().await.is_err() {
            // The task only ends early with its runtime.
            std::future::pending::<()>().await;
        }
    }

    /// As they are; `None` before they are known.
    pub fn now(&mut self) -> Option<Surroundings> {
        self.now.borrow_and_update().clone()
    }

    /// For whoever follows them elsewhere.
    pub fn watch(&self) -> watch::Receiver<Option<Surroundings>> {
        self.now.clone()
    }
}

impl Drop for FollowingLinks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Begins to follow them, on `runtime`, whose network namespace is this thread's.
///
/// # Errors
/// When there is no netlink socket to be had.
pub fn follow_links(runtime: &Handle) -> io::Result<FollowingLinks> {
    let _guard = runtime.enter();
    let (sender, now) = watch::channel(None);
    // Before anything is listed: no change is missed in between.
    let notified = Socket::open(GROUPS)?;
    let task = runtime.spawn(Follower { notified, sender, links: BTreeMap::new() }.run());
    Ok(FollowingLinks { now, task: task.abort_handle() })
}

/// A link as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    name: String,
    works: bool,
}

struct Follower {
    notified: Socket,
    sender: watch::Sender<Option<Surroundings>>,
    /// By number, as listed last.
    links: BTreeMap<u32, Link>,
}

impl Follower {
    async fn run(mut self) {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        let mut next_listing = Some(Instant::now());
        let mut earliest = Instant::now();
        let mut failing = false;
        loop {
            if next_listing.is_some_and(|at| at <= Instant::now()) {
                let began = Instant::now();
                let listed = timeout(LIMIT, self.list()).await;
                match listed.unwrap_or_else(|_| Err(io::Error::other("no answer"))) {
                    Ok(surroundings) => {
                        (next_listing, failing) = (None, false);
                        let surroundings = Some(surroundings);
                        self.sender.send_if_modified(|now| {
                            let other = *now != surroundings;
                            *now = surroundings;
                            other
                        });
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            warn!("list links and the main table: {error}");
                        }
                        next_listing = Some(Instant::now() + AGAIN);
                    }
                }
                earliest = Instant::now() + began.elapsed() * REST;
            }
            let received = tokio::select! {
                received = self.notified.receive(&mut datagram) => received,
                () = sleep_until(next_listing.unwrap_or(earliest)), if next_listing.is_some() => continue,
            };
            let concerns = match received.and_then(|()| self.concerns(&datagram)) {
                Ok(concerns) => concerns,
                Err(error) => {
                    // The kernel left notifications out (ENOBUFS), or something worse: a listing tells.
                    debug!("notifications of links: {error}; listing them");
                    if Errno::from_io_error(&error) != Some(Errno::NOBUFS) {
                        sleep(AGAIN).await;
                    }
                    true
                }
            };
            if concerns {
                next_listing.get_or_insert(earliest);
            }
        }
    }

    /// Whether something in there may make a difference.
    fn concerns(&self, datagram: &[u8]) -> io::Result<bool> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let (message, more) = parse(rest).ok_or_else(cut_short)?;
            rest = more;
            let concerns = match message.kind {
                RTM_NEWLINK => {
                    read_link(&message).is_some_and(|(index, link)| self.links.get(&index) != Some(&link))
                }
                RTM_DELLINK => read_link(&message).is_some(),
                // Routes go with it that nothing is told of.
                RTM_DELADDR => true,
                RTM_NEWROUTE | RTM_DELROUTE => {
                    Route::read(message.body).is_some_and(|route| is_of_interest(&route))
                }
                _ => false,
            };
            if concerns {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn list(&mut self) -> io::Result<Surroundings> {
        // The rest of `struct ifinfomsg`.
        let rest = [&[0; 12][..], &attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())].concat();
        let request = Request { kind: RTM_GETLINK, flags: DUMP, header: [0; 4], attributes: &rest };
        self.links = dump(request, read_link).await?.into_iter().collect();
        let pick = |route: Route| is_of_interest(&route).then_some(route);
        let mut routes = list_routes(MAIN_TABLE, false, pick).await?;
        routes.extend(list_routes(MAIN_TABLE, true, pick).await?);
        Ok(surroundings(&self.links, &routes))
    }
}

fn is_of_interest(route: &Route) -> bool {
    route.table == MAIN_TABLE && (route.is_on_link() || route.default_metric().is_some())
}

fn surroundings(links: &BTreeMap<u32, Link>, routes: &[Route]) -> Surroundings {
    let working = || links.iter().filter(|(_, link)| link.works);
    let works = |device: u32| links.get(&device).is_some_and(|link| link.works);
    let on_link =
        routes.iter().filter(|route| route.is_on_link() && route.hops.iter().any(|hop| works(hop.device)));
    let gateways = |ipv4: bool| {
        let mut best: Option<(u32, BTreeSet<Gateway>)> = None;
        for route in routes.iter().filter(|route| route.prefix.addr().is_ipv4() == ipv4) {
            let Some(metric) = route.default_metric() else { continue };
            let usable = route.hops.iter().filter_map(|hop| {
                let link = links.get(&hop.device).filter(|link| link.works)?;
                Some(Gateway { address: hop.gateway()?, interface: link.name.clone() })
            });
            let usable: BTreeSet<Gateway> = usable.collect();
            if usable.is_empty() {
                continue;
            }
            match &mut best {
                Some((lowest, _)) if *lowest < metric => {}
                Some((lowest, all)) if *lowest == metric => all.extend(usable),
                _ => best = Some((metric, usable)),
            }
        }
        best.map(|(_, gateways)| gateways).unwrap_or_default()
    };
    Surroundings {
        interfaces: working().map(|(index, link)| (link.name.clone(), *index)).collect(),
        on_link: on_link.map(|route| route.prefix).collect(),
        gateways_v4: gateways(true),
        gateways_v6: gateways(false),
    }
}

/// Number and state; `None` for what is told of a bridge's port.
fn read_link(message: &Message<'_>) -> Option<(u32, Link)> {
    let body = message.body;
    let field = |at: usize| body.get(at..at + 4).and_then(number);
    let (family, index, flags) = (*body.first()?, field(4)?, field(8)?);
    let name = find(body.get(IFINFOMSG..)?, IFLA_IFNAME)?;
    let name = std::str::from_utf8(name.strip_suffix(&[0]).unwrap_or(name)).ok()?;
    let works = flags & (IFF_UP | IFF_RUNNING | IFF_LOOPBACK) == IFF_UP | IFF_RUNNING;
    (family == 0).then(|| (index, Link { name: name.to_owned(), works }))
}

#[cfg(test)]
mod tests {
    use super::super::route::tests::body;
    use super::*;

    fn route(prefix: &str, protocol: u8, metric: u32, hops: &[(u32, &str)]) -> Route {
        Route::read(&body(prefix, MAIN_TABLE, (protocol, 1), metric, hops)).unwrap()
    }

    fn gateways(of: &BTreeSet<Gateway>) -> Vec<String> {
        of.iter().map(|Gateway { address, interface }| format!("{address} {interface}")).collect()
    }

    #[test]
    fn what_is_around() {
        let link = |name: &str, works| Link { name: name.into(), works };
        let links = BTreeMap::from([
            (1, link("lo", false)),
            (2, link("eth0", true)),
            (3, link("eth1", true)),
            (4, link("eth2", false)),
        ]);
        const STATIC: u8 = 4;
        const KERNEL: u8 = 2;
        let on_link = [
            route("10.0.0.0/24", KERNEL, 0, &[(2, "")]),
            route("10.0.2.0/24", KERNEL, 0, &[(4, "")]),
            route("fd00::/64", KERNEL, 256, &[(3, "")]),
            route("10.1.0.0/16", STATIC, 0, &[(2, "10.0.0.9")]),
        ];
        type Case<'a> = (&'a str, &'a [Route], &'a [&'a str]);
        let cases: [Case<'_>; 7] = [
            ("none", &[], &[]),
            ("one", &[route("0.0.0.0/0", STATIC, 0, &[(2, "10.0.0.1")])], &["10.0.0.1 eth0"]),
            (
                "two of one route",
                &[route("0.0.0.0/0", STATIC, 0, &[(2, "10.0.0.1"), (3, "10.0.1.1")])],
                &["10.0.0.1 eth0", "10.0.1.1 eth1"],
            ),
            (
                "the lower metric counts",
                &[
                    route("0.0.0.0/0", STATIC, 200, &[(3, "10.0.1.1")]),
                    route("0.0.0.0/0", STATIC, 100, &[(2, "10.0.0.1")]),
                ],
                &["10.0.0.1 eth0"],
            ),
            (
                "unless its link is down",
                &[
                    route("0.0.0.0/0", STATIC, 200, &[(3, "10.0.1.1")]),
                    route("0.0.0.0/0", STATIC, 100, &[(4, "10.0.2.1")]),
                ],
                &["10.0.1.1 eth1"],
            ),
            ("not what was learnt of peers", &[route("0.0.0.0/0", 85, 8192, &[(2, "10.0.0.1")])], &[]),
            ("not without a router", &[route("0.0.0.0/0", STATIC, 0, &[(2, "")])], &[]),
        ];
        for (name, defaults, expected) in cases {
            let routes = [&on_link[..], defaults].concat();
            let found = surroundings(&links, &routes);
            assert_eq!(gateways(&found.gateways_v4), expected, "{name}");
            assert_eq!(found.gateways_v6, BTreeSet::new(), "{name}");
            assert_eq!(found.interfaces, BTreeMap::from([("eth0".into(), 2), ("eth1".into(), 3)]), "{name}");
            let nets: Vec<String> =
                found.on_link.iter().map(ToString::to_string).filter(|net| net != "0.0.0.0/0").collect();
            assert_eq!(nets, ["10.0.0.0/24", "fd00::/64"], "{name}");
        }
        let v6 = surroundings(&links, &[route("::/0", 9, 1024, &[(3, "fe80::1")])]);
        assert_eq!(gateways(&v6.gateways_v6), ["fe80::1 eth1"]);
    }
}
