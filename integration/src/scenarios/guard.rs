//! What must not get through.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use sheave::cluster::Protocol::{Tcp, Udp};
use sheave_ipvs::{ServiceEntry, ServiceKey};

use super::Scenario;
use super::ask::refused;
use crate::cluster::Service;
use crate::fabric::Direction;
use crate::fabric::addresses::{self, Family};
use crate::kernel;
use crate::lab::{HOST_PORT, Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::Request;
use crate::wait::{await_some, await_until};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "guard-daemon",
        proves: "a daemon of the node that listens on all addresses cannot be reached through a VIP",
        run: guard_daemon,
    },
    Scenario { name: "guard-ping", proves: "a ping to a VIP is answered", run: guard_ping },
    Scenario {
        name: "no-endpoints",
        proves: "a Service without endpoints refuses at once, for clients outside, in pods and on nodes",
        run: no_endpoints,
    },
    Scenario {
        name: "stale-director",
        proves: "a director that did not hear of a change is refused at once by the node whose endpoint is gone, and the packet goes no further",
        run: stale_director,
    },
    Scenario {
        name: "foreign-tunnel",
        proves: "a tunnelled packet from an address that is not a node's never reaches an endpoint",
        run: foreign_tunnel,
    },
];

fn guard_daemon(lab: &mut Lab) -> Result<()> {
    let service = Service::new("guarded", 30).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        for node in &lab.fabric.nodes {
            let daemon = Request::new(Tcp, node.address(family), HOST_PORT);
            let answer = daemon.send(&lab.fabric.client)?;
            ensure!(answer.endpoint == node.name, "the daemon on {} is not there to begin with", node.name);
            lab.fabric.steer(service.vip(family), Some(node))?;
            for protocol in [Tcp, Udp] {
                refused(&lab.fabric.client, protocol, service.vip(family), HOST_PORT)?;
                refused(&node.ns, protocol, service.vip(family), HOST_PORT)?;
                refused(&node.pods[0].ns, protocol, service.cluster_ip(family), HOST_PORT)?;
            }
        }
        lab.fabric.steer(service.vip(family), None)?;
    }
    lab.remove(&service)
}

fn guard_ping(lab: &mut Lab) -> Result<()> {
    let service = Service::new("pinged", 31).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        for node in &lab.fabric.nodes {
            lab.fabric.steer(vip, Some(node))?;
            lab.fabric.client.run(&format!("ping -c 1 -W 4 {vip}"))?;
        }
        lab.fabric.steer(vip, None)?;
        let pod = &lab.fabric.pod("a1")?.ns;
        pod.run(&format!("ping -c 1 -W 4 {}", service.cluster_ip(family)))?;
    }
    lab.remove(&service)
}

fn no_endpoints(lab: &mut Lab) -> Result<()> {
    let service = Service::new("empty", 32).port(Tcp, 80, POD_PORT).port(Udp, 80, POD_PORT);
    let full = service.clone().endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&full)?;
    lab.apply(&service)?;
    // While its last endpoint drains, IPVS itself refuses, and over IPv6 that takes a second.
    for node in &lab.fabric.nodes {
        await_until(Duration::from_secs(30), "the virtual servers are gone", || {
            let gone =
                |entry: &ServiceEntry| Family::BOTH.iter().all(|f| !listens_on(entry, service.vip(*f)));
            kernel::virtual_servers(&node.ns).is_ok_and(|servers| servers.iter().all(gone))
        })?;
    }
    for family in Family::BOTH {
        let vip = service.vip(family);
        for node in &lab.fabric.nodes {
            lab.fabric.steer(vip, Some(node))?;
            for protocol in [Tcp, Udp] {
                refused(&lab.fabric.client, protocol, vip, 80)?;
                refused(&node.ns, protocol, service.cluster_ip(family), 80)?;
                refused(&node.pods[0].ns, protocol, service.cluster_ip(family), 80)?;
            }
        }
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}

fn listens_on(entry: &ServiceEntry, vip: IpAddr) -> bool {
    matches!(entry.service.key, ServiceKey::Address { address, .. } if address == vip)
}

fn stale_director(lab: &mut Lab) -> Result<()> {
    let before = Service::new("stale", 33)
        .port(Tcp, 80, POD_PORT)
        .port(Udp, 80, POD_PORT)
        .endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&before)?;
    // Its kernel goes on with what it knows.
    lab.kill_agent("node-a")?;
    let after = before.clone().endpoints([lab.fabric.pod("c1")?]);
    lab.apply(&after)?;
    let limit = Duration::from_secs(20);
    for family in Family::BOTH {
        let vip = before.vip(family);
        lab.fabric.steer(vip, Some(lab.fabric.node("node-a")?))?;
        for protocol in [Tcp, Udp] {
            // Acceptance of an endpoint that drains may end a moment after its last connection.
            await_some(limit, "a refusal by node-b", || {
                refused(&lab.fabric.client, protocol, vip, 80).map_err(|error| format!("{error:#}"))
            })?;
            lab.fabric.reset_counters()?;
            refused(&lab.fabric.client, protocol, vip, 80)?;
            let endpoint = lab.fabric.pod("b1")?.address(family);
            let arrived = lab.fabric.packets(Direction::To, "node-b", endpoint)?;
            ensure!(
                arrived >= 1,
                "{family} {protocol}: no tunnelled packet arrived at node-b, so nothing was shown"
            );
            ensure!(
                arrived <= 2,
                "{family} {protocol}: {arrived} tunnelled packets arrived at node-b for one request"
            );
            for (direction, node) in [(Direction::From, "node-b"), (Direction::To, "node-c")] {
                let others = lab.fabric.counted(direction, family)?;
                let looped: Vec<_> =
                    others.iter().filter(|c| c.node == node && tunnelled(&c.protocol)).collect();
                ensure!(looped.is_empty(), "{family} {protocol}: tunnelled again: {looped:?}");
            }
        }
        lab.fabric.steer(vip, None)?;
    }
    lab.start_agent("node-a")?;
    lab.await_applied(&after)?;
    lab.remove(&after)
}

/// IPv4 in IPv4 or IPv6 in IPv6, by name or number.
fn tunnelled(protocol: &str) -> bool {
    matches!(protocol, "ipencap" | "ipip" | "4" | "ipv6" | "41")
}

fn foreign_tunnel(lab: &mut Lab) -> Result<()> {
    let service = Service::new("foreign", 34).port(Udp, 80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    for family in Family::BOTH {
        let (vip, endpoint) = (service.vip(family), lab.fabric.pod("b1")?.address(family));
        let (kind, encaplimit) = match family {
            Family::V4 => ("ipip", ""),
            Family::V6 => ("ip6tnl mode ip6ip6", " encaplimit none"),
        };
        let tunnel = |ns: &NetNs, local: IpAddr| {
            ns.ip(&format!(
                "link add forged type {kind} local {local} remote {endpoint}{encaplimit}\nlink set forged up\nroute add {vip}/{} dev forged src {local}\n",
                family.bits()
            ))
        };
        let limit = Duration::from_millis(1500);
        // From a node's address it is a director's packet: taken in.
        let control = lab.fabric.node("node-c")?;
        let probe = Request::new(Udp, vip, 80).within(limit);
        tunnel(&lab.fabric.client, addresses::client(family))?;
        lab.fabric.reset_counters()?;
        let answer = probe.send(&lab.fabric.client);
        lab.fabric.client.ip("link del forged\n")?;
        let arrived = lab.fabric.packets(Direction::To, "node-b", endpoint)?;
        ensure!(arrived >= 1, "{family}: the forged packet did not arrive at node-b, so nothing was shown");
        if let Ok(answer) = answer {
            bail!(
                "{family}: a tunnelled packet from {} was answered by {}",
                addresses::client(family),
                answer.endpoint
            );
        }
        lab.fabric.steer(vip, Some(control))?;
        let answer = probe.send(&lab.fabric.client)?;
        ensure!(answer.endpoint == "b1", "through node-c: answered by {}", answer.endpoint);
        lab.fabric.steer(vip, None)?;
    }
    lab.remove(&service)
}
