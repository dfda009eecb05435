//! What is not taken of a peer, whatever the policy.

use ipnet::Ipv4Net;

use super::*;
use crate::Families;
use crate::wire::{MpReach, Role};

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
