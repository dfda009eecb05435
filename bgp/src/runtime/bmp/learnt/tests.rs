//! What stations are told of Adj-RIB-In, message by message.

use std::time::Instant;

use ipnet::Ipv4Net;

use super::*;
use crate::Families;
use crate::bmp::{Peer, PeerUp};
use crate::rib::{Export, ExportPolicy, Identity, ImportPolicy, PrefixFilter, Source};
use crate::runtime::bmp::{Subscription, Up};
use crate::session::{Negotiated, PeerGracefulRestart, fixtures};
use crate::wire::{AsPath, AttributeError, AttributeProblem, Handling, Origin, PathAttributes};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

/// A monitor that knows of a session with the peer.
fn monitor(received: Context) -> Monitor {
    let monitor = Monitor::new(64512, [10, 0, 0, 1].into());
    let peer = Peer { address: PEER, asn: 65001, router_id: [10, 0, 0, 2].into(), four_octet_asn: true };
    let up = PeerUp {
        local: ([10, 0, 0, 1], 179).into(),
        remote_port: 179,
        sent_open: Vec::new(),
        received_open: Vec::new(),
    };
    lock(&monitor.state).up.insert(PEER, Up { peer, up, since: Duration::ZERO, received });
    monitor
}

fn learnt() -> Learnt {
    let router_id = [10, 0, 0, 1].into();
    Learnt::new(Identity { asn: 64512, router_id, cluster_id: router_id })
}

/// A route whose MED is the number of its path.
fn announces(nlri: Nlri<Ipv4Net>) -> Update {
    Update {
        nlri: vec![nlri],
        attributes: PathAttributes {
            origin: Some(Origin::Igp),
            as_path: Some(AsPath::sequence(vec![65001])),
            next_hop: Some([10, 0, 0, 2].into()),
            med: Some(nlri.path_id),
            ..PathAttributes::default()
        },
        ..Update::default()
    }
}

/// Malformed attributes leave of a message what RFC 7606 leaves of it.
#[test]
fn what_comes_is_passed_on_as_it_is_understood() {
    let context = Context { four_octet_asn: true, ..Context::default() };
    let prefix: Ipv4Net = "192.0.2.1/32".parse().unwrap();
    let announces = |malformed: &[Handling]| {
        let error = |&handling| AttributeError { code: 8, problem: AttributeProblem::Length, handling };
        Update { malformed: malformed.iter().map(error).collect(), ..announces(prefix.into()) }
    };
    let monitor = monitor(context);
    let tables = BmpTables { adj_rib_in: true, ..BmpTables::default() };
    let (_, mut told) = monitor.subscribe(&Rib::new(false), &mut learnt(), tables, 1 << 20);
    let mut withdraws = announces(&[]);
    withdraws.withdrawn = std::mem::take(&mut withdraws.nlri);
    withdraws.attributes = PathAttributes::default();
    for (name, update, there, gone) in [
        ("announced", announces(&[]), 1, 0),
        ("an attribute is dropped", announces(&[Handling::Discard]), 1, 0),
        ("taken for withdrawn", announces(&[Handling::Discard, Handling::TreatAsWithdraw]), 0, 1),
        ("withdrawn", withdraws, 0, 1),
        ("End-of-RIB", Update::default(), 0, 0),
    ] {
        monitor.passed(PEER, &update);
        let bytes = told.queue.try_recv().unwrap();
        // Common header, per-peer header (RFC 7854 §4).
        let Ok(Message::Update(passed)) = Message::decode(&bytes[6 + 42..], context) else {
            panic!("{name}: not an UPDATE")
        };
        assert_eq!(passed.malformed, [], "{name}");
        assert_eq!((passed.reachable().count(), passed.unreachable().count()), (there, gone), "{name}");
        assert_eq!(passed.end_of_rib(), update.end_of_rib(), "{name}");
    }
    // Of a peer without a session nothing is.
    lock(&monitor.state).up.clear();
    monitor.passed(PEER, &announces(&[]));
    assert!(told.queue.try_recv().is_err());
}

/// Messages in words: `table ±prefix path, its MED`; End-of-RIB says nothing, nor does Peer Up.
fn words(mut bytes: &[u8], context: Context) -> Vec<String> {
    let mut words = BTreeSet::new();
    while let Some(length) = bytes.get(1..5) {
        let (message, rest) = bytes.split_at(u32::from_be_bytes(length.try_into().unwrap()) as usize);
        bytes = rest;
        // Route Monitoring; flag L (RFC 7854 §4.1, §4.2).
        if message[5] != 0 {
            continue;
        }
        let table = if message[7] & 0x40 == 0 { "before" } else { "after" };
        let Ok(Message::Update(update)) = Message::decode(&message[6 + 42..], context) else {
            panic!("not an UPDATE")
        };
        let med = update.attributes.med.unwrap_or_default();
        words.extend(update.reachable().map(|nlri| format!("{table} +{nlri}, {med}")));
        words.extend(update.unreachable().map(|nlri| format!("{table} -{nlri}")));
    }
    words.into_iter().collect()
}

/// The same in the tables before policy and after it.
fn both(words: &[&str]) -> Vec<String> {
    let tables = ["after", "before"].into_iter();
    tables.flat_map(|table| words.iter().map(move |word| format!("{table} {word}"))).collect()
}

fn source() -> Source {
    Source {
        peer: PEER,
        router_id: [10, 0, 0, 2].into(),
        asn: 65001,
        ibgp: false,
        role: None,
        local: [10, 0, 0, 1].into(),
        extended_next_hop: false,
        client: false,
        interface: None,
    }
}

/// With graceful restart.
fn negotiated(paths_received: Families) -> Negotiated {
    let graceful_restart = Some(PeerGracefulRestart {
        restarting: true,
        restart_time: Duration::from_secs(60),
        families: Family::ALL.map(|family| (family, true)).into(),
    });
    Negotiated { graceful_restart, paths_received, ..fixtures::negotiated(65001, [10, 0, 0, 2].into()) }
}

/// A RIB with a session on which nothing is sent.
fn rib(context: Context) -> Rib {
    let mut rib = Rib::new(false);
    let export = Export {
        asn: 64512,
        context,
        enhanced_refresh: false,
        next_hops: Vec::new(),
        role: None,
        link_local: None,
        peer: PEER,
        router_id: [10, 0, 0, 2].into(),
        client: false,
        extended_next_hop: false,
        policy: ExportPolicy::default(),
        long_lived: Families::NONE,
    };
    rib.peer_up(PEER, export);
    rib
}

/// Each path is told by its name; in a session without names the prefix has one, whatever is left of sessions before.
#[test]
fn several_paths_to_a_prefix() {
    let plain = Context { four_octet_asn: true, ..Context::default() };
    let named = Context { add_path: Families::ALL, ..plain };
    let tables =
        BmpTables { adj_rib_in: true, adj_rib_in_post_policy: true, loc_rib: false, adj_rib_out: false };
    let prefix: Ipv4Net = "192.0.2.1/32".parse().unwrap();
    let announces = |path_id| announces(Nlri { prefix, path_id });
    let gone = |path_id| Update { withdrawn: vec![Nlri { prefix, path_id }], ..Update::default() };
    let (mut learnt, rib) = (learnt(), rib(plain));
    let filter = PrefixFilter { within: prefix.into(), min_length: 32, max_length: 32 };
    learnt.set_policies(&[(PEER, ImportPolicy { prefixes: vec![filter], max_prefixes: None })].into());
    // A station that connects, what it is told then, and what later on.
    let connect = |monitor: &Monitor, learnt: &mut Learnt, context| {
        let (snapshot, subscription) = monitor.subscribe(&rib, learnt, tables, 1 << 20);
        (subscription, words(&monitor.messages(&snapshot).flatten().collect::<Vec<u8>>(), context))
    };
    let tell = |told: &mut Subscription, monitor: &Monitor, learnt: &mut Learnt, context| {
        monitor.learnt_changes(&rib, learnt);
        let messages = std::iter::from_fn(|| told.queue.try_recv().ok());
        words(&messages.flat_map(|bytes| bytes.to_vec()).collect::<Vec<u8>>(), context)
    };

    let monitor_of_names = monitor(named);
    let (mut told, at_first) = connect(&monitor_of_names, &mut learnt, named);
    assert_eq!(at_first, [""; 0]);
    learnt.peer_up(source(), &negotiated(Families::ALL), Instant::now());
    for id in [1, 2] {
        learnt.receive(PEER, &announces(id)).unwrap();
    }
    let paths = both(&["+192.0.2.1/32 path 1, 1", "+192.0.2.1/32 path 2, 2"]);
    assert_eq!(tell(&mut told, &monitor_of_names, &mut learnt, named), paths);
    assert_eq!(connect(&monitor_of_names, &mut learnt, named).1, paths);
    learnt.receive(PEER, &gone(1)).unwrap();
    assert_eq!(tell(&mut told, &monitor_of_names, &mut learnt, named), both(&["-192.0.2.1/32 path 1"]));

    // It comes back without names.
    let monitor = monitor(plain);
    learnt.peer_down(PEER, Some(&negotiated(Families::ALL)), Instant::now());
    learnt.peer_up(source(), &negotiated(Families::NONE), Instant::now());
    let (mut told, _) = connect(&monitor, &mut learnt, plain);
    assert_eq!(tell(&mut told, &monitor, &mut learnt, plain), both(&["+192.0.2.1/32, 2"]));
    learnt.receive(PEER, &announces(0)).unwrap();
    let path = both(&["+192.0.2.1/32, 0"]);
    assert_eq!(tell(&mut told, &monitor, &mut learnt, plain), path);
    assert_eq!(connect(&monitor, &mut learnt, plain).1, path);
    learnt.receive(PEER, &Update::end_of_rib_marker(Family::Ipv4Unicast)).unwrap();
    assert_eq!(tell(&mut told, &monitor, &mut learnt, plain), path);
    learnt.receive(PEER, &gone(0)).unwrap();
    assert_eq!(tell(&mut told, &monitor, &mut learnt, plain), both(&["-192.0.2.1/32"]));
}
