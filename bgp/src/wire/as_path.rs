//! AS_PATH (RFC 4271 §4.3, RFC 5065 §3), and how it crosses speakers of 2-octet ASNs (RFC 6793).

use super::AS_TRANS;
use super::reader::Reader;

/// AS_PATH (RFC 4271 §5.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsPath {
    /// Segments, the nearest first.
    pub segments: Vec<Segment>,
}

/// A segment of an AS_PATH.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// How to read the ASNs.
    pub kind: SegmentKind,
    /// At least one ASN.
    pub asns: Vec<u32>,
}

/// The kinds of segments (RFC 4271 §4.3, RFC 5065 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

impl SegmentKind {
    fn is_confederation(self) -> bool {
        matches!(self, SegmentKind::ConfedSequence | SegmentKind::ConfedSet)
    }
}

impl Segment {
    /// What it adds to the length of a path (RFC 4271 §9.1.2.2, RFC 5065 §5.3).
    fn length(&self) -> usize {
        match self.kind {
            SegmentKind::Set => 1,
            SegmentKind::Sequence => self.asns.len(),
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
        }
    }
}

impl AsPath {
    /// A path of one sequence; empty where `asns` is.
    pub fn sequence(asns: Vec<u32>) -> AsPath {
        if asns.is_empty() {
            return AsPath::default();
        }
        AsPath { segments: vec![Segment { kind: SegmentKind::Sequence, asns }] }
    }

    /// How long it is to route selection: a set counts as one, confederations not at all (RFC 4271 §9.1.2.2,
    /// RFC 5065 §5.3).
    pub fn length(&self) -> usize {
        self.segments.iter().map(Segment::length).sum()
    }

    pub(super) fn to_value(&self, four_octet: bool) -> Vec<u8> {
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

    pub(super) fn from_value(value: &[u8], four_octet: bool) -> Option<AsPath> {
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

    /// The AS4_PATH that a 2-octet peer carries along beside this path: without confederations, which must not be in
    /// it, and none where AS_PATH says it all (RFC 6793 §4.2.2).
    pub(super) fn to_as4(&self) -> Option<AsPath> {
        let path = self.outside_confederation();
        let mut asns = path.segments.iter().flat_map(|s| &s.asns);
        asns.any(|&asn| u16::try_from(asn).is_err()).then_some(path)
    }

    /// Without confederation segments, which a received AS4_PATH must not have either (RFC 6793 §6).
    pub(super) fn outside_confederation(&self) -> AsPath {
        let segments = self.segments.iter().filter(|s| !s.kind.is_confederation());
        AsPath { segments: segments.cloned().collect() }
    }

    /// The real path behind an AS_PATH with [`AS_TRANS`] in it: `as4`, led by what 2-octet speakers have put in front
    /// of this one since (RFC 6793 §4.2.3).
    pub(super) fn with_as4(self, mut as4: AsPath) -> AsPath {
        // A path that is shorter has been replaced by somebody who did not know of the other.
        let Some(mut missing) = self.length().checked_sub(as4.length()) else { return self };
        let mut segments: Vec<Segment> = Vec::new();
        for mut segment in self.segments {
            // Confederation segments come along while they lead, or follow one that does.
            let length = segment.length();
            if length > missing {
                segment.asns.truncate(missing);
                if missing > 0 && segment.kind == SegmentKind::Sequence {
                    segments.push(segment);
                }
                break;
            }
            missing -= length;
            segments.push(segment);
        }
        // One sequence again, where it was cut, if it can be sent as one.
        if let [.., last] = segments.as_mut_slice()
            && let [first, ..] = as4.segments.as_mut_slice()
            && (last.kind, first.kind) == (SegmentKind::Sequence, SegmentKind::Sequence)
            && last.asns.len() + first.asns.len() <= usize::from(u8::MAX)
        {
            first.asns.splice(0..0, std::mem::take(&mut last.asns));
            segments.pop();
        }
        segments.append(&mut as4.segments);
        AsPath { segments }
    }
}
