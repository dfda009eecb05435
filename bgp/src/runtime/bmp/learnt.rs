//! What peers announce, and what of it is used, as stations are told of it.
//!
//! Of a peer with an import policy Adj-RIB-In is kept: what became different in it is noted there, and told as it is by then. Of a
//! peer without one nothing is kept: what it sends is passed on as it comes, and a station that connects later has the
//! peer asked for all of it (RFC 7854 §5).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ipnet::IpNet;

use super::{BmpTables, Monitor, State, lock};
use crate::Family;
use crate::bmp::{self, View};
use crate::rib::{Changes, Learnt, Path, Received, Rib};
use crate::wire::pack::Announcement;
use crate::wire::{Context, Message, Update};

/// Prefixes that share a path.
type Group = (Arc<Path>, Vec<IpNet>);

/// Appends what there is of `routes` in a table; `None` is gone.
pub(super) fn routes(
    view: View,
    context: Context,
    routes: impl IntoIterator<Item = (IpNet, Option<Arc<Path>>)>,
    at: Duration,
    out: &mut Vec<u8>,
) {
    let mut gone: BTreeMap<Family, Vec<IpNet>> = BTreeMap::new();
    // By identity: equal paths are one.
    let mut there = BTreeMap::<(*const Path, Family), Group>::new();
    for (prefix, path) in routes {
        let family = Family::of(&prefix);
        match path {
            None => gone.entry(family).or_default().push(prefix),
            Some(path) => {
                there.entry((Arc::as_ptr(&path), family)).or_insert((path, Vec::new())).1.push(prefix);
            }
        }
    }
    for (family, prefixes) in gone {
        bmp::withdrawals(view, family, prefixes, context, at, out);
    }
    for ((_, family), (path, prefixes)) in there {
        let Path { next_hop, attributes } = &*path;
        match Announcement::of_family(family, attributes.clone(), next_hop.address, None, context) {
            Ok(announcement) => bmp::announcements(view, &announcement, prefixes, at, out),
            // It came in a longer message than Loc-RIB's are.
            Err(_) => bmp::withdrawals(view, family, prefixes, context, at, out),
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
                let gone = update.unreachable().map(|nlri| (nlri.prefix.trunc(), None));
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
        let now = |&(peer, prefix): &(IpAddr, IpNet)| (peer, prefix, learnt.received(peer, prefix));
        let mut before = BTreeMap::<IpAddr, Vec<_>>::new();
        for (peer, prefix, route) in received.iter().map(now) {
            before.entry(peer).or_default().push((prefix, route.map(|route| route.path)));
        }
        let mut after = BTreeMap::<IpAddr, Vec<_>>::new();
        for (peer, prefix, route) in accepted.iter().map(now) {
            let route = route.filter(|route| route.accepted);
            after.entry(peer).or_default().push((prefix, route.map(|route| route.path)));
        }
        // Of a session that is over nothing is told any more.
        for (peer, of_peer) in before {
            let Some((view, context)) = state.received(peer) else { continue };
            self.publish(&mut state, PRE_POLICY, |at, out| routes(view, context, of_peer, at, out));
        }
        for (peer, of_peer) in after {
            let Some((view, context)) = state.received_post_policy(peer) else { continue };
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

/// Routes of a peer in a table before or after policy.
pub(super) fn in_table(
    routes: &[Received],
    post_policy: bool,
) -> impl Iterator<Item = (IpNet, Option<Arc<Path>>)> {
    let wanted = routes.iter().filter(move |route| route.accepted || !post_policy);
    wanted.map(|route| (route.prefix, Some(Arc::clone(&route.path))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bmp::{Peer, PeerUp};
    use crate::runtime::bmp::Up;
    use crate::wire::{AsPath, AttributeError, AttributeProblem, Handling, Origin, PathAttributes};

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    /// Malformed attributes leave of a message what RFC 7606 leaves of it.
    #[test]
    fn what_comes_is_passed_on_as_it_is_understood() {
        let context = Context { four_octet_asn: true, ..Context::default() };
        let prefix: ipnet::Ipv4Net = "192.0.2.1/32".parse().unwrap();
        let announces = |malformed: &[Handling]| Update {
            nlri: vec![prefix.into()],
            attributes: PathAttributes {
                origin: Some(Origin::Igp),
                as_path: Some(AsPath::sequence(vec![65001])),
                next_hop: Some([10, 0, 0, 2].into()),
                ..PathAttributes::default()
            },
            malformed: malformed
                .iter()
                .map(|&handling| AttributeError { code: 8, problem: AttributeProblem::Length, handling })
                .collect(),
            ..Update::default()
        };
        let monitor = Monitor::new(64512, [10, 0, 0, 1].into());
        let peer = Peer { address: PEER, asn: 65001, router_id: [10, 0, 0, 2].into(), four_octet_asn: true };
        let up = PeerUp {
            local: ([10, 0, 0, 1], 179).into(),
            remote_port: 179,
            sent_open: Vec::new(),
            received_open: Vec::new(),
        };
        let up = Up { peer, up, since: Duration::ZERO, received: context };
        lock(&monitor.state).up.insert(PEER, up);
        let tables = BmpTables { adj_rib_in: true, ..BmpTables::default() };
        let router_id = [10, 0, 0, 1].into();
        let own = crate::rib::Identity { asn: 64512, router_id, cluster_id: router_id };
        let (_, mut told) = monitor.subscribe(&Rib::new(false), &mut Learnt::new(own), tables, 1 << 20);
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
}
