use serde_json::json;

use super::*;

/// What is said of such a ruleset.
fn judged(objects: &[Value], services: &[IpNet]) -> Option<Finding> {
    let (chains, rules) = rules::of_others(objects);
    judge(&chains, &rules, services)
}

fn chain(name: &str, base: Option<(&str, &str)>) -> Value {
    let mut chain = json!({"family": "ip", "table": "t", "name": name, "handle": 1});
    if let Some((hook, policy)) = base {
        chain["type"] = "filter".into();
        chain["hook"] = hook.into();
        chain["policy"] = policy.into();
    }
    json!({ "chain": chain })
}

fn rule(chain: &str, expressions: &Value) -> Value {
    json!({"rule": {"family": "ip", "table": "t", "chain": chain, "handle": 2, "expr": expressions}})
}

fn matched(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn state(states: &[&str]) -> Value {
    matched(&json!({"ct": {"key": "state"}}), &json!(states))
}

fn established() -> Value {
    json!([state(&["established", "related"]), {"counter": {"packets": 1, "bytes": 2}}, {"accept": null}])
}

fn from(sources: &Value) -> Value {
    json!([matched(&json!({"payload": {"protocol": "ip", "field": "saddr"}}), sources), {"accept": null}])
}

fn prefix(address: &str, len: u8) -> Value {
    json!({"prefix": {"addr": address, "len": len}})
}

#[test]
fn who_judges_by_connection_state() {
    let drop = || json!([{"drop": null}]);
    let invalid = || json!([state(&["invalid"]), {"drop": null}]);
    let unmarked = || {
        let mark = json!({"&": [{"meta": {"key": "mark"}}, 0x10000]});
        json!([matched(&mark, &json!(0)), {"counter": {}}, {"drop": null}])
    };
    let vxlan = || {
        let port = json!({"payload": {"protocol": "udp", "field": "dport"}});
        json!([matched(&port, &json!(4789)), {"drop": null}])
    };
    let known = ["10.96.0.0/16".parse().unwrap()];
    let of_pod = |rules: &[Value]| {
        std::iter::once(chain("tw-pod", None))
            .chain(rules.iter().map(|expressions| rule("tw-pod", expressions)))
            .collect::<Vec<_>>()
    };
    let firewall = |hook: &str, policy: &str, rules: &[Value]| {
        std::iter::once(chain("in", Some((hook, policy))))
            .chain(rules.iter().map(|expressions| rule("in", expressions)))
            .collect::<Vec<_>>()
    };
    for (case, objects, services, expected) in [
        ("nothing", vec![], &known[..], false),
        ("a pod's chain that drops all else", of_pod(&[established(), invalid(), drop()]), &known, true),
        ("what no policy marked", of_pod(&[established(), unmarked()]), &known, true),
        ("what is invalid alone", of_pod(&[established(), invalid()]), &known, false),
        ("some packets alone", of_pod(&[established(), vxlan()]), &known, false),
        ("all, without regard to states", of_pod(&[drop()]), &known, false),
        ("Calico's by name", vec![chain("cali-tw-cali12345", None)], &known, true),
        ("kube-router's", vec![chain("KUBE-POD-FW-ABCDEF", None)], &known, false),
        ("a host's firewall", firewall("input", "drop", &[established()]), &known, true),
        ("one for what is passed on", firewall("forward", "accept", &[established(), drop()]), &known, true),
        ("one that is open", firewall("input", "accept", &[established()]), &known, false),
        ("on the way out", firewall("output", "drop", &[established()]), &known, false),
        (
            "Service addresses may come",
            firewall("input", "drop", &[established(), from(&json!({"set": [prefix("10.96.0.0", 16)]}))]),
            &known,
            false,
        ),
        (
            "they are within what may",
            of_pod(&[established(), from(&prefix("10.0.0.0", 8)), drop()]),
            &known,
            false,
        ),
        (
            "others may",
            of_pod(&[established(), from(&json!("192.0.2.1")), from(&prefix("10.96.0.0", 24)), drop()]),
            &known,
            true,
        ),
        (
            "some may, and nobody knows",
            of_pod(&[established(), from(&json!("192.0.2.1")), drop()]),
            &[],
            false,
        ),
        ("no source may", of_pod(&[established(), drop()]), &[], true),
    ] {
        let found = judged(&objects, services);
        assert_eq!(found.is_some(), expected, "{case}: {found:?}");
    }
}

#[test]
fn many_chains_are_told_of_once() {
    let objects: Vec<Value> = (0..40).map(|pod| chain(&format!("cali-tw-{pod:02}"), None)).collect();
    let found = judged(&objects, &[]).unwrap();
    assert!(found.found.contains("in chain cali-tw-00 in table ip t and 39 more chains what"), "{found:?}");
    assert!(found.remedy.unwrap().contains("services.forwarding: {internal: nat}"));
}
