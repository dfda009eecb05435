//! What sessions they are, and what is to happen to them: as the seed has it.

use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sheave_bgp::Families;
use sheave_bgp::session::{AddPaths, Backoff, Event, RestartOffer, SessionConfig};

use super::node::{Node, address};
use super::{Happening, RESTART_TIME, Simulation, TROUBLE};
use crate::random::Random;

impl Simulation {
    pub(super) fn new(seed: u64) -> Simulation {
        let mut random = Random(seed);
        let now = Instant::now();
        let ibgp = random.chance(50);
        let passive = random.below(3);
        let nodes = [0, 1].map(|node| {
            let asns = if ibgp { [64512, 64512] } else { [64512, 65001] };
            let IpAddr::V4(router_id) = address(node) else { unreachable!() };
            let config = SessionConfig {
                asn: asns[node],
                router_id,
                peer_asn: Some(asns[1 - node]),
                passive: passive == node,
                hold_time: 9,
                send_hold_time: None,
                // Longer than what goes to and fro, and shorter.
                delay_open: random.chance(30).then(|| random.millis(3000)),
                connect_retry: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(10) },
                families: Families::ALL,
                extended_next_hop: false,
                role: None,
                graceful_restart: random.chance(50).then_some(RestartOffer {
                    restart_time: RESTART_TIME,
                    restarting: false,
                    stale_time: None,
                }),
                add_paths: AddPaths { receive: random.chance(50), send: random.chance(50) },
            };
            Node::new(config, random.next(), now)
        });
        let mut simulation = Simulation {
            random,
            now,
            trouble_ends: now + TROUBLE,
            nodes,
            links: Vec::new(),
            agenda: BinaryHeap::new(),
            count: 0,
        };
        for node in [0, 1] {
            for _ in 0..100 {
                let at = simulation.random.within(TROUBLE);
                simulation.plan(at, node, Happening::RoutesChange);
            }
            let faults: [fn() -> Happening; 8] = [
                || Happening::Cut,
                || Happening::Hang,
                || Happening::Restart { kept: false },
                || Happening::Restart { kept: true },
                || Happening::Stop { lasting: false },
                || Happening::Stop { lasting: true },
                || Happening::Suspend,
                || Happening::Refresh,
            ];
            for _ in 0..simulation.random.below(16) {
                let at = simulation.random.within(TROUBLE);
                let fault = faults[simulation.random.below(faults.len())];
                simulation.plan(at, node, fault());
            }
            simulation.session(node, Event::ManualStart);
        }
        simulation
    }
}
