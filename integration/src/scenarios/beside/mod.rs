//! Beside others on the node: overlay networks, CNIs with rules of their own, policies, source checks, host firewalls.
//!
//! Each scenario puts on the nodes what the other program would, drives real traffic and takes it away again.

mod calico;
mod clients;
mod firewall;
mod overlay;
mod policies;
mod sources;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};

use super::Scenario;
use super::ask::expect_seen_as;
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Fabric, Node};
use crate::lab::Lab;
use crate::netns::NetNs;
use crate::traffic::Request;
use crate::wait::await_some;

/// All of them.
pub(super) fn scenarios() -> Vec<Scenario> {
    [
        overlay::SCENARIOS,
        calico::SCENARIOS,
        clients::SCENARIOS,
        policies::SCENARIOS,
        sources::SCENARIOS,
        firewall::SCENARIOS,
    ]
    .concat()
}

/// The families' names in nft.
fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Loads rules into a namespace.
fn load(ns: &NetNs, rules: &str) -> Result<()> {
    ns.run_with_input("nft -f -", rules).map(drop).with_context(|| format!("rules of {}", ns.name()))
}

/// Does `body` while every node has these rules; `tables` are those that the rules make.
fn with_rules(
    lab: &mut Lab,
    tables: &[&str],
    rules: impl Fn(&Node) -> String,
    body: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<()> {
    for node in &lab.fabric.nodes {
        load(&node.ns, &rules(node))?;
    }
    body(lab)?;
    let gone: String = tables.iter().map(|table| format!("delete table {table}\n")).collect();
    lab.fabric.nodes.iter().try_for_each(|node| load(&node.ns, &gone))
}

/// What a node tells clients of the size of their TCP segments over IPv4.
fn segment_size(node: &Node) -> Result<u32> {
    let rules = node.ns.run("nft list chain inet sheave mss")?;
    let size = rules.lines().find(|line| line.contains("ip saddr")).and_then(|line| line.rsplit(' ').next());
    size.and_then(|size| size.parse().ok())
        .with_context(|| format!("no segment size on {}: {rules}", node.name))
}

/// Waits until every agent has seen what its uplinks carry: an agent looks every 15 s.
fn await_segment_size(fabric: &Fabric, wanted: u32) -> Result<()> {
    for node in &fabric.nodes {
        await_some(Duration::from_secs(40), &format!("segments of {wanted} bytes on {}", node.name), || {
            match segment_size(node) {
                Ok(size) if size == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    Ok(())
}

/// The client outside reaches `endpoint` through every director, over every protocol, and is seen as itself.
fn outside_reaches(fabric: &Fabric, service: &Service, endpoint: &str) -> Result<()> {
    for family in Family::BOTH {
        let vip = service.vip(family);
        for director in &fabric.nodes {
            fabric.steer(vip, Some(director))?;
            for protocol in [Tcp, Udp, Sctp] {
                expect_seen_as(
                    &fabric.client,
                    Request::new(protocol, vip, 80),
                    endpoint,
                    addresses::client(family),
                )
                .with_context(|| format!("director {}", director.name))?;
            }
        }
        fabric.steer(vip, None)?;
    }
    Ok(())
}

/// From everywhere: the client, pods, nodes.
fn all_reach(fabric: &Fabric, service: &Service, endpoint: &str) -> Result<()> {
    outside_reaches(fabric, service, endpoint)?;
    pods_reach(fabric, service, endpoint)?;
    nodes_reach(fabric, service, endpoint)
}

/// A pod of every node does so by cluster IP and by load-balancer IP.
fn pods_reach(fabric: &Fabric, service: &Service, endpoint: &str) -> Result<()> {
    for family in Family::BOTH {
        for vip in [service.vip(family), service.cluster_ip(family)] {
            for protocol in [Tcp, Udp, Sctp] {
                for pod in fabric.nodes.iter().map(|node| &node.pods[1]) {
                    let request = Request::new(protocol, vip, 80);
                    expect_seen_as(&pod.ns, request, endpoint, pod.address(family))?;
                }
            }
        }
    }
    Ok(())
}

/// Every node does so.
fn nodes_reach(fabric: &Fabric, service: &Service, endpoint: &str) -> Result<()> {
    for family in Family::BOTH {
        for vip in [service.vip(family), service.cluster_ip(family)] {
            for protocol in [Tcp, Udp, Sctp] {
                for node in &fabric.nodes {
                    let request = Request::new(protocol, vip, 80);
                    expect_seen_as(&node.ns, request, endpoint, node.address(family))?;
                }
            }
        }
    }
    Ok(())
}

/// What `sheave check` finds on a node that is not as it should be for these Services, with the remedies.
fn complaints(lab: &Lab, node: &str) -> Result<Vec<Value>> {
    let mut check = lab.sheave(node, "check");
    check.args(["-o", "json", "--node", node, "--config"]).arg(lab.config(node));
    check.arg("--manifests").arg(lab.source.manifests()?.dir());
    let output = check.output().context("sheave check")?;
    let answer: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!("sheave check on {node}: {}", String::from_utf8_lossy(&output.stderr).trim_end())
    })?;
    let findings = answer["findings"].as_array().context("sheave check: no findings")?;
    Ok(findings.iter().filter(|finding| finding["severity"] != "ok").cloned().collect())
}

/// Wants `sheave check` to complain with these words, and with a remedy.
fn complains(lab: &Lab, node: &str, severity: &str, words: &str) -> Result<()> {
    let complaints = complaints(lab, node)?;
    let named = complaints.iter().any(|complaint| {
        complaint["severity"] == severity
            && complaint["remedy"].is_string()
            && (complaint["subject"].to_string() + &complaint["found"].to_string()).contains(words)
    });
    ensure!(named, "sheave check on {node} has no {severity} with {words:?} and a remedy: {complaints:#?}");
    Ok(())
}

/// Wants `sheave check` to find nothing about rules of others.
fn content(lab: &Lab, node: &str) -> Result<()> {
    let about_rules: Vec<Value> = complaints(lab, node)?
        .into_iter()
        .filter(|complaint| {
            complaint["subject"].as_str().is_some_and(|subject| subject.starts_with("chain "))
        })
        .collect();
    ensure!(about_rules.is_empty(), "sheave check on {node}: {about_rules:#?}");
    Ok(())
}
