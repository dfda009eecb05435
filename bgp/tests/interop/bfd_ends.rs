//! What is left when BFD ends, and what of it is for others.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sheave_bgp::bfd::{Diagnostic, PORT, Packet, SessionConfig, State};
use sheave_bgp::session::{Backoff, State as BgpState};
use sheave_bgp::{Bfd, BfdSession, DynamicPeers, GracefulRestart, PeerBfd, PeerConfig, SpeakerConfig};

use crate::bfd::{
    FRR, MS, PATIENCE, PEER_BFD, beside, frr, one_hop, patient, start_frr_watched, watch_with_bird, watched,
};
use crate::bird::{BIRD_ASN, PROGRAMS};
use crate::frr::vtysh;
use crate::lab::Lab;
use crate::{OUR_ASN, in_lab, only_peer, peer_config, speaker_config, start, until};

/// Sends one packet of a session that begins, from the peer's namespace.
fn say_there([to, from]: [IpAddr; 2], receive: Duration, multiplier: u8) {
    let packet = Packet {
        diagnostic: Diagnostic::NONE,
        state: State::Down,
        poll: false,
        last: false,
        independent: false,
        demand: false,
        multiplier,
        sender: 7,
        receiver: 0,
        transmit: 1000 * MS,
        receive,
    };
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.set_ttl(255).unwrap();
    socket.send_to(&packet.encode(), (to, PORT)).unwrap();
}

/// Has the peer do so.
fn say(lab: &Lab, addresses: [IpAddr; 2], receive: Duration, multiplier: u8) {
    lab.at_peer(|| say_there(addresses, receive, multiplier));
}

/// UDP sockets of our namespace.
fn sockets() -> usize {
    let table = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
    table.lines().count() - 1
}

/// BFD packets alone get lost, both ways, and we notice first: FRR, which would keep our routes over any other NOTIFICATION, does not go on
/// sending by them.
#[test]
fn a_broken_path_takes_routes() {
    in_lab(&[FRR, &["nft"]].concat(), |mut lab| async move {
        start_frr_watched(&mut lab, " bgp graceful-restart notification\n");
        let restart = Some(GracefulRestart { restart_time: Duration::from_secs(60), stale_time: None });
        let config = SpeakerConfig { graceful_restart: restart, ..speaker_config(None) };
        let speaker = watched(config, PATIENCE).await;
        assert!(only_peer(&speaker).session.unwrap().negotiated.graceful_notification);
        let route = || vtysh(&lab, &["show bgp ipv4 unicast 192.0.2.1/32 json"]);
        lab.until("our route", || route().contains("192.0.2.1/32"), route).await;
        until("FRR's routes", || speaker.learnt().routes == 2).await;
        // FRR is to take longer than all of this, and no session is to come in between.
        let session = SessionConfig { multiplier: u8::MAX, ..patient() };
        let connect_retry = Backoff { initial: Duration::from_secs(60), max: Duration::from_secs(60) };
        speaker.set_peers(vec![PeerConfig { connect_retry, ..beside(PeerBfd { session, ..PEER_BFD }) }]);
        let knows = || frr(&lab).iter().any(|peer| peer["remote-detect-multiplier"] == 255);
        lab.until("FRR to be patient", knows, || format!("{:#?}", frr(&lab))).await;

        let chain = |hook: &str| {
            format!(
                "add chain inet lost {hook} {{ type filter hook {hook} priority 0; }}; add rule inet lost {hook} udp dport {PORT} drop; "
            )
        };
        let rules = format!("add table inet lost; {}{}", chain("input"), chain("output"));
        assert_eq!(lab.ask(&["nft", &rules]), "");
        until("the end of the session", || only_peer(&speaker).session.is_none()).await;
        let error = only_peer(&speaker).last_error.unwrap().reason.to_string();
        assert!(error.contains("BFD"), "{error}");
        assert_eq!(speaker.learnt().routes, 0);
        let kept = std::time::Instant::now();
        lab.until("the end of our route", || !route().contains("192.0.2.1/32"), route).await;
        assert!(kept.elapsed() < Duration::from_secs(5), "kept for {:?}", kept.elapsed());
        assert!(frr(&lab).iter().any(|peer| peer["status"] == "up"), "{:#?}", frr(&lab));
    });
}

/// A session that ends is told of for a while, whatever the other side says of how long it takes to notice. Then its sockets are gone, and
/// with the last of a kind the port, which another program may have.
#[test]
fn nothing_is_left() {
    in_lab(&[], |lab| async move {
        let bfd = Bfd::start().unwrap();
        let session = bfd.open(one_hop(Lab::V4[1]), patient(), Vec::new());
        let status = session.status();
        until("the socket that listens", || sockets() > 0).await;
        // It would like a packet every 71 minutes, and miss 255 of them.
        say(&lab, Lab::V4, Duration::from_micros(u32::MAX.into()), u8::MAX);
        until("the peer to be heard", || status.borrow().state == State::Init).await;
        assert_eq!(sockets(), 2);
        drop(session);
        tokio::time::sleep(1000 * MS).await;
        assert_eq!(sockets(), 2, "it is told again and again");
        until("all sockets to go", || sockets() == 0).await;

        // One that nobody has spoken to leaves at once, and what comes after it begins as ever.
        drop(bfd.open(one_hop(Lab::V4[1]), patient(), Vec::new()));
        tokio::time::sleep(100 * MS).await;
        assert_eq!(sockets(), 0);
        let session = bfd.open(one_hop(Lab::V4[1]), patient(), Vec::new());
        let status = session.status();
        until("the socket that listens", || sockets() > 0).await;
        say(&lab, Lab::V4, 1000 * MS, 3);
        until("the peer to be heard", || status.borrow().state == State::Init).await;
    });
}

/// Of a thousand that end at once each is told for a while; of more it is said once, as each keeps a socket meanwhile.
#[test]
fn many_that_end_at_once() {
    const MOST: usize = 1024;
    in_lab(&[], |lab| async move {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        lab.route_ranges(["10.1.0.0/16", "10.2.0.0/16"]);
        let addresses: Vec<IpAddr> = (1..=1100_u16)
            .map(|number| {
                let [high, low] = number.to_be_bytes();
                [10, 2, high, low].into()
            })
            .collect();
        let bfd = Bfd::start().unwrap();
        let open = |address: &IpAddr| bfd.open(one_hop(*address), patient(), Vec::new());
        let sessions: Vec<_> = addresses.iter().map(open).collect();
        let statuses: Vec<_> = sessions.iter().map(BfdSession::status).collect();
        until("all sessions to begin", || sockets() == addresses.len() + 1).await;
        let theirs = || addresses.iter().map(|address| [Lab::V4[0], *address]);
        lab.at_peer(|| theirs().for_each(|addresses| say_there(addresses, 1000 * MS, u8::MAX)));
        let heard = || statuses.iter().all(|status| status.borrow().state == State::Init);
        until("all peers to be heard", heard).await;
        drop(sessions);
        until("those beyond the limit to go", || sockets() == MOST + 1).await;
        until("all to go", || sockets() == 0).await;
    });
}

/// Another program has the port when a session begins that waits to be spoken to: it listens once that is gone.
#[test]
fn a_port_that_becomes_free() {
    in_lab(&[], |lab| async move {
        let taken = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
        let bfd = Bfd::start().unwrap();
        let passive = SessionConfig { passive: true, ..patient() };
        let session = bfd.open(one_hop(Lab::V4[1]), passive, Vec::new());
        let status = session.status();
        until("the problem", || status.borrow().problem.is_some()).await;
        drop(taken);
        until("the end of it", || status.borrow().problem.is_none()).await;
        say(&lab, Lab::V4, 1000 * MS, 3);
        until("the peer to be heard", || status.borrow().state == State::Init).await;
    });
}

/// Whoever connects from a range and says nothing has no BFD, which would outlive its connection; a peer of the range has.
#[test]
fn peers_of_a_range() {
    in_lab(PROGRAMS, |mut lab| async move {
        let [ours, birds] = Lab::V4;
        let listen = Some(vec![(ours, 179).into()]);
        let speaker = start(SpeakerConfig { listen, ..speaker_config(None) }).await;
        let prefix = "10.0.0.0/24".parse().unwrap();
        let bfd = Some(PeerBfd { session: patient(), ..PEER_BFD });
        let template = PeerConfig { bfd, ..peer_config([10, 0, 0, 0].into(), BIRD_ASN) };
        let linger = Duration::from_secs(600);
        speaker.set_dynamic_peers(vec![DynamicPeers { prefix, limit: 2, linger, template }]);
        let of = |address| speaker.status().peers.into_iter().find(|peer| peer.address == address);

        let stranger = lab.at_peer(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&std::net::SocketAddr::new(Lab::THIRD, 0).into()).unwrap();
            socket.connect(&std::net::SocketAddr::new(ours, 179).into()).unwrap();
            std::net::TcpStream::from(socket)
        });
        until("a connection", || of(Lab::THIRD).is_some_and(|peer| peer.state == BgpState::OpenSent)).await;
        say(&lab, [ours, Lab::THIRD], 1000 * MS, 3);
        tokio::time::sleep(300 * MS).await;
        assert_eq!((of(Lab::THIRD).unwrap().bfd, sockets()), (None, 0));
        drop(stranger);

        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "bfd on; hold time 90;");
        watch_with_bird(&mut lab, PATIENCE);
        let up = || of(birds).and_then(|peer| peer.bfd).is_some_and(|bfd| bfd.state == State::Up);
        lab.until("BFD with BIRD", up, || format!("{:#?}", speaker.status())).await;
        assert_eq!(of(Lab::THIRD).unwrap().bfd, None);
        // It outlives its session: what it says of a peer that is away counts.
        lab.kill();
        until("silence to be noticed", || {
            of(birds)
                .is_some_and(|peer| peer.session.is_none() && peer.bfd.is_some_and(|bfd| bfd.failures == 1))
        })
        .await;
    });
}
