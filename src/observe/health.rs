//! Whether this node does its work: `/healthz`, `/livez`, `/readyz`.
//!
//! ```text
//! agent's loop ──queued, updated, node, watch──► [Health] ◄──reads── HTTP task
//! ```
//!
//! The HTTP task never asks the loop: one that hangs in the kernel must show. `/healthz` answers as kube-proxy's does, since
//! load balancers and the cluster autoscaler are built on that; an API server that is away does not change it, because
//! forwarding goes on. `/livez` is for whoever kills an agent that does not answer: the loop hangs. A kernel that refuses something
//! is no reason: forwarding goes on as it is, and an agent that is killed again and again loses its routes for want of sessions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper::StatusCode;
use serde::Serialize;

use super::http::{Page, Site};
use super::metrics::Metrics;
use crate::cluster::{Node, Watch, WatchState};

/// How long a change may wait for the kernel before this node is not healthy: kube-proxy's, twice its default
/// `syncPeriod` of 30 s.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// What the agent's loop tells of itself.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// When the kernel was last known to hold everything.
    updated: Option<SystemTime>,
    /// The oldest work that is not in the kernel yet.
    pending_since: Option<Instant>,
    /// When the loop last took something up, which it does every second while it is free.
    taken_up: Option<Instant>,
    node_eligible: bool,
    /// Another node is to be used.
    drains: bool,
    ipv4: bool,
    ipv6: bool,
    synced: bool,
    ready: bool,
    watches: BTreeMap<&'static str, WatchState>,
}

/// What a page tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyReport>,
    /// Ours: resources of the API server that nothing is heard of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    watches_down: Vec<WatchDown>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

/// Without the reason, which is for those who may ask the status socket.
#[derive(Debug, Serialize)]
struct WatchDown {
    resource: &'static str,
    since: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReadyReport {
    ready: bool,
    synced: bool,
    healthy: bool,
    watches_down: Vec<WatchDown>,
}

impl Health {
    /// The loop takes something up.
    pub fn queued(&self, now: Instant) {
        let mut state = self.lock();
        state.pending_since.get_or_insert(now);
        state.taken_up = Some(now);
    }

    /// The kernel holds everything.
    pub fn updated(&self, now: SystemTime) {
        let mut state = self.lock();
        state.pending_since = None;
        state.updated = Some(now);
    }

    /// Before anything is to be in the kernel, nothing is late.
    pub fn nothing_due(&self) {
        self.lock().pending_since = None;
    }

    /// What is known of this node's own Node object.
    pub fn node(&self, node: Option<&Node>) {
        let mut state = self.lock();
        state.node_eligible = node.is_some_and(|node| !node.deleting && !node.to_be_deleted);
        if let Some(node) = node {
            state.ipv4 = node.addresses.iter().any(|address| address.is_ipv4());
            state.ipv6 = node.addresses.iter().any(|address| address.is_ipv6());
        }
    }

    /// Whether this node drains: external load balancers turn to others, as they do when the node is about to go.
    pub fn drains(&self, drains: bool) {
        self.lock().drains = drains;
    }

    /// Whether it does.
    pub fn is_draining(&self) -> bool {
        self.lock().drains
    }

    /// How it stands with the start: the source has told everything, and announcements may be made.
    pub fn started(&self, synced: bool, ready: bool) {
        let mut state = self.lock();
        state.synced = synced;
        state.ready = ready;
    }

    /// How the source stands with a resource. Gives how it stood before.
    pub fn watch(&self, watch: &Watch) -> Option<WatchState> {
        self.lock().watches.insert(watch.resource, watch.state.clone())
    }

    /// How the source stands with each resource.
    pub fn watches(&self) -> BTreeMap<&'static str, WatchState> {
        self.lock().watches.clone()
    }

    /// Whether no change waits for too long, as `/healthz` tells.
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.lock().is_healthy(now)
    }

    /// Whether external load balancers may send traffic here: the Node is not about to go, and does not drain.
    pub fn is_node_eligible(&self) -> bool {
        self.lock().is_eligible()
    }

    /// When the kernel was last known to hold everything.
    pub fn last_updated(&self) -> Option<SystemTime> {
        self.lock().updated
    }

    /// `/healthz`.
    pub fn healthz(&self, now: Instant, time: SystemTime) -> Page {
        let state = self.lock().clone();
        let healthy = state.is_healthy(now);
        let eligible = state.is_eligible();
        state.report(healthy, healthy && eligible, Some(eligible), time)
    }

    /// `/livez`.
    pub fn livez(&self, now: Instant, time: SystemTime) -> Page {
        let state = self.lock().clone();
        let alive = state.is_alive(now);
        state.report(alive, alive, None, time)
    }

    /// `/readyz`.
    pub fn readyz(&self, now: Instant) -> Page {
        let state = self.lock().clone();
        let healthy = state.is_healthy(now);
        let ready = state.ready && healthy;
        let (synced, watches_down) = (state.synced, state.watches_down());
        json(ready, &ReadyReport { ready, synced, healthy, watches_down })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// As in kube-proxy, a start takes as long as it takes; but once the kernel was worked on, it must take that too.
    fn is_healthy(&self, now: Instant) -> bool {
        self.is_starting() || is_recent(self.pending_since, now)
    }

    /// The loop goes round, whatever the kernel says to it.
    fn is_alive(&self, now: Instant) -> bool {
        self.is_starting() || is_recent(self.taken_up, now)
    }

    fn is_starting(&self) -> bool {
        self.updated.is_none() && !self.ready
    }

    fn is_eligible(&self) -> bool {
        self.node_eligible && !self.drains
    }

    fn report(&self, healthy: bool, good: bool, node_eligible: Option<bool>, time: SystemTime) -> Page {
        let updated = self.updated.map_or_else(|| NEVER.into(), timestamp);
        let families = [("IPv4", self.ipv4), ("IPv6", self.ipv6)];
        let status = families
            .into_iter()
            .filter(|(_, present)| *present && self.updated.is_some())
            .map(|(family, _)| (family, FamilyReport { last_updated: updated.clone(), healthy }))
            .collect();
        let report = Report {
            // Recent while all is well, as older releases of kube-proxy had it.
            last_updated: if good { timestamp(time) } else { updated },
            current_time: timestamp(time),
            node_eligible,
            healthy,
            status,
            watches_down: self.watches_down(),
        };
        json(good, &report)
    }

    fn watches_down(&self) -> Vec<WatchDown> {
        self.watches
            .iter()
            .filter_map(|(resource, state)| match state {
                WatchState::Down { since, .. } => Some(WatchDown { resource, since: timestamp(*since) }),
                _ => None,
            })
            .collect()
    }
}

/// Whether that was less than [`TIMEOUT`] ago, if it was.
fn is_recent(since: Option<Instant>, now: Instant) -> bool {
    since.is_none_or(|since| now.saturating_duration_since(since) < TIMEOUT)
}

/// Go's zero time, which kube-proxy prints before the first sync.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A time as in RFC 3339.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

fn json(good: bool, report: &impl Serialize) -> Page {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Reports hold strings, numbers and maps with string keys: they always serialize.
    Page::json(status, serde_json::to_string(report).unwrap_or_default())
}

/// The pages of `observe.health`.
pub struct HealthSite {
    /// What they tell.
    pub health: Arc<Health>,
    /// What counts them.
    pub metrics: Arc<Metrics>,
}

impl Site for HealthSite {
    async fn page(&self, path: &str) -> Option<Page> {
        let (now, time) = (Instant::now(), SystemTime::now());
        match path {
            "/healthz" => {
                let page = self.health.healthz(now, time);
                self.metrics.healthz.with_label_values(&[page.status.as_str()]).inc();
                Some(page)
            }
            "/livez" => {
                let page = self.health.livez(now, time);
                self.metrics.livez.with_label_values(&[page.status.as_str()]).inc();
                Some(page)
            }
            "/readyz" => Some(self.health.readyz(now)),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
