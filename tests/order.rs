//! The order of events on the wire: the agent's program in a network namespace, a peer that reads what it is sent and stops the agent
//! at that very moment, so that the kernel is seen as it was when the message left.

#![expect(clippy::unwrap_used, reason = "a failure is the report of a test")]

mod namespace;
#[path = "order/peer.rs"]
mod peer;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use self::namespace::{address, dump, in_namespace, shell};
use self::peer::{Listener, Session};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long routers have to follow a withdrawal; a little less, since clocks and the peer's reading take their time.
const SETTLE: Duration = Duration::from_millis(900);

/// A Service of two families, whose addresses end with its number.
struct Web {
    number: u8,
    endpoints: usize,
    policy: &'static str,
    announce: &'static str,
    external: bool,
}

impl Web {
    fn new(number: u8) -> Self {
        Self {
            number,
            endpoints: 2,
            policy: "Cluster",
            announce: "loadBalancerIP,externalIP",
            external: false,
        }
    }

    fn vips(&self) -> [String; 2] {
        [format!("192.0.2.{}", self.number), format!("2001:db8::{}", self.number)]
    }

    fn prefixes(&self) -> BTreeSet<IpNet> {
        self.vips().iter().map(|vip| address(vip).into()).collect()
    }

    fn write(&self, node: &Running) {
        let Self { number, policy, announce, .. } = self;
        let name = format!("web-{number}");
        let ingress = self.vips().map(|ip| json!({"ip": ip}));
        let external = if self.external { vec![format!("198.51.100.{number}")] } else { Vec::new() };
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "annotations": {"sheave.io/announce": announce}},
            "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "externalTrafficPolicy": policy,
                "clusterIP": format!("10.96.0.{number}"), "clusterIPs": [format!("10.96.0.{number}"), format!("fd00:96::{number}")],
                "ipFamilies": ["IPv4", "IPv6"], "externalIPs": external,
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]},
            "status": {"loadBalancer": {"ingress": ingress}},
        })];
        for (family, own, other) in
            [("IPv4", "10.244.1.10", "10.244.2.10"), ("IPv6", "fd00:244:1::a", "fd00:244:2::a")]
        {
            let endpoints: Vec<Value> = [(own, "node-a"), (other, "node-b")][2 - self.endpoints..]
                .iter()
                .map(|(address, node)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}}))
                .collect();
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"name": format!("{name}-{family}").to_lowercase(), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": name}},
                "endpoints": endpoints, "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            }));
        }
        node.manifest(&name, &objects);
    }

    fn remove(&self, node: &Running) {
        std::fs::remove_file(node.path(&format!("web-{}", self.number))).unwrap();
    }
}

/// The node with its agent.
struct Running {
    directory: PathBuf,
    agent: Child,
}

impl Running {
    /// Starts the agent of a directory with the Nodes node-a, which is this one, and node-b.
    fn begin(directory: &Path, peer: &Listener) -> Self {
        std::fs::create_dir_all(directory.join("manifests")).unwrap();
        let config = format!(
            "router: {{asn: 64512, listen: null, peers: [{{address: 10.0.0.1, asn: 65001, port: {}}}]}}\n\
             services: {{serviceCIDRs: [10.96.0.0/16, 'fd00:96::/112'], externalIPs: {{allow: [198.51.100.0/24]}}}}\n\
             observe: {{status: {}}}\n",
            peer.port(),
            directory.join("status.sock").display()
        );
        std::fs::write(directory.join("config.yaml"), config).unwrap();
        let this = Self { directory: directory.into(), agent: Self::spawn(directory) };
        this.nodes(&json!({}));
        this
    }

    fn spawn(directory: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sheave"));
        command.args(["agent", "--node", "node-a", "--config"]).arg(directory.join("config.yaml"));
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
        command
            .arg("--manifests")
            .arg(directory.join("manifests"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn nodes(&self, labels: &Value) {
        let node = |name: &str, last: u8, labels: &Value| {
            json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": labels, "annotations": {"sheave.io/accepts": "ipip"}},
                "spec": {"podCIDRs": [format!("10.244.{last}.0/24"), format!("fd00:244:{last}::/64")]},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.1{last}")},
                    {"type": "InternalIP", "address": format!("fd00:10::1{last}")}]}})
        };
        self.manifest("nodes", &[node("node-a", 1, labels), node("node-b", 2, &json!({}))]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join("manifests").join(format!("{name}.json"))
    }

    /// Writes a file of the source whole, as an editor would.
    fn manifest(&self, name: &str, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let draft = self.directory.join(name);
        std::fs::write(&draft, list.to_string()).unwrap();
        std::fs::rename(draft, self.path(name)).unwrap();
    }

    fn kill(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.agent = Self::spawn(&self.directory);
    }

    /// Looks while the agent does nothing.
    fn stopped<T>(&self, look: impl FnOnce() -> T) -> T {
        let pid = Pid::from_child(&self.agent);
        kill_process(pid, Signal::STOP).unwrap();
        let seen = look();
        kill_process(pid, Signal::CONT).unwrap();
        seen
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

/// What there is of a VIP in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    destinations: usize,
    route: bool,
    guarded: bool,
}

const NOTHING: Held = Held { destinations: 0, route: false, guarded: false };
const WHOLE: Held = Held { destinations: 2, route: true, guarded: true };

fn held(vip: &str) -> Held {
    let six = vip.contains(':');
    let shown = if six { format!("[{vip}]:80") } else { format!("{vip}:80") };
    let servers = shell("ipvsadm", "-Sn");
    let destinations = servers
        .lines()
        .filter(|line| line.starts_with(&format!("-a -t {shown} -r ")) && line.contains(" -w 1"));
    let family = if six { "-6" } else { "-4" };
    let routes = shell("ip", &format!("{family} route show table local proto 83"));
    let set = shell("nft", &format!("list set inet sheave vips{}", if six { 6 } else { 4 }));
    let names = |text: &str| text.split([' ', ',', '\n', '\t']).any(|word| word == vip);
    Held { destinations: destinations.count(), route: names(&routes), guarded: names(&set) }
}

fn all_held(web: &Web) -> [Held; 2] {
    web.vips().map(|vip| held(&vip))
}

/// Begins with one Service that stays; its routes and End-of-RIB have come.
fn with_agent(name: &str, test: impl FnOnce(&mut Running, &Listener, Session) + Send) {
    in_namespace(name, async |node| {
        shell("ip", "addr add 10.0.0.1/32 dev lo");
        let directory = node.settings.state_directory.clone();
        std::fs::create_dir_all(&directory).unwrap();
        let listener = Listener::bind(address("10.0.0.1"));
        let mut running = Running::begin(&directory, &listener);
        Web::new(1).write(&running);
        let mut session = listener.accept(LIMIT);
        session.until_table_is(&Web::new(1).prefixes(), LIMIT);
        test(&mut running, &listener, session);
    });
}

#[test]
fn a_start_repairs_what_it_adopts_before_its_first_route_and_tells_no_vip_that_is_gone() {
    with_agent("start", |node, listener, mut session| {
        let (web, gone) = (Web::new(1), Web::new(2));
        gone.write(node);
        let both: BTreeSet<IpNet> = web.prefixes().into_iter().chain(gone.prefixes()).collect();
        session.until_table_is(&both, LIMIT);
        assert_eq!([all_held(&web), all_held(&gone)], [[WHOLE; 2]; 2]);
        let damages: [&[&str]; 7] = [
            &[
                "ipvsadm -d -t 192.0.2.1:80 -r 10.244.2.10:8080",
                "ipvsadm -d -t [2001:db8::1]:80 -r [fd00:244:2::a]:8080",
            ],
            &["ipvsadm -D -t 192.0.2.1:80", "ipvsadm -D -t [2001:db8::1]:80"],
            &["ip route del local 192.0.2.1 dev lo", "ip -6 route del local 2001:db8::1 dev lo"],
            &["nft delete element inet sheave vips4 { 192.0.2.1 }", "nft flush set inet sheave vips6"],
            &["nft flush chain inet sheave guard"],
            &["nft delete table inet sheave"],
            &["ip link del sheave4", "ip link del sheave6"],
        ];
        let rules = shell("nft", "list chain inet sheave guard");
        for (number, damage) in damages.into_iter().enumerate() {
            if number > 0 {
                gone.write(node);
                session.until_table_is(&both, LIMIT);
            }
            node.kill();
            drop(session);
            for command in damage {
                let (program, arguments) = command.split_once(' ').unwrap();
                shell(program, arguments);
            }
            gone.remove(node);
            node.start_again();
            session = listener.accept(LIMIT);
            let mut told = BTreeSet::new();
            let (mut ended, mut looked) = (0, false);
            while ended < 2 {
                let update = session.update(LIMIT);
                if !looked {
                    // Before any other byte can follow.
                    looked = true;
                    node.stopped(|| {
                        assert_eq!(all_held(&web), [WHOLE; 2], "{damage:?}");
                        assert_eq!(all_held(&gone), [NOTHING; 2], "{damage:?}");
                        assert_eq!(shell("nft", "list chain inet sheave guard"), rules, "{damage:?}");
                        shell("ip", "link show sheave4 up");
                        shell("ip", "link show sheave6 up");
                    });
                }
                assert_eq!(update.unreachable().count(), 0, "{damage:?}");
                told.extend(update.reachable().map(|nlri| nlri.prefix));
                ended += usize::from(update.end_of_rib().is_some());
            }
            assert_eq!(told, web.prefixes(), "{damage:?}");
        }
    });
}

#[test]
fn a_vip_is_told_when_the_kernel_has_it() {
    with_agent("up", |node, _, mut session| {
        for number in 2..8 {
            let web = Web::new(number);
            web.write(node);
            let mut left = web.prefixes();
            while !left.is_empty() {
                let update = session.update(LIMIT);
                let told: Vec<IpNet> = update.reachable().map(|nlri| nlri.prefix).collect();
                assert!(!told.is_empty(), "{update:?}");
                node.stopped(|| {
                    for prefix in &told {
                        assert_eq!(held(&prefix.addr().to_string()), WHOLE, "{prefix}");
                    }
                });
                told.iter().for_each(|prefix| assert!(left.remove(prefix), "{prefix}"));
            }
        }
    });
}

/// A change, its name, and what the kernel has of the VIPs when all is done.
type Change = (&'static str, fn(&Web, &Running), Held);

#[test]
fn a_vip_is_withdrawn_before_the_kernel_forgets_it() {
    with_agent("down", |node, _, mut session| {
        let changes: [Change; 4] = [
            ("the Service is deleted", |web, node| web.remove(node), NOTHING),
            (
                "it is not to be announced any more",
                |web, node| Web { announce: "none", ..*web }.write(node),
                WHOLE,
            ),
            (
                "the last endpoint is gone",
                |web, node| Web { endpoints: 0, ..*web }.write(node),
                Held { destinations: 0, ..WHOLE },
            ),
            (
                "the node is excluded",
                |_, node| node.nodes(&json!({"node.kubernetes.io/exclude-from-external-load-balancers": ""})),
                WHOLE,
            ),
        ];
        for (number, (name, change, after)) in (10..).zip(changes) {
            let web = Web::new(number);
            web.write(node);
            session.await_prefixes(&web.prefixes(), true, LIMIT);
            change(&web, node);
            let mut left = web.prefixes();
            let mut withdrawn = Instant::now();
            while !left.is_empty() {
                let update = session.update(LIMIT);
                let gone: Vec<IpNet> = update.unreachable().map(|nlri| nlri.prefix).collect();
                assert!(!gone.is_empty(), "{name}: {update:?}");
                withdrawn = Instant::now();
                node.stopped(|| {
                    for prefix in gone.iter().filter(|prefix| left.contains(prefix)) {
                        assert_eq!(held(&prefix.addr().to_string()), WHOLE, "{name}: {prefix}");
                    }
                });
                left.retain(|prefix| !gone.contains(prefix));
            }
            while all_held(&web) != [after; 2] {
                assert!(withdrawn.elapsed() < LIMIT, "{name}: {:?}", all_held(&web));
            }
            if after == NOTHING {
                assert!(withdrawn.elapsed() >= SETTLE, "{name}: {:?}", withdrawn.elapsed());
            }
        }
    });
}

#[test]
fn one_address_of_a_service_goes_and_the_others_stay() {
    with_agent("address", |node, _, mut session| {
        let web = Web { external: true, ..Web::new(20) };
        let (external, prefix) = ("198.51.100.20", "198.51.100.20/32".parse::<IpNet>().unwrap());
        web.write(node);
        let all: BTreeSet<IpNet> = web.prefixes().into_iter().chain([prefix]).collect();
        session.await_prefixes(&all, true, LIMIT);
        Web { external: false, ..web }.write(node);
        let update = session.update(LIMIT);
        let withdrawn = Instant::now();
        node.stopped(|| {
            assert_eq!(held(external), WHOLE);
            assert_eq!(update.unreachable().map(|nlri| nlri.prefix).collect::<Vec<_>>(), [prefix]);
        });
        while held(external) != NOTHING {
            assert_eq!(all_held(&web), [WHOLE; 2]);
            assert!(withdrawn.elapsed() < LIMIT);
        }
        assert!(withdrawn.elapsed() >= SETTLE, "{:?}", withdrawn.elapsed());
        // It comes back while it leaves: it stays.
        web.write(node);
        session.await_prefixes(&[prefix].into(), true, LIMIT);
        Web { external: false, ..web }.write(node);
        session.await_prefixes(&[prefix].into(), false, LIMIT);
        web.write(node);
        session.await_prefixes(&[prefix].into(), true, LIMIT);
        let back = Instant::now();
        while back.elapsed() < 2 * SETTLE {
            assert_eq!(held(external), WHOLE);
        }
    });
}

#[test]
fn a_vip_that_the_kernel_sends_elsewhere_is_withdrawn_alone_and_told_again() {
    with_agent("elsewhere", |node, _, mut session| {
        let web = Web::new(30);
        web.write(node);
        session.await_prefixes(&web.prefixes(), true, LIMIT);
        let one: BTreeSet<IpNet> = ["192.0.2.30/32".parse().unwrap()].into();
        for line in
            ["rule add pref 10 lookup local", "rule del pref 0", "rule add pref 5 to 192.0.2.30 blackhole"]
        {
            shell("ip", line);
        }
        let update = session.update(LIMIT);
        assert_eq!(update.unreachable().map(|nlri| nlri.prefix).collect::<BTreeSet<_>>(), one);
        let before = dump();
        shell("ip", "rule del pref 5");
        let update = session.update(LIMIT);
        assert_eq!(update.reachable().map(|nlri| nlri.prefix).collect::<BTreeSet<_>>(), one);
        assert_eq!(dump(), before, "there was nothing to repair");
        assert!(node.log().contains("VIP 192.0.2.30: there is no route local 192.0.2.30/32"));
    });
}
