//! UPDATE (RFC 4271 §4.3), with the multiprotocol attributes (RFC 4760) and the error handling of RFC 7606.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::Context;
use super::attribute::{As4, Encoded, NON_TRANSITIVE, PathAttributes, code, put};
use super::error::{AttributeError, AttributeProblem, Handling, TooLong, UpdateError};
use super::prefix::{self, Nlri, Prefix};
use super::reader::Reader;
use crate::{Families, Family};

/// An UPDATE message.
///
/// What a received one means is told by [`Update::reachable`], [`Update::unreachable`] and [`Update::end_of_rib`],
/// which take malformed attributes into account; the fields are what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// IPv4 prefixes in the message's own field.
    pub withdrawn: Vec<Nlri<Ipv4Net>>,
    /// MP_REACH_NLRI.
    pub mp_reach: Option<MpReach>,
    /// MP_UNREACH_NLRI.
    pub mp_unreach: Option<MpUnreach>,
    /// All other attributes.
    pub attributes: PathAttributes,
    /// IPv4 prefixes in the message's own field.
    pub nlri: Vec<Nlri<Ipv4Net>>,
    /// What was malformed in a received message. Not written.
    pub malformed: Vec<AttributeError>,
}

/// Reachable prefixes with their next hop (RFC 4760 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MpReach {
    /// IPv4 unicast.
    Ipv4 {
        /// Next hop, of either family (RFC 8950); of two IPv6 ones the global one.
        next_hop: IpAddr,
        /// Prefixes.
        prefixes: Vec<Nlri<Ipv4Net>>,
    },
    /// IPv6 unicast (RFC 2545).
    Ipv6 {
        /// Global next hop.
        next_hop: Ipv6Addr,
        /// Link-local next hop, on a shared link.
        link_local: Option<Ipv6Addr>,
        /// Prefixes.
        prefixes: Vec<Nlri<Ipv6Net>>,
    },
}

/// Prefixes that are no longer reachable (RFC 4760 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MpUnreach {
    /// IPv4 unicast.
    Ipv4(Vec<Nlri<Ipv4Net>>),
    /// IPv6 unicast.
    Ipv6(Vec<Nlri<Ipv6Net>>),
}

/// Appends what follows AFI and SAFI after two octets of length that `body` fills.
fn with_length(
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), TooLong>,
) -> Result<(), TooLong> {
    let start = out.len();
    out.extend_from_slice(&[0, 0]);
    body(out)?;
    let length = u16::try_from(out.len() - start - 2).map_err(|_| TooLong)?;
    out[start..start + 2].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn write_all<P: Prefix>(nlri: &[Nlri<P>], add_path: bool, out: &mut Vec<u8>) {
    for nlri in nlri {
        prefix::write(nlri, add_path, out);
    }
}

/// AFI and SAFI.
pub(super) fn family_bytes(family: Family) -> [u8; 3] {
    let [high, low] = family.afi().to_be_bytes();
    [high, low, family.safi()]
}

impl MpReach {
    fn to_value(&self, add_path: Families) -> Vec<u8> {
        let mut value = Vec::new();
        match self {
            MpReach::Ipv4 { next_hop, prefixes } => {
                value.extend_from_slice(&family_bytes(Family::Ipv4Unicast));
                match next_hop {
                    IpAddr::V4(next_hop) => {
                        value.push(4);
                        value.extend_from_slice(&next_hop.octets());
                    }
                    IpAddr::V6(next_hop) => {
                        value.push(16);
                        value.extend_from_slice(&next_hop.octets());
                    }
                }
                value.push(0);
                write_all(prefixes, add_path.ipv4_unicast, &mut value);
            }
            MpReach::Ipv6 { next_hop, link_local, prefixes } => {
                value.extend_from_slice(&family_bytes(Family::Ipv6Unicast));
                value.push(if link_local.is_some() { 32 } else { 16 });
                value.extend_from_slice(&next_hop.octets());
                value.extend(link_local.iter().flat_map(Ipv6Addr::octets));
                value.push(0);
                write_all(prefixes, add_path.ipv6_unicast, &mut value);
            }
        }
        value
    }

    /// `None` is malformed, `Some(None)` a family that is not ours.
    fn from_value(value: &[u8], add_path: Families) -> Option<Option<MpReach>> {
        let mut reader = Reader::new(value);
        let (afi, safi) = (reader.u16()?, reader.u8()?);
        let length = reader.u8()?;
        let mut next_hop = reader.sub(usize::from(length))?;
        // One reserved octet (RFC 4760 §3).
        reader.u8()?;
        Some(match Family::from_afi_safi(afi, safi) {
            None => None,
            Some(Family::Ipv4Unicast) => {
                let next_hop = match next_hop.len() {
                    4 => IpAddr::from(next_hop.array::<4>()?),
                    _ => match ipv6_next_hops(&mut next_hop)? {
                        (global, Some(link_local)) if global.is_unspecified() => link_local.into(),
                        (global, _) => global.into(),
                    },
                };
                Some(MpReach::Ipv4 { next_hop, prefixes: prefix::read_all(reader, add_path.ipv4_unicast)? })
            }
            Some(Family::Ipv6Unicast) => {
                let (global, link_local) = ipv6_next_hops(&mut next_hop)?;
                Some(MpReach::Ipv6 {
                    next_hop: global,
                    link_local,
                    prefixes: prefix::read_all(reader, add_path.ipv6_unicast)?,
                })
            }
        })
    }

    fn prefixes(&self) -> Vec<Nlri> {
        match self {
            MpReach::Ipv4 { prefixes, .. } => prefixes.iter().copied().map(Nlri::any).collect(),
            MpReach::Ipv6 { prefixes, .. } => prefixes.iter().copied().map(Nlri::any).collect(),
        }
    }
}

/// One IPv6 next hop or two, of which the second is link-local (RFC 2545 §3).
fn ipv6_next_hops(reader: &mut Reader<'_>) -> Option<(Ipv6Addr, Option<Ipv6Addr>)> {
    let global = reader.array::<16>()?.into();
    let link_local = match reader.len() {
        0 => None,
        _ => Some(reader.array::<16>().filter(|_| reader.is_empty())?.into()),
    };
    Some((global, link_local))
}

impl MpUnreach {
    fn to_value(&self, add_path: Families) -> Vec<u8> {
        let mut value = Vec::new();
        match self {
            MpUnreach::Ipv4(prefixes) => {
                value.extend_from_slice(&family_bytes(Family::Ipv4Unicast));
                write_all(prefixes, add_path.ipv4_unicast, &mut value);
            }
            MpUnreach::Ipv6(prefixes) => {
                value.extend_from_slice(&family_bytes(Family::Ipv6Unicast));
                write_all(prefixes, add_path.ipv6_unicast, &mut value);
            }
        }
        value
    }

    /// `None` is malformed, `Some(None)` a family that is not ours.
    fn from_value(value: &[u8], add_path: Families) -> Option<Option<MpUnreach>> {
        let mut reader = Reader::new(value);
        let (afi, safi) = (reader.u16()?, reader.u8()?);
        Some(match Family::from_afi_safi(afi, safi) {
            None => None,
            Some(Family::Ipv4Unicast) => {
                Some(MpUnreach::Ipv4(prefix::read_all(reader, add_path.ipv4_unicast)?))
            }
            Some(Family::Ipv6Unicast) => {
                Some(MpUnreach::Ipv6(prefix::read_all(reader, add_path.ipv6_unicast)?))
            }
        })
    }

    fn prefixes(&self) -> Vec<Nlri> {
        match self {
            MpUnreach::Ipv4(prefixes) => prefixes.iter().copied().map(Nlri::any).collect(),
            MpUnreach::Ipv6(prefixes) => prefixes.iter().copied().map(Nlri::any).collect(),
        }
    }
}

impl Update {
    /// The marker that all routes of `family` have been sent (RFC 4724 §2).
    pub fn end_of_rib_marker(family: Family) -> Update {
        match family {
            Family::Ipv4Unicast => Update::default(),
            Family::Ipv6Unicast => {
                Update { mp_unreach: Some(MpUnreach::Ipv6(Vec::new())), ..Update::default() }
            }
        }
    }

    /// The family whose routes are all sent, if this is the marker.
    pub fn end_of_rib(&self) -> Option<Family> {
        if !self.malformed.is_empty()
            || self.mp_reach.is_some()
            || self.attributes != PathAttributes::default()
        {
            return None;
        }
        match (&self.mp_unreach, self.withdrawn.is_empty() && self.nlri.is_empty()) {
            (None, true) => Some(Family::Ipv4Unicast),
            (Some(MpUnreach::Ipv4(prefixes)), true) if prefixes.is_empty() => Some(Family::Ipv4Unicast),
            (Some(MpUnreach::Ipv6(prefixes)), true) if prefixes.is_empty() => Some(Family::Ipv6Unicast),
            _ => None,
        }
    }

    /// A malformed attribute takes the routes with it (RFC 7606 §2).
    fn treat_as_withdraw(&self) -> bool {
        self.malformed.iter().any(|error| error.handling == Handling::TreatAsWithdraw)
    }

    fn announced(&self) -> impl Iterator<Item = Nlri> {
        let own = self.nlri.iter().copied().map(Nlri::any);
        own.chain(self.mp_reach.iter().flat_map(MpReach::prefixes))
    }

    /// Prefixes that can now be reached with these attributes.
    pub fn reachable(&self) -> impl Iterator<Item = Nlri> {
        let none = self.treat_as_withdraw();
        self.announced().filter(move |_| !none)
    }

    /// Prefixes that can no longer be reached.
    pub fn unreachable(&self) -> impl Iterator<Item = Nlri> {
        let announced_too = self.treat_as_withdraw();
        let own = self.withdrawn.iter().copied().map(Nlri::any);
        own.chain(self.mp_unreach.iter().flat_map(MpUnreach::prefixes))
            .chain(self.announced().filter(move |_| announced_too))
    }

    pub(super) fn encode(&self, context: Context, out: &mut Vec<u8>) -> Result<(), TooLong> {
        with_length(out, |out| {
            write_all(&self.withdrawn, context.add_path.ipv4_unicast, out);
            Ok(())
        })?;
        with_length(out, |out| {
            // First, where a receiver in trouble finds it (RFC 7606 §5.1).
            if let Some(reach) = &self.mp_reach {
                put(out, NON_TRANSITIVE, code::MP_REACH_NLRI, &reach.to_value(context.add_path))?;
            }
            if let Some(unreach) = &self.mp_unreach {
                put(out, NON_TRANSITIVE, code::MP_UNREACH_NLRI, &unreach.to_value(context.add_path))?;
            }
            self.attributes.encode(context, out)
        })?;
        write_all(&self.nlri, context.add_path.ipv4_unicast, out);
        Ok(())
    }

    pub(super) fn decode(body: &[u8], context: Context) -> Result<Update, UpdateError> {
        let mut reader = Reader::new(body);
        let mut field = || {
            let length = reader.u16()?;
            reader.sub(usize::from(length))
        };
        let withdrawn = field().ok_or(UpdateError::MalformedAttributeList)?;
        let attributes = field().ok_or(UpdateError::MalformedAttributeList)?;
        let add_path = context.add_path.ipv4_unicast;
        let mut update = Update {
            withdrawn: prefix::read_all(withdrawn, add_path).ok_or(UpdateError::InvalidNetwork)?,
            nlri: prefix::read_all(reader, add_path).ok_or(UpdateError::InvalidNetwork)?,
            ..Update::default()
        };
        let seen = update.read_attributes(attributes, context)?;
        update.check_mandatory(&seen)?;
        Ok(update)
    }

    /// Returns which codes were there.
    fn read_attributes(
        &mut self,
        mut reader: Reader<'_>,
        context: Context,
    ) -> Result<[bool; 256], UpdateError> {
        let mut seen = [false; 256];
        let mut as4 = As4::default();
        while !reader.is_empty() {
            let attribute = match Encoded::read(&mut reader) {
                Ok(attribute) => attribute,
                Err(error) => {
                    self.malformed.push(error);
                    break;
                }
            };
            let multiprotocol = matches!(attribute.code, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI);
            if std::mem::replace(&mut seen[usize::from(attribute.code)], true) {
                if multiprotocol {
                    return Err(UpdateError::MalformedAttributeList);
                }
                // RFC 7606 §3 g: all but the first are discarded.
                let problem = AttributeProblem::Repeated;
                self.malformed.push(AttributeError {
                    code: attribute.code,
                    problem,
                    handling: Handling::Discard,
                });
                continue;
            }
            let outcome = if multiprotocol {
                self.read_multiprotocol(&attribute, context.add_path)?;
                attribute.check_flags()
            } else {
                self.attributes.read(&attribute, context, &mut as4)?
            };
            self.malformed.extend(outcome.err());
        }
        self.attributes.merge(as4);
        Ok(seen)
    }

    fn read_multiprotocol(&mut self, attribute: &Encoded<'_>, add_path: Families) -> Result<(), UpdateError> {
        let error = || UpdateError::Multiprotocol(attribute.to_bytes());
        let ours = if attribute.code == code::MP_REACH_NLRI {
            self.mp_reach = MpReach::from_value(attribute.value, add_path).ok_or_else(error)?;
            self.mp_reach.is_some()
        } else {
            self.mp_unreach = MpUnreach::from_value(attribute.value, add_path).ok_or_else(error)?;
            self.mp_unreach.is_some()
        };
        if !ours {
            self.attributes.other.push(attribute.to_raw());
        }
        Ok(())
    }

    /// RFC 7606 §3 d, §5.2.
    fn check_mandatory(&mut self, seen: &[bool; 256]) -> Result<(), UpdateError> {
        let seen = |code: u8| seen[usize::from(code)];
        let mp_reach = seen(code::MP_REACH_NLRI);
        if !self.nlri.is_empty() || mp_reach {
            let mandatory = [code::ORIGIN, code::AS_PATH, code::NEXT_HOP];
            let mandatory = mandatory.into_iter().filter(|&c| c != code::NEXT_HOP || !self.nlri.is_empty());
            self.malformed.extend(mandatory.filter(|&c| !seen(c)).map(|code| AttributeError {
                code,
                problem: AttributeProblem::Missing,
                handling: Handling::TreatAsWithdraw,
            }));
            return Ok(());
        }
        let worst = self
            .malformed
            .iter()
            .find(|error| error.handling == Handling::TreatAsWithdraw && error.code != code::MP_UNREACH_NLRI);
        worst.map_or(Ok(()), |error| Err(UpdateError::NoPrefixes(*error)))
    }
}
