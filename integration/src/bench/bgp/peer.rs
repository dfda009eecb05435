//! A peer of the speaker under test: as little of BGP as a session needs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use sheave_bgp::Family;
use sheave_bgp::wire::pack::Announcement;
use sheave_bgp::wire::{AsPath, Capability, Context, Message, Open, Origin, PathAttributes, Update, frame};
use socket2::{Domain, Socket, Type};

use super::{LIMIT, PEER_ASN, SPEAKER};

const CONTEXT: Context = Context {
    four_octet_asn: true,
    ibgp: false,
    extended_messages: false,
    add_path: sheave_bgp::Families::NONE,
};

/// Connects from `address`, once the speaker takes connections.
pub fn connect(address: Ipv4Addr) -> Result<TcpStream> {
    let end = Instant::now() + LIMIT;
    loop {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((address, 0)).into())?;
        match socket.connect_timeout(&SocketAddr::from((SPEAKER, 179)).into(), LIMIT) {
            Ok(()) => return Ok(socket.into()),
            Err(error) if Instant::now() > end => bail!("{error}"),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// This side of a session.
pub struct Session {
    stream: TcpStream,
    /// Not yet a message.
    bytes: Vec<u8>,
    buffer: Box<[u8]>,
}

impl Session {
    /// Says all that this side has to say for a session; when that was.
    pub fn open(mut stream: TcpStream, router_id: Ipv4Addr) -> Result<(Self, Instant)> {
        stream.set_read_timeout(Some(LIMIT))?;
        let open = Message::Open(Open {
            my_as: PEER_ASN,
            hold_time: 180,
            router_id,
            capabilities: vec![
                Capability::Multiprotocol { afi: 1, safi: 1 },
                Capability::FourOctetAsn(PEER_ASN.into()),
            ],
        });
        let mut greeting = Vec::new();
        for message in [open, Message::Keepalive] {
            message.encode(CONTEXT, &mut greeting)?;
        }
        stream.write_all(&greeting)?;
        Ok((Self { stream, bytes: Vec::new(), buffer: vec![0; 256 * 1024].into() }, Instant::now()))
    }

    /// What comes next, as whole messages: `None` where that is the end.
    fn read(&mut self) -> Result<Option<Vec<Message>>> {
        let read = self.stream.read(&mut self.buffer).context("reading from the speaker")?;
        if read == 0 {
            return Ok(None);
        }
        self.bytes.extend_from_slice(&self.buffer[..read]);
        let (mut messages, mut done) = (Vec::new(), 0);
        while let Some(length) = frame(&self.bytes[done..])? {
            let message = Message::decode(&self.bytes[done..done + length], CONTEXT)?;
            if let Message::Notification(notification) = message {
                bail!("NOTIFICATION: {notification}");
            }
            messages.push(message);
            done += length;
        }
        self.bytes.drain(..done);
        Ok(Some(messages))
    }
}

/// What a peer has seen so far.
pub struct Report {
    /// When the last of it came.
    pub at: Instant,
    /// UPDATEs that told of prefixes, since the last report.
    pub messages: u32,
}

/// Connects, and reports three times: that the session is up (at the time of this side's KEEPALIVE), that so many prefixes were
/// announced, and that so many were withdrawn.
pub fn count(address: Ipv4Addr, prefixes: u32, reports: &mpsc::Sender<Report>) -> Result<()> {
    let (mut session, mut at) = Session::open(connect(address)?, address)?;
    let (mut up, mut messages) = (false, 0);
    for of in [|update: &Update| update.reachable().count(), |update: &Update| update.unreachable().count()] {
        let mut left = prefixes;
        while left > 0 {
            let next = session.read()?.context("the speaker closed the connection")?;
            if !up && next.contains(&Message::Keepalive) {
                up = true;
                ensure!(reports.send(Report { at, messages: 0 }).is_ok(), "nobody waits for it");
            }
            at = Instant::now();
            for message in &next {
                let Message::Update(update) = message else { continue };
                let count = u32::try_from(of(update))?;
                left = left.saturating_sub(count);
                messages += u32::from(count > 0);
            }
        }
        ensure!(reports.send(Report { at, messages }).is_ok(), "nobody waits for it");
        messages = 0;
    }
    Ok(())
}

/// Prefixes that a peer has by one path of its own, as UPDATEs.
pub fn updates(address: Ipv4Addr, number: u32, prefixes: impl Iterator<Item = Ipv4Net>) -> Result<Vec<u8>> {
    let path = PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(AsPath::sequence(vec![PEER_ASN.into(), 64000 + number])),
        ..PathAttributes::default()
    };
    let announcement = Announcement::of_family(Family::Ipv4Unicast, path, address.into(), None, CONTEXT)?;
    let mut prefixes = prefixes.map(IpNet::from).peekable();
    let mut updates = Vec::new();
    while announcement.write(&mut prefixes, &mut updates) > 0 {}
    Ok(updates)
}

/// Connects, says when the session is up, sends these UPDATEs at once, and listens until the speaker is gone.
pub fn feed(address: Ipv4Addr, updates: &[u8], up: &mpsc::Sender<Instant>) -> Result<()> {
    let stream = connect(address)?;
    let (mut session, _) = Session::open(stream, address)?;
    loop {
        let messages = session.read()?.context("the speaker closed the connection")?;
        if messages.contains(&Message::Keepalive) {
            break;
        }
    }
    ensure!(up.send(Instant::now()).is_ok(), "nobody waits for it");
    session.stream.write_all(updates)?;
    // A speaker that is killed may end the connection either way.
    while let Ok(Some(_)) = session.read() {}
    Ok(())
}
