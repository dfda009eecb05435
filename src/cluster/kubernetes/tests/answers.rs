//! What API servers answer, read.

use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;

use crate::cluster::kubernetes::Resource;
use crate::cluster::kubernetes::item::{self, Content, Head, Names, Unreadable};
use crate::cluster::kubernetes::message::{Failure, Fault, Message, Page};
use crate::cluster::{Object, ObjectKey};

fn raw(json: &str) -> &RawValue {
    serde_json::from_str(json).unwrap()
}

fn read(resource: Resource, json: &str) -> (Head, Content) {
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
            r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{"ports":[{"port":0},{"port":80}]}}"#,
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
            "only source range",
            Resource::Services,
            r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{"ports":[{"port":80}],
                "loadBalancerSourceRanges":["10.0.0.0/33"]}}"#,
            "Service shop/web",
            "spec.loadBalancerSourceRanges[0]",
            "`10.0.0.0/33` is not a CIDR such as 10.0.0.0/8",
        ),
        (
            "cluster IP",
            Resource::Services,
            r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{"ports":[{"port":80}],"clusterIPs":["x"]}}"#,
            "Service shop/web",
            "spec.clusterIPs[0]",
            "`x` is not an IP address",
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

/// The object as it was read, for comparison with one that never had what is left out.
fn used(resource: Resource, json: &str) -> (Object, String) {
    let (object, left_out) = read(resource, json).1.unwrap();
    (object, left_out.map(|Unreadable { field, message }| format!("{field}: {message}")).unwrap_or_default())
}

#[test]
fn what_an_older_or_newer_server_accepted_does_not_cost_the_object() {
    let service = |spec: &str, status: &str| {
        format!(
            r#"{{"metadata":{{"name":"web","namespace":"shop"}},"spec":{{"clusterIPs":["10.96.0.1"]{spec}}},
                "status":{{"loadBalancer":{{"ingress":[{status}]}}}}}}"#
        )
    };
    let ports = r#","ports":[{"name":"http","port":80}]"#;
    let with = |more: &str| service(&format!("{ports}{more}"), "");
    let balancer = |ingress: &str| service(&format!(r#"{ports},"type":"LoadBalancer""#), ingress);
    let slice = |more: &str| {
        format!(
            r#"{{"metadata":{{"name":"web-1","namespace":"shop"}},"addressType":"IPv4",
                "endpoints":[{{"addresses":["10.0.0.1"]{more}}}],"ports":[{{"name":"http","port":80}}]}}"#
        )
    };
    let node = |addresses: &str, spec: &str| {
        format!(r#"{{"metadata":{{"name":"a"}},"status":{{"addresses":[{addresses}]}},"spec":{{{spec}}}}}"#)
    };
    let internal = r#"{"type":"InternalIP","address":"192.0.2.1"}"#;
    let (s, e, n, c) =
        (Resource::Services, Resource::EndpointSlices, Resource::Nodes, Resource::ServiceCidrs);
    let cidr = |cidrs: &str| format!(r#"{{"metadata":{{"name":"a"}},"spec":{{"cidrs":[{cidrs}]}}}}"#);
    // Resource, as it is held, as it is used, and what is told to be left out.
    let cases = [
        (s, with(r#","type":"Mesh""#), with(""), "spec.type: unknown variant `Mesh`"),
        (s, with(r#","sessionAffinity":"Cookie""#), with(""), "spec.sessionAffinity: unknown variant"),
        (
            s,
            with(
                r#","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":-1}}"#,
            ),
            with(r#","sessionAffinity":"ClientIP""#),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: invalid value",
        ),
        (
            s,
            with(r#","externalTrafficPolicy":"Zone""#),
            with(""),
            "spec.externalTrafficPolicy: unknown variant",
        ),
        (
            s,
            with(r#","internalTrafficPolicy":"Zone""#),
            with(""),
            "spec.internalTrafficPolicy: unknown variant",
        ),
        (s, with(r#","healthCheckNodePort":-1"#), with(""), "spec.healthCheckNodePort: invalid value"),
        (s, with(r#","trafficDistribution":"PreferMoon""#), with(""), ""),
        (
            s,
            with(r#","externalIPs":[" 192.0.2.1","192.0.2.2","x"]"#),
            with(r#","externalIPs":["192.0.2.2"]"#),
            "spec.externalIPs[0]: ` 192.0.2.1` is not an IP address",
        ),
        (s, with(r#","externalIPs":["192.000.2.1"]"#), with(r#","externalIPs":["192.0.2.1"]"#), ""),
        (
            s,
            with(r#","loadBalancerSourceRanges":["10.0.0.0/8","x"]"#),
            with(r#","loadBalancerSourceRanges":["10.0.0.0/8"]"#),
            "spec.loadBalancerSourceRanges[1]: `x` is not a CIDR",
        ),
        (
            s,
            with(r#","loadBalancerSourceRanges":[" 010.0.0.0/08 "]"#),
            with(r#","loadBalancerSourceRanges":["10.0.0.0/8"]"#),
            "",
        ),
        (
            s,
            service(r#","ports":[{"name":"http","port":80},{"name":"q","port":80,"protocol":"QUIC"}]"#, ""),
            with(""),
            "spec.ports[1].protocol: unknown variant `QUIC`",
        ),
        (
            s,
            balancer(r#"{"ip":"192.0.2.1","ipMode":"Tunnel"},{"ip":"192.00.2.2"}"#),
            balancer(r#"{"ip":"192.0.2.2"}"#),
            "status.loadBalancer.ingress[0].ipMode: unknown variant `Tunnel`",
        ),
        (
            e,
            slice("").replace("}]}", r#"},{"name":"q","port":1,"protocol":"QUIC"}]}"#),
            slice(""),
            "ports[1].protocol: unknown variant `QUIC`",
        ),
        (
            e,
            slice(r#","hints":{"forZones":[{}]}"#),
            slice(""),
            "endpoints[0].hints.forZones[0]: missing field",
        ),
        (e, slice("").replace("10.0.0.1", "010.00.0.001"), slice(""), ""),
        (
            n,
            node(&format!(r#"{{"type":"Hostname","address":"10-0-0-1"}},{internal}"#), ""),
            node(internal, ""),
            "",
        ),
        (
            n,
            node(&format!(r#"{internal},{{"type":"InternalDNS","address":"42"}}"#), ""),
            node(internal, ""),
            "",
        ),
        (n, node(&format!(r#"{internal},{{"type":"New","address":""}}"#), ""), node(internal, ""), ""),
        (
            n,
            node(&format!(r#"{internal},{{"type":"ExternalIP","address":"42"}}"#), ""),
            node(internal, ""),
            "status.addresses[1]: `42` is not an IP address",
        ),
        (
            n,
            node(internal, r#""podCIDRs":["10.0.0.0/33"]"#),
            node(internal, ""),
            "spec.podCIDRs[0]: `10.0.0.0/33` is not a CIDR",
        ),
        (c, cidr(r#""10.96.0.0/12","x""#), cidr(r#""10.96.0.0/12""#), "spec.cidrs[1]: `x` is not a CIDR"),
    ];
    for (resource, held, as_if, told) in cases {
        let (object, left_out) = used(resource, &held);
        assert_eq!((object, String::new()), used(resource, &as_if), "{held}");
        assert!(left_out.starts_with(told) && told.is_empty() == left_out.is_empty(), "{held}: {left_out}");
    }
}

#[test]
fn an_object_in_which_nearly_all_is_wrong_is_not_used() {
    let ips = vec![r#""x""#; 1000].join(",");
    let json = format!(
        r#"{{"metadata":{{"name":"web"}},"spec":{{"ports":[{{"port":80}}],"externalIPs":[{ips}]}}}}"#
    );
    assert_eq!(read(Resource::Services, &json).1.unwrap_err().field, "spec.externalIPs[0]");
}

#[test]
fn a_head_tells_version_and_trigger_time_of_slices_alone() {
    let json = r#"{"metadata":{"name":"web-1","namespace":"shop","resourceVersion":"7","annotations":{
        "endpoints.kubernetes.io/last-change-trigger-time":"2026-01-31T12:00:00Z"}},"addressType":"IPv4"}"#;
    let (head, content) = read(Resource::EndpointSlices, json);
    assert_eq!(head.version.as_deref(), Some("7"));
    assert_eq!(head.triggered, Some(humantime::parse_rfc3339("2026-01-31T12:00:00Z").unwrap()));
    assert_eq!(content.unwrap().0.key(), head.key);
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
        Ok((Object::EndpointSlice(slice), None)) => slice,
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
    assert_eq!(content.unwrap().0.key(), head.key);
    assert!(matches!(head.key, ObjectKey::Service(_)));
}
