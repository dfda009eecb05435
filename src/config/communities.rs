//! BGP communities as users write them.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};

/// Standard (RFC 1997) and large (RFC 8092) communities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Communities {
    /// `65000:100`, or a well-known name.
    pub standard: BTreeSet<u32>,
    /// `65000:1:2`.
    pub large: BTreeSet<(u32, u32, u32)>,
}

impl Communities {
    /// Adds another's.
    pub fn extend(&mut self, other: &Self) {
        self.standard.extend(&other.standard);
        self.large.extend(&other.large);
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let wrong = || {
            format!(
                "`{text}` is not a community: expected 65000:100, a large one such as 65000:1:2, or one of \
                 no-export, no-advertise, no-export-subconfed, no-peer, graceful-shutdown, no-llgr, blackhole"
            )
        };
        // The IANA registry "BGP Well-known Communities".
        let well_known = match text {
            "graceful-shutdown" => Some(0xffff_0000),
            "no-llgr" => Some(0xffff_0007),
            "blackhole" => Some(0xffff_029a),
            "no-export" => Some(0xffff_ff01),
            "no-advertise" => Some(0xffff_ff02),
            "no-export-subconfed" => Some(0xffff_ff03),
            "no-peer" => Some(0xffff_ff04),
            _ => None,
        };
        if let Some(community) = well_known {
            self.standard.insert(community);
            return Ok(());
        }
        match *text.split(':').collect::<Vec<_>>() {
            [high, low] => {
                let high: u16 = high.parse().map_err(|_| wrong())?;
                let low: u16 = low.parse().map_err(|_| wrong())?;
                self.standard.insert(u32::from(high) << 16 | u32::from(low));
            }
            [global, local1, local2] => {
                let parse = |part: &str| part.parse::<u32>().map_err(|_| wrong());
                self.large.insert((parse(global)?, parse(local1)?, parse(local2)?));
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }
}

/// A list separated by commas or spaces, as in an annotation.
impl FromStr for Communities {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut communities = Self::default();
        for part in text.split([',', ' ', '\n']).filter(|part| !part.is_empty()) {
            communities.add(part)?;
        }
        Ok(communities)
    }
}

/// A YAML list, as in the config file.
impl<'de> Deserialize<'de> for Communities {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut communities = Self::default();
        for part in Vec::<String>::deserialize(d)? {
            communities.add(&part).map_err(D::Error::custom)?;
        }
        Ok(communities)
    }
}
