//! How VIPs are announced while this node drains, and what everything is announced with.

use std::collections::BTreeSet;

use ipnet::IpNet;
use sheave_bgp::{Attributes, Community, LargeCommunity, RouteChanges};

use super::{Announcer, Running};
use crate::drain::Stance;
use crate::plan::Announcement;

impl Announcer {
    /// Announces VIPs that way from now on. Those that are announced become a last resort, or are one no more, at once, and peers
    /// have been told when this returns; what may not be announced any more, or may be again, is for the next [`Announcer::update`].
    pub async fn stand(&mut self, stance: Stance) {
        let changes = stance.is_last_resort() != self.stance.is_last_resort();
        self.stance = stance;
        let Some(Running { speaker, .. }) = self.speaker.as_ref().filter(|_| changes) else { return };
        let vips = self.selection.announced().values().filter(|announced| announced.kind.leads_to_ipvs());
        speaker.update(RouteChanges { announce: self.routes(vips), withdraw: Vec::new() });
        self.flush().await;
    }

    /// Whether a planned VIP is not announced because this node drains.
    pub fn holds_back(&self, prefix: &IpNet) -> bool {
        !self.stance.allows(prefix)
    }

    /// Announcements as the speaker takes them.
    pub(super) fn routes<'a>(
        &self,
        announcements: impl Iterator<Item = &'a Announcement>,
    ) -> Vec<(IpNet, Attributes)> {
        let last_resort = self.stance.is_last_resort();
        announcements
            .map(|announcement| (announcement.prefix, attributes(announcement, last_resort)))
            .collect()
    }
}

fn attributes(announcement: &Announcement, last_resort: bool) -> Attributes {
    let large = |&(global, data1, data2): &(u32, u32, u32)| LargeCommunity { global, data1, data2 };
    let mut communities: BTreeSet<_> =
        announcement.communities.iter().map(|value| Community(*value)).collect();
    if last_resort && announcement.kind.leads_to_ipvs() {
        // To iBGP peers it goes with LOCAL_PREF 0 (RFC 8326 section 4.1).
        communities.insert(Community::GRACEFUL_SHUTDOWN);
    }
    Attributes {
        communities: communities.into_iter().collect(),
        large_communities: announcement.large_communities.iter().map(large).collect(),
        local_pref: announcement.local_pref,
        med: announcement.med,
        as_path_prepend: announcement.as_path_prepend,
        kind: announcement.kind.number(),
    }
}
