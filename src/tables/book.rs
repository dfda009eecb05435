//! What the followed tables hold, as the kernel has told. No I/O: messages in, news out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::News;
use super::route::Route;

/// A part of a table that is listed as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) table: u32,
    pub(super) ipv6: bool,
}

impl Part {
    fn of(route: &Route) -> Self {
        Self { table: route.table, ipv6: route.prefix.addr().is_ipv6() }
    }
}

/// What a route goes with when that goes, of which the kernel tells for IPv4 only that, not which routes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Support {
    /// A device, which is down or gone.
    Device(u32),
    /// An address, as source.
    Source(IpAddr),
    /// Some nexthop object.
    Object,
}

/// All routes of the followed tables.
#[derive(Debug)]
pub(super) struct Book {
    default_routes: bool,
    parts: BTreeMap<Part, BTreeMap<IpNet, Vec<Route>>>,
    /// How many routes go with each.
    supports: HashMap<Support, usize>,
    /// Prefixes of which something changed since the news, and whether they were announced then.
    changed: BTreeMap<IpNet, bool>,
}

/// The kernel's message leaves open what the table holds now: its part has to be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsure(pub(super) Part);

impl Book {
    /// An empty one for these tables.
    pub(super) fn new(tables: &[u32], default_routes: bool) -> Self {
        let parts = tables.iter().flat_map(|&table| [false, true].map(|ipv6| Part { table, ipv6 }));
        Self {
            default_routes,
            parts: parts.map(|part| (part, BTreeMap::new())).collect(),
            supports: HashMap::new(),
            changed: BTreeMap::new(),
        }
    }

    /// All parts.
    pub(super) fn parts(&self) -> BTreeSet<Part> {
        self.parts.keys().copied().collect()
    }

    /// Parts with routes that may have gone with something.
    pub(super) fn resting_on(&self, support: Support) -> BTreeSet<Part> {
        if self.supports.contains_key(&support) { self.parts() } else { BTreeSet::new() }
    }

    /// Puts in place what a listing of a part gave.
    pub(super) fn listed(&mut self, part: Part, routes: Vec<Route>) {
        let old: Vec<IpNet> =
            self.parts.get(&part).map(|part| part.keys().copied().collect()).unwrap_or_default();
        let mut new: BTreeMap<IpNet, Vec<Route>> = BTreeMap::new();
        for route in routes.into_iter().filter(|route| Part::of(route) == part) {
            new.entry(route.prefix).or_default().push(route);
        }
        let prefixes: BTreeSet<IpNet> = old.into_iter().chain(new.keys().copied()).collect();
        for prefix in prefixes {
            self.replace(part, prefix, new.remove(&prefix).unwrap_or_default());
        }
    }

    /// A route has been added, or has taken the place of another.
    pub(super) fn added(&mut self, route: Route, replaces: bool) -> Result<(), Unsure> {
        let Some((part, mut routes)) = self.at(&route) else { return Ok(()) };
        let alike: Vec<usize> = (0..routes.len()).filter(|i| route.is_in_place_of(&routes[*i])).collect();
        match alike[..] {
            [] => routes.push(route),
            [one] if replaces || route.extends(&routes[one]) => routes[one] = route,
            // The kernel keeps several of IPv4 in one place, and uses the first.
            [_] if !part.ipv6 => routes.push(route),
            _ => return Err(Unsure(part)),
        }
        let prefix = routes[0].prefix;
        self.replace(part, prefix, routes);
        Ok(())
    }

    /// A route has been removed.
    pub(super) fn removed(&mut self, route: &Route) -> Result<(), Unsure> {
        let Some((part, mut routes)) = self.at(route) else { return Ok(()) };
        let alike: Vec<usize> = (0..routes.len()).filter(|i| route.is_in_place_of(&routes[*i])).collect();
        match alike[..] {
            [] => {}
            [one] if routes[one] == *route => drop(routes.remove(one)),
            // One of several, or one way of several.
            _ => return Err(Unsure(part)),
        }
        self.replace(part, route.prefix, routes);
        Ok(())
    }

    /// What became different since the last call.
    pub(super) fn news(&mut self) -> News {
        let mut news = News::default();
        for (prefix, before) in std::mem::take(&mut self.changed) {
            match (before, self.announces(&prefix)) {
                (false, true) => news.came.push(prefix),
                (true, false) => news.gone.push(prefix),
                _ => {}
            }
        }
        news
    }

    /// The routes there are to its prefix in its table, if that is followed.
    fn at(&self, route: &Route) -> Option<(Part, Vec<Route>)> {
        let part = Part::of(route);
        let routes = self.parts.get(&part)?;
        Some((part, routes.get(&route.prefix).cloned().unwrap_or_default()))
    }

    fn announces(&self, prefix: &IpNet) -> bool {
        self.parts
            .values()
            .filter_map(|part| part.get(prefix))
            .flatten()
            .any(|route| route.counts(self.default_routes))
    }

    fn replace(&mut self, part: Part, prefix: IpNet, routes: Vec<Route>) {
        let before = self.announces(&prefix);
        self.changed.entry(prefix).or_insert(before);
        for support in routes.iter().flat_map(supports) {
            *self.supports.entry(support).or_default() += 1;
        }
        let Some(held) = self.parts.get_mut(&part) else { return };
        let old = if routes.is_empty() { held.remove(&prefix) } else { held.insert(prefix, routes) };
        for support in old.iter().flatten().flat_map(supports) {
            if let Some(count) = self.supports.get_mut(&support) {
                *count -= 1;
                if *count == 0 {
                    self.supports.remove(&support);
                }
            }
        }
    }
}

fn supports(route: &Route) -> impl Iterator<Item = Support> {
    let devices = route.hops.iter().map(|hop| Support::Device(hop.device));
    devices.chain(route.source.map(Support::Source)).chain(route.by_object.then_some(Support::Object))
}

#[cfg(test)]
mod tests {
    use super::super::route::tests::body;
    use super::*;

    const UNICAST: (u8, u8) = (4, 1);
    const BLACKHOLE: (u8, u8) = (4, 6);

    fn in_table(prefix: &str, table: u32, kind: (u8, u8), metric: u32, hops: &[(u32, &str)]) -> Route {
        Route::read(&body(prefix, table, kind, metric, hops)).unwrap()
    }

    fn route(prefix: &str, metric: u32, device: u32) -> Route {
        in_table(prefix, 119, UNICAST, metric, &[(device, "")])
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn news(came: &[&str], gone: &[&str]) -> News {
        News { came: nets(came), gone: nets(gone) }
    }

    const V4: &str = "10.1.0.0/16";
    const V6: &str = "2001:db8:1::/48";

    #[test]
    fn a_prefix_is_announced_while_some_route_to_it_is_there() {
        for prefix in [V4, V6] {
            let mut book = Book::new(&[119, 120], false);
            book.added(route(prefix, 10, 3), false).unwrap();
            assert_eq!(book.news(), news(&[prefix], &[]), "the first");
            book.added(route(prefix, 20, 3), false).unwrap();
            book.added(in_table(prefix, 120, UNICAST, 10, &[(3, "")]), false).unwrap();
            book.added(in_table(prefix, 121, UNICAST, 10, &[(3, "")]), false).unwrap();
            assert_eq!(book.news(), News::default(), "others to the same");
            book.removed(&route(prefix, 10, 3)).unwrap();
            book.removed(&route(prefix, 20, 3)).unwrap();
            assert_eq!(book.news(), News::default(), "one is left, of another table");
            book.removed(&in_table(prefix, 120, UNICAST, 10, &[(3, "")])).unwrap();
            assert_eq!(book.news(), news(&[], &[prefix]), "the last");
            book.removed(&route(prefix, 10, 3)).unwrap();
            assert_eq!(book.news(), News::default(), "gone already");
            assert!(book.supports.is_empty());
        }
    }

    #[test]
    fn what_goes_and_comes_back_between_two_looks_is_no_news() {
        let mut book = Book::new(&[119], false);
        book.listed(Part { table: 119, ipv6: false }, vec![route(V4, 0, 3)]);
        assert_eq!(book.news(), news(&[V4], &[]));
        book.removed(&route(V4, 0, 3)).unwrap();
        book.added(route(V4, 0, 4), false).unwrap();
        book.added(route("10.2.0.0/16", 0, 4), false).unwrap();
        book.removed(&route("10.2.0.0/16", 0, 4)).unwrap();
        assert_eq!(book.news(), News::default());
    }

    #[test]
    fn one_route_takes_the_place_of_another() {
        for prefix in [V4, V6] {
            let mut book = Book::new(&[119], false);
            book.added(route(prefix, 0, 3), false).unwrap();
            book.added(in_table(prefix, 119, BLACKHOLE, 0, &[(1, "")]), true).unwrap();
            assert_eq!(book.news(), News::default(), "never seen as announced");
            book.added(route(prefix, 0, 3), true).unwrap();
            assert_eq!(book.news(), news(&[prefix], &[]));
            book.added(in_table(prefix, 119, BLACKHOLE, 0, &[(1, "")]), true).unwrap();
            assert_eq!(book.news(), news(&[], &[prefix]));
        }
    }

    #[test]
    fn what_leaves_open_which_route_it_is_asks_for_a_listing() {
        let part = |ipv6| Part { table: 119, ipv6 };
        let mut book = Book::new(&[119], false);
        // IPv4: two in one place, as `ip route append` makes them.
        book.added(route(V4, 0, 3), false).unwrap();
        book.added(route(V4, 0, 4), false).unwrap();
        assert_eq!(book.removed(&route(V4, 0, 3)), Err(Unsure(part(false))));
        assert_eq!(book.added(route(V4, 0, 5), true), Err(Unsure(part(false))));
        // IPv6: a way is added to a route, of which the kernel tells whole; then one way goes.
        let (one, two) = ((3, "fe80::1"), (4, "fe80::2"));
        book.added(in_table(V6, 119, UNICAST, 0, &[one]), false).unwrap();
        book.added(in_table(V6, 119, UNICAST, 0, &[one, two]), false).unwrap();
        assert_eq!(book.removed(&in_table(V6, 119, UNICAST, 0, &[one])), Err(Unsure(part(true))));
        assert_eq!(book.added(in_table(V6, 119, UNICAST, 0, &[(5, "")]), false), Err(Unsure(part(true))));
        assert_eq!(book.news(), news(&[V4, V6], &[]), "as before, until it is listed");
        book.listed(part(true), vec![in_table(V6, 119, UNICAST, 0, &[two])]);
        book.listed(part(false), Vec::new());
        assert_eq!(book.news(), news(&[], &[V4]));
    }

    #[test]
    fn a_listing_replaces_what_was_known() {
        let mut book = Book::new(&[119, 254], false);
        let v4 = Part { table: 119, ipv6: false };
        book.listed(
            v4,
            vec![route(V4, 0, 3), route(V6, 0, 3), in_table("10.9.0.0/16", 254, UNICAST, 0, &[(3, "")])],
        );
        assert_eq!(book.news(), news(&[V4], &[]), "of that part alone");
        book.listed(v4, vec![route("10.2.0.0/16", 0, 3), route("0.0.0.0/0", 0, 3)]);
        assert_eq!(book.news(), news(&["10.2.0.0/16"], &[V4]));
    }

    #[test]
    fn what_routes_rest_on_is_known_as_long_as_there_are_some() {
        let mut book = Book::new(&[119], false);
        let all = book.parts();
        let over = |gateways: &[(u32, &str)]| in_table(V4, 119, UNICAST, 0, gateways);
        book.added(over(&[(3, "10.0.0.1"), (4, "10.0.1.1")]), false).unwrap();
        for (device, rests) in [(3, true), (4, true), (5, false)] {
            let expected = if rests { all.clone() } else { BTreeSet::new() };
            assert_eq!(book.resting_on(Support::Device(device)), expected, "{device}");
        }
        book.added(over(&[(5, "10.0.2.1")]), true).unwrap();
        assert_eq!(book.resting_on(Support::Device(3)), BTreeSet::new());
        assert_eq!(book.resting_on(Support::Device(5)), all);
        assert_eq!(book.resting_on(Support::Object), BTreeSet::new());
    }
}
