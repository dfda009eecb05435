//! Nodes that route pods to each other by BGP among themselves: full mesh, and by way of a reflector.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};

use super::Scenario;
use crate::fabric::Node;
use crate::fabric::addresses::{self, Family};
use crate::lab::{Lab, POD_PORT};
use crate::traffic::{Load, Request, await_each};
use crate::wait::await_some;

/// How long agents and sessions may take to come up.
const LIMIT: Duration = Duration::from_secs(40);
const CONFIG: &str = include_str!("../../../examples/route-reflector/sheave.yaml");
const NODES: &str = include_str!("../../../examples/route-reflector/manifests/nodes.yaml");
/// Where pods are.
const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "mesh",
        proves: "nodes that are told nothing but to mesh find each other as Nodes, and their pods reach each other over what they learn and nothing else, under load \
                 also while an agent restarts by SIGTERM and SIGKILL; a node that goes to another AS is let go, with its routes, and taken again, and no other session notices",
        run: |lab| with_links(lab, mesh),
    },
    Scenario {
        name: "route-reflector",
        proves: "with one node a route reflector and the others its clients (examples/route-reflector) pods of clients reach each other directly over what the reflector \
                 passes on, under load also while the reflector restarts by SIGTERM and SIGKILL",
        run: |lab| with_links(lab, route_reflector),
    },
];

/// Gives the nodes a link between every two of them, no other way to each other's pods than what they learn, and back.
fn with_links(lab: &mut Lab, test: fn(&mut Lab) -> Result<()>) -> Result<()> {
    let names = lab.node_names();
    for one in &lab.fabric.nodes {
        for other in lab.fabric.nodes.iter().filter(|other| other.number > one.number) {
            let (there, here) = (link(other), link(one));
            one.ns.ip(&format!("link add name {there} type veth peer name {here} netns {}\n", other.name))?;
            one.ns.ip(&towards(one, other))?;
            other.ns.ip(&towards(other, one))?;
        }
        // Behind learnt routes, before the default one.
        one.ns.ip(&PODS.map(|prefix| format!("route add unreachable {prefix} metric 10000\n")).concat())?;
    }
    for name in &names {
        lab.restart_configured(name, CONFIG)?;
    }
    test(lab)?;
    // What Nodes said before.
    lab.source.manifests()?.change_node(&names[0], |_| {})?;
    for name in &names {
        lab.restart_with(name, "")?;
    }
    for one in &lab.fabric.nodes {
        await_peers(lab, one, 4)?;
        for other in lab.fabric.nodes.iter().filter(|other| other.number > one.number) {
            one.ns.ip(&format!("link del {}\n", link(other)))?;
        }
        for (family, prefix) in Family::BOTH.iter().zip(PODS) {
            one.ns.run(&format!("ip {} route flush proto 85", family.flag()))?;
            one.ns.ip(&format!("route del unreachable {prefix} metric 10000\n"))?;
        }
    }
    Ok(())
}

/// The device that leads to a node.
fn link(to: &Node) -> String {
    format!("to-{}", to.name)
}

/// A node's end of a link: the other one's address is on it, and so is its own.
fn towards(own: &Node, other: &Node) -> String {
    let device = link(other);
    let mut lines = format!("link set {device} up\n");
    for family in Family::BOTH {
        let (here, there, bits) = (own.address(family), other.address(family), family.bits());
        let option = if family == Family::V6 { " nodad" } else { "" };
        lines += &format!("addr add {here}/{bits} dev {device}{option}\n");
        lines += &format!("route add {there}/{bits} dev {device} src {here}\n");
    }
    lines
}

fn peers(lab: &Lab, node: &Node) -> Result<Vec<Value>> {
    Ok(lab.status(&node.name)?["peers"].as_array().context("peers")?.clone())
}

/// Waits until a node has that many peers, all with a session.
fn await_peers(lab: &Lab, node: &Node, count: usize) -> Result<()> {
    await_some(LIMIT, &format!("{count} sessions of {}", node.name), || {
        let peers = peers(lab, node).map_err(|error| format!("{error:#}"))?;
        let up = peers.iter().filter(|peer| peer["state"] == "Established").count();
        if peers.len() == count && up == count { Ok(()) } else { Err(format!("{peers:?}")) }
    })
}

/// Waits until a node's kernel has learnt the ways to the pods of these others, and of nobody else.
fn await_routes(node: &Node, others: &[u8]) -> Result<()> {
    let mut expected: Vec<String> = Family::BOTH
        .iter()
        .flat_map(|&family| {
            let route = move |other: &u8| {
                format!("{} via {}", addresses::pod_cidr(family, *other), addresses::node(family, *other))
            };
            others.iter().map(route)
        })
        .collect();
    expected.sort();
    await_some(LIMIT, &format!("{expected:?} in the kernel of {}", node.name), || {
        let mut found = Vec::new();
        for family in Family::BOTH {
            let routes = node.ns.run(&format!("ip {} route show proto 85", family.flag()));
            let routes = routes.map_err(|error| format!("{error:#}"))?;
            found.extend(
                routes.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")),
            );
        }
        found.sort();
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
}

fn await_all_routes(lab: &Lab) -> Result<()> {
    lab.fabric.nodes.iter().try_for_each(|node| {
        let others: Vec<u8> =
            lab.fabric.nodes.iter().map(|other| other.number).filter(|other| *other != node.number).collect();
        await_routes(node, &others)
    })
}

/// Every node's first pod asks the second pod of every other.
fn pods_reach_each_other(lab: &Lab) -> Result<()> {
    for from in &lab.fabric.nodes {
        for to in lab.fabric.nodes.iter().filter(|to| to.number != from.number) {
            let (asks, asked) = (&from.pods[0], &to.pods[1]);
            for family in Family::BOTH {
                for protocol in [Tcp, Udp, Sctp] {
                    let answer = Request::new(protocol, asked.address(family), POD_PORT).send(&asks.ns);
                    let answer =
                        answer.with_context(|| format!("{protocol} from {} to {}", asks.name, asked.name))?;
                    ensure!(
                        answer.endpoint == asked.name && answer.peer == asks.address(family),
                        "{answer:?}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// No request from one pod to another fails while the agent of a node restarts.
fn under_load(lab: &mut Lab, [from, to]: [&str; 2], restarts: &str) -> Result<()> {
    let (from, to) = (lab.fabric.pod(from)?.clone(), lab.fabric.pod(to)?.clone());
    let loads = Family::BOTH.map(|family| Load::start(&from.ns, Tcp, to.address(family), POD_PORT, 2));
    let [v4, v6] = loads;
    let (v4, v6) = (v4?, v6?);
    let counts = lab.fabric.nodes.iter().map(|node| Ok(peers(lab, node)?.len()));
    let counts = counts.collect::<Result<Vec<_>>>()?;
    for kill in [false, true] {
        if kill {
            lab.kill_agent(restarts)?;
        } else {
            lab.stop_agent(restarts)?;
        }
        await_each([&v4, &v6], 30)?;
        lab.start_agent(restarts)?;
        await_all_routes(lab)?;
        for (node, count) in lab.fabric.nodes.iter().zip(&counts) {
            await_peers(lab, node, *count)?;
        }
        await_each([&v4, &v6], 60)?;
    }
    v4.stop()?.ensure_none_failed().context("IPv4")?;
    v6.stop()?.ensure_none_failed().context("IPv6")
}

fn mesh(lab: &mut Lab) -> Result<()> {
    for node in &lab.fabric.nodes {
        await_peers(lab, node, 2)?;
    }
    await_all_routes(lab)?;
    pods_reach_each_other(lab)?;
    under_load(lab, ["a1", "b1"], "node-b")?;

    let uptime = |lab: &Lab| -> Result<u64> {
        let of_b = lab.fabric.nodes[1].address(Family::V4).to_string();
        let peers = peers(lab, &lab.fabric.nodes[0])?;
        let peer = peers.iter().find(|peer| peer["address"] == of_b.as_str());
        peer.and_then(|peer| peer["uptimeSeconds"].as_u64()).with_context(|| format!("{peers:?}"))
    };
    let before = uptime(lab)?;
    let asn = |lab: &Lab, asn: Option<&str>| {
        lab.source.manifests()?.change_node("node-c", |node| {
            let annotations = &mut node["metadata"]["annotations"];
            match asn {
                Some(asn) => annotations["sheave.io/asn"] = asn.into(),
                None => drop(annotations.as_object_mut().map(|all| all.remove("sheave.io/asn"))),
            }
        })
    };
    asn(lab, Some("64513"))?;
    await_routes(&lab.fabric.nodes[0], &[2])?;
    await_routes(&lab.fabric.nodes[1], &[1])?;
    await_peers(lab, &lab.fabric.nodes[0], 1)?;
    ensure!(peers(lab, &lab.fabric.nodes[2])?.is_empty(), "node-c has peers still");
    asn(lab, None)?;
    await_all_routes(lab)?;
    pods_reach_each_other(lab)?;
    ensure!(uptime(lab)? > before, "the session of node-a with node-b began anew");
    Ok(())
}

fn route_reflector(lab: &mut Lab) -> Result<()> {
    let path = lab.source.manifests()?.dir().join("nodes.yaml");
    std::fs::write(&path, NODES).with_context(|| path.display().to_string())?;
    for (node, count) in lab.fabric.nodes.iter().zip([2, 1, 1]) {
        await_peers(lab, node, count)?;
    }
    await_all_routes(lab)?;
    pods_reach_each_other(lab)?;
    let status = lab.status("node-a")?;
    ensure!(status["reflected"] == 4, "node-a passes on {}", status["reflected"]);
    under_load(lab, ["b1", "c1"], "node-a")
}
