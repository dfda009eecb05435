//! What a session is configured with, and what it tells.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::error::SessionError;
use crate::bfd::Diagnostic;
use crate::wire::{Notification, RefreshKind, Role, Update};
use crate::{Families, Family};

/// What a session is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// This speaker's ASN.
    pub asn: u32,
    /// This speaker's BGP Identifier.
    pub router_id: Ipv4Addr,
    /// The peer's ASN; equal to this speaker's makes the session iBGP. `None` is any other than this speaker's.
    pub peer_asn: Option<u32>,
    /// Wait for the peer to connect.
    pub passive: bool,
    /// Hold time to propose, in seconds: zero, or at least 3.
    pub hold_time: u16,
    /// How long output may wait with nothing of it taken (RFC 9687); `None` is the RFC's: eight minutes, or twice the
    /// negotiated hold time if that is longer. Without a hold time there is no limit.
    pub send_hold_time: Option<Duration>,
    /// How long an OPEN waits for the peer's to come first (DelayOpen); `None` sends it at once.
    pub delay_open: Option<Duration>,
    /// Pauses between attempts.
    pub connect_retry: Backoff,
    /// Families to offer.
    pub families: Families,
    /// Offer to take, and send, IPv4 prefixes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// What this speaker is to the peer (RFC 9234), if that is to be told; only between ASes.
    pub role: Option<RoleOffer>,
    /// Graceful restart to offer, as restarting speaker.
    pub graceful_restart: Option<RestartOffer>,
    /// Several paths to a prefix (RFC 7911), in each direction that is to be offered.
    pub add_paths: AddPaths,
}

/// In which directions UPDATEs may name several paths to a prefix (RFC 7911), as one side would have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddPaths {
    /// What the peer sends.
    pub receive: bool,
    /// What it is sent.
    pub send: bool,
}

impl SessionConfig {
    /// Whether both are in one AS.
    pub(super) fn is_ibgp(&self) -> bool {
        self.peer_asn == Some(self.asn)
    }
}

/// What the peer is told of the relation between both ASes (RFC 9234 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleOffer {
    /// What this speaker is to the peer.
    pub role: Role,
    /// No session with a peer that does not tell its role (strict mode).
    pub required: bool,
}

/// What the peer is told about our restarts (RFC 4724 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartOffer {
    /// Seconds the peer is asked to keep routes without a session; up to 4095.
    pub restart_time: u16,
    /// This speaker has restarted, and its forwarding went on meanwhile.
    pub restarting: bool,
    /// Seconds that the peer is asked to keep routes after that, as a last resort (RFC 9494), up to 2²⁴ - 1; and that its own are
    /// kept so at most.
    pub stale_time: Option<u32>,
}

/// Who made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// This side.
    Outgoing,
    /// The peer.
    Incoming,
}

impl Direction {
    /// Both of them.
    pub const ALL: [Direction; 2] = [Direction::Outgoing, Direction::Incoming];

    /// The other one.
    pub fn other(self) -> Direction {
        match self {
            Direction::Outgoing => Direction::Incoming,
            Direction::Incoming => Direction::Outgoing,
        }
    }
}

/// What happens to a session (RFC 4271 §8.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Its owner wants it up, now if it is held down.
    ManualStart,
    /// Its owner wants it down.
    ManualStop(Farewell),
    /// The outgoing connection stands.
    TcpConnected,
    /// The outgoing connection could not be made; why.
    TcpConnectFailed(String),
    /// The peer has connected. The connection is taken if the answer has [`Action::Accept`].
    TcpAccepted,
    /// A connection was lost, or closed by the peer.
    TcpClosed(Direction),
    /// What is to be sent on a connection waits for the network.
    OutputWaits(Direction),
    /// The network has taken some of it.
    OutputMoves(Direction),
    /// Bytes came, in whatever pieces.
    Received(Direction, &'a [u8]),
    /// The time that [`Session::next_deadline`](super::Session::next_deadline) told has come.
    TimerExpired,
    /// BFD says that the path to the peer does not work, and why.
    PathDown(Diagnostic),
    /// The peer has announced more prefixes of a family than it may.
    TooManyPrefixes {
        /// As many it may.
        limit: usize,
        /// Of that family.
        family: Family,
        /// How long the session is held down, unless it is started before; `None`: until it is.
        retry_after: Option<Duration>,
    },
}

/// How a stopped session leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// With a CEASE.
    Cease(Notification),
    /// Without a word: the peer keeps routes if it agreed to graceful restart.
    Silent,
}

impl Farewell {
    /// Whether it says that another session is to follow at once (RFC 8538 §5.1).
    pub fn begins_anew(&self) -> bool {
        matches!(self, Farewell::Cease(notification) if !notification.takes_routes())
    }
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "actions are carried out one at a time, not kept")]
pub enum Action {
    /// Make the outgoing connection.
    Connect,
    /// Give up the outgoing connection that is being made.
    AbortConnect,
    /// Take the connection that [`Event::TcpAccepted`] told of; without this it is to be closed.
    Accept,
    /// Write these bytes.
    Send(Direction, Vec<u8>),
    /// Close the connection, after what was to be sent.
    Close(Direction),
    /// Routes can be exchanged on this connection.
    Established(Direction, Negotiated),
    /// The session, or an attempt at one, is over.
    Down(Down),
    /// An UPDATE came.
    Update(Update),
    /// The peer wants to be sent all routes of a family, or begins or ends to send its own again.
    RouteRefresh(RefreshKind, Family),
}

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
/// RFC 4271 §10). A session starts over at `initial`, and so do, after it, those that fail within `max` of being
/// Established, so that one that goes up and down does so more and more seldom (DampPeerOscillations).
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
    /// Both sides take IPv4 prefixes with IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Both sides speak 4-octet ASNs (RFC 6793).
    pub four_octet_asn: bool,
    /// The peer understands ROUTE-REFRESH (RFC 2918).
    pub route_refresh: bool,
    /// Both sides say where the answer to a ROUTE-REFRESH begins and ends (RFC 7313).
    pub enhanced_refresh: bool,
    /// Both sides take messages of up to 65535 bytes (RFC 8654).
    pub extended_messages: bool,
    /// What the peer advertised about graceful restart, if it did.
    pub graceful_restart: Option<PeerGracefulRestart>,
    /// Both sides keep routes over a NOTIFICATION as over the loss of a connection, unless it is a hard reset (RFC 8538).
    pub graceful_notification: bool,
    /// Families of long-lived graceful restart (RFC 9494) that both sides offer. A route that carries LLGR_STALE is for these peers
    /// alone (§4.3).
    pub long_lived: Vec<LongLived>,
    /// Families whose prefixes have path identifiers in what the peer sends (RFC 7911).
    pub paths_received: Families,
    /// Families whose prefixes have them in what it is sent.
    pub paths_sent: Families,
}

impl Negotiated {
    /// Whether the peer's routes of a family outlive the loss of a connection (RFC 4724), and then whether it has kept its forwarding
    /// over the last one (F bit).
    pub fn keeps(&self, family: Family) -> Option<bool> {
        let offered = self.graceful_restart.iter().flat_map(|restart| &restart.families);
        offered.filter(|(of, _)| *of == family).map(|(_, forwarding)| *forwarding).next()
    }

    /// What both sides say of a family's long-lived graceful restart.
    pub fn long_lived(&self, family: Family) -> Option<&LongLived> {
        self.long_lived.iter().find(|offer| offer.family == family)
    }
}

/// One family of long-lived graceful restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongLived {
    /// Which.
    pub family: Family,
    /// The peer kept its forwarding state (F bit).
    pub forwarding: bool,
    /// How long the peer's routes may be kept beyond its restart time: as long as it asks for, and as this side does.
    pub stale_time: Duration,
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
    /// The same, to begin anew with another configuration.
    #[error("begins anew")]
    Reset,
}

impl Down {
    /// Whether the peer may be back with the same routes (RFC 4724 §4.2), if it offered graceful restart. Beyond the loss of a
    /// connection that takes an agreement (RFC 8538 §4): `Negotiated::graceful_notification`.
    pub fn may_be_restart(&self, graceful_notification: bool) -> bool {
        match self {
            Down::ConnectionClosed => true,
            Down::NotificationReceived(notification) => {
                // RFC 5882 §4.3: packets have no way, whatever becomes of the peer, and whether it knows that routes go or not.
                let ends = notification.is_hard_reset() || notification.is_bfd_down();
                graceful_notification && !ends
            }
            Down::Error(error) => graceful_notification && !error.notification().takes_routes(),
            Down::Reset => graceful_notification,
            Down::ConnectFailed(_) | Down::Stopped => false,
        }
    }
}
