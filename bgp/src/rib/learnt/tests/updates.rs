//! UPDATEs of peers.

use std::net::Ipv6Addr;

use ipnet::IpNet;

use crate::wire::{MpReach, MpUnreach, PathAttributes, Update};

/// An UPDATE that announces, with this host's next hop.
pub(in crate::rib) fn announce(host: u8, attributes: PathAttributes, prefixes: &[&str]) -> Update {
    let mut update = Update { attributes, ..Update::default() };
    let mut v6 = Vec::new();
    for prefix in prefixes {
        match prefix.parse().unwrap() {
            IpNet::V4(prefix) => update.nlri.push(prefix.into()),
            IpNet::V6(prefix) => v6.push(prefix.into()),
        }
    }
    update.attributes.next_hop = (!update.nlri.is_empty()).then(|| [10, 0, 0, host].into());
    update.mp_reach =
        (!v6.is_empty()).then(|| MpReach::Ipv6 { next_hop: hop6(host), link_local: None, prefixes: v6 });
    update
}

pub(in crate::rib) fn hop6(host: u8) -> Ipv6Addr {
    [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into()
}

pub(in crate::rib) fn withdraw(prefixes: &[&str]) -> Update {
    let mut update = Update::default();
    let mut v6 = Vec::new();
    for prefix in prefixes {
        match prefix.parse().unwrap() {
            IpNet::V4(prefix) => update.withdrawn.push(prefix.into()),
            IpNet::V6(prefix) => v6.push(prefix.into()),
        }
    }
    update.mp_unreach = (!v6.is_empty()).then_some(MpUnreach::Ipv6(v6));
    update
}

/// What an UPDATE says, of paths with that name.
pub(in crate::rib) fn of_path(id: u32, mut update: Update) -> Update {
    update.nlri.iter_mut().chain(&mut update.withdrawn).for_each(|nlri| nlri.path_id = id);
    if let Some(MpReach::Ipv6 { prefixes, .. }) = &mut update.mp_reach {
        prefixes.iter_mut().for_each(|nlri| nlri.path_id = id);
    }
    if let Some(MpUnreach::Ipv6(prefixes)) = &mut update.mp_unreach {
        prefixes.iter_mut().for_each(|nlri| nlri.path_id = id);
    }
    update
}
