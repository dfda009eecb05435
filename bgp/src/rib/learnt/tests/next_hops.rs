//! Next hops: what reaches them, and which of several is taken.

use ipnet::{Ipv4Net, Ipv6Net};

use super::*;
use crate::rib::Links;
use crate::wire::MpReach;

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
    let v6 = vec!["2001:db8:1::/48".parse::<Ipv6Net>().unwrap().into()];
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
