//! Peers that misbehave: ExaBGP with attributes that RFC 7606 has something to say about, and a connection on which the
//! test writes what it likes. The consequence is the RFC's, and a peer beside them is unharmed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sheave_bgp::Families;
use sheave_bgp::session::State;
use sheave_bgp::wire::{Capability, Context, Message, Notification, Open, Update, frame};
use sheave_bgp::{Counters, Family, PeerConfig, PeerStatus, Speaker, SpeakerConfig};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Cell, Daemon, plain};
use crate::exabgp::{ExaBgp, command};
use crate::lab::Lab;
use crate::{in_lab, peer_config, start};

const RAW_ASN: u16 = 65003;
const CONTEXT: Context =
    Context { four_octet_asn: true, ibgp: false, extended_messages: false, add_path: Families::NONE };

/// What becomes of a route with a strange attribute.
#[derive(Clone, Copy)]
enum Consequence {
    /// Nothing is wrong with it.
    Stands,
    /// The attribute is ignored.
    Discard,
    /// As if it had been withdrawn.
    TreatAsWithdraw,
    /// The session ends, for this reason.
    Reset(&'static str),
}
use Consequence::{Discard, Reset, Stands, TreatAsWithdraw};

/// A test for each attribute, which is written as code, flags and value.
macro_rules! attributes {
    ($($name:ident: $attribute:literal => $consequence:expr;)+) => { $(
        #[test]
        fn $name() {
            in_lab(ExaBgp.programs(), |lab| attribute(lab, $attribute, $consequence));
        }
    )+ };
}

attributes! {
    unknown_transitive_attribute: "0x63 0xc0 0xdead" => Stands;
    unknown_non_transitive_attribute: "0x63 0x80 0xdead" => Stands;
    unknown_well_known_attribute: "0x63 0x40 0xdead" => Reset("unrecognized well-known attribute");
    med_of_two_octets: "0x04 0x80 0x0001" => TreatAsWithdraw;
    med_with_flags_of_another: "0x04 0xc0 0x00000001" => TreatAsWithdraw;
    communities_of_three_octets: "0x08 0xc0 0x010203" => TreatAsWithdraw;
    large_communities_of_three_octets: "0x20 0xc0 0x010203" => TreatAsWithdraw;
    origin_that_does_not_exist: "0x01 0x40 0x09" => TreatAsWithdraw;
    as_path_with_an_empty_segment: "0x02 0x40 0x0200" => TreatAsWithdraw;
    aggregator_of_one_octet: "0x07 0xc0 0x01" => Discard;
    atomic_aggregate_with_a_value: "0x06 0x40 0x01" => Discard;
    originator_id_over_ebgp: "0x09 0x80 0x0a000001" => Discard;
    cluster_list_over_ebgp: "0x0a 0x80 0x0a000001" => Discard;
}

async fn attribute(lab: Lab, attribute: &str, consequence: Consequence) {
    let mut cell = Cell::new(lab, &ExaBgp, "ebgp_v4_passive");
    cell.start();
    let speaker = speaker(&cell).await;
    let _beside = Raw::establish(&cell).await;
    let (theirs, beside) = (cell.setup.theirs, Lab::THIRD);
    let figures = || {
        let counters = peer(&speaker, theirs).counters;
        let Counters { prefixes_received, prefixes_withdrawn, malformed_updates, .. } = counters;
        (prefixes_received, prefixes_withdrawn, malformed_updates, counters.notifications_sent)
    };
    let state = || format!("{:#?}\n{}", peer(&speaker, theirs), cell.describe());
    let until = async |what: &str, wanted: (u64, u64, u64, u64)| {
        cell.lab.until(&format!("{what}: {wanted:?}"), || figures() == wanted, state).await;
    };
    until("ExaBGP's own routes", (2, 0, 0, 0)).await;
    cell.until("a peer beside it", || peer(&speaker, beside).state == State::Established).await;
    let since = peer(&speaker, beside).since;

    command(&cell.lab, &format!("announce route 192.0.2.200/32 next-hop {theirs} attribute [ {attribute} ]"));
    let (received, withdrawn, malformed) = match consequence {
        Stands => (3, 0, 0),
        Discard => (3, 0, 1),
        TreatAsWithdraw => (2, 1, 1),
        Reset(reason) => {
            let told = || {
                let error = peer(&speaker, theirs).last_error;
                error.is_some_and(|error| error.reason.to_string().contains(reason))
            };
            cell.lab.until(reason, told, state).await;
            assert!(peer(&speaker, theirs).counters.notifications_sent > 0);
            assert_eq!(peer(&speaker, beside).since, since, "the peer beside it");
            return;
        }
    };
    until("the consequence", (received, withdrawn, malformed, 0)).await;
    // The session goes on.
    command(&cell.lab, &format!("announce route 192.0.2.201/32 next-hop {theirs}"));
    until("another route", (received + 1, withdrawn, malformed, 0)).await;
    assert_eq!(peer(&speaker, theirs).counters.established, 1);
    assert_eq!(peer(&speaker, beside).since, since, "the peer beside it");
}

/// A test for each message: what is sent, after an OPEN or instead of one, and the code and subcode that answer it.
macro_rules! messages {
    ($($name:ident: $stage:ident $bytes:expr => $code:expr, $subcode:literal;)+) => { $(
        #[test]
        fn $name() {
            in_lab(ExaBgp.programs(), |lab| message(lab, Stage::$stage, $bytes, ($code, $subcode)));
        }
    )+ };
}

/// When a message is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    First,
    Established,
}

messages! {
    garbage_instead_of_an_open: First b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec()
        => Notification::MESSAGE_HEADER, 1;
    garbage_in_a_session: Established vec![0x17; 64] => Notification::MESSAGE_HEADER, 1;
    message_shorter_than_its_header: Established header(18, 4) => Notification::MESSAGE_HEADER, 2;
    // Only UPDATEs and NOTIFICATIONs may be that long (RFC 8654 §4).
    open_of_4097_octets: First header(4097, 1) => Notification::MESSAGE_HEADER, 2;
    keepalive_of_4097_octets: Established header(4097, 4) => Notification::MESSAGE_HEADER, 2;
    keepalive_with_a_body: Established [header(20, 4), vec![0]].concat() => Notification::MESSAGE_HEADER, 2;
    message_of_unknown_type: Established header(19, 77) => Notification::MESSAGE_HEADER, 3;
    open_of_version_3: First open(|body| body[0] = 3) => Notification::OPEN_MESSAGE, 1;
    open_of_another_asn: First bytes(&Message::Open(Open { my_as: 65004, ..raw_open(65004) }))
        => Notification::OPEN_MESSAGE, 2;
    open_without_a_router_id: First open(|body| body[5..9].fill(0)) => Notification::OPEN_MESSAGE, 3;
    open_with_a_hold_time_of_1: First open(|body| body[3..5].copy_from_slice(&[0, 1]))
        => Notification::OPEN_MESSAGE, 6;
    open_in_a_session: Established bytes(&Message::Open(raw_open(RAW_ASN.into()))) => Notification::FSM, 3;
    update_instead_of_an_open: First bytes(&Message::Update(Update::default())) => Notification::FSM, 1;
    update_with_lengths_that_contradict: Established [header(23, 2), vec![0, 9, 0, 0]].concat()
        => Notification::UPDATE_MESSAGE, 1;
    update_with_a_prefix_of_33_bits: Established [header(29, 2), vec![0, 6, 33, 192, 0, 2, 1, 0, 0, 0]].concat()
        => Notification::UPDATE_MESSAGE, 10;
}

async fn message(lab: Lab, stage: Stage, bytes: Vec<u8>, expected: (u8, u8)) {
    let mut cell = Cell::new(lab, &ExaBgp, "ebgp_v4_passive");
    cell.start();
    let speaker = speaker(&cell).await;
    speaker.update(plain(&["192.0.2.80/32"]));
    cell.until_routes(&["192.0.2.80/32"], &[]).await;
    let since = peer(&speaker, cell.setup.theirs).since;
    let mut raw = match stage {
        Stage::First => Raw::connect(&cell).await,
        Stage::Established => Raw::establish(&cell).await,
    };
    raw.stream.write_all(&bytes).await.unwrap();
    let answer = loop {
        match raw.next().await {
            Some(Message::Notification(notification)) => break (notification.code, notification.subcode),
            Some(_) => {}
            None => panic!("closed without a NOTIFICATION"),
        }
    };
    assert_eq!(answer, expected);
    assert_eq!(raw.next().await, None);

    // Nobody else has noticed, and the next one is welcome.
    let beside = peer(&speaker, cell.setup.theirs);
    assert_eq!((beside.state, beside.since), (State::Established, since), "the peer beside it");
    drop(raw);
    let _raw = Raw::establish(&cell).await;
    cell.until("a session", || peer(&speaker, Lab::THIRD).state == State::Established).await;
    assert!(cell.has(&["192.0.2.80/32"]));
}

/// A speaker that awaits ExaBGP and the test's own connection.
async fn speaker(cell: &Cell) -> Speaker {
    let speaker = start(SpeakerConfig { graceful_restart: None, ..cell.speaker_config() }).await;
    let raw = PeerConfig { passive: true, ..peer_config(Lab::THIRD, RAW_ASN.into()) };
    speaker.set_peers(vec![cell.peer_config(), raw]);
    speaker
}

fn peer(speaker: &Speaker, address: IpAddr) -> PeerStatus {
    speaker.status().peers.into_iter().find(|peer| peer.address == address).unwrap()
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(CONTEXT, &mut bytes).unwrap();
    bytes
}

/// A message's header.
fn header(length: u16, kind: u8) -> Vec<u8> {
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind]].concat()
}

/// An OPEN, with something done to what follows the header.
fn open(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut message = bytes(&Message::Open(raw_open(RAW_ASN.into())));
    change(&mut message[19..]);
    message
}

fn raw_open(asn: u32) -> Open {
    let mut capabilities: Vec<Capability> = Family::ALL.into_iter().map(Capability::multiprotocol).collect();
    capabilities.push(Capability::FourOctetAsn(asn));
    Open { my_as: RAW_ASN, hold_time: 90, router_id: [10, 0, 0, 3].into(), capabilities }
}

/// A connection from the daemon's namespace, from an address of its own.
struct Raw {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Raw {
    /// Connects; again, while the speaker holds this peer down for what it did before.
    async fn connect(cell: &Cell) -> Raw {
        let to = SocketAddr::new(cell.setup.ours, 179);
        for _ in 0..100 {
            let stream: std::net::TcpStream = cell.lab.at_peer(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::new(Lab::THIRD, 0).into()).unwrap();
                socket.connect_timeout(&to.into(), Duration::from_secs(5)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket.into()
            });
            let mut raw = Raw { stream: TcpStream::from_std(stream).unwrap(), input: Vec::new() };
            if let Some(Message::Open(_)) = raw.next().await {
                return raw;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the speaker takes no connection");
    }

    async fn establish(cell: &Cell) -> Raw {
        let mut raw = Raw::connect(cell).await;
        let messages = [Message::Open(raw_open(RAW_ASN.into())), Message::Keepalive];
        raw.stream.write_all(&messages.map(|message| bytes(&message)).concat()).await.unwrap();
        assert_eq!(raw.next().await, Some(Message::Keepalive));
        raw
    }

    /// The next message; `None` when the speaker has closed.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(length) = frame(&self.input).unwrap() {
                let message = Message::decode(&self.input[..length], CONTEXT).unwrap();
                self.input.drain(..length);
                return Some(message);
            }
            let read = tokio::time::timeout(Duration::from_secs(30), self.stream.read_buf(&mut self.input));
            match read.await.expect("a message in time") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}
