//! The same messages by three codecs: ours, `rustbgpd-wire` and `netgauze-bgp-pkt`, which nobody wrote together.
//!
//! What we encode they decode to the same meaning, told in words so that no codec's types decide; what they encode of it we
//! decode to what it was. Where one of them differs from the RFC, its module says so.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod netgauze;
mod rustbgpd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_compose, prop_oneof};
use sheave_bgp::wire::{
    AddPathFamily, Aggregator, AsPath, Capability, Context, ExtendedNextHop, GracefulRestartCapability,
    GracefulRestartFamily, LongLivedFamily, Message, MpReach, MpUnreach, Nlri, Open, Origin, PathAttributes,
    RawAttribute, Role, Segment, SegmentKind, Update,
};
use sheave_bgp::{Community, ExtendedCommunity, Families, LargeCommunity};

/// An iBGP peer of 4-octet ASNs.
const PLAIN: Context =
    Context { four_octet_asn: true, ibgp: true, extended_messages: false, add_path: Families::NONE };
/// One that sends several paths to a prefix.
const ADD_PATH: Context = Context { add_path: Families::ALL, ..PLAIN };

/// Unicast alone: netgauze takes no other for a prefix of that family.
fn v4_net() -> impl Strategy<Value = Ipv4Net> {
    (1..224u8, any::<[u8; 3]>(), 8..=32u8)
        .prop_map(|(a, [b, c, d], length)| Ipv4Net::new([a, b, c, d].into(), length).unwrap().trunc())
}

fn v6_net() -> impl Strategy<Value = Ipv6Net> {
    (any::<[u8; 16]>(), 8..=128u8).prop_map(|(mut octets, length)| {
        octets[0] = 0x20 | octets[0] & 0x1f;
        Ipv6Net::new(octets.into(), length).unwrap().trunc()
    })
}

/// Path identifiers where `context` has them.
fn nlri<P: std::fmt::Debug>(
    context: Context,
    prefix: impl Strategy<Value = P>,
) -> impl Strategy<Value = Vec<Nlri<P>>> {
    let named = context.add_path == Families::ALL;
    let nlri = (prefix, any::<u32>())
        .prop_map(move |(prefix, id)| Nlri { prefix, path_id: if named { id } else { 0 } });
    vec(nlri, 1..10)
}

fn as_path() -> impl Strategy<Value = AsPath> {
    let kind = prop_oneof![Just(SegmentKind::Set), Just(SegmentKind::Sequence)];
    let segment = (kind, vec(1..u32::MAX, 1..8)).prop_map(|(kind, asns)| Segment { kind, asns });
    vec(segment, 0..4).prop_map(|segments| AsPath { segments })
}

/// Route targets of the three forms, and something opaque.
fn extended_community() -> impl Strategy<Value = ExtendedCommunity> {
    (prop_oneof![Just([0, 2]), Just([1, 2]), Just([2, 2]), Just([3, 11])], any::<[u8; 6]>())
        .prop_map(|([a, b], [c, d, e, f, g, h])| ExtendedCommunity([a, b, c, d, e, f, g, h]))
}

prop_compose! {
    fn attributes()(
        origin in prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)],
        (as_path, next_hop) in (as_path(), v4_net()),
        [med, local_pref, only_to_customer] in [(); 3].map(|()| option::of(any::<u32>())),
        aggregator in option::of((1..u32::MAX, any::<[u8; 4]>())),
        (originator, cluster_list) in (option::of(any::<[u8; 4]>()), vec(any::<[u8; 4]>(), 0..4)),
        communities in vec(any::<u32>(), 0..80),
        extended in vec(extended_community(), 0..5),
        large in vec(any::<[u32; 3]>(), 0..25),
        raw in vec((prop_oneof![Just(0x80u8), Just(0xe0)], vec(any::<u8>(), 1..300)), 0..3),
        atomic_aggregate in any::<bool>(),
    ) -> PathAttributes {
        let large = large.into_iter().map(|[global, data1, data2]| LargeCommunity { global, data1, data2 });
        // Codes that nobody has assigned.
        let raw = raw.into_iter().zip(200..);
        PathAttributes {
            origin: Some(origin),
            as_path: Some(as_path),
            next_hop: Some(next_hop.addr()),
            med,
            local_pref,
            atomic_aggregate,
            aggregator: aggregator.map(|(asn, address)| Aggregator { asn, address: address.into() }),
            communities: communities.into_iter().map(Community).collect(),
            originator_id: originator.map(Into::into),
            cluster_list: cluster_list.into_iter().map(Into::into).collect(),
            extended_communities: extended,
            large_communities: large.collect(),
            only_to_customer,
            other: raw.map(|((flags, value), code)| RawAttribute { flags, code, value }).collect(),
            partial: Vec::new(),
        }
    }
}

fn update(context: Context) -> impl Strategy<Value = Update> {
    let (v4, v6) = (move || nlri(context, v4_net()), move || nlri(context, v6_net()));
    let reach = (v6_net(), option::of(any::<[u8; 16]>()), v6());
    let reach = reach.prop_map(|(next_hop, link_local, prefixes)| {
        let link_local = link_local.map(|mut octets| {
            octets[..8].copy_from_slice(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
            octets.into()
        });
        MpReach::Ipv6 { next_hop: next_hop.addr(), link_local, prefixes }
    });
    let unreach = prop_oneof![v4().prop_map(MpUnreach::Ipv4), v6().prop_map(MpUnreach::Ipv6)];
    (v4(), option::of(reach), option::of(unreach), attributes(), v4()).prop_map(
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

fn capability() -> impl Strategy<Value = Capability> {
    let restart = (any::<[bool; 4]>(), 0..4096u16).prop_map(|([a, b, c, d], restart_time)| {
        let family = |afi, forwarding| GracefulRestartFamily { afi, safi: 1, forwarding };
        Capability::GracefulRestart(GracefulRestartCapability {
            restarting: a,
            notification: b,
            restart_time,
            families: vec![family(1, c), family(2, d)],
        })
    });
    let add_path = prop_oneof![Just((true, false)), Just((false, true)), Just((true, true))];
    prop_oneof![
        (1..=2u16).prop_map(|afi| Capability::Multiprotocol { afi, safi: 1 }),
        Just(Capability::RouteRefresh),
        Just(Capability::ExtendedMessage),
        Just(Capability::EnhancedRouteRefresh),
        any::<u32>().prop_map(Capability::FourOctetAsn),
        restart,
        (1..=2u16, add_path).prop_map(|(afi, (receive, send))| {
            Capability::AddPath(vec![AddPathFamily { afi, safi: 1, receive, send }])
        }),
        (1..=2u16, any::<bool>(), 0..=LongLivedFamily::MAX_STALE_TIME).prop_map(
            |(afi, forwarding, stale_time)| {
                let family = LongLivedFamily { afi, safi: 1, forwarding, stale_time };
                Capability::LongLivedGracefulRestart(vec![family])
            }
        ),
        Just(Capability::ExtendedNextHop(vec![ExtendedNextHop::IPV4_BY_IPV6])),
        prop_oneof![Just(Role::Provider), Just(Role::RouteServerClient), Just(Role::Peer)]
            .prop_map(|role| Capability::Role(role as u8)),
        (200..=230u8, vec(any::<u8>(), 0..20)).prop_map(|(code, value)| Capability::Unknown { code, value }),
    ]
}

fn open() -> impl Strategy<Value = Open> {
    (1..u16::MAX, 3..u16::MAX, 1..224u8, vec(capability(), 0..8)).prop_map(
        |(my_as, hold_time, id, capabilities)| Open {
            my_as,
            hold_time,
            router_id: [id, 0, 0, 1].into(),
            capabilities,
        },
    )
}

fn encode(message: &Message, context: Context) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(context, &mut bytes).unwrap();
    bytes
}

/// A path in words.
fn path_in_words<'a>(segments: impl Iterator<Item = (u8, &'a [u32])>) -> String {
    segments.map(|(kind, asns)| format!(" {kind}{asns:?}")).collect()
}

/// What an UPDATE says, a line for each thing, sorted: so every codec's view of it is made, from its own types.
fn meaning(update: &Update) -> Vec<String> {
    fn prefixes<P: Copy>(lines: &mut Vec<String>, what: &str, nlri: &[Nlri<P>])
    where
        IpNet: From<P>,
    {
        lines.extend(nlri.iter().map(|n| format!("{what} {} path {}", IpNet::from(n.prefix), n.path_id)));
    }
    let mut lines = Vec::new();
    prefixes(&mut lines, "withdraw", &update.withdrawn);
    prefixes(&mut lines, "announce", &update.nlri);
    match &update.mp_reach {
        Some(MpReach::Ipv4 { next_hop, prefixes: nlri }) => {
            lines.push(format!("mp next hop {next_hop} None"));
            prefixes(&mut lines, "mp announce", nlri);
        }
        Some(MpReach::Ipv6 { next_hop, link_local, prefixes: nlri }) => {
            lines.push(format!("mp next hop {next_hop} {link_local:?}"));
            prefixes(&mut lines, "mp announce", nlri);
        }
        None => {}
    }
    match &update.mp_unreach {
        Some(MpUnreach::Ipv4(nlri)) => prefixes(&mut lines, "mp withdraw", nlri),
        Some(MpUnreach::Ipv6(nlri)) => prefixes(&mut lines, "mp withdraw", nlri),
        None => {}
    }
    let a = &update.attributes;
    lines.extend(a.origin.map(|origin| format!("origin {}", origin as u8)));
    lines.extend(a.as_path.iter().map(|path| {
        let segments = path.segments.iter().map(|s| (s.kind as u8, s.asns.as_slice()));
        format!("as path{}", path_in_words(segments))
    }));
    lines.extend(a.next_hop.map(|hop| format!("next hop {hop}")));
    lines.extend(a.med.map(|med| format!("med {med}")));
    lines.extend(a.local_pref.map(|pref| format!("local pref {pref}")));
    lines.extend(a.atomic_aggregate.then(|| "atomic aggregate".to_owned()));
    lines.extend(a.aggregator.map(|by| format!("aggregator {} {}", by.asn, by.address)));
    lines.extend(a.communities.iter().map(|c| format!("community {}", c.0)));
    lines.extend(a.originator_id.map(|id| format!("originator {id}")));
    lines.extend(a.cluster_list.iter().enumerate().map(|(n, id)| format!("cluster {n} {id}")));
    lines.extend(a.extended_communities.iter().map(|c| format!("extended {}", u64::from_be_bytes(c.0))));
    let large = a.large_communities.iter();
    lines.extend(large.map(|c| format!("large {} {} {}", c.global, c.data1, c.data2)));
    lines.extend(a.only_to_customer.map(|asn| format!("only to customer {asn}")));
    lines.extend(a.other.iter().map(|raw| format!("other {} {} {:?}", raw.flags, raw.code, raw.value)));
    lines.sort();
    lines
}
