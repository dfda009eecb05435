//! A configuration that changes while the session is under way.

use super::*;

/// A configuration that changes: what goes on, and what is tried at once.
#[test]
fn reconfigured_live() {
    let active = config();
    let passive = SessionConfig { passive: true, ..config() };
    let hold_time = SessionConfig { hold_time: 30, ..config() };
    type Start = fn(SessionConfig) -> Bench;
    /// Name, how the session came where it is, its configurations, what it does then, and where it is.
    type Case<'a> = (&'a str, Start, &'a SessionConfig, &'a SessionConfig, &'a [&'a str], State);
    let waiting: Start = |config| {
        let mut bench = Bench::started(config);
        bench.event(Event::TcpConnectFailed("refused".to_owned()));
        bench
    };
    let held_down: Start = |config| {
        let mut bench = Bench::connected(config);
        bench.event(Event::Received(Outgoing, &[0; 19]));
        bench
    };
    let cases: [Case<'_>; 9] = [
        ("stopped", Bench::new, &active, &passive, &[], State::Idle),
        ("connecting, passive now", Bench::started, &active, &passive, &["abort connect"], State::Active),
        (
            "connecting, another port",
            Bench::started,
            &active,
            &active,
            &["abort connect", "connect"],
            State::Connect,
        ),
        ("waiting, passive now", waiting, &active, &passive, &[], State::Active),
        ("waiting, tried at once", waiting, &active, &hold_time, &["connect"], State::Connect),
        ("passive, active now", Bench::started, &passive, &active, &["connect"], State::Connect),
        ("held down", held_down, &active, &passive, &[], State::Idle),
        ("in between", Bench::connected, &active, &hold_time, &[], State::OpenSent),
        ("Established", Bench::established, &active, &passive, &[], State::Established),
    ];
    for (name, start, before, after, expected, state) in cases {
        let mut bench = start(before.clone());
        let actions = bench.session.reconfigure(after.clone(), bench.now);
        assert_eq!(
            (words(&actions), bench.session.state()),
            (expected.iter().map(|w| (*w).to_owned()).collect(), state),
            "{name}"
        );
    }

    // The hold time is that of the next session.
    let mut bench = Bench::established(config());
    bench.session.reconfigure(SessionConfig { hold_time: 15, ..config() }, bench.now);
    let agreed =
        |bench: &Bench| bench.session.established().map(|(_, negotiated)| negotiated.hold_time.as_secs());
    assert_eq!(agreed(&bench), Some(30));
    bench.event(Event::TcpClosed(Outgoing));
    bench.expire();
    bench.event(Event::TcpConnected);
    bench.told(Outgoing, &Message::Open(peer_open()));
    bench.told(Outgoing, &Message::Keepalive);
    assert_eq!(agreed(&bench), Some(15));
}
