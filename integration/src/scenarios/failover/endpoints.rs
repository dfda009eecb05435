//! Every pod of a Service is replaced, each terminating as it should.

use std::time::Duration;

use anyhow::{Context, Result};

use super::super::Scenario;
use super::super::announced::await_directors;
use super::super::termination::{Ended, await_accepted};
use super::{LIMIT, Traffic, service};
use crate::cluster::{Condition, Endpoint, Service};
use crate::fabric::Pod;
use crate::fabric::addresses::Family;
use crate::kernel;
use crate::lab::Lab;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "failover-rolled",
        proves: "all pods of a Service are replaced, one after the other and each terminating as it should, and no request fails",
        run: rolled,
    },
    Scenario {
        name: "failover-rolled-local",
        proves: "the same under externalTrafficPolicy Local, each by one on its own node, and no request fails",
        run: rolled_local,
    },
];

fn rolled(lab: &mut Lab) -> Result<()> {
    let steps = [("a1", "a2"), ("b1", "b2"), ("c1", "c2")];
    roll(lab, &service(lab, "rolled", 78, &[])?, &["a1", "b1", "c1"], &steps, None)
}

fn rolled_local(lab: &mut Lab) -> Result<()> {
    let service = service(lab, "rolled-local", 79, &[])?.spec("externalTrafficPolicy", "Local");
    // To another node would be to another director, and connections here are bound to theirs.
    let steps = [("a1", "a2"), ("b1", "b2")];
    roll(lab, &service, &["a1", "b1"], &steps, Some(&["node-a", "node-b"]))
}

/// Replaces pods of a Service, each step's first by its second; `directors` are who has the virtual IPs, where not all nodes have.
fn roll(
    lab: &mut Lab,
    service: &Service,
    pods: &[&'static str],
    steps: &[(&'static str, &'static str)],
    directors: Option<&[&str]>,
) -> Result<()> {
    let mut pods = pods.to_vec();
    let with = |lab: &Lab, pods: &[&str], other: Option<(&str, Condition)>| -> Result<Service> {
        let ready = pods.iter().map(|pod| (*pod, Condition::Ready));
        let endpoint = |(pod, condition)| Ok(Endpoint::from(lab.fabric.pod(pod)?).condition(condition));
        let endpoints = ready.chain(other).map(endpoint).collect::<Result<Vec<_>>>()?;
        Ok(service.clone().endpoints(endpoints))
    };
    let apply = |lab: &mut Lab, pods: &[&str], other: Option<(&str, Condition)>| -> Result<()> {
        let changed = with(lab, pods, other)?;
        let Some(directors) = directors else { return lab.apply(&changed) };
        lab.source.apply(&changed)?;
        await_directors(lab, &changed.vips(), directors)
    };
    apply(lab, &pods, None)?;
    // What a client keeps open longer than a pod takes to terminate ends with it.
    let mut traffic = Traffic::with_long(lab, service, 0)?;
    for (old, new) in steps {
        let step = || format!("{old} replaced by {new}");
        // It starts: its address is known before it is ready, and its node gets ready for it.
        apply(lab, &pods, Some((new, Condition::NotReady))).with_context(step)?;
        await_accepted(lab, service, lab.fabric.pod(new)?, true).with_context(step)?;
        pods.push(new);
        apply(lab, &pods, None).with_context(step)?;
        traffic.goes_on(lab)?;
        pods.retain(|pod| pod != old);
        apply(lab, &pods, Some((old, Condition::Terminating))).with_context(step)?;
        // Told to end, it first says that it is not ready any more, and does what it has been asked.
        apply(lab, &pods, Some((old, Condition::Ended))).with_context(step)?;
        await_unused(lab, lab.fabric.pod(old)?).with_context(step)?;
        std::thread::sleep(Duration::from_secs(1));
        let _ended = Ended::new(lab.fabric.pod(old)?)?;
        apply(lab, &pods, None).with_context(step)?;
        traffic.goes_on(lab)?;
    }
    traffic.none_failed(lab)?;
    lab.remove(service)
}

/// Waits until no node gives new connections to a pod.
fn await_unused(lab: &Lab, pod: &Pod) -> Result<()> {
    let own = Family::BOTH.map(|family| pod.address(family));
    for node in &lab.fabric.nodes {
        await_some(LIMIT, &format!("{} without {}", node.name, pod.name), || {
            let servers = kernel::virtual_servers(&node.ns).map_err(|error| format!("{error:#}"))?;
            let mut all =
                servers.iter().flat_map(|server| &server.destinations).map(|entry| &entry.destination);
            match all.find(|to| own.contains(&to.address) && to.weight > 0) {
                Some(to) => Err(format!("{to:?}")),
                None => Ok(()),
            }
        })?;
    }
    Ok(())
}
