//! Against `netgauze-bgp-pkt`.

use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::nlri::{Ipv4UnicastAddress, Ipv6UnicastAddress};
use netgauze_bgp_pkt::path_attribute::{
    Aggregator, AsPath, MpReach, MpUnreach, PathAttribute, PathAttributeValue as Value,
};
use netgauze_bgp_pkt::update::BgpUpdateMessage;
use netgauze_bgp_pkt::wire::deserializer::BgpParsingContext;
use netgauze_iana::address_family::AddressType;
use netgauze_parse_utils::WritablePdu;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use proptest::prelude::proptest;
use sheave_bgp::Families;
use sheave_bgp::wire::{Capability, Context, Message, Update};

use crate::{ADD_PATH, PLAIN, encode, meaning, open, path_in_words, update};

/// A peer of 2-octet ASNs.
const OLD: Context = Context { four_octet_asn: false, ..PLAIN };

fn decode(bytes: &[u8], context: Context) -> BgpMessage {
    let mut theirs = BgpParsingContext::asn2_default();
    theirs.set_asn4(context.four_octet_asn);
    if context.add_path == Families::ALL {
        theirs.add_path_mut().insert(AddressType::Ipv4Unicast, true);
        theirs.add_path_mut().insert(AddressType::Ipv6Unicast, true);
    }
    BgpMessage::parse(&mut SliceReader::new(bytes), &mut theirs).unwrap()
}

fn rewrite(message: &BgpMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.write(&mut bytes).unwrap();
    bytes
}

fn v4(what: &str, entry: &Ipv4UnicastAddress) -> String {
    format!("{what} {} path {}", entry.network().address(), entry.path_id().unwrap_or(0))
}

fn v6(what: &str, entry: &Ipv6UnicastAddress) -> String {
    format!("{what} {} path {}", entry.network().address(), entry.path_id().unwrap_or(0))
}

/// Extended communities are not told: it has types for each, and what it writes of them is compared.
fn attribute(attribute: &PathAttribute) -> Vec<String> {
    let one = |line: String| vec![line];
    match attribute.value() {
        Value::Origin(origin) => one(format!("origin {}", *origin as u8)),
        Value::AsPath(AsPath::As4PathSegments(segments)) => {
            let segments = segments.iter().map(|s| (s.segment_type() as u8, s.as_numbers()));
            one(format!("as path{}", path_in_words(segments)))
        }
        Value::NextHop(hop) => one(format!("next hop {}", hop.next_hop())),
        Value::MultiExitDiscriminator(med) => one(format!("med {}", med.metric())),
        Value::LocalPreference(pref) => one(format!("local pref {}", pref.metric())),
        Value::AtomicAggregate(_) => one("atomic aggregate".to_owned()),
        Value::Aggregator(Aggregator::As4Aggregator(by)) => {
            one(format!("aggregator {} {}", by.asn(), by.origin()))
        }
        Value::Communities(all) => {
            all.communities().iter().map(|c| format!("community {}", c.value())).collect()
        }
        Value::ExtendedCommunities(_) => Vec::new(),
        Value::LargeCommunities(all) => (all.communities().iter())
            .map(|c| format!("large {} {} {}", c.global_admin(), c.local_data1(), c.local_data2()))
            .collect(),
        Value::Originator(id) => one(format!("originator {}", id.id())),
        Value::ClusterList(ids) => (ids.cluster_list().iter().enumerate())
            .map(|(n, id)| format!("cluster {n} {}", id.id()))
            .collect(),
        Value::MpReach(MpReach::Ipv6Unicast { next_hop_global, next_hop_local, nlri }) => {
            let hop = format!("mp next hop {next_hop_global} {next_hop_local:?}");
            std::iter::once(hop).chain(nlri.iter().map(|entry| v6("mp announce", entry))).collect()
        }
        Value::MpUnreach(MpUnreach::Ipv4Unicast { nlri }) => {
            nlri.iter().map(|entry| v4("mp withdraw", entry)).collect()
        }
        Value::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
            nlri.iter().map(|entry| v6("mp withdraw", entry)).collect()
        }
        Value::OnlyToCustomer(asn) => one(format!("only to customer {}", asn.asn())),
        Value::UnknownAttribute(unknown) => {
            let flag = |set, bit| if set { bit } else { 0u8 };
            let flags = flag(attribute.optional(), 0x80)
                | flag(attribute.transitive(), 0x40)
                | flag(attribute.partial(), 0x20);
            one(format!("other {flags} {} {:?}", unknown.code(), unknown.value()))
        }
        other => panic!("none was sent: {other:?}"),
    }
}

fn their_meaning(update: &BgpUpdateMessage) -> Vec<String> {
    let mut lines: Vec<String> = update.path_attributes().iter().flat_map(attribute).collect();
    lines.extend(update.withdraw_routes().iter().map(|entry| v4("withdraw", entry)));
    lines.extend(update.nlri().iter().map(|entry| v4("announce", entry)));
    lines.sort();
    lines
}

/// Both ways, for one UPDATE.
fn both_ways(update: Update, context: Context) {
    let BgpMessage::Update(theirs) = decode(&encode(&Message::Update(update.clone()), context), context)
    else {
        panic!("not an UPDATE")
    };
    let mut ours = meaning(&update);
    ours.retain(|line| !line.starts_with("extended"));
    assert_eq!(their_meaning(&theirs), ours);
    let bytes = rewrite(&BgpMessage::Update(theirs));
    assert_eq!(Message::decode(&bytes, context), Ok(Message::Update(update)));
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

    /// It keeps AS_PATH and AS4_PATH apart; what it writes of both is the real path to us.
    #[test]
    fn across_a_two_octet_peer(update in update(OLD)) {
        let theirs = decode(&encode(&Message::Update(update.clone()), OLD), OLD);
        assert_eq!(Message::decode(&rewrite(&theirs), OLD), Ok(Message::Update(update)));
    }

    #[test]
    fn opens(open in open()) {
        let theirs = decode(&encode(&Message::Open(open.clone()), PLAIN), PLAIN);
        let BgpMessage::Open(message) = &theirs else { panic!("not an OPEN") };
        // Of several 4-octet capabilities it takes the last, we the first: RFC 5492 §4 leaves it open.
        let last = open.capabilities.iter().rev().find_map(|capability| match capability {
            Capability::FourOctetAsn(asn) => Some(*asn),
            _ => None,
        });
        assert_eq!(
            (message.my_as(), message.my_asn4(), message.hold_time(), message.bgp_id()),
            (open.my_as, last.unwrap_or(open.my_as.into()), open.hold_time, open.router_id)
        );
        assert_eq!(Message::decode(&rewrite(&theirs), PLAIN), Ok(Message::Open(open)));
    }
}
