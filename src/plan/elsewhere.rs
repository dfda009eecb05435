//! Whether other nodes announce what this one does: each is planned for as its own agent would, by the same config.
//!
//! A cluster has many nodes, and what they make of a Service is the same for most of them: it depends on a node's zone, and on which
//! endpoints are its own. So one node of each zone is asked, and those that the Service has endpoints on.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::{HashMap, HashSet};
use ipnet::IpNet;

use super::model::{NodePlan, VipKind};
use super::planner::Planner;
use super::service::{NodeContext, ServicePlanner, service};
use crate::cluster::{EndpointSlice, Node, ServiceName};

/// Taints of a Node that is not heard of, or does not work (the node lifecycle controller's).
const AWAY: [&str; 2] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];

impl Planner {
    /// Of the VIPs that Services have announced (`Some`: of these), those that no other node is to announce: whether this node is, or
    /// has no endpoint for them. One that no Service has is not among them.
    pub fn alone(&self, among: Option<&BTreeSet<IpNet>>) -> BTreeMap<IpNet, bool> {
        let others =
            Others::new(self.index().other_nodes().map(|(_, node)| &**node).filter(|node| self.stays(node)));
        let mut alone = BTreeMap::new();
        for (name, vips) in self.vips_of_services(among) {
            let Some(object) = self.index().service(name) else { continue };
            let slices: Vec<_> = self.index().slices(name).collect();
            let settings = self.settings_of(name).cloned().unwrap_or_default();
            let own = self.context();
            let announced =
                ServicePlanner { service: object, settings: &settings, context: &own }.announced();
            let mut left: BTreeSet<IpNet> = vips.into_iter().filter(|vip| announced.contains(vip)).collect();
            for node in others.asked_for(&slices) {
                if left.is_empty() {
                    break;
                }
                let context = NodeContext {
                    node: &node.name,
                    addresses: &node.addresses,
                    node_port_addresses: &[],
                    zone: node.zone.as_deref(),
                    excluded_from_load_balancers: false,
                    ..own
                };
                for announcement in service(object, &settings, &slices, &context).announcements {
                    left.remove(&announcement.prefix);
                }
            }
            alone.extend(left.into_iter().map(|vip| (vip, self.announces(&vip).is_some())));
        }
        alone
    }

    /// Whose VIPs are: the Service's for which this node is to announce it, and without one all those that have it.
    fn vips_of_services(&self, among: Option<&BTreeSet<IpNet>>) -> BTreeMap<&ServiceName, BTreeSet<IpNet>> {
        let is_asked = |vip: &IpNet| among.is_none_or(|among| among.contains(vip));
        let planned = self.plan().announcements.iter();
        let planned = planned.filter_map(|(vip, announcement)| Some((*vip, announcement.service.as_ref()?)));
        let servers = self.plan().virtual_servers.values().filter(|server| server.kind != VipKind::NodePort);
        let servers = servers.map(|server| (IpNet::from(server.vip.address), &server.service));
        let unplanned = servers.filter(|(vip, _)| self.announces(vip).is_none());
        let mut vips: BTreeMap<&ServiceName, BTreeSet<IpNet>> = BTreeMap::new();
        for (vip, service) in planned.chain(unplanned).filter(|(vip, _)| is_asked(vip)) {
            vips.entry(service).or_default().insert(vip);
        }
        vips
    }

    /// The Service for which this node is to announce a VIP.
    fn announces(&self, vip: &IpNet) -> Option<&ServiceName> {
        self.plan().announcements.get(vip)?.service.as_ref()
    }

    /// Whether an agent runs on a node and announces Services, and nobody takes the node out of service.
    fn stays(&self, node: &Node) -> bool {
        self.accepting().contains_key(&node.name)
            && !node.excluded_from_load_balancers
            && !node.deleting
            && !node.to_be_deleted
            && !node.taints.iter().any(|taint| AWAY.contains(&&*taint.key))
            && !self.config().drain.is_asked_of(node)
    }
}

impl NodePlan {
    /// The same as long as nothing is known but this plan: no other node is known.
    pub fn alone(&self, among: Option<&BTreeSet<IpNet>>) -> BTreeMap<IpNet, bool> {
        let planned: BTreeMap<IpNet, bool> = self
            .announcements
            .values()
            .filter(|announcement| announcement.service.is_some())
            .map(|announcement| (announcement.prefix, true))
            .collect();
        match among {
            Some(among) => among.iter().map(|vip| (*vip, planned.contains_key(vip))).collect(),
            None => planned,
        }
    }
}

/// Nodes that may announce a VIP.
#[derive(Debug, Default)]
struct Others<'a> {
    by_name: HashMap<&'a str, &'a Node>,
    /// One of each zone.
    of_zones: BTreeMap<Option<&'a str>, &'a Node>,
}

impl<'a> Others<'a> {
    fn new(nodes: impl Iterator<Item = &'a Node>) -> Self {
        let mut others = Self::default();
        for node in nodes {
            others.by_name.insert(&node.name, node);
            others.of_zones.entry(node.zone.as_deref()).or_insert(node);
        }
        others
    }

    /// Those that make of a Service with these slices all that there is to be made of it.
    fn asked_for(&self, slices: &[&EndpointSlice]) -> Vec<&'a Node> {
        let mut nodes: Vec<&Node> = self.of_zones.values().copied().collect();
        let mut seen: HashSet<&str> = nodes.iter().map(|node| &*node.name).collect();
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        let named = endpoints.filter_map(|endpoint| self.by_name.get(endpoint.node.as_deref()?).copied());
        nodes.extend(named.filter(|node| seen.insert(&node.name)));
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Endpoint, SliceName};

    fn node(number: usize) -> Node {
        Node {
            name: format!("node-{number}").into(),
            annotations: BTreeMap::new(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            zone: [Some("a".into()), Some("b".into()), None].into_iter().cycle().nth(number).flatten(),
            deleting: false,
            to_be_deleted: false,
            excluded_from_load_balancers: false,
            taints: Vec::new(),
        }
    }

    fn slice(nodes: &[&str]) -> EndpointSlice {
        let endpoint = |node: &&str| Endpoint {
            address: [10, 244, 1, 10].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: Some((*node).into()),
            hints: None,
        };
        EndpointSlice {
            name: SliceName { namespace: "default".into(), name: "web".into() },
            service: None,
            endpoints: nodes.iter().map(endpoint).collect(),
            ports: Vec::new(),
        }
    }

    #[test]
    fn few_nodes_are_asked_however_many_there_are() {
        let nodes: Vec<Node> = (0..5000).map(node).collect();
        let others = Others::new(nodes.iter());
        let slices = [slice(&["node-0", "node-7", "node-4000"]), slice(&["node-7", "this one", "gone"])];
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        for (what, slices, expected) in [
            ("one of each zone", &slices[..0], &["node-2", "node-0", "node-1"][..]),
            ("and those with endpoints", &slices, &["node-2", "node-0", "node-1", "node-7", "node-4000"]),
        ] {
            let asked = others.asked_for(slices);
            assert_eq!(asked.iter().map(|node| &*node.name).collect::<Vec<_>>(), expected, "{what}");
        }
        assert!(Others::new([].iter()).asked_for(&slices).is_empty());
    }
}
