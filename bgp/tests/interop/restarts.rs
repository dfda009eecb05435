//! What a daemon keeps of our routes while there is no session, and we of its.

use std::collections::BTreeMap;
use std::time::Duration;

use sheave_bgp::{
    Attributes, Community, GracefulRestart, ImportPolicy, Password, PeerConfig, PrefixFilter, Shutdown,
    Speaker, SpeakerConfig,
};

use crate::daemon::{Cell, Restart, Told, plain};
use crate::{announce, only_peer, start};

const OURS: [&str; 2] = ["192.0.2.80/32", "2001:db8::80/128"];

/// Takes what the daemon announces.
fn import(cell: &Cell, speaker: &Speaker) {
    let prefixes = cell.setup.announced().map(|prefix| PrefixFilter::exactly(prefix.parse().unwrap()));
    let policy = ImportPolicy { prefixes: prefixes.into(), max_prefixes: None };
    speaker.set_imports(&BTreeMap::from([(cell.setup.theirs, policy)]));
}

/// Takes the changes of what is learnt; none of them may be the end of a route.
fn assert_nothing_lost(speaker: &Speaker) {
    let lost: Vec<_> =
        speaker.learnt_routes().take(9).into_iter().filter(|(_, hops)| hops.is_none()).collect();
    assert_eq!(lost, []);
}

/// A session that only begins anew, and one that dies of silence, cost neither side's routes; one that ends for good does
/// (RFC 8538).
pub(crate) async fn notifications_keep_routes(mut cell: Cell) {
    cell.setup.restart = Some(Restart { time: 60, stale_time: 0 });
    cell.setup.hold_time = 3;
    cell.start();
    let speaker = cell.speaker().await;
    import(&cell, &speaker);
    speaker.update(plain(&OURS));
    cell.until_routes(&OURS, &[]).await;
    cell.until_established(&speaker).await;
    assert!(only_peer(&speaker).session.unwrap().negotiated.graceful_notification);
    cell.until_status("the daemon's routes", &speaker, |_| speaker.learnt().routes == 2).await;
    assert_nothing_lost(&speaker);

    // Configured so that it takes another session, which it cannot get.
    let password = Some(Password::new(*b"not the daemon's").unwrap());
    speaker.set_peers(vec![PeerConfig { password, ..cell.peer_config() }]);
    cell.until("the end of the session", || !cell.daemon.is_established(&cell.lab, &cell.setup)).await;
    assert!(cell.has(&OURS), "kept over a NOTIFICATION: {}", cell.describe());
    assert_eq!((speaker.learnt().routes, speaker.learnt_routes().take(9)), (2, vec![]));

    speaker.set_peers(vec![cell.peer_config()]);
    cell.until_established(&speaker).await;
    cell.until_status("its routes again", &speaker, |_| speaker.learnt().complete).await;
    assert_eq!(speaker.learnt().routes, 2);
    speaker.learnt_routes().take(9);

    cell.lab.freeze(true);
    cell.until_reason(&speaker, "hold timer expired").await;
    assert_eq!((speaker.learnt().routes, speaker.learnt_routes().take(9)), (2, vec![]));
    cell.lab.freeze(false);
    cell.until_established(&speaker).await;
    cell.until_status("its routes again", &speaker, |_| speaker.learnt().complete).await;

    speaker.shutdown(Shutdown::Cease).await;
    cell.until_routes(&[], &OURS).await;
    cell.until_told(Told::Shutdown).await;
}

/// We are away for longer than the restart time, and then the daemon is: the other side keeps the routes, marked as a last resort
/// (RFC 9494). What is not told again by whoever comes back goes with End-of-RIB.
pub(crate) async fn away_for_long(mut cell: Cell) {
    cell.setup.restart = Some(Restart { time: 2, stale_time: 120 });
    cell.start();
    let [restart_time, stale_time] = [2, 120].map(Duration::from_secs);
    let config = SpeakerConfig {
        graceful_restart: Some(GracefulRestart { restart_time, stale_time: Some(stale_time) }),
        ..cell.speaker_config()
    };
    let speaker = start(config.clone()).await;
    speaker.set_peers(vec![cell.peer_config()]);
    speaker.update(plain(&OURS));
    cell.until_routes(&OURS, &[]).await;
    cell.until_status("End-of-RIB", &speaker, |status| {
        status.session.as_ref().is_some_and(|session| session.families.iter().all(|f| f.end_of_rib_sent))
    })
    .await;
    let agreed = only_peer(&speaker).session.unwrap().negotiated.long_lived;
    assert_eq!(agreed.iter().map(|family| family.stale_time).collect::<Vec<_>>(), [stale_time; 2]);

    speaker.shutdown(Shutdown::GracefulRestart).await;
    let is_marked =
        |prefix| cell.route(prefix).is_some_and(|route| route.communities.contains(&Community::LLGR_STALE));
    cell.until("both routes as a last resort", || OURS.iter().all(|prefix| is_marked(prefix))).await;

    let speaker = start(SpeakerConfig { restarting: true, ..config }).await;
    import(&cell, &speaker);
    speaker.set_peers(vec![cell.peer_config()]);
    speaker.update(announce(&OURS[..1], &Attributes { med: Some(1), ..Attributes::default() }));
    cell.until("the new route", || cell.route(OURS[0]).is_some_and(|route| route.med == Some(1))).await;
    assert!(!is_marked(OURS[0]) && is_marked(OURS[1]), "{}", cell.describe());
    speaker.initial_routes_complete();
    cell.until_routes(&OURS[..1], &OURS[1..]).await;

    cell.until_status("the daemon's routes", &speaker, |_| speaker.learnt().routes == 2).await;
    speaker.learnt_routes().take(9);
    cell.lab.kill();
    // FRR sends ours back as well.
    let daemon = cell.setup.theirs;
    let last_resort = || -> usize {
        let learnt = speaker.learnt();
        learnt.peers[&daemon].iter().map(|(_, counts)| counts.long_lived).sum()
    };
    cell.until_status("its routes as a last resort", &speaker, |_| last_resort() >= 2).await;
    assert_eq!((speaker.learnt().routes, speaker.learnt_routes().take(9)), (2, vec![]));
    cell.start();
    cell.until_status("its routes again", &speaker, |_| speaker.learnt().complete).await;
    assert_eq!((speaker.learnt().routes, last_resort()), (2, 0));
    speaker.shutdown(Shutdown::Cease).await;
}
