//! Others who work on the same kernel state.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use sheave_ipvs::{ServiceEntry, ServiceKey};

use super::super::reconcile;
use super::{Finding, rules};
use crate::config::MarkMask;
use crate::plan::NodePlan;

/// kube-proxy's packet mark bits: `KUBE-MARK-DROP` (0x8000) and `KUBE-MARK-MASQ` (0x4000).
const KUBE_PROXY_MARKS: u32 = 0xc000;

/// The first few of a list, and how many more there are.
pub fn first_few(items: &[String]) -> String {
    const FEW: usize = 3;
    let mut text = items.iter().take(FEW).map(String::as_str).collect::<Vec<_>>().join(", ");
    if items.len() > FEW {
        text.push_str(&format!(" and {} more", items.len() - FEW));
    }
    text
}

/// The virtual servers that are not ours.
pub fn foreign(servers: &[ServiceEntry]) -> Vec<ServiceKey> {
    let foreign = servers.iter().filter(|entry| !entry.service.flags.contains(reconcile::OURS));
    foreign.map(|entry| entry.service.key).collect()
}

/// Virtual servers of others stay as they are; where the plan wants one too, there is none for the plan.
pub fn virtual_servers(foreign: &[ServiceKey], plan: &NodePlan) -> Finding {
    let subject = "virtual servers of others";
    let list =
        |keys: &mut dyn Iterator<Item = &ServiceKey>| keys.map(ToString::to_string).collect::<Vec<_>>();
    let wanted =
        list(&mut foreign.iter().filter(|key| {
            reconcile::vip_port(key).is_some_and(|vip| plan.virtual_servers.contains_key(&vip))
        }));
    let all = list(&mut foreign.iter());
    let remedy = "stop their owner and remove them (kube-proxy: `kube-proxy --cleanup`; else `ipvsadm -D`)";
    if !wanted.is_empty() {
        let found =
            format!("{} of {} are where the plan wants one: {}", wanted.len(), all.len(), first_few(&wanted));
        return Finding::fail(subject, found, remedy);
    }
    if all.is_empty() {
        return Finding::ok(subject, "none");
    }
    Finding::warn(
        subject,
        format!(
            "{}: {}; they stay, and a Service on such an address is not served",
            all.len(),
            first_few(&all)
        ),
        remedy,
    )
}

/// What shows that kube-proxy works here, or did. `listing`: nft's JSON of all rules.
pub fn kube_proxy(has_kube_ipvs0: bool, listing: &[Value]) -> Vec<String> {
    let mut evidence = Vec::new();
    if has_kube_ipvs0 {
        evidence.push("interface kube-ipvs0 (ipvs mode)".into());
    }
    evidence.extend(in_nftables(listing));
    if is_running("kube-proxy") {
        evidence.push("a running process".into());
    }
    evidence
}

/// kube-proxy's tables (nftables mode) and chains (iptables mode over nftables).
fn in_nftables(listing: &[Value]) -> Vec<String> {
    let tables = listing.iter().filter_map(|object| object.get("table")).filter_map(|table| {
        let field = |name| table.get(name).and_then(Value::as_str).unwrap_or_default();
        let family = field("family");
        (["ip", "ip6"].contains(&family) && field("name") == "kube-proxy")
            .then(|| format!("table {family} kube-proxy (nftables mode)"))
    });
    let chains = rules::chains(listing).filter(|(of, name)| {
        *name == "KUBE-SERVICES" && ["table ip nat", "table ip6 nat"].contains(&of.as_str())
    });
    tables.chain(chains.map(|(of, name)| format!("chain {name} in {of} (iptables mode)"))).collect()
}

/// Two programs that implement Services on one node is one too many, whatever the mode.
pub fn judge_kube_proxy(evidence: &[String], mask: MarkMask) -> Vec<Finding> {
    if evidence.is_empty() {
        return vec![Finding::ok("kube-proxy", "no sign of it")];
    }
    let mut findings = vec![Finding::fail(
        "kube-proxy",
        evidence.join(", "),
        "remove its DaemonSet (or unit), then run `kube-proxy --cleanup` on this node",
    )];
    let shared = mask.mask() & KUBE_PROXY_MARKS;
    if shared != 0 {
        findings.push(Finding::warn(
            "packet mark",
            format!("services.markMask {:#x} has bits of kube-proxy's {KUBE_PROXY_MARKS:#x}", mask.mask()),
            "give services.markMask other bits while kube-proxy's rules are there, for example 0x3fff",
        ));
    }
    findings
}

/// Programs that may implement Services, or may not, as they are configured.
pub fn processes() -> Option<Finding> {
    is_running("kube-router").then(|| {
        Finding::warn(
            "kube-router",
            "running: it can implement Services too",
            "run it with --run-service-proxy=false and without advertising Service IPs, or stop it",
        )
    })
}

/// iptables where nft does not see it.
pub fn legacy_iptables() -> Option<Finding> {
    let tables = ["ip_tables_names", "ip6_tables_names"]
        .map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default());
    judge_legacy(&tables.concat())
}

/// `tables`: the names of those in use, one a line.
fn judge_legacy(tables: &str) -> Option<Finding> {
    let tables: BTreeSet<&str> = tables.lines().filter(|table| !table.is_empty()).collect();
    if tables.is_empty() {
        return None;
    }
    let tables = tables.into_iter().collect::<Vec<_>>().join(", ");
    Some(Finding::warn(
        "iptables",
        format!("legacy tables are in use ({tables}), which nft does not show: their rules are not judged"),
        "look for kube-proxy's rules (`iptables-legacy-save -t nat | grep KUBE-SERVICES`) and for what drops Sheave's packets (docs/cni.md), or move them to iptables-nft",
    ))
}

/// Whether a process of that name runs in our network namespace, as far as we may see.
pub fn is_running(name: &str) -> bool {
    let namespace = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let own = namespace(Path::new("/proc/thread-self"));
    let here = |process: &Path| {
        let theirs = namespace(process);
        theirs.is_none() || theirs == own
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    processes
        .filter(|process| fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim() == name))
        .any(|process| here(&process))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Severity;
    use super::*;
    use crate::builders::mk_virtual_server;
    use crate::plan::VipKind;

    fn key(address: &str) -> ServiceKey {
        ServiceKey::Address {
            protocol: sheave_ipvs::Protocol::Tcp,
            address: address.parse().unwrap(),
            port: 80,
        }
    }

    #[test]
    fn virtual_servers_of_others() {
        let mut plan = NodePlan::default();
        let vip = reconcile::vip_port(&key("10.96.0.80")).unwrap();
        plan.virtual_servers.insert(vip, mk_virtual_server(vip, VipKind::ClusterIP));
        let others = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(key);
        for (case, foreign, severity, words) in [
            ("none", vec![], Severity::Ok, "none"),
            ("elsewhere", others.to_vec(), Severity::Warn, "192.0.2.3:80 and 1 more"),
            (
                "in the way",
                [&others[..], &[key("10.96.0.80")]].concat(),
                Severity::Fail,
                "1 of 5 are where the plan wants one: TCP 10.96.0.80:80",
            ),
        ] {
            let finding = virtual_servers(&foreign, &plan);
            assert_eq!(finding.severity, severity, "{case}");
            assert!(finding.found.contains(words), "{case}: {finding:?}");
        }
    }

    #[test]
    fn kube_proxy_in_nftables() {
        let table =
            |family: &str, name: &str| json!({"table": {"family": family, "name": name, "handle": 1}});
        let chain = |family: &str, table: &str, name: &str| json!({"chain": {"family": family, "table": table, "name": name, "handle": 1}});
        for (case, tables, chains, expected) in [
            ("nothing", vec![json!({"metainfo": {"version": "1.0.6"}})], vec![], 0),
            (
                "others",
                vec![table("inet", "sheave"), table("ip", "nat")],
                vec![chain("ip", "nat", "PREROUTING")],
                0,
            ),
            ("nftables mode", vec![table("ip", "kube-proxy"), table("ip6", "kube-proxy")], vec![], 2),
            ("another family's table", vec![table("inet", "kube-proxy")], vec![], 0),
            ("iptables mode", vec![table("ip", "nat")], vec![chain("ip", "nat", "KUBE-SERVICES")], 1),
            ("another table's chain", vec![], vec![chain("ip", "filter", "KUBE-SERVICES")], 0),
        ] {
            assert_eq!(in_nftables(&[tables, chains].concat()).len(), expected, "{case}");
        }
    }

    #[test]
    fn legacy_tables() {
        for (tables, expected) in
            [("", None), ("nat\n", Some("(nat)")), ("raw\nfilter\nnat\nfilter\n", Some("(filter, nat, raw)"))]
        {
            let finding = judge_legacy(tables);
            assert_eq!(finding.is_some(), expected.is_some(), "{tables:?}");
            assert!(finding.is_none_or(|finding| finding.found.contains(expected.unwrap())), "{tables:?}");
        }
    }

    #[test]
    fn marks_matter_where_kube_proxy_is() {
        let evidence = ["interface kube-ipvs0 (ipvs mode)".to_owned()];
        for (case, evidence, mask, expected) in [
            ("absent", &[][..], 0xffff, vec![Severity::Ok]),
            ("there, other bits", &evidence, 0x3fff, vec![Severity::Fail]),
            ("there, same bits", &evidence, 0x7fff, vec![Severity::Fail, Severity::Warn]),
        ] {
            let findings = judge_kube_proxy(evidence, MarkMask::new(mask).unwrap());
            let severities: Vec<Severity> = findings.iter().map(|finding| finding.severity).collect();
            assert_eq!(severities, expected, "{case}");
        }
    }
}
