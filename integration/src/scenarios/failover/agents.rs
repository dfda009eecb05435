//! Agents that restart, crash and are upgraded, with BFD beside their sessions.

use anyhow::Result;

use super::super::Scenario;
use super::super::announced::await_directors;
use super::{LIMIT, Traffic, await_all_ways, service};
use crate::cluster::Service;
use crate::fabric::Watch;
use crate::lab::Lab;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "failover-restarts",
        proves: "with BFD on, agents are restarted by SIGTERM, killed by SIGKILL and upgraded to another file: no connection is lost and no request fails",
        run: restarts,
    },
    Scenario {
        name: "failover-restarts-alone",
        proves: "the same of the only director that a virtual IP has, with BFD that the leaves take for a graceful restart: they never take the route away",
        run: restarts_alone,
    },
];

/// How an agent comes to its end.
#[derive(Clone, Copy, Debug)]
enum End {
    Terminated,
    Killed,
    Upgraded,
}

/// Ends a node's agent and starts one again, once there was traffic without.
fn restart(lab: &mut Lab, traffic: &mut Traffic, node: &str, end: End) -> Result<()> {
    match end {
        End::Terminated => lab.stop_agent(node)?,
        End::Killed => lab.kill_agent(node)?,
        End::Upgraded => {
            lab.upgrade(node)?;
            lab.stop_agent(node)?;
        }
    }
    traffic.goes_on(lab)?;
    lab.start_agent(node)
}

fn restarts(lab: &mut Lab) -> Result<()> {
    let service = service(lab, "watched", 75, &["a1", "b1", "c1"])?;
    lab.apply(&service)?;
    await_all_ways(lab, &service)?;
    let mut traffic = Traffic::start(lab, &service)?;
    for (node, end) in [("node-a", End::Terminated), ("node-b", End::Killed), ("node-c", End::Upgraded)] {
        restart(lab, &mut traffic, node, end)?;
        await_ready(lab, node)?;
        await_all_ways(lab, &service)?;
        traffic.goes_on(lab)?;
    }
    traffic.none_failed(lab)?;
    lab.remove(&service)
}

fn restarts_alone(lab: &mut Lab) -> Result<()> {
    const NODE: &str = "node-a";
    lab.fabric.watch(Watch::Graceful)?;
    let service = service(lab, "alone", 76, &["a1", "a2"])?.spec("externalTrafficPolicy", "Local");
    lab.source.apply(&service)?;
    await_directors(lab, &service.vips(), &[NODE])?;
    await_bfd(lab, NODE)?;
    let mut traffic = Traffic::start(lab, &service)?;
    for end in [End::Terminated, End::Killed, End::Upgraded] {
        restart(lab, &mut traffic, NODE, end)?;
        await_ready(lab, NODE)?;
        await_bfd(lab, NODE)?;
        traffic.goes_on(lab)?;
    }
    traffic.none_failed(lab)?;
    remove(lab, &service)?;
    lab.fabric.watch(Watch::Strict)?;
    for node in lab.node_names() {
        await_bfd(lab, &node)?;
    }
    Ok(())
}

fn remove(lab: &mut Lab, service: &Service) -> Result<()> {
    lab.source.remove(service)?;
    await_directors(lab, &service.vips(), &[])
}

fn await_ready(lab: &Lab, node: &str) -> Result<()> {
    await_some(LIMIT, &format!("the agent of {node} to be ready"), || {
        let status = lab.status(node).map_err(|error| format!("{error:#}"))?;
        if status["ready"] == true { Ok(()) } else { Err(status["problems"].to_string()) }
    })
}

/// Waits until all sessions of a node are up, and watched.
fn await_bfd(lab: &Lab, node: &str) -> Result<()> {
    await_some(LIMIT, &format!("sessions of {node}, watched by BFD"), || {
        let status = lab.status(node).map_err(|error| format!("{error:#}"))?;
        let peers: Vec<_> = status["peers"].as_array().into_iter().flatten().collect();
        let watched = |peer: &&serde_json::Value| {
            peer["state"] == "Established"
                && peer["bfd"]["state"].as_str().is_some_and(|state| state.eq_ignore_ascii_case("up"))
        };
        if peers.len() == 4 && peers.iter().all(watched) { Ok(()) } else { Err(format!("{peers:?}")) }
    })
}
