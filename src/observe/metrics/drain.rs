//! How far this node has drained.

use std::time::SystemTime;

use super::exposition::Families;
use super::seconds;
use super::snapshot::number;
use crate::drain::Phase;

/// A drain at one moment, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct DrainSnapshot {
    /// Name of the [`Phase`].
    pub phase: &'static str,
    /// Since when the node is not serving.
    pub since: Option<SystemTime>,
    /// Something is left beyond the limit.
    pub overdue: bool,
    /// Connections that need this node still.
    pub connections: usize,
    /// VIPs that no other node is to announce.
    pub kept: usize,
}

impl Default for DrainSnapshot {
    fn default() -> Self {
        Self { phase: Phase::Serving.name(), since: None, overdue: false, connections: 0, kept: 0 }
    }
}

impl DrainSnapshot {
    pub(super) fn add_to(&self, families: &mut Families) {
        let phases = Phase::NAMES.map(|name| ([("phase", name)], f64::from(name == self.phase)));
        families.gauge(
            "sheave_drain_phase",
            "1 for the phase that a drain of this node is in, 0 for the others",
            phases.iter().map(|(labels, value)| (&labels[..], *value)),
        );
        families.gauge(
            "sheave_drain_since_timestamp_seconds",
            "Since when this node is not serving; absent while it is",
            self.since.iter().map(|since| (&[][..], seconds(*since))),
        );
        for (name, help, value) in [
            (
                "sheave_drain_connections",
                "Connections of clients outside the cluster that need this node still, while it empties",
                self.connections,
            ),
            (
                "sheave_drain_kept_prefixes",
                "Virtual IPs that are a last resort still, as no other node is to announce them",
                self.kept,
            ),
            ("sheave_drain_overdue", "Whether something is left beyond drain.limit", self.overdue.into()),
        ] {
            families.gauge(name, help, [(&[][..], number(value))]);
        }
    }
}
