//! Single elements of our nftables sets and maps, over netlink: what a packet would find there, at a cost that does not
//! depend on how many elements there are.

use std::io;
use std::net::IpAddr;

use rustix::io::Errno;

use super::elements::Element;
use super::generation::Nfnetlink;
use super::netlink::{attribute, attributes, name_attribute};
use super::ruleset::TABLE;
use crate::cluster::Protocol;
use crate::plan::VipPort;

/// `NFT_MSG_GETSETELEM` (linux/netfilter/nf_tables.h), as [`super::generation`] counts.
const NFT_MSG_GETSETELEM: u16 = (10 << 8) + 13;
const NLA_F_NESTED: u16 = 0x8000;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// What the kernel finds for an element's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The element; in a set of intervals, one that has the first address of it.
    Held,
    /// Its key, with another value.
    Otherwise,
    /// Nothing.
    Absent,
}

impl Found {
    /// What is wrong with an element that is wanted, or not, and was found so.
    pub fn differs(self, element: &Element, wanted: bool) -> Option<String> {
        let (set, text) = (element.set(), element.text());
        match (self, wanted) {
            (Self::Held, true) | (Self::Absent, false) => None,
            (Self::Absent, true) => Some(format!("nftables' {set} has no element {text}{}", element.means())),
            (Self::Otherwise, true) => {
                Some(format!("nftables' {set} has another value than planned for {text}"))
            }
            (Self::Held | Self::Otherwise, false) => {
                Some(format!("nftables' {set} has element {text}, which is not planned"))
            }
        }
    }
}

/// Looks an element up as a packet would.
///
/// # Errors
/// What the kernel says; that there is no such table or set counts as absent.
pub fn look_up(nfnetlink: &mut Nfnetlink, element: &Element) -> io::Result<Found> {
    let (key, value) = bytes(element);
    let nested = |kind: u16, value: &[u8]| attribute(kind | NLA_F_NESTED, value);
    let key = nested(NFTA_SET_ELEM_KEY, &attribute(NFTA_DATA_VALUE, &key));
    let request = [
        name_attribute(NFTA_SET_ELEM_LIST_TABLE, TABLE),
        name_attribute(NFTA_SET_ELEM_LIST_SET, element.set()),
        nested(NFTA_SET_ELEM_LIST_ELEMENTS, &nested(NFTA_LIST_ELEM, &key)),
    ]
    .concat();
    let mut found = None;
    match nfnetlink.ask(NFT_MSG_GETSETELEM, &request, |answer| found = Some(value_of(answer))) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => return Ok(Found::Absent),
        answered => answered?,
    }
    Ok(match found {
        None => Found::Absent,
        Some(found) if value.is_some() && found != value => Found::Otherwise,
        Some(_) => Found::Held,
    })
}

/// The value of the first element of an answer, if it has one.
fn value_of(answer: &[u8]) -> Option<Vec<u8>> {
    let first = |within, wanted| attributes(within).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    [NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_LIST_ELEM, NFTA_SET_ELEM_DATA, NFTA_DATA_VALUE]
        .into_iter()
        .try_fold(answer, first)
        .map(<[u8]>::to_vec)
}

/// Key and value as the kernel has them: fields of 4 bytes or a multiple, numbers in network order, marks in the host's.
fn bytes(element: &Element) -> (Vec<u8>, Option<Vec<u8>>) {
    match element {
        Element::Node(address) | Element::Taken(address) | Element::Own(address) => {
            (address_bytes(*address), None)
        }
        Element::Vip(net) | Element::Pods(net) | Element::Client(net) => (address_bytes(net.addr()), None),
        Element::Hairpin(address) => (address_bytes(*address).repeat(2), None),
        Element::Direct(endpoint, vip) => ([address_bytes(*endpoint), address_bytes(*vip)].concat(), None),
        Element::NodePort(vip) | Element::Closed(vip) | Element::Dropped(vip) | Element::Restricted(vip) => {
            (vip_bytes(vip), None)
        }
        Element::Closing(vip, number) => ([number.to_ne_bytes().to_vec(), vip_bytes(vip)].concat(), None),
        Element::Internal(vip, mark) => (vip_bytes(vip), Some(mark.to_ne_bytes().into())),
        Element::Source(vip, net) => ([vip_bytes(vip), address_bytes(net.addr())].concat(), None),
        Element::Mark(outer, mark) => (address_bytes(*outer), Some(mark.to_ne_bytes().into())),
        Element::Endpoint(mark, vip, to) => {
            let key = [
                mark.to_ne_bytes().to_vec(),
                protocol_bytes(vip.protocol),
                address_bytes(vip.address),
                port_bytes(vip.port),
            ];
            (key.concat(), Some([address_bytes(to.ip()), port_bytes(to.port())].concat()))
        }
    }
}

fn vip_bytes(vip: &VipPort) -> Vec<u8> {
    [address_bytes(vip.address), protocol_bytes(vip.protocol), port_bytes(vip.port)].concat()
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// `inet_proto` (IANA's protocol numbers).
fn protocol_bytes(protocol: Protocol) -> Vec<u8> {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    vec![number, 0, 0, 0]
}

fn port_bytes(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::super::nft;
    use super::super::ruleset::Rules;
    use super::*;
    use crate::dataplane::namespace::in_namespace;

    #[test]
    fn keys_and_values_are_padded_field_by_field() {
        let vip = VipPort { address: [10, 96, 0, 80].into(), port: 80, protocol: Protocol::Sctp };
        let (key, value) =
            bytes(&Element::Endpoint(0x2001, vip, "10.244.1.10:8080".parse().expect("an address")));
        let expected =
            [&0x2001_u32.to_ne_bytes()[..], &[132, 0, 0, 0], &[10, 96, 0, 80], &[0, 80, 0, 0]].concat();
        assert_eq!(key, expected);
        assert_eq!(value, Some(vec![10, 244, 1, 10, 0x1f, 0x90, 0, 0]));
    }

    #[test]
    fn the_value_is_found_in_an_answer_and_nothing_short_is_read() {
        let element = [
            attribute(NFTA_SET_ELEM_KEY, &attribute(NFTA_DATA_VALUE, b"key!")),
            attribute(NFTA_SET_ELEM_DATA, &attribute(NFTA_DATA_VALUE, b"mark")),
        ];
        let list = attribute(NFTA_SET_ELEM_LIST_ELEMENTS, &attribute(NFTA_LIST_ELEM, &element.concat()));
        let answer = [name_attribute(NFTA_SET_ELEM_LIST_TABLE, TABLE), list].concat();
        assert_eq!(value_of(&answer), Some(b"mark".to_vec()));
        for cut in 0..answer.len() {
            assert_eq!(value_of(&answer[..cut]), None, "{cut} bytes");
        }
    }

    #[test]
    fn the_kernel_finds_what_a_packet_would() {
        let test = || {
            let mask = crate::config::MarkMask::default();
            nft::transact(&Rules::new(mask, 1500, &[], false).transaction()).unwrap();
            let vip = |address: &str| VipPort {
                address: address.parse().unwrap(),
                port: 80,
                protocol: Protocol::Tcp,
            };
            let mut nfnetlink = Nfnetlink::open().unwrap();
            for (address, endpoint, net) in [
                ("10.96.0.80", "10.244.1.10", "10.96.0.0/16"),
                ("fd00:96::80", "fd00:244::a", "fd00:96::/64"),
            ] {
                let vip = vip(address);
                let endpoint: IpAddr = endpoint.parse().unwrap();
                let net: ipnet::IpNet = net.parse().unwrap();
                let elements = [
                    Element::Node(endpoint),
                    Element::Vip(net),
                    Element::Own(endpoint),
                    Element::Hairpin(endpoint),
                    Element::NodePort(vip),
                    Element::Restricted(vip),
                    Element::Source(vip, net),
                    Element::Mark(endpoint, 0x2001),
                    Element::Endpoint(0x2001, vip, std::net::SocketAddr::new(endpoint, 8080)),
                ];
                for element in &elements {
                    assert_eq!(look_up(&mut nfnetlink, element).unwrap(), Found::Absent, "{element:?}");
                }
                nft::transact(&nft::changes([], &elements)).unwrap();
                for element in &elements {
                    assert_eq!(look_up(&mut nfnetlink, element).unwrap(), Found::Held, "{element:?}");
                }
                for other in [
                    Element::Mark(endpoint, 0x2002),
                    Element::Endpoint(0x2001, vip, std::net::SocketAddr::new(endpoint, 8081)),
                ] {
                    assert_eq!(look_up(&mut nfnetlink, &other).unwrap(), Found::Otherwise, "{other:?}");
                }
            }
        };
        in_namespace(test);
    }
}
