//! How a route of ours looks to a peer (RFC 4271 §5.1).

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::wire::{AsPath, Context, Nlri, Origin, PathAttributes, Role};
use crate::{Attributes, Family};

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
    pub next_hops: Vec<(Family, Option<IpAddr>)>,
    /// What this speaker is to the peer (RFC 9234), if that is known.
    pub role: Option<Role>,
    /// This speaker's link-local address, told beside IPv6 next hops where that is what the peer knows it by.
    pub link_local: Option<Ipv6Addr>,
}

impl Export {
    /// RFC 9234 §5: routes of our own have no such mark yet.
    fn only_to_customer(&self) -> Option<u32> {
        let marks = !self.context.ibgp && self.role.is_some_and(Role::marks_routes);
        marks.then_some(self.asn)
    }

    /// A prefix as the peer is told of it. There is one path to each; where paths have names (RFC 7911 §3) it keeps its own, whatever
    /// becomes of it. That is not 0, which speakers print as none.
    pub fn nlri(&self, prefix: IpNet) -> Nlri {
        let named = self.context.add_path.contains(Family::of(&prefix));
        Nlri { prefix, path_id: u32::from(named) }
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
            local_pref: ibgp.then(|| route.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)),
            communities: route.communities.to_vec(),
            large_communities: route.large_communities.to_vec(),
            only_to_customer: self.only_to_customer(),
            ..PathAttributes::default()
        }
    }
}
