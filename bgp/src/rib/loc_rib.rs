//! The Loc-RIB: what is announced, whoever it came from (RFC 4271 §3.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::route::{Known, Route};

/// Routes of our own, and those that are passed on. To a prefix that there are both for, ours is the one.
#[derive(Debug, Default)]
pub(super) struct LocRib {
    /// With their kinds.
    own: BTreeMap<IpNet, (u8, Arc<Route>)>,
    reflected: BTreeMap<IpNet, Arc<Route>>,
    /// How many of the prefixes of `reflected` are among ours.
    covered: usize,
}

impl LocRib {
    pub(super) fn len(&self) -> usize {
        self.own.len() + self.reflected()
    }

    /// How many are passed on.
    pub(super) fn reflected(&self) -> usize {
        self.reflected.len() - self.covered
    }

    /// Whether a route of our own is announced.
    pub(super) fn has_own(&self, prefix: &IpNet) -> bool {
        self.own.contains_key(prefix)
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Option<Known<'_>> {
        let own = self.own.get(prefix).map(|(kind, route)| Known { kind: *kind, route });
        own.or_else(|| self.reflected.get(prefix).map(|route| Known { kind: 0, route }))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&IpNet, Known<'_>)> {
        let own = self.own.iter().map(|(prefix, (kind, route))| (prefix, Known { kind: *kind, route }));
        let passed_on = self.reflected.iter().filter(|(prefix, _)| !self.own.contains_key(prefix));
        own.chain(passed_on.map(|(prefix, route)| (prefix, Known { kind: 0, route })))
    }

    /// A route of our own, or that there is none. Tells whether something else is announced now.
    pub(super) fn set_own(&mut self, prefix: IpNet, route: Option<(u8, Arc<Route>)>) -> bool {
        let here = route.is_some();
        let same = self.own.get(&prefix) == route.as_ref();
        let before = match route {
            Some(route) => self.own.insert(prefix, route),
            None => self.own.remove(&prefix),
        };
        if self.reflected.contains_key(&prefix) {
            self.covered += usize::from(here);
            self.covered -= usize::from(before.is_some());
        }
        !same
    }

    /// A route that is passed on, or that there is none. Tells whether something else is announced now.
    pub(super) fn set_reflected(&mut self, prefix: IpNet, route: Option<&Arc<Route>>) -> bool {
        let here = route.is_some();
        let before = match route {
            Some(route) => self.reflected.insert(prefix, Arc::clone(route)),
            None => self.reflected.remove(&prefix),
        };
        let covered = self.own.contains_key(&prefix);
        if covered {
            self.covered += usize::from(here);
            self.covered -= usize::from(before.is_some());
        }
        !covered && before.as_ref() != route
    }
}
