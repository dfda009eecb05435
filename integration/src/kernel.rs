//! What a node's kernel holds, as seen from outside the agent.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use sheave::cluster::Protocol;
use sheave_ipvs::{Destination, Ipvs, ServiceEntry, ServiceKey};

use crate::netns::NetNs;

/// The IPVS table of a namespace. Over netlink: `/proc/net/ip_vs` read in several pieces skips entries where several namespaces have
/// virtual servers (`ip_vs_info_seq_next` counts those of all, `ip_vs_info_seq_start` only its own).
pub fn virtual_servers(ns: &NetNs) -> Result<Vec<ServiceEntry>> {
    ns.enter(|| Ipvs::open()?.dump())?.with_context(|| format!("IPVS table of {}", ns.name()))
}

/// Endpoints of a virtual server that may get new connections; none where there is no such virtual server.
pub fn active(servers: &[ServiceEntry], protocol: Protocol, address: SocketAddr) -> Vec<SocketAddr> {
    let all = destinations(servers, protocol, address).into_iter();
    all.filter(|to| to.weight > 0).map(|to| SocketAddr::new(to.address, to.port)).collect()
}

/// Destinations of a virtual server; none where there is no such virtual server.
pub fn destinations(servers: &[ServiceEntry], protocol: Protocol, address: SocketAddr) -> Vec<Destination> {
    let protocol = match protocol {
        Protocol::Tcp => sheave_ipvs::Protocol::Tcp,
        Protocol::Udp => sheave_ipvs::Protocol::Udp,
        Protocol::Sctp => sheave_ipvs::Protocol::Sctp,
    };
    let key = ServiceKey::Address { protocol, address: address.ip(), port: address.port() };
    let found = servers.iter().find(|entry| entry.service.key == key);
    found.into_iter().flat_map(|entry| &entry.destinations).map(|entry| entry.destination).collect()
}

/// All that an agent could change in a namespace, as text, for comparing and for showing.
pub fn dump(ns: &NetNs) -> String {
    show(
        ns,
        &[
            "ipvsadm -Sn",
            "nft -s list ruleset",
            "ip -br link",
            "ip -br addr",
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "ip -6 route show table all",
        ],
    )
}

/// What it remembers of connections.
pub fn connections(ns: &NetNs) -> String {
    show(ns, &["ipvsadm -Lcn", "conntrack -L", "conntrack -L -f ipv6"])
}

fn show(ns: &NetNs, commands: &[&str]) -> String {
    let mut text = String::new();
    for command in commands {
        let output = ns.run(command).unwrap_or_else(|error| format!("{error:#}"));
        let mut lines: Vec<&str> = output.lines().map(str::trim_end).collect();
        if !command.starts_with("nft") {
            lines.sort_unstable();
        }
        let _ = writeln!(text, "# {command}\n{}\n", lines.join("\n"));
    }
    text
}

/// The sysctls that a dataplane touches, one per line.
pub fn sysctls(ns: &NetNs) -> String {
    let touched = |line: &&str| {
        let name = line.split(" = ").next().unwrap_or_default();
        let ends = ["ip_forward", "all.forwarding", "rp_filter", "accept_local"];
        name.starts_with("net.ipv4.vs.") || ends.iter().any(|end| name.ends_with(end))
    };
    match ns.run("sysctl -a") {
        Ok(all) => all.lines().filter(touched).collect::<Vec<_>>().join("\n"),
        Err(error) => format!("{error:#}"),
    }
}
