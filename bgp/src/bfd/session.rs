//! One session (RFC 5880 §6).

use std::time::{Duration, Instant};

use super::packet::{Diagnostic, Packet, State};
use crate::session::Jitter;

/// The least interval between packets while the session is not up (RFC 5880 §6.8.3).
const SLOW: Duration = Duration::from_secs(1);

/// What a session is configured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Desired minimum transmit interval; not 0.
    pub transmit: Duration,
    /// Required minimum receive interval; not 0.
    pub receive: Duration,
    /// How many packets in a row may be lost; not 0.
    pub multiplier: u8,
    /// Says nothing before the other side has spoken.
    pub passive: bool,
}

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this.
    Send(Packet),
    /// The session is in another state than before.
    Changed,
}

/// What is known of the other side.
#[derive(Clone, Copy, Debug)]
struct Remote {
    state: State,
    diagnostic: Diagnostic,
    /// 0: not known.
    discriminator: u32,
    multiplier: u8,
    transmit: Duration,
    receive: Duration,
    demand: bool,
    independent: bool,
}

/// Before anything has been heard (RFC 5880 §6.8.1).
const UNKNOWN: Remote = Remote {
    state: State::Down,
    diagnostic: Diagnostic::NONE,
    discriminator: 0,
    multiplier: 0,
    transmit: Duration::ZERO,
    receive: Duration::from_micros(1),
    demand: false,
    independent: false,
};

/// Intervals of this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Intervals {
    transmit: Duration,
    receive: Duration,
}

/// One session with one neighbour.
#[derive(Clone, Debug)]
pub struct Session {
    config: SessionConfig,
    /// This side's name of it.
    discriminator: u32,
    jitter: Jitter,
    state: State,
    diagnostic: Diagnostic,
    remote: Remote,
    /// As told to the other side.
    told: Intervals,
    /// As held to: a worse one only once the other side knows of it.
    in_force: Intervals,
    /// The other side has yet to say that it knows what it was told.
    polling: bool,
    next: Option<Instant>,
    heard: Option<Instant>,
}

impl Session {
    /// A session in Down. `discriminator` names it in this system and is not 0.
    pub fn new(config: SessionConfig, discriminator: u32, jitter: Jitter, now: Instant) -> Session {
        let slow = Intervals { transmit: config.transmit.max(SLOW), receive: config.receive };
        Session {
            config,
            discriminator,
            jitter,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            remote: UNKNOWN,
            told: slow,
            in_force: slow,
            polling: false,
            next: (!config.passive).then_some(now),
            heard: None,
        }
    }

    /// This side's state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why it was last left.
    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    /// The other side's state, as it last told.
    pub fn remote_state(&self) -> State {
        self.remote.state
    }

    /// Why the other side's was last left, as it last told.
    pub fn remote_diagnostic(&self) -> Diagnostic {
        self.remote.diagnostic
    }

    /// The other side has been heard of within the detection time.
    pub fn is_heard(&self) -> bool {
        self.remote.discriminator != 0
    }

    /// The other side's BFD does not die with its control plane (C bit).
    pub fn remote_independent(&self) -> bool {
        self.remote.independent
    }

    /// The interval between packets of the other side, before jitter.
    pub fn receive_interval(&self) -> Duration {
        self.in_force.receive.max(self.remote.transmit)
    }

    /// How long nothing may be heard (RFC 5880 §6.8.4).
    pub fn detection_time(&self) -> Duration {
        self.receive_interval() * u32::from(self.remote.multiplier)
    }

    /// How long the other side waits for packets of this one, if it holds to what it was told.
    pub fn remote_detection_time(&self) -> Duration {
        self.transmit_interval() * u32::from(self.config.multiplier)
    }

    /// The interval between packets of this side, before jitter (RFC 5880 §6.8.2).
    pub fn transmit_interval(&self) -> Duration {
        self.in_force.transmit.max(self.remote.receive)
    }

    /// When [`Session::timer`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next.into_iter().chain(self.silent_from()).min()
    }

    /// The detection time is over: whatever has come and was not looked at yet should be, before [`Session::timer`] is told.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.silent_from().is_some_and(|at| at <= now)
    }

    fn silent_from(&self) -> Option<Instant> {
        self.heard.map(|heard| heard + self.detection_time())
    }

    /// The time that [`Session::next_deadline`] told has come.
    pub fn timer(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.is_overdue(now) {
            self.heard = None;
            let independent = self.remote.independent;
            self.remote = Remote { independent, ..UNKNOWN };
            let fails = self.state > State::Down;
            if fails {
                self.enter(State::Down, Diagnostic::DETECTION_TIME_EXPIRED, &mut actions);
            }
            // A side that wanted no packets, and is gone, wants them when it is back.
            if fails || self.next.is_none() {
                self.send(false, now, &mut actions);
            }
        }
        if self.next.is_some_and(|at| at <= now) {
            self.send(false, now, &mut actions);
        }
        actions
    }

    /// A packet of the other side came (RFC 5880 §6.8.6, from where it is known to be for this session).
    pub fn received(&mut self, packet: &Packet, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let (old, told, interval) = (self.state, self.told, self.transmit_interval());
        self.remote = Remote {
            state: packet.state,
            diagnostic: packet.diagnostic,
            discriminator: packet.sender,
            multiplier: packet.multiplier,
            transmit: packet.transmit,
            receive: packet.receive,
            demand: packet.demand,
            independent: packet.independent,
        };
        if packet.last && self.polling {
            self.polling = false;
            // What was configured meanwhile has its own poll.
            self.set_intervals();
        }
        self.heard = Some(now);
        if self.state == State::AdminDown {
            self.heard = None;
            return actions;
        }
        match (self.state, packet.state) {
            (State::Down, State::Down) => self.enter(State::Init, Diagnostic::NONE, &mut actions),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(State::Up, Diagnostic::NONE, &mut actions);
            }
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.enter(State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN, &mut actions);
            }
            _ => {}
        }
        // What it should know at once, and what it asked for.
        if packet.poll || self.state != old || self.told != told {
            self.send(packet.poll, now, &mut actions);
        } else if self.must_be_silent() {
            self.next = None;
        } else if self.next.is_none() || self.transmit_interval() < interval {
            // A neighbour that wants to hear more often does not wait for what was agreed on before.
            let planned = self.next;
            self.schedule(now);
            self.next = self.next.into_iter().chain(planned).min();
        }
        actions
    }

    /// An operator wants it down (RFC 5880 §6.8.16), which is told the other side: again, if it is already.
    pub fn take_down(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.state != State::AdminDown {
            self.heard = None;
            self.enter(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN, &mut actions);
        }
        self.send(false, now, &mut actions);
        actions
    }

    /// Takes another configuration. The session goes on (RFC 5880 §6.8.3).
    pub fn reconfigure(&mut self, config: SessionConfig, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let multiplier = self.config.multiplier != config.multiplier;
        let before = self.told;
        self.config = config;
        // One poll at a time: the answer to this one would be taken for that to the next.
        if !(self.polling && self.state == State::Up) {
            self.set_intervals();
        }
        if self.told != before || multiplier || self.next.is_none() {
            self.send(false, now, &mut actions);
        }
        actions
    }

    fn enter(&mut self, state: State, diagnostic: Diagnostic, actions: &mut Vec<Action>) {
        self.state = state;
        if state != State::Init && state != State::Up || diagnostic != Diagnostic::NONE {
            self.diagnostic = diagnostic;
        }
        self.set_intervals();
        actions.push(Action::Changed);
    }

    /// Intervals follow the state and the configuration, and what changes is told by a poll; while up, none gets worse before the other side
    /// knows (RFC 5880 §6.8.3).
    fn set_intervals(&mut self) {
        let up = self.state == State::Up;
        let transmit = if up { self.config.transmit } else { self.config.transmit.max(SLOW) };
        let wanted = Intervals { transmit, receive: self.config.receive };
        self.polling |= wanted != self.told;
        self.told = wanted;
        self.in_force = if up && self.polling {
            Intervals {
                transmit: self.in_force.transmit.min(wanted.transmit),
                receive: self.in_force.receive.max(wanted.receive),
            }
        } else {
            wanted
        };
    }

    /// RFC 5880 §6.8.7.
    fn must_be_silent(&self) -> bool {
        let unknown = self.config.passive && self.remote.discriminator == 0;
        let demanded =
            self.remote.demand && !self.polling && self.state == State::Up && self.remote.state == State::Up;
        unknown || demanded || self.remote.receive.is_zero()
    }

    fn send(&mut self, last: bool, now: Instant, actions: &mut Vec<Action>) {
        if self.must_be_silent() && !last {
            self.next = None;
            return;
        }
        actions.push(Action::Send(Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            // RFC 5880 §6.5: never both.
            poll: self.polling && !last,
            last,
            independent: false,
            demand: false,
            multiplier: self.config.multiplier,
            sender: self.discriminator,
            receiver: self.remote.discriminator,
            transmit: self.told.transmit,
            receive: self.told.receive,
        }));
        self.schedule(now);
    }

    fn schedule(&mut self, now: Instant) {
        let interval = self.transmit_interval();
        // RFC 5880 §6.8.7: with a multiplier of 1 at most nine tenths, lest the one packet come too late.
        let longest = if self.config.multiplier == 1 { interval * 9 / 10 } else { interval };
        self.next = Some(now + self.jitter.shorten(interval).min(longest));
    }
}
