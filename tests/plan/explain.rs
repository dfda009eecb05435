//! Why an endpoint is used or not: the words, and that they are the plan's.

use proptest::prelude::*;
use sheave::cluster::{Event, Object, Skipped, TrafficPolicy};
use sheave::config::Config;
use sheave::plan::{AcceptedIn, ExplainedServer, Planner, Topology, VipKind};

use crate::build::{World, ip, mk_load_balancer_ip, mk_node, mk_slice, name};

/// One line for each endpoint: address and port, what it is to clients from outside and within, and where.
fn lines(server: &ExplainedServer) -> Vec<String> {
    let line = |endpoint: &sheave::plan::ExplainedEndpoint| {
        let port = endpoint.port.map_or_else(|| "-".into(), |port| port.to_string());
        let mut line = format!("{} {port}: {}", endpoint.address, endpoint.outside);
        if endpoint.inside != endpoint.outside {
            line += &format!("; inside: {}", endpoint.inside);
        }
        if let Some(destination) = endpoint.destination.as_ref().or(endpoint.internal.as_ref()) {
            line += &format!("; {:?} {}", destination.forwarding, destination.weight);
        }
        if let Some(accepted_in) = endpoint.accepted_in {
            line += &format!("; taken in by the {accepted_in:?}");
        }
        line
    };
    server.endpoints.iter().map(line).collect()
}

#[test]
fn every_listed_endpoint_is_explained() {
    let mut world = World::new();
    world.zone = Some("a");
    world.service.cluster_ips = vec![ip("10.96.0.80")];
    world.service.load_balancer_ips = vec![mk_load_balancer_ip("198.51.100.1")];
    world.service.external_traffic_policy = TrafficPolicy::Local;
    let endpoints = [
        "10.244.1.1@node-a",
        "10.244.1.2@node-a",
        "10.244.1.3@node-a",
        "10.244.2.1@node-b",
        "10.244.2.2@node-b",
        "10.244.2.3@node-b",
    ];
    let mut slice = mk_slice("web-1", "web", 8080, &endpoints);
    for (endpoint, zone) in slice.endpoints.iter_mut().zip(["a", "b", "a", "a", "b", "a"]) {
        endpoint.hints.get_or_insert_default().zones = vec![zone.into()];
    }
    slice.endpoints[2].ready = false;
    (slice.endpoints[5].ready, slice.endpoints[5].terminating) = (false, true);
    let mut without = mk_slice("web-5", "web", 9, &["10.244.1.9@node-a"]);
    without.ports[0].name = Some("other".into());
    let mut again = slice.clone();
    again.endpoints.truncate(1);
    again.name.name = "web-2".into();
    let mut remapped = again.clone();
    (remapped.ports[0].port, remapped.name.name) = (9090, "web-3".into());
    let ipv6 = mk_slice("web-4", "web", 8080, &["fd00:244:1::1@node-a"]);
    world.slices = vec![slice, again, remapped, ipv6, without];

    let explanation = world.explain();
    assert_eq!((explanation.service, explanation.skipped), (name("web"), None));
    let [cluster_ip, load_balancer_ip] = &explanation.virtual_servers[..] else { panic!() };
    assert_eq!((cluster_ip.kind, cluster_ip.policy), (VipKind::ClusterIP, TrafficPolicy::Cluster));
    assert_eq!(cluster_ip.topology, Topology::SameZone);
    assert_eq!(
        lines(cluster_ip),
        [
            "10.244.1.1 8080: ready: gets connections; Tunnel 1; taken in by the Node",
            "10.244.1.1 8080: another slice lists it too, and counts",
            "10.244.1.1 9090: its address is listed with target port 8080 too, which is used",
            "10.244.1.2 8080: its hints are for other zones; taken in by the Node",
            "10.244.1.3 8080: not ready; taken in by the Node",
            "10.244.1.9 -: its slice has no port of that name and protocol",
            "10.244.2.1 8080: ready: gets connections; Tunnel 1",
            "10.244.2.2 8080: its hints are for other zones",
            "10.244.2.3 8080: terminating: keeps its connections, gets no new ones; Tunnel 0",
            "fd00:244:1::1 8080: of the other address family",
        ]
    );
    assert_eq!(load_balancer_ip.policy, TrafficPolicy::Local);
    assert_eq!(
        lines(load_balancer_ip),
        [
            "10.244.1.1 8080: ready: gets connections; Tunnel 1; taken in by the Node",
            "10.244.1.1 8080: another slice lists it too, and counts",
            "10.244.1.1 9090: its address is listed with target port 8080 too, which is used",
            "10.244.1.2 8080: ready: gets connections; inside: its hints are for other zones; Tunnel 1; \
             taken in by the Node",
            "10.244.1.3 8080: not ready; taken in by the Node",
            "10.244.1.9 -: its slice has no port of that name and protocol",
            "10.244.2.1 8080: not on this node, and the traffic policy is Local; inside: ready: gets connections; \
             Tunnel 1",
            "10.244.2.2 8080: not on this node, and the traffic policy is Local; inside: its hints are for other zones",
            "10.244.2.3 8080: not on this node, and the traffic policy is Local; inside: terminating: keeps its \
             connections, gets no new ones; Tunnel 0",
            "fd00:244:1::1 8080: of the other address family",
        ]
    );
}

#[test]
fn a_service_that_is_left_alone_has_no_virtual_servers() {
    let mut world = World::new();
    world.service.skipped = Some(Skipped::OtherProxy);
    let explanation = world.explain();
    assert_eq!(explanation.skipped, Some(Skipped::OtherProxy));
    assert!(explanation.virtual_servers.is_empty());
}

#[test]
fn the_planner_explains_with_what_it_plans_with() {
    let mut planner = Planner::new("node-a", Config::default());
    let mut world = World::new();
    world.annotate("sheave.io/acceptance", "pod");
    let mut events = vec![Event::Apply(Object::Node(mk_node("node-a", &["10.0.0.1"]).into()))];
    events.push(Event::Apply(Object::Service(world.service.into())));
    events.extend(world.slices.into_iter().map(|slice| Event::Apply(Object::EndpointSlice(slice.into()))));
    planner.handle(events);
    let explanation = planner.explain(&name("web")).unwrap();
    let accepted: Vec<_> =
        explanation.virtual_servers[0].endpoints.iter().map(|endpoint| endpoint.accepted_in).collect();
    assert_eq!(accepted, [Some(AcceptedIn::Pod), None, None]);
    assert_eq!(planner.explain(&name("nobody")), None);
}

proptest! {
    /// Whatever the slices list, the plan has exactly the destinations that the explanation names.
    #[test]
    fn explanation_and_plan_are_the_same(
        states in prop::collection::vec((0u8..5, 0u8..3, any::<[bool; 4]>(), 0usize..3), 0..10),
        local in any::<bool>(),
    ) {
        let mut world = World::new();
        world.zone = Some("a");
        world.service.load_balancer_ips = vec![mk_load_balancer_ip("198.51.100.1")];
        world.service.ports[0].node_port = Some(30080);
        if local {
            world.service.external_traffic_policy = TrafficPolicy::Local;
        }
        world.slices = ["web-1", "web-2", "web-3"].iter().zip([8080, 8080, 9090])
            .map(|(slice, port)| mk_slice(slice, "web", port, &[])).collect();
        for (number, zone, [ready, serving, terminating, here], slice) in states {
            let text = format!("10.244.1.{number}@{}", if here { "node-a" } else { "node-b" });
            let mut endpoint = crate::build::mk_endpoint(&text);
            (endpoint.ready, endpoint.serving, endpoint.terminating) = (ready, serving, terminating);
            if zone < 2 {
                endpoint.hints.get_or_insert_default().zones = vec![["a", "b"][usize::from(zone)].into()];
            }
            world.slices[slice].endpoints.push(endpoint);
        }
        let (plan, explanation) = (world.plan(), world.explain());
        prop_assert_eq!(plan.virtual_servers.len(), explanation.virtual_servers.len());
        for (server, explained) in plan.virtual_servers.iter().zip(&explanation.virtual_servers) {
            prop_assert_eq!(server.vip, explained.vip);
            let listed: usize = world.slices.iter().map(|slice| slice.endpoints.len()).sum();
            prop_assert_eq!(explained.endpoints.len(), listed);
            let endpoints = || explained.endpoints.iter();
            let outside: Vec<_> = endpoints().filter_map(|endpoint| endpoint.destination.clone()).collect();
            let inside: Vec<_> = endpoints().filter_map(|endpoint| endpoint.internal.clone()).collect();
            prop_assert_eq!(&server.destinations, &outside);
            prop_assert_eq!(server.internal.as_ref().unwrap_or(&server.destinations), &inside);
            for endpoint in endpoints() {
                let weight = |of: &Option<sheave::plan::Destination>| of.as_ref().map(|to| to.weight);
                prop_assert_eq!(weight(&endpoint.destination), endpoint.outside.weight());
                prop_assert_eq!(weight(&endpoint.internal), endpoint.inside.weight());
            }
        }
    }
}
