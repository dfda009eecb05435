//! A received route, apart from its prefix: what the decision process goes by.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::next_hop::NextHop;
use crate::Community;
use crate::wire::{AsPath, Origin, PathAttributes, Role, SegmentKind};

/// LOCAL_PREF of a route that has none: from another AS, or from a peer that leaves it out.
const DEFAULT_LOCAL_PREF: u32 = 100;

/// Attributes and next hop that routes of a peer share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// NEXT_HOP.
    pub next_hop: NextHop,
    /// But for NEXT_HOP.
    pub attributes: PathAttributes,
}

/// This speaker, to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its ASN.
    pub asn: u32,
    /// Its BGP Identifier.
    pub router_id: Ipv4Addr,
    /// Its CLUSTER_ID: the BGP Identifier, unless it is told another as a route reflector.
    pub cluster_id: Ipv4Addr,
}

/// The session that a route came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The peer's address.
    pub peer: IpAddr,
    /// The peer's BGP Identifier.
    pub router_id: Ipv4Addr,
    /// The peer's AS.
    pub asn: u32,
    /// That is this speaker's own.
    pub ibgp: bool,
    /// What this speaker is to the peer (RFC 9234), if that is known; only between ASes.
    pub role: Option<Role>,
    /// This side's address.
    pub local: IpAddr,
    /// IPv4 prefixes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// The number of the interface that the session goes through, where it is between link-local addresses.
    pub interface: Option<u32>,
    /// The peer is a client, if this speaker is a route reflector (RFC 4456).
    pub client: bool,
}

impl Path {
    /// Whether the route has been here before (RFC 4271 §9.1.2, RFC 4456 §8).
    pub(super) fn loops(&self, own: Identity) -> bool {
        let segments = self.attributes.as_path.iter().flat_map(|path| &path.segments);
        segments.flat_map(|segment| &segment.asns).any(|asn| *asn == own.asn)
            || self.attributes.originator_id == Some(own.router_id)
            || self.attributes.cluster_list.contains(&own.cluster_id)
    }

    /// Whether a packet could be sent to the next hop, as far as the address tells (RFC 4271 §5.1.3, §6.3).
    pub(super) fn leads_elsewhere(&self, source: &Source) -> bool {
        let hop = self.next_hop.address;
        let unusable = match hop {
            IpAddr::V4(hop) => hop.is_broadcast() || hop.octets()[0] == 0,
            // Usable on one link only, and which one is not in the message: it is that of the session, if any.
            IpAddr::V6(hop) => {
                hop.is_unicast_link_local() && self.next_hop.interface.is_none()
                    || hop.to_ipv4_mapped().is_some()
            }
        };
        !unusable && !hop.is_unspecified() && !hop.is_loopback() && !hop.is_multicast() && hop != source.local
    }

    /// Whether somebody has passed the route on who was not to (RFC 9234 §5): it is marked to go to customers only, and a customer
    /// sends it, or a peer that has not marked it itself.
    pub(super) fn leaks(&self, source: &Source) -> bool {
        self.attributes.only_to_customer.is_some_and(|by| match source.role {
            Some(Role::Provider | Role::RouteServer) => true,
            Some(Role::Peer) => by != source.asn,
            Some(Role::Customer | Role::RouteServerClient) | None => false,
        })
    }

    /// Whether it is a last resort, whoever has found that (RFC 9494 §4.3).
    pub(super) fn is_long_lived_stale(&self) -> bool {
        self.attributes.communities.contains(&Community::LLGR_STALE)
    }

    /// Whether it must not become one (RFC 9494 §4.2).
    pub(super) fn refuses_long_life(&self) -> bool {
        self.attributes.communities.contains(&Community::NO_LLGR)
    }

    /// The same as a last resort.
    pub(super) fn long_lived_stale(&self) -> Path {
        let mut path = self.clone();
        if !path.is_long_lived_stale() {
            path.attributes.communities.push(Community::LLGR_STALE);
        }
        path
    }

    /// Whether the session lets the prefix have a next hop of that family.
    pub(super) fn fits(&self, prefix: &IpNet, source: &Source) -> bool {
        source.extended_next_hop || self.next_hop.address.is_ipv4() == matches!(prefix, IpNet::V4(_))
    }

    /// What is about to be withdrawn comes last (RFC 8326 §4.2).
    pub(super) fn local_pref(&self) -> u32 {
        if self.attributes.communities.contains(&Community::GRACEFUL_SHUTDOWN) {
            return 0;
        }
        self.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
    }

    pub(super) fn as_path_length(&self) -> usize {
        self.attributes.as_path.as_ref().map_or(0, AsPath::length)
    }

    /// ORIGIN, the best first.
    pub(super) fn origin(&self) -> u8 {
        self.attributes.origin.unwrap_or(Origin::Incomplete) as u8
    }

    /// MULTI_EXIT_DISC; without one it is the best (RFC 4271 §9.1.2.2 c).
    pub(super) fn med(&self) -> u32 {
        self.attributes.med.unwrap_or(0)
    }

    /// The AS that the route came from into this one; `None` where it began here.
    pub(super) fn neighbour_as(&self) -> Option<u32> {
        let of_others = |path: &AsPath| {
            let mut segments = path.segments.iter();
            let first =
                segments.find(|segment| matches!(segment.kind, SegmentKind::Sequence | SegmentKind::Set))?;
            first.asns.first().copied()
        };
        self.attributes.as_path.as_ref().and_then(of_others)
    }
}
