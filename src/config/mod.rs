//! The configuration: parsed once into types that cannot hold anything invalid.
//!
//! [`file`] is the config file, [`annotations`] what annotations of a Service override, [`node`] what those of this
//! node's Node do.

pub mod annotations;
mod bfd;
mod bmp;
mod communities;
mod conntrack;
mod drain;
mod export;
mod file;
mod forwarding;
mod import;
mod kube_router;
mod mark_mask;
mod mesh;
pub mod node;
mod peer;
mod reader;

pub use annotations::ServiceSettings;
pub use bfd::{Bfd, BfdKey};
pub use bmp::{BmpStation, BmpTable};
pub use communities::Communities;
pub use conntrack::Conntrack;
pub use drain::{Drain, DrainReason, TaintPattern};
pub use file::{
    Announce, Config, Error, ExternalIps, GracefulRestart, Listen, LongLived, NodePortAddresses, Observe,
    Router, Schedulers, Services, VirtualServerMetrics,
};
pub use forwarding::ForwardingTo;
pub use import::{ImportTo, OnExit};
pub use mark_mask::MarkMask;
pub use mesh::{Mesh, MeshMember, Reflection, RouteReflector};
pub use node::NodeSettings;
pub use peer::{
    AddressFamily, DynamicPeer, NextHop, PasswordSource, Peer, PeerAddress, PeerAsn, PeerSource, Role,
    SecretKey,
};
pub use reader::INVALID_ANNOTATION;
