//! Agents that follow an API server, and write to it.

use super::Scenario;

pub(super) const SCENARIOS: &[Scenario] = &[];
