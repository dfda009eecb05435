//! Peers that no configuration has the addresses of: default gateways, and whoever is at the other end of a link (examples/leaf-spine).

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use super::announced::{apply_local, await_directors};
use super::tables::Watch;
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::lab::Lab;
use crate::traffic::{Load, Request, await_each};
use crate::wait::await_some;

/// How long sessions may take to come up.
const LIMIT: Duration = Duration::from_secs(40);
/// How soon a link that is gone must tell: long before the hold time.
const SOON: Duration = Duration::from_secs(10);
const NODE: &str = "node-a";
const NUMBERED: &str = include_str!("../../../examples/leaf-spine/sheave.yaml");
const UNNUMBERED: &str = include_str!("../../../examples/leaf-spine/unnumbered.yaml");
const LEAF: &str = include_str!("../../../examples/leaf-spine/leaf1.bird.conf");

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "leaf-spine",
    proves: "a node has sessions with the leaves that its default routes lead to, and follows these (examples/leaf-spine); then, without an address on \
             any link, with both leaves by their router advertisements: clients are served by link-local next hops of both families and answered by \
             default routes learnt of both leaves, none of their requests fails while the link to one goes and comes back; an agent that restarts finds both again, and its routes stay meanwhile",
    run: leaf_spine,
}];

/// Its sessions that are up, as `address AS`, sorted.
fn established(status: &Value) -> BTreeSet<String> {
    let peers = status["peers"].as_array().into_iter().flatten();
    let up = peers.filter(|peer| peer["state"] == "Established");
    up.map(|peer| format!("{} {}", peer["address"].as_str().unwrap_or_default(), peer["asn"])).collect()
}

/// Waits for sessions that are so, and no others.
fn await_sessions(
    lab: &Lab,
    limit: Duration,
    what: &str,
    are: impl Fn(&BTreeSet<String>) -> bool,
) -> Result<()> {
    await_some(limit, what, || {
        let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
        if are(&established(&status)) {
            Ok(())
        } else {
            Err(format!("{} {}", status["peers"], status["problems"]))
        }
    })
}

/// The sessions with these leaves' addresses on their links to the node.
fn gateways(leaves: &[u8]) -> BTreeSet<String> {
    let one =
        |leaf, family| format!("{} {}", addresses::leaf_link(family, leaf, 1), addresses::leaf_asn(leaf));
    leaves.iter().flat_map(|leaf| Family::BOTH.map(|family| one(*leaf, family))).collect()
}

/// Whether there is one with each of these leaves, over the interface that is called after it.
fn by_interface(sessions: &BTreeSet<String>, leaves: &[u8]) -> bool {
    let of = |leaf: u8| format!("%leaf{leaf} {}", addresses::leaf_asn(leaf));
    sessions.len() == leaves.len()
        && leaves
            .iter()
            .all(|leaf| sessions.iter().any(|one| one.starts_with("fe80::") && one.ends_with(&of(*leaf))))
}

fn configure(lab: &mut Lab, config: &str) -> Result<()> {
    lab.stop_agent(NODE)?;
    std::fs::write(lab.config(NODE), config)?;
    lab.start_agent(NODE)
}

/// Adds to the configuration of each leaf what the example has; or takes it out.
fn configure_leaves(lab: &Lab, unnumbered: bool) -> Result<()> {
    for leaf in &lab.fabric.leaves {
        let path = lab.config(NODE).with_file_name(format!("{}.conf", leaf.name()));
        let text = std::fs::read_to_string(&path)?;
        let first = text.split("# BIRD 2 of a leaf router").next().unwrap_or_default();
        let own = LEAF.replace("as 65001", &format!("as {}", addresses::leaf_asn(leaf.number)));
        std::fs::write(&path, if unnumbered { format!("{first}{own}") } else { first.to_owned() })?;
        let answer = leaf.birdc("configure")?;
        ensure!(answer.contains("Reconfigur"), "{}: {answer}", leaf.name());
    }
    Ok(())
}

fn leaf_spine(lab: &mut Lab) -> Result<()> {
    let node = lab.fabric.node(NODE)?.ns.clone();
    lab.restart_with(NODE, "")?;
    let service = apply_local(lab, "by-leaves", 63, &["a1", "a2"])?;
    await_directors(lab, &service.vips(), &[NODE])?;

    configure(lab, NUMBERED)?;
    await_sessions(lab, LIMIT, "sessions with both gateways of both families", |up| {
        *up == gateways(&[1, 2])
    })?;
    await_directors(lab, &service.vips(), &[NODE])?;
    let hop = |family, leaf| format!("nexthop via {} dev leaf{leaf}", addresses::leaf_link(family, leaf, 1));
    let default = |leaves: &[u8]| -> String {
        let hops = |family| leaves.iter().map(|leaf| hop(family, *leaf)).collect::<Vec<_>>().join(" ");
        let own = |family| addresses::node(family, 1);
        Family::BOTH
            .map(|family| format!("route replace default src {} {}\n", own(family), hops(family)))
            .concat()
    };
    node.run("ip -6 route del default")?;
    node.ip(&default(&[2]))?;
    await_sessions(lab, SOON, "sessions with the one gateway that is left", |up| *up == gateways(&[2]))?;
    node.run("ip -6 route del default")?;
    node.ip(&default(&[1, 2]))?;
    await_sessions(lab, LIMIT, "both again", |up| *up == gateways(&[1, 2]))?;

    // The addresses go, and the leaves' sessions by them.
    configure_leaves(lab, true)?;
    for family in Family::BOTH {
        node.run(&format!(
            "ip {0} route add {1}/{2} dev lo table 119",
            family.flag(),
            addresses::node(family, 1),
            family.bits()
        ))?;
    }
    lab.fabric.unnumber(lab.fabric.node(NODE)?)?;
    configure(lab, UNNUMBERED)?;
    await_sessions(lab, LIMIT, "sessions with both leaves", |up| by_interface(up, &[1, 2]))?;
    await_directors(lab, &service.vips(), &[NODE])?;
    await_defaults(lab, 2)?;
    for leaf in &lab.fabric.leaves {
        for (family, gateway) in [(Family::V4, "via inet6 fe80::"), (Family::V6, "via fe80::")] {
            let route = leaf.ns.run(&format!("ip {} route show {}", family.flag(), service.vip(family)))?;
            ensure!(
                route.contains(gateway) && route.contains(&format!("dev {NODE}")),
                "{}: {route}",
                leaf.name()
            );
        }
    }
    for family in Family::BOTH {
        Request::new(Tcp, service.vip(family), 80)
            .send(&lab.fabric.client)
            .with_context(|| family.to_string())?;
    }
    under_load(lab, &service)?;
    restarted(lab, &service)?;

    configure_leaves(lab, false)?;
    lab.fabric.number(lab.fabric.node(NODE)?)?;
    for family in Family::BOTH {
        node.run(&format!("ip {} route flush table 119", family.flag()))?;
    }
    lab.source.remove(&service)?;
    lab.restart_with(NODE, "")?;
    await_some(LIMIT, "the agent as at first", || super::tables::is_ready(lab))
}

/// Waits for a default route of each family to that many leaves.
fn await_defaults(lab: &Lab, hops: usize) -> Result<()> {
    await_some(SOON, &format!("default routes to {hops} leaves"), || {
        for family in Family::BOTH {
            let node = lab.fabric.node(NODE).map_err(|error| format!("{error:#}"))?;
            let routes = node.ns.run(&format!("ip {} route show default proto 85", family.flag()));
            let routes = routes.map_err(|error| format!("{error:#}"))?;
            if routes.matches("via").count() != hops {
                return Err(format!("{family}: {routes}"));
            }
        }
        Ok(())
    })
}

fn under_load(lab: &mut Lab, service: &Service) -> Result<()> {
    // A leaf whose link is gone has no way to the VIP: what comes from the client takes the other one.
    let by = |lab: &Lab, leaves: &[u8]| {
        let lines = Family::BOTH.map(|family| {
            let hop =
                |leaf: &u8| format!(" nexthop via {} dev leaf{leaf}", addresses::leaf_uplink(family, *leaf));
            let hops: String = leaves.iter().map(hop).collect();
            format!("route replace {}{hops}\n", addresses::external_vips(family))
        });
        lab.fabric.spine.ip(&lines.concat())
    };
    by(lab, &[2])?;
    let [v4, v6] =
        Family::BOTH.map(|family| Load::start(&lab.fabric.client, Tcp, service.vip(family), 80, 2));
    let (v4, v6) = (v4?, v6?);
    let answers = |count: u64| await_each([&v4, &v6], count);
    answers(30)?;
    let leaf = lab.fabric.leaves.first().context("a leaf")?.ns.clone();
    leaf.ip(&format!("link set {NODE} down\n"))?;
    await_sessions(lab, SOON, "the session with the other leaf alone", |up| by_interface(up, &[2]))?;
    await_defaults(lab, 1)?;
    answers(30)?;
    leaf.ip(&format!("link set {NODE} up\n"))?;
    await_sessions(lab, LIMIT, "both again", |up| by_interface(up, &[1, 2]))?;
    await_defaults(lab, 2)?;
    answers(30)?;
    by(lab, &[1, 2])?;
    v4.stop()?.ensure_none_failed().context("IPv4")?;
    v6.stop()?.ensure_none_failed().context("IPv6")
}

/// The agent comes back, and finds its peers again. BIRD keeps no routes of neighbours that it does not have by their addresses meanwhile; the
/// node does.
fn restarted(lab: &mut Lab, service: &Service) -> Result<()> {
    let node = lab.fabric.node(NODE)?.ns.clone();
    let mut watch = Watch::start(lab, &node)?;
    for kill in [false, true] {
        if kill {
            lab.kill_agent(NODE)?;
        } else {
            lab.stop_agent(NODE)?;
        }
        await_defaults(lab, 2)?;
        lab.start_agent(NODE)?;
        await_sessions(lab, LIMIT, "both after a restart", |up| by_interface(up, &[1, 2]))?;
        await_defaults(lab, 2)?;
        await_directors(lab, &service.vips(), &[NODE])?;
        for family in Family::BOTH {
            let request = Request::new(Tcp, service.vip(family), 80);
            request.send(&lab.fabric.client).with_context(|| format!("{family}, after a restart"))?;
        }
    }
    let removals = watch.removals("default")?;
    ensure!(removals.is_empty(), "removed over restarts of the agent: {removals:?}");
    Ok(())
}
