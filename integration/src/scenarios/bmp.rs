//! A monitoring station of an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::path_attribute::{MpReach, MpUnreach, PathAttributeValue};
use netgauze_bgp_pkt::update::BgpUpdateMessage;
use netgauze_bmp_pkt::v3::BmpMessageValue;
use netgauze_bmp_pkt::wire::deserializer::BmpParsingContext;
use netgauze_bmp_pkt::{BmpMessage, BmpPeerType};
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use sheave::cluster::Protocol::Tcp;
use socket2::{Domain, Socket, Type};

use super::Scenario;
use super::import::announce;
use crate::cluster::Service;
use crate::fabric::addresses::{self, Family};
use crate::lab::{Lab, POD_PORT};
use crate::netns::NetNs;
use crate::wait::await_some;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How soon both leaves must know of a round's routes, whatever the station does.
const SOON: Duration = Duration::from_secs(10);
const NODE: &str = "node-a";
const PORT: u16 = 11019;
/// A kernel table that is announced, how many routes come into it in a round, and in how many rounds at most.
const TABLE: u32 = 119;
const ROUTES: u32 = 1000;
const ROUNDS: u32 = 20;
/// What the leaf announces, and nobody imports.
const HEARD: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/64"];

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "bmp",
    proves: "a station on a leaf is told by BMP of every session, of what each peer sends and is sent and of all that is announced; while it reads nothing, \
             thousands of routes reach both leaves as ever and no session ends; it is cut off, and when it reads again it is told how things \
             are by then",
    run: bmp,
}];

fn bmp(lab: &mut Lab) -> Result<()> {
    let node = lab.fabric.node(NODE)?.ns.clone();
    let leaf = lab.fabric.leaves.first().context("a leaf")?;
    let address = addresses::leaf_link(Family::V4, leaf.number, lab.fabric.node(NODE)?.number);
    let station = Station::listen(&leaf.ns, SocketAddr::new(address, PORT))?;
    let peers = lab.fabric.leaves.len() * Family::BOTH.len();

    let before = std::fs::read_to_string(lab.config(NODE))?;
    let tables = "tables: [adjRibIn, locRib, adjRibOut]";
    let bmp = format!("router:\n  bmp: [{{address: {address}, queueKiB: 64, {tables}}}]\n");
    let config = before.replacen("router:\n", &bmp, 1) + &format!("announce: {{kernelTables: [{TABLE}]}}\n");
    ensure!(config.contains(&bmp), "the config has no router to add a station to: {before}");
    // One that has only just been started does not know of SIGTERM yet.
    await_some(LIMIT, "the agent to answer", || lab.status(NODE).map_err(|error| format!("{error:#}")))?;
    lab.stop_agent(NODE)?;
    std::fs::write(lab.config(NODE), &config)?;
    lab.start_agent(NODE)?;

    let service = Service::new("monitored", 61).port(Tcp, 80, POD_PORT).endpoints([lab.fabric.pod("a1")?]);
    lab.apply(&service)?;
    let vips = Family::BOTH.map(|family| IpNet::from(service.vip(family)));
    let [v4, v6] = HEARD.map(|prefix| [prefix.to_owned()]);
    leaf_announces(lab, &v4, &v6)?;
    let heard: Vec<IpNet> = HEARD.iter().map(|prefix| prefix.parse()).collect::<Result<_, _>>()?;
    let mut told = station.accept()?;
    told.until("sessions and the Service's VIPs", |told| {
        told.adj_ribs_out().count() == peers
            && vips.iter().all(|vip| told.loc_rib().contains(vip) && told.is_sent(vip))
            && heard.iter().all(|prefix| told.is_heard(prefix))
    })?;

    // From here on it reads nothing.
    let sessions = established(lab)?;
    let mut count = 0;
    while station_status(lab)?["cutOff"] == 0 {
        ensure!(count < ROUNDS * ROUTES, "not cut off after {count} routes: {}", station_status(lab)?);
        let lines = (count..count + ROUTES)
            .map(|number| format!("route add {} dev lo table {TABLE}\n", host(number)));
        node.ip(&lines.collect::<String>())?;
        count += ROUTES;
        await_count(lab, count)?;
    }
    let after = established(lab)?;
    ensure!(
        after.iter().zip(&sessions).all(|(after, before)| after >= before),
        "sessions began anew: up for {sessions:?} s before, {after:?} s after"
    );
    let error = station_status(lab)?["lastError"].to_string();
    ensure!(error.contains("did not keep up"), "{error}");
    drop(told);

    let mut told = station.accept()?;
    let last = host(count - 1);
    told.until("all there is by then", |told| {
        told.adj_ribs_out().count() == peers
            && vips.iter().all(|vip| told.loc_rib().contains(vip) && told.is_sent(vip))
            && (0..count).all(|number| told.loc_rib().contains(&host(number)))
            && told.is_sent(&last)
            // Nothing of it was kept: the leaf has been asked again.
            && heard.iter().all(|prefix| told.is_heard(prefix))
    })?;
    leaf_announces(lab, &[], &[])?;
    told.until("the leaf's withdrawals", |told| heard.iter().all(|prefix| !told.is_heard(prefix)))?;
    let connected = station_status(lab)?;
    ensure!(connected["connectedSeconds"].is_u64(), "{connected}");

    node.ip(&format!("route del {last} table {TABLE}\n"))?;
    told.until("a withdrawal", |told| !told.loc_rib().contains(&last) && !told.is_sent(&last))?;
    lab.stop_agent(NODE)?;
    told.until("the ends of sessions, and goodbye", |told| {
        told.terminated && told.adj_ribs_out().count() == 0
    })?;
    node.run(&format!("ip route flush table {TABLE}"))?;
    std::fs::write(lab.config(NODE), before)?;
    lab.start_agent(NODE)?;
    await_count(lab, 0)?;
    lab.remove(&service)
}

/// 10.251.0.0/32 and on.
fn host(number: u32) -> IpNet {
    IpAddr::from((0x0afb_0000 + number).to_be_bytes()).into()
}

/// The leaf that the station is on announces these.
fn leaf_announces(lab: &Lab, v4: &[String], v6: &[String]) -> Result<()> {
    announce(lab, lab.fabric.leaves.first().context("a leaf")?, v4, v6)
}

/// Waits until both leaves know that many of the routes.
fn await_count(lab: &Lab, count: u32) -> Result<()> {
    await_some(SOON, &format!("{count} routes on both leaves"), || {
        for leaf in &lab.fabric.leaves {
            let answer = leaf
                .birdc("show route in 10.251.0.0/16 protocol node_a_ipv4 count")
                .map_err(|error| format!("{error:#}"))?;
            if !answer.lines().any(|line| line.starts_with(&format!("{count} of "))) {
                return Err(format!("{}: {answer}", leaf.name()));
            }
        }
        Ok(())
    })
}

/// How long each session has been up, in seconds; an error where one is not.
fn established(lab: &Lab) -> Result<Vec<u64>> {
    let status = lab.status(NODE)?;
    let peers = status["peers"].as_array().context("peers")?;
    peers.iter().map(|peer| peer["uptimeSeconds"].as_u64().with_context(|| peer.to_string())).collect()
}

fn station_status(lab: &Lab) -> Result<serde_json::Value> {
    let status = lab.status(NODE)?;
    let station = status["bmp"].get(0).with_context(|| format!("no station: {status}"))?;
    Ok(station.clone())
}

/// Where an agent connects to.
struct Station(TcpListener);

impl Station {
    /// With as little room for what it does not read as the kernel gives.
    fn listen(ns: &NetNs, address: SocketAddr) -> Result<Self> {
        let listen = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_recv_buffer_size(4096)?;
            socket.bind(&address.into())?;
            socket.listen(8)?;
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(TcpListener::from(socket))
        };
        Ok(Self(ns.enter(listen)?.with_context(|| format!("listen({address})"))?))
    }

    fn accept(&self) -> Result<Told> {
        let (stream, _) =
            await_some(LIMIT, "the agent to connect", || self.0.accept().map_err(|error| error.to_string()))?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Told {
            stream,
            context: BmpParsingContext::default(),
            tables: BTreeMap::new(),
            received: BTreeMap::new(),
            terminated: false,
        })
    }
}

/// What a station has been told on one connection.
struct Told {
    stream: TcpStream,
    context: BmpParsingContext,
    /// Loc-RIB by no address, Adj-RIB-Out by the peer's. There from the session's beginning to its end.
    tables: BTreeMap<Option<IpAddr>, BTreeSet<IpNet>>,
    /// Adj-RIB-In by the peer's address.
    received: BTreeMap<IpAddr, BTreeSet<IpNet>>,
    terminated: bool,
}

impl Told {
    fn loc_rib(&self) -> &BTreeSet<IpNet> {
        static NONE: BTreeSet<IpNet> = BTreeSet::new();
        self.tables.get(&None).unwrap_or(&NONE)
    }

    fn adj_ribs_out(&self) -> impl Iterator<Item = &BTreeSet<IpNet>> {
        self.tables.iter().filter(|(peer, _)| peer.is_some()).map(|(_, table)| table)
    }

    /// Some peer at least is sent it: each leaf has a session for each family.
    fn is_sent(&self, prefix: &IpNet) -> bool {
        self.adj_ribs_out().any(|table| table.contains(prefix))
    }

    /// Some peer at least sends it.
    fn is_heard(&self, prefix: &IpNet) -> bool {
        self.received.values().any(|table| table.contains(prefix))
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<()> {
        let began = Instant::now();
        while !condition(self) {
            let sizes = || self.tables.iter().map(|(peer, table)| (*peer, table.len())).collect::<Vec<_>>();
            ensure!(began.elapsed() < LIMIT, "waited in vain for {what}: {:?}", sizes());
            let sizes = sizes();
            self.next().with_context(|| format!("{what}: {sizes:?}"))?;
        }
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        let mut bytes = vec![0; 6];
        self.stream.read_exact(&mut bytes)?;
        let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        bytes.resize(usize::try_from(length)?, 0);
        self.stream.read_exact(&mut bytes[6..])?;
        let message = BmpMessage::parse(&mut SliceReader::new(&bytes), &mut self.context)
            .map_err(|error| anyhow!("{error}: {bytes:02x?}"))?;
        let BmpMessage::V3(message) = message else { bail!("not version 3: {bytes:02x?}") };
        match message {
            BmpMessageValue::PeerUpNotification(up) => {
                self.tables.insert(up.peer_header().address(), BTreeSet::new());
            }
            BmpMessageValue::PeerDownNotification(down) => {
                let peer = down.peer_header().address();
                self.tables.remove(&peer);
                peer.map(|peer| self.received.remove(&peer));
            }
            BmpMessageValue::RouteMonitoring(told) => {
                let header = told.peer_header();
                let peer = header.address();
                let out = self.tables.get_mut(&peer);
                let out = out.with_context(|| format!("a route of a session that is not up: {header:?}"))?;
                let table = match (header.peer_type(), peer) {
                    (BmpPeerType::LocRibInstancePeer { .. }, None) => out,
                    (
                        BmpPeerType::GlobalInstancePeer { adj_rib_out: true, post_policy: true, .. },
                        Some(_),
                    ) => out,
                    (
                        BmpPeerType::GlobalInstancePeer { adj_rib_out: false, post_policy: false, .. },
                        Some(peer),
                    ) => self.received.entry(peer).or_default(),
                    _ => bail!("not asked for: {header:?}"),
                };
                let BgpMessage::Update(update) = told.update_message() else { bail!("no UPDATE") };
                learn(table, update);
            }
            BmpMessageValue::Termination(_) => self.terminated = true,
            _ => {}
        }
        Ok(())
    }
}

/// What an UPDATE makes of a table.
fn learn(table: &mut BTreeSet<IpNet>, update: &BgpUpdateMessage) {
    for nlri in update.withdraw_routes() {
        table.remove(&nlri.network().address().into());
    }
    table.extend(update.nlri().iter().map(|nlri| IpNet::from(nlri.network().address())));
    for attribute in update.path_attributes() {
        match attribute.value() {
            PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                for nlri in nlri {
                    table.remove(&nlri.network().address().into());
                }
            }
            PathAttributeValue::MpReach(MpReach::Ipv6Unicast { nlri, .. }) => {
                table.extend(nlri.iter().map(|nlri| IpNet::from(nlri.network().address())));
            }
            _ => {}
        }
    }
}
