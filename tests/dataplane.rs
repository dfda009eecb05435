//! The dataplane against a real kernel.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

mod builders;
#[path = "dataplane/clients.rs"]
mod clients;
#[path = "dataplane/leaving.rs"]
mod leaving;
mod namespace;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sheave::cluster::{Accepts, Encapsulation, Protocol};
use sheave::dataplane::{self, Dataplane, Lock, Settings};
use sheave::plan::{
    Delta, Destination, Forwarding, NodePlan, RewriteKey, RewriteSide, SourceRange, VipKind, VipPort,
    VirtualServer,
};

use self::builders::{mk_destination, mk_rewrite, mk_virtual_server};
use self::namespace::{Node, address, dump, in_namespace, shell};

/// Longer than between two looks of an agent.
const PERIOD: Duration = Duration::from_secs(60);

fn vip(text: &str, protocol: Protocol, port: u16) -> VipPort {
    VipPort { address: address(text), port, protocol }
}

/// Adds a virtual server with `mh`, with the rewrites that follow from its destinations.
fn serve(plan: &mut NodePlan, vip: VipPort, kind: VipKind, endpoints: &[(&str, Forwarding)]) -> Delta {
    let destinations: Vec<Destination> = endpoints
        .iter()
        .map(|(endpoint, forwarding)| mk_destination(address(endpoint), *forwarding))
        .collect();
    let mut delta = Delta { virtual_servers: BTreeSet::from([vip]), ..Delta::default() };
    let mut rewrites = std::collections::HashMap::new();
    for destination in &destinations {
        let local = plan.node.pod_cidrs.iter().any(|cidr| cidr.contains(&destination.address));
        let side = match destination.forwarding {
            Forwarding::Nat => RewriteSide::Director,
            Forwarding::Tunnel if local => RewriteSide::Endpoint,
            _ => continue,
        };
        let key = RewriteKey { endpoint: destination.address, side, vip };
        rewrites.insert(key, mk_rewrite(local));
    }
    let old = plan.rewrites.extract_if(|key, _| key.vip == vip && !rewrites.contains_key(key));
    delta.rewrites.extend(old.map(|(key, _)| key));
    delta.rewrites.extend(rewrites.keys());
    plan.rewrites.extend(rewrites);
    if kind != VipKind::NodePort && plan.vips.insert(vip.address, 1).is_none() {
        delta.vips.insert(vip.address);
    }
    plan.virtual_servers.insert(vip, VirtualServer { destinations, ..mk_virtual_server(vip, kind) });
    delta
}

/// Both families; a service CIDR; an external VIP; remote, own, outside and hostNetwork endpoints; a NodePort.
fn plan() -> NodePlan {
    let mut plan = NodePlan::default();
    plan.node.addresses = vec![address("10.0.0.11"), address("fd00:10::11")];
    plan.node.pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"].map(|net| net.parse().unwrap()).into();
    plan.node.tunnel_sources = ["10.0.0.11", "10.0.0.12", "fd00:10::11", "fd00:10::12"].map(address).into();
    plan.node.service_cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|net| net.parse().unwrap()).into();
    use Forwarding::{Masquerade, Nat, Tunnel};
    let four =
        [("10.0.0.11", Masquerade), ("10.244.1.10", Tunnel), ("10.244.2.10", Tunnel), ("203.0.113.9", Nat)];
    let six = [
        ("fd00:10::11", Masquerade),
        ("fd00:244:1::a", Tunnel),
        ("fd00:244:2::a", Tunnel),
        ("2001:db8:ffff::9", Nat),
    ];
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        serve(&mut plan, vip("10.96.0.80", protocol, 80), VipKind::ClusterIP, &four);
        serve(&mut plan, vip("fd00:96::80", protocol, 80), VipKind::ClusterIP, &six);
        serve(&mut plan, vip("192.0.2.80", protocol, 80), VipKind::ExternalIP, &four);
        serve(&mut plan, vip("2001:db8::80", protocol, 80), VipKind::ExternalIP, &six);
        let node_port = [("10.244.1.10", Nat), ("10.244.2.10", Nat)];
        serve(&mut plan, vip("10.0.0.11", protocol, 30080), VipKind::NodePort, &node_port);
        serve(&mut plan, vip("10.96.0.81", protocol, 81), VipKind::ClusterIP, &[]);
        serve(&mut plan, vip("10.0.0.11", protocol, 30081), VipKind::NodePort, &[]);
        // `externalTrafficPolicy: Local`, with an endpoint here, with none, and on a node port.
        for (vip, kind, own, all) in [
            (vip("192.0.2.82", protocol, 80), VipKind::ExternalIP, &four[1..2], &four[..]),
            (vip("2001:db8::82", protocol, 80), VipKind::ExternalIP, &six[1..2], &six[..]),
            (vip("192.0.2.83", protocol, 80), VipKind::ExternalIP, &[][..], &four[..]),
            (vip("10.0.0.11", protocol, 30082), VipKind::NodePort, &node_port[..1], &node_port[..]),
        ] {
            serve(&mut plan, vip, kind, all);
            let inside = plan.virtual_servers[&vip].destinations.clone();
            serve(&mut plan, vip, kind, own);
            let outside = plan.virtual_servers.get_mut(&vip).unwrap();
            outside.drops = outside.destinations.is_empty();
            outside.internal = Some(inside);
        }
    }
    plan.node.cluster_clients = ["10.244.1.0/24", "fd00:244:1::/64"].map(|net| net.parse().unwrap()).into();
    plan
}

async fn open(node: &Node, plan: &NodePlan, now: Instant) -> Dataplane {
    let mut dataplane = Dataplane::open(&node.settings).unwrap();
    dataplane.sync(plan, now).await;
    assert_eq!(dataplane.problems(), [""; 0]);
    dataplane
}

#[test]
fn what_the_plan_says_is_in_the_kernel_and_a_second_look_finds_nothing_to_do() {
    in_namespace("sync", async |node| {
        let (plan, now) = (plan(), Instant::now());
        let mut dataplane = open(node, &plan, now).await;
        assert_eq!(dataplane.sync(&plan, now).await, [""; 0], "second sync");
        let servers = shell("ipvsadm", "-Sn");
        for line in [
            "-A -t 10.96.0.80:80 -s mh -b mh-fallback,mh-port",
            "-a -t 10.96.0.80:80 -r 10.0.0.11:8080 -m -w 1",
            "-a -t 10.96.0.80:80 -r 10.244.2.10:8080 -i -w 1",
            // A stand-in for the endpoint outside.
            "-a -t 10.96.0.80:80 -r 251.0.113.9:8080 -i -w 1",
            "-a -t 10.0.0.11:30080 -r 250.244.2.10:8080 -i -w 1",
            "-a -t [fd00:96::80]:80 -r [fd00:244:2::a]:8080 -i -w 1",
        ] {
            assert!(servers.lines().any(|have| have.starts_with(line)), "{line} not in\n{servers}");
        }
        assert!(!servers.contains("10.96.0.81"), "no endpoints, no virtual server:\n{servers}");
        let routes = shell("ip", "route show table local");
        for line in ["local 10.96.0.0/16 dev lo proto 83", "local 192.0.2.80 dev lo proto 83"] {
            assert!(
                routes.contains(line) && routes.contains("src 10.0.0.11"),
                "{line} not in
{routes}"
            );
        }
        for held in ["10.96.0.80", "192.0.2.80", "fd00:96::80", "2001:db8::80"] {
            assert!(dataplane.holds(&plan, address(held)), "{held}");
        }
        assert!(!dataplane.holds(&plan, address("192.0.2.99")));
    });
}

#[test]
fn an_agent_that_starts_again_adopts_everything() {
    in_namespace("adopt", async |node| {
        let (plan, now) = (plan(), Instant::now());
        drop(open(node, &plan, now).await);
        let before = dump();
        let mut second = Dataplane::open(&node.settings).unwrap();
        let done = second.sync(&plan, now).await;
        assert_eq!(done, ["took over table inet sheave"]);
        assert_eq!(dump(), before);
    });
}

#[test]
fn changes_touch_what_they_must_and_nothing_is_left_over() {
    in_namespace("changes", async |node| {
        let (mut plan, mut now) = (plan(), Instant::now());
        let mut dataplane = open(node, &plan, now).await;
        let web = vip("192.0.2.80", Protocol::Tcp, 80);
        let few = [("10.244.1.10", Forwarding::Tunnel), ("10.244.1.11", Forwarding::Tunnel)];
        let delta = serve(&mut plan, web, VipKind::ExternalIP, &few);
        let before = dataplane.ipvs_messages();
        dataplane.apply(&plan, &delta, now).await;
        assert_eq!(dataplane.problems(), [""; 0]);
        assert_eq!(dataplane.ipvs_messages() - before, 7, "three to weight 0 and deleted, one added");
        assert_eq!(dataplane.draining(), 0, "without connections nothing drains");
        now += Duration::from_secs(60);
        dataplane.tick(&plan, now).await;
        assert_eq!(dataplane.sync(&plan, now).await, [""; 0], "after changes");

        let delta = Delta {
            virtual_servers: plan
                .virtual_servers
                .extract_if(|vip, _| vip.address == web.address)
                .map(|(vip, _)| vip)
                .collect(),
            rewrites: plan
                .rewrites
                .extract_if(|key, _| key.vip.address == web.address)
                .map(|(key, _)| key)
                .collect(),
            vips: BTreeSet::from([web.address]),
            ..Delta::default()
        };
        plan.vips.remove(&web.address);
        dataplane.apply(&plan, &delta, now).await;
        assert_eq!(dataplane.problems(), [""; 0]);
        assert!(!dataplane.holds(&plan, web.address));
        now += Duration::from_secs(60);
        dataplane.tick(&plan, now).await;
        assert_eq!(dataplane.sync(&plan, now).await, [""; 0], "after a Service went");
        assert!(!shell("nft", "list table inet sheave").contains("192.0.2.80"));
        assert!(!shell("ipvsadm", "-Sn").contains("192.0.2.80"));
    });
}

#[test]
fn source_ranges_are_held_as_they_change() {
    in_namespace("ranges", async |node| {
        let (mut plan, now) = (plan(), Instant::now());
        let mut dataplane = open(node, &plan, now).await;
        let (four, six) = (vip("192.0.2.80", Protocol::Tcp, 80), vip("2001:db8::80", Protocol::Sctp, 80));
        let histories: [(&str, VipPort, &[&str]); 10] = [
            ("some", four, &["10.0.0.0/8", "198.51.100.7/32"]),
            ("one within another", four, &["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"]),
            ("what was within, alone", four, &["10.1.0.0/16"]),
            ("what it was within", four, &["10.0.0.0/8"]),
            ("all", four, &["0.0.0.0/0"]),
            ("both halves of all", four, &["0.0.0.0/1", "128.0.0.0/1"]),
            ("nobody", four, &[]),
            ("all of the other family too", six, &["::/0"]),
            ("some of it", six, &["2001:db8::/32", "fd00::1/128"]),
            ("of the last address", six, &["ffff:ffff:ffff:ffff::/64"]),
        ];
        for (name, vip, allow) in histories {
            let allow = allow.iter().map(|net| net.parse().unwrap()).collect();
            plan.source_ranges.insert(vip, SourceRange { vip, allow });
            let delta = Delta { source_ranges: [vip].into(), ..Delta::default() };
            dataplane.apply(&plan, &delta, now).await;
            assert_eq!(dataplane.problems(), [""; 0], "{name}");
            assert_eq!(dataplane.sync(&plan, now).await, [""; 0], "{name}");
        }
        plan.source_ranges.clear();
        let delta = Delta { source_ranges: [four, six].into(), ..Delta::default() };
        dataplane.apply(&plan, &delta, now).await;
        assert_eq!(dataplane.sync(&plan, now).await, [""; 0], "none any more");
        assert!(!shell("nft", "list set inet sheave sources4").contains("192.0.2.80"));
        assert!(!shell("nft", "list set inet sheave restricted6").contains("2001:db8::80"));
    });
}

#[test]
fn tampering_is_repaired() {
    in_namespace("tamper", async |node| {
        let (plan, mut now) = (plan(), Instant::now());
        let mut dataplane = open(node, &plan, now).await;
        let good = dump();
        for (program, arguments) in [
            ("ipvsadm", "-D -t 10.96.0.80:80"),
            ("ipvsadm", "-d -u 10.96.0.80:80 -r 10.244.2.10:8080"),
            ("ipvsadm", "-E -t 192.0.2.80:80 -s rr -b flag-3"),
            ("ipvsadm", &format!("-D -f {}", mark_of("192.0.2.82 . tcp . 80"))),
            ("ipvsadm", &format!("-d -f {} -r 10.244.2.10:8080", mark_of("192.0.2.83 . udp . 80"))),
            ("nft", "flush map inet sheave internal4"),
            ("nft", "delete element inet sheave closing4 { 0x0 . 192.0.2.83 . tcp . 80 }"),
            ("nft", "flush ruleset"),
            ("nft", "flush chain inet sheave guard"),
            ("nft", "delete element inet sheave vips4 { 192.0.2.80 }"),
            ("nft", "add element inet sheave vips4 { 198.51.100.1-198.51.100.9 }"),
            ("nft", "delete element inet sheave mark4 { 10.244.1.10 }"),
            ("ip", "link del sheave4"),
            ("ip", "link set sheave6 down"),
            ("ip", "addr del 192.88.99.8/32 dev sheave4"),
            ("ip", "route del local 192.0.2.80 table local"),
            ("sysctl", "-qw net.ipv4.vs.conntrack=1"),
        ] {
            shell(program, arguments);
            now += PERIOD;
            let done = dataplane.check(&plan, now).await;
            assert!(!done.is_empty(), "{program} {arguments}: not noticed");
            assert_eq!(dataplane.problems(), [""; 0], "{program} {arguments}");
            assert_eq!(dataplane.check(&plan, now).await, [""; 0], "{program} {arguments}: second look");
            assert_eq!(dataplane.sync(&plan, now).await, [""; 0], "{program} {arguments}: sync");
        }
        // Interfaces made anew have a new index, and so a new place in the list.
        let compare = |dump: &[String]| {
            dump.iter()
                .skip(2)
                .map(|part| {
                    let mut lines: Vec<&str> = part.lines().collect();
                    lines.sort_unstable();
                    lines.join("\n")
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(compare(&dump()), compare(&good));
    });
}

/// The kernel's GUE ports.
fn ports() -> Vec<String> {
    let listed = ["-4 fou show", "-6 fou show"].map(|arguments| shell("ip", arguments));
    let mut ports: Vec<String> =
        listed.iter().flat_map(|text| text.lines()).map(|line| line.trim().into()).collect();
    ports.sort();
    ports.dedup();
    ports
}

#[test]
fn gue_is_taken_in_on_our_own_addresses_alone_and_its_ports_are_kept() {
    in_namespace("gue", async |node| {
        let (plan, mut now) = (plan(), Instant::now());
        let mut dataplane = open(node, &plan, now).await;
        assert_eq!(dataplane.accepts(), Some(Accepts { gue: true }));
        let made = ports();
        assert_eq!(made.len(), 2, "{made:?}");
        for address in ["192.88.99.8", "100::8"] {
            let has = |line: &&String| line.contains("port 6080 gue") && line.contains(address);
            assert!(made.iter().any(|line| has(&line)), "{address}: {made:?}");
        }
        let clamped = |mss: u32| shell("nft", "list chain inet sheave mss").contains(&format!("set {mss}"));
        assert!(clamped(1428) && clamped(1388));
        shell("ip", "fou del port 6080 local 192.88.99.8");
        now += PERIOD;
        assert_eq!(dataplane.check(&plan, now).await, ["made the GUE port 6080 of 192.88.99.8"]);
        assert_eq!(ports(), made);
        drop(dataplane);
        let mut second = Dataplane::open(&node.settings).unwrap();
        assert_eq!(second.sync(&plan, now).await, ["took over table inet sheave"]);
        assert_eq!(ports(), made);
    });
}

#[test]
fn without_gue_the_node_goes_on_with_ip_in_ip() {
    in_namespace("no-gue", async |node| {
        let (plan, mut now) = (plan(), Instant::now());
        shell("ip", "fou add port 6080 gue");
        let dataplane = open(node, &plan, now).await;
        assert_eq!(dataplane.accepts(), Some(Accepts { gue: false }));
        let rules = shell("nft", "list chain inet sheave outer");
        assert!(!rules.contains("6080"), "{rules}");
        assert!(shell("nft", "list chain inet sheave mss").contains("set 1440"));
        // Where directors send GUE it is a problem.
        drop(dataplane);
        let settings = Settings { encapsulation: Encapsulation::Gue, ..node.settings.clone() };
        let mut dataplane = Dataplane::open(&settings).unwrap();
        dataplane.sync(&plan, now).await;
        let problems = dataplane.problems();
        assert!(matches!(&problems[..], [one] if one.contains("another owner")), "{problems:?}");
        assert!(dataplane.is_whole() && dataplane.holds(&plan, address("10.96.0.80")));

        shell("ip", "fou del port 6080");
        let listener = std::net::UdpSocket::bind("0.0.0.0:6080").unwrap();
        now += PERIOD;
        dataplane.check(&plan, now).await;
        let problems = dataplane.problems();
        assert!(matches!(&problems[..], [one] if one.contains("a program listens")), "{problems:?}");
        drop(listener);
        now += PERIOD;
        dataplane.check(&plan, now).await;
        assert_eq!(dataplane.problems(), [""; 0]);
        assert_eq!(dataplane.accepts(), Some(Accepts { gue: true }));
        assert!(shell("nft", "list chain inet sheave outer").contains("6080"));
    });
}

/// The mark by which IPVS tells clients within the cluster of a virtual server, as nft has it.
fn mark_of(vip: &str) -> u32 {
    let map = shell("nft", "list map inet sheave internal4");
    let (_, after) = map.split_once(&format!("{vip} : ")).unwrap();
    u32::from_str_radix(after.strip_prefix("0x").unwrap().get(..8).unwrap(), 16).unwrap()
}

/// Virtual servers and destinations, without those of IPv6 marks, which may have the same numbers.
fn servers() -> Vec<String> {
    shell("ipvsadm", "-Sn").lines().filter(|line| !line.contains(" -6")).map(Into::into).collect()
}

#[test]
fn clients_within_the_cluster_have_services_of_their_own() {
    in_namespace("internal", async |node| {
        let (mut plan, now) = (plan(), Instant::now());
        let mut dataplane = open(node, &plan, now).await;
        let web = vip("192.0.2.82", Protocol::Tcp, 80);
        let mark = mark_of("192.0.2.82 . tcp . 80");
        let lines =
            |key: &str| servers().iter().filter(|line| line.starts_with(&format!("-a {key} "))).count();
        assert_eq!((lines("-t 192.0.2.82:80"), lines(&format!("-f {mark}"))), (1, 4));
        assert!(!shell("ipvsadm", "-Sn").contains("192.0.2.83"), "from outside it has no destination");
        let hidden = mark_of("192.0.2.83 . udp . 80");
        assert_eq!(lines(&format!("-f {hidden}")), 4);
        assert!(shell("nft", "list set inet sheave dropped4").contains("192.0.2.83 . udp . 80"));
        assert!(shell("nft", "list set inet sheave closed4").contains("10.0.0.11 . sctp . 30081"));
        assert!(shell("nft", "list set inet sheave closing4").contains("192.0.2.83 . tcp . 80"));
        assert!(dataplane.holds(&plan, web.address));

        // A service of the mark that somebody else has is theirs, and one of ours without a packet to it goes.
        shell("ipvsadm", "-A -f 77 -s rr");
        shell("ipvsadm", "-A -f 78 -s rr -b flag-3");
        assert_eq!(dataplane.check(&plan, now).await, ["1 IPVS operations"]);
        let all = shell("ipvsadm", "-Sn");
        assert!(all.contains("-f 77 ") && !all.contains("-f 78 "), "{all}");

        // Once the same destinations are for all, the service stays: connections are in it.
        let server = plan.virtual_servers.get_mut(&web).unwrap();
        server.destinations = server.internal.take().unwrap();
        let delta = Delta { virtual_servers: [web].into(), ..Delta::default() };
        dataplane.apply(&plan, &delta, now).await;
        assert_eq!((lines("-t 192.0.2.82:80"), mark_of("192.0.2.82 . tcp . 80")), (4, mark));
        drop(dataplane);
        let mut dataplane = open(node, &plan, now).await;
        assert_eq!((lines(&format!("-f {mark}")), mark_of("192.0.2.82 . tcp . 80")), (4, mark));
        // Without any it goes.
        plan.virtual_servers.get_mut(&web).unwrap().destinations.clear();
        dataplane.apply(&plan, &delta, now).await;
        assert!(!servers().iter().any(|line| line.contains(&format!("-f {mark} "))));
        assert!(!shell("nft", "list map inet sheave internal4").contains("192.0.2.82 . tcp . 80"));
        assert_eq!(dataplane.sync(&plan, now).await, [""; 0]);
        assert_eq!(dataplane.problems(), [""; 0]);
    });
}

#[test]
fn nftables_is_listed_when_somebody_else_made_a_transaction_and_not_otherwise() {
    in_namespace("generation", async |node| {
        let (mut plan, mut now) = (plan(), Instant::now());
        let mut dataplane = open(node, &plan, now).await;
        assert_eq!(
            dataplane.listings(),
            1,
            "there was no table to list; how nft shows our rules is learnt once"
        );
        dataplane.check(&plan, now).await;
        let web = vip("192.0.2.81", Protocol::Tcp, 80);
        for endpoint in ["10.244.1.20", "10.244.1.21"] {
            let delta = serve(&mut plan, web, VipKind::ExternalIP, &[(endpoint, Forwarding::Tunnel)]);
            dataplane.apply(&plan, &delta, now).await;
            now += PERIOD;
            assert_eq!(dataplane.check(&plan, now).await, [""; 0]);
            dataplane.tick(&plan, now).await;
            assert_eq!(dataplane.check(&plan, now).await, [""; 0], "after what lingered went");
        }
        assert_eq!(dataplane.listings(), 1, "our own transactions");
        shell("nft", "add table inet other");
        assert_eq!(dataplane.check(&plan, now).await, [""; 0]);
        assert_eq!(dataplane.listings(), 2, "another's transaction");
        shell("nft", "delete table inet other");
        dataplane.check(&plan, now).await;
        assert_eq!(dataplane.listings(), 2, "not twice in a moment");
        now += PERIOD;
        dataplane.check(&plan, now).await;
        dataplane.check(&plan, now).await;
        assert_eq!(dataplane.listings(), 3);
        // One of ours after it does not hide it.
        shell("nft", "delete element inet sheave vips4 { 192.0.2.81 }");
        let delta = serve(&mut plan, web, VipKind::ExternalIP, &[("10.244.1.22", Forwarding::Tunnel)]);
        dataplane.apply(&plan, &delta, now).await;
        now += PERIOD;
        dataplane.tick(&plan, now).await;
        assert_eq!(dataplane.check(&plan, now).await, ["added to vips4: 1 elements"]);
    });
}

#[test]
fn of_many_virtual_servers_each_is_looked_at_within_twenty_times() {
    in_namespace("rolling", async |node| {
        let (mut plan, now) = (plan(), Instant::now());
        for index in 0..2_000_u16 {
            let [high, low] = index.to_be_bytes();
            let vip =
                VipPort { address: [10, 96, 100 + high, low].into(), port: 80, protocol: Protocol::Tcp };
            serve(&mut plan, vip, VipKind::ClusterIP, &[("10.244.2.10", Forwarding::Tunnel)]);
        }
        let mut dataplane = open(node, &plan, now).await;
        let gone = ["10.96.100.7", "10.96.103.9", "10.96.105.250"];
        for address in gone {
            shell("ipvsadm", &format!("-D -t {address}:80"));
        }
        assert_eq!(dataplane.check(&plan, now).await, ["6 IPVS operations"], "virtual servers: at once");
        for address in gone {
            shell("ipvsadm", &format!("-d -t {address}:80 -r 10.244.2.10:8080"));
        }
        let mut repaired = 0;
        for _ in 0..20 {
            repaired += dataplane.check(&plan, now).await.len();
        }
        assert!((1..=3).contains(&repaired), "{repaired} times");
        assert_eq!(dataplane.sync(&plan, now).await, [""; 0]);
    });
}

#[test]
fn cleanup_leaves_the_namespace_as_it_was_and_others_alone() {
    in_namespace("cleanup", async |node| {
        for (program, arguments) in [
            ("ipvsadm", "-A -t 198.51.100.1:80 -s rr"),
            ("ipvsadm", "-A -t 10.96.0.80:80 -s wlc"),
            ("nft", "add table inet other"),
            ("ip", "route add 198.51.100.0/24 via 10.0.0.1 proto static"),
        ] {
            shell(program, arguments);
        }
        let before = dump();
        let (plan, now) = (plan(), Instant::now());
        let mut dataplane = Dataplane::open(&node.settings).unwrap();
        dataplane.sync(&plan, now).await;
        let problems = dataplane.problems();
        assert!(
            matches!(&problems[..], [one] if one.contains("TCP 10.96.0.80:80") && one.contains("another owner")),
            "{problems:?}"
        );
        assert!(!dataplane.holds(&plan, address("10.96.0.80")));
        assert!(dataplane.holds(&plan, address("192.0.2.80")));
        drop(dataplane);
        let lock = Lock::take(&node.settings.state_directory).unwrap();
        let done = dataplane::cleanup(&node.settings, &lock).await.unwrap();
        assert!(!done.is_empty());
        for (after, before) in dump().iter().zip(&before) {
            assert_eq!(after, before);
        }
        assert_eq!(dataplane::cleanup(&node.settings, &lock).await.unwrap(), [""; 0], "second cleanup");
    });
}

#[test]
fn arp_is_strict_where_the_config_says_so() {
    in_namespace("arp", async |node| {
        let arp = || {
            ["arp_ignore", "arp_announce"].map(|key| {
                let value = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/all/{key}")).unwrap();
                value.trim().to_owned()
            })
        };
        let found = arp();
        for (strict_arp, expected) in [(false, &found), (true, &["1".to_owned(), "2".to_owned()])] {
            let settings = Settings { strict_arp, ..node.settings.clone() };
            let mut dataplane = Dataplane::open(&settings).unwrap();
            dataplane.sync(&plan(), Instant::now()).await;
            assert_eq!(arp(), *expected, "strictARP: {strict_arp}");
        }
        let lock = Lock::take(&node.settings.state_directory).unwrap();
        dataplane::cleanup(&node.settings, &lock).await.unwrap();
        assert_eq!(arp(), found);
    });
}

#[test]
fn connection_tracking_remembers_what_is_half_closed_for_an_hour() {
    const SETTING: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    in_namespace("patience", async |node| {
        let value = || std::fs::read_to_string(SETTING).unwrap().trim().to_owned();
        let mut dataplane = Dataplane::open(&node.settings).unwrap();
        // Connection tracking may come with the first rules alone.
        dataplane.sync(&plan(), Instant::now()).await;
        dataplane.check(&plan(), Instant::now()).await;
        assert_eq!(dataplane.problems(), [""; 0]);
        assert_eq!(value(), "3600");
        std::fs::write(SETTING, "7200").unwrap();
        dataplane.check(&plan(), Instant::now()).await;
        assert_eq!(value(), "7200", "more stays");
        std::fs::write(SETTING, "3600").unwrap();
        drop(dataplane);
        let lock = Lock::take(&node.settings.state_directory).unwrap();
        dataplane::cleanup(&node.settings, &lock).await.unwrap();
        assert_eq!(value(), "60", "the kernel's own");
    });
}

#[test]
fn a_vip_that_is_an_address_of_this_host_stays_the_hosts() {
    in_namespace("taken", async |node| {
        shell("ip", "link add dns0 type dummy");
        for taken in ["192.0.2.80/32", "10.96.0.80/32"] {
            shell("ip", &format!("addr add {taken} dev dns0"));
        }
        shell("ip", "link set dns0 up");
        let before = shell("ip", "route show table local dev dns0");
        let (plan, now) = (plan(), Instant::now());
        let mut dataplane = Dataplane::open(&node.settings).unwrap();
        dataplane.sync(&plan, now).await;
        let problems = dataplane.problems();
        assert!(problems.iter().any(|problem| problem.contains("192.0.2.80 is an address of this host")));
        for taken in ["192.0.2.80", "10.96.0.80"] {
            assert!(!dataplane.holds(&plan, address(taken)), "{taken}");
            assert!(!shell("ipvsadm", "-Sn").contains(&format!("{taken}:80")), "{taken}");
            assert!(shell("nft", "list set inet sheave taken4").contains(taken), "{taken}");
        }
        assert_eq!(shell("ip", "route show table local dev dns0"), before);
        shell("ip", "link del dns0");
        dataplane.sync(&plan, now).await;
        assert_eq!(dataplane.problems(), [""; 0]);
        assert!(
            dataplane.holds(&plan, address("192.0.2.80")) && dataplane.holds(&plan, address("10.96.0.80"))
        );
    });
}

#[test]
fn a_node_without_ipv6_needs_none() {
    in_namespace("ipv4", async |node| {
        shell("sysctl", "-qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        let mut plan = plan();
        plan.node.addresses.retain(IpAddr::is_ipv4);
        plan.node.service_cidrs.retain(|cidr| cidr.addr().is_ipv4());
        plan.virtual_servers.retain(|vip, _| vip.address.is_ipv4());
        plan.rewrites.retain(|key, _| key.endpoint.is_ipv4());
        plan.vips.retain(|vip, _| vip.is_ipv4());
        let dataplane = open(node, &plan, Instant::now()).await;
        assert!(dataplane.holds(&plan, address("192.0.2.80")));
    });
}

#[test]
fn two_agents_cannot_have_one_node() {
    in_namespace("lock", async |node| {
        let first = Dataplane::open(&node.settings).unwrap();
        let second = Dataplane::open(&node.settings).err().unwrap();
        assert!(second.to_string().contains("an agent runs on this node"), "{second}");
        assert!(Lock::take(&node.settings.state_directory).is_err());
        drop(first);
        Dataplane::open(&node.settings).unwrap();
    });
}
