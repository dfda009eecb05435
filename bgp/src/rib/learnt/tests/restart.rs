//! Peers that are away for a while (RFC 4724, RFC 8538, RFC 9494).

use super::*;
use crate::Community;
use crate::session::LongLived;

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

/// Both sides keep routes over NOTIFICATIONs (RFC 8538 §4.1): what is stale outlives further ends of the session, for so long in all.
#[test]
fn sessions_that_end_often() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let peer = address(2);
    let of = |prefixes: &[&str]| announce(2, attributes(&[65001]), prefixes);
    let [a, b] = [A, B].map(|prefix| format!("{prefix} via 2"));
    for (often, kept) in [(true, vec![a.clone(), b]), (false, vec![a])] {
        let agreed = Negotiated { graceful_notification: often, ..negotiated(Some(restart(true))) };
        let mut learnt = Learnt::new(OWN);
        learnt.set_policy(peer, Some(everything()));
        learnt.peer_up(source(2), &agreed, start);
        learnt.receive(peer, &of(&[A, B])).unwrap();
        learnt.peer_down(peer, Some(&agreed), start);
        learnt.peer_up(source(2), &agreed, at(100));
        learnt.receive(peer, &of(&[A])).unwrap();
        learnt.peer_down(peer, Some(&agreed), at(110));
        assert_eq!(used(&learnt), kept, "{often}");
        assert_eq!(learnt.deadline(peer), Some(at(230)));
        // Its time is over, and what was told since has another.
        learnt.peer_up(source(2), &agreed, at(200));
        learnt.receive(peer, &of(&[A])).unwrap();
        learnt.peer_down(peer, Some(&agreed), at(300));
        assert_eq!(used(&learnt), kept[..1], "{often}");
        learnt.expire(peer, at(420));
        assert_empty(&learnt);
    }
}

/// A peer that offers long-lived graceful restart, its forwarding kept or not.
fn long_lived(restart_time: u64, forwarding: bool) -> Negotiated {
    let restart = PeerGracefulRestart { restart_time: Duration::from_secs(restart_time), ..restart(true) };
    let offer = |family| LongLived { family, forwarding, stale_time: Duration::from_secs(3600) };
    Negotiated { long_lived: Family::ALL.map(offer).into(), ..negotiated(Some(restart)) }
}

/// RFC 9494 §4.2, step by step.
#[test]
fn a_peer_that_is_away_for_long() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let peer = address(2);
    let [a, b, v6] = [A, B, V6].map(|prefix| format!("{prefix} via 2"));
    let lost = |agreed: &Negotiated| {
        let mut learnt = Learnt::new(OWN);
        for number in [2, 3] {
            learnt.set_policy(address(number), Some(everything()));
            learnt.peer_up(source(number), agreed, start);
        }
        learnt.receive(peer, &announce(2, attributes(&[65001]), &[A, V6])).unwrap();
        let communities = vec![Community::NO_LLGR];
        let refusing = PathAttributes { communities, ..attributes(&[65001]) };
        learnt.receive(peer, &announce(2, refusing, &[B])).unwrap();
        // Not as good, while the other is any good.
        learnt.receive(address(3), &announce(3, attributes(&[65001, 65009]), &[A])).unwrap();
        learnt.peer_down(peer, Some(agreed), start);
        learnt
    };
    let third = format!("{A} via 3");
    let all = vec![a, b, v6.clone()];
    let last_resort = vec![third.clone(), v6];

    // It does not come back.
    let agreed = long_lived(120, true);
    let mut learnt = lost(&agreed);
    assert_eq!((used(&learnt), learnt.deadline(peer)), (all.clone(), Some(at(120))));
    learnt.expire(peer, at(120));
    assert_eq!((used(&learnt), learnt.deadline(peer)), (last_resort.clone(), Some(at(3720))));
    assert!(!learnt.is_complete());
    learnt.expire(peer, at(3719));
    assert_eq!(used(&learnt), last_resort);
    learnt.expire(peer, at(3720));
    assert_eq!((used(&learnt), learnt.deadline(peer)), (vec![third.clone()], None));
    // Of the last resort, the other's loss leaves it alone.
    let mut learnt = lost(&agreed);
    learnt.expire(peer, at(120));
    learnt.receive(address(3), &withdraw(&[A])).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 2"), last_resort[1].clone()]);

    // It has no time for a restart: a last resort at once.
    let learnt = lost(&long_lived(0, true));
    assert_eq!((used(&learnt), learnt.deadline(peer)), (last_resort.clone(), Some(at(3600))));

    // It comes back after long: what it tells is as good as any, the rest goes with End-of-RIB. If the session is lost before, a
    // last resort's time goes on.
    let back = || {
        let mut learnt = lost(&agreed);
        learnt.expire(peer, at(120));
        learnt.peer_up(source(2), &agreed, at(1000));
        assert_eq!((used(&learnt), learnt.deadline(peer)), (last_resort.clone(), Some(at(1300))));
        learnt.receive(peer, &announce(2, attributes(&[65001]), &[A])).unwrap();
        assert_eq!(used(&learnt), [all[0].clone(), last_resort[1].clone()]);
        learnt
    };
    let mut learnt = back();
    Family::ALL.map(Update::end_of_rib_marker).iter().for_each(|mark| learnt.receive(peer, mark).unwrap());
    assert_eq!((used(&learnt), learnt.deadline(peer)), (all[..1].to_vec(), None));
    let mut learnt = back();
    learnt.peer_down(peer, Some(&agreed), at(1010));
    assert_eq!(learnt.deadline(peer), Some(at(1130)));
    learnt.expire(peer, at(1130));
    assert_eq!((used(&learnt), learnt.deadline(peer)), (last_resort.clone(), Some(at(3720))));
    let mut learnt = back();
    learnt.expire(peer, at(1300));
    assert_eq!((used(&learnt), learnt.deadline(peer)), (all[..1].to_vec(), None));

    // It comes back without having kept its forwarding, or without a word of it.
    for agreed in [long_lived(120, false), negotiated(Some(restart(true))), negotiated(None)] {
        let mut learnt = lost(&long_lived(120, true));
        learnt.expire(peer, at(120));
        learnt.peer_up(source(2), &agreed, at(1000));
        assert_eq!((used(&learnt), learnt.deadline(peer)), (vec![third.clone()], None), "{agreed:?}");
    }

    // In its restart time that says nothing yet.
    let mut learnt = lost(&long_lived(120, true));
    learnt.peer_up(source(2), &negotiated(Some(restart(true))), at(100));
    assert_eq!(used(&learnt), all);

    // One that ends its session for good.
    let mut learnt = lost(&agreed);
    learnt.peer_up(source(2), &agreed, at(10));
    learnt.peer_down(peer, None, at(20));
    assert_eq!((used(&learnt), learnt.deadline(peer)), (vec![third], None));
}

/// Whoever has marked a route as a last resort, and whoever it is of.
#[test]
fn a_last_resort_of_others() {
    let mut learnt = learnt(&everything(), &[2, 3]);
    let marked = PathAttributes { communities: vec![Community::LLGR_STALE], ..attributes(&[65001]) };
    learnt.receive(address(2), &announce(2, marked, &[A])).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 2")]);
    learnt.receive(address(3), &announce(3, attributes(&[65001, 65002, 65003]), &[A])).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 3")]);
}
