//! Path attributes (RFC 4271 §4.3, §5; RFC 1997; RFC 4360; RFC 4456; RFC 6793; RFC 8092; RFC 9234).

use std::net::Ipv4Addr;

use super::as_path::AsPath;
use super::error::{AttributeError, AttributeProblem, Handling, TooLong, UpdateError};
use super::reader::Reader;
use super::{AS_TRANS, Context};
use crate::{Community, ExtendedCommunity, LargeCommunity};

/// Attribute type codes.
pub(super) mod code {
    pub(in crate::wire) const ORIGIN: u8 = 1;
    pub(in crate::wire) const AS_PATH: u8 = 2;
    pub(in crate::wire) const NEXT_HOP: u8 = 3;
    pub(in crate::wire) const MULTI_EXIT_DISC: u8 = 4;
    pub(in crate::wire) const LOCAL_PREF: u8 = 5;
    pub(in crate::wire) const ATOMIC_AGGREGATE: u8 = 6;
    pub(in crate::wire) const AGGREGATOR: u8 = 7;
    pub(in crate::wire) const COMMUNITIES: u8 = 8;
    pub(in crate::wire) const ORIGINATOR_ID: u8 = 9;
    pub(in crate::wire) const CLUSTER_LIST: u8 = 10;
    pub(in crate::wire) const MP_REACH_NLRI: u8 = 14;
    pub(in crate::wire) const MP_UNREACH_NLRI: u8 = 15;
    pub(in crate::wire) const EXTENDED_COMMUNITIES: u8 = 16;
    pub(in crate::wire) const AS4_PATH: u8 = 17;
    pub(in crate::wire) const AS4_AGGREGATOR: u8 = 18;
    pub(in crate::wire) const LARGE_COMMUNITIES: u8 = 32;
    pub(in crate::wire) const ONLY_TO_CUSTOMER: u8 = 35;
}

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
/// Somebody on the way did not know the attribute.
const PARTIAL: u8 = 0x20;
const EXTENDED_LENGTH: u8 = 0x10;

/// Flags of a well-known attribute.
const WELL_KNOWN: u8 = TRANSITIVE;
/// Flags of an attribute that goes no further than the next speaker.
pub(super) const NON_TRANSITIVE: u8 = OPTIONAL;
const OPTIONAL_TRANSITIVE: u8 = OPTIONAL | TRANSITIVE;

/// ORIGIN (RFC 4271 §5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Origin {
    /// Interior to the originating AS.
    Igp = 0,
    /// Learnt by EGP.
    Egp = 1,
    /// By other means.
    Incomplete = 2,
}

/// Who made one route of several (RFC 4271 §5.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aggregator {
    /// The speaker's ASN.
    pub asn: u32,
    /// The speaker's BGP Identifier, as a rule.
    pub address: Ipv4Addr,
}

impl Aggregator {
    fn to_value(self, four_octet_asn: bool) -> Vec<u8> {
        let mut value = if four_octet_asn {
            self.asn.to_be_bytes().to_vec()
        } else {
            u16::try_from(self.asn).unwrap_or(AS_TRANS).to_be_bytes().to_vec()
        };
        value.extend_from_slice(&self.address.octets());
        value
    }
}

/// An attribute that is not known here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawAttribute {
    /// Attribute flags, without Extended Length.
    pub flags: u8,
    /// Attribute type code.
    pub code: u8,
    /// Attribute value.
    pub value: Vec<u8>,
}

impl RawAttribute {
    /// How it is passed on to other peers: marked as unknown to a speaker on the way if it is transitive, not at all
    /// otherwise (RFC 4271 §5).
    pub fn passed_on(&self) -> Option<RawAttribute> {
        let transitive = self.flags & TRANSITIVE != 0;
        transitive.then(|| RawAttribute { flags: self.flags | PARTIAL, ..self.clone() })
    }
}

/// The attributes of an UPDATE, apart from the multiprotocol ones. Empty lists are absent attributes.
///
/// Paths and aggregators are the real ones whatever the peer speaks: what a 2-octet peer is told in two attributes, and
/// tells in two, is one here (RFC 6793).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathAttributes {
    /// ORIGIN.
    pub origin: Option<Origin>,
    /// AS_PATH.
    pub as_path: Option<AsPath>,
    /// NEXT_HOP, of the prefixes in the message's own NLRI field.
    pub next_hop: Option<Ipv4Addr>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE.
    pub atomic_aggregate: bool,
    /// AGGREGATOR.
    pub aggregator: Option<Aggregator>,
    /// COMMUNITIES.
    pub communities: Vec<Community>,
    /// ORIGINATOR_ID (RFC 4456 §8).
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST, the nearest reflector first (RFC 4456 §8).
    pub cluster_list: Vec<Ipv4Addr>,
    /// Extended communities (RFC 4360).
    pub extended_communities: Vec<ExtendedCommunity>,
    /// LARGE_COMMUNITIES.
    pub large_communities: Vec<LargeCommunity>,
    /// ONLY_TO_CUSTOMER: the ASN that has set it (RFC 9234 §5).
    pub only_to_customer: Option<u32>,
    /// All others.
    pub other: Vec<RawAttribute>,
    /// Type codes, in order, of those above that a speaker on the way did not know, `other` aside: once said, that is passed
    /// on (RFC 4271 §5).
    pub partial: Vec<u8>,
}

/// What a 2-octet peer carries along beside AS_PATH and AGGREGATOR (RFC 6793 §3), until all attributes are read.
#[derive(Debug, Default)]
pub(super) struct As4 {
    path: Option<AsPath>,
    aggregator: Option<Aggregator>,
}

/// Flags of the attributes that are known here, without Partial.
fn defined_flags(code: u8) -> Option<u8> {
    match code {
        code::ORIGIN..=code::NEXT_HOP | code::LOCAL_PREF | code::ATOMIC_AGGREGATE => Some(WELL_KNOWN),
        code::MULTI_EXIT_DISC | code::ORIGINATOR_ID | code::CLUSTER_LIST => Some(NON_TRANSITIVE),
        code::MP_REACH_NLRI | code::MP_UNREACH_NLRI => Some(NON_TRANSITIVE),
        code::AGGREGATOR | code::AS4_PATH | code::AS4_AGGREGATOR => Some(OPTIONAL_TRANSITIVE),
        code::COMMUNITIES | code::EXTENDED_COMMUNITIES => Some(OPTIONAL_TRANSITIVE),
        code::LARGE_COMMUNITIES | code::ONLY_TO_CUSTOMER => Some(OPTIONAL_TRANSITIVE),
        _ => None,
    }
}

/// Appends one attribute.
pub(super) fn put(out: &mut Vec<u8>, flags: u8, code: u8, value: &[u8]) -> Result<(), TooLong> {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, code, length]),
        Err(_) => {
            let [high, low] = u16::try_from(value.len()).map_err(|_| TooLong)?.to_be_bytes();
            out.extend_from_slice(&[flags | EXTENDED_LENGTH, code, high, low]);
        }
    }
    out.extend_from_slice(value);
    Ok(())
}

/// Appends one attribute of a list, none where it is empty.
fn put_list<const N: usize>(
    out: &mut Vec<u8>,
    flags: u8,
    code: u8,
    list: impl Iterator<Item = [u8; N]>,
) -> Result<(), TooLong> {
    let value: Vec<u8> = list.flatten().collect();
    if value.is_empty() { Ok(()) } else { put(out, flags, code, &value) }
}

/// An attribute as it stands in a message.
pub(super) struct Encoded<'a> {
    pub(super) flags: u8,
    pub(super) code: u8,
    pub(super) value: &'a [u8],
}

impl<'a> Encoded<'a> {
    /// Cuts the next attribute off. The error names the code as far as it could be read: lengths then contradict
    /// each other and nothing after it can be found (RFC 7606 §4).
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Encoded<'a>, AttributeError> {
        let mut code = 0;
        let mut fields = || {
            let flags = reader.u8()?;
            code = reader.u8()?;
            let length = if flags & EXTENDED_LENGTH != 0 { reader.u16()? } else { u16::from(reader.u8()?) };
            let value = reader.take(usize::from(length))?;
            Some(Encoded { flags: flags & !EXTENDED_LENGTH, code, value })
        };
        fields().ok_or(AttributeError {
            code,
            problem: AttributeProblem::Length,
            handling: Handling::TreatAsWithdraw,
        })
    }

    /// As it came, up to how its length was written: the data of a NOTIFICATION.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // The value was cut out of a message, so it is not too long.
        let _ = put(&mut bytes, self.flags, self.code, self.value);
        bytes
    }

    pub(super) fn to_raw(&self) -> RawAttribute {
        RawAttribute { flags: self.flags, code: self.code, value: self.value.to_vec() }
    }

    fn malformed(&self, problem: AttributeProblem) -> AttributeError {
        AttributeError { code: self.code, problem, handling: Handling::TreatAsWithdraw }
    }

    fn discarded(&self, problem: AttributeProblem) -> AttributeError {
        AttributeError { code: self.code, problem, handling: Handling::Discard }
    }

    /// Whether Optional and Transitive are as the attribute's definition says. Any of optional attributes will
    /// do where it is not known.
    pub(super) fn check_flags(&self) -> Result<(), AttributeError> {
        match defined_flags(self.code) {
            Some(defined) if self.flags & (OPTIONAL | TRANSITIVE) != defined => {}
            _ => return Ok(()),
        }
        // RFC 7606 §3 c: withdraw, unless the attribute's own definition says discard (§7.6, §7.7, RFC 6793 §6).
        Err(match self.code {
            code::ATOMIC_AGGREGATE | code::AGGREGATOR | code::AS4_PATH | code::AS4_AGGREGATOR => {
                self.discarded(AttributeProblem::Flags)
            }
            _ => self.malformed(AttributeProblem::Flags),
        })
    }

    fn u32(&self) -> Result<u32, AttributeError> {
        let value = self.value.try_into().map_err(|_| self.malformed(AttributeProblem::Length))?;
        Ok(u32::from_be_bytes(value))
    }

    /// The value in pieces of `N` bytes, at least one, each made into what it means.
    fn pieces<const N: usize, T>(&self, meaning: impl Fn([u8; N]) -> T) -> Result<Vec<T>, AttributeError> {
        match self.value.as_chunks::<N>() {
            (pieces, []) if !pieces.is_empty() => Ok(pieces.iter().copied().map(meaning).collect()),
            _ => Err(self.malformed(AttributeProblem::Length)),
        }
    }

    /// The value as an AGGREGATOR (RFC 4271 §4.3), which never takes the route with it (RFC 7606 §7.7).
    fn aggregator(&self, four_octet_asn: bool) -> Result<Aggregator, AttributeError> {
        let mut reader = Reader::new(self.value);
        let mut fields = || {
            let asn = if four_octet_asn { reader.u32()? } else { reader.u16()?.into() };
            let address = reader.u32()?.into();
            reader.is_empty().then_some(Aggregator { asn, address })
        };
        fields().ok_or(self.discarded(AttributeProblem::Length))
    }
}

impl PathAttributes {
    /// Takes in one attribute, not a multiprotocol one. The inner error leaves the session standing.
    pub(super) fn read(
        &mut self,
        attribute: &Encoded<'_>,
        context: Context,
        as4: &mut As4,
    ) -> Result<Result<(), AttributeError>, UpdateError> {
        if attribute.flags & OPTIONAL == 0 && defined_flags(attribute.code).is_none() {
            return Err(UpdateError::UnrecognizedWellKnown(attribute.to_bytes()));
        }
        Ok(attribute.check_flags().and_then(|()| self.read_value(attribute, context, as4)))
    }

    fn read_value(
        &mut self,
        attribute: &Encoded<'_>,
        context: Context,
        as4: &mut As4,
    ) -> Result<(), AttributeError> {
        let length = || attribute.malformed(AttributeProblem::Length);
        let value = || attribute.malformed(AttributeProblem::Value);
        let unexpected = || attribute.discarded(AttributeProblem::Unexpected);
        match attribute.code {
            code::ORIGIN => {
                self.origin = Some(match attribute.value {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    [_] => return Err(value()),
                    _ => return Err(length()),
                });
            }
            code::AS_PATH => {
                self.as_path =
                    Some(AsPath::from_value(attribute.value, context.four_octet_asn).ok_or_else(value)?);
            }
            code::NEXT_HOP => self.next_hop = Some(attribute.u32()?.into()),
            code::MULTI_EXIT_DISC => self.med = Some(attribute.u32()?),
            // RFC 7606 §7.5, §7.9, §7.10: of no meaning between ASes.
            code::LOCAL_PREF | code::ORIGINATOR_ID | code::CLUSTER_LIST if !context.ibgp => {
                return Err(unexpected());
            }
            code::LOCAL_PREF => self.local_pref = Some(attribute.u32()?),
            code::ATOMIC_AGGREGATE if attribute.value.is_empty() => self.atomic_aggregate = true,
            // RFC 7606 §7.6.
            code::ATOMIC_AGGREGATE => return Err(attribute.discarded(AttributeProblem::Length)),
            code::AGGREGATOR => self.aggregator = Some(attribute.aggregator(context.four_octet_asn)?),
            code::COMMUNITIES => {
                self.communities = attribute.pieces(|c| Community(u32::from_be_bytes(c)))?;
            }
            code::ORIGINATOR_ID => self.originator_id = Some(attribute.u32()?.into()),
            code::CLUSTER_LIST => self.cluster_list = attribute.pieces::<4, _>(Ipv4Addr::from)?,
            code::EXTENDED_COMMUNITIES => {
                self.extended_communities = attribute.pieces(ExtendedCommunity)?;
            }
            // RFC 6793 §4.1: a 4-octet speaker must not send these, and what it sends is discarded.
            code::AS4_PATH | code::AS4_AGGREGATOR if context.four_octet_asn => return Err(unexpected()),
            code::AS4_PATH => {
                let path = AsPath::from_value(attribute.value, true).filter(|path| !path.segments.is_empty());
                let path = path.ok_or(attribute.discarded(AttributeProblem::Value))?;
                as4.path = Some(path.outside_confederation());
            }
            code::AS4_AGGREGATOR => as4.aggregator = Some(attribute.aggregator(true)?),
            code::LARGE_COMMUNITIES => {
                self.large_communities =
                    attribute.pieces(|[a, b, c, d, e, f, g, h, i, j, k, l]| LargeCommunity {
                        global: u32::from_be_bytes([a, b, c, d]),
                        data1: u32::from_be_bytes([e, f, g, h]),
                        data2: u32::from_be_bytes([i, j, k, l]),
                    })?;
            }
            code::ONLY_TO_CUSTOMER => self.only_to_customer = Some(attribute.u32()?),
            _ => {
                self.other.push(attribute.to_raw());
                return Ok(());
            }
        }
        let kept = !matches!(attribute.code, code::AS4_PATH | code::AS4_AGGREGATOR);
        let may_be_partial = kept && defined_flags(attribute.code) == Some(OPTIONAL_TRANSITIVE);
        if may_be_partial && attribute.flags & PARTIAL != 0 {
            // In order, whatever order the attributes came in.
            let at = self.partial.partition_point(|&code| code < attribute.code);
            self.partial.insert(at, attribute.code);
        }
        Ok(())
    }

    /// Puts the real ASNs where a 2-octet peer could not name them (RFC 6793 §4.2.3).
    pub(super) fn merge(&mut self, as4: As4) {
        match (&mut self.aggregator, as4.aggregator) {
            (Some(aggregator), Some(real)) if aggregator.asn == u32::from(AS_TRANS) => *aggregator = real,
            // Aggregated since by a speaker that knew of neither: both are about an earlier route.
            (Some(_), Some(_)) => return,
            _ => {}
        }
        if let Some(real) = as4.path {
            self.as_path = self.as_path.take().map(|path| path.with_as4(real));
        }
    }

    /// Appends the attributes, in the order of their codes as far as they are known here.
    ///
    /// # Errors
    /// A value is longer than 65535 bytes; `out` then ends anywhere.
    pub fn encode(&self, context: Context, out: &mut Vec<u8>) -> Result<(), TooLong> {
        if let Some(origin) = self.origin {
            put(out, WELL_KNOWN, code::ORIGIN, &[origin as u8])?;
        }
        if let Some(path) = &self.as_path {
            put(out, WELL_KNOWN, code::AS_PATH, &path.to_value(context.four_octet_asn))?;
        }
        if let Some(next_hop) = self.next_hop {
            put(out, WELL_KNOWN, code::NEXT_HOP, &next_hop.octets())?;
        }
        if let Some(med) = self.med {
            put(out, NON_TRANSITIVE, code::MULTI_EXIT_DISC, &med.to_be_bytes())?;
        }
        if let Some(local_pref) = self.local_pref {
            put(out, WELL_KNOWN, code::LOCAL_PREF, &local_pref.to_be_bytes())?;
        }
        let transitive = |code| {
            let partial = self.partial.contains(&code);
            OPTIONAL_TRANSITIVE | if partial { PARTIAL } else { 0 }
        };
        if self.atomic_aggregate {
            put(out, WELL_KNOWN, code::ATOMIC_AGGREGATE, &[])?;
        }
        if let Some(aggregator) = self.aggregator {
            let flags = transitive(code::AGGREGATOR);
            put(out, flags, code::AGGREGATOR, &aggregator.to_value(context.four_octet_asn))?;
        }
        let communities = self.communities.iter().map(|c| c.0.to_be_bytes());
        put_list(out, transitive(code::COMMUNITIES), code::COMMUNITIES, communities)?;
        if let Some(originator) = self.originator_id {
            put(out, NON_TRANSITIVE, code::ORIGINATOR_ID, &originator.octets())?;
        }
        put_list(out, NON_TRANSITIVE, code::CLUSTER_LIST, self.cluster_list.iter().map(Ipv4Addr::octets))?;
        let extended = self.extended_communities.iter().map(|c| c.0);
        put_list(out, transitive(code::EXTENDED_COMMUNITIES), code::EXTENDED_COMMUNITIES, extended)?;
        if !context.four_octet_asn {
            self.encode_as4(out)?;
        }
        let large = self.large_communities.iter().flat_map(|c| [c.global, c.data1, c.data2]);
        let flags = transitive(code::LARGE_COMMUNITIES);
        put_list(out, flags, code::LARGE_COMMUNITIES, large.map(u32::to_be_bytes))?;
        if let Some(asn) = self.only_to_customer {
            let flags = transitive(code::ONLY_TO_CUSTOMER);
            put(out, flags, code::ONLY_TO_CUSTOMER, &asn.to_be_bytes())?;
        }
        for RawAttribute { flags, code, value } in &self.other {
            put(out, *flags, *code, value)?;
        }
        Ok(())
    }

    /// What a 2-octet peer carries along without reading it (RFC 6793 §4.2.2).
    fn encode_as4(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        if let Some(path) = self.as_path.as_ref().and_then(AsPath::to_as4) {
            put(out, OPTIONAL_TRANSITIVE, code::AS4_PATH, &path.to_value(true))?;
        }
        if let Some(aggregator) = self.aggregator.filter(|a| u16::try_from(a.asn).is_err()) {
            put(out, OPTIONAL_TRANSITIVE, code::AS4_AGGREGATOR, &aggregator.to_value(true))?;
        }
        Ok(())
    }
}
