//! Which Services a change touches, and only those.

use std::collections::BTreeSet;
use std::sync::Arc;

use sheave::cluster::{ACCEPTS_ANNOTATION, Changes, Event, Index, Node, Object, ObjectKey};
use sheave::config::Config;
use sheave::plan::{Planner, VipPort};

use crate::build::{ip, mk_load_balancer_ip, mk_node, mk_port, mk_service, mk_slice, name};

fn service(of: &str) -> Object {
    let mut service = mk_service(of);
    service.cluster_ips = vec![ip("10.96.0.80")];
    service.ports = vec![mk_port("http", 80)];
    Object::Service(service.into())
}

fn slice(slice: &str, of: &str, endpoints: &[&str]) -> Object {
    Object::EndpointSlice(mk_slice(slice, of, 8080, endpoints).into())
}

fn node(node: Node) -> Object {
    Object::Node(Arc::new(node))
}

fn accepting(name: &str, addresses: &[&str]) -> Object {
    let mut mk = mk_node(name, addresses);
    mk.annotations.insert(ACCEPTS_ANNOTATION.into(), "true".into());
    node(mk)
}

fn touched(changes: &Changes) -> Vec<&str> {
    let mut names: Vec<&str> = changes.services.iter().map(|service| &*service.name).collect();
    names.sort_unstable();
    names
}

/// Seen from node-a: `here` has its endpoint on node-a, `there` on node-b, `outside` on no node.
fn index() -> Index {
    let mut index = Index::new("node-a");
    for (of, endpoint) in
        [("here", "10.244.1.1@node-a"), ("there", "10.244.2.1@node-b"), ("outside", "192.0.2.9")]
    {
        index.apply(service(of));
        index.apply(slice(of, of, &[endpoint]));
    }
    index.apply(node(mk_node("node-a", &["10.0.0.1"])));
    index.apply(node(mk_node("node-b", &["10.0.0.2"])));
    index
}

#[test]
fn the_same_object_again_touches_nothing() {
    let mut index = index();
    for object in [
        service("here"),
        slice("here", "here", &["10.244.1.1@node-a"]),
        node(mk_node("node-b", &["10.0.0.2"])),
    ] {
        assert_eq!(index.apply(object.clone()), Changes::default(), "{object:?}");
    }
}

#[test]
fn a_slice_touches_its_service_and_moving_it_both() {
    let mut index = index();
    assert_eq!(touched(&index.apply(slice("more", "here", &["10.244.1.2@node-a"]))), ["here"]);
    assert_eq!(index.slices(&name("here")).count(), 2);
    assert_eq!(touched(&index.apply(slice("more", "there", &["10.244.1.2@node-a"]))), ["here", "there"]);
    assert_eq!(index.slices(&name("here")).count(), 1);
    let Object::EndpointSlice(gone) = slice("more", "there", &[]) else { unreachable!() };
    assert_eq!(touched(&index.delete(&ObjectKey::EndpointSlice(gone.name.clone()))), ["there"]);
    assert_eq!(index.delete(&ObjectKey::EndpointSlice(gone.name.clone())), Changes::default());
}

#[test]
fn another_node_that_accepts_touches_the_services_with_endpoints_there() {
    let mut index = index();
    let changes = index.apply(accepting("node-b", &["10.0.0.2"]));
    assert_eq!((touched(&changes), changes.node), (vec!["there"], false));
    let changes = index.apply(accepting("node-b", &["10.0.0.2", "10.0.1.2"]));
    assert_eq!((touched(&changes), changes.node), (vec![], true), "an address more is a tunnel source more");
    let changes = index.delete(&ObjectKey::Node("node-b".into()));
    assert_eq!((touched(&changes), changes.node), (vec!["there"], true));
}

#[test]
fn own_addresses_touch_what_depends_on_them() {
    let mut index = index();
    let mut node_port = mk_service("node-port");
    node_port.ports = vec![mk_port("http", 80)];
    node_port.ports[0].node_port = Some(30080);
    index.apply(Object::Service(node_port.into()));
    let changes = index.apply(node(mk_node("node-a", &["10.0.0.9"])));
    assert_eq!((touched(&changes), changes.node), (vec!["here", "node-port", "outside"], true));
    let changes = index.apply(accepting("node-a", &["10.0.0.9"]));
    assert_eq!((touched(&changes), changes.node), (vec![], true), "own endpoints are accepted anyhow");
}

#[test]
fn a_node_that_takes_a_claimed_address_touches_the_claimant() {
    let mut index = index();
    let mut claimant = mk_service("claimant");
    claimant.load_balancer_ips = vec![mk_load_balancer_ip("192.0.2.1")];
    index.apply(Object::Service(claimant.into()));
    assert_eq!(touched(&index.apply(node(mk_node("node-c", &["192.0.2.1"])))), ["claimant"]);
}

#[test]
fn slices_may_come_before_their_service_and_stay_after_it() {
    let mut index = Index::new("node-a");
    index.apply(slice("here", "here", &["10.244.1.1@node-a"]));
    assert!(index.service(&name("here")).is_none());
    index.apply(service("here"));
    assert!(index.service(&name("here")).is_some());
    index.delete(&ObjectKey::Service(name("here")));
    assert!(index.service(&name("here")).is_none());
    assert_eq!(index.slices(&name("here")).count(), 1);
}

/// What a cluster does over a while, told in one go or one by one, comes to the same plan.
#[test]
fn the_planner_follows() {
    let story = || {
        [
            node(mk_node("node-a", &["10.0.0.1"])),
            node(mk_node("node-b", &["10.0.0.2"])),
            service("web"),
            slice("web-1", "web", &["10.244.2.1@node-b"]),
            accepting("node-b", &["10.0.0.2"]),
            slice("web-2", "web", &["10.0.0.1@node-a"]),
        ]
        .map(Event::Apply)
    };
    let mut at_once = Planner::new("node-a", Config::default());
    let delta = at_once.handle(story());
    let vip = VipPort { address: ip("10.96.0.80"), port: 80, protocol: sheave::cluster::Protocol::Tcp };
    assert_eq!(delta.virtual_servers, BTreeSet::from([vip]));
    let mut one_by_one = Planner::new("node-a", Config::default());
    for event in story() {
        one_by_one.handle([event]);
    }
    assert_eq!(at_once.plan().virtual_servers, one_by_one.plan().virtual_servers);
    assert_eq!(at_once.plan().rewrites, one_by_one.plan().rewrites);
    assert_eq!(at_once.plan().node, one_by_one.plan().node);
    let delta = one_by_one.handle([Event::Delete(ObjectKey::Service(name("web")))]);
    assert_eq!(delta.virtual_servers, BTreeSet::from([vip]));
    assert!(one_by_one.plan().virtual_servers.is_empty() && one_by_one.plan().rewrites.is_empty());
}

#[test]
fn a_wrong_annotation_leaves_the_last_good_value_in_force() {
    let with_med = |med: &str| {
        let mut service = mk_service("web");
        service.load_balancer_ips = vec![mk_load_balancer_ip("198.51.100.1")];
        service.ports = vec![mk_port("http", 80)];
        service.annotations.insert("sheave.io/med".into(), med.into());
        Event::Apply(Object::Service(service.into()))
    };
    let mut planner = Planner::new("node-a", Config::default());
    planner.handle([Event::Apply(slice("s", "web", &["10.244.2.1@node-b"]))]);
    let med = |planner: &Planner| planner.plan().announcements.values().next().map(|a| a.med);
    for (text, expected, warned) in
        [("ten", None, true), ("10", Some(10), false), ("x", Some(10), true), ("20", Some(20), false)]
    {
        planner.handle([with_med(text)]);
        assert_eq!(med(&planner), Some(expected), "{text}");
        let warning = planner.warnings().into_iter().find(|warning| warning.reason == "InvalidAnnotation");
        assert_eq!(warning.is_some(), warned, "{text}");
        assert!(warning.is_none_or(|warning| warning.message.starts_with("sheave.io/med: ")));
    }
}
