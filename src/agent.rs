//! The agent: one loop that owns everything and does one thing after the other.
//!
//! ```text
//! source ──events──► Planner ──Delta──► 1 withdraw what goes     (announce)
//!                                       2 kernel                 (dataplane)
//!                                       3 announce what it holds (announce)
//! every second: what drains, lingers or failed        every CHECK: what others changed in the kernel
//! status socket, scrapes ──questions──► the loop answers between two changes
//! ```
//!
//! The loop has a thread and a runtime of its own, since the kernel's answers are waited for; BGP sessions and
//! sockets live on another runtime, so that no keepalive is ever late because of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::SpeakerStatus;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::announce::Announcer;
use crate::cluster::{Event, Object, ObjectKey, Severity};
use crate::config::Config;
use crate::dataplane::{Dataplane, DataplaneError, Settings};
use crate::observe::accepts::Accepts;
use crate::observe::events::Events;
use crate::observe::metrics::Snapshot;
use crate::observe::status::{self, Question, Status};
use crate::observe::{Observer, Pass};
use crate::plan::{Delta, NodePlan, Planner, Warning};

/// How often the kernel is looked at for what others changed.
const CHECK: Duration = Duration::from_secs(15);
/// How often what waits is looked at.
const TICK: Duration = Duration::from_secs(1);

/// How long a start over state of an earlier agent waits for a source that is broken in part; less than
/// the restart time after which peers drop the routes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The source's thread ended.
    #[error("the source ended: this is a bug; kernel state stays as it is")]
    SourceGone,
}

/// What the dataplane needs from the config.
pub fn settings(config: &Config) -> Settings {
    Settings {
        mark_mask: config.services.mark_mask,
        state_directory: config.observe.status.parent().map_or_else(|| PathBuf::from("."), PathBuf::from),
    }
}

/// This node's agent.
pub struct Agent {
    planner: Planner,
    dataplane: Dataplane,
    /// Since the first sync.
    announcer: Option<Announcer>,
    observer: Observer,
    background: Handle,
    opened: Instant,
    checked: Instant,
    /// What a start waits for, as logged last.
    waits_for: Option<&'static str>,
    /// As logged last.
    problems: Vec<String>,
    node_warnings: BTreeSet<Warning>,
    /// Where there is an API server to write to.
    api_server: Option<kube::Client>,
    accepts: Option<Accepts>,
    events: Option<Events>,
}

impl Agent {
    /// An agent that has changed nothing yet. `background` runs sessions; `observer` is told of all.
    ///
    /// # Errors
    /// [`AgentError`] where the kernel lacks something or permission is missing.
    pub fn new(
        node: &str,
        config: Config,
        background: Handle,
        observer: Observer,
    ) -> Result<Self, AgentError> {
        let dataplane = Dataplane::open(&settings(&config))?;
        Ok(Self {
            planner: Planner::new(node, config),
            dataplane,
            announcer: None,
            observer,
            background,
            opened: Instant::now(),
            checked: Instant::now(),
            waits_for: None,
            problems: Vec::new(),
            node_warnings: BTreeSet::new(),
            api_server: None,
            accepts: None,
            events: None,
        })
    }

    /// Has this node's Node say what it accepts, and tells users in Events what they should know; passwords may be in
    /// Secrets.
    pub fn with_api_server(mut self, client: &kube::Client) -> Self {
        self.api_server = Some(client.clone());
        self.accepts = Some(Accepts::start(client.clone(), self.planner.node(), &self.background));
        self.events = Some(Events::start(client.clone(), self.planner.node(), &self.background));
        self
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
            tokio::select! {
                biased;
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
                Some(question) = questions.recv() => {
                    // Whoever asked may have gone: nothing is lost.
                    match question {
                        Question::Status(asker) => drop(asker.send(self.status())),
                        Question::Snapshot(asker) => drop(asker.send(self.snapshot())),
                    }
                    continue;
                }
                _ = ticks.tick() => {
                    self.observer.begin(Instant::now());
                    self.tick().await;
                }
            }
            self.observer.end(&self.planner, self.announcer.is_some(), self.dataplane.is_whole());
        }
        if let Some(announcer) = self.announcer {
            announcer.stop().await;
        }
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
            for problem in self.planner.problems() {
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
        if self.announcer.is_none() {
            self.start_if_whole().await;
        } else {
            self.change(&delta).await;
        }
    }

    /// Starts, unless the source lacks too much: nothing is touched then, and what an agent before left goes on.
    ///
    /// Without this node's own Node nothing can be done right. With something broken in the source, its Services may
    /// be among those in the kernel: there is [`PATIENCE`] to mend it, since peers do not wait for ever either.
    async fn start_if_whole(&mut self) {
        if !self.planner.is_synced() {
            return;
        }
        let broken = || self.planner.problems().iter().any(|problem| problem.severity == Severity::Error);
        let why = if !self.planner.knows_own_node() {
            Some("the source has no Node of this name: is --node right, are the manifests there?")
        } else if self.opened.elapsed() < PATIENCE && broken() && self.dataplane.finds_earlier_state() {
            Some("something in the source is broken, and its Services may be in the kernel: mend it")
        } else {
            None
        };
        if let Some(why) = why {
            if self.waits_for.replace(why) != Some(why) {
                warn!(node = self.planner.node(), "waiting: {why}");
            }
            return;
        }
        self.start().await;
    }

    /// The first time that the plan is whole: the kernel first, then peers.
    async fn start(&mut self) {
        let began = Instant::now();
        for what in self.dataplane.sync(self.planner.plan(), began).await {
            debug!("{what}");
        }
        self.observer.worked(Pass::Full, began.elapsed(), self.dataplane.is_whole());
        self.report();
        // Those of the Node have been logged as it was told.
        for Warning { object, reason, message } in self.planner.warnings().difference(&self.node_warnings) {
            warn!(object, reason, "{message}");
        }
        let plan = self.planner.plan();
        let announcer =
            Announcer::new(self.dataplane.adopted(), self.background.clone(), self.api_server.clone());
        let announcer = self.announcer.insert(announcer);
        announcer.configure(&self.planner.config().router, self.planner.node(), &plan.node.addresses).await;
        announcer.update(plan, |vip| self.dataplane.holds(plan, vip), None);
        announcer.complete();
        info!(
            virtual_servers = plan.virtual_servers.len(),
            announcements = plan.announcements.len(),
            adopted = self.dataplane.adopted(),
            took = ?began.elapsed(),
            "ready"
        );
    }

    async fn change(&mut self, delta: &Delta) {
        if delta.is_empty() {
            return;
        }
        let began = Instant::now();
        let plan = self.planner.plan();
        let Some(announcer) = &mut self.announcer else { return };
        announcer.withdraw(plan, &delta.announcements).await;
        self.dataplane.apply(plan, delta, began).await;
        self.observer.worked(Pass::Partial, began.elapsed(), self.dataplane.is_whole());
        if delta.router || delta.node {
            let router = &self.planner.config().router;
            announcer.configure(router, self.planner.node(), &plan.node.addresses).await;
        }
        announcer.update(plan, |vip| self.dataplane.holds(plan, vip), Some(&touched(plan, delta)));
        debug!(
            virtual_servers = delta.virtual_servers.len(),
            rewrites = delta.rewrites.len(),
            announcements = delta.announcements.len(),
            took = ?began.elapsed(),
            "changed"
        );
        self.report();
    }

    async fn tick(&mut self) {
        if self.announcer.is_none() {
            return self.start_if_whole().await;
        }
        self.dataplane.tick(self.planner.plan(), Instant::now()).await;
        if self.checked.elapsed() >= CHECK {
            self.check().await;
        }
        self.report();
        if let Some(announcer) = &mut self.announcer {
            announcer.tick().await;
        }
        if let Some(accepts) = &mut self.accepts {
            accepts.stands(self.dataplane.accepts());
        }
        if let Some(events) = &mut self.events {
            if let Some(speaker) = self.announcer.as_ref().and_then(Announcer::status) {
                events.peers(&speaker);
            }
            if let Some(warnings) = self.observer.changed_warnings() {
                events.node_ports(warnings);
            }
            events.tick(self.planner.accepting());
        }
    }

    async fn check(&mut self) {
        let began = Instant::now();
        let done = self.dataplane.check(self.planner.plan(), began).await;
        self.checked = Instant::now();
        self.observer.worked(Pass::Full, began.elapsed(), self.dataplane.is_whole());
        self.observer.repaired(done.len());
        for what in done {
            warn!("repaired: {what}");
        }
    }

    /// Logs problems as they come and go; a VIP that the kernel does not hold any more is withdrawn.
    fn report(&mut self) {
        let problems = self.dataplane.problems();
        if problems == self.problems {
            return;
        }
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{problem}");
        }
        if problems.is_empty() {
            info!("all is as planned again");
        }
        self.problems = problems;
        let plan = self.planner.plan();
        if let Some(announcer) = &mut self.announcer {
            announcer.update(plan, |vip| self.dataplane.holds(plan, vip), None);
        }
    }

    /// Logs what is wrong with this node's Node, once.
    fn report_node(&mut self) {
        let warnings = self.planner.node_warnings();
        for Warning { object, reason, message } in warnings.difference(&self.node_warnings) {
            warn!(object, reason, "{message}");
        }
        self.node_warnings = warnings;
    }

    fn status(&mut self) -> Status {
        let mut problems: Vec<String> = self.planner.problems().iter().map(ToString::to_string).collect();
        problems.extend(self.dataplane.problems());
        problems.extend(self.observer.problems());
        problems.extend(self.announcer.iter().flat_map(Announcer::problems).cloned());
        let held = self.dataplane.list_virtual_servers().unwrap_or_else(|error| {
            problems.push(error.to_string());
            Vec::new()
        });
        let plan = self.planner.plan();
        Status {
            node: self.planner.node().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ready: self.announcer.is_some(),
            health: self.observer.health(),
            watches: self.observer.watches(),
            peers: self.announcer.as_ref().and_then(Announcer::status).map(peers).unwrap_or_default(),
            announcements: plan
                .announcements
                .values()
                .map(|announcement| status::Announcement {
                    prefix: announcement.prefix.to_string(),
                    kind: format!("{:?}", announcement.kind),
                    service: announcement.service.as_ref().map(ToString::to_string),
                    announced: self
                        .announcer
                        .as_ref()
                        .is_some_and(|announcer| announcer.announces(&announcement.prefix)),
                })
                .collect(),
            virtual_servers: crate::dataplane::describe(plan, &held),
            problems,
            warnings: self
                .planner
                .warnings()
                .into_iter()
                .chain(self.observer.warnings())
                .map(|warning| format!("{}: {}: {}", warning.object, warning.reason, warning.message))
                .collect(),
        }
    }

    /// What a scrape asks for: nothing per endpoint.
    fn snapshot(&mut self) -> Snapshot {
        let wanted = self.observer.wanted();
        let mut problems = self.dataplane.problem_counts();
        let listed = if wanted.any() {
            self.dataplane.traffic().unwrap_or_else(|error| {
                debug!(%error, "no counters of virtual servers");
                *problems.entry("unanswered").or_default() += 1;
                Vec::new()
            })
        } else {
            Vec::new()
        };
        problems.insert("source", self.planner.problems().len());
        problems.insert("listener", self.observer.problems().count());
        problems.insert("bgp", self.announcer.iter().flat_map(Announcer::problems).count());
        let plan = self.planner.plan();
        Snapshot {
            ready: self.announcer.is_some(),
            adopted: self.dataplane.adopted(),
            virtual_servers: plan.virtual_servers.len(),
            draining: self.dataplane.draining(),
            destinations: plan.virtual_servers.values().map(|server| server.destinations.len()).sum(),
            vips: plan.vips.len(),
            rewrites: plan.rewrites.len(),
            health_check_node_ports: self.observer.health_check_node_ports(),
            announcements: plan.announcements.len(),
            announced: self.announcer.as_ref().map_or(0, Announcer::announced),
            warnings: self.observer.warning_counts(&self.planner),
            problems,
            passes: self.dataplane.passes(),
            ipvs_messages: self.dataplane.ipvs_messages(),
            ipvs_time: self.dataplane.ipvs_time(),
            traffic: wanted.pick(&self.planner, listed),
            speaker: self.announcer.as_ref().and_then(Announcer::status),
        }
    }
}

/// The prefixes whose announcement a change may concern.
fn touched(plan: &NodePlan, delta: &Delta) -> BTreeSet<IpNet> {
    let of_servers = delta.virtual_servers.iter().map(|vip| IpNet::from(vip.address));
    delta
        .announcements
        .iter()
        .copied()
        .chain(of_servers.filter(|net| plan.announcements.contains_key(net)))
        .collect()
}

fn peers(speaker: SpeakerStatus) -> Vec<status::Peer> {
    speaker
        .peers
        .into_iter()
        .map(|peer| status::Peer {
            address: peer.address.to_string(),
            asn: peer.asn,
            state: format!("{:?}", peer.state),
            uptime_seconds: peer.uptime.map(|uptime| uptime.as_secs()),
            prefixes_sent: peer
                .session
                .iter()
                .flat_map(|session| &session.families)
                .map(|family| family.prefixes_sent)
                .sum(),
            last_error: peer.last_error.map(|error| error.reason.to_string()),
        })
        .collect()
}
