//! The server of every endpoint. Line by line over TCP and SCTP, datagram by datagram over UDP:
//!
//! ```text
//! bye        the server ends the connection
//! who        → NAME PEER            NAME is the endpoint's, PEER the client's address as the endpoint saw it
//! own        → NAME ADDRESS         ADDRESS is its own end of the connection as the endpoint saw it (not over UDP)
//! put N      … N bytes → NAME ok    or `NAME byte I differs`
//! get N      → N bytes
//! ```

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use sheave::cluster::Protocol;
use socket2::Socket;

use super::{Pattern, read_line, socket};
use crate::netns::NetNs;

/// How often a waiting server looks whether it shall end.
const TICK: Duration = Duration::from_millis(200);

/// Listens in a namespace until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// Listens on these ports of all addresses of both families; `name` is what it answers with.
    pub fn start(ns: &NetNs, name: &str, ports: &[(Protocol, u16)]) -> Result<Self> {
        Self::start_on(ns, &[Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()], name, ports)
    }

    /// The same on these addresses alone.
    pub fn start_on(ns: &NetNs, addresses: &[IpAddr], name: &str, ports: &[(Protocol, u16)]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for &(protocol, port) in ports {
            for &address in addresses {
                let address = SocketAddr::new(address, port);
                let listener = ns
                    .enter(|| listen(protocol, address))?
                    .with_context(|| format!("{name}: listen on {protocol} {address}"))?;
                let (name, stop): (Arc<str>, _) = (name.into(), Arc::clone(&stop));
                threads.push(ns.thread(move || match protocol {
                    Protocol::Udp => serve_datagrams(&listener, &name, &stop),
                    Protocol::Tcp | Protocol::Sctp => accept(&listener, &name, &stop),
                })?);
            }
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn listen(protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let socket = socket(protocol, address)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    if protocol != Protocol::Udp {
        socket.listen(1024)?;
    }
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn accept(listener: &Socket, name: &Arc<str>, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, peer)) = listener.accept() else { continue };
        let (Some(peer), name, stop) = (peer.as_socket(), Arc::clone(name), Arc::clone(stop)) else {
            continue;
        };
        // A connection's thread ends with the connection or soon after the server; nobody waits for it.
        let _ = thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            let mut stream = stream;
            let _ = serve(&mut stream, &name, peer, &stop);
        });
    }
}

/// Serves one connection until it ends.
fn serve(stream: &mut Socket, name: &str, peer: SocketAddr, stop: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    let mut patient = Patient { stream, stop };
    loop {
        let line = read_line(&mut patient)?;
        let answer = match line.split_once(' ') {
            None if line == "bye" => return Ok(()),
            None if line == "own" => {
                let own = patient.stream.local_addr()?.as_socket();
                format!("{name} {}\n", own.ok_or(io::ErrorKind::AddrNotAvailable)?.ip())
            }
            None => format!("{name} {}\n", peer.ip()),
            Some(("put", count)) => {
                format!("{name} {}\n", take(&mut patient, count.parse().map_err(io::Error::other)?)?)
            }
            Some((_, count)) => {
                give(patient.stream, count.parse().map_err(io::Error::other)?)?;
                continue;
            }
        };
        patient.stream.write_all(answer.as_bytes())?;
    }
}

/// Reads through time-outs until the server ends.
struct Patient<'a> {
    stream: &'a mut Socket,
    stop: &'a AtomicBool,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if timed_out(&error) && !self.stop.load(Ordering::Relaxed) => {}
                other => return other,
            }
        }
    }
}

/// Reads `count` bytes of the pattern; `ok`, or which byte is wrong.
pub(super) fn take(stream: &mut impl Read, count: u64) -> io::Result<String> {
    let pattern = Pattern::new();
    let mut buffer = vec![0; Pattern::CHUNK];
    let mut offset = 0;
    let mut wrong = None;
    while offset < count {
        let want = usize::try_from(count - offset).unwrap_or(Pattern::CHUNK).min(Pattern::CHUNK);
        let got = stream.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("closed after {offset} of {count} bytes"),
            ));
        }
        if wrong.is_none() && buffer[..got] != *pattern.at(offset, got) {
            wrong = Some(offset);
        }
        offset += got as u64;
    }
    Ok(wrong.map_or_else(|| "ok".to_owned(), |offset| format!("differs after byte {offset}")))
}

/// Writes `count` bytes of the pattern.
pub(super) fn give(stream: &mut impl Write, count: u64) -> io::Result<()> {
    let pattern = Pattern::new();
    let mut offset = 0;
    while offset < count {
        let want = usize::try_from(count - offset).unwrap_or(Pattern::CHUNK);
        offset += stream.write(pattern.at(offset, want))? as u64;
    }
    Ok(())
}

fn serve_datagrams(socket: &Socket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, peer)) = receive(socket, &mut buffer) else { continue };
        let mut answer = format!("{name} {}\n", peer.ip()).into_bytes();
        // As long as the question, so that both ways carry the same size.
        answer.resize(answer.len().max(length), b'.');
        let _ = socket.send_to(&answer, &peer.into());
    }
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    // `recv_from` of socket2 wants uninitialised memory; std's does the same on an ordinary buffer.
    let socket: std::net::UdpSocket = socket.try_clone()?.into();
    socket.recv_from(buffer)
}
