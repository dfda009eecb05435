//! Annotations of this node's Node.

use std::sync::Arc;

use proptest::prelude::*;
use sheave::cluster::{Event, Node, Object, ObjectKey, ServiceCidr};
use sheave::config::{Communities, Config, NodeSettings, PasswordSource, PeerSource};
use sheave::plan::{Delta, Planner};

use crate::build::{ip, mk_load_balancer_ip, mk_node, mk_port, mk_service, mk_slice};

fn annotated(annotations: &[(&str, &str)]) -> Node {
    let mut node = mk_node("node-a", &["10.0.0.1"]);
    node.annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    node
}

/// The settings in few words, without what is absent.
fn words(settings: &NodeSettings) -> String {
    let mut words = Vec::new();
    for peer in settings.peers.iter().flatten() {
        let mut word = format!("peer {} {}", peer.name(), peer.asn);
        if peer.port != 179 {
            word += &format!(" port {}", peer.port);
        }
        if let Some(local) = peer.local_address {
            word += &format!(" from {local}");
        }
        if peer.passive {
            word += " passive";
        }
        if let Some(hops) = peer.ttl_security {
            word += &format!(" within {hops}");
        }
        if peer.password.is_some() {
            word += " password";
        }
        if let Some(source) = peer.password_source() {
            word += &format!(" password of {source}");
        }
        if let Some(bfd) = &peer.bfd {
            let (transmit, receive) = (bfd.transmit_interval, bfd.receive_interval);
            word += &format!(" BFD {transmit:?} {receive:?} {} {:?}", bfd.detect_multiplier, bfd.multihop);
        }
        words.push(word);
    }
    for range in settings.dynamic_peers.iter().flatten() {
        words.push(format!("peers of {} {} up to {}", range.prefix, range.asn, range.limit));
    }
    words.extend(settings.asn.map(|asn| format!("asn {asn}")));
    words.extend(settings.router_id.map(|id| format!("id {id}")));
    if let Some(Communities { standard, large }) = &settings.communities {
        words.push(format!("communities {standard:x?} {large:?}"));
    }
    words.extend(settings.reflection.map(|reflection| format!("{reflection:?}")));
    words.extend(settings.path_prepend.map(|times| format!("prepend {times}")));
    words.extend(settings.pod_cidrs.as_ref().map(|cidrs| format!("pods {cidrs:?}")));
    words.extend(settings.drain.map(|drain| format!("drain {drain}")));
    words.join(", ")
}

#[test]
fn each_annotation_is_read() {
    let yaml = "- {address: 10.0.0.254, asn: 65001, passwordFile: /p}\n- address: fd00::fe\n  asn: 65001\n  port: 1790\n  \
                passwordSecret: {name: sheave-bgp}\n";
    let kube_router = "- remoteip: 192.0.2.1\n  remoteasn: 65000\n  localip: 192.0.2.2\n  password: c2VjcmV0\n  port: 1179\n- \
                       {remoteip: 192.0.2.3, remoteasn: 65000}\n";
    for (annotations, expected) in [
        (&[][..], ""),
        (
            &[("sheave.io/peers", yaml)],
            "peer 10.0.0.254 65001 password of file /p, \
             peer fd00::fe 65001 port 1790 password of Secret sheave-bgp (key password)",
        ),
        (
            &[("sheave.io/peers", "[{address: 10.0.0.1, asn: 1, passive: true, ttlSecurity: 2}]")],
            "peer 10.0.0.1 1 passive within 2",
        ),
        (
            &[("sheave.io/peers", "[{interface: eth1, asn: 1, bfd: {transmitInterval: 50ms}}]")],
            "peer eth1 1 BFD 50ms 300ms 3 None",
        ),
        (
            &[(
                "kube-router.io/peers",
                "- {remoteip: 1.2.3.4, remoteasn: 1, bfd: {enabled: true}}\n- {remoteip: 1.2.3.5, remoteasn: 1, bfd: {enabled: true, port: \
                 4784, detection_multiplier: 5, required_min_rx_interval: 50, desired_min_tx_interval: 60}}\n- {remoteip: 1.2.3.6, \
                 remoteasn: 1, bfd: {port: 3784}}",
            )],
            "peer 1.2.3.4 1 BFD 1s 1s 3 Some(false), peer 1.2.3.5 1 BFD 60ms 50ms 5 Some(true), peer 1.2.3.6 1",
        ),
        (&[("sheave.io/peers", "")], ""),
        (
            &[(
                "sheave.io/dynamic-peers",
                "- {prefix: 10.0.0.7/24, asn: 65001}\n- {prefix: fd00::/64, asn: 2, limit: 3}\n",
            )],
            "peers of 10.0.0.0/24 65001 up to 100, peers of fd00::/64 2 up to 3",
        ),
        (&[("sheave.io/dynamic-peers", "")], ""),
        (
            &[(
                "sheave.io/peers",
                "[{interface: eth1, asn: external}, {address: default-gateway-ipv6, asn: internal}]",
            )],
            "peer eth1 external, peer default-gateway-ipv6 internal",
        ),
        (
            &[(
                "sheave.io/peers",
                "\n  - address: 10.0.0.1\n    asn: 1\n  - address: 10.0.0.2\n    asn: 2\n",
            )],
            "peer 10.0.0.1 1, peer 10.0.0.2 2",
        ),
        (&[("sheave.io/asn", "64512")], "asn 64512"),
        (&[("sheave.io/router-id", "10.9.9.9")], "id 10.9.9.9"),
        (&[("sheave.io/route-reflector", "client")], "Client"),
        (&[("sheave.io/route-reflector", "server 10.0.0.1")], "Server(10.0.0.1)"),
        (&[("kube-router.io/rr.server", "42")], "Server(0.0.0.42)"),
        (&[("kube-router.io/rr.client", "42")], "Client"),
        (&[("sheave.io/route-reflector", "client"), ("kube-router.io/rr.server", "42")], "Client"),
        (&[("sheave.io/communities", "1:2, 1:2:3")], "communities {10002} {(1, 2, 3)}"),
        (&[("sheave.io/path-prepend", "3")], "prepend 3"),
        (
            &[("kube-router.io/peers", kube_router)],
            "peer 192.0.2.1 65000 port 1179 from 192.0.2.2 password, peer 192.0.2.3 65000",
        ),
        (
            &[
                ("kube-router.io/peer.ips", "192.0.2.1,192.0.2.3"),
                ("kube-router.io/peer.asns", "65000, 65001"),
                ("kube-router.io/peer.passwords", "c2VjcmV0,"),
                ("kube-router.io/peer.localips", ",192.0.2.2"),
                ("kube-router.io/peer.ports", "1179,179"),
            ],
            "peer 192.0.2.1 65000 port 1179 password, peer 192.0.2.3 65001 from 192.0.2.2",
        ),
        (&[("kube-router.io/node.asn", "64513")], "asn 64513"),
        (
            &[("kube-router.io/node.bgp.communities", "4294967041,65535:1,no-peer")],
            "communities {ffff0001, ffffff01, ffffff04} {}",
        ),
        (
            &[("kube-router.io/path-prepend.as", "64512"), ("kube-router.io/path-prepend.repeat-n", "5")],
            "prepend 5",
        ),
        (&[("kube-router.io/pod-cidr", "10.1.0.0/24")], "pods [10.1.0.0/24]"),
        (
            &[
                ("kube-router.io/pod-cidr", "10.1.0.0/24"),
                ("kube-router.io/pod-cidrs", "10.2.0.0/24,fd00::/64"),
            ],
            "pods [10.2.0.0/24, fd00::/64]",
        ),
        (
            &[
                ("sheave.io/asn", "1"),
                ("kube-router.io/node.asn", "2"),
                ("sheave.io/peers", ""),
                ("kube-router.io/peers", kube_router),
            ],
            "asn 1",
        ),
        (&[("sheave.io/accepts", "v1"), ("sheave.io/drain", "false")], "drain false"),
        (&[("sheave.io/drain", " true ")], "drain true"),
    ] {
        let (settings, warnings) = NodeSettings::read(&annotated(annotations), None);
        assert_eq!(words(&settings), expected, "{annotations:?}");
        assert!(warnings.is_empty(), "{annotations:?}: {warnings:?}");
    }
}

#[test]
fn a_wrong_value_keeps_the_last_good_one() {
    let good = annotated(&[
        ("sheave.io/peers", "[{address: 10.0.0.254, asn: 65001}]"),
        ("sheave.io/dynamic-peers", "[{prefix: 10.0.1.0/24, asn: 65001}]"),
        ("sheave.io/asn", "64512"),
        ("sheave.io/router-id", "10.9.9.9"),
        ("sheave.io/communities", "1:2"),
        ("sheave.io/path-prepend", "3"),
        ("kube-router.io/pod-cidrs", "10.1.0.0/24"),
        ("sheave.io/drain", "true"),
    ]);
    let (last, warnings) = NodeSettings::read(&good, None);
    assert!(warnings.is_empty(), "{warnings:?}");
    for (key, value, wrong) in [
        ("sheave.io/peers", "- address: 10.0.0.254\n  asn: 0\n", "line 2: [0].asn: 0 is reserved (RFC 7607)"),
        (
            "sheave.io/peers",
            "- address: 10.0.0.254\n  asn: 1\n  password: secret\n",
            "line 3: [0].password: unknown field `password`",
        ),
        (
            "sheave.io/peers",
            "- {address: 10.0.0.254, asn: 1}\n- {address: 10.0.0.254, asn: 1}\n",
            "line 2: [1].address: 10.0.0.254 is listed twice",
        ),
        (
            "sheave.io/peers",
            "- {address: 10.0.0.254, asn: 1, ttlSecurity: 0}",
            "a peer on the same link is 1 hop away",
        ),
        (
            "sheave.io/peers",
            "- address: 10.0.0.254\n  asn: 1\n  bfd: {keys: [{id: 1, algorithm: simple, file: /k}]}\n",
            "line 3: [0].bfd.keys: `simple` sends the key itself",
        ),
        (
            "sheave.io/dynamic-peers",
            "[{prefix: 10.0.1.0/24, asn: 1, bfd: {keys: [{id: 1, algorithm: simple, file: /k}]}}]",
            "[0].bfd.keys: `simple` sends the key itself",
        ),
        ("sheave.io/peers", "none", "line 1: "),
        (
            "sheave.io/dynamic-peers",
            "- prefix: 10.0.1.0/33\n  asn: 1\n",
            "line 1: [0].prefix: `10.0.1.0/33` is not a CIDR",
        ),
        (
            "sheave.io/dynamic-peers",
            "- {prefix: 10.0.1.0/24, asn: 1}\n- {prefix: 10.0.1.7/24, asn: 1}\n",
            "line 2: [1].prefix: 10.0.1.0/24 is listed twice",
        ),
        (
            "sheave.io/dynamic-peers",
            "- {prefix: 10.0.1.0/24, asn: 1, limit: 0}",
            "[0].limit: 0 would let nobody connect",
        ),
        (
            "sheave.io/dynamic-peers",
            "- {prefix: 10.0.1.0/24, asn: 1, import: none}",
            "[0].import: unknown field `import`",
        ),
        ("sheave.io/asn", "0", "`0` is not an autonomous system's number"),
        ("sheave.io/router-id", "fd00::1", "`fd00::1` is not an IPv4 address"),
        ("sheave.io/communities", "1:2:3:4", "`1:2:3:4` is not a community"),
        ("sheave.io/path-prepend", "11", "`11` is not a number of 0 to 10"),
        ("sheave.io/route-reflector", "server", "with a cluster id"),
        ("sheave.io/drain", "now", "`now` is neither `true` nor `false`"),
        ("sheave.io/drain", "", "`` is neither `true` nor `false`"),
        ("kube-router.io/pod-cidrs", "10.1.0.0/33", "`10.1.0.0/33` is not a CIDR"),
    ] {
        let mut node = good.clone();
        node.annotations.insert(key.into(), value.into());
        let (settings, warnings) = NodeSettings::read(&node, Some(&last));
        assert_eq!(settings, last, "{key}: {value}");
        let [warning] = &warnings[..] else { panic!("{key}: {value}: {warnings:?}") };
        assert_eq!(
            (&*warning.object, warning.reason),
            ("Node node-a", "InvalidAnnotation"),
            "{key}: {value}"
        );
        let message = &warning.message;
        assert!(message.starts_with(&format!("{key}: ")) && message.contains(wrong), "{message}");
        assert!(message.ends_with("; the last good value stays in force"), "{message}");
    }
}

#[test]
fn a_wrong_list_of_kube_routers_names_the_list_and_no_password() {
    let ips = ("kube-router.io/peer.ips", "192.0.2.1");
    let asns = ("kube-router.io/peer.asns", "65000");
    let peers = "kube-router.io/peers";
    for (annotations, wrong) in [
        (&[ips][..], "kube-router.io/peer.asns: has 0 items, and kube-router.io/peer.ips has 1"),
        (&[ips, ("kube-router.io/peer.asns", "1,2")], "kube-router.io/peer.asns: has 2 items"),
        (&[ips, ("kube-router.io/peer.asns", "x")], "kube-router.io/peer.asns: `x` is not an autonomous"),
        (
            &[ips, asns, ("kube-router.io/peer.passwords", "secret!")],
            "peer.passwords: a password is not base64",
        ),
        (&[ips, asns, ("kube-router.io/peer.localips", "secret")], "peer.localips: localip: `secret` is not"),
        (&[(peers, "- {remoteip: 1.2.3.4, remoteasn: 1, password: secret!}")], "a password is not base64"),
        (
            &[(peers, "- {remoteip: 1.2.3.4, remoteasn: 1, password: [secret]}")],
            "peers: line 1: [0].password: ",
        ),
        (
            &[(peers, "- {remoteip: 1.2.3.4, remoteasn: 1, pasword: secret!}")],
            "peers: line 1: [0]: is not a YAML list of peers, each with fields of remoteip, remoteasn",
        ),
        (
            &[(peers, "- remoteip: 1.2.3.4\n  remoteasn: 1\n  password:\n  secret!:\n")],
            "peers: line 4: [0]: is",
        ),
        (&[(peers, "- remoteip: 1.2.3.4\n  remoteasn: 1\n  secret!: 1\n  secret!: 2\n")], "peers: line "),
        (&[(peers, "- {remoteip: 1.2.3.4, remoteasn: 1, bfd: secret!}")], "peers: line 1: [0].bfd: is"),
        (&[(peers, "- {remoteip: 1.2.3.4, remoteasn: 1, port: secret!}")], "peers: line 1: [0].port: "),
        (&[(peers, "- {remoteip: 1.2.3.4, remoteasn: 1, password: *secret!}")], "peers: line 1: "),
        (&[(peers, "- {remoteip: 1.2.3.4, remoteasn: 1, password: !secret! x}")], "peers: line 1: "),
        (
            &[(peers, "- &secret! {remoteip: 1.2.3.4, remoteasn: 1}")],
            "peers: line 1: anchors and aliases are not",
        ),
        (&[(peers, "secret!: [{remoteip: 1.2.3.4, remoteasn: 1}]")], "peers: line 1: "),
        (&[(peers, "- {remoteip: 1.2.3.4, password: ''}")], "missing field `remoteasn`"),
        (&[(peers, "- {remoteip: 1.2.3.4, remoteasn: 0}")], "[0]: remoteasn: 0 is reserved"),
        (&[(peers, "- remoteip: 1.2.3.4 remoteasn: 1 password: secret!")], "peers: line 1: "),
        (&[(peers, "- {remoteip: 1.2.3.4, remoteasn: secret!}")], "peers: line 1: [0].remoteasn: "),
        (&[(peers, "secret!")], "peers: line 1: "),
    ] {
        let (settings, warnings) = NodeSettings::read(&annotated(annotations), None);
        assert_eq!(settings.peers, None);
        let [warning] = &warnings[..] else { panic!("{annotations:?}: {warnings:?}") };
        assert!(warning.message.contains(wrong), "{}", warning.message);
        assert!(!warning.message.contains("secret!"), "{}", warning.message);
    }
}

#[test]
fn bfd_that_cannot_be_had_costs_a_peer_of_kube_routers_no_session() {
    let off = [
        "{enabled: false, desired_min_tx_interval: 300000}",
        "{desired_min_tx_interval: 300000}",
        "{enabled: null, port: 1}",
        "{enabled: false, detection_multiplier: 0, more: secret!}",
    ];
    let wrong = [
        ("{enabled: true, port: 1}", "bfd.port: 1 is not BFD's: 3784, or 4784"),
        (
            "{enabled: true, detection_multiplier: 256}",
            "bfd.detection_multiplier: 256 is not within 1 to 255",
        ),
        (
            "{enabled: true, desired_min_tx_interval: 50000}",
            "bfd.desired_min_tx_interval: 50000 is not within 10 to 9999 milliseconds",
        ),
        ("{enabled: true, required_min_rx_interval: 0}", "bfd.required_min_rx_interval: 0 is not within 10"),
    ];
    let off = off.map(|bfd| (bfd, false, None));
    let wrong = wrong.map(|(bfd, why)| (bfd, false, Some(why)));
    let right = [("{enabled: true, more: secret!}", true, None)];
    for (bfd, has_bfd, why) in off.into_iter().chain(wrong).chain(right) {
        let text = format!(
            "- {{remoteip: 1.2.3.4, remoteasn: 1, bfd: {bfd}}}\n- {{remoteip: 1.2.3.5, remoteasn: 1, bfd: {{enabled: true}}}}"
        );
        let (settings, warnings) = NodeSettings::read(&annotated(&[("kube-router.io/peers", &text)]), None);
        let peers: Vec<bool> = settings.peers.iter().flatten().map(|peer| peer.bfd.is_some()).collect();
        assert_eq!(peers, [has_bfd, true], "{bfd}");
        let warnings: Vec<_> = warnings.iter().map(|warning| (warning.reason, &*warning.message)).collect();
        match (why, &warnings[..]) {
            (None, []) => {}
            (Some(why), [("PeerWithoutBFD", message)]) => {
                assert!(message.starts_with(&format!("kube-router.io/peers: {why}")), "{message}");
                assert!(message.ends_with("; the session with 1.2.3.4 is without BFD"), "{message}");
            }
            _ => panic!("{bfd}: {warnings:?}"),
        }
    }
}

#[test]
fn what_is_not_acted_on_is_said() {
    for (key, value, reason, message) in [
        (
            "kube-router.io/bgp-local-addresses",
            "10.0.0.1",
            "NotYetHonoured",
            "kube-router.io/bgp-local-addresses is not acted on",
        ),
        (
            "sheave.io/peer",
            "[]",
            "UnknownAnnotation",
            "sheave.io/peer is not known; known are sheave.io/peers",
        ),
    ] {
        let (_, warnings) = NodeSettings::read(&annotated(&[(key, value)]), None);
        let [warning] = &warnings[..] else { panic!("{key}: {warnings:?}") };
        assert_eq!(warning.reason, reason, "{key}");
        assert!(warning.message.contains(message), "{key}: {}", warning.message);
    }
}

proptest! {
    /// Whatever is written: a value is read, or the last one stays and a warning says so.
    #[test]
    fn any_text_is_read_or_warned_of(key in 0usize..9, text in "[-\\[\\]{}: ,a-z0-9./=\\n]{0,40}") {
        let key = [
            "sheave.io/peers", "sheave.io/asn", "sheave.io/router-id", "sheave.io/path-prepend",
            "kube-router.io/peers", "kube-router.io/peer.ips", "kube-router.io/pod-cidrs",
            "kube-router.io/path-prepend.repeat-n", "sheave.io/dynamic-peers",
        ][key];
        let (last, _) = NodeSettings::read(&annotated(&[("sheave.io/peers", "[{address: 10.0.0.1, asn: 1}]")]), None);
        let (settings, warnings) = NodeSettings::read(&annotated(&[(key, &text)]), Some(&last));
        let invalid = warnings.iter().any(|warning| warning.reason == "InvalidAnnotation");
        let of_peers = key.contains("/peer");
        prop_assert!(!(invalid && of_peers) || settings.peers == last.peers);
        prop_assert!(of_peers || settings.peers.is_none());
    }
}

const FILE: &str = "
router: {asn: 64512, peers: [{address: 10.0.0.253, asn: 65000}, {address: 10.0.0.254, asn: 65000, passwordFile: /p}]}
announce: {podCIDRs: true, communities: ['1:1']}
";

/// A planner of node-a with a Service that is announced and has a prepending of its own.
fn planner() -> Planner {
    let config = Config::parse("sheave.yaml".as_ref(), FILE).unwrap();
    let mut planner = Planner::new("node-a", config);
    let mut service = mk_service("web");
    service.load_balancer_ips = vec![mk_load_balancer_ip("192.0.2.80")];
    service.ports = vec![mk_port("http", 80)];
    service.annotations.insert("sheave.io/path-prepend".into(), "1".into());
    let slice = mk_slice("web-1", "web", 8080, &["10.244.1.10@node-a"]);
    let service = Event::Apply(Object::Service(Arc::new(service)));
    planner.handle([service, Event::Apply(Object::EndpointSlice(Arc::new(slice))), Event::Synced]);
    planner
}

fn apply(planner: &mut Planner, annotations: &[(&str, &str)]) -> Delta {
    let mut node = annotated(annotations);
    node.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
    planner.handle([Event::Apply(Object::Node(Arc::new(node)))])
}

fn announcements(planner: &Planner) -> Vec<String> {
    let announcements = planner.plan().announcements.values();
    announcements
        .map(|a| format!("{} {:x?} prepend {}", a.prefix, a.communities, a.as_path_prepend))
        .collect()
}

fn peers(planner: &Planner) -> Vec<String> {
    let peers = planner.config().router.peers.iter();
    peers.map(|peer| format!("{} {} {:?}", peer.address, peer.asn, peer.source)).collect()
}

#[test]
fn peers_of_the_node_are_added_and_replace() {
    let mut planner = planner();
    assert!(!apply(&mut planner, &[]).router);
    let before = ["10.0.0.253 65000 Config", "10.0.0.254 65000 Config"];
    assert_eq!(peers(&planner), before);

    let list = "[{address: 10.0.0.254, asn: 65001}, {address: fd00::fe, asn: 65001}]";
    let delta = apply(&mut planner, &[("sheave.io/peers", list), ("sheave.io/asn", "64999")]);
    assert!(delta.router && !delta.node && delta.services.is_empty() && !delta.is_empty());
    let added = ["10.0.0.253 65000 Config", "10.0.0.254 65001 Annotation", "fd00::fe 65001 Annotation"];
    assert_eq!(peers(&planner), added);
    let replaced = &planner.config().router.peers[1];
    assert_eq!(
        (replaced.source, replaced.password_source()),
        (PeerSource::Annotation, None::<PasswordSource>)
    );
    assert_eq!(planner.config().router.asn, Some(64999));

    // Wrong: nothing changes, and a warning says so.
    let delta = apply(&mut planner, &[("sheave.io/peers", "[{address: x}]"), ("sheave.io/asn", "64999")]);
    assert!(delta.is_empty());
    assert_eq!(peers(&planner), added);
    assert!(planner.warnings().iter().any(|warning| warning.reason == "InvalidAnnotation"));

    // Its Node gone: nothing changes.
    assert!(planner.handle([Event::Delete(ObjectKey::Node("node-a".into()))]).is_empty());
    assert_eq!(peers(&planner), added);

    assert!(apply(&mut planner, &[]).router);
    assert_eq!(peers(&planner), before);
    assert_eq!(planner.config().router.asn, Some(64512));
}

#[test]
fn ranges_of_the_node_are_added_and_replace() {
    let file = "router: {asn: 64512, dynamicPeers: [{prefix: 10.0.0.0/24, asn: 65000, limit: 7}, {prefix: 10.0.1.0/24, asn: 65000}]}";
    let mut planner = Planner::new("node-a", Config::parse("sheave.yaml".as_ref(), file).unwrap());
    apply(&mut planner, &[]);
    let ranges = |planner: &Planner| -> Vec<String> {
        let ranges = planner.config().router.dynamic_peers.iter();
        ranges.map(|range| format!("{} {} {}", range.prefix, range.asn, range.limit)).collect()
    };
    let before = ["10.0.0.0/24 65000 7", "10.0.1.0/24 65000 100"];
    assert_eq!(ranges(&planner), before);

    let list = "[{prefix: 10.0.0.0/24, asn: 65001}, {prefix: fd00::/64, asn: 65002}]";
    let delta = apply(&mut planner, &[("sheave.io/dynamic-peers", list)]);
    assert!(delta.router && !delta.node && delta.services.is_empty());
    let added = ["10.0.1.0/24 65000 100", "10.0.0.0/24 65001 100", "fd00::/64 65002 100"];
    assert_eq!(ranges(&planner), added);

    // Wrong: nothing changes, and a warning says so.
    assert!(apply(&mut planner, &[("sheave.io/dynamic-peers", "[{prefix: x}]")]).is_empty());
    assert_eq!(ranges(&planner), added);
    assert!(planner.warnings().iter().any(|warning| warning.reason == "InvalidAnnotation"));

    assert!(apply(&mut planner, &[]).router);
    assert_eq!(ranges(&planner), before);
}

#[test]
fn communities_and_prepending_of_the_node_are_those_of_every_prefix() {
    let mut planner = planner();
    apply(&mut planner, &[]);
    let before = ["10.244.1.0/24 {10001} prepend 0", "192.0.2.80/32 {10001} prepend 1"];
    assert_eq!(announcements(&planner), before);

    let annotations = [("sheave.io/communities", "2:2"), ("sheave.io/path-prepend", "2")];
    let delta = apply(&mut planner, &annotations);
    assert!(!delta.router && !delta.node);
    assert_eq!((delta.services.len(), delta.announcements.len()), (1, 2));
    assert_eq!(
        announcements(&planner),
        ["10.244.1.0/24 {10001, 20002} prepend 2", "192.0.2.80/32 {10001, 20002} prepend 3"]
    );

    apply(&mut planner, &[("kube-router.io/pod-cidrs", "10.250.0.0/24")]);
    assert_eq!(announcements(&planner)[0], "10.250.0.0/24 {10001} prepend 0");
    apply(&mut planner, &[]);
    assert_eq!(announcements(&planner), before);
}

#[test]
fn what_does_not_fit_the_config_is_said() {
    let mut planner = planner();
    let prepend =
        [("kube-router.io/path-prepend.as", "65000"), ("kube-router.io/path-prepend.repeat-n", "2")];
    apply(&mut planner, &prepend);
    let reasons = |planner: &Planner| -> Vec<_> {
        planner.warnings().into_iter().map(|warning| (warning.reason, warning.message)).collect()
    };
    let [(reason, message)] = &reasons(&planner)[..] else { panic!("{:?}", reasons(&planner)) };
    assert_eq!(*reason, "NotYetHonoured");
    assert!(message.contains("path-prepend.as is 65000"), "{message}");
    assert_eq!(announcements(&planner)[0], "10.244.1.0/24 {10001} prepend 2");

    let mut planner = Planner::new("node-a", Config::default());
    apply(&mut planner, &[("sheave.io/peers", "[{address: 10.0.0.254, asn: 65001}]")]);
    let [(reason, message)] = &reasons(&planner)[..] else { panic!("{:?}", reasons(&planner)) };
    assert_eq!(*reason, "NoASN");
    assert!(message.contains("sheave.io/asn"), "{message}");
    assert_eq!(planner.config().router.peers[0].address.ip(), Some(ip("10.0.0.254")));

    let deaf = "router: {asn: 64512, listen: {port: 0}}";
    let mut planner = Planner::new("node-a", Config::parse("sheave.yaml".as_ref(), deaf).unwrap());
    apply(&mut planner, &[("sheave.io/peers", "[{address: 10.0.0.254, asn: 65001, passive: true}]")]);
    let [(reason, message)] = &reasons(&planner)[..] else { panic!("{:?}", reasons(&planner)) };
    assert_eq!(*reason, "PassivePeer");
    assert!(message.contains("10.0.0.254") && message.contains("router.listen.port"), "{message}");

    let mut planner = Planner::new("node-a", Config::parse("sheave.yaml".as_ref(), deaf).unwrap());
    apply(&mut planner, &[("sheave.io/dynamic-peers", "[{prefix: 10.0.0.0/24, asn: 65001}]")]);
    let [(reason, message)] = &reasons(&planner)[..] else { panic!("{:?}", reasons(&planner)) };
    assert_eq!(*reason, "PassivePeer");
    assert!(message.contains("10.0.0.0/24") && message.contains("router.listen.port"), "{message}");

    let signed = "router: {asn: 64512, dynamicPeers: [{prefix: 10.0.0.0/24, asn: 65001, passwordFile: /a}]}";
    let mut planner = Planner::new("node-a", Config::parse("sheave.yaml".as_ref(), signed).unwrap());
    let peers = "[{address: 10.0.0.253, asn: 65001, passwordFile: /b}, {address: 10.0.0.254, asn: 65001}, {address: 10.0.1.1, asn: 1}]";
    apply(&mut planner, &[("sheave.io/peers", peers)]);
    let [(reason, message)] = &reasons(&planner)[..] else { panic!("{:?}", reasons(&planner)) };
    assert_eq!(*reason, "PeerWithoutPassword");
    assert!(message.contains("10.0.0.254") && message.contains("10.0.0.0/24"), "{message}");
}

#[test]
fn a_password_is_in_no_debug_output() {
    let annotations =
        [("kube-router.io/peers", "[{remoteip: 10.0.0.254, remoteasn: 65001, password: aHVudGVyMg==}]")];
    let node = annotated(&annotations);
    let mut planner = Planner::new("node-a", Config::default());
    planner.handle([Event::Apply(Object::Node(Arc::new(node.clone())))]);
    let (settings, _) = NodeSettings::read(&node, None);
    let printed = format!("{planner:?} {:?} {settings:?} {node:?}", planner.config());
    assert!(planner.config().router.peers[0].password.is_some());
    for secret in ["hunter2", "aHVudGVyMg"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[test]
fn without_its_own_node_it_still_follows_the_others() {
    let mut planner = planner();
    apply(&mut planner, &[]);
    let cidr = ServiceCidr { name: "kubernetes".into(), cidrs: vec!["10.96.0.0/16".parse().unwrap()] };
    planner.handle([
        Event::Delete(ObjectKey::Node("node-a".into())),
        Event::Apply(Object::Node(Arc::new(mk_node("node-z", &["10.0.0.26"])))),
        Event::Apply(Object::ServiceCidr(Arc::new(cidr))),
    ]);
    let node = &planner.plan().node;
    assert_eq!(node.addresses, [ip("10.0.0.1")]);
    assert!(node.tunnel_sources.is_superset(&[ip("10.0.0.1"), ip("10.0.0.26")].into()));
    assert!(node.service_cidrs.contains(&"10.96.0.0/16".parse().unwrap()));
}

#[test]
fn where_the_pods_of_other_nodes_are_is_followed() {
    let mut planner = planner();
    let with = |name: &str, cidrs: &[&str]| {
        let pod_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let node = Node { pod_cidrs, ..mk_node(name, &["10.0.0.26"]) };
        Event::Apply(Object::Node(Arc::new(node)))
    };
    let remote = |planner: &Planner| -> Vec<String> {
        planner.plan().node.remote_pod_cidrs.iter().map(ToString::to_string).collect()
    };
    assert!(planner.handle([with("node-z", &["10.244.26.0/24", "fd00:244:1a::/64"])]).node);
    assert_eq!(remote(&planner), ["10.244.26.0/24", "fd00:244:1a::/64"]);
    assert!(planner.handle([with("node-z", &["10.244.27.0/24"])]).node, "the same address, another CIDR");
    assert_eq!(remote(&planner), ["10.244.27.0/24"]);
    planner.handle([with("node-a", &["10.244.1.0/24"])]);
    assert_eq!(remote(&planner), ["10.244.27.0/24"], "the own ones are not among them");
    assert!(planner.handle([Event::Delete(ObjectKey::Node("node-z".into()))]).node);
    assert_eq!(remote(&planner), [""; 0]);
}

/// To read this many peers some hundred times would take much longer.
#[test]
fn what_others_do_does_not_cost_what_the_own_annotations_cost() {
    let mut planner = planner();
    let peers: Vec<_> = (0..5000u16).map(|n| format!("{{address: \"fd00::{n:x}\", asn: 65001}}")).collect();
    apply(&mut planner, &[("sheave.io/peers", &format!("[{}]", peers.join(", ")))]);
    assert!(planner.config().router.peers.len() >= 5000, "{:?}", planner.warnings());
    let began = std::time::Instant::now();
    for last in 0..=255 {
        let other = mk_node("node-b", &[&format!("10.0.1.{last}")]);
        planner.handle([Event::Apply(Object::Node(Arc::new(other)))]);
        assert!(planner.plan().node.tunnel_sources.contains(&ip(&format!("10.0.1.{last}"))));
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Prefix, kind and number of communities of each announcement.
fn announced(planner: &Planner) -> Vec<String> {
    let all = planner.plan().announcements.values();
    all.map(|one| format!("{} {:?} {}", one.prefix, one.kind, one.communities.len())).collect()
}

#[test]
fn routes_of_kernel_tables_are_announced_unless_a_service_has_the_address() {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let mut planner = Planner::new("node-a", Config::default());
    planner.handle([Event::Apply(Object::Node(mk_node("node-a", &["10.0.0.1"]).into()))]);
    let delta = planner.handle_routes(&nets(&["10.64.0.0/27", "192.0.2.7/32", "2001:db8:64::/64"]), &[]);
    assert_eq!((delta.announcements.len(), delta.node), (3, false));
    assert_eq!(
        announced(&planner),
        ["10.64.0.0/27 Kernel 0", "192.0.2.7/32 Kernel 0", "2001:db8:64::/64 Kernel 0"]
    );

    // The Node's communities are those of all.
    planner.handle([Event::Apply(Object::Node(annotated(&[("sheave.io/communities", "65000:1")]).into()))]);
    assert_eq!(
        announced(&planner),
        ["10.64.0.0/27 Kernel 1", "192.0.2.7/32 Kernel 1", "2001:db8:64::/64 Kernel 1"]
    );

    // A VIP is taken in here, wherever the route leads: it is announced as such, or not at all.
    let mut service = mk_service("web");
    service.load_balancer_ips = vec![mk_load_balancer_ip("192.0.2.7")];
    service.ports = vec![mk_port("http", 80)];
    planner.handle([Event::Apply(Object::Service(service.into()))]);
    assert_eq!(
        announced(&planner),
        ["10.64.0.0/27 Kernel 1", "2001:db8:64::/64 Kernel 1"],
        "without endpoints"
    );
    let slice = mk_slice("web-1", "web", 8080, &["10.244.1.10@node-a"]);
    planner.handle([Event::Apply(Object::EndpointSlice(slice.into()))]);
    assert_eq!(
        announced(&planner),
        ["10.64.0.0/27 Kernel 1", "192.0.2.7/32 LoadBalancerIP 1", "2001:db8:64::/64 Kernel 1"]
    );
    planner.handle([Event::Delete(ObjectKey::Service(crate::build::name("web")))]);
    assert_eq!(
        announced(&planner),
        ["10.64.0.0/27 Kernel 1", "192.0.2.7/32 Kernel 1", "2001:db8:64::/64 Kernel 1"]
    );

    let delta = planner.handle_routes(&[], &nets(&["192.0.2.7/32", "2001:db8:64::/64"]));
    assert_eq!(delta.announcements.len(), 2);
    assert_eq!(announced(&planner), ["10.64.0.0/27 Kernel 1"]);
}
