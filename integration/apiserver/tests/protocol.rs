//! What was not recorded: writing, faults, and servers that can less.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod client;

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use serde_json::{Value, json};
use sheave_apiserver::{Answer, Api, Fault, Interruption, Options, Reach, Resource, Status, StreamingLists};
use tokio::time::{Instant, timeout};

const TOKEN: Option<&str> = Some("token-0");
const SERVICES: &str = "/api/v1/services";

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}})
}

fn double() -> Api {
    let api = Api::new(Options::default());
    for name in ["a", "b", "c"] {
        api.apply(service(name)).unwrap();
    }
    api
}

async fn status(api: &Api, uri: &str) -> u16 {
    client::send(api, client::get(uri, TOKEN)).await.status().as_u16()
}

async fn body(api: &Api, uri: &str) -> Incoming {
    client::send(api, client::get(uri, TOKEN)).await.into_body()
}

/// What comes until nothing comes any more, and whether the body then ended (`None`), broke off or stays open.
async fn rest(body: &mut Incoming) -> (String, Option<&'static str>) {
    let mut text = String::new();
    loop {
        match timeout(Duration::from_secs(20), body.frame()).await {
            Err(_) => return (text, Some("open")),
            Ok(None) => return (text, None),
            Ok(Some(Err(_))) => return (text, Some("broken")),
            Ok(Some(Ok(frame))) => text += std::str::from_utf8(frame.data_ref().unwrap()).unwrap(),
        }
    }
}

fn kinds(events: &str) -> Vec<String> {
    let kind = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        format!("{} {name}", event["type"].as_str().unwrap()).trim_end().to_owned()
    };
    events.lines().map(kind).collect()
}

#[tokio::test(start_paused = true)]
async fn nodes_are_patched() {
    let api = Api::new(Options::default());
    api.apply(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": {"a": "1"}}}),
    )
    .unwrap();
    let patch = |content_type: &'static str, uri: &'static str, patch: Value| {
        let api = api.clone();
        async move {
            let request = client::request("PATCH", uri, TOKEN, content_type, &patch.to_string());
            client::send(&api, request).await.status().as_u16()
        }
    };
    let merge = "application/merge-patch+json";
    let node = "/api/v1/nodes/n";
    for (content_type, uri, change, expected) in [
        (merge, node, json!({"metadata": {"annotations": {"b": "2"}}}), 200),
        (
            "application/strategic-merge-patch+json",
            node,
            json!({"metadata": {"annotations": {"a": null}}}),
            200,
        ),
        (merge, node, json!({"metadata": {"resourceVersion": "1", "annotations": {"b": "3"}}}), 409),
        (merge, "/api/v1/nodes/absent", json!({}), 404),
        ("application/json-patch+json", node, json!([]), 415),
    ] {
        assert_eq!(patch(content_type, uri, change.clone()).await, expected, "{uri} {change}");
    }
    let node = api.object(Resource::Nodes, None, "n").unwrap();
    assert_eq!(node["metadata"]["annotations"], json!({"b": "2"}));
}

#[tokio::test(start_paused = true)]
async fn events_are_created_once_and_collected() {
    let api = Api::new(Options::default());
    let uri = "/apis/events.k8s.io/v1/namespaces/default/events";
    let named = json!({"metadata": {"name": "e"}, "reason": "Tested"});
    let generated = json!({"metadata": {"generateName": "g-"}});
    for (uri, event, expected) in [
        (uri, &named, 201),
        (uri, &named, 409),
        (uri, &generated, 201),
        (uri, &json!({"metadata": {"name": "e", "namespace": "other"}}), 400),
        (uri, &json!({"metadata": {}}), 400),
        ("/api/v1/namespaces/default/events", &named, 201),
    ] {
        let request = client::request("POST", uri, TOKEN, "application/json", &event.to_string());
        assert_eq!(client::send(&api, request).await.status(), expected, "{uri} {event}");
    }
    let events = api.objects(Resource::Events);
    assert_eq!(events.len(), 2);
    assert_eq!(
        (&events[0]["reason"], &events[0]["apiVersion"]),
        (&json!("Tested"), &json!("events.k8s.io/v1"))
    );
    assert_eq!(api.objects(Resource::CoreEvents).len(), 1);
    let counts = api.counts();
    assert_eq!(counts[&("create".into(), "events".into(), 201)], 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_served_is_not_found() {
    let api = double();
    let uri = "/apis/networking.k8s.io/v1/servicecidrs";
    assert_eq!(status(&api, uri).await, 200);
    api.set_served(Resource::ServiceCidrs, false);
    assert_eq!(status(&api, uri).await, 404);
    assert_eq!(status(&api, &format!("{uri}?watch=true")).await, 404);
    api.set_served(Resource::ServiceCidrs, true);
    assert_eq!(status(&api, uri).await, 200);
    for (uri, expected) in
        [("/apis", 404), ("/api/v1/pods", 404), ("/api/v1/namespaces/shop/services/a/proxy", 404)]
    {
        assert_eq!(status(&api, uri).await, expected, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn old_servers_know_no_streaming_lists() {
    let asked = "/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                 &allowWatchBookmarks=true&timeoutSeconds=5";
    let added = ["ADDED a", "ADDED b", "ADDED c", "BOOKMARK"].map(str::to_owned).to_vec();
    for (streaming, expected) in [(StreamingLists::Served, 200), (StreamingLists::Rejected, 422)] {
        let api = double();
        api.set_streaming_lists(streaming);
        assert_eq!(status(&api, asked).await, expected, "{streaming:?}");
    }
    let api = double();
    let (events, _) = rest(&mut body(&api, asked).await).await;
    assert_eq!(kinds(&events)[..4], added);
    assert!(events.contains("k8s.io/initial-events-end"));
    api.set_streaming_lists(StreamingLists::Ignored);
    let (events, _) = rest(&mut body(&api, asked).await).await;
    assert_eq!(kinds(&events), added, "a watch from now on, with a bookmark before its end");
    assert!(!events.contains("k8s.io/initial-events-end"));
}

#[tokio::test(start_paused = true)]
async fn parameters_that_do_not_go_together_are_refused() {
    let api = double();
    for (query, expected) in [
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersionMatch=Exact&resourceVersion=0", 422),
        ("resourceVersionMatch=Sometimes&resourceVersion=1", 422),
        ("sendInitialEvents=true", 422),
        ("limit=x", 400),
        ("labelSelector=a%20b", 400),
        ("watch=true&sendInitialEvents=true", 422),
        ("watch=true&resourceVersionMatch=NotOlderThan&resourceVersion=1", 422),
        ("watch=true&resourceVersion=x", 400),
        ("resourceVersion=0&limit=1", 200),
        ("resourceVersion=2&limit=1", 200),
        ("resourceVersion=2&resourceVersionMatch=NotOlderThan", 200),
    ] {
        assert_eq!(status(&api, &format!("{SERVICES}?{query}")).await, expected, "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_is_of_the_revision_of_the_first() {
    let api = double();
    let page = |uri: String| {
        let api = api.clone();
        async move { serde_json::from_str::<Value>(&rest(&mut body(&api, &uri).await).await.0).unwrap() }
    };
    for path in [SERVICES, "/api/v1/namespaces/shop/services"] {
        let first = page(format!("{path}?limit=2")).await;
        let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
        api.delete(Resource::Services, Some("shop"), "c");
        let second = page(format!("{path}?limit=2&continue={token}")).await;
        assert_eq!(second["items"][0]["metadata"]["name"], "c", "{path}");
        assert_eq!(second["metadata"], json!({"resourceVersion": first["metadata"]["resourceVersion"]}));
        api.compact();
        let expired = page(format!("{path}?limit=2&continue={token}")).await;
        assert_eq!(expired["code"], 410);
        let token = expired["metadata"]["continue"].as_str().unwrap();
        assert_eq!(page(format!("{path}?continue={token}")).await["items"], json!([]), "{path}");
        api.apply(service("c")).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn requests_go_wrong_as_they_are_told_to() {
    let api = double();
    let whole = rest(&mut body(&api, SERVICES).await).await.0;
    let mut faults = vec![
        Fault::Status(Status::plain(429, Some(7))),
        Fault::Delay(Duration::from_secs(9)),
        Fault::Cut { after: 10, reset: false },
        Fault::Stall { after: 10 },
        Fault::Drip { piece: 100, every: Duration::from_secs(1) },
        Fault::Answer(Answer::whole(200, "<html>")),
    ]
    .into_iter();
    api.inject(move |request| if request.verb == "list" { faults.next() } else { None });

    let refused = client::send(&api, client::get(SERVICES, TOKEN)).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    let start = Instant::now();
    assert_eq!(rest(&mut body(&api, SERVICES).await).await, (whole.clone(), None));
    assert_eq!(start.elapsed().as_secs(), 9);
    assert_eq!(rest(&mut body(&api, SERVICES).await).await, (whole[..10].into(), Some("broken")));
    assert_eq!(rest(&mut body(&api, SERVICES).await).await, (whole[..10].into(), Some("open")));
    let start = Instant::now();
    assert_eq!(rest(&mut body(&api, SERVICES).await).await, (whole.clone(), None));
    assert_eq!(start.elapsed().as_secs(), whole.len().div_ceil(100) as u64);
    assert_eq!(rest(&mut body(&api, SERVICES).await).await, ("<html>".into(), None));
    assert_eq!(rest(&mut body(&api, SERVICES).await).await, (whole, None), "that was all");
}

#[tokio::test(start_paused = true)]
async fn open_watches_are_interrupted() {
    let garbage = Bytes::from_static(b"garbage\n");
    for (interruption, told, end) in [
        (Interruption::End, "", None),
        (Interruption::Close { partial: false }, "", Some("broken")),
        (Interruption::Close { partial: true }, "{\"type\":\"BOOKMARK\"", Some("broken")),
        (Interruption::Reset, "", Some("broken")),
        (Interruption::Stall, "", Some("open")),
        (Interruption::Error(Status::watch_expired(1, 2)), "{\"type\":\"ERROR\"", None),
        (Interruption::Bytes(garbage), "garbage\n", Some("open")),
    ] {
        let api = double();
        let mut body = body(&api, &format!("{SERVICES}?watch=true&resourceVersion={}", api.revision())).await;
        assert_eq!(api.watches().len(), 1);
        assert_eq!(api.interrupt(|request| request.resource() == Some(Resource::Nodes), &interruption), 0);
        assert_eq!(api.interrupt(|request| request.resource() == Some(Resource::Services), &interruption), 1);
        let (text, ended) = rest(&mut body).await;
        assert!(text.starts_with(told) && text.is_empty() == told.is_empty(), "{interruption:?}: {text}");
        assert_eq!(ended, end, "{interruption:?}");
        drop(body);
        tokio::task::yield_now().await;
        assert!(ended == Some("open") || api.watches().is_empty(), "{interruption:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_falls_behind_is_told_so() {
    let api = Api::new(Options { history: 4, ..Options::default() });
    api.set_reach(Reach::Up);
    let mut body = body(&api, &format!("{SERVICES}?watch=true&resourceVersion={}", api.revision())).await;
    for name in ["a", "b", "c", "d", "e", "f"] {
        api.apply(service(name)).unwrap();
    }
    let (events, end) = rest(&mut body).await;
    assert_eq!((kinds(&events), end), (vec!["ERROR".to_owned()], None));
    assert!(events.contains("\"code\":410"));
}
