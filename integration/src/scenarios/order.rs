//! What comes is answered from the first moment on, and what goes is answered until routers know no way there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use super::loads::BothLoads;
use crate::cluster::Service;
use crate::fabric::addresses::Family;
use crate::kernel;
use crate::lab::{Lab, POD_PORT};
use crate::traffic::Request;
use crate::wait::{await_some, await_until};

const LIMIT: Duration = Duration::from_secs(30);

/// How often each is tried.
const TIMES: u8 = 5;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "vips-come",
        proves: "five times a new Service is announced by three directors one after the other, under load from its first answer on: no request fails",
        run: come,
    },
    Scenario {
        name: "vips-go",
        proves: "five times a Service is deleted under load: every kernel forwards until the last router has followed, and no request is refused or reset",
        run: go,
    },
];

/// With one endpoint on each node.
fn everywhere(lab: &Lab, number: u8) -> Result<Service> {
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    Ok(Service::new(&format!("ordered-{number}"), number).all_protocols(80, POD_PORT).endpoints(pods))
}

fn come(lab: &mut Lab) -> Result<()> {
    for number in 0..TIMES {
        let service = everywhere(lab, 100 + number)?;
        lab.source.apply(&service)?;
        for family in Family::BOTH {
            let request = Request::new(Tcp, service.vip(family), 80).within(Duration::from_millis(200));
            let first = || request.send(&lab.fabric.client).map(drop).map_err(|error| format!("{error:#}"));
            await_some(LIMIT, &format!("the first answer of {}", service.vip(family)), first)?;
        }
        let loads = BothLoads::start(lab, &service)?;
        lab.await_applied(&service)?;
        loads.await_answers(100)?;
        loads.none_failed().with_context(|| service.name.clone())?;
        lab.remove(&service)?;
    }
    Ok(())
}

fn go(lab: &mut Lab) -> Result<()> {
    for number in 0..TIMES {
        let service = everywhere(lab, 110 + number)?;
        lab.apply(&service)?;
        let loads = BothLoads::start(lab, &service)?;
        loads.await_answers(100)?;
        lab.source.remove(&service)?;
        let routed = |lab: &Lab| {
            let ways = lab.fabric.leaves.iter().flat_map(|leaf| Family::BOTH.map(|family| (leaf, family)));
            let ways = ways.map(|(leaf, family)| lab.fabric.directors(leaf, service.vip(family)));
            ways.collect::<Result<Vec<_>>>().map(|all| all.iter().any(|directors| !directors.is_empty()))
        };
        await_until(LIMIT, "the routers to know no way", || routed(lab).is_ok_and(|routed| !routed))?;
        for node in &lab.fabric.nodes {
            let servers = kernel::virtual_servers(&node.ns)?;
            for family in Family::BOTH {
                let active = kernel::active(&servers, Tcp, (service.vip(family), 80).into());
                ensure!(active.len() == 3, "{}: {} has {active:?} already", node.name, service.vip(family));
            }
        }
        for (load, family) in loads.0.into_iter().zip(Family::BOTH) {
            let report = load.stop()?;
            ensure!(report.answered >= 100, "{family}: {} answers", report.answered);
            // What the routers say, or do not, is theirs.
            let theirs = |why: &str| {
                ["unreachable", "No route", "timed out", "temporarily"].iter().any(|word| why.contains(word))
            };
            let ours: Vec<_> = report.failures.iter().filter(|(_, why)| !theirs(why)).collect();
            ensure!(ours.is_empty(), "{family}: {ours:?}");
        }
        lab.await_applied(&service.without_endpoints())?;
    }
    Ok(())
}
