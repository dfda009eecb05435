//! Routers that connect to the nodes from a range, and are listed nowhere.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use super::announced::apply_local;
use super::loads::BothLoads;
use crate::fabric::addresses::Family;
use crate::lab::Lab;
use crate::traffic::Request;
use crate::wait::await_some;

/// How long sessions may take to come up.
const LIMIT: Duration = Duration::from_secs(40);
const NODE: &str = "node-a";
/// The links to both leaves.
const ROUTER: &str = "router:
  asn: 64512
  dynamicPeers:
  - {prefix: 10.254.1.0/24, asn: 65001, families: [ipv4]}
  - {prefix: \"2001:db8:254:10::/60\", asn: 65001, families: [ipv6]}
  - {prefix: 10.254.2.0/24, asn: 65002, families: [ipv4]}
  - {prefix: \"2001:db8:254:20::/60\", asn: 65002, families: [ipv6]}
";

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "dynamic-peers",
    proves: "leaves that connect to a node from a range, where it lists none of them, learn its virtual IPs and send it the clients' requests, \
             none of which fails while its agent restarts; a leaf that goes is shown as down, and has its session back when it connects again",
    run: dynamic_peers,
}];

/// Its sessions that are up.
fn established(status: &Value) -> Vec<&Value> {
    status["peers"].as_array().into_iter().flatten().filter(|peer| peer["state"] == "Established").collect()
}

fn await_sessions(lab: &Lab, count: usize) -> Result<()> {
    await_some(LIMIT, &format!("{count} sessions"), || {
        let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
        if established(&status).len() == count { Ok(()) } else { Err(status["peers"].to_string()) }
    })
}

fn dynamic_peers(lab: &mut Lab) -> Result<()> {
    lab.restart_with_router(NODE, ROUTER)?;
    await_sessions(lab, 4)?;
    let status = lab.status(NODE)?;
    for peer in established(&status) {
        let range = peer["range"].as_str().context("a range")?;
        ensure!(ROUTER.contains(range), "{peer}");
    }

    let service = apply_local(lab, "to-ranges", 59, &["a1", "a2"])?;
    for family in Family::BOTH {
        await_some(LIMIT, &format!("an answer over {family}"), || {
            Request::new(Tcp, service.vip(family), 80)
                .send(&lab.fabric.client)
                .map_err(|error| format!("{error:#}"))
        })?;
    }
    let loads = BothLoads::start(lab, &service)?;
    loads.outlast_restarts(lab, NODE, |lab| await_sessions(lab, 4))?;
    let BothLoads([v4, v6]) = loads;
    v4.stop()?.ensure_none_failed().context("IPv4")?;

    // One session goes and comes back; those of the other family do not notice.
    let leaf = lab.fabric.leaves.first().context("a leaf")?;
    leaf.birdc("disable node_a_ipv4")?;
    await_some(LIMIT, "the session that ended", || {
        let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
        let mut peers = status["peers"].as_array().into_iter().flatten();
        let down = peers.any(|peer| {
            peer["state"] != "Established" && peer["lastError"].as_str().is_some_and(|e| e.contains("Cease"))
        });
        if down { Ok(()) } else { Err(status["peers"].to_string()) }
    })?;
    leaf.birdc("enable node_a_ipv4")?;
    await_sessions(lab, 4)?;
    v6.await_answers(30)?;
    v6.stop()?.ensure_none_failed().context("IPv6")?;
    lab.source.remove(&service)?;
    lab.restart_with(NODE, "")?;
    await_sessions(lab, 4)
}
