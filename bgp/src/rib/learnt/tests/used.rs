//! Which of what is learnt is used, and how that is told.

use super::*;

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
