//! `sheave explain` on nodes that forward: what it says is what is so, and what somebody changes it names.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use crate::cluster::{Condition, Endpoint, Service};
use crate::fabric::addresses::Family;
use crate::lab::{Lab, POD_PORT};
use crate::wait::await_some;

/// Longer than between two looks of an agent, and what a repair takes.
const LIMIT: Duration = Duration::from_secs(40);

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "explain",
        proves: "explain tells of each address who is told of it, which endpoints are used and which are not and why, and that the kernel holds \
                 just that",
        run: explain,
    },
    Scenario {
        name: "explain-differences",
        proves: "a destination, a route or an element that somebody deletes is named by explain before it is repaired, and by nothing afterwards",
        run: differences,
    },
];

/// What a node says of a target, and whether all is as planned.
fn ask(lab: &Lab, node: &str, target: &str) -> Result<(Value, bool)> {
    let output =
        lab.sheave(node, "explain").args([target, "-o", "json"]).output().context("sheave explain")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let explanation = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("sheave explain {target} on {node}: {}", text.trim_end()))?;
    Ok((explanation, output.status.success()))
}

fn differences_of(explanation: &Value) -> BTreeSet<String> {
    let differences = explanation["kernel"]["differences"].as_array().into_iter().flatten();
    differences.filter_map(|one| one["what"].as_str().map(str::to_owned)).collect()
}

fn explain(lab: &mut Lab) -> Result<()> {
    let (a1, b1, c1) =
        (lab.fabric.pod("a1")?.clone(), lab.fabric.pod("b1")?.clone(), lab.fabric.pod("c1")?.clone());
    let endpoints = [
        Endpoint::from(&a1),
        Endpoint::from(&b1).condition(Condition::NotReady),
        Endpoint::from(&c1),
        Endpoint::external(),
    ];
    let full = Service::new("explained", 70).port(Tcp, 80, POD_PORT).node_port(30870).endpoints(endpoints);
    let empty = Service::new("unexplained", 71).port(Tcp, 80, POD_PORT);
    lab.apply(&full)?;
    lab.apply(&empty)?;
    for family in Family::BOTH {
        let target = std::net::SocketAddr::new(full.vip(family), 80).to_string();
        let whole = || {
            let (explanation, whole) = ask(lab, "node-a", &target).map_err(|error| format!("{error:#}"))?;
            // Leaves may hear of it a little later than the kernel holds it.
            let told = explanation["virtualServers"][0]["announcement"]["peers"]
                .as_array()
                .is_some_and(|peers| peers.iter().filter(|peer| peer["whyNot"].is_null()).count() == 2);
            if whole && told { Ok(explanation) } else { Err(explanation.to_string()) }
        };
        let explanation = await_some(LIMIT, &format!("{target} as planned and told to two leaves"), whole)?;
        ensure!(explanation["service"]["name"] == "default/explained", "{explanation}");
        let server = &explanation["virtualServers"][0];
        let of = |address: std::net::IpAddr| {
            let address = address.to_string();
            let all = server["endpoints"].as_array().into_iter().flatten();
            let found = all.into_iter().find(|endpoint| endpoint["address"] == *address);
            found.cloned().with_context(|| format!("{address} is not in {server}"))
        };
        for (address, weight, method) in [
            (a1.address(family), Some(1), Some("tunnel")),
            (b1.address(family), None, None),
            (c1.address(family), Some(1), Some("tunnel")),
            (Endpoint::external().address(family), Some(1), Some("nat")),
        ] {
            let endpoint = of(address)?;
            ensure!(endpoint["external"]["weight"].as_u64() == weight, "{endpoint}");
            ensure!(endpoint["forwarding"]["method"].as_str() == method, "{endpoint}");
        }
        ensure!(of(b1.address(family))?["external"]["why"] == "not ready", "{server}");
        ensure!(of(a1.address(family))?["acceptedIn"] == "node", "{server}");
        let held = explanation["kernel"]["virtualServers"][0]["destinations"].as_array().map(Vec::len);
        ensure!(held == Some(3), "{}", explanation["kernel"]);

        let target = std::net::SocketAddr::new(empty.vip(family), 80).to_string();
        let (explanation, whole) = ask(lab, "node-a", &target)?;
        let server = &explanation["virtualServers"][0];
        ensure!(whole && server["otherwise"] == "refused", "{explanation}");
        ensure!(server["announcement"]["whyNot"] == "no endpoint gets connections", "{explanation}");
    }
    let node = lab.fabric.node("node-b")?;
    for family in Family::BOTH {
        let target = std::net::SocketAddr::new(node.address(family), 30870).to_string();
        let (explanation, whole) = ask(lab, "node-b", &target)?;
        ensure!(whole && explanation["virtualServers"][0]["kind"] == "NodePort", "{explanation}");
    }
    let unknown = lab.sheave("node-a", "explain").arg("default/explain").output()?;
    let error = String::from_utf8_lossy(&unknown.stderr);
    ensure!(unknown.status.code() == Some(1) && error.contains("there is no Service"), "{error}");
    lab.remove(&full)?;
    lab.remove(&empty)
}

fn differences(lab: &mut Lab) -> Result<()> {
    const NODE: &str = "node-a";
    const TARGET: &str = "default/tampered";
    let (a1, c1) = (lab.fabric.pod("a1")?.clone(), lab.fabric.pod("c1")?.clone());
    let service = Service::new("tampered", 72).port(Tcp, 80, POD_PORT).endpoints([&a1, &c1]);
    lab.apply(&service)?;
    let (vip, last) = (service.vip(Family::V4), c1.address(Family::V4));
    let ns = lab.fabric.node(NODE)?.ns.clone();
    let mut known = BTreeSet::new();
    for (command, expected) in [
        (
            format!("ipvsadm -d -t {vip}:80 -r {last}:{POD_PORT}"),
            format!("IPVS has no destination {last}:{POD_PORT} in TCP {vip}:80"),
        ),
        (format!("ip route del local {vip}/32 dev lo"), format!("there is no route local {vip}/32")),
        (
            format!("nft delete element inet sheave mark4 {{ {} }}", a1.address(Family::V4)),
            format!("nftables' mark4 has no element {}", a1.address(Family::V4)),
        ),
    ] {
        // Where a look of the agent comes in between, once more.
        await_some(LIMIT, &format!("{command}: {expected}"), || {
            let done = ns.run(&command).map_err(|error| format!("{error:#}"));
            let (explanation, whole) = ask(lab, NODE, TARGET).map_err(|error| format!("{error:#}"))?;
            let found = differences_of(&explanation);
            let new: Vec<&String> = found.difference(&known).collect();
            match &new[..] {
                [one] if one.starts_with(&expected) && !whole => {
                    known.clone_from(&found);
                    Ok(())
                }
                other => Err(format!("{done:?}: {other:?}")),
            }
        })?;
    }
    await_some(LIMIT, "all is repaired, and explain finds nothing", || match ask(lab, NODE, TARGET) {
        Ok((_, true)) => Ok(()),
        Ok((explanation, false)) => Err(format!("{:?}", differences_of(&explanation))),
        Err(error) => Err(format!("{error:#}")),
    })?;
    let text = lab.sheave(NODE, "explain").arg(TARGET).output()?;
    let text = String::from_utf8_lossy(&text.stdout);
    if !text.trim_end().ends_with("The kernel holds just that.") {
        bail!("{text}");
    }
    lab.remove(&service)
}
