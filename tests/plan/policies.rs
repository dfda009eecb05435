//! What follows from which endpoints a node has: announcements, health checks, acceptance, encapsulation and counts.

use sheave::cluster::{
    ACCEPTS_ANNOTATION, Accepts, Encapsulation, Event, Node, Object, Protocol, ServicePort, TrafficPolicy,
};
use sheave::config::Config;
use sheave::plan::{
    AcceptedIn, ByFamily, Delta, Forwarding, NodePlan, Planner, RewriteSide, WithoutLocalEndpoints,
};

use crate::build::{
    World, ip, lines, mk_endpoint, mk_load_balancer_ip, mk_node, mk_port, mk_service, mk_slice, name,
};

const VIP: &str = "198.51.100.1";

/// `default/web` with a load-balancer IP, `externalTrafficPolicy: Local`, and these endpoints.
fn local(endpoints: &[&str]) -> World {
    let mut world = World::new();
    world.service.cluster_ips.clear();
    world.service.load_balancer_ips = vec![mk_load_balancer_ip(VIP)];
    world.service.external_traffic_policy = TrafficPolicy::Local;
    world.slices = vec![mk_slice("web-1", "web", 8080, endpoints)];
    world
}

fn terminates(world: &mut World, serving: bool) {
    let endpoint = &mut world.slices[0].endpoints[0];
    (endpoint.ready, endpoint.serving, endpoint.terminating) = (false, serving, true);
}

#[test]
fn a_vip_is_announced_where_clients_from_outside_get_an_endpoint() {
    const ANNOUNCED: &str = "announce 198.51.100.1/32 LoadBalancerIP";
    type Change = fn(&mut World);
    let cases: [(&str, &[&str], Change, bool); 8] = [
        ("an endpoint here", &["10.244.1.10@node-a"], |_| {}, true),
        ("endpoints elsewhere", &["10.244.2.10@node-b"], |_| {}, false),
        (
            "endpoints elsewhere, policy Cluster",
            &["10.244.2.10@node-b"],
            |w| w.service.external_traffic_policy = TrafficPolicy::Cluster,
            true,
        ),
        ("the fallback", &["10.244.1.10@node-a", "10.244.2.10@node-b"], |w| terminates(w, true), true),
        ("one that keeps its connections alone", &["10.244.1.10@node-a"], |w| terminates(w, false), false),
        (
            "another port has one here",
            &["10.244.2.10@node-b"],
            |w| {
                w.service.ports.push(mk_port("other", 443));
                let mut other = mk_slice("web-2", "web", 8443, &["10.244.1.10@node-a"]);
                other.ports[0].name = Some("other".into());
                w.slices.push(other);
            },
            true,
        ),
        (
            "kube-router's service.local",
            &["10.244.2.10@node-b"],
            |w| {
                w.service.external_traffic_policy = TrafficPolicy::Cluster;
                w.annotate("kube-router.io/service.local", "true");
            },
            false,
        ),
        ("this node is excluded", &["10.244.1.10@node-a"], |w| w.excluded_from_load_balancers = true, false),
    ];
    for (name, endpoints, change, announced) in cases {
        let mut world = local(endpoints);
        change(&mut world);
        let lines = lines(&world.plan());
        assert_eq!(lines.iter().any(|line| line == ANNOUNCED), announced, "{name}: {lines:#?}");
    }
}

#[test]
fn an_announced_cluster_ip_obeys_the_internal_policy() {
    let mut world = World::new();
    world.config.announce.cluster_ips = true;
    world.service.internal_traffic_policy = TrafficPolicy::Local;
    world.slices[0].endpoints.remove(0);
    assert_eq!(lines(&world.plan()), ["ClusterIP TCP 10.96.0.80:80 Mh fallback port:  / drops"]);
}

#[test]
fn kube_routers_service_local_is_both_policies() {
    let plan = |value| {
        let mut world = local(&["10.244.1.10@node-a", "10.244.2.10@node-b"]);
        world.service.external_traffic_policy = TrafficPolicy::Cluster;
        world.service.cluster_ips = vec![ip("10.96.0.80")];
        world.annotate("sheave.io/announce", "none");
        world.annotate("kube-router.io/service.local", value);
        let mut lines = lines(&world.plan());
        lines.retain(|line| !line.starts_with("accept"));
        lines
    };
    assert_eq!(
        plan("true"),
        [
            "ClusterIP TCP 10.96.0.80:80 Rr: Tunnel 10.244.1.10:8080",
            "LoadBalancerIP TCP 198.51.100.1:80 Mh fallback port: Tunnel 10.244.1.10:8080 / inside: \
             Tunnel 10.244.1.10:8080, Tunnel 10.244.2.10:8080",
        ]
    );
    let both = "Tunnel 10.244.1.10:8080, Tunnel 10.244.2.10:8080";
    let cluster = [
        format!("ClusterIP TCP 10.96.0.80:80 Rr: {both}"),
        format!("LoadBalancerIP TCP 198.51.100.1:80 Mh fallback port: {both}"),
    ];
    assert_eq!(plan("false"), cluster);
    let mut told = cluster.to_vec();
    told.push("warn InvalidAnnotation".into());
    assert_eq!(plan("yes"), told);
}

#[test]
fn the_health_check_counts_ready_endpoints_of_this_node() {
    type Change = fn(&mut World);
    let cases: [(&str, &[&str], Change, usize); 8] = [
        ("none", &[], |_| {}, 0),
        ("none here", &["10.244.2.10@node-b", "192.0.2.9"], |_| {}, 0),
        ("some here", &["10.244.1.10@node-a", "10.244.1.11@node-a", "10.244.2.10@node-b"], |_| {}, 2),
        ("not ready", &["10.244.1.10@node-a"], |w| w.slices[0].endpoints[0].ready = false, 0),
        ("terminating: load balancers should leave", &["10.244.1.10@node-a"], |w| terminates(w, true), 0),
        (
            "several ports of one endpoint",
            &["10.244.1.10@node-a"],
            |w| w.slices.push(mk_slice("web-2", "web", 443, &["10.244.1.10@node-a"])),
            1,
        ),
        (
            "two families of one endpoint",
            &["10.244.1.10@node-a"],
            |w| w.slices.push(mk_slice("web-6", "web", 8080, &["fd00:244:1::10@node-a"])),
            1,
        ),
        ("no port at all", &["10.244.1.10@node-a"], |w| w.slices[0].ports.clear(), 0),
    ];
    for (name, endpoints, change, count) in cases {
        let mut world = local(endpoints);
        world.service.health_check_node_port = Some(32000);
        change(&mut world);
        let check = world.plan().health_check.unwrap();
        assert_eq!((check.port, check.local_endpoints), (32000, count), "{name}");
    }
}

#[test]
fn where_packets_are_taken_in() {
    const HERE: &[&str] = &["10.0.0.1@node-a", "10.0.0.2@node-a", "10.244.1.10@node-a", "10.244.2.10@node-b"];
    // Own host network, another node's address all the same, own pod.
    type Change = fn(&mut World);
    let cases: [(&str, Change, &[AcceptedIn]); 10] = [
        ("the node by default", |_| {}, &[AcceptedIn::Node, AcceptedIn::Node, AcceptedIn::Node]),
        (
            "annotated: the pod where it has a namespace of its own",
            |w| w.annotate("sheave.io/acceptance", "pod"),
            &[AcceptedIn::Node, AcceptedIn::Node, AcceptedIn::Pod],
        ),
        (
            "config",
            |w| w.config.services.acceptance = AcceptedIn::Pod,
            &[AcceptedIn::Node, AcceptedIn::Node, AcceptedIn::Pod],
        ),
        (
            "config pod, annotation node",
            |w| {
                w.config.services.acceptance = AcceptedIn::Pod;
                w.annotate("sheave.io/acceptance", "node");
            },
            &[AcceptedIn::Node, AcceptedIn::Node, AcceptedIn::Node],
        ),
        (
            "kube-router's DSR",
            |w| {
                w.config.services.forwarding = Forwarding::Nat.into();
                w.annotate("kube-router.io/service.dsr", "tunnel");
            },
            &[AcceptedIn::Node, AcceptedIn::Node, AcceptedIn::Pod],
        ),
        (
            "kube-router's DSR, but ours says otherwise",
            |w| {
                w.annotate("kube-router.io/service.dsr", "tunnel");
                w.annotate("sheave.io/acceptance", "node");
            },
            &[AcceptedIn::Node, AcceptedIn::Node, AcceptedIn::Node],
        ),
        (
            "kube-router's DSR, but ours says nat",
            |w| {
                w.annotate("kube-router.io/service.dsr", "tunnel");
                w.annotate("sheave.io/forwarding", "nat");
            },
            &[],
        ),
        (
            "something else that kube-router would not know",
            |w| w.annotate("kube-router.io/service.dsr", "ipip"),
            &[AcceptedIn::Node, AcceptedIn::Node, AcceptedIn::Node],
        ),
        (
            "nat of all Services is the directors' matter, and they change one by one: the node takes in, not the pod",
            |w| {
                w.config.services.forwarding = Forwarding::Nat.into();
                w.annotate("sheave.io/acceptance", "pod");
            },
            &[AcceptedIn::Node, AcceptedIn::Node, AcceptedIn::Node],
        ),
        (
            "nat takes nothing in",
            |w| {
                w.annotate("sheave.io/acceptance", "pod");
                w.annotate("sheave.io/forwarding", "nat");
            },
            &[],
        ),
    ];
    for (name, change, expected) in cases {
        let mut world = World::new();
        world.slices = vec![mk_slice("web-1", "web", 8080, HERE)];
        world.service.ports[0].node_port = Some(30080);
        change(&mut world);
        let plan = world.plan();
        let accepted: Vec<_> = plan.acceptance.iter().map(|acceptance| acceptance.accepted_in).collect();
        assert_eq!(accepted, expected, "{name}");
        let told = plan.warnings.iter().map(|warning| warning.reason).collect::<Vec<_>>();
        let expected = match name {
            "something else that kube-router would not know" => &["InvalidAnnotation"][..],
            _ if expected.is_empty() || name.starts_with("nat of all") => &["AcceptanceIgnored"],
            _ => &[],
        };
        assert_eq!(told, expected, "{name}");
    }
}

#[test]
fn what_tunnel_packets_are_wrapped_in() {
    let (tunnel, nat) = (("sheave.io/forwarding", "tunnel"), ("sheave.io/forwarding", "nat"));
    let pod = ("sheave.io/acceptance", "pod");
    for (name, configured, takes_gue, annotation, expected) in [
        ("IP in IP by default", Encapsulation::Ipip, true, tunnel, "Tunnel 10.244.2.10:8080"),
        ("GUE where it is taken", Encapsulation::Gue, true, tunnel, "Tunnel 10.244.2.10:8080 in GUE"),
        ("IP in IP where it is not yet", Encapsulation::Gue, false, tunnel, "Tunnel 10.244.2.10:8080"),
        ("IP in IP to pods that take it in", Encapsulation::Gue, true, pod, "Tunnel 10.244.2.10:8080"),
        ("nat is not wrapped", Encapsulation::Gue, true, nat, "Nat 10.244.2.10:8080"),
    ] {
        let mut world = World::new();
        world.config.services.encapsulation = configured;
        // The own node's annotation is nothing to its own endpoints: they are looped, not sent.
        for node in ["node-a", "node-b"] {
            world.accepting.insert(node.into(), Accepts { gue: takes_gue });
        }
        world.annotate(annotation.0, annotation.1);
        let lines = lines(&world.plan());
        let own = if annotation == nat { "Nat" } else { "Tunnel" };
        let expected = format!(
            "ClusterIP TCP 10.96.0.80:80 Rr: {own} 10.244.1.10:8080, {expected}, Nat 10.244.3.10:8080"
        );
        assert_eq!(lines[0], expected, "{name}");
    }
}

/// The whole plan of `world`'s Service.
fn set(plan: &mut NodePlan, world: &World) -> Delta {
    plan.set(&world.service.name, None, Some(world.plan()))
}

#[test]
fn what_clients_within_the_cluster_get_is_rewritten_too() {
    let mut world = local(&["10.244.1.10@node-a", "10.244.3.10@node-c"]);
    let mut plan = NodePlan::new("node-a");
    let delta = set(&mut plan, &world);
    let mut rewrites: Vec<_> = plan.rewrites.keys().map(|key| (key.endpoint, key.side)).collect();
    rewrites.sort();
    let expected = [(ip("10.244.1.10"), RewriteSide::Endpoint), (ip("10.244.3.10"), RewriteSide::Director)];
    assert_eq!(rewrites, expected, "node-c has no agent, and only clients within the cluster go there");
    assert_eq!(delta.rewrites.len(), 2);

    // What is in both lists is rewritten once, and not touched again.
    world.service.external_traffic_policy = TrafficPolicy::Cluster;
    assert!(set(&mut plan, &world).rewrites.is_empty());
    world.service.external_traffic_policy = TrafficPolicy::Local;
    world.annotate("sheave.io/forwarding", "nat");
    set(&mut plan, &world);
    let delta = set(&mut plan, &world);
    assert!(delta.is_empty(), "{delta:?}");
    assert_eq!(plan.rewrites.len(), 2);

    plan.set(&world.service.name, None, None);
    assert!(plan.rewrites.is_empty());
}

#[test]
fn what_is_tunnelled_to_for_some_clients_is_rewritten_for_others() {
    let mut world = local(&["10.244.1.10@node-a", "10.244.2.10@node-b", "10.244.3.10@node-c"]);
    world.service.external_traffic_policy = TrafficPolicy::Cluster;
    let mut plan = NodePlan::new("node-a");
    let rewrites = |plan: &NodePlan| {
        let rewrites = plan.rewrites.iter();
        let mut rewrites: Vec<_> = rewrites
            .map(|(key, rewrite)| (key.endpoint.to_string(), key.side, rewrite.dispensable))
            .collect();
        rewrites.sort();
        rewrites
    };
    let own = || ("10.244.1.10".to_owned(), RewriteSide::Endpoint, false);
    let director = |last: u8, dispensable| (format!("10.244.{last}.10"), RewriteSide::Director, dispensable);
    set(&mut plan, &world);
    assert_eq!(rewrites(&plan), [own(), director(3, false)]);
    world.config.services.forwarding.internal = Forwarding::Nat;
    let delta = set(&mut plan, &world);
    let expected = [own(), director(1, true), director(2, true), director(3, false)];
    assert_eq!(rewrites(&plan), expected, "nobody accepts on node-c: there is no other way");
    assert_eq!((delta.rewrites.len(), delta.virtual_servers.len()), (2, 1));
    assert!(set(&mut plan, &world).is_empty());
    world.config.services.forwarding.internal = Forwarding::Tunnel;
    assert_eq!(set(&mut plan, &world).rewrites.len(), 2);
    assert_eq!(rewrites(&plan), [own(), director(3, false)]);
}

#[test]
fn ports_that_a_policy_keeps_from_their_endpoints_are_counted() {
    let mut world = local(&["10.244.2.10@node-b"]);
    world.service.cluster_ips = vec![ip("10.96.0.80"), ip("fd00:96::80")];
    world.service.internal_traffic_policy = TrafficPolicy::Local;
    world.service.ports[0].node_port = Some(30080);
    world.service.ports.push(ServicePort { protocol: Protocol::Udp, ..mk_port("dns", 53) });
    world.slices[0].ports.push(sheave::cluster::EndpointPort {
        name: Some("dns".into()),
        protocol: Protocol::Udp,
        port: 5353,
    });
    let mut plan = NodePlan::new("node-a");
    set(&mut plan, &world);
    let counted = |ipv4, ipv6| {
        let both = ByFamily { ipv4, ipv6 };
        WithoutLocalEndpoints { internal: both, external: both }
    };
    assert_eq!(
        plan.without_local_endpoints,
        counted(2, 0),
        "two ports, however many addresses; no IPv6 at all"
    );

    let mut other = local(&["fd00:244:2::10@node-b"]);
    other.service.name = name("other");
    other.service.load_balancer_ips = vec![mk_load_balancer_ip("2001:db8::1")];
    set(&mut plan, &other);
    let expected = WithoutLocalEndpoints { external: ByFamily { ipv4: 2, ipv6: 1 }, ..counted(2, 0) };
    assert_eq!(plan.without_local_endpoints, expected);

    world.slices[0].endpoints.push(mk_endpoint("10.244.1.10@node-a"));
    set(&mut plan, &world);
    plan.set(&name("other"), None, None);
    assert_eq!(plan.without_local_endpoints, WithoutLocalEndpoints::default());
}

fn apply(object: impl Into<Object>) -> Event {
    Event::Apply(object.into())
}

fn node(change: impl FnOnce(&mut Node)) -> Event {
    let mut node = mk_node("node-a", &["10.0.0.1"]);
    node.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
    change(&mut node);
    apply(Object::Node(node.into()))
}

/// node-a with `default/web` behind a load-balancer IP, its endpoints in two zones.
fn planner() -> Planner {
    let mut config = Config::default();
    config.announce.pod_cidrs = true;
    let mut planner = Planner::new("node-a", config);
    let mut service = mk_service("web");
    service.load_balancer_ips = vec![mk_load_balancer_ip(VIP)];
    service.ports = vec![mk_port("http", 80)];
    let mut slice = mk_slice("web-1", "web", 8080, &["10.244.1.10@node-a", "10.244.2.10@node-b"]);
    for (endpoint, zone) in slice.endpoints.iter_mut().zip(["a", "b"]) {
        endpoint.hints.get_or_insert_default().zones = vec![zone.into()];
    }
    planner.handle([
        apply(Object::Service(service.into())),
        apply(Object::EndpointSlice(slice.into())),
        node(|_| {}),
    ]);
    planner
}

fn destinations(planner: &Planner) -> Vec<String> {
    let servers = planner.plan().virtual_servers.values();
    servers
        .flat_map(|server| &server.destinations)
        .map(|destination| destination.address.to_string())
        .collect()
}

#[test]
fn the_own_nodes_zone_counts_as_soon_as_it_changes() {
    let mut planner = planner();
    assert_eq!(destinations(&planner), ["10.244.1.10", "10.244.2.10"]);
    for (zone, expected) in [("b", "10.244.2.10"), ("a", "10.244.1.10")] {
        let delta = planner.handle([node(|node| node.zone = Some(zone.into()))]);
        assert_eq!((delta.services.len(), delta.virtual_servers.len()), (1, 1), "{zone}");
        assert_eq!(destinations(&planner), [expected]);
    }
    let mut other = mk_node("node-b", &["10.0.0.2"]);
    planner.handle([apply(Object::Node(other.clone().into()))]);
    other.zone = Some("z".into());
    other.excluded_from_load_balancers = true;
    let delta = planner.handle([apply(Object::Node(other.into()))]);
    assert_eq!(delta, Delta::default(), "another node's zone and labels are nothing to this one");
}

#[test]
fn an_excluded_node_announces_no_services_and_says_so() {
    let mut planner = planner();
    let announced = |planner: &Planner| -> Vec<String> {
        planner.plan().announcements.keys().map(ToString::to_string).collect()
    };
    let told = |planner: &Planner| -> Vec<&str> {
        planner.node_warnings().into_iter().map(|warning| warning.reason).collect()
    };
    assert_eq!(
        (announced(&planner), told(&planner)),
        (vec!["10.244.1.0/24".into(), format!("{VIP}/32")], vec![])
    );
    let delta = planner.handle([node(|node| node.excluded_from_load_balancers = true)]);
    assert_eq!(delta.announcements.len(), 1);
    assert!(delta.virtual_servers.is_empty(), "what reaches it is forwarded all the same");
    assert_eq!(
        (announced(&planner), told(&planner)),
        (vec!["10.244.1.0/24".into()], vec!["ExcludedFromLoadBalancers"])
    );
    planner.handle([node(|_| {})]);
    assert_eq!((announced(&planner).len(), told(&planner)), (2, vec![]));
}

#[test]
fn pods_of_this_node_are_clients_within_the_cluster() {
    let mut config = Config::default();
    config.services.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let mut planner = Planner::new("node-a", config);
    planner.handle([node(|_| {})]);
    let clients = |planner: &Planner| -> Vec<String> {
        planner.plan().node.cluster_clients.iter().map(ToString::to_string).collect()
    };
    assert_eq!(clients(&planner), ["10.244.0.0/16", "10.244.1.0/24"]);
    let delta = planner.handle([node(|node| node.pod_cidrs = vec!["10.245.1.0/24".parse().unwrap()])]);
    assert!(delta.node && delta.services.is_empty());
    assert_eq!(clients(&planner), ["10.244.0.0/16", "10.245.1.0/24"]);
}

#[test]
fn directors_follow_what_a_node_takes_in() {
    let mut config = Config::default();
    config.services.encapsulation = Encapsulation::Gue;
    let mut planner = Planner::new("node-a", config);
    let mut service = mk_service("web");
    service.cluster_ips = vec![ip("10.96.0.80")];
    service.ports = vec![mk_port("http", 80)];
    planner.handle([
        node(|_| {}),
        apply(Object::Service(service.into())),
        apply(Object::EndpointSlice(mk_slice("web-1", "web", 8080, &["10.244.2.10@node-b"]).into())),
    ]);
    for (accepts, forwarding, encapsulation) in [
        (None, Forwarding::Nat, Encapsulation::Ipip),
        (Some("ipip"), Forwarding::Tunnel, Encapsulation::Ipip),
        (Some("ipip,gue"), Forwarding::Tunnel, Encapsulation::Gue),
        (Some("ipip"), Forwarding::Tunnel, Encapsulation::Ipip),
    ] {
        let mut other = mk_node("node-b", &["10.0.0.2"]);
        other.annotations =
            accepts.map(|accepts| (ACCEPTS_ANNOTATION.into(), accepts.into())).into_iter().collect();
        planner.handle([apply(Object::Node(other.into()))]);
        let destination = &planner.plan().virtual_servers.values().next().unwrap().destinations[0];
        assert_eq!(
            (destination.forwarding, destination.encapsulation),
            (forwarding, encapsulation),
            "{accepts:?}"
        );
    }
}
