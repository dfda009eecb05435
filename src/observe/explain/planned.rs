//! The planned part of an explanation: what the planner answers, put into words.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sheave_bgp::{Community, ExportPolicy, LargeCommunity};

use super::near::{self, NotFound};
use super::text::attributes;
use super::{
    Announcement, Endpoint, Explanation, Forwarding, HealthCheck, LeftOut, Peer, Service, Target, Use,
    VirtualServer,
};
use crate::cluster::{self, Encapsulation, ServiceName, Skipped, TrafficDistribution, TrafficPolicy};
use crate::config::AddressFamily;
use crate::plan::{
    self, AcceptedIn, AnnouncementKind, ExplainedEndpoint, ExplainedServer, Planner, ServicePlan, Topology,
    VipKind, VipPort,
};

impl Explanation {
    /// Explains a target as planned, without kernel and sessions.
    ///
    /// # Errors
    /// [`NotFound`] with what is there instead.
    pub fn planned(planner: &Planner, target: &Target) -> Result<Self, NotFound> {
        let (name, only) = match target {
            Target::Service(name) => (name.clone(), None),
            Target::Address { address, protocol } => {
                (near::holder(planner, target, *address, *protocol)?, Some((*address, *protocol)))
            }
        };
        let (Some(service), Some(explained), Some(asked)) =
            (planner.index().service(&name), planner.explain(&name), planner.asked_by(&name))
        else {
            return Err(near::no_such_service(planner, &name));
        };
        let wanted = |vip: &VipPort| {
            only.is_none_or(|(address, protocol)| Target::vip_ports(address, protocol).any(|one| one == *vip))
        };
        let view = View { planner, name: &name, service, asked: &asked };
        let left_out = view.left_out().into_iter();
        let left_out = left_out.filter(|left| only.is_none_or(|(address, _)| address.ip() == left.address));
        let servers = explained.virtual_servers.iter().filter(|server| wanted(&server.vip));
        Ok(Self {
            target: target.to_string(),
            node: planner.node().into(),
            agent: None,
            service: Service {
                name: name.to_string(),
                skipped: explained.skipped.map(skipped),
                external_traffic_policy: policy_name(service.external_traffic_policy).into(),
                internal_traffic_policy: policy_name(service.internal_traffic_policy).into(),
                traffic_distribution: service.traffic_distribution.map(|distribution| {
                    match distribution {
                        TrafficDistribution::PreferSameZone => "PreferSameZone",
                        TrafficDistribution::PreferSameNode => "PreferSameNode",
                    }
                    .into()
                }),
                session_affinity_seconds: service.client_ip_affinity,
                left_out: left_out.collect(),
            },
            virtual_servers: servers.map(|server| view.server(server)).collect(),
            health_check: asked
                .health_check
                .map(|check| HealthCheck { port: check.port, local_endpoints: check.local_endpoints }),
            warnings: {
                let warnings: BTreeSet<_> = planner.plan().warnings_of(&name).collect();
                warnings
                    .into_iter()
                    .map(|warning| format!("{}: {}", warning.reason, warning.message))
                    .collect()
            },
            kernel: None,
        })
    }
}

/// A Service and what it asks of this node.
struct View<'a> {
    planner: &'a Planner,
    name: &'a ServiceName,
    service: &'a cluster::Service,
    asked: &'a ServicePlan,
}

impl View<'_> {
    /// Its addresses that are not bound.
    fn left_out(&self) -> Vec<LeftOut> {
        if self.service.skipped.is_some() {
            return Vec::new();
        }
        let services = &self.planner.config().services;
        let bound =
            |address: IpAddr| self.asked.virtual_servers.iter().any(|server| server.vip.address == address);
        let of_node = |address: &IpAddr| self.planner.plan().node.tunnel_sources.contains(address);
        let mut left_out = Vec::new();
        let mut leave = |address: IpAddr, why: String| {
            if !bound(address) {
                left_out.push(LeftOut { address, why });
            }
        };
        for address in &self.service.external_ips {
            leave(
                *address,
                if of_node(address) {
                    "external IP: it is a node's own address".into()
                } else if !services.external_ips.allow.iter().any(|net| net.contains(address)) {
                    "external IP: not within services.externalIPs.allow".into()
                } else {
                    "external IP: the Service is without this address family".into()
                },
            );
        }
        let class = self.service.load_balancer_class.as_deref();
        for ip in &self.service.load_balancer_ips {
            leave(
                ip.address,
                if class.is_some() && class != services.load_balancer_class.as_deref() {
                    format!(
                        "load-balancer IP: loadBalancerClass {} is not services.loadBalancerClass",
                        class.unwrap_or_default()
                    )
                } else if ip.proxied {
                    "load-balancer IP: ipMode Proxy, so that its packets arrive at a node's own address"
                        .into()
                } else if of_node(&ip.address) {
                    "load-balancer IP: it is a node's own address".into()
                } else {
                    "load-balancer IP: the Service is without this address family".into()
                },
            );
        }
        left_out.sort_unstable_by_key(|left| left.address);
        left_out
    }

    fn server(&self, explained: &ExplainedServer) -> VirtualServer {
        let &ExplainedServer { vip, kind, .. } = explained;
        let asked = self.asked.virtual_servers.iter().find(|server| server.vip == vip);
        let plan = self.planner.plan();
        let holder = plan.virtual_servers.get(&vip).map(|server| &server.service);
        let range = self.asked.source_ranges.iter().find(|range| range.vip == vip);
        VirtualServer {
            address: vip.address,
            port: vip.port,
            protocol: vip.protocol,
            kind: format!("{kind:?}"),
            service_port: explained.service_port.as_deref().map(str::to_owned),
            held_by: holder.filter(|holder| *holder != self.name).map(ToString::to_string),
            route: (kind != VipKind::NodePort).then(|| {
                let host = IpNet::from(vip.address);
                let cidr = plan.node.service_cidrs.iter().find(|cidr| cidr.contains(&host));
                cidr.unwrap_or(&host).to_string()
            }),
            source_ranges: range.map(|range| range.allow.iter().map(ToString::to_string).collect()),
            scheduler: asked
                .map(|server| format!("{:?}", server.scheduler).to_lowercase())
                .unwrap_or_default(),
            scheduler_flags: asked
                .map(|server| server.scheduler_flags.names(server.scheduler))
                .unwrap_or_default()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            persistence_seconds: asked.and_then(|server| server.persistence),
            policy: self.policy(explained),
            internal_differs: asked.is_some_and(|server| server.internal.is_some()),
            endpoints: explained.endpoints.iter().map(|endpoint| self.endpoint(endpoint, kind)).collect(),
            otherwise: if asked.is_some_and(|server| server.drops) { "dropped" } else { "refused" }.into(),
            announcement: self.announcement(vip, kind, asked),
        }
    }

    /// Which endpoints are chosen from, in words.
    fn policy(&self, explained: &ExplainedServer) -> String {
        let anywhere = match explained.topology {
            Topology::Anywhere => "endpoints of all nodes".to_owned(),
            Topology::SameNode => "endpoints meant for this node (hints.forNodes)".into(),
            Topology::SameZone => {
                let zone = self.planner.own_node().and_then(|node| node.zone.as_deref()).unwrap_or_default();
                format!("endpoints meant for zone {zone} (hints.forZones)")
            }
        };
        if explained.policy == TrafficPolicy::Cluster {
            return anywhere;
        }
        let by_annotation =
            self.planner.settings_of(self.name).is_some_and(|settings| settings.local == Some(true));
        let field = match explained.kind {
            _ if by_annotation => "annotation kube-router.io/service.local",
            VipKind::ClusterIP => "internalTrafficPolicy: Local",
            VipKind::ExternalIP | VipKind::LoadBalancerIP | VipKind::NodePort => {
                "externalTrafficPolicy: Local"
            }
        };
        match explained.kind {
            VipKind::ClusterIP => format!("endpoints of this node ({field})"),
            VipKind::ExternalIP | VipKind::LoadBalancerIP | VipKind::NodePort => {
                format!("endpoints of this node ({field}); for clients within the cluster among {anywhere}")
            }
        }
    }

    fn endpoint(&self, explained: &ExplainedEndpoint, kind: VipKind) -> Endpoint {
        let ExplainedEndpoint {
            address,
            port,
            node,
            slice,
            outside,
            inside,
            destination,
            internal,
            accepted_in,
        } = explained;
        let of =
            |to_client: &plan::EndpointUse| Use { weight: to_client.weight(), why: to_client.to_string() };
        let how = |to: &Option<plan::Destination>| to.as_ref().map(|to| self.forwarding(to, kind));
        let inside_alone = how(internal);
        let forwarding = how(destination).or_else(|| inside_alone.clone());
        Endpoint {
            address: *address,
            port: *port,
            node: node.as_deref().map(str::to_owned),
            slice: slice.name.to_string(),
            external: of(outside),
            internal: of(inside),
            internal_forwarding: inside_alone.filter(|internal| forwarding.as_ref() != Some(internal)),
            forwarding,
            accepted_in: accepted_in.map(|accepted_in| {
                match accepted_in {
                    AcceptedIn::Node => "node",
                    AcceptedIn::Pod => "pod",
                }
                .into()
            }),
        }
    }

    fn forwarding(&self, destination: &plan::Destination, kind: VipKind) -> Forwarding {
        let plan::Destination { forwarding, encapsulation, node, .. } = destination;
        let services = &self.planner.config().services;
        let here = node.as_deref() == Some(self.planner.node());
        let by_service = self.planner.settings_of(self.name).and_then(|settings| settings.forwarding);
        let accepted = here || node.as_ref().is_some_and(|node| self.planner.accepting().contains_key(node));
        let is_nat = |forwarding| forwarding == plan::Forwarding::Nat;
        let all_nat = by_service.map_or(services.forwarding == plan::Forwarding::Nat.into(), is_nat);
        let (method, why) = match forwarding {
            plan::Forwarding::Masquerade => (
                "masquerade",
                "its address is this node's own, and IPVS does not encapsulate to itself".to_owned(),
            ),
            plan::Forwarding::Tunnel if here => {
                ("tunnel", "looped back to this node's own tunnel device".into())
            }
            plan::Forwarding::Tunnel => {
                let node = node.as_deref().unwrap_or_default();
                let accepts = self.planner.accepting().get(node).copied().unwrap_or_default();
                let instead = *encapsulation == Encapsulation::Ipip
                    && services.encapsulation == Encapsulation::Gue
                    && !accepts.gue;
                let note = if instead { ", but not gue" } else { "" };
                ("tunnel", format!("the agent of {node} accepts{note}"))
            }
            plan::Forwarding::Nat => (
                "nat",
                match node {
                    _ if kind == VipKind::NodePort => {
                        "a node port: its reply must come from this node".into()
                    }
                    _ if all_nat && by_service.is_some() => "its annotation asks for nat".into(),
                    _ if all_nat => "services.forwarding is nat".into(),
                    _ if accepted => "services.forwarding.external is nat".into(),
                    Some(node) => format!("no agent accepts on {node}"),
                    None => "of no known node: nobody accepts for it".into(),
                },
            ),
            plan::Forwarding::NatOrTunnel => ("nat", "services.forwarding.internal is nat".into()),
        };
        Forwarding {
            method: method.into(),
            encapsulation: (*forwarding == plan::Forwarding::Tunnel).then(|| {
                match encapsulation {
                    Encapsulation::Ipip => "ipip",
                    Encapsulation::Gue => "gue",
                }
                .into()
            }),
            why,
        }
    }

    fn announcement(&self, vip: VipPort, kind: VipKind, asked: Option<&plan::VirtualServer>) -> Announcement {
        let prefix = IpNet::from(vip.address);
        let planned = self.planner.plan().announcements.get(&prefix);
        let own = planned.filter(|planned| planned.service.as_ref() == Some(self.name));
        let peers = &self.planner.config().router.peers;
        let table = self.planner.config().announce.export_table;
        let aggregate = self.planner.plan().aggregate_of(&prefix).filter(|_| own.is_some());
        let told = match aggregate {
            Some(aggregate) => Some((aggregate, AnnouncementKind::Aggregate)),
            None => own.map(|own| (own.prefix, own.kind)),
        };
        let why_not = match (own, planned) {
            (Some(_), _) if !self.planner.config().router.has_peers() && table.is_none() => {
                Some("there are no peers".into())
            }
            (Some(_), _) => None,
            (None, other) => Some(self.why_not_announced(vip, kind, asked, other)),
        };
        let carries = |families: &[AddressFamily]| {
            families.contains(if vip.address.is_ipv4() { &AddressFamily::Ipv4 } else { &AddressFamily::Ipv6 })
        };
        let peer = |peer: &crate::config::Peer| Peer {
            address: peer.address.ip().map_or_else(|| peer.name(), |address| address.to_string()),
            asn: peer.asn.number(self.planner.config().router.asn),
            with: changes(&peer.export),
            why_not: match told {
                _ if !carries(&peer.families) => Some(other_family(vip.address)),
                Some((prefix, kind)) if !peer.export.passes(&prefix, kind.number()) => Some(WITHHELD.into()),
                _ => None,
            },
        };
        let large = |&(global, data1, data2): &(u32, u32, u32)| LargeCommunity { global, data1, data2 };
        Announcement {
            prefix: own.map(|own| own.prefix.to_string()),
            aggregate: aggregate.map(|aggregate| aggregate.to_string()),
            table: table.filter(|_| own.is_some()),
            communities: own
                .into_iter()
                .flat_map(|own| &own.communities)
                .map(|one| Community(*one).to_string())
                .collect(),
            large_communities: own
                .into_iter()
                .flat_map(|own| &own.large_communities)
                .map(|one| large(one).to_string())
                .collect(),
            local_pref: own.and_then(|own| own.local_pref),
            med: own.and_then(|own| own.med),
            as_path_prepend: own.map_or(0, |own| own.as_path_prepend),
            why_not,
            peers: own.map(|_| peers.iter().map(peer).collect()).unwrap_or_default(),
        }
    }

    fn why_not_announced(
        &self,
        vip: VipPort,
        kind: VipKind,
        asked: Option<&plan::VirtualServer>,
        other: Option<&plan::Announcement>,
    ) -> String {
        let settings = self.planner.settings_of(self.name);
        let announce = &self.planner.config().announce;
        let (field, own, general) = match kind {
            VipKind::NodePort => return "a node port is at the node's own address".into(),
            VipKind::ClusterIP => {
                ("clusterIPs", settings.and_then(|own| own.announce_cluster_ips), announce.cluster_ips)
            }
            VipKind::ExternalIP => {
                ("externalIPs", settings.and_then(|own| own.announce_external_ips), announce.external_ips)
            }
            VipKind::LoadBalancerIP => (
                "loadBalancerIPs",
                settings.and_then(|own| own.announce_load_balancer_ips),
                announce.load_balancer_ips,
            ),
        };
        if own == Some(false) {
            return "its annotations say so".into();
        }
        if !own.unwrap_or(general) {
            return format!("announce.{field} is false");
        }
        if self.planner.own_node().is_some_and(|node| node.excluded_from_load_balancers) {
            return "label node.kubernetes.io/exclude-from-external-load-balancers of this node".into();
        }
        if let Some(other) = other.and_then(|other| other.service.as_ref()) {
            return format!("the older Service {other} announces it");
        }
        let of_address = |server: &&plan::VirtualServer| server.vip.address == vip.address;
        let mut servers = self.asked.virtual_servers.iter().filter(of_address);
        if !servers.clone().any(plan::VirtualServer::takes_connections) {
            let drops = asked.is_some_and(|server| server.drops) || servers.any(|server| server.drops);
            return if drops { "no endpoint on this node" } else { "no endpoint gets connections" }.into();
        }
        "older Services have the ports at this address".into()
    }
}

/// Why a peer is not told of what others are.
pub(super) const WITHHELD: &str = "its export policy";

/// What an export policy adds to routes, or says in place of what they have.
pub(super) fn changes(policy: &ExportPolicy) -> Vec<String> {
    let ExportPolicy { communities, large_communities, local_pref, med, as_path_prepend, .. } = policy;
    let communities = communities.iter().map(ToString::to_string);
    attributes(
        communities.chain(large_communities.iter().map(ToString::to_string)),
        *local_pref,
        *med,
        *as_path_prepend,
    )
}

/// Why a session cannot tell of an address.
pub(super) fn other_family(address: IpAddr) -> String {
    format!("without family {}", if address.is_ipv4() { "ipv4" } else { "ipv6" })
}

fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

fn skipped(why: Skipped) -> String {
    match why {
        Skipped::Headless => "it is headless: DNS gives its endpoints, and there is no virtual IP",
        Skipped::ExternalName => {
            "it is of type ExternalName: DNS gives another name, and there is no virtual IP"
        }
        Skipped::OtherProxy => "its label service.kubernetes.io/service-proxy-name names another proxy",
    }
    .into()
}
