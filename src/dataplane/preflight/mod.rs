//! Preflight: what on this node would be in the agent's way. It looks and changes nothing, except that the kernel
//! may load modules of its own when asked whether it has them.
//!
//! ```text
//! /proc, /lib/modules, nft, netlink ──read at the edges──► plain values ──judged by pure functions──► [Finding]
//!   kernel     capability, IPVS, modules, nft
//!   network    uplinks and MTU, names, addresses and routes that the agent needs for itself
//!   settings   sysctls
//!   pods       whether they could accept themselves
//!   owners     kube-proxy and others who work on the same kernel state
//!   cni        CNIs that go round netfilter, or keep pods from answering as a virtual IP
//!   ports      who has the ports of BGP and BFD
//!   rules      nftables rules of others that our packets meet
//!   clients    those among them that answers of Services meet, on their way to pods and programs here
//! ```

mod clients;
mod cni;
mod kernel;
mod network;
mod owners;
mod pods;
mod ports;
mod rules;
mod settings;

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::Serialize;

use self::cni::Cni;
use self::network::Network;
use super::ruleset::Rules;
use super::{Settings, fou, nft};
use crate::plan::{AcceptedIn, NodePlan, Scheduler};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// The agent runs; something is not as it seems, or not for all traffic.
    Warn,
    /// The agent cannot run, or does not get the traffic.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do about it; `None` where all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, subject: subject.into(), found: found.into(), remedy: None }
    }

    /// Something to know.
    pub fn warn(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { severity: Severity::Warn, subject: subject.into(), found: found.into(), remedy }
    }

    /// Something to put right before the agent can do its work.
    pub fn fail(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { severity: Severity::Fail, subject: subject.into(), found: found.into(), remedy }
    }
}

/// What else the agent's config asks of the node.
#[derive(Clone, Debug)]
pub struct Wants {
    /// Schedulers of virtual servers.
    pub schedulers: BTreeSet<Scheduler>,
    /// Of Services that do not say.
    pub acceptance: AcceptedIn,
    /// Where the agent listens for BGP; `None`: nowhere.
    pub bgp_port: Option<u16>,
    /// Where it takes in packets of BFD.
    pub bfd_ports: BTreeSet<u16>,
    /// Clients on this node get answers straight from endpoints, with virtual IPs of these ranges (and of the plan) as
    /// their sources; `None`: they get none so.
    pub answering: Option<Vec<IpNet>>,
}

/// Looks at this node: whether an agent with these `settings` and `wants` could make it what `plan` says. Needs a tokio
/// runtime with I/O, in the network namespace to be looked at.
pub async fn preflight(settings: &Settings, wants: &Wants, plan: &NodePlan) -> Vec<Finding> {
    let mut findings = vec![kernel::version(), kernel::capability()];
    let modules = kernel::Modules::read();
    let (ipvs, servers) = kernel::ipvs(&modules);
    findings.push(ipvs);
    findings.extend(kernel::modules(&modules, &wants.schedulers));

    let network = match Network::read(plan).await {
        Ok(network) => network,
        Err(error) => {
            findings.push(Finding::fail(
                "interfaces and routes",
                error.to_string(),
                "the kernel must answer rtnetlink: check how this process is confined",
            ));
            return findings;
        }
    };
    let gue = fou::stands(network.ipv6);
    let mtu = super::smallest_mtu(&network.uplinks);
    let rules = Rules::new(settings.mark_mask, mtu, &plan.node.addresses, gue.is_ok());
    let table = nft::list();
    findings.extend(kernel::nft(&modules, &table, rules));
    findings.push(kernel::gue(&modules, &gue, settings.encapsulation));
    findings.push(kernel::conntrack(&modules));
    findings.extend(network.judge(rules, matches!(table, Ok(Some(_))), plan));

    // Where nft cannot list, its own check says so.
    let listing = nft::ruleset().unwrap_or_default();
    let cni = Cni { devices: &network.devices, listing: &listing };
    let has_kube_ipvs0 = network.devices.contains("kube-ipvs0");
    let evidence = owners::kube_proxy(has_kube_ipvs0, &listing);
    let foreign = servers.as_deref().map(owners::foreign).unwrap_or_default();
    let shares_ipvs = has_kube_ipvs0 || !foreign.is_empty();
    findings.extend(settings::check(&network.uplinks, network.ipv6, servers.is_some(), shares_ipvs));
    if servers.is_some() {
        findings.push(owners::virtual_servers(&foreign, plan));
    }
    let uplinks: Vec<&str> = network.uplinks.iter().map(|uplink| uplink.name.as_str()).collect();
    findings.push(pods::check(plan, wants.acceptance, &cni.source_checks(&uplinks)));
    findings.extend(wants.bgp_port.map(ports::bgp));
    findings.extend(wants.bfd_ports.iter().map(|port| ports::bfd(*port)));
    findings.extend(owners::judge_kube_proxy(&evidence, settings.mark_mask));
    findings.extend(owners::processes());
    findings.extend(cni::check(&cni));
    findings.extend(owners::legacy_iptables());
    let answering: Option<Vec<IpNet>> =
        wants.answering.as_ref().map(|known| known.iter().copied().chain(super::vip_nets(plan)).collect());
    findings.extend(rules::check(&listing, rules, network.ipv6, answering.as_deref()));
    findings
}
