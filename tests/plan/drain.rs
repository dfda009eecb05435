//! What asks a node to drain, and which of its VIPs others would announce.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sheave::cluster::{
    ACCEPTS_ANNOTATION, EndpointSlice, Event, Node, Object, ObjectKey, Taint, TrafficPolicy,
};
use sheave::config::Config;
use sheave::plan::Planner;

use crate::build::{mk_load_balancer_ip, mk_node, mk_port, mk_service, mk_slice};

const VIP: &str = "198.51.100.1";
const CORDONED: &str = "node.kubernetes.io/unschedulable:NoSchedule";

fn config(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("sheave.yaml"), text).map_err(|error| error.to_string())
}

/// As `kubectl` writes it.
fn taint(text: &str) -> Taint {
    let (taint, effect) = text.split_once(':').unwrap();
    let (key, value) = taint.split_once('=').unwrap_or((taint, ""));
    Taint { key: key.into(), value: value.into(), effect: effect.into() }
}

fn node(name: &str, annotations: &[(&str, &str)], taints: &[&str]) -> Node {
    let last = name.as_bytes()[name.len() - 1] - b'a' + 1;
    let mut node = mk_node(name, &[&format!("10.0.0.{last}")]);
    node.annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    node.taints = taints.iter().map(|text| taint(text)).collect();
    node
}

fn tell(planner: &mut Planner, objects: impl IntoIterator<Item = Object>) {
    planner.handle(objects.into_iter().map(Event::Apply));
}

fn reasons(planner: &Planner) -> Vec<String> {
    planner.drains_for().iter().map(ToString::to_string).collect()
}

#[test]
fn what_asks_for_a_drain() {
    let by_annotation = "annotation sheave.io/drain";
    for (what, drain, annotations, taints, expected) in [
        ("nothing", "{}", &[][..], &[CORDONED][..], &[][..]),
        ("the annotation", "{}", &[("sheave.io/drain", "true")], &[], &[by_annotation]),
        ("it says no", "{}", &[("sheave.io/drain", "false")], &[], &[]),
        ("it does not count", "{annotation: false}", &[("sheave.io/drain", "true")], &[], &[]),
        (
            "a taint by its key",
            "{taints: [node.kubernetes.io/unschedulable]}",
            &[],
            &[CORDONED],
            &["taint node.kubernetes.io/unschedulable:NoSchedule"],
        ),
        (
            "by key and effect",
            "{taints: ['maintenance:NoExecute']}",
            &[],
            &["maintenance:NoSchedule", "maintenance=rack:NoExecute"],
            &["taint maintenance=rack:NoExecute"],
        ),
        (
            "by key and value",
            "{taints: [maintenance=rack]}",
            &[],
            &["maintenance=power:NoSchedule", "maintenance=rack:NoSchedule"],
            &["taint maintenance=rack:NoSchedule"],
        ),
        ("another effect", "{taints: ['a=b:NoExecute']}", &[], &["a=b:NoSchedule", "a:NoExecute"], &[]),
        (
            "several",
            "{taints: [a]}",
            &[("sheave.io/drain", "true")],
            &["a:NoSchedule"],
            &[by_annotation, "taint a:NoSchedule"],
        ),
    ] {
        let mut planner = Planner::new("node-a", config(&format!("drain: {drain}")).unwrap());
        tell(&mut planner, [Object::Node(node("node-a", annotations, taints).into())]);
        assert_eq!(reasons(&planner), expected, "{what}");
        let told: Vec<_> =
            planner.node_warnings().into_iter().filter(|warning| warning.reason == "DrainAsked").collect();
        assert_eq!(told.len(), expected.len(), "{what}: {told:?}");
    }
}

#[test]
fn what_is_known_stays_in_force() {
    let mut planner = Planner::new("node-a", config("drain: {taints: [a]}").unwrap());
    let drained = node("node-a", &[("sheave.io/drain", "true")], &["a:NoExecute"]);
    planner.recall(&drained);
    assert_eq!(reasons(&planner).len(), 2, "before the source has told anything");
    tell(&mut planner, [Object::Node(node("node-a", &[], &[]).into())]);
    assert_eq!(reasons(&planner), [""; 0]);
    tell(&mut planner, [Object::Node(drained.into())]);
    tell(
        &mut planner,
        [Object::Node(node("node-a", &[("sheave.io/drain", "maybe")], &["a:NoExecute"]).into())],
    );
    assert_eq!(reasons(&planner).len(), 2, "the annotation does not parse");
    planner.handle([Event::Delete(ObjectKey::Node("node-a".into()))]);
    assert_eq!(reasons(&planner).len(), 2, "its Node is gone, but this node is not");
}

#[test]
fn the_config_says_how() {
    let drain = config("drain: {taints: ['a=b:NoExecute'], wait: 500ms, limit: 2h}").unwrap().drain;
    assert_eq!((drain.wait, drain.limit), (Duration::from_millis(500), Duration::from_secs(7200)));
    for (text, wrong) in [
        (
            "{taints: ['a:Never']}",
            "drain.taints[0]: `Never` is not an effect of a taint: NoSchedule, PreferNoSchedule, NoExecute",
        ),
        (
            "{taints: [a, '=b']}",
            "drain.taints[1]: `=b` is not a taint: KEY, KEY=VALUE, KEY:EFFECT or KEY=VALUE:EFFECT",
        ),
        ("{taints: ['a b']}", "drain.taints[0]: `a b` is not a taint"),
        ("{wait: soon}", "drain.wait: `soon` is not a duration"),
        ("{wait: 1h}", "drain.wait: peers need seconds to take another way: 0s to 10m"),
        ("{limit: 2d}", "drain.limit: a limit is 0s to 24h"),
        ("{limit: 1s}", "drain.limit: 1s is shorter than drain.wait, 5s"),
        ("{cordon: true}", "drain.cordon: unknown field"),
    ] {
        let error = config(&format!("drain: {text}")).unwrap_err();
        assert!(error.starts_with("sheave.yaml:1: ") && error.contains(wrong), "{text}: {error}");
    }
}

/// Endpoints with `!` are not ready.
fn slice(endpoints: &[&str]) -> EndpointSlice {
    let names: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.trim_end_matches('!')).collect();
    let mut slice = mk_slice("web-1", "web", 8080, &names);
    for (endpoint, text) in slice.endpoints.iter_mut().zip(endpoints) {
        (endpoint.ready, endpoint.serving) = (!text.ends_with('!'), !text.ends_with('!'));
    }
    slice
}

/// A planner of node-a that knows of these others and of a Service with these endpoints.
fn planner(policy: TrafficPolicy, endpoints: &[&str], others: &[Node]) -> Planner {
    let config = config("drain: {taints: [maintenance]}").unwrap();
    let mut planner = Planner::new("node-a", config);
    let mut service = mk_service("web");
    service.ports = vec![mk_port("http", 80)];
    service.cluster_ips = vec!["10.96.0.80".parse().unwrap()];
    service.load_balancer_ips = vec![mk_load_balancer_ip(VIP)];
    service.external_traffic_policy = policy;
    let own = node("node-a", &[(ACCEPTS_ANNOTATION, "ipip")], &[]);
    let nodes = others.iter().cloned().chain([own]).map(|node| Object::Node(Arc::new(node)));
    let slice = slice(endpoints);
    tell(&mut planner, nodes.chain([Object::Service(service.into()), Object::EndpointSlice(slice.into())]));
    planner
}

/// VIPs that no other node is to announce, and whether this one is.
fn alone(planner: &Planner) -> Vec<(String, bool)> {
    let alone = planner.alone(None);
    assert_eq!(planner.alone(Some(&alone.keys().copied().collect())), alone);
    assert_eq!(planner.alone(Some(&["192.0.2.1/32".parse().unwrap()].into())), [].into(), "nobody has it");
    alone.iter().map(|(vip, planned)| (vip.to_string(), *planned)).collect()
}

#[test]
fn a_vip_that_no_other_node_is_to_announce() {
    let accepts = (ACCEPTS_ANNOTATION, "ipip");
    let b = || node("node-b", &[accepts], &[]);
    let here = &["10.244.1.10@node-a"][..];
    let both = &["10.244.1.10@node-a", "10.244.2.10@node-b"][..];
    for (what, policy, endpoints, others, is_alone) in [
        ("there is no other node", TrafficPolicy::Cluster, both, vec![], true),
        ("an agent runs on another", TrafficPolicy::Cluster, here, vec![b()], false),
        ("no agent runs there", TrafficPolicy::Cluster, here, vec![node("node-b", &[], &[])], true),
        (
            "it drains too",
            TrafficPolicy::Cluster,
            here,
            vec![node("node-b", &[accepts, ("sheave.io/drain", "true")], &[])],
            true,
        ),
        (
            "by a taint",
            TrafficPolicy::Cluster,
            here,
            vec![node("node-b", &[accepts], &["maintenance:NoExecute"])],
            true,
        ),
        (
            "another taint is no matter",
            TrafficPolicy::Cluster,
            here,
            vec![node("node-b", &[accepts], &[CORDONED])],
            false,
        ),
        (
            "nothing is heard of it",
            TrafficPolicy::Cluster,
            here,
            vec![node("node-b", &[accepts], &["node.kubernetes.io/unreachable:NoExecute"])],
            true,
        ),
        ("it is being deleted", TrafficPolicy::Cluster, here, vec![Node { deleting: true, ..b() }], true),
        (
            "it announces no Service",
            TrafficPolicy::Cluster,
            here,
            vec![Node { excluded_from_load_balancers: true, ..b() }],
            true,
        ),
        ("its Service is bound to endpoints here", TrafficPolicy::Local, here, vec![b()], true),
        ("there are endpoints there too", TrafficPolicy::Local, both, vec![b()], false),
        (
            "one of several is enough",
            TrafficPolicy::Local,
            both,
            vec![node("node-c", &[accepts], &[]), b()],
            false,
        ),
    ] {
        let planner = planner(policy, endpoints, &others);
        assert_eq!(planner.plan().announcements.len(), 1, "this node is to announce it");
        let expected = if is_alone { vec![(format!("{VIP}/32"), true)] } else { vec![] };
        assert_eq!(alone(&planner), expected, "{what}");
    }
}

#[test]
fn a_vip_whose_endpoints_are_not_ready_is_nobody_elses_for_that() {
    let b = node("node-b", &[(ACCEPTS_ANNOTATION, "ipip")], &[]);
    for (what, policy, endpoints, expected) in [
        ("that of this node", TrafficPolicy::Local, &["10.244.1.10@node-a!"][..], Some(false)),
        (
            "all there are",
            TrafficPolicy::Cluster,
            &["10.244.1.10@node-a!", "10.244.2.10@node-b!"],
            Some(false),
        ),
        ("there are none", TrafficPolicy::Cluster, &[], Some(false)),
        ("another node's is", TrafficPolicy::Local, &["10.244.1.10@node-a!", "10.244.2.10@node-b"], None),
    ] {
        let mut planner = planner(policy, endpoints, std::slice::from_ref(&b));
        assert_eq!(planner.plan().announcements.len(), 0, "{what}");
        let vips = |planned: Option<bool>| planned.map(|planned| (format!("{VIP}/32"), planned));
        assert_eq!(alone(&planner), Vec::from_iter(vips(expected)), "{what}");
        let ready = slice(&["10.244.1.10@node-a"]);
        tell(&mut planner, [Object::EndpointSlice(ready.into())]);
        let local = policy == TrafficPolicy::Local;
        assert_eq!(alone(&planner), Vec::from_iter(vips(local.then_some(true))), "{what}, and then one is");
        planner.handle([Event::Delete(ObjectKey::Service(mk_service("web").name))]);
        assert_eq!(alone(&planner), [], "{what}, and then the Service is gone");
    }
}

#[test]
fn a_cluster_ip_that_nobody_announces_is_nobodys() {
    let planner = planner(TrafficPolicy::Cluster, &["10.244.1.10@node-a"], &[]);
    assert!(planner.plan().vips.len() > 1, "it has a cluster IP");
    assert_eq!(alone(&planner), [(format!("{VIP}/32"), true)]);
}

#[test]
fn where_nothing_is_known_of_other_nodes_all_is_kept() {
    let held = planner(TrafficPolicy::Cluster, &["10.244.1.10@node-a"], &[]);
    let [vip, other] = [VIP, "192.0.2.1"].map(|vip| IpNet::from(vip.parse::<IpAddr>().unwrap()));
    assert_eq!(held.plan().alone(None), [(vip, true)].into());
    assert_eq!(held.plan().alone(Some(&[vip, other].into())), [(vip, true), (other, false)].into());
}
