//! What `sheave explain` finds when somebody changes the kernel behind the agent's back: each change by its own words.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

mod builders;
mod namespace;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sheave::cluster::Protocol;
use sheave::dataplane::{Asked, Dataplane};
use sheave::observe::explain::Kernel;
use sheave::plan::{
    Forwarding, NodePlan, RewriteKey, RewriteSide, SourceRange, VipKind, VipPort, VirtualServer,
};

use self::builders::{mk_destination, mk_rewrite, mk_virtual_server};
use self::namespace::{address, dump, in_namespace, shell};

/// How often an agent looks.
const PERIOD: Duration = Duration::from_secs(15);

/// One virtual server in each family with an endpoint here, one elsewhere and one outside; who may reach it is told.
fn plan() -> (NodePlan, Vec<Asked>) {
    let mut plan = NodePlan::default();
    plan.node.addresses = vec![address("10.0.0.11"), address("fd00:10::11")];
    plan.node.pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"].map(|net| net.parse().unwrap()).into();
    plan.node.tunnel_sources = ["10.0.0.11", "fd00:10::11"].map(address).into();
    plan.node.service_cidrs = ["10.96.0.0/16".parse().unwrap()].into();
    let mut asked = Vec::new();
    for (vip, kind, own, remote, outside, source) in [
        (
            "192.0.2.80",
            VipKind::LoadBalancerIP,
            "10.244.1.10",
            "10.244.2.10",
            "203.0.113.9",
            "203.0.113.0/24",
        ),
        (
            "2001:db8::80",
            VipKind::LoadBalancerIP,
            "fd00:244:1::a",
            "fd00:244:2::a",
            "2001:db8:f::9",
            "2001:db8:1::/48",
        ),
        ("10.96.0.80", VipKind::ClusterIP, "10.244.1.10", "10.244.2.10", "203.0.113.9", "0.0.0.0/0"),
    ] {
        let vip = VipPort { address: address(vip), port: 80, protocol: Protocol::Tcp };
        let endpoints = [(own, Forwarding::Tunnel), (remote, Forwarding::Tunnel), (outside, Forwarding::Nat)];
        let mut destinations =
            endpoints.map(|(endpoint, forwarding)| mk_destination(address(endpoint), forwarding));
        destinations.sort();
        plan.rewrites.extend(HashMap::from([
            (RewriteKey { endpoint: address(own), side: RewriteSide::Endpoint, vip }, mk_rewrite(true)),
            (RewriteKey { endpoint: address(outside), side: RewriteSide::Director, vip }, mk_rewrite(false)),
        ]));
        plan.vips.insert(vip.address, 1);
        if kind == VipKind::LoadBalancerIP {
            plan.source_ranges.insert(vip, SourceRange { vip, allow: [source.parse().unwrap()].into() });
        }
        let server = VirtualServer { destinations: destinations.into(), ..mk_virtual_server(vip, kind) };
        plan.virtual_servers.insert(vip, server);
        asked.push(Asked { vip, endpoints: [own, remote, outside].map(address).into() });
    }
    (plan, asked)
}

fn differences(kernel: &Kernel) -> Vec<&str> {
    kernel.differences.iter().map(|difference| &*difference.what).collect()
}

#[test]
fn each_change_has_its_words_until_it_is_repaired() {
    in_namespace("differences", async |node| {
        let ((plan, asked), mut now) = (plan(), Instant::now());
        let mut dataplane = Dataplane::open(&node.settings).unwrap();
        dataplane.sync(&plan, now).await;
        let before = dump();
        let kernel = dataplane.explain(&plan, &asked, PERIOD, now).await;
        assert_eq!(dump(), before, "who asks changes nothing");
        assert_eq!(kernel.problems, [""; 0]);
        assert_eq!(differences(&kernel), [""; 0]);
        assert_eq!(kernel.virtual_servers.len(), 3);
        assert!(kernel.elements.iter().all(|element| element.held), "{:?}", kernel.elements);
        let sets: std::collections::BTreeSet<&str> = kernel.elements.iter().map(|one| &*one.set).collect();
        let expected = ["endpoints", "hairpin", "mark", "own", "restricted", "sources", "vips"];
        assert_eq!(sets.len(), 2 * expected.len(), "{sets:?}");
        let cases = [
            (
                "ipvsadm -d -t 192.0.2.80:80 -r 10.244.2.10:8080",
                "IPVS has no destination 10.244.2.10:8080 in TCP 192.0.2.80:80",
            ),
            (
                "ipvsadm -d -t [2001:db8::80]:80 -r [fd00:244:2::a]:8080",
                "IPVS has no destination [fd00:244:2::a]:8080 in TCP [2001:db8::80]:80",
            ),
            ("ipvsadm -D -t 192.0.2.80:80", "IPVS has no virtual server TCP 192.0.2.80:80"),
            (
                "ip route del local 192.0.2.80/32 dev lo",
                "there is no route local 192.0.2.80/32: a packet for 192.0.2.80 goes along 0.0.0.0/0 via 10.0.0.1",
            ),
            (
                "ip -6 route del local 2001:db8::80/128 dev lo",
                "there is no route local 2001:db8::80/128: a packet for 2001:db8::80 goes along ::/0 via fd00:10::1",
            ),
            (
                "ip route del local 10.96.0.0/16 dev lo",
                "there is no route local 10.96.0.0/16: a packet for 10.96.0.80 goes along 0.0.0.0/0 via 10.0.0.1",
            ),
            (
                "nft delete element inet sheave mark4 { 10.244.1.10 }",
                "nftables' mark4 has no element 10.244.1.10 : ",
            ),
            (
                "nft delete element inet sheave sources4 { 192.0.2.80 . tcp . 80 . 203.0.113.0/24 }",
                "nftables' sources4 has no element 192.0.2.80 . tcp . 80 . 203.0.113.0/24: these clients are kept out",
            ),
            (
                "nft delete element inet sheave vips4 { 10.96.0.0/16 }",
                "nftables' vips4 has no element 10.96.0.0/16",
            ),
            (
                "nft delete element inet sheave hairpin6 { fd00:244:1::a . fd00:244:1::a }",
                "nftables' hairpin6 has no element fd00:244:1::a . fd00:244:1::a",
            ),
            (
                "nft add element inet sheave taken4 { 192.0.2.80 }",
                "nftables' taken4 has element 192.0.2.80, which is not planned",
            ),
            ("nft flush chain inet sheave guard", "rules of nftables' table inet sheave are not as planned"),
            ("nft delete table inet sheave", "nftables has no table inet sheave"),
            ("sysctl -q -w net.ipv4.vs.conntrack=1", "sysctl net.ipv4.vs.conntrack is 1; planned is 0"),
            ("ip link set sheave6 down", "the device sheave6 is down"),
        ];
        for (command, expected) in cases {
            let (program, arguments) = command.split_once(' ').unwrap();
            shell(program, arguments);
            let kernel = dataplane.explain(&plan, &asked, PERIOD, now).await;
            let found = differences(&kernel);
            assert!(found.iter().any(|what| what.starts_with(expected)), "{command}: {found:?}");
            let others: Vec<_> = found.iter().filter(|what| !what.starts_with(expected)).collect();
            // A table of a scheduler depends on the order too; a device takes its routes along.
            let follows = |what: &str| what.contains("another order") || command.contains("ip link");
            assert!(others.iter().all(|what| follows(what)), "{command}: {others:?}");
            assert!(kernel.differences.iter().all(|one| one.repaired_within_seconds >= 15), "{kernel:?}");
            // Later than the longest time for which listings pause after nftables were changed.
            now += 40 * PERIOD;
            for _ in 0..2 {
                dataplane.check(&plan, now).await;
            }
            let kernel = dataplane.explain(&plan, &asked, PERIOD, now).await;
            assert_eq!(differences(&kernel), [""; 0], "after {command} was repaired");
        }
    });
}
