//! What is taken over of what a peer announces.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A peer's import policy. Without one, nothing that the peer announces is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportPolicy {
    /// Routes to these are taken; one that fits is enough.
    pub prefixes: Vec<PrefixFilter>,
    /// How many prefixes of each family the peer may announce, whether they are taken or not. Each path to one counts (RFC 7911).
    pub max_prefixes: Option<MaxPrefixes>,
}

/// Prefixes within another one, by their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixFilter {
    /// What they lie within.
    pub within: IpNet,
    /// The shortest length.
    pub min_length: u8,
    /// The longest length.
    pub max_length: u8,
}

/// A limit on what a peer announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPrefixes {
    /// As many may be.
    pub limit: usize,
    /// From that many on there is a warning.
    pub warn_at: usize,
    /// What is done about more than the limit.
    pub action: LimitAction,
}

/// What is done about a peer that announces too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitAction {
    /// It is told in the log.
    Warn,
    /// The session ends (CEASE/maximum number of prefixes), and is tried again after that time.
    Restart(Duration),
    /// The session ends likewise, and stays down until the peer's configuration changes.
    TearDown,
}

impl ImportPolicy {
    /// Whether the prefix is one to take.
    pub(super) fn takes(&self, prefix: &IpNet) -> bool {
        self.prefixes.iter().any(|filter| filter.fits(prefix))
    }

    /// Whether the prefix itself is asked for, not only a range that it is in.
    pub(super) fn names(&self, prefix: &IpNet) -> bool {
        self.prefixes.iter().any(|filter| filter.within == *prefix && filter.fits(prefix))
    }
}

impl PrefixFilter {
    /// That prefix alone.
    pub fn exactly(prefix: IpNet) -> PrefixFilter {
        let length = prefix.prefix_len();
        PrefixFilter { within: prefix.trunc(), min_length: length, max_length: length }
    }

    pub(super) fn fits(&self, prefix: &IpNet) -> bool {
        self.within.contains(prefix) && (self.min_length..=self.max_length).contains(&prefix.prefix_len())
    }
}

/// Whether other hosts can be sent to by the prefix: it is not of this host, of a link, of a group or reserved (as BIRD
/// classifies networks). A default route is.
pub fn is_routable(prefix: &IpNet) -> bool {
    let v4 = |text: [u8; 4], length| Ipv4Net::new_assert(Ipv4Addr::from(text), length);
    let v6 = |first: u16, length| Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length);
    match prefix {
        IpNet::V4(prefix) => {
            ![v4([0; 4], 8), v4([127, 0, 0, 0], 8), v4([169, 254, 0, 0], 16), v4([224, 0, 0, 0], 3)]
                .iter()
                .any(|unusable| unusable.contains(prefix))
        }
        // What is reserved ends below 64:ff9b::/96, by which hosts of IPv4 are sent to (RFC 6052).
        IpNet::V6(prefix) => {
            ![v6(0, 16), v6(0xfe80, 10), v6(0xff00, 8)].iter().any(|unusable| unusable.contains(prefix))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_other_hosts() {
        for (name, prefix, expected) in [
            ("default", "0.0.0.0/0", true),
            ("default, IPv6", "::/0", true),
            ("private", "10.0.0.0/8", true),
            ("the lower half", "0.0.0.0/1", true),
            ("shared (RFC 6598)", "100.64.0.0/10", true),
            ("this network", "0.1.0.0/16", false),
            ("loopback", "127.0.0.0/8", false),
            ("link-local", "169.254.1.1/32", false),
            ("next to link-local", "169.255.0.0/16", true),
            ("groups", "224.0.0.0/4", false),
            ("reserved", "250.0.0.0/8", false),
            ("broadcast", "255.255.255.255/32", false),
            ("global, IPv6", "2001:db8::/32", true),
            ("local use, IPv6", "fd00::/8", true),
            ("translation to IPv4", "64:ff9b::/96", true),
            ("loopback, IPv6", "::1/128", false),
            ("IPv4-mapped", "::ffff:10.0.0.0/104", false),
            ("link-local, IPv6", "fe80::/10", false),
            ("groups, IPv6", "ff02::/16", false),
        ] {
            assert_eq!(is_routable(&prefix.parse().unwrap()), expected, "{name}");
        }
    }

    #[test]
    fn filters() {
        let range = |within: &str, min_length, max_length| PrefixFilter {
            within: within.parse().unwrap(),
            min_length,
            max_length,
        };
        let exactly = |prefix: &str| PrefixFilter::exactly(prefix.parse().unwrap());
        for (name, filter, prefix, takes, names) in [
            ("itself", exactly("10.0.0.0/8"), "10.0.0.0/8", true, true),
            ("host bits of the filter mean nothing", exactly("10.1.2.3/8"), "10.0.0.0/8", true, true),
            ("longer", exactly("10.0.0.0/8"), "10.1.0.0/16", false, false),
            ("shorter", exactly("10.0.0.0/8"), "0.0.0.0/0", false, false),
            ("of the other family", exactly("::/0"), "0.0.0.0/0", false, false),
            ("up to a length", range("10.0.0.0/8", 8, 16), "10.1.0.0/16", true, false),
            ("up to a length, itself", range("10.0.0.0/8", 8, 16), "10.0.0.0/8", true, true),
            ("too long", range("10.0.0.0/8", 8, 16), "10.1.0.0/17", false, false),
            ("from a length, itself", range("10.0.0.0/8", 16, 32), "10.0.0.0/8", false, false),
            ("from a length", range("10.0.0.0/8", 16, 32), "10.1.2.3/32", true, false),
            ("IPv6", range("2001:db8::/32", 48, 64), "2001:db8:1::/48", true, false),
            ("elsewhere", range("2001:db8::/32", 48, 64), "2001:db9:1::/48", false, false),
        ] {
            let policy = ImportPolicy { prefixes: vec![filter], max_prefixes: None };
            let prefix = prefix.parse().unwrap();
            assert_eq!((policy.takes(&prefix), policy.names(&prefix)), (takes, names), "{name}");
        }
    }
}
