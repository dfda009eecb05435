//! Round trips, hostile bytes, and what each defect is answered with.

mod next_hop;

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof, proptest};

use super::pack::{Announcement, write_end_of_rib, write_withdrawal};
use super::{
    AS_TRANS, AsPath, AttributeProblem, Capability, Context, GracefulRestartCapability,
    GracefulRestartFamily, Handling, Message, MpReach, MpUnreach, Notification, Open, Origin, PathAttributes,
    RawAttribute, RouteRefresh, Segment, SegmentKind, TooLong, Update, frame,
};
use crate::{Community, Family, LargeCommunity};

const EBGP: Context = Context { four_octet_asn: true, ibgp: false, extended_messages: false };
const IBGP: Context = Context { four_octet_asn: true, ibgp: true, extended_messages: false };
const OLD: Context = Context { four_octet_asn: false, ibgp: false, extended_messages: false };

fn v4_nets() -> impl Strategy<Value = Vec<Ipv4Net>> {
    let net = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(a, l)| Ipv4Net::new(a.into(), l).unwrap().trunc());
    vec(net, 0..20)
}

fn v6_nets() -> impl Strategy<Value = Vec<Ipv6Net>> {
    let net = (any::<[u8; 16]>(), 0..=128u8).prop_map(|(a, l)| Ipv6Net::new(a.into(), l).unwrap().trunc());
    vec(net, 0..20)
}

fn capability() -> impl Strategy<Value = Capability> {
    let family = (any::<u16>(), any::<u8>(), any::<bool>())
        .prop_map(|(afi, safi, forwarding)| GracefulRestartFamily { afi, safi, forwarding });
    let restart = (any::<bool>(), any::<bool>(), 0..4096u16, vec(family, 0..4)).prop_map(
        |(restarting, notification, restart_time, families)| {
            let capability = GracefulRestartCapability { restarting, notification, restart_time, families };
            Capability::GracefulRestart(capability)
        },
    );
    prop_oneof![
        (any::<u16>(), any::<u8>()).prop_map(|(afi, safi)| Capability::Multiprotocol { afi, safi }),
        Just(Capability::RouteRefresh),
        Just(Capability::ExtendedMessage),
        Just(Capability::EnhancedRouteRefresh),
        any::<u32>().prop_map(Capability::FourOctetAsn),
        restart,
        (100..=255u8, vec(any::<u8>(), 0..=255))
            .prop_map(|(code, value)| Capability::Unknown { code, value }),
    ]
}

fn open() -> impl Strategy<Value = Open> {
    (any::<u16>(), any::<u16>(), any::<[u8; 4]>(), vec(capability(), 0..10)).prop_map(
        |(my_as, hold_time, router_id, capabilities)| Open {
            my_as,
            hold_time,
            router_id: router_id.into(),
            capabilities,
        },
    )
}

fn as_path() -> impl Strategy<Value = AsPath> {
    let kind = prop_oneof![
        Just(SegmentKind::Set),
        Just(SegmentKind::Sequence),
        Just(SegmentKind::ConfedSequence),
        Just(SegmentKind::ConfedSet),
    ];
    let segment = (kind, vec(any::<u32>(), 1..8)).prop_map(|(kind, asns)| Segment { kind, asns });
    vec(segment, 0..4).prop_map(|segments| AsPath { segments })
}

/// As an iBGP peer may send them: all mandatory ones there.
fn attributes() -> impl Strategy<Value = PathAttributes> {
    let origin = prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)];
    let large = any::<[u32; 3]>().prop_map(|[global, data1, data2]| LargeCommunity { global, data1, data2 });
    let raw = (prop_oneof![Just(0x80u8), Just(0xc0), Just(0xe0)], vec(any::<u8>(), 0..300));
    (
        (origin, as_path(), any::<[u8; 4]>()),
        (option::of(any::<u32>()), option::of(any::<u32>())),
        (vec(any::<u32>().prop_map(Community), 0..100), vec(large, 0..10)),
        vec(raw, 0..3),
    )
        .prop_map(
            |((origin, as_path, next_hop), (med, local_pref), (communities, large_communities), raws)| {
                let raws = raws.into_iter().zip(100..);
                PathAttributes {
                    origin: Some(origin),
                    as_path: Some(as_path),
                    next_hop: Some(next_hop.into()),
                    med,
                    local_pref,
                    communities,
                    large_communities,
                    other: raws.map(|((flags, value), code)| RawAttribute { flags, code, value }).collect(),
                }
            },
        )
}

fn update() -> impl Strategy<Value = Update> {
    let reach = prop_oneof![
        (any::<[u8; 4]>(), v4_nets())
            .prop_map(|(hop, prefixes)| MpReach::Ipv4 { next_hop: hop.into(), prefixes }),
        (any::<[u8; 16]>(), v4_nets())
            .prop_map(|(hop, prefixes)| MpReach::Ipv4 { next_hop: hop.into(), prefixes }),
        (any::<[u8; 16]>(), option::of(any::<[u8; 16]>()), v6_nets()).prop_map(
            |(hop, link_local, prefixes)| {
                MpReach::Ipv6 { next_hop: hop.into(), link_local: link_local.map(Into::into), prefixes }
            }
        ),
    ];
    let unreach = prop_oneof![v4_nets().prop_map(MpUnreach::Ipv4), v6_nets().prop_map(MpUnreach::Ipv6)];
    (v4_nets(), option::of(reach), option::of(unreach), attributes(), v4_nets()).prop_map(
        |(withdrawn, mp_reach, mp_unreach, attributes, nlri)| Update {
            withdrawn,
            mp_reach,
            mp_unreach,
            attributes,
            nlri,
            malformed: Vec::new(),
        },
    )
}

fn message() -> BoxedStrategy<Message> {
    let data = (any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..100));
    prop_oneof![
        open().prop_map(Message::Open),
        update().prop_map(Message::Update),
        data.prop_map(|(c, s, d)| Message::Notification(Notification::with_data(c, s, d))),
        Just(Message::Keepalive),
        (any::<u16>(), any::<u8>(), any::<u8>())
            .prop_map(|(afi, subtype, safi)| Message::RouteRefresh(RouteRefresh { afi, subtype, safi })),
    ]
    .boxed()
}

fn encode(message: &Message, context: Context) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(context, &mut bytes).unwrap();
    bytes
}

/// Any message from these bytes, cut as a session would; errors are fine, panics are not.
fn read_all(mut bytes: &[u8], context: Context) {
    while let Ok(Some(length)) = frame(bytes) {
        if let Err(error) = Message::decode(&bytes[..length], context) {
            // What the peer is told fits into a message too.
            encode(&Message::Notification(error.notification()), context);
        }
        bytes = &bytes[length..];
    }
}

proptest! {
    #[test]
    fn round_trip(message in message()) {
        let bytes = encode(&message, IBGP);
        assert_eq!(frame(&bytes), Ok(Some(bytes.len())));
        assert_eq!(Message::decode(&bytes, IBGP), Ok(message));
    }

    #[test]
    fn cut_short_is_no_message(message in message(), at in any::<proptest::sample::Index>()) {
        let bytes = encode(&message, IBGP);
        let cut = &bytes[..at.index(bytes.len())];
        assert_eq!(frame(cut), Ok(None));
        assert!(Message::decode(cut, IBGP).is_err());
    }

    #[test]
    fn damaged_messages_do_not_panic(
        message in message(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        context in prop_oneof![Just(EBGP), Just(IBGP), Just(OLD)],
    ) {
        let mut bytes = encode(&message, IBGP);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        read_all(&bytes, context);
    }

    #[test]
    fn random_bodies_do_not_panic(
        kind in 0..7u8,
        body in vec(any::<u8>(), 0..200),
        context in prop_oneof![Just(EBGP), Just(IBGP), Just(OLD)],
    ) {
        read_all(&raw(kind, &body), context);
    }

    #[test]
    fn random_attributes_do_not_panic(body in vec(0..20u8, 0..100)) {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        read_all(&raw(2, &[&[0, 0], &length[..], &body].concat()), IBGP);
    }
}

/// A message with any body.
fn raw(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap().to_be_bytes();
    [&[0xff; 16][..], &length, &[kind], body].concat()
}

/// An UPDATE of these attributes for 10.0.0.0/8.
fn update_of(attributes: &[&[u8]]) -> Vec<u8> {
    let attributes = attributes.concat();
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    raw(2, &[&[0, 0], &length[..], &attributes, &[8, 10]].concat())
}

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
const NEXT_HOP: &[u8] = &[0x40, 3, 4, 10, 0, 0, 1];

#[test]
fn what_is_wrong_with_a_header_or_body() {
    let mut out_of_step = raw(4, &[]);
    out_of_step[3] = 0;
    let too_long = raw(1, &[0; 4078]);
    let open = |tail: &[u8]| raw(1, &[&[4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 2], tail].concat());
    let version3 = raw(1, &[3, 0xfd, 0xe9, 0, 90, 10, 0, 0, 2, 0]);
    let mp_reach = |value: &[u8]| [&[0x80, 14, u8::try_from(value.len()).unwrap()], value].concat();
    // Name, message, code and subcode, data.
    type Case = (&'static str, Vec<u8>, (u8, u8), Vec<u8>);
    let cases: Vec<Case> = vec![
        ("marker", out_of_step, (1, 1), vec![]),
        ("OPEN beyond 4096", too_long, (1, 2), vec![0x10, 0x01]),
        ("KEEPALIVE with a body", raw(4, &[0]), (1, 2), vec![0, 20]),
        ("short UPDATE", raw(2, &[0, 0]), (1, 2), vec![0, 21]),
        ("type 9", raw(9, &[]), (1, 3), vec![9]),
        ("version 3", version3, (2, 1), vec![0, 4]),
        ("parameter other than capabilities", open(&[3, 1, 1, 0]), (2, 4), vec![]),
        ("parameters longer than the message", open(&[9, 2, 0]), (2, 0), vec![]),
        ("capability longer than its parameter", open(&[4, 2, 2, 65, 4]), (2, 0), vec![]),
        ("4-octet ASN of three", open(&[7, 2, 5, 65, 3, 0, 0, 1]), (2, 0), vec![]),
        ("withdrawn routes beyond the end", raw(2, &[0, 9, 0, 0]), (3, 1), vec![]),
        ("prefix of 33 bits", raw(2, &[0, 0, 0, 0, 33, 1, 2, 3, 4, 5]), (3, 10), vec![]),
        ("prefix cut short", raw(2, &[0, 2, 24, 10, 0, 0]), (3, 10), vec![]),
        ("unknown well-known", update_of(&[ORIGIN, &[0x40, 99, 1, 7]]), (3, 2), vec![0x40, 99, 1, 7]),
        (
            "MP_REACH_NLRI cut short",
            update_of(&[&mp_reach(&[0, 2, 1, 16, 0]), ORIGIN]),
            (3, 9),
            mp_reach(&[0, 2, 1, 16, 0]),
        ),
        (
            "MP_UNREACH_NLRI twice",
            update_of(&[&[0x80, 15, 3, 0, 2, 1], &[0x80, 15, 3, 0, 2, 1]]),
            (3, 1),
            vec![],
        ),
        ("malformed, and nothing to withdraw", raw(2, &[0, 0, 0, 4, 0x40, 1, 1, 9]), (3, 1), vec![]),
        ("ROUTE-REFRESH of three", raw(5, &[0, 1, 0]), (7, 1), raw(5, &[0, 1, 0])),
    ];
    for (name, bytes, (code, subcode), data) in cases {
        let error = frame(&bytes).and_then(|_| Message::decode(&bytes, EBGP)).expect_err(name);
        assert_eq!(error.notification(), Notification::with_data(code, subcode, data), "{name}: {error}");
    }
}

#[test]
fn malformed_attributes_by_rfc_7606() {
    use AttributeProblem::{Flags, Length, Missing, Repeated, Unexpected, Value};
    use Handling::{Discard, TreatAsWithdraw};
    type Case = (&'static str, Vec<u8>, Context, u8, AttributeProblem, Handling);
    let cases: &[Case] = &[
        ("no ORIGIN", update_of(&[AS_PATH, NEXT_HOP]), EBGP, 1, Missing, TreatAsWithdraw),
        ("no AS_PATH", update_of(&[ORIGIN, NEXT_HOP]), EBGP, 2, Missing, TreatAsWithdraw),
        ("no NEXT_HOP", update_of(&[ORIGIN, AS_PATH]), EBGP, 3, Missing, TreatAsWithdraw),
        ("ORIGIN 3", update_of(&[&[0x40, 1, 1, 3], AS_PATH, NEXT_HOP]), EBGP, 1, Value, TreatAsWithdraw),
        (
            "ORIGIN of two",
            update_of(&[&[0x40, 1, 2, 0, 0], AS_PATH, NEXT_HOP]),
            EBGP,
            1,
            Length,
            TreatAsWithdraw,
        ),
        (
            "optional ORIGIN",
            update_of(&[&[0xc0, 1, 1, 0], AS_PATH, NEXT_HOP]),
            EBGP,
            1,
            Flags,
            TreatAsWithdraw,
        ),
        ("second ORIGIN", update_of(&[ORIGIN, ORIGIN, AS_PATH, NEXT_HOP]), EBGP, 1, Repeated, Discard),
        (
            "empty segment",
            update_of(&[ORIGIN, &[0x40, 2, 2, 2, 0], NEXT_HOP]),
            EBGP,
            2,
            Value,
            TreatAsWithdraw,
        ),
        (
            "segment kind 5",
            update_of(&[ORIGIN, &[0x40, 2, 6, 5, 1, 0, 0, 0, 1], NEXT_HOP]),
            EBGP,
            2,
            Value,
            TreatAsWithdraw,
        ),
        (
            "path cut short",
            update_of(&[ORIGIN, &[0x40, 2, 3, 2, 1, 0], NEXT_HOP]),
            EBGP,
            2,
            Value,
            TreatAsWithdraw,
        ),
        (
            "NEXT_HOP of three",
            update_of(&[ORIGIN, AS_PATH, &[0x40, 3, 3, 1, 1, 1]]),
            EBGP,
            3,
            Length,
            TreatAsWithdraw,
        ),
        (
            "MED of two",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x80, 4, 2, 0, 0]]),
            EBGP,
            4,
            Length,
            TreatAsWithdraw,
        ),
        (
            "LOCAL_PREF by eBGP",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x40, 5, 4, 0, 0, 0, 1]]),
            EBGP,
            5,
            Unexpected,
            Discard,
        ),
        (
            "LOCAL_PREF of three",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x40, 5, 3, 0, 0, 1]]),
            IBGP,
            5,
            Length,
            TreatAsWithdraw,
        ),
        (
            "ATOMIC_AGGREGATE with a value",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x40, 6, 1, 0]]),
            EBGP,
            6,
            Length,
            Discard,
        ),
        (
            "AGGREGATOR of six",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 7, 6, 0, 1, 1, 1, 1, 1]]),
            EBGP,
            7,
            Length,
            Discard,
        ),
        (
            "half a community",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 8, 2, 0, 0]]),
            EBGP,
            8,
            Length,
            TreatAsWithdraw,
        ),
        (
            "no communities",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 8, 0]]),
            EBGP,
            8,
            Length,
            TreatAsWithdraw,
        ),
        (
            "AS4_PATH by a 4-octet speaker",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 17, 0]]),
            EBGP,
            17,
            Unexpected,
            Discard,
        ),
        (
            "large community of eight",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 32, 8, 0, 0, 0, 0, 0, 0, 0, 0]]),
            EBGP,
            32,
            Length,
            TreatAsWithdraw,
        ),
        (
            "beyond the attributes",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 8, 200, 0]]),
            EBGP,
            8,
            Length,
            TreatAsWithdraw,
        ),
        ("one byte left", update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0]]), EBGP, 0, Length, TreatAsWithdraw),
    ];
    let prefix: IpNet = "10.0.0.0/8".parse().unwrap();
    for (name, bytes, context, code, problem, handling) in cases {
        let Ok(Message::Update(update)) = Message::decode(bytes, *context) else { panic!("{name}") };
        let [error] = update.malformed.as_slice() else { panic!("{name}: {:?}", update.malformed) };
        assert_eq!((error.code, error.problem, error.handling), (*code, *problem, *handling), "{name}");
        let (reachable, unreachable): (Vec<_>, Vec<_>) =
            (update.reachable().collect(), update.unreachable().collect());
        match handling {
            Discard => assert_eq!((reachable, unreachable), (vec![prefix], vec![]), "{name}"),
            TreatAsWithdraw => assert_eq!((reachable, unreachable), (vec![], vec![prefix]), "{name}"),
        }
        assert_eq!(update.end_of_rib(), None, "{name}");
    }
}

/// RFC 9003: what the peer's operator says is told, whatever it is made of.
#[test]
fn operators_messages() {
    let said = |subcode, data: &[u8]| Notification::with_data(Notification::CEASE, subcode, data);
    for (name, notification, expected) in [
        ("shutdown", said(2, b"\x0cnew firmware"), "Cease/Administrative Shutdown: \"new firmware\""),
        ("reset", said(4, b"\x02ok"), "Cease/Administrative Reset: \"ok\""),
        ("none", said(2, &[]), "Cease/Administrative Shutdown"),
        ("empty", said(2, &[0]), "Cease/Administrative Shutdown"),
        ("cut short", said(2, b"\x05ok"), "Cease/Administrative Shutdown"),
        ("of another subcode", said(3, b"\x02ok"), "Cease/Peer De-configured"),
        ("no UTF-8", said(2, b"\x03a\xffb"), "Cease/Administrative Shutdown: \"a\u{fffd}b\""),
        ("lines and escapes", said(2, b"\x04a\n\x1bb"), "Cease/Administrative Shutdown: \"a  b\""),
        ("of another code", Notification::with_data(8, 0, *b"\x02ok"), "Send Hold Timer Expired"),
    ] {
        assert_eq!(notification.to_string(), expected, "{name}");
    }
}

/// A family that is not ours is passed over, and kept.
#[test]
fn foreign_family_is_kept() {
    let value = [0, 1, 128, 12, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1, 0, 112];
    let bytes = update_of(&[&[0x80, 14, 18], &value, ORIGIN, AS_PATH, NEXT_HOP]);
    let Ok(Message::Update(update)) = Message::decode(&bytes, EBGP) else { panic!("not an UPDATE") };
    assert_eq!(update.attributes.other, [RawAttribute { flags: 0x80, code: 14, value: value.to_vec() }]);
    assert_eq!(update.malformed, []);
}

#[test]
fn two_octet_peer_is_told_as_trans_and_as4_path() {
    let path = AsPath::sequence(vec![4_200_000_001, 65001]);
    let attributes = PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(path),
        next_hop: Some([10, 0, 0, 1].into()),
        ..PathAttributes::default()
    };
    let nlri = vec!["10.0.0.0/8".parse().unwrap()];
    let update = Message::Update(Update { attributes, nlri, ..Update::default() });
    let Ok(Message::Update(read)) = Message::decode(&encode(&update, OLD), OLD) else {
        panic!("not an UPDATE")
    };
    assert_eq!(read.attributes.as_path, Some(AsPath::sequence(vec![AS_TRANS.into(), 65001])));
    let as4_path = [&[2, 2][..], &4_200_000_001u32.to_be_bytes(), &65001u32.to_be_bytes()].concat();
    assert_eq!(read.attributes.other, [RawAttribute { flags: 0xc0, code: 17, value: as4_path }]);
}

#[test]
fn opens_of_both_parameter_formats() {
    for (name, values) in [("short", vec![3; 4]), ("extended", vec![200; 4])] {
        let capabilities =
            values.iter().map(|&n| Capability::Unknown { code: 200, value: vec![7; n] }).collect();
        let open =
            Message::Open(Open { my_as: 1, hold_time: 90, router_id: [1, 1, 1, 1].into(), capabilities });
        let bytes = encode(&open, EBGP);
        assert_eq!(bytes[28] == 255, name == "extended", "{name}");
        assert_eq!(Message::decode(&bytes, EBGP), Ok(open), "{name}");
    }
}

#[test]
fn too_long_leaves_nothing_behind() {
    let update = Update { nlri: vec!["10.0.0.1/32".parse().unwrap(); 900], ..Update::default() };
    let mut out = vec![1, 2, 3];
    assert_eq!(Message::Update(update).encode(EBGP, &mut out), Err(TooLong));
    assert_eq!(out, [1, 2, 3]);
}

/// `count` host prefixes.
fn hosts(family: Family, count: u32) -> impl Iterator<Item = IpNet> {
    (0..count).map(move |n| {
        let address: IpAddr = match family {
            Family::Ipv4Unicast => std::net::Ipv4Addr::from(0x0a00_0000 + n).into(),
            Family::Ipv6Unicast => std::net::Ipv6Addr::from(0xfd00 << 112 | u128::from(n)).into(),
        };
        address.into()
    })
}

/// Reads packed messages back: how long each is, and all that they tell.
fn unpack(mut bytes: &[u8]) -> (Vec<usize>, Vec<Update>) {
    let (mut lengths, mut updates) = (Vec::new(), Vec::new());
    while let Some(length) = frame(bytes).unwrap() {
        let Ok(Message::Update(update)) = Message::decode(&bytes[..length], EBGP) else {
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
    ] {
        let announcement = Announcement::new(attributes.clone(), next_hop.parse().unwrap(), context).unwrap();
        let mut prefixes = hosts(family, 20_000).peekable();
        let (mut out, mut counts) = (Vec::new(), Vec::new());
        while prefixes.peek().is_some() {
            counts.push(announcement.write(&mut prefixes, &mut out));
        }
        assert_eq!(counts.len(), 20_000usize.div_ceil(most), "{family}");
        assert_eq!(counts[0], most, "{family}");
        let (lengths, updates) = unpack(&out);
        assert_eq!(lengths.len(), counts.len());
        assert!(lengths.iter().all(|&length| length <= context.max_length()));
        let told: Vec<IpNet> = updates.iter().flat_map(Update::reachable).collect();
        assert!(told.into_iter().eq(hosts(family, 20_000)), "{family}");
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
    ] {
        let mut prefixes = hosts(family, 20_000).peekable();
        let (mut out, mut counts) = (Vec::new(), Vec::new());
        while prefixes.peek().is_some() {
            counts.push(write_withdrawal(family, context, &mut prefixes, &mut out));
        }
        assert_eq!((counts.len(), counts[0]), (20_000usize.div_ceil(most), most), "{family}");
        let told: Vec<IpNet> = unpack(&out).1.iter().flat_map(Update::unreachable).collect();
        assert!(told.into_iter().eq(hosts(family, 20_000)), "{family}");
    }
}

#[test]
fn end_of_rib_markers() {
    for family in Family::ALL {
        let mut out = Vec::new();
        write_end_of_rib(family, &mut out);
        let (_, updates) = unpack(&out);
        assert_eq!(updates.iter().map(Update::end_of_rib).collect::<Vec<_>>(), [Some(family)]);
    }
}

/// Attributes that leave no room are refused, not cut.
#[test]
fn too_many_communities_are_refused() {
    let with = |context, count: u32| {
        let communities = (0..count).map(Community).collect();
        let attributes = PathAttributes { communities, ..PathAttributes::default() };
        Announcement::new(attributes, "fd00::1".parse().unwrap(), context).map(|a| {
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
