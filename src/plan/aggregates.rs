//! Aggregates: prefixes announced in place of the VIPs within them.
//!
//! An aggregate draws packets for every address in it, so it stands for those VIPs alone that this node could as well announce, and it
//! stands only while drawing all of them here does no harm:
//!
//! - It covers prefixes of Services that every node forwards (no traffic policy `Local`) and whose attributes are the aggregate's own.
//!   All others stay as they are beside it: the longest match leads to the nodes that announce them.
//! - It is left out while a VIP in it takes connections and is not to be announced: that one would be drawn here all the same.
//! - It is left out on a node that does not hold all that it is to announce in it ([`Selection`](super::Selection)).
//! - It contains no node's address and no pods': packets for what no Service has are refused where it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::model::{Announcement, Warning};

/// One of `announce.aggregate`.
#[derive(Debug)]
struct Aggregate {
    announcement: Announcement,
    /// Prefixes that it can stand for.
    covers: BTreeSet<IpNet>,
    /// VIPs in it that take connections and are not to be announced.
    hidden: BTreeSet<IpAddr>,
}

/// All that can be on this node, by prefix.
#[derive(Debug, Default)]
pub(super) struct Aggregates(BTreeMap<IpNet, Aggregate>);

impl Aggregates {
    /// Of these prefixes, with these attributes; nothing is in them yet.
    pub(super) fn new(announcements: Vec<Announcement>) -> Self {
        let aggregate = |announcement: Announcement| {
            let prefix = announcement.prefix;
            (prefix, Aggregate { announcement, covers: BTreeSet::new(), hidden: BTreeSet::new() })
        };
        Self(announcements.into_iter().map(aggregate).collect())
    }

    /// Whether they are of these prefixes, with these attributes.
    pub(super) fn are(&self, announcements: &[Announcement]) -> bool {
        self.0.values().map(|aggregate| &aggregate.announcement).eq(announcements)
    }

    /// Their prefixes.
    pub(super) fn prefixes(&self) -> Vec<IpNet> {
        self.0.keys().copied().collect()
    }

    /// Those that a prefix is in.
    pub(super) fn around(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        self.0.keys().copied().filter(move |aggregate| *aggregate != prefix && aggregate.contains(&prefix))
    }

    /// Takes in what is to be announced of a prefix now; `hidden`: nothing, though it is a VIP that takes connections. Gives the
    /// aggregates whose announcement that may change.
    pub(super) fn settled(
        &mut self,
        prefix: IpNet,
        announcement: Option<&Announcement>,
        hidden: bool,
    ) -> Vec<IpNet> {
        let around: Vec<IpNet> = self.around(prefix).collect();
        for of in &around {
            let Some(aggregate) = self.0.get_mut(of) else { continue };
            if announcement.is_some_and(|announcement| aggregate.can_stand_for(announcement)) {
                aggregate.covers.insert(prefix);
            } else {
                aggregate.covers.remove(&prefix);
            }
            if hidden {
                aggregate.hidden.insert(prefix.addr());
            } else {
                aggregate.hidden.remove(&prefix.addr());
            }
        }
        around
    }

    /// What is to be announced of an aggregate.
    pub(super) fn announcement(&self, prefix: &IpNet) -> Option<&Announcement> {
        let aggregate = self.0.get(prefix)?;
        (!aggregate.covers.is_empty() && aggregate.hidden.is_empty()).then_some(&aggregate.announcement)
    }

    /// What an aggregate stands for where it is announced.
    pub(super) fn covered_by(&self, aggregate: &IpNet) -> impl Iterator<Item = IpNet> {
        self.0.get(aggregate).into_iter().flat_map(|aggregate| aggregate.covers.iter().copied())
    }

    /// Whether an aggregate stands for a prefix where it is announced.
    pub(super) fn covers(&self, aggregate: &IpNet, prefix: &IpNet) -> bool {
        self.0.get(aggregate).is_some_and(|aggregate| aggregate.covers.contains(prefix))
    }

    /// What users should know.
    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        self.0.iter().filter_map(|(prefix, aggregate)| {
            let vip = aggregate.hidden.first()?;
            let others = aggregate.hidden.len() - 1;
            let others = if others > 0 { format!(" and {others} more") } else { String::new() };
            Some(left_out(
                *prefix,
                &format!(
                    "{vip}{others} in it would be drawn to this node without being announced: announce it too, or choose \
                     aggregates around it"
                ),
            ))
        })
    }
}

impl Aggregate {
    fn can_stand_for(&self, announcement: &Announcement) -> bool {
        let Announcement {
            prefix: _,
            kind: _,
            service,
            local,
            communities,
            large_communities,
            local_pref,
            med,
            as_path_prepend,
        } = &self.announcement;
        debug_assert!(service.is_none() && !local, "an aggregate is no Service's");
        announcement.service.is_some()
            && !announcement.local
            && announcement.communities == *communities
            && announcement.large_communities == *large_communities
            && announcement.local_pref == *local_pref
            && announcement.med == *med
            && announcement.as_path_prepend == *as_path_prepend
    }
}

/// Tells why an aggregate is not announced.
pub(super) fn left_out(prefix: IpNet, why: &str) -> Warning {
    Warning {
        object: "Config".into(),
        reason: "AggregateLeftOut",
        message: format!(
            "announce.aggregate: {prefix} is not announced, what is in it is, one by one: {why}"
        ),
    }
}
