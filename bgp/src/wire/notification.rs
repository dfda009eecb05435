//! NOTIFICATION: why a session ends (RFC 4271 §4.5, §6).

use std::fmt;

/// A NOTIFICATION message.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Error subcode; 0 is "unspecific".
    pub subcode: u8,
    /// What the code defines, for instance the offending attribute.
    pub data: Vec<u8>,
}

impl Notification {
    /// Message Header Error (1).
    pub const MESSAGE_HEADER: u8 = 1;
    /// OPEN Message Error (2).
    pub const OPEN_MESSAGE: u8 = 2;
    /// UPDATE Message Error (3).
    pub const UPDATE_MESSAGE: u8 = 3;
    /// Hold Timer Expired (4).
    pub const HOLD_TIMER_EXPIRED: u8 = 4;
    /// Finite State Machine Error (5).
    pub const FSM: u8 = 5;
    /// Cease (6).
    pub const CEASE: u8 = 6;
    /// ROUTE-REFRESH Message Error (7, RFC 7313).
    pub const ROUTE_REFRESH_MESSAGE: u8 = 7;

    /// Send Hold Timer Expired (8, RFC 9687).
    pub const SEND_HOLD_TIMER_EXPIRED: u8 = 8;

    /// A NOTIFICATION without data.
    pub fn new(code: u8, subcode: u8) -> Notification {
        Notification { code, subcode, data: Vec::new() }
    }

    /// A NOTIFICATION with data.
    pub fn with_data(code: u8, subcode: u8, data: impl Into<Vec<u8>>) -> Notification {
        Notification { code, subcode, data: data.into() }
    }

    /// What the operator of the other side has to say, with an administrative shutdown or reset (RFC 9003). Control
    /// characters are not passed on: it ends up in logs and on terminals.
    pub fn operators_message(&self) -> Option<String> {
        let says = self.is_cease(&[Cease::AdministrativeShutdown, Cease::AdministrativeReset]);
        let (&length, text) = self.data.split_first().filter(|_| says)?;
        let text = text.get(..usize::from(length)).filter(|text| !text.is_empty())?;
        let text = String::from_utf8_lossy(text);
        Some(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }

    /// CEASE/administrative shutdown with what the operator has to say (RFC 9003).
    pub fn shutdown(ShutdownMessage(text): &ShutdownMessage) -> Notification {
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        let data = [&[length], text.as_bytes()].concat();
        Notification::with_data(Notification::CEASE, Cease::AdministrativeShutdown as u8, data)
    }

    /// A CEASE for `reason`.
    pub fn cease(reason: Cease) -> Notification {
        Notification::new(Notification::CEASE, reason as u8)
    }

    /// This with what it says of routes: they go (CEASE/hard reset, RFC 8538 §3). For a peer alone that would keep them over
    /// any other.
    pub fn hard_reset(self) -> Notification {
        let data = [&[self.code, self.subcode], self.data.as_slice()].concat();
        Notification::with_data(Notification::CEASE, Cease::HardReset as u8, data)
    }

    /// Whether it is a CEASE/hard reset.
    pub fn is_hard_reset(&self) -> bool {
        self.is_cease(&[Cease::HardReset])
    }

    /// What a hard reset is for.
    fn reset_for(&self) -> Option<Notification> {
        match self.data[..] {
            [code, subcode, ref data @ ..] if self.is_hard_reset() => {
                Some(Notification::with_data(code, subcode, data))
            }
            _ => None,
        }
    }

    /// Whether it says that the path between both sides is broken.
    pub fn is_bfd_down(&self) -> bool {
        self.is_cease(&[Cease::BfdDown])
    }

    /// Whether routes are to go with it: it ends the session for good, or for long, by what RFC 8538 §5.1 says of subcodes; or the path
    /// is broken, and what is sent by these routes is lost.
    pub fn takes_routes(&self) -> bool {
        let lasting = [Cease::MaximumPrefixes, Cease::AdministrativeShutdown, Cease::PeerDeconfigured];
        self.is_cease(&lasting) || self.is_bfd_down()
    }

    fn is_cease(&self, reasons: &[Cease]) -> bool {
        self.code == Notification::CEASE && reasons.iter().any(|reason| *reason as u8 == self.subcode)
    }
}

/// What the operator has to say with an administrative shutdown (RFC 9003): 1 to 255 bytes of UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownMessage(String);

/// A message that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a shutdown message has 1 to 255 bytes, this one has {0}")]
pub struct ShutdownMessageLength(pub usize);

impl ShutdownMessage {
    /// # Errors
    /// It is empty or too long.
    pub fn new(text: impl Into<String>) -> Result<ShutdownMessage, ShutdownMessageLength> {
        let text = text.into();
        match text.len() {
            1..=255 => Ok(ShutdownMessage(text)),
            length => Err(ShutdownMessageLength(length)),
        }
    }
}

/// Subcodes of CEASE (RFC 4486, RFC 8538).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cease {
    /// The peer has announced more prefixes than it may.
    MaximumPrefixes = 1,
    /// This speaker was told to stop for good, or for long.
    AdministrativeShutdown = 2,
    /// The peer is no longer configured.
    PeerDeconfigured = 3,
    /// The session was told to start over.
    AdministrativeReset = 4,
    /// The connection came from an address that is no peer, or at a time when none is taken.
    ConnectionRejected = 5,
    /// The peer's configuration changed.
    OtherConfigurationChange = 6,
    /// The other of two connections was kept (RFC 4271 §6.8).
    ConnectionCollisionResolution = 7,
    /// Another NOTIFICATION, which is in the data, with the end of graceful restart (RFC 8538).
    HardReset = 9,
    /// BFD says that the path to the peer does not work (RFC 9384).
    BfdDown = 10,
}

/// Prints as the RFCs name it, with what the operator says: `Cease/Administrative Shutdown: "new firmware"`. Of a hard reset
/// it is what that is for: `Cease/Peer De-configured (hard reset)`.
impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reason) = self.reset_for().filter(|reason| !reason.is_hard_reset()) {
            return write!(f, "{reason} (hard reset)");
        }
        let (code, subcodes): (&str, &[&str]) = match self.code {
            1 => (
                "Message Header Error",
                &["Connection Not Synchronized", "Bad Message Length", "Bad Message Type"],
            ),
            2 => (
                "OPEN Message Error",
                &[
                    "Unsupported Version Number",
                    "Bad Peer AS",
                    "Bad BGP Identifier",
                    "Unsupported Optional Parameter",
                    "Authentication Failure",
                    "Unacceptable Hold Time",
                    "Unsupported Capability",
                    "code 8",
                    "code 9",
                    "code 10",
                    "Role Mismatch",
                ],
            ),
            3 => (
                "UPDATE Message Error",
                &[
                    "Malformed Attribute List",
                    "Unrecognized Well-known Attribute",
                    "Missing Well-known Attribute",
                    "Attribute Flags Error",
                    "Attribute Length Error",
                    "Invalid ORIGIN Attribute",
                    "AS Routing Loop",
                    "Invalid NEXT_HOP Attribute",
                    "Optional Attribute Error",
                    "Invalid Network Field",
                    "Malformed AS_PATH",
                ],
            ),
            4 => ("Hold Timer Expired", &[]),
            5 => (
                "Finite State Machine Error",
                &[
                    "Unexpected Message in OpenSent",
                    "Unexpected Message in OpenConfirm",
                    "Unexpected Message in Established",
                ],
            ),
            6 => (
                "Cease",
                &[
                    "Maximum Number of Prefixes Reached",
                    "Administrative Shutdown",
                    "Peer De-configured",
                    "Administrative Reset",
                    "Connection Rejected",
                    "Other Configuration Change",
                    "Connection Collision Resolution",
                    "Out of Resources",
                    "Hard Reset",
                    "BFD Down",
                ],
            ),
            7 => ("ROUTE-REFRESH Message Error", &["Invalid Message Length"]),
            8 => ("Send Hold Timer Expired", &[]),
            other => return write!(f, "code {other} subcode {}", self.subcode),
        };
        match (self.subcode, subcodes.get(usize::from(self.subcode).wrapping_sub(1))) {
            (0, _) => f.write_str(code),
            (_, Some(subcode)) => write!(f, "{code}/{subcode}"),
            (subcode, None) => write!(f, "{code}/{subcode}"),
        }?;
        self.operators_message().map_or(Ok(()), |text| write!(f, ": {text:?}"))
    }
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notification({}/{} {self}, {} bytes of data)", self.code, self.subcode, self.data.len())
    }
}
