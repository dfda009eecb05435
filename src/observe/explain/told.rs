//! What the announcer and its sessions make of a planned announcement.

use std::collections::BTreeMap;

use sheave_bgp::{Family, PeerStatus, SpeakerStatus};

use super::planned::{WITHHELD, changes, other_family};
use super::{Announcement, Explanation, Peer, VirtualServer};
use crate::config::Router;

/// What an agent knows of announcements.
pub struct Told<'a> {
    /// The sessions, if there are any.
    pub speaker: Option<SpeakerStatus>,
    /// What is not as configured.
    pub problems: &'a [String],
    /// Whether a prefix is announced now.
    pub announces: &'a dyn Fn(&ipnet::IpNet) -> bool,
    /// The aggregate that is announced in place of a prefix.
    pub aggregate_of: &'a dyn Fn(&ipnet::IpNet) -> Option<ipnet::IpNet>,
    /// What is configured of peers.
    pub router: &'a Router,
    /// The peers, and ranges of them, whose export policies keep a prefix from them.
    pub withheld_from: &'a dyn Fn(&ipnet::IpNet) -> Vec<String>,
    /// Why the dataplane does not forward for a VIP.
    pub obstacles: &'a dyn Fn(std::net::IpAddr) -> Vec<String>,
    /// Where peers are, by their names in the config.
    pub found: &'a BTreeMap<String, Vec<std::net::IpAddr>>,
}

impl Explanation {
    /// Takes into account what peers have been told.
    pub fn told(&mut self, told: &Told<'_>) {
        for server in &mut self.virtual_servers {
            server.told(told);
        }
    }
}

impl VirtualServer {
    fn told(&mut self, told: &Told<'_>) {
        let address = self.address;
        let Announcement { prefix: Some(_), why_not: why_not @ None, peers, aggregate, .. } =
            &mut self.announcement
        else {
            return;
        };
        *aggregate = (told.aggregate_of)(&address.into()).map(|aggregate| aggregate.to_string());
        let announced = (told.announces)(&address.into());
        if !announced {
            let mut why = (told.obstacles)(address);
            if why.is_empty() {
                why = told.problems.to_vec();
            }
            *why_not =
                Some(if why.is_empty() { "the kernel does not hold it yet".into() } else { why.join("; ") });
        }
        // The policies decide of the aggregate where that is announced, which was not known before.
        let withheld = (told.withheld_from)(&address.into());
        for peer in peers.iter_mut().filter(|peer| peer.why_not.as_deref() == Some(WITHHELD)) {
            peer.why_not = None;
        }
        let family = if address.is_ipv4() { Family::Ipv4Unicast } else { Family::Ipv6Unicast };
        let found = |peer: Peer| -> Vec<Peer> {
            match told.found.get(&peer.address) {
                Some(at) => {
                    at.iter().map(|address| Peer { address: address.to_string(), ..peer.clone() }).collect()
                }
                None => vec![peer],
            }
        };
        *peers = std::mem::take(peers).into_iter().flat_map(found).collect();
        for peer in peers.iter_mut().filter(|peer| peer.why_not.is_none()) {
            let status = told.speaker.iter().flat_map(|speaker| &speaker.peers);
            peer.why_not = match status.into_iter().find(|status| status.address.to_string() == peer.address)
            {
                Some(status) if withheld.contains(&status.name()) => Some(WITHHELD.into()),
                Some(status) if announced || status.session.is_none() => not_told(status, family, address),
                Some(_) => Some("it is not announced now".into()),
                None => Some("there is no session with it, see `sheave status`".into()),
            };
        }
        let of_ranges =
            told.speaker.iter().flat_map(|speaker| &speaker.peers).filter(|peer| peer.range.is_some());
        peers.extend(of_ranges.map(|status| Peer {
            address: status.address.to_string(),
            asn: Some(status.asn),
            with: of_range(told.router, status),
            why_not: match (announced, &status.session) {
                _ if status.range.is_some_and(|range| withheld.contains(&range.to_string())) => {
                    Some(WITHHELD.into())
                }
                (false, Some(_)) => Some("it is not announced now".into()),
                _ => not_told(status, family, address),
            },
        }));
    }
}

/// What the export policy changes that the peers of its range have.
fn of_range(router: &Router, status: &PeerStatus) -> Vec<String> {
    let range = router.dynamic_peers.iter().find(|range| Some(range.prefix) == status.range);
    range.map(|range| changes(&range.export)).unwrap_or_default()
}

/// Why a session has not told of an announced prefix.
fn not_told(status: &PeerStatus, family: Family, address: std::net::IpAddr) -> Option<String> {
    let Some(session) = &status.session else {
        let error = status.last_error.as_ref().map(|error| format!(": {}", error.reason)).unwrap_or_default();
        return Some(format!("its session is {}{error}", status.state));
    };
    match session.families.iter().find(|one| one.family == family) {
        None => Some(other_family(address)),
        Some(one) if one.next_hop.is_none() => {
            Some("there is no next hop of this family: set nextHop of the peer, or the Node's address".into())
        }
        Some(one) if one.prefixes_pending > 0 => Some("it has yet to read some changes".into()),
        Some(_) => None,
    }
}
