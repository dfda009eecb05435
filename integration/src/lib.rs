//! The lab: networks of namespaces, real peers, real traffic, and the scenarios that run on them.
//!
//! [`fabric`] builds the network, [`lab`] puts a cluster on it (agents, pods, manifests or an API server), [`traffic`] uses it, [`scenarios`] says what
//! must hold.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes here are the lab's own: ports, node numbers, bytes of a pattern"
)]

pub mod apiserver;
pub mod bench;
pub mod cluster;
pub mod demo;
pub mod fabric;
pub mod figures;
pub mod kernel;
pub mod lab;
pub mod netns;
pub mod process;
pub mod scenarios;
pub mod shell;
pub mod soak;
pub mod source;
pub mod traffic;
pub mod wait;
