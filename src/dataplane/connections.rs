//! Connections that need this node, of IPVS's own table (`/proc/net/ip_vs_conn`).
//!
//! IPVS remembers an established connection for minutes after its last packet, so that its count says nothing of one that has moved to
//! another director. But each packet sets the time anew that the entry has left: how much of it is gone is how long nothing came.
//!
//! A read of the table gets a page of it at most (`seq_read_iter`), and each walks the table from its beginning (`ip_vs_conn_array`): with
//! 100,000 connections that takes seconds in all, whatever the buffer. So a [`Look`] has a thread of its own.

use std::fs::File;
use std::io::{self, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use ipnet::IpNet;
use sheave_ipvs::Timeouts;

use super::Dataplane;
use crate::cluster::Protocol;
use crate::plan::{NodePlan, VipKind, VipPort};

const TABLE: &str = "/proc/thread-self/net/ip_vs_conn";
/// `sctp_timeouts[IP_VS_SCTP_S_ESTABLISHED]` (net/netfilter/ipvs/ip_vs_proto_sctp.c), which no setting changes.
const SCTP_TIMEOUT: u32 = 15 * 60;
/// How many are named.
const NAMED: usize = 20;

/// An established connection, or a flow of datagrams.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// What the client connected to.
    pub vip: VipPort,
    /// The client.
    pub client: SocketAddr,
    /// How long nothing came for it, in whole seconds.
    idle: Duration,
}

/// Those that need this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passing {
    /// How many.
    pub count: usize,
    /// Some of them.
    pub some: Vec<Connection>,
}

/// A look at the table that goes on.
#[derive(Debug)]
pub struct Look(JoinHandle<(io::Result<Passing>, Duration)>);

impl Look {
    /// Whether it has come to its end.
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// What came of it, or why nothing, in words; and how long it took. Waits for its end.
    pub fn end(self) -> (Result<Passing, String>, Duration) {
        let failed = || (Err(io::Error::other("the look panicked")), Duration::ZERO);
        let (passing, took) = self.0.join().unwrap_or_else(|_| failed());
        (passing.map_err(|error| format!("{TABLE}: {error}")), took)
    }
}

impl Dataplane {
    /// Begins to look for connections of clients outside of the cluster for which something came within the last `lately`, and all to the
    /// node's own addresses. What this node and its pods open themselves goes through this node as long as they are here, whoever else is a
    /// director.
    ///
    /// # Errors
    /// What the kernel says, in words.
    pub fn look_for_connections(&mut self, plan: &NodePlan, lately: Duration) -> Result<Look, String> {
        let timeouts = self.servers.timeouts().map_err(|error| error.to_string())?;
        let outside = Outside::of(plan, lately);
        let look = move || {
            let began = Instant::now();
            let passing = File::open(TABLE)
                .and_then(|table| select(BufReader::new(table), &timeouts, |one| outside.need(one)));
            (passing, began.elapsed())
        };
        let thread = thread::Builder::new().name("connections".into()).spawn(look);
        thread.map(Look).map_err(|error| format!("thread: {error}"))
    }
}

/// Clients outside of the cluster, and what they connect to, as was planned when a look began.
struct Outside {
    servers: HashMap<VipPort, VipKind>,
    inside: Vec<IpNet>,
    lately: Duration,
}

impl Outside {
    /// A cluster IP that is not announced is for clients within the cluster alone, wherever their addresses are from.
    fn of(plan: &NodePlan, lately: Duration) -> Self {
        let is_outside = |vip: &VipPort, kind: VipKind| {
            kind != VipKind::ClusterIP || plan.announcements.contains_key(&IpNet::from(vip.address))
        };
        let servers = plan.virtual_servers.iter().map(|(vip, server)| (*vip, server.kind));
        let own = plan.node.addresses.iter().map(|address| IpNet::from(*address));
        Self {
            servers: servers.filter(|(vip, kind)| is_outside(vip, *kind)).collect(),
            inside: own.chain(plan.node.cluster_clients.iter().copied()).collect(),
            // The table tells whole seconds.
            lately: lately.max(Duration::from_secs(1)),
        }
    }

    /// Whether they need this node for a connection still: something came for it lately, or it is to an address of the node itself, and can
    /// go nowhere else until it ends. Of a flow of datagrams no end is seen.
    fn need(&self, connection: &Connection) -> bool {
        let Connection { vip, client, idle } = connection;
        let Some(kind) = self.servers.get(vip) else { return false };
        let stays = *kind == VipKind::NodePort && vip.protocol != Protocol::Udp;
        (*idle < self.lately || stays) && !self.inside.iter().any(|net| net.contains(&client.ip()))
    }
}

fn select(
    table: impl io::BufRead,
    timeouts: &Timeouts,
    counts: impl Fn(&Connection) -> bool,
) -> io::Result<Passing> {
    let mut passing = Passing::default();
    for line in table.lines() {
        let Some(connection) = parse(&line?, timeouts).filter(&counts) else { continue };
        passing.count += 1;
        if passing.some.len() < NAMED {
            passing.some.push(connection);
        }
    }
    passing.some.sort_unstable();
    Ok(passing)
}

/// `ip_vs_conn_seq_show`: protocol, client, virtual and real address with their ports, state, seconds left. `None` for the heading, for what
/// is not established, and for templates of persistence.
fn parse(line: &str, timeouts: &Timeouts) -> Option<Connection> {
    let mut words = line.split_ascii_whitespace();
    let mut word = || words.next();
    let (protocol, client, client_port, vip, port) = (word()?, word()?, word()?, word()?, word()?);
    let (_, _, state, left) = (word()?, word()?, word()?, word()?);
    let (protocol, timeout) = match (protocol, state) {
        ("TCP", "ESTABLISHED") => (Protocol::Tcp, timeouts.tcp),
        ("SCTP", "ESTABLISHED") => (Protocol::Sctp, SCTP_TIMEOUT),
        ("UDP", "UDP") => (Protocol::Udp, timeouts.udp),
        _ => return None,
    };
    let idle = timeout.saturating_sub(left.parse::<u32>().ok()?.saturating_add(1));
    Some(Connection {
        vip: VipPort { address: address(vip)?, port: number(port)?, protocol },
        client: SocketAddr::new(address(client)?, number(client_port)?),
        idle: Duration::from_secs(idle.into()),
    })
}

/// Eight hexadecimal digits, or an IPv6 address, maybe in brackets.
fn address(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return u32::from_str_radix(text, 16).ok().map(|bits| Ipv4Addr::from_bits(bits).into());
    }
    text.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn number(text: &str) -> Option<u16> {
    u16::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::{mk_announcement, mk_virtual_server};
    use crate::plan::AnnouncementKind;

    const TIMEOUTS: Timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };

    #[test]
    fn lines_of_the_kernel() {
        // As Linux 6.1 prints them.
        for (line, expected) in [
            ("Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData", None),
            (
                "TCP CB007107 9C40 C0000250 0050 0AF4020A 1F90 ESTABLISHED     899",
                Some("203.0.113.7:40000 → TCP 192.0.2.80:80, 0 s"),
            ),
            (
                "TCP CB007107 9C40 C0000250 0050 0AF4020A 1F90 ESTABLISHED     600",
                Some("203.0.113.7:40000 → TCP 192.0.2.80:80, 299 s"),
            ),
            (
                "TCP 20010db8000000000000000000000007 9C40 20010db8000200000000000000000080 0050 fd000000000000000000000000000001 1F90 ESTABLISHED     899",
                None,
            ),
            (
                "TCP 2001:0db8:0000:0000:0000:0000:0000:0007 9C40 2001:0db8:0002:0000:0000:0000:0000:0080 0050 fd00:0000:0000:0000:0000:0000:0000:0001 1F90 ESTABLISHED     890",
                Some("[2001:db8::7]:40000 → TCP [2001:db8:2::80]:80, 9 s"),
            ),
            (
                "SCTP CB007107 9C40 C0000250 0050 0AF4020A 1F90 ESTABLISHED     898",
                Some("203.0.113.7:40000 → SCTP 192.0.2.80:80, 1 s"),
            ),
            (
                "UDP CB007107 9C40 C0000250 0035 0AF4020A 1F90 UDP             290",
                Some("203.0.113.7:40000 → UDP 192.0.2.80:53, 9 s"),
            ),
            ("TCP CB007107 9C40 C0000250 0050 0AF4020A 1F90 FIN_WAIT        119", None),
            ("TCP CB007107 0000 C0000250 0050 0AF4020A 1F90 NONE            10800", None),
            // The timeout was longer when its last packet came.
            (
                "TCP CB007107 9C40 C0000250 0050 0AF4020A 1F90 ESTABLISHED     3000",
                Some("203.0.113.7:40000 → TCP 192.0.2.80:80, 0 s"),
            ),
            ("TCP CB007107 9C40", None),
            ("", None),
        ] {
            let parsed = parse(line, &TIMEOUTS)
                .map(|one| format!("{} → {}, {} s", one.client, one.vip, one.idle.as_secs()));
            assert_eq!(parsed.as_deref(), expected, "{line}");
        }
    }

    /// A server of each kind, of which two cluster IPs, one of them announced.
    fn plan() -> NodePlan {
        let mut plan = NodePlan::new("node-a");
        plan.node.addresses = vec!["10.0.0.11".parse().unwrap()];
        plan.node.cluster_clients = ["10.244.1.0/24".parse().unwrap()].into();
        for (vip, kind) in [
            ("192.0.2.80", VipKind::LoadBalancerIP),
            ("198.51.100.80", VipKind::ExternalIP),
            ("10.0.0.11", VipKind::NodePort),
            ("10.96.0.80", VipKind::ClusterIP),
            ("10.96.0.81", VipKind::ClusterIP),
        ] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let vip = VipPort { address: vip.parse().unwrap(), port: 80, protocol };
                plan.virtual_servers.insert(vip, mk_virtual_server(vip, kind));
            }
        }
        let announced = mk_announcement("10.96.0.81/32".parse().unwrap(), AnnouncementKind::ClusterIP);
        plan.announcements.insert(announced.prefix, announced);
        plan
    }

    #[test]
    fn who_needs_this_node() {
        let (outside, pod, elsewhere) = ("203.0.113.7", "10.244.1.10", "172.16.3.4");
        for (protocol, vip, client, lately, idle, expected) in [
            (Protocol::Tcp, "192.0.2.80", outside, 5, 4, true),
            (Protocol::Tcp, "192.0.2.80", outside, 5, 5, false),
            (Protocol::Udp, "198.51.100.80", outside, 5, 4, true),
            (Protocol::Tcp, "10.0.0.11", outside, 5, 800, true),
            (Protocol::Sctp, "10.0.0.11", outside, 5, 800, true),
            (Protocol::Udp, "10.0.0.11", outside, 5, 4, true),
            (Protocol::Udp, "10.0.0.11", outside, 5, 5, false),
            (Protocol::Tcp, "192.0.2.80", pod, 5, 0, false),
            (Protocol::Tcp, "192.0.2.80", "10.0.0.11", 5, 0, false),
            (Protocol::Tcp, "192.0.2.99", outside, 5, 0, false),
            // A pod whose address is from another range than its Node's.
            (Protocol::Tcp, "10.96.0.80", elsewhere, 5, 0, false),
            (Protocol::Tcp, "10.96.0.81", outside, 5, 0, true),
            // The table tells whole seconds.
            (Protocol::Tcp, "192.0.2.80", outside, 0, 0, true),
            (Protocol::Tcp, "192.0.2.80", outside, 0, 1, false),
        ] {
            let needs = Outside::of(&plan(), Duration::from_secs(lately));
            let connection = Connection {
                vip: VipPort { address: vip.parse().unwrap(), port: 80, protocol },
                client: SocketAddr::new(client.parse().unwrap(), 40000),
                idle: Duration::from_secs(idle),
            };
            assert_eq!(needs.need(&connection), expected, "{connection:?}, within {lately} s");
        }
    }

    #[test]
    fn some_are_named_and_all_are_counted() {
        let table: String = (0..30)
            .map(|n| format!("TCP CB0071{n:02X} 9C40 C0000250 0050 0AF4020A 1F90 ESTABLISHED 899\n"))
            .collect();
        let passing =
            select(table.as_bytes(), &TIMEOUTS, |one| one.client.ip() != IpAddr::from([203, 0, 113, 0]))
                .unwrap();
        assert_eq!((passing.count, passing.some.len()), (29, NAMED));
        assert!(passing.some.is_sorted());
    }
}
