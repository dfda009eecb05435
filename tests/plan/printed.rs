//! `sheave plan` as users and their scripts see it.
//!
//! `UPDATE_GOLDEN=1 cargo test --test plan printed` writes the golden files anew.

use crate::golden::{golden, sheave};

#[test]
fn a_small_cluster_on_each_of_its_nodes() {
    for node in ["node-a", "node-b", "node-c"] {
        let args = ["plan", "--manifests", "small", "--config", "small.config.yaml", "--node", node];
        golden(&format!("small.{node}.yaml"), &args);
    }
}

#[test]
fn json_says_the_same() {
    let args =
        ["plan", "--manifests", "small", "--config", "small.config.yaml", "--node", "node-a", "-o", "json"];
    golden("small.node-a.json", &args);
}

#[test]
fn a_recorded_cluster() {
    golden("recorded.node-a.yaml", &["plan", "--manifests", "recorded", "--node", "node-a"]);
}

#[test]
fn every_key_is_there_even_if_there_is_nothing() {
    let empty = tempfile::tempdir().unwrap();
    let output =
        sheave(&["plan", "--manifests", empty.path().to_str().unwrap(), "--node", "x", "-o", "json"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let warning = "there is no such Node: nothing is known of this node's addresses and pods; check --node";
    assert_eq!(
        plan,
        serde_json::json!({
            "node": "x", "virtualServers": [], "acceptance": [], "announcements": [], "vipRoutes": [],
            "sourceRanges": [], "healthChecks": [], "peers": [],
            "warnings": [{"object": "Node x", "reason": "NodeMissing", "message": warning}],
        })
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn peers_of_annotations_are_told_apart_and_passwords_are_not_told() {
    let manifests = tempfile::tempdir().unwrap();
    let node = r#"{apiVersion: v1, kind: Node, metadata: {name: a, annotations: {sheave.io/asn: "64999",
        kube-router.io/peers: "[{remoteip: 10.0.0.254, remoteasn: 65001, password: aHVudGVyMg==}]"}}}"#;
    std::fs::write(manifests.path().join("node.yaml"), node).unwrap();
    let directory = manifests.path().to_str().unwrap();
    let output = sheave(&[
        "plan",
        "--manifests",
        directory,
        "--node",
        "a",
        "--config",
        "small.config.yaml",
        "-o",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(0));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(!printed.contains("aHVudGVyMg") && !printed.contains("hunter2"), "{printed}");
    let plan: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let peers: Vec<_> = plan["peers"].as_array().unwrap().iter().map(|peer| &peer["source"]).collect();
    assert_eq!(peers, ["config", "config", "annotation"], "{printed}");
}

#[test]
fn what_is_wrong_in_manifests_is_named_and_all_else_is_printed() {
    let output = sheave(&["plan", "--manifests", "broken", "--node", "node-a", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: broken/2-wrong.yaml:17: items[0].spec.ports[1].port: expected a number of 0 to 65535; \
         Service default/wrong is not used\n"
    );
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let services: Vec<_> =
        plan["virtualServers"].as_array().unwrap().iter().map(|server| &server["service"]).collect();
    assert_eq!(services, ["default/after", "default/before", "default/right"]);
}

#[test]
fn exit_codes() {
    for (args, code, error) in [
        (&["plan", "--manifests", "small"][..], 2, "--node <NODE>"),
        (&["plan", "--manifests", "small", "--node", "a", "-o", "xml"], 2, "possible values: yaml, json"),
        (&["plan", "--manifests", "nowhere", "--node", "a"], 1, "error: nowhere: No such file or directory"),
        (
            &["plan", "--manifests", "small", "--node", "a", "--config", "nowhere.yaml"],
            1,
            "error: nowhere.yaml: No such file or directory",
        ),
        (
            &["plan", "--manifests", "small", "--node", "a", "--config", "small/nodes.yaml"],
            1,
            "error: small/nodes.yaml:2: apiVersion: unknown field",
        ),
        (&["--version"], 0, ""),
        (&["plan", "--help"], 0, ""),
    ] {
        let output = sheave(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(error), "{args:?}: {stderr}");
    }
}
