//! Adj-RIB-In: what a peer announces, as it came (RFC 4271 §3.2), and which of it the import policy accepts.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::import::{ImportPolicy, MaxPrefixes};
use super::path::{Path, Source};
use crate::Family;

/// All of one peer.
#[derive(Debug)]
pub(super) struct AdjRibIn {
    /// `None`: nothing is imported of it; its routes are kept to be reflected.
    pub(super) policy: Option<ImportPolicy>,
    /// The session that its routes came by.
    pub(super) source: Option<Source>,
    /// That session stands.
    pub(super) up: bool,
    pub(super) ipv4: FamilyIn,
    pub(super) ipv6: FamilyIn,
    /// What is stale goes then (RFC 4724 §4.2, RFC 7313 §4).
    pub(super) stale_until: Option<Instant>,
    /// It says when it has told all that it has as the session comes up: End-of-RIB (RFC 4724).
    pub(super) says_end: bool,
}

/// One family of a peer.
#[derive(Debug, Default)]
pub(super) struct FamilyIn {
    pub(super) routes: BTreeMap<IpNet, Held>,
    pub(super) accepted: usize,
    /// How many of the routes are stale.
    pub(super) stale: usize,
    /// The session is for this family too.
    pub(super) negotiated: bool,
    /// The peer has told all that it had when the session came up, or was asked.
    pub(super) end_of_rib: bool,
    /// It tells all of it again (RFC 7313).
    pub(super) refreshing: bool,
    /// How close the peer is to its limit, as told last.
    pub(super) nearness: Nearness,
}

/// A route of the peer's.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) path: Arc<Path>,
    /// Of before the peer restarted, or began to tell all again; and not announced since.
    pub(super) stale: bool,
    pub(super) accepted: bool,
    /// It may be passed on to other peers.
    pub(super) offered: bool,
}

/// How close a count of prefixes is to its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Nearness {
    #[default]
    Far,
    Near,
    Over,
}

impl Nearness {
    pub(super) fn of(count: usize, limit: MaxPrefixes) -> Nearness {
        match count {
            count if count > limit.limit => Nearness::Over,
            count if count >= limit.warn_at => Nearness::Near,
            _ => Nearness::Far,
        }
    }
}

impl AdjRibIn {
    pub(super) fn new(policy: Option<ImportPolicy>) -> AdjRibIn {
        AdjRibIn {
            policy,
            source: None,
            up: false,
            ipv4: FamilyIn::default(),
            ipv6: FamilyIn::default(),
            stale_until: None,
            says_end: false,
        }
    }

    /// How much the peer may announce.
    pub(super) fn limit(&self) -> Option<MaxPrefixes> {
        self.policy.as_ref()?.max_prefixes
    }

    /// Whether the peer has told all it has, as far as it is to be waited for (RFC 4724 §4.1).
    pub(super) fn has_told(&self) -> bool {
        let told = |family: &FamilyIn| !family.negotiated || family.end_of_rib;
        self.up && (!self.says_end || told(&self.ipv4) && told(&self.ipv6))
    }

    pub(super) fn family(&self, family: Family) -> &FamilyIn {
        match family {
            Family::Ipv4Unicast => &self.ipv4,
            Family::Ipv6Unicast => &self.ipv6,
        }
    }

    pub(super) fn family_mut(&mut self, family: Family) -> &mut FamilyIn {
        match family {
            Family::Ipv4Unicast => &mut self.ipv4,
            Family::Ipv6Unicast => &mut self.ipv6,
        }
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Option<&Held> {
        self.family(Family::of(prefix)).routes.get(prefix)
    }

    pub(super) fn has_stale(&self) -> bool {
        self.ipv4.stale + self.ipv6.stale > 0
    }

    /// All its prefixes.
    pub(super) fn prefixes(&self) -> Vec<IpNet> {
        self.ipv4.routes.keys().chain(self.ipv6.routes.keys()).copied().collect()
    }

    /// Its prefixes that a net holds, is or lies within.
    pub(super) fn overlapping(&self, net: &IpNet) -> Vec<IpNet> {
        let routes = &self.family(Family::of(net)).routes;
        let around = supernets(*net).filter(|prefix| routes.contains_key(prefix));
        around.chain(routes.range(within(net)).map(|(prefix, _)| *prefix)).collect()
    }
}

impl FamilyIn {
    /// How many prefixes the peer has told of, but for those that it has to tell again.
    pub(super) fn told(&self) -> usize {
        self.routes.len() - self.stale
    }

    /// All that there is has to be told again.
    pub(super) fn mark_stale(&mut self) {
        self.routes.values_mut().for_each(|held| held.stale = true);
        self.stale = self.routes.len();
    }

    /// Prefixes of stale routes, or of all.
    pub(super) fn prefixes(&self, stale_alone: bool) -> Vec<IpNet> {
        let wanted = self.routes.iter().filter(|(_, held)| held.stale || !stale_alone);
        wanted.map(|(prefix, _)| *prefix).collect()
    }
}

/// The nets around this one, from the next larger one on.
pub(super) fn supernets(net: IpNet) -> impl Iterator<Item = IpNet> {
    std::iter::successors(net.supernet(), IpNet::supernet)
}

/// Where a net and all within it are in an ordered set.
pub(super) fn within(net: &IpNet) -> RangeInclusive<IpNet> {
    // A host prefix is as long as its family allows.
    net.trunc()..=IpNet::from(net.broadcast())
}
