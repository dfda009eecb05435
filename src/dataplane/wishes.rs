//! PURE: a plan → the elements that it asks for, apart from those of rewrites and of marks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::elements::Element;
use super::numbers::Numbers;
use super::{standin, vip_net, vip_nets};
use crate::cluster::Protocol;
use crate::plan::{Destination, NodePlan, VipKind, VipPort, VirtualServer};

/// A planned virtual server, except on an address that others gave this host.
pub fn server<'a>(plan: &'a NodePlan, local: &BTreeSet<IpAddr>, vip: &VipPort) -> Option<&'a VirtualServer> {
    let server = plan.virtual_servers.get(vip)?;
    (server.kind == VipKind::NodePort || !local.contains(&vip.address)).then_some(server)
}

/// The destinations of clients within the cluster.
pub fn internal(server: &VirtualServer) -> &[Destination] {
    server.internal.as_ref().unwrap_or(&server.destinations)
}

/// Whether a virtual server has other destinations for clients within the cluster, so that it needs a mark for theirs.
pub fn needs_mark(plan: &NodePlan, local: &BTreeSet<IpAddr>, vip: &VipPort) -> bool {
    server(plan, local, vip)
        .and_then(|server| server.internal.as_ref())
        .is_some_and(|destinations| !destinations.is_empty())
}

/// How packets for a virtual server are met before IPVS and after it.
pub fn of_virtual_server(
    plan: &NodePlan,
    local: &BTreeSet<IpAddr>,
    vip: &VipPort,
    numbers: &Numbers,
) -> BTreeSet<Element> {
    let mut elements = BTreeSet::new();
    let Some(server) = server(plan, local, vip) else { return elements };
    let VirtualServer { destinations, drops, .. } = server;
    let is_node_port = server.kind == VipKind::NodePort;
    // One that stands must not be tracked.
    if is_node_port && !(destinations.is_empty() && internal(server).is_empty()) {
        elements.insert(Element::NodePort(*vip));
    }
    // While destinations drain too: IPVS keeps their connections, and what opens one meets `closing` first.
    if *drops {
        elements.insert(Element::Dropped(*vip));
    } else if destinations.is_empty() && is_node_port {
        elements.insert(Element::Closed(*vip));
    }
    // UDP does not say which packets open a connection.
    if vip.protocol != Protocol::Udp {
        let closing = |destinations: &[Destination]| destinations.iter().all(|each| each.weight == 0);
        elements.extend(closing(destinations).then_some(Element::Closing(*vip, 0)));
        let number = numbers.vip_number_bits(vip).filter(|_| closing(internal(server)));
        elements.extend(number.map(|number| Element::Closing(*vip, number)));
    }
    elements
}

/// Whether an address lies where VIPs are but belongs to this host.
pub fn is_taken(plan: &NodePlan, local: &BTreeSet<IpAddr>, address: IpAddr) -> bool {
    local.contains(&address)
        && (plan.vips.contains_key(&address) || vip_net(plan, address) != IpNet::from(address))
}

/// Who may reach a virtual server.
pub fn sources(plan: &NodePlan, vip: &VipPort) -> impl Iterator<Item = Element> {
    plan.source_ranges.get(vip).into_iter().flat_map(|range| {
        let allowed = IpNet::aggregate(&range.allow.iter().copied().collect());
        std::iter::once(Element::Restricted(range.vip))
            .chain(allowed.into_iter().map(|net| Element::Source(range.vip, net)))
    })
}

/// Every element that one virtual server may have, apart from its rewrites; whether it has is up to [`all`].
pub fn candidates(plan: &NodePlan, vip: &VipPort, numbers: &Numbers) -> impl Iterator<Item = Element> {
    let is_node_port = plan.virtual_servers.get(vip).is_some_and(|server| server.kind == VipKind::NodePort);
    let of_port = [
        Element::NodePort(*vip),
        Element::Closed(*vip),
        Element::Dropped(*vip),
        Element::Closing(*vip, 0),
        Element::Restricted(*vip),
    ];
    let closing = numbers.vip_number_bits(vip).map(|number| Element::Closing(*vip, number));
    let internal = numbers.vip_mark(vip).map(|mark| Element::Internal(*vip, mark));
    let of_port = of_port.into_iter().chain(closing).chain(internal);
    let of_address = [Element::Vip(vip_net(plan, vip.address)), Element::Taken(vip.address)];
    let of_address = of_address.into_iter().filter(move |_| !is_node_port);
    of_port.chain(of_address).chain(sources(plan, vip))
}

/// The elements of a plan apart from its rewrites.
pub fn all(plan: &NodePlan, local: &BTreeSet<IpAddr>, numbers: &Numbers) -> BTreeSet<Element> {
    let pods = plan.node.pod_cidrs.iter().copied().chain(standin::ranges()).collect();
    let mut elements = BTreeSet::new();
    elements.extend(plan.node.tunnel_sources.iter().map(|address| Element::Node(*address)));
    elements.extend(vip_nets(plan).map(Element::Vip));
    let taken = local.iter().filter(|address| is_taken(plan, local, **address));
    elements.extend(taken.map(|address| Element::Taken(*address)));
    elements.extend(IpNet::aggregate(&pods).into_iter().map(Element::Pods));
    let clients = IpNet::aggregate(&plan.node.cluster_clients.iter().copied().collect());
    elements.extend(clients.into_iter().map(Element::Client));
    elements.extend(plan.virtual_servers.keys().flat_map(|vip| of_virtual_server(plan, local, vip, numbers)));
    elements.extend(plan.source_ranges.keys().flat_map(|vip| sources(plan, vip)));
    elements
}
