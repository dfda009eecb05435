//! The types a plan is made of.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::ops::{AddAssign, SubAssign};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::claims::Claims;
use crate::cluster::{Encapsulation, Protocol, ServiceName};

/// What a virtual server listens on: its key in the kernel and in the plan. Prints as `TCP 10.96.0.80:80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipPort {
    /// The virtual IP (for a NodePort: an address of this node).
    pub address: IpAddr,
    /// The Service port.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for VipPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, std::net::SocketAddr::new(self.address, self.port))
    }
}

/// Which field of a Service an address came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum VipKind {
    /// `spec.clusterIPs`.
    ClusterIP,
    /// `spec.externalIPs`.
    ExternalIP,
    /// `status.loadBalancer.ingress[].ip` with `ipMode: VIP`.
    LoadBalancerIP,
    /// `spec.ports[].nodePort` on an address of this node.
    NodePort,
}

/// An IPVS scheduler by its kernel module name (`ip_vs_NAME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the kernel's own")]
pub enum Scheduler {
    Rr,
    Wrr,
    Lc,
    Wlc,
    Lblc,
    Lblcr,
    Dh,
    Sh,
    Sed,
    Nq,
    Fo,
    Ovf,
    Mh,
    Twos,
}

impl Scheduler {
    /// Whether there are [`SchedulerFlags`] of it.
    pub fn has_flags(self) -> bool {
        matches!(self, Self::Mh | Self::Sh)
    }
}

/// Flags of the hashing schedulers `mh` and `sh` (kernel `IP_VS_SVC_F_SCHED_{MH,SH}_{FALLBACK,PORT}`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchedulerFlags {
    /// Choose another destination where the hashed one takes no connections (`mh-fallback`, `sh-fallback`).
    pub fallback: bool,
    /// Hash the client's port too (`mh-port`, `sh-port`).
    pub port: bool,
}

impl SchedulerFlags {
    /// `ipvsadm`'s names of them.
    pub fn names(self, scheduler: Scheduler) -> Vec<&'static str> {
        let (fallback, port) = match scheduler {
            Scheduler::Sh => ("sh-fallback", "sh-port"),
            _ => ("mh-fallback", "mh-port"),
        };
        [(self.fallback, fallback), (self.port, port)]
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect()
    }
}

/// How a director hands a packet to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Forwarding {
    /// Encapsulated to the endpoint, for whom an agent accepts (this node's own pods included).
    Tunnel,
    /// This node takes the tunnelled packet itself and rewrites it both ways.
    Nat,
    /// As [`Self::Nat`], which is better for these clients; but an agent accepts for the endpoint, so that it is tunnelled to
    /// where this node cannot rewrite.
    #[serde(rename = "nat")]
    NatOrTunnel,
    /// The endpoint's address is this node's own: IPVS rewrites, since it does not encapsulate to itself.
    Masquerade,
}

impl Forwarding {
    /// Whether this node shall rewrite.
    pub fn is_nat(self) -> bool {
        matches!(self, Self::Nat | Self::NatOrTunnel)
    }
}

/// One endpoint behind a virtual server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The endpoint's own address (the kernel may be given another that stands for it).
    pub address: IpAddr,
    /// The target port.
    pub port: u16,
    /// How this node reaches it.
    pub forwarding: Forwarding,
    /// What packets in a tunnel to it are wrapped in.
    pub encapsulation: Encapsulation,
    /// 0: no new connections, established ones go on.
    pub weight: u32,
    /// The endpoint's node, where known.
    pub node: Option<Arc<str>>,
    /// The endpoint is being deleted, whether or not it still gets connections: once it leaves the plan, it is gone.
    pub terminating: bool,
}

/// A virtual server: one VIP, protocol and port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// What it listens on.
    pub vip: VipPort,
    /// Whose it is.
    pub service: ServiceName,
    /// Name of the Service port; `None` where it has none.
    pub service_port: Option<Arc<str>>,
    /// Where the address came from.
    pub kind: VipKind,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// Its flags.
    pub scheduler_flags: SchedulerFlags,
    /// IPVS persistence in seconds (session affinity without `mh`).
    pub persistence: Option<u32>,
    /// Sorted by address, then port, without duplicates: the canonical order, equal on every director.
    pub destinations: Vec<Destination>,
    /// The destinations of clients within the cluster (this node itself and [`NodeState::cluster_clients`]) where these
    /// get others, or the same by other means: `externalTrafficPolicy: Local` binds only what comes from outside, and so does
    /// `services.forwarding.external`. In the same order.
    pub internal: Option<Vec<Destination>>,
    /// No destination takes connections, and packets are dropped, not refused: a traffic policy keeps this node from using
    /// the endpoints that there are. Destinations that drain may be there all the same.
    pub drops: bool,
}

impl VirtualServer {
    /// Whether clients from outside may open connections.
    pub fn takes_connections(&self) -> bool {
        self.destinations.iter().any(|destination| destination.weight > 0)
    }
}

/// Where a tunnelled packet is taken in on behalf of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceptedIn {
    /// In the node's network namespace.
    Node,
    /// In the pod's own network namespace.
    Pod,
}

/// A tunnelled packet for `vip` that arrives for `endpoint`, an endpoint of this node, goes to `target_port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Acceptance {
    /// The endpoint's address.
    pub endpoint: IpAddr,
    /// The virtual server's address.
    pub vip: VipPort,
    /// The endpoint's port.
    pub target_port: u16,
    /// Where.
    pub accepted_in: AcceptedIn,
    /// The endpoint is being deleted: once no slice lists it, it is gone.
    pub terminating: bool,
}

/// On whose behalf a tunnelled packet is rewritten on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RewriteSide {
    /// Acceptance: as the endpoint's node, for packets of any director.
    Endpoint,
    /// *nat*: as the director, for packets of this node only.
    Director,
}

/// Key of a rewrite that the kernel must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RewriteKey {
    /// The endpoint's address.
    pub endpoint: IpAddr,
    /// Which side rewrites.
    pub side: RewriteSide,
    /// The inner packet's destination.
    pub vip: VipPort,
}

/// What the inner packet's destination becomes: the key's endpoint, and this port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rewrite {
    /// The endpoint's port.
    pub target_port: u16,
    /// `Pod` only ever with `RewriteSide::Endpoint`.
    pub accepted_in: AcceptedIn,
    /// The endpoint is this node's own, so that its reply passes this node anyhow and its source may stay.
    pub local: bool,
    /// The endpoint is being deleted: once the rewrite leaves the plan, it is gone, and not merely out of the Service.
    pub terminating: bool,
    /// The endpoint is tunnelled to where this rewrite cannot be made ([`Forwarding::NatOrTunnel`]).
    pub dispensable: bool,
}

/// Why a prefix is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the contract's own")]
pub enum AnnouncementKind {
    ClusterIP,
    ExternalIP,
    LoadBalancerIP,
    PodCIDR,
    Kernel,
    Aggregate,
}

impl AnnouncementKind {
    /// Whether packets for it are scheduled by this node: it is a VIP, or stands for some.
    pub fn leads_to_ipvs(self) -> bool {
        match self {
            Self::ClusterIP | Self::ExternalIP | Self::LoadBalancerIP | Self::Aggregate => true,
            Self::PodCIDR | Self::Kernel => false,
        }
    }

    /// What export policies know it by.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// A prefix to announce, with its path attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The prefix; a VIP is a host prefix.
    pub prefix: IpNet,
    /// Why.
    pub kind: AnnouncementKind,
    /// For whom, if a Service.
    pub service: Option<ServiceName>,
    /// A traffic policy `Local` binds it: only nodes with an endpoint of their own announce it.
    #[serde(default)]
    pub local: bool,
    /// Standard communities (RFC 1997).
    pub communities: BTreeSet<u32>,
    /// Large communities (RFC 8092).
    pub large_communities: BTreeSet<(u32, u32, u32)>,
    /// LOCAL_PREF to iBGP peers.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// How many more times the own ASN is prepended.
    pub as_path_prepend: u8,
}

/// Who may reach a load-balancer VIP port (`spec.loadBalancerSourceRanges`), of the VIP's family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRange {
    /// The restricted VIP and port.
    pub vip: VipPort,
    /// Everyone else is dropped; empty drops all.
    pub allow: BTreeSet<IpNet>,
}

/// A health-check node port to serve (`spec.healthCheckNodePort`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Whose.
    pub service: ServiceName,
    /// The node port.
    pub port: u16,
    /// Ready endpoints on this node; those that terminate do not count, though the fallback may use them, so that load
    /// balancers turn to other nodes.
    pub local_endpoints: usize,
}

/// How many Service ports have endpoints, but none that a `Local` policy allows on this node
/// (`kubeproxy_sync_proxy_rules_no_local_endpoints_total`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocalEndpoints {
    /// By `internalTrafficPolicy`.
    pub internal: ByFamily,
    /// By `externalTrafficPolicy`.
    pub external: ByFamily,
}

/// A count for each address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByFamily {
    /// Of IPv4.
    pub ipv4: u32,
    /// Of IPv6.
    pub ipv6: u32,
}

impl WithoutLocalEndpoints {
    /// Those among the virtual servers of one Service; of a port with several addresses one counts.
    pub(super) fn of(servers: &[VirtualServer]) -> Self {
        let key = |server: &VirtualServer| {
            let internal = server.kind == VipKind::ClusterIP;
            (internal, server.vip.address.is_ipv4(), server.service_port.clone())
        };
        let mut counts = Self::default();
        for (internal, is_ipv4, _) in
            servers.iter().filter(|server| server.drops).map(key).collect::<BTreeSet<_>>()
        {
            let of_policy = if internal { &mut counts.internal } else { &mut counts.external };
            *(if is_ipv4 { &mut of_policy.ipv4 } else { &mut of_policy.ipv6 }) += 1;
        }
        counts
    }

    /// All four, in one order.
    fn each(&mut self) -> [&mut u32; 4] {
        let Self { internal, external } = self;
        [&mut internal.ipv4, &mut internal.ipv6, &mut external.ipv4, &mut external.ipv6]
    }
}

impl AddAssign for WithoutLocalEndpoints {
    fn add_assign(&mut self, mut other: Self) {
        self.each().into_iter().zip(other.each()).for_each(|(count, other)| *count += *other);
    }
}

impl SubAssign for WithoutLocalEndpoints {
    fn sub_assign(&mut self, mut other: Self) {
        self.each().into_iter().zip(other.each()).for_each(|(count, other)| *count -= *other);
    }
}

/// Something a user should know about an object of theirs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Warning {
    /// Kind and name, for example `Service default/web`.
    pub object: String,
    /// A word for machines, CamelCase as in Kubernetes Events.
    pub reason: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
}

/// What one Service asks of this node. Every list is sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// Its virtual servers, those without destinations included.
    pub virtual_servers: Vec<VirtualServer>,
    /// What this node takes in for its own endpoints.
    pub acceptance: Vec<Acceptance>,
    /// Its prefixes.
    pub announcements: Vec<Announcement>,
    /// Its source restrictions.
    pub source_ranges: Vec<SourceRange>,
    /// Its health-check node port.
    pub health_check: Option<HealthCheck>,
    /// How many of its ports have endpoints on other nodes alone, where that matters.
    pub without_local_endpoints: WithoutLocalEndpoints,
    /// What its owner should know.
    pub warnings: Vec<Warning>,
}

/// What this node should be, apart from any one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// This node's own addresses (its Node object's), the first of each family being the primary one.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs of this node.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// Pod CIDRs of the other nodes, as far as their Nodes tell.
    pub remote_pod_cidrs: BTreeSet<IpNet>,
    /// Where clients within the cluster come from that this node serves: its own pods, and `services.clusterCIDRs`.
    pub cluster_clients: BTreeSet<IpNet>,
    /// Addresses of all nodes, this one included: the only permitted tunnel sources.
    pub tunnel_sources: BTreeSet<IpAddr>,
    /// Known service CIDRs: bound as one route each.
    pub service_cidrs: BTreeSet<IpNet>,
    /// Those of `announce.aggregate` that can be: what no Service has there is unreachable from here.
    pub aggregates: BTreeSet<IpNet>,
}

/// The whole desired state of this node: what all ServicePlans come to once conflicts are settled.
#[derive(Debug, Default)]
pub struct NodePlan {
    /// Node-wide state.
    pub node: NodeState,
    /// Every virtual server, those without destinations included (they are not for the kernel).
    pub virtual_servers: HashMap<VipPort, VirtualServer>,
    /// Everything this node rewrites: acceptance for its own endpoints, and *nat* as director.
    pub rewrites: HashMap<RewriteKey, Rewrite>,
    /// Every VIP that some virtual server listens on (NodePort addresses left out), with how many do.
    pub vips: BTreeMap<IpAddr, usize>,
    /// Every prefix to announce.
    pub announcements: BTreeMap<IpNet, Announcement>,
    /// Every source restriction.
    pub source_ranges: BTreeMap<VipPort, SourceRange>,
    /// How many Service ports have endpoints on other nodes alone, where that matters.
    pub without_local_endpoints: WithoutLocalEndpoints,
    /// Who asked for what, those included whom an older Service keeps from getting it.
    pub(crate) claims: Claims,
}

/// Which keys of a [`NodePlan`] a change touched: look each up to see whether it is new, changed or gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Services that were planned anew, and those whose conflicts with others came, changed or went: look up
    /// [`NodePlan::warnings_of`] and [`NodePlan::health_check_of`].
    pub services: BTreeSet<ServiceName>,
    /// [`NodePlan::node`] changed.
    pub node: bool,
    /// [`Planner::config`](super::Planner::config)'s `router` changed.
    pub router: bool,
    /// Touched virtual servers.
    pub virtual_servers: BTreeSet<VipPort>,
    /// Touched rewrites.
    pub rewrites: BTreeSet<RewriteKey>,
    /// VIPs that came or went.
    pub vips: BTreeSet<IpAddr>,
    /// Touched prefixes.
    pub announcements: BTreeSet<IpNet>,
    /// Touched source restrictions.
    pub source_ranges: BTreeSet<VipPort>,
}

impl Delta {
    /// Whether the plan is the same as before, though Services may have been planned anew.
    pub fn is_empty(&self) -> bool {
        let Self { services: _, node, router, virtual_servers, rewrites, vips, announcements, source_ranges } =
            self;
        !node
            && !router
            && virtual_servers.is_empty()
            && rewrites.is_empty()
            && vips.is_empty()
            && announcements.is_empty()
            && source_ranges.is_empty()
    }

    /// Adds what another change touched.
    pub fn merge(&mut self, other: Self) {
        let Self { services, node, router, virtual_servers, rewrites, vips, announcements, source_ranges } =
            other;
        self.services.extend(services);
        self.node |= node;
        self.router |= router;
        self.virtual_servers.extend(virtual_servers);
        self.rewrites.extend(rewrites);
        self.vips.extend(vips);
        self.announcements.extend(announcements);
        self.source_ranges.extend(source_ranges);
    }
}
