//! What a session is configured with, and what it tells.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::error::SessionError;
use crate::wire::Notification;
use crate::{Families, Family};

/// The states of RFC 4271 §8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Stopped, or held down after an error; connections are refused.
    Idle,
    /// An outgoing connection is being made.
    Connect,
    /// Listening; the next attempt waits for its timer.
    Active,
    /// Connected, OPEN sent.
    OpenSent,
    /// The peer's OPEN was accepted, its KEEPALIVE is awaited.
    OpenConfirm,
    /// Routes are exchanged.
    Established,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How the pause between attempts grows: doubled each time from `initial` to `max`, less up to a quarter (jitter,
/// RFC 4271 §10). A session that stood for `max` starts over at `initial`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause.
    pub initial: Duration,
    /// The longest pause.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(30) }
    }
}

/// What both sides' OPENs add up to. Exists only once the peer's OPEN was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The peer's ASN.
    pub asn: u32,
    /// The peer's BGP Identifier.
    pub router_id: Ipv4Addr,
    /// The smaller of both hold times; zero turns KEEPALIVEs off.
    pub hold_time: Duration,
    /// Families both sides speak.
    pub families: Families,
    /// Both sides speak 4-octet ASNs (RFC 6793).
    pub four_octet_asn: bool,
    /// The peer understands ROUTE-REFRESH (RFC 2918).
    pub route_refresh: bool,
    /// What the peer advertised about graceful restart, if it did.
    pub graceful_restart: Option<PeerGracefulRestart>,
}

/// The peer's side of graceful restart (RFC 4724 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerGracefulRestart {
    /// The peer has restarted (R bit).
    pub restarting: bool,
    /// How long the peer asks to be waited for when it goes.
    pub restart_time: Duration,
    /// Families, each with whether the peer kept its forwarding state (F bit).
    pub families: Vec<(Family, bool)>,
}

/// Why a session is down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Down {
    /// The peer ended it.
    #[error("peer sent NOTIFICATION: {0}")]
    NotificationReceived(Notification),
    /// This side ended it because of what the peer did.
    #[error("{0}")]
    Error(#[from] SessionError),
    /// The TCP connection was lost, or closed by the peer.
    #[error("connection closed")]
    ConnectionClosed,
    /// An outgoing connection could not be made.
    #[error("could not connect: {0}")]
    ConnectFailed(String),
    /// Stopped by whoever owns this side.
    #[error("stopped")]
    Stopped,
}
