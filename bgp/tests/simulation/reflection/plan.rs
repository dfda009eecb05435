//! What network it is, and what is to happen in it: as the seed has it.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Instant;

use super::node::{Node, Role, number, tables};
use super::{APART, Happening, Network, TROUBLE};
use crate::random::Random;

impl Network {
    pub(super) fn new(seed: u64) -> Network {
        let mut random = Random(seed);
        let mut roles = Vec::new();
        let reflectors = 1 + random.below(3);
        let one_cluster = random.chance(30);
        for reflector in 0..reflectors {
            let cluster = if one_cluster { 0 } else { reflector };
            roles.push(Role::Reflector([9, 9, 9, number(cluster)].into()));
        }
        roles.extend((0..2 + random.below(4)).map(|_| Role::Client));
        roles.extend((0..random.below(3)).map(|_| Role::Plain));

        let mut sessions = BTreeMap::new();
        for one in 0..roles.len() {
            for other in one + 1..roles.len() {
                // Reflectors come first: clients have sessions with these alone.
                if one < reflectors || roles[one] == Role::Plain && roles[other] == Role::Plain {
                    sessions.insert((one, other), None);
                }
            }
        }
        // Clients need not be of all reflectors, where these hear of each other's: in one cluster they do not.
        for client in (0..roles.len()).filter(|node| roles[*node] == Role::Client && !one_cluster) {
            let kept = random.below(reflectors);
            for reflector in (0..reflectors).filter(|reflector| *reflector != kept) {
                if random.chance(50) {
                    sessions.remove(&(reflector, client));
                }
            }
        }
        let now = Instant::now();
        let gentle = random.chance(30);
        let mut network = Network {
            random,
            now,
            start: now,
            nodes: Vec::new(),
            sessions,
            latest: BTreeMap::new(),
            writing: BTreeSet::new(),
            expiring: BTreeMap::new(),
            agenda: BinaryHeap::new(),
            count: 0,
            gentle,
        };
        for (node, role) in roles.into_iter().enumerate() {
            let (learnt, rib) = tables(node, role, &network.peers(node), false);
            let (routes, table) = (BTreeMap::new(), BTreeMap::new());
            network.nodes.push(Node { role, learnt, rib, routes, table, life: 0, kept: false });
            for _ in 0..5 {
                network.change_route(node);
            }
        }
        for (one, other) in network.sessions.keys().copied().collect::<Vec<_>>() {
            let after = network.random.millis(3000);
            network.plan(after, Happening::Up { one, other, lives: [0, 0] });
        }
        network.plan_trouble();
        network
    }

    fn plan_trouble(&mut self) {
        let count = self.nodes.len();
        if self.gentle {
            for turn in 1..=3 {
                let node = self.random.below(count);
                self.plan(APART * turn, Happening::Restart { node, kept: true });
            }
            return;
        }
        let pairs: Vec<(usize, usize)> = self.sessions.keys().copied().collect();
        for _ in 0..30 {
            let after = self.random.within(TROUBLE);
            let node = self.random.below(count);
            self.plan(after, Happening::RouteChange { node });
        }
        for _ in 0..self.random.below(15) {
            let after = self.random.within(TROUBLE);
            let node = self.random.below(count);
            let (one, other) = pairs[self.random.below(pairs.len())];
            let yes = self.random.chance(60);
            let lasts = self.random.millis(20_000);
            match self.random.below(5) {
                0 | 1 => self.plan(after, Happening::Down { one, other, graceful: yes }),
                2 => self.plan(after, Happening::Restart { node, kept: yes }),
                3 => {
                    self.plan(after, Happening::Reflector { node, on: false });
                    self.plan(TROUBLE.max(after + lasts), Happening::Reflector { node, on: true });
                }
                // The lower one is a reflector in each pair with a client.
                _ if self.nodes[other].role == Role::Client => {
                    self.plan(after, Happening::Client { node: one, peer: other, client: false });
                    self.plan(
                        TROUBLE.max(after + lasts),
                        Happening::Client { node: one, peer: other, client: true },
                    );
                }
                _ => {}
            }
        }
    }
}
