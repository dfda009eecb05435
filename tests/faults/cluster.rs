//! A cluster in which objects come, change and go at random, and a record of what has gone.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use sheave::cluster::{ObjectKey, Protocol, ServiceName, SliceName};
use sheave::plan::VipPort;
use sheave_apiserver::{Api, Options, Resource};

use crate::chance::Chance;

const NAMESPACE: &str = "shop";
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Nothing changes these: what is planned for node ports depends on its Service alone.
const OWN_ADDRESSES: [&str; 2] = ["10.0.1.1", "fd00:10::1"];

/// How often something has gone, as the API server's history tells; shared with those who check what clients are told.
#[derive(Clone, Default)]
pub struct Gone(Arc<Mutex<Counts>>);

/// How often something has gone.
#[derive(Default)]
pub struct Counts {
    pub objects: HashMap<ObjectKey, u32>,
    pub virtual_servers: HashMap<VipPort, u32>,
}

impl Gone {
    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap()
    }
}

/// The cluster.
pub struct Cluster {
    api: Api,
    /// A server with the same objects, to which nothing happens.
    mirror: Api,
    /// Whether objects are broken now and then.
    breaks: bool,
    chance: Chance,
    gone: Gone,
    /// What clients that use the label selector can see.
    seen: BTreeSet<ObjectKey>,
    /// By Service, of its last version that can be read.
    virtual_servers: HashMap<String, BTreeSet<VipPort>>,
    /// Objects that cannot be read, as they should be; of a Service with its virtual servers.
    broken: HashMap<ObjectKey, (Value, BTreeSet<VipPort>)>,
}

impl Cluster {
    pub fn new(api: &Api, mut chance: Chance) -> Self {
        let mut cluster = Self {
            api: api.clone(),
            mirror: Api::new(Options::default()),
            breaks: chance.one_in(3),
            chance,
            gone: Gone::default(),
            seen: BTreeSet::new(),
            virtual_servers: HashMap::new(),
            broken: HashMap::new(),
        };
        for _ in 0..20 {
            cluster.change();
        }
        cluster
    }

    pub fn gone(&self) -> &Gone {
        &self.gone
    }

    /// A server with the same objects, to which nothing happens.
    pub fn mirror(&self) -> &Api {
        &self.mirror
    }

    /// Whether there are objects that cannot be read: what is known of these is what could be read last.
    pub fn breaks_objects(&self) -> bool {
        self.breaks
    }

    /// Makes one change.
    pub fn change(&mut self) {
        match self.chance.number(0..10) {
            0..4 => self.change_service(),
            4..8 => self.change_slice(),
            8 => self.change_node(),
            _ => self.change_cidr(),
        }
    }

    /// Makes readable what is not. There is an own Node: without one, what was known of it would stay in force.
    pub fn mend(&mut self) {
        self.apply_node("node-a");
        for (key, (object, virtual_servers)) in std::mem::take(&mut self.broken) {
            let visible = self.apply(key.clone(), object);
            if let ObjectKey::Service(ServiceName { name, .. }) = key {
                let virtual_servers = if visible { virtual_servers } else { BTreeSet::new() };
                self.set_virtual_servers(name.to_string(), virtual_servers);
            }
        }
    }

    fn change_service(&mut self) {
        let number = self.chance.number(1..6);
        let name = format!("s{number}");
        let key = ObjectKey::Service(ServiceName { namespace: NAMESPACE.into(), name: name.as_str().into() });
        if self.chance.one_in(4) {
            self.delete(Resource::Services, Some(NAMESPACE), &name, key);
            self.set_virtual_servers(name, BTreeSet::new());
            return;
        }
        let mut ports = Vec::new();
        let mut virtual_servers = BTreeSet::new();
        let kind = self.chance.of(&["ClusterIP", "NodePort", "LoadBalancer"]);
        let mut vips = vec![format!("10.96.0.{number}")];
        if self.chance.one_in(2) {
            vips.push(format!("fd00:96::{number}"));
        }
        let cluster_ips = vips.clone();
        let mut ingress = Vec::new();
        if kind == "LoadBalancer" && !self.chance.one_in(3) {
            ingress.push(json!({"ip": format!("198.51.100.{number}"), "ipMode": "VIP"}));
            vips.push(format!("198.51.100.{number}"));
        }
        for (index, (protocol, port)) in
            [(Protocol::Tcp, 80), (Protocol::Udp, 80), (Protocol::Tcp, 443)].into_iter().enumerate()
        {
            if index > 0 && self.chance.one_in(2) {
                continue;
            }
            let node_port = 30_000 + u16::try_from(number).unwrap() * 10 + u16::try_from(index).unwrap();
            let mut written = json!({
                "name": format!("p{index}"), "protocol": protocol.to_string(), "port": port, "targetPort": 8080
            });
            let server = |address: &str, port| VipPort { address: ip(address), port, protocol };
            virtual_servers.extend(vips.iter().map(|vip| server(vip, port)));
            if kind != "ClusterIP" {
                written["nodePort"] = node_port.into();
                let families = OWN_ADDRESSES
                    .iter()
                    .filter(|own| cluster_ips.iter().any(|ip| ip.contains(':') == own.contains(':')));
                virtual_servers.extend(families.map(|address| server(address, node_port)));
            }
            ports.push(written);
        }
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": self.labels(), "annotations": self.noise()},
            "spec": {
                "type": kind, "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ports": ports,
                "sessionAffinity": self.chance.of(&["None", "ClientIP"]),
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        if self.break_one(&key, &service, &virtual_servers) {
            service["spec"]["ports"][0]["port"] = "eighty".into();
            if !self.apply(key, service) {
                self.set_virtual_servers(name, BTreeSet::new());
            }
        } else if self.apply(key, service) {
            self.set_virtual_servers(name, virtual_servers);
        } else {
            self.set_virtual_servers(name, BTreeSet::new());
        }
    }

    fn change_slice(&mut self) {
        let name = format!("e{}", self.chance.number(1..9));
        let key =
            ObjectKey::EndpointSlice(SliceName { namespace: NAMESPACE.into(), name: name.as_str().into() });
        if self.chance.one_in(4) {
            self.delete(Resource::EndpointSlices, Some(NAMESPACE), &name, key);
            return;
        }
        let mut labels = self.labels();
        labels["kubernetes.io/service-name"] = format!("s{}", self.chance.number(1..6)).into();
        let endpoints: Vec<Value> = (0..self.chance.number(0..4))
            .map(|_| {
                json!({
                    "addresses": [format!("10.244.0.{}", self.chance.number(1..9))],
                    "conditions": {"ready": !self.chance.one_in(3)},
                    "nodeName": self.chance.of(&["node-a", "node-b", "node-c"]),
                })
            })
            .collect();
        let mut slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "annotations": self.noise()},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "p0", "protocol": "TCP", "port": self.chance.number(8080..8082)}],
        });
        if self.break_one(&key, &slice, &BTreeSet::new()) {
            slice["endpoints"] = json!([{"addresses": ["not an address at all:"]}]);
        }
        self.apply(key, slice);
    }

    fn change_node(&mut self) {
        let name = self.chance.of(&["node-a", "node-b", "node-c"]);
        let key = ObjectKey::Node(name.into());
        if self.chance.one_in(4) {
            self.delete(Resource::Nodes, None, name, key);
        } else {
            self.apply_node(name);
        }
    }

    fn apply_node(&mut self, name: &'static str) {
        let addresses = match name {
            "node-a" => OWN_ADDRESSES.map(str::to_owned).to_vec(),
            _ => vec![format!("10.0.2.{}", self.chance.number(1..9))],
        };
        let addresses: Vec<Value> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        let mut annotations = self.noise();
        if self.chance.one_in(2) {
            annotations["sheave.io/accepts"] = "ipip,gre".into();
        }
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"podCIDRs": [format!("10.244.{}.0/24", self.chance.number(0..3))]},
            "status": {"addresses": addresses},
        });
        self.apply(ObjectKey::Node(name.into()), node);
    }

    fn change_cidr(&mut self) {
        let name = self.chance.of(&["kubernetes", "more"]);
        let key = ObjectKey::ServiceCidr(name.into());
        if self.chance.one_in(3) {
            self.delete(Resource::ServiceCidrs, None, name, key);
            return;
        }
        let cidr = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "spec": {"cidrs": [format!("10.{}.0.0/16", self.chance.number(96..99))]},
        });
        self.apply(key, cidr);
    }

    /// Labels that now and then take the object from the client's sight.
    fn labels(&mut self) -> Value {
        match self.chance.number(0..12) {
            0 => json!({PROXY_NAME: "other"}),
            1 => json!({HEADLESS: ""}),
            2 => json!({"app": "a"}),
            _ => json!({}),
        }
    }

    fn noise(&mut self) -> Value {
        json!({"example.com/n": self.chance.number(0..100).to_string()})
    }

    /// Whether this version is to be one that cannot be read.
    fn break_one(&mut self, key: &ObjectKey, whole: &Value, servers: &BTreeSet<VipPort>) -> bool {
        let breaks = self.breaks && self.chance.one_in(6);
        if breaks {
            self.broken.insert(key.clone(), (whole.clone(), servers.clone()));
        } else {
            self.broken.remove(key);
        }
        breaks
    }

    /// Puts the object in; whether the client can see it.
    fn apply(&mut self, key: ObjectKey, object: Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let visible = labels.get(PROXY_NAME).is_none() && labels.get(HEADLESS).is_none();
        // Counted before it can be told.
        if visible {
            self.seen.insert(key);
        } else {
            self.lose(key);
        }
        self.mirror.apply(object.clone()).unwrap();
        self.api.apply(object).unwrap();
        visible
    }

    fn delete(&mut self, resource: Resource, namespace: Option<&str>, name: &str, key: ObjectKey) {
        self.broken.remove(&key);
        self.lose(key);
        self.mirror.delete(resource, namespace, name);
        self.api.delete(resource, namespace, name);
    }

    fn lose(&mut self, key: ObjectKey) {
        if self.seen.remove(&key) {
            *self.gone.counts().objects.entry(key).or_default() += 1;
        }
    }

    /// Nothing is told between this and the change itself: both are done before anything else can run.
    fn set_virtual_servers(&mut self, service: String, now: BTreeSet<VipPort>) {
        let before = self.virtual_servers.remove(&service).unwrap_or_default();
        for server in before.difference(&now) {
            *self.gone.counts().virtual_servers.entry(*server).or_default() += 1;
        }
        self.virtual_servers.insert(service, now);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
