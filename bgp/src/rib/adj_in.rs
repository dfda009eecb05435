//! Adj-RIB-In: what a peer announces, as it came (RFC 4271 §3.2), and which of it the import policy accepts.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::import::{ImportPolicy, MaxPrefixes};
use super::path::{Path, Source};
use crate::Family;
use crate::wire::Nlri;

/// All of one peer.
#[derive(Debug)]
pub(super) struct AdjRibIn {
    /// `None`: nothing is imported of it; its routes are kept to be reflected.
    pub(super) policy: Option<ImportPolicy>,
    /// The session that its routes came by.
    pub(super) source: Option<Arc<Source>>,
    /// That session stands.
    pub(super) up: bool,
    pub(super) ipv4: FamilyIn,
    pub(super) ipv6: FamilyIn,
    /// It says when it has told all that it has as the session comes up: End-of-RIB (RFC 4724).
    pub(super) says_end: bool,
}

/// One family of a peer.
#[derive(Debug, Default)]
pub(super) struct FamilyIn {
    /// By prefix and path identifier, which is 0 where the session has none (RFC 7911).
    pub(super) routes: BTreeMap<Nlri, Held>,
    pub(super) accepted: usize,
    /// How many of the routes are stale.
    pub(super) stale: usize,
    /// Since when the first of them have been.
    stale_since: Option<Instant>,
    /// When they go (RFC 4724 §4.2, RFC 7313 §4), or become long-lived.
    pub(super) stale_until: Option<Instant>,
    /// How long they may be that, as agreed on in the session that is over (RFC 9494).
    pub(super) long_lived: Option<Duration>,
    /// When those that are go.
    pub(super) long_lived_until: Option<Instant>,
    /// The session is for this family too.
    pub(super) negotiated: bool,
    /// The peer has told all that it had when the session came up, or was asked.
    pub(super) end_of_rib: bool,
    /// It tells all of it again (RFC 7313).
    pub(super) refreshing: bool,
    /// How close the peer is to its limit, as told last.
    pub(super) nearness: Nearness,
    /// It has been said that the peer has more paths to a prefix than are kept.
    pub(super) crowded: bool,
}

/// A route of the peer's.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) path: Arc<Path>,
    /// Of before the peer restarted, or began to tell all again; and not announced since.
    pub(super) stale: bool,
    /// Stale, and kept as a last resort: the peer was not back in time.
    pub(super) long_lived: bool,
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
        let (ipv4, ipv6) = (FamilyIn::default(), FamilyIn::default());
        AdjRibIn { policy, source: None, up: false, ipv4, ipv6, says_end: false }
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

    pub(super) fn get(&self, nlri: &Nlri) -> Option<&Held> {
        self.family(Family::of(&nlri.prefix)).routes.get(nlri)
    }

    /// All paths to a prefix.
    pub(super) fn paths(&self, prefix: IpNet) -> impl Iterator<Item = (&Nlri, &Held)> {
        self.family(Family::of(&prefix)).routes.range(paths_within(prefix..=prefix))
    }

    /// When something of it is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.ipv4.deadline().into_iter().chain(self.ipv6.deadline()).min()
    }

    /// All that it announces.
    pub(super) fn announced(&self) -> Vec<Nlri> {
        self.ipv4.routes.keys().chain(self.ipv6.routes.keys()).copied().collect()
    }

    /// What it announces to nets that hold this one, are it or lie within.
    pub(super) fn overlapping(&self, net: &IpNet) -> Vec<Nlri> {
        let routes = &self.family(Family::of(net)).routes;
        let around = supernets(*net).map(|prefix| prefix..=prefix);
        let ranges = around.chain([within(net)]).map(paths_within);
        ranges.flat_map(|range| routes.range(range)).map(|(nlri, _)| *nlri).collect()
    }
}

impl FamilyIn {
    /// How many routes the peer has told of, but for those that it has to tell again.
    pub(super) fn told(&self) -> usize {
        self.routes.len() - self.stale
    }

    /// Whether nothing has been stale for longer.
    pub(super) fn is_stale_for_less(&self, time: Duration, now: Instant) -> bool {
        self.stale_since.is_none_or(|since| now < since + time)
    }

    /// All that there is has to be told again.
    pub(super) fn mark_stale(&mut self, now: Instant) {
        if self.stale == 0 {
            self.stale_since = Some(now);
        }
        self.routes.values_mut().for_each(|held| held.stale = true);
        self.stale = self.routes.len();
    }

    /// So many of the stale routes are told again, or gone.
    pub(super) fn less_stale(&mut self, count: usize) {
        self.stale -= count;
        if self.stale == 0 {
            (self.stale_until, self.long_lived_until) = (None, None);
        }
    }

    /// Those that `wanted` says.
    pub(super) fn select(&self, wanted: impl Fn(&Held) -> bool) -> Vec<Nlri> {
        self.routes.iter().filter(|(_, held)| wanted(held)).map(|(nlri, _)| *nlri).collect()
    }

    /// When something of it is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.stale_until.into_iter().chain(self.long_lived_until).min()
    }
}

/// The nets around this one, from the next larger one on.
pub(super) fn supernets(net: IpNet) -> impl Iterator<Item = IpNet> {
    std::iter::successors(net.supernet(), IpNet::supernet)
}

/// Where all paths to a range of prefixes are.
fn paths_within(prefixes: RangeInclusive<IpNet>) -> RangeInclusive<Nlri> {
    let (first, last) = prefixes.into_inner();
    Nlri { prefix: first, path_id: 0 }..=Nlri { prefix: last, path_id: u32::MAX }
}

/// Where a net and all within it are in an ordered set.
pub(super) fn within(net: &IpNet) -> RangeInclusive<IpNet> {
    // A host prefix is as long as its family allows.
    net.trunc()..=IpNet::from(net.broadcast())
}
