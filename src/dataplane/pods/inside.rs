//! PURE: what an endpoint's network namespace must hold, as a function of what is accepted there; its nftables table as
//! text and read back from nft's JSON.
//!
//! | the Service port | in the namespace |
//! |---|---|
//! | TCP, the target port being the same | the VIP as a `local` route: the application sees the VIP as its own address |
//! | any other | a rewrite VIP:port → endpoint:targetPort, undone by conntrack on the way back |
//!
//! UDP and SCTP are rewritten always: a server that listens on all addresses would answer from the pod's own one. A VIP
//! that is only rewritten has no route, so that the pod reaches it as everyone else does. A device, and a table where
//! something is rewritten, per family: the two families of a pod have nothing to do with each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::Value;

use super::super::elements;
use super::super::tunnel::Tunnel;
use crate::cluster::Protocol;
use crate::plan::VipPort;

/// What the namespace of an endpoint must hold of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The endpoint's address: the local address of the tunnel device.
    pub endpoint: IpAddr,
    /// VIPs that are bound as `local` routes.
    pub routes: BTreeSet<IpAddr>,
    /// What nftables does there, where it does anything.
    pub table: Table,
}

/// The contents of our nftables table in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The inner packet's destination → the endpoint's port.
    pub rewrites: BTreeMap<VipPort, u16>,
    /// VIPs without a route: what no rewrite knows is refused, and never sent out again.
    pub unrouted: BTreeSet<IpAddr>,
}

/// Rules in [`Table::transaction`].
const RULES: usize = 5;

impl Inside {
    /// What takes in packets for these VIPs and ports, each with the endpoint's port.
    pub fn new(endpoint: IpAddr, ports: impl IntoIterator<Item = (VipPort, u16)>) -> Self {
        let (mut routes, mut vips, mut rewrites) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        for (vip, target_port) in ports {
            vips.insert(vip.address);
            if vip.protocol == Protocol::Tcp && vip.port == target_port {
                routes.insert(vip.address);
            } else {
                rewrites.insert(vip, target_port);
            }
        }
        let unrouted = vips.difference(&routes).copied().collect();
        Self { endpoint, routes, table: Table { rewrites, unrouted } }
    }

    /// Whether packets for this VIP are taken in.
    pub fn takes(&self, vip: IpAddr) -> bool {
        self.routes.contains(&vip) || self.table.unrouted.contains(&vip)
    }

    /// The tunnel device of the endpoint's family.
    pub fn tunnel(&self) -> Tunnel {
        tunnel_of(self.endpoint)
    }
}

/// The tunnel device of an address's family.
pub fn tunnel_of(address: IpAddr) -> Tunnel {
    if address.is_ipv4() { Tunnel::V4 } else { Tunnel::V6 }
}

impl Table {
    /// Whether nothing is rewritten: there is no table then, and the namespace is spared connection tracking.
    pub fn is_empty(&self) -> bool {
        self.rewrites.is_empty()
    }

    /// A transaction for `nft -f` that makes the table this, whatever it was before.
    pub fn transaction(&self, endpoint: IpAddr) -> String {
        let name = tunnel_of(endpoint).name();
        let (ip, address) = if endpoint.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
        let key = format!("meta l4proto . {ip} daddr . th dport");
        let mut text = format!(
            "add table inet {name}
flush table inet {name}
table inet {name} {{
  map endpoints {{ type inet_proto . {address} . inet_service : {address} . inet_service; }}
  set unrouted {{ type {address}; }}
  chain inner {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname \"{name}\" dnat {ip} to {key} map @endpoints
  }}
  chain own {{
    type nat hook output priority -100; policy accept;
    oifname \"lo\" dnat {ip} to {key} map @endpoints
  }}
  chain clear {{
    type filter hook prerouting priority -90; policy accept;
    iifname \"{name}\" {ip} daddr @unrouted goto refuse
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx port-unreachable
  }}
}}
flush map inet {name} endpoints
flush set inet {name} unrouted
"
        );
        let rewrites: Vec<String> = self
            .rewrites
            .iter()
            .map(|(vip, port)| {
                let protocol = elements::protocol_text(vip.protocol);
                format!("{protocol} . {} . {} : {endpoint} . {port}", vip.address, vip.port)
            })
            .collect();
        let unrouted: Vec<String> = self.unrouted.iter().map(ToString::to_string).collect();
        for (set, members) in [("endpoints", rewrites), ("unrouted", unrouted)] {
            if !members.is_empty() {
                let _ = writeln!(text, "add element inet {name} {set} {{ {} }}", members.join(", "));
            }
        }
        text
    }

    /// Reads the objects of `nft -j list table`; `None` where something in it is not what [`Self::transaction`] writes for
    /// this endpoint.
    pub fn parse(objects: &[Value], endpoint: IpAddr) -> Option<Self> {
        let mut table = Self::default();
        for object in objects {
            let Some(set) = object.get("set").or_else(|| object.get("map")) else { continue };
            for element in set.get("elem").and_then(Value::as_array).into_iter().flatten() {
                if set.get("name")? == "unrouted" {
                    table.unrouted.insert(elements::address(element)?);
                    continue;
                }
                let [key, to] = elements::pair(element)?;
                let [protocol, address, port] = elements::concat(key)?;
                let [to, to_port] = elements::concat(to)?;
                (elements::address(to)? == endpoint).then_some(())?;
                table.rewrites.insert(elements::vip([address, protocol, port])?, elements::number(to_port)?);
            }
        }
        let rules = objects.iter().filter(|object| object.get("rule").is_some()).count();
        (rules == RULES).then_some(table)
    }
}
