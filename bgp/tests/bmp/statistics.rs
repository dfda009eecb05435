//! Numbers that are reported from time to time.

use std::time::Duration;

use netgauze_bmp_pkt::GaugeU64;
use netgauze_bmp_pkt::v3::{BmpMessageValue, StatisticsCounter};
use netgauze_iana::address_family::AddressType;
use sheave_bgp::{BmpStation, BmpTables, Shutdown};
use tokio::net::TcpListener;

use crate::station::Station;
use crate::{ALL_TABLES, LIMIT, announce, import, pair, station, until};

#[tokio::test]
async fn numbers_are_reported() {
    let (ours, peer) = pair().await;
    announce(&ours, &[("192.0.2.1/32", 1), ("2001:db8::1/128", 3)]);
    assert!(ours.flushed(LIMIT).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    ours.set_bmp_stations(vec![BmpStation { statistics: Duration::from_secs(1), ..station(port) }]);
    let mut told = Station::accept(&listener).await;
    let mut reports = Vec::new();
    while reports.len() < 4 {
        if let BmpMessageValue::StatisticsReport(report) = told.next().await {
            reports.push(report.counters()[0].clone());
        }
    }
    let twice = [
        StatisticsCounter::NumberOfRoutesInLocRib(GaugeU64::new(2)),
        StatisticsCounter::NumberOfRoutesInPostPolicyAdjRibOut(GaugeU64::new(2)),
    ];
    assert_eq!(reports, [twice.clone(), twice].concat());
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// Counts of what a peer with an import policy announces, whether it is let in or not.
#[tokio::test]
async fn what_is_kept_is_counted() {
    let (ours, peer) = pair().await;
    import(&ours, &["192.0.2.0/24"]);
    announce(&peer, &[("192.0.2.1/32", 1), ("198.51.100.1/32", 2)]);
    until("the peer's routes", || ours.learnt().routes == 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tables = BmpTables { adj_rib_out: false, ..ALL_TABLES };
    ours.set_bmp_stations(vec![BmpStation { statistics: Duration::from_secs(1), tables, ..station(port) }]);
    let mut told = Station::accept(&listener).await;
    let mut reports = Vec::new();
    while reports.len() < 2 {
        if let BmpMessageValue::StatisticsReport(report) = told.next().await {
            reports.push(report.counters().to_vec());
        }
    }
    let (v4, v6) = (AddressType::Ipv4Unicast, AddressType::Ipv6Unicast);
    use StatisticsCounter as Counter;
    assert_eq!(
        reports,
        [
            vec![
                Counter::NumberOfRoutesInLocRib(GaugeU64::new(1)),
                Counter::NumberOfRoutesInPerAfiSafiLocRib(v4, GaugeU64::new(1)),
                Counter::NumberOfRoutesInPerAfiSafiLocRib(v6, GaugeU64::new(0)),
            ],
            vec![
                Counter::NumberOfRoutesInAdjRibIn(GaugeU64::new(2)),
                Counter::NumberOfRoutesInPerAfiSafiAdjRibIn(v4, GaugeU64::new(2)),
                Counter::NumberOfRoutesInPerAfiSafiAdjRibIn(v6, GaugeU64::new(0)),
            ],
        ]
    );
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}
