//! Against `rustbgpd-wire`. It differs from RFC 4271 §5 in one thing that shows here: on an attribute that it knows, a Partial
//! bit set by others is cleared when it is sent on. And it knows neither AGGREGATOR nor ONLY_TO_CUSTOMER: what it sends on of these is
//! marked Partial, as it must be.

use bytes::Bytes;
use ipnet::IpNet;
use proptest::prelude::proptest;
use rustbgpd_wire::{
    Afi, AsPathSegment, Capability as Theirs, Ipv4NlriEntry, Ipv4UnicastMode, NlriEntry, PathAttribute,
    Prefix, Safi, UpdateMessage, decode_message, encode_message,
};
use sheave_bgp::Families;
use sheave_bgp::wire::{Capability, Context, Message, PathAttributes, Update};

use crate::{ADD_PATH, PLAIN, encode, meaning, open, path_in_words, update};

fn v4(what: &str, entry: &Ipv4NlriEntry) -> String {
    format!("{what} {}/{} path {}", entry.prefix.addr, entry.prefix.len, entry.path_id)
}

fn either(what: &str, entry: &NlriEntry) -> String {
    let prefix: IpNet = match entry.prefix {
        Prefix::V4(prefix) => IpNet::new(prefix.addr.into(), prefix.len).unwrap(),
        Prefix::V6(prefix) => IpNet::new(prefix.addr.into(), prefix.len).unwrap(),
    };
    format!("{what} {prefix} path {}", entry.path_id)
}

fn attribute(attribute: &PathAttribute) -> Vec<String> {
    let one = |line: String| vec![line];
    match attribute {
        PathAttribute::Origin(origin) => one(format!("origin {}", *origin as u8)),
        PathAttribute::AsPath(path) => {
            let segments = path.segments.iter().map(|segment| match segment {
                AsPathSegment::AsSet(asns) => (1, asns.as_slice()),
                AsPathSegment::AsSequence(asns) => (2, asns.as_slice()),
            });
            one(format!("as path{}", path_in_words(segments)))
        }
        PathAttribute::NextHop(hop) => one(format!("next hop {hop}")),
        PathAttribute::LocalPref(pref) => one(format!("local pref {pref}")),
        PathAttribute::Med(med) => one(format!("med {med}")),
        PathAttribute::Communities(all) => all.iter().map(|c| format!("community {c}")).collect(),
        PathAttribute::ExtendedCommunities(all) => {
            all.iter().map(|c| format!("extended {}", c.as_u64())).collect()
        }
        PathAttribute::LargeCommunities(all) => all
            .iter()
            .map(|c| format!("large {} {} {}", c.global_admin, c.local_data1, c.local_data2))
            .collect(),
        PathAttribute::OriginatorId(id) => one(format!("originator {id}")),
        PathAttribute::ClusterList(ids) => {
            ids.iter().enumerate().map(|(n, id)| format!("cluster {n} {id}")).collect()
        }
        PathAttribute::MpReachNlri(reach) => {
            let hop = format!("mp next hop {} {:?}", reach.next_hop, reach.link_local_next_hop);
            std::iter::once(hop).chain(reach.announced.iter().map(|e| either("mp announce", e))).collect()
        }
        PathAttribute::MpUnreachNlri(unreach) => {
            unreach.withdrawn.iter().map(|e| either("mp withdraw", e)).collect()
        }
        PathAttribute::PmsiTunnel(_) => panic!("none was sent"),
        // Attributes that it does not know, in its bytes.
        PathAttribute::Unknown(raw) => {
            let (head, tail) = raw.data.split_at(raw.data.len().min(4));
            let number = || u32::from_be_bytes(head.try_into().unwrap());
            match raw.type_code {
                6 => one("atomic aggregate".to_owned()),
                7 => {
                    let address = std::net::Ipv4Addr::from(<[u8; 4]>::try_from(tail).unwrap());
                    one(format!("aggregator {} {address}", number()))
                }
                35 => one(format!("only to customer {}", number())),
                code => one(format!("other {} {code} {:?}", raw.flags & !0x10, raw.data.to_vec())),
            }
        }
    }
}

/// Both ways, for one UPDATE.
fn both_ways(update: Update, context: Context) {
    let add_path = context.add_path == Families::ALL;
    let families: &[_] =
        if add_path { &[(Afi::Ipv4, Safi::Unicast), (Afi::Ipv6, Safi::Unicast)] } else { &[] };

    let ours = encode(&Message::Update(update.clone()), context);
    let Ok(rustbgpd_wire::Message::Update(message)) = decode_message(&mut Bytes::from(ours), 4096) else {
        panic!("not an UPDATE")
    };
    let parsed = message.parse(context.four_octet_asn, add_path, families).unwrap();
    let mut theirs: Vec<String> = parsed.attributes.iter().flat_map(attribute).collect();
    theirs.extend(parsed.withdrawn.iter().map(|entry| v4("withdraw", entry)));
    theirs.extend(parsed.announced.iter().map(|entry| v4("announce", entry)));
    theirs.sort();
    assert_eq!(theirs, meaning(&update));

    let message = UpdateMessage::build(
        &parsed.announced,
        &parsed.withdrawn,
        &parsed.attributes,
        context.four_octet_asn,
        add_path,
        Ipv4UnicastMode::Body,
    );
    let bytes = encode_message(&rustbgpd_wire::Message::Update(message)).unwrap();
    let mut partial = Vec::new();
    partial.extend(update.attributes.aggregator.map(|_| 7));
    partial.extend(update.attributes.only_to_customer.map(|_| 35));
    let other = update.attributes.other.iter().map(|raw| raw.passed_on().unwrap_or_else(|| raw.clone()));
    let attributes = PathAttributes { other: other.collect(), partial, ..update.attributes };
    let expected = Update { attributes, ..update };
    assert_eq!(Message::decode(&bytes, context), Ok(Message::Update(expected)));
}

/// A capability that both know: ours in their types.
fn capability(capability: &Capability) -> Theirs {
    let afi = |afi| Afi::from_u16(afi).unwrap();
    match capability {
        Capability::Multiprotocol { afi: number, safi: _ } => {
            Theirs::MultiProtocol { afi: afi(*number), safi: Safi::Unicast }
        }
        Capability::RouteRefresh => Theirs::RouteRefresh,
        Capability::ExtendedMessage => Theirs::ExtendedMessage,
        Capability::EnhancedRouteRefresh => Theirs::EnhancedRouteRefresh,
        Capability::FourOctetAsn(asn) => Theirs::FourOctetAs { asn: *asn },
        Capability::GracefulRestart(restart) => Theirs::GracefulRestart {
            restart_state: restart.restarting,
            notification: restart.notification,
            restart_time: restart.restart_time,
            families: (restart.families.iter())
                .map(|family| rustbgpd_wire::GracefulRestartFamily {
                    afi: afi(family.afi),
                    safi: Safi::Unicast,
                    forwarding_preserved: family.forwarding,
                })
                .collect(),
        },
        Capability::AddPath(families) => Theirs::AddPath(
            (families.iter())
                .map(|family| rustbgpd_wire::AddPathFamily {
                    afi: afi(family.afi),
                    safi: Safi::Unicast,
                    send_receive: match (family.receive, family.send) {
                        (true, false) => rustbgpd_wire::AddPathMode::Receive,
                        (false, true) => rustbgpd_wire::AddPathMode::Send,
                        (true, true) => rustbgpd_wire::AddPathMode::Both,
                        (false, false) => panic!("none was made"),
                    },
                })
                .collect(),
        ),
        Capability::LongLivedGracefulRestart(families) => Theirs::LongLivedGracefulRestart(
            (families.iter())
                .map(|family| rustbgpd_wire::LlgrFamily {
                    afi: afi(family.afi),
                    safi: Safi::Unicast,
                    forwarding_preserved: family.forwarding,
                    stale_time: family.stale_time,
                })
                .collect(),
        ),
        Capability::ExtendedNextHop(families) => Theirs::ExtendedNextHop(
            (families.iter())
                .map(|family| rustbgpd_wire::ExtendedNextHopFamily {
                    nlri_afi: afi(family.afi),
                    nlri_safi: Safi::Unicast,
                    next_hop_afi: afi(family.next_hop_afi),
                })
                .collect(),
        ),
        // RFC 9234's is unknown to it.
        Capability::Role(role) => Theirs::Unknown { code: 9, data: Bytes::from(vec![*role]) },
        Capability::Unknown { code, value } => {
            Theirs::Unknown { code: *code, data: Bytes::from(value.clone()) }
        }
    }
}

proptest! {
    #[test]
    fn updates(update in update(PLAIN)) {
        both_ways(update, PLAIN);
    }

    #[test]
    fn updates_of_several_paths(update in update(ADD_PATH)) {
        both_ways(update, ADD_PATH);
    }

    #[test]
    fn opens(open in open()) {
        let bytes = encode(&Message::Open(open.clone()), PLAIN);
        let Ok(rustbgpd_wire::Message::Open(theirs)) = decode_message(&mut Bytes::from(bytes), 4096) else {
            panic!("not an OPEN")
        };
        assert_eq!(
            (theirs.my_as, theirs.hold_time, theirs.bgp_identifier),
            (open.my_as, open.hold_time, open.router_id)
        );
        assert_eq!(theirs.capabilities, open.capabilities.iter().map(capability).collect::<Vec<_>>());
        let bytes = encode_message(&rustbgpd_wire::Message::Open(theirs)).unwrap();
        assert_eq!(Message::decode(&bytes, PLAIN), Ok(Message::Open(open)));
    }
}
