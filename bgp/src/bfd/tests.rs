//! The state machine by its table, timers, and two sides that talk over a path that loses packets.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Action, Diagnostic, Packet, PacketError, Session, SessionConfig, State};
use crate::session::Jitter;

const MS: Duration = Duration::from_millis(1);

fn config() -> SessionConfig {
    SessionConfig { transmit: 50 * MS, receive: 50 * MS, multiplier: 3, passive: false }
}

fn packet(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        last: false,
        independent: false,
        demand: false,
        multiplier: 3,
        sender: 2,
        receiver: 1,
        transmit: 50 * MS,
        receive: 50 * MS,
    }
}

struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new(config: SessionConfig) -> Bench {
        let now = Instant::now();
        Bench { session: Session::new(config, 1, Jitter::seeded(1), now), now }
    }

    /// Brings the session to a state, with what it sends on the way forgotten.
    fn at(state: State) -> Bench {
        let mut bench = Bench::new(config());
        let heard: &[State] = match state {
            State::AdminDown => {
                bench.session.take_down(bench.now);
                &[]
            }
            State::Down => &[],
            State::Init => &[State::Down],
            State::Up => &[State::Down, State::Up],
        };
        for &heard in heard {
            bench.hear(packet(heard));
        }
        assert_eq!(bench.session.state(), state);
        bench
    }

    fn hear(&mut self, packet: Packet) -> Vec<Action> {
        self.session.received(&packet, self.now)
    }

    /// Lets the time come that the session waits for.
    fn expire(&mut self) -> Vec<Action> {
        self.now = self.session.next_deadline().expect("a timer runs");
        self.session.timer(self.now)
    }
}

fn sent(actions: &[Action]) -> Option<Packet> {
    actions.iter().find_map(|action| match action {
        Action::Send(packet) => Some(*packet),
        Action::Changed => None,
    })
}

/// RFC 5880 §6.2 and §6.8.6, each state with each state that is heard.
#[test]
fn transitions() {
    use State::{AdminDown, Down, Init, Up};
    let cases = [
        (Down, [Init, Up, Down, Down]),
        (Init, [Init, Up, Up, Down]),
        (Up, [Down, Up, Up, Down]),
        (AdminDown, [AdminDown; 4]),
    ];
    for (state, next) in cases {
        for (heard, next) in [Down, Init, Up, AdminDown].into_iter().zip(next) {
            let mut bench = Bench::at(state);
            let actions = bench.hear(packet(heard));
            assert_eq!(bench.session.state(), next, "{state} hears {heard}");
            assert_eq!(actions.contains(&Action::Changed), state != next, "{state} hears {heard}");
            // What changes is told at once.
            assert_eq!(sent(&actions).map(|packet| packet.state), (state != next).then_some(next));
        }
    }
}

#[test]
fn why_it_went_down_is_told() {
    let mut bench = Bench::at(State::Up);
    let actions = bench.hear(packet(State::Down));
    assert_eq!(sent(&actions).unwrap().diagnostic, Diagnostic::NEIGHBOR_SIGNALED_DOWN);
    let mut bench = Bench::at(State::Up);
    let began = bench.now;
    while bench.session.state() == State::Up {
        bench.expire();
    }
    assert_eq!(bench.now - began, 150 * MS, "three times what both sides want");
    assert_eq!(bench.session.diagnostic(), Diagnostic::DETECTION_TIME_EXPIRED);
    let mut bench = Bench::at(State::Up);
    let actions = bench.session.take_down(bench.now);
    assert_eq!(sent(&actions).unwrap().diagnostic, Diagnostic::ADMINISTRATIVELY_DOWN);
    assert_eq!(sent(&actions).unwrap().state, State::AdminDown);
}

/// RFC 5880 §6.8.1: after silence the other side may be another.
#[test]
fn silence_forgets_the_other_side() {
    for state in [State::Init, State::Up] {
        let mut bench = Bench::at(state);
        while bench.session.state() == state {
            bench.expire();
        }
        assert_eq!(sent(&bench.expire()).unwrap().receiver, 0);
    }
}

/// A side that wants no more packets, as it is taken down, and then vanishes: whoever is there when it is back has to be spoken to.
#[test]
fn who_wanted_no_packets_is_spoken_to_when_it_is_gone() {
    for passive in [false, true] {
        let mut bench = Bench::new(SessionConfig { passive, ..config() });
        bench.hear(packet(State::Down));
        bench.hear(packet(State::Up));
        bench.hear(Packet { receive: Duration::ZERO, ..packet(State::AdminDown) });
        assert_eq!(bench.session.state(), State::Down);
        // Nothing is said until the detection time is over, and then as from the beginning.
        let said = sent(&bench.expire());
        assert!(!bench.session.is_heard());
        assert_eq!(
            said.map(|packet| (packet.state, packet.receiver)),
            (!passive).then_some((State::Down, 0))
        );
        assert_eq!(bench.session.next_deadline().is_some(), !passive, "whoever is passive waits");
        if !passive {
            assert!(sent(&bench.expire()).is_some(), "and again");
        }
    }
}

#[test]
fn slow_until_up_then_as_agreed() {
    let mut bench = Bench::new(config());
    let mut times = Vec::new();
    for _ in 0..20 {
        assert!(sent(&bench.expire()).is_some());
        times.push(bench.now);
    }
    for pair in times.windows(2) {
        assert!((750 * MS..=1000 * MS).contains(&(pair[1] - pair[0])), "{:?}", pair[1] - pair[0]);
    }
    bench.hear(packet(State::Down));
    let actions = bench.hear(packet(State::Init));
    let told = sent(&actions).unwrap();
    assert!(told.poll, "the other side is asked whether it knows of the new interval");
    assert_eq!(told.transmit, 50 * MS);
    let before = bench.now;
    bench.expire();
    assert!(bench.now - before <= 50 * MS);
    let actions = bench.hear(Packet { last: true, ..packet(State::Up) });
    assert_eq!(sent(&actions), None);
    assert!(!sent(&bench.expire()).unwrap().poll);
}

#[test]
fn the_slower_side_decides() {
    let mut bench = Bench::at(State::Up);
    bench.hear(Packet {
        receive: 200 * MS,
        transmit: 400 * MS,
        multiplier: 5,
        last: true,
        ..packet(State::Up)
    });
    assert_eq!(bench.session.transmit_interval(), 200 * MS);
    assert_eq!(bench.session.detection_time(), 2000 * MS);
}

/// RFC 5880 §6.8.3: nothing gets worse before the other side knows of it, and all that gets better does so at once.
#[test]
fn intervals_change_by_poll() {
    let mut bench = Bench::at(State::Up);
    bench.hear(Packet { last: true, ..packet(State::Up) });
    let slower = SessionConfig { transmit: 100 * MS, receive: 10 * MS, ..config() };
    let told = sent(&bench.session.reconfigure(slower, bench.now)).unwrap();
    assert!(told.poll);
    assert_eq!((told.transmit, told.receive), (100 * MS, 10 * MS));
    assert_eq!(bench.session.transmit_interval(), 50 * MS);
    assert_eq!(bench.session.detection_time(), 150 * MS);
    bench.hear(Packet { last: true, transmit: 10 * MS, ..packet(State::Up) });
    assert_eq!(bench.session.transmit_interval(), 100 * MS);
    assert_eq!(bench.session.detection_time(), 30 * MS);
    assert_eq!(bench.session.state(), State::Up);
}

/// RFC 5880 §6.5: the answer to one poll says nothing of what was configured while it was under way, which has its own.
#[test]
fn one_poll_at_a_time() {
    let mut bench = Bench::at(State::Up);
    bench.hear(Packet { last: true, ..packet(State::Up) });
    let receive = |receive| SessionConfig { receive, ..config() };
    assert_eq!(sent(&bench.session.reconfigure(receive(200 * MS), bench.now)).unwrap().receive, 200 * MS);
    assert_eq!(bench.session.reconfigure(receive(20 * MS), bench.now), []);
    let actions = bench.hear(Packet { last: true, ..packet(State::Up) });
    assert_eq!(bench.session.detection_time(), 600 * MS, "it knows of the first");
    let second = sent(&actions).unwrap();
    assert_eq!((second.poll, second.receive), (true, 20 * MS));
    bench.hear(Packet { last: true, ..packet(State::Up) });
    assert_eq!(bench.session.detection_time(), 150 * MS, "it knows of the second");
}

/// RFC 5880 §6.8.3: at no time is a change told without one.
#[test]
fn what_changes_is_polled_while_down_too() {
    let mut bench = Bench::at(State::Down);
    assert!(!sent(&bench.expire()).unwrap().poll);
    let other = SessionConfig { receive: 200 * MS, ..config() };
    assert!(sent(&bench.session.reconfigure(other, bench.now)).unwrap().poll);
    bench.hear(Packet { last: true, ..packet(State::AdminDown) });
    assert!(!std::iter::repeat_with(|| sent(&bench.expire())).flatten().next().unwrap().poll);
}

/// RFC 5880 §6.8.16: it does not come up by itself, whatever is heard, and says so at the slow interval.
#[test]
fn taken_down_it_stays_down() {
    let mut bench = Bench::at(State::Up);
    bench.session.take_down(bench.now);
    for heard in [State::Up, State::Down, State::Init] {
        assert_eq!(bench.hear(packet(heard)), [], "{heard}");
        assert!(bench.session.transmit_interval() >= 1000 * MS);
    }
    assert_eq!(sent(&bench.expire()).unwrap().state, State::AdminDown);
    assert_eq!(bench.session.remote_detection_time(), 3000 * MS);
}

#[test]
fn a_poll_is_answered_at_once() {
    let mut bench = Bench::at(State::Up);
    let answer = sent(&bench.hear(Packet { poll: true, ..packet(State::Up) })).unwrap();
    assert!(answer.last && !answer.poll);
}

#[test]
fn the_passive_side_waits() {
    let mut bench = Bench::new(SessionConfig { passive: true, ..config() });
    assert_eq!(bench.session.next_deadline(), None);
    assert!(sent(&bench.hear(packet(State::Down))).is_some());
    assert!(bench.session.next_deadline().is_some());
}

/// RFC 5880 §6.8.7: nothing is sent that is not wanted.
#[test]
fn silence_on_demand() {
    for wish in [
        Packet { demand: true, last: true, ..packet(State::Up) },
        Packet { receive: Duration::ZERO, last: true, ..packet(State::Up) },
    ] {
        let mut bench = Bench::at(State::Up);
        bench.hear(wish);
        let silence = bench.now + bench.session.detection_time();
        assert_eq!(bench.session.next_deadline(), Some(silence), "nothing else is waited for");
        let mut bench = Bench::at(State::Up);
        bench.hear(wish);
        assert!(sent(&bench.hear(Packet { poll: true, ..wish })).unwrap().last);
    }
}

#[test]
fn one_packet_may_not_come_late() {
    let mut bench = Bench::at(State::Up);
    bench.session.reconfigure(SessionConfig { multiplier: 1, ..config() }, bench.now);
    for _ in 0..100 {
        bench.hear(Packet { last: true, ..packet(State::Up) });
        let before = bench.now;
        if sent(&bench.expire()).is_some() {
            let interval = bench.now - before;
            assert!(interval <= 45 * MS, "{interval:?}");
        }
    }
}

#[test]
fn packets_that_are_not_taken() {
    let good = packet(State::Up).encode();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        Packet::decode(&bytes).unwrap_err()
    };
    assert_eq!(with(&|b| b[0] = 2 << 5), PacketError::Version(2));
    assert_eq!(with(&|b| b.truncate(23)), PacketError::Length { told: 24, bytes: 23 });
    assert_eq!(with(&|b| b.clear()), PacketError::Length { told: 0, bytes: 0 });
    assert_eq!(with(&|b| b[3] = 25), PacketError::Length { told: 25, bytes: 24 });
    assert_eq!(with(&|b| b[3] = 23), PacketError::Length { told: 23, bytes: 24 });
    assert_eq!(with(&|b| b[1] |= 1), PacketError::Multipoint);
    assert_eq!(with(&|b| b[2] = 0), PacketError::Multiplier);
    assert_eq!(with(&|b| b[4..8].fill(0)), PacketError::Sender);
    assert_eq!(with(&|b| b[8..12].fill(0)), PacketError::Receiver(State::Up));
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let state = prop::sample::select(vec![State::AdminDown, State::Down, State::Init, State::Up]);
    let micros = || any::<u32>().prop_map(|micros| Duration::from_micros(micros.into()));
    (state, any::<[bool; 4]>(), 0..32_u8, 1..=u8::MAX, 1..=u32::MAX, 1..=u32::MAX, micros(), micros())
        .prop_map(
            |(
                state,
                [poll, last, independent, demand],
                diagnostic,
                multiplier,
                sender,
                receiver,
                transmit,
                receive,
            )| {
                Packet {
                    diagnostic: Diagnostic(diagnostic),
                    state,
                    poll,
                    last,
                    independent,
                    demand,
                    multiplier,
                    sender,
                    receiver,
                    transmit,
                    receive,
                }
            },
        )
}

proptest! {
    #[test]
    fn packets_survive_the_wire(packet in any_packet()) {
        prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
    }

    #[test]
    fn anything_can_come(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Packet::decode(&bytes);
    }

    /// Whatever comes, in whatever order: the session has a deadline that lies ahead, or waits for the other side.
    #[test]
    fn timers_never_spin(packets in prop::collection::vec((any_packet(), 0..3000_u32), 0..40)) {
        let mut bench = Bench::new(config());
        for (packet, pause) in packets {
            let until = bench.now + pause * MS;
            let mut fired = 0;
            while bench.session.next_deadline().is_some_and(|at| at <= until) {
                bench.expire();
                fired += 1;
                prop_assert!(fired < 1000, "a timer spins");
            }
            bench.now = until;
            bench.hear(packet);
        }
    }

    /// Two sides over a path that loses up to a third of the packets for a while, and takes more or less long, so that they overtake each
    /// other: afterwards both are up at the intervals of the slower one, and stay; and a cut is noticed by both within the detection time.
    #[test]
    fn two_sides(
        seed in any::<u64>(),
        intervals in prop::array::uniform4(10..200_u32),
        multipliers in prop::array::uniform2(2..6_u8),
        loss in 0..33_u64,
        passive in any::<bool>(),
    ) {
        let configs = [0, 1].map(|side| SessionConfig {
            transmit: intervals[side] * MS,
            receive: intervals[2 + side] * MS,
            multiplier: multipliers[side],
            passive: passive && side == 0,
        });
        let mut path = Path::new(seed, configs);
        path.loss = loss;
        path.run(Duration::from_secs(5));
        path.loss = 0;
        path.run(Duration::from_secs(10));
        for (side, session) in path.sides.iter().enumerate() {
            prop_assert_eq!(session.state(), State::Up);
            prop_assert_eq!(session.transmit_interval(), configs[side].transmit.max(configs[1 - side].receive));
            let detection = configs[side].receive.max(configs[1 - side].transmit);
            prop_assert_eq!(session.detection_time(), detection * u32::from(configs[1 - side].multiplier));
        }
        let quiet = path.now;
        path.run(Duration::from_secs(20));
        prop_assert_eq!(path.changed.filter(|&at| at > quiet), None, "up without loss stays up");
        let longest = path.sides.iter().map(Session::detection_time).max().unwrap();
        path.loss = 100;
        path.run(longest + *DELAY.end());
        prop_assert!(path.sides.iter().all(|session| session.state() == State::Down));
    }
}

/// How long a packet is under way: with the shortest interval and multiplier of the test, 20 ms of silence, what varies is not taken for loss.
const DELAY: std::ops::RangeInclusive<Duration> = Duration::from_micros(100)..=Duration::from_millis(5);

/// Two sessions and what is under way between them.
struct Path {
    sides: [Session; 2],
    under_way: Vec<(Instant, usize, [u8; 24])>,
    now: Instant,
    /// Percent.
    loss: u64,
    random: u64,
    changed: Option<Instant>,
}

impl Path {
    fn new(seed: u64, configs: [SessionConfig; 2]) -> Path {
        let now = Instant::now();
        let session = |side: usize, number| {
            Session::new(configs[side], number, Jitter::seeded(seed ^ u64::from(number)), now)
        };
        Path {
            sides: [session(0, 1), session(1, 2)],
            under_way: Vec::new(),
            now,
            loss: 0,
            random: seed,
            changed: None,
        }
    }

    fn act(&mut self, side: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Changed => self.changed = Some(self.now),
                Action::Send(packet) => {
                    let lost = self.below(100) < self.loss;
                    let spread = u64::try_from((*DELAY.end() - *DELAY.start()).as_micros()).unwrap();
                    let delay = *DELAY.start() + Duration::from_micros(self.below(spread + 1));
                    if !lost {
                        self.under_way.push((self.now + delay, 1 - side, packet.encode()));
                    }
                }
            }
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % limit
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timers =
                [0, 1].into_iter().filter_map(|side| Some((self.sides[side].next_deadline()?, side)));
            let arrivals = self.under_way.iter().map(|&(at, side, _)| (at, side));
            let Some((at, side)) = timers.chain(arrivals).min().filter(|&(at, _)| at <= end) else { break };
            self.now = at;
            let arrived = self.under_way.iter().position(|&(when, to, _)| (when, to) == (at, side));
            let actions = match arrived.map(|index| self.under_way.remove(index)) {
                Some((_, _, bytes)) => self.sides[side].received(&Packet::decode(&bytes).unwrap(), at),
                None => self.sides[side].timer(at),
            };
            self.act(side, actions);
        }
        self.now = end;
    }
}
