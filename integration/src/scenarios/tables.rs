//! What is announced besides VIPs one by one, and how: routes of kernel tables, by the node's own BIRD, aggregates.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use super::announced::{apply_local, await_directors};
use super::loads::BothLoads;
use crate::cluster::Service;
use crate::fabric::Direction;
use crate::fabric::addresses::Family;
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::process::{self, Daemon};
use crate::traffic::Request;
use crate::wait::{await_some, await_until};

/// How soon a change in a kernel table must be in the routers' tables.
const SOON: Duration = Duration::from_secs(3);
/// How long agents and sessions may take to come up.
const LIMIT: Duration = Duration::from_secs(40);
const NODE: &str = "node-a";

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "kernel-tables",
        proves: "a route put into a kernel table on a node is on both leaves within 3 seconds and gone within 3 of its removal, and \
                 stays there while the agent restarts, by SIGTERM and by SIGKILL; what was removed meanwhile goes with the restart",
        run: kernel_tables,
    },
    Scenario {
        name: "host-bird",
        proves: "the node's own BIRD announces what the agent, without peers, writes into a table (examples/host-bird): clients are served, under \
                 load no request fails while the agent is stopped, started and killed, and what goes or is cleaned up is withdrawn",
        run: host_bird,
    },
    Scenario {
        name: "aggregates",
        proves: "VIPs of an aggregate are served by its route alone, without a loop for what no Service has; a Service that is bound to its \
                 nodes keeps its own route; one that is not to be announced is not drawn, as the aggregate gives way to single routes, which \
                 under load costs no request, nor does an agent that restarts",
        run: aggregates,
    },
];

/// What becomes of the routes of a router or node, noted by the kernel.
pub(super) struct Watch {
    log: PathBuf,
    monitor: Daemon,
}

impl Watch {
    pub(super) fn start(lab: &Lab, ns: &NetNs) -> Result<Self> {
        let log = lab.config(NODE).with_file_name(format!("{}-routes.log", ns.name()));
        let mut command = Command::new("ip");
        command.args(["monitor", "route"]);
        Ok(Self { monitor: ns.daemon(command, &log)?, log })
    }

    /// Lines about routes to that destination that went.
    pub(super) fn removals(&mut self, destination: &str) -> Result<Vec<String>> {
        self.monitor.ensure_running()?;
        let all = std::fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())?;
        let removals = all.lines().filter(|line| line.starts_with("Deleted") && line.contains(destination));
        Ok(removals.map(str::to_owned).collect())
    }
}

/// Waits until each leaf has, or has not, a route learnt from the node; gives how long that took since `start`.
fn await_routes(lab: &Lab, prefixes: &[&str], there: bool, start: Instant) -> Result<Duration> {
    await_some(LIMIT, &format!("{prefixes:?} on both leaves: {there}"), || {
        for leaf in &lab.fabric.leaves {
            for prefix in prefixes {
                // BIRD has no such route: its question fails.
                let answer =
                    leaf.birdc(&format!("show route {prefix}")).unwrap_or_else(|error| format!("{error:#}"));
                if answer.contains("[node_a_ipv") != there {
                    return Err(format!("{}: {answer}", leaf.name()));
                }
            }
        }
        Ok(start.elapsed())
    })
}

fn kernel_tables(lab: &mut Lab) -> Result<()> {
    let node = lab.fabric.node(NODE)?.ns.clone();
    lab.restart_with(NODE, "announce: {kernelTables: [119, 70000]}\n")?;
    await_some(LIMIT, "the agent to be ready", || is_ready(lab))?;
    let mut watches =
        lab.fabric.leaves.iter().map(|leaf| Watch::start(lab, &leaf.ns)).collect::<Result<Vec<_>>>()?;

    let stays = ["10.250.1.0/24", "2001:db8:250:1::/64"];
    let goes = ["10.250.2.0/24", "2001:db8:250:2::/64"];
    let comes = ["10.250.3.0/24", "2001:db8:250:3::/64"];
    let add = |prefixes: [&str; 2]| {
        let [v4, v6] = prefixes;
        node.ip(&format!("route add {v4} dev lo table 119\nroute add {v6} dev lo table 70000\n"))
    };
    let remove = |prefixes: [&str; 2]| {
        let [v4, v6] = prefixes;
        node.ip(&format!("route del {v4} table 119\nroute del {v6} table 70000\n"))
    };
    // The sessions are up once the first ones are there; what follows is timed.
    add(stays)?;
    await_routes(lab, &stays, true, Instant::now())?;
    // Not to be announced, and looked for when all else has been.
    node.ip(
        "route add default dev lo table 119\nroute add blackhole 10.250.9.0/24 table 119\nroute add 10.250.8.0/24 dev lo table 118\n",
    )?;
    for _ in 0..3 {
        let start = Instant::now();
        add(goes)?;
        let took = await_routes(lab, &goes, true, start)?;
        ensure!(took <= SOON, "added, on the leaves after {took:?}");
        let start = Instant::now();
        remove(goes)?;
        let took = await_routes(lab, &goes, false, start)?;
        ensure!(took <= SOON, "removed, gone from the leaves after {took:?}");
    }
    let status = lab.status(NODE)?;
    let announcements = status["announcements"].as_array().context("announcements")?;
    let listed = |prefix: &str| announcements.iter().find(|one| one["prefix"] == prefix);
    for prefix in stays {
        let one =
            listed(prefix).with_context(|| format!("{prefix} is not in the status: {announcements:?}"))?;
        ensure!(one["kind"] == "Kernel" && one["announced"] == true, "{one}");
    }

    for kill in [false, true] {
        add(goes)?;
        await_routes(lab, &goes, true, Instant::now())?;
        if kill {
            lab.kill_agent(NODE)?;
        } else {
            lab.stop_agent(NODE)?;
        }
        // While nobody looks.
        remove(goes)?;
        add(comes)?;
        lab.start_agent(NODE)?;
        await_routes(lab, &comes, true, Instant::now())?;
        await_routes(lab, &goes, false, Instant::now())?;
        await_routes(lab, &stays, true, Instant::now())?;
        remove(comes)?;
        await_routes(lab, &comes, false, Instant::now())?;
    }
    for watch in &mut watches {
        for (v6, prefix) in [(false, "10.250.1.0"), (true, "2001:db8:250:1:")] {
            let removals = watch.removals(prefix)?;
            ensure!(removals.is_empty(), "withdrawn meanwhile: {removals:?}");
            let seen = watch.removals(if v6 { "2001:db8:250:2:" } else { "10.250.2.0" })?;
            ensure!(seen.len() >= 5, "the watch saw of what went five times only: {seen:?}");
        }
    }
    await_routes(lab, &["0.0.0.0/0", "10.250.9.0/24", "10.250.8.0/24"], false, Instant::now())?;
    remove(stays)?;
    node.run("ip route flush table 119")?;
    node.run("ip route flush table 118")?;
    lab.restart_with(NODE, "")
}

pub(super) fn is_ready(lab: &Lab) -> Result<(), String> {
    let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
    if status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
}

fn host_bird(lab: &mut Lab) -> Result<()> {
    const CONFIG: &str = include_str!("../../../examples/host-bird/sheave.yaml");
    const BIRD: &str = include_str!("../../../examples/host-bird/bird.conf");
    let node = lab.fabric.node(NODE)?.ns.clone();
    lab.restart_with(NODE, "")?;
    await_some(LIMIT, "the agent to be ready", || is_ready(lab))?;
    lab.stop_agent(NODE)?;
    std::fs::write(lab.config(NODE), CONFIG)?;
    lab.start_agent(NODE)?;
    let bird = start_bird(lab, &node, BIRD)?;

    let service = apply_local(lab, "by-bird", 56, &["a1", "a2"])?;
    await_directors(lab, &service.vips(), &[NODE])?;
    for family in Family::BOTH {
        Request::new(Tcp, service.vip(family), 80).send(&lab.fabric.client)?;
    }
    let status = lab.status(NODE)?;
    ensure!(status["peers"] == serde_json::json!([]), "no peers: {status}");
    let announcements = status["announcements"].as_array().context("announcements")?;
    let vip = format!("{}/32", service.vip(Family::V4));
    let told = announcements.iter().any(|one| one["prefix"] == vip.as_str() && one["announced"] == true);
    ensure!(told, "{vip} is not told to be announced: {announcements:?}");

    let loads = BothLoads::start(lab, &service)?;
    loads.outlast_restarts(lab, NODE, |lab| await_some(LIMIT, "the agent to be ready", || is_ready(lab)))?;
    loads.none_failed()?;

    // Elsewhere, and back.
    let elsewhere = service.clone().endpoints([lab.fabric.pod("b1")?]);
    lab.source.apply(&elsewhere)?;
    await_directors(lab, &service.vips(), &["node-b"])?;
    ensure!(!node.run("ip route show table 120")?.contains("192.0.2.56"), "the route is still in the table");
    lab.source.apply(&service)?;
    await_directors(lab, &service.vips(), &[NODE])?;

    lab.stop_agent(NODE)?;
    let mut cleanup = lab.sheave(NODE, "cleanup");
    cleanup.arg("--config").arg(lab.config(NODE));
    process::run(cleanup, "")?;
    await_directors(lab, &service.vips(), &[])?;
    lab.source.remove(&service)?;
    lab.start_agent(NODE)?;
    drop(bird);
    lab.restart_with(NODE, "")?;
    await_some(LIMIT, "the agent to be ready", || is_ready(lab))
}

/// The BIRD of a node, once it answers.
fn start_bird(lab: &Lab, node: &NetNs, config: &str) -> Result<Daemon> {
    let path = |name: &str| lab.config(NODE).with_file_name(format!("host-bird.{name}"));
    std::fs::write(path("conf"), config)?;
    let mut command = Command::new("bird");
    command.arg("-f").arg("-c").arg(path("conf")).arg("-s").arg(path("ctl")).arg("-P").arg(path("pid"));
    let mut bird = node.daemon(command, &path("log"))?;
    await_until(Duration::from_secs(20), "BIRD's control socket", || {
        path("ctl").exists() || bird.ensure_running().is_err()
    })?;
    bird.ensure_running()?;
    Ok(bird)
}

const AGGREGATES: [&str; 2] = ["192.0.2.0/25", "2001:db8:2::/65"];

/// Waits until both leaves have learnt each of these prefixes from exactly these nodes.
fn await_learnt(lab: &Lab, expected: &[(String, &[&str])]) -> Result<()> {
    await_some(LIMIT, &format!("the leaves have {expected:?}"), || {
        for leaf in &lab.fabric.leaves {
            for (prefix, nodes) in expected {
                let answer =
                    leaf.birdc(&format!("show route {prefix}")).unwrap_or_else(|error| format!("{error:#}"));
                let from = |node: &str| answer.contains(&format!("[{}_ipv", node.replace('-', "_")));
                if lab.node_names().iter().any(|node| from(node) != nodes.contains(&node.as_str())) {
                    return Err(format!("{}: {prefix}: {answer}", leaf.name()));
                }
            }
        }
        Ok(())
    })
}

fn host_prefix(service: &Service, family: Family) -> String {
    format!("{}/{}", service.vip(family), family.bits())
}

/// Waits until every agent says of a Service's VIPs that they are announced, by their aggregates or by themselves.
fn await_announced(lab: &Lab, service: &Service, by_aggregate: bool) -> Result<()> {
    await_some(LIMIT, &format!("{} is announced, by its aggregate: {by_aggregate}", service.name), || {
        for node in lab.node_names() {
            let status = lab.status(&node).map_err(|error| format!("{error:#}"))?;
            for (family, aggregate) in Family::BOTH.into_iter().zip(AGGREGATES) {
                let prefix = host_prefix(service, family);
                let all = status["announcements"].as_array().into_iter().flatten();
                let one = all.into_iter().find(|one| one["prefix"] == prefix.as_str());
                let right = |one: &serde_json::Value| {
                    one["announced"] == true && (one["aggregate"] == aggregate) == by_aggregate
                };
                if !one.is_some_and(right) {
                    return Err(format!("{node}: {prefix}: {one:?}; {}", status["warnings"]));
                }
            }
        }
        Ok(())
    })
}

fn aggregates(lab: &mut Lab) -> Result<()> {
    let nodes = lab.node_names();
    for node in &nodes {
        lab.restart_with(
            node,
            &format!("announce: {{aggregate: [{}, \"{}\"]}}\n", AGGREGATES[0], AGGREGATES[1]),
        )?;
    }
    let everywhere: &[&str] = &["node-a", "node-b", "node-c"];
    let learnt = |services: &[(&Service, &'static [&'static str])], aggregate: &'static [&'static str]| {
        let aggregates = AGGREGATES.map(|prefix| (prefix.to_owned(), aggregate));
        let specific = services
            .iter()
            .flat_map(|(service, nodes)| Family::BOTH.map(|family| (host_prefix(service, family), *nodes)));
        aggregates.into_iter().chain(specific).collect::<Vec<_>>()
    };
    let endpoints =
        [lab.fabric.pod("a1")?.clone(), lab.fabric.pod("b1")?.clone(), lab.fabric.pod("c1")?.clone()];
    let [first, second] = [("first", 57), ("second", 58)]
        .map(|(name, number)| Service::new(name, number).port(Tcp, 80, POD_PORT).endpoints(&endpoints));
    for service in [&first, &second] {
        lab.source.apply(service)?;
        await_announced(lab, service, true)?;
    }
    await_learnt(lab, &learnt(&[(&first, &[]), (&second, &[])], everywhere))?;
    for family in Family::BOTH {
        for service in [&first, &second] {
            Request::new(Tcp, service.vip(family), 80).send(&lab.fabric.client)?;
        }
        // What no Service has ends on the first node that it comes to.
        let unused = Service::new("unused", 99).vip(family);
        lab.fabric.reset_counters()?;
        let answer = Request::new(Tcp, unused, 80).within(Duration::from_secs(2)).send(&lab.fabric.client);
        ensure!(answer.is_err(), "{unused} answered");
        let mut packets = 0;
        for node in &nodes {
            packets += lab.fabric.packets(Direction::To, node, unused)?;
        }
        ensure!((1..=3).contains(&packets), "{packets} packets to {unused}: they went round, or nowhere");
    }

    let loads = BothLoads::start(lab, &first)?;
    // One that only its endpoint's node can serve has a route of its own beside the aggregate.
    let local = Service::new("local", 59)
        .port(Tcp, 80, POD_PORT)
        .spec("externalTrafficPolicy", "Local")
        .endpoints(&endpoints[..1]);
    lab.source.apply(&local)?;
    await_learnt(lab, &learnt(&[(&first, &[]), (&local, &["node-a"])], everywhere))?;
    for family in Family::BOTH {
        Request::new(Tcp, local.vip(family), 80).send(&lab.fabric.client)?;
    }
    // One that is not to be announced must not be drawn: the others are announced one by one.
    let hidden = Service::new("hidden", 60)
        .port(Tcp, 80, POD_PORT)
        .annotate("sheave.io/announce", "none")
        .endpoints(&endpoints);
    for _ in 0..2 {
        lab.source.apply(&hidden)?;
        await_learnt(lab, &learnt(&[(&first, everywhere), (&second, everywhere), (&hidden, &[])], &[]))?;
        await_announced(lab, &first, false)?;
        for family in Family::BOTH {
            let request = Request::new(Tcp, hidden.vip(family), 80).within(Duration::from_secs(2));
            ensure!(request.send(&lab.fabric.client).is_err(), "{family}: what is not announced is reached");
        }
        loads.await_answers(20)?;
        lab.source.remove(&hidden)?;
        await_learnt(lab, &learnt(&[(&first, &[]), (&second, &[])], everywhere))?;
        loads.await_answers(20)?;
    }
    loads.outlast_restarts(lab, NODE, |lab| await_announced(lab, &first, true))?;
    await_learnt(lab, &learnt(&[(&first, &[]), (&second, &[])], everywhere))?;
    loads.none_failed()?;
    for service in [&first, &second, &local] {
        lab.source.remove(service)?;
    }
    await_learnt(lab, &learnt(&[(&first, &[]), (&second, &[]), (&local, &[])], &[]))?;
    for node in &nodes {
        lab.restart_with(node, "")?;
    }
    Ok(())
}
