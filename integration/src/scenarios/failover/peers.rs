//! Routers that misbehave: sessions of their own end, those of others do not.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use super::super::Scenario;
use super::{LIMIT, Traffic, await_all_ways, service};
use crate::fabric::addresses::{self, Family};
use crate::lab::Lab;
use crate::wait::await_some;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "failover-peers-misbehave",
    proves: "other routers have sessions with a node that they end by a NOTIFICATION of every code, by garbage of all kinds and by silence: each ends alone, those \
             with the leaves go on, no connection is lost and no request fails",
    run: peers_misbehave,
}];

const NODE: &str = "node-a";
const ANNOTATION: &str = "sheave.io/dynamic-peers";
/// The routers' AS and the hold time that it asks for, the shortest that there is.
const ASN: u16 = 65099;
const HOLD_TIME: u16 = 3;

/// Where it has its addresses.
const RANGE: &str = "203.0.113.64/26";

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;

/// A message, with its header (RFC 4271 section 4.1).
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (19 + body.len()) as u16;
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

/// What it does once a session is established, by name.
fn misdeeds() -> Vec<(String, Vec<u8>)> {
    let notifications = [1, 2, 3, 4, 5, 6, 7, 8, 0, 255].map(|code: u8| {
        (format!("a NOTIFICATION of code {code}"), message(NOTIFICATION, &[code, 0, 0xde, 0xad]))
    });
    let mut misaligned = message(KEEPALIVE, &[]);
    misaligned[3] = 0;
    let mut short = message(KEEPALIVE, &[]);
    short[17] = 18;
    let mut long = message(UPDATE, &[0; 4]);
    long[16..18].copy_from_slice(&[0xff, 0xff]);
    let garbage = [
        ("a hard reset", message(NOTIFICATION, &[6, 9, 6, 2])),
        ("a NOTIFICATION without a subcode", message(NOTIFICATION, &[6])),
        ("a marker that is none", misaligned),
        ("a length that is none", short),
        ("a message that never ends", long),
        ("a message of an unknown type", message(77, &[1, 2, 3])),
        ("an UPDATE that claims more than it holds", message(UPDATE, &[0xff, 0xff, 0, 0])),
        ("an UPDATE with an attribute that is cut off", message(UPDATE, &[0, 0, 0, 4, 0x40, 1, 9, 0])),
        ("a second OPEN", message(OPEN, &open_body())),
        ("a request in HTTP", b"GET / HTTP/1.1\r\nHost: router\r\n\r\n".to_vec()),
        ("nothing more", Vec::new()),
    ];
    let garbage = garbage.map(|(name, bytes)| (name.to_owned(), bytes));
    notifications.into_iter().chain(garbage).collect()
}

/// Version 4, and no capabilities.
fn open_body() -> Vec<u8> {
    let IpAddr::V4(id) = addresses::external(Family::V4) else { unreachable!("it is an IPv4 address") };
    [&[4][..], &ASN.to_be_bytes(), &HOLD_TIME.to_be_bytes(), &id.octets(), &[0]].concat()
}

fn peers_misbehave(lab: &mut Lab) -> Result<()> {
    let service = service(lab, "unharmed", 74, &["a1", "b1", "c1"])?;
    lab.apply(&service)?;
    await_all_ways(lab, &service)?;
    routes(lab, "add")?;
    let range = format!("[{{prefix: {RANGE}, asn: {ASN}, families: [ipv4], multihop: 8}}]");
    lab.source.change_node(NODE, |node| node["metadata"]["annotations"][ANNOTATION] = range.into())?;
    let before = sessions(lab)?;
    ensure!(before.len() == 4, "sessions with the leaves: {before:?}");
    let mut traffic = Traffic::start(lab, &service)?;
    let node = SocketAddr::new(lab.fabric.node(NODE)?.address(Family::V4), 179);
    // Each has an address of its own: one that goes up and down is heard less and less.
    let mut routers = Vec::new();
    for (number, (name, bytes)) in (64_u8..).zip(misdeeds()) {
        let own = SocketAddr::from(([203, 0, 113, number], 0));
        let thread = lab.fabric.external.thread(move || {
            await_some(LIMIT, &format!("a session, and its end by {name}"), || {
                misbehave(own, node, &bytes).map_err(|error| error.to_string())
            })
        })?;
        routers.push(thread);
    }
    for router in routers {
        router.join().map_err(|_| anyhow!("a router panicked"))???;
    }
    traffic.goes_on(lab)?;
    let after = sessions(lab)?;
    for (peer, uptime) in &before {
        let now = after.get(peer);
        ensure!(now >= Some(uptime), "the session with {peer}: up {uptime} s, then {now:?}");
    }
    traffic.none_failed(lab)?;
    routes(lab, "del")?;
    lab.source.change_node(NODE, |node| {
        drop(node["metadata"]["annotations"].as_object_mut().map(|all| all.remove(ANNOTATION)));
    })?;
    lab.remove(&service)
}

/// The way to and from the routers' addresses.
fn routes(lab: &Lab, what: &str) -> Result<()> {
    lab.fabric.external.ip(&format!("route {what} local {RANGE} dev lo\n"))?;
    lab.fabric.spine.ip(&format!("route {what} {RANGE} dev external\n"))?;
    lab.fabric.leaves.iter().try_for_each(|leaf| {
        let spine = addresses::spine_link(Family::V4, leaf.number);
        leaf.ns.ip(&format!("route {what} {RANGE} via {spine}\n"))
    })
}

/// The sessions with the leaves that are up, and for how many seconds.
fn sessions(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    let status = lab.status(NODE)?;
    let peers = status["peers"].as_array().context("peers")?;
    let up = peers.iter().filter(|peer| peer["state"] == "Established" && peer["range"] == Value::Null);
    Ok(up
        .filter_map(|peer| Some((peer["address"].as_str()?.to_owned(), peer["uptimeSeconds"].as_u64()?)))
        .collect())
}

/// Has a session, does this, and waits for the end of the connection.
fn misbehave(own: SocketAddr, node: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&own.into())?;
    socket.connect_timeout(&node.into(), Duration::from_secs(2))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&message(OPEN, &open_body()))?;
    stream.write_all(&message(KEEPALIVE, &[]))?;
    // It tells what it announces: the session is established.
    while next(&mut stream)? != UPDATE {}
    stream.write_all(bytes)?;
    let end = Instant::now() + 3 * Duration::from_secs(HOLD_TIME.into());
    while Instant::now() < end {
        match next(&mut stream) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof
                    || error.kind() == io::ErrorKind::ConnectionReset =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("the session goes on"))
}

/// The type of the next message.
fn next(stream: &mut TcpStream) -> io::Result<u8> {
    let mut header = [0; 19];
    stream.read_exact(&mut header)?;
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let mut body = vec![0; length.saturating_sub(header.len())];
    stream.read_exact(&mut body)?;
    Ok(header[18])
}
