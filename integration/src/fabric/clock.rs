//! When routes changed, by the kernel's own notifications.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::addresses::Family;
use crate::netns::NetNs;
use crate::wait::await_some;

/// Notes what becomes of a router's or a node's routes of one family, and when, until it is dropped.
#[derive(Debug)]
pub struct RouteClock {
    ns: NetNs,
    monitor: Child,
    noted: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl RouteClock {
    /// Begins to note.
    pub fn start(ns: &NetNs, family: Family) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args([family.flag(), "-o", "monitor", "route"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut monitor = ns.enter(|| command.spawn())?.context("ip monitor")?;
        let lines = BufReader::new(monitor.stdout.take().context("a pipe")?).lines();
        let noted = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&noted);
        // Ends with what it reads from.
        std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            for line in lines.map_while(std::io::Result::ok) {
                notes.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line));
            }
        })?;
        Ok(Self { ns: ns.clone(), monitor, noted })
    }

    /// How long after `since` the route to a destination first was without a next hop over that device.
    pub fn without(&self, destination: &str, device: &str, since: Instant) -> Result<Duration> {
        let what = format!("{}: {destination} without {device}", self.ns.name());
        await_some(Duration::from_secs(10), &what, || {
            let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            let mut later = noted.iter().filter(|(at, line)| *at >= since && is_about(line, destination));
            let found = later.find(|(_, line)| line.starts_with("Deleted ") || !uses(line, device));
            found.map(|(at, _)| *at - since).ok_or_else(|| format!("{:?}", noted.iter().rev().take(4)))
        })
    }
}

impl Drop for RouteClock {
    fn drop(&mut self) {
        // Already gone is what we want.
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

fn is_about(line: &str, destination: &str) -> bool {
    line.strip_prefix("Deleted ").unwrap_or(line).split_whitespace().next() == Some(destination)
}

fn uses(line: &str, device: &str) -> bool {
    let mut words = line.split_whitespace();
    std::iter::from_fn(|| words.find(|word| *word == "dev").and_then(|_| words.next()))
        .any(|dev| dev == device)
}
