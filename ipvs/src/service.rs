//! Virtual servers, which the kernel calls services.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::BitOr;

use crate::uapi::IP_VS_SVC_F_HASHED;
use crate::{DestinationEntry, PersistenceEngineName, SchedulerName, Stats};

/// A transport protocol that IPVS balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Its IANA number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub(crate) const fn from_number(number: u16) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `AF_INET` or `AF_INET6`.
    pub(crate) const fn number(self) -> u16 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(crate) const fn from_number(number: u16) -> Option<Self> {
        match number {
            2 => Some(Self::V4),
            10 => Some(Self::V6),
            _ => None,
        }
    }

    /// Length of an address in bits: 32 or 128.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// What a virtual server listens on; the kernel knows at most one service for each.
///
/// Prints as `TCP 10.0.0.1:80`, `UDP [2001:db8::1]:53`, `FWM 7 IPv4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// Packets to an address and port.
    Address {
        /// The protocol.
        protocol: Protocol,
        /// The virtual IP.
        address: IpAddr,
        /// The port; 0 for all ports, which takes [`ServiceFlags::PERSISTENT`].
        port: u16,
    },
    /// Packets that netfilter marked.
    Fwmark {
        /// Whose packets.
        family: Family,
        /// The mark, not 0.
        mark: u32,
    },
}

impl ServiceKey {
    /// The address family of its packets.
    pub const fn family(&self) -> Family {
        match *self {
            Self::Address { address, .. } => Family::of(address),
            Self::Fwmark { family, .. } => family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address { protocol, address, port } => {
                write!(f, "{protocol} {}", SocketAddr::new(address, port))
            }
            Self::Fwmark { family: Family::V4, mark } => write!(f, "FWM {mark} IPv4"),
            Self::Fwmark { family: Family::V6, mark } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// Flags of a virtual server (`IP_VS_SVC_F_*`), without `HASHED`: that one is the kernel's own, set on
/// each service it lists, and it never gets into this type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceFlags(u32);

impl ServiceFlags {
    /// Connections of one client go to one destination for [`Service::timeout`].
    pub const PERSISTENT: Self = Self(0x1);
    /// Each datagram is scheduled on its own (`ipvsadm --ops`; UDP only).
    pub const ONE_PACKET: Self = Self(0x4);
    /// First flag of the scheduler.
    pub const SCHED1: Self = Self(0x8);
    /// Second flag of the scheduler.
    pub const SCHED2: Self = Self(0x10);
    /// Third flag of the scheduler.
    pub const SCHED3: Self = Self(0x20);
    /// `mh`: choose another destination where the hashed one takes no new connections.
    pub const MH_FALLBACK: Self = Self::SCHED1;
    /// `mh`: hash the client's port too.
    pub const MH_PORT: Self = Self::SCHED2;
    /// `sh`: choose another destination where the hashed one takes no new connections.
    pub const SH_FALLBACK: Self = Self::SCHED1;
    /// `sh`: hash the client's port too.
    pub const SH_PORT: Self = Self::SCHED2;

    /// No flag.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Flags from the kernel's bits, unknown ones included, `HASHED` left out.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & !IP_VS_SVC_F_HASHED)
    }

    /// The kernel's bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `flags` are set.
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for ServiceFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// What it listens on.
    pub key: ServiceKey,
    /// Who picks the destination.
    pub scheduler: SchedulerName,
    /// Flags.
    pub flags: ServiceFlags,
    /// Persistence timeout in seconds; 0 without [`ServiceFlags::PERSISTENT`].
    pub timeout: u32,
    /// Prefix length of the clients that persistence takes for one: up to 32, in IPv6 1 to 128.
    ///
    /// The kernel takes any bit mask for IPv4; one with gaps, which nothing here writes, is read as the
    /// number of its leading ones.
    pub netmask: u8,
    /// Persistence engine (`ipvsadm --pe`).
    pub pe_name: Option<PersistenceEngineName>,
}

impl Service {
    /// A service without flags and persistence.
    pub const fn new(key: ServiceKey, scheduler: SchedulerName) -> Self {
        Self {
            key,
            scheduler,
            flags: ServiceFlags::empty(),
            timeout: 0,
            netmask: key.family().bits(),
            pe_name: None,
        }
    }
}

/// A virtual server as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The virtual server.
    pub service: Service,
    /// Its counters.
    pub stats: Stats,
    /// Its destinations in the kernel's order: the one added last comes first.
    pub destinations: Vec<DestinationEntry>,
}
