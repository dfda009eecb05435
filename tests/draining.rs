//! What a peer is told on the wire while a node drains, comes back, and is restarted in between.
#![cfg(test)]

mod builders;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave::announce::{Announcer, Journal};
use sheave::config::Config;
use sheave::drain::{Drain, Record, Seen};
use sheave::plan::{Announcement, AnnouncementKind, NodePlan};
use sheave_bgp::wire::{Capability, Context, Message, Open, Update, frame};
use sheave_bgp::{Community, Families, Family};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::timeout;

use self::builders::mk_announcement;

const ASN: u32 = 64512;
const LIMIT: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(5);

/// The other side of a session, played by the test.
struct Peer {
    asn: u32,
    listener: TcpListener,
    stream: Option<TcpStream>,
    input: Vec<u8>,
}

impl Peer {
    async fn listen(asn: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { asn, listener, stream: None, input: Vec::new() }
    }

    fn context(&self) -> Context {
        let ibgp = self.asn == ASN;
        Context { four_octet_asn: true, ibgp, extended_messages: false, add_path: Families::NONE }
    }

    /// Takes a connection as far as Established.
    async fn accept(&mut self) {
        self.input.clear();
        self.stream = Some(timeout(LIMIT, self.listener.accept()).await.unwrap().unwrap().0);
        assert!(matches!(self.next().await, Some(Message::Open(_))));
        let mut capabilities: Vec<Capability> =
            Family::ALL.into_iter().map(Capability::multiprotocol).collect();
        capabilities.push(Capability::FourOctetAsn(self.asn));
        let my_as = self.asn.try_into().unwrap();
        self.send(&Message::Open(Open {
            my_as,
            hold_time: 90,
            router_id: [10, 0, 0, 9].into(),
            capabilities,
        }))
        .await;
        self.send(&Message::Keepalive).await;
        assert_eq!(self.next().await, Some(Message::Keepalive));
    }

    async fn send(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        message.encode(self.context(), &mut bytes).unwrap();
        self.stream.as_mut().unwrap().write_all(&bytes).await.unwrap();
    }

    /// The next message; `None` where the other side has closed.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(length) = frame(&self.input).unwrap() {
                let message = Message::decode(&self.input[..length], self.context()).unwrap();
                self.input.drain(..length);
                return Some(message);
            }
            let read = self.stream.as_mut().unwrap().read_buf(&mut self.input);
            if timeout(LIMIT, read).await.expect("a message in time").unwrap() == 0 {
                return None;
            }
        }
    }

    /// What comes until all these have been told of, in words, keepalives left out: `announce PREFIX` with what it goes with, `withdraw PREFIX`.
    async fn told(&mut self, count: usize) -> BTreeSet<String> {
        let mut told = BTreeSet::new();
        while told.len() < count {
            match self.next().await {
                Some(Message::Update(update)) => told.extend(words(&update)),
                Some(Message::Keepalive) => {}
                // A NOTIFICATION among others.
                other => panic!("{other:?}, after {told:?}"),
            }
        }
        told
    }
}

fn words(update: &Update) -> Vec<String> {
    if update.end_of_rib().is_some() {
        return vec![format!("end of {:?}", update.end_of_rib())];
    }
    let leaves = update.attributes.communities.contains(&Community::GRACEFUL_SHUTDOWN);
    let leaves = if leaves { " graceful-shutdown" } else { "" };
    let local_pref =
        update.attributes.local_pref.map(|value| format!(" LOCAL_PREF {value}")).unwrap_or_default();
    let announced = update.reachable().map(|nlri| format!("announce {}{leaves}{local_pref}", nlri.prefix));
    announced.chain(update.unreachable().map(|nlri| format!("withdraw {}", nlri.prefix))).collect()
}

fn announcement(prefix: &str, kind: AnnouncementKind) -> Announcement {
    Announcement { local_pref: Some(200), ..mk_announcement(prefix.parse().unwrap(), kind) }
}

/// Two VIPs, a pod CIDR and a route of a kernel table.
fn plan() -> NodePlan {
    let mut plan = NodePlan::new("node-a");
    for (prefix, kind) in [
        ("192.0.2.80/32", AnnouncementKind::LoadBalancerIP),
        ("2001:db8:2::80/128", AnnouncementKind::ExternalIP),
        ("10.244.1.0/24", AnnouncementKind::PodCIDR),
        ("10.250.1.0/24", AnnouncementKind::Kernel),
    ] {
        plan.announcements.insert(prefix.parse().unwrap(), announcement(prefix, kind));
    }
    plan
}

async fn announcer(directory: &Path, peer: SocketAddr, asn: u32) -> Announcer {
    let text = format!(
        "router: {{asn: {ASN}, routerId: 10.0.0.1, listen: {{port: 0}}, peers: \
         [{{address: {}, port: {}, asn: {asn}, localAddress: 127.0.0.1}}]}}",
        peer.ip(),
        peer.port()
    );
    let config = Config::parse(Path::new("sheave.yaml"), &text).unwrap();
    let mut announcer = Announcer::new(Handle::current(), None, Journal::open(directory).0);
    let addresses = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    announcer.configure(&config.router, "node-a", &addresses).await;
    announcer
}

/// Goes a step, as the agent's loop does, at that second.
async fn step(drain: &mut Drain, announcer: &mut Announcer, kept: &[&str], asked: bool, now: Instant) {
    let kept: BTreeMap<IpNet, bool> = kept.iter().map(|prefix| (prefix.parse().unwrap(), true)).collect();
    let connections = Some((0, now));
    let seen = Seen { asked, whole: true, alone: &|_| kept.clone(), looks: true, connections };
    drain.step(&seen, now);
    announcer.stand(drain.stance()).await;
    announcer.update(&plan(), |_| true, None).await;
}

fn set(told: &[&str]) -> BTreeSet<String> {
    told.iter().copied().map(str::to_owned).collect()
}

#[tokio::test]
async fn community_first_then_withdrawal_and_back_over_one_session() {
    for (asn, pref, least) in [(65001, "", ""), (ASN, " LOCAL_PREF 200", " LOCAL_PREF 0")] {
        let directory = tempfile::tempdir().unwrap();
        let mut peer = Peer::listen(asn).await;
        let address = peer.listener.local_addr().unwrap();
        let mut announcer = announcer(directory.path(), address, asn).await;
        announcer.update(&plan(), |_| true, None).await;
        announcer.complete().await;
        peer.accept().await;
        let with = |what: &str, prefix: &str, more: &str| format!("{what} {prefix}{more}");
        let (v4, v6) = ("192.0.2.80/32", "2001:db8:2::80/128");
        let told = peer.told(6).await;
        for prefix in ["10.244.1.0/24", "10.250.1.0/24", v4, v6] {
            assert!(told.contains(&with("announce", prefix, pref)), "AS {asn}: {told:?}");
        }

        let start = Instant::now();
        let mut drain = Drain::resume(&Record::default(), WAIT, WAIT, start);
        let leaving = format!(" graceful-shutdown{least}");
        let last_resort = [v4, v6].map(|prefix| with("announce", prefix, &leaving));
        let as_ever = [v4, v6].map(|prefix| with("announce", prefix, pref));
        step(&mut drain, &mut announcer, &[], true, start).await;
        assert_eq!(peer.told(2).await, BTreeSet::from(last_resort.clone()), "AS {asn}: leaving");
        step(&mut drain, &mut announcer, &[v6], true, start + WAIT).await;
        assert_eq!(peer.told(1).await, set(&["withdraw 192.0.2.80/32"]), "AS {asn}: the other is kept");
        step(&mut drain, &mut announcer, &[], true, start + 2 * WAIT).await;
        step(&mut drain, &mut announcer, &[], true, start + 3 * WAIT).await;
        assert_eq!(peer.told(1).await, set(&["withdraw 2001:db8:2::80/128"]), "AS {asn}: it goes too");
        step(&mut drain, &mut announcer, &[], true, start + 4 * WAIT).await;
        assert_eq!(drain.phase().name(), "drained");
        assert_eq!(announcer.counts(&plan()).announced, 2, "pods are reached as ever");
        step(&mut drain, &mut announcer, &[], false, start + 5 * WAIT).await;
        assert_eq!(peer.told(2).await, BTreeSet::from(last_resort), "AS {asn}: returning");
        step(&mut drain, &mut announcer, &[], false, start + 6 * WAIT).await;
        assert_eq!(peer.told(2).await, BTreeSet::from(as_ever), "AS {asn}: serving");
        // The session was the same all the time: the next thing on it is its end.
        announcer.stop().await;
        assert_eq!(
            peer.next().await,
            None,
            "AS {asn}: a graceful restart is a connection that ends without a word"
        );
    }
}

#[tokio::test]
async fn an_agent_that_starts_drained_announces_no_vip() {
    let directory = tempfile::tempdir().unwrap();
    let mut peer = Peer::listen(65001).await;
    let address = peer.listener.local_addr().unwrap();
    let now = Instant::now();
    for (phase, kept, vips) in [
        ("drained", &[][..], &[][..]),
        ("emptying", &["192.0.2.80/32"], &["announce 192.0.2.80/32 graceful-shutdown"]),
        (
            "leaving",
            &[],
            &["announce 192.0.2.80/32 graceful-shutdown", "announce 2001:db8:2::80/128 graceful-shutdown"],
        ),
    ] {
        let kept: Vec<IpNet> = kept.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let record = Record { phase: phase.into(), kept, ..Record::default() };
        let drain = Drain::resume(&record, WAIT, WAIT, now);
        let mut announcer = announcer(directory.path(), address, 65001).await;
        announcer.stand(drain.stance()).await;
        announcer.update(&plan(), |_| true, None).await;
        announcer.complete().await;
        peer.accept().await;
        let mut expected = set(&["announce 10.244.1.0/24", "announce 10.250.1.0/24"]);
        expected.extend(set(vips));
        let ends = Family::ALL.map(|family| format!("end of {:?}", Some(family)));
        expected.extend(ends);
        assert_eq!(peer.told(expected.len()).await, expected, "{phase}");
        announcer.stop().await;
    }
}
