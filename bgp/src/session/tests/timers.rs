//! When a peer is given up, and when it is tried again.

use super::*;

/// RFC 4486: the peer is told which limit; it may come back after the given time and not before, or when the session is started anew.
#[test]
fn a_peer_that_announces_too_much_stays_away() {
    let hold = Duration::from_secs(300);
    for retry_after in [Some(hold), Some(Duration::MAX), None] {
        let mut bench = Bench::established(config());
        let actions = bench.event(too_many(retry_after));
        let Action::Send(Outgoing, sent) = &actions[0] else { panic!("{actions:?}") };
        // After header, code and subcode: AFI, SAFI and the limit.
        assert_eq!(sent[19..], [6, 1, 0, 2, 1, 0, 0, 0x03, 0xe8]);
        assert_eq!(words(&actions), ["send 6/1", "close", "down"]);
        assert_eq!(words(&bench.event(Event::TcpAccepted)), [""; 0], "refused");
        let done = run_for(&mut bench, hold * 2);
        match retry_after {
            Some(after) if after == hold => assert_eq!(done[0], (hold, "connect".to_owned())),
            _ => assert_eq!(done, []),
        }
        let mut bench = Bench::established(config());
        bench.event(too_many(retry_after));
        assert_eq!(words(&bench.event(Event::ManualStart)), ["connect"], "{retry_after:?}");
    }
}

#[test]
fn silent_peer_is_given_up_after_the_hold_time() {
    let mut bench = Bench::established(config());
    // The peer proposed 30 s, less than our 90 s.
    let done = run_for(&mut bench, Duration::from_secs(31));
    let (keepalives, rest): (Vec<_>, Vec<_>) =
        done.into_iter().partition(|(_, word)| word == "send KEEPALIVE");
    assert!((3..=4).contains(&keepalives.len()), "{keepalives:?}");
    let hold = Duration::from_secs(30);
    assert_eq!(rest[0], (hold, "send 4/0".to_owned()));
    assert_eq!(rest[2], (hold, "down".to_owned()));
}

#[test]
fn talking_peer_is_not_given_up() {
    let mut bench = Bench::established(config());
    for _ in 0..20 {
        run_for(&mut bench, Duration::from_secs(29));
        bench.told(Outgoing, &Message::Keepalive);
        assert_eq!(bench.session.state(), State::Established);
    }
}

#[test]
fn hold_time_zero_runs_no_timers() {
    let mut bench = Bench::connected(config());
    bench.told(Outgoing, &Message::Open(Open { hold_time: 0, ..peer_open() }));
    bench.told(Outgoing, &Message::Keepalive);
    assert_eq!(bench.session.state(), State::Established);
    assert_eq!(bench.session.next_deadline(), None);
}

#[test]
fn pauses_double_up_to_the_longest() {
    let mut bench = Bench::started(config());
    for seconds in [1, 2, 4, 8, 8, 8] {
        bench.event(Event::TcpConnectFailed("refused".to_owned()));
        let pause = bench.session.next_deadline().unwrap() - bench.now;
        let most = Duration::from_secs(seconds);
        assert!(pause <= most && pause >= most * 3 / 4, "{pause:?} for {most:?}");
        assert_eq!(words(&bench.expire()), ["connect"]);
    }
}

/// A session that ends is tried again soon, whatever it took to make it; one that ends again and again, however it does,
/// more and more seldom (RFC 4271 §8.1.1, DampPeerOscillations).
#[test]
fn oscillation_is_damped() {
    let notification = bytes(&Message::Notification(Notification::cease(Cease::AdministrativeReset)));
    let ends = [Event::TcpClosed(Outgoing), Event::Received(Outgoing, &notification)];
    for end in ends {
        let mut bench = Bench::started(config());
        for _ in 0..6 {
            bench.event(Event::TcpConnectFailed("refused".to_owned()));
            bench.expire();
        }
        // It stood long enough the last time.
        for (stood, seconds) in [(0, 1), (0, 2), (7, 4), (0, 8), (0, 8), (8, 1), (0, 2)] {
            bench.event(Event::TcpConnected);
            bench.told(Outgoing, &Message::Open(peer_open()));
            bench.told(Outgoing, &Message::Keepalive);
            run_for(&mut bench, Duration::from_secs(stood));
            bench.event(end.clone());
            let pause = bench.session.next_deadline().unwrap() - bench.now;
            let most = Duration::from_secs(seconds);
            assert!(pause <= most && pause >= most * 3 / 4, "{pause:?} for {most:?}, {end:?}");
            assert_eq!(words(&bench.expire()), ["connect"]);
        }
    }
}

/// RFC 9687: a peer that says that it is there, and reads nothing.
#[test]
fn peer_that_reads_nothing_is_given_up() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    for (name, configured, hold_time, expected) in [
        ("the RFC's", None, 30, Some(minutes(8))),
        ("twice the hold time", None, 300, Some(minutes(10))),
        ("configured", Some(minutes(1)), 30, Some(minutes(1))),
        ("no hold time", Some(minutes(1)), 0, None),
    ] {
        let mut bench =
            Bench::connected(SessionConfig { send_hold_time: configured, hold_time: 300, ..config() });
        bench.told(Outgoing, &Message::Open(Open { hold_time, ..peer_open() }));
        bench.told(Outgoing, &Message::Keepalive);
        bench.event(Event::OutputWaits(Outgoing));
        bench.now += Duration::from_secs(5);
        bench.event(Event::OutputMoves(Outgoing));
        let start = bench.now;
        bench.event(Event::OutputWaits(Outgoing));
        let mut given_up = None;
        while bench.now < start + minutes(12) && given_up.is_none() {
            let done = run_for(&mut bench, Duration::from_secs(1));
            given_up = done
                .into_iter()
                .find(|(_, word)| word != "send KEEPALIVE")
                .map(|(_, word)| (bench.now - start, word));
            bench.event(Event::OutputWaits(Outgoing));
            bench.told(Outgoing, &Message::Keepalive);
        }
        assert_eq!(given_up, expected.map(|time| (time, "send 8/0".to_owned())), "{name}");
    }
}

/// DelayOpen (RFC 4271 §8.1.1): the peer's OPEN is waited for, for a while.
#[test]
fn open_is_delayed() {
    let delayed = || SessionConfig { delay_open: Some(Duration::from_secs(5)), ..config() };
    for direction in Direction::ALL {
        let side = if direction == Outgoing { "" } else { " incoming" };
        let connected = || {
            let mut bench = Bench::started(delayed());
            let done = words(&bench.event(if direction == Outgoing {
                Event::TcpConnected
            } else {
                Event::TcpAccepted
            }));
            assert!(!done.iter().any(|word| word.contains("send")), "{done:?}");
            assert_eq!(bench.session.state(), State::Connect);
            bench
        };
        let mut bench = connected();
        let done = words(&bench.told(direction, &Message::Open(peer_open())));
        assert_eq!(done, [format!("send{side} OPEN"), format!("send{side} KEEPALIVE")]);
        assert_eq!(words(&bench.told(direction, &Message::Keepalive)).last(), Some(&format!("up{side}")));

        let mut bench = connected();
        let start = bench.now;
        assert_eq!(words(&bench.expire()), [format!("send{side} OPEN")]);
        assert_eq!((bench.now - start, bench.session.state()), (Duration::from_secs(5), State::OpenSent));

        let mut bench = connected();
        assert_eq!(words(&bench.told(direction, &Message::Keepalive))[0], format!("send{side} 5/0"));
        let mut bench = connected();
        bench.event(Event::TcpClosed(direction));
        assert_eq!(bench.session.state(), if direction == Outgoing { State::Active } else { State::Connect });
    }
}

#[test]
fn pauses_differ_by_seed_only() {
    let pause = |seed| {
        let mut session = Session::new(config(), Jitter::seeded(seed));
        let now = Instant::now();
        session.handle(Event::ManualStart, now);
        session.handle(Event::TcpConnectFailed(String::new()), now);
        session.next_deadline().unwrap() - now
    };
    assert_eq!(pause(1), pause(1));
    assert_ne!(pause(1), pause(2));
}
