//! What is noted for monitoring, followed by somebody who knows nothing else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::{any, proptest};

use super::history::{PEERS, PREFIXES, Step, links, step};
use super::updates::{of_path, withdraw};
use super::{address, everything, learnt, negotiated, net, restart, source};
use crate::Family;
use crate::rib::learnt::{Changes, Learnt};
use crate::rib::path::Path;
use crate::wire::Nlri;

/// What a monitoring station knows.
#[derive(Debug, Default, PartialEq)]
struct Known {
    received: BTreeMap<(IpAddr, Nlri), Arc<Path>>,
    accepted: BTreeMap<(IpAddr, Nlri), Arc<Path>>,
    best: BTreeMap<IpNet, Arc<Path>>,
}

fn put<K: Ord>(table: &mut BTreeMap<K, Arc<Path>>, key: K, path: Option<Arc<Path>>) {
    match path {
        Some(path) => table.insert(key, path),
        None => table.remove(&key),
    };
}

impl Known {
    fn follow(&mut self, learnt: &mut Learnt) {
        let Changes { received, accepted, decided, told_all: _ } = learnt.take_noted();
        for (peer, nlri) in received {
            put(&mut self.received, (peer, nlri), learnt.received(peer, nlri).map(|route| route.path));
        }
        for (peer, nlri) in accepted {
            let route = learnt.received(peer, nlri).filter(|route| route.accepted);
            put(&mut self.accepted, (peer, nlri), route.map(|route| route.path));
        }
        for prefix in decided {
            put(&mut self.best, prefix, learnt.best(prefix));
        }
        assert!(!learnt.has_noted());
    }

    /// A session is over, and with it what was told of it.
    fn forget(&mut self, peer: IpAddr) {
        self.received.retain(|(of, _), _| *of != peer);
        self.accepted.retain(|(of, _), _| *of != peer);
    }

    /// All there is.
    fn of(learnt: &Learnt) -> Known {
        let all = || {
            let peers = PEERS.into_iter().map(address);
            peers.flat_map(|peer| {
                let families = Family::ALL.into_iter();
                families
                    .flat_map(move |family| learnt.all_received(peer, family))
                    .map(move |route| (peer, route))
            })
        };
        Known {
            received: all().map(|(peer, route)| ((peer, route.nlri), route.path)).collect(),
            accepted: all()
                .filter(|(_, route)| route.accepted)
                .map(|(peer, route)| ((peer, route.nlri), route.path))
                .collect(),
            best: learnt.all_best().collect(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_noted_is_all_that_changes(
        steps in vec(step(), 0..60),
        graceful in any::<bool>(),
        every in 1..4usize,
    ) {
        let mut learnt = learnt(&everything(), &PEERS);
        learnt.monitor(true);
        let mut known = Known::default();
        let agreed = negotiated(graceful.then(|| restart(true)));
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Announce { peer, prefix, path, route } => {
                    learnt.receive(address(peer), &of_path(path, route.update(peer, prefix))).unwrap();
                }
                Step::Withdraw { peer, prefix, path } => {
                    let gone = withdraw(&[PREFIXES[usize::from(prefix)]]);
                    learnt.receive(address(peer), &of_path(path, gone)).unwrap();
                }
                Step::Down { peer } => {
                    known.forget(address(peer));
                    learnt.peer_down(address(peer), graceful.then_some(&agreed), Instant::now());
                    learnt.peer_up(source(peer), &agreed, Instant::now());
                }
                Step::Reserve { prefix, here } => {
                    let net = [net(PREFIXES[usize::from(prefix)])];
                    let (add, remove): (&[IpNet], &[IpNet]) = if here { (&net, &[]) } else { (&[], &net) };
                    learnt.reserve(add, remove);
                }
                Step::Links { up } => learnt.set_links(links(up)),
            }
            if number % every == 0 {
                known.follow(&mut learnt);
            }
        }
        known.follow(&mut learnt);
        assert_eq!(known, Known::of(&learnt));
        // Nobody monitors it any more.
        learnt.monitor(false);
        learnt.peer_down(address(PEERS[0]), None, Instant::now());
        assert!(!learnt.has_noted());
    }
}
