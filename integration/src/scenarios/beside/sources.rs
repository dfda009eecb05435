//! Strict source checks on the nodes.

use anyhow::{Context, Result};

use super::{Scenario, all_reach, complains, content, load, with_rules};
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::netns::NetNs;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "beside-rp-filter",
        proves: "with strict source checks (rp_filter 1) on every interface of nodes and pods before the agents start, clients everywhere reach pods and nodes",
        run: rp_filter,
    },
    Scenario {
        name: "beside-fib-filter",
        proves: "a rule that drops IPv6 packets whose source leads elsewhere (firewalld's IPv6_rpfilter) is named by `sheave check`, and with the exceptions that this asks for everything works",
        run: fib_filter,
    },
];

/// Sets it on every interface, those to come included.
fn set_rp_filter(ns: &NetNs, value: &'static str) -> Result<()> {
    ns.enter(|| -> std::io::Result<()> {
        for entry in std::fs::read_dir("/proc/sys/net/ipv4/conf")? {
            std::fs::write(entry?.path().join("rp_filter"), value)?;
        }
        Ok(())
    })?
    .with_context(|| format!("rp_filter of {}", ns.name()))
}

fn rp_filter(lab: &mut Lab) -> Result<()> {
    let pod = Service::new("strict", 223).all_protocols(80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    let host = Service::new("strict-host", 224)
        .all_protocols(80, HOST_PORT)
        .endpoints([lab.fabric.node("node-b")?]);
    // An agent that has just been started may not have come to where it ends in order.
    lab.apply(&pod)?;
    let names = lab.node_names();
    names.iter().try_for_each(|name| lab.stop_agent(name))?;
    for node in &lab.fabric.nodes {
        set_rp_filter(&node.ns, "1")?;
        node.pods.iter().try_for_each(|pod| set_rp_filter(&pod.ns, "1"))?;
    }
    names.iter().try_for_each(|name| lab.start_agent(name))?;
    lab.await_applied(&pod)?;
    lab.apply(&host)?;
    for (service, endpoint) in [(&pod, "b1"), (&host, "node-b")] {
        all_reach(&lab.fabric, service, endpoint)?;
    }
    // As the fabric had them; what the agents set on the uplinks is the same.
    for node in &lab.fabric.nodes {
        set_rp_filter(&node.ns, "2")?;
        node.pods.iter().try_for_each(|pod| set_rp_filter(&pod.ns, "0"))?;
    }
    lab.remove(&pod)?;
    lab.remove(&host)
}

/// firewalld's rule, with these before it.
fn source_check(exceptions: &str) -> String {
    format!(
        "add table inet firewalld
delete table inet firewalld
table inet firewalld {{
  chain filter_PREROUTING {{
    type filter hook prerouting priority filter + 10;
    icmpv6 type {{ nd-router-advert, nd-neighbor-solicit }} accept
    {exceptions}
    meta nfproto ipv6 fib saddr . mark . iif oif missing drop
  }}
}}
"
    )
}

fn fib_filter(lab: &mut Lab) -> Result<()> {
    let service = Service::new("fib", 225).all_protocols(80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    with_rules(
        lab,
        &["inet firewalld"],
        |_| source_check(""),
        |lab| {
            complains(lab, "node-a", "fail", "filter_PREROUTING")?;
            let [_, _, external, cluster] = addresses::cluster_prefixes(Family::V6);
            let vips = format!("ip6 saddr {{ {external}, {cluster} }}");
            // The last one for the lab alone: with two links of equal rank the kernel finds the one way back or the other.
            let exceptions = format!(
                "iifname \"sheave6\" accept\n    {vips} accept\n    iifname {{ \"leaf1\", \"leaf2\" }} accept"
            );
            for node in &lab.fabric.nodes {
                load(&node.ns, &source_check(&exceptions))?;
            }
            content(lab, "node-a")?;
            all_reach(&lab.fabric, &service, "b1")
        },
    )?;
    lab.remove(&service)
}
