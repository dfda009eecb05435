//! Where peers are whose addresses are not configured, and which next hops this node can reach.
//!
//! ```text
//! FollowingLinks ──Surroundings─┬─► interfaces ─► RouterDiscovery ──► neighbours ─┐
//!                               ├─► default gateways ─────────────────────────────┴─► addresses of peers
//!                               └─► what is on links ──► the first decisions of a speaker
//! ```
//!
//! Later decisions follow the links by way of the importer, which waits for nothing else ([`crate::tables`]).
//!
//! A peer that was found stays where it is until it is known to be elsewhere: a default route that goes ends no session.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sheave_bgp::{LinkStatus, Links, RouterDiscovery};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::{AddressFamily, Peer, PeerAddress, Router};
use crate::tables::{FollowingLinks, Gateway, Surroundings};

/// Follows both.
#[derive(Debug)]
pub(super) struct Discovery {
    routers: RouterDiscovery,
    news: watch::Receiver<()>,
    /// `None`: they are not followed.
    links: Option<FollowingLinks>,
    /// As told last; `None` before they are known.
    surroundings: Option<Surroundings>,
    /// Interfaces with a peer to find, whether they are there or not.
    wanted: BTreeSet<String>,
    /// Where default routes led last, while they led anywhere.
    gateways: BTreeMap<AddressFamily, BTreeSet<Gateway>>,
}

/// Where peers are.
pub(super) struct Places<'a> {
    /// The name in the config, the address, and the peer there.
    pub(super) found: Vec<(String, IpAddr, Peer)>,
    /// Those that have yet to be found, and why.
    pub(super) missing: Vec<(&'a Peer, String)>,
    /// What is wrong with places.
    pub(super) problems: Vec<String>,
}

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// At these addresses: more than one only where it is a default gateway.
    At(Vec<(IpAddr, Option<String>)>),
    /// Not known, and why.
    Missing(String),
}

impl Discovery {
    pub(super) fn new(runtime: Handle) -> Self {
        let routers = RouterDiscovery::new(runtime);
        Self {
            news: routers.news(),
            routers,
            links: None,
            surroundings: None,
            wanted: BTreeSet::new(),
            gateways: BTreeMap::new(),
        }
    }

    pub(super) fn follow(&mut self, links: FollowingLinks) {
        self.links = Some(links);
    }

    /// Has the peers of these settings looked for, and no others.
    pub(super) fn want(&mut self, router: &Router) {
        let unnumbered = router.peers.iter().filter(|peer| peer.address == PeerAddress::Neighbour);
        self.wanted = unnumbered.filter_map(|peer| peer.interface.clone()).collect();
        self.look();
    }

    /// Waits until something is different.
    pub(super) async fn changed(&mut self) {
        let links = async {
            match &mut self.links {
                Some(links) => links.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = links => {}
            // The sender lives as long as this.
            Ok(()) = self.news.changed() => {}
        }
    }

    /// Takes in what is different.
    pub(super) fn take(&mut self) {
        self.news.mark_unchanged();
        if let Some(now) = self.links.as_mut().and_then(FollowingLinks::now) {
            self.surroundings = Some(now);
            self.look();
        }
    }

    /// What next hops can be reached by.
    pub(super) fn links(&self) -> Option<Links> {
        self.surroundings.as_ref().map(Surroundings::links)
    }

    fn look(&mut self) {
        let Some(Surroundings { interfaces, gateways_v4, gateways_v6, .. }) = &self.surroundings else {
            return;
        };
        let links = self.wanted.iter().filter_map(|name| Some((name.clone(), *interfaces.get(name)?)));
        self.routers.set_links(&links.collect());
        for (family, gateways) in [(AddressFamily::Ipv4, gateways_v4), (AddressFamily::Ipv6, gateways_v6)] {
            if !gateways.is_empty() {
                self.gateways.insert(family, gateways.clone());
            }
        }
    }

    /// Where these are. One address has one session: of two peers there the one counts whose address is configured, else the first.
    pub(super) fn places<'a>(&self, peers: &'a [Peer]) -> Places<'a> {
        let mut places = Places { found: Vec::new(), missing: Vec::new(), problems: self.problems() };
        let (configured, others): (Vec<&Peer>, Vec<&Peer>) =
            peers.iter().partition(|peer| peer.address.ip().is_some());
        for peer in configured.into_iter().chain(others) {
            let at = match self.find(peer) {
                Found::At(at) => at,
                Found::Missing(why) => {
                    places.missing.push((peer, why));
                    continue;
                }
            };
            let mut twice = None;
            for (address, interface) in at {
                match places.found.iter().find(|(_, other, _)| *other == address) {
                    Some((other, ..)) => {
                        twice = Some(format!("{address} is the address of peer {other} too"));
                    }
                    None => {
                        let there = peer.found_at(address, interface.as_deref());
                        places.found.push((peer.name(), address, there));
                    }
                }
            }
            // A gateway may well be a peer by itself.
            if let Some(twice) = twice.filter(|_| peer.address == PeerAddress::Neighbour) {
                places.missing.push((peer, format!("{twice}: one of both routers has to have another one")));
            }
        }
        places
    }

    /// Where a peer is.
    fn find(&self, peer: &Peer) -> Found {
        match peer.address {
            PeerAddress::Ip(address) => Found::At(vec![(address, peer.interface.clone())]),
            PeerAddress::Neighbour => {
                let interface = peer.interface.as_deref().unwrap_or_default();
                match (&self.surroundings, self.routers.links().remove(interface)) {
                    (None, _) => Found::Missing("links are not known yet".into()),
                    (Some(_), None) => Found::Missing(format!("interface {interface} is down, or not there")),
                    (Some(_), Some(LinkStatus { neighbour: Some(address), .. })) => {
                        Found::At(vec![(address.into(), Some(interface.to_owned()))])
                    }
                    (Some(_), Some(LinkStatus { error: Some(error), .. })) => Found::Missing(error),
                    (Some(_), Some(_)) => {
                        Found::Missing(format!("no router advertisement is heard on {interface} yet"))
                    }
                }
            }
            PeerAddress::DefaultGateway(family) => match self.gateways.get(&family) {
                Some(gateways) => {
                    let is_link_local = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
                    let found = gateways.iter().map(|Gateway { address, interface }| {
                        (*address, is_link_local(*address).then(|| interface.clone()))
                    });
                    Found::At(found.collect())
                }
                None => Found::Missing("there is no such default route in the main table".into()),
            },
        }
    }

    /// What is wrong on the links of unnumbered peers, though they were found.
    fn problems(&self) -> Vec<String> {
        let of_link = |(name, status): (String, LinkStatus)| {
            let neighbour = status.neighbour?;
            status
                .other
                .map(|other| {
                    format!(
                        "peer {name}: there are two routers on its link, {neighbour} and {other}, and the session is with the first: \
                         give peers their addresses there"
                    )
                })
                .or_else(|| status.error.map(|error| format!("peer {name}: {error}")))
        };
        self.routers.links().into_iter().filter_map(of_link).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PeerAsn;

    fn peer(address: PeerAddress, interface: Option<&str>) -> Peer {
        let any = Peer::new([192, 0, 2, 1].into(), 65001);
        Peer { address, interface: interface.map(str::to_owned), asn: PeerAsn::External, ..any }
    }

    fn gateways(of: &[(&str, &str)]) -> BTreeSet<Gateway> {
        let one = |(address, interface): &(&str, &str)| Gateway {
            address: address.parse().unwrap(),
            interface: (*interface).into(),
        };
        of.iter().map(one).collect()
    }

    #[tokio::test]
    async fn where_peers_are() {
        let mut discovery = Discovery::new(Handle::current());
        let at = |addresses: &[(&str, Option<&str>)]| {
            let one = |(address, interface): &(&str, Option<&str>)| {
                (address.parse().unwrap(), interface.map(str::to_owned))
            };
            Found::At(addresses.iter().map(one).collect())
        };
        let missing = |why: &str| Found::Missing(why.into());
        let v4 = peer(PeerAddress::DefaultGateway(AddressFamily::Ipv4), None);
        let v6 = peer(PeerAddress::DefaultGateway(AddressFamily::Ipv6), None);
        let eth1 = peer(PeerAddress::Neighbour, Some("eth1"));
        let configured = peer(PeerAddress::Ip("fe80::9".parse().unwrap()), Some("eth9"));
        let no_route = missing("there is no such default route in the main table");
        assert_eq!(discovery.find(&v4), no_route);
        assert_eq!(discovery.find(&eth1), missing("links are not known yet"));
        assert_eq!(discovery.find(&configured), at(&[("fe80::9", Some("eth9"))]));
        assert_eq!(discovery.links(), None);

        let mut surroundings = Surroundings {
            gateways_v4: gateways(&[("10.0.0.1", "eth1"), ("fe80::1", "eth2")]),
            ..Surroundings::default()
        };
        for (name, now, expected) in [
            (
                "two, one of them by its IPv6 address",
                surroundings.gateways_v4.clone(),
                at(&[("10.0.0.1", None), ("fe80::1", Some("eth2"))]),
            ),
            ("another", gateways(&[("10.0.0.2", "eth1")]), at(&[("10.0.0.2", None)])),
            ("none: it stays", BTreeSet::new(), at(&[("10.0.0.2", None)])),
        ] {
            surroundings.gateways_v4 = now;
            discovery.surroundings = Some(surroundings.clone());
            discovery.look();
            assert_eq!(discovery.find(&v4), expected, "{name}");
            assert_eq!(discovery.find(&v6), no_route, "{name}");
        }
        assert_eq!(discovery.find(&eth1), missing("interface eth1 is down, or not there"));

        // The gateway is listed by its address as well: it is one peer, with the settings listed.
        let listed = Peer::new("10.0.0.2".parse().unwrap(), 65009);
        let peers = [v4, eth1.clone(), listed.clone()];
        let Places { found, missing, problems } = discovery.places(&peers);
        assert_eq!(found, [("10.0.0.2".to_owned(), "10.0.0.2".parse().unwrap(), listed)]);
        assert_eq!(missing, [(&eth1, "interface eth1 is down, or not there".to_owned())]);
        assert_eq!(problems, Vec::<String>::new());
    }
}
