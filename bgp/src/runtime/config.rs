//! What a speaker and its peers are configured with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::bfd::PeerBfd;
use super::md5::Password;
use crate::Families;
use crate::rib::ExportPolicy;
use crate::session::{AddPaths, Backoff, RoleOffer};
use crate::wire::{LongLivedFamily, ShutdownMessage};

/// What all sessions of a speaker share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerConfig {
    /// This speaker's ASN.
    pub asn: u32,
    /// This speaker's BGP Identifier; must be unique among its peers and not zero.
    pub router_id: Ipv4Addr,
    /// Where connections are taken; `None` takes none, every session is then made from this side.
    pub listen: Option<Vec<SocketAddr>>,
    /// Ask peers to keep routes while this speaker restarts (RFC 4724); `None` does not.
    pub graceful_restart: Option<GracefulRestart>,
    /// This start is a restart, with forwarding kept by the kernel: peers are told so, and End-of-RIB waits for
    /// [`Speaker::initial_routes_complete`](super::Speaker::initial_routes_complete). On a cold start it must be
    /// false: peers then drop at once what they kept of an earlier life.
    pub restarting: bool,
}

/// Graceful restart as restarting speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// How long peers are asked to keep routes without a session; whole seconds up to 4095.
    pub restart_time: Duration,
    /// How long after that they are asked to keep them as a last resort (long-lived graceful restart, RFC 9494), and how long at
    /// most routes of peers are kept likewise; whole seconds up to 2²⁴ - 1. `None` does neither.
    pub stale_time: Option<Duration>,
}

impl GracefulRestart {
    /// How long peers may keep routes, in all.
    pub fn kept_for(&self) -> Duration {
        self.restart_time + self.stale_time.unwrap_or_default()
    }
}

/// One peer. What of a change takes a new session is told by [`Speaker::set_peers`](super::Speaker::set_peers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// The peer's address: where to connect, and from where it may connect.
    pub address: IpAddr,
    /// The interface that a peer with a link-local address is behind; its name, as it may go and come back. Needed for
    /// these, without meaning for others.
    pub interface: Option<String>,
    /// The peer's ASN; equal to the speaker's own makes the session iBGP.
    pub asn: u32,
    /// The peer's port.
    pub port: u16,
    /// The address to connect from; the kernel's choice where unset.
    pub local_address: Option<IpAddr>,
    /// Wait for the peer to connect.
    pub passive: bool,
    /// eBGP: how many hops away the peer may be, from 1 (the TTL of what is sent); `None` is 1, directly connected.
    pub multihop: Option<u8>,
    /// How many hops away the peer may be, from 1: what has come further is dropped, and what is sent has TTL 255, so
    /// that the peer can tell likewise (GTSM, RFC 5082). `multihop` then counts for nothing. `None` takes in any TTL.
    pub ttl_security: Option<u8>,
    /// Hold time to propose, in whole seconds; zero turns KEEPALIVEs off, anything else below 3 s counts as that.
    pub hold_time: Duration,
    /// How long the peer may read nothing of what it is sent (RFC 9687); `None` is the RFC's: eight minutes, or twice the
    /// hold time if that is longer.
    pub send_hold_time: Option<Duration>,
    /// How long an OPEN waits for the peer's to come first (RFC 4271 §8.1.1, DelayOpen); `None` sends it at once.
    pub delay_open: Option<Duration>,
    /// Pauses between attempts to connect, and after errors.
    pub connect_retry: Backoff,
    /// Families to offer.
    pub families: Families,
    /// On an IPv6 session: announce IPv4 prefixes with the next hop of IPv6 ones (RFC 8950), where the peer takes that.
    pub extended_next_hop: bool,
    /// Next hop of IPv4 prefixes; on an IPv4 session its local address where unset.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// Next hop of IPv6 prefixes; on an IPv6 session its local address where unset. Between link-local addresses the local
    /// one is told beside it.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// What this speaker is to the peer (RFC 9234), an eBGP one: it is told, and a peer that takes itself for something else gets no
    /// session; and routes are marked ONLY_TO_CUSTOMER where the role says so.
    pub role: Option<RoleOffer>,
    /// Of which routes the peer is told, and what is changed of these.
    pub export: ExportPolicy,
    /// Take, or send, several paths to a prefix where the peer does the other (RFC 7911). What is sent is one path to each so far, named
    /// as one of several.
    pub add_paths: AddPaths,
    /// Sign every segment (TCP MD5, RFC 2385), and drop those of the peer that are not signed with it.
    pub password: Option<Password>,
    /// The peer may be of any AS but the speaker's own, whichever it says; `asn` is 0 then, which is nobody's.
    pub any_external_asn: bool,
    /// BFD beside the session: when the path fails, so does the session.
    pub bfd: Option<PeerBfd>,
    /// The peer, an iBGP one, is a client of this route reflector (RFC 4456), if it is one:
    /// [`Speaker::set_reflector`](super::Speaker::set_reflector).
    pub client: bool,
}

impl PeerConfig {
    /// A peer with everything at its default: port 179, hold time 90 s, both families, active.
    pub fn new(address: IpAddr, asn: u32) -> PeerConfig {
        PeerConfig {
            address,
            interface: None,
            asn,
            port: 179,
            local_address: None,
            passive: false,
            multihop: None,
            ttl_security: None,
            hold_time: Duration::from_secs(90),
            send_hold_time: None,
            delay_open: None,
            connect_retry: Backoff::default(),
            families: Families::ALL,
            extended_next_hop: false,
            next_hop_v4: None,
            next_hop_v6: None,
            role: None,
            export: ExportPolicy::default(),
            add_paths: AddPaths::default(),
            password: None,
            any_external_asn: false,
            bfd: None,
            client: false,
        }
    }
}

impl PeerConfig {
    /// Whether a session that was made with this goes on with `other`, or has to begin anew.
    pub(super) fn survives(&self, other: &PeerConfig) -> bool {
        let live = PeerConfig {
            port: other.port,
            passive: other.passive,
            hold_time: other.hold_time,
            send_hold_time: other.send_hold_time,
            delay_open: other.delay_open,
            connect_retry: other.connect_retry,
            next_hop_v4: other.next_hop_v4,
            next_hop_v6: other.next_hop_v6,
            export: other.export.clone(),
            bfd: other.bfd.clone(),
            client: other.client,
            ..self.clone()
        };
        live == *other
    }
}

/// How [`Speaker::shutdown`](super::Speaker::shutdown) leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Connections are closed without a NOTIFICATION, so that peers which agreed to graceful restart keep routes.
    GracefulRestart,
    /// CEASE/administrative shutdown: peers drop every route at once.
    Cease,
    /// The same with a message for their operators (RFC 9003).
    CeaseSaying(ShutdownMessage),
}

/// Why a speaker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening socket could not be made.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A field of the configuration is out of range.
    #[error("{field}: {problem}")]
    Config {
        /// Which field.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        problem: &'static str,
    },
}

impl SpeakerConfig {
    pub(super) fn check(&self) -> Result<(), StartError> {
        let problem = |field, problem| Err(StartError::Config { field, problem });
        if self.asn == 0 {
            return problem(
                "asn",
                "0 is reserved (RFC 7607): give the speaker an ASN, for instance a private one from 64512",
            );
        }
        if self.router_id.is_unspecified() {
            return problem("router_id", "must not be 0.0.0.0: use an IPv4 address of this node");
        }
        match self.graceful_restart {
            Some(GracefulRestart { restart_time, .. }) if restart_time.as_secs() > 4095 => {
                problem("graceful_restart.restart_time", "must be at most 4095 s")
            }
            Some(GracefulRestart { stale_time: Some(time), .. })
                if time.as_secs() > LongLivedFamily::MAX_STALE_TIME.into() =>
            {
                problem("graceful_restart.stale_time", "must be at most 16777215 s")
            }
            _ => Ok(()),
        }
    }
}
