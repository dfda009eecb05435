//! BMP, version 3: what a monitoring station is told of sessions and routes (RFC 7854; Adj-RIB-Out, RFC 8671; Loc-RIB,
//! RFC 9069).
//!
//! Messages as bytes; who is told what and when is the owner's affair. Adj-RIB-In is told before and after policy, Adj-RIB-Out after
//! policy alone, as the peer is. A station only listens, so that there is nothing to read.

mod routes;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::Family;
pub use routes::{announcements, end_of_rib, withdrawals};

const VERSION: u8 = 3;

/// Message types (RFC 7854 §4.1).
mod kind {
    pub(super) const ROUTE_MONITORING: u8 = 0;
    pub(super) const STATISTICS_REPORT: u8 = 1;
    pub(super) const PEER_DOWN: u8 = 2;
    pub(super) const PEER_UP: u8 = 3;
    pub(super) const INITIATION: u8 = 4;
    pub(super) const TERMINATION: u8 = 5;
}

/// Peer types (RFC 7854 §4.2, RFC 9069 §4.1).
const GLOBAL_INSTANCE: u8 = 0;
const LOC_RIB_INSTANCE: u8 = 3;

/// Peer flags (RFC 7854 §4.2, RFC 8671 §4).
const IPV6: u8 = 0x80;
const POST_POLICY: u8 = 0x40;
const TWO_OCTET_ASN: u8 = 0x20;
const ADJ_RIB_OUT: u8 = 0x10;

/// The name of the one table there is (RFC 9069 §5.3).
const TABLE_NAME: &str = "global";

/// A peer, as every message about it names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The peer's address.
    pub address: IpAddr,
    /// The peer's ASN.
    pub asn: u32,
    /// The peer's BGP Identifier.
    pub router_id: Ipv4Addr,
    /// UPDATEs have 4-octet ASNs on this session.
    pub four_octet_asn: bool,
}

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The session with a peer, and what it sends, before policy (Adj-RIB-In).
    Session(Peer),
    /// What a peer sends, as far as the import policy lets it in.
    AdjRibInPostPolicy(Peer),
    /// What a peer is sent.
    AdjRibOut(Peer),
    /// The speaker's own table.
    LocRib {
        /// The speaker's ASN.
        asn: u32,
        /// The speaker's BGP Identifier.
        router_id: Ipv4Addr,
    },
}

/// Both ends of an Established session, and the OPENs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerUp {
    /// This side's address and port.
    pub local: SocketAddr,
    /// The peer's port.
    pub remote_port: u16,
    /// The OPEN that was sent, with its header.
    pub sent_open: Vec<u8>,
    /// The OPEN that came, with its header.
    pub received_open: Vec<u8>,
}

/// Why a session is over (RFC 7854 §4.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerDown {
    /// This side sent that NOTIFICATION, with its header.
    LocalNotification(Vec<u8>),
    /// This side closed without one, because of that event of RFC 4271 §8.1.
    Local {
        /// The event's number there.
        event: u16,
    },
    /// The peer sent that NOTIFICATION, with its header.
    RemoteNotification(Vec<u8>),
    /// The peer closed without one.
    Remote,
}

/// A number that is reported from time to time (RFC 7854 §4.8, RFC 8671 §6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Routes in Adj-RIB-In, before policy.
    AdjRibIn(u64),
    /// Routes in Adj-RIB-In of one family, before policy.
    AdjRibInOf(Family, u64),
    /// Routes in Loc-RIB.
    LocRib(u64),
    /// Routes in Loc-RIB of one family.
    LocRibOf(Family, u64),
    /// Routes in Adj-RIB-Out.
    AdjRibOut(u64),
    /// Routes in Adj-RIB-Out of one family.
    AdjRibOutOf(Family, u64),
}

/// Appends a message: the common header (RFC 7854 §4.1), then what `body` writes.
fn message(kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[VERSION, 0, 0, 0, 0, kind]);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
}

/// Appends a TLV; a value too long for its length field is cut.
fn tlv(kind: u16, value: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&value[..usize::from(length)]);
}

/// An address in 16 bytes: IPv4 in the last four (RFC 7854 §4.2).
fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)).to_be_bytes(),
        IpAddr::V6(address) => address.octets(),
    }
}

impl View {
    /// Appends the per-peer header (RFC 7854 §4.2); `at` is the time since 1970.
    fn header(self, at: Duration, out: &mut Vec<u8>) {
        let of_peer = |peer: Peer| {
            let family = if peer.address.is_ipv6() { IPV6 } else { 0 };
            family | if peer.four_octet_asn { 0 } else { TWO_OCTET_ASN }
        };
        let (kind, flags, peer_address, asn, router_id) = match self {
            View::Session(peer) => (GLOBAL_INSTANCE, of_peer(peer), peer.address, peer.asn, peer.router_id),
            View::AdjRibInPostPolicy(peer) => {
                (GLOBAL_INSTANCE, of_peer(peer) | POST_POLICY, peer.address, peer.asn, peer.router_id)
            }
            View::AdjRibOut(peer) => {
                let flags = of_peer(peer) | ADJ_RIB_OUT | POST_POLICY;
                (GLOBAL_INSTANCE, flags, peer.address, peer.asn, peer.router_id)
            }
            View::LocRib { asn, router_id } => {
                (LOC_RIB_INSTANCE, 0, Ipv6Addr::UNSPECIFIED.into(), asn, router_id)
            }
        };
        out.extend_from_slice(&[kind, flags]);
        // Peer distinguisher: there is one instance.
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&address(peer_address));
        out.extend_from_slice(&asn.to_be_bytes());
        out.extend_from_slice(&router_id.octets());
        // Four octets until 2106.
        out.extend_from_slice(&u32::try_from(at.as_secs()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&at.subsec_micros().to_be_bytes());
    }
}

/// Appends the first message to a station: who this is (RFC 7854 §4.3).
pub fn initiation(name: &str, description: &str, out: &mut Vec<u8>) {
    const SYS_DESCR: u16 = 1;
    const SYS_NAME: u16 = 2;
    message(kind::INITIATION, out, |out| {
        tlv(SYS_DESCR, description.as_bytes(), out);
        tlv(SYS_NAME, name.as_bytes(), out);
    });
}

/// Appends the last message to a station: this side is done (RFC 7854 §4.5).
pub fn termination(out: &mut Vec<u8>) {
    const REASON: u16 = 1;
    const ADMINISTRATIVELY_CLOSED: u16 = 0;
    message(kind::TERMINATION, out, |out| tlv(REASON, &ADMINISTRATIVELY_CLOSED.to_be_bytes(), out));
}

/// Appends that a session is Established (RFC 7854 §4.10).
pub fn peer_up(peer: Peer, up: &PeerUp, at: Duration, out: &mut Vec<u8>) {
    message(kind::PEER_UP, out, |out| {
        View::Session(peer).header(at, out);
        out.extend_from_slice(&address(up.local.ip()));
        out.extend_from_slice(&up.local.port().to_be_bytes());
        out.extend_from_slice(&up.remote_port.to_be_bytes());
        out.extend_from_slice(&up.sent_open);
        out.extend_from_slice(&up.received_open);
    });
}

/// Appends that Loc-RIB is there; `open` tells how its UPDATEs are encoded (RFC 9069 §4.4, §5.3).
pub fn loc_rib_up(asn: u32, router_id: Ipv4Addr, open: &[u8], at: Duration, out: &mut Vec<u8>) {
    const TABLE: u16 = 3;
    message(kind::PEER_UP, out, |out| {
        View::LocRib { asn, router_id }.header(at, out);
        // Neither addresses nor ports.
        out.extend_from_slice(&[0; 20]);
        out.extend_from_slice(open);
        out.extend_from_slice(open);
        tlv(TABLE, TABLE_NAME.as_bytes(), out);
    });
}

/// Appends that a session is over (RFC 7854 §4.9).
pub fn peer_down(peer: Peer, down: &PeerDown, at: Duration, out: &mut Vec<u8>) {
    message(kind::PEER_DOWN, out, |out| {
        View::Session(peer).header(at, out);
        match down {
            PeerDown::LocalNotification(notification) => {
                out.push(1);
                out.extend_from_slice(notification);
            }
            PeerDown::Local { event } => {
                out.push(2);
                out.extend_from_slice(&event.to_be_bytes());
            }
            PeerDown::RemoteNotification(notification) => {
                out.push(3);
                out.extend_from_slice(notification);
            }
            PeerDown::Remote => out.push(4),
        }
    });
}

/// Appends an UPDATE, with its header, as part of a table (RFC 7854 §4.6).
pub fn route_monitoring(view: View, update: &[u8], at: Duration, out: &mut Vec<u8>) {
    message(kind::ROUTE_MONITORING, out, |out| {
        view.header(at, out);
        out.extend_from_slice(update);
    });
}

/// Appends numbers (RFC 7854 §4.8). Of Adj-RIB-Out they are told with the session's header (RFC 8671 §6.2).
pub fn statistics(view: View, statistics: &[Statistic], at: Duration, out: &mut Vec<u8>) {
    message(kind::STATISTICS_REPORT, out, |out| {
        view.header(at, out);
        out.extend_from_slice(&u32::try_from(statistics.len()).unwrap_or(u32::MAX).to_be_bytes());
        for statistic in statistics {
            let (kind, family, value) = match *statistic {
                Statistic::AdjRibIn(value) => (7, None, value),
                Statistic::AdjRibInOf(family, value) => (9, Some(family), value),
                Statistic::LocRib(value) => (8, None, value),
                Statistic::LocRibOf(family, value) => (10, Some(family), value),
                Statistic::AdjRibOut(value) => (15, None, value),
                Statistic::AdjRibOutOf(family, value) => (17, Some(family), value),
            };
            let family = family.map(|family| [&family.afi().to_be_bytes()[..], &[family.safi()]].concat());
            tlv(kind, &[family.unwrap_or_default().as_slice(), &value.to_be_bytes()].concat(), out);
        }
    });
}
