//! What Sheave is for, shown to a newcomer: each line is printed when what it says has happened.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::Tcp;

use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Direction, Fabric, Node, Silence};
use crate::kernel;
use crate::lab::{Kind, Lab, POD_PORT};
use crate::traffic::{Connections, Load, LoadReport, Request};
use crate::wait::{await_some, await_until};

const MANIFESTS: [(&str, &str); 7] = [
    ("nodes.yaml", include_str!("../../examples/quickstart/manifests/nodes.yaml")),
    ("web.yaml", include_str!("../../examples/quickstart/manifests/web.yaml")),
    ("dns.yaml", include_str!("../../examples/quickstart/manifests/dns.yaml")),
    ("api.yaml", include_str!("../../examples/quickstart/manifests/api.yaml")),
    ("database.yaml", include_str!("../../examples/quickstart/manifests/database.yaml")),
    ("signalling.yaml", include_str!("../../examples/quickstart/manifests/signalling.yaml")),
    ("no-virtual-ip.yaml", include_str!("../../examples/quickstart/manifests/no-virtual-ip.yaml")),
];

/// How long anything in the demo may take to happen.
const LIMIT: Duration = Duration::from_secs(30);

/// Between two packets of BFD; three that do not come are silence.
const BFD: Duration = Duration::from_millis(200);

/// A lab with the cluster of the quick start in it, agents running and the Service `web`, returned too, in force.
pub fn quickstart(binary: &Path, dir: &Path, kind: Kind) -> Result<(Lab, Service)> {
    let mut lab = Lab::build(binary, dir, kind)?;
    for (name, text) in MANIFESTS {
        let path = lab.source.manifests()?.dir().join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    for node in lab.node_names() {
        lab.start_agent(&node)?;
    }
    let web = Service::new("web", 80)
        .port(Tcp, 80, POD_PORT)
        .endpoints([lab.fabric.pod("b1")?, lab.fabric.pod("c1")?]);
    match lab.await_applied(&web) {
        Ok(()) => Ok((lab, web)),
        Err(error) => Err(lab.explain(&error, "quickstart")),
    }
}

/// Runs it.
pub fn run(binary: &Path, dir: &Path) -> Result<()> {
    let start = Instant::now();
    println!(
        "Sheave in two minutes. Three nodes, two leaf routers running BIRD, a client; kernels, routers and packets are real."
    );

    heading("A cluster");
    println!(
        "  manifests: examples/quickstart/manifests, one `sheave agent` on each of node-a, node-b, node-c"
    );
    let (mut lab, web) = quickstart(binary, dir, Kind::Watched(BFD))?;
    println!("  Service default/web listens on {}:80 and [{}]:80;", web.vip(Family::V4), web.vip(Family::V6));
    println!("  its endpoints are the pods b1 on node-b and c1 on node-c, port {POD_PORT}");
    println!("  all three kernels hold it, {:.1} s after the agents' start", lab.age().as_secs_f32());

    let counts = story(&mut lab, &web).map_err(|error| lab.explain(&error, "demo"))?;

    heading("Counts");
    for (what, report) in &counts {
        let slowest = report.slowest.as_millis();
        println!(
            "  {what}: {} requests answered, {} failed, slowest {slowest} ms",
            report.answered,
            report.failures.len()
        );
    }
    println!("  the whole demo took {:.0} s", start.elapsed().as_secs_f32());
    counts.iter().try_for_each(|(what, report)| report.ensure_none_failed().context(*what))
}

/// What happens in the cluster; the counts of requests sent meanwhile.
fn story(lab: &mut Lab, web: &Service) -> Result<[(&'static str, LoadReport); 2]> {
    heading("Routes, learnt over BGP");
    for leaf in &lab.fabric.leaves {
        for family in Family::BOTH {
            let vip = web.vip(family);
            let directors: Vec<String> = lab.fabric.directors(leaf, vip)?.into_iter().collect();
            println!("  {}: {vip}/{} via {}", leaf.name(), family.bits(), directors.join(", "));
        }
    }
    println!("  every node is a director of every virtual IP; the routers spread flows over them");

    for family in Family::BOTH {
        heading(&format!("One request, {family}"));
        one_request(lab, web, family)?;
    }

    heading("An endpoint goes while requests are sent");
    let removed = endpoint_goes(lab, web)?;

    heading("A director dies while requests are sent");
    let killed = director_dies(lab, web)?;
    Ok([("endpoint removed", removed), ("director killed", killed)])
}

fn heading(text: &str) {
    println!("\n{text}");
}

/// A director on one node, the endpoint on another, and the packets that the routers saw in between.
fn one_request(lab: &Lab, web: &Service, family: Family) -> Result<()> {
    let (fabric, vip) = (&lab.fabric, web.vip(family));
    let director = fabric.node("node-a")?;
    fabric.steer(vip, Some(director))?;
    fabric.reset_counters()?;
    let answer = Request::new(Tcp, vip, 80).send(&fabric.client)?;
    fabric.steer(vip, None)?;
    let home = if answer.endpoint == "b1" { "node-b" } else { "node-c" };
    let endpoint = fabric.pod(&answer.endpoint)?.address(family);
    println!(
        "  the routers gave it to node-a; {} on {home} answered, in {} ms",
        answer.endpoint,
        answer.took.as_millis()
    );
    println!("  {} saw the client's own address: {}", answer.endpoint, answer.peer);
    ensure!(
        answer.peer == addresses::client(family),
        "the client's address is {}",
        addresses::client(family)
    );
    println!("  packets that the leaf routers counted:");
    let count = |direction, node: &str, address: IpAddr| fabric.packets(direction, node, address);
    let requests = count(Direction::To, "node-a", vip)?;
    let tunnel = count(Direction::To, home, endpoint)?;
    let replies = count(Direction::From, home, vip)?;
    let through = count(Direction::From, "node-a", vip)?;
    println!("    {requests:3}  client → {vip}, to node-a");
    println!("    {tunnel:3}  node-a → {endpoint}, the same packets inside a tunnel, to {home}");
    println!("    {replies:3}  {vip} → client, from {home}");
    println!("    {through:3}  {vip} → client, from node-a: the reply bypasses the director");
    ensure!(requests > 0 && tunnel > 0 && replies > 0 && through == 0, "the reply took another way");
    Ok(())
}

fn endpoint_goes(lab: &mut Lab, web: &Service) -> Result<LoadReport> {
    let load = Load::start(&lab.fabric.client, Tcp, web.vip(Family::V4), 80, 4)?;
    load.await_answers(200)?;
    println!("  4 clients ask all the time: {} answers so far", load.answered());
    let left = web.clone().endpoints([lab.fabric.pod("c1")?]);
    let start = Instant::now();
    lab.source.apply(&left)?;
    println!("  b1 taken out of the manifests");
    let gone = lab.fabric.pod("b1")?.address(Family::V4);
    let vip = SocketAddr::from((web.vip(Family::V4), 80));
    let sends_to_b1 = |node: &Node| -> Result<bool> {
        let active = kernel::active(&kernel::virtual_servers(&node.ns)?, Tcp, vip);
        Ok(active.iter().any(|endpoint| endpoint.ip() == gone))
    };
    await_until(LIMIT, "no director sends to b1", || {
        lab.fabric.nodes.iter().all(|node| sends_to_b1(node).is_ok_and(|sends| !sends))
    })?;
    println!("  no director sends to b1 any more, {} ms later", start.elapsed().as_millis());
    load.await_answers(200)?;
    let report = load.stop()?;
    println!(
        "  {} requests answered ({}), {} failed",
        report.answered,
        shares(&report.endpoints),
        report.failures.len()
    );
    lab.apply(web)?;
    println!("  b1 is back");
    Ok(report)
}

fn shares(endpoints: &BTreeMap<String, u64>) -> String {
    let shares: Vec<String> =
        endpoints.iter().map(|(endpoint, count)| format!("{endpoint} {count}")).collect();
    shares.join(", ")
}

fn director_dies(lab: &mut Lab, web: &Service) -> Result<LoadReport> {
    let vip = web.vip(Family::V4);
    let node = lab.fabric.node("node-a")?;
    let mut open = Connections::open(&lab.fabric.client, Tcp, vip, 80, 20)?;
    let load = Load::start(&lab.fabric.client, Tcp, vip, 80, 4)?;
    load.await_answers(200)?;
    println!(
        "  20 connections are open, 4 clients ask all the time; BFD speaks on every link every {} ms",
        BFD.as_millis()
    );
    let mut silence = Silence::arm(&node.ns, &["leaf1", "leaf2"])?;
    live(lab, &load, vip, "before", 2)?;
    let cut = silence.fall()?;
    println!("  node-a falls silent, as if its power had gone: its links stay up, and nobody is told");
    live(lab, &load, vip, "after", 4)?;
    let tally = open.tally();
    println!(
        "  the 20 open connections, about a third of them through node-a until then: {} go on, {} reset, {} lost",
        tally.kept, tally.reset, tally.lost
    );
    await_some(LIMIT, "routes without node-a", || without(&lab.fabric, vip, "node-a"))?;
    load.await_answers(200)?;
    let report = load.stop()?;
    println!(
        "  {:.0} s later: {} requests answered, {} failed; the slowest took {} ms, since what was lost is sent again",
        cut.elapsed().as_secs_f32(),
        report.answered,
        report.failures.len(),
        report.slowest.as_millis()
    );
    ensure!(tally.faults.is_empty(), "{tally:?}");
    Ok(report)
}

/// Prints what is counted, every half a second.
fn live(lab: &Lab, load: &Load, vip: IpAddr, when: &str, times: u32) -> Result<()> {
    for _ in 0..times {
        let (answered, start) = (load.answered(), Instant::now());
        std::thread::sleep(Duration::from_millis(500));
        let rate = (load.answered() - answered) as f32 / start.elapsed().as_secs_f32();
        let leaf = lab.fabric.leaves.first().context("a leaf")?;
        let directors: Vec<String> = lab.fabric.directors(leaf, vip)?.into_iter().collect();
        println!(
            "    {when:6}  {rate:4.0} answers/s, {} failed so far; leaf1 sends to {}",
            load.failed(),
            directors.join(", ")
        );
    }
    Ok(())
}

fn without(fabric: &Fabric, vip: IpAddr, node: &str) -> Result<(), String> {
    for leaf in &fabric.leaves {
        let directors = fabric.directors(leaf, vip).map_err(|error| error.to_string())?;
        if directors.is_empty() || directors.contains(node) {
            return Err(format!("{}: {directors:?}", leaf.name()));
        }
    }
    Ok(())
}
