//! Routes learnt of peers, in a kernel table.
//!
//! ```text
//!   adopting ── every peer has told all, or time is over ──► settled: what is not wanted goes
//!      ▲                                                        │
//!      └────────────── the sessions begin anew ◄────────────────┘
//! ```
//!
//! While adopting, what an agent before left stays as it is until a peer says otherwise. A route that the kernel refuses is tried again.
//!
//! The kernel is asked on this thread, for many routes in one go, and has answered when it returns. A route whose next hops change is
//! replaced: there is no moment without it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rtnetlink::Handle;
use sheave_bgp::{LearntChange, NextHop};
use tracing::{info, warn};

use super::multipath::{self, Change, Key, Ways};
use crate::dataplane::error::RouteError;
use crate::dataplane::netlink::Socket;

/// How soon what failed is tried again, and as many at a time at most.
const AGAIN: Duration = Duration::from_secs(5);
const RETRIES: usize = 500;
/// A listing is followed by a rest at least that many times as long.
const REST: u32 = 20;

/// The table, and what an agent before left in it or others.
pub struct ImportTable {
    /// For listings.
    handle: Handle,
    /// For changes.
    socket: Socket,
    table: u32,
    /// This node's own addresses: the first of each family is the source of what it sends.
    addresses: Vec<IpAddr>,
    /// As the kernel holds them, as far as is known.
    held: BTreeMap<Key, Ways>,
    /// Next hops, as learnt.
    wanted: BTreeMap<IpNet, Arc<[NextHop]>>,
    /// What is not as wanted, and why.
    refused: BTreeMap<IpNet, String>,
    /// The last of them that was tried again; the next ones follow, and after the last the first.
    retried: Option<IpNet>,
    /// Where not all is told yet: how long what is held and not wanted is kept; `None`: as long as nothing is known.
    adopting: Option<Option<Instant>>,
    /// Why the kernel could not be looked at.
    unseen: Option<String>,
    look_after: Instant,
    retry_after: Instant,
}

/// How many routes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportCounts {
    /// Learnt prefixes whose route is in the kernel, by all of its next hops.
    pub in_kernel: usize,
    /// Routes that are left of an agent or session before, and kept until peers have told all.
    pub kept: usize,
}

impl ImportTable {
    /// Connects to the kernel; changes nothing. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When there is no rtnetlink socket to be had.
    pub fn open(table: u32) -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        let socket = Socket::open(None)?;
        let now = Instant::now();
        Ok(Self {
            handle,
            socket,
            table,
            addresses: Vec::new(),
            held: BTreeMap::new(),
            wanted: BTreeMap::new(),
            refused: BTreeMap::new(),
            retried: None,
            adopting: Some(None),
            unseen: Some("not looked at yet".into()),
            look_after: now,
            retry_after: now,
        })
    }

    /// Sets this node's own addresses.
    pub fn source_from(&mut self, addresses: &[IpAddr]) {
        self.addresses = addresses.into();
    }

    /// The sessions begin anew: what is held is kept until peers have told all, or until then.
    pub fn adopt(&mut self, until: Instant) {
        self.wanted.clear();
        self.refused.clear();
        self.adopting = Some(Some(until));
    }

    /// What an agent before left is kept until then at most, if it is not known yet how long.
    pub fn bound(&mut self, until: Instant) {
        if let Some(open @ None) = &mut self.adopting {
            *open = Some(until);
        }
    }

    /// How many routes there are.
    pub fn counts(&self) -> ImportCounts {
        let wanted = |(table, prefix): &Key| *table == self.table && self.wanted.contains_key(prefix);
        let in_kernel =
            self.held.keys().filter(|key| wanted(key) && !self.refused.contains_key(&key.1)).count();
        ImportCounts { in_kernel, kept: self.held.keys().filter(|key| !wanted(key)).count() }
    }

    /// Why something is not in the table, or still there.
    pub fn problem(&self) -> Option<String> {
        let place = format!("router.import.table {}", self.table);
        let (prefix, why) = match (&self.unseen, self.refused.first_key_value()) {
            // Before the first look there is nothing to tell.
            (Some(_), _) if self.held.is_empty() && self.wanted.is_empty() => return None,
            (Some(why), _) => return Some(format!("{place}: {why}")),
            (None, Some(first)) => first,
            (None, None) => return None,
        };
        let others = self.refused.len() - 1;
        let others = if others == 0 { String::new() } else { format!("; {others} more routes are refused") };
        Some(format!("{place}: {prefix}: {why}{others}"))
    }

    /// Takes in what became different.
    pub async fn change(&mut self, changes: Vec<LearntChange>) {
        let mut touched = Vec::new();
        for (prefix, hops) in changes {
            touched.push(prefix);
            // It is another question now.
            self.refused.remove(&prefix);
            match hops {
                Some(hops) => self.wanted.insert(prefix, hops),
                None => self.wanted.remove(&prefix),
            };
        }
        if self.unseen.is_some() {
            // Whether the kernel holds what is believed is not known: all of it is looked at.
            return self.sync(Instant::now()).await;
        }
        self.follow(touched);
    }

    /// Tries again what failed; drops what is kept in vain once peers have told all (`complete`) or its time is over. `drained`: all
    /// that they told has been taken in.
    pub async fn tick(&mut self, now: Instant, complete: bool, drained: bool) {
        let over = |until: Option<Instant>| complete || until.is_some_and(|until| until <= now);
        if drained && self.adopting.is_some_and(over) {
            self.settle().await;
        }
        if self.retry_after <= now {
            self.retry_after = now + AGAIN;
            if self.unseen.is_some() {
                return self.sync(now).await;
            }
            let after = self.retried.take().map_or(Bound::Unbounded, Bound::Excluded);
            let again: Vec<IpNet> = self
                .refused
                .range((after, Bound::Unbounded))
                .map(|(prefix, _)| *prefix)
                .take(RETRIES)
                .collect();
            self.retried = again.last().copied();
            self.follow(again);
        }
    }

    /// Nothing more is told: what is held and not wanted goes.
    pub async fn settle(&mut self) {
        self.adopting = None;
        self.sync(Instant::now()).await;
    }

    /// Removes what is there, as far as it goes: the agent ends.
    pub async fn remove(&mut self) {
        self.wanted.clear();
        self.settle().await;
        if let Some(problem) = self.problem() {
            warn!("{problem}");
        }
    }

    /// Looks for what others changed and repairs it, unless it has just been looked at.
    pub async fn check(&mut self) {
        let now = Instant::now();
        if self.look_after <= now {
            self.sync(now).await;
        }
    }

    async fn sync(&mut self, began: Instant) {
        let listed = multipath::list(&self.handle).await;
        self.look_after = Instant::now() + began.elapsed() * REST;
        match listed {
            Ok(routes) => {
                self.held = routes.into_iter().collect();
                self.unseen = None;
            }
            Err(error) => {
                let why = error.to_string();
                if self.unseen.as_ref() != Some(&why) {
                    warn!("router.import.table {}: {why}", self.table);
                }
                self.unseen = Some(why);
                return;
            }
        }
        let differs = |prefix: &&IpNet| self.held.get(&(self.table, **prefix)) != self.ways(prefix).as_ref();
        // What was refused is tried again little by little.
        let tried = |prefix: &&IpNet| !self.refused.contains_key(*prefix);
        let differing: Vec<IpNet> = self.wanted.keys().filter(tried).filter(differs).copied().collect();
        self.follow(differing);
        if self.adopting.is_none() {
            let unwanted = |(table, prefix): &Key| *table != self.table || !self.wanted.contains_key(prefix);
            let gone: Vec<_> = self.held.keys().copied().filter(unwanted).map(|key| (key, None)).collect();
            if !gone.is_empty() {
                info!(routes = gone.len(), "learnt routes that no peer has told of go");
            }
            self.write(gone);
        }
    }

    /// Makes the kernel's routes to these prefixes what is wanted.
    fn follow(&mut self, prefixes: Vec<IpNet>) {
        let mut changes = Vec::new();
        for prefix in prefixes {
            let (key, ways) = ((self.table, prefix), self.ways(&prefix));
            if self.held.get(&key) == ways.as_ref() {
                self.refused.remove(&prefix);
            } else {
                changes.push((key, ways));
            }
        }
        for (key, ways, error) in self.write(changes) {
            self.make_do(key, &ways, &error);
        }
    }

    /// The kernel refuses a route: what can be had of it is to be there.
    fn make_do(&mut self, key: Key, ways: &Ways, error: &RouteError) {
        let is_news = !self.refused.contains_key(&key.1);
        // What is there by the same next hops differs in its source alone, or was changed by others: it stays.
        let stays = self.held.get(&key).is_some_and(|held| held.hops == ways.hops);
        if !stays && (ways.hops.len() == 1 || !self.put_usable(key, ways)) && self.held.contains_key(&key) {
            // What is there leads to next hops that do not count any more.
            self.write(vec![(key, None)]);
        }
        let why = format!(
            "{error}; next hops have to be on a link of this node, and the Node's address has to be one of this host"
        );
        if is_news && self.refused.is_empty() {
            warn!("router.import.table {}: {why}", self.table);
        }
        self.refused.insert(key.1, why);
    }

    /// Puts a route to those next hops that the kernel takes: one that it does not must not cost the others. Those in use stay so
    /// meanwhile. Gives whether there are any.
    fn put_usable(&mut self, key: Key, ways: &Ways) -> bool {
        let of = |hops: &BTreeSet<NextHop>| Ways { hops: hops.iter().copied().collect(), ..ways.clone() };
        let in_use = self.held.get(&key).map(|held| Arc::clone(&held.hops)).unwrap_or_default();
        let mut usable: BTreeSet<NextHop> =
            ways.hops.iter().filter(|hop| in_use.contains(hop)).copied().collect();
        if !usable.is_empty() && !self.put(key, &of(&usable)) {
            usable.clear();
        }
        for hop in ways.hops.iter() {
            if usable.insert(*hop) && !self.put(key, &of(&usable)) {
                usable.remove(hop);
            }
        }
        !usable.is_empty()
    }

    fn put(&mut self, key: Key, ways: &Ways) -> bool {
        self.write(vec![(key, Some(ways.clone()))]);
        self.held.get(&key) == Some(ways)
    }

    fn ways(&self, prefix: &IpNet) -> Option<Ways> {
        let hops = Arc::clone(self.wanted.get(prefix)?);
        let of_family = |address: &&IpAddr| address.is_ipv4() == prefix.addr().is_ipv4();
        Some(Ways { hops, source: self.addresses.iter().find(of_family).copied() })
    }

    /// Has the kernel put (`Some`) and remove (`None`) routes. Gives those that it does not take, and why; where it does not answer, or
    /// removes one not, all is listed, and what differs is tried again.
    fn write(&mut self, changes: Vec<(Key, Option<Ways>)>) -> Vec<(Key, Ways, RouteError)> {
        let asked: Vec<Change<'_>> = changes
            .iter()
            .map(|(key, ways)| Change {
                key: *key,
                ways: ways.as_ref(),
                replaces: self.held.contains_key(key),
            })
            .collect();
        let outcomes = match multipath::write(&mut self.socket, &asked) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let why = format!("write routes: {error}");
                warn!("router.import.table {}: {why}", self.table);
                self.unseen = Some(why);
                return Vec::new();
            }
        };
        let mut refused = Vec::new();
        for ((key, ways), outcome) in changes.into_iter().zip(outcomes) {
            match (ways, outcome) {
                (Some(ways), Ok(())) => {
                    self.refused.remove(&key.1);
                    self.held.insert(key, ways);
                }
                (None, Ok(())) => drop(self.held.remove(&key)),
                (Some(ways), Err(error)) => refused.push((key, ways, error)),
                (None, Err(error)) => self.unseen = Some(error.to_string()),
            }
        }
        refused
    }
}

/// Removes all learnt routes from the kernel. Gives how many there were.
///
/// # Errors
/// Of the first that could not be removed; or there is no rtnetlink socket to be had.
pub async fn remove_imported() -> Result<usize, String> {
    let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
        .map_err(|error| format!("rtnetlink socket: {error}"))?;
    tokio::spawn(connection);
    let held = multipath::list(&handle).await.map_err(|error| error.to_string())?;
    let gone: Vec<Change<'_>> =
        held.iter().map(|(key, _)| Change { key: *key, ways: None, replaces: false }).collect();
    let mut socket = Socket::open(None).map_err(|error| format!("rtnetlink socket: {error}"))?;
    let outcomes =
        multipath::write(&mut socket, &gone).map_err(|error| format!("delete learnt routes: {error}"))?;
    outcomes.into_iter().collect::<Result<Vec<()>, _>>().map_err(|error| error.to_string())?;
    Ok(held.len())
}
