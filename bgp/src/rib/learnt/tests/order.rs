//! Whatever the order in which things happen, what is used follows from what is there.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, proptest};

use super::history::{PATHS, PEERS, PREFIXES, Route, Step, links, step};
use super::*;

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
