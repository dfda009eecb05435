//! Rules of others that judge what comes to clients here by connection state. An answer that comes straight from the
//! endpoint of a Service belongs to no connection that this node tracks, unless `services.forwarding` has *nat* for clients
//! within the cluster.
//!
//! A chain judges so where it accepts what is established and drops the rest; a CNI has one for each of its pods. kube-router's
//! (`KUBE-POD-FW-…`) does not count: it accepts what has an address of this node as its source, which virtual IPs are.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;

use super::Finding;
use super::rules::{self, Name, Rule};

/// Looks for such chains. `services`: the addresses whose answers come, as far as they are known.
pub fn judge(chains: &[(Name<'_>, &Value)], rules: &[Rule<'_>], services: &[IpNet]) -> Option<Finding> {
    let found: BTreeSet<Name<'_>> = chains
        .iter()
        .filter(|(name, chain)| {
            let of_chain = || rules.iter().filter(|rule| rule.of == *name);
            let by_name = rules::field(chain, "hook").is_empty() && name.chain.starts_with(TO_CALICO_POD);
            let by_rules = of_chain().any(accepts_established) && drops_the_rest(*name, chain, rules);
            (by_name || by_rules) && !admits(of_chain(), services)
        })
        .map(|(name, _)| *name)
        .collect();
    let first = found.first()?;
    let others = match found.len() - 1 {
        0 => String::new(),
        1 => " and another chain".into(),
        others => format!(" and {others} more chains"),
    };
    Some(Finding::warn(
        "answers of Services",
        format!(
            "connection state (established) decides in {}{others} what gets through to pods or programs here: answers of \
             Services do not, since these are of no connection that it knows",
            rules::subject(*first)
        ),
        "set services.forwarding: {internal: nat}, or let these rules, or the network policies that they come from, accept \
         the Service addresses as sources (docs/cni.md)",
    ))
}

/// Calico's chains in iptables, whose matches of connection states nft does not show.
const TO_CALICO_POD: &str = "cali-tw-";

fn matches<'a>(rule: &'a Rule<'_>) -> impl Iterator<Item = &'a Value> {
    rule.expressions.iter().filter_map(|expression| expression.get("match"))
}

fn is_state(matched: &Value) -> bool {
    matched["left"]["ct"]["key"] == "state"
}

/// Whoever sends it: what matches more than the state is about some packets only.
fn accepts_established(rule: &Rule<'_>) -> bool {
    let mut states = matches(rule);
    rule.expressions.iter().any(|expression| expression.get("accept").is_some())
        && states.next().is_some_and(|matched| {
            is_state(matched) && matched["op"] != "!=" && matched["right"].to_string().contains("established")
        })
        && states.next().is_none()
}

/// By its policy or by a rule; what depends on marks is what policies decided before.
fn drops_the_rest(name: Name<'_>, chain: &Value, rules: &[Rule<'_>]) -> bool {
    let hook = rules::field(chain, "hook");
    let is_base = !hook.is_empty();
    if is_base && !(["input", "forward"].contains(&hook) && rules::field(chain, "type") == "filter") {
        return false;
    }
    let of_mark = |matched: &Value| {
        matched["left"]["meta"]["key"] == "mark" || matched["left"]["&"][0]["meta"]["key"] == "mark"
    };
    let mut of_chain = rules.iter().filter(|rule| rule.of == name);
    rules::field(chain, "policy") == "drop"
        || of_chain
            .any(|rule| rule.expressions.last().is_some_and(rules::refuses) && matches(rule).all(of_mark))
}

/// Whether a rule lets the addresses of Services in as sources; where none is known, any sources may be meant.
fn admits<'a>(mut rules: impl Iterator<Item = &'a Rule<'a>>, services: &[IpNet]) -> bool {
    let covers = |net: &IpNet| services.is_empty() || services.iter().any(|services| net.contains(services));
    rules.any(|rule| {
        !rule.expressions.iter().any(rules::refuses)
            && matches(rule).any(|matched| {
                rules::field(&matched["left"]["payload"], "field") == "saddr"
                    && matched["op"] != "!="
                    && prefixes(&matched["right"]).iter().any(covers)
            })
    })
}

/// The addresses and prefixes of a match's right side: one, or a set of them.
fn prefixes(right: &Value) -> Vec<IpNet> {
    if let Some(members) = right["set"].as_array() {
        return members.iter().flat_map(prefixes).collect();
    }
    let prefix = &right["prefix"];
    let text = match (right.as_str(), prefix["addr"].as_str()) {
        (Some(address), _) => address.to_owned(),
        (None, Some(address)) => format!("{address}/{}", prefix["len"]),
        (None, None) => return Vec::new(),
    };
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).into_iter().collect()
}

#[cfg(test)]
mod tests;
