//! Aggregates: when they are announced, what they stand for, and that nobody is drawn where nobody serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use proptest::prelude::*;
use sheave::cluster::{Event, Node, Object, ObjectKey, Service, TrafficPolicy};
use sheave::config::Config;
use sheave::plan::{AnnouncementKind, Delta, Planner, Selection, Step};

use crate::build::{ip, mk_load_balancer_ip, mk_node, mk_port, mk_service, mk_slice, name};

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

fn config(announce: &str) -> Config {
    let text = format!("announce: {{aggregate: [192.0.2.0/24, 192.0.2.0/26], {announce}}}");
    Config::parse(Path::new("sheave.yaml"), &text).unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn node(name: &str, number: usize) -> Node {
    mk_node(name, &[&format!("10.0.0.{number}")])
}

/// What a Service is like.
#[derive(Clone, Debug)]
enum Mode {
    /// With endpoints on these nodes; from everywhere, or from there alone.
    Served { on: BTreeSet<usize>, local: bool },
    /// The same, from everywhere, with a community of its own, or not announced.
    Annotated { key: &'static str, value: &'static str },
}

use Mode::{Annotated, Served};

fn cluster() -> Mode {
    Served { on: [0, 1, 2].into(), local: false }
}

fn local(on: &[usize]) -> Mode {
    Served { on: on.iter().copied().collect(), local: true }
}

fn hidden() -> Mode {
    Annotated { key: "sheave.io/announce", value: "none" }
}

/// Service NUMBER at a VIP, on a port of its own, and where its endpoints are.
fn events(number: u8, vip: IpAddr, mode: &Mode) -> Vec<Event> {
    let of = format!("s{number}");
    let mut service = Service {
        load_balancer_ips: vec![mk_load_balancer_ip(&vip.to_string())],
        ports: vec![mk_port("http", 80 + u16::from(number))],
        ..mk_service(&of)
    };
    let on = match mode {
        Served { on, local } => {
            if *local {
                service.external_traffic_policy = TrafficPolicy::Local;
            }
            on.clone()
        }
        Annotated { key, value } => {
            service.annotations.insert((*key).into(), (*value).into());
            [1].into()
        }
    };
    let endpoints: Vec<String> =
        on.iter().map(|node| format!("10.244.{node}.{number}@{}", NODES[*node])).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let slice = mk_slice(&format!("{of}-1"), &of, 8080, &endpoints);
    vec![Event::Apply(Object::Service(service.into())), Event::Apply(Object::EndpointSlice(slice.into()))]
}

/// An agent's planner and what it announces; what its kernel does not hold is given.
struct Agent {
    planner: Planner,
    selection: Selection,
    unheld: BTreeSet<IpNet>,
}

impl Agent {
    fn new(own: usize, announce: &str) -> Self {
        let planner = Planner::new(NODES[own], config(announce));
        let mut agent = Self { planner, selection: Selection::default(), unheld: BTreeSet::new() };
        let nodes =
            NODES.iter().zip(1..).map(|(name, number)| Event::Apply(Object::Node(node(name, number).into())));
        agent.handle(nodes.collect());
        agent
    }

    /// As the agent's loop does it.
    fn handle(&mut self, events: Vec<Event>) -> (Step, Step) {
        let delta = self.planner.handle(events);
        let before: BTreeSet<IpNet> = self.selection.held().map(|held| held.prefix).collect();
        let first = self.selection.retire(self.planner.plan(), &delta.announcements);
        for prefix in before {
            let planned = self.planner.plan().announcements.contains_key(&prefix);
            assert_eq!(
                self.selection.announces(&prefix),
                planned,
                "{prefix}, told of no more before it is gone"
            );
            assert!(!planned || self.longest(prefix).is_some(), "{prefix} has no route in between");
        }
        (first, self.update(Some(&touched(&self.planner, &delta))))
    }

    fn update(&mut self, touched: Option<&BTreeSet<IpNet>>) -> Step {
        let unheld = &self.unheld;
        self.selection.update(self.planner.plan(), |planned| !unheld.contains(&planned.prefix), touched)
    }

    /// The longest announced prefix around one.
    fn longest(&self, prefix: IpNet) -> Option<IpNet> {
        let around = self.selection.announced().keys().filter(|announced| announced.contains(&prefix));
        around.max_by_key(|announced| announced.prefix_len()).copied()
    }

    fn announced(&self) -> Vec<String> {
        self.selection.announced().keys().map(ToString::to_string).collect()
    }

    /// Whether connections from outside would be taken.
    fn takes(&self, vip: IpAddr) -> bool {
        let servers = self.planner.plan().virtual_servers.values();
        servers.filter(|server| server.vip.address == vip).any(|server| server.takes_connections())
    }

    /// Without aggregates, this node would announce the VIP.
    fn serves(&self, prefix: &IpNet) -> bool {
        self.planner.plan().announcements.contains_key(prefix) && !self.unheld.contains(prefix)
    }
}

/// As the agent has it: of changed virtual servers too, since the kernel may hold them now.
fn touched(planner: &Planner, delta: &Delta) -> BTreeSet<IpNet> {
    let of_servers = delta.virtual_servers.iter().map(|vip| IpNet::from(vip.address));
    let planned = of_servers.filter(|prefix| planner.plan().announcements.contains_key(prefix));
    delta.announcements.iter().copied().chain(planned).collect()
}

#[test]
fn an_aggregate_stands_for_what_every_node_can_forward() {
    let community = || Annotated { key: "sheave.io/communities", value: "65000:7" };
    for (case, services, unheld, expected) in [
        ("nothing in it", &[][..], &[][..], &[][..]),
        ("one", &[("192.0.2.80", cluster())], &[], &["192.0.2.0/24"]),
        ("in both", &[("192.0.2.1", cluster())], &[], &["192.0.2.0/24", "192.0.2.0/26"]),
        ("outside", &[("198.51.100.1", cluster())], &[], &["198.51.100.1/32"]),
        (
            "two, one not held",
            &[("192.0.2.80", cluster()), ("192.0.2.81", cluster())],
            &["192.0.2.80/32"],
            &["192.0.2.81/32"],
        ),
        (
            "not held in the outer one alone",
            &[("192.0.2.80", cluster()), ("192.0.2.1", cluster())],
            &["192.0.2.80/32"],
            &["192.0.2.0/26"],
        ),
        ("its own route is not held", &[("192.0.2.80", cluster())], &["192.0.2.0/24"], &["192.0.2.80/32"]),
        (
            "bound to its nodes, here",
            &[("192.0.2.80", cluster()), ("192.0.2.81", local(&[0]))],
            &[],
            &["192.0.2.0/24", "192.0.2.81/32"],
        ),
        (
            "bound to its nodes, elsewhere",
            &[("192.0.2.80", cluster()), ("192.0.2.81", local(&[1]))],
            &[],
            &["192.0.2.0/24"],
        ),
        ("bound to its nodes alone", &[("192.0.2.81", local(&[0]))], &[], &["192.0.2.81/32"]),
        (
            "bound to its nodes, here, and not held",
            &[("192.0.2.80", cluster()), ("192.0.2.81", local(&[0]))],
            &["192.0.2.81/32"],
            &["192.0.2.80/32"],
        ),
        (
            "with attributes of its own",
            &[("192.0.2.80", cluster()), ("192.0.2.81", community())],
            &[],
            &["192.0.2.0/24", "192.0.2.81/32"],
        ),
        (
            "one is not to be announced",
            &[("192.0.2.80", cluster()), ("192.0.2.81", hidden())],
            &[],
            &["192.0.2.80/32"],
        ),
        (
            "without endpoints, nobody can take it",
            &[("192.0.2.80", cluster()), ("192.0.2.81", Served { on: [].into(), local: false })],
            &[],
            &["192.0.2.0/24"],
        ),
    ] {
        let mut agent = Agent::new(0, "");
        agent.unheld = unheld.iter().map(|prefix| net(prefix)).collect();
        for ((vip, mode), number) in services.iter().zip(1..) {
            agent.handle(events(number, ip(vip), mode));
        }
        assert_eq!(agent.announced(), expected, "{case}");
    }
}

#[test]
fn an_aggregate_has_the_attributes_of_all_that_is_announced() {
    let mut agent = Agent::new(0, "communities: [\"65000:1\", \"65000:1:2\"]");
    agent.handle(events(1, ip("192.0.2.80"), &cluster()));
    let aggregate = &agent.selection.announced()[&net("192.0.2.0/24")];
    assert_eq!((aggregate.kind, &aggregate.service), (AnnouncementKind::Aggregate, &None));
    assert_eq!(
        (aggregate.communities.clone(), aggregate.large_communities.clone()),
        ([65000 << 16 | 1].into(), [(65000, 1, 2)].into())
    );
    // The Node's are those of all, and so of what it stands for.
    let mut own = node("node-a", 1);
    own.annotations.insert("sheave.io/communities".into(), "65000:3".into());
    own.annotations.insert("sheave.io/path-prepend".into(), "2".into());
    agent.handle(vec![Event::Apply(Object::Node(own.into()))]);
    let aggregate = &agent.selection.announced()[&net("192.0.2.0/24")];
    assert_eq!((aggregate.communities.len(), aggregate.as_path_prepend), (2, 2));
    assert_eq!(agent.announced(), ["192.0.2.0/24"]);
}

#[test]
fn what_stands_for_another_is_there_before_the_other_goes() {
    let mut agent = Agent::new(0, "");
    let prefixes = |step: &Step| -> (Vec<String>, Vec<String>) {
        let announce = step.announce.iter().map(|announcement| announcement.prefix.to_string()).collect();
        (announce, step.withdraw.iter().map(ToString::to_string).collect())
    };
    let of = |announce: &[&str], withdraw: &[&str]| {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        (texts(announce), texts(withdraw))
    };
    agent.unheld = [net("192.0.2.0/24")].into();
    for (number, vip) in [(1, "192.0.2.80"), (2, "192.0.2.81")] {
        agent.handle(events(number, ip(vip), &cluster()));
    }
    assert_eq!(agent.announced(), ["192.0.2.80/32", "192.0.2.81/32"]);
    agent.unheld.clear();
    let step = agent.update(None);
    assert_eq!(prefixes(&step), of(&["192.0.2.0/24"], &["192.0.2.80/32", "192.0.2.81/32"]));
    assert!(step.in_place && step.held.is_empty() && step.lost.is_empty(), "{step:?}");

    // The kernel loses one: the others are told of by themselves first.
    agent.unheld = [net("192.0.2.80/32")].into();
    let step = agent.update(Some(&agent.unheld.clone()));
    assert_eq!(prefixes(&step), of(&["192.0.2.81/32"], &["192.0.2.0/24"]));
    assert!(step.in_place && step.lost == [net("192.0.2.80/32")], "{step:?}");
    agent.unheld.clear();
    agent.update(None);

    // Something comes that is not to be announced: in the step before the kernel follows.
    let (first, second) = agent.handle(events(3, ip("192.0.2.82"), &hidden()));
    assert_eq!(prefixes(&first), of(&["192.0.2.80/32", "192.0.2.81/32"], &["192.0.2.0/24"]));
    assert!(first.in_place && second.is_empty(), "{first:?} {second:?}");
    let warnings: Vec<_> = agent.planner.warnings().into_iter().map(|warning| warning.message).collect();
    assert_eq!(
        warnings,
        [
            "announce.aggregate: 192.0.2.0/24 is not announced, what is in it is, one by one: 192.0.2.82 in it would be \
             drawn to this node without being announced: announce it too, or choose aggregates around it"
        ]
    );
    agent.handle(vec![Event::Delete(ObjectKey::Service(name("s3")))]);
    assert_eq!(agent.announced(), ["192.0.2.0/24"]);

    // One of two goes, of which nobody need be told; then the last.
    let (first, second) = agent.handle(vec![Event::Delete(ObjectKey::Service(name("s1")))]);
    assert_eq!((prefixes(&first), first.lost.clone()), (of(&[], &[]), vec![net("192.0.2.80/32")]));
    assert!(second.is_empty());
    let (first, second) = agent.handle(vec![Event::Delete(ObjectKey::Service(name("s2")))]);
    assert_eq!(prefixes(&first), of(&[], &["192.0.2.0/24"]));
    assert!(second.is_empty());
}

#[test]
fn no_aggregate_around_nodes_or_pods() {
    let mut agent = Agent::new(0, "");
    agent.handle(events(1, ip("192.0.2.80"), &cluster()));
    assert_eq!(agent.announced(), ["192.0.2.0/24"]);
    for (what, other) in [
        ("a node's address", mk_node("node-d", &["192.0.2.200"])),
        ("another node's pods", Node { pod_cidrs: vec![net("192.0.2.128/25")], ..node("node-d", 9) }),
        ("pods around", Node { pod_cidrs: vec![net("192.0.0.0/16")], ..node("node-d", 9) }),
    ] {
        agent.handle(vec![Event::Apply(Object::Node(other.into()))]);
        assert_eq!(agent.announced(), ["192.0.2.80/32"], "{what}");
        let warnings = agent.planner.warnings();
        let told = warnings.iter().find(|warning| warning.message.contains("192.0.2.0/24"));
        assert!(told.is_some_and(|told| told.reason == "AggregateLeftOut"), "{what}: {warnings:?}");
        agent.handle(vec![Event::Delete(ObjectKey::Node("node-d".into()))]);
        assert_eq!(agent.announced(), ["192.0.2.0/24"], "{what} is gone");
    }
    // What became missing meanwhile counts when it is back.
    agent.handle(vec![Event::Apply(Object::Node(mk_node("node-d", &["192.0.2.200"]).into()))]);
    agent.unheld = [net("192.0.2.80/32")].into();
    agent.update(Some(&agent.unheld.clone()));
    agent.handle(vec![Event::Delete(ObjectKey::Node("node-d".into()))]);
    assert_eq!(agent.announced(), [""; 0]);
}

#[derive(Clone, Debug)]
enum Change {
    Apply(u8, u8, Mode),
    Delete(u8),
    Held(usize, u8),
    Route(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let on = proptest::collection::btree_set(0..3_usize, 0..=3);
    let mode = prop_oneof![
        4 => (on, any::<bool>()).prop_map(|(on, local)| Served { on, local }),
        1 => Just(Annotated { key: "sheave.io/communities", value: "65000:7" }),
        1 => Just(hidden()),
    ];
    prop_oneof![
        6 => (0..5_u8, 0..4_u8, mode).prop_map(|(number, vip, mode)| Change::Apply(number, vip, mode)),
        2 => (0..5_u8).prop_map(Change::Delete),
        3 => (0..3_usize, 0..4_u8).prop_map(|(node, vip)| Change::Held(node, vip)),
        1 => (0..3_usize).prop_map(Change::Route),
    ]
}

/// Two within both aggregates, two within the outer one alone. Several Services may share one.
fn vip(number: u8) -> IpAddr {
    ip(["192.0.2.1", "192.0.2.2", "192.0.2.80", "192.0.2.81"][usize::from(number)])
}

proptest! {
    /// Whatever Services there are and whatever each kernel holds: routers send a VIP's packets to nodes that would announce it
    /// without aggregates, if there are any; if there are none, to none that would take connections.
    #[test]
    fn aggregates_draw_nothing_that_would_not_be_drawn_without(changes in proptest::collection::vec(change(), 1..24)) {
        let mut agents = [0, 1, 2].map(|own| Agent::new(own, ""));
        let mut services = BTreeMap::new();
        for change in changes {
            match change {
                Change::Apply(number, at, mode) => {
                    let all = events(number, vip(at), &mode);
                    agents.iter_mut().for_each(|agent| drop(agent.handle(all.clone())));
                    services.insert(number, all);
                }
                Change::Delete(number) => {
                    let gone = Event::Delete(ObjectKey::Service(name(&format!("s{number}"))));
                    agents.iter_mut().for_each(|agent| drop(agent.handle(vec![gone.clone()])));
                    services.remove(&number);
                }
                Change::Held(node, at) => {
                    toggle(&mut agents[node].unheld, vip(at).into());
                    // The kernel's part changed in what was touched, or in something.
                    agents[node].update(Some(&[vip(at).into()].into()));
                }
                Change::Route(node) => {
                    toggle(&mut agents[node].unheld, net("192.0.2.0/24"));
                    agents[node].update(None);
                }
            }
            for vip in (0..4).map(vip) {
                let prefix = IpNet::from(vip);
                let without: BTreeSet<usize> = (0..3).filter(|node| agents[*node].serves(&prefix)).collect();
                let longest = agents.iter().filter_map(|agent| agent.longest(prefix)).max_by_key(IpNet::prefix_len);
                let with: BTreeSet<usize> =
                    (0..3).filter(|node| longest.is_some() && agents[*node].longest(prefix) == longest).collect();
                if without.is_empty() {
                    for node in &with {
                        prop_assert!(!agents[*node].takes(vip), "{vip} is drawn to {node}, which nobody announces");
                    }
                } else {
                    prop_assert!(!with.is_empty() && with.is_subset(&without), "{vip}: to {with:?}, not {without:?}");
                }
            }
        }
        // What came of changes is what comes of all at once.
        for (own, agent) in agents.iter_mut().enumerate() {
            let mut fresh = Agent::new(own, "");
            fresh.unheld = agent.unheld.clone();
            fresh.handle(services.values().flatten().cloned().collect());
            prop_assert_eq!(agent.selection.announced(), fresh.selection.announced());
            prop_assert_eq!(agent.update(None), Step::default());
        }
    }
}

fn toggle(set: &mut BTreeSet<IpNet>, prefix: IpNet) {
    if !set.remove(&prefix) {
        set.insert(prefix);
    }
}
