//! Linux IPVS (the kernel's layer-4 load balancer, LVS) over generic netlink: typed and batched.
//!
//! ```text
//! Operation ──encode──► Batch, sends of up to 192 KiB ──► kernel ──► Applied: which operations failed, and why
//! ServiceEntry, DestinationEntry ◄──decode── dump or look-up  ◄──┘
//! ```
//!
//! A table of 10,000 virtual servers with 10 destinations each is some sixty `send` calls instead of 110,000, and
//! the kernel answers only for operations that fail. One virtual server is looked up without a dump.
//!
//! ```no_run
//! use std::net::IpAddr;
//!
//! use sheave_ipvs::{
//!     Destination, ForwardingMethod, Ipvs, Operation, Protocol, Service, ServiceFlags, ServiceKey,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut ipvs = Ipvs::open()?;
//! let key = ServiceKey::Address { protocol: Protocol::Tcp, address: "192.0.2.1".parse()?, port: 80 };
//! let service = Service {
//!     flags: ServiceFlags::MH_FALLBACK | ServiceFlags::MH_PORT,
//!     ..Service::new(key, "mh".parse()?)
//! };
//! let mut operations = vec![Operation::AddService(service)];
//! for address in ["10.0.0.1", "10.0.0.2"] {
//!     let address: IpAddr = address.parse()?;
//!     let destination = Destination::new(address, 8080, ForwardingMethod::Tunnel);
//!     operations.push(Operation::AddDestination(key, destination));
//! }
//! for failure in ipvs.apply(&operations)?.failures {
//!     let operation = &operations[failure.index];
//!     eprintln!("{operation}: {} {}", failure.errno, operation.explain(failure.errno));
//! }
//! assert_eq!(ipvs.service(&key)?.map(|entry| entry.destinations.len()), Some(2));
//! # Ok(())
//! # }
//! ```
//!
//! Kernel side: `include/uapi/linux/ip_vs.h`, `net/netfilter/ipvs/ip_vs_ctl.c`. IPVS is per network namespace,
//! takes `CAP_NET_ADMIN` in the initial user namespace, and refuses destinations while `lo` is down.

mod batch;
mod decode;
mod destination;
mod encode;
mod error;
mod exchange;
mod ipvs;
mod name;
mod operation;
mod service;
mod socket;
mod stats;
#[cfg(test)]
mod tests;
mod uapi;
mod wire;

pub use batch::Batch;
pub use destination::{Destination, DestinationEntry, ForwardingMethod, TunnelFlags, TunnelType};
pub use error::{Error, Malformed};
pub use ipvs::Ipvs;
pub use name::{InvalidName, PersistenceEngineName, SchedulerName};
pub use operation::{Applied, Failure, Operation};
pub use rustix::io::Errno;
pub use service::{Family, Protocol, Service, ServiceEntry, ServiceFlags, ServiceKey};
pub use stats::{Info, Stats, Timeouts};
