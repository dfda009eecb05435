//! PURE: a plan → the elements that it asks for, apart from those that need a number.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::elements::Element;
use super::{standin, vip_net, vip_nets};
use crate::plan::{NodePlan, VipKind, VipPort};

/// Whether a virtual server on an address of this node stands, so that its packets must not be tracked.
pub fn is_node_port(plan: &NodePlan, vip: &VipPort) -> bool {
    plan.virtual_servers
        .get(vip)
        .is_some_and(|server| server.kind == VipKind::NodePort && !server.destinations.is_empty())
}

/// Whether an address lies where VIPs are but belongs to this host.
pub fn is_taken(plan: &NodePlan, local: &BTreeSet<IpAddr>, address: IpAddr) -> bool {
    local.contains(&address)
        && (plan.vips.contains_key(&address) || vip_net(plan, address) != IpNet::from(address))
}

pub fn sources(plan: &NodePlan, vip: &VipPort) -> impl Iterator<Item = Element> {
    plan.source_ranges.get(vip).into_iter().flat_map(|range| {
        let allowed = IpNet::aggregate(&range.allow.iter().copied().collect());
        std::iter::once(Element::Restricted(range.vip))
            .chain(allowed.into_iter().map(|net| Element::Source(range.vip, net)))
    })
}

/// Every element that one virtual server may have, apart from its rewrites; whether it has is up to [`all`].
pub fn candidates(plan: &NodePlan, vip: &VipPort) -> impl Iterator<Item = Element> {
    let is_node_port = plan.virtual_servers.get(vip).is_some_and(|server| server.kind == VipKind::NodePort);
    let of_port = [Element::NodePort(*vip), Element::Restricted(*vip)];
    let of_address = [Element::Vip(vip_net(plan, vip.address)), Element::Taken(vip.address)];
    let of_address = of_address.into_iter().filter(move |_| !is_node_port);
    of_port.into_iter().chain(of_address).chain(sources(plan, vip))
}

/// The elements of a plan apart from its rewrites.
pub fn all(plan: &NodePlan, local: &BTreeSet<IpAddr>) -> BTreeSet<Element> {
    let pods = plan.node.pod_cidrs.iter().copied().chain(standin::ranges()).collect();
    let mut elements = BTreeSet::new();
    elements.extend(plan.node.tunnel_sources.iter().map(|address| Element::Node(*address)));
    elements.extend(vip_nets(plan).map(Element::Vip));
    let taken = local.iter().filter(|address| is_taken(plan, local, **address));
    elements.extend(taken.map(|address| Element::Taken(*address)));
    elements.extend(IpNet::aggregate(&pods).into_iter().map(Element::Pods));
    elements.extend(
        plan.virtual_servers.keys().filter(|vip| is_node_port(plan, vip)).map(|vip| Element::NodePort(*vip)),
    );
    elements.extend(plan.source_ranges.keys().flat_map(|vip| sources(plan, vip)));
    elements
}
