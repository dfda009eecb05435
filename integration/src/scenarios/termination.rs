//! Endpoints that terminate, and those that are gone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};

use super::Scenario;
use super::ask::silence;
use super::policies::Way;
use crate::cluster::{Condition, Endpoint, Service};
use crate::fabric::Pod;
use crate::fabric::addresses::Family;
use crate::kernel;
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::{Connections, Request};
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "termination",
        proves: "an endpoint that terminates keeps its connections and gets no new ones, even if agents restart meanwhile; once it is gone its TCP connections are reset and its SCTP associations aborted within 2 s, \
                 and its UDP flows go to another; also where it was the last",
        run: termination,
    },
    Scenario {
        name: "termination-nat",
        proves: "the same of a Service with forwarding nat",
        run: termination_nat,
    },
    Scenario {
        name: "terminating-fallback",
        proves: "where all endpoints terminate, those that still serve are used, until one is ready",
        run: terminating_fallback,
    },
    Scenario {
        name: "terminating-local",
        proves: "under a policy Local an endpoint that terminates is used on its node where none is ready there, whatever is ready elsewhere, \
                 and by no one for whom the policy does not hold",
        run: terminating_local,
    },
];

/// A pod as its processes' end leaves it: it takes packets and answers none.
pub(super) struct Ended(NetNs);

impl Ended {
    pub(super) fn new(pod: &Pod) -> Result<Self> {
        let rules = "table inet ended {\n chain packets {\n type filter hook input priority 0;\n policy drop;\n }\n}\n";
        pod.ns.run_with_input("nft -f -", rules)?;
        Ok(Self(pod.ns.clone()))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.run("nft delete table inet ended");
    }
}

/// Waits until a pod's node takes in what is tunnelled to it for the Service, or does so no more.
pub(super) fn await_accepted(lab: &Lab, service: &Service, pod: &Pod, accepted: bool) -> Result<()> {
    let node = lab.fabric.nodes.iter().find(|node| node.number == pod.node).context("its node")?;
    for (family, map) in [(Family::V4, "endpoints4"), (Family::V6, "endpoints6")] {
        let rewrite = format!("{} . 80 : {} . {POD_PORT}", service.vip(family), pod.address(family));
        await_some(Duration::from_secs(40), &format!("{}: {rewrite}: {accepted}", node.name), || {
            let map = node.ns.run(&format!("nft -nn list map inet sheave {map}"));
            let map = map.map_err(|error| format!("{error:#}"))?;
            if map.contains(&rewrite) == accepted { Ok(()) } else { Err(map) }
        })?;
    }
    Ok(())
}

/// Destinations that wait with weight 0.
fn draining(lab: &Lab) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in &lab.fabric.nodes {
        for server in kernel::virtual_servers(&node.ns)? {
            let waiting =
                server.destinations.iter().map(|entry| &entry.destination).filter(|to| to.weight == 0);
            found.extend(
                waiting.map(|to| format!("{}: {:?} → {}", node.name, server.service.key, to.address)),
            );
        }
    }
    Ok(found)
}

/// How soon connections to an endpoint that is gone must end, once something is sent.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Has a pod's processes end, then its slice say so, and waits until no director has it any more.
fn end(lab: &mut Lab, pod: &Pod, without: &Service) -> Result<Ended> {
    let ended = Ended::new(pod)?;
    lab.apply(without)?;
    await_some(Duration::from_secs(20), "nothing drains", || match draining(lab) {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(left.join(", ")),
        Err(error) => Err(format!("{error:#}")),
    })?;
    Ok(ended)
}

fn termination(lab: &mut Lab) -> Result<()> {
    terminates(lab, Service::new("termination", 61))
}

fn termination_nat(lab: &mut Lab) -> Result<()> {
    terminates(lab, Service::new("termination-nat", 63).annotate("sheave.io/forwarding", "nat"))
}

fn terminates(lab: &mut Lab, service: Service) -> Result<()> {
    let service = service.all_protocols(80, POD_PORT);
    let (b1, b2) = (lab.fabric.pod("b1")?.clone(), lab.fabric.pod("b2")?.clone());
    lab.apply(&service.clone().endpoints([&b1, &b2]))?;
    let mut open = Vec::new();
    for (family, director) in [(Family::V4, "node-c"), (Family::V6, "node-b")] {
        let vip = service.vip(family);
        lab.fabric.steer(vip, Some(lab.fabric.node(director)?))?;
        for protocol in [Tcp, Sctp, Udp] {
            let mut others = Connections::open(&lab.fabric.client, protocol, vip, 80, 12)?;
            let theirs = others.split("b1");
            ensure!(!theirs.is_empty() && !others.is_empty(), "{protocol}: all 12 went to one endpoint");
            open.push((protocol, vip, theirs, others));
        }
    }

    let ending = Endpoint::from(&b1).condition(Condition::Terminating);
    lab.apply(&service.clone().endpoints([ending, Endpoint::from(&b2)]))?;
    let go_on = |lab: &Lab, open: &mut [(Protocol, IpAddr, Connections, Connections)]| {
        for (protocol, vip, theirs, others) in open {
            theirs.check().with_context(|| format!("{protocol}: those of b1, which terminates"))?;
            others.check().with_context(|| format!("{protocol}: those of b2"))?;
            let new = Connections::open(&lab.fabric.client, *protocol, *vip, 80, 8)?;
            let chosen: BTreeSet<&str> = new.endpoints().into_keys().collect();
            ensure!(chosen == BTreeSet::from(["b2"]), "{protocol}: new connections went to {chosen:?}");
        }
        Ok(())
    };
    go_on(lab, &mut open)?;
    for agent in ["node-b", "node-c"] {
        lab.stop_agent(agent)?;
        lab.start_agent(agent)?;
    }
    let last = service.clone().endpoints([&b2]);
    lab.await_applied(&last)?;
    go_on(lab, &mut open).context("after a restart of two agents")?;

    let _b1_ended = end(lab, &b1, &last)?;
    for (protocol, _, theirs, others) in &mut open {
        match protocol {
            Udp => theirs.await_move("b2")?,
            Tcp | Sctp => theirs.await_resets(AT_ONCE).with_context(|| format!("{protocol}: those of b1"))?,
        }
        others.check().with_context(|| format!("{protocol}: those of b2, at the end"))?;
    }

    // The last of all.
    let ending = Endpoint::from(&b2).condition(Condition::Terminating);
    lab.apply(&service.clone().endpoints([ending]))?;
    let _b2_ended = end(lab, &b2, &service.clone().without_endpoints())?;
    for (protocol, _, _, others) in &mut open {
        if *protocol != Udp {
            others.await_resets(AT_ONCE).with_context(|| format!("{protocol}: those of b2"))?;
        }
    }
    for family in Family::BOTH {
        lab.fabric.steer(service.vip(family), None)?;
    }
    lab.remove(&service)
}

/// Waits until every director gives new connections to that endpoint alone: as many as before tells nothing.
fn await_chosen(lab: &Lab, (protocol, vip): (Protocol, IpAddr), endpoint: IpAddr) -> Result<()> {
    for node in &lab.fabric.nodes {
        await_some(
            Duration::from_secs(30),
            &format!("{}: {endpoint} alone behind {protocol} {vip}", node.name),
            || {
                let servers = kernel::virtual_servers(&node.ns).map_err(|error| format!("{error:#}"))?;
                let active = kernel::active(&servers, protocol, SocketAddr::new(vip, 80));
                if active == [SocketAddr::new(endpoint, POD_PORT)] {
                    Ok(())
                } else {
                    Err(format!("{active:?}"))
                }
            },
        )?;
    }
    Ok(())
}

fn terminating_fallback(lab: &mut Lab) -> Result<()> {
    let service = Service::new("fallback", 62).all_protocols(80, POD_PORT);
    let endpoint = |name: &str, condition| -> Result<Endpoint> {
        Ok(Endpoint::from(lab.fabric.pod(name)?).condition(condition))
    };
    let terminating = endpoint("b1", Condition::Terminating)?;
    let ended = endpoint("c1", Condition::Ended)?;
    let ready = endpoint("a1", Condition::Ready)?;
    for (endpoints, expected) in
        [(vec![terminating.clone(), ended.clone()], "b1"), (vec![terminating, ended, ready], "a1")]
    {
        lab.apply(&service.clone().endpoints(endpoints))?;
        for family in Family::BOTH {
            for protocol in [Tcp, Udp, Sctp] {
                await_chosen(
                    lab,
                    (protocol, service.vip(family)),
                    lab.fabric.pod(expected)?.address(family),
                )?;
                for _ in 0..5 {
                    let answer = Request::new(protocol, service.vip(family), 80).send(&lab.fabric.client)?;
                    ensure!(answer.endpoint == expected, "{family} {protocol}: {} answered", answer.endpoint);
                }
            }
        }
    }
    lab.remove(&service)
}

fn terminating_local(lab: &mut Lab) -> Result<()> {
    let endpoint = |name: &str, condition| -> Result<Endpoint> {
        Ok(Endpoint::from(lab.fabric.pod(name)?).condition(condition))
    };
    let elsewhere = endpoint("c1", Condition::Ready)?;
    let steps = [
        // On node-b there is one that terminates alone, one that is ready beside it, one that does not serve any more.
        (vec![endpoint("b1", Condition::Terminating)?], &["b1"][..], &["c1"][..]),
        (
            vec![endpoint("b1", Condition::Terminating)?, endpoint("b2", Condition::Ready)?],
            &["b2"],
            &["b2", "c1"],
        ),
        (vec![endpoint("b1", Condition::Ended)?], &[], &["c1"]),
    ];
    let service = Service::new("local-fallback", 64)
        .all_protocols(80, POD_PORT)
        .spec("externalTrafficPolicy", "Local")
        .spec("internalTrafficPolicy", "Local");
    for (on_node_b, local, cluster) in steps {
        let endpoints = on_node_b.into_iter().chain([elsewhere.clone()]);
        lab.source.apply(&service.clone().endpoints(endpoints))?;
        for family in Family::BOTH {
            let (vip, cluster_ip) = (service.vip(family), service.cluster_ip(family));
            for (name, own) in [("node-b", local), ("node-c", &["c1"]), ("node-a", &[])] {
                let node = lab.fabric.node(name)?;
                lab.fabric.steer(vip, Some(node))?;
                let outside = Way { from: &lab.fabric.client, address: vip, port: 80 };
                for from in [&node.ns, &node.pods[1].ns] {
                    let all = Way { from, address: vip, port: 80 };
                    all.await_change(cluster)?;
                    all.leads_to(cluster).with_context(|| format!("{name}, whatever the policy"))?;
                }
                let ways = [
                    outside,
                    Way { from: &node.ns, address: cluster_ip, port: 80 },
                    Way { from: &node.pods[1].ns, address: cluster_ip, port: 80 },
                ];
                if own.is_empty() {
                    // Where one drains, IPVS itself answers datagrams that have no flow yet: it refuses them.
                    let protocols = if name == "node-b" { &[Tcp, Sctp][..] } else { &[Tcp, Sctp, Udp] };
                    let asked = ways
                        .iter()
                        .flat_map(|way| protocols.iter().map(move |it| (way.from, way.request(*it))));
                    silence(&asked.collect::<Vec<_>>()).with_context(|| name.to_owned())?;
                    continue;
                }
                for way in ways {
                    way.await_change(own)?;
                    way.leads_to(own).with_context(|| format!("{name}, of its own"))?;
                }
            }
            lab.fabric.steer(vip, None)?;
        }
    }
    lab.remove(&service)
}
