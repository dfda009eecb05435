//! What peers announce → the importer, as far as their import policies let it in.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use sheave_bgp::{LearntStatus, SpeakerConfig};

use super::{Announcer, Configured, Running};
use crate::config::OnExit;
use crate::plan::{Announcement, AnnouncementKind, Delta, NodePlan};
use crate::tables::{ImportCounts, Imports};

/// How long routes of sessions before are kept until peers have told all, where no restart time says it.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long they are.
fn patience(restart_time: Option<Duration>) -> Duration {
    restart_time.filter(|time| !time.is_zero()).unwrap_or(PATIENCE)
}

impl Announcer {
    /// Keeps the plan's own nets free of routes of peers; `touched`: of which it may be different (`None`: all).
    pub fn reserve(&mut self, plan: &NodePlan, touched: Option<&Delta>) {
        let (add, remove) = reservations(plan, &self.reserved, touched);
        self.reserved.extend(&add);
        for net in &remove {
            self.reserved.remove(net);
        }
        if let Some(Running { speaker, .. }) = &self.speaker
            && !(add.is_empty() && remove.is_empty())
        {
            speaker.reserve(&add, &remove);
        }
    }

    /// Has the importer follow the sessions that there are now. Once these know what to learn of whom: what nobody is to tell goes.
    pub(super) fn follow_learnt(&self) {
        let (Some(importer), Some(Configured { router, addresses, .. })) = (&self.import, &self.configured)
        else {
            return;
        };
        importer.follow(Imports {
            learnt: self.speaker.as_ref().map(|running| running.speaker.learnt_routes()),
            expected: router.has_peers(),
            all_found: !self.missing.iter().any(|missing| missing.imports),
            addresses: addresses.clone(),
            patience: patience(router.graceful_restart.map(|graceful| graceful.restart_time)),
        });
    }

    /// Sessions end, and others may begin: what they brought is kept until those have told all.
    pub(super) async fn keep_imported(&self, config: &SpeakerConfig) {
        if let Some(importer) = &self.import {
            let restart_time = config.graceful_restart.map(|graceful| graceful.restart_time);
            importer.leave(patience(restart_time)).await;
        }
    }

    /// The agent ends: routes stay or go, as configured.
    pub(super) async fn leave_imported(&self) {
        let on_exit = self.configured.as_ref().map(|configured| configured.router.import.on_exit);
        if let (Some(OnExit::Remove), Some(importer)) = (on_exit, &self.import) {
            importer.remove().await;
        }
    }

    /// What is learnt of whom.
    pub fn learns(&self) -> Option<LearntStatus> {
        self.speaker.as_ref().map(|running| running.speaker.learnt())
    }

    /// How many routes of peers the kernel holds.
    pub fn imported(&self) -> ImportCounts {
        self.import.as_ref().map(|importer| importer.state().counts).unwrap_or_default()
    }

    pub(super) fn import_problems(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            self.import.iter().filter_map(|importer| importer.state().problem).collect();
        let (Some(Configured { router, .. }), Some(learnt)) = (&self.configured, self.learns()) else {
            return problems;
        };
        for peer in &router.peers {
            let limit = peer.import.as_ref().and_then(|import| import.max_prefixes);
            let at = self.found.get(&peer.name()).into_iter().flatten();
            let counts = at.filter_map(|address| learnt.peers.get(address)).flatten();
            for (family, counts) in counts {
                if counts.long_lived > 0 {
                    let (kept, name) = (counts.long_lived, peer.name());
                    problems.push(format!(
                        "peer {name} is away for longer than its restart time: {kept} of its routes of {family} are kept as a last \
                         resort (long-lived graceful restart)"
                    ));
                }
                if let Some(limit) = limit.filter(|limit| counts.received > limit.limit) {
                    let (received, limit, name) = (counts.received, limit.limit, peer.name());
                    problems.push(format!(
                        "peer {name} announces {received} prefixes of {family}, more than its maxPrefixes of {limit}: raise it if \
                         they are wanted, or have the peer filter"
                    ));
                }
            }
        }
        problems
    }
}

/// Which nets become this node's own, and which are no longer.
fn reservations(
    plan: &NodePlan,
    reserved: &BTreeSet<IpNet>,
    touched: Option<&Delta>,
) -> (Vec<IpNet>, Vec<IpNet>) {
    let Some(delta) = touched.filter(|delta| !delta.node) else {
        let own = own_nets(plan);
        return (own.difference(reserved).copied().collect(), reserved.difference(&own).copied().collect());
    };
    let vips = delta.vips.iter().map(|vip| IpNet::from(*vip));
    let nets: BTreeSet<IpNet> = vips.chain(delta.announcements.iter().copied()).collect();
    let changed = nets.into_iter().filter(|net| is_own(plan, net) != reserved.contains(net));
    changed.partition(|net| !reserved.contains(net))
}

/// What this node itself serves: its pods, Services and aggregates. What it announces for a kernel table may be anywhere, default
/// routes included.
fn own_nets(plan: &NodePlan) -> BTreeSet<IpNet> {
    let node = &plan.node;
    let vips = plan.vips.keys().map(|vip| IpNet::from(*vip));
    let announced = plan.announcements.values().filter(|announcement| is_served(announcement));
    node.pod_cidrs
        .iter()
        .chain(&node.service_cidrs)
        .chain(&node.aggregates)
        .copied()
        .chain(vips)
        .chain(announced.map(|announcement| announcement.prefix))
        .collect()
}

/// The same of one net.
fn is_own(plan: &NodePlan, net: &IpNet) -> bool {
    let node = &plan.node;
    let is_vip = net.prefix_len() == net.max_prefix_len() && plan.vips.contains_key(&net.addr());
    is_vip
        || [&node.pod_cidrs, &node.service_cidrs, &node.aggregates].iter().any(|nets| nets.contains(net))
        || plan.announcements.get(net).is_some_and(is_served)
}

fn is_served(announcement: &Announcement) -> bool {
    announcement.kind != AnnouncementKind::Kernel
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::builders::mk_announcement;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn announcement(prefix: &str, kind: AnnouncementKind) -> (IpNet, Announcement) {
        let prefix = net(prefix);
        (prefix, mk_announcement(prefix, kind))
    }

    /// What one change touches leads to what a look at everything would.
    #[test]
    fn own_nets_follow_the_plan() {
        use AnnouncementKind::{Kernel, LoadBalancerIP, PodCIDR};
        let mut plan = NodePlan::new("node-a");
        plan.node.pod_cidrs.insert(net("10.244.1.0/24"));
        plan.node.service_cidrs.insert(net("10.96.0.0/16"));
        let mut reserved = own_nets(&plan);
        assert_eq!(reserved, BTreeSet::from([net("10.244.1.0/24"), net("10.96.0.0/16")]));
        let vip = |text: &str| text.parse::<IpAddr>().unwrap();
        type Change = fn(&mut NodePlan);
        let steps: [(&str, Change, Delta); 6] = [
            (
                "a VIP comes",
                |plan| plan.vips.extend([([192, 0, 2, 80].into(), 1)]),
                Delta { vips: BTreeSet::from([vip("192.0.2.80")]), ..Delta::default() },
            ),
            (
                "it is announced",
                |plan| plan.announcements.extend([announcement("192.0.2.80/32", LoadBalancerIP)]),
                Delta { announcements: BTreeSet::from([net("192.0.2.80/32")]), ..Delta::default() },
            ),
            (
                "a kernel table's routes are announced, which may be anywhere",
                |plan| plan.announcements.extend([announcement("0.0.0.0/0", Kernel)]),
                Delta { announcements: BTreeSet::from([net("0.0.0.0/0")]), ..Delta::default() },
            ),
            (
                "the VIP goes, and is announced still",
                |plan| plan.vips.clear(),
                Delta { vips: BTreeSet::from([vip("192.0.2.80")]), ..Delta::default() },
            ),
            (
                "nothing is announced any more",
                |plan| plan.announcements.clear(),
                Delta {
                    announcements: BTreeSet::from([net("192.0.2.80/32"), net("0.0.0.0/0")]),
                    ..Delta::default()
                },
            ),
            (
                "the node has other pod CIDRs",
                |plan| {
                    plan.node.pod_cidrs = BTreeSet::from([net("10.244.9.0/24")]);
                    plan.announcements.extend([announcement("10.244.9.0/24", PodCIDR)]);
                },
                Delta { node: true, ..Delta::default() },
            ),
        ];
        for (name, change, delta) in steps {
            change(&mut plan);
            let (add, remove) = reservations(&plan, &reserved, Some(&delta));
            reserved.extend(add);
            reserved.retain(|net| !remove.contains(net));
            assert_eq!(reserved, own_nets(&plan), "{name}");
        }
    }
}
