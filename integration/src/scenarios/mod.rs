//! What must hold, each proven by real traffic.

mod agent;
mod bulk;
mod directors;
mod guard;
mod paths;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lab::Lab;

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it proves, in one sentence.
    pub proves: &'static str,
    run: fn(&mut Lab) -> Result<()>,
}

/// All of them, those that disturb the agents last.
pub fn all() -> Vec<Scenario> {
    [paths::SCENARIOS, bulk::SCENARIOS, guard::SCENARIOS, directors::SCENARIOS, agent::SCENARIOS].concat()
}

/// How many scenarios did what they claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that did.
    pub passed: usize,
    /// Those that did not.
    pub failed: usize,
}

/// Runs scenarios one after the other in one lab, and prints a line for each as it ends. After a failure the next one gets a new lab;
/// what the failed one left is shown.
pub fn run(scenarios: &[Scenario], binary: &Path, dir: &Path) -> Counts {
    let mut counts = Counts::default();
    let mut lab: Option<Lab> = None;
    for scenario in scenarios {
        let start = Instant::now();
        let outcome = match lab.take() {
            Some(ready) => Ok(ready),
            None => Lab::start(binary, dir),
        };
        let result = outcome.and_then(|mut ready| match (scenario.run)(&mut ready) {
            Ok(()) => {
                lab = Some(ready);
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
