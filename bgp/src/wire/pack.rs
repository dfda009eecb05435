//! UPDATEs with as many prefixes as fit: what the Adj-RIB-Out is sent with.

use std::iter::Peekable;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attribute::{NON_TRANSITIVE, PathAttributes, code};
use super::error::TooLong;
use super::message::{Message, RefreshKind, RouteRefresh, UPDATE, with_header};
use super::prefix::Nlri;
use super::update::family_bytes;
use super::{Context, Update};
use crate::Family;

/// The attributes of an announcement of one family, encoded once for however many messages it takes.
#[derive(Clone, Debug)]
pub struct Announcement {
    attributes: Vec<u8>,
    /// What MP_REACH_NLRI begins with, in a family that needs it.
    mp_reach: Option<Vec<u8>>,
    /// Prefixes have path identifiers.
    add_path: bool,
    /// The length of the longest message.
    limit: usize,
}

impl Announcement {
    /// `attributes` of prefixes of `family` with this next hop: an IPv6 one of either family (RFC 8950), and then with the
    /// link-local address beside it if there is one; an IPv4 one of IPv4 only.
    ///
    /// # Errors
    /// The attributes leave no room for a prefix.
    pub fn of_family(
        family: Family,
        attributes: PathAttributes,
        next_hop: IpAddr,
        link_local: Option<Ipv6Addr>,
        context: Context,
    ) -> Result<Announcement, TooLong> {
        let classic: Option<Ipv4Addr> = match next_hop {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let mp_reach = match next_hop {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => {
                let mut next_hops = address.octets().to_vec();
                next_hops.extend(link_local.iter().flat_map(Ipv6Addr::octets));
                let length = if link_local.is_some() { 32 } else { 16 };
                Some([&family_bytes(family)[..], &[length], &next_hops, &[0]].concat())
            }
        };
        let mut encoded = Vec::new();
        PathAttributes { next_hop: classic, ..attributes }.encode(context, &mut encoded)?;
        let add_path = context.add_path.contains(family);
        let announcement =
            Announcement { attributes: encoded, mp_reach, add_path, limit: context.max_length() };
        // Header, two lengths, header of MP_REACH_NLRI, longest prefix.
        let least = 19
            + 4
            + announcement.attributes.len()
            + if add_path { 4 } else { 0 }
            + announcement.mp_reach.as_ref().map_or(5, |m| 4 + m.len() + 17);
        if least > announcement.limit { Err(TooLong) } else { Ok(announcement) }
    }

    /// Appends one UPDATE that takes from `prefixes` what fits; nothing where there are none. Returns how many
    /// it took.
    pub fn write<P: Into<Nlri> + Copy>(
        &self,
        prefixes: &mut Peekable<impl Iterator<Item = P>>,
        out: &mut Vec<u8>,
    ) -> usize {
        if prefixes.peek().is_none() {
            return 0;
        }
        let mut count = 0;
        let written = with_header(UPDATE, self.limit, out, |out| {
            let start = out.len() - 19;
            out.extend_from_slice(&[0, 0]);
            let attributes_at = out.len();
            out.extend_from_slice(&[0, 0]);
            if let Some(head) = &self.mp_reach {
                let room = self.limit - (out.len() - start) - self.attributes.len();
                count = write_multiprotocol(code::MP_REACH_NLRI, head, prefixes, self.add_path, room, out)?;
            }
            out.extend_from_slice(&self.attributes);
            fill_length(attributes_at, out)?;
            if self.mp_reach.is_none() {
                count = write_prefixes(prefixes, self.add_path, self.limit - (out.len() - start), out);
            }
            Ok(())
        });
        debug_assert_eq!(written, Ok(()), "`new` left room");
        count
    }
}

/// Appends one UPDATE that withdraws what fits of `prefixes`, all of `family`; nothing where there are none. Returns
/// how many it took.
pub fn write_withdrawal<P: Into<Nlri> + Copy>(
    family: Family,
    context: Context,
    prefixes: &mut Peekable<impl Iterator<Item = P>>,
    out: &mut Vec<u8>,
) -> usize {
    if prefixes.peek().is_none() {
        return 0;
    }
    let (limit, add_path) = (context.max_length(), context.add_path.contains(family));
    let mut count = 0;
    let written = with_header(UPDATE, limit, out, |out| {
        let start = out.len() - 19;
        let withdrawn_at = out.len();
        out.extend_from_slice(&[0, 0]);
        match family {
            Family::Ipv4Unicast => {
                count = write_prefixes(prefixes, add_path, limit - (out.len() - start) - 2, out);
                fill_length(withdrawn_at, out)?;
                out.extend_from_slice(&[0, 0]);
                Ok(())
            }
            Family::Ipv6Unicast => {
                let attributes_at = out.len();
                out.extend_from_slice(&[0, 0]);
                let room = limit - (out.len() - start);
                let head = family_bytes(family);
                count = write_multiprotocol(code::MP_UNREACH_NLRI, &head, prefixes, add_path, room, out)?;
                fill_length(attributes_at, out)
            }
        }
    });
    debug_assert_eq!(written, Ok(()), "the room was counted");
    count
}

/// Appends the End-of-RIB marker of `family` (RFC 4724 §2).
pub fn write_end_of_rib(family: Family, out: &mut Vec<u8>) {
    write_short(&Message::Update(Update::end_of_rib_marker(family)), out);
}

/// Appends a ROUTE-REFRESH.
pub fn write_route_refresh(kind: RefreshKind, family: Family, out: &mut Vec<u8>) {
    write_short(&Message::RouteRefresh(RouteRefresh::new(kind, family)), out);
}

/// Appends a message that any peer takes.
fn write_short(message: &Message, out: &mut Vec<u8>) {
    let written = message.encode(Context::default(), out);
    debug_assert_eq!(written, Ok(()), "these are short");
}

/// An attribute of two length octets: `head`, then prefixes; all within `room`.
fn write_multiprotocol<P: Into<Nlri> + Copy>(
    code: u8,
    head: &[u8],
    prefixes: &mut Peekable<impl Iterator<Item = P>>,
    add_path: bool,
    room: usize,
    out: &mut Vec<u8>,
) -> Result<usize, TooLong> {
    const EXTENDED_LENGTH: u8 = 0x10;
    out.extend_from_slice(&[NON_TRANSITIVE | EXTENDED_LENGTH, code]);
    let length_at = out.len();
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(head);
    let count = write_prefixes(prefixes, add_path, room - 4 - head.len(), out);
    fill_length(length_at, out)?;
    Ok(count)
}

/// Appends prefixes while they fit into `room` bytes.
fn write_prefixes<P: Into<Nlri> + Copy>(
    prefixes: &mut Peekable<impl Iterator<Item = P>>,
    add_path: bool,
    mut room: usize,
    out: &mut Vec<u8>,
) -> usize {
    let mut count = 0;
    while let Some(nlri) = prefixes.next_if(|&nlri| nlri.into().wire_length(add_path) <= room) {
        let nlri = nlri.into();
        room -= nlri.wire_length(add_path);
        nlri.write_any(add_path, out);
        count += 1;
    }
    count
}

/// Sets the two octets at `at` to how many bytes follow them.
fn fill_length(at: usize, out: &mut [u8]) -> Result<(), TooLong> {
    let length = u16::try_from(out.len() - at - 2).map_err(|_| TooLong)?;
    out[at..at + 2].copy_from_slice(&length.to_be_bytes());
    Ok(())
}
