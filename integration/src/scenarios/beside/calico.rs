//! A CNI that filters with marks, connection states and knowledge of tunnels, as Calico's Felix does, on an IPIP overlay
//! between the nodes; and what a kube-proxy that is gone may have left.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};

use super::{
    Scenario, await_segment_size, complains, content, nft_family, nodes_reach, outside_reaches, pods_reach,
    with_rules,
};
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Fabric, Node};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::scenarios::ask::{expect, expect_seen_as, silence};
use crate::scenarios::pods::await_passing;
use crate::traffic::{Bulk, Request, bulk};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "beside-calico",
        proves: "beside rules like Calico's (marks 0xffff0000, per-workload chains by connection state, protocol 4 from its hosts to local addresses only, an IPIP overlay) and marks 0xc000 of an earlier kube-proxy, clients everywhere reach pods and nodes, by any node's NodePort too",
        run: calico,
    },
    Scenario {
        name: "beside-calico-client-policy",
        proves: "a pod under an ingress policy of such a CNI gets its answers from a Service that is forwarded by nat, and of one in a tunnel only where the policy admits virtual IPs as sources",
        run: client_policy,
    },
    Scenario {
        name: "beside-calico-pod-acceptance",
        proves: "where such a CNI lets pods send from their own address alone, a pod that accepts itself answers nobody, `sheave check` refuses that with the remedy, and with acceptance by the node everything works",
        run: pod_acceptance,
    },
];

/// What clients are told of the size of their segments, where all links carry 1,500 bytes and packets may come in GUE.
const SEGMENTS: u32 = 1428;

/// What a policy says of a pod.
#[derive(Clone, Copy)]
pub(super) struct Ingress<'a> {
    pub(super) pod: &'a str,
    /// An nft match, or none that anything meets.
    pub(super) allows: Option<&'a str>,
}

fn calico(lab: &mut Lab) -> Result<()> {
    let pod = Service::new("calico", 227)
        .all_protocols(80, POD_PORT)
        .node_port(30227)
        .endpoints([lab.fabric.pod("b1")?]);
    let host = Service::new("calico-host", 228)
        .all_protocols(80, HOST_PORT)
        .endpoints([lab.fabric.node("node-b")?]);
    lab.apply(&pod)?;
    lab.apply(&host)?;
    beside(lab, |lab| {
        for (service, endpoint) in [(&pod, "b1"), (&host, "node-b")] {
            outside_reaches(&lab.fabric, service, endpoint)?;
            nodes_reach(&lab.fabric, service, endpoint)?;
        }
        pods_reach(&lab.fabric, &pod, "b1")?;
        node_ports(&lab.fabric, 30227, "b1")?;
        for family in Family::BOTH {
            // A program on all addresses of a node answers UDP to a pod from the overlay's (docs/cni.md).
            for client in ["a2", "b2", "c2"] {
                let request = Request::new(Tcp, host.vip(family), 80);
                expect(&lab.fabric.pod(client)?.ns, request, "node-b")?;
            }
            expect(&lab.fabric.pod("b1")?.ns, Request::new(Tcp, pod.cluster_ip(family), 80), "b1")?;
            for client in [&lab.fabric.client, &lab.fabric.pod("c1")?.ns] {
                for direction in [Bulk::Upload, Bulk::Download] {
                    bulk(client, pod.vip(family), 80, direction, 5_000_000)?;
                }
            }
        }
        Ok(())
    })?;
    lab.remove(&pod)?;
    lab.remove(&host)
}

/// The client outside and pods of all nodes reach an endpoint by every node's address. It sees whoever rewrote the source
/// last: the director, unless it is the endpoint's own node; before it the CNI, for a pod that asks another node.
fn node_ports(fabric: &Fabric, port: u16, endpoint: &str) -> Result<()> {
    let home = fabric.pod(endpoint)?.node;
    for (family, director) in Family::BOTH.into_iter().flat_map(|f| fabric.nodes.iter().map(move |n| (f, n)))
    {
        let request = |protocol| Request::new(protocol, director.address(family), port);
        for protocol in [Tcp, Udp, Sctp] {
            expect(&fabric.client, request(protocol), endpoint)?;
            for node in &fabric.nodes {
                let pod = &node.pods[1];
                let peer = match director.number {
                    number if number == node.number => pod.address(family),
                    number if number == home => node.address(family),
                    _ => director.address(family),
                };
                expect_seen_as(&pod.ns, request(protocol), endpoint, peer)?;
            }
        }
    }
    Ok(())
}

fn client_policy(lab: &mut Lab) -> Result<()> {
    let endpoint = [lab.fabric.pod("b1")?];
    let tunnelled = Service::new("tunnelled", 229).all_protocols(80, POD_PORT).endpoints(endpoint);
    let rewritten = Service::new("rewritten", 230)
        .all_protocols(80, POD_PORT)
        .annotate("sheave.io/forwarding", "nat")
        .endpoints(endpoint);
    lab.apply(&tunnelled)?;
    lab.apply(&rewritten)?;
    let [_, _, external, cluster] = addresses::cluster_prefixes(Family::V4);
    let [_, _, external6, cluster6] = addresses::cluster_prefixes(Family::V6);
    let vips = format!("ip saddr {{ {external}, {cluster} }}");
    let vips6 = format!("ip6 saddr {{ {external6}, {cluster6} }}");
    let closed = Ingress { pod: "c1", allows: None };
    overlay(lab, true)?;
    await_overlay(lab, true)?;
    with_policies(lab, &[(Family::V4, closed), (Family::V6, closed)], |lab| {
        complains(lab, "node-c", "warn", "decides in chain tw-c1 in table ip calico and another chain")?;
        let client = lab.fabric.pod("c1")?;
        for family in Family::BOTH {
            for protocol in [Tcp, Udp] {
                let request = Request::new(protocol, rewritten.cluster_ip(family), 80);
                expect(&client.ns, request, "b1")?;
            }
            let request = Request::new(Tcp, tunnelled.cluster_ip(family), 80);
            let answer = request.within(Duration::from_millis(700)).send(&client.ns);
            ensure!(
                answer.is_err(),
                "{family}: the policy lets answers from a VIP pass: docs/cni.md says otherwise"
            );
        }
        Ok(())
    })?;
    let open = |allows| Ingress { pod: "c1", allows: Some(allows) };
    with_policies(lab, &[(Family::V4, open(vips.as_str())), (Family::V6, open(vips6.as_str()))], |lab| {
        let client = lab.fabric.pod("c1")?;
        for family in Family::BOTH {
            for protocol in [Tcp, Udp] {
                let request = Request::new(protocol, tunnelled.cluster_ip(family), 80);
                expect_seen_as(&client.ns, request, "b1", client.address(family))?;
            }
        }
        Ok(())
    })?;
    overlay(lab, false)?;
    await_overlay(lab, false)?;
    lab.remove(&tunnelled)?;
    lab.remove(&rewritten)
}

fn pod_acceptance(lab: &mut Lab) -> Result<()> {
    const ACCEPTANCE: &str = "sheave.io/acceptance";
    let b1 = lab.fabric.pod("b1")?.clone();
    let service = Service::new("spoofed", 231).all_protocols(80, POD_PORT).endpoints([&b1]);
    lab.apply(&service)?;
    beside(lab, |lab| {
        lab.apply(&service.clone().annotate(ACCEPTANCE, "pod"))?;
        await_passing(lab, "node-b", Family::BOTH.map(|family| b1.address(family)), true)?;
        let client = &lab.fabric.client;
        for family in Family::BOTH {
            let request = |protocol| (client, Request::new(protocol, service.vip(family), 80));
            silence(&[request(Tcp), request(Udp)])?;
        }
        complains(lab, "node-b", "fail", "raw-PREROUTING")?;
        complains(lab, "node-b", "fail", "acceptance in pods")?;

        lab.apply(&service)?;
        await_passing(lab, "node-b", Family::BOTH.map(|family| b1.address(family)), false)?;
        content(lab, "node-b")?;
        outside_reaches(&lab.fabric, &service, "b1")
    })?;
    lab.remove(&service)
}

/// Does `body` with such a CNI on every node.
fn beside(lab: &mut Lab, body: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    overlay(lab, true)?;
    await_overlay(lab, true)?;
    with_policies(lab, &[], body)?;
    overlay(lab, false)?;
    await_overlay(lab, false)
}

/// Does `body` with the rules of such a CNI on every node.
pub(super) fn with_policies(
    lab: &mut Lab,
    policies: &[(Family, Ingress<'_>)],
    body: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<()> {
    let hosts = |family| {
        lab.fabric.nodes.iter().map(|node| node.address(family).to_string()).collect::<Vec<_>>().join(", ")
    };
    let hosts = Family::BOTH.map(hosts);
    let rules = |node: &Node| {
        Family::BOTH
            .into_iter()
            .zip(&hosts)
            .map(|(family, hosts)| {
                let of_family = policies.iter().filter(|(of, _)| *of == family).map(|(_, policy)| *policy);
                felix(family, node, hosts, &of_family.collect::<Vec<_>>()) + &kube_proxy(family)
            })
            .collect()
    };
    let tables = ["ip calico", "ip6 calico", "ip kube", "ip6 kube"];
    with_rules(lab, &tables, rules, body)
}

/// Waits until every agent goes by the overlay, or by links alone. Before, agents take the overlay's device for one of those that bring no answers from VIPs.
pub(super) fn await_overlay(lab: &Lab, on: bool) -> Result<()> {
    await_segment_size(&lab.fabric, if on { SEGMENTS - 20 } else { SEGMENTS })
}

/// Puts the overlay on every node, or takes it away.
pub(super) fn overlay(lab: &Lab, on: bool) -> Result<()> {
    lab.fabric.nodes.iter().try_for_each(|node| overlay_of(&lab.fabric, node, on))
}

/// IPv4 pods of other nodes are behind `tunl0`, the kernel's own IPIP device; IPv6 pods are routed.
fn overlay_of(fabric: &Fabric, node: &Node, on: bool) -> Result<()> {
    let mut lines = String::new();
    let own = format!("10.244.{}.1", node.number);
    if on {
        let _ = writeln!(lines, "link set tunl0 mtu 1480 up\naddr add {own}/32 dev tunl0");
    }
    for other in fabric.nodes.iter().filter(|other| other.number != node.number) {
        let cidr = addresses::pod_cidr(Family::V4, other.number);
        let _ = if on {
            writeln!(lines, "route add {cidr} via {} dev tunl0 onlink", other.address(Family::V4))
        } else {
            writeln!(lines, "route del {cidr} dev tunl0")
        };
    }
    if !on {
        let _ = writeln!(lines, "addr del {own}/32 dev tunl0\nlink set tunl0 down");
    }
    node.ns.ip(&lines)
}

/// The rules by which Felix (Calico 3.2x, iptables and nft dataplane alike) judges packets: `felix/rules/static.go` and
/// `endpoints.go`, for the pods of a node, with `defaultEndpointToHostAction: Accept`.
fn felix(family: Family, node: &Node, hosts: &str, policies: &[Ingress<'_>]) -> String {
    let ip = nft_family(family);
    let [_, pool, ..] = addresses::cluster_prefixes(family);
    // `natOutgoingAddress`: plain masquerading takes the address of the link, and those are routed to nowhere here.
    let outgoing = node.address(family);
    let list = node.pods.iter().map(|pod| format!("\"{}\"", pod.name)).collect::<Vec<_>>().join(", ");
    let workloads = format!("{{ {list} }}");
    // The nft way to say so of protocol 4: `ipip` is another number. Felix knows no such rule for IPv6.
    let (ipip_in, ipip_out, ipip_from_workload, tunnel_source) = match family {
        Family::V4 => (
            format!(
                "ip protocol 4 ip saddr {{ {hosts} }} fib daddr type local accept\n    ip protocol 4 drop"
            ),
            format!("ip protocol 4 ip daddr {{ {hosts} }} fib saddr type local accept"),
            "ip protocol 4 drop",
            "oifname \"tunl0\" fib saddr . oif type != local fib saddr type local masquerade",
        ),
        Family::V6 => (String::new(), String::new(), "", ""),
    };
    let stateful = "ct state established,related accept
    ct state invalid drop
    meta mark set meta mark & 0xfffcffff";
    let mut endpoints = String::new();
    for pod in &node.pods {
        let name = &pod.name;
        let ingress = match policies.iter().find(|policy| policy.pod == name) {
            None => String::new(),
            Some(Ingress { allows: None, .. }) => "drop".to_owned(),
            Some(Ingress { allows: Some(allows), .. }) => {
                format!("{allows} meta mark set meta mark | 0x10000 return\n    drop")
            }
        };
        let _ = write!(
            endpoints,
            "  chain tw-{name} {{
    {stateful}
    {ingress}
    meta mark set meta mark | 0x10000
  }}
  chain fw-{name} {{
    {stateful}
    udp dport 4789 drop
    {ipip_from_workload}
    meta mark set meta mark | 0x10000
  }}
"
        );
    }
    let dispatch = |of: &str, device: &str| {
        let jumps: String =
            node.pods.iter().map(|pod| format!("    {device} \"{0}\" goto {of}-{0}\n", pod.name)).collect();
        format!("{jumps}    drop")
    };
    let (from_workload, to_workload) = (dispatch("fw", "iifname"), dispatch("tw", "oifname"));
    format!(
        "add table {ip} calico
delete table {ip} calico
table {ip} calico {{
{endpoints}
  chain from_workload {{
{from_workload}
  }}
  chain to_workload {{
{to_workload}
  }}
  chain raw-PREROUTING {{
    type filter hook prerouting priority raw;
    meta mark set meta mark & 0xfff0ffff
    iifname {workloads} meta mark set meta mark | 0x40000
    meta mark & 0x40000 == 0x40000 fib saddr . mark . iif oif missing drop
  }}
  chain mangle-PREROUTING {{
    type filter hook prerouting priority mangle;
    ct state established,related accept
    meta mark & 0x10000 == 0x10000 accept
  }}
  chain filter-INPUT {{
    type filter hook input priority filter;
    {ipip_in}
    iifname {workloads} goto workload_to_host
    meta mark & 0x10000 == 0x10000 accept
    meta mark set meta mark & 0xfff0ffff
  }}
  chain workload_to_host {{
    jump from_workload
    accept
  }}
  chain filter-FORWARD {{
    type filter hook forward priority filter;
    meta mark set meta mark & 0xfff1ffff
    iifname {workloads} jump from_workload
    oifname {workloads} jump to_workload
    meta mark & 0x10000 == 0x10000 accept
  }}
  chain filter-OUTPUT {{
    type filter hook output priority filter;
    meta mark & 0x10000 == 0x10000 accept
    oifname {workloads} return
    {ipip_out}
    meta mark set meta mark & 0xfff0ffff
  }}
  chain nat-POSTROUTING {{
    type nat hook postrouting priority srcnat;
    {ip} saddr {pool} {ip} daddr != {pool} snat to {outgoing}
    {tunnel_source}
  }}
}}
"
    )
}

/// What stays of a kube-proxy in iptables mode until somebody removes it, and kubelet's own: rules by mark and state.
fn kube_proxy(family: Family) -> String {
    let ip = nft_family(family);
    format!(
        "add table {ip} kube
delete table {ip} kube
table {ip} kube {{
  chain firewall-INPUT {{
    type filter hook input priority filter;
    meta mark & 0x8000 == 0x8000 drop
  }}
  chain firewall-OUTPUT {{
    type filter hook output priority filter;
    meta mark & 0x8000 == 0x8000 drop
  }}
  chain FORWARD {{
    type filter hook forward priority filter;
    ct state invalid drop
    meta mark & 0x4000 == 0x4000 accept
    ct state established,related accept
  }}
  chain POSTROUTING {{
    type nat hook postrouting priority srcnat;
    meta mark & 0x4000 != 0x4000 return
    meta mark set meta mark ^ 0x4000
    masquerade
  }}
}}
"
    )
}
