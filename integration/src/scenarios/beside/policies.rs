//! Network policies on the veth of an endpoint.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};

use super::{Scenario, load};
use crate::cluster::Service;
use crate::fabric::Node;
use crate::fabric::addresses::{self, Family};
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::scenarios::ask::{expect, expect_seen_as};
use crate::traffic::Request;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "beside-policies",
    proves: "an ingress policy on an endpoint sees the client's address and the target port, whichever node is the director: who is allowed gets through, others do not, by VIP and by NodePort of the endpoint's node",
    run: policies,
}];

const NODE_PORT: u16 = 30222;

fn policies(lab: &mut Lab) -> Result<()> {
    let service = Service::new("policy", 222)
        .all_protocols(80, POD_PORT)
        .node_port(NODE_PORT)
        .endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    // Of the clients outside, in a pod of another node and in a pod of the endpoint's own node.
    let allowed = |family| -> Result<[IpAddr; 3]> {
        let pod = |name| Ok::<_, anyhow::Error>(lab.fabric.pod(name)?.address(family));
        Ok([addresses::client(family), pod("c1")?, pod("b2")?])
    };
    let node = lab.fabric.node("node-b")?;
    load(&node.ns, &ingress_policy("b1", &[allowed(Family::V4)?, allowed(Family::V6)?].concat()))?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        for director in &lab.fabric.nodes {
            lab.fabric.steer(vip, Some(director))?;
            for protocol in [Tcp, Udp, Sctp] {
                let request = Request::new(protocol, vip, 80);
                expect_seen_as(&lab.fabric.client, request, "b1", addresses::client(family))
                    .with_context(|| format!("director {}", director.name))?;
            }
            for protocol in [Tcp, Udp] {
                denied(node, &lab.fabric.external, protocol, vip, 80)
                    .with_context(|| format!("director {}", director.name))?;
            }
        }
        lab.fabric.steer(vip, None)?;
        let cluster_ip = service.cluster_ip(family);
        for client in ["c1", "b2"].map(|name| lab.fabric.pod(name)) {
            let client = client?;
            for protocol in [Tcp, Udp, Sctp] {
                let request = Request::new(protocol, cluster_ip, 80);
                expect_seen_as(&client.ns, request, "b1", client.address(family))?;
            }
        }
        for name in ["a1", "c2"] {
            denied(node, &lab.fabric.pod(name)?.ns, Tcp, cluster_ip, 80)?;
        }
        // Its own node translates only the destination; any other gives its own address as the source, as kube-proxy does.
        for protocol in [Tcp, Udp] {
            expect(&lab.fabric.client, Request::new(protocol, node.address(family), NODE_PORT), "b1")?;
            denied(node, &lab.fabric.external, protocol, node.address(family), NODE_PORT)?;
            let other = lab.fabric.node("node-a")?.address(family);
            denied(node, &lab.fabric.client, protocol, other, NODE_PORT)?;
        }
    }
    load(&node.ns, "delete table inet netpol\n")?;
    lab.remove(&service)
}

/// As a CNI writes it: stateful, by the pod's interface, and all else is dropped.
fn ingress_policy(pod: &str, allowed: &[IpAddr]) -> String {
    let list = |v4: bool| {
        let mut members: Vec<String> =
            allowed.iter().filter(|address| address.is_ipv4() == v4).map(ToString::to_string).collect();
        members.sort();
        members.join(", ")
    };
    format!(
        "table inet netpol {{
  counter denied {{ }}
  chain forward {{
    type filter hook forward priority filter;
    oifname \"{pod}\" jump ingress
  }}
  chain ingress {{
    ct state established,related accept
    ct state invalid drop
    meta l4proto {{ tcp, udp, sctp }} th dport {POD_PORT} ip saddr {{ {} }} accept
    meta l4proto {{ tcp, udp, sctp }} th dport {POD_PORT} ip6 saddr {{ {} }} accept
    meta l4proto {{ icmp, icmpv6 }} accept
    counter name denied drop
  }}
}}
",
        list(true),
        list(false)
    )
}

/// Wants no answer, and that because the policy dropped the packet.
fn denied(node: &Node, from: &NetNs, protocol: Protocol, address: IpAddr, port: u16) -> Result<()> {
    node.ns.run("nft reset counter inet netpol denied")?;
    let request = Request::new(protocol, address, port).within(Duration::from_millis(700));
    if let Ok(answer) = request.send(from) {
        bail!("{} → {protocol} {address} port {port}: answered by {}", from.name(), answer.endpoint);
    }
    let counter = node.ns.run("nft list counter inet netpol denied")?;
    ensure!(
        !counter.contains("packets 0 "),
        "{} → {protocol} {address} port {port}: no answer, but not because of the policy",
        from.name()
    );
    Ok(())
}
