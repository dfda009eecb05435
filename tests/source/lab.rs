//! A server, the source that follows it, and the Index that hears it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sheave::cluster::kubernetes::{Pace, connect, follow};
use sheave::cluster::{Event, Index, ObjectKey, Problem, ServiceName, WatchState};
use sheave_apiserver::{Api, Fault, Options, Request, Resource, Server};
use tempfile::TempDir;
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// How long a condition is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fast where the default waits for what a test brings about.
pub fn pace() -> Pace {
    Pace {
        grace: Duration::from_millis(500),
        answer: Duration::from_secs(2),
        quiet: Duration::from_millis(700),
        first_pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(100),
        not_served: Duration::from_millis(100),
        ..Pace::default()
    }
}

pub struct Lab {
    pub server: Server,
    pub directory: TempDir,
    pub pace: Pace,
    pub heard: Heard,
    /// Changes that were made.
    changes: u32,
    events: Option<UnboundedReceiver<Vec<Event>>>,
}

/// What the source has told.
pub struct Heard {
    pub index: Index,
    pub deleted: Vec<ObjectKey>,
    pub problems: Vec<Problem>,
    /// How it stands with each resource.
    pub states: BTreeMap<&'static str, WatchState>,
    /// All errors with which a watch was down.
    pub errors: Vec<String>,
    pub synced: bool,
    /// Trigger times that were told.
    pub triggers: usize,
    /// The largest batch.
    pub largest: usize,
}

impl Heard {
    fn take(&mut self, batch: Vec<Event>) {
        self.largest = self.largest.max(batch.len());
        for event in batch {
            match event {
                Event::Apply(object) => drop(self.index.apply(object)),
                Event::Delete(key) => {
                    self.index.delete(&key);
                    self.deleted.push(key);
                }
                Event::Synced => {
                    assert!(!self.synced, "synced twice");
                    self.synced = true;
                }
                Event::Problems(problems) => self.problems = problems,
                Event::Watch(watch) => {
                    if let WatchState::Down { error, .. } = &watch.state {
                        self.errors.push(format!("{}: {error}", watch.resource));
                    }
                    let before = self.states.insert(watch.resource, watch.state.clone());
                    assert_ne!(before, Some(watch.state), "told again without a change");
                }
                Event::TriggeredAt(_) => self.triggers += 1,
            }
        }
    }

    /// The addresses of Service `shop/web`'s endpoints.
    pub fn endpoints(&self) -> Vec<String> {
        let name = ServiceName { namespace: "shop".into(), name: "web".into() };
        let slices = self.index.slices(&name);
        slices.flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.address.to_string()).collect()
    }

    pub fn is(&self, resource: &str, state: &WatchState) -> bool {
        self.states.get(resource) == Some(state)
    }

    pub fn is_down(&self, resource: &str) -> bool {
        matches!(self.states.get(resource), Some(WatchState::Down { .. }))
    }

    pub fn is_watching(&self) -> bool {
        self.states.values().all(|state| matches!(state, WatchState::Watching | WatchState::NotServed))
    }
}

pub fn slice(name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> =
        addresses.iter().map(|address| json!({"addresses": [address], "nodeName": "node-a"})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}],
    })
}

pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIPs": ["10.96.0.80"], "ports": [{"name": "http", "port": 80}]},
    })
}

impl Lab {
    /// A server with one Service, one EndpointSlice, one Node and one ServiceCIDR; nobody follows it yet.
    pub fn new() -> Self {
        let server = Server::start(Options::default()).unwrap();
        let api = server.api();
        for object in [
            service("web"),
            slice("web-1", &["10.0.0.1"]),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
        ] {
            api.apply(object).unwrap();
        }
        Self {
            server,
            directory: tempfile::tempdir().unwrap(),
            pace: pace(),
            heard: Heard {
                index: Index::new("node-a"),
                deleted: Vec::new(),
                problems: Vec::new(),
                states: BTreeMap::new(),
                errors: Vec::new(),
                synced: false,
                triggers: 0,
                largest: 0,
            },
            changes: 0,
            events: None,
        }
    }

    pub fn api(&self) -> &Api {
        self.server.api()
    }

    /// A kubeconfig whose token is in a file beside it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.server.write_service_account(self.directory.path(), "token-0").unwrap();
        let path = self.directory.path().join("kubeconfig");
        let address = self.server.address();
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster":
                {"server": format!("https://{address}"), "certificate-authority": "ca.crt"}}],
            "users": [{"name": "agent", "user": {"tokenFile": "token"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "agent"}}],
        });
        std::fs::write(&path, text.to_string()).unwrap();
        path
    }

    /// Starts to follow.
    pub async fn follow(&mut self) {
        let client = connect(Some(&self.kubeconfig())).await.unwrap();
        let (events, receiver) = mpsc::unbounded_channel();
        follow(&client, &self.pace, events);
        self.events = Some(receiver);
    }

    /// Follows, until all watches stand.
    pub async fn synced() -> Self {
        let mut lab = Self::new();
        lab.follow().await;
        lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
        assert_eq!(lab.heard.endpoints(), ["10.0.0.1"]);
        lab
    }

    /// Listens until something holds.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Heard) -> bool) {
        let events = self.events.as_mut().expect("nobody follows yet");
        let listen = async {
            while !holds(&self.heard) {
                self.heard.take(events.recv().await.expect("the source ended"));
            }
        };
        if tokio::time::timeout(PATIENCE, listen).await.is_err() {
            let Heard { states, errors, problems, synced, .. } = &self.heard;
            panic!(
                "{what}: not within {PATIENCE:?}: {:?}, synced {synced}\n{states:?}\n{errors:?}\n{problems:?}\n{:?}",
                self.heard.endpoints(),
                self.api().counts(),
            );
        }
    }

    /// Changes the endpoint of the Service; returns its new address.
    pub fn change(&mut self) -> String {
        self.changes += 1;
        let address = std::net::Ipv4Addr::from(0x0a01_0000 + self.changes).to_string();
        self.api().apply(slice("web-1", &[&address])).unwrap();
        address
    }

    /// Makes a change and waits until it is heard.
    pub async fn hears_changes(&mut self) {
        let address = self.change();
        self.until("a change", |heard| heard.endpoints() == [address.as_str()]).await;
    }

    /// Lets the first `times` requests for EndpointSlices that match go wrong.
    pub fn spoil(
        &self,
        mut times: usize,
        matches: impl Fn(&Request) -> bool + Send + 'static,
        mut fault: impl FnMut() -> Fault + Send + 'static,
    ) {
        self.api().inject(move |request| {
            if times == 0 || request.resource() != Some(Resource::EndpointSlices) || !matches(request) {
                return None;
            }
            times -= 1;
            Some(fault())
        });
    }

    /// How many requests of that kind were answered, by status.
    pub fn count(&self, verb: &str, resource: Resource, status: u16) -> u64 {
        self.api().counts().get(&(verb.into(), resource.plural().into(), status)).copied().unwrap_or(0)
    }
}
