//! One question, one answer.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sheave::cluster::Protocol;
use socket2::Socket;

use super::{LIMIT, any, read_line, socket};
use crate::netns::NetNs;

/// How long a client's own kernel may take to give a source port free.
const OWN_PORT: Duration = Duration::from_secs(2);

/// What an endpoint said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The endpoint's name.
    pub endpoint: String,
    /// The client's address as the endpoint saw it.
    pub peer: IpAddr,
    /// Time from the first packet to the answer.
    pub took: Duration,
}

impl Answer {
    fn parse(line: &str, took: Duration) -> io::Result<Self> {
        let parts = line.split_once(' ').and_then(|(endpoint, peer)| {
            Some(Self { endpoint: endpoint.to_owned(), peer: peer.trim_end().parse().ok()?, took })
        });
        parts.ok_or_else(|| io::Error::other(format!("not an answer: {line:?}")))
    }
}

/// Which side ends a connection: from its source port the next can follow at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client's FIN; its port is taken for a minute (TCP's TIME-WAIT).
    Client,
    /// The client's reset.
    Reset,
    /// The endpoint's FIN.
    Endpoint,
}

/// A question to a virtual server.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub(super) protocol: Protocol,
    pub(super) to: SocketAddr,
    source_port: u16,
    limit: Duration,
    size: usize,
    question: &'static str,
    ending: Ending,
    pub(super) pause: Option<Duration>,
}

impl Request {
    /// To this address and port.
    pub fn new(protocol: Protocol, address: IpAddr, port: u16) -> Self {
        Self {
            protocol,
            to: (address, port).into(),
            source_port: 0,
            limit: LIMIT,
            size: 0,
            question: "who\n",
            ending: Ending::Client,
            pause: None,
        }
    }

    /// From this port of the client.
    pub fn from_port(self, source_port: u16) -> Self {
        Self { source_port, ..self }
    }

    /// Asks for the endpoint's own end of the connection: the answer has it as its peer.
    pub fn own_end(self) -> Self {
        Self { question: "own\n", ..self }
    }

    /// Gives up after this time.
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Datagrams of this many bytes of payload, both ways (UDP).
    pub fn size(self, size: usize) -> Self {
        Self { size, ..self }
    }

    /// Has its connection ended so (TCP).
    pub fn ending(self, ending: Ending) -> Self {
        Self { ending, ..self }
    }

    /// Under load, waits so long before the next, however many others ask.
    pub fn pause(self, pause: Duration) -> Self {
        Self { pause: Some(pause), ..self }
    }

    /// Asks from a namespace.
    pub fn send(&self, from: &NetNs) -> Result<Answer> {
        from.enter(|| self.ask())?.with_context(|| format!("{} → {} {}", from.name(), self.protocol, self.to))
    }

    /// Asks from the namespace of this thread.
    pub(super) fn ask(&self) -> io::Result<Answer> {
        let (mut stream, start) = self.connect_since()?;
        if self.ending == Ending::Reset {
            stream.set_linger(Some(Duration::ZERO))?;
        }
        stream.set_read_timeout(Some(
            self.limit.saturating_sub(start.elapsed()).max(Duration::from_millis(1)),
        ))?;
        let line = if self.protocol == Protocol::Udp {
            stream.write_all(&self.datagram())?;
            read_datagram(&stream, self.size)?
        } else {
            stream.write_all(self.question.as_bytes())?;
            read_line(&mut stream)?
        };
        let answer = Answer::parse(&line, start.elapsed())?;
        match self.ending {
            Ending::Client | Ending::Reset => {}
            Ending::Endpoint => {
                stream.write_all(b"bye\n")?;
                if stream.read(&mut [0])? != 0 {
                    return Err(io::Error::other("something came after the answer"));
                }
            }
        }
        Ok(answer)
    }

    /// A connected socket (for UDP: with its peer set).
    pub(super) fn connect(&self) -> io::Result<Socket> {
        self.connect_since().map(|(socket, _)| socket)
    }

    /// The same, with when its first packet was sent.
    fn connect_since(&self) -> io::Result<(Socket, Instant)> {
        let end = Instant::now() + OWN_PORT;
        loop {
            let start = Instant::now();
            match self.connect_once() {
                // The kernel here has not done with the last connection from that port.
                Err(error)
                    if self.source_port != 0
                        && error.kind() == io::ErrorKind::AddrNotAvailable
                        && Instant::now() < end =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other.map(|socket| (socket, start)),
            }
        }
    }

    fn connect_once(&self) -> io::Result<Socket> {
        let socket = socket(self.protocol, self.to)?;
        if self.source_port != 0 {
            socket.set_reuse_address(true)?;
            socket.bind(&any(self.to.ip(), self.source_port).into())?;
        }
        if self.protocol == Protocol::Tcp {
            socket.connect_timeout(&self.to.into(), self.limit)?;
            socket.set_tcp_nodelay(true)?;
        } else {
            // SCTP's connect has no select-able progress in socket2; the send time-out bounds it.
            socket.set_write_timeout(Some(self.limit))?;
            socket.connect(&self.to.into())?;
        }
        Ok(socket)
    }

    fn datagram(&self) -> Vec<u8> {
        let mut datagram = b"who\n".to_vec();
        datagram.resize(datagram.len().max(self.size), b'.');
        datagram
    }
}

pub(super) fn read_datagram(socket: &Socket, at_least: usize) -> io::Result<String> {
    let socket: std::net::UdpSocket = socket.try_clone()?.into();
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer)?;
    if length < at_least {
        return Err(io::Error::other(format!("an answer of {length} bytes, not {at_least}")));
    }
    let text = String::from_utf8_lossy(&buffer[..length]);
    text.lines().next().map(str::to_owned).ok_or_else(|| io::Error::other("an empty datagram"))
}

/// Sends one datagram from each of `ports` and tells which endpoint answered each, in their order; `None` where no answer came.
pub fn flows(from: &NetNs, to: SocketAddr, ports: std::ops::Range<u16>) -> Result<Vec<Option<String>>> {
    from.enter(|| -> io::Result<_> {
        let mut sockets = Vec::new();
        for port in ports {
            let request = Request::new(Protocol::Udp, to.ip(), to.port()).from_port(port);
            let mut socket = request.connect()?;
            socket.write_all(&request.datagram())?;
            sockets.push(socket);
        }
        let end = Instant::now() + LIMIT;
        let answer = |socket: &Socket| -> io::Result<String> {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            socket.set_read_timeout(Some(left))?;
            Ok(Answer::parse(&read_datagram(socket, 0)?, left)?.endpoint)
        };
        Ok(sockets.iter().map(|socket| answer(socket).ok()).collect())
    })?
    .with_context(|| format!("{} → flows to {to}", from.name()))
}
