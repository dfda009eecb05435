//! UPDATEs as full as they get.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{EBGP, frame};
use crate::wire::pack::{Announcement, write_end_of_rib, write_withdrawal};
use crate::wire::{AsPath, Context, Message, Nlri, Origin, PathAttributes, Update};
use crate::{Community, Families, Family};

/// `count` host prefixes.
pub(super) fn hosts(family: Family, count: u32) -> impl Iterator<Item = IpNet> {
    (0..count).map(move |n| {
        let address: IpAddr = match family {
            Family::Ipv4Unicast => std::net::Ipv4Addr::from(0x0a00_0000 + n).into(),
            Family::Ipv6Unicast => std::net::Ipv6Addr::from(0xfd00 << 112 | u128::from(n)).into(),
        };
        address.into()
    })
}

/// As [`hosts`], named as `context` names them.
fn paths(family: Family, count: u32, context: Context) -> impl Iterator<Item = Nlri> {
    let path_id = if context.add_path.contains(family) { 7 } else { 0 };
    hosts(family, count).map(move |prefix| Nlri { prefix, path_id })
}

/// Reads packed messages back: how long each is, and all that they tell.
pub(super) fn unpack(mut bytes: &[u8], context: Context) -> (Vec<usize>, Vec<Update>) {
    let (mut lengths, mut updates) = (Vec::new(), Vec::new());
    while let Some(length) = frame(bytes).unwrap() {
        let Ok(Message::Update(update)) = Message::decode(&bytes[..length], context) else {
            panic!("not an UPDATE")
        };
        assert_eq!(update.malformed, []);
        lengths.push(length);
        updates.push(update);
        bytes = &bytes[length..];
    }
    (lengths, updates)
}

/// A peer that takes extended messages (RFC 8654).
const EXTENDED: Context = Context { extended_messages: true, ..EBGP };
/// A peer that takes several paths to each prefix (RFC 7911): 4 bytes more for each.
const PATHS: Context = Context { add_path: Families::ALL, ..EBGP };

/// Messages are as full as they get: the next prefix would not have fitted, and the numbers are the most that 4096
/// bytes hold, or 65535 to a peer that takes these.
#[test]
fn packed_to_the_limit() {
    let attributes = PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(AsPath::sequence(vec![64512])),
        ..PathAttributes::default()
    };
    // Header 19, lengths 4, ORIGIN 4, AS_PATH 9: 36. IPv4: NEXT_HOP 7, 5 for each; IPv6: MP_REACH_NLRI 4 + 21, 17 each.
    for (family, context, next_hop, most) in [
        (Family::Ipv4Unicast, EBGP, "10.0.0.1", (4096 - 43) / 5),
        (Family::Ipv6Unicast, EBGP, "fd00::1", (4096 - 61) / 17),
        (Family::Ipv4Unicast, EXTENDED, "10.0.0.1", (65535 - 43) / 5),
        (Family::Ipv6Unicast, EXTENDED, "fd00::1", (65535 - 61) / 17),
        (Family::Ipv4Unicast, PATHS, "10.0.0.1", (4096 - 43) / 9),
        (Family::Ipv6Unicast, PATHS, "fd00::1", (4096 - 61) / 21),
    ] {
        let announcement =
            Announcement::of_family(family, attributes.clone(), next_hop.parse().unwrap(), None, context)
                .unwrap();
        let mut prefixes = paths(family, 20_000, context).peekable();
        let (mut out, mut counts) = (Vec::new(), Vec::new());
        while prefixes.peek().is_some() {
            counts.push(announcement.write(&mut prefixes, &mut out));
        }
        assert_eq!(counts.len(), 20_000usize.div_ceil(most), "{family}");
        assert_eq!(counts[0], most, "{family}");
        let (lengths, updates) = unpack(&out, context);
        assert_eq!(lengths.len(), counts.len());
        assert!(lengths.iter().all(|&length| length <= context.max_length()));
        let told: Vec<Nlri> = updates.iter().flat_map(Update::reachable).collect();
        assert!(told.into_iter().eq(paths(family, 20_000, context)), "{family}");
    }
}

#[test]
fn withdrawals_packed_to_the_limit() {
    // Header 19, lengths 4; IPv6: MP_UNREACH_NLRI 4 + 3.
    for (family, context, most) in [
        (Family::Ipv4Unicast, EBGP, (4096 - 23) / 5),
        (Family::Ipv6Unicast, EBGP, (4096 - 30) / 17),
        (Family::Ipv4Unicast, EXTENDED, (65535 - 23) / 5),
        (Family::Ipv6Unicast, EXTENDED, (65535 - 30) / 17),
        (Family::Ipv4Unicast, PATHS, (4096 - 23) / 9),
        (Family::Ipv6Unicast, PATHS, (4096 - 30) / 21),
    ] {
        let mut prefixes = paths(family, 20_000, context).peekable();
        let (mut out, mut counts) = (Vec::new(), Vec::new());
        while prefixes.peek().is_some() {
            counts.push(write_withdrawal(family, context, &mut prefixes, &mut out));
        }
        assert_eq!((counts.len(), counts[0]), (20_000usize.div_ceil(most), most), "{family}");
        let told: Vec<Nlri> = unpack(&out, context).1.iter().flat_map(Update::unreachable).collect();
        assert!(told.into_iter().eq(paths(family, 20_000, context)), "{family}");
    }
}

#[test]
fn end_of_rib_markers() {
    for family in Family::ALL {
        let mut out = Vec::new();
        write_end_of_rib(family, &mut out);
        let (_, updates) = unpack(&out, EBGP);
        assert_eq!(updates.iter().map(Update::end_of_rib).collect::<Vec<_>>(), [Some(family)]);
    }
}

/// Attributes that leave no room are refused, not cut.
#[test]
fn too_many_communities_are_refused() {
    let with = |context, count: u32| {
        let communities = (0..count).map(Community).collect();
        let attributes = PathAttributes { communities, ..PathAttributes::default() };
        Announcement::of_family(Family::Ipv6Unicast, attributes, "fd00::1".parse().unwrap(), None, context)
            .map(|a| {
                let mut out = Vec::new();
                assert_eq!(a.write(&mut hosts(Family::Ipv6Unicast, 1).peekable(), &mut out), 1);
                out.len()
            })
    };
    // 19 + 4 + (4 + 21) + 17 + 4 + 4 × 1006 = 4093.
    assert_eq!(with(EBGP, 1006).ok(), Some(4093));
    assert!(with(EBGP, 1007).is_err());
    assert_eq!(with(EXTENDED, 16_366).ok(), Some(65_533));
    assert!(with(EXTENDED, 16_367).is_err());
}
