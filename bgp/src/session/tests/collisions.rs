//! Two connections with one peer (RFC 4271 §6.8).

use super::*;

/// Both sides connect at once (RFC 4271 §6.8): which connection is closed when an OPEN comes on `first`.
#[test]
fn collisions() {
    let below = [10, 0, 0, 0];
    let above = [10, 0, 0, 2];
    let equal = [10, 0, 0, 1];
    let cases = [
        ("peer's id is higher, on ours", above, Outgoing, vec!["send 6/7", "close"]),
        (
            "peer's id is higher, on theirs",
            above,
            Incoming,
            vec!["send 6/7", "close", "send incoming KEEPALIVE"],
        ),
        (
            "our id is higher, on ours",
            below,
            Outgoing,
            vec!["send incoming 6/7", "close incoming", "send KEEPALIVE"],
        ),
        ("our id is higher, on theirs", below, Incoming, vec!["send incoming 6/7", "close incoming"]),
        ("equal, peer's ASN is higher", equal, Outgoing, vec!["send 6/7", "close"]),
    ];
    for (name, router_id, first, expected) in cases {
        let mut bench = Bench::connected(config());
        assert_eq!(words(&bench.event(Event::TcpAccepted)), ["accept", "send incoming OPEN"]);
        let open = Open { router_id: router_id.into(), ..peer_open() };
        assert_eq!(words(&bench.told(first, &Message::Open(open.clone()))), expected, "{name}");
        // The one that is left goes on to Established.
        let left = if expected.contains(&"close") { Incoming } else { Outgoing };
        if left != first {
            bench.told(left, &Message::Open(open));
        }
        bench.told(left, &Message::Keepalive);
        assert_eq!(bench.session.established().map(|(direction, _)| direction), Some(left), "{name}");
    }
}

/// RFC 4724 §5: to a peer that calls the session Established, a connection that it only then hears of is a restart, and one that ends
/// likewise.
#[test]
fn no_session_begins_beside_a_connection_that_is_not_settled() {
    let restart = RestartOffer { restart_time: 120, restarting: true, stale_time: None };
    let peers = |router_id: [u8; 4]| Message::Open(Open { router_id: router_id.into(), ..peer_open() });
    let (below, above) = ([10, 0, 0, 0], [10, 0, 0, 2]);
    let later: [(&str, [u8; 4], Trigger, &[&str]); 5] = [
        (
            "answered, the peer's wins",
            above,
            |b| b.told(Outgoing, &Message::Open(peer_open())),
            &["send 6/7", "close", "send incoming KEEPALIVE"],
        ),
        (
            "answered, ours wins",
            below,
            |b| b.told(Outgoing, &Message::Open(Open { router_id: [10, 0, 0, 0].into(), ..peer_open() })),
            &["send incoming 6/7", "close incoming", "send KEEPALIVE"],
        ),
        (
            "refused",
            above,
            |b| {
                b.event(Event::Received(
                    Outgoing,
                    &bytes(&Message::Notification(Notification::cease(Cease::ConnectionRejected))),
                ))
            },
            &["close", "send incoming KEEPALIVE"],
        ),
        ("lost", above, |b| b.event(Event::TcpClosed(Outgoing)), &["close", "send incoming KEEPALIVE"]),
        ("never answered", above, Bench::expire, &["close", "send incoming KEEPALIVE"]),
    ];
    for (name, router_id, trigger, expected) in later {
        let mut bench = Bench::started(SessionConfig { graceful_restart: Some(restart), ..config() });
        bench.event(Event::TcpAccepted);
        assert_eq!(words(&bench.told(Incoming, &peers(router_id))), [""; 0], "{name}");
        assert_eq!(words(&bench.event(Event::TcpConnected)), ["send OPEN"], "{name}");
        assert_eq!(words(&trigger(&mut bench)), expected, "{name}");
    }
    let attempt: [(&str, Trigger, &[&str]); 2] = [
        ("fails", |b| b.event(Event::TcpConnectFailed("refused".to_owned())), &["send incoming KEEPALIVE"]),
        ("takes long", Bench::expire, &["abort connect", "send incoming KEEPALIVE"]),
    ];
    for (name, trigger, expected) in attempt {
        let mut bench = Bench::started(SessionConfig { graceful_restart: Some(restart), ..config() });
        bench.event(Event::TcpAccepted);
        assert_eq!(words(&bench.told(Incoming, &peers(above))), [""; 0], "{name}");
        assert_eq!(words(&trigger(&mut bench)), expected, "{name}");
    }
    // Ours may be Established to the peer already, which then closes its own.
    let confirmed: [(&str, Trigger, &[&str]); 4] = [
        (
            "established",
            |b| b.told(Outgoing, &Message::Keepalive),
            &["up", "send incoming 6/7", "close incoming"],
        ),
        (
            "given up",
            |b| {
                b.told(
                    Outgoing,
                    &Message::Notification(Notification::cease(Cease::ConnectionCollisionResolution)),
                )
            },
            &["close", "send incoming KEEPALIVE"],
        ),
        ("lost", |b| b.event(Event::TcpClosed(Outgoing)), &["close", "send incoming KEEPALIVE"]),
        ("its own is given up", |b| b.event(Event::TcpClosed(Incoming)), &["close incoming"]),
    ];
    for (name, trigger, expected) in confirmed {
        let mut bench = Bench::connected(SessionConfig { graceful_restart: Some(restart), ..config() });
        bench.told(Outgoing, &peers(above));
        bench.event(Event::TcpAccepted);
        assert_eq!(words(&bench.told(Incoming, &peers(above))), [""; 0], "{name}");
        assert_eq!(words(&trigger(&mut bench)), expected, "{name}");
    }
    // Who says more than an OPEN and a KEEPALIVE waits for no answer.
    let mut bench = Bench::started(SessionConfig { graceful_restart: Some(restart), ..config() });
    bench.event(Event::TcpAccepted);
    bench.told(Incoming, &peers(above));
    let keepalives = bytes(&Message::Keepalive).repeat(500);
    assert_eq!(words(&bench.event(Event::Received(Incoming, &keepalives)))[0], "send incoming KEEPALIVE");
}

#[test]
fn established_wins_over_a_late_open() {
    let mut bench = Bench::connected(config());
    bench.told(Outgoing, &Message::Open(peer_open()));
    bench.event(Event::TcpAccepted);
    bench.told(Outgoing, &Message::Keepalive);
    let actions = bench.told(Incoming, &Message::Open(peer_open()));
    assert_eq!(words(&actions), ["send incoming 6/7", "close incoming"]);
    assert_eq!(bench.session.state(), State::Established);
}

/// A connection that hangs does not win, whatever the identifiers say.
#[test]
fn hanging_connection_loses() {
    let mut bench = Bench::connected(config());
    bench.now += Duration::from_secs(6);
    bench.event(Event::TcpAccepted);
    let actions =
        bench.told(Incoming, &Message::Open(Open { router_id: [10, 0, 0, 0].into(), ..peer_open() }));
    assert_eq!(words(&actions), ["send 6/7", "close", "send incoming KEEPALIVE"]);
}
