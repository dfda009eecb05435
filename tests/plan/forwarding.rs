//! How endpoints are reached, for all clients and for each kind of them.

use sheave::cluster::{Accepts, Encapsulation, TrafficPolicy};
use sheave::plan::{Forwarding, Scheduler};

use crate::build::{World, mk_load_balancer_ip, mk_slice};
use crate::rules::{Case, check};

/// Macros only because `concat!` takes no constants.
macro_rules! to_all {
    ($head:literal) => {
        concat!($head, ": Tunnel 10.244.1.10:8080, Tunnel 10.244.2.10:8080, Nat 10.244.3.10:8080")
    };
}

macro_rules! all_nat {
    ($head:literal) => {
        concat!($head, ": Nat 10.244.1.10:8080, Nat 10.244.2.10:8080, Nat 10.244.3.10:8080")
    };
}

/// What an internal `nat` comes to.
macro_rules! nat_or_tunnel {
    ($head:literal) => {
        concat!($head, "NatOrTunnel 10.244.1.10:8080, NatOrTunnel 10.244.2.10:8080, Nat 10.244.3.10:8080")
    };
}

const PLAIN: &str = to_all!("ClusterIP TCP 10.96.0.80:80 Rr");
const ACCEPT: &str = "accept 10.244.1.10 at 8080 for TCP 10.96.0.80:80";

#[test]
fn forwarding() {
    check(&[
        Case("own pod and accepting node tunnel, others nat", |_| {}, &[PLAIN, ACCEPT]),
        Case(
            "own host network endpoint is masqueraded to, and accepted for the other directors",
            |w| w.slices = vec![mk_slice("s", "web", 8080, &["10.0.0.1@node-a"])],
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Masquerade 10.0.0.1:8080",
                "accept 10.0.0.1 at 8080 for TCP 10.96.0.80:80",
            ],
        ),
        Case(
            "own address without a nodeName is own all the same",
            |w| w.slices = vec![mk_slice("s", "web", 8080, &["10.0.0.1"])],
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: Masquerade 10.0.0.1:8080",
                "accept 10.0.0.1 at 8080 for TCP 10.96.0.80:80",
            ],
        ),
        Case(
            "an endpoint outside of the cluster",
            |w| w.slices = vec![mk_slice("s", "web", 8080, &["192.0.2.9"])],
            &["ClusterIP TCP 10.96.0.80:80 Rr: Nat 192.0.2.9:8080"],
        ),
        Case(
            "annotation nat: nobody accepts",
            |w| w.annotate("sheave.io/forwarding", "nat"),
            &[all_nat!("ClusterIP TCP 10.96.0.80:80 Rr")],
        ),
        Case(
            "config nat: directors that do not have it yet still tunnel here",
            |w| w.config.services.forwarding = Forwarding::Nat.into(),
            &[all_nat!("ClusterIP TCP 10.96.0.80:80 Rr"), ACCEPT],
        ),
        Case(
            "config nat, annotation tunnel",
            |w| {
                w.config.services.forwarding = Forwarding::Nat.into();
                w.annotate("sheave.io/forwarding", "tunnel");
            },
            &[PLAIN, ACCEPT],
        ),
    ]);
}

#[test]
fn forwarding_by_where_clients_are() {
    fn internal_nat(w: &mut World) {
        w.config.services.forwarding.internal = Forwarding::Nat;
    }
    fn external(w: &mut World) {
        w.service.load_balancer_ips = vec![mk_load_balancer_ip("192.0.2.80")];
        w.annotate("sheave.io/announce", "none");
    }
    const ACCEPT_EXTERNAL: &str = "accept 10.244.1.10 at 8080 for TCP 192.0.2.80:80";
    check(&[
        Case(
            "a cluster IP has no clients outside, and its endpoint is still accepted for: others may tunnel",
            internal_nat,
            &[nat_or_tunnel!("ClusterIP TCP 10.96.0.80:80 Rr: "), ACCEPT],
        ),
        Case(
            "one that is announced has",
            |w| {
                internal_nat(w);
                w.annotate("sheave.io/announce", "clusterIP");
            },
            &[
                nat_or_tunnel!(
                    "ClusterIP TCP 10.96.0.80:80 Mh fallback port: Tunnel 10.244.1.10:8080, \
                     Tunnel 10.244.2.10:8080, Nat 10.244.3.10:8080 / inside: "
                ),
                ACCEPT,
                "announce 10.96.0.80/32 ClusterIP",
            ],
        ),
        Case(
            "as has a load-balancer IP",
            |w| {
                external(w);
                internal_nat(w);
            },
            &[
                nat_or_tunnel!("ClusterIP TCP 10.96.0.80:80 Rr: "),
                nat_or_tunnel!(
                    "LoadBalancerIP TCP 192.0.2.80:80 Mh fallback port: Tunnel 10.244.1.10:8080, \
                     Tunnel 10.244.2.10:8080, Nat 10.244.3.10:8080 / inside: "
                ),
                ACCEPT,
                ACCEPT_EXTERNAL,
            ],
        ),
        Case(
            "policy Local: outside gets this node's alone, inside all",
            |w| {
                external(w);
                internal_nat(w);
                w.service.cluster_ips.clear();
                w.service.external_traffic_policy = TrafficPolicy::Local;
            },
            &[
                nat_or_tunnel!(
                    "LoadBalancerIP TCP 192.0.2.80:80 Mh fallback port: Tunnel 10.244.1.10:8080 / inside: "
                ),
                ACCEPT_EXTERNAL,
            ],
        ),
        Case(
            "affinity and weights are the same for both",
            |w| {
                external(w);
                internal_nat(w);
                w.service.cluster_ips.clear();
                w.service.client_ip_affinity = Some(60);
                w.config.services.scheduler.external = Scheduler::Rr;
                w.slices[0].endpoints.truncate(2);
                w.slices[0].endpoints[1].terminating = true;
                w.slices[0].endpoints[1].ready = false;
            },
            &[
                "LoadBalancerIP TCP 192.0.2.80:80 Rr 60s: Tunnel 10.244.1.10:8080, Tunnel 10.244.2.10:8080 drains \
                 / inside: NatOrTunnel 10.244.1.10:8080, NatOrTunnel 10.244.2.10:8080 drains",
                ACCEPT_EXTERNAL,
            ],
        ),
        Case(
            "where there is no choice, clients get the same",
            |w| {
                external(w);
                internal_nat(w);
                w.service.cluster_ips.clear();
                w.slices = vec![mk_slice("s", "web", 8080, &["10.0.0.1@node-a", "10.244.3.10@node-c"])];
            },
            &[
                "LoadBalancerIP TCP 192.0.2.80:80 Mh fallback port: Masquerade 10.0.0.1:8080, \
                 Nat 10.244.3.10:8080",
                "accept 10.0.0.1 at 8080 for TCP 192.0.2.80:80",
            ],
        ),
        Case(
            "node ports are nat anyhow",
            |w| {
                internal_nat(w);
                w.service.cluster_ips.clear();
                w.service.ports[0].node_port = Some(30080);
            },
            &[all_nat!("NodePort TCP 10.0.0.1:30080 Rr"), "NodePort TCP [fd00::1]:30080 Rr: "],
        ),
        Case(
            "an annotation is for all clients",
            |w| {
                external(w);
                internal_nat(w);
                w.service.cluster_ips.clear();
                w.annotate("sheave.io/forwarding", "tunnel");
            },
            &[to_all!("LoadBalancerIP TCP 192.0.2.80:80 Mh fallback port"), ACCEPT_EXTERNAL],
        ),
        Case(
            "annotation nat",
            |w| {
                external(w);
                internal_nat(w);
                w.service.cluster_ips.clear();
                w.annotate("sheave.io/forwarding", "nat");
            },
            &[all_nat!("LoadBalancerIP TCP 192.0.2.80:80 Mh fallback port")],
        ),
        Case(
            "the other way round",
            |w| {
                external(w);
                w.config.services.forwarding.external = Forwarding::Nat;
            },
            &[
                PLAIN,
                concat!(
                    all_nat!("LoadBalancerIP TCP 192.0.2.80:80 Mh fallback port"),
                    " / inside: Tunnel 10.244.1.10:8080, Tunnel 10.244.2.10:8080, Nat 10.244.3.10:8080"
                ),
                ACCEPT,
                ACCEPT_EXTERNAL,
            ],
        ),
        Case(
            "what is tunnelled to for want of a number is so as for all others",
            |w| {
                internal_nat(w);
                w.config.services.encapsulation = Encapsulation::Gue;
                w.accepting.insert("node-b".into(), Accepts { gue: true });
            },
            &[
                "ClusterIP TCP 10.96.0.80:80 Rr: NatOrTunnel 10.244.1.10:8080, \
                 NatOrTunnel 10.244.2.10:8080 in GUE, Nat 10.244.3.10:8080",
                ACCEPT,
            ],
        ),
    ]);
}
