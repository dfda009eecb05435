//! What a route of ours is announced with.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A community (RFC 1997). Prints and parses as `64512:100`, and parses the well-known names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

impl Community {
    /// Not to leave the receiving AS or confederation (RFC 1997).
    pub const NO_EXPORT: Community = Community(0xffff_ff01);
    /// Not to be passed on to any peer (RFC 1997).
    pub const NO_ADVERTISE: Community = Community(0xffff_ff02);
    /// About to be withdrawn: prefer anything else (RFC 8326).
    pub const GRACEFUL_SHUTDOWN: Community = Community(0xffff_0000);
    /// Kept for want of a better one, long after its session ended (RFC 9494).
    pub const LLGR_STALE: Community = Community(0xffff_0006);
    /// Not to be kept so long (RFC 9494).
    pub const NO_LLGR: Community = Community(0xffff_0007);

    const NAMES: [(&'static str, Community); 5] = [
        ("no-export", Community::NO_EXPORT),
        ("no-advertise", Community::NO_ADVERTISE),
        ("graceful-shutdown", Community::GRACEFUL_SHUTDOWN),
        ("llgr-stale", Community::LLGR_STALE),
        ("no-llgr", Community::NO_LLGR),
    ];
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl FromStr for Community {
    type Err = ParseCommunityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((_, known)) = Community::NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*known);
        }
        let error = || ParseCommunityError {
            text: text.to_owned(),
            expected: "two numbers up to 65535, as in 64512:100",
        };
        let (high, low) = text.split_once(':').ok_or_else(error)?;
        let high: u16 = high.parse().map_err(|_| error())?;
        let low: u16 = low.parse().map_err(|_| error())?;
        Ok(Community(u32::from(high) << 16 | u32::from(low)))
    }
}

/// An extended community (RFC 4360), as it stands in a message: type, and what the type makes of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedCommunity(pub [u8; 8]);

impl ExtendedCommunity {
    /// Whether it is passed on to other ASes (the T bit, RFC 4360 §2).
    pub fn is_transitive(self) -> bool {
        self.0[0] & 0x40 == 0
    }
}

/// A large community (RFC 8092). Prints and parses as `4200000001:1:2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity {
    /// The ASN whose namespace the other two live in.
    pub global: u32,
    /// First operator-defined part.
    pub data1: u32,
    /// Second operator-defined part.
    pub data2: u32,
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.global, self.data1, self.data2)
    }
}

impl FromStr for LargeCommunity {
    type Err = ParseCommunityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseCommunityError {
            text: text.to_owned(),
            expected: "three 32-bit numbers, as in 4200000001:1:2",
        };
        let parts: Vec<u32> =
            text.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| error())?;
        let &[global, data1, data2] = parts.as_slice() else { return Err(error()) };
        Ok(LargeCommunity { global, data1, data2 })
    }
}

/// A community that does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("community {text:?}: expected {expected}")]
pub struct ParseCommunityError {
    text: String,
    expected: &'static str,
}

/// What a route of ours is announced with, beside what every announcement carries (ORIGIN, AS_PATH, NEXT_HOP).
///
/// Routes that share attributes share messages. Clones are cheap, the lists are shared; both are kept in
/// the order given, so build them sorted where the order means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attributes {
    /// COMMUNITIES.
    pub communities: Arc<[Community]>,
    /// LARGE_COMMUNITIES.
    pub large_communities: Arc<[LargeCommunity]>,
    /// LOCAL_PREF, sent to iBGP peers only; 100 where unset.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// How many times more than once our ASN stands in the AS_PATH; eBGP only.
    pub as_path_prepend: u8,
    /// What the speaker's owner counts the route among: [export policies](crate::ExportPolicy) go by it, and no peer is told.
    pub kind: u8,
}

#[cfg(test)]
mod tests {
    use super::ExtendedCommunity;

    /// RFC 4360 §2: the second bit, whatever the first says of who assigns the type.
    #[test]
    fn extended_communities_that_leave_the_as() {
        for (name, kind, transitive) in [
            ("route target", 0x00, true),
            ("link bandwidth", 0x40, false),
            ("experimental", 0x80, true),
            ("experimental, within the AS", 0xc0, false),
        ] {
            assert_eq!(ExtendedCommunity([kind, 2, 0, 0, 0, 0, 0, 1]).is_transitive(), transitive, "{name}");
        }
    }
}
