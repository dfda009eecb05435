//! Bulk transfers.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sheave::cluster::Protocol;
use socket2::Socket;

use super::server::{give, take};
use super::{Request, read_line};
use crate::netns::NetNs;

/// No byte for this long is a stall.
const STALL: Duration = Duration::from_secs(5);

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    /// From the client to the endpoint.
    Upload,
    /// From the endpoint to the client.
    Download,
}

/// Transfers `count` bytes over TCP, compares each, and returns how long it took; a pause of more than five seconds is an error.
pub fn bulk(from: &NetNs, address: IpAddr, port: u16, direction: Bulk, count: u64) -> Result<Duration> {
    from.enter(|| transfer(address, port, direction, count))?
        .with_context(|| format!("{}: {direction:?} of {count} bytes, {address} port {port}", from.name()))
}

fn transfer(address: IpAddr, port: u16, direction: Bulk, count: u64) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream = Request::new(Protocol::Tcp, address, port).connect()?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let verdict = match direction {
        Bulk::Upload => {
            stream.write_all(format!("put {count}\n").as_bytes())?;
            give(&mut Progress { stream: &mut stream, done: 0 }, count)?;
            read_line(&mut stream)?
        }
        Bulk::Download => {
            stream.write_all(format!("get {count}\n").as_bytes())?;
            take(&mut Progress { stream: &mut stream, done: 0 }, count)?
        }
    };
    if verdict.ends_with("ok") { Ok(start.elapsed()) } else { Err(io::Error::other(verdict)) }
}

/// Says how far it came when a transfer stalls.
struct Progress<'a> {
    stream: &'a mut Socket,
    done: usize,
}

impl Progress<'_> {
    fn note(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        match result {
            Ok(count) => {
                self.done += count;
                Ok(count)
            }
            Err(error) => {
                Err(io::Error::new(error.kind(), format!("stalled after {} bytes: {error}", self.done)))
            }
        }
    }
}

impl Read for Progress<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.stream.read(buffer);
        self.note(result)
    }
}

impl Write for Progress<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let result = self.stream.write(buffer);
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
