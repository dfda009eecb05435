//! Links that fall silent: they stay up, and nothing passes. No kernel tells of it; only who expects to hear something notices.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::netns::NetNs;
use crate::wait::await_some;

/// Drops what comes and goes over devices of a namespace, from [`fall`](Self::fall) on until it is dropped.
#[derive(Debug)]
pub struct Silence {
    ns: NetNs,
    rules: String,
    nft: Child,
}

impl Silence {
    /// Gets it ready: all that is left to do is a single transaction, so that the moment is known to a few milliseconds.
    pub fn arm(ns: &NetNs, devices: &[&str]) -> Result<Self> {
        let mut rules = String::from("table netdev silence {\n");
        for (number, device) in devices.iter().enumerate() {
            for hook in ["ingress", "egress"] {
                let _ = writeln!(
                    rules,
                    " chain {hook}{number} {{ type filter hook {hook} device \"{device}\" priority 0; policy drop; }}"
                );
            }
        }
        rules += "}\n";
        let mut command = Command::new("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let nft = ns.enter(|| command.spawn())?.context("nft")?;
        let waits = format!("/proc/{}/wchan", nft.id());
        await_some(Duration::from_secs(10), "nft to wait for its input", || {
            let at = std::fs::read_to_string(&waits).map_err(|error| format!("{waits}: {error}"))?;
            if at.contains("pipe_read") { Ok(()) } else { Err(at) }
        })?;
        Ok(Self { ns: ns.clone(), rules, nft })
    }

    /// Silence, from now on; when that was.
    pub fn fall(&mut self) -> Result<Instant> {
        let mut input = self.nft.stdin.take().context("it has fallen already")?;
        let at = Instant::now();
        input.write_all(self.rules.as_bytes())?;
        drop(input);
        let status = self.nft.wait()?;
        ensure!(status.success(), "nft in {}: {status}\n{}", self.ns.name(), self.rules);
        Ok(at)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // One that has not fallen is not to do so now.
        let _ = self.nft.kill();
        let _ = self.nft.wait();
        let _ = self.ns.run("nft delete table netdev silence");
    }
}
