//! Adj-RIB-Out: one Established peer's view of the Loc-RIB (RFC 4271 §3.2, §9.2).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::export::Export;
use super::loc_rib::{LocRib, Paths};
use super::policy::ExportPolicy;
use super::route::{Route, Routes};
use crate::Family;
use crate::wire::pack::{Announcement, write_end_of_rib, write_route_refresh, write_withdrawal};
use crate::wire::{Nlri, RefreshKind};

/// All families of one peer.
#[derive(Debug)]
pub(super) struct AdjRibOut {
    export: Export,
    families: Vec<FamilyOut>,
}

/// One family of one peer.
#[derive(Debug)]
pub struct FamilyOut {
    family: Family,
    next_hop: Option<IpAddr>,
    /// The peer takes several paths to a prefix, each with its name (RFC 7911); otherwise it is told the best, without one.
    several: bool,
    /// What the peer holds. `None` where it is to be sent again whatever it was.
    sent: BTreeMap<Nlri, Option<Arc<Route>>>,
    pending: Pending,
    end_of_rib_sent: bool,
    refresh: Refresh,
}

/// How far the answer to a ROUTE-REFRESH is, to a peer that wants to be told (RFC 7313 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    /// None is due.
    No,
    /// The peer is to be told that it begins.
    Begins,
    /// It has been told, and is to be told of the end.
    Begun,
}

/// Changes the peer has yet to be told: at most one for each path.
#[derive(Debug, Default)]
struct Pending {
    /// Paths that are withdrawn.
    withdraw: BTreeSet<Nlri>,
    /// What others are announced with.
    announced: HashMap<Nlri, Arc<Route>>,
    /// The paths of `announced`, by what they are announced with.
    announce: BTreeMap<Arc<Route>, BTreeSet<Nlri>>,
}

/// What [`Rib::write`](super::Rib::write) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// UPDATE messages.
    pub updates: u64,
    /// All changes up to this one have been written (see [`Rib::sequence`](super::Rib::sequence)); `None` where
    /// some are left.
    pub drained: Option<u64>,
}

impl Pending {
    fn len(&self) -> usize {
        self.withdraw.len() + self.announced.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn remove(&mut self, path: &Nlri) {
        self.withdraw.remove(path);
        self.unannounce(path);
    }

    fn unannounce(&mut self, path: &Nlri) {
        // Most often there is nothing to look for.
        if self.announced.is_empty() {
            return;
        }
        let Some(route) = self.announced.remove(path) else { return };
        if let Some(group) = self.announce.get_mut(&route) {
            group.remove(path);
            if group.is_empty() {
                self.announce.remove(&route);
            }
        }
    }

    fn withdraw(&mut self, path: Nlri) {
        self.unannounce(&path);
        self.withdraw.insert(path);
    }

    fn announce(&mut self, path: Nlri, route: &Arc<Route>) {
        self.remove(&path);
        self.announce.entry(Arc::clone(route)).or_default().insert(path);
        self.announced.insert(path, Arc::clone(route));
    }
}

impl FamilyOut {
    /// Which family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// What routes are announced with; nothing is where it is not known.
    pub fn next_hop(&self) -> Option<IpAddr> {
        self.next_hop
    }

    /// How many prefixes the peer holds; of one that takes several paths to a prefix, how many paths.
    pub fn sent(&self) -> usize {
        self.sent.len()
    }

    /// What it holds, but for what is about to be sent again.
    pub fn routes(&self) -> impl Iterator<Item = (Nlri, &Arc<Route>)> {
        self.sent.iter().filter_map(|(path, sent)| Some((*path, sent.as_ref()?)))
    }

    /// How many changes it has yet to be told.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether the peer knows that it holds everything.
    pub fn end_of_rib_sent(&self) -> bool {
        self.end_of_rib_sent
    }

    /// The peer is to hold what it is told of what there is for a prefix, and nothing of what is `gone` of it.
    fn follow(
        &mut self,
        export: &Export,
        prefix: IpNet,
        paths: Paths<'_>,
        gone: &[u32],
        routes: &mut Routes,
    ) {
        if !self.several {
            let told = paths.best().and_then(|known| export.told(&prefix, known, routes));
            return self.set(prefix.into(), told.as_ref());
        }
        for path_id in gone {
            self.set(Nlri { prefix, path_id: *path_id }, None);
        }
        for (path_id, known) in paths.named() {
            self.set(Nlri { prefix, path_id }, export.told(&prefix, known, routes).as_ref());
        }
    }

    fn set(&mut self, path: Nlri, target: Option<&Arc<Route>>) {
        // Ours are not told to where there is no way to us.
        let target = target.filter(|route| self.next_hop.is_some() || !route.is_own());
        let in_place = match (self.sent.get(&path), target) {
            (None, None) => true,
            (Some(Some(sent)), Some(target)) => sent == target,
            _ => false,
        };
        match target {
            _ if in_place => self.pending.remove(&path),
            None => self.pending.withdraw(path),
            Some(route) => self.pending.announce(path, route),
        }
    }

    /// Has those routes be told that are ours, or all: again, where they have been.
    fn send_again(&mut self, export: &Export, loc_rib: &LocRib, routes: &mut Routes, ours_alone: bool) {
        let concerned = |route: &Route| !ours_alone || route.is_own();
        for sent in self.sent.values_mut() {
            if sent.as_deref().is_some_and(concerned) {
                *sent = None;
            }
        }
        let family = self.family;
        for (prefix, paths) in loc_rib.iter().filter(|(prefix, _)| Family::of(prefix) == family) {
            self.follow(export, *prefix, paths, &[], routes);
        }
    }

    fn write(&mut self, export: &Export, out: &mut Vec<u8>, limit: usize) -> u64 {
        let mut updates = 0;
        if out.len() < limit && self.refresh == Refresh::Begins {
            write_route_refresh(RefreshKind::Begin, self.family, out);
            self.refresh = Refresh::Begun;
        }
        while out.len() < limit && !self.pending.withdraw.is_empty() {
            let mut prefixes = self.pending.withdraw.iter().copied().peekable();
            let count = write_withdrawal(self.family, export.context, &mut prefixes, out);
            for _ in 0..count {
                if let Some(path) = self.pending.withdraw.pop_first() {
                    self.sent.remove(&path);
                }
            }
            updates += 1;
        }
        while out.len() < limit {
            let Some(group) = self.pending.announce.first_entry() else { break };
            let route = Arc::clone(group.key());
            match export.announcement(self.family, self.next_hop, &route) {
                Some(announcement) => updates += self.write_group(&route, &announcement, out, limit),
                None => self.give_up(&route),
            }
        }
        if out.len() < limit && self.pending.is_empty() && self.refresh == Refresh::Begun {
            write_route_refresh(RefreshKind::End, self.family, out);
            self.refresh = Refresh::No;
        }
        updates
    }

    /// Writes the paths that share `route`, up to the limit.
    fn write_group(
        &mut self,
        route: &Arc<Route>,
        announcement: &Announcement,
        out: &mut Vec<u8>,
        limit: usize,
    ) -> u64 {
        let mut updates = 0;
        let Some(mut group) = self.pending.announce.remove(route) else { return 0 };
        while out.len() < limit && !group.is_empty() {
            let mut prefixes = group.iter().copied().peekable();
            let count = announcement.write(&mut prefixes, out);
            for _ in 0..count {
                if let Some(path) = group.pop_first() {
                    self.pending.announced.remove(&path);
                    self.sent.insert(path, Some(Arc::clone(route)));
                }
            }
            updates += 1;
        }
        if !group.is_empty() {
            self.pending.announce.insert(Arc::clone(route), group);
        }
        updates
    }

    /// The attributes leave no room for a prefix: what the peer holds of these is no longer true.
    fn give_up(&mut self, route: &Arc<Route>) {
        let group = self.pending.announce.remove(route).unwrap_or_default();
        tracing::error!(
            prefixes = group.len(),
            first = ?group.first().map(|path| path.prefix),
            "attributes do not fit into a message, not announced: use fewer communities"
        );
        for path in group {
            self.pending.announced.remove(&path);
            self.set(path, None);
        }
    }
}

impl AdjRibOut {
    pub(super) fn new(export: Export) -> AdjRibOut {
        let families = export.next_hops.iter().map(|&(family, next_hop)| FamilyOut {
            family,
            next_hop,
            several: export.context.add_path.contains(family),
            sent: BTreeMap::new(),
            pending: Pending::default(),
            end_of_rib_sent: false,
            refresh: Refresh::No,
        });
        AdjRibOut { families: families.collect(), export }
    }

    pub(super) fn families(&self) -> &[FamilyOut] {
        &self.families
    }

    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    /// The peer is to hold what it is told of what there is for `prefix`, and nothing of the paths that are `gone`.
    pub(super) fn follow(&mut self, prefix: IpNet, paths: Paths<'_>, gone: &[u32], routes: &mut Routes) {
        let family = Family::of(&prefix);
        if let Some(out) = self.families.iter_mut().find(|out| out.family == family) {
            out.follow(&self.export, prefix, paths, gone, routes);
        }
    }

    /// Takes another policy: what differs by it is announced again, or withdrawn where it does not pass any more.
    pub(super) fn set_policy(&mut self, policy: &ExportPolicy, loc_rib: &LocRib, routes: &mut Routes) {
        if self.export.policy != *policy {
            self.export.policy = policy.clone();
            for (prefix, paths) in loc_rib.iter() {
                self.follow(*prefix, paths, &[], routes);
            }
        }
    }

    /// Makes the peer a client of this reflector, or not: it is told more then, or less.
    pub(super) fn set_client(&mut self, client: bool, loc_rib: &LocRib, routes: &mut Routes) {
        if std::mem::replace(&mut self.export.client, client) != client {
            for (prefix, paths) in loc_rib.iter() {
                self.follow(*prefix, paths, &[], routes);
            }
        }
    }

    /// Takes other next hops for what is ours.
    pub(super) fn set_next_hops(
        &mut self,
        next_hops: &[(Family, Option<IpAddr>)],
        loc_rib: &LocRib,
        routes: &mut Routes,
    ) {
        for out in &mut self.families {
            let Some((_, next_hop)) = next_hops.iter().find(|(family, _)| *family == out.family) else {
                continue;
            };
            if out.next_hop == *next_hop {
                continue;
            }
            out.next_hop = *next_hop;
            out.send_again(&self.export, loc_rib, routes, true);
        }
    }

    /// Sends everything again.
    pub(super) fn refresh(&mut self, family: Family, loc_rib: &LocRib, routes: &mut Routes) {
        let Some(out) = self.families.iter_mut().find(|out| out.family == family) else { return };
        // RFC 7313 §4: not before End-of-RIB, until which the peer holds nothing stale that an end could sweep.
        if self.export.enhanced_refresh && out.end_of_rib_sent {
            out.refresh = Refresh::Begins;
        }
        out.send_again(&self.export, loc_rib, routes, false);
    }

    pub(super) fn has_changes(&self) -> bool {
        self.families.iter().any(|out| !out.pending.is_empty())
    }

    pub(super) fn has_pending(&self, end_of_rib_held: bool) -> bool {
        self.has_changes()
            || self
                .families
                .iter()
                .any(|out| out.refresh != Refresh::No || !end_of_rib_held && !out.end_of_rib_sent)
    }

    pub(super) fn write(&mut self, out: &mut Vec<u8>, limit: usize, end_of_rib_held: bool) -> Written {
        let mut written = Written::default();
        for family in &mut self.families {
            written.updates += family.write(&self.export, out, limit);
            let complete = family.pending.is_empty() && out.len() < limit;
            // Also for a family that nothing is announced of: nothing is all there is.
            if complete && !family.end_of_rib_sent && !end_of_rib_held {
                write_end_of_rib(family.family, out);
                family.end_of_rib_sent = true;
                written.updates += 1;
            }
        }
        written
    }
}
