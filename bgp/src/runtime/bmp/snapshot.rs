//! All that a station is told when it connects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::{Monitor, Subscriber, Subscription, Up, loc_rib_routes, lock, now};
use crate::Family;
use crate::bmp::{self, Statistic, View};
use crate::rib::{Export, Rib, Route};

/// Sessions and tables at one moment: copied under the RIB's lock, made into messages without it.
pub(super) struct Snapshot {
    loc_rib: Vec<(IpNet, Arc<Route>)>,
    loc_rib_complete: bool,
    peers: Vec<PeerSnapshot>,
}

struct PeerSnapshot {
    up: Up,
    export: Export,
    families: Vec<FamilySnapshot>,
}

struct FamilySnapshot {
    family: Family,
    next_hop: Option<IpAddr>,
    routes: Vec<(IpNet, Arc<Route>)>,
    complete: bool,
}

/// Routes that share attributes, together.
fn groups(routes: &[(IpNet, Arc<Route>)]) -> BTreeMap<(&Route, Family), Vec<IpNet>> {
    let mut groups: BTreeMap<_, Vec<IpNet>> = BTreeMap::new();
    for (prefix, route) in routes {
        groups.entry((&**route, Family::of(prefix))).or_default().push(*prefix);
    }
    groups
}

impl Monitor {
    /// What there is now, and a queue of up to `limit` bytes for what happens from now on. `rib` is locked.
    pub(super) fn subscribe(&self, rib: &Rib, limit: usize) -> (Snapshot, Subscription) {
        let mut state = lock(&self.state);
        let peers = state.up.values().filter_map(|up| {
            let families = rib.families(up.peer.address).iter().map(|out| FamilySnapshot {
                family: out.family(),
                next_hop: out.next_hop(),
                routes: out.routes().map(|(prefix, set)| (prefix, Arc::clone(set))).collect(),
                complete: out.end_of_rib_sent(),
            });
            let export = rib.export(up.peer.address)?.clone();
            Some(PeerSnapshot { up: up.clone(), export, families: families.collect() })
        });
        let snapshot = Snapshot {
            loc_rib: rib.routes().map(|(prefix, set)| (prefix, Arc::clone(set))).collect(),
            loc_rib_complete: rib.is_complete(),
            peers: peers.collect(),
        };
        let (queue, receiver) = mpsc::unbounded_channel();
        let (cut, is_cut) = oneshot::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        state.subscribers.push(Subscriber { queue, queued: Arc::clone(&queued), limit, _cut: cut });
        (snapshot, Subscription { queue: receiver, queued, cut: is_cut })
    }

    /// Appends a report of how many routes there are.
    pub(super) fn statistics(&self, rib: &Rib, out: &mut Vec<u8>) {
        let state = lock(&self.state);
        let at = now();
        let in_family = |family| rib.routes().filter(|(prefix, _)| Family::of(prefix) == family).count();
        let mut loc_rib = vec![Statistic::LocRib(rib.len() as u64)];
        loc_rib.extend(Family::ALL.map(|family| Statistic::LocRibOf(family, in_family(family) as u64)));
        bmp::statistics(self.loc_rib(), &loc_rib, at, out);
        for up in state.up.values() {
            let families = rib.families(up.peer.address);
            let all = families.iter().map(|out| out.sent() as u64).sum();
            let mut statistics = vec![Statistic::AdjRibOut(all)];
            statistics
                .extend(families.iter().map(|out| Statistic::AdjRibOutOf(out.family(), out.sent() as u64)));
            bmp::statistics(View::Session(up.peer), &statistics, at, out);
        }
    }

    /// Messages of it, table by table; one that is not asked for is not made.
    pub(super) fn messages(&self, snapshot: &Snapshot) -> impl Iterator<Item = Vec<u8>> {
        let at = now();
        let loc_rib = move || {
            let mut out = Vec::new();
            bmp::loc_rib_up(self.asn, self.router_id, &self.loc_rib_open(), at, &mut out);
            for ((route, family), prefixes) in groups(&snapshot.loc_rib) {
                loc_rib_routes(self.loc_rib(), route, family, prefixes, at, &mut out);
            }
            for family in Family::ALL.into_iter().filter(|_| snapshot.loc_rib_complete) {
                bmp::end_of_rib(self.loc_rib(), family, at, &mut out);
            }
            out
        };
        let peers = snapshot.peers.iter().map(move |peer| {
            let mut out = Vec::new();
            peer.messages(at, &mut out);
            out
        });
        std::iter::once_with(loc_rib).chain(peers)
    }
}

impl PeerSnapshot {
    fn messages(&self, at: Duration, out: &mut Vec<u8>) {
        let Up { peer, up, since } = &self.up;
        bmp::peer_up(*peer, up, *since, out);
        let view = View::AdjRibOut(*peer);
        for of_family in &self.families {
            for ((route, _), prefixes) in groups(&of_family.routes) {
                // They were sent with these: there is room.
                if let Some(announcement) =
                    self.export.announcement(of_family.family, of_family.next_hop, route)
                {
                    bmp::announcements(view, &announcement, prefixes, at, out);
                }
            }
            if of_family.complete {
                bmp::end_of_rib(view, of_family.family, at, out);
            }
        }
    }
}
