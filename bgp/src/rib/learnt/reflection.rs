//! What a route reflector passes on of what internal peers announce (RFC 4456).
//!
//! Which of several routes is the one is found out when it is asked for: a burst of changes to a prefix is one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::Learnt;
use crate::rib::adj_in::AdjRibIn;
use crate::rib::decision::{Candidate, select};
use crate::rib::loc_rib::OWN_PATH;
use crate::rib::path::{Path, Source};
use crate::rib::route::Reflected;
use crate::wire::{Nlri, RawAttribute};

/// What is different of what is passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reflections {
    /// Routes that are passed on.
    pub routes: Vec<Reflected>,
    /// Prefixes, each with all paths to it from now on, the best first: their names (RFC 7911), and which of `routes`.
    pub prefixes: Vec<(IpNet, Vec<(u32, usize)>)>,
}

/// The state of a reflector.
#[derive(Debug, Default)]
pub(super) struct Reflecting {
    /// This speaker is one, with that CLUSTER_ID.
    cluster_id: Option<Ipv4Addr>,
    /// Paths to a prefix that may be passed on.
    offered: BTreeMap<IpNet, Offered>,
    /// Prefixes of which something changed since it was taken.
    changed: BTreeSet<IpNet>,
    /// The speaker goes, and its peers are to keep what they have been told.
    frozen: bool,
    /// After a restart: those whose End-of-RIB is awaited, and whether they are not known all.
    awaited: (BTreeSet<IpAddr>, bool),
    /// They are waited for no longer.
    deferred_enough: bool,
}

/// Paths to a prefix that may be passed on.
#[derive(Debug, Default)]
struct Offered {
    /// By peer and its path identifier: what they are called.
    paths: BTreeMap<(IpAddr, u32), u32>,
    /// The name that was given last.
    latest: u32,
}

impl Offered {
    fn insert(&mut self, path: (IpAddr, u32)) {
        if self.paths.contains_key(&path) {
            return;
        }
        // One that was not in use for as long as can be.
        let mut name = self.latest;
        loop {
            name = name.wrapping_add(1).max(OWN_PATH + 1);
            if !self.paths.values().any(|used| *used == name) {
                break;
            }
        }
        self.latest = name;
        self.paths.insert(path, name);
    }
}

impl Reflecting {
    pub(super) fn is_on(&self) -> bool {
        self.cluster_id.is_some()
    }

    /// Whether what comes by a session is passed on.
    pub(super) fn of(&self, source: &Source) -> bool {
        self.is_on() && source.ibgp
    }

    /// A peer's route changed, and is offered or not.
    pub(super) fn set(&mut self, nlri: &Nlri, peer: IpAddr, offered: bool) {
        let Nlri { prefix, path_id } = *nlri;
        if offered {
            self.offered.entry(prefix).or_default().insert((peer, path_id));
        } else if let Some(offered) = self.offered.get_mut(&prefix) {
            offered.paths.remove(&(peer, path_id));
            if offered.paths.is_empty() {
                self.offered.remove(&prefix);
            }
        }
        self.changed.insert(prefix);
    }
}

impl Learnt {
    /// Makes this speaker a route reflector with that CLUSTER_ID, or none. What is kept is judged again; what is there for
    /// that alone goes with it.
    pub fn set_reflector(&mut self, cluster_id: Option<Ipv4Addr>) {
        if self.reflecting.cluster_id == cluster_id {
            return;
        }
        self.reflecting.cluster_id = cluster_id;
        self.own.cluster_id = cluster_id.unwrap_or(self.own.router_id);
        let peers: Vec<(IpAddr, bool)> =
            self.peers.iter().map(|(peer, known)| (*peer, known.policy.is_some())).collect();
        for (peer, has_policy) in peers {
            if has_policy || self.reflecting.is_on() {
                self.judge_all(peer);
            } else {
                self.drop_peer(peer);
            }
        }
    }

    /// Makes a peer that there is a session with a client of this reflector, or not.
    pub fn set_client(&mut self, peer: IpAddr, client: bool) {
        let Some(source) = self.peers.get_mut(&peer).and_then(|known| known.source.as_mut()) else { return };
        if source.client != client {
            Arc::make_mut(source).client = client;
            self.judge_all(peer);
        }
    }

    /// From now on nothing is passed on: peers are to keep what they have been told while this speaker restarts.
    pub fn freeze(&mut self) {
        self.reflecting.frozen = true;
    }

    /// Those whose End-of-RIB this speaker's own waits for if it has restarted: `peers`, and others that are not known
    /// before they come where `others` says so (RFC 4724 §4.1).
    pub fn await_peers(&mut self, peers: impl IntoIterator<Item = IpAddr>, others: bool) {
        self.reflecting.awaited = (peers.into_iter().collect(), others);
    }

    /// Those that have not told all it takes are waited for no longer.
    pub fn stop_waiting(&mut self) {
        self.reflecting.deferred_enough = true;
    }

    /// Whether nothing is left to be heard of those that this speaker passes on for.
    pub fn has_heard_all(&self) -> bool {
        let (peers, others) = &self.reflecting.awaited;
        !self.reflecting.is_on()
            || self.reflecting.deferred_enough
            || !others && peers.iter().all(|peer| self.peers.get(peer).is_some_and(AdjRibIn::has_told))
    }

    /// Takes what is different of what is passed on.
    pub fn take_reflections(&mut self) -> Reflections {
        let changed = std::mem::take(&mut self.reflecting.changed);
        let mut reflections = Reflections::default();
        if self.reflecting.frozen {
            return reflections;
        }
        let cluster_id = self.own.cluster_id;
        // A path is kept once, and looks different by whom it came from.
        let mut known: HashMap<(*const Path, IpAddr), usize> = HashMap::new();
        for prefix in changed {
            let mut paths = Vec::new();
            for (name, Candidate { path, source }) in self.passed_on(&prefix) {
                let route = *known.entry((std::ptr::from_ref(path), source.peer)).or_insert_with(|| {
                    reflections.routes.push(path.reflected(source, cluster_id));
                    reflections.routes.len() - 1
                });
                paths.push((name, route));
            }
            reflections.prefixes.push((prefix, paths));
        }
        reflections
    }

    /// The paths that are passed on, with their names: the best first.
    fn passed_on(&self, prefix: &IpNet) -> Vec<(u32, Candidate<'_>)> {
        let Some(offered) = self.reflecting.offered.get(prefix) else { return Vec::new() };
        let candidate = |(&(peer, path_id), name): (&(IpAddr, u32), &u32)| {
            let known = self.peers.get(&peer)?;
            let held = known.get(&Nlri { prefix: *prefix, path_id })?;
            Some((*name, Candidate { path: &held.path, source: known.source.as_deref()? }))
        };
        let mut paths: Vec<_> = offered.paths.iter().filter_map(candidate).collect();
        let best = select(paths.iter().map(|(_, candidate)| *candidate).collect()).into_iter().next();
        let is_best = |(_, path): &(u32, Candidate<'_>)| {
            best.is_some_and(|best| {
                std::ptr::eq(best.path, path.path) && best.source.peer == path.source.peer
            })
        };
        if let Some(place) = paths.iter().position(is_best) {
            paths[..=place].rotate_right(1);
        }
        paths
    }
}

impl Path {
    /// How it is passed on within the AS: as it is, but for who began it and where it has been (RFC 4456 §8).
    fn reflected(&self, source: &Source, cluster_id: Ipv4Addr) -> Reflected {
        let mut attributes = self.attributes.clone();
        attributes.originator_id.get_or_insert(source.router_id);
        attributes.cluster_list.insert(0, cluster_id);
        // Mandatory within the AS (RFC 4271 §5.1.5), though not all heed that.
        attributes.local_pref.get_or_insert(self.local_pref());
        attributes.other = self.attributes.other.iter().filter_map(RawAttribute::passed_on).collect();
        Reflected { from: source.peer, of_client: source.client, next_hop: self.next_hop.address, attributes }
    }
}
