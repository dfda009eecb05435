//! CNIs beside which the agent cannot work, or not all of it (docs/cni.md), by what they leave to be seen on the node.
//!
//! Their programs at tc and XDP are not looked for: to list them takes rights that the agent has not, and these CNIs show by
//! their interfaces too.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Finding;
use super::owners::{first_few, is_running};
use super::rules;

/// What there is to be seen.
pub struct Cni<'a> {
    /// All interfaces, by their names.
    pub devices: &'a BTreeSet<String>,
    /// nft's JSON of all rules.
    pub listing: &'a [Value],
}

/// Looks for CNIs that forward with programs of their own.
pub fn check(seen: &Cni<'_>) -> Vec<Finding> {
    judge(seen, is_running("cilium-agent"))
}

fn judge(seen: &Cni<'_>, cilium_agent: bool) -> Vec<Finding> {
    let mut cilium = seen.interfaces(|name| name.starts_with("cilium_"));
    cilium.extend(
        rules::chains(seen.listing)
            .filter(|(_, name)| name.starts_with("CILIUM_"))
            .map(|(of, name)| format!("chain {name} in {of}")),
    );
    if cilium_agent {
        cilium.push("a running process cilium-agent".into());
    }
    let calico = seen.interfaces(|name| ["bpfin.cali", "bpfout.cali"].contains(&name));
    [
        (
            "Cilium",
            cilium,
            "use another CNI, or Cilium with its kube-proxy replacement and no Sheave on this node: they do not go together, whatever kubeProxyReplacement says (docs/cni.md). If it is gone, `cilium-dbg post-uninstall-cleanup` or a reboot removes the rest",
        ),
        (
            "Calico eBPF",
            calico,
            "use Calico's iptables or nftables dataplane (`bpfEnabled: false` in its FelixConfiguration; docs/cni.md). If that is so already, remove the interfaces",
        ),
    ]
    .into_iter()
    .filter(|(_, evidence, _)| !evidence.is_empty())
    .map(|(subject, evidence, remedy)| {
        let found = format!(
            "{}: its programs forward packets past netfilter, and implement Services",
            first_few(&evidence)
        );
        Finding::fail(subject, found, remedy)
    })
    .collect()
}

impl Cni<'_> {
    fn interfaces(&self, of: impl Fn(&str) -> bool) -> Vec<String> {
        self.devices.iter().filter(|name| of(name)).map(|name| format!("interface {name}")).collect()
    }

    /// Who lets pods send from their own address alone, so that none can answer as a virtual IP. `uplinks` are no pods'.
    pub fn source_checks(&self, uplinks: &[&str]) -> Vec<String> {
        let mut checks = rules::source_checks_of_some(self.listing, uplinks);
        if checks.is_empty() {
            // Written by iptables, the check itself (`-m rpfilter`) is opaque; Felix has this chain before it.
            let chains = rules::chains(self.listing).filter(|(_, name)| *name == "cali-rpf-skip");
            checks.extend(chains.map(|(of, name)| format!("chain {name} in {of}")));
        }
        // Open vSwitch, programmed by these, drops what no rule shows.
        checks.extend(self.interfaces(|name| ["antrea-gw0", "ovn-k8s-mp0"].contains(&name)));
        checks.extend(self.interfaces(|name| name == "cilium_host"));
        checks
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    /// What `nft -j -t list ruleset` prints of rules such as Felix and Cilium write.
    const LISTING: &str = include_str!("cni/listing.json");

    fn listing() -> Vec<Value> {
        let listing: Value = serde_json::from_str(LISTING).unwrap();
        listing["nftables"].as_array().unwrap().clone()
    }

    #[test]
    fn cnis_that_bypass_netfilter() {
        let (rules, none) = (listing(), Vec::new());
        for (case, devices, listing, process, expected) in [
            ("none", &["eth0", "cni0", "flannel.1"][..], &none, false, &[][..]),
            ("Calico by netfilter", &["cali0123", "tunl0", "vxlan.calico"], &none, false, &[]),
            (
                "Cilium, native routing",
                &["cilium_host", "cilium_net"],
                &none,
                false,
                &[("Cilium", "cilium_host")],
            ),
            ("Cilium, overlay", &["cilium_vxlan"], &none, false, &[("Cilium", "cilium_vxlan")]),
            ("Cilium's rules", &[], &rules, false, &[("Cilium", "chain CILIUM_POST_nat in table ip nat")]),
            ("Cilium, about to start", &[], &none, true, &[("Cilium", "process cilium-agent")]),
            ("Calico eBPF", &["bpfin.cali", "bpfout.cali"], &none, false, &[("Calico eBPF", "bpfout.cali")]),
        ] {
            let devices = devices.iter().map(|name| (*name).to_owned()).collect();
            let findings = judge(&Cni { devices: &devices, listing }, process);
            assert_eq!(findings.len(), expected.len(), "{case}: {findings:?}");
            for (finding, (subject, words)) in findings.iter().zip(expected) {
                assert_eq!((finding.severity, &*finding.subject), (Severity::Fail, *subject), "{case}");
                assert!(finding.found.contains(words), "{case}: {finding:?}");
                assert!(finding.remedy.as_deref().is_some_and(|remedy| remedy.contains("docs/cni.md")));
            }
        }
    }

    #[test]
    fn who_lets_pods_send_from_their_own_address_alone() {
        let (rules, none) = (listing(), Vec::new());
        let mut opaque = listing();
        let rules_of =
            opaque.iter_mut().filter_map(|object| object.pointer_mut("/rule/expr")?.as_array_mut());
        for expression in rules_of.flatten() {
            if !expression["match"]["left"]["fib"].is_null() {
                *expression = serde_json::json!({"xt": null});
            }
        }
        for (case, devices, listing, expected) in [
            ("nobody", &["cni0"][..], &none, &[][..]),
            ("Calico", &["cali0123"], &rules, &["chain cali-PREROUTING in table ip raw"]),
            ("Calico by iptables", &["cali0123"], &opaque, &["chain cali-rpf-skip in table ip raw"]),
            ("Cilium", &["cilium_host", "cilium_net"], &none, &["interface cilium_host"]),
            ("Antrea", &["antrea-gw0"], &none, &["interface antrea-gw0"]),
            ("OVN-Kubernetes", &["ovn-k8s-mp0"], &none, &["interface ovn-k8s-mp0"]),
        ] {
            let devices = devices.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(Cni { devices: &devices, listing }.source_checks(&["eth0"]), expected, "{case}");
        }
    }
}
