//! How sessions begin and end.

use std::time::Duration;

use sheave_bgp::session::{RoleOffer, State};
use sheave_bgp::wire::{Role, ShutdownMessage};
use sheave_bgp::{Attributes, DynamicPeers, PeerConfig, Shutdown};

use crate::bird::{BIRD_ASN, PROGRAMS};
use crate::lab::Lab;
use crate::{OUR_ASN, announce, in_lab, only_peer, peer_config, speaker_config, start, until};

/// BIRD's operator is told why (RFC 9003).
#[test]
fn why_we_leave() {
    in_lab(PROGRAMS, |mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on;");
        let speaker = start(speaker_config(None)).await;
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        until("a session", || only_peer(&speaker).state == State::Established).await;
        let message = ShutdownMessage::new("rack 7 is moved, até amanhã").unwrap();
        speaker.shutdown(Shutdown::CeaseSaying(message)).await;
        lab.wait_for("show protocols all peer", &["Administrative shutdown"]).await;
        lab.wait_for_log("rack 7 is moved, até amanhã").await;
    });
}

/// BIRD's OPEN comes first, whoever connects.
#[test]
fn open_is_delayed() {
    for passive in [false, true] {
        in_lab(PROGRAMS, move |mut lab| async move {
            let [ours, birds] = Lab::V4;
            lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, if passive { "" } else { "passive on;" });
            let speaker = start(speaker_config(passive.then_some(ours))).await;
            // Longer than the test waits.
            let delay_open = Some(Duration::from_secs(120));
            speaker.set_peers(vec![PeerConfig { passive, delay_open, ..peer_config(birds, BIRD_ASN) }]);
            until("a session", || only_peer(&speaker).state == State::Established).await;
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
}

/// What may change without another session: routes have other next hops, none is withdrawn in between, and a family that
/// has none any more is. For a peer that is configured, and for one of a range.
#[test]
fn changes_without_a_reset() {
    for dynamic in [false, true] {
        in_lab(PROGRAMS, move |mut lab| async move {
            let [ours, birds] = Lab::V4;
            lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, if dynamic { "" } else { "passive on;" });
            let speaker = start(speaker_config(dynamic.then_some(ours))).await;
            speaker.update(announce(&["192.0.2.1/32", "2001:db8::1/128"], &Attributes::default()));
            let set = |config: PeerConfig| {
                if dynamic {
                    let (prefix, linger) = ("10.0.0.0/24".parse().unwrap(), Duration::from_secs(60));
                    speaker.set_dynamic_peers(vec![DynamicPeers {
                        prefix,
                        limit: 1,
                        linger,
                        template: config,
                    }]);
                } else {
                    speaker.set_peers(vec![config]);
                }
            };
            let config = peer_config(birds, BIRD_ASN);
            set(config.clone());
            lab.wait_for("show route all for 192.0.2.1/32", &["BGP.next_hop: 10.0.0.1"]).await;
            lab.wait_for("show route all for 2001:db8::1/128", &["BGP.next_hop: fd00::1"]).await;
            let since = only_peer(&speaker).since;

            let other = PeerConfig {
                port: 1790,
                passive: !dynamic,
                hold_time: Duration::from_secs(30),
                send_hold_time: Some(Duration::from_secs(60)),
                delay_open: Some(Duration::from_secs(1)),
                connect_retry: sheave_bgp::session::Backoff::default(),
                next_hop_v4: Some([10, 0, 0, 7].into()),
                next_hop_v6: Some("fd00::7".parse().unwrap()),
                ..config.clone()
            };
            set(other.clone());
            lab.wait_for("show route all for 192.0.2.1/32", &["BGP.next_hop: 10.0.0.7"]).await;
            lab.wait_for("show route all for 2001:db8::1/128", &["BGP.next_hop: fd00::7"]).await;
            let withdrawals = |answer: &str| -> Vec<String> {
                let lines = answer.lines().filter_map(|line| line.trim().strip_prefix("Import withdraws:"));
                lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
            };
            assert_eq!(withdrawals(&lab.birdc("show protocols all peer")), ["0", "0"]);

            set(PeerConfig { next_hop_v6: None, ..other.clone() });
            lab.wait(
                "show route",
                |answer| !answer.contains("2001:db8::1/128") && answer.contains("192.0.2.1/32"),
                "IPv4 alone",
            )
            .await;
            set(other);
            lab.wait_for("show route all for 2001:db8::1/128", &["BGP.next_hop: fd00::7"]).await;
            let peer = only_peer(&speaker);
            assert_eq!((peer.since, peer.counters.established), (since, 1));
            assert_eq!(
                peer.session.unwrap().negotiated.hold_time,
                Duration::from_secs(9),
                "that of the next session"
            );
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
}

/// Roles that fit, with the mark on what is announced; and such that do not, or are missing (RFC 9234). `peer` is not
/// among them, as BIRD's protocol has that name here.
#[test]
fn roles() {
    let fits = [
        (Role::Customer, "provider", false),
        (Role::Provider, "customer", true),
        (Role::RouteServer, "rs_client", true),
        (Role::RouteServerClient, "rs_server", false),
    ];
    for (role, birds_role, marked) in fits {
        eprintln!("{role}");
        in_lab(PROGRAMS, move |mut lab| async move {
            let [ours, birds] = Lab::V4;
            let options = format!("passive on; local role {birds_role}; require roles on;");
            lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, &options);
            let speaker = start(speaker_config(None)).await;
            speaker.update(announce(&["192.0.2.1/32"], &Attributes::default()));
            let peer =
                PeerConfig { role: Some(RoleOffer { role, required: true }), ..peer_config(birds, BIRD_ASN) };
            speaker.set_peers(vec![peer]);
            lab.wait_for("show route all for 192.0.2.1/32", &["BGP.as_path: 4200000001"]).await;
            let route = lab.birdc("show route all for 192.0.2.1/32");
            // BIRD adds a mark that it misses, of the same value: so this tells where there is to be none.
            assert_eq!(route.contains("BGP.otc: 4200000001"), marked, "{route}");
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
    for (options, expected) in [
        (
            "local role customer;",
            "peer is incompatible: this side is customer to the peer, which says it is customer: provider expected",
        ),
        (
            "",
            "peer is incompatible: this side is customer to the peer, which tells no role: provider expected",
        ),
    ] {
        in_lab(PROGRAMS, move |mut lab| async move {
            let [ours, birds] = Lab::V4;
            lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, &format!("passive on; {options}"));
            let speaker = start(speaker_config(None)).await;
            let role = Some(RoleOffer { role: Role::Customer, required: true });
            speaker.set_peers(vec![PeerConfig { role, ..peer_config(birds, BIRD_ASN) }]);
            until("the reason", || {
                let error = only_peer(&speaker).last_error.map(|error| error.reason.to_string());
                // BIRD may be the first to say so.
                error.is_some_and(|error| {
                    error == expected || error.contains("OPEN Message Error/Role Mismatch")
                })
            })
            .await;
            assert_eq!(only_peer(&speaker).counters.established, 0);
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
}
