//! Loc-RIB: the routes to each prefix that may be used, and the next hops that are (RFC 4271 §3.2).
//!
//! A decision looks at nothing else: what it goes by is with the prefix, however many peers announce that.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::rib::decision::{Candidate, select};
use crate::rib::next_hop::NextHop;
use crate::rib::path::{Path, Source};

/// All prefixes.
#[derive(Debug, Default)]
pub(super) struct LocRib {
    prefixes: BTreeMap<IpNet, Destination>,
    /// How many of them have next hops.
    used: usize,
    /// Next hops that were decided on last: prefixes that come together mostly have the same, and share their memory.
    latest: Arc<[NextHop]>,
}

/// What there is of a prefix.
#[derive(Debug)]
struct Destination {
    routes: Routes,
    /// Sorted; `None` where none can be reached.
    next_hops: Option<Arc<[NextHop]>>,
}

/// Routes in the order of their names. Most prefixes have one, which is no list of its own.
#[derive(Debug)]
enum Routes {
    One(Route),
    Several(Box<[Route]>),
}

/// A route of a peer that its import policy lets in.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) path: Arc<Path>,
    pub(super) source: Arc<Source>,
    /// Which of the peer's paths to the prefix.
    pub(super) path_id: u32,
}

impl Route {
    /// What tells the routes to a prefix apart.
    fn name(&self) -> (IpAddr, u32) {
        (self.source.peer, self.path_id)
    }

    fn candidate(&self) -> Candidate<'_> {
        Candidate { path: &self.path, source: &self.source }
    }
}

impl Routes {
    fn all(&self) -> &[Route] {
        match self {
            Routes::One(route) => std::slice::from_ref(route),
            Routes::Several(routes) => routes,
        }
    }

    /// Takes all out; none is left.
    fn take(&mut self) -> Vec<Route> {
        match std::mem::replace(self, Routes::Several(Box::default())) {
            Routes::One(route) => vec![route],
            Routes::Several(routes) => routes.into_vec(),
        }
    }

    /// Puts a route in, in place of one of that name.
    fn set(&mut self, route: Route) {
        let mut routes = match self {
            Routes::One(only) if only.name() == route.name() => {
                *only = route;
                return;
            }
            Routes::One(_) | Routes::Several(_) => self.take(),
        };
        match routes.binary_search_by_key(&route.name(), Route::name) {
            Ok(place) => routes[place] = route,
            Err(place) => {
                routes.reserve_exact(1);
                routes.insert(place, route);
            }
        }
        *self = Routes::Several(routes.into());
    }

    fn remove(&mut self, name: (IpAddr, u32)) {
        let mut routes = self.take();
        routes.retain(|route| route.name() != name);
        *self = match routes.pop() {
            Some(only) if routes.is_empty() => Routes::One(only),
            last => {
                routes.extend(last);
                Routes::Several(routes.into())
            }
        };
    }
}

impl LocRib {
    /// How many prefixes have next hops.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// Next hops of a prefix.
    pub(super) fn next_hops(&self, prefix: &IpNet) -> Option<&Arc<[NextHop]>> {
        self.prefixes.get(prefix)?.next_hops.as_ref()
    }

    /// What is used of each prefix of which something is.
    pub(super) fn used(&self) -> impl Iterator<Item = (&IpNet, &Arc<[NextHop]>)> {
        self.prefixes.iter().filter_map(|(prefix, known)| Some((prefix, known.next_hops.as_ref()?)))
    }

    /// Puts a route in, in place of one of that peer and path identifier. [`LocRib::decide`] is to follow.
    pub(super) fn set(&mut self, prefix: IpNet, route: Route) {
        match self.prefixes.entry(prefix) {
            Entry::Occupied(mut known) => known.get_mut().routes.set(route),
            Entry::Vacant(new) => {
                new.insert(Destination { routes: Routes::One(route), next_hops: None });
            }
        }
    }

    /// Takes a route out. [`LocRib::decide`] is to follow.
    pub(super) fn remove(&mut self, prefix: &IpNet, peer: IpAddr, path_id: u32) {
        if let Some(known) = self.prefixes.get_mut(prefix) {
            known.routes.remove((peer, path_id));
        }
    }

    /// Runs the decision process for a prefix, among routes by next hops that can be reached; whether something else is used.
    pub(super) fn decide(&mut self, prefix: &IpNet, reached: impl Fn(&NextHop) -> bool) -> bool {
        let Some(known) = self.prefixes.get_mut(prefix) else { return false };
        let usable = known.routes.all().iter().filter(|route| reached(&route.path.next_hop));
        let used = select(usable.map(Route::candidate).collect());
        let mut next_hops: Vec<NextHop> = used.iter().map(|candidate| candidate.path.next_hop).collect();
        next_hops.sort_unstable();
        next_hops.dedup();
        let changes = known.next_hops.as_deref().unwrap_or_default() != next_hops;
        if changes {
            self.used -= usize::from(known.next_hops.is_some());
            known.next_hops = (!next_hops.is_empty()).then(|| {
                if *self.latest != *next_hops {
                    self.latest = next_hops.into();
                }
                Arc::clone(&self.latest)
            });
            self.used += usize::from(known.next_hops.is_some());
        }
        if known.routes.all().is_empty() {
            self.prefixes.remove(prefix);
        }
        changes
    }

    /// The best route to a prefix by a next hop that can be reached.
    pub(super) fn best(&self, prefix: &IpNet, reached: impl Fn(&NextHop) -> bool) -> Option<Arc<Path>> {
        let routes = self.prefixes.get(prefix)?.routes.all();
        let usable: Vec<&Route> = routes.iter().filter(|route| reached(&route.path.next_hop)).collect();
        let best: *const Path = select(usable.iter().map(|route| route.candidate()).collect()).first()?.path;
        let route = usable.iter().find(|route| Arc::as_ptr(&route.path) == best)?;
        Some(Arc::clone(&route.path))
    }

    /// Whether there is no prefix, with next hops or without.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }
}
