//! Builders of objects and of parts of a plan, for every test of the agent: what a test is not about has a value here.

#![allow(dead_code, reason = "each test builds what it is about")]

use std::net::IpAddr;

use ipnet::IpNet;
use sheave::cluster::{Annotations, Encapsulation, Node, Service, ServiceName, TrafficPolicy};
use sheave::plan::{
    AcceptedIn, Announcement, AnnouncementKind, Destination, Forwarding, Rewrite, Scheduler, SchedulerFlags,
    VipKind, VipPort, VirtualServer,
};

/// In the namespace `default`.
pub fn name(name: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: name.into() }
}

/// A Service without ports and addresses.
pub fn mk_service(of: &str) -> Service {
    Service {
        name: name(of),
        created: None,
        annotations: Annotations::new(),
        skipped: None,
        cluster_ips: Vec::new(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        load_balancer_class: None,
        source_ranges: Vec::new(),
        ports: Vec::new(),
        client_ip_affinity: None,
        external_traffic_policy: TrafficPolicy::Cluster,
        internal_traffic_policy: TrafficPolicy::Cluster,
        traffic_distribution: None,
        health_check_node_port: None,
    }
}

pub fn mk_node(name: &str, addresses: &[&str]) -> Node {
    Node {
        name: name.into(),
        annotations: Annotations::new(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        pod_cidrs: Vec::new(),
        zone: None,
        deleting: false,
        to_be_deleted: false,
        excluded_from_load_balancers: false,
        taints: Vec::new(),
    }
}

/// A virtual server of `default/web`, with `mh` and without destinations.
pub fn mk_virtual_server(vip: VipPort, kind: VipKind) -> VirtualServer {
    VirtualServer {
        vip,
        service: name("web"),
        service_port: None,
        kind,
        scheduler: Scheduler::Mh,
        scheduler_flags: SchedulerFlags { fallback: true, port: true },
        persistence: None,
        destinations: Vec::new(),
        internal: None,
        drops: false,
    }
}

/// An endpoint on port 8080.
pub fn mk_destination(address: IpAddr, forwarding: Forwarding) -> Destination {
    Destination {
        address,
        port: 8080,
        forwarding,
        encapsulation: Encapsulation::Ipip,
        weight: 1,
        node: None,
        terminating: false,
    }
}

/// Of an endpoint on port 8080, taken in by the node.
pub fn mk_rewrite(local: bool) -> Rewrite {
    Rewrite {
        target_port: 8080,
        accepted_in: AcceptedIn::Node,
        local,
        terminating: false,
        dispensable: false,
    }
}

/// A prefix that is no Service's, without attributes.
pub fn mk_announcement(prefix: IpNet, kind: AnnouncementKind) -> Announcement {
    Announcement {
        prefix,
        kind,
        service: None,
        local: false,
        communities: [].into(),
        large_communities: [].into(),
        local_pref: None,
        med: None,
        as_path_prepend: 0,
    }
}
