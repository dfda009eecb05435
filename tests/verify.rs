//! A VIP is announced when the kernel says that it has all it takes, and not because it was told to. Against a real kernel.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

mod builders;
mod namespace;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave::cluster::Protocol;
use sheave::config::MarkMask;
use sheave::dataplane::{Dataplane, Settings};
use sheave::plan::{
    Announcement, AnnouncementKind, Delta, Forwarding, NodePlan, RewriteKey, RewriteSide, VipKind, VipPort,
};
use sheave_ipvs::{Operation, ServiceKey};

use self::builders::{mk_announcement, mk_destination, mk_rewrite, mk_virtual_server};
use self::namespace::{Node, address, dump, in_namespace, shell};

/// How often an agent looks.
const PERIOD: Duration = Duration::from_secs(15);

/// Two VIPs of each family: the second is the one that others meddle with.
const VIPS: [&str; 4] = ["192.0.2.80", "2001:db8::80", "192.0.2.81", "2001:db8::81"];

/// A node that has these VIPs and nobody behind them.
fn without_endpoints() -> NodePlan {
    let mut plan = NodePlan::new("node-a");
    plan.node.addresses = vec![address("10.0.0.11"), address("fd00:10::11")];
    plan.node.pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"].map(|net| net.parse().unwrap()).into();
    plan.node.tunnel_sources = ["10.0.0.11", "fd00:10::11"].map(address).into();
    for vip in VIPS {
        let vip = VipPort { address: address(vip), port: 80, protocol: Protocol::Tcp };
        plan.vips.insert(vip.address, 1);
        plan.virtual_servers.insert(vip, mk_virtual_server(vip, VipKind::LoadBalancerIP));
    }
    plan
}

/// Gives every VIP an endpoint here and one elsewhere, with which they are to be announced.
fn endpoints_come(plan: &mut NodePlan) -> Delta {
    let mut delta = Delta::default();
    for vip in VIPS.map(address) {
        let vip = VipPort { address: vip, port: 80, protocol: Protocol::Tcp };
        let endpoints = if vip.address.is_ipv4() {
            ["10.244.1.10", "10.244.2.10"]
        } else {
            ["fd00:244:1::a", "fd00:244:2::a"]
        };
        let destination = |endpoint: &str| mk_destination(address(endpoint), Forwarding::Tunnel);
        plan.virtual_servers.get_mut(&vip).unwrap().destinations = endpoints.map(destination).into();
        let key = RewriteKey { endpoint: address(endpoints[0]), side: RewriteSide::Endpoint, vip };
        plan.rewrites.insert(key, mk_rewrite(true));
        announce(plan, vip);
        delta.virtual_servers.insert(vip);
        delta.rewrites.insert(key);
        delta.announcements.insert(vip.address.into());
    }
    delta
}

fn announce(plan: &mut NodePlan, vip: VipPort) {
    let announcement = Announcement {
        service: Some(plan.virtual_servers[&vip].service.clone()),
        ..mk_announcement(vip.address.into(), AnnouncementKind::LoadBalancerIP)
    };
    plan.announcements.insert(announcement.prefix, announcement);
}

fn open(node: &Node) -> Dataplane {
    Dataplane::open(&node.settings).unwrap()
}

fn run(commands: &[&str]) {
    for command in commands {
        let (program, arguments) = command.split_once(' ').unwrap();
        shell(program, arguments);
    }
}

/// The VIPs that may be announced.
fn held(dataplane: &Dataplane, plan: &NodePlan) -> Vec<&'static str> {
    VIPS.into_iter().filter(|vip| dataplane.holds(plan, address(vip))).collect()
}

/// What others do → whether it was not there yet when a VIP's first endpoint comes.
const DAMAGE: [(&str, &[&str]); 9] = [
    ("routes", &["ip route del local 192.0.2.81 dev lo", "ip -6 route del local 2001:db8::81 dev lo"]),
    (
        "the guard's elements",
        &[
            "nft delete element inet sheave vips4 { 192.0.2.81 }",
            "nft delete element inet sheave vips6 { 2001:db8::81 }",
        ],
    ),
    ("the guard's rules", &["nft flush chain inet sheave guard"]),
    ("the whole table", &["nft delete table inet sheave"]),
    ("a tunnel device", &["ip link del sheave4"]),
    ("a tunnel device that is down", &["ip link set sheave6 down"]),
    ("a setting of IPVS", &["sysctl -qw net.ipv4.vs.conntrack=1"]),
    ("a setting of the uplink", &["sysctl -qw net.ipv4.conf.up0.rp_filter=1"]),
    ("forwarding", &["sysctl -qw net.ipv4.ip_forward=0"]),
];

#[test]
fn what_went_missing_since_it_was_written_is_found_before_the_first_announcement() {
    for (number, (name, damage)) in DAMAGE.into_iter().enumerate() {
        in_namespace(&format!("first-{number}"), async |node| {
            let (mut plan, now) = (without_endpoints(), Instant::now());
            let mut dataplane = open(node);
            dataplane.sync(&plan, now).await;
            run(damage);
            let delta = endpoints_come(&mut plan);
            dataplane.apply(&plan, &delta, now).await;
            assert_eq!(held(&dataplane, &plan), VIPS, "{name}");
            assert_eq!(dataplane.problems(), [""; 0], "{name}");
            assert_eq!(dataplane.sync(&plan, now).await, [""; 0], "{name}: all of it was repaired first");
        });
    }
}

/// A VIP, what is in its way and cannot be repaired by us, what ends that, and the problem until then.
type Obstacle = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

const OBSTACLES: [Obstacle; 4] = [
    (
        "192.0.2.81",
        &[
            "ip rule add pref 10 lookup local",
            "ip rule del pref 0",
            "ip rule add pref 5 to 192.0.2.81 blackhole",
        ],
        &["ip rule del pref 5"],
        &["VIP 192.0.2.81: there is no route local 192.0.2.81/32: 192.0.2.81 is unreachable from here"],
    ),
    (
        "192.0.2.81",
        &[
            "ip rule add pref 10 lookup local",
            "ip rule del pref 0",
            "ip route add 192.0.2.81 via 10.0.0.9 table 7",
            "ip rule add pref 5 lookup 7",
        ],
        &["ip rule del pref 5"],
        &[
            "VIP 192.0.2.81: there is no route local 192.0.2.81/32: a packet for 192.0.2.81 goes along 192.0.2.81/32 via 10.0.0.9",
        ],
    ),
    (
        "2001:db8::81",
        &["ip -6 route add local 2001:db8::81 dev up0 table local metric 1"],
        &["ip -6 route del local 2001:db8::81 dev up0 table local metric 1"],
        &[
            "VIP 2001:db8::81: a packet for 2001:db8::81 is taken in by local 2001:db8::81/128; planned is a route of \
             Sheave's, local 2001:db8::81/128",
        ],
    ),
    (
        "2001:db8::81",
        &[
            "ip -6 rule add pref 10 lookup local",
            "ip -6 rule del pref 0",
            "ip -6 rule add pref 5 to 2001:db8::81 unreachable",
        ],
        &["ip -6 rule del pref 5"],
        &[
            "VIP 2001:db8::81: there is no route local 2001:db8::81/128: 2001:db8::81 is unreachable from here",
        ],
    ),
];

#[test]
fn what_cannot_be_repaired_keeps_one_vip_from_being_announced_until_it_is_gone() {
    for (number, (vip, obstacle, remedy, problem)) in OBSTACLES.into_iter().enumerate() {
        let others: Vec<&str> = VIPS.into_iter().filter(|one| *one != vip).collect();
        for first in [true, false] {
            let name = format!("{vip} {obstacle:?}, at first: {first}");
            in_namespace(&format!("obstacle-{number}-{first}"), async |node| {
                let (mut plan, mut now) = (without_endpoints(), Instant::now());
                let mut dataplane = open(node);
                dataplane.sync(&plan, now).await;
                if first {
                    run(obstacle);
                }
                let delta = endpoints_come(&mut plan);
                dataplane.apply(&plan, &delta, now).await;
                if !first {
                    assert_eq!(held(&dataplane, &plan), VIPS, "{name}");
                    run(obstacle);
                    now += PERIOD;
                    dataplane.check(&plan, now).await;
                }
                let before = dump();
                for look in 0..3 {
                    assert_eq!(held(&dataplane, &plan), others, "{name}, look {look}");
                    assert_eq!(dataplane.problems(), problem, "{name}, look {look}");
                    assert_eq!(dataplane.problem_counts()["vip"], 1, "{name}");
                    assert!(problem[0].ends_with(&dataplane.obstacles(&plan, address(vip))[0]), "{name}");
                    now += PERIOD;
                    assert_eq!(
                        dataplane.check(&plan, now).await,
                        [""; 0],
                        "{name}: nothing is tried again and again"
                    );
                }
                assert_eq!(dump(), before, "{name}");
                run(remedy);
                now += PERIOD;
                dataplane.check(&plan, now).await;
                assert_eq!(held(&dataplane, &plan), VIPS, "{name}, mended");
                assert_eq!(dataplane.problems(), [""; 0], "{name}");
            });
        }
    }
}

#[test]
fn what_others_give_back_is_asked_for_before_it_is_announced_and_has_its_turn_then() {
    in_namespace("given-back", async |node| {
        let (mut plan, mut now) = (without_endpoints(), Instant::now());
        endpoints_come(&mut plan);
        run(&["ipvsadm -A -t 192.0.2.81:80 -s rr", "ipvsadm -A -t [2001:db8::81]:80 -s rr"]);
        let mut dataplane = open(node);
        dataplane.sync(&plan, now).await;
        assert_eq!(held(&dataplane, &plan), VIPS[..2], "another owner has the virtual servers");
        let obstacles = |dataplane: &Dataplane| dataplane.obstacles(&plan, address("192.0.2.81")).join("; ");
        assert!(obstacles(&dataplane).contains("another owner"), "{}", obstacles(&dataplane));
        let (_, obstacle, remedy, _) = OBSTACLES[0];
        run(obstacle);
        run(&["ipvsadm -D -t 192.0.2.81:80", "ipvsadm -D -t [2001:db8::81]:80"]);
        let before = dataplane.obstructed();
        now += PERIOD;
        dataplane.check(&plan, now).await;
        assert_eq!(held(&dataplane, &plan), ["192.0.2.80", "2001:db8::80", "2001:db8::81"]);
        assert!(obstacles(&dataplane).contains("no route local"), "{}", obstacles(&dataplane));
        assert_ne!(dataplane.obstructed(), before, "announcements have to follow");
        for (meddling, expected) in
            [(remedy, &VIPS[..]), (&obstacle[2..], &["192.0.2.80", "2001:db8::80", "2001:db8::81"])]
        {
            run(meddling);
            now += PERIOD;
            dataplane.check(&plan, now).await;
            assert_eq!(held(&dataplane, &plan), expected, "{meddling:?}");
        }
    });
}

#[test]
fn what_can_be_repaired_withdraws_nothing() {
    in_namespace("repaired", async |node| {
        let (mut plan, mut now) = (without_endpoints(), Instant::now());
        endpoints_come(&mut plan);
        let mut dataplane = open(node);
        dataplane.sync(&plan, now).await;
        let more: [(&str, &[&str]); 2] = [
            ("a virtual server", &["ipvsadm -D -t 192.0.2.81:80", "ipvsadm -D -t [2001:db8::81]:80"]),
            ("a destination", &["ipvsadm -d -t 192.0.2.81:80 -r 10.244.2.10:8080"]),
        ];
        for (name, damage) in more.into_iter().chain(DAMAGE) {
            run(damage);
            now += PERIOD;
            assert_ne!(dataplane.check(&plan, now).await, [""; 0], "{name}");
            assert_eq!(held(&dataplane, &plan), VIPS, "{name}");
            assert_eq!(dataplane.problems(), [""; 0], "{name}");
        }
    });
}

#[test]
fn a_foreign_weight_or_destination_is_put_right_before_the_first_announcement() {
    in_namespace("adopted", async |node| {
        let (mut plan, now) = (without_endpoints(), Instant::now());
        let mut dataplane = open(node);
        dataplane.sync(&plan, now).await;
        let delta = endpoints_come(&mut plan);
        plan.announcements.clear();
        dataplane.apply(&plan, &delta, now).await;
        let mut ipvs = sheave_ipvs::Ipvs::open().unwrap();
        for vip in VIPS.map(address) {
            let key = ServiceKey::Address { protocol: sheave_ipvs::Protocol::Tcp, address: vip, port: 80 };
            let known = ipvs.service(&key).unwrap().unwrap().destinations[0].destination;
            let other = if vip.is_ipv4() { address("10.244.9.9") } else { address("fd00:244:9::9") };
            let stranger = sheave_ipvs::Destination::new(other, 8080, sheave_ipvs::ForwardingMethod::Tunnel);
            let meddling = [
                Operation::SetDestination(key, sheave_ipvs::Destination { weight: 0, ..known }),
                Operation::AddDestination(key, sheave_ipvs::Destination { weight: 7, ..stranger }),
            ];
            assert!(ipvs.apply(meddling).unwrap().failures.is_empty());
        }
        // What was written before is to be announced only now.
        let written: Vec<VipPort> = delta.virtual_servers.iter().copied().collect();
        written.into_iter().for_each(|vip| announce(&mut plan, vip));
        let announced = Delta { announcements: delta.announcements.clone(), ..Delta::default() };
        dataplane.apply(&plan, &announced, now).await;
        assert_eq!(held(&dataplane, &plan), VIPS);
        for vip in VIPS.map(address) {
            let key = ServiceKey::Address { protocol: sheave_ipvs::Protocol::Tcp, address: vip, port: 80 };
            let destinations = ipvs.service(&key).unwrap().unwrap().destinations;
            let weights: Vec<u32> = destinations.iter().map(|entry| entry.destination.weight).collect();
            assert_eq!(weights, [1, 1], "{vip}");
        }
    });
}

#[test]
fn a_vip_whose_endpoints_are_all_out_of_reach_is_not_announced() {
    in_namespace("reach", async |node| {
        // One endpoint alone can have a number.
        let mark_mask = MarkMask::new(0x3).unwrap();
        let settings = Settings { mark_mask, ..node.settings.clone() };
        let (mut plan, now) = (without_endpoints(), Instant::now());
        let mut dataplane = Dataplane::open(&settings).unwrap();
        dataplane.sync(&plan, now).await;
        let nat = |plan: &mut NodePlan, vip: &str, endpoint: &str| {
            let vip = VipPort { address: address(vip), port: 80, protocol: Protocol::Tcp };
            let server = plan.virtual_servers.get_mut(&vip).unwrap();
            server.destinations = vec![mk_destination(address(endpoint), Forwarding::Nat)];
            let key = RewriteKey { endpoint: address(endpoint), side: RewriteSide::Director, vip };
            plan.rewrites.insert(key, mk_rewrite(false));
            announce(plan, vip);
            Delta {
                virtual_servers: BTreeSet::from([vip]),
                rewrites: BTreeSet::from([key]),
                announcements: BTreeSet::from([IpNet::from(vip.address)]),
                ..Delta::default()
            }
        };
        for (vip, endpoint) in [("192.0.2.80", "203.0.113.1"), ("192.0.2.81", "203.0.113.2")] {
            let delta = nat(&mut plan, vip, endpoint);
            dataplane.apply(&plan, &delta, now).await;
        }
        let announced = |dataplane: &Dataplane, plan: &NodePlan| {
            ["192.0.2.80", "192.0.2.81"].map(|vip| dataplane.holds(plan, address(vip)))
        };
        assert_eq!(announced(&dataplane, &plan), [true, false]);
        let problems = dataplane.problems();
        assert!(
            problems.iter().any(|problem| problem.contains("192.0.2.81:80: none of its endpoints")),
            "{problems:?}"
        );
        // Through the same endpoint it can be reached.
        let gone = RewriteKey {
            endpoint: address("203.0.113.2"),
            side: RewriteSide::Director,
            vip: VipPort { address: address("192.0.2.81"), port: 80, protocol: Protocol::Tcp },
        };
        plan.rewrites.remove(&gone);
        let mut delta = nat(&mut plan, "192.0.2.81", "203.0.113.1");
        delta.rewrites.insert(gone);
        dataplane.apply(&plan, &delta, now).await;
        assert_eq!(announced(&dataplane, &plan), [true, true]);
        assert_eq!(dataplane.problems(), [""; 0]);
    });
}
