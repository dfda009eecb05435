//! The agent comes and goes, others meddle, and traffic does not notice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use super::loads::BothLoads;
use crate::cluster::Service;
use crate::fabric::addresses::Family;
use crate::kernel;
use crate::lab::{Lab, POD_PORT};
use crate::process;
use crate::traffic::{Connections, Load, Request, await_each};
use crate::wait::await_some;

/// How long an agent may take to answer or to go on.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "endpoints-change",
        proves: "endpoints come and go under constant load and no request fails; connections to an endpoint that was taken away go on",
        run: endpoints_change,
    },
    Scenario {
        name: "agent-restarts",
        proves: "an agent is stopped, started, killed with SIGKILL and started again under constant load and no request fails",
        run: agent_restarts,
    },
    Scenario {
        name: "broken-source",
        proves: "an agent that starts while a manifest is half-written or gone leaves what the kernel holds as it is, under constant load without a failed request, and goes on when it is mended",
        run: broken_source,
    },
    Scenario {
        name: "tampering",
        proves: "what somebody else deletes of IPVS, nftables, tunnel devices and routes is back within 30 seconds, and other Services did not notice",
        run: tampering,
    },
    Scenario {
        name: "cleanup",
        proves: "after `sheave cleanup` the node's namespace is as it was before the agent came, someone else's virtual server and table included",
        run: cleanup,
    },
];

fn endpoints_change(lab: &mut Lab) -> Result<()> {
    let pods = ["a1", "b1", "c1"].map(|name| lab.fabric.pod(name).cloned());
    let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
    let all = Service::new("changing", 50).port(Tcp, 80, POD_PORT).endpoints(&pods);
    lab.apply(&all)?;
    for family in Family::BOTH {
        let vip = all.vip(family);
        let mut connections = Connections::open(&lab.fabric.client, Tcp, vip, 80, 20)?;
        let load = Load::start(&lab.fabric.client, Tcp, vip, 80, 3)?;
        for left_out in 0..pods.len() {
            let some = all
                .clone()
                .endpoints(pods.iter().enumerate().filter(|(i, _)| *i != left_out).map(|(_, pod)| pod));
            lab.apply(&some)?;
            load.await_answers(30)?;
            connections.check().with_context(|| format!("{} was taken away", pods[left_out].name))?;
            lab.apply(&all)?;
            load.await_answers(30)?;
        }
        load.stop()?.ensure_none_failed()?;
        connections.check()?;
    }
    lab.remove(&all)
}

fn agent_restarts(lab: &mut Lab) -> Result<()> {
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    let service = Service::new("restarts", 51).port(Tcp, 80, POD_PORT).endpoints(pods);
    lab.apply(&service)?;
    let loads = BothLoads::start(lab, &service)?;
    for node in lab.node_names() {
        loads.outlast_restarts(lab, &node, |lab| lab.await_applied(&service))?;
    }
    loads.none_failed()?;
    lab.remove(&service)
}

fn broken_source(lab: &mut Lab) -> Result<()> {
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?];
    let service = Service::new("steadfast", 54).port(Tcp, 80, POD_PORT).endpoints(pods);
    lab.apply(&service)?;
    const NODE: &str = "node-b";
    let namespace = lab.fabric.node(NODE)?.ns.clone();
    let load = Load::start(&lab.fabric.client, Tcp, service.vip(Family::V6), 80, 2)?;
    for (file, keep) in [("nodes.yaml", 0), ("steadfast.yaml", 150)] {
        let held = namespace.run("ipvsadm -Sn")?;
        lab.stop_agent(NODE)?;
        let path = lab.source.manifests()?.dir().join(file);
        let whole = std::fs::read(&path)?;
        std::fs::write(&path, &whole[..keep])?;
        lab.start_agent(NODE)?;
        let waiting = |lab: &Lab| {
            let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
            status["ready"].as_bool().map(|ready| !ready).ok_or_else(|| "no `ready`".to_owned())
        };
        let waits = await_some(LIMIT, "an answer of the agent", || waiting(lab))?;
        ensure!(waits, "with {file} broken the agent started");
        load.await_answers(60)?;
        ensure!(namespace.run("ipvsadm -Sn")? == held, "with {file} broken the agent changed IPVS");
        std::fs::write(&path, whole)?;
        let ready = || waiting(lab).and_then(|waits| if waits { Err("it waits".into()) } else { Ok(()) });
        await_some(LIMIT, &format!("the agent to go on once {file} is mended"), ready)?;
    }
    load.stop()?.ensure_none_failed()?;
    lab.remove(&service)
}

/// A node and two Services that are reached through it alone.
struct Through {
    node: &'static str,
    /// With its endpoint on the node itself, so that its acceptance is needed too.
    victim: Service,
    /// With one elsewhere.
    other: Service,
}

fn tampering(lab: &mut Lab) -> Result<()> {
    let places = [("node-a", "a1", "c1"), ("node-b", "b1", "a1"), ("node-c", "c1", "b1")];
    let mut all = Vec::new();
    for ((node, own, elsewhere), number) in places.into_iter().zip((52..).step_by(2)) {
        let service = |name: &str, number, pod| -> Result<Service> {
            let name = format!("{name}-of-{node}");
            Ok(Service::new(&name, number).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod(pod)?]))
        };
        let (victim, other) = (service("victim", number, own)?, service("bystander", number + 1, elsewhere)?);
        for service in [&victim, &other] {
            lab.source.apply(service)?;
            for family in Family::BOTH {
                lab.fabric.steer(service.vip(family), Some(lab.fabric.node(node)?))?;
            }
        }
        all.push(Through { node, victim, other });
    }
    let services: Vec<_> = all.iter().flat_map(|through| [&through.victim, &through.other]).collect();
    services.iter().try_for_each(|service| lab.await_applied(service))?;
    let [a, b, c] = &all[..] else { anyhow::bail!("three nodes") };

    // Only what is the victim's own goes: the other Service, through the same director, must not notice.
    let loads =
        [a, b].map(|through| Load::start(&lab.fabric.client, Tcp, through.other.vip(Family::V4), 80, 1));
    let loads = loads.into_iter().collect::<Result<Vec<_>>>()?;
    let ([a4, a6], [b4, b6]) =
        (Family::BOTH.map(|family| a.victim.vip(family)), Family::BOTH.map(|family| b.victim.vip(family)));
    repaired(
        lab,
        &[
            Damage {
                node: a.node,
                done: &[&format!("ipvsadm -D -t {a4}:80"), &format!("ipvsadm -D -t [{a6}]:80")],
                proof: &[&format!("ipvsadm -Ln -t {a4}:80"), &format!("ipvsadm -Ln -t [{a6}]:80")],
                services: &[&a.victim],
            },
            Damage {
                node: b.node,
                done: &[&format!("ip route del local {b4}"), &format!("ip -6 route del local {b6}")],
                proof: &[
                    &format!("ip route show table local {b4}"),
                    &format!("ip -6 route show table local {b6}"),
                ],
                services: &[&b.victim],
            },
        ],
    )?;
    await_each(&loads, 10)?;
    loads.into_iter().try_for_each(Load::none_failed).context("the other Services")?;

    repaired(
        lab,
        &[
            Damage {
                node: a.node,
                done: &["nft flush table inet sheave"],
                proof: &["nft list chain inet sheave guard"],
                services: &[&a.victim, &a.other],
            },
            Damage {
                node: b.node,
                done: &["ip link del sheave4", "ip link del sheave6"],
                proof: &["ip link show sheave4", "ip link show sheave6"],
                services: &[&b.victim, &b.other],
            },
            Damage {
                node: c.node,
                done: &["ipvsadm -C", "nft flush ruleset"],
                proof: &["nft list table inet sheave"],
                services: &[&c.victim, &c.other],
            },
        ],
    )?;
    for service in services {
        for family in Family::BOTH {
            lab.fabric.steer(service.vip(family), None)?;
        }
        lab.remove(service)?;
    }
    Ok(())
}

/// What somebody does to a node.
struct Damage<'a> {
    node: &'a str,
    done: &'a [&'a str],
    /// Commands that print something there once it is undone.
    proof: &'a [&'a str],
    /// Services that then answer through it.
    services: &'a [&'a Service],
}

/// Damages nodes, each in its own way; others must find each whole again, and the Services answer through it, within 30 seconds.
fn repaired(lab: &Lab, damages: &[Damage<'_>]) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    for Damage { node, done, .. } in damages {
        let node = &lab.fabric.node(node)?.ns;
        done.iter().try_for_each(|command| node.run(command).map(drop))?;
    }
    for Damage { node, done, proof, services } in damages {
        let whole = || -> Result<()> {
            for command in *proof {
                ensure!(!lab.fabric.node(node)?.ns.run(command)?.trim().is_empty(), "{command}: nothing");
            }
            for service in *services {
                for family in Family::BOTH {
                    let request =
                        Request::new(Tcp, service.vip(family), 80).within(Duration::from_millis(1500));
                    request.send(&lab.fabric.client)?;
                }
            }
            Ok(())
        };
        let left = end.saturating_duration_since(Instant::now());
        await_some(left, &format!("repair of {node} after `{}`", done.join("; ")), || {
            whole().map_err(|error| format!("{error:#}"))
        })?;
    }
    Ok(())
}

/// A dump without what differs each time: interface and handle numbers, packets counted, elements' order.
fn comparable(dump: &str) -> Vec<String> {
    let mut lines: Vec<String> = dump
        .lines()
        .map(|line| {
            let words = line.split_whitespace().filter(|word| !word.starts_with("expires"));
            let words: Vec<&str> = words.collect();
            words.join(" ").split('@').next().unwrap_or_default().to_owned()
        })
        .filter(|line| !line.is_empty())
        .collect();
    lines.sort();
    lines
}

/// Lines of one that the other lacks.
fn difference(before: &[String], now: &[String]) -> String {
    let missing = before.iter().filter(|line| !now.contains(line)).map(|line| format!("- {line}"));
    let extra = now.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
    let lines: Vec<String> = missing.chain(extra).take(40).collect();
    lines.join("\n")
}

fn cleanup(lab: &mut Lab) -> Result<()> {
    let node = lab.fabric.node("node-a")?.ns.clone();
    let service = Service::new("cleaned", 54)
        .all_protocols(80, POD_PORT)
        .node_port(30054)
        .endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    lab.stop_agent("node-a")?;
    sheave_cleanup(lab)?;
    // Somebody else's, as like ours as they can be.
    node.run("ipvsadm -A -t 198.18.0.1:80 -s rr")?;
    node.run("ipvsadm -a -t 198.18.0.1:80 -r 10.244.2.1:80 -i")?;
    node.run_with_input(
        "nft -f -",
        "table inet other { chain c { type filter hook input priority 101; counter; }\n}",
    )?;
    node.ip("link add other type ipip local 10.0.0.11\nroute add local 198.18.0.1/32 dev lo proto 88\n")?;
    let before = (kernel::dump(&node), kernel::sysctls(&node));

    lab.start_agent("node-a")?;
    lab.await_applied(&service)?;
    for family in Family::BOTH {
        Request::new(Tcp, service.vip(family), 80).send(&node)?;
    }
    lab.stop_agent("node-a")?;
    sheave_cleanup(lab)?;
    let after = (kernel::dump(&node), kernel::sysctls(&node));
    for (before, after) in [(&before.0, &after.0), (&before.1, &after.1)] {
        let (before, after) = (comparable(before), comparable(after));
        ensure!(before == after, "left behind, or taken away:\n{}", difference(&before, &after));
    }
    node.run("ipvsadm -D -t 198.18.0.1:80")?;
    node.run("nft delete table inet other")?;
    node.ip("link del other\nroute del local 198.18.0.1/32 dev lo\n")?;
    lab.start_agent("node-a")?;
    lab.await_applied(&service)?;
    lab.remove(&service)
}

fn sheave_cleanup(lab: &Lab) -> Result<()> {
    let mut command = lab.sheave("node-a", "cleanup");
    command.arg("--config").arg(lab.config("node-a"));
    process::run(command, "").map(drop)
}
