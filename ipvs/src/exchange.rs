//! Requests and their answers over one socket.
//!
//! ```text
//! batch    ──► message, message, … message+ACK         query ──► request+ACK
//!          ◄── an error for each that failed                 ◄── replies …
//!          ◄── acknowledgement or error of the last          ◄── acknowledgement, error or end of dump
//! ```
//!
//! The sequence number alone tells what an answer belongs to; answers to anything else are skipped.

use rustix::io::Errno;

use crate::error::Malformed;
use crate::socket::Transport;
use crate::uapi::{NLMSG_DONE, NLMSG_ERROR};
use crate::wire::{self, Message};
use crate::{Applied, Error, Failure};

/// The kernel's error number within its range (`MAX_ERRNO`); `None` for success.
fn refusal(message: &Message<'_>) -> Result<Option<Errno>, Malformed> {
    match message.error_number()? {
        0 => Ok(None),
        number @ 1..=4095 => Ok(Some(Errno::from_raw_os_error(number))),
        _ => Err(Malformed::new("netlink error", "error number")),
    }
}

/// Sends one datagram of operations and gathers what failed. `first_sequence` moves on.
pub(crate) fn batch(
    transport: &mut impl Transport,
    sequence: &mut u32,
    bytes: &mut [u8],
    applied: &mut Applied,
) -> Result<(), Error> {
    let first = *sequence;
    let count = wire::stamp(bytes, first);
    *sequence = first.wrapping_add(count);
    let result = send_and_gather(transport, bytes, first, count, applied);
    if result.is_err() {
        transport.discard();
    }
    result
}

fn send_and_gather(
    transport: &mut impl Transport,
    bytes: &[u8],
    first: u32,
    count: u32,
    applied: &mut Applied,
) -> Result<(), Error> {
    transport.send(bytes)?;
    applied.sends += 1;
    let mut acknowledged = false;
    while !acknowledged {
        let datagram = transport.receive()?.ok_or(Error::NoAnswer { request: "apply operations" })?;
        for message in wire::messages(datagram) {
            let message = message?;
            let offset = message.sequence.wrapping_sub(first);
            if message.kind != NLMSG_ERROR || offset >= count {
                continue;
            }
            if let Some(errno) = refusal(&message)? {
                applied.failures.push(Failure { index: applied.messages + offset as usize, errno });
            }
            acknowledged |= offset == count - 1;
        }
    }
    applied.messages += count as usize;
    Ok(())
}

/// Sends one request and hands each reply to `on_reply`. Returns how many datagrams the replies came in: the
/// kernel lets go of its lock between the pieces of a dump. `sequence` moves on.
pub(crate) fn query(
    transport: &mut impl Transport,
    sequence: &mut u32,
    request: &'static str,
    bytes: &mut [u8],
    on_reply: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
) -> Result<usize, Error> {
    let expected = *sequence;
    *sequence = expected.wrapping_add(wire::stamp(bytes, expected));
    let result = send_and_read(transport, bytes, expected, request, on_reply);
    if !matches!(result, Ok(_) | Err(Error::Refused { .. })) {
        transport.discard();
    }
    result
}

fn send_and_read(
    transport: &mut impl Transport,
    bytes: &[u8],
    expected: u32,
    request: &'static str,
    mut on_reply: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
) -> Result<usize, Error> {
    transport.send(bytes)?;
    let mut pieces = 0;
    loop {
        let datagram = transport.receive()?.ok_or(Error::NoAnswer { request })?;
        let mut replies = 0;
        for message in wire::messages(datagram) {
            let message = message?;
            match message.kind {
                _ if message.sequence != expected => {}
                NLMSG_ERROR | NLMSG_DONE => {
                    return match refusal(&message)? {
                        Some(errno) => Err(Error::Refused { request, errno }),
                        None => Ok(pieces + replies.min(1)),
                    };
                }
                _ => {
                    on_reply(&message)?;
                    replies += 1;
                }
            }
        }
        pieces += replies.min(1);
    }
}

#[cfg(test)]
mod tests;
