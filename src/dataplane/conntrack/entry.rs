//! Entries of conntrack as ctnetlink writes them, and filters for them (linux/netfilter/nfnetlink_conntrack.h,
//! net/netfilter/nf_conntrack_netlink.c).

use std::net::{IpAddr, SocketAddr};

use super::super::netlink::{attribute, find, nested};
use super::Stale;
use crate::cluster::Protocol;
use crate::plan::VipPort;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_STATUS_MASK: u16 = 26;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_*` (internal to the kernel, but part of its interface).
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;

/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h): the destination is rewritten.
const IPS_DST_NAT: u32 = 1 << 5;

/// What is read of an entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where the client sends to, and from where the replies come.
    pub way: Stale,
    /// Tuple of the original direction, as it came.
    original: &'a [u8],
    /// Tells this entry from others that the same tuple had or will have.
    id: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads the attributes of an entry; `None` for one that cannot be of ours: another protocol, another zone.
    pub fn parse(attributes: &'a [u8]) -> Option<Self> {
        if find(attributes, CTA_ZONE).is_some() {
            return None;
        }
        let original = find(attributes, CTA_TUPLE_ORIG)?;
        let (protocol, to) = end(original, [CTA_IP_V4_DST, CTA_IP_V6_DST], CTA_PROTO_DST_PORT)?;
        let reply = find(attributes, CTA_TUPLE_REPLY)?;
        let (_, from) = end(reply, [CTA_IP_V4_SRC, CTA_IP_V6_SRC], CTA_PROTO_SRC_PORT)?;
        let vip = VipPort { address: to.ip(), port: to.port(), protocol };
        Some(Self { way: Stale { vip, from }, original, id: find(attributes, CTA_ID)? })
    }

    /// Attributes of a request that deletes this entry and no other.
    pub fn deletion(&self) -> Vec<u8> {
        // Without a tuple the kernel would delete all entries there are.
        [nested(CTA_TUPLE_ORIG, self.original), attribute(CTA_ID, self.id)].concat()
    }
}

/// Protocol, address and port of one end of a tuple.
fn end(tuple: &[u8], [v4, v6]: [u16; 2], port: u16) -> Option<(Protocol, SocketAddr)> {
    let (ip, proto) = (find(tuple, CTA_TUPLE_IP)?, find(tuple, CTA_TUPLE_PROTO)?);
    let address = match find(ip, v4) {
        Some(value) => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        None => IpAddr::from(<[u8; 16]>::try_from(find(ip, v6)?).ok()?),
    };
    let protocol = match find(proto, CTA_PROTO_NUM)? {
        [6] => Protocol::Tcp,
        [17] => Protocol::Udp,
        [132] => Protocol::Sctp,
        _ => return None,
    };
    let port = <[u8; 2]>::try_from(find(proto, port)?).ok()?;
    Some((protocol, SocketAddr::new(address, u16::from_be_bytes(port))))
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// What all wanted entries have in common, besides a rewritten destination: the kernel leaves out the others while it dumps. One that knows less of it
/// tells of more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filter {
    protocol: Option<Protocol>,
    vip: Option<IpAddr>,
    port: Option<u16>,
}

impl Filter {
    /// For entries of one family.
    pub fn of<'a, I: Iterator<Item = &'a Stale>>(each: impl Fn() -> I) -> Self {
        Self {
            protocol: common(each().map(|stale| stale.vip.protocol)),
            vip: common(each().map(|stale| stale.vip.address)),
            port: common(each().map(|stale| stale.vip.port)),
        }
    }

    /// Attributes of the request for a dump. Only the original direction is filtered on: for the reply's the kernel
    /// reads what the flags of the original one name (`ctnetlink_alloc_filter`, Linux 6.1).
    pub fn attributes(&self) -> Vec<u8> {
        let mut flags = 0;
        let mut tuple = Vec::new();
        if let Some(vip) = self.vip {
            flags |= FILTER_IP_DST;
            tuple.extend(match vip {
                IpAddr::V4(vip) => nested(CTA_TUPLE_IP, &attribute(CTA_IP_V4_DST, &vip.octets())),
                IpAddr::V6(vip) => nested(CTA_TUPLE_IP, &attribute(CTA_IP_V6_DST, &vip.octets())),
            });
        }
        if let Some(protocol) = self.protocol {
            flags |= FILTER_PROTO_NUM;
            let mut proto = attribute(CTA_PROTO_NUM, &[number(protocol)]);
            // What a port is depends on the protocol.
            if let Some(port) = self.port {
                flags |= FILTER_PROTO_DST_PORT;
                proto.extend(attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes()));
            }
            tuple.extend(nested(CTA_TUPLE_PROTO, &proto));
        }
        let bit = IPS_DST_NAT.to_be_bytes();
        let mut attributes = [attribute(CTA_STATUS, &bit), attribute(CTA_STATUS_MASK, &bit)].concat();
        if flags != 0 {
            attributes.extend(nested(CTA_TUPLE_ORIG, &tuple));
            let flags = attribute(CTA_FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
            attributes.extend(nested(CTA_FILTER, &flags));
        }
        attributes
    }
}

/// The value that all have, if it is one.
fn common<T: PartialEq>(mut values: impl Iterator<Item = T>) -> Option<T> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stale(protocol: Protocol, vip: &str, from: &str) -> Stale {
        let vip: SocketAddr = vip.parse().unwrap();
        Stale { vip: VipPort { address: vip.ip(), port: vip.port(), protocol }, from: from.parse().unwrap() }
    }

    fn ip(address: IpAddr, [v4, v6]: [u16; 2]) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => attribute(v4, &address.octets()),
            IpAddr::V6(address) => attribute(v6, &address.octets()),
        }
    }

    /// A tuple from one end to the other, in the kernel's order.
    fn tuple(kind: u16, protocol: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let addresses =
            [ip(from.ip(), [CTA_IP_V4_SRC, CTA_IP_V6_SRC]), ip(to.ip(), [CTA_IP_V4_DST, CTA_IP_V6_DST])];
        let ports = [
            attribute(CTA_PROTO_NUM, &[protocol]),
            attribute(CTA_PROTO_SRC_PORT, &from.port().to_be_bytes()),
            attribute(CTA_PROTO_DST_PORT, &to.port().to_be_bytes()),
        ];
        let parts = [nested(CTA_TUPLE_IP, &addresses.concat()), nested(CTA_TUPLE_PROTO, &ports.concat())];
        nested(kind, &parts.concat())
    }

    fn entry(protocol: u8, client: &str, way: &Stale) -> Vec<u8> {
        let client: SocketAddr = client.parse().unwrap();
        [
            tuple(CTA_TUPLE_ORIG, protocol, client, SocketAddr::new(way.vip.address, way.vip.port)),
            tuple(CTA_TUPLE_REPLY, protocol, way.from, client),
            attribute(CTA_STATUS, &IPS_DST_NAT.to_be_bytes()),
            attribute(CTA_ID, &[1, 2, 3, 4]),
        ]
        .concat()
    }

    #[test]
    fn entries_are_read_and_deleted_by_tuple_and_id() {
        for way in [
            stale(Protocol::Tcp, "10.96.0.10:80", "10.244.1.5:8080"),
            stale(Protocol::Udp, "10.96.0.10:53", "10.244.1.5:53"),
            stale(Protocol::Sctp, "[fd00::10]:80", "[fd01::5]:8080"),
        ] {
            let client = if way.vip.address.is_ipv4() { "192.0.2.1:40000" } else { "[2001:db8::1]:40000" };
            let bytes = entry(number(way.vip.protocol), client, &way);
            let read = Entry::parse(&bytes).unwrap();
            assert_eq!(read.way, way);
            let deletion = read.deletion();
            assert_eq!(find(&deletion, CTA_ID), Some(&[1, 2, 3, 4][..]));
            assert_eq!(find(&deletion, CTA_TUPLE_ORIG), find(&bytes, CTA_TUPLE_ORIG));

            let zoned = [bytes, attribute(CTA_ZONE, &[0, 5])].concat();
            assert_eq!(Entry::parse(&zoned), None, "another zone is not ours");
        }
        let way = stale(Protocol::Udp, "10.96.0.10:53", "10.244.1.5:53");
        assert_eq!(Entry::parse(&entry(1, "192.0.2.1:40000", &way)), None, "ICMP has no ports");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_left(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Entry::parse(&bytes);
        }

        #[test]
        fn an_entry_cut_short_is_left(cut in 0_usize..1000) {
            let bytes = entry(17, "192.0.2.1:40000", &stale(Protocol::Udp, "10.96.0.10:53", "10.244.1.5:53"));
            if cut < bytes.len() {
                prop_assert_eq!(Entry::parse(&bytes[..cut]), None);
            }
        }
    }

    #[test]
    fn filters_say_what_all_have_in_common() {
        let dns = stale(Protocol::Udp, "10.96.0.10:53", "10.244.1.5:53");
        let other_endpoint = stale(Protocol::Udp, "10.96.0.10:53", "10.244.1.6:53");
        let over_tcp = stale(Protocol::Tcp, "10.96.0.10:53", "10.244.1.5:53");
        let other_vip = stale(Protocol::Udp, "192.0.2.53:53", "10.244.1.5:53");
        let other_port = stale(Protocol::Udp, "10.96.0.10:54", "10.244.1.5:53");
        let all = FILTER_IP_DST | FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT;
        for (case, wanted, flags) in [
            ("one", vec![dns], all),
            ("two endpoints", vec![dns, other_endpoint], all),
            ("two protocols", vec![dns, over_tcp], FILTER_IP_DST),
            ("two VIPs", vec![dns, other_vip], FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT),
            ("two ports", vec![dns, other_port], FILTER_IP_DST | FILTER_PROTO_NUM),
            ("nothing", vec![over_tcp, other_vip, other_port], 0),
        ] {
            let attributes = Filter::of(|| wanted.iter()).attributes();
            let found = find(&attributes, CTA_FILTER)
                .and_then(|filter| find(filter, CTA_FILTER_ORIG_FLAGS))
                .map_or(0, |flags| u32::from_ne_bytes(flags.try_into().unwrap()));
            assert_eq!(found, flags, "{case}");
            assert_eq!(find(&attributes, CTA_STATUS_MASK), Some(&[0, 0, 0, 32][..]), "{case}");
            assert_eq!(find(&attributes, CTA_TUPLE_ORIG).is_some(), flags != 0, "{case}");
        }
    }
}
