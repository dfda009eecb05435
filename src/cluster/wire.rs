//! Kubernetes objects as they are written, in JSON or YAML, and what becomes of them.
//!
//! Only the fields that are needed, the rest is skipped unread. Values are parsed while reading, so that an error
//! has its place in the file.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::ip;
use super::object::{
    Annotations, Endpoint, EndpointPort, EndpointSlice, Hints, LoadBalancerIp, Node, Service, ServiceCidr,
    ServicePort, Skipped, SliceName, Taint, TrafficDistribution, TrafficPolicy,
};
use super::{Protocol, ServiceName};

/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const CLIENT_IP_TIMEOUT: u32 = 10_800;

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Where nothing is said, `kubectl apply` would put the object there.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// `metadata` of any object.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Arc<str>,
    #[serde(default)]
    namespace: Option<Arc<str>>,
    #[serde(default, deserialize_with = "timestamp")]
    creation_timestamp: Option<SystemTime>,
    #[serde(default)]
    deletion_timestamp: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "null_default")]
    labels: Kept<Labels>,
    #[serde(default, deserialize_with = "null_default")]
    annotations: Kept<Ours>,
}

impl Metadata {
    fn namespace(&self) -> Arc<str> {
        self.namespace.clone().unwrap_or_else(|| Arc::from(DEFAULT_NAMESPACE))
    }
}

/// Which keys of a string map are kept.
trait Filter {
    fn keeps(key: &str) -> bool;
}

struct Labels;

impl Filter for Labels {
    fn keeps(key: &str) -> bool {
        matches!(key, SERVICE_NAME_LABEL | PROXY_NAME_LABEL | HEADLESS_LABEL | ZONE_LABEL | EXCLUDE_LABEL)
    }
}

struct Ours;

impl Filter for Ours {
    fn keeps(key: &str) -> bool {
        key.starts_with("sheave.io/") || key.starts_with("kube-router.io/")
    }
}

/// A string map of which only some keys are kept.
struct Kept<F>(Annotations, PhantomData<F>);

impl<F> Default for Kept<F> {
    fn default() -> Self {
        Self(Annotations::new(), PhantomData)
    }
}

impl<'de, F: Filter> Deserialize<'de> for Kept<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<F>(PhantomData<F>);
        impl<'de, F: Filter> Visitor<'de> for Entries<F> {
            type Value = Kept<F>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut kept = Kept::default();
                while let Some(key) = map.next_key::<Arc<str>>()? {
                    if F::keeps(&key) {
                        kept.0.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(kept)
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// `null` is as good as nothing.
pub(super) fn null_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

fn timestamp<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SystemTime>, D::Error> {
    Option::<String>::deserialize(d)?
        .map(|text| {
            humantime::parse_rfc3339(&text).map_err(|_| {
                D::Error::custom(format_args!(
                    "`{text}` is not a UTC time (RFC 3339) such as 2026-01-31T12:00:00Z"
                ))
            })
        })
        .transpose()
}

/// Of `clusterIPs` and the like: `None` and the empty string are no addresses.
enum ClusterIp {
    Address(IpAddr),
    Headless,
    Unset,
}

impl<'de> Deserialize<'de> for ClusterIp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match &*String::deserialize(d)? {
            "None" => Ok(Self::Headless),
            "" => Ok(Self::Unset),
            text => address(text).map(Self::Address),
        }
    }
}

fn address<E: serde::de::Error>(text: &str) -> Result<IpAddr, E> {
    ip::address(text).ok_or_else(|| E::custom(format_args!("`{text}` is not an IP address")))
}

/// An address that may also be absent or empty.
#[derive(Default)]
struct MaybeAddress(Option<IpAddr>);

impl<'de> Deserialize<'de> for MaybeAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Option::<String>::deserialize(d)?.as_deref() {
            None | Some("") => Ok(Self(None)),
            Some(text) => address(text).map(|ip| Self(Some(ip))),
        }
    }
}

struct Address(IpAddr);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        address(&String::deserialize(d)?).map(Self)
    }
}

/// An address of an endpoint; host names are told apart by a letter or hyphen outside of an IPv6 address.
struct AddressOrName(Option<IpAddr>);

impl<'de> Deserialize<'de> for AddressOrName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if !text.contains(':') && text.contains(|c: char| c.is_ascii_alphabetic() || c == '-') {
            return Ok(Self(None));
        }
        address(&text).map(|ip| Self(Some(ip)))
    }
}

/// A CIDR, spaces around it allowed as the API server allows them, host bits cleared.
struct Cidr(IpNet);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        ip::cidr(text.trim())
            .map(Self)
            .ok_or_else(|| D::Error::custom(format_args!("`{text}` is not a CIDR such as 10.0.0.0/8")))
    }
}

/// A port of 1 to 65535.
struct Port(u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match u16::deserialize(d)? {
            0 => Err(D::Error::custom("0 is not a port: expected 1 to 65535")),
            port => Ok(Self(port)),
        }
    }
}

/// Kubernetes writes 0 or nothing where there is no node port.
fn optional_port<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u16>, D::Error> {
    Ok(Option::<u16>::deserialize(d)?.filter(|port| *port != 0))
}

/// An absent name and an empty one are the same.
fn name<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Arc<str>>, D::Error> {
    Ok(Option::<Arc<str>>::deserialize(d)?.filter(|name| !name.is_empty()))
}

/// A Service as written.
#[derive(serde::Deserialize)]
pub(super) struct WireService {
    metadata: Metadata,
    spec: ServiceSpec,
    #[serde(default, deserialize_with = "null_default")]
    status: ServiceStatus,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(default, rename = "type", deserialize_with = "null_default")]
    type_: ServiceType,
    #[serde(default, rename = "clusterIP")]
    cluster_ip: Option<ClusterIp>,
    #[serde(default, rename = "clusterIPs", deserialize_with = "null_default")]
    cluster_ips: Vec<ClusterIp>,
    #[serde(default, rename = "externalIPs", deserialize_with = "null_default")]
    external_ips: Vec<Address>,
    #[serde(default)]
    load_balancer_class: Option<Arc<str>>,
    #[serde(default, deserialize_with = "null_default")]
    load_balancer_source_ranges: Vec<Cidr>,
    #[serde(default, deserialize_with = "null_default")]
    ports: Vec<WireServicePort>,
    #[serde(default, deserialize_with = "null_default")]
    session_affinity: SessionAffinity,
    #[serde(default, deserialize_with = "null_default")]
    session_affinity_config: SessionAffinityConfig,
    #[serde(default, deserialize_with = "null_default")]
    external_traffic_policy: WirePolicy,
    #[serde(default, deserialize_with = "null_default")]
    internal_traffic_policy: WirePolicy,
    #[serde(default)]
    traffic_distribution: Option<String>,
    #[serde(default, deserialize_with = "optional_port")]
    health_check_node_port: Option<u16>,
}

#[derive(Default, PartialEq, serde::Deserialize)]
enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Default, PartialEq, serde::Deserialize)]
enum SessionAffinity {
    #[default]
    None,
    ClientIP,
}

#[derive(Default, serde::Deserialize)]
struct SessionAffinityConfig {
    #[serde(default, rename = "clientIP", deserialize_with = "null_default")]
    client_ip: ClientIpConfig,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIpConfig {
    timeout_seconds: Option<u32>,
}

#[derive(Default, serde::Deserialize)]
enum WirePolicy {
    #[default]
    #[serde(alias = "")]
    Cluster,
    Local,
}

impl From<WirePolicy> for TrafficPolicy {
    fn from(policy: WirePolicy) -> Self {
        match policy {
            WirePolicy::Cluster => Self::Cluster,
            WirePolicy::Local => Self::Local,
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireServicePort {
    #[serde(default, deserialize_with = "name")]
    name: Option<Arc<str>>,
    #[serde(default, deserialize_with = "null_default")]
    protocol: Protocol,
    port: Port,
    #[serde(default, deserialize_with = "optional_port")]
    node_port: Option<u16>,
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus {
    #[serde(default, deserialize_with = "null_default")]
    load_balancer: LoadBalancerStatus,
}

#[derive(Default, serde::Deserialize)]
struct LoadBalancerStatus {
    #[serde(default, deserialize_with = "null_default")]
    ingress: Vec<Ingress>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    #[serde(default)]
    ip: MaybeAddress,
    #[serde(default)]
    ip_mode: Option<IpMode>,
}

#[derive(PartialEq, serde::Deserialize)]
enum IpMode {
    #[serde(rename = "VIP")]
    Vip,
    Proxy,
}

impl TryFrom<WireService> for Service {
    type Error = &'static str;

    fn try_from(WireService { metadata, spec, status }: WireService) -> Result<Self, Self::Error> {
        let cluster_ips = if spec.cluster_ips.is_empty() {
            spec.cluster_ip.into_iter().collect()
        } else {
            spec.cluster_ips
        };
        let skipped = if spec.type_ == ServiceType::ExternalName {
            Some(Skipped::ExternalName)
        } else if cluster_ips.iter().any(|ip| matches!(ip, ClusterIp::Headless))
            || metadata.labels.0.contains_key(HEADLESS_LABEL)
        {
            Some(Skipped::Headless)
        } else if metadata.labels.0.contains_key(PROXY_NAME_LABEL) {
            Some(Skipped::OtherProxy)
        } else {
            None
        };
        if skipped.is_none() && spec.ports.is_empty() {
            // The API server refuses it; half a file may look like it.
            return Err("spec.ports is missing: a Service has at least one port, unless it is headless");
        }
        let has_node_ports = matches!(spec.type_, ServiceType::NodePort | ServiceType::LoadBalancer);
        let ingress =
            if spec.type_ == ServiceType::LoadBalancer { status.load_balancer.ingress } else { Vec::new() };
        Ok(Self {
            name: ServiceName { namespace: metadata.namespace(), name: metadata.name },
            created: metadata.creation_timestamp,
            annotations: metadata.annotations.0,
            skipped,
            cluster_ips: cluster_ips
                .into_iter()
                .filter_map(|ip| match ip {
                    ClusterIp::Address(address) => Some(address),
                    ClusterIp::Headless | ClusterIp::Unset => None,
                })
                .collect(),
            external_ips: spec.external_ips.into_iter().map(|Address(ip)| ip).collect(),
            load_balancer_ips: ingress
                .into_iter()
                .filter_map(|Ingress { ip: MaybeAddress(ip), ip_mode }| {
                    ip.map(|address| LoadBalancerIp { address, proxied: ip_mode == Some(IpMode::Proxy) })
                })
                .collect(),
            load_balancer_class: spec.load_balancer_class,
            source_ranges: spec.load_balancer_source_ranges.into_iter().map(|Cidr(net)| net).collect(),
            ports: spec
                .ports
                .into_iter()
                .map(|WireServicePort { name, protocol, port: Port(port), node_port }| ServicePort {
                    name,
                    protocol,
                    port,
                    node_port: node_port.filter(|_| has_node_ports),
                })
                .collect(),
            client_ip_affinity: (spec.session_affinity == SessionAffinity::ClientIP)
                .then(|| spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(CLIENT_IP_TIMEOUT)),
            external_traffic_policy: spec.external_traffic_policy.into(),
            internal_traffic_policy: spec.internal_traffic_policy.into(),
            traffic_distribution: spec.traffic_distribution.and_then(|text| match &*text {
                "PreferSameZone" | "PreferClose" => Some(TrafficDistribution::PreferSameZone),
                "PreferSameNode" => Some(TrafficDistribution::PreferSameNode),
                _ => None,
            }),
            health_check_node_port: spec.health_check_node_port,
        })
    }
}

/// An EndpointSlice as written.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireEndpointSlice {
    metadata: Metadata,
    address_type: AddressType,
    #[serde(default, deserialize_with = "null_default")]
    endpoints: Vec<WireEndpoint>,
    #[serde(default, deserialize_with = "null_default")]
    ports: Vec<WireEndpointPort>,
}

#[derive(Clone, Copy, PartialEq, serde::Deserialize)]
enum AddressType {
    IPv4,
    IPv6,
    #[serde(rename = "FQDN")]
    Fqdn,
}

impl AddressType {
    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::IPv4 => address.is_ipv4(),
            Self::IPv6 => address.is_ipv6(),
            Self::Fqdn => false,
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEndpoint {
    #[serde(default, deserialize_with = "null_default")]
    addresses: Vec<AddressOrName>,
    #[serde(default, deserialize_with = "null_default")]
    conditions: Conditions,
    #[serde(default, deserialize_with = "name")]
    node_name: Option<Arc<str>>,
    #[serde(default)]
    hints: Option<WireHints>,
}

#[derive(Default, serde::Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireHints {
    #[serde(default, deserialize_with = "null_default")]
    for_zones: Vec<Named>,
    #[serde(default, deserialize_with = "null_default")]
    for_nodes: Vec<Named>,
}

#[derive(serde::Deserialize)]
struct Named {
    name: Arc<str>,
}

#[derive(serde::Deserialize)]
struct WireEndpointPort {
    #[serde(default, deserialize_with = "name")]
    name: Option<Arc<str>>,
    #[serde(default, deserialize_with = "null_default")]
    protocol: Protocol,
    #[serde(default, deserialize_with = "optional_port")]
    port: Option<u16>,
}

impl From<WireEndpointSlice> for EndpointSlice {
    fn from(WireEndpointSlice { metadata, address_type, endpoints, ports }: WireEndpointSlice) -> Self {
        let namespace = metadata.namespace();
        let names = |names: Vec<Named>| names.into_iter().map(|Named { name }| name).collect();
        Self {
            service: metadata
                .labels
                .0
                .get(SERVICE_NAME_LABEL)
                .map(|name| ServiceName { namespace: namespace.clone(), name: name.clone() }),
            name: SliceName { namespace, name: metadata.name },
            endpoints: endpoints
                .into_iter()
                .filter_map(|WireEndpoint { addresses, conditions, node_name, hints }| {
                    let address = addresses.into_iter().find_map(|AddressOrName(ip)| ip)?;
                    address_type.has(address).then(|| Endpoint {
                        address,
                        ready: conditions.ready.unwrap_or(true),
                        serving: conditions.serving.unwrap_or(true),
                        terminating: conditions.terminating.unwrap_or(false),
                        node: node_name,
                        hints: hints.map(|WireHints { for_zones, for_nodes }| {
                            Box::new(Hints { zones: names(for_zones), nodes: names(for_nodes) })
                        }),
                    })
                })
                .collect(),
            ports: ports
                .into_iter()
                .filter_map(|WireEndpointPort { name, protocol, port }| {
                    port.map(|port| EndpointPort { name, protocol, port })
                })
                .collect(),
        }
    }
}

/// A Node as written.
#[derive(serde::Deserialize)]
pub(super) struct WireNode {
    metadata: Metadata,
    #[serde(default, deserialize_with = "null_default")]
    spec: NodeSpec,
    #[serde(default, deserialize_with = "null_default")]
    status: NodeStatus,
}

#[derive(Default, serde::Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDR")]
    pod_cidr: Option<Cidr>,
    #[serde(default, rename = "podCIDRs", deserialize_with = "null_default")]
    pod_cidrs: Vec<Cidr>,
    #[serde(default, deserialize_with = "null_default")]
    taints: Vec<Taint>,
}

#[derive(Default, serde::Deserialize)]
struct NodeStatus {
    #[serde(default, deserialize_with = "null_default")]
    addresses: Vec<NodeAddress>,
}

#[derive(serde::Deserialize)]
struct WireNodeAddress {
    #[serde(rename = "type")]
    type_: String,
    address: String,
}

/// One of a Node's addresses; names and what newer kinds may be are left unread.
#[derive(serde::Deserialize)]
#[serde(try_from = "WireNodeAddress")]
enum NodeAddress {
    Internal(IpAddr),
    External(IpAddr),
    Other,
}

impl TryFrom<WireNodeAddress> for NodeAddress {
    type Error = serde::de::value::Error;

    fn try_from(WireNodeAddress { type_, address: text }: WireNodeAddress) -> Result<Self, Self::Error> {
        match &*type_ {
            "InternalIP" => address(&text).map(Self::Internal),
            "ExternalIP" => address(&text).map(Self::External),
            _ => Ok(Self::Other),
        }
    }
}

impl From<WireNode> for Node {
    fn from(WireNode { mut metadata, spec, status }: WireNode) -> Self {
        let (mut addresses, mut external) = (Vec::new(), Vec::new());
        for address in status.addresses {
            match address {
                NodeAddress::Internal(address) => addresses.push(address),
                NodeAddress::External(address) => external.push(address),
                NodeAddress::Other => {}
            }
        }
        addresses.append(&mut external);
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        let pod_cidrs =
            if spec.pod_cidrs.is_empty() { spec.pod_cidr.into_iter().collect() } else { spec.pod_cidrs };
        Self {
            excluded_from_load_balancers: metadata.labels.0.contains_key(EXCLUDE_LABEL),
            zone: metadata.labels.0.remove(ZONE_LABEL),
            name: metadata.name,
            annotations: metadata.annotations.0,
            addresses,
            pod_cidrs: pod_cidrs.into_iter().map(|Cidr(net)| net).collect(),
            deleting: metadata.deletion_timestamp.is_some(),
            to_be_deleted: spec.taints.iter().any(|taint| *taint.key == *TO_BE_DELETED_TAINT),
            taints: spec.taints,
        }
    }
}

/// A ServiceCIDR as written.
#[derive(serde::Deserialize)]
pub(super) struct WireServiceCidr {
    metadata: Metadata,
    #[serde(default, deserialize_with = "null_default")]
    spec: ServiceCidrSpec,
}

#[derive(Default, serde::Deserialize)]
struct ServiceCidrSpec {
    #[serde(default, deserialize_with = "null_default")]
    cidrs: Vec<Cidr>,
}

impl From<WireServiceCidr> for ServiceCidr {
    fn from(WireServiceCidr { metadata, spec }: WireServiceCidr) -> Self {
        Self { name: metadata.name, cidrs: spec.cidrs.into_iter().map(|Cidr(net)| net).collect() }
    }
}
