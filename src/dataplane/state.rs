//! What the dataplane says of itself: what it forwards, and what is not as planned.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use sheave_ipvs::{ServiceEntry, ServiceKey, Stats};

use super::{Dataplane, DataplaneError, Part, Uplink, route_lookup, virtual_servers};
use crate::cluster::{Accepts, Encapsulation, Protocol};
use crate::observe::metrics::{ConntrackPass, Passes};
use crate::plan::{NodePlan, RewriteKey, VipPort};

/// What keeps VIPs from being held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obstructed {
    /// A part that all depend on.
    all: bool,
    /// What is of VIPs, or of a prefix that has them, alone.
    some: BTreeSet<IpNet>,
    /// How often the kernel was asked for VIPs that had become whole by themselves.
    asked: u64,
}

impl Dataplane {
    /// Whether this node forwards what comes for a VIP: everything it takes is in the kernel. Of one that is to be announced the
    /// kernel has said so when it was asked for.
    pub fn holds(&self, plan: &NodePlan, vip: IpAddr) -> bool {
        self.is_written(plan, vip)
            && self.verification.wants(vip).is_none()
            && !self.is_to_be_asked(plan, vip)
    }

    /// What keeps VIPs from being held, whatever the reason: as long as that is equal, so is what is held of an unchanged plan.
    pub fn obstructed(&self) -> Obstructed {
        let servers = self.servers.failed.keys().map(|vip| vip.address);
        let vips =
            servers.chain(self.pending.iter().copied()).chain(self.verification.wanting().keys().copied());
        Obstructed {
            all: !self.broken.is_empty(),
            some: self.routes.failed.keys().copied().chain(vips.map(IpNet::from)).collect(),
            asked: self.verification.asked(),
        }
    }

    /// Whether all that a VIP takes was written, and nothing of it refused.
    pub(super) fn is_written(&self, plan: &NodePlan, vip: IpAddr) -> bool {
        let first = VipPort { address: vip, port: 0, protocol: Protocol::Tcp };
        self.broken.is_empty()
            && !self.pending.contains(&vip)
            && !self.local.contains(&vip)
            && self.routes.holds(plan, vip)
            && self.servers.failed.range(first..).next().is_none_or(|(failed, _)| failed.address != vip)
    }

    /// Whether what comes for an aggregate ends on this node, VIPs or not.
    pub fn ends(&self, plan: &NodePlan, aggregate: IpNet) -> bool {
        self.broken.is_empty() && self.routes.ends(plan, aggregate)
    }

    /// What this node takes in of what directors tunnel to its endpoints: nothing unless devices and rules are there. What
    /// the kernel refuses of one endpoint does not count.
    pub fn accepts(&self) -> Option<Accepts> {
        let stands = [Part::Devices, Part::Netfilter].iter().all(|part| !self.broken.contains_key(part));
        stands.then_some(Accepts { gue: self.no_gue.is_none() })
    }

    /// Why GUE is not taken in, where directors send it.
    fn missing_gue(&self) -> Option<String> {
        let why = self.no_gue.as_ref().filter(|_| self.encapsulation == Encapsulation::Gue)?;
        Some(format!("GUE is not taken in, other nodes go on sending IP in IP here: {why}"))
    }

    /// Everything that is not as planned, in words: what, and why.
    pub fn problems(&self) -> Vec<String> {
        let broken = self.broken.iter().chain(&self.unseen);
        let broken = broken.map(|(part, why)| format!("{}: {why}", part.name()));
        let routes = self.routes.failed.values().cloned();
        let endpoint = |key: &RewriteKey| format!("endpoint {} of {}", key.endpoint, key.vip);
        let server = |vip: &VipPort| format!("virtual server {vip}");
        broken
            .chain(routes)
            .chain(grouped(&self.servers.failed, server, ""))
            .chain(grouped(self.netfilter.refused(), endpoint, ""))
            .chain(grouped(&self.netfilter.unmarked, server, "clients in the cluster: "))
            .chain(grouped(self.verification.wanting(), |vip| format!("VIP {vip}"), ""))
            .chain(self.pods.problems())
            .chain(self.missing_gue())
            .chain(self.conntrack.problems())
            .collect()
    }

    /// The interfaces towards other nodes, as last seen.
    pub fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// Whether the first sync found what an agent before had left: this node forwarded all along.
    pub fn adopted(&self) -> bool {
        self.netfilter.adopted
    }

    /// How many virtual servers have destinations that drain.
    pub fn draining(&self) -> usize {
        self.servers.draining()
    }

    /// Whether all parts are as planned, though single objects may be refused; and the kernel could be asked for what it has.
    pub fn is_whole(&self) -> bool {
        !self.needs_sync() && self.verification.is_complete()
    }

    /// How much is not as planned, by kind.
    pub fn problem_counts(&self) -> BTreeMap<&'static str, usize> {
        [
            ("kernel", self.broken.len() + self.unseen.len() + usize::from(self.missing_gue().is_some())),
            ("route", self.routes.failed.len()),
            ("virtual_server", self.servers.failed.len() + self.netfilter.unmarked.len()),
            ("rewrite", self.netfilter.refused().len()),
            ("vip", self.verification.wanting().len()),
            ("pod", self.pods.failed()),
            ("conntrack", self.conntrack.problems().count()),
        ]
        .into()
    }

    /// How often each part was looked at or changed.
    pub fn passes(&self) -> Vec<(&'static str, Passes)> {
        let parts = self.passes.iter().map(|(part, passes)| (part.name(), *passes));
        parts.chain([("conntrack", self.conntrack.passes())]).collect()
    }

    /// What conntrack has forgotten since the last call.
    pub fn forgotten(&self) -> Vec<ConntrackPass> {
        self.conntrack.news()
    }

    /// Netlink messages sent to IPVS since the start.
    pub fn ipvs_messages(&self) -> u64 {
        self.servers.messages
    }

    /// Time IPVS took for them.
    pub fn ipvs_time(&self) -> Duration {
        self.servers.time
    }

    /// How often nftables was listed since the start.
    pub fn listings(&self) -> u64 {
        self.netfilter.listings
    }

    /// Our virtual servers as the kernel lists them.
    ///
    /// # Errors
    /// [`DataplaneError`] when IPVS does not answer.
    pub fn list_virtual_servers(&mut self) -> Result<Vec<ServiceEntry>, DataplaneError> {
        Ok(self.servers.list()?)
    }

    /// The virtual server that a service of the kernel's belongs to, and whether it is that of clients within the cluster.
    pub fn vip_of(&self, key: &ServiceKey) -> Option<(VipPort, bool)> {
        let vip = virtual_servers::vip_of(self.netfilter.numbers(), key)?;
        Some((vip, matches!(key, ServiceKey::Fwmark { .. })))
    }

    /// The counters of our virtual servers: one listing, without destinations.
    ///
    /// # Errors
    /// [`DataplaneError`] when IPVS does not answer.
    pub fn traffic(&mut self) -> Result<Vec<(VipPort, Stats)>, DataplaneError> {
        Ok(self.servers.traffic(self.netfilter.numbers())?)
    }

    /// Addresses of our virtual servers that take new connections and to which packets get, whoever made them.
    ///
    /// # Errors
    /// [`DataplaneError`] when the kernel does not answer.
    pub async fn forwarded(&mut self) -> Result<BTreeSet<IpAddr>, DataplaneError> {
        let entries = self.list_virtual_servers()?.into_iter();
        let takes =
            entries.filter(|entry| entry.destinations.iter().any(|entry| entry.destination.weight > 0));
        let addresses: BTreeSet<IpAddr> = takes
            .filter_map(|entry| match entry.service.key {
                ServiceKey::Address { address, .. } => Some(address),
                // For clients within the cluster, to whom nothing is announced.
                ServiceKey::Fwmark { .. } => None,
            })
            .collect();
        let mut forwarded = BTreeSet::new();
        for address in addresses {
            let route = route_lookup::look_up(&self.handle, address).await?;
            if route.is_some_and(|route| route.local && route.ours) {
                forwarded.insert(address);
            }
        }
        Ok(forwarded)
    }
}

/// What is wrong with single objects, in words: those with an equal reason together, as there may be thousands. `of`: what the reason is about.
fn grouped<K: Ord, W: Ord + fmt::Display>(
    failed: &BTreeMap<K, W>,
    name: impl Fn(&K) -> String,
    of: &'static str,
) -> impl Iterator<Item = String> {
    let mut reasons: BTreeMap<&W, (&K, usize)> = BTreeMap::new();
    for (key, why) in failed {
        reasons.entry(why).or_insert((key, 0)).1 += 1;
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_unstable_by_key(|(_, (first, _))| *first);
    reasons.into_iter().map(move |(why, (first, count))| {
        let others = if count == 1 { String::new() } else { format!(" and {} more", count - 1) };
        format!("{}{others}: {of}{why}", name(first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_reasons_are_told_once() {
        let failed: BTreeMap<u16, &str> =
            (1..=1000).map(|number| (number, if number == 7 { "absent" } else { "foreign" })).collect();
        let words: Vec<String> = grouped(&failed, |number| format!("server {number}"), "inside: ").collect();
        assert_eq!(words, ["server 1 and 998 more: inside: foreign", "server 7: inside: absent"]);
    }
}
