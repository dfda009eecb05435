//! Routes: what is to be announced, what each peer has been told, and what it has yet to be told.
//!
//! ```text
//!   RouteChanges ──► Loc-RIB: prefix → attributes
//!                       │ per Established peer, by its export policy: what differs from what it was sent
//!                       ▼
//!                    Adj-RIB-Out: sent, and pending grouped by attributes ──► UPDATEs, as full as they get
//! ```
//!
//! A pending change is an entry for its prefix, not a message: a peer that reads slowly costs no more than one entry
//! for each prefix, and is told the latest state only. A change that is undone before it was sent is not sent.
//!
//! What peers announce goes the other way and never meets it: [`Learnt`] keeps what a peer's import policy asks for, and
//! decides which of it is used. Nothing of it is passed on to other peers.

mod adj_in;
mod adj_out;
mod decision;
mod export;
mod import;
mod learnt;
mod path;
mod policy;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{Attributes, Family};
use adj_out::AdjRibOut;
pub use adj_out::{FamilyOut, Written};
pub use export::Export;
pub use import::{ImportPolicy, LimitAction, MaxPrefixes, PrefixFilter, is_routable};
pub use learnt::{Changes, FamilyCounts, Learnt, LearntChange, LimitExceeded, Received};
pub use path::{Identity, Path, Source};
pub use policy::ExportPolicy;

/// A change to what is announced. A prefix in both lists ends up withdrawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Routes that are new or whose attributes changed.
    pub announce: Vec<(IpNet, Attributes)>,
    /// Routes that are no more.
    pub withdraw: Vec<IpNet>,
}

/// A route of ours.
#[derive(Debug)]
struct Route {
    /// Apart from the attributes, so that what peers are told in the same words is one set.
    kind: u8,
    attributes: Arc<Attributes>,
}

/// Every attribute set in use, once.
#[derive(Debug, Default)]
struct AttributeSets {
    sets: HashSet<Arc<Attributes>>,
    /// How many there may be before those are looked for that nobody uses.
    sweep_above: usize,
}

impl AttributeSets {
    fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        if let Some(known) = self.sets.get(&attributes) {
            return Arc::clone(known);
        }
        let new = Arc::new(attributes);
        self.sets.insert(Arc::clone(&new));
        new
    }

    /// Forgets sets that only this table still holds, once they may be the greater part.
    fn sweep(&mut self) {
        if self.sets.len() > self.sweep_above {
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.sweep_above = 2 * self.sets.len() + 16;
        }
    }
}

/// The Loc-RIB, and an Adj-RIB-Out for each Established peer.
#[derive(Debug, Default)]
pub struct Rib {
    routes: BTreeMap<IpNet, Route>,
    attributes: AttributeSets,
    peers: BTreeMap<IpAddr, AdjRibOut>,
    /// After a restart: not all routes are in yet.
    end_of_rib_held: bool,
    /// Counts calls to [`Rib::apply`].
    sequence: u64,
}

impl Rib {
    /// An empty one. `restarting` holds End-of-RIB back until [`Rib::initial_routes_complete`] (RFC 4724 §4.1).
    pub fn new(restarting: bool) -> Rib {
        Rib { end_of_rib_held: restarting, ..Rib::default() }
    }

    /// How many routes are to be announced.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether nothing is to be announced.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// What is to be announced.
    pub fn routes(&self) -> impl Iterator<Item = (IpNet, &Arc<Attributes>)> {
        self.routes.iter().map(|(prefix, route)| (*prefix, &route.attributes))
    }

    /// Whether there is a route of our own to a prefix.
    pub fn has(&self, prefix: &IpNet) -> bool {
        self.routes.contains_key(prefix)
    }

    /// Whether all routes of an earlier life are in.
    pub fn is_complete(&self) -> bool {
        !self.end_of_rib_held
    }

    /// The number of the latest change, for [`Written::drained`].
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Changes what is announced.
    pub fn apply(&mut self, changes: RouteChanges) {
        self.sequence += 1;
        for (prefix, mut attributes) in changes.announce {
            let prefix = prefix.trunc();
            let kind = std::mem::take(&mut attributes.kind);
            let route = Route { kind, attributes: self.attributes.intern(attributes) };
            for peer in self.peers.values_mut() {
                peer.set(prefix, Some(&route), &mut self.attributes);
            }
            self.routes.insert(prefix, route);
        }
        for prefix in changes.withdraw {
            let prefix = prefix.trunc();
            if self.routes.remove(&prefix).is_some() {
                for peer in self.peers.values_mut() {
                    peer.set(prefix, None, &mut self.attributes);
                }
            }
        }
        self.attributes.sweep();
    }

    /// All routes of the earlier life are in again: End-of-RIB may be sent.
    pub fn initial_routes_complete(&mut self) {
        self.end_of_rib_held = false;
    }

    /// A session is Established: everything is to be sent, then End-of-RIB.
    pub fn peer_up(&mut self, peer: IpAddr, export: Export) {
        let mut out = AdjRibOut::new(export);
        for (prefix, route) in &self.routes {
            out.set(*prefix, Some(route), &mut self.attributes);
        }
        self.peers.insert(peer, out);
    }

    /// A session is over.
    pub fn peer_down(&mut self, peer: IpAddr) {
        self.peers.remove(&peer);
    }

    /// The peer wants to be sent all of a family again (RFC 2918).
    pub fn refresh(&mut self, peer: IpAddr, family: Family) {
        if let Some(out) = self.peers.get_mut(&peer) {
            out.refresh(family, &self.routes, &mut self.attributes);
        }
    }

    /// Changes what an Established peer is told to send to; all of a family whose next hop is another is announced again,
    /// and nothing withdrawn unless there is none any more.
    pub fn set_next_hops(&mut self, peer: IpAddr, next_hops: &[(Family, Option<IpAddr>)]) {
        if let Some(out) = self.peers.get_mut(&peer) {
            out.set_next_hops(next_hops, &self.routes, &mut self.attributes);
        }
    }

    /// Changes of which routes an Established peer is told, and with what: attributes that change are announced again, and what does
    /// not pass any more is withdrawn.
    pub fn set_policy(&mut self, peer: IpAddr, policy: &ExportPolicy) {
        if let Some(out) = self.peers.get_mut(&peer) {
            out.set_policy(policy, &self.routes, &mut self.attributes);
            self.attributes.sweep();
        }
    }

    /// How many changes a peer has yet to be told.
    pub fn changes(&self, peer: IpAddr) -> usize {
        self.families(peer).iter().map(FamilyOut::pending).sum()
    }

    /// Whether [`Rib::write`] would write something to this peer.
    pub fn has_pending(&self, peer: IpAddr) -> bool {
        self.peers.get(&peer).is_some_and(|out| out.has_pending(self.end_of_rib_held))
    }

    /// Appends UPDATEs for this peer to `out`, until nothing is pending or `out` has reached `limit` bytes.
    pub fn write(&mut self, peer: IpAddr, out: &mut Vec<u8>, limit: usize) -> Written {
        let Some(adj_out) = self.peers.get_mut(&peer) else { return Written::default() };
        let mut written = adj_out.write(out, limit, self.end_of_rib_held);
        written.drained = (!adj_out.has_changes()).then_some(self.sequence);
        written
    }

    /// How a peer is told of routes, while it is Established.
    pub fn export(&self, peer: IpAddr) -> Option<&Export> {
        self.peers.get(&peer).map(AdjRibOut::export)
    }

    /// What the peer has been told, for each negotiated family; empty while it is not Established.
    pub fn families(&self, peer: IpAddr) -> &[FamilyOut] {
        self.peers.get(&peer).map_or(&[], AdjRibOut::families)
    }
}
