//! Interoperation with BIRD 2, in network namespaces that the tests make and remove.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod dynamic;
mod lab;
mod next_hop;
mod sessions;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lab::Lab;
use sheave_bgp::session::{Backoff, State};
use sheave_bgp::wire::AS_TRANS;
use sheave_bgp::{
    Attributes, Families, GracefulRestart, Password, PeerConfig, PeerStatus, RouteChanges, Shutdown, Speaker,
    SpeakerConfig,
};

const OUR_ASN: u32 = 4_200_000_001;
const BIRD_ASN: u32 = 65001;

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

/// Routes come with their attributes, change and go, and BIRD's are counted.
#[test]
fn routes_over_every_kind_of_session() {
    for addresses in [Lab::V4, Lab::V6] {
        for bird_asn in [BIRD_ASN, OUR_ASN] {
            for passive in [false, true] {
                eprintln!("{addresses:?}, BIRD in AS {bird_asn}, passive: {passive}");
                in_lab(move |lab| routes(lab, addresses, bird_asn, passive));
            }
        }
    }
}

async fn routes(mut lab: Lab, [ours, birds]: [IpAddr; 2], bird_asn: u32, passive: bool) {
    lab.start_bird(birds, bird_asn, ours, OUR_ASN, if passive { "" } else { "passive on;" });
    let speaker = Speaker::start(speaker_config(passive.then_some(ours))).await.unwrap();
    speaker.set_peers(vec![PeerConfig { passive, ..peer_config(birds, bird_asn) }]);
    let attributes = Attributes {
        communities: [64512 << 16 | 100].map(sheave_bgp::Community).into(),
        large_communities: ["4200000001:1:2".parse().unwrap()].into(),
        local_pref: Some(150),
        med: Some(7),
        as_path_prepend: 2,
    };
    let prefixes = ["192.0.2.80/32", "2001:db8::80/128"];
    speaker.update(announce(&prefixes, &attributes));

    let ebgp = bird_asn != OUR_ASN;
    let path = if ebgp { "BGP.as_path: 4200000001 4200000001 4200000001" } else { "BGP.local_pref: 150" };
    for (prefix, next_hop) in prefixes.iter().zip(["BGP.next_hop: 10.0.0.1", "BGP.next_hop: fd00::1"]) {
        let wanted = ["(64512,100)", "(4200000001, 1, 2)", "BGP.med: 7", path, next_hop];
        lab.wait_for(&format!("show route all for {prefix}"), &wanted).await;
    }
    until("BIRD's two routes and their End-of-RIBs", || only_peer(&speaker).counters.prefixes_received == 2)
        .await;
    assert_eq!(only_peer(&speaker).state, State::Established);

    // New attributes replace the old ones.
    speaker.update(announce(&prefixes, &Attributes { med: Some(8), ..Attributes::default() }));
    assert!(speaker.flushed(Duration::from_secs(5)).await);
    for prefix in prefixes {
        let replaced = |answer: &str| answer.contains("BGP.med: 8") && !answer.contains("(64512,100)");
        lab.wait(&format!("show route all for {prefix}"), replaced, "the new attributes only").await;
    }

    // BIRD asks for everything again; nothing changes, but UPDATEs come. Of what it does not hear of until the end of
    // the answer it drops the route: those stay.
    let negotiated = only_peer(&speaker).session.unwrap().negotiated;
    assert!(negotiated.route_refresh && negotiated.enhanced_refresh);
    let before = only_peer(&speaker).counters.updates_sent;
    lab.birdc("reload in peer");
    until("an answer to ROUTE-REFRESH", || only_peer(&speaker).counters.updates_sent >= before + 2).await;

    speaker.update(withdraw(&prefixes[..1]));
    lab.wait(&format!("show route {}", prefixes[0]), |a| a.contains("Network not found"), "no route").await;
    lab.wait_for(&format!("show route {}", prefixes[1]), &["unicast"]).await;

    speaker.shutdown(Shutdown::Cease).await;
    lab.wait(&format!("show route {}", prefixes[1]), |a| a.contains("Network not found"), "no route").await;
    lab.wait_for("show protocols all peer", &["Administrative shutdown"]).await;
}

/// A restart keeps routes; those that are not announced again go with End-of-RIB.
#[test]
fn graceful_restart_keeps_routes() {
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        speaker
            .update(announce(&["192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"], &Attributes::default()));
        lab.wait_for("show route protocol peer", &["192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"]).await;
        until("End-of-RIB", || {
            let session = only_peer(&speaker).session.unwrap();
            session.families.iter().all(|family| family.end_of_rib_sent)
        })
        .await;

        speaker.shutdown(Shutdown::GracefulRestart).await;
        lab.wait_for("show protocols all peer", &["Neighbor graceful restart active"]).await;
        let kept = lab.birdc("show route protocol peer");
        assert!(kept.contains("192.0.2.1/32") && kept.contains("2001:db8::1/128"), "{kept}");

        let speaker =
            Speaker::start(SpeakerConfig { restarting: true, ..speaker_config(None) }).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        speaker.update(announce(&["192.0.2.1/32"], &Attributes { med: Some(1), ..Attributes::default() }));
        lab.wait_for("show route all for 192.0.2.1/32", &["BGP.med: 1"]).await;
        let kept = lab.birdc("show route protocol peer");
        assert!(kept.contains("192.0.2.2/32") && kept.contains("2001:db8::1/128"), "{kept}");

        speaker.initial_routes_complete();
        let swept = |answer: &str| {
            answer.contains("192.0.2.1/32")
                && !answer.contains("192.0.2.2/32")
                && !answer.contains("2001:db8::1/128")
        };
        lab.wait("show route protocol peer", swept, "only what was announced again").await;
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// A cold start takes back at once what the peer kept, without waiting for anything.
#[test]
fn cold_start_sweeps_at_once() {
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        speaker.update(announce(&["192.0.2.1/32"], &Attributes::default()));
        lab.wait_for("show route protocol peer", &["192.0.2.1/32"]).await;
        speaker.shutdown(Shutdown::GracefulRestart).await;
        lab.wait_for("show route protocol peer", &["192.0.2.1/32"]).await;

        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        lab.wait("show route protocol peer", |answer| !answer.contains("192.0.2.1/32"), "no route").await;
        drop(speaker);
    });
}

/// BIRD dies and comes back: the session does, and so do the routes.
#[test]
fn peer_restart_reconnects() {
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V6;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "");
        let speaker = Speaker::start(speaker_config(Some(ours))).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        speaker.update(announce(&["192.0.2.1/32"], &Attributes::default()));
        for round in 1..=2 {
            lab.wait_for("show route protocol peer", &["192.0.2.1/32"]).await;
            until("a session", || only_peer(&speaker).counters.established >= round).await;
            lab.restart_bird();
        }
        lab.wait_for("show route protocol peer", &["192.0.2.1/32"]).await;
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// A peer whose families change starts over, an unchanged one keeps its session, a removed one is told.
#[test]
fn peers_change_live() {
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        let config = PeerConfig {
            families: Families { ipv4_unicast: true, ..Families::NONE },
            ..peer_config(birds, BIRD_ASN)
        };
        speaker.set_peers(vec![config.clone()]);
        speaker.update(announce(&["192.0.2.1/32", "2001:db8::1/128"], &Attributes::default()));
        lab.wait_for("show route protocol peer", &["192.0.2.1/32"]).await;
        assert!(!lab.birdc("show route protocol peer").contains("2001:db8::1/128"));

        let since = only_peer(&speaker).since;
        speaker.set_peers(vec![config.clone()]);
        assert_eq!(only_peer(&speaker).since, since);

        speaker.set_peers(vec![PeerConfig { families: Families::ALL, ..config }]);
        lab.wait_for("show route protocol peer", &["192.0.2.1/32", "2001:db8::1/128"]).await;

        speaker.set_peers(Vec::new());
        lab.wait_for("show protocols all peer", &["Peer de-configured"]).await;
        assert_eq!(speaker.status().peers, []);
        lab.wait("show route protocol peer", |answer| !answer.contains("192.0.2.1/32"), "no route").await;
    });
}

fn password(text: &str) -> Option<Password> {
    Some(Password::new(text.as_bytes()).unwrap())
}

/// A session whose segments are signed, whoever connects, in both families.
#[test]
fn passwords() {
    for addresses in [Lab::V4, Lab::V6] {
        for passive in [false, true] {
            eprintln!("{addresses:?}, passive: {passive}");
            in_lab(move |mut lab| async move {
                let [ours, birds] = addresses;
                let options =
                    if passive { "password \"secret\";" } else { "password \"secret\"; passive on;" };
                lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, options);
                // Both families are listened on, as an agent does.
                let listen = ["0.0.0.0:179", "[::]:179"].map(|address| address.parse().unwrap());
                let config = SpeakerConfig { listen: Some(listen.into()), ..speaker_config(None) };
                let speaker = Speaker::start(config).await.unwrap();
                let peer = PeerConfig { passive, ..peer_config(birds, BIRD_ASN) };
                speaker.set_peers(vec![PeerConfig { password: password("secret"), ..peer.clone() }]);
                until("a session", || only_peer(&speaker).state == State::Established).await;

                // Neither a wrong one nor none at all gets a session.
                for wrong in [password("wrong"), None] {
                    speaker.set_peers(vec![PeerConfig { password: wrong, ..peer.clone() }]);
                    let before = lab.dropped("TCPMD5");
                    until("a refused segment", || lab.dropped("TCPMD5") > before).await;
                    assert_eq!(only_peer(&speaker).counters.established, 0);
                }
                speaker.set_peers(vec![PeerConfig { password: password("secret"), ..peer }]);
                until("a session again", || only_peer(&speaker).state == State::Established).await;
                assert!(!format!("{:?}", speaker.status()).contains("secret"));
                speaker.shutdown(Shutdown::Cease).await;
            });
        }
    }
}

/// TTL security on both sides (RFC 5082), whoever connects, in both families; a peer without it gets no session.
#[test]
fn ttl_security() {
    for addresses in [Lab::V4, Lab::V6] {
        for passive in [false, true] {
            for theirs in [true, false] {
                eprintln!("{addresses:?}, passive: {passive}, BIRD's own: {theirs}");
                in_lab(move |mut lab| async move {
                    let [ours, birds] = addresses;
                    let security = if theirs { "ttl security on;" } else { "" };
                    let options = format!("{security} {}", if passive { "" } else { "passive on;" });
                    lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, &options);
                    let speaker = Speaker::start(speaker_config(passive.then_some(ours))).await.unwrap();
                    let peer = PeerConfig { passive, ..peer_config(birds, BIRD_ASN) };
                    speaker.set_peers(vec![PeerConfig { ttl_security: Some(1), ..peer.clone() }]);
                    if !theirs {
                        until("a segment from too far away", || lab.dropped("TCPMinTTLDrop") > 0).await;
                        assert_eq!(only_peer(&speaker).counters.established, 0);
                        speaker.set_peers(vec![peer]);
                    }
                    until("a session", || only_peer(&speaker).state == State::Established).await;
                    speaker.shutdown(Shutdown::Cease).await;
                });
            }
        }
    }
}

/// A peer that takes extended messages is sent them (RFC 8654).
#[test]
fn extended_messages() {
    const COUNT: u32 = 10_000;
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on; enable extended messages on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        let hosts = (0..COUNT).map(|n| IpAddr::from(Ipv4Addr::from(0xc612_0000 + n)).into());
        let announce = hosts.map(|host| (host, Attributes::default())).collect();
        speaker.update(RouteChanges { announce, withdraw: Vec::new() });
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        lab.wait_for("show route count protocol peer", &["10000 of "]).await;
        assert!(only_peer(&speaker).session.unwrap().negotiated.extended_messages);
        // 13,000 prefixes of 32 bits fit into one; the others are the End-of-RIBs.
        until("End-of-RIBs", || only_peer(&speaker).counters.updates_sent == 3).await;
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// What BIRD's operator says when the session is shut down is there to be read (RFC 9003).
#[test]
fn why_the_peer_leaves() {
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        until("a session", || only_peer(&speaker).state == State::Established).await;
        lab.birdc("disable peer \"maintenance\"");
        let expected = "peer sent NOTIFICATION: Cease/Administrative Shutdown: \"maintenance\"";
        until("the reason", || {
            only_peer(&speaker).last_error.is_some_and(|error| error.reason.to_string() == expected)
        })
        .await;
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// What a wrong password looks like is said; its change leaves other sessions alone, even at the same listener.
#[test]
fn a_password_changes_live() {
    in_lab(|mut lab| async move {
        let ([ours, birds], [_, birds_v6]) = (Lab::V4, Lab::V6);
        let second = "} protocol bgp second { local fd00::2 as 65001; neighbor fd00::1 as 4200000001; passive on; \
                      password \"second\"; ipv6 { import all; export none; };";
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, &format!("password \"first\"; passive on; {second}"));
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        let peers = |text: &str| {
            let first = PeerConfig { password: password(text), ..peer_config(birds, BIRD_ASN) };
            vec![first, PeerConfig { password: password("second"), ..peer_config(birds_v6, BIRD_ASN) }]
        };
        let peer = |address: IpAddr| {
            speaker.status().peers.into_iter().find(|peer| peer.address == address).unwrap()
        };
        speaker.set_peers(peers("wrong"));
        until("the other session", || peer(birds_v6).state == State::Established).await;
        let since = peer(birds_v6).since;
        until("the reason", || {
            let error = peer(birds).last_error.map(|error| error.reason.to_string());
            error.is_some_and(|error| error.contains("its password (TCP MD5) is not the one configured here"))
        })
        .await;
        speaker.set_peers(peers("first"));
        until("a session", || peer(birds).state == State::Established).await;
        assert_eq!(peer(birds_v6).since, since);
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// A wrong ASN is named on both sides.
#[test]
fn wrong_asn_is_told() {
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN + 1)]);
        until("the reason", || {
            let reason = only_peer(&speaker).last_error.map(|error| error.reason.to_string());
            reason.is_some_and(|reason| reason.contains("peer is in AS 65001, configured is AS 65002"))
        })
        .await;
        lab.wait_for("show protocols all peer", &["Bad peer AS"]).await;
    });
}

/// A speaker without capabilities: IPv4 only, AS_TRANS for an ASN of four octets, and AS4_PATH, which BIRD merges into
/// the path.
#[test]
fn old_speaker() {
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, AS_TRANS.into(), "passive on; capabilities off;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        speaker.update(announce(&["192.0.2.1/32", "2001:db8::1/128"], &Attributes::default()));
        lab.wait_for(
            "show route all for 192.0.2.1/32",
            &["BGP.as_path: 4200000001", "BGP.next_hop: 10.0.0.1"],
        )
        .await;
        let negotiated = only_peer(&speaker).session.unwrap().negotiated;
        assert_eq!(negotiated.families, Families { ipv4_unicast: true, ..Families::NONE });
        assert!(!negotiated.four_octet_asn && !negotiated.route_refresh);
        until("BIRD's routes", || only_peer(&speaker).counters.prefixes_received == 2).await;
        speaker.shutdown(Shutdown::Cease).await;
    });
}
