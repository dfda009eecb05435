//! PURE: (Index, NodeConfig) → what this node should do. No I/O, no clock, no kernel types.
//!
//! ```text
//! Service + EndpointSlices + NodeContext ──service()──► ServicePlan ──NodePlan::set()──► Delta
//! ```
//!
//! [`NodePlan`] is the whole desired state of this node; a [`Delta`] names the keys of it that a change
//! touched, so that the cost of a change does not depend on the number of Services.

mod aggregates;
mod announcements;
mod claims;
mod elsewhere;
mod endpoints;
mod explain;
mod model;
mod planner;
mod selection;
mod service;

pub use endpoints::{EndpointUse, Topology};
pub use explain::{ExplainedEndpoint, ExplainedServer, Explanation, explain};
pub use model::{
    Acceptance, AcceptedIn, Announcement, AnnouncementKind, ByFamily, Delta, Destination, Forwarding,
    HealthCheck, NodePlan, NodeState, Rewrite, RewriteKey, RewriteSide, Scheduler, SchedulerFlags,
    ServicePlan, SourceRange, VipKind, VipPort, VirtualServer, Warning, WithoutLocalEndpoints,
};
pub use planner::{DRAIN_ASKED, EXCLUDED_FROM_LOAD_BALANCERS, Planner};
pub use selection::{Selection, Step};
pub use service::{NodeContext, service};
