//! What the cluster says: slim Services, EndpointSlices and Nodes, one Index over them, and its sources.

mod event;
mod index;
mod ip;
pub mod kubernetes;
pub mod manifest;
mod object;
mod wire;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use event::{Event, Object, ObjectKey, Place, Problem, Severity, Watch, WatchState};
pub use index::{Changes, Index};
pub use object::{
    ACCEPTS_ANNOTATION, Accepts, Annotations, Encapsulation, Endpoint, EndpointPort, EndpointSlice, Hints,
    LoadBalancerIp, Node, Service, ServiceCidr, ServicePort, Skipped, SliceName, Taint, TrafficDistribution,
    TrafficPolicy,
};

/// Namespace and name of a Service; prints as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name within the namespace.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol that a Service port can have (Kubernetes core/v1 `Protocol`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, the default of a Service port.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}
