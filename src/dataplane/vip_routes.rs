//! VIP routes: each service CIDR, and each VIP outside of them, as a `local` route; the routes that lead
//! stand-ins to the tunnel devices; and for each aggregate one that refuses what no Service has there, or it would go back to the
//! router that it came from, and here again (RFC 4632 section 5.1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::Handle;

use super::routing::{self, Route};
use super::{RouteError, service_nets, standin, vip_net, vip_nets};
use crate::plan::NodePlan;

/// Device indices that routes of ours point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The loopback device.
    pub loopback: u32,
    /// The IPv4 tunnel device.
    pub tunnel4: u32,
    /// The IPv6 tunnel device, where the node has IPv6.
    pub tunnel6: Option<u32>,
}

/// Our routes as we believe the kernel holds them.
#[derive(Debug, Default)]
pub struct VipRoutes {
    held: BTreeMap<IpNet, Route>,
    /// Prefixes whose route could not be made, with the reason.
    pub failed: BTreeMap<IpNet, String>,
}

impl VipRoutes {
    /// Whether packets to this VIP are taken in.
    pub fn holds(&self, plan: &NodePlan, vip: IpAddr) -> bool {
        self.held.contains_key(&vip_net(plan, vip))
    }

    /// Why packets to this VIP are not taken in: it is an address of the host, or the route that binds it could not be made.
    pub fn failure(&self, plan: &NodePlan, vip: IpAddr) -> Option<&str> {
        let prefixes = [IpNet::from(vip), vip_net(plan, vip)];
        prefixes.iter().find_map(|prefix| self.failed.get(prefix)).map(String::as_str)
    }

    /// Whether packets to what no Service has in an aggregate end here.
    pub fn ends(&self, plan: &NodePlan, aggregate: IpNet) -> bool {
        let within = service_nets(plan).into_iter().find(|cidr| cidr.contains(&aggregate));
        self.held.contains_key(&within.unwrap_or(aggregate))
    }

    /// Lists our routes and makes them what the plan says. Gives what changed, in words.
    ///
    /// # Errors
    /// [`RouteError`] when they cannot be listed; single routes that fail are in [`Self::failed`].
    pub async fn sync(
        &mut self,
        handle: &Handle,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        devices: Devices,
    ) -> Result<Vec<String>, RouteError> {
        self.held = routing::list(handle).await?;
        self.failed.clear();
        let mut wanted = wanted(plan, devices);
        for vip in plan.vips.keys().filter(|vip| local.contains(vip)) {
            wanted.remove(&IpNet::from(*vip));
            self.failed.insert(IpNet::from(*vip), taken(*vip));
        }
        let mut changed = Vec::new();
        for (prefix, route) in &wanted {
            if self.held.get(prefix) != Some(route) {
                self.put(handle, *prefix, *route).await;
                changed.push(format!("put route {prefix}"));
            }
        }
        let gone: Vec<IpNet> =
            self.held.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        for prefix in gone {
            self.delete(handle, prefix).await;
            changed.push(format!("removed route {prefix}"));
        }
        Ok(changed)
    }

    /// Adds routes of VIPs that came, and removes those of VIPs that went.
    pub async fn update(
        &mut self,
        handle: &Handle,
        plan: &NodePlan,
        local: &BTreeSet<IpAddr>,
        vips: &BTreeSet<IpAddr>,
        devices: Devices,
    ) {
        for vip in vips {
            if !plan.vips.contains_key(vip) {
                self.delete(handle, IpNet::from(*vip)).await;
            } else if local.contains(vip) {
                self.failed.insert(IpNet::from(*vip), taken(*vip));
            } else if let prefix = vip_net(plan, *vip)
                && !self.held.contains_key(&prefix)
            {
                self.put(handle, prefix, vip_route(plan, prefix, devices)).await;
            }
        }
    }

    async fn put(&mut self, handle: &Handle, prefix: IpNet, route: Route) {
        // An aggregate that has become a service CIDR: in another table it is another route, and would stay.
        if self.held.get(&prefix).is_some_and(|held| held.table != route.table) {
            self.delete(handle, prefix).await;
        }
        match routing::put(handle, prefix, &route, self.held.contains_key(&prefix)).await {
            Ok(()) => {
                self.held.insert(prefix, route);
                self.failed.remove(&prefix);
            }
            Err(error) => {
                self.held.remove(&prefix);
                self.failed.insert(prefix, error.to_string());
            }
        }
    }

    async fn delete(&mut self, handle: &Handle, prefix: IpNet) {
        self.failed.remove(&prefix);
        let Some(route) = self.held.remove(&prefix) else { return };
        if let Err(error) = routing::delete(handle, prefix, &route).await {
            self.failed.insert(prefix, error.to_string());
        }
    }
}

fn wanted(plan: &NodePlan, devices: Devices) -> BTreeMap<IpNet, Route> {
    let mut routes: BTreeMap<IpNet, Route> =
        vip_nets(plan).map(|prefix| (prefix, vip_route(plan, prefix, devices))).collect();
    for (prefix, device) in standin::ranges().into_iter().zip([Some(devices.tunnel4), devices.tunnel6]) {
        if let Some(device) = device {
            routes.insert(prefix, Route::through(device, routing::MAIN_TABLE));
        }
    }
    // Within a service CIDR the guard refuses.
    let cidrs = service_nets(plan);
    for aggregate in plan.node.aggregates.iter().filter(|net| !cidrs.iter().any(|cidr| cidr.contains(*net))) {
        routes.insert(*aggregate, Route::unreachable());
    }
    routes
}

/// With the node's address as source: its own clients would send from the VIP otherwise.
fn vip_route(plan: &NodePlan, prefix: IpNet, devices: Devices) -> Route {
    let source =
        plan.node.addresses.iter().find(|address| address.is_ipv4() == prefix.addr().is_ipv4()).copied();
    Route::local(devices.loopback, source)
}

fn taken(vip: IpAddr) -> String {
    format!(
        "{vip} is an address of this host: it stays so, and no Service gets it here; remove it from the host"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vip_within_a_service_cidr_fails_with_its_route() {
        let mut plan = NodePlan::new("node-a");
        plan.node.service_cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|net| net.parse().unwrap()).into();
        let failed = [("10.96.0.0/16", "no room"), ("10.96.0.9/32", "taken"), ("192.0.2.80/32", "no device")];
        let failed = failed.map(|(prefix, why)| (prefix.parse().unwrap(), why.to_owned())).into();
        let routes = VipRoutes { held: BTreeMap::new(), failed };
        for (vip, why) in [
            ("10.96.0.80", Some("no room")),
            ("10.96.0.9", Some("taken")),
            ("192.0.2.80", Some("no device")),
            ("192.0.2.81", None),
            ("fd00:96::80", None),
        ] {
            assert_eq!(routes.failure(&plan, vip.parse().unwrap()), why, "{vip}");
        }
    }
}
