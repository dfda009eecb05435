//! What peers announce, and what of it is used, as stations are told of it.
//!
//! Of a peer with an import policy Adj-RIB-In is kept: what became different in it is noted there, and told as it is by then. Of a
//! peer without one nothing is kept: what it sends is passed on as it comes, and a station that connects later has the
//! peer asked for all of it (RFC 7854 §5).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{BmpTables, Monitor, State, lock};
use crate::Family;
use crate::bmp::{self, View};
use crate::rib::{Changes, Learnt, Path, Received, Rib};
use crate::wire::pack::Announcement;
use crate::wire::{Context, Message, Nlri, Update};

/// What shares a path.
type Group = (Arc<Path>, Vec<Nlri>);

/// Appends what there is of `routes` in a table; `None` is gone. Path identifiers are told where `context` has them.
pub(super) fn routes(
    view: View,
    context: Context,
    routes: impl IntoIterator<Item = (Nlri, Option<Arc<Path>>)>,
    at: Duration,
    out: &mut Vec<u8>,
) {
    let mut gone: BTreeMap<Family, Vec<Nlri>> = BTreeMap::new();
    // By identity: equal paths are one.
    let mut there = BTreeMap::<(*const Path, Family), Group>::new();
    for (nlri, path) in routes {
        let family = Family::of(&nlri.prefix);
        match path {
            None => gone.entry(family).or_default().push(nlri),
            Some(path) => {
                there.entry((Arc::as_ptr(&path), family)).or_insert((path, Vec::new())).1.push(nlri);
            }
        }
    }
    for (family, all) in gone {
        bmp::withdrawals(view, family, all, context, at, out);
    }
    for ((_, family), (path, all)) in there {
        let Path { next_hop, attributes } = &*path;
        match Announcement::of_family(family, attributes.clone(), next_hop.address, None, context) {
            Ok(announcement) => bmp::announcements(view, &announcement, all, at, out),
            // It came in a longer message than Loc-RIB's are.
            Err(_) => bmp::withdrawals(view, family, all, context, at, out),
        }
    }
}

/// Stations that are told of Adj-RIB-In.
const PRE_POLICY: fn(&BmpTables) -> bool = |tables| tables.adj_rib_in;
/// Stations that are told of what import policies let in.
const POST_POLICY: fn(&BmpTables) -> bool = |tables| tables.adj_rib_in_post_policy;

impl State {
    /// Where to tell of what a peer sends, while its session is Established, and how that is encoded.
    fn received(&self, peer: IpAddr) -> Option<(View, Context)> {
        self.up.get(&peer).map(|up| (View::Session(up.peer), up.received))
    }

    /// The same of what its import policy lets in.
    fn received_post_policy(&self, peer: IpAddr) -> Option<(View, Context)> {
        self.up.get(&peer).map(|up| (View::AdjRibInPostPolicy(up.peer), up.received))
    }
}

impl BmpTables {
    /// Whether the station is told of routes of peers that are kept.
    pub(super) fn any_learnt(self) -> bool {
        self.adj_rib_in || self.adj_rib_in_post_policy || self.loc_rib
    }
}

impl Monitor {
    /// How often peers of which nothing is kept were to be asked for all that they announce.
    pub(in crate::runtime) fn asks(&self) -> u64 {
        self.asks.load(Ordering::Relaxed)
    }

    /// Has such peers asked, if there is a station to tell.
    pub(in crate::runtime) fn ask(&self) {
        let state = lock(&self.state);
        if state.subscribers.iter().any(|subscriber| subscriber.tables.adj_rib_in) {
            self.asks.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An UPDATE came of a peer of which nothing is kept.
    pub(in crate::runtime) fn passed(&self, peer: IpAddr, update: &Update) {
        let mut state = lock(&self.state);
        let Some((view, context)) = state.received(peer) else { return };
        self.publish(&mut state, PRE_POLICY, |at, out| {
            if update.malformed.is_empty() || update.reachable().next().is_some() {
                let mut bytes = Vec::new();
                if Message::Update(update.clone()).encode(context, &mut bytes).is_ok() {
                    bmp::route_monitoring(view, &bytes, at, out);
                }
            } else {
                // What it announces is taken for withdrawn (RFC 7606 §2).
                let gone = update.unreachable().map(|nlri| (nlri, None));
                routes(view, context, gone, at, out);
            }
        });
    }

    /// Such a peer has told all of a family again.
    pub(in crate::runtime) fn passed_all(&self, peer: IpAddr, family: Family) {
        let mut state = lock(&self.state);
        let Some((view, _)) = state.received(peer) else { return };
        self.publish(&mut state, PRE_POLICY, |at, out| {
            bmp::end_of_rib(view, family, at, out);
        });
    }

    /// Tells what was noted. Both tables are locked.
    pub(in crate::runtime) fn learnt_changes(&self, rib: &Rib, learnt: &mut Learnt) {
        let Changes { received, accepted, decided, told_all } = learnt.take_noted();
        self.loc_rib_changed(rib, learnt, decided.iter());
        let mut state = lock(&self.state);
        // Of a session that is over nothing is told any more.
        for (peer, names) in by_peer(received) {
            let Some((view, context)) = state.received(peer) else { continue };
            let of_peer = names.into_iter().map(|nlri| {
                let route = as_named(learnt, peer, nlri, context);
                (nlri, route.map(|route| route.path))
            });
            self.publish(&mut state, PRE_POLICY, |at, out| routes(view, context, of_peer, at, out));
        }
        for (peer, names) in by_peer(accepted) {
            let Some((view, context)) = state.received_post_policy(peer) else { continue };
            let of_peer = names.into_iter().map(|nlri| {
                let route = as_named(learnt, peer, nlri, context).filter(|route| route.accepted);
                (nlri, route.map(|route| route.path))
            });
            self.publish(&mut state, POST_POLICY, |at, out| routes(view, context, of_peer, at, out));
        }
        for (peer, family) in told_all {
            if let Some((view, _)) = state.received(peer) {
                self.publish(&mut state, PRE_POLICY, |at, out| bmp::end_of_rib(view, family, at, out));
            }
            if let Some((view, _)) = state.received_post_policy(peer) {
                self.publish(&mut state, POST_POLICY, |at, out| bmp::end_of_rib(view, family, at, out));
            }
        }
        if !state.subscribers.iter().any(|subscriber| subscriber.tables.any_learnt()) {
            learnt.monitor(false);
        }
    }
}

fn by_peer(names: BTreeSet<(IpAddr, Nlri)>) -> BTreeMap<IpAddr, Vec<Nlri>> {
    let mut peers = BTreeMap::<IpAddr, Vec<Nlri>>::new();
    names.into_iter().for_each(|(peer, nlri)| peers.entry(peer).or_default().push(nlri));
    peers
}

/// A route as the session names it. Where paths have no names, what is left of a session in which they had is the prefix's route until
/// the peer has told another.
fn as_named(learnt: &Learnt, peer: IpAddr, nlri: Nlri, context: Context) -> Option<Received> {
    match context.add_path.contains(Family::of(&nlri.prefix)) {
        true => learnt.received(peer, nlri),
        false => learnt.first_received(peer, nlri.prefix),
    }
}

/// Routes of a peer in a table before or after policy.
pub(super) fn in_table(
    routes: &[Received],
    post_policy: bool,
) -> impl Iterator<Item = (Nlri, Option<Arc<Path>>)> {
    let wanted = routes.iter().filter(move |route| route.accepted || !post_policy);
    wanted.map(|route| (route.nlri, Some(Arc::clone(&route.path))))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::Families;
    use crate::bmp::{Peer, PeerUp};
    use crate::rib::{Identity, ImportPolicy, PrefixFilter, Source};
    use crate::runtime::bmp::{Subscription, Up};
    use crate::session::{Negotiated, PeerGracefulRestart};
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

    fn announces(nlri: Nlri<ipnet::Ipv4Net>) -> Update {
        Update {
            nlri: vec![nlri],
            attributes: PathAttributes {
                origin: Some(Origin::Igp),
                as_path: Some(AsPath::sequence(vec![65001])),
                next_hop: Some([10, 0, 0, 2].into()),
                ..PathAttributes::default()
            },
            ..Update::default()
        }
    }

    /// Malformed attributes leave of a message what RFC 7606 leaves of it.
    #[test]
    fn what_comes_is_passed_on_as_it_is_understood() {
        let context = Context { four_octet_asn: true, ..Context::default() };
        let prefix: ipnet::Ipv4Net = "192.0.2.1/32".parse().unwrap();
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

    /// Each path is told by its name; in a session without names the prefix has one, whatever is left of sessions before.
    #[test]
    fn several_paths_to_a_prefix() {
        let plain = Context { four_octet_asn: true, ..Context::default() };
        let named = Context { add_path: Families::ALL, ..plain };
        let negotiated = |paths_received| Negotiated {
            asn: 65001,
            router_id: [10, 0, 0, 2].into(),
            hold_time: Duration::ZERO,
            families: Families::ALL,
            extended_next_hop: false,
            four_octet_asn: true,
            route_refresh: true,
            enhanced_refresh: false,
            extended_messages: false,
            graceful_restart: Some(PeerGracefulRestart {
                restarting: true,
                restart_time: Duration::from_secs(60),
                families: Family::ALL.map(|family| (family, true)).into(),
            }),
            graceful_notification: false,
            long_lived: Vec::new(),
            paths_received,
            paths_sent: Families::NONE,
        };
        let source = Source {
            peer: PEER,
            router_id: [10, 0, 0, 2].into(),
            asn: 65001,
            ibgp: false,
            role: None,
            local: [10, 0, 0, 1].into(),
            extended_next_hop: false,
            client: false,
            interface: None,
        };
        let prefix: ipnet::Ipv4Net = "192.0.2.1/32".parse().unwrap();
        let path = |path_id| Nlri { prefix, path_id };
        let gone = |path_id| Update { withdrawn: vec![path(path_id)], ..Update::default() };
        let (mut learnt, rib) = (learnt(), Rib::new(false));
        let filter = PrefixFilter { within: prefix.into(), min_length: 32, max_length: 32 };
        let policy = ImportPolicy { prefixes: vec![filter], max_prefixes: None };
        learnt.set_policies(&[(PEER, policy)].into());
        let tables =
            BmpTables { adj_rib_in: true, adj_rib_in_post_policy: true, loc_rib: false, adj_rib_out: false };
        let with_names = monitor(named);
        let (_, mut told) = with_names.subscribe(&rib, &mut learnt, tables, 1 << 20);
        learnt.peer_up(source, &negotiated(Families::ALL), Instant::now());
        // In both tables; End-of-RIB says nothing.
        let tell = |told: &mut Subscription, monitor: &Monitor, learnt: &mut Learnt, context| {
            monitor.learnt_changes(&rib, learnt);
            let mut words = BTreeSet::new();
            while let Ok(bytes) = told.queue.try_recv() {
                let mut rest = &bytes[..];
                while let Some(length) = rest.get(1..5) {
                    let (message, after) =
                        rest.split_at(u32::from_be_bytes(length.try_into().unwrap()) as usize);
                    rest = after;
                    let table = if message[7] & 0x40 == 0 { "before" } else { "after" };
                    let Ok(Message::Update(update)) = Message::decode(&message[6 + 42..], context) else {
                        panic!("not an UPDATE")
                    };
                    words.extend(update.reachable().map(|nlri| format!("{table} +{nlri}")));
                    words.extend(update.unreachable().map(|nlri| format!("{table} -{nlri}")));
                }
            }
            words.into_iter().collect::<Vec<_>>()
        };
        let both = |words: &[&str]| {
            let tables = ["after", "before"].into_iter();
            tables
                .flat_map(|table| words.iter().map(move |word| format!("{table} {word}")))
                .collect::<Vec<_>>()
        };
        for id in [1, 2] {
            learnt.receive(PEER, &announces(path(id))).unwrap();
        }
        let first = tell(&mut told, &with_names, &mut learnt, named);
        assert_eq!(first, both(&["+192.0.2.1/32 path 1", "+192.0.2.1/32 path 2"]));
        learnt.receive(PEER, &gone(1)).unwrap();
        assert_eq!(tell(&mut told, &with_names, &mut learnt, named), both(&["-192.0.2.1/32 path 1"]));

        // It comes back without them.
        let without = monitor(plain);
        learnt.peer_down(PEER, Some(&negotiated(Families::ALL)), Instant::now());
        learnt.peer_up(source, &negotiated(Families::NONE), Instant::now());
        let (_, mut told) = without.subscribe(&rib, &mut learnt, tables, 1 << 20);
        assert_eq!(tell(&mut told, &without, &mut learnt, plain), both(&["+192.0.2.1/32"]));
        learnt.receive(PEER, &announces(path(0))).unwrap();
        learnt.receive(PEER, &Update::end_of_rib_marker(Family::Ipv4Unicast)).unwrap();
        assert_eq!(tell(&mut told, &without, &mut learnt, plain), both(&["+192.0.2.1/32"]));
        learnt.receive(PEER, &gone(0)).unwrap();
        assert_eq!(tell(&mut told, &without, &mut learnt, plain), both(&["-192.0.2.1/32"]));
    }
}
