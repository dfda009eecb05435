//! Who is told of what: which prefixes somebody hears of, and which peers nobody can be told by.

use ipnet::IpNet;
use sheave_bgp::DynamicPeersStatus;

use super::{Announcer, Missing};
use crate::config::DynamicPeer;
use crate::plan::{Announcement, NodePlan};
use crate::tables::ExportTable;

/// What of a plan is announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Prefixes that some peer, or a table, is to be told of.
    pub planned: usize,
    /// Those of them that it is told of now.
    pub announced: usize,
}

impl Announcer {
    /// Peers that are configured and that [`Announcer::status`] does not know of.
    pub fn missing(&self) -> impl Iterator<Item = &Missing> {
        self.missing.iter().chain(&self.barred)
    }

    /// Ranges of peers that are configured and that [`Announcer::status`] does not know of, with nobody in them.
    pub fn missing_ranges(&self) -> Vec<DynamicPeersStatus> {
        let ranges = self.configured.iter().flat_map(|configured| &configured.router.dynamic_peers);
        let is_known =
            |prefix| self.speaker.is_some() && self.dynamic.iter().any(|range| range.prefix == prefix);
        let empty = |range: &DynamicPeer| DynamicPeersStatus {
            prefix: range.prefix,
            limit: range.limit.into(),
            peers: 0,
            refused: 0,
        };
        ranges.filter(|range| !is_known(range.prefix)).map(empty).collect()
    }

    /// Whether a prefix is announced now, itself or by its aggregate, as far as there is anyone to tell.
    pub fn announces(&self, plan: &NodePlan, prefix: &IpNet) -> bool {
        let told = self.aggregate_of(plan, prefix).unwrap_or(*prefix);
        self.selection.announced().get(&told).is_some_and(|announcement| self.has_hearer(announcement))
    }

    /// The peers by name, and ranges, that are not told of a prefix because of their export policies.
    pub fn withheld_from(&self, plan: &NodePlan, prefix: &IpNet) -> Vec<String> {
        let told = self.aggregate_of(plan, prefix).unwrap_or(*prefix);
        let announcement = self.selection.announced().get(&told).or_else(|| plan.announcements.get(&told));
        let (Some(Announcement { prefix, kind, .. }), Some(configured)) = (announcement, &self.configured)
        else {
            return Vec::new();
        };
        let exports = configured.router.exports();
        let withheld = exports.filter(|(_, export)| !export.passes(prefix, kind.number()));
        withheld.map(|(peer, _)| peer).collect()
    }

    /// The aggregate that is announced in place of a prefix.
    pub fn aggregate_of(&self, plan: &NodePlan, prefix: &IpNet) -> Option<IpNet> {
        self.selection.aggregate_of(plan, prefix)
    }

    /// How many of the plan's prefixes somebody is to be told of, and how many of these are announced now, themselves or by their aggregate.
    pub fn counts(&self, plan: &NodePlan) -> Counts {
        let meant = plan.announcements.values().filter(|planned| self.is_meant_for_anyone(planned));
        let announced = |planned: &&Announcement| self.announces(plan, &planned.prefix);
        Counts { planned: meant.clone().count(), announced: meant.filter(announced).count() }
    }

    /// Whether there is a peer to tell, or a table to write to: monitoring stations alone make nobody send packets here.
    fn has_hearer(&self, announcement: &Announcement) -> bool {
        self.speaker.is_some() && self.is_exported(announcement)
            || self.export.as_ref().is_some_and(|export| export.holds(&announcement.prefix))
    }

    /// The same of what is planned, whether or not it can be done now.
    fn is_meant_for_anyone(&self, planned: &Announcement) -> bool {
        self.is_exported(planned) || self.export.as_ref().is_some_and(ExportTable::is_wanted)
    }

    /// Whether the export policy of some peer or range lets a prefix pass.
    fn is_exported(&self, Announcement { prefix, kind, .. }: &Announcement) -> bool {
        let mut exports = self.configured.iter().flat_map(|configured| configured.router.exports());
        exports.any(|(_, export)| export.passes(prefix, kind.number()))
    }
}
