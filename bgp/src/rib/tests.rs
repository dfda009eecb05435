//! What a peer is sent, read back from the messages.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};

use super::{Export, ExportPolicy, PrefixFilter, Rib, RouteChanges, Written};
use crate::wire::{AsPath, Context, Message, Origin, PathAttributes, Role, Update, frame};
use crate::{Attributes, Community, Families, Family};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
const EBGP: Context =
    Context { four_octet_asn: true, ibgp: false, extended_messages: false, add_path: Families::NONE };
const IBGP: Context = Context { ibgp: true, ..EBGP };

fn export(context: Context) -> Export {
    let next_hops = vec![
        (Family::Ipv4Unicast, Some("10.0.0.1".parse().unwrap())),
        (Family::Ipv6Unicast, Some("fd00::1".parse().unwrap())),
    ];
    Export {
        asn: 64512,
        context,
        enhanced_refresh: false,
        next_hops,
        role: None,
        link_local: None,
        policy: ExportPolicy::default(),
        peer: PEER,
        router_id: [10, 9, 9, 2].into(),
        client: false,
        extended_next_hop: false,
        long_lived: Families::NONE,
    }
}

fn med(med: u32) -> Attributes {
    Attributes { med: Some(med), ..Attributes::default() }
}

fn announce(prefixes: &[&str], attributes: &Attributes) -> RouteChanges {
    let announce = prefixes.iter().map(|p| (p.parse().unwrap(), attributes.clone())).collect();
    RouteChanges { announce, withdraw: Vec::new() }
}

fn withdraw(prefixes: &[&str]) -> RouteChanges {
    RouteChanges { announce: Vec::new(), withdraw: prefixes.iter().map(|p| p.parse().unwrap()).collect() }
}

fn decode(mut bytes: &[u8], context: Context) -> Vec<Update> {
    let mut updates = Vec::new();
    while let Some(length) = frame(bytes).unwrap() {
        let Ok(Message::Update(update)) = Message::decode(&bytes[..length], context) else {
            panic!("not an UPDATE")
        };
        assert_eq!(update.malformed, []);
        updates.push(update);
        bytes = &bytes[length..];
    }
    assert!(bytes.is_empty());
    updates
}

/// All that is pending, as UPDATEs.
fn sent_in(rib: &mut Rib, context: Context) -> Vec<Update> {
    let mut bytes = Vec::new();
    let Written { updates: count, drained } = rib.write(PEER, &mut bytes, usize::MAX);
    let updates = decode(&bytes, context);
    assert_eq!(updates.len() as u64, count);
    assert_eq!(drained, Some(rib.sequence()));
    assert!(updates.is_empty() || !rib.has_pending(PEER));
    updates
}

/// All that is pending, in words: `+prefix med`, `-prefix`, `end family`.
fn sent(rib: &mut Rib) -> Vec<String> {
    let words = |update: &Update| {
        if let Some(family) = update.end_of_rib() {
            return vec![format!("end {family}")];
        }
        let med = update.attributes.med.unwrap_or_default();
        let reachable = update.reachable().map(|prefix| format!("+{prefix} {med}"));
        reachable.chain(update.unreachable().map(|prefix| format!("-{prefix}"))).collect()
    };
    sent_in(rib, EBGP).iter().flat_map(words).collect()
}

/// A peer that has been sent what there is, and End-of-RIB.
fn rib_with(changes: RouteChanges) -> Rib {
    let mut rib = Rib::new(false);
    rib.apply(changes);
    rib.peer_up(PEER, export(EBGP));
    sent(&mut rib);
    rib
}

const A: &str = "192.0.2.1/32";
const B: &str = "192.0.2.2/32";
const C: &str = "2001:db8::1/128";

#[test]
fn initial_routes_then_end_of_rib() {
    let mut rib = Rib::new(false);
    rib.apply(announce(&[A, C], &med(1)));
    assert_eq!(rib.write(PEER, &mut Vec::new(), usize::MAX), Written::default());
    rib.peer_up(PEER, export(EBGP));
    let expected = ["+192.0.2.1/32 1", "end ipv4-unicast", "+2001:db8::1/128 1", "end ipv6-unicast"];
    assert_eq!(sent(&mut rib), expected);
    assert_eq!(sent(&mut rib), [""; 0]);
    rib.peer_down(PEER);
    rib.peer_up(PEER, export(EBGP));
    assert_eq!(sent(&mut rib), expected);
}

#[test]
fn end_of_rib_waits_after_a_restart_and_routes_do_not() {
    let mut rib = Rib::new(true);
    rib.peer_up(PEER, export(EBGP));
    rib.apply(announce(&[A], &med(1)));
    assert_eq!(sent(&mut rib), ["+192.0.2.1/32 1"]);
    rib.initial_routes_complete();
    rib.peers_have_told();
    assert!(rib.has_pending(PEER));
    assert_eq!(sent(&mut rib), ["end ipv4-unicast", "end ipv6-unicast"]);
}

/// Changes to what the peer holds (A with 1, B with 1), and what is sent of them.
#[test]
fn only_what_differs_is_sent() {
    let (one, two) = (med(1), med(2));
    let cases: Vec<(&str, Vec<RouteChanges>, Vec<&str>)> = vec![
        ("the same again", vec![announce(&[A, B], &one)], vec![]),
        ("one changes: no withdrawal", vec![announce(&[A], &two)], vec!["+192.0.2.1/32 2"]),
        ("gone", vec![withdraw(&[A])], vec!["-192.0.2.1/32"]),
        ("gone, never there", vec![withdraw(&[C])], vec![]),
        ("gone and back", vec![withdraw(&[A]), announce(&[A], &one)], vec![]),
        ("gone and back, changed", vec![withdraw(&[A]), announce(&[A], &two)], vec!["+192.0.2.1/32 2"]),
        ("changed and back", vec![announce(&[A], &two), announce(&[A], &one)], vec![]),
        ("come and gone", vec![announce(&[C], &one), withdraw(&[C])], vec![]),
        ("the last of many", (2..9).map(|n| announce(&[A], &med(n))).collect(), vec!["+192.0.2.1/32 8"]),
        (
            "host bits mean nothing",
            vec![withdraw(&["192.0.2.0/24"]), announce(&["192.0.3.7/24"], &one)],
            vec!["+192.0.3.0/24 1"],
        ),
    ];
    for (name, changes, expected) in cases {
        let mut rib = rib_with(announce(&[A, B], &one));
        changes.into_iter().for_each(|change| rib.apply(change));
        assert_eq!(sent(&mut rib), expected, "{name}");
    }
}

#[test]
fn refresh_sends_everything_again() {
    let mut rib = rib_with(announce(&[A, B, C], &med(1)));
    rib.refresh(PEER, Family::Ipv4Unicast);
    assert_eq!(sent(&mut rib), ["+192.0.2.1/32 1", "+192.0.2.2/32 1"]);

    // What changes before it is sent again is sent as it is then, or withdrawn.
    rib.refresh(PEER, Family::Ipv4Unicast);
    rib.apply(announce(&[A], &med(2)));
    rib.apply(announce(&[A], &med(1)));
    rib.apply(withdraw(&[B]));
    assert_eq!(sent(&mut rib), ["-192.0.2.2/32", "+192.0.2.1/32 1"]);
}

#[test]
fn family_without_next_hop_is_not_announced() {
    let mut rib = Rib::new(false);
    rib.apply(announce(&[A, C], &med(1)));
    let next_hops =
        vec![(Family::Ipv4Unicast, None), (Family::Ipv6Unicast, Some("fd00::1".parse().unwrap()))];
    rib.peer_up(PEER, Export { next_hops, ..export(EBGP) });
    assert_eq!(sent(&mut rib), ["end ipv4-unicast", "+2001:db8::1/128 1", "end ipv6-unicast"]);
    rib.apply(withdraw(&[A]));
    assert_eq!(sent(&mut rib), [""; 0]);
    assert_eq!(rib.families(PEER).iter().map(|f| f.sent).collect::<Vec<_>>(), [0, 1]);
}

/// ONLY_TO_CUSTOMER is on what goes to customers, peers and clients of a route server (RFC 9234 §5), and not within the AS.
#[test]
fn only_to_customer() {
    use Role::{Customer, Peer, Provider, RouteServer, RouteServerClient};
    for (context, role, marked) in [
        (EBGP, None, false),
        (EBGP, Some(Provider), true),
        (EBGP, Some(RouteServer), true),
        (EBGP, Some(Peer), true),
        (EBGP, Some(Customer), false),
        (EBGP, Some(RouteServerClient), false),
        (IBGP, Some(Provider), false),
    ] {
        let mut rib = Rib::new(false);
        rib.apply(announce(&[A], &med(1)));
        rib.peer_up(PEER, Export { role, ..export(context) });
        let mut bytes = Vec::new();
        rib.write(PEER, &mut bytes, usize::MAX);
        let mark = [&[0xc0, 35, 4][..], &64512_u32.to_be_bytes()].concat();
        assert_eq!(bytes.windows(mark.len()).any(|part| part == mark), marked, "{role:?}");
    }
}

/// All of a family is announced again with another next hop, and withdrawn only where there is none any more.
#[test]
fn next_hops_change() {
    let mut rib = Rib::new(false);
    rib.apply(announce(&[A, B, C], &med(1)));
    rib.peer_up(PEER, export(EBGP));
    sent(&mut rib);
    let set = |rib: &mut Rib, v4: Option<&str>| {
        let v4 = v4.map(|hop| hop.parse().unwrap());
        rib.set_next_hops(
            PEER,
            &[(Family::Ipv4Unicast, v4), (Family::Ipv6Unicast, Some("fd00::1".parse().unwrap()))],
        );
    };
    set(&mut rib, Some("10.0.0.1"));
    assert_eq!(sent(&mut rib), [""; 0], "the same");
    // What is pending then is told too, once.
    rib.apply(withdraw(&[B]));
    set(&mut rib, Some("10.0.0.7"));
    let updates = sent_in(&mut rib, EBGP);
    assert_eq!(
        updates.iter().flat_map(Update::unreachable).map(|nlri| nlri.prefix).collect::<Vec<_>>(),
        [B.parse().unwrap()]
    );
    let hops: Vec<_> = updates.iter().filter_map(|update| update.attributes.next_hop).collect();
    assert_eq!(hops, [std::net::Ipv4Addr::new(10, 0, 0, 7)]);
    rib.apply(announce(&[B], &med(1)));
    set(&mut rib, None);
    assert_eq!(sent(&mut rib), ["-192.0.2.1/32"], "of what is pending the peer knows nothing");
    set(&mut rib, Some("10.0.0.1"));
    assert_eq!(sent(&mut rib), ["+192.0.2.1/32 1", "+192.0.2.2/32 1"]);
}

#[test]
fn attributes_by_kind_of_session() {
    let plain = Attributes::default();
    let full = Attributes { local_pref: Some(7), med: Some(8), as_path_prepend: 2, ..Attributes::default() };
    let old = Context::default();
    let leaving = Attributes { communities: [Community::GRACEFUL_SHUTDOWN].into(), ..full.clone() };
    let cases = [
        ("eBGP, about to go", EBGP, &leaving, vec![64512; 3], None),
        ("iBGP, about to go", IBGP, &leaving, vec![], Some(0)),
        ("eBGP", EBGP, &plain, vec![64512], None),
        ("eBGP, full", EBGP, &full, vec![64512; 3], None),
        ("eBGP, 2-octet", old, &plain, vec![64512], None),
        ("iBGP", IBGP, &plain, vec![], Some(100)),
        ("iBGP, full", IBGP, &full, vec![], Some(7)),
    ];
    for (name, context, route, path, local_pref) in cases {
        let mut rib = Rib::new(false);
        rib.peer_up(PEER, export(context));
        rib.apply(announce(&[A], route));
        let expected = PathAttributes {
            origin: Some(Origin::Igp),
            as_path: Some(AsPath::sequence(path)),
            next_hop: Some([10, 0, 0, 1].into()),
            med: route.med,
            local_pref,
            communities: route.communities.to_vec(),
            ..PathAttributes::default()
        };
        assert_eq!(sent_in(&mut rib, context)[0].attributes, expected, "{name}");
    }
}

/// RFC 7313 §4: the answer stands between its markers however many writes it takes, but never before End-of-RIB.
#[test]
fn a_peer_is_told_where_a_refresh_begins_and_ends() {
    let mut rib = Rib::new(true);
    rib.apply(announce(&[A, B], &med(1)));
    rib.peer_up(PEER, Export { enhanced_refresh: true, ..export(EBGP) });
    let refreshed = |rib: &mut Rib, limit: usize| {
        rib.refresh(PEER, Family::Ipv4Unicast);
        let mut bytes = Vec::new();
        while rib.has_pending(PEER) {
            // A little at a time, as to a peer that reads slowly.
            let room = bytes.len() + limit;
            rib.write(PEER, &mut bytes, room);
        }
        let mut told = Vec::new();
        let mut rest = &bytes[..];
        while let Some(length) = frame(rest).unwrap() {
            told.push(match Message::decode(&rest[..length], EBGP).unwrap() {
                Message::RouteRefresh(marker) => format!("{} {}", marker.afi, marker.subtype),
                Message::Update(update) if update.end_of_rib().is_some() => "end of RIB".to_owned(),
                Message::Update(update) => format!("{} prefixes", update.reachable().count()),
                other => panic!("{other:?}"),
            });
            rest = &rest[length..];
        }
        told
    };
    assert_eq!(refreshed(&mut rib, usize::MAX >> 1), ["2 prefixes"]);
    rib.initial_routes_complete();
    rib.peers_have_told();
    assert_eq!(sent(&mut rib), ["end ipv4-unicast", "end ipv6-unicast"]);
    for limit in [1, usize::MAX >> 1] {
        assert_eq!(refreshed(&mut rib, limit), ["1 1", "2 prefixes", "1 2"], "{limit}");
    }
    rib.apply(withdraw(&[A, B]));
    sent(&mut rib);
    assert_eq!(refreshed(&mut rib, 1), ["1 1", "1 2"], "of nothing");
    rib.peer_down(PEER);
    rib.peer_up(PEER, export(EBGP));
    sent(&mut rib);
    assert_eq!(refreshed(&mut rib, 1), [""; 0], "a peer that does not want to know");
}

/// A policy that changes, to a peer that holds A, B and C with 1, A of kind 1 and the others of kind 0: what is announced with
/// something else is told again, never withdrawn, and nothing is told that stays as it is.
#[test]
fn policies_change() {
    let only = |prefixes: &[&str]| ExportPolicy {
        prefixes: Some(prefixes.iter().map(|p| PrefixFilter::exactly(p.parse().unwrap())).collect()),
        ..ExportPolicy::default()
    };
    let with_med = |med| ExportPolicy { med: Some(med), ..ExportPolicy::default() };
    let of_kind = |kind| ExportPolicy { kinds: Some([kind].into()), ..ExportPolicy::default() };
    let all = ExportPolicy::default();
    let cases: Vec<(&str, Vec<ExportPolicy>, Vec<&str>)> = vec![
        ("the same", vec![all.clone()], vec![]),
        ("one that changes nothing", vec![with_med(1)], vec![]),
        ("another MED", vec![with_med(2)], vec!["+192.0.2.1/32 2", "+192.0.2.2/32 2", "+2001:db8::1/128 2"]),
        ("some prefixes", vec![only(&[A, C])], vec!["-192.0.2.2/32"]),
        ("one kind", vec![of_kind(1)], vec!["-192.0.2.2/32", "-2001:db8::1/128"]),
        ("and back before it was told", vec![of_kind(1), all], vec![]),
        (
            "fewer, with another MED",
            vec![ExportPolicy { med: Some(3), ..only(&[B]) }],
            vec!["-192.0.2.1/32", "+192.0.2.2/32 3", "-2001:db8::1/128"],
        ),
    ];
    for (name, policies, expected) in cases {
        let mut changes = announce(&[B, C], &med(1));
        changes.announce.push((A.parse().unwrap(), Attributes { kind: 1, ..med(1) }));
        let mut rib = rib_with(changes);
        policies.iter().for_each(|policy| rib.set_policy(PEER, policy));
        assert_eq!(sent(&mut rib), expected, "{name}");
        // What comes from then on is told by the last one.
        let Some(last) = policies.last() else { continue };
        rib.apply(announce(&["198.51.100.0/24"], &med(9)));
        let told = last.med.unwrap_or(9);
        let passes = last.passes(&"198.51.100.0/24".parse().unwrap(), 0);
        let expected = passes.then(|| format!("+198.51.100.0/24 {told}"));
        assert_eq!(sent(&mut rib), expected.into_iter().collect::<Vec<_>>(), "{name}");
        // What is told again, too.
        rib.refresh(PEER, Family::Ipv4Unicast);
        let again = sent(&mut rib);
        let v4 = [(A, 1), (B, 0), ("198.51.100.0/24", 0)];
        let passing = v4.iter().filter(|(prefix, kind)| last.passes(&prefix.parse().unwrap(), *kind));
        assert_eq!(again.len(), passing.count(), "{name}: {again:?}");
    }
}

/// Routes that a policy gives the same attributes share messages, whatever they came with.
#[test]
fn what_a_policy_makes_equal_is_packed_together() {
    let mut rib = Rib::new(false);
    let policy = ExportPolicy { med: Some(7), ..ExportPolicy::default() };
    rib.peer_up(PEER, Export { policy, ..export(EBGP) });
    sent(&mut rib);
    for n in 0..2400u32 {
        let prefix = IpNet::from(IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n)));
        let attributes = Attributes { kind: (n % 5) as u8, ..med(n % 100) };
        rib.apply(RouteChanges { announce: vec![(prefix, attributes)], withdraw: Vec::new() });
    }
    let updates = sent_in(&mut rib, EBGP);
    let counts: Vec<usize> = updates.iter().map(|update| update.nlri.len()).collect();
    assert_eq!(counts, [809, 809, 782]);
    assert!(updates.iter().all(|update| update.attributes.med == Some(7)));
}

/// As few messages as 4096 bytes each allow, for each attribute set.
#[test]
fn messages_are_as_few_as_possible() {
    let mut rib = rib_with(RouteChanges::default());
    for n in 0..3000u32 {
        let prefix = IpNet::from(IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n)));
        rib.apply(RouteChanges { announce: vec![(prefix, med(n % 3))], withdraw: Vec::new() });
    }
    let updates = sent_in(&mut rib, EBGP);
    // Header 19, lengths 4, ORIGIN 4, AS_PATH 9, NEXT_HOP 7, MED 7; then 5 for each prefix.
    let most = (4096 - 50) / 5;
    assert_eq!(most, 809);
    assert_eq!(updates.len(), 3 * 1000usize.div_ceil(most));
    let mut counts: Vec<usize> = updates.iter().map(|u| u.nlri.len()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [191, 191, 191, 809, 809, 809]);
}

/// Attributes too long for any message take back what the peer holds of the route.
#[test]
fn attributes_too_long_withdraw() {
    let mut rib = rib_with(announce(&[A, B], &med(1)));
    let communities = (0..2000).map(Community).collect();
    rib.apply(announce(&[A, C], &Attributes { communities, ..Attributes::default() }));
    let mut told = sent_in_all(&mut rib);
    told.sort();
    assert_eq!(told, ["-192.0.2.1/32"]);
}

/// [`sent`] until nothing more is.
fn sent_in_all(rib: &mut Rib) -> Vec<String> {
    let mut all = Vec::new();
    while rib.has_pending(PEER) {
        let mut bytes = Vec::new();
        rib.write(PEER, &mut bytes, usize::MAX);
        let updates = decode(&bytes, EBGP);
        all.extend(updates.iter().flat_map(Update::unreachable).map(|prefix| format!("-{prefix}")));
        all.extend(updates.iter().flat_map(Update::reachable).map(|prefix| format!("+{prefix}")));
    }
    all
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Announce(u8, u32),
    Withdraw(u8),
    Refresh,
    Write(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..40u8, 0..4u32).prop_map(|(n, med)| Step::Announce(n, med)),
        3 => (0..40u8).prop_map(Step::Withdraw),
        1 => any::<bool>().prop_map(|_| Step::Refresh),
        2 => (0..300usize).prop_map(Step::Write),
    ]
}

/// Even ones are IPv4, odd ones IPv6.
fn prefix(n: u8) -> IpNet {
    let address: IpAddr = match n % 2 {
        0 => [192, 0, 2, n].into(),
        _ => [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)].into(),
    };
    address.into()
}

/// What a peer makes of UPDATEs.
fn learn(table: &mut BTreeMap<IpNet, Option<u32>>, bytes: &[u8]) {
    for update in decode(bytes, EBGP) {
        for prefix in update.unreachable().map(|nlri| nlri.prefix) {
            assert!(table.remove(&prefix).is_some(), "{prefix} withdrawn, was not announced");
        }
        table.extend(update.reachable().map(|nlri| (nlri.prefix, update.attributes.med)));
    }
}

proptest! {
    /// Whatever happens, however little is written at a time, the peer ends up with the Loc-RIB.
    #[test]
    fn peer_converges(before in vec(step(), 0..40), steps in vec(step(), 0..200)) {
        let mut rib = Rib::new(false);
        let (mut routes, mut table) = (BTreeMap::new(), BTreeMap::new());
        for (index, step) in before.iter().map(Some).chain([None]).chain(steps.iter().map(Some)).enumerate() {
            match step {
                None => rib.peer_up(PEER, export(EBGP)),
                Some(&Step::Announce(n, m)) => {
                    routes.insert(prefix(n), Some(m));
                    rib.apply(RouteChanges { announce: vec![(prefix(n), med(m))], withdraw: Vec::new() });
                }
                Some(&Step::Withdraw(n)) => {
                    routes.remove(&prefix(n));
                    rib.apply(RouteChanges { announce: Vec::new(), withdraw: vec![prefix(n)] });
                }
                Some(Step::Refresh) => rib.refresh(PEER, Family::of(&prefix(u8::try_from(index % 2).unwrap()))),
                Some(&Step::Write(limit)) => {
                    let mut bytes = Vec::new();
                    rib.write(PEER, &mut bytes, limit);
                    learn(&mut table, &bytes);
                }
            }
        }
        while rib.has_pending(PEER) {
            let mut bytes = Vec::new();
            rib.write(PEER, &mut bytes, 100);
            learn(&mut table, &bytes);
        }
        assert_eq!(table, routes);
        assert_eq!(rib.families(PEER).iter().map(|f| f.sent).sum::<usize>(), routes.len());
    }
}

/// To a peer that takes several paths each prefix has the same name at any time; messages are as full as they get with it.
#[test]
fn paths_have_names() {
    const COUNT: u32 = 5000;
    let hosts = || (0..COUNT).map(|n| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n)).into());
    for (add_path, path_id, in_one) in [(Families::ALL, 1, 451), (Families::NONE, 0, 812)] {
        let context = Context { add_path, ..EBGP };
        let mut rib = Rib::new(false);
        rib.peer_up(PEER, export(context));
        rib.apply(RouteChanges { announce: hosts().map(|host| (host, med(1))).collect(), withdraw: vec![] });
        rib.apply(announce(&["2001:db8::1/128"], &med(1)));
        let named = |update: &Update| {
            update.reachable().chain(update.unreachable()).all(|nlri| nlri.path_id == path_id)
        };
        let updates = sent_in(&mut rib, context);
        assert!(updates.iter().all(named));
        let messages = updates.iter().filter(|update| !update.nlri.is_empty()).count();
        assert_eq!(messages, usize::try_from(COUNT).unwrap().div_ceil(in_one), "{add_path:?}");
        // Changed and withdrawn by the same name.
        rib.apply(announce(&["10.0.0.1/32", "2001:db8::1/128"], &med(2)));
        rib.apply(withdraw(&["10.0.0.2/32"]));
        let updates = sent_in(&mut rib, context);
        assert!(updates.len() == 3 && updates.iter().all(named), "{updates:?}");
        rib.apply(withdraw(&["2001:db8::1/128"]));
        let updates = sent_in(&mut rib, context);
        assert!(updates.len() == 1 && updates.iter().all(named), "{updates:?}");
    }
}
