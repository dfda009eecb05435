//! Firewalls of the host that drop by default.

use std::time::Duration;

use anyhow::{Result, ensure};
use sheave::cluster::Protocol::Tcp;

use super::{Scenario, all_reach, complains, content, load, with_rules};
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::traffic::Request;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "beside-host-firewall",
    proves: "where the host's firewall drops what it does not know, coming in and passing through, `sheave check` names the chains and what they must let pass, and with that everything works",
    run: host_firewall,
}];

/// A firewall that lets in what was asked for and what runs the node and its pods, and, before its end, these.
pub(super) fn rules(input: &str, forward: &str) -> String {
    let pods = Family::BOTH.map(|family| addresses::cluster_prefixes(family)[1]);
    let [pods4, pods6] = pods;
    format!(
        "add table inet firewall
delete table inet firewall
table inet firewall {{
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    iifname \"lo\" accept
    meta l4proto {{ icmp, icmpv6 }} accept
    tcp dport {{ 179, {HOST_PORT} }} accept
    {input}
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    meta l4proto {{ icmp, icmpv6 }} accept
    ip saddr {pods4} accept
    ip6 saddr {pods6} accept
    {forward}
  }}
}}
"
    )
}

fn host_firewall(lab: &mut Lab) -> Result<()> {
    let service =
        Service::new("firewall", 226).all_protocols(80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    with_rules(
        lab,
        &["inet firewall"],
        |_| rules("", ""),
        |lab| {
            for chain in ["chain input", "chain forward"] {
                complains(lab, "node-a", "warn", chain)?;
            }
            let closed = Request::new(Tcp, service.vip(Family::V4), 80).within(Duration::from_millis(700));
            ensure!(closed.send(&lab.fabric.client).is_err(), "the firewall lets it in to begin with");
            // The bit of services.markMask (0x3fff) that says: Sheave's; then what comes back to clients here.
            let from_vips: String = Family::BOTH
                .map(|family| {
                    let [_, _, external, cluster] = addresses::cluster_prefixes(family);
                    format!("{} saddr {{ {external}, {cluster} }} accept\n    ", super::nft_family(family))
                })
                .concat();
            let open = rules(
                &format!("meta mark & 0x2000 == 0x2000 accept\n    {from_vips}"),
                &format!("iifname {{ \"sheave4\", \"sheave6\" }} accept\n    {from_vips}"),
            );
            lab.fabric.nodes.iter().try_for_each(|node| load(&node.ns, &open))?;
            content(lab, "node-a")?;
            all_reach(&lab.fabric, &service, "b1")
        },
    )?;
    lab.remove(&service)
}
