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
//! pairs (pure) ──► Inside (pure) ──► worker, a thread: namespaces, which ones have the address; owner, whose it is
//!      ▲                                 └─► kernel: made so, on a thread within it
//!      └──── standing: what stands where ◄──┘ reply_path: the node's side of its device
//! ```
//!
//! First the namespace is prepared, then the rules let packets pass ([`Pods::changes`]); the other way round on the way back,
//! with some seconds in between. Where a namespace cannot be prepared, the node takes in what is for that endpoint and
//! [`Pods::problems`] says why: acceptance by the node stands behind each such endpoint all the time.
//!
//! Connections of a pod end where packets turn to its node or back, so only what was found to be missing turns them: what
//! could not be looked at stands, and what an agent before let pass goes on to pass until it was looked at.
//!
//! Nothing here waits for namespaces, but for [`GRACE`]: what came of the work there is taken in when it comes.

mod enter;
mod error;
mod inside;
mod journal;
mod kernel;
mod namespaces;
mod owner;
mod pairs;
mod reply_path;
mod worker;

#[cfg(test)]
mod standing_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::path::Path;
use std::time::{Duration, Instant};

use self::enter::{Namespace, apart, several, within};
pub use self::error::PodError;
use self::inside::Inside;
use self::journal::Journal;
pub use self::namespaces::DIRECTORY;
use self::namespaces::Finder;
pub use self::pairs::Pair;
use self::pairs::Pairs;
use self::reply_path::ReplyPaths;
use self::worker::{Done, LIMIT, Order, Outcome, Worker};
use super::sysctl::{SysctlError, Sysctls};
use super::uplink::Uplink;
use crate::plan::{NodePlan, RewriteKey};

/// How long a change waits for pods that nothing is known against. Most are prepared by then: what came in the meantime
/// would be taken in by the node, and its connections would end when packets turn to the pod.
const GRACE: Duration = Duration::from_secs(1);

/// How many namespaces each periodic look verifies, one after the other in turn.
const VERIFIED: usize = 8;

/// The node around the pods.
pub struct Surroundings<'a> {
    /// Its settings.
    pub sysctls: &'a mut Sysctls,
    /// Its own addresses.
    pub local: &'a BTreeSet<IpAddr>,
    /// Its links to other nodes.
    pub uplinks: &'a [Uplink],
}

/// The pods of this node that accept themselves.
#[derive(Debug)]
pub struct Pods {
    pairs: Pairs,
    journal: Journal,
    worker: Worker,
    /// What has come from it and is not taken in yet.
    arrived: Vec<Outcome>,
    /// What each namespace that is worked in will hold.
    in_work: BTreeMap<IpAddr, Option<Inside>>,
    /// What stands in the namespaces of endpoints.
    standing: BTreeMap<IpAddr, Standing>,
    /// What the rules let pass.
    passing: BTreeSet<Pair>,
    /// What of that has changed since it was told.
    changes: BTreeMap<Pair, bool>,
    /// Endpoints whose namespace holds more than it must: nothing is taken away before the rules are written.
    due: BTreeSet<IpAddr>,
    /// Endpoints whose namespace has gone. As a rule they go themselves next: no problem before they are looked for again.
    lost: BTreeSet<IpAddr>,
    /// Endpoints that could not be prepared or cleared, with the reason.
    failed: BTreeMap<IpAddr, PodError>,
    /// The last one that a periodic look verified.
    verified: Option<IpAddr>,
    /// What was repaired since this was asked last, in words.
    repaired: Vec<String>,
    reply_paths: ReplyPaths,
    /// Devices may have settings that no pod needs any more.
    releasing: bool,
    /// Why these could not be put back.
    unreleased: Option<SysctlError>,
}

/// What stands in an endpoint's namespace.
#[derive(Debug)]
enum Standing {
    /// What an agent before left: these VIPs are taken in.
    Adopted(BTreeSet<IpAddr>),
    /// As we made it.
    Prepared(Namespace, Inside),
}

impl Standing {
    fn takes(&self, vip: IpAddr) -> bool {
        match self {
            Self::Adopted(vips) => vips.contains(&vip),
            Self::Prepared(_, inside) => inside.takes(vip),
        }
    }
}

impl Pods {
    /// Knows which endpoints an earlier agent prepared; changes nothing. Network namespace: that of this thread.
    ///
    /// # Errors
    /// [`PodError`] where that cannot be read.
    pub fn open(state_directory: &Path) -> Result<Self, PodError> {
        Self::with(Worker::start()?, state_directory)
    }

    fn with(worker: Worker, state_directory: &Path) -> Result<Self, PodError> {
        Ok(Self {
            pairs: Pairs::default(),
            journal: Journal::open(state_directory)?,
            worker,
            arrived: Vec::new(),
            in_work: BTreeMap::new(),
            standing: BTreeMap::new(),
            passing: BTreeSet::new(),
            changes: BTreeMap::new(),
            due: BTreeSet::new(),
            lost: BTreeSet::new(),
            failed: BTreeMap::new(),
            verified: None,
            repaired: Vec::new(),
            reply_paths: ReplyPaths::default(),
            releasing: true,
            unreleased: None,
        })
    }

    /// Whether an earlier agent may have let something pass.
    pub fn may_adopt(&self) -> bool {
        !self.journal.endpoints().is_empty()
    }

    /// Takes over what an earlier agent let pass: that goes on, as far as it is wished, until it was looked at.
    pub fn adopt(&mut self, passing: impl IntoIterator<Item = Pair>) {
        for pair in passing.into_iter().filter(|pair| self.journal.endpoints().contains(&pair.endpoint)) {
            let standing = self.standing.entry(pair.endpoint);
            if let Standing::Adopted(vips) = standing.or_insert(Standing::Adopted(BTreeSet::new())) {
                vips.insert(pair.vip);
            }
        }
    }

    /// Has all prepared that the plan wishes, and cleared what an earlier agent left besides.
    pub async fn sync(&mut self, plan: &NodePlan, node: Surroundings<'_>, now: Instant) {
        let gone: Vec<RewriteKey> =
            self.pairs.keys().filter(|key| !plan.rewrites.contains_key(key)).collect();
        let gone = gone.iter().map(|key| (key, None));
        self.pairs.update(plan.rewrites.iter().map(|(key, rewrite)| (key, Some(rewrite))).chain(gone), now);
        let wished = self.pairs.endpoints();
        self.due.extend(self.journal.endpoints().difference(&wished).copied());
        for (endpoint, standing) in &self.standing {
            if let Standing::Adopted(vips) = standing
                && !vips.iter().all(|vip| {
                    self.pairs.passing(*endpoint).contains(&Pair { endpoint: *endpoint, vip: *vip })
                })
            {
                self.due.insert(*endpoint);
            }
        }
        for endpoint in self.standing.keys().copied().collect::<Vec<_>>() {
            self.pass(endpoint);
        }
        self.prepare_soon(wished, node).await;
    }

    /// Has prepared what a change of these rewrites wishes.
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
        self.prepare_soon(wanted, node).await;
    }

    /// Waits until something has come of the work in namespaces, for [`Self::take_in`]. Nothing is lost where the wait is
    /// given up.
    pub async fn news(&mut self) {
        if self.arrived.is_empty() {
            let outcome = self.worker.wait().await;
            self.arrived.push(outcome);
        }
    }

    /// Takes in what has come of the work in namespaces.
    pub fn take_in(&mut self, mut node: Surroundings<'_>) {
        let mut arrived = std::mem::take(&mut self.arrived);
        while let Some(outcome) = arrived.pop().or_else(|| self.worker.next()) {
            self.finish(outcome, &mut node);
        }
    }

    /// Ends what lingered: before the rules are written.
    pub fn expire(&mut self, now: Instant) {
        for endpoint in self.pairs.expire(now) {
            self.due.insert(endpoint);
            self.pass(endpoint);
        }
    }

    /// Has the namespaces made what they must be after [`Self::expire`]: after the rules were written. Has namespaces looked
    /// for that are not where they were.
    pub fn settle(&mut self, mut node: Surroundings<'_>) {
        let (due, later): (BTreeSet<_>, _) = std::mem::take(&mut self.due)
            .into_iter()
            .partition(|endpoint| !self.in_work.contains_key(endpoint));
        self.due = later;
        self.order(due, &mut node);
        let moved = self.standing.iter().filter(|(_, standing)| match standing {
            Standing::Adopted(_) => false,
            Standing::Prepared(namespace, _) => !namespace.exists(),
        });
        let moved = moved.map(|(endpoint, _)| *endpoint).collect();
        self.order(moved, &mut node);
        self.release(&mut node);
    }

    /// Tries again what failed, and verifies some of the others. Gives what was repaired, in words.
    pub fn check(&mut self, mut node: Surroundings<'_>) -> Vec<String> {
        let after = self.verified.map_or(Bound::Unbounded, Bound::Excluded);
        let mut looked: Vec<IpAddr> = self
            .standing
            .range((after, Bound::Unbounded))
            .chain(&self.standing)
            .map(|(endpoint, _)| *endpoint)
            .take(VERIFIED.min(self.standing.len()))
            .collect();
        self.verified = looked.last().copied();
        looked.extend(self.failed.keys());
        looked.extend(std::mem::take(&mut self.lost));
        self.order(looked.into_iter().collect(), &mut node);
        std::mem::take(&mut self.repaired)
    }

    /// What the rules let pass to pods: what has come (`true`) or gone since this was asked last.
    pub fn changes(&mut self) -> BTreeMap<Pair, bool> {
        std::mem::take(&mut self.changes)
    }

    /// Endpoints that do not accept themselves though they should, and why; and what else could not be done.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let failed = self.failed.iter().map(|(endpoint, why)| {
            if self.pairs.inside(*endpoint).is_none() {
                format!("what was prepared in the pod of endpoint {endpoint} could not be removed: {why}")
            } else if self.standing.contains_key(endpoint) {
                format!("acceptance in the pod of endpoint {endpoint} goes on as it was: {why}")
            } else {
                format!(
                    "acceptance in the pod of endpoint {endpoint}: {why}. This node accepts for it; `sheave.io/acceptance: \
                     node` says that it shall"
                )
            }
        });
        failed.chain(self.unreleased.iter().map(|why| format!("settings of pods' devices: {why}")))
    }

    /// How many problems there are.
    pub fn failed(&self) -> usize {
        self.failed.len() + usize::from(self.unreleased.is_some())
    }

    /// Has these namespaces made what they must be, and gives those of them a moment that nothing is known against.
    async fn prepare_soon(&mut self, endpoints: BTreeSet<IpAddr>, mut node: Surroundings<'_>) {
        let mut awaited: BTreeSet<IpAddr> = endpoints
            .iter()
            .filter(|endpoint| !self.failed.contains_key(endpoint) && !self.in_work.contains_key(endpoint))
            .copied()
            .collect();
        self.order(endpoints, &mut node);
        awaited.retain(|endpoint| self.in_work.contains_key(endpoint));
        let wait = async {
            while !awaited.is_empty() {
                self.news().await;
                for outcome in std::mem::take(&mut self.arrived) {
                    awaited.remove(&outcome.endpoint);
                    self.finish(outcome, &mut node);
                }
            }
        };
        // What comes later is taken in then.
        let _ = tokio::time::timeout(GRACE, wait).await;
    }

    /// Orders that the namespaces of these endpoints be made what they must be. Where one is worked in already it is seen
    /// afterwards whether that was it. What is due comes once the rules are written.
    fn order(&mut self, endpoints: BTreeSet<IpAddr>, node: &mut Surroundings<'_>) {
        let (host, pods): (Vec<IpAddr>, Vec<IpAddr>) = endpoints
            .into_iter()
            .filter(|endpoint| !self.in_work.contains_key(endpoint) && !self.due.contains(endpoint))
            .partition(|endpoint| node.local.contains(endpoint));
        for endpoint in host {
            if self.pairs.wants(endpoint) {
                self.fail(endpoint, PodError::HostNetwork);
            } else {
                self.forget(endpoint);
            }
        }
        // An endpoint that nobody wishes and that holds nothing of ours needs no look.
        let pods: Vec<IpAddr> = pods
            .into_iter()
            .filter(|endpoint| {
                self.pairs.inside(*endpoint).is_some() || self.journal.endpoints().contains(endpoint)
            })
            .collect();
        if pods.is_empty() {
            return;
        }
        if let Err(error) = self.journal.update(pods.iter().copied(), []) {
            let why = error.to_string();
            for endpoint in pods {
                self.fail(endpoint, PodError::Journal(why.clone()));
            }
            return;
        }
        let order = |endpoint: IpAddr| Order {
            endpoint,
            wanted: self.pairs.inside(endpoint),
            at: match self.standing.get(&endpoint) {
                Some(Standing::Prepared(namespace, _)) => Some(namespace.clone()),
                _ => None,
            },
        };
        let orders: Vec<Order> = pods.into_iter().map(order).collect();
        self.in_work.extend(orders.iter().map(|order| (order.endpoint, order.wanted.clone())));
        if let Err(orders) = self.worker.order(orders) {
            for Order { endpoint, .. } in orders {
                self.in_work.remove(&endpoint);
                self.fail(
                    endpoint,
                    PodError::Thread(std::io::Error::other("it has ended: restart the agent")),
                );
            }
        }
    }

    /// Takes note of what came of the work for an endpoint.
    fn finish(&mut self, outcome: Outcome, node: &mut Surroundings<'_>) {
        let Outcome { endpoint, wanted, result } = outcome;
        self.in_work.remove(&endpoint);
        let result = result.and_then(|done| match (&wanted, &done.device) {
            (Some(_), Some(device)) => {
                self.reply_paths.open(node.sysctls, endpoint, device.clone()).map(|()| done)
            }
            _ => Ok(done),
        });
        let wished = self.pairs.inside(endpoint);
        let is_other = wished != wanted;
        match (result, wanted) {
            (Ok(Done { namespace: Some(namespace), changed, .. }), Some(inside)) => {
                let stood = match self.standing.get(&endpoint) {
                    Some(Standing::Prepared(_, stood)) => *stood == inside,
                    _ => false,
                };
                if changed && stood {
                    self.repaired.push(format!("the pod of endpoint {endpoint}"));
                }
                self.failed.remove(&endpoint);
                self.standing.insert(endpoint, Standing::Prepared(namespace, inside));
                self.pass(endpoint);
            }
            // Wished again meanwhile: it is ordered below.
            (Ok(_), None) if is_other => {
                self.standing.remove(&endpoint);
                self.pass(endpoint);
            }
            (Ok(_), _) => self.forget(endpoint),
            // With the namespace all that was in it is gone.
            (Err(error), _) if error.is_gone() && wished.is_none() => self.forget(endpoint),
            (Err(error), _) => self.fail(endpoint, error),
        }
        if is_other {
            self.order([endpoint].into(), node);
        }
    }

    fn forget(&mut self, endpoint: IpAddr) {
        self.failed.remove(&endpoint);
        self.lost.remove(&endpoint);
        self.standing.remove(&endpoint);
        self.pass(endpoint);
        if let Err(error) = self.journal.update([], [endpoint]) {
            self.failed.insert(endpoint, error);
        }
    }

    fn fail(&mut self, endpoint: IpAddr, error: PodError) {
        let stood = error.is_finding() && self.standing.remove(&endpoint).is_some();
        if stood && error.is_gone() {
            self.lost.insert(endpoint);
        } else {
            self.failed.insert(endpoint, error);
        }
        self.pass(endpoint);
    }

    /// Lets pass what is wished of an endpoint and stands in its namespace, and goes on to stand there; the rest not.
    fn pass(&mut self, endpoint: IpAddr) {
        let takes = |vip: IpAddr| {
            let stays = |coming: &Option<Inside>| coming.as_ref().is_some_and(|inside| inside.takes(vip));
            self.standing.get(&endpoint).is_some_and(|standing| standing.takes(vip))
                && self.in_work.get(&endpoint).is_none_or(stays)
        };
        let wanted: BTreeSet<Pair> =
            self.pairs.passing(endpoint).into_iter().filter(|pair| takes(pair.vip)).collect();
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

    /// Puts back what devices had before pods behind them needed something else: once the rules let nothing pass there, and
    /// once it is known of all that an agent before prepared by which device they are reached.
    fn release(&mut self, node: &mut Surroundings<'_>) {
        let Self { standing, in_work, .. } = self;
        let needs = |endpoint| standing.contains_key(&endpoint) || in_work.contains_key(&endpoint);
        self.releasing |= self.reply_paths.retain(needs);
        let adopts = standing.values().any(|standing| matches!(standing, Standing::Adopted(_)));
        if !self.releasing || adopts {
            return;
        }
        let uplinks = node.uplinks.iter().map(|uplink| uplink.name.as_str());
        let needed = self.reply_paths.devices().chain(uplinks).collect();
        self.unreleased = node.sysctls.release_pods(&needed).err();
        self.releasing = self.unreleased.is_some();
    }
}

/// Removes from pods what agents before have left in them. Gives how many there were.
///
/// # Errors
/// [`PodError`] of the first that could not be cleared; the others are.
pub async fn cleanup(state_directory: &Path) -> Result<usize, PodError> {
    let mut journal = Journal::open(state_directory)?;
    let endpoints = journal.endpoints().clone();
    let mut finder = Finder::new().map_err(PodError::Thread)?;
    let found = finder.locate(&endpoints, |_, namespaces| !namespaces.is_empty()).await;
    let work = found.into_iter().map(|(endpoint, namespaces)| async move {
        let clear = async {
            let mut cleared = false;
            for namespace in namespaces? {
                let work = move || within(&namespace, async |handle| kernel::clear(&handle, endpoint).await);
                cleared |= apart(LIMIT, work).await?;
            }
            Ok::<bool, PodError>(cleared)
        };
        (endpoint, clear.await)
    });
    let (mut cleared, mut gone, mut failed) = (0, Vec::new(), None);
    for (endpoint, result) in several(work).await {
        match result {
            Ok(changed) => {
                cleared += usize::from(changed);
                gone.push(endpoint);
            }
            Err(error) if error.is_gone() => gone.push(endpoint),
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    journal.update([], gone)?;
    failed.map_or(Ok(cleared), Err)
}
