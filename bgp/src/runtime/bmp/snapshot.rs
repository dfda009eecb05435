//! All that a station is told when it connects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::{BmpTables, LOC_RIB, Monitor, Subscriber, Subscription, Up, learnt, loc_rib_routes, lock, now};
use crate::Family;
use crate::bmp::{self, Statistic, View};
use crate::rib::{Export, FamilyOut, Learnt, Path, Received, Rib, Route};
use crate::wire::Nlri;

/// Sessions and tables at one moment: copied under the RIB's lock, made into messages without it.
pub(super) struct Snapshot {
    tables: BmpTables,
    loc_rib: Vec<(Nlri, Arc<Route>)>,
    /// Routes of peers that import policies let in, where there are none of our own.
    best: Vec<(IpNet, Arc<Path>)>,
    loc_rib_complete: bool,
    peers: Vec<PeerSnapshot>,
}

struct PeerSnapshot {
    up: Up,
    export: Export,
    families: Vec<FamilySnapshot>,
    received: Vec<ReceivedSnapshot>,
}

struct ReceivedSnapshot {
    family: Family,
    routes: Vec<Received>,
    complete: bool,
}

struct FamilySnapshot {
    family: Family,
    next_hop: Option<IpAddr>,
    routes: Vec<(Nlri, Arc<Route>)>,
    complete: bool,
}

/// Routes that share attributes, together.
fn groups(routes: &[(Nlri, Arc<Route>)]) -> BTreeMap<(&Route, Family), Vec<Nlri>> {
    let mut groups: BTreeMap<_, Vec<Nlri>> = BTreeMap::new();
    for (nlri, route) in routes {
        groups.entry((&**route, Family::of(&nlri.prefix))).or_default().push(*nlri);
    }
    groups
}

impl Monitor {
    /// What there is now in `tables`, and a queue of up to `limit` bytes for what happens from now on. Both are locked.
    pub(super) fn subscribe(
        &self,
        rib: &Rib,
        learnt: &mut Learnt,
        tables: BmpTables,
        limit: usize,
    ) -> (Snapshot, Subscription) {
        if tables.any_learnt() {
            learnt.monitor(true);
        }
        let learnt = &*learnt;
        let mut state = lock(&self.state);
        let peers = state.up.values().filter_map(|up| {
            let peer = up.peer.address;
            let outs = rib.families(peer).iter().filter(|_| tables.adj_rib_out);
            let families = outs.map(|out| FamilySnapshot {
                family: out.family(),
                next_hop: out.next_hop(),
                routes: rib.holds(peer, out.family()).map(|(nlri, set)| (nlri, Arc::clone(set))).collect(),
                complete: out.end_of_rib_sent(),
            });
            let ins = tables.adj_rib_in || tables.adj_rib_in_post_policy;
            let received = Family::ALL.into_iter().filter_map(|family| {
                let counts = learnt.counts(peer, family).filter(|_| ins)?;
                let mut routes = learnt.all_received(peer, family);
                if !up.received.add_path.contains(family) {
                    // As changes are told: the first is the one.
                    routes.dedup_by_key(|route| route.nlri.prefix);
                }
                Some(ReceivedSnapshot { family, routes, complete: counts.end_of_rib })
            });
            let export = rib.export(peer)?.clone();
            let (families, received) = (families.collect(), received.collect());
            Some(PeerSnapshot { up: up.clone(), export, families, received })
        });
        let comes_first = |(prefix, route): &(IpNet, &Arc<Route>)| {
            tables.loc_rib && (route.is_own() || learnt.best(*prefix).is_none())
        };
        let own = rib.routes().filter(comes_first);
        let best = tables.loc_rib.then(|| learnt.all_best()).into_iter().flatten();
        let best = best.filter(|(prefix, _)| !rib.has_own(prefix));
        let snapshot = Snapshot {
            tables,
            loc_rib: own.map(|(prefix, set)| (prefix.into(), Arc::clone(set))).collect(),
            best: best.collect(),
            loc_rib_complete: rib.is_complete(),
            peers: peers.collect(),
        };
        let (queue, receiver) = mpsc::unbounded_channel();
        let (cut, is_cut) = oneshot::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        state.subscribers.push(Subscriber { tables, queue, queued: Arc::clone(&queued), limit, _cut: cut });
        if tables.adj_rib_in {
            self.asks.fetch_add(1, Ordering::Relaxed);
        }
        (snapshot, Subscription { queue: receiver, queued, cut: is_cut })
    }

    /// Appends a report of how many routes there are in `tables`.
    pub(super) fn statistics(&self, rib: &Rib, learnt: &Learnt, tables: BmpTables, out: &mut Vec<u8>) {
        let state = lock(&self.state);
        let at = now();
        if tables.loc_rib {
            let own = rib.routes().map(|(prefix, _)| prefix);
            let all = own.chain(learnt.prefixes().filter(|prefix| rib.route(prefix).is_none()));
            let mut counts = BTreeMap::from(Family::ALL.map(|family| (family, 0)));
            all.for_each(|prefix| *counts.entry(Family::of(&prefix)).or_default() += 1);
            let mut loc_rib = vec![Statistic::LocRib(counts.values().sum())];
            loc_rib.extend(counts.into_iter().map(|(family, count)| Statistic::LocRibOf(family, count)));
            bmp::statistics(self.loc_rib(), &loc_rib, at, out);
        }
        for up in state.up.values() {
            let peer = up.peer.address;
            let mut statistics = Vec::new();
            if tables.adj_rib_out {
                let families = rib.families(peer);
                statistics.push(Statistic::AdjRibOut(families.iter().map(|out| out.sent() as u64).sum()));
                let of = |out: &FamilyOut| Statistic::AdjRibOutOf(out.family(), out.sent() as u64);
                statistics.extend(families.iter().map(of));
            }
            if (tables.adj_rib_in || tables.adj_rib_in_post_policy) && learnt.keeps(peer) {
                let count = |family| learnt.counts(peer, family).map_or(0, |counts| counts.received as u64);
                statistics.push(Statistic::AdjRibIn(Family::ALL.into_iter().map(count).sum()));
                statistics.extend(Family::ALL.map(|family| Statistic::AdjRibInOf(family, count(family))));
            }
            if !statistics.is_empty() {
                bmp::statistics(View::Session(up.peer), &statistics, at, out);
            }
        }
    }

    /// Messages of it, table by table; one that is not asked for is not made.
    pub(super) fn messages(&self, snapshot: &Snapshot) -> impl Iterator<Item = Vec<u8>> {
        let at = now();
        let loc_rib = move || {
            let mut out = Vec::new();
            if !snapshot.tables.loc_rib {
                return out;
            }
            bmp::loc_rib_up(self.asn, self.router_id, &self.loc_rib_open(), at, &mut out);
            for ((route, family), prefixes) in groups(&snapshot.loc_rib) {
                loc_rib_routes(self.loc_rib(), route, family, prefixes, at, &mut out);
            }
            let best = snapshot.best.iter().map(|(prefix, path)| ((*prefix).into(), Some(Arc::clone(path))));
            learnt::routes(self.loc_rib(), LOC_RIB, best, at, &mut out);
            for family in Family::ALL.into_iter().filter(|_| snapshot.loc_rib_complete) {
                bmp::end_of_rib(self.loc_rib(), family, at, &mut out);
            }
            out
        };
        let peers = snapshot.peers.iter().map(move |peer| {
            let mut out = Vec::new();
            peer.messages(snapshot.tables, at, &mut out);
            out
        });
        std::iter::once_with(loc_rib).chain(peers)
    }
}

impl PeerSnapshot {
    fn messages(&self, tables: BmpTables, at: Duration, out: &mut Vec<u8>) {
        let Up { peer, up, since, received } = &self.up;
        bmp::peer_up(*peer, up, *since, out);
        let ins = [
            (tables.adj_rib_in, View::Session(*peer), false),
            (tables.adj_rib_in_post_policy, View::AdjRibInPostPolicy(*peer), true),
        ];
        for (_, view, post_policy) in ins.into_iter().filter(|(wanted, ..)| *wanted) {
            for ReceivedSnapshot { family, routes, complete } in &self.received {
                learnt::routes(view, *received, learnt::in_table(routes, post_policy), at, out);
                if *complete {
                    bmp::end_of_rib(view, *family, at, out);
                }
            }
        }
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
