//! A double of the Kubernetes API server: what a node agent says to it and hears from it, over TLS.
//!
//! ```text
//!             ┌─ Server: TCP, TLS, a thread ─┐
//!   client ──►│ serve ─► faults ─► access ─► │ list, watch, write ──► store
//!             └──────────────────────────────┘                          ▲
//!   test ─────► Api: apply, delete, compact, inject, interrupt, ────────┘
//!                    set_reach, cut, counts, ...
//! ```
//!
//! How it behaves is pinned to recordings of a real one (`recordings/`).

mod access;
mod api;
mod body;
mod connection;
mod faults;
mod list;
mod request;
mod resource;
mod selector;
mod serve;
mod server;
mod status;
mod store;
mod tls;
mod token;
mod watch;
mod write;

pub use api::{Api, Count, Options, StreamingLists};
pub use connection::Reach;
pub use faults::{Answer, Fault};
pub use request::Request;
pub use resource::{Resource, Target};
pub use server::{Bind, Server};
pub use status::Status;
pub use watch::Interruption;
