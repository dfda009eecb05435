//! What the plan says of virtual servers beside what the kernel holds, for a reader.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use sheave_ipvs::{DestinationEntry, ServiceEntry, ServiceKey};

use super::reconcile::DestinationKey;
use super::{standin, wishes};
use crate::observe::status::{Destination, VirtualServer};
use crate::plan::{self, Forwarding, NodePlan, VipPort};

/// Every planned virtual server, sorted by Service and address, with what `held` says of it. `vip_of` tells the virtual server
/// of a service, and whether it is that of clients within the cluster.
pub fn describe(
    plan: &NodePlan,
    held: &[ServiceEntry],
    vip_of: impl Fn(&ServiceKey) -> Option<(VipPort, bool)>,
) -> Vec<VirtualServer> {
    let held: HashMap<_, _> =
        held.iter().filter_map(|entry| Some((vip_of(&entry.service.key)?, entry))).collect();
    let mut servers: Vec<_> = plan.virtual_servers.values().collect();
    servers.sort_unstable_by_key(|server| (&server.service, server.kind, server.vip));
    servers
        .into_iter()
        .map(|server| {
            let [entry, internal] = [false, true].map(|internal| held.get(&(server.vip, internal)).copied());
            let differs = internal.is_some() || server.internal.is_some();
            VirtualServer {
                service: server.service.to_string(),
                kind: format!("{:?}", server.kind),
                vip: server.vip.to_string(),
                scheduler: format!("{:?}", server.scheduler).to_lowercase(),
                in_kernel: entry.is_some(),
                drops: server.drops,
                destinations: destinations(&server.destinations, entry),
                internal: differs.then(|| destinations(wishes::internal(server), internal)),
            }
        })
        .collect()
}

/// Those planned, then those that drain.
fn destinations(planned: &[plan::Destination], entry: Option<&ServiceEntry>) -> Vec<Destination> {
    let mut left: BTreeMap<DestinationKey, &DestinationEntry> = entry
        .into_iter()
        .flat_map(|entry| &entry.destinations)
        .map(|entry| ((entry.destination.address, entry.destination.port), entry))
        .collect();
    let planned = planned.iter().map(|destination| {
        let stand_in = standin::of(destination.address);
        let holds = |address| left.contains_key(&(address, destination.port));
        let (in_kernel, forwarding) = match destination.forwarding {
            Forwarding::NatOrTunnel if !holds(stand_in) && holds(destination.address) => {
                (destination.address, "tunnel")
            }
            Forwarding::Nat | Forwarding::NatOrTunnel => (stand_in, "nat"),
            Forwarding::Tunnel => (destination.address, "tunnel"),
            Forwarding::Masquerade => (destination.address, "masquerade"),
        };
        let endpoint = SocketAddr::new(destination.address, destination.port).to_string();
        let node = destination.node.as_ref().map(ToString::to_string);
        let entry = left.remove(&(in_kernel, destination.port));
        describe_destination(endpoint, node, forwarding, entry)
    });
    let mut destinations: Vec<Destination> = planned.collect();
    destinations.extend(left.into_iter().map(|((address, port), entry)| {
        let endpoint = SocketAddr::new(address, port).to_string();
        describe_destination(endpoint, None, "draining", Some(entry))
    }));
    destinations
}

fn describe_destination(
    endpoint: String,
    node: Option<String>,
    forwarding: &str,
    entry: Option<&DestinationEntry>,
) -> Destination {
    Destination {
        endpoint,
        node,
        forwarding: forwarding.into(),
        weight: entry.map(|entry| entry.destination.weight),
        active_connections: entry.map_or(0, |entry| entry.active_connections),
        inactive_connections: entry.map_or(0, |entry| entry.inactive_connections),
    }
}
