//! IP in IP and Generic UDP Encapsulation, and the way from one to the other.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sheave::cluster::ACCEPTS_ANNOTATION;
use sheave::cluster::Protocol::{self, Sctp, Tcp, Udp};
use sheave_ipvs::TunnelType;

use super::Scenario;
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::fabric::{Direction, Node};
use crate::kernel;
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::traffic::{Bulk, Request, Server, Steady, bulk};
use crate::wait::await_some;

/// How long an agent may take to follow, or to write.
const LIMIT: Duration = Duration::from_secs(40);

/// GUE's port.
const PORT: u16 = 6080;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "gue-rolling",
        proves: "three agents change from ipip to gue and back, one by one, under load of TCP, UDP and SCTP with long connections: 0 failed, 0 lost, and packets on the wire are what the config says",
        run: rolling,
    },
    Scenario {
        name: "gue-bulk",
        proves: "in GUE 10 MB each way arrive unchanged where ICMP errors are dropped, and so do datagrams of the whole MTU and more; flows have outer source ports of their own",
        run: full_size,
    },
    Scenario {
        name: "gue-forged",
        proves: "GUE from an address that is not a node's never reaches an endpoint, and a pod's own UDP server on GUE's port is reached from everywhere",
        run: forged,
    },
];

/// A Service with one endpoint on each node.
fn everywhere(lab: &Lab, name: &str, number: u8) -> Result<Service> {
    let pods = [lab.fabric.pod("a1")?, lab.fabric.pod("b1")?, lab.fabric.pod("c1")?];
    Ok(Service::new(name, number).all_protocols(80, POD_PORT).endpoints(pods))
}

/// What a lab's agents send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encapsulation {
    Ipip,
    Gue,
}

/// Rewrites a node's config and restarts its agent; gives back when its directors' destinations are so.
fn change(lab: &mut Lab, name: &str, to: Encapsulation, service: &Service) -> Result<()> {
    const LINE: &str = "services:\n  encapsulation: gue\n";
    let path = lab.config(name);
    let config = std::fs::read_to_string(&path)?;
    let changed = match to {
        Encapsulation::Gue => config.replacen("services:\n", LINE, 1),
        Encapsulation::Ipip => config.replacen(LINE, "services:\n", 1),
    };
    ensure!(changed != config, "{}: nothing to change for {to:?}:\n{config}", path.display());
    std::fs::write(&path, changed)?;
    lab.stop_agent(name)?;
    lab.start_agent(name)?;
    await_encapsulation(lab, name, to, service)
}

/// Waits until a director reaches the endpoints of other nodes so; its own pods by IP in IP.
fn await_encapsulation(lab: &Lab, name: &str, wanted: Encapsulation, service: &Service) -> Result<()> {
    let node = lab.fabric.node(name)?;
    await_some(LIMIT, &format!("{wanted:?} from {name}"), || {
        let servers = kernel::virtual_servers(&node.ns).map_err(|error| format!("{error:#}"))?;
        for family in Family::BOTH {
            let own: Vec<IpAddr> = node.pods.iter().map(|pod| pod.address(family)).collect();
            let pods = pods(lab, family);
            for (protocol, port) in [(Tcp, 80), (Udp, 80), (Sctp, 80)] {
                let vip = SocketAddr::new(service.vip(family), port);
                let found = kernel::destinations(&servers, protocol, vip);
                // None is a stand-in, which would stay as long as a connection that was begun by it.
                let as_wanted = |to: &sheave_ipvs::Destination| {
                    let gue = matches!(to.tunnel, TunnelType::Gue { port: PORT, .. });
                    pods.contains(&to.address)
                        && gue == (wanted == Encapsulation::Gue && !own.contains(&to.address))
                };
                if found.len() != service.endpoints.len() || !found.iter().all(as_wanted) {
                    return Err(format!("{protocol} {vip}: {found:?}"));
                }
            }
        }
        Ok(())
    })
}

fn pods(lab: &Lab, family: Family) -> Vec<IpAddr> {
    lab.fabric.nodes.iter().flat_map(|node| &node.pods).map(|pod| pod.address(family)).collect()
}

/// Waits until every node says that it accepts both, and every director has heard it.
fn await_accepts_gue(lab: &Lab, service: &Service) -> Result<()> {
    let server = lab.source.server()?;
    for node in lab.node_names() {
        server.await_annotation(LIMIT, &node, ACCEPTS_ANNOTATION, Some("ipip,gue"))?;
    }
    lab.node_names().iter().try_for_each(|node| await_encapsulation(lab, node, Encapsulation::Ipip, service))
}

fn rolling(lab: &mut Lab) -> Result<()> {
    let service = everywhere(lab, "rolling", 80)?;
    lab.apply(&service)?;
    await_accepts_gue(lab, &service)?;
    let client = &lab.fabric.client;
    let mut traffic = Steady::start(&Family::BOTH.map(|family| (client, service.vip(family))))?;
    for encapsulation in [Encapsulation::Gue, Encapsulation::Ipip] {
        for name in lab.node_names() {
            change(lab, &name, encapsulation, &service)?;
            traffic.check().with_context(|| format!("{name}: {encapsulation:?}"))?;
        }
        lab.await_applied(&service)?;
        lab.fabric.reset_counters()?;
        traffic.check()?;
        ensure_on_the_wire(lab, encapsulation)?;
    }
    traffic.none_failed()?;
    lab.remove(&service)
}

/// Packets that the leaves forwarded to the pods' addresses: all tunnelled, since replies go to the client.
fn ensure_on_the_wire(lab: &Lab, encapsulation: Encapsulation) -> Result<()> {
    for family in Family::BOTH {
        let pods = pods(lab, family);
        let (mut gue, mut others) = (0, Vec::new());
        for counted in lab.fabric.counted(Direction::To, family)? {
            match counted.protocol.as_str() {
                _ if !pods.contains(&counted.address) => {}
                "udp" => gue += counted.packets,
                _ => others.push(counted),
            }
        }
        let as_wanted = match encapsulation {
            Encapsulation::Gue => gue > 0 && others.is_empty(),
            Encapsulation::Ipip => gue == 0 && !others.is_empty(),
        };
        ensure!(as_wanted, "{family}, {encapsulation:?}: {gue} packets in UDP, others: {others:?}");
    }
    Ok(())
}

/// Does something while every agent sends GUE.
fn with_gue(lab: &mut Lab, service: &Service, work: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    lab.apply(service)?;
    await_accepts_gue(lab, service)?;
    for name in lab.node_names() {
        change(lab, &name, Encapsulation::Gue, service)?;
    }
    lab.await_applied(service)?;
    work(lab)?;
    for name in lab.node_names() {
        change(lab, &name, Encapsulation::Ipip, service)?;
    }
    lab.await_applied(service)?;
    lab.remove(service)
}

const BYTES: u64 = 10_000_000;

fn full_size(lab: &mut Lab) -> Result<()> {
    let service =
        Service::new("wrapped", 81).all_protocols(80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    with_gue(lab, &service.clone(), |lab| {
        for leaf in &lab.fabric.leaves {
            leaf.ns.run_with_input("nft -f -", SOURCE_PORTS)?;
        }
        for family in Family::BOTH {
            let vip = service.vip(family);
            lab.fabric.steer(vip, Some(lab.fabric.node("node-a")?))?;
            lab.fabric.filter_icmp(true)?;
            for direction in [Bulk::Upload, Bulk::Download] {
                bulk(&lab.fabric.client, vip, 80, direction, BYTES)?;
            }
            lab.fabric.filter_icmp(false)?;
            // A client in a pod has the whole MTU to its node, and the tunnel begins there.
            let client = &lab.fabric.pod("c1")?.ns;
            for direction in [Bulk::Upload, Bulk::Download] {
                bulk(client, service.cluster_ip(family), 80, direction, BYTES).context("client in a pod")?;
            }
            for port in 0..20 {
                let request = Request::new(Udp, vip, 80).from_port(21_000 + port);
                request.send(&lab.fabric.client)?;
            }
            datagrams(lab, vip)?;
            lab.fabric.steer(vip, None)?;
            let ports = source_ports(lab, family)?;
            ensure!(ports >= 10, "{family}: {ports} outer source ports");
        }
        for leaf in &lab.fabric.leaves {
            leaf.ns.run("nft delete table inet sources")?;
        }
        Ok(())
    })
}

/// Datagrams of the whole MTU and of more: over IPv4 outer packets are fragmented and put together by the endpoint's node, over
/// IPv6 the client learns the path's MTU from the first one.
fn datagrams(lab: &Lab, vip: IpAddr) -> Result<()> {
    let request = |size| Request::new(Udp, vip, 80).size(size).within(Duration::from_secs(2));
    if vip.is_ipv4() {
        return [1_400, 1_472, 4_000]
            .into_iter()
            .try_for_each(|size| request(size).send(&lab.fabric.client).map(drop));
    }
    await_some(LIMIT, "an answer to a datagram of the whole MTU", || {
        request(1_452).send(&lab.fabric.client).map(drop).map_err(|error| format!("{error:#}"))
    })
}

/// Counts the outer source ports.
const SOURCE_PORTS: &str = "
table inet sources {
  set seen4 { type inet_service; size 65535; flags dynamic; }
  set seen6 { type inet_service; size 65535; flags dynamic; }
  chain forward {
    type filter hook forward priority -300;
    meta nfproto ipv4 udp dport 6080 add @seen4 { udp sport }
    meta nfproto ipv6 udp dport 6080 add @seen6 { udp sport }
  }
}";

fn source_ports(lab: &Lab, family: Family) -> Result<usize> {
    let set = if family == Family::V4 { "seen4" } else { "seen6" };
    let mut ports = std::collections::BTreeSet::new();
    for leaf in &lab.fabric.leaves {
        let listed: Value =
            serde_json::from_str(&leaf.ns.run(&format!("nft -j list set inet sources {set}"))?)?;
        let sets = listed["nftables"].as_array().into_iter().flatten();
        let elements = sets.filter_map(|item| item["set"]["elem"].as_array()).flatten();
        ports.extend(elements.filter_map(Value::as_u64));
    }
    Ok(ports.len())
}

fn forged(lab: &mut Lab) -> Result<()> {
    let service = Service::new("forged", 82).all_protocols(80, POD_PORT).endpoints([lab.fabric.pod("b1")?]);
    lab.apply(&service)?;
    await_accepts_gue(lab, &service)?;
    let node: &Node = lab.fabric.node("node-a")?;
    let pod = lab.fabric.pod("b1")?;
    let plain = Server::start(&pod.ns, "plain", &[(Udp, PORT), (Tcp, PORT)])?;
    for family in Family::BOTH {
        let (client, vip) = (addresses::client(family), service.vip(family));
        let to = SocketAddr::new(pod.address(family), PORT);
        let listen = |port: u16| -> Result<UdpSocket> {
            let socket = lab.fabric.client.enter(|| UdpSocket::bind((client, port)))??;
            socket.set_read_timeout(Some(LIMIT))?;
            Ok(socket)
        };
        let (forged, real) = (listen(22_001)?, listen(22_002)?);
        let packet = |port| gue((client, port).into(), (vip, 80).into(), b"who\n");
        send(&lab.fabric.client, client, to, &packet(22_001))?;
        send(&lab.fabric.external, addresses::external(family), to, &packet(22_001))?;
        send(&node.ns, node.address(family), to, &packet(22_002))?;
        let mut buffer = [0; 200];
        let length = real.recv(&mut buffer).with_context(|| format!("{family}: GUE from a node"))?;
        let answer = String::from_utf8_lossy(&buffer[..length]);
        ensure!(answer.starts_with("b1 "), "{family}: {answer:?} answered GUE from a node");
        forged.set_nonblocking(true)?;
        if let Ok(length) = forged.recv(&mut buffer) {
            anyhow::bail!(
                "{family}: forged GUE was answered: {:?}",
                String::from_utf8_lossy(&buffer[..length])
            );
        }

        for from in [&lab.fabric.client, &lab.fabric.external, &node.ns, &lab.fabric.node("node-b")?.ns] {
            for protocol in [Udp, Tcp] {
                ask_plain(from, protocol, pod.address(family))?;
            }
        }
        ask_plain(&lab.fabric.pod("c1")?.ns, Udp, pod.address(family))?;
    }
    drop(plain);
    lab.remove(&service)
}

/// Asks the pod's own server on GUE's port.
fn ask_plain(from: &NetNs, protocol: Protocol, pod: IpAddr) -> Result<()> {
    for size in [0, 1_400] {
        let answer = Request::new(protocol, pod, PORT).size(size).send(from)?;
        ensure!(answer.endpoint == "plain", "{answer:?}");
    }
    Ok(())
}

fn send(from: &NetNs, source: IpAddr, to: SocketAddr, packet: &[u8]) -> Result<()> {
    let sent = from.enter(|| UdpSocket::bind((source, 0)).and_then(|socket| socket.send_to(packet, to)))?;
    sent.map(drop).with_context(|| format!("{source} → {to}"))
}

/// A UDP datagram in GUE, as IPVS would send it.
fn gue(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut addresses = Vec::new();
    for address in [from.ip(), to.ip()] {
        match address {
            IpAddr::V4(address) => addresses.extend(address.octets()),
            IpAddr::V6(address) => addresses.extend(address.octets()),
        }
    }
    let mut udp = [from.port(), to.port(), length, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let pseudo = [&addresses[..], &[0, 17], &length.to_be_bytes(), &udp].concat();
    udp[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut packet = vec![0, if from.is_ipv4() { 4 } else { 41 }, 0, 0];
    if from.is_ipv4() {
        let total = (20 + length).to_be_bytes();
        let mut header = [&[0x45, 0][..], &total, &[0, 0, 0, 0, 64, 17, 0, 0], &addresses].concat();
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        packet.extend(header);
    } else {
        packet.extend([&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[17, 64], &addresses].concat());
    }
    packet.extend(udp);
    packet
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}
