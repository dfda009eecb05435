//! Directors are interchangeable.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};

use super::Scenario;
use crate::cluster::{Endpoint, Service};
use crate::fabric::Node;
use crate::fabric::addresses::Family;
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::traffic::{Connections, flows};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "change-of-director",
        proves: "20 established connections to a remote, a local and a hostNetwork endpoint, and to several endpoints, survive every move from one director to another: 0 lost",
        run: change_of_director,
    },
    Scenario {
        name: "session-affinity",
        proves: "clients with session affinity keep their endpoint, and their connections, when the director changes",
        run: session_affinity,
    },
    Scenario {
        name: "same-choice",
        proves: "after a random series of changes all directors send each of 600 flows to the same endpoint",
        run: same_choice,
    },
];

const CONNECTIONS: usize = 20;

/// Every ordered pair of three directors, as one walk.
const WALK: [usize; 7] = [0, 1, 0, 2, 1, 2, 0];

fn change_of_director(lab: &mut Lab) -> Result<()> {
    let one = Service::new("move-one", 40)
        .port(Tcp, 80, POD_PORT)
        .port(Sctp, 80, POD_PORT)
        .endpoints([lab.fabric.pod("a1")?]);
    let host =
        Service::new("move-host", 41).port(Tcp, 80, HOST_PORT).endpoints([lab.fabric.node("node-a")?]);
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("a2")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    let many = Service::new("move-many", 42).port(Tcp, 80, POD_PORT).endpoints(pods);
    for service in [&one, &host, &many] {
        lab.apply(service)?;
    }
    for family in Family::BOTH {
        let cases = [(&one, Tcp), (&one, Sctp), (&host, Tcp), (&many, Tcp)];
        for (service, protocol) in cases {
            let vip = service.vip(family);
            let director = |index: usize| -> &Node { &lab.fabric.nodes[WALK[index]] };
            lab.fabric.steer(vip, Some(director(0)))?;
            let mut connections = Connections::open(&lab.fabric.client, protocol, vip, 80, CONNECTIONS)?;
            for step in 1..WALK.len() {
                lab.fabric.steer(vip, Some(director(step)))?;
                connections.check().with_context(|| {
                    let (from, to) = (&director(step - 1).name, &director(step).name);
                    format!("{family} {protocol}, Service {}, director {from} → {to}", service.name)
                })?;
            }
            lab.fabric.steer(vip, None)?;
        }
    }
    for service in [&one, &host, &many] {
        lab.remove(service)?;
    }
    Ok(())
}

fn session_affinity(lab: &mut Lab) -> Result<()> {
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("b2")?, lab.fabric.pod("c1")?];
    let service = Service::new("affinity", 43).port(Tcp, 80, POD_PORT).endpoints(pods).affinity();
    lab.apply(&service)?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        lab.fabric.steer(vip, Some(&lab.fabric.nodes[0]))?;
        let mut connections = Connections::open(&lab.fabric.client, Tcp, vip, 80, CONNECTIONS)?;
        let first = connections.endpoints().keys().next().map(ToString::to_string);
        ensure!(
            connections.endpoints().len() == 1,
            "{family}: one client, but {:?}",
            connections.endpoints()
        );
        for node in &lab.fabric.nodes[1..] {
            lab.fabric.steer(vip, Some(node))?;
            connections.check()?;
            let more = Connections::open(&lab.fabric.client, Tcp, vip, 80, 5)?;
            let endpoint = more.endpoints().keys().next().map(ToString::to_string);
            ensure!(
                more.endpoints().len() == 1 && endpoint == first,
                "{family}: {first:?} became {:?}",
                more.endpoints()
            );
        }
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}

/// Flows per director.
const FLOWS: u16 = 600;

fn same_choice(lab: &mut Lab) -> Result<()> {
    let pods: Vec<Endpoint> =
        lab.fabric.nodes.iter().flat_map(|node| &node.pods).map(Endpoint::from).collect();
    let service = Service::new("same", 44).port(Udp, 80, POD_PORT);
    let mut random = Random(0x5eed);
    for _ in 0..12 {
        let chosen: Vec<Endpoint> = pods.iter().filter(|_| random.next(2) == 0).cloned().collect();
        let chosen = if chosen.is_empty() { vec![pods[0].clone()] } else { chosen };
        let changed = service.clone().endpoints(chosen);
        // Some changes meet every agent one by one, some several at once, and then not the same ones everywhere.
        if random.next(2) == 0 { lab.apply(&changed)? } else { lab.source.apply(&changed)? }
    }
    let last = service.endpoints([
        pods[5].clone(),
        pods[0].clone(),
        pods[3].clone(),
        pods[1].clone(),
        pods[4].clone(),
    ]);
    lab.apply(&last)?;
    for family in Family::BOTH {
        let vip = last.vip(family);
        let mut choices = Vec::new();
        for node in &lab.fabric.nodes {
            lab.fabric.steer(vip, Some(node))?;
            choices.push(flows(&lab.fabric.client, SocketAddr::from((vip, 80)), 20_000..20_000 + FLOWS)?);
        }
        lab.fabric.steer(vip, None)?;
        for (node, choice) in lab.fabric.nodes.iter().zip(&choices) {
            let answered = choice.iter().flatten().count();
            ensure!(
                answered == usize::from(FLOWS),
                "{family}: {} answered only {answered} of {FLOWS} flows",
                node.name
            );
            let differing = choice.iter().zip(&choices[0]).filter(|(a, b)| a != b).count();
            ensure!(
                differing == 0,
                "{family}: {differing} of {FLOWS} flows differ between node-a and {}",
                node.name
            );
        }
    }
    lab.remove(&last)
}

/// A small generator of numbers (xorshift), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}
