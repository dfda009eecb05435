//! One TCP connection to the peer: the part of the FSM from OpenSent on.

use std::time::{Duration, Instant};

use super::model::{Negotiated, State};
use crate::wire::{Context, Message, WireError, frame};

/// How long an OPEN is waited for (RFC 4271 §8.2.2 suggests four minutes).
const OPEN_HOLD_TIME: Duration = Duration::from_secs(240);

/// A connection on which our OPEN has been sent.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// Received.
    input: Vec<u8>,
    /// How much of `input` has been read.
    read: usize,
    pub(super) phase: Phase,
}

/// How far the handshake is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
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
    pub(super) fn new(now: Instant) -> Connection {
        Connection { input: Vec::new(), read: 0, phase: Phase::OpenSent { since: now } }
    }

    pub(super) fn state(&self) -> State {
        match self.phase {
            Phase::OpenSent { .. } => State::OpenSent,
            Phase::OpenConfirm(_) => State::OpenConfirm,
            Phase::Established { .. } => State::Established,
        }
    }

    /// What the peer's OPEN told, if it came.
    pub(super) fn open(&self) -> Option<&Opened> {
        match &self.phase {
            Phase::OpenSent { .. } => None,
            Phase::OpenConfirm(open) | Phase::Established { open, .. } => Some(open),
        }
    }

    pub(super) fn timers_mut(&mut self) -> Option<&mut Timers> {
        match &mut self.phase {
            Phase::OpenSent { .. } => None,
            Phase::OpenConfirm(open) | Phase::Established { open, .. } => open.timers.as_mut(),
        }
    }

    /// When the peer is given up.
    pub(super) fn hold_deadline(&self) -> Option<Instant> {
        match &self.phase {
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

    /// The next whole message.
    pub(super) fn next_message(&mut self, ibgp: bool) -> Result<Option<Message>, WireError> {
        let unread = &self.input[self.read..];
        let Some(length) = frame(unread)? else { return Ok(None) };
        let four_octet_asn = self.open().is_some_and(|open| open.negotiated.four_octet_asn);
        // What may be sent plays no part in reading.
        let message =
            Message::decode(&unread[..length], Context { four_octet_asn, ibgp, ..Context::default() });
        self.read += length;
        message.map(Some)
    }
}
