//! `loadBalancerSourceRanges`: who may not reach a load-balancer IP gets no answer, and nobody hears of it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};

use super::Scenario;
use super::ask::{expect, expect_seen_as, silence};
use crate::cluster::Service;
use crate::fabric::Witness;
use crate::fabric::addresses::{self, Family};
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::Request;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "source-ranges",
    proves: "clients outside, in pods and on nodes reach a load-balancer IP from loadBalancerSourceRanges alone, on every port, as the ranges \
             change; what the others send reaches no endpoint; cluster IP, external IP and node port are open to all",
    run: source_ranges,
}];

/// How long a change of the ranges may take.
const LIMIT: Duration = Duration::from_secs(20);

const NODE_PORT: u16 = 30070;

/// Somebody who asks.
struct Asker {
    ns: NetNs,
    addresses: [IpAddr; 2],
}

impl Asker {
    fn new(ns: &NetNs, address: impl Fn(Family) -> IpAddr) -> Self {
        Self { ns: ns.clone(), addresses: Family::BOTH.map(address) }
    }

    fn address(&self, family: Family) -> IpAddr {
        self.addresses[usize::from(family == Family::V6)]
    }
}

fn source_ranges(lab: &mut Lab) -> Result<()> {
    let open = Service::new("ranges", 70)
        .all_protocols(80, POD_PORT)
        .node_port(NODE_PORT)
        .port(Tcp, 81, POD_PORT)
        .external_ip(external_ip(Family::V4))
        .external_ip(external_ip(Family::V6))
        .endpoints([lab.fabric.pod("b1")?]);
    let outside = open.clone().spec("loadBalancerSourceRanges", vec!["198.51.100.0/24", "2001:db8:1::/64"]);
    lab.apply(&outside)?;
    let pod = |name| lab.fabric.pod(name).map(|pod| Asker::new(&pod.ns, |family| pod.address(family)));
    let node = |name| lab.fabric.node(name).map(|node| Asker::new(&node.ns, |family| node.address(family)));
    let client = Asker::new(&lab.fabric.client, addresses::client);
    let external = Asker::new(&lab.fabric.external, addresses::external);
    let (a1, a2, node_a, node_b) = (pod("a1")?, pod("a2")?, node("node-a")?, node("node-b")?);

    check(lab, &outside, &[&client], &[&external, &a1, &a2, &node_a, &node_b])?;
    others(lab, &outside, &[&a2, &node_a, &node_b])?;

    // One pod, one node (of the endpoint) and another network instead; with spaces, as the API server lets them pass.
    let mut ranges = vec![" 203.0.113.0/25 ".to_owned(), "2001:db8:3::/48".to_owned()];
    for family in Family::BOTH {
        ranges.extend([&a1, &node_b].map(|asker| format!("{}/{}", asker.address(family), family.bits())));
    }
    let inside = open.clone().spec("loadBalancerSourceRanges", ranges);
    lab.source.apply(&inside)?;
    check(lab, &inside, &[&external, &a1, &node_b], &[&client, &a2, &node_a])?;

    lab.source.apply(&open)?;
    check(lab, &open, &[&client, &external, &a1, &a2, &node_a, &node_b], &[])?;
    lab.remove(&open)
}

/// Announced like the load-balancer IP, and not restricted.
fn external_ip(family: Family) -> IpAddr {
    addresses::external_vip(family, 71)
}

/// Wants `allowed` to be answered (soon) and `refused` not, through every director; nothing of the latter arrives.
fn check(lab: &Lab, service: &Service, allowed: &[&Asker], refused: &[&Asker]) -> Result<()> {
    let endpoint = lab.fabric.pod("b1")?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        let directors = [lab.fabric.node("node-a")?, lab.fabric.node("node-b")?];
        for director in directors {
            lab.fabric.steer(vip, Some(director))?;
            for asker in allowed {
                let peer = asker.address(family);
                let request = Request::new(Tcp, vip, 80).within(Duration::from_secs(1));
                await_some(
                    LIMIT,
                    &format!("{} may reach {vip} through {}", asker.ns.name(), director.name),
                    || expect_seen_as(&asker.ns, request, "b1", peer).map_err(|error| format!("{error:#}")),
                )?;
            }
        }
        let witness = Witness::of(&endpoint.ns)?;
        // Pods and nodes are their own node's, whatever the routers do.
        for director in directors {
            lab.fabric.steer(vip, Some(director))?;
            let requests = || {
                [(Tcp, 80), (Tcp, 81), (Udp, 80), (Sctp, 80)]
                    .map(|(protocol, port)| Request::new(protocol, vip, port))
            };
            let asked: Vec<_> =
                refused.iter().flat_map(|asker| requests().map(|request| (&asker.ns, request))).collect();
            silence(&asked).with_context(|| format!("director {}", director.name))?;
            for asker in allowed {
                requests().into_iter().try_for_each(|request| expect(&asker.ns, request, "b1").map(drop))?;
            }
        }
        for asker in refused {
            let source = asker.address(family);
            let packets = witness.packets(source)?;
            ensure!(packets == 0, "{packets} packets of {source} arrived, who may not reach {vip}");
        }
        for asker in allowed {
            let source = asker.address(family);
            ensure!(witness.packets(source)? > 0, "the witness did not see {source}: nothing was shown");
        }
        lab.fabric.steer(vip, None)?;
    }
    Ok(())
}

/// The Service's other addresses are not restricted.
fn others(lab: &Lab, service: &Service, refused: &[&Asker]) -> Result<()> {
    for family in Family::BOTH {
        let node = lab.fabric.node("node-c")?.address(family);
        for asker in refused {
            for (address, port) in
                [(service.cluster_ip(family), 80), (external_ip(family), 80), (node, NODE_PORT)]
            {
                for protocol in [Tcp, Udp] {
                    expect(&asker.ns, Request::new(protocol, address, port), "b1")?;
                }
            }
        }
        let external = &lab.fabric.external;
        expect(external, Request::new(Tcp, external_ip(family), 81), "b1")?;
        expect(external, Request::new(Tcp, node, NODE_PORT), "b1")?;
    }
    Ok(())
}
