//! Adj-RIB-Out: one Established peer's view of the Loc-RIB (RFC 4271 §3.2, §9.2): what its [groups](super::group) are told, but for what
//! comes from itself, and for what it has yet to be told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::batch::{Batch, Change, Progress};
use super::export::Export;
use super::group::{Group, Groups, Terms};
use super::loc_rib::LocRib;
use super::route::{Reflected, Route, Routes};
use crate::Family;
use crate::wire::pack::{write_end_of_rib, write_route_refresh, write_withdrawal};
use crate::wire::{Nlri, RefreshKind};

/// All families of one peer.
#[derive(Debug)]
pub(super) struct AdjRibOut {
    export: Export,
    families: Vec<Sent>,
}

/// One family of one peer.
#[derive(Debug)]
struct Sent {
    family: Family,
    /// The group that it is in.
    group: u64,
    /// What ours is sent with.
    next_hop: Option<IpAddr>,
    /// What it is to be sent with, again where it has been.
    next_hop_to_be: Option<IpAddr>,
    /// What it took of its group last, and how far that is told.
    taken: Progress,
    /// How many paths the peer holds.
    held: usize,
    /// Routes whose attributes leave no room for a prefix in what this peer is sent.
    unfit: Vec<Arc<Route>>,
    end_of_rib_sent: bool,
    refresh: Refresh,
}

/// How far the answer to a ROUTE-REFRESH is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    /// None is due.
    No,
    /// All is to be sent again; the peer wants to be told where that begins and ends (RFC 7313 §4), or not.
    Due { marked: bool },
    /// It has been told where it begins, and is to be told of the end.
    Begun,
}

/// One family of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyOut {
    /// Which family.
    pub family: Family,
    /// What routes of ours are announced with; nothing is where it is not known.
    pub next_hop: Option<IpAddr>,
    /// How many prefixes the peer holds; of one that takes several paths to a prefix, how many paths.
    pub sent: usize,
    /// How many changes it may have yet to be told.
    pub pending: usize,
    /// Whether the peer knows that it holds everything.
    pub end_of_rib_sent: bool,
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

impl Sent {
    /// Whether this peer is told a route that its group is told. Not what comes from itself; nor ours to where there is no way to us.
    fn takes(&self, export: &Export, route: &Arc<Route>) -> bool {
        let wanted = match &**route {
            Route::Own(_) => self.next_hop.is_some(),
            Route::Reflected(Reflected { from, attributes, .. }) => {
                *from != export.peer && attributes.originator_id != Some(export.router_id)
            }
        };
        wanted && !self.unfit.contains(route)
    }

    /// Whether the peer holds something of a path that it is to be told of.
    fn holds(&self, export: &Export, change: &Change) -> bool {
        change.before.as_ref().is_some_and(|before| self.taken.is_of_held() || self.takes(export, before))
    }

    /// All that the peer holds.
    fn all_held<'a>(&'a self, export: &Export, group: &'a Group) -> BTreeMap<Nlri, &'a Arc<Route>> {
        let taken = group.taken(export.peer).filter(|(_, route)| self.takes(export, route));
        let mut held: BTreeMap<_, _> = taken.collect();
        for (_, change) in self.taken.left() {
            match change.before.as_ref().filter(|_| self.holds(export, change)) {
                Some(before) => held.insert(change.path, before),
                None => held.remove(&change.path),
            };
        }
        held
    }

    /// Has the peer, which holds that, be told all that differs from what a group is told now; and of the same those routes again that are
    /// to be `again`, or were and have not been yet.
    fn catch_up(
        &mut self,
        export: &Export,
        mut held: BTreeMap<Nlri, Arc<Route>>,
        group: &mut Group,
        again: impl Fn(&Route) -> bool,
    ) {
        let left = self.taken.left().filter(|(now, change)| now.is_some() && change.before.as_ref() == *now);
        let left: BTreeSet<Nlri> = left.map(|(_, change)| change.path).collect();
        let mut changes = Vec::new();
        for (path, now) in group.now().filter(|(_, now)| self.takes(export, now)) {
            let before = held.remove(&path);
            if before.as_ref() != Some(now) || again(now) || left.contains(&path) {
                changes.push((path, before, Some(Arc::clone(now))));
            }
        }
        let gone = held.into_iter().map(|(path, before)| (path, Some(before), None));
        self.taken = Progress::of(Arc::new(Batch::new(changes.into_iter().chain(gone), true)));
        group.catch_up(export.peer);
    }

    /// Puts together what is to be told again, with all else that is to be told.
    fn tell_again(&mut self, export: &Export, group: &mut Group, out: &mut Vec<u8>) {
        let (all, ours) = (matches!(self.refresh, Refresh::Due { .. }), self.next_hop != self.next_hop_to_be);
        if !all && !ours {
            return;
        }
        if let Refresh::Due { marked } = self.refresh {
            if marked {
                write_route_refresh(RefreshKind::Begin, self.family, out);
            }
            self.refresh = if marked { Refresh::Begun } else { Refresh::No };
        }
        let held = owned(self.all_held(export, group));
        if ours {
            self.next_hop = self.next_hop_to_be;
            self.unfit.clear();
        }
        self.catch_up(export, held, group, |route| all || ours && route.is_own());
    }

    fn write(&mut self, export: &Export, group: &mut Group, out: &mut Vec<u8>, limit: usize) -> u64 {
        let mut updates = 0;
        if out.len() < limit {
            self.tell_again(export, group, out);
        }
        while out.len() < limit {
            if !self.taken.is_done() {
                updates += self.write_run(export, out, limit);
            } else if let Some(batch) = group.take(export.peer) {
                self.taken = Progress::of(batch);
            } else {
                break;
            }
        }
        if out.len() < limit && self.refresh == Refresh::Begun {
            write_route_refresh(RefreshKind::End, self.family, out);
            self.refresh = Refresh::No;
        }
        updates
    }

    /// Writes what is left of paths that share what they are announced with, up to the limit.
    fn write_run(&mut self, export: &Export, out: &mut Vec<u8>, limit: usize) -> u64 {
        let Some((now, _)) = self.taken.next() else { return 0 };
        let now = now.filter(|now| self.takes(export, now)).cloned();
        let announcement = now.as_ref().map(|now| export.announcement(self.family, self.next_hop, now));
        if let (Some(now), Some(None)) = (&now, &announcement) {
            tracing::error!(
                prefixes = self.taken.next().map(|(_, changes)| changes.len()),
                first = ?self.taken.next().and_then(|(_, changes)| Some(changes.first()?.path.prefix)),
                "attributes do not fit into a message, not announced: use fewer communities"
            );
            // From now on it is one that the peer is not told.
            self.unfit.push(Arc::clone(now));
            return 0;
        }
        let run = self.taken.run();
        let mut updates = 0;
        while out.len() < limit && self.taken.run() == run {
            let Some((_, changes)) = self.taken.next() else { break };
            let told = |change: &&Change| announcement.is_some() || self.holds(export, change);
            let paths = || changes.iter().enumerate().filter(|(_, change)| told(change));
            let mut next = paths().map(|(_, change)| change.path).peekable();
            let count = match announcement.as_ref().and_then(Option::as_ref) {
                Some(announcement) => announcement.write(&mut next, out),
                None => write_withdrawal(self.family, export.context, &mut next, out),
            };
            let done = match count.checked_sub(1).and_then(|last| paths().nth(last)) {
                Some((last, _)) => last + 1,
                // Nothing of it concerns this peer.
                None => changes.len(),
            };
            if announcement.is_some() {
                self.held += changes.iter().take(done).filter(|change| !self.holds(export, change)).count();
            } else {
                self.held -= count;
            }
            self.taken.advance(done);
            updates += u64::from(count > 0);
        }
        updates
    }

    fn has_changes(&self, peer: IpAddr, group: &Group) -> bool {
        !self.taken.is_done()
            || !group.has_taken_all(peer)
            || matches!(self.refresh, Refresh::Due { .. })
            || self.next_hop != self.next_hop_to_be
    }
}

fn owned(held: BTreeMap<Nlri, &Arc<Route>>) -> BTreeMap<Nlri, Arc<Route>> {
    held.into_iter().map(|(path, route)| (path, Arc::clone(route))).collect()
}

impl AdjRibOut {
    /// Of a peer that holds nothing yet.
    pub(super) fn new(
        export: Export,
        groups: &mut Groups,
        loc_rib: &LocRib,
        routes: &mut Routes,
    ) -> AdjRibOut {
        let mut families = Vec::new();
        for &(family, next_hop) in &export.next_hops {
            families.push(Sent {
                family,
                group: groups.join(export.peer, Terms::of(&export, family), loc_rib, routes),
                next_hop,
                next_hop_to_be: next_hop,
                taken: Progress::default(),
                held: 0,
                unfit: Vec::new(),
                end_of_rib_sent: false,
                refresh: Refresh::No,
            });
        }
        AdjRibOut { export, families }
    }

    /// The peer is no more.
    pub(super) fn leave(&self, groups: &mut Groups) {
        for sent in &self.families {
            groups.leave(self.export.peer, sent.group);
        }
    }

    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    /// Families, each with the group that it is in.
    fn families<'a>(&'a self, groups: &'a Groups) -> impl Iterator<Item = (&'a Sent, &'a Group)> {
        self.families.iter().filter_map(|sent| Some((sent, groups.get(sent.group)?)))
    }

    /// How far each family is.
    pub(super) fn state(&self, groups: &Groups) -> Vec<FamilyOut> {
        let state = |(sent, group): (&Sent, &Group)| {
            let again = if let Refresh::Due { .. } = sent.refresh { sent.held } else { 0 };
            FamilyOut {
                family: sent.family,
                next_hop: sent.next_hop,
                sent: sent.held,
                pending: sent.taken.len() + group.untaken(self.export.peer) + again,
                end_of_rib_sent: sent.end_of_rib_sent,
            }
        };
        self.families(groups).map(state).collect()
    }

    /// What the peer holds of a family.
    pub(super) fn held(&self, family: Family, groups: &Groups) -> Vec<(Nlri, Arc<Route>)> {
        let of_family = self.families(groups).filter(|(sent, _)| sent.family == family);
        of_family.flat_map(|(sent, group)| owned(sent.all_held(&self.export, group))).collect()
    }

    /// Changes what decides what the peer is told: it is told what differs.
    pub(super) fn change(
        &mut self,
        change: impl FnOnce(&mut Export),
        groups: &mut Groups,
        loc_rib: &LocRib,
        routes: &mut Routes,
    ) {
        change(&mut self.export);
        let (export, peer) = (&self.export, self.export.peer);
        for sent in &mut self.families {
            let (from, terms) = (sent.group, Terms::of(export, sent.family));
            let Some(group) = groups.get(from).filter(|group| *group.terms() != terms) else { continue };
            let held = owned(sent.all_held(export, group));
            let to = groups.join(peer, terms, loc_rib, routes);
            if let Some(group) = groups.get_mut(to) {
                sent.catch_up(export, held, group, |_| false);
                sent.group = to;
            }
            groups.leave(peer, from);
        }
    }

    /// Takes other next hops for what is ours.
    pub(super) fn set_next_hops(&mut self, next_hops: &[(Family, Option<IpAddr>)]) {
        for sent in &mut self.families {
            if let Some((_, next_hop)) = next_hops.iter().find(|(family, _)| *family == sent.family) {
                sent.next_hop_to_be = *next_hop;
            }
        }
    }

    /// Sends all of a family again.
    pub(super) fn refresh(&mut self, family: Family) {
        if let Some(sent) = self.families.iter_mut().find(|sent| sent.family == family) {
            // RFC 7313 §4: not before End-of-RIB, until which the peer holds nothing stale that an end could sweep.
            let marked = self.export.enhanced_refresh && sent.end_of_rib_sent;
            sent.refresh = Refresh::Due { marked };
        }
    }

    pub(super) fn has_changes(&self, groups: &Groups) -> bool {
        self.families(groups).any(|(sent, group)| sent.has_changes(self.export.peer, group))
    }

    pub(super) fn has_pending(&self, groups: &Groups, end_of_rib_held: bool) -> bool {
        self.has_changes(groups)
            || self
                .families
                .iter()
                .any(|sent| sent.refresh != Refresh::No || !end_of_rib_held && !sent.end_of_rib_sent)
    }

    pub(super) fn write(
        &mut self,
        groups: &mut Groups,
        out: &mut Vec<u8>,
        limit: usize,
        end_of_rib_held: bool,
    ) -> Written {
        let mut written = Written::default();
        for sent in &mut self.families {
            let Some(group) = groups.get_mut(sent.group) else { continue };
            written.updates += sent.write(&self.export, group, out, limit);
            let complete = !sent.has_changes(self.export.peer, group) && out.len() < limit;
            // Also for a family that nothing is announced of: nothing is all there is.
            if complete && !sent.end_of_rib_sent && !end_of_rib_held {
                write_end_of_rib(sent.family, out);
                sent.end_of_rib_sent = true;
                written.updates += 1;
            }
        }
        written
    }
}
