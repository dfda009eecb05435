//! Each message as `netgauze-bmp-pkt` reads it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bmp_pkt::v3::{
    BmpMessageValue, InitiationInformation, PeerDownNotificationReason, StatisticsCounter,
    TerminationInformation,
};
use netgauze_bmp_pkt::wire::deserializer::BmpParsingContext;
use netgauze_bmp_pkt::{BmpMessage, BmpPeerType, GaugeU64, PeerHeader};
use netgauze_iana::address_family::AddressType;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;

use super::{Peer, PeerDown, PeerUp, Statistic, View};
use crate::Family;
use crate::wire::pack::Announcement;
use crate::wire::{Capability, Cease, Context, Message, Notification, Open, Origin, PathAttributes};

/// 2026-11-28T08:00:00.25Z.
const AT: Duration = Duration::new(1_795_852_800, 250_000_000);

fn peer(address: &str, four_octet_asn: bool) -> Peer {
    Peer { address: address.parse().unwrap(), asn: 65001, router_id: [10, 0, 0, 2].into(), four_octet_asn }
}

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(Context::default(), &mut bytes).unwrap();
    bytes
}

fn open(asn: u32) -> Vec<u8> {
    let capabilities = vec![Capability::multiprotocol(Family::Ipv6Unicast), Capability::FourOctetAsn(asn)];
    let my_as = Open::my_as(asn);
    encode(&Message::Open(Open { my_as, hold_time: 90, router_id: [10, 0, 0, 1].into(), capabilities }))
}

/// All of the messages in `bytes`; a station knows of a peer what its Peer Up says.
fn read(bytes: &[u8]) -> Vec<BmpMessageValue> {
    let mut context = BmpParsingContext::default();
    let mut reader = SliceReader::new(bytes);
    let mut messages = Vec::new();
    while !reader.is_empty() {
        match BmpMessage::parse(&mut reader, &mut context).unwrap() {
            BmpMessage::V3(message) => messages.push(message),
            BmpMessage::V4(_) => panic!("version 4"),
        }
    }
    messages
}

fn one(write: impl FnOnce(&mut Vec<u8>)) -> BmpMessageValue {
    let mut bytes = Vec::new();
    write(&mut bytes);
    let mut messages = read(&bytes);
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

fn check_header(header: &PeerHeader, kind: BmpPeerType, address: Option<&str>) {
    assert_eq!(header.peer_type(), kind);
    assert_eq!(header.address(), address.map(|address| address.parse::<IpAddr>().unwrap()));
    assert_eq!(header.rd(), None);
    let at = header.timestamp().unwrap();
    assert_eq!((at.timestamp(), at.timestamp_subsec_micros()), (1_795_852_800, 250_000));
}

#[test]
fn first_and_last() {
    let BmpMessageValue::Initiation(first) = one(|out| super::initiation("node-a", "Sheave 1", out)) else {
        panic!("no Initiation")
    };
    assert_eq!(
        first.information(),
        [
            InitiationInformation::SystemDescription("Sheave 1".into()),
            InitiationInformation::SystemName("node-a".into())
        ]
    );
    let BmpMessageValue::Termination(last) = one(super::termination) else { panic!("no Termination") };
    let [TerminationInformation::Reason(reason)] = last.information() else { panic!("{last:?}") };
    assert_eq!(*reason as u16, 0);
}

#[test]
fn sessions_that_begin() {
    for (name, address, local, ipv6) in
        [("IPv4", "10.0.0.2", "10.0.0.1:179", false), ("IPv6", "fd00::2", "[fd00::1]:179", true)]
    {
        let (sent_open, received_open) = (open(4_200_000_001), open(65001));
        let up = PeerUp { local: local.parse().unwrap(), remote_port: 40_000, sent_open, received_open };
        let BmpMessageValue::PeerUpNotification(told) =
            one(|out| super::peer_up(peer(address, true), &up, AT, out))
        else {
            panic!("{name}: no Peer Up")
        };
        let kind =
            BmpPeerType::GlobalInstancePeer { ipv6, post_policy: false, asn2: false, adj_rib_out: false };
        check_header(told.peer_header(), kind, Some(address));
        assert_eq!(
            (told.peer_header().peer_as(), told.peer_header().bgp_id()),
            (65001, [10, 0, 0, 2].into())
        );
        assert_eq!(told.local_address(), Some(up.local.ip()), "{name}");
        assert_eq!((told.local_port(), told.remote_port()), (Some(179), Some(40_000)), "{name}");
        let asns = [told.sent_message(), told.received_message()].map(|message| match message {
            BgpMessage::Open(open) => open.my_asn4(),
            other => panic!("{name}: {other:?}"),
        });
        assert_eq!(asns, [4_200_000_001, 65001], "{name}");
    }
}

#[test]
fn loc_rib_begins() {
    let BmpMessageValue::PeerUpNotification(told) =
        one(|out| super::loc_rib_up(64512, [10, 0, 0, 1].into(), &open(64512), AT, out))
    else {
        panic!("no Peer Up")
    };
    check_header(told.peer_header(), BmpPeerType::LocRibInstancePeer { filtered: false }, None);
    assert_eq!((told.local_address(), told.local_port()), (None, None));
    assert_eq!(told.information(), [InitiationInformation::VrfTableName("global".into())]);
}

#[test]
fn sessions_that_end() {
    let notification = || encode(&Message::Notification(Notification::cease(Cease::AdministrativeShutdown)));
    let is_cease = |message: &BgpMessage| matches!(message, BgpMessage::Notification(_));
    type Expected<'a> = &'a dyn Fn(&PeerDownNotificationReason) -> bool;
    use PeerDownNotificationReason as Reason;
    let cases: [(&str, PeerDown, Expected<'_>); 4] = [
        (
            "by us",
            PeerDown::LocalNotification(notification()),
            &|reason| matches!(reason, Reason::LocalSystemClosedNotificationPduFollows(m) if is_cease(m)),
        ),
        ("by us, silently", PeerDown::Local { event: 2 }, &|reason| {
            matches!(reason, Reason::LocalSystemClosedFsmEventFollows(2))
        }),
        (
            "by the peer",
            PeerDown::RemoteNotification(notification()),
            &|reason| matches!(reason, Reason::RemoteSystemClosedNotificationPduFollows(m) if is_cease(m)),
        ),
        ("by the peer, silently", PeerDown::Remote, &|reason| {
            matches!(reason, Reason::RemoteSystemClosedNoData)
        }),
    ];
    for (name, down, expected) in cases {
        let message = one(|out| super::peer_down(peer("10.0.0.2", true), &down, AT, out));
        let BmpMessageValue::PeerDownNotification(told) = message else { panic!("{name}: no Peer Down") };
        assert!(expected(told.reason()), "{name}: {:?}", told.reason());
    }
}

/// Of a peer of 2-octet ASNs its UPDATEs are told as they are, and marked so (RFC 7854 §4.2, flag A).
#[test]
fn tables() {
    for four_octet_asn in [true, false] {
        let view = View::AdjRibOut(peer("10.0.0.2", four_octet_asn));
        let context = Context { four_octet_asn, ..Context::default() };
        let attributes = PathAttributes {
            origin: Some(Origin::Igp),
            as_path: Some(crate::wire::AsPath::sequence(vec![64512])),
            ..PathAttributes::default()
        };
        let hosts =
            |count: u32| (0..count).map(|n| IpNet::from(IpAddr::from((0x0a00_0000 + n).to_be_bytes())));
        let next_hop = "10.0.0.1".parse().unwrap();
        let mut bytes = Vec::new();
        let announcement =
            Announcement::of_family(Family::Ipv4Unicast, attributes, next_hop, None, context).unwrap();
        super::announcements(view, &announcement, hosts(1000), AT, &mut bytes);
        super::withdrawals(view, Family::Ipv4Unicast, hosts(10), context, AT, &mut bytes);
        super::end_of_rib(view, Family::Ipv4Unicast, AT, &mut bytes);
        let messages = read(&bytes);
        let mut told = Vec::new();
        for message in &messages {
            let BmpMessageValue::RouteMonitoring(monitoring) = message else { panic!("{message:?}") };
            let asn2 = !four_octet_asn;
            let kind =
                BmpPeerType::GlobalInstancePeer { ipv6: false, post_policy: true, asn2, adj_rib_out: true };
            check_header(monitoring.peer_header(), kind, Some("10.0.0.2"));
            let BgpMessage::Update(update) = monitoring.update_message() else { panic!("{message:?}") };
            told.push((update.nlri().len(), update.withdraw_routes().len(), update.end_of_rib().is_some()));
        }
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[0].0 + told[1].0, 1000, "{told:?}");
        assert_eq!(told[2..], [(0, 10, false), (0, 0, true)]);
    }
}

#[test]
fn numbers() {
    let of_peer = [Statistic::AdjRibOut(5), Statistic::AdjRibOutOf(Family::Ipv6Unicast, 3)];
    let of_table = [Statistic::LocRib(7), Statistic::LocRibOf(Family::Ipv4Unicast, 6)];
    let session = View::Session(peer("10.0.0.2", true));
    let loc_rib = View::LocRib { asn: 64512, router_id: [10, 0, 0, 1].into() };
    use StatisticsCounter as Counter;
    let received = [Statistic::AdjRibIn(9), Statistic::AdjRibInOf(Family::Ipv6Unicast, 4)];
    let cases: [(View, &[Statistic], [Counter; 2]); 3] = [
        (
            session,
            &received,
            [
                Counter::NumberOfRoutesInAdjRibIn(GaugeU64::new(9)),
                Counter::NumberOfRoutesInPerAfiSafiAdjRibIn(AddressType::Ipv6Unicast, GaugeU64::new(4)),
            ],
        ),
        (
            session,
            &of_peer,
            [
                Counter::NumberOfRoutesInPostPolicyAdjRibOut(GaugeU64::new(5)),
                Counter::NumberOfRoutesInPerAfiSafiPostPolicyAdjRibOut(
                    AddressType::Ipv6Unicast,
                    GaugeU64::new(3),
                ),
            ],
        ),
        (
            loc_rib,
            &of_table,
            [
                Counter::NumberOfRoutesInLocRib(GaugeU64::new(7)),
                Counter::NumberOfRoutesInPerAfiSafiLocRib(AddressType::Ipv4Unicast, GaugeU64::new(6)),
            ],
        ),
    ];
    for (view, statistics, expected) in cases {
        let BmpMessageValue::StatisticsReport(report) =
            one(|out| super::statistics(view, statistics, AT, out))
        else {
            panic!("no report")
        };
        assert_eq!(report.counters(), expected);
    }
}

/// IPv4 prefixes stay IPv4 prefixes, whatever their next hop (RFC 8950).
#[test]
fn ipv4_by_ipv6_next_hops() {
    let attributes = PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(crate::wire::AsPath::sequence(vec![64512])),
        ..PathAttributes::default()
    };
    let view = View::AdjRibOut(peer("fd00::2", true));
    let prefix: IpNet = "192.0.2.80/32".parse().unwrap();
    let (hop, link_local) = ("fd00::1".parse().unwrap(), "fe80::1".parse().ok());
    let context = Context { four_octet_asn: true, ..Context::default() };
    let mut bytes = Vec::new();
    let announcement =
        Announcement::of_family(Family::Ipv4Unicast, attributes, hop, link_local, context).unwrap();
    super::announcements(view, &announcement, [prefix], AT, &mut bytes);
    // Common header, per-peer header (RFC 7854 section 4).
    let Ok(Message::Update(update)) = Message::decode(&bytes[6 + 42..], context) else {
        panic!("not an UPDATE")
    };
    assert_eq!(update.reachable().map(|nlri| nlri.prefix).collect::<Vec<_>>(), [prefix]);
    let Some(crate::wire::MpReach::Ipv4 { next_hop, .. }) = update.mp_reach else { panic!("{update:?}") };
    assert_eq!(next_hop, hop);
}
