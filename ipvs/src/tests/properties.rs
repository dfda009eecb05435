//! What is encoded decodes to the same; what is damaged gives errors, and never a panic.

use std::net::IpAddr;

use proptest::prelude::*;

use crate::uapi::{NLA_F_NESTED, cmd, dest, stats, svc, top};
use crate::wire::{self, Attributes, Message, Writer};
use crate::{
    Destination, Family, ForwardingMethod, Operation, PersistenceEngineName, Protocol, SchedulerName,
    Service, ServiceFlags, ServiceKey, TunnelFlags, TunnelType, decode, encode,
};

const FAMILY: u16 = 0x25;

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
}

fn key() -> impl Strategy<Value = ServiceKey> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    prop_oneof![
        (protocol(), any::<IpAddr>(), any::<u16>())
            .prop_map(|(protocol, address, port)| ServiceKey::Address { protocol, address, port }),
        (family, 1..=u32::MAX).prop_map(|(family, mark)| ServiceKey::Fwmark { family, mark }),
    ]
}

fn service() -> impl Strategy<Value = Service> {
    let name = "[!-~]{1,15}";
    (key(), name, any::<u32>(), any::<u32>(), any::<u8>(), proptest::option::of(name)).prop_map(
        |(key, scheduler, flags, timeout, netmask, engine)| Service {
            key,
            scheduler: scheduler.parse::<SchedulerName>().unwrap(),
            flags: ServiceFlags::from_bits(flags),
            timeout,
            netmask: netmask % (key.family().bits() + 1),
            pe_name: engine.map(|name| name.parse::<PersistenceEngineName>().unwrap()),
        },
    )
}

fn destination() -> impl Strategy<Value = Destination> {
    let forwarding = prop_oneof![
        Just(ForwardingMethod::Masquerade),
        Just(ForwardingMethod::Local),
        Just(ForwardingMethod::Tunnel),
        Just(ForwardingMethod::DirectRoute),
        Just(ForwardingMethod::Bypass),
    ];
    let flags = || any::<u16>().prop_map(TunnelFlags::from_bits);
    let tunnel = prop_oneof![
        Just(TunnelType::Ipip),
        (any::<u16>(), flags()).prop_map(|(port, flags)| TunnelType::Gue { port, flags }),
        flags().prop_map(|flags| TunnelType::Gre { flags }),
        (3..=u8::MAX, any::<u16>(), flags()).prop_map(|(number, port, flags)| TunnelType::Other {
            number,
            port,
            flags
        }),
    ];
    (any::<(IpAddr, u16, u32, u32, u32)>(), forwarding, tunnel).prop_map(
        |((address, port, weight, upper_threshold, lower_threshold), forwarding, tunnel)| Destination {
            address,
            port,
            forwarding,
            weight,
            upper_threshold,
            lower_threshold,
            tunnel,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        service().prop_map(Operation::AddService),
        service().prop_map(Operation::SetService),
        key().prop_map(Operation::DelService),
        key().prop_map(Operation::ZeroService),
        (key(), destination()).prop_map(|(key, value)| Operation::AddDestination(key, value)),
        (key(), destination()).prop_map(|(key, value)| Operation::SetDestination(key, value)),
        (key(), any::<IpAddr>(), any::<u16>())
            .prop_map(|(key, address, port)| Operation::DelDestination(key, address, port)),
    ]
}

/// Reads a request as the kernel would. Where only a key is sent, what the kernel asks for in full is added.
fn read_request(message: &Message<'_>) -> Operation {
    let (command, attributes) = message.generic().unwrap();
    let mut nested = attributes.clone().find(top::SERVICE).unwrap().unwrap().payload.to_vec();
    let full = matches!(command, cmd::NEW_SERVICE | cmd::SET_SERVICE);
    if !full {
        let mut writer = Writer::new(&mut nested);
        writer.put(svc::SCHED_NAME, b"rr\0");
        writer.put(svc::FLAGS, &[0; 8]);
        writer.put_u32(svc::TIMEOUT, 0);
        writer.put_u32(svc::NETMASK, 0);
    }
    let service = decode::service_entry(Attributes::new(&nested)).unwrap().service;
    let key = service.key;
    let destination = attributes.find(top::DEST).unwrap().map(|attribute| {
        let mut nested = attribute.payload.to_vec();
        if command == cmd::DEL_DEST {
            let mut writer = Writer::new(&mut nested);
            for kind in [dest::FWD_METHOD, dest::WEIGHT, dest::U_THRESH, dest::L_THRESH] {
                writer.put_u32(kind, 0);
            }
        }
        decode::destination(Attributes::new(&nested), key.family()).unwrap().destination
    });
    match (command, destination) {
        (cmd::NEW_SERVICE, None) => Operation::AddService(service),
        (cmd::SET_SERVICE, None) => Operation::SetService(service),
        (cmd::DEL_SERVICE, None) => Operation::DelService(key),
        (cmd::ZERO, None) => Operation::ZeroService(key),
        (cmd::NEW_DEST, Some(destination)) => Operation::AddDestination(key, destination),
        (cmd::SET_DEST, Some(destination)) => Operation::SetDestination(key, destination),
        (cmd::DEL_DEST, Some(destination)) => {
            Operation::DelDestination(key, destination.address, destination.port)
        }
        other => panic!("{other:?}"),
    }
}

/// A reply's attributes of a service or destination, statistics and an attribute of the future included.
fn reply(operation: &Operation) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::operation(&mut bytes, FAMILY, operation);
    let message = wire::messages(&bytes).next().unwrap().unwrap();
    let (_, attributes) = message.generic().unwrap();
    let mut nested = attributes.last().unwrap().unwrap().payload.to_vec();
    let mut writer = Writer::new(&mut nested);
    writer.nested(svc::STATS, |stats| stats.put_u32(stats::CONNS, 7));
    writer.nested(svc::STATS64, |stats| stats.put(stats::CONNS, &7_u64.to_ne_bytes()));
    writer.put(0x3ff0, b"new");
    nested
}

/// The same attributes, but that of one kind is longer.
fn lengthen(bytes: &[u8], kind: u16, extra: usize) -> Vec<u8> {
    let mut longer = Vec::new();
    for attribute in Attributes::new(bytes) {
        let attribute = attribute.unwrap();
        let mut payload = attribute.payload.to_vec();
        payload.resize(payload.len() + if attribute.kind == kind { extra } else { 0 }, 0);
        Writer::new(&mut longer).put(attribute.kind, &payload);
    }
    longer
}

/// All that decodes attributes, on anything.
fn decode_anything(bytes: &[u8]) {
    let attributes = || Attributes::new(bytes);
    let _ = decode::service_entry(attributes());
    let _ = decode::destination(attributes(), Family::V4);
    let _ = decode::destination(attributes(), Family::V6);
    let _ = decode::info(&attributes());
    let _ = decode::timeouts(&attributes());
    for message in wire::messages(bytes).flatten() {
        let _ = message.error_number();
        let _ = message.generic().map(|(_, attributes)| attributes.count());
    }
}

proptest! {
    #[test]
    fn operations_read_back(operations in proptest::collection::vec(operation(), 1..8), first in any::<u32>()) {
        let mut bytes = Vec::new();
        for operation in &operations {
            encode::operation(&mut bytes, FAMILY, operation);
            prop_assert_eq!(bytes.len() % 4, 0);
        }
        prop_assert_eq!(wire::stamp(&mut bytes, first) as usize, operations.len());
        let messages: Vec<_> = wire::messages(&bytes).collect::<Result<_, _>>().unwrap();
        let read: Vec<_> = messages.iter().map(read_request).collect();
        prop_assert_eq!(read, operations);
        for (index, message) in (0_u32..).zip(&messages) {
            prop_assert_eq!(message.sequence, first.wrapping_add(index));
        }
    }

    #[test]
    fn replies_cut_short_are_errors(
        service in service(),
        destination in destination(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let key = service.key;
        let bytes = reply(&Operation::AddService(service));
        let entry = decode::service_entry(Attributes::new(&bytes)).unwrap();
        prop_assert_eq!((entry.service, entry.stats.connections), (service, 7));
        // Each attribute that is left is whole, or the cut is noticed; and what is missing must be optional.
        let short = &bytes[..cut.index(bytes.len())];
        if let Ok(entry) = decode::service_entry(Attributes::new(short)) {
            prop_assert_eq!(entry.service, service);
        }

        let bytes = reply(&Operation::AddDestination(key, destination));
        let entry = decode::destination(Attributes::new(&bytes), key.family()).unwrap();
        prop_assert_eq!((entry.destination, entry.stats.connections), (destination, 7));
        let short = &bytes[..cut.index(bytes.len())];
        if let Ok(entry) = decode::destination(Attributes::new(short), key.family()) {
            let without_tunnel = Destination { tunnel: entry.destination.tunnel, ..destination };
            prop_assert_eq!(entry.destination, without_tunnel);
        }
    }

    #[test]
    fn wrong_lengths_are_errors(
        service in service(),
        destination in destination(),
        which in any::<proptest::sample::Index>(),
        extra in 1..4_usize,
    ) {
        let key = service.key;
        let numbers = match key {
            ServiceKey::Address { .. } => [svc::AF, svc::PROTOCOL, svc::ADDR, svc::PORT, svc::FLAGS, svc::NETMASK],
            ServiceKey::Fwmark { .. } => [svc::AF, svc::FWMARK, svc::FWMARK, svc::FLAGS, svc::TIMEOUT, svc::NETMASK],
        };
        let longer = lengthen(&reply(&Operation::AddService(service)), numbers[which.index(6)], extra);
        prop_assert!(decode::service_entry(Attributes::new(&longer)).is_err());

        let numbers = [dest::ADDR_FAMILY, dest::ADDR, dest::PORT, dest::FWD_METHOD, dest::WEIGHT, dest::U_THRESH];
        let longer =
            lengthen(&reply(&Operation::AddDestination(key, destination)), numbers[which.index(6)], extra);
        prop_assert!(decode::destination(Attributes::new(&longer), key.family()).is_err());
    }

    #[test]
    fn damaged_replies_do_not_panic(
        operation in operation(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = reply(&operation);
        for (index, byte) in flips {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        decode_anything(&bytes);
    }

    #[test]
    fn anything_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_anything(&bytes);
    }
}

#[test]
fn nested_attributes_are_flagged() {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).nested(top::SERVICE, |_| {});
    assert_eq!(bytes[2..], (top::SERVICE | NLA_F_NESTED).to_ne_bytes());
}
