//! What one Service comes to, rule by rule.

use sheave::cluster::{EndpointPort, LoadBalancerIp, Protocol, ServicePort, Skipped};
use sheave::config::{NodePortAddresses, Schedulers};
use sheave::plan::Scheduler;

use crate::build::{World, ip, lines, mk_endpoint, mk_load_balancer_ip, mk_port, mk_slice};

/// What differs from [`World::new`], and the whole plan it comes to.
pub(crate) struct Case(
    pub(crate) &'static str,
    pub(crate) fn(&mut World),
    pub(crate) &'static [&'static str],
);

pub(crate) fn check(cases: &[Case]) {
    for Case(name, change, expected) in cases {
        let mut world = World::new();
        change(&mut world);
        assert_eq!(lines(&world.plan()), *expected, "{name}");
    }
}

const ACCEPT: &str = "accept 10.244.1.10 at 8080 for TCP 10.96.0.80:80";

/// A macro only because `concat!` takes no constants.
macro_rules! to_all {
    ($head:literal) => {
        concat!($head, ": Tunnel 10.244.1.10:8080, Tunnel 10.244.2.10:8080, Nat 10.244.3.10:8080")
    };
}

const PLAIN: &str = to_all!("ClusterIP TCP 10.96.0.80:80 Rr");

#[test]
fn endpoints() {
    check(&[
        Case(
            "not ready: no connections, but old ones are still taken in",
            |w| w.slices[0].endpoints[0].ready = false,
            &["ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.2.10:8080, Nat 10.244.3.10:8080", ACCEPT],
        ),
        Case(
            "terminating: no new connections",
            |w| {
                w.slices[0].endpoints[1].terminating = true;
                w.slices[0].endpoints[1].ready = false;
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.1.10:8080, Tunnel 10.244.2.10:8080 drains, \
                 Nat 10.244.3.10:8080",
                ACCEPT,
            ],
        ),
        Case(
            "several slices; canonical order is by address as a number",
            |w| {
                w.slices = vec![
                    mk_slice("s1", "web", 8080, &["10.244.10.1@node-a"]),
                    mk_slice("s2", "web", 9090, &["10.244.9.1@node-b"]),
                ];
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.9.1:9090, Tunnel 10.244.10.1:8080",
                "accept 10.244.10.1 at 8080 for TCP 10.96.0.80:80",
            ],
        ),
        Case(
            "the same endpoint in two slices is one",
            |w| {
                w.slices.push(w.slices[0].clone());
            },
            &[PLAIN, ACCEPT],
        ),
        Case(
            "two target ports at one address: the lowest",
            |w| w.slices.push(mk_slice("s2", "web", 80, &["10.244.1.10@node-a"])),
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.1.10:80, Tunnel 10.244.2.10:8080, Nat 10.244.3.10:8080",
                "accept 10.244.1.10 at 80 for TCP 10.96.0.80:80",
                "warn AmbiguousTargetPort",
            ],
        ),
        Case(
            "two target ports at one address, one not ready: the ready one",
            |w| {
                w.slices = vec![
                    mk_slice("s1", "web", 80, &["10.244.1.10@node-a"]),
                    mk_slice("s2", "web", 90, &["10.244.1.10@node-a"]),
                ];
                w.slices[0].endpoints[0].ready = false;
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.1.10:90",
                "accept 10.244.1.10 at 90 for TCP 10.96.0.80:80",
            ],
        ),
        Case(
            "ports are joined by name and protocol",
            |w| {
                w.service.ports.push(ServicePort { protocol: Protocol::Udp, ..mk_port("dns", 53) });
                w.slices[0].ports.push(EndpointPort {
                    name: Some("dns".into()),
                    protocol: Protocol::Udp,
                    port: 5353,
                });
                w.slices[0].endpoints.truncate(1);
            },
            &[
                "ClusterIP UDP 10.96.0.80:53 Rr: Tunnel 10.244.1.10:5353",
                "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.1.10:8080",
                "accept 10.244.1.10 at 5353 for UDP 10.96.0.80:53",
                "accept 10.244.1.10 at 8080 for TCP 10.96.0.80:80",
            ],
        ),
        Case(
            "no endpoints: a virtual server all the same, so that it refuses",
            |w| w.slices.clear(),
            &["ClusterIP TCP 10.96.0.80:80 Rr: "],
        ),
        Case(
            "each family has its own endpoints",
            |w| {
                w.service.cluster_ips.push(ip("fd00:96::80"));
                w.slices[0].endpoints.truncate(1);
                w.slices.push(mk_slice("s6", "web", 8080, &["fd00:244:2::10@node-b"]));
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.1.10:8080",
                "ClusterIP TCP [fd00:96::80]:80 Rr: Tunnel [fd00:244:2::10]:8080",
                ACCEPT,
            ],
        ),
    ]);
}

#[test]
fn addresses() {
    check(&[
        Case("headless", |w| w.service.skipped = Some(Skipped::Headless), &[]),
        Case("ExternalName", |w| w.service.skipped = Some(Skipped::ExternalName), &[]),
        Case("another proxy's", |w| w.service.skipped = Some(Skipped::OtherProxy), &[]),
        Case(
            "external IP that nobody granted",
            |w| w.service.external_ips = vec![ip("192.0.2.80")],
            &[PLAIN, ACCEPT, "warn ExternalIPNotAllowed"],
        ),
        Case(
            "external IP",
            |w| {
                w.service.external_ips = vec![ip("192.0.2.80")];
                w.config.services.external_ips.allow = vec!["192.0.2.0/24".parse().unwrap()];
            },
            &[
                PLAIN,
                to_all!("ExternalIP TCP 192.0.2.80:80 Mh fallback port"),
                ACCEPT,
                "accept 10.244.1.10 at 8080 for TCP 192.0.2.80:80",
                "announce 192.0.2.80/32 ExternalIP",
            ],
        ),
        Case(
            "an external IP that is a node's own would cut the node off",
            |w| {
                w.service.external_ips = vec![ip("10.0.0.2")];
                w.config.services.external_ips.allow = vec!["0.0.0.0/0".parse().unwrap()];
            },
            &[PLAIN, ACCEPT, "warn AddressOfNode"],
        ),
        Case(
            "load-balancer IP with source ranges of its family",
            |w| {
                w.service.load_balancer_ips = vec![mk_load_balancer_ip("198.51.100.1")];
                w.service.source_ranges =
                    vec!["203.0.113.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
                w.slices[0].endpoints = vec![mk_endpoint("10.244.2.10@node-b")];
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.2.10:8080",
                "LoadBalancerIP TCP 198.51.100.1:80 Mh fallback port: Tunnel 10.244.2.10:8080",
                "announce 198.51.100.1/32 LoadBalancerIP",
                "only 203.0.113.0/24 to TCP 198.51.100.1:80",
            ],
        ),
        Case(
            "source ranges of the other family alone drop all",
            |w| {
                w.service.load_balancer_ips = vec![mk_load_balancer_ip("198.51.100.1")];
                w.service.source_ranges = vec!["2001:db8::/32".parse().unwrap()];
                w.slices.clear();
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: ",
                "LoadBalancerIP TCP 198.51.100.1:80 Mh fallback port: ",
                "only  to TCP 198.51.100.1:80",
            ],
        ),
        Case(
            "ipMode Proxy",
            |w| {
                w.service.load_balancer_ips =
                    vec![LoadBalancerIp { address: ip("198.51.100.1"), proxied: true }];
            },
            &[PLAIN, ACCEPT],
        ),
        Case(
            "another's load-balancer class",
            |w| {
                w.service.load_balancer_ips = vec![mk_load_balancer_ip("198.51.100.1")];
                w.service.load_balancer_class = Some("example.com/edge".into());
            },
            &[PLAIN, ACCEPT],
        ),
        Case(
            "load-balancer and external IPs of a family that the Service has not are left to others",
            |w| {
                w.service.load_balancer_ips = vec![mk_load_balancer_ip("2001:db8::1")];
                w.service.external_ips = vec![ip("2001:db8::2")];
                w.config.services.external_ips.allow = vec!["::/0".parse().unwrap()];
            },
            &[PLAIN, ACCEPT],
        ),
        Case(
            "our load-balancer class",
            |w| {
                w.service.load_balancer_ips = vec![mk_load_balancer_ip("198.51.100.1")];
                w.service.load_balancer_class = Some("sheave.io/bgp".into());
                w.config.services.load_balancer_class = Some("sheave.io/bgp".into());
                w.slices[0].endpoints = vec![mk_endpoint("10.244.2.10@node-b")];
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.2.10:8080",
                "LoadBalancerIP TCP 198.51.100.1:80 Mh fallback port: Tunnel 10.244.2.10:8080",
                "announce 198.51.100.1/32 LoadBalancerIP",
            ],
        ),
        Case(
            "a node port is always nat, but masquerade to own addresses, in the Service's families",
            |w| {
                w.service.ports[0].node_port = Some(30080);
                w.slices[0].endpoints.push(mk_endpoint("10.0.0.1@node-a"));
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Masquerade 10.0.0.1:8080, Tunnel 10.244.1.10:8080, \
                 Tunnel 10.244.2.10:8080, Nat 10.244.3.10:8080",
                "NodePort TCP 10.0.0.1:30080 Rr: Masquerade 10.0.0.1:8080, Nat 10.244.1.10:8080, \
                 Nat 10.244.2.10:8080, Nat 10.244.3.10:8080",
                "accept 10.0.0.1 at 8080 for TCP 10.96.0.80:80",
                ACCEPT,
            ],
        ),
    ]);
}

#[test]
fn schedulers() {
    check(&[
        Case(
            "an announced cluster IP is reached from outside",
            |w| w.config.announce.cluster_ips = true,
            &[
                to_all!("ClusterIP TCP 10.96.0.80:80 Mh fallback port"),
                ACCEPT,
                "announce 10.96.0.80/32 ClusterIP",
            ],
        ),
        Case(
            "config",
            |w| {
                w.config.services.scheduler = Schedulers { internal: Scheduler::Wlc, ..Schedulers::default() }
            },
            &[to_all!("ClusterIP TCP 10.96.0.80:80 Wlc"), ACCEPT],
        ),
        Case(
            "annotation",
            |w| {
                w.config.services.scheduler.internal = Scheduler::Wlc;
                w.annotate("sheave.io/scheduler", "sh");
                w.annotate("sheave.io/scheduler-flags", "sh-port");
            },
            &[to_all!("ClusterIP TCP 10.96.0.80:80 Sh port"), ACCEPT],
        ),
        Case(
            "kube-router's annotation, ours first",
            |w| {
                w.annotate("kube-router.io/service.scheduler", "mh");
                w.annotate("kube-router.io/service.schedflags", "flag-1");
            },
            &[to_all!("ClusterIP TCP 10.96.0.80:80 Mh fallback"), ACCEPT],
        ),
        Case(
            "flags of a scheduler that has none",
            |w| {
                w.annotate("sheave.io/scheduler", "wlc");
                w.annotate("sheave.io/scheduler-flags", "mh-port");
            },
            &[to_all!("ClusterIP TCP 10.96.0.80:80 Wlc"), ACCEPT, "warn SchedulerFlagsIgnored"],
        ),
        Case(
            "kube-router's flags, and the scheduler that the kind of address has",
            |w| w.annotate("kube-router.io/service.schedflags", "flag-1,flag-2"),
            &[PLAIN, ACCEPT, "warn SchedulerFlagsIgnored"],
        ),
        Case("no flags are asked for", |w| w.annotate("sheave.io/scheduler-flags", ""), &[PLAIN, ACCEPT]),
        Case(
            "affinity by persistence",
            |w| w.service.client_ip_affinity = Some(600),
            &[to_all!("ClusterIP TCP 10.96.0.80:80 Rr 600s"), ACCEPT],
        ),
        Case(
            "affinity by mh is without the port, and without persistence",
            |w| {
                w.service.client_ip_affinity = Some(600);
                w.annotate("sheave.io/scheduler", "mh");
            },
            &[to_all!("ClusterIP TCP 10.96.0.80:80 Mh fallback"), ACCEPT],
        ),
    ]);
}

#[test]
fn announcements() {
    check(&[
        Case(
            "attributes from annotations and config",
            |w| {
                w.config.announce.communities = "65000:1".parse().unwrap();
                w.annotate("sheave.io/announce", "clusterIP");
                w.annotate("sheave.io/communities", "65000:100, 65000:1:2");
                w.annotate("sheave.io/local-pref", "200");
                w.annotate("sheave.io/med", "10");
                w.annotate("sheave.io/path-prepend", "2");
            },
            &[
                to_all!("ClusterIP TCP 10.96.0.80:80 Mh fallback port"),
                ACCEPT,
                "announce 10.96.0.80/32 ClusterIP 65000:1 65000:100 65000:1:2 local-pref 200 med 10 prepend 2",
            ],
        ),
        Case(
            "nothing, by annotation",
            |w| {
                w.config.announce.cluster_ips = true;
                w.annotate("sheave.io/announce", "none");
            },
            &[PLAIN, ACCEPT],
        ),
        Case(
            "kube-router's annotation",
            |w| w.annotate("kube-router.io/service.advertise.clusterip", "true"),
            &[
                to_all!("ClusterIP TCP 10.96.0.80:80 Mh fallback port"),
                ACCEPT,
                "announce 10.96.0.80/32 ClusterIP",
            ],
        ),
        Case(
            "not without an endpoint",
            |w| {
                w.config.announce.cluster_ips = true;
                w.slices.clear();
            },
            &["ClusterIP TCP 10.96.0.80:80 Mh fallback port: "],
        ),
        Case(
            "one port with endpoints is enough",
            |w| {
                w.config.announce.cluster_ips = true;
                w.service.ports.push(mk_port("https", 443));
                w.slices[0].endpoints = vec![mk_endpoint("10.244.2.10@node-b")];
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Mh fallback port: Tunnel 10.244.2.10:8080",
                "ClusterIP TCP 10.96.0.80:443 Mh fallback port: ",
                "announce 10.96.0.80/32 ClusterIP",
            ],
        ),
    ]);
}

#[test]
fn wrong_annotations_are_told() {
    check(&[Case(
        "a wrong annotation, and one that does not exist",
        |w| {
            w.annotate("sheave.io/med", "much");
            w.annotate("sheave.io/communites", "65000:1");
        },
        &[PLAIN, ACCEPT, "warn InvalidAnnotation", "warn UnknownAnnotation"],
    )]);
}

#[test]
fn node_port_addresses_within_a_cidr() {
    let mut world = World::new();
    world.config.services.node_port_addresses =
        vec![NodePortAddresses::Within("10.0.0.0/8".parse().unwrap())];
    let mut planner = sheave::plan::Planner::new("node-a", world.config);
    world.service.cluster_ips.clear();
    world.service.ports[0].node_port = Some(30080);
    let node = crate::build::mk_node("node-a", &["192.0.2.1", "10.0.0.1", "10.0.0.9"]);
    planner.handle([
        sheave::cluster::Event::Apply(sheave::cluster::Object::Node(node.into())),
        sheave::cluster::Event::Apply(sheave::cluster::Object::Service(world.service.into())),
    ]);
    let mut listening: Vec<_> = planner.plan().virtual_servers.keys().map(ToString::to_string).collect();
    listening.sort();
    assert_eq!(listening, ["TCP 10.0.0.1:30080", "TCP 10.0.0.9:30080"]);
    assert!(planner.plan().vips.is_empty(), "a node's own address is no VIP");
}
