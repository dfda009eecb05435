//! The Loc-RIB: what is announced, whoever it came from (RFC 4271 §3.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::route::{Known, Route};

/// What our own path to a prefix is called where paths have names (RFC 7911 §3), whatever becomes of it. That is not 0, which speakers
/// print as none; those that are passed on have higher ones.
pub(super) const OWN_PATH: u32 = 1;

/// Paths to a prefix that are passed on, with their names: the best first.
type PassedOn = Box<[(u32, Arc<Route>)]>;

/// Routes of our own, and those that are passed on. To a prefix that there are both for, ours is the best.
#[derive(Debug, Default)]
pub(super) struct LocRib {
    /// With their kinds.
    own: BTreeMap<IpNet, (u8, Arc<Route>)>,
    reflected: BTreeMap<IpNet, PassedOn>,
    /// How many of the prefixes of `reflected` are among ours.
    covered: usize,
}

/// What there is for a prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paths<'a> {
    own: Option<Known<'a>>,
    passed_on: &'a [(u32, Arc<Route>)],
}

/// What [`LocRib::set_reflected`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Another is the best.
    pub(super) best: bool,
    /// Names of paths that are no more.
    pub(super) gone: Vec<u32>,
}

impl<'a> Paths<'a> {
    /// The one to tell where one is told.
    pub(super) fn best(&self) -> Option<Known<'a>> {
        self.own.or_else(|| self.passed_on.first().map(|(_, route)| Known { kind: 0, route }))
    }

    /// All of them, with their names.
    pub(super) fn named(&self) -> impl Iterator<Item = (u32, Known<'a>)> + use<'a> {
        let passed_on = self.passed_on.iter().map(|(name, route)| (*name, Known { kind: 0, route }));
        self.own.map(|own| (OWN_PATH, own)).into_iter().chain(passed_on)
    }
}

impl LocRib {
    /// How many prefixes there is something for.
    pub(super) fn len(&self) -> usize {
        self.own.len() + self.reflected()
    }

    /// How many there are that is passed on for, and nothing else.
    pub(super) fn reflected(&self) -> usize {
        self.reflected.len() - self.covered
    }

    /// Whether a route of our own is announced.
    pub(super) fn has_own(&self, prefix: &IpNet) -> bool {
        self.own.contains_key(prefix)
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Paths<'_> {
        Paths {
            own: self.own.get(prefix).map(|(kind, route)| Known { kind: *kind, route }),
            passed_on: self.reflected.get(prefix).map_or(&[], |paths| paths),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&IpNet, Paths<'_>)> {
        let own = self.own.iter().map(|(prefix, (kind, route))| {
            // Mostly nothing is passed on at all.
            let passed_on = if self.covered == 0 { None } else { self.reflected.get(prefix) };
            let own = Some(Known { kind: *kind, route });
            (prefix, Paths { own, passed_on: passed_on.map_or(&[], |paths| paths) })
        });
        let others = self.reflected.iter().filter(|(prefix, _)| !self.own.contains_key(prefix));
        own.chain(others.map(|(prefix, passed_on)| (prefix, Paths { own: None, passed_on })))
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

    /// What is passed on for a prefix from now on. `None`: that is nothing new.
    pub(super) fn set_reflected(&mut self, prefix: IpNet, paths: Vec<(u32, Arc<Route>)>) -> Option<Changed> {
        let here = !paths.is_empty();
        let before = match here {
            true => self.reflected.insert(prefix, paths.into()),
            false => self.reflected.remove(&prefix),
        };
        let covered = self.own.contains_key(&prefix);
        if covered {
            self.covered += usize::from(here);
            self.covered -= usize::from(before.is_some());
        }
        let (before, now) = (before.unwrap_or_default(), self.get(&prefix).passed_on);
        let name = |(name, _): &(u32, _)| *name;
        let stays = |gone: &u32| now.iter().any(|path| name(path) == *gone);
        (*before != *now).then(|| Changed {
            best: !covered && before.first().map(|(_, route)| route) != now.first().map(|(_, route)| route),
            gone: before.iter().map(name).filter(|name| !stays(name)).collect(),
        })
    }
}
