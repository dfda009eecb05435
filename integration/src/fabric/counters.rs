//! What the leaf routers see pass: packets by node, direction, address and protocol. Counted on the routers, so that
//! nothing on the nodes, whose own ruleset is under test, takes part.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Fabric;
use super::addresses::Family;
use crate::netns::NetNs;

const RULES: &str = "
table inet lab {
  set from4 { type ifname . ipv4_addr . inet_proto; size 8192; flags dynamic; counter; }
  set from6 { type ifname . ipv6_addr . inet_proto; size 8192; flags dynamic; counter; }
  set to4 { type ifname . ipv4_addr . inet_proto; size 8192; flags dynamic; counter; }
  set to6 { type ifname . ipv6_addr . inet_proto; size 8192; flags dynamic; counter; }
  chain forward {
    type filter hook forward priority -300;
    ip version 4 update @from4 { iifname . ip saddr . ip protocol } update @to4 { oifname . ip daddr . ip protocol }
    ip6 version 6 update @from6 { iifname . ip6 saddr . ip6 nexthdr } update @to6 { oifname . ip6 daddr . ip6 nexthdr }
  }
}";

/// Which way a packet passes the leaf router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It came from the node; its source address is counted.
    From,
    /// It goes to the node; its destination address is counted.
    To,
}

/// Packets to or from a node with one address (source of packets from it, destination of packets to it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The node.
    pub node: String,
    /// The address.
    pub address: IpAddr,
    /// Transport or tunnel protocol as nft prints it (`tcp`, `ipencap`, `ipv6`).
    pub protocol: String,
    /// How many.
    pub packets: u64,
}

pub(super) fn install(leaf: &NetNs) -> Result<()> {
    leaf.run_with_input("nft -f -", RULES).map(drop)
}

impl Fabric {
    /// Starts counting anew.
    pub fn reset_counters(&self) -> Result<()> {
        for leaf in &self.leaves {
            for set in ["from4", "from6", "to4", "to6"] {
                leaf.ns.run(&format!("nft flush set inet lab {set}"))?;
            }
        }
        Ok(())
    }

    /// What passed both leaves since, one entry per leaf, node, address and protocol.
    pub fn counted(&self, direction: Direction, family: Family) -> Result<Vec<Counted>> {
        let set = match (direction, family) {
            (Direction::From, Family::V4) => "from4",
            (Direction::From, Family::V6) => "from6",
            (Direction::To, Family::V4) => "to4",
            (Direction::To, Family::V6) => "to6",
        };
        let mut all = Vec::new();
        for leaf in &self.leaves {
            let text = leaf.ns.run(&format!("nft -j list set inet lab {set}"))?;
            let json: Value = serde_json::from_str(&text)?;
            let elements = json["nftables"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|item| item["set"]["elem"].as_array());
            for element in elements.flatten() {
                let element = &element["elem"];
                all.push(parse(element).with_context(|| format!("nft printed {element}"))?);
            }
        }
        Ok(all)
    }

    /// Packets from, or to, a node with this address.
    pub fn packets(&self, direction: Direction, node: &str, address: IpAddr) -> Result<u64> {
        let counted = self.counted(direction, Family::of(address))?;
        Ok(counted.iter().filter(|c| c.node == node && c.address == address).map(|c| c.packets).sum())
    }
}

fn parse(element: &Value) -> Option<Counted> {
    let key = element["val"]["concat"].as_array()?;
    let [node, address, protocol] = key.as_slice() else { return None };
    Some(Counted {
        node: node.as_str()?.to_owned(),
        address: address.as_str()?.parse().ok()?,
        protocol: protocol.as_str().map_or_else(|| protocol.to_string(), str::to_owned),
        packets: element["counter"]["packets"].as_u64()?,
    })
}
