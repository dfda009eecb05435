//! What the agents tell over HTTP, asked from outside the cluster.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sheave::cluster::Protocol::Tcp;

use super::Scenario;
use crate::cluster::Service;
use crate::fabric::Node;
use crate::fabric::addresses::Family;
use crate::lab::{Lab, POD_PORT};
use crate::process;
use crate::traffic::{Connections, Page, get};
use crate::wait::{await_some, await_until};

/// How long an agent may take to serve, or to notice a change.
const LIMIT: Duration = Duration::from_secs(30);

/// Default ports of `observe.metrics` and `observe.health`.
const METRICS: u16 = 10249;
const HEALTH: u16 = 10256;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "observe-metrics",
        proves: "each agent's metrics pass promtool, and those of a virtual server count the connections that this director scheduled",
        run: metrics,
    },
    Scenario {
        name: "observe-health-check-node-port",
        proves: "a health-check node port is reached from outside on every node, in both families, and tells where the endpoints are as they move",
        run: health_check_node_port,
    },
    Scenario {
        name: "observe-taken-ports",
        proves: "an agent whose ports another program has forwards all the same, says so, and serves them once they are free",
        run: taken_ports,
    },
];

fn metrics(lab: &mut Lab) -> Result<()> {
    const CONNECTIONS: usize = 12;
    let service = Service::new("counted", 60)
        .annotate("sheave.io/metrics", "true")
        .port(Tcp, 80, POD_PORT)
        .endpoints([lab.fabric.pod("a1")?]);
    lab.apply(&service)?;
    let client = lab.fabric.client.clone();
    for family in Family::BOTH {
        let vip = service.vip(family);
        let director = lab.fabric.node("node-b")?;
        lab.fabric.steer(vip, Some(director))?;
        let mut connections = Connections::open(&client, Tcp, vip, 80, CONNECTIONS)?;
        connections.check()?;
        let of_vip = |page: &Page, name: &str| {
            let line = page
                .body
                .lines()
                .find(|line| line.starts_with(name) && line.contains(&format!("vip=\"{vip}\"")));
            line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        };
        let at = |node: &Node| SocketAddr::new(node.address(family), METRICS);
        // IPVS adds up its counters every 2 s.
        await_some(LIMIT, &format!("{CONNECTIONS} connections to {vip}"), || {
            let page = get(&client, at(director), "/metrics").map_err(|error| format!("{error:#}"))?;
            let scheduled = of_vip(&page, "sheave_virtual_server_connections_total");
            if scheduled == Some(CONNECTIONS as f64) { Ok(()) } else { Err(format!("{scheduled:?}")) }
        })?;
        for node in &lab.fabric.nodes {
            let page = get(&client, at(node), "/metrics")?;
            ensure!(page.status == 200, "{}: {}", node.name, page.head);
            // A gauge whose name promtool does not like; it is kube-proxy's.
            let of_kube_proxy = |line: &&str| line.contains("sync_proxy_rules_no_local_endpoints_total");
            let ours: String = page
                .body
                .lines()
                .filter(|line| !of_kube_proxy(line))
                .map(|line| format!("{line}\n"))
                .collect();
            process::run(promtool(), &ours).with_context(|| node.name.clone())?;
            let scheduled = of_vip(&page, "sheave_virtual_server_connections_total");
            let expected = if node.name == director.name { CONNECTIONS as f64 } else { 0.0 };
            ensure!(scheduled == Some(expected), "{}: {scheduled:?} connections to {vip}", node.name);
            if node.name == director.name {
                let bytes = of_vip(&page, "sheave_virtual_server_incoming_bytes_total");
                ensure!(bytes > Some(0.0), "{}: {bytes:?} bytes to {vip}", node.name);
                let returned = of_vip(&page, "sheave_virtual_server_outgoing_packets_total");
                ensure!(returned == Some(0.0), "{}: {returned:?} packets came back its way", node.name);
            }
            ensure!(page.body.contains("sheave_bgp_session_up{"), "{}: no peers", node.name);
            for line in page.body.lines().filter(|line| line.starts_with("sheave_bgp_session_up{")) {
                ensure!(line.ends_with(" 1"), "{}: {line}", node.name);
            }
            for line in page.body.lines().filter(|line| line.starts_with("sheave_problems{")) {
                ensure!(line.ends_with(" 0"), "{}: {line}", node.name);
            }
            for path in ["/healthz", "/livez", "/readyz"] {
                let page = get(&client, SocketAddr::new(node.address(family), HEALTH), path)?;
                ensure!(page.status == 200, "{}{path}: {} {}", node.name, page.status, page.body);
            }
        }
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}

fn promtool() -> Command {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]);
    promtool
}

fn health_check_node_port(lab: &mut Lab) -> Result<()> {
    const PORT: u16 = 32123;
    let (a1, a2, b1) = (lab.fabric.pod("a1")?, lab.fabric.pod("a2")?, lab.fabric.pod("b1")?);
    let service = Service::new("probed", 61).port(Tcp, 80, POD_PORT).health_check(PORT);
    let client = lab.fabric.client.clone();
    for (endpoints, counts) in
        [(vec![a1.clone(), a2.clone(), b1.clone()], [2, 1, 0]), (vec![b1.clone()], [0, 1, 0])]
    {
        // Its traffic policy is Local: what each kernel holds differs from node to node.
        lab.source.apply(&service.clone().endpoints(&endpoints))?;
        for (node, count) in lab.fabric.nodes.iter().zip(counts) {
            let status = if count > 0 { 200 } else { 503 };
            for family in Family::BOTH {
                let address = SocketAddr::new(node.address(family), PORT);
                // The kernel has it a moment before it is told.
                await_some(LIMIT, &format!("{}: {count} endpoints at {address}", node.name), || {
                    let page = get(&client, address, "/").map_err(|error| format!("{error:#}"))?;
                    let right = page.status == status
                        && page.head.contains(&format!("x-load-balancing-endpoint-weight: {count}"))
                        && page.body.contains(&format!("\"localEndpoints\": {count}"))
                        && page.body.contains("\"serviceProxyHealthy\": true");
                    if right { Ok(()) } else { Err(format!("{} {}", page.status, page.body)) }
                })?;
            }
        }
    }
    lab.remove(&service)?;
    let address = SocketAddr::new(lab.fabric.nodes[1].address(Family::V4), PORT);
    await_until(LIMIT, "the port of a Service that is gone is closed", || get(&client, address, "/").is_err())
}

fn taken_ports(lab: &mut Lab) -> Result<()> {
    const NODE: &str = "node-c";
    let service = Service::new("coexists", 62).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod("c1")?]);
    let node = lab.fabric.node(NODE)?;
    let (client, namespace, address) = (lab.fabric.client.clone(), node.ns.clone(), node.address(Family::V6));
    lab.stop_agent(NODE)?;
    let taken = namespace.enter(|| [METRICS, HEALTH].map(|port| TcpListener::bind(("0.0.0.0", port))))?;
    let taken =
        taken.into_iter().collect::<Result<Vec<_>, _>>().context("a stopped agent's ports are free")?;
    lab.start_agent(NODE)?;
    lab.apply(&service)?;
    await_until(LIMIT, "the agent says that its ports are taken", || {
        let output = lab.sheave(NODE, "status").output();
        output.is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout);
            ["observe.metrics", "observe.health"].iter().all(|name| text.contains(&format!("  {name}")))
                && text.contains("another program has this port")
        })
    })?;
    drop(taken);
    for (port, path) in [(METRICS, "/metrics"), (HEALTH, "/readyz")] {
        let address = SocketAddr::new(address, port);
        await_some(LIMIT, &format!("{address} is served"), || match get(&client, address, path) {
            Ok(page) if page.status == 200 => Ok(()),
            Ok(page) => Err(page.head),
            Err(error) => Err(format!("{error:#}")),
        })?;
    }
    let status = lab.sheave(NODE, "status").output()?;
    if !status.status.success() {
        bail!("problems are left: {}", String::from_utf8_lossy(&status.stdout));
    }
    lab.remove(&service)
}
