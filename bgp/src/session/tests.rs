//! A session in words: what comes in, and what it does then.

use std::time::{Duration, Instant};

use super::model::{
    Action, AddPaths, Backoff, Direction, Down, Event, Farewell, RestartOffer, SessionConfig, State,
};
use super::{Jitter, Session};
use crate::wire::{
    Capability, Cease, Context, Message, Notification, Open, RefreshKind, RouteRefresh, Update, frame,
};
use crate::{Families, Family};

mod add_paths;
mod collisions;
mod messages;
mod open;
mod reconfigured;
mod restart;
mod several;
mod timers;
mod transitions;

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

fn too_many(retry_after: Option<Duration>) -> Event<'static> {
    Event::TooManyPrefixes { limit: 1000, family: Family::Ipv6Unicast, retry_after }
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
