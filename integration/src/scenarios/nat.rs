//! Forwarding *nat*: for fabrics where no packet may leave a node with a source that is not its own.

use std::net::IpAddr;

use anyhow::{Context, Result};
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};

use super::Scenario;
use super::ask::{expect_seen_as, silence};
use crate::cluster::Service;
use crate::fabric::Node;
use crate::fabric::addresses::{self, Family};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::{Connections, Request};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nat-service",
        proves: "a Service with forwarding nat works on a fabric with strict source checks, where one with tunnel does not: for clients outside, \
                 pods (the endpoint itself too) and nodes, over TCP, UDP and SCTP",
        run: nat_service,
    },
    Scenario {
        name: "nat-everywhere",
        proves: "with forwarding nat for the whole cluster the same holds without an annotation, for hostNetwork endpoints and node ports too",
        run: nat_everywhere,
    },
];

const NODE_PORT: u16 = 30077;

fn nat_service(lab: &mut Lab) -> Result<()> {
    let tunnel =
        Service::new("strict-tunnel", 75).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    let nat = remapped("strict-nat", 76, lab)?.annotate("sheave.io/forwarding", "nat");
    lab.apply(&tunnel)?;
    lab.apply(&nat)?;
    let (away, home) = (lab.fabric.node("node-a")?, lab.fabric.node("node-b")?);
    lab.fabric.check_sources(away)?;
    for family in Family::BOTH {
        lab.fabric.steer(tunnel.vip(family), Some(away))?;
        let request = Request::new(Tcp, tunnel.vip(family), 80);
        silence(&[(&lab.fabric.client, request)])
            .context("the fabric checks no sources: nothing was shown")?;
        lab.fabric.steer(tunnel.vip(family), None)?;
    }
    from_outside(lab, &nat, &[away, home])?;
    from_inside(lab, &nat)?;
    lab.fabric.trust_sources()?;
    lab.remove(&tunnel)?;
    lab.remove(&nat)
}

fn nat_everywhere(lab: &mut Lab) -> Result<()> {
    for name in lab.node_names() {
        lab.restart_with(&name, "  forwarding: nat\n")?;
    }
    let service = remapped("all-nat", 77, lab)?.node_port(NODE_PORT);
    let host =
        Service::new("all-nat-host", 78).port(Tcp, 80, HOST_PORT).endpoints([lab.fabric.node("node-b")?]);
    lab.apply(&service)?;
    lab.apply(&host)?;
    let directors: Vec<&Node> = lab.fabric.nodes.iter().collect();
    from_outside(lab, &service, &directors)?;
    from_inside(lab, &service)?;
    for family in Family::BOTH {
        for director in &directors {
            lab.fabric.check_sources(director)?;
            lab.fabric.steer(host.vip(family), Some(director))?;
            let request = Request::new(Tcp, host.vip(family), 80);
            let seen =
                if director.name == "node-b" { addresses::client(family) } else { director.address(family) };
            expect_seen_as(&lab.fabric.client, request, "node-b", seen)?;
            for protocol in [Tcp, Udp] {
                let request = Request::new(protocol, director.address(family), NODE_PORT);
                expect_seen_as(&lab.fabric.client, request, "b1", seen)?;
            }
        }
        lab.fabric.steer(host.vip(family), None)?;
    }
    lab.fabric.trust_sources()?;
    lab.remove(&service)?;
    lab.remove(&host)?;
    for name in lab.node_names() {
        lab.restart_with(&name, "")?;
    }
    Ok(())
}

/// One endpoint, the ports differing from the Service's.
fn remapped(name: &str, number: u8, lab: &Lab) -> Result<Service> {
    Ok(Service::new(name, number).all_protocols(80, POD_PORT).endpoints([lab.fabric.pod("b1")?]))
}

/// Through each director. Its own endpoints see the client, those of other nodes the director.
fn from_outside(lab: &Lab, service: &Service, directors: &[&Node]) -> Result<()> {
    let client = &lab.fabric.client;
    for family in Family::BOTH {
        let vip = service.vip(family);
        for director in directors {
            lab.fabric.check_sources(director)?;
            lab.fabric.steer(vip, Some(director))?;
            let seen =
                if director.name == "node-b" { addresses::client(family) } else { director.address(family) };
            for protocol in [Tcp, Udp, Sctp] {
                expect_seen_as(client, Request::new(protocol, vip, 80), "b1", seen)
                    .with_context(|| format!("director {}", director.name))?;
            }
            Connections::open(client, Tcp, vip, 80, 3)?.check()?;
        }
        lab.fabric.steer(vip, None)?;
    }
    Ok(())
}

/// From pods and nodes, each being its own director. Endpoints see pods as themselves (network policies go by that), but for
/// the one that asks itself.
fn from_inside(lab: &Lab, service: &Service) -> Result<()> {
    let ask = |from: &NetNs, protocol: Protocol, address: IpAddr, seen: IpAddr| {
        expect_seen_as(from, Request::new(protocol, address, 80), "b1", seen)
    };
    for family in Family::BOTH {
        let (node_a, node_b) = (lab.fabric.node("node-a")?, lab.fabric.node("node-b")?);
        for address in [service.vip(family), service.cluster_ip(family)] {
            for protocol in [Tcp, Udp, Sctp] {
                for name in ["a1", "b2"] {
                    let pod = lab.fabric.pod(name)?;
                    ask(&pod.ns, protocol, address, pod.address(family))?;
                }
                ask(&lab.fabric.pod("b1")?.ns, protocol, address, node_b.address(family))?;
                for node in [node_a, node_b] {
                    ask(&node.ns, protocol, address, node.address(family))?;
                }
            }
        }
    }
    Ok(())
}
