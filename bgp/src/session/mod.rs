//! One peer's session.

mod error;
mod model;

pub use error::{PeerIncompatible, PeerMisbehaved, SessionError};
pub use model::{Backoff, Down, Negotiated, PeerGracefulRestart, State};
