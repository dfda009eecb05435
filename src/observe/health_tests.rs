use super::super::http::tests::get;
use super::*;
use crate::builders::mk_node;

/// What the loop tells, `Duration`s being seconds since the start.
enum Told {
    Queued(u64),
    Updated,
    Node { deleting: bool, tainted: bool },
    NoNode,
    Down(&'static str),
}
use Told::{Down, NoNode, Node as Told_Node, Queued, Updated};

const GOOD_NODE: Told = Told_Node { deleting: false, tainted: false };

fn node(deleting: bool, to_be_deleted: bool) -> Node {
    Node { deleting, to_be_deleted, ..mk_node("node-a", &["10.0.0.1", "fd00::1"]) }
}

fn told(history: &[Told], start: Instant, wall: SystemTime) -> Health {
    let health = Health::default();
    for event in history {
        match event {
            Queued(at) => health.queued(start + Duration::from_secs(*at)),
            Updated => health.updated(wall),
            Told_Node { deleting, tainted } => health.node(Some(&node(*deleting, *tainted))),
            NoNode => health.node(None),
            Down(resource) => drop(health.watch(&Watch {
                resource,
                state: WatchState::Down { since: wall, error: "secret reason".into() },
            })),
        }
    }
    health
}

fn text(page: &Page) -> String {
    String::from_utf8(page.body.to_vec()).unwrap()
}

#[test]
fn codes_are_those_of_kube_proxy_but_for_a_kernel_that_refuses() {
    let (start, wall) = (Instant::now(), SystemTime::now());
    let timeout = TIMEOUT.as_secs();
    // Name, history, seconds since the start, /healthz, /livez.
    let cases: Vec<(&str, Vec<Told>, u64, u16, u16)> = vec![
        ("nothing told: the Node is missing", vec![], 0, 503, 200),
        ("starting up", vec![GOOD_NODE], 0, 200, 200),
        ("a long start is no failure", vec![GOOD_NODE, Queued(0)], 10 * timeout, 200, 200),
        ("synced", vec![GOOD_NODE, Queued(0), Updated], 1, 200, 200),
        ("long idle", vec![GOOD_NODE, Queued(100 * timeout), Updated], 100 * timeout, 200, 200),
        ("a change waits", vec![GOOD_NODE, Updated, Queued(10)], 10 + timeout - 1, 200, 200),
        ("a change waits too long", vec![GOOD_NODE, Updated, Queued(10)], 10 + timeout, 503, 503),
        (
            "the kernel refuses, the loop goes on",
            vec![GOOD_NODE, Updated, Queued(0), Queued(timeout - 1)],
            timeout,
            503,
            200,
        ),
        ("… for hours", vec![GOOD_NODE, Updated, Queued(0), Queued(36_000)], 36_000, 503, 200),
        ("then the loop hangs", vec![GOOD_NODE, Updated, Queued(0), Queued(10)], 10 + timeout, 503, 503),
        ("idle, and the loop hangs", vec![GOOD_NODE, Queued(0), Updated], timeout, 200, 503),
        (
            "it recovers",
            vec![GOOD_NODE, Updated, Queued(0), Queued(2 * timeout), Updated],
            2 * timeout,
            200,
            200,
        ),
        ("a clock that steps back", vec![GOOD_NODE, Updated, Queued(100)], 0, 200, 200),
        ("the Node is deleted", vec![Told_Node { deleting: true, tainted: false }, Updated], 0, 503, 200),
        ("the Node is tainted", vec![Told_Node { deleting: false, tainted: true }, Updated], 0, 503, 200),
        ("the Node is gone", vec![GOOD_NODE, Updated, NoNode], 0, 503, 200),
        (
            "the taint goes",
            vec![Told_Node { deleting: false, tainted: true }, GOOD_NODE, Updated],
            0,
            200,
            200,
        ),
        ("tainted and late", vec![NoNode, Updated, Queued(0)], timeout, 503, 503),
        ("the API server is away", vec![GOOD_NODE, Updated, Down("services"), Down("nodes")], 5, 200, 200),
    ];
    for (name, history, seconds, healthz, livez) in cases {
        let health = told(&history, start, wall);
        let now = start + Duration::from_secs(seconds);
        assert_eq!(health.healthz(now, wall).status, healthz, "{name}");
        assert_eq!(health.livez(now, wall).status, livez, "{name}");
    }
}

#[test]
fn a_kernel_that_never_takes_anything_is_no_start() {
    let (start, wall) = (Instant::now(), SystemTime::now());
    let health = told(&[GOOD_NODE, Queued(0)], start, wall);
    for (ready, after, status) in [(false, TIMEOUT, 200), (true, TIMEOUT / 2, 200), (true, TIMEOUT, 503)] {
        health.started(true, ready);
        assert_eq!(health.healthz(start + after, wall).status, status, "ready {ready} after {after:?}");
    }
}

#[test]
fn bodies_are_those_of_kube_proxy() {
    let (start, updated) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    let now = updated + Duration::from_millis(1500);
    let health = told(&[GOOD_NODE, Updated, Queued(0)], start, updated);
    let late = start + TIMEOUT;
    let family = r#""lastUpdated":"2001-09-09T01:46:40.000000000Z","healthy""#;
    assert_eq!(
        health.healthz(start, now).body,
        format!(
            r#"{{"lastUpdated":"2001-09-09T01:46:41.500000000Z","currentTime":"2001-09-09T01:46:41.500000000Z","nodeEligible":true,"healthy":true,"status":{{"IPv4":{{{family}:true}},"IPv6":{{{family}:true}}}}}}"#
        )
    );
    assert_eq!(
        health.livez(late, now).body,
        format!(
            r#"{{"lastUpdated":"2001-09-09T01:46:40.000000000Z","currentTime":"2001-09-09T01:46:41.500000000Z","healthy":false,"status":{{"IPv4":{{{family}:false}},"IPv6":{{{family}:false}}}}}}"#
        )
    );
    health.node(None);
    let body = text(&health.healthz(start, now));
    assert!(body.contains(r#""nodeEligible":false,"healthy":true"#), "{body}");
    let starting = Health::default().healthz(start, now).body;
    assert_eq!(
        starting,
        r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2001-09-09T01:46:41.500000000Z","nodeEligible":false,"healthy":true}"#
    );
}

#[test]
fn what_is_not_heard_of_is_told_without_the_reason() {
    let start = Instant::now();
    let health = told(&[GOOD_NODE, Updated, Down("nodes")], start, SystemTime::UNIX_EPOCH);
    let down = r#""watchesDown":[{"resource":"nodes","since":"1970-01-01T00:00:00.000000000Z"}]"#;
    for page in [health.healthz(start, SystemTime::now()), health.readyz(start)] {
        let body = text(&page);
        assert!(body.contains(down) && !body.contains("secret"), "{body}");
    }
    health.watch(&Watch { resource: "nodes", state: WatchState::Watching });
    assert!(!text(&health.healthz(start, SystemTime::now())).contains("watchesDown"));
}

#[test]
fn ready_once_announcements_may_be_made_and_while_the_kernel_takes_changes() {
    let (health, start) = (Health::default(), Instant::now());
    let page = |now| {
        let page = health.readyz(now);
        (page.status.as_u16(), text(&page))
    };
    let body = |ready, synced, healthy| {
        format!(r#"{{"ready":{ready},"synced":{synced},"healthy":{healthy},"watchesDown":[]}}"#)
    };
    for (synced, ready, status) in [(false, false, 503), (true, false, 503), (true, true, 200)] {
        health.started(synced, ready);
        assert_eq!(page(start), (status, body(ready, synced, true)));
    }
    health.queued(start);
    assert_eq!(page(start + TIMEOUT / 2), (200, body(true, true, true)));
    assert_eq!(page(start + TIMEOUT), (503, body(false, true, false)), "it refuses a change for a minute");
    health.updated(SystemTime::now());
    assert_eq!(page(start + TIMEOUT), (200, body(true, true, true)));
}

#[tokio::test]
async fn served_and_counted() {
    let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::default()));
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], super::super::http::tests::free_port()));
    let site = HealthSite { health: Arc::clone(&health), metrics: Arc::clone(&metrics) };
    let _server = super::super::http::Server::start(
        &tokio::runtime::Handle::current(),
        "health".into(),
        address,
        Arc::new(site),
    );
    for (path, status) in
        [("/healthz", 503), ("/livez", 200), ("/readyz", 503), ("/", 404), ("/metrics", 404)]
    {
        let answer = get(address, path).await;
        assert_eq!(answer.status, status, "{path}");
        if status != 404 {
            assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
            assert!(answer.head.contains("x-content-type-options: nosniff"), "{}", answer.head);
        }
    }
    health.node(Some(&node(false, false)));
    assert_eq!(get(address, "/healthz").await.status, 200);
    let count = |code| metrics.healthz.with_label_values(&[code]).get();
    assert_eq!((count("200"), count("503")), (1, 1));
    assert_eq!(metrics.livez.with_label_values(&["200"]).get(), 1);
}

#[test]
fn a_node_that_drains_is_not_eligible() {
    let health = Health::default();
    health.node(Some(&node(false, false)));
    health.updated(SystemTime::now());
    for (drains, healthz) in [(false, 200), (true, 503), (false, 200)] {
        health.drains(drains);
        let (now, time) = (Instant::now(), SystemTime::now());
        let codes = (health.healthz(now, time).status.as_u16(), health.livez(now, time).status.as_u16());
        assert_eq!(codes, (healthz, 200), "drains: {drains}");
        assert_eq!(health.is_node_eligible(), !drains);
    }
}
