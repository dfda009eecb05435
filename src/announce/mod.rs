//! Plan → BGP: which prefixes, with which attributes, to whom, and when: a VIP only while the dataplane holds it.
//!
//! ```text
//! Config.router, passwords ──configure─┐      ┌──► ExportTable, for a routing daemon of this node
//! NodePlan.announcements ──────────────┼─► [Announcer] ──peers, RouteChanges──► Speaker ──► peers
//! Dataplane::holds ────────────────────┘      └──► Journal, for starts without a source
//!                             Importer ◄──learnt, by import policies── Speaker ◄── peers
//! FollowingLinks ──► [discovery]: where peers are
//! ```

mod discovery;
mod draining;
mod journal;
mod learning;
mod passwords;
mod sessions;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sheave_bgp::{
    BmpStationStatus, DynamicPeers, PeerConfig, RouteChanges, Shutdown, Speaker, SpeakerConfig, SpeakerStatus,
};
use tokio::runtime::Handle;
use tracing::{debug, info, warn};

use crate::cluster::Node;
use crate::config::{PasswordSource, Peer, Router};
use crate::drain::Stance;
use crate::plan::{Announcement, NodePlan, Selection, Step};
use crate::tables::{ExportTable, FollowingLinks, Importer};
use discovery::Discovery;
pub use journal::{Journal, Saved, remove as remove_journal};
use passwords::Passwords;
pub use told::Counts;

/// How long a step waits for peers to be told of the one before. One that does not read must not hold up the others.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// How soon a speaker that could not start is started again.
const START_AGAIN: Duration = Duration::from_secs(5);

/// Why nothing can be announced.
#[derive(Debug, thiserror::Error)]
enum AnnounceError {
    /// There is no autonomous system number.
    #[error(
        "there are peers or BMP stations, but no autonomous system number: set router.asn in the config, or annotate the Node with \
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
    /// `None`: there is neither peer nor monitoring station to tell, or the speaker could not start.
    speaker: Option<Running>,
    passwords: Passwords,
    discovery: Discovery,
    /// Peers that were found, by name, and where.
    found: BTreeMap<String, Vec<IpAddr>>,
    /// Peers that have yet to be found.
    missing: Vec<Missing>,
    /// Peers that were found, and that the speaker does not know of: for want of a password, or of a speaker.
    barred: Vec<Missing>,
    /// As the speaker was told of them last.
    peers: Vec<PeerConfig>,
    dynamic: Vec<DynamicPeers>,
    /// What an automatic router id is: once taken, it stays, whatever becomes of the Node's addresses. It is a name,
    /// and a change would end all sessions.
    auto_router_id: Option<Ipv4Addr>,
    /// Until then a speaker that starts may tell peers that this is a restart: they do not wait longer.
    restarting: Restarting,
    selection: Selection,
    /// How VIPs are announced.
    stance: Stance,
    export: Option<ExportTable>,
    import: Option<Importer>,
    /// This node's own nets, as the speaker was told of them: routes to these are not learnt.
    reserved: BTreeSet<IpNet>,
    journal: Journal,
    /// All that is to be announced at the start has been.
    complete: bool,
    problems: Vec<String>,
    start_again: Option<Instant>,
}

/// A peer that is configured, and that there is nothing to be had of as yet: it has not been found, or there can be no session with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name: that of its session; as long as it has not been found, the interface or the default gateway of a family.
    pub name: String,
    /// Its ASN; 0 where that is the peer's to tell.
    pub asn: u32,
    /// Why.
    pub why: String,
    /// Its routes are to be imported.
    imports: bool,
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
            discovery: Discovery::new(runtime.clone()),
            found: BTreeMap::new(),
            missing: Vec::new(),
            barred: Vec::new(),
            peers: Vec::new(),
            dynamic: Vec::new(),
            runtime,
            auto_router_id: None,
            restarting: Restarting::No,
            selection: Selection::default(),
            stance: Stance::default(),
            export: None,
            import: None,
            reserved: BTreeSet::new(),
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

    /// Has peers found by links and default routes, and what they announce and may be imported written to a table, as long as links lead
    /// to it. Before peers are configured.
    ///
    /// # Errors
    /// When the kernel does not give what that takes.
    pub fn import_to(&mut self, table: u32, links: FollowingLinks) -> io::Result<()> {
        self.import = Some(Importer::start(table, links.watch())?);
        self.discovery.follow(links);
        Ok(())
    }

    /// Waits until peers may be elsewhere, which is to be [taken](Self::take) in.
    pub async fn news(&mut self) {
        self.discovery.changed().await;
    }

    /// Follows peers to where they are now.
    pub async fn take(&mut self) {
        self.discovery.take();
        let finds = |router: &Router| router.peers.iter().any(|peer| peer.address.ip().is_none());
        if self.configured.as_ref().is_some_and(|configured| finds(&configured.router)) {
            self.apply().await;
        }
    }

    /// Where peers are, by their names in the config.
    pub fn found(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.found
    }

    /// The kernel has forwarded for this node all along, so that peers keep their routes: they are told of a restart by the
    /// first speaker that starts, if it does while they may still have them.
    pub fn restarting(&mut self) {
        self.restarting = Restarting::Since(Instant::now());
    }

    /// Makes sessions and monitoring stations be as `router` says. Those for which nothing changes go on; a change of the ASN,
    /// the router id, the port or graceful restart begins all of them anew. `addresses` are node `node`'s own.
    pub async fn configure(&mut self, router: &Router, node: &str, addresses: &[IpAddr]) {
        let configured =
            Configured { router: router.clone(), node: node.into(), addresses: addresses.into() };
        if self.configured.as_ref() != Some(&configured) {
            self.passwords.want(router);
            self.discovery.want(router);
            self.configured = Some(configured);
            self.apply().await;
        }
    }

    /// Looks whether a password has changed, and tries again what did not work. To be called every second or so.
    pub async fn tick(&mut self) {
        self.journal.mend(Instant::now(), self.selection.held());
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

    /// What is not as configured: peers without their password, without BFD or beyond their limit, or why there are no sessions at all; and
    /// what the kernel refuses of the tables that are written to.
    pub fn problems(&self) -> Vec<String> {
        let export = self.export.as_ref().and_then(ExportTable::problem);
        let missing =
            self.missing.iter().map(|Missing { name, why, .. }| format!("peer {name}: no session: {why}"));
        let sessions = self.status().into_iter().flat_map(|speaker| speaker.peers);
        let bfd = sessions.filter_map(|peer| {
            let problem = peer.bfd.as_ref()?.problem.as_ref()?;
            Some(format!("peer {}: BFD: {problem}", peer.name()))
        });
        let problems = self.problems.iter().cloned().chain(missing).chain(bfd);
        problems.chain(export.map(str::to_owned)).chain(self.import_problems()).collect()
    }

    /// Brings speaker and peers in line with what is configured.
    async fn apply(&mut self) {
        let Some(Configured { router, node, addresses }) = &self.configured else { return };
        if let Some(importer) = &self.import {
            importer.wait();
        }
        let stations = sessions::bmp_stations(router, node);
        let mut problems = Vec::new();
        let mut imports = BTreeMap::new();
        let reflector = router.route_reflector;
        let mut of_secrets = BTreeMap::new();
        // `None`: there is no session without its password.
        let mut with_password = |who: String, peer: &Peer, at: IpAddr, before: Option<&PeerConfig>| {
            let resolved = self.passwords.of(&who, peer, before.and_then(|config| config.password.as_ref()));
            problems.extend(resolved.problem);
            let password = resolved.password.ok()?;
            if let (Some(PasswordSource::Secret(key)), Some(password)) = (peer.password_source(), &password) {
                of_secrets.insert(key, password.clone());
            }
            let bfd = peer.bfd.as_ref().and_then(|bfd| {
                let before = before.and_then(|config| config.bfd.as_ref());
                let before = before.map_or(&[][..], |bfd| &bfd.keys);
                let resolved = self.passwords.keys(&who, bfd, before);
                problems.extend(resolved.problems);
                for key in &bfd.keys {
                    if let PasswordSource::Secret(secret) = &key.source {
                        let read = self.passwords.read(&key.source);
                        of_secrets.extend(read.map(|read| (secret.clone(), read)));
                    }
                }
                Some(sessions::peer_bfd(bfd, peer, resolved.keys.ok()?, router.asn))
            });
            Some(sessions::peer_config(peer, at, password, bfd, addresses, router.asn))
        };
        let places = self.discovery.places(&router.peers);
        let (mut peers, mut found) = (Vec::new(), BTreeMap::<String, Vec<IpAddr>>::new());
        // Those that may have a session if the speaker runs, and those that may not.
        let (mut ready, mut barred) = (Vec::new(), Vec::new());
        for (name, address, peer) in places.found {
            found.entry(name).or_default().push(address);
            imports.extend(peer.import.clone().map(|import| (address, import)));
            let before = self.peers.iter().find(|config| config.address == address);
            let config = with_password(format!("peer {}", peer.name()), &peer, address, before);
            let (name, asn) = (peer.name(), peer.asn.number(router.asn).unwrap_or_default());
            let why = "no session without its password".into();
            let of = if config.is_some() { &mut ready } else { &mut barred };
            of.push(Missing { name, asn, why, imports: false });
            peers.extend(config);
        }
        let mut missing = Vec::new();
        for (peer, why) in places.missing {
            let (name, asn) = (peer.name(), peer.asn.number(router.asn).unwrap_or_default());
            // What it asks for is kept for when it is found.
            with_password(format!("peer {name}"), peer, Ipv6Addr::UNSPECIFIED.into(), None);
            missing.push(Missing { name, asn, why, imports: peer.import.is_some() });
        }
        let mut dynamic = Vec::new();
        for range in &router.dynamic_peers {
            let before = self.dynamic.iter().find(|config| config.prefix == range.prefix);
            let before = before.map(|config| &config.template);
            let at = range.prefix.addr();
            let template = with_password(format!("peers of {}", range.prefix), &range.template(), at, before);
            dynamic.extend(template.map(|template| sessions::dynamic_peers(range, template)));
        }
        problems.extend(places.problems);
        self.journal.passwords_are(of_secrets);
        self.start_again = None;
        if !router.has_peers() && router.bmp.is_empty() {
            let how = self.cease();
            self.stop_speaker(how).await;
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
                    let how = self.cease();
                    self.stop_speaker(how).await;
                    problems.push(error.to_string());
                }
            }
        }
        if self.speaker.is_none() {
            let why = problems.last().cloned().unwrap_or_default();
            barred.extend(ready.into_iter().map(|peer| Missing { why: why.clone(), ..peer }));
        }
        if let Some(Running { speaker, config, .. }) = &self.speaker {
            // What a session brings is judged from its beginning.
            speaker.set_imports(&imports);
            speaker
                .set_reflector(reflector.map(|reflector| reflector.cluster_id.unwrap_or(config.router_id)));
            speaker.set_peers(peers.clone());
            speaker.set_bmp_stations(stations);
            speaker.set_dynamic_peers(dynamic.clone());
            if self.complete {
                // A reflector that has restarted knows now whom it waits for.
                speaker.initial_routes_complete();
            }
        }
        self.peers = peers;
        self.dynamic = dynamic;
        for (name, at) in found.iter().filter(|(name, at)| self.found.get(*name) != Some(*at)) {
            debug!(peer = name, ?at, "peers are there");
        }
        self.found = found;
        self.missing = missing;
        self.barred = barred;
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{problem}");
        }
        self.problems = problems;
        self.follow_learnt();
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
            let how = self.leaving(before);
            self.stop_speaker(how).await;
        }
        let restarting = match (self.restarting, config.graceful_restart) {
            (Restarting::Since(since), Some(graceful)) => since.elapsed() < graceful.kept_for(),
            _ => false,
        };
        let started = Speaker::start(SpeakerConfig { restarting, ..config.clone() });
        let speaker = self.runtime.spawn(started).await.map_err(|_| AnnounceError::Gone)??;
        self.restarting = Restarting::No;
        let announce = self.routes(self.selection.announced().values());
        speaker.update(RouteChanges { announce, withdraw: Vec::new() });
        speaker.reserve(&self.reserved.iter().copied().collect::<Vec<_>>(), &[]);
        if let Some(links) = self.discovery.links() {
            speaker.learnt_routes().set_links(links);
        }
        self.speaker = Some(Running { speaker, config });
        Ok(())
    }

    async fn stop_speaker(&mut self, how: Shutdown) {
        if let Some(Running { speaker, config, .. }) = self.speaker.take() {
            self.keep_imported(&config).await;
            // The task only ends early with its runtime, and then there is no session left to end.
            let _ = self.runtime.spawn(speaker.shutdown(how)).await;
        }
    }

    /// Withdraws those of `prefixes` that the plan has no more, and waits until peers have been told: the kernel
    /// may forget them once these have followed. Gives what was withdrawn.
    pub async fn withdraw(&mut self, plan: &NodePlan, prefixes: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
        let step = self.selection.retire(plan, prefixes);
        let withdrawn: BTreeSet<IpNet> = step.withdraw.iter().copied().collect();
        self.tell(step).await;
        if !withdrawn.is_empty() {
            self.flush().await;
        }
        withdrawn
    }

    /// Brings what is announced of `prefixes` (`None`: of all) in line with the plan and what the dataplane holds.
    pub async fn update(
        &mut self,
        plan: &NodePlan,
        holds: impl Fn(&Announcement) -> bool,
        prefixes: Option<&BTreeSet<IpNet>>,
    ) {
        let stance = &self.stance;
        // Of what leads elsewhere than to IPVS, others see to it that packets get there.
        let holds = |announcement: &Announcement| {
            !announcement.kind.leads_to_ipvs() || stance.allows(&announcement.prefix) && holds(announcement)
        };
        let step = self.selection.update(plan, holds, prefixes);
        self.tell(step).await;
    }

    /// Has journal, table and peers follow.
    async fn tell(&mut self, step: Step) {
        if step.is_empty() {
            return;
        }
        let Step { announce, withdraw, in_place, held, lost } = step;
        let held = held.iter().map(|announcement| (announcement.prefix, Some(announcement)));
        let lost = lost.iter().map(|prefix| (*prefix, None));
        self.journal.announce(held.chain(lost), self.selection.len());
        if let Some(export) = &mut self.export {
            export
                .change(announce.iter().map(|announcement| announcement.prefix), withdraw.iter().copied())
                .await;
        }
        if let Some(first) =
            announce.first().map(|announcement| announcement.prefix).or(withdraw.first().copied())
        {
            info!(announce = announce.len(), withdraw = withdraw.len(), %first, "announcements change");
        }
        let announce = self.routes(announce.iter());
        let mut changes = RouteChanges { announce, withdraw };
        let Some(Running { speaker, .. }) = &self.speaker else { return };
        if in_place {
            // A speaker tells withdrawals first.
            let announce = std::mem::take(&mut changes.announce);
            speaker.update(RouteChanges { announce, withdraw: Vec::new() });
            self.flush().await;
        }
        speaker.update(changes);
    }

    /// Waits until peers have been told all, but not for ever.
    async fn flush(&self) {
        let Some(Running { speaker, .. }) = &self.speaker else { return };
        if !speaker.flushed(FLUSH_LIMIT).await {
            warn!(limit = ?FLUSH_LIMIT, "some peer has not read all that changed yet; going on");
        }
    }

    /// Notes this node's Node object, from which a start without a source knows peers and addresses.
    pub fn remember(&mut self, node: &Node) {
        self.journal.node(node);
    }

    /// Whether [`Self::complete`] was called.
    pub fn is_complete(&self) -> bool {
        self.complete
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

    /// The speaker's monitoring stations.
    pub fn bmp_stations(&self) -> Vec<BmpStationStatus> {
        self.speaker.as_ref().map(|running| running.speaker.bmp_stations()).unwrap_or_default()
    }

    /// The speaker's sessions.
    pub fn status(&self) -> Option<SpeakerStatus> {
        self.speaker.as_ref().map(|running| running.speaker.status())
    }

    /// How a speaker is left for good.
    fn cease(&self) -> Shutdown {
        let message =
            self.configured.as_ref().and_then(|configured| configured.router.shutdown_message.clone());
        message.map_or(Shutdown::Cease, Shutdown::CeaseSaying)
    }

    /// How a speaker is left that will be back.
    fn leaving(&self, config: &SpeakerConfig) -> Shutdown {
        match config.graceful_restart {
            Some(_) => Shutdown::GracefulRestart,
            None => self.cease(),
        }
    }

    /// Ends the sessions: so that peers keep the routes, where graceful restart is configured.
    pub async fn stop(mut self) {
        self.leave_imported().await;
        if let Some(Running { config, .. }) = &self.speaker {
            let how = self.leaving(config);
            self.stop_speaker(how).await;
        }
    }
}
