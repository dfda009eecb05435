//! Errors that end a session, by whose fault they are.

use std::net::Ipv4Addr;

use super::State;
use crate::bfd::Diagnostic;
use crate::wire::{Capability, Cease, Notification, Role, WireError};
use crate::{Families, Family};

/// Why this side ends a session. The variant says whose fault it is, [`SessionError::notification`] what the
/// peer is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The peer sent bytes that are no BGP.
    #[error("peer sent an invalid message: {0}")]
    InvalidMessage(#[from] WireError),
    /// The peer broke the protocol.
    #[error("peer misbehaved: {0}")]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// BFD says that the path to the peer does not work (RFC 5882, RFC 9384).
    #[error("BFD session down: {0}")]
    PathDown(Diagnostic),
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
    /// More prefixes of a family than it may announce (RFC 4486).
    #[error(
        "more than {limit} prefixes of {family}: raise its limit if they are wanted, or have the peer filter"
    )]
    TooManyPrefixes {
        /// As many it may.
        limit: usize,
        /// Of that family.
        family: Family,
    },
    /// It took nothing of what it was sent for too long (RFC 9687).
    #[error("send hold timer expired: the peer reads nothing")]
    SendHoldTimerExpired,
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
    /// One of another AS was to be there.
    #[error(
        "peer is in this router's own AS {0}, and was to be in another: set its `asn` to {0}, or correct the peer"
    )]
    OwnAsn(u32),
    /// Zero, or this speaker's own within the same AS (RFC 6286).
    #[error("peer's router id {0} is zero or this router's own: give each router its own router id")]
    RouterId(Ipv4Addr),
    /// One or two seconds.
    #[error("peer's hold time of {0} s is neither zero nor at least 3 s")]
    HoldTime(u16),
    /// Both sides' roles do not make a pair, or the peer's is not told and has to be (RFC 9234 §4.2).
    #[error("this side is {ours} to the peer, which {}: {} expected", told(theirs), ours.counterpart())]
    Role {
        /// What this side is to the peer.
        ours: Role,
        /// What the peer says it is to this side; several if it contradicts itself.
        theirs: Vec<u8>,
    },
    /// No address family that both sides offer.
    #[error("no common address family: offer one of the peer's in `families`")]
    Families {
        /// What this side offers.
        offered: Families,
    },
}

/// What a peer says of its role.
fn told(roles: &[u8]) -> String {
    let role = |number: &u8| {
        Role::from_number(*number).map_or_else(|| format!("role {number}"), |role| role.to_string())
    };
    match roles {
        [] => "tells no role".to_owned(),
        roles => format!("says it is {}", roles.iter().map(role).collect::<Vec<_>>().join(" and ")),
    }
}

impl SessionError {
    /// What the peer is told.
    pub fn notification(&self) -> Notification {
        match self {
            SessionError::InvalidMessage(error) => error.notification(),
            SessionError::PeerMisbehaved(error) => error.notification(),
            SessionError::PathDown(_) => Notification::cease(Cease::BfdDown),
            SessionError::PeerIncompatible(error) => error.notification(),
        }
    }
}

impl PeerMisbehaved {
    fn notification(&self) -> Notification {
        match self {
            // RFC 6608.
            PeerMisbehaved::UnexpectedMessage { state, .. } => Notification::new(
                Notification::FSM,
                match state {
                    State::OpenSent => 1,
                    State::OpenConfirm => 2,
                    State::Established => 3,
                    State::Idle | State::Connect | State::Active => 0,
                },
            ),
            PeerMisbehaved::HoldTimerExpired => Notification::new(Notification::HOLD_TIMER_EXPIRED, 0),
            // RFC 4486 §4: family and limit.
            PeerMisbehaved::TooManyPrefixes { limit, family } => {
                let cease = Notification::cease(Cease::MaximumPrefixes);
                let limit = u32::try_from(*limit).unwrap_or(u32::MAX).to_be_bytes();
                let [high, low] = family.afi().to_be_bytes();
                Notification { data: [&[high, low, family.safi()][..], &limit].concat(), ..cease }
            }
            PeerMisbehaved::SendHoldTimerExpired => {
                Notification::new(Notification::SEND_HOLD_TIMER_EXPIRED, 0)
            }
        }
    }
}

impl PeerIncompatible {
    fn notification(&self) -> Notification {
        let (subcode, data) = match self {
            PeerIncompatible::Asn { .. } | PeerIncompatible::OwnAsn(_) => (2, Vec::new()),
            PeerIncompatible::RouterId(_) => (3, Vec::new()),
            PeerIncompatible::HoldTime(_) => (6, Vec::new()),
            PeerIncompatible::Role { .. } => (11, Vec::new()),
            // RFC 5492 §5: the capabilities that were missed.
            PeerIncompatible::Families { offered } => {
                (7, offered.iter().flat_map(|f| Capability::multiprotocol(f).to_bytes()).collect())
            }
        };
        Notification::with_data(Notification::OPEN_MESSAGE, subcode, data)
    }
}
