//! All objects that were told, joined: what belongs to a Service, and which Services a change touches.
//!
//! ```text
//! Service ◄──label── EndpointSlice ──nodeName──► Node
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};
use ipnet::IpNet;

use super::{
    ACCEPTS_ANNOTATION, Accepts, EndpointSlice, Node, Object, ObjectKey, Service, ServiceCidr, ServiceName,
    SliceName,
};

/// What an object's change touches. The cost of finding it out does not depend on the number of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services to plan anew.
    pub services: HashSet<ServiceName>,
    /// What holds for the node as a whole has changed.
    pub node: bool,
}

impl Changes {
    /// Adds what another change touches.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.node |= other.node;
    }
}

/// All objects, seen from one node. A Service's name is kept once, however many endpoints and nodes lead to it.
#[derive(Debug)]
pub struct Index {
    /// This node's name.
    node: Arc<str>,
    services: HashMap<Arc<ServiceName>, Entry>,
    /// To which Service a slice belonged when it was told last.
    slices: HashMap<SliceName, Arc<ServiceName>>,
    nodes: HashMap<Arc<str>, NodeEntry>,
    accepting: HashMap<Arc<str>, Accepts>,
    /// How many Nodes have an address.
    node_addresses: BTreeMap<IpAddr, usize>,
    /// Services that have endpoints of which no node is known.
    unplaced: HashMap<Arc<ServiceName>, u32>,
    with_node_ports: HashSet<Arc<ServiceName>>,
    /// Who names an address as external or load-balancer IP.
    named_addresses: HashMap<IpAddr, BTreeSet<Arc<ServiceName>>>,
    service_cidrs: BTreeMap<Arc<str>, Arc<ServiceCidr>>,
}

/// What is known of a Service.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Arc<Service>>,
    /// In the order of their names. Most have one or two, which a tree would take ten times the memory for.
    slices: Vec<Arc<EndpointSlice>>,
}

impl Entry {
    /// Where the slice of that name is, or would be.
    fn place(&self, name: &SliceName) -> Result<usize, usize> {
        self.slices.binary_search_by(|slice| slice.name.cmp(name))
    }

    fn slice(&self, name: &SliceName) -> Option<&Arc<EndpointSlice>> {
        self.slices.get(self.place(name).ok()?)
    }

    /// Puts a slice in; what it was before comes out.
    fn insert(&mut self, slice: Arc<EndpointSlice>) -> Option<Arc<EndpointSlice>> {
        match self.place(&slice.name) {
            Ok(place) => self.slices.get_mut(place).map(|held| std::mem::replace(held, slice)),
            Err(place) => {
                self.slices.insert(place, slice);
                None
            }
        }
    }

    fn remove(&mut self, name: &SliceName) -> Option<Arc<EndpointSlice>> {
        self.place(name).ok().map(|place| self.slices.remove(place))
    }
}

/// What is known of a Node; it may be mentioned before it is told.
#[derive(Debug, Default)]
struct NodeEntry {
    node: Option<Arc<Node>>,
    /// Services with endpoints there, with how many of their endpoints name it.
    services: HashMap<Arc<ServiceName>, u32>,
}

impl Index {
    /// An empty index, seen from the node of that name.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        Self {
            node: node.into(),
            services: HashMap::default(),
            slices: HashMap::default(),
            nodes: HashMap::default(),
            accepting: HashMap::default(),
            node_addresses: BTreeMap::new(),
            unplaced: HashMap::default(),
            with_node_ports: HashSet::default(),
            named_addresses: HashMap::default(),
            service_cidrs: BTreeMap::new(),
        }
    }

    /// Takes over a new or changed object.
    pub fn apply(&mut self, object: Object) -> Changes {
        match object {
            Object::Service(service) => self.set_service(&service.name.clone(), Some(service)),
            Object::EndpointSlice(slice) => self.apply_slice(slice),
            Object::Node(node) => self.set_node(&node.name.clone(), Some(node)),
            Object::ServiceCidr(cidr) => self.set_service_cidr(&cidr.name.clone(), Some(cidr)),
        }
    }

    /// Forgets an object.
    pub fn delete(&mut self, key: &ObjectKey) -> Changes {
        match key {
            ObjectKey::Service(name) => self.set_service(name, None),
            ObjectKey::EndpointSlice(name) => self.delete_slice(name),
            ObjectKey::Node(name) => self.set_node(name, None),
            ObjectKey::ServiceCidr(name) => self.set_service_cidr(name, None),
        }
    }

    /// A Service, if it has been told.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)?.service.as_ref()
    }

    /// The names of all Services that have been told.
    pub fn service_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.iter().filter(|(_, entry)| entry.service.is_some()).map(|(name, _)| &**name)
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, name: &ServiceName) -> impl Iterator<Item = &EndpointSlice> {
        self.services.get(name).into_iter().flat_map(|entry| entry.slices.iter().map(|slice| &**slice))
    }

    /// This node's Node object, if it has been told.
    pub fn own_node(&self) -> Option<&Arc<Node>> {
        self.nodes.get(&self.node)?.node.as_ref()
    }

    /// Nodes where an agent accepts for the endpoints, and what it takes in.
    pub fn accepting(&self) -> &HashMap<Arc<str>, Accepts> {
        &self.accepting
    }

    /// The addresses of all Nodes.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.node_addresses.keys().copied()
    }

    /// Where the pods of other nodes are, as their Nodes tell.
    pub fn remote_pod_cidrs(&self) -> impl Iterator<Item = IpNet> {
        let others = self.nodes.iter().filter(|(name, _)| **name != self.node);
        others.filter_map(|(_, entry)| entry.node.as_ref()).flat_map(|node| node.pod_cidrs.iter().copied())
    }

    /// The other Nodes, by name.
    pub fn other_nodes(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Node>)> {
        let others = self.nodes.iter().filter(|(name, _)| **name != self.node);
        others.filter_map(|(name, entry)| Some((name, entry.node.as_ref()?)))
    }

    /// The ranges that cluster IPs are taken from, as far as ServiceCIDRs tell.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.service_cidrs.values().flat_map(|cidr| cidr.cidrs.iter().copied())
    }

    fn set_service_cidr(&mut self, name: &Arc<str>, cidr: Option<Arc<ServiceCidr>>) -> Changes {
        let node = self.service_cidrs.get(name) != cidr.as_ref();
        match cidr {
            Some(cidr) => self.service_cidrs.insert(name.clone(), cidr),
            None => self.service_cidrs.remove(name),
        };
        Changes { services: HashSet::default(), node }
    }

    fn set_service(&mut self, name: &ServiceName, service: Option<Arc<Service>>) -> Changes {
        let name = &self.held_name(name);
        let entry = self.services.entry(name.clone()).or_default();
        if entry.service == service {
            return Changes::default();
        }
        let old = std::mem::replace(&mut entry.service, service.clone());
        if entry.service.is_none() && entry.slices.is_empty() {
            self.services.remove(name);
        }
        for address in old.iter().flat_map(|service| named_addresses(service)) {
            if let Some(services) = self.named_addresses.get_mut(&address) {
                services.remove(name);
                if services.is_empty() {
                    self.named_addresses.remove(&address);
                }
            }
        }
        for address in service.iter().flat_map(|service| named_addresses(service)) {
            self.named_addresses.entry(address).or_default().insert(name.clone());
        }
        if service.is_some_and(|service| service.ports.iter().any(|port| port.node_port.is_some())) {
            self.with_node_ports.insert(name.clone());
        } else {
            self.with_node_ports.remove(name);
        }
        Changes { services: HashSet::from_iter([ServiceName::clone(name)]), node: false }
    }

    /// The name as it is kept, or will be.
    fn held_name(&self, name: &ServiceName) -> Arc<ServiceName> {
        let held = self.services.get_key_value(name).map(|(held, _)| held.clone());
        held.unwrap_or_else(|| Arc::new(name.clone()))
    }

    fn apply_slice(&mut self, mut slice: Arc<EndpointSlice>) -> Changes {
        let Some(service) = &slice.service else { return self.delete_slice(&slice.name) };
        let service = self.held_name(service);
        let mut changes = Changes::default();
        match self.slices.get(&slice.name) {
            Some(before) if *before != service => changes = self.delete_slice(&slice.name),
            Some(_)
                if self.services.get(&service).and_then(|entry| entry.slice(&slice.name)) == Some(&slice) =>
            {
                return changes;
            }
            _ => {}
        }
        self.share_node_names(&mut slice);
        self.slices.insert(slice.name.clone(), service.clone());
        self.count_endpoints(&service, &slice, true);
        let entry = self.services.entry(service.clone()).or_default();
        if let Some(old) = entry.insert(slice) {
            self.count_endpoints(&service, &old, false);
        }
        changes.services.insert(ServiceName::clone(&service));
        changes
    }

    fn delete_slice(&mut self, name: &SliceName) -> Changes {
        let Some(service) = self.slices.remove(name) else { return Changes::default() };
        if let Some(entry) = self.services.get_mut(&service) {
            let old = entry.remove(name);
            if entry.service.is_none() && entry.slices.is_empty() {
                self.services.remove(&service);
            }
            if let Some(old) = old {
                self.count_endpoints(&service, &old, false);
            }
        }
        Changes { services: HashSet::from_iter([ServiceName::clone(&service)]), node: false }
    }

    /// A node's name is kept once however many endpoints mention it, unless the source keeps the slice anyhow.
    fn share_node_names(&mut self, slice: &mut Arc<EndpointSlice>) {
        let endpoints = Arc::get_mut(slice).into_iter().flat_map(|slice| &mut slice.endpoints);
        for node in endpoints.filter_map(|endpoint| endpoint.node.as_mut()) {
            match self.nodes.get_key_value(node) {
                Some((shared, _)) => *node = shared.clone(),
                None => {
                    self.nodes.insert(node.clone(), NodeEntry::default());
                }
            }
        }
    }

    fn count_endpoints(&mut self, service: &Arc<ServiceName>, slice: &EndpointSlice, added: bool) {
        for endpoint in &slice.endpoints {
            let counts = match &endpoint.node {
                Some(node) => &mut self.nodes.entry(node.clone()).or_default().services,
                None => &mut self.unplaced,
            };
            if added {
                *counts.entry(service.clone()).or_default() += 1;
            } else if let Some(count) = counts.get_mut(service) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(service);
                }
            }
            if !added && let Some(node) = &endpoint.node {
                self.forget_unused(node);
            }
        }
    }

    fn forget_unused(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|entry| entry.node.is_none() && entry.services.is_empty()) {
            self.nodes.remove(name);
        }
    }

    fn set_node(&mut self, name: &Arc<str>, node: Option<Arc<Node>>) -> Changes {
        let addresses = |node: &Option<Arc<Node>>| -> Vec<IpAddr> {
            node.as_ref().map(|node| node.addresses.clone()).unwrap_or_default()
        };
        // Hints are for the own zone, and announcements for nodes that are not excluded.
        let place = |node: &Option<Arc<Node>>| {
            node.as_ref()
                .map(|node| (node.zone.clone(), node.excluded_from_load_balancers))
                .unwrap_or_default()
        };
        let accepts = node.as_ref().and_then(|node| node.accepts());
        let new_place = place(&node);
        let new = addresses(&node);
        let entry = self.nodes.entry(name.clone()).or_default();
        if entry.node == node {
            self.forget_unused(name);
            return Changes::default();
        }
        let pod_cidrs = |node: &Option<Arc<Node>>| node.as_ref().map(|node| node.pod_cidrs.clone());
        let moved = pod_cidrs(&entry.node) != pod_cidrs(&node);
        let before = std::mem::replace(&mut entry.node, node);
        let old = addresses(&before);
        let own = *name == self.node;
        let node = own || moved || says_else(before.as_deref(), entry.node.as_deref());
        let mut changes = Changes { services: HashSet::default(), node };
        let name_of = |service: &Arc<ServiceName>| ServiceName::clone(service);

        let accepted = match accepts {
            Some(accepts) => self.accepting.insert(name.clone(), accepts),
            None => self.accepting.remove(name),
        };
        if accepts != accepted && !own {
            changes.services.extend(entry.services.keys().map(name_of));
        }

        if own && place(&before) != new_place {
            let told = self.services.iter().filter(|(_, entry)| entry.service.is_some());
            changes.services.extend(told.map(|(service, _)| name_of(service)));
        }

        if old != new {
            changes.node = true;
            if own {
                // Node ports listen on them; endpoints on them are not tunnelled to.
                changes.services.extend(entry.services.keys().map(name_of));
                changes.services.extend(self.unplaced.keys().map(name_of));
                changes.services.extend(self.with_node_ports.iter().map(name_of));
            }
            for address in &new {
                *self.node_addresses.entry(*address).or_default() += 1;
            }
            for address in &old {
                if let Some(count) = self.node_addresses.get_mut(address) {
                    *count -= 1;
                    if *count == 0 {
                        self.node_addresses.remove(address);
                    }
                }
            }
            for address in old.iter().chain(&new) {
                changes.services.extend(self.named_addresses.get(address).into_iter().flatten().map(name_of));
            }
        }
        self.forget_unused(name);
        changes
    }
}

/// Whether annotations differ that say something of the node as a BGP speaker: all but what agents write.
fn says_else(before: Option<&Node>, now: Option<&Node>) -> bool {
    fn said(node: Option<&Node>) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        let annotations = node.into_iter().flat_map(|node| &node.annotations);
        annotations.filter(|(key, _)| &***key != ACCEPTS_ANNOTATION)
    }
    !said(before).eq(said(now))
}

/// The addresses of a Service that the API server does not choose.
fn named_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let of_load_balancer = service.load_balancer_ips.iter().map(|ip| ip.address);
    service.external_ips.iter().copied().chain(of_load_balancer)
}
