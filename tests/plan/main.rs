//! From what a cluster says to what a node should do: rules, conflicts, sources, config and the printed plan.
#![cfg(test)]

mod aggregates;
mod build;
mod config;
mod conflicts;
mod drain;
mod endpoints;
mod explain;
mod forwarding;
mod index;
mod manifests;
mod mesh;
mod node;
mod policies;
mod printed;
mod rules;
