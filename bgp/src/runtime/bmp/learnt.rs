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
mod tests;
