//! The rewrites that the table holds: acceptance for this node's endpoints, and *nat* as director.
//!
//! Each takes an element of `endpoints`; those of one endpoint share its number (`mark`), and those of one that is this
//! node's own its elements of `own` and `hairpin`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::changes::Changes;
use super::conntrack::Stale;
use super::elements::Element;
use super::numbers::{Captured, NumberError, Numbers};
use super::standin;
use crate::cluster::Protocol;
use crate::plan::{AcceptedIn, NodePlan, Rewrite, RewriteKey, RewriteSide};

/// How long a rewrite outlives its wish whose endpoint may live on: other directors hear of a removed endpoint a little
/// later, and what they send meanwhile should still arrive. Established connections need it no more: conntrack has them.
const LINGER: Duration = Duration::from_secs(5);

/// What the table holds of them.
#[derive(Debug, Default)]
pub struct Rewrites {
    held: HashMap<RewriteKey, Rewrite>,
    /// Own endpoints, with how many rewrites each has.
    locals: HashMap<IpAddr, usize>,
    lingering: BTreeMap<RewriteKey, Instant>,
    /// Conntrack entries that what was dropped has left.
    stale: Vec<Stale>,
    /// Rewrites that could not be made.
    pub refused: BTreeMap<RewriteKey, Refused>,
}

/// Why a rewrite could not be made, and what that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    why: NumberError,
    dispensable: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)?;
        if self.dispensable {
            f.write_str("; clients within the cluster get there through a tunnel instead")?;
        }
        Ok(())
    }
}

impl Rewrites {
    /// Takes over what an agent before this one left; [`Self::rebuild`] then says what stays. `numbers` has adopted its
    /// own part.
    pub fn adopt(&mut self, numbers: &mut Numbers, elements: &BTreeSet<Element>) {
        let outer_of: HashMap<(u32, bool), IpAddr> = elements
            .iter()
            .filter_map(|element| match element {
                Element::Mark(outer, mark) => Some(((*mark, outer.is_ipv4()), *outer)),
                _ => None,
            })
            .collect();
        let locals: BTreeSet<IpAddr> = elements
            .iter()
            .filter_map(|element| match element {
                Element::Own(address) => Some(*address),
                _ => None,
            })
            .collect();
        for element in elements {
            let Element::Endpoint(mark, vip, to) = element else { continue };
            let Some(outer) = outer_of.get(&(*mark, vip.address.is_ipv4())) else { continue };
            let side = if standin::is(*outer) { RewriteSide::Director } else { RewriteSide::Endpoint };
            let key = RewriteKey { endpoint: to.ip(), side, vip: *vip };
            let rewrite = Rewrite {
                target_port: to.port(),
                accepted_in: AcceptedIn::Node,
                local: locals.contains(&to.ip()),
                terminating: false,
                dispensable: false,
            };
            self.hold(numbers, key, rewrite, &mut Changes::default());
        }
    }

    /// Makes these what the plan says, whatever they were; those that are dispensable come later, by
    /// [`Self::rebuild_dispensable`].
    pub fn rebuild(&mut self, numbers: &mut Numbers, plan: &NodePlan, now: Instant) {
        for (key, rewrite) in self.held.iter().filter(|(key, _)| !plan.rewrites.contains_key(key)) {
            let until = if rewrite.terminating { now } else { now + LINGER };
            self.lingering.entry(*key).or_insert(until);
        }
        let mut ignored = Changes::default();
        for key in self.due(now) {
            self.drop(numbers, key, &mut ignored);
        }
        self.refused.clear();
        for (key, rewrite) in plan.rewrites.iter().filter(|(_, rewrite)| !rewrite.dispensable) {
            self.hold(numbers, *key, *rewrite, &mut ignored);
        }
    }

    /// What [`Self::rebuild`] left: it takes numbers when all else has.
    pub fn rebuild_dispensable(&mut self, numbers: &mut Numbers, plan: &NodePlan) {
        for (key, rewrite) in plan.rewrites.iter().filter(|(_, rewrite)| rewrite.dispensable) {
            self.hold(numbers, *key, *rewrite, &mut Changes::default());
        }
    }

    /// Follows the plan for one rewrite; one that is not wanted any more lingers, unless its endpoint is gone.
    pub fn follow(
        &mut self,
        numbers: &mut Numbers,
        plan: &NodePlan,
        key: RewriteKey,
        now: Instant,
        changes: &mut Changes,
    ) {
        match (plan.rewrites.get(&key), self.held.get(&key)) {
            (Some(rewrite), _) => self.hold(numbers, key, *rewrite, changes),
            (None, Some(held)) if held.terminating => self.drop(numbers, key, changes),
            (None, Some(_)) => drop(self.lingering.insert(key, now + LINGER)),
            (None, None) => drop(self.refused.remove(&key)),
        }
    }

    /// Those that nobody wants any more and whose time is up.
    pub fn due(&self, now: Instant) -> Vec<RewriteKey> {
        self.lingering.iter().filter(|(_, until)| **until <= now).map(|(key, _)| *key).collect()
    }

    /// Holds a rewrite, whether or not it was there.
    pub fn hold(&mut self, numbers: &mut Numbers, key: RewriteKey, rewrite: Rewrite, changes: &mut Changes) {
        self.lingering.remove(&key);
        // This node stands behind a pod that is to accept itself: it takes what `direct` does not let pass.
        let rewrite = Rewrite { accepted_in: AcceptedIn::Node, ..rewrite };
        if let Some(held) = self.held.get_mut(&key)
            && *held == (Rewrite { terminating: held.terminating, dispensable: held.dispensable, ..rewrite })
        {
            *held = rewrite;
            return;
        }
        self.refused.remove(&key);
        let captured = Captured { endpoint: key.endpoint, side: key.side };
        let known = numbers.mark(captured).is_some();
        // Before what it replaces lets go of the number: the mark of what is on its way stays the same.
        if let Err(why) = numbers.acquire(captured, rewrite.dispensable) {
            self.refused.insert(key, Refused { why, dispensable: rewrite.dispensable });
            return;
        }
        self.drop(numbers, key, changes);
        let Some(mark) = numbers.mark(captured) else { return };
        self.held.insert(key, rewrite);
        if !known {
            changes.add(Element::Mark(captured.outer(), mark));
        }
        changes.add(endpoint_element(mark, &key, &rewrite));
        if rewrite.local {
            let uses = self.locals.entry(key.endpoint).or_default();
            *uses += 1;
            if *uses == 1 {
                changes.add(Element::Own(key.endpoint));
                changes.add(Element::Hairpin(key.endpoint));
            }
        }
    }

    /// Holds a rewrite no more.
    pub fn drop(&mut self, numbers: &mut Numbers, key: RewriteKey, changes: &mut Changes) {
        self.lingering.remove(&key);
        let Some(rewrite) = self.held.remove(&key) else { return };
        self.stale.extend(rewrite.stale(&key));
        let captured = Captured { endpoint: key.endpoint, side: key.side };
        let Some(mark) = numbers.mark(captured) else { return };
        changes.remove(endpoint_element(mark, &key, &rewrite));
        numbers.release(captured);
        if numbers.mark(captured).is_none() {
            changes.remove(Element::Mark(captured.outer(), mark));
        }
        if rewrite.local
            && let Some(uses) = self.locals.get_mut(&key.endpoint)
        {
            *uses -= 1;
            if *uses == 0 {
                self.locals.remove(&key.endpoint);
                changes.remove(Element::Own(key.endpoint));
                changes.remove(Element::Hairpin(key.endpoint));
            }
        }
    }

    /// What conntrack is to forget, since the last call.
    pub fn take_stale(&mut self) -> Vec<Stale> {
        std::mem::take(&mut self.stale)
    }

    /// Every element that they take.
    pub fn elements(&self, numbers: &Numbers) -> BTreeSet<Element> {
        let mut elements = BTreeSet::new();
        for key in self.held.keys() {
            elements.extend(self.elements_of(numbers, *key));
        }
        elements
    }

    /// The elements that one of them takes.
    pub fn elements_of(&self, numbers: &Numbers, key: RewriteKey) -> impl Iterator<Item = Element> {
        let captured = Captured { endpoint: key.endpoint, side: key.side };
        let held = self.held.get(&key).and_then(|rewrite| Some((rewrite, numbers.mark(captured)?)));
        let of_endpoint = held.map(|(rewrite, mark)| {
            [Element::Mark(captured.outer(), mark), endpoint_element(mark, &key, rewrite)]
        });
        let own = held.is_some_and(|(rewrite, _)| rewrite.local);
        let of_own = own.then_some([Element::Own(key.endpoint), Element::Hairpin(key.endpoint)]);
        of_endpoint.into_iter().flatten().chain(of_own.into_iter().flatten())
    }
}

impl Rewrite {
    /// What conntrack is to forget with it: established connections of an endpoint that lives on go on.
    fn stale(&self, key: &RewriteKey) -> Option<Stale> {
        let forgotten = self.terminating || key.vip.protocol == Protocol::Udp;
        let from = SocketAddr::new(key.endpoint, self.target_port);
        forgotten.then_some(Stale { vip: key.vip, from })
    }
}

fn endpoint_element(mark: u32, key: &RewriteKey, rewrite: &Rewrite) -> Element {
    Element::Endpoint(mark, key.vip, SocketAddr::new(key.endpoint, rewrite.target_port))
}

#[cfg(test)]
#[path = "rewrites_tests.rs"]
mod tests;
