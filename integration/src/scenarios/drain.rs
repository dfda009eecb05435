//! A node stops to be a director and becomes one again, and no client notices.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sheave::cluster::Protocol::Tcp;
use sheave_apiserver::Reach;

use super::Scenario;
use super::api::await_forwarding;
use crate::cluster::Service;
use crate::fabric::addresses::Family;
use crate::fabric::{Direction, Leaf};
use crate::lab::{Lab, POD_PORT};
use crate::process::{self, Daemon};
use crate::source::ApiServer;
use crate::traffic::{Connections, Request, Steady, get};
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "drain",
        proves: "under load of TCP, UDP and SCTP in both families `sheave drain` moves all traffic off a node, by a leaf that heeds GRACEFUL_SHUTDOWN before \
                 and by one that does not at the withdrawal: no request fails, no connection is lost, no session ends; connections to the node's own \
                 address go on and are waited for and named; an agent that is stopped or killed while drained stays so, and announces nothing in \
                 between; `sheave undrain` brings the traffic back",
        run: drain,
    },
    Scenario {
        name: "drain-last-director",
        proves: "a VIP that no other node is to announce stays reachable through a node that drains, which names it, and goes once another \
                 node announces it, without a failed request",
        run: last_director,
    },
];

pub(super) const WITH_API_SERVER: &[Scenario] = &[
    Scenario {
        name: "drain-by-node",
        proves: "a node drains and comes back as its Node's annotation or one of the configured taints says, without a failed request; a wrong \
             value changes nothing and is an Event, and so are begin and end; /healthz is 503 meanwhile; without a configured taint a cordon does nothing",
        run: by_node,
    },
    Scenario {
        name: "drain-without-source",
        proves: "an agent that starts while the API server is away, and is told to drain, withdraws nothing before it knows of other nodes; one that \
                 starts so drained announces no VIP: no request fails",
        run: without_source,
    },
];

const NODE: &str = "node-a";
/// How long agents, sessions and steps of a drain may take.
const LIMIT: Duration = Duration::from_secs(40);
/// `drain.wait` of the node; and by how much a step may come late: the loop's second, and what an emulated machine takes.
const WAIT: Duration = Duration::from_secs(3);
const LATE: Duration = Duration::from_secs(3);
const CONFIG: &str = "drain: {wait: 3s, limit: 2m, taints: ['maintenance:NoExecute']}\n";
const NODE_PORT: u16 = 30065;

/// Has a leaf heed GRACEFUL_SHUTDOWN, as RFC 8326 wants it; or not, as BIRD does by itself.
fn heeds(lab: &Lab, leaf: &Leaf, heeds: bool) -> Result<()> {
    const ALL: &str = "import all;";
    const HEEDING: &str = "import filter { if (65535, 0) ~ bgp_community then bgp_local_pref = 0; accept; };";
    let path = lab.config(NODE).with_file_name(format!("{}.conf", leaf.name()));
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (from, to) = if heeds { (ALL, HEEDING) } else { (HEEDING, ALL) };
    ensure!(text.contains(from), "{}: {text}", leaf.name());
    std::fs::write(&path, text.replace(from, to))?;
    let answer = leaf.birdc("configure")?;
    ensure!(answer.contains("Reconfigur"), "{}: {answer}", leaf.name());
    Ok(())
}

/// Waits until a leaf sends, or does not send, packets for a Service to the node; gives how long that took since `start`.
fn await_director(lab: &Lab, leaf: &Leaf, service: &Service, is: bool, start: Instant) -> Result<Duration> {
    await_some(LIMIT, &format!("{NODE} a director of {} for {}: {is}", leaf.name(), service.name), || {
        for family in Family::BOTH {
            let directors = lab.fabric.directors(leaf, service.vip(family));
            let directors = directors.map_err(|error| format!("{error:#}"))?;
            if directors.contains(NODE) != is || directors.is_empty() {
                return Err(format!("{family}: {directors:?}"));
            }
        }
        Ok(start.elapsed())
    })
}

fn await_on_all(lab: &Lab, service: &Service, is: bool) -> Result<()> {
    lab.fabric
        .leaves
        .iter()
        .try_for_each(|leaf| await_director(lab, leaf, service, is, Instant::now()).map(drop))
}

fn await_phase(lab: &Lab, phase: &str) -> Result<Value> {
    await_some(LIMIT, &format!("{NODE} {phase}"), || {
        let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
        if status["drain"]["phase"] == phase { Ok(status) } else { Err(status["drain"].to_string()) }
    })
}

fn command(lab: &Lab, which: &str, arguments: &[&str]) -> Command {
    let mut command = lab.sheave(NODE, which);
    command.args(arguments);
    command
}

/// Whether the four sessions of the node have been up since then.
fn ensure_sessions_since(lab: &Lab, since: Instant) -> Result<()> {
    let status = lab.status(NODE)?;
    let peers = status["peers"].as_array().context("peers")?;
    let so = |peer: &Value| peer["uptimeSeconds"].as_u64() >= Some(since.elapsed().as_secs());
    ensure!(peers.len() == 4 && peers.iter().all(so), "sessions began anew: {peers:?}");
    Ok(())
}

/// What the kernel of a leaf notes of routes to a node.
struct Notes {
    log: PathBuf,
    monitor: Daemon,
    from: usize,
}

impl Notes {
    fn start(lab: &Lab, leaf: &Leaf) -> Result<Self> {
        let log = lab.config(NODE).with_file_name(format!("{}-drain-routes.log", leaf.name()));
        let mut command = Command::new("ip");
        command.args(["monitor", "route"]);
        let monitor = leaf.ns.daemon(command, &log)?;
        let from = std::fs::read_to_string(&log).map_or(0, |text| text.len());
        Ok(Self { log, monitor, from })
    }

    /// Lines with a next hop that is the node.
    fn leading_to_node(&mut self) -> Result<Vec<String>> {
        self.monitor.ensure_running()?;
        let all = std::fs::read_to_string(&self.log).with_context(|| self.log.display().to_string())?;
        let new = all.get(self.from..).unwrap_or_default().lines();
        Ok(new.filter(|line| line.contains(&format!("dev {NODE}"))).map(str::to_owned).collect())
    }
}

/// Connections that are never silent for long.
struct Talk {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Talk {
    fn start(mut connections: Vec<Connections>) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (ends, start) = (Arc::clone(&ends), Instant::now());
            move || {
                while !ends.load(Ordering::Relaxed) && start.elapsed() < 4 * LIMIT {
                    connections.iter_mut().try_for_each(Connections::check)?;
                    std::thread::sleep(Duration::from_millis(200));
                }
                Ok(())
            }
        });
        Self { ends, thread: Some(thread) }
    }

    /// Closes them; an error if one was ever lost.
    fn end(mut self) -> Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("no thread")?;
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

fn drain(lab: &mut Lab) -> Result<()> {
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    let service =
        Service::new("drained", 64).all_protocols(80, POD_PORT).node_port(NODE_PORT).endpoints(pods);
    lab.restart_with(NODE, CONFIG)?;
    lab.apply(&service)?;
    heeds(lab, &lab.fabric.leaves[0], true)?;
    await_on_all(lab, &service, true)?;
    let begin = Instant::now();
    ensure_sessions_since(lab, begin)?;
    let vips = service.vips();
    let mut traffic = Steady::start(&vips.map(|vip| (&lab.fabric.client, vip)))?;
    traffic.check()?;
    let node = lab.fabric.node(NODE)?;
    let at_node = Family::BOTH
        .map(|family| Connections::open(&lab.fabric.client, Tcp, node.address(family), NODE_PORT, 3))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let at_node = Talk::start(at_node);

    // The node has its clients until they are told of others.
    lab.fabric.reset_counters()?;
    traffic.check()?;
    ensure!(packets(lab, &service)? > 0, "nothing passes {NODE}");
    let start = Instant::now();
    let said = process::run(command(lab, "drain", &[]), "")?;
    ensure!(said.contains("leaving") && said.contains("by command `sheave drain`"), "{said}");
    let [heeding, other] = &lab.fabric.leaves[..] else { anyhow::bail!("two leaves") };
    let took = await_director(lab, heeding, &service, false, start)?;
    ensure!(took < LATE, "the leaf that heeds GRACEFUL_SHUTDOWN took {took:?}");
    let directors = lab.fabric.directors(other, service.vip(Family::V4))?;
    ensure!(start.elapsed() > WAIT || directors.contains(NODE), "withdrawn before its time: {directors:?}");
    let took = await_director(lab, other, &service, false, start)?;
    ensure!(took > WAIT && took < WAIT + LATE, "the leaf that does not heed it took {took:?}");
    println!("    all traffic moved within {took:.1?} (drain.wait {WAIT:?})");
    lab.fabric.reset_counters()?;
    traffic.check()?;
    let left = packets(lab, &service)?;
    ensure!(left == 0, "{left} packets still pass {NODE}");

    // What goes by the node's own address goes on, is waited for, and is named.
    await_some(LIMIT, "connections that are waited for", || {
        let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
        let drain = &status["drain"];
        let waits = drain["phase"] == "emptying" && drain["connections"] == 6;
        if waits { Ok(()) } else { Err(drain.to_string()) }
    })?;
    let refused = process::run(command(lab, "drain", &["--wait", "--timeout", "6s"]), "");
    let refused = format!("{:#}", refused.err().context("the drain has ended")?);
    ensure!(refused.contains("exit status: 1") && refused.contains(&format!(":{NODE_PORT}")), "{refused}");
    at_node.end()?;
    let said = process::run(command(lab, "drain", &["--wait", "--timeout", "30s"]), "")?;
    ensure!(said.contains("drained, since"), "{said}");
    ensure_sessions_since(lab, begin)?;
    traffic.check()?;

    let mut notes =
        lab.fabric.leaves.iter().map(|leaf| Notes::start(lab, leaf)).collect::<Result<Vec<_>>>()?;
    for kill in [false, true] {
        if kill {
            lab.kill_agent(NODE)?;
        } else {
            lab.stop_agent(NODE)?;
        }
        traffic.check()?;
        lab.start_agent(NODE)?;
        await_some(LIMIT, "the agent and its sessions as before", || {
            let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
            let is_up = |peer: &Value| peer["state"] == "Established";
            let up =
                status["peers"].as_array().is_some_and(|peers| peers.len() == 4 && peers.iter().all(is_up));
            let there = status["ready"] == true && up && status["drain"]["phase"] == "drained";
            if there { Ok(()) } else { Err(format!("{} {}", status["drain"], status["peers"])) }
        })?;
        traffic.check()?;
        for notes in &mut notes {
            let routes = notes.leading_to_node()?;
            ensure!(
                routes.is_empty(),
                "announced by an agent that starts (killed before: {kill}): {routes:?}"
            );
        }
    }

    let start = Instant::now();
    let said = process::run(command(lab, "undrain", &["--wait", "--timeout", "30s"]), "")?;
    ensure!(said.contains("returning") && said.trim_end().ends_with("serving"), "{said}");
    await_on_all(lab, &service, true)?;
    println!("    back after {:.1?}", start.elapsed());
    lab.fabric.reset_counters()?;
    traffic.check()?;
    ensure!(packets(lab, &service)? > 0, "nothing passes {NODE} again");
    traffic.none_failed()?;
    heeds(lab, &lab.fabric.leaves[0], false)?;
    lab.remove(&service)?;
    lab.restart_with(NODE, "")
}

/// Packets to the node for a Service's VIPs.
fn packets(lab: &Lab, service: &Service) -> Result<u64> {
    let of = |family| lab.fabric.packets(Direction::To, NODE, service.vip(family));
    Ok(of(Family::V4)? + of(Family::V6)?)
}

fn last_director(lab: &mut Lab) -> Result<()> {
    let service = Service::new("only-here", 65)
        .all_protocols(80, POD_PORT)
        .spec("externalTrafficPolicy", "Local")
        .endpoints([lab.fabric.pod("a1")?]);
    lab.restart_with(NODE, CONFIG)?;
    lab.source.apply(&service)?;
    await_on_all(lab, &service, true)?;
    let vips = service.vips();
    let mut traffic = Steady::start(&vips.map(|vip| (&lab.fabric.client, vip)))?;
    let refused = process::run(command(lab, "drain", &["--wait", "--timeout", "12s"]), "");
    let refused = format!("{:#}", refused.err().context("it has drained")?);
    for vip in vips {
        ensure!(refused.contains(&vip.to_string()) && refused.contains("default/only-here"), "{refused}");
    }
    await_on_all(lab, &service, true)?;
    traffic.check()?;

    // Connections to a1 end with its being the only one: new ones tell.
    traffic.none_failed()?;
    let both = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?];
    let both = service.clone().endpoints(both);
    lab.source.apply(&both)?;
    let end = Instant::now() + LIMIT;
    let withdrawn = || {
        lab.fabric.leaves.iter().all(|leaf| {
            vips.iter()
                .all(|vip| lab.fabric.directors(leaf, *vip).is_ok_and(|directors| !directors.contains(NODE)))
        })
    };
    while !withdrawn() {
        ensure!(Instant::now() < end, "{NODE} keeps it: {}", lab.status(NODE)?["drain"]);
        for vip in vips {
            Request::new(Tcp, vip, 80).send(&lab.fabric.client)?;
        }
    }
    for vip in vips {
        let answer = Request::new(Tcp, vip, 80).send(&lab.fabric.client)?;
        ensure!(answer.endpoint == "b1", "{} answered", answer.endpoint);
    }
    process::run(command(lab, "drain", &["--wait"]), "")?;
    process::run(command(lab, "undrain", &["--wait"]), "")?;
    await_on_all(lab, &both, true)?;
    lab.source.remove(&service)?;
    lab.restart_with(NODE, "")
}

/// Port of `/healthz`.
const HEALTH: u16 = 10256;

fn await_healthz(lab: &Lab, code: u16) -> Result<()> {
    let address = (lab.fabric.node(NODE)?.address(Family::V6), HEALTH).into();
    await_some(LIMIT, &format!("/healthz of {NODE}: {code}"), || {
        match get(&lab.fabric.client, address, "/healthz") {
            Ok(page) if page.status == code => Ok(()),
            Ok(page) => Err(format!("{}: {}", page.status, page.body)),
            Err(error) => Err(format!("{error:#}")),
        }
    })
}

fn await_event(server: &ApiServer, reason: &str) -> Result<()> {
    // Of one object an agent tells at most ten at once, then one a minute.
    await_some(2 * LIMIT, &format!("an Event {reason} of {NODE}"), || {
        let events = server.events("Node", NODE, reason);
        if events.is_empty() { Err("none".into()) } else { Ok(()) }
    })
}

fn by_node(lab: &mut Lab) -> Result<()> {
    const ANNOTATION: &str = "sheave.io/drain";
    let server = lab.source.server()?;
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    let service = Service::new("drained-by-node", 66).all_protocols(80, POD_PORT).endpoints(pods);
    lab.restart_with(NODE, CONFIG)?;
    lab.apply(&service)?;
    // Connections that are forwarded by nat do not survive a change of director.
    await_forwarding(lab, &service, &["node-a", "node-b", "node-c"], true)?;
    let vips = service.vips();
    let mut traffic = Steady::start(&vips.map(|vip| (&lab.fabric.client, vip)))?;
    let set_taints = |taints: Value| server.change_node(NODE, |node| node["spec"]["taints"] = taints);

    server.annotate(NODE, ANNOTATION, Some("true"))?;
    await_on_all(lab, &service, false)?;
    await_phase(lab, "drained")?;
    await_healthz(lab, 503)?;
    traffic.check()?;
    for reason in ["DrainAsked", "Draining", "Drained"] {
        await_event(&server, reason)?;
    }
    server.annotate(NODE, ANNOTATION, Some("nearly"))?;
    await_event(&server, "InvalidAnnotation")?;
    // What has no command cannot be taken back by one.
    let refused = process::run(command(lab, "undrain", &["--wait"]), "");
    let refused = format!("{:#}", refused.err().context("undrained")?);
    ensure!(refused.contains("as annotation sheave.io/drain asks"), "{refused}");
    await_phase(lab, "drained")?;
    server.annotate(NODE, ANNOTATION, None)?;
    await_phase(lab, "serving")?;
    await_on_all(lab, &service, true)?;
    await_healthz(lab, 200)?;
    await_event(&server, "DrainEnded")?;
    traffic.check()?;

    let cordoned = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
    set_taints(json!([cordoned, {"key": "maintenance", "value": "rack", "effect": "NoExecute"}]))?;
    let status = await_phase(lab, "drained")?;
    ensure!(status["drain"]["askedBy"] == json!(["taint maintenance=rack:NoExecute"]), "{}", status["drain"]);
    await_on_all(lab, &service, false)?;
    traffic.check()?;
    set_taints(json!([cordoned]))?;
    await_phase(lab, "serving")?;
    await_on_all(lab, &service, true)?;
    set_taints(Value::Null)?;
    traffic.none_failed()?;
    lab.remove(&service)?;
    lab.restart_with(NODE, "")
}

/// Kills the agent and starts it; waits until it goes on without its source, and is in that phase.
fn restart_without_source(lab: &mut Lab, server: &ApiServer, phase: &str) -> Result<()> {
    server.api().set_reach(Reach::Refused);
    lab.kill_agent(NODE)?;
    lab.start_agent(NODE)?;
    await_some(LIMIT, &format!("an agent that holds, and is {phase}"), || {
        let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
        let there = status["holding"] == true && status["drain"]["phase"] == phase;
        if there { Ok(()) } else { Err(format!("holding {}, {}", status["holding"], status["drain"])) }
    })
}

fn await_ready(lab: &Lab) -> Result<()> {
    // The longest pause between two attempts, and the list.
    await_some(2 * LIMIT, "the agent with its source", || match lab.status(NODE) {
        Ok(status) if status["ready"] == true => Ok(()),
        Ok(status) => Err(status["watches"].to_string()),
        Err(error) => Err(format!("{error:#}")),
    })
}

fn without_source(lab: &mut Lab) -> Result<()> {
    let server = lab.source.server()?;
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    let service = Service::new("drained-alone", 67).all_protocols(80, POD_PORT).endpoints(pods);
    lab.restart_with(NODE, CONFIG)?;
    lab.apply(&service)?;
    // Connections that are forwarded by nat do not survive a change of director.
    await_forwarding(lab, &service, &["node-a", "node-b", "node-c"], true)?;
    let vips = service.vips();
    let mut traffic = Steady::start(&vips.map(|vip| (&lab.fabric.client, vip)))?;

    restart_without_source(lab, &server, "serving")?;
    process::run(command(lab, "drain", &[]), "")?;
    let status = await_phase(lab, "emptying")?;
    ensure!(status["drain"]["kept"].as_array().is_some_and(|kept| kept.len() >= 2), "{}", status["drain"]);
    await_on_all(lab, &service, true)?;
    traffic.check()?;
    server.api().set_reach(Reach::Up);
    await_ready(lab)?;
    await_on_all(lab, &service, false)?;
    await_phase(lab, "drained")?;
    traffic.check()?;

    restart_without_source(lab, &server, "drained")?;
    await_on_all(lab, &service, false)?;
    traffic.check()?;
    server.api().set_reach(Reach::Up);
    await_ready(lab)?;
    await_phase(lab, "drained")?;
    await_on_all(lab, &service, false)?;
    process::run(command(lab, "undrain", &["--wait", "--timeout", "30s"]), "")?;
    await_on_all(lab, &service, true)?;
    traffic.none_failed()?;
    lab.remove(&service)?;
    lab.restart_with(NODE, "")
}
