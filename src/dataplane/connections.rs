//! Connections that need this node, of IPVS's own table (`/proc/net/ip_vs_conn`).
//!
//! IPVS remembers an established connection for minutes after its last packet, so that its count says nothing of one that has moved to
//! another director. But each packet sets the time anew that the entry has left: how much of it is gone is how long nothing came.

use std::fs::File;
use std::io::{self, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

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

impl Dataplane {
    /// Connections of clients outside of the cluster for which something came within the last `lately`, and all to the node's own
    /// addresses. What this node and its pods open themselves goes through this node as long as they are here, whoever else is a director.
    ///
    /// # Errors
    /// What the kernel says, in words.
    pub fn passing(&mut self, plan: &NodePlan, lately: Duration) -> Result<Passing, String> {
        let timeouts = self.servers.timeouts().map_err(|error| error.to_string())?;
        let table = File::open(TABLE).map_err(|error| format!("{TABLE}: {error}"))?;
        let is_inside = |client: &IpAddr| {
            plan.node.addresses.contains(client)
                || plan.node.cluster_clients.iter().any(|net| net.contains(client))
        };
        let counts = |connection: &Connection| {
            let server = plan.virtual_servers.get(&connection.vip);
            server.is_some_and(|server| connection.needs(server.kind, lately))
                && !is_inside(&connection.client.ip())
        };
        select(BufReader::new(table), &timeouts, counts).map_err(|error| format!("{TABLE}: {error}"))
    }
}

impl Connection {
    /// Whether it needs this node still: something came for it lately, or it is to an address of the node itself, and can go nowhere else
    /// until it ends. Of a flow of datagrams no end is seen.
    fn needs(&self, kind: VipKind, lately: Duration) -> bool {
        self.idle < lately || kind == VipKind::NodePort && self.vip.protocol != Protocol::Udp
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

    #[test]
    fn who_needs_this_node() {
        let lately = Duration::from_secs(5);
        for (protocol, kind, idle, expected) in [
            (Protocol::Tcp, VipKind::LoadBalancerIP, 4, true),
            (Protocol::Tcp, VipKind::LoadBalancerIP, 5, false),
            (Protocol::Udp, VipKind::ExternalIP, 4, true),
            (Protocol::Tcp, VipKind::NodePort, 800, true),
            (Protocol::Sctp, VipKind::NodePort, 800, true),
            (Protocol::Udp, VipKind::NodePort, 4, true),
            (Protocol::Udp, VipKind::NodePort, 5, false),
        ] {
            let address = IpAddr::from([192, 0, 2, 80]);
            let connection = Connection {
                vip: VipPort { address, port: 80, protocol },
                client: SocketAddr::new(address, 40000),
                idle: Duration::from_secs(idle),
            };
            assert_eq!(connection.needs(kind, lately), expected, "{protocol} {kind:?} {idle}");
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
