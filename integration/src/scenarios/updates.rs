//! A Service that changes: what it was is gone, what it is works.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::IpNet;
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};

use super::Scenario;
use super::ask::{expect, is_silence, refused};
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::traffic::Request;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "service-updates",
        proves: "a Service whose ports, node port or type change, or that is made anew, answers where it is now and refuses where it was",
        run: service_updates,
    },
    Scenario {
        name: "shared-addresses",
        proves: "several Services share a load-balancer IP by port and by protocol, and a Service's ports may have one number for three \
                 protocols, different target ports and different endpoints",
        run: shared_addresses,
    },
];

/// How soon the agents follow a change.
const LIMIT: Duration = Duration::from_secs(30);

fn service_updates(lab: &mut Lab) -> Result<()> {
    const PORTS: [u16; 2] = [30092, 30093];
    let plain = |port, node_port| -> Result<Service> {
        let service = Service::new("updated", 92).port(Tcp, port, POD_PORT).port(Udp, port, POD_PORT);
        Ok(service.node_port(node_port).endpoints([lab.fabric.pod("b1")?]))
    };
    let (first, second) = (plain(80, PORTS[0])?, plain(81, PORTS[1])?);
    let inside = second.clone().spec("type", "ClusterIP");
    let elsewhere = second.clone().spec("type", "ExternalName").spec("externalName", "example.com");

    lab.apply(&first)?;
    answers(lab, |family, node| {
        vec![(first.vip(family), 80), (first.cluster_ip(family), 80), (node, PORTS[0])]
    })?;

    lab.apply(&second)?;
    answers(lab, |family, node| {
        vec![(first.vip(family), 81), (first.cluster_ip(family), 81), (node, PORTS[1])]
    })?;
    closed(lab, |family, node| {
        vec![(first.vip(family), 80), (first.cluster_ip(family), 80), (node, PORTS[0])]
    })?;

    // What it is not any more is neither announced nor taken: the routers know no way there.
    lab.source.apply(&inside)?;
    closed(lab, |family, node| vec![(first.vip(family), 81), (node, PORTS[1])])?;
    answers(lab, |family, _| vec![(first.cluster_ip(family), 81)])?;

    lab.source.apply(&elsewhere)?;
    closed(lab, |family, node| vec![(first.cluster_ip(family), 81), (node, PORTS[1])])?;

    lab.apply(&first)?;
    answers(lab, |family, node| {
        vec![(first.vip(family), 80), (first.cluster_ip(family), 80), (node, PORTS[0])]
    })?;
    lab.remove(&first)?;
    closed(lab, |family, node| {
        vec![(first.vip(family), 80), (first.cluster_ip(family), 80), (node, PORTS[0])]
    })?;
    lab.apply(&first)?;
    answers(lab, |family, node| {
        vec![(first.vip(family), 80), (first.cluster_ip(family), 80), (node, PORTS[0])]
    })?;
    lab.remove(&first)
}

/// From a pod, at addresses that follow from the family and from node-a's address of it.
fn answers(lab: &Lab, at: impl Fn(Family, IpAddr) -> Vec<(IpAddr, u16)>) -> Result<()> {
    let from = &lab.fabric.pod("a1")?.ns;
    for family in Family::BOTH {
        for (address, port) in at(family, lab.fabric.node("node-a")?.address(family)) {
            await_some(LIMIT, &format!("{address} port {port} answers"), || {
                let request = Request::new(Tcp, address, port).within(Duration::from_secs(1));
                expect(from, request, "b1").map_err(|error| format!("{error:#}"))
            })?;
            expect(from, Request::new(Udp, address, port), "b1")?;
        }
    }
    Ok(())
}

/// As [`answers`], but nobody is there: refused by the node, or by the routers. (Of a router's refusal UDP tells nobody.)
fn closed(lab: &Lab, at: impl Fn(Family, IpAddr) -> Vec<(IpAddr, u16)>) -> Result<()> {
    let from = &lab.fabric.pod("a1")?.ns;
    for family in Family::BOTH {
        let [_, _, routed, _] = addresses::cluster_prefixes(family);
        let routed: IpNet = routed.parse()?;
        for (address, port) in at(family, lab.fabric.node("node-a")?.address(family)) {
            await_some(LIMIT, &format!("{address} port {port} is closed"), || {
                match Request::new(Tcp, address, port).within(Duration::from_secs(1)).send(from) {
                    Ok(answer) => Err(format!("answered by {}", answer.endpoint)),
                    Err(error) => {
                        let text = format!("{error:#}");
                        let words = ["refused", "unreachable", "No route"];
                        // What the routers do is not ours: they say so no more than so often.
                        let left_to_routers = routed.contains(&address) && is_silence(&error);
                        let closed = left_to_routers || words.iter().any(|word| text.contains(word));
                        if closed { Ok(()) } else { Err(text) }
                    }
                }
            })?;
            let datagram = Request::new(Udp, address, port).within(Duration::from_millis(300));
            ensure!(datagram.send(from).is_err(), "UDP {address} port {port}: answered");
        }
    }
    Ok(())
}

fn shared_addresses(lab: &mut Lab) -> Result<()> {
    let vips = Family::BOTH.map(|family| Service::new("", 94).vip(family).to_string());
    let shares = |service: Service| {
        let ingress: Vec<_> = vips.iter().map(|ip| serde_json::json!({"ip": ip})).collect();
        service.ingress(ingress)
    };
    let tcp = Service::new("shares-tcp", 94).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod("a1")?]);
    let udp =
        shares(Service::new("shares-udp", 95).port(Udp, 80, POD_PORT).endpoints([lab.fabric.pod("b1")?]));
    let other = shares(
        Service::new("shares-port", 96)
            .port(Tcp, 81, HOST_PORT)
            .port(Sctp, 80, HOST_PORT)
            .endpoints([lab.fabric.node("node-c")?]),
    );
    lab.apply(&tcp)?;
    for service in [&udp, &other] {
        lab.source.apply(service)?;
    }
    for family in Family::BOTH {
        let vip = tcp.vip(family);
        for node in &lab.fabric.nodes {
            lab.fabric.steer(vip, Some(node))?;
            for (protocol, port, endpoint) in
                [(Tcp, 80, "a1"), (Udp, 80, "b1"), (Tcp, 81, "node-c"), (Sctp, 80, "node-c")]
            {
                for from in [&lab.fabric.client, &node.ns, &node.pods[1].ns] {
                    await_some(LIMIT, &format!("{endpoint} at {protocol} {vip} port {port}"), || {
                        let request = Request::new(protocol, vip, port).within(Duration::from_secs(1));
                        expect(from, request, endpoint).map_err(|error| format!("{error:#}"))
                    })?;
                }
            }
            refused(&lab.fabric.client, Udp, vip, 81)?;
        }
        lab.fabric.steer(vip, None)?;
    }
    // One goes, the others stay.
    lab.source.remove(&tcp)?;
    for family in Family::BOTH {
        let vip = tcp.vip(family);
        await_some(LIMIT, &format!("TCP {vip} port 80 is refused"), || {
            refused(&lab.fabric.client, Tcp, vip, 80).map_err(|error| format!("{error:#}"))
        })?;
        expect(&lab.fabric.client, Request::new(Udp, vip, 80), "b1")?;
        expect(&lab.fabric.client, Request::new(Tcp, vip, 81), "node-c")?;
        for leaf in &lab.fabric.leaves {
            let directors = lab.fabric.directors(leaf, vip)?;
            ensure!(directors.len() == lab.fabric.nodes.len(), "{vip} goes to {directors:?} alone");
        }
    }
    lab.remove(&udp)?;
    lab.remove(&other)
}
