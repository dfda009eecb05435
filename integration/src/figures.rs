//! What a scenario measured, for the table of `integration/lab soak`.

use std::time::Duration;

use crate::traffic::{LoadReport, Tally};

/// Counts and times; those of several runs can be added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Connections that were opened for one request.
    pub requests: u64,
    /// How many of these got no answer.
    pub failed: u64,
    /// Connections that were open for long.
    pub long: u64,
    /// How many of these are still what they were.
    pub kept: u64,
    /// Connections of either kind that were reset.
    pub reset: u64,
    /// From a cut until a router no longer used it.
    pub routers: Vec<Duration>,
    /// The longest that a flow of datagrams went without an answer.
    pub silence: Duration,
    /// The slowest answer over TCP.
    pub slowest: Duration,
}

impl Figures {
    /// Adds requests.
    pub fn count(&mut self, report: &LoadReport) {
        self.requests += report.answered + report.failures.len() as u64;
        self.failed += report.failures.len() as u64;
        self.reset += report.reset as u64;
        self.slowest = self.slowest.max(report.slowest);
    }

    /// Adds connections at their end.
    pub fn tally(&mut self, tally: &Tally) {
        self.long += (tally.kept + tally.reset + tally.lost) as u64;
        self.kept += tally.kept as u64;
        self.reset += tally.reset as u64;
        self.slowest = self.slowest.max(tally.slowest);
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        // All fields, so that none is forgotten.
        let Self { requests, failed, long, kept, reset, routers, silence, slowest } = other;
        self.requests += requests;
        self.failed += failed;
        self.long += long;
        self.kept += kept;
        self.reset += reset;
        self.routers.extend(routers);
        self.silence = self.silence.max(*silence);
        self.slowest = self.slowest.max(*slowest);
    }

    /// The median and the longest of the routers' times.
    pub fn router_times(&self) -> Option<(Duration, Duration)> {
        let mut sorted = self.routers.clone();
        sorted.sort_unstable();
        Some((*sorted.get(sorted.len() / 2)?, *sorted.last()?))
    }
}
