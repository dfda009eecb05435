//! One TCP connection to the peer: the part of the FSM from OpenSent on.

use std::time::{Duration, Instant};

use super::model::{Negotiated, State};
use crate::wire::{Context, MAX_LENGTH, Message, WireError, frame};

/// How long an OPEN is waited for (RFC 4271 §8.2.2 suggests four minutes).
const OPEN_HOLD_TIME: Duration = Duration::from_secs(240);
/// How long output may wait, at least (RFC 9687 §3.2).
const SEND_HOLD_TIME: Duration = Duration::from_secs(480);

/// A connection that stands.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) since: Instant,
    /// Received.
    input: Vec<u8>,
    /// How much of `input` has been read.
    read: usize,
    pub(super) phase: Phase,
    /// Since when output waits.
    waiting: Option<Instant>,
}

/// How far the handshake is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Our OPEN waits for the peer's, until then.
    Delayed { until: Instant },
    /// The peer's OPEN is awaited, since then.
    OpenSent { since: Instant },
    /// The peer's KEEPALIVE is awaited.
    OpenConfirm(Opened),
    /// Routes are exchanged, since then.
    Established { open: Opened, since: Instant },
}

/// What exists once the peer's OPEN was accepted.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) negotiated: Negotiated,
    /// `None` with a hold time of zero.
    pub(super) timers: Option<Timers>,
}

/// The timers of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timers {
    /// When the peer is given up.
    pub(super) hold: Instant,
    /// When the next KEEPALIVE is due.
    pub(super) keepalive: Instant,
}

impl Connection {
    pub(super) fn new(phase: Phase, since: Instant) -> Connection {
        Connection { since, input: Vec::new(), read: 0, phase, waiting: None }
    }

    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::Delayed { .. } => State::Connect,
            Phase::OpenSent { .. } => State::OpenSent,
            Phase::OpenConfirm(_) => State::OpenConfirm,
            Phase::Established { .. } => State::Established,
        }
    }

    /// What the peer's OPEN told, if it came.
    pub(super) fn open(&self) -> Option<&Opened> {
        match &self.phase {
            Phase::Delayed { .. } | Phase::OpenSent { .. } => None,
            Phase::OpenConfirm(open) | Phase::Established { open, .. } => Some(open),
        }
    }

    pub(super) fn timers_mut(&mut self) -> Option<&mut Timers> {
        match &mut self.phase {
            Phase::Delayed { .. } | Phase::OpenSent { .. } => None,
            Phase::OpenConfirm(open) | Phase::Established { open, .. } => open.timers.as_mut(),
        }
    }

    /// When our OPEN is sent though the peer's has not come.
    pub(super) fn open_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Delayed { until } => Some(until),
            _ => None,
        }
    }

    pub(super) fn output_waits(&mut self, now: Instant) {
        self.waiting = self.waiting.or(Some(now));
    }

    pub(super) fn output_moves(&mut self) {
        self.waiting = None;
    }

    /// When the peer is given up because it reads nothing (RFC 9687 §3.2); not without a hold time.
    pub(super) fn send_hold_deadline(&self, configured: Option<Duration>) -> Option<Instant> {
        let hold_time = self.open()?.negotiated.hold_time;
        let time = configured.unwrap_or(SEND_HOLD_TIME.max(hold_time * 2));
        self.waiting.filter(|_| !hold_time.is_zero()).map(|since| since + time)
    }

    /// When the peer is given up because it says nothing.
    pub(super) fn hold_deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Delayed { .. } => None,
            Phase::OpenSent { since } => Some(*since + OPEN_HOLD_TIME),
            Phase::OpenConfirm(open) | Phase::Established { open, .. } => open.timers.map(|t| t.hold),
        }
    }

    /// When the next KEEPALIVE is due.
    pub(super) fn keepalive_deadline(&self) -> Option<Instant> {
        self.open()?.timers.map(|t| t.keepalive)
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        // Here rather than after each message, of which there may be thousands in one piece.
        self.input.drain(..self.read);
        self.read = 0;
        self.input.extend_from_slice(bytes);
    }

    /// There is a next message, or what cannot become one; and no more than a peer may send that waits for an answer to its OPEN.
    pub(super) fn has_open_only(&self) -> bool {
        let unread = &self.input[self.read..];
        unread.len() <= 2 * MAX_LENGTH && !matches!(frame(unread), Ok(None))
    }

    /// The next whole message.
    pub(super) fn next_message(&mut self, ibgp: bool) -> Result<Option<Message>, WireError> {
        let unread = &self.input[self.read..];
        let Some(length) = frame(unread)? else { return Ok(None) };
        // What may be sent plays no part in reading.
        let context = self.open().map_or(Context::default(), |open| Context {
            four_octet_asn: open.negotiated.four_octet_asn,
            add_path: open.negotiated.paths_received,
            ..Context::default()
        });
        let message = Message::decode(&unread[..length], Context { ibgp, ..context });
        self.read += length;
        message.map(Some)
    }
}
