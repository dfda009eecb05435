//! `sheave explain` as users and their scripts see it, from manifests.
//!
//! `UPDATE_GOLDEN=1 cargo test --test explain` writes the golden files anew.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

mod golden;

use std::process::Output;

use self::golden::{golden, sheave};

const CLUSTER: [&str; 6] = ["--manifests", "explain", "--config", "explain.config.yaml", "--node", "node-a"];
const QUICKSTART: [&str; 6] = [
    "--manifests",
    "../../examples/quickstart/manifests",
    "--config",
    "../../examples/quickstart/config/node-a.yaml",
    "--node",
    "node-a",
];

fn explain(args: &[&str]) -> Output {
    sheave(&[&["explain"][..], args].concat())
}

/// The golden file of what is explained.
fn explained(file: &str, args: &[&str]) {
    golden(&format!("explain/{file}"), &[&["explain"][..], args].concat());
}

#[test]
fn services_of_the_quick_start() {
    for (file, target) in [
        ("web.txt", "default/web"),
        ("dns.txt", "10.96.0.10:53"),
        ("api.txt", "10.0.0.11:30443"),
        ("database.txt", "[2001:db8:2::90]:5432/tcp"),
        ("signalling.txt", "192.0.2.29:2905/sctp"),
        ("peers.txt", "default/peers"),
    ] {
        explained(file, &[&QUICKSTART[..], &[target]].concat());
    }
}

#[test]
fn services_that_are_not_as_their_owners_may_think() {
    for (file, target) in [
        ("local-policy.txt", "shop/edge"),
        ("no-endpoints.txt", "shop/empty"),
        ("terminating.txt", "shop/rollout"),
        ("dropped.txt", "shop/far"),
        ("conflict-and-denied.txt", "shop/claims"),
        ("hints-and-class.txt", "shop/near"),
        ("other-proxy.txt", "shop/meshed"),
    ] {
        explained(file, &[&CLUSTER[..], &[target]].concat());
    }
}

#[test]
fn a_service_that_clients_within_the_cluster_reach_otherwise() {
    let cluster =
        CLUSTER.map(|arg| if arg == "explain.config.yaml" { "explain-internal.config.yaml" } else { arg });
    explained("internal-nat.txt", &[&cluster[..], &["shop/edge"]].concat());
}

#[test]
fn json_has_every_key() {
    explained("local-policy.json", &[&CLUSTER[..], &["192.0.2.1:80", "-o", "json"]].concat());
}

#[test]
fn an_address_that_is_not_bound_leads_to_whoever_names_it() {
    explained("denied.txt", &[&CLUSTER[..], &["203.0.113.5:80"]].concat());
}

#[test]
fn what_is_not_there_is_told_with_what_is_near() {
    for (target, message) in [
        ("shop/egde", "there is no Service shop/egde; there is shop/edge"),
        ("default/far", "there is no Service default/far; there is shop/far"),
        ("default/nothing-like-it", "there is no Service default/nothing-like-it"),
        (
            "192.0.2.1:81",
            "192.0.2.1:81: no Service has that port at 192.0.2.1; there is 192.0.2.1:80/tcp (shop/edge)",
        ),
        (
            "192.0.2.1:80/udp",
            "192.0.2.1:80/udp: no Service has that port at 192.0.2.1; there is 192.0.2.1:80/tcp (shop/edge)",
        ),
        (
            "192.0.2.9:53",
            "192.0.2.9:53: no Service has the address 192.0.2.9 on this node; there is 10.96.0.6:53/udp (shop/near)",
        ),
        ("10.0.0.12:30080", "10.0.0.12:30080: 10.0.0.12 is another node's address: ask the agent there"),
        (
            "10.0.0.11:30081",
            "10.0.0.11:30081: no Service has that node port at this address of the node; there is 10.0.0.11:30080/tcp \
             (shop/edge)",
        ),
    ] {
        let output = explain(&[&CLUSTER[..], &[target]].concat());
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("error: {message}\n"));
        assert_eq!(output.status.code(), Some(1), "{target}");
    }
}

#[test]
fn a_target_that_does_not_read_is_usage() {
    for target in ["web", "192.0.2.1", "shop/Edge"] {
        assert_eq!(explain(&[&CLUSTER[..], &[target]].concat()).status.code(), Some(2), "{target}");
    }
}

#[test]
fn without_an_agent_it_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("status.sock");
    let output = explain(&["--socket", socket.to_str().unwrap(), "shop/edge"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("is the agent running") && error.contains("--manifests"), "{error}");
    assert_eq!(output.status.code(), Some(1));
}
