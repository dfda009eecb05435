//! The configuration: parsed once into types that cannot hold anything invalid.
//!
//! [`file`] is the config file, [`annotations`] what annotations of a Service override.

pub mod annotations;
mod communities;
mod file;
mod mark_mask;

pub use annotations::ServiceSettings;
pub use communities::Communities;
pub use file::{
    AddressFamily, Announce, Bfd, Config, Drain, DynamicPeer, Encapsulation, Error, ExternalIps,
    GracefulRestart, Import, Listen, LongLived, NextHop, NodePortAddresses, Observe, Peer, Router,
    Schedulers, Services,
};
pub use mark_mask::MarkMask;
