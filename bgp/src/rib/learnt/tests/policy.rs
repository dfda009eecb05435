//! Import policies and their limits.

use super::*;
use crate::rib::{LimitAction, MaxPrefixes};

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
