//! Sheave: Services into IPVS virtual servers in tunnel mode, their virtual IPs into BGP.
//!
//! Data flows one way: source → [`cluster::Index`] → [`plan`] → {[`dataplane`], [`announce`]} → [`observe`].

pub mod cli;
pub mod cluster;
pub mod config;
pub mod dataplane;
pub mod plan;
mod yaml;
