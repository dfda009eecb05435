//! The control: the same to IPVS as kube-proxy has it, with source NAT on the director and directors that do not know each other's connections. If no
//! connection were lost here, the figures beside it would mean nothing.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use sheave::cluster::Protocol::Tcp;

use super::super::Scenario;
use super::LONG;
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Node, Silence};
use crate::lab::{Lab, POD_PORT};
use crate::traffic::{Connections, Request};

pub(in super::super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "failover-control-power-cut",
        proves: "IPVS with source NAT, rr and no sloppy TCP, as kube-proxy has it, loses established connections with a director whose power is cut, however fast the fabric is",
        run: |lab| with_kube_proxy(lab, power_cut),
    },
    Scenario {
        name: "failover-control-withdrawn",
        proves: "the same loses them when the route to a director is withdrawn, as when it is drained or leaves",
        run: |lab| with_kube_proxy(lab, withdrawn),
    },
];

/// Its virtual IP and the pods behind it, which are not on the director that goes.
const NUMBER: u8 = 77;
const PODS: [&str; 3] = ["b1", "b2", "c1"];

/// Sets up each node as kube-proxy does, runs a test, and clears all that away.
fn with_kube_proxy(lab: &mut Lab, test: fn(&mut Lab, &[&str]) -> Result<()>) -> Result<()> {
    for node in &lab.fabric.nodes {
        set_up(lab, node)?;
    }
    route(lab, &["node-a", "node-b", "node-c"])?;
    for family in Family::BOTH {
        for _ in 0..10 {
            Request::new(Tcp, addresses::external_vip(family, NUMBER), 80).send(&lab.fabric.client)?;
        }
    }
    test(lab, &["node-b", "node-c"])?;
    for node in &lab.fabric.nodes {
        node.ns.run("ipvsadm -C")?;
        node.ns.run("nft delete table inet kubeproxy")?;
        for family in Family::BOTH {
            let vip = addresses::external_vip(family, NUMBER);
            node.ns.run(&format!("ip {} route del local {vip} dev lo", family.flag()))?;
        }
    }
    for leaf in &lab.fabric.leaves {
        for family in Family::BOTH {
            let vip = addresses::external_vip(family, NUMBER);
            leaf.ns.run(&format!("ip {} route del {vip}/{}", family.flag(), family.bits()))?;
        }
    }
    Ok(())
}

fn set_up(lab: &Lab, node: &Node) -> Result<()> {
    node.ns.sysctl(&[("ipv4.vs.conntrack", "1"), ("ipv4.vs.sloppy_tcp", "0")])?;
    let mut rules =
        String::from("table inet kubeproxy { chain outgoing { type nat hook postrouting priority srcnat;\n");
    for family in Family::BOTH {
        let vip = addresses::external_vip(family, NUMBER);
        node.ns.ip(&format!("route add local {vip} dev lo\n"))?;
        let socket =
            |address: std::net::IpAddr, port: u16| std::net::SocketAddr::new(address, port).to_string();
        node.ns.run(&format!("ipvsadm -A -t {} -s rr", socket(vip, 80)))?;
        for pod in PODS {
            let pod = lab.fabric.pod(pod)?.address(family);
            node.ns.run(&format!("ipvsadm -a -t {} -r {} -m", socket(vip, 80), socket(pod, POD_PORT)))?;
            let ip = if family == Family::V4 { "ip" } else { "ip6" };
            // What a pod's client would see; the links' own addresses are known to nobody.
            let _ = writeln!(
                rules,
                "{ip} saddr {} {ip} daddr {pod} tcp dport {POD_PORT} snat {ip} to {};",
                addresses::client(family),
                node.address(family)
            );
        }
    }
    node.ns.run_with_input("nft -f -", &(rules + "}\n}\n")).map(drop)
}

/// Has the leaves spread what comes for it over these nodes, at once: faster than any protocol tells.
fn route(lab: &Lab, nodes: &[&str]) -> Result<()> {
    for leaf in &lab.fabric.leaves {
        let mut lines = String::new();
        for family in Family::BOTH {
            let vip = addresses::external_vip(family, NUMBER);
            let _ = write!(lines, "route replace {vip}/{}", family.bits());
            for name in nodes {
                let via = addresses::node_link(family, leaf.number, lab.fabric.node(name)?.number);
                let _ = write!(lines, " nexthop via {via} dev {name}");
            }
            lines.push('\n');
        }
        leaf.ns.ip(&lines)?;
    }
    Ok(())
}

fn open(lab: &Lab) -> Result<Vec<(Family, Connections)>> {
    let open = |family| {
        let vip = addresses::external_vip(family, NUMBER);
        Ok((family, Connections::open(&lab.fabric.client, Tcp, vip, 80, LONG)?))
    };
    Family::BOTH.into_iter().map(open).collect()
}

fn power_cut(lab: &mut Lab, left: &[&str]) -> Result<()> {
    let open = open(lab)?;
    let mut silence = Silence::arm(&lab.fabric.node("node-a")?.ns, &["leaf1", "leaf2"])?;
    silence.fall()?;
    route(lab, left)?;
    lose(lab, open)
}

fn withdrawn(lab: &mut Lab, left: &[&str]) -> Result<()> {
    let open = open(lab)?;
    route(lab, left)?;
    lose(lab, open)
}

/// Counts, and wants some to be lost.
fn lose(lab: &mut Lab, open: Vec<(Family, Connections)>) -> Result<()> {
    for (family, mut connections) in open {
        let tally = connections.tally();
        lab.figures.tally(&tally);
        ensure!(tally.reset + tally.lost > 0, "{family}: none was lost: {tally:?}");
    }
    Ok(())
}
