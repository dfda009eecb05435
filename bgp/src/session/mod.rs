//! One peer's session, sans-IO: events and the time go in, actions come out (RFC 4271 §8).
//!
//! A [`Session`] is all that concerns one peer: at most one connection of each [`Direction`], and the dialling of
//! the outgoing one. Each connection has a state of its own; the session's [`State`] is that of the connection
//! furthest along, or else of the dialling.
//!
//! ```text
//!                       ManualStart / hold-down over
//!        ┌────── Idle ─────────────────────────────────► Connect ◄───────────┐
//!        │        ▲    (passive: to Active)               │   │              │ ConnectRetryTimer
//!        │        │                                       │   │ fails        │
//!        │        │ error, NOTIFICATION,                  │   └───────► Active
//!        │        │ hold timer: held down                 │ connected     │  │
//!        │        │ for a while                           ▼               │  │
//!        │        ├───────────────────────────────── OpenSent ◄───────────┘  │
//!        │        │                                       │ OPEN    accepted │
//!        │        │                                       ▼                  │
//!        │        ├──────────────────────────────── OpenConfirm              │
//!        │        │                                       │ KEEPALIVE        │
//!        │        │                                       ▼                  │
//!        │        └──────────────────────────────── Established              │
//!        │                                                                   │
//!        └─ ManualStop, from anywhere        connection lost, from any of the last three: to Active
//! ```
//!
//! One thing differs from the letter of RFC 4271, as it does in every speaker in use: a lost connection leads to
//! Active rather than through Idle, since nothing is gained by refusing the peer meanwhile. Of a connection whose OPEN is
//! delayed (DelayOpen) the state is Connect, whoever made it.

mod connection;
mod error;
mod fsm;
mod jitter;
mod model;
mod open;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;

pub use error::{PeerIncompatible, PeerMisbehaved, SessionError};
pub use fsm::Session;
pub use jitter::Jitter;
pub use model::{
    Action, AddPaths, Backoff, Direction, Down, Event, Farewell, LongLived, Negotiated, PeerGracefulRestart,
    RestartOffer, RoleOffer, SessionConfig, State,
};
