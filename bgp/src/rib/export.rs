//! How a route of ours looks to a peer (RFC 4271 §5.1).

use std::net::{IpAddr, Ipv6Addr};

use super::policy::ExportPolicy;
use crate::wire::{AsPath, Context, Origin, PathAttributes, Role};
use crate::{Attributes, Community};

/// LOCAL_PREF where a route sets none.
const DEFAULT_LOCAL_PREF: u32 = 100;

/// What an announcement to one peer depends on, besides the route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// This speaker's ASN.
    pub asn: u32,
    /// What the session agreed on.
    pub context: Context,
    /// The peer wants to know where the answer to a ROUTE-REFRESH begins and ends (RFC 7313).
    pub enhanced_refresh: bool,
    /// The next hop of each negotiated family; `None` where this speaker has no address that the peer could use, and
    /// nothing is announced.
    pub next_hops: Vec<(crate::Family, Option<IpAddr>)>,
    /// What this speaker is to the peer (RFC 9234), if that is known.
    pub role: Option<Role>,
    /// This speaker's link-local address, told beside IPv6 next hops where that is what the peer knows it by.
    pub link_local: Option<Ipv6Addr>,
    /// Of which routes it is told, and what is changed of these.
    pub policy: ExportPolicy,
}

impl Export {
    /// RFC 9234 §5: routes of our own have no such mark yet.
    fn only_to_customer(&self) -> Option<u32> {
        let marks = !self.context.ibgp && self.role.is_some_and(Role::marks_routes);
        marks.then_some(self.asn)
    }

    /// The attributes to send, but for the next hop.
    pub fn path_attributes(&self, route: &Attributes) -> PathAttributes {
        let ibgp = self.context.ibgp;
        // RFC 4271 §5.1.2: our ASN is prepended towards other ASes, and a route of our own has an empty path within.
        let times = if ibgp { 0 } else { 1 + usize::from(route.as_path_prepend) };
        PathAttributes {
            origin: Some(Origin::Igp),
            as_path: Some(AsPath::sequence(vec![self.asn; times])),
            med: route.med,
            // RFC 4271 §5.1.5: within the AS always, to others never.
            local_pref: ibgp.then(|| local_pref(route)),
            communities: route.communities.to_vec(),
            large_communities: route.large_communities.to_vec(),
            only_to_customer: self.only_to_customer(),
            ..PathAttributes::default()
        }
    }
}

/// LOCAL_PREF of a route of our own; of one that is about to be withdrawn the least (RFC 8326 §4.1).
fn local_pref(route: &Attributes) -> u32 {
    if route.communities.contains(&Community::GRACEFUL_SHUTDOWN) {
        return 0;
    }
    route.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
}
