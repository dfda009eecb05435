//! What a peer is told of our routes, where that is not all of them as they are.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::import::PrefixFilter;
use crate::{Attributes, Community, LargeCommunity};

/// A peer's export policy: a function of a route's prefix, kind and attributes alone. By default it is told of all routes, as they
/// are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportPolicy {
    /// Routes to these are announced, one that fits being enough; `None`: whatever the prefix.
    pub prefixes: Option<Vec<PrefixFilter>>,
    /// Routes of these [kinds](Attributes::kind) are announced; `None`: whatever the kind.
    pub kinds: Option<BTreeSet<u8>>,
    /// COMMUNITIES besides the route's own.
    pub communities: BTreeSet<Community>,
    /// LARGE_COMMUNITIES besides the route's own.
    pub large_communities: BTreeSet<LargeCommunity>,
    /// LOCAL_PREF in place of the route's own.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC in place of the route's own.
    pub med: Option<u32>,
    /// How many times more than the route asks for our ASN is prepended.
    pub as_path_prepend: u8,
}

impl ExportPolicy {
    /// Whether routes of that kind to the prefix are announced.
    pub fn passes(&self, prefix: &IpNet, kind: u8) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind)) && self.passes_on(prefix)
    }

    /// Whether routes of others to the prefix, which have no kind, are passed on.
    pub fn passes_on(&self, prefix: &IpNet) -> bool {
        self.prefixes.as_ref().is_none_or(|filters| filters.iter().any(|filter| filter.fits(prefix)))
    }

    /// What a route with these attributes is announced with; `None`: as it is.
    pub fn changed(&self, route: &Attributes) -> Option<Attributes> {
        let ExportPolicy {
            prefixes: _,
            kinds: _,
            communities,
            large_communities,
            local_pref,
            med,
            as_path_prepend,
        } = self;
        let changed = Attributes {
            communities: with(&route.communities, communities),
            large_communities: with(&route.large_communities, large_communities),
            local_pref: local_pref.or(route.local_pref),
            med: med.or(route.med),
            as_path_prepend: route.as_path_prepend.saturating_add(*as_path_prepend),
            kind: route.kind,
        };
        (changed != *route).then_some(changed)
    }
}

/// A list with those added that it has not.
fn with<T: Ord + Copy>(own: &std::sync::Arc<[T]>, more: &BTreeSet<T>) -> std::sync::Arc<[T]> {
    if more.iter().all(|one| own.contains(one)) {
        return std::sync::Arc::clone(own);
    }
    // Sorted, so that routes which come to the same share messages.
    own.iter().chain(more).copied().collect::<BTreeSet<T>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(med: Option<u32>, communities: &[u32]) -> Attributes {
        let communities = communities.iter().copied().map(Community).collect();
        Attributes { med, communities, local_pref: Some(200), as_path_prepend: 1, ..Attributes::default() }
    }

    #[test]
    fn what_passes() {
        let filter = |text: &str| vec![PrefixFilter::exactly(text.parse().unwrap())];
        let prefixes = |text| ExportPolicy { prefixes: Some(filter(text)), ..ExportPolicy::default() };
        let kinds = |kinds: &[u8]| ExportPolicy {
            kinds: Some(kinds.iter().copied().collect()),
            ..ExportPolicy::default()
        };
        let both = ExportPolicy { kinds: kinds(&[3]).kinds, ..prefixes("10.0.0.0/8") };
        for (name, policy, prefix, kind, passes) in [
            ("by default all", ExportPolicy::default(), "10.0.0.0/8", 3, true),
            ("the prefix", prefixes("10.0.0.0/8"), "10.0.0.0/8", 3, true),
            ("another prefix", prefixes("10.0.0.0/8"), "10.0.0.0/9", 3, false),
            ("of the other family", prefixes("0.0.0.0/0"), "::/0", 3, false),
            ("the kind", kinds(&[2, 3]), "10.0.0.0/8", 3, true),
            ("another kind", kinds(&[2]), "10.0.0.0/8", 3, false),
            ("no kind", kinds(&[]), "10.0.0.0/8", 0, false),
            ("both", both.clone(), "10.0.0.0/8", 3, true),
            ("the prefix alone", both.clone(), "10.0.0.0/8", 4, false),
            ("the kind alone", both, "10.0.0.0/9", 3, false),
        ] {
            assert_eq!(policy.passes(&prefix.parse().unwrap(), kind), passes, "{name}");
        }
    }

    #[test]
    fn what_routes_are_announced_with() {
        let policy = |change: fn(&mut ExportPolicy)| {
            let mut policy = ExportPolicy::default();
            change(&mut policy);
            policy
        };
        let route = attributes(Some(5), &[7, 9]);
        let large = LargeCommunity { global: 1, data1: 2, data2: 3 };
        for (name, policy, expected) in [
            ("nothing asked for", ExportPolicy::default(), None),
            ("what it has", policy(|p| p.communities = [Community(9)].into()), None),
            ("MED instead", policy(|p| p.med = Some(0)), Some(attributes(Some(0), &[7, 9]))),
            (
                "a community among its own",
                policy(|p| p.communities = [Community(8), Community(9)].into()),
                Some(attributes(Some(5), &[7, 8, 9])),
            ),
            (
                "a large community",
                policy(|p| p.large_communities = [LargeCommunity { global: 1, data1: 2, data2: 3 }].into()),
                Some(Attributes { large_communities: [large].into(), ..route.clone() }),
            ),
            (
                "LOCAL_PREF instead",
                policy(|p| p.local_pref = Some(50)),
                Some(Attributes { local_pref: Some(50), ..route.clone() }),
            ),
            (
                "prepended besides",
                policy(|p| p.as_path_prepend = 2),
                Some(Attributes { as_path_prepend: 3, ..route.clone() }),
            ),
        ] {
            assert_eq!(policy.changed(&route), expected, "{name}");
        }
    }
}
