//! Traffic policies and whatever else decides which endpoints a node may use, and whether it announces.

use std::collections::BTreeSet;
use std::iter;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};

use super::ask::{expect, expect_seen_as, refused, silence};
use super::{Scenario, announced};
use crate::cluster::{Condition, Endpoint, Service};
use crate::fabric::addresses::{self, Family};
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::Request;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "policy-external-local",
        proves: "with externalTrafficPolicy Local only nodes with an endpoint announce; from outside each uses its own alone, which sees the client, \
                 and a node without one drops; pods and nodes get all endpoints by every address of their node",
        run: external_local,
    },
    Scenario {
        name: "policy-internal-local",
        proves: "with internalTrafficPolicy Local the cluster IP leads to endpoints of the client's node alone, or nowhere; load-balancer IP \
                 and node port lead to all",
        run: internal_local,
    },
    Scenario {
        name: "policy-both-local",
        proves: "with both policies Local the cluster IP is bound to the node for clients within, the other addresses for clients outside alone",
        run: both_local,
    },
    Scenario {
        name: "topology",
        proves: "hints for zones and for nodes are followed where every endpoint has them and one is for here, else all endpoints are used; as \
                 the zone of a Node changes",
        run: topology,
    },
    Scenario {
        name: "published-not-ready",
        proves: "endpoints that are published though they are not ready get connections, even while they terminate",
        run: published_not_ready,
    },
    Scenario {
        name: "not-ours",
        proves: "load-balancer IPs with ipMode Proxy or of another loadBalancerClass are neither announced nor taken, while cluster IP and node \
                 port work; of a Service of another proxy nothing is served",
        run: not_ours,
    },
    Scenario {
        name: "excluded-node",
        proves: "a Node with the label that excludes it from external load balancers is withdrawn, still forwards what comes, and is announced \
                 again without the label",
        run: excluded_node,
    },
];

/// How soon the agents and the routers follow a change.
const LIMIT: Duration = Duration::from_secs(40);

/// Requests after which every endpoint that may be chosen has been.
const TRIES: usize = 40;

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// A client and where it asks.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) from: &'a NetNs,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

impl Way<'_> {
    pub(super) fn request(&self, protocol: Protocol) -> Request {
        Request::new(protocol, self.address, self.port)
    }

    /// Wants exactly these endpoints to answer: over TCP each at some time, and over no protocol any other.
    pub(super) fn leads_to(&self, endpoints: &[&str]) -> Result<()> {
        let mut seen = BTreeSet::new();
        let mut ask = |protocol| -> Result<usize> {
            let answer = self.request(protocol).send(self.from)?;
            ensure!(
                endpoints.contains(&&*answer.endpoint),
                "{} → {protocol} {}: {} answered, which is none of {endpoints:?}",
                self.from.name(),
                self.address,
                answer.endpoint
            );
            seen.insert(answer.endpoint);
            Ok(seen.len())
        };
        ask(Udp)?;
        ask(Sctp)?;
        for tries in 1..=TRIES {
            if ask(Tcp)? == endpoints.len() && tries > endpoints.len() {
                return Ok(());
            }
        }
        bail!(
            "{} → {}: in {TRIES} requests only {seen:?} of {endpoints:?} answered",
            self.from.name(),
            self.address
        )
    }

    /// Waits until each of these endpoints answers, and no other, in a few tries over each protocol.
    pub(super) fn await_change(&self, endpoints: &[&str]) -> Result<()> {
        await_some(LIMIT, &format!("{endpoints:?} at {}", self.address), || {
            let mut seen = BTreeSet::new();
            let tries = [Udp, Sctp].into_iter().chain(iter::repeat_n(Tcp, 6 * endpoints.len()));
            for protocol in tries {
                let request = self.request(protocol).within(Duration::from_secs(1));
                let answer = request.send(self.from).map_err(|error| format!("{error:#}"))?;
                if !endpoints.contains(&&*answer.endpoint) {
                    return Err(answer.endpoint);
                }
                seen.insert(answer.endpoint);
            }
            if seen.len() == endpoints.len() { Ok(()) } else { Err(format!("{seen:?} alone")) }
        })
    }
}

/// Waits until both leaves send what comes for these addresses to exactly these nodes, while every agent runs on.
fn await_directors(lab: &mut Lab, vips: [IpAddr; 2], nodes: &[&str]) -> Result<()> {
    announced::await_directors(lab, &vips, nodes)?;
    lab.ensure_running()
}

fn endpoints(lab: &Lab, names: &[&str]) -> Result<Vec<Endpoint>> {
    names.iter().map(|name| lab.fabric.pod(name).map(Endpoint::from)).collect()
}

fn external_local(lab: &mut Lab) -> Result<()> {
    const NODE_PORT: u16 = 30081;
    let external_ip = |family| addresses::external_vip(family, 82);
    let service = Service::new("local", 81)
        .all_protocols(80, POD_PORT)
        .node_port(NODE_PORT)
        .external_ip(external_ip(Family::V4))
        .external_ip(external_ip(Family::V6))
        .spec("externalTrafficPolicy", "Local")
        .endpoints(endpoints(lab, &["b1", "b2", "c1"])?);
    lab.source.apply(&service)?;
    await_directors(lab, service.vips(), &["node-b", "node-c"])?;
    await_directors(lab, Family::BOTH.map(external_ip), &["node-b", "node-c"])?;
    for family in Family::BOTH {
        let own = [("node-a", &[][..]), ("node-b", &["b1", "b2"]), ("node-c", &["c1"])];
        for (name, endpoints) in own {
            let node = lab.fabric.node(name)?;
            let from = &lab.fabric.client;
            for (address, port) in
                [(service.vip(family), 80), (external_ip(family), 80), (node.address(family), NODE_PORT)]
            {
                let way = Way { from, address, port };
                if port == 80 {
                    lab.fabric.steer(address, Some(node))?;
                }
                if endpoints.is_empty() {
                    silence(&[Tcp, Udp, Sctp].map(|protocol| (from, way.request(protocol))))?;
                } else {
                    way.leads_to(endpoints).with_context(|| format!("through {name}"))?;
                    let answer = way.request(Tcp).send(from)?;
                    ensure!(answer.peer == addresses::client(family), "{name}: seen as {}", answer.peer);
                }
            }
            for from in [&node.ns, &node.pods[1].ns] {
                for (address, port) in [
                    (service.vip(family), 80),
                    (service.cluster_ip(family), 80),
                    (external_ip(family), 80),
                    (node.address(family), NODE_PORT),
                ] {
                    Way { from, address, port }.leads_to(&["b1", "b2", "c1"])?;
                }
            }
        }
        lab.fabric.steer(service.vip(family), None)?;
        lab.fabric.steer(external_ip(family), None)?;
    }

    let moved = service.endpoints(endpoints(lab, &["a1"])?);
    lab.source.apply(&moved)?;
    await_directors(lab, moved.vips(), &["node-a"])?;
    for family in Family::BOTH {
        let request = Request::new(Tcp, moved.vip(family), 80);
        expect_seen_as(&lab.fabric.client, request, "a1", addresses::client(family))?;
    }
    lab.remove(&moved)
}

fn internal_local(lab: &mut Lab) -> Result<()> {
    const NODE_PORT: u16 = 30083;
    let service = Service::new("internal-local", 83)
        .all_protocols(80, POD_PORT)
        .node_port(NODE_PORT)
        .spec("internalTrafficPolicy", "Local")
        .endpoints(endpoints(lab, &["b1", "c1", "c2"])?);
    lab.source.apply(&service)?;
    await_directors(lab, service.vips(), &NODES)?;
    for family in Family::BOTH {
        let own = [("node-a", &[][..]), ("node-b", &["b1"]), ("node-c", &["c1", "c2"])];
        for (name, endpoints) in own {
            let node = lab.fabric.node(name)?;
            for from in [&node.ns, &node.pods[1].ns] {
                let way = Way { from, address: service.cluster_ip(family), port: 80 };
                if endpoints.is_empty() {
                    silence(&[Tcp, Udp, Sctp].map(|protocol| (from, way.request(protocol))))?;
                } else {
                    way.leads_to(endpoints)?;
                }
                Way { from, address: service.vip(family), port: 80 }.leads_to(&["b1", "c1", "c2"])?;
                let address = node.address(family);
                Way { from, address, port: NODE_PORT }.leads_to(&["b1", "c1", "c2"])?;
            }
            lab.fabric.steer(service.vip(family), Some(node))?;
            let way = Way { from: &lab.fabric.client, address: service.vip(family), port: 80 };
            way.leads_to(&["b1", "c1", "c2"])?;
        }
        lab.fabric.steer(service.vip(family), None)?;
    }
    // Where there is no endpoint anywhere the client is told so.
    let empty = service.clone().without_endpoints();
    lab.apply(&empty)?;
    for family in Family::BOTH {
        for protocol in [Tcp, Udp] {
            refused(&lab.fabric.pod("a1")?.ns, protocol, service.cluster_ip(family), 80)?;
        }
    }
    lab.remove(&service)
}

fn both_local(lab: &mut Lab) -> Result<()> {
    let service = Service::new("both-local", 84)
        .all_protocols(80, POD_PORT)
        .spec("externalTrafficPolicy", "Local")
        .spec("internalTrafficPolicy", "Local")
        .endpoints(endpoints(lab, &["a1", "b1"])?);
    lab.source.apply(&service)?;
    await_directors(lab, service.vips(), &["node-a", "node-b"])?;
    for family in Family::BOTH {
        let (vip, cluster_ip) = (service.vip(family), service.cluster_ip(family));
        for (name, endpoint) in [("node-a", "a1"), ("node-b", "b1")] {
            let node = lab.fabric.node(name)?;
            lab.fabric.steer(vip, Some(node))?;
            Way { from: &lab.fabric.client, address: vip, port: 80 }.leads_to(&[endpoint])?;
            for from in [&node.ns, &node.pods[1].ns] {
                Way { from, address: cluster_ip, port: 80 }.leads_to(&[endpoint])?;
                Way { from, address: vip, port: 80 }.leads_to(&["a1", "b1"])?;
            }
        }
        let from = &lab.fabric.pod("c1")?.ns;
        silence(&[(from, Request::new(Tcp, cluster_ip, 80))])?;
        Way { from, address: vip, port: 80 }.leads_to(&["a1", "b1"])?;
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}

const ZONE: &str = "topology.kubernetes.io/zone";

/// Sets a label of a Node, or takes it away.
fn set_label(lab: &Lab, node: &str, key: &str, value: Option<&str>) -> Result<()> {
    lab.source.change_node(node, |object| {
        let labels = &mut object["metadata"]["labels"];
        match value {
            Some(value) => labels[key] = value.into(),
            None => drop(labels.as_object_mut().map(|labels| labels.remove(key))),
        }
    })
}

fn topology(lab: &mut Lab) -> Result<()> {
    for (node, zone) in [("node-a", "east"), ("node-b", "east"), ("node-c", "west")] {
        set_label(lab, node, ZONE, Some(zone))?;
    }
    let service =
        Service::new("hints", 85).all_protocols(80, POD_PORT).spec("trafficDistribution", "PreferSameZone");
    let hinted = |zone_of: [(&str, &[&str], &[&str]); 3]| -> Result<Vec<Endpoint>> {
        zone_of
            .into_iter()
            .map(|(name, zones, nodes)| Ok(Endpoint::from(lab.fabric.pod(name)?).hints(zones, nodes)))
            .collect()
    };
    let by_zone = service.clone().endpoints(hinted([
        ("a1", &["east"], &[]),
        ("b1", &["east"], &[]),
        ("c1", &["west"], &[]),
    ])?);
    let one_without = service.clone().endpoints(hinted([
        ("a1", &["east"], &[]),
        ("b1", &["east"], &[]),
        ("c1", &[], &[]),
    ])?);
    let by_node = service.spec("trafficDistribution", "PreferSameNode").endpoints(hinted([
        ("a1", &["east"], &["node-a"]),
        ("b1", &["east"], &["node-b"]),
        ("c1", &["west"], &["node-b"]),
    ])?);
    let all: &[&str] = &["a1", "b1", "c1"];
    let (east, west): (&[&str], &[&str]) = (&["a1", "b1"], &["c1"]);

    lab.source.apply(&by_zone)?;
    from_each_node(lab, &by_zone, [east, east, west])?;
    // No endpoint is for this zone, nor for a node without one: all are used.
    set_label(lab, "node-b", ZONE, Some("north"))?;
    set_label(lab, "node-c", ZONE, None)?;
    from_each_node(lab, &by_zone, [east, all, all])?;
    set_label(lab, "node-c", ZONE, Some("east"))?;
    lab.source.apply(&one_without)?;
    from_each_node(lab, &one_without, [all, all, all])?;
    lab.source.apply(&by_node)?;
    // Of node-c's own there is none: its zone's.
    from_each_node(lab, &by_node, [&["a1"], &["b1", "c1"], east])?;
    for node in NODES {
        set_label(lab, node, ZONE, None)?;
    }
    lab.remove(&by_node)
}

/// From a pod and the node itself, on each node in turn.
fn from_each_node(lab: &Lab, service: &Service, endpoints: [&[&str]; 3]) -> Result<()> {
    for (node, endpoints) in lab.fabric.nodes.iter().zip(endpoints) {
        for family in Family::BOTH {
            let address = service.cluster_ip(family);
            let way = Way { from: &node.pods[1].ns, address, port: 80 };
            way.await_change(endpoints).with_context(|| node.name.clone())?;
            way.leads_to(endpoints)?;
            Way { from: &node.ns, address, port: 80 }.leads_to(endpoints)?;
        }
    }
    Ok(())
}

fn published_not_ready(lab: &mut Lab) -> Result<()> {
    let pod = |name| lab.fabric.pod(name).map(Endpoint::from);
    let service = Service::new("published", 86).all_protocols(80, POD_PORT).endpoints([
        pod("b1")?.condition(Condition::Published),
        pod("c1")?,
        pod("a1")?.condition(Condition::NotReady),
    ]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        for address in [service.cluster_ip(family), service.vip(family)] {
            Way { from: &lab.fabric.pod("a2")?.ns, address, port: 80 }.leads_to(&["b1", "c1"])?;
        }
        Way { from: &lab.fabric.client, address: service.vip(family), port: 80 }.leads_to(&["b1", "c1"])?;
    }
    lab.remove(&service)
}

fn not_ours(lab: &mut Lab) -> Result<()> {
    const NODE_PORT: u16 = 30087;
    let plain = |name, number| -> Result<Service> {
        Ok(Service::new(name, number).port(Tcp, 80, POD_PORT).endpoints(endpoints(lab, &["b1"])?))
    };
    let ingress = |service: Service| {
        let ips = service.vips();
        service.ingress(ips.map(|ip| json!({"ip": ip, "ipMode": "Proxy"})).to_vec())
    };
    let proxied = ingress(plain("proxied", 87)?.node_port(NODE_PORT));
    let of_other_class = plain("other-class", 88)?.spec("loadBalancerClass", "example.com/other");
    let of_other_proxy = plain("other-proxy", 89)?.label("service.kubernetes.io/service-proxy-name", "other");
    let witness = plain("ours", 90)?;
    for service in [&proxied, &of_other_class, &of_other_proxy] {
        lab.source.apply(service)?;
    }
    // What was told before it has been followed, too.
    lab.apply(&witness)?;
    for service in [&proxied, &of_other_class, &of_other_proxy] {
        await_directors(lab, service.vips(), &[])?;
    }
    for family in Family::BOTH {
        let pod = &lab.fabric.pod("a1")?.ns;
        for service in [&proxied, &of_other_class] {
            expect(pod, Request::new(Tcp, service.cluster_ip(family), 80), "b1")?;
            // Left to the routers, who know no such address.
            refused_by_routers(pod, service.vip(family))?;
        }
        expect(&lab.fabric.client, Request::new(Tcp, lab.fabric.nodes[0].address(family), NODE_PORT), "b1")?;
        refused(pod, Tcp, of_other_proxy.cluster_ip(family), 80)?;
        refused_by_routers(pod, of_other_proxy.vip(family))?;
    }
    for service in [&proxied, &of_other_class, &of_other_proxy, &witness] {
        lab.remove(service)?;
    }
    Ok(())
}

/// The leaves know no way to a virtual IP that nobody announces, and say so.
fn refused_by_routers(from: &NetNs, vip: IpAddr) -> Result<()> {
    let error = match Request::new(Tcp, vip, 80).send(from) {
        Ok(answer) => bail!("{vip}: answered by {}", answer.endpoint),
        Err(error) => format!("{error:#}"),
    };
    ensure!(
        error.contains("unreachable") || error.contains("No route"),
        "{vip}: not left to the routers: {error}"
    );
    Ok(())
}

fn excluded_node(lab: &mut Lab) -> Result<()> {
    const LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
    let service = Service::new("excluding", 91).port(Tcp, 80, POD_PORT).endpoints(endpoints(lab, &["b1"])?);
    lab.apply(&service)?;
    let vips = service.vips();
    set_label(lab, "node-b", LABEL, Some(""))?;
    await_directors(lab, vips, &["node-a", "node-c"])?;
    for family in Family::BOTH {
        let request = Request::new(Tcp, service.vip(family), 80);
        expect(&lab.fabric.client, request, "b1")?;
        // A router that has not heard of it yet.
        lab.fabric.steer(service.vip(family), Some(lab.fabric.node("node-b")?))?;
        expect(&lab.fabric.client, request, "b1")?;
        lab.fabric.steer(service.vip(family), None)?;
    }
    set_label(lab, "node-b", LABEL, None)?;
    await_directors(lab, vips, &NODES)?;
    lab.remove(&service)
}
