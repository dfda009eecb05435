//! Every step that a packet for a Service takes from this node, and why: as planned, and as the kernel has it.
//!
//! ```text
//! Planner ──planned──► Explanation ──text──► what `sheave explain` prints
//!                          ▲
//! Dataplane, Announcer ────┘ kernel, peers   (where an agent answers)
//! ```

mod near;
mod planned;
mod target;
mod text;
mod told;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::status;
use crate::cluster::Protocol;
use crate::plan::VipPort;

pub use near::NotFound;
pub use target::{Target, TargetError};
pub use told::Told;

/// Answer to `sheave explain`; `-o json` prints it. Keys are never left out: what is not there is null or empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was asked of.
    pub target: String,
    /// The node that it is seen from.
    pub node: String,
    /// The agent that answers; `None`: planned from manifests, and no kernel was looked at.
    pub agent: Option<Agent>,
    /// Whose it is.
    pub service: Service,
    /// Its virtual servers, or those asked of: by kind, address, port and protocol.
    pub virtual_servers: Vec<VirtualServer>,
    /// Its health-check node port.
    pub health_check: Option<HealthCheck>,
    /// What its owner should know.
    pub warnings: Vec<String>,
    /// What the kernel holds of it now.
    pub kernel: Option<Kernel>,
}

impl Explanation {
    /// Whether the kernel holds what is planned, as far as it was looked at.
    pub fn is_as_planned(&self) -> bool {
        self.kernel.as_ref().is_none_or(|kernel| kernel.differences.is_empty() && kernel.problems.is_empty())
    }
}

/// The agent that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// As [`Status::ready`](super::status::Status::ready).
    pub ready: bool,
    /// As [`Status::holding`](super::status::Status::holding).
    pub holding: bool,
    /// How far its node has drained.
    pub drain: status::Drain,
}

/// A Service, as far as it matters to the path of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Namespace and name.
    pub name: String,
    /// Why it is left alone, if it is.
    pub skipped: Option<String>,
    /// `spec.externalTrafficPolicy`.
    pub external_traffic_policy: String,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: String,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<String>,
    /// Timeout of `sessionAffinity: ClientIP`.
    pub session_affinity_seconds: Option<u32>,
    /// Addresses of it that nothing is done for.
    pub left_out: Vec<LeftOut>,
}

/// An address that a Service names and that is not bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    /// The address.
    pub address: IpAddr,
    /// Why.
    pub why: String,
}

/// A virtual server of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Protocol,
    /// Where its address came from.
    pub kind: String,
    /// Name of the Service port.
    pub service_port: Option<String>,
    /// The older Service that has address, port and protocol: then nothing below is done.
    pub held_by: Option<String>,
    /// The route that leads packets for it here; `None` for a node port, whose address is the node's.
    pub route: Option<String>,
    /// Who may reach it; `None`: everyone.
    pub source_ranges: Option<Vec<String>>,
    /// Scheduler.
    pub scheduler: String,
    /// Its flags, by `ipvsadm`'s names.
    pub scheduler_flags: Vec<String>,
    /// IPVS persistence.
    pub persistence_seconds: Option<u32>,
    /// The traffic policy that binds clients from outside, and what binds those within.
    pub policy: String,
    /// Every endpoint that the slices list, by address and port.
    pub endpoints: Vec<Endpoint>,
    /// Clients within the cluster get other endpoints than those from outside.
    pub internal_differs: bool,
    /// What becomes of packets that no endpoint gets: `refused` or `dropped`.
    pub otherwise: String,
    /// How clients outside of the cluster find it.
    pub announcement: Announcement,
}

impl VirtualServer {
    /// Its key in the plan.
    pub fn vip(&self) -> VipPort {
        VipPort { address: self.address, port: self.port, protocol: self.protocol }
    }
}

/// An endpoint that the slices list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// The target port; `None` where its slice has none for the Service port.
    pub port: Option<u16>,
    /// Its node, where known.
    pub node: Option<String>,
    /// The EndpointSlice that lists it.
    pub slice: String,
    /// What it is to clients from outside.
    pub external: Use,
    /// What it is to clients within the cluster.
    pub internal: Use,
    /// How this node hands packets to it, if it is used for anybody.
    pub forwarding: Option<Forwarding>,
    /// How it does so for clients within the cluster, where that is otherwise.
    pub internal_forwarding: Option<Forwarding>,
    /// `node` or `pod`: in whose network namespace this node takes in for it what any director sends; `None`: it does not.
    pub accepted_in: Option<String>,
}

/// Whether an endpoint is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// `None`: not used; 0: no new connections.
    pub weight: Option<u32>,
    /// Why it is used, or not.
    pub why: String,
}

/// How this node hands packets to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Forwarding {
    /// `tunnel`, `nat` or `masquerade`.
    pub method: String,
    /// `ipip` or `gue`, where it is tunnelled.
    pub encapsulation: Option<String>,
    /// Why so.
    pub why: String,
}

/// Whether a VIP is announced, how and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// The prefix, where it is to be announced.
    pub prefix: Option<String>,
    /// The aggregate that is announced in its place.
    pub aggregate: Option<String>,
    /// The kernel table that it is written to, for a routing daemon of this node.
    pub table: Option<u32>,
    /// Standard communities.
    pub communities: Vec<String>,
    /// Large communities.
    pub large_communities: Vec<String>,
    /// LOCAL_PREF to iBGP peers.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// How many more times the own ASN is prepended.
    pub as_path_prepend: u8,
    /// Why it is not announced, if it is not.
    pub why_not: Option<String>,
    /// The peers.
    pub peers: Vec<Peer>,
}

/// A peer that may be told of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its address; or where it is to be found, its interface or a default gateway.
    pub address: String,
    /// Its ASN; `None`: whichever it says.
    pub asn: Option<u32>,
    /// What its export policy adds, or says in place of what the route has.
    pub with: Vec<String>,
    /// Why it has not been told, if it has not; from manifests: why it would not be.
    pub why_not: Option<String>,
}

/// A health-check node port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// Ready endpoints on this node; without any the answer is 503.
    pub local_endpoints: usize,
}

/// What the kernel holds of the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// IPVS.
    pub virtual_servers: Vec<KernelServer>,
    /// How the kernel routes what comes for each VIP.
    pub routes: Vec<KernelRoute>,
    /// Elements of table `inet sheave` that the plan asks for.
    pub elements: Vec<KernelElement>,
    /// What is not as planned.
    pub differences: Vec<Difference>,
    /// What the kernel refused, and what could not be looked at.
    pub problems: Vec<String>,
}

/// A virtual server of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelServer {
    /// Its key, for example `TCP 192.0.2.80:80` or `FWM 16 IPv4`.
    pub key: String,
    /// For clients within the cluster: those of the address get others.
    pub internal: bool,
    /// Scheduler and flags.
    pub scheduler: String,
    /// Its destinations in canonical order.
    pub destinations: Vec<KernelDestination>,
}

/// A destination of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelDestination {
    /// Address and port that the kernel was given.
    pub destination: String,
    /// The endpoint, where a stand-in takes its place.
    pub stands_for: Option<String>,
    /// Forwarding method, for example `tunnel`.
    pub forwarding: String,
    /// Weight.
    pub weight: u32,
    /// It is not wanted any more, and stays until its connections are gone.
    pub draining: bool,
    /// Established connections.
    pub active_connections: u32,
    /// Connections that are closing, or datagram flows.
    pub inactive_connections: u32,
}

/// How the kernel routes what comes for an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelRoute {
    /// The VIP.
    pub address: IpAddr,
    /// The route that it matches, as `ip route` would write it; `None`: none does.
    pub route: Option<String>,
}

/// An element of a set or map of table `inet sheave`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelElement {
    /// The set or map.
    pub set: String,
    /// The element in nft's syntax.
    pub element: String,
    /// Whether it is there.
    pub held: bool,
}

/// Something that is not as planned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// What, in plain words.
    pub what: String,
    /// How long at most until the agent looks there and repairs it.
    pub repaired_within_seconds: u64,
}
