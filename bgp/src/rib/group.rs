//! Update groups: peers that are told the same. What they are told is kept once, and policies are asked once for all of them; of its
//! own a peer has what it has yet to be told.
//!
//! Which routes those are depends on the export policy and on what the sessions agreed on, not on next hops: two leaf routers are one
//! group.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::adj_out::{AdjRibOut, Told};
use super::export::Export;
use super::loc_rib::{LocRib, Paths};
use super::policy::ExportPolicy;
use super::route::{Known, Reflected, Route, Routes};
use crate::wire::Nlri;
use crate::{Community, Families, Family};

#[cfg(test)]
mod tests;

/// What decides which routes a peer is told, whichever peer it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Terms {
    families: Families,
    /// Families of which it takes several paths to a prefix, each with its name (RFC 7911); of others it is told the best, without one.
    several: Families,
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

/// Peers that are told the same.
#[derive(Debug)]
pub(super) struct Group {
    terms: Terms,
    told: Told,
    members: BTreeMap<IpAddr, AdjRibOut>,
}

/// All groups, none of them empty.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<u64, Group>,
    /// Which one a peer is in.
    of: BTreeMap<IpAddr, u64>,
    /// What the next one is called.
    next: u64,
}

impl Terms {
    fn of(export: &Export) -> Terms {
        let Export { context, client, extended_next_hop, long_lived, policy, next_hops, .. } = export;
        let (client, extended_next_hop, long_lived) = (*client, *extended_next_hop, *long_lived);
        Terms {
            families: next_hops.iter().map(|(family, _)| *family).collect(),
            several: context.add_path,
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
        let mut group = Group { terms, told: Told::new(), members: BTreeMap::new() };
        for (prefix, paths) in loc_rib.iter() {
            group.follow(*prefix, paths, &[], routes);
        }
        group
    }

    /// The members are to hold what they are told of what there is for `prefix`, and nothing of the paths that are `gone`.
    pub(super) fn follow(&mut self, prefix: IpNet, paths: Paths<'_>, gone: &[u32], routes: &mut Routes) {
        let family = Family::of(&prefix);
        if !self.terms.families.contains(family) {
            return;
        }
        if !self.terms.several.contains(family) {
            let told = paths.best().and_then(|known| self.terms.told(&prefix, known, routes));
            return self.set(prefix.into(), told.as_ref());
        }
        for path_id in gone {
            self.set(Nlri { prefix, path_id: *path_id }, None);
        }
        for (path_id, known) in paths.named() {
            let told = self.terms.told(&prefix, known, routes);
            self.set(Nlri { prefix, path_id }, told.as_ref());
        }
    }

    fn set(&mut self, path: Nlri, now: Option<&Arc<Route>>) {
        let before = match now {
            Some(route) => self.told.insert(path, Arc::clone(route)),
            None => self.told.remove(&path),
        };
        if before.as_ref() != now {
            for member in self.members.values_mut() {
                member.follow(path, before.as_ref(), now);
            }
        }
    }

    /// Takes a member of another group: it is told what differs.
    fn take(&mut self, peer: IpAddr, mut member: AdjRibOut, from: &Told) {
        for (path, before) in from {
            member.follow(*path, Some(before), self.told.get(path));
        }
        for (path, now) in self.told.iter().filter(|(path, _)| !from.contains_key(path)) {
            member.follow(*path, None, Some(now));
        }
        self.members.insert(peer, member);
    }

    pub(super) fn member(&self, peer: IpAddr) -> Option<&AdjRibOut> {
        self.members.get(&peer)
    }

    /// A member, and what all of them are told.
    pub(super) fn member_mut(&mut self, peer: IpAddr) -> Option<(&mut AdjRibOut, &Told)> {
        Some((self.members.get_mut(&peer)?, &self.told))
    }

    /// What a member holds of a family, but for what is about to be sent again.
    pub(super) fn holds(&self, peer: IpAddr, family: Family) -> impl Iterator<Item = (Nlri, &Arc<Route>)> {
        self.member(peer).into_iter().flat_map(move |member| member.holds(family, &self.told))
    }
}

impl Groups {
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut()
    }

    /// The group that a peer is in.
    pub(super) fn of(&self, peer: IpAddr) -> Option<&Group> {
        self.groups.get(self.of.get(&peer)?)
    }

    pub(super) fn of_mut(&mut self, peer: IpAddr) -> Option<&mut Group> {
        self.groups.get_mut(self.of.get(&peer)?)
    }

    /// A peer that holds nothing yet joins those that are told the same; whatever was known of it is forgotten.
    pub(super) fn join(&mut self, peer: IpAddr, export: Export, loc_rib: &LocRib, routes: &mut Routes) {
        self.leave(peer);
        let group = self.on_terms(Terms::of(&export), loc_rib, routes);
        self.of.insert(peer, group);
        if let Some(group) = self.groups.get_mut(&group) {
            group.take(peer, AdjRibOut::new(export), &Told::new());
        }
    }

    /// A peer is no more.
    pub(super) fn leave(&mut self, peer: IpAddr) {
        let Some(name) = self.of.remove(&peer) else { return };
        let Some(group) = self.groups.get_mut(&name) else { return };
        group.members.remove(&peer);
        if group.members.is_empty() {
            self.groups.remove(&name);
        }
    }

    /// Changes a peer in what decides what it is told: it is told what differs.
    pub(super) fn change(
        &mut self,
        peer: IpAddr,
        change: impl FnOnce(&mut Export),
        loc_rib: &LocRib,
        routes: &mut Routes,
    ) {
        let Some((name, group)) =
            self.of.get(&peer).and_then(|name| Some((*name, self.groups.get_mut(name)?)))
        else {
            return;
        };
        let Some(mut member) = group.members.remove(&peer) else { return };
        change(member.export_mut());
        let terms = Terms::of(member.export());
        if terms == group.terms {
            group.members.insert(peer, member);
            return;
        }
        let to = self.on_terms(terms, loc_rib, routes);
        self.of.insert(peer, to);
        // Two of them at once: one is taken out meanwhile.
        let Some(from) = self.groups.remove(&name) else { return };
        if let Some(to) = self.groups.get_mut(&to) {
            to.take(peer, member, &from.told);
        }
        if !from.members.is_empty() {
            self.groups.insert(name, from);
        }
    }

    /// The name of the group on these terms, which may be new and empty.
    fn on_terms(&mut self, terms: Terms, loc_rib: &LocRib, routes: &mut Routes) -> u64 {
        if let Some((name, _)) = self.groups.iter().find(|(_, group)| group.terms == terms) {
            return *name;
        }
        let name = self.next;
        self.next += 1;
        self.groups.insert(name, Group::new(terms, loc_rib, routes));
        name
    }
}
