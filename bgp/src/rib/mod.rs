//! Routes: what is to be announced, what each peer has been told, and what it has yet to be told.
//!
//! ```text
//!   RouteChanges, Reflections ──► Loc-RIB: prefix → paths, the best first
//!                       │ per group of peers that are told the same: what export policies make of it
//!                       ▼
//!                    update group: what its peers are told, and what has changed of it by attributes
//!                       │ per Established peer, as soon as it can read
//!                       ▼
//!                    Adj-RIB-Out: how far the peer is ──► UPDATEs, as full as they get
//! ```
//!
//! A pending change is an entry for its prefix, not a message: a peer that reads slowly costs no more than an entry for each prefix that it
//! is being told of, and one for each that has changed since. A change that is undone before it was taken is not sent.
//!
//! What peers announce goes the other way: [`Learnt`] keeps what a peer's import policy asks for, and decides which of it
//! is used. A route reflector keeps what internal peers announce besides, policy or not, and passes the best of it on to
//! others of them (RFC 4456), or all of it where they take several paths to a prefix (RFC 7911); they meet in the Loc-RIB. Between ASes nothing is passed on, in neither direction.

mod adj_in;
mod adj_out;
mod batch;
mod decision;
mod export;
mod group;
mod import;
mod interned;
mod learnt;
mod loc_rib;
mod next_hop;
mod path;
mod policy;
mod route;

#[cfg(test)]
mod reflection_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::wire::Nlri;
use crate::{Attributes, Family};
use adj_out::AdjRibOut;
pub use adj_out::{FamilyOut, Written};
pub use export::Export;
use group::Groups;
pub use import::{ImportPolicy, LimitAction, MaxPrefixes, PrefixFilter, is_routable};
pub use learnt::{Changes, FamilyCounts, Learnt, LearntChange, LimitExceeded, Received, Reflections};
use loc_rib::{LocRib, OWN_PATH};
pub use next_hop::{Links, NextHop};
pub use path::{Identity, Path, Source};
pub use policy::ExportPolicy;
use route::Routes;
pub use route::{Reflected, Route};

/// A change to what is announced. A prefix in both lists ends up withdrawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Routes that are new or whose attributes changed.
    pub announce: Vec<(IpNet, Attributes)>,
    /// Routes that are no more.
    pub withdraw: Vec<IpNet>,
}

/// What [`Rib::reflect`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Some peer may have to be told something.
    pub something: bool,
    /// Prefixes of which another route is the best.
    pub best: Vec<IpNet>,
}

/// The Loc-RIB, and an Adj-RIB-Out for each Established peer.
#[derive(Debug, Default)]
pub struct Rib {
    loc_rib: LocRib,
    routes: Routes,
    groups: Groups,
    /// The Established peers.
    peers: BTreeMap<IpAddr, AdjRibOut>,
    /// After a restart: not all routes of our own are in yet.
    own_awaited: bool,
    /// After a restart: peers have yet to tell what is passed on.
    peers_awaited: bool,
    /// Counts calls to [`Rib::apply`].
    sequence: u64,
}

impl Rib {
    /// An empty one. `restarting` holds End-of-RIB back until [`Rib::initial_routes_complete`] and
    /// [`Rib::peers_have_told`] (RFC 4724 §4.1).
    pub fn new(restarting: bool) -> Rib {
        Rib { own_awaited: restarting, peers_awaited: restarting, ..Rib::default() }
    }

    /// How many routes are to be announced.
    pub fn len(&self) -> usize {
        self.loc_rib.len()
    }

    /// Whether nothing is to be announced.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of them are passed on from peer to peer.
    pub fn reflected(&self) -> usize {
        self.loc_rib.reflected()
    }

    /// What is to be announced: of each prefix the best.
    pub fn routes(&self) -> impl Iterator<Item = (IpNet, &Arc<Route>)> {
        self.loc_rib.iter().filter_map(|(prefix, paths)| Some((*prefix, paths.best()?.route)))
    }

    /// What is to be announced of a prefix: the best.
    pub fn route(&self, prefix: &IpNet) -> Option<&Arc<Route>> {
        self.loc_rib.get(prefix).best().map(|known| known.route)
    }

    /// Whether there is a route of our own to a prefix.
    pub fn has_own(&self, prefix: &IpNet) -> bool {
        self.loc_rib.has_own(prefix)
    }

    /// Whether all routes of an earlier life are in.
    pub fn is_complete(&self) -> bool {
        !(self.own_awaited || self.peers_awaited)
    }

    /// Whether nothing but what peers tell is awaited.
    pub fn awaits_peers_alone(&self) -> bool {
        self.peers_awaited && !self.own_awaited
    }

    /// The number of the latest change, for [`Written::drained`].
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Changes what is announced of our own.
    pub fn apply(&mut self, changes: RouteChanges) {
        self.sequence += 1;
        for (prefix, mut attributes) in changes.announce {
            let prefix = prefix.trunc();
            let kind = std::mem::take(&mut attributes.kind);
            let route = self.routes.intern(Route::Own(attributes));
            if self.loc_rib.set_own(prefix, Some((kind, route))) {
                self.offer(prefix, &[]);
            }
        }
        for prefix in changes.withdraw {
            let prefix = prefix.trunc();
            if self.loc_rib.set_own(prefix, None) {
                self.offer(prefix, &[OWN_PATH]);
            }
        }
        self.routes.sweep();
    }

    /// Changes what is passed on; what became different.
    pub fn reflect(&mut self, changes: Reflections) -> Passed {
        let intern = |route| self.routes.intern(Route::Reflected(route));
        let routes: Vec<Arc<Route>> = changes.routes.into_iter().map(intern).collect();
        let mut passed = Passed::default();
        for (prefix, paths) in changes.prefixes {
            let named =
                paths.into_iter().filter_map(|(name, route)| Some((name, Arc::clone(routes.get(route)?))));
            if let Some(changed) = self.loc_rib.set_reflected(prefix, named.collect()) {
                self.offer(prefix, &changed.gone);
                passed.something = true;
                passed.best.extend(changed.best.then_some(prefix));
            }
        }
        self.routes.sweep();
        passed
    }

    /// Has every peer be told what there is now, and that other paths are `gone`.
    fn offer(&mut self, prefix: IpNet, gone: &[u32]) {
        let paths = self.loc_rib.get(&prefix);
        for group in self.groups.iter_mut() {
            group.follow(prefix, paths, gone, &mut self.routes);
        }
    }

    /// All routes of the earlier life that are our own are in again.
    pub fn initial_routes_complete(&mut self) {
        self.own_awaited = false;
    }

    /// All that is passed on is in again, or is waited for no longer.
    pub fn peers_have_told(&mut self) {
        self.peers_awaited = false;
    }

    /// A session is Established: everything is to be sent, then End-of-RIB.
    pub fn peer_up(&mut self, peer: IpAddr, export: Export) {
        self.peer_down(peer);
        let out = AdjRibOut::new(export, &mut self.groups, &self.loc_rib, &mut self.routes);
        self.peers.insert(peer, out);
    }

    /// A session is over.
    pub fn peer_down(&mut self, peer: IpAddr) {
        if let Some(out) = self.peers.remove(&peer) {
            out.leave(&mut self.groups);
        }
    }

    /// The peer wants to be sent all of a family again (RFC 2918).
    pub fn refresh(&mut self, peer: IpAddr, family: Family) {
        if let Some(out) = self.peers.get_mut(&peer) {
            out.refresh(family);
        }
    }

    /// Changes what an Established peer is told to send to; what is ours of a family whose next hop is another is announced
    /// again, and nothing withdrawn unless there is none any more.
    pub fn set_next_hops(&mut self, peer: IpAddr, next_hops: &[(Family, Option<IpAddr>)]) {
        if let Some(out) = self.peers.get_mut(&peer) {
            out.set_next_hops(next_hops);
        }
    }

    /// Makes an Established peer a client of this reflector, or not: it is told more then, or less.
    pub fn set_client(&mut self, peer: IpAddr, client: bool) {
        self.change(peer, |export| export.client = client);
    }

    /// Changes of which routes an Established peer is told, and with what: attributes that change are announced again, and what does
    /// not pass any more is withdrawn.
    pub fn set_policy(&mut self, peer: IpAddr, policy: &ExportPolicy) {
        self.change(peer, |export| export.policy = policy.clone());
        self.routes.sweep();
    }

    fn change(&mut self, peer: IpAddr, change: impl FnOnce(&mut Export)) {
        if let Some(out) = self.peers.get_mut(&peer) {
            out.change(change, &mut self.groups, &self.loc_rib, &mut self.routes);
        }
    }

    /// How many changes a peer may have yet to be told.
    pub fn changes(&self, peer: IpAddr) -> usize {
        self.families(peer).iter().map(|family| family.pending).sum()
    }

    /// Whether [`Rib::write`] would write something to this peer.
    pub fn has_pending(&self, peer: IpAddr) -> bool {
        self.peers.get(&peer).is_some_and(|out| out.has_pending(&self.groups, !self.is_complete()))
    }

    /// Appends UPDATEs for this peer to `out`, until nothing is pending or `out` has reached `limit` bytes.
    pub fn write(&mut self, peer: IpAddr, out: &mut Vec<u8>, limit: usize) -> Written {
        let end_of_rib_held = !self.is_complete();
        let Some(adj_out) = self.peers.get_mut(&peer) else { return Written::default() };
        let mut written = adj_out.write(&mut self.groups, out, limit, end_of_rib_held);
        written.drained = (!adj_out.has_changes(&self.groups)).then_some(self.sequence);
        written
    }

    /// How a peer is told of routes, while it is Established.
    pub fn export(&self, peer: IpAddr) -> Option<&Export> {
        self.peers.get(&peer).map(AdjRibOut::export)
    }

    /// How far the peer has been told of each negotiated family; empty while it is not Established.
    pub fn families(&self, peer: IpAddr) -> Vec<FamilyOut> {
        self.peers.get(&peer).map(|out| out.state(&self.groups)).unwrap_or_default()
    }

    /// What the peer holds of a family.
    pub fn held(&self, peer: IpAddr, family: Family) -> Vec<(Nlri, Arc<Route>)> {
        self.peers.get(&peer).map(|out| out.held(family, &self.groups)).unwrap_or_default()
    }
}
