//! IPv4 prefixes by way of IPv6 next hops (RFC 8950), and link-local ones beside others (RFC 2545).

use std::net::{IpAddr, Ipv6Addr};

use super::EBGP;
use super::pack::{hosts, unpack};
use crate::Family;
use crate::wire::pack::Announcement;
use crate::wire::{AsPath, Capability, ExtendedNextHop, Message, MpReach, Origin, PathAttributes, WireError};

const GLOBAL: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn attributes() -> PathAttributes {
    PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(AsPath::sequence(vec![64512])),
        ..PathAttributes::default()
    }
}

/// What a peer makes of an announcement: next hop and link-local address.
fn told(
    family: Family,
    next_hop: IpAddr,
    link_local: Option<Ipv6Addr>,
) -> Option<(IpAddr, Option<Ipv6Addr>)> {
    let announcement = Announcement::of_family(family, attributes(), next_hop, link_local, EBGP).unwrap();
    let mut out = Vec::new();
    assert_eq!(announcement.write(&mut hosts(family, 3).peekable(), &mut out), 3);
    let (_, mut updates) = unpack(&out, EBGP);
    assert_eq!((updates.len(), updates[0].reachable().count()), (1, 3));
    match updates.remove(0).mp_reach? {
        MpReach::Ipv4 { next_hop, .. } => Some((next_hop, None)),
        MpReach::Ipv6 { next_hop, link_local, .. } => Some((next_hop.into(), link_local)),
    }
}

#[test]
fn announced_as_they_are_read() {
    let [v4, v6] = Family::ALL;
    let global = IpAddr::from(GLOBAL);
    assert_eq!(told(v4, [10, 0, 0, 1].into(), None), None, "NEXT_HOP");
    assert_eq!(told(v4, global, None), Some((global, None)));
    assert_eq!(told(v4, global, Some(LINK_LOCAL)), Some((global, None)));
    assert_eq!(told(v4, LINK_LOCAL.into(), Some(LINK_LOCAL)), Some((LINK_LOCAL.into(), None)));
    assert_eq!(told(v6, global, None), Some((global, None)));
    assert_eq!(told(v6, global, Some(LINK_LOCAL)), Some((global, Some(LINK_LOCAL))));
}

/// MP_REACH_NLRI of 10.0.0.0/8 with such a next hop.
fn read(next_hop: &[u8]) -> Result<Option<IpAddr>, WireError> {
    let length = u8::try_from(next_hop.len()).unwrap();
    let value = [&[0, 1, 1, length][..], next_hop, &[0, 8, 10]].concat();
    let reach = [&[0x80, 14, u8::try_from(value.len()).unwrap()][..], &value].concat();
    let attributes = [&[0x40, 1, 1, 0][..], &[0x40, 2, 0], &reach].concat();
    let body = [&[0, 0, 0, u8::try_from(attributes.len()).unwrap()][..], &attributes].concat();
    let length = u16::try_from(body.len() + 19).unwrap().to_be_bytes();
    let message = [&[0xff; 16][..], &length, &[2], &body].concat();
    Message::decode(&message, EBGP).map(|message| match message {
        Message::Update(update) => match update.mp_reach {
            Some(MpReach::Ipv4 { next_hop, .. }) => Some(next_hop),
            _ => None,
        },
        _ => None,
    })
}

#[test]
fn next_hops_of_every_length() {
    let (global, link_local) = (GLOBAL.octets(), LINK_LOCAL.octets());
    for (name, next_hop, expected) in [
        ("IPv4", vec![10, 0, 0, 1], IpAddr::from([10, 0, 0, 1])),
        ("global", global.to_vec(), GLOBAL.into()),
        ("both", [global, link_local].concat(), GLOBAL.into()),
        ("link-local alone", link_local.to_vec(), LINK_LOCAL.into()),
        ("link-local twice", [link_local, link_local].concat(), LINK_LOCAL.into()),
        ("no global", [[0; 16], link_local].concat(), LINK_LOCAL.into()),
    ] {
        assert_eq!(read(&next_hop), Ok(Some(expected)), "{name}");
    }
    for length in [0, 1, 5, 15, 17, 31, 33, 48] {
        assert!(read(&vec![1; length]).is_err(), "{length}");
    }
}

#[test]
fn capability() {
    let capability = Capability::ExtendedNextHop(vec![ExtendedNextHop::IPV4_BY_IPV6]);
    let bytes = capability.to_bytes();
    assert_eq!(bytes, [5, 6, 0, 1, 0, 1, 0, 2]);
    assert_eq!(Capability::from_code_and_value(5, &bytes[2..]), Some(capability));
    assert_eq!(Capability::from_code_and_value(5, &bytes[2..7]), None, "cut");
}
