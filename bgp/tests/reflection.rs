//! A running route reflector between running clients, on the loopback.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::session::Backoff;
use sheave_bgp::{
    Attributes, DynamicPeers, GracefulRestart, ImportPolicy, NextHop, PeerConfig, PrefixFilter, RouteChanges,
    Shutdown, Speaker, SpeakerConfig,
};

const ASN: u32 = 64512;
const LIMIT: Duration = Duration::from_secs(30);
const REFLECTOR: u8 = 1;

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 77, number).into()
}

fn config(number: u8) -> SpeakerConfig {
    SpeakerConfig {
        asn: ASN,
        router_id: [10, 0, 0, number].into(),
        listen: None,
        graceful_restart: Some(GracefulRestart { restart_time: Duration::from_secs(60), stale_time: None }),
        restarting: false,
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(SocketAddr::new(address(REFLECTOR), 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A reflector, whose clients come from a range.
async fn reflector(port: u16, restarting: bool) -> Speaker {
    let listen = Some(vec![SocketAddr::new(address(REFLECTOR), port)]);
    let speaker = Speaker::start(SpeakerConfig { listen, restarting, ..config(REFLECTOR) }).await.unwrap();
    speaker.set_reflector(Some([9, 9, 9, 9].into()));
    let prefix: IpNet = "127.0.77.0/24".parse().unwrap();
    let next_hop_v4 = Some([192, 0, 2, REFLECTOR].into());
    let template = PeerConfig { client: true, next_hop_v4, ..PeerConfig::new(prefix.addr(), ASN) };
    speaker.set_dynamic_peers(vec![DynamicPeers { prefix, limit: 9, linger: LIMIT, template }]);
    speaker
}

/// A client that takes in all that it is told; its next hops are not on the loopback.
async fn client(number: u8, port: u16, config: SpeakerConfig) -> Speaker {
    let speaker = Speaker::start(config).await.unwrap();
    let range = |within: &str| PrefixFilter {
        within: within.parse().unwrap(),
        min_length: 0,
        max_length: within.parse::<IpNet>().unwrap().max_prefix_len(),
    };
    let everything = ImportPolicy { prefixes: vec![range("0.0.0.0/0"), range("::/0")], max_prefixes: None };
    speaker.set_imports(&BTreeMap::from([(address(REFLECTOR), everything)]));
    speaker.set_peers(vec![PeerConfig {
        port,
        local_address: Some(address(number)),
        next_hop_v4: Some([192, 0, 2, number].into()),
        next_hop_v6: Some([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into()),
        connect_retry: Backoff { initial: Duration::from_millis(50), max: Duration::from_millis(200) },
        ..PeerConfig::new(address(REFLECTOR), ASN)
    }]);
    speaker
}

fn announce(speaker: &Speaker, prefixes: &[&str]) {
    let announce = prefixes.iter().map(|prefix| (prefix.parse().unwrap(), Attributes::default()));
    speaker.update(RouteChanges { announce: announce.collect(), withdraw: Vec::new() });
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How many prefixes a client was told are no more.
fn withdrawn(speaker: &Speaker) -> u64 {
    speaker.status().peers[0].counters.prefixes_withdrawn
}

/// Routes go from client to client, with next hops as they came, and go with the client; nothing is imported on the way.
#[tokio::test]
async fn clients_learn_of_each_other() {
    let port = free_port();
    let reflector = reflector(port, false).await;
    let first = client(2, port, config(2)).await;
    let second = client(3, port, config(3)).await;
    announce(&first, &["10.244.2.0/24", "fd00:244:2::/64"]);
    announce(&second, &["10.244.3.0/24"]);
    until("both to learn", || first.learnt().routes == 1 && second.learnt().routes == 2).await;
    let mut learnt = second.learnt_routes().take(9);
    learnt.sort();
    let route = |prefix: &str, hop: &str| {
        (prefix.parse().unwrap(), Some([NextHop::from(hop.parse::<IpAddr>().unwrap())].into()))
    };
    assert_eq!(learnt, [route("10.244.2.0/24", "192.0.2.2"), route("fd00:244:2::/64", "fd00::2")]);
    let status = reflector.status();
    assert_eq!((status.routes, status.reflected), (3, 3));
    let of_reflector = reflector.learnt();
    assert_eq!((of_reflector.routes, of_reflector.pending), (0, 0));
    assert!(reflector.learnt_routes().take(9).is_empty());

    // One more hears of all; one that shuts down is heard of no more.
    let third = client(4, port, config(4)).await;
    until("a third one to learn", || third.learnt().routes == 3).await;
    first.shutdown(Shutdown::Cease).await;
    until("the first one's to go", || third.learnt().routes == 1 && second.learnt().routes == 0).await;
    assert_eq!(reflector.status().reflected, 1);
}

/// Switched on and off, and on while sessions stand: nothing is reset.
#[tokio::test]
async fn a_speaker_becomes_a_reflector() {
    let port = free_port();
    let reflector = reflector(port, false).await;
    reflector.set_reflector(None);
    let first = client(2, port, config(2)).await;
    let second = client(3, port, config(3)).await;
    announce(&first, &["10.244.2.0/24"]);
    until("its route to be told", || {
        reflector.status().peers.iter().any(|peer| peer.counters.prefixes_received == 1)
    })
    .await;
    assert_eq!((second.learnt().routes, reflector.status().reflected), (0, 0));
    reflector.set_reflector(Some([9, 9, 9, 9].into()));
    until("it to be passed on", || second.learnt().routes == 1).await;
    reflector.set_reflector(None);
    until("that to end", || second.learnt().routes == 0).await;
    assert!(reflector.status().peers.iter().all(|peer| peer.counters.established == 1));
}

/// Whether a peer is a client counts for what it announced though it is away: what is kept of that goes to others accordingly.
#[tokio::test]
async fn a_peer_that_is_away_becomes_a_client_and_none() {
    // Changes that its session survives, and that take another.
    for survives in [true, false] {
        let port = free_port();
        let listen = Some(vec![SocketAddr::new(address(REFLECTOR), port)]);
        let reflector = Speaker::start(SpeakerConfig { listen, ..config(REFLECTOR) }).await.unwrap();
        reflector.set_reflector(Some([9, 9, 9, 9].into()));
        let set = |is_client: bool, number_of_changes: u8| {
            let peer = |number, client| PeerConfig {
                passive: true,
                client,
                multihop: Some(if survives || number != 2 { 9 } else { number_of_changes }),
                ..PeerConfig::new(address(number), ASN)
            };
            reflector.set_peers(vec![peer(2, is_client), peer(3, false)]);
        };
        set(true, 1);
        let first = client(2, port, config(2)).await;
        let second = client(3, port, config(3)).await;
        announce(&first, &["10.244.2.0/24"]);
        until("it to learn", || second.learnt().routes == 1).await;
        first.shutdown(Shutdown::GracefulRestart).await;
        until("the end of the session", || reflector.status().peers[0].session.is_none()).await;
        set(false, 2);
        until("one's to go that is no client", || second.learnt().routes == 0).await;
        set(true, 3);
        until("a client's to come", || second.learnt().routes == 1).await;
        assert_eq!(reflector.status().peers[1].counters.established, 1);
    }
}

/// A client that restarts is not heard of as gone by the other; nor is the reflector, by which it has been told.
#[tokio::test]
async fn restarts_withdraw_nothing() {
    let port = free_port();
    let first_reflector = reflector(port, false).await;
    let first = client(2, port, config(2)).await;
    let second = client(3, port, config(3)).await;
    announce(&first, &["10.244.2.0/24"]);
    announce(&first_reflector, &["192.0.2.80/32"]);
    until("it to learn", || second.learnt().routes == 2).await;

    first.shutdown(Shutdown::GracefulRestart).await;
    let first = client(2, port, SpeakerConfig { restarting: true, ..config(2) }).await;
    announce(&first, &["10.244.2.0/24"]);
    first.initial_routes_complete();
    until("it to be back", || first.learnt().complete && first.learnt().routes == 1).await;

    first_reflector.shutdown(Shutdown::GracefulRestart).await;
    let reflector = reflector(port, true).await;
    announce(&reflector, &["192.0.2.80/32"]);
    reflector.initial_routes_complete();
    until("it to be back", || reflector.status().reflected == 1).await;
    assert_eq!(withdrawn(&second), 0);
    assert_eq!(second.learnt().routes, 2);
    // There may be others in its range: what they announced is not given up yet.
    let told_all = |speaker: &Speaker| {
        let peers = speaker.status().peers;
        peers
            .iter()
            .flat_map(|peer| &peer.session)
            .flat_map(|session| &session.families)
            .all(|f| f.end_of_rib_sent)
    };
    assert!(!told_all(&reflector));
}
