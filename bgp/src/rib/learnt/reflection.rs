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
use crate::rib::path::{Path, Source};
use crate::rib::route::Reflected;
use crate::wire::{Nlri, RawAttribute};

/// What is different of what is passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reflections {
    /// Routes, each with the prefixes that it is of from now on.
    pub announce: Vec<(Reflected, Vec<IpNet>)>,
    /// Prefixes that none is passed on to any more.
    pub withdraw: Vec<IpNet>,
}

/// The state of a reflector.
#[derive(Debug, Default)]
pub(super) struct Reflecting {
    /// This speaker is one, with that CLUSTER_ID.
    cluster_id: Option<Ipv4Addr>,
    /// Paths to a prefix that may be passed on, by peer and path identifier.
    offered: BTreeMap<IpNet, BTreeSet<(IpAddr, u32)>>,
    /// Prefixes of which something changed since it was taken.
    changed: BTreeSet<IpNet>,
    /// The speaker goes, and its peers are to keep what they have been told.
    frozen: bool,
    /// After a restart: those whose End-of-RIB is awaited, and whether they are not known all.
    awaited: (BTreeSet<IpAddr>, bool),
    /// They are waited for no longer.
    deferred_enough: bool,
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
        } else if let Some(paths) = self.offered.get_mut(&prefix) {
            paths.remove(&(peer, path_id));
            if paths.is_empty() {
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
        let mut groups: HashMap<(&Path, IpAddr), (&Source, Vec<IpNet>)> = HashMap::new();
        for prefix in changed {
            match self.passed_on(&prefix) {
                Some(Candidate { path, source }) => {
                    let (_, prefixes) = groups.entry((path, source.peer)).or_insert((source, Vec::new()));
                    prefixes.push(prefix);
                }
                None => reflections.withdraw.push(prefix),
            }
        }
        let cluster_id = self.own.cluster_id;
        let passed_on = groups
            .into_iter()
            .map(|((path, _), (source, prefixes))| (path.reflected(source, cluster_id), prefixes));
        reflections.announce = passed_on.collect();
        // In one order, whatever the table's.
        reflections.announce.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        reflections
    }

    /// The route that is passed on of those that are offered.
    fn passed_on(&self, prefix: &IpNet) -> Option<Candidate<'_>> {
        let candidate = |&(peer, path_id)| {
            let known = self.peers.get(&peer)?;
            let held = known.get(&Nlri { prefix: *prefix, path_id })?;
            Some(Candidate { path: &held.path, source: known.source.as_deref()? })
        };
        let offered = self.reflecting.offered.get(prefix)?;
        select(offered.iter().filter_map(candidate).collect()).into_iter().next()
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
