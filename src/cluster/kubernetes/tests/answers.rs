//! What API servers answer, read.

use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;

use crate::cluster::kubernetes::Resource;
use crate::cluster::kubernetes::item::{self, Head, Names, Unreadable};
use crate::cluster::kubernetes::message::{Failure, Fault, Message, Page};
use crate::cluster::{Object, ObjectKey};

fn raw(json: &str) -> &RawValue {
    serde_json::from_str(json).unwrap()
}

fn read(resource: Resource, json: &str) -> (Head, Result<Object, Unreadable>) {
    let mut names = Names::default();
    (Head::read(resource, raw(json), &mut names), item::read(resource, raw(json), &mut names))
}

#[test]
fn an_object_of_wrong_form_has_its_name_and_tells_what_is_wrong() {
    let cases = [
        (
            "address",
            Resource::EndpointSlices,
            r#"{"metadata":{"name":"web-1","namespace":"shop","resourceVersion":"7"},"addressType":"IPv4",
                "endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.256"]}]}"#,
            "EndpointSlice shop/web-1",
            "endpoints[1].addresses[0]",
            "`10.0.0.256` is not an IP address",
        ),
        (
            "port",
            Resource::Services,
            r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{"ports":[{"port":0}]}}"#,
            "Service shop/web",
            "spec.ports[0].port",
            "0 is not a port: expected 1 to 65535",
        ),
        (
            "whole spec",
            Resource::Services,
            r#"{"metadata":{"name":"web","namespace":"shop"},"spec":"none"}"#,
            "Service shop/web",
            "spec",
            "invalid type: string \"none\", expected struct ServiceSpec",
        ),
        (
            "spec without ports",
            Resource::Services,
            r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{}}"#,
            "Service shop/web",
            "",
            "spec.ports is missing: a Service has at least one port, unless it is headless",
        ),
        (
            "pod CIDR",
            Resource::Nodes,
            r#"{"metadata":{"name":"node-a"},"spec":{"podCIDRs":["10.0.0.0/33"]}}"#,
            "Node node-a",
            "spec.podCIDRs[0]",
            "`10.0.0.0/33` is not a CIDR such as 10.0.0.0/8",
        ),
        (
            "annotations",
            Resource::Nodes,
            r#"{"metadata":{"name":"node-a","annotations":7}}"#,
            "Node node-a",
            "metadata.annotations",
            "invalid type: integer `7`, expected a map",
        ),
        ("no object", Resource::ServiceCidrs, r#"[1,2]"#, "ServiceCIDR (unnamed)", "", ""),
    ];
    for (name, resource, json, key, field, message) in cases {
        let (head, content) = read(resource, json);
        let Err(unreadable) = content else { panic!("{name}: is read") };
        assert_eq!(head.key.to_string(), key, "{name}");
        assert!(message.is_empty() || unreadable.field == field, "{name}: {}", unreadable.field);
        assert!(unreadable.message.starts_with(message), "{name}: {}", unreadable.message);
    }
}

#[test]
fn a_head_tells_version_and_trigger_time_of_slices_alone() {
    let json = r#"{"metadata":{"name":"web-1","namespace":"shop","resourceVersion":"7","annotations":{
        "endpoints.kubernetes.io/last-change-trigger-time":"2026-01-31T12:00:00Z"}},"addressType":"IPv4"}"#;
    let (head, content) = read(Resource::EndpointSlices, json);
    assert_eq!(head.version.as_deref(), Some("7"));
    assert_eq!(head.triggered, Some(humantime::parse_rfc3339("2026-01-31T12:00:00Z").unwrap()));
    assert_eq!(content.unwrap().key(), head.key);
    assert_eq!(read(Resource::Services, json).0.triggered, None::<SystemTime>);
    let spoilt = json.replace("2026-01-31T12:00:00Z", "yesterday");
    assert_eq!(read(Resource::EndpointSlices, &spoilt).0.triggered, None);
}

#[test]
fn names_that_repeat_are_held_once() {
    let json = |name: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"shop"}},"addressType":"IPv4","ports":[{{"name":"http","port":80}}],
                "endpoints":[{{"addresses":["10.0.0.1"],"nodeName":"node-a"}}]}}"#
        )
    };
    let mut names = Names::default();
    let mut slice = |name| match item::read(Resource::EndpointSlices, raw(&json(name)), &mut names) {
        Ok(Object::EndpointSlice(slice)) => slice,
        other => panic!("{other:?}"),
    };
    let (a, b) = (slice("a"), slice("b"));
    let same = |a: &std::sync::Arc<str>, b| std::sync::Arc::ptr_eq(a, b);
    assert!(same(&a.name.namespace, &b.name.namespace));
    assert!(same(a.endpoints[0].node.as_ref().unwrap(), b.endpoints[0].node.as_ref().unwrap()));
    assert!(same(a.ports[0].name.as_ref().unwrap(), b.ports[0].name.as_ref().unwrap()));
    assert_eq!((a.endpoints.capacity(), a.ports.capacity()), (1, 1));
}

#[test]
fn pages() {
    let page =
        Page::read(br#"{"metadata":{"resourceVersion":"9","continue":"abc"},"items":[{"a":1},2]}"#).unwrap();
    assert_eq!((page.version.as_str(), page.next.as_deref()), ("9", Some("abc")));
    assert_eq!(page.items.iter().map(|item| item.get()).collect::<Vec<_>>(), [r#"{"a":1}"#, "2"]);
    let last = Page::read(br#"{"metadata":{"resourceVersion":"9","continue":""},"items":null}"#).unwrap();
    assert!(last.next.is_none() && last.items.is_empty());
    for (name, body) in [
        ("no version", &br#"{"metadata":{},"items":[]}"#[..]),
        ("cut", br#"{"metadata":{"resourceVersion":"9"},"items":[{"a""#),
        ("a web page", b"<html>"),
        ("nothing", b""),
    ] {
        assert_eq!(Page::read(body).unwrap_err().fault, Fault::Garbage, "{name}");
    }
}

#[test]
fn lines_of_a_watch() {
    let describe = |line: &str| match Message::read(line.as_bytes()) {
        Ok(Message::Applied(object)) => format!("apply {}", object.get()),
        Ok(Message::Deleted(object)) => format!("delete {}", object.get()),
        Ok(Message::Bookmark { version, initial_events_end }) => {
            format!("bookmark {} {initial_events_end}", version.unwrap_or_default())
        }
        Ok(Message::Error(failure)) => format!("{:?} {:?}", failure.fault, failure.retry_after),
        Err(failure) => format!("{:?}", failure.fault),
    };
    let cases = [
        (r#"{"type":"ADDED","object":{"a":1}}"#, r#"apply {"a":1}"#),
        (r#"{"object":{"a":1},"type":"MODIFIED"}"#, r#"apply {"a":1}"#),
        (r#"{"type":"DELETED","object":{}}"#, "delete {}"),
        (r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"5"}}}"#, "bookmark 5 false"),
        (
            r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"5",
                "annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
            "bookmark 5 true",
        ),
        (r#"{"type":"ERROR","object":{"code":410,"reason":"Expired"}}"#, "Status(410) None"),
        (
            r#"{"type":"ERROR","object":{"code":429,"details":{"retryAfterSeconds":3}}}"#,
            "Status(429) Some(3s)",
        ),
        (r#"{"type":"ERROR","object":"went wrong"}"#, "Status(500) None"),
        (r#"{"type":"SURPRISE","object":{}}"#, "Garbage"),
        (r#"{"type":"ADDED"}"#, "Garbage"),
        ("%&$", "Garbage"),
    ];
    for (line, expected) in cases {
        assert_eq!(describe(line), expected, "{line}");
    }
}

#[test]
fn refusals_tell_what_to_do_and_not_more_than_a_line() {
    let refused = |code, body: &str| Failure::refusal(code, None, body.as_bytes());
    let status = r#"{"kind":"Status","message":"nodes is forbidden","reason":"Forbidden","code":403}"#;
    assert_eq!(
        refused(403, status).message,
        "the API server answers 403: nodes is forbidden: does its ClusterRole allow list and watch?"
    );
    assert_eq!(refused(503, "").message, "the API server answers 503");
    let page = format!("<html>\n{}</html>", "x ".repeat(10_000));
    let message = refused(502, &page).message;
    assert!(message.len() < 400 && !message.contains('\n'), "{message}");
    let asked =
        Failure::refusal(429, Some(Duration::from_secs(2)), b"Too many requests, please try again later.");
    assert_eq!((asked.fault, asked.retry_after), (Fault::Status(429), Some(Duration::from_secs(2))));
}

#[test]
fn a_key_without_namespace_is_that_of_the_object() {
    let (head, content) =
        read(Resource::Services, r#"{"metadata":{"name":"web"},"spec":{"ports":[{"port":80}]}}"#);
    assert_eq!(content.unwrap().key(), head.key);
    assert!(matches!(head.key, ObjectKey::Service(_)));
}
