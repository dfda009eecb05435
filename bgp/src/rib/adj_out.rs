//! Adj-RIB-Out: one Established peer's view of the Loc-RIB (RFC 4271 §3.2, §9.2).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::export::Export;
use super::loc_rib::LocRib;
use super::route::Route;
use crate::Family;
use crate::wire::RefreshKind;
use crate::wire::pack::{Announcement, write_end_of_rib, write_route_refresh, write_withdrawal};

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
    /// What the peer holds. `None` where it is to be sent again whatever it was.
    sent: BTreeMap<IpNet, Option<Arc<Route>>>,
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

/// Changes the peer has yet to be told: at most one for each prefix.
#[derive(Debug, Default)]
struct Pending {
    changes: HashMap<IpNet, Change>,
    /// The prefixes of `changes` that are withdrawn.
    withdraw: BTreeSet<IpNet>,
    /// The prefixes of `changes` that are announced, by what they are announced with.
    announce: BTreeMap<Arc<Route>, BTreeSet<IpNet>>,
}

/// What is to be told of a prefix.
type Change = Option<Arc<Route>>;

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
    fn remove(&mut self, prefix: &IpNet) {
        match self.changes.remove(prefix) {
            None => {}
            Some(None) => {
                self.withdraw.remove(prefix);
            }
            Some(Some(route)) => {
                if let Some(group) = self.announce.get_mut(&route) {
                    group.remove(prefix);
                    if group.is_empty() {
                        self.announce.remove(&route);
                    }
                }
            }
        }
    }

    fn insert(&mut self, prefix: IpNet, change: Change) {
        self.remove(&prefix);
        match &change {
            None => {
                self.withdraw.insert(prefix);
            }
            Some(route) => {
                self.announce.entry(Arc::clone(route)).or_default().insert(prefix);
            }
        }
        self.changes.insert(prefix, change);
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

    /// How many prefixes the peer holds.
    pub fn sent(&self) -> usize {
        self.sent.len()
    }

    /// What it holds, but for what is about to be sent again.
    pub fn routes(&self) -> impl Iterator<Item = (IpNet, &Arc<Route>)> {
        self.sent.iter().filter_map(|(prefix, sent)| Some((*prefix, sent.as_ref()?)))
    }

    /// How many changes it has yet to be told.
    pub fn pending(&self) -> usize {
        self.pending.changes.len()
    }

    /// Whether the peer knows that it holds everything.
    pub fn end_of_rib_sent(&self) -> bool {
        self.end_of_rib_sent
    }

    fn set(&mut self, prefix: IpNet, target: Option<&Arc<Route>>) {
        // Ours are not told to where there is no way to us.
        let target = target.filter(|route| self.next_hop.is_some() || !route.is_own());
        let in_place = match (self.sent.get(&prefix), target) {
            (None, None) => true,
            (Some(Some(sent)), Some(target)) => sent == target,
            _ => false,
        };
        if in_place {
            self.pending.remove(&prefix);
        } else {
            self.pending.insert(prefix, target.cloned());
        }
    }

    /// Has those routes be told whose kind is asked for: again, where they have been.
    fn send_again(&mut self, export: &Export, loc_rib: &LocRib, of_kind: impl Fn(&Route) -> bool) {
        for sent in self.sent.values_mut() {
            if sent.as_deref().is_some_and(&of_kind) {
                *sent = None;
            }
        }
        let family = self.family;
        for (prefix, route) in loc_rib.iter() {
            if Family::of(prefix) == family && of_kind(route) {
                self.set(*prefix, Some(route).filter(|route| export.tells(prefix, route)));
            }
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
                if let Some(prefix) = self.pending.withdraw.pop_first() {
                    self.pending.changes.remove(&prefix);
                    self.sent.remove(&prefix);
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
        if out.len() < limit && self.pending.changes.is_empty() && self.refresh == Refresh::Begun {
            write_route_refresh(RefreshKind::End, self.family, out);
            self.refresh = Refresh::No;
        }
        updates
    }

    /// Writes the prefixes that share `route`, up to the limit.
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
            let count = announcement.write(&mut group.iter().copied().peekable(), out);
            for _ in 0..count {
                if let Some(prefix) = group.pop_first() {
                    self.pending.changes.remove(&prefix);
                    self.sent.insert(prefix, Some(Arc::clone(route)));
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
            first = ?group.first(),
            "attributes do not fit into a message, not announced: use fewer communities"
        );
        for prefix in group {
            self.pending.changes.remove(&prefix);
            self.set(prefix, None);
        }
    }
}

impl AdjRibOut {
    pub(super) fn new(export: Export) -> AdjRibOut {
        let families = export.next_hops.iter().map(|&(family, next_hop)| FamilyOut {
            family,
            next_hop,
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

    /// Makes `target` what the peer is to hold for `prefix`.
    pub(super) fn set(&mut self, prefix: IpNet, target: Option<&Arc<Route>>) {
        let family = Family::of(&prefix);
        let target = target.filter(|route| self.export.tells(&prefix, route));
        if let Some(out) = self.families.iter_mut().find(|out| out.family == family) {
            out.set(prefix, target);
        }
    }

    /// Takes other next hops for what is ours.
    pub(super) fn set_next_hops(&mut self, next_hops: &[(Family, Option<IpAddr>)], loc_rib: &LocRib) {
        for out in &mut self.families {
            let Some((_, next_hop)) = next_hops.iter().find(|(family, _)| *family == out.family) else {
                continue;
            };
            if out.next_hop == *next_hop {
                continue;
            }
            out.next_hop = *next_hop;
            out.send_again(&self.export, loc_rib, Route::is_own);
        }
    }

    /// Makes the peer a client of this reflector, or not: it is told more then, or less.
    pub(super) fn set_client(&mut self, client: bool, loc_rib: &LocRib) {
        if std::mem::replace(&mut self.export.client, client) != client {
            for (prefix, route) in loc_rib.iter().filter(|(_, route)| !route.is_own()) {
                self.set(*prefix, Some(route));
            }
        }
    }

    /// Sends everything again.
    pub(super) fn refresh(&mut self, family: Family, loc_rib: &LocRib) {
        let Some(out) = self.families.iter_mut().find(|out| out.family == family) else { return };
        // RFC 7313 §4: not before End-of-RIB, until which the peer holds nothing stale that an end could sweep.
        if self.export.enhanced_refresh && out.end_of_rib_sent {
            out.refresh = Refresh::Begins;
        }
        out.send_again(&self.export, loc_rib, |_| true);
    }

    pub(super) fn has_changes(&self) -> bool {
        self.families.iter().any(|out| !out.pending.changes.is_empty())
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
            let complete = family.pending.changes.is_empty() && out.len() < limit;
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
