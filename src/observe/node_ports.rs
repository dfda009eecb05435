//! Health-check node ports (`spec.healthCheckNodePort`): external load balancers ask there whether this node has
//! endpoints of a Service.
//!
//! As kube-proxy's: 200 where there are, and this node's forwarding is healthy; 503 otherwise.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde::Serialize;
use tokio::runtime::Handle;

use super::health::Health;
use super::http::{Page, Server, Site};
use crate::cluster::ServiceName;
use crate::plan::{HealthCheck, Warning};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// All health-check node ports of this node.
pub struct HealthCheckNodePorts {
    runtime: Handle,
    health: Arc<Health>,
    /// Where each port is served.
    addresses: Vec<IpAddr>,
    ports: BTreeMap<ServiceName, Port>,
}

/// That of one Service.
struct Port {
    number: u16,
    local_endpoints: Arc<AtomicUsize>,
    servers: Vec<Server>,
}

impl HealthCheckNodePorts {
    /// None yet, on all addresses. `runtime` serves them.
    pub fn new(runtime: Handle, health: Arc<Health>) -> Self {
        let addresses = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
        Self { runtime, health, addresses, ports: BTreeMap::new() }
    }

    /// Serves them on these addresses from now on; an unspecified one means all.
    pub fn listen_on(&mut self, addresses: Vec<IpAddr>) {
        if addresses == self.addresses {
            return;
        }
        self.addresses = addresses;
        let Self { runtime, health, addresses, ports } = self;
        for (service, port) in ports {
            // The old ones first: one of them may be on an address of the new ones.
            port.servers.clear();
            port.servers = serve(runtime, health, addresses, service, port.number, &port.local_endpoints);
        }
    }

    /// Makes a Service's port what the plan says.
    pub fn set(&mut self, service: &ServiceName, wanted: Option<&HealthCheck>) {
        let Some(wanted) = wanted else {
            self.ports.remove(service);
            return;
        };
        match self.ports.get(service) {
            Some(port) if port.number == wanted.port => {
                port.local_endpoints.store(wanted.local_endpoints, Ordering::Relaxed);
            }
            _ => {
                self.ports.remove(service);
                let endpoints = Arc::new(AtomicUsize::new(wanted.local_endpoints));
                let servers =
                    serve(&self.runtime, &self.health, &self.addresses, service, wanted.port, &endpoints);
                let port = Port { number: wanted.port, local_endpoints: endpoints, servers };
                self.ports.insert(service.clone(), port);
            }
        }
    }

    /// Which of them cannot be served, and why.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        self.ports.iter().filter_map(|(service, port)| {
            let (address, why) = port
                .servers
                .iter()
                .find_map(|server| server.problem().map(|problem| (server.address(), problem)))?;
            Some(Warning {
                object: format!("Service {service}"),
                reason: "FailedToStartServiceHealthcheck",
                message: format!(
                    "healthCheckNodePort {address}: {why}; load balancers take this node for one without endpoints"
                ),
            })
        })
    }

    /// How many Services have one.
    pub fn len(&self) -> usize {
        self.ports.len()
    }
}

fn serve(
    runtime: &Handle,
    health: &Arc<Health>,
    addresses: &[IpAddr],
    service: &ServiceName,
    port: u16,
    local_endpoints: &Arc<AtomicUsize>,
) -> Vec<Server> {
    let site = Arc::new(ServiceSite {
        service: service.clone(),
        local_endpoints: Arc::clone(local_endpoints),
        health: Arc::clone(health),
    });
    addresses
        .iter()
        .map(|address| {
            let what = format!("health check of Service {service}");
            Server::start(runtime, what, SocketAddr::new(*address, port), Arc::clone(&site))
        })
        .collect()
}

struct ServiceSite {
    service: ServiceName,
    local_endpoints: Arc<AtomicUsize>,
    health: Arc<Health>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Site for ServiceSite {
    /// The same at every path, as load balancers differ in which they ask for.
    async fn page(&self, _path: &str) -> Option<Page> {
        let local_endpoints = self.local_endpoints.load(Ordering::Relaxed);
        let service_proxy_healthy = self.health.is_healthy(Instant::now()) && !self.health.is_draining();
        let status = if local_endpoints > 0 && service_proxy_healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let service = Name { namespace: &self.service.namespace, name: &self.service.name };
        let report = Report { service, local_endpoints, service_proxy_healthy };
        // Strings and numbers always serialize.
        let mut page = Page::json(status, serde_json::to_string_pretty(&report).unwrap_or_default());
        page.headers.push((WEIGHT, HeaderValue::from(local_endpoints)));
        Some(page)
    }
}

#[cfg(test)]
#[path = "node_ports_tests.rs"]
mod tests;
