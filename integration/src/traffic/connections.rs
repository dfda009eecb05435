//! Connections that stay open while the network under them changes.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sheave::cluster::Protocol;
use socket2::Socket;

use super::request::read_datagram;
use super::{Request, read_line};
use crate::netns::NetNs;

/// How long a connection may take to answer before it counts as lost.
const STALL: Duration = Duration::from_secs(8);

/// A set of established connections (or UDP flows) to one virtual server.
#[derive(Debug)]
pub struct Connections {
    protocol: Protocol,
    to: SocketAddr,
    sockets: Vec<(Socket, String)>,
}

impl Connections {
    /// Opens `count` of them, each checked by one question.
    pub fn open(from: &NetNs, protocol: Protocol, address: IpAddr, port: u16, count: usize) -> Result<Self> {
        let request = Request::new(protocol, address, port);
        let open = || -> io::Result<(Socket, String)> {
            let mut socket = request.connect()?;
            socket.set_read_timeout(Some(STALL))?;
            socket.write_all(b"who\n")?;
            let answer = hear(protocol, &mut socket)?;
            Ok((socket, answer))
        };
        let sockets =
            from.enter(|| (0..count).map(|_| open()).collect::<io::Result<Vec<_>>>())?.with_context(
                || format!("{} → {count} connections to {protocol} {address}:{port}", from.name()),
            )?;
        Ok(Self { protocol, to: (address, port).into(), sockets })
    }

    /// How many of them go to each endpoint's name.
    pub fn endpoints(&self) -> std::collections::BTreeMap<&str, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for (_, answer) in &self.sockets {
            *counts.entry(endpoint(answer)).or_default() += 1;
        }
        counts
    }

    /// Takes out those that go to an endpoint.
    pub fn split(&mut self, name: &str) -> Self {
        let (theirs, rest) = self.sockets.drain(..).partition(|(_, answer)| endpoint(answer) == name);
        self.sockets = rest;
        Self { protocol: self.protocol, to: self.to, sockets: theirs }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Puts a question through each, and wants each to be reset within `limit`.
    pub fn await_resets(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        for (socket, expected) in &mut self.sockets {
            let reset = socket.write_all(b"who\n").and_then(|()| {
                let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(10));
                socket.set_read_timeout(Some(left))?;
                read_line(socket)
            });
            match reset {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => bail!("a connection to {}: {error}, not a reset", endpoint(expected)),
                Ok(answer) => bail!("a connection to {} was answered: {answer}", endpoint(expected)),
            }
        }
        Ok(())
    }

    /// Puts a question through each (UDP), and wants this endpoint to answer it, or the next one.
    pub fn await_move(&mut self, to: &str) -> Result<()> {
        for (socket, from) in &mut self.sockets {
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut ask = || socket.write_all(b"who\n").and_then(|()| hear(self.protocol, socket));
            let answer = ask().or_else(|_| ask()).with_context(|| format!("a flow to {from}, twice"))?;
            ensure!(endpoint(&answer) == to, "a flow to {from} was answered by {answer}, not {to}");
            *from = answer;
        }
        Ok(())
    }

    /// Puts a question through each; an error tells how many are lost, reset or answered by somebody else.
    pub fn check(&mut self) -> Result<()> {
        let tally = self.tally();
        let lost = tally.reset + tally.lost;
        ensure!(
            lost == 0,
            "{lost} of {} connections to {} {} lost: {}",
            self.sockets.len(),
            self.protocol,
            self.to,
            tally.faults.join("; ")
        );
        Ok(())
    }

    /// Puts a question through each, all at once, and counts what becomes of them.
    pub fn tally(&mut self) -> Tally {
        let start = Instant::now();
        let end = start + STALL;
        let asked: Vec<io::Result<()>> =
            self.sockets.iter_mut().map(|(socket, _)| socket.write_all(b"who\n")).collect();
        let mut tally = Tally::default();
        for ((socket, expected), asked) in self.sockets.iter_mut().zip(asked) {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(10));
            let answer = asked
                .and_then(|()| socket.set_read_timeout(Some(left)))
                .and_then(|()| hear(self.protocol, socket));
            match answer {
                Ok(answer) if answer == *expected => {
                    tally.kept += 1;
                    tally.slowest = tally.slowest.max(start.elapsed());
                }
                Ok(answer) => {
                    tally.lost += 1;
                    tally.faults.push(format!("{expected:?} became {answer:?}"));
                }
                Err(error) => {
                    let reset = error.kind() == io::ErrorKind::ConnectionReset;
                    *if reset { &mut tally.reset } else { &mut tally.lost } += 1;
                    tally.faults.push(format!("{}: {error}", endpoint(expected)));
                }
            }
        }
        tally
    }
}

/// What has become of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answered by whom they were answered at first.
    pub kept: usize,
    /// Reset.
    pub reset: usize,
    /// Without an answer, closed, or answered by somebody else.
    pub lost: usize,
    /// What is wrong with those that were not kept.
    pub faults: Vec<String>,
    /// The slowest answer.
    pub slowest: Duration,
}

/// An answer: a line, or a datagram that begins with one.
fn hear(protocol: Protocol, socket: &mut Socket) -> io::Result<String> {
    if protocol == Protocol::Udp { read_datagram(socket, 0) } else { read_line(socket) }
}

fn endpoint(answer: &str) -> &str {
    answer.split(' ').next().unwrap_or(answer)
}
