//! Adj-RIB-Out: one Established peer's view of the Loc-RIB (RFC 4271 §3.2, §9.2): what its [group](super::group) is told, but for
//! what comes from itself, and for what it has yet to be told.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::export::Export;
use super::pending::{Held, Pending};
use super::route::{Reflected, Route};
use crate::Family;
use crate::wire::pack::{write_end_of_rib, write_route_refresh, write_withdrawal};
use crate::wire::{Nlri, RefreshKind};

/// What the peers of a group are told.
pub(super) type Told = BTreeMap<Nlri, Arc<Route>>;

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
    /// How many paths the peer holds.
    sent: usize,
    pending: Pending,
    /// Routes whose attributes leave no room for a prefix in what this peer is sent.
    unfit: Vec<Arc<Route>>,
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

/// What [`Rib::write`](super::Rib::write) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// UPDATE messages.
    pub updates: u64,
    /// All changes up to this one have been written (see [`Rib::sequence`](super::Rib::sequence)); `None` where
    /// some are left.
    pub drained: Option<u64>,
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
        self.sent
    }

    /// How many changes it has yet to be told.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether the peer knows that it holds everything.
    pub fn end_of_rib_sent(&self) -> bool {
        self.end_of_rib_sent
    }

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

    /// What the peer holds of a path that its group has been told so; no change to it is pending from now on.
    fn take_held(&mut self, export: &Export, path: &Nlri, told: Option<&Arc<Route>>) -> Held {
        let held = self.pending.remove(path);
        held.unwrap_or_else(|| Held::of(told.filter(|route| self.takes(export, route))))
    }

    /// The peer, which holds that of a path, is to hold what its group is told.
    fn tell(&mut self, export: &Export, path: Nlri, held: Held, told: Option<&Arc<Route>>) {
        let told = told.filter(|route| self.takes(export, route));
        self.pending.add(path, held, told);
    }

    /// Has those routes be told again, after a change to this peer, that are `concerned` by it.
    fn tell_again(
        &mut self,
        export: &Export,
        told: &Told,
        concerned: impl Fn(&Route) -> bool,
        change: impl FnOnce(&mut FamilyOut),
    ) {
        // Of these the group may not be told any more, or not yet again.
        self.pending.hold_again(&concerned);
        let family = self.family;
        let concerned =
            told.iter().filter(|(path, route)| Family::of(&path.prefix) == family && concerned(route));
        let held = |(path, route)| self.take_held(export, path, Some(route)).again();
        let held: Vec<Held> = concerned.clone().map(held).collect();
        change(self);
        for ((path, route), held) in concerned.zip(held) {
            self.tell(export, *path, held, Some(route));
        }
    }

    /// What it holds, but for what is about to be sent again.
    fn holds<'a>(
        &'a self,
        export: &'a Export,
        told: &'a Told,
    ) -> impl Iterator<Item = (Nlri, &'a Arc<Route>)> {
        let in_place = told.iter().filter(move |(path, route)| {
            Family::of(&path.prefix) == self.family
                && self.pending.held(path).is_none()
                && self.takes(export, route)
        });
        let before = self.pending.all_held().filter_map(|(path, held)| match held {
            Held::Route(route) => Some((path, route)),
            Held::Nothing | Held::Again => None,
        });
        in_place.map(|(path, route)| (*path, route)).chain(before)
    }

    fn write(&mut self, export: &Export, out: &mut Vec<u8>, limit: usize) -> u64 {
        let mut updates = 0;
        if out.len() < limit && self.refresh == Refresh::Begins {
            write_route_refresh(RefreshKind::Begin, self.family, out);
            self.refresh = Refresh::Begun;
        }
        while out.len() < limit && !self.pending.withdrawals().is_empty() {
            let mut paths = self.pending.withdrawals().iter().copied().peekable();
            let count = write_withdrawal(self.family, export.context, &mut paths, out);
            self.pending.withdrawn(count);
            self.sent -= count;
            updates += 1;
        }
        while out.len() < limit {
            let Some((route, _)) = self.pending.first() else { break };
            let route = Arc::clone(route);
            let Some(announcement) = export.announcement(self.family, self.next_hop, &route) else {
                self.give_up(route);
                continue;
            };
            while let Some((_, paths)) =
                self.pending.first().filter(|(next, _)| out.len() < limit && Arc::ptr_eq(next, &route))
            {
                let count = announcement.write(&mut paths.iter().copied().peekable(), out);
                self.sent += self.pending.announced(count);
                updates += 1;
            }
        }
        if out.len() < limit && self.pending.is_empty() && self.refresh == Refresh::Begun {
            write_route_refresh(RefreshKind::End, self.family, out);
            self.refresh = Refresh::No;
        }
        updates
    }

    /// The attributes of what is announced next leave no room for a prefix: what the peer holds of these is no longer true.
    fn give_up(&mut self, route: Arc<Route>) {
        let paths = self.pending.give_up_first();
        tracing::error!(
            prefixes = paths.len(),
            first = ?paths.first().map(|(path, _)| path.prefix),
            "attributes do not fit into a message, not announced: use fewer communities"
        );
        self.unfit.push(route);
        for (path, held) in paths {
            self.pending.add(path, held, None);
        }
    }
}

impl AdjRibOut {
    /// Of a peer that holds nothing yet.
    pub(super) fn new(export: Export) -> AdjRibOut {
        let families = export.next_hops.iter().map(|&(family, next_hop)| FamilyOut {
            family,
            next_hop,
            sent: 0,
            pending: Pending::default(),
            unfit: Vec::new(),
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

    /// To be changed only where the group is changed with it.
    pub(super) fn export_mut(&mut self) -> &mut Export {
        &mut self.export
    }

    /// The group is told `now` of a path, and was told `before`.
    pub(super) fn follow(&mut self, path: Nlri, before: Option<&Arc<Route>>, now: Option<&Arc<Route>>) {
        let family = Family::of(&path.prefix);
        if let Some(out) = self.families.iter_mut().find(|out| out.family == family) {
            let held = out.take_held(&self.export, &path, before);
            out.tell(&self.export, path, held, now);
        }
    }

    /// Takes other next hops for what is ours, of all that the group is told.
    pub(super) fn set_next_hops(&mut self, next_hops: &[(Family, Option<IpAddr>)], told: &Told) {
        for out in &mut self.families {
            let next_hop = next_hops.iter().find(|(family, _)| *family == out.family);
            if let Some((_, next_hop)) = next_hop.filter(|(_, next_hop)| *next_hop != out.next_hop) {
                out.tell_again(&self.export, told, Route::is_own, |out| {
                    out.next_hop = *next_hop;
                    out.unfit.clear();
                });
            }
        }
    }

    /// Sends all of what the group is told again.
    pub(super) fn refresh(&mut self, family: Family, told: &Told) {
        let Some(out) = self.families.iter_mut().find(|out| out.family == family) else { return };
        // RFC 7313 §4: not before End-of-RIB, until which the peer holds nothing stale that an end could sweep.
        if self.export.enhanced_refresh && out.end_of_rib_sent {
            out.refresh = Refresh::Begins;
        }
        out.tell_again(&self.export, told, |_| true, |_| {});
    }

    /// What the peer holds of a family, but for what is about to be sent again, of all that the group is told.
    pub(super) fn holds<'a>(
        &'a self,
        family: Family,
        told: &'a Told,
    ) -> impl Iterator<Item = (Nlri, &'a Arc<Route>)> {
        let of_family = self.families.iter().filter(move |out| out.family == family);
        of_family.flat_map(|out| out.holds(&self.export, told))
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
