//! From a peer's session to a real kernel's table, while the agent's loop stands still.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use sheave::announce::{Announcer, Journal};
use sheave::config::Config;
use sheave::tables::follow_links;
use sheave_bgp::{Attributes, PeerConfig, RouteChanges, Speaker, SpeakerConfig};
use tokio::runtime::{self, Handle};

use super::LIMIT;
use super::import::{MAIN, V4, V6, counts, shown};
use super::namespace::{address, in_namespace, shell};

const ASN: u32 = 64512;
const PEER_ASN: u32 = 65001;

/// A router with a route of each family, which leads by other addresses than its session is with: those are of this host.
async fn router(sessions: &Handle, last: u8, v4: &str, v6: &str) -> (SocketAddr, Speaker) {
    let own = IpAddr::from([127, 0, 0, last]);
    let own = TcpListener::bind((own, 0)).unwrap().local_addr().unwrap();
    let config = SpeakerConfig {
        asn: PEER_ASN,
        router_id: [10, 0, 0, last].into(),
        listen: Some(vec![own]),
        graceful_restart: None,
        restarting: false,
    };
    let speaker = sessions.spawn(Speaker::start(config)).await.unwrap().unwrap();
    speaker.set_peers(vec![PeerConfig {
        passive: true,
        next_hop_v4: Some(v4.parse().unwrap()),
        next_hop_v6: Some(v6.parse().unwrap()),
        ..PeerConfig::new([127, 0, 0, 1].into(), ASN)
    }]);
    let announce = [V4, V6].map(|prefix| (prefix.parse().unwrap(), Attributes::default())).into();
    speaker.update(RouteChanges { announce, withdraw: Vec::new() });
    (own, speaker)
}

/// The gateways of the routes to both prefixes.
fn gateways() -> String {
    let shown = [shown(V4), shown(V6)].join(" ");
    let words: Vec<&str> = shown.split(' ').collect();
    let mut gateways: Vec<&str> =
        words.windows(2).filter(|pair| pair[0] == "via").map(|pair| pair[1]).collect();
    gateways.sort_unstable();
    gateways.join(" ")
}

/// Waits without giving back the thread.
fn until(what: &str, expected: &str) {
    let end = Instant::now() + LIMIT;
    while gateways() != expected {
        assert!(Instant::now() < end, "{what}: {}, not {expected}", gateways());
        thread::sleep(Duration::from_millis(5));
    }
}

/// What peers announce, a session that ends and a net that is on no link any more are followed while the loop's thread is kept, as by a
/// dataplane that takes long. What is left at the end is taken over by the next one, and goes with that, as they are configured.
#[test]
fn the_kernel_follows_peers_while_the_loop_is_busy() {
    in_namespace("importer", async |node| {
        for line in [
            "link add up1 type dummy",
            "link set up1 up",
            "addr add 10.0.1.11/24 dev up1",
            "addr add fd00:11::11/64 dev up1 nodad",
        ] {
            shell("ip", line);
        }
        let sessions = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (first, first_speaker) = router(sessions.handle(), 2, "10.0.0.2", "fd00:10::2").await;
        let (second, second_speaker) = router(sessions.handle(), 3, "10.0.0.3", "fd00:10::3").await;
        let (third, third_speaker) = router(sessions.handle(), 4, "10.0.1.4", "fd00:11::4").await;
        let peers = [first, second, third].map(|at| {
            let (address, port) = (at.ip(), at.port());
            format!(
                "{{address: {address}, port: {port}, asn: {PEER_ASN}, localAddress: 127.0.0.1, \
                 import: {{prefixes: [{V4}, \"{V6}\"]}}}}"
            )
        });
        let start = async |on_exit: &str| {
            let text = format!(
                "router: {{asn: {ASN}, listen: {{port: 0}}, gracefulRestart: null, import: {{onExit: {on_exit}}}, peers: [{}]}}",
                peers.join(", ")
            );
            let config = Config::parse(Path::new("sheave.yaml"), &text).unwrap();
            let links = follow_links(sessions.handle()).unwrap();
            let journal = Journal::open(&node.settings.state_directory).0;
            let mut announcer = Announcer::new(sessions.handle().clone(), None, journal);
            announcer.import_to(MAIN, links).unwrap();
            let addresses = [address("10.0.0.11"), address("fd00:10::11")];
            announcer.configure(&config.router, "node-a", &addresses).await;
            announcer
        };

        let announcer = start("keep").await;
        until("all paths", "10.0.0.2 10.0.0.3 10.0.1.4 fd00:10::2 fd00:10::3 fd00:11::4");
        drop(first_speaker);
        until("a session less", "10.0.0.3 10.0.1.4 fd00:10::3 fd00:11::4");
        shell("ip", "addr del 10.0.1.11/24 dev up1");
        shell("ip", "addr del fd00:11::11/64 dev up1");
        let left = "10.0.0.3 fd00:10::3";
        until("a net less", left);
        announcer.stop().await;
        thread::sleep(Duration::from_millis(300));
        until("all of them kept", left);

        let announcer = start("remove").await;
        let end = Instant::now() + LIMIT;
        while announcer.imported() != counts(2, 0) {
            assert_eq!(gateways(), left, "taken over");
            assert!(Instant::now() < end, "{:?}, {:?}", announcer.imported(), announcer.problems());
            thread::sleep(Duration::from_millis(5));
        }
        announcer.stop().await;
        assert_eq!(gateways(), "");
        drop((second_speaker, third_speaker));
        sessions.shutdown_background();
    });
}
