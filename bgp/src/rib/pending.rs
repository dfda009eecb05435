//! What a peer has yet to be told: at most one change for each path, grouped by what it is announced with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::route::Route;
use crate::wire::Nlri;

/// What a peer holds of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Nothing,
    Route(Arc<Route>),
    /// Something that is to be sent again, whatever it was.
    Again,
}

/// Changes of one family to one peer.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: HashMap<Nlri, Change>,
    /// Paths of `changes` that are withdrawn.
    withdraw: BTreeSet<Nlri>,
    /// The others, by what they are announced with.
    announce: BTreeMap<Arc<Route>, BTreeSet<Nlri>>,
}

#[derive(Debug)]
struct Change {
    held: Held,
    told: Option<Arc<Route>>,
}

impl Held {
    pub(super) fn of(route: Option<&Arc<Route>>) -> Held {
        route.map_or(Held::Nothing, |route| Held::Route(Arc::clone(route)))
    }

    /// The same, to be sent again.
    pub(super) fn again(self) -> Held {
        match self {
            Held::Nothing => Held::Nothing,
            Held::Route(_) | Held::Again => Held::Again,
        }
    }
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What the peer holds of a path that it is to be told of.
    pub(super) fn held(&self, path: &Nlri) -> Option<&Held> {
        // Most often there is nothing to look for.
        if self.changes.is_empty() {
            return None;
        }
        self.changes.get(path).map(|change| &change.held)
    }

    /// What the peer holds of all of these.
    pub(super) fn all_held(&self) -> impl Iterator<Item = (Nlri, &Held)> {
        self.changes.iter().map(|(path, change)| (*path, &change.held))
    }

    /// What the peer holds of those routes is to be sent again, whatever becomes of the changes.
    pub(super) fn hold_again(&mut self, concerned: impl Fn(&Route) -> bool) {
        for Change { held, .. } in self.changes.values_mut() {
            if matches!(held, Held::Route(route) if concerned(route)) {
                *held = Held::Again;
            }
        }
    }

    /// Takes a change back: what the peer holds of the path.
    pub(super) fn remove(&mut self, path: &Nlri) -> Option<Held> {
        if self.changes.is_empty() {
            return None;
        }
        let Change { held, told } = self.changes.remove(path)?;
        match told {
            None => {
                self.withdraw.remove(path);
            }
            Some(route) => {
                if let Some(paths) = self.announce.get_mut(&route) {
                    paths.remove(path);
                    if paths.is_empty() {
                        self.announce.remove(&route);
                    }
                }
            }
        }
        Some(held)
    }

    /// A peer that holds this of a path, of which no change is pending, is to be told that.
    pub(super) fn add(&mut self, path: Nlri, held: Held, told: Option<&Arc<Route>>) {
        let in_place = match (&held, told) {
            (Held::Nothing, None) => true,
            (Held::Route(held), Some(told)) => held == told,
            _ => false,
        };
        if in_place {
            return;
        }
        match told {
            None => {
                self.withdraw.insert(path);
            }
            Some(route) => {
                self.announce.entry(Arc::clone(route)).or_default().insert(path);
            }
        }
        self.changes.insert(path, Change { held, told: told.cloned() });
    }

    /// Paths that are withdrawn.
    pub(super) fn withdrawals(&self) -> &BTreeSet<Nlri> {
        &self.withdraw
    }

    /// The first so many of these have been told.
    pub(super) fn withdrawn(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(path) = self.withdraw.pop_first() {
                self.changes.remove(&path);
            }
        }
    }

    /// What is announced next, and the paths that share it.
    pub(super) fn first(&self) -> Option<(&Arc<Route>, &BTreeSet<Nlri>)> {
        self.announce.first_key_value()
    }

    /// The first so many of these have been told: of how many the peer held nothing.
    pub(super) fn announced(&mut self, count: usize) -> usize {
        let Some(mut first) = self.announce.first_entry() else { return 0 };
        let mut new = 0;
        for _ in 0..count {
            let change = first.get_mut().pop_first().and_then(|path| self.changes.remove(&path));
            new += usize::from(change.is_some_and(|change| change.held == Held::Nothing));
        }
        if first.get().is_empty() {
            first.remove();
        }
        new
    }

    /// Takes what is announced next back: of each path what the peer holds.
    pub(super) fn give_up_first(&mut self) -> Vec<(Nlri, Held)> {
        let paths = self.announce.pop_first().map(|(_, paths)| paths).unwrap_or_default();
        let held = |path| Some((path, self.changes.remove(&path)?.held));
        paths.into_iter().filter_map(held).collect()
    }
}
