//! A shell in the lab.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::demo::quickstart;
use crate::lab::Kind;

/// Starts the quick start's cluster and a shell beside it; ends with the shell.
pub fn run(binary: &Path, dir: &Path) -> Result<()> {
    let (lab, _) = quickstart(binary, dir, Kind::Manifests)?;
    let manifests = lab.source.manifests()?.dir().display();
    println!(
        "The lab is up, with an agent on node-a, node-b and node-c.
  on node-a ipvsadm -Ln         a command on a node (`on node-a sheave status`, `on node-a nft list table inet sheave`)
  ip netns exec client bash     namespaces: client external spine leaf1 leaf2 node-a node-b node-c a1 a2 b1 b2 c1 c2
  birdc -s {0}/leaf1.ctl show route
  {manifests}    manifests: edit them, and the agents follow
  {0}    configurations and logs
  exec 3<>/dev/tcp/192.0.2.80/80; echo who >&3; head -1 <&3      (in the client's namespace) asks the Service web
Leave with `exit`.",
        dir.display()
    );
    let tools = [lab.on().parent().map(Path::to_path_buf), binary.parent().map(Path::to_path_buf)];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(tools.into_iter().flatten().chain(std::env::split_paths(&path)))?;
    Command::new("bash").arg("--norc").env("PATH", path).env("PS1", "lab# ").status().context("bash")?;
    Ok(())
}
