//! Plan → kernel: virtual servers, VIP routes, guard, acceptance, sysctls.
//!
//! ```text
//!                       ┌─► tunnel, uplink, sysctl    devices and settings, what replies need
//! NodePlan, Delta ──────┼─► vip_routes ─► routing     VIPs as local routes
//!   [Dataplane]         ├─► netfilter ──► nft         acceptance, nat, guard   (ruleset, elements, numbers)
//!                       └─► virtual_servers           IPVS                     (reconcile)
//! ```
//!
//! Each part observes, diffs and applies. [`Dataplane::sync`] lists everything and repairs it: on start, where it
//! adopts what an agent before left, and periodically. [`Dataplane::apply`] does what one change touches and costs
//! what the change costs. What the kernel refused is remembered, and [`Dataplane::holds`] says of a VIP whether
//! this node can forward it.

mod describe;
mod elements;
mod error;
mod netfilter;
mod nft;
mod numbers;
mod preflight;
mod reconcile;
mod routing;
mod ruleset;
mod standin;
mod sysctl;
mod tunnel;
mod uplink;
mod vip_routes;
mod virtual_servers;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rtnetlink::Handle;

pub use self::describe::describe;
use self::error::is_absent;
pub use self::error::{DataplaneError, RouteError};
use self::netfilter::Netfilter;
pub use self::preflight::{Finding, Severity, preflight};
use self::sysctl::Sysctls;
use self::tunnel::Tunnel;
pub use self::uplink::Uplink;
use self::vip_routes::{Devices, VipRoutes};
use self::virtual_servers::VirtualServers;
use crate::config::MarkMask;
use crate::plan::{Delta, NodePlan, VipPort};

/// What the dataplane needs to know apart from the plan.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Packet mark bits to use.
    pub mark_mask: MarkMask,
    /// Where the sysctls found are kept for `cleanup`; outlives the agent, not the boot.
    pub state_directory: PathBuf,
}

/// MTU in bytes where no uplink tells: Ethernet's.
const DEFAULT_MTU: u32 = 1500;

/// This node's kernel state of ours.
pub struct Dataplane {
    handle: Handle,
    sysctls: Sysctls,
    devices: Option<Devices>,
    uplinks: Vec<Uplink>,
    netfilter: Netfilter,
    routes: VipRoutes,
    servers: VirtualServers,
    /// Part → why it is not as planned. While there is any, nothing can be forwarded for sure.
    broken: BTreeMap<Part, String>,
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
        let (connection, handle, _) =
            rtnetlink::new_connection_with_strict_check().map_err(DataplaneError::Rtnetlink)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            sysctls: Sysctls::open(&settings.state_directory)?,
            devices: None,
            uplinks: Vec::new(),
            netfilter: Netfilter::new(settings.mark_mask),
            routes: VipRoutes::default(),
            servers: VirtualServers::open()?,
            // Nothing is known before the first sync.
            broken: Part::ALL.map(|part| (part, "not looked at yet".into())).into(),
        })
    }

    /// Lists all that is ours and makes it what the plan says. Gives what had to be done, in words.
    pub async fn sync(&mut self, plan: &NodePlan, now: Instant) -> Vec<String> {
        let mut done = Vec::new();
        let result = self.sync_devices(plan).await;
        self.note(Part::Devices, result, &mut done);
        let mtu = smallest_mtu(&self.uplinks);
        // Both wait for the kernel, or for `nft`; neither needs the other. VIP routes lead packets there after both.
        let Self { netfilter, servers, .. } = self;
        let (rules, servers) = std::thread::scope(|scope| {
            let rules = scope.spawn(|| netfilter.sync(plan, mtu, now));
            let servers = servers.sync(plan);
            (rules.join(), servers)
        });
        let rules = rules.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.note(Part::Netfilter, rules, &mut done);
        self.note(Part::VirtualServers, servers.map(|count| words(count, "IPVS operations")), &mut done);
        self.sync_routes(plan, &mut done).await;
        done
    }

    /// Does what a change touches.
    pub async fn apply(&mut self, plan: &NodePlan, delta: &Delta, now: Instant) {
        if self.is_broken() {
            self.sync(plan, now).await;
            return;
        }
        let mut done = Vec::new();
        if delta.node {
            let result = self.sync_devices(plan).await;
            self.note(Part::Devices, result, &mut done);
            self.sync_routes(plan, &mut done).await;
        }
        if let Some(devices) = self.devices {
            self.routes.add(&self.handle, plan, &delta.vips, devices).await;
        }
        let result = self.netfilter.apply(plan, delta, now).map(|()| Vec::new());
        self.note(Part::Netfilter, result, &mut done);
        let result = self.servers.apply(plan, &delta.virtual_servers).map(|_| Vec::new());
        self.note(Part::VirtualServers, result, &mut done);
        self.routes.remove(&self.handle, plan, &delta.vips).await;
        if self.is_broken() {
            // Most likely somebody tampered with what we believed to hold.
            self.sync(plan, now).await;
        }
    }

    /// Ends what was only waiting: destinations whose connections are gone, rewrites whose time is up.
    pub async fn tick(&mut self, plan: &NodePlan, now: Instant) {
        if self.is_broken() {
            self.sync(plan, now).await;
            return;
        }
        let mut done = Vec::new();
        let result = self.netfilter.expire(now).map(|()| Vec::new());
        self.note(Part::Netfilter, result, &mut done);
        let result = self.servers.drain(plan).map(|_| Vec::new());
        self.note(Part::VirtualServers, result, &mut done);
    }

    /// Whether this node forwards what comes for a VIP: everything it takes is in the kernel.
    pub fn holds(&self, plan: &NodePlan, vip: IpAddr) -> bool {
        let first = VipPort { address: vip, port: 0, protocol: crate::cluster::Protocol::Tcp };
        !self.is_broken()
            && self.routes.holds(plan, vip)
            && self.servers.failed.range(first..).next().is_none_or(|(failed, _)| failed.address != vip)
    }

    /// Everything that is not as planned, in words: what, and why.
    pub fn problems(&self) -> Vec<String> {
        let broken = self.broken.iter().map(|(part, why)| format!("{}: {why}", part.name()));
        let routes = self.routes.failed.values().cloned();
        let servers = self.servers.failed.iter().map(|(vip, why)| format!("virtual server {vip}: {why}"));
        let rewrites = self
            .netfilter
            .refused
            .iter()
            .map(|(key, why)| format!("endpoint {} of {}: {why}", key.endpoint, key.vip));
        broken.chain(routes).chain(servers).chain(rewrites).collect()
    }

    /// The interfaces towards other nodes, as last seen.
    pub fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// Whether the first sync found what an agent before had left: this node forwarded all along.
    pub fn adopted(&self) -> bool {
        self.netfilter.adopted
    }

    /// Whether some destination still drains.
    pub fn is_draining(&self) -> bool {
        self.servers.is_draining()
    }

    /// Netlink messages sent to IPVS since the start.
    pub fn ipvs_messages(&self) -> u64 {
        self.servers.messages
    }

    /// Time IPVS took for them.
    pub fn ipvs_time(&self) -> Duration {
        self.servers.time
    }

    /// Our virtual servers as the kernel lists them.
    ///
    /// # Errors
    /// [`DataplaneError`] when IPVS does not answer.
    pub fn list_virtual_servers(&mut self) -> Result<Vec<sheave_ipvs::ServiceEntry>, DataplaneError> {
        Ok(self.servers.list()?)
    }

    fn is_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    fn note<E: Into<DataplaneError>>(
        &mut self,
        part: Part,
        result: Result<Vec<String>, E>,
        done: &mut Vec<String>,
    ) {
        match result {
            Ok(words) => {
                self.broken.remove(&part);
                done.extend(words);
            }
            Err(error) => drop(self.broken.insert(part, error.into().to_string())),
        }
    }

    async fn sync_devices(&mut self, plan: &NodePlan) -> Result<Vec<String>, DataplaneError> {
        let ipv6 = plan.node.addresses.iter().any(IpAddr::is_ipv6);
        let mut settings = sysctl::namespace(ipv6);
        let loopback = tunnel::find(&self.handle, "lo")
            .await?
            .ok_or_else(|| RouteError::new("lo".into(), "there is no loopback device"))?;
        let (tunnel4, made4) = tunnel::ensure(&self.handle, Tunnel::V4).await?;
        let (tunnel6, made6) = tunnel::ensure(&self.handle, Tunnel::V6).await?;
        self.devices = Some(Devices { loopback: loopback.header.index, tunnel4, tunnel6 });
        self.uplinks = uplink::list(&self.handle, &plan.node.addresses).await?;
        let arriving = self.uplinks.iter().map(|uplink| uplink.name.as_str()).chain([tunnel::TUNNEL4]);
        for name in arriving {
            settings.extend(sysctl::interface(name)?);
        }
        let written = self.sysctls.ensure(&settings)?;
        let made = [(made4, Tunnel::V4), (made6, Tunnel::V6)];
        Ok(made
            .into_iter()
            .filter(|(made, _)| *made)
            .map(|(_, tunnel)| format!("made or repaired {}", tunnel.name()))
            .chain(written.into_iter().map(|sysctl| format!("set {} = {}", sysctl.path, sysctl.value)))
            .collect())
    }

    async fn sync_routes(&mut self, plan: &NodePlan, done: &mut Vec<String>) {
        if let Some(devices) = self.devices {
            let result = self.routes.sync(&self.handle, plan, devices).await;
            self.note(Part::Routes, result, done);
        }
    }
}

/// Removes everything of ours from the kernel, nothing else. Gives what it removed, in words.
///
/// # Errors
/// [`DataplaneError`] of the first part that failed; the others are removed all the same.
pub async fn cleanup(settings: &Settings) -> Result<Vec<String>, DataplaneError> {
    let (connection, handle, _) =
        rtnetlink::new_connection_with_strict_check().map_err(DataplaneError::Rtnetlink)?;
    tokio::spawn(connection);
    let mut done = Vec::new();
    let mut failed: Option<DataplaneError> = None;
    let mut note = |result: Result<Vec<String>, DataplaneError>| match result {
        Ok(words) => done.extend(words),
        Err(error) => drop(failed.get_or_insert(error)),
    };
    // A kernel without IPVS holds no virtual server of ours.
    if let Ok(mut servers) = VirtualServers::open() {
        note(servers.clear().map(|count| words(count, "virtual servers")).map_err(Into::into));
    }
    note(VipRoutes::clear(&handle).await.map(|count| words(count, "routes")).map_err(Into::into));
    note(
        netfilter::remove()
            .map(|existed| if existed { vec!["table inet sheave".into()] } else { Vec::new() })
            .map_err(Into::into),
    );
    // Before the devices, whose settings go with them.
    let restored = Sysctls::open(&settings.state_directory).and_then(Sysctls::restore);
    note(restored.map(|count| words(count, "sysctls put back")).map_err(Into::into));
    for tunnel in Tunnel::ALL {
        let removed = tunnel::remove(&handle, tunnel).await;
        note(
            removed
                .map(|existed| if existed { vec![tunnel.name().into()] } else { Vec::new() })
                .map_err(Into::into),
        );
    }
    failed.map_or(Ok(done), Err)
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
