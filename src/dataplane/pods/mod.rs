//! Acceptance `pod`: an endpoint takes in what is tunnelled to it within its own network namespace.
//!
//! ```text
//! outer packet for (endpoint, VIP) ──► nftables on the node: `direct`? ──no──► taken in by the node, as all others are
//!                                             │ yes: passes
//!                                             ▼
//!  in the pod's namespace:  sheave4/sheave6 ──► the VIP is a local route, or rewritten to endpoint:targetPort
//!                                             │
//!                                             ▼
//!                           reply, source VIP, through the node to the client
//!
//! pairs (pure)  ──► Inside (pure) ──► namespaces: which one has the address ──► kernel: made so, within it
//!                                                                        └─► reply_path: the node's side of its device
//! ```
//!
//! First the namespace is prepared, then the rules let packets pass ([`Pods::changes`]); the other way round on the way back,
//! with some seconds in between. Where a namespace cannot be prepared, the node takes in what is for that endpoint and
//! [`Pods::problems`] says why: acceptance by the node stands behind each such endpoint all the time. Nothing here
//! waits for long: each namespace has a few seconds, and one that hangs is left alone until it does not.

mod enter;
mod error;
mod inside;
mod journal;
mod kernel;
mod namespaces;
mod pairs;
mod reply_path;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::path::Path;
use std::time::{Duration, Instant};

use rtnetlink::Handle;

use self::enter::{Namespace, apart, several, within};
pub use self::error::PodError;
use self::inside::Inside;
use self::journal::Journal;
pub use self::namespaces::DIRECTORY;
use self::namespaces::Finder;
pub use self::pairs::Pair;
use self::pairs::Pairs;
use self::reply_path::ReplyPaths;
use super::sysctl::Sysctls;
use crate::plan::{NodePlan, RewriteKey};

/// How long the work in one namespace may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How many namespaces each periodic look verifies, one after the other in turn.
const VERIFIED: usize = 8;

/// The node around the pods.
pub struct Surroundings<'a> {
    /// Of its network namespace.
    pub handle: &'a Handle,
    /// Its settings.
    pub sysctls: &'a mut Sysctls,
    /// Its own addresses.
    pub local: &'a BTreeSet<IpAddr>,
}

/// The pods of this node that accept themselves.
#[derive(Debug)]
pub struct Pods {
    pairs: Pairs,
    journal: Journal,
    finder: Finder,
    reply_paths: ReplyPaths,
    /// Where each prepared endpoint was found, and what is there.
    prepared: BTreeMap<IpAddr, (Namespace, Inside)>,
    /// What the rules let pass.
    passing: BTreeSet<Pair>,
    /// What of that has changed since it was told.
    changes: BTreeMap<Pair, bool>,
    /// Endpoints whose namespace holds more than it must.
    due: BTreeSet<IpAddr>,
    /// Endpoints whose namespace has gone. As a rule they go themselves next: not looked for at once.
    lost: BTreeSet<IpAddr>,
    /// Endpoints that could not be prepared or cleared, with the reason.
    failed: BTreeMap<IpAddr, PodError>,
    /// The last one that a periodic look verified.
    verified: Option<IpAddr>,
}

impl Pods {
    /// Knows what an earlier agent prepared; changes nothing.
    ///
    /// # Errors
    /// [`PodError`] where that cannot be read.
    pub fn open(state_directory: &Path) -> Result<Self, PodError> {
        Ok(Self {
            pairs: Pairs::default(),
            journal: Journal::open(state_directory)?,
            finder: Finder::new().map_err(PodError::Thread)?,
            reply_paths: ReplyPaths::default(),
            prepared: BTreeMap::new(),
            passing: BTreeSet::new(),
            changes: BTreeMap::new(),
            due: BTreeSet::new(),
            lost: BTreeSet::new(),
            failed: BTreeMap::new(),
            verified: None,
        })
    }

    /// Prepares all that the plan wishes and clears what an earlier agent left besides. Gives what it did, in words.
    pub async fn sync(&mut self, plan: &NodePlan, node: Surroundings<'_>, now: Instant) -> Vec<String> {
        let gone: Vec<RewriteKey> =
            self.pairs.keys().filter(|key| !plan.rewrites.contains_key(key)).collect();
        let gone = gone.iter().map(|key| (key, None));
        self.pairs.update(plan.rewrites.iter().map(|(key, rewrite)| (key, Some(rewrite))).chain(gone), now);
        // What nobody wishes is cleared once the rules let nothing pass there.
        let left = self.journal.endpoints().clone();
        let wished = self.pairs.endpoints();
        self.due.extend(left.difference(&wished).copied());
        self.prepare(wished, node).await
    }

    /// Prepares what a change of these rewrites wishes.
    pub async fn apply(
        &mut self,
        plan: &NodePlan,
        touched: &BTreeSet<RewriteKey>,
        node: Surroundings<'_>,
        now: Instant,
    ) {
        let touched = touched.iter().map(|key| (key, plan.rewrites.get(key)));
        let touched = self.pairs.update(touched, now);
        let (wanted, lingering): (BTreeSet<_>, BTreeSet<_>) =
            touched.into_iter().partition(|endpoint| self.pairs.wants(*endpoint));
        for endpoint in lingering {
            self.pass(endpoint);
        }
        self.prepare(wanted, node).await;
    }

    /// Ends what lingered and what was lost: before the rules are written.
    pub fn expire(&mut self, now: Instant) {
        for endpoint in self.pairs.expire(now) {
            self.due.insert(endpoint);
            self.pass(endpoint);
        }
        let lost: Vec<IpAddr> = self
            .prepared
            .iter()
            .filter(|(_, (namespace, _))| !namespace.exists())
            .map(|(endpoint, _)| *endpoint)
            .collect();
        for endpoint in lost {
            self.prepared.remove(&endpoint);
            self.lost.insert(endpoint);
            self.pass(endpoint);
        }
    }

    /// Makes the namespaces what they must be after [`Self::expire`]: after the rules were written. Gives what it did, in words.
    pub async fn settle(&mut self, node: Surroundings<'_>) -> Vec<String> {
        let due = std::mem::take(&mut self.due);
        self.prepare(due, node).await
    }

    /// Tries again what failed, and verifies some of the others. Gives what it did, in words.
    pub async fn check(&mut self, node: Surroundings<'_>) -> Vec<String> {
        let after = self.verified.map_or(Bound::Unbounded, Bound::Excluded);
        let mut looked: Vec<IpAddr> = self
            .prepared
            .range((after, Bound::Unbounded))
            .chain(&self.prepared)
            .map(|(endpoint, _)| *endpoint)
            .take(VERIFIED.min(self.prepared.len()))
            .collect();
        self.verified = looked.last().copied();
        looked.extend(self.failed.keys());
        looked.extend(std::mem::take(&mut self.lost));
        self.prepare(looked.into_iter().collect(), node).await
    }

    /// What the rules let pass to pods: what has come (`true`) or gone since this was asked last.
    pub fn changes(&mut self) -> BTreeMap<Pair, bool> {
        std::mem::take(&mut self.changes)
    }

    /// Endpoints that do not accept themselves though they should, and why.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.failed.iter().map(|(endpoint, why)| {
            if self.pairs.inside(*endpoint).is_some() {
                format!(
                    "acceptance in the pod of endpoint {endpoint}: {why}. This node accepts for it; `sheave.io/acceptance: \
                     node` says that it shall"
                )
            } else {
                format!("what was prepared in the pod of endpoint {endpoint} could not be removed: {why}")
            }
        })
    }

    /// How many problems there are.
    pub fn failed(&self) -> usize {
        self.failed.len()
    }

    /// Makes the namespaces of these endpoints what they must be.
    async fn prepare(&mut self, endpoints: BTreeSet<IpAddr>, node: Surroundings<'_>) -> Vec<String> {
        let mut done = Vec::new();
        let (host, pods): (Vec<IpAddr>, Vec<IpAddr>) =
            endpoints.into_iter().partition(|endpoint| node.local.contains(endpoint));
        for endpoint in host {
            if self.pairs.wants(endpoint) {
                self.fail(endpoint, PodError::HostNetwork);
            } else {
                self.forget(endpoint);
            }
        }
        // An endpoint that nobody wishes and that holds nothing of ours needs no look.
        let pods: BTreeSet<IpAddr> = pods
            .into_iter()
            .filter(|endpoint| {
                self.pairs.inside(*endpoint).is_some() || self.journal.endpoints().contains(endpoint)
            })
            .collect();
        if pods.is_empty() {
            return done;
        }
        if let Err(error) = self.journal.update(pods.iter().copied(), []) {
            let why = error.to_string();
            for endpoint in pods {
                self.fail(endpoint, PodError::Journal(why.clone()));
            }
            return done;
        }
        let mut work = Vec::new();
        for (endpoint, namespace) in self.finder.locate(&pods).await {
            let inside = self.pairs.inside(endpoint);
            match namespace.and_then(|namespace| {
                let token = self.finder.busy.begin(namespace.id, Some(endpoint)).ok_or(PodError::Busy)?;
                Ok((namespace, token))
            }) {
                Ok((namespace, token)) => work.push((endpoint, namespace, inside, token)),
                Err(error) => self.finish(endpoint, inside, Err(error), &mut done),
            }
        }
        let work = work.into_iter().map(|(endpoint, namespace, inside, token)| async move {
            let (entered, wanted) = (namespace.clone(), inside.clone());
            let result = apart(LIMIT, move || {
                let _token = token;
                within(&entered, async |handle| match &wanted {
                    Some(inside) => kernel::ensure(&handle, inside).await,
                    None => kernel::clear(&handle, endpoint).await,
                })
            });
            (endpoint, inside, result.await.map(|changed| (namespace, changed)))
        });
        for (endpoint, inside, mut result) in several(work).await {
            if inside.is_some()
                && result.is_ok()
                && let Err(error) = self.reply_paths.open(node.handle, node.sysctls, endpoint).await
            {
                result = Err(error);
            }
            if inside.is_none()
                && result.is_ok()
                && let Err(error) = self.reply_paths.close(node.sysctls, endpoint)
            {
                result = Err(error);
            }
            self.finish(endpoint, inside, result, &mut done);
        }
        done
    }

    /// Takes note of what came of the work for an endpoint.
    fn finish(
        &mut self,
        endpoint: IpAddr,
        inside: Option<Inside>,
        result: Result<(Namespace, bool), PodError>,
        done: &mut Vec<String>,
    ) {
        match (result, inside) {
            (Ok((namespace, changed)), Some(inside)) => {
                done.extend(changed.then(|| format!("prepared the pod of endpoint {endpoint}")));
                self.failed.remove(&endpoint);
                self.prepared.insert(endpoint, (namespace, inside));
                self.pass(endpoint);
            }
            (Ok((_, changed)), None) => {
                done.extend(changed.then(|| format!("cleared the pod of endpoint {endpoint}")));
                self.forget(endpoint);
            }
            // With the namespace all that was in it is gone.
            (Err(PodError::NotFound | PodError::Vanished(_)), _) if !self.pairs.wants(endpoint) => {
                self.forget(endpoint);
            }
            (Err(error), _) => self.fail(endpoint, error),
        }
    }

    fn forget(&mut self, endpoint: IpAddr) {
        self.failed.remove(&endpoint);
        self.prepared.remove(&endpoint);
        self.pass(endpoint);
        if let Err(error) = self.journal.update([], [endpoint]) {
            self.failed.insert(endpoint, error);
        }
    }

    fn fail(&mut self, endpoint: IpAddr, error: PodError) {
        if error.is_gone() {
            self.prepared.remove(&endpoint);
        }
        self.failed.insert(endpoint, error);
        self.pass(endpoint);
    }

    /// Lets pass what is wished of an endpoint and stands in its namespace, the rest not.
    fn pass(&mut self, endpoint: IpAddr) {
        let stands = self.prepared.get(&endpoint).map(|(_, inside)| inside);
        let wanted: BTreeSet<Pair> = self
            .pairs
            .passing(endpoint)
            .into_iter()
            .filter(|pair| stands.is_some_and(|inside| inside.takes(pair.vip)))
            .collect();
        let held = self.passing.range(Pair::first(endpoint)..);
        let held: BTreeSet<Pair> = held.copied().take_while(|pair| pair.endpoint == endpoint).collect();
        for pair in held.difference(&wanted) {
            self.passing.remove(pair);
            self.changes.insert(*pair, false);
        }
        for pair in wanted.difference(&held) {
            self.passing.insert(*pair);
            self.changes.insert(*pair, true);
        }
    }
}

/// Removes from pods what agents before have left in them. Gives how many there were.
///
/// # Errors
/// [`PodError`] of the first that could not be cleared; the others are.
pub async fn cleanup(state_directory: &Path) -> Result<usize, PodError> {
    let mut journal = Journal::open(state_directory)?;
    let endpoints = journal.endpoints().clone();
    let found = Finder::new().map_err(PodError::Thread)?.locate(&endpoints).await;
    let work = found.into_iter().map(|(endpoint, namespace)| async move {
        let result = match namespace {
            Ok(namespace) => {
                apart(LIMIT, move || {
                    within(&namespace, async |handle| kernel::clear(&handle, endpoint).await)
                })
                .await
            }
            Err(error) => Err(error),
        };
        (endpoint, result)
    });
    let (mut cleared, mut gone, mut failed) = (0, Vec::new(), None);
    for (endpoint, result) in several(work).await {
        match result {
            Ok(changed) => {
                cleared += usize::from(changed);
                gone.push(endpoint);
            }
            Err(PodError::NotFound | PodError::Vanished(_)) => gone.push(endpoint),
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    journal.update([], gone)?;
    failed.map_or(Ok(cleared), Err)
}
