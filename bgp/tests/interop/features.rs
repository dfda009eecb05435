//! What every daemon is tried with, over each kind of session.

use std::time::Duration;

use sheave_bgp::session::State;
use sheave_bgp::{Attributes, Password, PeerConfig, Shutdown, SpeakerConfig};

use crate::daemon::{Cell, Route, Told, plain};
pub(crate) use crate::paths::several_paths;
pub(crate) use crate::restarts::{away_for_long, notifications_keep_routes};
use crate::{OUR_ASN, announce, only_peer, start, withdraw};

const PREFIXES: [&str; 2] = ["192.0.2.80/32", "2001:db8::80/128"];

/// Routes of both families come with all their attributes, change and go; the daemon's are counted.
pub(crate) async fn routes(mut cell: Cell) {
    cell.start();
    let speaker = cell.speaker().await;
    let attributes = Attributes {
        communities: [64512 << 16 | 100, 64512 << 16 | 200].map(sheave_bgp::Community).into(),
        large_communities: ["4200000001:1:2".parse().unwrap()].into(),
        local_pref: Some(150),
        med: Some(7),
        as_path_prepend: 2,
        ..Attributes::default()
    };
    speaker.update(announce(&PREFIXES, &attributes));
    let ebgp = !cell.setup.is_ibgp();
    for (prefix, next_hop) in PREFIXES.iter().zip(["10.0.0.1", "fd00::1"]) {
        let full = Route {
            next_hop: next_hop.parse().unwrap(),
            as_path: if ebgp { vec![OUR_ASN; 3] } else { Vec::new() },
            local_pref: (!ebgp).then_some(150),
            med: Some(7),
            communities: attributes.communities.to_vec(),
            large_communities: attributes.large_communities.to_vec(),
        };
        cell.until(&format!("{full:?}, not {:?}", cell.route(prefix)), || {
            cell.route(prefix).as_ref() == Some(&full)
        })
        .await;
    }
    // FRR sends ours back as well.
    cell.until_status("the daemon's routes", &speaker, |status| status.counters.prefixes_received >= 2).await;
    assert_eq!(only_peer(&speaker).state, State::Established);
    assert_eq!(only_peer(&speaker).counters.malformed_updates, 0);

    // New attributes replace the old ones.
    speaker.update(announce(&PREFIXES, &Attributes { med: Some(8), ..Attributes::default() }));
    assert!(speaker.flushed(Duration::from_secs(5)).await);
    for prefix in PREFIXES {
        let replaced = |route: Route| {
            let lists = route.communities.len() + route.large_communities.len();
            route.med == Some(8) && lists == 0 && route.as_path.len() == usize::from(ebgp)
        };
        cell.until("the new attributes only", || cell.route(prefix).is_some_and(replaced)).await;
    }

    speaker.update(withdraw(&PREFIXES[..1]));
    cell.until_routes(&PREFIXES[1..], &PREFIXES[..1]).await;

    speaker.shutdown(Shutdown::Cease).await;
    cell.until_routes(&[], &PREFIXES).await;
    cell.until_told(Told::Shutdown).await;
}

/// The daemon asks for everything again: UPDATEs come, and what it has stays.
pub(crate) async fn route_refresh(mut cell: Cell) {
    cell.start();
    let speaker = cell.speaker().await;
    speaker.update(plain(&PREFIXES));
    cell.until_routes(&PREFIXES, &[]).await;
    cell.until_established(&speaker).await;
    let negotiated = only_peer(&speaker).session.unwrap().negotiated;
    assert!(negotiated.route_refresh);
    assert_eq!(negotiated.enhanced_refresh, cell.daemon.has_enhanced_refresh());
    let before = only_peer(&speaker).counters.updates_sent;
    cell.daemon.ask_refresh(&cell.lab, &cell.setup);
    cell.until_status("answers to ROUTE-REFRESH", &speaker, |status| {
        status.counters.updates_sent >= before + 2
    })
    .await;
    speaker.update(plain(&["192.0.2.81/32"]));
    cell.until_routes(&["192.0.2.81/32", PREFIXES[0], PREFIXES[1]], &[]).await;
    assert_eq!(only_peer(&speaker).counters.established, 1);
    speaker.shutdown(Shutdown::Cease).await;
}

/// Our restart keeps routes; those that are not announced again go with End-of-RIB.
pub(crate) async fn graceful_restart_keeps_routes(mut cell: Cell) {
    cell.start();
    let speaker = cell.speaker().await;
    let all = ["192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"];
    speaker.update(plain(&all));
    cell.until_routes(&all, &[]).await;
    cell.until_status("End-of-RIB", &speaker, |status| {
        status.session.as_ref().is_some_and(|session| session.families.iter().all(|f| f.end_of_rib_sent))
    })
    .await;

    speaker.shutdown(Shutdown::GracefulRestart).await;
    cell.until("the end of the session", || !cell.daemon.is_established(&cell.lab, &cell.setup)).await;
    assert!(cell.has(&all), "kept without a session: {}", cell.describe());

    let speaker = start(SpeakerConfig { restarting: true, ..cell.speaker_config() }).await;
    speaker.set_peers(vec![cell.peer_config()]);
    speaker.update(announce(&all[..1], &Attributes { med: Some(1), ..Attributes::default() }));
    cell.until("the new route", || cell.route(all[0]).is_some_and(|route| route.med == Some(1))).await;
    assert!(cell.has(&all), "kept until End-of-RIB: {}", cell.describe());

    speaker.initial_routes_complete();
    cell.until_routes(&all[..1], &all[1..]).await;
    speaker.shutdown(Shutdown::Cease).await;
}

/// A cold start takes back at once what the daemon kept, without waiting for anything.
pub(crate) async fn cold_start_sweeps_at_once(mut cell: Cell) {
    cell.start();
    let speaker = cell.speaker().await;
    speaker.update(plain(&PREFIXES));
    cell.until_routes(&PREFIXES, &[]).await;
    cell.until_established(&speaker).await;
    speaker.shutdown(Shutdown::GracefulRestart).await;
    cell.until("the end of the session", || !cell.daemon.is_established(&cell.lab, &cell.setup)).await;
    assert!(cell.has(&PREFIXES), "kept without a session: {}", cell.describe());

    let speaker = cell.speaker().await;
    cell.until_routes(&[], &PREFIXES).await;
    drop(speaker);
}

/// The daemon is killed and comes back: the session does, and so do the routes.
pub(crate) async fn peer_restart_reconnects(mut cell: Cell) {
    cell.start();
    let speaker = cell.speaker().await;
    speaker.update(plain(&PREFIXES));
    for round in 1..=2 {
        cell.until_routes(&PREFIXES, &[]).await;
        cell.until_status("a session", &speaker, |status| status.counters.established == round).await;
        cell.lab.restart();
    }
    cell.until_routes(&PREFIXES, &[]).await;
    speaker.shutdown(Shutdown::Cease).await;
}

/// A session whose segments are signed; neither a wrong password nor none at all gets one.
pub(crate) async fn passwords(mut cell: Cell) {
    cell.setup.password = Some("secret");
    cell.start();
    // Both families are listened on, as an agent does.
    let listen = ["0.0.0.0:179", "[::]:179"].map(|address| address.parse().unwrap());
    let config = SpeakerConfig { listen: Some(listen.into()), ..cell.speaker_config() };
    let speaker = start(config).await;
    speaker.set_peers(vec![cell.peer_config()]);
    cell.until_established(&speaker).await;
    for wrong in [Some(Password::new(*b"wrong").unwrap()), None] {
        speaker.set_peers(vec![PeerConfig { password: wrong, ..cell.peer_config() }]);
        let before = cell.lab.dropped("TCPMD5");
        cell.until("a refused segment", || cell.lab.dropped("TCPMD5") > before).await;
        assert_eq!(only_peer(&speaker).counters.established, 0);
    }
    speaker.set_peers(vec![cell.peer_config()]);
    cell.until_established(&speaker).await;
    assert!(!format!("{:?}", speaker.status()).contains("secret"));
    speaker.shutdown(Shutdown::Cease).await;
}

/// TTL security on both sides (RFC 5082).
pub(crate) async fn ttl_security(mut cell: Cell) {
    cell.setup.ttl_security = true;
    cell.start();
    let speaker = cell.speaker().await;
    cell.until_established(&speaker).await;
    speaker.shutdown(Shutdown::Cease).await;
}

/// TTL security on our side alone: the daemon's segments might come from anywhere, and it gets no session.
pub(crate) async fn ttl_security_of_one_side(mut cell: Cell) {
    cell.start();
    let speaker = start(cell.speaker_config()).await;
    speaker.set_peers(vec![PeerConfig { ttl_security: Some(1), ..cell.peer_config() }]);
    cell.until("a segment from too far away", || cell.lab.dropped("TCPMinTTLDrop") > 0).await;
    assert_eq!(only_peer(&speaker).counters.established, 0);
    speaker.set_peers(vec![cell.peer_config()]);
    cell.until_established(&speaker).await;
    speaker.shutdown(Shutdown::Cease).await;
}

/// A daemon that says nothing for the hold time is let go, and taken back when it speaks again.
pub(crate) async fn short_hold_time(mut cell: Cell) {
    cell.setup.hold_time = 3;
    cell.start();
    let speaker = cell.speaker().await;
    cell.until_established(&speaker).await;
    assert_eq!(only_peer(&speaker).session.unwrap().negotiated.hold_time, Duration::from_secs(3));
    // KEEPALIVEs bear it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(only_peer(&speaker).state, State::Established);
    cell.lab.freeze(true);
    cell.until_reason(&speaker, "hold timer expired").await;
    cell.lab.freeze(false);
    cell.until_established(&speaker).await;
    speaker.shutdown(Shutdown::Cease).await;
}

/// A hold time of zero on both sides: no KEEPALIVEs, and silence is no reason to go.
pub(crate) async fn no_hold_time(mut cell: Cell) {
    cell.setup.hold_time = 0;
    cell.start();
    let speaker = cell.speaker().await;
    cell.until_established(&speaker).await;
    assert_eq!(only_peer(&speaker).session.unwrap().negotiated.hold_time, Duration::ZERO);
    cell.lab.freeze(true);
    tokio::time::sleep(Duration::from_secs(4)).await;
    cell.lab.freeze(false);
    speaker.update(plain(&PREFIXES));
    cell.until_routes(&PREFIXES, &[]).await;
    assert_eq!(only_peer(&speaker).counters.established, 1);
    speaker.shutdown(Shutdown::Cease).await;
}

/// What the daemon's operator says when the session is shut down is there to be read (RFC 9003).
pub(crate) async fn why_the_peer_leaves(mut cell: Cell) {
    cell.start();
    let speaker = cell.speaker().await;
    cell.until_established(&speaker).await;
    let reason = cell.daemon.shut_down(&cell.lab, &cell.setup, "maintenance");
    cell.until_reason(&speaker, &reason).await;
    speaker.shutdown(Shutdown::Cease).await;
}

/// A wrong ASN is named on both sides.
pub(crate) async fn wrong_asn_is_told(mut cell: Cell) {
    cell.start();
    let speaker = start(cell.speaker_config()).await;
    speaker.set_peers(vec![PeerConfig { asn: cell.setup.asn + 1, ..cell.peer_config() }]);
    let reason = format!("peer is in AS {}, configured is AS {}", cell.setup.asn, cell.setup.asn + 1);
    cell.until_reason(&speaker, &reason).await;
    cell.until_told(Told::WrongAsn).await;
    assert_eq!(only_peer(&speaker).counters.established, 0);
}

/// Both sides connect: one connection of two is left, and bears (RFC 4271 §6.8).
pub(crate) async fn collision(mut cell: Cell) {
    cell.setup.connects = true;
    cell.start();
    cell.until("a listening daemon", || cell.lab.daemon_listens()).await;
    // While the daemon is stopped, our connection waits for its OPEN; when it goes on, its own attempt is due as well.
    cell.lab.freeze(true);
    let speaker = start(cell.speaker_config()).await;
    speaker.set_peers(vec![PeerConfig { passive: false, ..cell.peer_config() }]);
    cell.until_status("a connection", &speaker, |status| status.state == State::OpenSent).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    cell.lab.freeze(false);
    speaker.update(plain(&PREFIXES));
    cell.until("the daemon's connection", || cell.lab.accepted() > 0).await;
    cell.until_established(&speaker).await;
    cell.until("one connection", || cell.lab.connections() == 1).await;
    cell.until_routes(&PREFIXES, &[]).await;
    cell.until_established(&speaker).await;
    let since = only_peer(&speaker).since;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((only_peer(&speaker).since, cell.lab.connections()), (since, 1), "{:#?}", only_peer(&speaker));
    speaker.shutdown(Shutdown::Cease).await;
}
