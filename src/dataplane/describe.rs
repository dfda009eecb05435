//! What the plan says of virtual servers beside what the kernel holds, for a reader.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use sheave_ipvs::{DestinationEntry, ServiceEntry};

use super::{reconcile, standin};
use crate::observe::status::{Destination, VirtualServer};
use crate::plan::{Forwarding, NodePlan};

/// Every planned virtual server, sorted by Service and address, with what `held` says of it.
pub fn describe(plan: &NodePlan, held: &[ServiceEntry]) -> Vec<VirtualServer> {
    let held: HashMap<_, _> =
        held.iter().filter_map(|entry| Some((reconcile::vip_port(&entry.service.key)?, entry))).collect();
    let mut servers: Vec<_> = plan.virtual_servers.values().collect();
    servers.sort_unstable_by_key(|server| (&server.service, server.kind, server.vip));
    servers
        .into_iter()
        .map(|server| {
            let entry = held.get(&server.vip);
            let mut left: BTreeMap<(IpAddr, u16), &DestinationEntry> = entry
                .into_iter()
                .flat_map(|entry| &entry.destinations)
                .map(|entry| ((entry.destination.address, entry.destination.port), entry))
                .collect();
            let planned = server.destinations.iter().map(|destination| {
                let (in_kernel, forwarding) = match destination.forwarding {
                    Forwarding::Tunnel => (destination.address, "tunnel"),
                    Forwarding::Nat => (standin::of(destination.address), "nat"),
                    Forwarding::Masquerade => (destination.address, "masquerade"),
                };
                let endpoint = SocketAddr::new(destination.address, destination.port).to_string();
                let node = destination.node.as_ref().map(ToString::to_string);
                let entry = left.remove(&(in_kernel, destination.port));
                describe_destination(endpoint, node, forwarding, entry)
            });
            let mut destinations: Vec<Destination> = planned.collect();
            destinations.extend(left.into_iter().map(|((address, port), entry)| {
                describe_destination(
                    SocketAddr::new(address, port).to_string(),
                    None,
                    "draining",
                    Some(entry),
                )
            }));
            VirtualServer {
                service: server.service.to_string(),
                kind: format!("{:?}", server.kind),
                vip: server.vip.to_string(),
                scheduler: format!("{:?}", server.scheduler).to_lowercase(),
                in_kernel: entry.is_some(),
                destinations,
            }
        })
        .collect()
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
