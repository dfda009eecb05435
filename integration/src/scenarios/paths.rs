//! Every way from a client to an endpoint and back.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};

use super::Scenario;
use super::ask::{expect, expect_seen_as, refused};
use crate::cluster::{Endpoint, Service};
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Direction, Pod};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::{Connections, Load, Request, await_each};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "direct-return",
        proves: "a client reaches an endpoint on another node through any director, the endpoint sees the client's address, and no packet of the reply passes the director",
        run: direct_return,
    },
    Scenario {
        name: "remote-and-local",
        proves: "every director serves endpoints of its own node and of others, over TCP, UDP and SCTP, with the Service port and the target port differing or equal",
        run: remote_and_local,
    },
    Scenario {
        name: "udp-both-ways",
        proves: "datagrams of up to 1,400 bytes get their answers of the same size from every director, and over IPv4 datagrams larger than the MTU too",
        run: udp_both_ways,
    },
    Scenario {
        name: "host-network",
        proves: "a hostNetwork endpoint is reached from its own node as director and from the others",
        run: host_network,
    },
    Scenario {
        name: "outside-endpoint",
        proves: "an endpoint outside the cluster, where no agent accepts, is reached through the director, which translates both ways",
        run: outside_endpoint,
    },
    Scenario {
        name: "clients-everywhere",
        proves: "clients on every node, in a pod of every node and outside reach a Service by cluster IP and load-balancer IP",
        run: clients_everywhere,
    },
    Scenario {
        name: "hairpin",
        proves: "a pod reaches itself through its own Service, as its only endpoint and as one of two",
        run: hairpin,
    },
    Scenario {
        name: "shared-endpoints",
        proves: "two Services have the same endpoints; each is reached from outside and from an endpoint, by every address and by node ports of its own node and \
                 another; the one goes and is refused, and no request to the other fails",
        run: shared_endpoints,
    },
    Scenario {
        name: "node-port",
        proves: "a NodePort answers on every node for clients outside, in pods and on every node, whichever node the endpoint is on",
        run: node_port,
    },
];

fn direct_return(lab: &mut Lab) -> Result<()> {
    let service = Service::new("direct", 10).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        let director = lab.fabric.node("node-a")?;
        lab.fabric.steer(vip, Some(director))?;
        lab.fabric.reset_counters()?;
        for _ in 0..5 {
            let request = Request::new(Tcp, vip, 80);
            expect_seen_as(&lab.fabric.client, request, "b1", addresses::client(family))?;
        }
        let packets = |direction, node| lab.fabric.packets(direction, node, vip);
        ensure!(packets(Direction::To, "node-a")? >= 15, "{family}: requests did not pass node-a");
        ensure!(packets(Direction::From, "node-b")? >= 15, "{family}: replies did not come from node-b");
        for (direction, node) in [
            (Direction::From, "node-a"),
            (Direction::To, "node-b"),
            (Direction::From, "node-c"),
            (Direction::To, "node-c"),
        ] {
            let count = packets(direction, node)?;
            ensure!(count == 0, "{family}: {count} packets with {vip} {direction:?} {node}");
        }
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}

fn remote_and_local(lab: &mut Lab) -> Result<()> {
    let remapped =
        Service::new("remapped", 11).all_protocols(80, POD_PORT).endpoints([lab.fabric.pod("a1")?]);
    let equal =
        Service::new("equal", 12).all_protocols(POD_PORT, POD_PORT).endpoints([lab.fabric.pod("a1")?]);
    for service in [&remapped, &equal] {
        lab.apply(service)?;
        let port = service.ports[0].port;
        for family in Family::BOTH {
            let vip = service.vip(family);
            for director in &lab.fabric.nodes {
                lab.fabric.steer(vip, Some(director))?;
                for protocol in [Tcp, Udp, Sctp] {
                    expect_seen_as(
                        &lab.fabric.client,
                        Request::new(protocol, vip, port),
                        "a1",
                        addresses::client(family),
                    )
                    .with_context(|| format!("director {}", director.name))?;
                }
                // More than an opening: the connection goes on, and over SCTP too.
                for protocol in [Tcp, Sctp] {
                    Connections::open(&lab.fabric.client, protocol, vip, port, 2)?.check()?;
                }
            }
            lab.fabric.steer(vip, None)?;
        }
    }
    lab.remove(&remapped)?;
    lab.remove(&equal)
}

fn udp_both_ways(lab: &mut Lab) -> Result<()> {
    let service = Service::new("udp", 13).port(Udp, 53, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        for director in &lab.fabric.nodes {
            lab.fabric.steer(vip, Some(director))?;
            // IPVS cannot tunnel an IPv6 datagram that had to be fragmented: a known limit.
            let sizes: &[usize] =
                if family == Family::V4 { &[1, 512, 1400, 1472, 4000] } else { &[1, 512, 1400] };
            for &size in sizes {
                let request = Request::new(Udp, vip, 53).size(size);
                expect_seen_as(&lab.fabric.client, request, "b1", addresses::client(family))
                    .with_context(|| format!("director {}, {size} bytes", director.name))?;
            }
        }
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}

fn host_network(lab: &mut Lab) -> Result<()> {
    let service = Service::new("host-network", 14)
        .all_protocols(80, HOST_PORT)
        .endpoints([lab.fabric.node("node-b")?]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        for director in &lab.fabric.nodes {
            lab.fabric.steer(vip, Some(director))?;
            for protocol in [Tcp, Udp, Sctp] {
                expect_seen_as(
                    &lab.fabric.client,
                    Request::new(protocol, vip, 80),
                    "node-b",
                    addresses::client(family),
                )
                .with_context(|| format!("director {}", director.name))?;
            }
        }
        lab.fabric.steer(vip, None)?;
        for node in &lab.fabric.nodes {
            expect(&node.ns, Request::new(Tcp, vip, 80), "node-b")?;
        }
    }
    lab.remove(&service)
}

fn outside_endpoint(lab: &mut Lab) -> Result<()> {
    let service = Service::new("outside", 15)
        .port(Tcp, 80, POD_PORT)
        .port(Udp, 80, POD_PORT)
        .endpoints([Endpoint::external()]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        for director in &lab.fabric.nodes {
            lab.fabric.steer(vip, Some(director))?;
            for protocol in [Tcp, Udp] {
                let request = Request::new(protocol, vip, 80);
                expect_seen_as(&lab.fabric.client, request, "external", director.address(family))
                    .with_context(|| format!("director {}", director.name))?;
            }
        }
        lab.fabric.steer(vip, None)?;
        expect(&lab.fabric.pod("a1")?.ns, Request::new(Tcp, service.cluster_ip(family), 80), "external")?;
        expect(
            &lab.fabric.node("node-a")?.ns,
            Request::new(Tcp, service.cluster_ip(family), 80),
            "external",
        )?;
    }
    lab.remove(&service)
}

fn clients_everywhere(lab: &mut Lab) -> Result<()> {
    let service =
        Service::new("everywhere", 16).all_protocols(80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        for vip in [service.vip(family), service.cluster_ip(family)] {
            for protocol in [Tcp, Udp, Sctp] {
                let request = Request::new(protocol, vip, 80);
                for node in &lab.fabric.nodes {
                    expect_seen_as(&node.ns, request, "b1", node.address(family))?;
                    let pod = &node.pods[1];
                    expect_seen_as(&pod.ns, request, "b1", pod.address(family))?;
                }
            }
        }
        expect_seen_as(
            &lab.fabric.client,
            Request::new(Tcp, service.vip(family), 80),
            "b1",
            addresses::client(family),
        )?;
    }
    lab.remove(&service)
}

fn hairpin(lab: &mut Lab) -> Result<()> {
    let (b1, b2): (Pod, Pod) = (lab.fabric.pod("b1")?.clone(), lab.fabric.pod("b2")?.clone());
    let only = Service::new("hairpin-only", 17).all_protocols(80, POD_PORT).endpoints([&b1]);
    let two = Service::new("hairpin-two", 18).all_protocols(80, POD_PORT).endpoints([&b1, &b2]);
    lab.apply(&only)?;
    lab.apply(&two)?;
    for family in Family::BOTH {
        for address in [only.vip(family), only.cluster_ip(family)] {
            for protocol in [Tcp, Udp, Sctp] {
                expect(&b1.ns, Request::new(protocol, address, 80), "b1")?;
            }
        }
        for protocol in [Tcp, Udp] {
            let reached = both_answer(&b1.ns, protocol, two.cluster_ip(family))?;
            ensure!(reached, "{family} {protocol}: 40 requests from b1 did not reach both b1 and b2");
        }
    }
    lab.remove(&only)?;
    lab.remove(&two)
}

fn shared_endpoints(lab: &mut Lab) -> Result<()> {
    let pods = [lab.fabric.pod("b1")?.clone(), lab.fabric.pod("c1")?.clone()];
    let service = |name, number, node_port| {
        let service = Service::new(name, number).port(Tcp, 80, POD_PORT).port(Udp, 80, POD_PORT);
        service.node_port(node_port).endpoints(&pods)
    };
    let (goes, stays) = (service("shared-goes", 88, 30243), service("shared-stays", 89, 30244));
    lab.apply(&goes)?;
    lab.apply(&stays)?;
    let targets = |service: &Service, lab: &Lab, family| -> Result<Vec<(IpAddr, u16)>> {
        let node_port = service.ports[0].node_port.context("a node port")?;
        let node = |name| Ok::<_, anyhow::Error>((lab.fabric.node(name)?.address(family), node_port));
        Ok(vec![
            (service.vip(family), 80),
            (service.cluster_ip(family), 80),
            node("node-a")?,
            node("node-b")?,
        ])
    };
    let mut loads = Vec::new();
    for family in Family::BOTH {
        for service in [&goes, &stays] {
            for (address, port) in targets(service, lab, family)? {
                for protocol in [Tcp, Udp] {
                    Request::new(protocol, address, port).send(&pods[0].ns)?;
                }
            }
            // Cluster IPs are not announced.
            let announced = |(address, _): &(IpAddr, u16)| *address != service.cluster_ip(family);
            for (address, port) in targets(service, lab, family)?.into_iter().filter(announced) {
                for protocol in [Tcp, Udp] {
                    Request::new(protocol, address, port).send(&lab.fabric.client)?;
                }
            }
        }
        loads.push(Load::start(&lab.fabric.client, Tcp, stays.vip(family), 80, 1)?);
        loads.push(Load::start(&pods[0].ns, Udp, stays.cluster_ip(family), 80, 1)?);
        loads.push(Load::start(&pods[0].ns, Tcp, lab.fabric.node("node-b")?.address(family), 30244, 1)?);
    }
    let answer = |loads: &[Load]| await_each(loads, 20);
    answer(&loads)?;
    lab.remove(&goes)?;
    answer(&loads)?;
    for family in Family::BOTH {
        // To its load-balancer IP there is no route any more.
        let bound = |(address, _): &(IpAddr, u16)| *address != goes.vip(family);
        for (address, port) in targets(&goes, lab, family)?.into_iter().filter(bound) {
            refused(&pods[0].ns, Tcp, address, port)?;
        }
    }
    loads.into_iter().try_for_each(Load::none_failed)?;
    lab.remove(&stays)
}

/// Whether both endpoints of a Service answer in turn, no request failing.
fn both_answer(from: &NetNs, protocol: Protocol, vip: IpAddr) -> Result<bool> {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        seen.insert(Request::new(protocol, vip, 80).send(from)?.endpoint);
        if seen.len() == 2 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn node_port(lab: &mut Lab) -> Result<()> {
    let service = Service::new("node-port", 19)
        .port(Tcp, 80, POD_PORT)
        .port(Udp, 80, POD_PORT)
        .node_port(30080)
        .endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    let limit = Duration::from_secs(4);
    for family in Family::BOTH {
        for target in &lab.fabric.nodes {
            for protocol in [Tcp, Udp] {
                let request = Request::new(protocol, target.address(family), 30080).within(limit);
                expect(&lab.fabric.client, request, "b1")?;
                for node in &lab.fabric.nodes {
                    expect(&node.ns, request, "b1")?;
                    expect(&node.pods[1].ns, request, "b1")?;
                }
            }
        }
    }
    lab.remove(&service)
}
