//! Peers that are asked for all again (RFC 7313).

use super::*;

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
