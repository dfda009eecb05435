//! Sessions over IPv6 alone that carry IPv4 (RFC 8950), between global addresses and between link-local ones.

use std::net::IpAddr;

use sheave_bgp::session::State;
use sheave_bgp::{Attributes, PeerConfig, Shutdown, SpeakerConfig};

use crate::bird::{BIRD_ASN, PROGRAMS};
use crate::lab::Lab;
use crate::{OUR_ASN, announce, in_lab, only_peer, peer_config, speaker_config, start, until};

const PREFIXES: [&str; 2] = ["192.0.2.80/32", "2001:db8::80/128"];

/// What BIRD has of both prefixes: the next hop, and the gateway of its route.
async fn await_routes(lab: &Lab, next_hop: &str, gateway: &str) {
    for prefix in PREFIXES {
        let command = format!("show route all for {prefix}");
        lab.wait_for(&command, &[&format!("BGP.next_hop: {next_hop}"), &format!("via {gateway} on link0")])
            .await;
    }
}

fn v6_only(address: IpAddr, asn: u32) -> PeerConfig {
    PeerConfig { extended_next_hop: true, next_hop_v4: None, next_hop_v6: None, ..peer_config(address, asn) }
}

/// IPv4 routes in both directions over a session of IPv6; without the capability on either side there are none from us,
/// unless there is an IPv4 next hop.
#[test]
fn ipv4_by_ipv6_next_hops() {
    for asn in [BIRD_ASN, OUR_ASN] {
        in_lab(PROGRAMS, move |mut lab| async move {
            let [ours, birds] = Lab::V6;
            lab.start_bird(birds, asn, ours, OUR_ASN, "passive on;");
            let speaker = start(speaker_config(None)).await;
            speaker.update(announce(&PREFIXES, &Attributes::default()));
            speaker.set_peers(vec![v6_only(birds, asn)]);
            await_routes(&lab, "fd00::1", "fd00::1").await;
            until("BIRD's routes", || only_peer(&speaker).counters.prefixes_received == 2).await;
            let peer = only_peer(&speaker);
            assert_eq!((peer.counters.malformed_updates, peer.counters.established), (0, 1));
            assert!(peer.session.unwrap().negotiated.extended_next_hop);

            speaker.set_peers(vec![PeerConfig { extended_next_hop: false, ..v6_only(birds, asn) }]);
            lab.wait(
                "show route",
                |answer| !answer.contains(PREFIXES[0]) && answer.contains(PREFIXES[1]),
                "IPv6 alone",
            )
            .await;
            let session = only_peer(&speaker).session.unwrap();
            assert_eq!((session.negotiated.extended_next_hop, session.families[0].next_hop), (false, None));
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
}

/// A session between link-local addresses, whoever connects, carries both families. What comes through another interface is
/// not the peer's.
#[test]
fn link_local_peers() {
    for passive in [false, true] {
        for asn in [BIRD_ASN, OUR_ASN] {
            eprintln!("passive: {passive}, AS {asn}");
            in_lab(PROGRAMS, move |mut lab| async move {
                let [ours, birds] = Lab::LINK_LOCAL;
                let options =
                    format!("direct; interface \"link0\"; {}", if passive { "" } else { "passive on;" });
                lab.start_bird(birds, asn, ours, OUR_ASN, &options);
                let listen = passive.then(|| vec!["[::]:179".parse().unwrap()]);
                let speaker = start(SpeakerConfig { listen, ..speaker_config(None) }).await;
                speaker.update(announce(&PREFIXES, &Attributes::default()));
                let local_address = (!passive).then_some(ours);
                let peer = |interface: &str| {
                    let interface = Some(interface.to_owned());
                    vec![PeerConfig { interface, passive, local_address, ..v6_only(birds, asn) }]
                };
                speaker.set_peers(peer("lo"));
                if !passive {
                    until("the wrong interface", || only_peer(&speaker).last_error.is_some()).await;
                }
                speaker.set_peers(peer("link0"));
                await_routes(&lab, ":: fe80::1", "fe80::1").await;
                until("BIRD's routes", || only_peer(&speaker).counters.prefixes_received == 2).await;
                assert_eq!(only_peer(&speaker).name(), "fe80::2%link0");

                if passive {
                    speaker.set_peers(peer("lo"));
                    lab.wait("show route", |answer| !answer.contains(PREFIXES[1]), "no routes").await;
                    until("Active", || only_peer(&speaker).state == State::Active).await;
                }
                speaker.shutdown(Shutdown::Cease).await;
            });
        }
    }
}
