//! Requests one after the other, while something is done to the cluster.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use sheave::cluster::Protocol;

use super::Request;
use crate::netns::NetNs;

/// A longer run than any scenario's is a fault of the scenario.
const MAX_RUN: Duration = Duration::from_secs(300);

/// How often all workers together ask at most, unless their requests have pauses of their own. More would leave no CPU of an emulated machine to what they
/// ask: to routers, agents and the lab itself.
const REQUESTS_PER_SECOND: u32 = 200;

/// How many workers there are.
static WORKERS: AtomicU32 = AtomicU32::new(0);

/// Waits until `count` more requests of each of these have been answered, all counted from now on.
pub fn await_each<'a>(loads: impl IntoIterator<Item = &'a Load>, count: u64) -> Result<()> {
    let goals: Vec<_> = loads.into_iter().map(|load| (load, load.answered() + count)).collect();
    goals.into_iter().try_for_each(|(load, goal)| {
        crate::wait::await_some(
            Duration::from_secs(30),
            &format!("answers under load, {}", load.name),
            || {
                let now = load.answered();
                if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}, {} failed", load.failed())) }
            },
        )
    })
}

/// Workers that each open a new connection soon after the last one was answered.
#[derive(Debug)]
pub struct Load {
    name: String,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Result<LoadReport>>>,
}

/// What they saw.
#[derive(Debug, Default)]
pub struct LoadReport {
    /// Requests with an answer.
    pub answered: u64,
    /// By whom.
    pub endpoints: BTreeMap<String, u64>,
    /// The slowest answer.
    pub slowest: Duration,
    /// Requests without one: when (since the start) and why.
    pub failures: Vec<(Duration, String)>,
    /// How many of them were reset.
    pub reset: usize,
}

impl Load {
    /// Starts `workers` of them in a namespace.
    pub fn start(
        from: &NetNs,
        protocol: Protocol,
        address: IpAddr,
        port: u16,
        workers: usize,
    ) -> Result<Self> {
        Self::of(from, Request::new(protocol, address, port), workers)
    }

    /// The same with this request: one with a source port is one worker's.
    pub fn of(from: &NetNs, request: Request, workers: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let failed = Arc::new(AtomicU64::new(0));
        let workers = (0..workers)
            .map(|_| {
                let (stop, answered, failed) =
                    (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&failed));
                from.thread(move || work(&request, &stop, &answered, &failed))
            })
            .collect::<Result<_>>()?;
        let name = format!("{} → {} {}", from.name(), request.protocol, request.to);
        Ok(Self { name, stop, answered, failed, workers })
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Requests that failed so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Waits until `count` more requests have been answered.
    pub fn await_answers(&self, count: u64) -> Result<()> {
        await_each([self], count)
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = LoadReport::default();
        for worker in self.workers.drain(..) {
            let report = worker.join().map_err(|_| anyhow!("a worker panicked"))?.context("load")?;
            sum.answered += report.answered;
            for (endpoint, count) in report.endpoints {
                *sum.endpoints.entry(endpoint).or_default() += count;
            }
            sum.slowest = sum.slowest.max(report.slowest);
            sum.failures.extend(report.failures);
            sum.reset += report.reset;
        }
        sum.failures.sort();
        Ok(sum)
    }

    /// Ends it; an error if a request failed, or none was answered.
    pub fn none_failed(self) -> Result<()> {
        let name = self.name.clone();
        self.stop()?.ensure_none_failed().context(name)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl LoadReport {
    /// An error if a request failed, or none was answered.
    pub fn ensure_none_failed(&self) -> Result<()> {
        ensure!(self.answered > 0, "no request was answered");
        let (failed, total) = (self.failures.len(), self.answered as usize + self.failures.len());
        let first: Vec<String> = self
            .failures
            .iter()
            .take(5)
            .map(|(at, why)| format!("after {:.1} s: {why}", at.as_secs_f32()))
            .collect();
        ensure!(failed == 0, "{failed} of {total} requests failed: {}", first.join("; "));
        Ok(())
    }
}

fn work(request: &Request, stop: &AtomicBool, answered: &AtomicU64, failed: &AtomicU64) -> LoadReport {
    // As many clients as there are CPUs and more: what routes and watches comes first, as if it had machines of its own.
    let _ = rustix::process::nice(10);
    WORKERS.fetch_add(1, Ordering::Relaxed);
    let start = Instant::now();
    let mut report = LoadReport::default();
    while !stop.load(Ordering::Relaxed) && start.elapsed() < MAX_RUN {
        let at = start.elapsed();
        match request.ask() {
            Ok(answer) => {
                report.answered += 1;
                *report.endpoints.entry(answer.endpoint).or_default() += 1;
                report.slowest = report.slowest.max(answer.took);
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                failed.fetch_add(1, Ordering::Relaxed);
                report.reset += usize::from(error.kind() == io::ErrorKind::ConnectionReset);
                report.failures.push((at, error.to_string()));
            }
        }
        let shared = || Duration::from_secs(1) * WORKERS.load(Ordering::Relaxed) / REQUESTS_PER_SECOND;
        std::thread::sleep(request.pause.unwrap_or_else(shared));
    }
    WORKERS.fetch_sub(1, Ordering::Relaxed);
    report
}
