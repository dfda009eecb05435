//! What conntrack takes for invalid is not rewritten, and must not leave or be refused as if it were anybody's.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use crate::cluster::Service;
use crate::fabric::addresses::Family;
use crate::fabric::{Pod, Witness};
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::Connections;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "invalid",
    proves: "segments far out of the window, from an endpoint or from its client, end no connection, and no client is sent a packet with a \
             pod's address (kubernetes/kubernetes#74839)",
    run: invalid,
}];

/// Puts the data segments that a namespace sends from or to a port far out of their windows, until it is dropped.
struct Wrong(NetNs);

impl Wrong {
    fn new(ns: &NetNs, ports: &str) -> Result<Self> {
        let rules = format!(
            "table inet wrong {{\n chain packets {{\n type filter hook output priority 0;\n \
             tcp {ports} tcp flags & (psh | syn | fin) == psh counter tcp sequence set 1\n }}\n}}\n"
        );
        ns.run_with_input("nft -f -", &rules)?;
        Ok(Self(ns.clone()))
    }

    fn await_one(&self) -> Result<()> {
        await_some(Duration::from_secs(10), "a segment out of its window", || {
            let rules = self.0.run("nft list table inet wrong").map_err(|error| format!("{error:#}"))?;
            if rules.contains("counter packets 0 ") { Err(rules) } else { Ok(()) }
        })
    }
}

impl Drop for Wrong {
    fn drop(&mut self) {
        let _ = self.0.run("nft delete table inet wrong");
    }
}

fn invalid(lab: &mut Lab) -> Result<()> {
    let service = Service::new("invalid", 65).port(Tcp, 80, POD_PORT);
    let b1: Pod = lab.fabric.pod("b1")?.clone();
    lab.apply(&service.clone().endpoints([&b1]))?;
    let client = lab.fabric.client.clone();
    for family in Family::BOTH {
        let vip = service.vip(family);
        for director in ["node-a", "node-b"] {
            lab.fabric.steer(vip, Some(lab.fabric.node(director)?))?;
            for (whose, ns, ports) in [
                ("the endpoint", &b1.ns, format!("sport {POD_PORT}")),
                ("the client", &client, "dport 80".into()),
            ] {
                let case = format!("{family}, by {director}, segments of {whose}");
                let mut connections = Connections::open(&client, Tcp, vip, 80, 3)?;
                let witness = Witness::of(&client)?;
                let wrong = Wrong::new(ns, &ports)?;
                thread::scope(|scope| -> Result<()> {
                    let asking = scope.spawn(|| connections.check());
                    wrong.await_one()?;
                    drop(wrong);
                    asking.join().map_err(|_| anyhow!("a thread panicked"))?
                })
                .with_context(|| case.clone())?;
                let leaked = witness.packets(b1.address(family))?;
                ensure!(leaked == 0, "{case}: the client was sent {leaked} packets of the pod's address");
            }
        }
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}
