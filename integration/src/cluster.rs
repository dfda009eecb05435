//! The cluster as its agents see it: Services, EndpointSlices and Nodes, as objects and as manifests.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheave::cluster::{ACCEPTS_ANNOTATION, Protocol};

use crate::fabric::addresses::{self, Family};
use crate::fabric::{Node, Pod};

/// The namespace of all Services of the lab.
pub const NAMESPACE: &str = "default";

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its protocol.
    pub protocol: Protocol,
    /// The Service port.
    pub port: u16,
    /// The endpoints' port.
    pub target: u16,
    /// The NodePort, if it has one.
    pub node_port: Option<u16>,
}

/// What an EndpointSlice says of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Ready and serving.
    #[default]
    Ready,
    /// Neither.
    NotReady,
    /// Being deleted, and still serving.
    Terminating,
    /// Being deleted, and not serving any more.
    Ended,
    /// Told to be ready while it is being deleted: the Service has `publishNotReadyAddresses`.
    Published,
}

impl Condition {
    fn object(self) -> Value {
        let serving = matches!(self, Self::Ready | Self::Terminating);
        let terminating = matches!(self, Self::Terminating | Self::Ended | Self::Published);
        let ready = matches!(self, Self::Ready | Self::Published);
        json!({"ready": ready, "serving": serving, "terminating": terminating})
    }
}

/// An endpoint: its address in each family, its node if it has one, and its condition.
#[derive(Clone, Debug)]
pub struct Endpoint {
    addresses: [IpAddr; 2],
    node: Option<String>,
    condition: Condition,
    hints: Value,
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        let node = char::from(b'a' + pod.node - 1);
        Self {
            addresses: Family::BOTH.map(|family| pod.address(family)),
            node: Some(format!("node-{node}")),
            condition: Condition::Ready,
            hints: Value::Null,
        }
    }
}

/// A hostNetwork endpoint.
impl From<&Node> for Endpoint {
    fn from(node: &Node) -> Self {
        Self {
            addresses: Family::BOTH.map(|family| node.address(family)),
            node: Some(node.name.clone()),
            condition: Condition::Ready,
            hints: Value::Null,
        }
    }
}

impl Endpoint {
    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        self.addresses[usize::from(family == Family::V6)]
    }

    /// The host outside the cluster.
    pub fn external() -> Self {
        Self {
            addresses: Family::BOTH.map(addresses::external),
            node: None,
            condition: Condition::Ready,
            hints: Value::Null,
        }
    }

    /// The same in this condition.
    pub fn condition(self, condition: Condition) -> Self {
        Self { condition, ..self }
    }

    /// With hints for these zones and these nodes (none: without that field).
    pub fn hints(mut self, zones: &[&str], nodes: &[&str]) -> Self {
        for (field, names) in [("forZones", zones), ("forNodes", nodes)] {
            if !names.is_empty() {
                self.hints[field] = names.iter().map(|name| json!({"name": name})).collect();
            }
        }
        self
    }
}

/// A dual-stack Service of type LoadBalancer with its endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, in namespace [`NAMESPACE`].
    pub name: String,
    /// The number its addresses are made from.
    pub number: u8,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    affinity: bool,
    external_ips: Vec<IpAddr>,
    health_check: Option<u16>,
    metadata: Value,
    spec: Value,
    ingress: Option<Vec<Value>>,
}

impl Service {
    /// One without ports and endpoints.
    pub fn new(name: &str, number: u8) -> Self {
        Self {
            name: name.to_owned(),
            number,
            ports: Vec::new(),
            endpoints: Vec::new(),
            affinity: false,
            external_ips: Vec::new(),
            health_check: None,
            metadata: json!({}),
            spec: json!({}),
            ingress: None,
        }
    }

    /// Adds a port.
    pub fn port(mut self, protocol: Protocol, port: u16, target: u16) -> Self {
        self.ports.push(Port { protocol, port, target, node_port: None });
        self
    }

    /// Adds TCP, UDP and SCTP on the same port number.
    pub fn all_protocols(self, port: u16, target: u16) -> Self {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .fold(self, |s, protocol| s.port(protocol, port, target))
    }

    /// Gives its ports this NodePort (each protocol has its own port space).
    pub fn node_port(mut self, node_port: u16) -> Self {
        self.ports.iter_mut().for_each(|port| port.node_port = Some(node_port));
        self
    }

    /// Sets its endpoints.
    pub fn endpoints<E: Into<Endpoint>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// Takes all its endpoints away.
    pub fn without_endpoints(mut self) -> Self {
        self.endpoints.clear();
        self
    }

    /// How many endpoints get new connections: those that are ready, else those that terminate and still serve.
    pub fn usable(&self) -> usize {
        let count =
            |condition| self.endpoints.iter().filter(|endpoint| endpoint.condition == condition).count();
        match count(Condition::Ready) + count(Condition::Published) {
            0 => count(Condition::Terminating),
            ready => ready,
        }
    }

    /// Sets `sessionAffinity: None`.
    pub fn without_affinity(mut self) -> Self {
        self.affinity = false;
        self
    }

    /// Sets `sessionAffinity: ClientIP`.
    pub fn affinity(mut self) -> Self {
        self.affinity = true;
        self
    }

    /// Adds one of `externalIPs`.
    pub fn external_ip(mut self, address: IpAddr) -> Self {
        self.external_ips.push(address);
        self
    }

    /// Sets its `status.loadBalancer.ingress`, whatever it was.
    pub fn ingress(mut self, ingress: Vec<Value>) -> Self {
        self.ingress = Some(ingress);
        self
    }

    /// Sets a field of its `spec`, whatever it was.
    pub fn spec(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.spec[field] = value.into();
        self
    }

    /// Sets a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.metadata["labels"][key] = value.into();
        self
    }

    /// Sets an annotation.
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.metadata["annotations"][key] = value.into();
        self
    }

    /// Sets `externalTrafficPolicy: Local` with this `healthCheckNodePort`.
    pub fn health_check(mut self, node_port: u16) -> Self {
        self.health_check = Some(node_port);
        self
    }

    /// Its announced load-balancer IP.
    pub fn vip(&self, family: Family) -> IpAddr {
        addresses::external_vip(family, self.number)
    }

    /// That of both families.
    pub fn vips(&self) -> [IpAddr; 2] {
        Family::BOTH.map(|family| self.vip(family))
    }

    /// Its cluster IP.
    pub fn cluster_ip(&self, family: Family) -> IpAddr {
        addresses::cluster_ip(family, self.number)
    }

    /// The Service and its EndpointSlices.
    pub fn objects(&self) -> Vec<Value> {
        let port_name = |port: &Port| format!("{}-{}", port.protocol, port.port).to_lowercase();
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| {
                let mut value = json!({"name": port_name(port), "protocol": port.protocol, "port": port.port, "targetPort": port.target});
                if let Some(node_port) = port.node_port {
                    value["nodePort"] = node_port.into();
                }
                value
            })
            .collect();
        let ips = |of: fn(&Self, Family) -> IpAddr| Family::BOTH.map(|family| of(self, family).to_string());
        let ingress = ips(Self::vip).map(|ip| json!({"ip": ip, "ipMode": "VIP"}));
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": self.name, "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z", "uid": self.name},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "clusterIP": ips(Self::cluster_ip)[0],
                "clusterIPs": ips(Self::cluster_ip), "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
                "externalIPs": self.external_ips,
                "sessionAffinity": if self.affinity { "ClientIP" } else { "None" }, "ports": ports},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        if let Some(port) = self.health_check {
            service["spec"]["externalTrafficPolicy"] = "Local".into();
            service["spec"]["healthCheckNodePort"] = port.into();
        }
        if let Some(ingress) = &self.ingress {
            service["status"]["loadBalancer"]["ingress"] = ingress.clone().into();
        }
        for (part, changes) in [("metadata", &self.metadata), ("spec", &self.spec)] {
            for (field, value) in changes.as_object().into_iter().flatten() {
                service[part][field] = value.clone();
            }
        }
        let slices = Family::BOTH.iter().enumerate().map(|(index, family)| {
            let endpoints: Vec<Value> = self
                .endpoints
                .iter()
                .map(|endpoint| {
                    let mut value = json!({"addresses": [endpoint.addresses[index]],
                        "conditions": endpoint.condition.object()});
                    if let Some(node) = &endpoint.node {
                        value["nodeName"] = node.as_str().into();
                    }
                    if !endpoint.hints.is_null() {
                        value["hints"] = endpoint.hints.clone();
                    }
                    value
                })
                .collect();
            let ports: Vec<Value> = self
                .ports
                .iter()
                .map(|port| json!({"name": port_name(port), "protocol": port.protocol, "port": port.target}))
                .collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family.to_string(),
                "metadata": {"name": format!("{}-{}", self.name, family.to_string().to_lowercase()), "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": self.name}},
                "endpoints": endpoints, "ports": ports,
            })
        });
        std::iter::once(service).chain(slices).collect()
    }
}

/// A Node as its cluster has it.
pub fn node_object(node: &Node, annotations: &BTreeMap<&str, &str>) -> Value {
    let addresses = Family::BOTH.map(|family| json!({"type": "InternalIP", "address": node.address(family)}));
    let cidrs = Family::BOTH.map(|family| addresses::pod_cidr(family, node.number));
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "annotations": annotations},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}, "status": {"addresses": addresses}})
}

/// A directory of manifests that agents watch.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    nodes: RefCell<Vec<Value>>,
}

impl Manifests {
    /// Makes the directory, with the Nodes in it.
    pub fn create(dir: PathBuf, nodes: &[Node]) -> Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let annotations = [(ACCEPTS_ANNOTATION, "ipip")].into();
        let nodes: Vec<Value> = nodes.iter().map(|node| node_object(node, &annotations)).collect();
        let manifests = Self { dir, nodes: nodes.into() };
        manifests.write("nodes", &manifests.nodes.borrow())?;
        Ok(manifests)
    }

    /// Changes a Node.
    pub fn change_node(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes.iter_mut().find(|node| node["metadata"]["name"] == name);
        change(node.with_context(|| format!("no Node {name}"))?);
        self.write("nodes", &nodes)
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes or replaces a Service with its EndpointSlices, in one step.
    pub fn apply(&self, service: &Service) -> Result<()> {
        self.write(&service.name, &service.objects())
    }

    /// Removes a Service and its EndpointSlices.
    pub fn remove(&self, service: &Service) -> Result<()> {
        let path = self.dir.join(format!("{}.yaml", service.name));
        std::fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    fn write(&self, name: &str, documents: &[Value]) -> Result<()> {
        let text: Vec<String> = documents.iter().map(|document| format!("{document:#}\n")).collect();
        let path = self.dir.join(format!("{name}.yaml"));
        let draft = self.dir.with_extension("draft");
        std::fs::write(&draft, text.join("---\n"))
            .and_then(|()| std::fs::rename(&draft, &path))
            .with_context(|| path.display().to_string())
    }
}
