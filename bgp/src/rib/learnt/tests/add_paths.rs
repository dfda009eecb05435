//! Several paths of one peer to a prefix (RFC 7911).

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, proptest};

use super::history::route;
use super::*;
use crate::rib::{LimitAction, MaxPrefixes};
use crate::wire::{AttributeError, AttributeProblem, Handling, Nlri};

fn path(id: u32, host: u8, asns: &[u32], prefixes: &[&str]) -> Update {
    of_path(id, announce(host, attributes(asns), prefixes))
}

fn gone(id: u32, prefix: &str) -> Update {
    of_path(id, withdraw(&[prefix]))
}

/// Each path is a candidate of its own: equal ones are used together, a better one alone; each comes, changes and goes by its name.
#[test]
fn all_paths_are_candidates() {
    for prefix in [A, V6] {
        let mut learnt = learnt(&everything(), &[2, 3]);
        let peer = address(2);
        let used_are =
            |learnt: &Learnt, hops: &str| assert_eq!(used(learnt), [format!("{prefix} via {hops}")]);
        learnt.receive(peer, &path(1, 10, &[65001], &[prefix])).unwrap();
        learnt.receive(peer, &path(2, 20, &[65001], &[prefix])).unwrap();
        learnt.receive(peer, &path(3, 30, &[65001, 65009], &[prefix])).unwrap();
        learnt.receive(address(3), &announce(3, attributes(&[65002]), &[prefix])).unwrap();
        used_are(&learnt, "3 10 20");
        let family = usize::from(prefix == V6);
        assert_eq!(counts(&learnt, 2)[family], (3, 3), "each path counts");
        // The same path again is another in its place.
        learnt.receive(peer, &path(1, 11, &[65001], &[prefix])).unwrap();
        used_are(&learnt, "3 11 20");
        learnt.receive(peer, &gone(1, prefix)).unwrap();
        learnt.receive(peer, &gone(4, prefix)).unwrap();
        used_are(&learnt, "3 20");
        learnt.receive(peer, &gone(2, prefix)).unwrap();
        used_are(&learnt, "3");
        learnt.receive(address(3), &withdraw(&[prefix])).unwrap();
        used_are(&learnt, "30");
        // Where a net becomes this node's own, no path to it is left.
        learnt.reserve(&[net(prefix)], &[]);
        assert_eq!((used(&learnt), counts(&learnt, 2)[family]), (vec![], (1, 0)));
        learnt.reserve(&[], &[net(prefix)]);
        used_are(&learnt, "30");
        learnt.receive(peer, &gone(3, prefix)).unwrap();
        assert_empty(&learnt);
    }
}

/// RFC 7606 §2 means the path that the message names.
#[test]
fn a_malformed_path_goes_alone() {
    let mut learnt = learnt(&everything(), &[2]);
    learnt.receive(address(2), &path(1, 10, &[65001], &[A])).unwrap();
    learnt.receive(address(2), &path(2, 20, &[65001], &[A])).unwrap();
    let malformed = vec![AttributeError {
        code: 1,
        problem: AttributeProblem::Missing,
        handling: Handling::TreatAsWithdraw,
    }];
    learnt.receive(address(2), &Update { malformed, ..path(2, 20, &[65001], &[A]) }).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 10")]);
}

/// All that is kept counts against the limit.
#[test]
fn a_limit_counts_paths() {
    let max_prefixes = Some(MaxPrefixes { limit: 2, warn_at: 2, action: LimitAction::TearDown });
    let mut learnt = learnt(&ImportPolicy { max_prefixes, ..everything() }, &[2]);
    for id in [1, 2, 1, 2] {
        learnt.receive(address(2), &path(id, 10, &[65001], &[A])).unwrap();
    }
    assert!(learnt.receive(address(2), &path(3, 10, &[65001], &[A])).is_err());
}

/// Of a peer that was away, paths go that it has not told again: those alone.
#[test]
fn stale_paths_are_swept_one_by_one() {
    let now = Instant::now();
    let agreed = negotiated(Some(restart(true)));
    let mut learnt = Learnt::new(OWN);
    learnt.set_policy(address(2), Some(everything()));
    learnt.peer_up(source(2), &agreed, now);
    for id in 1..=3u8 {
        learnt.receive(address(2), &path(id.into(), id * 10, &[65001], &[A, V6])).unwrap();
    }
    learnt.peer_down(address(2), Some(&agreed), now);
    learnt.peer_up(source(2), &agreed, now);
    learnt.receive(address(2), &path(2, 20, &[65001], &[A, V6])).unwrap();
    learnt.receive(address(2), &path(4, 40, &[65001], &[A])).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 10 20 30 40"), format!("{V6} via 10 20 30")]);
    learnt.receive(address(2), &Update::end_of_rib_marker(Family::Ipv4Unicast)).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 20 40"), format!("{V6} via 10 20 30")]);
    learnt.receive(address(2), &Update::end_of_rib_marker(Family::Ipv6Unicast)).unwrap();
    assert_eq!(used(&learnt), [format!("{A} via 20 40"), format!("{V6} via 20")]);
}

proptest! {
    /// What is used is the same whatever names the paths have, and in whatever order they came.
    #[test]
    fn names_do_not_matter(
        routes in vec((1..6u8, route()), 1..6),
        ids in Just((0..6u32).collect::<Vec<_>>()).prop_shuffle(),
        order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let all: Vec<(u8, Update)> = (routes.iter())
            .map(|(host, route)| (*host, route.update(10 + host, 0)))
            .collect();
        let told = |names: &[u32], order: &[usize]| {
            let mut learnt = learnt(&everything(), &[2]);
            for index in order.iter().filter(|index| **index < all.len()) {
                let mut update = all[*index].1.clone();
                update.nlri = vec![Nlri { path_id: names[*index], ..update.nlri[0] }];
                learnt.receive(address(2), &update).unwrap();
            }
            used(&learnt)
        };
        assert_eq!(told(&[0, 1, 2, 3, 4, 5], &[0, 1, 2, 3, 4, 5]), told(&ids, &order));
    }
}
