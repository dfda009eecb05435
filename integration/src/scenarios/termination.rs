//! Endpoints that end: those that say so before, those that do not, and clients that keep their port all along.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};

use super::Scenario;
use crate::cluster::{Condition, Endpoint, Service};
use crate::fabric::Pod;
use crate::fabric::addresses::Family;
use crate::kernel;
use crate::lab::{Lab, POD_PORT};
use crate::traffic::{Connections, Ending, Load, Request};
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "udp-stale",
        proves: "a client that asks over UDP from one port again and again loses at most one question when its endpoint goes, whether the next one is on the same node or on another, by tunnel and by nat",
        run: udp_stale,
    },
    Scenario {
        name: "termination",
        proves: "an endpoint that terminates keeps its connections and gets no new ones, even if agents restart meanwhile; once it is gone its TCP connections are reset within 2 s",
        run: termination,
    },
    Scenario {
        name: "terminating-fallback",
        proves: "where all endpoints terminate, those that still serve are used, until one is ready",
        run: terminating_fallback,
    },
    Scenario {
        name: "port-reuse",
        proves: "a client that reuses its port at once, over and over, never waits for a second SYN, whichever side ended the connection before, while endpoints come, drain and go",
        run: port_reuse,
    },
];

/// Where clients of one port come from.
const SOURCE_PORT: u16 = 33_000;

/// How long an answer may take before a question counts as lost.
const LOST: Duration = Duration::from_millis(800);

/// A pod as its processes' end leaves it: it takes packets and answers none.
struct Ended<'a>(&'a Pod);

impl<'a> Ended<'a> {
    fn new(pod: &'a Pod) -> Result<Self> {
        let rules = "table inet ended {\n chain packets {\n type filter hook input priority 0;\n policy drop;\n }\n}\n";
        pod.ns.run_with_input("nft -f -", rules)?;
        Ok(Self(pod))
    }
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let _ = self.0.ns.run("nft delete table inet ended");
    }
}

fn udp_stale(lab: &mut Lab) -> Result<()> {
    let service = Service::new("stale", 60).port(Udp, 53, POD_PORT).node_port(30_053);
    let [first, beside, elsewhere] = ["b1", "b2", "a1"].map(|name| lab.fabric.pod(name).cloned());
    let (first, beside, elsewhere) = (first?, beside?, elsewhere?);
    for family in Family::BOTH {
        for (director, next) in [("node-c", &beside), ("node-c", &elsewhere), ("node-b", &beside)] {
            let vip = service.vip(family);
            let node = lab.fabric.node(director)?;
            lab.fabric.steer(vip, Some(node))?;
            let targets = [(vip, 53), (node.address(family), 30_053)];
            udp_moves(lab, &service, &first, next, targets)
                .with_context(|| format!("{family}, from {} to {} by {director}", first.name, next.name))?;
            lab.fabric.steer(vip, None)?;
        }
    }
    lab.remove(&service)
}

/// Questions to a VIP and to a node port go to `first`, then to `next`.
fn udp_moves(
    lab: &mut Lab,
    service: &Service,
    first: &Pod,
    next: &Pod,
    targets: [(IpAddr, u16); 2],
) -> Result<()> {
    let request = |(address, port)| Request::new(Udp, address, port).from_port(SOURCE_PORT).within(LOST);
    lab.apply(&service.clone().endpoints([first]))?;
    let loads = targets
        .iter()
        .map(|target| Load::of(&lab.fabric.client, request(*target), 1))
        .collect::<Result<Vec<_>>>()?;
    loads.iter().try_for_each(|load| load.await_answers(20))?;
    // The flow stays with the first: of both, neither is any client's new choice.
    lab.apply(&service.clone().endpoints([first, next]))?;
    lab.apply(&service.clone().endpoints([next]))?;
    let ended = Ended::new(first)?;
    loads.iter().try_for_each(|load| load.await_answers(40))?;
    for (load, target) in loads.into_iter().zip(targets) {
        let report = load.stop()?;
        ensure!(report.failures.len() <= 1, "{target:?}: lost {:?}", report.failures);
        let answer = request(target).send(&lab.fabric.client)?;
        ensure!(answer.endpoint == next.name, "{target:?}: {} still answers", answer.endpoint);
    }
    drop(ended);
    Ok(())
}

/// Destinations that wait with weight 0.
fn draining(lab: &Lab) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in &lab.fabric.nodes {
        for server in kernel::virtual_servers(&node.ns)? {
            let waiting =
                server.destinations.iter().map(|entry| &entry.destination).filter(|to| to.weight == 0);
            found.extend(
                waiting.map(|to| format!("{}: {:?} → {}", node.name, server.service.key, to.address)),
            );
        }
    }
    Ok(found)
}

fn termination(lab: &mut Lab) -> Result<()> {
    let service = Service::new("termination", 61).all_protocols(80, POD_PORT);
    let (b1, b2) = (lab.fabric.pod("b1")?.clone(), lab.fabric.pod("b2")?.clone());
    lab.apply(&service.clone().endpoints([&b1, &b2]))?;
    let mut open = Vec::new();
    for (family, director) in [(Family::V4, "node-c"), (Family::V6, "node-b")] {
        let vip = service.vip(family);
        lab.fabric.steer(vip, Some(lab.fabric.node(director)?))?;
        for protocol in [Tcp, Sctp, Udp] {
            let mut others = Connections::open(&lab.fabric.client, protocol, vip, 80, 12)?;
            let theirs = others.split("b1");
            ensure!(!theirs.is_empty() && !others.is_empty(), "{protocol}: all 12 went to one endpoint");
            open.push((protocol, vip, theirs, others));
        }
    }

    let ending = Endpoint::from(&b1).condition(Condition::Terminating);
    lab.apply(&service.clone().endpoints([ending, Endpoint::from(&b2)]))?;
    let go_on = |lab: &Lab, open: &mut [(Protocol, IpAddr, Connections, Connections)]| {
        for (protocol, vip, theirs, others) in open {
            theirs.check().with_context(|| format!("{protocol}: those of b1, which terminates"))?;
            others.check().with_context(|| format!("{protocol}: those of b2"))?;
            let new = Connections::open(&lab.fabric.client, *protocol, *vip, 80, 8)?;
            let chosen: BTreeSet<&str> = new.endpoints().into_keys().collect();
            ensure!(chosen == BTreeSet::from(["b2"]), "{protocol}: new connections went to {chosen:?}");
        }
        Ok(())
    };
    go_on(lab, &mut open)?;
    for agent in ["node-b", "node-c"] {
        lab.stop_agent(agent)?;
        lab.start_agent(agent)?;
    }
    let last = service.clone().endpoints([&b2]);
    lab.await_applied(&last)?;
    go_on(lab, &mut open).context("after a restart of two agents")?;

    // Its processes have ended, then its slice says so.
    let ended = Ended::new(&b1)?;
    lab.source.apply(&last)?;
    await_some(Duration::from_secs(20), "nothing drains", || match draining(lab) {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(left.join(", ")),
        Err(error) => Err(format!("{error:#}")),
    })?;
    for (protocol, _, theirs, others) in &mut open {
        if *protocol == Tcp {
            theirs.await_resets(Duration::from_secs(2))?;
        }
        others.check().with_context(|| format!("{protocol}: those of b2, at the end"))?;
    }
    drop(ended);
    for family in Family::BOTH {
        lab.fabric.steer(service.vip(family), None)?;
    }
    lab.remove(&service)
}

fn terminating_fallback(lab: &mut Lab) -> Result<()> {
    let service = Service::new("fallback", 62).all_protocols(80, POD_PORT);
    let endpoint = |name: &str, condition| -> Result<Endpoint> {
        Ok(Endpoint::from(lab.fabric.pod(name)?).condition(condition))
    };
    let terminating = endpoint("b1", Condition::Terminating)?;
    let ended = endpoint("c1", Condition::Ended)?;
    let ready = endpoint("a1", Condition::Ready)?;
    for (endpoints, expected) in
        [(vec![terminating.clone(), ended.clone()], "b1"), (vec![terminating, ended, ready], "a1")]
    {
        lab.apply(&service.clone().endpoints(endpoints))?;
        for family in Family::BOTH {
            for protocol in [Tcp, Udp, Sctp] {
                for _ in 0..5 {
                    let answer = Request::new(protocol, service.vip(family), 80).send(&lab.fabric.client)?;
                    ensure!(answer.endpoint == expected, "{family} {protocol}: {} answered", answer.endpoint);
                }
            }
        }
    }
    lab.remove(&service)
}

fn port_reuse(lab: &mut Lab) -> Result<()> {
    let service = Service::new("reuse", 63).port(Tcp, 80, POD_PORT);
    let pods: Vec<Pod> =
        ["b1", "b2", "c1"].iter().map(|name| lab.fabric.pod(name).cloned()).collect::<Result<_>>()?;
    let all = |condition| {
        let first = Endpoint::from(&pods[0]).condition(condition);
        service.clone().endpoints(std::iter::once(first).chain(pods[1..].iter().map(Endpoint::from)))
    };
    for family in Family::BOTH {
        let vip = service.vip(family);
        lab.apply(&all(Condition::Ready))?;
        lab.fabric.steer(vip, Some(lab.fabric.node("node-a")?))?;
        for ending in [Ending::Reset, Ending::Endpoint] {
            let loads = (0..4)
                .map(|number| {
                    let request = Request::new(Tcp, vip, 80).from_port(SOURCE_PORT + number).ending(ending);
                    Load::of(&lab.fabric.client, request, 1)
                })
                .collect::<Result<Vec<_>>>()?;
            let go_on = || loads.iter().try_for_each(|load| load.await_answers(25));
            go_on()?;
            lab.apply(&all(Condition::Terminating))?;
            go_on()?;
            lab.apply(&service.clone().endpoints(&pods[1..]))?;
            go_on()?;
            lab.apply(&all(Condition::Ready))?;
            go_on()?;
            for load in loads {
                let report = load.stop()?;
                report.ensure_none_failed().with_context(|| format!("{family}, {ending:?}"))?;
                let slowest = report.slowest;
                ensure!(slowest < Duration::from_secs(1), "{family}, {ending:?}: an answer took {slowest:?}");
            }
        }
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}
