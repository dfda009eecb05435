//! An overlay network between the nodes, as flannel makes it: the fabric knows no pods.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use sheave::cluster::Protocol::{Tcp, Udp};

use super::{
    Scenario, await_segment_size, load, nft_family, nodes_reach, outside_reaches, pods_reach, segment_size,
};
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Fabric, Node};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::netns::NetNs;
use crate::scenarios::ask::{expect, expect_seen_as};
use crate::traffic::{Bulk, Request, bulk};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "beside-overlay",
    proves: "where pods of other nodes are behind a VXLAN overlay and the fabric knows no pods, as with flannel and its masquerading, clients everywhere reach pods and nodes, see as themselves, and bulk transfers fit the overlay's MTU",
    run: overlay,
}];

const BYTES: u64 = 10_000_000;

/// The overlay's device of a family, and its MTU: that of the links less what VXLAN adds.
fn device(family: Family) -> (&'static str, u32) {
    match family {
        Family::V4 => ("flannel.1", 1450),
        Family::V6 => ("flannel-v6.1", 1430),
    }
}

/// Every pod's MTU: the smaller of both.
const POD_MTU: u32 = 1430;

fn overlay(lab: &mut Lab) -> Result<()> {
    let pod = Service::new("overlay", 220)
        .all_protocols(80, POD_PORT)
        .node_port(30220)
        .endpoints([lab.fabric.pod("b1")?]);
    let host = Service::new("overlay-host", 221)
        .all_protocols(80, HOST_PORT)
        .endpoints([lab.fabric.node("node-b")?]);
    lab.apply(&pod)?;
    lab.apply(&host)?;
    let before = segment_size(lab.fabric.node("node-a")?)?;
    lab.fabric.nodes.iter().try_for_each(|node| join(&lab.fabric, node))?;
    await_segment_size(&lab.fabric, before - (1500 - POD_MTU))?;

    outside_reaches(&lab.fabric, &pod, "b1")?;
    outside_reaches(&lab.fabric, &host, "node-b")?;
    pods_reach(&lab.fabric, &pod, "b1")?;
    nodes_reach(&lab.fabric, &pod, "b1")?;
    for family in Family::BOTH {
        // Over UDP, a program on all addresses of a node answers from the overlay's address there, Service or not.
        let client = lab.fabric.pod("c1")?;
        let request = Request::new(Tcp, host.cluster_ip(family), 80);
        expect_seen_as(&client.ns, request, "node-b", client.address(family))?;
        for node in &lab.fabric.nodes {
            for protocol in [Tcp, Udp] {
                let request = Request::new(protocol, node.address(family), 30220);
                expect(&lab.fabric.client, request, "b1")?;
                expect(&lab.fabric.pod("c2")?.ns, request, "b1")?;
            }
        }
    }
    lab.fabric.filter_icmp(true)?;
    for family in Family::BOTH {
        let vip = pod.vip(family);
        for director in ["node-a", "node-b"] {
            lab.fabric.steer(vip, Some(lab.fabric.node(director)?))?;
            for direction in [Bulk::Upload, Bulk::Download] {
                bulk(&lab.fabric.client, vip, 80, direction, BYTES)
                    .with_context(|| format!("director {director}"))?;
            }
        }
        lab.fabric.steer(vip, None)?;
        for client in [&lab.fabric.pod("c1")?.ns, &lab.fabric.node("node-a")?.ns] {
            for direction in [Bulk::Upload, Bulk::Download] {
                bulk(client, pod.cluster_ip(family), 80, direction, BYTES)?;
            }
        }
    }
    lab.fabric.filter_icmp(false)?;

    lab.fabric.nodes.iter().try_for_each(|node| leave(&lab.fabric, node))?;
    await_segment_size(&lab.fabric, before)?;
    lab.remove(&pod)?;
    lab.remove(&host)
}

fn mac(node: u8) -> String {
    format!("02:00:00:00:00:{node:02x}")
}

/// The address of a node's overlay device: the first of its pods' prefix.
fn overlay_address(family: Family, node: u8) -> String {
    let cidr = addresses::pod_cidr(family, node);
    cidr.split('/').next().unwrap_or_default().to_owned()
}

/// What flannel does on a node: a device that knows all other nodes, routes over it, and masquerading of all that comes
/// from elsewhere and goes to pods.
fn join(fabric: &Fabric, node: &Node) -> Result<()> {
    let mut lines = String::new();
    for family in Family::BOTH {
        let (name, mtu) = device(family);
        let own = overlay_address(family, node.number);
        let _ = writeln!(
            lines,
            "link add {name} mtu {mtu} address {} type vxlan id 1 local {} dstport 8472 nolearning",
            mac(node.number),
            node.address(family)
        );
        let nodad = if family == Family::V6 { " nodad" } else { "" };
        let _ = writeln!(lines, "addr add {own}/{} dev {name}{nodad}\nlink set {name} up", family.bits());
        for other in fabric.nodes.iter().filter(|other| other.number != node.number) {
            let gateway = overlay_address(family, other.number);
            let _ = writeln!(
                lines,
                "neigh replace {gateway} lladdr {} dev {name} nud permanent\nroute add {} via {gateway} dev {name} onlink",
                mac(other.number),
                addresses::pod_cidr(family, other.number)
            );
        }
    }
    node.ns.ip(&lines)?;
    for family in Family::BOTH {
        for other in fabric.nodes.iter().filter(|other| other.number != node.number) {
            let (name, _) = device(family);
            node.ns.run(&format!(
                "bridge fdb append {} dev {name} dst {}",
                mac(other.number),
                other.address(family)
            ))?;
            load(&node.ns, &masquerading(family, node.number))?;
        }
    }
    set_pod_mtu(node, POD_MTU)?;
    for leaf in &fabric.leaves {
        let routes = Family::BOTH.map(|family| {
            format!("{} route del {}\n", family.flag(), addresses::pod_cidr(family, node.number))
        });
        routes.iter().try_for_each(|route| run_ip(&leaf.ns, route))?;
    }
    Ok(())
}

fn leave(fabric: &Fabric, node: &Node) -> Result<()> {
    for family in Family::BOTH {
        node.ns.ip(&format!("link del {}\n", device(family).0))?;
        load(&node.ns, &format!("delete table {} flannel\n", nft_family(family)))?;
    }
    set_pod_mtu(node, 1500)?;
    fabric.mend(node)
}

fn run_ip(ns: &NetNs, line: &str) -> Result<()> {
    ns.run(&format!("ip {line}")).map(drop)
}

fn set_pod_mtu(node: &Node, mtu: u32) -> Result<()> {
    node.pods.iter().try_for_each(|pod| {
        node.ns.ip(&format!("link set {} mtu {mtu}\n", pod.name))?;
        pod.ns.ip(&format!("link set {} mtu {mtu}\n", node.name))
    })
}

/// flannel's rules in the nat and filter tables.
fn masquerading(family: Family, node: u8) -> String {
    let ip = nft_family(family);
    let own = addresses::pod_cidr(family, node);
    let [_, pods, ..] = addresses::cluster_prefixes(family);
    // flannel masquerades; here the links' addresses are routed to nowhere.
    let source = addresses::node(family, node);
    let multicast = if family == Family::V4 { "224.0.0.0/4" } else { "ff00::/8" };
    format!(
        "add table {ip} flannel
delete table {ip} flannel
table {ip} flannel {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    meta mark & 0x4000 == 0x4000 return
    {ip} saddr {own} {ip} daddr {pods} return
    {ip} saddr {pods} {ip} daddr {own} return
    {ip} saddr {pods} {ip} daddr != {multicast} snat to {source}
    {ip} saddr != {pods} {ip} daddr {own} return
    {ip} saddr != {pods} {ip} daddr {pods} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter;
    {ip} saddr {pods} accept
    {ip} daddr {pods} accept
  }}
}}
"
    )
}
