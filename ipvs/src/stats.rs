//! Counters and settings that the kernel reports.

use std::ops::AddAssign;

/// Counters of a virtual server or destination since it was added or zeroed, and their rates.
///
/// Kernels before 4.1 count connections and packets, and report rates, in 32 bits that wrap.
/// What a kernel does not report is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub incoming_packets: u64,
    /// Packets to clients; 0 unless replies pass the director.
    pub outgoing_packets: u64,
    /// Bytes from clients.
    pub incoming_bytes: u64,
    /// Bytes to clients.
    pub outgoing_bytes: u64,
    /// Connections per second.
    pub connection_rate: u64,
    /// Packets per second from clients.
    pub incoming_packet_rate: u64,
    /// Packets per second to clients.
    pub outgoing_packet_rate: u64,
    /// Bytes per second from clients.
    pub incoming_byte_rate: u64,
    /// Bytes per second to clients.
    pub outgoing_byte_rate: u64,
}

impl AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        let Self {
            connections,
            incoming_packets,
            outgoing_packets,
            incoming_bytes,
            outgoing_bytes,
            connection_rate,
            incoming_packet_rate,
            outgoing_packet_rate,
            incoming_byte_rate,
            outgoing_byte_rate,
        } = self;
        for (sum, more) in [
            (connections, other.connections),
            (incoming_packets, other.incoming_packets),
            (outgoing_packets, other.outgoing_packets),
            (incoming_bytes, other.incoming_bytes),
            (outgoing_bytes, other.outgoing_bytes),
            (connection_rate, other.connection_rate),
            (incoming_packet_rate, other.incoming_packet_rate),
            (outgoing_packet_rate, other.outgoing_packet_rate),
            (incoming_byte_rate, other.incoming_byte_rate),
            (outgoing_byte_rate, other.outgoing_byte_rate),
        ] {
            *sum = sum.wrapping_add(more);
        }
    }
}

/// What IPVS tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Version of its interface: major, minor, patch (1.2.1 since 2.6.28).
    pub version: (u8, u8, u8),
    /// Buckets of the connection table.
    pub connection_table_size: u32,
}

/// Timeouts of idle connections in seconds.
///
/// In [`Ipvs::set_timeouts`](crate::Ipvs::set_timeouts) 0 leaves a timeout as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}
