//! Update groups: peers that are told the same. What they are told is kept once, policies are asked once for all of them, and what
//! changes is put together once for those that are as far.
//!
//! Which routes those are depends on the export policy and on what the sessions agreed on, not on next hops: two leaf routers are one
//! group.
//!
//! Each change has a number. A peer that has been told all up to a number takes the changes after it as one [`Batch`], in which a path
//! that changed several times is once. What it held of such a path is kept with the change, for as long as a peer is behind it: a peer
//! that reads slowly costs no more than one entry for each path.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::batch::Batch;
use super::export::Export;
use super::loc_rib::{LocRib, Paths};
use super::policy::ExportPolicy;
use super::route::{Known, Reflected, Route, Routes};
use crate::wire::Nlri;
use crate::{Community, Families, Family};

#[cfg(test)]
mod tests;

/// What decides which routes of a family a peer is told, whichever peer it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    family: Family,
    /// The peer takes several paths to a prefix, each with its name (RFC 7911); otherwise it is told the best, without one.
    several: bool,
    policy: ExportPolicy,
    /// What is passed on to internal peers; nothing is to others.
    internal: Option<Internal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Internal {
    client: bool,
    extended_next_hop: bool,
    long_lived: Families,
}

/// Peers that are told the same of a family.
#[derive(Debug)]
pub(super) struct Group {
    terms: Terms,
    told: BTreeMap<Nlri, Told>,
    /// The last change of each path that not all members have taken, by number.
    log: BTreeMap<u64, Logged>,
    /// The number of the last change.
    head: u64,
    /// That of the last change that all members have taken.
    settled: u64,
    /// Up to which change each of them has taken all; 0: it holds nothing.
    members: BTreeMap<IpAddr, u64>,
    /// What there is to take after a change, up to the last, while members wait for it.
    batches: Vec<(u64, Arc<Batch>)>,
}

/// What is told of a path.
#[derive(Debug)]
struct Told {
    /// `None`: it is gone, and not all members have taken that.
    now: Option<Arc<Route>>,
    /// By which change.
    change: u64,
}

#[derive(Debug)]
struct Logged {
    path: Nlri,
    now: Option<Arc<Route>>,
    before: Before,
}

/// What was told of a path before its last change, each from a change on, as far as a member may hold that.
#[derive(Debug)]
enum Before {
    /// What nobody holds.
    Nothing,
    One(u64, Option<Arc<Route>>),
    Several(Box<[(u64, Option<Arc<Route>>)]>),
}

impl Before {
    /// What was told of it when all changes up to this one had been taken.
    fn as_of(&self, taken: u64) -> Option<&Arc<Route>> {
        match self {
            Before::Nothing => None,
            Before::One(from, route) => route.as_ref().filter(|_| *from <= taken),
            Before::Several(all) => all.iter().rev().find(|(from, _)| *from <= taken)?.1.as_ref(),
        }
    }

    /// With what has been told since a change, until another, and without what no member holds.
    fn and(
        self,
        since: u64,
        route: Option<Arc<Route>>,
        until: u64,
        members: &BTreeMap<IpAddr, u64>,
    ) -> Before {
        let mut all = match self {
            Before::Nothing => return Before::One(since, route),
            Before::One(from, earlier) => vec![(from, earlier)],
            Before::Several(all) => all.into_vec(),
        };
        all.push((since, route));
        // Each holds until the next.
        let untils: Vec<u64> = all.iter().skip(1).map(|(from, _)| *from).chain([until]).collect();
        let is_held = |(from, until): (u64, u64)| members.values().any(|taken| (from..until).contains(taken));
        let held: Vec<bool> = all.iter().map(|(from, _)| *from).zip(untils).map(is_held).collect();
        let mut held = held.into_iter();
        all.retain(|_| held.next().unwrap_or(true));
        Before::Several(all.into())
    }
}

/// All groups, none of them empty.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<u64, Group>,
    /// What the next one is called.
    next: u64,
}

impl Terms {
    pub(super) fn of(export: &Export, family: Family) -> Terms {
        let Export { context, client, extended_next_hop, long_lived, policy, .. } = export;
        let (client, extended_next_hop, long_lived) = (*client, *extended_next_hop, *long_lived);
        Terms {
            family,
            several: context.add_path.contains(family),
            policy: policy.clone(),
            internal: context.ibgp.then_some(Internal { client, extended_next_hop, long_lived }),
        }
    }

    /// What is told of a route, if anything: of ours what the policy makes of it; one that is passed on as it is, by RFC 4456 §6, if
    /// the policy lets its prefix pass and the session can carry its next hop; and by RFC 9494 §4.3, if it is a last resort, to those
    /// that know what that is.
    fn told(&self, prefix: &IpNet, known: Known<'_>, routes: &mut Routes) -> Option<Arc<Route>> {
        let Known { kind, route } = known;
        match &**route {
            Route::Own(attributes) => {
                self.policy.passes(prefix, kind).then(|| match self.policy.changed(attributes) {
                    None => Arc::clone(route),
                    Some(changed) => routes.intern(Route::Own(changed)),
                })
            }
            Route::Reflected(Reflected { of_client, next_hop, attributes, .. }) => {
                let Internal { client, extended_next_hop, long_lived } = self.internal?;
                let fits = next_hop.is_ipv4() == matches!(prefix, IpNet::V4(_)) || extended_next_hop;
                let told = (*of_client || client)
                    && fits
                    && (!attributes.communities.contains(&Community::LLGR_STALE)
                        || long_lived.contains(Family::of(prefix)))
                    && self.policy.passes_on(prefix);
                told.then(|| Arc::clone(route))
            }
        }
    }
}

impl Group {
    fn new(terms: Terms, loc_rib: &LocRib, routes: &mut Routes) -> Group {
        let (told, log, members) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut group = Group { terms, told, log, head: 0, settled: 0, members, batches: Vec::new() };
        for (prefix, paths) in loc_rib.iter() {
            group.follow(*prefix, paths, &[], routes);
            // Nobody was told before.
            group.log.clear();
        }
        group
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The members are to hold what they are told of what there is for `prefix`, and nothing of the paths that are `gone`.
    pub(super) fn follow(&mut self, prefix: IpNet, paths: Paths<'_>, gone: &[u32], routes: &mut Routes) {
        if Family::of(&prefix) != self.terms.family {
            return;
        }
        if !self.terms.several {
            let told = paths.best().and_then(|known| self.terms.told(&prefix, known, routes));
            return self.set(prefix.into(), told);
        }
        for path_id in gone {
            self.set(Nlri { prefix, path_id: *path_id }, None);
        }
        for (path_id, known) in paths.named() {
            let told = self.terms.told(&prefix, known, routes);
            self.set(Nlri { prefix, path_id }, told);
        }
    }

    fn set(&mut self, path: Nlri, now: Option<Arc<Route>>) {
        let told = match self.told.entry(path) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if now.is_none() => return,
            Entry::Vacant(new) => new.insert(Told { now: None, change: 0 }),
        };
        if told.now == now {
            return;
        }
        self.head += 1;
        self.batches.clear();
        let (since, was) = (told.change, std::mem::replace(&mut told.now, now.clone()));
        told.change = self.head;
        let logged = if since > self.settled { self.log.remove(&since) } else { None };
        let mut before = logged.map_or(Before::Nothing, |logged| logged.before);
        // What nobody has taken nobody holds.
        if since > 0 && self.members.values().any(|taken| *taken >= since) {
            before = before.and(since, was, self.head, &self.members);
        }
        self.log.insert(self.head, Logged { path, now, before });
    }

    /// What was told of a path when somebody had taken all up to a change.
    fn as_of<'a>(&'a self, told: &'a Told, taken: u64) -> Option<&'a Arc<Route>> {
        if taken >= told.change {
            return told.now.as_ref();
        }
        self.log.get(&told.change)?.before.as_of(taken)
    }

    /// What a member has taken.
    pub(super) fn taken(&self, peer: IpAddr) -> impl Iterator<Item = (Nlri, &Arc<Route>)> {
        let taken = self.members.get(&peer).copied().unwrap_or(0);
        self.told.iter().filter_map(move |(path, told)| Some((*path, self.as_of(told, taken)?)))
    }

    /// What is told now.
    pub(super) fn now(&self) -> impl Iterator<Item = (Nlri, &Arc<Route>)> {
        self.told.iter().filter_map(|(path, told)| Some((*path, told.now.as_ref()?)))
    }

    /// How many changes a member has yet to take.
    pub(super) fn untaken(&self, peer: IpAddr) -> usize {
        match self.members.get(&peer) {
            Some(taken) if *taken == self.head => 0,
            Some(0) => self.told.len(),
            Some(taken) => self.log.range(taken + 1..).count(),
            None => 0,
        }
    }

    /// Whether a member has taken all.
    pub(super) fn has_taken_all(&self, peer: IpAddr) -> bool {
        self.members.get(&peer).is_none_or(|taken| *taken == self.head)
    }

    /// All that a member has yet to take; `None`: nothing.
    pub(super) fn take(&mut self, peer: IpAddr) -> Option<Arc<Batch>> {
        let taken = self.members.get(&peer).copied().filter(|taken| *taken < self.head)?;
        let known = self.batches.iter().find(|(after, _)| *after == taken);
        let batch = known.map(|(_, batch)| Arc::clone(batch)).unwrap_or_else(|| {
            let batch = Arc::new(self.after(taken));
            self.batches.push((taken, Arc::clone(&batch)));
            batch
        });
        self.catch_up(peer);
        Some(batch)
    }

    /// All changes after this one.
    fn after(&self, taken: u64) -> Batch {
        if taken == 0 {
            let all = self.now().map(|(path, now)| (path, None, Some(Arc::clone(now))));
            return Batch::new(all, false);
        }
        let changes = self.log.range(taken + 1..).filter_map(|(_, Logged { path, now, before })| {
            let before = before.as_of(taken);
            (before != now.as_ref()).then(|| (*path, before.cloned(), now.clone()))
        });
        Batch::new(changes, false)
    }

    /// A member is told in other ways what it has yet to take.
    pub(super) fn catch_up(&mut self, peer: IpAddr) {
        self.members.insert(peer, self.head);
        self.settle();
    }

    /// Forgets what no member holds any more, and what none waits for.
    fn settle(&mut self) {
        let members = &self.members;
        self.batches.retain(|(after, _)| members.values().any(|taken| taken == after));
        let Some(all) = members.values().min().copied() else { return };
        self.settled = self.settled.max(all);
        if self.log.first_key_value().is_none_or(|(first, _)| *first > all) {
            return;
        }
        let left = self.log.split_off(&(all + 1));
        for Logged { path, now, .. } in std::mem::replace(&mut self.log, left).into_values() {
            if now.is_none() {
                self.told.remove(&path);
            }
        }
    }
}

impl Groups {
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut()
    }

    pub(super) fn get(&self, name: u64) -> Option<&Group> {
        self.groups.get(&name)
    }

    pub(super) fn get_mut(&mut self, name: u64) -> Option<&mut Group> {
        self.groups.get_mut(&name)
    }

    /// A peer that holds nothing yet joins those that are told the same: the name of their group.
    pub(super) fn join(&mut self, peer: IpAddr, terms: Terms, loc_rib: &LocRib, routes: &mut Routes) -> u64 {
        let known = self.groups.iter().find(|(_, group)| group.terms == terms).map(|(name, _)| *name);
        let name = known.unwrap_or(self.next);
        let new = || Group::new(terms, loc_rib, routes);
        self.groups.entry(name).or_insert_with(new).members.insert(peer, 0);
        self.next = self.next.max(name + 1);
        name
    }

    /// A peer is no member any more.
    pub(super) fn leave(&mut self, peer: IpAddr, name: u64) {
        let Some(group) = self.groups.get_mut(&name) else { return };
        group.members.remove(&peer);
        if group.members.is_empty() {
            self.groups.remove(&name);
        } else {
            group.settle();
        }
    }
}
