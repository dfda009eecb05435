//! What objects become of, good and bad.

use serde_json::{Value, json};
use sheave_apiserver::{Interruption, Resource, StreamingLists};

use crate::lab::{Lab, service, slice};

fn broken(name: &str) -> Value {
    let mut slice = slice(name, &["10.0.0.1"]);
    slice["endpoints"][0]["addresses"][0] = json!("10.0.0.256");
    slice
}

#[tokio::test]
async fn one_bad_object_among_good_ones() {
    for streaming in [StreamingLists::Served, StreamingLists::Rejected] {
        let mut lab = Lab::new();
        lab.api().set_streaming_lists(streaming);
        lab.api().apply(broken("web-0")).unwrap();
        lab.follow().await;
        lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
        assert_eq!(lab.heard.endpoints(), ["10.0.0.1"]);
        let told: Vec<String> = lab.heard.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            ["EndpointSlice shop/web-0: endpoints[0].addresses[0]: `10.0.0.256` is not an IP address"]
        );
        lab.hears_changes().await;
        lab.api().apply(slice("web-0", &["10.0.0.9"])).unwrap();
        lab.until("mended", |heard| heard.problems.is_empty() && heard.endpoints().len() == 2).await;
        assert_eq!(lab.heard.deleted, []);
        assert_eq!(lab.heard.errors, [""; 0]);
    }
}

#[tokio::test]
async fn the_last_good_version_of_an_object_that_turned_bad_stays_over_lists_until_it_is_deleted() {
    let mut lab = Lab::synced().await;
    lab.api().apply(broken("web-1")).unwrap();
    lab.until("a problem", |heard| heard.problems.len() == 1).await;
    assert_eq!(lab.heard.endpoints(), ["10.0.0.1"]);

    lab.api().apply(slice("web-2", &["10.0.0.2"])).unwrap();
    lab.until("web-2", |heard| heard.endpoints().len() == 2).await;
    lab.api().compact();
    let gone = Interruption::Error(sheave_apiserver::Status::watch_expired(1, 2));
    lab.api().interrupt(|_| true, &gone);
    lab.api().apply(slice("web-3", &["10.0.0.3"])).unwrap();
    lab.until("web-3", |heard| heard.endpoints().len() == 3 && heard.is_watching()).await;
    assert_eq!(lab.heard.problems.len(), 1);
    assert_eq!(lab.heard.deleted, []);

    lab.api().delete(Resource::EndpointSlices, Some("shop"), "web-1");
    lab.until("deleted", |heard| heard.problems.is_empty()).await;
    assert_eq!(lab.heard.endpoints(), ["10.0.0.2", "10.0.0.3"]);
}

#[tokio::test]
async fn labels_keep_objects_away_and_take_them_away() {
    let labelled = |mut object: Value, label: &str| {
        object["metadata"]["labels"][label] = json!("x");
        object
    };
    let mut lab = Lab::new();
    lab.api().apply(labelled(slice("headless", &["10.0.0.7"]), "service.kubernetes.io/headless")).unwrap();
    lab.api()
        .apply(labelled(slice("other", &["10.0.0.8"]), "service.kubernetes.io/service-proxy-name"))
        .unwrap();
    lab.follow().await;
    lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
    assert_eq!(lab.heard.endpoints(), ["10.0.0.1"]);

    lab.api().apply(labelled(service("web"), "service.kubernetes.io/service-proxy-name")).unwrap();
    lab.until("the Service is another proxy's", |heard| heard.deleted.len() == 1).await;
    assert_eq!(lab.heard.deleted[0].to_string(), "Service shop/web");
    lab.api().apply(service("web")).unwrap();
    let name = sheave::cluster::ServiceName { namespace: "shop".into(), name: "web".into() };
    lab.until("and ours again", |heard| heard.index.service(&name).is_some()).await;
}

#[tokio::test]
async fn trigger_times_come_with_watched_changes_alone() {
    let triggered = |address: &str, time: &str| {
        let mut slice = slice("web-1", &[address]);
        slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
        slice
    };
    let mut lab = Lab::new();
    lab.api().apply(triggered("10.0.0.1", "2026-01-31T12:00:00Z")).unwrap();
    lab.follow().await;
    lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
    assert_eq!(lab.heard.triggers, 0);
    lab.api().apply(triggered("10.0.0.2", "2026-01-31T12:00:01Z")).unwrap();
    lab.until("changed", |heard| heard.endpoints() == ["10.0.0.2"]).await;
    assert_eq!(lab.heard.triggers, 1);
    lab.api().apply(triggered("10.0.0.3", "2026-01-31T12:00:01Z")).unwrap();
    lab.until("changed", |heard| heard.endpoints() == ["10.0.0.3"]).await;
    assert_eq!(lab.heard.triggers, 1, "the same time is no new trigger");
}

#[tokio::test]
async fn what_is_there_at_once_is_one_batch() {
    let mut lab = Lab::synced().await;
    let largest = lab.heard.largest;
    assert!(largest < 20, "{largest}");
    let lines: String = (0..20)
        .map(|number| {
            let mut slice = slice(&format!("web-{number}"), &["10.0.0.1"]);
            slice["metadata"]["resourceVersion"] = json!(format!("{}", 1000 + number));
            json!({"type": "ADDED", "object": slice}).to_string() + "\n"
        })
        .collect();
    let slices = |request: &sheave_apiserver::Request| request.resource() == Some(Resource::EndpointSlices);
    assert_eq!(lab.api().interrupt(slices, &Interruption::Bytes(lines.into())), 1);
    lab.until("all", |heard| heard.endpoints().len() == 20).await;
    assert_eq!(lab.heard.largest, 20);
}
