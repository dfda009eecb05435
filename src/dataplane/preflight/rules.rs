//! Rules of others in nftables (iptables over nftables among them) that our packets meet: chains that drop what they do
//! not know, IPv6 source checks, and who else uses our mark bits.
//!
//! Read from nft's JSON. What iptables wrote with extensions of its own is opaque there (`xt`): such a rule counts as
//! unknown. A chain counts as prepared where a rule of its table names us: by our mark bit, by `sheave4` or `sheave6`,
//! or by a comment with our name.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;

use super::super::ruleset::{Rules, TABLE};
use super::{Finding, clients};

/// A table of somebody else, or a chain in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name<'a> {
    family: &'a str,
    table: &'a str,
    pub(super) chain: &'a str,
}

/// A rule: its chain, and its expressions in order.
pub(super) struct Rule<'a> {
    pub(super) of: Name<'a>,
    pub(super) expressions: &'a [Value],
    /// The whole of it, for what names us.
    object: &'a Value,
}

/// The chains that there are: their table, and their name.
pub fn chains(objects: &[Value]) -> impl Iterator<Item = (String, &str)> {
    objects.iter().filter_map(|object| object.get("chain")).map(|chain| {
        let Name { family, table, chain } = name(chain, "name");
        (format!("table {family} {table}"), chain)
    })
}

/// Chains that drop some packets if they come another way than their answer would go: those of pods, unless the rule
/// is about an interface of `not`.
pub fn source_checks_of_some(objects: &[Value], not: &[&str]) -> Vec<String> {
    let (_, others) = of_others(objects);
    let mut found: Vec<String> = others
        .iter()
        .filter(|rule| {
            let check = SourceCheck::of(rule);
            check.drops
                && check.checks
                && check.of_some
                && !check.interfaces.iter().any(|name| not.contains(name))
        })
        .map(|rule| subject(rule.of))
        .collect();
    found.dedup();
    found
}

/// Looks for rules that are in our way, in nft's JSON of all rules. `ipv6`: the Node has it. `answering`: the addresses from
/// which clients on this node get answers straight from endpoints, as far as they are known; `None`: they get none so.
pub fn check(objects: &[Value], rules: Rules, ipv6: bool, answering: Option<&[IpNet]>) -> Vec<Finding> {
    let (chains, others) = of_others(objects);
    let prepared: BTreeSet<(&str, &str)> = others
        .iter()
        .filter(|rule| names_us(rule, rules.mask.bit()))
        .map(|rule| (rule.of.family, rule.of.table))
        .collect();
    let mut findings = Vec::new();
    let met: Vec<(Name<'_>, &Value)> = chains
        .iter()
        .filter(|(name, _)| ["ip", "ip6", "inet"].contains(&name.family) && (ipv6 || name.family != "ip6"))
        .copied()
        .collect();
    for (name, chain) in &met {
        if !prepared.contains(&(name.family, name.table)) {
            findings.extend(judge_default(*name, chain, &others, rules.mask.bit()));
        }
    }
    findings.extend(answering.and_then(|services| clients::judge(&met, &others, services)));
    for rule in &others {
        if !prepared.contains(&(rule.of.family, rule.of.table)) {
            findings.extend(judge_source_check(rule, ipv6));
        }
    }
    findings.extend(judge_marks(&chains, &others, rules.mask.mask()));
    if findings.is_empty() {
        findings.push(Finding::ok("rules of others", "none that drops by default or uses our mark bits"));
    }
    findings
}

/// Chains and rules that are not ours.
pub(super) fn of_others(objects: &[Value]) -> (Vec<(Name<'_>, &Value)>, Vec<Rule<'_>>) {
    let chains: Vec<(Name<'_>, &Value)> = objects
        .iter()
        .filter_map(|object| object.get("chain"))
        .map(|chain| (name(chain, "name"), chain))
        .filter(|(name, _)| !is_ours(*name))
        .collect();
    let rules: Vec<Rule<'_>> = objects
        .iter()
        .filter_map(|object| object.get("rule"))
        .map(|rule| Rule {
            of: name(rule, "chain"),
            expressions: rule.get("expr").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default(),
            object: rule,
        })
        .filter(|rule| !is_ours(rule.of))
        .collect();
    (chains, rules)
}

pub(super) fn field<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn name<'a>(object: &'a Value, chain: &str) -> Name<'a> {
    Name { family: field(object, "family"), table: field(object, "table"), chain: field(object, chain) }
}

fn is_ours(name: Name<'_>) -> bool {
    name.family == "inet" && name.table == TABLE
}

pub(super) fn subject(name: Name<'_>) -> String {
    format!("chain {} in table {} {}", name.chain, name.family, name.table)
}

/// Whether somebody wrote the rule for our sake.
fn names_us(rule: &Rule<'_>, bit: u32) -> bool {
    let by_mark = rule.expressions.iter().filter_map(|expression| expression.get("match")).any(|matched| {
        matched["left"]["&"][0]["meta"]["key"] == "mark"
            && matched["left"]["&"][1] == bit
            && field(matched, "op") == "=="
    });
    by_mark || rule.object.to_string().contains("sheave")
}

/// Whether it ends a packet's way.
pub(super) fn refuses(expression: &Value) -> bool {
    expression.get("drop").is_some() || expression.get("reject").is_some()
}

/// A base chain whose packets are dropped or rejected unless a rule accepts them.
fn judge_default(name: Name<'_>, chain: &Value, rules: &[Rule<'_>], bit: u32) -> Option<Finding> {
    let hook = field(chain, "hook");
    if field(chain, "type") != "filter" || !["input", "forward"].contains(&hook) {
        return None;
    }
    let neutral = |expression: &Value| expression.get("counter").is_some() || expression.get("log").is_some();
    let last = rules.iter().rev().find(|rule| rule.of == name);
    let ends_so = last.is_some_and(|rule| {
        rule.expressions.last().is_some_and(refuses) && rule.expressions.iter().rev().skip(1).all(neutral)
    });
    if field(chain, "policy") != "drop" && !ends_so {
        return None;
    }
    let Name { family, table, chain } = name;
    let insert = format!("nft insert rule {family} {table} {chain}");
    let remedy = if hook == "input" {
        format!(
            "let pass what Sheave takes in, and the answers of Services to this node: `{insert} meta mark & {bit:#x} == {bit:#x} accept` (iptables: `-I INPUT -m mark --mark {bit:#x}/{bit:#x} -m comment --comment sheave -j ACCEPT`), and accept the Service addresses as sources (docs/cni.md)"
        )
    } else {
        format!(
            "let pass what Sheave hands to pods, and the answers of Services to pods: `{insert} iifname {{ \"sheave4\", \"sheave6\" }} accept` (iptables: `-I FORWARD -i sheave+ -j ACCEPT`), and accept the Service addresses as sources (docs/cni.md)"
        )
    };
    Some(Finding::warn(subject(name), format!("hook {hook}: drops or rejects what no rule accepts"), remedy))
}

/// What a rule has to do with the way that packets come.
#[derive(Default)]
struct SourceCheck<'a> {
    drops: bool,
    /// It looks whether their answer would go the way they come.
    checks: bool,
    /// It is about some packets: those of a CNI's own interfaces, say.
    of_some: bool,
    /// The interfaces that it names.
    interfaces: Vec<&'a str>,
    v6_alone: bool,
}

impl<'a> SourceCheck<'a> {
    fn of(rule: &Rule<'a>) -> Self {
        let drops = rule.expressions.iter().any(|expression| expression.get("drop").is_some());
        let mut check = Self { drops, v6_alone: rule.of.family == "ip6", ..Self::default() };
        for matched in rule.expressions.iter().filter_map(|expression| expression.get("match")) {
            let left = &matched["left"];
            if let Some(fib) = left.get("fib") {
                let flags = fib["flags"].to_string();
                check.checks |= flags.contains("saddr") && ["oif", "oifname"].contains(&field(fib, "result"));
            } else if left["meta"]["key"] == "nfproto" {
                check.v6_alone |= matched["right"] == "ipv6";
            } else {
                check.of_some = true;
                if ["iif", "iifname"].iter().any(|key| left["meta"]["key"] == *key) {
                    let right = &matched["right"];
                    let set = right["set"].as_array().into_iter().flatten();
                    check.interfaces.extend(set.chain([right]).filter_map(Value::as_str));
                }
            }
        }
        check
    }
}

/// A rule that drops packets which come another way than their answer would go: those that our tunnel devices hand
/// out, and direct replies from a VIP, which is an address of this host.
fn judge_source_check(rule: &Rule<'_>, ipv6: bool) -> Option<Finding> {
    let SourceCheck { drops, checks, of_some, v6_alone, .. } = SourceCheck::of(rule);
    if !drops || !checks || of_some || (v6_alone && !ipv6) {
        return None;
    }
    let which = if v6_alone { "IPv6 packets" } else { "packets" };
    Some(Finding::fail(
        subject(rule.of),
        format!(
            "drops {which} whose source is not routed to where they come from, and so what Sheave takes in"
        ),
        "firewalld: IPv6_rpfilter=no in /etc/firewalld/firewalld.conf; else accept before it what comes in on sheave4 and sheave6, and the Service addresses as sources (docs/cni.md)",
    ))
}

/// Who uses bits of `mask` in packet marks.
fn judge_marks(chains: &[(Name<'_>, &Value)], rules: &[Rule<'_>], mask: u32) -> Vec<Finding> {
    let mut users = BTreeSet::new();
    for rule in rules {
        let hook = chains.iter().find(|(name, _)| *name == rule.of).map(|(_, chain)| field(chain, "hook"));
        // Later than that, a packet has been led where it shall go.
        let matters = hook.is_none_or(|hook| ["", "prerouting", "output"].contains(&hook));
        let bits = rule.expressions.iter().map(mark_bits).fold(0, |all, bits| all | bits);
        if matters && bits & mask != 0 {
            users.insert((rule.of, bits & mask));
        }
    }
    users
        .into_iter()
        .map(|(of, bits)| {
            Finding::warn(
                subject(of),
                format!("uses bits {bits:#x} of packet marks, and services.markMask {mask:#x} has them"),
                "give services.markMask bits that nobody else uses, or have that program keep to bits of its own",
            )
        })
        .collect()
}

/// The bits of a packet's mark that an expression looks at or changes.
fn mark_bits(expression: &Value) -> u32 {
    let is_mark = |value: &Value| value["meta"]["key"] == "mark";
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    if let Some(matched) = expression.get("match") {
        let left = &matched["left"];
        if is_mark(&left["&"][0]) {
            return number(&left["&"][1]).unwrap_or(0);
        }
        return if is_mark(left) { number(&matched["right"]).unwrap_or(0) } else { 0 };
    }
    let Some(mangle) = expression.get("mangle").filter(|mangle| is_mark(&mangle["key"])) else { return 0 };
    let value = &mangle["value"];
    // `mark & K | N`, `mark & K ^ N`, and each part alone; all else replaces the whole mark.
    let kept = |value: &Value| -> Option<u32> {
        if is_mark(value) {
            return Some(u32::MAX);
        }
        is_mark(&value["&"][0]).then(|| number(&value["&"][1])).flatten()
    };
    let changed = ["|", "^"].into_iter().find_map(|operator| {
        let parts = value.get(operator)?;
        Some(!kept(&parts[0])? | number(&parts[1])?)
    });
    changed.or_else(|| kept(value).map(|kept| !kept)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
