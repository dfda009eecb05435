//! Round trips, hostile bytes, and what each defect is answered with.

mod as4;
mod next_hop;
mod pack;

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_compose, prop_oneof, proptest};

use super::{
    AddPathFamily, Aggregator, AsPath, AttributeProblem, Capability, Context, GracefulRestartCapability,
    GracefulRestartFamily, Handling, LongLivedFamily, Message, MpReach, MpUnreach, Nlri, Notification, Open,
    Origin, PathAttributes, RawAttribute, RouteRefresh, Segment, SegmentKind, TooLong, Update, frame,
};
use crate::{Community, ExtendedCommunity, Families, LargeCommunity};

const EBGP: Context =
    Context { four_octet_asn: true, ibgp: false, extended_messages: false, add_path: Families::NONE };
const IBGP: Context = Context { ibgp: true, ..EBGP };
/// A peer of 2-octet ASNs.
const OLD: Context = Context { four_octet_asn: false, ..EBGP };
/// Several paths to each prefix.
const ADD_PATH: Context = Context { add_path: Families::ALL, ..IBGP };

fn nlri<P: std::fmt::Debug>(prefix: impl Strategy<Value = P>) -> impl Strategy<Value = Vec<Nlri<P>>> {
    vec((prefix, any::<u32>()).prop_map(|(prefix, path_id)| Nlri { prefix, path_id }), 0..20)
}

fn v4_nets() -> impl Strategy<Value = Vec<Nlri<Ipv4Net>>> {
    nlri((any::<[u8; 4]>(), 0..=32u8).prop_map(|(a, l)| Ipv4Net::new(a.into(), l).unwrap().trunc()))
}

fn v6_nets() -> impl Strategy<Value = Vec<Nlri<Ipv6Net>>> {
    nlri((any::<[u8; 16]>(), 0..=128u8).prop_map(|(a, l)| Ipv6Net::new(a.into(), l).unwrap().trunc()))
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
    let add_path = (any::<u16>(), any::<u8>(), any::<[bool; 2]>())
        .prop_map(|(afi, safi, [receive, send])| AddPathFamily { afi, safi, receive, send });
    let long_lived =
        (any::<u16>(), any::<u8>(), any::<bool>(), 0..=LongLivedFamily::MAX_STALE_TIME).prop_map(
            |(afi, safi, forwarding, stale_time)| LongLivedFamily { afi, safi, forwarding, stale_time },
        );
    prop_oneof![
        (any::<u16>(), any::<u8>()).prop_map(|(afi, safi)| Capability::Multiprotocol { afi, safi }),
        Just(Capability::RouteRefresh),
        Just(Capability::ExtendedMessage),
        Just(Capability::EnhancedRouteRefresh),
        any::<u32>().prop_map(Capability::FourOctetAsn),
        restart,
        vec(add_path, 0..4).prop_map(Capability::AddPath),
        vec(long_lived, 0..4).prop_map(Capability::LongLivedGracefulRestart),
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

prop_compose! {
    /// As an iBGP peer may send them: all mandatory ones there.
    fn attributes()(
        origin in prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)],
        (as_path, next_hop) in (as_path(), any::<[u8; 4]>()),
        [med, local_pref, only_to_customer] in [option::of(any::<u32>()), option::of(any::<u32>()), option::of(any::<u32>())],
        aggregator in option::of((any::<u32>(), any::<[u8; 4]>())),
        (originator, cluster_list) in (option::of(any::<[u8; 4]>()), vec(any::<[u8; 4]>(), 0..4)),
        communities in vec(any::<u32>(), 0..100),
        extended in vec(any::<[u8; 8]>(), 0..5),
        large_list in vec(any::<[u32; 3]>(), 0..10),
        raw in vec((prop_oneof![Just(0x80u8), Just(0xc0), Just(0xe0)], vec(any::<u8>(), 0..300)), 0..3),
        (atomic_aggregate, partial) in any::<(bool, bool)>(),
    ) -> PathAttributes {
        let large = |[global, data1, data2]: [u32; 3]| LargeCommunity { global, data1, data2 };
        let present = [
            (7, aggregator.is_some()),
            (8, !communities.is_empty()),
            (16, !extended.is_empty()),
            (32, !large_list.is_empty()),
            (35, only_to_customer.is_some()),
        ];
        PathAttributes {
            origin: Some(origin),
            as_path: Some(as_path),
            next_hop: Some(next_hop.into()),
            med,
            local_pref,
            atomic_aggregate,
            aggregator: aggregator.map(|(asn, address)| Aggregator { asn, address: address.into() }),
            communities: communities.into_iter().map(Community).collect(),
            originator_id: originator.map(Into::into),
            cluster_list: cluster_list.into_iter().map(Into::into).collect(),
            extended_communities: extended.into_iter().map(ExtendedCommunity).collect(),
            large_communities: large_list.into_iter().map(large).collect(),
            only_to_customer,
            other: raw.into_iter().zip(100..).map(|((flags, value), code)| RawAttribute { flags, code, value }).collect(),
            partial: present.iter().filter(|(_, there)| partial && *there).map(|(code, _)| *code).collect(),
        }
    }
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
        let bytes = encode(&message, ADD_PATH);
        assert_eq!(frame(&bytes), Ok(Some(bytes.len())));
        assert_eq!(Message::decode(&bytes, ADD_PATH), Ok(message));
    }

    /// What a 2-octet peer carries along is what comes out behind it, confederations aside.
    #[test]
    fn round_trip_by_a_two_octet_peer(attributes in attributes()) {
        let as_path = attributes.as_path.map(|path| path.outside_confederation());
        let attributes = PathAttributes { as_path, ..attributes };
        let old = Context { ibgp: true, ..OLD };
        let update = Message::Update(Update { attributes, ..Update::default() });
        assert_eq!(Message::decode(&encode(&update, old), old), Ok(update));
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
        (
            "ORIGINATOR_ID by eBGP",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x80, 9, 4, 1, 1, 1, 1]]),
            EBGP,
            9,
            Unexpected,
            Discard,
        ),
        (
            "ORIGINATOR_ID of three",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x80, 9, 3, 1, 1, 1]]),
            IBGP,
            9,
            Length,
            TreatAsWithdraw,
        ),
        (
            "CLUSTER_LIST by eBGP",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x80, 10, 4, 1, 1, 1, 1]]),
            EBGP,
            10,
            Unexpected,
            Discard,
        ),
        (
            "CLUSTER_LIST of five",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x80, 10, 5, 1, 1, 1, 1, 1]]),
            IBGP,
            10,
            Length,
            TreatAsWithdraw,
        ),
        (
            "transitive CLUSTER_LIST",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 10, 4, 1, 1, 1, 1]]),
            IBGP,
            10,
            Flags,
            TreatAsWithdraw,
        ),
        (
            "extended community of seven",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 16, 7, 0, 2, 0, 0, 0, 0, 0]]),
            EBGP,
            16,
            Length,
            TreatAsWithdraw,
        ),
        (
            "ONLY_TO_CUSTOMER of two",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 35, 2, 0, 1]]),
            EBGP,
            35,
            Length,
            TreatAsWithdraw,
        ),
        (
            "ONLY_TO_CUSTOMER, not transitive",
            update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x80, 35, 4, 0, 0, 0, 1]]),
            EBGP,
            35,
            Flags,
            TreatAsWithdraw,
        ),
        ("one byte left", update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0]]), EBGP, 0, Length, TreatAsWithdraw),
    ];
    let prefix = Nlri::from("10.0.0.0/8".parse::<IpNet>().unwrap());
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
        ("in a hard reset", said(9, b"\x06\x02\x02ok"), "Cease/Administrative Shutdown: \"ok\" (hard reset)"),
        ("hard reset for another", said(9, &[4, 0]), "Hold Timer Expired (hard reset)"),
        ("hard reset without a reason", said(9, &[6]), "Cease/Hard Reset"),
        ("hard reset within another", said(9, &[6, 9, 6, 9, 6, 2]), "Cease/Hard Reset"),
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
    let update = Update { nlri: vec![Ipv4Net::from(Ipv4Addr::LOCALHOST).into(); 900], ..Update::default() };
    let mut out = vec![1, 2, 3];
    assert_eq!(Message::Update(update).encode(EBGP, &mut out), Err(TooLong));
    assert_eq!(out, [1, 2, 3]);
}

/// RFC 4271 §5: what is not known is passed on marked as such where it is transitive, and not at all otherwise; what is
/// known and was so marked stays so.
#[test]
fn partial() {
    let raw = |flags| RawAttribute { flags, code: 99, value: vec![7] };
    for (name, flags, expected) in [
        ("transitive", 0xc0, Some(0xe0)),
        ("already marked", 0xe0, Some(0xe0)),
        ("not transitive", 0x80, None),
    ] {
        assert_eq!(raw(flags).passed_on(), expected.map(raw), "{name}");
    }
    let bytes =
        update_of(&[ORIGIN, AS_PATH, NEXT_HOP, &[0xe0, 8, 4, 0, 0, 0, 1], &[0xc0, 35, 4, 0, 0, 0, 1]]);
    let message = Message::decode(&bytes, EBGP).unwrap();
    let Message::Update(update) = &message else { panic!("not an UPDATE") };
    assert_eq!(update.attributes.partial, [8]);
    assert_eq!(encode(&message, EBGP), bytes);
}

/// Path identifiers are part of what is withdrawn with a malformed attribute (RFC 7911 §3, RFC 7606 §2).
#[test]
fn paths_are_withdrawn_apart() {
    let nlri = [&[0, 0, 0, 7, 8, 10][..], &[0, 0, 0, 9, 8, 10]].concat();
    let attributes = [&[0x40, 1, 1, 3], AS_PATH, NEXT_HOP].concat();
    let body = [&[0, 0, 0, u8::try_from(attributes.len()).unwrap()][..], &attributes, &nlri].concat();
    let Ok(Message::Update(update)) = Message::decode(&raw(2, &body), ADD_PATH) else {
        panic!("not an UPDATE")
    };
    let told: Vec<String> = update.unreachable().map(|nlri| nlri.to_string()).collect();
    assert_eq!(told, ["10.0.0.0/8 path 7", "10.0.0.0/8 path 9"]);
    assert_eq!(update.reachable().count(), 0);
}
