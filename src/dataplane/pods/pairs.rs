//! PURE: which packets each pod of this node is to take in itself: what the plan says, and what it said until a moment ago.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::inside::Inside;
use crate::plan::{AcceptedIn, Rewrite, RewriteKey, RewriteSide, VipPort};

/// How long a pod goes on taking in what is not wished any more: directors hear of it at slightly different times.
const LINGER: Duration = Duration::from_secs(5);

/// An endpoint and a VIP: what the rules can tell apart by an outer packet's two destinations. All ports of the VIP go the
/// same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    /// The endpoint's address.
    pub endpoint: IpAddr,
    /// The VIP.
    pub vip: IpAddr,
}

impl Pair {
    /// The least pair of an endpoint: IPv4 addresses come before IPv6 ones.
    pub fn first(endpoint: IpAddr) -> Self {
        Self { endpoint, vip: IpAddr::V4(Ipv4Addr::UNSPECIFIED) }
    }
}

/// The wishes of a plan.
#[derive(Debug, Default)]
pub struct Pairs {
    /// What this node takes in for its own endpoints, wherever.
    planned: BTreeMap<Pair, BTreeMap<VipPort, Rewrite>>,
    /// What pods took in until a moment ago, with the endpoint's port, and until when they go on.
    lingering: BTreeMap<Pair, BTreeMap<VipPort, (u16, Instant)>>,
}

impl Pairs {
    /// Takes over what a plan says of some rewrites. Gives the endpoints whose pods it concerns.
    pub fn update<'a>(
        &mut self,
        rewrites: impl IntoIterator<Item = (&'a RewriteKey, Option<&'a Rewrite>)>,
        now: Instant,
    ) -> BTreeSet<IpAddr> {
        let mut before = BTreeMap::new();
        for (key, rewrite) in rewrites {
            if key.side != RewriteSide::Endpoint {
                continue;
            }
            let pair = Pair { endpoint: key.endpoint, vip: key.vip.address };
            before.entry(pair).or_insert_with(|| self.ports(pair));
            let ports = self.planned.entry(pair).or_default();
            match rewrite {
                Some(rewrite) => drop(ports.insert(key.vip, *rewrite)),
                None => drop(ports.remove(&key.vip)),
            }
            if ports.is_empty() {
                self.planned.remove(&pair);
            }
        }
        let mut touched = BTreeSet::new();
        for (pair, before) in before {
            let after = self.ports(pair);
            if before == after {
                continue;
            }
            touched.insert(pair.endpoint);
            let lingering = self.lingering.entry(pair).or_default();
            lingering.retain(|vip, _| !after.contains_key(vip));
            let gone = before.into_iter().filter(|(vip, _)| !after.contains_key(vip));
            lingering.extend(gone.map(|(vip, port)| (vip, (port, now + LINGER))));
            if lingering.is_empty() {
                self.lingering.remove(&pair);
            }
        }
        touched
    }

    /// Ends what has lingered long enough. Gives the endpoints that it concerns.
    pub fn expire(&mut self, now: Instant) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        self.lingering.retain(|pair, ports| {
            let count = ports.len();
            ports.retain(|_, (_, until)| *until > now);
            if ports.len() < count {
                touched.insert(pair.endpoint);
            }
            !ports.is_empty()
        });
        touched
    }

    /// The endpoints whose pods take in something.
    pub fn endpoints(&self) -> BTreeSet<IpAddr> {
        let wished = self.planned.keys().filter(|pair| self.is_wished(**pair));
        wished.chain(self.lingering.keys()).map(|pair| pair.endpoint).collect()
    }

    /// Every rewrite that is known.
    pub fn keys(&self) -> impl Iterator<Item = RewriteKey> {
        self.planned.iter().flat_map(|(pair, ports)| {
            ports.keys().map(|vip| RewriteKey {
                endpoint: pair.endpoint,
                side: RewriteSide::Endpoint,
                vip: *vip,
            })
        })
    }

    /// Whether the plan wishes that an endpoint's pod takes in something; else it does so only until that has lingered.
    pub fn wants(&self, endpoint: IpAddr) -> bool {
        of(&self.planned, endpoint).any(|(pair, _)| self.is_wished(*pair))
    }

    /// What an endpoint's namespace must hold; `None`: nothing.
    pub fn inside(&self, endpoint: IpAddr) -> Option<Inside> {
        let mut ports = BTreeMap::new();
        for (_, lingering) in of(&self.lingering, endpoint) {
            ports.extend(lingering.iter().map(|(vip, (port, _))| (*vip, *port)));
        }
        for (pair, _) in of(&self.planned, endpoint) {
            ports.extend(self.ports(*pair));
        }
        (!ports.is_empty()).then(|| Inside::new(endpoint, ports))
    }

    /// The VIPs whose packets an endpoint's pod takes in, once it is prepared. Of one that the plan gives to the node
    /// meanwhile it does not: the node takes it at once.
    pub fn passing(&self, endpoint: IpAddr) -> BTreeSet<Pair> {
        let wished = of(&self.planned, endpoint).map(|(pair, _)| *pair).filter(|pair| self.is_wished(*pair));
        let lingering = of(&self.lingering, endpoint).map(|(pair, _)| *pair);
        wished.chain(lingering.filter(|pair| !self.planned.contains_key(pair))).collect()
    }

    /// One port that a pod is to take in makes it take in all of that VIP.
    fn is_wished(&self, pair: Pair) -> bool {
        let ports = self.planned.get(&pair).into_iter().flat_map(BTreeMap::values);
        ports.into_iter().any(|rewrite| rewrite.accepted_in == AcceptedIn::Pod)
    }

    /// The ports that a pod is to take in, with its own.
    fn ports(&self, pair: Pair) -> BTreeMap<VipPort, u16> {
        if !self.is_wished(pair) {
            return BTreeMap::new();
        }
        let ports = self.planned.get(&pair).into_iter().flatten();
        ports.map(|(vip, rewrite)| (*vip, rewrite.target_port)).collect()
    }
}

/// The part of a map that is about an endpoint.
fn of<T>(map: &BTreeMap<Pair, T>, endpoint: IpAddr) -> impl Iterator<Item = (&Pair, &T)> {
    map.range(Pair::first(endpoint)..).take_while(move |(pair, _)| pair.endpoint == endpoint)
}
