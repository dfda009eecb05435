//! Attributes of the kernel's replies → values.
//!
//! Strict about what is there, lenient about what is not: an attribute of the wrong length is an error, an
//! unknown one is skipped, one that older kernels lack has a default.

use std::net::IpAddr;

use crate::error::Malformed;
use crate::uapi::{IP_VS_CONN_F_FWD_MASK, dest, info, stats, svc, top};
use crate::wire::{Attribute, Attributes};
use crate::{
    Destination, DestinationEntry, Family, ForwardingMethod, Info, PersistenceEngineName, Protocol,
    SchedulerName, Service, ServiceEntry, ServiceFlags, ServiceKey, Stats, Timeouts, TunnelType,
};

/// A field of a service, or its name in an error.
fn of_service<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or(Malformed::new("service", field))
}

/// A field of a destination, or its name in an error.
fn of_destination<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or(Malformed::new("destination", field))
}

/// A service and its counters from the attributes within `IPVS_CMD_ATTR_SERVICE`, without its destinations.
pub(crate) fn service_entry(attributes: Attributes<'_>) -> Result<ServiceEntry, Malformed> {
    let (mut stats32, mut stats64) = (None, None);
    for attribute in attributes.clone() {
        let attribute = attribute?;
        match attribute.kind {
            svc::STATS => stats32 = Some(counters(attribute.nested())?),
            svc::STATS64 => stats64 = Some(counters(attribute.nested())?),
            _ => {}
        }
    }
    let stats = stats64.or(stats32).unwrap_or_default();
    Ok(ServiceEntry { service: service(attributes)?, stats, destinations: Vec::new() })
}

/// A service from the attributes within `IPVS_CMD_ATTR_SERVICE`.
pub(crate) fn service(attributes: Attributes<'_>) -> Result<Service, Malformed> {
    let (mut family, mut protocol, mut address, mut port, mut mark) = (None, None, None, None, None);
    let (mut scheduler, mut flags, mut timeout, mut netmask, mut pe_name) = (None, None, None, None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            svc::AF => family = Some(of_service("family", attribute.u16().and_then(Family::from_number))?),
            svc::PROTOCOL => {
                let number = attribute.u16().and_then(Protocol::from_number);
                protocol = Some(of_service("protocol", number)?);
            }
            svc::ADDR => address = Some(attribute),
            svc::PORT => port = Some(of_service("port", attribute.port())?),
            svc::FWMARK => mark = Some(of_service("firewall mark", attribute.u32())?),
            svc::SCHED_NAME => {
                let name = SchedulerName::from_bytes(attribute.string()).ok();
                scheduler = Some(of_service("scheduler", name)?);
            }
            svc::FLAGS => {
                // struct ip_vs_flags: the flags, then a mask.
                let [b0, b1, b2, b3, ..] = of_service("flags", attribute.array::<8>())?;
                flags = Some(ServiceFlags::from_bits(u32::from_ne_bytes([b0, b1, b2, b3])));
            }
            svc::TIMEOUT => timeout = Some(of_service("timeout", attribute.u32())?),
            svc::NETMASK => netmask = Some(of_service("netmask", attribute.u32())?),
            svc::PE_NAME => {
                let name = PersistenceEngineName::from_bytes(attribute.string()).ok();
                pe_name = Some(of_service("persistence engine", name)?);
            }
            _ => {}
        }
    }
    let family = of_service("family", family)?;
    let key = match mark {
        Some(mark) => ServiceKey::Fwmark { family, mark },
        None => ServiceKey::Address {
            protocol: of_service("protocol", protocol)?,
            address: of_service("address", address.and_then(|attribute| ip(attribute, family)))?,
            port: of_service("port", port)?,
        },
    };
    let netmask = of_service("netmask", netmask)?;
    let prefix_length = match family {
        Family::V4 => u8::try_from(u32::from_be(netmask).leading_ones()).ok(),
        Family::V6 => u8::try_from(netmask).ok().filter(|length| *length <= 128),
    };
    Ok(Service {
        key,
        scheduler: of_service("scheduler", scheduler)?,
        flags: of_service("flags", flags)?,
        timeout: of_service("timeout", timeout)?,
        netmask: of_service("netmask", prefix_length)?,
        pe_name,
    })
}

/// A destination from the attributes within `IPVS_CMD_ATTR_DEST`, of a service of `service_family`.
pub(crate) fn destination(
    attributes: Attributes<'_>,
    service_family: Family,
) -> Result<DestinationEntry, Malformed> {
    let (mut family, mut address, mut port, mut forwarding) = (service_family, None, None, None);
    let (mut weight, mut upper_threshold, mut lower_threshold) = (None, None, None);
    let (mut active, mut inactive, mut persistent) = (0, 0, 0);
    let (mut tunnel_type, mut tunnel_port, mut tunnel_flags) = (0, 0, 0);
    let (mut stats32, mut stats64) = (None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            dest::ADDR => address = Some(attribute),
            dest::ADDR_FAMILY => {
                family = of_destination("family", attribute.u16().and_then(Family::from_number))?;
            }
            dest::PORT => port = Some(of_destination("port", attribute.port())?),
            dest::FWD_METHOD => {
                let method = of_destination("forwarding method", attribute.u32())? & IP_VS_CONN_F_FWD_MASK;
                let method = ForwardingMethod::from_number(method);
                forwarding = Some(of_destination("forwarding method", method)?);
            }
            dest::WEIGHT => weight = Some(of_destination("weight", attribute.u32())?),
            dest::U_THRESH => upper_threshold = Some(of_destination("upper threshold", attribute.u32())?),
            dest::L_THRESH => lower_threshold = Some(of_destination("lower threshold", attribute.u32())?),
            dest::ACTIVE_CONNS => active = of_destination("active connections", attribute.u32())?,
            dest::INACT_CONNS => inactive = of_destination("inactive connections", attribute.u32())?,
            dest::PERSIST_CONNS => persistent = of_destination("persistent connections", attribute.u32())?,
            dest::TUN_TYPE => tunnel_type = of_destination("tunnel type", attribute.u8())?,
            dest::TUN_PORT => tunnel_port = of_destination("tunnel port", attribute.port())?,
            dest::TUN_FLAGS => tunnel_flags = of_destination("tunnel flags", attribute.u16())?,
            dest::STATS => stats32 = Some(counters(attribute.nested())?),
            dest::STATS64 => stats64 = Some(counters(attribute.nested())?),
            _ => {}
        }
    }
    let destination = Destination {
        address: of_destination("address", address.and_then(|attribute| ip(attribute, family)))?,
        port: of_destination("port", port)?,
        forwarding: of_destination("forwarding method", forwarding)?,
        weight: of_destination("weight", weight)?,
        upper_threshold: of_destination("upper threshold", upper_threshold)?,
        lower_threshold: of_destination("lower threshold", lower_threshold)?,
        tunnel: TunnelType::from_parts(tunnel_type, tunnel_port, tunnel_flags),
    };
    Ok(DestinationEntry {
        destination,
        active_connections: active,
        inactive_connections: inactive,
        persistent_connections: persistent,
        stats: stats64.or(stats32).unwrap_or_default(),
    })
}

/// An address. The kernel sends `union nf_inet_addr`, 16 bytes with an IPv4 address in the first 4; the
/// 4 bytes alone are fine too.
fn ip(attribute: Attribute<'_>, family: Family) -> Option<IpAddr> {
    match (family, attribute.payload.len()) {
        (Family::V4, 4 | 16) => attribute.payload.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        (Family::V6, 16) => attribute.array::<16>().map(IpAddr::from),
        _ => None,
    }
}

fn counters(attributes: Attributes<'_>) -> Result<Stats, Malformed> {
    let mut read = Stats::default();
    for attribute in attributes {
        let attribute = attribute?;
        let counter = match attribute.kind {
            stats::CONNS => &mut read.connections,
            stats::INPKTS => &mut read.incoming_packets,
            stats::OUTPKTS => &mut read.outgoing_packets,
            stats::INBYTES => &mut read.incoming_bytes,
            stats::OUTBYTES => &mut read.outgoing_bytes,
            stats::CPS => &mut read.connection_rate,
            stats::INPPS => &mut read.incoming_packet_rate,
            stats::OUTPPS => &mut read.outgoing_packet_rate,
            stats::INBPS => &mut read.incoming_byte_rate,
            stats::OUTBPS => &mut read.outgoing_byte_rate,
            _ => continue,
        };
        *counter = attribute.counter().ok_or(Malformed::new("statistics", "counter"))?;
    }
    Ok(read)
}

/// The answer to `IPVS_CMD_GET_INFO`.
pub(crate) fn info(attributes: &Attributes<'_>) -> Result<Info, Malformed> {
    let number = |kind, name| {
        let attribute = attributes.clone().find(kind)?;
        attribute.and_then(|attribute| attribute.u32()).ok_or(Malformed::new("info", name))
    };
    let [_, major, minor, patch] = number(info::VERSION, "version")?.to_be_bytes();
    let connection_table_size = number(info::CONN_TAB_SIZE, "connection table size")?;
    Ok(Info { version: (major, minor, patch), connection_table_size })
}

/// The answer to `IPVS_CMD_GET_CONFIG`; a kernel built without a protocol does not report it: 0.
pub(crate) fn timeouts(attributes: &Attributes<'_>) -> Result<Timeouts, Malformed> {
    let seconds = |kind, name| match attributes.clone().find(kind)? {
        Some(attribute) => attribute.u32().ok_or(Malformed::new("timeouts", name)),
        None => Ok(0),
    };
    Ok(Timeouts {
        tcp: seconds(top::TIMEOUT_TCP, "tcp")?,
        tcp_fin: seconds(top::TIMEOUT_TCP_FIN, "tcp fin")?,
        udp: seconds(top::TIMEOUT_UDP, "udp")?,
    })
}
