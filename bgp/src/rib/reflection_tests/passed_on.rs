//! What is passed on, to whom, and as what (RFC 4456).

use super::*;
use crate::rib::RouteChanges;
use crate::wire::RawAttribute;
use crate::{Attributes, Community};

/// RFC 4456 §6, and that nothing crosses the border of the AS.
#[test]
fn who_is_told() {
    for (name, from, expected) in [
        ("of a client: all internal peers but it", 2, &[3, 4, 100, 101][..]),
        ("of another internal peer: clients", 100, &[2, 3, 4]),
        ("of another AS: nobody", 200, &[]),
    ] {
        let mut reflector = Reflector::with_all();
        reflector.receive(from, &announce(from, attributes(), &[A, V6]));
        assert_eq!(reflector.told(), expected, "{name}");
        reflector.receive(from, &withdraw(&[A, V6]));
        assert_eq!(reflector.told(), expected, "{name}: withdrawn");
    }
    // No reflector, nothing passed on.
    let mut reflector = Reflector::with_all();
    reflector.learnt.set_reflector(None);
    reflector.follow();
    reflector.receive(2, &announce(2, attributes(), &[A]));
    assert_eq!(reflector.told(), [0; 0]);
}

/// As it came, but for who began it, where it has been, and what this speaker does not know.
#[test]
fn attributes_stay() {
    let known = PathAttributes {
        origin: Some(Origin::Incomplete),
        as_path: Some(AsPath::sequence(vec![65009, 4_200_000_001])),
        med: Some(7),
        local_pref: Some(250),
        atomic_aggregate: true,
        communities: vec![Community(0xfc00_0064)],
        ..attributes()
    };
    let raw = |flags, code| RawAttribute { flags, code, value: vec![1, 2, 3] };
    let came = PathAttributes { other: vec![raw(0xc0, 201), raw(0x80, 202)], ..known.clone() };
    let passed_on = PathAttributes { other: vec![raw(0xe0, 201)], ..known };
    let begun = |originator: u8, clusters: &[Ipv4Addr], attributes: &PathAttributes| PathAttributes {
        originator_id: Some(router_id(originator)),
        cluster_list: clusters.into(),
        ..attributes.clone()
    };
    let elsewhere = Ipv4Addr::new(7, 7, 7, 7);
    let without = |attributes: &PathAttributes| PathAttributes { local_pref: None, ..attributes.clone() };
    for (name, came, expected) in [
        ("begun by the client", came.clone(), begun(2, &[CLUSTER], &passed_on)),
        ("reflected before", begun(50, &[elsewhere], &came), begun(50, &[CLUSTER, elsewhere], &passed_on)),
        (
            "without LOCAL_PREF, which is mandatory",
            without(&came),
            PathAttributes { local_pref: Some(100), ..begun(2, &[CLUSTER], &passed_on) },
        ),
    ] {
        let mut reflector = Reflector::with_all();
        reflector.receive(2, &announce(77, came, &[A, V6]));
        for peer in [3, 100] {
            let updates = reflector.updates(peer);
            assert_eq!(updates.len(), 2, "{name}");
            for Update { attributes, .. } in &updates {
                let next_hop = attributes.next_hop;
                assert_eq!(*attributes, PathAttributes { next_hop, ..expected.clone() }, "{name}");
            }
            assert!(updates.iter().all(|update| next_hop(update) == 77), "{name}");
        }
    }
}

#[test]
fn what_is_not_passed_on() {
    let cases: [(&str, PathAttributes, u8); 7] = [
        ("it was begun here", PathAttributes { originator_id: Some(router_id(1)), ..attributes() }, 2),
        ("it has been in this cluster", PathAttributes { cluster_list: vec![CLUSTER], ..attributes() }, 2),
        (
            "it has been in this AS",
            PathAttributes { as_path: Some(AsPath::sequence(vec![ASN])), ..attributes() },
            2,
        ),
        (
            "not to be passed on",
            PathAttributes { communities: vec![Community::NO_ADVERTISE], ..attributes() },
            2,
        ),
        ("its next hop is this speaker", attributes(), 1),
        ("its next hop is a group", attributes(), 0),
        // The cluster of a reflector is not its router id.
        ("none of these", PathAttributes { cluster_list: vec![router_id(1)], ..attributes() }, 2),
    ];
    for (name, attributes, hop) in cases {
        let mut reflector = Reflector::with_all();
        let mut update = announce(hop, attributes, &[A]);
        if hop == 0 {
            update.attributes.next_hop = Some([224, 0, 0, 1].into());
        }
        reflector.receive(2, &update);
        let expected: &[u8] = if name == "none of these" { &[3, 4, 100, 101] } else { &[] };
        assert_eq!(reflector.told(), expected, "{name}");
    }
    // Nor back to whom it began with, whichever way it came.
    let mut reflector = Reflector::with_all();
    let of_3 = PathAttributes { originator_id: Some(router_id(3)), ..attributes() };
    reflector.receive(2, &announce(3, of_3, &[A]));
    assert_eq!(reflector.told(), [4, 100, 101]);
}

/// One route for each prefix: our own before others', then the best; those that have been told another are told so.
#[test]
fn the_best_is_passed_on() {
    let preferred = |local_pref| PathAttributes { local_pref: Some(local_pref), ..attributes() };
    let mut reflector = Reflector::with_all();
    reflector.receive(2, &announce(2, preferred(100), &[A]));
    reflector.told();
    reflector.receive(3, &announce(3, preferred(200), &[A]));
    assert_eq!(reflector.sent(2), [format!("+{A} via 3")]);
    assert_eq!(reflector.sent(3), [format!("-{A}")], "its own is the best");
    assert_eq!(reflector.sent(100), [format!("+{A} via 3")]);
    // A worse one changes nothing.
    reflector.told();
    reflector.receive(4, &announce(4, preferred(50), &[A]));
    assert_eq!(reflector.told(), [0; 0]);
    // Of another internal peer: those that are no clients do not hear of it.
    reflector.receive(101, &announce(101, preferred(300), &[A]));
    assert_eq!(reflector.sent(4), [format!("+{A} via 101")]);
    assert_eq!(reflector.sent(100), [format!("-{A}")]);
    reflector.receive(101, &withdraw(&[A]));
    assert_eq!(reflector.sent(100), [format!("+{A} via 3")]);

    let own = RouteChanges { announce: vec![(A.parse().unwrap(), Attributes::default())], withdraw: vec![] };
    reflector.rib.apply(own);
    assert_eq!((reflector.rib.len(), reflector.rib.reflected()), (1, 0));
    assert_eq!(reflector.sent(3), [format!("+{A} via 1")]);
    assert_eq!(reflector.sent(200), [format!("+{A} via 1")]);
    reflector.told();
    reflector.receive(3, &withdraw(&[A]));
    assert_eq!(reflector.told(), [0; 0]);
    reflector.rib.apply(RouteChanges { announce: vec![], withdraw: vec![A.parse().unwrap()] });
    assert_eq!((reflector.rib.len(), reflector.rib.reflected()), (1, 1));
    assert_eq!(reflector.sent(3), [format!("+{A} via 2")]);
    assert_eq!(reflector.sent(200), [format!("-{A}")]);
}

/// Messages are as full as they get, and a burst is told as what it comes to.
#[test]
fn packing() {
    let mut reflector = Reflector::with_all();
    let prefixes: Vec<String> = (0..=255).map(|n| format!("10.245.{n}.0/24")).collect();
    for chunk in prefixes.chunks(10) {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        reflector.receive(2, &announce(2, attributes(), &chunk));
    }
    let updates = reflector.updates(3);
    assert_eq!(updates.iter().map(|update| update.reachable().count()).collect::<Vec<_>>(), [256]);
    // Two routes of different clients do not share a message; each is one.
    reflector.receive(2, &withdraw(&["10.245.0.0/24"]));
    reflector.receive(2, &announce(2, attributes(), &["10.245.0.0/24"]));
    assert_eq!(reflector.sent(3), [""; 0], "undone before it was told");
    reflector.receive(4, &announce(4, attributes(), &[A, B]));
    reflector.receive(2, &announce(5, attributes(), &["10.246.0.0/24", "10.246.1.0/24"]));
    assert_eq!(reflector.updates(3).len(), 2);
}

/// Next hops go where they can be understood, whether or not there is one of our own there.
#[test]
fn next_hops() {
    let mut reflector = Reflector::with(CLIENTS);
    reflector.rib.set_next_hops(address(4), &[(Family::Ipv4Unicast, None)]);
    reflector.receive(2, &announce(2, attributes(), &[A]));
    assert_eq!(reflector.sent(4), [format!("+{A} via 2")]);
    let by_ipv6 = Update {
        attributes: attributes(),
        mp_reach: Some(MpReach::Ipv4 {
            next_hop: "fd00::2".parse().unwrap(),
            prefixes: vec![B.parse::<ipnet::Ipv4Net>().unwrap().into()],
        }),
        ..Update::default()
    };
    reflector.receive(2, &by_ipv6);
    assert_eq!(reflector.sent(4), [""; 0], "it takes no IPv6 next hop of IPv4");
    // Another next hop of ours is not another one of theirs.
    reflector.rib.set_next_hops(address(4), &[(Family::Ipv4Unicast, Some(address(99)))]);
    assert_eq!(reflector.sent(4), [""; 0]);
}
