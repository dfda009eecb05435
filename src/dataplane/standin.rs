//! Stand-ins: the private addresses that take an endpoint's place as IPVS destination where this node rewrites
//! as director (*nat*).
//!
//! The outer packet of a *nat* destination must not look like one for the endpoint itself, whose node might
//! accept it. So IPVS is given a stand-in that never leaves this node: the outer packet is caught on its way
//! out and looped back. A stand-in is a function of the endpoint's address alone, so that every director hashes
//! the same destination (`ip_vs_mh.c` hashes address and port).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4 stand-ins: class E, reserved by RFC 1112 section 4 and forwarded by nobody.
pub const RANGE4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4);
/// IPv6 stand-ins: the discard-only prefix (RFC 6666).
pub const RANGE6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64);

/// The stand-in of `endpoint`, of the same family.
///
/// IPv4 keeps the low 28 bits, so that `250.244.2.10` is seen to stand for `10.244.2.10`. Two endpoints whose
/// addresses differ in the high 4 bits alone share one; [`super::numbers`] refuses the second.
/// IPv6 mixes the high half into the low one.
pub fn of(endpoint: IpAddr) -> IpAddr {
    match endpoint {
        IpAddr::V4(address) => {
            let low = u32::from(address) & !u32::from(RANGE4.netmask());
            // 255.255.255.255 is the broadcast address, not a destination.
            let low = if low == 0x0fff_ffff { 0x0fff_fffe } else { low };
            IpAddr::V4((u32::from(RANGE4.addr()) | low).into())
        }
        IpAddr::V6(address) => {
            let [high, low] = halves(u128::from(address));
            // splitmix64's finalizer: a bijection that spreads prefixes, which differ in few bits.
            let mut mixed = high.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            IpAddr::V6((u128::from(RANGE6.addr()) | u128::from(low ^ mixed)).into())
        }
    }
}

/// Whether an address is one of ours.
pub fn is(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => RANGE4.contains(&address),
        IpAddr::V6(address) => RANGE6.contains(&address),
    }
}

/// Both ranges.
pub fn ranges() -> [IpNet; 2] {
    [RANGE4.into(), RANGE6.into()]
}

fn halves(bits: u128) -> [u64; 2] {
    let bytes = bits.to_be_bytes();
    let (high, low) = bytes.split_at(8);
    [high, low].map(|half| half.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_keeps_what_a_reader_needs() {
        assert_eq!(of("10.244.2.10".parse().unwrap()), "250.244.2.10".parse::<IpAddr>().unwrap());
        assert_eq!(of("192.168.7.9".parse().unwrap()), "240.168.7.9".parse::<IpAddr>().unwrap());
        assert_eq!(of("15.255.255.255".parse().unwrap()), "255.255.255.254".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn ipv6_tells_pods_of_different_nodes_apart() {
        let all: std::collections::HashSet<_> = (0..64u16)
            .flat_map(|node| (0..64u16).map(move |pod| Ipv6Addr::new(0xfd00, 0x244, 0, node, 0, 0, 0, pod)))
            .map(|address| of(address.into()))
            .collect();
        assert_eq!(all.len(), 64 * 64);
        assert!(all.iter().all(|address| is(*address)));
    }
}
