//! The state machine of a session.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use super::connection::{Connection, Opened, Phase, Timers};
use super::error::{PeerMisbehaved, SessionError};
use super::jitter::Jitter;
use super::model::{Action, Direction, Down, Event, Farewell, Negotiated, SessionConfig, State};
use super::open::{negotiate, offer};
use crate::wire::{self, Cease, Context, Message, Notification, RefreshKind};

/// How long an outgoing connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(15);

/// How long a working peer takes to send its OPEN, at most.
const OPEN_EXPECTED: Duration = Duration::from_secs(5);

/// How long a peer that has connected, and told its OPEN, takes to answer on a connection of ours, at most.
const ANSWER_EXPECTED: Duration = Duration::from_secs(2);

/// One peer's session. See the [module](super) for its states.
#[derive(Clone, Debug)]
pub struct Session {
    config: SessionConfig,
    jitter: Jitter,
    dial: Dial,
    outgoing: Option<Connection>,
    incoming: Option<Connection>,
    /// The next pause, before jitter.
    pause: Duration,
    /// What that is after a session that ends soon.
    damped: Duration,
    /// There has been an Established session.
    again: bool,
}

/// What is done about an outgoing connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    /// Idle: told to be.
    Stopped,
    /// Idle: held down after an error.
    HeldDown { until: Instant },
    /// Connect.
    Connecting { until: Instant },
    /// Active: the next attempt waits.
    Waiting { until: Instant },
    /// Active: there will be none, because the peer is to connect, or a connection stands.
    Off,
}

/// What becomes of the session when a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Try again soon, take connections meanwhile.
    Retry,
    /// Refuse connections for a while.
    HoldDown,
}

impl Session {
    /// A session in Idle.
    pub fn new(config: SessionConfig, jitter: Jitter) -> Session {
        let pause = config.connect_retry.initial;
        let (dial, damped) = (Dial::Stopped, pause);
        Session { config, jitter, dial, outgoing: None, incoming: None, pause, damped, again: false }
    }

    /// This one after another with the peer in the same life of the speaker, whose forwarding has thus gone on.
    #[must_use]
    pub fn continued(self) -> Session {
        Session { again: true, ..self }
    }

    /// The state of the connection furthest along, or of the dialling.
    pub fn state(&self) -> State {
        let connections = self.outgoing.iter().chain(&self.incoming).map(Connection::state);
        connections.max().unwrap_or(match self.dial {
            Dial::Stopped | Dial::HeldDown { .. } => State::Idle,
            Dial::Connecting { .. } => State::Connect,
            Dial::Waiting { .. } | Dial::Off => State::Active,
        })
    }

    /// The connection on which routes are exchanged, and what was agreed on, while Established.
    pub fn established(&self) -> Option<(Direction, &Negotiated)> {
        self.established_since().map(|(direction, negotiated, _)| (direction, negotiated))
    }

    fn established_since(&self) -> Option<(Direction, &Negotiated, Instant)> {
        Direction::ALL.into_iter().find_map(|direction| match self.connection(direction).as_ref()?.phase {
            Phase::Established { ref open, since } => Some((direction, &open.negotiated, since)),
            _ => None,
        })
    }

    /// When [`Event::TimerExpired`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let dial = match self.dial {
            Dial::HeldDown { until } | Dial::Connecting { until } | Dial::Waiting { until } => Some(until),
            Dial::Stopped | Dial::Off => None,
        };
        let connections = self.outgoing.iter().chain(&self.incoming);
        let send_hold = self.config.send_hold_time;
        let timers = connections.flat_map(|c| {
            [c.open_deadline(), c.hold_deadline(), c.keepalive_deadline(), c.send_hold_deadline(send_hold)]
        });
        timers.chain([dial, self.held_until()]).flatten().min()
    }

    /// Takes in what happened; returns what is to be done about it. Events that come too late to matter, about
    /// a connection that is no more, do nothing.
    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::ManualStart => {
                if let Dial::Stopped | Dial::HeldDown { .. } = self.dial {
                    self.dial(now, &mut actions);
                }
            }
            Event::ManualStop(farewell) => self.stop(&farewell, &mut actions),
            Event::TcpConnected => self.connected(now, &mut actions),
            Event::TcpConnectFailed(reason) => self.connect_failed(reason, now, &mut actions),
            Event::TcpAccepted => self.accepted(now, &mut actions),
            Event::TcpClosed(direction) => {
                if self.connection(direction).is_some() {
                    self.lose(direction, Down::ConnectionClosed, Next::Retry, now, &mut actions);
                }
            }
            Event::OutputWaits(direction) => {
                if let Some(connection) = self.connection_mut(direction) {
                    connection.output_waits(now);
                }
            }
            Event::OutputMoves(direction) => {
                if let Some(connection) = self.connection_mut(direction) {
                    connection.output_moves();
                }
            }
            Event::Received(direction, bytes) => {
                if let Some(connection) = self.connection_mut(direction) {
                    connection.receive(bytes);
                    self.read(direction, now, &mut actions);
                }
            }
            Event::TimerExpired => self.timers(now, &mut actions),
            Event::PathDown(diagnostic) => {
                if let Some((direction, _)) = self.established() {
                    self.fail(direction, SessionError::PathDown(diagnostic), now, &mut actions);
                }
            }
            Event::TooManyPrefixes { limit, family, retry_after } => {
                if let Some((direction, _)) = self.established() {
                    let other = direction.other();
                    actions.extend(self.connection_mut(other).take().map(|_| Action::Close(other)));
                    let error = PeerMisbehaved::TooManyPrefixes { limit, family };
                    self.fail(direction, error.into(), now, &mut actions);
                    // A time that the clock does not reach is never.
                    let until = retry_after.and_then(|after| now.checked_add(after));
                    self.dial = until.map_or(Dial::Stopped, |until| Dial::HeldDown { until });
                }
            }
        }
        // What was held, and is so no more.
        self.read(Direction::Incoming, now, &mut actions);
        actions
    }

    /// Takes another configuration. A connection goes on as it was agreed on; a peer that there is none with is tried at once,
    /// unless it is held down. What makes an OPEN of ours another applies from the next connection on.
    pub fn reconfigure(&mut self, config: SessionConfig, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.config.connect_retry != config.connect_retry {
            self.pause = config.connect_retry.initial;
            self.damped = self.pause;
        }
        self.config = config;
        match self.dial {
            Dial::Stopped | Dial::HeldDown { .. } => {}
            Dial::Connecting { .. } | Dial::Waiting { .. } | Dial::Off => {
                self.abort_connect(&mut actions);
                self.dial(now, &mut actions);
                self.read(Direction::Incoming, now, &mut actions);
            }
        }
        actions
    }

    fn connection(&self, direction: Direction) -> &Option<Connection> {
        match direction {
            Direction::Outgoing => &self.outgoing,
            Direction::Incoming => &self.incoming,
        }
    }

    fn connection_mut(&mut self, direction: Direction) -> &mut Option<Connection> {
        match direction {
            Direction::Outgoing => &mut self.outgoing,
            Direction::Incoming => &mut self.incoming,
        }
    }

    fn ibgp(&self) -> bool {
        self.config.is_ibgp()
    }

    /// Leaves Idle, or the wait in Active.
    fn dial(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.config.passive || self.outgoing.is_some() || self.incoming.is_some() {
            self.dial = Dial::Off;
        } else {
            self.dial = Dial::Connecting { until: now + CONNECT_TIME };
            actions.push(Action::Connect);
        }
    }

    fn stop(&mut self, farewell: &Farewell, actions: &mut Vec<Action>) {
        let running = self.dial != Dial::Stopped;
        self.abort_connect(actions);
        for direction in Direction::ALL {
            if let Some(connection) = self.connection_mut(direction).take() {
                if let Farewell::Cease(notification) = farewell {
                    actions.push(send(direction, &last_word(&connection, notification.clone())));
                }
                actions.push(Action::Close(direction));
            }
        }
        self.dial = Dial::Stopped;
        if running {
            actions.push(Action::Down(if farewell.begins_anew() { Down::Reset } else { Down::Stopped }));
        }
    }

    fn abort_connect(&mut self, actions: &mut Vec<Action>) {
        if let Dial::Connecting { .. } = self.dial {
            self.dial = Dial::Off;
            actions.push(Action::AbortConnect);
        }
    }

    fn connected(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // Events overtake each other: this attempt may have been given up.
        if let Dial::Connecting { .. } = self.dial {
            self.dial = Dial::Off;
            self.open(Direction::Outgoing, now, actions);
        } else if self.outgoing.is_none() {
            actions.push(Action::Close(Direction::Outgoing));
        }
    }

    fn connect_failed(&mut self, reason: String, now: Instant, actions: &mut Vec<Action>) {
        let Dial::Connecting { .. } = self.dial else { return };
        self.dial = Dial::Off;
        if self.incoming.is_none() {
            self.dial = Dial::Waiting { until: now + self.next_pause() };
            actions.push(Action::Down(Down::ConnectFailed(reason)));
        }
    }

    fn accepted(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match self.dial {
            // RFC 4271 §8.2.2, Idle: all connections are refused.
            Dial::Stopped | Dial::HeldDown { .. } => return,
            Dial::Waiting { .. } => self.dial = Dial::Off,
            Dial::Connecting { .. } | Dial::Off => {}
        }
        if let Some((direction, negotiated, since)) = self.established_since() {
            if negotiated.graceful_restart.is_none() || now < since + OPEN_EXPECTED {
                // RFC 4271 §6.8: an Established connection wins over a new one. So soon it is the other of two that were begun at
                // once.
                return;
            }
            // RFC 4724 §5: the peer has restarted; the old connection is closed without a NOTIFICATION.
            *self.connection_mut(direction) = None;
            actions.extend([Action::Close(direction), Action::Down(Down::ConnectionClosed)]);
        } else if self.incoming.take().is_some() {
            // The peer, which knows of one incoming connection only, has given the other up.
            actions.push(Action::Close(Direction::Incoming));
        }
        actions.push(Action::Accept);
        self.open(Direction::Incoming, now, actions);
    }

    /// A connection stands: sends OPEN and waits for the peer's; or the other way round, for a while.
    fn open(&mut self, direction: Direction, now: Instant, actions: &mut Vec<Action>) {
        match self.config.delay_open {
            Some(delay) => {
                *self.connection_mut(direction) =
                    Some(Connection::new(Phase::Delayed { until: now + delay }, now));
            }
            None => {
                *self.connection_mut(direction) = Some(Connection::new(Phase::OpenSent { since: now }, now));
                self.send_open(direction, actions);
            }
        }
    }

    fn send_open(&self, direction: Direction, actions: &mut Vec<Action>) {
        actions.push(send(direction, &Message::Open(offer(&self.config, self.again))));
    }

    fn read(&mut self, direction: Direction, now: Instant, actions: &mut Vec<Action>) {
        let ibgp = self.ibgp();
        while direction == Direction::Outgoing || self.held_until().is_none() {
            // A message may end the connection, and what follows it then means nothing.
            let Some(connection) = self.connection_mut(direction) else { return };
            match connection.next_message(ibgp) {
                Ok(None) => return,
                Ok(Some(message)) => self.message(direction, message, now, actions),
                Err(error) => self.fail(direction, error.into(), now, actions),
            }
        }
    }

    /// Until when the peer's OPEN on its own connection is left unread: until it is settled what becomes of ours, if there is one or
    /// an attempt at one. A peer that calls ours Established closes its own. And if it hears of ours only once it calls its own
    /// Established, that is a restart to it (RFC 4724 §5). If we do restart, either is the second in a row, with which it drops the
    /// routes that it keeps (§4.2).
    fn held_until(&self) -> Option<Instant> {
        self.config.graceful_restart?;
        let unsettled = match (&self.outgoing, self.dial) {
            (Some(connection), _) => connection.state() != State::Established,
            (None, dial) => matches!(dial, Dial::Connecting { .. }),
        };
        let held =
            |incoming: &&Connection| unsettled && incoming.open().is_none() && incoming.has_open_only();
        self.incoming.as_ref().filter(held).map(|incoming| incoming.since + ANSWER_EXPECTED)
    }

    fn message(&mut self, direction: Direction, message: Message, now: Instant, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection_mut(direction) else { return };
        let state = connection.state();
        if let Some(Opened { negotiated, timers: Some(timers) }) = match &mut connection.phase {
            Phase::Delayed { .. } | Phase::OpenSent { .. } => None,
            Phase::OpenConfirm(open) | Phase::Established { open, .. } => Some(open),
        } {
            // RFC 4271 §8.2.2: KEEPALIVE and UPDATE restart the HoldTimer; others either end the connection, or
            // are proof of life as good.
            timers.hold = now + negotiated.hold_time;
        }
        match (state, message) {
            (_, Message::Notification(notification)) => {
                self.lose(direction, Down::NotificationReceived(notification), Next::HoldDown, now, actions);
            }
            (State::OpenSent, Message::Open(open)) => self.opened(direction, &open, now, actions),
            // Only with its OPEN delayed does a connection have that state (RFC 4271 §8.2.2, Connect, event 20).
            (State::Connect, Message::Open(open)) => {
                self.send_open(direction, actions);
                self.opened(direction, &open, now, actions);
            }
            (State::OpenConfirm, Message::Keepalive) => self.establish(direction, now, actions),
            (State::Established, Message::Keepalive) => {}
            (State::Established, Message::Update(update)) => actions.push(Action::Update(update)),
            (State::Established, Message::RouteRefresh(refresh)) => {
                // RFC 2918 §4, RFC 7313 §4: what was not agreed on is ignored.
                if let Some((kind, family)) = refresh.meaning()
                    && let Some((_, agreed)) = self.established()
                    && agreed.families.contains(family)
                    && (kind == RefreshKind::Request || agreed.enhanced_refresh)
                {
                    actions.push(Action::RouteRefresh(kind, family));
                }
            }
            // RFC 4271 §6.6, RFC 6608.
            (state, message) => {
                let error = PeerMisbehaved::UnexpectedMessage { message: message.name(), state };
                self.fail(direction, SessionError::from(error), now, actions);
            }
        }
    }

    /// The peer's OPEN came (RFC 4271 §8.2.2, OpenSent, event 19).
    fn opened(&mut self, direction: Direction, open: &wire::Open, now: Instant, actions: &mut Vec<Action>) {
        let negotiated = match negotiate(&self.config, open) {
            Ok(negotiated) => negotiated,
            Err(error) => return self.fail(direction, SessionError::from(error), now, actions),
        };
        if let Some(loser) = self.collision(direction, &negotiated, now) {
            *self.connection_mut(loser) = None;
            let cease = Notification::cease(Cease::ConnectionCollisionResolution);
            actions.push(send(loser, &Message::Notification(cease)));
            actions.push(Action::Close(loser));
            if loser == direction {
                return;
            }
        }
        let interval = keepalive_interval(&negotiated);
        let timers = interval
            .map(|i| Timers { hold: now + negotiated.hold_time, keepalive: now + self.jitter.shorten(i) });
        if let Some(connection) = self.connection_mut(direction) {
            connection.phase = Phase::OpenConfirm(Opened { negotiated, timers });
            actions.push(send(direction, &Message::Keepalive));
        }
    }

    /// Which of two connections is closed now that the peer's OPEN came on one of them (RFC 4271 §6.8). The peer's
    /// identity is known from it, so that the other is judged whatever its state, as the RFC allows.
    fn collision(&self, direction: Direction, negotiated: &Negotiated, now: Instant) -> Option<Direction> {
        let other = self.connection(direction.other()).as_ref()?;
        match other.phase {
            Phase::Established { .. } => return Some(direction),
            // Most likely a connection that the peer knows nothing of: it must not win over one that works.
            Phase::OpenSent { since } if now.saturating_duration_since(since) > OPEN_EXPECTED => {
                return Some(direction.other());
            }
            Phase::Delayed { .. } | Phase::OpenSent { .. } | Phase::OpenConfirm(_) => {}
        }
        // RFC 6286 §2.3: equal identifiers, in different ASes, leave it to the ASN.
        let ours = (self.config.router_id, self.config.asn);
        Some(match ours.cmp(&(negotiated.router_id, negotiated.asn)) {
            Ordering::Less => Direction::Outgoing,
            Ordering::Equal | Ordering::Greater => Direction::Incoming,
        })
    }

    fn establish(&mut self, direction: Direction, now: Instant, actions: &mut Vec<Action>) {
        self.abort_connect(actions);
        let Some(connection) = self.connection_mut(direction) else { return };
        let Some(open) = connection.open().cloned() else { return };
        let negotiated = open.negotiated.clone();
        connection.phase = Phase::Established { open, since: now };
        self.again = true;
        actions.push(Action::Established(direction, negotiated));
    }

    /// Ends a connection with a NOTIFICATION.
    fn fail(&mut self, direction: Direction, error: SessionError, now: Instant, actions: &mut Vec<Action>) {
        if let Some(connection) = self.connection(direction) {
            actions.push(send(direction, &last_word(connection, error.notification())));
        }
        self.lose(direction, Down::Error(error), Next::HoldDown, now, actions);
    }

    /// A connection is over.
    fn lose(&mut self, direction: Direction, why: Down, next: Next, now: Instant, actions: &mut Vec<Action>) {
        let Some(connection) = self.connection_mut(direction).take() else { return };
        actions.push(Action::Close(direction));
        if let Phase::Established { since, .. } = connection.phase {
            // Whoever keeps failing right after the handshake is given more and more time.
            if now.saturating_duration_since(since) >= self.config.connect_retry.max {
                self.damped = self.config.connect_retry.initial;
            }
            self.pause = self.damped;
            self.damped = self.longer(self.damped);
        }
        // The other connection carries on; nothing is lost but this one.
        if self.connection(direction.other()).is_some() {
            if connection.state() == State::Established {
                actions.push(Action::Down(why));
            }
            return;
        }
        match (next, self.dial) {
            (Next::HoldDown, _) => {
                self.abort_connect(actions);
                self.dial = Dial::HeldDown { until: now + self.next_pause() };
            }
            (Next::Retry, Dial::Connecting { .. }) => {}
            (Next::Retry, _) if self.config.passive => self.dial = Dial::Off,
            (Next::Retry, _) => self.dial = Dial::Waiting { until: now + self.next_pause() },
        }
        actions.push(Action::Down(why));
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.jitter.shorten(self.pause);
        self.pause = self.longer(self.pause);
        pause
    }

    fn longer(&self, pause: Duration) -> Duration {
        (pause * 2).min(self.config.connect_retry.max)
    }

    fn timers(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match self.dial {
            Dial::HeldDown { until } | Dial::Waiting { until } if until <= now => self.dial(now, actions),
            Dial::Connecting { until } if until <= now => {
                actions.push(Action::AbortConnect);
                self.connect_failed("timed out".to_owned(), now, actions);
            }
            _ => {}
        }
        if self.held_until().is_some_and(|at| at <= now) {
            // The peer seems to know nothing of it.
            self.abort_connect(actions);
            actions.extend(self.outgoing.take().map(|_| Action::Close(Direction::Outgoing)));
        }
        for direction in Direction::ALL {
            let Some(connection) = self.connection(direction) else { continue };
            if connection.hold_deadline().is_some_and(|at| at <= now) {
                self.fail(direction, SessionError::from(PeerMisbehaved::HoldTimerExpired), now, actions);
            } else if connection.send_hold_deadline(self.config.send_hold_time).is_some_and(|at| at <= now) {
                let error = SessionError::from(PeerMisbehaved::SendHoldTimerExpired);
                self.fail(direction, error, now, actions);
            } else if connection.open_deadline().is_some_and(|at| at <= now) {
                if let Some(connection) = self.connection_mut(direction) {
                    connection.phase = Phase::OpenSent { since: now };
                }
                self.send_open(direction, actions);
            } else if connection.keepalive_deadline().is_some_and(|at| at <= now) {
                self.keep_alive(direction, now, actions);
            }
        }
    }

    fn keep_alive(&mut self, direction: Direction, now: Instant, actions: &mut Vec<Action>) {
        let open = self.connection(direction).as_ref().and_then(Connection::open);
        let Some(interval) = open.and_then(|open| keepalive_interval(&open.negotiated)) else { return };
        let next = now + self.jitter.shorten(interval);
        if let Some(timers) = self.connection_mut(direction).as_mut().and_then(Connection::timers_mut) {
            timers.keepalive = next;
        }
        actions.push(send(direction, &Message::Keepalive));
    }
}

/// A third of the hold time (RFC 4271 §4.4); none with a hold time of zero.
fn keepalive_interval(negotiated: &Negotiated) -> Option<Duration> {
    (!negotiated.hold_time.is_zero()).then_some(negotiated.hold_time / 3)
}

/// The NOTIFICATION that a connection ends with. Where both sides keep routes over one, that which means their end says so
/// (RFC 8538 §3): a peer that kept ours over a broken path would go on sending into it.
fn last_word(connection: &Connection, notification: Notification) -> Message {
    let graceful = connection.open().is_some_and(|open| open.negotiated.graceful_notification);
    let hard = graceful && notification.takes_routes();
    Message::Notification(if hard { notification.hard_reset() } else { notification })
}

fn send(direction: Direction, message: &Message) -> Action {
    let mut bytes = Vec::new();
    let written = message.encode(Context { four_octet_asn: true, ..Context::default() }, &mut bytes);
    debug_assert_eq!(written, Ok(()), "OPEN, KEEPALIVE and NOTIFICATION of this side are short");
    Action::Send(direction, bytes)
}
