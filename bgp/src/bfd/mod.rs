//! BFD (RFC 5880): whether the path to a neighbour works, told within milliseconds. Asynchronous mode, over one hop (RFC 5881) or
//! several (RFC 5883).
//!
//! ```text
//!   datagram ─► Packet::decode ─► ┌─────────┐ ─► Action::Send ─► datagram
//!   the time ───────────────────► │ Session │ ─► Action::Changed ─► BGP ends its session (RFC 5882)
//!                                 └─────────┘
//! ```
//!
//! Sans-IO as all of this crate but [`runtime`](crate::runtime): the time comes in as an argument.

mod auth;
mod packet;
mod session;

#[cfg(test)]
mod tests;

pub use auth::{Algorithm, Key, KeyLength, Signer};
pub use packet::{Diagnostic, Packet, PacketError, State};
pub use session::{Action, Session, SessionConfig};

/// Where control packets over one hop go (RFC 5881 §4).
pub const PORT: u16 = 3784;
/// Where those over several hops go (RFC 5883 §5).
pub const MULTIHOP_PORT: u16 = 4784;

/// Where the packets of a session go that may be over several hops, or not.
pub fn port(multihop: bool) -> u16 {
    if multihop { MULTIHOP_PORT } else { PORT }
}
