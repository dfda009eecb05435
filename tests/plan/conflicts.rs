//! Services that want the same, and what becomes of the plan when they come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use sheave::cluster::{Service, ServiceName};
use sheave::plan::{Delta, NodePlan, NodeState, ServicePlan, VipPort};

use crate::build::{World, ip, mk_endpoint, mk_load_balancer_ip, mk_port, mk_slice, name};

fn born(seconds: u64) -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A load-balancer Service with one endpoint here and one that is reached by *nat*.
fn plan_of(service: &str, address: &str, ports: &[u16], endpoints: &[&str]) -> ServicePlan {
    let mut world = World::new();
    world.service.name = name(service);
    world.service.cluster_ips.clear();
    world.service.load_balancer_ips = vec![mk_load_balancer_ip(address)];
    world.service.ports = ports.iter().map(|port| mk_port("http", *port)).collect();
    world.slices = vec![mk_slice("s", service, 8080, endpoints)];
    world.plan()
}

fn holder(plan: &NodePlan, port: u16) -> Option<String> {
    let vip = |vip: &&VipPort| vip.port == port;
    let vip = plan.virtual_servers.keys().find(vip)?;
    Some(plan.virtual_servers[vip].service.to_string())
}

fn announcer(plan: &NodePlan) -> Option<String> {
    plan.announcements.values().next()?.service.as_ref().map(ToString::to_string)
}

#[test]
fn the_older_service_has_it_and_the_next_takes_over() {
    let (old, young) = (name("z-old"), name("a-young"));
    let mut plan = NodePlan::new("node-a");
    let of = |service, endpoint| plan_of(service, "198.51.100.1", &[80], &[endpoint]);
    plan.set(&young, born(2), Some(of("a-young", "10.244.1.2@node-a")));
    assert_eq!(holder(&plan, 80).as_deref(), Some("default/a-young"));

    let delta = plan.set(&old, born(1), Some(of("z-old", "10.244.1.1@node-a")));
    assert_eq!(holder(&plan, 80).as_deref(), Some("default/z-old"));
    assert_eq!(announcer(&plan).as_deref(), Some("default/z-old"));
    assert_eq!(delta.virtual_servers.len(), 1);
    assert_eq!(delta.rewrites.len(), 2, "one endpoint's rewrite goes, the other's comes");
    assert_eq!(delta.announcements.len(), 1);
    assert!(delta.vips.is_empty(), "the VIP stays");
    let rewritten: Vec<_> = plan.rewrites.keys().map(|key| key.endpoint).collect();
    assert_eq!(rewritten, [ip("10.244.1.1")]);
    let warnings: Vec<_> = plan.warnings().collect();
    assert_eq!(warnings.len(), 1);
    assert_eq!((&*warnings[0].object, warnings[0].reason), ("Service default/a-young", "ConflictingAddress"));
    assert!(warnings[0].message.contains("TCP 198.51.100.1:80 belongs to the older Service default/z-old"));

    assert_eq!(delta.services, BTreeSet::from([old.clone(), young.clone()]), "the loser has a new warning");

    let delta = plan.set(&old, None, None);
    assert_eq!(holder(&plan, 80).as_deref(), Some("default/a-young"));
    assert_eq!(announcer(&plan).as_deref(), Some("default/a-young"));
    assert_eq!(plan.warnings().count(), 0);
    assert_eq!(delta.services, BTreeSet::from([old, young]), "the winner's warning is gone");
}

#[test]
fn of_equal_age_the_name_decides_and_unknown_age_is_last() {
    let mut plan = NodePlan::new("node-a");
    let of = |service| plan_of(service, "198.51.100.1", &[80], &["10.244.1.1@node-a"]);
    plan.set(&name("b"), None, Some(of("b")));
    plan.set(&name("c"), born(5), Some(of("c")));
    assert_eq!(holder(&plan, 80).as_deref(), Some("default/c"));
    plan.set(&name("a"), born(5), Some(of("a")));
    assert_eq!(holder(&plan, 80).as_deref(), Some("default/a"));
}

#[test]
fn two_services_share_a_vip_by_port() {
    let mut plan = NodePlan::new("node-a");
    plan.set(&name("a"), born(1), Some(plan_of("a", "198.51.100.1", &[80], &[])));
    assert_eq!(announcer(&plan), None, "no endpoints");
    let delta =
        plan.set(&name("b"), born(2), Some(plan_of("b", "198.51.100.1", &[443], &["10.244.2.1@node-b"])));
    assert_eq!(plan.vips, BTreeMap::from([(ip("198.51.100.1"), 2)]));
    assert!(delta.vips.is_empty());
    assert_eq!(announcer(&plan).as_deref(), Some("default/b"), "the older one has no endpoints");
    plan.set(&name("a"), None, None);
    let delta = plan.set(&name("b"), None, None);
    assert!(plan.vips.is_empty());
    assert_eq!(delta.vips, BTreeSet::from([ip("198.51.100.1")]));
}

#[test]
fn a_prefix_is_not_announced_for_a_service_that_lost_all_its_ports() {
    let mut plan = NodePlan::new("node-a");
    plan.set(&name("a"), born(1), Some(plan_of("a", "198.51.100.1", &[80], &[])));
    plan.set(&name("b"), born(2), Some(plan_of("b", "198.51.100.1", &[80], &["10.244.2.1@node-b"])));
    assert_eq!(announcer(&plan), None);
    let delta = plan.set(&name("a"), None, None);
    assert_eq!(announcer(&plan).as_deref(), Some("default/b"));
    assert_eq!(delta.announcements.len(), 1);
}

#[test]
fn the_same_plan_again_touches_nothing() {
    let mut plan = NodePlan::new("node-a");
    let of = || plan_of("a", "198.51.100.1", &[80, 443], &["10.244.1.1@node-a", "10.244.3.1@node-c"]);
    assert!(!plan.set(&name("a"), born(1), Some(of())).is_empty());
    assert!(plan.set(&name("a"), born(1), Some(of())).is_empty());
}

#[test]
fn an_endpoint_more_touches_its_virtual_server_and_rewrite_only() {
    let mut plan = NodePlan::new("node-a");
    plan.set(&name("a"), born(1), Some(plan_of("a", "198.51.100.1", &[80], &["10.244.2.1@node-b"])));
    let more = plan_of("a", "198.51.100.1", &[80], &["10.244.2.1@node-b", "10.244.1.1@node-a"]);
    let delta = plan.set(&name("a"), born(1), Some(more));
    let touched = (delta.virtual_servers.len(), delta.rewrites.len(), delta.announcements.len());
    assert_eq!(touched, (1, 1, 0));
    assert!(plan.rewrites.values().all(|rewrite| rewrite.local));
}

#[test]
fn routes_are_service_cidrs_and_what_is_outside() {
    let mut plan = NodePlan::new("node-a");
    let state = NodeState {
        service_cidrs: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
        ..NodeState::default()
    };
    assert!(plan.set_node(state.clone(), Vec::new(), Vec::new()).node);
    assert_eq!(plan.set_node(state, Vec::new(), Vec::new()), Delta::default());
    plan.set(&name("a"), None, Some(plan_of("a", "10.96.0.80", &[80], &[])));
    plan.set(&name("b"), None, Some(plan_of("b", "2001:db8::1", &[80], &[])));
    let routes: Vec<_> = plan.vip_routes().iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["10.96.0.0/16", "2001:db8::1/128"]);
}

/// One step of a random history: a Service gets new ports, addresses and endpoints, or goes.
#[derive(Clone, Debug)]
struct Step {
    service: u8,
    created: u8,
    /// Nothing: the Service goes.
    wants: Option<Wants>,
}

/// Last digits of addresses, ports, and endpoints (node and digit).
type Wants = (BTreeSet<u8>, BTreeSet<u8>, BTreeSet<(u8, u8)>);

fn step() -> impl Strategy<Value = Step> {
    use proptest::collection::btree_set;
    let wants = (btree_set(1..4u8, 0..3), btree_set(1..4u8, 0..3), btree_set((0..3u8, 0..3u8), 0..4));
    (0..4u8, 0..3u8, proptest::option::weighted(0.8, wants)).prop_map(|(service, created, wants)| Step {
        service,
        created,
        wants,
    })
}

impl Step {
    fn name(&self) -> ServiceName {
        name(&format!("s{}", self.service))
    }

    fn created(&self) -> Option<SystemTime> {
        self.created.checked_sub(1).and_then(|created| born(created.into()))
    }

    fn plan(&self) -> Option<ServicePlan> {
        let (addresses, ports, endpoints) = self.wants.as_ref()?;
        let mut world = World::new();
        let slice = mk_slice("s", "s", 8080, &[]);
        world.service = Service {
            name: self.name(),
            load_balancer_ips: addresses
                .iter()
                .map(|a| mk_load_balancer_ip(&format!("198.51.100.{a}")))
                .collect(),
            source_ranges: if self.created == 1 { vec!["10.0.0.0/8".parse().unwrap()] } else { Vec::new() },
            cluster_ips: Vec::new(),
            ports: ports.iter().map(|port| mk_port("http", u16::from(*port))).collect(),
            ..world.service
        };
        world.slices = vec![slice];
        world.slices[0].endpoints = endpoints
            .iter()
            .map(|(node, digit)| {
                let node_name = ["node-a", "node-b", "node-c"][usize::from(*node)];
                mk_endpoint(&format!("10.244.{node}.{digit}@{node_name}"))
            })
            .collect();
        Some(world.plan())
    }
}

/// Keys at which two maps differ.
fn differing<K: Clone + Ord, V: PartialEq>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> BTreeSet<K> {
    a.keys().chain(b.keys()).filter(|key| a.get(key) != b.get(key)).cloned().collect()
}

/// Everything of a plan that shows, to compare.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    virtual_servers: BTreeMap<VipPort, sheave::plan::VirtualServer>,
    rewrites: BTreeMap<sheave::plan::RewriteKey, sheave::plan::Rewrite>,
    vips: BTreeMap<std::net::IpAddr, usize>,
    announcements: BTreeMap<ipnet::IpNet, sheave::plan::Announcement>,
    source_ranges: BTreeMap<VipPort, sheave::plan::SourceRange>,
    warnings: BTreeSet<sheave::plan::Warning>,
}

fn shown(plan: &NodePlan) -> Shown {
    Shown {
        virtual_servers: plan.virtual_servers.clone().into_iter().collect(),
        rewrites: plan.rewrites.iter().map(|(key, rewrite)| (*key, *rewrite)).collect(),
        vips: plan.vips.clone(),
        announcements: plan.announcements.clone(),
        source_ranges: plan.source_ranges.clone(),
        warnings: plan.warnings().collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_history_comes_to_the_same_and_deltas_name_what_differs(steps in proptest::collection::vec(step(), 1..12)) {
        let mut plan = NodePlan::new("node-a");
        let mut last: BTreeMap<ServiceName, &Step> = BTreeMap::new();
        for step in &steps {
            let before = shown(&plan);
            let delta = plan.set(&step.name(), step.created(), step.plan());
            let after = shown(&plan);
            prop_assert_eq!(&delta.virtual_servers, &differing(&before.virtual_servers, &after.virtual_servers));
            prop_assert_eq!(&delta.rewrites, &differing(&before.rewrites, &after.rewrites));
            prop_assert_eq!(&delta.announcements, &differing(&before.announcements, &after.announcements));
            prop_assert_eq!(&delta.source_ranges, &differing(&before.source_ranges, &after.source_ranges));
            let came_or_went: BTreeSet<_> = before.vips.keys().collect::<BTreeSet<_>>()
                .symmetric_difference(&after.vips.keys().collect()).copied().copied().collect();
            prop_assert!(delta.vips.is_superset(&came_or_went));
            if step.wants.is_some() { last.insert(step.name(), step) } else { last.remove(&step.name()) };
        }
        let mut anew = NodePlan::new("node-a");
        for step in last.values() {
            anew.set(&step.name(), step.created(), step.plan());
        }
        prop_assert_eq!(shown(&plan), shown(&anew));
    }

    #[test]
    fn canonical_order_is_that_of_the_slices_in_any_order(
        endpoints in proptest::collection::vec((0..5u8, 0..20u8, any::<bool>(), 80..83u16), 0..20),
        split in 1..4usize,
        turn in 0..4usize,
    ) {
        let slices: Vec<_> = endpoints.chunks(split).enumerate().map(|(index, chunk)| {
            let mut slice = mk_slice(&format!("s{index}"), "web", chunk[0].3, &[]);
            slice.endpoints = chunk.iter().map(|(node, digit, ready, _)| {
                let mut endpoint = mk_endpoint(&format!("10.244.{node}.{digit}@node-a"));
                endpoint.ready = *ready;
                endpoint
            }).collect();
            slice
        }).collect();
        let mut world = World::new();
        world.slices = slices;
        let straight = world.plan();
        if !world.slices.is_empty() {
            let turn = turn % world.slices.len();
            world.slices.rotate_left(turn);
            world.slices.reverse();
        }
        prop_assert_eq!(&straight, &world.plan());
        let destinations = &straight.virtual_servers[0].destinations;
        prop_assert!(destinations.is_sorted_by_key(|d| (d.address, d.port)));
    }
}
