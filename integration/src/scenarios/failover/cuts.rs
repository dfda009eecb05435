//! Power, links and leaves that go without a word.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::Scenario;
use super::{Traffic, await_all_ways, service};
use crate::fabric::addresses::Family;
use crate::fabric::{Direction, RouteClock, Silence};
use crate::lab::Lab;
use crate::netns::NetNs;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "failover-power-cut",
        proves: "a director falls silent on all its links, which stay up: BFD takes it out of the leaves' routes, established connections through it \
                 go on through the others, none is reset and no request fails",
        run: power_cut,
    },
    Scenario {
        name: "failover-leaf-cut",
        proves: "a leaf falls silent towards all nodes: they and the spine take the other one, no connection is lost and no request fails",
        run: leaf_cut,
    },
    Scenario {
        name: "failover-link-flaps",
        proves: "a link between a leaf and a director goes down and up 20 times: no connection is lost and no request fails",
        run: link_flaps,
    },
];

/// Far from the 90 s of a hold time, and enough for three packets of BFD on a machine that has other things to do. What is usual is in docs/measured.md.
const NOTICED: Duration = Duration::from_secs(3);

fn note(lab: &mut Lab, took: Duration) -> Result<()> {
    ensure!(took < NOTICED, "a path was used for {took:?} after it had been cut");
    lab.figures.routers.push(took);
    Ok(())
}

/// A clock for each family of each of these.
fn clocks<'a>(of: impl IntoIterator<Item = &'a NetNs>) -> Result<Vec<(RouteClock, Family)>> {
    let all = of.into_iter().flat_map(|ns| Family::BOTH.map(|family| (ns, family)));
    all.map(|(ns, family)| Ok((RouteClock::start(ns, family)?, family))).collect()
}

fn power_cut(lab: &mut Lab) -> Result<()> {
    // Its own endpoints would die with it.
    let service = service(lab, "power", 70, &["b1", "b2", "c1"])?;
    lab.apply(&service)?;
    await_all_ways(lab, &service)?;
    let clocks = clocks(lab.fabric.leaves.iter().map(|leaf| &leaf.ns))?;
    let mut traffic = Traffic::start(lab, &service)?;
    lab.fabric.reset_counters()?;
    traffic.goes_on(lab)?;
    for vip in service.vips() {
        let packets = lab.fabric.packets(Direction::To, "node-a", vip)?;
        ensure!(packets > 0, "nothing for {vip} went by node-a");
    }
    let mut silence = Silence::arm(&lab.fabric.node("node-a")?.ns, &["leaf1", "leaf2"])?;
    let cut = silence.fall()?;
    traffic.goes_on(lab)?;
    for (clock, family) in &clocks {
        note(lab, clock.without(&service.vip(*family).to_string(), "node-a", cut)?)?;
    }
    drop(silence);
    await_all_ways(lab, &service)?;
    traffic.goes_on(lab)?;
    traffic.none_failed(lab)?;
    lab.remove(&service)
}

fn leaf_cut(lab: &mut Lab) -> Result<()> {
    let service = service(lab, "leaf", 71, &["a1", "b1", "c1"])?;
    lab.apply(&service)?;
    await_all_ways(lab, &service)?;
    let spine = clocks([&lab.fabric.spine])?;
    let nodes = clocks(lab.fabric.nodes.iter().map(|node| &node.ns))?;
    let mut traffic = Traffic::start(lab, &service)?;
    let leaf = lab.fabric.leaves.first().context("a leaf")?;
    let mut silence = Silence::arm(&leaf.ns, &["node-a", "node-b", "node-c"])?;
    let cut = silence.fall()?;
    traffic.goes_on(lab)?;
    for (clock, family) in &spine {
        note(lab, clock.without(&service.vip(*family).to_string(), "leaf1", cut)?)?;
    }
    for (clock, _) in &nodes {
        note(lab, clock.without("default", "leaf1", cut)?)?;
    }
    drop(silence);
    await_all_ways(lab, &service)?;
    traffic.goes_on(lab)?;
    traffic.none_failed(lab)?;
    lab.remove(&service)
}

fn link_flaps(lab: &mut Lab) -> Result<()> {
    let service = service(lab, "flaps", 72, &["a1", "b1", "c1"])?;
    lab.apply(&service)?;
    await_all_ways(lab, &service)?;
    let mut traffic = Traffic::start(lab, &service)?;
    let leaf = lab.fabric.leaves.first().context("a leaf")?;
    let node = lab.fabric.node("node-a")?;
    for flap in 0..20 {
        lab.fabric.link(leaf, node, false)?;
        std::thread::sleep(Duration::from_millis(200));
        lab.fabric.link(leaf, node, true)?;
        // Mostly too short for a session, sometimes long enough for one, which then goes at once.
        let up = if flap % 5 == 4 { 2000 } else { 250 };
        std::thread::sleep(Duration::from_millis(up));
    }
    traffic.goes_on(lab)?;
    await_all_ways(lab, &service)?;
    traffic.goes_on(lab)?;
    traffic.none_failed(lab)?;
    lab.remove(&service)
}
