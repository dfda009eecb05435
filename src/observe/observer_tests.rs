//! The observer as the agent's loop uses it, over real sockets.

use std::net::SocketAddr;

use serde_json::Value;

use super::super::http::tests::{eventually, free_port, get};
use super::*;
use crate::builders::{mk_node, mk_service, name};
use crate::cluster::{Node, Service, TrafficPolicy, Watch};
use crate::config::Config;

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn service(service: &str, health_check_node_port: u16) -> Event {
    let service = Service {
        cluster_ips: vec!["10.96.0.80".parse().unwrap()],
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(health_check_node_port),
        ..mk_service(service)
    };
    Event::Apply(Object::Service(Arc::new(service)))
}

fn node(deleting: bool) -> Event {
    Event::Apply(Object::Node(Arc::new(own_node(deleting))))
}

fn own_node(deleting: bool) -> Node {
    Node { deleting, ..mk_node("node-a", &["127.0.0.1"]) }
}

/// Planner and observer, driven as the loop drives them.
struct Loop {
    planner: Planner,
    observer: Observer,
    questions: mpsc::Receiver<Question>,
}

impl Loop {
    fn new(config: &str) -> Self {
        let config = Config::parse(std::path::Path::new("config.yaml"), config).unwrap();
        let (question, questions) = mpsc::channel(4);
        let observer = Observer::start(&config.observe, &Handle::current(), question);
        Self { planner: Planner::new("node-a", config), observer, questions }
    }

    fn turn(&mut self, events: Vec<Event>, ready: bool, holds: bool) {
        self.observer.begin(Instant::now());
        self.observer.told(&events, 0);
        let delta = self.planner.handle(events);
        self.observer.planned(&self.planner, &delta);
        self.observer.worked(Pass::Partial, Duration::from_millis(3), holds);
        self.observer.end(&self.planner, ready, holds);
    }
}

#[tokio::test]
async fn what_the_loop_tells_is_served() {
    let (metrics, health, check) = (local(free_port()), local(free_port()), free_port());
    let mut agent = Loop::new(&format!(
        "observe: {{metrics: '{metrics}', health: '{health}'}}\nservices: {{nodePortAddresses: [127.0.0.0/8]}}\n"
    ));
    assert_eq!(get(health, "/healthz").await.status, 503, "no Node is known");
    assert_eq!(get(health, "/readyz").await.status, 503);

    let long_ago = SystemTime::now() - Duration::from_secs(30);
    agent.turn(vec![node(false), service("web", check)], false, false);
    assert_eq!(get(health, "/healthz").await.status, 200, "starting up");
    assert_eq!(get(health, "/readyz").await.status, 503);
    assert_eq!(agent.observer.health_check_node_ports(), 0, "served once the kernel is in line");
    assert_eq!(agent.observer.metrics.network_programming.get_sample_count(), 0);
    assert_eq!(agent.observer.metrics.service_changes_pending.get(), 1);

    agent.turn(vec![Event::Synced], true, true);
    assert_eq!(get(health, "/readyz").await.status, 200);
    let answer = get(local(check), "/").await;
    assert_eq!(answer.status, 503, "no local endpoints");
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["service"]["name"], "web");
    assert_eq!(agent.observer.metrics.service_changes_pending.get(), 0);

    agent.turn(vec![Event::TriggeredAt(long_ago)], true, true);
    let latency = &agent.observer.metrics.network_programming;
    assert_eq!(latency.get_sample_count(), 1);
    assert!((29.0..60.0).contains(&latency.get_sample_sum()), "{}", latency.get_sample_sum());

    // A kernel that does not take a change: it stays pending, and nothing counts as programmed.
    agent.turn(vec![service("web", check), Event::TriggeredAt(long_ago)], true, false);
    assert_eq!(agent.observer.metrics.service_changes_pending.get(), 1);
    assert_eq!(agent.observer.metrics.network_programming.get_sample_count(), 1);
    assert_eq!(get(health, "/healthz").await.status, 200, "not late yet");

    agent.turn(vec![node(true)], true, true);
    assert_eq!(get(health, "/healthz").await.status, 503, "the Node is being deleted");
    assert_eq!(get(health, "/livez").await.status, 200);

    // Another program has the port of another Service.
    assert_eq!(agent.observer.changed_warnings(), None);
    let taken = std::net::TcpListener::bind(local(0)).unwrap();
    agent.turn(vec![service("other", taken.local_addr().unwrap().port())], true, true);
    assert!(eventually(|| agent.observer.warnings().next().is_some()).await);
    let warnings = agent.observer.changed_warnings().unwrap();
    assert_eq!(warnings[0].reason, "FailedToStartServiceHealthcheck");
    assert_eq!(agent.observer.changed_warnings(), None);
    assert_eq!(agent.observer.warning_counts(&agent.planner)["FailedToStartServiceHealthcheck"], 1);
    agent.turn(vec![Event::Delete(ObjectKey::Service(name("other")))], true, true);
    assert_eq!(agent.observer.changed_warnings(), Some(Vec::new()));

    agent.turn(vec![Event::Delete(ObjectKey::Service(name("web")))], true, true);
    assert_eq!(agent.observer.health_check_node_ports(), 0);
    let status = agent.observer.health();
    assert!(status.healthy && !status.node_eligible && status.last_updated.is_some(), "{status:?}");
    assert_eq!(status.listeners.len(), 2);

    // The loop answers a scrape.
    let scrape = tokio::spawn(async move { get(metrics, "/metrics").await });
    match agent.questions.recv().await {
        Some(Question::Snapshot(asker)) => drop(asker.send(super::super::metrics::Snapshot::default())),
        other => panic!("{other:?}"),
    }
    let answer = scrape.await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    for line in [
        "sheave_scrape_complete 1",
        "kubeproxy_sync_proxy_rules_service_changes_total 5",
        "sheave_events_total{resource=\"nodes\"} 2",
        "kubeproxy_sync_proxy_rules_duration_seconds_count 8",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
    ] {
        assert!(answer.body.lines().any(|has| has == line), "{line} in\n{}", answer.body);
    }
    let mode = get(metrics, "/proxyMode").await;
    assert_eq!((mode.status, &*mode.body), (200, "ipvs"));
    for path in ["/", "/healthz", "/debug/pprof/"] {
        assert_eq!(get(metrics, path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_loop_that_hangs_shows_and_can_still_be_scraped() {
    let (metrics, health) = (local(free_port()), local(free_port()));
    let mut agent = Loop::new(&format!("observe: {{metrics: '{metrics}', health: '{health}'}}\n"));
    agent.turn(vec![node(false), Event::Synced], true, true);
    assert_eq!(get(health, "/healthz").await.status, 200);
    let since = Instant::now()
        .checked_sub(2 * super::super::health::TIMEOUT)
        .expect("this machine runs for some minutes");
    agent.observer.begin(since);
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(get(health, path).await.status, 503, "{path}");
    }
    // It comes round, and the kernel has not taken the change.
    agent.turn(Vec::new(), true, false);
    for (path, status) in [("/healthz", 503), ("/livez", 200), ("/readyz", 503)] {
        assert_eq!(get(health, path).await.status, status, "{path}");
    }
    let answer = get(metrics, "/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("sheave_scrape_complete 0\n"), "{}", answer.body);
    assert!(answer.body.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 2\n"), "{}", answer.body);
}

#[tokio::test]
async fn while_held_the_node_counts_as_it_was() {
    let health = local(free_port());
    let mut agent = Loop::new(&format!("observe: {{metrics: '', health: '{health}'}}\n"));
    let down = WatchState::Down { since: SystemTime::now(), error: "connection refused".into() };
    let down = || Event::Watch(Watch { resource: "nodes", state: down.clone() });
    agent.turn(vec![down()], false, false);
    assert_eq!(get(health, "/healthz").await.status, 503, "nothing is known");
    agent.observer.hold(own_node(false));
    // Name, events, whether the agent is ready, /healthz, /readyz.
    for (what, events, ready, healthz, readyz) in [
        ("still away", vec![down()], false, 200, 503),
        ("coming, but this Node is not told yet", vec![service("web", free_port())], false, 200, 503),
        ("told of, and about to go", vec![node(true)], false, 503, 503),
        ("whole", vec![node(false), Event::Synced], true, 200, 200),
        ("the Node is gone", vec![Event::Delete(ObjectKey::Node("node-a".into()))], true, 503, 200),
    ] {
        agent.turn(events, ready, ready);
        assert_eq!(get(health, "/healthz").await.status, healthz, "{what}");
        assert_eq!(get(health, "/readyz").await.status, readyz, "{what}");
        assert_eq!(get(health, "/livez").await.status, 200, "{what}");
    }
}

#[tokio::test]
async fn trigger_times_count_since_the_start_and_are_bounded() {
    let mut agent = Loop::new("observe: {metrics: '', health: ''}\n");
    let many = || vec![Event::TriggeredAt(SystemTime::now()); 3000];
    let observed = |agent: &Loop| agent.observer.metrics.network_programming.get_sample_count();
    for (what, ready, holds, kept, counted) in [
        ("before the start", false, false, 0, 0),
        ("what the start begins with", true, true, 0, 0),
        ("a kernel that does not take it", true, false, 3000, 0),
        ("still not", true, false, MAX_TRIGGERED, 0),
        ("then it does", true, true, 0, MAX_TRIGGERED as u64),
        ("as ever", true, true, 0, MAX_TRIGGERED as u64 + 3000),
    ] {
        agent.turn(many(), ready, holds);
        assert_eq!((agent.observer.triggered.len(), observed(&agent)), (kept, counted), "{what}");
    }
}

#[tokio::test]
async fn a_clock_that_is_behind_the_api_servers_makes_no_time_negative() {
    let mut agent = Loop::new("observe: {metrics: '', health: ''}\n");
    agent.turn(Vec::new(), true, true);
    let later = SystemTime::now() + Duration::from_secs(3600);
    agent.turn(vec![Event::TriggeredAt(later)], true, true);
    let programming = &agent.observer.metrics.network_programming;
    assert_eq!((programming.get_sample_count(), programming.get_sample_sum()), (1, 0.0));
}

#[tokio::test]
async fn listeners_can_be_off() {
    let agent = Loop::new("observe: {metrics: '', health: null}\n");
    assert!(agent.observer.health().listeners.is_empty());
}

#[tokio::test]
async fn watches_are_told_as_they_stand() {
    let mut agent = Loop::new("observe: {metrics: '', health: ''}\n");
    let watch = |resource, state| Event::Watch(Watch { resource, state });
    let down = WatchState::Down { since: SystemTime::UNIX_EPOCH, error: "connection refused".into() };
    agent.turn(
        vec![
            watch("services", WatchState::Listing),
            watch("services", WatchState::Watching),
            watch("nodes", WatchState::Listing),
            watch(
                "nodes",
                WatchState::Down { since: SystemTime::UNIX_EPOCH, error: "connection reset".into() },
            ),
            watch("nodes", down),
            watch("servicecidrs", WatchState::NotServed),
        ],
        true,
        true,
    );
    let watches: Vec<_> = agent
        .observer
        .watches()
        .into_iter()
        .map(|watch| format!("{} {} {:?} {:?}", watch.resource, watch.state, watch.since, watch.error))
        .collect();
    assert_eq!(
        watches,
        [
            "nodes down Some(\"1970-01-01T00:00:00.000000000Z\") Some(\"connection refused\")",
            "servicecidrs not served None None",
            "services watching None None",
        ]
    );
    assert_eq!(agent.observer.metrics.relists.with_label_values(&["services"]).get(), 1);
    let interruptions = |resource| agent.observer.metrics.interruptions.with_label_values(&[resource]).get();
    assert_eq!((interruptions("nodes"), interruptions("services")), (1, 0));
}
