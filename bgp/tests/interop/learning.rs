//! What is learnt of BIRD.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use sheave_bgp::session::State;
use sheave_bgp::{
    Family, ImportPolicy, LearntChange, LimitAction, MaxPrefixes, PrefixFilter, Shutdown, Speaker,
};

use crate::bird::{BIRD_ASN, PROGRAMS};
use crate::lab::Lab;
use crate::{OUR_ASN, in_lab, only_peer, peer_config, speaker_config, start, until};

/// BIRD's routes.
const ROUTES: [&str; 2] = ["198.51.100.0/24", "203.0.113.0/24"];
const ROUTES_V6: [&str; 2] = ["2001:db8:1::/48", "2001:db8:2::/48"];

fn policy(prefixes: &[&str], max_prefixes: Option<MaxPrefixes>) -> ImportPolicy {
    let exactly = |prefix: &&str| PrefixFilter::exactly(prefix.parse().unwrap());
    ImportPolicy { prefixes: prefixes.iter().map(exactly).collect(), max_prefixes }
}

fn imports(birds: IpAddr, policy: ImportPolicy) -> BTreeMap<IpAddr, ImportPolicy> {
    BTreeMap::from([(birds, policy)])
}

fn change(prefix: &str, next_hop: Option<IpAddr>) -> LearntChange {
    (prefix.parse::<IpNet>().unwrap(), next_hop.map(|hop| [hop.into()].into()))
}

async fn start_both(lab: &mut Lab, [ours, birds]: [IpAddr; 2]) -> Speaker {
    lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "");
    let speaker = start(speaker_config(Some(ours))).await;
    speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
    speaker
}

/// A policy that comes, changes and goes while the session stands takes effect without another session.
#[test]
fn policies_change_live() {
    in_lab(PROGRAMS, |mut lab| async move {
        let [ours, birds] = Lab::V4;
        let speaker = start_both(&mut lab, [ours, birds]).await;
        until("BIRD's routes", || only_peer(&speaker).counters.prefixes_received == 2).await;
        assert_eq!((speaker.learnt().routes, speaker.learnt_routes().take(9)), (0, vec![]));

        speaker.set_imports(&imports(birds, policy(&ROUTES[..1], None)));
        until("its routes again, one of them taken", || {
            let counts = speaker.learnt().peers[&birds][0].1;
            (counts.received, counts.accepted) == (2, 1)
        })
        .await;
        assert_eq!(speaker.learnt_routes().take(9), [change(ROUTES[0], Some(birds))]);
        speaker.set_imports(&imports(birds, policy(&ROUTES[1..], None)));
        assert_eq!(
            speaker.learnt_routes().take(9),
            [change(ROUTES[0], None), change(ROUTES[1], Some(birds))]
        );
        speaker.reserve(&["203.0.113.7/32".parse().unwrap()], &[]);
        speaker.set_imports(&imports(birds, policy(&ROUTES, None)));
        assert_eq!(speaker.learnt_routes().take(9), [change(ROUTES[0], Some(birds))], "the other is named");
        speaker.set_imports(&BTreeMap::new());
        assert_eq!(speaker.learnt_routes().take(9), ROUTES.map(|prefix| change(prefix, None)));
        assert_eq!(only_peer(&speaker).counters.established, 1);
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// BIRD dies. Its routes stay until it has told them again, and those that it does not tell go then; where it has not kept its
/// forwarding they go as it comes back.
#[test]
fn a_restart_of_the_peer_is_helped() {
    for (addresses, routes) in [(Lab::V4, ROUTES), (Lab::V6, ROUTES_V6)] {
        in_lab(PROGRAMS, move |mut lab| async move {
            let [ours, birds] = addresses;
            let speaker = start_both(&mut lab, addresses).await;
            speaker.set_imports(&imports(birds, policy(&routes, None)));
            until("BIRD's routes and End-of-RIBs", || {
                speaker.learnt().complete && speaker.learnt().routes == 2
            })
            .await;
            assert_eq!(speaker.learnt_routes().take(9), routes.map(|prefix| change(prefix, Some(birds))));
            let sessions = only_peer(&speaker).counters.established;

            lab.edit_bird(&format!("route {} blackhole;", routes[1]), "");
            lab.recover_bird();
            until("a session less a route", || {
                only_peer(&speaker).counters.established > sessions && speaker.learnt().complete
            })
            .await;
            assert_eq!(speaker.learnt_routes().take(9), [change(routes[1], None)], "{ours}");
            let families: Vec<Family> =
                speaker.learnt().peers[&birds].iter().map(|(family, _)| *family).collect();
            assert_eq!(families, Family::ALL);

            let sessions = only_peer(&speaker).counters.established;
            lab.edit_bird(&format!("route {} blackhole;", routes[0]), "");
            lab.restart_bird();
            until("another session", || only_peer(&speaker).counters.established > sessions).await;
            assert_eq!(speaker.learnt_routes().take(9), [change(routes[0], None)]);
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
}

/// BIRD is told why, and what it announced is gone; a limit that is lifted lets it come back.
#[test]
fn a_limit_ends_the_session() {
    in_lab(PROGRAMS, |mut lab| async move {
        let [ours, birds] = Lab::V4;
        let speaker = start_both(&mut lab, [ours, birds]).await;
        until("a session", || only_peer(&speaker).state == State::Established).await;
        let limit = |limit, action| {
            let limit = MaxPrefixes { limit, warn_at: limit, action };
            speaker.set_imports(&imports(birds, policy(&ROUTES, Some(limit))));
        };
        limit(1, LimitAction::Restart(Duration::from_secs(1)));
        lab.wait_for("show protocols all peer", &["Maximum number of prefixes reached"]).await;
        until("the session again", || only_peer(&speaker).counters.established >= 2).await;
        limit(1, LimitAction::TearDown);
        until("the end of it", || {
            let peer = only_peer(&speaker);
            peer.state == State::Idle && peer.last_error.is_some()
        })
        .await;
        assert_eq!(speaker.learnt().routes, 0);
        let error = only_peer(&speaker).last_error.unwrap().reason.to_string();
        assert!(error.contains("more than 1 prefixes of ipv4-unicast"), "{error}");
        limit(2, LimitAction::TearDown);
        until("both routes", || speaker.learnt().routes == 2).await;
        speaker.shutdown(Shutdown::Cease).await;
    });
}
