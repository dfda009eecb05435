//! Routes of the leaves in the kernel of a node, by its import policies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use super::announced::{apply_local, await_directors};
use super::loads::BothLoads;
use super::tables::{Watch, is_ready};
use crate::cluster::Service;
use crate::fabric::Leaf;
use crate::fabric::addresses::{self, Family};
use crate::lab::Lab;
use crate::process;
use crate::traffic::Request;
use crate::wait::await_some;

/// How long agents and sessions may take to come up.
const LIMIT: Duration = Duration::from_secs(40);
const NODE: &str = "node-a";

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "import",
    proves: "clients that a node has no other way to are answered by routes learnt of both leaves: under load no request fails when one leaf stops \
             announcing, nor over restarts of the agent by SIGTERM and SIGKILL; what the policy leaves out and what covers the node's own VIPs is not \
             taken, a leaf that announces too much is sent away and comes back, one that is out of reach is not used, and the routes go with `onExit: remove` and with cleanup",
    run: import,
}];

/// What the leaves announce: where the client is; where the external host is, which nobody asked for; what covers the VIPs.
const CLIENTS: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/64"];
const OTHERS: [&str; 2] = ["203.0.113.0/24", "2001:db8:3::/64"];
const COVERING: [&str; 2] = ["192.0.0.0/16", "2001:db8:2::/48"];

/// The node's configuration; `more` of `router`.
fn config(more: &str) -> String {
    let peer = |leaf: u8, family: Family| {
        let (address, asn) = (addresses::leaf_link(family, leaf, 1), addresses::leaf_asn(leaf));
        let (name, within) = match family {
            Family::V4 => ("ipv4", "{prefix: 198.51.0.0/16, le: 24}, {prefix: 192.0.0.0/8, le: 24}"),
            Family::V6 => {
                ("ipv6", "{prefix: '2001:db8:1::/48', le: 64}, {prefix: '2001:db8::/32', ge: 47, le: 48}")
            }
        };
        format!(
            "  - {{address: '{address}', asn: {asn}, families: [{name}], import: {{prefixes: [{within}], \
             maxPrefixes: {{limit: 10, idleHold: 3s}}}}}}\n"
        )
    };
    let peers: String =
        [1, 2].iter().flat_map(|leaf| Family::BOTH.map(|family| peer(*leaf, family))).collect();
    format!(
        "router:\n  asn: {}\n  peers:\n{peers}{more}services:\n  serviceCIDRs: [10.96.0.0/16, \"fd00:96::/112\"]\n  \
         externalIPs: {{allow: [192.0.2.0/24, \"2001:db8:2::/64\"]}}\n",
        addresses::NODE_ASN
    )
}

/// A leaf announces static routes of its BIRD to the nodes, and these.
pub(super) fn announce(lab: &Lab, leaf: &Leaf, v4: &[String], v6: &[String]) -> Result<()> {
    let path = lab.config(NODE).with_file_name(format!("{}.conf", leaf.name()));
    let text = std::fs::read_to_string(&path)?;
    let first = text.split("# for import\n").next().unwrap_or_default();
    let first = first.replace("export none; }; }\n", "export where source = RTS_STATIC; }; }\n");
    let routes = |prefixes: &[String]| -> String {
        prefixes.iter().map(|prefix| format!(" route {prefix} blackhole;")).collect()
    };
    let (v4, v6) = (routes(v4), routes(v6));
    let text = format!(
        "{first}# for import\nprotocol static import4 {{ ipv4;{v4} }}\nprotocol static import6 {{ ipv6;{v6} }}\n"
    );
    std::fs::write(&path, text)?;
    let answer = leaf.birdc("configure")?;
    ensure!(answer.contains("Reconfigur"), "{}: {answer}", leaf.name());
    Ok(())
}

fn texts(prefixes: &[&str]) -> Vec<String> {
    prefixes.iter().map(|prefix| (*prefix).to_owned()).collect()
}

/// What all leaves announce at first: of each family what is wanted and what is not.
fn announced(family: usize) -> Vec<String> {
    texts(&[CLIENTS[family], OTHERS[family], COVERING[family]])
}

/// The learnt routes in the node's main table: destination, and how many next hops it has.
fn learnt(lab: &Lab) -> Result<Vec<(String, usize)>> {
    let node = &lab.fabric.node(NODE)?.ns;
    let mut routes: Vec<(String, usize)> = Vec::new();
    for family in Family::BOTH {
        for line in node.run(&format!("ip {} route show proto 85", family.flag()))?.lines() {
            let hops = line.matches("via ").count();
            match line.split_whitespace().next() {
                Some("nexthop") => routes.last_mut().context("a next hop of no route")?.1 += hops,
                Some(destination) => routes.push((destination.to_owned(), hops)),
                None => {}
            }
        }
    }
    Ok(routes)
}

/// Waits until the client's networks, and nothing else, are learnt, with that many next hops each.
fn await_learnt(lab: &Lab, hops: usize) -> Result<()> {
    let expected: Vec<(String, usize)> = match hops {
        0 => Vec::new(),
        _ => CLIENTS.iter().map(|prefix| ((*prefix).to_owned(), hops)).collect(),
    };
    await_some(LIMIT, &format!("{expected:?} in the kernel of {NODE}"), || {
        let found = learnt(lab).map_err(|error| format!("{error:#}"))?;
        let told = lab.status(NODE).map_or_else(|error| format!("{error:#}"), |status| status.to_string());
        if found == expected { Ok(()) } else { Err(format!("{found:?}; {told}")) }
    })
}

fn import(lab: &mut Lab) -> Result<()> {
    let node = lab.fabric.node(NODE)?.ns.clone();
    lab.restart_with(NODE, "")?;
    await_some(LIMIT, "the agent to be ready", || is_ready(lab))?;
    lab.stop_agent(NODE)?;
    for leaf in &lab.fabric.leaves {
        announce(lab, leaf, &announced(0), &announced(1))?;
    }
    // Behind a learnt route, before the default one: the node knows no way to clients but what it learns.
    node.ip(&CLIENTS.map(|prefix| format!("route add unreachable {prefix} metric 10000\n")).concat())?;

    // No other node answers.
    let service = apply_local(lab, "by-import", 61, &["a1"])?;
    let ask = |lab: &Lab, family| {
        Request::new(Tcp, service.vip(family), 80).within(Duration::from_secs(2)).send(&lab.fabric.client)
    };
    lab.start_agent(NODE)?;
    await_directors(lab, &service.vips(), &[NODE])?;
    for family in Family::BOTH {
        ensure!(ask(lab, family).is_err(), "{family}: answered, though nothing is imported");
    }
    lab.stop_agent(NODE)?;
    std::fs::write(lab.config(NODE), config(""))?;
    lab.start_agent(NODE)?;
    await_learnt(lab, 2)?;
    await_directors(lab, &service.vips(), &[NODE])?;
    for family in Family::BOTH {
        ask(lab, family).with_context(|| format!("{family}, by learnt routes"))?;
    }
    let status = lab.status(NODE)?;
    for peer in status["peers"].as_array().context("peers")? {
        ensure!(peer["prefixesReceived"] == 3 && peer["prefixesAccepted"] == 1, "{peer}");
    }
    let imported = &status["imported"];
    ensure!(imported["prefixes"] == 2 && imported["inKernel"] == 2 && imported["kept"] == 0, "{imported}");
    ensure!(status["problems"] == serde_json::json!([]), "{}", status["problems"]);

    under_load(lab, &service)?;
    too_much(lab)?;
    out_of_reach(lab)?;
    farewell(lab)?;

    lab.source.remove(&service)?;
    node.ip(&CLIENTS.map(|prefix| format!("route del unreachable {prefix} metric 10000\n")).concat())?;
    for leaf in &lab.fabric.leaves {
        announce(lab, leaf, &[], &[])?;
    }
    lab.start_agent(NODE)?;
    lab.restart_with(NODE, "")?;
    await_some(LIMIT, "the agent to be ready", || is_ready(lab))
}

fn under_load(lab: &mut Lab, service: &Service) -> Result<()> {
    let node = lab.fabric.node(NODE)?.ns.clone();
    // A leaf without a session has no way to the VIP either: what comes from the client takes the other one.
    let by_second = |lab: &Lab, both: bool| {
        let mut lines = String::new();
        for family in Family::BOTH {
            let hop = |leaf| format!(" nexthop via {} dev leaf{leaf}", addresses::leaf_uplink(family, leaf));
            let hops = if both { hop(1) + &hop(2) } else { hop(2) };
            lines += &format!("route replace {}{hops}\n", addresses::external_vips(family));
        }
        lab.fabric.spine.ip(&lines)
    };
    by_second(lab, false)?;
    let loads = BothLoads::start(lab, service)?;
    loads.await_answers(30)?;
    let sessions = ["node_a_ipv4", "node_a_ipv6"];
    for (order, hops) in [("disable", 1), ("enable", 2)] {
        for session in sessions {
            lab.fabric.leaves[0].birdc(&format!("{order} {session}"))?;
        }
        await_learnt(lab, hops)?;
        loads.await_answers(30)?;
    }
    let mut watch = Watch::start(lab, &node)?;
    loads.outlast_restarts(lab, NODE, |lab| {
        await_some(LIMIT, "all told again", || {
            is_ready(lab)?;
            let status = lab.status(NODE).map_err(|error| format!("{error:#}"))?;
            let imported = &status["imported"];
            if imported["inKernel"] == 2 && imported["kept"] == 0 { Ok(()) } else { Err(status.to_string()) }
        })?;
        await_learnt(lab, 2)
    })?;
    for prefix in CLIENTS {
        let removals = watch.removals(prefix)?;
        ensure!(removals.is_empty(), "removed over restarts of the agent: {removals:?}");
    }
    loads.none_failed()?;
    by_second(lab, true)
}

/// More than the limit: the leaf hears why, its routes go, and it comes back once it announces less.
fn too_much(lab: &Lab) -> Result<()> {
    let leaf = &lab.fabric.leaves[1];
    let many = |format: fn(u8) -> String, family: usize| -> Vec<String> {
        announced(family).into_iter().chain((0..20).map(format)).collect()
    };
    let v4 = many(|number| format!("10.77.{number}.0/24"), 0);
    let v6 = many(|number| format!("fd00:77:{number:x}::/48"), 1);
    announce(lab, leaf, &v4, &v6)?;
    await_some(LIMIT, "both sessions sent away", || {
        for session in ["node_a_ipv4", "node_a_ipv6"] {
            let answer = leaf
                .birdc(&format!("show protocols all {session}"))
                .unwrap_or_else(|error| format!("{error:#}"));
            if !answer.contains("Maximum number of prefixes reached") {
                return Err(answer);
            }
        }
        Ok(())
    })?;
    await_learnt(lab, 1)?;
    let status = lab.status(NODE)?.to_string();
    ensure!(status.contains("more than 10 prefixes of ipv4-unicast: raise its limit"), "{status}");
    announce(lab, leaf, &announced(0), &announced(1))?;
    await_learnt(lab, 2)
}

/// The link to a leaf goes: its routes are not used, though its sessions stand until the hold time tells.
fn out_of_reach(lab: &Lab) -> Result<()> {
    let node = lab.fabric.node(NODE)?;
    let leaf = &lab.fabric.leaves[1];
    let cut = Instant::now();
    leaf.ns.ip(&format!("link set {NODE} down\n"))?;
    await_learnt(lab, 1)?;
    ensure!(cut.elapsed() < Duration::from_secs(20), "not before {:?}", cut.elapsed());
    let status = lab.status(NODE)?;
    let peers = status["peers"].as_array().context("peers")?;
    ensure!(peers.iter().all(|peer| peer["state"] == "Established"), "{}", status["peers"]);
    lab.fabric.mend(node)?;
    await_learnt(lab, 2)
}

/// Routes stay when the agent ends, or go, as configured; cleanup removes them.
fn farewell(lab: &mut Lab) -> Result<()> {
    let kept = learnt(lab)?;
    lab.stop_agent(NODE)?;
    ensure!(learnt(lab)? == kept, "without an agent: {:?}, not {kept:?}", learnt(lab)?);
    let mut cleanup = lab.sheave(NODE, "cleanup");
    cleanup.arg("--config").arg(lab.config(NODE));
    let told = process::run(cleanup, "")?;
    ensure!(told.contains("removed 2 learnt routes"), "{told}");
    ensure!(learnt(lab)?.is_empty(), "after cleanup: {:?}", learnt(lab)?);

    std::fs::write(lab.config(NODE), config("  import: {onExit: remove}\n"))?;
    lab.start_agent(NODE)?;
    await_learnt(lab, 2)?;
    lab.stop_agent(NODE)?;
    ensure!(learnt(lab)?.is_empty(), "with onExit: remove: {:?}", learnt(lab)?);
    // What would be left if it had been killed is not: the next scenario begins as this one did.
    std::fs::write(lab.config(NODE), config(""))?;
    Ok(())
}
