//! Sessions between nodes, as the Nodes say.

use std::collections::BTreeMap;
use std::path::Path;

use sheave::cluster::{Event, Node, Object, ObjectKey};
use sheave::config::{AddressFamily, Config, PeerSource, RouteReflector};
use sheave::plan::{Delta, Planner};

use crate::build::mk_node;

const CONFIG: &str = "router:
  asn: 64512
  peers: [{address: 10.0.0.254, asn: 65001}]
  mesh:
    import: {prefixes: [{prefix: 10.244.0.0/16, le: 24}], maxPrefixes: 100}
    passwordSecret: {name: sheave-bgp}
";

fn config(text: &str) -> Config {
    Config::parse(Path::new("c"), text).unwrap()
}

fn node(name: &str, addresses: &[&str], annotations: &[(&str, &str)]) -> Node {
    let mut node = mk_node(name, addresses);
    node.annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    node
}

fn tell(planner: &mut Planner, nodes: &[Node]) -> Delta {
    planner.handle(nodes.iter().map(|node| Event::Apply(Object::Node(node.clone().into()))))
}

/// The peers of a node, in words: `10.0.0.2 from 10.0.0.1 ipv4+ipv6 client`.
fn mesh(planner: &Planner) -> Vec<String> {
    let words = |peer: &sheave::config::Peer| {
        let families: Vec<&str> = peer
            .families
            .iter()
            .map(|family| match family {
                AddressFamily::Ipv4 => "ipv4",
                AddressFamily::Ipv6 => "ipv6",
            })
            .collect();
        let client = if peer.route_reflector_client { " client" } else { "" };
        format!("{} from {} {}{client}", peer.address, peer.local_address.unwrap(), families.join("+"))
    };
    let peers = planner.config().router.peers.iter();
    peers.filter(|peer| peer.source == PeerSource::Mesh).map(words).collect()
}

/// Who has a session with whom, by the last part of addresses; both ends have to agree.
fn sessions(nodes: &[Node]) -> Vec<String> {
    let mut ends: BTreeMap<(u8, u8), Vec<String>> = BTreeMap::new();
    for own in nodes {
        let mut planner = Planner::new(own.name.clone(), config("router: {asn: 64512, mesh: true}"));
        tell(&mut planner, nodes);
        for session in mesh(&planner) {
            let number = |address: &str| {
                address.rsplit(['.', ':']).next().and_then(|last| last.parse::<u8>().ok()).unwrap()
            };
            let (address, rest) = session.split_once(" from ").unwrap();
            let (local, rest) = rest.split_once(' ').unwrap();
            let (one, other) = (number(local), number(address));
            let ends = ends.entry((one.min(other), one.max(other))).or_default();
            ends.push(format!(
                "{}{}",
                rest.replace(" client", ""),
                if rest.ends_with("client") { "*" } else { "" }
            ));
        }
    }
    let words = |((one, other), ends): (&(u8, u8), &Vec<String>)| {
        let families = ends[0].trim_end_matches('*');
        assert!(
            ends.len() == 2 && ends.iter().all(|end| end.trim_end_matches('*') == families),
            "{one}-{other}: {ends:?}"
        );
        let clients = ends.iter().filter(|end| end.ends_with('*')).count();
        let families = match families {
            "ipv4" => String::new(),
            _ => format!(" {}", families.trim_start_matches("ipv4")),
        };
        format!("{one}-{other}{families}{}", "*".repeat(clients))
    };
    ends.iter().map(words).collect()
}

/// `*`: one end reflects for the other.
#[test]
fn who_has_a_session_with_whom() {
    let server = |id: &'static str| ("sheave.io/route-reflector", id);
    let client = ("sheave.io/route-reflector", "client");
    let plain = |number: u8| node(&format!("n{number}"), &[&format!("10.0.0.{number}")], &[]);
    let with = |number: u8, annotation: (&str, &str)| {
        node(&format!("n{number}"), &[&format!("10.0.0.{number}")], &[annotation])
    };
    let cases: Vec<(&str, Vec<Node>, &[&str])> = vec![
        ("alone", vec![plain(1)], &[]),
        ("all with all", vec![plain(1), plain(2), plain(3)], &["1-2", "1-3", "2-3"]),
        (
            "clients with servers alone",
            vec![with(1, server("server 9.9.9.9")), with(2, client), with(3, client)],
            &["1-2*", "1-3*"],
        ),
        (
            "servers with all, and others that are no clients with those",
            vec![
                with(1, server("server 7")),
                with(2, server("server 8")),
                with(3, client),
                plain(4),
                plain(5),
            ],
            &["1-2", "1-3*", "1-4", "1-5", "2-3*", "2-4", "2-5", "4-5"],
        ),
        (
            "kube-router's annotations",
            vec![
                with(1, ("kube-router.io/rr.server", "42")),
                with(2, ("kube-router.io/rr.client", "42")),
                with(3, ("kube-router.io/rr.client", "42")),
            ],
            &["1-2*", "1-3*"],
        ),
        (
            "within an AS",
            vec![
                plain(1),
                with(2, ("sheave.io/asn", "64513")),
                with(3, ("kube-router.io/node.asn", "64513")),
            ],
            &["2-3"],
        ),
        (
            "both families in one session; IPv6 where there is no IPv4, whatever the order",
            vec![
                node("n1", &["10.0.0.1", "fd00::1"], &[]),
                node("n2", &["fd00::2", "10.0.0.2"], &[]),
                node("n3", &["fd00::3"], &[]),
                node("n4", &[], &[]),
            ],
            &["1-2 +ipv6", "1-3 ipv6", "2-3 ipv6"],
        ),
    ];
    for (name, nodes, expected) in cases {
        assert_eq!(sessions(&nodes), expected, "{name}");
    }
}

/// Nodes come, go and change; the speaker is told so, and only then.
#[test]
fn the_mesh_follows_the_nodes() {
    let mut planner = Planner::new("n1", config(CONFIG));
    assert!(!tell(&mut planner, &[node("n1", &["10.0.0.1"], &[])]).router);
    assert!(tell(&mut planner, &[node("n2", &["10.0.0.2"], &[])]).router);
    assert_eq!(mesh(&planner), ["10.0.0.2 from 10.0.0.1 ipv4"]);
    let peer = planner.config().router.peers.last().unwrap();
    assert_eq!((peer.asn.number(None), peer.port, peer.passive), (Some(64512), 179, false));
    assert!(peer.import.as_ref().is_some_and(|import| import.max_prefixes.is_some()));
    assert_eq!(peer.password_source().unwrap().to_string(), "Secret sheave-bgp (key password)");

    // What agents write there, and what is none of BGP's business, changes nothing.
    for annotations in [&[("sheave.io/accepts", "ipip")][..], &[("sheave.io/communities", "1:2")]] {
        let delta = tell(&mut planner, &[node("n2", &["10.0.0.2"], annotations)]);
        assert!(!delta.router, "{annotations:?}");
    }
    assert!(
        !tell(&mut planner, &[node("n3", &["10.0.0.3"], &[("sheave.io/route-reflector", "client")])]).router
    );
    // This node becomes a reflector: its cluster is in force, and the client is one of its peers.
    assert!(
        tell(&mut planner, &[node("n1", &["10.0.0.1"], &[("sheave.io/route-reflector", "server 7")])]).router
    );
    assert_eq!(mesh(&planner), ["10.0.0.2 from 10.0.0.1 ipv4", "10.0.0.3 from 10.0.0.1 ipv4 client"]);
    let cluster_id = Some([0, 0, 0, 7].into());
    assert_eq!(planner.config().router.route_reflector, Some(RouteReflector { cluster_id }));
    // A wrong value keeps the last good one in force, on other nodes as on its own.
    for wrong in [
        node("n3", &["10.0.0.3"], &[("sheave.io/route-reflector", "clint")]),
        node("n1", &["10.0.0.1"], &[("sheave.io/route-reflector", "server 0")]),
    ] {
        assert!(!tell(&mut planner, &[wrong]).router);
    }
    assert!(planner.warnings().iter().any(|warning| warning.reason == "InvalidAnnotation"));
    assert_eq!(mesh(&planner).len(), 2);
    // A peer that is listed is as it is listed.
    let listed = ("sheave.io/peers", "[{address: 10.0.0.2, asn: 64512, port: 1790}]");
    assert!(tell(&mut planner, &[node("n1", &["10.0.0.1"], &[listed])]).router);
    assert!(mesh(&planner).is_empty());
    assert!(tell(&mut planner, &[node("n1", &["10.0.0.1"], &[])]).router);
    assert_eq!(mesh(&planner), ["10.0.0.2 from 10.0.0.1 ipv4"]);
    // Its own Node gone: sessions stay; another one gone: its session ends.
    assert!(!planner.handle([Event::Delete(ObjectKey::Node("n1".into()))]).router);
    assert_eq!(mesh(&planner).len(), 1);
    tell(&mut planner, &[node("n1", &["10.0.0.1"], &[])]);
    assert!(planner.handle([Event::Delete(ObjectKey::Node("n2".into()))]).router);
    assert!(mesh(&planner).is_empty());
}

#[test]
fn clients_for_nothing_are_warned_of() {
    let client = "[{address: 10.0.0.9, asn: ASN, routeReflectorClient: true}]";
    for (name, asn, annotation, expected) in [
        ("right", "64512", "server 10.0.0.1", 0),
        ("no reflector", "64512", "client", 1),
        ("of another AS", "65001", "server 10.0.0.1", 1),
    ] {
        let client = client.replace("ASN", asn);
        let mut planner = Planner::new("n1", config("router: {asn: 64512}"));
        tell(
            &mut planner,
            &[node(
                "n1",
                &["10.0.0.1"],
                &[("sheave.io/peers", &*client), ("sheave.io/route-reflector", annotation)],
            )],
        );
        let warnings = planner.warnings();
        let found = warnings.iter().filter(|warning| warning.reason == "RouteReflectorClient").count();
        assert_eq!(found, expected, "{name}: {warnings:?}");
    }
}

#[test]
fn written_in_the_config() {
    let reflector = |text: &str| config(&format!("router: {text}")).router.route_reflector;
    assert_eq!(reflector("{asn: 1}"), None);
    assert_eq!(reflector("{asn: 1, routeReflector: {}}"), Some(RouteReflector { cluster_id: None }));
    assert_eq!(
        reflector("{asn: 1, routeReflector: {clusterId: auto}}"),
        Some(RouteReflector { cluster_id: None })
    );
    let cluster_id = Some([10, 0, 0, 1].into());
    assert_eq!(
        reflector("{asn: 1, routeReflector: {clusterId: 10.0.0.1}}"),
        Some(RouteReflector { cluster_id })
    );
    assert!(config("router: {asn: 1, mesh: false}").router.mesh.is_none());
    for (text, told) in [
        ("{mesh: true}", "router.asn"),
        ("{asn: 1, listen: {port: 0}, mesh: true}", "router.listen.port"),
        ("{asn: 1, mesh: yes-please}", "router.mesh"),
        ("{asn: 1, mesh: {import: everything}}", "router.mesh"),
        ("{asn: 1, mesh: {passwordFile: /p, passwordSecret: {name: s}}}", "give one of them"),
        ("{asn: 1, routeReflector: {clusterId: 0.0.0.0}}", "router.routeReflector.clusterId"),
    ] {
        let error = Config::parse(Path::new("c"), &format!("router: {text}")).unwrap_err().to_string();
        assert!(error.contains(told), "{text}: {error}");
    }
}
