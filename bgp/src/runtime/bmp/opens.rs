//! The messages of a session that stations are told as they were: both OPENs, and the NOTIFICATION that ended it.

use crate::session::Direction;
use crate::wire::{HEADER_LENGTH, frame};

/// Message types, in the header.
const OPEN: u8 = 1;
const NOTIFICATION: u8 = 3;

/// Keeps them while bytes pass.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Opens {
    outgoing: Connection,
    incoming: Connection,
    notification: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Connection {
    sent: Vec<u8>,
    /// No more than the first message.
    received: Vec<u8>,
    complete: bool,
}

impl Opens {
    fn connection(&mut self, direction: Direction) -> &mut Connection {
        match direction {
            Direction::Outgoing => &mut self.outgoing,
            Direction::Incoming => &mut self.incoming,
        }
    }

    /// One message is sent.
    pub(in crate::runtime) fn sent(&mut self, direction: Direction, message: &[u8]) {
        match message.get(HEADER_LENGTH - 1) {
            Some(&OPEN) => self.connection(direction).sent = message.to_vec(),
            Some(&NOTIFICATION) => self.notification = Some(message.to_vec()),
            _ => {}
        }
    }

    /// Bytes came, in whatever pieces.
    pub(in crate::runtime) fn received(&mut self, direction: Direction, bytes: &[u8]) {
        let connection = self.connection(direction);
        if connection.complete {
            return;
        }
        connection.received.extend_from_slice(bytes);
        match frame(&connection.received) {
            Ok(None) => {}
            Ok(Some(length)) => {
                connection.received.truncate(length);
                connection.complete = true;
            }
            // The session will end for that.
            Err(_) => connection.complete = true,
        }
    }

    /// A connection is closed: what comes next on that side is another's.
    pub(in crate::runtime) fn closed(&mut self, direction: Direction) {
        *self.connection(direction) = Connection::default();
    }

    /// The session is Established on this connection: the OPEN that was sent on it, and the one that came.
    pub(in crate::runtime) fn established(&mut self, direction: Direction) -> (Vec<u8>, Vec<u8>) {
        // One that ended another connection has nothing to do with this one.
        self.notification = None;
        let connection = self.connection(direction);
        (connection.sent.clone(), connection.received.clone())
    }

    /// The session is over: the NOTIFICATION that this side sent, if it did.
    pub(in crate::runtime) fn notification(&mut self) -> Option<Vec<u8>> {
        self.notification.take()
    }
}
