//! What one Service asks of this node.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoints::{EndpointUse, Endpoints, Listed, Sets, same_family};
use super::model::{
    Acceptance, AcceptedIn, Destination, Forwarding, HealthCheck, Scheduler, SchedulerFlags, ServicePlan,
    SourceRange, VipKind, VipPort, VirtualServer, Warning, WithoutLocalEndpoints,
};
use crate::cluster::{Accepts, Encapsulation, Endpoint, EndpointSlice, Service, ServicePort, TrafficPolicy};
use crate::config::{self, ForwardingTo, ServiceSettings};

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
    let planner = ServicePlanner { service, settings, context };
    let mut plan = ServicePlan::default();
    let vips = planner.vips(&mut plan.warnings);
    planner.for_each_listener(&vips, slices, |listener| {
        let vip = listener.vip;
        plan.virtual_servers.push(planner.virtual_server(listener));
        plan.acceptance.extend(planner.acceptance(listener));
        plan.warnings.extend(planner.ambiguities(listener));
        if listener.kind == VipKind::LoadBalancerIP && !service.source_ranges.is_empty() {
            let of_family = |net: &&IpNet| same_family(net.addr(), vip.address);
            let allow = service.source_ranges.iter().filter(of_family).copied().collect();
            plan.source_ranges.push(SourceRange { vip, allow });
        }
    });
    plan.virtual_servers.sort_unstable_by_key(|server| (server.kind, server.vip));
    plan.acceptance.sort_unstable();
    plan.source_ranges.sort_unstable_by_key(|range| range.vip);
    plan.announcements = planner.announcements(&vips, &plan.virtual_servers);
    plan.health_check = planner.health_check(slices);
    plan.without_local_endpoints = WithoutLocalEndpoints::of(&plan.virtual_servers);
    plan.warnings.extend(planner.ignored(&plan.virtual_servers));
    plan.warnings.sort_unstable();
    plan.warnings.dedup();
    plan
}

/// Plans one Service on one node.
#[derive(Clone, Copy)]
pub(super) struct ServicePlanner<'a> {
    pub(super) service: &'a Service,
    pub(super) settings: &'a ServiceSettings,
    pub(super) context: &'a NodeContext<'a>,
}

/// Whose connections: traffic policies and `services.forwarding` tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clients {
    /// Outside of the cluster.
    External,
    /// This node itself, its pods, and `services.clusterCIDRs`.
    Internal,
}

/// A virtual server to be, and what stands behind it.
pub(super) struct Listener<'l> {
    pub(super) vip: VipPort,
    pub(super) kind: VipKind,
    pub(super) port: &'l ServicePort,
    /// What clients from outside may get.
    pub(super) policy: TrafficPolicy,
    /// Of both families.
    pub(super) endpoints: &'l Endpoints<'l>,
    /// Of the VIP's family.
    pub(super) sets: &'l Sets<'l>,
}

impl Listener<'_> {
    /// What an endpoint of the VIP's family is to clients from outside.
    pub(super) fn outside(&self, endpoint: &Endpoint) -> EndpointUse {
        match self.policy {
            TrafficPolicy::Cluster => self.sets.in_cluster(endpoint),
            TrafficPolicy::Local => self.sets.in_local(endpoint),
        }
    }

    /// What it is to clients within the cluster: `externalTrafficPolicy` does not bind them, and what
    /// `internalTrafficPolicy` binds is the ClusterIP alone.
    pub(super) fn inside(&self, endpoint: &Endpoint) -> EndpointUse {
        match self.kind {
            VipKind::ClusterIP => self.outside(endpoint),
            VipKind::ExternalIP | VipKind::LoadBalancerIP | VipKind::NodePort => {
                self.sets.in_cluster(endpoint)
            }
        }
    }

    fn used_by(&self, clients: Clients, endpoint: &Endpoint) -> EndpointUse {
        match clients {
            Clients::External => self.outside(endpoint),
            Clients::Internal => self.inside(endpoint),
        }
    }

    fn listed(&self) -> impl Iterator<Item = &Listed<'_>> {
        self.endpoints.of_family(self.vip.address)
    }
}

impl ServicePlanner<'_> {
    /// The Service's virtual IPs, each once; an address in several fields is of the kind that restricts it most.
    pub(super) fn vips(&self, warnings: &mut Vec<Warning>) -> BTreeMap<IpAddr, VipKind> {
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
        // No endpoint is of a family that the Service has not: what goes there is left to who translates it.
        vips.retain(|address, _| self.service.has_family_of(*address));
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

    /// Visits everything that the Service's ports listen on, each once.
    pub(super) fn for_each_listener(
        &self,
        vips: &BTreeMap<IpAddr, VipKind>,
        slices: &[&EndpointSlice],
        mut visit: impl FnMut(&Listener<'_>),
    ) {
        let NodeContext { node, zone, node_port_addresses, .. } = *self.context;
        // The API server refuses two ports of the same number and protocol; a file may have them.
        let mut seen = HashSet::new();
        for port in &self.service.ports {
            let endpoints = Endpoints::list(port, slices);
            let sets = |family: IpAddr| {
                Sets::new(endpoints.of_family(family).map(|listed| listed.endpoint), node, zone)
            };
            let (ipv4, ipv6) = (sets(Ipv4Addr::UNSPECIFIED.into()), sets(Ipv6Addr::UNSPECIFIED.into()));
            let at_vips = vips.iter().map(|(&address, &kind)| (address, port.port, kind));
            let at_node = port.node_port.into_iter().flat_map(|node_port| {
                let of_family = |address: &&IpAddr| self.service.has_family_of(**address);
                let addresses = node_port_addresses.iter().filter(of_family);
                addresses.map(move |&address| (address, node_port, VipKind::NodePort))
            });
            for (address, number, kind) in at_vips.chain(at_node) {
                let vip = VipPort { address, port: number, protocol: port.protocol };
                if seen.insert(vip) {
                    let sets = if address.is_ipv4() { &ipv4 } else { &ipv6 };
                    let policy = self.policy(kind);
                    visit(&Listener { vip, kind, port, policy, endpoints: &endpoints, sets });
                }
            }
        }
    }

    /// The traffic policy that binds clients from outside. kube-router's annotation stands for both.
    pub(super) fn policy(&self, kind: VipKind) -> TrafficPolicy {
        match kind {
            _ if self.settings.local == Some(true) => TrafficPolicy::Local,
            VipKind::ClusterIP => self.service.internal_traffic_policy,
            VipKind::ExternalIP | VipKind::LoadBalancerIP | VipKind::NodePort => {
                self.service.external_traffic_policy
            }
        }
    }

    fn virtual_server(&self, listener: &Listener<'_>) -> VirtualServer {
        let &Listener { vip, kind, port, policy, sets, .. } = listener;
        let (scheduler, scheduler_flags) = self.scheduler(kind);
        let clients = self.clients(kind);
        let destinations = self.destinations(listener, clients);
        let forwarding = self.forwarding();
        let binds_outside_alone = policy == TrafficPolicy::Local && kind != VipKind::ClusterIP;
        let differs = binds_outside_alone || forwarding.internal != forwarding.external;
        VirtualServer {
            vip,
            service: self.service.name.clone(),
            service_port: port.name.clone(),
            kind,
            scheduler,
            scheduler_flags,
            persistence: self.service.client_ip_affinity.filter(|_| scheduler != Scheduler::Mh),
            internal: (clients == Clients::External && differs)
                .then(|| self.destinations(listener, Clients::Internal))
                .filter(|internal| *internal != destinations),
            destinations,
            drops: policy == TrafficPolicy::Local && sets.has_any() && !sets.has_local(),
        }
    }

    /// In canonical order, as the endpoints are. Destinations are most of what a plan holds: no room is left over.
    fn destinations(&self, listener: &Listener<'_>, clients: Clients) -> Vec<Destination> {
        let of_listed = |listed| self.destination(listener, listed, clients);
        let mut destinations: Vec<_> = listener.listed().filter_map(of_listed).collect();
        destinations.shrink_to_fit();
        destinations
    }

    /// `None` where these clients do not get the endpoint.
    pub(super) fn destination(
        &self,
        listener: &Listener<'_>,
        listed: &Listed<'_>,
        clients: Clients,
    ) -> Option<Destination> {
        let weight = listener.used_by(clients, listed.endpoint).weight()?;
        let Endpoint { address, node, terminating, .. } = listed.endpoint;
        let forwarding = self.forwarding_to(listed.endpoint, listener.kind, clients);
        let accepts = node.as_ref().and_then(|node| self.context.accepting.get(node));
        let gue = self.context.services.encapsulation == Encapsulation::Gue
            && matches!(forwarding, Forwarding::Tunnel | Forwarding::NatOrTunnel)
            && !self.is_here(listed.endpoint)
            && self.acceptance_of(listed.endpoint) == AcceptedIn::Node
            && accepts.is_some_and(|accepts| accepts.gue);
        Some(Destination {
            address: *address,
            port: listed.port,
            forwarding,
            encapsulation: if gue { Encapsulation::Gue } else { Encapsulation::Ipip },
            weight,
            node: node.clone(),
            terminating: *terminating,
        })
    }

    /// What this node takes in. Endpoints that get no new connections are among it: those of the directors may
    /// still have old ones to them.
    fn acceptance(&self, listener: &Listener<'_>) -> impl Iterator<Item = Acceptance> {
        listener.listed().filter_map(|listed| {
            Some(Acceptance {
                endpoint: listed.endpoint.address,
                vip: listener.vip,
                target_port: listed.port,
                accepted_in: self.accepted_in(listed.endpoint, listener.kind)?,
                terminating: listed.endpoint.terminating,
            })
        })
    }

    /// Where this node takes in packets of any director for an endpoint: nowhere if it is not this node's, or if its Service is not
    /// tunnelled to. What the config says of that is this node's alone, while directors change to another one by one. A pod with the host's network has no namespace of its own.
    pub(super) fn accepted_in(&self, endpoint: &Endpoint, kind: VipKind) -> Option<AcceptedIn> {
        let on_own_address = self.context.addresses.contains(&endpoint.address);
        if kind == VipKind::NodePort
            || self.settings.forwarding == Some(Forwarding::Nat)
            || !(on_own_address || self.is_here(endpoint))
        {
            None
        } else if self.forwarding() == Forwarding::Nat.into() {
            Some(AcceptedIn::Node)
        } else {
            Some(self.acceptance_of(endpoint))
        }
    }

    /// What takes in packets for an endpoint, on whichever node it is. A pod that does so itself takes IP in IP alone.
    fn acceptance_of(&self, endpoint: &Endpoint) -> AcceptedIn {
        let Endpoint { address, .. } = endpoint;
        if self.context.node_addresses.contains(address) || self.context.addresses.contains(address) {
            AcceptedIn::Node
        } else {
            self.settings.acceptance.unwrap_or(self.context.services.acceptance)
        }
    }

    fn ambiguities(&self, listener: &Listener<'_>) -> impl Iterator<Item = Warning> {
        let port = listener.port;
        listener.endpoints.ambiguous().map(move |(address, used, other)| {
            self.warning(
                "AmbiguousTargetPort",
                format!(
                    "port {} ({}) has endpoint {address} with target ports {used} and {other}; only {used} is \
                     used: give each target port a Service port of its own",
                    port.port, port.protocol
                ),
            )
        })
    }

    /// What the Service asks for and cannot have, given what else is in force for it.
    fn ignored(&self, servers: &[VirtualServer]) -> impl Iterator<Item = Warning> {
        let asks_for_pods = self.settings.acceptance == Some(AcceptedIn::Pod);
        let acceptance = (asks_for_pods && self.forwarding() == Forwarding::Nat.into() && !servers.is_empty()).then(|| {
            self.warning(
                "AcceptanceIgnored",
                "acceptance `pod` (sheave.io/acceptance, or kube-router.io/service.dsr: tunnel) has no meaning with \
                 forwarding `nat`, by which nothing is tunnelled: remove it, or set sheave.io/forwarding: tunnel"
                    .into(),
            )
        });
        let asks_for_flags =
            self.settings.scheduler_flags.is_some_and(|flags| flags != SchedulerFlags::default());
        let without = servers.first().filter(|_| servers.iter().all(|server| !server.scheduler.has_flags()));
        let flags = without.filter(|_| asks_for_flags).map(|server| {
            let scheduler = format!("{:?}", server.scheduler).to_lowercase();
            self.warning(
                "SchedulerFlagsIgnored",
                format!(
                    "sheave.io/scheduler-flags (or kube-router.io/service.schedflags): scheduler {scheduler} has no flags: \
                     remove them, or set sheave.io/scheduler to mh or sh"
                ),
            )
        });
        acceptance.into_iter().chain(flags)
    }

    fn is_here(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.context.node)
    }

    /// What is asked for: by the Service's annotation for all its clients, else by the config.
    fn forwarding(&self) -> ForwardingTo {
        self.settings.forwarding.map_or(self.context.services.forwarding, Into::into)
    }

    fn forwarding_to(&self, endpoint: &Endpoint, kind: VipKind, clients: Clients) -> Forwarding {
        let ForwardingTo { external, internal } = self.forwarding();
        let asked = if clients == Clients::External { external } else { internal };
        let accepted = self.is_here(endpoint)
            || endpoint.node.as_ref().is_some_and(|node| self.context.accepting.contains_key(node));
        if self.context.addresses.contains(&endpoint.address) {
            // IPVS does not encapsulate to itself.
            Forwarding::Masquerade
        } else if kind == VipKind::NodePort || !accepted {
            Forwarding::Nat
        } else if asked == Forwarding::Nat && external == Forwarding::Tunnel {
            Forwarding::NatOrTunnel
        } else {
            asked
        }
    }

    /// For whom [`VirtualServer::destinations`] are: a cluster IP that is not announced is known within the cluster alone.
    pub(super) fn clients(&self, kind: VipKind) -> Clients {
        if kind == VipKind::ClusterIP && !self.announces(kind) {
            Clients::Internal
        } else {
            Clients::External
        }
    }

    fn scheduler(&self, kind: VipKind) -> (Scheduler, SchedulerFlags) {
        let outside = kind != VipKind::NodePort && self.clients(kind) == Clients::External;
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
            _ if scheduler.has_flags() => self.settings.scheduler_flags.unwrap_or(default),
            _ => default,
        };
        if self.service.client_ip_affinity.is_some() {
            // A client keeps its endpoint if its port does not count.
            flags.port = false;
        }
        (scheduler, flags)
    }

    /// Counts as kube-proxy does: local endpoints that are told to be ready, those that terminate included (they are
    /// ready only with `publishNotReadyAddresses`).
    fn health_check(&self, slices: &[&EndpointSlice]) -> Option<HealthCheck> {
        let port = self.service.health_check_node_port?;
        let here: HashSet<IpAddr> = slices
            .iter()
            .filter(|slice| !slice.ports.is_empty())
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.ready && self.is_here(endpoint))
            .map(|endpoint| endpoint.address)
            .collect();
        // A pod of both families is one endpoint.
        let ipv4 = here.iter().filter(|address| address.is_ipv4()).count();
        let local_endpoints = ipv4.max(here.len() - ipv4);
        Some(HealthCheck { service: self.service.name.clone(), port, local_endpoints })
    }

    fn warning(&self, reason: &'static str, message: String) -> Warning {
        Warning { object: format!("Service {}", self.service.name), reason, message }
    }
}
