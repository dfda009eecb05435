//! Acceptance `pod`: what is tunnelled to a pod is taken in within its own network namespace.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sheave::cluster::Protocol::{Sctp, Tcp, Udp};

use super::Scenario;
use crate::cluster::{Condition, Endpoint, Service};
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Node, Pod};
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::{Load, Request, Server, await_each};
use crate::wait::await_some;
use crate::{kernel, process};

/// How long until nothing of what was removed lingers any more, and a problem is told or over.
const LIMIT: Duration = Duration::from_secs(30);

const ACCEPTANCE: &str = "sheave.io/acceptance";

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "pod-acceptance",
        proves: "a pod takes in what is tunnelled to it itself, over TCP, UDP and SCTP, by the same port and another one, from outside, pods and nodes, its own node among them; a TCP server on the Service port sees the VIP as its own address; after the Service the pod's namespace is as it was",
        run: pod_acceptance,
    },
    Scenario {
        name: "pod-acceptance-changes",
        proves: "a Service changes from acceptance by the node to the pod and back, and endpoints come and go under load without a failed request",
        run: pod_acceptance_changes,
    },
    Scenario {
        name: "pod-acceptance-restarts",
        proves: "the agent of a pod that accepts itself is stopped, started, killed and started again under load and no request fails",
        run: pod_acceptance_restarts,
    },
    Scenario {
        name: "pod-acceptance-vanishes",
        proves: "pods that accept themselves vanish while in use and in the middle of being prepared, and neither other endpoints nor other Services notice",
        run: pod_acceptance_vanishes,
    },
    Scenario {
        name: "pod-acceptance-claims",
        proves: "a pod that gives itself another one's address, and a namespace made in it that does, neither get what is for that pod nor keep it from accepting itself",
        run: pod_acceptance_claims,
    },
    Scenario {
        name: "pod-acceptance-forged",
        proves: "a pod cannot send tunnel packets as from its own node, whether the node or the pod takes them in",
        run: pod_acceptance_forged,
    },
    Scenario {
        name: "pod-acceptance-cleanup",
        proves: "`sheave cleanup` takes out of pods what is in them",
        run: pod_acceptance_cleanup,
    },
];

fn ask(from: &NetNs, request: Request, endpoint: &str, address: IpAddr) -> Result<()> {
    let answer = request.send(from)?;
    ensure!(
        (answer.endpoint.as_str(), answer.peer) == (endpoint, address),
        "{}: {request:?} was answered by {} who saw {}, not by {endpoint} who sees {address}",
        from.name(),
        answer.endpoint,
        answer.peer
    );
    Ok(())
}

/// What can be seen of a namespace, without what is numbered by chance.
fn look(ns: &NetNs) -> Vec<String> {
    let dump = format!("{}\n{}", kernel::dump(ns), kernel::sysctls(ns));
    let mut lines: Vec<String> = dump
        .lines()
        // Of the kernel's own making, with the first tunnel device.
        .filter(|line| !["tunl0", "ip6tnl0"].iter().any(|device| line.contains(device)))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|line| !line.is_empty())
        .collect();
    lines.sort();
    lines
}

/// What can be seen of a pod's namespace once nothing of Sheave's is in it any more: what a Service before left goes after it.
fn untouched(ns: &NetNs) -> Result<Vec<String>> {
    await_some(LIMIT, &format!("{} without anything of Sheave's", ns.name()), || {
        let lines = look(ns);
        let ours = lines.iter().find(|line| line.contains("sheave")).cloned();
        ours.map_or(Ok(lines), Err)
    })
}

fn await_as_before(ns: &NetNs, before: &[String]) -> Result<()> {
    await_some(LIMIT, &format!("{} to be as before", ns.name()), || {
        let now = look(ns);
        let missing = before.iter().filter(|line| !now.contains(line)).map(|line| format!("- {line}"));
        let extra = now.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
        let difference: Vec<String> = missing.chain(extra).collect();
        if difference.is_empty() { Ok(()) } else { Err(difference.join("\n")) }
    })
}

/// Waits until packets pass to a pod that takes them in itself, or do not any more.
pub(super) fn await_passing(lab: &Lab, node: &str, addresses: [IpAddr; 2], wanted: bool) -> Result<()> {
    let ns = &lab.fabric.node(node)?.ns;
    await_some(LIMIT, &format!("packets to pass to {addresses:?}: {wanted}"), || {
        for address in addresses {
            let set = if address.is_ipv4() { "direct4" } else { "direct6" };
            let listed = ns.run(&format!("nft list set inet sheave {set}"));
            let listed = listed.map_err(|error| format!("{error:#}"))?;
            if listed.contains(&format!("{address} .")) != wanted {
                return Err(listed);
            }
        }
        Ok(())
    })
}

fn pod_acceptance(lab: &mut Lab) -> Result<()> {
    let b1 = lab.fabric.pod("b1")?.clone();
    let before = [untouched(&b1.ns)?, look(&lab.fabric.node("node-b")?.ns)];
    let equal = Service::new("pod-equal", 60)
        .all_protocols(POD_PORT, POD_PORT)
        .endpoints([&b1])
        .annotate(ACCEPTANCE, "pod");
    let remapped = Service::new("pod-remapped", 61)
        .all_protocols(80, POD_PORT)
        .endpoints([&b1])
        .annotate("kube-router.io/service.dsr", "tunnel");
    for (service, port) in [(&equal, POD_PORT), (&remapped, 80)] {
        lab.apply(service)?;
        for family in Family::BOTH {
            let vip = service.vip(family);
            let request = |protocol| Request::new(protocol, vip, port);
            for director in &lab.fabric.nodes {
                lab.fabric.steer(vip, Some(director))?;
                for protocol in [Tcp, Udp, Sctp] {
                    ask(&lab.fabric.client, request(protocol), "b1", addresses::client(family))
                        .with_context(|| format!("director {}", director.name))?;
                }
                let own_end = if port == POD_PORT { vip } else { b1.address(family) };
                ask(&lab.fabric.client, request(Tcp).own_end(), "b1", own_end)
                    .with_context(|| format!("director {}", director.name))?;
            }
            lab.fabric.steer(vip, None)?;
            for protocol in [Tcp, Udp, Sctp] {
                for node in &lab.fabric.nodes {
                    ask(&node.ns, request(protocol), "b1", node.address(family))?;
                    ask(&node.pods[1].ns, request(protocol), "b1", node.pods[1].address(family))?;
                }
                // The pod itself: by itself where the VIP is its own, else by way of its node.
                ensure!(request(protocol).send(&b1.ns)?.endpoint == "b1", "{family} {protocol}: itself");
            }
        }
    }
    let inside = b1.ns.run("nft list ruleset")?;
    ensure!(inside.contains("sheave4") && inside.contains("sheave6"), "nothing in the pod:\n{inside}");
    lab.remove(&equal)?;
    lab.remove(&remapped)?;
    await_as_before(&b1.ns, &before[0])?;
    let node = &lab.fabric.node("node-b")?.ns;
    await_some(LIMIT, "the node to be as before", || {
        let settings = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| line.contains(".b1.")).cloned().collect()
        };
        let (was, is) = (settings(&before[1]), settings(&look(node)));
        if was == is { Ok(()) } else { Err(format!("{was:?} became {is:?}")) }
    })
}

fn pod_acceptance_changes(lab: &mut Lab) -> Result<()> {
    let (b1, c1) = (lab.fabric.pod("b1")?.clone(), lab.fabric.pod("c1")?.clone());
    let before = [untouched(&b1.ns)?, untouched(&c1.ns)?];
    let by_node = Service::new("pod-changes", 62)
        .port(Tcp, POD_PORT, POD_PORT)
        .port(Udp, 53, POD_PORT)
        .endpoints([&b1]);
    let by_pod = by_node.clone().annotate(ACCEPTANCE, "pod");
    let vip = by_node.vip(Family::V4);
    for (service, own_end) in
        [(&by_node, b1.address(Family::V4)), (&by_pod, vip), (&by_node, b1.address(Family::V4))]
    {
        lab.apply(service)?;
        // No number of destinations tells that the endpoint's node has followed.
        await_some(LIMIT, "the endpoint to be reached as it should", || {
            let request = Request::new(Tcp, vip, POD_PORT).own_end();
            ask(&lab.fabric.client, request, "b1", own_end).map_err(|error| format!("{error:#}"))
        })?;
        Request::new(Udp, vip, 53).send(&lab.fabric.client)?;
    }
    await_as_before(&b1.ns, &before[0])?;

    lab.apply(&by_pod)?;
    await_passing(lab, "node-b", Family::BOTH.map(|family| b1.address(family)), true)?;
    let loads = [(Tcp, POD_PORT), (Udp, 53)].map(|(protocol, port)| {
        Family::BOTH.map(|family| Load::start(&lab.fabric.client, protocol, by_pod.vip(family), port, 1))
    });
    let loads = loads.into_iter().flatten().collect::<Result<Vec<_>>>()?;
    for _ in 0..2 {
        // As a pod comes: first it is there, then it is ready; and as it goes.
        for condition in [Condition::NotReady, Condition::Ready] {
            let both =
                by_pod.clone().endpoints([Endpoint::from(&b1), Endpoint::from(&c1).condition(condition)]);
            lab.apply(&both)?;
            await_passing(lab, "node-c", Family::BOTH.map(|family| c1.address(family)), true)?;
            await_each(&loads, 20)?;
        }
        lab.apply(&by_pod)?;
        await_each(&loads, 20)?;
    }
    loads.into_iter().try_for_each(Load::none_failed)?;
    lab.remove(&by_pod)?;
    await_as_before(&b1.ns, &before[0])?;
    await_as_before(&c1.ns, &before[1])
}

fn pod_acceptance_restarts(lab: &mut Lab) -> Result<()> {
    let service = Service::new("pod-restarts", 63)
        .port(Tcp, POD_PORT, POD_PORT)
        .port(Udp, 53, POD_PORT)
        .endpoints([lab.fabric.pod("b1")?])
        .annotate(ACCEPTANCE, "pod");
    lab.apply(&service)?;
    let loads = [
        Load::start(&lab.fabric.client, Tcp, service.vip(Family::V4), POD_PORT, 2)?,
        Load::start(&lab.fabric.client, Udp, service.vip(Family::V6), 53, 1)?,
    ];
    for kill in [false, true] {
        if kill {
            lab.kill_agent("node-b")?;
        } else {
            lab.stop_agent("node-b")?;
        }
        await_each(&loads, 30)?;
        lab.start_agent("node-b")?;
        lab.await_applied(&service)?;
        await_each(&loads, 30)?;
    }
    loads.into_iter().try_for_each(Load::none_failed)?;
    lab.remove(&service)
}

/// A pod of node-b that can be deleted.
struct Passing {
    pod: Pod,
    server: Server,
}

impl Passing {
    const NAME: &str = "passing";

    fn create(node: &Node) -> Result<Self> {
        let name = Self::NAME;
        process::run(ip(&["netns", "add", name]), "")?;
        let ns = NetNs::open(name)?;
        let pod = Pod { name: name.into(), node: node.number, number: 9, ns };
        // The kernel takes a namespace that was deleted apart later, and with it the other end of its device.
        await_some(LIMIT, "a device for the pod", || {
            let add = [
                "link", "add", name, "netns", &node.name, "type", "veth", "peer", "name", "eth0", "netns",
                name,
            ];
            process::run(ip(&add), "").map_err(|error| format!("{error:#}"))
        })?;
        let [v4, v6] = Family::BOTH.map(|family| pod.address(family));
        let [from4, from6] = Family::BOTH.map(|family| node.address(family));
        node.ns.ip(&format!(
            "link set {name} up\naddr add 169.254.1.1/32 dev {name} scope link\naddr add fe80::1/64 dev {name} nodad\n\
             route add {v4}/32 dev {name} src {from4}\nroute add {v6}/128 dev {name} src {from6}\n"
        ))?;
        pod.ns.ip(&format!(
            "link set lo up\nlink set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
             route add 169.254.1.1/32 dev eth0\nroute add default via 169.254.1.1 dev eth0\n\
             route add default via fe80::1 dev eth0\n"
        ))?;
        let server = Server::start(&pod.ns, name, &[(Tcp, POD_PORT), (Udp, POD_PORT)])?;
        Ok(Self { pod, server })
    }

    fn delete(self) -> Result<()> {
        let Self { pod, server } = self;
        process::run(ip(&["netns", "del", &pod.name]), "")?;
        drop((server, pod));
        Ok(())
    }
}

fn ip(arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new("ip");
    command.args(arguments);
    command
}

fn pod_acceptance_vanishes(lab: &mut Lab) -> Result<()> {
    let b1 = lab.fabric.pod("b1")?.clone();
    let stable = Service::new("pod-stable", 64)
        .port(Tcp, POD_PORT, POD_PORT)
        .port(Udp, 53, POD_PORT)
        .endpoints([&b1])
        .annotate(ACCEPTANCE, "pod");
    lab.apply(&stable)?;
    let loads = [
        Load::start(&lab.fabric.client, Tcp, stable.vip(Family::V4), POD_PORT, 1)?,
        Load::start(&lab.fabric.client, Udp, stable.vip(Family::V6), 53, 1)?,
    ];
    let fleeting = Service::new("pod-fleeting", 65)
        .port(Tcp, POD_PORT, POD_PORT)
        .port(Udp, 53, POD_PORT)
        .annotate(ACCEPTANCE, "pod");

    // While in use.
    let passing = Passing::create(lab.fabric.node("node-b")?)?;
    let used = fleeting.clone().endpoints([&passing.pod]);
    lab.apply(&used)?;
    // The node takes in what comes while the pod is not ready for it: a connection of that moment would end with it.
    await_passing(lab, "node-b", Family::BOTH.map(|family| passing.pod.address(family)), true)?;
    for family in Family::BOTH {
        let request = Request::new(Tcp, used.vip(family), POD_PORT).own_end();
        ask(&lab.fabric.client, request, Passing::NAME, used.vip(family))?;
    }
    let gone = Family::BOTH.map(|family| passing.pod.address(family));
    passing.delete()?;
    await_passing(lab, "node-b", gone, false)?;
    await_some(LIMIT, "the settings of the device that is gone to be forgotten", || {
        let mut show = std::process::Command::new(lab.on());
        show.args(["node-b", "cat", "/run/sheave/sysctls.json"]);
        let kept = process::run(show, "").map_err(|error| format!("{error:#}"))?;
        if kept.contains(&format!("/{}/", Passing::NAME)) { Err(kept) } else { Ok(()) }
    })?;
    await_each(&loads, 30)?;
    lab.remove(&used)?;

    // While it is being prepared, earlier or later.
    for round in 0..6 {
        let passing = Passing::create(lab.fabric.node("node-b")?)?;
        lab.source.apply(&fleeting.clone().endpoints([&passing.pod]))?;
        for _ in 0..round {
            loads[0].await_answers(1)?;
        }
        passing.delete()?;
        loads[1].await_answers(10)?;
        lab.source.remove(&fleeting)?;
    }
    lab.await_applied(&fleeting)?;
    loads.into_iter().try_for_each(Load::none_failed)?;
    await_some(LIMIT, "no problem to be left", || {
        let status = lab.status("node-b").map_err(|error| format!("{error:#}"))?;
        let problems = status["problems"].to_string();
        if problems == "[]" { Ok(()) } else { Err(problems) }
    })?;
    lab.remove(&stable)
}

fn pod_acceptance_claims(lab: &mut Lab) -> Result<()> {
    let (b1, b2) = (lab.fabric.pod("b1")?.clone(), lab.fabric.pod("b2")?.clone());
    let before = [untouched(&b1.ns)?, untouched(&b2.ns)?];
    let [v4, v6] = Family::BOTH.map(|family| b1.address(family));
    let claim = format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n");
    b2.ns.ip(&claim)?;
    // What a process in the pod can make: seen by whoever sees the processes of the host, as the lab's agents do.
    let mut nested = std::process::Command::new("unshare");
    nested.args(["--net", "sh", "-c"]).arg(format!(
        "ip link set lo up && ip addr add {v4}/32 dev lo && ip addr add {v6}/128 dev lo nodad && exec sleep 600"
    ));
    let nested = b2.ns.daemon(nested, std::path::Path::new("/dev/null"))?;
    let service = Service::new("pod-claims", 67)
        .port(Tcp, POD_PORT, POD_PORT)
        .endpoints([&b1])
        .annotate(ACCEPTANCE, "pod");
    lab.apply(&service)?;
    await_passing(lab, "node-b", [v4, v6], true)?;
    for family in Family::BOTH {
        let vip = service.vip(family);
        ask(&lab.fabric.client, Request::new(Tcp, vip, POD_PORT).own_end(), "b1", vip)?;
    }
    ensure!(!look(&b2.ns).iter().any(|line| line.contains("sheave")), "the other pod was prepared");
    lab.remove(&service)?;
    drop(nested);
    b2.ns.ip(&claim.replace(" add ", " del ").replace(" nodad", ""))?;
    await_as_before(&b1.ns, &before[0])?;
    await_as_before(&b2.ns, &before[1])
}

/// Whether a tunnel packet that a pod makes, from an address that it gives itself, is taken in for another pod: the answer comes.
fn is_taken_in(from: &Pod, source: IpAddr, to: &Pod, vip: IpAddr) -> Result<bool> {
    let family = Family::of(vip);
    let (bits, kind) = match family {
        Family::V4 => (32, "ipip"),
        Family::V6 => (128, "ip6tnl mode ip6ip6 encaplimit none"),
    };
    let (endpoint, own) = (to.address(family), from.address(family));
    from.ns.ip(&format!(
        "addr add {source}/{bits} dev lo\nlink add forge type {kind} local {source} remote {endpoint}\n\
         link set forge up\nroute add {vip}/{bits} dev forge src {own}\n"
    ))?;
    let answer = Request::new(Udp, vip, 53).within(Duration::from_secs(2)).send(&from.ns);
    from.ns.ip(&format!("link del forge\naddr del {source}/{bits} dev lo\n"))?;
    Ok(answer.is_ok())
}

fn pod_acceptance_forged(lab: &mut Lab) -> Result<()> {
    let (b1, b2) = (lab.fabric.pod("b1")?.clone(), lab.fabric.pod("b2")?.clone());
    let before = untouched(&b2.ns)?;
    let node = lab.fabric.node("node-b")?;
    // As where both are on one bridge, and it is set so for the other one.
    node.ns.sysctl(&[("ipv4/conf/b2/accept_local", "1")])?;
    for acceptance in ["node", "pod"] {
        let service = Service::new("pod-forged", 68)
            .port(Udp, 53, POD_PORT)
            .endpoints([&b1])
            .annotate(ACCEPTANCE, acceptance);
        lab.apply(&service)?;
        await_passing(lab, "node-b", Family::BOTH.map(|family| b1.address(family)), acceptance == "pod")?;
        for family in Family::BOTH {
            let vip = service.vip(family);
            let [own, other] =
                ["node-b", "node-a"].map(|name| lab.fabric.node(name).map(|node| node.address(family)));
            let what = format!("{family}, acceptance {acceptance}");
            ensure!(!is_taken_in(&b2, own?, &b1, vip)?, "{what}: as from its own node it got in");
            // Only the fabric could tell: so these packets are such as get in.
            ensure!(is_taken_in(&b2, other?, &b1, vip)?, "{what}: as from another node it did not get in");
        }
        lab.remove(&service)?;
    }
    lab.fabric.node("node-b")?.ns.sysctl(&[("ipv4/conf/b2/accept_local", "0")])?;
    await_as_before(&b2.ns, &before)
}

fn pod_acceptance_cleanup(lab: &mut Lab) -> Result<()> {
    let b1 = lab.fabric.pod("b1")?.clone();
    let before = untouched(&b1.ns)?;
    let service = Service::new("pod-cleanup", 66)
        .port(Tcp, POD_PORT, POD_PORT)
        .port(Udp, 53, POD_PORT)
        .endpoints([&b1])
        .annotate(ACCEPTANCE, "pod");
    lab.apply(&service)?;
    ensure!(look(&b1.ns) != before, "nothing of it is in the pod");
    lab.stop_agent("node-b")?;
    let mut command = lab.sheave("node-b", "cleanup");
    command.arg("--config").arg(lab.config("node-b"));
    process::run(command, "")?;
    await_as_before(&b1.ns, &before)?;
    lab.start_agent("node-b")?;
    lab.await_applied(&service)?;
    lab.remove(&service)?;
    await_as_before(&b1.ns, &before)
}
