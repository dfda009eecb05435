//! Large clusters: a change costs the same however many Services there are.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use sheave::cluster::{ACCEPTS_ANNOTATION, Event, Object, Protocol};
use sheave::config::Config;
use sheave::plan::{Planner, VipPort};

use crate::build::{mk_endpoint, mk_node, mk_port, mk_service, mk_slice};

fn events(services: u32) -> impl Iterator<Item = Event> {
    let nodes = (1..=10u8).map(|number| {
        let mut node = mk_node(&format!("node-{number}"), &[&format!("10.0.0.{number}")]);
        node.annotations.insert(ACCEPTS_ANNOTATION.into(), "node".into());
        node
    });
    let services = (0..services).flat_map(|number| {
        let of = format!("s{number}");
        let mut service = mk_service(&of);
        service.cluster_ips = vec![vip(number)];
        service.ports = vec![mk_port("http", 80)];
        let mut slice = mk_slice(&of, &of, 8080, &[]);
        slice.endpoints = (1..=10u32)
            .map(|node| {
                let address = IpAddr::V4(Ipv4Addr::from(0x0a80_0000 + number * 16 + node));
                mk_endpoint(&format!("{address}@node-{node}"))
            })
            .collect();
        [Object::Service(service.into()), Object::EndpointSlice(slice.into())]
    });
    nodes.map(|node| Object::Node(node.into())).chain(services).map(Event::Apply)
}

fn vip(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + number))
}

#[test]
fn an_endpoint_less_touches_one_virtual_server_of_many() {
    let mut planner = Planner::new("node-1", Config::default());
    planner.handle(events(1000));
    assert_eq!(planner.plan().virtual_servers.len(), 1000);
    assert_eq!(
        planner.plan().virtual_servers.values().map(|server| server.destinations.len()).sum::<usize>(),
        10_000
    );
    let slice = mk_slice("s7", "s7", 8080, &["10.128.0.113@node-1"]);
    let delta = planner.handle([Event::Apply(Object::EndpointSlice(slice.into()))]);
    let vip = VipPort { address: vip(7), port: 80, protocol: Protocol::Tcp };
    assert_eq!(delta.virtual_servers, BTreeSet::from([vip]));
    assert!(delta.rewrites.len() <= 10, "{}", delta.rewrites.len());
}

/// `cargo test --release --test plan -- --ignored --nocapture size`
#[test]
#[ignore = "a measurement, for release builds"]
fn time_for_ten_thousand_services_of_ten_endpoints() {
    let events: Vec<_> = events(10_000).collect();
    let mut planner = Planner::new("node-1", Config::default());
    let start = std::time::Instant::now();
    planner.handle(events);
    println!("planned {} virtual servers in {:?}", planner.plan().virtual_servers.len(), start.elapsed());
    let changes = 1000;
    let slices: Vec<_> =
        (0..changes).map(|n| mk_slice(&format!("s{n}"), &format!("s{n}"), 8080, &[])).collect();
    let start = std::time::Instant::now();
    for slice in slices {
        planner.handle([Event::Apply(Object::EndpointSlice(slice.into()))]);
    }
    println!("one change in {:?}", start.elapsed() / changes);
}
