//! Whose packets arrive in a namespace: what shall reach nobody is not seen there.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;

use super::addresses::Family;
use crate::netns::NetNs;

const RULES: &str = "
table inet witness {
  set seen4 { type ipv4_addr; size 1024; flags dynamic; counter; }
  set seen6 { type ipv6_addr; size 1024; flags dynamic; counter; }
  chain arrive {
    type filter hook prerouting priority -310;
    ip protocol { tcp, udp, sctp } update @seen4 { ip saddr }
    ip6 nexthdr { tcp, udp, sctp } update @seen6 { ip6 saddr }
  }
}";

/// Counts packets of TCP, UDP and SCTP that arrive in a namespace, by source, until it is dropped.
#[derive(Debug)]
pub struct Witness {
    ns: NetNs,
}

impl Witness {
    /// Begins to count.
    pub fn of(ns: &NetNs) -> Result<Self> {
        ns.run_with_input("nft -f -", RULES)?;
        Ok(Self { ns: ns.clone() })
    }

    /// How many packets of this source arrived.
    pub fn packets(&self, source: IpAddr) -> Result<u64> {
        let set = match Family::of(source) {
            Family::V4 => "seen4",
            Family::V6 => "seen6",
        };
        let text = self.ns.run(&format!("nft -j list set inet witness {set}"))?;
        let json: Value = serde_json::from_str(&text)?;
        let sets = json["nftables"].as_array().context("nftables")?.iter();
        let elements = sets.filter_map(|item| item["set"]["elem"].as_array()).flatten();
        let of_source = elements
            .map(|element| &element["elem"])
            .filter(|element| element["val"].as_str().and_then(|text| text.parse().ok()) == Some(source));
        Ok(of_source.filter_map(|element| element["counter"]["packets"].as_u64()).sum())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // Gone with its namespace at the latest.
        let _ = self.ns.run("nft delete table inet witness");
    }
}
