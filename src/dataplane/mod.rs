//! Plan → kernel: virtual servers, VIP routes, guard, acceptance, sysctls.
//!
//! ```text
//!                       ┌─► tunnel, uplink, sysctl    devices and settings, what replies need; fou: GUE's port
//! NodePlan, Delta ──────┼─► vip_routes ─► routing     VIPs as local routes
//!                       ├─► pods                      acceptance in the network namespaces of pods
//!   [Dataplane]         ├─► netfilter ──► nft         acceptance, nat, guard   (ruleset, elements, numbers)
//!                       │     └─► conntrack           what went is forgotten, on a thread of its own
//!                       └─► virtual_servers           IPVS                     (reconcile)
//! ```
//!
//! Each part observes, diffs and applies. [`Dataplane::sync`] lists everything and repairs it: on start, where it
//! adopts what an agent before left, and after a refusal. [`Dataplane::apply`] does what one change touches and costs
//! what the change costs. [`Dataplane::check`] looks periodically for what others changed, at a cost that is bounded
//! however many Services there are:
//!
//! | part | each time | more |
//! |---|---|---|
//! | nftables | the ruleset's generation | a listing where others made a transaction, at most a tenth of the time |
//! | devices, sysctls, routes | all of ours | |
//! | VIPs that are announced | 100 of them are [asked for](verify), and those that want for something or were never asked for | |
//! | IPVS | one dump of virtual servers | destinations of 500 of them, or of a twentieth: where there are 1,000 the round takes 30 s, with 10,000 5 minutes |
//!
//! What the kernel refused is remembered, and [`Dataplane::holds`] says of a VIP whether this node can forward it: one that is to
//! be announced is asked for ([`verify`]).

mod changes;
mod cleanup;
mod connections;
mod conntrack;
mod describe;
mod differences;
mod direct;
mod elements;
pub(crate) mod error;
mod explain;
mod fou;
mod generation;
mod lock;
mod lookup;
#[cfg(test)]
mod namespace;
mod netfilter;
pub(crate) mod netlink;
mod nft;
mod numbers;
mod pods;
mod preflight;
mod reconcile;
mod rewrites;
mod route_lookup;
pub(crate) mod routing;
mod ruleset;
mod standin;
mod state;
mod sysctl;
pub(crate) mod tunnel;
mod uplink;
mod verify;
mod vip_routes;
mod virtual_servers;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rtnetlink::Handle;

pub use self::cleanup::cleanup;
pub use self::connections::{Connection, Look, Passing};
use self::conntrack::Conntrack;
pub use self::describe::describe;
use self::error::is_absent;
pub use self::error::{DataplaneError, RouteError};
pub use self::explain::Asked;
use self::fou::FouError;
pub use self::lock::Lock;
use self::netfilter::Netfilter;
use self::pods::{Pods, Surroundings};
pub use self::preflight::{Finding, Severity, Wants, preflight};
use self::ruleset::Rules;
pub use self::state::Obstructed;
use self::sysctl::Sysctls;
use self::tunnel::Tunnel;
pub use self::uplink::Uplink;
use self::verify::Verification;
use self::vip_routes::{Devices, VipRoutes};
use self::virtual_servers::{View, VirtualServers, VirtualServersError};
use crate::cluster::Encapsulation;
use crate::config::{Conntrack as Room, MarkMask};
use crate::observe::metrics::Passes;
use crate::plan::{Delta, NodePlan, RewriteKey, VipPort};

/// What the dataplane needs to know apart from the plan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Packet mark bits to use.
    pub mark_mask: MarkMask,
    /// What directors wrap packets in: where that is GUE, it matters that this node takes it in.
    pub encapsulation: Encapsulation,
    /// This node answers no ARP request for a VIP.
    pub strict_arp: bool,
    /// Room and patience of connection tracking.
    pub conntrack: Room,
    /// Where the sysctls found are kept for `cleanup`; outlives the agent, not the boot.
    pub state_directory: PathBuf,
}

/// MTU in bytes where no uplink tells: Ethernet's.
const DEFAULT_MTU: u32 = 1500;

/// This node's kernel state of ours.
pub struct Dataplane {
    _lock: Lock,
    handle: Handle,
    mark_mask: MarkMask,
    encapsulation: Encapsulation,
    strict_arp: bool,
    room: Room,
    sysctls: Sysctls,
    devices: Option<Devices>,
    uplinks: Vec<Uplink>,
    /// Why this node does not take in GUE; `None`: it does.
    no_gue: Option<String>,
    netfilter: Netfilter,
    pods: Pods,
    conntrack: Conntrack,
    routes: VipRoutes,
    servers: VirtualServers,
    /// Addresses of this host that are not ours: a VIP that is among them stays theirs.
    local: BTreeSet<IpAddr>,
    /// Part → why it is not as planned. While there is any, nothing can be forwarded for sure.
    broken: BTreeMap<Part, String>,
    /// Part → why it could not be looked at. What it held before, it holds still as far as is known.
    unseen: BTreeMap<Part, String>,
    /// VIPs of changes that are not in the kernel, or of which that is not known.
    pending: BTreeSet<IpAddr>,
    /// What the kernel said of VIPs when it was asked.
    verification: Verification,
    retry: Retry,
    /// How often each part was looked at or changed.
    passes: BTreeMap<Part, Passes>,
}

/// When to try again what failed: at once, then ever later.
#[derive(Default)]
struct Retry {
    failures: u32,
    after: Option<Instant>,
}

impl Retry {
    const LONGEST: Duration = Duration::from_secs(15);

    fn is_due(&self, now: Instant) -> bool {
        self.after.is_none_or(|after| after <= now)
    }

    fn failed(&mut self, now: Instant) {
        let pause = Duration::from_secs(1 << self.failures.min(4)).min(Self::LONGEST);
        self.failures += 1;
        self.after = Some(now + pause);
    }
}

/// A part that all VIPs depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Devices,
    Netfilter,
    Routes,
    VirtualServers,
}

impl Part {
    const ALL: [Self; 4] = [Self::Devices, Self::Netfilter, Self::Routes, Self::VirtualServers];

    fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices and sysctls",
            Self::Netfilter => "nftables",
            Self::Routes => "routes",
            Self::VirtualServers => "IPVS",
        }
    }
}

impl Dataplane {
    /// Connects to the kernel; changes nothing. Needs a tokio runtime with I/O, in the network namespace
    /// to be programmed.
    ///
    /// # Errors
    /// [`DataplaneError`] where the kernel lacks something or permission is missing.
    pub fn open(settings: &Settings) -> Result<Self, DataplaneError> {
        let lock = Lock::take(&settings.state_directory)?;
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(DataplaneError::Rtnetlink)?;
        tokio::spawn(connection);
        Ok(Self {
            _lock: lock,
            handle,
            mark_mask: settings.mark_mask,
            encapsulation: settings.encapsulation,
            strict_arp: settings.strict_arp,
            room: settings.conntrack.clone(),
            sysctls: Sysctls::open(&settings.state_directory)?,
            devices: None,
            uplinks: Vec::new(),
            // What an agent before us made goes on, should the first look at the devices fail.
            no_gue: (!fou::stands(true).unwrap_or(false)).then(|| "not looked at yet".into()),
            netfilter: Netfilter::open(settings.mark_mask)?,
            pods: Pods::open(&settings.state_directory)?,
            conntrack: Conntrack::start().map_err(DataplaneError::Conntrack)?,
            routes: VipRoutes::default(),
            servers: VirtualServers::open()?,
            local: BTreeSet::new(),
            // Nothing is known before the first sync.
            broken: Part::ALL.map(|part| (part, "not looked at yet".into())).into(),
            unseen: BTreeMap::new(),
            pending: BTreeSet::new(),
            verification: Verification::default(),
            retry: Retry::default(),
            passes: Part::ALL.map(|part| (part, Passes::default())).into(),
        })
    }

    /// Whether the kernel holds something of ours, as far as can be told: an agent was here before.
    pub fn finds_earlier_state(&mut self) -> bool {
        !matches!(self.netfilter.exists(), Ok(false))
    }

    /// Lists all that is ours and makes it what the plan says; then asks for the VIPs that are to be announced. Gives what had
    /// to be done, in words.
    pub async fn sync(&mut self, plan: &NodePlan, now: Instant) -> Vec<String> {
        let done = self.put_all(plan, now).await;
        self.verify_all(plan, now).await;
        done
    }

    async fn put_all(&mut self, plan: &NodePlan, now: Instant) -> Vec<String> {
        let mut done = Vec::new();
        let result = self.sync_devices(plan).await;
        self.note(Part::Devices, result, &mut done);
        // Before the rules are written, or what goes on to pass would not.
        if !self.netfilter.began() && self.pods.may_adopt() {
            match direct::in_kernel() {
                Ok(passing) => self.pods.adopt(passing),
                Err(error) => {
                    self.note(Part::Netfilter, Err(error), &mut done);
                    self.retry.failed(now);
                    return done;
                }
            }
        }
        let (pods, node) = self.pods();
        pods.sync(plan, node, now).await;
        self.pass();
        let rules = self.rules(plan);
        let netfilter = self.netfilter.sync(plan, &self.local, rules, now);
        let stand = netfilter.is_ok();
        self.note(Part::Netfilter, netfilter, &mut done);
        // Without the rules, what IPVS sends would be refused: it stays as it is. Routes lead packets there after both.
        if stand {
            self.with_servers(plan, &mut done, |servers, view| {
                servers.sync(view).map(|count| words(count, "IPVS operations"))
            });
        }
        self.sync_routes(plan, &mut done).await;
        if self.needs_sync() {
            self.retry.failed(now);
        } else {
            self.pending.clear();
            self.retry = Retry::default();
        }
        self.forget();
        done
    }

    /// Looks for what others changed and repairs it; destinations of many virtual servers take several calls. Gives what
    /// had to be repaired, in words.
    pub async fn check(&mut self, plan: &NodePlan, now: Instant) -> Vec<String> {
        if self.needs_sync() {
            return if self.retry.is_due(now) { self.sync(plan, now).await } else { Vec::new() };
        }
        let mut done = Vec::new();
        let before = (self.local.clone(), self.rules(plan));
        let result = self.sync_devices(plan).await;
        self.note(Part::Devices, result, &mut done);
        if before != (self.local.clone(), self.rules(plan)) {
            done.extend(self.sync(plan, now).await);
            return done;
        }
        let (pods, node) = self.pods();
        done.extend(pods.check(node));
        self.pass();
        let refused: BTreeSet<RewriteKey> = self.netfilter.refused().keys().copied().collect();
        let result = self.netfilter.check(plan, &self.local, before.1, now);
        self.note(Part::Netfilter, result, &mut done);
        let still: BTreeSet<RewriteKey> = self.netfilter.refused().keys().copied().collect();
        let refused: BTreeSet<VipPort> = refused.symmetric_difference(&still).map(|key| key.vip).collect();
        if !self.needs_sync() {
            self.with_servers(plan, &mut done, |servers, view| {
                servers.check(view, refused).map(|count| words(count, "IPVS operations"))
            });
        }
        self.sync_routes(plan, &mut done).await;
        done.extend(self.verify_some(plan, now).await);
        self.forget();
        self.conntrack.check();
        done
    }

    /// Does what a change touches.
    pub async fn apply(&mut self, plan: &NodePlan, delta: &Delta, now: Instant) {
        if self.needs_sync() {
            self.pending.extend(addresses(delta));
            if self.retry.is_due(now) {
                self.sync(plan, now).await;
            }
            return;
        }
        let mut done = Vec::new();
        if delta.node {
            let local = self.local.clone();
            let result = self.sync_devices(plan).await;
            self.note(Part::Devices, result, &mut done);
            if !self.netfilter.has(self.rules(plan)) || local != self.local {
                self.sync(plan, now).await;
                return;
            }
        }
        // Before any rule lets a packet pass there.
        let (pods, node) = self.pods();
        pods.apply(plan, &delta.rewrites, node, now).await;
        self.pass();
        let result = self.netfilter.apply(plan, &self.local, delta, now).map(|()| Vec::new());
        self.note(Part::Netfilter, result, &mut done);
        if !self.needs_sync() {
            self.with_servers(plan, &mut done, |servers, view| {
                servers.apply(view, &delta.virtual_servers).map(|_| Vec::new())
            });
        }
        // Routes lead packets there last: before, nothing would keep them from what listens on this host.
        if delta.node {
            self.sync_routes(plan, &mut done).await;
        } else if let Some(devices) = self.devices {
            self.routes.update(&self.handle, plan, &self.local, &delta.vips, devices).await;
        }
        if self.needs_sync() {
            // Most likely somebody tampered with what we believed to hold.
            self.pending.extend(addresses(delta));
            self.sync(plan, now).await;
        } else {
            self.verify_change(plan, delta, now).await;
        }
        self.forget();
    }

    /// Waits until there is something for [`Self::tick`] before its time: what came of the work in pods. Nothing is lost where
    /// the wait is given up.
    pub async fn news(&mut self) {
        self.pods.news().await;
    }

    /// Ends what was only waiting: work in pods, destinations whose connections are gone, rewrites whose time is up.
    pub async fn tick(&mut self, plan: &NodePlan, now: Instant) {
        let (pods, node) = self.pods();
        pods.take_in(node);
        self.pass();
        if self.needs_sync() {
            if self.retry.is_due(now) {
                self.sync(plan, now).await;
            }
            return;
        }
        let mut done = Vec::new();
        self.pods.expire(now);
        self.pass();
        let result = self.netfilter.expire(now).map(|()| Vec::new());
        self.note(Part::Netfilter, result, &mut done);
        if !self.needs_sync() {
            let (pods, node) = self.pods();
            pods.settle(node);
        }
        self.with_servers(plan, &mut done, |servers, view| servers.drain(view).map(|_| Vec::new()));
        self.verify_unasked(plan, now).await;
        self.forget();
    }

    /// Works on IPVS, then marks packets for the services that came of it: a mark without its service would send clients
    /// within the cluster where all others go.
    fn with_servers(
        &mut self,
        plan: &NodePlan,
        done: &mut Vec<String>,
        work: impl FnOnce(&mut VirtualServers, View<'_>) -> Result<Vec<String>, VirtualServersError>,
    ) {
        let (refused, numbers) = (self.netfilter.refused(), self.netfilter.numbers());
        let worked = work(&mut self.servers, View { plan, local: &self.local, refused, numbers });
        let stands = worked.is_ok();
        self.note(Part::VirtualServers, worked, done);
        if stands {
            let marked = self.servers.marked();
            if let Err(error) = self.netfilter.mark(plan, &self.local, &marked) {
                self.note(Part::Netfilter, Err(error), done);
            }
        }
    }

    fn pods(&mut self) -> (&mut Pods, Surroundings<'_>) {
        let node = Surroundings { sysctls: &mut self.sysctls, local: &self.local, uplinks: &self.uplinks };
        (&mut self.pods, node)
    }

    /// Has the rules let pass to pods what these are ready for.
    fn pass(&mut self) {
        for (pair, passes) in self.pods.changes() {
            self.netfilter.direct.set(pair, passes);
        }
    }

    fn rules(&self, plan: &NodePlan) -> Rules {
        let mtu = smallest_mtu(&self.uplinks);
        Rules::new(self.mark_mask, mtu, &plan.node.addresses, self.no_gue.is_none())
    }

    /// Has conntrack forget what the table does not hold any more. After IPVS has followed, so that what its own
    /// connections still send makes no entry anew.
    fn forget(&mut self) {
        if !self.broken.contains_key(&Part::Netfilter) {
            let stale = self.netfilter.take_stale();
            if !stale.is_empty() {
                self.conntrack.forget(stale);
            }
        }
    }

    fn needs_sync(&self) -> bool {
        !self.broken.is_empty() || !self.unseen.is_empty()
    }

    fn note<E: Into<DataplaneError>>(
        &mut self,
        part: Part,
        result: Result<Vec<String>, E>,
        done: &mut Vec<String>,
    ) {
        let passes = self.passes.entry(part).or_default();
        match result {
            Ok(words) => {
                passes.ok += 1;
                self.broken.remove(&part);
                self.unseen.remove(&part);
                done.extend(words);
            }
            Err(error) => {
                passes.failed += 1;
                let error: DataplaneError = error.into();
                let kind = if error.only_looked() { &mut self.unseen } else { &mut self.broken };
                kind.insert(part, error.to_string());
            }
        }
    }

    async fn sync_devices(&mut self, plan: &NodePlan) -> Result<Vec<String>, DataplaneError> {
        let ipv6 = plan.node.addresses.iter().any(IpAddr::is_ipv6);
        let mut done = Vec::new();
        let loopback = tunnel::find(&self.handle, "lo")
            .await?
            .ok_or_else(|| RouteError::new("lo".into(), "there is no loopback device"))?;
        let (tunnel4, made) = tunnel::ensure(&self.handle, Tunnel::V4, Tunnel::V4.local()).await?;
        done.extend(made.then(|| format!("made or repaired {}", tunnel::TUNNEL4)));
        // A host may have IPv6 turned off; where the Node has none, nothing needs it.
        let tunnel6 = if ipv6 {
            let (index, made) = tunnel::ensure(&self.handle, Tunnel::V6, Tunnel::V6.local()).await?;
            done.extend(made.then(|| format!("made or repaired {}", tunnel::TUNNEL6)));
            Some(index)
        } else {
            None
        };
        self.devices = Some(Devices { loopback: loopback.header.index, tunnel4, tunnel6 });
        // Nothing else waits for it: a node without goes on with IP in IP.
        match fou::ensure(ipv6) {
            Ok(made) => {
                done.extend(made);
                self.no_gue = None;
            }
            // What stood stands still, as far as is known.
            Err(FouError::Refused { .. }) if self.no_gue.is_none() => {}
            Err(error) => self.no_gue = Some(error.to_string()),
        }
        self.local = uplink::local_addresses(&self.handle).await?;
        self.uplinks = uplink::list(&self.handle, &plan.node).await?;
        let mut settings = Vec::new();
        for name in self.uplinks.iter().map(|uplink| uplink.name.as_str()).chain([tunnel::TUNNEL4]) {
            settings.extend(sysctl::interface(name, ipv6)?);
        }
        // After those of interfaces: forwarding makes an interface forget its router, unless told not to.
        settings.extend(sysctl::namespace(ipv6));
        if self.strict_arp {
            settings.extend(sysctl::strict_arp());
        }
        settings.extend(sysctl::conntrack(&self.room)?);
        let written = self.sysctls.ensure(&settings, sysctl::Use::Node)?;
        done.extend(written.into_iter().map(|sysctl| format!("set {} = {}", sysctl.path, sysctl.value)));
        Ok(done)
    }

    async fn sync_routes(&mut self, plan: &NodePlan, done: &mut Vec<String>) {
        if let Some(devices) = self.devices {
            let result = self.routes.sync(&self.handle, plan, &self.local, devices).await;
            self.note(Part::Routes, result, done);
        }
    }
}

/// The VIPs that a change concerns.
fn addresses(delta: &Delta) -> impl Iterator<Item = IpAddr> {
    let of_servers = delta.virtual_servers.iter().map(|vip| vip.address);
    let of_rewrites = delta.rewrites.iter().map(|key| key.vip.address);
    of_servers.chain(of_rewrites).chain(delta.vips.iter().copied())
}

fn words(count: usize, what: &str) -> Vec<String> {
    if count == 0 { Vec::new() } else { vec![format!("{count} {what}")] }
}

/// What every uplink can carry, in bytes.
fn smallest_mtu(uplinks: &[Uplink]) -> u32 {
    uplinks.iter().map(|uplink| uplink.mtu).min().unwrap_or(DEFAULT_MTU)
}

/// The prefix that binds a VIP: the service CIDR around it, or its own host prefix.
fn vip_net(plan: &NodePlan, vip: IpAddr) -> IpNet {
    let host = IpNet::from(vip);
    service_nets(plan).into_iter().find(|cidr| cidr.contains(&host)).unwrap_or(host)
}

/// Every prefix that binds VIPs: no two overlap.
fn vip_nets(plan: &NodePlan) -> impl Iterator<Item = IpNet> {
    let cidrs = service_nets(plan);
    let alone: Vec<IpNet> = plan
        .vips
        .keys()
        .map(|vip| IpNet::from(*vip))
        .filter(|host| !cidrs.iter().any(|cidr| cidr.contains(host)))
        .collect();
    cidrs.into_iter().chain(alone)
}

fn service_nets(plan: &NodePlan) -> Vec<IpNet> {
    IpNet::aggregate(&plan.node.service_cidrs.iter().copied().collect())
}
