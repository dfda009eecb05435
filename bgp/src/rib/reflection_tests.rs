//! What a route reflector passes on: UPDATEs of peers in, UPDATEs to peers out.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::learnt::tests::updates::{announce, of_path, withdraw};
use super::{Export, ExportPolicy, Identity, Learnt, Rib, Source};
use crate::session::{Negotiated, PeerGracefulRestart, fixtures};
use crate::wire::{AsPath, Context, Message, MpReach, Origin, PathAttributes, Update, frame};
use crate::{Families, Family};

mod convergence;
mod left_over;
mod live_changes;
mod passed_on;
mod paths;
mod restart;

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
    let asn = if number < 200 { ASN } else { 65001 };
    Negotiated { graceful_restart, ..fixtures::negotiated(asn, router_id(number)) }
}

fn attributes() -> PathAttributes {
    PathAttributes {
        origin: Some(Origin::Igp),
        as_path: Some(AsPath::default()),
        local_pref: Some(100),
        ..PathAttributes::default()
    }
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
