//! Monitoring stations on loopback: what they are told of a real session between two speakers, read by `netgauze-bmp-pkt`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::path_attribute::{MpReach, MpUnreach, PathAttributeValue};
use netgauze_bgp_pkt::update::BgpUpdateMessage;
use netgauze_bmp_pkt::v3::{BmpMessageValue, PeerDownNotificationReason, StatisticsCounter};
use netgauze_bmp_pkt::wire::deserializer::BmpParsingContext;
use netgauze_bmp_pkt::{BmpMessage, BmpPeerType, GaugeU64, PeerHeader, PeerKey};
use netgauze_iana::address_family::AddressType;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use sheave_bgp::session::{AddPaths, State};
use sheave_bgp::{
    Attributes, BmpStation, BmpTables, GracefulRestart, ImportPolicy, PeerConfig, PrefixFilter, RouteChanges,
    Shutdown, Speaker, SpeakerConfig,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(30);
const ASN: u32 = 4_200_000_001;
const PEER_ASN: u32 = 65001;
const PEER: &str = "127.0.0.1";

async fn speaker(asn: u32, id: u8, listen: Option<u16>) -> Speaker {
    Speaker::start(SpeakerConfig {
        asn,
        router_id: [10, 0, 0, id].into(),
        listen: listen.map(|port| vec![([127, 0, 0, 1], port).into()]),
        graceful_restart: Some(GracefulRestart { restart_time: Duration::from_secs(1), stale_time: None }),
        restarting: false,
    })
    .await
    .unwrap()
}

/// A port that nobody has.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Two speakers with a session: the monitored one, which connects, and its peer.
async fn pair() -> (Speaker, Speaker) {
    pair_with(AddPaths::default(), AddPaths::default()).await
}

async fn pair_with(our_paths: AddPaths, peers_paths: AddPaths) -> (Speaker, Speaker) {
    let port = free_port().await;
    let (ours, peer) = (speaker(ASN, 1, None).await, speaker(PEER_ASN, 2, Some(port)).await);
    peer.set_peers(vec![PeerConfig {
        passive: true,
        port: 1,
        // One that packets could be sent to.
        next_hop_v4: Some([10, 9, 9, 9].into()),
        add_paths: peers_paths,
        ..PeerConfig::new([127, 0, 0, 1].into(), ASN)
    }]);
    let next_hop_v6 = Some("fd00::1".parse().unwrap());
    ours.set_peers(vec![PeerConfig {
        port,
        next_hop_v6,
        add_paths: our_paths,
        ..PeerConfig::new(PEER.parse().unwrap(), PEER_ASN)
    }]);
    until("the session", || ours.status().peers[0].state == State::Established).await;
    (ours, peer)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "{what} in time");
        sleep(Duration::from_millis(5)).await;
    }
}

fn station(port: u16) -> BmpStation {
    BmpStation {
        address: [127, 0, 0, 1].into(),
        port,
        name: "node-a".to_owned(),
        description: "a test".to_owned(),
        queue: 1 << 20,
        statistics: Duration::ZERO,
        tables: BmpTables::default(),
    }
}

fn announce(speaker: &Speaker, routes: &[(&str, u32)]) {
    let route = |&(prefix, med): &(&str, u32)| {
        (prefix.parse().unwrap(), Attributes { med: Some(med), ..Attributes::default() })
    };
    speaker.update(RouteChanges { announce: routes.iter().map(route).collect(), withdraw: vec![] });
}

/// Which table a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    LocRib,
    AdjRibIn(IpAddr),
    AdjRibInPostPolicy(IpAddr),
    AdjRibOut(IpAddr),
}

impl Table {
    /// The peer that it is of.
    fn peer(self) -> Option<IpAddr> {
        match self {
            Table::LocRib => None,
            Table::AdjRibIn(peer) | Table::AdjRibInPostPolicy(peer) | Table::AdjRibOut(peer) => Some(peer),
        }
    }
}

fn table(header: &PeerHeader) -> Table {
    match header.peer_type() {
        BmpPeerType::LocRibInstancePeer { filtered: false } => Table::LocRib,
        BmpPeerType::GlobalInstancePeer { adj_rib_out, post_policy, .. } => {
            let peer = header.address().unwrap();
            match (adj_rib_out, post_policy) {
                (true, true) => Table::AdjRibOut(peer),
                (true, false) => panic!("Adj-RIB-Out before policy"),
                (false, true) => Table::AdjRibInPostPolicy(peer),
                (false, false) => Table::AdjRibIn(peer),
            }
        }
        other => panic!("{other:?}"),
    }
}

/// A station: what it has been told on one connection.
struct Station {
    stream: TcpStream,
    input: Vec<u8>,
    context: BmpParsingContext,
    tables: BTreeMap<Table, BTreeMap<IpNet, u32>>,
    /// End-of-RIB came, by family's name.
    complete: BTreeSet<(Table, String)>,
    /// The sessions it knows of: `None` is Loc-RIB.
    up: BTreeSet<Option<IpAddr>>,
}

impl Station {
    async fn accept(listener: &TcpListener) -> Station {
        let (stream, _) = timeout(LIMIT, listener.accept()).await.expect("a connection in time").unwrap();
        Station {
            stream,
            input: Vec::new(),
            context: BmpParsingContext::default(),
            tables: BTreeMap::new(),
            complete: BTreeSet::new(),
            up: BTreeSet::new(),
        }
    }

    /// The next message, taken into the tables.
    async fn next(&mut self) -> BmpMessageValue {
        let length = loop {
            let length = self.input.get(1..5).map(|length| u32::from_be_bytes(length.try_into().unwrap()));
            match length {
                Some(length) if self.input.len() >= length as usize => break length as usize,
                _ => {
                    let read = timeout(LIMIT, self.stream.read_buf(&mut self.input)).await;
                    assert!(read.expect("a message in time").unwrap() > 0, "closed");
                }
            }
        };
        let bytes: Vec<u8> = self.input.drain(..length).collect();
        let message = BmpMessage::parse(&mut SliceReader::new(&bytes), &mut self.context).unwrap();
        let BmpMessage::V3(message) = message else { panic!("version 4") };
        self.take_in(&message);
        message
    }

    fn take_in(&mut self, message: &BmpMessageValue) {
        match message {
            BmpMessageValue::PeerUpNotification(told) => {
                assert!(self.up.insert(told.peer_header().address()), "up twice: {told:?}");
            }
            BmpMessageValue::PeerDownNotification(told) => {
                let address = told.peer_header().address().unwrap();
                assert!(self.up.remove(&Some(address)), "down without up: {told:?}");
                self.tables.retain(|table, _| table.peer() != Some(address));
                self.complete.retain(|(table, _)| table.peer() != Some(address));
            }
            BmpMessageValue::RouteMonitoring(told) => {
                let table = table(told.peer_header());
                assert!(self.up.contains(&table.peer()), "a route of a session that is not up: {told:?}");
                let BgpMessage::Update(update) = told.update_message() else { panic!("{told:?}") };
                if let Some(family) = update.end_of_rib() {
                    self.complete.insert((table, format!("{family:?}")));
                }
                learn(self.tables.entry(table).or_default(), update);
            }
            _ => {}
        }
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Station) -> bool) {
        let all = async {
            while !condition(self) {
                self.next().await;
            }
        };
        let outcome = timeout(LIMIT, all).await;
        assert!(outcome.is_ok(), "{what}: {:?} {:?}", self.tables, self.complete);
    }

    fn holds(&self, table: Table, routes: &[(&str, u32)]) -> bool {
        let expected: BTreeMap<IpNet, u32> =
            routes.iter().map(|&(prefix, med)| (prefix.parse().unwrap(), med)).collect();
        self.tables.get(&table).unwrap_or(&BTreeMap::new()) == &expected
    }
}

/// What an UPDATE makes of a table: prefixes with their MED.
fn learn(table: &mut BTreeMap<IpNet, u32>, update: &BgpUpdateMessage) {
    let attributes = || update.path_attributes().iter().map(|attribute| attribute.value());
    let med = attributes().find_map(|value| match value {
        PathAttributeValue::MultiExitDiscriminator(med) => Some(med.metric()),
        _ => None,
    });
    let mut gone: Vec<IpNet> =
        update.withdraw_routes().iter().map(|nlri| nlri.network().address().into()).collect();
    let mut there: Vec<IpNet> = update.nlri().iter().map(|nlri| nlri.network().address().into()).collect();
    for value in attributes() {
        match value {
            PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                gone.extend(nlri.iter().map(|nlri| IpNet::from(nlri.network().address())));
            }
            PathAttributeValue::MpReach(MpReach::Ipv6Unicast { nlri, .. }) => {
                there.extend(nlri.iter().map(|nlri| IpNet::from(nlri.network().address())));
            }
            _ => {}
        }
    }
    for prefix in gone {
        table.remove(&prefix);
    }
    table.extend(there.into_iter().map(|prefix| (prefix, med.unwrap())));
}

fn adj_rib_out() -> Table {
    Table::AdjRibOut(PEER.parse().unwrap())
}

/// All four ends of RIB.
fn is_complete(station: &Station) -> bool {
    station.complete.len() == 4
}

#[tokio::test]
async fn sessions_tables_and_changes_are_told() {
    let (ours, peer) = pair().await;
    let first = [("192.0.2.1/32", 1), ("192.0.2.2/32", 2), ("2001:db8::1/128", 3)];
    announce(&ours, &first);
    assert!(ours.flushed(LIMIT).await);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    ours.set_bmp_stations(vec![station(port)]);
    let mut told = Station::accept(&listener).await;
    let BmpMessageValue::Initiation(_) = told.next().await else { panic!("not Initiation first") };
    // All there was before.
    told.until("the tables", is_complete).await;
    assert!(told.holds(Table::LocRib, &first), "{:?}", told.tables);
    assert!(told.holds(adj_rib_out(), &first), "{:?}", told.tables);
    assert_eq!(told.up, [None, Some(PEER.parse().unwrap())].into());
    let status = ours.bmp_stations();
    assert!(status[0].connected.is_some() && status[0].counters.connections == 1, "{status:?}");

    // What happens from now on.
    announce(&ours, &[("192.0.2.2/32", 7), ("192.0.2.3/32", 8)]);
    let gone = ["192.0.2.1/32", "2001:db8::1/128"].map(|prefix| prefix.parse().unwrap());
    ours.update(RouteChanges { announce: vec![], withdraw: gone.to_vec() });
    let second = [("192.0.2.2/32", 7), ("192.0.2.3/32", 8)];
    told.until("changes", |told| told.holds(Table::LocRib, &second) && told.holds(adj_rib_out(), &second))
        .await;

    // The same configuration again changes nothing.
    ours.set_bmp_stations(vec![station(port)]);
    assert_eq!(ours.bmp_stations()[0].counters.connections, 1);

    ours.shutdown(Shutdown::Cease).await;
    let BmpMessageValue::PeerDownNotification(down) = told.next().await else { panic!("not Peer Down") };
    assert!(
        matches!(down.reason(), PeerDownNotificationReason::LocalSystemClosedNotificationPduFollows(_)),
        "{down:?}"
    );
    let BmpMessageValue::Termination(_) = told.next().await else { panic!("not Termination") };
    assert_eq!(told.stream.read(&mut [0]).await.unwrap(), 0, "and that was all");
    peer.shutdown(Shutdown::Cease).await;
}

/// The OPENs are those that were on the wire: with the ASNs and ports of both sides.
#[tokio::test]
async fn opens_are_the_real_ones() {
    let (ours, peer) = pair().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    ours.set_bmp_stations(vec![station(listener.local_addr().unwrap().port())]);
    let mut told = Station::accept(&listener).await;
    let up = loop {
        match told.next().await {
            BmpMessageValue::PeerUpNotification(up) if up.peer_header().address().is_some() => break up,
            _ => {}
        }
    };
    let [sent, received] = [up.sent_message(), up.received_message()].map(|message| match message {
        BgpMessage::Open(open) => (open.my_asn4(), open.bgp_id(), open.capabilities().len()),
        other => panic!("{other:?}"),
    });
    // Two families, refresh, enhanced refresh, extended messages, ASN, graceful restart: each side's.
    assert_eq!(sent, (ASN, [10, 0, 0, 1].into(), 7));
    assert_eq!(received, (PEER_ASN, [10, 0, 0, 2].into(), 7));
    let local = ours.status().peers[0].session.as_ref().unwrap().local;
    assert_eq!((up.local_address(), up.local_port()), (Some(local.ip()), Some(local.port())));
    let header = up.peer_header();
    assert_eq!((header.peer_as(), header.bgp_id()), (PEER_ASN, [10, 0, 0, 2].into()));
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// RFC 7854 §4.9, as far as each can be brought about from outside.
#[tokio::test]
async fn how_sessions_end() {
    use PeerDownNotificationReason as Reason;
    type Case = (&'static str, Option<Shutdown>, fn(&Reason) -> bool);
    let cases: [Case; 3] = [
        ("peer removed here", None, |reason| {
            matches!(reason, Reason::LocalSystemClosedNotificationPduFollows(BgpMessage::Notification(_)))
        }),
        ("peer says CEASE", Some(Shutdown::Cease), |reason| {
            matches!(reason, Reason::RemoteSystemClosedNotificationPduFollows(BgpMessage::Notification(_)))
        }),
        ("peer closes", Some(Shutdown::GracefulRestart), |reason| {
            matches!(reason, Reason::RemoteSystemClosedNoData)
        }),
    ];
    for (name, how, expected) in cases {
        let (ours, peer) = pair().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ours.set_bmp_stations(vec![station(listener.local_addr().unwrap().port())]);
        let mut told = Station::accept(&listener).await;
        told.until("the tables", is_complete).await;
        match how {
            Some(how) => peer.shutdown(how).await,
            None => ours.set_peers(vec![]),
        }
        let BmpMessageValue::PeerDownNotification(down) = told.next().await else { panic!("{name}") };
        assert!(expected(down.reason()), "{name}: {:?}", down.reason());
        ours.shutdown(Shutdown::Cease).await;
    }
}

#[tokio::test]
async fn numbers_are_reported() {
    let (ours, peer) = pair().await;
    announce(&ours, &[("192.0.2.1/32", 1), ("2001:db8::1/128", 3)]);
    assert!(ours.flushed(LIMIT).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    ours.set_bmp_stations(vec![BmpStation { statistics: Duration::from_secs(1), ..station(port) }]);
    let mut told = Station::accept(&listener).await;
    let mut reports = Vec::new();
    while reports.len() < 4 {
        if let BmpMessageValue::StatisticsReport(report) = told.next().await {
            reports.push(report.counters()[0].clone());
        }
    }
    let twice = [
        StatisticsCounter::NumberOfRoutesInLocRib(GaugeU64::new(2)),
        StatisticsCounter::NumberOfRoutesInPostPolicyAdjRibOut(GaugeU64::new(2)),
    ];
    assert_eq!(reports, [twice.clone(), twice].concat());
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// A station that reads nothing costs the peer nothing: it is cut off, and when it is back it is told how things are then.
#[tokio::test]
async fn a_station_that_does_not_read_is_cut_off() {
    let (ours, peer) = pair().await;
    let socket = TcpSocket::new_v4().unwrap();
    // Inherited by what is accepted.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let port = listener.local_addr().unwrap().port();
    ours.set_bmp_stations(vec![BmpStation { queue: 64 * 1024, ..station(port) }]);
    let deaf = Station::accept(&listener).await;

    let hosts: Vec<IpNet> =
        (0..2000u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()).into()).collect();
    let mut round = 0;
    let began = Instant::now();
    while ours.bmp_stations()[0].counters.cut_off == 0 {
        round += 1;
        let attributes = Attributes { med: Some(round), ..Attributes::default() };
        let announce = hosts.iter().map(|&host| (host, attributes.clone())).collect();
        ours.update(RouteChanges { announce, withdraw: vec![] });
        // The peer is told all the same.
        assert!(ours.flushed(Duration::from_secs(5)).await, "round {round}");
        assert!(began.elapsed() < LIMIT, "{:?}", ours.bmp_stations());
    }
    assert!(round > 1, "cut off at once");
    let status = &ours.bmp_stations()[0];
    let (_, error) = status.last_error.as_ref().unwrap();
    assert!(error.starts_with("did not keep up"), "{error}");
    assert_eq!(ours.status().peers[0].state, State::Established);
    drop(deaf);

    let mut back = Station::accept(&listener).await;
    back.until("the tables", is_complete).await;
    let now = hosts.iter().map(|&host| (host, round)).collect::<BTreeMap<_, _>>();
    assert_eq!(back.tables[&Table::LocRib], now);
    assert_eq!(back.tables[&adj_rib_out()], now);
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// Two stations are told the same, and one that goes takes nothing from the other.
#[tokio::test]
async fn stations_are_independent() {
    let (ours, peer) = pair().await;
    let listeners =
        [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let stations = listeners.iter().map(|listener| station(listener.local_addr().unwrap().port()));
    ours.set_bmp_stations(stations.collect());
    let mut first = Station::accept(&listeners[0]).await;
    let mut second = Station::accept(&listeners[1]).await;
    first.until("the tables", is_complete).await;
    drop(first);
    second.until("the tables", is_complete).await;
    announce(&ours, &[("192.0.2.1/32", 1)]);
    second.until("a change", |told| told.holds(adj_rib_out(), &[("192.0.2.1/32", 1)])).await;
    // The first comes back by itself.
    let mut first = Station::accept(&listeners[0]).await;
    first.until("the tables", is_complete).await;
    assert!(first.holds(adj_rib_out(), &[("192.0.2.1/32", 1)]), "{:?}", first.tables);
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

const ALL_TABLES: BmpTables =
    BmpTables { adj_rib_in: true, adj_rib_in_post_policy: true, loc_rib: true, adj_rib_out: true };

fn peer_address() -> IpAddr {
    PEER.parse().unwrap()
}

/// Has these prefixes, and what is within them, imported of the peer.
fn import(speaker: &Speaker, prefixes: &[&str]) {
    let filter = |prefix: &&str| {
        let within: IpNet = prefix.parse().unwrap();
        PrefixFilter { within, min_length: within.prefix_len(), max_length: within.max_prefix_len() }
    };
    let policy = ImportPolicy { prefixes: prefixes.iter().map(filter).collect(), max_prefixes: None };
    speaker.set_imports(&[(peer_address(), policy)].into());
}

fn withdraw(speaker: &Speaker, prefix: &str) {
    speaker.update(RouteChanges { announce: vec![], withdraw: vec![prefix.parse().unwrap()] });
}

/// What a peer with an import policy announces: before policy, after it, and in Loc-RIB, as it was and as it changes.
#[tokio::test]
async fn what_is_imported_is_told() {
    let (before, after) = (Table::AdjRibIn(peer_address()), Table::AdjRibInPostPolicy(peer_address()));
    let (ours, peer) = pair().await;
    import(&ours, &["192.0.2.0/24"]);
    announce(&ours, &[("203.0.113.1/32", 9)]);
    announce(&peer, &[("192.0.2.1/32", 1), ("198.51.100.1/32", 2)]);
    let learnt =
        || ours.learnt().peers[&peer_address()].iter().map(|(_, counts)| counts.received).sum::<usize>();
    until("the peer's routes", || learnt() == 2).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    ours.set_bmp_stations(vec![BmpStation { tables: ALL_TABLES, ..station(port) }]);
    let mut told = Station::accept(&listener).await;
    // Of both families.
    told.until("all tables", |told| told.complete.len() == 8).await;
    assert!(told.holds(before, &[("192.0.2.1/32", 1), ("198.51.100.1/32", 2)]), "{:?}", told.tables);
    assert!(told.holds(after, &[("192.0.2.1/32", 1)]), "{:?}", told.tables);
    assert!(told.holds(Table::LocRib, &[("192.0.2.1/32", 1), ("203.0.113.1/32", 9)]), "{:?}", told.tables);

    // Each step, and what the three tables are then.
    type Routes = &'static [(&'static str, u32)];
    type Step<'a> = (&'static str, &'a dyn Fn(), Routes, Routes, Routes);
    let steps: [Step<'_>; 7] = [
        (
            "the peer changes a route",
            &|| announce(&peer, &[("192.0.2.1/32", 7)]),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 2)],
            &[("192.0.2.1/32", 7)],
            &[("192.0.2.1/32", 7), ("203.0.113.1/32", 9)],
        ),
        (
            "the policy lets another in",
            &|| import(&ours, &["198.51.100.0/24"]),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 2)],
            &[("198.51.100.1/32", 2)],
            &[("198.51.100.1/32", 2), ("203.0.113.1/32", 9)],
        ),
        (
            "a route of our own to the same prefix comes",
            &|| announce(&ours, &[("198.51.100.1/32", 8)]),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 2)],
            &[("198.51.100.1/32", 2)],
            &[("198.51.100.1/32", 8), ("203.0.113.1/32", 9)],
        ),
        (
            "the peer's changes behind it",
            &|| announce(&peer, &[("198.51.100.1/32", 3)]),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 3)],
            &[("198.51.100.1/32", 3)],
            &[("198.51.100.1/32", 8), ("203.0.113.1/32", 9)],
        ),
        (
            "and ours goes",
            &|| withdraw(&ours, "198.51.100.1/32"),
            &[("192.0.2.1/32", 7), ("198.51.100.1/32", 3)],
            &[("198.51.100.1/32", 3)],
            &[("198.51.100.1/32", 3), ("203.0.113.1/32", 9)],
        ),
        (
            "the peer withdraws one",
            &|| withdraw(&peer, "198.51.100.1/32"),
            &[("192.0.2.1/32", 7)],
            &[],
            &[("203.0.113.1/32", 9)],
        ),
        // Nothing is kept then, and the peer is asked for what it announces.
        (
            "there is no policy any more",
            &|| ours.set_imports(&BTreeMap::new()),
            &[("192.0.2.1/32", 7)],
            &[],
            &[("203.0.113.1/32", 9)],
        ),
    ];
    for (what, step, pre_policy, post_policy, loc_rib) in steps {
        step();
        told.until(what, |told| {
            told.holds(before, pre_policy)
                && told.holds(after, post_policy)
                && told.holds(Table::LocRib, loc_rib)
        })
        .await;
    }
    assert_eq!(ours.status().peers[0].counters.established, 1);
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// Path identifiers are told where the peer sends them (RFC 7911), though it is sent none; Loc-RIB has none.
#[tokio::test]
async fn path_identifiers_are_told() {
    let (before, after) = (Table::AdjRibIn(peer_address()), Table::AdjRibInPostPolicy(peer_address()));
    let both = AddPaths { receive: true, send: true };
    for (imported, expected) in [
        (true, BTreeSet::from([(before, Some(1)), (after, Some(1)), (Table::LocRib, None)])),
        (false, BTreeSet::from([(before, Some(1))])),
    ] {
        let (ours, peer) = pair_with(AddPaths { send: false, ..both }, both).await;
        if imported {
            import(&ours, &["192.0.2.0/24"]);
        }
        announce(&peer, &[("192.0.2.1/32", 1)]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tables = BmpTables { adj_rib_out: false, ..ALL_TABLES };
        let port = listener.local_addr().unwrap().port();
        ours.set_bmp_stations(vec![BmpStation { tables, ..station(port) }]);
        let mut told = Station::accept(&listener).await;
        let mut names = BTreeSet::new();
        while names.len() < expected.len() {
            match told.next().await {
                // As both OPENs say of what the peer sends.
                BmpMessageValue::PeerUpNotification(up) if up.peer_header().address().is_some() => {
                    let context =
                        told.context.entry(PeerKey::from_peer_header(up.peer_header())).or_default();
                    context.add_path_mut().insert(AddressType::Ipv4Unicast, true);
                }
                BmpMessageValue::RouteMonitoring(route) => {
                    let BgpMessage::Update(update) = route.update_message() else { panic!("{route:?}") };
                    let table = table(route.peer_header());
                    names.extend(update.nlri().iter().map(|nlri| (table, nlri.path_id())));
                }
                _ => {}
            }
        }
        assert_eq!(names, expected, "{imported}");
        withdraw(&peer, "192.0.2.1/32");
        let gone = |told: &Station| expected.iter().all(|(table, _)| told.holds(*table, &[]));
        told.until("it is withdrawn", gone).await;
        ours.shutdown(Shutdown::Cease).await;
        peer.shutdown(Shutdown::Cease).await;
    }
}

/// Of a peer without an import policy nothing is kept: it is asked when a station comes, and what it sends is passed on.
#[tokio::test]
async fn what_is_not_kept_is_passed_on() {
    let before = Table::AdjRibIn(peer_address());
    let (ours, peer) = pair().await;
    announce(&peer, &[("192.0.2.1/32", 1), ("198.51.100.1/32", 2)]);
    until("the peer's routes", || ours.status().peers[0].counters.prefixes_received == 2).await;
    let listeners =
        [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let tables = BmpTables { adj_rib_out: false, loc_rib: false, ..ALL_TABLES };
    let of = |listener: &TcpListener| {
        let port = listener.local_addr().unwrap().port();
        BmpStation { tables, ..station(port) }
    };
    ours.set_bmp_stations(vec![of(&listeners[0])]);
    let mut first = Station::accept(&listeners[0]).await;
    let all = [("192.0.2.1/32", 1), ("198.51.100.1/32", 2)];
    // The answer's end (RFC 7313) is told as End-of-RIB.
    first.until("what it announces", |told| told.holds(before, &all) && told.complete.len() == 2).await;

    announce(&peer, &[("192.0.2.1/32", 5)]);
    withdraw(&peer, "198.51.100.1/32");
    let now = [("192.0.2.1/32", 5)];
    first.until("changes", |told| told.holds(before, &now)).await;
    ours.set_bmp_stations(listeners.iter().map(of).collect());
    let mut second = Station::accept(&listeners[1]).await;
    second.until("what it announces", |told| told.holds(before, &now) && told.complete.len() == 2).await;
    for told in [&first, &second] {
        assert!(told.complete.iter().all(|(table, _)| *table == before), "{:?}", told.complete);
        assert_eq!(told.up, [Some(peer_address())].into(), "Loc-RIB is not asked for");
    }
    assert!(ours.learnt().peers.is_empty());

    // A session that ends takes its table along.
    let established = || ours.status().peers[0].counters.established;
    assert_eq!(established(), 1);
    peer.set_peers(vec![]);
    first.until("the end of the session", |told| told.up.is_empty()).await;
    assert!(first.holds(before, &[]), "{:?}", first.tables);
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// Counts of what a peer with an import policy announces, whether it is let in or not.
#[tokio::test]
async fn what_is_kept_is_counted() {
    let (ours, peer) = pair().await;
    import(&ours, &["192.0.2.0/24"]);
    announce(&peer, &[("192.0.2.1/32", 1), ("198.51.100.1/32", 2)]);
    until("the peer's routes", || ours.learnt().routes == 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tables = BmpTables { adj_rib_out: false, ..ALL_TABLES };
    ours.set_bmp_stations(vec![BmpStation { statistics: Duration::from_secs(1), tables, ..station(port) }]);
    let mut told = Station::accept(&listener).await;
    let mut reports = Vec::new();
    while reports.len() < 2 {
        if let BmpMessageValue::StatisticsReport(report) = told.next().await {
            reports.push(report.counters().to_vec());
        }
    }
    let (v4, v6) = (AddressType::Ipv4Unicast, AddressType::Ipv6Unicast);
    use StatisticsCounter as Counter;
    assert_eq!(
        reports,
        [
            vec![
                Counter::NumberOfRoutesInLocRib(GaugeU64::new(1)),
                Counter::NumberOfRoutesInPerAfiSafiLocRib(v4, GaugeU64::new(1)),
                Counter::NumberOfRoutesInPerAfiSafiLocRib(v6, GaugeU64::new(0)),
            ],
            vec![
                Counter::NumberOfRoutesInAdjRibIn(GaugeU64::new(2)),
                Counter::NumberOfRoutesInPerAfiSafiAdjRibIn(v4, GaugeU64::new(2)),
                Counter::NumberOfRoutesInPerAfiSafiAdjRibIn(v6, GaugeU64::new(0)),
            ],
        ]
    );
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}

/// A station that reads nothing does not keep what peers announce from being learnt.
#[tokio::test]
async fn a_station_that_does_not_read_slows_no_learning() {
    let (ours, peer) = pair().await;
    import(&ours, &["10.0.0.0/8"]);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let port = listener.local_addr().unwrap().port();
    ours.set_bmp_stations(vec![BmpStation { queue: 64 * 1024, tables: ALL_TABLES, ..station(port) }]);
    let deaf = Station::accept(&listener).await;
    let hosts: Vec<IpNet> =
        (0..2000u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()).into()).collect();
    let mut round = 0;
    while ours.bmp_stations()[0].counters.cut_off == 0 {
        round += 1;
        assert!(round < 100, "{:?}", ours.bmp_stations());
        let attributes = Attributes { med: Some(round), ..Attributes::default() };
        peer.update(RouteChanges {
            announce: hosts.iter().map(|&host| (host, attributes.clone())).collect(),
            withdraw: vec![],
        });
        let received = || ours.status().peers[0].counters.prefixes_received >= u64::from(round) * 2000;
        until("the round's routes", received).await;
    }
    assert!(round > 1, "cut off at once");
    assert_eq!(ours.status().peers[0].counters.established, 1);
    drop(deaf);

    let mut back = Station::accept(&listener).await;
    let now = hosts.iter().map(|&host| (host, round)).collect::<BTreeMap<_, _>>();
    let tables = [Table::AdjRibIn(peer_address()), Table::AdjRibInPostPolicy(peer_address()), Table::LocRib];
    back.until("all tables", |told| {
        told.complete.len() == 8 && tables.iter().all(|table| told.tables.get(table) == Some(&now))
    })
    .await;
    ours.shutdown(Shutdown::Cease).await;
    peer.shutdown(Shutdown::Cease).await;
}
