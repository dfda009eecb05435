//! A cluster as one node sees it, and a plan as lines of text that a test can be read by.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;
use sheave::cluster::{
    Accepts, Encapsulation, Endpoint, EndpointPort, EndpointSlice, LoadBalancerIp, Protocol, Service,
    ServicePort, SliceName,
};
use sheave::config::{Config, ServiceSettings};
use sheave::plan::{
    AcceptedIn, Destination, Explanation, NodeContext, ServicePlan, VirtualServer, explain, service,
};

pub(crate) use crate::builders::{mk_node, mk_service, name};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn mk_port(name: &str, port: u16) -> ServicePort {
    ServicePort { name: Some(name.into()), protocol: Protocol::Tcp, port, node_port: None }
}

pub(crate) fn mk_load_balancer_ip(address: &str) -> LoadBalancerIp {
    LoadBalancerIp { address: ip(address), proxied: false }
}

/// A slice of `default/SERVICE` with a TCP port `http` and ready endpoints given as `ADDRESS@NODE` or `ADDRESS`.
pub(crate) fn mk_slice(name_: &str, of: &str, port: u16, endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        name: SliceName { namespace: "default".into(), name: name_.into() },
        service: Some(name(of)),
        endpoints: endpoints.iter().map(|text| mk_endpoint(text)).collect(),
        ports: vec![EndpointPort { name: Some("http".into()), protocol: Protocol::Tcp, port }],
    }
}

pub(crate) fn mk_endpoint(text: &str) -> Endpoint {
    let (address, node) = match text.split_once('@') {
        Some((address, node)) => (address, Some(Arc::from(node))),
        None => (text, None),
    };
    Endpoint { address: ip(address), ready: true, serving: true, terminating: false, node, hints: None }
}

/// node-a's view of `default/web`: a ClusterIP with a remapped port, an endpoint on each of three nodes, of which
/// node-b has an agent that accepts.
pub(crate) struct World {
    pub(crate) service: Service,
    pub(crate) slices: Vec<EndpointSlice>,
    pub(crate) config: Config,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) node_port_addresses: Vec<IpAddr>,
    pub(crate) accepting: HashMap<Arc<str>, Accepts>,
    pub(crate) zone: Option<&'static str>,
    pub(crate) excluded_from_load_balancers: bool,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut service = mk_service("web");
        service.cluster_ips = vec![ip("10.96.0.80")];
        service.ports = vec![mk_port("http", 80)];
        let endpoints = ["10.244.1.10@node-a", "10.244.2.10@node-b", "10.244.3.10@node-c"];
        Self {
            service,
            slices: vec![mk_slice("web-1", "web", 8080, &endpoints)],
            config: Config::default(),
            addresses: vec![ip("10.0.0.1"), ip("fd00::1")],
            node_port_addresses: vec![ip("10.0.0.1"), ip("fd00::1")],
            accepting: HashMap::from_iter([("node-b".into(), Accepts::default())]),
            zone: None,
            excluded_from_load_balancers: false,
        }
    }

    pub(crate) fn annotate(&mut self, key: &str, value: &str) {
        self.service.annotations.insert(key.into(), value.into());
    }

    pub(crate) fn plan(&self) -> ServicePlan {
        let (settings, warnings) = ServiceSettings::read(&self.service, None);
        let slices: Vec<_> = self.slices.iter().collect();
        let mut plan = self.seen(|context| service(&self.service, &settings, &slices, context));
        plan.warnings.extend(warnings);
        plan
    }

    pub(crate) fn explain(&self) -> Explanation {
        let (settings, _) = ServiceSettings::read(&self.service, None);
        let slices: Vec<_> = self.slices.iter().collect();
        self.seen(|context| explain(&self.service, &settings, &slices, context))
    }

    fn seen<T>(&self, see: impl FnOnce(&NodeContext<'_>) -> T) -> T {
        let mut node_addresses = BTreeSet::from([ip("10.0.0.2"), ip("10.0.0.3")]);
        node_addresses.extend(&self.addresses);
        see(&NodeContext {
            node: "node-a",
            addresses: &self.addresses,
            node_port_addresses: &self.node_port_addresses,
            node_addresses: &node_addresses,
            accepting: &self.accepting,
            zone: self.zone,
            excluded_from_load_balancers: self.excluded_from_load_balancers,
            services: &self.config.services,
            announce: &self.config.announce,
        })
    }
}

/// A plan, one line for each thing.
pub(crate) fn lines(plan: &ServicePlan) -> Vec<String> {
    let mut lines: Vec<String> = plan.virtual_servers.iter().map(server_line).collect();
    lines.extend(plan.acceptance.iter().map(|a| {
        let in_pod = if a.accepted_in == AcceptedIn::Pod { " in the pod" } else { "" };
        format!("accept {} at {} for {}{in_pod}", a.endpoint, a.target_port, a.vip)
    }));
    lines.extend(plan.announcements.iter().map(|a| {
        let mut line = format!("announce {} {:?}", a.prefix, a.kind);
        for community in &a.communities {
            line += &format!(" {}:{}", community >> 16, community & 0xffff);
        }
        for (global, local1, local2) in &a.large_communities {
            line += &format!(" {global}:{local1}:{local2}");
        }
        if let Some(local_pref) = a.local_pref {
            line += &format!(" local-pref {local_pref}");
        }
        if let Some(med) = a.med {
            line += &format!(" med {med}");
        }
        if a.as_path_prepend > 0 {
            line += &format!(" prepend {}", a.as_path_prepend);
        }
        line
    }));
    lines.extend(plan.source_ranges.iter().map(|range| {
        let allow: Vec<_> = range.allow.iter().map(ToString::to_string).collect();
        format!("only {} to {}", allow.join(","), range.vip)
    }));
    lines.extend(
        plan.health_check.iter().map(|check| format!("health {} {}", check.port, check.local_endpoints)),
    );
    lines.extend(plan.warnings.iter().map(|warning| format!("warn {}", warning.reason)));
    lines
}

fn server_line(server: &VirtualServer) -> String {
    let mut line = format!("{:?} {} {:?}", server.kind, server.vip, server.scheduler);
    if server.scheduler_flags.fallback {
        line += " fallback";
    }
    if server.scheduler_flags.port {
        line += " port";
    }
    if let Some(seconds) = server.persistence {
        line += &format!(" {seconds}s");
    }
    line += &format!(": {}", destinations(&server.destinations));
    if let Some(internal) = &server.internal {
        line += &format!(" / inside: {}", destinations(internal));
    }
    if server.drops {
        line += " / drops";
    }
    line
}

fn destinations(list: &[Destination]) -> String {
    let text = |d: &Destination| {
        let encapsulation = if d.encapsulation == Encapsulation::Gue { " in GUE" } else { "" };
        let drains = if d.weight == 0 { " drains" } else { "" };
        let at = std::net::SocketAddr::new(d.address, d.port);
        format!("{:?} {at}{encapsulation}{drains}", d.forwarding)
    };
    list.iter().map(text).collect::<Vec<_>>().join(", ")
}
