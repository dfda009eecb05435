//! The network of the lab: routers, nodes and pods as network namespaces.
//!
//! ```text
//!   client ──┐       ┌── leaf1 (BIRD, AS 65001) ──┬── node-a ── pods a1, a2
//!            ├ spine ┤             ╲ ╱            ├── node-b ── pods b1, b2
//! external ──┘       └── leaf2 (BIRD, AS 65002) ──┴── node-c ── pods c1, c2
//! ```
//!
//! Every node has a link to each leaf and its address on its loopback device, as where routing reaches down to the hosts.
//! The leaves know nodes and pods by static routes and learn virtual IPs from the agents (AS 64512), several paths at once;
//! the spine spreads over both leaves. The links' own addresses are known to nobody else, so that a packet
//! that takes one as its source gets no answer. All links are veth with an MTU of 1500, all have IPv4 and IPv6.
//!
//! With [`Routing::Bgp`] the spine learns of the leaves, and each leaf of the other by it, what nodes announce, their own addresses and pods too; and the
//! nodes learn of the leaves which way out there is. BFD watches every session. So whatever fails, everything finds another way. Static routes are what is
//! used while there is no session. BIRD takes a route away before it puts another in its place: what comes in between is dropped, and not refused.

pub mod addresses;
mod bird;
mod clock;
mod counters;
mod silence;
mod strict;
mod witness;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::netns::NetNs;
use crate::process;
use addresses::Family;
use bird::Bird;

pub use clock::RouteClock;
pub use counters::{Counted, Direction};
pub use silence::Silence;
pub use witness::Witness;

/// Number of leaf routers.
pub const LEAVES: u8 = 2;

/// Pods of each node.
pub const PODS: u8 = 2;

/// How the routers know where nodes and pods are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// By static routes.
    Static,
    /// By BGP, watched by BFD.
    Bgp {
        /// What the leaves make of it.
        watch: Watch,
        /// Between packets of BFD; three that do not come are silence.
        interval: Duration,
    },
}

/// What BIRD makes of the end of a BFD session with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Whatever is said or not said, the node's routes go (`bfd on`).
    Strict,
    /// A graceful restart begins: the routes stay for the node's restart time (`bfd graceful`).
    Graceful,
}

impl Watch {
    fn option(self) -> &'static str {
        match self {
            Self::Strict => "bfd on;",
            Self::Graceful => "bfd graceful;",
        }
    }
}

/// The table in which a node has its own addresses for announcing, as in examples/leaf-spine.
pub const OWN_TABLE: u32 = 119;

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its name: `node-a`, `node-b`, …
    pub name: String,
    /// Counted from 1; addresses follow from it.
    pub number: u8,
    /// Where the agent runs.
    pub ns: NetNs,
    /// Its pods.
    pub pods: Vec<Pod>,
}

impl Node {
    /// Its address (the Node's `InternalIP`).
    pub fn address(&self, family: Family) -> IpAddr {
        addresses::node(family, self.number)
    }
}

/// A pod: a namespace behind a node, reached by host routes.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name: `a1` is the first of `node-a`.
    pub name: String,
    /// Its node's number.
    pub node: u8,
    /// Counted from 1 on each node.
    pub number: u8,
    /// Its namespace.
    pub ns: NetNs,
}

impl Pod {
    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        addresses::pod(family, self.node, self.number)
    }
}

/// A router that learns virtual IPs over BGP.
#[derive(Debug)]
pub struct Leaf {
    /// Counted from 1.
    pub number: u8,
    /// Its namespace.
    pub ns: NetNs,
    bird: Bird,
}

/// The whole network; gone when it is dropped.
#[derive(Debug)]
pub struct Fabric {
    /// The client outside the cluster.
    pub client: NetNs,
    /// A host outside the cluster that can be an endpoint.
    pub external: NetNs,
    /// The router between client and leaves.
    pub spine: NetNs,
    /// The leaf routers.
    pub leaves: Vec<Leaf>,
    /// The cluster's nodes.
    pub nodes: Vec<Node>,
    routing: Routing,
    spine_bird: Option<Bird>,
    _namespaces: Namespaces,
}

/// `node-a` for 1, and so on.
fn node_name(number: u8) -> String {
    format!("node-{}", char::from(b'a' + number - 1))
}

fn pod_name(node: u8, pod: u8) -> String {
    format!("{}{pod}", char::from(b'a' + node - 1))
}

const ROUTER: &[(&str, &str)] = &[
    ("ipv4.ip_forward", "1"),
    ("ipv6.conf.all.forwarding", "1"),
    ("ipv4.fib_multipath_hash_policy", "1"),
    ("ipv6.fib_multipath_hash_policy", "1"),
    ("ipv6.conf.default.accept_dad", "0"),
];
/// A node as a distribution and a CNI leave it: loose source checks, forwarding on.
const NODE: &[(&str, &str)] = &[
    ("ipv4.ip_forward", "1"),
    ("ipv6.conf.all.forwarding", "1"),
    ("ipv4.conf.all.rp_filter", "2"),
    ("ipv4.conf.default.rp_filter", "2"),
    ("ipv6.conf.default.accept_dad", "0"),
];
const HOST: &[(&str, &str)] = &[("ipv6.conf.default.accept_dad", "0"), ("ipv6.conf.default.accept_ra", "0")];

/// The CPU that takes in and forwards all packets of the lab.
fn forwarding_cpu() -> Result<u32> {
    let cpus = std::thread::available_parallelism()?.get() as u32;
    Ok(std::process::id() % cpus.min(32))
}

/// Has one CPU take in all that comes over a namespace's links. By default the CPU that sends does, and what two of them send changes places on a
/// busy machine; a network card keeps the packets of a flow in order (RSS).
fn in_order(namespace: &str) -> Result<()> {
    let cpu = format!("{:x}", 1_u64 << forwarding_cpu()?);
    let set = r#"for file in /sys/class/net/*/queues/rx-0/rps_cpus; do echo "$0" >"$file"; done"#;
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "sh", "-c", set, &cpu]);
    process::run(command, "").map(drop)
}

/// Every datagram that is refused is told so: the kernel's limits on that (icmp(7)) are no matter of the scenarios, and one is of the whole machine.
const REFUSALS: &[(&str, &str)] = &[("ipv4.icmp_ratemask", "0"), ("ipv6.icmp.ratemask", "\n")];

impl Fabric {
    /// Builds it with `nodes` nodes; configuration and logs of the routers go to `dir`.
    pub fn build(nodes: u8, routing: Routing, dir: &Path) -> Result<Self> {
        let fabric = Names { nodes, routing }.create(dir).context("building the lab's network")?;
        Ok(fabric)
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// The pod with this name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        let mut pods = self.nodes.iter().flat_map(|node| &node.pods);
        pods.find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))
    }

    /// The nodes to which a leaf sends packets for a virtual IP.
    pub fn directors(&self, leaf: &Leaf, vip: IpAddr) -> Result<BTreeSet<String>> {
        let family = Family::of(vip);
        let routes = leaf.ns.run(&format!("ip {} route show {vip}/{}", family.flag(), family.bits()))?;
        // A next hop whose link is gone is listed until BIRD has rewritten the route, but no longer used.
        let alive = routes.lines().filter(|line| !line.contains(" dead") && !line.contains(" linkdown"));
        let devices = alive.filter_map(|line| {
            let mut words = line.split_whitespace().skip_while(|word| *word != "dev");
            words.nth(1).map(str::to_owned)
        });
        Ok(devices.collect())
    }

    /// Sends all packets for a virtual IP to one node, whatever BGP says; `None` undoes that.
    pub fn steer(&self, vip: IpAddr, node: Option<&Node>) -> Result<()> {
        let family = Family::of(vip);
        let prefix = format!("{vip}/{}", family.bits());
        for leaf in &self.leaves {
            let flag = family.flag();
            match node {
                Some(node) => {
                    let via = addresses::node_link(family, leaf.number, node.number);
                    leaf.ns.ip(&format!("route replace {prefix} via {via} dev {} metric 1\n", node.name))?;
                }
                None => drop(leaf.ns.run(&format!("ip {flag} route del {prefix} metric 1"))?),
            }
        }
        Ok(())
    }

    /// Cuts all links of a node, as if its power had gone.
    pub fn cut(&self, node: &Node) -> Result<()> {
        self.leaves.iter().try_for_each(|leaf| self.link(leaf, node, false))
    }

    /// Undoes [`cut`](Self::cut).
    pub fn mend(&self, node: &Node) -> Result<()> {
        self.leaves.iter().try_for_each(|leaf| self.link(leaf, node, true))
    }

    /// Takes the link between a leaf and a node down, or up again.
    pub fn link(&self, leaf: &Leaf, node: &Node, up: bool) -> Result<()> {
        if up {
            leaf.ns.ip(&leaf_to_node(leaf.number, node.number, self.routing))
        } else {
            leaf.ns.ip(&format!("link set {} down\n", node.name))
        }
    }

    /// Has the leaves take BFD for something else; their sessions with the nodes begin anew.
    pub fn watch(&mut self, watch: Watch) -> Result<()> {
        let Routing::Bgp { interval, .. } = self.routing else { bail!("no BFD here") };
        self.routing = Routing::Bgp { watch, interval };
        let nodes = self.nodes.len() as u8;
        self.leaves
            .iter()
            .try_for_each(|leaf| leaf.bird.configure(&bird::leaf(leaf.number, nodes, self.routing)))
    }

    /// Takes the addresses from the links of a node, and all routes by them: what is left are link-local addresses.
    pub fn unnumber(&self, node: &Node) -> Result<()> {
        node.ns.ip("route del default\nroute del ::/0\n")?;
        for leaf in &self.leaves {
            let mut lines = String::new();
            for family in Family::BOTH {
                let _ = writeln!(lines, "route del {}/{}", node.address(family), family.bits());
                let _ = writeln!(lines, "route del {}", addresses::pod_cidr(family, node.number));
            }
            leaf.ns.ip(&format!("{lines}addr flush dev {} scope global\n", node.name))?;
            node.ns.ip(&format!("addr flush dev {} scope global\n", leaf.name()))?;
        }
        Ok(())
    }

    /// Undoes [`unnumber`](Self::unnumber).
    pub fn number(&self, node: &Node) -> Result<()> {
        node.ns.ip(&node_uplinks(node.number, self.routing))?;
        self.mend(node)
    }

    /// Has every router drop, or pass again, ICMP errors about packets that are too big.
    pub fn filter_icmp(&self, on: bool) -> Result<()> {
        let rules = if on {
            "table inet icmpfilter {
               chain errors { icmp type destination-unreachable icmp code frag-needed drop; icmpv6 type packet-too-big drop; }
               chain forward { type filter hook forward priority 0; jump errors; }
               chain output { type filter hook output priority 0; jump errors; }
             }"
        } else {
            "delete table inet icmpfilter"
        };
        let routers = self.leaves.iter().map(|leaf| &leaf.ns).chain([&self.spine]);
        routers.into_iter().try_for_each(|ns| ns.run_with_input("nft -f -", rules).map(drop))
    }

    /// An error if a router's BGP daemon is gone.
    pub fn ensure_running(&mut self) -> Result<()> {
        let leaves = self.leaves.iter_mut().map(|leaf| &mut leaf.bird);
        leaves.chain(&mut self.spine_bird).try_for_each(Bird::ensure_running)
    }
}

impl Leaf {
    /// Its name.
    pub fn name(&self) -> &str {
        self.ns.name()
    }

    /// Asks its BIRD, e.g. `show route`.
    pub fn birdc(&self, question: &str) -> Result<String> {
        self.bird.ask(question)
    }
}

/// The namespaces that this lab made; deleted with it.
#[derive(Debug)]
struct Namespaces(Vec<String>);

impl Namespaces {
    fn create(names: Vec<String>) -> Result<Self> {
        let lines: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        let namespaces = Self(names);
        ip(&[], &lines)?;
        Ok(namespaces)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let lines: String = self.0.iter().map(|name| format!("netns del {name}\n")).collect();
        // One that is already gone is no matter.
        let _ = ip(&["-force"], &lines);
    }
}

/// Runs lines of `ip -batch` in the namespace we are in.
fn ip(flags: &[&str], lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(flags).args(["-batch", "-"]);
    process::run(command, lines).map(drop)
}

/// What is to be built, before it exists.
struct Names {
    nodes: u8,
    routing: Routing,
}

impl Names {
    fn create(&self, dir: &Path) -> Result<Fabric> {
        let namespaces = Namespaces::create(self.namespaces())?;

        let (client, external, spine) =
            (NetNs::open("client")?, NetNs::open("external")?, NetNs::open("spine")?);
        let mut nodes = Vec::new();
        for number in 1..=self.nodes {
            let ns = NetNs::open(&node_name(number))?;
            let pods = (1..=PODS).map(|pod| {
                let name = pod_name(number, pod);
                Ok(Pod { ns: NetNs::open(&name)?, name, node: number, number: pod })
            });
            let pods = pods.collect::<Result<_>>()?;
            nodes.push(Node { name: node_name(number), number, ns, pods });
        }
        let leaves: Vec<NetNs> =
            (1..=LEAVES).map(|number| NetNs::open(&format!("leaf{number}"))).collect::<Result<_>>()?;

        for ns in leaves.iter().chain([&spine]) {
            ns.sysctl(ROUTER)?;
        }
        for ns in [&client, &external]
            .into_iter()
            .chain(nodes.iter().flat_map(|node| node.pods.iter().map(|pod| &pod.ns)))
        {
            ns.sysctl(HOST)?;
        }
        for node in &nodes {
            node.ns.sysctl(NODE)?;
        }
        for name in self.namespaces() {
            NetNs::open(&name)?.sysctl(REFUSALS)?;
        }
        ip(&[], &self.links())?;

        client.ip(&outside_host(addresses::client, 101))?;
        external.ip(&outside_host(addresses::external, 102))?;
        spine.ip(&spine_config())?;
        for (number, ns) in (1..).zip(&leaves) {
            let nodes: String =
                (1..=self.nodes).map(|node| leaf_to_node(number, node, self.routing)).collect();
            ns.ip(&format!("{}{nodes}", leaf_config(number, self.routing)))?;
            counters::install(ns)?;
        }
        for node in &nodes {
            node.ns.ip(&node_config(node.number, self.routing))?;
            for pod in &node.pods {
                pod.ns.ip(&pod_config(pod))?;
            }
        }
        for name in self.namespaces() {
            in_order(&name)?;
        }
        let leaves = (1..).zip(leaves).map(|(number, ns)| {
            let bird = Bird::start(&ns, &bird::leaf(number, self.nodes, self.routing), dir)?;
            Ok(Leaf { number, ns, bird })
        });
        let spine_bird = match self.routing {
            Routing::Static => None,
            Routing::Bgp { interval, .. } => Some(Bird::start(&spine, &bird::spine(interval), dir)?),
        };
        Ok(Fabric {
            client,
            external,
            spine,
            leaves: leaves.collect::<Result<_>>()?,
            nodes,
            routing: self.routing,
            spine_bird,
            _namespaces: namespaces,
        })
    }

    fn namespaces(&self) -> Vec<String> {
        let mut names: Vec<String> = ["client", "external", "spine"].map(str::to_owned).into();
        names.extend((1..=LEAVES).map(|leaf| format!("leaf{leaf}")));
        for node in 1..=self.nodes {
            names.push(node_name(node));
            names.extend((1..=PODS).map(|pod| pod_name(node, pod)));
        }
        names
    }

    /// Every device is named after what is at its other end.
    fn links(&self) -> String {
        let mut lines = String::new();
        let mut link = |left: &str, right: &str| {
            let _ = writeln!(
                lines,
                "link add name {right} netns {left} type veth peer name {left} netns {right}"
            );
        };
        link("client", "spine");
        link("external", "spine");
        for leaf in 1..=LEAVES {
            let leaf = format!("leaf{leaf}");
            link("spine", &leaf);
            for node in 1..=self.nodes {
                link(&leaf, &node_name(node));
            }
        }
        for node in 1..=self.nodes {
            for pod in 1..=PODS {
                link(&node_name(node), &pod_name(node, pod));
            }
        }
        lines
    }
}

/// `dev DEVICE` for an address; an IPv6 one is usable at once, without a search for duplicates.
fn on(device: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("dev {device}"),
        Family::V6 => format!("dev {device} nodad"),
    }
}

fn outside_host(address: fn(Family) -> IpAddr, link: u8) -> String {
    let mut lines = String::from("link set lo up\nlink set spine up\n");
    for family in Family::BOTH {
        let bits = family.bits();
        let (own, gateway) = (address(family), addresses::spine_link(family, link));
        let _ = writeln!(lines, "addr add {own}/{bits} {}", on("spine", family));
        let _ = writeln!(lines, "route add {gateway}/{bits} dev spine");
        let _ = writeln!(lines, "route add default via {gateway} dev spine src {own}");
    }
    lines
}

fn spine_config() -> String {
    let mut lines = String::from("link set lo up\nlink set client up\nlink set external up\n");
    for leaf in 1..=LEAVES {
        let _ = writeln!(lines, "link set leaf{leaf} up");
    }
    for family in Family::BOTH {
        let bits = family.bits();
        for (host, device, link) in
            [(addresses::client(family), "client", 101), (addresses::external(family), "external", 102)]
        {
            let _ = writeln!(
                lines,
                "addr add {}/{bits} {}",
                addresses::spine_link(family, link),
                on(device, family)
            );
            let _ = writeln!(lines, "route add {host}/{bits} dev {device}");
        }
        for leaf in 1..=LEAVES {
            let own = addresses::spine_link(family, leaf);
            let _ = writeln!(lines, "addr add {own}/{} {}", bits - 2, on(&format!("leaf{leaf}"), family));
        }
        let hops: String = (1..=LEAVES)
            .map(|leaf| format!(" nexthop via {} dev leaf{leaf}", addresses::leaf_uplink(family, leaf)))
            .collect();
        for prefix in addresses::cluster_prefixes(family) {
            let _ = writeln!(lines, "route add {prefix}{hops}");
        }
    }
    lines
}

fn leaf_config(leaf: u8, routing: Routing) -> String {
    let mut lines = String::from("link set lo up\nlink set spine up\n");
    for family in Family::BOTH {
        let (own, spine) = (addresses::leaf_uplink(family, leaf), addresses::spine_link(family, leaf));
        let _ = writeln!(lines, "addr add {own}/{} {}", family.bits() - 2, on("spine", family));
        for host in [addresses::client(family), addresses::external(family)] {
            let _ = writeln!(lines, "route add {host}/{} via {spine}", family.bits());
        }
        // What no node announces goes nowhere from here, instead of back to the spine.
        let nowhere = if routing == Routing::Static { "unreachable" } else { "blackhole" };
        for prefix in addresses::cluster_prefixes(family) {
            let _ = writeln!(lines, "route add {nowhere} {prefix}");
        }
    }
    lines
}

/// A leaf's part of its link to a node, and its static routes to what is there.
fn leaf_to_node(leaf: u8, node: u8, routing: Routing) -> String {
    let name = node_name(node);
    let mut lines = format!("link set {name} up\n");
    for family in Family::BOTH {
        let (own, via) = (addresses::leaf_link(family, leaf, node), addresses::node_link(family, leaf, node));
        let _ = writeln!(lines, "addr replace {own}/{} {}", family.bits() - 2, on(&name, family));
        // Before what is learnt, as long as the link is up.
        let metric = if routing == Routing::Static { "" } else { " metric 1" };
        for destination in [
            format!("{}/{}", addresses::node(family, node), family.bits()),
            addresses::pod_cidr(family, node),
        ] {
            let _ = writeln!(lines, "route replace {destination} via {via}{metric}");
        }
    }
    lines
}

fn node_config(node: u8, routing: Routing) -> String {
    let mut lines = String::from("link set lo up\n");
    for leaf in 1..=LEAVES {
        let _ = writeln!(lines, "link set leaf{leaf} up");
    }
    for pod in 1..=PODS {
        let name = pod_name(node, pod);
        let _ = writeln!(lines, "link set {name} up\naddr add 169.254.1.1/32 dev {name} scope link");
        let _ = writeln!(lines, "addr add fe80::1/64 dev {name} nodad");
    }
    for family in Family::BOTH {
        let own = addresses::node(family, node);
        let _ = writeln!(lines, "addr add {own}/{} {}", family.bits(), on("lo", family));
        for pod in 1..=PODS {
            let address = addresses::pod(family, node, pod);
            let _ = writeln!(
                lines,
                "route add {address}/{} dev {} src {own}",
                family.bits(),
                pod_name(node, pod)
            );
        }
    }
    lines + &node_uplinks(node, routing)
}

/// A node's part of its links to the leaves, and its routes by them or what it is to tell them.
fn node_uplinks(node: u8, routing: Routing) -> String {
    let mut lines = String::new();
    for family in Family::BOTH {
        let own = addresses::node(family, node);
        let mut hops = String::new();
        for leaf in 1..=LEAVES {
            let link = addresses::node_link(family, leaf, node);
            let device = on(&format!("leaf{leaf}"), family);
            let _ = writeln!(lines, "addr add {link}/{} {device}", family.bits() - 2);
            let _ = write!(hops, " nexthop via {} dev leaf{leaf}", addresses::leaf_link(family, leaf, node));
        }
        match routing {
            Routing::Static => drop(writeln!(lines, "route add default src {own}{hops}")),
            // Behind what is learnt.
            Routing::Bgp { .. } => {
                let _ = writeln!(lines, "route add default src {own} metric 20000{hops}");
                let _ = writeln!(lines, "route add {own}/{} dev lo table {OWN_TABLE}", family.bits());
            }
        }
    }
    lines
}

fn pod_config(pod: &Pod) -> String {
    let node = node_name(pod.node);
    let mut lines = format!("link set lo up\nlink set {node} up\nroute add 169.254.1.1/32 dev {node}\n");
    for (family, gateway) in [(Family::V4, "169.254.1.1"), (Family::V6, "fe80::1")] {
        let own = pod.address(family);
        let _ = writeln!(lines, "addr add {own}/{} {}", family.bits(), on(&node, family));
        let _ = writeln!(lines, "route add default via {gateway} dev {node} src {own}");
    }
    lines
}
