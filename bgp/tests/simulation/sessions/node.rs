//! A node: its session, what it announces, and what it has learnt.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use ipnet::IpNet;
use sheave_bgp::rib::Rib;
use sheave_bgp::session::{Direction, Jitter, Negotiated, Session, SessionConfig};
use sheave_bgp::{Attributes, Families, Family, RouteChanges};

pub(super) fn address(node: usize) -> IpAddr {
    IpAddr::V4(if node == 0 { Ipv4Addr::new(10, 0, 0, 1) } else { Ipv4Addr::new(10, 0, 0, 2) })
}

pub(super) fn family(prefix: IpNet) -> Family {
    if prefix.addr().is_ipv4() { Family::Ipv4Unicast } else { Family::Ipv6Unicast }
}

/// A TCP connection.
pub(super) struct Link {
    pub(super) dialler: usize,
    /// Whether each node's end is open.
    pub(super) open: [bool; 2],
    pub(super) hangs: bool,
    /// When the latest bytes arrive at each node, since they arrive in order.
    pub(super) latest: [Instant; 2],
}

pub(super) struct Node {
    pub(super) config: SessionConfig,
    pub(super) session: Session,
    pub(super) rib: Rib,
    /// What is to be announced, by MED.
    pub(super) routes: BTreeMap<IpNet, u32>,
    /// When each prefix was last changed.
    pub(super) changed: BTreeMap<IpNet, Instant>,
    /// What a restarted process has yet to find out, and since when it knows all.
    pub(super) unknown: BTreeMap<IpNet, u32>,
    pub(super) all_known: Option<Instant>,
    /// Which process this is, and whether it started with forwarding kept.
    pub(super) life: u64,
    pub(super) kept: bool,
    pub(super) suspended: Option<Instant>,
    /// The link of each direction.
    pub(super) links: BTreeMap<Direction, usize>,
    pub(super) dialling: Option<usize>,
    pub(super) negotiated: Option<Negotiated>,
    /// What the peer has announced.
    pub(super) learnt: BTreeMap<IpNet, u32>,
    /// Of that, what is left of an earlier session.
    pub(super) stale: BTreeSet<IpNet>,
    /// When that session ended.
    pub(super) stale_since: Instant,
    /// What is to come in answer to ROUTE-REFRESH.
    pub(super) awaited: BTreeSet<IpNet>,
    pub(super) complete: Families,
}

impl Node {
    pub(super) fn new(config: SessionConfig, seed: u64, now: Instant) -> Node {
        let kept = config.graceful_restart.is_some_and(|offer| offer.restarting);
        Node {
            session: Session::new(config.clone(), Jitter::seeded(seed)),
            config,
            rib: Rib::new(kept),
            routes: BTreeMap::new(),
            changed: BTreeMap::new(),
            unknown: BTreeMap::new(),
            all_known: Some(now),
            life: 0,
            kept,
            suspended: None,
            links: BTreeMap::new(),
            dialling: None,
            negotiated: None,
            learnt: BTreeMap::new(),
            stale: BTreeSet::new(),
            stale_since: now,
            awaited: BTreeSet::new(),
            complete: Families::NONE,
        }
    }

    pub(super) fn direction(&self, link: usize) -> Option<Direction> {
        self.links.iter().find(|(_, known)| **known == link).map(|(direction, _)| *direction)
    }

    pub(super) fn apply(&mut self, prefix: IpNet, med: Option<u32>) {
        self.unknown.remove(&prefix);
        let mut changes = RouteChanges::default();
        match med {
            Some(med) => {
                self.routes.insert(prefix, med);
                changes.announce.push((prefix, Attributes { med: Some(med), ..Attributes::default() }));
            }
            None => {
                self.routes.remove(&prefix);
                changes.withdraw.push(prefix);
            }
        }
        self.rib.apply(changes);
    }

    /// Takes stale routes out; returns which.
    pub(super) fn sweep(&mut self, is_swept: impl Fn(IpNet) -> bool) -> Vec<IpNet> {
        let swept: Vec<IpNet> = self.stale.iter().copied().filter(|prefix| is_swept(*prefix)).collect();
        for prefix in &swept {
            self.stale.remove(prefix);
            self.learnt.remove(prefix);
        }
        swept
    }
}
