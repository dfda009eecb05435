//! Metrics in Prometheus' text format; `docs/metrics.md` lists them all.
//!
//! ```text
//! agent's loop ──counts as it goes──► [Metrics] ─────────┐
//!              ◄──Question::Snapshot── HTTP task ─────────┼─► text
//! /proc, health ──────────────────────────────────────────┘
//! ```
//!
//! What happens is counted where it happens, in typed fields. What merely is, is asked for at a scrape: one listing of
//! virtual servers, nothing per endpoint. A loop that does not answer costs the scrape what it alone knows. Scrapes
//! that wait at the same time share one question and one text, however many they are.

mod bgp;
mod bmp;
mod drain;
mod exposition;
mod process;
mod snapshot;
mod traffic;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::StatusCode;
use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TEXT_FORMAT, TextEncoder, exponential_buckets, linear_buckets,
};
use tokio::sync::{OnceCell, mpsc, oneshot};

use super::health::Health;
use super::http::{Page, Site, Use};
use super::status::Question;
use crate::cluster::WatchState;
use crate::version;
pub use drain::DrainSnapshot;
use exposition::Families;
pub use snapshot::{ConntrackPass, Passes, Snapshot};
pub use traffic::{Traffic, Wanted};

/// How long the loop may take to answer a scrape: less than Prometheus waits by default.
const PATIENCE: Duration = Duration::from_secs(5);

/// Resources a source follows.
const RESOURCES: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

/// What is counted as it happens. The first group has kube-proxy's names and meanings.
pub struct Metrics {
    registry: Registry,
    /// `kubeproxy_sync_proxy_rules_duration_seconds`.
    pub sync: Histogram,
    /// `kubeproxy_sync_full_proxy_rules_duration_seconds`.
    pub full_sync: Histogram,
    /// `kubeproxy_sync_partial_proxy_rules_duration_seconds`.
    pub partial_sync: Histogram,
    /// `kubeproxy_network_programming_duration_seconds`.
    pub network_programming: Histogram,
    /// `kubeproxy_sync_proxy_rules_last_timestamp_seconds`.
    pub last_sync: Gauge,
    /// `kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds`.
    pub last_queued: Gauge,
    /// `kubeproxy_sync_proxy_rules_endpoint_changes_pending`.
    pub endpoint_changes_pending: IntGauge,
    /// `kubeproxy_sync_proxy_rules_endpoint_changes_total`.
    pub endpoint_changes: IntCounter,
    /// `kubeproxy_sync_proxy_rules_service_changes_pending`.
    pub service_changes_pending: IntGauge,
    /// `kubeproxy_sync_proxy_rules_service_changes_total`.
    pub service_changes: IntCounter,
    /// `kubeproxy_proxy_healthz_total`, by `code`.
    pub healthz: IntCounterVec,
    /// `kubeproxy_proxy_livez_total`, by `code`.
    pub livez: IntCounterVec,
    /// `kubeproxy_conntrack_reconciler_sync_duration_seconds`, by `ip_family`.
    pub conntrack_sync: HistogramVec,
    /// `kubeproxy_conntrack_reconciler_deleted_entries_total`, by `ip_family`.
    pub conntrack_deleted: IntCounterVec,

    /// `sheave_events_total`, by `resource`.
    pub events: IntCounterVec,
    /// `sheave_watch_relists_total`, by `resource`.
    pub relists: IntCounterVec,
    /// `sheave_watch_interruptions_total`, by `resource`.
    pub interruptions: IntCounterVec,
    /// `sheave_queued_batches`.
    pub queued_batches: IntGauge,
    /// `sheave_pass_events`.
    pub pass_events: Histogram,
    /// `sheave_repairs_total`.
    pub repairs: IntCounter,
    /// `sheave_loop_seconds_total`.
    pub busy: Counter,
}

impl Default for Metrics {
    /// All of them at zero.
    fn default() -> Self {
        let maker = Maker(Registry::new());
        let (codes, families) = (["200", "503"], ["IPv4", "IPv6"]);
        Self {
            sync: maker
                .latency("kubeproxy_sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds"),
            full_sync: maker.latency(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
            ),
            partial_sync: maker.latency(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
            ),
            network_programming: maker.histogram(
                "kubeproxy_network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                network_programming_buckets(),
            ),
            last_sync: maker.gauge(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
            ),
            last_queued: maker.gauge(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
            ),
            endpoint_changes_pending: maker.int_gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Pending proxy rules Endpoint changes",
            ),
            endpoint_changes: maker.counter(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "Cumulative proxy rules Endpoint changes",
            ),
            service_changes_pending: maker.int_gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Pending proxy rules Service changes",
            ),
            service_changes: maker.counter(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "Cumulative proxy rules Service changes",
            ),
            healthz: maker.counters(
                "kubeproxy_proxy_healthz_total",
                "Cumulative proxy healthz HTTP status",
                "code",
                &codes,
            ),
            livez: maker.counters(
                "kubeproxy_proxy_livez_total",
                "Cumulative proxy livez HTTP status",
                "code",
                &codes,
            ),
            conntrack_sync: maker.latencies(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                "ip_family",
                &families,
            ),
            conntrack_deleted: maker.counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "Cumulative conntrack flows deleted by conntrack reconciler",
                "ip_family",
                &families,
            ),
            events: maker.counters(
                "sheave_events_total",
                "Objects that the source told of, new, changed or gone",
                "resource",
                &RESOURCES,
            ),
            relists: maker.counters(
                "sheave_watch_relists_total",
                "Lists of a resource: the first, those after a lost history, and long ones after an interruption",
                "resource",
                &RESOURCES,
            ),
            interruptions: maker.counters(
                "sheave_watch_interruptions_total",
                "How often a resource came to be unheard of",
                "resource",
                &RESOURCES,
            ),
            queued_batches: maker.int_gauge(
                "sheave_queued_batches",
                "Batches of events that had piled up when the loop last took some",
            ),
            pass_events: maker.histogram(
                "sheave_pass_events",
                "Events taken together in one pass of the loop",
                // Fixed arguments within what the function takes.
                exponential_buckets(1.0, 4.0, 8).unwrap_or_default(),
            ),
            repairs: maker.counter(
                "sheave_repairs_total",
                "Things that the periodic look found to be other than planned and put right",
            ),
            busy: maker.float_counter(
                "sheave_loop_seconds_total",
                "Time the loop spent on events and the kernel, as opposed to waiting for them",
            ),
            registry: maker.0,
        }
    }
}

impl Metrics {
    /// Everything, as text. `snapshot`: what the loop told, if it did.
    fn render(&self, health: &Health, snapshot: Option<&Snapshot>) -> String {
        let mut families = Families::default();
        families.gauge(
            "sheave_build_info",
            "1, with the version of the agent and the commit it was built from",
            [(&[("version", version::NUMBER), ("revision", version::REVISION)][..], 1.0)],
        );
        families.gauge(
            "sheave_scrape_complete",
            "Whether the loop answered this scrape; without its answer, what it alone knows is missing",
            [(&[][..], f64::from(snapshot.is_some()))],
        );
        watches(&mut families, health);
        if let Some(snapshot) = snapshot {
            snapshot.add_to(&mut families);
        }
        process::add_to(&mut families);
        let mut all = self.registry.gather();
        all.extend(families.into_inner());
        all.sort_by(|a, b| a.name().cmp(b.name()));
        // Writing to a string fails for families without metrics alone, and there are none.
        TextEncoder::new().encode_to_string(&all).unwrap_or_default()
    }
}

fn watches(families: &mut Families, health: &Health) {
    let watches = health.watches();
    let served = watches.iter().filter(|(_, state)| **state != WatchState::NotServed);
    let labels: Vec<_> = served.map(|(resource, state)| ([("resource", *resource)], state)).collect();
    families.gauge(
        "sheave_watch_up",
        "Whether changes of a resource are told as they happen",
        labels.iter().map(|(labels, state)| (&labels[..], f64::from(**state == WatchState::Watching))),
    );
    families.gauge(
        "sheave_watch_down_since_timestamp_seconds",
        "Since when nothing is heard of a resource; absent while something is",
        labels.iter().filter_map(|(labels, state)| match state {
            WatchState::Down { since, .. } => Some((&labels[..], seconds(*since))),
            _ => None,
        }),
    );
}

/// Makes metrics and registers them.
struct Maker(Registry);

impl Maker {
    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("names, labels and buckets are fixed and valid");
        self.0.register(Box::new(made.clone())).expect("each name is registered once");
        made
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn float_counter(&self, name: &str, help: &str) -> Counter {
        self.register(Counter::new(name, help))
    }

    /// Known values of the label are there from the start, so that their first increase shows.
    fn counters(&self, name: &str, help: &str, label: &str, known: &[&str]) -> IntCounterVec {
        let counters = self.register(IntCounterVec::new(Opts::new(name, help), &[label]));
        for value in known {
            counters.with_label_values(&[value]);
        }
        counters
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    /// With kube-proxy's buckets for syncs: 1 ms to 16 s.
    fn latency(&self, name: &str, help: &str) -> Histogram {
        self.histogram(name, help, latency_buckets())
    }

    /// The same with a label, whose known values are there from the start.
    fn latencies(&self, name: &str, help: &str, label: &str, known: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(latency_buckets());
        let histograms = self.register(HistogramVec::new(options, &[label]));
        for value in known {
            histograms.with_label_values(&[value]);
        }
        histograms
    }
}

/// kube-proxy's for syncs.
fn latency_buckets() -> Vec<f64> {
    exponential_buckets(0.001, 2.0, 15).unwrap_or_default()
}

/// kube-proxy's: 0.25 s, 0.5 s, each second up to 59 s, every 5 s up to 115 s, every 30 s up to 5 min.
fn network_programming_buckets() -> Vec<f64> {
    [(0.25, 0.25, 2), (1.0, 1.0, 59), (60.0, 5.0, 12), (120.0, 30.0, 7)]
        .into_iter()
        .flat_map(|(start, width, count)| linear_buckets(start, width, count).unwrap_or_default())
        .collect()
}

/// A time as Prometheus wants it: seconds since 1970.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The page of `observe.metrics`.
pub struct MetricsSite {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    questions: mpsc::Sender<Question>,
    /// The scrape under way, as long as somebody waits for it.
    under_way: Mutex<Weak<OnceCell<Bytes>>>,
}

impl MetricsSite {
    /// Of what was counted and the watches' states; `questions` lead to the agent's loop.
    pub fn new(metrics: Arc<Metrics>, health: Arc<Health>, questions: mpsc::Sender<Question>) -> Self {
        Self { metrics, health, questions, under_way: Mutex::default() }
    }

    /// Joins the scrape under way, or begins one. If whoever began it goes away, another of those who wait takes over.
    async fn text(&self) -> Bytes {
        let scrape = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.upgrade().filter(|scrape| !scrape.initialized()).unwrap_or_else(|| {
                let scrape = Arc::default();
                *under_way = Arc::downgrade(&scrape);
                scrape
            })
        };
        let text = scrape.get_or_init(async || {
            let snapshot = self.ask().await;
            self.metrics.render(&self.health, snapshot.as_ref()).into()
        });
        text.await.clone()
    }

    async fn ask(&self) -> Option<Snapshot> {
        let (question, answer) = oneshot::channel();
        let asked = async {
            self.questions.send(Question::Snapshot(question)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
    }
}

impl Site for MetricsSite {
    const USE: Use = Use::OFTEN;

    async fn page(&self, path: &str) -> Option<Page> {
        let (content_type, body) = match path {
            "/metrics" => (TEXT_FORMAT, self.text().await),
            // Tools ask a node's proxy for its mode there.
            "/proxyMode" => ("text/plain; charset=utf-8", Bytes::from_static(b"ipvs")),
            _ => return None,
        };
        Some(Page { status: StatusCode::OK, content_type, headers: Vec::new(), body })
    }
}

#[cfg(test)]
mod tests;
