//! What became different, for whoever monitors it. Noted while somebody does, as names alone: what there is by then is looked up when it
//! is told.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Learnt, reached};
use crate::Family;
use crate::rib::adj_in::Held;
use crate::rib::path::Path;
use crate::wire::Nlri;

/// What became different since it was taken last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Routes that a peer announces or withdraws (Adj-RIB-In).
    pub received: BTreeSet<(IpAddr, Nlri)>,
    /// Routes of a peer that its import policy lets in, or no more.
    pub accepted: BTreeSet<(IpAddr, Nlri)>,
    /// Prefixes for which routes were decided on anew (Loc-RIB).
    pub decided: BTreeSet<IpNet>,
    /// Peers that have told all of a family.
    pub told_all: BTreeSet<(IpAddr, Family)>,
}

/// A route of a peer, as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its prefix, and which of the peer's paths to it.
    pub nlri: Nlri,
    /// What it came with.
    pub path: Arc<Path>,
    /// The import policy lets it in.
    pub accepted: bool,
}

impl Received {
    fn of(nlri: &Nlri, held: &Held) -> Received {
        Received { nlri: *nlri, path: Arc::clone(&held.path), accepted: held.accepted }
    }
}

impl Learnt {
    /// Has changes noted from now on, or no more.
    pub fn monitor(&mut self, on: bool) {
        match on {
            true => drop(self.noted.get_or_insert_default()),
            false => self.noted = None,
        }
    }

    /// Whether something was noted.
    pub fn has_noted(&self) -> bool {
        self.noted.as_ref().is_some_and(|noted| *noted != Changes::default())
    }

    /// Takes what was noted.
    pub fn take_noted(&mut self) -> Changes {
        self.noted.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Whether what the peer announces is kept.
    pub fn keeps(&self, peer: IpAddr) -> bool {
        self.peers.contains_key(&peer)
    }

    /// A route of a peer.
    pub fn received(&self, peer: IpAddr, nlri: Nlri) -> Option<Received> {
        Some(Received::of(&nlri, self.peers.get(&peer)?.get(&nlri)?))
    }

    /// The first of a peer's paths to a prefix: the one without a name, if there is one.
    pub fn first_received(&self, peer: IpAddr, prefix: IpNet) -> Option<Received> {
        let known = self.peers.get(&peer)?;
        known.paths(prefix).next().map(|(nlri, held)| Received::of(nlri, held))
    }

    /// All that a peer announces of a family, as far as it is kept.
    pub fn all_received(&self, peer: IpAddr, family: Family) -> Vec<Received> {
        let routes = self.peers.get(&peer).into_iter().flat_map(|known| &known.family(family).routes);
        routes.map(|(nlri, held)| Received::of(nlri, held)).collect()
    }

    /// The best route to a prefix. With several of equal worth it is the one that tells them apart best (RFC 4271 §9.1.2.2).
    pub fn best(&self, prefix: IpNet) -> Option<Arc<Path>> {
        self.loc_rib.best(&prefix, |hop| reached(self.links.as_ref(), hop))
    }

    /// Prefixes that there is a route to.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.loc_rib.used().map(|(prefix, _)| *prefix)
    }

    /// The best route to each prefix that there is one to.
    pub fn all_best(&self) -> impl Iterator<Item = (IpNet, Arc<Path>)> {
        self.prefixes().filter_map(|prefix| Some((prefix, self.best(prefix)?)))
    }
}
