//! BFD with BIRD and FRR.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sheave_bgp::bfd::{Algorithm, Key, SessionConfig, State};
use sheave_bgp::{
    Attributes, Bfd, BfdPeer, BfdStatus, GracefulRestart, ImportPolicy, PeerBfd, PeerConfig, PrefixFilter,
    Shutdown, Speaker, SpeakerConfig,
};
use tokio::sync::watch;

use crate::bird::{BIRD_ASN, PROGRAMS};
use crate::lab::Lab;
use crate::{OUR_ASN, announce, in_lab, only_peer, peer_config, speaker_config, start};

const MS: Duration = Duration::from_millis(1);

fn config() -> SessionConfig {
    SessionConfig { transmit: 50 * MS, receive: 50 * MS, multiplier: 3, passive: false }
}

fn one_hop(address: IpAddr) -> BfdPeer {
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
    let timers = "min rx interval 50 ms; min tx interval 60 ms; idle tx interval 1 s; multiplier 4;"
        .to_owned()
        + authentication;
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
        let mut sessions = kinds().map(|peer| bfd.open(peer, config(), None));
        for session in &sessions {
            let status = session.status();
            until(&lab, "a session", &status, |status| {
                status.state == State::Up && status.detection_time == 240 * MS
            })
            .await;
            assert_eq!(status.borrow().transmit_interval, 50 * MS);
        }
        let up = |answer: &str, interval: &str, timeout: &str| {
            let lines = answer.lines().filter(|line| line.contains(" Up "));
            lines.filter(|line| line.contains(interval) && line.contains(timeout)).count() == 4
        };
        let bird = || lab.birdc("show bfd sessions");
        lab.until("BIRD's sessions", || up(&bird(), "0.060", "0.150"), bird).await;

        for session in &mut sessions {
            session.reconfigure(SessionConfig { transmit: 100 * MS, receive: 200 * MS, ..config() }, None);
        }
        lab.until("other intervals", || up(&bird(), "0.200", "0.300"), bird).await;
        for session in &mut sessions {
            session.reconfigure(config(), None);
        }
        lab.until("intervals as before", || up(&bird(), "0.060", "0.150"), bird).await;

        let quiet = Instant::now();
        lab.freeze(true);
        for session in &sessions {
            until(&lab, "silence to be noticed", &session.status(), BfdStatus::is_failure).await;
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
        assert!(last.status().borrow().state == State::AdminDown);
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
            start_bird(&mut lab, &format!("authentication {name}; password \"secret\" {{ id 7; }};"));
            let bfd = Bfd::start().unwrap();
            let key = |number, secret: &[u8]| Some(Key::new(algorithm, number, secret).unwrap());
            let [right, wrong, other, none] = kinds();
            let up = bfd.open(right, config(), key(7, b"secret"));
            let down = [
                bfd.open(wrong, config(), key(7, b"Secret")),
                bfd.open(other, config(), key(8, b"secret")),
                bfd.open(none, config(), None),
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

/// FRR's `bfdd` learns of interfaces from zebra: both in a process namespace of their own, that ends with them.
fn start_frr(lab: &mut Lab) {
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
                " peer {neighbor}\n  detect-multiplier 4\n  receive-interval 50\n  transmit-interval 60\n exit\n"
            )
        })
        .collect();
    let config = lab.write("bfdd.conf", &format!("bfd\n{peers}exit\n"));
    let empty = lab.write("zebra.conf", "");
    let directory = lab.path("");
    let daemon = |name: &str, config: &str| {
        format!(
            "/usr/lib/frr/{name} --vty_port 0 -f {config} -i {directory}{name}.pid -z {directory}zserv.api --vty_socket \
             {directory} --log stdout"
        )
    };
    let script = format!(
        "chmod 777 {directory}; {} & while ! test -S {directory}zserv.api; do sleep 0.05; done; {} --bfdctl {directory}bfdd.sock & wait",
        daemon("zebra", &empty),
        daemon("bfdd", &config)
    );
    lab.start(&["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", &script]);
}

fn frr(lab: &Lab) -> Vec<serde_json::Value> {
    let directory = lab.path("");
    let answer = lab.ask(&["vtysh", "--vty_socket", &directory, "-d", "bfdd", "-c", "show bfd peers json"]);
    serde_json::from_str(&answer).unwrap_or_default()
}

/// The same with FRR.
#[test]
fn frr_sessions() {
    in_lab(&["../lib/frr/bfdd", "../lib/frr/zebra", "vtysh"], |mut lab| async move {
        start_frr(&mut lab);
        let bfd = Bfd::start().unwrap();
        let mut sessions = kinds().map(|peer| bfd.open(peer, config(), None));
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
            lab.until("what FRR wants", || status.borrow().detection_time == 240 * MS, describe).await;
            assert_eq!((status.borrow().state, status.borrow().ups), (State::Up, 1));
        }
        for session in &mut sessions {
            session.reconfigure(SessionConfig { transmit: 100 * MS, receive: 200 * MS, ..config() }, None);
        }
        lab.until("other intervals", || are(4, &up(100, 200)), || format!("{:#?}", frr(&lab))).await;
        bfd.leave().await;
        let left = |peer: &serde_json::Value| peer["status"] == "down";
        lab.until("the end of all", || are(4, &left), || format!("{:#?}", frr(&lab))).await;
    });
}

/// BIRD with a session that BFD watches, and the speaker.
async fn start_watched(lab: &mut Lab, config: SpeakerConfig) -> Speaker {
    let [ours, birds] = Lab::V4;
    lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "bfd graceful; passive on; hold time 90;");
    let interval = "min rx interval 50 ms; min tx interval 50 ms; multiplier 3;";
    lab.edit_bird(
        "protocol device",
        &format!("protocol bfd {{ interface \"link0\" {{ {interval} }}; }} protocol device"),
    );
    lab.restart();
    watched(config).await
}

async fn watched(speaker: SpeakerConfig) -> Speaker {
    let [_, birds] = Lab::V4;
    let speaker = start(speaker).await;
    let filters =
        ["198.51.100.0/24", "203.0.113.0/24"].map(|prefix| PrefixFilter::exactly(prefix.parse().unwrap()));
    let policy = ImportPolicy { prefixes: filters.to_vec(), max_prefixes: None };
    speaker.set_imports(&BTreeMap::from([(birds, policy)]));
    let bfd = PeerBfd { session: config(), multihop: false, key: None };
    speaker.set_peers(vec![PeerConfig {
        bfd: Some(bfd),
        hold_time: Duration::from_secs(90),
        ..peer_config(birds, BIRD_ASN)
    }]);
    speaker.update(announce(&["192.0.2.1/32"], &Attributes::default()));
    speaker.initial_routes_complete();
    crate::until("a session, and BFD beside it", || {
        let peer = only_peer(&speaker);
        peer.session.is_some()
            && peer.bfd.is_some_and(|bfd| bfd.state == State::Up && bfd.detection_time == 150 * MS)
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
            start_watched(&mut lab, SpeakerConfig { graceful_restart: restart, ..speaker_config(None) })
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

/// A planned restart takes BFD down first, and says so: no failure to BIRD, which keeps the routes. With `bfd on` it would not: to that any end
/// of BFD is one.
#[test]
fn a_restart_is_no_failure() {
    in_lab(PROGRAMS, |mut lab| async move {
        let restart = Some(GracefulRestart { restart_time: Duration::from_secs(120), stale_time: None });
        let config = SpeakerConfig { graceful_restart: restart, ..speaker_config(None) };
        let speaker = start_watched(&mut lab, config.clone()).await;
        let route = "show route 192.0.2.1/32";
        lab.wait_for(route, &["192.0.2.1/32"]).await;
        speaker.shutdown(Shutdown::GracefulRestart).await;
        // Longer than BFD takes to notice.
        let gone = Instant::now();
        while gone.elapsed() < 1000 * MS {
            assert!(
                lab.birdc(route).contains("192.0.2.1/32"),
                "after {:?}: {}",
                gone.elapsed(),
                lab.read("log")
            );
            tokio::time::sleep(20 * MS).await;
        }
        let speaker = watched(SpeakerConfig { restarting: true, ..config }).await;
        assert!(lab.birdc(route).contains("192.0.2.1/32"), "{}", lab.read("log"));
        speaker.shutdown(Shutdown::Cease).await;
    });
}
