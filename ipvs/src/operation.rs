//! Changes to the kernel's table, and how they fared.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use crate::{Destination, Service, ServiceKey};

/// One change. Prints as `add TCP 10.0.0.1:80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Add a virtual server; `EEXIST` where there is one.
    AddService(Service),
    /// Change all of a virtual server but its key; destinations stay.
    SetService(Service),
    /// Delete a virtual server with its destinations.
    DelService(ServiceKey),
    /// Add a destination at the head of a virtual server's list.
    AddDestination(ServiceKey, Destination),
    /// Change all of a destination but its address and port; its place in the list stays.
    SetDestination(ServiceKey, Destination),
    /// Delete a destination.
    DelDestination(ServiceKey, IpAddr, u16),
    /// Set the counters of a virtual server and its destinations to 0.
    ZeroService(ServiceKey),
}

impl Operation {
    /// The virtual server concerned.
    pub const fn key(&self) -> ServiceKey {
        match *self {
            Self::AddService(service) | Self::SetService(service) => service.key,
            Self::DelService(key)
            | Self::AddDestination(key, _)
            | Self::SetDestination(key, _)
            | Self::DelDestination(key, ..)
            | Self::ZeroService(key) => key,
        }
    }

    /// What an error of the kernel means for this operation, and what to do
    /// (`net/netfilter/ipvs/ip_vs_ctl.c`); empty where its own name says enough.
    pub fn explain(&self, errno: Errno) -> &'static str {
        let service = matches!(self, Self::AddService(_) | Self::SetService(_));
        let destination = matches!(self, Self::AddDestination(..) | Self::SetDestination(..));
        match errno {
            Errno::SRCH => "there is no such virtual server",
            Errno::EXIST if service => "there is such a virtual server already",
            Errno::EXIST => "the virtual server has such a destination already",
            Errno::NOENT if service => {
                "there is no such scheduler or persistence engine: `modprobe ip_vs_NAME` or `ip_vs_pe_NAME`"
            }
            Errno::NOENT => "the virtual server has no such destination",
            Errno::RANGE => "a weight is above 2147483647 or the lower threshold above the upper",
            Errno::INVAL if service => "an IPv6 netmask is 1 to 128; the scheduler refuses the flags",
            Errno::INVAL if destination => {
                "the address is not unicast, a GUE tunnel has no port, or `lo` of this network namespace is down"
            }
            Errno::PERM => "IPVS takes CAP_NET_ADMIN in the initial user namespace",
            _ => "",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService(service) => write!(f, "add {} {}", service.key, service.scheduler),
            Self::SetService(service) => write!(f, "set {} {}", service.key, service.scheduler),
            Self::DelService(key) => write!(f, "delete {key}"),
            Self::AddDestination(key, destination) => write!(f, "add to {key} {destination}"),
            Self::SetDestination(key, destination) => write!(f, "set in {key} {destination}"),
            Self::DelDestination(key, address, port) => {
                write!(f, "delete from {key} {}", SocketAddr::new(*address, *port))
            }
            Self::ZeroService(key) => write!(f, "zero {key}"),
        }
    }
}

/// An operation that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which operation, counted from 0.
    pub index: usize,
    /// Why; [`Operation::explain`] tells what it means.
    pub errno: Errno,
}

/// How a batch fared. An operation that is not among the failures is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Operations, each of them one netlink message.
    pub messages: usize,
    /// `send` system calls.
    pub sends: usize,
    /// The operations that failed, in order.
    pub failures: Vec<Failure>,
}
