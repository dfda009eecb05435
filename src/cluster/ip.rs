//! IP addresses as Kubernetes reads them.
//!
//! Its API has accepted IPv4 addresses with leading zeros from the beginning, which it takes for decimal (`ParseIPSloppy`), and
//! what is stored stays valid for ever. Rust's parsers refuse them, since others take them for octal. An IPv4 address that is
//! written as an IPv6 one (`::ffff:10.0.0.1`) is to Kubernetes the IPv4 one.

use std::net::IpAddr;

use ipnet::IpNet;

/// Reads an address.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().or_else(|_| without_leading_zeros(text).parse()).ok()?;
    Some(address.to_canonical())
}

/// Reads a CIDR; host bits are cleared.
pub(super) fn cidr(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().or_else(|_| without_leading_zeros(text).parse()).ok()?;
    Some(net.trunc())
}

/// Without the zeros that each of its numbers begins with.
fn without_leading_zeros(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut within = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let more = characters.peek().is_some_and(char::is_ascii_hexdigit);
        if within || character != '0' || !more {
            plain.push(character);
            within = character.is_ascii_hexdigit();
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, read) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.0.0.1", Some("10.0.0.1")),
            ("192.168.000.012", Some("192.168.0.12")),
            ("000.0.00.0", Some("0.0.0.0")),
            ("10.0100.0.1", Some("10.100.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.1", Some("10.0.0.1")),
            ("256.0.0.1", None),
            ("0256.0.0.1", None),
            ("0x0a.0.0.1", None),
            ("10.0.0", None),
            ("10.0.0.", None),
            ("10.0.0.1 ", None),
            ("010.0.0.1/8", None),
            ("42", None),
            ("0", None),
            ("", None),
        ] {
            assert_eq!(address(text).map(|ip| ip.to_string()).as_deref(), read, "{text}");
        }
    }

    #[test]
    fn cidrs_are_read_as_kubernetes_reads_them() {
        for (text, read) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("010.000.0.0/08", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("fd00::/064", Some("fd00::/64")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
        ] {
            assert_eq!(cidr(text).map(|net| net.to_string()).as_deref(), read, "{text}");
        }
    }
}
