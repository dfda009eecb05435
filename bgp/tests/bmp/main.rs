//! Monitoring stations on loopback: what they are told of a real session between two speakers, read by `netgauze-bmp-pkt`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod deaf;
mod learning;
mod sessions;
mod station;
mod statistics;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::session::{AddPaths, State};
use sheave_bgp::{
    Attributes, BmpStation, BmpTables, GracefulRestart, ImportPolicy, PeerConfig, PrefixFilter, RouteChanges,
    Speaker, SpeakerConfig,
};
use tokio::net::TcpListener;
use tokio::time::sleep;

const LIMIT: Duration = Duration::from_secs(30);
const ASN: u32 = 4_200_000_001;
const PEER_ASN: u32 = 65001;
const PEER: &str = "127.0.0.1";
const ALL_TABLES: BmpTables =
    BmpTables { adj_rib_in: true, adj_rib_in_post_policy: true, loc_rib: true, adj_rib_out: true };

fn peer_address() -> IpAddr {
    PEER.parse().unwrap()
}

async fn speaker(asn: u32, id: u8, listen: Option<u16>) -> Speaker {
    Speaker::start(SpeakerConfig {
        asn,
        router_id: [10, 0, 0, id].into(),
        listen: listen.map(|port| vec![([127, 0, 0, 1], port).into()]),
        graceful_restart: Some(GracefulRestart { restart_time: Duration::from_secs(1), stale_time: None }),
        restarting: false,
    })
    .await
    .unwrap()
}

/// A port that nobody has.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Two speakers with a session: the monitored one, which connects, and its peer.
async fn pair() -> (Speaker, Speaker) {
    pair_with(AddPaths::default(), AddPaths::default()).await
}

async fn pair_with(our_paths: AddPaths, peers_paths: AddPaths) -> (Speaker, Speaker) {
    let port = free_port().await;
    let (ours, peer) = (speaker(ASN, 1, None).await, speaker(PEER_ASN, 2, Some(port)).await);
    peer.set_peers(vec![PeerConfig {
        passive: true,
        port: 1,
        // One that packets could be sent to.
        next_hop_v4: Some([10, 9, 9, 9].into()),
        add_paths: peers_paths,
        ..PeerConfig::new([127, 0, 0, 1].into(), ASN)
    }]);
    let next_hop_v6 = Some("fd00::1".parse().unwrap());
    ours.set_peers(vec![PeerConfig {
        port,
        next_hop_v6,
        add_paths: our_paths,
        ..PeerConfig::new(PEER.parse().unwrap(), PEER_ASN)
    }]);
    until("the session", || ours.status().peers[0].state == State::Established).await;
    (ours, peer)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "{what} in time");
        sleep(Duration::from_millis(5)).await;
    }
}

fn station(port: u16) -> BmpStation {
    BmpStation {
        address: [127, 0, 0, 1].into(),
        port,
        name: "node-a".to_owned(),
        description: "a test".to_owned(),
        queue: 1 << 20,
        statistics: Duration::ZERO,
        tables: BmpTables::default(),
    }
}

fn announce(speaker: &Speaker, routes: &[(&str, u32)]) {
    let route = |&(prefix, med): &(&str, u32)| {
        (prefix.parse().unwrap(), Attributes { med: Some(med), ..Attributes::default() })
    };
    speaker.update(RouteChanges { announce: routes.iter().map(route).collect(), withdraw: vec![] });
}

/// Has these prefixes, and what is within them, imported of the peer.
fn import(speaker: &Speaker, prefixes: &[&str]) {
    let filter = |prefix: &&str| {
        let within: IpNet = prefix.parse().unwrap();
        PrefixFilter { within, min_length: within.prefix_len(), max_length: within.max_prefix_len() }
    };
    let policy = ImportPolicy { prefixes: prefixes.iter().map(filter).collect(), max_prefixes: None };
    speaker.set_imports(&[(peer_address(), policy)].into());
}

fn withdraw(speaker: &Speaker, prefix: &str) {
    speaker.update(RouteChanges { announce: vec![], withdraw: vec![prefix.parse().unwrap()] });
}
