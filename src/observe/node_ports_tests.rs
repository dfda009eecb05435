use std::time::SystemTime;

use super::super::health::TIMEOUT;
use super::super::http::tests::{eventually, free_port, get};
use super::*;

fn name(name: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: name.into() }
}

fn check(service: &str, port: u16, local_endpoints: usize) -> HealthCheck {
    HealthCheck { service: name(service), port, local_endpoints }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn node_ports(health: &Arc<Health>) -> HealthCheckNodePorts {
    let mut ports = HealthCheckNodePorts::new(Handle::current(), Arc::clone(health));
    ports.listen_on(vec![local(0).ip()]);
    ports
}

/// A moment at which everything that was queued long ago is late.
fn fall_ill(health: &Health) {
    health.updated(SystemTime::now());
    health.queued(Instant::now().checked_sub(2 * TIMEOUT).expect("this machine runs for some minutes"));
}

#[tokio::test]
async fn answers_are_those_of_kube_proxy() {
    let health = Arc::new(Health::default());
    let mut ports = node_ports(&health);
    let port = free_port();
    // Local endpoints, healthy, status.
    for (endpoints, healthy, status) in
        [(0, true, 503), (1, true, 200), (12, true, 200), (3, false, 503), (0, false, 503), (2, true, 200)]
    {
        if healthy {
            health.updated(SystemTime::now());
        } else {
            fall_ill(&health);
        }
        ports.set(&name("web"), Some(&check("web", port, endpoints)));
        for path in ["/", "/healthz", "/whatever"] {
            let answer = get(local(port), path).await;
            assert_eq!(answer.status, status, "{endpoints} endpoints, healthy {healthy}, {path}");
            let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            let expected = serde_json::json!({
                "service": {"namespace": "default", "name": "web"},
                "localEndpoints": endpoints,
                "serviceProxyHealthy": healthy,
            });
            assert_eq!(body, expected);
            for header in [
                "content-type: application/json".to_string(),
                "x-content-type-options: nosniff".into(),
                format!("x-load-balancing-endpoint-weight: {endpoints}"),
            ] {
                assert!(answer.head.contains(&header), "{header} in {}", answer.head);
            }
        }
    }
}

#[tokio::test]
async fn ports_follow_their_services() {
    let health = Arc::new(Health::default());
    let mut ports = node_ports(&health);
    let (first, second) = (free_port(), free_port());
    ports.set(&name("a"), Some(&check("a", first, 1)));
    ports.set(&name("b"), Some(&check("b", second, 0)));
    assert_eq!((get(local(first), "/").await.status, get(local(second), "/").await.status), (200, 503));
    assert_eq!(ports.len(), 2);

    // The port of a Service that is gone is free for another, at once.
    ports.set(&name("b"), None);
    ports.set(&name("a"), Some(&check("a", second, 1)));
    loop {
        let answer = get(local(second), "/").await;
        if answer.body.contains("\"a\"") {
            assert_eq!(answer.status, 200);
            break;
        }
    }
    let free = || std::net::TcpListener::bind(local(first)).is_ok();
    assert!(eventually(free).await, "the old port is still open");
    ports.set(&name("a"), None);
    assert_eq!(ports.len(), 0);
}

#[tokio::test]
async fn a_port_that_cannot_be_opened_is_warned_of_and_tried_again() {
    let health = Arc::new(Health::default());
    let mut ports = node_ports(&health);
    let taken = std::net::TcpListener::bind(local(0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    ports.set(&name("web"), Some(&check("web", port, 1)));
    assert!(eventually(|| ports.warnings().next().is_some()).await);
    let warning = ports.warnings().next().unwrap();
    assert_eq!(warning.object, "Service default/web");
    assert_eq!(warning.reason, "FailedToStartServiceHealthcheck");
    assert!(warning.message.contains(&port.to_string()), "{}", warning.message);
    drop(taken);
    assert_eq!(get(local(port), "/").await.status, 200);
    assert!(eventually(|| ports.warnings().next().is_none()).await);
}

#[tokio::test]
async fn addresses_can_change() {
    let health = Arc::new(Health::default());
    let mut ports = node_ports(&health);
    let port = free_port();
    ports.set(&name("web"), Some(&check("web", port, 1)));
    assert_eq!(get(local(port), "/").await.status, 200);
    let other = SocketAddr::from(([127, 0, 0, 2], port));
    ports.listen_on(vec![other.ip()]);
    assert_eq!(get(other, "/").await.status, 200);
    let free = || std::net::TcpListener::bind(local(port)).is_ok();
    assert!(eventually(free).await);
}

#[tokio::test]
async fn a_node_that_drains_has_no_endpoints_to_offer() {
    let health = Arc::new(Health::default());
    let mut ports = node_ports(&health);
    let port = free_port();
    health.updated(SystemTime::now());
    ports.set(&name("web"), Some(&check("web", port, 2)));
    for (drains, status) in [(false, 200), (true, 503), (false, 200)] {
        health.drains(drains);
        assert_eq!(get(local(port), "/").await.status, status, "drains: {drains}");
    }
}
