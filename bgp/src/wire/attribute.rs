//! Path attributes (RFC 4271 §4.3, §5; RFC 1997; RFC 6793; RFC 8092).

use std::net::Ipv4Addr;

use super::error::{AttributeError, AttributeProblem, Handling, TooLong, UpdateError};
use super::reader::Reader;
use super::{AS_TRANS, Context};
use crate::{Community, LargeCommunity};

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
}

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const EXTENDED_LENGTH: u8 = 0x10;

/// Flags of a well-known attribute.
const WELL_KNOWN: u8 = TRANSITIVE;
/// Flags of an attribute that goes no further than the next speaker.
pub(super) const NON_TRANSITIVE: u8 = OPTIONAL;
const OPTIONAL_TRANSITIVE: u8 = OPTIONAL | TRANSITIVE;

/// ORIGIN (RFC 4271 §5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Origin {
    /// Interior to the originating AS.
    Igp = 0,
    /// Learnt by EGP.
    Egp = 1,
    /// By other means.
    Incomplete = 2,
}

/// AS_PATH (RFC 4271 §5.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AsPath {
    /// Segments, the nearest first.
    pub segments: Vec<Segment>,
}

/// A segment of an AS_PATH.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// How to read the ASNs.
    pub kind: SegmentKind,
    /// At least one ASN.
    pub asns: Vec<u32>,
}

/// The kinds of segments (RFC 4271 §4.3, RFC 5065 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SegmentKind {
    /// Unordered.
    Set = 1,
    /// Ordered.
    Sequence = 2,
    /// Ordered, within a confederation.
    ConfedSequence = 3,
    /// Unordered, within a confederation.
    ConfedSet = 4,
}

/// An attribute that is passed on as it came: unknown, or not interpreted here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawAttribute {
    /// Attribute flags, without Extended Length.
    pub flags: u8,
    /// Attribute type code.
    pub code: u8,
    /// Attribute value.
    pub value: Vec<u8>,
}

/// The attributes of an UPDATE, apart from the multiprotocol ones. Empty lists are absent attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
    /// COMMUNITIES.
    pub communities: Vec<Community>,
    /// LARGE_COMMUNITIES.
    pub large_communities: Vec<LargeCommunity>,
    /// All others.
    pub other: Vec<RawAttribute>,
}

impl AsPath {
    /// A path of one sequence; empty where `asns` is.
    pub fn sequence(asns: Vec<u32>) -> AsPath {
        if asns.is_empty() {
            return AsPath::default();
        }
        AsPath { segments: vec![Segment { kind: SegmentKind::Sequence, asns }] }
    }

    fn needs_four_octets(&self) -> bool {
        self.segments.iter().flat_map(|s| &s.asns).any(|&asn| u16::try_from(asn).is_err())
    }

    fn to_value(&self, four_octet: bool) -> Vec<u8> {
        let mut value = Vec::new();
        // A segment counts its ASNs in one octet.
        let pieces = self.segments.iter().flat_map(|s| s.asns.chunks(255).map(move |asns| (s.kind, asns)));
        for (kind, asns) in pieces {
            value.push(kind as u8);
            value.extend(u8::try_from(asns.len()));
            for &asn in asns {
                if four_octet {
                    value.extend_from_slice(&asn.to_be_bytes());
                } else {
                    value.extend_from_slice(&u16::try_from(asn).unwrap_or(AS_TRANS).to_be_bytes());
                }
            }
        }
        value
    }

    fn from_value(value: &[u8], four_octet: bool) -> Option<AsPath> {
        let mut reader = Reader::new(value);
        let mut segments = Vec::new();
        while !reader.is_empty() {
            let kind = match reader.u8()? {
                1 => SegmentKind::Set,
                2 => SegmentKind::Sequence,
                3 => SegmentKind::ConfedSequence,
                4 => SegmentKind::ConfedSet,
                _ => return None,
            };
            // RFC 7606 §7.2: a segment of no ASNs is malformed.
            let count = reader.u8().filter(|&count| count > 0)?;
            let asn = |reader: &mut Reader<'_>| {
                if four_octet { reader.u32() } else { reader.u16().map(u32::from) }
            };
            let asns = (0..count).map(|_| asn(&mut reader)).collect::<Option<_>>()?;
            segments.push(Segment { kind, asns });
        }
        Some(AsPath { segments })
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
        let defined = match self.code {
            code::ORIGIN..=code::NEXT_HOP | code::LOCAL_PREF | code::ATOMIC_AGGREGATE => WELL_KNOWN,
            code::MULTI_EXIT_DISC | code::ORIGINATOR_ID | code::CLUSTER_LIST => NON_TRANSITIVE,
            code::MP_REACH_NLRI | code::MP_UNREACH_NLRI => NON_TRANSITIVE,
            code::AGGREGATOR | code::COMMUNITIES | code::EXTENDED_COMMUNITIES => OPTIONAL_TRANSITIVE,
            code::AS4_PATH | code::AS4_AGGREGATOR | code::LARGE_COMMUNITIES => OPTIONAL_TRANSITIVE,
            _ => return Ok(()),
        };
        if self.flags & (OPTIONAL | TRANSITIVE) == defined {
            return Ok(());
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

    /// The value in pieces of `N` bytes, at least one.
    fn pieces<const N: usize>(&self) -> Result<&'a [[u8; N]], AttributeError> {
        match self.value.as_chunks::<N>() {
            (pieces, []) if !pieces.is_empty() => Ok(pieces),
            _ => Err(self.malformed(AttributeProblem::Length)),
        }
    }
}

impl PathAttributes {
    /// Takes in one attribute, not a multiprotocol one. The inner error leaves the session standing.
    pub(super) fn read(
        &mut self,
        attribute: &Encoded<'_>,
        context: Context,
    ) -> Result<Result<(), AttributeError>, UpdateError> {
        const KNOWN: [u8; 14] = [
            code::ORIGIN,
            code::AS_PATH,
            code::NEXT_HOP,
            code::MULTI_EXIT_DISC,
            code::LOCAL_PREF,
            code::ATOMIC_AGGREGATE,
            code::AGGREGATOR,
            code::COMMUNITIES,
            code::ORIGINATOR_ID,
            code::CLUSTER_LIST,
            code::EXTENDED_COMMUNITIES,
            code::AS4_PATH,
            code::AS4_AGGREGATOR,
            code::LARGE_COMMUNITIES,
        ];
        if attribute.flags & OPTIONAL == 0 && !KNOWN.contains(&attribute.code) {
            return Err(UpdateError::UnrecognizedWellKnown(attribute.to_bytes()));
        }
        Ok(attribute.check_flags().and_then(|()| self.read_value(attribute, context)))
    }

    fn read_value(&mut self, attribute: &Encoded<'_>, context: Context) -> Result<(), AttributeError> {
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
            code::COMMUNITIES => {
                self.communities =
                    attribute.pieces()?.iter().map(|&c| Community(u32::from_be_bytes(c))).collect();
            }
            code::LARGE_COMMUNITIES => {
                self.large_communities = attribute
                    .pieces::<12>()?
                    .iter()
                    .map(|&[a, b, c, d, e, f, g, h, i, j, k, l]| LargeCommunity {
                        global: u32::from_be_bytes([a, b, c, d]),
                        data1: u32::from_be_bytes([e, f, g, h]),
                        data2: u32::from_be_bytes([i, j, k, l]),
                    })
                    .collect();
            }
            // RFC 6793 §4.1: a 4-octet speaker must not send these, and what it sends is discarded.
            code::AS4_PATH | code::AS4_AGGREGATOR if context.four_octet_asn => return Err(unexpected()),
            _ => {
                self.check_raw(attribute, context)?;
                self.other.push(attribute.to_raw());
            }
        }
        Ok(())
    }

    /// The lengths of attributes that are known and not interpreted (RFC 7606 §7).
    fn check_raw(&self, attribute: &Encoded<'_>, context: Context) -> Result<(), AttributeError> {
        let length = attribute.value.len();
        let discarded = |fits: bool| fits.then_some(()).ok_or(attribute.discarded(AttributeProblem::Length));
        match attribute.code {
            code::ATOMIC_AGGREGATE => discarded(length == 0),
            code::AGGREGATOR => discarded(length == if context.four_octet_asn { 8 } else { 6 }),
            code::AS4_PATH => discarded(AsPath::from_value(attribute.value, true).is_some()),
            code::AS4_AGGREGATOR => discarded(length == 8),
            code::ORIGINATOR_ID => attribute.u32().map(|_| ()),
            code::CLUSTER_LIST => attribute.pieces::<4>().map(|_| ()),
            code::EXTENDED_COMMUNITIES => attribute.pieces::<8>().map(|_| ()),
            _ => Ok(()),
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
        if !self.communities.is_empty() {
            let value: Vec<u8> = self.communities.iter().flat_map(|c| c.0.to_be_bytes()).collect();
            put(out, OPTIONAL_TRANSITIVE, code::COMMUNITIES, &value)?;
        }
        // RFC 6793 §4.2.2: a 2-octet peer carries the real path along without reading it.
        if let Some(path) = self.as_path.as_ref().filter(|p| !context.four_octet_asn && p.needs_four_octets())
        {
            put(out, OPTIONAL_TRANSITIVE, code::AS4_PATH, &path.to_value(true))?;
        }
        if !self.large_communities.is_empty() {
            let parts = self.large_communities.iter().flat_map(|c| [c.global, c.data1, c.data2]);
            let value: Vec<u8> = parts.flat_map(u32::to_be_bytes).collect();
            put(out, OPTIONAL_TRANSITIVE, code::LARGE_COMMUNITIES, &value)?;
        }
        for RawAttribute { flags, code, value } in &self.other {
            put(out, *flags, *code, value)?;
        }
        Ok(())
    }
}
