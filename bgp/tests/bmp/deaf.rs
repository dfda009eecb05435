//! A station that reads nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::session::State;
use sheave_bgp::{Attributes, BmpStation, RouteChanges, Shutdown};
use tokio::net::{TcpListener, TcpSocket};

use crate::station::{Station, Table, adj_rib_out, is_complete};
use crate::{ALL_TABLES, LIMIT, import, pair, peer_address, station, until};

/// Takes connections of which the kernel keeps little that nobody has read yet, and its port.
fn deaf_listener() -> (TcpListener, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    // Inherited by what is accepted.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A station that reads nothing costs the peer nothing: it is cut off, and when it is back it is told how things are then.
#[tokio::test]
async fn a_station_that_does_not_read_is_cut_off() {
    let (ours, peer) = pair().await;
    let (listener, port) = deaf_listener();
    ours.set_bmp_stations(vec![BmpStation { queue: 64 * 1024, ..station(port) }]);
    let deaf = Station::accept(&listener).await;

    let hosts: Vec<IpNet> =
        (0..2000u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()).into()).collect();
    let mut round = 0;
    let began = Instant::now();
    while ours.bmp_stations()[0].counters.cut_off == 0 {
        round += 1;
        let attributes = Attributes { med: Some(round), ..Attributes::default() };
        let announce = hosts.iter().map(|&host| (host, attributes.clone())).collect();
        ours.update(RouteChanges { announce, withdraw: vec![] });
        // The peer is told all the same.
        assert!(ours.flushed(Duration::from_secs(5)).await, "round {round}");
        assert!(began.elapsed() < LIMIT, "{:?}", ours.bmp_stations());
    }
    assert!(round > 1, "cut off at once");
    let status = &ours.bmp_stations()[0];
    let (_, error) = status.last_error.as_ref().unwrap();
    assert!(error.starts_with("did not keep up"), "{error}");
    assert_eq!(ours.status().peers[0].state, State::Established);
    drop(deaf);

    let mut back = Station::accept(&listener).await;
    back.until("the tables", is_complete).await;
    let now = hosts.iter().map(|&host| (host, round)).collect::<BTreeMap<_, _>>();
    assert_eq!(back.tables[&Table::LocRib], now);
    assert_eq!(back.tables[&adj_rib_out()], now);
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// A station that reads nothing does not keep what peers announce from being learnt.
#[tokio::test]
async fn a_station_that_does_not_read_slows_no_learning() {
    let (ours, peer) = pair().await;
    import(&ours, &["10.0.0.0/8"]);
    let (listener, port) = deaf_listener();
    ours.set_bmp_stations(vec![BmpStation { queue: 64 * 1024, tables: ALL_TABLES, ..station(port) }]);
    let deaf = Station::accept(&listener).await;
    let hosts: Vec<IpNet> =
        (0..2000u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()).into()).collect();
    let mut round = 0;
    while ours.bmp_stations()[0].counters.cut_off == 0 {
        round += 1;
        assert!(round < 100, "{:?}", ours.bmp_stations());
        let attributes = Attributes { med: Some(round), ..Attributes::default() };
        peer.update(RouteChanges {
            announce: hosts.iter().map(|&host| (host, attributes.clone())).collect(),
            withdraw: vec![],
        });
        let received = || ours.status().peers[0].counters.prefixes_received >= u64::from(round) * 2000;
        until("the round's routes", received).await;
    }
    assert!(round > 1, "cut off at once");
    assert_eq!(ours.status().peers[0].counters.established, 1);
    drop(deaf);

    let mut back = Station::accept(&listener).await;
    let now = hosts.iter().map(|&host| (host, round)).collect::<BTreeMap<_, _>>();
    let tables = [Table::AdjRibIn(peer_address()), Table::AdjRibInPostPolicy(peer_address()), Table::LocRib];
    back.until("all tables", |told| {
        told.complete.len() == 8 && tables.iter().all(|table| told.tables.get(table) == Some(&now))
    })
    .await;
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}
