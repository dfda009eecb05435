//! Address families: what kind of prefix a session carries.

use std::fmt;

use ipnet::IpNet;

/// An address family that this speaker routes for (RFC 4760: AFI and SAFI).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

impl Family {
    /// Every family there is, in canonical order.
    pub const ALL: [Family; 2] = [Family::Ipv4Unicast, Family::Ipv6Unicast];

    /// The family that `prefix` belongs to.
    pub fn of(prefix: &IpNet) -> Family {
        match prefix {
            IpNet::V4(_) => Family::Ipv4Unicast,
            IpNet::V6(_) => Family::Ipv6Unicast,
        }
    }

    /// The Address Family Identifier.
    pub fn afi(self) -> u16 {
        match self {
            Family::Ipv4Unicast => 1,
            Family::Ipv6Unicast => 2,
        }
    }

    /// The Subsequent Address Family Identifier.
    pub fn safi(self) -> u8 {
        1
    }

    /// The family with these identifiers, if it is one of ours.
    pub fn from_afi_safi(afi: u16, safi: u8) -> Option<Family> {
        Family::ALL.into_iter().find(|f| f.afi() == afi && f.safi() == safi)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4Unicast => "ipv4-unicast",
            Family::Ipv6Unicast => "ipv6-unicast",
        })
    }
}

/// A set of families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Families {
    /// IPv4 unicast is in the set.
    pub ipv4_unicast: bool,
    /// IPv6 unicast is in the set.
    pub ipv6_unicast: bool,
}

impl Families {
    /// Both families.
    pub const ALL: Families = Families { ipv4_unicast: true, ipv6_unicast: true };
    /// Neither.
    pub const NONE: Families = Families { ipv4_unicast: false, ipv6_unicast: false };

    /// Whether `family` is in the set.
    pub fn contains(self, family: Family) -> bool {
        match family {
            Family::Ipv4Unicast => self.ipv4_unicast,
            Family::Ipv6Unicast => self.ipv6_unicast,
        }
    }

    /// Adds `family`.
    pub fn insert(&mut self, family: Family) {
        match family {
            Family::Ipv4Unicast => self.ipv4_unicast = true,
            Family::Ipv6Unicast => self.ipv6_unicast = true,
        }
    }

    /// The families in both sets.
    pub fn intersection(self, other: Families) -> Families {
        self.iter().filter(|&f| other.contains(f)).collect()
    }

    /// The members in canonical order.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |&f| self.contains(f))
    }

    /// Whether no family is in the set.
    pub fn is_empty(self) -> bool {
        self == Families::NONE
    }
}

impl FromIterator<Family> for Families {
    fn from_iter<I: IntoIterator<Item = Family>>(families: I) -> Self {
        families.into_iter().fold(Families::NONE, |mut set, family| {
            set.insert(family);
            set
        })
    }
}
