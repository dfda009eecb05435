//! The loop's end of all that is observed: it tells, and HTTP tasks read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::health::{Health, HealthSite, timestamp};
use super::http::Server;
use super::metrics::{ConntrackPass, Metrics, MetricsSite, Wanted, seconds};
use super::node_ports::HealthCheckNodePorts;
use super::status::{self, Question};
use crate::cluster::{Event, Node, Object, ObjectKey, WatchState};
use crate::config::{NodePortAddresses, Observe};
use crate::plan::{Delta, Planner, Warning};

/// Trigger times that are kept for a kernel that does not take what they set off: as many as changes in a minute or two.
const MAX_TRIGGERED: usize = 4096;

/// The loop's end of all that is observed.
pub struct Observer {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    node_ports: HealthCheckNodePorts,
    servers: Vec<(&'static str, Server)>,
    wanted: Wanted,
    /// Services whose health check may have changed, since the kernel last held everything.
    touched: BTreeSet<crate::cluster::ServiceName>,
    /// The kernel was brought in line once.
    ready: bool,
    /// This node's Node as it was before the start, where that counts for want of a source.
    held_node: Option<Node>,
    /// When that which the kernel does not hold yet was set off, at most [`MAX_TRIGGERED`].
    triggered: Vec<SystemTime>,
    began: Instant,
    /// Warnings by reason, until something is planned anew.
    warnings: Option<BTreeMap<&'static str, usize>>,
    /// Of health-check node ports, as asked for last.
    told_warnings: Vec<Warning>,
}

/// How much of the kernel state was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// All of it, or what the periodic look takes in.
    Full,
    /// What a change touches.
    Partial,
}

impl Observer {
    /// Serves metrics and health as the config says, on `runtime`; `questions` lead to the loop.
    pub fn start(config: &Observe, runtime: &Handle, questions: mpsc::Sender<Question>) -> Self {
        let health = Arc::new(Health::default());
        let metrics = Arc::new(Metrics::default());
        let mut servers = Vec::new();
        if let Some(address) = config.metrics {
            let site = MetricsSite::new(Arc::clone(&metrics), Arc::clone(&health), questions);
            let name = "observe.metrics";
            servers.push((name, Server::start(runtime, name.into(), address, Arc::new(site))));
        }
        if let Some(address) = config.health {
            let site = HealthSite { health: Arc::clone(&health), metrics: Arc::clone(&metrics) };
            let name = "observe.health";
            servers.push((name, Server::start(runtime, name.into(), address, Arc::new(site))));
        }
        Self {
            node_ports: HealthCheckNodePorts::new(runtime.clone(), Arc::clone(&health)),
            health,
            metrics,
            servers,
            wanted: Wanted::new(config),
            touched: BTreeSet::new(),
            ready: false,
            held_node: None,
            triggered: Vec::new(),
            began: Instant::now(),
            warnings: None,
            told_warnings: Vec::new(),
        }
    }

    /// The loop takes something up.
    pub fn begin(&mut self, now: Instant) {
        self.began = now;
        self.health.queued(now);
    }

    /// These events are what it takes up; `waiting` batches had piled up.
    pub fn told(&mut self, events: &[Event], waiting: usize) {
        let (mut services, mut endpoints) = (0_u32, 0_u32);
        for event in events {
            let resource = match event {
                Event::Apply(Object::Service(_)) | Event::Delete(ObjectKey::Service(_)) => {
                    services += 1;
                    "services"
                }
                Event::Apply(Object::EndpointSlice(_)) | Event::Delete(ObjectKey::EndpointSlice(_)) => {
                    endpoints += 1;
                    "endpointslices"
                }
                Event::Apply(Object::Node(_)) | Event::Delete(ObjectKey::Node(_)) => "nodes",
                Event::Apply(Object::ServiceCidr(_)) | Event::Delete(ObjectKey::ServiceCidr(_)) => {
                    "servicecidrs"
                }
                Event::Watch(watch) => {
                    let before = self.health.watch(watch);
                    let of_resource = match (&watch.state, before) {
                        (WatchState::Listing, _) => Some(&self.metrics.relists),
                        // Told again as the reason changes.
                        (WatchState::Down { .. }, Some(WatchState::Down { .. })) => None,
                        (WatchState::Down { .. }, _) => Some(&self.metrics.interruptions),
                        _ => None,
                    };
                    if let Some(counter) = of_resource {
                        counter.with_label_values(&[watch.resource]).inc();
                    }
                    continue;
                }
                Event::TriggeredAt(time) => {
                    // What is told at the start was set off whenever, not a latency of this node.
                    if self.ready && self.triggered.len() < MAX_TRIGGERED {
                        self.triggered.push(*time);
                    }
                    continue;
                }
                Event::Synced | Event::Problems(_) => continue,
            };
            self.metrics.events.with_label_values(&[resource]).inc();
        }
        self.metrics.queued_batches.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.metrics.pass_events.observe(f64::from(u32::try_from(events.len()).unwrap_or(u32::MAX)));
        self.metrics.service_changes.inc_by(services.into());
        self.metrics.endpoint_changes.inc_by(endpoints.into());
        self.metrics.service_changes_pending.add(services.into());
        self.metrics.endpoint_changes_pending.add(endpoints.into());
        if services + endpoints > 0 {
            self.metrics.last_queued.set(seconds(SystemTime::now()));
        }
    }

    /// The plan is made; the kernel does not hold it yet.
    pub fn planned(&mut self, planner: &Planner, delta: &Delta) {
        let held = self.held_node.as_ref().filter(|_| !planner.is_synced());
        self.health.node(planner.own_node().or(held));
        self.warnings = None;
        self.touched.extend(delta.services.iter().cloned());
    }

    /// What an agent before did goes on; until the source is complete, this node's Node counts as it was then.
    pub fn hold(&mut self, node: Node) {
        self.health.node(Some(&node));
        self.held_node = Some(node);
    }

    /// Whether this node drains.
    pub fn drains(&self, drains: bool) {
        self.health.drains(drains);
    }

    /// The kernel was worked on; `holds`: it took everything.
    pub fn worked(&self, pass: Pass, took: Duration, holds: bool) {
        let of_pass = match pass {
            Pass::Full => &self.metrics.full_sync,
            Pass::Partial => &self.metrics.partial_sync,
        };
        of_pass.observe(took.as_secs_f64());
        self.metrics.sync.observe(took.as_secs_f64());
        if holds {
            self.metrics.last_sync.set(seconds(SystemTime::now()));
        }
    }

    /// Conntrack has forgotten endpoints that went.
    pub fn forgot(&self, passes: &[ConntrackPass]) {
        for ConntrackPass { ipv4, took, deleted } in passes {
            let family = [if *ipv4 { "IPv4" } else { "IPv6" }];
            self.metrics.conntrack_sync.with_label_values(&family).observe(took.as_secs_f64());
            self.metrics.conntrack_deleted.with_label_values(&family).inc_by(*deleted);
        }
    }

    /// The periodic look put that many things right.
    pub fn repaired(&self, count: usize) {
        self.metrics.repairs.inc_by(count as u64);
    }

    /// The loop is done with what it took up. `ready`: the kernel was brought in line once; `holds`: it is now.
    pub fn end(&mut self, planner: &Planner, ready: bool, holds: bool) {
        self.metrics.busy.inc_by(self.began.elapsed().as_secs_f64());
        self.health.started(planner.is_synced(), ready);
        self.ready = ready;
        if !ready {
            self.health.nothing_due();
            return;
        }
        self.follow(planner);
        if !holds {
            return;
        }
        let now = SystemTime::now();
        self.health.updated(now);
        self.metrics.service_changes_pending.set(0);
        self.metrics.endpoint_changes_pending.set(0);
        for time in self.triggered.drain(..) {
            // A clock that is ahead of ours makes no negative latency.
            let took = now.duration_since(time).unwrap_or_default();
            self.metrics.network_programming.observe(took.as_secs_f64());
        }
    }

    /// Health-check node ports follow the plan.
    fn follow(&mut self, planner: &Planner) {
        self.node_ports.listen_on(health_check_addresses(planner));
        for service in std::mem::take(&mut self.touched) {
            self.node_ports.set(&service, planner.plan().health_check_of(&service));
        }
    }

    /// What users should know of health-check node ports.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        self.node_ports.warnings()
    }

    /// The same, where they are others than at the last call.
    pub fn changed_warnings(&mut self) -> Option<Vec<Warning>> {
        let now: Vec<Warning> = self.warnings().collect();
        (now != self.told_warnings).then(|| {
            self.told_warnings.clone_from(&now);
            now
        })
    }

    /// How many Services have a health-check node port.
    pub fn health_check_node_ports(&self) -> usize {
        self.node_ports.len()
    }

    /// Which virtual servers have metrics of their own.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// How many warnings there are, by reason.
    pub fn warning_counts(&mut self, planner: &Planner) -> BTreeMap<&'static str, usize> {
        let counts = self.warnings.get_or_insert_with(|| count(planner.warnings()));
        let mut counts = counts.clone();
        for (reason, more) in count(self.node_ports.warnings()) {
            *counts.entry(reason).or_default() += more;
        }
        counts
    }

    /// Listeners that cannot listen, in words.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.servers
            .iter()
            .filter_map(|(name, server)| Some(format!("{name} {}: {}", server.address(), server.problem()?)))
    }

    /// For the status API.
    pub fn health(&self) -> status::Health {
        let (now, listeners) = (Instant::now(), self.servers.iter());
        status::Health {
            healthy: self.health.is_healthy(now),
            node_eligible: self.health.is_node_eligible(),
            last_updated: self.health.last_updated().map(timestamp),
            listeners: listeners
                .map(|(name, server)| status::Listener {
                    name: (*name).into(),
                    address: server.address().to_string(),
                    listening: server.problem().is_none(),
                })
                .collect(),
        }
    }

    /// How the source stands with each resource, for the status API.
    pub fn watches(&self) -> Vec<status::Watch> {
        let watch = |(resource, state): (&str, WatchState)| {
            let (state, since, error) = match state {
                WatchState::Listing => ("listing", None, None),
                WatchState::Watching => ("watching", None, None),
                WatchState::NotServed => ("not served", None, None),
                WatchState::Down { since, error } => ("down", Some(timestamp(since)), Some(error)),
            };
            status::Watch { resource: resource.into(), state: state.into(), since, error }
        };
        self.health.watches().into_iter().map(watch).collect()
    }
}

fn count(warnings: impl IntoIterator<Item = Warning>) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for warning in warnings {
        *counts.entry(warning.reason).or_default() += 1;
    }
    counts
}

/// Where health-check node ports are served: as kube-proxy's, on all addresses unless CIDRs pick some.
fn health_check_addresses(planner: &Planner) -> Vec<IpAddr> {
    if planner.config().services.node_port_addresses.contains(&NodePortAddresses::Primary) {
        vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)]
    } else {
        planner.node_port_addresses().to_vec()
    }
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;
