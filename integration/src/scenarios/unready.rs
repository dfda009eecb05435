//! UDP flows from ports that never change, while the endpoints they need come and go: nothing that was remembered meanwhile, of the
//! refusal or of an endpoint that is gone, may stand in their way.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sheave::cluster::Protocol::Udp;

use super::Scenario;
use crate::cluster::{Condition, Endpoint, Service};
use crate::fabric::addresses::Family;
use crate::kernel;
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::Request;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "unready-udp",
        proves: "UDP clients that ask from one port before there is an endpoint, and while it is not ready, are answered as soon as it is: by \
                 cluster IP, node port and load-balancer IP, of a Service with forwarding nat too",
        run: unready_udp,
    },
    Scenario {
        name: "unready-udp-local",
        proves: "with internalTrafficPolicy Local a UDP client that asks from one port while its node has no endpoint is answered as soon as it \
                 has one again",
        run: unready_udp_local,
    },
];

/// A client that asks from the same port each time, as a resolver with a fixed port does.
struct Client {
    from: NetNs,
    to: SocketAddr,
    port: u16,
}

impl Client {
    fn ask(&self, limit: Duration) -> Result<String> {
        let request = Request::new(Udp, self.to.ip(), self.to.port()).from_port(self.port).within(limit);
        Ok(request.send(&self.from)?.endpoint)
    }

    /// Asks until told to stop, whatever comes back.
    fn insist(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let _ = self.ask(Duration::from_millis(50));
            // Refusals come at once.
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Has all clients ask while something changes; then each question must be answered by that endpoint, or none at all.
fn through(clients: &[Client], change: impl FnOnce() -> Result<()>, answers: Option<&str>) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| client.insist(&stop));
        }
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        changed
    })?;
    for client in clients {
        let name = format!("{} port {} → {}", client.from.name(), client.port, client.to);
        if let Some(wanted) = answers {
            // What is remembered wrongly is renewed by each question: it would last.
            await_some(Duration::from_secs(5), &format!("{name}: {wanted} answers"), || {
                client.ask(Duration::from_secs(1)).map_err(|error| format!("{error:#}"))
            })?;
        }
        for _ in 0..3 {
            match (client.ask(Duration::from_millis(500)), answers) {
                (Ok(endpoint), Some(wanted)) => ensure!(endpoint == wanted, "{name}: {endpoint} answered"),
                (Err(error), Some(_)) => return Err(error).context(name),
                (Ok(endpoint), None) => bail!("{name}: {endpoint} answered, which is not ready"),
                (Err(_), None) => {}
            }
        }
    }
    Ok(())
}

fn unready_udp(lab: &mut Lab) -> Result<()> {
    const PORT: u16 = 12345;
    for (name, number, node_port, forwarding) in
        [("unready", 65, 30065, "tunnel"), ("unready-nat", 66, 30066, "nat")]
    {
        let service = Service::new(name, number)
            .port(Udp, 80, POD_PORT)
            .node_port(node_port)
            .annotate("sheave.io/forwarding", forwarding);
        let endpoint = Endpoint::from(lab.fabric.pod("b1")?);
        let unready = service.clone().endpoints([endpoint.clone().condition(Condition::NotReady)]);
        let ready = service.clone().endpoints([endpoint]);
        let fabric = &lab.fabric;
        let mut clients = Vec::new();
        for family in Family::BOTH {
            // Away from the endpoint, and on its node.
            for from in [&fabric.pod("a1")?.ns, &fabric.pod("b2")?.ns, &fabric.node("node-c")?.ns] {
                clients.push((from, SocketAddr::from((service.cluster_ip(family), 80))));
            }
            for (from, node) in
                [(&fabric.client, "node-a"), (&fabric.client, "node-b"), (&fabric.pod("a2")?.ns, "node-b")]
            {
                clients.push((from, SocketAddr::from((fabric.node(node)?.address(family), node_port))));
            }
            clients.push((&fabric.client, SocketAddr::from((service.vip(family), 80))));
            fabric.steer(service.vip(family), Some(fabric.node("node-c")?))?;
        }
        let clients: Vec<Client> =
            (PORT..).zip(clients).map(|(port, (from, to))| Client { from: from.clone(), to, port }).collect();
        lab.apply(&service)?;
        through(&clients, || Ok(()), None).context("without endpoints")?;
        through(&clients, || lab.apply(&unready), None).context("while it is not ready")?;
        through(&clients, || lab.apply(&ready), Some("b1")).context("once it is ready")?;
        for family in Family::BOTH {
            lab.fabric.steer(service.vip(family), None)?;
        }
        lab.remove(&service)?;
    }
    Ok(())
}

/// Waits until a node gives what is sent to a cluster IP to exactly this endpoint, or to none.
fn await_chosen(lab: &Lab, node: &str, cluster_ip: IpAddr, endpoint: Option<IpAddr>) -> Result<()> {
    let ns = &lab.fabric.node(node)?.ns;
    await_some(Duration::from_secs(30), &format!("{node}: {endpoint:?} behind {cluster_ip}"), || {
        let servers = kernel::virtual_servers(ns).map_err(|error| format!("{error:#}"))?;
        let active = kernel::active(&servers, Udp, SocketAddr::new(cluster_ip, 80));
        let wanted: Vec<SocketAddr> =
            endpoint.map(|address| SocketAddr::new(address, POD_PORT)).into_iter().collect();
        if active == wanted { Ok(()) } else { Err(format!("{active:?}")) }
    })
}

fn unready_udp_local(lab: &mut Lab) -> Result<()> {
    let service =
        Service::new("unready-local", 67).port(Udp, 80, POD_PORT).spec("internalTrafficPolicy", "Local");
    let (own, elsewhere) = (lab.fabric.pod("a2")?, lab.fabric.pod("c1")?);
    let mut clients = Vec::new();
    for (port, family) in (12445..).zip(Family::BOTH) {
        for from in [&lab.fabric.pod("a1")?.ns, &lab.fabric.node("node-a")?.ns] {
            clients.push(Client { from: from.clone(), to: (service.cluster_ip(family), 80).into(), port });
        }
    }
    let steps =
        [(vec![own, elsewhere], Some(own)), (vec![elsewhere], None), (vec![own, elsewhere], Some(own))];
    for (endpoints, chosen) in steps {
        let change = || {
            lab.source.apply(&service.clone().endpoints(endpoints))?;
            Family::BOTH.into_iter().try_for_each(|family| {
                await_chosen(lab, "node-a", service.cluster_ip(family), chosen.map(|pod| pod.address(family)))
            })
        };
        through(&clients, change, chosen.map(|pod| pod.name.as_str()))?;
    }
    lab.remove(&service)
}
