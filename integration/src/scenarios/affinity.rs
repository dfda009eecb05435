//! Session affinity: how long a client keeps its endpoint, and what ends it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheave::cluster::Protocol::{self, Tcp, Udp};

use super::Scenario;
use crate::cluster::{Endpoint, Service};
use crate::fabric::addresses::Family;
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::Request;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "affinity-timeout",
        proves: "a client of a cluster IP or node port keeps its endpoint for the Service's timeout and is free to get another after it",
        run: affinity_timeout,
    },
    Scenario {
        name: "affinity-lost-endpoint",
        proves: "a client whose endpoint goes gets another at once and keeps that, by cluster IP and load-balancer IP; others keep theirs",
        run: affinity_lost_endpoint,
    },
    Scenario {
        name: "affinity-switched",
        proves: "affinity that is switched on, off and on again binds clients outside and in pods to one endpoint, lets them go to several, and binds \
                 them again: by load-balancer IP, cluster IP and node port, over TCP and UDP",
        run: affinity_switched,
    },
];

/// `timeoutSeconds` of the Service.
const TIMEOUT: u32 = 3;

/// Requests that must all reach the same endpoint.
const REQUESTS: usize = 6;

/// Requests of which not all may reach the same, of three, where clients are free.
const FREE_REQUESTS: usize = 20;

const NODE_PORT: u16 = 30242;

fn service(lab: &Lab, name: &str, number: u8) -> Result<Service> {
    let pods = [lab.fabric.pod("b1")?, lab.fabric.pod("b2")?, lab.fabric.pod("c1")?];
    Ok(Service::new(name, number)
        .port(Tcp, 80, POD_PORT)
        .port(Udp, 80, POD_PORT)
        .endpoints(pods)
        .affinity()
        .spec("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": TIMEOUT}})))
}

/// The one endpoint that answers all of [`REQUESTS`].
fn endpoint(from: &NetNs, protocol: Protocol, (address, port): (IpAddr, u16)) -> Result<String> {
    let request = Request::new(protocol, address, port);
    let first = request.send(from)?.endpoint;
    for _ in 1..REQUESTS {
        let next = request.send(from)?.endpoint;
        ensure!(next == first, "{} → {protocol} {address}: {first} became {next}", from.name());
    }
    Ok(first)
}

fn affinity_timeout(lab: &mut Lab) -> Result<()> {
    let service = service(lab, "sticky", 72)?.node_port(NODE_PORT);
    lab.apply(&service)?;
    let (director, client) = (lab.fabric.node("node-a")?, &lab.fabric.pod("a1")?.ns);
    let node = &director.ns;
    // A client counts as there while the kernel remembers a connection of it: a TCP one for two minutes after its end, a UDP
    // flow for five, and here for a second.
    node.run("ipvsadm --set 0 0 1")?;
    let targets = Family::BOTH
        .into_iter()
        .flat_map(|family| [(service.cluster_ip(family), 80), (director.address(family), NODE_PORT)]);
    let outcome = targets.into_iter().try_for_each(|target| {
        let first = endpoint(client, Udp, target)?;
        forgotten(node, target)?;
        let next = endpoint(client, Udp, target)?;
        // Round robin goes on where it was.
        ensure!(next != first, "{target:?}: {first} again after {TIMEOUT} s");
        forgotten(node, target)
    });
    node.run("ipvsadm --set 0 0 300")?;
    outcome?;
    lab.remove(&service)
}

/// Waits until a director remembers nothing of what went to an address and port.
fn forgotten(node: &NetNs, target: (IpAddr, u16)) -> Result<()> {
    // As ipvsadm prints it, and port 0 for whoever keeps an endpoint.
    let of = |port| format!(" {} ", std::net::SocketAddr::new(target.0, port));
    let (template, connection) = (of(0), of(target.1));
    await_some(Duration::from_secs(20), &format!("{}: nothing is known of {connection}", node.name()), || {
        let known = node.run("ipvsadm -Lnc").map_err(|error| format!("{error:#}"))?;
        let of_target = |line: &&str| line.contains(&template) || line.contains(&connection);
        let left: Vec<&str> = known.lines().filter(of_target).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    })
}

fn affinity_lost_endpoint(lab: &mut Lab) -> Result<()> {
    let service = service(lab, "sticky-lost", 73)?;
    lab.apply(&service)?;
    let outside = lab.fabric.client.clone();
    let inside = [lab.fabric.pod("a1")?.ns.clone(), lab.fabric.pod("a2")?.ns.clone()];
    for family in Family::BOTH {
        lab.fabric.steer(service.vip(family), Some(lab.fabric.node("node-a")?))?;
    }
    let targets = |family| {
        [
            (&outside, service.vip(family)),
            (&inside[0], service.cluster_ip(family)),
            (&inside[1], service.cluster_ip(family)),
        ]
    };
    for (family, protocol) in Family::BOTH.into_iter().flat_map(|family| [(family, Tcp), (family, Udp)]) {
        lab.apply(&service)?;
        let ask = |from, address| {
            endpoint(from, protocol, (address, 80)).with_context(|| format!("{family} {protocol}"))
        };
        let before = targets(family).map(|(from, address)| ask(from, address));
        let before = before.into_iter().collect::<Result<Vec<_>>>()?;
        // That of the first in the pods.
        let lost = &before[1];
        let gone = Endpoint::from(lab.fabric.pod(lost)?).address(family);
        let left = service.endpoints.iter().filter(|endpoint| endpoint.address(family) != gone).cloned();
        lab.apply(&service.clone().endpoints(left.collect::<Vec<_>>()))?;
        for ((from, address), before) in targets(family).into_iter().zip(&before) {
            let after = ask(from, address)?;
            ensure!(after != *lost, "{family} {protocol}: {lost} is gone and answered");
            ensure!(before == lost || after == *before, "{family} {protocol}: {before} became {after}");
        }
    }
    for family in Family::BOTH {
        lab.fabric.steer(service.vip(family), None)?;
    }
    lab.remove(&service)
}

fn affinity_switched(lab: &mut Lab) -> Result<()> {
    let on = service(lab, "sticky-switched", 87)?.node_port(NODE_PORT);
    let off = on.clone().without_affinity();
    let (outside, pod) = (lab.fabric.client.clone(), lab.fabric.pod("a1")?.ns.clone());
    for family in Family::BOTH {
        lab.fabric.steer(on.vip(family), Some(lab.fabric.node("node-a")?))?;
    }
    let mut ports_of_client = 20_000..NODE_PORT;
    for (service, bound, when) in [(&on, true, "on"), (&off, false, "off"), (&on, true, "on again")] {
        lab.apply(service)?;
        for family in Family::BOTH {
            let node_port = (lab.fabric.node("node-a")?.address(family), NODE_PORT);
            for (from, (address, port)) in [
                (&outside, (service.vip(family), 80)),
                (&outside, node_port),
                (&pod, (service.cluster_ip(family), 80)),
                (&pod, node_port),
            ] {
                for protocol in [Tcp, Udp] {
                    // Each from a port of its own: a UDP flow stays for five minutes where it is, whatever the affinity is by then.
                    let request = |port_of_client| {
                        Request::new(protocol, address, port).from_port(port_of_client).send(from)
                    };
                    let answers = ports_of_client.by_ref().take(FREE_REQUESTS);
                    let answers = answers.map(|port_of_client| Ok(request(port_of_client)?.endpoint));
                    let seen = answers.collect::<Result<BTreeSet<String>>>()?;
                    ensure!(
                        bound == (seen.len() == 1),
                        "affinity {when}: {} → {protocol} {address} port {port}: {seen:?}",
                        from.name()
                    );
                }
            }
        }
    }
    for family in Family::BOTH {
        lab.fabric.steer(on.vip(family), None)?;
    }
    lab.remove(&on)
}
