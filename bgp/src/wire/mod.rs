//! Messages as types, and as bytes.
//!
//! [`frame`] cuts a byte stream into messages, [`Message::decode`] reads one, [`Message::encode`] writes one,
//! [`pack`] writes UPDATEs that hold as many prefixes as fit. Reading never panics: what is malformed becomes
//! a [`WireError`], which knows the NOTIFICATION it deserves, or, where RFC 7606 asks for less than the end of the
//! session, an [`AttributeError`] beside the UPDATE.

mod as_path;
mod attribute;
mod capability;
mod error;
mod message;
mod notification;
mod open;
pub mod pack;
mod prefix;
mod reader;
mod update;

#[cfg(test)]
mod tests;

pub use as_path::{AsPath, Segment, SegmentKind};
pub use attribute::{Aggregator, Origin, PathAttributes, RawAttribute};
pub use capability::{
    AddPathFamily, Capability, ExtendedNextHop, GracefulRestartCapability, GracefulRestartFamily,
    LongLivedFamily, Role,
};
pub use error::{AttributeError, AttributeProblem, Handling, OpenError, TooLong, UpdateError, WireError};
pub use message::{
    EXTENDED_MAX_LENGTH, HEADER_LENGTH, MAX_LENGTH, Message, RefreshKind, RouteRefresh, frame,
};
pub use notification::{Cease, Notification, ShutdownMessage, ShutdownMessageLength};
pub use open::Open;
pub use prefix::Nlri;
pub use update::{MpReach, MpUnreach, Update};

use crate::Families;

/// Stands in for an ASN that a 2-octet speaker cannot be told (RFC 6793).
pub const AS_TRANS: u16 = 23456;

/// What the meaning of bytes depends on, known once a session is negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Both sides speak 4-octet ASNs (RFC 6793).
    pub four_octet_asn: bool,
    /// The peer is in this speaker's own AS.
    pub ibgp: bool,
    /// The peer takes messages longer than [`MAX_LENGTH`] (RFC 8654).
    pub extended_messages: bool,
    /// Families whose prefixes have path identifiers, in the direction at hand (RFC 7911): the two are agreed on apart.
    pub add_path: Families,
}

impl Context {
    /// The length of the longest message that the peer takes, but for OPEN and KEEPALIVE.
    pub fn max_length(self) -> usize {
        if self.extended_messages { EXTENDED_MAX_LENGTH } else { MAX_LENGTH }
    }
}
