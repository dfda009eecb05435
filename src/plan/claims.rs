//! Brings the plans of all Services together into one [`NodePlan`] and settles their conflicts.
//!
//! Two Services may claim the same address, port and protocol, or the same prefix: an external IP and a
//! load-balancer IP are whatever somebody wrote into a Service. The older Service has it, the others wait and are
//! told; when it goes, the next one takes over. What belongs to an address and port (rewrites, source ranges)
//! follows whoever has it.
//!
//! ```text
//!                    ┌── winner ──► NodePlan's maps
//! ServicePlan ─claim─┤
//!                    └── others ──► waiting ──(the winner goes)──► NodePlan's maps
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::AcceptedIn;
use super::aggregates::Aggregates;
use super::model::{
    Acceptance, Announcement, AnnouncementKind, Delta, Destination, Forwarding, HealthCheck, NodePlan,
    NodeState, Rewrite, RewriteKey, RewriteSide, ServicePlan, SourceRange, VipKind, VipPort, VirtualServer,
    Warning, WithoutLocalEndpoints,
};
use crate::cluster::ServiceName;

/// Who goes first: the older Service; one of unknown age last; then by name.
type Seniority<'a> = (bool, Option<SystemTime>, &'a ServiceName);

/// What stands behind a [`NodePlan`] and does not show in it.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// This node's name.
    node: Arc<str>,
    services: foldhash::HashMap<ServiceName, Held>,
    /// Endpoint-side rewrites by the virtual server they belong to, of those who have it.
    acceptance: foldhash::HashMap<VipPort, Vec<Acceptance>>,
    /// Those who do not have what they claim.
    waiting: foldhash::HashMap<VipPort, Vec<Claim>>,
    /// Everyone who would announce a prefix.
    prefixes: foldhash::HashMap<IpNet, Vec<Announcement>>,
    /// Node-wide prefixes.
    node_announcements: BTreeMap<IpNet, Announcement>,
    /// Prefixes that the kernel's tables have routes to.
    kernel_announcements: BTreeMap<IpNet, Announcement>,
    /// How many virtual servers of a VIP take connections; none that has none.
    open: foldhash::HashMap<IpAddr, usize>,
    aggregates: Aggregates,
}

/// What is known of a Service besides what is in the maps.
#[derive(Debug)]
struct Held {
    created: Option<SystemTime>,
    vip_ports: Box<[VipPort]>,
    prefixes: Box<[IpNet]>,
    /// Boxed because most have none.
    health_check: Option<Box<HealthCheck>>,
    without_local_endpoints: WithoutLocalEndpoints,
    warnings: Box<[Warning]>,
}

/// What a Service wants at one address and port.
#[derive(Debug, PartialEq)]
struct Claim {
    server: VirtualServer,
    acceptance: Vec<Acceptance>,
    source_range: Option<SourceRange>,
}

impl Claim {
    /// What the kernel must rewrite for it, as director and for this node's endpoints.
    fn rewrites<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (RewriteKey, Rewrite)> + 'a {
        let vip = self.server.vip;
        let VirtualServer { destinations, internal, .. } = &self.server;
        let key = |destination: &Destination| (destination.address, destination.port);
        let is_nat = |destination: &&Destination| destination.forwarding.is_nat();
        // Each once, as both lists are in the order of that key.
        let inside_alone = internal.iter().flatten().filter(is_nat).filter(move |destination| {
            let outside = destinations.binary_search_by_key(&key(destination), key).ok();
            !outside.and_then(|at| destinations.get(at)).is_some_and(|outside| outside.forwarding.is_nat())
        });
        let as_director = destinations.iter().filter(is_nat).chain(inside_alone).map(move |destination| {
            let key = RewriteKey { endpoint: destination.address, side: RewriteSide::Director, vip };
            let local = destination.node.as_deref() == Some(node);
            let rewrite = Rewrite {
                target_port: destination.port,
                accepted_in: AcceptedIn::Node,
                local,
                terminating: destination.terminating,
                dispensable: destination.forwarding == Forwarding::NatOrTunnel,
            };
            (key, rewrite)
        });
        let as_endpoint = self.acceptance.iter().map(move |acceptance| {
            let key = RewriteKey { endpoint: acceptance.endpoint, side: RewriteSide::Endpoint, vip };
            let Acceptance { target_port, accepted_in, terminating, .. } = *acceptance;
            (key, Rewrite { target_port, accepted_in, local: true, terminating, dispensable: false })
        });
        as_director.chain(as_endpoint)
    }
}

impl NodePlan {
    /// An empty plan for the node of that name.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self { claims: Claims { node: node.into(), ..Claims::default() }, ..Self::default() }
    }

    /// Puts `plan` in place of what the Service asked for before; `None` if the Service is gone.
    ///
    /// `created` is its creation time: of two Services that claim the same, the older one has it.
    pub fn set(
        &mut self,
        service: &ServiceName,
        created: Option<SystemTime>,
        plan: Option<ServicePlan>,
    ) -> Delta {
        let mut delta = Delta { services: BTreeSet::from([service.clone()]), ..Delta::default() };
        let old = self.claims.services.remove(service);
        let mut vip_ports: Vec<VipPort> = Vec::new();
        let mut prefixes: BTreeSet<IpNet> = BTreeSet::new();
        if let Some(old) = &old {
            self.without_local_endpoints -= old.without_local_endpoints;
            vip_ports.extend(&old.vip_ports);
            prefixes.extend(&old.prefixes);
        }

        let mut wanted: foldhash::HashMap<VipPort, Claim> = foldhash::HashMap::default();
        let mut announcements = BTreeMap::new();
        if let Some(plan) = plan {
            let ServicePlan {
                virtual_servers,
                acceptance,
                announcements: new_announcements,
                source_ranges,
                health_check,
                without_local_endpoints,
                warnings,
            } = plan;
            self.without_local_endpoints += without_local_endpoints;
            let held = Held {
                created,
                vip_ports: virtual_servers.iter().map(|server| server.vip).collect(),
                prefixes: new_announcements.iter().map(|announcement| announcement.prefix).collect(),
                health_check: health_check.map(Box::new),
                without_local_endpoints,
                warnings: warnings.into(),
            };
            vip_ports.extend(&held.vip_ports);
            prefixes.extend(&held.prefixes);
            self.claims.services.insert(service.clone(), held);
            wanted.extend(
                virtual_servers
                    .into_iter()
                    .map(|server| (server.vip, Claim { server, acceptance: Vec::new(), source_range: None })),
            );
            for accepted in acceptance {
                if let Some(claim) = wanted.get_mut(&accepted.vip) {
                    claim.acceptance.push(accepted);
                }
            }
            for source_range in source_ranges {
                if let Some(claim) = wanted.get_mut(&source_range.vip) {
                    claim.source_range = Some(source_range);
                }
            }
            announcements.extend(new_announcements.into_iter().map(|a| (a.prefix, a)));
        }

        vip_ports.sort_unstable();
        vip_ports.dedup();
        for vip in &vip_ports {
            if self.settle_vip_port(service, *vip, wanted.remove(vip), &mut delta) {
                prefixes.insert(IpNet::from(vip.address));
            }
        }
        // What is a VIP now, or is none any more, is announced as such, or as a route of the kernel's.
        let vips = delta.vips.iter().map(|vip| IpNet::from(*vip));
        prefixes.extend(vips.filter(|prefix| self.claims.kernel_announcements.contains_key(prefix)));
        for prefix in prefixes {
            let contenders = self.claims.prefixes.entry(prefix).or_default();
            contenders.retain(|announcement| announcement.service.as_ref() != Some(service));
            contenders.extend(announcements.remove(&prefix));
            self.settle_prefix(prefix, &mut delta);
        }
        delta
    }

    /// Puts new node-wide state in place, and the node-wide prefixes and aggregates to announce.
    pub fn set_node(
        &mut self,
        state: NodeState,
        announcements: Vec<Announcement>,
        aggregates: Vec<Announcement>,
    ) -> Delta {
        let mut delta = Delta { node: self.node != state, ..Delta::default() };
        self.node = state;
        let new = announcements.into_iter().map(|announcement| (announcement.prefix, announcement)).collect();
        let old = std::mem::replace(&mut self.claims.node_announcements, new);
        let prefixes: BTreeSet<IpNet> =
            old.keys().chain(self.claims.node_announcements.keys()).copied().collect();
        for prefix in prefixes {
            self.settle_prefix(prefix, &mut delta);
        }
        if !self.claims.aggregates.are(&aggregates) {
            self.set_aggregates(aggregates, &mut delta);
        }
        delta
    }

    /// Begins anew with aggregates: whatever is in them counts as touched.
    fn set_aggregates(&mut self, aggregates: Vec<Announcement>, delta: &mut Delta) {
        let mut prefixes: BTreeSet<IpNet> = self.claims.aggregates.prefixes().into_iter().collect();
        self.claims.aggregates = Aggregates::new(aggregates);
        prefixes.extend(self.claims.aggregates.prefixes());
        prefixes.extend(self.announcements.keys());
        prefixes.extend(self.claims.open.keys().map(|vip| IpNet::from(*vip)));
        for prefix in prefixes {
            self.settle_prefix(prefix, delta);
            if self.claims.aggregates.around(prefix).next().is_some()
                && self.announcements.contains_key(&prefix)
            {
                delta.announcements.insert(prefix);
            }
        }
    }

    /// The aggregates that a prefix is in.
    pub fn aggregates_around(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        self.claims.aggregates.around(prefix)
    }

    /// The aggregate that is to be announced in place of a prefix, where this node holds all in it.
    pub fn aggregate_of(&self, prefix: &IpNet) -> Option<IpNet> {
        let planned = |aggregate: &IpNet| {
            let kind = self.announcements.get(aggregate).map(|planned| planned.kind);
            kind == Some(AnnouncementKind::Aggregate) && self.covers(aggregate, prefix)
        };
        self.aggregates_around(*prefix).find(planned)
    }

    /// Whether an aggregate stands for a prefix where it is announced.
    pub fn covers(&self, aggregate: &IpNet, prefix: &IpNet) -> bool {
        self.claims.aggregates.covers(aggregate, prefix)
    }

    /// What an aggregate stands for where it is announced.
    pub fn covered_by(&self, aggregate: &IpNet) -> impl Iterator<Item = IpNet> {
        self.claims.aggregates.covered_by(aggregate)
    }

    /// Puts in place what is announced because the kernel's tables have routes to it, and removes what they have no more.
    pub fn set_kernel_routes(&mut self, came: Vec<Announcement>, gone: &[IpNet]) -> Delta {
        let mut delta = Delta::default();
        for prefix in gone {
            self.claims.kernel_announcements.remove(prefix);
            self.settle_prefix(*prefix, &mut delta);
        }
        for announcement in came {
            let prefix = announcement.prefix;
            self.claims.kernel_announcements.insert(prefix, announcement);
            self.settle_prefix(prefix, &mut delta);
        }
        delta
    }

    /// The prefixes that the kernel's tables have routes to.
    pub fn kernel_routes(&self) -> impl Iterator<Item = IpNet> {
        self.claims.kernel_announcements.keys().copied()
    }

    /// Removes `service`'s claim to `vip`, adds the `wanted` one, and lets the oldest claim have it.
    ///
    /// Returns whether someone else has it now, or whether it came to work or ceased to.
    fn settle_vip_port(
        &mut self,
        service: &ServiceName,
        vip: VipPort,
        wanted: Option<Claim>,
        delta: &mut Delta,
    ) -> bool {
        let in_force = self.virtual_servers.remove(&vip).map(|server| Claim {
            server,
            acceptance: self.claims.acceptance.remove(&vip).unwrap_or_default(),
            source_range: self.source_ranges.remove(&vip),
        });
        let (replaced, kept) = match in_force {
            Some(claim) if claim.server.service == *service => (Some(claim), None),
            other => (None, other),
        };
        let keeps_first = kept.is_some();
        let mut contenders: Vec<Claim> = kept.into_iter().collect();
        let waiting = self.claims.waiting.remove(&vip).unwrap_or_default();
        contenders.extend(waiting.into_iter().filter(|claim| claim.server.service != *service));
        contenders.extend(wanted);

        let winner = contenders
            .iter()
            .enumerate()
            .min_by_key(|(_, claim)| self.claims.seniority(&claim.server.service))
            .map(|(index, _)| index);
        let before = if keeps_first { contenders.first() } else { replaced.as_ref() };
        let after = winner.and_then(|index| contenders.get(index));
        let changed = before != after;
        let works = |claim: &Claim| (claim.server.service.clone(), claim.server.takes_connections());
        let matters_to_prefixes = changed && before.map(works) != after.map(works);
        if before.map(|claim| &claim.server.service) != after.map(|claim| &claim.server.service) {
            // The warnings of those who wait name whoever has it.
            delta.services.extend(contenders.iter().map(|claim| claim.server.service.clone()));
        }
        if changed {
            Self::note_claim(&mut self.rewrites, &mut self.vips, &self.claims.node, before, after, delta);
            let open =
                |claim: &&Claim| claim.server.kind != VipKind::NodePort && claim.server.takes_connections();
            if after.filter(open).is_some() {
                *self.claims.open.entry(vip.address).or_default() += 1;
            }
            if before.filter(open).is_some()
                && let Some(count) = self.claims.open.get_mut(&vip.address)
            {
                *count -= 1;
                if *count == 0 {
                    self.claims.open.remove(&vip.address);
                }
            }
        }

        if let Some(index) = winner {
            let Claim { server, acceptance, source_range } = contenders.swap_remove(index);
            self.virtual_servers.insert(vip, server);
            if !acceptance.is_empty() {
                self.claims.acceptance.insert(vip, acceptance);
            }
            if let Some(source_range) = source_range {
                self.source_ranges.insert(vip, source_range);
            }
        }
        if !contenders.is_empty() {
            self.claims.waiting.insert(vip, contenders);
        }
        matters_to_prefixes
    }

    /// Carries what follows from a virtual server over into the other maps, and notes what changes.
    fn note_claim(
        rewrites: &mut HashMap<RewriteKey, Rewrite>,
        vips: &mut BTreeMap<IpAddr, usize>,
        node: &str,
        before: Option<&Claim>,
        after: Option<&Claim>,
        delta: &mut Delta,
    ) {
        let Some(vip) = before.or(after).map(|claim| claim.server.vip) else { return };
        if before.map(|claim| &claim.server) != after.map(|claim| &claim.server) {
            delta.virtual_servers.insert(vip);
        }
        if before.and_then(|claim| claim.source_range.as_ref())
            != after.and_then(|claim| claim.source_range.as_ref())
        {
            delta.source_ranges.insert(vip);
        }

        let mut gone: foldhash::HashMap<RewriteKey, Rewrite> =
            before.into_iter().flat_map(|claim| claim.rewrites(node)).collect();
        for (key, rewrite) in after.into_iter().flat_map(|claim| claim.rewrites(node)) {
            if gone.remove(&key) != Some(rewrite) {
                rewrites.insert(key, rewrite);
                delta.rewrites.insert(key);
            }
        }
        for key in gone.into_keys() {
            rewrites.remove(&key);
            delta.rewrites.insert(key);
        }

        let had = vips.contains_key(&vip.address);
        let counts = |claim: &&Claim| claim.server.kind != VipKind::NodePort;
        if after.filter(counts).is_some() {
            *vips.entry(vip.address).or_default() += 1;
        }
        if before.filter(counts).is_some()
            && let Some(count) = vips.get_mut(&vip.address)
        {
            *count -= 1;
            if *count == 0 {
                vips.remove(&vip.address);
            }
        }
        if had != vips.contains_key(&vip.address) {
            delta.vips.insert(vip.address);
        }
    }

    /// Lets the oldest Service announce the prefix of those that have an address in it with endpoints behind it; a route of
    /// the kernel's leads elsewhere, and counts where no Service has the address.
    fn settle_prefix(&mut self, prefix: IpNet, delta: &mut Delta) {
        let works = |service: &ServiceName| {
            self.claims.services.get(service).is_some_and(|held| {
                held.vip_ports.iter().any(|vip| {
                    prefix.contains(&vip.address)
                        && self
                            .virtual_servers
                            .get(vip)
                            .is_some_and(|server| server.service == *service && server.takes_connections())
                })
            })
        };
        let of_services = || {
            self.claims
                .prefixes
                .get(&prefix)?
                .iter()
                .filter_map(|announcement| Some((announcement.service.as_ref()?, announcement)))
                .filter(|(service, _)| works(service))
                .min_by_key(|(service, _)| self.claims.seniority(service))
                .map(|(_, announcement)| announcement)
        };
        let of_kernel = || {
            let is_vip = prefix == IpNet::from(prefix.addr()) && self.vips.contains_key(&prefix.addr());
            self.claims.kernel_announcements.get(&prefix).filter(|_| !is_vip)
        };
        let of_aggregates = || self.claims.aggregates.announcement(&prefix);
        let of_node = self.claims.node_announcements.get(&prefix);
        let winner = of_node.or_else(of_services).or_else(of_kernel).or_else(of_aggregates);
        if winner != self.announcements.get(&prefix) {
            delta.announcements.insert(prefix);
            match winner.cloned() {
                Some(announcement) => self.announcements.insert(prefix, announcement),
                None => self.announcements.remove(&prefix),
            };
        }
        if self.claims.prefixes.get(&prefix).is_some_and(Vec::is_empty) {
            self.claims.prefixes.remove(&prefix);
        }
        let announcement = self.announcements.get(&prefix);
        let is_open = prefix == IpNet::from(prefix.addr()) && self.claims.open.contains_key(&prefix.addr());
        let around = self.claims.aggregates.settled(prefix, announcement, is_open && announcement.is_none());
        for aggregate in around {
            self.settle_prefix(aggregate, delta);
        }
    }

    /// Health-check node ports to serve, in no particular order.
    pub fn health_checks(&self) -> impl Iterator<Item = &HealthCheck> {
        self.claims.services.values().filter_map(|held| held.health_check.as_deref())
    }

    /// The health-check node port of a Service.
    pub fn health_check_of(&self, service: &ServiceName) -> Option<&HealthCheck> {
        self.claims.services.get(service)?.health_check.as_deref()
    }

    /// What the owners of Services and of the config should know, lost conflicts included, in no particular order.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        let conflicts = self
            .claims
            .waiting
            .iter()
            .flat_map(|(vip, waiting)| waiting.iter().filter_map(|claim| self.conflict(vip, claim)));
        let of_services = self.claims.services.values().flat_map(|held| held.warnings.iter().cloned());
        of_services.chain(conflicts).chain(self.claims.aggregates.warnings())
    }

    /// What the owner of one Service should know.
    pub fn warnings_of<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = Warning> + 'a {
        let conflict = |vip: &VipPort| {
            let claim =
                self.claims.waiting.get(vip)?.iter().find(|claim| claim.server.service == *service)?;
            self.conflict(vip, claim)
        };
        self.claims.services.get(service).into_iter().flat_map(move |held| {
            held.warnings.iter().cloned().chain(held.vip_ports.iter().filter_map(conflict))
        })
    }

    fn conflict(&self, vip: &VipPort, claim: &Claim) -> Option<Warning> {
        let holder = &self.virtual_servers.get(vip)?.service;
        Some(Warning {
            object: format!("Service {}", claim.server.service),
            reason: "ConflictingAddress",
            message: format!(
                "{vip} belongs to the older Service {holder}; it is not programmed for this one: \
                 take another address or port, or delete one of the two",
            ),
        })
    }

    /// The prefixes to bind as `local` routes: every service CIDR, and the VIPs outside of them.
    pub fn vip_routes(&self) -> BTreeSet<IpNet> {
        let cidrs = &self.node.service_cidrs;
        let outside = self.vips.keys().filter(|vip| !cidrs.iter().any(|cidr| cidr.contains(*vip)));
        cidrs.iter().copied().chain(outside.map(|vip| IpNet::from(*vip))).collect()
    }
}

impl Claims {
    fn seniority<'a>(&self, service: &'a ServiceName) -> Seniority<'a> {
        let created = self.services.get(service).and_then(|held| held.created);
        (created.is_none(), created, service)
    }
}
