//! Adj-RIB-Out: one Established peer's view of our routes (RFC 4271 §3.2, §9.2).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::export::Export;
use crate::wire::RefreshKind;
use crate::wire::pack::{Announcement, write_end_of_rib, write_route_refresh, write_withdrawal};
use crate::{Attributes, Family};

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
    sent: BTreeMap<IpNet, Option<Arc<Attributes>>>,
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
    announce: BTreeMap<Arc<Attributes>, BTreeSet<IpNet>>,
}

/// What is to be told of a prefix.
type Change = Option<Arc<Attributes>>;

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
            Some(Some(attributes)) => {
                if let Some(group) = self.announce.get_mut(&attributes) {
                    group.remove(prefix);
                    if group.is_empty() {
                        self.announce.remove(&attributes);
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
            Some(attributes) => {
                self.announce.entry(Arc::clone(attributes)).or_default().insert(prefix);
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
    pub fn routes(&self) -> impl Iterator<Item = (IpNet, &Arc<Attributes>)> {
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

    fn set(&mut self, prefix: IpNet, target: Option<&Arc<Attributes>>) {
        if self.next_hop.is_none() {
            return;
        }
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

    fn send_again(&mut self, routes: &BTreeMap<IpNet, Arc<Attributes>>) {
        for sent in self.sent.values_mut() {
            *sent = None;
        }
        let family = self.family;
        for (prefix, attributes) in routes.iter().filter(|(prefix, _)| Family::of(prefix) == family) {
            self.set(*prefix, Some(attributes));
        }
    }

    fn withdraw_all(&mut self) {
        self.pending = Pending::default();
        for prefix in self.sent.keys() {
            self.pending.insert(*prefix, None);
        }
    }

    fn write(&mut self, export: &Export, out: &mut Vec<u8>, limit: usize) -> u64 {
        let mut updates = 0;
        if out.len() < limit && self.refresh == Refresh::Begins {
            write_route_refresh(RefreshKind::Begin, self.family, out);
            self.refresh = Refresh::Begun;
        }
        while out.len() < limit && !self.pending.withdraw.is_empty() {
            let mut prefixes = self.pending.withdraw.iter().map(|prefix| export.nlri(*prefix)).peekable();
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
            let attributes = Arc::clone(group.key());
            let announcement = self.next_hop.and_then(|hop| {
                let path = export.path_attributes(&attributes);
                Announcement::of_family(self.family, path, hop, export.link_local, export.context).ok()
            });
            match announcement {
                Some(announcement) => {
                    updates += self.write_group(export, &attributes, &announcement, out, limit);
                }
                None => self.give_up(&attributes),
            }
        }
        if out.len() < limit && self.pending.changes.is_empty() && self.refresh == Refresh::Begun {
            write_route_refresh(RefreshKind::End, self.family, out);
            self.refresh = Refresh::No;
        }
        updates
    }

    /// Writes the prefixes that share `attributes`, up to the limit.
    fn write_group(
        &mut self,
        export: &Export,
        attributes: &Arc<Attributes>,
        announcement: &Announcement,
        out: &mut Vec<u8>,
        limit: usize,
    ) -> u64 {
        let mut updates = 0;
        let Some(mut group) = self.pending.announce.remove(attributes) else { return 0 };
        while out.len() < limit && !group.is_empty() {
            let mut prefixes = group.iter().map(|prefix| export.nlri(*prefix)).peekable();
            let count = announcement.write(&mut prefixes, out);
            for _ in 0..count {
                if let Some(prefix) = group.pop_first() {
                    self.pending.changes.remove(&prefix);
                    self.sent.insert(prefix, Some(Arc::clone(attributes)));
                }
            }
            updates += 1;
        }
        if !group.is_empty() {
            self.pending.announce.insert(Arc::clone(attributes), group);
        }
        updates
    }

    /// The attributes leave no room for a prefix: what the peer holds of these is no longer true.
    fn give_up(&mut self, attributes: &Arc<Attributes>) {
        let group = self.pending.announce.remove(attributes).unwrap_or_default();
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
    pub(super) fn set(&mut self, prefix: IpNet, target: Option<&Arc<Attributes>>) {
        let family = Family::of(&prefix);
        if let Some(out) = self.families.iter_mut().find(|out| out.family == family) {
            out.set(prefix, target);
        }
    }

    /// Takes other next hops, `routes` being what there is.
    pub(super) fn set_next_hops(
        &mut self,
        next_hops: &[(Family, Option<IpAddr>)],
        routes: &BTreeMap<IpNet, Arc<Attributes>>,
    ) {
        for out in &mut self.families {
            let Some((_, next_hop)) = next_hops.iter().find(|(family, _)| *family == out.family) else {
                continue;
            };
            if out.next_hop == *next_hop {
                continue;
            }
            out.next_hop = *next_hop;
            match next_hop {
                Some(_) => out.send_again(routes),
                None => out.withdraw_all(),
            }
        }
    }

    /// Sends everything again, `routes` being what there is.
    pub(super) fn refresh(&mut self, family: Family, routes: &BTreeMap<IpNet, Arc<Attributes>>) {
        let Some(out) = self.families.iter_mut().find(|out| out.family == family) else { return };
        // RFC 7313 §4: not before End-of-RIB, until which the peer holds nothing stale that an end could sweep.
        if self.export.enhanced_refresh && out.end_of_rib_sent {
            out.refresh = Refresh::Begins;
        }
        out.send_again(routes);
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
