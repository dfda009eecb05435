//! PURE: (Index, NodeConfig) → what this node should do. No I/O, no clock, no kernel types.
//!
//! ```text
//! Service + EndpointSlices + NodeContext ──service()──► ServicePlan ──NodePlan::set()──► Delta
//! ```
//!
//! [`NodePlan`] is the whole desired state of this node; a [`Delta`] names the keys of it that a change
//! touched, so that the cost of a change does not depend on the number of Services.

mod claims;
mod model;
mod planner;
mod service;

pub use model::{
    Acceptance, AcceptedIn, Announcement, AnnouncementKind, Delta, Destination, Forwarding, HealthCheck,
    NodePlan, NodeState, Rewrite, RewriteKey, RewriteSide, Scheduler, SchedulerFlags, ServicePlan,
    SourceRange, VipKind, VipPort, VirtualServer, Warning,
};
pub use planner::Planner;
pub use service::{NodeContext, service};
