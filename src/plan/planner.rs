//! Keeps a [`NodePlan`] up to date with what a source tells. No I/O: events in, delta out.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::aggregates::left_out;
use super::explain::{Explanation, explain};
use super::model::{Announcement, AnnouncementKind, Delta, NodePlan, NodeState, ServicePlan, Warning};
use super::service::{NodeContext, service};
use crate::cluster::{ACCEPTS_ANNOTATION, Accepts, Changes, Event, Index, Node, Problem, ServiceName};
use crate::config::{
    Config, DrainReason, INVALID_ANNOTATION, MeshMember, NodePortAddresses, NodeSettings, ServiceSettings,
};

/// Reason of the notice that this node's Node asks it to drain.
pub const DRAIN_ASKED: &str = "DrainAsked";

/// Reason of the notice that this node is told to announce no Service.
pub const EXCLUDED_FROM_LOAD_BALANCERS: &str = "ExcludedFromLoadBalancers";

/// Owner of the [`Index`] and of the plan made from it.
#[derive(Debug)]
pub struct Planner {
    node: Arc<str>,
    /// The config file.
    file: Config,
    /// What the annotations of this node's Node say, or said before they became wrong.
    node_settings: NodeSettings,
    /// Of which Node, as it was then: they are read once.
    read_node: Option<Arc<Node>>,
    node_warnings: Vec<Warning>,
    /// What on this node's Node asks for a drain.
    drains_for: BTreeSet<DrainReason>,
    /// Both together.
    settled: Config,
    /// What other Nodes say of themselves as members of the mesh, or said before it became wrong.
    members: HashMap<Arc<str>, MeshMember>,
    /// With the peers that are other nodes: the config in force.
    config: Config,
    index: Index,
    /// Of Services with annotations: what they say, or said before they became wrong.
    settings: HashMap<ServiceName, ServiceSettings>,
    problems: Vec<Problem>,
    synced: bool,
    plan: NodePlan,
    node_port_addresses: Vec<IpAddr>,
}

impl Planner {
    /// A planner for the node of that name, that has been told nothing yet.
    pub fn new(node: impl Into<Arc<str>>, file: Config) -> Self {
        let node = node.into();
        let mut planner = Self {
            index: Index::new(node.clone()),
            plan: NodePlan::new(node.clone()),
            node,
            config: file.clone(),
            settled: file.clone(),
            members: HashMap::new(),
            file,
            node_settings: NodeSettings::default(),
            read_node: None,
            node_warnings: Vec::new(),
            drains_for: BTreeSet::new(),
            settings: HashMap::new(),
            problems: Vec::new(),
            synced: false,
            node_port_addresses: Vec::new(),
        };
        planner.plan_node();
        planner
    }

    /// Puts in force what an earlier agent knew of this node's Node, until the source tells of it.
    pub fn recall(&mut self, node: &Node) {
        self.node_settings = NodeSettings::read(node, None).0;
        self.drains_for = self.file.drain.reasons(self.node_settings.drain, &node.taints);
        self.settled = self.node_settings.apply(&self.file);
        self.config = self.settled.clone();
    }

    /// This node's own Node object, if all that it says reads.
    pub fn sound_own_node(&self) -> Option<&Node> {
        let sound = self.node_warnings.iter().all(|warning| warning.reason != INVALID_ANNOTATION);
        self.own_node().filter(|_| sound)
    }

    /// Takes over what a source tells, and names what became different in the plan.
    pub fn handle(&mut self, events: impl IntoIterator<Item = Event>) -> Delta {
        let mut changes = Changes::default();
        for event in events {
            match event {
                Event::Apply(object) => changes.merge(self.index.apply(object)),
                Event::Delete(key) => changes.merge(self.index.delete(&key)),
                Event::Synced => self.synced = true,
                Event::Problems(problems) => self.problems = problems,
                Event::Watch(_) | Event::TriggeredAt(_) => {}
            }
        }
        let mut delta = Delta::default();
        if changes.node {
            let announce = self.config.announce.clone();
            delta = self.plan_node();
            if announce != self.config.announce {
                // Communities and prepending are those of every prefix.
                changes.services.extend(self.index.service_names().cloned());
                let routes: Vec<IpNet> = self.plan.kernel_routes().collect();
                delta.merge(self.handle_routes(&routes, &[]));
            }
        }
        for name in &changes.services {
            delta.merge(self.plan_service(name));
        }
        delta
    }

    /// Takes over which prefixes the kernel's tables have routes to now, and to which no more.
    pub fn handle_routes(&mut self, came: &[IpNet], gone: &[IpNet]) -> Delta {
        let came = came.iter().map(|prefix| self.announcement(*prefix, AnnouncementKind::Kernel)).collect();
        self.plan.set_kernel_routes(came, gone)
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The configuration in force: the config file's, as this node's annotations change it.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether this node's own Node object is known: its addresses and pods, that is.
    pub fn knows_own_node(&self) -> bool {
        self.index.own_node().is_some()
    }

    /// This node's own Node object.
    pub fn own_node(&self) -> Option<&Node> {
        self.index.own_node().map(|node| &**node)
    }

    /// What on this node's Node asks for a drain, or did before the Node was gone.
    pub fn drains_for(&self) -> &BTreeSet<DrainReason> {
        &self.drains_for
    }

    /// What a Service's annotations say, if it has any.
    pub fn settings_of(&self, service: &ServiceName) -> Option<&ServiceSettings> {
        self.settings.get(service)
    }

    /// Why a Service is forwarded as it is; `None` if there is no such Service.
    pub fn explain(&self, service: &ServiceName) -> Option<Explanation> {
        let object = self.index.service(service)?;
        let slices: Vec<_> = self.index.slices(service).collect();
        let settings = self.settings.get(service).cloned().unwrap_or_default();
        Some(explain(object, &settings, &slices, &self.context()))
    }

    /// What a Service asks of this node, whoever has it; `None` if there is no such Service.
    pub fn asked_by(&self, name: &ServiceName) -> Option<ServicePlan> {
        let object = self.index.service(name)?;
        let slices: Vec<_> = self.index.slices(name).collect();
        let settings = self.settings.get(name).cloned().unwrap_or_default();
        Some(service(object, &settings, &slices, &self.context()))
    }

    /// All that the source told.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Those of this node's addresses that node ports listen on.
    pub fn node_port_addresses(&self) -> &[IpAddr] {
        &self.node_port_addresses
    }

    /// The plan.
    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Whether the source has told everything there was at the start: before that, absent does not mean gone.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What is wrong with the source.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Nodes where an agent accepts, as their Nodes tell.
    pub fn accepting(&self) -> &foldhash::HashMap<Arc<str>, Accepts> {
        self.index.accepting()
    }

    /// What this node's own Node says that it accepts; `None` where the Node is not known.
    pub fn own_accepts(&self) -> Option<Option<&Arc<str>>> {
        self.index.own_node().map(|node| node.annotations.get(ACCEPTS_ANNOTATION))
    }

    /// What users should know about their objects and the config, sorted.
    pub fn warnings(&self) -> BTreeSet<Warning> {
        let mut warnings: BTreeSet<Warning> = self.plan.warnings().collect();
        let misplaced = |prefix: &&IpNet| !self.plan.node.aggregates.contains(*prefix);
        warnings.extend(self.config.announce.aggregate.iter().filter(misplaced).map(|prefix| {
            left_out(
                *prefix,
                "it has addresses of nodes or pods in it, which would not be reached any more: give the range that \
                 virtual IPs are taken from",
            )
        }));
        warnings.extend(self.node_warnings());
        warnings
    }

    /// What users should know about this node's Node, sorted.
    pub fn node_warnings(&self) -> BTreeSet<Warning> {
        let mut warnings: BTreeSet<Warning> = self.node_warnings.iter().cloned().collect();
        if !self.knows_own_node() {
            warnings.insert(Warning {
                object: format!("Node {}", self.node),
                reason: "NodeMissing",
                message:
                    "there is no such Node: nothing is known of this node's addresses and pods; check --node"
                        .into(),
            });
        }
        warnings.extend(self.drains_for.iter().map(|why| Warning {
            object: format!("Node {}", self.node),
            reason: DRAIN_ASKED,
            message: format!(
                "it drains, as {why} asks: its virtual IPs are withdrawn, what reaches it is forwarded"
            ),
        }));
        if self.own_node().is_some_and(|node| node.excluded_from_load_balancers) {
            warnings.insert(Warning {
                object: format!("Node {}", self.node),
                reason: EXCLUDED_FROM_LOAD_BALANCERS,
                message: "as its label node.kubernetes.io/exclude-from-external-load-balancers asks, it announces no \
                          Service; what reaches it is forwarded"
                    .into(),
            });
        }
        warnings
    }

    fn plan_service(&mut self, name: &ServiceName) -> Delta {
        let Some(object) = self.index.service(name) else {
            self.settings.remove(name);
            return self.plan.set(name, None, None);
        };
        let (settings, warnings) = if object.annotations.is_empty() {
            self.settings.remove(name);
            Default::default()
        } else {
            let (settings, warnings) = ServiceSettings::read(object, self.settings.get(name));
            self.settings.insert(name.clone(), settings.clone());
            (settings, warnings)
        };
        let slices: Vec<_> = self.index.slices(name).collect();
        let mut planned = service(object, &settings, &slices, &self.context());
        planned.warnings.extend(warnings);
        let created = object.created;
        self.plan.set(name, created, Some(planned))
    }

    /// What plans of Services depend on besides these.
    pub(super) fn context(&self) -> NodeContext<'_> {
        let own = self.own_node();
        NodeContext {
            node: &self.node,
            addresses: &self.plan.node.addresses,
            node_port_addresses: &self.node_port_addresses,
            node_addresses: &self.plan.node.tunnel_sources,
            accepting: self.index.accepting(),
            zone: own.and_then(|node| node.zone.as_deref()),
            excluded_from_load_balancers: own.is_some_and(|node| node.excluded_from_load_balancers),
            services: &self.config.services,
            announce: &self.config.announce,
        }
    }

    fn plan_node(&mut self) -> Delta {
        let own = self.index.own_node();
        let read = |node: &Arc<Node>| {
            self.read_node.as_ref().is_some_and(|read| read.annotations == node.annotations)
        };
        if let Some(node) = own.filter(|node| !read(node)) {
            let (settings, mut warnings) = NodeSettings::read(node, Some(&self.node_settings));
            let config = settings.apply(&self.file);
            warnings.extend(settings.conflicts(&self.node, &config));
            self.settled = config;
            self.node_settings = settings;
            self.node_warnings = warnings;
            self.read_node = Some(node.clone());
        }
        if let Some(node) = own {
            self.drains_for = self.file.drain.reasons(self.node_settings.drain, &node.taints);
        }
        let router = self.plan_peers();
        let own = self.index.own_node();
        let (addresses, pod_cidrs) = match own {
            Some(node) => {
                let pod_cidrs = self.node_settings.pod_cidrs.as_ref().unwrap_or(&node.pod_cidrs);
                (node.addresses.clone(), pod_cidrs.iter().copied().collect::<BTreeSet<_>>())
            }
            // Its Node is gone, but this node is not: what is known of it stays in force (warned of as NodeMissing).
            None => (self.plan.node.addresses.clone(), self.plan.node.pod_cidrs.clone()),
        };
        self.node_port_addresses = self.pick_node_port_addresses(&addresses);
        let mut state = NodeState {
            aggregates: BTreeSet::new(),
            tunnel_sources: self.index.node_addresses().chain(addresses.iter().copied()).collect(),
            addresses,
            remote_pod_cidrs: self.index.remote_pod_cidrs().collect(),
            cluster_clients: pod_cidrs.iter().chain(&self.config.services.cluster_cidrs).copied().collect(),
            pod_cidrs,
            service_cidrs: self
                .config
                .services
                .service_cidrs
                .iter()
                .copied()
                .chain(self.index.service_cidrs())
                .collect(),
        };
        let others: Vec<IpNet> = state
            .tunnel_sources
            .iter()
            .map(|address| IpNet::from(*address))
            .chain(state.cluster_clients.iter().chain(&state.remote_pod_cidrs).copied())
            .collect();
        let in_the_way =
            |prefix: &IpNet| others.iter().any(|other| other.contains(prefix) || prefix.contains(other));
        state.aggregates =
            self.config.announce.aggregate.iter().copied().filter(|prefix| !in_the_way(prefix)).collect();
        let aggregates = state
            .aggregates
            .iter()
            .map(|prefix| self.announcement(*prefix, AnnouncementKind::Aggregate))
            .collect();
        let announced = state.pod_cidrs.iter().filter(|_| self.config.announce.pod_cidrs);
        let announcements =
            announced.map(|prefix| self.announcement(*prefix, AnnouncementKind::PodCIDR)).collect();
        let delta = self.plan.set_node(state, announcements, aggregates);
        Delta { router, ..delta }
    }

    /// Puts the config in force, with other nodes as peers where there is a mesh; tells whether the speaker's part is another.
    fn plan_peers(&mut self) -> bool {
        // Its Node is gone, but this node is not: its sessions stay.
        let Some(own) = self.index.own_node() else { return false };
        let mut config = self.settled.clone();
        if let Some(mesh) = &config.router.mesh {
            let before = std::mem::take(&mut self.members);
            let member = |(name, node): (&Arc<str>, &Arc<Node>)| {
                (name.clone(), MeshMember::read(node, before.get(name)))
            };
            self.members = self.index.other_nodes().map(member).collect();
            let itself = MeshMember::of(&self.node_settings);
            let others = self.index.other_nodes();
            let others = others.filter_map(|(name, node)| Some((&**node, *self.members.get(name)?)));
            let peers = mesh.peers(&config.router, self.file.router.asn, (own, itself), others);
            config.router.peers.extend(peers);
        }
        let router = config.router != self.config.router;
        self.config = config;
        router
    }

    /// Of a prefix that is no Service's: with the attributes of all that is announced.
    fn announcement(&self, prefix: IpNet, kind: AnnouncementKind) -> Announcement {
        let announce = &self.config.announce;
        Announcement {
            prefix,
            kind,
            service: None,
            local: false,
            communities: announce.communities.standard.clone(),
            large_communities: announce.communities.large.clone(),
            local_pref: None,
            med: None,
            as_path_prepend: announce.path_prepend,
        }
    }

    /// Those of this node's addresses that node ports listen on.
    fn pick_node_port_addresses(&self, own: &[IpAddr]) -> Vec<IpAddr> {
        let primary =
            |address: &IpAddr| own.iter().find(|other| other.is_ipv4() == address.is_ipv4()) == Some(address);
        let listens = |address: &IpAddr| {
            self.config.services.node_port_addresses.iter().any(|which| match which {
                NodePortAddresses::Primary => primary(address),
                NodePortAddresses::Within(net) => net.contains(address),
            })
        };
        own.iter().copied().filter(listens).collect()
    }
}
