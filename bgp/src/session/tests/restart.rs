//! What the end of a session means for routes (RFC 4724, RFC 8538).

use super::*;
use crate::session::SessionError;

fn offer() -> RestartOffer {
    RestartOffer { restart_time: 120, restarting: false }
}

/// The peer's OPEN, with graceful restart, and with it for NOTIFICATIONs too.
fn graceful_open(notification: bool) -> Message {
    let mut open = peer_open();
    open.capabilities.push(Capability::GracefulRestart(GracefulRestartCapability {
        restarting: false,
        notification,
        restart_time: 120,
        families: Vec::new(),
    }));
    Message::Open(open)
}

fn established(graceful_restart: Option<RestartOffer>, peer: &Message) -> Bench {
    let mut bench = Bench::connected(SessionConfig { graceful_restart, ..config() });
    bench.told(Outgoing, peer);
    bench.told(Outgoing, &Message::Keepalive);
    assert_eq!(bench.session.state(), State::Established);
    bench
}

/// Each end of a session: what the peer is told, and whether its routes stay; once with a peer that keeps ours over
/// a NOTIFICATION, once with one that does not.
#[test]
fn ends_of_a_session() {
    let stop = |reason| Event::ManualStop(Farewell::Cease(Notification::cease(reason)));
    let received = |notification: Notification| bytes(&Message::Notification(notification));
    let shutdown = || Notification::cease(Cease::AdministrativeShutdown);
    let [plain, hard] = [shutdown(), shutdown().hard_reset()].map(received);
    type Told = Option<&'static [u8]>;
    // Name, event, told with RFC 8538, kept then; told without it, kept then.
    let cases: [(&str, Event<'_>, Told, bool, Told, bool); 10] = [
        ("lost", Event::TcpClosed(Outgoing), None, true, None, true),
        ("left silently", Event::ManualStop(Farewell::Silent), None, false, None, false),
        ("shut down", stop(Cease::AdministrativeShutdown), Some(&[6, 9, 6, 2]), false, Some(&[6, 2]), false),
        ("removed", stop(Cease::PeerDeconfigured), Some(&[6, 9, 6, 3]), false, Some(&[6, 3]), false),
        ("reset", stop(Cease::AdministrativeReset), Some(&[6, 4]), true, Some(&[6, 4]), false),
        ("configured anew", stop(Cease::OtherConfigurationChange), Some(&[6, 6]), true, Some(&[6, 6]), false),
        (
            "too many prefixes",
            too_many(None),
            Some(&[6, 9, 6, 1, 0, 2, 1, 0, 0, 3, 0xe8]),
            false,
            Some(&[6, 1, 0, 2, 1, 0, 0, 3, 0xe8]),
            false,
        ),
        ("garbage", Event::Received(Outgoing, &[0; 19]), Some(&[1, 1]), true, Some(&[1, 1]), false),
        ("told of its shutdown", Event::Received(Outgoing, &plain), None, true, None, false),
        ("told that it is a hard reset", Event::Received(Outgoing, &hard), None, false, None, false),
    ];
    for (name, event, told, kept, told_without, kept_without) in cases {
        for (peer, told, kept) in [(true, told, kept), (false, told_without, kept_without)] {
            let mut bench = established(Some(offer()), &graceful_open(peer));
            let agreed = bench.session.established().unwrap().1.graceful_notification;
            assert_eq!(agreed, peer, "{name}");
            let actions = bench.event(event.clone());
            let sent = actions.iter().find_map(|action| match action {
                Action::Send(_, bytes) => Some(&bytes[19..]),
                _ => None,
            });
            assert_eq!(sent, told, "{name}, {peer}");
            let Some(Action::Down(reason)) = actions.last() else { panic!("{name}: {actions:?}") };
            assert_eq!(reason.may_be_restart(agreed), kept, "{name}, {peer}");
        }
    }
}

/// The hold timer: the peer is told, and may be back (RFC 8538 §4).
#[test]
fn silence_may_be_a_restart() {
    for (peer, kept) in [(true, true), (false, false)] {
        let mut bench = established(Some(offer()), &graceful_open(peer));
        let reason = loop {
            let down = |action: Action| match action {
                Action::Down(reason) => Some(reason),
                _ => None,
            };
            if let Some(reason) = bench.expire().into_iter().find_map(down) {
                break reason;
            }
        };
        assert!(matches!(reason, Down::Error(SessionError::PeerMisbehaved(_))), "{reason}");
        assert_eq!(reason.may_be_restart(peer), kept);
    }
}

/// A side without graceful restart agrees to nothing.
#[test]
fn it_takes_both_sides() {
    let bench = established(None, &graceful_open(true));
    assert!(!bench.session.established().unwrap().1.graceful_notification);
    let bench = established(Some(offer()), &Message::Open(peer_open()));
    assert!(!bench.session.established().unwrap().1.graceful_notification);
}
