//! Random histories at peers.

use proptest::prelude::{Strategy, any, prop_oneof};

use super::*;
use crate::rib::Links;

/// What happens at peers.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Announce { peer: u8, prefix: u8, path: u32, route: Route },
    Withdraw { peer: u8, prefix: u8, path: u32 },
    Down { peer: u8 },
    Reserve { prefix: u8, here: bool },
    Links { up: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Route {
    neighbour: u32,
    longer: bool,
    med: u32,
    origin: u8,
    local_pref: u32,
}

pub(super) const PEERS: [u8; 4] = [2, 3, 100, 101];
/// How many paths a peer may have to a prefix.
pub(super) const PATHS: u32 = 2;

pub(super) fn route() -> impl Strategy<Value = Route> {
    (0..3u32, any::<bool>(), 0..3u32, 0..2u8, 0..2u32).prop_map(|(neighbour, longer, med, origin, more)| {
        Route { neighbour: 65001 + neighbour, longer, med, origin, local_pref: 100 + more }
    })
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let peer = || proptest::sample::select(PEERS.to_vec());
    prop_oneof![
        8 => (peer(), 0..4u8, 0..PATHS, route())
            .prop_map(|(peer, prefix, path, route)| Step::Announce { peer, prefix, path, route }),
        3 => (peer(), 0..4u8, 0..PATHS).prop_map(|(peer, prefix, path)| Step::Withdraw { peer, prefix, path }),
        1 => peer().prop_map(|peer| Step::Down { peer }),
        1 => (0..4u8, any::<bool>()).prop_map(|(prefix, here)| Step::Reserve { prefix, here }),
        2 => (0..16u8).prop_map(|up| Step::Links { up }),
    ]
}

/// Links to the peers whose bits are set.
pub(super) fn links(up: u8) -> Links {
    let up = PEERS.iter().enumerate().filter(|(index, _)| up & 1 << index != 0);
    let prefixes = up.flat_map(|(_, &peer)| [address(peer).into(), IpAddr::from(hop6(peer)).into()]);
    Links { prefixes: prefixes.collect(), ..Links::default() }
}

pub(super) const PREFIXES: [&str; 4] = [A, B, V6, "198.51.100.128/25"];

impl Route {
    pub(super) fn update(self, peer: u8, prefix: u8) -> Update {
        let mut asns = vec![self.neighbour];
        asns.extend(self.longer.then_some(65009));
        let mut attributes = attributes(&asns);
        attributes.med = Some(self.med);
        attributes.origin = Some(if self.origin == 0 { Origin::Igp } else { Origin::Egp });
        attributes.local_pref = (peer >= 100).then_some(self.local_pref);
        announce(peer, attributes, &[PREFIXES[usize::from(prefix)]])
    }
}
