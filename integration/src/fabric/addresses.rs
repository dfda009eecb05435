//! The lab's addresses, all computed from the numbers of nodes, pods and leaves (each counted from 1).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The flag that tells `ip` which family is meant.
    pub fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// Length of a host prefix.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The nodes' AS.
pub const NODE_ASN: u32 = 64512;

/// The spine's AS.
pub const SPINE_ASN: u32 = 65000;

/// The AS of a leaf.
pub fn leaf_asn(leaf: u8) -> u32 {
    65000 + u32::from(leaf)
}

fn pick(family: Family, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(v4).into(),
        Family::V6 => Ipv6Addr::from(v6).into(),
    }
}

/// The number whose hexadecimal digits are the decimal digits of `number`, so that IPv6 addresses read like the IPv4 ones.
fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}

/// A node's own address, on its loopback device: `10.0.0.1N`, `fd00:10::1N`.
pub fn node(family: Family, node: u8) -> IpAddr {
    pick(family, [10, 0, 0, 10 + node], [0xfd00, 0x10, 0, 0, 0, 0, 0, digits(10 + node)])
}

/// A second address that a node may be given: `10.0.0.5N`, `fd00:10::5N`.
pub fn second(family: Family, node: u8) -> IpAddr {
    pick(family, [10, 0, 0, 50 + node], [0xfd00, 0x10, 0, 0, 0, 0, 0, digits(50 + node)])
}

/// A pod's address: `10.244.N.1P`, `fd00:244:N::1P`.
pub fn pod(family: Family, node: u8, pod: u8) -> IpAddr {
    pick(family, [10, 244, node, 10 + pod], [0xfd00, 0x244, node.into(), 0, 0, 0, 0, digits(10 + pod)])
}

/// The pods' prefix of a node.
pub fn pod_cidr(family: Family, node: u8) -> String {
    match family {
        Family::V4 => format!("10.244.{node}.0/24"),
        Family::V6 => format!("fd00:244:{node:x}::/64"),
    }
}

/// The leaf's end of the link between a leaf and a node; also the BGP peer's address.
pub fn leaf_link(family: Family, leaf: u8, node: u8) -> IpAddr {
    pick(family, [10, 254, leaf, 4 * node + 1], [0x2001, 0xdb8, 0x254, digits(10 * leaf + node), 0, 0, 0, 1])
}

/// The node's end of that link.
pub fn node_link(family: Family, leaf: u8, node: u8) -> IpAddr {
    pick(family, [10, 254, leaf, 4 * node + 2], [0x2001, 0xdb8, 0x254, digits(10 * leaf + node), 0, 0, 0, 2])
}

/// The spine's end of a link to a leaf (numbers from 1), to the client (101) or to the external host (102).
pub fn spine_link(family: Family, link: u8) -> IpAddr {
    pick(family, [10, 253, link, 1], [0xfd00, 0x253, link.into(), 0, 0, 0, 0, 1])
}

/// The leaf's end of its link to the spine.
pub fn leaf_uplink(family: Family, leaf: u8) -> IpAddr {
    pick(family, [10, 253, leaf, 2], [0xfd00, 0x253, leaf.into(), 0, 0, 0, 0, 2])
}

/// The client outside the cluster.
pub fn client(family: Family) -> IpAddr {
    pick(family, [198, 51, 100, 10], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10])
}

/// The host outside the cluster that can be an endpoint.
pub fn external(family: Family) -> IpAddr {
    pick(family, [203, 0, 113, 10], [0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x10])
}

/// An external virtual IP by number: `192.0.2.N`, `2001:db8:2::N`.
pub fn external_vip(family: Family, number: u8) -> IpAddr {
    pick(family, [192, 0, 2, number], [0x2001, 0xdb8, 2, 0, 0, 0, 0, digits(number)])
}

/// Where the external virtual IPs are.
pub fn external_vips(family: Family) -> &'static str {
    cluster_prefixes(family)[2]
}

/// A cluster IP by number: `10.96.0.N`, `fd00:96::N`.
pub fn cluster_ip(family: Family, number: u8) -> IpAddr {
    pick(family, [10, 96, 0, number], [0xfd00, 0x96, 0, 0, 0, 0, 0, digits(number)])
}

/// Prefixes the routers know from the start: where nodes, pods and virtual IPs are.
pub fn cluster_prefixes(family: Family) -> [&'static str; 4] {
    match family {
        Family::V4 => ["10.0.0.0/24", "10.244.0.0/16", "192.0.2.0/24", "10.96.0.0/16"],
        Family::V6 => ["fd00:10::/64", "fd00:244::/32", "2001:db8:2::/64", "fd00:96::/112"],
    }
}
