//! Graceful restart: what is offered, and what the end of a session means for routes (RFC 4724, RFC 8538, RFC 9494).

use super::*;
use crate::bfd::Diagnostic;
use crate::session::{LongLived, SessionError};
use crate::wire::{GracefulRestartCapability, LongLivedFamily};

fn offer() -> RestartOffer {
    RestartOffer { restart_time: 120, restarting: false, stale_time: None }
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
    let bfd_down = || Notification::cease(Cease::BfdDown);
    let [broken, hard_broken] = [bfd_down(), bfd_down().hard_reset()].map(received);
    type Told = Option<&'static [u8]>;
    // Name, event, told with RFC 8538, kept then; told without it, kept then.
    let cases: [(&str, Event<'_>, Told, bool, Told, bool); 13] = [
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
        // Whoever kept routes over a broken path would send into it.
        (
            "the path is broken",
            Event::PathDown(Diagnostic::DETECTION_TIME_EXPIRED),
            Some(&[6, 9, 6, 10]),
            false,
            Some(&[6, 10]),
            false,
        ),
        ("told that the path is broken", Event::Received(Outgoing, &broken), None, false, None, false),
        (
            "the same, with the end of routes",
            Event::Received(Outgoing, &hard_broken),
            None,
            false,
            None,
            false,
        ),
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

/// What both sides' long-lived graceful restart comes to (RFC 9494 §4.1): the shorter time, for families that the peer lists, and
/// nothing without the other capability.
#[test]
fn long_lived() {
    let theirs = |afi, safi, forwarding, stale_time| LongLivedFamily { afi, safi, forwarding, stale_time };
    let both = vec![theirs(1, 1, true, 7200), theirs(2, 1, false, 60), theirs(1, 128, true, 60)];
    let agreed = |family, forwarding, seconds| LongLived {
        family,
        forwarding,
        stale_time: Duration::from_secs(seconds),
    };
    let expected = [agreed(Family::Ipv4Unicast, true, 3600), agreed(Family::Ipv6Unicast, false, 60)].to_vec();
    for (name, ours, graceful, offered, expected) in [
        ("both", Some(3600), true, Some(both.clone()), expected),
        ("not ours", None, true, Some(both.clone()), vec![]),
        ("without graceful restart", Some(3600), false, Some(both), vec![]),
        ("not theirs", Some(3600), true, None, vec![]),
    ] {
        let Message::Open(mut open) = graceful_open(true) else { unreachable!() };
        if !graceful {
            open = peer_open();
        }
        open.capabilities.extend(offered.map(Capability::LongLivedGracefulRestart));
        let bench = established(Some(RestartOffer { stale_time: ours, ..offer() }), &Message::Open(open));
        assert_eq!(bench.session.established().unwrap().1.long_lived, expected, "{name}");
    }
}

/// What we offer of it goes with the rest, its flag included.
#[test]
fn long_lived_is_offered() {
    for (restarting, stale_time) in [(false, Some(3600)), (true, Some(3600)), (true, None)] {
        let graceful_restart = Some(RestartOffer { restart_time: 0, restarting, stale_time });
        let mut bench = Bench::started(SessionConfig { graceful_restart, ..config() });
        let actions = bench.event(Event::TcpConnected);
        let Some(Action::Send(_, bytes)) = actions.last() else { panic!("{actions:?}") };
        let Ok(Message::Open(open)) = Message::decode(bytes, Context::default()) else { panic!("no OPEN") };
        let told = open.capabilities.iter().find_map(|capability| match capability {
            Capability::LongLivedGracefulRestart(families) => Some(families.clone()),
            _ => None,
        });
        let family = |afi, stale_time| LongLivedFamily { afi, safi: 1, forwarding: restarting, stale_time };
        assert_eq!(told, stale_time.map(|time| vec![family(1, time), family(2, time)]));
    }
}

/// Which restart flags stand in the first OPEN and in later ones (RFC 4724 §3, §4.1).
#[test]
fn restart_flags() {
    let flags = |bench: &mut Bench, event: Event<'_>| {
        let actions = bench.event(event);
        let Some(Action::Send(_, bytes)) = actions.last() else { panic!("{actions:?}") };
        let context = Context { four_octet_asn: true, ..Context::default() };
        let Ok(Message::Open(open)) = Message::decode(bytes, context) else { panic!("not an OPEN") };
        open.capabilities.into_iter().find_map(|capability| match capability {
            Capability::GracefulRestart(c) => {
                assert_eq!((c.restart_time, c.families.len()), (120, 2));
                Some((c.restarting, c.families.iter().all(|f| f.forwarding)))
            }
            _ => None,
        })
    };
    for (restarting, first, later) in
        [(false, (false, false), (false, true)), (true, (true, true), (false, true))]
    {
        let graceful_restart = Some(RestartOffer { restart_time: 120, restarting, stale_time: None });
        let mut bench = Bench::started(SessionConfig { graceful_restart, ..config() });
        assert_eq!(flags(&mut bench, Event::TcpConnected), Some(first));
        bench.told(Outgoing, &Message::Open(peer_open()));
        bench.told(Outgoing, &Message::Keepalive);
        bench.event(Event::TcpClosed(Outgoing));
        bench.expire();
        assert_eq!(flags(&mut bench, Event::TcpConnected), Some(later));
    }
    assert_eq!(flags(&mut Bench::started(config()), Event::TcpConnected), None);
}

/// RFC 4724 §5: a new connection is how a restarted peer shows itself.
#[test]
fn restarted_peer_replaces_its_connection() {
    let mut bench = Bench::connected(config());
    let mut open = peer_open();
    open.capabilities.push(Capability::GracefulRestart(GracefulRestartCapability {
        restarting: false,
        notification: false,
        restart_time: 60,
        families: Vec::new(),
    }));
    bench.told(Outgoing, &Message::Open(open.clone()));
    bench.told(Outgoing, &Message::Keepalive);
    // So soon it is no restart, but a connection that was begun beside the other.
    assert_eq!(words(&bench.event(Event::TcpAccepted)), [""; 0]);
    bench.now += Duration::from_secs(5);
    let actions = bench.event(Event::TcpAccepted);
    assert_eq!(words(&actions), ["close", "down", "accept", "send incoming OPEN"]);
    bench.told(Incoming, &Message::Open(open));
    assert_eq!(words(&bench.told(Incoming, &Message::Keepalive)), ["up incoming"]);
}
