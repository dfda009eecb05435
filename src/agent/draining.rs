//! The loop's part of a drain: who asks for it, what is seen of it, and that announcements, record and users follow.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use tracing::{info, warn};

use super::{Agent, holds};
use crate::config::{self, DrainReason};
use crate::dataplane::{Dataplane, Look, Passing};
use crate::drain::{Drain, Phase, Record, RecordFile, Seen, Stance};
use crate::observe::events::{Kind, Notice};
use crate::observe::metrics::DrainSnapshot;
use crate::observe::{status, timestamp};
use crate::plan::{Announcement, NodePlan};

/// How often it is looked which VIPs are kept, and, while somebody may wait for the answer, for connections; and when the limit is over.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_ON: Duration = Duration::from_secs(15);
/// The share of the loop's time that a look may take, and of another thread's: one in so many.
const SHARE: u32 = 20;
const SHARE_OF_THREAD: u32 = 4;
/// Why connections are not looked for while the plan is held: VIPs and their kinds are the source's to tell.
const WITHOUT_SOURCE: &str = "connections through this node: not known before the source has told all";

/// How far the drain is, and what is known of it.
pub(super) struct Draining {
    drain: Drain,
    file: RecordFile,
    /// `sheave drain` asks for it.
    commanded: bool,
    /// Since when this node has not been serving.
    since: Option<SystemTime>,
    /// When it is next looked which VIPs are kept.
    look_at: Instant,
    passing: Passing,
    /// The look for connections that goes on, and when it was begun; and when the next may.
    look: Option<(Look, Instant)>,
    next_look: Instant,
    /// Why it is not known what comes through this node.
    unseen: Option<String>,
    /// Users have been told that the limit is over.
    told_overdue: bool,
    /// Why announcements could not follow, if they have to still.
    behind: Option<String>,
    wait: Duration,
}

impl Draining {
    /// Goes on where an agent before was.
    pub(super) fn open(state_directory: &Path, config: &config::Drain) -> Self {
        let (file, record) = RecordFile::open(state_directory);
        let now = Instant::now();
        let drain = Drain::resume(&record, config.wait, config.limit, now);
        if drain.phase() != Phase::Serving {
            info!(phase = drain.phase().name(), "the drain goes on");
        }
        Self {
            drain,
            file,
            commanded: record.commanded,
            since: record.since,
            look_at: now,
            passing: Passing::default(),
            look: None,
            next_look: now,
            unseen: None,
            told_overdue: false,
            behind: None,
            wait: config.wait,
        }
    }

    /// Whether it serves as ever.
    pub(super) fn serves(&self) -> bool {
        self.drain.phase() == Phase::Serving
    }

    /// How VIPs are announced.
    pub(super) fn stance(&self) -> Stance {
        self.drain.stance()
    }

    /// What is not as it should be.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let file = self.file.problem().map(str::to_owned);
        file.into_iter().chain(self.unseen.clone()).chain(self.behind.clone())
    }

    /// Has the next start know how far it is.
    fn save(&mut self) {
        self.file.write(&Record {
            commanded: self.commanded,
            phase: match self.drain.phase() {
                Phase::Serving => String::new(),
                phase => phase.name().into(),
            },
            since: self.since,
            kept: self.drain.kept().copied().collect(),
            waiting: self.drain.waiting().copied().collect(),
        });
    }

    /// Looks for connections while the node empties: begins when it is time, and gives what came of it when it is over: how many need this
    /// node, and when the look was begun. `plan`: the source's, if that has told it.
    fn count(
        &mut self,
        dataplane: &mut Dataplane,
        plan: Option<&NodePlan>,
        now: Instant,
    ) -> Option<(usize, Instant)> {
        if !matches!(self.drain.phase(), Phase::Emptying(_)) {
            return None;
        }
        let Some(plan) = plan else {
            self.unseen = Some(WITHOUT_SOURCE.into());
            return None;
        };
        let over = self.look.take_if(|(look, _)| look.is_over());
        let counted = over.and_then(|(look, began)| {
            let (passing, took) = look.end();
            let pause = if self.drain.is_overdue(now) { LOOK_ON } else { LOOK };
            self.next_look = began + pause.max(SHARE_OF_THREAD * took);
            self.saw(passing).map(|count| (count, began))
        });
        if self.look.is_none() && now >= self.next_look {
            self.next_look = now + LOOK;
            match dataplane.look_for_connections(plan, self.wait) {
                Ok(look) => self.look = Some((look, now)),
                Err(error) => drop(self.saw(Err(error))),
            }
        }
        counted
    }

    /// Forgets what was seen of connections where that matters no more; a look that goes on ends by itself, and its answer is nobody's.
    fn forget(&mut self) {
        if !matches!(self.drain.phase(), Phase::Emptying(_)) {
            self.passing = Passing::default();
            self.unseen = None;
            self.look = None;
        }
    }

    /// What came of a look.
    fn saw(&mut self, passing: Result<Passing, String>) -> Option<usize> {
        let problem = |error| format!("connections through this node: {error}");
        self.unseen = passing.as_ref().err().map(problem);
        self.passing = passing.unwrap_or_default();
        self.unseen.is_none().then_some(self.passing.count)
    }
}

impl Agent {
    /// `sheave drain`, or (`asked` is false) `sheave undrain`.
    pub(super) async fn command_drain(&mut self, asked: bool) -> status::Drain {
        if self.draining.commanded != asked {
            info!("{}", if asked { "`sheave drain`" } else { "`sheave undrain`" });
            self.draining.commanded = asked;
            self.draining.save();
        }
        self.drain().await;
        self.drain_status()
    }

    /// The first look, before anything is announced.
    pub(super) async fn begin_drain(&mut self) {
        let announced = self.dataplane.adopted() || self.held.is_some();
        let asked = !self.drain_reasons().is_empty();
        let before = self.draining.drain.clone();
        self.draining.drain.begin(asked, announced);
        self.follow_drain(&before).await;
        self.announcer.stand(self.draining.stance()).await;
    }

    /// Goes a step on, if it is time, and has announcements follow. Nothing is to follow before anything is announced.
    pub(super) async fn drain(&mut self) {
        let plan = self.held.as_ref().unwrap_or_else(|| self.planner.plan());
        if !self.ready && self.held.is_none() {
            return;
        }
        let now = Instant::now();
        let asked = !self.drain_reasons().is_empty();
        let draining = &mut self.draining;
        let before = draining.drain.clone();
        let told = self.held.is_none().then_some(plan);
        let connections = draining.count(&mut self.dataplane, told, now);
        let looks = now >= draining.look_at;
        let seen = Seen {
            asked,
            // Without its source a node announces what the kernel is known to forward.
            whole: told.is_none() || self.dataplane.is_whole(),
            alone: &|among| match told {
                Some(_) => self.planner.alone(among),
                None => plan.alone(among),
            },
            looks,
            connections,
        };
        draining.drain.step(&seen, now);
        draining.forget();
        if looks {
            draining.look_at = now + LOOK.max(SHARE * now.elapsed());
        }
        self.follow_drain(&before).await;
    }

    /// Has record, announcements and users follow what has become of the drain.
    async fn follow_drain(&mut self, before: &Drain) {
        let draining = &mut self.draining;
        let (was, is) = (before.phase(), draining.drain.phase());
        if is == Phase::Serving {
            draining.since = None;
        } else {
            draining.since.get_or_insert_with(SystemTime::now);
        }
        self.observer.drains(is != Phase::Serving);
        // Before anything is told: an agent that is killed in between does not announce what has been withdrawn.
        draining.save();
        let (stood, stance) = (before.stance(), draining.stance());
        if stood != stance || draining.behind.is_some() {
            self.announcer.stand(stance).await;
            let plan = self.planner.plan();
            if let Some(held) = &self.held {
                match self.dataplane.forwarded().await {
                    Ok(forwarded) => {
                        self.draining.behind = None;
                        let holds = |planned: &Announcement| forwarded.contains(&planned.prefix.addr());
                        self.announcer.update(held, holds, None).await;
                    }
                    Err(error) => {
                        let why = format!("the drain waits: what the kernel forwards is not known: {error}");
                        if self.draining.behind.as_ref() != Some(&why) {
                            warn!("{why}");
                        }
                        self.draining.behind = Some(why);
                    }
                }
            } else if self.ready {
                self.draining.behind = None;
                let dataplane = &self.dataplane;
                self.announcer.update(plan, |planned| holds(dataplane, plan, planned), None).await;
            }
        }
        if was.name() != is.name() {
            self.draining.told_overdue = false;
            self.tell_phase(is);
        } else if !self.draining.told_overdue && self.draining.drain.is_overdue(Instant::now()) {
            self.draining.told_overdue = true;
            let message = format!(
                "drain: the limit is over, and left are: {}; it is watched on",
                self.left().join(", ")
            );
            self.tell_drain(Kind::Warning, "DrainOverdue", message);
        }
        self.tell_kept(before);
    }

    /// Events are of a drain's beginning and end; what is between is for the log.
    fn tell_phase(&mut self, phase: Phase) {
        let reasons: Vec<String> = self.drain_reasons().iter().map(ToString::to_string).collect();
        let mut tell =
            |reason, message: &str| self.tell_drain(Kind::Normal, reason, format!("drain: {message}"));
        match phase {
            Phase::Serving => tell("DrainEnded", "virtual IPs are announced as planned"),
            Phase::Leaving(_) => {
                let by = reasons.join(" and ");
                tell(
                    "Draining",
                    &format!(
                        "{by} asks for it: virtual IPs are a last resort (GRACEFUL_SHUTDOWN), then withdrawn"
                    ),
                );
            }
            Phase::Emptying(_) => info!("drain: virtual IPs are withdrawn; what still comes is forwarded"),
            Phase::Drained => {
                tell("Drained", "virtual IPs are withdrawn, and no connection comes through this node");
            }
            Phase::Returning(_) => info!("drain: virtual IPs are announced again, as a last resort at first"),
        }
    }

    /// That VIPs are kept which were not before.
    fn tell_kept(&mut self, before: &Drain) {
        let known: BTreeSet<&IpNet> = before.kept().collect();
        if self.draining.drain.kept().any(|prefix| !known.contains(prefix)) {
            let kept = self.kept().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let message = format!(
                "drain: no other Node is to announce {kept}: kept as a last resort until one is (an agent must run there that is not \
                 about to go, with endpoints for it)"
            );
            self.tell_drain(Kind::Warning, "LastDirector", message);
        }
    }

    fn tell_drain(&mut self, kind: Kind, reason: &'static str, message: String) {
        match kind {
            Kind::Normal => info!("{message}"),
            Kind::Warning => warn!("{message}"),
        }
        let node = self.planner.node();
        if let Some(events) = &mut self.events {
            events.happened(Notice::of_node(node, kind, reason, "Drain", message));
        }
    }

    fn drain_reasons(&self) -> BTreeSet<DrainReason> {
        let commanded = self.draining.commanded.then_some(DrainReason::Command);
        self.planner.drains_for().iter().cloned().chain(commanded).collect()
    }

    fn kept(&self) -> Vec<status::Kept> {
        let plan = self.held.as_ref().unwrap_or_else(|| self.planner.plan());
        let service =
            |prefix: &IpNet| plan.announcements.get(prefix)?.service.as_ref().map(ToString::to_string);
        let kept = self.draining.drain.kept();
        kept.map(|prefix| status::Kept { prefix: prefix.to_string(), service: service(prefix) }).collect()
    }

    /// What is left, in words.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.draining.passing.count > 0 {
            left.push(format!("connections through this node: {}", self.draining.passing.count));
        }
        left.extend(self.kept().iter().map(|kept| format!("{kept}, which is kept")));
        left.extend(self.draining.unseen.clone());
        left
    }

    /// For a scrape of metrics.
    pub(super) fn drain_snapshot(&self) -> DrainSnapshot {
        let Draining { drain, since, .. } = &self.draining;
        DrainSnapshot {
            phase: drain.phase().name(),
            since: *since,
            overdue: drain.is_overdue(Instant::now()),
            connections: drain.connections(),
            kept: drain.kept().count(),
        }
    }

    /// For the status API.
    pub(super) fn drain_status(&self) -> status::Drain {
        let Draining { drain, since, passing, .. } = &self.draining;
        status::Drain {
            phase: drain.phase().name().into(),
            since: since.map(timestamp),
            asked_by: self.drain_reasons().iter().map(ToString::to_string).collect(),
            overdue: drain.is_overdue(Instant::now()),
            connections: drain.connections(),
            some_connections: passing
                .some
                .iter()
                .map(|one| format!("{} → {}", one.client, one.vip))
                .collect(),
            kept: self.kept(),
        }
    }
}
