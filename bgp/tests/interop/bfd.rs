//! BFD with BIRD and FRR; docs/bfd.md has the configuration of theirs that is tried here.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use sheave_bgp::bfd::{Algorithm, Diagnostic, Key, PORT, Packet, SessionConfig, State};
use sheave_bgp::{
    Attributes, Bfd, BfdPeer, BfdSession, BfdStatus, GracefulRestart, ImportPolicy, PeerBfd, PeerConfig,
    PrefixFilter, Shutdown, Speaker, SpeakerConfig,
};
use socket2::SockRef;
use tokio::sync::watch;

use crate::bird::{BIRD_ASN, PROGRAMS};
use crate::frr::vtysh;
use crate::lab::Lab;
use crate::{OUR_ASN, announce, in_lab, only_peer, peer_config, speaker_config, start};

pub(crate) const MS: Duration = Duration::from_millis(1);
const INTERVAL: Duration = Duration::from_millis(50);
/// Detection multiplier where it is not the detection that is tried: half a second.
pub(crate) const PATIENCE: u8 = 10;

fn config() -> SessionConfig {
    PEER_BFD.session
}

/// Up for as long as nobody takes it down, whatever else the machine has to do.
pub(crate) fn patient() -> SessionConfig {
    SessionConfig { multiplier: PATIENCE, ..config() }
}

pub(crate) fn one_hop(address: IpAddr) -> BfdPeer {
    BfdPeer { address, interface: None, local_address: None, multihop: false }
}

/// One of each kind: peers as we see them.
fn kinds() -> [BfdPeer; 4] {
    let link_local = BfdPeer { interface: Some("link0".to_owned()), ..one_hop(Lab::LINK_LOCAL[1]) };
    let multihop = BfdPeer { local_address: Some(Lab::V4[0]), multihop: true, ..one_hop(Lab::THIRD) };
    [one_hop(Lab::V4[1]), one_hop(Lab::V6[1]), link_local, multihop]
}

async fn until(
    lab: &Lab,
    what: &str,
    status: &watch::Receiver<BfdStatus>,
    wanted: impl Fn(&BfdStatus) -> bool,
) {
    let state = || format!("{:?}\n{}", status.borrow(), lab.birdc("show bfd sessions"));
    lab.until(what, || wanted(&status.borrow()), state).await;
}

fn start_bird(lab: &mut Lab, authentication: &str) {
    let neighbors: String = kinds()
        .iter()
        .map(|peer| match (peer.address, peer.multihop) {
            (address, true) => format!("neighbor {} local {address} multihop;", Lab::V4[0]),
            (IpAddr::V6(address), false) if address.is_unicast_link_local() => {
                format!("neighbor {} dev \"link0\" local {address};", Lab::LINK_LOCAL[0])
            }
            (IpAddr::V4(_), false) => format!("neighbor {} dev \"link0\";", Lab::V4[0]),
            (IpAddr::V6(_), false) => format!("neighbor {} dev \"link0\";", Lab::V6[0]),
        })
        .collect();
    let timers = format!(
        "min rx interval 50 ms; min tx interval 60 ms; idle tx interval 1 s; multiplier {PATIENCE}; {authentication}"
    );
    let text = format!(
        "log stderr all; router id 10.0.0.2; protocol device {{ }}
         protocol bfd {{ interface \"link0\" {{ {timers} }}; multihop {{ {timers} }}; {neighbors} }}"
    );
    let config = lab.write("bird.conf", &text);
    let control = lab.path("bird.ctl");
    lab.start(&["bird", "-f", "-c", &config, "-s", &control]);
}

/// Sessions of each kind come up with what both sides want; a side that stops is noticed; changed intervals and leaving are understood.
#[test]
fn bird_sessions() {
    in_lab(PROGRAMS, |mut lab| async move {
        start_bird(&mut lab, "");
        let bfd = Bfd::start().unwrap();
        let sessions = kinds().map(|peer| bfd.open(peer, patient(), Vec::new()));
        for session in &sessions {
            let status = session.status();
            until(&lab, "a session", &status, |status| {
                status.state == State::Up && status.detection_time == 600 * MS
            })
            .await;
            assert_eq!(status.borrow().transmit_interval, 50 * MS);
        }
        let up = |answer: &str, interval: &str, timeout: &str| {
            let lines = answer.lines().filter(|line| line.contains(" Up "));
            lines.filter(|line| line.contains(interval) && line.contains(timeout)).count() == 4
        };
        let bird = || lab.birdc("show bfd sessions");
        lab.until("BIRD's sessions", || up(&bird(), "0.060", "0.500"), bird).await;

        for session in &sessions {
            session.reconfigure(
                SessionConfig { transmit: 100 * MS, receive: 200 * MS, ..patient() },
                Vec::new(),
            );
        }
        lab.until("other intervals", || up(&bird(), "0.200", "1.000"), bird).await;
        for session in &sessions {
            session.reconfigure(patient(), Vec::new());
        }
        lab.until("intervals as before", || up(&bird(), "0.060", "0.500"), bird).await;

        let quiet = Instant::now();
        lab.freeze(true);
        for session in &sessions {
            until(&lab, "silence to be noticed", &session.status(), |status| status.failures == 1).await;
        }
        eprintln!("noticed after {:?}", quiet.elapsed());
        lab.freeze(false);
        for session in &sessions {
            until(&lab, "the session again", &session.status(), |status| {
                status.state == State::Up && status.ups == 2
            })
            .await;
        }
        // Ours alone: the others go on.
        let [first, .., last] = sessions;
        drop(first);
        let down = |count: usize| {
            move |answer: &str| answer.lines().filter(|line| line.contains(" Down ")).count() == count
        };
        lab.until("the end of one", || down(1)(&bird()), bird).await;
        bfd.leave().await;
        lab.until("the end of all", || down(4)(&bird()), bird).await;
        let status = last.status().borrow().clone();
        assert_eq!((status.state, status.failures), (State::AdminDown, 1), "wanted is no failure");
    });
}

/// Signed as BIRD signs, with the right key and a wrong one; and with none where it wants one.
#[test]
fn bird_signs() {
    for (algorithm, name) in [
        (Algorithm::Simple, "simple"),
        (Algorithm::Md5, "keyed md5"),
        (Algorithm::MeticulousMd5, "meticulous keyed md5"),
        (Algorithm::Sha1, "keyed sha1"),
        (Algorithm::MeticulousSha1, "meticulous keyed sha1"),
    ] {
        in_lab(PROGRAMS, move |mut lab| async move {
            let key = "password \"secret\" { id 7; };";
            start_bird(&mut lab, &format!("authentication {name}; {key}"));
            let bfd = Bfd::start().unwrap();
            let key = |number, secret: &[u8]| vec![Key::new(algorithm, number, secret).unwrap()];
            let [right, wrong, other, none] = kinds();
            let up = bfd.open(right, patient(), key(7, b"secret"));
            let down = [
                bfd.open(wrong, patient(), key(7, b"Secret")),
                bfd.open(other, patient(), key(8, b"secret")),
                bfd.open(none, patient(), Vec::new()),
            ];
            until(&lab, name, &up.status(), |status| status.state == State::Up).await;
            // Longer than any of the others takes to come up.
            tokio::time::sleep(2500 * MS).await;
            assert_eq!(up.status().borrow().ups, 1, "{name}: {:?}", up.status().borrow());
            for session in &down {
                assert_eq!(session.status().borrow().ups, 0, "{name}: {:?}", session.status().borrow());
            }
        });
    }
}

/// From one key to another while the session goes on: both sides take both before either signs with the new one alone.
#[test]
fn keys_are_changed() {
    in_lab(PROGRAMS, |mut lab| async move {
        let password = |number: u8| format!("password \"secret {number}\" {{ id {number}; }};");
        start_bird(&mut lab, &format!("authentication meticulous keyed sha1; {}", password(1)));
        let keys = |numbers: &[u8]| {
            let key = |number: &u8| {
                let secret = format!("secret {number}").into_bytes();
                Key::new(Algorithm::MeticulousSha1, *number, secret).unwrap()
            };
            numbers.iter().map(key).collect::<Vec<_>>()
        };
        let bfd = Bfd::start().unwrap();
        let [peer, ..] = kinds();
        let session = bfd.open(peer, patient(), keys(&[1]));
        let status = session.status();
        until(&lab, "a session", &status, |status| status.detection_time == 600 * MS).await;
        let bird = |passwords: &str| {
            lab.edit_bird(&password(1), passwords);
            assert!(lab.birdc("configure").contains("Reconfigured"), "{}", lab.read("log"));
        };
        bird(&format!("{} {}", password(1), password(2)));
        session.reconfigure(patient(), keys(&[1, 2]));
        tokio::time::sleep(500 * MS).await;
        session.reconfigure(patient(), keys(&[2, 1]));
        tokio::time::sleep(500 * MS).await;
        lab.edit_bird(&password(2), "");
        bird(&password(2));
        tokio::time::sleep(500 * MS).await;
        session.reconfigure(patient(), keys(&[2]));
        tokio::time::sleep(500 * MS).await;
        let now = status.borrow().clone();
        assert_eq!((now.state, now.ups, now.failures), (State::Up, 1, 0), "{}", lab.read("log"));
        session.reconfigure(patient(), keys(&[1]));
        until(&lab, "the end, with the old key", &status, |status| status.failures == 1).await;
    });
}

pub(crate) const FRR: &[&str] = &["../lib/frr/bgpd", "../lib/frr/bfdd", "../lib/frr/zebra", "vtysh"];

/// FRR's `bfdd` learns of interfaces from zebra: all in a process namespace of their own, that ends with them.
fn start_frr(lab: &mut Lab, bfdd: &str, bgpd: Option<&str>) {
    let directory = lab.path("");
    let daemon = |name: &str, config: &str, options: &str| {
        let config = lab.write(&format!("{name}.conf"), config);
        format!(
            "/usr/lib/frr/{name} --vty_port 0 -f {config} -i {directory}{name}.pid -z {directory}zserv.api --vty_socket \
             {directory} --log stdout {options}"
        )
    };
    let bgpd = bgpd.map_or_else(|| "true".to_owned(), |config| daemon("bgpd", config, "--skip_runas"));
    let script = format!(
        "chmod 777 {directory}; {} & while ! test -S {directory}zserv.api; do sleep 0.05; done; {} & {bgpd} & wait",
        daemon("zebra", "", ""),
        daemon("bfdd", bfdd, &format!("--bfdctl {directory}bfdd.sock")),
    );
    lab.start(&["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", &script]);
}

pub(crate) fn frr(lab: &Lab) -> Vec<serde_json::Value> {
    let directory = lab.path("");
    let answer = lab.ask(&["vtysh", "--vty_socket", &directory, "-d", "bfdd", "-c", "show bfd peers json"]);
    serde_json::from_str(&answer).unwrap_or_default()
}

/// The same with FRR.
#[test]
fn frr_sessions() {
    in_lab(FRR, |mut lab| async move {
        let peers: String = kinds()
            .iter()
            .map(|peer| {
                let neighbor = match (peer.address, peer.multihop) {
                    (address, true) => format!("{} multihop local-address {address}", Lab::V4[0]),
                    (IpAddr::V6(address), false) if address.is_unicast_link_local() => {
                        format!("{} local-address {address} interface link0", Lab::LINK_LOCAL[0])
                    }
                    (IpAddr::V4(_), false) => format!("{} interface link0", Lab::V4[0]),
                    (IpAddr::V6(address), false) => format!("{} local-address {address} interface link0", Lab::V6[0]),
                };
                format!(
                    " peer {neighbor}\n  detect-multiplier {PATIENCE}\n  receive-interval 50\n  transmit-interval 60\n exit\n"
                )
            })
            .collect();
        start_frr(&mut lab, &format!("bfd\n{peers}exit\n"), None);
        let bfd = Bfd::start().unwrap();
        let sessions = kinds().map(|peer| bfd.open(peer, patient(), Vec::new()));
        let are = |count: usize, wanted: &dyn Fn(&serde_json::Value) -> bool| {
            frr(&lab).iter().filter(|peer| wanted(peer)).count() == count
        };
        let describe = || {
            format!(
                "{:#?}\n{:?}",
                frr(&lab),
                sessions.each_ref().map(|session| session.status().borrow().clone())
            )
        };
        let up = |transmit: u64, receive: u64| {
            move |peer: &serde_json::Value| {
                peer["status"] == "up"
                    && peer["remote-transmit-interval"] == transmit
                    && peer["remote-receive-interval"] == receive
            }
        };
        lab.until("sessions", || are(4, &up(50, 50)), describe).await;
        for session in &sessions {
            let status = session.status();
            lab.until("what FRR wants", || status.borrow().detection_time == 600 * MS, describe).await;
            assert_eq!((status.borrow().state, status.borrow().ups), (State::Up, 1));
        }
        for session in &sessions {
            session.reconfigure(
                SessionConfig { transmit: 100 * MS, receive: 200 * MS, ..patient() },
                Vec::new(),
            );
        }
        lab.until("other intervals", || are(4, &up(100, 200)), || format!("{:#?}", frr(&lab))).await;
        bfd.leave().await;
        let left = |peer: &serde_json::Value| peer["status"] == "down";
        lab.until("the end of all", || are(4, &left), || format!("{:#?}", frr(&lab))).await;
    });
}

/// Has BIRD, which is configured, begin anew with BFD every 50 ms.
pub(crate) fn watch_with_bird(lab: &mut Lab, multiplier: u8) {
    let interval = format!("min rx interval 50 ms; min tx interval 50 ms; multiplier {multiplier};");
    lab.edit_bird(
        "protocol device",
        &format!("protocol bfd {{ interface \"link0\" {{ {interval} }}; }} protocol device"),
    );
    lab.restart();
}

/// BIRD with a session that BFD watches, and the speaker.
async fn start_watched(lab: &mut Lab, config: SpeakerConfig, multiplier: u8) -> Speaker {
    let [ours, birds] = Lab::V4;
    lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "bfd graceful; passive on; hold time 90;");
    watch_with_bird(lab, multiplier);
    watched(config, multiplier).await
}

pub(crate) const PEER_BFD: PeerBfd = PeerBfd {
    session: SessionConfig { transmit: INTERVAL, receive: INTERVAL, multiplier: 3, passive: false },
    multihop: false,
    keys: Vec::new(),
};

pub(crate) fn beside(bfd: impl Into<Option<PeerBfd>>) -> PeerConfig {
    PeerConfig { bfd: bfd.into(), hold_time: Duration::from_secs(90), ..peer_config(Lab::V4[1], BIRD_ASN) }
}

pub(crate) async fn watched(speaker: SpeakerConfig, multiplier: u8) -> Speaker {
    let [_, birds] = Lab::V4;
    let speaker = start(speaker).await;
    let filters =
        ["198.51.100.0/24", "203.0.113.0/24"].map(|prefix| PrefixFilter::exactly(prefix.parse().unwrap()));
    let policy = ImportPolicy { prefixes: filters.to_vec(), max_prefixes: None };
    speaker.set_imports(&BTreeMap::from([(birds, policy)]));
    let session = SessionConfig { multiplier, ..config() };
    speaker.set_peers(vec![beside(PeerBfd { session, ..PEER_BFD })]);
    speaker.update(announce(&["192.0.2.1/32"], &Attributes::default()));
    speaker.initial_routes_complete();
    crate::until("a session, and BFD beside it", || {
        let peer = only_peer(&speaker);
        peer.session.is_some()
            && peer.bfd.is_some_and(|bfd| {
                bfd.state == State::Up && bfd.detection_time == INTERVAL * multiplier.into()
            })
    })
    .await;
    speaker
}

/// BIRD stops without a word, and its kernel goes on acknowledging: BFD says so long before the hold time is over, the session ends and so do
/// its routes, graceful restart or not.
#[test]
fn a_silent_peer_is_noticed() {
    in_lab(PROGRAMS, |mut lab| async move {
        let restart = Some(GracefulRestart { restart_time: Duration::from_secs(120), stale_time: None });
        let speaker =
            start_watched(&mut lab, SpeakerConfig { graceful_restart: restart, ..speaker_config(None) }, 3)
                .await;
        crate::until("its routes", || speaker.learnt().routes == 2).await;
        let quiet = Instant::now();
        lab.freeze(true);
        crate::until("the end of the session", || only_peer(&speaker).session.is_none()).await;
        eprintln!("the session ended after {:?}", quiet.elapsed());
        let error = only_peer(&speaker).last_error.unwrap().reason.to_string();
        assert!(error.contains("BFD"), "{error}");
        assert_eq!(speaker.learnt().routes, 0);
        lab.freeze(false);
        crate::until("the session again", || only_peer(&speaker).counters.established == 2).await;
    });
}

/// A planned restart ends BFD once the session is gone, and says that this is no failure: BIRD keeps the routes. With `bfd on` it would not: to
/// that any end of BFD is one.
#[test]
fn a_restart_is_no_failure() {
    in_lab(PROGRAMS, |mut lab| async move {
        let restart = Some(GracefulRestart { restart_time: Duration::from_secs(120), stale_time: None });
        let config = SpeakerConfig { graceful_restart: restart, ..speaker_config(None) };
        let speaker = start_watched(&mut lab, config.clone(), PATIENCE).await;
        let route = "show route 192.0.2.1/32";
        lab.wait_for(route, &["192.0.2.1/32"]).await;
        speaker.shutdown(Shutdown::GracefulRestart).await;
        stays(&lab, || lab.birdc(route)).await;
        let speaker = watched(SpeakerConfig { restarting: true, ..config }, PATIENCE).await;
        assert!(lab.birdc(route).contains("192.0.2.1/32"), "{}", lab.read("log"));
        speaker.shutdown(Shutdown::Cease).await;
    });
}

/// Our route does, for longer than BFD takes to notice.
async fn stays(lab: &Lab, route: impl Fn() -> String) {
    let gone = Instant::now();
    while gone.elapsed() < 1000 * MS {
        assert!(route().contains("192.0.2.1/32"), "after {:?}: {}", gone.elapsed(), lab.read("log"));
        tokio::time::sleep(20 * MS).await;
    }
}

/// FRR with a session beside which it has BFD. What a profile says of the detection multiplier, FRR 8.4 forgets for sessions of BGP.
pub(crate) fn start_frr_watched(lab: &mut Lab, options: &str) {
    let [ours, _] = Lab::V4;
    let neighbor = format!(" neighbor {ours}");
    let bgpd = format!(
        "router bgp {BIRD_ASN}\n bgp router-id 10.0.0.2\n no bgp ebgp-requires-policy\n no bgp network import-check\n bgp graceful-restart \
         restart-time 60\n bgp graceful-restart preserve-fw-state\n{neighbor} remote-as {OUR_ASN}\n{neighbor} passive\n{neighbor} graceful-restart\n\
         {neighbor} timers 30 90\n{neighbor} bfd {PATIENCE} 50 50\n{neighbor} bfd profile quick\n{options}\
         address-family ipv4 unicast\n  network 198.51.100.0/24\n  network 203.0.113.0/24\n exit-address-family\n"
    );
    let bfdd = "bfd\n profile quick\n  detect-multiplier 3\n  receive-interval 50\n  transmit-interval 50\n exit\nexit\n";
    start_frr(lab, bfdd, Some(&bgpd));
}

/// FRR likewise, with and without `check-control-plane-failure`.
#[test]
fn frr_keeps_routes_over_a_restart() {
    for option in ["", "check-control-plane-failure"] {
        in_lab(FRR, move |mut lab| async move {
            let options = match option {
                "" => String::new(),
                option => format!(" neighbor {} bfd {option}\n", Lab::V4[0]),
            };
            start_frr_watched(&mut lab, &options);
            let restart = Some(GracefulRestart { restart_time: Duration::from_secs(60), stale_time: None });
            let config = SpeakerConfig { graceful_restart: restart, ..speaker_config(None) };
            let speaker = watched(config.clone(), PATIENCE).await;
            let route = || vtysh(&lab, &["show bgp ipv4 unicast 192.0.2.1/32 json"]);
            lab.until("our route", || route().contains("192.0.2.1/32"), route).await;
            speaker.shutdown(Shutdown::GracefulRestart).await;
            stays(&lab, route).await;
            let speaker = watched(SpeakerConfig { restarting: true, ..config }, PATIENCE).await;
            stays(&lab, route).await;
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
}

/// An operator of the other side takes BFD down, and up again: the path may well work, and the session goes on (RFC 5882 §3.2).
#[test]
fn an_operator_takes_it_down() {
    in_lab(FRR, |mut lab| async move {
        start_frr_watched(&mut lab, "");
        let speaker = watched(speaker_config(None), PATIENCE).await;
        let bfd = || only_peer(&speaker).bfd.unwrap();
        let profile = |command: &str| {
            let directory = lab.path("");
            let mut program = vec!["vtysh", "--vty_socket", &directory, "-d", "bfdd"];
            let commands = ["configure terminal", "bfd", "profile quick", command];
            program.extend(commands.iter().flat_map(|command| ["-c", command]));
            lab.ask(&program)
        };
        profile("shutdown");
        crate::until("AdminDown", || bfd().remote_state == State::AdminDown).await;
        assert_eq!(bfd().state, State::Down);
        profile("no shutdown");
        crate::until("BFD again", || bfd().state == State::Up && bfd().ups == 2).await;
        assert_eq!((bfd().failures, only_peer(&speaker).counters.established), (0, 1));
    });
}

/// BFD comes, changes and goes beside a session that stays.
#[test]
fn it_is_configured_live() {
    in_lab(PROGRAMS, |mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on; hold time 90;");
        let timers = format!("min rx interval 50 ms; min tx interval 50 ms; multiplier {PATIENCE};");
        lab.edit_bird(
            "protocol device",
            &format!(
                "protocol bfd {{ interface \"link0\" {{ {timers} }}; neighbor {ours} dev \"link0\"; }} protocol device"
            ),
        );
        lab.restart();
        let speaker = start(speaker_config(None)).await;
        let set = |bfd: Option<PeerBfd>| speaker.set_peers(vec![beside(bfd)]);
        set(None);
        crate::until("a session", || only_peer(&speaker).session.is_some()).await;
        assert_eq!(only_peer(&speaker).bfd, None);
        let bird = || lab.birdc("show bfd sessions");
        for round in 0..2 {
            set(Some(PeerBfd { session: patient(), ..PEER_BFD }));
            lab.until("BFD", || bird().contains(" Up "), bird).await;
            let slower = SessionConfig { receive: 200 * MS, ..patient() };
            set(Some(PeerBfd { session: slower, ..PEER_BFD }));
            lab.until("another interval", || bird().contains("0.200"), bird).await;
            let bfd = only_peer(&speaker).bfd.unwrap();
            assert_eq!((bfd.state, bfd.ups, bfd.failures), (State::Up, 1, 0), "round {round}");
            set(None);
            // At once, and not after the detection time.
            let end = Instant::now();
            lab.until("the end of it", || bird().contains(" Down "), bird).await;
            assert!(end.elapsed() < 400 * MS, "{:?}", end.elapsed());
        }
        assert_eq!(only_peer(&speaker).counters.established, 1);
    });
}

/// What a router has forwarded, what another has sent and what is for no session here changes nothing, in either family; the same from the
/// peer does.
#[test]
fn packets_of_others_are_not_taken() {
    in_lab(&[], |lab| async move {
        let bfd = Bfd::start().unwrap();
        let other = "fd00::3".parse().unwrap();
        lab.add_addresses_at_peer([Lab::THIRD, other]);
        for ([ours, theirs], other) in [(Lab::V4, Lab::THIRD), (Lab::V6, other)] {
            let session = bfd.open(one_hop(theirs), SessionConfig { passive: true, ..patient() }, Vec::new());
            let status = session.status();
            let send = |from: IpAddr, hops: u8, packet: Packet| {
                lab.at_peer(|| {
                    let socket = UdpSocket::bind((from, 0)).unwrap();
                    match from {
                        IpAddr::V4(_) => socket.set_ttl(hops.into()).unwrap(),
                        IpAddr::V6(_) => SockRef::from(&socket).set_unicast_hops_v6(hops.into()).unwrap(),
                    }
                    socket.send_to(&packet.encode(), (ours, PORT)).unwrap();
                });
            };
            let down = Packet {
                diagnostic: Diagnostic::NONE,
                state: State::Down,
                poll: false,
                last: false,
                independent: false,
                demand: false,
                multiplier: 3,
                sender: 7,
                receiver: 0,
                transmit: 1000 * MS,
                receive: 1000 * MS,
            };
            // The listener may not be there yet, which is no reason to be deaf later.
            tokio::time::sleep(200 * MS).await;
            for (what, from, hops, packet) in [
                ("forwarded", theirs, 254, down),
                ("of another", other, 255, down),
                ("for another session", theirs, 255, Packet { receiver: 99, ..down }),
            ] {
                send(from, hops, packet);
                tokio::time::sleep(100 * MS).await;
                assert_eq!(status.borrow().state, State::Down, "{what}, from {from}");
            }
            send(theirs, 255, down);
            crate::until("the peer to be heard", || status.borrow().state == State::Init).await;
        }
    });
}

/// The processor time that the BFD thread of this test's own namespace has had.
fn thread_time() -> Duration {
    let namespace = |thread: &Path| std::fs::read_link(thread.join("ns/net")).ok();
    let ours = namespace(Path::new("/proc/thread-self"));
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|thread| thread.path());
    let ticks = threads.filter(|thread| namespace(thread) == ours).filter_map(|thread| {
        let stat = std::fs::read_to_string(thread.join("stat")).ok()?;
        let (head, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let time = |index: usize| fields[index].parse::<u64>().ok();
        head.ends_with("(bfd").then_some(time(11)? + time(12)?)
    });
    // USER_HZ is 100 everywhere.
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// A thousand sessions at 50 ms, both ends here: all come up and stay, on a part of one processor. The interval is what costs; a high
/// multiplier is for what else the machine may do.
#[test]
fn a_thousand_sessions() {
    const SESSIONS: u16 = 1000;
    const TIME: Duration = Duration::from_secs(5);
    in_lab(&[], |lab| async move {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
        // All of a range is local to one side, and behind the link for the other.
        lab.route_ranges(["10.1.0.0/16", "10.2.0.0/16"]);
        let side = |ours: u8, theirs: u8| {
            move || {
                let bfd = Bfd::start().unwrap();
                let open = |number: u16| {
                    let [high, low] = number.to_be_bytes();
                    let address = |range: u8| IpAddr::from([10, range, high, low]);
                    let peer = BfdPeer { local_address: Some(address(ours)), ..one_hop(address(theirs)) };
                    bfd.open(peer, SessionConfig { multiplier: 40, ..config() }, Vec::new())
                };
                (1..=SESSIONS).map(open).collect::<Vec<_>>()
            }
        };
        let sessions = [side(1, 2)(), lab.at_peer(side(2, 1))];
        let statuses: Vec<_> = sessions.iter().flatten().map(BfdSession::status).collect();
        let all =
            |wanted: &dyn Fn(&BfdStatus) -> bool| statuses.iter().all(|status| wanted(&status.borrow()));
        crate::until("all sessions", || all(&|status| status.detection_time == 2000 * MS)).await;
        let (before, began) = (thread_time(), Instant::now());
        tokio::time::sleep(TIME).await;
        let share = (thread_time() - before).div_duration_f64(began.elapsed());
        eprintln!("{SESSIONS} sessions at 50 ms: {:.1} % of a processor", share * 100.0);
        assert!(all(&|status| (status.ups, status.failures) == (1, 0)));
        assert!(share < 0.9, "{share}");
    });
}
