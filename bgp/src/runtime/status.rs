//! What a speaker tells about itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::bfd::BfdStatus;
use super::config::PeerConfig;
use super::dynamic::DynamicPeersStatus;
use super::shared::Observed;
use crate::Family;
use crate::rib::{FamilyOut, Rib};
use crate::session::{Down, Negotiated, State};

/// A speaker at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerStatus {
    /// This speaker's ASN.
    pub asn: u32,
    /// This speaker's BGP Identifier.
    pub router_id: Ipv4Addr,
    /// How many routes are to be announced (Loc-RIB).
    pub routes: usize,
    /// How many of them are passed on from peer to peer.
    pub reflected: usize,
    /// Its peers by address.
    pub peers: Vec<PeerStatus>,
    /// The ranges that more may connect from.
    pub dynamic: Vec<DynamicPeersStatus>,
}

/// A peer at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer's address.
    pub address: IpAddr,
    /// The interface that it is behind, if its address is link-local.
    pub interface: Option<String>,
    /// The peer's ASN as configured; where it may be any other than the speaker's, what it said last, and 0 before.
    pub asn: u32,
    /// The range that it has connected from, where it is not configured by its address.
    pub range: Option<IpNet>,
    /// Where the session is in its life.
    pub state: State,
    /// Since when.
    pub since: SystemTime,
    /// How long the session has been Established, if it is.
    pub uptime: Option<Duration>,
    /// What ended the last session or attempt, and when.
    pub last_error: Option<LastError>,
    /// BFD beside the session, if there is.
    pub bfd: Option<BfdStatus>,
    /// What is known only of an Established session.
    pub session: Option<SessionStatus>,
    /// Totals over all sessions with this peer.
    pub counters: Counters,
}

/// An Established session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// This side's address and port.
    pub local: SocketAddr,
    /// What both OPENs add up to.
    pub negotiated: Negotiated,
    /// Per negotiated family.
    pub families: Vec<FamilyStatus>,
}

/// One family of an Established session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyStatus {
    /// Which.
    pub family: Family,
    /// The next hop that our routes are announced with; `None` where it is not known, and nothing is announced
    /// then: set the peer's `next_hop_v4` or `next_hop_v6`.
    pub next_hop: Option<IpAddr>,
    /// Prefixes that the peer has been told and not withdrawn.
    pub prefixes_sent: usize,
    /// Changes the peer has yet to be told.
    pub prefixes_pending: usize,
    /// End-of-RIB has been sent.
    pub end_of_rib_sent: bool,
}

/// What ended a session or an attempt at one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// What.
    pub reason: Down,
}

/// Totals since the peer was configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often the session became Established.
    pub established: u64,
    /// UPDATE messages sent.
    pub updates_sent: u64,
    /// UPDATE messages received.
    pub updates_received: u64,
    /// Reachable prefixes in received UPDATEs, whether anything of the peer is imported or not.
    pub prefixes_received: u64,
    /// Withdrawn prefixes in received UPDATEs.
    pub prefixes_withdrawn: u64,
    /// Received UPDATEs with malformed attributes, handled by RFC 7606 without a reset.
    pub malformed_updates: u64,
    /// Sessions and attempts that this side ended with a NOTIFICATION, for what the peer did.
    pub notifications_sent: u64,
    /// Sessions and attempts that the peer ended with a NOTIFICATION.
    pub notifications_received: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
}

impl PeerStatus {
    pub(super) fn new(
        config: &PeerConfig,
        range: Option<IpNet>,
        observed: &Observed,
        rib: &Rib,
    ) -> PeerStatus {
        PeerStatus {
            address: config.address,
            interface: config.interface.clone(),
            asn: observed.asn.filter(|_| config.any_external_asn).unwrap_or(config.asn),
            range,
            state: observed.state,
            since: observed.since,
            uptime: observed.session.as_ref().map(|session| session.since.elapsed()),
            last_error: observed.last_error.clone(),
            session: observed.session.as_ref().map(|session| SessionStatus {
                local: session.local,
                negotiated: session.negotiated.clone(),
                families: rib.families(config.address).into_iter().map(FamilyStatus::from).collect(),
            }),
            counters: observed.counters,
            bfd: observed.bfd.clone(),
        }
    }
}

impl PeerStatus {
    /// What to call it: its address, with the interface where that belongs to it.
    pub fn name(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{}%{interface}", self.address),
            None => self.address.to_string(),
        }
    }
}

impl From<FamilyOut> for FamilyStatus {
    fn from(out: FamilyOut) -> FamilyStatus {
        let FamilyOut { family, next_hop, sent, pending, end_of_rib_sent } = out;
        FamilyStatus { family, next_hop, prefixes_sent: sent, prefixes_pending: pending, end_of_rib_sent }
    }
}
