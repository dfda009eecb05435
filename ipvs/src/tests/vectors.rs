//! Bytes as they cross to a little-endian kernel and back.
#![cfg(target_endian = "little")]

use crate::uapi::{dest, stats, svc};
use crate::wire::{self, Attributes, Writer};
use crate::{
    Destination, Family, ForwardingMethod, Operation, Protocol, Service, ServiceFlags, ServiceKey,
    TunnelFlags, TunnelType, decode, encode,
};

/// Bytes from hexadecimal digits; anything else is for the reader's eye.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|d| d.try_into().unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn key4() -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::Tcp, address: "192.0.2.1".parse().unwrap(), port: 80 }
}

fn encoded(operation: &Operation) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::operation(&mut bytes, 0x25, operation);
    assert_eq!(wire::stamp(&mut bytes, 9), 1);
    bytes
}

#[test]
fn add_service() {
    let service = Service {
        flags: ServiceFlags::MH_FALLBACK | ServiceFlags::MH_PORT,
        ..Service::new(key4(), "mh".parse().unwrap())
    };
    let expected = "
        5c000000 2500 0500 09000000 00000000   01 01 0000
        4800 0180
          0600 0100 0200 0000
          0600 0200 0600 0000
          0800 0300 c0000201
          0600 0400 0050 0000
          0700 0600 6d6800 00
          0c00 0700 18000000 ffffffff
          0800 0800 00000000
          0800 0900 ffffffff";
    assert_eq!(encoded(&Operation::AddService(service)), hex(expected));
}

#[test]
fn set_persistent_service_by_mark() {
    let key = ServiceKey::Fwmark { family: Family::V6, mark: 7 };
    let service = Service {
        flags: ServiceFlags::PERSISTENT,
        timeout: 360,
        netmask: 64,
        pe_name: Some("sip".parse().unwrap()),
        ..Service::new(key, "rr".parse().unwrap())
    };
    let expected = "
        54000000 2500 0500 09000000 00000000   02 01 0000
        4000 0180
          0600 0100 0a00 0000
          0800 0500 07000000
          0700 0600 727200 00
          0800 0b00 73697000
          0c00 0700 01000000 ffffffff
          0800 0800 68010000
          0800 0900 40000000";
    assert_eq!(encoded(&Operation::SetService(service)), hex(expected));
}

#[test]
fn add_destination_of_the_other_family_with_gue() {
    let destination = Destination {
        weight: 3,
        upper_threshold: 100,
        lower_threshold: 50,
        tunnel: TunnelType::Gue { port: 5555, flags: TunnelFlags::CSUM },
        ..Destination::new("2001:db8::2".parse().unwrap(), 8080, ForwardingMethod::Tunnel)
    };
    let expected = "
        98000000 2500 0500 09000000 00000000   05 01 0000
        2400 0180
          0600 0100 0200 0000
          0600 0200 0600 0000
          0800 0300 c0000201
          0600 0400 0050 0000
        6000 0280
          0600 0b00 0a00 0000
          1400 0100 20010db8 00000000 00000000 00000002
          0600 0200 1f90 0000
          0800 0300 02000000
          0800 0400 03000000
          0800 0500 64000000
          0800 0600 32000000
          0500 0d00 01 000000
          0600 0e00 15b3 0000
          0600 0f00 0100 0000";
    assert_eq!(encoded(&Operation::AddDestination(key4(), destination)), hex(expected));
}

#[test]
fn delete_destination() {
    let operation = Operation::DelDestination(key4(), "10.0.0.1".parse().unwrap(), 8080);
    let expected = "
        54000000 2500 0500 09000000 00000000   07 01 0000
        2400 0180
          0600 0100 0200 0000
          0600 0200 0600 0000
          0800 0300 c0000201
          0600 0400 0050 0000
        1c00 0280
          0600 0b00 0200 0000
          0800 0100 0a000001
          0600 0200 1f90 0000";
    assert_eq!(encoded(&operation), hex(expected));
}

#[test]
fn only_the_last_message_of_a_send_is_acknowledged() {
    let mut bytes = Vec::new();
    for _ in 0..3 {
        encode::operation(&mut bytes, 0x25, &Operation::DelService(key4()));
    }
    assert_eq!(wire::stamp(&mut bytes, u32::MAX), 3);
    let length = bytes.len() / 3;
    let headers: Vec<_> = bytes.chunks(length).map(|message| message[6..12].to_vec()).collect();
    assert_eq!(headers, [hex("0100 ffffffff"), hex("0100 00000000"), hex("0500 01000000")]);
}

fn attributes(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut Writer::new(&mut bytes));
    bytes
}

/// The least that any kernel reports: addresses of 16 bytes, no 64-bit statistics.
fn old_service(writer: &mut Writer<'_>) {
    writer.put_u16(svc::AF, 2);
    writer.put_u16(svc::PROTOCOL, 17);
    writer.put(svc::ADDR, &hex("c0000201 00000000 00000000 00000000"));
    writer.put_port(svc::PORT, 53);
    writer.put(svc::SCHED_NAME, b"wlc\0");
    writer.put(svc::FLAGS, &hex("03000000 ffffffff"));
    writer.put_u32(svc::TIMEOUT, 300);
    writer.put(svc::NETMASK, &[255, 255, 255, 0]);
    writer.nested(svc::STATS, |writer| {
        writer.put_u32(stats::CONNS, 5);
        writer.put(stats::INBYTES, &6_u64.to_ne_bytes());
        writer.put_u32(stats::OUTBPS, 7);
    });
}

#[test]
fn service_of_an_old_kernel() {
    let entry = decode::service_entry(Attributes::new(&attributes(old_service))).unwrap();
    let address = "192.0.2.1".parse().unwrap();
    let key = ServiceKey::Address { protocol: Protocol::Udp, address, port: 53 };
    // The kernel's own HASHED (2) is not among the flags.
    let flags = ServiceFlags::PERSISTENT;
    let expected = Service { flags, timeout: 300, netmask: 24, ..Service::new(key, "wlc".parse().unwrap()) };
    assert_eq!(entry.service, expected);
    let stats = entry.stats;
    assert_eq!((stats.connections, stats.incoming_bytes, stats.outgoing_byte_rate), (5, 6, 7));
}

#[test]
fn wide_statistics_win_wherever_they_stand() {
    let wide = |writer: &mut Writer<'_>| {
        writer.nested(svc::STATS64, |writer| writer.put(stats::CONNS, &(1_u64 << 40).to_ne_bytes()));
    };
    for order in [true, false] {
        let bytes = attributes(|writer| {
            if order {
                wide(writer);
            }
            old_service(writer);
            if !order {
                wide(writer);
            }
        });
        assert_eq!(decode::service_entry(Attributes::new(&bytes)).unwrap().stats.connections, 1 << 40);
    }
}

fn old_destination(writer: &mut Writer<'_>) {
    writer.put(dest::ADDR, &hex("0a000001 00000000 00000000 00000000"));
    writer.put_port(dest::PORT, 8080);
    // Other connection flags of the kernel above the method are not ours.
    writer.put_u32(dest::FWD_METHOD, 0x0102);
    writer.put_u32(dest::WEIGHT, 1);
    writer.put_u32(dest::U_THRESH, 0);
    writer.put_u32(dest::L_THRESH, 0);
    writer.put_u32(dest::ACTIVE_CONNS, 1);
    writer.put_u32(dest::INACT_CONNS, 2);
    writer.put_u32(dest::PERSIST_CONNS, 3);
}

#[test]
fn destination_of_an_old_kernel() {
    let bytes = attributes(old_destination);
    let entry = decode::destination(Attributes::new(&bytes), Family::V4).unwrap();
    let expected = Destination::new("10.0.0.1".parse().unwrap(), 8080, ForwardingMethod::Tunnel);
    assert_eq!(entry.destination, expected);
    let connections = (entry.active_connections, entry.inactive_connections, entry.persistent_connections);
    assert_eq!(connections, (1, 2, 3));
}

#[test]
fn errors_name_the_field() {
    type Write = fn(&mut Writer<'_>);
    let cases: [(&str, &str, Write); 6] = [
        ("an unknown protocol", "protocol", |writer| writer.put_u16(svc::PROTOCOL, 51)),
        ("an unknown family", "family", |writer| writer.put_u16(svc::AF, 1)),
        ("a short address", "address", |writer| writer.put(svc::ADDR, &[1, 2, 3])),
        ("an empty scheduler", "scheduler", |writer| writer.put(svc::SCHED_NAME, b"\0")),
        ("a long scheduler", "scheduler", |writer| writer.put(svc::SCHED_NAME, &[b'a'; 16])),
        ("flags without mask", "flags", |writer| writer.put_u32(svc::FLAGS, 1)),
    ];
    for (name, field, write) in cases {
        let bytes = attributes(|writer| {
            old_service(writer);
            write(writer);
        });
        let error = decode::service_entry(Attributes::new(&bytes)).unwrap_err();
        assert_eq!((error.object, error.field), ("service", field), "{name}");
    }
    let error = decode::service_entry(Attributes::new(&[])).unwrap_err();
    assert_eq!(error.to_string(), "service: family is missing, of the wrong length, or out of range");
    let bytes = attributes(|writer| {
        old_destination(writer);
        writer.put_u32(dest::FWD_METHOD, 5);
    });
    let error = decode::destination(Attributes::new(&bytes), Family::V4).unwrap_err();
    assert_eq!(error.field, "forwarding method");
}

#[test]
fn lengths_that_do_not_fit() {
    for bytes in [hex("03"), hex("0300 0100"), hex("0000 0100"), hex("0900 0100 00000000")] {
        assert!(Attributes::new(&bytes).next().unwrap().is_err(), "{bytes:02x?}");
        assert_eq!(Attributes::new(&bytes).count(), 1, "{bytes:02x?}");
    }
    let header = "0000 0000 00000000 00000000";
    for bytes in [hex("10000000"), hex(&format!("0f000000 {header}")), hex(&format!("11000000 {header}"))] {
        assert!(wire::messages(&bytes).next().unwrap().is_err(), "{bytes:02x?}");
        assert_eq!(wire::messages(&bytes).count(), 1, "{bytes:02x?}");
    }
}
