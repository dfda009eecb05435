//! Errors that end a session, by whose fault they are.

use std::net::Ipv4Addr;

use super::State;

/// Why this side ends a session. The variant says whose fault it is;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The peer broke the protocol.
    #[error("peer misbehaved: {0}")]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// Both sides work, but their configurations do not fit.
    #[error("peer is incompatible: {0}")]
    PeerIncompatible(#[from] PeerIncompatible),
}

/// Well-formed messages at the wrong time, or none at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerMisbehaved {
    /// A message that this state has no place for (RFC 4271 §6.6).
    #[error("{message} received in {state}")]
    UnexpectedMessage {
        /// Which message.
        message: &'static str,
        /// The state the connection was in.
        state: State,
    },
    /// Nothing came for the hold time (RFC 4271 §6.5).
    #[error("hold timer expired")]
    HoldTimerExpired,
}

/// An OPEN that this side's configuration does not allow (RFC 4271 §6.2).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerIncompatible {
    /// The peer is not in the AS it is configured to be in.
    #[error(
        "peer is in AS {actual}, configured is AS {expected}: set the peer's `asn` to {actual}, or correct the peer"
    )]
    Asn {
        /// As configured.
        expected: u32,
        /// As in the OPEN.
        actual: u32,
    },
    /// Zero, or this speaker's own within the same AS (RFC 6286).
    #[error("peer's router id {0} is zero or this router's own: give each router its own router id")]
    RouterId(Ipv4Addr),
    /// One or two seconds.
    #[error("peer's hold time of {0} s is neither zero nor at least 3 s")]
    HoldTime(u16),
}
