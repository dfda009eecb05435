//! A fabric that checks sources strictly, as one does that knows which addresses are behind each of its links.

use std::fmt::Write as _;

use anyhow::Result;

use super::addresses::{self, Family};
use super::{Fabric, Leaf, Node};

impl Fabric {
    /// Has the leaves drop what comes from a node with a source that is not that node's: neither its own address nor one of its
    /// pods'. Virtual IPs are taken to be behind `director` alone, as where one node announces them.
    pub fn check_sources(&self, director: &Node) -> Result<()> {
        self.leaves.iter().try_for_each(|leaf| {
            let rules = self.rules(leaf, director);
            leaf.ns.run_with_input("nft -f -", &rules).map(drop)
        })
    }

    /// Undoes [`check_sources`](Self::check_sources).
    pub fn trust_sources(&self) -> Result<()> {
        self.leaves.iter().try_for_each(|leaf| leaf.ns.run("nft delete table inet strict").map(drop))
    }

    fn rules(&self, leaf: &Leaf, director: &Node) -> String {
        let mut rules = String::from(
            "table inet strict\ndelete table inet strict\ntable inet strict {\n\
             chain forward { type filter hook forward priority -200;\n",
        );
        for node in &self.nodes {
            for family in Family::BOTH {
                let mut sources = vec![
                    node.address(family).to_string(),
                    addresses::pod_cidr(family, node.number),
                    addresses::node_link(family, leaf.number, node.number).to_string(),
                ];
                if node.name == director.name {
                    sources.push(addresses::external_vips(family).to_owned());
                }
                let ip = match family {
                    Family::V4 => "ip",
                    Family::V6 => "ip6",
                };
                let _ = writeln!(
                    rules,
                    "iifname \"{}\" {ip} saddr {{ {} }} accept",
                    node.name,
                    sources.join(", ")
                );
            }
            let _ = writeln!(rules, "iifname \"{}\" drop", node.name);
        }
        rules.push_str("}\n}\n");
        rules
    }
}
