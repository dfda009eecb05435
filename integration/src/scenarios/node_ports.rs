//! NodePorts: on the addresses they are for, and on no other.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};

use super::Scenario;
use super::ask::{expect, refused};
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::{Request, Server};
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "node-port-addresses",
    proves: "node ports listen on the node's primary addresses, or on those that nodePortAddresses selects; a program of the node's own on the \
             same port is reached on the others",
    run: node_port_addresses,
}];

/// How soon an agent follows.
const LIMIT: Duration = Duration::from_secs(30);

const NODE: &str = "node-b";
const NODE_PORT: u16 = 30079;
const PROTOCOLS: [Protocol; 3] = [Tcp, Udp, Sctp];

fn node_port_addresses(lab: &mut Lab) -> Result<()> {
    give_second_address(lab)?;
    let service = Service::new("ports", 79)
        .all_protocols(80, POD_PORT)
        .node_port(NODE_PORT)
        .endpoints([lab.fabric.pod("c1")?]);
    lab.apply(&service)?;
    let first = |lab: &Lab, family| lab.fabric.node(NODE).map(|node| node.address(family));
    let second = |family| addresses::second(family, 2);

    for family in Family::BOTH {
        everybody(lab, first(lab, family)?, "c1")?;
        for protocol in [Tcp, Udp] {
            refused(&lab.fabric.client, protocol, second(family), NODE_PORT)?;
        }
    }
    // On each address, since an answer to a datagram has that as its source then.
    let both: Vec<IpAddr> = Family::BOTH
        .into_iter()
        .map(|family| Ok([first(lab, family)?, second(family)]))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let listener = Server::start_on(
        &lab.fabric.node(NODE)?.ns,
        &both,
        "listener",
        &PROTOCOLS.map(|protocol| (protocol, NODE_PORT)),
    )?;
    for family in Family::BOTH {
        everybody(lab, first(lab, family)?, "c1")?;
        everybody(lab, second(family), "listener")?;
        // Nor are other ports any matter of ours.
        for address in [first(lab, family)?, second(family)] {
            expect(&lab.fabric.client, Request::new(Tcp, address, HOST_PORT), NODE)?;
        }
    }

    let selected = Family::BOTH.map(|family| format!("\"{}/{}\"", second(family), family.bits()));
    lab.restart_with(NODE, &format!("  nodePortAddresses: [{}]\n", selected.join(", ")))?;
    for family in Family::BOTH {
        soon(&lab.fabric.client, second(family), "c1")?;
        soon(&lab.fabric.client, first(lab, family)?, "listener")?;
        everybody(lab, second(family), "c1")?;
        everybody(lab, first(lab, family)?, "listener")?;
    }

    lab.restart_with(NODE, "")?;
    lab.remove(&service)?;
    for family in Family::BOTH {
        soon(&lab.fabric.client, second(family), "listener")?;
        everybody(lab, first(lab, family)?, "listener")?;
    }
    drop(listener);
    take_second_address(lab)
}

/// The client, pods and nodes are answered by `name` over every protocol.
fn everybody(lab: &Lab, address: IpAddr, name: &str) -> Result<()> {
    let pods = ["a1", "b2"].map(|name| lab.fabric.pod(name).map(|pod| &pod.ns));
    let nodes = ["node-a", NODE].map(|name| lab.fabric.node(name).map(|node| &node.ns));
    for from in pods.into_iter().chain(nodes).chain([Ok(&lab.fabric.client)]) {
        let from = from?;
        for protocol in PROTOCOLS {
            expect(from, Request::new(protocol, address, NODE_PORT), name)?;
        }
    }
    Ok(())
}

/// Waits until the client is answered by `name`.
fn soon(from: &NetNs, address: IpAddr, name: &str) -> Result<()> {
    let request = Request::new(Tcp, address, NODE_PORT).within(Duration::from_secs(1));
    await_some(LIMIT, &format!("{name} answers at {address}"), || {
        expect(from, request, name).map(drop).map_err(|error| format!("{error:#}"))
    })
}

fn give_second_address(lab: &Lab) -> Result<()> {
    let node = lab.fabric.node(NODE)?;
    for family in Family::BOTH {
        let second = addresses::second(family, node.number);
        node.ns.ip(&format!("addr add {second}/{} dev lo\n", family.bits()))?;
        for leaf in &lab.fabric.leaves {
            let via = addresses::node_link(family, leaf.number, node.number);
            leaf.ns.ip(&format!("route replace {second}/{} via {via}\n", family.bits()))?;
        }
    }
    lab.source.change_node(NODE, |object| {
        if let Some(known) = object["status"]["addresses"].as_array_mut() {
            known.extend(Family::BOTH.map(|family| {
                serde_json::json!({"type": "InternalIP", "address": addresses::second(family, node.number)})
            }));
        }
    })
}

fn take_second_address(lab: &Lab) -> Result<()> {
    let node = lab.fabric.node(NODE)?;
    lab.source.change_node(NODE, |object| {
        if let Some(known) = object["status"]["addresses"].as_array_mut() {
            known.truncate(Family::BOTH.len());
        }
    })?;
    for family in Family::BOTH {
        let second = addresses::second(family, node.number);
        node.ns.ip(&format!("addr del {second}/{} dev lo\n", family.bits()))?;
        for leaf in &lab.fabric.leaves {
            leaf.ns.run(&format!("ip {} route del {second}/{}", family.flag(), family.bits()))?;
        }
    }
    Ok(())
}
