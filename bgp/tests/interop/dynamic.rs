//! BIRD connects from a range, and is not configured by its address.

use std::net::IpAddr;
use std::time::Duration;

use sheave_bgp::session::State;
use sheave_bgp::{Attributes, DynamicPeers, PeerConfig, Shutdown, Speaker, SpeakerConfig, SpeakerStatus};

use crate::bird::{BIRD_ASN, PROGRAMS, password};
use crate::lab::Lab;
use crate::{OUR_ASN, announce, in_lab, peer_config, speaker_config, start, until};

/// Both families' links.
const PREFIXES: [&str; 2] = ["10.0.0.0/24", "fd00::/64"];

fn range(prefix: &str, template: PeerConfig) -> DynamicPeers {
    let prefix = prefix.parse().unwrap();
    DynamicPeers { prefix, limit: 1, linger: Duration::from_secs(600), template }
}

async fn listening() -> Speaker {
    let listen = ["0.0.0.0:179", "[::]:179"].map(|address| address.parse().unwrap());
    start(SpeakerConfig { listen: Some(listen.into()), ..speaker_config(None) }).await
}

fn is_up(status: &SpeakerStatus, address: IpAddr) -> bool {
    status.peers.iter().any(|peer| peer.address == address && peer.state == State::Established)
}

/// Routes, a changed range, its removal; with a password and TTL security for the whole of it, in both families.
#[test]
fn a_peer_from_a_range() {
    for (addresses, prefix) in [Lab::V4, Lab::V6].into_iter().zip(PREFIXES) {
        in_lab(PROGRAMS, move |mut lab| async move {
            let [ours, birds] = addresses;
            lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "password \"secret\"; ttl security on;");
            let speaker = listening().await;
            speaker.update(announce(&["192.0.2.1/32"], &Attributes::default()));
            let template = PeerConfig {
                password: password("secret"),
                ttl_security: Some(1),
                ..peer_config(prefix.parse::<ipnet::IpNet>().unwrap().addr(), BIRD_ASN)
            };
            speaker.set_dynamic_peers(vec![range(prefix, template.clone())]);
            lab.wait_for("show route protocol peer", &["192.0.2.1/32"]).await;
            let status = speaker.status();
            assert_eq!((status.peers[0].address, status.peers[0].range), (birds, prefix.parse().ok()));
            assert_eq!((status.dynamic[0].peers, status.dynamic[0].refused), (1, 0));

            // The same again changes nothing, and neither does what concerns another address.
            let other =
                |last| PeerConfig::new(if birds.is_ipv4() { [10, 0, 0, last].into() } else { ours }, 1);
            speaker.set_peers(vec![PeerConfig { passive: true, ..other(77) }]);
            speaker.set_dynamic_peers(vec![range(prefix, template.clone())]);
            assert!(is_up(&speaker.status(), birds));
            speaker.set_peers(Vec::new());

            // A smaller range that says something else.
            let smaller = format!("{birds}/{}", if birds.is_ipv4() { 32 } else { 128 });
            let wrong = PeerConfig { asn: 1, ..template.clone() };
            speaker.set_dynamic_peers(vec![range(prefix, template.clone()), range(&smaller, wrong)]);
            lab.wait_for("show protocols all peer", &["Bad peer AS"]).await;
            assert_eq!(speaker.status().peers[0].range, smaller.parse().ok());
            assert_eq!(speaker.status().dynamic.iter().map(|range| range.peers).sum::<usize>(), 1);

            // Configured by its address, it is none of the range.
            speaker.set_peers(vec![PeerConfig { address: birds, ..template.clone() }]);
            until("the configured peer", || is_up(&speaker.status(), birds)).await;
            assert_eq!(speaker.status().peers[0].range, None);
            speaker.set_dynamic_peers(vec![range(prefix, template)]);
            assert!(is_up(&speaker.status(), birds));
            speaker.set_peers(Vec::new());
            until("the peer of the range", || is_up(&speaker.status(), birds)).await;
            assert_eq!(speaker.status().peers[0].range, prefix.parse().ok());

            speaker.set_dynamic_peers(Vec::new());
            lab.wait_for("show protocols all peer", &["Peer de-configured"]).await;
            assert_eq!(speaker.status().peers, []);
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
}

/// Whoever does not sign with the range's password, or is too far away, is not even heard of.
#[test]
fn a_range_keeps_others_out() {
    for (addresses, prefix) in [Lab::V4, Lab::V6].into_iter().zip(PREFIXES) {
        for (dropped, options) in [
            ("TCPMD5", "ttl security on;"),
            ("TCPMD5", "password \"wrong\"; ttl security on;"),
            ("TCPMinTTLDrop", "password \"secret\";"),
        ] {
            eprintln!("{prefix}, {options}");
            in_lab(PROGRAMS, move |mut lab| async move {
                let [ours, birds] = addresses;
                lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, options);
                let speaker = listening().await;
                let template = PeerConfig {
                    password: password("secret"),
                    ttl_security: Some(1),
                    ..peer_config(birds, BIRD_ASN)
                };
                speaker.set_dynamic_peers(vec![range(prefix, template)]);
                until("a dropped segment", || lab.dropped(dropped) > 0).await;
                assert_eq!(speaker.status().peers, []);
                speaker.shutdown(Shutdown::Cease).await;
            });
        }
    }
}

/// A range has so many peers and no more. One that is down gives way, and is forgotten after a while.
#[test]
fn a_range_is_bounded() {
    in_lab(PROGRAMS, |mut lab| async move {
        let [ours, birds] = Lab::V4;
        let second = Lab::THIRD;
        let protocol = "} protocol bgp second { disabled; local 10.0.0.3 as 65001; neighbor 10.0.0.101 as 4200000001; \
                        connect delay time 1; connect retry time 1; error wait time 1, 2; ipv4 { import all; export none; };";
        // BIRD has one session for each address that it connects to.
        lab.add_address([10, 0, 0, 101].into());
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, protocol);
        let speaker = listening().await;
        speaker.set_dynamic_peers(vec![range("10.0.0.0/24", peer_config(birds, BIRD_ASN))]);
        until("the first", || is_up(&speaker.status(), birds)).await;
        lab.birdc("enable second");
        until("a refusal", || speaker.status().dynamic[0].refused > 0).await;
        assert!(is_up(&speaker.status(), birds) && speaker.status().peers.len() == 1);

        lab.birdc("disable peer");
        until("the second", || is_up(&speaker.status(), second)).await;
        assert_eq!(speaker.status().peers.len(), 1, "the first has given way");

        let brief = DynamicPeers {
            linger: Duration::from_millis(500),
            ..range("10.0.0.0/24", PeerConfig { asn: BIRD_ASN + 1, ..peer_config(birds, BIRD_ASN) })
        };
        speaker.set_dynamic_peers(vec![brief]);
        until("the wrong ASN", || speaker.status().peers.iter().any(|peer| peer.last_error.is_some())).await;
        lab.birdc("disable second");
        until("the second to be forgotten", || speaker.status().peers.is_empty()).await;
        assert_eq!(speaker.status().dynamic[0].peers, 0);
        speaker.shutdown(Shutdown::Cease).await;
    });
}
