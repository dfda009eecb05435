//! What a route reflector passes on: UPDATEs of peers in, UPDATEs to peers out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof, proptest};

use super::learnt::tests::of_path;
use super::{Export, ExportPolicy, Identity, Learnt, Rib, RouteChanges, Source};
use crate::session::{Negotiated, PeerGracefulRestart};
use crate::wire::{
    AsPath, Context, Message, MpReach, MpUnreach, Nlri, Origin, PathAttributes, RawAttribute, Update, frame,
};
use crate::{Attributes, Community, Families, Family};

mod left_over;
mod paths;

const ASN: u32 = 64512;
const CLUSTER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
const IBGP: Context =
    Context { four_octet_asn: true, ibgp: true, extended_messages: false, add_path: Families::NONE };
const A: &str = "10.244.1.0/24";
const B: &str = "10.244.2.0/24";
const V6: &str = "fd00:244:1::/64";

/// Clients have numbers below 100, other internal peers from 100 on, those of other ASes from 200 on.
const CLIENTS: [u8; 3] = [2, 3, 4];
const OTHERS: [u8; 2] = [100, 101];
const EXTERNAL: [u8; 2] = [200, 201];

fn address(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

fn router_id(number: u8) -> Ipv4Addr {
    [10, 9, 9, number].into()
}

fn graceful(restarting: bool) -> PeerGracefulRestart {
    PeerGracefulRestart {
        restarting,
        restart_time: Duration::from_secs(120),
        families: Family::ALL.map(|family| (family, true)).into(),
    }
}

fn negotiated(number: u8, graceful_restart: Option<PeerGracefulRestart>) -> Negotiated {
    Negotiated {
        asn: if number < 200 { ASN } else { 65001 },
        router_id: router_id(number),
        hold_time: Duration::from_secs(90),
        families: Families::ALL,
        four_octet_asn: true,
        route_refresh: true,
        enhanced_refresh: false,
        extended_messages: false,
        extended_next_hop: false,
        graceful_restart,
        graceful_notification: false,
        long_lived: Vec::new(),
        paths_received: Families::NONE,
        paths_sent: Families::NONE,
    }
}

fn attributes() -> PathAttributes {
    PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(AsPath::default()),
        local_pref: Some(100),
        ..PathAttributes::default()
    }
}

/// An UPDATE with the next hop of that number.
fn announce(hop: u8, attributes: PathAttributes, prefixes: &[&str]) -> Update {
    let mut update = Update { attributes, ..Update::default() };
    let mut v6 = Vec::new();
    for prefix in prefixes {
        match prefix.parse().unwrap() {
            IpNet::V4(prefix) => update.nlri.push(prefix.into()),
            IpNet::V6(prefix) => v6.push(prefix.into()),
        }
    }
    update.attributes.next_hop = (!update.nlri.is_empty()).then(|| [10, 0, 0, hop].into());
    let next_hop = [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(hop)].into();
    update.mp_reach = (!v6.is_empty()).then_some(MpReach::Ipv6 { next_hop, link_local: None, prefixes: v6 });
    update
}

fn withdraw(prefixes: &[&str]) -> Update {
    let mut update = Update::default();
    let mut v6 = Vec::new();
    for prefix in prefixes {
        match prefix.parse().unwrap() {
            IpNet::V4(prefix) => update.withdrawn.push(prefix.into()),
            IpNet::V6(prefix) => v6.push(prefix.into()),
        }
    }
    update.mp_unreach = (!v6.is_empty()).then_some(MpUnreach::Ipv6(v6));
    update
}

/// A speaker's tables, with what its runtime does between them.
struct Reflector {
    learnt: Learnt,
    rib: Rib,
    now: Instant,
}

impl Reflector {
    fn new(restarting: bool) -> Reflector {
        let own = Identity { asn: ASN, router_id: router_id(1), cluster_id: router_id(1) };
        let mut reflector =
            Reflector { learnt: Learnt::new(own), rib: Rib::new(restarting), now: Instant::now() };
        reflector.learnt.set_reflector(Some(CLUSTER));
        reflector
    }

    /// With these peers, Established and sent what there is.
    fn with(peers: impl IntoIterator<Item = u8>) -> Reflector {
        let mut reflector = Reflector::new(false);
        for peer in peers {
            reflector.up(peer, None);
            reflector.sent(peer);
        }
        reflector
    }

    fn with_all() -> Reflector {
        Reflector::with(CLIENTS.into_iter().chain(OTHERS).chain(EXTERNAL))
    }

    fn up(&mut self, number: u8, graceful_restart: Option<PeerGracefulRestart>) {
        self.up_with(number, &negotiated(number, graceful_restart));
    }

    fn up_with(&mut self, number: u8, negotiated: &Negotiated) {
        let (peer, ibgp, client) = (address(number), number < 200, number < 100);
        let next_hops = vec![
            (Family::Ipv4Unicast, Some(address(1))),
            (Family::Ipv6Unicast, Some("fd00::1".parse().unwrap())),
        ];
        let export = Export {
            policy: ExportPolicy::default(),
            asn: ASN,
            context: Context { ibgp, add_path: negotiated.paths_sent, ..IBGP },
            enhanced_refresh: false,
            next_hops,
            role: None,
            link_local: None,
            peer,
            router_id: router_id(number),
            client,
            extended_next_hop: false,
            long_lived: negotiated.long_lived.iter().map(|offer| offer.family).collect(),
        };
        self.rib.peer_up(peer, export);
        let source = Source {
            interface: None,
            peer,
            router_id: negotiated.router_id,
            asn: negotiated.asn,
            ibgp,
            role: None,
            local: address(1),
            extended_next_hop: true,
            client,
        };
        self.learnt.peer_up(source, negotiated, self.now);
        self.follow();
    }

    fn down(&mut self, number: u8, graceful_restart: Option<&PeerGracefulRestart>) {
        let agreed = graceful_restart.map(|restart| negotiated(number, Some(restart.clone())));
        self.down_with(number, agreed.as_ref());
    }

    fn down_with(&mut self, number: u8, restarting: Option<&Negotiated>) {
        self.rib.peer_down(address(number));
        self.learnt.peer_down(address(number), restarting, self.now);
        self.follow();
    }

    fn receive(&mut self, number: u8, update: &Update) {
        self.learnt.receive(address(number), update).unwrap();
        self.follow();
    }

    fn follow(&mut self) {
        self.rib.reflect(self.learnt.take_reflections());
        if self.rib.awaits_peers_alone() && self.learnt.has_heard_all() {
            self.rib.peers_have_told();
        }
    }

    /// What a peer has yet to be told.
    fn updates(&mut self, number: u8) -> Vec<Update> {
        let add_path =
            self.rib.export(address(number)).map_or(Families::NONE, |export| export.context.add_path);
        let mut bytes = Vec::new();
        self.rib.write(address(number), &mut bytes, usize::MAX);
        let (mut bytes, mut updates) = (&bytes[..], Vec::new());
        while let Some(length) = frame(bytes).unwrap() {
            let context = Context { ibgp: number < 200, add_path, ..IBGP };
            let Ok(Message::Update(update)) = Message::decode(&bytes[..length], context) else {
                panic!("not an UPDATE")
            };
            assert_eq!(update.malformed, []);
            updates.push(update);
            bytes = &bytes[length..];
        }
        updates
    }

    /// The same in words, in order: `+prefix via next hop`, `-prefix`, `end family`.
    fn sent(&mut self, number: u8) -> Vec<String> {
        let words = |update: &Update| {
            if let Some(family) = update.end_of_rib() {
                return vec![format!("end {family}")];
            }
            let hop = next_hop(update);
            let reachable = update.reachable().map(|prefix| format!("+{prefix} via {hop}"));
            reachable.chain(update.unreachable().map(|prefix| format!("-{prefix}"))).collect()
        };
        let mut sent: Vec<String> = self.updates(number).iter().flat_map(words).collect();
        sent.sort();
        sent
    }

    /// Who has something to be told.
    fn told(&mut self) -> Vec<u8> {
        let all = CLIENTS.into_iter().chain(OTHERS).chain(EXTERNAL);
        all.filter(|&number| !self.updates(number).is_empty()).collect()
    }
}

/// The last part of it.
fn next_hop(update: &Update) -> u16 {
    match (&update.mp_reach, update.attributes.next_hop) {
        (Some(MpReach::Ipv6 { next_hop, .. }), _) => next_hop.segments()[7],
        (Some(MpReach::Ipv4 { next_hop: IpAddr::V6(next_hop), .. }), _) => next_hop.segments()[7],
        (_, Some(next_hop)) => next_hop.octets()[3].into(),
        _ => 0,
    }
}

/// RFC 4456 §6, and that nothing crosses the border of the AS.
#[test]
fn who_is_told() {
    for (name, from, expected) in [
        ("of a client: all internal peers but it", 2, &[3, 4, 100, 101][..]),
        ("of another internal peer: clients", 100, &[2, 3, 4]),
        ("of another AS: nobody", 200, &[]),
    ] {
        let mut reflector = Reflector::with_all();
        reflector.receive(from, &announce(from, attributes(), &[A, V6]));
        assert_eq!(reflector.told(), expected, "{name}");
        reflector.receive(from, &withdraw(&[A, V6]));
        assert_eq!(reflector.told(), expected, "{name}: withdrawn");
    }
    // No reflector, nothing passed on.
    let mut reflector = Reflector::with_all();
    reflector.learnt.set_reflector(None);
    reflector.follow();
    reflector.receive(2, &announce(2, attributes(), &[A]));
    assert_eq!(reflector.told(), [0; 0]);
}

/// As it came, but for who began it, where it has been, and what this speaker does not know.
#[test]
fn attributes_stay() {
    let known = PathAttributes {
        origin: Some(Origin::Incomplete),
        as_path: Some(AsPath::sequence(vec![65009, 4_200_000_001])),
        med: Some(7),
        local_pref: Some(250),
        atomic_aggregate: true,
        communities: vec![Community(0xfc00_0064)],
        ..attributes()
    };
    let raw = |flags, code| RawAttribute { flags, code, value: vec![1, 2, 3] };
    let came = PathAttributes { other: vec![raw(0xc0, 201), raw(0x80, 202)], ..known.clone() };
    let passed_on = PathAttributes { other: vec![raw(0xe0, 201)], ..known };
    let begun = |originator: u8, clusters: &[Ipv4Addr], attributes: &PathAttributes| PathAttributes {
        originator_id: Some(router_id(originator)),
        cluster_list: clusters.into(),
        ..attributes.clone()
    };
    let elsewhere = Ipv4Addr::new(7, 7, 7, 7);
    let without = |attributes: &PathAttributes| PathAttributes { local_pref: None, ..attributes.clone() };
    for (name, came, expected) in [
        ("begun by the client", came.clone(), begun(2, &[CLUSTER], &passed_on)),
        ("reflected before", begun(50, &[elsewhere], &came), begun(50, &[CLUSTER, elsewhere], &passed_on)),
        (
            "without LOCAL_PREF, which is mandatory",
            without(&came),
            PathAttributes { local_pref: Some(100), ..begun(2, &[CLUSTER], &passed_on) },
        ),
    ] {
        let mut reflector = Reflector::with_all();
        reflector.receive(2, &announce(77, came, &[A, V6]));
        for peer in [3, 100] {
            let updates = reflector.updates(peer);
            assert_eq!(updates.len(), 2, "{name}");
            for Update { attributes, .. } in &updates {
                let next_hop = attributes.next_hop;
                assert_eq!(*attributes, PathAttributes { next_hop, ..expected.clone() }, "{name}");
            }
            assert!(updates.iter().all(|update| next_hop(update) == 77), "{name}");
        }
    }
}

#[test]
fn what_is_not_passed_on() {
    let cases: [(&str, PathAttributes, u8); 7] = [
        ("it was begun here", PathAttributes { originator_id: Some(router_id(1)), ..attributes() }, 2),
        ("it has been in this cluster", PathAttributes { cluster_list: vec![CLUSTER], ..attributes() }, 2),
        (
            "it has been in this AS",
            PathAttributes { as_path: Some(AsPath::sequence(vec![ASN])), ..attributes() },
            2,
        ),
        (
            "not to be passed on",
            PathAttributes { communities: vec![Community::NO_ADVERTISE], ..attributes() },
            2,
        ),
        ("its next hop is this speaker", attributes(), 1),
        ("its next hop is a group", attributes(), 0),
        // The cluster of a reflector is not its router id.
        ("none of these", PathAttributes { cluster_list: vec![router_id(1)], ..attributes() }, 2),
    ];
    for (name, attributes, hop) in cases {
        let mut reflector = Reflector::with_all();
        let mut update = announce(hop, attributes, &[A]);
        if hop == 0 {
            update.attributes.next_hop = Some([224, 0, 0, 1].into());
        }
        reflector.receive(2, &update);
        let expected: &[u8] = if name == "none of these" { &[3, 4, 100, 101] } else { &[] };
        assert_eq!(reflector.told(), expected, "{name}");
    }
    // Nor back to whom it began with, whichever way it came.
    let mut reflector = Reflector::with_all();
    let of_3 = PathAttributes { originator_id: Some(router_id(3)), ..attributes() };
    reflector.receive(2, &announce(3, of_3, &[A]));
    assert_eq!(reflector.told(), [4, 100, 101]);
}

/// One route for each prefix: our own before others', then the best; those that have been told another are told so.
#[test]
fn the_best_is_passed_on() {
    let preferred = |local_pref| PathAttributes { local_pref: Some(local_pref), ..attributes() };
    let mut reflector = Reflector::with_all();
    reflector.receive(2, &announce(2, preferred(100), &[A]));
    reflector.told();
    reflector.receive(3, &announce(3, preferred(200), &[A]));
    assert_eq!(reflector.sent(2), [format!("+{A} via 3")]);
    assert_eq!(reflector.sent(3), [format!("-{A}")], "its own is the best");
    assert_eq!(reflector.sent(100), [format!("+{A} via 3")]);
    // A worse one changes nothing.
    reflector.told();
    reflector.receive(4, &announce(4, preferred(50), &[A]));
    assert_eq!(reflector.told(), [0; 0]);
    // Of another internal peer: those that are no clients do not hear of it.
    reflector.receive(101, &announce(101, preferred(300), &[A]));
    assert_eq!(reflector.sent(4), [format!("+{A} via 101")]);
    assert_eq!(reflector.sent(100), [format!("-{A}")]);
    reflector.receive(101, &withdraw(&[A]));
    assert_eq!(reflector.sent(100), [format!("+{A} via 3")]);

    let own = RouteChanges { announce: vec![(A.parse().unwrap(), Attributes::default())], withdraw: vec![] };
    reflector.rib.apply(own);
    assert_eq!((reflector.rib.len(), reflector.rib.reflected()), (1, 0));
    assert_eq!(reflector.sent(3), [format!("+{A} via 1")]);
    assert_eq!(reflector.sent(200), [format!("+{A} via 1")]);
    reflector.told();
    reflector.receive(3, &withdraw(&[A]));
    assert_eq!(reflector.told(), [0; 0]);
    reflector.rib.apply(RouteChanges { announce: vec![], withdraw: vec![A.parse().unwrap()] });
    assert_eq!((reflector.rib.len(), reflector.rib.reflected()), (1, 1));
    assert_eq!(reflector.sent(3), [format!("+{A} via 2")]);
    assert_eq!(reflector.sent(200), [format!("-{A}")]);
}

/// Messages are as full as they get, and a burst is told as what it comes to.
#[test]
fn packing() {
    let mut reflector = Reflector::with_all();
    let prefixes: Vec<String> = (0..=255).map(|n| format!("10.245.{n}.0/24")).collect();
    for chunk in prefixes.chunks(10) {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        reflector.receive(2, &announce(2, attributes(), &chunk));
    }
    let updates = reflector.updates(3);
    assert_eq!(updates.iter().map(|update| update.reachable().count()).collect::<Vec<_>>(), [256]);
    // Two routes of different clients do not share a message; each is one.
    reflector.receive(2, &withdraw(&["10.245.0.0/24"]));
    reflector.receive(2, &announce(2, attributes(), &["10.245.0.0/24"]));
    assert_eq!(reflector.sent(3), [""; 0], "undone before it was told");
    reflector.receive(4, &announce(4, attributes(), &[A, B]));
    reflector.receive(2, &announce(5, attributes(), &["10.246.0.0/24", "10.246.1.0/24"]));
    assert_eq!(reflector.updates(3).len(), 2);
}

/// While a client restarts its routes are passed on; what it has not told again is withdrawn.
#[test]
fn restart_of_a_client() {
    let mut reflector = Reflector::with([3]);
    reflector.up(2, Some(graceful(false)));
    reflector.receive(2, &announce(2, attributes(), &[A, B]));
    assert_eq!(reflector.sent(3).len(), 2);
    reflector.down(2, Some(&graceful(false)));
    assert_eq!(reflector.sent(3), [""; 0]);
    // Whoever comes meanwhile hears of them too.
    reflector.up(4, None);
    assert_eq!(reflector.sent(4).iter().filter(|word| word.starts_with('+')).count(), 2);
    reflector.up(2, Some(graceful(true)));
    reflector.receive(2, &announce(2, attributes(), &[A]));
    assert_eq!(reflector.sent(3), [""; 0]);
    reflector.receive(2, &Update::end_of_rib_marker(Family::Ipv4Unicast));
    assert_eq!(reflector.sent(3), [format!("-{B}")]);
    // It goes again, and stays away: nothing of it is left.
    reflector.down(2, Some(&graceful(false)));
    assert_eq!(reflector.sent(3), [""; 0]);
    let late = reflector.learnt.deadline(address(2)).unwrap();
    reflector.learnt.expire(address(2), late);
    reflector.follow();
    assert_eq!(reflector.sent(3), [format!("-{A}")]);
    assert!(!reflector.learnt.peers().any(|peer| peer == address(2)));
}

/// A task that ends takes what it would have expired along.
#[test]
fn a_peer_that_is_forgotten_while_it_restarts() {
    let mut reflector = Reflector::with([3]);
    reflector.up(2, Some(graceful(false)));
    reflector.receive(2, &announce(2, attributes(), &[A]));
    reflector.sent(3);
    reflector.down(2, Some(&graceful(false)));
    reflector.learnt.peer_gone(address(2));
    reflector.follow();
    assert_eq!(reflector.sent(3), [format!("-{A}")]);
}

/// End-of-RIB of a reflector that has restarted comes after those of its peers, or when they are not waited for any more.
#[test]
fn restart_of_the_reflector() {
    let ends = |reflector: &mut Reflector| {
        reflector.sent(2).into_iter().filter(|word| word.starts_with("end")).count()
    };
    let restarted = |others: bool| {
        let mut reflector = Reflector::new(true);
        reflector.learnt.await_peers([2, 3].map(address), others);
        reflector.up(2, Some(graceful(false)));
        for family in Family::ALL {
            reflector.receive(2, &Update::end_of_rib_marker(family));
        }
        reflector.rib.initial_routes_complete();
        reflector.follow();
        reflector
    };
    let tell_all = |reflector: &mut Reflector| {
        reflector.up(3, Some(graceful(false)));
        reflector.receive(3, &announce(3, attributes(), &[A]));
        reflector.receive(3, &Update::end_of_rib_marker(Family::Ipv4Unicast));
        assert_eq!(ends(reflector), 0, "of one family only");
        reflector.receive(3, &Update::end_of_rib_marker(Family::Ipv6Unicast));
    };

    let mut reflector = restarted(false);
    assert_eq!(ends(&mut reflector), 0, "a peer has not come yet");
    tell_all(&mut reflector);
    assert_eq!(ends(&mut reflector), 2);

    for (name, graceful_restart) in [("does not say", None), ("restarts itself", Some(graceful(true)))] {
        let mut reflector = restarted(false);
        reflector.up(3, graceful_restart);
        assert_eq!(ends(&mut reflector), 2, "not waited for: {name}");
    }

    let mut reflector = restarted(true);
    tell_all(&mut reflector);
    assert_eq!(ends(&mut reflector), 0, "others may come from a range");
    reflector.learnt.stop_waiting();
    reflector.follow();
    assert_eq!(ends(&mut reflector), 2);

    // Ours are waited for as ever, and a speaker that passes nothing on waits for no peer.
    let mut reflector = Reflector::new(true);
    reflector.learnt.await_peers([address(3)], true);
    reflector.learnt.set_reflector(None);
    reflector.up(2, None);
    assert_eq!(ends(&mut reflector), 0);
    reflector.rib.initial_routes_complete();
    reflector.follow();
    assert_eq!(ends(&mut reflector), 2);
    // Nor does one that starts cold.
    let mut reflector = Reflector::new(false);
    reflector.learnt.await_peers([address(3)], true);
    reflector.up(2, None);
    assert_eq!(ends(&mut reflector), 2);
}

/// Who is a client, and whether there are any, changes while sessions stand; those that need not hear of it do not.
#[test]
fn live_changes() {
    let mut reflector = Reflector::with_all();
    reflector.receive(2, &announce(2, attributes(), &[A]));
    reflector.receive(100, &announce(100, attributes(), &[B]));
    reflector.told();
    let set_client = |reflector: &mut Reflector, number, client| {
        reflector.rib.set_client(address(number), client);
        reflector.learnt.set_client(address(number), client);
        reflector.follow();
    };
    set_client(&mut reflector, 101, true);
    assert_eq!(reflector.sent(101), [format!("+{B} via 100")]);
    assert_eq!(reflector.told(), [0; 0]);
    set_client(&mut reflector, 100, true);
    assert_eq!(reflector.told(), CLIENTS.into_iter().chain([101]).collect::<Vec<_>>());
    set_client(&mut reflector, 100, false);
    set_client(&mut reflector, 101, false);
    assert_eq!(reflector.sent(101), [format!("-{B}")]);
    reflector.told();

    // Another cluster, and none: known routes are told so, and nothing is kept for nothing.
    reflector.learnt.set_reflector(Some([8, 8, 8, 8].into()));
    reflector.follow();
    assert_eq!(reflector.updates(4)[0].attributes.cluster_list, [Ipv4Addr::new(8, 8, 8, 8)]);
    reflector.told();
    reflector.learnt.set_reflector(None);
    reflector.follow();
    assert_eq!(reflector.sent(4), [format!("-{A}"), format!("-{B}")]);
    assert_eq!(reflector.learnt.peers().count(), 0);
    assert!(reflector.rib.is_empty());
    // And again: peers are asked for what was not kept.
    reflector.learnt.set_reflector(Some(CLUSTER));
    assert!(reflector.learnt.awaits_session(address(2), true));
    assert!(!reflector.learnt.awaits_session(address(200), false));
}

/// Next hops go where they can be understood, whether or not there is one of our own there.
#[test]
fn next_hops() {
    let mut reflector = Reflector::with(CLIENTS);
    reflector.rib.set_next_hops(address(4), &[(Family::Ipv4Unicast, None)]);
    reflector.receive(2, &announce(2, attributes(), &[A]));
    assert_eq!(reflector.sent(4), [format!("+{A} via 2")]);
    let by_ipv6 = Update {
        attributes: attributes(),
        mp_reach: Some(MpReach::Ipv4 {
            next_hop: "fd00::2".parse().unwrap(),
            prefixes: vec![B.parse::<ipnet::Ipv4Net>().unwrap().into()],
        }),
        ..Update::default()
    };
    reflector.receive(2, &by_ipv6);
    assert_eq!(reflector.sent(4), [""; 0], "it takes no IPv6 next hop of IPv4");
    // Another next hop of ours is not another one of theirs.
    reflector.rib.set_next_hops(address(4), &[(Family::Ipv4Unicast, Some(address(99)))]);
    assert_eq!(reflector.sent(4), [""; 0]);
}

/// A speaker that goes has its peers keep what they hold.
#[test]
fn frozen() {
    let mut reflector = Reflector::with(CLIENTS);
    reflector.receive(2, &announce(2, attributes(), &[A]));
    reflector.told();
    reflector.learnt.freeze();
    reflector.down(2, None);
    assert_eq!(reflector.sent(3), [""; 0]);
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Announce { peer: u8, prefix: u8, path: u32, local_pref: u32 },
    Withdraw { peer: u8, prefix: u8, path: u32 },
    Own { prefix: u8, here: bool },
    Down { peer: u8, graceful: bool },
    Up { peer: u8 },
    EndOfRib { peer: u8 },
    Client { peer: u8, client: bool },
    Write { peer: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || (0..7usize).prop_map(|n| CLIENTS.into_iter().chain(OTHERS).chain(EXTERNAL).nth(n).unwrap());
    prop_oneof![
        8 => (peer(), 0..6u8, 0..2u32, 0..3u32)
            .prop_map(|(peer, prefix, path, local_pref)| Step::Announce { peer, prefix, path, local_pref }),
        4 => (peer(), 0..6u8, 0..2u32).prop_map(|(peer, prefix, path)| Step::Withdraw { peer, prefix, path }),
        1 => (0..6u8, any::<bool>()).prop_map(|(prefix, here)| Step::Own { prefix, here }),
        2 => (peer(), any::<bool>()).prop_map(|(peer, graceful)| Step::Down { peer, graceful }),
        3 => peer().prop_map(|peer| Step::Up { peer }),
        1 => peer().prop_map(|peer| Step::EndOfRib { peer }),
        1 => (peer(), any::<bool>()).prop_map(|(peer, client)| Step::Client { peer, client }),
        3 => peer().prop_map(|peer| Step::Write { peer }),
    ]
}

/// What a peer has announced: LOCAL_PREF and whether it is stale, by prefix and path.
type Announced = BTreeMap<(u8, u32), (u32, bool)>;

/// What every peer holds, by what it was told.
type Tables = BTreeMap<u8, BTreeMap<Nlri, u16>>;

/// Those that take several paths to a prefix: a client, and another internal peer.
const SEVERAL: [u8; 2] = [4, 101];

fn read(reflector: &mut Reflector, tables: &mut Tables, peer: u8) {
    let Some(table) = tables.get_mut(&peer) else { return };
    for update in reflector.updates(peer) {
        for gone in update.unreachable() {
            assert!(table.remove(&gone).is_some(), "{gone:?} withdrawn, was not announced");
        }
        table.extend(update.reachable().map(|nlri| (nlri, next_hop(&update))));
    }
}

proptest! {
    /// Whatever happens, and whenever it is told: every peer ends up with what follows from what is there now.
    #[test]
    fn peers_converge(steps in vec(step(), 0..150)) {
        let all: Vec<u8> = CLIENTS.into_iter().chain(OTHERS).chain(EXTERNAL).collect();
        let prefixes = [A, B, V6, "fd00:244:2::/64", "10.244.3.0/24", "0.0.0.0/0"];
        let mut reflector = Reflector::new(false);
        // Who is a client; what each has announced and is not gone; what is ours.
        let mut clients: BTreeMap<u8, bool> = all.iter().map(|&peer| (peer, peer < 100)).collect();
        let mut announced: BTreeMap<u8, Announced> = BTreeMap::new();
        let (mut own, mut tables) = (BTreeMap::new(), Tables::new());
        for step in steps {
            match step {
                Step::Announce { peer, prefix, path, local_pref } if tables.contains_key(&peer) => {
                    let attributes = PathAttributes { local_pref: Some(local_pref), ..attributes() };
                    let route = announce(peer, attributes, &[prefixes[usize::from(prefix)]]);
                    reflector.receive(peer, &of_path(path, route));
                    announced.entry(peer).or_default().insert((prefix, path), (local_pref, false));
                }
                Step::Withdraw { peer, prefix, path } if tables.contains_key(&peer) => {
                    reflector.receive(peer, &of_path(path, withdraw(&[prefixes[usize::from(prefix)]])));
                    announced.entry(peer).or_default().remove(&(prefix, path));
                }
                Step::Own { prefix, here } => {
                    let net = prefixes[usize::from(prefix)].parse().unwrap();
                    let (mut announce, mut withdraw) = (vec![], vec![]);
                    if here { announce.push((net, Attributes::default())) } else { withdraw.push(net) }
                    reflector.rib.apply(RouteChanges { announce, withdraw });
                    own.insert(prefix, here);
                }
                Step::Down { peer, graceful: kept } if tables.remove(&peer).is_some() => {
                    reflector.down(peer, kept.then(|| graceful(false)).as_ref());
                    let routes = announced.entry(peer).or_default();
                    routes.retain(|_, (_, stale)| kept && !std::mem::replace(stale, true));
                }
                Step::Up { peer } if !tables.contains_key(&peer) => {
                    let paths_sent = if SEVERAL.contains(&peer) { Families::ALL } else { Families::NONE };
                    reflector.up_with(peer, &Negotiated { paths_sent, ..negotiated(peer, Some(graceful(true))) });
                    reflector.rib.set_client(address(peer), clients[&peer]);
                    reflector.learnt.set_client(address(peer), clients[&peer]);
                    reflector.follow();
                    tables.insert(peer, BTreeMap::new());
                }
                Step::EndOfRib { peer } if tables.contains_key(&peer) => {
                    for family in Family::ALL {
                        reflector.receive(peer, &Update::end_of_rib_marker(family));
                    }
                    announced.entry(peer).or_default().retain(|_, (_, stale)| !*stale);
                }
                Step::Client { peer, client } if peer < 200 && tables.contains_key(&peer) => {
                    reflector.rib.set_client(address(peer), client);
                    reflector.learnt.set_client(address(peer), client);
                    reflector.follow();
                    clients.insert(peer, client);
                }
                Step::Write { peer } => read(&mut reflector, &mut tables, peer),
                _ => {}
            }
        }
        for &peer in &all {
            read(&mut reflector, &mut tables, peer);
        }
        for (peer, table) in &tables {
            let mut expected = Vec::new();
            for prefix in 0..6u8 {
                let net: IpNet = prefixes[usize::from(prefix)].parse().unwrap();
                // The highest LOCAL_PREF comes first, of these the lowest router id.
                let mut paths: Vec<_> = all.iter().filter(|from| **from < 200).flat_map(|&from| {
                    let paths = announced.get(&from).into_iter().flat_map(|all| all.range((prefix, 0)..=(prefix, u32::MAX)));
                    paths.map(move |(_, (local_pref, _))| (std::cmp::Reverse(*local_pref), from))
                }).collect();
                paths.sort();
                let own = own.get(&prefix).is_some_and(|here| *here);
                let others = paths.into_iter().map(|(_, from)| from);
                let offered: Vec<u8> = own.then_some(1).into_iter().chain(others).collect();
                let considered = if SEVERAL.contains(peer) { offered.len() } else { offered.len().min(1) };
                let told = |from: u8| from == 1 || *peer < 200 && *peer != from && (clients[&from] || clients[peer]);
                let told = offered[..considered].iter().filter(|from| told(**from));
                expected.extend(told.map(|from| (net, u16::from(*from))));
            }
            let mut held: Vec<_> = table.iter().map(|(nlri, hop)| (nlri.prefix, *hop)).collect();
            held.sort_unstable();
            expected.sort_unstable();
            assert_eq!(held, expected, "what {peer} holds");
            assert!(table.keys().all(|nlri| (nlri.path_id > 0) == SEVERAL.contains(peer)), "{table:?}");
        }
    }
}
