//! What fails, restarts, goes or misbehaves while clients open connections all the time and keep others open. All routing is BGP's, and BFD watches it
//! ([`Kind::Watched`](crate::lab::Kind)); the control does the same to IPVS as kube-proxy has it.

mod agents;
mod control;
mod cuts;
mod directors;
mod endpoints;
mod peers;

use std::time::Duration;

use anyhow::{Result, ensure};
use sheave::cluster::Protocol::{Tcp, Udp};

use super::Scenario;
use super::announced::await_directors;
use super::loads::BothLoads;
use crate::cluster::Service;
use crate::fabric::addresses::Family;
use crate::lab::{Lab, POD_PORT};
use crate::traffic::{Connections, Probe};
use crate::wait::await_some;

pub(super) use control::SCENARIOS as CONTROL;

pub(super) fn scenarios() -> Vec<Scenario> {
    [cuts::SCENARIOS, directors::SCENARIOS, endpoints::SCENARIOS, peers::SCENARIOS, agents::SCENARIOS]
        .concat()
}

/// How long sessions and agents may take to come back.
const LIMIT: Duration = Duration::from_secs(40);
/// How long clients wait for an answer: TCP sends a first packet again after 1, 3 and 7 seconds, and each may meet another cut.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections of each family that stay open.
const LONG: usize = 24;

/// Between two requests of a client: enough that what watches and routes is not kept waiting for a CPU of the lab.
const PAUSE: Duration = Duration::from_millis(10);

/// A Service of TCP and UDP with these pods behind it, not in force yet.
fn service(lab: &Lab, name: &str, number: u8, pods: &[&str]) -> Result<Service> {
    let pods = pods.iter().map(|pod| lab.fabric.pod(pod)).collect::<Result<Vec<_>>>()?;
    Ok(Service::new(name, number).port(Tcp, 80, POD_PORT).port(Udp, 80, POD_PORT).endpoints(pods))
}

/// Clients of both families of a Service: they open connections all the time, keep others open, and send datagrams at a steady pace.
struct Traffic {
    loads: BothLoads,
    long: Vec<Connections>,
    probes: Vec<Probe>,
}

impl Traffic {
    fn start(lab: &Lab, service: &Service) -> Result<Self> {
        Self::with_long(lab, service, LONG)
    }

    /// The same with so many that stay open.
    fn with_long(lab: &Lab, service: &Service, count: usize) -> Result<Self> {
        let client = &lab.fabric.client;
        let vips = service.vips();
        let long = vips.iter().map(|vip| Connections::open(client, Tcp, *vip, 80, count));
        let long = long.collect::<Result<_>>()?;
        let probes = vips.iter().map(|vip| Probe::start(client, *vip, 80)).collect::<Result<_>>()?;
        let loads = BothLoads::of(lab, service, |request| request.pause(PAUSE).within(PATIENCE))?;
        let traffic = Self { loads, long, probes };
        traffic.loads.await_answers(30)?;
        Ok(traffic)
    }

    /// Asks over each connection that stays open, at once, and waits for answers to new ones.
    fn goes_on(&mut self, lab: &mut Lab) -> Result<()> {
        for long in &mut self.long {
            let tally = long.tally();
            lab.figures.slowest = lab.figures.slowest.max(tally.slowest);
            ensure!(tally.faults.is_empty(), "long connections: {tally:?}");
        }
        self.loads.await_answers(30)
    }

    /// Ends it; an error if a request ever failed, or a connection is not what it was.
    fn none_failed(mut self, lab: &mut Lab) -> Result<()> {
        for long in &mut self.long {
            lab.figures.tally(&long.tally());
        }
        for probe in self.probes {
            lab.figures.silence = lab.figures.silence.max(probe.stop()?);
        }
        self.loads.measured(&mut lab.figures)?;
        let figures = &lab.figures;
        ensure!(figures.kept == figures.long && figures.reset == 0, "{figures:?}");
        Ok(())
    }
}

/// Waits until all that routes knows every way: each node has both leaves, the spine too, and both leaves have all nodes.
fn await_all_ways(lab: &Lab, service: &Service) -> Result<()> {
    await_directors(lab, &service.vips(), &["node-a", "node-b", "node-c"])?;
    let both = |what: &str, ns: &crate::netns::NetNs, route: &str, family: Family| {
        await_some(LIMIT, &format!("{what}: {route} by both leaves"), || {
            let routes = ns.run(&format!("ip {} route show {route}", family.flag()));
            let routes = routes.map_err(|error| format!("{error:#}"))?;
            let all = ["dev leaf1", "dev leaf2"].iter().all(|hop| routes.contains(hop));
            if all && !routes.contains("linkdown") { Ok(()) } else { Err(routes) }
        })
    };
    for family in Family::BOTH {
        for node in &lab.fabric.nodes {
            both(&node.name, &node.ns, "default", family)?;
        }
        let vip = format!("{}/{}", service.vip(family), family.bits());
        both("spine", &lab.fabric.spine, &vip, family)?;
    }
    Ok(())
}
