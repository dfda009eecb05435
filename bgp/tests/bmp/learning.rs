//! What peers announce.

use std::collections::{BTreeMap, BTreeSet};

use netgauze_bgp_pkt::BgpMessage;
use netgauze_bmp_pkt::PeerKey;
use netgauze_bmp_pkt::v3::BmpMessageValue;
use netgauze_iana::address_family::AddressType;
use sheave_bgp::session::AddPaths;
use sheave_bgp::{BmpStation, BmpTables, Shutdown};
use tokio::net::TcpListener;

use crate::station::{Station, Table, table};
use crate::{ALL_TABLES, announce, import, pair, pair_with, peer_address, station, until, withdraw};

/// What a peer with an import policy announces: before policy, after it, and in Loc-RIB, as it was and as it changes.
#[tokio::test]
async fn what_is_imported_is_told() {
    let (before, after) = (Table::AdjRibIn(peer_address()), Table::AdjRibInPostPolicy(peer_address()));
    let (ours, peer) = pair().await;
    import(&ours, &["192.0.2.0/24"]);
    announce(&ours, &[("203.0.113.1/32", 9)]);
    announce(&peer, &[("192.0.2.1/32", 1), ("198.51.100.1/32", 2)]);
    let learnt =
        || ours.learnt().peers[&peer_address()].iter().map(|(_, counts)| counts.received).sum::<usize>();
    until("the peer's routes", || learnt() == 2).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    ours.set_bmp_stations(vec![BmpStation { tables: ALL_TABLES, ..station(port) }]);
    let mut told = Station::accept(&listener).await;
    // Of both families.
    told.until("all tables", |told| told.complete.len() == 8).await;
    assert!(told.holds(before, &[("192.0.2.1/32", 1), ("198.51.100.1/32", 2)]), "{:?}", told.tables);
    assert!(told.holds(after, &[("192.0.2.1/32", 1)]), "{:?}", told.tables);
    assert!(told.holds(Table::LocRib, &[("192.0.2.1/32", 1), ("203.0.113.1/32", 9)]), "{:?}", told.tables);

    // Each step, and what the three tables are then.
    type Routes = &'static [(&'static str, u32)];
    type Step<'a> = (&'static str, &'a dyn Fn(), Routes, Routes, Routes);
    let steps: [Step<'_>; 7] = [
        (
            "the peer changes a route",
            &|| announce(&peer, &[("192.0.2.1/32", 7)]),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 2)],
            &[("192.0.2.1/32", 7)],
            &[("192.0.2.1/32", 7), ("203.0.113.1/32", 9)],
        ),
        (
            "the policy lets another in",
            &|| import(&ours, &["198.51.100.0/24"]),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 2)],
            &[("198.51.100.1/32", 2)],
            &[("198.51.100.1/32", 2), ("203.0.113.1/32", 9)],
        ),
        (
            "a route of our own to the same prefix comes",
            &|| announce(&ours, &[("198.51.100.1/32", 8)]),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 2)],
            &[("198.51.100.1/32", 2)],
            &[("198.51.100.1/32", 8), ("203.0.113.1/32", 9)],
        ),
        (
            "the peer's changes behind it",
            &|| announce(&peer, &[("198.51.100.1/32", 3)]),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 3)],
            &[("198.51.100.1/32", 3)],
            &[("198.51.100.1/32", 8), ("203.0.113.1/32", 9)],
        ),
        (
            "and ours goes",
            &|| withdraw(&ours, "198.51.100.1/32"),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 3)],
            &[("198.51.100.1/32", 3)],
            &[("198.51.100.1/32", 3), ("203.0.113.1/32", 9)],
        ),
        (
            "the peer withdraws one",
            &|| withdraw(&peer, "198.51.100.1/32"),
            &[("192.0.2.1/32", 7)],
            &[],
            &[("203.0.113.1/32", 9)],
        ),
        // Nothing is kept then, and the peer is asked for what it announces.
        (
            "there is no policy any more",
            &|| ours.set_imports(&BTreeMap::new()),
            &[("192.0.2.1/32", 7)],
            &[],
            &[("203.0.113.1/32", 9)],
        ),
    ];
    for (what, step, pre_policy, post_policy, loc_rib) in steps {
        step();
        told.until(what, |told| {
            told.holds(before, pre_policy)
                && told.holds(after, post_policy)
                && told.holds(Table::LocRib, loc_rib)
        })
        .await;
    }
    assert_eq!(ours.status().peers[0].counters.established, 1);
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// Path identifiers are told where the peer sends them (RFC 7911), though it is sent none; Loc-RIB has none.
#[tokio::test]
async fn path_identifiers_are_told() {
    let (before, after) = (Table::AdjRibIn(peer_address()), Table::AdjRibInPostPolicy(peer_address()));
    let both = AddPaths { receive: true, send: true };
    for (imported, expected) in [
        (true, BTreeSet::from([(before, Some(1)), (after, Some(1)), (Table::LocRib, None)])),
        (false, BTreeSet::from([(before, Some(1))])),
    ] {
        let (ours, peer) = pair_with(AddPaths { send: false, ..both }, both).await;
        if imported {
            import(&ours, &["192.0.2.0/24"]);
        }
        announce(&peer, &[("192.0.2.1/32", 1)]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tables = BmpTables { adj_rib_out: false, ..ALL_TABLES };
        let port = listener.local_addr().unwrap().port();
        ours.set_bmp_stations(vec![BmpStation { tables, ..station(port) }]);
        let mut told = Station::accept(&listener).await;
        let mut names = BTreeSet::new();
        while names.len() < expected.len() {
            match told.next().await {
                // As both OPENs say of what the peer sends.
                BmpMessageValue::PeerUpNotification(up) if up.peer_header().address().is_some() => {
                    let context =
                        told.context.entry(PeerKey::from_peer_header(up.peer_header())).or_default();
                    context.add_path_mut().insert(AddressType::Ipv4Unicast, true);
                }
                BmpMessageValue::RouteMonitoring(route) => {
                    let BgpMessage::Update(update) = route.update_message() else { panic!("{route:?}") };
                    let table = table(route.peer_header());
                    names.extend(update.nlri().iter().map(|nlri| (table, nlri.path_id())));
                }
                _ => {}
            }
        }
        assert_eq!(names, expected, "{imported}");
        withdraw(&peer, "192.0.2.1/32");
        let gone = |told: &Station| expected.iter().all(|(table, _)| told.holds(*table, &[]));
        told.until("it is withdrawn", gone).await;
        ours.shutdown(Shutdown::Cease).await;
        peer.shutdown(Shutdown::Cease).await;
    }
}

/// Of a peer without an import policy nothing is kept: it is asked when a station comes, and what it sends is passed on.
#[tokio::test]
async fn what_is_not_kept_is_passed_on() {
    let before = Table::AdjRibIn(peer_address());
    let (ours, peer) = pair().await;
    announce(&peer, &[("192.0.2.1/32", 1), ("198.51.100.1/32", 2)]);
    until("the peer's routes", || ours.status().peers[0].counters.prefixes_received == 2).await;
    let listeners =
        [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let tables = BmpTables { adj_rib_out: false, loc_rib: false, ..ALL_TABLES };
    let of = |listener: &TcpListener| {
        let port = listener.local_addr().unwrap().port();
        BmpStation { tables, ..station(port) }
    };
    ours.set_bmp_stations(vec![of(&listeners[0])]);
    let mut first = Station::accept(&listeners[0]).await;
    let all = [("192.0.2.1/32", 1), ("198.51.100.1/32", 2)];
    // The answer's end (RFC 7313) is told as End-of-RIB.
    first.until("what it announces", |told| told.holds(before, &all) && told.complete.len() == 2).await;

    announce(&peer, &[("192.0.2.1/32", 5)]);
    withdraw(&peer, "198.51.100.1/32");
    let now = [("192.0.2.1/32", 5)];
    first.until("changes", |told| told.holds(before, &now)).await;
    ours.set_bmp_stations(listeners.iter().map(of).collect());
    let mut second = Station::accept(&listeners[1]).await;
    second.until("what it announces", |told| told.holds(before, &now) && told.complete.len() == 2).await;
    for told in [&first, &second] {
        assert!(told.complete.iter().all(|(table, _)| *table == before), "{:?}", told.complete);
        assert_eq!(told.up, [Some(peer_address())].into(), "Loc-RIB is not asked for");
    }
    assert!(ours.learnt().peers.is_empty());

    // A session that ends takes its table along.
    let established = || ours.status().peers[0].counters.established;
    assert_eq!(established(), 1);
    peer.set_peers(vec![]);
    first.until("the end of the session", |told| told.up.is_empty()).await;
    assert!(first.holds(before, &[]), "{:?}", first.tables);
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}
