//! Destinations, which LVS also calls real servers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::Stats;

/// How a packet gets to a destination (`IP_VS_CONN_F_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ForwardingMethod {
    /// Rewritten to the destination's address and port; replies come back through the director.
    Masquerade,
    /// Taken in by the director itself.
    Local,
    /// Encapsulated; the destination decapsulates and answers the client directly.
    Tunnel,
    /// Sent to the destination's link-layer address unchanged.
    DirectRoute,
    /// Sent on to its original destination.
    Bypass,
}

impl ForwardingMethod {
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Masquerade => 0,
            Self::Local => 1,
            Self::Tunnel => 2,
            Self::DirectRoute => 3,
            Self::Bypass => 4,
        }
    }

    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Masquerade),
            1 => Some(Self::Local),
            2 => Some(Self::Tunnel),
            3 => Some(Self::DirectRoute),
            4 => Some(Self::Bypass),
            _ => None,
        }
    }
}

impl fmt::Display for ForwardingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Masquerade => "masquerade",
            Self::Local => "local",
            Self::Tunnel => "tunnel",
            Self::DirectRoute => "direct route",
            Self::Bypass => "bypass",
        })
    }
}

/// Checksums in the outer header of GUE and GRE (`IP_VS_TUNNEL_ENCAP_FLAG_*`, since Linux 5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelFlags(u16);

impl TunnelFlags {
    /// Checksum of the outer header.
    pub const CSUM: Self = Self(0x1);
    /// Remote checksum offload (GUE only).
    pub const REMCSUM: Self = Self(0x2);

    /// No checksum.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Flags from the kernel's bits.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The kernel's bits.
    pub const fn bits(self) -> u16 {
        self.0
    }
}

/// What [`ForwardingMethod::Tunnel`] wraps a packet in (other than IP-in-IP: since Linux 5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelType {
    /// IP in IP.
    #[default]
    Ipip,
    /// Generic UDP encapsulation.
    Gue {
        /// Destination's UDP port, not 0.
        port: u16,
        /// Checksums.
        flags: TunnelFlags,
    },
    /// Generic routing encapsulation (since Linux 5.3).
    Gre {
        /// Checksums.
        flags: TunnelFlags,
    },
    /// A type that came after this library: kept as read, so that it can be compared and written back.
    Other {
        /// The kernel's number.
        number: u8,
        /// The port.
        port: u16,
        /// The flags.
        flags: TunnelFlags,
    },
}

impl TunnelType {
    /// The kernel's type, port and flags.
    pub(crate) const fn to_parts(self) -> (u8, u16, u16) {
        match self {
            Self::Ipip => (0, 0, 0),
            Self::Gue { port, flags } => (1, port, flags.bits()),
            Self::Gre { flags } => (2, 0, flags.bits()),
            Self::Other { number, port, flags } => (number, port, flags.bits()),
        }
    }

    pub(crate) const fn from_parts(number: u8, port: u16, flags: u16) -> Self {
        let flags = TunnelFlags::from_bits(flags);
        match number {
            0 => Self::Ipip,
            1 => Self::Gue { port, flags },
            2 => Self::Gre { flags },
            _ => Self::Other { number, port, flags },
        }
    }
}

/// A destination of a virtual server; address and port identify it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Its address; of another family than the virtual server's only with [`ForwardingMethod::Tunnel`].
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// How packets get there.
    pub forwarding: ForwardingMethod,
    /// Share of new connections; 0: none, established ones go on. At most 2³¹ − 1.
    pub weight: u32,
    /// No new connections from this many on; 0: no limit.
    pub upper_threshold: u32,
    /// New connections again below this many; 0: three quarters of the upper threshold.
    pub lower_threshold: u32,
    /// What a tunnel wraps packets in.
    pub tunnel: TunnelType,
}

impl Destination {
    /// A destination of weight 1, without limits, tunnelled (if so) as IP in IP.
    pub const fn new(address: IpAddr, port: u16, forwarding: ForwardingMethod) -> Self {
        Self {
            address,
            port,
            forwarding,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: TunnelType::Ipip,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = SocketAddr::new(self.address, self.port);
        write!(f, "{address} {} weight {}", self.forwarding, self.weight)
    }
}

/// A destination as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestinationEntry {
    /// The destination.
    pub destination: Destination,
    /// Established connections.
    pub active_connections: u32,
    /// Connections in any other state.
    pub inactive_connections: u32,
    /// Persistence templates.
    pub persistent_connections: u32,
    /// Its counters.
    pub stats: Stats,
}
