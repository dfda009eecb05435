//! The running speaker against a peer that is read message by message, on the loopback.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use sheave_bgp::session::{Backoff, Down, RoleOffer, State};
use sheave_bgp::wire::{
    AsPath, Capability, Cease, Context, Message, Notification, Open, Origin, PathAttributes, RefreshKind,
    Role, RouteRefresh, Update, frame,
};
use sheave_bgp::{
    Attributes, Community, ExportPolicy, Families, Family, FamilyCounts, GracefulRestart, ImportPolicy,
    LimitAction, MaxPrefixes, PeerConfig, PrefixFilter, RouteChanges, Shutdown, Speaker, SpeakerConfig,
    StartError,
};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const ASN: u32 = 64512;
const PEER_ASN: u32 = 65001;
const CONTEXT: Context =
    Context { four_octet_asn: true, ibgp: false, extended_messages: false, add_path: Families::NONE };
const LIMIT: Duration = Duration::from_secs(30);

fn speaker_config() -> SpeakerConfig {
    SpeakerConfig {
        asn: ASN,
        router_id: [10, 0, 0, 1].into(),
        listen: None,
        graceful_restart: Some(GracefulRestart { restart_time: Duration::from_secs(60), stale_time: None }),
        restarting: false,
    }
}

/// The other side of a session, played by the test.
struct FakePeer {
    stream: TcpStream,
    input: Vec<u8>,
    /// The speaker's.
    open: Option<Open>,
}

/// A speaker, and the peer it has an Established session with.
async fn pair() -> (Speaker, FakePeer) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    // So that little stands between a peer that does not read and the speaker.
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let speaker = Speaker::start(speaker_config()).await.unwrap();
    speaker.set_peers(vec![peer_config(listener.local_addr().unwrap())]);
    let peer = FakePeer::accept(&listener).await;
    (speaker, peer)
}

fn peer_config(address: SocketAddr) -> PeerConfig {
    PeerConfig {
        port: address.port(),
        connect_retry: Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(1) },
        ..PeerConfig::new(address.ip(), PEER_ASN)
    }
}

impl FakePeer {
    /// Takes the speaker's connection as far as Established.
    async fn accept(listener: &TcpListener) -> FakePeer {
        let (stream, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        let mut peer = FakePeer { stream, input: Vec::new(), open: None };
        let Some(Message::Open(open)) = peer.next().await else { panic!("no OPEN") };
        peer.open = Some(open);
        let mut capabilities: Vec<Capability> =
            Family::ALL.into_iter().map(Capability::multiprotocol).collect();
        capabilities.extend([
            Capability::RouteRefresh,
            Capability::EnhancedRouteRefresh,
            Capability::FourOctetAsn(PEER_ASN),
        ]);
        let open = Open { my_as: 65001, hold_time: 90, router_id: [10, 0, 0, 2].into(), capabilities };
        peer.send(&Message::Open(open)).await;
        peer.send(&Message::Keepalive).await;
        assert_eq!(peer.next().await, Some(Message::Keepalive));
        peer
    }

    async fn send(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        message.encode(CONTEXT, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// The next message; `None` when the speaker has closed.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(length) = frame(&self.input).unwrap() {
                let message = Message::decode(&self.input[..length], CONTEXT).unwrap();
                self.input.drain(..length);
                return Some(message);
            }
            let read =
                timeout(LIMIT, self.stream.read_buf(&mut self.input)).await.expect("a message in time");
            if read.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn next_update(&mut self) -> Update {
        loop {
            match self.next().await {
                Some(Message::Update(update)) => return update,
                Some(Message::Keepalive) => {}
                other => panic!("expected an UPDATE, got {other:?}"),
            }
        }
    }

    /// Both End-of-RIBs.
    async fn end_of_rib(&mut self) {
        for family in Family::ALL {
            assert_eq!(self.next_update().await.end_of_rib(), Some(family));
        }
    }
}

fn host(n: u32) -> IpNet {
    IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)).into()
}

fn announce(hosts: impl Iterator<Item = u32>, med: u32) -> RouteChanges {
    let attributes = Attributes { med: Some(med), ..Attributes::default() };
    RouteChanges { announce: hosts.map(|n| (host(n), attributes.clone())).collect(), withdraw: Vec::new() }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A peer that says it is there and reads nothing (RFC 9687).
#[tokio::test]
async fn peer_that_reads_nothing_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let speaker = Speaker::start(speaker_config()).await.unwrap();
    let config = peer_config(listener.local_addr().unwrap());
    speaker.set_peers(vec![PeerConfig { send_hold_time: Some(Duration::from_secs(1)), ..config }]);
    let mut peer = FakePeer::accept(&listener).await;
    peer.end_of_rib().await;
    // While it reads, time may pass.
    speaker.update(announce(0..10, 1));
    peer.next_update().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(speaker.status().peers[0].state, State::Established);

    let mut round = 0;
    while speaker.status().peers[0].state == State::Established {
        round += 1;
        assert!(round < 1000, "it is not given up");
        speaker.update(announce(0..100_000, round));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let reason = speaker.status().peers[0].last_error.clone().unwrap().reason.to_string();
    assert_eq!(reason, "peer misbehaved: send hold timer expired: the peer reads nothing");
    speaker.shutdown(Shutdown::Cease).await;
}

/// Ten thousand updates that come together share messages.
#[tokio::test]
async fn updates_are_gathered() {
    const COUNT: u32 = 10_000;
    let (speaker, mut peer) = pair().await;
    peer.end_of_rib().await;
    for n in 0..COUNT {
        speaker.update(announce(n..n + 1, 1));
    }
    let (mut prefixes, mut messages) = (0, 0);
    while prefixes < COUNT as usize {
        prefixes += peer.next_update().await.reachable().count();
        messages += 1;
    }
    // 810 fit into one; this runtime has one thread, so that nothing was sent in between.
    assert_eq!(messages, COUNT.div_ceil(810));
}

/// Another export policy takes no other session: what it changes is announced again, and what it does not let pass is withdrawn.
#[tokio::test]
async fn export_policies_change_live() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let speaker = Speaker::start(speaker_config()).await.unwrap();
    let config = peer_config(listener.local_addr().unwrap());
    let with = |export: ExportPolicy| speaker.set_peers(vec![PeerConfig { export, ..config.clone() }]);
    let of_kind = |kinds: &[u8]| ExportPolicy {
        kinds: Some(kinds.iter().copied().collect()),
        communities: [Community(7)].into(),
        ..ExportPolicy::default()
    };
    let of = |n, kind| (host(n), Attributes { kind, ..Attributes::default() });
    speaker.update(RouteChanges { announce: vec![of(1, 1), of(2, 2), of(3, 3)], withdraw: Vec::new() });
    with(of_kind(&[1, 2]));
    let mut peer = FakePeer::accept(&listener).await;
    let told = |update: &Update| {
        let reachable: Vec<IpNet> = update.reachable().map(|nlri| nlri.prefix).collect();
        (reachable, update.unreachable().map(|nlri| nlri.prefix).collect::<Vec<_>>())
    };
    let update = peer.next_update().await;
    assert_eq!(told(&update), (vec![host(1), host(2)], vec![]));
    assert_eq!(update.attributes.communities, [Community(7)]);
    peer.end_of_rib().await;

    with(ExportPolicy { med: Some(50), ..of_kind(&[1, 2]) });
    let update = peer.next_update().await;
    assert_eq!((told(&update), update.attributes.med), ((vec![host(1), host(2)], vec![]), Some(50)));

    with(ExportPolicy { med: Some(50), ..of_kind(&[2, 3]) });
    assert_eq!(told(&peer.next_update().await), (vec![], vec![host(1)]));
    assert_eq!(told(&peer.next_update().await), (vec![host(3)], vec![]));
    assert_eq!(speaker.status().peers[0].counters.established, 1);
    speaker.shutdown(Shutdown::Cease).await;
}

/// A peer that does not read costs an entry for each prefix that it is being told of, and one for each that has changed since, however
/// often; it is then told the latest.
#[tokio::test(flavor = "multi_thread")]
async fn slow_peer_is_told_the_latest() {
    const COUNT: u32 = 2_000;
    const CHANGES: u32 = 30;
    let (speaker, mut peer) = pair().await;
    peer.end_of_rib().await;
    // No two prefixes share a message of half a kilobyte, so that sockets are soon full.
    let communities: Arc<[Community]> = (0..120).map(Community).collect();
    let route = |n, change| {
        let attributes = Attributes {
            med: Some(change * COUNT + n),
            communities: Arc::clone(&communities),
            ..Attributes::default()
        };
        (host(n), attributes)
    };
    for change in 1..=CHANGES {
        let announce = (0..COUNT).map(|n| route(n, change)).collect();
        speaker.update(RouteChanges { announce, withdraw: Vec::new() });
        // Time enough to make messages of it.
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    assert!(!speaker.flushed(Duration::from_millis(50)).await);
    let status = speaker.status();
    let family = status.peers[0].session.as_ref().unwrap().families[0];
    assert!(family.prefixes_pending > 0 && family.prefixes_pending <= 2 * COUNT as usize, "{family:?}");

    let last = |n| Some(CHANGES * COUNT + n);
    let (mut told, mut table) = (0, BTreeMap::new());
    // How many prefixes have their last attributes.
    let mut settled = 0;
    while settled < COUNT {
        let update = peer.next_update().await;
        for nlri in update.reachable() {
            told += 1;
            table.insert(nlri.prefix, update.attributes.med);
            settled += u32::from(update.attributes.med > Some(CHANGES * COUNT - 1));
        }
    }
    assert!((0..COUNT).all(|n| table.get(&host(n)) == Some(&last(n))));
    assert!(speaker.flushed(LIMIT).await);
    assert!(told < COUNT * CHANGES, "{told} prefixes were sent, all that ever were");
}

#[tokio::test]
async fn flushed_waits_for_established_peers_only() {
    let (speaker, mut peer) = pair().await;
    speaker.update(announce(0..3, 1));
    assert!(speaker.flushed(LIMIT).await);
    // What has been flushed is there to be read.
    let mut prefixes = 0;
    while prefixes < 3 {
        prefixes += peer.next_update().await.reachable().count();
    }
    drop(peer);
    until("the session to go", || speaker.status().peers[0].session.is_none()).await;
    speaker.update(announce(3..4, 1));
    assert!(speaker.flushed(LIMIT).await);
}

#[tokio::test]
async fn ways_to_leave() {
    let cease = |reason| Some(Message::Notification(Notification::cease(reason)));
    for (how, expected) in
        [(Shutdown::Cease, cease(Cease::AdministrativeShutdown)), (Shutdown::GracefulRestart, None)]
    {
        let (speaker, mut peer) = pair().await;
        peer.end_of_rib().await;
        let (last, ()) = tokio::join!(
            async {
                let last = peer.next().await;
                drop(peer);
                last
            },
            speaker.shutdown(how.clone())
        );
        assert_eq!(last, expected, "{how:?}");
    }

    let (speaker, mut peer) = pair().await;
    peer.end_of_rib().await;
    drop(speaker);
    assert_eq!(peer.next().await, None, "dropped");

    let (speaker, mut peer) = pair().await;
    peer.end_of_rib().await;
    speaker.set_peers(Vec::new());
    assert_eq!(peer.next().await, cease(Cease::PeerDeconfigured), "removed");
}

/// The OPEN of a session that follows another says that forwarding went on (RFC 8538 §4), the first one does not: not even where
/// the peer is configured anew.
#[tokio::test]
async fn forwarding_goes_on_between_sessions() {
    let forwards = |peer: &FakePeer| {
        let capabilities = &peer.open.as_ref().unwrap().capabilities;
        let restart = capabilities.iter().find_map(|capability| match capability {
            Capability::GracefulRestart(restart) => Some(restart),
            _ => None,
        });
        let restart = restart.unwrap();
        assert!(restart.notification && !restart.restarting);
        restart.families.iter().all(|family| family.forwarding)
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let speaker = Speaker::start(speaker_config()).await.unwrap();
    let config = peer_config(listener.local_addr().unwrap());
    for (hops, expected) in [(1, false), (2, true), (3, true)] {
        speaker.set_peers(vec![PeerConfig { multihop: Some(hops), ..config.clone() }]);
        let peer = FakePeer::accept(&listener).await;
        until("a session", || speaker.status().peers[0].session.is_some()).await;
        assert_eq!(forwards(&peer), expected, "{hops}");
    }
    // One that was removed had its routes withdrawn.
    speaker.set_peers(Vec::new());
    speaker.set_peers(vec![config]);
    assert!(!forwards(&FakePeer::accept(&listener).await));
}

/// The reason is told in the status, the session comes back, and the counters tell both.
#[tokio::test]
async fn status_tells_what_happened() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let speaker = Speaker::start(speaker_config()).await.unwrap();
    speaker.update(announce(0..5, 1));
    speaker.set_peers(vec![peer_config(listener.local_addr().unwrap())]);
    let mut peer = FakePeer::accept(&listener).await;
    let reset = Notification::cease(Cease::AdministrativeReset);
    peer.send(&Message::Notification(reset.clone())).await;
    let status = || speaker.status().peers.remove(0);
    until("the reason", || status().last_error.is_some()).await;
    assert_eq!(status().last_error.unwrap().reason, Down::NotificationReceived(reset));
    assert_eq!(status().state, State::Idle);

    let _peer = FakePeer::accept(&listener).await;
    until("all to be sent", || {
        status().session.is_some_and(|session| session.families.iter().all(|f| f.end_of_rib_sent))
    })
    .await;
    let now = status();
    assert_eq!(
        (now.state, now.counters.established, now.counters.notifications_received),
        (State::Established, 2, 1)
    );
    let session = now.session.unwrap();
    let families: Vec<_> = session.families.iter().map(|f| (f.family, f.next_hop, f.prefixes_sent)).collect();
    // An IPv4 session has no next hop for IPv6 unless it is configured.
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    assert_eq!(families, [(Family::Ipv4Unicast, Some(loopback), 5), (Family::Ipv6Unicast, None, 0)]);
}

/// Hosts 1 and 2 are taken of the peer; beyond the limit it is held down for that time.
fn imports(peer: IpAddr, limit: usize, hold: Duration) -> BTreeMap<IpAddr, ImportPolicy> {
    let action = LimitAction::Restart(hold);
    let max_prefixes = Some(MaxPrefixes { limit, warn_at: limit, action });
    let prefixes = [1, 2].map(host).map(PrefixFilter::exactly).into();
    BTreeMap::from([(peer, ImportPolicy { prefixes, max_prefixes })])
}

fn update(hosts: impl Iterator<Item = u32>) -> Message {
    Message::Update(Update {
        attributes: PathAttributes {
            origin: Some(Origin::Igp),
            as_path: Some(AsPath::sequence(vec![PEER_ASN])),
            next_hop: Some([10, 0, 0, 2].into()),
            ..PathAttributes::default()
        },
        nlri: hosts.map(|n| Ipv4Net::from(Ipv4Addr::from(0x0a00_0000 + n)).into()).collect(),
        ..Update::default()
    })
}

/// A limit that is raised ends the hold for it, however long that is, and no other.
#[tokio::test]
async fn a_raised_limit_ends_its_hold_alone() {
    const HOUR: Duration = Duration::from_secs(3600);
    for (hold, raised) in [(HOUR, true), (Duration::from_millis(50), false)] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let speaker = Speaker::start(speaker_config()).await.unwrap();
        speaker.set_imports(&imports(address.ip(), 1, hold));
        let connect_retry = Backoff { initial: HOUR, max: HOUR };
        speaker.set_peers(vec![PeerConfig { connect_retry, ..peer_config(address) }]);
        let held_down = || speaker.status().peers[0].state == State::Idle;

        let mut peer = FakePeer::accept(&listener).await;
        peer.end_of_rib().await;
        peer.send(&update(1..3)).await;
        let cease = Notification::cease(Cease::MaximumPrefixes);
        let cease = Notification { data: vec![0, 1, 1, 0, 0, 0, 1], ..cease };
        assert_eq!(peer.next().await, Some(Message::Notification(cease)));
        assert_eq!(peer.next().await, None);
        if raised {
            until("the hold", held_down).await;
            speaker.set_imports(&imports(address.ip(), 2, hold));
        }
        let mut peer = FakePeer::accept(&listener).await;
        peer.end_of_rib().await;
        peer.send(&update(1..if raised { 3 } else { 2 })).await;
        until("its routes", || speaker.learnt().routes == if raised { 2 } else { 1 }).await;

        peer.send(&Message::Notification(Notification::cease(Cease::AdministrativeReset))).await;
        until("another hold", held_down).await;
        speaker.set_imports(&imports(address.ip(), 3, hold));
        let again = timeout(Duration::from_millis(200), listener.accept()).await;
        assert!(again.is_err() && held_down(), "{hold:?}");
        speaker.shutdown(Shutdown::Cease).await;
    }
}

/// Whoever takes what is learnt is not woken by peers that nothing is taken of.
#[tokio::test]
async fn news_is_of_what_is_taken() {
    let (speaker, mut peer) = pair().await;
    peer.end_of_rib().await;
    let received = |count| speaker.status().peers[0].counters.updates_received == count;
    let mut news = speaker.learnt_routes().news();
    peer.send(&update(1..2)).await;
    peer.send(&update(2..3)).await;
    // The first has been dealt with when the second is counted.
    until("both UPDATEs", || received(2)).await;
    assert!(!news.has_changed().unwrap());
    speaker.set_imports(&imports(IpAddr::from(Ipv4Addr::LOCALHOST), 2, Duration::ZERO));
    assert!(matches!(peer.next().await, Some(Message::RouteRefresh(_))));
    news.mark_unchanged();
    peer.send(&update(1..2)).await;
    timeout(LIMIT, news.changed()).await.unwrap().unwrap();
    assert_eq!(
        speaker.learnt_routes().take(9),
        [(host(1), Some([IpAddr::from([10, 0, 0, 2]).into()].into()))]
    );
    speaker.shutdown(Shutdown::Cease).await;
}

/// A peer that was there before its import tells all again when it is asked, and that this was all. A leak is not taken.
#[tokio::test]
async fn what_a_peer_tells_again_is_complete() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let speaker = Speaker::start(speaker_config()).await.unwrap();
    let role = Some(RoleOffer { role: Role::Provider, required: false });
    speaker.set_peers(vec![PeerConfig { role, ..peer_config(address) }]);
    let mut peer = FakePeer::accept(&listener).await;
    peer.end_of_rib().await;
    speaker.set_imports(&imports(address.ip(), 2, Duration::ZERO));
    for family in Family::ALL {
        let request = RouteRefresh::new(RefreshKind::Request, family);
        assert_eq!(peer.next().await, Some(Message::RouteRefresh(request)));
    }
    for family in Family::ALL {
        peer.send(&Message::RouteRefresh(RouteRefresh::new(RefreshKind::Begin, family))).await;
    }
    let Message::Update(mut leak) = update(2..3) else { unreachable!() };
    leak.attributes.only_to_customer = Some(PEER_ASN);
    for routes in [update(1..2), Message::Update(leak)] {
        peer.send(&routes).await;
    }
    for family in Family::ALL {
        assert!(!speaker.learnt().complete);
        peer.send(&Message::RouteRefresh(RouteRefresh::new(RefreshKind::End, family))).await;
    }
    until("all of it", || speaker.learnt().complete).await;
    let counts = FamilyCounts { received: 2, accepted: 1, end_of_rib: true, long_lived: 0 };
    assert_eq!(speaker.learnt().peers[&address.ip()][0], (Family::Ipv4Unicast, counts));
    speaker.shutdown(Shutdown::Cease).await;
}

#[tokio::test]
async fn configurations_that_cannot_start() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let _holder = std::net::TcpListener::bind(taken).unwrap();
    let cases = [
        ("asn", SpeakerConfig { asn: 0, ..speaker_config() }),
        ("router_id", SpeakerConfig { router_id: Ipv4Addr::UNSPECIFIED, ..speaker_config() }),
        (
            "graceful_restart.restart_time",
            SpeakerConfig {
                graceful_restart: Some(GracefulRestart {
                    restart_time: Duration::from_secs(4096),
                    stale_time: None,
                }),
                ..speaker_config()
            },
        ),
        ("listen on", SpeakerConfig { listen: Some(vec![taken]), ..speaker_config() }),
    ];
    for (name, config) in cases {
        let error: StartError = Speaker::start(config).await.expect_err(name);
        assert!(error.to_string().starts_with(name), "{error}");
    }
}
