//! The header, and the five kinds of message behind it (RFC 4271 §4.1, RFC 2918).

use super::error::{TooLong, WireError};
use super::reader::Reader;
use super::{Context, Notification, Open, Update};
use crate::Family;

/// Length of the header.
pub const HEADER_LENGTH: usize = 19;
/// Length of the longest message to a peer that does not take longer ones, and of the longest OPEN.
pub const MAX_LENGTH: usize = 4096;
/// Length of the longest message to one that does (RFC 8654).
pub const EXTENDED_MAX_LENGTH: usize = 65535;

const MARKER: [u8; 16] = [0xff; 16];

const OPEN: u8 = 1;
pub(super) const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH: u8 = 5;

/// A BGP message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "messages are read and written one at a time, not kept")]
pub enum Message {
    /// Type 1.
    Open(Open),
    /// Type 2.
    Update(Update),
    /// Type 3.
    Notification(Notification),
    /// Type 4.
    Keepalive,
    /// Type 5.
    RouteRefresh(RouteRefresh),
}

/// Asks for all routes of a family again (RFC 2918), or says where these begin and end (RFC 7313).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteRefresh {
    /// Address Family Identifier.
    pub afi: u16,
    /// A [`RefreshKind`], where it is a known one.
    pub subtype: u8,
    /// Subsequent Address Family Identifier.
    pub safi: u8,
}

/// Subtypes of ROUTE-REFRESH (RFC 7313 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RefreshKind {
    /// All routes are asked for.
    Request = 0,
    /// They follow (BoRR).
    Begin = 1,
    /// That were all (EoRR).
    End = 2,
}

impl RouteRefresh {
    /// One of a family of ours.
    pub fn new(kind: RefreshKind, family: Family) -> RouteRefresh {
        RouteRefresh { afi: family.afi(), subtype: kind as u8, safi: family.safi() }
    }

    /// What it says of which family of ours; `None`: nothing that is known (RFC 7313 §5).
    pub fn meaning(self) -> Option<(RefreshKind, Family)> {
        let kind = match self.subtype {
            0 => RefreshKind::Request,
            1 => RefreshKind::Begin,
            2 => RefreshKind::End,
            _ => return None,
        };
        Some((kind, Family::from_afi_safi(self.afi, self.safi)?))
    }
}

/// The length of the message that `bytes` begin with, once all of it is there. Extended messages are taken from any peer:
/// sessions offer it to all (RFC 8654 §4).
///
/// # Errors
/// What is wrong with the header, as soon as it can be known (RFC 4271 §6.1).
pub fn frame(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let marker = &bytes[..bytes.len().min(MARKER.len())];
    if marker.iter().any(|&byte| byte != 0xff) {
        return Err(WireError::NotSynchronized);
    }
    let mut reader = Reader::new(bytes);
    let (Some(_), Some(length), Some(kind)) = (reader.take(MARKER.len()), reader.u16(), reader.u8()) else {
        return Ok(None);
    };
    let valid = match kind {
        OPEN => 29..=MAX_LENGTH,
        UPDATE => 23..=EXTENDED_MAX_LENGTH,
        NOTIFICATION => 21..=EXTENDED_MAX_LENGTH,
        KEEPALIVE => HEADER_LENGTH..=HEADER_LENGTH,
        // A wrong length has an error of its own (RFC 7313 §5), which wants the whole message.
        ROUTE_REFRESH => HEADER_LENGTH..=EXTENDED_MAX_LENGTH,
        other => return Err(WireError::BadType(other)),
    };
    if !valid.contains(&usize::from(length)) {
        return Err(WireError::BadLength(length));
    }
    Ok(Some(usize::from(length)).filter(|&length| bytes.len() >= length))
}

/// Appends a header for a body of type `kind` that `body` then writes, and fills in the length, of `limit` at most.
pub(super) fn with_header(
    kind: u8,
    limit: usize,
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), TooLong>,
) -> Result<(), TooLong> {
    let start = out.len();
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[0, 0, kind]);
    let written = body(out).and_then(|()| {
        let length = out.len() - start;
        u16::try_from(length).ok().filter(|_| length <= limit).ok_or(TooLong)
    });
    match written {
        Ok(length) => {
            out[start + MARKER.len()..][..2].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(TooLong) => {
            out.truncate(start);
            Err(TooLong)
        }
    }
}

impl Message {
    /// What RFC 4271 calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Open(_) => "OPEN",
            Message::Update(_) => "UPDATE",
            Message::Notification(_) => "NOTIFICATION",
            Message::Keepalive => "KEEPALIVE",
            Message::RouteRefresh(_) => "ROUTE-REFRESH",
        }
    }

    /// Appends the message to `out`.
    ///
    /// # Errors
    /// It would be longer than the peer takes; `out` is then as it was.
    pub fn encode(&self, context: Context, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let limit = context.max_length();
        match self {
            Message::Open(open) => with_header(OPEN, MAX_LENGTH, out, |out| open.encode(out)),
            Message::Update(update) => with_header(UPDATE, limit, out, |out| update.encode(context, out)),
            Message::Notification(Notification { code, subcode, data }) => {
                with_header(NOTIFICATION, limit, out, |out| {
                    out.extend_from_slice(&[*code, *subcode]);
                    out.extend_from_slice(data);
                    Ok(())
                })
            }
            Message::Keepalive => with_header(KEEPALIVE, MAX_LENGTH, out, |_| Ok(())),
            Message::RouteRefresh(RouteRefresh { afi, subtype, safi }) => {
                with_header(ROUTE_REFRESH, limit, out, |out| {
                    out.extend_from_slice(&afi.to_be_bytes());
                    out.extend_from_slice(&[*subtype, *safi]);
                    Ok(())
                })
            }
        }
    }

    /// Reads one whole message, as cut out by [`frame`].
    ///
    /// # Errors
    /// What ends the session. Lesser errors of an UPDATE are in [`Update::malformed`].
    pub fn decode(message: &[u8], context: Context) -> Result<Message, WireError> {
        if frame(message)? != Some(message.len()) {
            // Only a caller that did not cut by `frame` comes here.
            return Err(WireError::BadLength(u16::try_from(message.len()).unwrap_or(u16::MAX)));
        }
        let (kind, body) = (message[HEADER_LENGTH - 1], &message[HEADER_LENGTH..]);
        let mut reader = Reader::new(body);
        Ok(match kind {
            OPEN => Message::Open(Open::decode(body)?),
            UPDATE => Message::Update(Update::decode(body, context)?),
            NOTIFICATION => match (reader.u8(), reader.u8()) {
                (Some(code), Some(subcode)) => {
                    Message::Notification(Notification::with_data(code, subcode, reader.rest()))
                }
                _ => return Err(WireError::BadLength(u16::try_from(message.len()).unwrap_or(u16::MAX))),
            },
            KEEPALIVE => Message::Keepalive,
            ROUTE_REFRESH => match <[u8; 4]>::try_from(body) {
                Ok([high, low, subtype, safi]) => Message::RouteRefresh(RouteRefresh {
                    afi: u16::from_be_bytes([high, low]),
                    subtype,
                    safi,
                }),
                Err(_) => return Err(WireError::RouteRefreshLength(message.to_vec())),
            },
            other => return Err(WireError::BadType(other)),
        })
    }
}
