//! Why a Service is forwarded as it is: what becomes of every endpoint at every virtual server, and why.
//!
//! The answers are those that the plan is made from; nothing is decided here.

use std::net::IpAddr;
use std::sync::Arc;

use super::endpoints::{EndpointUse, Listed, Topology, belongs, same_family};
use super::model::{AcceptedIn, Destination, VipKind, VipPort};
use super::service::{Clients, Listener, NodeContext, ServicePlanner};
use crate::cluster::{Endpoint, EndpointSlice, Service, ServiceName, Skipped, SliceName, TrafficPolicy};
use crate::config::ServiceSettings;

/// What this node makes of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whose.
    pub service: ServiceName,
    /// Why it is left alone, if it is.
    pub skipped: Option<Skipped>,
    /// Its virtual servers, in the plan's order: by kind, then by address, port and protocol.
    pub virtual_servers: Vec<ExplainedServer>,
}

/// What this node makes of one address and port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedServer {
    /// What it listens on.
    pub vip: VipPort,
    /// Where the address came from.
    pub kind: VipKind,
    /// Name of the Service port; `None` where it has none.
    pub service_port: Option<Arc<str>>,
    /// Which endpoints clients from outside get. Those within the cluster get `Cluster`'s, except at a ClusterIP, where
    /// it binds everybody.
    pub policy: TrafficPolicy,
    /// Which hints count for the cluster set.
    pub topology: Topology,
    /// Every endpoint that any slice of the Service lists, by address, then port.
    pub endpoints: Vec<ExplainedEndpoint>,
}

/// What this node makes of an endpoint at a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedEndpoint {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The target port; `None` where its slice has none for the Service port.
    pub port: Option<u16>,
    /// Its node, where known.
    pub node: Option<Arc<str>>,
    /// Which slice lists it.
    pub slice: SliceName,
    /// What it is to clients from outside.
    pub outside: EndpointUse,
    /// What it is to clients within the cluster.
    pub inside: EndpointUse,
    /// How this node forwards to it for clients from outside (where there are none: for all), if these get it.
    pub destination: Option<Destination>,
    /// How it does for clients within the cluster, if these get it.
    pub internal: Option<Destination>,
    /// Where this node takes in packets of any director for it, if it does.
    pub accepted_in: Option<AcceptedIn>,
}

/// Explains one Service, as this node plans it.
pub fn explain(
    service: &Service,
    settings: &ServiceSettings,
    slices: &[&EndpointSlice],
    context: &NodeContext<'_>,
) -> Explanation {
    let mut virtual_servers = Vec::new();
    if service.skipped.is_none() {
        let planner = ServicePlanner { service, settings, context };
        let vips = planner.vips(&mut Vec::new());
        planner.for_each_listener(&vips, slices, |listener| {
            virtual_servers.push(explain_listener(planner, listener, slices));
        });
        virtual_servers.sort_unstable_by_key(|server| (server.kind, server.vip));
    }
    Explanation { service: service.name.clone(), skipped: service.skipped, virtual_servers }
}

fn explain_listener(
    planner: ServicePlanner<'_>,
    listener: &Listener<'_>,
    slices: &[&EndpointSlice],
) -> ExplainedServer {
    let &Listener { vip, kind, port, policy, endpoints: listed, sets, .. } = listener;
    let unused = |endpoint: &Endpoint, slice: &SliceName, port: Option<u16>, why: EndpointUse| {
        let why = if same_family(endpoint.address, vip.address) { why } else { EndpointUse::OtherFamily };
        ExplainedEndpoint {
            address: endpoint.address,
            port,
            node: endpoint.node.clone(),
            slice: slice.clone(),
            outside: why.clone(),
            inside: why,
            destination: None,
            internal: None,
            accepted_in: None,
        }
    };
    let counting = listed.by_address.values().map(|listed| {
        let &Listed { port, endpoint, slice } = listed;
        let (outside, inside) = (listener.outside(endpoint), listener.inside(endpoint));
        if !same_family(endpoint.address, vip.address) {
            return unused(endpoint, slice, Some(port), EndpointUse::OtherFamily);
        }
        ExplainedEndpoint {
            destination: planner.destination(listener, listed, planner.clients(kind)),
            internal: planner.destination(listener, listed, Clients::Internal),
            accepted_in: planner.accepted_in(endpoint, kind),
            inside,
            ..unused(endpoint, slice, Some(port), outside)
        }
    });
    let outranked = listed.outranked.iter().map(|&Listed { port, endpoint, slice }| {
        let why = match listed.by_address.get(&endpoint.address) {
            Some(used) if used.port != port => EndpointUse::OtherTargetPort { used: used.port },
            _ => EndpointUse::ListedTwice,
        };
        unused(endpoint, slice, Some(port), why)
    });
    let without_port = slices
        .iter()
        .filter(|slice| !slice.ports.iter().any(|target| belongs(port, target)))
        .flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (endpoint, &slice.name)))
        .map(|(endpoint, slice)| unused(endpoint, slice, None, EndpointUse::NoSuchPort));
    let mut endpoints: Vec<_> = counting.chain(outranked).chain(without_port).collect();
    endpoints.sort_by(|a, b| (a.address, a.port, &a.slice).cmp(&(b.address, b.port, &b.slice)));
    ExplainedServer { vip, kind, service_port: port.name.clone(), policy, topology: sets.topology, endpoints }
}
