//! Interoperation with the BGP daemons of Debian, in network namespaces that the tests make and remove.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod bird;
mod lab;

use std::net::IpAddr;
use std::time::Duration;

use lab::Lab;
use sheave_bgp::session::Backoff;
use sheave_bgp::{Attributes, GracefulRestart, PeerConfig, PeerStatus, RouteChanges, Speaker, SpeakerConfig};

const OUR_ASN: u32 = 4_200_000_001;

/// Runs `test` in a lab, or says why it cannot.
fn in_lab<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    match lab::missing() {
        Some(reason) => eprintln!("skipped: {reason}"),
        None => Lab::new().enter(test),
    }
}

fn speaker_config(listen: Option<IpAddr>) -> SpeakerConfig {
    SpeakerConfig {
        asn: OUR_ASN,
        router_id: [10, 0, 0, 1].into(),
        listen: listen.map(|address| vec![(address, 179).into()]),
        graceful_restart: Some(GracefulRestart { restart_time: Duration::from_secs(60) }),
        restarting: false,
    }
}

fn peer_config(address: IpAddr, asn: u32) -> PeerConfig {
    let connect_retry = Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(1) };
    PeerConfig {
        connect_retry,
        hold_time: Duration::from_secs(9),
        next_hop_v4: Some([10, 0, 0, 1].into()),
        next_hop_v6: Some("fd00::1".parse().unwrap()),
        ..PeerConfig::new(address, asn)
    }
}

fn announce(prefixes: &[&str], attributes: &Attributes) -> RouteChanges {
    let announce = prefixes.iter().map(|prefix| (prefix.parse().unwrap(), attributes.clone())).collect();
    RouteChanges { announce, withdraw: Vec::new() }
}

fn withdraw(prefixes: &[&str]) -> RouteChanges {
    RouteChanges {
        announce: Vec::new(),
        withdraw: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
    }
}

fn only_peer(speaker: &Speaker) -> PeerStatus {
    speaker.status().peers.remove(0)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for: {what}");
}
