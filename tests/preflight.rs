//! Preflight against a real kernel.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

mod builders;
mod namespace;

use std::collections::BTreeSet;

use sheave::cluster::{Encapsulation, Protocol};
use sheave::dataplane::{Dataplane, Finding, Settings, Severity, Wants, preflight};
use sheave::plan::{AcceptedIn, NodePlan, Scheduler, VipKind, VipPort};

use self::builders::mk_virtual_server;
use self::namespace::{Node, address, dump, in_namespace, shell};

/// This node, and a virtual server without endpoints on TCP 10.96.0.80:80.
fn plan() -> NodePlan {
    let mut plan = NodePlan::default();
    plan.node.addresses = vec![address("10.0.0.11"), address("fd00:10::11")];
    let vip = VipPort { address: address("10.96.0.80"), port: 80, protocol: Protocol::Tcp };
    plan.virtual_servers.insert(vip, mk_virtual_server(vip, VipKind::ClusterIP));
    plan.vips.insert(vip.address, 1);
    plan
}

fn wants() -> Wants {
    let schedulers = BTreeSet::from([Scheduler::Mh, Scheduler::Rr]);
    let bfd_ports = [3784].into();
    Wants {
        schedulers,
        acceptance: AcceptedIn::Node,
        bgp_port: Some(179),
        bfd_ports,
        answering: Some(Vec::new()),
    }
}

async fn look(node: &Node) -> Vec<Finding> {
    look_for(node, &wants()).await
}

async fn look_for(node: &Node, wants: &Wants) -> Vec<Finding> {
    let findings = preflight(&node.settings, wants, &plan()).await;
    let judged = |finding: &&Finding| finding.severity != Severity::Ok && finding.remedy.is_none();
    assert!(!findings.iter().any(|finding| judged(&finding)), "all have a remedy: {findings:#?}");
    findings
}

/// Findings that are not ok.
async fn complaints(node: &Node) -> Vec<Finding> {
    let mut findings = look(node).await;
    findings.retain(|finding| finding.severity != Severity::Ok);
    findings
}

#[track_caller]
fn assert_one(findings: &[Finding], severity: Severity, subject: &str, found: &str) {
    let matches = |finding: &&Finding| {
        finding.severity == severity && finding.subject.contains(subject) && finding.found.contains(found)
    };
    assert_eq!(findings.iter().filter(matches).count(), 1, "{severity:?} {subject}: {found}: {findings:#?}");
}

#[test]
fn a_fresh_node_is_ready_and_stays_as_it_is() {
    in_namespace("fresh", async |node| {
        let before = dump();
        let findings = look(node).await;
        assert_eq!(dump(), before);
        assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
        assert_one(&findings, Severity::Ok, "segment size", "1428 bytes over IPv4, 1388 over IPv6");
        assert_one(&findings, Severity::Ok, "sysctl net/ipv4/ip_forward", "0, will be set to 1");
        assert_one(&findings, Severity::Ok, "nftables rules", "the kernel takes them");
    });
}

#[test]
fn a_node_where_an_agent_ran_is_ready() {
    in_namespace("ran", async |node| {
        let mut dataplane = Dataplane::open(&node.settings).unwrap();
        dataplane.sync(&plan(), std::time::Instant::now()).await;
        assert_eq!(dataplane.problems(), [""; 0]);
        let before = dump();
        let findings = look(node).await;
        assert_eq!(dump(), before);
        assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
        assert_one(&findings, Severity::Ok, "table inet sheave", "adopts it");
        assert_one(&findings, Severity::Ok, "interface sheave6", "adopts it");
    });
}

#[test]
fn gue_matters_where_directors_send_it() {
    in_namespace("gue", async |node| {
        let settings = Settings { encapsulation: Encapsulation::Gue, ..node.settings.clone() };
        let listener = std::net::UdpSocket::bind("0.0.0.0:6080").unwrap();
        assert_one(&complaints(node).await, Severity::Warn, "GUE", "a program listens");
        assert_one(&complaints(&Node { settings }).await, Severity::Fail, "GUE", "a program listens");
        drop(listener);
        shell("ip", "fou add port 6080 gue");
        assert_one(&complaints(node).await, Severity::Warn, "GUE", "another owner");
        shell("ip", "fou del port 6080");
        assert_eq!(complaints(node).await, []);
    });
}

#[test]
fn what_is_in_the_way_is_found_and_the_agent_meets_it_too() {
    use Severity::{Fail, Warn};
    in_namespace("way", async |node| {
        for (set, unset, severity, subject, found) in [
            (
                &["ipvsadm -A -t 10.96.0.80:80 -s rr"][..],
                &["ipvsadm -D -t 10.96.0.80:80"][..],
                Fail,
                "virtual servers of others",
                "TCP 10.96.0.80:80",
            ),
            (
                &["ip link add sheave4 type dummy"],
                &["ip link del sheave4"],
                Fail,
                "interface sheave4",
                "not Sheave's",
            ),
            (
                &["sysctl -qw net.ipv6.conf.default.disable_ipv6=1"],
                &["sysctl -qw net.ipv6.conf.default.disable_ipv6=0"],
                Fail,
                "IPv6",
                "new interfaces start without it",
            ),
            (
                &["ip addr del 10.0.0.11/24 dev up0"],
                &["ip addr add 10.0.0.11/24 dev up0", "ip route add default via 10.0.0.1"],
                Fail,
                "node address 10.0.0.11",
                "no interface here does",
            ),
        ] {
            set.iter().for_each(|line| command(line));
            let complaints = complaints(node).await;
            assert_one(&complaints, severity, subject, found);
            assert_eq!(complaints.len(), 1, "{set:?}: {complaints:#?}");
            let mut dataplane = Dataplane::open(&node.settings).unwrap();
            dataplane.sync(&plan(), std::time::Instant::now()).await;
            assert_ne!(dataplane.problems(), [""; 0], "{set:?}");
            drop(dataplane);
            let lock = sheave::dataplane::Lock::take(&node.settings.state_directory).unwrap();
            sheave::dataplane::cleanup(&node.settings, &lock).await.unwrap();
            unset.iter().for_each(|line| command(line));
        }
        for (set, unset, severity, subject, found) in [
            (
                &["ipvsadm -A -t 192.0.2.1:80 -s rr"][..],
                &["ipvsadm -D -t 192.0.2.1:80"][..],
                Warn,
                "virtual servers of others",
                "1: TCP 192.0.2.1:80",
            ),
            (
                &["ip link add kube-ipvs0 type dummy"],
                &["ip link del kube-ipvs0"],
                Fail,
                "kube-proxy",
                "kube-ipvs0",
            ),
            (
                &["nft add table ip kube-proxy"],
                &["nft delete table ip kube-proxy"],
                Fail,
                "kube-proxy",
                "nftables mode",
            ),
            (
                &["nft add table ip nat", "nft add chain ip nat KUBE-SERVICES"],
                &["nft delete table ip nat"],
                Fail,
                "kube-proxy",
                "iptables mode",
            ),
            (
                &["ip link add cilium_host type veth peer name cilium_net"],
                &["ip link del cilium_host"],
                Fail,
                "Cilium",
                "interface cilium_host, interface cilium_net",
            ),
            (
                &["nft add table ip nat", "nft add chain ip nat CILIUM_POST_nat"],
                &["nft delete table ip nat"],
                Fail,
                "Cilium",
                "chain CILIUM_POST_nat in table ip nat",
            ),
            (
                &["ip link add bpfin.cali type veth peer name bpfout.cali"],
                &["ip link del bpfin.cali"],
                Fail,
                "Calico eBPF",
                "interface bpfin.cali",
            ),
            (
                &["ip addr add 10.96.0.80/32 dev lo"],
                &["ip addr del 10.96.0.80/32 dev lo"],
                Warn,
                "virtual IPs",
                "10.96.0.80 (lo)",
            ),
            (
                &["ip route add blackhole 240.0.0.0/4"],
                &["ip route del blackhole 240.0.0.0/4"],
                Fail,
                "routes within",
                "240.0.0.0/4",
            ),
            (
                &["ip -6 addr add 100::8/128 dev up0 nodad"],
                &["ip -6 addr del 100::8/128 dev up0"],
                Fail,
                "addresses within",
                "100::8/128 (up0)",
            ),
            (&["ip link set up0 mtu 1300"], &["ip link set up0 mtu 1500"], Fail, "IPv6 MTU", "1320"),
            (
                &["ip route add 198.51.100.0/24 dev up0 proto 83"],
                &["ip route del 198.51.100.0/24"],
                Warn,
                "routes with protocol 83",
                "removes them",
            ),
            (
                &[
                    "ip link add up1 mtu 9000 up type dummy",
                    "ip route add 198.51.100.0/24 via 10.0.0.1 dev up1 onlink",
                ],
                &["ip link del up1"],
                Warn,
                "uplinks",
                "up0 (MTU 1500), up1 (MTU 9000)",
            ),
        ] {
            set.iter().for_each(|line| command(line));
            let complaints = complaints(node).await;
            assert_one(&complaints, severity, subject, found);
            assert_eq!(complaints.len(), 1, "{set:?}: {complaints:#?}");
            unset.iter().for_each(|line| command(line));
        }
        assert_eq!(complaints(node).await, []);
    });
}

#[test]
fn what_some_of_a_config_cannot_have() {
    use Severity::{Fail, Ok as Fine};
    in_namespace("wants", async |node| {
        let pods = Wants { acceptance: AcceptedIn::Pod, ..wants() };
        let spoofs = "pods send from their own address alone";
        for line in [
            "nft add table ip raw",
            "nft add chain ip raw PREROUTING { type filter hook prerouting priority raw; }",
            "nft add rule ip raw PREROUTING iifname cali* meta mark set meta mark | 0x40000",
            "nft add rule ip raw PREROUTING meta mark & 0x40000 == 0x40000 fib saddr . mark . iif oif missing drop",
        ] {
            command(line);
        }
        assert_one(&look_for(node, &pods).await, Fail, "acceptance in pods", spoofs);
        assert_one(&look(node).await, Fine, "acceptance in pods", spoofs);
        command("nft delete table ip raw");
        command("ip link add antrea-gw0 type dummy");
        assert_one(&look_for(node, &pods).await, Fail, "acceptance in pods", "interface antrea-gw0");
        command("ip link del antrea-gw0");
        assert!(look_for(node, &pods).await.iter().all(|finding| finding.severity != Fail));

        let bird = std::net::TcpListener::bind("10.0.0.11:179").unwrap();
        assert_one(&look(node).await, Fail, "BGP port 179", "preflight");
        assert_eq!(
            look_for(node, &Wants { bgp_port: None, ..wants() })
                .await
                .iter()
                .filter(|finding| finding.severity == Fail)
                .count(),
            0
        );
        drop(bird);
        for any in ["0.0.0.0", "[::]"] {
            let bfdd = std::net::UdpSocket::bind(format!("{any}:3784")).unwrap();
            assert_one(&look(node).await, Fail, "BFD port 3784", "preflight");
            drop(bfdd);
        }
        assert_eq!(complaints(node).await, []);
    });
}

#[test]
fn settings_that_others_need() {
    in_namespace("settings", async |node| {
        command("sysctl -qw net.ipv4.vs.conntrack=1");
        command("sysctl -qw net.ipv4.conf.up0.rp_filter=1");
        let findings = look(node).await;
        assert_one(&findings, Severity::Ok, "vs/conntrack", "1, will be set to 0");
        assert_one(&findings, Severity::Ok, "up0/rp_filter", "will be set to 2 (loose)");
        command("ipvsadm -A -t 192.0.2.1:80 -s rr");
        assert_one(&look(node).await, Severity::Warn, "vs/conntrack", "another owner");
    });
}

fn command(line: &str) {
    let (program, arguments) = line.split_once(' ').unwrap();
    shell(program, arguments);
}
