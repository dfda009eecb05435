//! Clients that keep their source port: what the kernel remembers of their last connection must not stand in the way of the next.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::{self, Tcp, Udp};

use super::Scenario;
use super::termination::{Ended, await_accepted};
use crate::cluster::{Condition, Endpoint, Service};
use crate::fabric::Pod;
use crate::fabric::addresses::Family;
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::{Ending, Load, LoadReport, Request, await_each};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "dns-client",
        proves: "a client that goes on asking over UDP from one source port, through a tunnel, by nat or from a pod, loses at most one \
                 query when its endpoint goes, terminated or not, whether the next one is on the same node or another, and when it comes back",
        run: dns_client,
    },
    Scenario {
        name: "port-reuse",
        proves: "a client that opens its next connection from the same port within moments of the last one's end is never refused and never waits, \
                 whether the endpoint or a reset ended it, while endpoints drain, go and come (kubernetes/kubernetes#70747, #93297)",
        run: port_reuse,
    },
];

/// When a client's kernel sends a SYN again (`TCP_TIMEOUT_INIT`).
const SYN_AGAIN: Duration = Duration::from_secs(1);

/// How long the client waits for an answer before it asks again, as a resolver does (resolv.conf(5), `timeout`).
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it waits after an answer: some packet of some client is on its way at any moment, and the CPUs are not busy with that alone.
const PAUSE: Duration = Duration::from_millis(20);

/// Where a client asks: by a tunnel, by *nat*, from a pod and from a node.
struct Asked {
    name: String,
    from: NetNs,
    address: IpAddr,
    port: u16,
}

/// In each family: the load-balancer IP by a director without endpoints, its node port, and the cluster IP from its pod and itself.
fn asked(lab: &Lab, service: &Service, node_port: u16) -> Result<Vec<Asked>> {
    let director = lab.fabric.node("node-a")?;
    let mut asked = Vec::new();
    for family in Family::BOTH {
        let vip = service.vip(family);
        lab.fabric.steer(vip, Some(director))?;
        for (by, from, address, port) in [
            ("tunnel", &lab.fabric.client, vip, 80),
            ("node port", &lab.fabric.client, director.address(family), node_port),
            ("pod", &lab.fabric.pod("a1")?.ns, service.cluster_ip(family), 80),
            ("node", &director.ns, service.cluster_ip(family), 80),
        ] {
            asked.push(Asked { name: format!("{family}, {by}"), from: from.clone(), address, port });
        }
    }
    Ok(asked)
}

/// One worker for each; source ports are counted from `first`.
fn ask(
    asked: &[Asked],
    protocol: Protocol,
    first: u16,
    as_one_likes: impl Fn(Request) -> Request,
) -> Result<Vec<Load>> {
    let ports = first..;
    ports
        .zip(asked)
        .map(|(source_port, Asked { from, address, port, .. })| {
            Load::of(from, as_one_likes(Request::new(protocol, *address, *port).from_port(source_port)), 1)
        })
        .collect()
}

/// A Service whose endpoint goes, and where its next one is.
struct Case {
    name: String,
    service: Service,
    next: Pod,
    asked: Vec<Asked>,
}

impl Case {
    /// A client at each place, its source ports counted from `first`.
    fn ask(&self, first: u16) -> Result<Vec<Load>> {
        ask(&self.asked, Udp, first, |request| request.within(PATIENCE).pause(PAUSE))
    }
}

/// Gives the Services of all cases other endpoints at the same time, and waits until these are in force.
fn change(lab: &mut Lab, cases: &[Case], endpoints: impl Fn(&Case) -> Vec<Endpoint>) -> Result<()> {
    let services = cases.iter().map(|case| case.service.clone().endpoints(endpoints(case)));
    let services = services.collect::<Vec<_>>();
    services.iter().try_for_each(|service| lab.source.apply(service))?;
    services.iter().try_for_each(|service| lab.await_applied(service))
}

fn dns_client(lab: &mut Lab) -> Result<()> {
    let (b1, b2, c1) =
        (lab.fabric.pod("b1")?.clone(), lab.fabric.pod("b2")?.clone(), lab.fabric.pod("c1")?.clone());
    for (told, first_port) in [(true, 21_000), (false, 21_100)] {
        let mut cases = Vec::new();
        for (number, next, place) in [(63, &b2, "the same node"), (64, &c1, "another node")] {
            let node_port = 30_177 + u16::from(number);
            let service =
                Service::new(&format!("dns-{number}"), number).port(Udp, 80, POD_PORT).node_port(node_port);
            let asked = asked(lab, &service, node_port)?;
            let name =
                format!("next on {place}, {}", if told { "terminated" } else { "not told to terminate" });
            cases.push(Case { name, service, next: next.clone(), asked });
        }
        let ask = || -> Result<Vec<Vec<Load>>> {
            cases.iter().zip((first_port..).step_by(10)).map(|(case, first)| case.ask(first)).collect()
        };
        let go_on =
            |loads: &[Vec<Load>], when: &'static str| await_each(loads.iter().flatten(), 20).context(when);
        let judge = |loads: Vec<Vec<Load>>, when: &str| {
            loads.into_iter().zip(&cases).try_for_each(|(loads, case)| {
                at_most_one_lost(loads, case).with_context(|| format!("{}, {when}", case.name))
            })
        };
        change(lab, &cases, |_| vec![(&b1).into()])?;
        let loads = ask()?;
        go_on(&loads, "at first")?;
        if told {
            let terminating = Endpoint::from(&b1).condition(Condition::Terminating);
            change(lab, &cases, |case| vec![terminating.clone(), (&case.next).into()])?;
            go_on(&loads, "while it terminates")?;
        }
        // Its processes end, and at once its slices say so.
        let ended = Ended::new(&b1)?;
        change(lab, &cases, |case| vec![(&case.next).into()])?;
        // Its node takes in for it a while longer, and what is known of its flows goes with that.
        cases.iter().try_for_each(|case| await_accepted(lab, &case.service, &b1, false))?;
        go_on(&loads, "gone")?;
        judge(loads, "gone")?;
        drop(ended);
        let loads = ask()?;
        go_on(&loads, "before it is back")?;
        change(lab, &cases, |case| vec![(&b1).into(), (&case.next).into()])?;
        cases.iter().try_for_each(|case| await_accepted(lab, &case.service, &b1, true))?;
        go_on(&loads, "back")?;
        judge(loads, "back")?;
        cases.iter().try_for_each(|case| release(lab, &case.service))?;
    }
    Ok(())
}

/// While destinations are put in order, the kernel drops what comes for one of them: a datagram can meet that.
fn at_most_one_lost(loads: Vec<Load>, case: &Case) -> Result<()> {
    for (load, Asked { name, .. }) in loads.into_iter().zip(&case.asked) {
        let LoadReport { answered, endpoints, failures, .. } = load.stop()?;
        ensure!(failures.len() <= 1, "{name}: {} lost of {answered}: {failures:?}", failures.len());
        ensure!(endpoints.contains_key(&case.next.name), "{name}: never at {}", case.next.name);
    }
    Ok(())
}

fn port_reuse(lab: &mut Lab) -> Result<()> {
    const NODE_PORT: u16 = 30241;
    let service = Service::new("port-reuse", 64).port(Tcp, 80, POD_PORT).node_port(NODE_PORT);
    let (b1, b2, c1) =
        (lab.fabric.pod("b1")?.clone(), lab.fabric.pod("b2")?.clone(), lab.fabric.pod("c1")?.clone());
    let all = service.clone().endpoints([&b1, &b2, &c1]);
    lab.apply(&all)?;
    let asked = asked(lab, &service, NODE_PORT)?;
    // The endpoint's end of a connection is in TIME-WAIT then. The client's kernel gives the port free once all is acknowledged.
    let by = |ending| move |request: Request| request.ending(ending).pause(2 * PAUSE);
    let mut loads = ask(&asked, Tcp, 22_000, by(Ending::Endpoint))?;
    loads.extend(ask(&asked, Tcp, 22_100, by(Ending::Reset))?);
    let go_on = |what: &str| await_each(&loads, 20).with_context(|| what.to_owned());
    go_on("all are ready")?;
    for (ending, name) in [(&b1, "b1"), (&c1, "c1")] {
        let others = || [&b1, &b2, &c1].into_iter().filter(|pod| pod.name != ending.name);
        let terminating = Endpoint::from(ending).condition(Condition::Terminating);
        let draining = service.clone().endpoints(others().map(Endpoint::from).chain([terminating]));
        lab.apply(&draining)?;
        go_on(&format!("{name} terminates"))?;
        lab.apply(&service.clone().endpoints(others()))?;
        go_on(&format!("{name} is gone"))?;
        // As pods come: listed before they are ready, so that their node accepts for them before anybody sends.
        let starting = Endpoint::from(ending).condition(Condition::NotReady);
        lab.apply(&service.clone().endpoints(others().map(Endpoint::from).chain([starting])))?;
        go_on(&format!("{name} is not ready yet"))?;
        lab.apply(&all)?;
        go_on(&format!("{name} is back"))?;
    }
    for (load, Asked { name, .. }) in loads.into_iter().zip(asked.iter().cycle()) {
        let report = load.stop()?;
        report.ensure_none_failed().with_context(|| name.clone())?;
        ensure!(report.slowest < SYN_AGAIN, "{name}: a connection took {:?}", report.slowest);
    }
    release(lab, &service)
}

fn release(lab: &mut Lab, service: &Service) -> Result<()> {
    for family in Family::BOTH {
        lab.fabric.steer(service.vip(family), None)?;
    }
    lab.remove(service)
}
