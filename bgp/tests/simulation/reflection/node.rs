//! A node: what it is to the others, and its tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sheave_bgp::rib::{Identity, Learnt, NextHop, Rib};
use sheave_bgp::session::{Negotiated, PeerGracefulRestart};
use sheave_bgp::{Families, Family, ImportPolicy, PrefixFilter};

use super::{ASN, RESTART_TIME};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Reflector(Ipv4Addr),
    Client,
    Plain,
}

pub(super) struct Node {
    pub(super) role: Role,
    pub(super) learnt: Learnt,
    pub(super) rib: Rib,
    /// What it announces, by LOCAL_PREF.
    pub(super) routes: BTreeMap<IpNet, u32>,
    /// What it uses of what it has learnt.
    pub(super) table: BTreeMap<IpNet, Arc<[NextHop]>>,
    /// Which process this is, and whether it started with forwarding kept.
    pub(super) life: u64,
    pub(super) kept: bool,
}

pub(super) fn number(node: usize) -> u8 {
    u8::try_from(node + 1).unwrap()
}

pub(super) fn address(node: usize) -> IpAddr {
    [10, 0, 0, number(node)].into()
}

pub(super) fn next_hop(node: usize, family: Family) -> IpAddr {
    match family {
        Family::Ipv4Unicast => address(node),
        Family::Ipv6Unicast => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number(node))].into(),
    }
}

pub(super) fn router_id(node: usize) -> Ipv4Addr {
    [10, 9, 9, number(node)].into()
}

/// What a session with that node agrees on.
pub(super) fn negotiated(peer: usize, restarting: bool, forwarding: bool) -> Negotiated {
    Negotiated {
        asn: ASN,
        router_id: router_id(peer),
        hold_time: Duration::from_secs(9),
        families: Families::ALL,
        extended_next_hop: false,
        four_octet_asn: true,
        route_refresh: true,
        enhanced_refresh: false,
        extended_messages: false,
        graceful_restart: Some(PeerGracefulRestart {
            restarting,
            restart_time: RESTART_TIME,
            families: Family::ALL.map(|family| (family, forwarding)).into(),
        }),
        graceful_notification: false,
        long_lived: Vec::new(),
        paths_received: Families::NONE,
        paths_sent: Families::NONE,
    }
}

pub(super) fn tables(node: usize, role: Role, peers: &[usize], restarting: bool) -> (Learnt, Rib) {
    let own = Identity { asn: ASN, router_id: router_id(node), cluster_id: router_id(node) };
    let mut learnt = Learnt::new(own);
    let everything = |within: &str| {
        let within: IpNet = within.parse().unwrap();
        PrefixFilter { within, min_length: 0, max_length: within.max_prefix_len() }
    };
    let policy =
        ImportPolicy { prefixes: vec![everything("0.0.0.0/0"), everything("::/0")], max_prefixes: None };
    learnt.set_policies(&peers.iter().map(|peer| (address(*peer), policy.clone())).collect());
    if let Role::Reflector(cluster_id) = role {
        learnt.set_reflector(Some(cluster_id));
    }
    learnt.await_peers(peers.iter().map(|peer| address(*peer)), false);
    (learnt, Rib::new(restarting))
}
