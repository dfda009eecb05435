//! Agents that follow an API server, and write to it. BGP peers are told by annotations of the Nodes alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave::cluster::ACCEPTS_ANNOTATION;
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};
use sheave_apiserver::{Reach, Resource};

use super::Scenario;
use super::loads::BothLoads;
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::kernel;
use crate::lab::{Lab, POD_PORT};
use crate::process;
use crate::source::{PEERS, peers};
use crate::traffic::{Request, get};
use crate::wait::{await_some, await_until};

/// How long an agent may take to follow, or to write.
const LIMIT: Duration = Duration::from_secs(30);

/// What the agents write on their Nodes.
const ACCEPTED: Option<&str> = Some("ipip,gue");

/// An address that the agents' configurations allow nobody to claim.
const NOT_ALLOWED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 99));

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "api-cluster",
        proves: "three agents follow an API server, each Node says what it accepts, and traffic of all protocols is answered; a denied external IP is one Event for the whole cluster",
        run: api_cluster,
    },
    Scenario {
        name: "api-peers",
        proves: "peers come and go by annotations of the Node under load without a failed request and without a reset of the other sessions; a wrong annotation changes nothing and is an Event",
        run: api_peers,
    },
    Scenario {
        name: "api-health",
        proves: "asked from outside, metrics tell of the watches, and /healthz follows the Node: about to be deleted, it is 503, while /livez stays 200",
        run: api_health,
    },
    Scenario {
        name: "accepts-follows",
        proves: "after `sheave cleanup` on a node the directors reach its endpoints by nat, and by tunnel again once an agent is back, without a failed request",
        run: accepts_follows,
    },
    Scenario {
        name: "accepts-broken",
        proves: "a node whose tunnel device cannot be made says so, directors reach its endpoints by nat without a failed request, and by tunnel again once it is mended",
        run: accepts_broken,
    },
    Scenario {
        name: "api-server-away",
        proves: "the API server goes silent, then refuses, while agents are restarted and killed, then comes back without its history and with other objects: no request fails, no virtual server is removed, agents say so and catch up",
        run: api_server_away,
    },
];

/// A Service with one endpoint on each node.
fn everywhere(lab: &Lab, name: &str, number: u8) -> Result<Service> {
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    Ok(Service::new(name, number).all_protocols(80, POD_PORT).endpoints(pods))
}

fn api_cluster(lab: &mut Lab) -> Result<()> {
    let server = lab.source.server()?;
    let service = everywhere(lab, "followed", 60)?;
    lab.apply(&service)?;
    for node in lab.node_names() {
        server.await_annotation(LIMIT, &node, ACCEPTS_ANNOTATION, ACCEPTED)?;
    }
    await_forwarding(lab, &service, &["node-a", "node-b", "node-c"], true)?;
    for family in Family::BOTH {
        for protocol in [Tcp, Udp, Sctp] {
            for _ in 0..6 {
                Request::new(protocol, service.vip(family), 80).send(&lab.fabric.client)?;
            }
            for node in &lab.fabric.nodes {
                Request::new(protocol, service.cluster_ip(family), 80).send(&node.ns)?;
                Request::new(protocol, service.cluster_ip(family), 80).send(&node.pods[1].ns)?;
            }
        }
    }

    let denied = Service::new("denied", 61)
        .port(Tcp, 80, POD_PORT)
        .external_ip(NOT_ALLOWED)
        .endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&denied)?;
    let events = || server.events("Service", &denied.name, "ExternalIPNotAllowed");
    await_until(LIMIT, "an Event about the denied external IP", || !events().is_empty())?;
    let refused = || {
        let key = ("create".to_owned(), "events".to_owned(), 409);
        server.api().counts().get(&key).copied().unwrap_or_default()
    };
    let before = refused();
    // What an agent has to tell it tells in order: with an Event about its own Node, it has passed this one by.
    for node in lab.node_names() {
        server.annotate(&node, "sheave.io/unheard-of", Some("yes"))?;
        await_until(LIMIT, &format!("an Event about the annotation of {node}"), || {
            !server.events("Node", &node, "UnknownAnnotation").is_empty()
        })?;
        server.annotate(&node, "sheave.io/unheard-of", None)?;
    }
    let seen = events();
    ensure!(seen.len() == 1, "{} Events: {seen:#?}", seen.len());
    ensure!(refused() == before, "several agents told it");
    let note = seen[0]["note"].as_str().unwrap_or_default();
    ensure!(note.contains(&NOT_ALLOWED.to_string()), "{note}");
    ensure!(seen[0]["regarding"]["uid"] == denied.name, "{:#}", seen[0]);
    lab.remove(&denied)?;
    lab.remove(&service)
}

/// Waits until the directors named reach all endpoints by tunnel (or: some by nat), as IPVS's destinations show: those of nat are
/// not the endpoints' own addresses.
pub(super) fn await_forwarding(lab: &Lab, service: &Service, directors: &[&str], tunnel: bool) -> Result<()> {
    let what = if tunnel { "tunnel alone" } else { "nat" };
    await_some(LIMIT, &format!("directors that use {what} for Service {}", service.name), || {
        for name in directors {
            let node = lab.fabric.node(name).map_err(|error| error.to_string())?;
            let servers = kernel::virtual_servers(&node.ns).map_err(|error| format!("{error:#}"))?;
            for family in Family::BOTH {
                let vip = SocketAddr::new(service.vip(family), 80);
                let of_pods = service
                    .endpoints
                    .iter()
                    .map(|endpoint| SocketAddr::new(endpoint.address(family), POD_PORT))
                    .collect::<Vec<_>>();
                let active = kernel::active(&servers, Tcp, vip);
                let all = active.len() == of_pods.len();
                let by_tunnel = active.iter().filter(|address| of_pods.contains(address)).count();
                if !all || (by_tunnel == of_pods.len()) != tunnel {
                    return Err(format!("{name}: {vip}: {active:?}"));
                }
            }
        }
        Ok(())
    })
}

/// When the sessions of a node with its peers were established, by the peer's address.
fn sessions(lab: &Lab, node: &str) -> Result<BTreeMap<String, Instant>> {
    let now = Instant::now();
    let status = lab.status(node)?;
    let peers = status["peers"].as_array().context("peers")?;
    let since = |peer: &Value| {
        let uptime = Duration::from_secs(peer["uptimeSeconds"].as_u64()?);
        Some((peer["address"].as_str()?.to_owned(), now.checked_sub(uptime)?))
    };
    Ok(peers.iter().filter_map(since).collect())
}

/// An error if a session with one of `leaves` is not the one that it was `before`.
fn ensure_not_reset(lab: &Lab, node: &str, leaves: &[u8], before: &BTreeMap<String, Instant>) -> Result<()> {
    let now = sessions(lab, node)?;
    let number = lab.fabric.node(node)?.number;
    for leaf in leaves {
        for family in Family::BOTH {
            let peer = addresses::leaf_link(family, *leaf, number).to_string();
            let (was, is) = (before.get(&peer), now.get(&peer));
            let (Some(was), Some(is)) = (was, is) else {
                anyhow::bail!("session of {node} with {peer}: {was:?}, then {is:?}");
            };
            // Uptimes are told in whole seconds.
            let later = is.saturating_duration_since(*was);
            ensure!(
                later < Duration::from_millis(2500),
                "session of {node} with {peer} is {later:?} younger"
            );
        }
    }
    Ok(())
}

fn api_peers(lab: &mut Lab) -> Result<()> {
    const NODE: &str = "node-a";
    let server = lab.source.server()?;
    let service = everywhere(lab, "edited", 62)?;
    lab.apply(&service)?;
    // A session that began just now would look the same as one that was reset since.
    await_some(LIMIT, "sessions of some age", || {
        let sessions = sessions(lab, NODE).map_err(|error| format!("{error:#}"))?;
        let old = sessions.values().filter(|since| since.elapsed() > Duration::from_secs(4)).count();
        if old == 4 { Ok(()) } else { Err(format!("{old} of 4")) }
    })?;
    let before = sessions(lab, NODE)?;
    let loads = BothLoads::start(lab, &service)?;
    let all_peers = peers(lab.fabric.node(NODE)?, |_| true);
    let directs = |lab: &Lab, leaf: usize| -> Result<bool> {
        let leaf = &lab.fabric.leaves[leaf];
        let vips = service.vips();
        let directors =
            vips.iter().map(|vip| lab.fabric.directors(leaf, *vip)).collect::<Result<Vec<_>>>()?;
        Ok(directors.iter().all(|directors| directors.contains(NODE)))
    };

    server.annotate(NODE, PEERS, Some(&peers(lab.fabric.node(NODE)?, |leaf| leaf == 1)))?;
    await_until(LIMIT, "the end of node-a's sessions with leaf2", || matches!(directs(lab, 1), Ok(false)))?;
    loads.await_answers(30)?;
    ensure_not_reset(lab, NODE, &[1], &before).context("a peer was taken away")?;
    server.annotate(NODE, PEERS, Some(&all_peers))?;
    lab.await_applied(&service)?;
    loads.await_answers(30)?;
    ensure_not_reset(lab, NODE, &[1], &before).context("a peer was added")?;
    await_until(LIMIT, "an Event about a session", || !server.events("Node", NODE, "PeerUp").is_empty())?;

    let before = sessions(lab, NODE)?;
    server.annotate(NODE, "sheave.io/communities", Some("64512:77"))?;
    for leaf in &lab.fabric.leaves {
        await_some(LIMIT, &format!("the community on {}", leaf.name()), || {
            let route = leaf.birdc(&format!("show route for {} all", service.vip(Family::V6)));
            let route = route.map_err(|error| format!("{error:#}"))?;
            if route.contains("(64512,77)") { Ok(()) } else { Err(route) }
        })?;
    }
    ensure_not_reset(lab, NODE, &[1, 2], &before).context("a community was added")?;
    server.annotate(NODE, "sheave.io/communities", None)?;

    server.annotate(NODE, PEERS, Some("- {address: leaf1, asn: 65001}\n"))?;
    await_until(LIMIT, "an Event about the wrong annotation", || {
        server.events("Node", NODE, "InvalidAnnotation").len() == 1
    })?;
    await_page(
        lab,
        NODE,
        Family::V4,
        (METRICS, "/metrics"),
        200,
        "sheave_warnings{reason=\"InvalidAnnotation\"} 1\n",
    )?;
    ensure!(directs(lab, 0)? && directs(lab, 1)?, "a wrong annotation ended a session");
    ensure_not_reset(lab, NODE, &[1, 2], &before).context("a wrong annotation")?;
    loads.await_answers(30)?;
    server.annotate(NODE, PEERS, Some(&all_peers))?;
    let told = |lab: &Lab| -> Result<bool> {
        let warnings = lab.status(NODE)?["warnings"].to_string();
        Ok(warnings.contains("InvalidAnnotation"))
    };
    await_until(LIMIT, "the end of the warning", || matches!(told(lab), Ok(false)))?;
    ensure_not_reset(lab, NODE, &[1, 2], &before).context("the annotation was mended")?;
    loads.none_failed()?;
    lab.remove(&service)
}

/// Port of `/healthz`.
const HEALTH: u16 = 10256;
/// Port of `/metrics`.
const METRICS: u16 = 10249;
/// In metrics: the API server tells of Services.
const WATCHED: &str = "sheave_watch_up{resource=\"services\"} 1\n";
/// In metrics: it does not.
const UNWATCHED: &str = "sheave_watch_up{resource=\"services\"} 0\n";

/// Asks a node's page from outside until status and body are as expected.
fn await_page(
    lab: &Lab,
    node: &str,
    family: Family,
    (port, path): (u16, &str),
    status: u16,
    contains: &str,
) -> Result<()> {
    let address = SocketAddr::new(lab.fabric.node(node)?.address(family), port);
    await_some(LIMIT, &format!("http://{address}{path}: {status} with {contains:?}"), || {
        match get(&lab.fabric.client, address, path) {
            Ok(page) if page.status == status && page.body.contains(contains) => Ok(()),
            Ok(page) => Err(format!("{}: {}", page.status, page.body)),
            Err(error) => Err(format!("{error:#}")),
        }
    })
}

fn api_health(lab: &mut Lab) -> Result<()> {
    const NODE: &str = "node-b";
    let server = lab.source.server()?;
    let mut node = server.api().object(Resource::Nodes, None, NODE).context(NODE)?;
    let whole = node.clone();
    node["spec"]["taints"] =
        serde_json::json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    for family in Family::BOTH {
        await_page(lab, NODE, family, (HEALTH, "/readyz"), 200, "")?;
        await_page(lab, NODE, family, (HEALTH, "/healthz"), 200, "\"nodeEligible\":true")?;
        await_page(lab, NODE, family, (METRICS, "/metrics"), 200, WATCHED)?;
        server.api().apply(node.clone())?;
        await_page(lab, NODE, family, (HEALTH, "/healthz"), 503, "\"nodeEligible\":false")?;
        await_page(lab, NODE, family, (HEALTH, "/livez"), 200, "")?;
        server.api().apply(whole.clone())?;
        await_page(lab, NODE, family, (HEALTH, "/healthz"), 200, "\"nodeEligible\":true")?;
    }
    Ok(())
}

fn accepts_follows(lab: &mut Lab) -> Result<()> {
    const NODE: &str = "node-c";
    let others = ["node-a", "node-b"];
    let server = lab.source.server()?;
    let service = everywhere(lab, "accepted", 64)?;
    lab.apply(&service)?;
    server.await_annotation(LIMIT, NODE, ACCEPTS_ANNOTATION, ACCEPTED)?;
    await_forwarding(lab, &service, &others, true)?;
    let loads = BothLoads::start(lab, &service)?;

    // It ceases to be a director first: no router sends it packets that nobody would take.
    server.annotate(NODE, PEERS, None)?;
    await_some(LIMIT, "routers that pass by node-c", || {
        for leaf in &lab.fabric.leaves {
            for family in Family::BOTH {
                let directors = lab.fabric.directors(leaf, service.vip(family));
                let directors = directors.map_err(|error| format!("{error:#}"))?;
                if directors.contains(NODE) {
                    return Err(format!("{}: {directors:?}", leaf.name()));
                }
            }
        }
        Ok(())
    })?;
    lab.stop_agent(NODE)?;
    let mut cleanup = lab.sheave(NODE, "cleanup");
    cleanup.arg("--config").arg(lab.config(NODE)).arg("--node").arg(NODE);
    cleanup.arg("--kubeconfig").arg(server.kubeconfig());
    let done = process::run(cleanup, "")?;
    ensure!(done.contains("removed annotation sheave.io/accepts"), "{done}");
    ensure!(server.annotation(NODE, ACCEPTS_ANNOTATION).is_none(), "the annotation is still there");
    await_forwarding(lab, &service, &others, false)?;
    loads.await_answers(100)?;

    lab.start_agent(NODE)?;
    server.await_annotation(LIMIT, NODE, ACCEPTS_ANNOTATION, ACCEPTED)?;
    await_forwarding(lab, &service, &others, true)?;
    server.annotate(NODE, PEERS, Some(&peers(lab.fabric.node(NODE)?, |_| true)))?;
    lab.await_applied(&service)?;
    loads.await_answers(100)?;
    loads.none_failed()?;
    lab.remove(&service)
}

fn accepts_broken(lab: &mut Lab) -> Result<()> {
    const NODE: &str = "node-c";
    let others = ["node-a", "node-b"];
    let server = lab.source.server()?;
    let service = everywhere(lab, "broken", 68)?;
    lab.apply(&service)?;
    server.await_annotation(LIMIT, NODE, ACCEPTS_ANNOTATION, ACCEPTED)?;
    await_forwarding(lab, &service, &others, true)?;
    // Somebody else's device has the name: it is left alone.
    lab.fabric.node(NODE)?.ns.ip("link del sheave4\nlink add sheave4 type dummy\n")?;
    server.await_annotation(2 * LIMIT, NODE, ACCEPTS_ANNOTATION, None)?;
    await_forwarding(lab, &service, &others, false)?;
    // By nat a connection belongs to its director, and would not outlive the node's coming back among these.
    for family in Family::BOTH {
        lab.fabric.steer(service.vip(family), Some(lab.fabric.node(others[0])?))?;
    }
    let loads = BothLoads::start(lab, &service)?;
    loads.await_answers(100)?;
    lab.fabric.node(NODE)?.ns.ip("link del sheave4\n")?;
    // A minute after it is whole.
    server.await_annotation(4 * LIMIT, NODE, ACCEPTS_ANNOTATION, ACCEPTED)?;
    await_forwarding(lab, &service, &others, true)?;
    lab.await_applied(&service)?;
    loads.await_answers(100)?;
    loads.none_failed()?;
    for family in Family::BOTH {
        lab.fabric.steer(service.vip(family), None)?;
    }
    lab.remove(&service)
}

/// Waits until the agent of a node says of all its watches that they are so, with an error that contains this.
fn await_watches(lab: &Lab, node: &str, limit: Duration, state: &str, error: &str) -> Result<()> {
    await_some(limit, &format!("watches of {node} that are {state}"), || {
        let status = lab.status(node).map_err(|error| format!("{error:#}"))?;
        let watches = status["watches"].as_array().filter(|watches| !watches.is_empty());
        let so = |watch: &Value| {
            watch["state"] == state && watch["error"].as_str().unwrap_or_default().contains(error)
        };
        match watches {
            Some(watches) if watches.iter().all(so) => Ok(()),
            _ => Err(status["watches"].to_string()),
        }
    })
}

/// How many connections IPVS has counted for each virtual server of a node: one that is removed and added again begins anew.
fn counted(lab: &Lab, node: &str) -> Result<BTreeMap<String, u64>> {
    let servers = kernel::virtual_servers(&lab.fabric.node(node)?.ns)?;
    Ok(servers
        .into_iter()
        .map(|entry| (format!("{:?}", entry.service.key), entry.stats.connections))
        .collect())
}

fn api_server_away(lab: &mut Lab) -> Result<()> {
    let server = lab.source.server()?;
    let nodes = lab.node_names();
    let service = everywhere(lab, "lasting", 65)?;
    let changing = everywhere(lab, "changing", 66)?;
    for service in [&service, &changing] {
        lab.apply(service)?;
    }
    let loads = BothLoads::start(lab, &service)?;
    loads.await_answers(100)?;
    // Every virtual server of every node has counted something.
    for node in &lab.fabric.nodes {
        for (service, family) in
            [&service, &changing].into_iter().flat_map(|it| Family::BOTH.map(|f| (it, f)))
        {
            for protocol in [Tcp, Udp, Sctp] {
                Request::new(protocol, service.vip(family), 80).send(&node.ns)?;
                Request::new(protocol, service.cluster_ip(family), 80).send(&node.ns)?;
            }
        }
    }
    let before = nodes.iter().map(|node| counted(lab, node)).collect::<Result<Vec<_>>>()?;

    // Its packets vanish on the way: half-open connections.
    let address = addresses::external(Family::V4);
    let silence = format!(
        "table inet silence {{
           chain forward {{ type filter hook forward priority 0; ip saddr {address} drop; ip daddr {address} drop; }}
         }}"
    );
    lab.fabric.spine.run_with_input("nft -f -", &silence)?;
    for node in &nodes {
        // TCP's keep-alive takes 30 s to notice.
        await_watches(lab, node, 2 * LIMIT, "down", "")?;
        await_page(lab, node, Family::V6, (HEALTH, "/healthz"), 200, "watchesDown")?;
        await_page(lab, node, Family::V6, (METRICS, "/metrics"), 200, UNWATCHED)?;
    }
    loads.await_answers(30)?;
    server.api().set_reach(Reach::Refused);
    lab.fabric.spine.run("nft delete table inet silence")?;
    for node in &nodes {
        await_watches(lab, node, 2 * LIMIT, "down", "refused")?;
    }
    loads.await_answers(30)?;

    // An upgrade, and a crash.
    for (node, kill) in [("node-b", false), ("node-c", true)] {
        if kill {
            lab.kill_agent(node)?;
        } else {
            lab.stop_agent(node)?;
        }
        loads.await_answers(30)?;
        lab.start_agent(node)?;
        await_some(
            2 * LIMIT,
            &format!("sessions of {node}, whose agent knows only what it announced before"),
            || {
                let established = sessions(lab, node).map_err(|error| format!("{error:#}"))?.len();
                if established == 4 { Ok(()) } else { Err(format!("{established} of 4")) }
            },
        )?;
        lab.await_applied(&service)?;
        // The leaves would keep its routes for a while without being told any: it must say that it tells them.
        let status = lab.status(node)?;
        ensure!(status["ready"] == false, "{node} is ready without an API server");
        let announcements = status["announcements"].as_array().context("no announcements in status")?;
        ensure!(
            status["holding"] == true
                && !announcements.is_empty()
                && announcements.iter().all(|announcement| announcement["announced"] == true),
            "{node} does not announce what it announced before: {announcements:?}"
        );
        await_page(lab, node, Family::V4, (HEALTH, "/healthz"), 200, "watchesDown")?;
        loads.await_answers(30)?;
    }

    // Meanwhile the cluster goes on, and forgets how it came there.
    let changed = changing.clone().endpoints([lab.fabric.pod("a2")?, lab.fabric.pod("b1")?]);
    let new = everywhere(lab, "new", 67)?;
    for service in [&changed, &new] {
        lab.source.apply(service)?;
    }
    server.api().compact();
    server.api().set_reach(Reach::Up);
    for node in &nodes {
        // The longest pause between two attempts, and the list.
        await_watches(lab, node, 2 * LIMIT, "watching", "")?;
    }
    for service in [&changed, &new] {
        lab.await_applied(service)?;
    }
    loads.await_answers(30)?;
    for (node, before) in nodes.iter().zip(before) {
        let now = counted(lab, node)?;
        for (key, count) in before {
            let since = now.get(&key);
            ensure!(since >= Some(&count), "{node}: {key}: {count} connections, then {since:?}");
        }
    }
    loads.measured(&mut lab.figures)?;
    for service in [&service, &changed, &new] {
        lab.remove(service)?;
    }
    Ok(())
}
