//! Netlink messages and attributes as bytes.
//!
//! ```text
//! nlmsghdr: length u32 | type u16 | flags u16 | sequence u32 | port u32     host byte order
//! genlmsghdr: command u8 | version u8 | 0 u16
//! nlattr: length u16 | type u16 | payload, padded to 4 bytes                 …
//! ```
//!
//! Written by hand, since neli builds each attribute in a buffer of its own and trusts the lengths it reads.

use crate::error::Malformed;
use crate::uapi::{NLA_F_NESTED, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_REQUEST};

pub(crate) const NLMSG_HDRLEN: usize = 16;
pub(crate) const GENL_HDRLEN: usize = 4;
const NLA_HDRLEN: usize = 4;
const FLAGS_OFFSET: usize = 6;
const SEQUENCE_OFFSET: usize = 8;

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Appends messages to a buffer.
pub(crate) struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    /// One message with its attributes; its sequence number is for [`stamp`] to set.
    pub(crate) fn message(
        &mut self,
        family: u16,
        flags: u16,
        (command, version): (u8, u8),
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        let [t0, t1] = family.to_ne_bytes();
        let [f0, f1] = (NLM_F_REQUEST | flags).to_ne_bytes();
        self.bytes.extend_from_slice(&[0, 0, 0, 0, t0, t1, f0, f1]);
        self.bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, command, version, 0, 0]);
        body(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message holds a few small attributes");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute made of others.
    pub(crate) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.header(kind | NLA_F_NESTED, 0);
        body(self);
        let length = u16::try_from(self.bytes.len() - start).expect("a message holds a few small attributes");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute with any payload.
    pub(crate) fn put(&mut self, kind: u16, payload: &[u8]) {
        self.header(kind, payload.len());
        self.bytes.extend_from_slice(payload);
        self.bytes.extend_from_slice(&[0; 3][..align(payload.len()) - payload.len()]);
    }

    pub(crate) fn put_u8(&mut self, kind: u16, value: u8) {
        self.put_word(kind, 1, [value, 0, 0, 0]);
    }

    /// In host byte order, as all but ports and addresses are.
    pub(crate) fn put_u16(&mut self, kind: u16, value: u16) {
        let [b0, b1] = value.to_ne_bytes();
        self.put_word(kind, 2, [b0, b1, 0, 0]);
    }

    /// In network byte order.
    pub(crate) fn put_port(&mut self, kind: u16, value: u16) {
        let [b0, b1] = value.to_be_bytes();
        self.put_word(kind, 2, [b0, b1, 0, 0]);
    }

    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put_word(kind, 4, value.to_ne_bytes());
    }

    /// An attribute of up to 4 bytes with its padding in one go: nearly all are.
    fn put_word(&mut self, kind: u16, payload: u16, word: [u8; 4]) {
        let [l0, l1] = (4 + payload).to_ne_bytes();
        let [k0, k1] = kind.to_ne_bytes();
        let [w0, w1, w2, w3] = word;
        self.bytes.extend_from_slice(&[l0, l1, k0, k1, w0, w1, w2, w3]);
    }

    fn header(&mut self, kind: u16, payload: usize) {
        let length = u16::try_from(NLA_HDRLEN + payload).expect("a payload is an address, number or name");
        let [l0, l1] = length.to_ne_bytes();
        let [k0, k1] = kind.to_ne_bytes();
        self.bytes.extend_from_slice(&[l0, l1, k0, k1]);
    }
}

/// Gives the messages in `bytes`, written by [`Writer`], consecutive sequence numbers, and has the kernel
/// acknowledge the last one. Returns how many there are.
pub(crate) fn stamp(bytes: &mut [u8], first_sequence: u32) -> u32 {
    let mut start = 0;
    let mut last = None;
    let mut count = 0;
    while let Some(length) = bytes[start..].first_chunk().copied().map(u32::from_ne_bytes) {
        let sequence = first_sequence.wrapping_add(count);
        bytes[start + SEQUENCE_OFFSET..][..4].copy_from_slice(&sequence.to_ne_bytes());
        last = Some(start);
        count += 1;
        start += align(length as usize);
    }
    if let Some(last) = last {
        let flags = &mut bytes[last + FLAGS_OFFSET..][..2];
        flags.copy_from_slice(&(u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK).to_ne_bytes());
    }
    count
}

/// A netlink message as received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    /// What follows the `nlmsghdr`.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Error number of an `NLMSG_ERROR` or `NLMSG_DONE`; 0 is success. The kernel echoes all, a part or
    /// nothing of the request behind it: not needed here.
    pub(crate) fn error_number(&self) -> Result<i32, Malformed> {
        let number = self.payload.first_chunk().ok_or(Malformed::new("netlink error", "error number"))?;
        Ok(i32::from_ne_bytes(*number).wrapping_neg())
    }

    /// Command and attributes of a generic netlink message.
    pub(crate) fn generic(&self) -> Result<(u8, Attributes<'a>), Malformed> {
        match self.payload.split_at_checked(GENL_HDRLEN) {
            Some((header, attributes)) => Ok((header[0], Attributes::new(attributes))),
            None => Err(Malformed::new("generic netlink message", "header")),
        }
    }
}

/// The messages of a datagram; ends after the first malformed one.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let (message, rest) = match split_message(bytes) {
            Some((message, rest)) => (Ok(message), rest),
            None => (Err(Malformed::new("netlink message", "length")), &[][..]),
        };
        bytes = rest;
        Some(message)
    })
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let header: &[u8; NLMSG_HDRLEN] = bytes.first_chunk()?;
    let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
    let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let message = Message {
        kind: u16::from_ne_bytes([k0, k1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        payload: bytes.get(NLMSG_HDRLEN..length)?,
    };
    Some((message, bytes.get(align(length)..).unwrap_or_default()))
}

/// One attribute as received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub(crate) fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.payload)
    }

    /// The payload, if it is just as long.
    pub(crate) fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.payload.try_into().ok()
    }

    pub(crate) fn u8(&self) -> Option<u8> {
        self.array().map(u8::from_ne_bytes)
    }

    pub(crate) fn u16(&self) -> Option<u16> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    /// A counter: 32 or 64 bits.
    pub(crate) fn counter(&self) -> Option<u64> {
        self.u32().map(u64::from).or_else(|| self.array().map(u64::from_ne_bytes))
    }

    /// A string up to its NUL, or to its end without one.
    pub(crate) fn string(&self) -> &'a [u8] {
        self.payload.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// Attributes one after the other; ends after the first malformed one.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a> {
    bytes: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The first attribute of a kind.
    pub(crate) fn find(self, kind: u16) -> Result<Option<Attribute<'a>>, Malformed> {
        for attribute in self {
            let attribute = attribute?;
            if attribute.kind == kind {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }

    fn split(&self) -> Option<(Attribute<'a>, &'a [u8])> {
        let [l0, l1, k0, k1] = *self.bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let attribute = Attribute {
            kind: u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK,
            payload: self.bytes.get(NLA_HDRLEN..length)?,
        };
        Some((attribute, self.bytes.get(align(length)..).unwrap_or_default()))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        match self.split() {
            Some((attribute, rest)) => {
                self.bytes = rest;
                Some(Ok(attribute))
            }
            None => {
                self.bytes = &[];
                Some(Err(Malformed::new("attribute", "length")))
            }
        }
    }
}
