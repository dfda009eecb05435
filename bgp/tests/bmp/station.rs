//! A monitoring station: reads what it is told, and holds tables to the session rules of RFC 7854.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::path_attribute::{MpReach, MpUnreach, PathAttributeValue};
use netgauze_bgp_pkt::update::BgpUpdateMessage;
use netgauze_bmp_pkt::v3::BmpMessageValue;
use netgauze_bmp_pkt::wire::deserializer::BmpParsingContext;
use netgauze_bmp_pkt::{BmpMessage, BmpPeerType, PeerHeader};
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::{LIMIT, peer_address};

/// Which table a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
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

pub(super) fn table(header: &PeerHeader) -> Table {
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
pub(super) struct Station {
    pub(super) stream: TcpStream,
    input: Vec<u8>,
    pub(super) context: BmpParsingContext,
    pub(super) tables: BTreeMap<Table, BTreeMap<IpNet, u32>>,
    /// End-of-RIB came, by family's name.
    pub(super) complete: BTreeSet<(Table, String)>,
    /// The sessions it knows of: `None` is Loc-RIB.
    pub(super) up: BTreeSet<Option<IpAddr>>,
}

impl Station {
    pub(super) async fn accept(listener: &TcpListener) -> Station {
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
    pub(super) async fn next(&mut self) -> BmpMessageValue {
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

    pub(super) async fn until(&mut self, what: &str, condition: impl Fn(&Station) -> bool) {
        let all = async {
            while !condition(self) {
                self.next().await;
            }
        };
        let outcome = timeout(LIMIT, all).await;
        assert!(outcome.is_ok(), "{what}: {:?} {:?}", self.tables, self.complete);
    }

    pub(super) fn holds(&self, table: Table, routes: &[(&str, u32)]) -> bool {
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

pub(super) fn adj_rib_out() -> Table {
    Table::AdjRibOut(peer_address())
}

/// All four ends of RIB.
pub(super) fn is_complete(station: &Station) -> bool {
    station.complete.len() == 4
}
