//! What a peer can have kept, and what is left of it.

use super::*;
use crate::rib::learnt::{PATHS, REFLECTED};
use crate::rib::{LimitAction, MaxPrefixes};
use crate::wire::Nlri;

/// Paths that somebody else holds when their last route goes, as a monitoring station's snapshot does, are not kept for good.
#[test]
fn no_path_outlives_its_routes_and_their_holders() {
    let mut learnt = learnt(&everything(), &[2]);
    let of = |community: u32| PathAttributes {
        communities: vec![crate::Community(community)],
        ..attributes(&[65001])
    };
    for round in 0..50 {
        for community in 0..20 {
            learnt.receive(address(2), &announce(2, of(round * 20 + community), &[A])).unwrap();
            let snapshot = learnt.all_received(address(2), Family::Ipv4Unicast);
            learnt.receive(address(2), &withdraw(&[A])).unwrap();
            drop(snapshot);
        }
        assert!(learnt.paths.len() <= 64, "{} paths, and no route", learnt.paths.len());
    }
    assert!(learnt.is_empty());
}

/// Of a prefix a peer has so many paths kept, and no more; others are kept as ever.
#[test]
fn paths_to_a_prefix_are_bounded() {
    let mut learnt = Learnt::new(OWN);
    learnt.set_reflector(Some(OWN.cluster_id));
    for peer in [100, 101] {
        learnt.peer_up(source(peer), &negotiated(None), Instant::now());
    }
    let paths = |first: usize, count: usize| {
        let mut update = announce(2, attributes(&[65001]), &[A]);
        let nlri = update.nlri[0];
        let path_id = |id| u32::try_from(id).unwrap();
        update.nlri = (first..first + count).map(|id| Nlri { path_id: path_id(id), ..nlri }).collect();
        update
    };
    learnt.receive(address(100), &paths(1, PATHS + 10)).unwrap();
    assert_eq!(counts(&learnt, 100)[0], (PATHS, 0));
    // What is there may change, and another takes the place of one that goes.
    let place = of_path(7, withdraw(&[A]));
    learnt.receive(address(100), &paths(1, 1)).unwrap();
    learnt.receive(address(100), &place).unwrap();
    learnt.receive(address(100), &paths(PATHS + 10, 2)).unwrap();
    assert_eq!(counts(&learnt, 100)[0], (PATHS, 0));
    assert!(learnt.received(address(100), Nlri { prefix: net(A), path_id: 7 }).is_none());
    let last = u32::try_from(PATHS).unwrap() + 10;
    assert!(learnt.received(address(100), Nlri { prefix: net(A), path_id: last }).is_some());
    // To other prefixes, and of other peers.
    learnt.receive(address(100), &of_path(1, announce(2, attributes(&[65001]), &[B]))).unwrap();
    learnt.receive(address(101), &of_path(1, announce(3, attributes(&[65001]), &[A]))).unwrap();
    assert_eq!((counts(&learnt, 100)[0].0, counts(&learnt, 101)[0].0), (PATHS + 1, 1));
    for peer in [100, 101] {
        learnt.peer_down(address(peer), None, Instant::now());
    }
    assert_empty(&learnt);
}

/// Whoever has no policy has a limit all the same, whether it is up or held down for it; whoever has one has the limit of that.
#[test]
fn limits_of_peers() {
    let own = MaxPrefixes { limit: 7, warn_at: 5, action: LimitAction::Warn };
    let policy = |max_prefixes| Some(ImportPolicy { max_prefixes, ..everything() });
    for (name, policy, limit) in [
        ("none", None, Some(REFLECTED)),
        ("one without a limit", policy(None), None),
        ("one with", policy(Some(own)), Some(own)),
    ] {
        let mut learnt = Learnt::new(OWN);
        learnt.set_reflector(Some(OWN.cluster_id));
        learnt.set_policies(&policy.into_iter().map(|policy| (address(100), policy)).collect());
        assert_eq!(learnt.limit(address(100)), limit, "{name}");
        learnt.peer_up(source(100), &negotiated(None), Instant::now());
        assert_eq!(learnt.limit(address(100)), limit, "{name}, up");
        learnt.peer_down(address(100), None, Instant::now());
        assert_eq!(learnt.limit(address(100)), limit, "{name}, down");
    }
}
