//! Operations → netlink messages.

use std::net::IpAddr;

use crate::uapi::{IPVS_GENL_VERSION, cmd, dest, svc, top};
use crate::wire::Writer;
use crate::{Destination, Family, Operation, Service, ServiceKey, TunnelType};

/// Appends the message of an operation.
pub(crate) fn operation(bytes: &mut Vec<u8>, family: u16, operation: &Operation) {
    let command = match operation {
        Operation::AddService(_) => cmd::NEW_SERVICE,
        Operation::SetService(_) => cmd::SET_SERVICE,
        Operation::DelService(_) => cmd::DEL_SERVICE,
        Operation::AddDestination(..) => cmd::NEW_DEST,
        Operation::SetDestination(..) => cmd::SET_DEST,
        Operation::DelDestination(..) => cmd::DEL_DEST,
        Operation::ZeroService(_) => cmd::ZERO,
    };
    Writer::new(bytes).message(family, 0, (command, IPVS_GENL_VERSION), |message| {
        message.nested(top::SERVICE, |attributes| match operation {
            Operation::AddService(value) | Operation::SetService(value) => service(attributes, value),
            _ => service_key(attributes, &operation.key()),
        });
        match operation {
            Operation::AddDestination(_, value) | Operation::SetDestination(_, value) => {
                message.nested(top::DEST, |attributes| destination(attributes, value));
            }
            Operation::DelDestination(_, address, port) => {
                message.nested(top::DEST, |attributes| destination_key(attributes, *address, *port));
            }
            _ => {}
        }
    });
}

/// What identifies a service.
pub(crate) fn service_key(attributes: &mut Writer<'_>, key: &ServiceKey) {
    attributes.put_u16(svc::AF, key.family().number());
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            attributes.put_u16(svc::PROTOCOL, protocol.number().into());
            put_address(attributes, svc::ADDR, address);
            attributes.put_port(svc::PORT, port);
        }
        ServiceKey::Fwmark { mark, .. } => attributes.put_u32(svc::FWMARK, mark),
    }
}

fn service(attributes: &mut Writer<'_>, service: &Service) {
    service_key(attributes, &service.key);
    attributes.put(svc::SCHED_NAME, service.scheduler.with_nul());
    if let Some(engine) = &service.pe_name {
        attributes.put(svc::PE_NAME, engine.with_nul());
    }
    // struct ip_vs_flags: the flags, then which of them to change. All: what is not asked for goes.
    let mut flags = [0xff; 8];
    flags[..4].copy_from_slice(&service.flags.bits().to_ne_bytes());
    attributes.put(svc::FLAGS, &flags);
    attributes.put_u32(svc::TIMEOUT, service.timeout);
    let netmask = match service.key.family() {
        Family::V4 => {
            u32::MAX.checked_shl(32_u32.saturating_sub(service.netmask.into())).unwrap_or(0).to_be()
        }
        Family::V6 => service.netmask.into(),
    };
    attributes.put_u32(svc::NETMASK, netmask);
}

fn destination_key(attributes: &mut Writer<'_>, address: IpAddr, port: u16) {
    // A kernel before 3.18 skips the family, and knows no other than the service's.
    attributes.put_u16(dest::ADDR_FAMILY, Family::of(address).number());
    put_address(attributes, dest::ADDR, address);
    attributes.put_port(dest::PORT, port);
}

fn destination(attributes: &mut Writer<'_>, destination: &Destination) {
    destination_key(attributes, destination.address, destination.port);
    attributes.put_u32(dest::FWD_METHOD, destination.forwarding.number());
    attributes.put_u32(dest::WEIGHT, destination.weight);
    attributes.put_u32(dest::U_THRESH, destination.upper_threshold);
    attributes.put_u32(dest::L_THRESH, destination.lower_threshold);
    // The kernel takes an absent type for IP in IP, also where it changes a destination.
    if destination.tunnel != TunnelType::Ipip {
        let (number, port, flags) = destination.tunnel.to_parts();
        attributes.put_u8(dest::TUN_TYPE, number);
        attributes.put_port(dest::TUN_PORT, port);
        attributes.put_u16(dest::TUN_FLAGS, flags);
    }
}

fn put_address(attributes: &mut Writer<'_>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => attributes.put(kind, &address.octets()),
        IpAddr::V6(address) => attributes.put(kind, &address.octets()),
    }
}
