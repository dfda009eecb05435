//! What a peer is like, and how routes look to it (RFC 4271 §5.1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::policy::ExportPolicy;
use super::route::{Reflected, Route};
use crate::wire::pack::Announcement;
use crate::wire::{AsPath, Context, Origin, PathAttributes, Role};
use crate::{Attributes, Community, Families, Family};

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
    /// The peer's address.
    pub peer: IpAddr,
    /// Its BGP Identifier.
    pub router_id: Ipv4Addr,
    /// It is a client of this route reflector (RFC 4456).
    pub client: bool,
    /// It takes IPv4 prefixes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Of which routes it is told, and what is changed of these.
    pub policy: ExportPolicy,
    /// Families of which it takes long-lived stale routes (RFC 9494).
    pub long_lived: Families,
}

impl Export {
    /// What a route of the family is announced with, `own` being the next hop of ours; `None` where there is none, or the
    /// attributes leave no room for a prefix.
    pub fn announcement(&self, family: Family, own: Option<IpAddr>, route: &Route) -> Option<Announcement> {
        let (attributes, next_hop, link_local) = match route {
            Route::Own(attributes) => (self.path_attributes(attributes), own?, self.link_local),
            // A link-local next hop says nothing on other links.
            Route::Reflected(Reflected { next_hop, attributes, .. }) => (attributes.clone(), *next_hop, None),
        };
        Announcement::of_family(family, attributes, next_hop, link_local, self.context).ok()
    }

    /// RFC 9234 §5: routes of our own have no such mark yet.
    fn only_to_customer(&self) -> Option<u32> {
        let marks = !self.context.ibgp && self.role.is_some_and(Role::marks_routes);
        marks.then_some(self.asn)
    }

    /// The attributes to send of a route of ours, but for the next hop.
    fn path_attributes(&self, route: &Attributes) -> PathAttributes {
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
