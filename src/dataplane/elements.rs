//! The elements of our nftables sets and maps: typed, as nft text, and read back from nft's JSON.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

use crate::cluster::Protocol;
use crate::plan::VipPort;

/// One element. Its set follows from its kind and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// `nodes`: a permitted tunnel source.
    Node(IpAddr),
    /// `vips`: a VIP, or a service CIDR.
    Vip(IpNet),
    /// `taken`: an address of this host that others gave it, where VIPs are: it stays theirs.
    Taken(IpAddr),
    /// `pods`: where tunnelled packets may come for that no map knows (own pod CIDRs, stand-ins).
    Pods(IpNet),
    /// `own`: an endpoint of this node, whose replies pass this node anyhow.
    Own(IpAddr),
    /// `hairpin`: an endpoint of this node, with itself.
    Hairpin(IpAddr),
    /// `nodeports`: a virtual server on an address of this node.
    NodePort(VipPort),
    /// `closed`: a node port without destinations.
    Closed(VipPort),
    /// `dropped`: a virtual server that takes no new connections and does not say so.
    Dropped(VipPort),
    /// `closing`: a virtual server (its own number for clients within the cluster, shifted as in a mark; else 0) that takes
    /// no new connections, though established ones may go on.
    Closing(VipPort, u32),
    /// `clients`: where clients within the cluster are.
    Client(IpNet),
    /// `internal`: a virtual server → mark of what clients within the cluster send it.
    Internal(VipPort, u32),
    /// `restricted`: a virtual server that not everyone may reach.
    Restricted(VipPort),
    /// `sources`: who may reach it.
    Source(VipPort, IpNet),
    /// `mark`: destination of the outer packet → mark.
    Mark(IpAddr, u32),
    /// `direct`: an endpoint and a VIP whose outer packets pass to the pod, which takes them in itself; an endpoint with
    /// itself: but not packets from it.
    Direct(IpAddr, IpAddr),
    /// `endpoints`: mark and destination of the inner packet → endpoint.
    Endpoint(u32, VipPort, SocketAddr),
}

impl Element {
    /// Name of the set or map that holds it.
    pub fn set(&self) -> &'static str {
        let (names, v4) = match self {
            Self::Node(address) => (["nodes4", "nodes6"], address.is_ipv4()),
            Self::Vip(net) => (["vips4", "vips6"], net.addr().is_ipv4()),
            Self::Taken(address) => (["taken4", "taken6"], address.is_ipv4()),
            Self::Pods(net) => (["pods4", "pods6"], net.addr().is_ipv4()),
            Self::Own(address) => (["own4", "own6"], address.is_ipv4()),
            Self::Hairpin(address) => (["hairpin4", "hairpin6"], address.is_ipv4()),
            Self::NodePort(vip) => (["nodeports4", "nodeports6"], vip.address.is_ipv4()),
            Self::Closed(vip) => (["closed4", "closed6"], vip.address.is_ipv4()),
            Self::Dropped(vip) => (["dropped4", "dropped6"], vip.address.is_ipv4()),
            Self::Closing(vip, _) => (["closing4", "closing6"], vip.address.is_ipv4()),
            Self::Client(net) => (["clients4", "clients6"], net.addr().is_ipv4()),
            Self::Internal(vip, _) => (["internal4", "internal6"], vip.address.is_ipv4()),
            Self::Restricted(vip) => (["restricted4", "restricted6"], vip.address.is_ipv4()),
            Self::Source(vip, _) => (["sources4", "sources6"], vip.address.is_ipv4()),
            Self::Mark(outer, _) => (["mark4", "mark6"], outer.is_ipv4()),
            Self::Direct(endpoint, _) => (["direct4", "direct6"], endpoint.is_ipv4()),
            Self::Endpoint(_, vip, _) => (["endpoints4", "endpoints6"], vip.address.is_ipv4()),
        };
        names[usize::from(!v4)]
    }

    /// Its key in nft's syntax: enough to delete it.
    pub fn key(&self) -> String {
        match self {
            Self::Node(address) | Self::Taken(address) | Self::Own(address) | Self::Mark(address, _) => {
                address.to_string()
            }
            Self::Vip(net) | Self::Pods(net) | Self::Client(net) => net_text(*net),
            Self::Hairpin(address) => format!("{address} . {address}"),
            Self::Direct(endpoint, vip) => format!("{endpoint} . {}", raw_text(*vip)),
            Self::NodePort(vip)
            | Self::Closed(vip)
            | Self::Dropped(vip)
            | Self::Internal(vip, _)
            | Self::Restricted(vip) => vip_text(vip),
            Self::Closing(vip, mark) => format!("{mark} . {}", vip_text(vip)),
            Self::Source(vip, net) => format!("{} . {}", vip_text(vip), net_text(*net)),
            Self::Endpoint(mark, vip, _) => {
                format!("{mark} . {} . {} . {}", protocol_text(vip.protocol), vip.address, vip.port)
            }
        }
    }

    /// Key and, for a map, value in nft's syntax.
    pub fn text(&self) -> String {
        match self {
            Self::Mark(_, mark) | Self::Internal(_, mark) => format!("{} : {mark}", self.key()),
            Self::Endpoint(_, _, to) => format!("{} : {} . {}", self.key(), to.ip(), to.port()),
            _ => self.key(),
        }
    }

    /// What its absence comes to, in words to put behind it; empty where that is plain.
    pub fn means(&self) -> &'static str {
        match self {
            Self::Vip(_) => ": packets for the VIP are tracked, and not refused where nothing listens",
            Self::NodePort(_) => ": packets for the node port are tracked, and connections may break",
            Self::Closed(_) => ": the node's own listener answers there, or nobody as the kernel sees fit",
            Self::Dropped(_) => ": it is refused instead of dropped",
            Self::Closing(..) => ": while its last endpoints terminate, new connections are refused late",
            Self::Client(_) | Self::Internal(..) => {
                ": clients within the cluster get the endpoints of those outside"
            }
            Self::Restricted(_) => ": everyone may reach it",
            Self::Source(..) => ": these clients are kept out",
            Self::Mark(..) => ": what is tunnelled to this endpoint is not taken in here",
            Self::Endpoint(..) => ": what is tunnelled to this endpoint is refused here",
            Self::Direct(..) => ": this node takes in what its pod is to take in itself",
            Self::Own(_) => ": its clients seem to be this node",
            Self::Hairpin(_) => ": a pod that reaches itself gets no answer",
            Self::Node(_) | Self::Taken(_) | Self::Pods(_) => "",
        }
    }

    /// Reads one member of an `elem` list of `nft -j list table`; `None` for what we could not have written.
    pub fn parse(set: &str, value: &Value) -> Option<Self> {
        let name = set.strip_suffix(['4', '6'])?;
        Some(match name {
            "nodes" => Self::Node(address(value)?),
            "vips" => Self::Vip(net(value)?),
            "taken" => Self::Taken(address(value)?),
            "pods" => Self::Pods(net(value)?),
            "own" => Self::Own(address(value)?),
            "hairpin" => {
                let [one, two] = concat(value)?;
                (one == two).then_some(())?;
                Self::Hairpin(address(one)?)
            }
            "nodeports" => Self::NodePort(vip(concat(value)?)?),
            "closed" => Self::Closed(vip(concat(value)?)?),
            "dropped" => Self::Dropped(vip(concat(value)?)?),
            "closing" => {
                let [mark, ip, protocol, port] = concat(value)?;
                Self::Closing(vip([ip, protocol, port])?, u32::try_from(mark.as_u64()?).ok()?)
            }
            "clients" => Self::Client(net(value)?),
            "internal" => {
                let [key, mark] = pair(value)?;
                Self::Internal(vip(concat(key)?)?, u32::try_from(mark.as_u64()?).ok()?)
            }
            "restricted" => Self::Restricted(vip(concat(value)?)?),
            "sources" => {
                let [ip, protocol, port, source] = concat(value)?;
                Self::Source(vip([ip, protocol, port])?, net(source)?)
            }
            "mark" => {
                let [outer, mark] = pair(value)?;
                Self::Mark(address(outer)?, u32::try_from(mark.as_u64()?).ok()?)
            }
            "direct" => {
                let [endpoint, vip] = concat(value)?;
                let endpoint = address(endpoint)?;
                Self::Direct(endpoint, raw_address(vip, endpoint)?)
            }
            "endpoints" => {
                let [key, to] = pair(value)?;
                let [mark, protocol, ip, port] = concat(key)?;
                let [to, to_port] = concat(to)?;
                Self::Endpoint(
                    u32::try_from(mark.as_u64()?).ok()?,
                    vip([ip, protocol, port])?,
                    SocketAddr::new(address(to)?, number(to_port)?),
                )
            }
            _ => return None,
        })
    }
}

fn vip_text(vip: &VipPort) -> String {
    format!("{} . {} . {}", vip.address, protocol_text(vip.protocol), vip.port)
}

/// An address as nft has it where a set is of raw payload: a number.
fn raw_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:#010x}", address.to_bits()),
        IpAddr::V6(address) => format!("{:#034x}", address.to_bits()),
    }
}

/// Reads it, of the family of `like`: JSON has a number where it fits, else hexadecimal text.
fn raw_address(value: &Value, like: IpAddr) -> Option<IpAddr> {
    let number = match value {
        Value::String(text) => u128::from_str_radix(text.strip_prefix("0x")?, 16).ok()?,
        other => other.as_u64()?.into(),
    };
    Some(match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(number).ok()?).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(number).into(),
    })
}

/// A prefix; a host prefix without its length, since nft lists it so.
fn net_text(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

pub(super) fn protocol_text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

pub(super) fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn net(value: &Value) -> Option<IpNet> {
    match value.get("prefix") {
        Some(prefix) => {
            let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
            IpNet::new(address(prefix.get("addr")?)?, length).ok()
        }
        None => address(value).map(IpNet::from),
    }
}

pub(super) fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

pub(super) fn vip([ip, protocol, port]: [&Value; 3]) -> Option<VipPort> {
    let protocol = match protocol.as_str()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some(VipPort { address: address(ip)?, protocol, port: number(port)? })
}

pub(super) fn concat<const N: usize>(value: &Value) -> Option<[&Value; N]> {
    members(value.get("concat")?)
}

pub(super) fn pair(value: &Value) -> Option<[&Value; 2]> {
    members(value)
}

fn members<const N: usize>(value: &Value) -> Option<[&Value; N]> {
    value.as_array()?.iter().collect::<Vec<_>>().try_into().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vip(address: &str, protocol: Protocol, port: u16) -> VipPort {
        VipPort { address: address.parse().unwrap(), protocol, port }
    }

    #[test]
    fn text_set_and_json_of_every_kind() {
        let web = vip("10.96.0.80", Protocol::Tcp, 80);
        let dns = vip("fd00:96::a", Protocol::Udp, 53);
        let prefix = |addr: &str, len: u8| json!({"prefix": {"addr": addr, "len": len}});
        let cases = [
            (Element::Node("10.0.0.1".parse().unwrap()), "nodes4", "10.0.0.1", json!("10.0.0.1")),
            (Element::Vip("10.96.0.0/16".parse().unwrap()), "vips4", "10.96.0.0/16", prefix("10.96.0.0", 16)),
            (Element::Vip("fd00::1/128".parse().unwrap()), "vips6", "fd00::1", json!("fd00::1")),
            (Element::Pods("240.0.0.0/4".parse().unwrap()), "pods4", "240.0.0.0/4", prefix("240.0.0.0", 4)),
            (Element::Own("fd00::2".parse().unwrap()), "own6", "fd00::2", json!("fd00::2")),
            (
                Element::Hairpin("10.244.0.1".parse().unwrap()),
                "hairpin4",
                "10.244.0.1 . 10.244.0.1",
                json!({"concat": ["10.244.0.1", "10.244.0.1"]}),
            ),
            (
                Element::NodePort(web),
                "nodeports4",
                "10.96.0.80 . tcp . 80",
                json!({"concat": ["10.96.0.80", "tcp", 80]}),
            ),
            (
                Element::Closed(web),
                "closed4",
                "10.96.0.80 . tcp . 80",
                json!({"concat": ["10.96.0.80", "tcp", 80]}),
            ),
            (
                Element::Dropped(dns),
                "dropped6",
                "fd00:96::a . udp . 53",
                json!({"concat": ["fd00:96::a", "udp", 53]}),
            ),
            (
                Element::Closing(web, 7),
                "closing4",
                "7 . 10.96.0.80 . tcp . 80",
                json!({"concat": [7, "10.96.0.80", "tcp", 80]}),
            ),
            (
                Element::Client("10.244.0.0/24".parse().unwrap()),
                "clients4",
                "10.244.0.0/24",
                prefix("10.244.0.0", 24),
            ),
            (
                Element::Internal(web, 0x2007),
                "internal4",
                "10.96.0.80 . tcp . 80 : 8199",
                json!([{"concat": ["10.96.0.80", "tcp", 80]}, 8199]),
            ),
            (
                Element::Restricted(dns),
                "restricted6",
                "fd00:96::a . udp . 53",
                json!({"concat": ["fd00:96::a", "udp", 53]}),
            ),
            (
                Element::Source(web, "203.0.113.0/24".parse().unwrap()),
                "sources4",
                "10.96.0.80 . tcp . 80 . 203.0.113.0/24",
                json!({"concat": ["10.96.0.80", "tcp", 80, prefix("203.0.113.0", 24)]}),
            ),
            (
                Element::Mark("10.244.0.1".parse().unwrap(), 0x2001),
                "mark4",
                "10.244.0.1 : 8193",
                json!(["10.244.0.1", 8193]),
            ),
            (
                Element::Direct("10.244.0.1".parse().unwrap(), "192.0.2.80".parse().unwrap()),
                "direct4",
                "10.244.0.1 . 0xc0000250",
                json!({"concat": ["10.244.0.1", 3_221_226_064_u32]}),
            ),
            (
                Element::Direct("fd00::5".parse().unwrap(), "2001:db8:2::80".parse().unwrap()),
                "direct6",
                "fd00::5 . 0x20010db8000200000000000000000080",
                json!({"concat": ["fd00::5", "0x20010db8000200000000000000000080"]}),
            ),
            (
                Element::Endpoint(0x2001, dns, "[fd00::5]:5353".parse().unwrap()),
                "endpoints6",
                "8193 . udp . fd00:96::a . 53 : fd00::5 . 5353",
                json!([{"concat": [8193, "udp", "fd00:96::a", 53]}, {"concat": ["fd00::5", 5353]}]),
            ),
        ];
        for (element, set, text, listed) in cases {
            assert_eq!((element.set(), element.text().as_str()), (set, text));
            assert_eq!(Element::parse(set, &listed), Some(element), "{listed}");
        }
    }

    #[test]
    fn what_we_did_not_write_is_not_understood() {
        for (set, value) in [
            ("nodes4", json!(7)),
            ("other", json!("10.0.0.1")),
            ("hairpin4", json!({"concat": ["10.0.0.1", "10.0.0.2"]})),
            ("nodeports4", json!({"concat": ["10.0.0.1", "icmp", 80]})),
            ("nodeports4", json!({"concat": ["10.0.0.1", "tcp", 80_000]})),
            ("vips4", json!({"prefix": {"addr": "10.0.0.0", "len": 99}})),
            ("vips4", json!({"range": ["10.0.0.0", "10.0.0.9"]})),
            ("mark4", json!(["10.0.0.1"])),
        ] {
            assert_eq!(Element::parse(set, &value), None, "{set} {value}");
        }
    }
}
