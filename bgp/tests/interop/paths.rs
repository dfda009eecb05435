//! Several paths to a prefix (RFC 7911).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use sheave_bgp::session::AddPaths;
use sheave_bgp::{
    Attributes, Families, Family, ImportPolicy, PeerConfig, PrefixFilter, Shutdown, Speaker, SpeakerConfig,
};

use crate::daemon::{Cell, FED, FEEDERS, plain};
use crate::{announce, only_peer, peer_config, speaker_config, start, withdraw};

const OURS: [&str; 3] = ["192.0.2.80/32", "192.0.2.81/32", "2001:db8::80/128"];

/// Peers of the daemon that announce the same with next hops of their own.
async fn feed(cell: &Cell) -> Vec<Speaker> {
    let mut feeders = Vec::new();
    for (address, next_hop_v6, asn) in FEEDERS {
        let address: IpAddr = address.parse().unwrap();
        cell.lab.add_address(address);
        let IpAddr::V4(router_id) = address else { unreachable!("FEEDERS are IPv4") };
        let speaker = start(SpeakerConfig { asn, router_id, ..speaker_config(None) }).await;
        speaker.update(plain(&FED));
        let [_, daemon] = crate::lab::Lab::V4;
        speaker.set_peers(vec![PeerConfig {
            local_address: Some(address),
            next_hop_v4: Some(router_id),
            next_hop_v6: Some(next_hop_v6.parse().unwrap()),
            ..peer_config(daemon, cell.setup.asn)
        }]);
        feeders.push(speaker);
    }
    feeders
}

/// The daemon tells two paths to a prefix, and both are taken; it takes ours, which are named too, as they come, change and go.
/// Without the option, in a session that then begins, there is one.
pub(crate) async fn several_paths(mut cell: Cell) {
    cell.setup.add_paths = true;
    cell.start();
    let feeders = feed(&cell).await;
    let speaker = start(cell.speaker_config()).await;
    let prefixes = FED.map(|prefix| PrefixFilter::exactly(prefix.parse().unwrap()));
    let policy = ImportPolicy { prefixes: prefixes.into(), max_prefixes: None };
    speaker.set_imports(&BTreeMap::from([(cell.setup.theirs, policy)]));
    let peer = |receive, send| PeerConfig { add_paths: AddPaths { receive, send }, ..cell.peer_config() };
    speaker.set_peers(vec![peer(true, true)]);
    speaker.update(plain(&OURS));
    cell.until_established(&speaker).await;
    let negotiated = only_peer(&speaker).session.unwrap().negotiated;
    assert_eq!((negotiated.paths_received, negotiated.paths_sent), (Families::ALL, Families::ALL));

    let accepted = || {
        let learnt = speaker.learnt();
        learnt.peers[&cell.setup.theirs].iter().map(|(_, counts)| counts.accepted).collect::<Vec<_>>()
    };
    let keeps_next_hops = cell.daemon.keeps_next_hops(&cell.setup);
    let v4 = cell.setup.theirs.is_ipv4();
    let own = Families { ipv4_unicast: v4, ipv6_unicast: !v4 };
    let families = if keeps_next_hops { Families::ALL } else { own };
    let so_many = |paths| Family::ALL.map(|family| if families.contains(family) { paths } else { 0 });
    cell.until_status("both paths to each prefix", &speaker, |_| accepted() == so_many(2)).await;
    let mut used: BTreeMap<_, _> = speaker.learnt_routes().take(99).into_iter().collect();
    used.retain(|_, hops| hops.is_some());
    assert_eq!(used.len(), families.iter().count(), "{used:?}");
    for (prefix, hops) in &used {
        let hops: Vec<IpAddr> = hops.iter().flat_map(|hops| hops.iter()).map(|hop| hop.address).collect();
        let ecmp: Vec<IpAddr> = (FEEDERS.iter())
            .map(|(v4, v6, _)| if prefix.addr().is_ipv4() { v4 } else { v6 }.parse().unwrap())
            .collect();
        let expected = if keeps_next_hops { ecmp } else { vec![cell.setup.theirs] };
        assert_eq!(hops, expected, "{prefix}");
    }

    cell.until_routes(&OURS, &[]).await;
    speaker.update(announce(&OURS[..1], &Attributes { med: Some(8), ..Attributes::default() }));
    speaker.update(withdraw(&OURS[1..]));
    cell.until("the new route", || cell.route(OURS[0]).is_some_and(|route| route.med == Some(8))).await;
    cell.until_routes(&OURS[..1], &OURS[1..]).await;
    assert!(speaker.flushed(Duration::from_secs(5)).await);
    assert_eq!(only_peer(&speaker).counters.malformed_updates, 0);

    speaker.set_peers(vec![peer(false, false)]);
    cell.until_status("one path to each prefix", &speaker, |_| accepted() == so_many(1)).await;
    cell.until_routes(&OURS[..1], &OURS[1..]).await;
    speaker.shutdown(Shutdown::Cease).await;
    for feeder in feeders {
        feeder.shutdown(Shutdown::Cease).await;
    }
}
