//! What is used of what peers announce.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::Learnt;
use crate::rib::{
    FamilyCounts, Identity, ImportPolicy, LimitAction, Links, MaxPrefixes, NextHop, PrefixFilter, Source,
};
use crate::session::{Negotiated, PeerGracefulRestart};
use crate::wire::{AsPath, MpReach, MpUnreach, Origin, PathAttributes, Role, Update};
use crate::{Families, Family};

mod add_paths;
mod limits;
mod monitoring;
mod restart;

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
    Negotiated {
        asn: 65001,
        router_id: [10, 9, 9, 2].into(),
        hold_time: Duration::from_secs(90),
        families: Families::ALL,
        four_octet_asn: true,
        route_refresh: true,
        enhanced_refresh: false,
        extended_messages: false,
        extended_next_hop: false,
        graceful_restart,
        graceful_notification: false,
        long_lived: Vec::new(),
        paths_received: Families::NONE,
        paths_sent: Families::NONE,
    }
}

fn attributes(asns: &[u32]) -> PathAttributes {
    PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(AsPath::sequence(asns.to_vec())),
        ..PathAttributes::default()
    }
}

/// An UPDATE that announces, with this host's next hop.
fn announce(host: u8, attributes: PathAttributes, prefixes: &[&str]) -> Update {
    let mut update = Update { attributes, ..Update::default() };
    let mut v6 = Vec::new();
    for prefix in prefixes {
        match net(prefix) {
            IpNet::V4(prefix) => update.nlri.push(prefix.into()),
            IpNet::V6(prefix) => v6.push(prefix.into()),
        }
    }
    update.attributes.next_hop = (!update.nlri.is_empty()).then(|| [10, 0, 0, host].into());
    update.mp_reach =
        (!v6.is_empty()).then(|| MpReach::Ipv6 { next_hop: hop6(host), link_local: None, prefixes: v6 });
    update
}

fn hop6(host: u8) -> std::net::Ipv6Addr {
    [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into()
}

fn withdraw(prefixes: &[&str]) -> Update {
    let mut update = Update::default();
    let mut v6 = Vec::new();
    for prefix in prefixes {
        match net(prefix) {
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

#[test]
fn equal_routes_are_used_together() {
    let mut learnt = learnt(&everything(), &[2, 3]);
    learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A, V6])).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 2"), format!("{V6} via 2")]);
    learnt.receive(address(3), &announce(3, attributes(&[65002]), &[A, V6])).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 2 3"), format!("{V6} via 2 3")]);
    // A longer path is no equal; it is used when the other goes.
    learnt.receive(address(3), &announce(3, attributes(&[65002, 65009]), &[A])).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 2"), format!("{V6} via 2 3")]);
    learnt.receive(address(2), &withdraw(&[A, V6])).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 3"), format!("{V6} via 3")]);
    learnt.peer_down(address(3), None, Instant::now());
    assert_empty(&learnt);
}

#[test]
fn changes_are_told_once_and_only_where_next_hops_change() {
    let mut learnt = learnt(&everything(), &[2, 3]);
    learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A, B])).unwrap();
    let hops = |numbers: &[u8]| Some(numbers.iter().map(|&number| address(number).into()).collect());
    assert_eq!(learnt.take_changes(1), [(net(A), hops(&[2]))]);
    assert_eq!(learnt.take_changes(9), [(net(B), hops(&[2]))]);
    // Another community, and a worse route: nothing becomes different.
    let mut with_med = attributes(&[65001]);
    with_med.med = Some(7);
    learnt.receive(address(2), &announce(2, with_med, &[A])).unwrap();
    learnt.receive(address(3), &announce(3, attributes(&[65002, 65003]), &[A])).unwrap();
    assert_eq!(learnt.take_changes(9), []);
    learnt.receive(address(2), &withdraw(&[A, B])).unwrap();
    assert_eq!(learnt.take_changes(9), [(net(A), hops(&[3])), (net(B), None)]);
}

#[test]
fn what_is_not_accepted() {
    let own = OWN.router_id;
    let others = std::net::Ipv4Addr::new(10, 9, 9, 7);
    let originated = |by| PathAttributes { originator_id: Some(by), ..attributes(&[]) };
    let reflected = |by: [_; 2]| PathAttributes { cluster_list: by.into(), ..attributes(&[]) };
    let cases: Vec<(&str, PathAttributes, u8, bool)> = vec![
        ("plain", attributes(&[65001]), 2, true),
        ("own AS in the path", attributes(&[65001, OWN.asn, 65002]), 2, false),
        ("own identifier as ORIGINATOR_ID", originated(own), 2, false),
        ("another's", originated(others), 2, true),
        ("own identifier in the CLUSTER_LIST", reflected([others, own]), 2, false),
        ("others'", reflected([others, others]), 2, true),
        ("own address as next hop", attributes(&[65001]), 1, false),
    ];
    for (name, attributes, host, accepted) in cases {
        let mut learnt = learnt(&everything(), &[100]);
        learnt.receive(address(100), &announce(host, attributes, &[A])).unwrap();
        assert_eq!(learnt.len() == 1, accepted, "{name}");
        assert_eq!(counts(&learnt, 100)[0], (1, usize::from(accepted)), "{name}");
        learnt.receive(address(100), &withdraw(&[A])).unwrap();
        assert_empty(&learnt);
    }
    let mut learnt = learnt(&everything(), &[2]);
    for hop in ["::", "::1", "ff02::1", "fe80::1", "::ffff:10.0.0.2"] {
        let mut update = announce(2, attributes(&[65001]), &[V6]);
        if let Some(MpReach::Ipv6 { next_hop, .. }) = &mut update.mp_reach {
            *next_hop = hop.parse().unwrap();
        }
        learnt.receive(address(2), &update).unwrap();
        assert!(learnt.is_empty(), "next hop {hop}");
    }
}

/// RFC 4271 §9.1.2.1: a better route by a next hop that cannot be reached gives way to a worse one, and comes back with its link.
#[test]
fn next_hops_that_cannot_be_reached_are_not_used() {
    let mut learnt = learnt(&everything(), &[2, 3]);
    learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A, V6])).unwrap();
    learnt.receive(address(3), &announce(3, attributes(&[65002, 65009]), &[A, V6])).unwrap();
    let better = [format!("{A} via 2"), format!("{V6} via 2")];
    assert_eq!(used(&learnt), better, "any link will do, as long as they are not known");
    for (name, prefixes, expected) in [
        ("all", &["10.0.0.0/24", "fd00::/64"][..], &better[..]),
        (
            "the better is away",
            &["10.0.0.3/32", "fd00::3/128"],
            &[format!("{A} via 3"), format!("{V6} via 3")],
        ),
        ("of IPv4 only", &["10.0.0.0/8", "fd00::3/128"], &[format!("{A} via 2"), format!("{V6} via 3")]),
        ("none", &[], &[]),
        ("all again", &["10.0.0.2/31", "fd00::2/127"], &better),
    ] {
        learnt.set_links(Links {
            prefixes: prefixes.iter().map(|prefix| net(prefix)).collect(),
            ..Links::default()
        });
        assert_eq!(used(&learnt), expected, "{name}");
        assert_eq!(counts(&learnt, 2), [(1, 1); 2], "{name}: accepted all the same");
    }
}

/// Between link-local addresses the interface belongs to the next hop, of IPv4 prefixes too (RFC 8950), and its link has to work; a
/// global next hop that is told beside it is not needed (RFC 2545 §3).
#[test]
fn link_local_next_hops() {
    let hop = |address: &str| NextHop { address: address.parse().unwrap(), interface: Some(7) };
    let mut learnt = Learnt::new(OWN);
    let peer: IpAddr = "fe80::2".parse().unwrap();
    learnt.set_policy(peer, Some(everything()));
    let local = "fe80::1".parse().unwrap();
    let source = Source { peer, local, interface: Some(7), extended_next_hop: true, ..source(2) };
    learnt.peer_up(source, &negotiated(None), Instant::now());
    let v6 = vec!["2001:db8:1::/48".parse::<ipnet::Ipv6Net>().unwrap().into()];
    let v4 = vec!["198.51.100.0/24".parse::<Ipv4Net>().unwrap().into()];
    for (name, reach, expected) in [
        ("IPv4", MpReach::Ipv4 { next_hop: peer, prefixes: v4.clone() }, Some("fe80::2")),
        (
            "link-local alone",
            MpReach::Ipv6 { next_hop: "fe80::2".parse().unwrap(), link_local: None, prefixes: v6.clone() },
            Some("fe80::2"),
        ),
        (
            "beside none",
            MpReach::Ipv6 {
                next_hop: "::".parse().unwrap(),
                link_local: Some("fe80::2".parse().unwrap()),
                prefixes: v6.clone(),
            },
            Some("fe80::2"),
        ),
        (
            "beside a global one",
            MpReach::Ipv6 {
                next_hop: hop6(9),
                link_local: Some("fe80::3".parse().unwrap()),
                prefixes: v6.clone(),
            },
            Some("fe80::3"),
        ),
        ("this side's own", MpReach::Ipv4 { next_hop: local, prefixes: v4 }, None),
    ] {
        let update = Update { attributes: attributes(&[65001]), mp_reach: Some(reach), ..Update::default() };
        learnt.receive(peer, &update).unwrap();
        let changes = learnt.take_changes(9);
        let hops: Vec<NextHop> =
            changes.into_iter().flat_map(|(_, hops)| hops.unwrap_or_default().to_vec()).collect();
        assert_eq!(hops, expected.map(hop).into_iter().collect::<Vec<_>>(), "{name}");
        learnt.peer_down(peer, None, Instant::now());
        learnt.take_changes(9);
        learnt.peer_up(source, &negotiated(None), Instant::now());
    }
    let update =
        MpReach::Ipv6 { next_hop: hop6(9), link_local: Some("fe80::3".parse().unwrap()), prefixes: v6 };
    let update = Update { attributes: attributes(&[65001]), mp_reach: Some(update), ..Update::default() };
    learnt.receive(peer, &update).unwrap();
    for (up, routes) in [(7, 1), (8, 0), (7, 1)] {
        learnt.set_links(Links { interfaces: [up].into(), ..Links::default() });
        assert_eq!(learnt.len(), routes);
    }
}

/// RFC 9234 §5: by what this speaker is to the peer, and by who has marked the route.
#[test]
fn leaks_are_not_taken() {
    const PEERS_AS: u32 = 65001;
    for (role, by, accepted) in [
        (None, Some(65009), true),
        (Some(Role::Provider), None, true),
        (Some(Role::Provider), Some(PEERS_AS), false),
        (Some(Role::RouteServer), None, true),
        (Some(Role::RouteServer), Some(PEERS_AS), false),
        (Some(Role::Peer), None, true),
        (Some(Role::Peer), Some(PEERS_AS), true),
        (Some(Role::Peer), Some(65009), false),
        (Some(Role::Customer), Some(65009), true),
        (Some(Role::RouteServerClient), Some(65009), true),
    ] {
        let mut learnt = Learnt::new(OWN);
        learnt.set_policy(address(2), Some(everything()));
        learnt.peer_up(Source { role, ..source(2) }, &negotiated(None), Instant::now());
        let marked = PathAttributes { only_to_customer: by, ..attributes(&[PEERS_AS]) };
        learnt.receive(address(2), &announce(2, marked, &[A, V6])).unwrap();
        assert_eq!(learnt.len(), if accepted { 2 } else { 0 }, "{role:?}, marked by {by:?}");
        assert_eq!(counts(&learnt, 2).map(|(received, _)| received), [1, 1]);
    }
}

/// Prefixes that no other host can be sent to, unless they are asked for by name.
#[test]
fn prefixes_without_hosts_are_not_taken() {
    let prefixes =
        ["169.254.7.0/24", "239.1.0.0/16", "127.0.0.53/32", "fe80::/64", "::1/128", A, "0.0.0.0/0", "::/0"];
    for (named, expected) in [(vec![], 3), (vec!["169.254.7.0/24", "fe80::/64"], 5)] {
        let mut policy = everything();
        policy.prefixes.extend(named.iter().map(|prefix| PrefixFilter::exactly(net(prefix))));
        let mut learnt = learnt(&policy, &[2]);
        learnt.receive(address(2), &announce(2, attributes(&[65001]), &prefixes)).unwrap();
        assert_eq!(learnt.len(), expected, "{named:?}: {:?}", used(&learnt));
    }
}

/// What is this node's own is not taken from others, whichever comes first, unless it is asked for by name.
#[test]
fn own_nets_are_kept_free() {
    for reserved_first in [true, false] {
        let policy = ImportPolicy {
            prefixes: [everything().prefixes, vec![PrefixFilter::exactly(net("10.244.0.0/16"))]].concat(),
            max_prefixes: None,
        };
        let mut learnt = learnt(&policy, &[2]);
        let own = [net("10.244.1.0/24"), net("192.0.2.80/32"), net("fd00:244:1::/64")];
        let update = announce(
            2,
            attributes(&[65001]),
            &[
                "10.244.1.0/24",
                "10.244.1.7/32",
                "10.244.0.0/22",
                "10.244.0.0/16",
                "10.244.2.0/24",
                "192.0.2.0/24",
                "fd00:244::/32",
                "fd00:244:2::/64",
                "0.0.0.0/0",
            ],
        );
        if reserved_first {
            learnt.reserve(&own, &[]);
            learnt.receive(address(2), &update).unwrap();
        } else {
            learnt.receive(address(2), &update).unwrap();
            assert_eq!(learnt.len(), 9);
            learnt.reserve(&own, &[]);
        }
        // The default route is what the policy's range is within: it is named.
        let free = ["0.0.0.0/0 via 2", "10.244.0.0/16 via 2", "10.244.2.0/24 via 2", "fd00:244:2::/64 via 2"];
        assert_eq!(used(&learnt), free, "{reserved_first}");
        learnt.reserve(&[], &own);
        assert_eq!(learnt.len(), 9);
    }
}

#[test]
fn a_policy_decides_and_may_change() {
    let only =
        |prefix| ImportPolicy { prefixes: vec![PrefixFilter::exactly(net(prefix))], max_prefixes: None };
    let mut learnt = learnt(&only(A), &[2]);
    learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A, B])).unwrap();
    assert_eq!((used(&learnt), counts(&learnt, 2)[0]), (vec![format!("{A} via 2")], (2, 1)));
    learnt.set_policy(address(2), Some(only(B)));
    assert_eq!((used(&learnt), counts(&learnt, 2)[0]), (vec![format!("{B} via 2")], (2, 1)));
    learnt.set_policy(address(2), None);
    assert_empty(&learnt);
    assert_eq!(learnt.counts(address(2), Family::Ipv4Unicast), None);
    learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A])).unwrap();
    assert_empty(&learnt);
    // A policy that comes while the session stands waits for it.
    assert!(!learnt.awaits_session(address(2), false));
    learnt.set_policy(address(2), Some(only(A)));
    assert!(learnt.awaits_session(address(2), false));
    learnt.peer_up(source(2), &negotiated(None), Instant::now());
    assert!(!learnt.awaits_session(address(2), false));
}

#[test]
fn a_limit_is_kept() {
    let hold = Duration::from_secs(300);
    for (action, retry_after) in [
        (LimitAction::Warn, None),
        (LimitAction::Restart(hold), Some(Some(hold))),
        (LimitAction::TearDown, Some(None)),
    ] {
        let max_prefixes = Some(MaxPrefixes { limit: 2, warn_at: 2, action });
        // What is not taken counts too: it is kept.
        let policy = ImportPolicy { prefixes: Vec::new(), max_prefixes };
        let mut learnt = learnt(&policy, &[2]);
        let of = |prefixes: &[&str]| announce(2, attributes(&[65001]), prefixes);
        learnt.receive(address(2), &of(&[A, B, V6])).unwrap();
        learnt.receive(address(2), &of(&[A, B])).unwrap();
        learnt.receive(address(2), &withdraw(&[A])).unwrap();
        learnt.receive(address(2), &of(&["192.0.2.0/24"])).unwrap();
        let exceeded = learnt.receive(address(2), &of(&[A]));
        assert_eq!(exceeded.err().map(|exceeded| exceeded.retry_after), retry_after, "{action:?}");
        learnt.peer_down(address(2), None, Instant::now());
        assert_empty(&learnt);
    }
}

/// What is left of the session before does not count against the limit, what is told again does.
#[test]
fn a_limit_is_on_what_is_told_in_this_session() {
    let hold = Duration::from_secs(300);
    let max_prefixes = Some(MaxPrefixes { limit: 3, warn_at: 3, action: LimitAction::Restart(hold) });
    let mut learnt = Learnt::new(OWN);
    learnt.set_policy(address(2), Some(ImportPolicy { max_prefixes, ..everything() }));
    let now = Instant::now();
    learnt.peer_up(source(2), &negotiated(Some(restart(false))), now);
    let of = |prefixes: &[&str]| announce(2, attributes(&[65001]), prefixes);
    learnt.receive(address(2), &of(&[A, B, "192.0.2.0/24"])).unwrap();
    learnt.peer_down(address(2), Some(&negotiated(Some(restart(false)))), now);
    learnt.peer_up(source(2), &negotiated(Some(restart(true))), now);
    learnt.receive(address(2), &of(&["10.1.0.0/16", "10.2.0.0/16"])).unwrap();
    assert_eq!(learnt.len(), 5, "three of them stale");
    learnt.receive(address(2), &of(&[A])).unwrap();
    learnt.receive(address(2), &of(&[A])).unwrap();
    assert!(learnt.receive(address(2), &of(&[B])).is_err(), "four, told again");
    learnt.receive(address(2), &withdraw(&["10.1.0.0/16", "192.0.2.0/24"])).unwrap();
    learnt.receive(address(2), &of(&[B])).unwrap();
    learnt.receive(address(2), &Update::end_of_rib_marker(Family::Ipv4Unicast)).unwrap();
    assert_eq!(counts(&learnt, 2)[0], (3, 3));
    assert!(learnt.receive(address(2), &of(&["192.0.2.0/24"])).is_err());
    learnt.peer_down(address(2), None, now);
    assert_empty(&learnt);
}

/// RFC 4760 §6, RFC 8950 §4: families, and next hops of the other family, are what both sides agreed on.
#[test]
fn what_was_not_agreed_on_is_not_taken() {
    let only = |family: Family| [family].into_iter().collect::<Families>();
    let by_ipv6 = || Update {
        attributes: attributes(&[65001]),
        mp_reach: Some(MpReach::Ipv4 {
            next_hop: hop6(2).into(),
            prefixes: vec![A.parse::<Ipv4Net>().unwrap().into()],
        }),
        ..Update::default()
    };
    let both = || announce(2, attributes(&[65001]), &[A, V6]);
    let none = Vec::new;
    for (name, families, extended_next_hop, update, expected) in [
        ("both", Families::ALL, false, both(), vec![format!("{A} via 2"), format!("{V6} via 2")]),
        ("IPv4 alone", only(Family::Ipv4Unicast), false, both(), vec![format!("{A} via 2")]),
        ("IPv6 alone", only(Family::Ipv6Unicast), false, both(), vec![format!("{V6} via 2")]),
        ("IPv4 by IPv6, agreed on", Families::ALL, true, by_ipv6(), vec![format!("{A} via 2")]),
        ("IPv4 by IPv6", Families::ALL, false, by_ipv6(), none()),
        ("IPv4 by IPv6, but not IPv4", only(Family::Ipv6Unicast), true, by_ipv6(), none()),
    ] {
        let mut learnt = Learnt::new(OWN);
        learnt.set_policy(address(2), Some(everything()));
        let agreed = |families| Negotiated { families, extended_next_hop, ..negotiated(Some(restart(true))) };
        let source = Source { extended_next_hop, ..source(2) };
        learnt.peer_up(source, &agreed(families), Instant::now());
        learnt.receive(address(2), &update).unwrap();
        assert_eq!(used(&learnt), expected, "{name}");
        // What is kept over a restart goes as it turns out that it will not be told again.
        learnt.peer_down(address(2), Some(&negotiated(Some(restart(true)))), Instant::now());
        assert_eq!(used(&learnt), expected, "{name}");
        learnt.peer_up(source, &agreed(only(Family::Ipv6Unicast)), Instant::now());
        let ipv6: Vec<_> = expected.into_iter().filter(|route| route.starts_with(V6)).collect();
        assert_eq!(used(&learnt), ipv6, "{name}");
        learnt.peer_up(source, &agreed(only(Family::Ipv4Unicast)), Instant::now());
        assert_empty(&learnt);
    }
}

/// RFC 4724 §4.2, step by step.
#[test]
fn a_restarting_peer_is_helped() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let up = || {
        let mut learnt = Learnt::new(OWN);
        learnt.set_policy(address(2), Some(everything()));
        learnt.peer_up(source(2), &negotiated(Some(restart(false))), start);
        assert!(!learnt.is_complete());
        learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A, B, V6])).unwrap();
        for family in Family::ALL {
            learnt.receive(address(2), &Update::end_of_rib_marker(family)).unwrap();
        }
        assert!(learnt.is_complete());
        learnt
    };
    let lost = || {
        let mut learnt = up();
        learnt.peer_down(address(2), Some(&negotiated(Some(restart(false)))), start);
        assert_eq!((learnt.len(), learnt.is_complete()), (3, false));
        learnt
    };

    let mut learnt = up();
    learnt.peer_down(address(2), None, start);
    assert_empty(&learnt);

    // It does not come back; attempts that fail are no loss.
    let mut learnt = lost();
    learnt.peer_down(address(2), None, at(60));
    assert_eq!(learnt.deadline(address(2)), Some(at(120)));
    learnt.expire(address(2), at(119));
    assert_eq!(learnt.len(), 3);
    learnt.expire(address(2), at(120));
    assert_empty(&learnt);
    assert_eq!(learnt.deadline(address(2)), None);

    // It comes back, and tells of one route less.
    let mut learnt = lost();
    learnt.take_changes(9);
    learnt.peer_up(source(2), &negotiated(Some(restart(true))), at(100));
    learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A, V6])).unwrap();
    learnt.expire(address(2), at(121));
    assert_eq!(learnt.take_changes(9), []);
    learnt.receive(address(2), &Update::end_of_rib_marker(Family::Ipv4Unicast)).unwrap();
    learnt.receive(address(2), &Update::end_of_rib_marker(Family::Ipv6Unicast)).unwrap();
    assert_eq!(learnt.take_changes(9), [(net(B), None)]);
    assert_eq!((learnt.deadline(address(2)), learnt.is_complete()), (None, true));

    // It comes back, and never says that that was all.
    let mut learnt = lost();
    learnt.peer_up(source(2), &negotiated(Some(restart(true))), at(100));
    learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A])).unwrap();
    learnt.expire(address(2), at(400));
    assert_eq!(used(&learnt), [format!("{A} via 2")]);

    // It has not kept its forwarding, or does not say anything of it.
    for offered in [None, Some(restart(false))] {
        let mut learnt = lost();
        learnt.peer_up(source(2), &negotiated(offered), at(10));
        assert_empty(&learnt);
    }

    // It goes again before it has told all: what was stale already is gone.
    let mut learnt = lost();
    learnt.peer_up(source(2), &negotiated(Some(restart(true))), at(10));
    learnt.receive(address(2), &announce(2, attributes(&[65001]), &[A])).unwrap();
    learnt.peer_down(address(2), Some(&negotiated(Some(restart(true)))), at(20));
    assert_eq!((used(&learnt), learnt.deadline(address(2))), (vec![format!("{A} via 2")], Some(at(140))));

    // One family alone.
    let mut learnt = up();
    let ipv6 = PeerGracefulRestart { families: vec![(Family::Ipv6Unicast, true)], ..restart(true) };
    learnt.peer_down(address(2), Some(&negotiated(Some(ipv6))), start);
    assert_eq!(used(&learnt), [format!("{V6} via 2")]);
}

/// RFC 7313 §4, step by step.
#[test]
fn a_peer_tells_all_again() {
    let (start, v4) = (Instant::now(), Family::Ipv4Unicast);
    let at = |seconds| start + Duration::from_secs(seconds);
    let of = |prefixes: &[&str]| announce(2, attributes(&[65001]), prefixes);
    let peer = address(2);
    let told = |learnt: &Learnt| learnt.counts(peer, v4).unwrap().end_of_rib;
    let [a, b, v6] = [A, B, V6].map(|prefix| format!("{prefix} via 2"));

    // What it was asked for because its End-of-RIB was not heard.
    let mut learnt = learnt(&everything(), &[2]);
    learnt.refresh_ends(peer, v4);
    assert!(!told(&learnt), "an end without a beginning");
    learnt.refresh_begins(peer, v4, start);
    learnt.receive(peer, &of(&[A, B, V6])).unwrap();
    assert!(!told(&learnt));
    learnt.refresh_ends(peer, v4);
    assert!(told(&learnt) && !learnt.is_complete(), "of one family");
    learnt.refresh_begins(peer, Family::Ipv6Unicast, start);
    learnt.receive(peer, &of(&[V6])).unwrap();
    learnt.refresh_ends(peer, Family::Ipv6Unicast);
    assert_eq!((learnt.is_complete(), learnt.deadline(peer)), (true, None));

    // Again, less a route: nothing changes before the end, and the other family not at all.
    learnt.take_changes(9);
    learnt.refresh_begins(peer, v4, start);
    assert_eq!(learnt.deadline(peer), Some(at(300)));
    learnt.receive(peer, &of(&[A])).unwrap();
    learnt.receive(peer, &Update::end_of_rib_marker(v4)).unwrap();
    assert_eq!(learnt.take_changes(9), []);
    learnt.refresh_ends(peer, v4);
    assert_eq!((learnt.take_changes(9), learnt.deadline(peer)), (vec![(net(B), None)], None));

    // It begins twice, and never ends. What is stale thus far stays so, and there is no more of it.
    learnt.receive(peer, &of(&[B])).unwrap();
    learnt.refresh_begins(peer, v4, start);
    learnt.receive(peer, &of(&[A])).unwrap();
    learnt.refresh_begins(peer, v4, at(200));
    learnt.expire(peer, at(299));
    assert_eq!(used(&learnt), [a.clone(), b, v6.clone()]);
    learnt.expire(peer, at(300));
    assert_eq!(used(&learnt), [a, v6.clone()]);

    // Of one that restarts, the End-of-RIB is waited for.
    learnt.peer_down(peer, Some(&negotiated(Some(restart(false)))), start);
    learnt.peer_up(source(2), &negotiated(Some(restart(true))), start);
    learnt.refresh_begins(peer, v4, start);
    learnt.refresh_ends(peer, v4);
    assert_eq!((used(&learnt).len(), told(&learnt)), (2, false));
    learnt.receive(peer, &Update::end_of_rib_marker(v4)).unwrap();
    assert_eq!((used(&learnt), told(&learnt)), (vec![v6], true));
}

/// What happens at peers.
#[derive(Clone, Debug)]
enum Step {
    Announce { peer: u8, prefix: u8, path: u32, route: Route },
    Withdraw { peer: u8, prefix: u8, path: u32 },
    Down { peer: u8 },
    Reserve { prefix: u8, here: bool },
    Links { up: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Route {
    neighbour: u32,
    longer: bool,
    med: u32,
    origin: u8,
    local_pref: u32,
}

const PEERS: [u8; 4] = [2, 3, 100, 101];
/// How many paths a peer may have to a prefix.
const PATHS: u32 = 2;

fn route() -> impl Strategy<Value = Route> {
    (0..3u32, any::<bool>(), 0..3u32, 0..2u8, 0..2u32).prop_map(|(neighbour, longer, med, origin, more)| {
        Route { neighbour: 65001 + neighbour, longer, med, origin, local_pref: 100 + more }
    })
}

fn step() -> impl Strategy<Value = Step> {
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
fn links(up: u8) -> Links {
    let up = PEERS.iter().enumerate().filter(|(index, _)| up & 1 << index != 0);
    let prefixes = up.flat_map(|(_, &peer)| [address(peer).into(), IpAddr::from(hop6(peer)).into()]);
    Links { prefixes: prefixes.collect(), ..Links::default() }
}

const PREFIXES: [&str; 4] = [A, B, V6, "198.51.100.128/25"];

impl Route {
    fn update(self, peer: u8, prefix: u8) -> Update {
        let mut asns = vec![self.neighbour];
        asns.extend(self.longer.then_some(65009));
        let mut attributes = attributes(&asns);
        attributes.med = Some(self.med);
        attributes.origin = Some(if self.origin == 0 { Origin::Igp } else { Origin::Egp });
        attributes.local_pref = (peer >= 100).then_some(self.local_pref);
        announce(peer, attributes, &[PREFIXES[usize::from(prefix)]])
    }
}

proptest! {
    /// What is used at the end follows from what there is at the end: not from the order in which it came, nor from what there was.
    #[test]
    fn order_does_not_matter(
        steps in vec(step(), 0..60),
        order in Just((0..PEERS.len() * PREFIXES.len() * PATHS as usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut history = learnt(&everything(), &PEERS);
        let mut there: BTreeMap<(u8, u8, u32), Route> = BTreeMap::new();
        let mut reserved = BTreeSet::new();
        let mut up = None;
        let mut told: BTreeMap<IpNet, Vec<NextHop>> = BTreeMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Announce { peer, prefix, path, route } => {
                    history.receive(address(peer), &of_path(path, route.update(peer, prefix))).unwrap();
                    there.insert((peer, prefix, path), route);
                }
                Step::Withdraw { peer, prefix, path } => {
                    let gone = withdraw(&[PREFIXES[usize::from(prefix)]]);
                    history.receive(address(peer), &of_path(path, gone)).unwrap();
                    there.remove(&(peer, prefix, path));
                }
                Step::Down { peer } => {
                    history.peer_down(address(peer), None, Instant::now());
                    history.peer_up(source(peer), &negotiated(None), Instant::now());
                    there.retain(|(of, ..), _| *of != peer);
                }
                Step::Reserve { prefix, here } => {
                    let net = [net(PREFIXES[usize::from(prefix)])];
                    if here {
                        history.reserve(&net, &[]);
                        reserved.insert(net[0]);
                    } else {
                        history.reserve(&[], &net);
                        reserved.remove(&net[0]);
                    }
                }
                Step::Links { up: now } => {
                    history.set_links(links(now));
                    up = Some(now);
                }
            }
            // Whoever takes the changes, now and then, has what is used.
            for (prefix, hops) in history.take_changes(number % 3) {
                match hops {
                    Some(hops) => told.insert(prefix, hops.to_vec()),
                    None => told.remove(&prefix),
                };
            }
        }
        let mut fresh = learnt(&everything(), &PEERS);
        if let Some(up) = up {
            fresh.set_links(links(up));
        }
        let all: Vec<_> = there.iter().collect();
        for index in order {
            if let Some(((peer, prefix, path), route)) = all.get(index) {
                fresh.receive(address(*peer), &of_path(*path, route.update(*peer, *prefix))).unwrap();
            }
        }
        fresh.reserve(&reserved.into_iter().collect::<Vec<_>>(), &[]);
        assert_eq!(used(&history), used(&fresh));
        assert_eq!(PEERS.map(|peer| counts(&history, peer)), PEERS.map(|peer| counts(&fresh, peer)));
        assert_eq!(history.paths, fresh.paths);
        for (prefix, hops) in history.take_changes(usize::MAX) {
            match hops {
                Some(hops) => told.insert(prefix, hops.to_vec()),
                None => told.remove(&prefix),
            };
        }
        let used: BTreeMap<IpNet, Vec<NextHop>> =
            history.loc_rib.used().map(|(prefix, hops)| (*prefix, hops.to_vec())).collect();
        assert_eq!(told, used);

        // And with the last of it nothing stays.
        for (peer, prefix, path) in there.into_keys() {
            let gone = withdraw(&[PREFIXES[usize::from(prefix)]]);
            history.receive(address(peer), &of_path(path, gone)).unwrap();
        }
        assert_empty(&history);
        assert_eq!(PEERS.map(|peer| counts(&history, peer)), [[(0, 0); 2]; PEERS.len()]);
    }
}
