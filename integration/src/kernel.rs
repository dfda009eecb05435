//! What a node's kernel holds, as seen from outside the agent.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};

use crate::netns::NetNs;

/// A virtual server of IPVS as `/proc/net/ip_vs` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What it listens on.
    pub address: SocketAddr,
    /// Destinations: address, forwarding method as the kernel names it, weight.
    pub destinations: Vec<(SocketAddr, String, u32)>,
}

/// The IPVS table of a namespace.
pub fn virtual_servers(ns: &NetNs) -> Result<Vec<VirtualServer>> {
    let text = ns.read("/proc/thread-self/net/ip_vs")?;
    let mut servers: Vec<VirtualServer> = Vec::new();
    for line in text.lines().skip(3) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["->", address, forward, weight, ..] => {
                let server =
                    servers.last_mut().context("/proc/net/ip_vs: a destination before any virtual server")?;
                let weight = weight.parse().with_context(|| format!("/proc/net/ip_vs: {line}"))?;
                let address = parse(address).with_context(|| format!("/proc/net/ip_vs: {line}"))?;
                server.destinations.push((address, (*forward).to_owned(), weight));
            }
            [protocol @ ("TCP" | "UDP" | "SCTP"), address, ..] => {
                let address = parse(address).with_context(|| format!("/proc/net/ip_vs: {line}"))?;
                servers.push(VirtualServer {
                    protocol: (*protocol).to_owned(),
                    address,
                    destinations: Vec::new(),
                });
            }
            _ => {}
        }
    }
    Ok(servers)
}

/// `0AF4020A:1F90` or `[2001:0db8:…]:1F90`.
fn parse(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address: IpAddr = match address.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse().ok()?,
        None => Ipv4Addr::from_bits(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some((address, port).into())
}

/// All that an agent could change in a namespace, as text, for comparing and for showing.
pub fn dump(ns: &NetNs) -> String {
    let mut text = String::new();
    for command in [
        "ipvsadm -Sn",
        "nft -s list ruleset",
        "ip -br link",
        "ip -br addr",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
    ] {
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
