//! What must hold, each proven by real traffic.

mod affinity;
mod agent;
mod announced;
mod api;
mod ask;
mod beside;
mod bmp;
mod bulk;
mod directors;
mod drain;
mod dynamic_peers;
mod encapsulation;
mod explain;
mod failover;
mod guard;
mod import;
mod invalid;
mod kept_ports;
mod leaf_spine;
mod loads;
mod mesh;
mod nat;
mod node_ports;
mod observe;
mod order;
mod paths;
mod pods;
mod policies;
mod source_ranges;
mod tables;
mod termination;
mod unready;
mod updates;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::figures::Figures;
use crate::lab::{Kind, Lab};

/// How often BFD speaks in tests: seldom enough for a machine that has other things to do. What counts is measured by `integration/lab soak`.
const FAILOVER_BFD: Duration = Duration::from_millis(300);

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it proves, in one sentence.
    pub proves: &'static str,
    run: fn(&mut Lab) -> Result<()>,
}

/// All of them and what their lab's source is: those that disturb the agents come last of each kind.
pub fn all() -> Vec<(Kind, Scenario)> {
    let with_manifests = [
        paths::SCENARIOS,
        bulk::SCENARIOS,
        guard::SCENARIOS,
        source_ranges::SCENARIOS,
        updates::SCENARIOS,
        order::SCENARIOS,
        affinity::SCENARIOS,
        policies::SCENARIOS,
        node_ports::SCENARIOS,
        nat::SCENARIOS,
        directors::SCENARIOS,
        termination::SCENARIOS,
        kept_ports::SCENARIOS,
        invalid::SCENARIOS,
        unready::SCENARIOS,
        observe::SCENARIOS,
        explain::SCENARIOS,
        pods::SCENARIOS,
        &beside::scenarios(),
        tables::SCENARIOS,
        bmp::SCENARIOS,
        import::SCENARIOS,
        dynamic_peers::SCENARIOS,
        leaf_spine::SCENARIOS,
        mesh::SCENARIOS,
        drain::SCENARIOS,
        agent::SCENARIOS,
    ]
    .concat();
    let with_api_server = [encapsulation::SCENARIOS, drain::WITH_API_SERVER, api::SCENARIOS].concat();
    [
        (Kind::Manifests, with_manifests),
        (Kind::Api, with_api_server),
        (Kind::Watched(FAILOVER_BFD), failover::scenarios()),
        (Kind::Bare, failover::CONTROL.to_vec()),
    ]
    .into_iter()
    .flat_map(|(kind, scenarios)| scenarios.into_iter().map(move |scenario| (kind, scenario)))
    .collect()
}

/// How many scenarios did what they claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that did.
    pub passed: usize,
    /// Those that did not.
    pub failed: usize,
}

/// Runs those scenarios that `take` gives, one after the other in one lab per kind, and prints a line for each as it ends. After a failure the
/// next one gets a new lab; what the failed one left is shown.
pub fn run(
    scenarios: &[(Kind, Scenario)],
    take: impl Fn(&Scenario) -> bool,
    binary: &Path,
    dir: &Path,
) -> Counts {
    let mut counts = Counts::default();
    let mut lab = None;
    for (kind, scenario) in scenarios.iter().filter(|(_, scenario)| take(scenario)) {
        let start = Instant::now();
        let (result, _, left) = run_one(*kind, scenario, lab.take(), binary, dir);
        lab = left;
        report(scenario, start.elapsed(), &result);
        match result {
            Ok(()) => counts.passed += 1,
            Err(_) => counts.failed += 1,
        }
    }
    counts
}

/// Runs a scenario in a lab that another has left, if it is of that kind, else in a new one. Gives what it measured, and, unless it failed, the lab.
pub fn run_one(
    kind: Kind,
    scenario: &Scenario,
    lab: Option<(Kind, Lab)>,
    binary: &Path,
    dir: &Path,
) -> (Result<()>, Figures, Option<(Kind, Lab)>) {
    let ready = match lab {
        Some((found, ready)) if found == kind => Ok(ready),
        other => {
            // Its namespaces have the same names.
            drop(other);
            Lab::start(binary, dir, kind)
        }
    };
    let mut lab = match ready {
        Ok(lab) => lab,
        Err(error) => return (Err(error), Figures::default(), None),
    };
    let result = (scenario.run)(&mut lab);
    let figures = std::mem::take(&mut lab.figures);
    match result {
        Ok(()) => (Ok(()), figures, Some((kind, lab))),
        Err(error) => (Err(lab.explain(&error, scenario.name)), figures, None),
    }
}

fn report(scenario: &Scenario, took: Duration, result: &Result<()>) {
    let seconds = took.as_secs_f32();
    let Scenario { name, proves, .. } = scenario;
    match result {
        Ok(()) => println!("ok      {name} ({seconds:.1} s): {proves}"),
        Err(error) => {
            println!("FAILED  {name} ({seconds:.1} s): {proves}");
            println!("{error:#}");
        }
    }
}
