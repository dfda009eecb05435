//! What can be wrong with received bytes, and what the peer is told.

use super::{HEADER_LENGTH, MAX_LENGTH, Notification};

/// Bytes that end the session. All of these are the sender's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The marker is not all ones.
    #[error("message header: marker is not all ones")]
    NotSynchronized,
    /// A length that no message, or no message of this type, can have.
    #[error("message header: bad length {0}")]
    BadLength(u16),
    /// A message type that RFC 4271 and RFC 2918 do not know.
    #[error("message header: unknown type {0}")]
    BadType(u8),
    /// A malformed OPEN.
    #[error("OPEN: {0}")]
    Open(#[from] OpenError),
    /// A malformed UPDATE that cannot be handled by less than the end of the session.
    #[error("UPDATE: {0}")]
    Update(#[from] UpdateError),
    /// A ROUTE-REFRESH of the wrong length; the message as it came.
    #[error("ROUTE-REFRESH: bad length")]
    RouteRefreshLength(Vec<u8>),
}

/// What is wrong with an OPEN (RFC 4271 §6.2).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A version other than 4.
    #[error("version {0}, only 4 is spoken here")]
    UnsupportedVersion(u8),
    /// An optional parameter other than capabilities (RFC 5492).
    #[error("optional parameter {0} is not supported")]
    UnsupportedParameter(u8),
    /// Lengths that contradict each other.
    #[error("malformed")]
    Malformed,
}

/// What is wrong with an UPDATE beyond what RFC 7606 lets stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// Lengths that contradict each other, so that prefixes cannot be found, or MP_REACH_NLRI or MP_UNREACH_NLRI
    /// twice (RFC 7606 §3 a, g).
    #[error("malformed attribute list")]
    MalformedAttributeList,
    /// Not optional, and not known; the attribute as it came.
    #[error("unrecognized well-known attribute")]
    UnrecognizedWellKnown(Vec<u8>),
    /// MP_REACH_NLRI or MP_UNREACH_NLRI that does not parse; the attribute as it came (RFC 7606 §5.3, §7.11).
    #[error("malformed multiprotocol attribute")]
    Multiprotocol(Vec<u8>),
    /// A prefix that is too long or cut short.
    #[error("invalid network field")]
    InvalidNetwork,
    /// An attribute is malformed and there is no prefix to treat as withdrawn: the prefixes may have been lost
    /// with it (RFC 7606 §5.2).
    #[error("{0}, and no reachable prefixes")]
    NoPrefixes(AttributeError),
}

/// A malformed attribute that does not end the session (RFC 7606).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attribute {code}: {problem}")]
pub struct AttributeError {
    /// The attribute's type code.
    pub code: u8,
    /// What is wrong.
    pub problem: AttributeProblem,
    /// What is done about it.
    pub handling: Handling,
}

/// What is wrong with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeProblem {
    /// Optional or Transitive contradict the attribute's definition.
    #[error("wrong flags")]
    Flags,
    /// A length the attribute cannot have, or beyond the end of the attributes.
    #[error("wrong length")]
    Length,
    /// An undefined value.
    #[error("invalid value")]
    Value,
    /// A second one.
    #[error("repeated")]
    Repeated,
    /// Mandatory, and not there.
    #[error("missing")]
    Missing,
    /// Not allowed on this kind of session.
    #[error("not expected from this peer")]
    Unexpected,
}

/// What is done about a malformed attribute (RFC 7606 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// The attribute is ignored, the routes stand.
    Discard,
    /// The routes are handled as if they had been withdrawn.
    TreatAsWithdraw,
}

impl WireError {
    /// What the peer is told (RFC 4271 §6).
    pub fn notification(&self) -> Notification {
        let header =
            |subcode, data: Vec<u8>| Notification::with_data(Notification::MESSAGE_HEADER, subcode, data);
        match self {
            WireError::NotSynchronized => header(1, Vec::new()),
            WireError::BadLength(length) => header(2, length.to_be_bytes().to_vec()),
            WireError::BadType(kind) => header(3, vec![*kind]),
            WireError::Open(error) => error.notification(),
            WireError::Update(error) => error.notification(),
            WireError::RouteRefreshLength(message) => {
                // As much of it as a NOTIFICATION holds beside header and codes.
                let data = &message[..message.len().min(MAX_LENGTH - HEADER_LENGTH - 2)];
                Notification::with_data(Notification::ROUTE_REFRESH_MESSAGE, 1, data)
            }
        }
    }
}

impl OpenError {
    fn notification(&self) -> Notification {
        match self {
            OpenError::UnsupportedVersion(_) => {
                Notification::with_data(Notification::OPEN_MESSAGE, 1, 4u16.to_be_bytes())
            }
            OpenError::UnsupportedParameter(_) => Notification::new(Notification::OPEN_MESSAGE, 4),
            OpenError::Malformed => Notification::new(Notification::OPEN_MESSAGE, 0),
        }
    }
}

impl UpdateError {
    fn notification(&self) -> Notification {
        let (subcode, data) = match self {
            UpdateError::MalformedAttributeList | UpdateError::NoPrefixes(_) => (1, Vec::new()),
            UpdateError::UnrecognizedWellKnown(attribute) => (2, attribute.clone()),
            UpdateError::Multiprotocol(attribute) => (9, attribute.clone()),
            UpdateError::InvalidNetwork => (10, Vec::new()),
        };
        Notification::with_data(Notification::UPDATE_MESSAGE, subcode, data)
    }
}

/// A message that is longer than the peer takes (4096 bytes, or 65535 with RFC 8654).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message is longer than the peer takes")]
pub struct TooLong;
