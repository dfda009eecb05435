//! Routes as the kernel's messages tell of them, and which of them are announced.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sheave_bgp::is_routable;

use super::multipath;
use crate::dataplane::netlink::attributes;
use crate::dataplane::routing::PROTOCOL;

/// `struct rtmsg` (linux/rtnetlink.h).
const RTMSG: usize = 12;
/// `struct rtnexthop` (linux/rtnetlink.h).
const RTNEXTHOP: usize = 8;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;
const RTM_F_CLONED: u32 = 0x200;
const RTN_UNICAST: u8 = 1;
/// What the kernel makes by itself: for ICMP redirects, for addresses, for router advertisements.
const RTPROT_REDIRECT: u8 = 1;
const RTPROT_KERNEL: u8 = 2;
const RTPROT_RA: u8 = 9;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
pub(super) const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

/// One way that a route takes: device, and gateway as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) device: u32,
    gateway: Vec<u8>,
}

impl Hop {
    /// The router that packets are handed to; of an IPv4 route it may have an IPv6 address.
    pub(super) fn gateway(&self) -> Option<IpAddr> {
        match &self.gateway[..] {
            // `struct rtvia`: the family, then the address.
            [low, high, address @ ..]
                if u16::from_ne_bytes([*low, *high]) == u16::from(AF_INET6) && address.len() == 16 =>
            {
                self::address(address)
            }
            plain => address(plain),
        }
    }
}

/// A route of somebody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) table: u32,
    pub(super) prefix: IpNet,
    tos: u8,
    metric: u32,
    protocol: u8,
    kind: u8,
    pub(super) hops: Vec<Hop>,
    /// Source of this node's own packets: the route goes with that address.
    pub(super) source: Option<IpAddr>,
    /// It goes with a nexthop object (`ip nexthop`).
    pub(super) by_object: bool,
}

impl Route {
    /// Reads the body of an `RTM_NEWROUTE` or `RTM_DELROUTE`; `None` for what is no route of IP, or is cut short.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let header = body.first_chunk::<RTMSG>()?;
        let &[family, length, _, tos, table, protocol, _, kind, f0, f1, f2, f3] = header;
        // An entry of the cache, made from a route.
        if u32::from_ne_bytes([f0, f1, f2, f3]) & RTM_F_CLONED != 0 {
            return None;
        }
        let mut destination = match family {
            AF_INET => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            AF_INET6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut table = u32::from(table);
        let (mut metric, mut source, mut by_object) = (0, None, false);
        let (mut device, mut gateway, mut hops) = (None, Vec::new(), Vec::new());
        for (kind, value) in attributes(&body[RTMSG..]) {
            match kind {
                RTA_DST => destination = address(value)?,
                RTA_TABLE => table = number(value)?,
                RTA_PRIORITY => metric = number(value)?,
                RTA_PREFSRC => source = address(value),
                RTA_OIF => device = number(value),
                RTA_GATEWAY | RTA_VIA => gateway = value.to_vec(),
                RTA_MULTIPATH => hops = read_hops(value),
                RTA_NH_ID => by_object = true,
                _ => {}
            }
        }
        hops.extend(device.map(|device| Hop { device, gateway }));
        let prefix = IpNet::new(destination, length).ok()?.trunc();
        Some(Self { table, prefix, tos, metric, protocol, kind, hops, source, by_object })
    }

    /// Whether it leads to what is on links.
    pub(super) fn is_on_link(&self) -> bool {
        self.kind == RTN_UNICAST
            && !self.hops.is_empty()
            && self.hops.iter().all(|hop| hop.gateway.is_empty())
    }

    /// Its metric, if it is a default route that was not learnt by us.
    pub(super) fn default_metric(&self) -> Option<u32> {
        let learnt = self.protocol == multipath::PROTOCOL;
        (self.kind == RTN_UNICAST && !learnt && self.prefix.prefix_len() == 0).then_some(self.metric)
    }

    /// Whether the kernel would take it for the same place in the table: a new one there replaces the old one.
    pub(super) fn is_in_place_of(&self, other: &Self) -> bool {
        (self.tos, self.metric) == (other.tos, other.metric)
    }

    /// Whether it is another one with more ways: the kernel tells of an IPv6 route whole as ways are added.
    pub(super) fn extends(&self, other: &Self) -> bool {
        self.prefix.addr().is_ipv6() && other.hops.iter().all(|hop| self.hops.contains(hop))
    }

    /// Whether its prefix is to be announced on its account: it leads somewhere, somebody put it there, and the prefix is one that
    /// other hosts can send to.
    pub(super) fn counts(&self, default_routes: bool) -> bool {
        // What is learnt is not passed on.
        const LEARNT: u8 = multipath::PROTOCOL;
        let made_here =
            matches!(self.protocol, PROTOCOL | LEARNT | RTPROT_REDIRECT | RTPROT_KERNEL | RTPROT_RA);
        self.kind == RTN_UNICAST
            && !made_here
            && if self.prefix.prefix_len() == 0 { default_routes } else { is_routable(&self.prefix) }
    }
}

fn read_hops(mut bytes: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let Some([l0, l1, _, _, d0, d1, d2, d3]) = bytes.first_chunk::<RTNEXTHOP>().copied() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(inside) = bytes.get(RTNEXTHOP..length) else { break };
        let gateway = attributes(inside).find(|(kind, _)| matches!(*kind, RTA_GATEWAY | RTA_VIA));
        let gateway = gateway.map(|(_, value)| value.to_vec()).unwrap_or_default();
        hops.push(Hop { device: u32::from_ne_bytes([d0, d1, d2, d3]), gateway });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

pub(super) fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dataplane::netlink::attribute;

    /// The body of a message about a route. `hops`: device and gateway; one, or several (`RTA_MULTIPATH`).
    pub(in super::super) fn body(
        prefix: &str,
        table: u32,
        (protocol, kind): (u8, u8),
        metric: u32,
        hops: &[(u32, &str)],
    ) -> Vec<u8> {
        let prefix: IpNet = prefix.parse().unwrap();
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let family = if prefix.addr().is_ipv4() { AF_INET } else { AF_INET6 };
        // A table beyond 255 is told in its attribute alone (RT_TABLE_COMPAT).
        let short = u8::try_from(table).unwrap_or(252);
        let mut body = vec![family, prefix.prefix_len(), 0, 0, short, protocol, 0, kind, 0, 0, 0, 0];
        body.extend(attribute(RTA_TABLE, &table.to_ne_bytes()));
        if prefix.prefix_len() > 0 {
            body.extend(attribute(RTA_DST, &octets(prefix.addr())));
        }
        if metric > 0 {
            body.extend(attribute(RTA_PRIORITY, &metric.to_ne_bytes()));
        }
        let gateway = |text: &str| {
            text.parse().map(|address| attribute(RTA_GATEWAY, &octets(address))).unwrap_or_default()
        };
        match hops {
            [(device, via)] => {
                body.extend(attribute(RTA_OIF, &device.to_ne_bytes()));
                body.extend(gateway(via));
            }
            several => {
                let mut value = Vec::new();
                for (device, via) in several {
                    let inside = gateway(via);
                    value.extend(u16::try_from(RTNEXTHOP + inside.len()).unwrap().to_ne_bytes());
                    value.extend([0, 0]);
                    value.extend(device.to_ne_bytes());
                    value.extend(inside);
                }
                body.extend(attribute(RTA_MULTIPATH, &value));
            }
        }
        body
    }

    const STATIC: u8 = 4;

    #[test]
    fn a_route_is_read_as_written_and_nothing_short_is() {
        for (prefix, hops) in [
            ("10.1.0.0/16", &[(3, "10.0.0.1")][..]),
            ("2001:db8:1::/48", &[(3, "fe80::1")]),
            ("0.0.0.0/0", &[(3, "10.0.0.1"), (4, "10.0.1.1"), (5, "")]),
            ("::/0", &[(3, "fe80::1"), (4, "fe80::2")]),
        ] {
            let body = body(prefix, 119_119, (STATIC, RTN_UNICAST), 7, hops);
            let route = Route::read(&body).unwrap();
            assert_eq!((route.table, route.prefix, route.metric), (119_119, prefix.parse().unwrap(), 7));
            let devices: Vec<u32> = route.hops.iter().map(|hop| hop.device).collect();
            assert_eq!(devices, hops.iter().map(|(device, _)| *device).collect::<Vec<_>>());
            for cut in 0..RTMSG {
                assert_eq!(Route::read(&body[..cut]), None);
            }
            for cut in RTMSG..body.len() {
                // Whatever it comes to, it is no panic.
                let _ = Route::read(&body[..cut]);
            }
        }
    }

    #[test]
    fn gateways_of_either_family() {
        let via = |bytes: &[u8]| Hop { device: 3, gateway: bytes.to_vec() }.gateway();
        let v6: IpAddr = "fe80::1".parse().unwrap();
        let IpAddr::V6(octets) = v6 else { unreachable!() };
        let rtvia = |family: u16| [&family.to_ne_bytes()[..], &octets.octets()].concat();
        assert_eq!(via(&[10, 0, 0, 1]), Some([10, 0, 0, 1].into()));
        assert_eq!(via(&octets.octets()), Some(v6));
        assert_eq!(via(&rtvia(10)), Some(v6));
        assert_eq!((via(&rtvia(28)), via(&[]), via(&[10, 0])), (None, None, None));
    }

    #[test]
    fn which_routes_are_announced() {
        for (case, prefix, protocol, kind, expected) in [
            ("of an operator", "10.1.0.0/16", STATIC, RTN_UNICAST, true),
            ("of ip route without protocol", "10.1.0.0/16", 3, RTN_UNICAST, true),
            ("of Coil", "10.64.0.0/27", 30, RTN_UNICAST, true),
            ("a host's", "192.0.2.7/32", STATIC, RTN_UNICAST, true),
            ("IPv6", "2001:db8:1::/64", STATIC, RTN_UNICAST, true),
            ("IPv6, local use", "fd00:64::/64", STATIC, RTN_UNICAST, true),
            ("ours", "192.0.2.80/32", PROTOCOL, RTN_UNICAST, false),
            ("learnt of a peer", "192.0.2.0/24", multipath::PROTOCOL, RTN_UNICAST, false),
            ("of an address", "10.0.0.0/24", RTPROT_KERNEL, RTN_UNICAST, false),
            ("of a redirect", "192.0.2.7/32", RTPROT_REDIRECT, RTN_UNICAST, false),
            ("of a router's advertisement", "2001:db8::/64", RTPROT_RA, RTN_UNICAST, false),
            ("taken in here", "192.0.2.7/32", STATIC, 2, false),
            ("multicast", "10.1.0.0/16", STATIC, 5, false),
            ("blackhole", "10.1.0.0/16", STATIC, 6, false),
            ("unreachable", "10.1.0.0/16", STATIC, 7, false),
            ("prohibit", "10.1.0.0/16", STATIC, 8, false),
            ("throw", "10.1.0.0/16", STATIC, 9, false),
            ("default", "0.0.0.0/0", STATIC, RTN_UNICAST, false),
            ("default, IPv6", "::/0", STATIC, RTN_UNICAST, false),
            ("loopback", "127.1.0.0/16", STATIC, RTN_UNICAST, false),
            ("link-local", "169.254.1.1/32", STATIC, RTN_UNICAST, false),
            ("groups", "239.0.0.0/8", STATIC, RTN_UNICAST, false),
            ("reserved", "240.0.0.0/4", STATIC, RTN_UNICAST, false),
            ("loopback, IPv6", "::1/128", STATIC, RTN_UNICAST, false),
            ("link-local, IPv6", "fe80::/64", STATIC, RTN_UNICAST, false),
            ("groups, IPv6", "ff02::/16", STATIC, RTN_UNICAST, false),
        ] {
            let route = Route::read(&body(prefix, 119, (protocol, kind), 0, &[(1, "")])).unwrap();
            assert_eq!(route.counts(false), expected, "{case}");
        }
        for default in ["0.0.0.0/0", "::/0"] {
            let route = Route::read(&body(default, 119, (STATIC, RTN_UNICAST), 0, &[(1, "")])).unwrap();
            assert!(route.counts(true), "{default}, asked for");
        }
    }
}
