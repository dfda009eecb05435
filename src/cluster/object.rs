//! The objects Sheave works on: of each Kubernetes object only what a plan depends on, already parsed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::wire::null_default;
use super::{Protocol, ServiceName};

/// The annotations that concern Sheave: those of `sheave.io/` and `kube-router.io/`.
pub type Annotations = BTreeMap<Arc<str>, Arc<str>>;

/// Why a Service is none of our business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// `clusterIP: None`, or label `service.kubernetes.io/headless`.
    Headless,
    /// `type: ExternalName`.
    ExternalName,
    /// Label `service.kubernetes.io/service-proxy-name` names another proxy.
    OtherProxy,
}

/// `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// `spec.trafficDistribution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// `PreferSameZone`, and its older name `PreferClose`.
    PreferSameZone,
    /// `PreferSameNode`.
    PreferSameNode,
}

/// One of `status.loadBalancer.ingress` that has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBalancerIp {
    /// The address.
    pub address: IpAddr,
    /// `ipMode: Proxy`: packets arrive at the node's own address, so the address is not to be bound.
    pub proxied: bool,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; `None` where it has none.
    pub name: Option<Arc<str>>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port at the VIPs.
    pub port: u16,
    /// The port at the nodes' own addresses, where there is one.
    pub node_port: Option<u16>,
}

/// A Service (core/v1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// `metadata.creationTimestamp`; of two Services that claim the same, the older one has it.
    pub created: Option<SystemTime>,
    /// Its annotations.
    pub annotations: Annotations,
    /// Set if it is to be left alone.
    pub skipped: Option<Skipped>,
    /// `spec.clusterIPs`; none where headless.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`, hostnames left out; only where `type: LoadBalancer`.
    pub load_balancer_ips: Vec<LoadBalancerIp>,
    /// `spec.loadBalancerClass`.
    pub load_balancer_class: Option<Arc<str>>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<IpNet>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub client_ip_affinity: Option<u32>,
    /// `spec.externalTrafficPolicy`.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
}

impl Service {
    /// Whether it has an address family, as its cluster IPs tell; one without cluster IPs has both.
    pub fn has_family_of(&self, address: IpAddr) -> bool {
        self.cluster_ips.is_empty() || self.cluster_ips.iter().any(|ip| ip.is_ipv4() == address.is_ipv4())
    }
}

/// Namespace and name of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name within the namespace.
    pub name: Arc<str>,
}

/// `hints` of an endpoint: for whom it is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones`.
    pub zones: Vec<Arc<str>>,
    /// `forNodes`.
    pub nodes: Vec<Arc<str>>,
}

/// One of an EndpointSlice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of its addresses; Kubernetes defines no meaning for more.
    pub address: IpAddr,
    /// `conditions.ready`; unknown means ready.
    pub ready: bool,
    /// `conditions.serving`; unknown means serving.
    pub serving: bool,
    /// `conditions.terminating`; unknown means no.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints`; boxed because most have none.
    pub hints: Option<Box<Hints>>,
}

/// One of an EndpointSlice's `ports` that has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name of the Service port that it belongs to.
    pub name: Option<Arc<str>>,
    /// The protocol.
    pub protocol: Protocol,
    /// The target port.
    pub port: u16,
}

/// An EndpointSlice (discovery.k8s.io/v1) that belongs to a Service; one of type FQDN has no endpoints here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its name.
    pub name: SliceName,
    /// The Service that its label `kubernetes.io/service-name` names; without one nobody uses it.
    pub service: Option<ServiceName>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Its ports.
    pub ports: Vec<EndpointPort>,
}

/// A Node (core/v1).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its annotations.
    pub annotations: Annotations,
    /// Its InternalIPs, then its ExternalIPs, each in the order of `status.addresses`.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Taint `ToBeDeletedByClusterAutoscaler`.
    pub to_be_deleted: bool,
    /// Label `node.kubernetes.io/exclude-from-external-load-balancers`, whatever its value.
    #[serde(default)]
    pub excluded_from_load_balancers: bool,
    /// `spec.taints`.
    #[serde(default)]
    pub taints: Vec<Taint>,
}

/// One of a Node's taints; prints as `kubectl` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Its key.
    pub key: Arc<str>,
    /// Its value; most have none.
    #[serde(default, deserialize_with = "null_default")]
    pub value: Arc<str>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    #[serde(default, deserialize_with = "null_default")]
    pub effect: Arc<str>,
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, effect } = self;
        let equals = if value.is_empty() { "" } else { "=" };
        write!(f, "{key}{equals}{value}:{effect}")
    }
}

/// How a director wraps packets for an endpoint's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encapsulation {
    /// IP in IP, protocol 4 and 41.
    Ipip,
    /// Generic UDP Encapsulation.
    Gue,
}

/// What an agent takes in for the endpoints of its node, as [`ACCEPTS_ANNOTATION`] tells: IP in IP always. What takes in more is
/// greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Accepts {
    /// Generic UDP Encapsulation too.
    pub gue: bool,
}

impl Accepts {
    /// The value of [`ACCEPTS_ANNOTATION`] that says so.
    pub const fn annotation(self) -> &'static str {
        if self.gue { "ipip,gue" } else { "ipip" }
    }
}

/// A ServiceCIDR (networking.k8s.io/v1): ranges that cluster IPs are taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}

/// Written by a node's agent on its own Node once it takes in tunnelled packets for its endpoints.
pub const ACCEPTS_ANNOTATION: &str = "sheave.io/accepts";

/// Of annotations only the names: a value may hold a password (kube-router's do).
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            annotations,
            addresses,
            pod_cidrs,
            zone,
            deleting,
            to_be_deleted,
            excluded_from_load_balancers,
            taints,
        } = self;
        f.debug_struct("Node")
            .field("name", name)
            .field("annotations", &annotations.keys().collect::<Vec<_>>())
            .field("addresses", addresses)
            .field("pod_cidrs", pod_cidrs)
            .field("zone", zone)
            .field("deleting", deleting)
            .field("to_be_deleted", to_be_deleted)
            .field("excluded_from_load_balancers", excluded_from_load_balancers)
            .field("taints", taints)
            .finish()
    }
}

impl Node {
    /// What an agent accepts there, if there is one: [`ACCEPTS_ANNOTATION`] lists encapsulations, separated by commas.
    pub fn accepts(&self) -> Option<Accepts> {
        let value = self.annotations.get(ACCEPTS_ANNOTATION)?;
        let none = matches!(&**value, "" | "false" | "none");
        (!none).then(|| Accepts { gue: value.split(',').any(|name| name.trim() == "gue") })
    }
}
