//! BIRD on the leaf routers.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::addresses::{self, Family, NODE_ASN};
use super::node_name;
use crate::netns::NetNs;
use crate::process::Daemon;
use crate::wait::await_until;

/// Starts BIRD on a leaf; returns it with its control socket once it answers there.
pub(super) fn start(ns: &NetNs, leaf: u8, nodes: u8, dir: &Path) -> Result<(Daemon, PathBuf)> {
    let path = |suffix: &str| dir.join(format!("{}.{suffix}", ns.name()));
    let (config, control, log) = (path("conf"), path("ctl"), path("log"));
    std::fs::write(&config, configuration(leaf, nodes)).with_context(|| config.display().to_string())?;
    let mut command = Command::new("bird");
    command.arg("-f").arg("-c").arg(&config).arg("-s").arg(&control).arg("-P").arg(path("pid"));
    let mut daemon = ns.daemon(command, &log)?;
    await_until(Duration::from_secs(20), "BIRD's control socket", || {
        control.exists() || daemon.ensure_running().is_err()
    })?;
    daemon.ensure_running()?;
    Ok((daemon, control))
}

fn configuration(leaf: u8, nodes: u8) -> String {
    let mut text = format!(
        "log stderr all;
router id {router_id};
protocol device {{ }}
protocol kernel kernel4 {{ merge paths on; ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol kernel kernel6 {{ merge paths on; ipv6 {{ import none; export where source = RTS_BGP; }}; }}
template bgp node {{
  local as {asn};
  direct;
  connect delay time 1; connect retry time 2; error wait time 1, 4;
}}
",
        router_id = addresses::leaf_uplink(Family::V4, leaf),
        asn = addresses::leaf_asn(leaf),
    );
    for node in 1..=nodes {
        for (family, channel) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
            let _ = writeln!(
                text,
                "protocol bgp {name}_{channel} from node {{ neighbor {neighbor} as {NODE_ASN}; {channel} {{ import all; export none; }}; }}",
                name = node_name(node).replace('-', "_"),
                neighbor = addresses::node_link(family, leaf, node),
            );
        }
    }
    text
}
