//! What a pod's namespace must hold, and which packets pass to it, by tables.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::inside::{Inside, Table};
use super::pairs::{Pair, Pairs};
use crate::builders::mk_rewrite;
use crate::cluster::Protocol::{self, Sctp, Tcp, Udp};
use crate::plan::{AcceptedIn, Rewrite, RewriteKey, RewriteSide, VipPort};

const POD: &str = "10.244.2.11";
const VIP: &str = "192.0.2.80";
const OTHER: &str = "192.0.2.81";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vip(address: &str, protocol: Protocol, port: u16) -> VipPort {
    VipPort { address: ip(address), port, protocol }
}

fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|text| ip(text)).collect()
}

#[test]
fn what_a_namespace_holds() {
    type Case = (
        &'static str,
        &'static [(&'static str, Protocol, u16, u16)],
        &'static [&'static str],
        usize,
        &'static [&'static str],
    );
    let cases: [Case; 7] = [
        ("TCP on its own port: a route alone", &[(VIP, Tcp, 80, 80)], &[VIP], 0, &[]),
        ("TCP on another port", &[(VIP, Tcp, 80, 8080)], &[], 1, &[VIP]),
        ("UDP always by rewriting", &[(VIP, Udp, 53, 53)], &[], 1, &[VIP]),
        ("SCTP always by rewriting", &[(VIP, Sctp, 38412, 38412)], &[], 1, &[VIP]),
        ("both at one VIP: the route decides", &[(VIP, Tcp, 80, 80), (VIP, Udp, 80, 80)], &[VIP], 1, &[]),
        ("each VIP by itself", &[(VIP, Tcp, 80, 80), (OTHER, Tcp, 80, 8080)], &[VIP], 1, &[OTHER]),
        ("nothing", &[], &[], 0, &[]),
    ];
    for (case, ports, routes, rewrites, unrouted) in cases {
        let ports =
            ports.iter().map(|(address, protocol, port, target)| (vip(address, *protocol, *port), *target));
        let inside = Inside::new(ip(POD), ports);
        assert_eq!(inside.routes, addresses(routes), "{case}");
        assert_eq!(inside.table.rewrites.len(), rewrites, "{case}");
        assert_eq!(inside.table.unrouted, addresses(unrouted), "{case}");
        assert_eq!(inside.table.is_empty(), rewrites == 0, "{case}");
        for taken in routes.iter().chain(unrouted) {
            assert!(inside.takes(ip(taken)), "{case}");
        }
    }
}

fn table() -> Table {
    Inside::new(ip(POD), [(vip(VIP, Tcp, 80), 8080), (vip(VIP, Udp, 53), 53)]).table
}

/// As `nft -j list table` gives what was written.
fn listed() -> Vec<Value> {
    let rule = || json!({"rule": {"expr": []}});
    vec![
        json!({"table": {"name": "sheave4"}}),
        json!({"map": {"name": "endpoints", "elem": [
            [{"concat": ["tcp", VIP, 80]}, {"concat": [POD, 8080]}],
            [{"concat": ["udp", VIP, 53]}, {"concat": [POD, 53]}],
        ]}}),
        json!({"set": {"name": "unrouted", "elem": [VIP]}}),
        rule(),
        rule(),
        rule(),
        rule(),
        rule(),
    ]
}

#[test]
fn a_table_is_read_back() {
    assert_eq!(Table::parse(&listed(), ip(POD)), Some(table()));
}

#[test]
fn a_table_that_somebody_changed_is_not_ours() {
    let changed = |change: fn(&mut Vec<Value>)| {
        let mut objects = listed();
        change(&mut objects);
        Table::parse(&objects, ip(POD)) == Some(table())
    };
    assert!(changed(|_| {}));
    for (case, change) in [
        ("a rule is gone", (|objects| drop(objects.pop())) as fn(&mut Vec<Value>)),
        ("an element is gone", |objects| drop(objects[1]["map"]["elem"].as_array_mut().unwrap().pop())),
        ("another port", |objects| objects[1]["map"]["elem"][0][1]["concat"][1] = 9090.into()),
        ("another endpoint", |objects| objects[1]["map"]["elem"][0][1]["concat"][0] = "10.244.2.12".into()),
        ("a set is empty", |objects| drop(objects[2]["set"].as_object_mut().unwrap().remove("elem"))),
        ("nothing that we know", |objects| objects[1]["map"]["elem"] = json!([7])),
    ] {
        assert!(!changed(change), "{case}");
    }
}

#[test]
fn a_transaction_makes_the_table_anew_in_one_step() {
    let text = table().transaction(ip(POD));
    for part in [
        "add table inet sheave4\nflush table inet sheave4\n",
        "flush map inet sheave4 endpoints\nflush set inet sheave4 unrouted\n",
        "add element inet sheave4 endpoints { udp . 192.0.2.80 . 53 : 10.244.2.11 . 53, tcp . 192.0.2.80 . 80 : 10.244.2.11 . 8080 }\n",
        "add element inet sheave4 unrouted { 192.0.2.80 }\n",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
}

/// What happens to a rewrite of the endpoint: it is planned so, or gone.
type Step = (VipPort, Option<(u16, AcceptedIn)>);

fn update(pairs: &mut Pairs, steps: &[Step], now: Instant) -> BTreeSet<IpAddr> {
    let steps: Vec<(RewriteKey, Option<Rewrite>)> = steps
        .iter()
        .map(|(vip, to)| {
            let key = RewriteKey { endpoint: ip(POD), side: RewriteSide::Endpoint, vip: *vip };
            (
                key,
                to.map(|(target_port, accepted_in)| Rewrite { target_port, accepted_in, ..mk_rewrite(true) }),
            )
        })
        .collect();
    pairs.update(steps.iter().map(|(key, rewrite)| (key, rewrite.as_ref())), now)
}

/// A name; what was planned before, what comes; which VIPs pass then, and how many ports are held.
type Case<'a> = (&'a str, &'a [Step], &'a [Step], &'a [&'a str], usize);

fn passes(pairs: &Pairs) -> Vec<String> {
    pairs.passing(ip(POD)).iter().map(|Pair { vip, .. }| vip.to_string()).collect()
}

#[test]
fn what_passes_and_what_stands_behind_it() {
    use AcceptedIn::{Node, Pod};
    let (web, dns) = (vip(VIP, Tcp, 80), vip(VIP, Udp, 53));
    let start = Instant::now();
    let cases: [Case<'_>; 7] = [
        ("by the node: nothing to do", &[], &[(web, Some((80, Node)))], &[], 0),
        ("by the pod", &[], &[(web, Some((80, Pod)))], &[VIP], 1),
        (
            "one port by the pod: all of the VIP",
            &[(dns, Some((53, Node)))],
            &[(web, Some((80, Pod)))],
            &[VIP],
            2,
        ),
        ("gone: for a while still", &[(web, Some((80, Pod)))], &[(web, None)], &[VIP], 1),
        (
            "to the node: at once, and the pod keeps what it has",
            &[(web, Some((80, Pod)))],
            &[(web, Some((80, Node)))],
            &[],
            1,
        ),
        ("one port less", &[(web, Some((80, Pod))), (dns, Some((53, Pod)))], &[(dns, None)], &[VIP], 2),
        (
            "another port of the pod: at once",
            &[(web, Some((80, Pod)))],
            &[(web, Some((8080, Pod)))],
            &[VIP],
            1,
        ),
    ];
    for (case, before, steps, passing, ports) in cases {
        let mut pairs = Pairs::default();
        update(&mut pairs, before, start);
        update(&mut pairs, steps, start);
        assert_eq!(passes(&pairs), passing, "{case}");
        let held =
            pairs.inside(ip(POD)).map_or(0, |inside| inside.routes.len() + inside.table.rewrites.len());
        assert_eq!(held, ports, "{case}");
    }
}

#[test]
fn what_lingers_ends() {
    let start = Instant::now();
    let mut pairs = Pairs::default();
    let web = vip(VIP, Tcp, 80);
    update(&mut pairs, &[(web, Some((80, AcceptedIn::Pod)))], start);
    assert!(pairs.wants(ip(POD)));
    assert_eq!(update(&mut pairs, &[(web, None)], start), addresses(&[POD]));
    assert!(!pairs.wants(ip(POD)));
    assert_eq!(pairs.expire(start + Duration::from_secs(4)), addresses(&[]));
    assert_eq!(pairs.endpoints(), addresses(&[POD]));
    assert_eq!(pairs.expire(start + Duration::from_secs(6)), addresses(&[POD]));
    assert_eq!((pairs.inside(ip(POD)), passes(&pairs)), (None, Vec::new()));
    assert!(pairs.endpoints().is_empty());
}

#[test]
fn what_is_back_in_time_lingers_no_more() {
    let start = Instant::now();
    let mut pairs = Pairs::default();
    let web = vip(VIP, Tcp, 80);
    let pod = Some((80, AcceptedIn::Pod));
    for step in [pod, None, pod] {
        update(&mut pairs, &[(web, step)], start);
    }
    assert!(pairs.expire(start + Duration::from_secs(60)).is_empty());
    assert_eq!(passes(&pairs), [VIP]);
}

#[test]
fn a_director_s_rewrites_are_none_of_a_pod_s() {
    let mut pairs = Pairs::default();
    let key = RewriteKey { endpoint: ip(POD), side: RewriteSide::Director, vip: vip(VIP, Tcp, 80) };
    assert!(pairs.update([(&key, Some(&mk_rewrite(false)))], Instant::now()).is_empty());
    assert_eq!(pairs.keys().count(), 0);
}
