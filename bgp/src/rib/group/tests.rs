//! Peers that come, go and change, and share what they are told meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::{Strategy, prop_oneof, proptest};
use proptest::sample::select;

use super::super::{Export, ExportPolicy, PrefixFilter, Rib, RouteChanges};
use crate::wire::{Context, Message, MpReach, Nlri, frame};
use crate::{Attributes, Families, Family};

const EBGP: Context =
    Context { four_octet_asn: true, ibgp: false, extended_messages: false, add_path: Families::NONE };

/// Two of another AS, two of the same, and one of the same that takes several paths.
const PEERS: [(u8, bool, Families); 5] = [
    (2, false, Families::NONE),
    (3, false, Families::NONE),
    (4, true, Families::NONE),
    (5, true, Families::NONE),
    (6, true, Families::ALL),
];

fn address(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

fn next_hops(ipv4: Option<u8>) -> Vec<(Family, Option<IpAddr>)> {
    let ipv6 = "fd00::1".parse().unwrap();
    vec![(Family::Ipv4Unicast, ipv4.map(address)), (Family::Ipv6Unicast, Some(ipv6))]
}

/// Of the peer with this index, before anything changes.
fn export(index: usize) -> Export {
    let (number, ibgp, add_path) = PEERS[index];
    Export {
        asn: 64512,
        context: Context { ibgp, add_path, ..EBGP },
        enhanced_refresh: false,
        next_hops: next_hops(Some(100 + number)),
        role: None,
        link_local: None,
        policy: ExportPolicy::default(),
        peer: address(number),
        router_id: [10, 9, 9, number].into(),
        client: false,
        extended_next_hop: false,
        long_lived: Families::NONE,
    }
}

fn policies() -> Vec<ExportPolicy> {
    let only = PrefixFilter { within: "192.0.2.0/29".parse().unwrap(), min_length: 32, max_length: 32 };
    vec![
        ExportPolicy::default(),
        ExportPolicy { med: Some(7), ..ExportPolicy::default() },
        ExportPolicy { kinds: Some([1].into()), ..ExportPolicy::default() },
        ExportPolicy { prefixes: Some(vec![only]), ..ExportPolicy::default() },
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Announce { prefix: u8, med: u32, kind: u8 },
    Withdraw { prefix: u8 },
    Up { peer: usize },
    Down { peer: usize },
    Policy { peer: usize, policy: usize },
    NextHop { peer: usize, ipv4: Option<u8> },
    Refresh { peer: usize, family: Family },
    Write { peer: usize, limit: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || 0..PEERS.len();
    prop_oneof![
        6 => (0..30u8, 0..3u32, 0..2u8).prop_map(|(prefix, med, kind)| Step::Announce { prefix, med, kind }),
        4 => (0..30u8).prop_map(|prefix| Step::Withdraw { prefix }),
        3 => peer().prop_map(|peer| Step::Up { peer }),
        1 => peer().prop_map(|peer| Step::Down { peer }),
        2 => (peer(), 0..policies().len()).prop_map(|(peer, policy)| Step::Policy { peer, policy }),
        1 => (peer(), select(vec![None, Some(8), Some(9)])).prop_map(|(peer, ipv4)| Step::NextHop { peer, ipv4 }),
        1 => (peer(), select(Family::ALL.to_vec())).prop_map(|(peer, family)| Step::Refresh { peer, family }),
        5 => (peer(), 0..300usize).prop_map(|(peer, limit)| Step::Write { peer, limit }),
    ]
}

/// Even ones are IPv4, odd ones IPv6.
fn prefix(number: u8) -> IpNet {
    let address: IpAddr = match number % 2 {
        0 => [192, 0, 2, number].into(),
        _ => [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)].into(),
    };
    address.into()
}

/// What a peer holds: MED and next hop of each path.
type Table = BTreeMap<Nlri, (Option<u32>, IpAddr)>;

/// Writes to a peer, and has it read that.
fn write(rib: &mut Rib, peer: IpAddr, limit: usize, table: &mut Table) {
    let Some(context) = rib.export(peer).map(|export| export.context) else { return };
    let mut bytes = Vec::new();
    rib.write(peer, &mut bytes, limit);
    let mut rest = &bytes[..];
    while let Some(length) = frame(rest).unwrap() {
        let Ok(Message::Update(update)) = Message::decode(&rest[..length], context) else {
            panic!("not an UPDATE")
        };
        rest = &rest[length..];
        for path in update.unreachable() {
            assert!(table.remove(&path).is_some(), "{path} withdrawn, was not announced");
        }
        let next_hop = match &update.mp_reach {
            Some(MpReach::Ipv4 { next_hop, .. }) => Some(*next_hop),
            Some(MpReach::Ipv6 { next_hop, .. }) => Some((*next_hop).into()),
            None => update.attributes.next_hop.map(IpAddr::from),
        };
        table.extend(update.reachable().map(|path| (path, (update.attributes.med, next_hop.unwrap()))));
    }
}

fn write_all(rib: &mut Rib, peer: IpAddr, table: &mut Table) {
    while rib.has_pending(peer) {
        write(rib, peer, 200, table);
    }
}

/// A member that changes goes to those that are told the same as it is from then on; none is left empty.
#[test]
fn members_of_groups() {
    let mut rib = Rib::new(false);
    let sizes = |rib: &Rib| {
        let mut sizes: Vec<usize> = rib.groups.groups.values().map(|group| group.members.len()).collect();
        sizes.sort_unstable();
        sizes
    };
    for (index, (peer, ..)) in PEERS.into_iter().enumerate() {
        rib.peer_up(address(peer), export(index));
    }
    assert_eq!(sizes(&rib), [1, 2, 2], "next hops do not part them");
    rib.set_policy(address(2), &policies()[1]);
    assert_eq!(sizes(&rib), [1, 1, 1, 2]);
    rib.set_policy(address(3), &policies()[1]);
    assert_eq!(sizes(&rib), [1, 2, 2]);
    rib.set_client(address(3), true);
    assert_eq!(sizes(&rib), [1, 2, 2], "nothing is passed on to another AS");
    rib.set_client(address(5), true);
    assert_eq!(sizes(&rib), [1, 1, 1, 2]);
    rib.peer_down(address(6));
    rib.peer_up(address(4), export(3));
    assert_eq!(sizes(&rib), [1, 1, 2], "a session that comes again without having ended");
    [2, 3, 4, 5].into_iter().for_each(|peer| rib.peer_down(address(peer)));
    assert_eq!(sizes(&rib), [0; 0]);
    assert!(rib.groups.of.is_empty());
}

proptest! {
    /// Whatever happens, each peer ends up with what it would be told if it came only then, whoever it shares that with.
    #[test]
    fn members_converge(steps in vec(step(), 0..200)) {
        let (mut rib, mut routes) = (Rib::new(false), BTreeMap::new());
        let mut exports: Vec<Export> = (0..PEERS.len()).map(export).collect();
        let mut tables: BTreeMap<usize, Table> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Announce { prefix: number, med, kind } => {
                    let attributes = Attributes { med: Some(med), kind, ..Attributes::default() };
                    routes.insert(prefix(number), attributes.clone());
                    rib.apply(RouteChanges { announce: vec![(prefix(number), attributes)], withdraw: vec![] });
                }
                Step::Withdraw { prefix: number } => {
                    routes.remove(&prefix(number));
                    rib.apply(RouteChanges { announce: vec![], withdraw: vec![prefix(number)] });
                }
                Step::Up { peer } => {
                    rib.peer_up(exports[peer].peer, exports[peer].clone());
                    tables.insert(peer, Table::new());
                }
                Step::Down { peer } => {
                    rib.peer_down(exports[peer].peer);
                    tables.remove(&peer);
                }
                Step::Policy { peer, policy } => {
                    exports[peer].policy = policies()[policy].clone();
                    rib.set_policy(exports[peer].peer, &policies()[policy]);
                }
                Step::NextHop { peer, ipv4 } => {
                    exports[peer].next_hops = next_hops(ipv4);
                    rib.set_next_hops(exports[peer].peer, &next_hops(ipv4));
                }
                Step::Refresh { peer, family } => rib.refresh(exports[peer].peer, family),
                Step::Write { peer, limit } => {
                    if let Some(table) = tables.get_mut(&peer) {
                        write(&mut rib, exports[peer].peer, limit, table);
                    }
                }
            }
        }
        let terms: Vec<_> = tables.keys().map(|&peer| super::Terms::of(&exports[peer])).collect();
        let apart = terms.iter().enumerate().filter(|(index, terms_of)| !terms[..*index].contains(terms_of));
        assert_eq!(rib.groups.groups.len(), apart.count());
        let announce: Vec<_> = routes.into_iter().collect();
        for (peer, mut table) in tables {
            let (export, address) = (exports[peer].clone(), exports[peer].peer);
            write_all(&mut rib, address, &mut table);
            let (mut fresh, mut expected) = (Rib::new(false), Table::new());
            fresh.apply(RouteChanges { announce: announce.clone(), withdraw: vec![] });
            fresh.peer_up(address, export);
            write_all(&mut fresh, address, &mut expected);
            assert_eq!(table, expected, "what {address} holds");
            let held = Family::ALL.into_iter().flat_map(|family| rib.holds(address, family));
            assert_eq!(held.map(|(path, _)| path).collect::<BTreeSet<_>>(), table.keys().copied().collect());
            assert_eq!(rib.families(address).iter().map(|out| out.sent()).sum::<usize>(), table.len());
        }
    }
}
