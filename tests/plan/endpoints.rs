//! Which endpoints get connections: every behaviour that kube-proxy's `TestCategorizeEndpoints`
//! (`pkg/proxy/topology_test.go`) pins, in both families, for each protocol and each combination of policies, and what
//! follows for endpoints that terminate.

use std::net::IpAddr;

use proptest::prelude::*;
use sheave::cluster::{
    Endpoint, EndpointPort, EndpointSlice, Hints, Protocol, ServicePort, SliceName, TrafficPolicy,
};
use sheave::plan::{Destination, VipKind, VirtualServer};

use crate::build::{World, ip, mk_load_balancer_ip, mk_port, name};

/// Endpoints by number, as node-a sees them, and the two sets that come of them; `3:0` is one with weight 0.
struct Case {
    name: &'static str,
    /// node-a's.
    zone: Option<&'static str>,
    /// Number and node (`-`: none), then what is not as with a ready endpoint: `unready`; `terminating` (serving),
    /// `closing` (no longer serving), `published` (terminating, but ready by `publishNotReadyAddresses`);
    /// `zones=a,b`, `nodes=a,b`.
    endpoints: &'static [&'static str],
    cluster: &'static str,
    /// Ends in `drops` where packets are dropped.
    local: &'static str,
}

const ZONE_A: Option<&str> = Some("a");

const CASES: &[Case] = &[
    Case { name: "no endpoints: refused", zone: None, endpoints: &[], cluster: "", local: "" },
    Case {
        name: "some are here",
        zone: None,
        endpoints: &["1 node-a", "2 node-b"],
        cluster: "1 2",
        local: "1",
    },
    Case {
        name: "all are here",
        zone: None,
        endpoints: &["1 node-a", "2 node-a"],
        cluster: "1 2",
        local: "1 2",
    },
    Case {
        name: "all are elsewhere: dropped, not refused",
        zone: None,
        endpoints: &["1 node-b", "2 node-c"],
        cluster: "1 2",
        local: "drops",
    },
    Case {
        name: "an endpoint of no node is not local",
        zone: None,
        endpoints: &["1 -", "2 node-b"],
        cluster: "1 2",
        local: "drops",
    },
    Case {
        name: "none is ready: refused",
        zone: None,
        endpoints: &["1 node-a unready", "2 node-b unready"],
        cluster: "",
        local: "",
    },
    Case {
        name: "some are ready",
        zone: None,
        endpoints: &["1 node-a unready", "2 node-a", "3 node-b unready"],
        cluster: "2",
        local: "2",
    },
    Case {
        name: "none here is ready",
        zone: None,
        endpoints: &["1 node-a unready", "2 node-b"],
        cluster: "2",
        local: "drops",
    },
    // Terminating endpoints.
    Case {
        name: "all terminate: both sets fall back",
        zone: None,
        endpoints: &["1 node-a terminating", "2 node-b terminating"],
        cluster: "1 2",
        local: "1",
    },
    Case {
        name: "all terminate elsewhere",
        zone: None,
        endpoints: &["1 node-b terminating", "2 node-c terminating"],
        cluster: "1 2",
        local: "drops",
    },
    Case {
        name: "one is ready elsewhere: the local set alone falls back",
        zone: None,
        endpoints: &["1 node-b", "2 node-a unready", "3 node-a terminating", "4 node-b terminating"],
        cluster: "1 3:0 4:0",
        local: "3",
    },
    Case {
        name: "one is ready here: nothing falls back",
        zone: None,
        endpoints: &["1 node-a", "2 node-a terminating", "3 node-b terminating"],
        cluster: "1 2:0 3:0",
        local: "1 2:0",
    },
    Case {
        name: "what no longer serves is no fallback, but keeps its connections",
        zone: None,
        endpoints: &["1 node-a closing", "2 node-b closing"],
        cluster: "1:0 2:0",
        local: "1:0",
    },
    Case {
        name: "of those that terminate the serving ones are the fallback",
        zone: None,
        endpoints: &["1 node-a closing", "2 node-a terminating", "3 node-b terminating"],
        cluster: "1:0 2 3",
        local: "1:0 2",
    },
    Case {
        name: "one that closes here, one ready elsewhere: dropped",
        zone: None,
        endpoints: &["1 node-a closing", "2 node-b"],
        cluster: "1:0 2",
        local: "1:0 drops",
    },
    Case {
        name: "published although not ready: usable until it is gone",
        zone: None,
        endpoints: &["1 node-a published", "2 node-b published", "3 node-b"],
        cluster: "1 2 3",
        local: "1",
    },
    Case {
        name: "published ones are ready: others that terminate do not fall back",
        zone: None,
        endpoints: &["1 node-a published", "2 node-a terminating"],
        cluster: "1 2:0",
        local: "1 2:0",
    },
    // Hints for zones.
    Case {
        name: "hints: those for this zone; the local set does not ask",
        zone: ZONE_A,
        endpoints: &["1 node-a zones=a", "2 node-a zones=b", "3 node-b zones=c", "4 node-b zones=a"],
        cluster: "1 4",
        local: "1 2",
    },
    Case {
        name: "hints: this node has no zone",
        zone: None,
        endpoints: &["1 node-b zones=a", "2 node-b zones=b"],
        cluster: "1 2",
        local: "drops",
    },
    Case {
        name: "hints: this node's zone is the empty string",
        zone: Some(""),
        endpoints: &["1 node-b zones=a"],
        cluster: "1",
        local: "drops",
    },
    Case {
        name: "hints: none is for this zone",
        zone: Some("b"),
        endpoints: &["1 node-b zones=a"],
        cluster: "1",
        local: "drops",
    },
    Case {
        name: "hints: one has none",
        zone: ZONE_A,
        endpoints: &["1 node-a zones=a", "2 node-b zones=b", "3 node-b", "4 node-b zones=a"],
        cluster: "1 2 3 4",
        local: "1",
    },
    Case {
        name: "hints: one that is not ready has none, and one that is not ready is for here",
        zone: ZONE_A,
        endpoints: &["1 node-b zones=a", "2 node-b zones=b", "3 node-b unready", "4 node-b zones=a unready"],
        cluster: "1",
        local: "drops",
    },
    Case {
        name: "hints: those for this zone are not ready",
        zone: ZONE_A,
        endpoints: &[
            "1 node-b zones=a unready",
            "2 node-b zones=b",
            "3 node-b zones=c",
            "4 node-b zones=a unready",
        ],
        cluster: "2 3",
        local: "drops",
    },
    Case {
        name: "hints: an endpoint may be for several zones",
        zone: Some("c"),
        endpoints: &["1 node-b zones=a,b,c", "2 node-b zones=b,c", "3 node-b zones=b,d", "4 node-b zones=c"],
        cluster: "1 2 4",
        local: "drops",
    },
    Case {
        name: "hints are nothing to the fallback",
        zone: ZONE_A,
        endpoints: &["1 node-b zones=a terminating", "2 node-b zones=b terminating", "3 node-b terminating"],
        cluster: "1 2 3",
        local: "drops",
    },
    Case {
        name: "hints: one that terminates without hints keeps its connections, one for another zone had none",
        zone: ZONE_A,
        endpoints: &[
            "1 node-b zones=a",
            "2 node-b zones=b",
            "3 node-b terminating",
            "4 node-b zones=b closing",
        ],
        cluster: "1 3:0",
        local: "drops",
    },
    Case {
        name: "no hints in force: all that terminate keep their connections",
        zone: ZONE_A,
        endpoints: &["1 node-b zones=a", "2 node-b", "3 node-b zones=b terminating"],
        cluster: "1 2 3:0",
        local: "drops",
    },
    // Hints for nodes.
    Case {
        name: "hints: those for this node come before those for its zone",
        zone: ZONE_A,
        endpoints: &[
            "1 node-a zones=a nodes=node-a",
            "2 node-b zones=a nodes=node-b",
            "3 node-c zones=a nodes=node-a,node-c",
        ],
        cluster: "1 3",
        local: "1",
    },
    Case {
        name: "hints: none is for this node, so those for its zone",
        zone: ZONE_A,
        endpoints: &["1 node-b zones=a nodes=node-b", "2 node-c zones=b nodes=node-c"],
        cluster: "1",
        local: "drops",
    },
    Case {
        name: "hints: one has none for nodes, so those for zones",
        zone: ZONE_A,
        endpoints: &["1 node-a zones=b nodes=node-a", "2 node-b zones=a"],
        cluster: "2",
        local: "1",
    },
    Case {
        name: "hints: for nodes alone, none of them this one",
        zone: ZONE_A,
        endpoints: &["1 node-b nodes=node-b", "2 node-c nodes=node-c"],
        cluster: "1 2",
        local: "drops",
    },
    Case {
        name: "hints: one that is not ready lacks hints for nodes",
        zone: None,
        endpoints: &["1 node-a nodes=node-a", "2 node-b nodes=node-b", "3 node-b unready"],
        cluster: "1",
        local: "1",
    },
    Case {
        name: "hints: one for another node that terminates had no connections from here",
        zone: None,
        endpoints: &["1 node-a nodes=node-a", "2 node-b nodes=node-b terminating", "3 node-b terminating"],
        cluster: "1 3:0",
        local: "1",
    },
];

#[derive(Clone, Copy, Debug)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    fn endpoint(self, number: u16) -> IpAddr {
        match self {
            Self::Ipv4 => ip(&format!("10.244.9.{number}")),
            Self::Ipv6 => ip(&format!("fd00:244:9::{number:x}")),
        }
    }
}

/// Reads an endpoint of a [`Case`].
fn endpoint(text: &str, family: Family) -> Endpoint {
    let mut words = text.split(' ');
    let number = words.next().unwrap().parse().unwrap();
    let node = words.next().filter(|node| *node != "-").map(Into::into);
    let address = family.endpoint(number);
    let mut endpoint =
        Endpoint { address, ready: true, serving: true, terminating: false, node, hints: None };
    for word in words {
        let names = |list: &str| list.split(',').map(Into::into).collect();
        match word.split_once('=') {
            Some(("zones", list)) => endpoint.hints.get_or_insert_default().zones = names(list),
            Some(("nodes", list)) => endpoint.hints.get_or_insert_default().nodes = names(list),
            _ => {
                (endpoint.ready, endpoint.serving, endpoint.terminating) = match word {
                    "unready" => (false, false, false),
                    "terminating" => (false, true, true),
                    "closing" => (false, false, true),
                    "published" => (true, true, true),
                    _ => panic!("{word}"),
                }
            }
        }
    }
    endpoint
}

/// `default/web` with a VIP of every kind in both families, and these endpoints.
fn world(endpoints: Vec<Endpoint>, protocol: Protocol) -> World {
    let mut world = World::new();
    world.service.cluster_ips = vec![ip("10.96.0.80"), ip("fd00:96::80")];
    world.service.external_ips = vec![ip("192.0.2.80"), ip("2001:db8::80")];
    world.service.load_balancer_ips = ["198.51.100.80", "2001:db8:1::80"].map(mk_load_balancer_ip).to_vec();
    world.config.services.external_ips.allow = vec!["::/0".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
    world.service.ports = vec![ServicePort { protocol, node_port: Some(30080), ..mk_port("http", 80) }];
    let (ipv4, ipv6) = endpoints.into_iter().partition(|endpoint| endpoint.address.is_ipv4());
    world.slices = [("web-4", ipv4), ("web-6", ipv6)]
        .map(|(slice, endpoints)| mk_slice(slice, endpoints, protocol))
        .to_vec();
    world
}

fn mk_slice(slice: &str, endpoints: Vec<Endpoint>, protocol: Protocol) -> EndpointSlice {
    EndpointSlice {
        name: SliceName { namespace: "default".into(), name: slice.into() },
        service: Some(name("web")),
        endpoints,
        ports: vec![EndpointPort { name: Some("http".into()), protocol, port: 8080 }],
    }
}

/// Destinations by number, as in a [`Case`].
fn numbers(destinations: &[Destination]) -> Vec<String> {
    let number = |destination: &Destination| {
        let number = match destination.address {
            IpAddr::V4(address) => u16::from(address.octets()[3]),
            IpAddr::V6(address) => address.segments()[7],
        };
        if destination.weight == 1 { number.to_string() } else { format!("{number}:{}", destination.weight) }
    };
    destinations.iter().map(number).collect()
}

fn outside(server: &VirtualServer) -> String {
    let mut words = numbers(&server.destinations);
    words.extend(server.drops.then(|| "drops".into()));
    words.join(" ")
}

#[test]
fn as_kube_proxy_chooses_them() {
    use TrafficPolicy::{Cluster, Local};
    for Case { name, zone, endpoints, cluster, local } in CASES {
        for family in [Family::Ipv4, Family::Ipv6] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let listed = endpoints.iter().map(|text| endpoint(text, family)).collect();
                let mut world = world(listed, protocol);
                world.zone = *zone;
                for (internal, external) in
                    [(Cluster, Cluster), (Cluster, Local), (Local, Cluster), (Local, Local)]
                {
                    world.service.internal_traffic_policy = internal;
                    world.service.external_traffic_policy = external;
                    let plan = world.plan();
                    assert_eq!(plan.virtual_servers.len(), 8, "{name}");
                    for server in plan.virtual_servers {
                        let case = format!(
                            "{name}: {protocol}, {internal:?}, {external:?}, {:?} {}",
                            server.kind, server.vip
                        );
                        let of_family = server.vip.address.is_ipv4() == matches!(family, Family::Ipv4);
                        let policy = if server.kind == VipKind::ClusterIP { internal } else { external };
                        let expected = match policy {
                            _ if !of_family => "",
                            Cluster => cluster,
                            Local => local,
                        };
                        assert_eq!(outside(&server), expected, "{case}");
                        let inside = server.internal.as_ref().map(|list| numbers(list).join(" "));
                        let others = server.kind != VipKind::ClusterIP
                            && external == Local
                            && of_family
                            && local.trim_end_matches("drops").trim_end() != *cluster;
                        assert_eq!(inside.as_deref(), others.then_some(*cluster), "inside, {case}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_external_policy_is_nothing_to_a_service_without_external_addresses() {
    let listed = ["1 node-b", "2 node-a"].map(|text| endpoint(text, Family::Ipv4)).to_vec();
    let mut world = world(listed, Protocol::Tcp);
    world.service.external_ips.clear();
    world.service.load_balancer_ips.clear();
    world.service.ports[0].node_port = None;
    world.service.external_traffic_policy = TrafficPolicy::Local;
    let servers = world.plan().virtual_servers;
    assert_eq!(servers.iter().map(outside).collect::<Vec<_>>(), ["1 2", ""]);
    assert!(servers.iter().all(|server| server.internal.is_none()));
}

#[test]
fn of_two_endpoints_at_one_address_the_usable_one_counts_whatever_the_order_of_slices() {
    // What one slice says of the address, what another does, and the target port that is used with which weight.
    for (one, other, expected) in [
        ("1 node-a", "1 node-a", "1 at 8080"),
        ("1 node-a unready", "1 node-a", "1 at 9090"),
        ("1 node-a terminating", "1 node-a", "1 at 9090"),
        ("1 node-a unready", "1 node-a terminating", "1 at 9090"),
        ("1 node-a closing", "1 node-a terminating", "1 at 9090"),
        ("1 node-a unready", "1 node-a closing", "1:0 at 9090"),
    ] {
        let slices = [(one, 8080, "web-1"), (other, 9090, "web-2")].map(|(text, port, slice)| {
            let mut slice = mk_slice(slice, vec![endpoint(text, Family::Ipv4)], Protocol::Tcp);
            slice.ports[0].port = port;
            slice
        });
        let mut world = world(Vec::new(), Protocol::Tcp);
        for slices in [slices.to_vec(), slices.iter().rev().cloned().collect()] {
            world.slices = slices;
            let plan = world.plan();
            let destinations = &plan.virtual_servers[0].destinations;
            let said = format!("{} at {}", numbers(destinations).join(" "), destinations[0].port);
            assert_eq!(said, expected, "{one}, {other}");
            let ambiguous = plan.warnings.iter().any(|warning| warning.reason == "AmbiguousTargetPort");
            assert_eq!(ambiguous, one == other, "{one}, {other}");
        }
    }
}

fn any_endpoint(node: impl Strategy<Value = Option<&'static str>>) -> impl Strategy<Value = Endpoint> {
    let names = |of: &'static [&'static str]| {
        prop::collection::vec(prop::sample::select(of).prop_map(Into::into), 0..2)
    };
    let hints = prop::option::of((names(&["a", "b"]), names(&["node-a", "node-b"])));
    (0u16..6, any::<[bool; 4]>(), node, hints).prop_map(
        |(number, [v4, ready, serving, terminating], node, hints)| Endpoint {
            address: if v4 { Family::Ipv4 } else { Family::Ipv6 }.endpoint(number),
            ready,
            serving,
            terminating,
            node: node.map(Into::into),
            hints: hints.map(|(zones, nodes)| Box::new(Hints { zones, nodes })),
        },
    )
}

fn anywhere() -> impl Strategy<Value = Option<&'static str>> {
    prop::sample::select(vec![Some("node-a"), Some("node-b"), None])
}

/// What no two endpoints of one address are about.
fn distinct(endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    let mut seen = std::collections::HashSet::new();
    endpoints.into_iter().filter(|endpoint| seen.insert(endpoint.address)).collect()
}

proptest! {
    #[test]
    fn an_endpoint_elsewhere_is_nothing_to_the_local_set(
        endpoints in prop::collection::vec(any_endpoint(anywhere()), 0..8),
        more in any_endpoint(prop::sample::select(vec![Some("node-b"), None])),
    ) {
        let local = |endpoints: Vec<Endpoint>| {
            let mut world = world(endpoints, Protocol::Tcp);
            world.service.internal_traffic_policy = TrafficPolicy::Local;
            world.service.external_traffic_policy = TrafficPolicy::Local;
            world.plan().virtual_servers.into_iter().map(|server| server.destinations).collect::<Vec<_>>()
        };
        let endpoints = distinct(endpoints);
        prop_assume!(endpoints.iter().all(|endpoint| endpoint.address != more.address));
        let before = local(endpoints.clone());
        prop_assert_eq!(before, local(endpoints.into_iter().chain([more]).collect()));
    }

    #[test]
    fn connections_go_to_endpoints_that_are_ready_or_terminate_and_serve(
        endpoints in prop::collection::vec(any_endpoint(anywhere()), 0..8),
        zone in prop::option::of(prop::sample::select(vec!["a", "b"])),
        local in any::<[bool; 2]>(),
    ) {
        let endpoints = distinct(endpoints);
        let mut world = world(endpoints.clone(), Protocol::Tcp);
        let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        world.zone = zone;
        world.service.internal_traffic_policy = policy(local[0]);
        world.service.external_traffic_policy = policy(local[1]);
        for server in world.plan().virtual_servers {
            for destination in server.destinations.iter().chain(server.internal.iter().flatten()) {
                let endpoint = endpoints.iter().find(|endpoint| endpoint.address == destination.address).unwrap();
                let Endpoint { ready, serving, terminating, .. } = *endpoint;
                prop_assert_eq!(destination.address.is_ipv4(), server.vip.address.is_ipv4());
                match destination.weight {
                    1 => prop_assert!(ready || (serving && terminating), "{:?}", endpoint),
                    weight => prop_assert!(weight == 0 && !ready && terminating, "{:?}", endpoint),
                }
            }
            // Where the cluster has endpoints for connections, its clients get some.
            let usable = endpoints.iter().any(|e| {
                e.address.is_ipv4() == server.vip.address.is_ipv4() && (e.ready || (e.serving && e.terminating))
            });
            let bound = server.kind == VipKind::ClusterIP && local[0];
            let inside = server.internal.as_ref().unwrap_or(&server.destinations);
            prop_assert!(bound || usable == inside.iter().any(|destination| destination.weight > 0));
            prop_assert_eq!(server.drops, usable && !server.takes_connections());
        }
    }
}
