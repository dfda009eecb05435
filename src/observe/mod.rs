//! What this node tells of itself.
//!
//! ```text
//!                 ┌─► health      /healthz, /livez, /readyz            ─┐
//! agent's loop ───┼─► node_ports  health-check node ports              ─┼─► http
//!   [Observer]    └─► metrics     /metrics  ◄──questions── the loop    ─┘
//!                     status      the status socket
//! ```

pub mod accepts;
pub(crate) mod columns;
pub mod events;
pub mod explain;
mod health;
mod http;
pub mod metrics;
mod node_ports;
mod observer;
pub mod status;

pub use health::timestamp;
pub use observer::{Observer, Pass};

/// From 0 to 1, to shorten pauses by: the agents of a cluster must not come back to an API server all at once.
fn chance() -> f64 {
    use std::hash::BuildHasher as _;
    let random = std::hash::RandomState::new().hash_one(0) % 1024;
    f64::from(u16::try_from(random).unwrap_or_default()) / 1024.0
}
