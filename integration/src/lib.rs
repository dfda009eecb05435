//! The lab: networks of namespaces, real peers, real traffic, and the scenarios that run on them.
//!
//! [`fabric`] builds the network, [`traffic`] uses it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes here are the lab's own: ports, node numbers, bytes of a pattern"
)]

pub mod fabric;
pub mod netns;
pub mod process;
pub mod traffic;
pub mod wait;
