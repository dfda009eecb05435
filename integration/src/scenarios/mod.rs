//! What must hold, each proven by real traffic.

mod affinity;
mod agent;
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

use crate::lab::Lab;
use crate::source::SourceKind;

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
pub fn all() -> Vec<(SourceKind, Scenario)> {
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
    [(SourceKind::Manifests, with_manifests), (SourceKind::Api, with_api_server)]
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

/// Runs scenarios one after the other in one lab per kind, and prints a line for each as it ends. After a failure the next one gets
/// a new lab; what the failed one left is shown.
pub fn run(scenarios: &[(SourceKind, Scenario)], binary: &Path, dir: &Path) -> Counts {
    let mut counts = Counts::default();
    let mut lab: Option<(SourceKind, Lab)> = None;
    for (kind, scenario) in scenarios {
        let start = Instant::now();
        let outcome = match lab.take() {
            Some((found, ready)) if found == *kind => Ok(ready),
            other => {
                // Its namespaces have the same names.
                drop(other);
                Lab::start(binary, dir, *kind)
            }
        };
        let result = outcome.and_then(|mut ready| match (scenario.run)(&mut ready) {
            Ok(()) => {
                lab = Some((*kind, ready));
                Ok(())
            }
            Err(error) => Err(ready.explain(&error, scenario.name)),
        });
        report(scenario, start.elapsed(), &result);
        match result {
            Ok(()) => counts.passed += 1,
            Err(_) => counts.failed += 1,
        }
    }
    counts
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
