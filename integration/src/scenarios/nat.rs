//! Forwarding *nat*: for fabrics where no packet may leave a node with a source that is not its own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};
use sheave_ipvs::ServiceKey;

use super::Scenario;
use super::ask::{expect_seen_as, silence};
use crate::cluster::Service;
use crate::fabric::Node;
use crate::fabric::addresses::{self, Family};
use crate::kernel;
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::{Connections, Load, Request, Steady, await_each};
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "nat-service",
        proves: "a Service with forwarding nat works on a fabric with strict source checks, where one with tunnel does not: for clients outside, \
                 pods (the endpoint itself too) and nodes, over TCP, UDP and SCTP",
        run: nat_service,
    },
    Scenario {
        name: "nat-everywhere",
        proves: "with forwarding nat for the whole cluster the same holds without an annotation, for hostNetwork endpoints and node ports too; while agents change to it and back, one by one, \
                 no connection is refused",
        run: nat_everywhere,
    },
    Scenario {
        name: "nat-inside-rolling",
        proves: "three agents change to nat within the cluster alone and back, one by one, under load of TCP, UDP and SCTP from pods, nodes and outside, with long connections: 0 failed, 0 lost",
        run: inside_rolling,
    },
];

/// The config of agents that forward for clients within the cluster alone.
pub(super) const INTERNAL_NAT: &str = "  forwarding: {external: tunnel, internal: nat}\n";

/// How long an agent may take to follow.
const LIMIT: Duration = Duration::from_secs(40);

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
    let service = remapped("all-nat", 77, lab)?.node_port(NODE_PORT);
    lab.apply(&service)?;
    change_one_by_one(lab, "  forwarding: nat\n", &service)?;
    let host =
        Service::new("all-nat-host", 78).port(Tcp, 80, HOST_PORT).endpoints([lab.fabric.node("node-b")?]);
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
    lab.remove(&host)?;
    change_one_by_one(lab, "", &service)?;
    lab.remove(&service)
}

/// Restarts agents with a config, one by one, while clients outside and in a pod open connections: none is refused.
fn change_one_by_one(lab: &mut Lab, config: &str, service: &Service) -> Result<()> {
    let mut loads = Vec::new();
    for family in Family::BOTH {
        for protocol in [Tcp, Udp] {
            loads.push(Load::start(&lab.fabric.client, protocol, service.vip(family), 80, 1)?);
            loads.push(Load::start(&lab.fabric.pod("c1")?.ns, protocol, service.cluster_ip(family), 80, 1)?);
        }
    }
    for name in lab.node_names() {
        lab.restart_with(&name, config)?;
        await_each(&loads, 20).with_context(|| format!("{name}: {config:?}"))?;
    }
    lab.await_applied(service)?;
    loads.into_iter().try_for_each(Load::none_failed).with_context(|| format!("{config:?}"))
}

fn inside_rolling(lab: &mut Lab) -> Result<()> {
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    let service = Service::new("inside-rolling", 79).all_protocols(80, POD_PORT).endpoints(pods);
    lab.apply(&service)?;
    let mut ways = Vec::new();
    // An association of SCTP would not live long on a node, which has several addresses.
    let (mut of_node, node) = (Vec::new(), lab.fabric.node("node-b")?.ns.clone());
    for family in Family::BOTH {
        ways.push((&lab.fabric.pod("a2")?.ns, service.cluster_ip(family)));
        ways.push((&lab.fabric.pod("c2")?.ns, service.vip(family)));
        ways.push((&lab.fabric.client, service.vip(family)));
        of_node.push(Connections::open(&node, Tcp, service.vip(family), 80, 10)?);
    }
    let load_of_node = Load::start(&node, Tcp, service.cluster_ip(Family::V4), 80, 1)?;
    let mut traffic = Steady::start(&ways)?;
    for (config, nat) in [(INTERNAL_NAT, true), ("", false)] {
        for name in lab.node_names() {
            lab.restart_with(&name, config)?;
            await_inside(lab, &name, nat, &service)?;
            traffic.check().with_context(|| format!("{name}: nat: {nat}"))?;
            of_node
                .iter_mut()
                .try_for_each(Connections::check)
                .with_context(|| format!("{name}: of node-b"))?;
        }
        lab.await_applied(&service)?;
        traffic.check()?;
    }
    load_of_node.none_failed()?;
    traffic.none_failed()?;
    lab.remove(&service)
}

/// Waits until a director's new connections from within the cluster go to stand-ins, or to none; those from outside to none.
fn await_inside(lab: &Lab, name: &str, nat: bool, service: &Service) -> Result<()> {
    let node = lab.fabric.node(name)?;
    let is_stand_in = |to: IpAddr| match to {
        IpAddr::V4(to) => to.octets()[0] >= 240,
        IpAddr::V6(to) => to.segments()[..4] == [0x100, 0, 0, 0],
    };
    await_some(LIMIT, &format!("{name}: nat inside: {nat}"), || {
        let servers = kernel::virtual_servers(&node.ns).map_err(|error| format!("{error:#}"))?;
        for family in Family::BOTH {
            for protocol in [Tcp, Udp, Sctp] {
                for (address, nat) in [(service.cluster_ip(family), nat), (service.vip(family), false)] {
                    let to = kernel::active(&servers, protocol, (address, 80).into());
                    let as_wanted = |to: &SocketAddr| is_stand_in(to.ip()) == nat;
                    if to.len() != service.endpoints.len() || !to.iter().all(as_wanted) {
                        return Err(format!("{protocol} {address}: {to:?}"));
                    }
                }
            }
        }
        let marked = servers.iter().filter(|entry| matches!(entry.service.key, ServiceKey::Fwmark { .. }));
        let to = marked.flat_map(|entry| &entry.destinations).map(|entry| entry.destination);
        let mut open = to.filter(|to| to.weight > 0).map(|to| is_stand_in(to.address));
        let count = open.clone().count();
        let missing = nat && count == 0;
        if !missing && open.all(|to| to == nat) {
            Ok(())
        } else {
            Err(format!("{count} destinations by mark"))
        }
    })
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
