//! The announcer, reconfigured while it runs, against peers on the loopback.
#![cfg(test)]

mod builders;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use sheave::announce::{Announcer, Counts, Journal};
use sheave::cluster::manifest::Manifests;
use sheave::config::{Config, Router};
use sheave::plan::{AnnouncementKind, NodePlan, Planner};
use sheave_apiserver::{Options, Server};
use sheave_bgp::session::State;
use sheave_bgp::{Password, PeerConfig, PeerStatus, Speaker, SpeakerConfig};
use tokio::runtime::Handle;

use self::builders::mk_announcement;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);
const ASN: u32 = 64512;
const PEER_ASN: u32 = 65001;

/// A peer at an address of the loopback that waits for the announcer.
struct Peer {
    address: IpAddr,
    port: u16,
    speaker: Speaker,
}

impl Peer {
    async fn start(last: u8, password: Option<&str>) -> Self {
        let address = IpAddr::from([127, 0, 0, last]);
        let port = free_port(address);
        let config = SpeakerConfig {
            asn: PEER_ASN,
            router_id: [10, 0, 0, last].into(),
            listen: Some(vec![SocketAddr::new(address, port)]),
            graceful_restart: None,
            restarting: false,
        };
        let peer = Self { address, port, speaker: Speaker::start(config).await.unwrap() };
        peer.expect(password);
        peer
    }

    /// Takes the announcer's sessions with that password only.
    fn expect(&self, password: Option<&str>) {
        let ours = PeerConfig::new([127, 0, 0, 1].into(), ASN);
        let password = password.map(|text| Password::new(text.as_bytes()).unwrap());
        self.speaker.set_peers(vec![PeerConfig { passive: true, password, ..ours }]);
    }

    /// It, in the announcer's config.
    fn written(&self, more: &str) -> String {
        let Self { address, port, .. } = self;
        format!("{{address: {address}, asn: {PEER_ASN}, port: {port}, localAddress: 127.0.0.1{more}}}")
    }

    fn prefixes_received(&self) -> u64 {
        self.speaker.status().peers[0].counters.prefixes_received
    }
}

fn free_port(address: IpAddr) -> u16 {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

/// Without graceful restart, so that what ends is seen at once.
fn router(peers: &[String], more: &str) -> Router {
    let peers = peers.join(", ");
    let text =
        format!("router: {{asn: {ASN}, listen: {{port: 0}}, gracefulRestart: null, peers: [{peers}]{more}}}");
    Config::parse(Path::new("sheave.yaml"), &text).unwrap().router
}

/// A plan with one prefix that needs nothing of the kernel.
fn plan() -> NodePlan {
    let prefix: IpNet = "10.244.1.0/24".parse().unwrap();
    let mut plan = NodePlan::new("node-a");
    plan.announcements.insert(prefix, mk_announcement(prefix, AnnouncementKind::PodCIDR));
    plan
}

/// An announcer as the agent's start makes it, with [`plan`]'s prefix.
async fn announcer(router: &Router) -> Announcer {
    let mut announcer = Announcer::new(Handle::current(), None, journal());
    configure(&mut announcer, router).await;
    announcer.update(&plan(), |_| true, None).await;
    announcer.complete().await;
    announcer
}

fn journal() -> Journal {
    Journal::open(tempfile::tempdir().unwrap().path()).0
}

async fn configure(announcer: &mut Announcer, router: &Router) {
    announcer.configure(router, "node-a", &[[10, 0, 0, 1].into()]).await;
}

fn session(announcer: &Announcer, peer: &Peer) -> Option<PeerStatus> {
    announcer.status()?.peers.into_iter().find(|status| status.address == peer.address)
}

/// How many prefixes of [`plan`] are meant for somebody, and how many of them are announced.
fn counts(announcer: &Announcer) -> (usize, usize) {
    let Counts { planned, announced } = announcer.counts(&plan());
    (planned, announced)
}

/// Names, ASNs and reasons of those that are configured and that the speaker does not know of.
fn missing(announcer: &Announcer) -> Vec<(&str, u32, &str)> {
    announcer.missing().map(|peer| (&*peer.name, peer.asn, &*peer.why)).collect()
}

fn is_up(announcer: &Announcer, peer: &Peer) -> bool {
    session(announcer, peer).is_some_and(|session| session.state == State::Established)
}

/// Waits, ticking as the agent does.
async fn until(announcer: &mut Announcer, what: &str, condition: impl Fn(&Announcer) -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !condition(announcer) {
            announcer.tick().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for: {what}; {:?}", announcer.problems());
}

#[tokio::test]
async fn peers_come_and_go_and_the_others_keep_their_sessions() {
    let (first, second) = (Peer::start(2, None).await, Peer::start(3, None).await);
    let mut announcer = announcer(&router(&[], "")).await;
    assert!(announcer.status().is_none(), "no peers, no speaker");

    configure(&mut announcer, &router(&[first.written("")], "")).await;
    until(&mut announcer, "the first prefix", |_| first.prefixes_received() == 1).await;
    let counters = |announcer: &Announcer| session(announcer, &first).unwrap().counters.established;
    let since = session(&announcer, &first).unwrap().since;

    configure(&mut announcer, &router(&[first.written(""), second.written("")], "")).await;
    until(&mut announcer, "the second prefix", |_| second.prefixes_received() == 1).await;
    configure(&mut announcer, &router(&[first.written(""), second.written(", families: [ipv4]")], "")).await;
    until(&mut announcer, "the second prefix again", |_| second.prefixes_received() == 2).await;
    // These take no other session.
    let live = ", families: [ipv4], holdTime: 30s, delayOpen: 1s, sendHoldTime: 1m, passive: true, nextHop: 127.0.0.7";
    let established = |announcer: &Announcer| session(announcer, &second).unwrap().counters.established;
    let before = established(&announcer);
    configure(&mut announcer, &router(&[first.written(""), second.written(live)], "")).await;
    until(&mut announcer, "the second prefix with another next hop", |_| second.prefixes_received() == 3)
        .await;
    assert_eq!(established(&announcer), before);
    configure(&mut announcer, &router(&[first.written("")], "")).await;
    until(&mut announcer, "the second to go", |announcer| session(announcer, &second).is_none()).await;
    // An automatic router id outlives the address it was taken from.
    let moved = router(&[first.written("")], "");
    announcer.configure(&moved, "node-a", &[[10, 0, 0, 2].into()]).await;
    announcer.configure(&moved, "node-a", &[]).await;
    assert_eq!((session(&announcer, &first).unwrap().since, counters(&announcer)), (since, 1));

    // What all sessions share: they begin anew, and everything is announced again.
    configure(&mut announcer, &router(&[first.written("")], ", routerId: 10.0.0.99")).await;
    until(&mut announcer, "the first prefix again", |_| first.prefixes_received() == 2).await;
    assert_eq!(announcer.status().unwrap().router_id.octets(), [10, 0, 0, 99]);

    configure(&mut announcer, &router(&[], ", shutdownMessage: moved to rack 8")).await;
    assert!(announcer.status().is_none());
    assert_eq!(announcer.problems(), [""; 0]);
    let why = |_: &Announcer| {
        first.speaker.status().peers[0].last_error.clone().map(|error| error.reason.to_string())
    };
    until(&mut announcer, "the message", |announcer| {
        why(announcer).is_some_and(|why| why.contains("moved to rack 8"))
    })
    .await;
    announcer.stop().await;
}

/// Peers with export policies of their own,: each is told what its policy lets pass, and changes end no
/// session.
#[tokio::test]
async fn peers_are_told_by_their_export_policies() {
    let prefix: IpNet = "10.244.1.0/24".parse().unwrap();
    let (first, second) = (Peer::start(2, None).await, Peer::start(3, None).await);
    let peers = |first_export: &str, second_export: &str| {
        let of = |peer: &Peer, export: &str| peer.written(&format!(", export: {export}"));
        router(&[of(&first, first_export), of(&second, second_export)], "")
    };
    let mut announcer = announcer(&peers("all", "{kinds: [LoadBalancerIP]}")).await;
    until(&mut announcer, "the prefix and both sessions", |announcer| {
        first.prefixes_received() == 1 && is_up(announcer, &second)
    })
    .await;
    assert_eq!(announcer.withheld_from(&plan(), &prefix), ["127.0.0.3"]);

    configure(&mut announcer, &peers("{prefixes: [10.0.0.0/8]}", "{kinds: [PodCIDR], med: 7}")).await;
    until(&mut announcer, "the prefix to move", |_| {
        let withdrawn = first.speaker.status().peers[0].counters.prefixes_withdrawn;
        withdrawn == 1 && second.prefixes_received() == 1
    })
    .await;
    assert_eq!(announcer.withheld_from(&plan(), &prefix), ["127.0.0.2"]);
    assert!(announcer.announces(&plan(), &prefix));
    assert_eq!(counts(&announcer), (1, 1));

    configure(&mut announcer, &peers("none", "none")).await;
    until(&mut announcer, "the prefix to go", |_| {
        second.speaker.status().peers[0].counters.prefixes_withdrawn == 1
    })
    .await;
    assert!(!announcer.announces(&plan(), &prefix), "there is nobody to tell");
    assert_eq!(counts(&announcer), (0, 0), "and nobody is meant to be told");
    for peer in [&first, &second] {
        assert_eq!(session(&announcer, peer).unwrap().counters.established, 1);
    }
    announcer.stop().await;
}

/// What an aggregate stands for is announced, by it; what no export policy lets pass is nobody's loss.
#[tokio::test]
async fn what_an_aggregate_stands_for_counts_as_announced() {
    let peer = Peer::start(22, None).await;
    let text = "{announce: {aggregate: [192.0.2.0/24]}, services: {externalIPs: {allow: [192.0.2.0/24]}}}";
    let mut planner = Planner::new("node-a", Config::parse(Path::new("sheave.yaml"), text).unwrap());
    planner.handle(Manifests::new("examples/quickstart/manifests").scan().unwrap());
    let plan = planner.plan();
    let within: IpNet = "192.0.2.0/24".parse().unwrap();
    let unheld: IpNet = "192.0.2.80/32".parse().unwrap();
    let planned = plan.announcements.len();
    let vips =
        plan.announcements.keys().filter(|prefix| **prefix != within && within.contains(*prefix)).count();
    assert!(plan.announcements.contains_key(&within) && plan.announcements.contains_key(&unheld) && vips > 1);

    let mut announcer = announcer(&router(&[], "")).await;
    let of = |export: &str| router(&[peer.written(&format!(", export: {export}"))], "");
    // Name, export policy, what the kernel does not hold, how many are meant for the peer, how many of them are announced.
    for (name, export, missing, meant, announced) in [
        ("all", "all", None, planned, planned),
        (
            "one VIP is not held, nor can the aggregate be announced",
            "all",
            Some(unheld),
            planned,
            planned - 2,
        ),
        ("nothing is for the peer", "none", Some(unheld), 0, 0),
        (
            "what is not held is not for the peer",
            "{prefixes: [{prefix: \"2001:db8::/32\", le: 128}]}",
            Some(unheld),
            planned - vips - 1,
            planned - vips - 1,
        ),
    ] {
        configure(&mut announcer, &of(export)).await;
        announcer.update(plan, |announcement| Some(announcement.prefix) != missing, None).await;
        let Counts { planned, announced: told } = announcer.counts(plan);
        assert_eq!((planned, told), (meant, announced), "{name}");
    }
    announcer.stop().await;
}

/// A peer that takes in nothing from far away, and one that connects by itself.
#[tokio::test]
async fn what_a_session_is_told_to_be_like() {
    let (near, active) = (Peer::start(16, None).await, Peer::start(17, None).await);
    let ours = PeerConfig { passive: true, ..PeerConfig::new([127, 0, 0, 1].into(), ASN) };
    near.speaker.set_peers(vec![PeerConfig { ttl_security: Some(1), ..ours.clone() }]);
    let port = free_port(ours.address);
    let local_address = Some(active.address);
    active.speaker.set_peers(vec![PeerConfig { passive: false, port, local_address, ..ours }]);

    let mut router = router(&[near.written(", ttlSecurity: 1"), active.written(", passive: true")], "");
    router.listen.port = port;
    let mut announcer = announcer(&router).await;
    until(&mut announcer, "both sessions", |announcer| is_up(announcer, &near) && is_up(announcer, &active))
        .await;
    assert_eq!(session(&announcer, &active).unwrap().session.unwrap().local.port(), port);

    // Live, and its own session alone.
    let since = session(&announcer, &active).unwrap().since;
    let mut changed = router.clone();
    changed.peers[0].ttl_security = None;
    configure(&mut announcer, &changed).await;
    until(&mut announcer, "the session to end", |announcer| !is_up(announcer, &near)).await;
    configure(&mut announcer, &router).await;
    until(&mut announcer, "the session again", |announcer| is_up(announcer, &near)).await;
    assert_eq!(session(&announcer, &active).unwrap().since, since);
    announcer.stop().await;
}

/// Stations come and go without a touch to sessions; one alone has a speaker run, and makes nothing announced.
#[tokio::test]
async fn bmp_stations() {
    let station = TcpListener::bind("127.0.0.1:0").unwrap();
    let bmp = format!(", bmp: [{{address: 127.0.0.1, port: {}}}]", station.local_addr().unwrap().port());
    let connected =
        |announcer: &Announcer| announcer.bmp_stations().iter().any(|station| station.connected.is_some());

    let mut announcer = announcer(&router(&[], &bmp)).await;
    until(&mut announcer, "the station", connected).await;
    assert_eq!(counts(&announcer), (0, 0), "there is no peer");

    let peer = Peer::start(2, None).await;
    configure(&mut announcer, &router(&[peer.written("")], &bmp)).await;
    until(&mut announcer, "the session", |announcer| is_up(announcer, &peer)).await;
    assert_eq!(counts(&announcer), (1, 1));
    assert_eq!(announcer.bmp_stations()[0].counters.connections, 1, "it was not connected anew");

    let since = session(&announcer, &peer).unwrap().since;
    configure(&mut announcer, &router(&[peer.written("")], "")).await;
    assert!(announcer.bmp_stations().is_empty());
    configure(&mut announcer, &router(&[peer.written("")], &bmp)).await;
    until(&mut announcer, "the station again", connected).await;
    assert_eq!(session(&announcer, &peer).unwrap().since, since, "the session went on");
    announcer.stop().await;
}

/// Peers that connect from a range: with the range's password, which is read from a file and changes live.
#[tokio::test]
async fn ranges_of_peers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    let ranges = format!("[{{prefix: 127.0.0.0/27, asn: {PEER_ASN}, passwordFile: {}}}]", path.display());
    let config = format!("router: {{asn: {ASN}, dynamicPeers: {ranges}}}");
    let config = Config::parse(Path::new("sheave.yaml"), &config).unwrap();
    let mut router = router(&[], "");
    router.dynamic_peers = config.router.dynamic_peers;
    router.listen.port = free_port(IpAddr::from([127, 0, 0, 1]));
    let mut announcer = announcer(&router).await;
    until(&mut announcer, "the problem", |announcer| {
        let problems = announcer.problems();
        problems.first().is_some_and(|problem| {
            problem.starts_with("peers of 127.0.0.0/27: no session without its password")
        })
    })
    .await;
    let ranges = |announcer: &Announcer| -> Vec<(String, usize, usize)> {
        let ranges = announcer.missing_ranges().into_iter();
        ranges.map(|range| (range.prefix.to_string(), range.limit, range.peers)).collect()
    };
    assert_eq!(ranges(&announcer), [("127.0.0.0/27".to_owned(), 100, 0)]);

    let peer = Peer::start(20, None).await;
    let connect = |password: &str| {
        let password = Password::new(password.as_bytes()).ok();
        let us = PeerConfig::new([127, 0, 0, 1].into(), ASN);
        let (port, local_address) = (router.listen.port, Some(peer.address));
        peer.speaker.set_peers(vec![PeerConfig { port, local_address, password, ..us }]);
    };
    connect("first");
    std::fs::write(&path, "first\n").unwrap();
    until(&mut announcer, "the session", |announcer| is_up(announcer, &peer)).await;
    assert_eq!(session(&announcer, &peer).unwrap().range, "127.0.0.0/27".parse().ok());
    assert_eq!(ranges(&announcer), [], "the speaker has it");
    until(&mut announcer, "the prefix", |_| peer.prefixes_received() == 1).await;

    std::fs::write(&path, "second\n").unwrap();
    until(&mut announcer, "the session to end", |announcer| !is_up(announcer, &peer)).await;
    connect("second");
    until(&mut announcer, "the session again", |announcer| is_up(announcer, &peer)).await;

    router.dynamic_peers.clear();
    configure(&mut announcer, &router).await;
    assert!(announcer.status().is_none(), "no peers, no speaker");
    announcer.stop().await;
}

#[tokio::test]
async fn passwords_come_from_files_and_change_live() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    let (open, signed) = (Peer::start(4, None).await, Peer::start(5, Some("hunter2")).await);
    let more = format!(", passwordFile: {}", path.display());
    let router = router(&[open.written(""), signed.written(&more)], "");
    let mut announcer = announcer(&router).await;

    // Without the file: no session at all, and it is said why.
    until(&mut announcer, "the open session", |announcer| is_up(announcer, &open)).await;
    until(&mut announcer, "the problem", |announcer| !announcer.problems().is_empty()).await;
    let problem = format!(
        "peer 127.0.0.5: no session without its password: file {}: No such file or directory (os error 2); give the \
         path of a readable file",
        path.display()
    );
    assert_eq!(announcer.problems(), [problem]);
    assert_eq!(session(&announcer, &signed), None);
    assert_eq!(missing(&announcer), [("127.0.0.5", PEER_ASN, "no session without its password")]);
    let since = session(&announcer, &open).unwrap().since;

    std::fs::write(&path, "hunter2\n").unwrap();
    until(&mut announcer, "the signed session", |announcer| is_up(announcer, &signed)).await;
    assert_eq!(announcer.problems(), [""; 0]);
    assert_eq!(missing(&announcer), []);

    // Changed on both sides.
    signed.expect(Some("correct horse"));
    std::fs::write(&path, "correct horse").unwrap();
    until(&mut announcer, "the signed session again", |announcer| {
        is_up(announcer, &signed) && signed.speaker.status().peers[0].state == State::Established
    })
    .await;

    // Gone: the last one stays.
    std::fs::remove_file(&path).unwrap();
    until(&mut announcer, "the problem", |announcer| !announcer.problems().is_empty()).await;
    assert!(
        announcer.problems()[0].ends_with("the one read last stays in force"),
        "{:?}",
        announcer.problems()
    );
    assert!(is_up(&announcer, &signed));
    assert_eq!(session(&announcer, &open).unwrap().since, since, "untouched all the while");

    let printed = format!("{:?} {:?} {router:?}", announcer.status(), announcer.problems());
    assert!(!printed.contains("hunter2") && !printed.contains("correct horse"), "{printed}");
    announcer.stop().await;
}

/// There is a session without the key of BFD, but no BFD; and it comes, changes and stays beside the session.
#[tokio::test]
async fn bfd_waits_for_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let peer = Peer::start(21, None).await;
    let more = format!(", bfd: {{keys: [{{id: 7, file: {}}}]}}", path.display());
    let router = router(&[peer.written(&more)], "");
    let mut announcer = announcer(&router).await;
    until(&mut announcer, "the session", |announcer| is_up(announcer, &peer)).await;
    // Another test of this machine may have the port, which is told as well.
    let of_the_key = |announcer: &Announcer| {
        announcer.problems().into_iter().filter(|problem| problem.contains("BFD key")).collect::<Vec<_>>()
    };
    until(&mut announcer, "the problem", |announcer| !of_the_key(announcer).is_empty()).await;
    let problem = format!(
        "peer 127.0.0.21: BFD key 7 of file {}: No such file or directory (os error 2); give the path of a readable file; no BFD \
         without it",
        path.display()
    );
    assert_eq!(of_the_key(&announcer), [problem]);
    let bfd = |announcer: &Announcer| session(announcer, &peer).unwrap().bfd;
    assert_eq!(bfd(&announcer), None);
    std::fs::write(&path, "hunter2\n").unwrap();
    until(&mut announcer, "BFD", |announcer| bfd(announcer).is_some()).await;
    assert_eq!(of_the_key(&announcer), [""; 0]);
    std::fs::write(&path, "longer than any key of BFD can be").unwrap();
    until(&mut announcer, "the problem", |announcer| !of_the_key(announcer).is_empty()).await;
    assert!(bfd(&announcer).is_some(), "with the key before");
    assert_eq!(session(&announcer, &peer).unwrap().counters.established, 1);
    let printed = format!("{:?} {:?} {router:?}", announcer.status(), announcer.problems());
    assert!(!printed.contains("hunter2") && !printed.contains("longer than"), "{printed}");
    announcer.stop().await;
}

#[tokio::test]
async fn passwords_come_from_secrets() {
    let server = Server::start(Options::default()).unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let signed = Peer::start(8, Some("hunter2")).await;
    let state = tempfile::tempdir().unwrap();
    let journal = Journal::open(state.path()).0;
    let mut announcer = Announcer::new(Handle::current(), Some(client), journal);

    configure(&mut announcer, &router(&[signed.written(", passwordSecret: {name: sheave-bgp}")], "")).await;
    until(&mut announcer, "the problem", |announcer| !announcer.problems().is_empty()).await;
    assert_eq!(
        announcer.problems(),
        [
            "peer 127.0.0.8: no session without its password: Secret sheave-bgp (key password): there is no such Secret in \
          the agent's namespace: create it"
        ]
    );
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "data": {"rack-7": "aHVudGVyMg=="},
        "metadata": {"name": "sheave-bgp", "namespace": "default"}});
    server.api().apply(secret).unwrap();
    until(&mut announcer, "another problem", |announcer| {
        announcer.problems()[0].ends_with("no such key: add it")
    })
    .await;
    let more = ", passwordSecret: {name: sheave-bgp, key: rack-7}";
    configure(&mut announcer, &router(&[signed.written(more)], "")).await;
    until(&mut announcer, "the session", |announcer| is_up(announcer, &signed)).await;
    assert_eq!(announcer.problems(), [""; 0]);
    announcer.stop().await;

    // A restart without the API server: with what was read before.
    let mut announcer = Announcer::new(Handle::current(), None, Journal::open(state.path()).0);
    let wanted = router(&[signed.written(more)], "");
    configure(&mut announcer, &wanted).await;
    assert!(session(&announcer, &signed).is_some());
    until(&mut announcer, "the session again", |announcer| is_up(announcer, &signed)).await;
    until(&mut announcer, "the problem", |announcer| !announcer.problems().is_empty()).await;
    let stays = "there is no API server to ask: use passwordFile; the one read last stays in force";
    assert!(announcer.problems()[0].ends_with(stays), "{:?}", announcer.problems());
    // Nobody asks for it any more: it is forgotten.
    configure(&mut announcer, &router(&[], "")).await;
    announcer.stop().await;
    let mut announcer = Announcer::new(Handle::current(), None, Journal::open(state.path()).0);
    configure(&mut announcer, &wanted).await;
    assert_eq!(session(&announcer, &signed), None);
}

#[tokio::test]
async fn another_source_of_a_password_keeps_the_session() {
    let directory = tempfile::tempdir().unwrap();
    let written = |peer: &Peer, name: &str| {
        peer.written(&format!(", passwordFile: {}", directory.path().join(name).display()))
    };
    for name in ["one", "two"] {
        std::fs::write(directory.path().join(name), "hunter2").unwrap();
    }
    let (open, signed) = (Peer::start(9, None).await, Peer::start(10, Some("hunter2")).await);
    let both = |name: &str| router(&[open.written(""), written(&signed, name)], "");
    let mut announcer = announcer(&both("one")).await;
    until(&mut announcer, "both", |announcer| is_up(announcer, &open) && is_up(announcer, &signed)).await;
    let since = session(&announcer, &signed).unwrap().since;

    // The same password from elsewhere, then a mistake, then the way back.
    for (name, problems) in [("two", 0), ("tow", 1), ("one", 0)] {
        configure(&mut announcer, &both(name)).await;
        assert_eq!(session(&announcer, &signed).map(|session| session.since), Some(since), "{name}");
        until(&mut announcer, "what is wrong", |announcer| announcer.problems().len() == problems).await;
        assert!(
            announcer.problems().iter().all(|problem| problem.ends_with("; the one before stays in force")),
            "{:?}",
            announcer.problems()
        );
        assert_eq!(session(&announcer, &signed).unwrap().since, since, "{name}");
    }

    // Where there was none, nothing is kept: never a session without the password that is asked for.
    let asks = router(&[written(&open, "absent"), written(&signed, "one")], "");
    configure(&mut announcer, &asks).await;
    assert_eq!(session(&announcer, &open), None);
    assert_eq!(session(&announcer, &signed).unwrap().since, since);
    announcer.stop().await;
}

#[tokio::test]
async fn a_file_does_not_wait_for_a_secret() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let client = kube::Client::try_from(kube::Config::new(address.parse().unwrap())).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    let (of_file, of_secret) = (Peer::start(11, Some("hunter2")).await, Peer::start(12, None).await);
    let more = format!(", passwordFile: {}", path.display());
    let peers = [of_file.written(&more), of_secret.written(", passwordSecret: {name: sheave-bgp}")];
    let mut announcer = Announcer::new(Handle::current(), Some(client), journal());
    configure(&mut announcer, &router(&peers, "")).await;
    until(&mut announcer, "the file's problem", |announcer| !announcer.problems().is_empty()).await;
    std::fs::write(&path, "hunter2").unwrap();
    until(&mut announcer, "the session", |announcer| is_up(announcer, &of_file)).await;
    assert_eq!(announcer.problems(), [""; 0], "no word yet of the Secret, which has 10 s");
    announcer.stop().await;
}

#[tokio::test]
async fn a_secret_without_an_api_server_is_a_problem() {
    let peer = Peer::start(6, None).await;
    let router = router(&[peer.written(", passwordSecret: {name: sheave-bgp}")], "");
    let mut announcer = announcer(&router).await;
    until(&mut announcer, "the problem", |announcer| !announcer.problems().is_empty()).await;
    assert_eq!(
        announcer.problems(),
        [
            "peer 127.0.0.6: no session without its password: Secret sheave-bgp (key password): there is no API server to \
          ask: use passwordFile"
        ]
    );
    assert_eq!(session(&announcer, &peer), None);
}

#[tokio::test]
async fn what_keeps_the_speaker_from_starting_is_a_problem_and_tried_again() {
    let peer = Peer::start(7, None).await;
    let mut announcer = Announcer::new(Handle::current(), None, journal());
    announcer.configure(&router(&[peer.written("")], ""), "node-a", &[]).await;
    assert!(announcer.problems()[0].contains("sheave.io/router-id"), "{:?}", announcer.problems());
    // The peer is there, with the reason: whoever watches sessions must not see nothing.
    let is_missing = |announcer: &Announcer, word: &str| matches!(missing(announcer)[..], [("127.0.0.7", PEER_ASN, why)] if why.contains(word));
    assert!(is_missing(&announcer, "sheave.io/router-id"), "{:?}", missing(&announcer));

    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut wanted = router(&[peer.written("")], "");
    wanted.listen.port = port;
    configure(&mut announcer, &wanted).await;
    assert!(announcer.problems()[0].contains("Address already in use"), "{:?}", announcer.problems());
    assert!(is_missing(&announcer, "Address already in use"), "{:?}", missing(&announcer));
    announcer.update(&plan(), |_| true, None).await;
    assert_eq!(counts(&announcer), (1, 0), "meant for the peer, and it cannot be told");
    drop(taken);
    until(&mut announcer, "the session", |announcer| is_up(announcer, &peer)).await;
    assert_eq!(announcer.problems(), [""; 0]);
    assert_eq!((counts(&announcer), missing(&announcer)), ((1, 1), vec![]));

    wanted.asn = None;
    configure(&mut announcer, &wanted).await;
    assert!(announcer.problems()[0].contains("no autonomous system number"), "{:?}", announcer.problems());
    assert!(announcer.status().is_none());
}
