//! What is used of what peers announce.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::Learnt;
use crate::Family;
use crate::rib::{FamilyCounts, Identity, ImportPolicy, NextHop, PrefixFilter, Source};
use crate::session::{Negotiated, PeerGracefulRestart, fixtures};
use crate::wire::{AsPath, Origin, PathAttributes, Update};
use updates::{announce, hop6, of_path, withdraw};

mod accepted;
mod add_paths;
mod history;
mod limits;
mod monitoring;
mod next_hops;
mod order;
mod policy;
mod refresh;
mod restart;
pub(in crate::rib) mod updates;
mod used;

const OWN: Identity = {
    let router_id = std::net::Ipv4Addr::new(10, 0, 0, 1);
    Identity { asn: 64512, router_id, cluster_id: router_id }
};
const A: &str = "198.51.100.0/24";
const B: &str = "203.0.113.0/24";
const V6: &str = "2001:db8:1::/48";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

/// Anything.
fn everything() -> ImportPolicy {
    let range = |within: &str| {
        let within = net(within);
        PrefixFilter { within, min_length: 0, max_length: within.max_prefix_len() }
    };
    ImportPolicy { prefixes: vec![range("0.0.0.0/0"), range("::/0")], max_prefixes: None }
}

fn source(number: u8) -> Source {
    Source {
        peer: address(number),
        router_id: [10, 9, 9, number].into(),
        asn: if number >= 100 { OWN.asn } else { 65001 },
        ibgp: number >= 100,
        role: None,
        local: address(1),
        extended_next_hop: false,
        interface: None,
        client: false,
    }
}

fn restart(forwarding: bool) -> PeerGracefulRestart {
    PeerGracefulRestart {
        restarting: forwarding,
        restart_time: Duration::from_secs(120),
        families: Family::ALL.map(|family| (family, forwarding)).into(),
    }
}

fn negotiated(graceful_restart: Option<PeerGracefulRestart>) -> Negotiated {
    Negotiated { graceful_restart, ..fixtures::negotiated(65001, [10, 9, 9, 2].into()) }
}

fn attributes(asns: &[u32]) -> PathAttributes {
    PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(AsPath::sequence(asns.to_vec())),
        ..PathAttributes::default()
    }
}

/// Peers with these numbers, Established.
fn learnt(policy: &ImportPolicy, peers: &[u8]) -> Learnt {
    let mut learnt = Learnt::new(OWN);
    for &number in peers {
        learnt.set_policy(address(number), Some(policy.clone()));
        learnt.peer_up(source(number), &negotiated(None), Instant::now());
    }
    learnt
}

/// What is used, in words: `prefix via last part of each next hop`.
fn used(learnt: &Learnt) -> Vec<String> {
    let last = |hop: &NextHop| match hop.address {
        IpAddr::V4(hop) => u16::from(hop.octets()[3]),
        IpAddr::V6(hop) => hop.segments()[7],
    };
    let words = |(prefix, hops): (&IpNet, &std::sync::Arc<[NextHop]>)| {
        let hops: Vec<String> = hops.iter().map(|hop| last(hop).to_string()).collect();
        format!("{prefix} via {}", hops.join(" "))
    };
    learnt.loc_rib.used().map(words).collect()
}

fn counts(learnt: &Learnt, peer: u8) -> [(usize, usize); 2] {
    Family::ALL.map(|family| {
        let FamilyCounts { received, accepted, .. } = learnt.counts(address(peer), family).unwrap();
        (received, accepted)
    })
}

/// Nothing of anything is left.
fn assert_empty(learnt: &Learnt) {
    assert!(learnt.is_empty() && learnt.paths.is_empty() && learnt.loc_rib.is_empty(), "{learnt:?}");
}
