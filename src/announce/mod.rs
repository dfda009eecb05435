//! Plan → BGP: which prefixes, with which attributes, to whom, and when: a VIP only while the dataplane holds it.
//!
//! ```text
//! Config.router, passwords ──configure─┐      ┌──► ExportTable, for a routing daemon of this node
//! NodePlan.announcements ──────────────┼─► [Announcer] ──peers, RouteChanges──► Speaker ──► peers
//! Dataplane::holds ────────────────────┘      └──► Journal, for starts without a source
//! ```

mod journal;
mod passwords;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::{
    Attributes, Community, LargeCommunity, PeerConfig, RouteChanges, Shutdown, Speaker, SpeakerConfig,
    SpeakerStatus,
};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::cluster::Node;
use crate::config::{PasswordSource, Router};
use crate::plan::{Announcement, AnnouncementKind, NodePlan};
use crate::tables::ExportTable;
pub use journal::{Journal, Saved, remove as remove_journal};
use passwords::Passwords;

/// How long a removal waits for peers to be told of the withdrawal. One that does not read must not hold up
/// the others.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(1);
/// How soon a speaker that could not start is started again.
const START_AGAIN: Duration = Duration::from_secs(5);

/// Why nothing can be announced.
#[derive(Debug, thiserror::Error)]
enum AnnounceError {
    /// There is no autonomous system number.
    #[error(
        "there are peers, but no autonomous system number: set router.asn in the config, or annotate the Node with \
         sheave.io/asn"
    )]
    NoAsn,
    /// A BGP identifier is needed, and there is no IPv4 address to take.
    #[error(
        "router.routerId: auto takes the Node's primary IPv4 address, and Node {0} has none: write an identifier such \
         as 10.0.0.1 into the config, annotate the Node with sheave.io/router-id, or write the address into the Node"
    )]
    NoRouterId(String),
    /// The speaker.
    #[error("BGP: {0}")]
    Speaker(#[from] sheave_bgp::StartError),
    /// The runtime of the speaker is gone.
    #[error("BGP: the speaker's task ended")]
    Gone,
}

/// The BGP side of this node. Where it cannot be as configured, [`Announcer::problems`] says why.
pub struct Announcer {
    /// The speaker's runtime: sessions go on while the dataplane works.
    runtime: Handle,
    /// As configured last.
    configured: Option<Configured>,
    /// `None`: there is no peer to tell, or the speaker could not start.
    speaker: Option<Running>,
    passwords: Passwords,
    /// As the speaker was told of them last.
    peers: Vec<PeerConfig>,
    /// What an automatic router id is: once taken, it stays, whatever becomes of the Node's addresses. It is a name,
    /// and a change would end all sessions.
    auto_router_id: Option<Ipv4Addr>,
    /// Until then a speaker that starts may tell peers that this is a restart: they do not wait longer.
    restarting: Restarting,
    announced: BTreeMap<IpNet, Attributes>,
    export: Option<ExportTable>,
    journal: Journal,
    /// All that is to be announced at the start has been.
    complete: bool,
    problems: Vec<String>,
    start_again: Option<Instant>,
}

/// What [`Announcer::configure`] was given.
#[derive(PartialEq)]
struct Configured {
    router: Router,
    node: String,
    addresses: Vec<IpAddr>,
}

/// A speaker that runs.
struct Running {
    speaker: Speaker,
    /// What it was started with; a change of it takes another speaker.
    config: SpeakerConfig,
}

/// Whether peers may be told of a restart: once, and as long as they wait for it.
#[derive(Clone, Copy)]
enum Restarting {
    /// The kernel has forwarded for this node since before this time.
    Since(Instant),
    No,
}

impl Announcer {
    /// An announcer without peers. Sessions run on `runtime`; `client` is who is asked for Secrets with passwords; what is
    /// announced is noted in `journal`.
    pub fn new(runtime: Handle, client: Option<kube::Client>, journal: Journal) -> Self {
        Self {
            configured: None,
            speaker: None,
            passwords: Passwords::new(runtime.clone(), client, journal.passwords().clone()),
            peers: Vec::new(),
            runtime,
            auto_router_id: None,
            restarting: Restarting::No,
            announced: BTreeMap::new(),
            export: None,
            journal,
            complete: false,
            problems: Vec::new(),
            start_again: None,
        }
    }

    /// Has what is announced written to a table as well. Before anything is announced.
    pub fn export_to(&mut self, table: ExportTable) {
        self.export = Some(table);
    }

    /// The kernel has forwarded for this node all along, so that peers keep their routes: they are told of a restart by the
    /// first speaker that starts, if it does within the restart time.
    pub fn restarting(&mut self) {
        self.restarting = Restarting::Since(Instant::now());
    }

    /// Makes the sessions be as `router` says. Those of peers for which nothing changes go on; a change of the ASN,
    /// the router id, the port or graceful restart begins all of them anew. `addresses` are node `node`'s own.
    pub async fn configure(&mut self, router: &Router, node: &str, addresses: &[IpAddr]) {
        let configured =
            Configured { router: router.clone(), node: node.into(), addresses: addresses.into() };
        if self.configured.as_ref() != Some(&configured) {
            self.passwords.want(&router.peers);
            self.configured = Some(configured);
            self.apply().await;
        }
    }

    /// Looks whether a password has changed, and tries again what did not work. To be called every second or so, with the
    /// plan that is announced.
    pub async fn tick(&mut self, plan: &NodePlan) {
        let announced = self.announced.keys().filter_map(|prefix| plan.announcements.get(prefix));
        self.journal.mend(Instant::now(), announced);
        let due = self.start_again.is_some_and(|at| at <= Instant::now());
        if self.passwords.changed() || due {
            self.apply().await;
        }
        if let Some(export) = &mut self.export {
            export.tick(Instant::now()).await;
        }
    }

    /// Looks for what others changed in the table that is written to, and repairs it.
    pub async fn check(&mut self) {
        if let Some(export) = &mut self.export {
            export.sync().await;
        }
    }

    /// What is not as configured: peers without their password, or why there are no sessions at all; and what the kernel
    /// refuses of the table that is written to.
    pub fn problems(&self) -> Vec<String> {
        let export = self.export.as_ref().and_then(ExportTable::problem);
        self.problems.iter().cloned().chain(export.map(str::to_owned)).collect()
    }

    /// Brings speaker and peers in line with what is configured.
    async fn apply(&mut self) {
        let Some(Configured { router, node, addresses }) = &self.configured else { return };
        let mut problems = Vec::new();
        let mut peers = Vec::new();
        let mut of_secrets = BTreeMap::new();
        for peer in &router.peers {
            let before = self.peers.iter().find(|config| config.address == peer.address);
            let resolved = self.passwords.of(peer, before.and_then(|config| config.password.as_ref()));
            problems.extend(resolved.problem);
            if let Ok(password) = resolved.password {
                if let (Some(PasswordSource::Secret(key)), Some(password)) =
                    (peer.password_source(), &password)
                {
                    of_secrets.insert(key, password.clone());
                }
                peers.push(sessions::peer_config(peer, password, addresses));
            }
        }
        self.journal.passwords_are(of_secrets);
        self.start_again = None;
        if router.peers.is_empty() {
            self.stop_speaker(Shutdown::Cease).await;
        } else {
            self.auto_router_id = self.auto_router_id.or_else(|| sessions::first_ipv4(addresses));
            match sessions::speaker_config(router, self.auto_router_id, node) {
                Ok(config) => {
                    if let Err(error) = self.run_speaker(config).await {
                        problems.push(error.to_string());
                        self.start_again = Some(Instant::now() + START_AGAIN);
                    }
                }
                Err(error) => {
                    self.stop_speaker(Shutdown::Cease).await;
                    problems.push(error.to_string());
                }
            }
        }
        if let Some(Running { speaker, .. }) = &self.speaker {
            speaker.set_peers(peers.clone());
        }
        self.peers = peers;
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{problem}");
        }
        self.problems = problems;
    }

    /// Has a speaker of that config run: the one there is, where that is of it.
    async fn run_speaker(&mut self, config: SpeakerConfig) -> Result<(), AnnounceError> {
        if self.speaker.as_ref().is_some_and(|running| running.config == config) {
            return Ok(());
        }
        if let Some(Running { config: before, .. }) = &self.speaker {
            warn!(
                asn = config.asn,
                router_id = %config.router_id,
                asn_before = before.asn,
                router_id_before = %before.router_id,
                "what all sessions share has changed: they begin anew"
            );
            let how = leaving(before);
            self.stop_speaker(how).await;
        }
        let restarting = match (self.restarting, config.graceful_restart) {
            (Restarting::Since(since), Some(graceful)) => since.elapsed() < graceful.restart_time,
            _ => false,
        };
        let started = Speaker::start(SpeakerConfig { restarting, ..config.clone() });
        let speaker = self.runtime.spawn(started).await.map_err(|_| AnnounceError::Gone)??;
        self.restarting = Restarting::No;
        let announce = self.announced.iter().map(|(prefix, wanted)| (*prefix, wanted.clone())).collect();
        speaker.update(RouteChanges { announce, withdraw: Vec::new() });
        if self.complete {
            speaker.initial_routes_complete();
        }
        self.speaker = Some(Running { speaker, config });
        Ok(())
    }

    async fn stop_speaker(&mut self, how: Shutdown) {
        if let Some(Running { speaker, .. }) = self.speaker.take() {
            // The task only ends early with its runtime, and then there is no session left to end.
            let _ = self.runtime.spawn(speaker.shutdown(how)).await;
        }
    }

    /// Withdraws those of `prefixes` that the plan has no more, and waits until peers have been told: the kernel
    /// may forget them then.
    pub async fn withdraw(&mut self, plan: &NodePlan, prefixes: &BTreeSet<IpNet>) {
        let withdraw: Vec<IpNet> = prefixes
            .iter()
            .filter(|prefix| !plan.announcements.contains_key(prefix))
            .filter(|prefix| self.announced.remove(prefix).is_some())
            .copied()
            .collect();
        if withdraw.is_empty() {
            return;
        }
        self.journal.announce(withdraw.iter().map(|prefix| (*prefix, None)), self.announced.len());
        if let Some(export) = &mut self.export {
            export.change([], withdraw.iter().copied()).await;
        }
        let Some(Running { speaker, .. }) = &self.speaker else { return };
        info!(prefixes = withdraw.len(), first = %withdraw[0], "withdraw");
        speaker.update(RouteChanges { announce: Vec::new(), withdraw });
        if !speaker.flushed(WITHDRAW_LIMIT).await {
            warn!(limit = ?WITHDRAW_LIMIT, "some peer has not read the withdrawal yet; going on");
        }
    }

    /// Brings what is announced of `prefixes` (`None`: of all) in line with the plan and what the dataplane holds.
    pub async fn update(
        &mut self,
        plan: &NodePlan,
        holds: impl Fn(IpAddr) -> bool,
        prefixes: Option<&BTreeSet<IpNet>>,
    ) {
        let all: BTreeSet<IpNet>;
        let prefixes = match prefixes {
            Some(prefixes) => prefixes,
            None => {
                all = plan.announcements.keys().chain(self.announced.keys()).copied().collect();
                &all
            }
        };
        let mut changes = RouteChanges::default();
        for prefix in prefixes {
            let wanted = plan
                .announcements
                .get(prefix)
                .filter(|announcement| match announcement.kind {
                    // Others see to it that packets get there.
                    AnnouncementKind::PodCIDR | AnnouncementKind::Kernel => true,
                    AnnouncementKind::ClusterIP
                    | AnnouncementKind::ExternalIP
                    | AnnouncementKind::LoadBalancerIP => holds(announcement.prefix.addr()),
                })
                .map(attributes);
            match wanted {
                Some(wanted) if self.announced.get(prefix) != Some(&wanted) => {
                    changes.announce.push((*prefix, wanted.clone()));
                    self.announced.insert(*prefix, wanted);
                }
                None if self.announced.remove(prefix).is_some() => changes.withdraw.push(*prefix),
                _ => {}
            }
        }
        if changes == RouteChanges::default() {
            return;
        }
        let announce = changes.announce.iter().map(|(prefix, _)| (*prefix, plan.announcements.get(prefix)));
        let withdraw = changes.withdraw.iter().map(|prefix| (*prefix, None));
        self.journal.announce(announce.chain(withdraw), self.announced.len());
        if let Some(export) = &mut self.export {
            let announce = changes.announce.iter().map(|(prefix, _)| *prefix);
            export.change(announce, changes.withdraw.iter().copied()).await;
        }
        let Some(Running { speaker, .. }) = &self.speaker else { return };
        info!(announce = changes.announce.len(), withdraw = changes.withdraw.len(), "announcements change");
        speaker.update(changes);
    }

    /// Notes this node's Node object, from which a start without a source knows peers and addresses.
    pub fn remember(&mut self, node: &Node) {
        self.journal.node(node);
    }

    /// Everything the dataplane holds at the start has been announced: peers may drop what is left of an earlier life.
    pub async fn complete(&mut self) {
        self.complete = true;
        self.journal.settle();
        if let Some(export) = &mut self.export {
            export.complete().await;
        }
        if let Some(Running { speaker, .. }) = &self.speaker {
            speaker.initial_routes_complete();
        }
    }

    /// Whether a prefix is announced now, as far as there is anyone to tell.
    pub fn announces(&self, prefix: &IpNet) -> bool {
        let exported = || self.export.as_ref().is_some_and(|export| export.holds(prefix));
        self.announced.contains_key(prefix) && (self.speaker.is_some() || exported())
    }

    /// How many prefixes are announced now, as far as there is anyone to tell.
    pub fn announced(&self) -> usize {
        match &self.export {
            _ if self.speaker.is_some() => self.announced.len(),
            Some(export) => self.announced.keys().filter(|prefix| export.holds(prefix)).count(),
            None => 0,
        }
    }

    /// The speaker's sessions.
    pub fn status(&self) -> Option<SpeakerStatus> {
        self.speaker.as_ref().map(|running| running.speaker.status())
    }

    /// Ends the sessions: so that peers keep the routes, where graceful restart is configured.
    pub async fn stop(mut self) {
        if let Some(Running { config, .. }) = &self.speaker {
            let how = leaving(config);
            self.stop_speaker(how).await;
        }
    }
}

/// How a speaker is left that will be back.
fn leaving(config: &SpeakerConfig) -> Shutdown {
    match config.graceful_restart {
        Some(_) => Shutdown::GracefulRestart,
        None => Shutdown::Cease,
    }
}

fn attributes(announcement: &Announcement) -> Attributes {
    let large = |&(global, data1, data2): &(u32, u32, u32)| LargeCommunity { global, data1, data2 };
    Attributes {
        communities: announcement.communities.iter().map(|value| Community(*value)).collect(),
        large_communities: announcement.large_communities.iter().map(large).collect(),
        local_pref: announcement.local_pref,
        med: announcement.med,
        as_path_prepend: announcement.as_path_prepend,
    }
}
