//! Any history comes to the same as what is left of it.

use std::collections::BTreeMap;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};

use super::*;
use crate::Attributes;
use crate::rib::RouteChanges;
use crate::wire::Nlri;

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Announce { peer: u8, prefix: u8, path: u32, local_pref: u32 },
    Withdraw { peer: u8, prefix: u8, path: u32 },
    Own { prefix: u8, here: bool },
    Down { peer: u8, graceful: bool },
    Up { peer: u8 },
    EndOfRib { peer: u8 },
    Client { peer: u8, client: bool },
    Write { peer: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || (0..7usize).prop_map(|n| CLIENTS.into_iter().chain(OTHERS).chain(EXTERNAL).nth(n).unwrap());
    prop_oneof![
        8 => (peer(), 0..6u8, 0..2u32, 0..3u32)
            .prop_map(|(peer, prefix, path, local_pref)| Step::Announce { peer, prefix, path, local_pref }),
        4 => (peer(), 0..6u8, 0..2u32).prop_map(|(peer, prefix, path)| Step::Withdraw { peer, prefix, path }),
        1 => (0..6u8, any::<bool>()).prop_map(|(prefix, here)| Step::Own { prefix, here }),
        2 => (peer(), any::<bool>()).prop_map(|(peer, graceful)| Step::Down { peer, graceful }),
        3 => peer().prop_map(|peer| Step::Up { peer }),
        1 => peer().prop_map(|peer| Step::EndOfRib { peer }),
        1 => (peer(), any::<bool>()).prop_map(|(peer, client)| Step::Client { peer, client }),
        3 => peer().prop_map(|peer| Step::Write { peer }),
    ]
}

/// What a peer has announced: LOCAL_PREF and whether it is stale, by prefix and path.
type Announced = BTreeMap<(u8, u32), (u32, bool)>;

/// What every peer holds, by what it was told.
type Tables = BTreeMap<u8, BTreeMap<Nlri, u16>>;

/// Those that take several paths to a prefix: a client, and another internal peer.
const SEVERAL: [u8; 2] = [4, 101];

fn read(reflector: &mut Reflector, tables: &mut Tables, peer: u8) {
    let Some(table) = tables.get_mut(&peer) else { return };
    for update in reflector.updates(peer) {
        for gone in update.unreachable() {
            assert!(table.remove(&gone).is_some(), "{gone:?} withdrawn, was not announced");
        }
        table.extend(update.reachable().map(|nlri| (nlri, next_hop(&update))));
    }
}

proptest! {
    /// Whatever happens, and whenever it is told: every peer ends up with what follows from what is there now.
    #[test]
    fn peers_converge(steps in vec(step(), 0..150)) {
        let all: Vec<u8> = CLIENTS.into_iter().chain(OTHERS).chain(EXTERNAL).collect();
        let prefixes = [A, B, V6, "fd00:244:2::/64", "10.244.3.0/24", "0.0.0.0/0"];
        let mut reflector = Reflector::new(false);
        // Who is a client; what each has announced and is not gone; what is ours.
        let mut clients: BTreeMap<u8, bool> = all.iter().map(|&peer| (peer, peer < 100)).collect();
        let mut announced: BTreeMap<u8, Announced> = BTreeMap::new();
        let (mut own, mut tables) = (BTreeMap::new(), Tables::new());
        for step in steps {
            match step {
                Step::Announce { peer, prefix, path, local_pref } if tables.contains_key(&peer) => {
                    let attributes = PathAttributes { local_pref: Some(local_pref), ..attributes() };
                    let route = announce(peer, attributes, &[prefixes[usize::from(prefix)]]);
                    reflector.receive(peer, &of_path(path, route));
                    announced.entry(peer).or_default().insert((prefix, path), (local_pref, false));
                }
                Step::Withdraw { peer, prefix, path } if tables.contains_key(&peer) => {
                    reflector.receive(peer, &of_path(path, withdraw(&[prefixes[usize::from(prefix)]])));
                    announced.entry(peer).or_default().remove(&(prefix, path));
                }
                Step::Own { prefix, here } => {
                    let net = prefixes[usize::from(prefix)].parse().unwrap();
                    let (mut announce, mut withdraw) = (vec![], vec![]);
                    if here { announce.push((net, Attributes::default())) } else { withdraw.push(net) }
                    reflector.rib.apply(RouteChanges { announce, withdraw });
                    own.insert(prefix, here);
                }
                Step::Down { peer, graceful: kept } if tables.remove(&peer).is_some() => {
                    reflector.down(peer, kept.then(|| graceful(false)).as_ref());
                    let routes = announced.entry(peer).or_default();
                    routes.retain(|_, (_, stale)| kept && !std::mem::replace(stale, true));
                }
                Step::Up { peer } if !tables.contains_key(&peer) => {
                    let paths_sent = if SEVERAL.contains(&peer) { Families::ALL } else { Families::NONE };
                    reflector.up_with(peer, &Negotiated { paths_sent, ..negotiated(peer, Some(graceful(true))) });
                    reflector.rib.set_client(address(peer), clients[&peer]);
                    reflector.learnt.set_client(address(peer), clients[&peer]);
                    reflector.follow();
                    tables.insert(peer, BTreeMap::new());
                }
                Step::EndOfRib { peer } if tables.contains_key(&peer) => {
                    for family in Family::ALL {
                        reflector.receive(peer, &Update::end_of_rib_marker(family));
                    }
                    announced.entry(peer).or_default().retain(|_, (_, stale)| !*stale);
                }
                Step::Client { peer, client } if peer < 200 && tables.contains_key(&peer) => {
                    reflector.rib.set_client(address(peer), client);
                    reflector.learnt.set_client(address(peer), client);
                    reflector.follow();
                    clients.insert(peer, client);
                }
                Step::Write { peer } => read(&mut reflector, &mut tables, peer),
                _ => {}
            }
        }
        for &peer in &all {
            read(&mut reflector, &mut tables, peer);
        }
        for (peer, table) in &tables {
            let mut expected = Vec::new();
            for prefix in 0..6u8 {
                let net: IpNet = prefixes[usize::from(prefix)].parse().unwrap();
                // The highest LOCAL_PREF comes first, of these the lowest router id.
                let mut paths: Vec<_> = all.iter().filter(|from| **from < 200).flat_map(|&from| {
                    let paths = announced.get(&from).into_iter().flat_map(|all| all.range((prefix, 0)..=(prefix, u32::MAX)));
                    paths.map(move |(_, (local_pref, _))| (std::cmp::Reverse(*local_pref), from))
                }).collect();
                paths.sort();
                let own = own.get(&prefix).is_some_and(|here| *here);
                let others = paths.into_iter().map(|(_, from)| from);
                let offered: Vec<u8> = own.then_some(1).into_iter().chain(others).collect();
                let considered = if SEVERAL.contains(peer) { offered.len() } else { offered.len().min(1) };
                let told = |from: u8| from == 1 || *peer < 200 && *peer != from && (clients[&from] || clients[peer]);
                let told = offered[..considered].iter().filter(|from| told(**from));
                expected.extend(told.map(|from| (net, u16::from(*from))));
            }
            let mut held: Vec<_> = table.iter().map(|(nlri, hop)| (nlri.prefix, *hop)).collect();
            held.sort_unstable();
            expected.sort_unstable();
            assert_eq!(held, expected, "what {peer} holds");
            assert!(table.keys().all(|nlri| (nlri.path_id > 0) == SEVERAL.contains(peer)), "{table:?}");
        }
    }
}
