//! Next hops of learnt routes, and whether they can be reached.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::adj_in::supernets;

/// Where packets for a prefix are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NextHop {
    /// The router's address.
    pub address: IpAddr,
    /// The number of the interface that it is behind, where its address is link-local.
    pub interface: Option<u32>,
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> NextHop {
        NextHop { address, interface: None }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interface {
            Some(interface) => write!(f, "{}%{interface}", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// What a node can reach without a router between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Nets that lie on a link which works.
    pub prefixes: BTreeSet<IpNet>,
    /// The numbers of interfaces whose link works.
    pub interfaces: BTreeSet<u32>,
}

impl Links {
    /// Whether a packet can be handed to the next hop.
    pub fn reach(&self, hop: &NextHop) -> bool {
        match hop.interface {
            Some(interface) => self.interfaces.contains(&interface),
            None => {
                let own = IpNet::from(hop.address);
                std::iter::once(own).chain(supernets(own)).any(|net| self.prefixes.contains(&net))
            }
        }
    }
}

/// An address that says nothing away from its link.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reached() {
        let links = Links {
            prefixes: ["10.0.0.0/24", "10.9.0.1/32", "fd00::/64"].map(|net| net.parse().unwrap()).into(),
            interfaces: [3].into(),
        };
        for (name, address, interface, expected) in [
            ("on a link", "10.0.0.9", None, true),
            ("on none", "10.0.1.9", None, false),
            ("a host's route", "10.9.0.1", None, true),
            ("next to it", "10.9.0.2", None, false),
            ("IPv6", "fd00::9", None, true),
            ("IPv6, on none", "fd00:1::9", None, false),
            ("link-local", "fe80::1", Some(3), true),
            ("link-local, on a link that is down", "fe80::1", Some(4), false),
        ] {
            assert_eq!(
                links.reach(&NextHop { address: address.parse().unwrap(), interface }),
                expected,
                "{name}"
            );
        }
    }
}
