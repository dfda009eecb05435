//! Sessions, and what becomes of their tables.

use netgauze_bgp_pkt::BgpMessage;
use netgauze_bmp_pkt::v3::{BmpMessageValue, PeerDownNotificationReason};
use sheave_bgp::{RouteChanges, Shutdown};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::station::{Station, Table, adj_rib_out, is_complete};
use crate::{ASN, LIMIT, PEER, PEER_ASN, announce, pair, station};

#[tokio::test]
async fn sessions_tables_and_changes_are_told() {
    let (ours, peer) = pair().await;
    let first = [("192.0.2.1/32", 1), ("192.0.2.2/32", 2), ("2001:db8::1/128", 3)];
    announce(&ours, &first);
    assert!(ours.flushed(LIMIT).await);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    ours.set_bmp_stations(vec![station(port)]);
    let mut told = Station::accept(&listener).await;
    let BmpMessageValue::Initiation(_) = told.next().await else { panic!("not Initiation first") };
    // All there was before.
    told.until("the tables", is_complete).await;
    assert!(told.holds(Table::LocRib, &first), "{:?}", told.tables);
    assert!(told.holds(adj_rib_out(), &first), "{:?}", told.tables);
    assert_eq!(told.up, [None, Some(PEER.parse().unwrap())].into());
    let status = ours.bmp_stations();
    assert!(status[0].connected.is_some() && status[0].counters.connections == 1, "{status:?}");

    // What happens from now on.
    announce(&ours, &[("192.0.2.2/32", 7), ("192.0.2.3/32", 8)]);
    let gone = ["192.0.2.1/32", "2001:db8::1/128"].map(|prefix| prefix.parse().unwrap());
    ours.update(RouteChanges { announce: vec![], withdraw: gone.to_vec() });
    let second = [("192.0.2.2/32", 7), ("192.0.2.3/32", 8)];
    told.until("changes", |told| told.holds(Table::LocRib, &second) && told.holds(adj_rib_out(), &second))
        .await;

    // The same configuration again changes nothing.
    ours.set_bmp_stations(vec![station(port)]);
    assert_eq!(ours.bmp_stations()[0].counters.connections, 1);

    ours.shutdown(Shutdown::Cease).await;
    let BmpMessageValue::PeerDownNotification(down) = told.next().await else { panic!("not Peer Down") };
    assert!(
        matches!(down.reason(), PeerDownNotificationReason::LocalSystemClosedNotificationPduFollows(_)),
        "{down:?}"
    );
    let BmpMessageValue::Termination(_) = told.next().await else { panic!("not Termination") };
    assert_eq!(told.stream.read(&mut [0]).await.unwrap(), 0, "and that was all");
    peer.shutdown(Shutdown::Cease).await;
}

/// The OPENs are those that were on the wire: with the ASNs and ports of both sides.
#[tokio::test]
async fn opens_are_the_real_ones() {
    let (ours, peer) = pair().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    ours.set_bmp_stations(vec![station(listener.local_addr().unwrap().port())]);
    let mut told = Station::accept(&listener).await;
    let up = loop {
        match told.next().await {
            BmpMessageValue::PeerUpNotification(up) if up.peer_header().address().is_some() => break up,
            _ => {}
        }
    };
    let [sent, received] = [up.sent_message(), up.received_message()].map(|message| match message {
        BgpMessage::Open(open) => (open.my_asn4(), open.bgp_id(), open.capabilities().len()),
        other => panic!("{other:?}"),
    });
    // Two families, refresh, enhanced refresh, extended messages, ASN, graceful restart: each side's.
    assert_eq!(sent, (ASN, [10, 0, 0, 1].into(), 7));
    assert_eq!(received, (PEER_ASN, [10, 0, 0, 2].into(), 7));
    let local = ours.status().peers[0].session.as_ref().unwrap().local;
    assert_eq!((up.local_address(), up.local_port()), (Some(local.ip()), Some(local.port())));
    let header = up.peer_header();
    assert_eq!((header.peer_as(), header.bgp_id()), (PEER_ASN, [10, 0, 0, 2].into()));
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// RFC 7854 §4.9, as far as each can be brought about from outside.
#[tokio::test]
async fn how_sessions_end() {
    use PeerDownNotificationReason as Reason;
    type Case = (&'static str, Option<Shutdown>, fn(&Reason) -> bool);
    let cases: [Case; 3] = [
        ("peer removed here", None, |reason| {
            matches!(reason, Reason::LocalSystemClosedNotificationPduFollows(BgpMessage::Notification(_)))
        }),
        ("peer says CEASE", Some(Shutdown::Cease), |reason| {
            matches!(reason, Reason::RemoteSystemClosedNotificationPduFollows(BgpMessage::Notification(_)))
        }),
        ("peer closes", Some(Shutdown::GracefulRestart), |reason| {
            matches!(reason, Reason::RemoteSystemClosedNoData)
        }),
    ];
    for (name, how, expected) in cases {
        let (ours, peer) = pair().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ours.set_bmp_stations(vec![station(listener.local_addr().unwrap().port())]);
        let mut told = Station::accept(&listener).await;
        told.until("the tables", is_complete).await;
        match how {
            Some(how) => peer.shutdown(how).await,
            None => ours.set_peers(vec![]),
        }
        let BmpMessageValue::PeerDownNotification(down) = told.next().await else { panic!("{name}") };
        assert!(expected(down.reason()), "{name}: {:?}", down.reason());
        ours.shutdown(Shutdown::Cease).await;
    }
}

/// Two stations are told the same, and one that goes takes nothing from the other.
#[tokio::test]
async fn stations_are_independent() {
    let (ours, peer) = pair().await;
    let listeners =
        [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let stations = listeners.iter().map(|listener| station(listener.local_addr().unwrap().port()));
    ours.set_bmp_stations(stations.collect());
    let mut first = Station::accept(&listeners[0]).await;
    let mut second = Station::accept(&listeners[1]).await;
    first.until("the tables", is_complete).await;
    drop(first);
    second.until("the tables", is_complete).await;
    announce(&ours, &[("192.0.2.1/32", 1)]);
    second.until("a change", |told| told.holds(adj_rib_out(), &[("192.0.2.1/32", 1)])).await;
    // The first comes back by itself.
    let mut first = Station::accept(&listeners[0]).await;
    first.until("the tables", is_complete).await;
    assert!(first.holds(adj_rib_out(), &[("192.0.2.1/32", 1)]), "{:?}", first.tables);
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}
