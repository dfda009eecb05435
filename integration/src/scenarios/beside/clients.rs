//! Pods and nodes that are clients where rules of others judge by connection state: within the cluster *nat*, outside direct
//! return.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};

use super::calico::{self, Ingress};
use super::{Scenario, complains, complaints, firewall, nft_family, outside_reaches, with_rules};
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Direction, Fabric};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::netns::NetNs;
use crate::scenarios::ask::{expect, expect_seen_as};
use crate::scenarios::nat::INTERNAL_NAT;
use crate::traffic::{Bulk, Request, bulk};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "beside-calico-client-nat",
        proves: "with nat within the cluster alone, a pod that an ingress policy closes reaches pods everywhere as itself, nodes, and another one itself, over TCP, UDP and SCTP, while answers to clients outside go round the director; `sheave check` has no more to say",
        run: client_policy,
    },
    Scenario {
        name: "beside-host-firewall-client-nat",
        proves: "with nat within the cluster alone, the programs of a node whose firewall lets in only what was asked for reach Services everywhere; `sheave check` says so before",
        run: host_firewall,
    },
];

fn client_policy(lab: &mut Lab) -> Result<()> {
    let services = everywhere(lab)?;
    let closed = Ingress { pod: "c1", allows: None };
    // The policy of a pod that reaches itself sees it as itself; the pod sees its node.
    let (itself, client) = (lab.fabric.pod("a1")?, lab.fabric.pod("c1")?);
    let sources = Family::BOTH.map(|family| {
        let (ip, itself, client) = (nft_family(family), itself.address(family), client.address(family));
        format!("{ip} saddr {{ {itself}, {client} }}")
    });
    let [itself, itself6] = sources.each_ref().map(|allows| Ingress { pod: "a1", allows: Some(allows) });
    let policies = [(Family::V4, closed), (Family::V6, closed), (Family::V4, itself), (Family::V6, itself6)];
    // Agents that start see the overlay at once.
    calico::overlay(lab, true)?;
    restart_all(lab, INTERNAL_NAT)?;
    services.iter().try_for_each(|(service, _)| lab.apply(service))?;
    calico::await_overlay(lab, true)?;
    calico::with_policies(lab, &policies, |lab| {
        let about_clients = complaints(lab, "node-c")?;
        ensure!(
            !about_clients.iter().any(|finding| finding.to_string().contains("established")),
            "sheave check: {about_clients:#?}"
        );
        let client = lab.fabric.pod("c1")?;
        for (service, endpoint) in &services {
            for family in Family::BOTH {
                // A program on all addresses of a node answers UDP to a pod from the overlay's; and what a CNI makes of the
                // source of a pod that asks a node is its own affair (docs/cni.md).
                let (protocols, peer) = match endpoint.starts_with("node") {
                    true => (&[Tcp, Sctp][..], None),
                    false => (&[Tcp, Udp, Sctp][..], Some(client.address(family))),
                };
                reaches(&client.ns, service, family, protocols, endpoint, peer)?;
            }
        }
        let (to_a1, _) = &services[0];
        let itself = lab.fabric.pod("a1")?;
        for family in Family::BOTH {
            let host = lab.fabric.node("node-a")?.address(family);
            reaches(&itself.ns, to_a1, family, &[Tcp, Udp, Sctp], "a1", Some(host))?;
            for direction in [Bulk::Upload, Bulk::Download] {
                bulk(&client.ns, to_a1.cluster_ip(family), 80, direction, 5_000_000)?;
            }
        }
        Ok(())
    })?;
    calico::overlay(lab, false)?;
    let (to_b1, _) = &services[1];
    outside_reaches(&lab.fabric, to_b1, "b1")?;
    Family::BOTH.into_iter().try_for_each(|family| direct_return(&lab.fabric, to_b1, family))?;
    services.iter().try_for_each(|(service, _)| lab.remove(service))?;
    restart_all(lab, "")?;
    calico::await_overlay(lab, false)
}

fn host_firewall(lab: &mut Lab) -> Result<()> {
    let services = everywhere(lab)?;
    // What is tunnelled, and what other nodes ask pods here; nothing about answers of Services.
    let from_nodes = Family::BOTH.map(|family| {
        let [nodes, ..] = addresses::cluster_prefixes(family);
        format!("{} saddr {nodes} accept\n    ", nft_family(family))
    });
    let rules = firewall::rules(
        "meta mark & 0x2000 == 0x2000 accept",
        &format!("iifname {{ \"sheave4\", \"sheave6\" }} accept\n    {}", from_nodes.concat()),
    );
    with_rules(
        lab,
        &["inet firewall"],
        |_| rules.clone(),
        |lab| complains(lab, "node-c", "warn", "established"),
    )?;
    restart_all(lab, INTERNAL_NAT)?;
    services.iter().try_for_each(|(service, _)| lab.apply(service))?;
    with_rules(
        lab,
        &["inet firewall"],
        |_| rules.clone(),
        |lab| {
            for (service, endpoint) in &services {
                // The firewall opens the servers of nodes themselves for TCP.
                let protocols = if endpoint.starts_with("node") { &[Tcp][..] } else { &[Tcp, Udp, Sctp] };
                for node in &lab.fabric.nodes {
                    for family in Family::BOTH {
                        let peer = node.address(family);
                        reaches(&node.ns, service, family, protocols, endpoint, Some(peer))?;
                    }
                }
            }
            outside_reaches(&lab.fabric, &services[1].0, "b1")
        },
    )?;
    services.iter().try_for_each(|(service, _)| lab.remove(service))?;
    restart_all(lab, "")
}

/// Services with one endpoint each: pods of all nodes, and two nodes.
fn everywhere(lab: &Lab) -> Result<Vec<(Service, &'static str)>> {
    let mut services = Vec::new();
    for (number, pod) in (231..).zip(["a1", "b1", "c2"]) {
        let service = Service::new(&format!("to-{pod}"), number).all_protocols(80, POD_PORT);
        services.push((service.endpoints([lab.fabric.pod(pod)?]), pod));
    }
    for (number, node) in (234..).zip(["node-b", "node-c"]) {
        let service = Service::new(&format!("to-{node}"), number).all_protocols(80, HOST_PORT);
        services.push((service.endpoints([lab.fabric.node(node)?]), node));
    }
    Ok(services)
}

fn restart_all(lab: &mut Lab, services: &str) -> Result<()> {
    lab.node_names().iter().try_for_each(|name| lab.restart_with(name, services))
}

/// By cluster IP and load-balancer IP, and seen as that address, if one is given.
fn reaches(
    from: &NetNs,
    service: &Service,
    family: Family,
    protocols: &[Protocol],
    endpoint: &str,
    peer: Option<IpAddr>,
) -> Result<()> {
    for vip in [service.vip(family), service.cluster_ip(family)] {
        for protocol in protocols {
            let answer = expect(from, Request::new(*protocol, vip, 80), endpoint)?;
            ensure!(
                peer.is_none_or(|peer| peer == answer.peer),
                "{} → {protocol} {vip}: {endpoint} saw {}, not {peer:?}",
                from.name(),
                answer.peer
            );
        }
    }
    Ok(())
}

/// No packet from the VIP leaves the director.
fn direct_return(fabric: &Fabric, service: &Service, family: Family) -> Result<()> {
    let vip = service.vip(family);
    fabric.steer(vip, Some(fabric.node("node-a")?))?;
    fabric.reset_counters()?;
    for protocol in [Tcp, Udp, Sctp] {
        let request = Request::new(protocol, vip, 80);
        expect_seen_as(&fabric.client, request, "b1", addresses::client(family)).context("outside")?;
    }
    let sent = |node| fabric.packets(Direction::From, node, vip);
    let (director, home) = (sent("node-a")?, sent("node-b")?);
    ensure!(
        director == 0 && home > 0,
        "{family}: {director} packets of {vip} from node-a, {home} from node-b"
    );
    fabric.steer(vip, None)
}
