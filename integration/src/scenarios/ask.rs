//! Questions whose answer a scenario knows beforehand.

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::io::Errno;
use sheave::cluster::Protocol;

use crate::netns::NetNs;
use crate::traffic::{Answer, Request};

/// How soon a refusal must come; well below the second after which a SYN is sent again.
const AT_ONCE: Duration = Duration::from_millis(800);

/// How long nothing must come back for a packet to count as dropped. That it went nowhere is for a
/// [`Witness`](crate::fabric::Witness) to tell.
const SILENCE: Duration = Duration::from_millis(600);

/// Asks, and wants an answer from this endpoint.
pub(super) fn expect(from: &NetNs, request: Request, endpoint: &str) -> Result<Answer> {
    let answer = request.send(from)?;
    ensure!(
        answer.endpoint == endpoint,
        "{}: {request:?} was answered by {}, not {endpoint}",
        from.name(),
        answer.endpoint
    );
    Ok(answer)
}

/// Asks, and wants an answer from this endpoint, who saw `peer`.
pub(super) fn expect_seen_as(from: &NetNs, request: Request, endpoint: &str, peer: IpAddr) -> Result<()> {
    let answer = expect(from, request, endpoint)?;
    ensure!(answer.peer == peer, "{}: {request:?}: {endpoint} saw {}, not {peer}", from.name(), answer.peer);
    Ok(())
}

/// Wants a refusal, and that at once.
pub(super) fn refused(from: &NetNs, protocol: Protocol, address: IpAddr, port: u16) -> Result<()> {
    let start = Instant::now();
    match Request::new(protocol, address, port).send(from) {
        Ok(answer) => {
            bail!("{} → {protocol} {address} port {port}: answered by {}", from.name(), answer.endpoint)
        }
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("refused") || text.contains("unreachable"), "not a refusal: {text}");
            ensure!(start.elapsed() < AT_ONCE, "refused only after {:?}: {text}", start.elapsed());
            Ok(())
        }
    }
}

/// Asks all of these at the same time, and wants silence from each: neither an answer nor a refusal.
pub(super) fn silence(asked: &[(&NetNs, Request)]) -> Result<()> {
    thread::scope(|scope| {
        let asking: Vec<_> =
            asked.iter().map(|(from, request)| scope.spawn(|| request.within(SILENCE).send(from))).collect();
        asking.into_iter().zip(asked).try_for_each(|(asking, (from, request))| {
            let answer = asking.join().map_err(|_| anyhow!("a thread panicked"))?;
            match answer {
                Ok(answer) => bail!("{}: {request:?} was answered by {}", from.name(), answer.endpoint),
                Err(error) if is_silence(&error) => Ok(()),
                Err(error) => Err(error).context("neither an answer nor silence"),
            }
        })
    })
}

/// Whether a question failed because nothing came back. A node's own kernel tells whoever sends a datagram that it was dropped;
/// SCTP's `connect` says when its time is up that it is still at it.
pub(super) fn is_silence(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, TimedOut, WouldBlock};
    error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(error.kind(), PermissionDenied | TimedOut | WouldBlock)
            || Errno::from_io_error(error) == Some(Errno::INPROGRESS)
    })
}
