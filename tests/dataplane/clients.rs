//! Who gets which endpoint, with real packets. The namespace of the test is a node; hosts around it have namespaces of their
//! own:
//!
//! ```text
//! outside 203.0.113.7 ──┐        ┌── pod `near` 10.244.1.10
//!                       ├─ node ─┼── pod `far`  10.244.1.11
//!                       │        └── pod that is a client, 10.244.1.20
//! ```
//!
//! Whoever is outside is to get `near`, whoever is within the cluster `far`.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SocketType, ipproto};
use sheave::cluster::Protocol;
use sheave::dataplane::{Dataplane, DataplaneError};
use sheave::plan::{
    Delta, Destination, Forwarding, NodePlan, RewriteKey, RewriteSide, VipKind, VipPort, VirtualServer,
};

use super::builders::{mk_destination, mk_rewrite, mk_virtual_server};
use super::namespace::{self, address, in_namespace, shell};

/// Longer than any answer takes here.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is refused is so before a SYN is sent again.
const AT_ONCE: Duration = Duration::from_millis(700);
/// Where pods listen: the port of the builders' endpoints.
const PORT: u16 = 8080;

type Job = Box<dyn FnOnce() + Send>;

/// A host behind a link to the node.
struct Host {
    jobs: mpsc::Sender<Job>,
}

impl Host {
    fn new(index: u8, four: &str, six: &str) -> Self {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (here, there) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            here.send(nix::unistd::gettid()).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        let host = Self { jobs };
        let thread = there.recv().unwrap();
        let link = format!("host{index}");
        for line in [
            format!("link add {link} type veth peer name eth0 netns {thread}"),
            format!("addr add 10.244.1.1/32 dev {link}"),
            format!("addr add fd00:244:1::1/128 dev {link} nodad"),
            format!("link set {link} up"),
        ] {
            shell("ip", &line);
        }
        let (own4, own6) = (four.to_owned(), six.to_owned());
        host.run(move || {
            for line in [
                "link set lo up".into(),
                format!("addr add {own4}/32 dev eth0"),
                format!("addr add {own6}/128 dev eth0 nodad"),
                "link set eth0 up".into(),
                "route add 10.244.1.1 dev eth0".into(),
                "route add default via 10.244.1.1".into(),
                "-6 route add fd00:244:1::1 dev eth0".into(),
                "-6 route add default via fd00:244:1::1 dev eth0".into(),
            ] {
                shell("ip", &line);
            }
        });
        shell("ip", &format!("route add {four} dev {link}"));
        shell("ip", &format!("-6 route add {six} dev {link}"));
        host
    }

    /// Does something there.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || done.send(job()).unwrap())).unwrap();
        result.recv().unwrap()
    }

    /// Answers everybody with a name; stream connections stay until the client ends them.
    fn serve(&self, name: &'static str) {
        self.run(move || {
            let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
            for listener in [TcpListener::bind(any).unwrap(), sctp_listener(any).into()] {
                std::thread::spawn(move || {
                    for stream in listener.incoming() {
                        let mut stream = stream.unwrap();
                        std::thread::spawn(move || {
                            stream.write_all(name.as_bytes()).unwrap();
                            while stream.read(&mut [0; 16]).is_ok_and(|count| count > 0) {}
                        });
                    }
                });
            }
            let socket = UdpSocket::bind(any).unwrap();
            std::thread::spawn(move || {
                while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                    // Refused answers of clients that have gone.
                    let _ = socket.send_to(name.as_bytes(), from);
                }
            });
        });
    }
}

fn sctp_socket(to: SocketAddr) -> OwnedFd {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket(family, SocketType::STREAM, Some(ipproto::SCTP)).unwrap()
}

fn sctp_listener(any: SocketAddr) -> OwnedFd {
    let socket = sctp_socket(any);
    rustix::net::bind(&socket, &any).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    socket
}

/// The name of whoever answers.
fn ask(protocol: Protocol, to: SocketAddr) -> io::Result<String> {
    let mut answer = [0; 16];
    let count = match protocol {
        Protocol::Udp => {
            let any: IpAddr =
                if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"who?")?;
            socket.recv(&mut answer)?
        }
        Protocol::Tcp => connect(to, PATIENCE)?.read(&mut answer)?,
        Protocol::Sctp => {
            let socket = sctp_socket(to);
            rustix::net::sockopt::set_socket_timeout(
                &socket,
                rustix::net::sockopt::Timeout::Send,
                Some(PATIENCE),
            )?;
            rustix::net::connect(&socket, &to)?;
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read(&mut answer)?
        }
    };
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
}

fn connect(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn destination(endpoint: &str, forwarding: Forwarding, weight: u32) -> Destination {
    Destination { weight, terminating: weight == 0, ..mk_destination(address(endpoint), forwarding) }
}

/// What is served: for both families, from outside by `near` alone, from within the cluster by `far`.
fn plan() -> (NodePlan, Vec<VipPort>) {
    let mut plan = NodePlan::default();
    plan.node.addresses = ["10.0.0.11", "fd00:10::11"].map(address).into();
    plan.node.pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"].map(|net| net.parse().unwrap()).into();
    plan.node.cluster_clients = plan.node.pod_cidrs.clone();
    plan.node.tunnel_sources = plan.node.addresses.iter().copied().collect();
    let mut vips = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        for (ip, port, kind, forwarding) in [
            ("192.0.2.82", 80, VipKind::ExternalIP, Forwarding::Tunnel),
            ("2001:db8::82", 80, VipKind::ExternalIP, Forwarding::Tunnel),
            ("10.0.0.11", 30082, VipKind::NodePort, Forwarding::Nat),
            ("fd00:10::11", 30082, VipKind::NodePort, Forwarding::Nat),
        ] {
            let vip = VipPort { address: address(ip), port, protocol };
            let (near, far) = if vip.address.is_ipv4() {
                ("10.244.1.10", "10.244.1.11")
            } else {
                ("fd00:244:1::a", "fd00:244:1::b")
            };
            let side =
                if forwarding == Forwarding::Nat { RewriteSide::Director } else { RewriteSide::Endpoint };
            for endpoint in [near, far] {
                let key = RewriteKey { endpoint: address(endpoint), side, vip };
                plan.rewrites.insert(key, mk_rewrite(true));
            }
            if kind != VipKind::NodePort {
                *plan.vips.entry(vip.address).or_default() += 1;
            }
            let server = VirtualServer {
                destinations: vec![destination(near, forwarding, 1)],
                internal: Some(vec![destination(far, forwarding, 1)]),
                ..mk_virtual_server(vip, kind)
            };
            plan.virtual_servers.insert(vip, server);
            vips.push(vip);
        }
    }
    (plan, vips)
}

async fn open(node: &namespace::Node, plan: &NodePlan) -> Dataplane {
    // Programs that other tests start hold the lock of an agent before until they are what they are to be.
    let deadline = Instant::now() + PATIENCE;
    let mut dataplane = loop {
        match Dataplane::open(&node.settings) {
            Err(DataplaneError::AgentRuns(_)) if Instant::now() < deadline => std::thread::yield_now(),
            opened => break opened.unwrap(),
        }
    };
    dataplane.sync(plan, Instant::now()).await;
    assert_eq!(dataplane.problems(), [""; 0]);
    dataplane
}

/// Changes virtual servers, and tells the dataplane.
async fn change(
    dataplane: &mut Dataplane,
    plan: &mut NodePlan,
    vips: &[VipPort],
    how: impl Fn(&mut VirtualServer),
) {
    for vip in vips {
        how(plan.virtual_servers.get_mut(vip).unwrap());
    }
    let delta = Delta { virtual_servers: vips.iter().copied().collect(), ..Delta::default() };
    dataplane.apply(plan, &delta, Instant::now()).await;
    assert_eq!(dataplane.problems(), [""; 0]);
}

fn to(vip: &VipPort) -> SocketAddr {
    SocketAddr::new(vip.address, vip.port)
}

#[test]
fn clients_get_the_endpoints_that_are_theirs() {
    in_namespace("clients", async |node| {
        let outside = Host::new(1, "203.0.113.7", "2001:db8:f::7");
        let client = Host::new(2, "10.244.1.20", "fd00:244:1::20");
        let near = Host::new(3, "10.244.1.10", "fd00:244:1::a");
        let far = Host::new(4, "10.244.1.11", "fd00:244:1::b");
        near.serve("near");
        far.serve("far");
        let (mut plan, vips) = plan();
        let mut dataplane = open(node, &plan).await;
        let everybody = |when: &str| {
            for vip in &vips {
                let (protocol, to) = (vip.protocol, to(vip));
                let answers = [
                    outside.run(move || ask(protocol, to)),
                    client.run(move || ask(protocol, to)),
                    // An endpoint that is a client of its own Service.
                    far.run(move || ask(protocol, to)),
                    ask(protocol, to),
                ];
                let answers = answers.map(|answer| answer.unwrap_or_else(|error| error.to_string()));
                assert_eq!(answers, ["near", "far", "far", "far"], "{vip} {when}");
            }
        };
        everybody("at first");
        drop(dataplane);
        dataplane = open(node, &plan).await;
        everybody("after a restart");

        // Nobody for those outside: refused at once, or without an answer.
        change(&mut dataplane, &mut plan, &vips, |server| server.destinations.clear()).await;
        for drops in [false, true] {
            change(&mut dataplane, &mut plan, &vips, |server| server.drops = drops).await;
            for vip in vips.iter().filter(|vip| vip.protocol != Protocol::Sctp) {
                let (protocol, to, began) = (vip.protocol, to(vip), Instant::now());
                let patience = if drops { AT_ONCE } else { PATIENCE };
                let answer = outside.run(move || match protocol {
                    Protocol::Tcp => connect(to, patience).map(drop),
                    _ => ask(protocol, to).map(drop),
                });
                let refused = answer.unwrap_err().kind() == io::ErrorKind::ConnectionRefused;
                assert_eq!(refused, !drops, "{vip}");
                assert!(drops || began.elapsed() < AT_ONCE, "{vip}");
                assert_eq!(client.run(move || ask(protocol, to)).unwrap(), "far", "{vip}");
            }
        }
    });
}

#[test]
fn the_last_endpoint_terminates_with_its_connections() {
    in_namespace("last", async |node| {
        let outside = Host::new(1, "203.0.113.7", "2001:db8:f::7");
        let client = Host::new(2, "10.244.1.20", "fd00:244:1::20");
        let near = Host::new(3, "10.244.1.10", "fd00:244:1::a");
        let far = Host::new(4, "10.244.1.11", "fd00:244:1::b");
        near.serve("near");
        far.serve("far");
        let (mut plan, mut vips) = plan();
        vips.retain(|vip| vip.protocol == Protocol::Tcp);
        let mut dataplane = open(node, &plan).await;
        let mut held = Vec::new();
        let hello = |mut stream: TcpStream| {
            let count = stream.read(&mut [0; 16]).unwrap();
            assert!(count > 0);
            stream
        };
        for vip in &vips {
            let to = to(vip);
            held.push((vip, outside.run(move || connect(to, PATIENCE)).map(hello).unwrap()));
            held.push((vip, client.run(move || connect(to, PATIENCE)).map(hello).unwrap()));
            held.push((vip, connect(to, PATIENCE).map(hello).unwrap()));
        }
        change(&mut dataplane, &mut plan, &vips, |server| {
            let internal = server.internal.iter_mut().flatten();
            server.destinations.iter_mut().chain(internal).for_each(|each| {
                each.weight = 0;
                each.terminating = true;
            });
        })
        .await;
        let refused = |when: &str| {
            for vip in &vips {
                let to = to(vip);
                let try_once = move || {
                    let began = Instant::now();
                    (connect(to, PATIENCE).map(drop).map_err(|error| error.kind()), began.elapsed())
                };
                for (who, (answer, took)) in [
                    ("outside", outside.run(try_once)),
                    ("client", client.run(try_once)),
                    ("node", try_once()),
                ] {
                    assert_eq!(answer, Err(io::ErrorKind::ConnectionRefused), "{vip} from {who} {when}");
                    assert!(took < AT_ONCE, "{vip} from {who} {when}: {took:?}");
                }
            }
        };
        refused("while the last endpoint terminates");
        for (vip, stream) in &mut held {
            stream.write_all(b"more").unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let still = stream.read(&mut [0; 16]).unwrap_err().kind();
            assert_eq!(still, io::ErrorKind::WouldBlock, "{vip}: established");
        }
        change(&mut dataplane, &mut plan, &vips, |server| {
            server.destinations.clear();
            server.internal = None;
        })
        .await;
        assert_eq!(dataplane.draining(), 0);
        assert!(!shell("ipvsadm", "-Sn").contains("-t "), "{}", shell("ipvsadm", "-Sn"));
        refused("when it is gone");
        // Those of node ports are tracked from here on, and go with their conntrack entries.
        held.retain(|(vip, _)| vip.port == 80);
        for (vip, stream) in &mut held {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // Learns it by what it sends next.
            let end = stream.write_all(b"more").and_then(|()| stream.read(&mut [0; 16])).unwrap_err().kind();
            assert!(
                matches!(end, io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused),
                "{vip}: {end}"
            );
        }
    });
}
