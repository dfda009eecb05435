use serde_json::json;

use super::super::Severity::{self, Fail, Ok as Fine, Warn};
use super::*;
use crate::config::MarkMask;

fn rules() -> Rules {
    Rules::new(MarkMask::default(), 1500, &[], false)
}

fn chain(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
    json!({"chain": {"family": family, "table": table, "name": name, "handle": 1,
        "type": "filter", "hook": hook, "prio": 0, "policy": policy}})
}

fn rule(family: &str, table: &str, chain: &str, expressions: &Value) -> Value {
    json!({"rule": {"family": family, "table": table, "chain": chain, "handle": 2, "expr": expressions}})
}

fn fib(flags: &[&str]) -> Value {
    json!({"match": {"op": "==", "left": {"fib": {"result": "oif", "flags": flags}}, "right": false}})
}

#[test]
fn what_is_in_the_way() {
    let input = |policy| chain("inet", "fw", "input", "input", policy);
    let established =
        json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}});
    let of_mark =
        json!({"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 0x2000]}, "right": 0x2000}});
    let interface =
        |name| json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": name}});
    let nfproto = json!({"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6"}});
    let strict = fib(&["saddr", "mark", "iif"]);
    let prerouting = chain("inet", "fw", "pre", "prerouting", "accept");
    let to_here = json!({"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}});
    let reject = json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}});
    for (case, objects, expected) in [
        ("nothing", vec![], &[Fine][..]),
        ("accepts by default", vec![input("accept")], &[Fine]),
        ("drops by default", vec![input("drop")], &[Warn]),
        ("Docker", vec![chain("ip", "filter", "FORWARD", "forward", "drop")], &[Warn]),
        ("on the way out", vec![chain("ip", "filter", "OUTPUT", "output", "drop")], &[Fine]),
        ("bridges", vec![chain("bridge", "filter", "FORWARD", "forward", "drop")], &[Fine]),
        ("ours", vec![chain("inet", "sheave", "guard", "input", "drop")], &[Fine]),
        (
            "firewalld: the last rule rejects",
            vec![input("accept"), rule("inet", "fw", "input", &json!([{"counter": {}}, reject]))],
            &[Warn],
        ),
        (
            "the last rule drops some",
            vec![input("accept"), rule("inet", "fw", "input", &json!([established, {"drop": null}]))],
            &[Fine],
        ),
        (
            "lets our mark pass",
            vec![input("drop"), rule("inet", "fw", "input", &json!([of_mark, {"accept": null}]))],
            // Whoever looks at it uses it.
            &[Fine],
        ),
        (
            "lets our devices pass",
            vec![input("drop"), rule("inet", "fw", "x", &json!([interface("sheave4"), {"accept": null}]))],
            &[Fine],
        ),
        (
            "iptables, by its comment",
            vec![
                chain("ip", "filter", "INPUT", "input", "drop"),
                json!({"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "comment": "sheave",
                    "expr": [{"xt": null}, {"accept": null}]}}),
            ],
            &[Fine],
        ),
        (
            "IPv6 source check",
            vec![prerouting.clone(), rule("inet", "fw", "pre", &json!([nfproto, strict, {"drop": null}]))],
            &[Fail],
        ),
        (
            "source check of all",
            vec![prerouting.clone(), rule("ip", "fw", "pre", &json!([strict, {"drop": null}]))],
            &[Fail],
        ),
        (
            "source check of a CNI's interfaces",
            vec![
                prerouting.clone(),
                rule("ip", "fw", "pre", &json!([interface("cali*"), strict, {"drop": null}])),
            ],
            &[Fine],
        ),
        (
            "where it leads is looked up, not dropped",
            vec![prerouting.clone(), rule("ip", "fw", "pre", &json!([strict, {"accept": null}]))],
            &[Fine],
        ),
        (
            "type of the destination",
            vec![prerouting, rule("ip", "fw", "pre", &json!([to_here, {"drop": null}]))],
            &[Fine],
        ),
    ] {
        let findings = check(&objects, rules(), true, None);
        let severities: Vec<Severity> = findings.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, expected, "{case}: {findings:?}");
    }
}

#[test]
fn ipv6_matters_where_the_node_has_it() {
    let objects = [
        chain("ip6", "filter", "INPUT", "input", "drop"),
        rule("ip6", "raw", "PREROUTING", &json!([fib(&["saddr", "iif"]), {"drop": null}])),
    ];
    for (ipv6, expected) in [(true, 2), (false, 0)] {
        let findings = check(&objects, rules(), ipv6, None);
        assert_eq!(findings.iter().filter(|finding| finding.severity != Fine).count(), expected);
    }
}

#[test]
fn bits_of_marks() {
    let mark = json!({"meta": {"key": "mark"}});
    let set = |value: Value| json!({"mangle": {"key": mark, "value": value}});
    for (case, expression, expected) in [
        ("another match", json!({"match": {"op": "==", "left": {"meta": {"key": "iif"}}, "right": 1}}), 0),
        ("match of some", json!({"match": {"op": "!=", "left": {"&": [mark, 0x4000]}, "right": 0}}), 0x4000),
        ("match of all", json!({"match": {"op": "==", "left": mark, "right": 0x80}}), 0x80),
        ("set some", set(json!({"|": [mark, 0x10000]})), 0x10000),
        ("clear some", set(json!({"&": [mark, 0xfff0_ffff_u32]})), 0xf_0000),
        ("replace some", set(json!({"|": [{"&": [mark, 0xffff_f0ff_u32]}, 0x200]})), 0xf00),
        ("flip some", set(json!({"^": [mark, 0x4000]})), 0x4000),
        ("the connection's", set(json!({"ct": {"key": "mark"}})), u32::MAX),
        ("a number", set(json!(7)), u32::MAX),
        ("the connection's mark is set", json!({"mangle": {"key": {"ct": {"key": "mark"}}, "value": 7}}), 0),
        ("a verdict", json!({"accept": null}), 0),
    ] {
        assert_eq!(mark_bits(&expression), expected, "{case}");
    }
}

#[test]
fn who_uses_our_bits() {
    let mark = json!({"meta": {"key": "mark"}});
    let restore = json!([{"mangle": {"key": mark, "value": {"ct": {"key": "mark"}}}}]);
    let calico = json!([{"mangle": {"key": mark, "value": {"&": [mark, 0xfff0_ffff_u32]}}}]);
    for (case, hook, expressions, expected) in [
        ("other bits", "prerouting", calico, false),
        ("wg-quick", "prerouting", restore.clone(), true),
        ("too late to matter", "postrouting", restore, false),
    ] {
        let objects = [chain("inet", "other", "c", hook, "accept"), rule("inet", "other", "c", &expressions)];
        let findings = check(&objects, rules(), true, None);
        assert_eq!(findings[0].severity == Warn, expected, "{case}: {findings:?}");
    }
}

#[test]
fn source_checks_of_pods() {
    let interface =
        |names: Value| json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": names}});
    let mark =
        json!({"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 0x40000]}, "right": 0x40000}});
    let strict = fib(&["saddr", "mark", "iif"]);
    let drop = json!({"drop": null});
    for (case, expressions, expected) in [
        ("Calico's, by its mark", json!([mark, strict, {"counter": {"packets": 0, "bytes": 0}}, drop]), true),
        ("by interface", json!([interface(json!("cali*")), strict, drop]), true),
        ("by interfaces", json!([interface(json!({"set": ["veth0", "veth1"]})), strict, drop]), true),
        ("of an uplink", json!([interface(json!("eth0")), strict, drop]), false),
        ("of uplinks", json!([interface(json!({"set": ["eth0", "eth1"]})), strict, drop]), false),
        ("of all packets: another finding", json!([strict, drop]), false),
        ("of none", json!([interface(json!("cali*")), drop]), false),
        ("looked up, not dropped", json!([mark, strict, {"accept": null}]), false),
    ] {
        let found = source_checks_of_some(&[rule("ip", "raw", "c", &expressions)], &["eth0"]);
        assert_eq!(found == ["chain c in table ip raw"], expected, "{case}: {found:?}");
    }
}
