//! What a daemon keeps of our routes while there is no session, and we of its.

use std::collections::BTreeMap;

use sheave_bgp::{ImportPolicy, Password, PeerConfig, PrefixFilter, Shutdown, Speaker};

use crate::daemon::{Cell, Restart, Told, plain};
use crate::only_peer;

const OURS: [&str; 2] = ["192.0.2.80/32", "2001:db8::80/128"];

/// Takes what the daemon announces.
fn import(cell: &Cell, speaker: &Speaker) {
    let prefixes = cell.setup.announced().map(|prefix| PrefixFilter::exactly(prefix.parse().unwrap()));
    let policy = ImportPolicy { prefixes: prefixes.into(), max_prefixes: None };
    speaker.set_imports(&BTreeMap::from([(cell.setup.theirs, policy)]));
}

/// Takes the changes of what is learnt; none of them may be the end of a route.
fn assert_nothing_lost(speaker: &Speaker) {
    let lost: Vec<_> = speaker.take_learnt(9).into_iter().filter(|(_, hops)| hops.is_none()).collect();
    assert_eq!(lost, []);
}

/// A session that only begins anew, and one that dies of silence, cost neither side's routes; one that ends for good does
/// (RFC 8538).
pub(crate) async fn notifications_keep_routes(mut cell: Cell) {
    cell.setup.restart = Some(Restart { time: 60 });
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
    assert_eq!((speaker.learnt().routes, speaker.take_learnt(9)), (2, vec![]));

    speaker.set_peers(vec![cell.peer_config()]);
    cell.until_established(&speaker).await;
    cell.until_status("its routes again", &speaker, |_| speaker.learnt().complete).await;
    assert_eq!(speaker.learnt().routes, 2);
    speaker.take_learnt(9);

    cell.lab.freeze(true);
    cell.until_reason(&speaker, "hold timer expired").await;
    assert_eq!((speaker.learnt().routes, speaker.take_learnt(9)), (2, vec![]));
    cell.lab.freeze(false);
    cell.until_established(&speaker).await;
    cell.until_status("its routes again", &speaker, |_| speaker.learnt().complete).await;

    speaker.shutdown(Shutdown::Cease).await;
    cell.until_routes(&[], &OURS).await;
    cell.until_told(Told::Shutdown).await;
}
