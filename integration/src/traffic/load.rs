//! Requests without a pause, while something is done to the cluster.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use sheave::cluster::Protocol;

use super::{LIMIT, Request};
use crate::netns::NetNs;

/// A longer run than any scenario's is a fault of the scenario.
const MAX_RUN: Duration = Duration::from_secs(300);

/// Workers that each open a new connection as soon as the last one was answered.
#[derive(Debug)]
pub struct Load {
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
        Self::of(from, Request::new(protocol, address, port).within(LIMIT), workers)
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
        Ok(Self { stop, answered, failed, workers })
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
        let goal = self.answered() + count;
        crate::wait::await_some(Duration::from_secs(30), "answers under load", || {
            let now = self.answered();
            if now >= goal { Ok(()) } else { Err(format!("{now} of {goal}")) }
        })
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
        if !request.pause.is_zero() {
            std::thread::sleep(request.pause);
        }
    }
    report
}
