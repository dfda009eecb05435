//! What one Service asks of this node.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::model::{
    Acceptance, AcceptedIn, Announcement, AnnouncementKind, Destination, Forwarding, HealthCheck, Scheduler,
    SchedulerFlags, ServicePlan, SourceRange, VipKind, VipPort, VirtualServer, Warning,
};
use crate::cluster::{Accepts, Encapsulation, EndpointSlice, Service, ServicePort, TrafficPolicy};
use crate::config::{self, Communities, ServiceSettings};

/// What a plan depends on besides the Service and its slices.
#[derive(Clone, Copy, Debug)]
pub struct NodeContext<'a> {
    /// This node's name.
    pub node: &'a str,
    /// This node's own addresses.
    pub addresses: &'a [IpAddr],
    /// Those of them that node ports listen on.
    pub node_port_addresses: &'a [IpAddr],
    /// Addresses of all nodes, this one included: none of them can be a VIP.
    pub node_addresses: &'a BTreeSet<IpAddr>,
    /// Nodes where an agent accepts.
    pub accepting: &'a foldhash::HashMap<Arc<str>, Accepts>,
    /// This node's zone.
    pub zone: Option<&'a str>,
    /// This node announces no Services.
    pub excluded_from_load_balancers: bool,
    /// `services` of the config.
    pub services: &'a config::Services,
    /// `announce` of the config.
    pub announce: &'a config::Announce,
}

/// Plans one Service.
pub fn service(
    service: &Service,
    settings: &ServiceSettings,
    slices: &[&EndpointSlice],
    context: &NodeContext<'_>,
) -> ServicePlan {
    if service.skipped.is_some() {
        return ServicePlan::default();
    }
    let planner = Planner { service, settings, context };
    let mut plan = ServicePlan::default();
    let vips = planner.vips(&mut plan.warnings);
    for port in &service.ports {
        planner.port(port, &vips, slices, &mut plan);
    }
    plan.virtual_servers.sort_unstable_by_key(|server| (server.kind, server.vip));
    plan.acceptance.sort_unstable();
    plan.source_ranges.sort_unstable_by_key(|range| range.vip);
    plan.announcements = planner.announcements(&vips, &plan.virtual_servers);
    plan.health_check = planner.health_check(slices);
    planner.warn_of_unhonoured(&mut plan.warnings);
    plan.warnings.sort_unstable();
    plan.warnings.dedup();
    plan
}

struct Planner<'a> {
    service: &'a Service,
    settings: &'a ServiceSettings,
    context: &'a NodeContext<'a>,
}

/// An endpoint's target port, and whether it is to get connections.
#[derive(Clone, Copy)]
struct Target<'a> {
    port: u16,
    ready: bool,
    node: Option<&'a Arc<str>>,
}

impl<'a> Planner<'a> {
    /// The Service's virtual IPs, each once; an address in several fields is of the kind that restricts it most.
    fn vips(&self, warnings: &mut Vec<Warning>) -> BTreeMap<IpAddr, VipKind> {
        let mut vips = BTreeMap::new();
        for address in &self.service.external_ips {
            if self.context.services.external_ips.allow.iter().any(|net| net.contains(address)) {
                vips.insert(*address, VipKind::ExternalIP);
            } else {
                warnings.push(self.warning(
                    "ExternalIPNotAllowed",
                    format!(
                        "externalIPs: {address} is not within services.externalIPs.allow and not programmed: \
                         add it there, or remove it from the Service"
                    ),
                ));
            }
        }
        let class = self.service.load_balancer_class.as_deref();
        if class.is_none() || class == self.context.services.load_balancer_class.as_deref() {
            let bound = self.service.load_balancer_ips.iter().filter(|ip| !ip.proxied);
            vips.extend(bound.map(|ip| (ip.address, VipKind::LoadBalancerIP)));
        }
        vips.extend(self.service.cluster_ips.iter().map(|ip| (*ip, VipKind::ClusterIP)));
        vips.retain(|address, _| {
            let of_node = self.context.node_addresses.contains(address);
            if of_node {
                warnings.push(self.warning(
                    "AddressOfNode",
                    format!(
                        "{address} is a node's own address and not programmed: as a virtual IP it would cut \
                         the node off; take another address, or a node port"
                    ),
                ));
            }
            !of_node
        });
        vips
    }

    /// Plans one port of the Service at all its addresses.
    fn port(
        &self,
        port: &ServicePort,
        vips: &BTreeMap<IpAddr, VipKind>,
        slices: &[&EndpointSlice],
        plan: &mut ServicePlan,
    ) {
        let targets = self.targets(port, slices, &mut plan.warnings);
        let forwards_nat = self.forwarding() == Forwarding::Nat;
        for (&address, &kind) in vips {
            let vip = VipPort { address, port: port.port, protocol: port.protocol };
            if plan.virtual_servers.iter().any(|server| server.vip == vip) {
                continue; // The API server refuses two ports of the same number and protocol; a file may have them.
            }
            plan.virtual_servers.push(self.virtual_server(vip, kind, port, &targets));
            if !forwards_nat {
                plan.acceptance.extend(self.acceptance(vip, &targets));
            }
            if kind == VipKind::LoadBalancerIP && !self.service.source_ranges.is_empty() {
                let of_family = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4();
                let allow = self.service.source_ranges.iter().filter(of_family).copied().collect();
                plan.source_ranges.push(SourceRange { vip, allow });
            }
        }
        if let Some(node_port) = port.node_port {
            let addresses = self
                .context
                .node_port_addresses
                .iter()
                .filter(|address| self.service.has_family_of(**address));
            for &address in addresses {
                let vip = VipPort { address, port: node_port, protocol: port.protocol };
                plan.virtual_servers.push(self.virtual_server(vip, VipKind::NodePort, port, &targets));
            }
        }
    }

    /// The endpoints behind a port, by address; of two target ports at one address the lowest that gets connections.
    fn targets<'s>(
        &self,
        port: &ServicePort,
        slices: &[&'s EndpointSlice],
        warnings: &mut Vec<Warning>,
    ) -> BTreeMap<IpAddr, Target<'s>> {
        let mut targets: BTreeMap<IpAddr, Target<'s>> = BTreeMap::new();
        for slice in slices {
            let of_port = slice
                .ports
                .iter()
                .filter(|target| target.name == port.name && target.protocol == port.protocol);
            for target in of_port {
                for endpoint in &slice.endpoints {
                    let ready = endpoint.ready && !endpoint.terminating;
                    let new = Target { port: target.port, ready, node: endpoint.node.as_ref() };
                    let Some(known) = targets.get_mut(&endpoint.address) else {
                        targets.insert(endpoint.address, new);
                        continue;
                    };
                    if known.port != new.port && known.ready && new.ready {
                        let (kept, left) = (known.port.min(new.port), known.port.max(new.port));
                        warnings.push(self.warning(
                            "AmbiguousTargetPort",
                            format!(
                                "port {} ({}) has endpoint {} with target ports {kept} and {left}; only {kept} is \
                                 used: give each target port a Service port of its own",
                                port.port, port.protocol, endpoint.address
                            ),
                        ));
                    }
                    // The same choice whatever the order of the slices.
                    let rank = |target: &Target<'_>| (!target.ready, target.port, target.node.cloned());
                    if rank(&new) < rank(known) {
                        *known = new;
                    }
                }
            }
        }
        targets
    }

    fn virtual_server(
        &self,
        vip: VipPort,
        kind: VipKind,
        port: &ServicePort,
        targets: &BTreeMap<IpAddr, Target<'_>>,
    ) -> VirtualServer {
        let (scheduler, scheduler_flags) = self.scheduler(kind);
        VirtualServer {
            vip,
            service: self.service.name.clone(),
            service_port: port.name.clone(),
            kind,
            scheduler,
            scheduler_flags,
            persistence: self.service.client_ip_affinity.filter(|_| scheduler != Scheduler::Mh),
            destinations: targets
                .iter()
                .filter(|(address, target)| target.ready && address.is_ipv4() == vip.address.is_ipv4())
                .map(|(&address, target)| Destination {
                    address,
                    port: target.port,
                    forwarding: self.forwarding_to(address, target, kind),
                    encapsulation: Encapsulation::Ipip,
                    weight: 1,
                    node: target.node.cloned(),
                })
                .collect(),
            internal: None,
            drops: false,
        }
    }

    /// What this node takes in. Endpoints that get no new connections are among it: those of the directors may
    /// still have old ones to them.
    fn acceptance(
        &self,
        vip: VipPort,
        targets: &BTreeMap<IpAddr, Target<'_>>,
    ) -> impl Iterator<Item = Acceptance> {
        targets
            .iter()
            .filter(move |(address, target)| {
                address.is_ipv4() == vip.address.is_ipv4()
                    && (self.is_here(target) || self.context.addresses.contains(address))
            })
            .map(move |(&endpoint, target)| Acceptance {
                endpoint,
                vip,
                target_port: target.port,
                accepted_in: AcceptedIn::Node,
            })
    }

    fn is_here(&self, target: &Target<'_>) -> bool {
        target.node.is_some_and(|node| **node == *self.context.node)
    }

    fn forwarding(&self) -> Forwarding {
        self.settings.forwarding.unwrap_or(self.context.services.forwarding)
    }

    fn forwarding_to(&self, address: IpAddr, target: &Target<'_>, kind: VipKind) -> Forwarding {
        if self.context.addresses.contains(&address) {
            // IPVS does not encapsulate to itself.
            Forwarding::Masquerade
        } else if kind == VipKind::NodePort || self.forwarding() == Forwarding::Nat {
            Forwarding::Nat
        } else if self.is_here(target)
            || target.node.is_some_and(|node| self.context.accepting.contains_key(&**node))
        {
            Forwarding::Tunnel
        } else {
            Forwarding::Nat
        }
    }

    fn scheduler(&self, kind: VipKind) -> (Scheduler, SchedulerFlags) {
        let outside = match kind {
            VipKind::ExternalIP | VipKind::LoadBalancerIP => true,
            VipKind::ClusterIP => self.announces(kind),
            VipKind::NodePort => false,
        };
        let configured = &self.context.services.scheduler;
        let scheduler = self.settings.scheduler.unwrap_or(if outside {
            configured.external
        } else {
            configured.internal
        });
        let default = match scheduler {
            Scheduler::Mh => SchedulerFlags { fallback: true, port: true },
            _ => SchedulerFlags::default(),
        };
        let mut flags = match scheduler {
            Scheduler::Mh | Scheduler::Sh => self.settings.scheduler_flags.unwrap_or(default),
            _ => default,
        };
        if self.service.client_ip_affinity.is_some() {
            // A client keeps its endpoint if its port does not count.
            flags.port = false;
        }
        (scheduler, flags)
    }

    fn announces(&self, kind: VipKind) -> bool {
        let (own, general) = match kind {
            VipKind::ClusterIP => (self.settings.announce_cluster_ips, self.context.announce.cluster_ips),
            VipKind::ExternalIP => (self.settings.announce_external_ips, self.context.announce.external_ips),
            VipKind::LoadBalancerIP => {
                (self.settings.announce_load_balancer_ips, self.context.announce.load_balancer_ips)
            }
            VipKind::NodePort => return false,
        };
        own.unwrap_or(general)
    }

    /// A VIP that no endpoint stands behind at all is not announced.
    fn announcements(
        &self,
        vips: &BTreeMap<IpAddr, VipKind>,
        servers: &[VirtualServer],
    ) -> Vec<Announcement> {
        let works = |address: IpAddr| {
            servers.iter().any(|server| server.vip.address == address && !server.destinations.is_empty())
        };
        let mut announced =
            vips.iter().filter(|(address, kind)| self.announces(**kind) && works(**address)).peekable();
        if announced.peek().is_none() {
            return Vec::new();
        }
        let Communities { standard, large } = self.communities();
        announced
            .filter_map(|(address, kind)| {
                let kind = match kind {
                    VipKind::ClusterIP => AnnouncementKind::ClusterIP,
                    VipKind::ExternalIP => AnnouncementKind::ExternalIP,
                    VipKind::LoadBalancerIP => AnnouncementKind::LoadBalancerIP,
                    VipKind::NodePort => return None,
                };
                Some(Announcement {
                    prefix: IpNet::from(*address),
                    kind,
                    service: Some(self.service.name.clone()),
                    communities: standard.clone(),
                    large_communities: large.clone(),
                    local_pref: self.settings.local_pref,
                    med: self.settings.med,
                    as_path_prepend: self
                        .settings
                        .path_prepend
                        .unwrap_or_default()
                        .saturating_add(self.context.announce.path_prepend),
                })
            })
            .collect()
    }

    fn communities(&self) -> Communities {
        let mut communities = self.context.announce.communities.clone();
        if let Some(own) = &self.settings.communities {
            communities.extend(own);
        }
        communities
    }

    /// Counts as kube-proxy does: local endpoints that are told to be ready, those that terminate included (they are
    /// ready only with `publishNotReadyAddresses`).
    fn health_check(&self, slices: &[&EndpointSlice]) -> Option<HealthCheck> {
        let port = self.service.health_check_node_port?;
        let here: HashSet<IpAddr> = slices
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.ready)
            .filter(|endpoint| endpoint.node.as_deref() == Some(self.context.node))
            .map(|endpoint| endpoint.address)
            .collect();
        // A pod of both families is one endpoint.
        let ipv4 = here.iter().filter(|address| address.is_ipv4()).count();
        let local_endpoints = ipv4.max(here.len() - ipv4);
        Some(HealthCheck { service: self.service.name.clone(), port, local_endpoints })
    }

    fn warn_of_unhonoured(&self, warnings: &mut Vec<Warning>) {
        let Service { external_traffic_policy, internal_traffic_policy, traffic_distribution, ports, .. } =
            self.service;
        let reached_from_outside = ports.iter().any(|port| port.node_port.is_some())
            || !self.service.external_ips.is_empty()
            || !self.service.load_balancer_ips.is_empty();
        let mut warn = |field: &str| {
            warnings.push(self.warning(
                "NotYetHonoured",
                format!("{field} is not acted on by this version: endpoints of all nodes are used"),
            ));
        };
        if *external_traffic_policy == TrafficPolicy::Local && reached_from_outside {
            warn("externalTrafficPolicy: Local");
        }
        if *internal_traffic_policy == TrafficPolicy::Local {
            warn("internalTrafficPolicy: Local");
        }
        if traffic_distribution.is_some() {
            warn("trafficDistribution");
        }
    }

    fn warning(&self, reason: &'static str, message: String) -> Warning {
        Warning { object: format!("Service {}", self.service.name), reason, message }
    }
}
