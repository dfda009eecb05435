//! BIRD on the routers.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::addresses::{self, Family, NODE_ASN, SPINE_ASN};
use super::{LEAVES, Routing, forwarding_cpu, node_name};
use crate::netns::NetNs;
use crate::process::{self, Daemon};
use crate::wait::await_until;

/// A running BIRD.
#[derive(Debug)]
pub(super) struct Bird {
    daemon: Daemon,
    control: PathBuf,
    config: PathBuf,
}

impl Bird {
    /// Starts it on a router; returns once it answers at its control socket.
    pub(super) fn start(ns: &NetNs, configuration: &str, dir: &Path) -> Result<Self> {
        let path = |suffix: &str| dir.join(format!("{}.{suffix}", ns.name()));
        let (config, control, log) = (path("conf"), path("ctl"), path("log"));
        std::fs::write(&config, configuration).with_context(|| config.display().to_string())?;
        // On the CPU that forwards: where one CPU follows the next hops of an IPv6 route while another takes one of them away, Linux before 6.12 can
        // turn in circles for ever (CVE-2024-56703). And before all others there, as on a router whose forwarding has hardware of its own.
        let mut command = Command::new("nice");
        command.args(["-n", "-10", "taskset", "-c", &forwarding_cpu()?.to_string(), "bird"]);
        command.arg("-f").arg("-c").arg(&config).arg("-s").arg(&control).arg("-P").arg(path("pid"));
        let mut daemon = ns.daemon(command, &log)?;
        await_until(Duration::from_secs(20), "BIRD's control socket", || {
            control.exists() || daemon.ensure_running().is_err()
        })?;
        daemon.ensure_running()?;
        Ok(Self { daemon, control, config })
    }

    /// Asks it, e.g. `show route`.
    pub(super) fn ask(&self, question: &str) -> Result<String> {
        let mut command = Command::new("birdc");
        command.arg("-s").arg(&self.control).args(question.split_whitespace());
        process::run(command, "")
    }

    /// Has it run with another configuration.
    pub(super) fn configure(&self, configuration: &str) -> Result<()> {
        std::fs::write(&self.config, configuration).with_context(|| self.config.display().to_string())?;
        let answer = self.ask("configure")?;
        anyhow::ensure!(answer.contains("Reconfigur"), "{}: {answer}", self.config.display());
        Ok(())
    }

    /// An error if it has ended.
    pub(super) fn ensure_running(&mut self) -> Result<()> {
        self.daemon.ensure_running()
    }
}

const CHANNELS: [(Family, &str); 2] = [(Family::V4, "ipv4"), (Family::V6, "ipv6")];

/// What every router has.
fn router(router_id: std::net::IpAddr) -> String {
    format!(
        "log stderr all;
router id {router_id};
protocol device {{ }}
protocol kernel kernel4 {{ merge paths on; ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol kernel kernel6 {{ merge paths on; ipv6 {{ import none; export where source = RTS_BGP; }}; }}
"
    )
}

/// What notices that a neighbour is silent.
fn bfd(interval: Duration) -> String {
    let ms = interval.as_millis();
    format!(
        "protocol bfd {{ interface \"*\" {{ min rx interval {ms} ms; min tx interval {ms} ms; multiplier 3; }}; }}\n"
    )
}

/// The configuration of a leaf.
pub(super) fn leaf(leaf: u8, nodes: u8, routing: Routing) -> String {
    let asn = addresses::leaf_asn(leaf);
    let mut text = router(addresses::leaf_uplink(Family::V4, leaf));
    let (export, option) = match routing {
        Routing::Static => ("export none;", ""),
        // Nodes are told the way out, and nothing else.
        Routing::Bgp { watch, interval } => {
            text += &bfd(interval);
            for (family, channel) in CHANNELS {
                let default = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
                let _ = writeln!(
                    text,
                    "protocol static default_{channel} {{ {channel}; route {default} unreachable; }}\n\
                     protocol bgp spine_{channel} {{ local as {asn}; neighbor {} as {SPINE_ASN}; direct; bfd on; \
                     connect delay time 1; connect retry time 2; error wait time 1, 4; \
                     {channel} {{ import all; export where source = RTS_BGP; }}; }}",
                    addresses::spine_link(family, leaf)
                );
            }
            ("next hop self; export where source = RTS_STATIC;", watch.option())
        }
    };
    let _ = writeln!(
        text,
        "template bgp node {{
  local as {asn};
  direct;
  connect delay time 1; connect retry time 2; error wait time 1, 4; {option}
}}"
    );
    for node in 1..=nodes {
        for (family, channel) in CHANNELS {
            let _ = writeln!(
                text,
                "protocol bgp {name}_{channel} from node {{ neighbor {neighbor} as {NODE_ASN}; {channel} {{ import all; {export} }}; }}",
                name = node_name(node).replace('-', "_"),
                neighbor = addresses::node_link(family, leaf, node),
            );
        }
    }
    text
}

/// The configuration of the spine, where it has one.
pub(super) fn spine(interval: Duration) -> String {
    let mut text = router(addresses::spine_link(Family::V4, 101)) + &bfd(interval);
    for leaf in 1..=LEAVES {
        for (family, channel) in CHANNELS {
            let _ = writeln!(
                text,
                "protocol bgp leaf{leaf}_{channel} {{ local as {SPINE_ASN}; neighbor {} as {}; direct; bfd on; \
                 connect delay time 1; connect retry time 2; error wait time 1, 4; \
                 {channel} {{ import all; export all; }}; }}",
                addresses::leaf_uplink(family, leaf),
                addresses::leaf_asn(leaf)
            );
        }
    }
    text
}
