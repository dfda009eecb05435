//! From what a cluster says to what a node should do: rules, conflicts, sources, config and the printed plan.
#![cfg(test)]

mod aggregates;
mod build;
#[path = "../builders/mod.rs"]
mod builders;
mod config;
mod conflicts;
mod drain;
mod endpoints;
mod explain;
mod forwarding;
#[path = "../golden/mod.rs"]
mod golden;
mod index;
mod manifests;
mod mesh;
mod node;
mod policies;
mod printed;
mod rules;
