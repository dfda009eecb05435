//! Whether other nodes announce what this one does: each is planned for as its own agent would, by the same config.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::model::{Announcement, NodePlan};
use super::planner::Planner;
use super::service::{NodeContext, service};
use crate::cluster::Node;

/// Taints of a Node that is not heard of, or does not work (the node lifecycle controller's).
const AWAY: [&str; 2] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];

impl Planner {
    /// Whether some other node is to announce the VIP of a Service: one where an agent runs that is not itself about to go, and
    /// which has endpoints for it.
    fn is_announced_elsewhere(&self, announcement: &Announcement) -> bool {
        let Some(name) = &announcement.service else { return false };
        let Some(object) = self.index().service(name) else { return false };
        let slices: Vec<_> = self.index().slices(name).collect();
        let settings = self.settings_of(name).cloned().unwrap_or_default();
        self.index().other_nodes().any(|(other, node)| {
            let context = NodeContext {
                node: other,
                addresses: &node.addresses,
                node_port_addresses: &[],
                zone: node.zone.as_deref(),
                excluded_from_load_balancers: node.excluded_from_load_balancers,
                ..self.context()
            };
            self.stays(node)
                && service(object, &settings, &slices, &context)
                    .announcements
                    .iter()
                    .any(|one| one.prefix == announcement.prefix)
        })
    }

    /// Of the VIPs that a plan announces (`Some`: of these), those that no other node is to announce.
    pub fn alone(&self, plan: &NodePlan, among: Option<&BTreeSet<IpNet>>) -> BTreeSet<IpNet> {
        let planned = |prefix: &IpNet| plan.announcements.get(prefix);
        let vips: Vec<&Announcement> = match among {
            Some(among) => among.iter().filter_map(planned).collect(),
            None => plan.announcements.values().collect(),
        };
        let alone = vips.into_iter().filter(|vip| vip.service.is_some() && !self.is_announced_elsewhere(vip));
        alone.map(|vip| vip.prefix).collect()
    }

    /// Whether an agent runs on a node, and nobody takes the node out of service.
    fn stays(&self, node: &Node) -> bool {
        self.accepting().contains_key(&node.name)
            && !node.deleting
            && !node.to_be_deleted
            && !node.taints.iter().any(|taint| AWAY.contains(&&*taint.key))
            && !self.config().drain.is_asked_of(node)
    }
}
