//! The agent: one loop that owns everything and does one thing after the other.
//!
//! ```text
//! source ──events──► Planner ──Delta──► 1 withdraw what goes     (announce)
//!                                       2 kernel                 (dataplane); VIPs that go, a moment later (leaving)
//!                                       3 announce what it holds (announce)
//! every second: what drains, lingers or failed        every CHECK: what others changed in the kernel
//! source away at the start: hold what an agent before announced, as far as the kernel still forwards it
//! kernel tables ──News──► Planner ──Delta──► 1, 3
//! links, default routes, router advertisements ──► where peers are       (announce)
//! annotation, taints, `sheave drain` ──► how VIPs are announced          (drain)
//! status socket, scrapes ──questions──► the loop answers between two changes
//! ```
//!
//! The loop has a thread and a runtime of its own, since the kernel's answers are waited for. BGP sessions and sockets live on another,
//! BFD and what is learnt of peers on two more: no keepalive is late because of the loop, and a path that fails is left at once.

mod announced;
mod answers;
mod draining;
mod leaving;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use self::announced::{holds, left_out, touched, warnings};
use self::draining::Draining;
use self::leaving::{Leaving, SETTLE};
use crate::announce::{Announcer, Journal, Missing, Saved};
use crate::cluster::{Event, Object, ObjectKey, Problem};
use crate::config::Config;
use crate::dataplane::{Dataplane, DataplaneError, Obstructed, Settings};
use crate::observe::accepts::Accepts;
use crate::observe::events::{Absent, Events};
use crate::observe::status::Question;
use crate::observe::{Observer, Pass};
use crate::plan::{Announcement, AnnouncementKind, Delta, NodePlan, Planner, Warning};
use crate::tables::{ExportTable, Following, News, follow, follow_links};

/// How often the kernel is looked at for what others changed.
const CHECK: Duration = Duration::from_secs(15);
/// How often what waits is looked at.
const TICK: Duration = Duration::from_secs(1);

/// How long a start over state of an earlier agent waits for a source that is broken in part; less than
/// the restart time after which peers drop the routes.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a start waits for its source before it holds what was announced before: longer than a source that is there
/// takes, as a rule, and shorter than peers wait, by any restart time that makes sense.
const HOLD: Duration = Duration::from_secs(5);

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// Routing tables.
    #[error("netlink socket for kernel tables: {0}")]
    Tables(std::io::Error),
    /// The source's thread ended.
    #[error("the source ended: this is a bug; kernel state stays as it is")]
    SourceGone,
}

/// What the dataplane needs from the config.
pub fn settings(config: &Config) -> Settings {
    Settings {
        mark_mask: config.services.mark_mask,
        encapsulation: config.services.encapsulation,
        strict_arp: config.services.strict_arp,
        conntrack: config.services.conntrack.clone(),
        state_directory: config.observe.status.parent().map_or_else(|| PathBuf::from("."), PathBuf::from),
    }
}

/// The kernel tables whose routes are announced.
struct Tables {
    /// `None`: there are none.
    following: Option<Following>,
    /// What they hold is known: an end of the start's announcements means that there are no others.
    known: bool,
    problem: Option<String>,
}

impl Tables {
    async fn next(&mut self) -> Result<News, String> {
        match &mut self.following {
            Some(following) => following.next().await,
            None => std::future::pending().await,
        }
    }
}

/// This node's agent.
pub struct Agent {
    planner: Planner,
    dataplane: Dataplane,
    announcer: Announcer,
    /// What the agent before announced, until that has been looked at.
    before: Option<Saved>,
    /// What is announced instead of the plan, while that is not whole.
    held: Option<NodePlan>,
    /// Since the first sync.
    ready: bool,
    draining: Draining,
    leaving: Leaving,
    tables: Tables,
    observer: Observer,
    opened: Instant,
    checked: Instant,
    /// What a start waits for, as logged last.
    waits_for: Option<&'static str>,
    /// As logged last.
    problems: BTreeSet<String>,
    /// What keeps VIPs from being announced, as announcements follow.
    obstructed: Obstructed,
    source_problems: BTreeSet<Problem>,
    node_warnings: BTreeSet<Warning>,
    /// Where there is an API server to write to.
    accepts: Option<Accepts>,
    events: Option<Events>,
}

impl Agent {
    /// An agent that has changed nothing yet. `background` runs sessions; `observer` is told of all. Where there is an API
    /// server, this node's Node is made to say what it accepts, Events tell users what they should know, and passwords may
    /// be in Secrets.
    ///
    /// # Errors
    /// [`AgentError`] where the kernel lacks something or permission is missing.
    pub fn new(
        node: &str,
        config: Config,
        background: &Handle,
        observer: Observer,
        api_server: Option<kube::Client>,
    ) -> Result<Self, AgentError> {
        let settings = settings(&config);
        let dataplane = Dataplane::open(&settings)?;
        let (journal, saved) = Journal::open(&settings.state_directory);
        let announce = &config.announce;
        let export = ExportTable::open(announce.export_table).map_err(AgentError::Tables)?;
        let following = match &announce.kernel_tables[..] {
            [] => None,
            tables => {
                let following = follow(tables, announce.default_routes, background);
                Some(following.map_err(AgentError::Tables)?)
            }
        };
        let tables = Tables { known: following.is_none(), following, problem: None };
        let mut planner = Planner::new(node, config);
        if let Some(node) = saved.node.as_ref().filter(|saved| *saved.name == *node) {
            planner.recall(node);
        }
        let mut announcer = Announcer::new(background.clone(), api_server.clone(), journal);
        announcer.export_to(export);
        let links = follow_links(background).map_err(AgentError::Tables)?;
        announcer.import_to(planner.config().router.import.table, links).map_err(AgentError::Tables)?;
        let draining = Draining::open(&settings.state_directory, &planner.config().drain);
        // Until the source has told all, that is known of the record alone.
        observer.drains(!draining.serves());
        Ok(Self {
            planner,
            dataplane,
            announcer,
            tables,
            before: Some(saved),
            held: None,
            ready: false,
            draining,
            leaving: Leaving::default(),
            observer,
            opened: Instant::now(),
            checked: Instant::now(),
            waits_for: None,
            problems: BTreeSet::new(),
            obstructed: Obstructed::default(),
            source_problems: BTreeSet::new(),
            node_warnings: BTreeSet::new(),
            accepts: api_server.clone().map(|client| Accepts::start(client, node, background)),
            events: api_server.map(|client| Events::start(client, node, background)),
        })
    }

    /// Runs until `stop` says so. Kernel state stays; sessions end as the config's graceful restart says.
    ///
    /// # Errors
    /// [`AgentError`] when it cannot go on.
    pub async fn run(
        mut self,
        mut events: mpsc::UnboundedReceiver<Vec<Event>>,
        mut questions: mpsc::Receiver<Question>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let mut stop = std::pin::pin!(stop);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Whichever is ready, by chance: neither events nor questions in a row keep the other, or the ticks, from their turn.
            tokio::select! {
                () = &mut stop => break,
                batch = events.recv() => {
                    let mut batch = batch.ok_or(AgentError::SourceGone)?;
                    let waiting = events.len();
                    // What came meanwhile is one change.
                    while let Ok(more) = events.try_recv() {
                        batch.extend(more);
                    }
                    self.observer.begin(Instant::now());
                    self.observer.told(&batch, waiting);
                    self.take(batch).await;
                }
                told = self.tables.next() => self.take_routes(told).await,
                () = self.announcer.news() => self.announcer.take().await,
                Some(question) = questions.recv() => {
                    // Whoever asked may have gone: nothing is lost, and nothing need be found out.
                    match question {
                        Question::Snapshot(asker) if asker.is_closed() => {}
                        Question::Explain(target, asker) => drop(asker.send(self.explain(&target).await)),
                        Question::Status(asker) => drop(asker.send(self.status())),
                        Question::Draining(asker) => drop(asker.send(self.drain_status())),
                        Question::Drain(asked, asker) => drop(asker.send(self.command_drain(asked).await)),
                        Question::Snapshot(asker) => drop(asker.send(self.snapshot())),
                    }
                    continue;
                }
                () = self.dataplane.news(), if self.ready => {
                    self.observer.begin(Instant::now());
                    self.dataplane.tick(self.planner.plan(), Instant::now()).await;
                    self.report().await;
                }
                () = until(self.leaving.due()) => {
                    self.observer.begin(Instant::now());
                    self.leave(Instant::now()).await;
                }
                _ = ticks.tick() => {
                    self.observer.begin(Instant::now());
                    self.tick().await;
                }
            }
            self.observer.forgot(&self.dataplane.forgotten());
            self.observer.end(&self.planner, self.ready, self.dataplane.is_whole());
        }
        self.announcer.stop().await;
        Ok(())
    }

    async fn take(&mut self, events: Vec<Event>) {
        let told_problems = events.iter().any(|event| matches!(event, Event::Problems(_)));
        let concerns_own_node = events.iter().any(|event| match event {
            Event::Apply(Object::Node(node)) => *node.name == *self.planner.node(),
            Event::Delete(ObjectKey::Node(name)) => **name == *self.planner.node(),
            _ => false,
        });
        let delta = self.planner.handle(events);
        self.observer.planned(&self.planner, &delta);
        if told_problems {
            let problems = self.planner.problems().iter().cloned().collect();
            for problem in news(&mut self.source_problems, problems) {
                warn!("{problem}");
            }
        }
        if concerns_own_node {
            self.report_node();
        }
        if let Some(events) = &mut self.events {
            events.planned(self.planner.plan(), &delta.services);
            if told_problems {
                events.problems(self.planner.problems());
            }
            if concerns_own_node {
                events.node_planned(self.planner.node_warnings());
            }
        }
        if let Some(accepts) = &self.accepts {
            accepts.saw(self.planner.own_accepts());
        }
        if self.ready {
            if concerns_own_node {
                self.remember_node();
            }
            self.change(&delta).await;
        } else {
            self.start_if_whole().await;
        }
    }

    /// Starts, unless the source lacks too much: nothing is touched then, and what an agent before left goes on.
    ///
    /// Without this node's own Node nothing can be done right. With something wrong in a file of the source, its Services
    /// may be among those in the kernel: there is [`PATIENCE`] to mend it, since peers do not wait for ever either.
    async fn start_if_whole(&mut self) {
        if !self.planner.is_synced() {
            return self.hold_if_due().await;
        }
        let broken = || self.planner.problems().iter().any(Problem::may_hide_objects);
        let why = if !self.planner.knows_own_node() {
            Some("the source has no Node of this name: is --node right, are the manifests there?")
        } else if self.opened.elapsed() < PATIENCE && broken() && self.dataplane.finds_earlier_state() {
            Some("something in a file of the source is wrong, and its Services may be in the kernel: mend it")
        } else {
            None
        };
        if let Some(why) = why {
            if self.waits_for.replace(why) != Some(why) {
                warn!(node = self.planner.node(), "waiting: {why}");
            }
            return self.hold_if_due().await;
        }
        self.start().await;
    }

    /// Goes on announcing what an agent before announced, once the source is late.
    async fn hold_if_due(&mut self) {
        if self.opened.elapsed() < HOLD {
            return;
        }
        // Looked at once: what an agent left does not become more.
        let Some(Saved { node: Some(node), announcements, .. }) = self.before.take() else { return };
        if *node.name != *self.planner.node() || !self.dataplane.finds_earlier_state() {
            return;
        }
        let forwarded = match self.dataplane.forwarded().await {
            Ok(forwarded) => forwarded,
            Err(error) => return warn!(%error, "nothing is announced: what the kernel forwards is not known"),
        };
        let mut held = NodePlan::new(self.planner.node());
        held.announcements = announcements;
        // Those of kernel tables are known as they are, not only as they were.
        held.announcements.retain(|_, announcement| announcement.kind != AnnouncementKind::Kernel);
        for (prefix, announcement) in &self.planner.plan().announcements {
            held.announcements.entry(*prefix).or_insert_with(|| announcement.clone());
        }
        held.node.pod_cidrs = node.pod_cidrs.iter().copied().collect();
        self.announcer.restarting();
        self.announcer.stand(self.draining.stance()).await;
        self.announcer.reserve(&held, None);
        // Sessions begin with all that there is to tell: none hears of its end before.
        self.announcer.update(&held, |planned| forwarded.contains(&planned.prefix.addr()), None).await;
        let router = &self.planner.config().router;
        self.announcer.configure(router, self.planner.node(), &node.addresses).await;
        if self.tables.known {
            self.announcer.complete().await;
        }
        self.observer.hold(node);
        warn!(
            announcements = self.announcer.counts(&held).announced,
            "the source is late: what was announced before goes on, as far as the kernel forwards it"
        );
        self.held = Some(held);
    }

    /// The first time that the plan is whole: the kernel first, then peers.
    async fn start(&mut self) {
        let began = Instant::now();
        if let Some(held) = &self.held {
            // What went while it was held must not be announced any more when the kernel forgets it.
            let held = held.announcements.keys().copied().collect();
            if !self.announcer.withdraw(self.planner.plan(), &held).await.is_empty() {
                tokio::time::sleep(SETTLE).await;
            }
        }
        for what in self.dataplane.sync(self.planner.plan(), began).await {
            debug!("{what}");
        }
        self.observer.worked(Pass::Full, began.elapsed(), self.dataplane.is_whole());
        // All of it has just been looked at.
        self.checked = Instant::now();
        self.report().await;
        // Those of the Node have been logged as it was told.
        for Warning { object, reason, message } in self.planner.warnings().difference(&self.node_warnings) {
            warn!(object, reason, "{message}");
        }
        if self.dataplane.adopted() && self.held.is_none() {
            self.announcer.restarting();
        }
        self.begin_drain().await;
        self.held = None;
        self.before = None;
        self.ready = true;
        self.remember_node();
        let plan = self.planner.plan();
        self.announcer.reserve(plan, None);
        // Before there are sessions, as above.
        self.announcer.update(plan, |planned| holds(&self.dataplane, plan, planned), None).await;
        let router = &self.planner.config().router;
        self.announcer.configure(router, self.planner.node(), &plan.node.addresses).await;
        if self.told_all() {
            self.announcer.complete().await;
        }
        info!(
            virtual_servers = plan.virtual_servers.len(),
            announcements = plan.announcements.len(),
            adopted = self.dataplane.adopted(),
            took = ?began.elapsed(),
            "ready"
        );
    }

    fn told_all(&self) -> bool {
        let dataplane = self.held.is_some() || self.dataplane.is_whole();
        announced::told_all(self.tables.known, dataplane, self.opened.elapsed())
    }

    /// What a start without a source will have to know of this node.
    fn remember_node(&mut self) {
        if let Some(node) = self.planner.sound_own_node() {
            self.announcer.remember(node);
        }
    }

    /// Announces what kernel tables have routes to, at a cost that is the change's: nothing of it concerns the dataplane.
    async fn take_routes(&mut self, told: Result<News, String>) {
        let News { came, gone } = match told {
            Ok(news) => news,
            // It has been logged.
            Err(problem) => return self.tables.problem = Some(problem),
        };
        self.tables.problem = None;
        debug!(came = came.len(), gone = gone.len(), "routes of kernel tables");
        let delta = self.planner.handle_routes(&came, &gone);
        let plan = self.planner.plan();
        if let Some(held) = &mut self.held {
            for prefix in &delta.announcements {
                let of_kernel = |other: &Announcement| other.kind == AnnouncementKind::Kernel;
                if held.announcements.get(prefix).is_none_or(of_kernel) {
                    match plan.announcements.get(prefix) {
                        Some(announcement) => held.announcements.insert(*prefix, announcement.clone()),
                        None => held.announcements.remove(prefix),
                    };
                }
            }
        }
        self.tables.known = true;
        let announced = self.held.as_ref().or(self.ready.then_some(plan));
        if let Some(announced) = announced {
            self.announcer.withdraw(announced, &delta.announcements).await;
            let holds = |planned: &Announcement| holds(&self.dataplane, plan, planned);
            self.announcer.update(announced, holds, Some(&delta.announcements)).await;
        }
        if announced.is_some() && self.told_all() && !self.announcer.is_complete() {
            self.announcer.complete().await;
        }
    }

    async fn change(&mut self, delta: &Delta) {
        if delta.is_empty() {
            return;
        }
        let began = Instant::now();
        let plan = self.planner.plan();
        self.announcer.reserve(plan, Some(delta));
        let withdrawn = self.announcer.withdraw(plan, &delta.announcements).await;
        let mut now = delta.clone();
        self.leaving.put_off(&mut now, &withdrawn, plan, Instant::now());
        self.dataplane.apply(plan, &now, began).await;
        self.observer.worked(Pass::Partial, began.elapsed(), self.dataplane.is_whole());
        if delta.router || delta.node {
            let router = &self.planner.config().router;
            self.announcer.configure(router, self.planner.node(), &plan.node.addresses).await;
        }
        let touched = touched(plan, delta);
        self.announcer.update(plan, |planned| holds(&self.dataplane, plan, planned), Some(&touched)).await;
        debug!(
            virtual_servers = delta.virtual_servers.len(),
            rewrites = delta.rewrites.len(),
            announcements = delta.announcements.len(),
            took = ?began.elapsed(),
            "changed"
        );
        self.report().await;
    }

    /// Has the kernel forget VIPs that were withdrawn a while ago.
    async fn leave(&mut self, until: Instant) {
        let began = Instant::now();
        let delta = self.leaving.take(until);
        self.dataplane.apply(self.planner.plan(), &delta, began).await;
        self.observer.worked(Pass::Partial, began.elapsed(), self.dataplane.is_whole());
        self.report().await;
    }

    async fn tick(&mut self) {
        self.announcer.tick().await;
        if self.ready {
            self.look().await;
            if self.told_all() && !self.announcer.is_complete() {
                self.announcer.complete().await;
            }
        } else {
            self.start_if_whole().await;
        }
        self.drain().await;
        if let Some(events) = &mut self.events {
            let absent = self.announcer.missing().map(|Missing { name, asn, why, .. }| Absent {
                name,
                asn: *asn,
                why,
            });
            events.peers(self.announcer.status().as_ref(), absent);
            if let Some(warnings) = self.observer.changed_warnings() {
                events.node_ports(warnings);
            }
            events.tick(self.planner.accepting());
        }
    }

    /// Ends what was only waiting, and repairs.
    async fn look(&mut self) {
        self.dataplane.tick(self.planner.plan(), Instant::now()).await;
        // What is about to leave would be taken for what others left behind.
        let since = self.checked.elapsed();
        if since >= 2 * CHECK
            && let Some(due) = self.leaving.due()
        {
            self.leave(due + SETTLE).await;
        }
        if since >= CHECK && self.leaving.due().is_none() {
            self.check().await;
        }
        self.report().await;
        if let Some(accepts) = &mut self.accepts {
            accepts.stands(self.dataplane.accepts());
        }
    }

    async fn check(&mut self) {
        let began = Instant::now();
        let done = self.dataplane.check(self.planner.plan(), began).await;
        self.checked = Instant::now();
        self.observer.worked(Pass::Full, began.elapsed(), self.dataplane.is_whole());
        self.observer.repaired(done.len());
        self.announcer.check().await;
        debug!(took = ?began.elapsed(), "looked at the kernel");
        for what in done {
            warn!("repaired: {what}");
        }
    }

    /// Logs problems as they come and go; a VIP that the kernel does not hold any more is withdrawn.
    async fn report(&mut self) {
        let problems: BTreeSet<String> = self.dataplane.problems().into_iter().collect();
        let obstructed = self.dataplane.obstructed();
        if problems == self.problems && obstructed == self.obstructed {
            return;
        }
        if problems.is_empty() && !self.problems.is_empty() {
            info!("all is as planned again");
        }
        for problem in news(&mut self.problems, problems) {
            warn!("{problem}");
        }
        self.obstructed = obstructed;
        let plan = self.planner.plan();
        if self.ready {
            self.announcer.update(plan, |planned| holds(&self.dataplane, plan, planned), None).await;
        }
        if let Some(events) = &mut self.events {
            events.vips(warnings(self.planner.node(), &left_out(&self.dataplane, plan)));
        }
    }

    /// Logs what is wrong with this node's Node, once.
    fn report_node(&mut self) {
        let warnings = self.planner.node_warnings();
        for Warning { object, reason, message } in news(&mut self.node_warnings, warnings) {
            warn!(object, reason, "{message}");
        }
    }
}

/// Waits; for ever where there is nothing to wait for.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What there is now and was not when it was told last; it counts as told.
fn news<T: Ord + Clone>(told: &mut BTreeSet<T>, now: BTreeSet<T>) -> Vec<T> {
    let new = now.difference(told).cloned().collect();
    *told = now;
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_told_once() {
        let mut told = BTreeSet::new();
        for (what, now, new) in [
            ("the first", &["a"][..], &["a"][..]),
            ("one more", &["a", "b"], &["b"]),
            ("the same", &["a", "b"], &[]),
            ("one goes", &["b"], &[]),
            ("and comes back", &["a", "b"], &["a"]),
        ] {
            assert_eq!(news(&mut told, now.iter().copied().collect()), new, "{what}");
        }
    }
}
