//! Sheave: Services into IPVS virtual servers in tunnel mode, their virtual IPs into BGP.
//!
//! Data flows one way: source → [`cluster::Index`] → [`plan`] → {[`dataplane`], [`announce`]} → [`observe`].

pub mod agent;
pub mod announce;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dataplane;
pub mod drain;
pub mod observe;
pub mod plan;
pub mod tables;
pub mod version;
mod yaml;

// Builders that tests here and in `tests/` share; these know this crate by its name.
#[cfg(test)]
#[path = "../tests/builders/mod.rs"]
mod builders;
#[cfg(test)]
extern crate self as sheave;
