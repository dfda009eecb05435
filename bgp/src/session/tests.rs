//! Every state with every event, then what the table cannot show: timers, collisions, checks, restarts.

use std::time::{Duration, Instant};

use super::model::{
    Action, AddPaths, Backoff, Direction, Down, Event, Farewell, RestartOffer, RoleOffer, SessionConfig,
    State,
};
use super::{Jitter, Session};
use crate::wire::{
    Capability, Cease, Context, GracefulRestartCapability, Message, Notification, Open, RefreshKind, Role,
    RouteRefresh, Update, frame,
};
use crate::{Families, Family};

mod add_paths;
mod restart;
mod several;

use Direction::{Incoming, Outgoing};

const US: u32 = 64512;
const PEER: u32 = 65001;

fn config() -> SessionConfig {
    SessionConfig {
        asn: US,
        router_id: [10, 0, 0, 1].into(),
        peer_asn: Some(PEER),
        passive: false,
        hold_time: 90,
        send_hold_time: None,
        delay_open: None,
        connect_retry: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(8) },
        families: Families::ALL,
        extended_next_hop: false,
        role: None,
        graceful_restart: None,
        add_paths: AddPaths::default(),
    }
}

/// The peer's OPEN, with a router id above ours.
fn peer_open() -> Open {
    let mut capabilities: Vec<Capability> = Family::ALL.into_iter().map(Capability::multiprotocol).collect();
    capabilities.extend([Capability::RouteRefresh, Capability::FourOctetAsn(PEER)]);
    Open { my_as: 65001, hold_time: 30, router_id: [10, 0, 0, 2].into(), capabilities }
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(Context { four_octet_asn: true, ..Context::default() }, &mut out).unwrap();
    out
}

/// A session with a clock and what it last did, in words.
struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new(config: SessionConfig) -> Bench {
        Bench { session: Session::new(config, Jitter::seeded(1)), now: Instant::now() }
    }

    fn event(&mut self, event: Event<'_>) -> Vec<Action> {
        self.session.handle(event, self.now)
    }

    fn told(&mut self, direction: Direction, message: &Message) -> Vec<Action> {
        self.event(Event::Received(direction, &bytes(message)))
    }

    /// Lets the time come that the session waits for.
    fn expire(&mut self) -> Vec<Action> {
        self.now = self.session.next_deadline().expect("a timer runs");
        self.event(Event::TimerExpired)
    }

    fn started(config: SessionConfig) -> Bench {
        let mut bench = Bench::new(config);
        bench.event(Event::ManualStart);
        bench
    }

    fn connected(config: SessionConfig) -> Bench {
        let mut bench = Bench::started(config);
        bench.event(Event::TcpConnected);
        bench
    }

    fn established(config: SessionConfig) -> Bench {
        let mut bench = Bench::connected(config);
        bench.told(Outgoing, &Message::Open(peer_open()));
        bench.told(Outgoing, &Message::Keepalive);
        assert_eq!(bench.session.state(), State::Established);
        bench
    }
}

/// Makes an event happen.
type Trigger = fn(&mut Bench) -> Vec<Action>;

/// Actions in words.
fn words(actions: &[Action]) -> Vec<String> {
    let side = |direction: &Direction| if *direction == Outgoing { "" } else { " incoming" };
    let word = |action: &Action| match action {
        Action::Connect => "connect".to_owned(),
        Action::AbortConnect => "abort connect".to_owned(),
        Action::Accept => "accept".to_owned(),
        Action::Send(direction, bytes) => {
            assert_eq!(frame(bytes), Ok(Some(bytes.len())));
            match Message::decode(bytes, Context { four_octet_asn: true, ..Context::default() }).unwrap() {
                Message::Notification(n) => format!("send{} {}/{}", side(direction), n.code, n.subcode),
                message => format!("send{} {}", side(direction), message.name()),
            }
        }
        Action::Close(direction) => format!("close{}", side(direction)),
        Action::Established(direction, _) => format!("up{}", side(direction)),
        Action::Down(Down::Stopped) => "stopped".to_owned(),
        Action::Down(_) => "down".to_owned(),
        Action::Update(_) => "update".to_owned(),
        Action::RouteRefresh(RefreshKind::Request, family) => format!("refresh {family}"),
        Action::RouteRefresh(kind, family) => format!("{kind:?} {family}"),
    };
    actions.iter().map(word).collect()
}

/// Every state with every event, on the outgoing connection where it concerns one. `-` is nothing done; a state
/// after `→` only where it changes. "timer" is whichever runs out first.
const TRANSITIONS: &str = include_str!("transitions.txt");

#[test]
fn transitions() {
    let mut actual = String::new();
    let names =
        ["Idle", "held down", "Connect", "Active", "passive", "OpenSent", "OpenConfirm", "Established"];
    for name in names {
        let events: [(&str, Trigger); 14] = [
            ("ManualStart", |b| b.event(Event::ManualStart)),
            ("ManualStop", |b| {
                let cease = Notification::cease(Cease::AdministrativeShutdown);
                b.event(Event::ManualStop(Farewell::Cease(cease)))
            }),
            ("TcpConnected", |b| b.event(Event::TcpConnected)),
            ("TcpConnectFailed", |b| b.event(Event::TcpConnectFailed("refused".to_owned()))),
            ("TcpAccepted", |b| b.event(Event::TcpAccepted)),
            ("TcpClosed", |b| b.event(Event::TcpClosed(Outgoing))),
            ("OPEN", |b| b.told(Outgoing, &Message::Open(peer_open()))),
            ("KEEPALIVE", |b| b.told(Outgoing, &Message::Keepalive)),
            ("UPDATE", |b| b.told(Outgoing, &Message::Update(Update::default()))),
            ("ROUTE-REFRESH", |b| {
                b.told(Outgoing, &Message::RouteRefresh(RouteRefresh { afi: 1, subtype: 0, safi: 1 }))
            }),
            ("NOTIFICATION", |b| {
                b.told(Outgoing, &Message::Notification(Notification::cease(Cease::AdministrativeReset)))
            }),
            ("garbage", |b| b.event(Event::Received(Outgoing, &[0; 19]))),
            ("too many", |b| b.event(too_many(None))),
            ("timer", |b| {
                if b.session.next_deadline().is_some() { b.expire() } else { b.event(Event::TimerExpired) }
            }),
        ];
        for (event, send) in events {
            let mut bench = match name {
                "Idle" => Bench::new(config()),
                "held down" => {
                    let mut bench = Bench::connected(config());
                    bench.told(Outgoing, &Message::Keepalive);
                    bench
                }
                "Connect" => Bench::started(config()),
                "Active" => {
                    let mut bench = Bench::started(config());
                    bench.event(Event::TcpConnectFailed("refused".to_owned()));
                    bench
                }
                "passive" => Bench::started(SessionConfig { passive: true, ..config() }),
                "OpenSent" => Bench::connected(config()),
                "OpenConfirm" => {
                    let mut bench = Bench::connected(config());
                    bench.told(Outgoing, &Message::Open(peer_open()));
                    bench
                }
                _ => Bench::established(config()),
            };
            let before = bench.session.state();
            let done = words(&send(&mut bench));
            let done = if done.is_empty() { "-".to_owned() } else { done.join(", ") };
            let after = bench.session.state();
            let change = if after == before { String::new() } else { format!(" → {after}") };
            actual += &format!("{name:<12} | {event:<16} | {done}{change}\n");
        }
    }
    assert_eq!(actual, TRANSITIONS, "{actual}");
}

fn too_many(retry_after: Option<Duration>) -> Event<'static> {
    Event::TooManyPrefixes { limit: 1000, family: Family::Ipv6Unicast, retry_after }
}

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

/// Advances to each deadline for `time`; returns what was done, with when.
fn run_for(bench: &mut Bench, time: Duration) -> Vec<(Duration, String)> {
    let start = bench.now;
    let mut done = Vec::new();
    while bench.session.next_deadline().is_some_and(|at| at <= start + time) {
        let actions = bench.expire();
        done.extend(words(&actions).into_iter().map(|word| (bench.now - start, word)));
    }
    bench.now = start + time;
    done
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

#[test]
fn opens_that_do_not_fit() {
    let ibgp = SessionConfig { peer_asn: Some(US), ..config() };
    let ibgp_open = |router_id: [u8; 4]| Open {
        my_as: 64512,
        capabilities: Vec::new(),
        router_id: router_id.into(),
        ..peer_open()
    };
    let mut v6 = config();
    v6.families = Families { ipv6_unicast: true, ..Families::NONE };
    let only_v4 = Open { capabilities: vec![Capability::FourOctetAsn(PEER)], ..peer_open() };
    let cases = [
        (
            "other ASN",
            config(),
            Open { capabilities: vec![Capability::FourOctetAsn(1)], ..peer_open() },
            "send 2/2",
        ),
        (
            "any other ASN",
            SessionConfig { peer_asn: None, ..config() },
            Open { capabilities: vec![Capability::FourOctetAsn(1)], ..peer_open() },
            "send KEEPALIVE",
        ),
        (
            "our own, where any other would do",
            SessionConfig { peer_asn: None, ..config() },
            ibgp_open([10, 0, 0, 2]),
            "send 2/2",
        ),
        ("id zero", config(), Open { router_id: [0; 4].into(), ..peer_open() }, "send 2/3"),
        ("our id within the AS", ibgp.clone(), ibgp_open([10, 0, 0, 1]), "send 2/3"),
        ("another id within the AS", ibgp, ibgp_open([10, 0, 0, 2]), "send KEEPALIVE"),
        (
            "our id in another AS",
            config(),
            Open { router_id: [10, 0, 0, 1].into(), ..peer_open() },
            "send KEEPALIVE",
        ),
        ("hold time 2", config(), Open { hold_time: 2, ..peer_open() }, "send 2/6"),
        ("no common family", v6, only_v4.clone(), "send 2/7"),
        ("no families is IPv4", config(), only_v4, "send KEEPALIVE"),
    ];
    for (name, config, open, expected) in cases {
        let mut bench = Bench::connected(config);
        assert_eq!(words(&bench.told(Outgoing, &Message::Open(open)))[0], expected, "{name}");
    }
}

/// Roles that make a pair, and others (RFC 9234 §4.2): what a speaker of that role says to a peer that tells those.
#[test]
fn roles() {
    use Role::{Customer, Peer, Provider, RouteServer, RouteServerClient};
    let (fine, mismatch) = ("send KEEPALIVE", "send 2/11");
    let all = [Provider, RouteServer, RouteServerClient, Customer, Peer];
    let pairs = [(Provider, Customer), (RouteServer, RouteServerClient), (Peer, Peer)];
    let mut cases = vec![
        (Some(Customer), false, vec![], fine),
        (Some(Customer), true, vec![], mismatch),
        (Some(Customer), true, vec![0, 0], fine),
        (Some(Customer), false, vec![0, 3], mismatch),
        (Some(Customer), false, vec![77], mismatch),
        (None, false, vec![3], fine),
    ];
    for ours in all {
        for theirs in all {
            let pair = pairs.contains(&(ours, theirs)) || pairs.contains(&(theirs, ours));
            cases.push((Some(ours), true, vec![theirs as u8], if pair { fine } else { mismatch }));
        }
    }
    for (ours, required, theirs, expected) in cases {
        let role = ours.map(|role| RoleOffer { role, required });
        let told = theirs.iter().copied().map(Capability::Role);
        let capabilities = peer_open().capabilities.into_iter().chain(told).collect();
        let open = Open { capabilities, ..peer_open() };
        let mut bench = Bench::connected(SessionConfig { role, ..config() });
        assert_eq!(
            words(&bench.told(Outgoing, &Message::Open(open)))[0],
            expected,
            "{ours:?} {required} {theirs:?}"
        );
    }
    // Within an AS there are none.
    let role = Some(RoleOffer { role: Peer, required: true });
    let mut bench = Bench::connected(SessionConfig { role, peer_asn: Some(US), ..config() });
    let open = Open { my_as: 64512, capabilities: vec![Capability::Role(0)], ..peer_open() };
    assert_eq!(words(&bench.told(Outgoing, &Message::Open(open)))[0], fine);
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

#[test]
fn bytes_come_in_any_pieces() {
    let mut bench = Bench::connected(config());
    let stream = [Message::Open(peer_open()), Message::Keepalive, Message::Update(Update::default())]
        .iter()
        .flat_map(bytes)
        .collect::<Vec<u8>>();
    let done: Vec<String> =
        stream.iter().flat_map(|byte| words(&bench.event(Event::Received(Outgoing, &[*byte])))).collect();
    assert_eq!(done, ["send KEEPALIVE", "up", "update"]);

    let mut bench = Bench::connected(config());
    assert_eq!(words(&bench.event(Event::Received(Outgoing, &stream))), ["send KEEPALIVE", "up", "update"]);
}

#[test]
fn silent_stop_says_nothing() {
    let mut bench = Bench::established(config());
    assert_eq!(words(&bench.event(Event::ManualStop(Farewell::Silent))), ["close", "stopped"]);
}

#[test]
fn refresh_that_was_not_agreed_on_is_ignored() {
    for enhanced in [false, true] {
        let families = Families { ipv4_unicast: true, ..Families::NONE };
        let mut bench = Bench::connected(SessionConfig { families, ..config() });
        let mut open = peer_open();
        open.capabilities.extend(enhanced.then_some(Capability::EnhancedRouteRefresh));
        bench.told(Outgoing, &Message::Open(open));
        bench.told(Outgoing, &Message::Keepalive);
        for (afi, safi, subtype, expected) in [
            (1, 1, 0, Some("refresh ipv4-unicast")),
            (1, 1, 1, Some("Begin ipv4-unicast").filter(|_| enhanced)),
            (1, 1, 2, Some("End ipv4-unicast").filter(|_| enhanced)),
            (1, 1, 3, None),
            (2, 1, 0, None),
            (2, 1, 1, None),
            (1, 128, 0, None),
        ] {
            let refresh = Message::RouteRefresh(RouteRefresh { afi, subtype, safi });
            let done = words(&bench.told(Outgoing, &refresh));
            assert_eq!(done, expected.as_slice(), "{afi} {safi} {subtype}, enhanced: {enhanced}");
        }
    }
}
